"""Simulated blends, and things that are no star of ours."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from demo_stars_case import ALONE, BASIS, CHANNELS, LABELS, N_XP, RELEASE, training_stars

from fitting import strange
from fitting.batches import N_KINDS, Batches
from fitting.direct import direct_inputs
from fitting.observed import StarData
from fitting.prior import fit_prior
from fitting.strange import BLEND_RATIO, UNLIKE, StrangeThings
from xp_utils import floor_variance, reference_flux

FINE = RELEASE.spectra.fine_wavelengths
KINDS = ("hot stars", "white dwarfs", "quasars", "galaxies", "unexplained")
HOT, DWARF, QUASAR, GALAXY, UNEXPLAINED = range(len(KINDS))
GRID = np.concatenate([CHANNELS.wavelengths, FINE])


@pytest.fixture(scope="module")
def stars():
    return training_stars()


@pytest.fixture(scope="module")
def things(stars):
    return StrangeThings(stars, LABELS)


@pytest.fixture(scope="module")
def rows(stars):
    return np.repeat(stars.training, 2)


@pytest.fixture(scope="module")
def blends(things, rows):
    return things.blends(rows, np.random.default_rng(1))


@pytest.fixture(scope="module")
def objects(things, rows):
    return things.objects(rows, np.random.default_rng(2))


@pytest.fixture(scope="module")
def noiseless(things, rows):
    """(hosts, fluxes (n, n_wl + m) of objects before noise, their kinds)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(things, "_observed", lambda host, flux, kind, *_: (host, flux, kind))
        return things.objects(rows, np.random.default_rng(2))


def used(data):
    return np.isfinite(data.flux_err)


def reference(data):
    return reference_flux(data.flux, used(data), CHANNELS.bp, CHANNELS.rp)


def assert_same_stars(left, right):
    for field in dataclasses.fields(left):
        np.testing.assert_array_equal(
            *(getattr(x, field.name) for x in (left, right)), err_msg=field.name
        )


# ---- blends


