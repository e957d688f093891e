"""The posterior about a solution: its precision against the float64 counterpart's curvature."""

import numpy as np
import pytest
from model_case import N_WL, eagerly, make_model, mock_stars, replaced
from model_oracle import Oracle, Star, curvature, slope
from scipy import optimize

from fitting.posterior import (
    estimates,
    linear_in_extinction,
    physical,
    signed_extinction,
)
from fitting.settling import principal_axes
from fitting.star_solver import StarSolver
from pipeline.quiet_tensorflow import tf
from pipeline.statistics import robust_width


@pytest.fixture(scope="module")
def model(star_solver):
    return star_solver.model


@pytest.fixture(scope="module")
def at(model):
    return model.coordinates


def refined(solver, data, u):
    """Descents from u (n, 6) with the noise held there, so that the oracle can hold the same."""
    return solver.minimise(data, np.asarray(u, "f4"), evaluations=60)


def sigmas(solver, data, solution):
    """`Estimates` from the curvature at the point."""
    return estimates(solver.gaussian(data, solution, over_a_sigma=False), solver.model)


def phi_of(oracle, data, i, u0):
    """The oracle's phi of star i with the noise as it is at u0, a function of u."""
    star = Star(data, i)
    noise = oracle.noise_at(u0, star)
    return lambda u: oracle.phi(u, star, noise)


# ------------------------------------------------------------------- the curvature over a sigma


def test_mean_of_the_gaussian_is_the_solution(star_solver, mocks, solved):
    gaussian = star_solver.gaussian(mocks[0], solved.best)
    np.testing.assert_array_equal(gaussian.mean, solved.best.u)
    assert gaussian.precision.dtype == np.float64
    np.testing.assert_allclose(
        gaussian.precision, gaussian.precision.transpose(0, 2, 1), rtol=1e-6, atol=1e-3
    )


def test_curvature_over_a_sigma_is_that_of_the_flatter_side_where_that_is_less(
    star_solver, mocks, at
):
    data, n_free = mocks[0].take(slice(0, 60)), at.ln_plx
    solution = star_solver.minimise(data, mocks[1][:60].astype("f4"), 60)
    before, after = (
        np.linalg.inv(star_solver.gaussian(data, solution, over).precision)[:, :n_free, :n_free]
        for over in (False, True)
    )
    ratios = []
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        variance, axes = np.linalg.eigh(old)
        for sigma2, axis in zip(variance, axes.T, strict=True):
            point = np.repeat(solution.u[i][None], 3, 0)
            point[1:, :n_free] += np.outer([1, -1], np.sqrt(sigma2) * axis)
            middle, *ends = star_solver.minimise(
                data, at.clip(point), 1, np.full(3, i), point[:1].repeat(3, 0)
            ).phi.astype("f8")
            growth = axis @ new @ axis / sigma2
            ratios.append((1 / np.clip(2 * (min(ends) - middle), 0.25, 1), growth))
    expected, found = np.array(ratios).T
    np.testing.assert_allclose(found, expected, rtol=0.02)
    assert (found > 1.02).any()
    assert (found < 1.02).any()
    assert np.linalg.eigvalsh(after - before).min() > -1e-9


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_precision_of_a_star_without_solution_is_NaN(star_solver, mocks):
    data = mocks[0].take(slice(0, 3))
    solution = star_solver.minimise(data, mocks[1][:3].astype("f4"), 60)
    whole = star_solver.gaussian(data, solution).precision
    solution.u[1] = np.nan
    found = star_solver.gaussian(data, solution).precision
    assert np.isnan(found[1]).all()
    np.testing.assert_array_equal(found[[0, 2]], whole[[0, 2]])
    solution.u[:] = np.nan
    assert np.isnan(star_solver.gaussian(data, solution, over_a_sigma=False).precision).all()


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_axes_of_a_matrix_that_is_not_positive_definite_are_left_out():
    bad = np.diag([1.0, 2, 3, 4, -5, 6])
    infinite = np.full((6, 6), np.inf)
    matrices = np.stack([bad, np.eye(6), infinite], 2)
    curvature, axes = (x.numpy() for x in principal_axes(tf.constant(matrices)))
    assert (curvature[:, [0, 2]] == 0).all()
    assert (axes[:, :, [0, 2]] == 0).all()
    np.testing.assert_allclose(curvature[:, 1], 1)
    np.testing.assert_allclose(np.abs(axes[:, :, 1]).sum(1), 1)


