"""What held-out and simulated stars make of a training: error factors, pool, confidences, range."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from demo_model import RECIPE
from model_case import mock_stars, table_of
from training_case import labelled, labelled_table

from fitting import catalogue, held_out
from fitting.held_out import (
    MIN_POOL_STARS,
    fitted_confidence,
    infer_stars,
    pool_weights,
    simulated_factors,
    trained_model,
    training_range,
)
from fitting.posterior import ErrorModel, Gaussian
from fitting.recipe import make_recipe

ALONE = ErrorModel.curvature_alone(6)


@pytest.fixture(scope="module")
def stars(star_solver):
    return labelled(star_solver.model)


@pytest.fixture(scope="module")
def trainer(star_solver, stars):
    """What is left of a training: here the model is that which the stars are drawn from."""
    recipe = make_recipe(RECIPE | {"simulated_stars": 300})
    rejected = np.zeros(len(stars), bool)
    return SimpleNamespace(
        model=star_solver.model, stars=stars, recipe=recipe, rejected=rejected, history=[]
    )


@pytest.fixture(scope="module")
def table(stars):
    """The calibration stars with their labels."""
    return labelled_table(stars.data.take(stars.calibration))


# ---- error factors ---------------------------------------------------------------------------


def test_stars_simulated_by_the_model_need_factors_near_1(trainer, star_solver):
    factors = simulated_factors(trainer, star_solver)
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
        factors.append(simulated_factors(trainer, star_solver))
    np.testing.assert_allclose(factors[1], 2 * factors[0], rtol=1e-3)


def test_the_first_error_factors_are_of_stars_with_a_parallax(trainer, star_solver, monkeypatch):
    """So `posterior.widened` takes them."""
    whole, asked, needed = held_out.simulate, [], itertools.count(1)

    def simulate(model, hosts, n, with_parallax, rng):
        asked.append(with_parallax)
        return whole(model, hosts, 20, with_parallax, rng)

    monkeypatch.setattr(held_out, "simulate", simulate)
    monkeypatch.setattr(held_out, "needed_factors", lambda *args: np.full(6, next(needed)))
    factors = simulated_factors(trainer, star_solver)
    assert asked == [True, False]
    np.testing.assert_array_equal(factors, np.repeat([[1.0], [2.0]], 6, 1))


# ---- the pool --------------------------------------------------------------------------------


def with_direct(monkeypatch, solver, z, sigma):
    """Have the solver's model a direct estimate z (N, 3) with errors sigma."""
    estimate = np.stack([z, np.full_like(z, sigma)]).astype("f4")
    monkeypatch.setattr(solver, "direct", lambda data: estimate)


def test_pool_trusts_a_direct_estimate_that_is_right(star_solver, table, monkeypatch):
    z = star_solver.model.standardised(table["stellar_type"])
    with_direct(monkeypatch, star_solver, z, 0.02)
    model, direct = pool_weights(star_solver, table, ALONE.factors)
    assert direct > 0.5
    assert direct > model


def test_pool_does_not_trust_a_direct_estimate_that_is_wrong(star_solver, table, monkeypatch):
    z = star_solver.model.standardised(table["stellar_type"])
    wrong = z + np.random.default_rng(0).normal(size=z.shape)
    with_direct(monkeypatch, star_solver, wrong, 0.02)
    model, direct = pool_weights(star_solver, table, ALONE.factors)
    assert direct < 0.01
    assert model > 10 * direct


def test_few_calibration_stars_leave_the_forward_model_alone(trainer, table, monkeypatch):
    monkeypatch.setattr(held_out, "simulated_factors", lambda *args: ALONE.factors)
    monkeypatch.setattr(held_out, "fitted_confidence", lambda *args: "a confidence")
    fitted = []
    monkeypatch.setattr(
        held_out, "pool_weights", lambda *args: fitted.append(1) or np.array([0.5, 0.5])
    )
    monkeypatch.setattr(trainer.model, "direct", "a network")
    for n, expected in ((MIN_POOL_STARS - 1, [1, 0]), (MIN_POOL_STARS, [0.5, 0.5])):
        some = {name: value[:n] for name, value in table.items()}
        found = trained_model(trainer, None, some)
        np.testing.assert_array_equal(found.errors.pool_weights, expected)
        assert found.confidence == "a confidence"
    assert len(fitted) == 1


def test_without_a_direct_estimate_the_catalogue_is_the_forward_model_alone(
    trainer, star_solver, table, monkeypatch
):
    monkeypatch.setattr(held_out, "simulated_factors", lambda *args: 1.3 * ALONE.factors)
    trained = trained_model(trainer, star_solver, table)
    np.testing.assert_array_equal(trained.errors.pool_weights, [1, 0])
    rows = np.arange(30)
    found = infer_stars(trained, star_solver, table, rows)
    np.testing.assert_array_equal(found["stellar_params_est"], found["model_params_est"])
    np.testing.assert_array_equal(found["stellar_params_err"], found["model_params_err"])
    assert len(found["quality_flags"]) == 30


# ---- confidences and range -------------------------------------------------------------------


def test_confidences_are_fitted_with_and_without_parallaxes(star_solver, table):
    fitted = fitted_confidence(star_solver, table, ALONE)
    has_parallax = 14  # its place among the features
    assert fitted.mean[has_parallax] == pytest.approx(0.5, abs=0.03)
    assert fitted.scale[has_parallax] == pytest.approx(0.5, abs=0.03)
    assert fitted.weight.shape == (3, 34)


def test_without_calibration_stars_every_confidence_is_a_half(
    trainer, star_solver, table, monkeypatch
):
    monkeypatch.setattr(held_out, "simulated_factors", lambda *args: ALONE.factors)
    none = {name: value[:0] for name, value in table.items()}
    trained = trained_model(trainer, star_solver, none)
    found = infer_stars(trained, star_solver, table, np.arange(5))
    for name in ("teff", "feh", "logg"):
        np.testing.assert_array_equal(found[f"{name}_confidence"], 0.5)


def test_range_is_that_of_the_stars_that_were_trained_on(trainer, stars):
    spoiled = SimpleNamespace(**vars(trainer) | {"rejected": np.arange(len(stars)) == 7})
    before = stars.data.theta[7].copy()
    stars.data.theta[7] = 1e3  # of a star that was rejected
    found = training_range(spoiled)
    stars.data.theta[7] = before
    kept = ~stars.calibration & ~spoiled.rejected
    theta, features = stars.data.theta, stars.observed.features
    inside = found.excludes(theta[kept], stars.ext[kept], features[kept])
    assert not inside.any()
    assert found.excludes(theta[:1] + [0, 0, 30], stars.ext[:1], features[:1]).all()
    assert found.excludes(theta[:1], stars.ext[:1] + 30, features[:1]).all()


def test_labels_of_the_stars_inferred_are_not_looked_at(trainer, star_solver, table, monkeypatch):
    monkeypatch.setattr(held_out, "simulated_factors", lambda *args: ALONE.factors)
    trained = trained_model(trainer, star_solver, table)
    data, _ = mock_stars(star_solver.model, 10, seed=77)
    bare = table_of(data)
    wrong = bare | {"stellar_type": np.full((10, 3), 1e9)}
    one, two = (infer_stars(trained, star_solver, t, np.arange(10)) for t in (bare, wrong))
    for name, value in one.items():
        np.testing.assert_array_equal(two[name], value)
