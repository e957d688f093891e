"""Archives with canned answers, on loopback, and what they are asked about: for benchmarks of what
steps 2 to 4 do themselves."""

import contextlib
import sys
from types import SimpleNamespace

import common
import numpy as np
from bench_conversion import FID
from bench_matching import make_patch

sys.path.insert(0, str(common.ROOT / "tests"))

from tap_case import archive_schema, gaia_table
from tap_stub import TapStub

import query_2mass
import query_xp_metadata
from pipeline.schema import load_release
from pipeline.select import shard_path
from pipeline.write import ShardWriter

TILES, DETECTIONS = 54, 80_000  # around the sources of a shard, and in a tile
WITH_2MASS = 0.9  # of the sources
LAST_PIXEL = int(FID.split("-")[1])
SOON = ("--poll", 0.1, "--pace", 0)  # these archives are in no hurry


def ids_of_shard(n, rng):
    """n ids in the pixels of the shard FID, ascending."""
    return np.unique(rng.integers(1, (LAST_PIXEL + 1) << 43, 2 * n))[::2][:n]


def tmass_table(ids, rng):
    """What the archive would answer about 2MASS, {column: (n,) masked array}."""
    n, there = len(ids), rng.random(len(ids)) < WITH_2MASS
    names = np.where(there, [f"{k:08d}+{k:07d} " for k in range(n)], "")
    table = {"ext_key": np.ma.array(np.zeros(n), mask=True), "source_id": np.ma.array(ids)}
    for name in ("designation", "original_ext_source_id"):
        table[name] = np.ma.array(names)
    for name, column in query_2mass.question(load_release()).columns.items():
        if np.dtype(column.dtype).kind == "f" and name not in table:
            table[name] = np.ma.array(rng.uniform(0, 15, n).astype(column.dtype), mask=~there)
    return {"ph_qual": np.ma.array(np.where(there, "AAB", ""))} | table


def lay_out(folder, n, few):
    """Of n sources, and of the first few of them: {number: data directory of a shard of ids}, the
    tables of their metadata and 2MASS answers, and the folder of tiles around them all."""
    rng, tiles = np.random.default_rng(0), folder / "tiles"
    tiles.mkdir()
    patch = SimpleNamespace(sources=n, tiles=TILES, detections=DETECTIONS)
    ra, dec, *_ = make_patch(tiles, patch, rng)
    ids = ids_of_shard(n, rng)
    place = {"ra": np.ma.array(ra), "dec": np.ma.array(dec)}
    tables = {"metadata": gaia_table(ids) | place, "tmass": tmass_table(ids, rng)}
    data = {m: folder / f"asked_{m}" for m in (few, n)}
    for m, path in data.items():
        with ShardWriter(shard_path(path, "xp", FID), m, "source_id", {}) as writer:
            writer.write("source_id", 0, ids[:m])
    return data, tables, tiles


@contextlib.contextmanager
def archives(tables):
    """{kind: URL of an archive that answers so}."""
    asked = {"metadata": query_xp_metadata, "tmass": query_2mass}
    with contextlib.ExitStack() as stack:
        urls = {}
        for kind, table in tables.items():
            schema = archive_schema(asked[kind].question(load_release()))
            urls[kind] = stack.enter_context(TapStub(table, schema=schema)).url
        yield urls
