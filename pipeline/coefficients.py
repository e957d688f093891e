"""The coefficients of XP spectra: columns of a release, checked and made into one form."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from pipeline.schema import XP_BANDS

# Correlations are single precision (6e-8 each): beyond 1, or a variance below 0, by more than this
# is not rounding. Variances: relative to the largest of the star.
ROUNDING = 1e-6


def xp_columns(release):
    """(required, optional) columns of the spectra, by their names of ours."""
    names = (*release.spectra.array_columns, "n_parameters")
    required = tuple(f"{band}_{name}" for band in XP_BANDS for name in names)
    return required, tuple(f"{band}_basis_function_id" for band in XP_BANDS)


@dataclass
class Coefficients:
    """Usable coefficients of a band, float64: coefficients, errors (N, n), correlations (N,
    n (n - 1) / 2) as in the archive; ok, proper (N,) bool; rows that are not ok are zero."""

    coefficients: np.ndarray
    errors: np.ndarray
    correlations: np.ndarray
    ok: np.ndarray
    proper: np.ndarray


def _require_basis(xp, band, release, usable):
    """ValueError where a usable spectrum is of another basis than the release's."""
    column, expected = f"{band}_basis_function_id", release.spectra.bands[band].basis_id
    found = xp.get(column)
    if found is None:
        return
    for other in found[usable & np.isfinite(found) & (found != expected)][:1]:
        raise ValueError(f"{column} is {other}, expected {expected} of {release.title}")


def _arrays(xp, band, release):
    """{column without the band: (N, width) array}; ValueError where a shape is another."""
    arrays = {}
    for name in release.spectra.array_columns:
        array = np.asarray(xp[f"{band}_{name}"])
        width = release.spectra.bands[band].width(name)
        if array.ndim != 2 or array.shape[1] != width:
            raise ValueError(
                f"{band}_{name} has rows of shape {array.shape[1:]}, expected ({width},) of "
                f"{release.title}"
            )
        arrays[name] = array
    return arrays


@cache
def lower_triangle(n):
    """Rows and columns (n (n - 1) / 2,) of the strictly lower triangle, in row order."""
    return np.tril_indices(n, -1)


def _errors_and_correlations(arrays, n):
    """Both (N, n) and (N, n (n - 1) / 2), of either form in which the archive gives them."""
    if "coefficient_errors" in arrays:
        return arrays["coefficient_errors"].astype(float), arrays["coefficient_correlations"]
    packed = arrays["coefficient_covariances"].astype(float)
    row, column = np.tril_indices(n)
    with np.errstate(invalid="ignore", divide="ignore"):  # of bad rows, which are not used
        errors = np.sqrt(packed[:, row == column])
        correlations = packed[:, row != column]
        row, column = lower_triangle(n)
        correlations /= np.take(errors, row, axis=1) * np.take(errors, column, axis=1)
    return errors, correlations


def read_coefficients(xp, band, release):
    """The `Coefficients` of a band's columns; ValueError where those are not the release's."""
    n = release.spectra.bands[band].n_coefficients
    arrays = _arrays(xp, band, release)
    coefficients = arrays["coefficients"].astype(float)
    errors, correlations = _errors_and_correlations(arrays, n)
    largest = np.maximum(correlations.max(1, initial=0), -correlations.min(1, initial=0))
    given = np.isfinite(coefficients).all(1)
    _require_basis(xp, band, release, given & (np.asarray(xp[f"{band}_n_parameters"]) > 0))
    ok = given & np.isfinite(largest) & (np.isfinite(errors) & (errors > 0)).all(1)
    ok &= np.asarray(xp[f"{band}_n_parameters"]) == n
    if not ok.all():
        coefficients, errors, correlations = (
            np.where(ok[:, None], array, 0) for array in (coefficients, errors, correlations)
        )
    return Coefficients(coefficients, errors, correlations, ok, ~ok | (largest <= 1 + ROUNDING))
