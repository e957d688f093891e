"""A full disk is one line and status 1: no crash, nothing left, the other shards are tried."""

import os
import shutil
import subprocess

import pytest
from shard_case import ROOT, run_code

# Forms of files, each written under limits of its size from nothing to nearly enough.
LIMITS = """
import os, resource, sys
import numpy as np
from pipeline.errors import WriteError
from pipeline.write import ShardWriter

rng = np.random.default_rng(0)
flux, ids = rng.normal(size=(3000, 60)).astype("f4"), np.arange(3000)

def fixed(path):
    with ShardWriter(path, 3000, "source_id", {}) as writer:
        writer.write("source_id", 0, ids)
        for start in range(0, 3000, 700):
            writer.write("flux", start, flux[start : start + 700])
        writer.write("noise", 0, rng.integers(0, 256, (3000, 30), "u1"))

def grown(path):
    with ShardWriter(path, None, "source_id", {"note": "x" * 9000}) as writer:
        for start in range(0, 3000, 700):
            writer.write("source_id", start, ids[start : start + 700])
            writer.write("flux", start, flux[start : start + 700])

def many(path):
    with ShardWriter(path, None, None, {}) as writer:
        for k in range(60):
            writer.write_array(f"layer{k % 7}/weights/{k}", flux[:100] + k, note="a" * 200)

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

path, failed = sys.argv[1] + "/out.h5", 0
for write in (fixed, grown, many):
    write(path)
    size = os.path.getsize(path)
    os.remove(path)
    for part in [*np.linspace(0, 0.999, 40), (size - 1) / size, (size - 300) / size]:
        limit(int(part * size))
        try:
            write(path)
        except WriteError as error:
            text = str(error)
            failed += "the disk or a quota is full" in text and "\\n" not in text
        if os.listdir(sys.argv[1]):
            sys.exit(f"left: {os.listdir(sys.argv[1])} at {part}")
        limit(resource.RLIM_INFINITY)
    write(path)
    os.remove(path)
print(failed)
"""


def test_wherever_a_disk_is_full_it_is_one_clear_error_and_leaves_nothing(tmp_path):
    run = run_code(LIMITS, tmp_path, stderr=subprocess.PIPE, text=True)
    out, err = run.communicate()
    assert run.returncode == 0, err  # not -11: HDF5 ends the process where it cannot close a file
    assert int(out) == 3 * 42


SHARDS = """
import argparse, resource, sys
import numpy as np
from pipeline import run, select, write

def process(fid, output, log):
    n = 200_000 if fid.startswith("000100") else 300
    with write.ShardWriter(output, n, "gdr3_source_id", {"inputs": "[]"}) as writer:
        writer.write("gdr3_source_id", 0, np.random.default_rng(0).permutation(n))

@run.usage_exit
def main(argv=None):
    parser = argparse.ArgumentParser()
    select.add_shard_arguments(parser)
    args = parser.parse_args()
    log = run.setup_logging("toy", args.log, args)
    limit = 60_000
    if LOG_FULL:
        log.info("x" * limit)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return run.run_shards("toy", args, [f"000{k}00-000{k}99" for k in range(3)], lambda fid: [],
        lambda fid: select.output_path(args.data_dir, "reddening", fid), process, log)

sys.exit(main())
"""


@pytest.mark.parametrize("log_full", [False, True])
def test_a_shard_without_room_fails_and_the_others_are_made(tmp_path, log_full):
    code = SHARDS.replace("LOG_FULL", str(log_full))
    run = run_code(code, "--data-dir", tmp_path, stderr=subprocess.PIPE, text=True)
    _, shown = run.communicate()
    assert run.returncode == 1
    assert "2 done, 0 already complete, 1 failed: 000100-000199 (" in shown
    assert "make room and run the same command again" in shown
    assert "Traceback" not in shown
    assert "Logging error" not in shown
    assert shown.count("the log is not complete") == log_full
    names = sorted(os.listdir(tmp_path / "xp_dustmap_match"))
    assert [name[-16:-3] for name in names] == ["000000-000099", "000200-000299"]


# ---- steps on a real small disk --------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 kB, with 20 kB of room."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here: root may do so, in most places")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


STEP = """
import sys
import query_reddening_gaia as step
sys.exit(step.main(sys.argv[1:]))
"""


def test_a_step_on_a_full_disk_ends_with_status_1_and_goes_on_when_there_is_room(
    tmp_path, small_disk
):
    from step9_case import write_table
    from test_replaced_inputs import metadata_of

    fids = ["000000-000099", "000100-000199", "000200-000299"]
    for fid in fids:
        write_table(tmp_path, "metadata", fid, metadata_of(3000))
    (small_disk / "filler").write_bytes(bytes(280_000))
    words = ["--data-dir", tmp_path, "--maps", "bh", "--output-dir", small_disk]
    words += ["--log", small_disk / "step5.log"]
    run = run_code(STEP, *words, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    _, shown = run.communicate()
    assert run.returncode == 1, shown
    assert "Traceback" not in shown
    assert "make room" in shown
    made = os.listdir(small_disk / "xp_dustmap_match")
    assert not [name for name in made if name.startswith(".")]
    assert len(made) < 3
    (small_disk / "filler").unlink()
    run = run_code(STEP, *words, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    _, shown = run.communicate()
    assert run.returncode == 0, shown
    assert f"{len(made)} already complete" in shown


def test_a_small_file_that_finds_no_room_is_one_clear_error(tmp_path):
    code = (
        "import resource, sys\nfrom pipeline import errors, whole_files\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "try:\n    whole_files.write_text(sys.argv[1], 'x' * 101)\n"
        "except errors.WriteError as error:\n    print(error)\n"
    )
    run = run_code(code, tmp_path / "notes.json", text=True)
    out, _ = run.communicate()
    assert "notes.json: cannot be written" in out
    assert os.listdir(tmp_path) == []
