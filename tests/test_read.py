"""A file that cannot be used is refused, with its name, what is wrong and what to do."""

import dataclasses

import h5py
import numpy as np
import pytest
from helpers import changed
from shard_case import IDS, write_shard

from pipeline import provenance, read, schema, select
from pipeline.errors import ShardError
from pipeline.read import ShardReader
from pipeline.write import ShardWriter


def test_reader_refuses_what_is_absent_or_no_hdf5(tmp_path):
    (tmp_path / "page.h5").write_text("<html>503</html>" * 100)
    for name in ("page.h5", "absent.h5"):
        with pytest.raises(ShardError, match=name):
            ShardReader(tmp_path / name)


def test_reader_names_missing_dataset_and_those_present(tmp_path):
    path = write_shard(tmp_path / "a.h5")
    with ShardReader(path) as reader:
        with pytest.raises(ShardError, match="no dataset ra; found: flux, name, noise, source_id"):
            reader.read("ra")
        assert list(reader.read_table(["flux"], optional=["ra", "name"])) == ["flux", "name"]
    with pytest.raises(ShardError, match="gdr3_source_id"):
        ShardReader(path, "gdr3_source_id")


def test_reader_refuses_columns_of_unequal_length_and_incomplete_files(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["source_id"] = IDS
        file["ra"] = np.zeros(4)
    with pytest.raises(ShardError, match=r"5 rows.*ra is \(4,\)"):
        ShardReader(tmp_path / "a.h5", "source_id")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["source_id"] = IDS
        file.attrs["complete"] = False
    with pytest.raises(ShardError, match="incomplete"):
        ShardReader(tmp_path / "b.h5", "source_id")


def test_reader_refuses_repeated_or_non_integer_ids(tmp_path):
    write_shard(tmp_path / "a.h5", ids=np.array([5, 6, 5, 7, 7]))
    with ShardReader(tmp_path / "a.h5") as reader, pytest.raises(ShardError, match=r"2 .* is 5"):
        reader.source_id()
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["source_id"] = IDS.astype("f8")
    with (
        ShardReader(tmp_path / "b.h5", "source_id") as reader,
        pytest.raises(ShardError, match="float64"),
    ):
        reader.source_id()


def test_big_endian_foreign_columns_come_in_native_order(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["source_id"] = IDS.astype(">i8")
        file["ra"] = np.arange(5).astype(">f4")
    with ShardReader(tmp_path / "a.h5", "source_id") as reader:
        assert reader.read("ra").dtype.isnative
        np.testing.assert_array_equal(reader.source_id(), IDS)


# ---- against what is declared ----------------------------------------------------------------

RELEASE = schema.load_release()
FID = "000000-000099"
STARS = np.arange(4)


def write_tmass(data_dir, release=RELEASE, left_out=(), attrs=None, **odd):
    """A shard of 2MASS matches; odd: {dataset: what differs from its declaration}."""
    datasets = schema.resolved("tmass", schema.Layout(RELEASE))
    made_by = provenance.provenance("query_2mass", [], [], release) | (attrs or {})
    path = select.shard_path(data_dir, "tmass", FID)
    with ShardWriter(path, len(STARS), RELEASE.id_column, made_by) as writer:
        for name in datasets.keys() - set(left_out):
            data = dataclasses.replace(datasets[name], **odd.get(name, {}))
            writer.create(name, data.shape, data.dtype, **data.attributes)
            values = STARS if name == RELEASE.id_column else np.zeros((len(STARS), *data.shape))
            writer.write(name, 0, values.astype(data.dtype))
    return path


def check_tmass(data_dir, release=RELEASE):
    with read.open_shard(data_dir, "tmass", FID, release) as reader:
        reader.check(schema.resolved("tmass", schema.Layout(release)))


def test_a_file_as_declared_is_accepted(tmp_path):
    write_tmass(tmp_path)
    check_tmass(tmp_path)


@pytest.mark.parametrize(("odd", "message"), [
    ({"h_m": {"dtype": "S4"}}, r"h_m is \|S4 .* expected f4"),
    ({"ph_qual": {"dtype": "f4"}}, "ph_qual is float32 .* expected S3"),
    ({"h_m": {"shape": (2,)}}, r"h_m is float32 with rows of shape \(2,\), expected f4 and \(\)"),
    ({"h_m": {"attributes": {"units": "Jy"}}}, "h_m is in Jy, expected mag"),
])  # fmt: skip
def test_a_dataset_of_ours_that_is_not_as_declared_is_refused_by_name(tmp_path, odd, message):
    write_tmass(tmp_path, **odd)
    with pytest.raises(ShardError, match=rf"xp_tmass_match_{FID}\.h5: {message}"):
        check_tmass(tmp_path)


def test_a_dataset_of_ours_that_is_missing_is_refused_and_one_of_others_is_not(tmp_path):
    path = write_tmass(tmp_path, left_out=["h_m"])
    with pytest.raises(ShardError, match="no dataset h_m; found"):
        check_tmass(tmp_path)
    with changed(path) as file:
        del file.attrs["script"]
    check_tmass(tmp_path)


def test_another_way_to_write_a_number_or_a_unit_is_the_same(tmp_path):
    h = {"dtype": "f8", "attributes": {"units": " mag"}}
    write_tmass(tmp_path, h_m=h, j_m={"dtype": "i4"}, ks_m={"attributes": {}})
    check_tmass(tmp_path)


def test_a_file_of_another_format_is_refused_with_the_script_that_makes_it(tmp_path):
    write_tmass(tmp_path, attrs={"format": 7})
    with pytest.raises(ShardError, match=r"format 7, now 1.*--overwrite"):
        check_tmass(tmp_path)


def test_a_file_of_another_release_is_refused_with_the_way_out(tmp_path):
    other = dataclasses.replace(RELEASE, name="dr9")
    path = write_tmass(tmp_path, release=other)
    with pytest.raises(ShardError, match=r"of the release dr9, but dr3 is in use: give --release"):
        check_tmass(tmp_path)
    with ShardReader(path) as reader:
        reader.require_release(other)


def test_a_file_that_names_no_release_is_taken_for_the_one_in_use(tmp_path):
    with ShardReader(write_shard(tmp_path / "a.h5")) as reader:
        reader.require_release(RELEASE)


def test_spectra_of_a_release_with_other_names_are_read_under_ours(tmp_path):
    names = {"bp_coefficients": "bp_coeffs", "source_id": "dr9_id"}
    release = dataclasses.replace(
        RELEASE, spectra=dataclasses.replace(RELEASE.spectra, names=names)
    )
    path = select.shard_path(tmp_path, "xp", FID)
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        file["dr9_id"], file["ruwe"] = IDS, np.ones(5)
        file.create_dataset("bp_coeffs", data=np.tile(IDS[:, None], 55)).attrs["note"] = "theirs"
    with read.open_shard(tmp_path, "xp", FID, release) as reader:
        reader.check(schema.resolved("xp", schema.Layout(release)))
        assert reader.columns == ["bp_coefficients", "source_id", "ruwe"]
        np.testing.assert_array_equal(reader.source_id(), IDS)
        np.testing.assert_array_equal(reader.read("bp_coefficients")[:, 2], IDS)
        np.testing.assert_array_equal(reader.read_rows("bp_coefficients", [1, 3])[:, 0], IDS[1::2])
        assert reader.attributes("bp_coefficients") == {"note": "theirs"}
    with pytest.raises(ShardError, match="no dataset source_id; found: bp_coeffs"):
        read.open_shard(tmp_path, "xp", FID, RELEASE)


def test_a_file_that_has_our_names_already_needs_no_other(tmp_path):
    names = {"ruwe": "ruwe_dr9"}
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["source_id"], file["ruwe"], file["ruwe_dr9"] = IDS, np.ones(5), np.zeros(5)
    with ShardReader(tmp_path / "a.h5", "source_id", names) as reader:
        np.testing.assert_array_equal(reader.read("ruwe"), 1)
