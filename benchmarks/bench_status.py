#!/usr/bin/env python3
"""How long tools/status.py takes for the whole sky: 3,386 shards of every step.

    python benchmarks/bench_status.py [--shards 3386]

Makes, in a temporary folder, small files that say of themselves what real ones do, with a few
states of every sort, and asks twice: at first all attributes are read, then only what changed.
Prints wall and CPU times; a busy machine or network file system makes wall times longer.
"""

import argparse
import contextlib
import io
import itertools
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.provenance import provenance
from pipeline.schema import FILES, KINDS
from pipeline.select import shard_path
from pipeline.write import ShardWriter
from tools import status

PIXELS = 12 * 256**2  # of the sky, level 8
INPUTS = {
    "metadata": ["xp"],
    "tmass": ["xp"],
    "unwise": ["metadata"],
    "reddening": ["metadata"],
    "opt_input": ["xp", "metadata", "tmass", "unwise"],
    "opt_output": ["opt_input"],
}
MISSING, DAMAGED, REPLACED = 50, 5, 5  # of the catalogue, of the photometry, of the metadata


def make_shard(data_dir, kind, fid, value):
    sources = [shard_path(data_dir, one, fid) for one in INPUTS.get(kind, ())]
    made_by = provenance(Path(KINDS[kind].step).stem, [], sources)
    made_by |= {"kind": kind, "format": FILES[kind].format}
    ids = np.arange(10) + (int(fid[:6]) << 43)
    with ShardWriter(shard_path(data_dir, kind, fid), 10, "id", made_by) as writer:
        writer.write("id", 0, ids)
        writer.write("flux", 0, np.full((10, 3), value))


def make_tree(data_dir, n_shards):
    os.fsync = lambda descriptor: None  # nothing of this is to last
    edges = np.linspace(0, PIXELS, n_shards + 1).astype(int)
    fids = [f"{a:06d}-{b - 1:06d}" for a, b in itertools.pairwise(edges)]
    for fid in fids:
        for kind in KINDS:
            make_shard(data_dir, kind, fid, 1.0)
    for fid in fids[:MISSING]:
        shard_path(data_dir, "opt_output", fid).unlink()
    for fid in fids[-DAMAGED:]:
        os.truncate(shard_path(data_dir, "tmass", fid), 700)
    for fid in fids[100 : 100 + REPLACED]:
        make_shard(data_dir, "metadata", fid, 2.0)


def ask(words, data_dir, *options):
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        exit_status = status.main(["--data-dir", str(data_dir), *options])
    wall, cpu = time.perf_counter() - wall, sum(os.times()[:4]) - cpu
    print(f"{words}: {wall:.1f} s, {cpu:.1f} s of CPU, exit status {exit_status}", flush=True)
    return shown.getvalue()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=3386)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="made there, and kept")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not (folder / "logs").exists():
            make_tree(folder, args.shards)
        print(f"{args.shards} shards of {len(KINDS)} kinds", flush=True)
        print(ask("first time", folder))
        ask("again", folder)
        ask("again, with maps of the sky", folder, "--map", str(folder / "logs" / "map.png"))


if __name__ == "__main__":
    main()
