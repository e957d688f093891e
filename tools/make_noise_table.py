#!/usr/bin/env python3
"""Average the covariances of real XP spectra into the typical noise of a release.

    python tools/make_noise_table.py SPECTRA.h5 --source "where these spectra are from"

Stars that are made fainter in training need noise that is correlated as that of real faint stars is
(fitting/dimming.py). Reads shards of XP continuous mean spectra with the archive's column names
(HDF5), and writes, the release's `noise` by default, an .npz of 30 kB: for bp and rp
`{band}_shape` (m, n), the errors of the coefficients relative to their median, the geometric mean
over the sources, and `{band}_correlations` (m, n (n - 1) / 2), their mean correlations, in row
order; m = 2: of all sources, and of those whose RP flux is below --faint; and the text `source`.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.coefficients import read_coefficients, xp_columns
from pipeline.read import ShardReader
from pipeline.run import usage_exit
from pipeline.schema import XP_BANDS
from pipeline.select import add_release_argument
from xp_utils import load_xp_basis, sample_variances

MOST_RP_FLUX = 1000.0  # of a source that counts: brighter ones have errors of another kind


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs", nargs="+", type=Path, help="shards of spectra")
    parser.add_argument("--source", required=True, help="words on where the spectra are from")
    parser.add_argument("--faint", type=float, default=5.0, help="RP flux (%(default)s)")
    parser.add_argument("--output", type=Path, help="the .npz to write (default: the release's)")
    add_release_argument(parser)
    return parser.parse_args(argv)


def read_spectra(paths, release):
    """{column: (N, ...)} of the spectra of some files."""
    required, _ = xp_columns(release)
    parts = []
    for path in paths:
        with ShardReader(path, "source_id", release.spectra.names) as reader:
            parts.append(reader.read_table(required))
    return {name: np.concatenate([part[name] for part in parts]) for name in required}


def band_table(xp, band, release, groups):
    """({band}_shape, {band}_correlations) of groups of sources, (N,) bool each."""
    one = read_coefficients(xp, band, release)
    shapes, correlations = [], []
    for group in groups:
        rows = group & one.ok
        errors = one.errors[rows] / np.median(one.errors[rows], axis=1, keepdims=True)
        shapes.append(np.exp(np.log(errors).mean(0)))
        correlations.append(one.correlations[rows].mean(0))
    return np.array(shapes, "f4"), np.array(correlations, "f4")


@usage_exit
def main(argv=None):
    args = parse_args(argv)
    xp, basis = read_spectra(args.inputs, args.release), load_xp_basis(args.release)
    sample = sample_variances(xp, basis)
    rp_alone = (basis.bp_weight == 0) & (basis.rp_weight > 0)
    flux = sample.rp_flux[:, rp_alone].mean(1)
    groups = [flux < MOST_RP_FLUX, flux < args.faint]
    arrays = {}
    for band in XP_BANDS:
        shape, correlations = band_table(xp, band, args.release, groups)
        arrays |= {f"{band}_shape": shape, f"{band}_correlations": correlations}
    n = [int(group.sum()) for group in groups]
    words = f"mean of {n[0]} sources, and of the {n[1]} faintest: {args.source}"
    np.savez_compressed(args.output or args.release.spectra.noise, source=words, **arrays)
    return 0


if __name__ == "__main__":
    sys.exit(main())
