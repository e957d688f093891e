"""Step 8 by its command line: a tiny model of demo stars, whole, interrupted and refused.

Training runs eagerly (see demo_model), but for the test that the compiled steps do the same.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import signal
from types import SimpleNamespace

import numpy as np
import pytest
from demo_model import ALL_GROUPS, RECIPE, quick, run_python, run_train
from helpers import assert_same_datasets, flip_bit, read_all, truncate
from scipy.special import logsumexp
from scipy.stats import norm

import train
import xp_utils
from fitting import catalogue, posterior, simulation
from fitting.catalogue import accuracy
from fitting.posterior import CURVATURE_ALONE
from fitting.star_solver import StarSolver
from fitting.training import Trainer
from pipeline.provenance import Status, output_state
from pipeline.read import ShardReader
from pipeline.write import ShardWriter

RESULTS = ("model.h5", "validation.h5")


# --- tools ----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def table(demo_model):
    """All datasets of the training data."""
    return read_all(demo_model.training_data)


def write_training_data(path, table, wavelengths=xp_utils.SAMPLE_WAVELENGTHS):
    n = len(table["gdr3_source_id"])
    with ShardWriter(path, n, "gdr3_source_id", {}) as writer:
        writer.write_table(table)
        if wavelengths is not None and "flux" in table:
            writer.set_attributes("flux", sample_wavelengths=wavelengths)
    return path


def write_recipe(path, **changes):
    path.write_text(json.dumps(RECIPE | changes))
    return path


def stage(name="first", **changes):
    return next(s for s in RECIPE["stages"] if s["name"] == name) | changes


def make_trainer(table, recipe=RECIPE):
    """A `Trainer` of a table's training and calibration stars."""
    training, calibration, _ = train.split_stars(table["gdr3_source_id"], recipe)
    return train.start_trainer(
        table, training, calibration, xp_utils.SAMPLE_WAVELENGTHS, recipe, None
    )


def snapshot(trainer):
    """{group of variables: their arrays}."""
    return {name: [v.numpy() for v in group] for name, group in trainer.groups.items()}


@pytest.fixture
def no_figures(monkeypatch):
    """Without the parts of `finish` that cost time and are tested on the whole model."""
    monkeypatch.setattr(train, "draw_figures", lambda *args: None)
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


def refused(capsys, status, *words):
    """The one line of a refusal, which holds the words."""
    message = capsys.readouterr().err
    assert status == 2
    assert "Traceback" not in message
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    for word in words:
        assert word in message
    return message


# --- what a training leaves -----------------------------------------------------------------
def test_all_files_are_written_and_whole(demo_model):
    folder = demo_model.model
    for name in (*RESULTS, "checkpoint.h5"):
        assert output_state(folder / name).status is not Status.PARTIAL
    ids = read_all(folder / "validation.h5")["gdr3_source_id"]
    listed = (folder / "validation_ids.txt").read_text().split()
    assert [int(word) for word in listed] == ids.tolist()
    assert len(ids) > 50
    figures = list(folder.glob("*.png"))
    assert len(figures) >= 7
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures)
    assert min(path.stat().st_size for path in figures) > 5000
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    with ShardReader(folder / "model.h5") as reader:
        assert json.loads(reader.attrs["recipe"]) == RECIPE
        assert demo_model.training_data.name in reader.attrs["inputs"]


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
        assert entry.get("steps_refused", 0) == 0
    losses = [h["likelihood_loss"] for h in history if h["stage"] == "first"]
    assert losses[-1] < losses[0]


def test_validation_scores_are_those_of_the_validation_file(demo_model):
    scores = json.loads((demo_model.model / "validation.json").read_text())
    found = read_all(demo_model.model / "validation.h5")
    residual = 1e3 * (found["stellar_params_est"] - np.pad(found["stellar_type"], ((0, 0), (0, 3))))
    assert scores["stars"] == scores["finite"] == len(residual)
    assert scores["all"]["Teff"]["offset"] == pytest.approx(np.median(residual[:, 0]), rel=1e-4)
    est, label = found["stellar_params_est"][:, 0], found["stellar_type"][:, 0]
    assert np.corrcoef(est, label)[0, 1] > 0.5  # it learned something


