#!/usr/bin/env python3
"""Step 4: match the Gaia sources to the unWISE catalogue.

    python match_unwise_gaia.py --unwise-dir /data/unwise/band-merged --data-dir data
    UNWISE_DIR=/data/unwise/band-merged python match_unwise_gaia.py --partition 100 7

Reads the metadata (step 2) and, of the folder of band-merged catalogue tiles `TILE.cat.fits`, those
that a source of the shard can lie in. The tile's name gives its place: 0000m016 is centred near
RA 0.0, Dec -1.6. Writes DATA_DIR/xp_unwise_match/xp_unwise_match_{fid}.h5, matched sources only,
in the order of the metadata:

  gdr3_source_id                           int64
  unwise_objid                             the catalogue's identifier (bytes)
  flux, dflux (N,2)                        W1, W2 in Vega nanomaggies (zero point 22.5 mag)
  qf, rchi2, fracflux (N,2)                quality of each band, as in the catalogue
  sep_arcsec                               separation at the epoch of unWISE

A Gaia source is moved by its proper motion from 2016.0 to UNWISE_EPOCH (one without a proper motion
is not moved) and takes the nearest primary detection within MAX_SEP_ARCSEC. An unWISE source is
given to one Gaia source only: the nearest of those that want it (of equally near ones the smaller
source_id). The others stay without a match: they get no second choice, because within half an
arcsecond WISE (6 arcsec beam) sees one blend, not two sources. Both sides are counted.

Sources that lie in no tile of the folder are counted and where they are is named, in the log and
the attribute `sources_in_no_tile`: the download is not complete. Give --tile-list, a text file with
the names of all tiles of the survey, to have the missing tiles themselves named. Tiles that arrive
or change later make the shards that need them stale, so running again does those.

Size: 60 bytes a match. Time: a tile of 80,000 sources is read in 0.1 s; matching 65,000 sources to
tiles in memory takes 0.2 s. Memory: --cache-mb for tiles (they are kept from shard to shard) and
0.3 GB. When it fails: the summary names the shard and the tile; fetch that tile again.
Exit status: 0 every selected shard is done, 1 some failed, 2 wrong usage or missing inputs.
"""

import argparse
import os
import re
import sys
import warnings
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import healpy
import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning
from scipy.spatial import cKDTree

from pipeline.errors import ShardError, UsageError
from pipeline.provenance import provenance
from pipeline.read import ShardReader
from pipeline.run import run_shards, setup_logging, usage_exit
from pipeline.schema import KINDS
from pipeline.select import add_shard_arguments, input_paths, select_fids, shard_path, used_kinds
from pipeline.write import ShardWriter

SCRIPT = "match_unwise_gaia"
GAIA_EPOCH = 2016.0  # Julian year of Gaia DR3 positions (ref_epoch)
# Mean epoch of the exposures in the unWISE catalogue, Julian year. It is made of five years of
# imaging (Schlafly, Meisner & Green 2019, ApJS 240, 30): two passes over the sky from 2010 January
# to 2011 February (middle 2010.5) and eight of NEOWISE-R from 2013 December to 2017 December
# (middle 2015.95), every half year, so (2 x 2010.5 + 8 x 2015.95) / 10.
UNWISE_EPOCH = 2014.9
MAX_SEP_ARCSEC = 0.5
# unWISE coadds are 2048 x 2048 pixels of 2.75 arcsec in tangent projection, axes along RA and Dec
# (Lang 2014, AJ 147, 108). Names give the centre to 0.1 deg, rounded towards some side.
TILE_HALF_WIDTH = 2048 * 2.75 / 3600 / 2  # deg, 0.782
NAME_ROUNDING = 0.1  # deg
MOTION_MARGIN = 0.01  # deg: 36 arcsec, the fastest star moves 11 in a year
TILE_NAME = re.compile(r"(\d{4})([pm])(\d{3})")
TILE_FILE = re.compile(rf"({TILE_NAME.pattern})\.cat\.fits(\.gz)?")
SINGLE_BAND_FILE = re.compile(rf"{TILE_NAME.pattern}\.(?:w?\d)\.cat\.fits(\.gz)?")
PAIR_COLUMNS = ("flux", "dflux", "qf", "rchi2", "fracflux")  # one value for W1, one for W2
SCALAR_COLUMNS = ("ra", "dec", "primary", "unwise_objid")
UNITS = {"flux": "Vega nanomaggy", "dflux": "Vega nanomaggy", "sep_arcsec": "arcsec"}
OBJID_TYPE = "S20"  # the catalogue's have 16 characters
SEARCH_NSIDE = 256  # pixels of 0.23 deg, by which tiles are looked up
CACHE_MB = 800
NAMED = 5  # missing places named in the log
TREE_BYTES = 60  # a source in a k-d tree: coordinates twice, index, nodes


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_shard_arguments(parser)
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


