"""How likely an estimate is right: what it is computed from, fitted to, and gives."""

import numpy as np
import pytest
from model_case import LABEL_SETS, N_FEATURES, make_model, make_trained, mock_stars
from scipy.special import expit

from fitting.confidence import (
    MOST_LN_ODDS,
    MOST_TENSION,
    confidence_features,
    is_right,
)
from fitting.coordinates import Coordinates
from fitting.logistic import Logistic, fit_logistic
from pipeline.schema import DEFAULT_LABELS


@pytest.fixture(scope="module", params=[2, 3, 4])
def n_labels(request):
    return request.param


def confidence_of(n_labels, weight):
    return make_trained(make_model(LABEL_SETS[n_labels]), 0.1, weight).confidence


def test_confidence_is_the_logistic_function_of_the_features_and_their_squares(n_labels):
    one = confidence_of(n_labels, 0.2)
    p = len(one.centre)
    features = one.centre + np.random.default_rng(5).normal(0, 2, (50, p))
    both = np.column_stack([features, (features - one.centre) ** 2])
    x = np.clip((both - one.mean) / one.scale, -5, 5)
    expected = expit(x @ one.weight.T + one.offset)
    found = one.of(features)
    assert found.shape == (50, n_labels)
    np.testing.assert_allclose(found, expected)
    assert np.ptp(found) > 0.3


def test_confidence_is_between_0_and_1_for_any_features():
    one = confidence_of(3, 3.0)
    features = np.full((3, len(one.centre)), [[1e30], [-1e30], [1e150]])
    found = one.of(features)
    assert ((found >= 0) & (found <= 1)).all()


def columns_of(n_labels):
    """Inferred columns of two stars, the first without a second mode."""
    n = len(Coordinates(n_labels))
    columns = {
        "stellar_params_est": np.full((2, n), 0.5),
        "stellar_params_err": np.full((2, n), 0.1),
        "model_params_est": np.repeat([[0.4], [0.5]], n, 1),  # and where both are the same
        "model_params_err": np.full((2, n), 0.1),
        "second_delta_ln_post": np.array([np.nan, -3.0]),
        "chi2_opt": np.full(2, 60.0),
        "ln_prior": np.full(2, -3.0),
        "n_flux": np.full(2, 66),
        "parallax_tension": np.array([np.nan, -2.5]),
        "blend_probability": np.array([np.nan, 0.2]),
        "strange_probability": np.array([1.0, 0.0]),
    }
    return columns


def features_of(columns, n_labels):
    data, _ = mock_stars(make_model(), 2)
    has_parallax = np.array([True, False])
    return confidence_features(columns, data.observed.features, has_parallax, Coordinates(n_labels))


def test_features_are_finite_with_and_without_a_second_mode(n_labels):
    values = features_of(columns_of(n_labels), n_labels)
    assert values.shape == (2, N_FEATURES + 2 * n_labels)
    assert np.isfinite(values).all()
    assert (values[0] != values[1]).any()


def test_last_features_are_the_tension_and_the_ln_odds_of_what_is_odd(n_labels):
    values = features_of(columns_of(n_labels), n_labels)[:, -3:]
    expected = [[0, -MOST_LN_ODDS, MOST_LN_ODDS], [2.5, np.log(0.2 / 0.8), -MOST_LN_ODDS]]
    np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_features_of_a_model_without_such_networks_are_those_of_nothing_odd(n_labels):
    columns, names = columns_of(n_labels), ("parallax_tension", "blend_probability")
    for name in (*names, "strange_probability"):
        columns[name] = np.full(2, np.nan)
    values = features_of(columns, n_labels)[:, -3:]
    np.testing.assert_array_equal(values, [[0, -MOST_LN_ODDS, -MOST_LN_ODDS]] * 2)
    columns["parallax_tension"] = np.array([1e3, -np.inf])
    np.testing.assert_array_equal(features_of(columns, n_labels)[:, -3], [MOST_TENSION] * 2)


def test_estimate_is_right_within_3_sigma_and_the_tolerance():
    label, label_err = np.tile([5.0, 0.0, 4.0], (4, 1)), np.full((4, 3), 0.03)
    err = np.full((4, 3), 0.04)  # both: 0.05
    err[3] = 1.0
    est = label + np.array([[0.14], [0.16], [-0.14], [0.26]])
    np.testing.assert_array_equal(
        is_right(est, err, label, label_err, DEFAULT_LABELS),
        [[True] * 3, [False] * 3, [True] * 3, [False, True, True]],
    )


def test_tolerance_is_that_of_each_label():
    labels = LABEL_SETS[4]
    off = 0.99 * labels.array("tolerance")
    one = np.ones((2, 4))
    found = is_right(np.stack([off, off / 0.98]), one, 0 * one, one, labels)
    np.testing.assert_array_equal(found, [[True] * 4, [False] * 4])


def held_out(n, n_labels, seed=0):
    """Features (n, 3) of which the second says how likely each label is right."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 3))
    chance = expit(2 * features[:, 1:2] + np.arange(n_labels) - 1)
    return features, chance, rng.random((n, n_labels)) < chance


def test_fitted_confidences_are_the_chances(n_labels):
    features, _, right = held_out(20_000, n_labels)
    fitted = fit_logistic(features, right)
    features, chance, _ = held_out(2000, n_labels, seed=1)
    assert np.abs(fitted.of(features) - chance).mean() < 0.04


def test_label_that_is_always_right_has_the_odds_of_laplace():
    features, _, right = held_out(98, 2)
    right[:, 0], right[:, 1] = True, False
    found = fit_logistic(features, right).of(features)
    np.testing.assert_allclose(found, [[0.99, 0.01]] * 98)


def test_stars_without_features_are_left_out():
    features, _, right = held_out(500, 2)
    spoiled = np.concatenate([features, np.full((100, 3), np.nan)])
    fitted = fit_logistic(spoiled, np.concatenate([right, ~right[:100]]))
    expected = fit_logistic(features, right)
    np.testing.assert_allclose(fitted.of(features), expected.of(features))


def test_without_held_out_stars_every_confidence_is_a_half(n_labels):
    none = fit_logistic(np.full((1, 7), np.nan), np.zeros((1, n_labels)))
    np.testing.assert_array_equal(none.of(np.ones((3, 7))), np.full((3, n_labels), 0.5))


def test_confidence_restored_from_its_arrays_is_the_same(n_labels):
    one = confidence_of(n_labels, 0.3)
    restored = Logistic.from_arrays(one.to_arrays("x"), "x")
    features = np.random.default_rng(0).normal(size=(5, len(one.centre)))
    np.testing.assert_array_equal(restored.of(features), one.of(features))