def test_direct_estimate_is_pooled_and_the_forward_model_alone_is_told_too(demo_model):
    with ShardReader(demo_model.model / "model.h5") as reader:
        weights = reader.read("pool_weights")
    assert (weights > 0).all()
    columns = read_all(demo_model.model / "validation.h5")
    assert (columns["stellar_params_est"] != columns["model_params_est"]).any(1).all()
    scores = json.loads((demo_model.model / "validation.json").read_text())
    for name, found in (("model", scores["forward model alone"]), ("stellar", scores)):
        expected = accuracy(
            columns[f"{name}_params_est"],
            columns[f"{name}_params_err"],
            columns["stellar_type"],
            columns["stellar_type_err"],
        )
        for label in ("Teff", "[Fe/H]", "log g"):
            assert found["all"][label] == pytest.approx(expected["all"][label]), (name, label)


def test_confidences_are_fitted_with_and_without_parallaxes(demo_model):
    with ShardReader(demo_model.model / "model.h5") as reader:
        mean, scale = reader.read("confidence_mean"), reader.read("confidence_scale")
    has_parallax = 14  # its place among `catalogue.confidence_features`
    assert mean[has_parallax] == pytest.approx(0.5, abs=0.03)
    assert scale[has_parallax] == pytest.approx(0.5, abs=0.03)


def test_without_a_direct_stage_the_catalogue_is_the_forward_model_alone(table):
    trainer = make_trainer(table, RECIPE | {"stages": RECIPE["stages"][:1]})
    assert trainer.model.direct is None
    rows = np.arange(60)
    with quick():
        solver = StarSolver(trainer.model)
        trained = train.trained_model(trainer, solver, table, rows)
        found = train.infer_stars(trained, solver, table, rows)
    np.testing.assert_array_equal(trained.pool_weights, [1, 0])
    np.testing.assert_array_equal(found["stellar_params_est"], found["model_params_est"])
    np.testing.assert_array_equal(found["stellar_params_err"], found["model_params_err"])


def test_few_calibration_stars_leave_the_forward_model_alone(table, monkeypatch):
    trainer = make_trainer(table)
    monkeypatch.setattr(train, "fit_error_factors", lambda *args: CURVATURE_ALONE)
    monkeypatch.setattr(train, "fit_confidences", lambda *args: None)
    fitted = []
    monkeypatch.setattr(train, "fit_pool", lambda *args: fitted.append(1) or np.array([0.5, 0.5]))
    for n, expected in ((train.MIN_POOL_STARS - 1, [1, 0]), (train.MIN_POOL_STARS, [0.5, 0.5])):
        found = train.trained_model(trainer, None, table, np.arange(n)).pool_weights
        np.testing.assert_array_equal(found, expected)
    assert len(fitted) == 1


def test_direct_inputs_in_training_hide_and_blur_as_told(table):
    trainer = make_trainer(table, RECIPE | {"hide_photometry": 0.2})
    rows, n_wl = np.arange(len(trainer.stars)), 66
    one = stage(kind="direct", hide_parallax=0.5)
    hidden, twomass = [], []
    for seed in range(20):
        inputs = trainer._direct_inputs(rows, one, np.random.default_rng(seed))
        hidden.append(1 - inputs[:, -1].mean())
        twomass.append(
            1
            - np.isfinite(inputs[:, n_wl - 5]).mean()
            / (trainer.observed.used[:, n_wl - 5] > 0).mean()
        )
        sharp = np.log(trainer.stars.plx_err / trainer.stars.plx)
        shown = np.isfinite(inputs[:, n_wl + 2])
        blurred = inputs[shown, n_wl + 2] > np.minimum(sharp, 0)[shown] + 1e-3
        assert 0.15 < blurred.mean() < 0.45
    assert np.mean(hidden) == pytest.approx(0.5, abs=0.03)
    assert np.mean(twomass) == pytest.approx(0.2, abs=0.03)


def test_saved_model_predicts_what_the_trained_model_predicts(demo_model):
    import tensorflow as tf

    from model import FluxModel

    saved = tf.saved_model.load(str(demo_model.model / "saved_model"))
    model = FluxModel.from_arrays(read_all(demo_model.model / "model.h5"))
    theta = np.array([[4.8, -0.2, 2.5], [5.8, 0.0, 4.4]], "f4")
    xi, ext, plx = (np.array(pair, "f4") for pair in ([0.5, -1], [0.3, 0.1], [0.5, 2]))
    expected = model.flux(model.standardise(theta), xi, ext, np.log(plx)).numpy()
    np.testing.assert_allclose(saved.predict_obs_flux(theta, xi, ext, plx), expected, rtol=1e-5)
    np.testing.assert_allclose(saved._sample_wavelengths, xp_utils.SAMPLE_WAVELENGTHS)


