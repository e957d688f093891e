"""A chain of steps run by their command lines, and what is read of its catalogue."""

import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from fitting.catalogue import label_estimates
from pipeline.errors import ShardError
from pipeline.joining import join_rows
from pipeline.read import ShardReader
from pipeline.schema import LabelSet, inferred_columns, load_release
from pipeline.select import list_fids, shard_path

ROOT = Path(__file__).resolve().parents[1]
ID = load_release().id_column
SCALE = "spectro-photometric parallaxes"  # of the stars of demo/README.md: not Gaia's


def run_step(command):
    """Run one command line in the project's folder; True where it succeeded."""
    print(f"\n$ python {shlex.join(command)}", flush=True)
    began = time.monotonic()
    status = subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode
    seconds = time.monotonic() - began
    if status:
        sys.stderr.write(
            f"stopped: {command[0]} ended with status {status} after {seconds:.0f} s. "
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


def run_steps(commands):
    """Run command lines one after another; True where all succeeded, False at the first failure."""
    return all(run_step(command) for command in commands)


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
