"""The forward model, noise model and prior against slow float64 counterparts (tests/oracle.py)."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf
from oracle import (
    N_WL,
    PRIOR_COVARIANCES,
    PRIOR_MEANS,
    PRIOR_WEIGHTS,
    THETA_MEAN,
    THETA_SCALE,
    Oracle,
    Star,
    make_flux_model,
    make_model,
    make_prior,
    mock_stars,
    replaced,
)
from scipy import stats

import xp_utils
from model import (
    DIRECT_LIMIT,
    DirectNetwork,
    FluxModel,
    MixturePrior,
    StellarModel,
    cholesky_small,
    direct_inputs,
    export,
    fit_prior,
    initial_ln_ext_curve,
    ln_flux_data,
    marginal_chi2,
    set_threads,
    solve_small,
    student_misfit,
    used_fluxes,
)

N_STARS = 5
WISE = slice(N_WL - 2, N_WL)
BP = xp_utils.XP_WAVELENGTHS < 640
MISSING = {
    "nothing": [],
    "WISE": [64, 65],
    "2MASS": [61, 62, 63],
    "J": [61],
    "photometry": range(61, 66),
    "BP": np.flatnonzero(BP),
    "BP and photometry": [*np.flatnonzero(BP), *range(61, 66)],
}
RANDOM_MISSING = np.flatnonzero(np.random.default_rng(5).random(N_WL) < 0.4)
GENERAL_MISSING = {
    "RP": np.flatnonzero(~BP),
    "random channels": RANDOM_MISSING,
    "all but one": np.delete(np.arange(N_WL), 20),
}


@pytest.fixture(scope="module")
def stellar():
    return make_model()


@pytest.fixture(scope="module")
def oracle(stellar):
    return Oracle(stellar)


@pytest.fixture(scope="module")
def stars(stellar):
    """Random stars: z (n, 3), xi, E, ln plx (n,), float32."""
    rng = np.random.default_rng(1)
    z = np.clip(stellar.prior.sample(N_STARS, rng), -2.5, 2.5)
    values = z, rng.normal(size=N_STARS), rng.uniform(0.1, 2, N_STARS), rng.normal(size=N_STARS)
    return tuple(x.astype("f4") for x in values)


@pytest.fixture(scope="module")
def noise_inputs(stars):
    """z, E, rel_err, features of the stars; what is missing is up to the test."""
    rng = np.random.default_rng(2)
    rel_err = np.exp(rng.normal(np.log(0.03), 0.6, (N_STARS, N_WL)))
    features = np.column_stack([rng.normal(3, 1, N_STARS), rng.normal(np.log(0.03), 0.3, N_STARS)])
    return stars[0], stars[2], rel_err.astype("f4"), features.astype("f4")


def numerical_slope(function, x, step=1e-5):
    """Central differences (..., len(x)) of a float64 function of x (k,)."""
    x = np.asarray(x, "f8")
    moves = step * np.eye(len(x))
    return np.stack([(function(x + d) - function(x - d)) / (2 * step) for d in moves], -1)


# -------------------------------------------------------------------------- the forward model


@pytest.mark.parametrize(("n_layers", "hidden"), [(1, 7), (2, 5), (3, 16), (4, 6)])
def test_network_and_its_jacobian_equal_the_equations_and_their_differences(n_layers, hidden):
    rng = np.random.default_rng(n_layers)
    mean, basis = rng.normal(size=N_WL), rng.normal(0, 0.2, (N_WL, N_WL))
    model = FluxModel(
        xp_utils.SAMPLE_WAVELENGTHS, THETA_MEAN, THETA_SCALE, mean, basis, hidden, n_layers, seed=3
    )
    for variable in model.network_variables:
        variable.assign(variable + rng.normal(0, 0.3, variable.shape).astype("f4"))
    oracle = Oracle(StellarModel(model, make_model().noise, make_prior()))
    z = rng.normal(0, 1.2, (9, 3)).astype("f4")
    value, jacobian = (x.numpy() for x in model.ln_flux_and_jacobian(tf.constant(z)))
    np.testing.assert_allclose(value, [oracle.ln_flux(row) for row in z.astype("f8")], atol=1e-5)
    np.testing.assert_allclose(model.ln_flux(z), value, atol=1e-5)
    expected = [numerical_slope(oracle.ln_flux, row).T for row in z]
    np.testing.assert_allclose(jacobian, expected, atol=2e-5)


def test_jacobian_equals_that_of_automatic_differentiation(stellar, stars):
    z = tf.constant(stars[0])
    _, jacobian = stellar.flux.ln_flux_and_jacobian(z)
    for k in range(3):
        tangent = np.zeros_like(stars[0])
        tangent[:, k] = 1
        with tf.autodiff.ForwardAccumulator(z, tf.constant(tangent)) as accumulator:
            ln_flux = stellar.flux.ln_flux(z)
        np.testing.assert_allclose(jacobian[:, k], accumulator.jvp(ln_flux), atol=1e-5)


def test_float32_flux_equals_the_float64_equations(stellar, oracle, stars):
    z, xi, ext, ln_plx = stars
    u = np.column_stack([z, xi, np.log(ext.astype("f8")), ln_plx]).astype("f8")
    expected = np.exp([oracle.mu(row) for row in u])
    np.testing.assert_allclose(stellar.flux.flux(*stars), expected, rtol=3e-5)


def test_without_dust_the_flux_does_not_depend_on_xi(stellar, stars):
    z, xi, ext, ln_plx = stars
    without = stellar.flux.flux(z, xi, 0 * ext, ln_plx)
    np.testing.assert_array_equal(without, stellar.flux.flux(z, xi + 1, 0 * ext, ln_plx))
    changed = stellar.flux.flux(z, xi + 1, ext, ln_plx)
    assert not np.allclose(changed, stellar.flux.flux(z, xi, ext, ln_plx), rtol=1e-3)


@pytest.mark.parametrize("k", [4.0, 0.01])
def test_flux_times_k_is_parallax_times_the_root_of_k(stellar, stars, k):
    z, xi, ext, ln_plx = stars
    near = stellar.flux.flux(z, xi, ext, ln_plx + np.float32(0.5 * np.log(k)))
    np.testing.assert_allclose(near, k * stellar.flux.flux(*stars), rtol=1e-5)


def test_ln_flux_is_linear_in_dust_and_ln_parallax(stellar, stars):
    z, xi, ext, ln_plx = stars

    def ln_flux(factor):
        return np.log(stellar.flux.flux(z, xi, factor * ext, factor * ln_plx))

    np.testing.assert_allclose(ln_flux(2) - ln_flux(1), ln_flux(1) - ln_flux(0), atol=1e-5)


def test_extinction_in_W1_and_W2_does_not_depend_on_xi(stellar):
    assert (stellar.flux.ln_ext_curve_xi.numpy()[WISE] != 0).all()  # what the mask has to hold back
    curve, slope = stellar.flux.ext_curve(np.array([-2.0, 0.0, 3.0], "f4"))
    np.testing.assert_array_equal(curve[:, WISE], np.repeat(curve[:1, WISE], 3, 0))
    np.testing.assert_array_equal(slope[:, WISE], 0)
    assert (np.ptp(curve[:, : WISE.start], axis=0) > 0).all()


def test_slope_of_the_extinction_curve_equals_its_difference(stellar):
    xi, step = np.array([-1.5, 0.0, 0.7], "f4"), np.float32(0.01)
    high, low = (np.log(stellar.flux.ext_curve(xi + d)[0]) for d in (step, -step))
    np.testing.assert_allclose(stellar.flux.ext_curve(xi)[1], (high - low) / (2 * step), atol=1e-4)


def test_flux_of_a_wild_trial_point_is_finite(stellar):
    flux = stellar.flux.flux(
        np.full((2, 3), 50, "f4"),
        np.array([9, -9], "f4"),
        np.array([1e4, 0], "f4"),
        np.array([-50, 90], "f4"),
    )
    assert np.isfinite(flux).all()


def test_first_extinction_curve_is_the_documented_power_law():
    np.testing.assert_allclose(np.exp(initial_ln_ext_curve([550.0, 2200.0])), [2.0, 0.25])


def test_initial_weights_follow_the_seed_and_predict_the_mean():
    mean = np.linspace(1, 3, N_WL)
    a, b, c = (
        FluxModel(xp_utils.SAMPLE_WAVELENGTHS, THETA_MEAN, THETA_SCALE, mean, hidden=8, seed=s)
        for s in (1, 1, 2)
    )
    z = np.random.default_rng(0).normal(size=(20, 3)).astype("f4")
    np.testing.assert_array_equal(a.ln_flux(z), b.ln_flux(z))
    assert not np.allclose(a.ln_flux(z), c.ln_flux(z))
    np.testing.assert_allclose(np.mean(a.ln_flux(z), 0), mean, atol=0.3)


# --------------------------------------------------------------------------- observed ln fluxes


@pytest.fixture(scope="module")
def observed(stellar):
    """Mock stars with negative fluxes and missing channels of many kinds."""
    rng = np.random.default_rng(7)
    data, _ = mock_stars(stellar, 8, seed=7)
    flux, err = data.flux.copy(), data.flux_err.copy()
    flux[0, :6] = -flux[0, :6]
    flux[1, 3] = 0
    for i, missing in enumerate((MISSING | GENERAL_MISSING).values()):
        if i < len(err):
            err[i, list(missing)] = np.inf
    err[7] = np.inf
    flux[~np.isfinite(err)] = rng.normal(size=(~np.isfinite(err)).sum())
    return replaced(data, flux=flux, flux_err=err)


def test_ln_fluxes_equal_their_definition_also_where_negative_or_missing(observed):
    found = ln_flux_data(observed.flux, observed.flux_err)
    assert all(x.dtype == np.float32 for x in vars(found).values())
    for i in range(len(observed)):
        star = Star(observed, i)
        for name in ("value", "rel_err", "used", "features"):
            np.testing.assert_allclose(
                getattr(found, name)[i],
                getattr(star, name),
                rtol=1e-5,
                atol=1e-6,
                err_msg=f"{name} of star {i}",
            )


def test_flux_below_0p7_sigma_counts_as_0p7_sigma():
    flux, err = np.full((1, N_WL), -5.0), np.full((1, N_WL), 2.0)
    found = ln_flux_data(flux, err)
    np.testing.assert_allclose(found.value, np.log(1.4), rtol=1e-6)
    np.testing.assert_allclose(found.rel_err, 1 / 0.7, rtol=1e-6)


def test_star_without_any_flux_has_finite_ln_fluxes_and_features():
    found = ln_flux_data(np.full((2, N_WL), np.nan), np.full((2, N_WL), np.inf))
    assert all(np.isfinite(x).all() for x in vars(found).values())
    assert not found.used.any()


@pytest.mark.parametrize("value", [0.0, -7.0, 1e30, np.nan, np.inf])
def test_flux_of_a_missing_channel_does_not_matter(observed, value):
    flux = np.where(np.isfinite(observed.flux_err), observed.flux, value)
    for a, b in zip(
        vars(ln_flux_data(observed.flux, observed.flux_err)).values(),
        vars(ln_flux_data(flux, observed.flux_err)).values(),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("flux", "err"), [(np.nan, 1), (np.inf, 1), (1, np.nan), (1, np.inf), (1, 0), (1, -1), (0, 0)]
)
def test_flux_that_is_no_measurement_is_not_used(flux, err):
    fluxes, errors = np.ones((1, N_WL)), np.ones((1, N_WL))
    fluxes[0, 9], errors[0, 9] = flux, err
    assert not used_fluxes(fluxes, errors)[0, 9]
    found = ln_flux_data(fluxes, errors)
    assert found.used.sum() == N_WL - 1
    assert all(np.isfinite(x).all() for x in vars(found).values())


# ------------------------------------------------------------------------------ the noise model


def whitening(noise, inputs, used, general):
    z, ext, rel_err, features = inputs
    s, ln_det = noise.whitening(
        *(tf.constant(x, tf.float32) for x in (z, ext, rel_err, used, features)), general
    )
    return s.numpy(), ln_det.numpy()


def used_without(missing):
    used = np.ones((N_STARS, N_WL), "f4")
    used[:, list(missing)] = 0
    return used


def assert_same_precision(s, expected, tolerance=2e-4):
    """S^T S equals a precision matrix, in units of its diagonal."""
    found = s.astype("f8").T @ s
    scale = np.sqrt(np.diag(expected))
    scale = np.where(scale > 0, scale, 1.0)
    np.testing.assert_allclose(
        found / np.outer(scale, scale), expected / np.outer(scale, scale), atol=tolerance
    )


@pytest.mark.parametrize(
    ("pattern", "general"),
    [
        *((pattern, False) for pattern in MISSING),
        *((pattern, True) for pattern in ("nothing", "WISE", "BP", *GENERAL_MISSING)),
    ],
)
def test_whitening_is_that_of_the_used_block_of_the_covariance(
    stellar, oracle, noise_inputs, pattern, general
):
    used = used_without((MISSING | GENERAL_MISSING)[pattern])
    s, ln_det = whitening(stellar.noise, noise_inputs, used, general)
    for i, (z, ext, rel_err, features) in enumerate(zip(*noise_inputs, strict=True)):
        expected, expected_ln_det = oracle.precision(
            *(x.astype("f8") for x in (z, ext, rel_err, used[i], features))
        )
        assert_same_precision(s[i], expected)
        np.testing.assert_allclose(ln_det[i], expected_ln_det, atol=2e-3)


def test_oracle_covariances_are_full_and_differ_between_stars(oracle, noise_inputs):
    """Else the tests above would say little."""
    first, second = (oracle.covariance(*(x[i].astype("f8") for x in noise_inputs)) for i in (0, 1))
    sigma = np.sqrt(np.diag(first))
    off_diagonal = (first / np.outer(sigma, sigma))[np.triu_indices(N_WL, 1)]
    assert np.abs(off_diagonal).mean() > 0.05
    assert not np.allclose(first, second, rtol=0.3)


def test_stars_with_different_missing_bands_in_one_batch_equal_each_alone(stellar, noise_inputs):
    used = np.ones((N_STARS, N_WL), "f4")
    for row, missing in zip(used, list(MISSING.values())[1:], strict=False):
        row[list(missing)] = 0
    s, ln_det = whitening(stellar.noise, noise_inputs, used, general=False)
    general_s, general_ln_det = whitening(stellar.noise, noise_inputs, used, general=True)
    for i in range(N_STARS):
        assert_same_precision(s[i], general_s[i].astype("f8").T @ general_s[i])
    np.testing.assert_allclose(ln_det, general_ln_det, atol=2e-3)


@pytest.mark.parametrize("general", [False, True])
def test_error_of_a_missing_channel_does_not_matter(stellar, noise_inputs, general):
    missing = [*MISSING["BP"], *MISSING["J"], *MISSING["WISE"]]
    used = used_without(missing)
    z, ext, rel_err, features = noise_inputs
    s, ln_det = whitening(stellar.noise, noise_inputs, used, general)
    other = rel_err.copy()
    other[:, missing] = np.random.default_rng(3).choice([1e-4, 1.0, 300.0], other[:, missing].shape)
    other_s, other_ln_det = whitening(stellar.noise, (z, ext, other, features), used, general)
    for i in range(N_STARS):
        assert_same_precision(other_s[i], s[i].astype("f8").T @ s[i])
    np.testing.assert_allclose(other_ln_det, ln_det, atol=2e-3)
    np.testing.assert_array_equal(other_s[:, :, missing], 0)


def test_larger_reported_errors_widen_every_variance(stellar, noise_inputs):
    z, ext, rel_err, features = noise_inputs
    used = used_without([])

    def variances(factor):
        s, ln_det = whitening(stellar.noise, (z, ext, factor * rel_err, features), used, False)
        s = s.astype("f8")
        return np.einsum("nii->ni", np.linalg.inv(s.transpose(0, 2, 1) @ s)), ln_det

    (before, ln_det), (after, ln_det_after) = variances(1), variances(5)
    assert (after > 1.05 * before).all()
    assert (ln_det_after < ln_det).all()


def test_whitening_of_a_wild_star_is_finite(stellar):
    n = 3
    s, ln_det = stellar.noise.whitening(
        tf.constant([[50.0] * 3, [-50.0] * 3, [0.0] * 3]),
        tf.constant([1e4, 0.0, 0.0]),
        tf.fill((n, N_WL), 1e3),
        tf.ones((n, N_WL)),
        tf.constant([[1e6, 1e3], [-1e6, -1e3], [0.0, 0.0]]),
    )
    assert np.isfinite(s).all()
    assert np.isfinite(ln_det).all()


# ----------------------------------------------------------- small systems, nuisances, misfit


def test_small_cholesky_solves_a_batch_of_systems():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(40, 6, 9))
    matrices, b = root @ root.transpose(0, 2, 1), rng.normal(size=(40, 6))
    factor = cholesky_small(tf.constant(matrices.transpose(1, 2, 0)))
    found = solve_small(factor, tf.constant(b.T)).numpy().T
    np.testing.assert_allclose(found, np.linalg.solve(matrices, b[:, :, None])[:, :, 0], rtol=1e-8)


def test_small_cholesky_of_a_singular_matrix_is_finite_and_leaves_its_neighbour():
    matrices = np.stack([np.zeros((6, 6)), np.diag(np.arange(1.0, 7))])
    factor = cholesky_small(tf.constant(matrices.transpose(1, 2, 0)), floor=1e-6)
    found = solve_small(factor, tf.ones((6, 2), tf.float64)).numpy()
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:, 1], 1 / np.arange(1.0, 7))


def dense_chi2(residual, columns):
    """chi^2 (n,) of residual (n, m) under 1 + U^T U, and its ln det; U = columns (k, m)."""
    covariance = np.eye(residual.shape[1]) + columns.T @ columns
    solved = np.linalg.solve(covariance, residual.T)
    return (residual.T * solved).sum(0), np.linalg.slogdet(covariance)[1]


@pytest.fixture(scope="module")
def nuisances():
    """Whitened residuals (B, n, m) and columns (B, k, m). One column is grey and 300 times the
    noise, with residuals along it of some 240 sigma; another, as of dust, is nearly parallel."""
    rng = np.random.default_rng(11)
    residual, columns = rng.normal(size=(4, 3, N_WL)), rng.normal(0, 0.7, (4, 6, N_WL))
    grey = 1 + 0.2 * rng.normal(size=(4, N_WL))
    columns[:, 1] = 300 * grey / np.linalg.norm(grey, axis=1)[:, None]
    columns[:, 2] = columns[:, 1] / 3 + rng.normal(size=(4, N_WL))
    residual += rng.normal(0, 0.8, (4, 3, 1)) * columns[:, 1][:, None]
    return residual, columns


def test_marginal_chi2_equals_the_dense_one_in_float32_with_a_column_of_300_sigma(nuisances):
    residual, columns = nuisances
    chi2, amplitude, inverse, ln_det = (
        x.numpy() for x in marginal_chi2(*(tf.constant(x, tf.float32) for x in nuisances))
    )
    for i in range(len(residual)):
        expected, expected_ln_det = dense_chi2(residual[i], columns[i])
        np.testing.assert_allclose(chi2[i], expected, rtol=1e-4)
        np.testing.assert_allclose(ln_det[i], expected_ln_det, atol=1e-3)
        m_inverse = np.linalg.inv(np.eye(6) + columns[i] @ columns[i].T)
        np.testing.assert_allclose(inverse[i], m_inverse, atol=1e-5)
        np.testing.assert_allclose(amplitude[i], residual[i] @ columns[i].T @ m_inverse, atol=2e-5)


@pytest.mark.parametrize("part", ["chi2", "ln_det", "amplitude", "inverse"])
def test_gradients_of_marginal_chi2_equal_differences_of_the_dense_one(nuisances, part):
    residual, columns = (x[0] for x in nuisances)
    weight = np.random.default_rng(1).normal(size=(3, 6))

    def dense(r, u):
        m_inverse = np.linalg.inv(np.eye(6) + u @ u.T)
        if part == "amplitude":
            return (weight * (r @ u.T @ m_inverse)).sum()
        if part == "inverse":
            return (weight * m_inverse[:3]).sum()
        chi2, ln_det = dense_chi2(r, u)
        return (weight[:, 0] * chi2).sum() if part == "chi2" else ln_det

    variables = [tf.Variable(x[None], dtype=tf.float32) for x in (residual, columns)]
    with tf.GradientTape() as tape:
        chi2, amplitude, inverse, ln_det = marginal_chi2(*variables)
        loss = {
            "chi2": tf.reduce_sum(weight[:, 0].astype("f4") * chi2),
            "ln_det": tf.reduce_sum(ln_det),
            "amplitude": tf.reduce_sum(weight.astype("f4") * amplitude),
            "inverse": tf.reduce_sum(weight.astype("f4") * inverse[:, :3]),
        }[part]
    found = tape.gradient(loss, variables, unconnected_gradients="zero")
    by_residual = numerical_slope(lambda x: dense(x.reshape(3, N_WL), columns), residual.ravel())
    by_columns = numerical_slope(
        lambda x: dense(residual, x.reshape(6, N_WL)), columns.ravel(), 1e-4
    )
    for gradient, expected in zip(found, (by_residual, by_columns), strict=True):
        np.testing.assert_allclose(
            gradient.numpy().ravel(), expected, atol=1e-4 + 1e-3 * np.abs(expected).max()
        )


def test_student_misfit_is_that_of_the_multivariate_t_distribution():
    n, x = 12, np.random.default_rng(0).normal(size=(5, 12)) * [[0], [0.3], [1], [3], [20]]
    for nu in (4.0, 30.0):
        density = stats.multivariate_t(np.zeros(n), np.eye(n), df=nu)
        expected = density.logpdf(np.zeros(n)) - density.logpdf(x)
        found = student_misfit(tf.constant((x * x).sum(1)), n, nu)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_student_misfit_becomes_half_chi2_for_many_degrees_of_freedom():
    chi2 = tf.constant([0.0, 1.0, 66.0, 400.0], tf.float64)
    np.testing.assert_allclose(student_misfit(chi2, 66.0, 1e9), chi2 / 2, rtol=1e-5)


# ------------------------------------------------------------------------------------ the prior


@pytest.fixture(scope="module")
def prior():
    return make_prior()


@pytest.fixture(scope="module")
def points():
    return np.random.default_rng(4).normal(0, 1.5, (30, 3)).astype("f4")


def test_prior_density_is_that_of_scipy(prior, oracle, points):
    expected = oracle.ln_prior_z(points.astype("f8"))
    np.testing.assert_allclose(prior.ln_density_z(points), expected, atol=1e-4)
    np.testing.assert_allclose(
        prior.ln_density(points), expected - np.log(THETA_SCALE).sum(), atol=1e-4
    )


def test_prior_integrates_to_1_per_kK_dex_dex(prior):
    """Importance sampling with a wide normal in theta itself."""
    wide = stats.multivariate_normal(THETA_MEAN, np.diag((1.8 * THETA_SCALE) ** 2))
    theta = wide.rvs(200_000, random_state=0)
    z = ((theta - THETA_MEAN) / THETA_SCALE).astype("f4")
    ratio = np.exp(prior.ln_density(z).numpy() - wide.logpdf(theta))
    assert ratio.std() / np.sqrt(len(ratio)) < 0.006
    assert ratio.mean() == pytest.approx(1.0, abs=0.02)


def test_prior_gradient_equals_differences(prior, oracle, points):
    value, gradient, _ = prior.value_gradient_hessian(tf.constant(points))
    np.testing.assert_allclose(value, -prior.ln_density_z(points).numpy(), atol=1e-5)
    expected = [-numerical_slope(oracle.ln_prior_z, z) for z in points]
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4)


def test_prior_hessian_is_positive_definite_and_bounds_the_true_curvature(prior, oracle, points):
    bound = prior.value_gradient_hessian(tf.constant(points))[2].numpy().astype("f8")
    assert (np.linalg.eigvalsh(bound)[:, 0] > 0).all()
    excess = []
    for z, hessian in zip(points, bound, strict=True):
        true = -numerical_slope(lambda x: numerical_slope(oracle.ln_prior_z, x, 1e-3), z, 1e-3)
        excess.append(np.linalg.eigvalsh(hessian - (true + true.T) / 2))
    assert np.min(excess) > -1e-3
    assert np.max(excess) > 0.1  # somewhere between components, the true one is much smaller


def test_prior_samples_have_the_moments_of_the_mixture_and_follow_the_seed(prior):
    def moments(widen):
        mean = PRIOR_WEIGHTS @ PRIOR_MEANS
        second = widen**2 * PRIOR_COVARIANCES + np.einsum("ki,kj->kij", PRIOR_MEANS, PRIOR_MEANS)
        return mean, np.einsum("k,kij->ij", PRIOR_WEIGHTS, second) - np.outer(mean, mean)

    for widen in (1.0, 1.4):
        z = prior.sample(60_000, np.random.default_rng(8), widen)
        mean, covariance = moments(widen)
        np.testing.assert_allclose(z.mean(0), mean, atol=0.02)
        np.testing.assert_allclose(np.cov(z.T), covariance, atol=0.04)
    again = prior.sample(60_000, np.random.default_rng(8), widen)
    np.testing.assert_array_equal(z, again)


@pytest.fixture(scope="module")
def labels(prior):
    return prior.sample(2000, np.random.default_rng(0)) * THETA_SCALE + THETA_MEAN


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


# ------------------------------------------------------------------------- saving and exporting


def test_model_restored_from_its_arrays_predicts_the_same(stellar, stars, noise_inputs):
    arrays = {name: np.array(value) for name, value in stellar.to_arrays().items()}
    restored = StellarModel.from_arrays(arrays)
    np.testing.assert_array_equal(restored.flux.flux(*stars), stellar.flux.flux(*stars))
    z = tf.constant(stars[0])
    np.testing.assert_array_equal(restored.prior.ln_density(z), stellar.prior.ln_density(z))
    assert restored.prior.ln_prior_floor == stellar.prior.ln_prior_floor
    np.testing.assert_array_equal(restored.flux.standardise(z), stellar.flux.standardise(z))
    for a, b in zip(
        whitening(restored.noise, noise_inputs, used_without([61]), False),
        whitening(stellar.noise, noise_inputs, used_without([61]), False),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    assert restored.to_arrays().keys() == arrays.keys()


@pytest.mark.parametrize("kwargs", [{"hidden": 5, "n_layers": 1}, {"hidden": 9, "n_layers": 4}])
def test_networks_of_other_sizes_are_restored(kwargs):
    rng = np.random.default_rng(0)
    model = FluxModel(
        xp_utils.SAMPLE_WAVELENGTHS,
        THETA_MEAN,
        THETA_SCALE,
        rng.normal(size=N_WL),
        rng.normal(size=(N_WL, N_WL)),
        seed=5,
        **kwargs,
    )
    z = rng.normal(size=(4, 3)).astype("f4")
    np.testing.assert_array_equal(
        FluxModel.from_arrays(model.to_arrays()).ln_flux(z), model.ln_flux(z)
    )


@pytest.mark.parametrize("name", ["w_out", "noise_base", "prior_means", "theta_scale"])
def test_missing_array_is_told(stellar, name):
    arrays = stellar.to_arrays()
    del arrays[name]
    with pytest.raises(KeyError, match=name):
        StellarModel.from_arrays(arrays)


def test_arrays_of_the_parts_do_not_share_names(stellar):
    parts = [
        stellar.flux.to_arrays(),
        stellar.prior.to_arrays(),
        {v.name.split(":")[0]: v for v in stellar.noise.variables},
    ]
    names = [name for part in parts for name in part]
    assert len(names) == len(set(names))
    assert len(names) == len(stellar.to_arrays()) - 2  # and the noise model's two constants


USE_EXPORT = """
    import sys
    import numpy as np
    import tensorflow as tf

    try:
        import model
        sys.exit("the project can be imported: this would prove nothing")
    except ImportError:
        pass
    folder, arrays, output = sys.argv[1:]
    m = tf.saved_model.load(folder)
    given = np.load(arrays)
    out = {"wavelengths": m._sample_wavelengths.numpy(), "ln_curve": m._ln_ext_curve.numpy()}
    for kind in ("f4", "f8"):
        for convert in (np.asarray, tf.constant):
            theta, xi, E, plx = (convert(given[k].astype(kind))
                                 for k in ("theta", "xi", "E", "plx"))
            key = f"{kind}_{convert.__name__}_"
            out[key + "intrinsic"] = m.predict_intrinsic_ln_flux(theta)
            out[key + "observed"] = m.predict_observed_flux(theta, E, plx)
            out[key + "obs"] = m.predict_obs_flux(theta, xi, E, plx)
            out[key + "curve"] = m.predict_ln_ext_curve(xi)
            out[key + "keywords"] = m.predict_obs_flux(stellar_type=theta, xi=xi, E=E, plx=plx)
    np.savez(output, **{k: np.asarray(v) for k, v in out.items()})
