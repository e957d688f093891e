"""Step 8 by its command line: what a training of demo stars leaves, and unusual trainings."""

import json

import numpy as np
import pytest
from demo_model import RECIPE, run_train, stage, write_recipe
from helpers import read_all
from train_case import write_training_data

import train
from fitting import batches
from fitting.accuracy import accuracy
from fitting.batches import Batches
from fitting.model_file import load_model
from fitting.recipe import make_recipe, read_recipe
from fitting.split import hash_fraction, split_stars
from model import FluxModel
from pipeline.provenance import Status, output_state
from pipeline.quiet_tensorflow import tf
from pipeline.read import ShardReader, read_arrays
from pipeline.schema import DEFAULT_LABELS, Layout, load_release, resolved

RESULTS = ("model.h5", "validation.h5")


@pytest.fixture(scope="module")
def table(demo_model):
    """All datasets of the training data."""
    return read_all(demo_model.training_data)


# --- what a training leaves -----------------------------------------------------------------


def test_all_files_are_written_and_whole(demo_model):
    folder = demo_model.model
    for name in (*RESULTS, "checkpoint.h5"):
        assert output_state(folder / name).status is not Status.PARTIAL
    ids = read_all(folder / "validation.h5")["gdr3_source_id"]
    listed = (folder / "validation_ids.txt").read_text().split()
    assert [int(word) for word in listed] == ids.tolist()
    assert len(ids) > 50
    figures = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    assert figures.keys() >= {
        "loss_likelihood.png", "loss_posterior.png", "loss_direct.png", "extinction_curve.png",
        "model_spectra.png", "residuals.png", "validation.png", "stars.png", "confidence.png",
    }  # fmt: skip
    assert all(png.startswith(b"\x89PNG") for png in figures.values())
    assert min(map(len, figures.values())) > 3000
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_model_knows_its_recipe_labels_release_and_basis(demo_model):
    path = demo_model.model / "model.h5"
    with ShardReader(path) as reader:
        recipe = json.loads(reader.attrs["recipe"])
        assert demo_model.training_data.name in reader.attrs["inputs"]
    assert recipe["hidden"] == RECIPE["hidden"]
    assert [s["name"] for s in recipe["stages"]] == [s["name"] for s in RECIPE["stages"]]
    stellar = load_model(path, load_release()).stellar
    assert stellar.labels == DEFAULT_LABELS
    assert stellar.release == "dr3"
    with ShardReader(demo_model.training_data) as reader:
        assert stellar.xp_basis == reader.attrs["xp_basis"]
    np.testing.assert_allclose(stellar.channels.wavelengths, Layout().wavelengths)


def test_history_has_a_finite_loss_for_every_epoch(demo_model):
    history = json.loads((demo_model.model / "history.json").read_text())
    assert list(dict.fromkeys(h["stage"] for h in history)) == [s["name"] for s in RECIPE["stages"]]
    for name in ("first", "xi", "stars", "posterior"):
        epochs = [h["epoch"] for h in history if h["stage"] == name]
        assert epochs == list(range(len(epochs)))
    for entry in history:
        numbers = [value for value in entry.values() if not isinstance(value, str)]
        assert np.isfinite(numbers).all()
        assert ("posterior_loss" in entry) == (entry["stage"] in ("posterior", "calibration"))
        for name in ("direct", "distance", "oddity"):
            assert (f"{name}_loss" in entry) == (entry["stage"] == name)
        assert entry.get("steps_refused", 0) == 0
    for name, kind in (
        ("first", "likelihood"),
        *((x, x) for x in ("direct", "distance", "oddity")),
    ):
        losses = [h[f"{kind}_loss"] for h in history if h["stage"] == name]
        assert losses[-1] < losses[0]


def test_validation_file_is_as_the_schema_says(demo_model):
    with ShardReader(demo_model.model / "validation.h5") as reader:
        datasets = resolved("validation", Layout())
        reader.check(datasets)
        assert set(reader.columns) == datasets.keys()
        names = reader.attributes("stellar_params_est")["parameters"]
        labels = reader.attributes("stellar_type")["label_names"]
    assert list(names) == ["teff", "feh", "logg", "xi", "E", "parallax"]
    assert list(labels) == ["teff", "feh", "logg"]


