"""Speed and memory of the export of the catalogue, on one core.

    python benchmarks/bench_export.py [--stars 500000] [--layouts table.fits parquet zgr23]

Makes up a catalogue: shards of 65,000 stars as step 10 writes them, numbers from a generator with
digits of their own, in a temporary folder (0.6 kB a star). Runs tools/export_catalogue.py for each
layout (of the layout table, for each ending), on these and on the first shard: the difference is
what a star costs, the rest what a process costs. Prints rows/s of CPU time, all checks and
checksums included; the largest resident size; bytes a star. Takes about two minutes.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import common  # noqa: F401  # sets one thread, for the children too
import healpy
import numpy as np
from bench_sky import run

from pipeline.run import usage_exit
from pipeline.schema import MODEL_FILE, Layout, resolved
from pipeline.select import output_path
from pipeline.write import ShardWriter

KIND = "opt_output"
SHARD_ROWS = 65_000
LAYOUTS = ("table.fits", "table.parquet", "table.csv", "table.ecsv", "parquet", "fits", "zgr23")
ID_SHIFT, LEVEL = 35, 12  # of the pixels that ids are made of


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stars", type=int, default=500_000, help="(%(default)s)")
    parser.add_argument("--layouts", nargs="+", default=LAYOUTS, help="default: all but zg25")
    return parser.parse_args(argv)


def made_up(layout, ids, rng):
    """Columns of stars at the pixels of their ids: {name: (N, ...)}."""
    n, size = len(ids), len(layout.labels.parameters)
    table = {}
    for name, data in resolved(KIND, layout).items():
        shape = (n, *data.shape)
        values = rng.normal(1, 0.2, shape) if data.dtype[0] == "f" else rng.integers(0, 9, shape)
        table[name] = values.astype(data.dtype)
    table["ra"], table["dec"] = healpy.pix2ang(2**LEVEL, ids >> ID_SHIFT, nest=True, lonlat=True)
    root = 0.02 * rng.normal(size=(n, size, size + 2))
    cov, triangle = root @ root.transpose(0, 2, 1), np.triu_indices(size)
    table["stellar_params_cov_triu"] = cov[:, *triangle]
    table["stellar_params_icov_triu"] = np.linalg.inv(cov)[:, *triangle]
    table["stellar_params_err"] = np.sqrt(np.einsum("nii->ni", cov))
    table["second_params_est"][::4] = np.nan
    return table | {layout.release.id_column: ids}


def write_shards(folder, n):
    """Shards of n stars all over the sky; their fids."""
    layout, rng, fids = Layout(), np.random.default_rng(0), []
    pixels = np.sort(rng.choice(12 * 4**LEVEL, n, replace=False))
    ends = [*(int(p) >> 8 for p in pixels[::SHARD_ROWS]), 12 * 4**8]
    inputs = json.dumps([{"name": MODEL_FILE, "identity": "made up", "size": 0}])
    made_by = {"script": "xp_opt_allsources", "release": "dr3", "inputs": inputs}
    made_by["labels"] = layout.labels.to_json()
    for k, start in enumerate(range(0, n, SHARD_ROWS)):
        ids = pixels[start : start + SHARD_ROWS] << ID_SHIFT
        fids.append(f"{ends[k]:06d}-{max(ends[k], ends[k + 1] - 1):06d}")
        path = output_path(folder, KIND, fids[-1])
        with ShardWriter(path, len(ids), layout.release.id_column, made_by) as writer:
            writer.create_columns(resolved(KIND, layout))
            writer.write_table(made_up(layout, ids, rng))
    return fids


def size_of(path):
    files = [path] if path.is_file() else path.rglob("*.*")
    return sum(file.stat().st_size for file in files)


def export(folder, layout, name, *options):
    """(peak memory in GB, CPU seconds, bytes) of an export."""
    word, _, ending = layout.partition(".")
    out = folder / (f"{name}.{ending}" if ending else f"{name}_{word}")
    command = ["tools/export_catalogue.py", "--data-dir", folder, "--layout", word, "--out", out]
    peak, cpu = run([*command, *options])
    return peak, cpu, size_of(out)


@usage_exit
def main(argv=None):
    args = parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        fids = write_shards(folder, args.stars)
        n_more = args.stars - min(args.stars, SHARD_ROWS)
        print(f"export of {args.stars} stars in {len(fids)} shards, one core")
        print("  layout         start (s)    rows/s  memory (GB)  bytes a star")
        for layout in args.layouts:
            _, few, _ = export(folder, layout, "few", "--shards", fids[0])
            peak, cpu, size = export(folder, layout, "all")
            a_star = (cpu - few) / n_more if n_more else cpu / args.stars
            start = cpu - a_star * args.stars
            rate, size = 1 / a_star, size / args.stars
            print(f"  {layout:14s} {start:9.1f} {rate:9.0f} {peak:12.2f} {size:13.0f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
