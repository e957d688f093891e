"""From the archive's numbers to flux vectors: XP basis, photometric bands, covariance, whitening.

Arrays in, arrays out; the only file read here is the project's own basis table. The flux vector of
a star has 66 entries in 1e-18 W m^-2 nm^-1: the XP spectrum at 392, 402, ..., 992 nm (61), then J,
H, Ks (2MASS) and W1, W2 (unWISE). `flux_vectors` builds it with its errors and its whitening; both
the training set and the inference inputs come from that one function.

Conventions
    N stars are the first axis of every array. A flux that is not used has flux 0 and error inf.
    Whitening: S with S^T S = C^-1, so chi^2 = |S (model - observed)|^2. S is lower triangular and
    is stored as its 61 * 62 / 2 = 1891 entries in row order; rows and columns of unused
    wavelengths are zero.
"""

from dataclasses import dataclass
from enum import IntFlag
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.schema import BANDS, Release

# --- Sizes ----------------------------------------------------------------------------------
N_COEFFICIENTS = 55  # per band, Gaia DR3 xp_continuous_mean_spectrum
N_CORRELATIONS = N_COEFFICIENTS * (N_COEFFICIENTS - 1) // 2  # 1485
XP_WAVELENGTHS = np.arange(392.0, 993.0, 10.0)  # (61,) nm
N_XP = XP_WAVELENGTHS.size
N_TRIL = N_XP * (N_XP + 1) // 2  # 1891
FLUX_UNIT = "1e-18 W m-2 nm-1"

# --- Error floors (Zhang, Green & Rix 2023) ---------------------------------------------------
ZERO_POINT_ERROR = 0.001  # relative, one common factor for each of BP and RP
COMMON_ERROR = 0.005  # relative, one common factor for the merged spectrum
PIXEL_ERROR = 0.005  # relative, independent at every wavelength
PHOTOMETRY_ERROR = 0.01  # relative, independent in every photometric band
EIGENVALUE_FLOOR = 1e-9  # of the covariance, in FLUX_UNIT squared
# An eigenvalue below -1e-6 of the largest is more than rounding of the archive's single-precision
# correlations (6e-8 each): such a matrix is no covariance and is refused rather than floored.
INDEFINITE_TOLERANCE = 1e-6

# --- Photometric bands ------------------------------------------------------------------------
SPEED_OF_LIGHT = 299792458.0  # m/s, exact
AB_ZERO_POINT = 3631e-26  # W m^-2 Hz^-1 (3631 Jy)
UNWISE_ZERO_POINT = 22.5  # mag of one Vega nanomaggy, unWISE catalogue (Schlafly et al. 2019)


class PhotometricBand(NamedTuple):
    """One band: name, wavelength in nm, and dm with m_AB = m_Vega + dm."""

    name: str
    wavelength: float
    vega_to_ab: float


# Isophotal wavelengths and offsets: 2MASS from Cohen et al. (2003) and Blanton et al. (2005),
# WISE from the All-Sky Explanatory Supplement, section IV.4.h.
PHOTOMETRIC_BANDS = (
    PhotometricBand("J", 1235.0, 0.91),
    PhotometricBand("H", 1662.0, 1.39),
    PhotometricBand("Ks", 2159.0, 1.85),
    PhotometricBand("W1", 3352.6, 2.699),
    PhotometricBand("W2", 4602.8, 3.339),
)
N_TMASS = 3
N_UNWISE = 2
SAMPLE_WAVELENGTHS = np.concatenate(
    [XP_WAVELENGTHS, [band.wavelength for band in PHOTOMETRIC_BANDS]]
)  # (66,) nm
N_FLUX = SAMPLE_WAVELENGTHS.size

MAX_TMASS_ERROR = 0.2  # mag
MAX_TMASS_NORM_DG = -5.0  # mag; norm_dg: neighbours' flux near the star, NaN = no neighbour
MAX_UNWISE_RELATIVE_ERROR = 0.2
MIN_UNWISE_FRACFLUX = 0.8
MIN_UNWISE_QF = 0.8
MAX_UNWISE_SEPARATION = 0.25  # arcsec
MAX_UNWISE_NORM_DG = -10.0  # mag

# Fluxes and errors outside of this range are no measurements, and their squares leave float32.
FLUX_RANGE = (1e-18, 1e18)  # in FLUX_UNIT

# Stars worked on at once. Measured on one core: 32 to 128 differ by 10%; less memory is better.
CHUNK_STARS = 96

