"""The XP spectrum on the release's finer grid, against GaiaXPy and its design matrices."""

import dataclasses
import shutil

import numpy as np
import pytest
from xp_case import BASIS, RELEASE, demo_stars, no_neighbours, random_stars, rows_of, vectors

import xp_utils
from pipeline.errors import UsageError
from pipeline.schema import XP_BANDS, Layout, load_release, resolved
from pipeline.schema.release import FOLDER, read_release
from tools import make_xp_basis

FINE = RELEASE.spectra.fine_wavelengths
HALF = 2.0**-11  # relative rounding of float16


@pytest.fixture(scope="module")
def spectra():
    """Columns of 20 demo stars; of the first four, one band or both are missing."""
    xp = demo_stars(20)
    xp["bp_n_parameters"][[0, 2]] = 0
    xp["rp_n_parameters"][[1, 2]] = 0
    xp["bp_coefficients"][3, 7] = np.nan
    return xp


@pytest.fixture(scope="module")
def found(spectra):
    return vectors(spectra).xp_fine


BP_MISSING, RP_MISSING = [0, 2, 3], [1, 2]
WHOLE = slice(4, None)


def reference(flux, missing_rp):
    """Mean flux (n_xp,) where RP alone has weight; where BP alone has, without RP."""
    with np.load(RELEASE.spectra.basis) as table:
        bp, rp = (table[f"{band}_weight"] for band in XP_BANDS)
    return flux[bp == 1].mean() if missing_rp else flux[rp == 1].mean()


def by_design_matrices(xp, star, missing=()):
    """xp_fine (m,) of a star, from the arrays of the release's table."""
    flux = {"": 0.0, "fine_": 0.0}
    nowhere = np.zeros(len(FINE), bool)
    with np.load(RELEASE.spectra.basis) as table:
        for band in XP_BANDS:
            for grid in flux:
                weight = table[f"{grid}{band}_weight"]
                if band in missing:
                    flux[grid] = flux[grid] + 0.0 * weight
                    nowhere |= (weight > 0) if grid else False
                else:
                    own = xp[f"{band}_coefficients"][star] @ table[f"{grid}{band}_design"]
                    flux[grid] = flux[grid] + weight * own
    if len(missing) == 2:
        return np.full(len(FINE), np.nan)
    ratio = flux["fine_"] / reference(flux[""], "rp" in missing)
    return np.where(nowhere, np.nan, ratio)


# ---- values


def test_fine_spectrum_is_that_of_the_design_matrices(spectra, found):
    assert found.dtype == np.float16
    assert found.shape == (20, len(FINE))
    for star in range(20):
        missing = [b for b, rows in (("bp", BP_MISSING), ("rp", RP_MISSING)) if star in rows]
        expected = by_design_matrices(spectra, star, missing)
        np.testing.assert_allclose(found[star], expected, rtol=HALF, atol=1e-7)


def test_fine_spectrum_is_what_gaiaxpy_calibrates():
    pytest.importorskip("gaiaxpy")
    xp = demo_stars(8)
    coefficients = {band: xp[f"{band}_coefficients"] for band in XP_BANDS}
    fine, coarse = (
        make_xp_basis.sampled_flux(coefficients, grid) for grid in (FINE, BASIS.wavelengths)
    )
    expected = fine / np.array([reference(flux, False) for flux in coarse])[:, None]
    np.testing.assert_allclose(vectors(xp).xp_fine, expected, rtol=HALF, atol=1e-6)


@pytest.mark.parametrize("missing", XP_BANDS)
def test_fine_spectrum_of_one_band_is_what_gaiaxpy_calibrates_of_it(missing):
    pytest.importorskip("gaiaxpy")
    xp = demo_stars(5)
    xp[f"{missing}_n_parameters"][:] = 0
    coefficients = {b: None if b == missing else xp[f"{b}_coefficients"] for b in XP_BANDS}
    fine, coarse = (
        make_xp_basis.sampled_flux(coefficients, grid) for grid in (FINE, BASIS.wavelengths)
    )
    scale = np.array([reference(flux, missing == "rp") for flux in coarse])
    found = vectors(xp).xp_fine
    seen = getattr(BASIS.fine, f"{missing}_weight") == 0
    assert np.isnan(found[:, ~seen]).all()
    expected = fine[:, seen] / scale[:, None]
    np.testing.assert_allclose(found[:, seen], expected, rtol=HALF, atol=1e-6)


def test_fine_spectrum_agrees_with_the_flux_vector_at_common_wavelengths():
    both = vectors(demo_stars(30))
    common, fine, coarse = np.intersect1d(FINE, BASIS.wavelengths, return_indices=True)
    assert len(common) > 20
    scale = [reference(flux[: len(BASIS.wavelengths)], False) for flux in both.flux]
    expected = both.flux[:, coarse] / np.array(scale)[:, None]
    np.testing.assert_allclose(both.xp_fine[:, fine], expected, rtol=2 * HALF, atol=1e-6)


