"""E of either sign: the posterior without the condition that there is dust."""

import numpy as np
import pytest

from fitting.coordinates import Coordinates
from fitting.posterior import Gaussian, linear_in_extinction, signed_extinction

N = 30
ONE = (1.0, 0.0)


@pytest.fixture(scope="module", params=[2, 4])
def at(request):
    return Coordinates(request.param)


@pytest.fixture(scope="module")
def gaussian(at):
    """Gaussians in (z, xi, E, ln plx), some of whose E are negative."""
    rng = np.random.default_rng(3)
    root = rng.normal(size=(N, len(at), len(at) + 3))
    return Gaussian(rng.normal(size=(N, len(at))), root @ root.transpose(0, 2, 1))


def in_u(gaussian, at, ext):
    """u (N, n) with the E given, and the Hessian and gradient there of the density of a `Gaussian`
    in (z, xi, E, ln plx), per unit of ln E."""
    rng = np.random.default_rng(7)
    x = gaussian.mean + 0.3 * rng.normal(size=gaussian.mean.shape)
    x[:, at.ln_ext] = ext
    u, stretch = x.copy(), np.ones_like(x)
    u[:, at.ln_ext], stretch[:, at.ln_ext] = np.log(ext), ext
    slope = (gaussian.precision @ (x - gaussian.mean)[:, :, None])[:, :, 0] * stretch
    hessian = gaussian.precision * stretch[:, :, None] * stretch[:, None]
    hessian[:, at.ln_ext, at.ln_ext] += np.maximum(slope[:, at.ln_ext], 0)
    slope[:, at.ln_ext] -= 1
    return u, hessian, slope


@pytest.mark.parametrize("ext", [1e-3, 0.2, 3.0])
def test_gaussian_is_recovered_whatever_the_sign_of_its_extinction(gaussian, at, ext):
    assert (gaussian.mean[:, at.ln_ext] < 0).any()
    found = linear_in_extinction(*in_u(gaussian, at, ext), at)
    np.testing.assert_allclose(found.mean, gaussian.mean, rtol=1e-6, atol=1e-6)
    size = np.sqrt(np.einsum("nii->ni", gaussian.precision))
    size = size[:, :, None] * size[:, None]
    np.testing.assert_allclose(found.precision / size, gaussian.precision / size, atol=1e-8)


def test_star_without_solution_has_no_extinction_of_either_sign(gaussian, at):
    u, hessian, slope = in_u(gaussian, at, 0.2)
    u[3], hessian[3], slope[3] = np.nan, np.nan, np.nan
    hessian[5] = -hessian[5]
    linear = linear_in_extinction(u, hessian, slope, at)
    found = signed_extinction(linear, np.ones_like(u), None, np.tile(ONE, (N, 1)), at)
    for values in found:
        np.testing.assert_array_equal(np.flatnonzero(np.isnan(values)), [3, 5])


def test_errors_are_those_of_the_gaussian_times_the_factors(gaussian, at):
    factors = np.random.default_rng(1).uniform(0.8, 2.0, gaussian.mean.shape)
    ext, err = signed_extinction(gaussian, factors, None, np.tile(ONE, (N, 1)), at)
    np.testing.assert_array_equal(ext, gaussian.mean[:, at.ln_ext])
    cov = np.linalg.inv(gaussian.precision)[:, at.ln_ext, at.ln_ext]
    np.testing.assert_allclose(err, np.sqrt(cov) * factors[:, at.ln_ext], rtol=1e-8)


def test_direct_estimate_moves_the_extinction_as_one_more_measurement_would(gaussian, at):
    """With weights of 1, the pool is the product of two Gaussians."""
    rng = np.random.default_rng(2)
    z, sigma = rng.normal(size=(N, at.n_labels)), rng.uniform(0.3, 1, (N, at.n_labels))
    known = np.zeros_like(gaussian.precision)
    for k in range(at.n_labels):
        known[:, k, k] = sigma[:, k] ** -2
    total = gaussian.precision + known
    shown = np.zeros_like(gaussian.mean)
    shown[:, at.z] = z
    pull = gaussian.precision @ gaussian.mean[:, :, None] + known @ shown[:, :, None]
    expected = np.linalg.solve(total, pull)[:, at.ln_ext, 0]
    ones = np.ones((N, 2))
    ext, err = signed_extinction(gaussian, np.ones_like(shown), (z, sigma), ones, at)
    np.testing.assert_allclose(ext, expected, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(err**2, np.linalg.inv(total)[:, at.ln_ext, at.ln_ext], rtol=1e-8)
    same, wider = signed_extinction(gaussian, np.ones_like(shown), (z, sigma), ones, at, 1.5)
    np.testing.assert_array_equal(same, ext)  # of a type that is known less well
    assert (wider > err).all()
