"""Counts in cells against numpy and healpy; what is counted of stars; projections of the sky."""

import itertools

import healpy
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from export_case import stars

from pipeline.extinction_law import ExtinctionLaw
from pipeline.figures.projections import Mollweide, Patch, projection_of
from pipeline.figures.sky import SkyMap
from pipeline.schema import DEFAULT_LABELS, KNOWN_LABELS, LabelSet, Layout, flags
from pipeline.schema.labels import parse_label
from pipeline.tallies.counts import Axis, Counts, Pixels, Sky, Tallies, halved, quantile, suited
from pipeline.tallies.plan import DISTANCES, Plan, slices_of
from pipeline.tallies.quantities import Quantities, galactic

N = 4000
X, Y = Axis("x", -1.0, 2.0, 12), Axis("y", 0.0, 1.0, 8)
VALUE = Axis("value", 0.0, 10.0, 500, ends=True)
WITH_ALPHA = LabelSet((*DEFAULT_LABELS, parse_label("alpha_m:direct")))


@pytest.fixture(scope="module")
def table():
    """Columns of stars, some missing, some out of range."""
    rng = np.random.default_rng(0)
    out = {"x": rng.normal(0, 1, N), "y": rng.beta(2, 3, N), "value": rng.gamma(2, 2, N)}
    out["l"] = rng.uniform(0, 360, N)
    out["b"] = np.rad2deg(np.arcsin(rng.uniform(-1, 1, N)))
    for name in out:
        out[name][rng.integers(0, N, 20)] = np.nan
    return out | {"all": np.ones(N, bool), "some": rng.random(N) < 0.7}


def pieces(table, size):
    for start in range(0, N, size):
        yield {name: values[start : start + size] for name, values in table.items()}


def counted(table, size=N):
    """Counts of each kind, added up in pieces of a size."""
    sky = Sky(5)
    kinds = {
        "plane": Counts((X, Y), "some"),
        "median": Counts((X, Y, VALUE), "some"),
        "sky": Counts((sky,), "all"),
        "sky median": Counts((sky, VALUE), "some"),
    }
    tallies = Tallies(kinds)
    for piece in pieces(table, size):
        tallies.add(piece)
    return kinds


# ---- counts ----------------------------------------------------------------------------------


def test_numbers_in_cells_are_those_of_numpy(table):
    rows = table["some"] & np.isfinite(table["x"]) & np.isfinite(table["y"])
    edges = [X.edges, Y.edges]
    expected = np.histogram2d(table["x"][rows], table["y"][rows], edges)[0]
    found = counted(table)["plane"]
    np.testing.assert_array_equal(found.cells, expected)
    assert found.outside == table["some"].sum() - expected.sum()


def test_medians_in_cells_are_those_of_numpy_to_a_bin(table):
    found = quantile(counted(table)["median"].cells, VALUE.edges)
    rows = table["some"] & np.isfinite(table["value"])
    at = [axis.bins(table) for axis in (X, Y)]
    n_compared = 0
    for i in range(X.n):
        for j in range(Y.n):
            inside = rows & (at[0] == i) & (at[1] == j)
            if inside.any():
                expected = np.percentile(table["value"][inside], 50, method="inverted_cdf")
                assert found[i, j] == pytest.approx(min(expected, 10.0), abs=0.021)
                n_compared += 1
            else:
                assert np.isnan(found[i, j])
    assert n_compared > 60


@pytest.mark.parametrize("q", [0.16, 0.5, 0.84])
def test_quantiles_of_many_stars_are_right_to_a_fraction_of_a_bin(q):
    values, axis = np.random.default_rng(1).gamma(2, 1, 100_000), Axis("v", 0, 12, 40, ends=True)
    counts = Counts((axis,), "all")
    counts.add([axis.bins({"v": values})], np.ones(len(values), bool))
    found = quantile(counts.cells, axis.edges, q)
    assert found == pytest.approx(np.quantile(values, q), abs=0.03)  # of bins of 0.3


@pytest.mark.parametrize("size", [1, 37, 1000])
def test_a_stream_in_pieces_counts_as_one_piece(table, size):
    table = {name: values[:1500] for name, values in table.items()}
    whole, parts = counted(table), counted(table, size)
    for key in ("plane", "median"):
        np.testing.assert_array_equal(parts[key].cells, whole[key].cells)
        assert parts[key].outside == whole[key].outside
    for key in ("sky", "sky median"):
        one, other = Pixels.of(whole[key]), Pixels.of(parts[key])
        np.testing.assert_array_equal(one.pixels, other.pixels)
        np.testing.assert_array_equal(one.counts, other.counts)


