"""The trainer: where it starts, what a stage changes, which stars it rejects; arrays in and out."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf
from demo_model import ALL_GROUPS, quick, stage
from model_case import CHANNELS, DIRECT_ALPHA, LABEL_SETS, N_WL, WISE, make_model, replaced
from training_case import N, labelled, make_trainer, stage_of

from fitting import training
from fitting.batches import TrainingStars
from fitting.recipe import GROUPS, OWN_GROUPS, make_stage
from fitting.training import MIN_BASIS_SIZE, XI_SLOPE, _learning_rate, spectrum_basis
from model import initial_ln_ext_curve

LABELS = {"4": LABEL_SETS[4], "direct": DIRECT_ALPHA}
CURVE = np.exp(initial_ln_ext_curve(CHANNELS.wavelengths))


@pytest.fixture(scope="module")
def stars():
    return labelled(make_model())


@pytest.fixture(scope="module")
def direct_stars():
    """Of a label that the direct estimate alone gives, too."""
    return labelled(make_model(DIRECT_ALPHA))


def snapshot(trainer):
    """{group of variables: their arrays}."""
    return {name: [v.numpy() for v in group] for name, group in trainer.groups.items()}


def run_all(trainer):
    while trainer.stage < len(trainer.recipe.stages):
        trainer.run_epoch()


# ---- the start -------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_training_starts_at_the_median_spectrum_of_its_stars(labels):
    stars = labelled(make_model(labels))
    model = make_trainer(labels, stars).model
    rows, data = stars.training, stars.data
    theta = data.theta[rows]
    np.testing.assert_allclose(model.label_mean, theta.mean(0), rtol=1e-5)
    np.testing.assert_allclose(model.label_scale, theta.std(0), rtol=1e-4)
    forward = model.is_forward
    np.testing.assert_allclose(model.flux.theta_mean, model.label_mean[forward], rtol=1e-6)
    assert model.flux.n_labels == model.noise.n_labels == model.prior.n_labels == forward.sum()
    assert model.direct.biases[-1].shape[2] == 2 * len(labels)
    shown = make_trainer(labels, stars, faint_share=0.0, hide_bp=0.0, hide_rp=0.0).model
    at_kpc = stars.data.observed.features[rows, 0] - 2 * np.log(data.parallax[rows])
    found = shown.distance_mean, shown.distance_scale
    np.testing.assert_allclose(found, (at_kpc.mean(), at_kpc.std()), rtol=1e-3)
    ext = np.where(np.isfinite(data.extinction[rows]), data.extinction[rows], 0.1)
    intrinsic = stars.data.observed.value[rows] + ext[:, None] * CURVE
    intrinsic -= 2 * np.log(data.parallax[rows])[:, None]
    found = model.flux.ln_flux(np.zeros((1, int(forward.sum())), "f4"))[0]
    np.testing.assert_allclose(found, np.median(intrinsic, 0), atol=0.15)
    np.testing.assert_allclose(np.exp(model.flux.ln_ext_curve), CURVE, rtol=1e-5)


def test_extinction_curve_starts_with_a_variation_with_xi_but_in_the_infrared(stars):
    slope = make_trainer(stars=stars).model.flux.ln_ext_curve_xi.numpy()
    expected = XI_SLOPE * np.log(CHANNELS.wavelengths / 550)
    expected[WISE] = 0
    np.testing.assert_allclose(slope, expected, atol=1e-6)


def test_outputs_have_brightness_and_dust_apart_and_the_size_of_what_they_span():
    rng = np.random.default_rng(0)
    smooth = np.cos(np.arange(4)[:, None] * np.log(CHANNELS.wavelengths / 550))
    spectra = 3 + rng.normal(size=(300, 4)) * [0.5, 0.3, 0.1, 0.02] @ smooth
    spectra[rng.random(spectra.shape) < 0.1] = np.nan
    spectra[:, 7] = np.nan  # a flux that no star has
    mean, basis = spectrum_basis(spectra, CURVE)
    np.testing.assert_allclose(np.delete(mean, 7), np.nanmedian(np.delete(spectra, 7, 1), 0))
    assert np.isfinite(mean).all()
    size = np.linalg.norm(basis, axis=1)
    unit = basis / size[:, None]
    np.testing.assert_allclose(unit @ unit.T, np.eye(N_WL), atol=1e-8)
    soft = np.stack([np.ones(N_WL), CURVE])
    np.testing.assert_allclose(soft @ unit[2:].T, 0, atol=1e-8)  # the first two span them
    assert (size >= MIN_BASIS_SIZE * (1 - 1e-9)).all()
    assert size[2] == size[2:].max()
    assert size[2] > 10 * MIN_BASIS_SIZE


# ---- what a stage changes --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "trained"),
    [
        ("likelihood", ["network"]),
        ("likelihood", ["extinction_xi", "noise"]),
        ("posterior", ["extinction"]),
        ("posterior", ALL_GROUPS),
        ("calibration", ["noise_level"]),
        *((kind, [kind]) for kind in OWN_GROUPS),
    ],
)
def test_stage_trains_every_variable_of_its_groups_and_no_other(direct_stars, kind, trained):
    one = stage(kind=kind, steps=1, batch_size=10**4, train=trained, select={})
    with quick():
        trainer = make_trainer(DIRECT_ALPHA, direct_stars, stages=[one])
        before = snapshot(trainer)
        trainer.run_epoch()
    after = snapshot(trainer)
    assert trainer.groups.keys() == set(GROUPS)
    for group in trainer.groups:
        for old, new, variable in zip(
            before[group], after[group], trainer.groups[group], strict=True
        ):
            assert np.array_equal(old, new) == (group not in trained), variable.name
    flux, noise = trainer.model.flux, trainer.model.noise
    own = getattr(trainer.model, kind).variables if kind in OWN_GROUPS else ()
    assert len(trainer.variables) == len(flux.variables) + len(noise.variables) + len(own)
    assert [k for k in OWN_GROUPS if getattr(trainer.model, k)] == [kind] * (kind in OWN_GROUPS)


def test_compiled_step_is_the_eager_step(stars):
    one = stage(train=ALL_GROUPS, batch_size=64, select={})
    trainers = [make_trainer(stars=stars, stages=[one]) for _ in range(2)]
    made = make_stage(one)
    batch = trainers[0].batches.of(np.arange(64), made, np.random.default_rng(0))
    pace = np.float32(1), np.float32(1e-3)
    with quick():
        eager = trainers[0]._make_step(made)(batch, *pace)
    compiled = trainers[1]._make_step(made)(batch, *pace)
    assert compiled[1]
    np.testing.assert_allclose(compiled[0]["likelihood"], eager[0]["likelihood"], rtol=1e-4)
    for one, other in zip(*(trainer.moments for trainer in trainers), strict=True):
        scale = np.abs(one[0].numpy()).max()
        np.testing.assert_allclose(other[0].numpy(), one[0].numpy(), atol=2e-3 * scale)


@pytest.mark.parametrize(("kind", "group"), [("likelihood", "noise"), ("direct", "direct")])
def test_weight_decay_shrinks_matrices_alone(stars, kind, group):
    trainers = []
    for decay in (0.0, 0.5):
        one = stage(
            kind=kind, steps=1, batch_size=10**4, train=[group], select={}, weight_decay=decay
        )
        trainers.append(make_trainer(stars=stars, stages=[one]))
    before = [v.numpy() for v in trainers[0].groups[group]]
    with quick():
        for trainer in trainers:
            trainer.run_epoch()
    rate = trainers[0].history[0]["learning_rate"]
    for old, plain, shrunk in zip(before, *(t.groups[group] for t in trainers), strict=True):
        bias = "_b" in plain.name or plain.shape.rank < 2
        expected = plain.numpy() - (0 if bias else rate * 0.5 * old)
        np.testing.assert_allclose(shrunk.numpy(), expected, atol=1e-6, err_msg=plain.name)


def test_first_step_of_adam_moves_every_entry_by_the_learning_rate(stars):
    one = stage(steps=1, batch_size=10**4, train=["extinction"], select={})
    with quick():
        trainer = make_trainer(stars=stars, stages=[one])
        before = trainer.model.flux.ln_ext_curve.numpy()
        trainer.run_epoch()
    moved = np.abs(trainer.model.flux.ln_ext_curve.numpy() - before)
    np.testing.assert_allclose(moved, trainer.history[0]["learning_rate"], rtol=0.02)


def test_step_without_a_finite_gradient_leaves_everything_as_it_is(stars):
    one = stage(train=ALL_GROUPS, batch_size=64)
    with quick():
        trainer = make_trainer(stars=stars, stages=[one])
        batch = trainer.batches.of(np.arange(64), make_stage(one), np.random.default_rng(0))
        batch["value"][0, 0] = np.nan
        before = snapshot(trainer)
        _, sane = trainer._make_step(make_stage(one))(batch, np.float32(1), np.float32(1e-3))
    assert not sane
    for group, values in snapshot(trainer).items():
        for old, new in zip(before[group], values, strict=True):
            np.testing.assert_array_equal(old, new)
    assert all(np.isfinite(m.numpy()).all() for moments in trainer.moments for m in moments)


def test_learning_rate_warms_up_and_falls_to_a_thousandth(monkeypatch):
    monkeypatch.setattr(training, "WARM_UP_STEPS", 10)
    rates = np.array([_learning_rate(2.0, k + 1, 200) for k in range(200)])
    assert rates[0] == pytest.approx(0.2, rel=1e-3)
    assert rates.argmax() == 9
    assert (np.diff(rates[9:]) < 0).all()
    assert rates[-1] == pytest.approx(2e-3, rel=1e-6)


def test_plan_has_the_steps_asked_for_but_not_more_than_the_most_epochs(stars):
    trainer = make_trainer(stars=stars)
    n = len(stars.training)
    plans = {
        most: trainer.stage_plan(stage_of("likelihood", steps=50, batch_size=64, max_epochs=most))
        for most in (2, 100)
    }
    for most, (rows, size, batches, epochs) in plans.items():
        assert (len(rows), size, batches) == (n, 64, n // 64)
        assert epochs == min(most, round(50 / batches))
    few = trainer.stage_plan(stage_of("likelihood", select={"min_extinction": 99.0}))
    assert few[1:] == (0, 0, 0)
    assert trainer.stage_plan(stage_of("likelihood", batch_size=10**6))[1] == n


# ---- odd stars -------------------------------------------------------------------------------


def test_stars_of_unknown_extinction_are_trained_on(stars):
    ext, err = stars.data.extinction.copy(), stars.data.extinction_err.copy()
    ext[::4] = err[1::4] = np.nan
    err[2::4] = np.inf
    ext[3::8], err[3::8] = np.nan, np.inf
    data = replaced(stars.data, extinction=ext, extinction_err=err)
    unknown = TrainingStars(data, stars.calibration, stars.g, stars.basis)
    one = {"batch_size": 10**4}
    stages = [stage(steps=2, select={}, **one), stage("stars"), stage("posterior", steps=1, **one)]
    with quick():
        trainer = make_trainer(stars=unknown, stages=stages)
        run_all(trainer)
    chosen = [
        trainer.batches.selected(stage_of(kind), trainer.rejected)
        for kind in ("likelihood", "calibration")
    ]
    assert sum(map(len, chosen)) + trainer.rejected.sum() == N
    assert not trainer.rejected.all()
    for entry in trainer.history:
        assert entry.get("steps_refused", 0) == 0
        assert np.isfinite([v for v in entry.values() if not isinstance(v, str)]).all()
    for group in snapshot(trainer).values():
        assert all(np.isfinite(values).all() for values in group)


def swap_labels(stars):
    """The coolest stars have the labels of the hottest, and so on; which ones."""
    order = np.argsort(stars.data.theta[:, 0])
    order = order[~stars.calibration[order]]
    rows = np.concatenate([order[:10], order[-10:]])
    stars.data.theta[rows] = stars.data.theta[rows[::-1]]
    return rows


def shift_labels(stars):
    """Some stars have a label that is off by 9 sigma; which ones."""
    rows = np.flatnonzero(~stars.calibration)[::12]
    stars.data.theta[rows, 0] += 9 * stars.data.theta_err[rows, 0]
    return rows


def spoil_fluxes(stars):
    """Some stars have the fluxes of no star; which ones."""
    rows = np.flatnonzero(~stars.calibration)[::12]
    stars.data.flux[rows] *= 1 + 0.5 * np.sin(np.arange(N_WL) ** 2)
    return rows


@pytest.mark.parametrize(
    ("spoil", "limits"),
    [
        (swap_labels, {"reject_sigma": 6.0, "reject_chi2_factor": 6.0}),
        (shift_labels, {"reject_sigma": 6.0, "reject_chi2_factor": 1e9}),
        (spoil_fluxes, {"reject_sigma": 1e9, "reject_chi2_factor": 6.0}),
    ],
)
def test_stars_with_wrong_labels_or_fluxes_are_rejected_and_the_others_kept(spoil, limits):
    """Under the model that they are drawn from."""
    model = make_model(DIRECT_ALPHA)
    stars = labelled(model)
    spoiled = spoil(stars)
    stars = dataclasses.replace(stars, data=replaced(stars.data))
    theta, forward = stars.data.theta, model.is_forward
    with quick():
        trainer = make_trainer(DIRECT_ALPHA, stars)
        trainer.model = model
        trainer.batches = type(trainer.batches)(stars, model, trainer.recipe)
        trainer._fit_stars(make_stage(stage("stars", **limits)))
    assert trainer.rejected[spoiled].all()
    assert trainer.rejected.sum() <= len(spoiled) + 0.05 * N
    rows = trainer.batches.selected(stage_of("likelihood"), trainer.rejected)
    assert not np.isin(spoiled, rows).any()
    off = (trainer.fitted_type - theta[:, forward]) / stars.data.theta_err[:, forward]
    assert np.abs(np.median(off[~trainer.rejected], 0)).max() < 0.3
    entry = trainer.history[-1]
    assert entry["rejected"] == trainer.rejected[~stars.calibration].sum()
    assert entry["median_chi2_per_flux"] == pytest.approx(1, abs=0.3)


# ---- the state -------------------------------------------------------------------------------


def test_training_restored_from_its_state_goes_on_to_the_same_end(stars):
    stages = [stage(steps=3, batch_size=10**4, select={})]
    with quick():
        first, second = (make_trainer(stars=stars, stages=stages) for _ in range(2))
        first.run_epoch()
        state = {name: np.array(value) for name, value in first.state().items()}
        attrs = {"stage": first.stage, "epoch": first.epoch, "history": json.dumps(first.history)}
        second.restore(state, attrs)
        for trainer in (first, second):
            trainer.run_epoch()
    assert (second.stage, second.epoch) == (0, 2)
    expected, found = first.state(), second.state()
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert second.history == first.history


def test_state_holds_the_whole_model(stars):
    trainer = make_trainer(stars=stars)
    assert trainer.model.to_arrays().keys() < trainer.state().keys()
    moments = [name for name in trainer.state() if name.startswith("moment")]
    assert len(moments) == 2 * len(trainer.variables)
    assert len({v.name for v in trainer.variables}) == len(trainer.variables)
    assert isinstance(trainer.variables[0], tf.Variable)
