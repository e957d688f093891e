"""The posterior: covariances, second modes, error factors, and the direct estimate pooled in."""

import numpy as np
import pytest
from oracle import THETA_MEAN, THETA_SCALE, shared_solver

from fitting import posterior, star_solver
from fitting.posterior import (
    CURVATURE_ALONE,
    MODEL_ALONE,
    estimates,
    inverse_or_nan,
    needed_error_factors,
    physical,
    pool,
    pool_loss,
    widened,
)
from fitting.star_solver import LN_E, LN_PLX, Solution


@pytest.fixture(scope="module")
def solver():
    return shared_solver()


@pytest.fixture
def solution():
    """A `Solution` of 20 stars whose curvatures are positive definite."""
    rng = np.random.default_rng(5)
    out = Solution.empty(20)
    out.u[:] = 0.3 * rng.normal(size=(20, 6))
    out.hessian[:] = positive_definite(20, rng)
    out.phi[:], out.chi2[:] = 1.0, 60.0
    return out


# ------------------------------------------------------------------------------ the covariance


def positive_definite(n, rng, k=6):
    root = rng.normal(size=(n, k, k + 2))
    return root @ root.transpose(0, 2, 1)


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


def test_estimates_are_u_and_its_covariance_in_physical_units(solver):
    rng = np.random.default_rng(3)
    solution = Solution.empty(4)
    solution.u[:] = rng.normal(size=(4, 6))
    solution.hessian[:] = 10 * positive_definite(4, rng)
    found = estimates(solution, solver.model)
    for i in range(4):
        u = solution.u[i].astype("f8")
        expected = [*(u[:3] * THETA_SCALE + THETA_MEAN), np.exp(u[4]), np.exp(u[5]), u[3]]
        np.testing.assert_allclose(found.est[i], expected, rtol=1e-6)
        jacobian = np.zeros((6, 6))  # rows: Teff, [Fe/H], log g, E, plx, xi; columns: u
        jacobian[[0, 1, 2, 3, 4, 5], [0, 1, 2, 4, 5, 3]] = [*THETA_SCALE, *expected[3:5], 1]
        covariance = jacobian @ np.linalg.inv(solution.hessian[i].astype("f8")) @ jacobian.T
        np.testing.assert_allclose(found.cov[i], covariance, rtol=1e-5)
        np.testing.assert_allclose(found.err[i], np.sqrt(np.diag(covariance)), rtol=1e-5)
        np.testing.assert_allclose(found.icov[i] @ found.cov[i], np.eye(6), atol=1e-7)


def test_estimates_without_a_proper_covariance_are_NaN_throughout(solver):
    solution = Solution.empty(8)
    solution.u[:7] = 0.1
    solution.hessian[0] = np.eye(6)
    solution.hessian[1:7] = list(not_positive_definite().values())
    found = estimates(solution, solver.model)  # the last: no solution at all
    for value in vars(found).values():
        assert np.isfinite(value[0]).all()
        assert np.isnan(value[1:]).all()


# ------------------------------------------------------------- second modes and error factors


NONE = Solution.empty(20)
USEFUL = np.arange(20) % 2 == 0


def shifted(solution, rng, delta_phi):
    """Second modes near a `Solution`, of other curvature, with phi higher by delta_phi."""
    second = Solution.empty(len(solution.u))
    second.u[:] = solution.u + rng.normal(size=solution.u.shape)
    second.hessian[:] = positive_definite(len(solution.u), rng)
    second.phi[:] = solution.phi + delta_phi
    return second


def test_without_second_mode_and_factors_the_curvature_stays(solution):
    found = widened(solution, NONE, USEFUL, CURVATURE_ALONE)
    for name, value in vars(solution).items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-6, err_msg=name)


def test_second_mode_that_is_improbable_changes_nothing(solution):
    second = shifted(solution, np.random.default_rng(8), 60.0)
    found = widened(solution, second, USEFUL, CURVATURE_ALONE)
    np.testing.assert_allclose(found.hessian, solution.hessian, rtol=1e-6)


