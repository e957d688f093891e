"""Two processes do not make one shard, and the leases of dead ones stop nobody."""

import dataclasses
import json
import os
import socket
import subprocess
import time

import pytest
from shard_case import ROOT, arguments, dead_pid, fid_list, run_code, write_shard

from pipeline import lease, run, select
from pipeline.errors import ShardError


def output_in(tmp_path):
    return tmp_path / "folder" / "shard.h5"


def write_lease(output, age=0, **changes):
    """A lease as another process would have written it so many seconds ago."""
    path = lease.lease_path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    own = lease._own()
    other = dataclasses.replace(own, token="other", **changes)
    path.write_text(json.dumps(dataclasses.asdict(other)))
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def is_taken(output):
    with lease.taken(output) as other:
        return other is None


def test_a_lease_lasts_as_long_as_its_block_also_where_that_fails(tmp_path):
    output = output_in(tmp_path)
    with lease.taken(output) as other:
        assert other is None
        held = lease.holder(output)
        assert (held.pid, held.host) == (os.getpid(), socket.gethostname())
        with lease.taken(output) as second:
            assert second == held
        assert lease.holder(output) == held
    assert os.listdir(output.parent) == []
    with pytest.raises(ShardError), lease.taken(output):
        raise ShardError("bad")
    assert os.listdir(output.parent) == []


def test_a_lease_of_another_host_holds_until_it_is_not_refreshed_any_more(tmp_path):
    output = output_in(tmp_path)
    other = {"host": "node7", "machine": "node7", "pid": 1}
    write_lease(output, age=lease.STALE_SECONDS - 60, **other)
    with lease.taken(output) as holder:
        assert "process 1 on node7" in holder.words()
    write_lease(output, age=lease.STALE_SECONDS + 60, **other)
    assert lease.holder(output) is None
    assert is_taken(output)
    assert os.listdir(output.parent) == []


def test_ages_are_told_by_the_clock_of_the_file_system(tmp_path, monkeypatch):
    output = output_in(tmp_path)
    write_lease(output, host="node7", machine="node7", pid=1)
    monkeypatch.setattr(time, "time", lambda: 4e9)  # this machine's clock is off by decades
    assert not is_taken(output)


@pytest.mark.parametrize("how", ["process gone", "number given to another process"])
def test_a_lease_of_a_dead_process_of_this_machine_is_taken_over_at_once(tmp_path, how):
    output = output_in(tmp_path)
    gone = {"pid": dead_pid()} if how == "process gone" else {"started": "1"}
    write_lease(output, **gone)
    assert is_taken(output)
    assert os.listdir(output.parent) == []


def test_a_requeued_job_takes_over_what_its_former_run_held_on_another_node(tmp_path, monkeypatch):
    output = output_in(tmp_path)
    other = {"host": "node7", "machine": "node7", "pid": 1, "job": "31", "restart": 0}
    monkeypatch.setenv("SLURM_JOB_ID", "31")
    write_lease(output, **other)
    assert not is_taken(output)  # a step of the same run of the job
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert is_taken(output)
    monkeypatch.setenv("SLURM_JOB_ID", "32")
    write_lease(output, **other)
    assert not is_taken(output)


@pytest.mark.parametrize("content", ["", "{", '{"pid": 3}', "[]"])
def test_a_lease_that_cannot_be_read_holds_until_it_is_old(tmp_path, content):
    output = output_in(tmp_path)
    path = lease.lease_path(output)
    path.parent.mkdir()
    path.write_text(content)
    assert not is_taken(output)
    os.utime(path, (time.time() - 400, time.time() - 400))
    assert is_taken(output)


def test_who_lost_its_lease_does_not_remove_that_of_the_next(tmp_path):
    output = output_in(tmp_path)
    with lease.taken(output):
        path = write_lease(output, host="node7", machine="node7", pid=1)
    assert json.loads(path.read_text())["token"] == "other"
    assert os.listdir(output.parent) == [path.name]


def test_where_files_cannot_be_linked_leases_work_too(tmp_path, monkeypatch):
    def link(*paths):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    output = output_in(tmp_path)
    with lease.taken(output) as other:
        assert other is None
        assert not is_taken(output)
    assert os.listdir(output.parent) == []


def test_a_link_that_was_made_though_the_file_system_denies_it_counts(tmp_path, monkeypatch):
    link = os.link

    def forgetful(*paths):
        link(*paths)
        raise FileExistsError(17, "File exists")

    monkeypatch.setattr(os, "link", forgetful)
    output = output_in(tmp_path)
    with lease.taken(output) as other:
        assert other is None
        assert lease.holder(output).pid == os.getpid()


