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
from fitting.accuracy import accuracy, format_accuracy
from fitting.catalogue import label_estimates
from pipeline.errors import ShardError
from pipeline.read import ShardReader, join_rows
from pipeline.run import usage_exit
from pipeline.schema import LabelSet, inferred_columns, load_release
from pipeline.select import list_fids, shard_path

ROOT = Path(__file__).resolve().parents[1]
ID = load_release().id_column


def steps(run_dir, stars):
    """Command lines, without the interpreter, in the order in which they run."""
    data, training, model = f"{run_dir}/data", f"{run_dir}/training_data.h5", f"{run_dir}/model"
    labels = f"{data}/training_params.h5"
    compile_data = ["compile_training_data.py", "--data-dir", data, "--stellar-params", labels]
    train = ["train.py", "-i", training, "-o", model, "--recipe", "demo/recipe.toml"]
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
    """(columns of all shards of step 10, concatenated, the labels they are of)."""
    parts, labels = [], None
    for fid in list_fids(data_dir, "opt_output"):
        with ShardReader(shard_path(data_dir, "opt_output", fid)) as reader:
            labels = LabelSet.from_json(reader.attrs["labels"])
            names = [name for name in (ID, *inferred_columns(labels)) if "triu" not in name]
            parts.append(reader.read_table(names))
    if not parts:
        raise ShardError(f"{shard_path(data_dir, 'opt_output', '*')}: no catalogue was written")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, labels


def join_labels(catalogue, table, labels, ids):
    """Estimates, their errors, labels and label errors, each (n, K), of the stars `ids`.

    catalogue: inferred columns; table: gdr3_source_id, params_est, params_err; labels: `LabelSet`.
    Raises ShardError where a star is not in both.
    """
    in_catalogue = join_rows(ids, catalogue[ID])
    in_table = join_rows(ids, np.asarray(table[ID]))
    lost = (in_catalogue < 0) | (in_table < 0)
    if lost.any():
        raise ShardError(
            f"{lost.sum()} of {len(ids)} validation stars are not in both the catalogue and the "
            f"labels, the first is {ids[lost][0]}: the model was trained on another sky"
        )
    estimates = (part[in_catalogue] for part in label_estimates(catalogue, labels))
    truth = (np.asarray(table[f"params_{s}"])[in_table] for s in ("est", "err"))
    return [np.asarray(part, np.float64) for part in (*estimates, *truth)]


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
    catalogue, labels = read_catalogue(data)
    table = Table.read(data / "training_params.h5", path="training_params")
    ids = np.loadtxt(run_dir / "model" / "validation_ids.txt", dtype=np.int64, ndmin=1)
    line, lost = completeness(catalogue)
    print(f"\n{line}")
    scores = accuracy(*join_labels(catalogue, table, labels, ids), labels)
    print(f"\nInferred - APOGEE for the {len(ids)} validation stars (labels hidden; the parallaxes")
    print("are spectro-photometric with 20% errors, not Gaia's; W1, W2 are synthetic):\n")
    print(format_accuracy(scores, labels))
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