XP_BANDS = ("bp", "rp")
XP_COLUMNS = tuple(
    f"{band}_{name}"
    for band in XP_BANDS
    for name in (
        "coefficients",
        "coefficient_errors",
        "coefficient_correlations",
        "n_parameters",
    )
)
TMASS_COLUMNS = ("j_m", "j_msigcom", "h_m", "h_msigcom", "ks_m", "ks_msigcom", "ph_qual")
UNWISE_COLUMNS = ("flux", "dflux", "qf", "fracflux", "sep_arcsec")

_TABLE = Path(__file__).resolve().parent / "tables" / "xp_basis.npz"
_LEAF = 8  # size of the diagonal blocks that are factorised directly


class InputFlag(IntFlag):
    """Bits of `input_flags`: what was missing or mended in a star's input."""

    BP_MISSING = 1  # BP spectrum absent or unusable; no flux below 643 nm
    RP_MISSING = 2  # RP spectrum absent or unusable; no flux above 635 nm
    COV_FLOORED = 4  # eigenvalues of the XP covariance were raised to EIGENVALUE_FLOOR
    COV_BAD = 8  # XP flux beyond FLUX_RANGE, covariance not finite or not positive: XP not used
    NO_2MASS = 16  # none of J, H, Ks is used
    NO_WISE = 32  # neither W1 nor W2 is used
    NO_METADATA = 64  # no row in the metadata (set by the step that joins them)
    NO_PARALLAX = 128  # parallax missing (set by the step that joins them)


@dataclass(frozen=True, eq=False)
class XPBasis:
    """How the coefficients of a release become fluxes.

    {bp,rp}_design (n_coefficients, n_xp) in FLUX_UNIT per unit coefficient, {bp,rp}_weight (n_xp,)
    of the merge, which add up to 1; wavelengths (n_xp,) nm; release: what the basis is of.
    """

    bp_design: np.ndarray
    rp_design: np.ndarray
    bp_weight: np.ndarray
    rp_weight: np.ndarray
    wavelengths: np.ndarray
    release: Release
    source: str = ""

    def weighted(self, band, dtype=np.float64):
        """(start, stop, design): where the band has weight, and weight * design there."""
        weight = getattr(self, f"{band}_weight")
        inside = np.flatnonzero(weight > 0)
        start, stop = inside[0], inside[-1] + 1
        design = getattr(self, f"{band}_design")[:, start:stop] * weight[start:stop]
        return start, stop, design.astype(dtype)


@cache
def load_xp_basis(release):
    """The `XPBasis` of a release (tools/make_xp_basis.py makes that of DR3 from GaiaXPy).

    Raises ValueError where the table is of other wavelengths or numbers of coefficients.
    """
    path, spectra = release.spectra.basis, release.spectra
    with np.load(path) as table:
        names = ("bp_design", "rp_design", "bp_weight", "rp_weight")
        arrays = {name: table[name] for name in names}
        wavelengths, source = table["wavelength"], str(table["source"])
    if not np.array_equal(wavelengths, spectra.wavelengths):
        raise ValueError(f"{path}: wavelengths differ from those of the release; remake it")
    for band, one in spectra.bands.items():
        expected = (one.n_coefficients, len(wavelengths))
        found = arrays[f"{band}_design"].shape
        if found != expected:
            raise ValueError(f"{path}: {band}_design is {found}, the release says {expected}")
    for array in arrays.values():
        array.setflags(write=False)
    return XPBasis(**arrays, wavelengths=spectra.wavelengths, release=release, source=source)


@dataclass(frozen=True, eq=False)
class FluxChannels:
    """What each of the n fluxes of a flux vector is of: XP first, then the photometric bands.

    wavelengths (n,) nm; names, surveys (n,): "xp", or the band's name and its survey; bp, rp (n,)
    bool: XP fluxes where that band has weight.
    """

    wavelengths: np.ndarray
    names: np.ndarray
    surveys: np.ndarray
    bp: np.ndarray
    rp: np.ndarray

    def __len__(self):
        return len(self.wavelengths)

    @property
    def n_xp(self) -> int:
        """Number of XP fluxes, which come first."""
        return int((self.surveys == "xp").sum())

    @property
    def photometry(self) -> dict:
        """{survey: places (k,) of its fluxes}."""
        names = dict.fromkeys(self.surveys[self.n_xp :].tolist())
        return {name: np.flatnonzero(self.surveys == name) for name in names}

    def to_arrays(self):
        """All that defines the channels, as {name: array}."""
        return {f"channel_{name}": np.asarray(value) for name, value in vars(self).items()}

    @classmethod
    def from_arrays(cls, arrays):
        """The channels that `to_arrays` described. Raises KeyError where an array is missing."""
        names = ("wavelengths", "names", "surveys", "bp", "rp")
        out = {name: np.asarray(arrays[f"channel_{name}"]) for name in names}
        out |= {name: out[name].astype(str) for name in ("names", "surveys")}
        return cls(**out)


