"""Facts that the shards' modules protect: files whole or absent, rows kept together, honest exits."""

import argparse
import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import assert_same_datasets, flip_bit
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import provenance, read, run, schema, select
from pipeline.errors import ShardError, UsageError
from pipeline.provenance import Status, output_state
from pipeline.read import ShardReader
from pipeline.write import ShardWriter

ROOT = Path(__file__).resolve().parent.parent
IDS = np.array([30, 10, 20, 50, 40], np.int64) << 43


def write_shard(path, ids=IDS, inputs=(), value=1.0, script="test"):
    rng = np.random.default_rng(1)
    with ShardWriter(
        path, len(ids), "source_id", provenance.provenance(script, ["--x", "1"], inputs)
    ) as writer:
        writer.write("source_id", 0, ids)
        writer.create("flux", (7,), units="mag", description="a flux")
        writer.write("flux", 0, value * rng.normal(size=(len(ids), 7)))
        writer.write("name", 0, [f"n{i}" for i in range(len(ids))])
        writer.write("noise", 0, rng.integers(0, 256, (len(ids), 9), "u1"))
    return path


def arguments(data_dir, *more):
    parser = argparse.ArgumentParser()
    select.add_shard_arguments(parser)
    return parser.parse_args(["--data-dir", str(data_dir), *map(str, more)])


def touch_shards(data_dir, fids, kind="xp"):
    for fid in fids:
        path = select.shard_path(data_dir, kind, fid)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def fid_list(n):
    return [f"{100 * i:06d}-{100 * i + 99:06d}" for i in range(n)]


# ---- states ----------------------------------------------------------------------------------


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
    with h5py.File(path, "r+") as file:
        file.attrs["n_rows"] = 4
    assert "rows" in output_state(path).reason
    write_shard(path)
    with h5py.File(path, "r+") as file:
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


# ---- writer ----------------------------------------------------------------------------------


FULL_DISK = """
import resource, sys, numpy as np
from pipeline import errors, write
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with write.ShardWriter(sys.argv[1], 50_000, "source_id", {}) as writer:
        writer.write("source_id", 0, np.random.default_rng(0).integers(0, 2**62, 50_000))
except errors.ShardError as error:
    print(error, flush=True)
"""


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path):
    run = run_code(FULL_DISK, tmp_path / "out.h5")
    message, _ = run.communicate()  # HDF5 itself may crash later, when the process ends
    assert b"out.h5: cannot be written" in message
    assert os.listdir(tmp_path) == []


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ShardError, match=r"out\.h5: cannot be written"):
        write_shard(tmp_path / "file" / "out.h5")


def write_and_fail(path):
    with ShardWriter(path, 3, "source_id", {}) as writer:
        writer.write("source_id", 0, np.arange(3))
        raise ZeroDivisionError


def write_columns(path, n_rows, columns, created=()):
    """columns: (name, start, array) to write; created: arguments of ShardWriter.create."""
    with ShardWriter(path, n_rows, "source_id", {}) as writer:
        for column in created:
            writer.create(*column)
        for column in columns:
            writer.write(*column)


def test_exception_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write_shard(tmp_path / "out.h5")
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError):
        write_and_fail(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["out.h5"]


def test_rows_left_unwritten_are_refused(tmp_path):
    columns = [("source_id", 0, np.arange(3)), ("flux", 0, np.zeros(2))]
    with pytest.raises(ShardError, match="1 of 3 rows of flux"):
        write_columns(tmp_path / "a.h5", 3, columns)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "start", "array"),
    [
        ("flux", 0, np.zeros((3, 6))),
        ("flux", 1, np.zeros((3, 7))),
        ("flux", -1, np.zeros((1, 7))),
        ("count", 0, np.full(3, 0.5)),
        ("text", 0, np.array([b"long", b"", b""])),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, name, start, array):
    created = [("flux", (7,)), ("count", (), "i4"), ("text", (), "S2")]
    with pytest.raises(ShardError, match=name):
        write_columns(tmp_path / "a.h5", 3, [(name, start, array)], created)
    assert os.listdir(tmp_path) == []


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


