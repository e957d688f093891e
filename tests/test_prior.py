"""The prior of types against SciPy's densities, for any number of labels."""

import numpy as np
import pytest
import tensorflow as tf
from model_case import (
    LABEL_SETS,
    MEANS,
    PRIOR_WEIGHTS,
    THETA_MEAN,
    THETA_SCALE,
    make_model,
    make_prior,
)
from model_oracle import Oracle, curvature, slope
from scipy import stats

from fitting.prior import MixturePrior, fit_prior


@pytest.fixture(scope="module", params=[2, 3, 4])
def case(request):
    """(prior, its oracle, points (30, K)) for K labels."""
    model = make_model(LABEL_SETS[request.param])
    points = np.random.default_rng(4).normal(0, 1.5, (30, request.param)).astype("f4")
    return model.prior, Oracle(model), points


@pytest.fixture(scope="module")
def prior():
    return make_prior()


@pytest.fixture(scope="module")
def labels(prior):
    return prior.sample(2000, np.random.default_rng(0)) * THETA_SCALE + THETA_MEAN


def test_prior_density_is_that_of_scipy(case):
    prior, oracle, points = case
    expected = oracle.ln_prior_z(points.astype("f8"))
    np.testing.assert_allclose(prior.ln_density_z(points), expected, atol=1e-4)
    per_label = expected - np.log(prior.theta_scale).sum()
    np.testing.assert_allclose(prior.ln_density(points), per_label, atol=1e-4)


def test_prior_integrates_to_1_per_kK_dex_dex(prior):
    """Importance sampling with a wide normal in theta itself."""
    wide = stats.multivariate_normal(THETA_MEAN, np.diag((1.8 * THETA_SCALE) ** 2))
    theta = wide.rvs(200_000, random_state=0)
    z = ((theta - THETA_MEAN) / THETA_SCALE).astype("f4")
    ratio = np.exp(prior.ln_density(z).numpy() - wide.logpdf(theta))
    assert ratio.std() / np.sqrt(len(ratio)) < 0.006
    assert ratio.mean() == pytest.approx(1.0, abs=0.02)


def test_prior_gradient_equals_differences(case):
    prior, oracle, points = case
    value, gradient, _ = prior.value_gradient_hessian(tf.constant(points))
    np.testing.assert_allclose(value, -prior.ln_density_z(points).numpy(), atol=1e-5)
    expected = [-slope(oracle.ln_prior_z, z, 1e-5) for z in points]
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4)


def test_prior_hessian_is_positive_definite_and_bounds_the_true_curvature(case):
    prior, oracle, points = case
    bound = prior.value_gradient_hessian(tf.constant(points))[2].numpy().astype("f8")
    assert (np.linalg.eigvalsh(bound)[:, 0] > 0).all()
    excess = [
        np.linalg.eigvalsh(hessian + curvature(oracle.ln_prior_z, z))
        for z, hessian in zip(points, bound, strict=True)
    ]
    assert np.min(excess) > -1e-3
    assert np.max(excess) > 0.1  # somewhere between components, the true one is much smaller


def test_prior_samples_have_the_moments_of_the_mixture_and_follow_the_seed(prior):
    means = MEANS[:, :3]

    def moments(widen):
        mean = PRIOR_WEIGHTS @ means
        second = widen**2 * prior.covariances + np.einsum("ki,kj->kij", means, means)
        return mean, np.einsum("k,kij->ij", PRIOR_WEIGHTS, second) - np.outer(mean, mean)

    for widen in (1.0, 1.4):
        z = prior.sample(60_000, np.random.default_rng(8), widen)
        mean, covariance = moments(widen)
        np.testing.assert_allclose(z.mean(0), mean, atol=0.02)
        np.testing.assert_allclose(np.cov(z.T), covariance, atol=0.04)
    again = prior.sample(60_000, np.random.default_rng(8), widen)
    np.testing.assert_array_equal(z, again)


def test_prior_fit_is_repeatable(labels):
    first, second, other = (
        fit_prior(labels, THETA_MEAN, THETA_SCALE, 4, seed).to_arrays() for seed in (0, 0, 1)
    )
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])
    assert not np.array_equal(first["prior_means"], other["prior_means"])


def test_prior_fit_finds_the_density_of_the_labels(labels, prior):
    fitted = fit_prior(labels, THETA_MEAN, THETA_SCALE, 3)
    new = prior.sample(2000, np.random.default_rng(1)).astype("f4")
    difference = fitted.ln_density(new).numpy() - prior.ln_density(new).numpy()
    assert abs(difference.mean()) < 0.05
    assert difference.std() < 0.3


def test_prior_floor_is_passed_by_all_but_0p1_percent_of_the_labels(labels):
    fitted = fit_prior(labels, THETA_MEAN, THETA_SCALE, 3)
    z = ((labels - THETA_MEAN) / THETA_SCALE).astype("f4")
    below = np.mean(fitted.ln_density(z).numpy() < fitted.ln_prior_floor)
    assert below == pytest.approx(0.001, abs=0.0005)


def test_prior_of_few_stars_has_fewer_components(labels):
    assert len(fit_prior(labels[:120], THETA_MEAN, THETA_SCALE).weights) == 2
    assert len(fit_prior(labels[:20], THETA_MEAN, THETA_SCALE).weights) == 1


def test_mixture_prior_restored_from_its_arrays_draws_the_same(case):
    prior, _, points = case
    restored = MixturePrior.from_arrays(prior.to_arrays())
    np.testing.assert_array_equal(
        restored.sample(9, np.random.default_rng(0)), prior.sample(9, np.random.default_rng(0))
    )
    np.testing.assert_array_equal(restored.ln_density(points), prior.ln_density(points))
    assert restored.ln_prior_floor == prior.ln_prior_floor