def flux_channels(basis):
    """The `FluxChannels` of the flux vectors made with an `XPBasis`."""
    n_xp, none = len(basis.wavelengths), [False] * len(BANDS)
    return FluxChannels(
        np.concatenate([basis.wavelengths, [band.wavelength for band in BANDS]]),
        np.array(["xp"] * n_xp + [band.name for band in BANDS]),
        np.array(["xp"] * n_xp + [band.survey for band in BANDS]),
        np.concatenate([basis.bp_weight > 0, none]),
        np.concatenate([basis.rp_weight > 0, none]),
    )


# --- XP spectra -------------------------------------------------------------------------------
@dataclass
class XPSample:
    """Sampled spectra. f_X below is weight * flux of band X alone, 0 where the band is not used.

    flux (N, 61): NaN where not used; cov (N, 61, 61): 0 in unused rows and columns;
    used (N, 61) bool; bp_ok, rp_ok (N,) bool; bp_flux, rp_flux (N, 61).
    """

    flux: np.ndarray
    cov: np.ndarray
    used: np.ndarray
    bp_ok: np.ndarray
    rp_ok: np.ndarray
    bp_flux: np.ndarray
    rp_flux: np.ndarray


def _band_arrays(xp, band, dtype):
    """Coefficients and errors (N, 55), correlations (N, 1485), and ok (N,); bad rows are zero."""
    shapes = {
        "coefficients": N_COEFFICIENTS,
        "coefficient_errors": N_COEFFICIENTS,
        "coefficient_correlations": N_CORRELATIONS,
    }
    arrays = {}
    for name, width in shapes.items():
        column = f"{band}_{name}"
        array = np.asarray(xp[column])
        if array.ndim != 2 or array.shape[1] != width:
            raise ValueError(f"{column}: shape {array.shape}, expected (N, {width})")
        arrays[name] = array
    n_parameters = np.asarray(xp[f"{band}_n_parameters"])
    ok = n_parameters == N_COEFFICIENTS
    for array in arrays.values():
        ok &= np.isfinite(array).all(axis=1)
    ok &= (arrays["coefficient_errors"] > 0).all(axis=1)
    if not ok.all():
        arrays = {name: np.where(ok[:, None], array, 0) for name, array in arrays.items()}
    coefficients = arrays["coefficients"].astype(dtype, copy=False)
    errors = arrays["coefficient_errors"].astype(dtype, copy=False)
    return coefficients, errors, arrays["coefficient_correlations"], ok


def _half_correlation(correlations, dtype):
    """(N, 55, 55) lower triangular T with T + T^T = R, the correlation matrix.

    correlations (N, 1485): strictly lower triangle of R in row order, as the archive has it
    (the same numbers are the upper triangle in column order).
    """
    half = np.zeros((len(correlations), N_COEFFICIENTS, N_COEFFICIENTS), dtype)
    start = 0
    for row in range(1, N_COEFFICIENTS):
        half[:, row, :row] = correlations[:, start : start + row]
        start += row
    diagonal = np.arange(N_COEFFICIENTS)
    half[:, diagonal, diagonal] = 0.5
    return half


def _sample_band(xp, band, basis, dtype):
    """(start, stop, flux (N, n), half (N, n, n), ok (N,)): the band times its merge weight.

    half + half^T is the covariance.
    """
    coefficients, errors, correlations, ok = _band_arrays(xp, band, dtype)
    start, stop, design = basis.weighted(band, dtype)
    scaled = errors[:, :, None] * design  # (N, 55, n) = diag(s) D w
    half = _half_correlation(correlations, dtype)
    half_cov = scaled.transpose(0, 2, 1) @ (half @ scaled)
    # One small product per star, so that a star's numbers do not depend on how many come with it.
    flux = (coefficients[:, None, :] @ design)[:, 0, :]
    return start, stop, flux, half_cov, ok


