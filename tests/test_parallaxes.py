"""Parallaxes that may be wrong: tension with the fluxes, and how much they are trusted."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import integrate, stats

from fitting.observed import StarData
from fitting.parallaxes import NOTICEABLE, WRONG_RANGE, WRONG_SHARE, doubted, tension

N = 9
MODEL = SimpleNamespace(distance_mean=1.5, distance_scale=0.8)
BRIGHT = np.linspace(-1, 1, N)


def stars(parallax, err):
    """`StarData` of N stars of which nothing counts but parallax and brightness."""
    values = (np.broadcast_to(x, N).astype("f4") for x in (parallax, err))
    data = StarData(np.ones((N, 1)), np.ones((N, 1)), *values, None)
    data.__dict__["observed"] = SimpleNamespace(features=BRIGHT[:, None])
    return data


def said(ln_plx, sigma):
    """What networks say, (2, N, 1), that expect ln parallaxes (N,) with errors sigma of them."""
    at_kpc = BRIGHT - 2 * np.broadcast_to(ln_plx, N)
    z = (at_kpc - MODEL.distance_mean) / MODEL.distance_scale
    return np.stack([z, np.full(N, 2 * sigma / MODEL.distance_scale)])[:, :, None]


def test_tension_is_in_units_of_both_errors():
    plx = np.geomspace(0.1, 10, N)
    data = stars(plx, 0.1 * plx)
    off, tense = tension(data, said(np.log(plx) - 0.7, 0.2), MODEL)
    np.testing.assert_allclose(off, 0.7, rtol=1e-6)
    np.testing.assert_allclose(tense, 0.7 / np.hypot(0.1, 0.2), rtol=1e-6)


def test_a_parallax_below_its_error_counts_as_that():
    off, _ = tension(stars(-3.0, 0.5), said(np.log(0.5), 0.1), MODEL)
    np.testing.assert_allclose(off, 0.0, atol=1e-6)


def test_without_parallax_or_networks_there_is_no_tension():
    for data, distance in ((stars(np.nan, np.nan), said(0.0, 0.1)), (stars(1, 0.1), None)):
        off, tense = tension(data, distance, MODEL)
        assert np.isnan(off).all()
        assert np.isnan(tense).all()
        same, rows = doubted(data, off, tense)
        np.testing.assert_array_equal(same.parallax_err, data.parallax_err)
        assert not len(rows)


@pytest.mark.parametrize(("sigma_plx", "sigma"), [(0.02, 0.2), (0.2, 0.2), (0.05, 0.4)])
@pytest.mark.parametrize("tense", [1.0, 2.0, 3.0, 5.0])
def test_error_is_the_second_moment_of_right_and_wrong(sigma_plx, sigma, tense):
    """By numerical integration of the mixture over what the parallax may be off by."""
    total = np.hypot(sigma_plx, sigma)
    off = np.full(N, tense * total)
    data, rows = doubted(stars(2.0, 2 * sigma_plx), off, np.full(N, tense))

    def of_wrong(x):  # a parallax off by x, and what is seen of it
        return stats.uniform(-WRONG_RANGE, 2 * WRONG_RANGE).pdf(x) * stats.norm(x, total).pdf(
            off[0]
        )

    wrong, _ = integrate.quad(of_wrong, -WRONG_RANGE, WRONG_RANGE, points=[off[0]])
    right = stats.norm(0, total).pdf(off[0])
    chance = WRONG_SHARE * wrong / (WRONG_SHARE * wrong + (1 - WRONG_SHARE) * right)
    added = np.sqrt(chance) * off[0]
    expected = np.hypot(sigma_plx, added) if added > NOTICEABLE * total else sigma_plx
    np.testing.assert_allclose(data.parallax_err, 2 * expected, rtol=5e-3)
    assert len(rows) == (N if added > NOTICEABLE * total else 0)


def test_ordinary_parallaxes_keep_their_errors_and_wrong_ones_lose_their_say():
    tense = np.linspace(0, 8, N)
    data, rows = doubted(stars(1.0, 0.1), 0.2 * tense, tense)
    growth = data.parallax_err / 0.1
    np.testing.assert_array_equal(growth[tense <= 1], 1)
    assert (np.diff(growth) >= 0).all()
    np.testing.assert_allclose(growth[-1], np.hypot(1, 16), rtol=0.01)
    np.testing.assert_array_equal(rows, np.flatnonzero(growth > 1))
    np.testing.assert_array_equal(data.parallax, 1.0)


def test_both_signs_of_a_tension_count_alike():
    tense = np.linspace(-4, 4, N)
    data, _ = doubted(stars(1.0, 0.1), 0.2 * tense, tense)
    np.testing.assert_allclose(data.parallax_err, data.parallax_err[::-1], rtol=1e-6)
