"""Speed and memory of the reddening step on one core, with a Bayestar-like map of real resolution.

    python benchmarks/bench_reddening.py [--stars 65000]

Makes a map in Bayestar2019's format (nside 512 and 1024, 5 samples, 120 distances) for 1,300 square
degrees about the galactic anticentre, and SFD's two 4096 x 4096 images, in a temporary folder (1 GB
of memory, 0.4 GB of disk). Prints the rate of each map, beside 1,000 random distances a star from
the same posterior through the same map, and how far the results differ. The real Bayestar2019 has
some ten times as many pixels: more memory, but a shard touches only the few thousand under it.
Takes about 40 seconds.
"""

import os

# Before NumPy is loaded: one core, so that the figures are per core.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

import argparse
import logging
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from astropy import units
from astropy.coordinates import SkyCoord

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import query_reddening_gaia as step
from demo import dust_maps
from pipeline.read import ShardReader

LON, LAT = (160.0, 200.0), (0.0, 35.0)  # deg, of the map; the stars are 1 deg inside
N_DRAWS = 1000


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stars", type=int, default=65_000, help="(%(default)s)")
    parser.add_argument("--draw-stars", type=int, default=300, help="of the draws (%(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="(%(default)s)")
    return parser.parse_args(argv)


def in_patch(lon, lat):
    return (lon > LON[0]) & (lon < LON[1]) & (lat > LAT[0]) & (lat < LAT[1])


def make_maps(folder):
    """In a process of its own, so that its memory is not counted."""
    dust_maps.write_bayestar(folder, nside=512, keep=in_patch)
    dust_maps.write_sfd(folder, n=4096)


def make_stars(n):
    """RA, Dec (deg), parallax and error (mas): 90% with a parallax, some of them negative."""
    rng = np.random.default_rng(1)
    lon, lat = (rng.uniform(low + 1, high - 1, n) for low, high in (LON, LAT))
    place = SkyCoord(lon * units.deg, lat * units.deg, frame="galactic").icrs
    plx_err = 10 ** rng.uniform(-1.7, -0.3, n)
    plx = rng.normal(1 / rng.gamma(3, 1.0, n), plx_err)
    plx[::10] = np.nan
    return place.ra.deg, place.dec.deg, plx, plx_err


def best_time(function, repeats):
    """Shortest wall time of several calls, seconds, and the last result."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return min(times), result


def query_all(maps, stars):
    """As the step does: chunk by chunk."""
    chunks = []
    for start in range(0, len(stars[0]), step.CHUNK_STARS):
        part = (column[start : start + step.CHUNK_STARS] for column in stars)
        chunks.append(step.query_maps(maps, *part))
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def by_draws(query, stars):
    """Mean and sigma of N_DRAWS random distances a star and all samples, star by star."""
    rng = np.random.default_rng(2)
    out = []
    for ra, dec, plx, plx_err in zip(*stars, strict=True):
        galactic = SkyCoord(ra * units.deg, dec * units.deg).galactic
        levels = rng.random(N_DRAWS)
        distance = step.distance_quantiles(np.array([plx]), np.array([plx_err]), levels)[0]
        lon, lat = (np.full(N_DRAWS, angle.deg) for angle in (galactic.l, galactic.b))
        place = SkyCoord(
            lon * units.deg, lat * units.deg, distance=distance * units.kpc, frame="galactic"
        )
        samples = query(place, mode="samples")
        out.append((samples.mean(), samples.std()))
    return np.array(out).T


def main(argv=None):
    args = parse_args(argv)
    stars = make_stars(args.stars)
    with tempfile.TemporaryDirectory() as folder:
        child = multiprocessing.get_context("spawn").Process(target=make_maps, args=(folder,))
        child.start()
        child.join()
        options = step.parse_args(["--dustmaps-dir", folder])
        log = logging.getLogger("bench")
        with ShardReader(Path(folder) / step.BAYESTAR_FILE) as reader:
            n_pixels = len(reader.read("pixel_info"))
        loading, bayestar = best_time(lambda: step.open_map("bayestar", options, log), 1)
        maps = {name: step.open_map(name, options, log) for name in ("sfd", "bh")}
    elapsed, found = best_time(lambda: query_all({"bayestar": bayestar}, stars), args.repeats)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    few = [column[: args.draw_stars] for column in stars]
    drawing, (mean, sigma) = best_time(lambda: by_draws(bayestar, few), 1)
    drawing /= args.draw_stars
    n = len(stars[0])
    print(f"Reddening, one core: {n} stars, Bayestar-like map of {n_pixels} pixels")
    print(f"  loading the map                    {loading:10.1f} s")
    print(f"  bayestar                           {n / elapsed:10.0f} stars/s ({elapsed:.1f} s)")
    for name, query in maps.items():
        seconds = best_time(lambda query=query, name=name: query_all({name: query}, stars), 1)[0]
        print(f"  {name:<9s}                          {n / seconds:10.0f} stars/s")
    print(f"  {N_DRAWS} draws a star                 {1 / drawing:10.0f} stars/s")
    print(f"  ratio                              {drawing * n / elapsed:10.1f}")
    for name, drawn in (("E_mean_bayestar", mean), ("E_sigma_bayestar", sigma)):
        difference = np.abs(found[name][: args.draw_stars] / drawn - 1)
        print(f"  {name:<17s} - draws: 90% within {np.percentile(difference, 90):.2%}, "
              f"99% within {np.percentile(difference, 99):.2%}")  # fmt: skip
    print(f"  peak memory, the map included      {peak:10.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
