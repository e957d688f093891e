"""Derive the XP basis table of this project from GaiaXPy.

    python tools/make_xp_basis.py --output tables/xp_basis.npz

GaiaXPy (PyPI package `gaiaxpy`, BSD-3-Clause, Gaia DPAC) holds the instrument models that turn the
55 + 55 coefficients of a Gaia DR3 BP/RP mean spectrum into a flux at any wavelength: `v375wi` for
BP and `v142r` for RP. Only its public function `calibrate` is called here. Sampling is linear in
the coefficients, so a made-up source whose only non-zero coefficient is the i-th returns row i of
the design matrix:

- with the other band missing, `calibrate` returns the band's own flux: the design matrix;
- with both bands present and the other one zero, it returns the same times the merge weight.

Writes an .npz (30 kB, made in seconds): `wavelength` (61,) nm, `bp_design`, `rp_design` (55, 61)
in 1e-18 W m^-2 nm^-1 per unit coefficient (zero where the band has no weight), `bp_weight`,
`rp_weight` (61,), and the texts `source` and `unit`. GaiaXPy is needed for this script and for the
tests only.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

N_COEFFICIENTS = 55
WAVELENGTHS = np.arange(392.0, 993.0, 10.0)  # (61,) nm
FLUX_SCALE = 1e18  # W m^-2 nm^-1 -> 1e-18 W m^-2 nm^-1
BANDS = ("bp", "rp")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default = Path(__file__).resolve().parents[1] / "tables" / "xp_basis.npz"
    parser.add_argument("--output", type=Path, default=default, help="the .npz to write")
    return parser.parse_args(argv)


def source_table(coefficients):
    """Table of made-up sources in the archive's columns.

    coefficients: dict band -> (n, 55) array, or None for a missing band.
    """
    import pandas as pd

    n = next(len(array) for array in coefficients.values() if array is not None)
    columns = {"source_id": np.arange(n)}
    for band in BANDS:
        given = coefficients[band]
        missing = given is None
        columns |= {
            f"{band}_n_parameters": [0 if missing else N_COEFFICIENTS] * n,
            f"{band}_n_relevant_bases": [0 if missing else N_COEFFICIENTS] * n,
            f"{band}_standard_deviation": [np.nan if missing else 1.0] * n,
            f"{band}_coefficients": [np.nan] * n if missing else list(given),
            f"{band}_coefficient_errors": [np.nan if missing else np.ones(N_COEFFICIENTS)] * n,
            f"{band}_coefficient_correlations": [
                np.nan if missing else np.zeros(N_COEFFICIENTS * (N_COEFFICIENTS - 1) // 2)
            ]
            * n,
        }
    return pd.DataFrame(columns)


def sampled_flux(coefficients):
    """Flux (n, 61) that GaiaXPy makes of the coefficients, 1e-18 W m^-2 nm^-1."""
    import gaiaxpy

    table, _ = gaiaxpy.calibrate(
        source_table(coefficients), sampling=WAVELENGTHS, truncation=False, save_file=False
    )
    return np.stack(table["flux"].to_list()) * FLUX_SCALE


def band_design(band):
    """Design matrix (55, 61) and merge weight (61,) of one band."""
    unit = np.eye(N_COEFFICIENTS)
    other = BANDS[1 - BANDS.index(band)]
    # GaiaXPy gives NaN beyond the range of the only band present: the band has no weight there.
    alone = np.nan_to_num(sampled_flux({band: unit, other: None}), nan=0.0)
    merged = sampled_flux({band: unit, other: np.zeros_like(unit)})
    power = np.sum(alone**2, axis=0)  # (61,)
    weight = np.divide(np.sum(alone * merged, axis=0), power, out=np.zeros(61), where=power > 0)
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
    bp_design, bp_weight = band_design("bp")
    rp_design, rp_weight = band_design("rp")
    if not np.allclose(bp_weight + rp_weight, 1.0, rtol=0, atol=1e-9):
        sys.stderr.write("make_xp_basis: merge weights of BP and RP do not add up to 1\n")
        return 1
    args.output.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        args.output,
        wavelength=WAVELENGTHS,
        bp_design=bp_design,
        rp_design=rp_design,
        bp_weight=bp_weight,
        rp_weight=rp_weight,
        unit="1e-18 W m-2 nm-1",
        source=f"GaiaXPy {gaiaxpy.__version__} calibrate(), models BP v375wi, RP v142r",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