def test_covariance_is_the_second_moment_of_both_modes_about_the_best(solver, solution):
    """Against draws of the mixture of the two Gaussians, each in physical units to first order."""
    rng, flux = np.random.default_rng(9), solver.model.flux
    solution.hessian *= 30
    second = shifted(solution, rng, np.linspace(0.0, 4.0, 20))
    second.hessian *= 30
    found = estimates(widened(solution, second, USEFUL, CURVATURE_ALONE), solver.model)
    modes = [estimates(s, solver.model) for s in (solution, second)]
    in_u = [np.linalg.inv(s.hessian.astype("f8")) for s in (solution, second)]
    shares = []
    for i in range(20):
        evidence = [
            np.exp(-s.phi[i].astype("f8")) * np.sqrt(np.linalg.det(c[i]))
            for s, c in zip((solution, second), in_u, strict=True)
        ]
        share = evidence[1] / sum(evidence)
        n = 400_000
        from_second = rng.random(n) < share
        draws = np.where(
            from_second[:, None],
            *(rng.multivariate_normal(mode.est[i], mode.cov[i], n) for mode in modes[::-1]),
        )
        from_best = draws - modes[0].est[i]
        moment = from_best.T @ from_best / n
        size = np.sqrt(np.outer(np.diag(moment), np.diag(moment)))
        np.testing.assert_allclose(found.cov[i] / size, moment / size, atol=0.015)
        shares.append(share)
    assert np.sum(np.abs(np.array(shares) - 0.5) < 0.4) > 8  # of stars where both count
    np.testing.assert_array_equal(found.est, estimates(solution, solver.model).est)
    np.testing.assert_allclose(found.est, physical(solution.u, flux))


def test_second_mode_without_dust_leaves_a_finite_error_of_dust(solver, solution):
    """E = 0.5 against E = 1e-4: the error is as large as that difference, whatever ln E says."""
    second = shifted(solution, np.random.default_rng(8), 0.0)
    solution.u[:, LN_E], second.u[:, LN_E] = np.log(0.5), np.log(1e-4)
    for one in (solution, second):
        one.hessian[:] = 1e4 * np.eye(6)
    found = estimates(widened(solution, second, USEFUL, CURVATURE_ALONE), solver.model)
    np.testing.assert_allclose(found.err[:, 3], 0.5 * np.sqrt(0.5), rtol=0.01)


def test_error_factors_multiply_the_errors_and_keep_the_correlations(solver, solution):
    factors = np.random.default_rng(1).uniform(0.8, 1.5, (2, 6))
    before = estimates(solution, solver.model)
    after = estimates(widened(solution, NONE, USEFUL, factors), solver.model)
    expected = before.err * np.where(USEFUL[:, None], factors[0], factors[1])
    np.testing.assert_allclose(after.err, expected, rtol=1e-5)
    for e in (before, after):
        e.cov /= e.err[:, :, None] * e.err[:, None]
    np.testing.assert_allclose(after.cov, before.cov, atol=1e-5)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_stars_without_curvature_stay_without(solution):
    second = shifted(solution, np.random.default_rng(8), 0.5)
    solution.hessian[3] = -solution.hessian[3]
    solution.u[5], solution.hessian[5], solution.phi[5] = np.nan, np.nan, np.inf
    second.u[5], second.hessian[5], second.phi[5] = np.nan, np.nan, np.inf
    second.hessian[7] = -second.hessian[7]
    found = widened(solution, second, USEFUL, CURVATURE_ALONE)
    cov = inverse_or_nan(found.hessian.astype("f8"))
    assert np.isnan(cov[[3, 5]]).all()
    assert np.isfinite(np.delete(cov, [3, 5], 0)).all()
    np.testing.assert_allclose(found.hessian[7], solution.hessian[7], rtol=1e-6)


