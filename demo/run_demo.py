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
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from astropy.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo.build_sky import TILE_FOLDER
from pipeline.errors import ShardError
from pipeline.read import ShardReader, join_rows
from pipeline.run import usage_exit
from pipeline.select import list_fids, shard_path

ROOT = Path(__file__).resolve().parents[1]
PARAMETERS = {"Teff (K)": 1e3, "[Fe/H]": 1.0, "log g": 1.0}  # printed unit over the stored one
LOGG_GIANT = 3.5
CATALOGUE = ("gdr3_source_id", "stellar_params_est", "stellar_params_err", "quality_flags")


def steps(run_dir, stars):
    """Command lines, without the interpreter, in the order in which they run."""
    data, training, model = f"{run_dir}/data", f"{run_dir}/training_data.h5", f"{run_dir}/model"
    labels = f"{data}/training_params.h5"
    compile_data = ["compile_training_data.py", "--data-dir", data, "--stellar-params", labels]
    train = ["train.py", "-i", training, "-o", model, "--recipe", "demo/recipe.json"]
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
        ["xp_opt_allsources.py", "--data-dir", data, "--model", model],
    ]


def run_step(command):
    """Run one command line in the project's folder; True where it succeeded."""
    print(f"\n$ python {' '.join(command)}", flush=True)
    began = time.monotonic()
    status = subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode
    seconds = time.monotonic() - began
    if status:
        sys.stderr.write(
            f"demo stopped: {command[0]} ended with status {status} after {seconds:.0f} s. "
            "What was finished is kept: run again to go on.\n"
        )
        return False
    print(f"  {seconds:.1f} s", flush=True)
    return True


def read_catalogue(data_dir):
    """The columns CATALOGUE of all shards of step 10, concatenated."""
    parts = []
    for fid in list_fids(data_dir, "opt_output"):
        with ShardReader(shard_path(data_dir, "opt_output", fid)) as reader:
            parts.append(reader.read_table(CATALOGUE))
    if not parts:
        raise ShardError(f"{shard_path(data_dir, 'opt_output', '*')}: no catalogue was written")
    return {name: np.concatenate([part[name] for part in parts]) for name in CATALOGUE}


def join_labels(catalogue, labels, ids):
    """Estimates, their errors, labels and label errors, each (n,3), of the stars `ids`.

    catalogue: dict of CATALOGUE; labels: table with gdr3_source_id, params_est, params_err.
    Raises ShardError where a star is not in both.
    """
    in_catalogue = join_rows(ids, catalogue["gdr3_source_id"])
    in_labels = join_rows(ids, np.asarray(labels["gdr3_source_id"]))
    lost = (in_catalogue < 0) | (in_labels < 0)
    if lost.any():
        raise ShardError(
            f"{lost.sum()} of {len(ids)} validation stars are not in both the catalogue and the "
            f"labels, the first is {ids[lost][0]}: the model was trained on another sky"
        )
    estimates = (catalogue[f"stellar_params_{s}"][in_catalogue, :3] for s in ("est", "err"))
    truth = (np.asarray(labels[f"params_{s}"])[in_labels] for s in ("est", "err"))
    return [np.asarray(part, np.float64) for part in (*estimates, *truth)]


def robust_width(x):
    """1.4826 times the median absolute deviation along axis 0: sigma for a Gaussian."""
    return 1.4826 * np.median(np.abs(x - np.median(x, axis=0)), axis=0)


def accuracy(estimate, error, label, label_error):
    """Offset, robust scatter, pull width, fraction beyond 3 sigma: a (3,) array each.

    All arguments (n,3). Offset: median of estimate - label. The pull is the difference over the
    errors of both in quadrature.
    """
    difference = estimate - label
    pull = difference / np.hypot(error, label_error)
    beyond = np.mean(np.abs(pull) > 3, axis=0)
    return np.median(difference, axis=0), robust_width(difference), robust_width(pull), beyond


def accuracy_table(estimate, error, label, label_error):
    """Lines of text: accuracy of all stars, giants, dwarfs; stars that are not finite left out."""
    finite = np.isfinite(estimate).all(1) & np.isfinite(error).all(1)
    giant = label[:, 2] < LOGG_GIANT
    groups = {"all": finite, "giants": finite & giant, "dwarfs": finite & ~giant}
    lines = ["stars       n  parameter   offset  scatter  pull width  beyond 3 sigma"]
    for name, chosen in groups.items():
        if not chosen.any():
            continue
        rows = accuracy(estimate[chosen], error[chosen], label[chosen], label_error[chosen])
        for k, (parameter, unit) in enumerate(PARAMETERS.items()):
            offset, scatter, width, beyond = (row[k] for row in rows)
            digits = 1 if unit > 1 else 3
            lines.append(
                f"{name:7s} {chosen.sum():5d}  {parameter:9s} {offset * unit:8.{digits}f} "
                f"{scatter * unit:8.{digits}f} {width:11.2f} {beyond:15.1%}"
            )
    return lines


def completeness(catalogue):
    """A line of text, and the number of stars neither finite nor flagged, which must be 0."""
    finite = np.isfinite(catalogue["stellar_params_est"]).all(1)
    finite &= np.isfinite(catalogue["stellar_params_err"]).all(1)
    flagged = catalogue["quality_flags"] > 0
    lost = int((~finite & ~flagged).sum())
    text = f"{len(finite)} stars in the catalogue: {finite.sum()} finite, {flagged.sum()} flagged"
    return f"{text}, {lost} neither", lost


def report(run_dir):
    """Print the accuracy on the validation stars and the figures; the exit status."""
    data = run_dir / "data"
    catalogue = read_catalogue(data)
    labels = Table.read(data / "training_params.h5", path="training_params")
    ids = np.loadtxt(run_dir / "model" / "validation_ids.txt", dtype=np.int64, ndmin=1)
    line, lost = completeness(catalogue)
    print(f"\n{line}")
    print(f"\nInferred - APOGEE for the {len(ids)} validation stars (labels hidden; the parallaxes")
    print("are spectro-photometric with 20% errors, not Gaia's; W1, W2 are synthetic):\n")
    print("\n".join(accuracy_table(*join_labels(catalogue, labels, ids))))
    figures = sorted(run_dir.rglob("*.png"))
    if figures:
        print("\nFigures to look at:")
        print("\n".join(f"  {os.path.relpath(path)}" for path in figures))
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
    for command in steps(run_dir, stars):
        if not run_step(command):
            return 1
    status = report(args.run_dir)
    print(f"\n{time.monotonic() - began:.0f} s in all")
    return status


if __name__ == "__main__":
    sys.exit(main())
