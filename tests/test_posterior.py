"""The posterior: covariances, second modes, error factors."""

import numpy as np
import pytest
from model_case import LABEL_SETS, make_model, mock_stars, replaced

from fitting import posterior
from fitting.posterior import (
    NO_TYPE_FACTORS,
    ErrorModel,
    Gaussian,
    estimates,
    inverse_or_nan,
    needed_factors,
    physical,
    widened,
)

N = 20


@pytest.fixture(scope="module", params=[2, 3, 4])
def model(request):
    return make_model(LABEL_SETS[request.param])


@pytest.fixture
def gaussian(model):
    """A `Gaussian` of 20 stars whose precisions are positive definite."""
    return random_gaussian(len(model.coordinates))


def random_gaussian(n_parameters, n=N, seed=5):
    rng = np.random.default_rng(seed)
    mean = 0.3 * rng.normal(size=(n, n_parameters))
    return Gaussian(mean, positive_definite(n, rng, n_parameters))


def positive_definite(n, rng, k=6):
    root = rng.normal(size=(n, k, k + 2))
    return root @ root.transpose(0, 2, 1)


def none_like(gaussian):
    """Second modes that are not there."""
    return Gaussian(np.full_like(gaussian.mean, np.nan), np.full_like(gaussian.precision, np.nan))


def unwidened(first, second, ln_ratio):
    """`widened` of factors 1."""
    return widened(first, second, ln_ratio, np.ones(first.mean.shape))


# ------------------------------------------------------------------------------ the covariance


def test_inverse_is_accurate_whatever_the_units():
    rng = np.random.default_rng(0)
    matrices = positive_definite(20, rng)
    units = np.exp(rng.uniform(-14, 14, (20, 6)))
    scaled = matrices * units[:, :, None] * units[:, None]
    expected = np.linalg.inv(matrices) / (units[:, :, None] * units[:, None])
    np.testing.assert_allclose(inverse_or_nan(scaled), expected, rtol=1e-6)


def not_positive_definite():
    rng = np.random.default_rng(1)
    values, vectors = np.linalg.eigh(positive_definite(1, rng)[0])
    negative = (vectors * (values * [-1e-3, 1, 1, 1, 1, 1])) @ vectors.T
    singular = (vectors * (values * [0, 1, 1, 1, 1, 1])) @ vectors.T
    infinite, nan = np.eye(6), np.eye(6)
    infinite[2, 2], nan[1, 4] = np.inf, np.nan
    return {
        "one negative eigenvalue": negative,
        "singular": singular,
        "zero": np.zeros((6, 6)),
        "negative diagonal": -np.eye(6),
        "infinite": infinite,
        "NaN": nan,
    }


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("kind", not_positive_definite())
def test_matrix_that_is_not_positive_definite_gives_NaN_and_leaves_its_neighbours(kind):
    good = positive_definite(2, np.random.default_rng(2))
    found = inverse_or_nan(np.stack([good[0], not_positive_definite()[kind], good[1]]))
    assert np.isnan(found[1]).all()
    np.testing.assert_allclose(found[[0, 2]], np.linalg.inv(good), rtol=1e-8)


def test_estimates_are_u_and_its_covariance_in_physical_units(model, gaussian):
    found, k = estimates(gaussian, model), len(model.labels)
    for i, (u, precision) in enumerate(zip(gaussian.mean, gaussian.precision, strict=True)):
        theta = u[:k] * model.label_scale + model.label_mean
        expected = [*theta, u[k], np.exp(u[k + 1]), np.exp(u[k + 2])]
        np.testing.assert_allclose(found.est[i], expected, rtol=1e-6)
        jacobian = np.diag([*model.label_scale, 1, *expected[k + 1 :]])
        covariance = jacobian @ np.linalg.inv(precision) @ jacobian.T
        np.testing.assert_allclose(found.cov[i], covariance, rtol=1e-5)
        np.testing.assert_allclose(found.err[i], np.sqrt(np.diag(covariance)), rtol=1e-5)
        np.testing.assert_allclose(found.icov[i] @ found.cov[i], np.eye(k + 3), atol=1e-7)


