"""Datasets of another kind than declared are refused in one line, by file and name."""

import h5py
import numpy as np
import pytest
from helpers import DR3, changed, lay_out, make_sky

import query_reddening_gaia
from compile_training_data import inputs
from pipeline.errors import ShardError
from pipeline.joining import aligned_chunks
from pipeline.provenance import provenance
from pipeline.read import ShardReader, open_shard
from pipeline.schema import KINDS, Layout, resolved
from pipeline.select import list_fids, shard_path
from pipeline.write import ShardWriter


def put(dtype=None, **options):
    """Replace a dataset by one of its shape and a dtype; or by what the options say."""

    def make(file, name, former):
        file.create_dataset(name, **({"shape": former.shape, "dtype": dtype} | options))

    return make


WRONG = {
    "booleans": put(bool),
    "words": put("S4"),
    "texts": put(h5py.string_dtype()),
    "complex numbers": put("c8"),
    "references": put(h5py.ref_dtype),
    "records": put([("a", "f4")]),
    "arrays in it": put(("f4", (3,))),
    "opaque": put(h5py.opaque_dtype("datetime64[s]")),
    "an enumeration": put(h5py.enum_dtype({"A": 0, "B": 1})),
    "lists of any length": put(h5py.vlen_dtype("f4")),
    "one number": put(shape=(), dtype="f8"),
    "nothing": put(shape=None, dtype="f8"),
    "a group": lambda file, name, former: file.create_group(name),
    "a type": lambda file, name, former: file.__setitem__(name, np.dtype("f8")),
    "a row too few": lambda file, name, former: file.create_dataset(name, data=former[:-1]),
    "an axis too many": lambda file, name, former: file.create_dataset(
        name, data=former[..., None]
    ),
    "a link to nothing": lambda file, name, former: file.__setitem__(name, h5py.SoftLink("/x")),
    "a link to another file": lambda file, name, former: file.__setitem__(
        name, h5py.ExternalLink("other.h5", "/x")
    ),
    "data in another file": lambda file, name, former: file.create_dataset(
        name, shape=former.shape, dtype="f8", external=[("other.raw", 0, h5py.h5f.UNLIMITED)]
    ),
    "a view of another file": lambda file, name, former: file.create_virtual_dataset(
        name, h5py.VirtualLayout(former.shape, "f8")
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return lay_out(tmp_path_factory.mktemp("sky"), make_sky(fids=["000000-000999"]))


@pytest.fixture
def sky(tmp_path, whole):
    import shutil

    return shutil.copytree(whole, tmp_path / "data")


NEEDS = inputs(DR3)


def read_as_step_7(data_dir, fid):
    for _ in aligned_chunks(data_dir, fid, NEEDS, DR3):
        pass


def named(data_dir, kind, fid):
    """Datasets of a shard that step 7 reads, and its id."""
    with ShardReader(shard_path(data_dir, kind, fid)) as reader:
        wanted = {*NEEDS[kind].required, *NEEDS[kind].optional, KINDS[kind].id_column(DR3)}
        return sorted(wanted & set(reader.columns))


@pytest.mark.parametrize("kind", NEEDS)
@pytest.mark.parametrize("wrong", WRONG)
def test_every_dataset_of_every_shard_that_is_wrong_is_named(sky, kind, wrong):
    (fid,) = list_fids(sky, kind)
    path = shard_path(sky, kind, fid)
    content, names = path.read_bytes(), named(sky, kind, fid)
    assert len(names) > 2
    for name in names:
        path.write_bytes(content)
        with changed(path) as file:
            former = file[name][()]
            if former.dtype.kind == "S" and wrong in ("words", "texts"):
                continue
            del file[name]
            WRONG[wrong](file, name, former)
        with pytest.raises(ShardError) as found:
            read_as_step_7(sky, fid)
        assert path.name in str(found.value)
        assert name in str(found.value)
        assert "\n" not in str(found.value)


@pytest.mark.parametrize("dtype", ["u8", "i4", "f8"])
@pytest.mark.parametrize("kind", NEEDS)
def test_ids_of_another_type_than_int64_are_refused(sky, kind, dtype):
    (fid,) = list_fids(sky, kind)
    path, name = shard_path(sky, kind, fid), KINDS[kind].id_column(DR3)
    with changed(path) as file:
        ids = file[name][()]
        del file[name]
        file[name] = (ids >> 32 if dtype == "i4" else ids).astype(dtype)
    with pytest.raises(ShardError, match=rf"{path.name}: {name} is "):
        read_as_step_7(sky, fid)


def test_a_shard_of_ours_is_checked_in_what_the_step_does_not_read_too(tmp_path):
    datasets, fid = resolved("metadata", Layout(DR3)), "000000-000999"
    path = shard_path(tmp_path, "metadata", fid)
    with ShardWriter(path, 4, "source_id", provenance("test", [], [], DR3)) as writer:
        writer.create_columns(datasets)
        writer.write_table({n: np.ones((4, *d.shape)).astype(d.dtype) for n, d in datasets.items()
                            if n != "source_id"} | {"source_id": np.arange(4)})  # fmt: skip
    open_shard(tmp_path, "metadata", fid, DR3).close()
    with changed(path) as file:
        del file["parallax"]
        file["parallax"] = np.ones(4, bool)
    with pytest.raises(ShardError, match="parallax is bool"):
        open_shard(tmp_path, "metadata", fid, DR3)


@pytest.mark.parametrize(
    ("unit", "accepted"),
    [("mas", True), ("milliarcsecond", True), ("'mas'", True), ("arcsec", False), ("kpc", False)],
)
def test_a_parallax_that_others_give_in_another_unit_is_refused(sky, unit, accepted):
    (fid,) = list_fids(sky, "metadata")
    with changed(shard_path(sky, "metadata", fid)) as file:
        file["parallax"].attrs["units"] = unit
    if accepted:
        query_reddening_gaia.read_stars(sky, fid, DR3)
    else:
        with pytest.raises(ShardError, match=f"parallax is in {unit}, expected mas"):
            query_reddening_gaia.read_stars(sky, fid, DR3)


def test_a_link_within_the_file_is_good(sky):
    (fid,) = list_fids(sky, "metadata")
    with changed(shard_path(sky, "metadata", fid)) as file:
        file.move("ra", "elsewhere")
        file["ra"] = h5py.SoftLink("/elsewhere")
    read_as_step_7(sky, fid)
