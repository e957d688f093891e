"""xp_utils against GaiaXPy, against slow and obvious NumPy, and against damaged input."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

import xp_utils
from xp_utils import InputFlag

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT / ".." / "shared" / "xp_continuous"
DEMO = ROOT / "demo" / "stars.h5"
NO_BP_STAR = 5405570973190252288  # of the shared real spectra


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


def demo_stars(n):
    """XP columns of every k-th of the bundled stars, correlations expanded per star."""
    if not DEMO.exists():
        pytest.skip("no demo/stars.h5")
    xp = {}
    with h5py.File(DEMO) as file:
        step = len(file["source_id"]) // n
        xp["source_id"] = file["source_id"][: n * step : step]
        for band in xp_utils.XP_BANDS:
            for name in ("coefficients", "coefficient_errors"):
                xp[f"{band}_{name}"] = file[f"{band}_{name}"][: n * step : step]
            template = file[f"{band}_correlation_template"][()]
            xp[f"{band}_coefficient_correlations"] = np.repeat(template[None], n, axis=0)
            xp[f"{band}_n_parameters"] = np.full(n, 55, np.int16)
    return xp


def random_stars(n, seed=1, error=1e-2):
    """Spectra with a random, well-conditioned correlation matrix of its own for every star."""
    rng = np.random.default_rng(seed)
    rows, columns = np.tril_indices(55, -1)
    xp = {}
    for band in xp_utils.XP_BANDS:
        draws = rng.normal(size=(n, 55, 70))
        cov = draws @ draws.transpose(0, 2, 1)
        sigma = np.sqrt(np.einsum("nii->ni", cov))
        corr = cov / sigma[:, :, None] / sigma[:, None, :]
        fall = 0.8 ** np.arange(55)
        xp[f"{band}_coefficients"] = rng.normal(size=(n, 55)) * fall + 20 * (np.arange(55) == 0)
        xp[f"{band}_coefficient_errors"] = error * rng.uniform(0.5, 2, (n, 55)).astype("f4")
        xp[f"{band}_coefficient_correlations"] = corr[:, rows, columns].astype("f4")
        xp[f"{band}_n_parameters"] = np.full(n, 55, np.int16)
    return xp


def no_neighbours(n):
    return {"norm_dg": np.full(n, np.nan)}


def good_tmass(n):
    table = {"ph_qual": np.full(n, b"AAA")}
    for band, magnitude in (("j", 12.0), ("h", 11.5), ("ks", 11.4)):
        table[f"{band}_m"] = np.full(n, magnitude, "f4")
        table[f"{band}_msigcom"] = np.full(n, 0.03, "f4")
    return table


def good_unwise(n):
    return {
        "flux": np.tile(np.array([2e4, 1e4], "f4"), (n, 1)),
        "dflux": np.tile(np.array([20, 30], "f4"), (n, 1)),
        "qf": np.full((n, 2), 0.99, "f4"),
        "fracflux": np.full((n, 2), 0.95, "f4"),
        "sep_arcsec": np.full(n, 0.05, "f4"),
    }


def vectors(xp, **options):
    n = len(xp["bp_coefficients"])
    return xp_utils.flux_vectors(xp, good_tmass(n), good_unwise(n), no_neighbours(n), **options)


def assert_same(left, right):
    for field in dataclasses.fields(left):
        expected = getattr(right, field.name)
        if expected is not None:
            np.testing.assert_array_equal(getattr(left, field.name), expected, field.name)


def rows_of(table, rows):
    return {name: column[rows] for name, column in table.items()}


# --- slow and obvious -----------------------------------------------------------------------
def slow_star(xp, star):
    """flux (61,), covariance without and with floors (61, 61) of one star, by the formulae."""
    basis = xp_utils.load_xp_basis()
    flux, cov, floors = np.zeros(61), np.zeros((61, 61)), np.zeros((61, 61))
    for band in xp_utils.XP_BANDS:
        design, weight = getattr(basis, f"{band}_design"), getattr(basis, f"{band}_weight")
        correlation = np.eye(55)
        numbers = iter(xp[f"{band}_coefficient_correlations"][star])
        for row in range(55):
            for column in range(row):
                correlation[row, column] = correlation[column, row] = next(numbers)
        error = np.diag(xp[f"{band}_coefficient_errors"][star].astype(float))
        pixel_cov = design.T @ error @ correlation @ error @ design
        band_flux = xp[f"{band}_coefficients"][star] @ design
        flux += weight * band_flux
        cov += np.outer(weight, weight) * pixel_cov
        floors += np.outer(weight * band_flux, weight * band_flux) * 0.001**2
    floors += 0.005**2 * np.outer(flux, flux) + np.diag((0.005 * flux) ** 2)
    return flux, cov, cov + floors


def slow_floored(cov):
    """Covariance with its eigenvalues raised to the floor, and how many were."""
    values, vectors = np.linalg.eigh(cov)
    return (vectors * np.maximum(values, 1e-9)) @ vectors.T, int(np.sum(values < 1e-9))


def full_tril(tril):
    """S (N, 61, 61) from its lower triangle in row order, entry by entry."""
    full = np.zeros((len(tril), 61, 61))
    k = 0
    for row in range(61):
        for column in range(row + 1):
            full[:, row, column] = tril[:, k]
            k += 1
    return full


# --- basis ----------------------------------------------------------------------------------
def test_basis_has_the_overlap_at_642_nm_only():
    basis = xp_utils.load_xp_basis()
    both = (basis.bp_weight > 0) & (basis.rp_weight > 0)
    assert xp_utils.XP_WAVELENGTHS[both].tolist() == [642.0]
    assert np.sum(basis.bp_weight > 0) == 26
    assert np.sum(basis.rp_weight > 0) == 36
    np.testing.assert_allclose(basis.bp_weight + basis.rp_weight, 1, atol=1e-9)
    assert "GaiaXPy" in basis.source
    assert "v375wi" in basis.source
    assert "v142r" in basis.source


def test_basis_cannot_be_changed_by_a_caller():
    with pytest.raises(ValueError, match="read-only"):
        xp_utils.load_xp_basis().bp_design[0, 0] = 1.0


def test_basis_equals_the_reference_design_matrices(real):
    _, reference = real
    basis = xp_utils.load_xp_basis()
    for band in xp_utils.XP_BANDS:
        expected = reference[f"design_matrix_{band}"] * 1e18
        design = getattr(basis, f"{band}_design")
        np.testing.assert_allclose(design, expected, rtol=0, atol=1e-12 * abs(expected).max())
        np.testing.assert_allclose(
            getattr(basis, f"{band}_weight"), reference[f"merge_{band}"], atol=1e-12
        )


def test_basis_script_makes_the_table_again(tmp_path):
    pytest.importorskip("gaiaxpy")
    made = tmp_path / "basis.npz"
    script = ROOT / "tools" / "make_xp_basis.py"
    run = subprocess.run(
        [sys.executable, script, "--output", made], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    with np.load(made) as new, np.load(ROOT / "tables" / "xp_basis.npz") as kept:
        assert set(new) == set(kept)
        for name in ("wavelength", "bp_weight", "rp_weight"):
            np.testing.assert_array_equal(new[name], kept[name])
        for name in ("bp_design", "rp_design"):
            np.testing.assert_allclose(new[name], kept[name], atol=1e-9 * abs(kept[name]).max())


# --- sampling, against GaiaXPy ----------------------------------------------------------------
def test_flux_and_error_of_real_stars_equal_gaiaxpy(real):
    xp, reference = real
    sample = xp_utils.sample_xp(xp)
    error = np.sqrt(np.einsum("nii->ni", sample.cov))
    assert sample.used.sum() == 4 * 61 + 35
    np.testing.assert_allclose(sample.flux[sample.used], reference["flux"][sample.used], rtol=1e-6)
    np.testing.assert_allclose(error[sample.used], reference["flux_error"][sample.used], rtol=1e-6)


def test_covariance_of_real_stars_equals_the_direct_product(real):
    xp, reference = real
    cov = xp_utils.sample_xp(xp).cov
    for star, expected in enumerate(reference["direct_covariance"]):
        if xp["source_id"][star] != NO_BP_STAR:
            assert abs(cov[star] - expected).max() <= 1e-6 * expected.max()


def gaiaxpy_sample(xp):
    """(flux, error, correlation) that GaiaXPy itself gives for XP columns."""
    gaiaxpy = pytest.importorskip("gaiaxpy")
    pandas = pytest.importorskip("pandas")
    n = len(xp["bp_coefficients"])
    table = {"source_id": np.arange(n)}
    for band in xp_utils.XP_BANDS:
        for name in ("coefficients", "coefficient_errors", "coefficient_correlations"):
            table[f"{band}_{name}"] = list(np.asarray(xp[f"{band}_{name}"], float))
        table[f"{band}_n_parameters"] = xp[f"{band}_n_parameters"]
        table[f"{band}_standard_deviation"] = xp.get(f"{band}_standard_deviation", np.ones(n))
        table[f"{band}_n_relevant_bases"] = np.full(n, 55)
    out, _ = gaiaxpy.calibrate(
        pandas.DataFrame(table), sampling=xp_utils.XP_WAVELENGTHS, save_file=False
    )
    return [np.stack(out[name].to_list()) * 1e18 for name in ("flux", "flux_error")]


def test_flux_and_error_of_demo_stars_equal_gaiaxpy():
    xp = demo_stars(40)
    flux, error = gaiaxpy_sample(xp)
    sample = xp_utils.sample_xp(xp)
    np.testing.assert_allclose(sample.flux, flux, rtol=1e-6)
    np.testing.assert_allclose(np.sqrt(np.einsum("nii->ni", sample.cov)), error, rtol=1e-6)


def test_standard_deviation_is_not_divided_out_of_the_errors():
    xp = random_stars(3)
    xp |= {f"{band}_standard_deviation": np.array([0.7, 1.2, 2.0]) for band in xp_utils.XP_BANDS}
    _, error = gaiaxpy_sample(xp)
    sample = xp_utils.sample_xp(xp)
    np.testing.assert_allclose(np.sqrt(np.einsum("nii->ni", sample.cov)), error, rtol=1e-6)


# --- sampling and floors, against slow NumPy --------------------------------------------------
def test_sampling_and_floors_equal_the_formulae_star_by_star():
    xp = random_stars(5)
    sample = xp_utils.sample_xp(xp)
    with_floors = xp_utils.add_flux_floors(sample)
    for star in range(5):
        flux, cov, floored = slow_star(xp, star)
        np.testing.assert_allclose(sample.flux[star], flux, rtol=1e-9, atol=1e-9 * abs(flux).max())
        np.testing.assert_allclose(sample.cov[star], cov, rtol=0, atol=1e-12 * cov.max())
        np.testing.assert_allclose(with_floors[star], floored, rtol=0, atol=1e-12 * floored.max())


def test_merge_takes_both_weights_in_rows_and_columns():
    xp = random_stars(1)
    xp["bp_coefficient_errors"][:] = 1e-12  # the covariance is RP's alone
    overlap = int(np.flatnonzero(xp_utils.XP_WAVELENGTHS == 642)[0])
    basis = xp_utils.load_xp_basis()
    whole = dataclasses.replace(basis, rp_weight=(basis.rp_weight > 0).astype(float))
    merged = xp_utils.sample_xp(xp, basis).cov[0]
    unmerged = xp_utils.sample_xp(xp, whole).cov[0]
    weight = basis.rp_weight[overlap]
    assert 0.1 < weight < 0.9999
    assert merged[overlap, overlap] == pytest.approx(weight**2 * unmerged[overlap, overlap])
    np.testing.assert_allclose(merged[overlap, 30:], weight * unmerged[overlap, 30:], rtol=1e-9)
    np.testing.assert_allclose(merged, merged.T, rtol=0, atol=1e-14 * merged.max())


def test_float32_sampling_is_close_to_float64():
    xp = demo_stars(20)
    single, double = xp_utils.sample_xp(xp, dtype=np.float32), xp_utils.sample_xp(xp)
    assert single.cov.dtype == np.float32
    np.testing.assert_allclose(single.flux, double.flux, rtol=0, atol=1e-5 * double.flux.max())
    assert abs(single.cov - double.cov).max() < 1e-4 * double.cov.max()


# --- whitening --------------------------------------------------------------------------------
def assert_whitens(whitening, cov, atol):
    unit = whitening @ cov @ whitening.transpose(0, 2, 1)
    np.testing.assert_allclose(unit, np.broadcast_to(np.eye(61), unit.shape), atol=atol)
    product = whitening.transpose(0, 2, 1) @ whitening @ cov
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(61), unit.shape), atol=20 * atol)


@pytest.mark.parametrize("make", [demo_stars, random_stars])
def test_whitening_times_covariance_is_one(make):
    xp = make(150)
    sample = xp_utils.sample_xp(xp)
    cov = xp_utils.add_flux_floors(sample)
    tril, n_floored = xp_utils.whiten_tril(cov, sample.used)
    assert not n_floored.any()
    assert_whitens(full_tril(tril), cov, atol=2e-5)


def test_whitening_of_real_stars_is_accurate(real):
    xp, _ = real
    xp = rows_of(xp, xp["source_id"] != NO_BP_STAR)
    sample = xp_utils.sample_xp(xp)
    cov = xp_utils.add_flux_floors(sample)
    tril, _ = xp_utils.whiten_tril(cov, sample.used)
    unit = full_tril(tril) @ cov @ full_tril(tril).transpose(0, 2, 1)
    np.testing.assert_allclose(unit, np.broadcast_to(np.eye(61), unit.shape), atol=2e-5)


def test_chi2_by_whitening_equals_chi2_by_solving():
    xp = demo_stars(30)
    result = vectors(xp)
    residual = np.random.default_rng(3).normal(size=(30, 61)) * result.flux_err[:, :61]
    whitened = np.einsum("nij,nj->ni", full_tril(result.flux_sqrticov_tril), residual)
    for star in range(30):
        _, _, cov = slow_star(xp, star)
        expected = residual[star] @ np.linalg.solve(cov, residual[star])
        assert np.sum(whitened[star] ** 2) == pytest.approx(expected, rel=1e-4)


def covariance_with_eigenvalues(eigenvalues, seed):
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(61, 61)))
    cov = (rotation * eigenvalues) @ rotation.T
    return (cov + cov.T) / 2


def stars_around_the_floor():
    """Covariances whose smallest eigenvalues lie above, near and below the floor of 1e-9."""
    base = np.geomspace(1e-5, 1e-2, 61)
    cases = []
    for seed, smallest in enumerate([1e-5, 1.2e-9, 2e-9, 0.8e-9, 1e-10, 1e-13, -1e-10]):
        eigenvalues = base.copy()
        eigenvalues[: 1 + seed % 3] = smallest
        cases.append(covariance_with_eigenvalues(eigenvalues, seed))
    return np.stack(cases)


def test_floor_by_certificate_equals_floor_by_eigenvalues_of_every_star():
    cov = stars_around_the_floor()
    tril, n_floored = xp_utils.whiten_tril(cov, np.ones(cov.shape[:2], bool))
    whitening = full_tril(tril)
    expected = [slow_floored(matrix) for matrix in cov]
    assert n_floored.tolist() == [count for _, count in expected]
    assert n_floored.tolist() == [0, 0, 0, 1, 2, 3, 1]
    for star, (floored, _) in enumerate(expected):
        unit = whitening[star] @ floored @ whitening[star].T
        np.testing.assert_allclose(unit, np.eye(61), atol=2e-4)


def test_floor_counts_belong_to_their_own_star():
    cov = stars_around_the_floor()
    order = np.array([6, 3, 0, 5, 1, 4, 2])
    used = np.ones(cov.shape[:2], bool)
    _, straight = xp_utils.whiten_tril(cov, used)
    _, shuffled = xp_utils.whiten_tril(cov[order], used)
    np.testing.assert_array_equal(shuffled, straight[order])


def test_certain_stars_are_not_decomposed(monkeypatch):
    """Without the certificate the batch would be ten times slower."""

    def forbidden(*args):
        raise AssertionError("a star with a proven floor went to the eigenvalues")

    monkeypatch.setattr(xp_utils, "_whiten_floored", forbidden)
    xp_utils.whiten_tril(stars_around_the_floor()[:1], np.ones((1, 61), bool))


@pytest.mark.parametrize("fault", ["nan", "inf", "negative"])
def test_matrix_that_is_no_covariance_is_flagged_and_zero(fault):
    cov = np.stack([covariance_with_eigenvalues(np.geomspace(1e-4, 1, 61), k) for k in range(3)])
    good, _ = xp_utils.whiten_tril(cov, np.ones((3, 61), bool))
    cov[1, 4, 4] = {"nan": np.nan, "inf": np.inf, "negative": -1.0}[fault]
    tril, n_floored = xp_utils.whiten_tril(cov, np.ones((3, 61), bool))
    assert n_floored.tolist() == [0, -1, 0]
    assert not tril[1].any()
    np.testing.assert_array_equal(tril[[0, 2]], good[[0, 2]])


def test_unused_rows_are_zero_and_the_rest_is_the_block_alone():
    cov = covariance_with_eigenvalues(np.geomspace(1e-3, 1, 61), 5)
    used = np.ones((1, 61), bool)
    used[0, :26] = False
    tril, n_floored = xp_utils.whiten_tril(cov[None], used)
    whitening = full_tril(tril)[0]
    assert n_floored[0] == 0
    assert not whitening[:26].any()
    assert not whitening[:, :26].any()
    block = whitening[26:, 26:]
    np.testing.assert_allclose(block @ cov[26:, 26:] @ block.T, np.eye(35), atol=2e-5)


def test_whitening_refuses_arrays_that_do_not_fit():
    with pytest.raises(ValueError, match=r"cov \(2, 60, 60\)"):
        xp_utils.whiten_tril(np.zeros((2, 60, 60)), np.ones((2, 60), bool))


def test_unpacked_whitening_holds_triangle_and_photometric_errors():
    result = vectors(random_stars(4))
    result.flux_err[1, 63] = np.inf
    full = xp_utils.unpack_tril(result.flux_sqrticov_tril, result.flux_err)
    assert full.shape == (4, 66, 66)
    np.testing.assert_array_equal(full[:, :61, :61], full_tril(result.flux_sqrticov_tril))
    for star in range(4):
        for band in range(61, 66):
            expected = 0.0 if (star, band) == (1, 63) else 1 / result.flux_err[star, band]
            assert full[star, band, band] == pytest.approx(expected)
    assert np.count_nonzero(full[:, 61:]) == 4 * 5 - 1
    assert not full[:, :61, 61:].any()


# --- missing and damaged spectra --------------------------------------------------------------
def assert_no_band(result, star, flag, lost):
    """The star lacks one XP band: `lost` wavelengths have no weight, the others do."""
    assert result.input_flags[star] == flag
    expected = np.ones(66, bool)
    expected[:61] = ~lost
    np.testing.assert_array_equal(np.isfinite(result.flux_err[star]), expected)
    assert not result.flux[star, :61][lost].any()
    assert result.n_flux[star] == expected.sum()
    whitening = full_tril(result.flux_sqrticov_tril[[star]])[0]
    assert not whitening[lost].any()
    assert not whitening[:, lost].any()
    assert (np.diag(whitening)[~lost] > 0).all()


DAMAGES = {
    "coefficient_nan": lambda xp, band: xp[f"{band}_coefficients"].__setitem__((1, 54), np.nan),
    "coefficient_inf": lambda xp, band: xp[f"{band}_coefficients"].__setitem__((1, 0), np.inf),
    "error_nan": lambda xp, band: xp[f"{band}_coefficient_errors"].__setitem__((1, 3), np.nan),
    "error_zero": lambda xp, band: xp[f"{band}_coefficient_errors"].__setitem__((1, 3), 0.0),
    "error_negative": lambda xp, band: xp[f"{band}_coefficient_errors"].__setitem__((1, 3), -1.0),
    "correlation_nan": lambda xp, band: xp[f"{band}_coefficient_correlations"].__setitem__(
        (1, 1484), np.nan
    ),
    "no_parameters": lambda xp, band: xp[f"{band}_n_parameters"].__setitem__(1, 0),
    "54_parameters": lambda xp, band: xp[f"{band}_n_parameters"].__setitem__(1, 54),
}


@pytest.mark.parametrize("band", ["bp", "rp"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_band_loses_its_weight_and_the_other_stars_nothing(band, damage):
    xp = random_stars(3)
    whole = vectors(xp)
    DAMAGES[damage](xp, band)
    result = vectors(xp)
    weight = getattr(xp_utils.load_xp_basis(), f"{band}_weight")
    assert_no_band(result, 1, InputFlag[f"{band.upper()}_MISSING"], weight > 0)
    assert np.isfinite(result.flux).all()
    for star in (0, 2):
        np.testing.assert_array_equal(result.flux[star], whole.flux[star])
        np.testing.assert_array_equal(
            result.flux_sqrticov_tril[star], whole.flux_sqrticov_tril[star]
        )
    sample = xp_utils.sample_xp(xp)
    np.testing.assert_array_equal(np.isnan(sample.flux[1]), weight > 0)
    for part in (sample.bp_flux, sample.rp_flux, sample.cov, sample.cov.transpose(0, 2, 1)):
        assert not part[1][weight > 0].any()


@pytest.mark.parametrize("band", ["bp", "rp"])
def test_numbers_of_an_unused_band_do_not_matter(band):
    xp = random_stars(3)
    xp[f"{band}_n_parameters"][1] = 40
    before = vectors(xp)
    xp[f"{band}_coefficients"][1] = 1e6
    xp[f"{band}_coefficient_errors"][1] = np.nan
    assert_same(vectors(xp), before)


def test_star_without_any_spectrum_keeps_its_photometry():
    xp = random_stars(2)
    for band in xp_utils.XP_BANDS:
        xp[f"{band}_coefficients"][1] = np.nan
        xp[f"{band}_n_parameters"][1] = 0
    result = vectors(xp, eigenvalues=True)
    assert result.input_flags[1] == InputFlag.BP_MISSING | InputFlag.RP_MISSING
    assert result.n_flux.tolist() == [66, 5]
    assert not result.flux_sqrticov_tril[1].any()
    assert np.isnan(result.eival_min).tolist() == [False, True]


def test_real_star_without_bp_is_used_from_rp_alone(real):
    xp, _ = real
    star = int(np.flatnonzero(xp["source_id"] == NO_BP_STAR)[0])
    result = vectors(xp)
    assert_no_band(result, star, InputFlag.BP_MISSING, xp_utils.load_xp_basis().bp_weight > 0)


@pytest.mark.parametrize("absurd", [1e30, 1e200, 1e300])
def test_absurd_numbers_are_flagged_and_never_become_infinite_fluxes(absurd):
    xp = random_stars(3)
    xp["bp_coefficients"][0] = absurd
    xp["rp_coefficient_errors"] = xp["rp_coefficient_errors"].astype(float)
    xp["rp_coefficient_errors"][2, 0] = absurd
    result = vectors(xp)
    assert result.input_flags.tolist() == [InputFlag.COV_BAD, 0, InputFlag.COV_BAD]
    assert result.n_flux.tolist() == [5, 66, 5]
    assert result.n_floored.tolist() == [-1, 0, -1]
    assert np.isfinite(result.flux).all()
    assert np.isfinite(result.flux_sqrticov_tril).all()


def test_correlations_that_are_no_correlations_are_flagged():
    xp = random_stars(2, error=10.0)
    xp["rp_coefficient_correlations"][1] = 0.9 * np.sign(np.random.default_rng(0).normal(size=1485))
    result = vectors(xp)
    assert result.input_flags.tolist() == [0, InputFlag.COV_BAD]
    assert not result.flux[1, :61].any()
    assert np.isinf(result.flux_err[1, :61]).all()


def test_floored_star_is_flagged():
    xp = random_stars(2)
    for band in xp_utils.XP_BANDS:  # so faint that the floors of the errors do not help
        xp[f"{band}_coefficients"][1] *= 1e-7
        xp[f"{band}_coefficient_errors"][1] *= 1e-7
    result = vectors(xp, eigenvalues=True)
    assert result.input_flags.tolist() == [0, InputFlag.COV_FLOORED]
    assert result.n_floored[1] > 0
    assert result.eival_min[1] < xp_utils.EIGENVALUE_FLOOR < result.eival_min[0]


def test_wrong_shapes_are_named():
    xp = random_stars(2)
    xp["bp_coefficient_correlations"] = xp["bp_coefficient_correlations"][:, :1000]
    with pytest.raises(ValueError, match="bp_coefficient_correlations"):
        xp_utils.sample_xp(xp)
    xp = random_stars(2)
    with pytest.raises(ValueError, match="tmass j_m: 3 rows, expected 2"):
        xp_utils.flux_vectors(xp, {**good_tmass(2), "j_m": np.ones(3)}, None, no_neighbours(2))


# --- the flux vector as a whole ---------------------------------------------------------------
def test_star_does_not_depend_on_its_neighbours_in_the_table(monkeypatch):
    xp = random_stars(50)
    xp["bp_n_parameters"][7] = 0
    xp["rp_coefficients"][11] = np.nan
    for band in xp_utils.XP_BANDS:
        xp[f"{band}_coefficients"][13] *= 1e-7
        xp[f"{band}_coefficient_errors"][13] *= 1e-7
    whole = vectors(xp)
    order = np.random.default_rng(2).permutation(50)
    shuffled = vectors(rows_of(xp, order))
    np.testing.assert_array_equal(shuffled.flux, whole.flux[order])
    np.testing.assert_array_equal(shuffled.flux_sqrticov_tril, whole.flux_sqrticov_tril[order])
    np.testing.assert_array_equal(shuffled.input_flags, whole.input_flags[order])
    monkeypatch.setattr(xp_utils, "CHUNK_STARS", 8)
    assert_same(vectors(xp), whole)
    for star in (0, 7, 11, 13, 49):
        alone = vectors(rows_of(xp, [star]))
        np.testing.assert_array_equal(alone.flux[0], whole.flux[star])
        np.testing.assert_allclose(
            alone.flux_sqrticov_tril[0], whole.flux_sqrticov_tril[star], rtol=1e-6
        )


def test_flux_vector_is_sampled_flux_then_photometry():
    xp = demo_stars(10)
    result = vectors(xp)
    sample = xp_utils.sample_xp(xp)
    cov = xp_utils.add_flux_floors(sample)
    band_flux, band_err = xp_utils.photometry_flux(
        good_tmass(10), good_unwise(10), no_neighbours(10)
    )
    np.testing.assert_allclose(result.flux, np.hstack([sample.flux, band_flux]), rtol=1e-6)
    xp_err = np.sqrt(np.einsum("nii->ni", cov))
    np.testing.assert_allclose(result.flux_err, np.hstack([xp_err, band_err]), rtol=1e-6)
    assert result.flux.dtype == result.flux_sqrticov_tril.dtype == np.float32
    assert result.flux_sqrticov_tril.shape == (10, 1891)
    assert (result.n_flux == 66).all()


def test_extreme_eigenvalues_are_those_of_the_covariance_with_floors():
    xp = random_stars(4)
    result = vectors(xp, eigenvalues=True)
    for star in range(4):
        values = np.linalg.eigvalsh(slow_star(xp, star)[2])
        assert result.eival_min[star] == pytest.approx(values[0], rel=1e-5)
        assert result.eival_max[star] == pytest.approx(values[-1], rel=1e-5)
    assert vectors(xp).eival_min is None


@pytest.mark.parametrize("faintness", [1.0, 1e-3])
def test_extreme_eigenvalues_of_a_star_with_one_band_are_those_of_that_band(faintness):
    xp = random_stars(1)
    xp["bp_n_parameters"][0] = 0
    for name in ("coefficients", "coefficient_errors"):
        xp[f"rp_{name}"] = xp[f"rp_{name}"] * faintness
    result = vectors(xp, eigenvalues=True)
    used = xp_utils.load_xp_basis().bp_weight == 0
    values = np.linalg.eigvalsh(slow_star(xp, 0)[2][np.ix_(used, used)])
    assert result.eival_min[0] == pytest.approx(values[0], rel=1e-5)
    assert result.eival_max[0] == pytest.approx(values[-1], rel=1e-5)


def test_missing_surveys_are_flagged_and_have_no_weight():
    xp = random_stars(2)
    result = xp_utils.flux_vectors(xp, None, None, no_neighbours(2))
    assert (result.input_flags == InputFlag.NO_2MASS | InputFlag.NO_WISE).all()
    assert np.isinf(result.flux_err[:, 61:]).all()
    assert not result.flux[:, 61:].any()
    assert (result.n_flux == 61).all()


def test_no_stars_give_empty_arrays():
    result = vectors(rows_of(random_stars(2), slice(0, 0)), eigenvalues=True)
    assert result.flux.shape == (0, 66)
    assert result.flux_sqrticov_tril.shape == (0, 1891)


def test_flags_are_distinct_powers_of_two_in_one_byte():
    values = [flag.value for flag in InputFlag]
    assert sorted(values) == [2**k for k in range(8)]


# --- photometry -------------------------------------------------------------------------------
def photometry(tmass=None, unwise=None, norm_dg=np.nan):
    tmass = {**good_tmass(1), **(tmass or {})}
    unwise = {**good_unwise(1), **(unwise or {})}
    flux, err = xp_utils.photometry_flux(tmass, unwise, {"norm_dg": np.array([norm_dg])})
    return flux[0], err[0]


def used_bands(**changes):
    """Names of the bands that have weight."""
    flux, err = photometry(**changes)
    used = np.isfinite(err)
    assert not flux[~used].any()
    assert np.isfinite(flux).all()
    return [band.name for band, use in zip(xp_utils.PHOTOMETRIC_BANDS, used, strict=True) if use]


ALL = ["J", "H", "Ks", "W1", "W2"]


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
    step = xp_utils.vega_to_flux(np.array([11.95, 12.05]), xp_utils.PHOTOMETRIC_BANDS[0])
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
