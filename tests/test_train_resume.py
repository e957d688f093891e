"""Step 8 interrupted, killed and begun again: it goes on to the same result, or says why not."""

import contextlib
import json
import logging
import re
import signal
from types import SimpleNamespace

import numpy as np
import pytest
from demo_model import RECIPE, run_python, run_train, write_recipe
from helpers import assert_same_datasets, flip_bit, read_all, truncate
from train_case import assert_refused, write_training_data

import train
from fitting import batches, held_out, training_figures
from fitting.batches import Batches
from fitting.recipe import make_recipe
from fitting.training import Trainer
from pipeline.read import read_arrays
from pipeline.write import write_arrays

RESULTS = ("model.h5", "validation.h5")


@pytest.fixture
def no_figures(monkeypatch):
    """Without the parts of `finish` that cost time and are tested on the whole model."""
    monkeypatch.setattr(training_figures, "draw_figures", lambda *args: None)
    monkeypatch.setattr("model.export", lambda *args: None)


@contextlib.contextmanager
def interrupted(monkeypatch, where, name, call):
    """Ctrl-C at the given call (from 1) of a function."""
    calls, whole = [], getattr(where, name)

    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(where, name, counted)
        yield


KILLED = """
import train
from fitting import batches
whole, calls = batches.Batches.of, []
def batch(self, rows, stage, rng):
    calls.append(1)
    if len(calls) == 4:  # in the second epoch of the first stage
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, rows, stage, rng)
batches.Batches.of = batch
with quick():
    train.main(sys.argv[1:])
"""


def steps_an_epoch(demo_model, name):
    """Of a stage, which the rejection of stars may leave with few."""
    history = json.loads((demo_model.model / "history.json").read_text())
    size = next(s["batch_size"] for s in RECIPE["stages"] if s["name"] == name)
    stars = next(h["stars"] for h in history if h["stage"] == name)
    return stars // min(size, stars)


