"""What a file was made from, and whether it still is what would be made now."""

import json
import os
import shutil
import subprocess

import h5py
import numpy as np
import pytest
from helpers import changed, flip_bit
from shard_case import IDS, write_shard

from pipeline import provenance, schema, select
from pipeline.errors import ShardError
from pipeline.provenance import Status, output_state
from pipeline.read import ShardReader
from pipeline.write import ShardWriter


def test_states_absent_complete_stale_by_content_and_by_set_of_inputs(tmp_path):
    source, other = tmp_path / "in.h5", tmp_path / "other.h5"
    write_shard(source), write_shard(other)
    output = tmp_path / "out.h5"
    assert output_state(output, [source]).status is Status.ABSENT
    write_shard(output, inputs=[source])
    assert output_state(output, [source]).status is Status.COMPLETE
    stale = output_state(output, [source, other])
    assert stale.status is Status.STALE
    assert "other.h5" in stale.reason
    write_shard(source, value=2.0)
    stale = output_state(output, [source])
    assert stale.status is Status.STALE
    assert "in.h5" in stale.reason


def test_input_remade_with_the_same_content_leaves_the_output_complete(tmp_path):
    source, output = tmp_path / "in.h5", tmp_path / "out.h5"
    write_shard(source, script="first")
    write_shard(output, inputs=[source])
    write_shard(source, script="second")
    assert output_state(output, [source]).status is Status.COMPLETE


def test_foreign_input_changed_in_place_makes_the_output_stale(tmp_path):
    source, output = tmp_path / "foreign.h5", tmp_path / "out.h5"
    with h5py.File(source, "w") as file:
        file["source_id"] = IDS
    write_shard(output, inputs=[source])
    assert output_state(output, [source]).status is Status.COMPLETE
    with h5py.File(source, "r+") as file:
        file["source_id"][0] = 7
    os.utime(source, ns=(1, 1))
    assert output_state(output, [source]).status is Status.STALE


def test_copies_with_another_mtime_are_not_stale(tmp_path):
    write_shard(tmp_path / "in.h5")
    write_shard(tmp_path / "out.h5", inputs=[tmp_path / "in.h5"])
    copies = tmp_path / "copies"
    copies.mkdir()
    for name in ("in.h5", "out.h5"):
        shutil.copyfile(tmp_path / name, copies / name)
        os.utime(copies / name, (10, 10))
    assert output_state(copies / "out.h5", [copies / "in.h5"]).status is Status.COMPLETE


def test_missing_input_is_an_error_that_names_it(tmp_path):
    write_shard(tmp_path / "out.h5")
    with pytest.raises(ShardError, match=r"gone\.h5"):
        output_state(tmp_path / "out.h5", [tmp_path / "gone.h5"])


def test_output_made_by_hand_without_marker_is_partial(tmp_path):
    with h5py.File(tmp_path / "out.h5", "w") as file:
        file["source_id"] = IDS
    assert output_state(tmp_path / "out.h5").status is Status.PARTIAL


@pytest.mark.parametrize("keep", [0, 10, 700, 0.5, 0.99])
def test_truncated_file_is_partial_and_reads_as_one_clear_error(tmp_path, keep):
    path = write_shard(tmp_path / "out.h5")
    size = path.stat().st_size
    os.truncate(path, int(keep * size) if isinstance(keep, float) else keep)
    assert output_state(path).status is Status.PARTIAL
    with pytest.raises(ShardError, match=r"out\.h5"):
        ShardReader(path)


def test_lost_rows_or_exchanged_ids_are_partial(tmp_path):
    path = write_shard(tmp_path / "out.h5")
    with changed(path) as file:
        file.attrs["n_rows"] = 4
    assert "rows" in output_state(path).reason
    write_shard(path)
    with changed(path) as file:
        file["source_id"][:2] = file["source_id"][:2][::-1]
    state = output_state(path)
    assert state.status is Status.PARTIAL
    assert "hash" in state.reason


@pytest.mark.parametrize("name", ["flux", "source_id", "name", "noise"])
def test_flipped_bit_raises_naming_file_and_dataset(tmp_path, name):
    path = write_shard(tmp_path / "out.h5", ids=np.arange(2000))
    with h5py.File(path) as file:  # noise does not compress, so no checksum of gzip's protects it
        assert file[name].fletcher32
    flip_bit(path, name)
    with ShardReader(path) as reader, pytest.raises(ShardError, match=rf"out\.h5.*{name}"):
        reader.read(name)


def test_identity_does_not_depend_on_how_the_rows_were_written(tmp_path):
    rng = np.random.default_rng(0)
    flux = rng.normal(size=(9000, 3)).astype("f4")
    pieces = {
        "whole": [(0, 9000)],
        "two": [(0, 4000), (4000, 9000)],
        "backwards": [(5000, 9000), (0, 5000)],
    }
    found = {}
    for name, bounds in pieces.items():
        with ShardWriter(tmp_path / name, 9000, "source_id", {}) as writer:
            writer.write("source_id", 0, np.arange(9000))
            for start, stop in bounds:
                writer.write("flux", start, flux[start:stop])
        found[name] = provenance.identity(tmp_path / name)
    assert len(set(found.values())) == 1
    assert found["whole"].startswith("content")


