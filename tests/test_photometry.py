"""Fluxes of the photometric bands: zero points, errors, cuts; and bands that a table adds."""

import numpy as np
import pytest
import xp_oracle
from xp_case import BASIS, good_surveys, good_tmass, good_unwise, no_neighbours, random_stars

import xp_utils
from pipeline.photometry import photometry_flux, vega_to_flux
from pipeline.schema import BANDS, SURVEYS
from pipeline.schema.bands import TABLE, parse_bands

ALL = ["J", "H", "Ks", "W1", "W2"]


def photometry(tmass=None, unwise=None, norm_dg=np.nan):
    tables = {
        "tmass": {**good_tmass(1), **(tmass or {})},
        "unwise": {**good_unwise(1), **(unwise or {})},
    }
    flux, err = photometry_flux(tables, {"norm_dg": np.array([norm_dg])})
    return flux[0], err[0]


def used_bands(**changes):
    """Names of the bands that have weight."""
    flux, err = photometry(**changes)
    used = np.isfinite(err)
    assert not flux[~used].any()
    assert np.isfinite(flux).all()
    return [band.name for band, use in zip(BANDS, used, strict=True) if use]


def test_fluxes_of_the_bands_are_the_published_zero_points():
    flux, _ = photometry()
    light = 2.99792458e8
    table = [(1.235, 0.91, 12.0), (1.662, 1.39, 11.5), (2.159, 1.85, 11.4)]
    table += [(3.3526, 2.699, 22.5 - 2.5 * np.log10(2e4)), (4.6028, 3.339, 22.5 - 10.0)]
    for value, (wavelength, offset, magnitude) in zip(flux, table, strict=True):
        jansky = 3631 * 10 ** (-0.4 * (magnitude + offset))
        per_metre = jansky * 1e-26 * light / (wavelength * 1e-6) ** 2  # W m^-2 m^-1
        assert value == pytest.approx(per_metre * 1e-9 / 1e-18, rel=1e-6)


def test_2mass_error_is_ln10_over_2_5_times_the_magnitude_error():
    flux, err = photometry({"j_msigcom": np.array([0.1])})
    expected = np.hypot(0.1 * np.log(10) / 2.5, 0.01) * flux[0]
    assert err[0] == pytest.approx(expected, rel=1e-6)
    step = vega_to_flux(np.array([11.95, 12.05]), BANDS[0])
    assert err[0] == pytest.approx(np.hypot(-np.diff(step)[0], 0.01 * flux[0]), rel=1e-3)


def test_unwise_error_is_relative_with_one_per_cent_added():
    flux, err = photometry(unwise={"dflux": np.array([[2000.0, 100.0]])})
    np.testing.assert_allclose(err[3:], flux[3:] * np.hypot([0.1, 0.01], 0.01), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "used"),
    [
        ({}, ALL),
        ({"norm_dg": -5.01}, ["J", "H", "Ks"]),
        ({"norm_dg": -5.0}, []),
        ({"norm_dg": 3.0}, []),
        ({"norm_dg": -10.0}, ["J", "H", "Ks"]),
        ({"norm_dg": -10.01}, ALL),
        ({"tmass": {"ph_qual": np.array([b"ABA"])}}, ["J", "Ks", "W1", "W2"]),
        ({"tmass": {"ph_qual": np.array([b"UAA"])}}, ["H", "Ks", "W1", "W2"]),
        ({"tmass": {"ph_qual": np.array([b"AAX"])}}, ["J", "H", "W1", "W2"]),
        ({"tmass": {"ph_qual": np.array([b""])}}, ["W1", "W2"]),
        ({"tmass": {"ph_qual": np.array([b"A"])}}, ["J", "W1", "W2"]),
        ({"tmass": {"h_msigcom": np.array([0.2])}}, ["J", "Ks", "W1", "W2"]),
        ({"tmass": {"h_msigcom": np.array([0.199])}}, ALL),
        ({"tmass": {"h_msigcom": np.array([np.nan])}}, ["J", "Ks", "W1", "W2"]),
        ({"tmass": {"h_msigcom": np.array([0.0])}}, ["J", "Ks", "W1", "W2"]),
        ({"tmass": {"h_msigcom": np.array([-0.1])}}, ["J", "Ks", "W1", "W2"]),
        ({"tmass": {"ks_m": np.array([np.nan])}}, ["J", "H", "W1", "W2"]),
        ({"unwise": {"flux": np.array([[-5.0, 1e4]])}}, ["J", "H", "Ks", "W2"]),
        ({"unwise": {"flux": np.array([[0.0, 1e4]])}}, ["J", "H", "Ks", "W2"]),
        ({"unwise": {"flux": np.array([[np.nan, 1e4]])}}, ["J", "H", "Ks", "W2"]),
        ({"unwise": {"flux": np.array([[np.inf, 1e4]])}}, ["J", "H", "Ks", "W2"]),
        ({"unwise": {"dflux": np.array([[20.0, 2000.0]])}}, ["J", "H", "Ks", "W1"]),
        ({"unwise": {"dflux": np.array([[20.0, 1999.0]])}}, ALL),
        ({"unwise": {"dflux": np.array([[np.nan, 30.0]])}}, ["J", "H", "Ks", "W2"]),
        ({"unwise": {"dflux": np.array([[0.0, -1.0]])}}, ["J", "H", "Ks"]),
        ({"unwise": {"fracflux": np.array([[0.8, 0.81]])}}, ["J", "H", "Ks", "W2"]),
        ({"unwise": {"qf": np.array([[0.81, 0.8]])}}, ["J", "H", "Ks", "W1"]),
        ({"unwise": {"sep_arcsec": np.array([0.25])}}, ["J", "H", "Ks"]),
        ({"unwise": {"sep_arcsec": np.array([0.249])}}, ALL),
        ({"unwise": {"sep_arcsec": np.array([np.nan])}}, ["J", "H", "Ks"]),
    ],
)
def test_photometric_cuts(change, used):
    assert used_bands(**change) == used