# --- which stars are used -------------------------------------------------------------------
def test_side_of_a_star_depends_on_its_id_alone():
    ids = np.random.default_rng(0).integers(0, 2**62, 20000)
    sides = np.zeros(len(ids), int)
    for side, rows in enumerate(train.split_stars(ids, RECIPE)):
        sides[rows] = side
    fractions = np.bincount(sides) / len(ids)
    np.testing.assert_allclose(fractions, [0.6, 0.2, 0.2], atol=0.01)
    some = np.random.default_rng(1).permutation(len(ids))[:500]
    for side, rows in enumerate(train.split_stars(ids[some], RECIPE)):
        assert (sides[some][rows] == side).all()


def test_sides_do_not_follow_the_patches_of_the_sky():
    neighbours = (123456 << 43) + 128 * np.arange(5000)  # of one HEALPix pixel
    shares = [len(rows) for rows in train.split_stars(neighbours, RECIPE)]
    np.testing.assert_allclose(np.divide(shares, 5000), [0.6, 0.2, 0.2], atol=0.03)


def test_held_out_stars_do_not_enter_the_training(demo_model, table, tmp_path, monkeypatch):
    ids = table["gdr3_source_id"]
    training, calibration, held_out = train.split_stars(ids, RECIPE)
    rng = np.random.default_rng(5)
    spoiled = {name: values.copy() for name, values in table.items()}
    monkeypatch.setattr(train, "finish", lambda *args: None)
    checkpoints = []
    for rows in (held_out, calibration):
        spoiled["stellar_type"][rows] = rng.uniform(-99, 99, (len(rows), 3))
        spoiled["flux"][rows] *= 1e3
        spoiled["stellar_ext"][rows] = np.nan
        path = write_training_data(tmp_path / f"spoiled{len(rows)}.h5", spoiled)
        folder = tmp_path / f"model{len(rows)}"
        assert run_train(path, folder, recipe=demo_model.recipe) == 0
        checkpoints.append(read_all(folder / "checkpoint.h5"))
    assert_same_datasets(
        demo_model.model / "checkpoint.h5", tmp_path / f"model{len(held_out)}/checkpoint.h5"
    )
    changed = {
        name
        for name in checkpoints[0]
        if not np.array_equal(*(c[name] for c in checkpoints), equal_nan=True)
    }
    assert changed == {"noise_ln_level", "noise_ln_nu", "fitted_type", "rejected"}
    for name in ("fitted_type", "rejected"):  # of the calibration stars, which come last
        np.testing.assert_array_equal(*(c[name][: len(training)] for c in checkpoints))
    assert len(training) + len(calibration) + len(held_out) == len(ids)


def test_stars_of_unknown_extinction_are_trained_on(table):
    n = len(table["stellar_ext"])
    unknown = {k: v.copy() for k, v in table.items()}
    unknown["stellar_ext"][::4] = np.nan
    unknown["stellar_ext_err"][1::4] = np.nan
    unknown["stellar_ext_err"][2::4] = np.inf
    unknown["stellar_ext"][3::8] = np.nan
    unknown["stellar_ext_err"][3::8] = np.inf
    stages = [stage(steps=3, select={}), stage("stars"), stage("posterior", steps=1)]
    with quick():
        trainer = make_trainer(unknown, RECIPE | {"stages": stages})
        while trainer.stage < len(stages):
            trainer.run_epoch()
    chosen = [trainer.selected({"kind": kind}) for kind in ("likelihood", "calibration")]
    assert sum(map(len, chosen)) + trainer.rejected.sum() == len(trainer.stars) < n
    assert trainer.calibration[chosen[1]].all()
    assert not trainer.calibration[chosen[0]].any()
    assert not trainer.rejected.all()
    for entry in trainer.history:
        assert entry.get("steps_refused", 0) == 0
        assert np.isfinite([v for v in entry.values() if not isinstance(v, str)]).all()
    for group in snapshot(trainer).values():
        assert all(np.isfinite(values).all() for values in group)