def sample_xp(xp, basis=None, dtype=np.float64):
    """Sample XP spectra and their covariance at XP_WAVELENGTHS, as GaiaXPy's `calibrate` does.

    Per band f = b^T D and C = D^T diag(s) R diag(s) D with b, s, R the archive's coefficients,
    their errors and their correlations. The archive's s include the standard deviation of the
    least-squares solution, so that is not applied again. Bands are merged with the basis's weights
    w: f = sum w f_X, C = sum w w^T o C_X. No error floors are added here: see `add_flux_floors`.

    Args:
        xp: dict of arrays, XP_COLUMNS: {bp,rp}_coefficients and _coefficient_errors (N, 55),
            _coefficient_correlations (N, 1485), _n_parameters (N,).
        basis: XPBasis; default load_xp_basis().
        dtype: of the computation and the result.

    Returns:
        XPSample in FLUX_UNIT. A band with a non-finite number, an error that is not positive or
        n_parameters other than 55 is not used, nor is any wavelength where it has merge weight.

    Raises:
        KeyError: a column is missing. ValueError: a column has the wrong shape.
    """
    basis = load_xp_basis() if basis is None else basis
    n_stars = len(xp["bp_coefficients"])
    half = np.zeros((n_stars, N_XP, N_XP), dtype)  # covariance = half + half^T
    flux = {band: np.zeros((n_stars, N_XP), dtype) for band in XP_BANDS}
    used = np.ones((n_stars, N_XP), bool)
    oks = {}
    for band in XP_BANDS:
        start, stop, band_flux, band_half, ok = _sample_band(xp, band, basis, dtype)
        flux[band][:, start:stop] = band_flux
        half[:, start:stop, start:stop] += band_half
        used[:, start:stop] &= ok[:, None]
        oks[band] = ok
    cov = half + half.transpose(0, 2, 1)
    if not used.all():
        for band in XP_BANDS:
            flux[band][~used] = 0.0
        cov *= used[:, :, None] & used[:, None, :]
    merged = np.where(used, flux["bp"] + flux["rp"], np.nan)
    return XPSample(merged, cov, used, oks["bp"], oks["rp"], flux["bp"], flux["rp"])


def add_flux_floors(sample):
    """Covariance (N, 61, 61) of a sample with the error floors added; the sample's own is kept.

    0.001^2 f_BP f_BP^T + 0.001^2 f_RP f_RP^T (zero points, before the merge) + 0.005^2 f f^T
    (common) + (0.005 f)^2 on the diagonal (Zhang, Green & Rix 2023). Zero for unused wavelengths.
    """
    flux = sample.bp_flux + sample.rp_flux  # (N, 61), 0 where unused
    common = np.stack(
        [
            ZERO_POINT_ERROR * sample.bp_flux,
            ZERO_POINT_ERROR * sample.rp_flux,
            COMMON_ERROR * flux,
        ],
        axis=1,
    )  # (N, 3, 61)
    cov = common.transpose(0, 2, 1) @ common
    cov += sample.cov
    diagonal = np.arange(N_XP)
    cov[:, diagonal, diagonal] += (PIXEL_ERROR * flux) ** 2
    return cov


# --- Whitening --------------------------------------------------------------------------------
def _inverse_cholesky_leaf(matrix):
    """Inverse Cholesky factor of small matrices (N, n, n), all stars at once, star axis last.

    NaN for a star whose matrix is not positive definite; no exception, so that one star does not
    decide the fate of the others.
    """
    size = matrix.shape[1]
    work = np.ascontiguousarray(matrix.transpose(1, 2, 0))  # (n, n, N)
    inverse = np.zeros_like(work)
    for column in range(size):
        work[column, column] = np.sqrt(work[column, column])
        work[column + 1 :, column] /= work[column, column]
        below = work[column + 1 :, column]  # (n - column - 1, N)
        work[column + 1 :, column + 1 :] -= below[:, None] * below[None, :]
    for row in range(size):
        if row:
            product = work[row, :row, None] * inverse[:row, :row]  # (row, row, N)
            inverse[row, :row] = -product.sum(axis=0) / work[row, row]
        inverse[row, row] = 1.0 / work[row, row]
    return inverse.transpose(2, 0, 1)


def _inverse_cholesky(matrix):
    """L^-1 (N, n, n) lower triangular, L L^T = matrix (N, n, n); NaN rows where not positive.

    By halves, so that nearly all the work is in matrix products:
    S11 = f(A11), L21 = A21 S11^T, S22 = f(A22 - L21 L21^T), S21 = -S22 L21 S11.
    """
    size = matrix.shape[1]
    if size <= _LEAF:
        return _inverse_cholesky_leaf(matrix)
    half = size // 2
    first = np.ascontiguousarray(_inverse_cholesky(matrix[:, :half, :half]))
    left = matrix[:, half:, :half] @ first.transpose(0, 2, 1)
    second = _inverse_cholesky(matrix[:, half:, half:] - left @ left.transpose(0, 2, 1))
    inverse = np.empty_like(matrix)
    inverse[:, :half, half:] = 0.0
    inverse[:, :half, :half] = first
    inverse[:, half:, half:] = second
    np.negative(np.ascontiguousarray(second) @ (left @ first), out=inverse[:, half:, :half])
    return inverse


