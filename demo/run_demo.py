#!/usr/bin/env python3
"""The whole chain on the demo stars: build the sky, train, infer, compare with the labels.

    python demo/run_demo.py          (or: make demo)

Each step script is run by its own command line, which is shown. What an earlier run finished is
kept, so running again goes on where it stopped; remove the run folder to begin anew. Everything is
written under demo/run: the data directory `data/`, the reddening of the map that comes with
dustmaps in `bh/` (made, but not used: the demo has a better one), `training_data.h5`, the trained
`model/` and the figures. Ends with the accuracy on validation stars, which the training never saw.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np
from astropy.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo.build_sky import TILE_FOLDER
from demo.chain import ROOT, SCALE, completeness, join_labels, read_catalogue, run_steps
from fitting.accuracy import accuracy, format_accuracy
from fitting.report.after import NAME as REPORT
from pipeline.run import usage_exit


def steps(run_dir, stars):
    """Command lines, without the interpreter, in the order in which they run."""
    data, training, model = f"{run_dir}/data", f"{run_dir}/training_data.h5", f"{run_dir}/model"
    labels = f"{data}/training_params.h5"
    compile_data = ["compile_training_data.py", "--data-dir", data, "--stellar-params", labels]
    train = ["train.py", "-i", training, "-o", model, "--recipe", "demo/recipe.toml"]
    train += ["--parallax-scale", SCALE]
    tiles = f"{data}/{TILE_FOLDER}"
    # The demo's own reddening, from A_K, is better than this map and stays the one in use.
    bh = ["query_reddening_gaia.py", "--data-dir", data, "--maps", "bh"]
    return [
        ["demo/build_sky.py", "--stars", str(stars), "--out", data, "--tiles"],
        ["match_unwise_gaia.py", "--data-dir", data, "--unwise-dir", tiles],
        [*bh, "--output-dir", f"{run_dir}/bh"],
        [*compile_data, "--output", training],
        [*train, "--resume"] if (ROOT / model).exists() else train,
        ["gen_xp_input_allsources.py", "--data-dir", data],
        ["xp_opt_allsources.py", "--data-dir", data, "--model", model, "--use-parallaxes"],
    ]


def report(run_dir):
    """Print the accuracy on the validation stars and the figures; the exit status."""
    data = run_dir / "data"
    catalogue, labels = read_catalogue(data)
    table = Table.read(data / "training_params.h5", path="training_params")
    ids = np.loadtxt(run_dir / "model" / "validation_ids.txt", dtype=np.int64, ndmin=1)
    line, lost = completeness(catalogue)
    print(f"\n{line}")
    scores = accuracy(*join_labels(catalogue, table, labels, ids), labels)
    print(f"\nInferred - APOGEE for the {len(ids)} validation stars (labels hidden; the parallaxes")
    print("are spectro-photometric with 20% errors, not Gaia's; W1, W2 are synthetic):\n")
    print(format_accuracy(scores, labels))
    figures = sorted((run_dir / "model").rglob("*.png"))
    if figures:
        print("\nFigures to look at:")
        print("\n".join(f"  {os.path.relpath(path)}" for path in figures))
    if (data / REPORT).is_file():
        print(f"\nAll of it on one page, for a browser: {os.path.relpath(data / REPORT)}")
    return 1 if lost else 0


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stars", type=Path, default=ROOT / "demo/stars.h5", help="star file")
    parser.add_argument("--run-dir", type=Path, default=ROOT / "demo/run", help="where to write")
    return parser.parse_args(argv)


@usage_exit
def main(argv=None):
    args = parse_args(argv)
    run_dir, stars = (os.path.relpath(path, ROOT) for path in (args.run_dir, args.stars))
    began = time.monotonic()
    if not run_steps(steps(run_dir, stars)):
        return 1
    status = report(args.run_dir)
    print(f"\n{time.monotonic() - began:.0f} s in all")
    return status


if __name__ == "__main__":
    sys.exit(main())