def test_training_killed_and_interrupted_gives_the_same_model(
    demo_model, tmp_path, monkeypatch, no_figures
):
    data, recipe = demo_model.training_data, demo_model.recipe
    killed = run_python(KILLED, "-i", data, "-o", tmp_path, "--recipe", recipe, "--threads", 1)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert killed.stderr == ""  # no notice of TensorFlow
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoint.h5", "train.log", ".model.h5.lease"
    }  # fmt: skip
    places = [
        (Trainer, "_fit_stars", 1),
        (Batches, "of", 4),  # in the posterior stage
        (held_out, "trained_model", 1),  # all is trained
    ]
    for where, name, call in places:
        with interrupted(monkeypatch, where, name, call):
            assert run_train(data, tmp_path, "--resume", recipe=recipe) == 130
        assert not (tmp_path / "model.h5").exists()
    assert run_train(data, tmp_path, "--resume", recipe=recipe) == 0
    for name in RESULTS:
        assert_same_datasets(demo_model.model / name, tmp_path / name)
    for name in ("history.json", "validation.json", "validation_ids.txt"):
        assert (tmp_path / name).read_text() == (demo_model.model / name).read_text()
    log = (tmp_path / "train.log").read_text()
    begun = [(0, 0), (0, 3 // steps_an_epoch(demo_model, "first")), (2, 0)]
    begun += [(3, 3 // steps_an_epoch(demo_model, "posterior")), (len(RECIPE["stages"]), 0)]
    assert begun[1][1] > 0
    expected = [f"at stage {stage}, epoch {epoch}" for stage, epoch in begun]
    assert re.findall("at stage .*", log) == expected


def test_training_that_fits_and_infers_some_of_its_stars_goes_on_to_the_same_model(
    demo_model, tmp_path, monkeypatch, no_figures
):
    monkeypatch.setattr(batches, "MEASURED_STARS", 150)
    most = {"validation_stars": 20, "calibration_stars": 30, "fitted_stars": 100}
    recipe = write_recipe(tmp_path / "recipe.toml", **most)
    whole, begun = tmp_path / "whole", tmp_path / "begun"
    assert run_train(demo_model.training_data, whole, recipe=recipe) == 0
    with interrupted(monkeypatch, Trainer, "_next_stage", 4):
        assert run_train(demo_model.training_data, begun, recipe=recipe) == 130
    assert run_train(demo_model.training_data, begun, "--resume", recipe=recipe) == 0
    for name in RESULTS:
        assert_same_datasets(whole / name, begun / name)
    checkpoint = read_all(whole / "checkpoint.h5")
    assert np.isfinite(checkpoint["fitted_type"]).all()
    assert len(checkpoint["fitted_type"]) == 130
    scores = json.loads((whole / "validation.json").read_text())
    ids = (demo_model.model / "validation_ids.txt").read_text().split()
    assert (scores["stars"], scores["held_out"]) == (20, len(ids))
    assert set((whole / "validation_ids.txt").read_text().split()) < set(ids)
    text = (whole / "train.log").read_text()
    assert f"30 calibration, 20 validation stars (of {len(ids)} held out)" in text
    fitted = next(h for h in json.loads((whole / "history.json").read_text()) if "rejected" in h)
    assert fitted["stars"] == 100


def test_resuming_a_finished_training_returns_at_once(demo_model, monkeypatch, capsys):
    monkeypatch.setattr("fitting.training.Trainer", None)  # not even begun
    before = {path: path.stat().st_mtime_ns for path in demo_model.model.glob("*.h5")}
    status = run_train(
        demo_model.training_data, demo_model.model, "--resume", recipe=demo_model.recipe
    )
    assert status == 0
    assert "already trained" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in demo_model.model.glob("*.h5")}


def test_training_is_finished_when_its_model_is_whole(demo_model, tmp_path):
    recipe = make_recipe(RECIPE)
    args = SimpleNamespace(output=tmp_path, check=False)
    former, log = ({}, {"stage": len(recipe.stages)}), logging.getLogger("test")
    assert not train.is_trained(args, recipe, former, log)
    (tmp_path / "model.h5").write_bytes((demo_model.model / "model.h5").read_bytes())
    assert train.is_trained(args, recipe, former, log)
    assert not train.is_trained(args, recipe, ({}, {"stage": 1}), log)
    assert not train.is_trained(args, recipe, None, log)
    truncate(tmp_path / "model.h5")
    assert not train.is_trained(args, recipe, former, log)


# --- checkpoints that cannot be gone on from ------------------------------------------------


@pytest.fixture
def begun(demo_model, tmp_path):
    """A folder with the checkpoint of a training."""
    folder = tmp_path / "begun"
    folder.mkdir()
    checkpoint = (demo_model.model / "checkpoint.h5").read_bytes()
    (folder / "checkpoint.h5").write_bytes(checkpoint)
    return folder


def test_training_begun_is_not_trained_over_without_a_word(demo_model, begun, capsys):
    status = run_train(demo_model.training_data, begun, recipe=demo_model.recipe)
    assert_refused(capsys, status, "checkpoint.h5", "--resume", "--overwrite")
    (begun / "checkpoint.h5").rename(begun / "model.h5")
    status = run_train(demo_model.training_data, begun, recipe=demo_model.recipe)
    assert_refused(capsys, status, "model.h5", "--overwrite")
    status = run_train(demo_model.training_data, begun, "--resume", recipe=demo_model.recipe)
    assert_refused(capsys, status, "model.h5", "--overwrite")


def test_overwrite_trains_anew(demo_model, begun, monkeypatch):
    seen = []
    (begun / "model.h5").write_bytes(b"former")
    monkeypatch.setattr(train, "train", lambda trainer, *args: seen.append(trainer.stage))
    monkeypatch.setattr(train, "finish", lambda *args: None)
    assert run_train(demo_model.training_data, begun, "--overwrite", recipe=demo_model.recipe) == 0
    assert seen == [0]
    assert list(begun.glob("*.h5")) == []


def test_resume_and_overwrite_exclude_each_other(demo_model, begun):
    with pytest.raises(SystemExit) as stop:
        run_train(
            demo_model.training_data, begun, "--resume", "--overwrite", recipe=demo_model.recipe
        )
    assert stop.value.code == 2


def test_other_recipe_or_data_cannot_go_on_with_a_checkpoint(demo_model, begun, tmp_path, capsys):
    other = write_recipe(tmp_path / "other.toml", seed=1)
    status = run_train(demo_model.training_data, begun, "--resume", recipe=other)
    assert_refused(capsys, status, "checkpoint.h5", "another recipe")
    changed = read_all(demo_model.training_data)
    changed["plx"] = changed["plx"] * np.float32(1.001)
    data = write_training_data(tmp_path / "other.h5", changed)
    status = run_train(data, begun, "--resume", recipe=demo_model.recipe)
    assert_refused(capsys, status, "checkpoint.h5", "other training data")


@pytest.mark.parametrize(
    "damage",
    [truncate, lambda path: path.write_bytes(b""), lambda path: flip_bit(path, "moment0_0")],
)
def test_damaged_checkpoint_is_refused(demo_model, begun, damage, capsys):
    damage(begun / "checkpoint.h5")
    status = run_train(demo_model.training_data, begun, "--resume", recipe=demo_model.recipe)
    assert_refused(capsys, status, "checkpoint.h5", "--overwrite")


def test_checkpoint_of_another_version_is_refused(demo_model, begun, capsys):
    arrays, attrs = read_arrays(begun / "checkpoint.h5")
    del arrays["rejected"]
    kept = {name: attrs[name] for name in ("settings", "stage", "epoch", "history")}
    write_arrays(begun / "checkpoint.h5", arrays, {}, **kept)
    status = run_train(demo_model.training_data, begun, "--resume", recipe=demo_model.recipe)
    assert_refused(capsys, status, "rejected", "--overwrite")
