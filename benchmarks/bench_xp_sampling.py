"""Speed of the flux vectors on one core, beside a loop over stars through GaiaXPy.

    python benchmarks/bench_xp_sampling.py [--stars demo/stars.h5] [--n 4000]

Times `xp_utils.flux_vectors` (fluxes, variances, error floors) and `xp_utils.sample_xp` with
`add_flux_floors` (full covariances) on the bundled stars, and the same work star by star: GaiaXPy's
`calibrate`, then floors in plain NumPy. GaiaXPy's set-up (design matrices, reading its tables) is
timed with one star and taken off. Needs GaiaXPy for the last part only. The best of several
repetitions counts. Takes about 15 seconds.
"""

import os

# Before NumPy is loaded: one core, so that the figures are per core.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

import argparse
import contextlib
import io
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import xp_utils
from pipeline.errors import ShardError
from pipeline.read import ShardReader
from pipeline.schema import XP_BANDS
from pipeline.select import add_release_argument


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stars", type=Path, default=ROOT / "demo" / "stars.h5")
    parser.add_argument("--n", type=int, default=4000, help="stars for xp_utils (%(default)s)")
    parser.add_argument("--n-loop", type=int, default=300, help="stars for the loop (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="(%(default)s)")
    add_release_argument(parser)
    return parser.parse_args(argv)


def read_stars(path, n, release):
    """XP columns of the first n stars of a file in the format of demo/stars.h5."""
    xp = {}
    with ShardReader(path) as reader:
        for band in XP_BANDS:
            for name in ("coefficients", "coefficient_errors"):
                xp[f"{band}_{name}"] = reader.read(f"{band}_{name}", 0, n)
            n_stars = len(xp[f"{band}_coefficients"])
            template = reader.read(f"{band}_correlation_template")
            xp[f"{band}_coefficient_correlations"] = np.tile(template, (n_stars, 1))
            n_coefficients = release.spectra.bands[band].n_coefficients
            xp[f"{band}_n_parameters"] = np.full(n_stars, n_coefficients, np.int16)
    return xp


def best_time(function, repeats):
    """Shortest wall time of several calls, seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def gaiaxpy_table(xp, n):
    """The first n stars as the table that GaiaXPy reads."""
    import pandas as pd

    columns = {"source_id": np.arange(n)}
    for band in XP_BANDS:
        for name in ("coefficients", "coefficient_errors", "coefficient_correlations"):
            columns[f"{band}_{name}"] = list(xp[f"{band}_{name}"][:n].astype(float))
        columns[f"{band}_n_parameters"] = xp[f"{band}_n_parameters"][:n]
        columns[f"{band}_n_relevant_bases"] = xp[f"{band}_n_parameters"][:n]
        columns[f"{band}_standard_deviation"] = np.ones(n)
    return pd.DataFrame(columns)


def floored_error(flux, error, basis):
    """Errors (n_xp,) of one star with the floors (arrays in FLUX_UNIT)."""
    variance = error**2 + (xp_utils.COMMON_ERROR * flux) ** 2 + (xp_utils.PIXEL_ERROR * flux) ** 2
    for weight in (basis.bp_weight, basis.rp_weight):
        variance += (xp_utils.ZERO_POINT_ERROR * weight * flux) ** 2
    return np.sqrt(variance)


def gaiaxpy_time(xp, n, repeats, basis):
    """Seconds per star of GaiaXPy's sampling and the floors."""
    # GaiaXPy's progress bar goes to what standard output was when it was imported.
    with contextlib.redirect_stdout(io.StringIO()):
        import gaiaxpy

    def sample(table):
        with contextlib.redirect_stdout(io.StringIO()):
            out = gaiaxpy.calibrate(table, sampling=basis.wavelengths, save_file=False)[0]
        for flux, error in zip(out["flux"], out["flux_error"], strict=True):
            floored_error(flux * 1e18, error * 1e18, basis)

    table, single = gaiaxpy_table(xp, n), gaiaxpy_table(xp, 1)
    setup = best_time(lambda: sample(single), repeats)
    return (best_time(lambda: sample(table), repeats) - setup) / (n - 1)


def main(argv=None):
    args = parse_args(argv)
    basis = xp_utils.load_xp_basis(args.release)
    try:
        xp = read_stars(args.stars, args.n, args.release)
    except ShardError as error:
        sys.stderr.write(f"bench_xp_sampling: {error}\n")
        return 2
    n_stars = len(xp["bp_coefficients"])
    metadata = {"norm_dg": np.full(n_stars, np.nan)}

    def own():
        xp_utils.flux_vectors(xp, {}, metadata, basis)

    def covariances():
        for start in range(0, n_stars, xp_utils.CHUNK_STARS):
            part = {
                name: column[start : start + xp_utils.CHUNK_STARS] for name, column in xp.items()
            }
            xp_utils.add_flux_floors(xp_utils.sample_xp(part, basis))

    ours, full = (best_time(work, args.repeats) / n_stars for work in (own, covariances))
    print(f"XP sampling + error floors, one core, {n_stars} stars")
    print(f"  xp_utils.flux_vectors              {1 / ours:10.0f} stars/s")
    print(f"  xp_utils.sample_xp, covariances    {1 / full:10.0f} stars/s")
    try:
        loop = gaiaxpy_time(xp, min(args.n_loop, n_stars), max(1, args.repeats // 2), basis)
    except ImportError:
        print("  (GaiaXPy is not installed: no comparison)")
        return 0
    print(f"  loop: GaiaXPy + NumPy floors       {1 / loop:10.0f} stars/s")
    print(f"  ratio to the loop                  {loop / ours:10.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
