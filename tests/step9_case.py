"""A small made-up data directory for the tests of step 9, and its command line."""

import h5py
import numpy as np

import gen_xp_input_allsources as step
from pipeline.read import ShardReader
from pipeline.schema import XP_BANDS
from pipeline.schema.columns import PASSED
from pipeline.select import shard_path
from pipeline.write import ShardWriter

FIDS = ("000000-000009", "000010-000019", "000020-000029")
N_STARS = 40  # in each shard
PHOT_COLUMNS = tuple(column.name for column in PASSED if column.name.startswith("phot_"))


def random_spectra(n, rng):
    """XP columns with weak random correlations, so that every star differs."""
    xp = {}
    for band in XP_BANDS:
        coefficients = rng.normal(size=(n, 55))
        coefficients[:, 0] += 30
        xp[f"{band}_coefficients"] = coefficients
        xp[f"{band}_coefficient_errors"] = rng.uniform(0.01, 0.02, (n, 55)).astype("f4")
        correlations = rng.uniform(-0.03, 0.03, (n, 1485))
        xp[f"{band}_coefficient_correlations"] = correlations.astype("f4")
        xp[f"{band}_n_parameters"] = np.full(n, 55, "i2")
        xp[f"{band}_standard_deviation"] = np.ones(n, "f4")
    return xp


def make_tables(fid, n, seed):
    """{kind: table} of one shard. 2MASS lacks every third star, unWISE every other."""
    rng = np.random.default_rng(seed)
    first = int(fid[:6]) << 43
    ids = np.sort(first + rng.choice(10**6, n, replace=False) * 128)
    metadata = {"source_id": ids, "ra": rng.uniform(0, 360, n), "dec": rng.uniform(-90, 90, n)}
    metadata |= {"parallax": rng.uniform(0.1, 5, n), "parallax_error": np.full(n, 0.1, "f4")}
    metadata |= {"norm_dg": np.where(np.arange(n) % 4, -20, np.nan), "ruwe": np.ones(n, "f4")}
    metadata |= {name: rng.uniform(1e3, 1e5, n) for name in PHOT_COLUMNS}
    metadata["fidelity_v2"] = np.linspace(0.2, 1, n, dtype="f4")
    near = np.arange(n) % 3 > 0
    tmass = {"gdr3_source_id": ids[near], "ph_qual": np.full(near.sum(), b"AAA")}
    for band in ("j", "h", "ks"):
        tmass[f"{band}_m"] = rng.uniform(9, 13, near.sum())
        tmass[f"{band}_msigcom"] = np.full(near.sum(), 0.03)
    wise = np.arange(n) % 2 == 0
    shape = (int(wise.sum()), 2)
    unwise = {"gdr3_source_id": ids[wise], "flux": rng.uniform(1e3, 1e5, shape)}
    unwise |= {"dflux": np.full(shape, 10.0), "qf": np.ones(shape), "fracflux": np.ones(shape)}
    unwise |= {"sep_arcsec": np.full(shape[0], 0.1)}
    xp = {"source_id": ids, **random_spectra(n, rng)}
    return {"xp": xp, "metadata": metadata, "tmass": tmass, "unwise": unwise}


def write_table(data_dir, kind, fid, table):
    """One shard; the spectra are written as a foreign file is, without our markers."""
    path = shard_path(data_dir, kind, fid)
    id_column = next(name for name in table if name.endswith("source_id"))
    with ShardWriter(path, len(table[id_column]), id_column, {}) as writer:
        writer.write_table(table)
    if kind == "xp":
        with h5py.File(path, "r+") as file:
            for name in list(file.attrs):
                del file.attrs[name]


def write_sky(data_dir, tables_of):
    for fid, tables in tables_of.items():
        for kind, table in tables.items():
            write_table(data_dir, kind, fid, table)
    return data_dir


def all_tables():
    """{fid: {kind: table}} of three shards."""
    return {fid: make_tables(fid, N_STARS, seed) for seed, fid in enumerate(FIDS)}


def run(data_dir, *options):
    return step.main(["--data-dir", str(data_dir), *options])


def output(data_dir, fid=FIDS[0]):
    return shard_path(data_dir, "opt_input", fid)


def datasets(path):
    with ShardReader(path) as reader:
        return {name: reader.read(name) for name in reader.columns}


def by_id(path):
    """The datasets of a file in the order of the ids."""
    table = datasets(path)
    order = np.argsort(table["gdr3_source_id"])
    return {name: array[order] for name, array in table.items()}