def _fill_unused(cov, used):
    """Covariance with unused rows and columns replaced by a harmless diagonal.

    The filling is the mean variance of the star's used wavelengths: it lies between the smallest
    and the largest eigenvalue of the used block, so it changes neither of them, and it is never
    below the eigenvalue floor, so it is never counted as floored.
    """
    if used.all():
        return cov
    variance = np.einsum("nii->ni", cov)
    n_used = used.sum(axis=1)
    mean = np.where(used, variance, 0.0).sum(axis=1) / np.maximum(n_used, 1)
    filling = np.where(n_used > 0, np.fmax(mean, EIGENVALUE_FLOOR), 1.0)
    filled = np.where(used[:, :, None] & used[:, None, :], cov, 0.0)
    star, row = np.nonzero(~used)
    filled[star, row, row] = filling[star]
    return filled


def _whiten_floored(cov):
    """Whitening of (n, 61, 61) with eigenvalues raised to the floor: (S, number raised).

    S is triangular from a QL decomposition of diag(lambda^-1/2) V^T, which never forms the inverse.
    The number is -1, and S NaN, where the matrix is no covariance at all.
    """
    eigenvalues, vectors = np.linalg.eigh(cov)  # ascending
    bad = eigenvalues[:, 0] < -INDEFINITE_TOLERANCE * np.abs(eigenvalues[:, -1])
    n_floored = np.sum(eigenvalues < EIGENVALUE_FLOOR, axis=1)
    root = np.sqrt(np.maximum(eigenvalues, EIGENVALUE_FLOOR))
    whitening = vectors.transpose(0, 2, 1) / root[:, :, None]
    # QL from QR: with the columns reversed, R becomes lower triangular when turned by 180 degrees.
    triangle = np.linalg.qr(whitening[:, :, ::-1], mode="r")[:, ::-1, ::-1]
    triangle = triangle * np.sign(np.einsum("nii->ni", triangle))[:, :, None]
    triangle[bad] = np.nan
    return triangle, np.where(bad, -1, n_floored)


def _whiten(cov, used):
    """Dense whitening (N, 61, 61) float64 and n_floored (N,); see whiten_tril."""
    finite = np.isfinite(cov).all(axis=(1, 2))
    cov = _fill_unused(cov, used)
    if not finite.all():
        cov = np.where(finite[:, None, None], cov, np.eye(N_XP))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        whitening = _inverse_cholesky(cov)
        trace = np.einsum("nij,nij->n", whitening, whitening)  # of the inverse covariance
        # 1 / trace(C^-1) never exceeds the smallest eigenvalue: above the floor it is a proof.
        proven = 1.0 / trace > EIGENVALUE_FLOOR  # False for NaN
    n_floored = np.zeros(len(cov), int)
    doubtful = np.flatnonzero(~proven)
    if doubtful.size:
        floored, count = _whiten_floored(cov[doubtful])
        # Cholesky's answer stands where it exists and no eigenvalue turns out below the floor.
        replace = (count != 0) | ~np.isfinite(trace[doubtful])
        whitening[doubtful[replace]] = floored[replace]
        n_floored[doubtful] = count
    n_floored[~finite] = -1
    if (n_floored < 0).any():
        whitening[n_floored < 0] = 0.0
    if not used.all():
        whitening *= used[:, :, None] & used[:, None, :]
    return whitening, n_floored


@cache
def _tril_index():
    """Flat indices (1891,) of the lower triangle of a 61 x 61 matrix in row order."""
    row, column = np.tril_indices(N_XP)
    return row * N_XP + column


