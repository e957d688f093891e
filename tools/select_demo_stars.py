#!/usr/bin/env python3
"""Choose the real stars bundled as demo/stars.h5 from a larger file of the same format.

    python tools/select_demo_stars.py ../shared/real/apogee_xp_train.h5 --output demo/stars.h5

Stars are drawn without replacement by systematic sampling along a list ordered by type, extinction
and magnitude, with a probability proportional to (number of stars in the cell of the same type)
to the power -ALPHA. A type is a cell in (Teff, log g, [Fe/H]). So rare types are over-represented,
common ones still dominate, and every type is spread over extinction and magnitude. Coefficients
and their errors are rounded to the bits that matter, which halves the size of the file.

Input 34 MB, output under 5 MB, a few seconds.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo.build_sky import read_stars
from pipeline.provenance import provenance
from pipeline.run import usage_exit
from pipeline.schema import XP_BANDS
from pipeline.write import ShardWriter

CELL = {"teff": 250.0, "logg": 0.5, "feh": 0.25}  # K, dex, dex
COEFFICIENT_QUANTUM = 3e-5  # of the coefficient's error; moves sampled fluxes < 3e-4 sigma
ERROR_BITS = 12  # kept of the 23 of a float32 mantissa: 1.2e-4 relative


def type_cells(labels):
    """Number the cells in (Teff, log g, [Fe/H]) that stars occupy.

    labels: dict of (N,) arrays with the names of CELL. Returns cell (N,) int and count (N,) int,
    the number of stars in each star's cell.
    """
    grid = np.stack([np.floor(labels[name] / width) for name, width in CELL.items()], axis=1)
    _, cell, count = np.unique(grid, axis=0, return_inverse=True, return_counts=True)
    return cell, count[cell]


def inclusion_probability(weight, n):
    """Probabilities (N,) proportional to `weight`, at most 1, that sum to `n`.

    Raises ValueError where n is larger than the number of stars.
    """
    if n > len(weight):
        raise ValueError(f"{n} stars wanted, {len(weight)} in the file: choose a smaller --n")
    certain = np.zeros(len(weight), dtype=bool)
    while True:
        free = (n - certain.sum()) * weight / weight[~certain].sum()
        grown = certain | (free >= 1)
        if grown.all() or (grown == certain).all():
            return np.where(certain, 1.0, free)
        certain = grown


def select_stars(labels, n, alpha, seed):
    """Row numbers (n,) of the chosen stars, ascending.

    labels: dict of (N,) arrays teff, logg, feh, ak_targ, phot_g_mean_mag. Systematic sampling with
    probability proportional to size (e.g. Madow 1949, Ann. Math. Stat. 20, 333): equal steps of
    the cumulative probability along the ordered list, from a random start.
    """
    cell, count = type_cells(labels)
    probability = inclusion_probability(count.astype(float) ** -alpha, n)
    dusty = labels["ak_targ"] > np.median(labels["ak_targ"])
    order = np.lexsort((labels["phot_g_mean_mag"], dusty, cell))
    cumulative = np.cumsum(probability[order])
    start = np.random.default_rng(seed).uniform()
    ticks = np.searchsorted(cumulative / cumulative[-1] * n, start + np.arange(n), side="right")
    return np.sort(order[ticks])


def round_coefficients(coefficients, errors):
    """Round (N, n) coefficients to a power of two below COEFFICIENT_QUANTUM of their errors."""
    quantum = 2.0 ** np.floor(np.log2(errors.astype(float) * COEFFICIENT_QUANTUM))
    return np.round(coefficients / quantum) * quantum


def round_mantissa(values, bits):
    """Round float32 values to `bits` bits of mantissa."""
    mantissa, exponent = np.frexp(values.astype(np.float64))
    return np.ldexp(np.round(mantissa * 2.0 ** (bits + 1)), exponent - bits - 1).astype(np.float32)


def chosen_columns(stars, rows):
    """The columns of the chosen rows, ordered by source id and rounded."""
    rows = rows[np.argsort(stars["source_id"][rows])]
    out = {name: values[rows] for name, values in stars.items()}
    for band in XP_BANDS:
        errors = f"{band}_coefficient_errors"
        out[f"{band}_coefficients"] = round_coefficients(out[f"{band}_coefficients"], out[errors])
        out[errors] = round_mantissa(out[errors], ERROR_BITS)
    return out


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stars", type=Path, help="file to choose from")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--n", type=int, default=4000, help="number of stars (default 4000)")
    parser.add_argument("--alpha", type=float, default=0.3, help="0: representative (default 0.3)")
    parser.add_argument("--seed", type=int, default=1, help="default 1")
    return parser.parse_args(argv)


@usage_exit
def main(argv=None):
    args = parse_args(argv)
    stars, templates, attrs = read_stars(args.stars)
    chosen = chosen_columns(stars, select_stars(stars, args.n, args.alpha, args.seed))
    keep = {name: attrs[name] for name in ("source", "plx_noise") if name in attrs}
    keep["selection"] = f"{args.n} of {len(stars['teff'])}, alpha {args.alpha}, seed {args.seed}"
    made_by = provenance(Path(__file__).name, argv, [args.stars])
    with ShardWriter(args.output, args.n, None, made_by, keep) as writer:
        for name, values in {**chosen, **templates}.items():
            writer.write_array(name, values)
    return 0


if __name__ == "__main__":
    sys.exit(main())
