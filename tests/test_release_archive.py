"""A release is a file: steps 2 to 5 with one made up, and what they do about another archive."""

import h5py
import numpy as np
import pytest
from helpers import read_all
from tap_case import (
    FAST,
    FIDS,
    N_STARS,
    SLOWER,
    archive_schema,
    gaia_table,
    make_ids,
    write_spectra,
)
from tap_stub import TapStub

import match_unwise_gaia
import query_2mass
import query_reddening_gaia
import query_xp_metadata
from demo.unwise_tiles import tile_name, tile_of, write_tile
from pipeline.schema import load_release
from pipeline.schema.flags import ZeroPointFlag
from pipeline.schema.release import FOLDER
from pipeline.select import list_fids, shard_path

FID = FIDS[0]
IDS = make_ids(FID)
MISSING = "phot_bp_rp_excess_factor"  # from the made-up archive
# Of the file of DR3: another value of some entries.
CHANGES = {
    'name = "dr3"': 'name = "toy4"',
    '"gdr3_source_id"': '"gdr4_source_id"',
    "reference_epoch = 2016.0": "reference_epoch = 2017.5",
    '"gaiadr3.gaia_source"': '"gaiatoy.source_list"',
    '"external.gaiaedr3_spurious"': '"external.toy_quality"',
    '"gaiadr3.tmass_psc_xsc_best_neighbour"': '"gaiatoy.tmass_match"',
    '"gaiadr3.tmass_psc_xsc_join"': '"gaiatoy.tmass_link"',
    '"gaiadr1.tmass_original_valid"': '"gaiatoy.tmass"',
    "has_xp_continuous = 'True'": "has_xp = 'True'",
    'zero_point = "recipe"': 'zero_point = "column"',
    'zero_point_column = ""': 'zero_point_column = "tentative_parallax_bias"',
    "parallax_bit = 2": "parallax_bit = 4",
    "[archive.names] ": (
        "[archive.names]\n"
        'astrometric_params_solved = "astrometric_params"\n'
        'has_xp_continuous = "has_xp"\n'
        'quality.source_id = "id_of_toy"\n'
        'tmass.tm_ra = "ra_2mass"  '
    ),
}
NO_QUALITY = CHANGES | {'"external.gaiaedr3_spurious"': '""'}


def write_release(folder, changes=CHANGES, name="toy.toml"):
    """Path of the file of a made-up release."""
    text = (FOLDER / "dr3.toml").read_text()
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = folder / name
    path.write_text(text)
    return path


def toy_table():
    """What the made-up archive answers: zero points of its own, two stars without a parallax."""
    table = gaia_table(IDS)
    rng = np.random.default_rng(3)
    table["parallax"] = np.ma.array(rng.uniform(0.5, 5, N_STARS))
    table["parallax_zeropoint"] = np.ma.array(rng.uniform(-0.1, 0, N_STARS).astype("f4"))
    table["parallax_zeropoint"][[4, 5]] = np.ma.masked
    table["astrometric_params_solved"] = np.ma.array(np.full(N_STARS, 1 << 4, "i2"))
    table["astrometric_params_solved"][[7, 8]] = 0b1111
    for name in ("pmra", "pmdec"):
        table[name] = np.ma.array(rng.uniform(-3000, 3000, N_STARS))
    return table


@pytest.fixture
def release(tmp_path):
    return write_release(tmp_path)


@pytest.fixture
def data_dir(tmp_path, release):
    write_spectra(tmp_path / "data", FID, IDS, release="toy4")
    return tmp_path / "data"


def toy_schema(path, script=query_xp_metadata, without=MISSING):
    schema = archive_schema(script.question(load_release(str(path))))
    return {t: [name for name in names if name != without] for t, names in schema.items()}


def run(script, data_dir, release, *options):
    arguments = ["--data-dir", data_dir, "--release", release, *options]
    return script.main([str(argument) for argument in arguments])


def ask(script, data_dir, release, stub, *options):
    return run(script, data_dir, release, "--tap-url", stub.url, *FAST, *options)


def make_metadata(data_dir, release):
    with TapStub(toy_table(), schema=toy_schema(release)) as stub:
        assert ask(query_xp_metadata, data_dir, release, stub) == 0
        assert len(stub.queries) == len(stub.schema_queries) == 1
        return stub.queries[0]


def read(data_dir, kind, fid=FID):
    with h5py.File(shard_path(data_dir, kind, fid)) as file:
        return {name: file[name][()] for name in file}, dict(file.attrs)


