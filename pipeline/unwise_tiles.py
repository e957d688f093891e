"""Tiles of the band-merged unWISE catalogue: which of them hold given places, and what is in them.

A tile is a file `TILE.cat.fits`, whose name gives its place: 0000m016 is centred near RA 0.0,
Dec -1.6.
"""

import gzip
import io
import os
import re
import warnings
import zlib
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import healpy
import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning
from scipy.spatial import cKDTree

from pipeline.errors import ShardError, UsageError
from pipeline.fits_columns import TableColumns
from pipeline.nearest import Places
from pipeline.provenance import see
from pipeline.sphere import chord, local_axes, unit_vectors

# unWISE coadds are 2048 x 2048 pixels of 2.75 arcsec in tangent projection, axes along RA and Dec
# (Lang 2014, AJ 147, 108). Names give the centre to 0.1 deg, rounded towards some side.
TILE_HALF_WIDTH = 2048 * 2.75 / 3600 / 2  # deg, 0.782
NAME_ROUNDING = 0.1  # deg
MOTION_MARGIN = 0.01  # deg: 36 arcsec, the fastest star moves 11 in a year
TILE_NAME = re.compile(r"(\d{4})([pm])(\d{3})")
TILE_FILE = re.compile(rf"({TILE_NAME.pattern})\.cat\.fits(\.gz)?")
SINGLE_BAND_FILE = re.compile(rf"{TILE_NAME.pattern}\.(?:w?\d)\.cat\.fits(\.gz)?")
PLACE_COLUMNS = ("ra", "dec", "primary")  # read of every tile, beside what is asked for
GZIP_MAGIC = b"\x1f\x8b"
SEARCH_NSIDE = 256  # pixels of 0.23 deg, by which tiles are looked up


# ---- which -----------------------------------------------------------------------------------


def tile_centre(name) -> tuple[float, float]:
    """RA, Dec in degrees that a tile's name gives, to NAME_ROUNDING."""
    ra, sign, dec = TILE_NAME.fullmatch(name).groups()
    return int(ra) / 10, int(dec) / 10 * (-1 if sign == "m" else 1)


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


# ---- what is in them -------------------------------------------------------------------------


@dataclass
class Tile:
    """The n primary detections of a tile: columns {name: (n, ...)}, native byte order; places."""

    columns: dict
    places: Places

    @property
    def nbytes(self) -> int:
        return self.places.nbytes + sum(column.nbytes for column in self.columns.values())


def _open(path) -> fits.HDUList:
    """A FITS file; a compressed one is read whole, as Astropy does not look at its checksum."""
    with open(path, "rb") as file:
        packed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    if packed:
        return fits.open(io.BytesIO(gzip.decompress(Path(path).read_bytes())))
    return fits.open(path, memmap=False)


def _tile_table(path, names) -> dict:
    """Columns of a tile as in the file (big-endian); ShardError for any fault of it."""
    missing, table = [], {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        warnings.filterwarnings("error", ".*truncated.*", AstropyWarning)
        try:
            with _open(path) as hdus:
                columns = TableColumns(hdus[1])
                missing = [name for name in names if name not in columns.found]
                if not missing:
                    table = columns.read(names)
        except (OSError, ValueError, TypeError, IndexError, KeyError, AttributeError,
                EOFError, zlib.error, AstropyWarning, fits.VerifyError) as error:  # fmt: skip
            raise ShardError(
                f"{path}: not a readable FITS table (truncated or damaged; {error}); fetch it again"
            ) from error
    if missing:
        single = "unwise_objid" in missing and "unwise_detid" in columns.found
        raise _other_catalogue(path, f"no column {', '.join(missing)}", single)
    return table


def _other_catalogue(path, what, single=False) -> ShardError:
    hint = "a single-band catalogue? " if single else ""
    return ShardError(f"{path}: {what}; {hint}expected a band-merged TILE.cat.fits")


def _as_dataset(path, name, values, data) -> np.ndarray:
    """A column of a tile (n, ...) with the type of our dataset; ShardError where it has another."""
    if values.shape[1:] != data.shape:
        what = f"{name} has rows of shape {values.shape[1:]}, expected {data.shape}"
        raise _other_catalogue(path, what, single=values.ndim == 1)
    dtype = np.dtype(data.dtype)
    if dtype.kind == "S":
        return values.astype("S")  # whole: too long a text is refused when it is written
    cast = values.astype(dtype) if np.can_cast(values.dtype, dtype, "same_kind") else None
    if cast is None or (dtype.kind in "iu" and np.any(cast != values)):
        raise _other_catalogue(path, f"{name} is {values.dtype}, which does not fit {dtype}")
    return cast


def read_tile(path, datasets) -> Tile:
    """The primary detections with a position of a tile file; datasets: see TileCache."""
    table = _tile_table(path, (*PLACE_COLUMNS, *datasets))
    usable = (table["primary"] > 0) & np.isfinite(table["ra"]) & np.isfinite(table["dec"])
    rows = np.flatnonzero(usable)
    columns = {
        name: _as_dataset(path, name, table[name].take(rows, axis=0), data)
        for name, data in datasets.items()
    }
    places = Places(*(table[name].take(rows).astype(float) for name in ("ra", "dec")))
    return Tile(columns, places)


class TileCache:
    """The tiles last used, up to `max_bytes` of them (and always the last one).

    datasets: {name: `schema.Dataset`} of the columns of the catalogue to be read. seen: {name: the
    file, as it was `Seen` before it was read}, of all tiles that were asked for.
    """

    def __init__(self, index, max_bytes, datasets):
        self.index = index
        self.max_bytes = max_bytes
        self.datasets = datasets
        self._tiles = OrderedDict()
        self._bytes = 0
        self.n_read, self.seen = 0, {}

    def get(self, name) -> Tile:
        """The tile of a name, read where it is not in memory, or its file is another by now."""
        if name in self._tiles and self._is_current(name):
            self._tiles.move_to_end(name)
            return self._tiles[name]
        self.seen[name] = see(self.index.paths[name])
        tile = read_tile(self.index.paths[name], self.datasets)
        self.n_read += 1
        self._tiles[name] = tile
        self._bytes += tile.nbytes
        while self._bytes > self.max_bytes and len(self._tiles) > 1:
            self._bytes -= self._tiles.popitem(last=False)[1].nbytes
        return tile

    def _is_current(self, name) -> bool:
        try:
            self.seen[name].require_unchanged()
        except ShardError:
            self._bytes -= self._tiles.pop(name).nbytes
            return False
        return True