@pytest.fixture(scope="module")
def pair(things, stars):
    """(first stars, second stars, blends of them)."""
    first = stars.training
    second = np.roll(first, 7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(things, "_unlike", lambda rows, rng: second)
        found = things.blends(first, np.random.default_rng(3))
    return stars.data.take(first), stars.data.take(second), found


@pytest.fixture(scope="module")
def factors(pair):
    """(n, 1) by which the flux of the second star is multiplied, from one channel."""
    first, second, blend = pair
    at = np.flatnonzero(ALONE["rp"])[10]
    return ((blend.flux - first.flux)[:, at] / second.flux[:, at])[:, None]


def test_flux_of_a_blend_is_the_sum_of_those_of_its_stars(pair, factors):
    first, second, blend = pair
    both = used(first) & used(second)
    np.testing.assert_array_equal(used(blend), both)
    expected = np.where(both, first.flux + factors * second.flux, 0.0)
    np.testing.assert_allclose(blend.flux, expected, rtol=1e-4)


def test_relative_errors_of_a_blend_lie_between_those_of_its_stars(pair):
    """Below them, and below the floors that every star has, they would give a blend away."""
    first, second, blend = pair
    both = used(blend) & (first.flux > 0) & (second.flux > 0)
    one, other, relative = (x.flux_err[both] / x.flux[both] for x in (first, second, blend))
    assert (relative > np.minimum(one, other) * (1 - 1e-4)).all()
    assert (relative < np.maximum(one, other) * (1 + 1e-4)).all()


def test_second_star_of_a_blend_gives_the_stated_share_of_the_flux(pair):
    first, _, blend = pair
    ratio = reference(blend) / reference(first) - 1
    low, high = BLEND_RATIO
    assert ((ratio > low - 1e-4) & (ratio < high + 1e-4)).all()
    assert np.ptp(ratio) > 0.8 * (high - low)


def test_finer_spectrum_of_a_blend_is_the_sum_as_well(pair, factors):
    first, second, blend = pair
    parts = [x.fine.astype("f8") * reference(x)[:, None] for x in (first, second)]
    expected = parts[0] + factors * parts[1]
    found = blend.fine * reference(blend)[:, None]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    common, fine, coarse = np.intersect1d(FINE, RELEASE.spectra.wavelengths, return_indices=True)
    assert len(common) > 20
    scale = reference(blend)[:, None]
    np.testing.assert_allclose(found[:, fine] / scale, blend.flux[:, coarse] / scale, atol=2e-3)


def test_blends_are_of_unlike_types(things, stars, rows):
    other = things._unlike(rows, np.random.default_rng(4))
    theta = stars.data.theta[:, [things.place["teff"], things.place["logg"]]]
    far = (np.abs(theta[other] - theta[rows]) >= UNLIKE).any(1)
    by_chance = (np.abs(theta[np.roll(rows, 11)] - theta[rows]) >= UNLIKE).any(1).mean()
    assert far.mean() > 0.97
    assert by_chance < 0.9
    assert np.isin(other, stars.training).all()


def test_blends_keep_parallax_and_labels_of_their_brighter_star(stars, rows, blends):
    first = stars.data.take(rows)
    for name in ("parallax", "parallax_err", "theta", "extinction"):
        np.testing.assert_array_equal(getattr(blends, name), getattr(first, name))


def test_blend_with_a_star_without_BP_has_no_BP(things, stars):
    err, fine = stars.data.flux_err.copy(), stars.data.fine.copy()
    lacking = stars.training[:50]
    blue = BASIS.fine.bp_weight > 0
    err[np.ix_(lacking, np.flatnonzero(CHANNELS.bp))] = np.inf
    fine[np.ix_(lacking, np.flatnonzero(blue))] = np.nan
    data = dataclasses.replace(stars.data, flux_err=err, fine=fine)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stars, "data", data)
        patch.setattr(things, "_unlike", lambda rows, rng: lacking)
        found = things.blends(stars.training[50:100], np.random.default_rng(0))
        lone = things.objects(lacking, np.random.default_rng(0))
    for one in (found, lone):
        assert not used(one)[:, CHANNELS.bp].any()
        assert used(one)[:, ALONE["rp"]].all()
        assert np.isnan(one.fine[:, blue]).all()
        assert np.isfinite(one.fine[:, ~blue]).all()


# ---- what is no star of ours


def test_every_kind_of_object_appears(noiseless):
    share = np.bincount(noiseless[2], minlength=len(KINDS)) / len(noiseless[2])
    np.testing.assert_allclose(share, 1 / len(KINDS), atol=0.07)


def test_fluxes_of_objects_are_finite_and_positive(noiseless):
    flux = noiseless[1]
    assert flux.shape[1] == len(GRID)
    assert np.isfinite(flux).all()
    assert (flux > 0).all()


def test_objects_are_as_bright_as_their_hosts(noiseless, objects):
    host, flux, _ = noiseless
    np.testing.assert_allclose(flux[:, ALONE["rp"].nonzero()[0]].mean(1), reference(host), 1e-5)
    np.testing.assert_allclose(reference(objects), reference(host), rtol=0.02)


def test_objects_are_used_where_their_hosts_are(noiseless, objects):
    np.testing.assert_array_equal(used(objects), used(noiseless[0]))
    assert not objects.flux[~used(objects)].any()
    assert (objects.flux_err > 0).all()
    for values in (objects.flux, objects.fine, objects.parallax, objects.parallax_err):
        assert np.isfinite(values).all()


def test_noise_of_objects_is_what_their_errors_say(noiseless, objects):
    off = (objects.flux - noiseless[1][:, : len(CHANNELS)])[:, :N_XP]
    floors = floor_variance(noiseless[1][:, :N_XP])
    pull = off / np.sqrt(objects.flux_err[:, :N_XP].astype("f8") ** 2 - floors)
    np.testing.assert_allclose(pull.std(0), 1.0, atol=0.12)
    assert pull.std() == pytest.approx(1.0, abs=0.04)