def test_validation_scores_are_those_of_the_validation_file(demo_model):
    scores = json.loads((demo_model.model / "validation.json").read_text())
    found = read_all(demo_model.model / "validation.h5")
    residual = 1e3 * (found["stellar_params_est"][:, 0] - found["stellar_type"][:, 0])
    assert scores["stars"] == scores["finite"] == len(residual)
    assert scores["all"]["teff"]["offset"] == pytest.approx(np.median(residual), rel=1e-4)
    est, label = found["stellar_params_est"][:, 0], found["stellar_type"][:, 0]
    assert np.corrcoef(est, label)[0, 1] > 0.5  # it learned something


def test_direct_estimate_is_pooled_and_the_forward_model_alone_is_told_too(demo_model):
    weights = load_model(demo_model.model / "model.h5", load_release()).errors.pool_weights
    assert (weights > 0).all()
    columns = read_all(demo_model.model / "validation.h5")
    assert (columns["stellar_params_est"] != columns["model_params_est"]).any(1).all()
    scores = json.loads((demo_model.model / "validation.json").read_text())
    for name, found in (("model", scores["forward model alone"]), ("stellar", scores)):
        est, err = (columns[f"{name}_params_{kind}"][:, :3] for kind in ("est", "err"))
        label = columns["stellar_type"], columns["stellar_type_err"]
        expected = accuracy(est, err, *label, DEFAULT_LABELS)
        for one in DEFAULT_LABELS:
            assert found["all"][one.name] == pytest.approx(expected["all"][one.name]), name


def test_saved_model_predicts_what_the_trained_model_predicts(demo_model):
    saved = tf.saved_model.load(str(demo_model.model / "saved_model"))
    model = FluxModel.from_arrays(read_all(demo_model.model / "model.h5"))
    theta = np.array([[4.8, -0.2, 2.5], [5.8, 0.0, 4.4]], "f4")
    xi, ext, plx = (np.array(pair, "f4") for pair in ([0.5, -1], [0.3, 0.1], [0.5, 2]))
    expected = model.flux(model.standardise(theta), xi, ext, np.log(plx)).numpy()
    np.testing.assert_allclose(saved.predict_obs_flux(theta, xi, ext, plx), expected, rtol=1e-5)
    np.testing.assert_allclose(saved._sample_wavelengths, Layout().wavelengths)


def test_summary_of_a_training_names_what_it_found(demo_model):
    levels = load_model(demo_model.model / "model.h5", load_release()).errors.levels
    snrs = [f"{snr:.0f}" for snr in np.exp(-levels)]
    assert len(snrs) == 2
    log = (demo_model.model / "train.log").read_text()
    for words in (
        "labels Teff (kK), [Fe/H] (dex), log g (dex)",
        *(
            f"error factors of stars {which} a parallax, S/N {snr}: Teff"
            for which in ("with", "without")
            for snr in snrs
        ),
        *(f"pool, S/N {snr}: weights" for snr in snrs),
        "validation stars, the forward model alone:",
        "dwarfs",
    ):
        assert words in log


# --- unusual trainings ----------------------------------------------------------------------


def test_stars_held_out_do_not_enter_the_training(demo_model, table, tmp_path, monkeypatch):
    """And those for calibration change what they calibrate alone."""
    ids = table["gdr3_source_id"]
    training, calibration, held_out = split_stars(ids, make_recipe(RECIPE))
    assert len(training) + len(calibration) + len(held_out) == len(ids)
    rng, rows = np.random.default_rng(5), np.concatenate([calibration, held_out])
    spoiled = {name: values.copy() for name, values in table.items()}
    known = spoiled["stellar_type"]
    known[rows] = rng.uniform(known.min(0), known.max(0), (len(rows), 3))
    spoiled["flux"][rows] *= 1e3
    spoiled["stellar_ext"][rows] = np.nan
    seen = []
    monkeypatch.setattr(train, "finish", lambda trainer, *args: seen.append(trainer.stars))
    with ShardReader(demo_model.training_data) as reader:
        basis = reader.attrs["xp_basis"]
    path = write_training_data(tmp_path / "spoiled.h5", spoiled, xp_basis=basis)
    assert run_train(path, tmp_path / "model", recipe=demo_model.recipe) == 0
    used = np.concatenate([training, calibration])
    np.testing.assert_array_equal(seen[0].data.theta, spoiled["stellar_type"][used])
    np.testing.assert_array_equal(seen[0].calibration, np.isin(used, calibration))
    before, after = (
        read_all(folder / "checkpoint.h5") for folder in (demo_model.model, tmp_path / "model")
    )
    changed = {
        name
        for name, values in before.items()
        if not np.array_equal(values, after[name], equal_nan=values.dtype.kind == "f")
    }
    assert changed == {"noise_ln_level", "noise_ln_nu", "fitted_type", "rejected"}
    for name in ("fitted_type", "rejected"):  # of the calibration stars, which come last
        np.testing.assert_array_equal(*(x[name][: len(training)] for x in (before, after)))