def test_estimates_are_in_the_order_of_the_parameters(model):
    names = [p.name for p in model.labels.parameters]
    at = model.coordinates
    assert names[at.xi] == "xi"
    assert names[at.ln_ext] == "E"
    assert names[at.ln_plx] == "parallax"
    assert names[at.z] == model.labels.texts("name")
    u = np.zeros((1, len(at)))
    u[0, at.ln_plx] = np.log(3.0)
    assert physical(u, model)[0, at.ln_plx] == pytest.approx(3.0)


def test_estimates_without_a_proper_covariance_are_NaN_throughout():
    precision = np.stack([np.eye(6), *not_positive_definite().values(), np.full((6, 6), np.nan)])
    mean = np.full((8, 6), 0.1)
    mean[7] = np.nan  # no solution at all
    for value in vars(estimates(Gaussian(mean, precision), make_model())).values():
        assert np.isfinite(value[0]).all()
        assert np.isnan(value[1:]).all()


# ------------------------------------------------------------- second modes and error factors


def shifted(gaussian, seed=8):
    """Second modes near a `Gaussian`, of other curvature."""
    rng, (n, k) = np.random.default_rng(seed), gaussian.mean.shape
    return Gaussian(gaussian.mean + rng.normal(size=(n, k)), positive_definite(n, rng, k))


def test_without_second_mode_and_factors_the_curvature_stays(gaussian):
    found = unwidened(gaussian, none_like(gaussian), np.full(N, -np.inf))
    np.testing.assert_array_equal(found.mean, gaussian.mean)
    np.testing.assert_allclose(found.precision, gaussian.precision, rtol=1e-12)


def test_second_mode_that_is_improbable_changes_nothing(gaussian):
    found = unwidened(gaussian, shifted(gaussian), np.full(N, -60.0))
    np.testing.assert_allclose(found.precision, gaussian.precision, rtol=1e-12)


def test_covariance_is_the_second_moment_of_both_modes_about_the_best(model, gaussian):
    """Against draws of the mixture of the two Gaussians, each in physical units to first order."""
    rng, ln_ratio = np.random.default_rng(9), -np.linspace(0.0, 4.0, N)
    first = Gaussian(gaussian.mean, 30 * gaussian.precision)
    second = shifted(gaussian, seed=9)
    second = Gaussian(second.mean, 30 * second.precision)
    found = estimates(unwidened(first, second, ln_ratio), model)
    modes = [estimates(one, model) for one in (first, second)]
    in_u = [np.linalg.inv(one.precision) for one in (first, second)]
    shares, n = [], 60_000
    for i in range(0, N, 2):
        evidence = [
            np.exp(ln) * np.sqrt(np.linalg.det(cov[i]))
            for ln, cov in zip((0.0, ln_ratio[i]), in_u, strict=True)
        ]
        shares.append(evidence[1] / sum(evidence))
        moment = 0.0
        for share, mode in zip((1 - shares[-1], shares[-1]), modes, strict=True):
            draws = rng.multivariate_normal(mode.est[i], mode.cov[i], n) - modes[0].est[i]
            moment = moment + share * draws.T @ draws / n
        size = np.sqrt(np.outer(np.diag(moment), np.diag(moment)))
        np.testing.assert_allclose(found.cov[i] / size, moment / size, atol=0.02)
    assert np.sum(np.abs(np.array(shares) - 0.5) < 0.4) >= 4  # of stars where both count
    np.testing.assert_array_equal(found.est, estimates(first, model).est)


def test_second_mode_without_dust_leaves_a_finite_error_of_dust(model, gaussian):
    """E = 0.5 against E = 1e-4: the error is as large as that difference, whatever ln E says."""
    at, second = model.coordinates, shifted(gaussian)
    precision = np.tile(1e4 * np.eye(len(at)), (N, 1, 1))
    gaussian.mean[:, at.ln_ext], second.mean[:, at.ln_ext] = np.log(0.5), np.log(1e-4)
    modes = (Gaussian(one.mean, precision) for one in (gaussian, second))
    found = estimates(unwidened(*modes, np.zeros(N)), model)
    np.testing.assert_allclose(found.err[:, at.ln_ext], 0.5 * np.sqrt(0.5), rtol=0.01)


def test_error_factors_multiply_the_errors_and_keep_the_correlations(model, gaussian):
    factors = np.random.default_rng(1).uniform(0.8, 1.5, gaussian.mean.shape)
    before = estimates(gaussian, model)
    none = none_like(gaussian)
    after = estimates(widened(gaussian, none, np.full(N, -np.inf), factors), model)
    np.testing.assert_allclose(after.err, factors * before.err, rtol=1e-5)
    for e in (before, after):
        e.cov /= e.err[:, :, None] * e.err[:, None]
    np.testing.assert_allclose(after.cov, before.cov, atol=1e-5)


