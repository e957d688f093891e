"""Speed and memory of the unWISE matching on one core, checked against a strip-by-strip oracle.

    python benchmarks/bench_matching.py [--sources 65000] [--tiles 40] [--detections 80000]

Makes a patch of sky of synthetic tiles in a temporary folder (1 GB by default), with a counterpart
within 0.5 arcsec for 80% of the sources and unrelated detections for the rest. Prints the time to
read a tile, the CPU of reading and matching, the rate of matching once the tiles are in memory,
beside comparing each source with all detections in its strip of 0.5 arcsec in Dec (which is the
oracle of the result), the cost of 18,000 more tiles in the folder, and the peak memory. Takes about
20 seconds.
"""

import os

# Before NumPy is loaded: one core, so that the figures are per core.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import healpy

import match_unwise_gaia as step
from demo.unwise_tiles import N_RINGS, RING_STEP, ring_size, tile_name, tile_of, write_tile
from pipeline.schema import load_release
from pipeline.sphere import arcsec_of_chord, chord, moved_vectors, unit_vectors
from pipeline.unwise_tiles import TileCache, index_tiles

ALL_TILES = 10**10  # bytes: they all stay in memory
FIRST_RING, FIRST_NUMBER, ROWS = 5, 100, 8  # the patch: 8 rings of tiles from Dec 7.6


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sources", type=int, default=65_000, help="(%(default)s)")
    parser.add_argument("--tiles", type=int, default=40, help="(%(default)s)")
    parser.add_argument("--detections", type=int, default=80_000, help="a tile (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="(%(default)s)")
    return parser.parse_args(argv)


def make_patch(folder, args, rng):
    """Write the tiles; returns RA and Dec of the sources and of all detections."""
    columns = -(-args.tiles // ROWS)
    size = np.array([columns, ROWS]) * RING_STEP
    corner = np.array([FIRST_NUMBER, FIRST_RING]) * RING_STEP
    ra, dec = (corner + size * rng.random((args.sources, 2))).T
    n_near = int(0.8 * args.sources)
    n_far = args.tiles * args.detections - n_near
    shift = rng.normal(0, 0.15 / 3600, (2, n_near))
    near = ra[:n_near] + shift[0] / np.cos(np.deg2rad(dec[:n_near])), dec[:n_near] + shift[1]
    far = (corner + size * rng.random((n_far, 2))).T
    all_ra, all_dec = np.concatenate([near[0], far[0]]), np.concatenate([near[1], far[1]])
    ring, number = tile_of(all_ra, all_dec)
    order = np.lexsort((number, ring))
    place = np.stack([ring, number], axis=1)[order]
    cuts = np.flatnonzero(np.any(place[1:] != place[:-1], axis=1)) + 1
    for rows in np.split(order, cuts):
        name = tile_name(int(ring[rows[0]]), int(number[rows[0]]))
        sources = {"ra": all_ra[rows], "dec": all_dec[rows], "flux": np.ones((len(rows), 2))}
        write_tile(folder, name, sources)
    order = np.argsort(healpy.ang2pix(4096, ra, dec, nest=True, lonlat=True))
    return ra[order], dec[order], all_ra, all_dec  # a shard is sorted along nested pixels


def strip_oracle(ra, dec, all_ra, all_dec):
    """{source row: separation (arcsec)}, comparing with all detections in a strip of Dec."""
    order = np.argsort(all_dec)
    sorted_dec, vectors = all_dec[order], unit_vectors(all_ra, all_dec)[order]
    radius = step.MAX_SEP_ARCSEC / 3600
    low = np.searchsorted(sorted_dec, dec - 1.01 * radius)
    high = np.searchsorted(sorted_dec, dec + 1.01 * radius)
    limit, rivals = chord(radius), {}
    for row, vector in enumerate(unit_vectors(ra, dec)):
        length = np.sqrt(((vectors[low[row] : high[row]] - vector) ** 2).sum(axis=1))
        if len(length) and length.min() <= limit:
            rivals.setdefault(low[row] + int(length.argmin()), []).append((length.min(), row))
    won = [min(group) for group in rivals.values()]
    return {row: float(arcsec_of_chord(length)) for length, row in won}


def best_time(function, repeats):
    """Shortest wall time of several calls, seconds, and the last result."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return min(times), result


def time_extra_tiles(folder, vectors, repeats):
    """Seconds to index the folder and to look tiles up, with the names of the whole sky in it."""
    for ring in range(-N_RINGS, N_RINGS + 1):
        for number in range(ring_size(ring)):
            (folder / f"{tile_name(ring, number)}.cat.fits").touch()
    indexing, index = best_time(lambda: index_tiles(folder), 1)
    return len(index.names), indexing, best_time(lambda: index.around(vectors), repeats)[0]


def main(argv=None):
    args = parse_args(argv)
    rng, release = np.random.default_rng(1), load_release()
    years = step.UNWISE_EPOCH - release.reference_epoch
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ra, dec, all_ra, all_dec = make_patch(folder, args, rng)
        cache = TileCache(index_tiles(folder), ALL_TILES, step.catalogue_datasets(release))
        still = np.zeros(len(ra))
        start = time.process_time()
        reading, _ = best_time(lambda: [cache.get(tile) for tile in cache.index.names], 1)
        reading_cpu = time.process_time() - start
        n_tiles = len(cache.index.names)

        def match_all():
            vectors = moved_vectors(ra, dec, still, still, years)
            by_tile = cache.index.around(vectors)
            return step.match(np.arange(len(ra)), vectors, by_tile, cache)

        start = time.process_time()
        matching, matches = best_time(match_all, args.repeats)
        whole = reading_cpu + (time.process_time() - start) / args.repeats
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        brute, expected = best_time(lambda: strip_oracle(ra, dec, all_ra, all_dec), 1)
        found = dict(zip(matches.row.tolist(), matches.columns["sep_arcsec"], strict=True))
        same = found.keys() == expected.keys() and all(
            abs(found[row] - expected[row]) < 1e-4 for row in expected
        )
        vectors = unit_vectors(ra, dec)
        lookup = best_time(lambda: cache.index.around(vectors), args.repeats)[0]
        n_more, indexing, lookup_more = time_extra_tiles(folder, vectors, args.repeats)
    print(f"unWISE matching, one core: {len(ra)} sources, {n_tiles} tiles, "
          f"{len(all_ra)} detections, {len(matches.row)} matches")  # fmt: skip
    print(f"  tiles in memory                    {len(ra) / matching:10.0f} sources/s")
    print(f"  strip-by-strip comparison          {len(ra) / brute:10.0f} sources/s")
    print(f"  ratio                              {brute / matching:10.1f}")
    print(f"  same result as the comparison      {'yes' if same else 'NO':>10s}")
    print(f"  reading a tile                     {reading / n_tiles:10.3f} s")
    print(f"  of CPU, reading each tile once     {1e6 * whole / len(ra):10.1f} us a source")
    print(f"  looking up tiles of {n_tiles:6d}         {lookup:10.3f} s a shard")
    print(f"  looking up tiles of {n_more:6d}         {lookup_more:10.3f} s a shard")
    print(f"  indexing the folder of {n_more:6d}      {indexing:10.3f} s a run")
    print(f"  peak memory, all tiles kept        {peak:10.0f} MB")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