"""


def test_saved_model_equals_the_model_where_the_project_is_not_installed(tmp_path, stars):
    model = make_flux_model()
    z, xi, ext, ln_plx = stars
    theta, plx = z * THETA_SCALE + THETA_MEAN, np.exp(ln_plx)
    export(model, tmp_path / "saved")
    np.savez(tmp_path / "in.npz", theta=theta, xi=xi, E=ext, plx=plx)
    (tmp_path / "use.py").write_text(textwrap.dedent(USE_EXPORT))
    arguments = [tmp_path / "use.py", tmp_path / "saved", tmp_path / "in.npz", tmp_path / "out.npz"]
    run = subprocess.run(
        [sys.executable, "-I", *map(str, arguments)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = np.load(tmp_path / "out.npz")
    expected = {
        "intrinsic": model.ln_flux(z),
        "curve": np.log(model.ext_curve(xi)[0]),
        "obs": model.flux(*stars),
        "keywords": model.flux(*stars),
        "observed": model.flux(z, 0 * xi, ext, ln_plx),
    }
    np.testing.assert_allclose(found["wavelengths"], xp_utils.SAMPLE_WAVELENGTHS, rtol=1e-6)
    np.testing.assert_array_equal(found["ln_curve"], model.ln_ext_curve.numpy())
    assert len(found.files) == 2 + 4 * len(expected)
    for key in set(found.files) - {"wavelengths", "ln_curve"}:
        np.testing.assert_allclose(
            found[key], expected[key.split("_")[-1]], rtol=1e-4, atol=1e-5, err_msg=key
        )


# -------------------------------------------------------------------------- the direct estimate


@pytest.fixture(scope="module")
def seen(stellar):
    """(`StarData`, their `direct_inputs`) of 40 stars, some without bands or parallax."""
    data, _ = mock_stars(stellar, 40, seed=9)
    data.flux_err[:10, BP.nonzero()[0]] = np.inf
    data.flux_err[5:20, WISE] = np.inf
    data.plx[15:25] = data.plx_err[15:25] = np.nan
    return data, direct_inputs(ln_flux_data(data.flux, data.flux_err), data.plx, data.plx_err)


@pytest.fixture(scope="module")
def direct(seen):
    return DirectNetwork(seen[1], n_networks=3, hidden=(9, 7), seed=4)


def test_direct_inputs_do_not_know_the_distance(stellar):
    data, _ = mock_stars(stellar, 30, seed=9)
    far = replaced(
        data,
        flux=data.flux / 4,
        flux_err=data.flux_err / 4,
        plx=data.plx / 2,
        plx_err=data.plx_err / 2,
    )
    near, far = (
        direct_inputs(ln_flux_data(d.flux, d.flux_err), d.plx, d.plx_err) for d in (data, far)
    )
    np.testing.assert_allclose(far, near, atol=1e-4)


def test_direct_inputs_of_what_is_missing_are_nan_and_told(seen):
    data, inputs = seen
    used = used_fluxes(data.flux, data.flux_err)
    np.testing.assert_array_equal(np.isfinite(inputs[:, :N_WL]), used)
    known = np.isfinite(data.plx)
    np.testing.assert_array_equal(np.isfinite(inputs[:, N_WL + 1 : N_WL + 3]).all(1), known)
    np.testing.assert_array_equal(inputs[:, -1], known)
    np.testing.assert_array_equal(inputs[:, -6:-1], used[:, xp_utils.N_XP :])
    np.testing.assert_allclose(inputs[:, -7], used[:, : xp_utils.N_XP].mean(1), rtol=1e-6)


@pytest.mark.parametrize("plx", [-3.0, 0.0, 0.1, 0.5])
def test_a_parallax_below_its_error_counts_as_its_error(seen, plx):
    observed = ln_flux_data(seen[0].flux[30:31], seen[0].flux_err[30:31])
    found, limit = (direct_inputs(observed, [x], [0.5]) for x in (plx, 0.5))
    np.testing.assert_array_equal(found, limit)


def test_direct_network_is_its_equations(direct, seen):
    a = {name: value.astype("f8") for name, value in direct.to_arrays().items()}
    x = (seen[1].astype("f8") - a["direct_mean"]) / a["direct_scale"]
    x = DIRECT_LIMIT * np.tanh(np.nan_to_num(x) / DIRECT_LIMIT)
    z, variance = [], []
    for k in range(3):
        h = np.maximum(x @ a["direct_w0"][k] + a["direct_b0"][k], 0)
        h = np.maximum(h @ a["direct_w1"][k] + a["direct_b1"][k], 0)
        h = h @ a["direct_w2"][k] + a["direct_b2"][k]
        z.append(h[:, :3])
        variance.append(np.exp(2 * (h[:, 3:] - 1.5)))
    found, error = direct.estimate(seen[1])
    np.testing.assert_allclose(found, np.mean(z, 0), atol=1e-5)
    np.testing.assert_allclose(error, np.sqrt(np.mean(variance, 0) + np.var(z, 0)), rtol=1e-4)


def test_inputs_that_training_stars_share_or_lack_are_not_used(seen):
    inputs = seen[1].copy()
    inputs[:, 3], inputs[:, 64], inputs[:, -2] = 0.2, np.nan, 0.0
    network = DirectNetwork(inputs, n_networks=1, hidden=(8,), seed=1)
    other = inputs.copy()
    other[:, 3], other[:, 64], other[:, -2] = 5.0, 1.0, 1.0
    for one, two in zip(network.estimate(inputs), network.estimate(other), strict=True):
        np.testing.assert_array_equal(one, two)
    other[:, 5] += 1.0
    assert (network.estimate(inputs)[0].numpy() != network.estimate(other)[0].numpy()).any()


def test_direct_estimate_is_finite_for_any_star(direct):
    rng = np.random.default_rng(0)
    wild = rng.normal(0, 1e6, (30, 76)).astype("f4")
    wild[rng.random(wild.shape) < 0.3] = np.nan
    z, error = direct.estimate(wild)
    assert np.isfinite(z).all()
    assert np.isfinite(error).all()
    assert (error.numpy() > 0).all()


def test_model_with_a_direct_network_is_restored_from_its_arrays(seen, direct):
    stellar = make_model()
    stellar.direct = direct
    arrays = {name: np.array(value) for name, value in stellar.to_arrays().items()}
    restored = StellarModel.from_arrays(arrays)
    for one, two in zip(restored.direct.estimate(seen[1]), direct.estimate(seen[1]), strict=True):
        np.testing.assert_array_equal(one, two)
    assert restored.to_arrays().keys() == arrays.keys()
    del arrays["direct_b1"]
    with pytest.raises(KeyError, match="direct_b1"):
        StellarModel.from_arrays(arrays)


def test_threads_set_after_tensorflow_began_are_left_and_told(caplog):
    tf.constant(1.0) + 1.0
    before = tf.config.threading.get_intra_op_parallelism_threads()
    set_threads(before + 1)
    assert tf.config.threading.get_intra_op_parallelism_threads() == before
    assert "threads" in caplog.text


def test_mixture_prior_restored_from_its_arrays_draws_the_same(prior):
    restored = MixturePrior.from_arrays(prior.to_arrays())
    np.testing.assert_array_equal(
        restored.sample(9, np.random.default_rng(0)), prior.sample(9, np.random.default_rng(0))
    )