def test_stars_with_wrong_labels_are_rejected_and_the_others_kept(demo_model, table):
    from model import ln_flux_data

    trainer = make_trainer(table)
    trainer.restore(*train.read_arrays(demo_model.model / "checkpoint.h5"))
    stars, n = trainer.stars, len(trainer.stars)
    rng = np.random.default_rng(3)
    with quick():  # stars as the model has them, with 1% of noise
        ln_flux = (
            trainer.model.flux.ln_flux(trainer.z).numpy()
            - trainer.ext[:, None] * np.exp(trainer.model.flux.ln_ext_curve.numpy())
            + 2 * trainer.ln_plx[:, None]
        )
        stars.flux = np.exp(ln_flux + 0.01 * rng.normal(size=ln_flux.shape)).astype("f4")
        stars.flux_err = (0.01 * stars.flux).astype("f4")
        trainer.observed = ln_flux_data(stars.flux, stars.flux_err)
        order = np.argsort(stars.theta[:, 0])
        order = order[~trainer.calibration[order]]
        swapped = np.concatenate([order[:10], order[-10:]])
        stars.theta[swapped] = stars.theta[swapped[::-1]]
        trainer.z[swapped] = trainer.z[swapped[::-1]]
        trainer.rejected = np.zeros(n, bool)
        trainer._fit_stars(stage("stars", reject_sigma=6.0, reject_chi2_factor=6.0))
    assert trainer.rejected[swapped].all()
    assert trainer.rejected.sum() <= len(swapped) + 0.05 * n
    rows = trainer.selected(stage(select={}))
    assert not np.isin(swapped, rows).any()


# --- which variables are trained ------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "trained"),
    [
        ("likelihood", ["network"]),
        ("likelihood", ["extinction_xi", "noise"]),
        ("posterior", ["extinction"]),
        ("posterior", ALL_GROUPS),
        ("calibration", ["noise_level"]),
        ("direct", ["direct"]),
    ],
)
def test_stage_trains_every_variable_of_its_groups_and_no_other(table, kind, trained):
    one = stage(kind=kind, steps=1, batch_size=10**4, train=trained, select={})
    with quick():
        trainer = make_trainer(table, RECIPE | {"stages": [one]})
        before = snapshot(trainer)
        trainer.run_epoch()
    after = snapshot(trainer)
    for group in trainer.groups:
        for old, new, variable in zip(
            before[group], after[group], trainer.groups[group], strict=True
        ):
            assert np.array_equal(old, new) == (group not in trained), variable.name
    flux, noise = trainer.model.flux, trainer.model.noise
    direct = trainer.model.direct.variables if kind == "direct" else ()
    assert len(trainer.variables) == len(flux.variables) + len(noise.variables) + len(direct)


def test_compiled_step_is_the_eager_step(table):
    trainers = [make_trainer(table, RECIPE | {"stages": [stage()]}) for _ in range(2)]
    batch = trainers[0]._batch(np.arange(64), stage(), np.random.default_rng(0))
    pace = np.float32(1), np.float32(1e-3)
    with quick():
        eager = trainers[0]._make_step(stage(train=ALL_GROUPS))(batch, *pace)
    compiled = trainers[1]._make_step(stage(train=ALL_GROUPS))(batch, *pace)
    assert compiled[1]
    np.testing.assert_allclose(compiled[0]["likelihood"], eager[0]["likelihood"], rtol=1e-4)
    for one, other in zip(*(trainer.moments for trainer in trainers), strict=True):
        scale = np.abs(one[0].numpy()).max()
        np.testing.assert_allclose(other[0].numpy(), one[0].numpy(), atol=2e-3 * scale)


@pytest.mark.parametrize(("kind", "group"), [("likelihood", "noise"), ("direct", "direct")])
def test_weight_decay_shrinks_matrices_alone(table, kind, group):
    trainers = []
    for decay in (0.0, 0.5):
        one = stage(
            kind=kind, steps=1, batch_size=10**4, train=[group], select={}, weight_decay=decay
        )
        trainers.append(make_trainer(table, RECIPE | {"stages": [one]}))
    before = [v.numpy() for v in trainers[0].groups[group]]
    with quick():
        for trainer in trainers:
            trainer.run_epoch()
    rate = trainers[0].history[0]["learning_rate"]
    for old, plain, shrunk in zip(before, *(t.groups[group] for t in trainers), strict=True):
        bias = "_b" in plain.name or plain.shape.rank < 2
        expected = plain.numpy() - (0 if bias else rate * 0.5 * old)
        np.testing.assert_allclose(shrunk.numpy(), expected, atol=1e-6, err_msg=plain.name)


@pytest.mark.parametrize(
    ("kind", "groups"),
    [
        ("posterior", ["network", "extinction", "extinction_xi", "noise", "noise_level"]),
        (
            "likelihood",
            ["extinction", "extinction_xi", "noise"],
        ),  # dF/dtheta is held in the network's
        ("direct", ["direct"]),
    ],
)
def test_gradients_of_the_losses_are_those_of_differences(table, kind, groups):
    import tensorflow as tf

    step = 1e-3
    trainer = make_trainer(table)
    trainer.model.noise.base.assign_add(tf.random.stateless_normal([2211], [0, 1], stddev=0.05))
    rng = np.random.default_rng(2)
    batch = trainer._batch(np.arange(48), stage(kind=kind), rng)
    loss = getattr(trainer, f"{kind}_loss")
    for group in groups:
        variables = trainer.groups[group]
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(loss(batch))
        slopes = tape.gradient(value, variables)
        norm = float(tf.linalg.global_norm(slopes))
        ends = []
        for sign in (1, -2):  # a small step along the gradient, and one back
            for v, slope in zip(variables, slopes, strict=True):
                v.assign_add(sign * step / norm * slope)
            ends.append(float(tf.reduce_sum(loss(batch))))
        for v, slope in zip(variables, slopes, strict=True):
            v.assign_add(step / norm * slope)
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(norm, rel=0.03), group