def test_factors_and_pool_weights_of_stars_follow_their_parallax_and_error_level(model):
    """Stars of two error levels, and between; every other one without a useful parallax."""
    rng, n = np.random.default_rng(4), len(model.coordinates)
    data, _ = mock_stars(model, 6)
    rel_err = np.array([0.001, 0.001, 0.02, 0.02, 0.1, 0.1])[:, None]
    plx_err = np.where(np.arange(6) % 2, 0.6, 0.1) * np.abs(data.parallax)
    data = replaced(
        data,
        flux_err=rel_err * data.flux,
        parallax=np.abs(data.parallax),
        parallax_err=plx_err,
    )
    levels, factors = np.log([0.01, 0.04]), rng.uniform(0.8, 1.5, (2, 2, n))
    weights = np.array([[0.9, 0.1], [0.5, 0.7]])
    found, pooled = ErrorModel(levels, factors, weights, NO_TYPE_FACTORS).of(data)
    assert found.shape == (6, n)
    for rows, between in ((slice(0, 2), 0.0), (slice(2, 4), 0.5), (slice(4, 6), 1.0)):
        expected = (1 - between) * factors[:, 0] + between * factors[:, 1]
        np.testing.assert_allclose(found[rows], expected, rtol=1e-4)
        of_pool = (1 - between) * weights[0] + between * weights[1]
        np.testing.assert_allclose(pooled[rows], np.tile(of_pool, (2, 1)), rtol=1e-4)


def test_errors_of_the_curvature_alone_have_no_factors_and_no_pool():
    errors = ErrorModel.curvature_alone(7)
    np.testing.assert_array_equal(errors.factors, np.ones((2, 1, 7)))
    np.testing.assert_array_equal(errors.pool_weights, [[1, 0]])
    np.testing.assert_array_equal(errors.of_type(np.ones((2, 4))), np.ones((2, 4)))


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_stars_without_curvature_stay_without(gaussian):
    second = shifted(gaussian)
    for one in (gaussian.precision[3], second.precision[7]):
        one *= -1
    for one in (gaussian, second):
        one.mean[5] = one.precision[5] = np.nan
    found = unwidened(gaussian, second, np.full(N, -0.5))
    cov = inverse_or_nan(found.precision)
    assert np.isnan(cov[[3, 5]]).all()
    assert np.isfinite(np.delete(cov, [3, 5], 0)).all()
    np.testing.assert_allclose(found.precision[7], gaussian.precision[7], rtol=1e-6)


def test_needed_factors_are_those_that_the_errors_are_too_small_by():
    rng, sizes = np.random.default_rng(2), np.array([0.8, 1.0, 1.3])
    est, err = rng.normal(size=(200_000, 3)), rng.uniform(0.5, 2, (200_000, 3))
    truth = est + sizes * err * rng.normal(size=est.shape)
    truth[7, 1] = err[8, 2] = np.nan  # stars without an answer do not count
    np.testing.assert_allclose(needed_factors(est, err, truth), sizes, rtol=0.01)


def test_no_factor_is_needed_where_no_star_has_an_answer():
    np.testing.assert_array_equal(needed_factors(*np.full((3, 5, 2), np.nan)), [1, 1])


@pytest.mark.parametrize(("nu", "capped"), [(12, False), (2, True)])
def test_heavy_tails_are_met_half_way_but_70_percent_are_never_exceeded(nu, capped):
    rng = np.random.default_rng(3)
    truth, one = rng.standard_t(nu, (400_000, 1)), np.ones((400_000, 1))
    factor = needed_factors(0 * truth, one, truth)
    inside = [np.mean(np.abs(truth) < factor * k) for k in (0.99446, 1.95996)]
    core, tail = (np.quantile(np.abs(truth), q) / k for q, k in ((0.68, 0.99446), (0.95, 1.95996)))
    expected = posterior.MOST_OVER * core if capped else np.sqrt(core * tail)
    np.testing.assert_allclose(factor, expected, rtol=1e-3)
    assert 0.68 < inside[0] < 0.701
    assert (inside[1] > 0.94) != capped