def test_fine_spectrum_does_not_know_the_brightness():
    xp = demo_stars(6)
    bright = dict(xp)
    for band in XP_BANDS:
        bright[f"{band}_coefficients"] = 64.0 * xp[f"{band}_coefficients"]
        bright[f"{band}_coefficient_errors"] = 64.0 * xp[f"{band}_coefficient_errors"]
    np.testing.assert_array_equal(vectors(bright).xp_fine, vectors(xp).xp_fine)


# ---- what is missing


def test_fine_spectrum_is_nan_just_where_a_missing_band_has_weight(found):
    bp, rp = (getattr(BASIS.fine, f"{band}_weight") > 0 for band in XP_BANDS)
    nan = np.isnan(found)
    np.testing.assert_array_equal(nan[0], bp)
    np.testing.assert_array_equal(nan[3], bp)
    np.testing.assert_array_equal(nan[1], rp)
    assert nan[2].all()
    assert not nan[WHOLE].any()


def test_fine_spectrum_without_a_positive_reference_is_nan():
    xp = random_stars(3)
    xp["rp_coefficients"][1] *= -1
    nan = np.isnan(vectors(xp).xp_fine)
    assert nan[1].all()
    assert not nan[[0, 2]].any()


def test_fine_spectrum_is_nan_where_it_is_out_of_the_range_of_float16():
    xp = random_stars(2)
    xp["bp_coefficients"][0] *= 1e7
    with np.errstate(over="raise"):
        fine = vectors(xp).xp_fine
    assert np.isnan(fine[0]).any()
    assert not np.isinf(fine).any()
    assert np.isfinite(fine[0, BASIS.fine.bp_weight == 0]).all()
    assert np.isfinite(fine[1]).all()


def test_fine_spectrum_of_a_star_does_not_depend_on_its_neighbours(spectra, found):
    order = np.random.default_rng(2).permutation(20)
    np.testing.assert_array_equal(vectors(rows_of(spectra, order)).xp_fine, found[order])
    for star in (0, 5, 19):
        np.testing.assert_array_equal(vectors(rows_of(spectra, [star])).xp_fine[0], found[star])


# ---- the table, and releases without it


def test_weights_of_the_finer_grid_add_up_to_1():
    weight = BASIS.fine.bp_weight + BASIS.fine.rp_weight
    np.testing.assert_allclose(weight, 1.0, atol=1e-9)
    np.testing.assert_array_equal(BASIS.fine.wavelengths, FINE)
    assert (FINE[0], FINE[-1], len(FINE)) == (336.0, 1020.0, 172)


@pytest.fixture(scope="module")
def without_fine(tmp_path_factory):
    """DR3 as a release that has no fine_wavelengths."""
    folder = tmp_path_factory.mktemp("release")
    lines = (FOLDER / "dr3.toml").read_text().splitlines()
    kept = [line for line in lines if not line.startswith("fine_wavelengths")]
    assert len(kept) == len(lines) - 1
    (folder / "dr3.toml").write_text("\n".join(kept))
    for path in (RELEASE.spectra.basis, RELEASE.spectra.noise):
        shutil.copy(path, folder / path.name)
    return read_release(folder / "dr3.toml")


def test_release_without_fine_wavelengths_has_no_fine_spectrum_and_all_else_the_same(
    spectra, without_fine
):
    basis = xp_utils.load_xp_basis(without_fine)
    assert basis.fine is None
    assert without_fine.spectra.fine_wavelengths.shape == (0,)
    metadata = no_neighbours(20) | {"matched": np.ones(20, bool)}
    tables = {"xp": spectra, "metadata": metadata}
    plain, whole = (xp_utils.star_table(tables, b) for b in (basis, BASIS))
    assert set(whole) - set(plain) == {"xp_fine"}
    for name in plain:
        np.testing.assert_array_equal(plain[name], whole[name], err_msg=name)


def test_files_of_a_release_without_fine_wavelengths_have_no_such_dataset(without_fine):
    for kind in ("training", "opt_input"):
        plain, whole = (resolved(kind, Layout(r)) for r in (without_fine, load_release()))
        assert set(whole) - set(plain) == {"xp_fine"}
        assert whole["xp_fine"].shape == (len(FINE),)


def test_basis_of_another_finer_grid_is_refused(tmp_path):
    text = (FOLDER / "dr3.toml").read_text()
    other = text.replace("[336.0, 1020.0, 4.0]", "[336.0, 1020.0, 6.0]")
    assert other != text
    (tmp_path / "dr3.toml").write_text(other)
    shutil.copy(RELEASE.spectra.basis, tmp_path / RELEASE.spectra.basis.name)
    with pytest.raises(UsageError, match="fine_wavelength differs"):
        xp_utils.load_xp_basis(read_release(tmp_path / "dr3.toml"))


@pytest.mark.parametrize("lost", ["fine_bp_design", "fine_wavelength"])
def test_basis_without_the_finer_grid_is_refused(tmp_path, lost):
    with np.load(RELEASE.spectra.basis) as file:
        arrays = {name: file[name] for name in file.files if name != lost}
    np.savez(tmp_path / "basis.npz", **arrays)
    spectra = dataclasses.replace(RELEASE.spectra, basis=tmp_path / "basis.npz")
    with pytest.raises(UsageError, match=lost):
        xp_utils.load_xp_basis(dataclasses.replace(RELEASE, spectra=spectra))