@pytest.mark.parametrize("kind", ["posterior", "calibration"])
def test_posterior_loss_is_that_of_gaussians_written_out(table, kind):
    """Nuisances (and, to calibrate, the label's errors) added to the covariance, star by star."""
    trainer = make_trainer(table)
    flux, noise = trainer.model.flux, trainer.model.noise
    batch = trainer._batch(np.arange(24), stage(kind=kind), np.random.default_rng(4))
    batch["candidates"] = batch["z"][:, None] + 0.3 * (batch["candidates"] - batch["z"][:, None])
    whitening, _ = noise.whitening(
        batch["z_noise"],
        np.maximum(batch["ext"], 0.02),
        batch["rel_err"],
        batch["used"],
        batch["features"],
    )
    curve, slope = (x.numpy().astype("f8") for x in flux.ext_curve(np.zeros(24, "f4")))
    _, dz = (x.numpy().astype("f8") for x in flux.ln_flux_and_jacobian(batch["z_noise"]))
    nu, expected = float(noise.nu), []
    for i in range(24):
        seen = batch["used"][i] > 0
        precision = whitening[i].numpy().astype("f8").T @ whitening[i].numpy()
        nuisances = [
            3 * curve[i],
            2 * batch["ln_plx_err"][i] * np.ones(66),
            max(batch["ext"][i], 0.02) * curve[i] * slope[i],
        ]
        if kind == "calibration":
            nuisances += list(dz[i] * trainer.z_err[i][:, None])
        columns = np.stack(nuisances, 1)[seen]
        covariance = np.linalg.inv(precision[np.ix_(seen, seen)])
        total = np.linalg.inv(covariance + columns @ columns.T)
        ln_flux = flux.ln_flux(batch["candidates"][i]).numpy().astype("f8")
        residual = (batch["value"][i] - ln_flux - 2 * batch["ln_plx"][i])[:, seen]
        chi2 = np.einsum("ci,ij,cj->c", residual, total, residual)
        ext = -residual @ total @ columns[:, 0]  # of E / 3, whose column is -curve
        width = np.sqrt(1 - columns[:, 0] @ total @ columns[:, 0])
        ln_p = (
            trainer.model.prior.ln_density_z(batch["candidates"][i]).numpy()
            + norm.logcdf(ext / width)
            - (nu + seen.sum()) / 2 * np.log1p(chi2 / nu)
        )
        expected.append(logsumexp(ln_p) - ln_p[0])
    expected = np.array(expected)
    limit = 6.0
    expected = np.where(
        expected < limit, expected, limit * (1 + np.log(np.maximum(expected / limit, 1)))
    )
    np.testing.assert_allclose(trainer.posterior_loss(batch), expected, rtol=2e-2, atol=2e-2)
    assert ("label_err" in batch) == (kind == "calibration")


def test_error_factors_make_up_for_errors_that_are_wrong(table, monkeypatch):
    """Errors of half the size need factors of twice the size."""
    trainer, whole, factors = make_trainer(table), catalogue.widened, []

    def wrong(size):
        def widened(*args):
            out = whole(*args)
            return dataclasses.replace(out, hessian=out.hessian / size**2)

        return widened

    with quick():
        solver = StarSolver(trainer.model)
        for size in (1.0, 0.5):
            monkeypatch.setattr(catalogue, "widened", wrong(size))
            trained = train.trained_model(trainer, solver, table, np.arange(0))
            factors.append(trained.error_factors)
    assert factors[0].shape == (2, 6)
    np.testing.assert_allclose(factors[1], 2 * factors[0], rtol=1e-3)


