"""Derive the XP basis table of a release from GaiaXPy.

    python tools/make_xp_basis.py --release dr3

GaiaXPy (PyPI package `gaiaxpy`, BSD-3-Clause, Gaia DPAC) holds the instrument models that turn the
coefficients of a BP/RP mean spectrum into a flux at any wavelength: for DR3 `v375wi` for BP and
`v142r` for RP. The numbers of coefficients and the wavelengths are those of the release's file.
Only GaiaXPy's public function `calibrate` is called here. Sampling is linear in the coefficients,
so a made-up source whose only non-zero coefficient is the i-th returns row i of the design matrix:

- with the other band missing, `calibrate` returns the band's own flux: the design matrix;
- with both bands present and the other one zero, it returns the same times the merge weight.

Writes an .npz (30 kB, made in seconds), the release's `basis` by default: `wavelength` (n_xp,) nm,
`bp_design`, `rp_design` (n_coefficients, n_xp) in 1e-18 W m^-2 nm^-1 per unit coefficient (zero
where the band has no weight), `bp_weight`, `rp_weight` (n_xp,), the same of the release's finer
grid as `fine_wavelength`, `fine_bp_design` ..., and the texts `source` and `unit`.
GaiaXPy is needed for this script and for the tests only.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.schema import FLUX_UNIT, XP_BANDS
from pipeline.select import add_release_argument

FLUX_SCALE = 1e18  # W m^-2 nm^-1 -> FLUX_UNIT


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_release_argument(parser)
    parser.add_argument("--output", type=Path, help="the .npz to write (default: the release's)")
    return parser.parse_args(argv)


def source_table(coefficients):
    """Table of made-up sources in the columns that GaiaXPy reads.

    coefficients: dict band -> (N, n) array, or None for a missing band.
    """
    import pandas as pd

    n_stars = next(len(array) for array in coefficients.values() if array is not None)
    columns = {"source_id": np.arange(n_stars)}
    for band in XP_BANDS:
        given = coefficients[band]
        n = 0 if given is None else given.shape[1]
        cells = {
            "n_parameters": n,
            "n_relevant_bases": n,
            "standard_deviation": 1.0 if n else np.nan,
            "coefficient_errors": np.ones(n) if n else np.nan,
            "coefficient_correlations": np.zeros(n * (n - 1) // 2) if n else np.nan,
        }
        columns |= {f"{band}_{name}": [cell] * n_stars for name, cell in cells.items()}
        columns[f"{band}_coefficients"] = list(given) if n else [np.nan] * n_stars
    return pd.DataFrame(columns)


def sampled_flux(coefficients, wavelengths):
    """Flux (N, n_xp) that GaiaXPy makes of the coefficients, in FLUX_UNIT."""
    import gaiaxpy

    table, _ = gaiaxpy.calibrate(
        source_table(coefficients), sampling=wavelengths, truncation=False, save_file=False
    )
    return np.stack(table["flux"].to_list()) * FLUX_SCALE


def band_design(band, spectra, wavelengths):
    """Design matrix (n, n_wl) and merge weight (n_wl,) of one band of a release's spectra."""
    other = XP_BANDS[1 - XP_BANDS.index(band)]
    unit = np.eye(spectra.bands[band].n_coefficients)
    zero = np.zeros((len(unit), spectra.bands[other].n_coefficients))
    # GaiaXPy gives NaN beyond the range of the only band present: the band has no weight there.
    alone = sampled_flux({band: unit, other: None}, wavelengths)
    alone = np.nan_to_num(alone, nan=0.0)
    merged = sampled_flux({band: unit, other: zero}, wavelengths)
    power = np.sum(alone**2, axis=0)  # (n_wl,)
    weight = np.sum(alone * merged, axis=0)
    weight = np.divide(weight, power, out=np.zeros_like(power), where=power > 0)
    # The projection is exact up to rounding; twelve decimals make 0 and 1 exact again.
    weight = np.round(weight, 12)
    return np.where(weight > 0, alone, 0.0), weight


def main(argv=None):
    args = parse_args(argv)
    try:
        import gaiaxpy
    except ImportError:
        sys.stderr.write("make_xp_basis: GaiaXPy is not installed; pip install gaiaxpy\n")
        return 2
    spectra, arrays = args.release.spectra, {}
    grids = {"": spectra.wavelengths, "fine_": spectra.fine_wavelengths}
    for prefix, wavelengths in grids.items():
        if not len(wavelengths):
            continue
        arrays[f"{prefix}wavelength"], total = wavelengths, 0.0
        for band in XP_BANDS:
            design, weight = band_design(band, spectra, wavelengths)
            arrays |= {f"{prefix}{band}_design": design, f"{prefix}{band}_weight": weight}
            total = total + weight
        if not np.allclose(total, 1.0, rtol=0, atol=1e-9):
            sys.stderr.write("make_xp_basis: merge weights of BP and RP do not add up to 1\n")
            return 1
    models = ", ".join(f"{band.upper()} {spectra.bands[band].model}" for band in XP_BANDS)
    output = args.output or spectra.basis
    output.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        output,
        **arrays,
        unit=FLUX_UNIT,
        source=f"GaiaXPy {gaiaxpy.__version__} calibrate(), models {models}",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