def test_unused_bands_flux_does_not_matter():
    off = {"ph_qual": np.array([b"AUA"])}
    flux, err = photometry(off)
    other_flux, other_err = photometry({**off, "h_m": np.array([-50.0])})
    np.testing.assert_array_equal(flux, other_flux)
    np.testing.assert_array_equal(err, other_err)


def test_text_quality_of_other_string_types_is_understood():
    assert used_bands(tmass={"ph_qual": np.array(["AAA"])}) == ALL
    assert used_bands(tmass={"ph_qual": np.array(["AAA"], dtype=object)}) == ALL
    assert used_bands(tmass={"ph_qual": np.array([b"AAA     "])}) == ALL


def test_many_stars_equal_the_formulae_star_by_star():
    rng = np.random.default_rng(4)
    n = 400
    tmass, unwise = good_tmass(n), good_unwise(n)
    tmass["ph_qual"] = rng.choice([b"AAA", b"ABA", b"UAB", b""], n)
    for band in ("j", "h", "ks"):
        tmass[f"{band}_m"] = rng.uniform(8, 15, n)
        tmass[f"{band}_msigcom"] = rng.choice([0.02, 0.1, 0.25, -1, np.nan], n)
    for name, values in {"qf": [0.9, 0.7], "fracflux": [0.9, 0.8], "dflux": [10, 3000, 0]}.items():
        unwise[name] = rng.choice(values, (n, 2))
    unwise["flux"] = rng.choice([2e4, -3, np.nan], (n, 2))
    unwise["sep_arcsec"] = rng.choice([0.1, 0.3, np.nan], n)
    norm_dg = rng.choice([np.nan, -20, -7, 1], n)
    flux, err = photometry_flux({"tmass": tmass, "unwise": unwise}, {"norm_dg": norm_dg})
    for star in range(n):
        rows = [{k: v[star] for k, v in table.items()} for table in (tmass, unwise)]
        expected = xp_oracle.photometry(*rows, norm_dg[star])
        pairs = [expected.get(name, (0, np.inf)) for name in ALL]
        np.testing.assert_allclose(flux[star], [p[0] for p in pairs], rtol=1e-9)
        np.testing.assert_allclose(err[star], [p[1] for p in pairs], rtol=1e-9)


