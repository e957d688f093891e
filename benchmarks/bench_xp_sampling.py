"""Speed of the flux vectors on one core, beside a loop over stars through GaiaXPy.

    python benchmarks/bench_xp_sampling.py [--stars demo/stars.h5] [--n 4000]

Times `xp_utils.flux_vectors` (sampling, covariance, error floors, whitening) on the bundled stars,
and the same work star by star: GaiaXPy's `calibrate(with_correlation=True)`, then floors and
whitening by eigen-decomposition in plain NumPy. GaiaXPy's set-up (design matrices, reading its
tables) is timed with one star and taken off. Needs GaiaXPy for the second part only. The best of
several repetitions counts. Takes about 20 seconds.
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


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stars", type=Path, default=ROOT / "demo" / "stars.h5")
    parser.add_argument("--n", type=int, default=4000, help="stars for xp_utils (%(default)s)")
    parser.add_argument("--n-loop", type=int, default=300, help="stars for the loop (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="(%(default)s)")
    return parser.parse_args(argv)


def read_stars(path, n):
    """XP columns of the first n stars of a file in the format of demo/stars.h5."""
    xp = {}
    with ShardReader(path) as reader:
        for band in xp_utils.XP_BANDS:
            for name in ("coefficients", "coefficient_errors"):
                xp[f"{band}_{name}"] = reader.read(f"{band}_{name}", 0, n)
            n_stars = len(xp[f"{band}_coefficients"])
            template = reader.read(f"{band}_correlation_template")
            xp[f"{band}_coefficient_correlations"] = np.tile(template, (n_stars, 1))
            xp[f"{band}_n_parameters"] = np.full(n_stars, xp_utils.N_COEFFICIENTS, np.int16)
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
    for band in xp_utils.XP_BANDS:
        for name in ("coefficients", "coefficient_errors", "coefficient_correlations"):
            columns[f"{band}_{name}"] = list(xp[f"{band}_{name}"][:n].astype(float))
        columns[f"{band}_n_parameters"] = xp[f"{band}_n_parameters"][:n]
        columns[f"{band}_n_relevant_bases"] = xp[f"{band}_n_parameters"][:n]
        columns[f"{band}_standard_deviation"] = np.ones(n)
    return pd.DataFrame(columns)


def whiten_one(flux, error, correlation):
    """Floors and whitening of one star by eigen-decomposition (arrays in FLUX_UNIT)."""
    matrix = np.eye(xp_utils.N_XP)
    matrix[np.tril_indices(xp_utils.N_XP, -1)] = correlation
    matrix = np.tril(matrix) + np.tril(matrix, -1).T
    cov = matrix * np.outer(error, error)
    for band_weight in (xp_utils.load_xp_basis().bp_weight, xp_utils.load_xp_basis().rp_weight):
        part = band_weight * flux
        cov += xp_utils.ZERO_POINT_ERROR**2 * np.outer(part, part)
    cov += xp_utils.COMMON_ERROR**2 * np.outer(flux, flux)
    cov += np.diag((xp_utils.PIXEL_ERROR * flux) ** 2)
    values, vectors = np.linalg.eigh(cov)
    return vectors.T / np.sqrt(np.maximum(values, xp_utils.EIGENVALUE_FLOOR))[:, None]


def gaiaxpy_times(xp, n, repeats):
    """Seconds per star: GaiaXPy's sampling alone, and with floors and whitening."""
    # GaiaXPy's progress bar goes to what standard output was when it was imported.
    with contextlib.redirect_stdout(io.StringIO()):
        import gaiaxpy

    def sample(table):
        with contextlib.redirect_stdout(io.StringIO()):
            return gaiaxpy.calibrate(
                table, sampling=xp_utils.XP_WAVELENGTHS, with_correlation=True, save_file=False
            )[0]

    table, single = gaiaxpy_table(xp, n), gaiaxpy_table(xp, 1)
    setup = best_time(lambda: sample(single), repeats)
    sampling = (best_time(lambda: sample(table), repeats) - setup) / (n - 1)
    out = sample(table)
    columns = (out["flux"], out["flux_error"], out["correlation"])

    def whiten_all():
        for flux, error, correlation in zip(*columns, strict=True):
            whiten_one(flux * 1e18, error * 1e18, correlation)

    return sampling, sampling + best_time(whiten_all, repeats) / n


def main(argv=None):
    args = parse_args(argv)
    try:
        xp = read_stars(args.stars, args.n)
    except ShardError as error:
        sys.stderr.write(f"bench_xp_sampling: {error}\n")
        return 2
    n_stars = len(xp["bp_coefficients"])
    metadata = {"norm_dg": np.full(n_stars, np.nan)}
    own = best_time(lambda: xp_utils.flux_vectors(xp, None, None, metadata), args.repeats)
    own /= n_stars
    print(f"XP sampling + covariance + floors + whitening, one core, {n_stars} stars")
    print(f"  xp_utils.flux_vectors              {1 / own:10.0f} stars/s")
    try:
        sampling, total = gaiaxpy_times(xp, min(args.n_loop, n_stars), max(1, args.repeats // 2))
    except ImportError:
        print("  (GaiaXPy is not installed: no comparison)")
        return 0
    print(f"  loop: GaiaXPy, sampling only       {1 / sampling:10.0f} stars/s")
    print(f"  loop: GaiaXPy + NumPy whitening    {1 / total:10.0f} stars/s")
    print(f"  ratio to the loop                  {total / own:10.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
