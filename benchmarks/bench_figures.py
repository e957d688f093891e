"""Speed and memory of the figures of a catalogue on one core.

    python benchmarks/bench_figures.py [--stars 2000000] [--keep FOLDER]

Makes a catalogue of made-up stars in a temporary folder (0.65 kB a star): dwarfs and giants of a
thin and a thick disc behind a layer of dust with clouds. Runs tools/plot_catalogue.py on it in
another process and prints rows a second, CPU seconds and the peak memory. --keep puts catalogue and
figures into a folder of yours. Takes about 2 minutes for 2 million stars, half of it to make them.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path

import common  # sets one thread
import healpy
import numpy as np

from pipeline.schema import Layout, resolved
from pipeline.select import shard_path
from pipeline.tallies.quantities import GALACTIC
from pipeline.write import ShardWriter

KIND, LAYOUT = "opt_output", Layout()
SHARDS = 12  # one a HEALPix base pixel


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stars", type=int, default=2_000_000, help="(%(default)s)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    return parser.parse_args(argv)


def places(n, rng):
    """Distances (n,) in kpc, heights above the plane, and unit vectors (n, 3) in the Galactic
    frame, of stars of two discs seen to some kpc."""
    thick = rng.random(n) < 0.2
    height = rng.laplace(0, np.where(thick, 0.8, 0.25))
    along = rng.gamma(2.0, 0.9, n)
    lon = rng.vonmises(0.0, 0.5, n)
    xyz = np.stack([along * np.cos(lon), along * np.sin(lon), height], 1)
    distance = np.linalg.norm(xyz, axis=1)
    return distance, height, xyz / distance[:, None], thick


def dust(distance, unit):
    """E (n,) and xi (n,): an exponential layer with waves in it, and a slow pattern."""
    x, y, z = unit.T
    layer = 0.12 * (1 - np.exp(-distance * np.abs(z) / 0.12)) / np.maximum(np.abs(z), 1e-3)
    waves = 1 + 0.5 * np.sin(9 * x + 4 * z) * np.sin(7 * y) + 0.4 * np.sin(31 * x - 17 * y + 23 * z)
    return np.maximum(0.35 * layer * np.maximum(waves, 0.05), 0.002), np.sin(3 * x) + np.cos(4 * y)


def types(distance, height, thick, rng):
    """Teff (kK), [Fe/H], log g (n,) on a main sequence and a giant branch, and M_G."""
    n = len(distance)
    giant = rng.random(n) < np.clip(0.08 + 0.25 * distance / 3, 0, 0.8)
    step = rng.beta(1.6, 2.2, n)  # along either
    feh = rng.normal(np.where(thick, -0.55, -0.08) - 0.1 * np.abs(height), 0.2)
    teff = np.where(giant, 5.1 - 1.3 * step - 0.15 * feh, 3.9 + 3.2 * step)
    logg = np.where(giant, 3.3 - 2.6 * step, 4.75 - 0.75 * step**1.5) + 0.1 * feh
    bright = np.where(giant, 2.2 - 4.5 * step, 8.5 - 6.0 * step - 0.5 * feh)
    clump = giant & (rng.random(n) < 0.4)
    teff = np.where(clump, 4.85 - 0.2 * feh, teff) + rng.normal(0, 0.04, n)
    logg = np.where(clump, 2.45, logg) + rng.normal(0, 0.08, n)
    return teff, feh, logg, np.where(clump, 0.5, bright)


def stars(n, seed=0):
    """Columns of made-up stars, as the schema says; of no use is 0."""
    rng = np.random.default_rng(seed)
    distance, height, unit, thick = places(n, rng)
    ext, xi = dust(distance, unit)
    teff, feh, logg, bright = types(distance, height, thick, rng)
    g = bright + 5 * np.log10(distance) + 10 + 2.4 * ext
    colour = 1.6 * (5.2 / teff) ** 1.7 - 0.75 + 1.3 * ext
    error = 10 ** (0.2 * (np.clip(g, 9, 18) - 14))
    table = {k: np.zeros((n, *d.shape), d.dtype) for k, d in resolved(KIND, LAYOUT).items()}
    x, y, z = GALACTIC.T @ unit.T
    table["ra"], table["dec"] = np.rad2deg(np.arctan2(y, x)) % 360, np.rad2deg(np.arcsin(z))
    size = np.array([0.04, 0.08, 0.12, 0.8, 0.03, 0.05]) * error[:, None]
    size[:, 3] = np.minimum(1.0, 0.3 / ext)
    size[:, 5] /= distance
    truth = np.stack([teff, feh, logg, xi, ext, 1 / distance], 1)
    found = truth + size * rng.normal(size=size.shape)
    found[:, 4:] = np.where(found[:, 4:] > 0, found[:, 4:], 0.3 * truth[:, 4:])
    table["stellar_params_est"], table["stellar_params_err"] = found, size
    for band, mag in (("g", g), ("bp", g + 0.45 * colour), ("rp", g - 0.55 * colour)):
        table[f"phot_{band}_mean_flux"] = 10 ** (-0.4 * (mag - LAYOUT.release.zero_points[band]))
    table["n_flux"][:] = 66
    table["chi2_opt"] = rng.chisquare(60, n)
    for name, hard in (("teff", 0.1), ("feh", 0.3), ("logg", 0.4)):
        table[f"{name}_confidence"] = np.clip(1 - hard * error * rng.random(n), 0, 1)
    low = {k: table[f"{k}_confidence"] < 0.5 for k in ("teff", "feh", "logg")}
    table["quality_flags"] = low["teff"] + 2 * low["feh"] + 4 * low["logg"]
    odd = rng.random(n) < 0.02 + 0.1 * np.exp(-np.abs(unit[:, 2]) / 0.05)
    table["quality_flags"] = table["quality_flags"].astype("u4") | (1024 * odd).astype("u4")
    return table


def write_catalogue(data_dir, n, seed=0):
    """Shards of step 10 of n made-up stars."""
    table = stars(n, seed)
    level = LAYOUT.release.healpix_level
    pixel = healpy.ang2pix(2**level, table["ra"], table["dec"], nest=True, lonlat=True)
    order = np.argsort(pixel, kind="stable")
    ids = (pixel[order].astype("i8") << LAYOUT.release.id_shift) + np.arange(n)
    cuts = np.searchsorted(pixel[order], np.arange(SHARDS + 1) * 4**level)
    for k in range(SHARDS):
        rows = order[cuts[k] : cuts[k + 1]]
        part = {name: values[rows] for name, values in table.items()}
        part[LAYOUT.release.id_column] = ids[cuts[k] : cuts[k + 1]]
        path = shard_path(data_dir, KIND, f"{k * 4**level:06d}-{(k + 1) * 4**level - 1:06d}")
        path.parent.mkdir(parents=True, exist_ok=True)
        attrs = {"script": "bench_figures", "labels": LAYOUT.labels.to_json()}
        attrs |= {"release": LAYOUT.release.name, "inputs": "[]"}
        with ShardWriter(path, len(rows), LAYOUT.release.id_column, attrs) as writer:
            writer.create_columns(resolved(KIND, LAYOUT))
            writer.write_table(part)


def main(argv=None):
    args = parse_args(argv)
    where = contextlib.nullcontext(args.keep) if args.keep else tempfile.TemporaryDirectory()
    with where as folder:
        folder, began = Path(folder), time.monotonic()
        write_catalogue(folder / "data", args.stars)
        print(f"{args.stars:,} made-up stars in {time.monotonic() - began:.0f} s")
        words = [
            "--data-dir",
            folder / "data",
            "--out",
            folder / "figures",
            "--direction",
            "30",
            "4",
        ]
        tool = [common.ROOT / "tools/plot_catalogue.py", *words]
        status, peak, cpu, wall = common.measured(tool)
        print(f"figures: {wall:.0f} s, {cpu:.0f} s of CPU: {args.stars / cpu:,.0f} stars/s of CPU")
        print(f"peak memory {peak:.2f} GB")
    return status


if __name__ == "__main__":
    sys.exit(main())