def log_text(data_dir, script="query_xp_metadata"):
    return (data_dir / "logs" / f"{script}.log").read_text()


# ---- a release made up -----------------------------------------------------------------------


def test_step_2_asks_for_the_tables_and_columns_of_the_release(data_dir, release):
    query = make_metadata(data_dir, release)
    assert "source.astrometric_params AS astrometric_params_solved" in query
    assert "source.tentative_parallax_bias AS parallax_zeropoint" in query
    assert "external.toy_quality AS quality ON quality.id_of_toy = source.source_id" in query
    assert query.endswith("AND source.has_xp = 'True'")
    found, attrs = read(data_dir, "metadata")
    table = toy_table()
    np.testing.assert_array_equal(found["source_id"], IDS)
    np.testing.assert_array_equal(found["fidelity_v2"], table["fidelity_v2"])
    np.testing.assert_array_equal(found["has_xp_continuous"], table["has_xp_continuous"])
    assert attrs["release"] == "toy4"
    assert attrs["absent_columns"] == MISSING
    assert MISSING not in found
    assert f"not in the archive, left out: {MISSING}" in log_text(data_dir)


def test_a_zero_point_of_the_archive_is_subtracted_where_there_is_one(data_dir, release):
    make_metadata(data_dir, release)
    found, _ = read(data_dir, "metadata")
    table = toy_table()
    raw, bias = table["parallax"].data, table["parallax_zeropoint"].data.astype(float)
    none = [4, 5, 7, 8]  # no zero point, or no parallax was solved for
    bias[none] = np.nan
    np.testing.assert_array_equal(found["parallax_raw"], raw)
    np.testing.assert_array_equal(found["parallax_zeropoint"], bias.astype("f4"))
    np.testing.assert_array_equal(found["parallax"], raw - np.nan_to_num(bias))
    flags = np.zeros(N_STARS, "u1")
    flags[none] = ZeroPointFlag.NONE
    np.testing.assert_array_equal(found["parallax_zeropoint_flags"], flags)


def test_a_release_without_a_table_of_quality_lacks_its_columns(tmp_path, data_dir):
    release = write_release(tmp_path, NO_QUALITY)
    query = make_metadata(data_dir, release)
    assert "JOIN" not in query
    found, attrs = read(data_dir, "metadata")
    absent = attrs["absent_columns"].split(", ")
    assert {"fidelity_v2", "norm_dg", MISSING} < set(absent)
    assert not set(absent) & set(found)
    np.testing.assert_array_equal(found["source_id"], IDS)


def tmass_answer():
    table = {"source_id": np.ma.array(IDS)}
    for name, column in query_2mass.question(load_release()).columns.items():
        if column.dtype[0] == "f":
            values = np.random.default_rng(4).uniform(1, 20, N_STARS).astype(column.dtype)
            table[name] = np.ma.array(values)
    designation = np.array([f"{k:08d}+{k:07d}" for k in range(N_STARS)])
    table["designation"] = table["original_ext_source_id"] = np.ma.array(designation)
    table["ph_qual"] = np.ma.array(np.full(N_STARS, "AAA"))
    table["ext_key"].mask = True
    return table


def test_step_3_asks_for_the_tables_of_the_release_and_names_its_ids(data_dir, release):
    with TapStub(tmass_answer(), schema=toy_schema(release, query_2mass)) as stub:
        assert ask(query_2mass, data_dir, release, stub) == 0
        assert "FROM gaiatoy.source_list AS source" in stub.queries[0]
        assert "JOIN gaiatoy.tmass AS tmass" in stub.queries[0]
        assert "tmass.ra_2mass AS tm_ra, tmass.dec AS tm_dec" in stub.queries[0]
    found, attrs = read(data_dir, "tmass")
    assert attrs["release"] == "toy4"
    np.testing.assert_array_equal(found["gdr4_source_id"], IDS)
    np.testing.assert_array_equal(found["tm_ra"], tmass_answer()["tm_ra"])


def write_tiles(folder, ra, dec):
    folder.mkdir()
    ring, number = tile_of(ra, dec)
    names = np.array([tile_name(*place) for place in zip(ring.tolist(), number.tolist(),
                                                         strict=True)])  # fmt: skip
    for name in np.unique(names):
        rows = names == name
        flux = np.repeat(np.flatnonzero(rows)[:, None] + 1.0, 2, axis=1)
        write_tile(folder, str(name), {"ra": ra[rows], "dec": dec[rows], "flux": flux})