def test_provenance_and_units_are_in_the_file(tmp_path):
    source = write_shard(tmp_path / "in.h5")
    path = write_shard(tmp_path / "out.h5", inputs=[source])
    with ShardReader(path) as reader:
        attrs, flux = reader.attrs, reader.attributes("flux")
    inputs = json.loads(attrs["inputs"])
    assert attrs["script"] == "test"
    assert attrs["command_line"] == "test --x 1"
    assert attrs["version"]
    assert attrs["time"].endswith("+00:00")
    assert json.loads(attrs["packages"])["numpy"] == np.__version__
    assert inputs == [
        {"name": "in.h5", "size": source.stat().st_size, "identity": provenance.identity(source)}
    ]
    assert flux == {"units": "mag", "description": "a flux"}
    assert attrs["n_rows"] == 5


def test_an_output_of_thousands_of_inputs_still_notices_one_that_changed(tmp_path):
    inputs = [tmp_path / "many" / f"{i:04d}.txt" for i in range(3000)]
    inputs[0].parent.mkdir()
    for path in inputs:
        path.write_text("x")
    write_shard(tmp_path / "out.h5", inputs=inputs)
    assert output_state(tmp_path / "out.h5", inputs).status is Status.COMPLETE
    inputs[1234].write_text("xy")
    state = output_state(tmp_path / "out.h5", inputs)
    assert state.status is Status.STALE
    assert "many" in state.reason


def test_an_output_of_another_format_is_stale(tmp_path):
    assert schema.KINDS["opt_input"].format > 1
    path = write_shard(select.shard_path(tmp_path, "opt_input", "000000-000099"))
    state = output_state(path)  # its folder says what it is; without a format it is of the first
    assert state.status is Status.STALE
    assert "another version of the script" in state.reason
    assert output_state(path, kind="tmass").status is Status.COMPLETE
    assert output_state(write_shard(tmp_path / "elsewhere.h5")).status is Status.COMPLETE


def test_the_release_is_recorded(tmp_path):
    assert provenance.provenance("test", [], [], schema.load_release())["release"] == "dr3"
    assert "release" not in provenance.provenance("test", [], [])


def test_damaged_texts_of_attributes_are_told_before_hdf5_is_asked_for_them(tmp_path):
    """HDF5 reads this one for ever: a heap of texts whose objects have no size."""
    path = write_shard(tmp_path / "out.h5")
    content = bytearray(path.read_bytes())
    place = content.index(b"GCOL") + 16
    content[place : place + 400] = bytes(400)
    path.write_bytes(bytes(content))
    state = output_state(path)
    assert state.status is Status.PARTIAL
    assert "not as it was written" in state.reason
    assert provenance.identity(path).startswith("size")
    with pytest.raises(ShardError, match=r"out\.h5: not as it was written"):
        ShardReader(path)


def test_every_bit_outside_of_the_data_is_watched(tmp_path):
    path = write_shard(tmp_path / "out.h5")
    content, rng = path.read_bytes(), np.random.default_rng(3)
    with ShardReader(path) as reader:
        whole = {name: reader.read(name) for name in reader.columns} | reader.attrs
    for bit in rng.integers(0, 8 * len(content), 400).tolist():
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(damaged))
        try:
            with ShardReader(path) as reader:
                found = {name: reader.read(name) for name in reader.columns} | reader.attrs
        except ShardError as error:
            if "out.h5" not in str(error):
                raise
            continue
        assert found.keys() == whole.keys()
        for name, value in whole.items():
            np.testing.assert_array_equal(found[name], value)


def test_a_deep_check_finds_other_content_under_good_checksums(tmp_path):
    path = write_shard(tmp_path / "out.h5")
    former = path.read_bytes()
    with h5py.File(path, "r+") as file:  # in its place, with its checksum
        file["flux"][2, 3] = 7.0
    with path.open("ab") as file:
        file.write(former[path.stat().st_size :])  # the trailer, which HDF5 cut off
    assert output_state(path).status is Status.COMPLETE  # ids, attributes and checksums are good
    state = output_state(path, deep=True)
    assert state.status is Status.PARTIAL
    assert "dataset flux does not hold what was written" in state.reason


def test_asking_git_for_the_version_takes_no_lock(tmp_path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@localhost"]
    file = tmp_path / "pipeline" / "code.py"
    file.parent.mkdir()
    file.write_text("1")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"], ["tag", "v1"]):
        subprocess.run([*git, *words], check=True)
    os.utime(file, (1, 1))  # the index does not know this time: git would write it anew
    index = tmp_path / ".git" / "index"
    before = index.stat()
    monkeypatch.setattr(provenance, "__file__", str(file))
    assert provenance.project_version.__wrapped__() == "v1"
    assert (index.stat().st_ino, index.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    subprocess.run([*git, "describe", "--dirty", "--tags"], check=True, capture_output=True)
    assert index.stat().st_ino != before.st_ino  # so the test above can tell
    file.write_text("2")
    assert provenance.project_version.__wrapped__() == "v1-dirty"
