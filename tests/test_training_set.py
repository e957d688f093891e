"""A training set whose spectra stay on disk: the same batches as from memory, in little memory."""

import tracemalloc

import numpy as np
import pytest
from demo_model import RECIPE
from demo_stars_case import BASIS, CHANNELS, LABELS, RELEASE, training_set, training_table
from train_case import write_training_data

import train
from fitting import batches
from fitting import training_set as module
from fitting.batches import TrainingStars
from fitting.recipe import StarsStage, make_recipe
from fitting.split import held_out, split_stars
from fitting.training import Trainer
from fitting.training_set import SPECTRA, read_training_data

MOST_BYTES = 300  # a star more, at the peak
FEW, MANY = 4_000, 24_000


def write_many(path, n):
    """A training set of n stars, the demo's under new ids."""
    table = training_table()
    rows = np.arange(n) % len(table["plx"])
    many = {name: values[rows] for name, values in table.items()}
    return write_training_data(path, many | {RELEASE.id_column: np.arange(1, n + 1)})


def trainer_of(stars):
    return Trainer(stars, LABELS, make_recipe(RECIPE), "dr3", "a basis")


@pytest.fixture(scope="module")
def trainers():
    """Trainers of the same stars, the last hundred for calibration: in memory, and on disk."""
    data, rows = training_set(), np.random.default_rng(0).permutation(len(training_set().ids))
    calibration, g = np.arange(len(rows)) >= len(rows) - 100, data.g_magnitudes(RELEASE)[rows]
    g[::7] = np.nan  # these are by the fluxes
    kinds = (data.star_data, data.stored_stars)
    return [trainer_of(TrainingStars(of(rows, CHANNELS), calibration, g, BASIS)) for of in kinds]


def test_training_begins_alike_from_memory_and_from_disk(trainers):
    first, second = (trainer.state() for trainer in trainers)
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name], err_msg=name)
    np.testing.assert_array_equal(*(trainer.stars.g for trainer in trainers))
    np.testing.assert_array_equal(*(trainer.batches.weight for trainer in trainers))


@pytest.mark.parametrize("stage", make_recipe(RECIPE).stages, ids=lambda stage: stage.name)
def test_batches_from_disk_are_those_from_memory(trainers, stage):
    if isinstance(stage, StarsStage):
        pytest.skip("has no batches")
    rows = np.random.default_rng(1).permutation(trainers[0].batches.selected(stage, False))[:90]
    one, other = (t.batches.of(rows, stage, np.random.default_rng(2)) for t in trainers)
    assert one.keys() == other.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)


def test_training_file_may_vanish_once_it_is_read(tmp_path):
    path = write_many(tmp_path / "data.h5", 500)
    data = read_training_data(path, RELEASE, tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    path.unlink()
    rows = np.arange(400, 500)
    found = data.rows(rows)
    for name in (*SPECTRA, "plx", "stellar_type"):
        np.testing.assert_array_equal(found[name], training_table()[name][rows % 400])


def peak(path, folder):
    """Largest number of bytes allocated by the start of a training, TensorFlow's not counted."""
    tracemalloc.start()
    try:
        data, recipe = read_training_data(path, RELEASE, folder), make_recipe(RECIPE)
        training, calibration, _ = split_stars(data.ids, recipe)
        train.start_trainer(data, training, calibration, RELEASE, recipe, None)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_grows_by_little_a_star(tmp_path, monkeypatch):
    for owner in (module, batches):
        monkeypatch.setattr(owner, "BLOCK", 500)
    monkeypatch.setattr(batches, "MEASURED_STARS", 500)
    paths = [write_many(tmp_path / f"{n}.h5", n) for n in (FEW, MANY)]
    peak(paths[0], tmp_path)  # what is loaded at first does not count
    few, many = (peak(path, tmp_path) for path in paths)
    assert few < 20e6
    assert many - few < MOST_BYTES * (MANY - FEW)


# ---- some of many ----------------------------------------------------------------------------


def test_validation_and_calibration_stars_are_as_many_as_the_recipe_says():
    ids = np.random.default_rng(0).integers(0, 2**62, 20000)
    whole = split_stars(ids, make_recipe(RECIPE))
    recipe = make_recipe(RECIPE | {"validation_stars": 300, "calibration_stars": 200})
    training, calibration, validation = split_stars(ids, recipe)
    np.testing.assert_array_equal(training, whole[0])  # those beyond are not trained on
    assert (len(calibration), len(validation)) == (200, 300)
    for some, of in ((calibration, whole[1]), (validation, whole[2])):
        assert np.isin(some, of).all()
        assert (np.diff(some) > 0).all()
    assert held_out(ids, recipe)[validation].all()
    order = np.random.default_rng(1).permutation(len(ids))  # by ids alone
    again = split_stars(ids[order], recipe)
    for some, same in zip((calibration, validation), again[1:], strict=True):
        assert set(ids[some]) == set(ids[order][same])


def test_statistics_are_of_some_of_many_stars_and_about_those_of_all(trainers, monkeypatch):
    stars = trainers[1].stars
    monkeypatch.setattr(batches, "MEASURED_STARS", 150)
    rows = stars.sample(stars.training)
    assert len(rows) == 150
    assert np.isin(rows, stars.training).all()
    np.testing.assert_array_equal(rows, stars.sample(stars.training))
    few, taken = trainer_of(stars), []
    for name in ("label_mean", "label_scale"):
        all_of, some = (getattr(t.model, name) for t in (trainers[1], few))
        np.testing.assert_allclose(some, all_of, atol=0.2 * trainers[1].model.label_scale.max())
        assert (some != all_of).all()
    np.testing.assert_allclose(few.model.label_mean, stars.data.theta[rows].mean(0), rtol=1e-5)
    whole = type(stars.data).take
    monkeypatch.setattr(
        type(stars.data), "take", lambda self, rows: (taken.append(len(rows)), whole(self, rows))[1]
    )
    trainer_of(stars)
    assert max(taken) == 150


def test_no_stage_has_more_steps_than_its_recipe_asks_for(trainers, monkeypatch):
    trainer = trainers[1]
    stage = make_recipe(RECIPE).stages[0]
    for steps, size, epochs, batch_steps in ((9, 10, 1, 9), (200, 10, 10, 20)):
        one = type(stage)(**vars(stage) | {"steps": steps, "batch_size": size})
        monkeypatch.setattr("fitting.training.EPOCH_STEPS", 20)
        _, *plan = trainer.stage_plan(one)
        assert plan == [size, batch_steps, epochs]
