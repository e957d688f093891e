"""Memory and time of step 8 by the number of stars: train.py on a million stars, and on fewer.

    python benchmarks/bench_training.py [--stars 1000000] [--fewer 50000]

Lays the demo stars, repeated under new ids with noise of their errors, out as training sets in a
temporary folder (1 GB a million stars; and as much again while train.py runs), and trains on each
by recipe.toml with few steps and few stars that are inferred one by one, on one thread. Every stage
is passed through, and all that follows. Prints the largest resident size of the process, as
the system counts it; the bytes that each star more takes; the seconds until the first stage, of the
stage that fits stars, of all gradient stages (their compilation, mostly), and of what follows; and
of CPU time in all. Takes about eight minutes.
"""

import argparse
import datetime
import re
import sys
import tempfile
from pathlib import Path

import common  # sets one thread, for the children too
import numpy as np

from pipeline.read import ShardReader
from pipeline.run import usage_exit
from pipeline.schema import LabelSet, Layout, load_release, resolved
from pipeline.whole_files import write_text
from pipeline.write import ShardWriter

TARGET_GB = 2.5
SHORT = {
    "steps": 20,
    "simulated_stars": 500,
    "validation_stars": 2000,
    "calibration_stars": 500,
    "fitted_stars": 20_000,
}
BLOCK = 20_000  # stars written at a time
NOISY = {"flux": "flux_err", "stellar_type": "stellar_type_err"}  # and their errors
LOGGED = re.compile(r"^(\S+ \S+) .*?(labels .*at stage|stage \S+ done|wrote|validation stars:)")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stars", type=int, default=1_000_000, help="(%(default)s)")
    parser.add_argument("--fewer", type=int, default=50_000, help="(%(default)s)")
    return parser.parse_args(argv)


def compile_demo(folder):
    """The demo's training set, in a folder."""
    path = folder / "demo.h5"
    stars = ["--stars", "demo/stars.h5", "--out", folder / "data"]
    labels = ["--stellar-params", folder / "data/training_params.h5"]
    run("demo/build_sky.py", *stars)
    run("compile_training_data.py", "--data-dir", folder / "data", *labels, "--output", path)
    return path


def run(*command):
    """(peak memory in GB, CPU seconds, wall seconds) of a script, which must succeed."""
    status, *cost = common.measured(command)
    if status:
        raise SystemExit(status)
    return cost


def repeat(path, n, out):
    """A training set of n stars: those of `path` under new ids, with noise of their errors."""
    release, rng = load_release(), np.random.default_rng(0)
    with ShardReader(path, release.id_column) as reader:
        table, attrs = reader.read_table(reader.columns), reader.attrs
        layout = Layout(release, LabelSet.from_json(reader.attributes("stellar_type")["labels"]))
    made_by = {name: attrs[name] for name in ("script", "release", "xp_basis")}
    with ShardWriter(out, n, release.id_column, made_by) as writer:
        writer.create_columns(resolved("training", layout))
        for start in range(0, n, BLOCK):
            ids = np.arange(start, min(start + BLOCK, n))
            block = {name: values[ids % len(values)] for name, values in table.items()}
            for name, err in NOISY.items():
                sigma = np.where(np.isfinite(block[err]), block[err], 0.0)
                block[name] += sigma * rng.standard_normal(sigma.shape, "f4")
            writer.write_table(block | {release.id_column: ids + 1}, start=start)
    return out


def short_recipe(path):
    """recipe.toml with the numbers of SHORT, as a file."""
    text = (common.ROOT / "recipe.toml").read_text()
    for name, value in SHORT.items():
        text = re.sub(rf"(?m)^{name} = \d+", f"{name} = {value}", text)
    write_text(path, text)
    return path


def stage_seconds(log, wall):
    """Seconds of start-up, the stage of kind stars, gradient stages, and the rest, by a log."""
    found = [LOGGED.match(line) for line in log.read_text().splitlines()]
    times = [(datetime.datetime.fromisoformat(m[1]), m[2]) for m in found if m]
    start, *stages, end = [(when.timestamp(), words) for when, words in times]
    spent, before = {"fit": 0.0, "gradients": 0.0}, start[0]
    for when, words in stages:
        if words.startswith("stage"):
            spent["fit" if words == "stage stars done" else "gradients"] += when - before
            before = when
    finish = end[0] - before
    return wall - sum(spent.values()) - finish, *spent.values(), finish


@usage_exit
def main(argv=None):
    args = parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="bench_training_") as folder:
        folder = Path(folder)
        demo, recipe, peaks = compile_demo(folder), short_recipe(folder / "recipe.toml"), {}
        print("   stars  peak (GB)  start (s)  fit (s)  gradients (s)  finish (s)  CPU (s)")
        for n in (args.fewer, args.stars):
            data = repeat(demo, n, folder / f"{n}.h5")
            words = ["-i", data, "-o", folder / f"model_{n}", "--recipe", recipe, "--threads", 1]
            peaks[n], cpu, wall = run("train.py", *words)
            seconds = stage_seconds(folder / f"model_{n}/train.log", wall)
            data.unlink()
            cells = " ".join(f"{x:{w}.0f}" for x, w in zip(seconds, (10, 8, 14, 11), strict=True))
            late = "  ABOVE THE TARGET" if peaks[n] > TARGET_GB else ""
            print(f"{n:8d} {peaks[n]:10.2f} {cells} {cpu:8.0f}{late}", flush=True)
    more = 1e9 * (peaks[args.stars] - peaks[args.fewer]) / (args.stars - args.fewer)
    print(f"each star more: {more:.0f} bytes at the peak")
    return 0


if __name__ == "__main__":
    sys.exit(main())