def test_step_4_moves_the_stars_from_the_epoch_of_the_release(tmp_path, data_dir, release):
    make_metadata(data_dir, release)
    table = {name: toy_table()[name].data for name in ("ra", "dec", "pmra", "pmdec")}
    years = match_unwise_gaia.UNWISE_EPOCH - 2017.5
    degrees = years / 3.6e6  # a mas/yr moves by
    ra = table["ra"] + degrees * table["pmra"] / np.cos(np.deg2rad(table["dec"]))
    write_tiles(tmp_path / "tiles", ra, table["dec"] + degrees * table["pmdec"])
    assert run(match_unwise_gaia, data_dir, release, "--unwise-dir", tmp_path / "tiles") == 0
    found, attrs = read(data_dir, "unwise")
    assert attrs["release"] == "toy4"
    np.testing.assert_array_equal(found["gdr4_source_id"], IDS)
    np.testing.assert_array_equal(found["flux"][:, 0], np.arange(N_STARS) + 1)
    np.testing.assert_allclose(found["sep_arcsec"], 0, atol=1e-3)


def test_step_5_names_the_ids_of_the_release(data_dir, release):
    make_metadata(data_dir, release)
    assert run(query_reddening_gaia, data_dir, release, "--maps", "bh") == 0
    found, attrs = read(data_dir, "reddening")
    assert attrs["release"] == "toy4"
    assert found.keys() == {"gdr4_source_id", "E_mean_bh", "coverage_bh"}
    np.testing.assert_array_equal(found["gdr4_source_id"], IDS)


# ---- releases are not mixed ------------------------------------------------------------------


@pytest.mark.parametrize("script", [query_xp_metadata, query_2mass])
def test_spectra_of_another_release_are_refused(tmp_path, release, capsys, script):
    write_spectra(tmp_path / "data", FID, IDS, release="dr3")
    with TapStub(toy_table(), schema=toy_schema(release, script)) as stub:
        assert ask(script, tmp_path / "data", release, stub) == 1
        assert stub.queries == []
    assert "of the release dr3, but toy4 is in use: give --release dr3" in capsys.readouterr().err


@pytest.mark.parametrize("script", [match_unwise_gaia, query_reddening_gaia])
def test_metadata_of_another_release_are_refused(tmp_path, data_dir, release, capsys, script):
    make_metadata(data_dir, release)
    write_tiles(tmp_path / "tiles", np.ones(1), np.ones(1))
    options = {
        match_unwise_gaia: ["--unwise-dir", tmp_path / "tiles"],
        query_reddening_gaia: ["--maps", "bh"],
    }
    assert run(script, data_dir, "dr3", *options[script]) == 1
    assert "of the release toy4, but dr3 is in use" in capsys.readouterr().err


def test_a_finished_output_of_another_release_is_not_taken_for_done(tmp_path, release, capsys):
    write_spectra(tmp_path, FID, IDS)  # foreign: they do not tell their release
    make_metadata(tmp_path, release)
    assert run(query_xp_metadata, tmp_path, "dr3", "--tap-url", "http://127.0.0.1:9/tap") == 1
    assert "xp_metadata_000000-000099.h5: of the release toy4" in capsys.readouterr().err


# ---- what the archive has --------------------------------------------------------------------


def stub_of(release, **changes):
    """An archive that lacks MISSING, and in whose tables other names are changed to None."""
    schema = toy_schema(release)
    for table, names in schema.items():
        schema[table] = [changes.get(name, name) for name in names if changes.get(name, name)]
    return TapStub(toy_table(), schema=schema)


@pytest.mark.parametrize(
    "name", ["pmra", "astrometric_params", "tentative_parallax_bias", "has_xp", "id_of_toy"]
)
def test_a_needed_column_that_is_absent_is_named_and_nothing_is_asked(
    data_dir, release, capsys, name
):
    with stub_of(release, **{name: None}) as stub:
        assert ask(query_xp_metadata, data_dir, release, stub) == 2
        assert stub.queries == []
    table = "external.toy_quality" if name == "id_of_toy" else "gaiatoy.source_list"
    err = capsys.readouterr().err
    assert f"{table} has no column {name}, which is needed" in err
    assert "[archive.names] of the file of the release toy4" in err
    assert len(err.strip().splitlines()) == 1
    assert not shard_path(data_dir, "metadata", FID).exists()


