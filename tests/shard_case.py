"""Shards and options that several files of tests use."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from pipeline import provenance, select
from pipeline.write import ShardWriter

ROOT = Path(__file__).resolve().parents[1]
IDS = np.array([30, 10, 20, 50, 40], np.int64) << 43


def write_shard(path, ids=IDS, inputs=(), value=1.0, script="test", release=None):
    """A shard of five columns, one of random bytes, which do not compress."""
    rng = np.random.default_rng(1)
    made_by = provenance.provenance(script, ["--x", "1"], inputs, release)
    with ShardWriter(path, len(ids), "source_id", made_by) as writer:
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


def run_code(code, *args, **kwargs):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)], env=env, stdout=subprocess.PIPE, **kwargs
    )


def dead_pid():
    """The number of a process that ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid
