"""What held-out and simulated stars make of a training: error factors, pool, confidences, range."""

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from demo_model import RECIPE
from model_case import mock_stars, table_of
from training_case import NOISELESS, labelled, labelled_table, make_batches

from fitting import catalogue, held_out
from fitting.batches import TrainingStars
from fitting.confidence import is_right
from fitting.held_out import (
    MIN_POOL_STARS,
    Calibrators,
    both_estimates,
    brightnesses,
    error_model,
    fitted_confidence,
    infer_stars,
    odd_sets,
    pool_weights,
    shown_at,
    simulated_factors,
    trained_model,
    training_range,
    type_pulls,
)
from fitting.posterior import NO_TYPE_FACTORS, ErrorModel, Gaussian
from fitting.recipe import make_recipe
from fitting.star_solver import Seen
from pipeline.schema import DEFAULT_LABELS

ALONE = ErrorModel.curvature_alone(6)
FACTORS = np.ones((2, 6))
FAINT_G = [16.0, 18.0]


@pytest.fixture(scope="module")
def stars(star_solver):
    return labelled(star_solver.model)


@pytest.fixture(scope="module")
def trainer(star_solver, stars):
    """What is left of a training, here of one that shows no star fainter: the model is that which
    the stars are drawn from."""
    recipe = make_recipe(RECIPE | {"simulated_stars": 300, "faint_share": 0.0})
    rejected = np.zeros(len(stars), bool)
    parts = {"model": star_solver.model, "stars": stars, "recipe": recipe, "rejected": rejected}
    return SimpleNamespace(**parts, batches=None, history=[])


def changed(trainer, **parts):
    return SimpleNamespace(**vars(trainer) | parts)


@pytest.fixture(scope="module")
def faint_trainer(trainer):
    """The same of a training that shows stars fainter."""
    some = RECIPE | {"simulated_stars": 60, "faint_share": 0.5, "faint_g": FAINT_G}
    return changed(trainer, recipe=make_recipe(some))


def calibrators(stars):
    """The calibration stars as they are."""
    data = stars.data.take(np.flatnonzero(stars.calibration))
    return Calibrators(data, data.theta, data.theta_err)


@pytest.fixture(scope="module")
def some(stars):
    return calibrators(stars)


@pytest.fixture(scope="module")
def table(stars):
    """The calibration stars with their labels."""
    return labelled_table(stars.data.take(stars.calibration))


def calibrated_by(trainer, n):
    """The same with n calibration stars."""
    stars = trainer.stars
    few = TrainingStars(stars.data, np.arange(len(stars)) < n, stars.g, stars.basis)
    return changed(trainer, stars=few)


# ---- brightnesses ----------------------------------------------------------------------------


def test_stars_calibrate_as_they_are_and_fainter_down_to_the_faintest_of_the_training(
    trainer, faint_trainer, star_solver
):
    stars = faint_trainer.stars
    found = brightnesses(stars, faint_trainer.recipe)
    assert found[0] == -np.inf
    assert found[1:] == [17.0, 18.0]
    assert brightnesses(stars, trainer.recipe) == [-np.inf]
    plain = labelled(star_solver.model, basis=NOISELESS)
    assert brightnesses(plain, faint_trainer.recipe) == [-np.inf]


def test_stars_shown_at_a_brightness_are_fainter_but_never_brighter(stars):
    rows = np.arange(60)
    as_they_are, at_16, again = (shown_at(stars, rows, g, 3) for g in (-np.inf, 16.0, 16.0))
    np.testing.assert_array_equal(as_they_are.flux, stars.data.flux[rows])
    np.testing.assert_array_equal(at_16.flux, again.flux)
    brighter = stars.g[rows] < 16
    assert 0 < brighter.sum() < len(rows)
    ratio = (at_16.parallax / as_they_are.parallax) ** 2
    magnitudes = np.maximum(16.0 - stars.g[rows], 0)
    np.testing.assert_allclose(ratio, 10 ** (-0.4 * magnitudes), rtol=1e-4)
    np.testing.assert_array_equal(at_16.flux[~brighter], as_they_are.flux[~brighter])


def test_errors_are_calibrated_at_every_brightness(faint_trainer, monkeypatch):
    """The factors of a level are of stars shown so faint, the weights of calibration stars so
    faint; levels ascend even where the stars are alike."""
    levels = iter([-4.0, -2.0, -2.5])
    monkeypatch.setattr(
        held_out, "simulated_factors", lambda trainer, solver, k: (next(levels), (k + 1) * FACTORS)
    )
    monkeypatch.setattr(held_out, "both_estimates", lambda solver, one, of_set: of_set[0, 0])
    monkeypatch.setattr(held_out, "pool_weights", lambda seen, one, model: np.array([one, seen]))
    monkeypatch.setattr(held_out, "type_pulls", lambda seen, own, *_: [(own, seen), (own, -seen)])
    monkeypatch.setattr(held_out, "fitted_type_factors", lambda pull, z: (pull, z))
    monkeypatch.setattr(held_out, "MIN_POOL_STARS", 0)
    monkeypatch.setattr(faint_trainer.model, "direct", "a network")

    class Shown(float):
        data = ()

    found = error_model(faint_trainer, None, [Shown(0.2), Shown(0.3), Shown(0.4)])
    np.testing.assert_allclose(found.levels, [-4, -2, -2], atol=2e-3)
    assert (np.diff(found.levels) > 0).all()
    assert found.factors.shape == (2, 3, 6)
    np.testing.assert_array_equal(found.factors[:, :, 0], [[1, 2, 3]] * 2)
    np.testing.assert_array_equal(found.pool_weights, [[0.2, 1], [0.3, 2], [0.4, 3]])
    pull, z = found.type_factors  # one for all levels
    np.testing.assert_array_equal(pull, np.repeat(found.pool_weights, 2, 0))
    np.testing.assert_array_equal(z, [1, -1, 2, -2, 3, -3])


@pytest.fixture
def noisier(monkeypatch):
    """Stars of which those shown at G = 17, 18 have errors 3, 4 times as large."""

    def shown_at(stars, rows, g, seed):
        data = stars.data.take(rows)
        factor = max(1.0, g - 14.0)
        return dataclasses.replace(data, flux_err=factor * data.flux_err)

    monkeypatch.setattr(held_out, "shown_at", shown_at)


@pytest.mark.usefixtures("noisier")
def test_error_level_of_simulated_stars_is_that_of_stars_so_faint(
    faint_trainer, star_solver, monkeypatch
):
    monkeypatch.setattr(held_out, "solve_stars", lambda *args: ({
        "model_params_est": None, "model_params_err": None}, None))  # fmt: skip
    monkeypatch.setattr(held_out, "needed_factors", lambda *args: np.ones(6))
    found = [simulated_factors(faint_trainer, star_solver, k)[0] for k in range(3)]
    level = np.median(faint_trainer.stars.data.observed.features[:, 1])
    np.testing.assert_allclose(found, level + np.log([1, 3, 4]), rtol=1e-3)


# ---- error factors ---------------------------------------------------------------------------


def test_stars_simulated_by_the_model_need_factors_near_1(trainer, star_solver):
    _, factors = simulated_factors(trainer, star_solver, 0)
    assert factors.shape == (2, 6)
    np.testing.assert_allclose(factors, 1, atol=0.25)


def test_error_factors_make_up_for_errors_that_are_wrong(trainer, star_solver, monkeypatch):
    """Errors of half the size need factors of twice the size."""
    whole, factors = catalogue.widened, []
    for size in (1.0, 0.5):

        def widened(*args, size=size):
            out = whole(*args)
            return Gaussian(out.mean, out.precision / size**2)

        monkeypatch.setattr(catalogue, "widened", widened)
        factors.append(simulated_factors(trainer, star_solver, 0)[1])
    np.testing.assert_allclose(factors[1], 2 * factors[0], rtol=1e-3)