def test_finer_spectrum_of_objects_agrees_with_the_flux_vector(objects):
    common, fine, coarse = np.intersect1d(FINE, RELEASE.spectra.wavelengths, return_indices=True)
    assert len(common) > 20
    expected = objects.flux[:, coarse] / reference(objects)[:, None]
    np.testing.assert_allclose(objects.fine[:, fine], expected, rtol=1e-3, atol=1e-3)


def test_hot_objects_are_bluer_than_their_hosts(noiseless):
    host, flux, kind = noiseless
    blue, red = (np.flatnonzero(ALONE[band]) for band in ("bp", "rp"))

    def colour(values):
        return np.log(values[:, blue].mean(1) / values[:, red].mean(1))

    dwarfs = kind == DWARF
    assert np.median(colour(flux[dwarfs]) - colour(host.flux[dwarfs])) > 0.5
    assert (colour(flux[kind == HOT]) > colour(host.flux[kind == HOT])).mean() > 0.5


def test_galaxies_are_redshifted_hosts_that_keep_near_their_photometry(noiseless):
    host, flux, kind = noiseless
    galaxies = kind == GALAXY
    spectrum = np.log(flux[galaxies][:, len(CHANNELS) :])
    assert (spectrum.std(1) > 0.05).all()
    near = np.log(flux[galaxies][:, N_XP : N_XP + 3]) - np.log(
        host.flux[galaxies][:, N_XP : N_XP + 3]
    )
    assert np.abs(np.median(near)) < 1.0


def test_parallaxes_of_quasars_and_galaxies_are_noise_about_none(noiseless, objects):
    host, _, kind = noiseless
    far = (kind == QUASAR) | (kind == GALAXY)
    np.testing.assert_array_equal(objects.parallax_err[far], host.parallax_err[far])
    pull = objects.parallax[far] / objects.parallax_err[far]
    assert pull.mean() == pytest.approx(0.0, abs=0.25)
    assert pull.std() == pytest.approx(1.0, abs=0.15)
    near = kind == DWARF
    assert np.median(objects.parallax[near] / host.parallax[near]) > 10


@pytest.mark.parametrize("n", [0, 1, 3])
def test_few_objects_and_blends_can_be_made(things, stars, n):
    rows = stars.training[:n]
    for make in (things.objects, things.blends):
        found = make(rows, np.random.default_rng(0))
        assert isinstance(found, StarData)
        assert len(found) == n
        assert np.isfinite(found.flux).all()


def test_the_same_seed_makes_the_same_things(things, rows, blends, objects):
    assert_same_stars(things.blends(rows, np.random.default_rng(1)), blends)
    assert_same_stars(things.objects(rows, np.random.default_rng(2)), objects)


def test_objects_of_a_release_without_the_finer_grid_have_none(stars):
    spectra = dataclasses.replace(RELEASE.spectra, fine_wavelengths=np.empty(0))
    release = dataclasses.replace(RELEASE, spectra=spectra)
    basis = dataclasses.replace(BASIS, fine=None, release=release)
    data = dataclasses.replace(stars.data, fine=None)
    plain = StrangeThings(dataclasses.replace(stars, data=data, basis=basis), LABELS)
    found = plain.objects(stars.training, np.random.default_rng(0))
    assert found.fine is None
    assert np.isfinite(found.flux).all()
    assert plain.blends(stars.training, np.random.default_rng(0)).fine is None


# ---- batches