# ---- geometry --------------------------------------------------------------------------------


def unit_vectors(ra, dec) -> np.ndarray:
    """(n,3) unit vectors of positions in degrees."""
    ra, dec = np.deg2rad(ra), np.deg2rad(dec)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)


def local_axes(ra, dec) -> tuple[np.ndarray, np.ndarray]:
    """(n,3) unit vectors towards east and north at positions in degrees."""
    ra, dec = np.deg2rad(ra), np.deg2rad(dec)
    east = np.stack([-np.sin(ra), np.cos(ra), np.zeros_like(ra)], axis=-1)
    north = np.stack([-np.sin(dec) * np.cos(ra), -np.sin(dec) * np.sin(ra), np.cos(dec)], axis=-1)
    return east, north


def moved_vectors(ra, dec, pmra, pmdec, years) -> np.ndarray:
    """(n,3) unit vectors after `years` of proper motion.

    ra, dec in degrees; pmra (with the factor cos dec, as the archive's) and pmdec in mas/yr. Where
    either is missing the source stays. Linear in the tangent plane, right to 1e-9 rad for the
    fastest star over decades; works at the poles.
    """
    east, north = local_axes(ra, dec)
    known = np.isfinite(pmra) & np.isfinite(pmdec)
    shift = np.where(known, [pmra, pmdec], 0.0) * (years * np.deg2rad(1 / 3.6e6))  # (2, n) rad
    vectors = unit_vectors(ra, dec) + shift[0][:, None] * east + shift[1][:, None] * north
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def chord(degrees):
    """Distance of unit vectors that are this far apart on the sphere."""
    return 2 * np.sin(np.deg2rad(degrees) / 2)


def arcsec_of_chord(length) -> np.ndarray:
    return np.rad2deg(2 * np.arcsin(np.asarray(length) / 2)) * 3600


def tile_centre(name) -> tuple[float, float]:
    """RA, Dec in degrees that a tile's name gives, to NAME_ROUNDING."""
    ra, sign, dec = TILE_NAME.fullmatch(name).groups()
    return int(ra) / 10, int(dec) / 10 * (-1 if sign == "m" else 1)


# ---- tiles: which --------------------------------------------------------------------------


@dataclass
class TileIndex:
    """Names, files and centres of the T tiles, for looking up which of them hold given places.

    names: list of T; paths: {name: file}; vectors, east, north: (T,3); ra, dec in degrees.
    """

    names: list
    paths: dict
    vectors: np.ndarray = field(init=False)

    def __post_init__(self):
        centres = np.array([tile_centre(name) for name in self.names], float).reshape(-1, 2)
        self.vectors = unit_vectors(*centres.T)
        self.east, self.north = local_axes(*centres.T)
        self._tree = cKDTree(self.vectors) if len(self.names) else None

    def inside(self, tile, vectors) -> np.ndarray:
        """Rows of vectors (n,3) that can lie in a tile (its number), from its name alone.

        The square in the tangent plane at the centre that the name gives, with margins for the
        rounding of the name and proper motion.
        """
        half = np.tan(np.deg2rad(TILE_HALF_WIDTH + NAME_ROUNDING + MOTION_MARGIN))
        depth = vectors @ self.vectors[tile]
        in_front = depth > np.cos(np.deg2rad(2 * TILE_HALF_WIDTH))
        rows = np.flatnonzero(in_front)
        near, depth = vectors[rows], depth[rows]
        box = np.abs(near @ self.east[tile]) <= half * depth
        box &= np.abs(near @ self.north[tile]) <= half * depth
        return rows[box]

    def around(self, vectors) -> dict:
        """{tile number: rows of vectors (n,3) that can lie in it}, for tiles that have any.

        Tiles are looked up by the HEALPix pixels that hold the positions, so the cost does not
        depend on how many tiles there are.
        """
        if self._tree is None or not len(vectors):
            return {}
        pixels = np.unique(healpy.vec2pix(SEARCH_NSIDE, *vectors.T, nest=True))
        centres = np.stack(healpy.pix2vec(SEARCH_NSIDE, pixels, nest=True), axis=-1)
        reach = np.sqrt(2) * (TILE_HALF_WIDTH + NAME_ROUNDING + MOTION_MARGIN)
        reach += np.rad2deg(healpy.max_pixrad(SEARCH_NSIDE))
        found = self._tree.query_ball_point(centres, chord(reach))
        numbers = sorted(set().union(*found))
        rows = {number: self.inside(number, vectors) for number in numbers}
        return {number: inside for number, inside in rows.items() if len(inside)}


