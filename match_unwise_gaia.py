#!/usr/bin/env python3
"""Step 4: match the Gaia sources to the unWISE catalogue.

    python match_unwise_gaia.py --unwise-dir /data/unwise/band-merged --data-dir data
    UNWISE_DIR=/data/unwise/band-merged python match_unwise_gaia.py --partition 100 7

Reads the metadata (step 2) and, of the folder of band-merged catalogue tiles `TILE.cat.fits`, those
that a source of the shard can lie in. The tile's name gives its place: 0000m016 is centred near
RA 0.0, Dec -1.6. Writes DATA_DIR/xp_unwise_match/xp_unwise_match_{fid}.h5, matched sources only,
in the order of the metadata: the datasets listed below, which tables/bands.toml declares; all but
the ids and the separation are columns of the catalogue, under its names.

A Gaia source is moved by its proper motion from the release's epoch to UNWISE_EPOCH (one without a
proper motion is not moved) and takes the nearest primary detection within MAX_SEP_ARCSEC. An unWISE
source is given to one Gaia source only: the nearest of those that want it (of equally near ones the
smaller source_id). The others stay without a match: they get no second choice, because within half
an arcsecond WISE (6 arcsec beam) sees one blend, not two sources. Both sides are counted.

Sources that lie in no tile of the folder are counted and where they are is named, in the log and
the attribute `sources_in_no_tile`: the download is not complete. Give --tile-list, a text file with
the names of all tiles of the survey, to have the missing tiles themselves named. Tiles that arrive
or change later make the shards that need them stale, so running again does those.

When it fails: the summary names the shard and the tile; fetch that tile again.
Exit status: 0 every selected shard is done, 1 some failed, 2 wrong usage or missing inputs.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import healpy
import numpy as np

from pipeline.provenance import Seen, provenance, see
from pipeline.read import open_shard
from pipeline.run import run_shards, setup_logging, usage_exit
from pipeline.schema import KINDS, Layout, resolved
from pipeline.select import (
    add_release_argument,
    add_shard_arguments,
    input_paths,
    select_fids,
    shard_path,
    step_parser,
    used_kinds,
)
from pipeline.sphere import arcsec_of_chord, moved_vectors
from pipeline.unwise_tiles import TileCache, index_tiles, listed_tiles
from pipeline.write import ShardWriter

SCRIPT = "match_unwise_gaia"
# Mean epoch of the exposures in the unWISE catalogue, Julian year. It is made of five years of
# imaging (Schlafly, Meisner & Green 2019, ApJS 240, 30): two passes over the sky from 2010 January
# to 2011 February (middle 2010.5) and eight of NEOWISE-R from 2013 December to 2017 December
# (middle 2015.95), every half year, so (2 x 2010.5 + 8 x 2015.95) / 10.
UNWISE_EPOCH = 2014.9
MAX_SEP_ARCSEC = 0.5
SEPARATION = "sep_arcsec"  # the dataset that is not a column of the catalogue
PLACES_NSIDE = 32  # pixels of 1.8 deg, by which places without a tile are named
CACHE_MB = 800
NAMED = 5  # missing places named in the log


def parse_args(argv=None):
    parser = step_parser(__doc__, "unwise")
    add_shard_arguments(parser)
    add_release_argument(parser)
    parser.add_argument(
        "--unwise-dir",
        type=Path,
        default=os.environ.get("UNWISE_DIR"),
        help="folder of TILE.cat.fits (default: the environment variable UNWISE_DIR)",
    )
    parser.add_argument("--tile-list", type=Path, help="text with the names of all tiles")
    parser.add_argument(
        "--cache-mb", type=int, default=CACHE_MB, help="memory for tiles (default: %(default)s)"
    )
    return parser.parse_args(argv)


def catalogue_datasets(release):
    """The datasets that are columns of the catalogue."""
    datasets = resolved("unwise", Layout(release))
    ours = (KINDS["unwise"].id_column(release), SEPARATION)
    return datasets.only([name for name in datasets if name not in ours])


# ---- matching --------------------------------------------------------------------------------


@dataclass
class Matches:
    """The matches of n sources: row (m,) of the sources, ascending; columns: dict of (m, ...).

    counts: what became of the sources.
    """

    row: np.ndarray
    columns: dict
    counts: dict


def nearest_detections(vectors, by_tile, cache):
    """The nearest detection of each source within MAX_SEP_ARCSEC, over all tiles.

    vectors (n,3); by_tile: {tile number: rows of the sources in it}. Returns for each source the
    chord length (n,) (inf: none), a key (n,) of the detection (-1: none), and the detections
    found: dict of (d, ...) columns which the keys number.
    """
    length = np.full(len(vectors), np.inf)
    key = np.full(len(vectors), -1)
    found, n_found = [], 0
    for number, rows in by_tile.items():
        tile = cache.get(cache.index.names[number])
        distance, place = tile.places.nearest(vectors[rows], MAX_SEP_ARCSEC / 3600)
        better = distance < length[rows]
        rows, place = rows[better], place[better]
        length[rows] = distance[better]
        used, inverse = np.unique(place, return_inverse=True)
        key[rows] = n_found + inverse
        n_found += len(used)
        found.append({name: column[used] for name, column in tile.columns.items()})
    names = found[0] if found else ()
    return length, key, {name: np.concatenate([part[name] for part in found]) for name in names}


def one_to_one(length, key, source_id) -> np.ndarray:
    """(n,) bool: the sources that get their detection, the nearest of those with the same key."""
    rows = np.flatnonzero(key >= 0)
    order = rows[np.lexsort((source_id[rows], length[rows], key[rows]))]
    first = np.ones(len(order), bool)
    first[1:] = key[order][1:] != key[order][:-1]
    won = np.zeros(len(key), bool)
    won[order[first]] = True
    return won


def match(source_id, vectors, by_tile, cache) -> Matches:
    """Match n sources (ids, unit vectors at the unWISE epoch) to the tiles they can lie in."""
    length, key, detections = nearest_detections(vectors, by_tile, cache)
    won = one_to_one(length, key, source_id)
    row = np.flatnonzero(won)
    columns = {name: column[key[row]] for name, column in detections.items()}
    columns[SEPARATION] = arcsec_of_chord(length[row]).astype("f4")
    lost = (key >= 0) & ~won
    counts = {
        "matched": len(row),
        "contested unWISE sources": len(np.unique(key[lost])),
        "sources that lost theirs to a nearer one": int(lost.sum()),
    }
    return Matches(row, columns, counts)


# ---- the step --------------------------------------------------------------------------------


@dataclass
class Sources:
    """The sources of a shard: id (n,), unit vectors (n,3) at the unWISE epoch, counts for the log.

    by_tile: {tile number: rows that can lie in it}; vectors are NaN-free: a source without a
    position is in no tile. file: the metadata shard, as it was `Seen`.
    """

    source_id: np.ndarray
    vectors: np.ndarray
    by_tile: dict
    counts: dict
    file: Seen


def read_sources(data_dir, fid, index, release) -> Sources:
    """The sources of a metadata shard."""
    file = see(*input_paths(data_dir, fid, ["metadata"]))
    with open_shard(data_dir, "metadata", fid, release) as reader:
        reader.check(resolved("metadata", Layout(release)))
        source_id = reader.source_id()
        table = reader.read_table(("ra", "dec", "pmra", "pmdec"))
    ra, dec, pmra, pmdec = (column.astype(float) for column in table.values())
    placed = np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90)
    vectors = np.zeros((len(ra), 3))
    motion = pmra[placed], pmdec[placed]
    years = UNWISE_EPOCH - release.reference_epoch
    vectors[placed] = moved_vectors(ra[placed], dec[placed], *motion, years)
    rows = np.flatnonzero(placed)
    by_tile = {k: rows[inside] for k, inside in index.around(vectors[placed]).items()}
    counts = {
        "sources": len(ra),
        "without a position": int((~placed).sum()),
        "without a proper motion (not moved)": int((~np.isfinite(pmra * pmdec)).sum()),
    }
    return Sources(source_id, vectors, by_tile, counts, file)


def uncovered(sources, listed, index) -> tuple[np.ndarray, list[str]]:
    """Rows of sources that lie in no tile, and the missing tiles (with a list) or their places."""
    covered = np.zeros(len(sources.source_id), bool)
    for rows in sources.by_tile.values():
        covered[rows] = True
    rows = np.flatnonzero(~covered & (sources.vectors != 0).any(axis=1))
    if listed is not None:
        placed = sources.vectors[(sources.vectors != 0).any(axis=1)]
        wanted = {listed.names[number] for number in listed.around(placed)}
        return rows, sorted(wanted - set(index.paths))
    pixels = np.unique(healpy.vec2pix(PLACES_NSIDE, *sources.vectors[rows].T, nest=True))
    places = zip(*healpy.pix2ang(PLACES_NSIDE, pixels, nest=True, lonlat=True), strict=True)
    return rows, [f"RA {ra:.1f} Dec {dec:+.1f}" for ra, dec in places]


def report_uncovered(fid, rows, places, listed, log):
    """Log the sources in no tile and what is missing."""
    if not len(rows) and not places:
        return
    names = ", ".join(places[:NAMED]) + (" ..." if len(places) > NAMED else "")
    what = "missing tiles" if listed is not None else "around"
    log.warning(
        "%s: %d sources in no tile of the folder; %s: %s", fid, len(rows), what, names or "none"
    )
    log.info("%s: %s: %s", fid, what, ", ".join(places))


def write_matches(output, sources, matches, release, made_by, attrs):
    """Write the matched sources, ordered as in the metadata."""
    id_column = KINDS["unwise"].id_column(release)
    with ShardWriter(output, len(matches.row), id_column, made_by, attrs) as writer:
        writer.create_columns(resolved("unwise", Layout(release)))
        writer.write(id_column, 0, sources.source_id[matches.row])
        if len(matches.row):
            writer.write_table(matches.columns)


class Step:
    """What the shards of a run share: the index of tiles, the cache, and the last shard read."""

    def __init__(self, args, argv):
        self.data_dir, self.release, self.argv = args.data_dir, args.release, argv
        index = index_tiles(args.unwise_dir)
        self.listed = listed_tiles(args.tile_list)
        datasets = catalogue_datasets(self.release)
        self.cache = TileCache(index, args.cache_mb * 10**6, datasets)
        self._last = (None, None)

    def sources(self, fid) -> Sources:
        """The sources of a shard; asked for twice in a row, it is read once."""
        if self._last[0] != fid:
            self._last = (fid, read_sources(self.data_dir, fid, self.cache.index, self.release))
        return self._last[1]

    def inputs(self, fid) -> list[Path]:
        """The metadata shard and the tiles that its sources can lie in."""
        paths = input_paths(self.data_dir, fid, ["metadata"])
        index = self.cache.index
        return paths + [index.paths[index.names[k]] for k in self.sources(fid).by_tile]

    def process(self, fid, output, log) -> dict:
        """Write the matches of one shard; returns counters for the log."""
        sources, cache = self.sources(fid), self.cache
        matches = match(sources.source_id, sources.vectors, sources.by_tile, cache)
        rows, places = uncovered(sources, self.listed, cache.index)
        report_uncovered(fid, rows, places, self.listed, log)
        attrs = {
            "unwise_epoch": UNWISE_EPOCH,
            "max_sep_arcsec": MAX_SEP_ARCSEC,
            "n_tiles": len(sources.by_tile),
            "sources_in_no_tile": len(rows),
        }
        tiles = [cache.seen[cache.index.names[k]] for k in sources.by_tile]
        made_by = provenance(SCRIPT, self.argv, [sources.file, *tiles], self.release)
        write_matches(output, sources, matches, self.release, made_by, attrs)
        return {**sources.counts, **matches.counts, "in no tile": len(rows)}


@usage_exit
def main(argv=None) -> int:
    args = parse_args(argv)
    used_kinds(args.data_dir, ["metadata"])
    fids = select_fids(args, "metadata")
    step = Step(args, argv)
    log = setup_logging(SCRIPT, args.log, args)
    status = run_shards(
        SCRIPT,
        args,
        fids,
        inputs_of=step.inputs,
        output_of=lambda fid: shard_path(args.data_dir, "unwise", fid),
        process=step.process,
        log=log,
    )
    log.info("%d tiles in %s, %d read", len(step.cache.index.names), args.unwise_dir,
             step.cache.n_read)  # fmt: skip
    return status


if __name__ == "__main__":
    sys.exit(main())