def test_needed_factors_are_those_that_the_errors_are_too_small_by():
    rng, sizes = np.random.default_rng(2), np.array([0.8, 1.0, 1.3])
    est, err = rng.normal(size=(200_000, 3)), rng.uniform(0.5, 2, (200_000, 3))
    truth = est + sizes * err * rng.normal(size=est.shape)
    truth[7, 1] = err[8, 2] = np.nan  # stars without an answer do not count
    np.testing.assert_allclose(needed_error_factors(est, err, truth), sizes, rtol=0.01)


def test_no_factor_is_needed_where_no_star_has_an_answer():
    np.testing.assert_array_equal(needed_error_factors(*np.full((3, 5, 2), np.nan)), [1, 1])


@pytest.mark.parametrize(("nu", "capped"), [(12, False), (2, True)])
def test_heavy_tails_are_met_half_way_but_70_percent_are_never_exceeded(nu, capped):
    rng = np.random.default_rng(3)
    truth, one = rng.standard_t(nu, (400_000, 1)), np.ones((400_000, 1))
    factor = needed_error_factors(0 * truth, one, truth)
    inside = [np.mean(np.abs(truth) < factor * k) for k in (0.99446, 1.95996)]
    core, tail = (np.quantile(np.abs(truth), q) / k for q, k in ((0.68, 0.99446), (0.95, 1.95996)))
    expected = posterior.MOST_OVER * core if capped else np.sqrt(core * tail)
    np.testing.assert_allclose(factor, expected, rtol=1e-3)
    assert 0.68 < inside[0] < 0.701
    assert (inside[1] > 0.94) != capped


# --------------------------------------------------------------------- pooling two estimates


def linear(moved):
    """Changes of u in which E and parallax have grown by a multiple of what they were."""
    soft = np.array([0, 0, 0, 0, 1, 1]) * (moved > 0)
    return np.where(soft, np.expm1(moved), moved)


def in_physical_units(moved):
    """What errors of ln E and ln plx are to be divided by, to be relative to the new values."""
    return np.where([0, 0, 0, 0, 1, 1], np.exp(moved), 1.0)


def direct_estimate(n, seed=6):
    rng = np.random.default_rng(seed)
    return 0.3 * rng.normal(size=(n, 3)), rng.uniform(0.2, 2.0, (n, 3))


def test_pool_of_full_weights_is_the_product_of_both_gaussians(solution):
    z, sigma = direct_estimate(20)
    found = pool(solution, z, sigma, (1.0, 1.0))
    for i in range(20):
        precision = solution.hessian[i].astype("f8")
        extra = np.diag(np.append(sigma[i] ** -2, np.zeros(3)))
        mean = np.linalg.solve(
            precision + extra, precision @ solution.u[i] + extra @ np.append(z[i], np.zeros(3))
        )
        np.testing.assert_allclose(
            linear(found.u[i] - solution.u[i]), mean - solution.u[i], atol=1e-4
        )
        grown = in_physical_units(found.u[i] - solution.u[i])
        np.testing.assert_allclose(
            found.hessian[i] / np.outer(grown, grown), precision + extra, rtol=1e-4
        )


@pytest.mark.parametrize("weights", [(0.4, 0.5), (0.9, 0.05), (0.1, 1.0)])
def test_pool_is_the_logarithmic_pool_of_the_type_and_leaves_the_rest_given_it(solution, weights):
    z, sigma = direct_estimate(20)
    found = pool(solution, z, sigma, weights)
    before, after = (np.linalg.inv(s.hessian.astype("f8")) for s in (solution, found))
    own, new = (np.linalg.inv(c[:, :3, :3]) for c in (before, after))
    extra = sigma[:, :, None] ** -2 * np.eye(3)
    np.testing.assert_allclose(new, weights[0] * own + weights[1] * extra, rtol=1e-3, atol=1e-4)
    slopes = [
        np.linalg.solve(s.hessian[:, 3:, 3:].astype("f8"), s.hessian[:, 3:, :3])
        for s in (solution, found)
    ]
    unit = in_physical_units(found.u - solution.u)[:, 3:, None]
    np.testing.assert_allclose(unit * slopes[1], slopes[0], rtol=1e-4)
    moved = linear((found.u - solution.u).astype("f8"))
    np.testing.assert_allclose(
        moved[:, 3:], -np.einsum("nij,nj->ni", slopes[0], moved[:, :3]), atol=1e-5
    )