def test_precision_is_precise_where_brightness_is_known_a_million_times_better(at):
    """Its float32 Gram matrix is wrong by up to a factor of two in the errors."""
    model, n = make_model(), 20
    base = model.noise.base.numpy()
    base[1:N_WL] = 60.0  # the first row of W: the sum of all residuals, and more
    model.noise.base.assign(base)
    model.noise.ln_nu.assign(np.log(1e6))
    exact = Oracle(model)
    data, u = mock_stars(model, n, seed=3)
    flux = np.exp([exact.mu(row) for row in u]).astype("f4")  # no residuals: Gauss-Newton is
    data = replaced(data, flux=flux, flux_err=0.02 * flux)  # exact but for the prior
    with eagerly():
        solver = StarSolver(model, batch_size=n)
        solution = solver.minimise(data, u.astype("f4"), 1)
        precise = np.linalg.inv(solver.gaussian(data, solution, over_a_sigma=False).precision)
        batch, point = solver.batch(data, np.arange(n)), solution.u.T
        whitening = solver.objective.whitening(point, batch)
        rough = solver.objective.evaluate(point, batch, whitening).hessian.numpy()
    rough = np.linalg.inv(rough.transpose(2, 0, 1).astype("f8"))
    with np.errstate(invalid="ignore"):  # the rough one may be negative
        precise, rough = (np.sqrt(np.einsum("nii->ni", cov)) for cov in (precise, rough))
    prior = model.prior.value_gradient_hessian(solution.u[:, at.z])[2].numpy()
    expected = []
    for i in range(n):
        star, place = Star(data, i), solution.u[i].astype("f8")
        precision, _ = exact.noise_at(place, star)
        jacobian = slope(exact.mu, place, 1e-5)  # (n_wl, 6)
        hessian = jacobian.T @ precision @ jacobian
        hessian[at.z, at.z] += prior[i]
        plx, ivar = np.exp(place[at.ln_plx]), star.parallax_err**-2.0
        hessian[at.xi, at.xi] += 1
        hessian[at.ln_plx, at.ln_plx] += ivar * plx * (plx + max(plx - star.parallax, 0))
        assert np.linalg.cond(hessian) > 1e7
        expected.append(np.sqrt(np.diag(np.linalg.inv(hessian))))
    np.testing.assert_allclose(precise, expected, rtol=0.03)
    assert np.nanmax(np.abs(rough / np.array(expected) - 1)) > 0.1


# --------------------------------------------------------------------------------- the covariance


def assert_covariance_is_inverse_curvature(solver, oracle, data, tolerance):
    """Errors within a fraction of those of the oracle's finite differences, in physical units. In
    xi, three times as much: Gauss-Newton leaves out the bend of tanh."""
    at, model = solver.model.coordinates, solver.model
    u0 = solver.solve(data).best.u
    found = refined(solver, data, u0)
    result = sigmas(solver, data, found)
    units = np.ones((len(data), 6))
    units[:, at.z], units[:, at.logarithms] = model.label_scale, np.exp(found.u[:, at.logarithms])
    tolerance = tolerance * np.where(np.arange(6) == at.xi, 3, 1)
    for i in range(len(data)):
        hessian = curvature(phi_of(oracle, data, i, u0[i]), found.u[i])
        expected = np.linalg.inv(hessian) * np.outer(units[i], units[i])
        sigma, err = np.sqrt(np.diag(expected)), result.err[i]
        assert (np.abs(err / sigma - 1) < tolerance).all()
        np.testing.assert_allclose(
            result.cov[i] / np.outer(err, err), expected / np.outer(sigma, sigma), atol=0.15
        )  # the correlations
        np.testing.assert_allclose(result.cov[i] @ result.icov[i], np.eye(6), atol=1e-4)


def test_covariance_is_the_inverse_curvature_of_the_oracle(star_solver, oracle, mocks):
    assert_covariance_is_inverse_curvature(star_solver, oracle, mocks[0].take(slice(0, 12)), 0.1)


def test_covariance_with_a_precise_parallax_is_the_inverse_curvature_too(
    star_solver, oracle, model
):
    data, _ = mock_stars(model, 6, seed=13, plx_snr=1000.0)
    assert_covariance_is_inverse_curvature(star_solver, oracle, data, 0.1)


def test_covariance_of_a_star_without_dust_is_the_inverse_curvature_too(
    star_solver, oracle, dustless
):
    assert_covariance_is_inverse_curvature(star_solver, oracle, dustless, 0.05)


# ------------------------------------------------------------------------ parallax, dust at zero


