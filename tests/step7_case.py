"""Labels of a made-up sky and the command line of step 7, for its tests."""

import numpy as np
from astropy.table import Table
from helpers import read_all

import compile_training_data as step


def make_labels(sky, seed=2) -> dict:
    """A label for every star, in random order."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(np.concatenate([t["xp"]["source_id"] for t in sky.values()]))
    n = len(ids)
    est = np.stack([rng.uniform(4, 8, n), rng.uniform(-2, 0.5, n), rng.uniform(1, 5, n)], axis=1)
    err = np.stack([rng.uniform(low, 2 * low, n) for low in (0.02, 0.03, 0.04)], axis=1)
    return {"gdr3_source_id": ids, "params_est": est, "params_err": err}


def write_labels(path, labels, **meta):
    Table(labels, meta=meta).write(path, path="training_params", overwrite=True)


def run(data_dir, *options, labels=None, **meta):
    """Exit status of the step over a data directory, by its command line."""
    if labels is not None:
        write_labels(data_dir / "labels.h5", labels, **meta)
    return step.main(
        ["--data-dir", str(data_dir), "--stellar-params", str(data_dir / "labels.h5"),
         "--output", str(data_dir / "training_data.h5"), *map(str, options)]
    )  # fmt: skip


def result(data_dir):
    return read_all(data_dir / "training_data.h5")


def stars_of(sky, kind):
    """One table of all shards."""
    return {
        name: np.concatenate([tables[kind][name] for tables in sky.values()])
        for name in next(iter(sky.values()))[kind]
    }