def test_the_first_error_factors_are_of_stars_with_a_parallax(trainer, star_solver, monkeypatch):
    """So `posterior.widened` takes them."""
    whole, asked, needed = held_out.simulate, [], itertools.count(1)

    def simulate(model, hosts, n, with_parallax, rng):
        asked.append(with_parallax)
        return whole(model, hosts, 20, with_parallax, rng)

    monkeypatch.setattr(held_out, "simulate", simulate)
    monkeypatch.setattr(held_out, "needed_factors", lambda *args: np.full(6, next(needed)))
    _, factors = simulated_factors(trainer, star_solver, 0)
    assert asked == [True, False]
    np.testing.assert_array_equal(factors, np.repeat([[1.0], [2.0]], 6, 1))


# ---- the pool --------------------------------------------------------------------------------


def with_direct(monkeypatch, solver, z, sigma):
    """Have the solver's model a direct estimate z (N, 3) with errors sigma."""
    estimate = np.stack([z, np.full_like(z, sigma)]).astype("f4")
    monkeypatch.setattr(solver, "seen", lambda data: Seen(direct=estimate))


def fitted_weights(solver, one):
    return pool_weights(both_estimates(solver, one, FACTORS), one, solver.model)


def test_pool_trusts_a_direct_estimate_that_is_right(star_solver, some, monkeypatch):
    z = star_solver.model.standardised(some.label)
    with_direct(monkeypatch, star_solver, z, 0.02)
    model, direct = fitted_weights(star_solver, some)
    assert direct > 0.5
    assert direct > model


def test_pool_does_not_trust_a_direct_estimate_that_is_wrong(star_solver, some, monkeypatch):
    z = star_solver.model.standardised(some.label)
    wrong = z + np.random.default_rng(0).normal(size=z.shape)
    with_direct(monkeypatch, star_solver, wrong, 0.02)
    model, direct = fitted_weights(star_solver, some)
    assert direct < 0.01
    assert model > 10 * direct


def with_factors(monkeypatch, factors=FACTORS):
    monkeypatch.setattr(held_out, "simulated_factors", lambda *args: (0.0, factors))


@pytest.mark.parametrize(("off", "label_err"), [(1.3, 0.0), (0.7, 0.0), (1.5, 1.0)])
def test_pooled_errors_are_held_against_the_labels_and_their_errors(off, label_err):
    rng, n, k = np.random.default_rng(5), 20000, 2
    sigma = rng.uniform(0.1, 1, (n, k + 3))
    precision = np.zeros((n, k + 3, k + 3))
    precision[:, range(k + 3), range(k + 3)] = sigma**-2
    mean = rng.normal(size=(n, k + 3))
    z_err = label_err * sigma[:, :k]
    z = mean[:, :k] + rng.normal(size=(n, k)) * np.hypot(off * sigma[:, :k], z_err)
    found = held_out.needed_pool_factors(Gaussian(mean, precision), z, z_err)
    expected = np.hypot(off, label_err) / np.hypot(1, label_err)
    np.testing.assert_allclose(found, expected, rtol=0.03)


def test_pulls_of_a_direct_estimate_alone_are_its_own(star_solver, some, monkeypatch):
    """With and without parallaxes; NaN nowhere, the labels' own errors in them."""
    rng, model = np.random.default_rng(1), star_solver.model
    z = model.standardised(some.label)
    off = 0.1 * rng.normal(size=z.shape)
    with_direct(monkeypatch, star_solver, z + off, 0.05)
    seen = both_estimates(star_solver, some, FACTORS)
    for pull, shown in type_pulls(seen, np.array([1e-9, 1.0]), some, model):
        np.testing.assert_allclose(shown, z + off, atol=1e-5)
        np.testing.assert_allclose(pull, off / 0.05, atol=0.01)


