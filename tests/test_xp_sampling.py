"""Sampling of spectra: against GaiaXPy, against slow and obvious NumPy, and damaged spectra."""

import dataclasses
import subprocess
import sys

import h5py
import numpy as np
import pytest
import xp_oracle
from xp_case import (
    BASIS,
    RELEASE,
    ROOT,
    assert_same,
    demo_stars,
    packed_covariances,
    random_stars,
    rows_of,
    vectors,
)

import xp_utils
from pipeline.errors import UsageError
from pipeline.schema import XP_BANDS
from pipeline.schema.flags import InputFlag

SHARED = ROOT / ".." / "shared" / "xp_continuous"
NO_BP_STAR = 5405570973190252288  # of the shared real spectra
SINGLE = 1e-4  # of variances in float32, at worst
N_XP = len(BASIS.wavelengths)
COVARIANCES = dataclasses.replace(
    BASIS,
    release=dataclasses.replace(
        RELEASE, spectra=dataclasses.replace(RELEASE.spectra, covariance="covariances")
    ),
)


def read_all(path):
    with h5py.File(path) as file:
        return {name: file[name][()] for name in file}


@pytest.fixture(scope="module")
def real():
    """Five real spectra and what GaiaXPy 2.1.5 made of them, in units of xp_utils."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared/xp_continuous beside the project")
    reference = read_all(SHARED / "real_xp_reference.h5")
    for name in ("flux", "flux_error"):
        reference[name] = reference[name] * 1e18
    reference["direct_covariance"] = reference["direct_covariance"] * 1e36
    return read_all(SHARED / "real_xp_continuous.h5"), reference


# --- basis ----------------------------------------------------------------------------------
def test_basis_has_the_overlap_at_642_nm_only():
    both = (BASIS.bp_weight > 0) & (BASIS.rp_weight > 0)
    assert BASIS.wavelengths[both].tolist() == [642.0]
    assert np.sum(BASIS.bp_weight > 0) == 26
    assert np.sum(BASIS.rp_weight > 0) == 36
    np.testing.assert_allclose(BASIS.bp_weight + BASIS.rp_weight, 1, atol=1e-9)
    assert "GaiaXPy" in BASIS.source
    assert "v375wi" in BASIS.source
    assert "v142r" in BASIS.source


def test_basis_cannot_be_changed_by_a_caller():
    with pytest.raises(ValueError, match="read-only"):
        BASIS.bp_design[0, 0] = 1.0


def test_channels_tell_what_each_flux_is_of():
    channels = xp_utils.flux_channels(BASIS)
    assert len(channels) == N_XP + 5
    assert channels.n_xp == N_XP
    assert channels.names[N_XP:].tolist() == ["J", "H", "Ks", "W1", "W2"]
    assert channels.photometry["unwise"].tolist() == [N_XP + 3, N_XP + 4]
    again = xp_utils.FluxChannels.from_arrays(channels.to_arrays())
    for name, value in vars(channels).items():
        np.testing.assert_array_equal(getattr(again, name), value)


def test_basis_equals_the_reference_design_matrices(real):
    _, reference = real
    for band in XP_BANDS:
        expected = reference[f"design_matrix_{band}"] * 1e18
        design = getattr(BASIS, f"{band}_design")
        np.testing.assert_allclose(design, expected, rtol=0, atol=1e-12 * abs(expected).max())
        np.testing.assert_allclose(
            getattr(BASIS, f"{band}_weight"), reference[f"merge_{band}"], atol=1e-12
        )


def test_basis_script_makes_the_table_again(tmp_path):
    pytest.importorskip("gaiaxpy")
    made = tmp_path / "basis.npz"
    script = ROOT / "tools" / "make_xp_basis.py"
    run = subprocess.run(
        [sys.executable, script, "--output", made], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    with np.load(made) as new, np.load(RELEASE.spectra.basis) as kept:
        assert set(new) == set(kept)
        for prefix in ("", "fine_"):
            for name in ("wavelength", "bp_weight", "rp_weight"):
                np.testing.assert_array_equal(new[prefix + name], kept[prefix + name])
            for name in (f"{prefix}bp_design", f"{prefix}rp_design"):
                np.testing.assert_allclose(new[name], kept[name], atol=1e-9 * abs(kept[name]).max())


def other_spectra(**changes):
    return dataclasses.replace(RELEASE, spectra=dataclasses.replace(RELEASE.spectra, **changes))


SHORT_BANDS = {
    band: dataclasses.replace(one, n_coefficients=51) for band, one in RELEASE.spectra.bands.items()
}


@pytest.mark.parametrize(
    ("release", "words"),
    [
        (other_spectra(basis=ROOT / "nowhere.npz"), "make the basis of Gaia DR3"),
        (other_spectra(basis=ROOT / "README.md"), "cannot be used"),
        (other_spectra(wavelengths=BASIS.wavelengths + 1), r"\(wavelength differs"),
        (
            other_spectra(fine_wavelengths=BASIS.fine.wavelengths + 1),
            r"\(fine_wavelength differs from that of Gaia DR3",
        ),
        (other_spectra(bands=SHORT_BANDS), r"fine_bp_design is \(55, 172\), .* says \(51, 172\)"),
        (
            other_spectra(bands=SHORT_BANDS, fine_wavelengths=np.empty(0)),
            r"\(bp_design is \(55, 61\), the release says \(51, 61\)",
        ),
    ],
)
def test_a_basis_that_is_not_the_releases_is_named(release, words):
    with pytest.raises(UsageError, match=words):
        xp_utils.load_xp_basis(release)


# --- sampling, against GaiaXPy ----------------------------------------------------------------
def test_flux_and_error_of_real_stars_equal_gaiaxpy(real):
    xp, reference = real
    sample = xp_utils.sample_xp(xp, BASIS)
    error, used = np.sqrt(sample.variance), sample.used
    assert used.sum() == 4 * 61 + 35
    np.testing.assert_allclose(sample.flux[used], reference["flux"][used], rtol=1e-6)
    np.testing.assert_allclose(error[used], reference["flux_error"][used], rtol=1e-6)


def test_covariance_of_real_stars_equals_the_direct_product(real):
    xp, reference = real
    cov = xp_utils.sample_xp(xp, BASIS).cov
    for star, expected in enumerate(reference["direct_covariance"]):
        if xp["source_id"][star] != NO_BP_STAR:
            assert abs(cov[star] - expected).max() <= 1e-6 * expected.max()


def gaiaxpy_sample(xp):
    """(flux, error) that GaiaXPy itself gives for XP columns."""
    gaiaxpy = pytest.importorskip("gaiaxpy")
    pandas = pytest.importorskip("pandas")
    n = len(xp["bp_coefficients"])
    table = {"source_id": np.arange(n)}
    for band in XP_BANDS:
        for name in ("coefficients", "coefficient_errors", "coefficient_correlations"):
            table[f"{band}_{name}"] = list(np.asarray(xp[f"{band}_{name}"], float))
        table[f"{band}_n_parameters"] = xp[f"{band}_n_parameters"]
        table[f"{band}_standard_deviation"] = xp.get(f"{band}_standard_deviation", np.ones(n))
        table[f"{band}_n_relevant_bases"] = np.full(n, 55)
    out, _ = gaiaxpy.calibrate(pandas.DataFrame(table), sampling=BASIS.wavelengths, save_file=False)
    return [np.stack(out[name].to_list()) * 1e18 for name in ("flux", "flux_error")]


def test_flux_and_error_of_demo_stars_equal_gaiaxpy():
    xp = demo_stars(40)
    flux, error = gaiaxpy_sample(xp)
    whole, fast = xp_utils.sample_xp(xp, BASIS), xp_utils.sample_variances(xp, BASIS)
    for sample, tolerance in ((whole, 1e-6), (fast, SINGLE / 2)):
        np.testing.assert_allclose(sample.flux, flux, rtol=1e-6)
        np.testing.assert_allclose(np.sqrt(sample.variance), error, rtol=tolerance)


def test_standard_deviation_is_not_divided_out_of_the_errors():
    xp = random_stars(3)
    xp |= {f"{band}_standard_deviation": np.array([0.7, 1.2, 2.0]) for band in XP_BANDS}
    _, error = gaiaxpy_sample(xp)
    sample = xp_utils.sample_xp(xp, BASIS)
    np.testing.assert_allclose(np.sqrt(sample.variance), error, rtol=1e-6)


# --- sampling and floors, against slow NumPy --------------------------------------------------
@pytest.mark.parametrize(
    ("form", "basis"), [(dict, BASIS), (packed_covariances, COVARIANCES)], ids=["corr", "cov"]
)
def test_sampling_and_floors_equal_the_formulae_star_by_star(form, basis):
    xp = form(random_stars(5))
    sample = xp_utils.sample_xp(xp, basis)
    with_floors = xp_utils.add_flux_floors(sample)
    for star in range(5):
        flux, cov, floored = xp_oracle.sampled(xp, star, basis)
        np.testing.assert_allclose(sample.flux[star], flux, rtol=1e-9, atol=1e-9 * abs(flux).max())
        np.testing.assert_allclose(sample.cov[star], cov, rtol=0, atol=1e-12 * cov.max())
        np.testing.assert_allclose(with_floors[star], floored, rtol=0, atol=1e-12 * floored.max())


@pytest.mark.parametrize("make", [demo_stars, random_stars])
@pytest.mark.parametrize(
    ("form", "basis"), [(dict, BASIS), (packed_covariances, COVARIANCES)], ids=["corr", "cov"]
)
def test_variances_are_the_diagonal_of_the_full_covariance(make, form, basis):
    xp = form(make(150))
    xp["bp_n_parameters"][7] = 0
    xp["rp_coefficients"][11] = np.nan
    full, fast = xp_utils.sample_xp(xp, basis), xp_utils.sample_variances(xp, basis)
    np.testing.assert_allclose(fast.variance, full.variance, rtol=SINGLE)
    np.testing.assert_allclose(fast.flux, full.flux, rtol=1e-12)
    diagonal = np.einsum("nii->ni", xp_utils.add_flux_floors(full))
    np.testing.assert_allclose(xp_utils.floored_variance(fast), diagonal, rtol=SINGLE)
    used = full.used
    result = vectors(xp, basis)
    np.testing.assert_allclose(
        result.flux_err[:, :N_XP][used], np.sqrt(diagonal)[used], rtol=SINGLE
    )
    assert np.isinf(result.flux_err[:, :N_XP][~used]).all()


def test_variances_whose_terms_cancel_keep_their_digits():
    """Errors that are all but one direction, which the first wavelength of BP does not see."""
    xp, basis = random_stars(40), BASIS
    design = basis.weighted("bp")[2]
    n = len(design)
    blind = np.linalg.qr(design[:, :1], mode="complete")[0][:, -1]
    xp["bp_coefficient_errors"][:] = np.abs(blind) + 1e-6
    row, column = np.tril_indices(n, -1)
    sign = np.sign(blind)
    xp["bp_coefficient_correlations"][:] = (sign[row] * sign[column] * (1 - 1e-7)).astype("f4")
    full, fast = xp_utils.sample_xp(xp, basis), xp_utils.sample_variances(xp, basis)
    errors = xp["bp_coefficient_errors"][0].astype("f8")
    left = full.variance[0, 0] / (errors @ np.abs(design[:, 0])) ** 2
    assert 0 < left < 1e-4
    np.testing.assert_allclose(fast.variance[:, 0], full.variance[:, 0], rtol=1e-6)


def test_merge_takes_both_weights_in_rows_and_columns():
    xp = random_stars(1)
    xp["bp_coefficient_errors"][:] = 1e-12  # the covariance is RP's alone
    overlap = int(np.flatnonzero(BASIS.wavelengths == 642)[0])
    whole = dataclasses.replace(BASIS, rp_weight=(BASIS.rp_weight > 0).astype(float))
    merged = xp_utils.sample_xp(xp, BASIS).cov[0]
    unmerged = xp_utils.sample_xp(xp, whole).cov[0]
    weight = BASIS.rp_weight[overlap]
    assert 0.1 < weight < 0.9999
    assert merged[overlap, overlap] == pytest.approx(weight**2 * unmerged[overlap, overlap])
    np.testing.assert_allclose(merged[overlap, 30:], weight * unmerged[overlap, 30:], rtol=1e-9)
    np.testing.assert_allclose(merged, merged.T, rtol=0, atol=1e-14 * merged.max())


def test_float32_sampling_is_close_to_float64():
    xp = demo_stars(20)
    single, double = xp_utils.sample_xp(xp, BASIS, np.float32), xp_utils.sample_xp(xp, BASIS)
    assert single.cov.dtype == np.float32
    np.testing.assert_allclose(single.flux, double.flux, rtol=0, atol=1e-5 * double.flux.max())
    assert abs(single.cov - double.cov).max() < 1e-4 * double.cov.max()


# --- missing and damaged spectra --------------------------------------------------------------
def assert_no_band(result, star, flag, lost):
    """The star lacks one XP band: `lost` wavelengths have no weight, the others do."""
    assert result.input_flags[star] == flag
    expected = np.ones(N_XP + 5, bool)
    expected[:N_XP] = ~lost
    np.testing.assert_array_equal(np.isfinite(result.flux_err[star]), expected)
    assert not result.flux[star, :N_XP][lost].any()


def damage(name, place, value):
    return lambda xp, band: xp[f"{band}_{name}"].__setitem__(place, value)


DAMAGES = {
    "coefficient_nan": damage("coefficients", (1, 54), np.nan),
    "coefficient_inf": damage("coefficients", (1, 0), np.inf),
    "error_nan": damage("coefficient_errors", (1, 3), np.nan),
    "error_zero": damage("coefficient_errors", (1, 3), 0.0),
    "error_negative": damage("coefficient_errors", (1, 3), -1.0),
    "correlation_nan": damage("coefficient_correlations", (1, 1484), np.nan),
    "correlation_inf": damage("coefficient_correlations", (1, 7), -np.inf),
    "no_parameters": damage("n_parameters", 1, 0),
    "54_parameters": damage("n_parameters", 1, 54),
}


@pytest.mark.parametrize("band", ["bp", "rp"])
@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_band_loses_its_weight_and_the_other_stars_nothing(band, name):
    xp = random_stars(3)
    whole = vectors(xp)
    DAMAGES[name](xp, band)
    result = vectors(xp)
    weight = getattr(BASIS, f"{band}_weight")
    assert_no_band(result, 1, InputFlag[f"{band.upper()}_MISSING"], weight > 0)
    assert np.isfinite(result.flux).all()
    for star in (0, 2):
        np.testing.assert_array_equal(result.flux[star], whole.flux[star])
        np.testing.assert_array_equal(result.flux_err[star], whole.flux_err[star])
    sample = xp_utils.sample_xp(xp, BASIS)
    np.testing.assert_array_equal(np.isnan(sample.flux[1]), weight > 0)
    for part in (sample.bp_flux, sample.rp_flux, sample.cov, sample.cov.transpose(0, 2, 1)):
        assert not part[1][weight > 0].any()


@pytest.mark.parametrize("bad", [np.nan, -1.0, 0.0])
def test_a_variance_that_is_none_costs_the_band_its_weight(bad):
    xp = packed_covariances(random_stars(3))
    xp["rp_coefficient_covariances"][1, 5] = bad  # the third coefficient's variance
    result = vectors(xp, COVARIANCES)
    assert_no_band(result, 1, InputFlag.RP_MISSING, BASIS.rp_weight > 0)
    assert not result.input_flags[[0, 2]].any()


@pytest.mark.parametrize("band", ["bp", "rp"])
def test_numbers_of_an_unused_band_do_not_matter(band):
    xp = random_stars(3)
    xp[f"{band}_n_parameters"][1] = 40
    before = vectors(xp)
    xp[f"{band}_coefficients"][1] = 1e6
    xp[f"{band}_coefficient_errors"][1] = np.nan
    assert_same(vectors(xp), before)


def test_real_star_without_bp_is_used_from_rp_alone(real):
    xp, _ = real
    star = int(np.flatnonzero(xp["source_id"] == NO_BP_STAR)[0])
    result = vectors(xp)
    assert_no_band(result, star, InputFlag.BP_MISSING, BASIS.bp_weight > 0)


@pytest.mark.parametrize("absurd", [1e30, 1e200, 1e300])
def test_absurd_numbers_are_flagged_and_never_become_infinite_fluxes(absurd):
    xp = random_stars(3)
    xp["bp_coefficients"][0] = absurd
    xp["rp_coefficient_errors"] = xp["rp_coefficient_errors"].astype(float)
    xp["rp_coefficient_errors"][2, 0] = absurd
    result = vectors(xp)
    assert result.input_flags.tolist() == [InputFlag.COV_BAD, 0, InputFlag.COV_BAD]
    assert np.isfinite(result.flux_err).sum(axis=1).tolist() == [5, N_XP + 5, 5]
    assert np.isfinite(result.flux).all()


@pytest.mark.parametrize("value", [1.001, -1.5, 40.0])
@pytest.mark.parametrize(
    ("form", "basis"), [(dict, BASIS), (packed_covariances, COVARIANCES)], ids=["corr", "cov"]
)
def test_a_correlation_beyond_one_is_flagged_and_the_star_has_no_xp_flux(form, basis, value):
    xp = random_stars(3)
    xp["rp_coefficient_correlations"][1, 700] = value
    result = vectors(form(xp), basis)
    assert result.input_flags.tolist() == [0, InputFlag.COV_BAD, 0]
    assert not result.flux[1, :N_XP].any()
    assert np.isinf(result.flux_err[1, :N_XP]).all()


def test_a_correlation_of_one_up_to_rounding_is_none_beyond_it():
    xp = random_stars(1)
    xp["bp_coefficient_correlations"][0, 0] = np.nextafter(np.float32(1), np.float32(2))
    assert not vectors(xp).input_flags.any()


def test_correlations_that_give_a_negative_variance_are_flagged():
    xp = random_stars(2, error=10.0)
    xp["rp_coefficient_correlations"][1] = 0.9 * np.sign(np.random.default_rng(0).normal(size=1485))
    result = vectors(xp)
    assert result.input_flags.tolist() == [0, InputFlag.COV_BAD]
    assert np.isinf(result.flux_err[1, :N_XP]).all()


# --- spectra of another release ---------------------------------------------------------------
@pytest.mark.parametrize("sample", [xp_utils.sample_xp, xp_utils.sample_variances])
def test_spectra_of_another_basis_are_refused_by_name(sample):
    xp = random_stars(4) | {"bp_basis_function_id": np.array([56, 56, 61, 61])}
    with pytest.raises(ValueError, match="bp_basis_function_id is 61, expected 56 of Gaia DR3"):
        sample(xp, BASIS)


def test_a_missing_band_is_of_any_basis():
    xp = random_stars(3) | {"bp_basis_function_id": np.array([56, 0, 61])}
    xp["bp_n_parameters"][1] = 0
    xp["bp_coefficients"][2] = np.nan
    assert vectors(xp).input_flags.tolist() == [0, InputFlag.BP_MISSING, InputFlag.BP_MISSING]


@pytest.mark.parametrize("sizes", [(51, 55), (55, 51)])
def test_arrays_of_another_length_are_refused_by_name(sizes):
    xp = random_stars(2, sizes=sizes)
    band = "bp" if sizes[0] == 51 else "rp"
    expected = rf"{band}_coefficients has rows of shape \(51,\), expected \(55,\) of Gaia DR3"
    with pytest.raises(ValueError, match=expected):
        vectors(xp)


def test_wrong_shapes_are_named():
    xp = random_stars(2)
    xp["bp_coefficient_correlations"] = xp["bp_coefficient_correlations"][:, :1000]
    with pytest.raises(ValueError, match="bp_coefficient_correlations"):
        xp_utils.sample_xp(xp, BASIS)


def test_star_does_not_depend_on_its_neighbours_in_the_table():
    xp = random_stars(150)
    xp["bp_n_parameters"][7] = 0
    xp["rp_coefficients"][11] = np.nan
    whole = vectors(xp)
    order = np.random.default_rng(2).permutation(150)
    shuffled = vectors(rows_of(xp, order))
    for name in ("flux", "flux_err", "input_flags"):
        np.testing.assert_array_equal(getattr(shuffled, name), getattr(whole, name)[order])
    for star in (0, 7, 11, 13, 149):
        alone = vectors(rows_of(xp, [star]))
        np.testing.assert_array_equal(alone.flux[0], whole.flux[star])
        np.testing.assert_array_equal(alone.flux_err[0], whole.flux_err[star])
