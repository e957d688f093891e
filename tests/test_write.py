"""Files are whole or absent, and there is one writer of them."""

import ast
import os
import signal
import time

import numpy as np
import pytest
from helpers import assert_same_datasets
from shard_case import IDS, ROOT, run_code, write_shard

from pipeline import schema
from pipeline.errors import ShardError
from pipeline.provenance import Status, output_state
from pipeline.read import ShardReader
from pipeline.whole_files import temporary_beside, write_text
from pipeline.write import ShardWriter


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


def test_a_small_file_is_written_whole_and_what_a_killed_run_left_of_it_goes(tmp_path):
    path = tmp_path / "notes.json"
    alive = temporary_beside(path)
    left = alive.with_name(alive.name.replace(f"-{os.getpid()}.", "-99999999."))
    left.write_text("{ha")
    alive.write_text("{hal")
    write_text(path, "whole")
    assert path.read_text() == "whole"
    assert sorted(tmp_path.iterdir()) == sorted([alive, path])


# ---- files that grow -------------------------------------------------------------------------


def write_in_parts(path, n_rows, sizes, short=0):
    """A table in parts; n_rows None: the file grows; short: rows of "noise" left out of a part."""
    n, rng = sum(sizes), np.random.default_rng(1)
    table = {
        "source_id": np.arange(n),
        "flux": rng.normal(size=(n, 700)).astype("f4"),
        "noise": rng.integers(0, 256, (n, 9), "u1"),
    }
    with ShardWriter(path, n_rows, "source_id", {}, {"note": "x"}) as writer:
        start = 0
        for size in sizes:
            part = {name: column[start : start + size] for name, column in table.items()}
            part["noise"] = part["noise"][: size - short]
            writer.write_table(part, start=start)
            start += size
        writer.describe(found="y")
    return table


@pytest.mark.parametrize("sizes", [(300, 1, 499), (7,), (0,)])
def test_a_file_that_grew_has_the_content_id_of_one_of_known_size(tmp_path, sizes):
    table = write_in_parts(tmp_path / "grown.h5", None, sizes)
    write_in_parts(tmp_path / "sized.h5", sum(sizes), sizes)
    with ShardReader(tmp_path / "grown.h5") as grown, ShardReader(tmp_path / "sized.h5") as sized:
        assert grown.attrs["content_id"] == sized.attrs["content_id"]
        assert (grown.attrs["n_rows"], grown.attrs["found"]) == (sum(sizes), "y")
        for name, column in table.items():
            np.testing.assert_array_equal(grown.read(name), column)
    assert output_state(tmp_path / "grown.h5").status is Status.COMPLETE


def test_a_flipped_bit_of_a_file_that_grew_raises_on_reading(tmp_path):
    table = write_in_parts(tmp_path / "a.h5", None, (100, 100))
    content, row = bytearray((tmp_path / "a.h5").read_bytes()), table["flux"][50].tobytes()
    content[content.index(row)] ^= 1
    (tmp_path / "a.h5").write_bytes(bytes(content))
    with ShardReader(tmp_path / "a.h5") as reader, pytest.raises(ShardError, match="checksum"):
        reader.read("flux")


def test_a_column_that_grew_less_than_the_others_is_refused(tmp_path):
    with pytest.raises(ShardError, match="2 of 12 rows of noise were not written"):
        write_in_parts(tmp_path / "a.h5", None, (6, 6), short=1)
    assert os.listdir(tmp_path) == []


# ---- the one writer --------------------------------------------------------------------------


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
        low_level = "h5f.create" in ast.unparse(node.func)
        if (h5_file and not reads) or low_level or hdf5 or name in ("to_hdf", "create_dataset"):
            yield node.lineno, ast.unparse(node)


def test_only_the_shard_writer_opens_hdf5_for_writing():
    files = [
        path for path in ROOT.rglob("*.py")
        if not {"tests", ".venv", "run"} & set(path.relative_to(ROOT).parts)
    ]  # fmt: skip
    found = {str(path.relative_to(ROOT)): list(writing_calls(path)) for path in files}
    own = found.pop("pipeline/write.py")
    assert len(own) == 2, own  # the h5f.create and the create_dataset of ShardWriter
    assert {name: calls for name, calls in found.items() if calls} == {}


# ---- what is declared ------------------------------------------------------------------------


def write_declared(path, columns, left_out=()):
    """Two rows of 2MASS matches: the columns given, ones for the others."""
    datasets = schema.resolved("tmass")
    with ShardWriter(path, 2, "gdr3_source_id", {"script": "test"}) as writer:
        writer.create_columns(datasets)
        for name in datasets.keys() - set(left_out):
            data = datasets[name]
            writer.write(name, 0, columns.get(name, np.ones((2, *data.shape)).astype(data.dtype)))
        for name in columns.keys() - datasets.keys():
            writer.write(name, 0, columns[name])


def test_datasets_that_are_declared_carry_their_unit_words_and_ucd(tmp_path):
    write_declared(tmp_path / "a.h5", {"gdr3_source_id": np.arange(2)})
    with ShardReader(tmp_path / "a.h5") as reader:
        reader.check(schema.resolved("tmass"))
        assert reader.attributes("j_m") == {
            "units": "mag", "description": "2MASS J", "ucd": "phot.mag;em.IR.J"
        }  # fmt: skip
        assert (reader.attrs["kind"], reader.attrs["format"]) == ("tmass", 1)
        assert reader.read("designation").dtype == "S17"


def test_a_dataset_that_is_not_declared_is_refused(tmp_path):
    with pytest.raises(ShardError, match="bonus is not a dataset of this kind of file"):
        write_declared(tmp_path / "a.h5", {"bonus": np.ones(2)})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["j_m", "designation"])
def test_a_declared_dataset_that_is_not_written_is_refused(tmp_path, name):
    with pytest.raises(ShardError, match=f"2 of 2 rows of {name} were not written"):
        write_declared(tmp_path / "a.h5", {}, left_out=[name])
    assert os.listdir(tmp_path) == []


def test_numbers_are_stored_as_declared_and_text_is_no_number(tmp_path):
    write_declared(
        tmp_path / "a.h5", {"gdr3_source_id": np.arange(2, dtype="i4"), "j_m": np.array([9.5, 10])}
    )
    with ShardReader(tmp_path / "a.h5") as reader:
        assert reader.read("j_m").dtype == np.float32
        assert reader.read("gdr3_source_id").dtype == np.int64
    with pytest.raises(ShardError, match=r"j_m holds float32, given \|S3"):
        write_declared(tmp_path / "b.h5", {"j_m": np.array([b"9.5", b"10"])})