def index_tiles(folder) -> TileIndex:
    """Index of the band-merged tiles of a folder; UsageError where there is none."""
    if folder is None:
        raise UsageError("no folder of unWISE tiles: give --unwise-dir or set UNWISE_DIR")
    if not Path(folder).is_dir():
        raise UsageError(f"{folder}: no such folder; give --unwise-dir or set UNWISE_DIR")
    files = os.listdir(folder)
    paths = {m[1]: Path(folder) / m[0] for m in map(TILE_FILE.fullmatch, files) if m}
    if paths:
        return TileIndex(sorted(paths), paths)
    single = sorted(name for name in files if SINGLE_BAND_FILE.fullmatch(name))
    if single:
        raise UsageError(
            f"{folder}: holds single-band catalogues ({single[0]}, {len(single)} files); the "
            "band-merged ones, TILE.cat.fits, are needed: fetch the folder band-merged"
        )
    raise UsageError(f"{folder}: no TILE.cat.fits there, as 0000m016.cat.fits; check --unwise-dir")


def listed_tiles(path) -> TileIndex | None:
    """Index (without files) of the tile names in a text; UsageError where there are none."""
    if path is None:
        return None
    try:
        names = sorted({match[0] for match in TILE_NAME.finditer(path.read_text())})
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from error
    if not names:
        raise UsageError(f"{path}: no tile names in it, expected names like 0000m016")
    return TileIndex(names, {})


# ---- tiles: what is in them ------------------------------------------------------------------


@dataclass
class Tile:
    """The n primary detections of a tile.

    columns: unwise_objid (n,) and PAIR_COLUMNS (n,2), native byte order; tree: of their unit
    vectors, None where there is none.
    """

    columns: dict
    tree: cKDTree | None
    nbytes: int


def _tile_table(path) -> dict:
    """The columns that we use of a tile, as in the file (big-endian); ShardError for any fault."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        warnings.filterwarnings("error", ".*truncated.*", AstropyWarning)
        try:
            with fits.open(path, memmap=False) as hdus:
                data = hdus[1].data
                found = {name.lower() for name in data.names}
                missing = [c for c in (*SCALAR_COLUMNS, *PAIR_COLUMNS) if c not in found]
                if not missing:
                    table = {c: np.array(data[c]) for c in (*SCALAR_COLUMNS, *PAIR_COLUMNS)}
        except (OSError, ValueError, TypeError, IndexError, KeyError, AttributeError,
                EOFError, AstropyWarning) as error:  # fmt: skip
            raise ShardError(
                f"{path}: not a readable FITS table (truncated or damaged; {error}); fetch it again"
            ) from error
    single = "unwise_objid" in missing and "unwise_detid" in found
    single |= not missing and table["flux"].ndim == 1
    if missing or single:
        what = f"no column {', '.join(missing)}" if missing else "one flux per source"
        hint = "a single-band catalogue? " if single else ""
        raise ShardError(f"{path}: {what}; {hint}expected a band-merged TILE.cat.fits")
    return table


def read_tile(path) -> Tile:
    """The primary detections with a position of a tile file."""
    table = _tile_table(path)
    keep = (table["primary"] > 0) & np.isfinite(table["ra"]) & np.isfinite(table["dec"])
    columns = {"unwise_objid": table["unwise_objid"].astype("S")[keep]}
    for name in PAIR_COLUMNS:
        if table[name].shape[1:] != (2,):
            raise ShardError(f"{path}: {name} has shape {table[name].shape}, expected (n, 2)")
        columns[name] = table[name][keep].astype("f4")
    vectors = unit_vectors(table["ra"][keep].astype(float), table["dec"][keep].astype(float))
    tree = cKDTree(vectors, balanced_tree=False) if len(vectors) else None
    nbytes = sum(column.nbytes for column in columns.values()) + TREE_BYTES * len(vectors)
    return Tile(columns, tree, nbytes)


class TileCache:
    """The tiles last used, up to `max_bytes` of them (and always the last one)."""

    def __init__(self, index, max_bytes):
        self.index = index
        self.max_bytes = max_bytes
        self._tiles = OrderedDict()
        self._bytes = 0
        self.n_read = 0

    def get(self, name) -> Tile:
        """The tile of a name, read where it is not in memory."""
        if name in self._tiles:
            self._tiles.move_to_end(name)
            return self._tiles[name]
        tile = read_tile(self.index.paths[name])
        self.n_read += 1
        self._tiles[name] = tile
        self._bytes += tile.nbytes
        while self._bytes > self.max_bytes and len(self._tiles) > 1:
            self._bytes -= self._tiles.popitem(last=False)[1].nbytes
        return tile


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
    limit = np.nextafter(chord(MAX_SEP_ARCSEC / 3600), 1)  # the tree's bound is exclusive
    found, n_found = [], 0
    for number, rows in by_tile.items():
        tile = cache.get(cache.index.names[number])
        if tile.tree is None:
            continue
        distance, place = tile.tree.query(vectors[rows], distance_upper_bound=limit)
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
    columns["sep_arcsec"] = arcsec_of_chord(length[row]).astype("f4")
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
    position is in no tile.
    """

    source_id: np.ndarray
    vectors: np.ndarray
    by_tile: dict
    counts: dict