def test_few_calibration_stars_leave_the_forward_model_alone(trainer, monkeypatch):
    with_factors(monkeypatch)
    monkeypatch.setattr(held_out, "fitted_confidence", lambda *args: "a confidence")
    monkeypatch.setattr(held_out, "fitted_alarms", lambda *args: "alarms")
    monkeypatch.setattr(held_out, "fitted_search", lambda *args: None)
    monkeypatch.setattr(held_out, "chi2_alarm", lambda *args: 2.0)
    fitted, of_type = [], np.full((3, 4), 0.1)
    monkeypatch.setattr(held_out, "both_estimates", lambda *args: None)
    monkeypatch.setattr(
        held_out, "pool_weights", lambda *args: fitted.append(1) or np.array([0.5, 0.5])
    )
    monkeypatch.setattr(held_out, "type_pulls", lambda *args: [(1.0, 1.0)])
    monkeypatch.setattr(held_out, "fitted_type_factors", lambda *args: of_type)
    monkeypatch.setattr(trainer.model, "direct", "a network")
    none = (MIN_POOL_STARS - 1, [1, 0], NO_TYPE_FACTORS)
    for n, expected, factors in (none, (MIN_POOL_STARS, [0.5, 0.5], of_type)):
        found = trained_model(calibrated_by(trainer, n), SimpleNamespace(model=trainer.model))
        np.testing.assert_array_equal(found.errors.pool_weights, [expected])
        np.testing.assert_array_equal(found.errors.type_factors, factors)
        assert (found.confidence, found.alarms) == ("a confidence", "alarms")
    assert len(fitted) == 1


def test_chi2_alarm_is_what_few_calibration_stars_exceed_at_the_worst_brightness(monkeypatch):
    rng, n, n_xp = np.random.default_rng(0), 2000, 61
    data = SimpleNamespace(
        observed=SimpleNamespace(used=np.ones((n, 66))), channels=SimpleNamespace(n_xp=n_xp)
    )
    chi2 = {name: n_xp * most * rng.random(n) for name, most in (("a", 3.0), ("b", 5.0))}
    monkeypatch.setattr(held_out, "solve_stars", lambda one, *_: ({"chi2_opt": one.chi2}, None))
    sets = []
    for values in chi2.values():
        shown = SimpleNamespace(**vars(data), chi2=values)
        sets.append(Calibrators(shown, None, None))
    solver = SimpleNamespace(model=SimpleNamespace(coordinates=range(6)))
    share = 1 - held_out.FALSE_CHI2
    assert held_out.chi2_alarm(solver, sets) == pytest.approx(5 * share, rel=0.01)
    assert held_out.chi2_alarm(solver, sets[:1]) == pytest.approx(3 * share, rel=0.01)
    sets[0].data.chi2[:] = 1.0
    assert held_out.chi2_alarm(solver, sets[:1]) == held_out.chi2_alarm(solver, []) == 2.0


def test_without_a_direct_estimate_the_catalogue_is_the_forward_model_alone(
    trainer, star_solver, table, monkeypatch
):
    with_factors(monkeypatch, 1.3 * FACTORS)
    trained = trained_model(trainer, star_solver)
    np.testing.assert_array_equal(trained.errors.pool_weights, [[1, 0]])
    np.testing.assert_array_equal(trained.errors.type_factors, NO_TYPE_FACTORS)
    rows = np.arange(30)
    found = infer_stars(trained, star_solver, table, rows)
    np.testing.assert_array_equal(found["stellar_params_est"], found["model_params_est"])
    np.testing.assert_array_equal(found["stellar_params_err"], found["model_params_err"])
    assert len(found["quality_flags"]) == 30


# ---- confidences and range -------------------------------------------------------------------


def test_confidences_are_fitted_with_and_without_parallaxes(trainer, star_solver, some):
    fitted = fitted_confidence(trainer, star_solver, [some], [], ALONE)
    has_parallax = 14  # its place among the features
    assert fitted.mean[has_parallax] == pytest.approx(0.5, abs=0.03)
    assert fitted.scale[has_parallax] == pytest.approx(0.5, abs=0.03)
    assert fitted.weight.shape == (3, 40)


