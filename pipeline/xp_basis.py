"""How the coefficients of a release become fluxes: its table of design matrices."""

import zipfile
from dataclasses import dataclass
from functools import cache

import numpy as np

from pipeline.errors import UsageError
from pipeline.schema import Release


@dataclass(frozen=True, eq=False)
class XPBasis:
    """How the coefficients of a release become fluxes.

    {bp,rp}_design (n_coefficients, n_xp) in FLUX_UNIT per unit coefficient, {bp,rp}_weight (n_xp,)
    of the merge, which add up to 1; wavelengths (n_xp,) nm; release: what the basis is of; fine:
    the same on the finer grid of the direct estimate, None where the release has none.
    """

    bp_design: np.ndarray
    rp_design: np.ndarray
    bp_weight: np.ndarray
    rp_weight: np.ndarray
    wavelengths: np.ndarray
    release: Release
    source: str = ""
    fine: "XPBasis | None" = None

    def weighted(self, band, dtype=np.float64):
        """(start, stop, design): where the band has weight, and weight * design there."""
        weight = getattr(self, f"{band}_weight")
        inside = np.flatnonzero(weight > 0)
        start, stop = inside[0], inside[-1] + 1
        design = getattr(self, f"{band}_design")[:, start:stop] * weight[start:stop]
        return start, stop, design.astype(dtype)


BASIS_ARRAYS = ("bp_design", "rp_design", "bp_weight", "rp_weight")


@cache
def load_xp_basis(release):
    """The `XPBasis` of a release (tools/make_xp_basis.py makes that of DR3 from GaiaXPy).

    Raises UsageError where the table cannot be read, or is of other wavelengths or numbers of
    coefficients.
    """
    path, spectra = release.spectra.basis, release.spectra
    try:
        with np.load(path) as file:
            table = {name: file[name] for name in file.files}
        source = str(table["source"])
        fine = None
        if len(spectra.fine_wavelengths):
            fine = _basis_of(table, "fine_", spectra.fine_wavelengths, release)
        return _basis_of(table, "", spectra.wavelengths, release, source=source, fine=fine)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"{path}: cannot be used ({error}); make the basis of {release.title} with "
            "tools/make_xp_basis.py"
        ) from error


def _basis_of(table, prefix, wavelengths, release, **fields):
    """The `XPBasis` of one grid of a basis table; ValueError where it is of another."""
    if not np.array_equal(table[f"{prefix}wavelength"], wavelengths):
        raise ValueError(f"{prefix}wavelength differs from that of {release.title}")
    arrays = {name: table[f"{prefix}{name}"] for name in BASIS_ARRAYS}
    for band, one in release.spectra.bands.items():
        expected, found = (one.n_coefficients, len(wavelengths)), arrays[f"{band}_design"].shape
        if found != expected:
            raise ValueError(f"{prefix}{band}_design is {found}, the release says {expected}")
    for array in arrays.values():
        array.setflags(write=False)
    return XPBasis(**arrays, wavelengths=wavelengths, release=release, **fields)
