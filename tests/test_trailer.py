"""All that HDF5 takes on trust is looked at before HDF5 sees it; who changed a file can say so."""

import os

import h5py
import numpy as np
import pytest
from shard_case import write_shard

from pipeline import index, trailer
from pipeline.errors import ShardError
from pipeline.provenance import Status, identity, output_state
from pipeline.read import ShardReader, check_whole, read_arrays
from pipeline.write import ShardWriter, write_arrays
from tools import accept_changes

REFUSED = "not as it was written .*accept_changes.py"


def write_grown(path):
    rng = np.random.default_rng(1)
    with ShardWriter(path, None, "source_id", {"note": "x" * 3000}) as writer:
        for start in range(0, 20_000, 7000):
            n = min(7000, 20_000 - start)
            writer.write("source_id", start, np.arange(start, start + n))
            writer.write("flux", start, rng.normal(size=(n, 3)).astype("f4"))


def write_some_arrays(path):
    kernels = np.random.default_rng(1).normal(size=(5, 9, 30))
    arrays = {f"layer{k}/kernel": kernel for k, kernel in enumerate(kernels)}
    write_arrays(path, arrays | {"scale": 3.5, "none": np.zeros((0, 3))}, {"script": "x"}, n=7)


@pytest.fixture(params=[write_shard, write_some_arrays, write_grown])
def written(request, tmp_path):
    """A file of each form that is written."""
    request.param(tmp_path / "out.h5")
    return tmp_path / "out.h5"


def look(path):
    with open(path, "rb", buffering=0) as file:
        return trailer.has_trailer(file, path)


def outside_of_chunks(path) -> np.ndarray:
    """Places of the bytes of a file that are not in a chunk of values, as HDF5 tells them."""
    inside = np.zeros(path.stat().st_size, bool)
    with h5py.File(path) as file:

        def mark(name, item):
            for k in range(item.id.get_num_chunks() if getattr(item, "chunks", None) else 0):
                chunk = item.id.get_chunk_info(k)
                inside[chunk.byte_offset : chunk.byte_offset + chunk.size] = True

        file.visititems(mark)
    return np.flatnonzero(~inside)


def test_a_bit_that_flips_anywhere_outside_of_the_chunks_is_noticed_before_hdf5_opens(written):
    content, rng = written.read_bytes(), np.random.default_rng(0)
    outside = outside_of_chunks(written)
    n_mark = len(trailer.MARK)
    places = [*rng.choice(outside[:-n_mark], 2000), *outside[:64], *outside[-150:-n_mark]]
    number = os.open(written, os.O_RDWR)
    for place in places:
        os.pwrite(number, bytes([content[place] ^ 1 << int(rng.integers(8))]), place)
        with pytest.raises(ShardError, match=REFUSED):
            look(written)
        os.pwrite(number, content[place : place + 1], place)
    for place in range(len(content) - n_mark, len(content)):  # then the file goes on behind its end
        os.pwrite(number, bytes([content[place] ^ 1]), place)
        with pytest.raises(ShardError, match=REFUSED):
            look(written)
        os.pwrite(number, content[place : place + 1], place)
    os.close(number)
    assert look(written)


def test_a_file_cut_or_emptied_anywhere_is_refused(written):
    content = written.read_bytes()
    for size in np.linspace(0, len(content) - 1, 50).astype(int):
        written.write_bytes(content[:size])
        with pytest.raises(ShardError):
            ShardReader(written)
        written.write_bytes(content[:size] + bytes(len(content) - size))
        with pytest.raises(ShardError):
            ShardReader(written)


def test_the_end_of_a_file_of_another_does_not_pass_for_ones_own(tmp_path):
    write_shard(tmp_path / "a.h5")
    write_shard(tmp_path / "b.h5", value=2.0)
    content = (tmp_path / "a.h5").read_bytes()
    part = len(content) // 2
    (tmp_path / "a.h5").write_bytes(content[:part] + (tmp_path / "b.h5").read_bytes()[part:])
    with pytest.raises(ShardError):
        check_whole(tmp_path / "a.h5", deep=True)


def test_other_programs_read_what_has_a_trailer(tmp_path):
    path = write_shard(tmp_path / "out.h5")
    with h5py.File(path) as file:
        found = {name: file[name][()] for name in file}
    with ShardReader(path) as reader:
        assert sorted(found) == sorted(reader.columns)
        for name, values in found.items():
            np.testing.assert_array_equal(reader.read(name), values)


