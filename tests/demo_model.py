"""A tiny model trained on demo stars, which the tests of steps 8 and 10 share.

Nothing is compiled in these tests: that takes far longer than so few steps.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
N_STARS = 400
N_SHARDS = 3
BATCH_SIZE = 72  # of the solver: batches are padded to it, and the calibration stars fit into one
ALL_GROUPS = ["network", "extinction", "extinction_xi", "noise"]
RECIPE = {
    "seed": 0,
    "validation_fraction": 0.2,
    "calibration_fraction": 0.25,
    "validation_stars": 100000,
    "calibration_stars": 100000,
    "fitted_stars": 100000,
    "hidden": 16,
    "noise_hidden": 8,
    "prior_components": 4,
    "direct_networks": 2,
    "direct_hidden": [24, 16],
    "screen_networks": 2,
    "screen_hidden": [16],
    "candidates": 6,
    "simulated_stars": 60,
    "hide_parallax": 0.3,
    "hide_photometry": 0.1,
    "hide_bp": 0.03,
    "hide_rp": 0.03,
    "faint_share": 0.5,
    "faint_g": [15.0, 18.0],
    "blur_parallax": 0.3,
    "rare_type_weight_cap": 3.0,
    "stages": [
        {"name": "first", "kind": "likelihood", "steps": 9, "batch_size": 96,
         "learning_rate": 2e-2, "train": ["network", "extinction", "noise"],
         "select": {"max_err": {"teff": 0.1}}},
        {"name": "xi", "kind": "likelihood", "steps": 2, "batch_size": 96, "learning_rate": 2e-3,
         "train": ["extinction", "extinction_xi"], "select": {"min_extinction": 0.1}},
        {"name": "stars", "kind": "stars", "reject_sigma": 20.0, "reject_chi2_factor": 20.0},
        {"name": "posterior", "kind": "posterior", "steps": 4, "batch_size": 96,
         "learning_rate": 1e-3, "weight_decay": 0.1, "train": ALL_GROUPS},
        {"name": "calibration", "kind": "calibration", "steps": 2, "batch_size": 48,
         "learning_rate": 1e-2, "train": ["noise_level"]},
        {"name": "direct", "kind": "direct", "steps": 30, "batch_size": 96,
         "learning_rate": 2e-2, "weight_decay": 0.02, "hide_parallax": 0.5, "train": ["direct"]},
        {"name": "distance", "kind": "distance", "steps": 4, "batch_size": 96,
         "learning_rate": 2e-2, "train": ["distance"]},
        {"name": "oddity", "kind": "oddity", "steps": 6, "batch_size": 96,
         "learning_rate": 2e-2, "train": ["oddity"]},
    ],
}  # fmt: skip


def stage(which="first", /, **changes):
    """A stage of RECIPE, changed."""
    return next(s for s in RECIPE["stages"] if s["name"] == which) | changes


# ---- recipes as files ------------------------------------------------------------------------


def recipe_text(recipe):
    """A recipe as the text of a TOML file."""
    lines = [f"{key} = {_value(x)}" for key, x in recipe.items() if not _is_stages(key, x)]
    stages = recipe.get("stages")
    for one in stages if _is_stages("stages", stages) else ():
        lines += ["[[stages]]", *(f"{key} = {_value(x)}" for key, x in one.items())]
    return "\n".join(lines) + "\n"


def _is_stages(key, value):
    """Whether an entry is written as [[stages]]: an empty or wrong list is not."""
    return key == "stages" and bool(value) and all(isinstance(s, dict) for s in value)


def _value(x):
    if isinstance(x, dict):
        return "{" + ", ".join(f"{key} = {_value(y)}" for key, y in x.items()) + "}"
    if isinstance(x, list | tuple):
        return "[" + ", ".join(map(_value, x)) + "]"
    return f'"{x}"' if isinstance(x, str) else str(x).lower()


def write_recipe(path, **changes):
    """RECIPE with changes, as a file."""
    path.write_text(recipe_text(RECIPE | changes))
    return path


# ---- steps in this process -------------------------------------------------------------------


SOLVERS = {}  # of the models last used, for equal ones


def _solver_of(model, batch_size=None, *, whole):
    """A `StarSolver`: the one of an equal model, as the graphs of a new one take seconds. Which
    stars are searched is in no graph: a training and step 10 have the same ones."""
    digest = hashlib.sha256()
    for name, array in sorted(dataclasses.replace(model, search=None).to_arrays().items()):
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    key = digest.hexdigest()
    if key not in SOLVERS:
        while len(SOLVERS) > 3:
            del SOLVERS[next(iter(SOLVERS))]
        SOLVERS[key] = whole(model, BATCH_SIZE)
    SOLVERS[key].model.search = model.search
    return SOLVERS[key]


@functools.lru_cache(maxsize=4)
def _density_of(objective, batch_size, *, whole):
    """A `StarDensity`: the one of the same objective, as its graph takes seconds, too."""
    return whole(objective, batch_size)


@contextlib.contextmanager
def quick():
    """The solver's descents as graphs, all else eagerly, nothing compiled; a training that warms up
    fast, saves its state often and calibrates at two brightnesses; a solver that gives up early;
    an exported model that takes float32 alone; small pictures."""
    import model  # and its own graphs, before they are made otherwise
    import train
    from fitting import held_out, minimiser, settling, star_solver, training
    from fitting.sampling import samples
    from pipeline import quiet_tensorflow
    from pipeline.figures import style
    from pipeline.quiet_tensorflow import tf

    whole = tf.function

    def graph(function, jit_compile=None, autograph=None):
        often = function.__name__ in ("_minimise", "_settle", "_curved", "_ln_density")
        return whole(function, autograph=False) if often else function

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quiet_tensorflow, "PROGRAMS", None)
        patch.setattr(tf, "function", graph)
        patch.setattr(model, "EXPORTED_TYPES", (tf.float32,))
        patch.setattr(training, "WARM_UP_STEPS", 3)
        patch.setattr(train, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(held_out, "SIMULATED_LEVELS", 2)
        patch.setattr(minimiser, "INNER_STEPS", 2)
        patch.setattr(settling, "MORE_EVALUATIONS", (8, 24))
        patch.setattr(star_solver, "StarSolver", partial(_solver_of, whole=star_solver.StarSolver))
        patch.setattr(samples, "StarDensity", partial(_density_of, whole=samples.StarDensity))
        for name in ("figure.dpi", "savefig.dpi"):
            patch.setitem(style.STYLE, name, 54)
        yield


def run_train(training_data, output, *options, recipe):
    """Exit status of train.py, run in this process."""
    import train

    words = ["-i", training_data, "-o", output, "--recipe", recipe, "--threads", 1, *options]
    with quick():
        return train.main([str(word) for word in words])


def run_inference(data_dir, model, *options):
    """Exit status of xp_opt_allsources.py, run in this process."""
    import xp_opt_allsources

    words = ["--data-dir", data_dir, "--model", model, "--threads", 1, *options]
    with quick():
        return xp_opt_allsources.main([str(word) for word in words])


def run_step(module, *words):
    """A step run in this process, which must succeed."""
    if module.main([str(word) for word in words]) not in (0, None):
        raise RuntimeError(f"{module.__name__} failed")


# ---- the model -------------------------------------------------------------------------------


def make_sky(data_dir, *options, n_stars=N_STARS, n_shards=N_SHARDS):
    """Demo stars in a data directory, with inputs of the inference."""
    import gen_xp_input_allsources
    from demo import build_sky

    stars = ["--stars", ROOT / "demo/stars.h5", "--out", data_dir]
    run_step(build_sky, *stars, "--n", n_stars, "--shards", n_shards, *options)
    run_step(gen_xp_input_allsources, "--data-dir", data_dir)


def make_training_data(data_dir, path, *options):
    """The training set of a data directory that `make_sky` made."""
    import compile_training_data

    labels = ["--stellar-params", data_dir / "training_params.h5"]
    run_step(compile_training_data, "--data-dir", data_dir, *labels, "--output", path, *options)


def paths(folder):
    """What `make` makes in a folder."""
    names = {"data_dir": "data", "training_data": "training_data.h5", "recipe": "recipe.toml"}
    return SimpleNamespace(**{k: folder / v for k, v in names.items()}, model=folder / "model")


def make(folder):
    """Demo sky, training data, inputs of the inference and a trained model in `folder`."""
    made = paths(folder)
    folder.mkdir(exist_ok=True)
    make_sky(made.data_dir)
    make_training_data(made.data_dir, made.training_data)
    write_recipe(made.recipe)
    if run_train(made.training_data, made.model, recipe=made.recipe):
        raise RuntimeError("train failed")
    return made


def once(tmp_path_factory, name, make):
    """The folder that make(folder) fills, made once for all processes of a run of the tests."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, done = root / name, root / f"{name}.done"
    with open(root / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            make(folder)
            done.touch()
    return folder


def run_python(code, *words, **options):
    """Run code that may import the project and the tests in another process."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    head = "import os, signal, sys\nfrom demo_model import quick\n"
    return subprocess.run(
        [sys.executable, "-c", head + code, *map(str, words)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        **options,
    )
