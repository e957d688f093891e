"""Simulated stars: that they are what the forward model believes stars to be."""

import numpy as np
import pytest
from oracle import Oracle, Star, make_model, mock_stars
from scipy import stats
from scipy.integrate import quad

from fitting.simulation import MAX_EXT, PLX_ERROR, parallax_ratio, simulate
from fitting.star_solver import LN_E, LN_PLX, XI, StarData, Z
from model import ln_flux_data

N = 400


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def hosts(model):
    """Fluxes of 60 stars; every third misses BP, every fourth a WISE band."""
    data, _ = mock_stars(model, 60, seed=4)
    err = data.flux_err.copy()
    err[::3, :20] = np.inf
    err[::4, 64] = np.inf
    return {"flux": data.flux, "flux_err": err}


@pytest.fixture(scope="module")
def simulated(model, hosts):
    return simulate(model, hosts, N, True, np.random.default_rng(1))


def test_chi2_at_the_truth_is_that_of_the_students_t(model, simulated):
    """Against the noise of the oracle: draws of a Gaussian, or of another nu, would not pass."""
    table, u = simulated
    oracle, data = Oracle(model), StarData(*table.values())
    share = []
    for i in range(N):
        star = Star(data, i)
        precision, _ = oracle.noise_at(u[i], star)
        residual = star.value - oracle.mu(u[i].astype("f8"))
        n = star.used.sum()
        share.append(
            stats.f.cdf(residual @ precision @ residual / n, n, np.exp(oracle.a["noise_ln_nu"]))
        )
    assert stats.kstest(share, "uniform").pvalue > 0.01


def test_errors_missing_bands_and_brightness_are_those_of_real_stars(model, hosts, simulated):
    table, u = simulated
    rows = np.random.default_rng(1).integers(60, size=N)
    real = ln_flux_data(hosts["flux"][rows], hosts["flux_err"][rows])
    found = ln_flux_data(table["flux"], table["flux_err"])
    np.testing.assert_array_equal(found.used, real.used)
    np.testing.assert_allclose(found.rel_err, real.rel_err, rtol=1e-4)
    np.testing.assert_allclose(found.features[:, 1], real.features[:, 1], atol=1e-3)
    ext = np.exp(u[:, LN_E])
    clean = (
        model.flux.ln_flux(u[:, Z])
        - ext[:, None] * model.flux.ext_curve(u[:, XI])[0]
        + 2 * u[:, LN_PLX, None]
    ).numpy()
    exact = ln_flux_data(np.exp(clean), np.where(real.used > 0, 0.01, np.inf) * np.exp(clean))
    np.testing.assert_allclose(exact.features[:, 0], real.features[:, 0], atol=1e-4)


def test_types_and_dust_follow_their_priors(model, simulated):
    _, u = simulated
    z = model.prior.sample(20_000, np.random.default_rng(9))
    for k in range(3):
        assert stats.ks_2samp(u[:, k], z[:, k]).pvalue > 0.01
    assert stats.kstest(u[:, XI], "norm").pvalue > 0.01
    assert stats.kstest(np.exp(u[:, LN_E]) / MAX_EXT, "uniform").pvalue > 0.01


def test_parallaxes_have_their_error_or_are_hidden(model, hosts, simulated):
    table, u = simulated
    np.testing.assert_allclose(table["plx_err"], PLX_ERROR * table["plx"], rtol=1e-6)
    pull = (table["plx"] - np.exp(u[:, LN_PLX])) / table["plx_err"]
    assert 0.85 < pull.std() < 1.15
    hidden, _ = simulate(model, hosts, 20, False, np.random.default_rng(1))
    assert np.isnan(hidden["plx"]).all()
    assert np.isnan(hidden["plx_err"]).all()


def test_true_over_observed_parallax_has_the_density_of_the_posterior():
    """exp(-(1 - t)^2 / 2 s^2) / t, by its first two moments."""
    draws = parallax_ratio(400_000, np.random.default_rng(3))

    def density(t):
        return np.exp(-((1 - t) ** 2) / (2 * PLX_ERROR**2)) / t

    norm = quad(density, PLX_ERROR, 3)[0]
    for power in (1, 2):
        expected = quad(lambda t, power=power: t**power * density(t), PLX_ERROR, 3)[0] / norm
        assert np.mean(draws**power) == pytest.approx(expected, rel=2e-3)


def test_seed_alone_decides(model, hosts):
    one, other, third = (
        simulate(model, hosts, 8, True, np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    for name in one[0]:
        np.testing.assert_array_equal(one[0][name], other[0][name])
    np.testing.assert_array_equal(one[1], other[1])
    assert (one[1] != third[1]).any()
