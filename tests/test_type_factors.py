"""Factors of the labels' errors that follow the type."""

import numpy as np
import pytest

from fitting.posterior import (
    NO_TYPE_FACTORS,
    TYPE_SLOPE,
    ErrorModel,
    fitted_type_factors,
    type_terms,
)

SLOPES = np.array([[0.2, 0.0, -0.1], [0.0, -0.15, 0.0], [0.0, 0.0, 0.0]])


def shown_pulls(n, slopes=SLOPES, level=1.0, tails=False, m=2, seed=0):
    """Pulls and types (m, n, 3) of stars whose errors are too small by a level, and by type."""
    rng = np.random.default_rng(seed)
    z = np.tile(rng.normal(0.3, 1.0, (n, 3)), (m, 1, 1))
    pull = rng.standard_t(5, z.shape) if tails else rng.normal(size=z.shape)
    terms = type_terms(z.reshape(-1, 3))[:, 1:].reshape(z.shape)
    return level * pull * np.exp(terms @ slopes.T), z


def errors_of(type_factors):
    alone = vars(ErrorModel.curvature_alone(6))
    return ErrorModel(**alone | {"type_factors": type_factors})


@pytest.mark.parametrize("tails", [False, True])
@pytest.mark.parametrize("level", [1.0, 1.3])
def test_misfits_that_follow_the_type_are_found_and_their_mean_left_to_the_pool(level, tails):
    pull, z = shown_pulls(20_000, level=level, tails=tails)
    found = fitted_type_factors(pull, z)
    np.testing.assert_allclose(found[:, 1:], SLOPES, atol=0.02)
    factors = errors_of(found).of_type(z[0])
    np.testing.assert_allclose(np.log(factors).mean(0), 0, atol=1e-6)
    corrected = pull / factors
    for bright in (z[..., 0] > 1.3, z[..., 0] < -0.7):
        inside = np.mean(np.abs(corrected[bright]) < level, 0)
        np.testing.assert_allclose(inside, inside.mean(), atol=0.02)


def test_errors_that_are_wrong_by_the_same_factor_for_all_types_stay_as_they_are():
    pull, z = shown_pulls(20_000, 0 * SLOPES, level=1.3)
    np.testing.assert_allclose(fitted_type_factors(pull, z), 0, atol=0.02)


def test_few_stars_change_little_however_often_they_are_shown():
    pull, z = shown_pulls(40, m=1)
    found = fitted_type_factors(*(np.tile(x, (50, 1, 1)) for x in (pull, z)))
    assert np.abs(found[:, 1:]).max() < 2 * TYPE_SLOPE


def test_stars_without_pulls_do_not_count():
    pull, z = shown_pulls(500)
    expected = fitted_type_factors(pull[:, :400], z[:, :400])
    pull[:, 400:] = np.nan
    found = fitted_type_factors(pull, z)
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_factors_of_types_far_outside_are_those_of_the_edge():
    errors = errors_of(np.concatenate([np.zeros((3, 1)), SLOPES], 1))
    edge, far = errors.of_type(np.array([[8.0, 8.0, 8.0], [1e3, 1e3, 1e3]]))
    np.testing.assert_allclose(far, edge, rtol=1e-3)
    np.testing.assert_allclose(far, np.exp(2 * SLOPES.sum(1)), rtol=1e-6)


def test_without_factors_errors_are_the_same_for_all_types():
    z = np.random.default_rng(0).normal(size=(5, 4))
    np.testing.assert_array_equal(errors_of(NO_TYPE_FACTORS).of_type(z), np.ones((5, 4)))