def test_confidences_are_fitted_to_odd_things_as_they_are(trainer, star_solver, some, monkeypatch):
    asked = []

    def solve(data, solver, errors):
        asked.append(np.isfinite(data.parallax).mean())
        return SimpleNamespace(n=len(data)), None

    monkeypatch.setattr(held_out, "solve_stars", solve)
    monkeypatch.setattr(held_out, "known_features", lambda found, *args: np.ones((found.n, 2)))
    monkeypatch.setattr(held_out, "label_estimates", lambda found, *args: (found, None))
    monkeypatch.setattr(held_out, "is_right", lambda found, *args: np.ones((found.n, 3), bool))
    monkeypatch.setattr(held_out, "fit_logistic", lambda features, right: len(features))
    n = fitted_confidence(trainer, star_solver, [some, some], [some], ALONE)
    assert n == 5 * len(some.data)
    assert asked == [1, 0, 1, 0, 1]


def test_odd_things_are_blends_with_the_label_of_the_brighter_star_and_others_with_none(
    faint_trainer, monkeypatch
):
    stars, model = faint_trainer.stars, faint_trainer.model
    batches = make_batches(model, stars, faint_share=0.5, faint_g=FAINT_G)
    rows = np.flatnonzero(stars.calibration)
    case = changed(faint_trainer, batches=batches)
    assert odd_sets(case, rows) == []  # without networks that tell them
    monkeypatch.setattr(model, "oddity", "a network")
    blends, strange = odd_sets(case, rows)
    for one in (blends, strange):
        assert len(one.data) == len(rows)
        np.testing.assert_array_equal(one.label_err, stars.data.theta_err[rows])
        assert (one.data.flux != stars.data.flux[rows]).any(1).all()
    np.testing.assert_array_equal(blends.label, stars.data.theta[rows])
    assert np.isnan(strange.label).all()
    est = stars.data.theta[rows]
    right = is_right(est, 0 * est + 0.1, strange.label, strange.label_err, DEFAULT_LABELS)
    assert not right.any()


def test_without_calibration_stars_every_confidence_is_a_half(
    trainer, star_solver, table, monkeypatch
):
    with_factors(monkeypatch)
    trained = trained_model(calibrated_by(trainer, 0), star_solver)
    found = infer_stars(trained, star_solver, table, np.arange(5))
    for name in ("teff", "feh", "logg"):
        np.testing.assert_array_equal(found[f"{name}_confidence"], 0.5)


def test_range_is_that_of_the_stars_that_were_trained_on(trainer, stars):
    without = changed(trainer, rejected=np.arange(len(stars)) == 7)
    found, label = training_range(without), stars.data.theta[7].copy()
    stars.data.theta[7] = 1e3  # of the star that was rejected
    again = training_range(without)
    stars.data.theta[7] = label
    np.testing.assert_array_equal(again.faces, found.faces)
    kept = ~stars.calibration & ~without.rejected
    theta, level = stars.data.theta, stars.data.observed.features[:, 1]
    inside = found.excludes(theta[kept], stars.ext[kept], level[kept])
    assert not inside.any()
    assert found.excludes(theta[:1] + [0, 0, 30], stars.ext[:1], level[:1]).all()
    assert found.excludes(theta[:1], stars.ext[:1] + 30, level[:1]).all()
    assert found.excludes(theta[:1], stars.ext[:1], level[:1] + 30).all()


@pytest.mark.usefixtures("noisier")
def test_range_reaches_to_the_error_levels_of_the_faintest_that_were_shown(trainer, faint_trainer):
    bright, faint = training_range(trainer), training_range(faint_trainer)
    np.testing.assert_array_equal(bright.limits[:, 0], faint.limits[:, 0])
    assert faint.limits[0, 1] == bright.limits[0, 1]
    assert faint.limits[1, 1] == pytest.approx(bright.limits[1, 1] + np.log(4), rel=1e-3)


def test_labels_of_the_stars_inferred_are_not_looked_at(trainer, star_solver, monkeypatch):
    with_factors(monkeypatch)
    trained = trained_model(trainer, star_solver)
    data, _ = mock_stars(star_solver.model, 10, seed=77)
    bare = table_of(data)
    wrong = bare | {"stellar_type": np.full((10, 3), 1e9)}
    one, two = (infer_stars(trained, star_solver, t, np.arange(10)) for t in (bare, wrong))
    for name, value in one.items():
        np.testing.assert_array_equal(two[name], value)
