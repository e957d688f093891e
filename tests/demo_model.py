"""A tiny model trained on demo stars, which the tests of steps 8 and 10 share.

TensorFlow runs eagerly in these tests: to compile takes far longer than so few steps.
"""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
N_STARS = 400
N_SHARDS = 3
ALL_GROUPS = ["network", "extinction", "extinction_xi", "noise"]
RECIPE = {
    "seed": 0,
    "validation_fraction": 0.2,
    "calibration_fraction": 0.25,
    "hidden": 16,
    "noise_hidden": 8,
    "prior_components": 4,
    "hide_parallax": 0.3,
    "hide_photometry": 0.1,
    "hide_bp": 0.03,
    "rare_type_weight_cap": 3.0,
    "stages": [
        {"name": "first", "kind": "likelihood", "steps": 9, "batch_size": 96,
         "learning_rate": 2e-2, "train": ["network", "extinction", "noise"],
         "select": {"max_teff_err": 0.1}},
        {"name": "xi", "kind": "likelihood", "steps": 2, "batch_size": 96, "learning_rate": 2e-3,
         "train": ["extinction", "extinction_xi"], "select": {"min_ext": 0.1}},
        {"name": "stars", "kind": "stars", "reject_sigma": 20.0, "reject_chi2_factor": 20.0},
        {"name": "posterior", "kind": "posterior", "steps": 4, "batch_size": 96,
         "learning_rate": 1e-3, "weight_decay": 0.1, "train": ALL_GROUPS},
        {"name": "calibration", "kind": "calibration", "steps": 2, "batch_size": 48,
         "learning_rate": 1e-2, "train": ["noise_level"]},
        {"name": "direct", "kind": "direct", "steps": 30, "batch_size": 96,
         "learning_rate": 2e-2, "weight_decay": 0.02, "hide_parallax": 0.5, "train": ["direct"]},
    ],
}  # fmt: skip


@contextlib.contextmanager
def quick():
    """TensorFlow without compiling; a training that warms up fast, saves its state often and
    simulates few stars; a solver that gives up early."""
    import tensorflow as tf

    import train
    from fitting import star_solver, training

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "WARM_UP_STEPS", 3)
        patch.setattr(train, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(train, "SIMULATED_STARS", 60)
        patch.setattr(star_solver, "POOLED_ITERATIONS", 8)
        tf.config.run_functions_eagerly(True)
        try:
            yield
        finally:
            tf.config.run_functions_eagerly(False)


def run_train(training_data, output, *options, recipe):
    """Exit status of train.py, run in this process."""
    import train

    words = ["-i", training_data, "-o", output, "--recipe", recipe, "--threads", 1, *options]
    with quick():
        return train.main([str(word) for word in words])


def make(folder):
    """Demo sky, training data, inputs of the inference and a trained model in `folder`."""
    import compile_training_data
    import gen_xp_input_allsources
    from demo import build_sky

    data_dir, training_data = folder / "data", folder / "training_data.h5"
    sky = [
        "--stars",
        ROOT / "demo/stars.h5",
        "--out",
        data_dir,
        "--n",
        N_STARS,
        "--shards",
        N_SHARDS,
    ]
    labels = data_dir / "training_params.h5"
    compiled = ["--data-dir", data_dir, "--stellar-params", labels, "--output", training_data]
    for step, words in (
        (build_sky, sky),
        (compile_training_data, compiled),
        (gen_xp_input_allsources, ["--data-dir", data_dir]),
    ):
        if step.main([str(word) for word in words]) not in (0, None):
            raise RuntimeError(f"{step.__name__} failed")
    recipe, model = folder / "recipe.json", folder / "model"
    recipe.write_text(json.dumps(RECIPE))
    if run_train(training_data, model, recipe=recipe):
        raise RuntimeError("train failed")
    return SimpleNamespace(
        data_dir=data_dir, training_data=training_data, recipe=recipe, model=model
    )


def run_python(code, *words):
    """Run code that may import the project and the tests in another process, eagerly."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    head = "import os, signal, sys\nfrom demo_model import quick\n"
    return subprocess.run(
        [sys.executable, "-c", head + code, *map(str, words)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
