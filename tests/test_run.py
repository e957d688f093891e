"""One bad shard stops no other, and exits are honest."""

import dataclasses
import os
import subprocess
import threading
import time

import pytest
from helpers import assert_same_datasets
from shard_case import arguments, fid_list, run_code, touch_shards, write_shard

from pipeline import run, select
from pipeline.errors import ShardError, UsageError
from pipeline.schema import load_release


def run_all(data_dir, *options, broken=(), error=ShardError, release=None):
    """Run a toy step: metadata shard in, reddening shard out."""
    args = arguments(data_dir, *options)
    args.release = release
    made = []

    def process(fid, output, log):
        if fid in broken:
            raise error(f"bad {fid}")
        source = select.shard_path(data_dir, "metadata", fid)
        write_shard(output, inputs=[source], release=release)
        made.append(fid)
        return {"stars": 5}

    status = run.run_shards(
        "toy", args, select.select_fids(args, "metadata"),
        lambda fid: [select.shard_path(data_dir, "metadata", fid)],
        lambda fid: select.shard_path(data_dir, "reddening", fid), process,
    )  # fmt: skip
    return status, made


def test_run_skips_what_is_complete_and_makes_again_what_is_not(tmp_path, capsys):
    fids = fid_list(5)
    for fid in fids:
        write_shard(select.shard_path(tmp_path, "metadata", fid))
    assert run_all(tmp_path) == (0, fids)
    assert run_all(tmp_path) == (0, [])
    os.truncate(select.shard_path(tmp_path, "reddening", fids[1]), 500)
    select.shard_path(tmp_path, "reddening", fids[2]).unlink()
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


def test_an_error_of_usage_ends_the_run(tmp_path):
    fids = fid_list(3)
    for fid in fids:
        write_shard(select.shard_path(tmp_path, "metadata", fid))
    with pytest.raises(UsageError, match=f"bad {fids[1]}"):
        run_all(tmp_path, broken=fids[1:2], error=UsageError)
    assert run_all(tmp_path) == (0, fids[1:])


def test_a_finished_shard_of_another_release_is_neither_kept_nor_overwritten(tmp_path, capsys):
    (fid,) = fid_list(1)
    write_shard(select.shard_path(tmp_path, "metadata", fid))
    dr3 = load_release("dr3")
    assert run_all(tmp_path, release=dr3) == (0, [fid])
    assert run_all(tmp_path, release=dr3) == (0, [])
    dr9 = dataclasses.replace(dr3, name="dr9")
    assert run_all(tmp_path, release=dr9) == (1, [])
    assert "of the release dr3, but dr9 is in use" in capsys.readouterr().err
    assert run_all(tmp_path, "--overwrite", release=dr9) == (0, [fid])


def run_threads(data_dir, process, on_interrupt=None):
    """A step of 12 shards, 3 at once; the exit status."""
    args = arguments(data_dir)
    return run.run_shards(
        "toy", args, fid_list(12), lambda fid: [],
        lambda fid: select.shard_path(data_dir, "reddening", fid), process,
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
    lambda fid: select.shard_path(args.data_dir, "reddening", fid), process))
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
            *(select.shard_path(tmp_path / f, "reddening", fid) for f in ("serial", "parallel"))
        )
