"""From the archive's numbers to flux vectors: XP spectra, photometric bands, error floors.

Arrays in, arrays out; the only file read here is the table of a release's basis. The flux vector of
a star holds its XP spectrum at the wavelengths of the release, then the photometric bands of
tables/bands.toml, in 1e-18 W m^-2 nm^-1. `star_table` makes it, with all that goes with it; both
the training set and the inputs of the inference come from that one function.

N stars are the first axis of every array. A flux that is not used has flux 0 and error inf.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from pipeline.coefficients import ROUNDING, lower_triangle, read_coefficients, xp_columns
from pipeline.photometry import FLUX_RANGE, PHOTOMETRY, photometry_flux
from pipeline.schema import BANDS, SURVEYS, XP_BANDS, photometry_columns
from pipeline.schema.bands import METADATA_COLUMNS
from pipeline.schema.columns import PASSED
from pipeline.schema.flags import InputFlag
from pipeline.xp_basis import XPBasis as XPBasis  # part of the interface of this module
from pipeline.xp_basis import load_xp_basis as load_xp_basis

# --- Error floors (Zhang, Green & Rix 2023, MNRAS 524, 1855) ------------------------------------
ZERO_POINT_ERROR = 0.001  # relative, one common factor for each of BP and RP
COMMON_ERROR = 0.005  # relative, one common factor for the merged spectrum
PIXEL_ERROR = 0.005  # relative, independent at every wavelength

MOST_FINE_RATIO = 1e4  # of a flux on the finer grid to the reference flux: float16 ends at 65,504
# Stars worked on at once. Measured on one core: 64 to 256 differ by 5%.
CHUNK_STARS = 128


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


def reference_flux(flux, used, bp, rp):
    """Mean flux (N,) where RP alone has weight, else where BP alone has; NaN where neither is used.

    flux, used (N, n); bp, rp (n,) bool: see `FluxChannels`. Other fluxes are given relative to it.
    """
    red, blue = used & (rp & ~bp), used & (bp & ~rp)
    chosen = np.where(red.any(1)[:, None], red, blue)
    count = chosen.sum(1)
    mean = np.where(chosen, flux, 0.0).sum(1) / np.maximum(count, 1)
    return np.where((count > 0) & (mean > 0), mean, np.nan)


def flux_channels(basis, bands=BANDS):
    """The `FluxChannels` of the flux vectors made with an `XPBasis` and photometric bands."""
    n_xp, none = len(basis.wavelengths), [False] * len(bands)
    return FluxChannels(
        np.concatenate([basis.wavelengths, [band.wavelength for band in bands]]),
        np.array(["xp"] * n_xp + [band.name for band in bands]),
        np.array(["xp"] * n_xp + [band.survey for band in bands]),
        np.concatenate([basis.bp_weight > 0, none]),
        np.concatenate([basis.rp_weight > 0, none]),
    )


# --- XP spectra -------------------------------------------------------------------------------
@dataclass
class XPSample:
    """Sampled spectra. f_X below is weight * flux of band X alone, 0 where the band is not used.

    flux (N, n_xp): NaN where not used; variance (N, n_xp): 0 where not used; cov (N, n_xp, n_xp)
    or None: 0 in unused rows and columns; used (N, n_xp) bool; bp_ok, rp_ok (N,) bool: the band is
    used; proper (N,) bool: no correlation is beyond 1; bp_flux, rp_flux (N, n_xp); fine (N, m) or
    None: the flux on the finer grid, NaN where not used; bands {band: `Coefficients`}: what
    was sampled.
    """

    flux: np.ndarray
    variance: np.ndarray
    used: np.ndarray
    bp_ok: np.ndarray
    rp_ok: np.ndarray
    proper: np.ndarray
    bp_flux: np.ndarray
    rp_flux: np.ndarray
    cov: np.ndarray | None = None
    fine: np.ndarray | None = None
    bands: dict | None = None


def _merged(xp, basis, dtype, second_moment):
    """`XPSample` without variances, and [(start, stop, moment)] of each band.

    second_moment(band, `Coefficients`) gives the moment of the band times its merge weight.
    """
    shape = (len(xp["bp_coefficients"]), len(basis.wavelengths))
    used, proper = np.ones(shape, bool), np.ones(shape[0], bool)
    flux, bands, moments = {}, {}, []
    fine = None if basis.fine is None else np.zeros((shape[0], len(basis.fine.wavelengths)), dtype)
    for name in XP_BANDS:
        start, stop, design = basis.weighted(name, dtype)
        band = read_coefficients(xp, name, basis.release)
        flux[name] = np.zeros(shape, dtype)
        flux[name][:, start:stop] = band.coefficients.astype(dtype, copy=False) @ design
        used[:, start:stop] &= band.ok[:, None]
        bands[name], proper = band, proper & band.proper
        moments.append((start, stop, second_moment(name, band)))
        if fine is not None:
            start, stop, design = basis.fine.weighted(name, dtype)
            fine[:, start:stop] += band.coefficients.astype(dtype, copy=False) @ design
            fine[~band.ok, start:stop] = np.nan
    for part in flux.values():
        part[~used] = 0.0
    merged = np.where(used, flux["bp"] + flux["rp"], np.nan)
    none = np.zeros(shape, dtype)
    parts = (bands["bp"].ok, bands["rp"].ok, proper, flux["bp"], flux["rp"])
    return XPSample(merged, none, used, *parts, fine=fine, bands=bands), moments


def sample_xp(xp, basis, dtype=np.float64):
    """Sample XP spectra and their full covariance, as GaiaXPy's `calibrate` does.

    Per band f = b^T D and C = D^T diag(s) R diag(s) D with b, s, R the archive's coefficients,
    their errors and their correlations. The archive's s include the standard deviation of the
    least-squares solution, so that is not applied again. Bands are merged with the basis's weights
    w: f = sum w f_X, C = sum w w^T o C_X. No error floors are added here: see `add_flux_floors`.

    Args:
        xp: dict of arrays, `xp_columns` of the release: {bp,rp}_coefficients (N, n), and
            _coefficient_errors (N, n) and _coefficient_correlations (N, n (n - 1) / 2), or
            _coefficient_covariances (N, n (n + 1) / 2); _n_parameters (N,).
        basis: XPBasis of the release.
        dtype: of the computation and the result.

    Returns:
        XPSample in FLUX_UNIT. A band with a non-finite number, an error that is not positive or
        another n_parameters than the release's is not used, nor is any wavelength where it has
        merge weight.

    Raises:
        KeyError: a column is missing. ValueError: a shape or a basis id is not the release's.
    """

    def half_covariance(name, band):
        row, column = lower_triangle(band.errors.shape[1])
        half = np.zeros((len(band.ok), *2 * (band.errors.shape[1],)), dtype)
        half[:, row, column] = band.correlations
        np.einsum("nii->ni", half)[:] = 0.5
        scaled = band.errors.astype(dtype)[:, :, None] * basis.weighted(name, dtype)[2]
        return scaled.transpose(0, 2, 1) @ (half @ scaled)

    sample, moments = _merged(xp, basis, dtype, half_covariance)
    half = np.zeros((*sample.used.shape, sample.used.shape[1]), dtype)
    for start, stop, moment in moments:
        half[:, start:stop, start:stop] += moment
    cov = half + half.transpose(0, 2, 1)
    cov *= sample.used[:, :, None] & sample.used[:, None, :]
    sample.cov, sample.variance = cov, np.einsum("nii->ni", cov).copy()
    return sample


@cache
def _pair_products(basis, band):
    """(n (n - 1) / 2, n_wl) and (n, n_wl): what coefficients' covariances and variances are
    multiplied with to give the variances of the band times its merge weight."""
    design = basis.weighted(band)[2]
    row, column = lower_triangle(len(design))
    return 2.0 * design[row] * design[column], design**2


def _scratch(basis, n_stars):
    """{band: (2, n_stars, pairs of coefficients) array} for `sample_variances` to compute in."""
    return {band: np.empty((2, n_stars, len(_pair_products(basis, band)[0]))) for band in XP_BANDS}


def sample_variances(xp, basis, scratch=None):
    """As `sample_xp`, in float64, with the variances alone (`cov` is None): ten times faster.

    The variance at a wavelength is a sum over the pairs of coefficients, so that of many stars is
    one product of matrices; in double precision, as terms may cancel, and as the rounding of single
    precision by BLAS depends on a star's place among the others. scratch: of `_scratch`; making it
    takes as long as filling it.
    """
    scratch = _scratch(basis, len(xp["bp_coefficients"])) if scratch is None else scratch

    def variance(name, band):
        of_pairs, of_single = _pair_products(basis, name)
        covariances, other = scratch[name]
        row, column = lower_triangle(band.errors.shape[1])
        np.take(band.errors, row, axis=1, out=covariances, mode="clip")
        np.take(band.errors, column, axis=1, out=other, mode="clip")
        covariances *= other
        covariances *= band.correlations
        return covariances @ of_pairs + band.errors**2 @ of_single

    sample, moments = _merged(xp, basis, np.float64, variance)
    for start, stop, moment in moments:
        sample.variance[:, start:stop] += moment
    sample.variance[~sample.used] = 0.0
    return sample


def add_flux_floors(sample):
    """Covariance (N, n_xp, n_xp) of a sample with the error floors added; its own is kept.

    0.001^2 f_BP f_BP^T + 0.001^2 f_RP f_RP^T (zero points, before the merge) + 0.005^2 f f^T
    (common) + (0.005 f)^2 on the diagonal (Zhang, Green & Rix 2023). Zero for unused wavelengths.
    """
    flux = sample.bp_flux + sample.rp_flux  # (N, n_xp), 0 where unused
    common = np.stack(
        [
            ZERO_POINT_ERROR * sample.bp_flux,
            ZERO_POINT_ERROR * sample.rp_flux,
            COMMON_ERROR * flux,
        ],
        axis=1,
    )  # (N, 3, n_xp)
    cov = common.transpose(0, 2, 1) @ common
    cov += sample.cov
    np.einsum("nii->ni", cov)[:] += (PIXEL_ERROR * flux) ** 2
    return cov


def floor_variance(flux):
    """Variances (N, n) of the error floors of fluxes, where one band alone has weight."""
    return (ZERO_POINT_ERROR**2 + COMMON_ERROR**2 + PIXEL_ERROR**2) * np.square(flux, dtype="f8")


def floored_variance(sample):
    """(N, n_xp) the diagonal of `add_flux_floors`, from the variances alone."""
    flux = sample.bp_flux + sample.rp_flux
    zero_points = sample.bp_flux**2 + sample.rp_flux**2
    common = (COMMON_ERROR**2 + PIXEL_ERROR**2) * flux**2
    return sample.variance + ZERO_POINT_ERROR**2 * zero_points + common


# --- The flux vector --------------------------------------------------------------------------
@dataclass
class FluxVectors:
    """Flux vectors of N stars in FLUX_UNIT.

    flux (N, n) float32: 0 where not used, never NaN; flux_err (N, n) float32: 1 sigma with the
    error floors, inf where not used; input_flags (N,) uint16: `schema.flags.InputFlag`; xp_fine
    (N, m) float16, or None: XP fluxes on the finer grid over `reference_flux`, NaN where not used.
    """

    flux: np.ndarray
    flux_err: np.ndarray
    input_flags: np.ndarray
    xp_fine: np.ndarray | None = None

    def columns(self):
        """{dataset: array} of what there is."""
        return {name: value for name, value in vars(self).items() if value is not None}


def _chunk(table, start):
    """CHUNK_STARS rows of a table from row `start`, with rows of zeros after its last.

    Always as many, so that a product of matrices, whose rounding may depend on its shape, gives
    the same numbers for a star whatever stars come with it.
    """
    chunk = {name: column[start : start + CHUNK_STARS] for name, column in table.items()}
    lack = CHUNK_STARS - len(next(iter(chunk.values())))
    if not lack:
        return chunk
    return {
        name: np.concatenate([column, np.zeros((lack, *column.shape[1:]), column.dtype)])
        for name, column in chunk.items()
    }


def _xp_chunk(xp, basis, scratch):
    """flux, err (n, n_xp), flags (n,) and the finer fluxes of the spectra of a chunk; 0, inf and
    NaN where not used; and {band: `Coefficients`}."""
    with np.errstate(over="ignore", invalid="ignore"):  # absurd numbers end as COV_BAD
        sample = sample_variances(xp, basis, scratch)
        flux, err = sample.bp_flux + sample.rp_flux, np.sqrt(floored_variance(sample))
        # Written so that NaN is out of range too.
        good = (np.abs(flux) < FLUX_RANGE[1]) & (err > FLUX_RANGE[0]) & (err < FLUX_RANGE[1])
        good &= sample.variance >= -ROUNDING * sample.variance.max(axis=1, keepdims=True)
    bad = (sample.used & ~good).any(axis=1) | ~sample.proper
    used = sample.used & ~bad[:, None]
    flags = np.zeros(len(bad), np.uint16)
    for flag, rows in (
        (InputFlag.BP_MISSING, ~sample.bp_ok),
        (InputFlag.RP_MISSING, ~sample.rp_ok),
        (InputFlag.COV_BAD, bad),
    ):
        flags[rows] |= flag.value
    flux, err = np.where(used, flux, 0.0), np.where(used, err, np.inf)
    return flux, err, flags, _fine(sample, used, basis), sample.bands


def _fine(sample, used, basis):
    """XP fluxes on the finer grid over the reference flux (n, m); None where there is none."""
    if sample.fine is None:
        return None
    flux = sample.bp_flux + sample.rp_flux
    reference = reference_flux(flux, used, basis.bp_weight > 0, basis.rp_weight > 0)
    with np.errstate(over="ignore", invalid="ignore"):
        ratio = sample.fine / reference[:, None]
        return np.where(np.abs(ratio) < MOST_FINE_RATIO, ratio, np.nan)


def _require_rows(xp, tables, metadata, n_stars):
    for kind, table in {"xp": xp, "metadata": metadata, **tables}.items():
        for name, column in (table or {}).items():
            if len(column) != n_stars:
                raise ValueError(f"{kind} {name}: {len(column)} rows, expected {n_stars}")


def sampled_columns(xp, basis, noise=None, g=None):
    """What flux vectors take of spectra: columns of `schema.columns.SAMPLED`, but for the id.

    noise: `NoiseSums` to which the usable ones are added, by their G magnitudes g (N,). Other args
    and errors: see `flux_vectors`.
    """
    n_stars, n_xp = len(xp["bp_coefficients"]), len(basis.wavelengths)
    out = {
        "xp_flux": np.zeros((n_stars, n_xp), np.float32),
        "xp_flux_err": np.full((n_stars, n_xp), np.inf, np.float32),
        "input_flags": np.zeros(n_stars, np.uint16),
    }
    if basis.fine is not None:
        out["xp_fine"] = np.full((n_stars, len(basis.fine.wavelengths)), np.nan, np.float16)
    required, optional = xp_columns(basis.release)
    spectra = {name: np.asarray(xp[name]) for name in (*required, *optional) if name in xp}
    scratch = _scratch(basis, CHUNK_STARS)
    for start in range(0, n_stars, CHUNK_STARS):
        rows = slice(start, min(start + CHUNK_STARS, n_stars))
        n = rows.stop - start
        *columns, bands = _xp_chunk(_chunk(spectra, start), basis, scratch)
        if noise is not None:
            noise.add(bands, g[rows], columns[2][:n] == 0)
        for name, values in zip(
            ("xp_flux", "xp_flux_err", "input_flags", "xp_fine"), columns, strict=True
        ):
            if values is not None:
                out[name][rows] = values[:n]
    return out


def flux_vectors(xp, tables, metadata, basis, photometry=PHOTOMETRY, noise=None):
    """The flux vector of each star, with errors: n_xp XP fluxes, then the photometric bands.

    Args:
        xp: dict with `xp_columns` of the release, see `sample_xp`; or with `sampled_columns`.
        tables: {survey: dict with rows aligned with xp, or None}; see `photometry_flux`.
        metadata: dict with the columns of the metadata that cuts ask for (N,), NaN where missing.
        basis: XPBasis of the release. photometry: see `photometry_flux`.
        noise: `NoiseSums` to which the usable spectra that are coefficients are added, by `G_FLUX`
            of the metadata.

    Returns:
        FluxVectors. Every star has a row; what cannot be used has flux 0, error inf and a flag.

    Raises:
        KeyError: a column is missing. ValueError: a shape or a number of rows does not fit, or the
        spectra are of another basis than the release's.
    """
    n_stars = len(xp["xp_flux" if "xp_flux" in xp else "bp_coefficients"])
    _require_rows(xp, tables, metadata, n_stars)
    if "xp_flux" not in xp:
        g = None if noise is None else basis.release.g_magnitudes(metadata[G_FLUX])
        xp = sampled_columns(xp, basis, noise, g)
    n_xp, (surveys, bands) = len(basis.wavelengths), photometry
    flux, err = photometry_flux(tables, metadata, photometry)
    result = FluxVectors(
        np.zeros((n_stars, n_xp + len(bands)), np.float32),
        np.full((n_stars, n_xp + len(bands)), np.inf, np.float32),
        xp["input_flags"].astype(np.uint16),
        xp.get("xp_fine"),
    )
    result.flux[:, :n_xp], result.flux_err[:, :n_xp] = xp["xp_flux"], xp["xp_flux_err"]
    result.flux[:, n_xp:], result.flux_err[:, n_xp:] = flux, err
    for name, survey in surveys.items():
        own = [k for k, band in enumerate(bands) if band.survey == name]
        result.input_flags[np.isinf(err[:, own]).all(axis=1)] |= survey.flag.bit
    return result


# --- Stars as the model sees them -------------------------------------------------------------
PARALLAX_COLUMNS = ("parallax", "parallax_error")
G_FLUX = "phot_g_mean_flux"


def star_columns(release):
    """{kind of shard: (required, optional) columns} that `star_table` reads.

    Of the metadata those are required that the release's archive must have.
    """
    metadata = (*PARALLAX_COLUMNS, *(column.name for column in PASSED))
    required = tuple(name for name in metadata if name in release.archive.needed)
    optional = tuple(name for name in metadata if name not in required)
    surveys = {name: (photometry_columns(name), ()) for name in SURVEYS}
    return {"xp": xp_columns(release), "metadata": (required, optional), **surveys}


def star_table(tables, basis, noise=None):
    """Columns of `schema.columns.STAR` of N stars: what the model is trained on and applied to.

    Args:
        tables: {kind: dict of its `star_columns`, rows aligned; None for a survey not used}; the
            metadata have a column `matched` (N,) bool.
        basis: XPBasis of the release. noise: see `flux_vectors`.

    Returns:
        {name: (N, ...) array}. NaN: not known; a column that the metadata lack is NaN. A parallax
        counts only with a positive error.

    Raises:
        KeyError, ValueError: see `flux_vectors`.
    """
    release, xp, metadata = basis.release, tables["xp"], tables["metadata"]
    none = np.full(len(xp["source_id"]), np.nan)
    metadata = dict.fromkeys((*METADATA_COLUMNS, G_FLUX), none) | metadata
    surveys = {name: tables.get(name) for name in SURVEYS}
    vectors = flux_vectors(xp, surveys, metadata, basis, noise=noise)
    plx, plx_err = (metadata.get(name, none).astype("f4") for name in PARALLAX_COLUMNS)
    has_plx = np.isfinite(plx) & np.isfinite(plx_err) & (plx_err > 0)
    vectors.input_flags[~metadata["matched"]] |= InputFlag.NO_METADATA.value
    vectors.input_flags[~has_plx] |= InputFlag.NO_PARALLAX.value
    return {
        release.id_column: xp["source_id"],
        **{column.name: metadata.get(column.name, none).astype(column.dtype) for column in PASSED},
        "plx": np.where(has_plx, plx, np.float32(np.nan)),
        "plx_err": np.where(has_plx, plx_err, np.float32(np.nan)),
        **vectors.columns(),
    }