@pytest.fixture(scope="module")
def batches(stars):
    recipe = SimpleNamespace(
        rare_type_weight_cap=3.0,
        faint_share=0.6,
        faint_g=(14.0, 18.0),
        hide_bp=0.1,
        hide_rp=0.1,
        hide_photometry=0.1,
        hide_parallax=0.3,
        blur_parallax=0.3,
    )
    theta = stars.data.theta[stars.training]
    model = SimpleNamespace(
        labels=LABELS,
        channels=CHANNELS,
        is_forward=np.ones(3, bool),
        label_scale=theta.std(0),
        standardised=lambda x: (x - theta.mean(0)) / theta.std(0),
        prior=fit_prior(theta, theta.mean(0), theta.std(0), 2, 0),
    )
    return Batches(stars, model, recipe)


def test_stars_are_shown_at_magnitudes_of_the_recipe_and_none_brighter(batches, stars):
    rows = np.repeat(stars.training, 20)
    fainter = batches.magnitudes(rows, np.random.default_rng(0))
    assert (fainter >= 0).all()
    shown = fainter > 0
    at = (stars.g[rows] + fainter)[shown]
    assert ((at > 14.0) & (at < 18.0)).all()
    bright = stars.g[rows] < 14.0
    assert shown[bright].mean() == pytest.approx(0.6, abs=0.03)
    assert np.median(at[bright[shown]]) == pytest.approx(16.0, abs=0.2)


def test_odd_inputs_are_half_ordinary_and_a_quarter_of_each_kind(batches, rows):
    stage = SimpleNamespace(hide_parallax=None)
    inputs, kind = batches.odd_inputs(rows, stage, np.random.default_rng(0))
    assert inputs.shape == (len(rows), direct_inputs(batches.stars.data.take([0])).shape[1])
    share = np.bincount(kind, minlength=N_KINDS) / len(kind)
    np.testing.assert_allclose(share, [0.5, 0.25, 0.25], atol=0.06)
    assert not np.isinf(inputs).any()
    again, same = batches.odd_inputs(rows, stage, np.random.default_rng(0))
    np.testing.assert_array_equal(again, inputs)
    np.testing.assert_array_equal(same, kind)


def test_blends_are_not_told_by_inputs_that_ordinary_stars_have_not(batches, rows):
    """What is known and what is missing is alike, in the mean, for all kinds."""
    stage = SimpleNamespace(hide_parallax=None)
    inputs, kind = batches.odd_inputs(np.tile(rows, 3), stage, np.random.default_rng(1))
    seen = np.isfinite(inputs)
    ordinary, blend, other = (seen[kind == k].mean(0) for k in range(N_KINDS))
    np.testing.assert_allclose(blend[: N_XP + len(FINE)], ordinary[: N_XP + len(FINE)], atol=0.06)
    np.testing.assert_allclose(other[: N_XP + len(FINE)], ordinary[: N_XP + len(FINE)], atol=0.06)
    np.testing.assert_allclose(blend[-1], ordinary[-1], atol=0.01)


# ---- parts


def test_black_body_peaks_where_wien_says():
    teff, grid = np.array([4000.0, 6000.0, 9000.0]), np.arange(200.0, 1000.0)
    peak = grid[strange._black_body(teff, grid).argmax(1)]
    np.testing.assert_allclose(peak * teff, 2.898e6, rtol=2e-3)


def test_interpolation_is_numpys():
    rng = np.random.default_rng(0)
    values, at = rng.normal(size=(5, 12)), rng.uniform(280, 500, (5, 40))
    found = strange._interpolated(values, 300.0, 15.0, at)
    knots = 300 + 15.0 * np.arange(12)
    expected = [np.interp(x, knots, y) for x, y in zip(at, values, strict=True)]
    np.testing.assert_allclose(found, expected)


def test_unexplained_curves_are_smooth_and_not_small():
    grid = np.arange(336.0, 1021.0, 4.0)
    curves = strange._unexplained(200, grid, np.random.default_rng(0))
    assert np.abs(np.diff(curves, axis=1)).max() < 0.3
    assert 0.1 < curves.std() < 0.6