def test_the_columns_are_looked_up_once_a_run_and_what_is_absent_is_said_once(tmp_path, release):
    for fid in FIDS:
        write_spectra(tmp_path, fid, make_ids(fid))
    table = gaia_table(np.concatenate([make_ids(fid) for fid in FIDS]))
    table["parallax_zeropoint"] = np.ma.array(np.zeros(len(FIDS) * N_STARS, "f4"))
    with TapStub(table, schema=toy_schema(release)) as stub:
        assert ask(query_xp_metadata, tmp_path, release, stub, "--jobs", "3") == 0
        assert len(stub.queries) == len(FIDS)
        assert len(stub.schema_queries) == 1
        assert ask(query_xp_metadata, tmp_path, release, stub) == 0
        assert len(stub.schema_queries) == 1  # all is done: nothing is asked
    assert log_text(tmp_path).count("left out") == 1
    for fid in FIDS:
        assert read(tmp_path, "metadata", fid)[1]["absent_columns"] == MISSING


@pytest.mark.parametrize(
    "list_as",
    [str.upper, lambda name: name.split(".")[1], lambda name: f'"{name.split(".")[1].upper()}"'],
)
def test_tables_are_found_in_capitals_and_without_their_schema(data_dir, release, list_as):
    with stub_of(release) as stub:
        stub.list_as = list_as
        assert ask(query_xp_metadata, data_dir, release, stub) == 0
    assert read(data_dir, "metadata")[1]["absent_columns"] == MISSING


def test_a_table_of_the_same_name_in_another_schema_is_not_taken_for_it(data_dir, release):
    with stub_of(release) as stub:
        stub.schema["gaiaolder.source_list"] = ["source_id", MISSING]
        assert ask(query_xp_metadata, data_dir, release, stub) == 0
    assert read(data_dir, "metadata")[1]["absent_columns"] == MISSING


def test_where_the_service_does_not_tell_its_columns_all_are_asked_for(data_dir, release):
    with TapStub(toy_table()) as stub:
        assert ask(query_xp_metadata, data_dir, release, stub) == 0
    assert "gaiatoy.source_list: its columns are not listed" in log_text(data_dir)
    assert "absent_columns" not in read(data_dir, "metadata")[1]
    with TapStub(toy_table()) as stub:
        stub.faults = {"schema submit": [400]}
        assert ask(query_xp_metadata, data_dir, release, stub, "--overwrite") == 0
        assert stub.schema_queries == []
    assert "which columns the archive has is not known" in log_text(data_dir)
    assert read_all(shard_path(data_dir, "metadata", FID))[MISSING].shape == (N_STARS,)


@pytest.mark.parametrize("fault", [500, "reset", "html", "cut"])
def test_a_passing_fault_of_the_look_up_is_outlived(data_dir, release, fault):
    with stub_of(release) as stub:
        stub.faults = {"schema result": [fault], "schema submit": [503]}
        assert ask(query_xp_metadata, data_dir, release, stub) == 0
        assert not stub.jobs
    assert read(data_dir, "metadata")[1]["absent_columns"] == MISSING


def test_a_step_without_its_table_is_a_usage_error(tmp_path, data_dir, capsys):
    changes = CHANGES | {'"gaiadr1.tmass_original_valid"': '""'}
    release = write_release(tmp_path, changes)
    assert run(query_2mass, data_dir, release, "--dry-run") == 2
    assert "the release toy4 has no table tmass" in capsys.readouterr().err


@pytest.mark.tap
def test_a_real_server_tells_which_columns_it_has(tmp_path, archive):
    names = '[archive.names]\nruwe = "ruwe_of_another_release"  '
    release = write_release(tmp_path, {"[archive.names] ": names})
    fid = list_fids(archive.data_dir, "xp")[0]
    target = shard_path(tmp_path, "xp", fid)
    target.parent.mkdir()
    target.symlink_to(shard_path(archive.data_dir, "xp", fid))
    options = ["--tap-url", archive.url, *SLOWER]
    assert run(query_xp_metadata, tmp_path, release, *options) == 0
    found, attrs = read(tmp_path, "metadata", fid)
    assert attrs["absent_columns"] == "ruwe"
    assert "ruwe" not in found
    changes = {"[archive.names] ": names.replace("ruwe =", "pmra =")}
    needed = write_release(tmp_path, changes, "needed.toml")
    assert run(query_xp_metadata, tmp_path, needed, *options, "--overwrite") == 2


# ---- solved parameters -----------------------------------------------------------------------


def test_the_bits_of_dr3_are_those_of_its_three_kinds_of_solution():
    solved, rule = np.array([3, 31, 95], "i2"), load_release().parallax
    has_bit = query_xp_metadata.has_bit
    assert has_bit(solved, rule.parallax_bit).tolist() == [False, True, True]
    assert has_bit(solved, rule.pseudocolour_bit).tolist() == [False, False, True]