def test_the_first_error_factors_are_of_stars_with_a_parallax(table, monkeypatch):
    """So `posterior.widened` takes them."""
    trainer, asked = make_trainer(table), []
    whole, needed = simulation.simulate, itertools.count(1)

    def simulate(model, hosts, n, with_parallax, rng):
        asked.append(with_parallax)
        return whole(model, hosts, n, with_parallax, rng)

    monkeypatch.setattr(simulation, "simulate", simulate)
    monkeypatch.setattr(posterior, "needed_error_factors", lambda *args: np.full(6, next(needed)))
    with quick():
        trained = train.trained_model(trainer, StarSolver(trainer.model), table, np.arange(0))
    assert asked == [True, False]
    np.testing.assert_array_equal(trained.error_factors, np.repeat([[1.0], [2.0]], 6, 1))


# --- interruptions --------------------------------------------------------------------------
KILLED = """
import train
from fitting import training
whole = training.Trainer._batch
def batch(self, rows, stage, rng):
    if self.stage == 0 and self.epoch == 1:  # in the second epoch of the first stage
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, rows, stage, rng)
training.Trainer._batch = batch
with quick():
    train.main(sys.argv[1:])
"""


def test_training_killed_and_interrupted_gives_the_same_model(
    demo_model, tmp_path, monkeypatch, no_figures
):
    data, recipe = demo_model.training_data, demo_model.recipe
    killed = run_python(KILLED, "-i", data, "-o", tmp_path, "--recipe", recipe, "--threads", 1)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    places = [
        (Trainer, "_fit_stars", 1),
        (Trainer, "_batch", 4),  # in the second epoch of the posterior stage
        (train, "trained_model", 1),  # all is trained
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
    assert re.findall("stars; at (.*)", log) == [
        f"stage {stage}, epoch {epoch}"
        for stage, epoch in ((0, 0), (0, 1), (2, 0), (3, epoch_of_fourth_batch(demo_model)), (6, 0))
    ]


def epoch_of_fourth_batch(demo_model):
    """Of the posterior stage, which the rejection of stars leaves with few batches an epoch."""
    history = json.loads((demo_model.model / "history.json").read_text())
    size = RECIPE["stages"][3]["batch_size"]
    stars = next(h["stars"] for h in history if h["stage"] == "posterior")
    return 3 // (stars // min(size, stars))


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
    args, former = SimpleNamespace(output=tmp_path), ({}, {"stage": len(RECIPE["stages"])})
    assert not train.is_trained(args, RECIPE, former)
    (tmp_path / "model.h5").write_bytes((demo_model.model / "model.h5").read_bytes())
    assert train.is_trained(args, RECIPE, former)
    assert not train.is_trained(args, RECIPE, ({}, {"stage": 1}))
    assert not train.is_trained(args, RECIPE, None)
    truncate(tmp_path / "model.h5")
    assert not train.is_trained(args, RECIPE, former)


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
    refused(capsys, status, "checkpoint.h5", "--resume", "--overwrite")
    (begun / "checkpoint.h5").rename(begun / "model.h5")
    status = run_train(demo_model.training_data, begun, recipe=demo_model.recipe)
    refused(capsys, status, "model.h5", "--overwrite")
    status = run_train(demo_model.training_data, begun, "--resume", recipe=demo_model.recipe)
    refused(capsys, status, "model.h5", "--overwrite")


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


def test_other_recipe_or_data_cannot_go_on_with_a_checkpoint(
    demo_model, table, begun, tmp_path, capsys
):
    other = write_recipe(tmp_path / "other.json", seed=1)
    status = run_train(demo_model.training_data, begun, "--resume", recipe=other)
    refused(capsys, status, "checkpoint.h5", "another recipe")
    changed = {k: v.copy() for k, v in table.items()}
    changed["plx"][0] *= 1.001
    data = write_training_data(tmp_path / "other.h5", changed)
    status = run_train(data, begun, "--resume", recipe=demo_model.recipe)
    refused(capsys, status, "checkpoint.h5", "other training data")


@pytest.mark.parametrize(
    "damage",
    [truncate, lambda path: path.write_bytes(b""), lambda path: flip_bit(path, "moment0_0")],
)
def test_damaged_checkpoint_is_refused(demo_model, begun, damage, capsys):
    damage(begun / "checkpoint.h5")
    status = run_train(demo_model.training_data, begun, "--resume", recipe=demo_model.recipe)
    refused(capsys, status, "checkpoint.h5", "--overwrite")


def test_checkpoint_of_another_version_is_refused(demo_model, begun, capsys):
    arrays, attrs = train.read_arrays(begun / "checkpoint.h5")
    del arrays["rejected"]
    kept = {name: attrs[name] for name in ("settings", "stage", "epoch", "history")}
    train.write_arrays(begun / "checkpoint.h5", arrays, {}, **kept)
    status = run_train(demo_model.training_data, begun, "--resume", recipe=demo_model.recipe)
    refused(capsys, status, "rejected", "--overwrite")


# --- recipes --------------------------------------------------------------------------------
def test_own_recipe_is_usable():
    assert train.read_recipe(train.DEFAULT_RECIPE)["stages"]


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (None, "No such file"),
        ("{not json", "Expecting property name"),
        ("[1, 2]", "list in its place"),
        ("7", "int in its place"),
        (RECIPE | {"hiden": 3}, "hiden"),
        ({k: v for k, v in RECIPE.items() if k != "seed"}, "seed"),
        (RECIPE | {"hidden": "many"}, "hidden is 'many'"),
        (RECIPE | {"hidden": 0}, "hidden is 0"),
        (RECIPE | {"hide_bp": float("nan")}, "hide_bp is nan"),
        (RECIPE | {"validation_fraction": 20}, "validation_fraction is 20"),
        (RECIPE | {"stages": []}, "at least one stage"),
        (RECIPE | {"stages": ["first"]}, "'first'"),
        (RECIPE | {"stages": [stage(kind="liklihood")]}, "kind 'liklihood'; known: calib"),
        (RECIPE | {"stages": [stage(kind=["stars"])]}, "kind ['stars']"),
        (RECIPE | {"stages": [stage(rate=2)]}, "stage first: unknown or missing: rate"),
        (RECIPE | {"stages": [{"name": "a", "kind": "stars"}]}, "reject_sigma"),
        (RECIPE | {"stages": [stage(train=["netwrk"])]}, "netwrk"),
        (RECIPE | {"stages": [stage(train=[])]}, "train is []"),
        (RECIPE | {"stages": [stage(train=3)]}, "recipe"),
        (RECIPE | {"stages": [stage(select={"max_teff": 1})]}, "select: unknown or missing: max_t"),
        (RECIPE | {"stages": [stage(select={"min_ext": "low"})]}, "min_ext is 'low'"),
        (RECIPE | {"stages": [stage(train=["network", "direct"])]}, "stage of kind direct trains"),
        (RECIPE | {"stages": [stage(kind="direct")]}, "stage of kind direct trains"),
        (RECIPE | {"stages": [stage(hide_parallax=2)]}, "hide_parallax is 2"),
        (RECIPE | {"stages": [stage(steps=0)]}, "steps is 0"),
        (RECIPE | {"stages": [stage(batch_size=6.5)]}, "batch_size is 6.5; an integer"),
    ],
)
def test_unusable_recipe_is_refused_before_training(demo_model, tmp_path, recipe, words, capsys):
    path = tmp_path / "recipe.json"
    if recipe is not None:
        path.write_text(recipe if isinstance(recipe, str) else json.dumps(recipe))
    status = run_train(demo_model.training_data, tmp_path / "model", recipe=path)
    refused(capsys, status, "recipe.json", words)
    assert not (tmp_path / "model").exists()