def test_a_folder_that_cannot_be_written_leaves_the_words_to_the_writer(tmp_path):
    (tmp_path / "folder").touch()
    with lease.taken(output_in(tmp_path)) as other:
        assert other is None


def test_leases_are_refreshed_while_they_are_held(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(lease, "_BEATS", lease._Beats())
    output = output_in(tmp_path)
    with lease.taken(output):
        path = lease.lease_path(output)
        os.utime(path, (0, 0))
        until = time.monotonic() + 30
        while path.stat().st_mtime == 0 and time.monotonic() < until:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0


RACE = """
import sys
from pathlib import Path
from pipeline import lease
won = 0
blocks = [lease.taken(Path(sys.argv[1]) / f"{i}.h5") for i in range(40)]
for block in blocks:
    won += block.__enter__() is None
print(won, flush=True)
sys.stdin.read()
"""


def test_of_several_processes_that_take_over_a_dead_lease_one_gets_it(tmp_path):
    for i in range(40):
        write_lease(tmp_path / f"{i}.h5", pid=dead_pid() if i == 0 else 2**22 - 1, started="1")
    runs = [run_code(RACE, tmp_path, stdin=subprocess.PIPE, text=True) for _ in range(4)]
    won = [int(one.stdout.readline()) for one in runs]
    for one in runs:
        one.communicate()
    assert sum(won) == 40


# ---- the loop over shards --------------------------------------------------------------------

TOY = """
import argparse, os, sys, time
sys.path.insert(0, sys.argv.pop(1))
from shard_case import write_shard
from pipeline import run, select
parser = argparse.ArgumentParser()
select.add_shard_arguments(parser)
args = parser.parse_args()
def process(fid, output, log):
    print(fid, flush=True)
    sys.stdin.readline()
    write_shard(output)
sys.exit(run.run_shards("toy", args, select.select_fids(args, "metadata"), lambda fid: [],
    lambda fid: select.shard_path(args.data_dir, "reddening", fid), process))
"""


def toy(data_dir, made):
    """A run of a step in this process: the exit status; made: fids are added to it."""
    args = arguments(data_dir)

    def process(fid, output, log):
        made.append(fid)
        write_shard(output)

    fids = select.select_fids(args, "metadata")
    outputs = (lambda fid: [], lambda fid: select.shard_path(data_dir, "reddening", fid))
    return run.run_shards("toy", args, fids, *outputs, process)


@pytest.fixture
def working(tmp_path):
    """Another process at work on the first of three shards."""
    for fid in fid_list(3):
        write_shard(select.shard_path(tmp_path, "metadata", fid))
    process = run_code(
        TOY, ROOT / "tests", "--data-dir", tmp_path, "--shards", fid_list(3)[0],
        stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline().strip() == fid_list(3)[0]
    yield process
    process.kill()
    process.communicate()


def test_a_shard_in_work_elsewhere_is_left_alone_with_a_word_and_a_status_of_its_own(
    tmp_path, working, capsys
):
    fids, made = fid_list(3), []
    assert toy(tmp_path, made) == run.HELD_STATUS == 3
    assert made == fids[1:]
    shown = capsys.readouterr().err
    assert f"{fids[0]}: left to process {working.pid} on {socket.gethostname()}" in shown
    assert f"2 done, 0 already complete, 0 failed, 1 in work elsewhere: {fids[0]}" in shown
    working.communicate("go\n")
    assert working.returncode == 0
    assert toy(tmp_path, made) == 0
    assert made == fids[1:]


def test_a_shard_whose_process_was_killed_is_made_by_the_next(tmp_path, working):
    working.kill()
    working.communicate()
    made = []
    assert toy(tmp_path, made) == 0
    assert made == fid_list(3)
    folder = select.shard_path(tmp_path, "reddening", fid_list(3)[0]).parent
    assert len(os.listdir(folder)) == 3


def test_a_shard_that_the_other_finishes_meanwhile_counts_as_complete(tmp_path, working, capsys):
    fids = fid_list(3)
    args = arguments(tmp_path)

    def process(fid, output, log):
        write_shard(output)
        if fid == fids[-1]:
            working.communicate("go\n")

    outputs = (lambda fid: [], lambda fid: select.shard_path(tmp_path, "reddening", fid))
    assert run.run_shards("toy", args, fids, *outputs, process) == 0
    assert "2 done, 1 already complete, 0 failed" in capsys.readouterr().err
