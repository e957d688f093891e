"""Simulated stars: that they are what the forward model believes stars to be."""

import numpy as np
import pytest
from model_case import CHANNELS, LABEL_SETS, make_model, mock_stars
from model_oracle import Oracle, Star
from scipy import stats
from scipy.integrate import quad

from fitting.observed import OBSERVED, StarData, ln_flux_data
from fitting.simulation import MAX_EXT, PARALLAX_ERROR, parallax_ratio, simulate

N = 400


@pytest.fixture(scope="module", params=[2, 4])
def model(request):
    return make_model(LABEL_SETS[request.param])


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
    oracle, data = Oracle(model), StarData.of_table(table, CHANNELS)
    share = []
    for i in range(N):
        star = Star(data, i)
        noise, n = oracle.noise_at(u[i], star), star.used.sum()
        chi2 = oracle.chi2(u[i].astype("f8"), star, noise)
        share.append(stats.f.cdf(chi2 / n, n, np.exp(oracle.a["noise_ln_nu"])))
    assert stats.kstest(share, "uniform").pvalue > 0.01


def test_errors_missing_bands_and_brightness_are_those_of_real_stars(model, hosts, simulated):
    (table, u), at = simulated, model.coordinates
    rows = np.random.default_rng(1).integers(60, size=N)
    real = ln_flux_data(hosts["flux"][rows], hosts["flux_err"][rows], CHANNELS)
    found = ln_flux_data(table["flux"], table["flux_err"], CHANNELS)
    np.testing.assert_array_equal(found.used, real.used)
    np.testing.assert_allclose(found.rel_err, real.rel_err, rtol=1e-4)
    np.testing.assert_allclose(found.features[:, 1], real.features[:, 1], atol=1e-3)
    flux = model.flux.flux(u[:, at.z], u[:, at.xi], np.exp(u[:, at.ln_ext]), u[:, at.ln_plx])
    exact = ln_flux_data(flux, np.where(real.used > 0, 0.01, np.inf) * flux, CHANNELS)
    np.testing.assert_allclose(exact.features[:, 0], real.features[:, 0], atol=1e-4)


def test_types_and_dust_follow_their_priors(model, simulated):
    (_, u), at = simulated, model.coordinates
    z = model.prior.sample(20_000, np.random.default_rng(9))
    for k in range(at.n_labels):
        assert stats.ks_2samp(u[:, k], z[:, k]).pvalue > 0.01
    assert stats.kstest(u[:, at.xi], "norm").pvalue > 0.01
    assert stats.kstest(np.exp(u[:, at.ln_ext]) / MAX_EXT, "uniform").pvalue > 0.01


def test_parallaxes_have_their_error_or_are_hidden(model, hosts, simulated):
    (table, u), at = simulated, model.coordinates
    assert table.keys() == set(OBSERVED)
    np.testing.assert_allclose(table["plx_err"], PARALLAX_ERROR * table["plx"], rtol=1e-6)
    pull = (table["plx"] - np.exp(u[:, at.ln_plx])) / table["plx_err"]
    assert 0.85 < pull.std() < 1.15
    hidden, _ = simulate(model, hosts, 20, False, np.random.default_rng(1))
    assert np.isnan(hidden["plx"]).all()
    assert np.isnan(hidden["plx_err"]).all()


def test_true_over_observed_parallax_has_the_density_of_the_posterior():
    """exp(-(1 - t)^2 / 2 s^2) / t, by its first two moments."""
    draws = parallax_ratio(400_000, np.random.default_rng(3))

    def density(t):
        return np.exp(-((1 - t) ** 2) / (2 * PARALLAX_ERROR**2)) / t

    norm = quad(density, PARALLAX_ERROR, 3)[0]
    for power in (1, 2):
        expected = quad(lambda t, k=power: t**k * density(t), PARALLAX_ERROR, 3)[0] / norm
        assert np.mean(draws**power) == pytest.approx(expected, rel=2e-3)


def test_seed_alone_decides(model, hosts):
    one, other, third = (
        simulate(model, hosts, 8, True, np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    for name in one[0]:
        np.testing.assert_array_equal(one[0][name], other[0][name])
    np.testing.assert_array_equal(one[1], other[1])
    assert (one[1] != third[1]).any()
