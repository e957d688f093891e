"""Stars shown fainter: brightness, errors, noise and parallax of the same star farther away."""

import dataclasses

import numpy as np
import pytest
from demo_stars_case import ALONE, BASIS, CHANNELS, N_XP, RELEASE, dimming, stars_and_g

from fitting.dimming import BACKGROUND_G, Dimming, NoiseLaw
from pipeline.photometry import vega_to_flux
from pipeline.schema import BANDS, SURVEYS, XP_BANDS
from pipeline.typical_noise import release_noise
from xp_utils import floor_variance, reference_flux

COPIES = 4000
XP = slice(0, N_XP)


@pytest.fixture(scope="module")
def data():
    return stars_and_g()[0]


@pytest.fixture(scope="module")
def dims():
    return dimming()


@pytest.fixture(scope="module")
def copies(data, dims):
    """Many copies of a star of median brightness, each 3 mag fainter; the star; the factor."""
    g = stars_and_g()[1]
    row = np.argsort(g)[len(g) // 2]
    many = data.take(np.full(COPIES, row))
    shown = dims.show(many, np.full(COPIES, 3.0), np.random.default_rng(3))
    return shown, data.take([row]), 10 ** (-0.4 * 3.0)


def used(stars):
    return np.isfinite(stars.flux_err)


def reference(stars):
    return reference_flux(stars.flux, used(stars), CHANNELS.bp, CHANNELS.rp)


def without_floors(stars):
    """Errors (N, n_xp) of the XP fluxes without the floors that are added to them."""
    return np.sqrt(stars.flux_err[:, XP].astype("f8") ** 2 - floor_variance(stars.flux[:, XP]))


def absolute_fine(stars):
    return stars.fine.astype("f8") * reference(stars)[:, None]


def assert_same_stars(left, right, rtol=0.0):
    for field in dataclasses.fields(left):
        one, two = (getattr(x, field.name) for x in (left, right))
        if isinstance(one, np.ndarray):
            np.testing.assert_allclose(one, two, rtol=rtol, atol=rtol, err_msg=field.name)


# ---- brightness


def test_dimming_by_nothing_changes_nothing(data, dims):
    shown = dims.show(data, np.zeros(len(data)), np.random.default_rng(0))
    assert_same_stars(shown, data, rtol=2e-6)
    np.testing.assert_array_equal(shown.flux, data.flux)


def test_dimming_by_nothing_changes_nothing_of_stars_measured_far_better_than_usual(data, dims):
    err = data.flux_err.copy()
    err[:, XP] = np.sqrt((0.3 * without_floors(data)) ** 2 + floor_variance(data.flux[:, XP]))
    stars = dataclasses.replace(data, flux_err=err)
    assert_same_stars(dims.show(stars, np.zeros(len(data)), np.random.default_rng(0)), stars, 2e-6)


def test_fluxes_shrink_by_the_magnitudes_in_the_mean(copies):
    shown, star, factor = copies
    for values, expected in (
        (shown.flux, star.flux[0] * factor),
        (absolute_fine(shown), absolute_fine(star)[0] * factor),
    ):
        error = values.std(0) / np.sqrt(COPIES)
        assert (np.abs(values.mean(0) - expected) <= 5 * error + 1e-3 * np.abs(expected)).all()


def test_parallax_keeps_its_relative_error_and_shrinks_as_the_root_of_the_flux(data, dims):
    magnitudes = np.linspace(0, 5, len(data))
    shown = dims.show(data, magnitudes, np.random.default_rng(1))
    relative = shown.parallax_err / shown.parallax
    np.testing.assert_allclose(relative, data.parallax_err / data.parallax, rtol=1e-6)
    np.testing.assert_allclose(
        (shown.parallax / data.parallax) ** 2, 10 ** (-0.4 * magnitudes), 1e-5
    )


def test_ln_flux_at_1_kpc_stays_within_the_noise(data, dims):
    shown = dims.show(data, np.full(len(data), 2.0), np.random.default_rng(1))
    before, after = (x.observed.features[:, 0] - 2 * np.log(x.parallax) for x in (data, shown))
    np.testing.assert_allclose(after, before, atol=0.05)
    assert abs(np.mean(after - before)) < 1e-3


def test_labels_and_extinction_stay(data, dims):
    shown = dims.show(data, np.full(len(data), 2.0), np.random.default_rng(1))
    for name in ("theta", "theta_err", "extinction", "extinction_err"):
        np.testing.assert_array_equal(getattr(shown, name), getattr(data, name))


def test_the_same_seed_shows_the_same_stars(data, dims):
    magnitudes = np.full(len(data), 2.0)
    one, same, other = (dims.show(data, magnitudes, np.random.default_rng(k)) for k in (5, 5, 6))
    assert_same_stars(one, same)
    assert (one.flux != other.flux)[:, XP].mean() > 0.95  # very poor stars get no noise


def test_stars_do_not_change_by_being_shown(data, dims):
    before = {k: v.copy() for k, v in vars(data).items() if isinstance(v, np.ndarray)}
    dims.show(data, np.full(len(data), 4.0), np.random.default_rng(1))
    dims.hide(data, np.ones(len(data), bool), "rp")
    for name, value in before.items():
        np.testing.assert_array_equal(getattr(data, name), value)


# ---- noise


def test_XP_errors_do_not_shrink_relative_to_the_flux(data, dims):
    before = without_floors(data)
    for magnitudes in (0.5, 2.0, 5.0):
        shown = dims.show(data, np.full(len(data), magnitudes), np.random.default_rng(2))
        left = without_floors(shown) / (before * 10 ** (-0.4 * magnitudes))
        assert (left > 1 - 1e-4).all()


def test_pulls_of_dimmed_stars_have_unit_width_in_every_channel(data, dims):
    rng = np.random.default_rng(4)
    truth = data.take(np.repeat(np.arange(0, len(data), 40), 600))
    seen = truth.flux.astype("f8")
    own = without_floors(truth)
    seen[:, XP] += own * rng.normal(size=own.shape)
    err = truth.flux_err.astype("f8")
    err[:, XP] = np.sqrt(own**2 + floor_variance(seen[:, XP]))
    stars = dataclasses.replace(truth, flux=seen.astype("f4"), flux_err=err.astype("f4"))
    for magnitudes in (1.0, 4.0):
        shown = dims.show(stars, np.full(len(stars), magnitudes), rng)
        off = shown.flux - truth.flux * 10 ** (-0.4 * magnitudes)
        pull = off[:, XP] / without_floors(shown)
        np.testing.assert_allclose(pull.std(0), 1.0, atol=0.06)


def test_pulls_of_dimmed_photometry_have_unit_width(data, dims):
    row = np.argmax(used(data)[:, -1])  # with unWISE
    depth = np.array([vega_to_flux(band.depth, band) for band in BANDS])
    flux = data.flux[row].copy()
    flux[N_XP:] = depth * 10 ** (0.4 * 3.0)  # 1 mag above its depth, its error is 0.04 mag
    flux = np.tile(flux, (COPIES, 1))
    star = data.take(np.full(COPIES, row))
    star = dataclasses.replace(star, flux=flux, flux_err=1e-3 * flux)
    shown = dims.show(star, np.full(COPIES, 2.0), np.random.default_rng(5))
    assert used(shown).all()
    ln_off = np.log(shown.flux / (flux * 10 ** (-0.4 * 2.0)))[:, N_XP:]
    relative = (shown.flux_err / shown.flux)[:, N_XP:]
    np.testing.assert_allclose(relative, 0.1 * np.log(10) / 2.5 / 10**0.4, rtol=0.05)
    np.testing.assert_allclose((ln_off / relative).std(0), 1.0, atol=0.06)


def typical_covariances(basis, unit_basis):
    """D^T S R S D (2, n, n) of both bands, from the table of typical noise, for noise of mean error
    1 where a band alone has weight in the XP spectrum of `unit_basis`; {band: [of each kind]}."""
    out = {}
    with np.load(RELEASE.spectra.noise) as table:
        for band in XP_BANDS:
            designs = [
                getattr(x, f"{band}_design") * getattr(x, f"{band}_weight")
                for x in (basis, unit_basis)
            ]
            out[band] = []
            kinds = zip(table[f"{band}_shape"], table[f"{band}_correlations"], strict=True)
            for shape, packed in kinds:
                matrix, numbers = np.eye(len(shape)), iter(packed.astype(float))
                for row in range(len(shape)):
                    for column in range(row):
                        matrix[row, column] = matrix[column, row] = next(numbers)
                matrix *= np.outer(shape, shape)
                whole, unit = (design.T @ matrix @ design for design in designs)
                out[band].append(whole / np.mean(np.sqrt(np.diag(unit))[ALONE[band][XP]]) ** 2)
    return out


@pytest.mark.parametrize("grid", ["coarse", "fine"])
def test_roots_of_the_noise_give_the_covariances_of_the_release_table(dims, grid):
    basis = BASIS if grid == "coarse" else BASIS.fine
    expected = typical_covariances(basis, BASIS)
    for band, noise in zip(XP_BANDS, dims.bands, strict=True):
        roots = noise.root[:, :, XP] if grid == "coarse" else noise.fine_root
        for root, cov in zip(roots, expected[band], strict=True):
            np.testing.assert_allclose(root.T @ root, cov, atol=2e-5 * cov.max())


def test_added_noise_is_correlated_as_the_table_says(copies):
    shown, star, factor = copies
    found = np.corrcoef((shown.flux - star.flux * factor)[:, XP].T)
    typical = typical_covariances(BASIS, BASIS)
    for band in XP_BANDS:
        inside = ALONE[band][XP]
        cov = np.mean(typical[band], 0)[inside][:, inside]
        sigma = np.sqrt(np.diag(cov))
        np.testing.assert_allclose(found[inside][:, inside], cov / np.outer(sigma, sigma), atol=0.1)
    between = found[ALONE["bp"][XP]][:, ALONE["rp"][XP]]
    np.testing.assert_allclose(between, 0.0, atol=0.1)


def test_neighbouring_channels_share_noise(copies):
    shown, star, factor = copies
    inside = ALONE["rp"]
    found = np.corrcoef((shown.flux - star.flux * factor)[:, inside].T)
    cov = np.mean(typical_covariances(BASIS, BASIS)["rp"], 0)[inside[XP]][:, inside[XP]]
    sigma = np.sqrt(np.diag(cov))
    expected = np.diag(cov / np.outer(sigma, sigma), 1)
    np.testing.assert_allclose(np.diag(found, 1), expected, atol=0.05)
    assert np.abs(expected).mean() > 0.1


def test_the_finer_spectrum_has_the_noise_of_the_coarse_one(copies):
    grids = RELEASE.spectra.fine_wavelengths, RELEASE.spectra.wavelengths
    common, place, at = np.intersect1d(*grids, return_indices=True)
    assert len(common) > 20
    shown, star, factor = copies
    off = [
        absolute_fine(shown)[:, place] - absolute_fine(star)[:, place] * factor,
        shown.flux[:, at] - star.flux[:, at] * factor,
    ]
    np.testing.assert_allclose(*off, atol=1e-4 * off[1].std())


def test_stars_measured_better_than_usual_stay_better(data, dims):
    alone = ALONE["rp"][XP]
    usual = dims.bands[1].law.sigma(data.flux[:, XP][:, alone].mean(1))
    quality = without_floors(data)[:, alone].mean(1) / usual
    shown = dims.show(data, np.full(len(data), 6.0), np.random.default_rng(7))
    truth = data.flux[:, XP][:, alone].mean(1) * 10 ** (-0.4 * 6.0)
    after = without_floors(shown)[:, alone].mean(1) / dims.bands[1].law.sigma(truth)
    np.testing.assert_allclose(after, np.clip(quality, 0.5, 2.0), rtol=0.05)
    assert np.ptp(after) > 0.5


def test_usual_errors_are_those_of_the_law(data, dims):
    err = np.sqrt(
        dims.errors(data.flux, dims.levels(data.flux), np.zeros(len(data), int))[:, XP] ** 2
        - floor_variance(data.flux[:, XP])
    )
    for band, noise, level in zip(XP_BANDS, dims.bands, dims.levels(data.flux), strict=True):
        inside = ALONE[band][XP]
        expected = noise.law.sigma(data.flux[:, XP][:, inside].mean(1))
        np.testing.assert_allclose(level, expected, rtol=1e-6)
        np.testing.assert_allclose(err[:, inside].mean(1), expected, rtol=1e-4)


def test_typical_noise_has_the_level_1(dims):
    coarse, fine = dims.noise(np.zeros(COPIES, int), np.random.default_rng(8))
    for band, noise, finer in zip(XP_BANDS, coarse, fine, strict=True):
        assert noise[:, ALONE[band]].std(0).mean() == pytest.approx(1.0, abs=0.02)
        assert finer.shape == (COPIES, len(RELEASE.spectra.fine_wavelengths))
        assert not noise[:, N_XP:].any()


# ---- the law


@pytest.fixture(scope="module")
def fluxes():
    """Mean fluxes of made-up stars, and their G magnitudes."""
    g = np.random.default_rng(9).uniform(9, 18, 500)
    return 10 ** (-0.4 * (g - 18.5)), g


def test_noise_law_of_faint_stars_is_recovered_with_its_background(fluxes):
    flux, g = fluxes
    law = NoiseLaw(0.03, 0.012, 5e-5)
    found = NoiseLaw.fitted(flux, law.sigma(flux), g)
    np.testing.assert_allclose(dataclasses.astuple(found), dataclasses.astuple(law), rtol=1e-6)
    noisy = law.sigma(flux) * np.exp(np.random.default_rng(0).normal(0, 0.05, len(flux)))
    found = NoiseLaw.fitted(flux, noisy, g)
    np.testing.assert_allclose(found.sigma(flux), law.sigma(flux), rtol=0.05)


def test_noise_law_of_bright_stars_has_the_background_of_a_limiting_magnitude(fluxes):
    bright = fluxes[1] < 14
    flux, g = (x[bright] for x in fluxes)
    law = NoiseLaw(0.0, 0.012, 5e-5)
    found = NoiseLaw.fitted(flux, law.sigma(flux), g)
    assert (found.a, found.c2) == pytest.approx((law.a, law.c2))
    assert found.background == pytest.approx(0.012 * 10 ** (-0.4 * (BACKGROUND_G - 18.5)))


def test_noise_law_never_falls_with_the_flux_and_takes_negative_ones_as_none():
    law = NoiseLaw(0.04, 0.01, 1e-4)
    sigma = law.sigma(np.array([-5.0, 0.0, 1.0, 10.0, 1e4]))
    assert sigma[0] == sigma[1] == pytest.approx(0.2)
    assert (np.diff(sigma[1:]) > 0).all()
    assert sigma[-1] == pytest.approx(100, rel=0.01)


# ---- bands


def test_bands_that_are_not_used_stay_so(data, dims):
    err = data.flux_err.copy()
    err[:40, CHANNELS.bp] = err[40:80, CHANNELS.rp] = np.inf
    fine = data.fine.copy()
    fine[:40, BASIS.fine.bp_weight > 0] = np.nan
    fine[40:80, BASIS.fine.rp_weight > 0] = np.nan
    stars = dataclasses.replace(data, flux_err=err, fine=fine)
    shown = dims.show(stars, np.full(len(data), 1.0), np.random.default_rng(1))
    np.testing.assert_array_equal(used(shown)[:, XP], used(stars)[:, XP])
    assert not (used(shown) & ~used(stars)).any()
    assert not shown.flux[~used(shown)].any()
    assert np.isfinite(shown.flux).all()
    assert (shown.flux_err > 0).all()
    np.testing.assert_array_equal(np.isnan(shown.fine[:80]), np.isnan(fine[:80]))


def test_photometric_bands_are_lost_beyond_their_depth(data, dims):
    magnitudes = np.linspace(0, 9, len(data))
    shown = dims.show(data, magnitudes, np.random.default_rng(2))
    for k, band in enumerate(BANDS, N_XP):
        before = used(data)[:, k]
        ratio = data.flux[before, k] / vega_to_flux(band.depth, band)
        below = magnitudes[before] - 2.5 * np.log10(ratio)  # mag beyond the depth
        kept = used(shown)[before, k]
        assert kept[below < -1].all()
        assert not kept[below > 1.5].any()
        assert kept.any()
        relative = shown.flux_err[before, k][kept] / shown.flux[before, k][kept]
        assert (relative <= SURVEYS[band.survey].max_error).all()
    lost = used(data)[:, N_XP:] & ~used(shown)[:, N_XP:]
    assert lost[:, :3].any(0).all()


@pytest.mark.parametrize(("hidden", "kept"), [("bp", "rp"), ("rp", "bp")])
def test_hiding_a_band_leaves_no_flux_of_it_and_keeps_the_others(data, dims, hidden, kept):
    rows = np.arange(len(data)) % 3 == 0
    shown = dims.hide(data, rows, hidden)
    assert_same_stars(shown.take(~rows), data.take(~rows))
    gone, left, whole = getattr(CHANNELS, hidden), shown.take(rows), data.take(rows)
    assert not used(left)[:, gone].any()
    np.testing.assert_array_equal(left.flux_err[:, ~gone], whole.flux_err[:, ~gone])
    np.testing.assert_array_equal(left.flux[:, ~gone], whole.flux[:, ~gone])
    seen = getattr(BASIS.fine, f"{hidden}_weight") == 0
    assert np.isnan(left.fine[:, ~seen]).all()
    own = whole.flux[:, ALONE[kept]].mean(1)
    expected = absolute_fine(whole)[:, seen] / own[:, None]
    np.testing.assert_allclose(left.fine[:, seen], expected, rtol=1e-3)


def test_hiding_a_band_of_no_star_changes_nothing(data, dims):
    assert_same_stars(dims.hide(data, np.zeros(len(data), bool), "bp"), data)


def test_dimming_without_the_finer_spectrum_gives_the_same_fluxes(data, dims):
    coarse = dataclasses.replace(BASIS, fine=None)
    plain = Dimming(data, stars_and_g()[1], coarse, release_noise(RELEASE))
    stars = dataclasses.replace(data, fine=None)
    magnitudes = np.full(len(data), 2.0)
    one, two = (
        d.show(x, magnitudes, np.random.default_rng(3)) for d, x in ((plain, stars), (dims, data))
    )
    np.testing.assert_array_equal(one.flux, two.flux)
    np.testing.assert_array_equal(one.flux_err, two.flux_err)
    assert one.fine is None
    hidden = plain.hide(one, np.ones(len(one), bool), "bp")
    assert not used(hidden)[:, CHANNELS.bp].any()


def test_many_stars_are_shown_fainter_some_at_a_time(monkeypatch):
    data, g = stars_and_g()
    magnitudes = np.maximum(np.random.default_rng(0).uniform(-1, 3, len(g)), 0.0)
    whole = dimming().show(data, magnitudes, np.random.default_rng(1), g)
    monkeypatch.setattr("fitting.dimming.BLOCK", 50)
    parts = dimming().show(data, magnitudes, np.random.default_rng(1), g)
    np.testing.assert_array_equal(parts.parallax, whole.parallax)
    both = np.isfinite(parts.flux_err) & np.isfinite(whole.flux_err)
    pull = (parts.flux - whole.flux)[both] / np.hypot(parts.flux_err, whole.flux_err)[both]
    assert (np.abs(pull) < 6).all()
    same = magnitudes == 0
    np.testing.assert_array_equal(parts.flux[same], data.flux[same])