def whiten_tril(cov, used):
    """Whitening of covariances, as a lower triangle.

    S is the inverse Cholesky factor, in float64. Eigenvalues below EIGENVALUE_FLOOR are raised to
    it; only stars for which 1 / |S|^2 (Frobenius), a lower bound of the smallest eigenvalue, does
    not prove that there are none are decomposed into eigenvalues.

    Args:
        cov (N, 61, 61): covariance in FLUX_UNIT squared, symmetric.
        used (N, 61) bool: which wavelengths count; the others' rows and columns of S are zero.

    Returns:
        tril (N, 1891) float32, and n_floored (N,) int: eigenvalues that were raised; -1, with a
        whitening of zeros, where cov is not finite or has a negative eigenvalue beyond rounding
        (INDEFINITE_TOLERANCE of the largest).

    Raises:
        ValueError: shapes do not fit.
    """
    cov = np.asarray(cov)
    used = np.asarray(used, bool)
    if cov.ndim != 3 or cov.shape[1:] != (N_XP, N_XP) or used.shape != cov.shape[:2]:
        raise ValueError(
            f"cov {cov.shape} and used {used.shape}: expected (N, {N_XP}, {N_XP}) and (N, {N_XP})"
        )
    tril = np.zeros((len(cov), N_TRIL), np.float32)
    n_floored = np.zeros(len(cov), int)
    for start in range(0, len(cov), CHUNK_STARS):
        rows = slice(start, start + CHUNK_STARS)
        whitening, n_floored[rows] = _whiten(cov[rows].astype(np.float64), used[rows])
        tril[rows] = whitening.reshape(-1, N_XP * N_XP)[:, _tril_index()]
    return tril, n_floored


def unpack_tril(tril, flux_err):
    """Full whitening S (N, 66, 66) of the flux vector, in the dtype of `tril`.

    tril (N, 1891): the XP part; flux_err (N, 66): its last five give the diagonal of the
    photometric bands, 1 / error, which is 0 where the error is inf.
    """
    tril = np.asarray(tril)
    flux_err = np.asarray(flux_err)
    if tril.shape[1:] != (N_TRIL,) or flux_err.shape != (len(tril), N_FLUX):
        raise ValueError(
            f"tril {tril.shape} and flux_err {flux_err.shape}: "
            f"expected (N, {N_TRIL}) and (N, {N_FLUX})"
        )
    full = np.zeros((len(tril), N_FLUX, N_FLUX), tril.dtype)
    row, column = np.tril_indices(N_XP)
    full[:, row, column] = tril
    bands = np.arange(N_XP, N_FLUX)
    full[:, bands, bands] = 1.0 / flux_err[:, bands]
    return full


# --- Photometry -------------------------------------------------------------------------------
def vega_to_flux(magnitude, band):
    """Flux in FLUX_UNIT of a Vega magnitude; m_AB = 0 is 3631 Jy, times c / lambda^2."""
    wavelength = band.wavelength * 1e-9  # m
    zero_point = AB_ZERO_POINT * SPEED_OF_LIGHT / wavelength**2  # W m^-2 m^-1
    return zero_point * 1e-9 * 1e18 * 10 ** (-0.4 * (magnitude + band.vega_to_ab))


def _tmass_flux(tmass, norm_dg):
    """flux, err (N, 3) before the relative floor, and use (N, 3)."""
    bands = PHOTOMETRIC_BANDS[:N_TMASS]
    names = [band.name.lower() for band in bands]
    magnitude = np.stack([np.asarray(tmass[f"{name}_m"], float) for name in names], axis=1)
    error = np.stack([np.asarray(tmass[f"{name}_msigcom"], float) for name in names], axis=1)
    quality = np.ascontiguousarray(np.asarray(tmass["ph_qual"]).astype("S3"))
    quality = quality.view("S1").reshape(-1, N_TMASS)
    use = (quality == b"A") & (error > 0) & (error < MAX_TMASS_ERROR) & np.isfinite(magnitude)
    use &= ~(norm_dg >= MAX_TMASS_NORM_DG)[:, None]
    flux = np.stack([vega_to_flux(magnitude[:, i], band) for i, band in enumerate(bands)], axis=1)
    return flux, flux * error * np.log(10) / 2.5, use


def _unwise_flux(unwise, norm_dg):
    """flux, err (N, 2) before the relative floor, and use (N, 2)."""
    counts = np.asarray(unwise["flux"], float)
    error = np.asarray(unwise["dflux"], float)
    relative = np.divide(error, counts, out=np.full_like(counts, np.inf), where=counts > 0)
    separation = np.asarray(unwise["sep_arcsec"], float)
    use = (counts > 0) & np.isfinite(counts)
    use &= (relative > 0) & (relative < MAX_UNWISE_RELATIVE_ERROR)
    use &= np.asarray(unwise["fracflux"], float) > MIN_UNWISE_FRACFLUX
    use &= np.asarray(unwise["qf"], float) > MIN_UNWISE_QF
    use &= ((separation < MAX_UNWISE_SEPARATION) & ~(norm_dg >= MAX_UNWISE_NORM_DG))[:, None]
    nanomaggy = [vega_to_flux(UNWISE_ZERO_POINT, band) for band in PHOTOMETRIC_BANDS[N_TMASS:]]
    flux = counts * np.array(nanomaggy)
    return flux, flux * np.where(use, relative, 1.0), use


