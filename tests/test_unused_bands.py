"""Why a band is not used: the words follow from the cuts that step 9 makes."""

import numpy as np
import pytest
from xp_case import good_tmass, good_unwise

from pipeline.photometry import photometry_flux
from pipeline.schema import BANDS
from pipeline.unused_bands import unused_bands


def surveys(n=1, tmass=None, unwise=None, matched=True):
    found = {"matched": np.full(n, matched)}
    return {
        "tmass": good_tmass(n) | found | (tmass or {}),
        "unwise": good_unwise(n) | found | (unwise or {}),
    }


def why(norm_dg=np.nan, **changes):
    """{band: reason} of the bands of a star that are not used."""
    _, reasons = unused_bands(surveys(**changes), {"norm_dg": np.array([norm_dg])})
    return {band.name: r for band, r in zip(BANDS, reasons[0], strict=True) if r}


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({}, {}),
        ({"norm_dg": -7.25}, {"W1": "norm_dg −7.25", "W2": "norm_dg −7.25"}),
        ({"tmass": {"ph_qual": np.array([b"ABU"])}}, {"H": "ph_qual B", "Ks": "ph_qual U"}),
        ({"tmass": {"j_m": np.array([np.nan])}}, {"J": "not measured"}),
        ({"tmass": {"h_msigcom": np.array([0.3])}}, {"H": "large error"}),
        ({"unwise": {"qf": np.array([[0.5, 0.95]])}}, {"W1": "qf 0.5"}),
        ({"unwise": {"flux": np.array([[-1.0, 1e4]])}}, {"W1": "not measured"}),
        ({"matched": False}, {band.name: "no match" for band in BANDS}),
    ],
)
def test_the_reason_is_the_first_cut_that_fails(changes, reasons):
    assert why(**changes) == reasons


def test_the_measured_flux_of_a_band_that_is_not_used_is_known():
    flux, _ = unused_bands(surveys(), {"norm_dg": np.array([-7.25])})
    expected, _ = photometry_flux(surveys(), {"norm_dg": np.array([np.nan])})
    np.testing.assert_allclose(flux, expected)


def test_a_survey_that_is_not_there_has_neither_fluxes_nor_reasons():
    flux, reasons = unused_bands(surveys() | {"tmass": None}, {"norm_dg": np.array([np.nan])})
    assert np.isnan(flux[0, :3]).all()
    assert (reasons == "").all()
    assert np.isfinite(flux[0, 3:]).all()


def test_a_band_has_a_reason_where_and_only_where_step_9_does_not_use_it():
    rng, n = np.random.default_rng(0), 400
    quality = np.array([b"AAA", b"ABA", b"UAC", b""])[rng.integers(0, 4, n)]
    tmass = {"ph_qual": quality, "h_msigcom": rng.choice([0.05, 0.25, np.nan], n)}
    unwise = {
        "qf": rng.uniform(0.6, 1.0, (n, 2)),
        "fracflux": rng.uniform(0.6, 1.0, (n, 2)),
        "flux": good_unwise(n)["flux"] * rng.choice([1.0, -1.0, 1e-3], (n, 2)),
        "sep_arcsec": rng.uniform(0.0, 0.4, n),
    }
    metadata = {"norm_dg": rng.choice([np.nan, -12.0, -7.0, -2.0], n)}
    tables = surveys(n, tmass, unwise)
    _, err = photometry_flux(tables, metadata)
    _, reasons = unused_bands(tables, metadata)
    np.testing.assert_array_equal(reasons == "", np.isfinite(err))
    assert 0.05 < np.isfinite(err).mean() < 0.95