def test_pool_with_the_model_alone_changes_nothing(solution):
    found = pool(solution, *direct_estimate(20), MODEL_ALONE)
    for name, value in vars(solution).items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("there", [0.1, 0.5, 1.0])
@pytest.mark.parametrize(
    ("first", "other"), [((0.02, 0.05), (0.5, 1.2)), ((0.5, 1.2), (0.02, 0.05))]
)
def test_pool_of_two_modes_stays_between_them(solver, there, first, other):
    """A giant and a dwarf, whose dust and parallaxes differ by 24, and a direct estimate between
    the two or at the second: neither E nor parallax goes beyond it, nor do their errors."""
    rng, n = np.random.default_rng(12), 20
    best, second = Solution.empty(n), Solution.empty(n)
    best.u[:] = 0.1 * rng.normal(size=(n, 6))
    second.u[:] = best.u + [0.3, 0.2, 1.5, 0, 0, 0]
    for mode, values in ((best, first), (second, other)):
        mode.u[:, [LN_E, LN_PLX]] = np.log(values)
        mode.hessian[:] = np.diag([400.0, 100, 100, 1, 100, 100])
    best.phi[:], second.phi[:] = 0.0, rng.uniform(0, 3, n)
    both = widened(best, second, np.ones(n, bool), CURVATURE_ALONE)
    z = best.u[:, :3] + there * (second.u - best.u)[:, :3]
    found = pool(both, z, np.full((n, 3), 0.1), (0.5, 0.5))
    before, after = (estimates(s, solver.model) for s in (both, found))
    ends = np.sort([first, other], 0)
    for k in range(2):
        value, margin = after.est[:, 3 + k], 0.15 * ends[1, k]
        assert ((value > ends[0, k] - margin) & (value < ends[1, k] + margin)).all()
    assert (after.err[:, 3:5] <= 1.01 * before.err[:, 3:5]).all()


def test_pool_leaves_stars_without_curvature_or_direct_estimate_alone(solution):
    z, sigma = direct_estimate(20)
    solution.hessian[3] = -solution.hessian[3]
    solution.u[5], solution.hessian[5] = np.nan, np.nan
    z[7] = np.nan
    found = pool(solution, z, sigma, (0.5, 0.5))
    for name, value in vars(solution).items():
        np.testing.assert_array_equal(getattr(found, name)[[3, 5, 7]], value[[3, 5, 7]])
    others = np.delete(np.arange(20), [3, 5, 7])
    assert (found.u[others] != solution.u[others]).any(1).all()


def test_pool_stays_within_the_bounds(solution):
    z, sigma = direct_estimate(20)
    found = pool(solution, z + 50, sigma, (0.5, 0.5))
    assert ((found.u >= star_solver.LOWER) & (found.u <= star_solver.UPPER)).all()


def test_pool_loss_is_least_for_honest_errors():
    rng = np.random.default_rng(7)
    n = 20_000
    z, hessian = rng.normal(size=(n, 3)), positive_definite(1, rng)[0]
    root = np.linalg.cholesky(np.linalg.inv(hessian)[:3, :3])
    tails = np.sqrt(posterior.POOL_NU / rng.chisquare(posterior.POOL_NU, (n, 1)))
    off = tails * (rng.normal(size=(n, 3)) @ root.T)
    losses = []
    for size in (0.8, 0.9, 1.0, 1.1, 1.2):
        solution = Solution.empty(n)
        solution.u[:, :3], solution.hessian[:] = z + off, hessian / size**2
        losses.append(pool_loss(solution, z))
    assert np.argmin(losses) == 2
