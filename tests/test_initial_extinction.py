"""The initial extinction of step 7, against the documented choice made star by star."""

import math

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import SkyCoord
from helpers import lay_out, make_sky
from step7_case import make_labels, result, run, stars_of

import compile_training_data as step


@pytest.fixture
def sky():
    return make_sky()


@pytest.fixture
def data_dir(tmp_path, sky):
    return lay_out(tmp_path, sky)


# ---- extinction ------------------------------------------------------------------------------


def extinction_of_one(ra, dec, plx, plx_err, bayestar, sigma, sfd, planck, bh):
    """The documented choice for one star, in plain Python."""
    latitude = SkyCoord(ra * units.deg, dec * units.deg).galactic.b.rad
    largest = plx + 2 * plx_err
    height_pc = abs(math.sin(latitude)) * 1000 / largest if largest > 0 else 0.0
    column_maps = {"sfd": sfd, "planck": planck, "bh": bh}
    known = [name for name in column_maps if math.isfinite(column_maps[name])]
    if math.isfinite(bayestar) and math.isfinite(sigma):
        ext, err, source = bayestar, sigma, b"bayestar"
    elif not known:
        return math.nan, math.inf, b"none"
    elif height_pc > 400:
        ext = column_maps[known[0]]
        err, source = 0.1 * abs(ext), known[0].encode()
    else:
        ext = column_maps[known[0]]
        err, source = abs(ext), known[0].encode() + b"_limit"
    return ext, math.sqrt(err**2 + 0.03**2 + (0.1 * ext) ** 2), source


def test_extinction_of_many_stars_equals_the_choice_made_for_each():
    rng = np.random.default_rng(8)
    n = 600
    meta = {
        "ra": rng.uniform(0, 360, n), "dec": rng.uniform(-90, 90, n),
        "parallax": np.where(rng.random(n) < 0.1, np.nan, rng.uniform(-0.5, 4, n)),
        "parallax_error": rng.uniform(0.01, 0.3, n),
    }  # fmt: skip
    gap = rng.random((5, n)) < 0.5
    maps = dict(
        zip(step.REDDENING_COLUMNS, np.where(gap, np.nan, rng.uniform(0, 2, (5, n))), strict=True)
    )
    found = step.initial_extinction(meta, maps)
    each = [extinction_of_one(*star) for star in zip(*meta.values(), *maps.values(), strict=True)]
    for column, expected in zip(found, zip(*each, strict=True), strict=True):
        if column.dtype.kind == "S":
            assert column.tolist() == list(expected)
            assert len(set(expected)) == 8
        else:
            np.testing.assert_allclose(column, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("plx", "plx_err", "certain"),
    [(2.49, 0, True), (2.51, 0, False), (1.5, 0.49, True), (1.5, 0.51, False), (-1, 0.1, False)],
)
def test_at_the_galactic_pole_the_height_is_the_distance_at_parallax_plus_2_sigma(
    plx, plx_err, certain
):
    pole = SkyCoord(l=0 * units.deg, b=90 * units.deg, frame="galactic").icrs
    found = step.beyond_dust(*(np.array([x]) for x in (pole.ra.deg, pole.dec.deg, plx, plx_err)))
    assert found.tolist() == [certain]


def test_extinction_in_the_file_is_that_of_the_stars_own_maps(data_dir, sky):
    assert run(data_dir, labels=make_labels(sky)) == 0
    out = result(data_dir)
    meta, maps = stars_of(sky, "metadata"), stars_of(sky, "reddening")
    for row, source_id in enumerate(out["gdr3_source_id"]):
        star = np.flatnonzero(meta["source_id"] == source_id)[0]
        place = [meta[k][star] for k in ("ra", "dec", "parallax", "parallax_error")]
        of_maps = [maps[k][star] if k in maps else math.nan for k in step.REDDENING_COLUMNS]
        ext, err, source = extinction_of_one(*map(float, [*place, *of_maps]))
        np.testing.assert_allclose(out["stellar_ext"][row], ext, rtol=1e-5)
        np.testing.assert_allclose(out["stellar_ext_err"][row], err, rtol=1e-5)
        assert out["stellar_ext_source"][row] == source