def test_star_without_parallax_is_solved_from_its_fluxes(star_solver, model, mocks):
    data, truth = mocks[0].take(slice(0, 100)), mocks[1][:100]
    none = np.full(100, np.nan, "f4")
    data = replaced(data, parallax=none, parallax_err=none)
    found = star_solver.solve(data).best
    assert found.converged.all()
    pull = (physical(found.u, model) - physical(truth, model)) / sigmas(
        star_solver, data, found
    ).err
    assert (np.abs(np.median(pull, 0)) < 0.5).all()
    width = robust_width(pull)
    assert ((width > 0.7) & (width < 1.35)).all()


def test_unknown_parallax_widens_the_errors(star_solver, mocks, at):
    data, none = mocks[0].take(slice(0, 100)), np.full(100, np.nan, "f4")
    true = np.exp(mocks[1][:100, at.ln_plx]).astype("f4")
    precise = replaced(data, parallax=true, parallax_err=0.001 * true)
    widths = []
    for stars in (precise, replaced(data, parallax=none, parallax_err=none)):
        found = star_solver.solve(stars).best
        covariance = np.linalg.inv(star_solver.gaussian(stars, found, False).precision)
        widths.append(np.sqrt(np.einsum("nii->ni", covariance)))
    ratio = np.median(widths[1] / widths[0], 0)
    assert ratio[at.ln_plx] > 3
    assert (ratio[at.z] >= 1).all()


@pytest.mark.parametrize("sigma", [0.3, 1.0, 100.0])
def test_star_with_a_negative_parallax_has_a_finite_positive_distance(
    star_solver, oracle, mocks, sigma
):
    data = mocks[0].take(slice(0, 10))
    values = np.full(10, -0.3, "f4"), np.full(10, sigma, "f4")
    data = replaced(data, parallax=values[0], parallax_err=values[1])
    found = star_solver.solve(data).best
    assert found.converged.all()
    assert np.isfinite(found.u).all()
    again = refined(star_solver, data, found.u)
    for i in range(3):
        best = optimize.minimize(phi_of(oracle, data, i, found.u[i]), again.u[i])
        assert again.phi[i] < best.fun + 0.1


BELOW_ZERO = (-0.01, -0.005, 0.0, 0.005)  # E that the fluxes of stars without dust look like


@pytest.fixture(scope="module")
def dustless(model, oracle, at):
    """Stars with E = 0 whose fluxes look as if it were -2, -1, 0, 1 sigma or so."""
    data, u = mock_stars(model, 16, seed=9)
    curve = np.exp(model.flux.ln_ext_curve.numpy())
    off = np.repeat(BELOW_ZERO, 4)
    u[:, at.ln_ext] = -30.0
    flux = np.exp(np.array([oracle.mu(row) for row in u]) - off[:, None] * curve)
    return replaced(data, flux=flux.astype("f4"), flux_err=(0.02 * flux).astype("f4"))


def test_star_without_dust_is_not_stuck(star_solver, oracle, dustless, at):
    best = star_solver.solve(dustless).best
    assert best.converged.all()
    ext, err = np.exp(best.u[:, at.ln_ext]), sigmas(star_solver, dustless, best).err[:, at.ln_ext]
    assert ((ext > 0) & (ext < 0.05)).all()
    assert ((err > 1e-4) & (err < 0.05)).all()
    found = refined(star_solver, dustless, best.u)
    for i in range(0, len(ext), 2):
        phi, dusty = phi_of(oracle, dustless, i, best.u[i]), found.u[i].copy()
        dusty[at.ln_ext] = -3.0
        lowest = min(optimize.minimize(phi, start).fun for start in (found.u[i], dusty))
        assert found.phi[i] < lowest + 0.05
        assert abs(slope(phi, found.u[i])[at.ln_ext]) < 0.1


def test_extinction_of_either_sign_is_what_the_fluxes_look_like(star_solver, dustless, at):
    best = star_solver.solve(dustless).best
    found = star_solver.gaussian(dustless, best)
    linear = linear_in_extinction(*found.point, at)
    one = np.ones((len(dustless), 2))
    ext, err = signed_extinction(linear, np.ones_like(best.u), None, one, at)
    assert (np.abs(ext - np.repeat(BELOW_ZERO, 4)) < 0.5 * err).all()
    by_look = ext.reshape(4, 4).mean(1)
    np.testing.assert_allclose(by_look, BELOW_ZERO, atol=2e-3)
    assert (np.exp(best.u[:, at.ln_ext]).reshape(4, 4).mean(1) > by_look + 1e-3).all()


def test_xi_of_a_dustless_star_is_its_prior(star_solver, dustless, at):
    best = star_solver.solve(dustless).best
    assert (np.abs(best.u[:, at.xi]) < 0.5).all()
    np.testing.assert_allclose(sigmas(star_solver, dustless, best).err[:, at.xi], 1.0, atol=0.25)