def photometry_flux(tmass, unwise, metadata):
    """Fluxes of the five photometric bands.

    f_lambda = 3631 Jy c / lambda^2 10^(-0.4 (m_Vega + dm)), error f sigma_m ln(10) / 2.5, with 1%
    of the flux added in quadrature. Used: 2MASS bands of quality A with error < 0.2 mag and
    norm_dg < -5; unWISE bands with flux > 0, relative error < 0.2, fracflux > 0.8, qf > 0.8,
    separation < 0.25 arcsec, norm_dg < -10. A norm_dg of NaN means no neighbour and passes.
    Errors must also be positive.

    Args:
        tmass: dict with TMASS_COLUMNS, rows aligned with the stars, NaN / b"" where there is no
            match; None where 2MASS is not used.
        unwise: dict with UNWISE_COLUMNS ((N, 2): W1, W2; sep_arcsec (N,)), fluxes in Vega
            nanomaggies; None where unWISE is not used.
        metadata: dict with `norm_dg` (N,).

    Returns:
        flux (N, 5), err (N, 5) in FLUX_UNIT; 0 and inf where a band is not used.
    """
    norm_dg = np.asarray(metadata["norm_dg"], float)
    n_stars = len(norm_dg)
    flux = np.zeros((n_stars, len(PHOTOMETRIC_BANDS)))
    err = np.zeros_like(flux)
    use = np.zeros(flux.shape, bool)
    if tmass is not None:
        bands = slice(0, N_TMASS)
        flux[:, bands], err[:, bands], use[:, bands] = _tmass_flux(tmass, norm_dg)
    if unwise is not None:
        bands = slice(N_TMASS, N_TMASS + N_UNWISE)
        flux[:, bands], err[:, bands], use[:, bands] = _unwise_flux(unwise, norm_dg)
    err = np.hypot(err, PHOTOMETRY_ERROR * flux)
    use &= (flux < FLUX_RANGE[1]) & (err > FLUX_RANGE[0]) & (err < FLUX_RANGE[1])
    return np.where(use, flux, 0.0), np.where(use, err, np.inf)


# --- The flux vector --------------------------------------------------------------------------
@dataclass
class FluxVectors:
    """Flux vectors of N stars in FLUX_UNIT.

    flux (N, 66) float32: 0 where not used, never NaN
    flux_err (N, 66) float32: 1 sigma with the error floors; inf where not used
    flux_sqrticov_tril (N, 1891) float32: whitening of the XP part
    input_flags (N,) uint8: InputFlag
    n_flux (N,) int: number of fluxes used
    n_floored (N,) int: eigenvalues of the XP covariance that were raised (-1: COV_BAD)
    eival_min, eival_max (N,) float32, or None where not asked for: smallest and largest eigenvalue
        of the XP covariance with floors, before flooring; NaN where no XP flux is used
    """

    flux: np.ndarray
    flux_err: np.ndarray
    flux_sqrticov_tril: np.ndarray
    input_flags: np.ndarray
    n_flux: np.ndarray
    n_floored: np.ndarray
    eival_min: np.ndarray | None = None
    eival_max: np.ndarray | None = None

    def columns(self):
        """{dataset name: array} of what is stored; the datasets are described in DATASETS."""
        table = {name: getattr(self, name) for name in DATASETS}
        if self.eival_min is not None:
            table |= {"flux_cov_eival_min": self.eival_min, "flux_cov_eival_max": self.eival_max}
        return table


# The stored columns of FluxVectors: shape after the star axis, type and attributes of each.
DATASETS = {
    "flux": {
        "shape_tail": (N_FLUX,),
        "units": FLUX_UNIT,
        "description": "XP at 61 wavelengths, then J, H, Ks, W1, W2; 0 where not used",
        "sample_wavelengths": SAMPLE_WAVELENGTHS,
    },
    "flux_err": {
        "shape_tail": (N_FLUX,),
        "units": FLUX_UNIT,
        "description": "1 sigma with error floors; inf where not used",
        "sample_wavelengths": SAMPLE_WAVELENGTHS,
    },
    "flux_sqrticov_tril": {
        "shape_tail": (N_TRIL,),
        "description": "lower triangle, row order, of S with S^T S = C^-1 of the 61 XP fluxes",
    },
    "input_flags": {
        "dtype": "u1",
        "description": "bits: " + ", ".join(f"{flag.value} {flag.name}" for flag in InputFlag),
    },
}