def read_sources(data_dir, fid, index) -> Sources:
    """The sources of a metadata shard."""
    with ShardReader(shard_path(data_dir, "metadata", fid), KINDS["metadata"].id_column) as reader:
        source_id = reader.source_id()
        table = reader.read_table(("ra", "dec", "pmra", "pmdec"))
    ra, dec, pmra, pmdec = (column.astype(float) for column in table.values())
    placed = np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90)
    vectors = np.zeros((len(ra), 3))
    motion = pmra[placed], pmdec[placed]
    years = UNWISE_EPOCH - GAIA_EPOCH
    vectors[placed] = moved_vectors(ra[placed], dec[placed], *motion, years)
    rows = np.flatnonzero(placed)
    by_tile = {k: rows[inside] for k, inside in index.around(vectors[placed]).items()}
    counts = {
        "sources": len(ra),
        "without a position": int((~placed).sum()),
        "without a proper motion (not moved)": int((~np.isfinite(pmra * pmdec)).sum()),
    }
    return Sources(source_id, vectors, by_tile, counts)


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
    pixels = np.unique(healpy.vec2pix(32, *sources.vectors[rows].T, nest=True))  # 1.8 deg
    places = zip(*healpy.pix2ang(32, pixels, nest=True, lonlat=True), strict=True)
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


def write_matches(output, sources, matches, made_by, attrs):
    """Write the matched sources, ordered as in the metadata."""
    n_rows = len(matches.row)
    with ShardWriter(output, n_rows, "gdr3_source_id", made_by, attrs) as writer:
        writer.create("gdr3_source_id", dtype="i8", description="Gaia DR3 source_id")
        writer.create("unwise_objid", dtype=OBJID_TYPE, description="unWISE catalogue")
        for name in PAIR_COLUMNS:
            writer.create(name, (2,), "f4", UNITS.get(name), f"unWISE catalogue {name}: W1, W2")
        text = f"nearest, at epoch {UNWISE_EPOCH}; one to one"
        writer.create("sep_arcsec", dtype="f4", units="arcsec", description=text)
        writer.write("gdr3_source_id", 0, sources.source_id[matches.row])
        if n_rows:
            writer.write_table(matches.columns)


def make_shard(fid, output, log, *, sources, cache, listed, inputs, argv) -> dict:
    """Write the matches of one shard; returns counters for the log."""
    matches = match(sources.source_id, sources.vectors, sources.by_tile, cache)
    rows, places = uncovered(sources, listed, cache.index)
    report_uncovered(fid, rows, places, listed, log)
    attrs = {
        "unwise_epoch": UNWISE_EPOCH,
        "max_sep_arcsec": MAX_SEP_ARCSEC,
        "n_tiles": len(sources.by_tile),
        "sources_in_no_tile": len(rows),
    }
    write_matches(output, sources, matches, provenance(SCRIPT, argv, inputs), attrs)
    counts = {**sources.counts, **matches.counts, "in no tile": len(rows)}
    return counts


class Step:
    """What the shards of a run share: the index of tiles, the cache, and the last shard read."""

    def __init__(self, args, argv):
        self.data_dir, self.argv = args.data_dir, argv
        index = index_tiles(args.unwise_dir)
        self.listed = listed_tiles(args.tile_list)
        self.cache = TileCache(index, args.cache_mb * 10**6)
        self._last = (None, None)

    def sources(self, fid) -> Sources:
        """The sources of a shard; asked for twice in a row, it is read once."""
        if self._last[0] != fid:
            self._last = (fid, read_sources(self.data_dir, fid, self.cache.index))
        return self._last[1]

    def inputs(self, fid) -> list[Path]:
        """The metadata shard and the tiles that its sources can lie in."""
        paths = input_paths(self.data_dir, fid, ["metadata"])
        index = self.cache.index
        return paths + [index.paths[index.names[k]] for k in self.sources(fid).by_tile]

    def process(self, fid, output, log) -> dict:
        return make_shard(
            fid,
            output,
            log,
            sources=self.sources(fid),
            cache=self.cache,
            listed=self.listed,
            inputs=self.inputs(fid),
            argv=self.argv,
        )


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