# --- training data --------------------------------------------------------------------------
def without(name):
    def change(table):
        del table[name]

    return change


def with_value(name, row, value):
    def change(table):
        table[name][row] = value

    return change


def with_shape(name, shape):
    def change(table):
        table[name] = np.ones((len(table["plx"]), *shape), "f4")

    return change


def with_text(table):
    table["plx"] = table["plx"].astype("S8")


def constant(table):
    table["stellar_type"][:, 1] = 0.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *(
            (without(name), f"no dataset {name}")
            for name in (*train.OBSERVED, *train.LABELS, *train.EXTINCTION)
        ),
        (with_value("stellar_type", 7, np.nan), "stellar_type is not finite for 1 of 400 stars"),
        (with_value("stellar_type_err", (7, 1), np.nan), "e.g. row 7"),
        (with_value("stellar_type_err", (7, 1), 0.0), "type_err is not finite and positive"),
        (with_value("plx", slice(3, 5), -0.1), "plx is not finite and positive for 2 of 400"),
        (with_value("plx_err", 3, np.inf), "plx_err is not finite and positive for 1 of 400"),
        (with_shape("flux_err", (61,)), "flux_err is float32 of shape (400, 61)"),
        (with_shape("stellar_type", (2,)), "stellar_type is float32 of shape (400, 2)"),
        (with_shape("plx", (1,)), "plx is float32 of shape (400, 1)"),
        (with_text, "plx is |S8"),
        (with_value("gdr3_source_id", slice(0, 3), 5), "2 repeated ids, the first is 5"),
        (constant, "the same Teff, [Fe/H] or log g"),
    ],
)
def test_unusable_training_data_are_refused(demo_model, table, tmp_path, change, words, capsys):
    changed = {k: v.copy() for k, v in table.items()}
    change(changed)
    path = write_training_data(tmp_path / "data.h5", changed)
    status = run_train(path, tmp_path / "model", recipe=demo_model.recipe)
    refused(capsys, status, "data.h5", words)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("wavelengths", "words"),
    [
        (None, "no attribute sample_wavelengths"),
        (xp_utils.SAMPLE_WAVELENGTHS[:61], "61 sample_wavelengths"),
        (xp_utils.SAMPLE_WAVELENGTHS + 5, "66 sample_wavelengths that are not"),
    ],
)
def test_other_wavelengths_are_refused(demo_model, table, tmp_path, wavelengths, words, capsys):
    path = write_training_data(tmp_path / "data.h5", table, wavelengths)
    status = run_train(path, tmp_path / "model", recipe=demo_model.recipe)
    refused(capsys, status, "data.h5: flux has", words)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (os.unlink, "not found"),
        (truncate, "not a readable HDF5 file"),
        (lambda path: os.truncate(path, 0), "empty file (0 bytes)"),
        (lambda path: flip_bit(path, "flux"), "dataset flux, rows 0 to"),
    ],
)
def test_damaged_training_data_are_named(demo_model, table, tmp_path, damage, words, capsys):
    path = write_training_data(tmp_path / "data.h5", table)
    damage(path)
    status = run_train(path, tmp_path / "model", recipe=demo_model.recipe)
    refused(capsys, status, "data.h5", words)