def test_few_validation_stars_no_calibration_and_a_single_stage_will_do(
    demo_model, table, tmp_path
):
    """Also without the stage that fits the stars, which a figure shows; and no star is fainter."""
    held = hash_fraction(table["gdr3_source_id"])
    recipe = write_recipe(
        tmp_path / "recipe.toml",
        calibration_fraction=0,
        faint_share=0,
        validation_fraction=float(np.sort(held)[:2].mean()),
        stages=[stage(steps=1)],
    )
    assert run_train(demo_model.training_data, tmp_path / "model", recipe=recipe) == 0
    assert len(read_all(tmp_path / "model/validation.h5")["gdr3_source_id"]) == 1
    trained = load_model(tmp_path / "model/model.h5", load_release())
    assert not trained.confidence.weight.any()
    assert trained.stellar.direct is trained.stellar.distance is trained.stellar.oddity is None
    assert len(trained.errors.levels) == 1


@pytest.fixture
def no_finish(monkeypatch):
    """A training that ends with its checkpoint."""
    monkeypatch.setattr(train, "finish", lambda *args: None)


@pytest.mark.usefixtures("no_finish")
def test_stage_without_stars_is_skipped_and_said(demo_model, tmp_path, capsys):
    stages = [stage(select={"min_extinction": 99.0}), stage(steps=1)]
    recipe = write_recipe(tmp_path / "recipe.toml", stages=stages)
    assert run_train(demo_model.training_data, tmp_path / "model", recipe=recipe) == 0
    assert "stage first: skipped: only 0 stars are left" in capsys.readouterr().err


@pytest.mark.usefixtures("no_finish")
def test_oddity_stage_of_a_release_without_typical_noise_is_skipped_and_said(
    demo_model, tmp_path, monkeypatch, capsys
):
    """Nothing odd can be simulated there; and no network for it is left untrained in the model."""
    stars = batches.TrainingStars

    def noiseless(*args):
        out = stars(*args)
        out.dimming = None
        return out

    monkeypatch.setattr(batches, "TrainingStars", noiseless)
    stages = [stage("oddity", steps=1), stage("distance", steps=1)]
    recipe = write_recipe(tmp_path / "recipe.toml", stages=stages)
    assert run_train(demo_model.training_data, tmp_path / "model", recipe=recipe) == 0
    assert "stage oddity: skipped: the release has no typical noise" in capsys.readouterr().err
    arrays = read_arrays(tmp_path / "model/checkpoint.h5")[0]
    assert "distance_w0" in arrays
    assert not [name for name in arrays if name.startswith("oddity")]


@pytest.mark.usefixtures("no_finish")
def test_step_without_a_finite_gradient_is_refused_and_said(
    demo_model, tmp_path, monkeypatch, capsys
):
    whole, calls = Batches.of, []

    def batch(self, rows, one, rng):
        calls.append(whole(self, rows, one, rng))
        if len(calls) == 2:
            calls[-1]["value"][0, 0] = np.nan
        return calls[-1]

    monkeypatch.setattr(Batches, "of", batch)
    recipe = write_recipe(tmp_path / "recipe.toml", stages=[stage(steps=3)])
    assert run_train(demo_model.training_data, tmp_path / "model", recipe=recipe) == 0
    assert "1 steps were refused" in capsys.readouterr().err
    arrays, attrs = read_arrays(tmp_path / "model/checkpoint.h5")
    for name, values in arrays.items():
        if values.dtype.kind == "f" and name != "fitted_type":
            assert np.isfinite(values).all(), name
    assert np.isfinite(json.loads(attrs["history"])[0]["likelihood_loss"])


@pytest.mark.usefixtures("no_finish")
def test_many_rejected_stars_are_warned_of(demo_model, tmp_path, capsys):
    stages = [stage("stars", reject_sigma=0.1)]
    recipe = write_recipe(tmp_path / "recipe.toml", stages=stages)
    assert run_train(demo_model.training_data, tmp_path / "model", recipe=recipe) == 0
    assert "were rejected: the model does not fit them yet" in capsys.readouterr().err


def test_default_recipe_is_that_of_the_project():
    args = train.parse_args(["-i", "a.h5", "-o", "b"])
    assert read_recipe(args.recipe).stages
    assert args.recipe.name == "recipe.toml"