# --- a band and a survey more ---------------------------------------------------------------
MORE = """
[surveys.sky]
title = "SkyMapper"
folder = "xp_sky_match"
prefix = "xp_sky_match"
step = "match_sky.py"
system = "mag"
max_error = 0.1
cuts = ["class_star > 0.9", "flags == 0"]
flag = {name = "NO_SKY", bit = 256, text = "none is used"}
columns = [{name = "mags", shape = [2]}, {name = "errors", shape = [2]}]

[[bands]]
name = "v"
symbol = "$v$"
survey = "sky"
wavelength = 384.0
vega_to_ab = 0.0
depth = 20.0
value = "mags[1]"
error = "errors[1]"
cuts = ["norm_dg < -3", "grade == good"]

[[bands]]
name = "W3"
symbol = "$W_3$"
survey = "unwise"
wavelength = 11560.8
vega_to_ab = 5.174
depth = 12.0
value = "w3flux"
error = "w3dflux"
cuts = []
"""


def sky_table(**changes):
    table = {
        "mags": np.tile([99.0, 15.0], (3, 1)), "errors": np.full((3, 2), 0.05),
        "class_star": np.ones(3), "flags": np.zeros(3, "i2"), "grade": np.full(3, "good"),
    }  # fmt: skip
    return table | changes


def more_vectors(norm_dg=-20.0, **changes):
    unwise = good_unwise(3) | {"w3flux": np.array([1e5, 1e5, -1]), "w3dflux": np.full(3, 1e3)}
    tables = {"tmass": good_tmass(3), "unwise": unwise, "sky": sky_table(**changes)}
    declared = parse_bands(TABLE.read_text() + MORE)
    metadata = {"norm_dg": np.full(3, norm_dg)}
    return xp_utils.flux_vectors(random_stars(3), tables, metadata, BASIS, declared)


def test_a_band_and_a_survey_more_are_entries_of_the_table_and_no_code():
    result = more_vectors()
    n_xp = len(BASIS.wavelengths)
    assert result.flux.shape == (3, n_xp + 7)
    expected = xp_oracle.flux_of_magnitude(15.0, 0.384, 0.0)
    np.testing.assert_allclose(result.flux[:, n_xp + 5], expected, rtol=1e-6)
    error = expected * np.hypot(0.05 * np.log(10) / 2.5, 0.01)
    np.testing.assert_allclose(result.flux_err[:, n_xp + 5], error, rtol=1e-6)
    w3 = 1e5 * xp_oracle.flux_of_magnitude(22.5, 11.5608, 5.174)
    np.testing.assert_allclose(result.flux[:, n_xp + 6], [w3, w3, 0], rtol=1e-6)
    assert not result.input_flags.any()
    usual = xp_utils.flux_vectors(random_stars(3), good_surveys(3), no_neighbours(3), BASIS)
    np.testing.assert_array_equal(result.flux[:, : n_xp + 5], usual.flux)
    bands = parse_bands(TABLE.read_text() + MORE)[1]
    channels = xp_utils.flux_channels(BASIS, bands)
    assert channels.photometry["sky"].tolist() == [n_xp + 5]
    assert channels.photometry["unwise"].tolist() == [n_xp + 3, n_xp + 4, n_xp + 6]


@pytest.mark.parametrize(
    "changes",
    [
        {"class_star": np.array([0.5, 0.9, np.nan])},
        {"flags": np.array([1, 2, -1], "i2")},
        {"grade": np.array([b"bad", b"", b"goodish"])},
        {"errors": np.tile([[0.01], [0.01], [0.01]], 2) * [1, 20]},
        {"norm_dg": np.nan},
        {"norm_dg": -2.0},
    ],
)
def test_cuts_of_an_added_survey_are_those_of_the_table(changes):
    result = more_vectors(**changes)
    assert np.isinf(result.flux_err[:, len(BASIS.wavelengths) + 5]).all()
    assert ((result.input_flags & 256) > 0).all()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('system = "nanomaggy"', 'system = "luptitude"', "luptitude"),
        ('survey = "tmass"', 'survey = "dennis"', "no survey 'dennis'"),
        ("sep_arcsec < 0.25", "sep_arcsec <= 0.25", "is not a cut"),
        ('value = "flux[0]"', 'value = "flux[x]"', "is not a column"),
    ],
)
def test_faults_of_a_table_of_bands_are_named(old, new, words):
    with pytest.raises(ValueError, match=words):
        parse_bands(TABLE.read_text().replace(old, new, 1))


def test_bits_of_the_surveys_are_distinct():
    bits = [survey.flag.bit for survey in SURVEYS.values()]
    assert len(set(bits)) == len(bits)