# ---- changed by another program --------------------------------------------------------------


def change_value(file):
    file["flux"][2, 1] = 9.0


def add_attribute(file):
    file["flux"].attrs["note"] = "mine"


def add_column(file):
    file["mine"] = np.arange(5.0)


def do_nothing(file):
    """Opened for writing is enough."""


CHANGES = [change_value, add_attribute, add_column, do_nothing]


def changed_shard(tmp_path, change):
    path = write_shard(tmp_path / "out.h5")
    with h5py.File(path, "a") as file:
        change(file)
    return path


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_another_program_changed_is_refused_with_the_remedy(tmp_path, change):
    path = changed_shard(tmp_path, change)
    with pytest.raises(ShardError, match=REFUSED):
        ShardReader(path)
    assert output_state(path).status is Status.PARTIAL
    assert "accept_changes.py" in index.read_attributes(path)["fault"]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_was_meant_is_accepted_and_is_another_content(tmp_path, change):
    former = identity(write_shard(tmp_path / "former.h5"))
    path = changed_shard(tmp_path, change)
    assert accept_changes.main([str(path)]) == 0
    assert check_whole(path, deep=True)["n_rows"] == 5
    assert (identity(path) == former) == (change is do_nothing)
    with ShardReader(path) as reader, ShardReader(tmp_path / "former.h5") as old:
        assert reader.attrs["script"] == "test"
        assert reader.attributes("flux")["units"] == "mag"
        assert ("note" in reader.attributes("flux")) == (change is add_attribute)
        assert (reader.read("flux")[2, 1] == 9.0) == (change is change_value)
        assert ("mine" in reader.columns) == (change is add_column)
        np.testing.assert_array_equal(reader.read("noise"), old.read("noise"))


def test_changed_arrays_are_accepted_in_their_groups(tmp_path):
    path = tmp_path / "model.h5"
    write_some_arrays(path)
    with h5py.File(path, "a") as file:
        file["scale"][()] = 4.5
    assert accept_changes.main([str(path)]) == 0
    with ShardReader(path) as reader:
        reader.verify()
        assert reader.read("scale") == 4.5
        assert reader.attrs["n"] == 7
        assert reader.read("layer4/kernel").shape == (9, 30)


def test_what_cannot_be_accepted_is_refused_and_stays(tmp_path, capsys):
    def link(file):
        file["other"] = h5py.ExternalLink("elsewhere.h5", "/x")

    def shorten(file):
        del file["noise"]
        file["noise"] = np.zeros(3)

    def unfinished(file):
        file.attrs["complete"] = False

    for number, change in enumerate([link, shorten, unfinished]):
        (tmp_path / str(number)).mkdir()
        path = changed_shard(tmp_path / str(number), change)
        content = path.read_bytes()
        assert accept_changes.main([str(path)]) == 2
        assert path.read_bytes() == content
    shown = capsys.readouterr().err
    assert "a link to another file" in shown
    assert "noise is (3,)" in shown
    assert "incomplete" in shown


def test_a_file_that_is_as_it_was_written_is_left_as_it_is(tmp_path, capsys):
    path = write_shard(tmp_path / "out.h5")
    inode = path.stat().st_ino
    assert accept_changes.main([str(path)]) == 0
    assert path.stat().st_ino == inode
    assert "as it was written" in capsys.readouterr().out


def test_files_of_former_versions_without_a_trailer_are_read(tmp_path):
    path = tmp_path / "old.h5"
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        file.create_dataset("x", data=np.arange(50), chunks=(10,), fletcher32=True)
        file.attrs["complete"] = True
        file.attrs["seal"] = "0123"
    arrays, attrs = read_arrays(path)
    np.testing.assert_array_equal(arrays["x"], np.arange(50))
    assert attrs["seal"] == "0123"


def test_texts_on_which_hdf5_would_hang_are_refused_in_files_of_others_too(tmp_path):
    path = tmp_path / "foreign.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(9)
        for k in range(300):
            file["x"].attrs[f"note{k}"] = "words " * (k % 40)
    assert not look(path)
    content = path.read_bytes()
    place = content.index(b"GCOL") + 16
    path.write_bytes(content[:place] + bytes(400) + content[place + 400 :])
    with pytest.raises(ShardError, match=r"foreign\.h5: damaged \(texts of its attributes\)"):
        ShardReader(path)