def test_cells_put_together_are_those_counted_so(table):
    cells = counted(table)["median"].cells
    wide = [Axis("x", X.low, X.high, X.n // 2), Axis("y", Y.low, Y.high, Y.n // 2), VALUE]
    direct = Counts(tuple(wide), "some")
    Tallies({"": direct}).add(table)
    np.testing.assert_array_equal(halved(cells), direct.cells)


def test_cells_are_as_large_as_few_stars_need():
    cells = np.ones((96, 96), "u4")
    assert suited(cells, 5, 16).shape == (24, 24)
    assert suited(cells, 500, 24).shape == (24, 24)
    assert suited(cells, 1, 16).shape == (96, 96)
    assert suited(cells, 5, 16).sum() == cells.sum()


def test_bins_of_a_log_axis_have_equal_ratios_and_ends_take_what_is_beyond():
    axis = Axis("v", 0.1, 10.0, 4, "log", ends=True)
    np.testing.assert_allclose(axis.edges, [0.1, 10**-0.5, 1, 10**0.5, 10])
    values = np.array([0.01, 0.2, 5.0, 10.0, 99.0, np.nan, -1.0])
    np.testing.assert_array_equal(axis.bins({"v": values}), [0, 0, 3, 3, 3, -1, -1])
    strict = Axis("v", 0.1, 10.0, 4, "log")
    np.testing.assert_array_equal(strict.bins({"v": values}), [-1, 0, 3, 3, -1, -1, -1])


# ---- the sky ---------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [5, 4, 2, 0])
def test_maps_are_those_of_healpy_at_every_level(table, level):
    found = Pixels.of(counted(table)["sky"])
    while found.level > level:
        found = found.coarser()
    here = np.isfinite(table["l"]) & np.isfinite(table["b"])
    pixel = healpy.ang2pix(2**level, table["l"][here], table["b"][here], nest=True, lonlat=True)
    expected = np.bincount(pixel, minlength=healpy.nside2npix(2**level))
    np.testing.assert_array_equal(found.pixels, np.flatnonzero(expected))
    np.testing.assert_array_equal(found.number, expected[expected > 0])


def test_median_of_a_pixel_is_that_of_its_stars(table):
    found = Pixels.of(counted(table)["sky median"]).suited(8)
    median = quantile(found.counts, VALUE.edges)
    rows = table["some"] & np.isfinite(table["value"] + table["l"] + table["b"])
    pixel = healpy.ang2pix(
        2**found.level, table["l"][rows], table["b"][rows], nest=True, lonlat=True
    )
    k = int(np.argmax(found.number))
    inside = table["value"][rows][pixel == found.pixels[k]]
    assert len(inside) == found.number[k] > 8
    expected = np.percentile(np.minimum(inside, 10), 50, method="inverted_cdf")
    assert median[k] == pytest.approx(expected, abs=0.021)


def test_pixels_are_as_large_as_few_stars_need(table):
    pixels = Pixels.of(counted(table)["sky"])
    assert pixels.level == 5
    coarse = pixels.suited(12, 3)
    assert coarse.level < 5
    assert np.median(coarse.number) >= 12
    assert np.mean(coarse.number >= 3) >= 0.85
    assert coarse.number.sum() == pixels.number.sum()


def test_a_patch_of_fine_pixels_takes_the_memory_of_the_patch_alone():
    sky = Sky(9)
    counts = Counts((sky,), "all")
    table = {"l": np.array([100.0, 101.0]), "b": np.array([5.0, 5.5]), "all": np.ones(2, bool)}
    Tallies({"": counts}).add(table)
    assert len(counts.cells) <= 2 * 4**5
    pixel = healpy.ang2pix(512, table["l"], table["b"], nest=True, lonlat=True)
    np.testing.assert_array_equal(Pixels.of(counts).pixels, np.sort(pixel))


def test_galactic_coordinates_are_those_of_astropy():
    rng = np.random.default_rng(2)
    ra, dec = rng.uniform(0, 360, 200), rng.uniform(-90, 90, 200)
    expected = SkyCoord(ra, dec, unit="deg").galactic
    lon, lat = galactic(ra, dec)
    np.testing.assert_allclose(lon, expected.l.deg, atol=1e-7)
    np.testing.assert_allclose(lat, expected.b.deg, atol=1e-7)


@pytest.mark.parametrize(
    "projection", [Mollweide(), Patch(170.0, -20.0, 15.0), Patch(359.0, 88.0, 10.0)]
)
def test_projections_lead_back_to_the_sky_with_north_up_and_longitude_to_the_left(projection):
    rng = np.random.default_rng(3)
    if isinstance(projection, Mollweide):
        lon, lat = rng.uniform(-179, 179, 300), rng.uniform(-89, 89, 300)
        centre = (0.0, 0.0)
    else:
        centre = projection.lon, projection.lat
        x, y = rng.uniform(-projection.radius, projection.radius, (2, 300))
        lon, lat = projection.to_sky(x, y)
        np.testing.assert_allclose(projection.to_plane(lon, lat), (x, y), atol=1e-6)
    there = projection.to_sky(*projection.to_plane(lon, lat))
    away = SkyCoord(*there, unit="deg").separation(SkyCoord(lon, lat, unit="deg")).deg
    assert away.max() < 0.05
    x0, y0 = projection.to_plane(*centre)
    assert projection.to_plane(centre[0] + 1, centre[1])[0] < x0
    assert projection.to_plane(centre[0], centre[1] + 1)[1] > y0


def test_areas_are_kept_by_both_projections():
    edges = np.array([-1e-3, 1e-3])
    for projection, unit in ((Mollweide(), 90.0**2 / (np.pi**2 / 8)), (Patch(0, 0, 60), 1.0)):
        sizes = []
        for lon, lat in ((10.0, 5.0), (40.0, 35.0), (-20.0, -50.0)):
            stretch = edges / np.cos(np.deg2rad(lat))
            x1, y1 = projection.to_plane(lon + stretch, np.full(2, lat))
            x2, y2 = projection.to_plane(np.full(2, lon), lat + edges)
            cross = np.ptp(x1) * (y2[1] - y2[0]) - (y1[0] - y1[1]) * (x2[1] - x2[0])
            sizes.append(abs(cross) * unit / 4e-6)
        np.testing.assert_allclose(sizes, sizes[0], rtol=2e-3)


def test_stars_near_each_other_are_shown_as_a_patch_also_about_longitude_0():
    patch = projection_of(np.array([359.0, 1.0, 0.0]), np.array([10.0, 12.0, 11.0]))
    assert isinstance(patch, Patch)
    assert abs((patch.lon + 180) % 360 - 180) < 0.1
    assert 1 < patch.radius < 2.5
    x, y = patch.to_plane(np.array([359.0, 1.0]), np.array([10.0, 12.0]))
    assert (np.abs([x, y]) < patch.radius).all()
    assert isinstance(projection_of(np.array([0.0, 120.0]), np.array([0.0, 3.0])), Mollweide)
    assert isinstance(projection_of(np.array([5.0]), np.array([3.0])), Patch)


def test_a_map_has_the_value_of_the_pixel_at_a_position_and_none_elsewhere():
    pixels = np.array([3, 17, 40])
    one = SkyMap(np.array([1.0, 2.0, 3.0]), 1, pixels)
    lon, lat = healpy.pix2ang(2, np.array([17, 18, 40]), nest=True, lonlat=True)
    np.testing.assert_array_equal(one.at(lon, lat), [2.0, np.nan, 3.0])
    assert np.isnan(one.at(np.array([np.nan]), np.array([np.nan]))).all()


# ---- what is counted -------------------------------------------------------------------------


def made(labels=DEFAULT_LABELS, n=300, **how):
    """(`Quantities`, datasets of made-up stars, columns of them)."""
    layout = Layout(labels=labels)
    table = stars(n, layout, seed=4)
    quantities = Quantities(layout, "quality_flags < 8", **how)
    assert set(quantities.needs) <= set(table)
    return quantities, table, quantities.of({name: table[name] for name in quantities.needs})


def test_columns_follow_from_the_datasets():
    _, table, found = made()
    est, err = table["stellar_params_est"], table["stellar_params_err"]
    np.testing.assert_allclose(found["label teff"], 1000 * est[:, 0], rtol=1e-6)
    np.testing.assert_allclose(found["error teff"], 1000 * err[:, 0], rtol=1e-6)
    np.testing.assert_array_equal(found["label feh"], est[:, 1])
    np.testing.assert_allclose(found["distance"], 1 / est[:, 5], rtol=1e-6)
    np.testing.assert_allclose(found["error parallax"], err[:, 5] / est[:, 5], rtol=1e-6)
    np.testing.assert_allclose(found["chi2"], table["chi2_opt"] / 66, rtol=1e-6)
    np.testing.assert_array_equal(found["telling xi"], np.where(est[:, 4] > 0.3, est[:, 3], np.nan))
    np.testing.assert_array_equal(found["selected"], table["quality_flags"] < 8)


def test_magnitudes_are_vega_by_the_zero_points_of_Gaia_DR3():
    _, table, found = made()
    flux = {band: np.array(table[f"phot_{band}_mean_flux"], "f8") for band in ("g", "bp", "rp")}
    for band in flux:
        flux[band][flux[band] <= 0] = np.nan
    g, colour = 25.6874 - 2.5 * np.log10(flux["g"]), 25.3385 - 24.7479
    np.testing.assert_allclose(found["g"], g, rtol=1e-6)
    colour = colour - 2.5 * np.log10(flux["bp"] / flux["rp"])
    np.testing.assert_allclose(found["bp_rp"], colour, atol=1e-5)
    expected = g + 5 * np.log10(table["stellar_params_est"][:, 5]) - 10
    np.testing.assert_allclose(found["abs_g"], expected, rtol=1e-5)


def test_flagged_is_a_star_with_any_flag_but_those_of_confidences():
    _, table, found = made(WITH_ALPHA)
    confidences = 1 | 2 | 4 | flags.quality_flag(WITH_ALPHA)["ALPHA_M_CONFIDENCE"].value
    expected = (table["quality_flags"] & ~np.uint32(confidences)) > 0
    np.testing.assert_array_equal(found["flagged"], expected)
    assert expected.any()
    assert not expected.all()


def test_a_label_of_the_direct_estimate_alone_is_counted_too():
    _, table, found = made(WITH_ALPHA)
    np.testing.assert_array_equal(found["label alpha_m"], table["alpha_m_est"])
    np.testing.assert_array_equal(found["error alpha_m"], table["alpha_m_err"])
    np.testing.assert_allclose(found["distance"], 1 / table["stellar_params_est"][:, 5], rtol=1e-6)


def test_RV_is_that_of_xi_where_E_tells_it_and_absent_without_a_law():
    wavelengths = Layout().wavelengths
    x = np.log(wavelengths / 550)
    law = ExtinctionLaw(wavelengths, -1.3 * x, 0.1 * x, np.array(Layout().channels))
    _, table, found = made(law=law)
    est = table["stellar_params_est"]
    expected = np.where(est[:, 4] > 0.3, law.rv(est[:, 3]), np.nan)
    np.testing.assert_allclose(found["RV"], expected)
    assert "RV" not in made()[2]


def test_a_direction_has_the_selected_stars_within_its_radius():
    _, table, found = made(directions=[(30.0, 10.0)], radius=40.0)
    sky = SkyCoord(table["ra"], table["dec"], unit="deg").galactic
    near = sky.separation(SkyCoord(30, 10, unit="deg", frame="galactic")).deg < 40
    np.testing.assert_array_equal(found["direction 0"], near & found["selected"])
    assert found["direction 0"].sum() > 3


def test_every_selected_star_with_a_position_is_in_one_latitude():
    _, _, found = made()
    n = sum(found[f"latitude {k}"].astype(int) for k in range(4))
    np.testing.assert_array_equal(n, (found["selected"] & np.isfinite(found["b"])).astype(int))


@pytest.mark.parametrize("scale", [0.05, 1.0, 30.0])
def test_slices_of_distance_hold_every_star_once_and_many_each(scale):
    distance = scale * np.random.default_rng(5).gamma(2, 1, 5000)
    slices = slices_of(distance)
    assert slices[0][0] == 0
    assert slices[-1][1] == np.inf
    assert all(a[1] == b[0] and a[1] in DISTANCES for a, b in itertools.pairwise(slices))
    shares = [np.mean((distance >= low) & (distance < high)) for low, high in slices]
    assert len(slices) == 1 or min(shares) >= 0.05
    assert 1 <= len(slices) <= 6


def test_what_no_star_has_is_not_counted():
    rng, n = np.random.default_rng(6), 50
    seen = {"selected": np.ones(n, bool), "label teff": rng.normal(5000, 9, n)}
    seen |= {"label logg": np.full(n, np.nan), "ext": rng.random(n), "g": np.full(n, np.nan)}
    found = Plan(DEFAULT_LABELS, seen, 4, 1, 0).counts()
    assert not [key for key in found if key.startswith(("kiel", "cmd", "g ", "along"))]
    assert "sky slice 0" in found
    nothing = Plan(LabelSet([KNOWN_LABELS["teff"], KNOWN_LABELS["logg"]]), {}, 4).counts()
    assert set(nothing) == {"sky all", "sky flagged"}