@pytest.mark.parametrize("n", [0, 1, 200])
def test_too_few_stars_are_refused(demo_model, table, tmp_path, n, capsys):
    path = write_training_data(tmp_path / "few.h5", {k: v[:n] for k, v in table.items()})
    status = run_train(path, tmp_path / "model", recipe=demo_model.recipe)
    refused(capsys, status, "few.h5", "at least 200")


def test_output_that_is_a_file_is_refused(demo_model, tmp_path, capsys):
    (tmp_path / "model").write_text("mine")
    status = run_train(demo_model.training_data, tmp_path / "model", recipe=demo_model.recipe)
    refused(capsys, status, str(tmp_path / "model"))
    assert (tmp_path / "model").read_text() == "mine"


# --- unusual trainings ----------------------------------------------------------------------
def test_few_validation_stars_no_calibration_and_a_single_stage_will_do(
    demo_model, table, tmp_path
):
    """Also without the stage that fits the stars, which a figure shows."""
    held = train.hash_fraction(table["gdr3_source_id"])
    recipe = write_recipe(
        tmp_path / "recipe.json",
        calibration_fraction=0,
        validation_fraction=float(np.sort(held)[:2].mean()),
        stages=[stage(steps=1)],
    )
    assert run_train(demo_model.training_data, tmp_path / "model", recipe=recipe) == 0
    assert len(read_all(tmp_path / "model/validation.h5")["gdr3_source_id"]) == 1
    assert read_all(tmp_path / "model/model.h5")["confidence_weight"].any() == np.False_


def test_stage_without_stars_is_skipped_and_said(demo_model, tmp_path, monkeypatch, capsys):
    stages = [stage(select={"min_ext": 99}), stage(steps=1)]
    recipe = write_recipe(tmp_path / "recipe.json", stages=stages)
    monkeypatch.setattr(train, "finish", lambda *args: None)
    assert run_train(demo_model.training_data, tmp_path / "model", recipe=recipe) == 0
    assert "stage first: skipped: only 0 stars are left" in capsys.readouterr().err


def test_step_without_a_finite_gradient_is_refused_and_said(
    demo_model, tmp_path, monkeypatch, capsys
):
    whole = Trainer._batch
    calls = []

    def batch(self, rows, stage, rng):
        calls.append(whole(self, rows, stage, rng))
        if len(calls) == 2:
            calls[-1]["value"][0, 0] = np.nan
        return calls[-1]

    monkeypatch.setattr(Trainer, "_batch", batch)
    monkeypatch.setattr(train, "finish", lambda *args: None)
    recipe = write_recipe(tmp_path / "recipe.json", stages=[stage(steps=3)])
    assert run_train(demo_model.training_data, tmp_path / "model", recipe=recipe) == 0
    assert "1 steps were refused" in capsys.readouterr().err
    for name, values in read_all(tmp_path / "model/checkpoint.h5").items():
        assert name == "fitted_type" or np.isfinite(values).all(), name
    history = json.loads(train.read_arrays(tmp_path / "model/checkpoint.h5")[1]["history"])
    assert np.isfinite(history[0]["likelihood_loss"])