def test_free_arrays_of_any_shape_come_back_as_written(tmp_path):
    record = np.zeros(4, [("a", "i8"), ("b", "f4", (3,))])
    arrays = {
        "weights/0": np.eye(3), "scalar": 3.5, "text": "größe", "empty": np.zeros((0, 4)),
        "names": ["a", "bcd"], "record": record,
    }  # fmt: skip
    path = tmp_path / "model.h5"
    with ShardWriter(path, None, None, {}) as writer:
        for name, array in arrays.items():
            writer.write_array(name, array, note="x")
    assert output_state(path).status is Status.COMPLETE
    with ShardReader(path) as reader:
        back = {name: reader.read(name) for name in arrays}
        assert reader.attributes("weights/0") == {"note": "x"}
    assert bytes(back.pop("text")).decode() == arrays.pop("text")
    assert list(back.pop("names")) == [name.encode() for name in arrays.pop("names")]
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)


def test_shard_without_any_star_is_written_and_read(tmp_path):
    path = write_shard(tmp_path / "out.h5", ids=np.zeros(0, np.int64))
    assert output_state(path).status is Status.COMPLETE
    with ShardReader(path) as reader:
        assert reader.n_rows == 0
        assert reader.read("flux").shape == (0, 7)
        assert len(reader.source_id()) == 0


SLOW_WRITER = """
import sys, time, numpy as np
from pipeline import write
with write.ShardWriter(sys.argv[1], 4000, "source_id", {}) as writer:
    writer.write("source_id", 0, np.arange(4000))
    for start in range(0, 4000, 1000):
        writer.write("flux", start, np.random.default_rng(start).normal(size=(1000, 50)))
        if len(sys.argv) > 2:
            print("writing", flush=True)
            time.sleep(60)
"""


def run_code(code, *args, **kwargs):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)], env=env, stdout=subprocess.PIPE, **kwargs
    )


def test_killed_writer_leaves_no_final_file_and_the_next_run_completes_it(tmp_path):
    path, reference = tmp_path / "killed" / "out.h5", tmp_path / "reference.h5"
    victim = run_code(SLOW_WRITER, path, "slow")
    assert victim.stdout.readline() == b"writing\n"
    assert len(os.listdir(path.parent)) == 1
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    (left,) = os.listdir(path.parent)
    assert left.startswith(".out.h5.")
    assert output_state(path).status is Status.ABSENT
    for target in (path, reference):
        run = run_code(SLOW_WRITER, target)
        run.communicate()
        assert run.returncode == 0
    assert os.listdir(path.parent) == ["out.h5"]
    assert_same_datasets(path, reference)


def test_the_final_file_is_the_temporary_one_renamed(tmp_path):
    with ShardWriter(tmp_path / "out.h5", 5, "source_id", {}) as writer:
        writer.write("source_id", 0, IDS)
        (temporary,) = tmp_path.iterdir()
        inode = temporary.stat().st_ino
    assert (tmp_path / "out.h5").stat().st_ino == inode


def test_temporary_file_of_a_live_writer_is_left_alone_until_a_day_old(tmp_path):
    with ShardWriter(tmp_path / "out.h5", 5, "source_id", {}) as writer:
        (alive,) = tmp_path.iterdir()
        write_shard(tmp_path / "out.h5")
        assert alive.exists()
        writer.write("source_id", 0, IDS)
    elsewhere = tmp_path / ".out.h5.othernode-99999999.0123abcd.part"
    elsewhere.touch()
    write_shard(tmp_path / "out.h5")
    assert elsewhere.exists()
    os.utime(elsewhere, (time.time() - 90000,) * 2)
    write_shard(tmp_path / "out.h5")
    assert os.listdir(tmp_path) == ["out.h5"]