def _empty_vectors(n_stars, eigenvalues):
    extreme = np.full((2, n_stars), np.nan, np.float32) if eigenvalues else (None, None)
    return FluxVectors(
        flux=np.zeros((n_stars, N_FLUX), np.float32),
        flux_err=np.full((n_stars, N_FLUX), np.inf, np.float32),
        flux_sqrticov_tril=np.zeros((n_stars, N_TRIL), np.float32),
        input_flags=np.zeros(n_stars, np.uint8),
        n_flux=np.zeros(n_stars, int),
        n_floored=np.zeros(n_stars, int),
        eival_min=extreme[0],
        eival_max=extreme[1],
    )


def _xp_chunk(result, rows, xp, basis):
    """Fill the XP part of `result` for `rows` from the spectra of these rows."""
    with np.errstate(over="ignore", invalid="ignore"):  # absurd numbers end as COV_BAD
        sample = sample_xp(xp, basis)
        cov = add_flux_floors(sample)
        flux = sample.bp_flux + sample.rp_flux
        err = np.sqrt(np.einsum("nii->ni", cov))
    # Written so that NaN is out of range too.
    in_range = (np.abs(flux) < FLUX_RANGE[1]) & (err > FLUX_RANGE[0]) & (err < FLUX_RANGE[1])
    cov[(sample.used & ~in_range).any(axis=1)] = np.nan
    whitening, n_floored = _whiten(cov, sample.used)
    bad = n_floored < 0
    used = sample.used & ~bad[:, None]
    result.flux[rows, :N_XP] = np.where(used, flux, 0.0)
    result.flux_err[rows, :N_XP] = np.where(used, err, np.inf)
    result.flux_sqrticov_tril[rows] = whitening.reshape(-1, N_XP * N_XP)[:, _tril_index()]
    result.n_floored[rows] = n_floored
    result.input_flags[rows] |= (
        ~sample.bp_ok * np.uint8(InputFlag.BP_MISSING)
        | ~sample.rp_ok * np.uint8(InputFlag.RP_MISSING)
        | (n_floored > 0) * np.uint8(InputFlag.COV_FLOORED)
        | bad * np.uint8(InputFlag.COV_BAD)
    )
    if result.eival_min is not None:
        some = used.any(axis=1)
        eigenvalues = np.linalg.eigvalsh(_fill_unused(cov[some], used[some]))
        result.eival_min[rows][some] = eigenvalues[:, 0]
        result.eival_max[rows][some] = eigenvalues[:, -1]


def flux_vectors(xp, tmass, unwise, metadata, eigenvalues=False, basis=None):
    """The 66-vector of fluxes of each star, with errors and whitening.

    Args:
        xp: dict with XP_COLUMNS, see `sample_xp`.
        tmass, unwise: dicts with rows aligned with xp, or None; see `photometry_flux`.
        metadata: dict with `norm_dg` (N,), NaN where there is no neighbour or no row.
        eigenvalues: also give the extreme eigenvalues of the XP covariance (ten times slower).
        basis: XPBasis; default load_xp_basis().

    Returns:
        FluxVectors. Every star has a row; what cannot be used has flux 0, error inf and a flag.

    Raises:
        KeyError: a column is missing. ValueError: a shape or a number of rows does not fit.
    """
    basis = load_xp_basis() if basis is None else basis
    n_stars = len(xp["bp_coefficients"])
    tables = {"xp": xp, "tmass": tmass, "unwise": unwise, "metadata": metadata}
    names = (XP_COLUMNS, TMASS_COLUMNS, UNWISE_COLUMNS, ("norm_dg",))
    for (kind, table), columns in zip(tables.items(), names, strict=True):
        for name in columns if table is not None else ():
            if len(table[name]) != n_stars:
                raise ValueError(f"{kind} {name}: {len(table[name])} rows, expected {n_stars}")
    result = _empty_vectors(n_stars, eigenvalues)
    flux, err = photometry_flux(tmass, unwise, metadata)
    result.flux[:, N_XP:] = flux
    result.flux_err[:, N_XP:] = err
    used = np.isfinite(err)
    result.input_flags |= ~used[:, :N_TMASS].any(axis=1) * np.uint8(InputFlag.NO_2MASS)
    result.input_flags |= ~used[:, N_TMASS:].any(axis=1) * np.uint8(InputFlag.NO_WISE)
    for start in range(0, n_stars, CHUNK_STARS):
        rows = slice(start, start + CHUNK_STARS)
        _xp_chunk(result, rows, {name: xp[name][rows] for name in XP_COLUMNS}, basis)
    result.n_flux[:] = np.isfinite(result.flux_err).sum(axis=1)
    return result