def writing_calls(path):
    """(line, code) of the calls of a Python file that could write HDF5."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        keywords = {word.arg: word.value for word in node.keywords}
        mode = node.args[1] if len(node.args) > 1 else keywords.get("mode")
        reads = mode is None or (isinstance(mode, ast.Constant) and mode.value == "r")
        hdf5 = getattr(keywords.get("format"), "value", "") == "hdf5" and name == "write"
        h5_file = name == "File" and "h5py" in ast.unparse(node.func)
        if (h5_file and not reads) or hdf5 or name in ("to_hdf", "create_dataset"):
            yield node.lineno, ast.unparse(node)


def test_only_the_shard_writer_opens_hdf5_for_writing():
    files = [
        path for path in ROOT.rglob("*.py")
        if not {"tests", ".venv", "run"} & set(path.relative_to(ROOT).parts)
    ]  # fmt: skip
    found = {str(path.relative_to(ROOT)): list(writing_calls(path)) for path in files}
    own = found.pop("pipeline/write.py")
    assert len(own) == 2, own  # the File and the create_dataset of ShardWriter
    assert {name: calls for name, calls in found.items() if calls} == {}


# ---- reader ----------------------------------------------------------------------------------


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


# ---- joining ---------------------------------------------------------------------------------

ID_LISTS = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 12), max_size=30)


@settings(max_examples=200, deadline=None)
@given(ID_LISTS, ID_LISTS)
def test_join_rows_agrees_with_a_dictionary(wanted, other):
    other = list(dict.fromkeys(other))
    where = {value: row for row, value in enumerate(other)}
    found = read.join_rows(np.array(wanted, np.int64), np.array(other, np.int64))
    assert found.tolist() == [where.get(value, -1) for value in wanted]


def test_join_rows_refuses_repeated_ids():
    with pytest.raises(ShardError, match="repeated"):
        read.join_rows([1], [2, 2])


def test_take_rows_fills_what_is_absent_by_type():
    table = {"f": np.arange(4.0).reshape(2, 2), "s": np.array([b"a", b"b"]), "i": np.array([3, 4])}
    out = read.take_rows(table, np.array([1, -1]))
    np.testing.assert_array_equal(out["f"], [[2, 3], [np.nan, np.nan]])
    assert out["s"].tolist() == [b"b", b""]
    assert out["i"].tolist() == [4, 0]
    empty = read.take_rows({"f": np.zeros((0, 2))}, np.array([-1]))
    assert np.isnan(empty["f"]).all()


def small_sky(data_dir, n=50):
    rng = np.random.default_rng(3)
    ids = rng.permutation(n) + 1000
    fid = "000000-000099"
    tables = {
        "xp": (ids, {"bp_coefficients": np.repeat(ids[:, None], 55, axis=1).astype("f8")}),
        "metadata": (rng.permutation(ids), None),
        "tmass": (rng.permutation(ids)[: n // 2], None),
    }
    for kind, (kind_ids, table) in tables.items():
        path = select.shard_path(data_dir, kind, fid)
        with ShardWriter(path, len(kind_ids), schema.KINDS[kind].id_column, {}) as writer:
            writer.write(schema.KINDS[kind].id_column, 0, kind_ids)
            writer.write_table(table or {"value": kind_ids * 2.0})
    return fid, ids, tables


@pytest.mark.parametrize("chunk_size", [1, 7, 50, 2048])
def test_aligned_chunks_give_every_star_its_own_rows(tmp_path, chunk_size):
    fid, ids, tables = small_sky(tmp_path)
    columns = {
        "xp": (["bp_coefficients"], []),
        "metadata": (["value"], ["absent"]),
        "tmass": (["value"], []),
    }
    seen = []
    for rows, table in read.aligned_chunks(tmp_path, fid, columns, chunk_size=chunk_size):
        star = ids[rows]
        seen.append(star)
        assert len(rows) <= chunk_size
        np.testing.assert_array_equal(table["xp"]["source_id"], star)
        np.testing.assert_array_equal(table["xp"]["bp_coefficients"][:, 3], star)
        np.testing.assert_array_equal(table["metadata"]["value"], 2.0 * star)
        matched = np.isin(star, tables["tmass"][0])
        np.testing.assert_array_equal(table["tmass"]["matched"], matched)
        expected = np.where(matched, 2.0 * star, np.nan)
        np.testing.assert_array_equal(table["tmass"]["value"], expected)
        assert table["unwise"] is None
    np.testing.assert_array_equal(np.concatenate(seen), ids)


def test_aligned_chunks_of_wanted_rows_give_those_only(tmp_path):
    fid, ids, _ = small_sky(tmp_path)
    columns = {"xp": (["bp_coefficients"], []), "metadata": (["value"], [])}
    wanted = np.array([44, 3, 17, 6])
    found = list(read.aligned_chunks(tmp_path, fid, columns, wanted, chunk_size=10))
    np.testing.assert_array_equal(np.concatenate([rows for rows, _ in found]), np.sort(wanted))
    for rows, table in found:
        np.testing.assert_array_equal(table["xp"]["bp_coefficients"][:, 0], ids[rows])
        np.testing.assert_array_equal(table["metadata"]["value"], 2.0 * ids[rows])


@pytest.mark.parametrize("chunk_size", [5, 2048])
def test_sparse_rows_of_a_large_shard_are_their_own(tmp_path, chunk_size):
    fid, ids, _ = small_sky(tmp_path, 1500)
    wanted = np.random.default_rng(4).choice(1500, 150, replace=False)
    columns = {"xp": (["bp_coefficients"], ["absent"])}
    found = list(read.aligned_chunks(tmp_path, fid, columns, wanted, chunk_size))
    rows = np.concatenate([rows for rows, _ in found])
    np.testing.assert_array_equal(rows, np.sort(wanted))
    values = np.concatenate([table["xp"]["bp_coefficients"][:, 0] for _, table in found])
    np.testing.assert_array_equal(values, ids[rows])
    assert list(read.aligned_chunks(tmp_path, fid, columns, [])) == []


# ---- selecting -------------------------------------------------------------------------------


def test_every_shard_is_in_exactly_one_part_which_never_moves(tmp_path):
    fids = fid_list(60)
    touch_shards(tmp_path, fids)
    parts = [select.select_fids(arguments(tmp_path, "--partition", 4, k), "xp") for k in range(4)]
    assert sorted(fid for part in parts for fid in part) == fids
    assert all(parts)
    for fid in fids[::2]:
        select.shard_path(tmp_path, "xp", fid).unlink()
    for k, part in enumerate(parts):
        left = select.select_fids(arguments(tmp_path, "--partition", 4, k), "xp")
        assert set(left) == set(part) & set(fids[1::2])
    assert select.partition_of("000000-003111", 1000) == 128  # the same on every machine


@pytest.mark.parametrize("first", [0, 1])
def test_slurm_array_tasks_cover_the_shards_wherever_the_array_starts(tmp_path, monkeypatch, first):
    touch_shards(tmp_path, fid_list(20))
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", str(first))
    chosen = []
    for task in range(first, first + 3):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
        chosen += select.select_fids(arguments(tmp_path), "xp")
    assert sorted(chosen) == fid_list(20)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(first + 7))
    with pytest.raises(UsageError, match="part 7 of 3"):
        select.select_fids(arguments(tmp_path), "xp")
    assert select.select_fids(arguments(tmp_path, "--partition", 1, 0), "xp") == fid_list(20)


def test_only_exact_names_are_shards(tmp_path):
    touch_shards(tmp_path, ["000000-000099"])
    folder = tmp_path / "xp_continuous_mean_spectrum"
    for name in (
        ".XpContinuousMeanSpectrum_000100-000199.h5.node-1.ab.part",
        "XpContinuousMeanSpectrum_000100-000199.h5.bak",
        "XpContinuousMeanSpectrum_100-199.h5",
        "copy_XpContinuousMeanSpectrum_000100-000199.h5",
    ):
        (folder / name).touch()
    assert select.list_fids(tmp_path, "xp") == ["000000-000099"]
    assert select.list_fids(tmp_path, "tmass") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--partition", 2, 2], "part 2 of 2"),
        (["--partition", 0, 0], "part 0 of 0"),
        (["--shards", "000001-000002"], "000001-000002"),
    ],
)
def test_impossible_selections_are_usage_errors(tmp_path, options, message):
    touch_shards(tmp_path, fid_list(3))
    with pytest.raises(UsageError, match=message):
        select.select_fids(arguments(tmp_path, *options), "xp")


def test_missing_folders_are_usage_errors_that_name_the_way_out(tmp_path):
    with pytest.raises(UsageError, match="--data-dir"):
        select.select_fids(arguments(tmp_path), "xp")
    touch_shards(tmp_path, fid_list(1))
    with pytest.raises(UsageError, match="--without tmass"):
        select.used_kinds(tmp_path, ["xp", "tmass"])
    assert select.used_kinds(tmp_path, ["xp", "tmass"], ["tmass"]) == ["xp"]
    with pytest.raises(ShardError, match="xp_tmass_match_000000"):
        select.input_paths(tmp_path, fid_list(1)[0], ["xp", "tmass"])


# ---- running ---------------------------------------------------------------------------------


def run_all(data_dir, *options, broken=(), error=ShardError):
    """Run a toy step: metadata shard in, opt_input shard out."""
    args = arguments(data_dir, *options)
    made = []

    def process(fid, output, log):
        if fid in broken:
            raise error(f"bad {fid}")
        source = select.shard_path(data_dir, "metadata", fid)
        write_shard(output, inputs=[source])
        made.append(fid)
        return {"stars": 5}

    status = run.run_shards(
        "toy", args, select.select_fids(args, "metadata"),
        lambda fid: [select.shard_path(data_dir, "metadata", fid)],
        lambda fid: select.shard_path(data_dir, "opt_input", fid), process,
    )  # fmt: skip
    return status, made


def test_run_skips_what_is_complete_and_makes_again_what_is_not(tmp_path, capsys):
    fids = fid_list(5)
    for fid in fids:
        write_shard(select.shard_path(tmp_path, "metadata", fid))
    assert run_all(tmp_path) == (0, fids)
    assert run_all(tmp_path) == (0, [])
    os.truncate(select.shard_path(tmp_path, "opt_input", fids[1]), 500)
    select.shard_path(tmp_path, "opt_input", fids[2]).unlink()
    write_shard(select.shard_path(tmp_path, "metadata", fids[3]), value=3.0)
    capsys.readouterr()
    assert run_all(tmp_path) == (0, fids[1:4])
    shown = capsys.readouterr().err
    assert f"{fids[1]}: partial" in shown
    assert f"{fids[3]}: stale" in shown
    assert "3 done, 2 already complete, 0 failed" in shown
    assert "stars: 15" in shown
    assert run_all(tmp_path, "--overwrite", "--shards", fids[0]) == (0, fids[:1])


@pytest.mark.parametrize("error", [ShardError, ValueError, MemoryError])
def test_one_bad_shard_stops_no_other_and_is_named_without_a_traceback(tmp_path, capsys, error):
    fids = fid_list(4)
    for fid in fids:
        write_shard(select.shard_path(tmp_path, "metadata", fid))
    status, made = run_all(tmp_path, broken=fids[1:2], error=error)
    assert (status, made) == (1, [fids[0], *fids[2:]])
    shown = capsys.readouterr().err
    assert f"1 failed: {fids[1]} (" in shown
    assert "Traceback" not in shown
    assert "Traceback" in (tmp_path / "logs" / "toy.log").read_text()
    assert run_all(tmp_path) == (0, fids[1:2])


def test_257_failures_exit_1_not_257_nor_their_low_byte(tmp_path):
    fids = fid_list(257)
    for fid in fids:
        (tmp_path / "xp_metadata").mkdir(exist_ok=True)
        select.shard_path(tmp_path, "metadata", fid).touch()
    assert run_all(tmp_path, broken=fids) == (1, [])


def test_keyboard_interrupt_stops_with_130_and_keeps_what_is_done(tmp_path):
    fids = fid_list(3)
    for fid in fids:
        write_shard(select.shard_path(tmp_path, "metadata", fid))
    status, made = run_all(tmp_path, broken=fids[2:], error=KeyboardInterrupt)
    assert (status, made) == (130, fids[:2])


def run_threads(data_dir, process, on_interrupt=None):
    """A step of 12 shards, 3 at once; the exit status."""
    args = arguments(data_dir)
    return run.run_shards(
        "toy", args, fid_list(12), lambda fid: [],
        lambda fid: select.shard_path(data_dir, "opt_input", fid), process,
        jobs=3, on_interrupt=on_interrupt,
    )  # fmt: skip


def test_shards_in_threads_are_all_done_no_more_at_once_than_asked(tmp_path, capsys):
    active, most, lock = set(), [], threading.Lock()

    def process(fid, output, log):
        with lock:
            active.add(fid)
            most.append(len(active))
        time.sleep(0.02)
        with lock:
            active.remove(fid)
        if fid == fid_list(12)[4]:
            raise ShardError("bad one")
        write_shard(output)
        return {"stars": 5}

    assert run_threads(tmp_path, process) == 1
    assert 1 < max(most) <= 3
    shown = capsys.readouterr().err
    assert f"11 done, 0 already complete, 1 failed: {fid_list(12)[4]} (bad one)" in shown
    assert "stars: 55" in shown


def test_an_interrupt_ends_threads_that_wait_and_drops_the_rest(tmp_path):
    stop, begun = threading.Event(), []

    def process(fid, output, log):
        begun.append(fid)
        if len(begun) == 3:
            raise KeyboardInterrupt
        assert stop.wait(60)

    assert run_threads(tmp_path, process, stop.set) == 130
    assert len(begun) <= 6


def test_usage_errors_become_one_line_and_status_2(capsys):
    @run.usage_exit
    def main(argv=None):
        raise UsageError("no such folder")

    assert main([]) == 2
    assert capsys.readouterr().err == "error: no such folder\n"


def test_the_log_goes_where_asked_and_names_the_partition(tmp_path):
    run.setup_logging("toy", tmp_path / "own.log").info("hello")
    assert "hello" in (tmp_path / "own.log").read_text()
    args = arguments(tmp_path, "--partition", 3, 1)
    run.setup_logging("toy", None, args).info("part")
    assert "part" in (tmp_path / "logs" / "toy_part1-of-3.log").read_text()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="--log"):
        run.setup_logging("toy", tmp_path / "file" / "own.log")


PARTITIONED = """
import argparse, sys, numpy as np
from pipeline import run, select, write
parser = argparse.ArgumentParser()
select.add_shard_arguments(parser)
args = parser.parse_args()
def process(fid, output, log):
    flux = np.random.default_rng(int(fid[:6])).normal(size=(3000, 20))
    with write.ShardWriter(output, 3000, "gdr3_source_id", {"inputs": "[]"}) as writer:
        writer.write("gdr3_source_id", 0, np.arange(3000))
        writer.write("flux", 0, flux)
sys.exit(run.run_shards("toy", args, select.select_fids(args, "metadata"), lambda fid: [],
    lambda fid: select.shard_path(args.data_dir, "opt_output", fid), process))
"""


def test_two_partitions_side_by_side_equal_one_serial_run(tmp_path):
    fids = fid_list(12)
    for folder in ("serial", "parallel"):
        touch_shards(tmp_path / folder, fids, "metadata")
    runs = [
        run_code(PARTITIONED, "--data-dir", tmp_path / folder, *part, stderr=subprocess.PIPE)
        for folder, part in [
            ("serial", []),
            ("parallel", ["--partition", 2, 0]),
            ("parallel", ["--partition", 2, 1]),
        ]
    ]
    assert [run.communicate() and run.returncode for run in runs] == [0, 0, 0]
    for fid in fids:
        assert_same_datasets(
            *(select.shard_path(tmp_path / f, "opt_output", fid) for f in ("serial", "parallel"))
        )


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
