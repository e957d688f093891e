"""The catalogue as Parquet files by place on the sky, in the form of a HATS catalogue.

Each file has the stars of a HEALPix pixel (nested), of such an order that it has no more rows than
is wished; its rows are sorted by `_healpix_29`, the pixel of order 29, from ra and dec. Pixels are
of the positions, which the ids' own pixels follow only nearly.

Two passes: the first counts the stars of each pixel of order PLAN_ORDER, by shard; the second
gathers the rows of one file at a time, out of the few shards that have some.
"""

from dataclasses import dataclass
from functools import partial

import healpy
import numpy as np

from pipeline.errors import ShardError
from pipeline.export.flat import FlatColumn
from pipeline.export.folder import Part
from pipeline.export.shards import CHUNK_ROWS, require_apart
from pipeline.export.table import Counts, needed, write_checked
from pipeline.run import progress

ORDER = 29
PLAN_ORDER = 8  # pixels of 0.05 square degrees; none is divided further
MAX_ROWS = 1_000_000  # of a file
GROUP_ROWS = 131_072  # of a row group
MOST_SKIPPED = 4  # a chunk is read whole where more than one row of so many is wanted


def healpix_29(ra, dec, ids, release) -> np.ndarray:
    """(N,) int64 nested pixels of order 29 of positions in degrees; where there is none, the first
    one in the pixel that the source id says."""
    out = release.pixel(ids) << (2 * (ORDER - release.healpix_level))
    there = np.isfinite(ra) & (np.abs(dec) <= 90)
    out[there] = healpy.ang2pix(2**ORDER, ra[there], dec[there], nest=True, lonlat=True)
    return out


def healpix_column(release) -> FlatColumn:
    return FlatColumn(
        f"_healpix_{ORDER}",
        "i8",
        None,
        f"HEALPix pixel of the position (of the id where there is none): nested, order {ORDER}",
        "pos.healpix",
        ("ra", "dec", release.id_column),
        lambda table: healpix_29(table["ra"], table["dec"], table[release.id_column], release),
    )


# ---- the first pass --------------------------------------------------------------------------


@dataclass(frozen=True)
class Survey:
    """Where the wanted stars are: of each shard, its pixels of PLAN_ORDER, ascending, and how many
    are in each."""

    shards: tuple
    pixels: tuple
    counts: tuple

    @property
    def n_wanted(self) -> int:
        return sum(int(counts.sum()) for counts in self.counts)

    def histogram(self) -> np.ndarray:
        """Stars in each pixel of PLAN_ORDER."""
        out = np.zeros(12 * 4**PLAN_ORDER, np.int64)
        for pixels, counts in zip(self.pixels, self.counts, strict=True):
            out[pixels] += counts
        return out


def survey(catalogue, wanted) -> Survey:
    """Find where the stars that are `Wanted` are."""
    column, found = healpix_column(catalogue.release), []
    for shard in progress(catalogue.shards, "places of the stars"):
        pixels = [np.empty(0, np.int64)]
        with catalogue.open(shard) as reader:
            for start in range(0, reader.n_rows, CHUNK_ROWS):
                stop = min(start + CHUNK_ROWS, reader.n_rows)
                table = reader.read_table(
                    dict.fromkeys((*column.needs, *wanted.needs)), start, stop
                )
                kept = wanted.of(table, stop - start)
                pixels.append(column.values(table)[kept] >> (2 * (ORDER - PLAN_ORDER)))
        found.append(np.unique(np.concatenate(pixels), return_counts=True))
    return Survey(tuple(catalogue.shards), *map(tuple, zip(*found, strict=True)))


def partition(histogram, max_rows=MAX_ROWS) -> list[tuple[int, int]]:
    """(order, pixel) that together hold all stars of a histogram of PLAN_ORDER: the largest pixels
    with no more than max_rows; none without a star."""
    out, pixels = [], np.arange(12)
    for order in range(PLAN_ORDER + 1):
        counts = histogram.reshape(12 * 4**order, -1).sum(1)[pixels]
        fit = (counts <= max_rows) | (order == PLAN_ORDER)
        out += [(order, int(pixel)) for pixel in pixels[fit & (counts > 0)]]
        pixels = (4 * pixels[~fit, None] + np.arange(4)).ravel()
    return sorted(out, key=lambda cell: cell[1] << (2 * (PLAN_ORDER - cell[0])))


def file_name(order, pixel) -> str:
    """Where HATS has the file of a pixel, below the folder of the catalogue."""
    return f"dataset/Norder={order}/Dir={pixel // 10_000 * 10_000}/Npix={pixel}.parquet"


# ---- the second pass -------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A pixel of the partition: which shards have how many of its stars."""

    order: int
    pixel: int
    shards: tuple
    n_rows: int

    @property
    def ends(self):
        """First pixel of ORDER, and the first one after it."""
        shift = 2 * (ORDER - self.order)
        return self.pixel << shift, (self.pixel + 1) << shift


def cells(found, max_rows=MAX_ROWS) -> list[Cell]:
    """The `Cell`s of a `Survey`."""
    places = partition(found.histogram(), max_rows)
    shift = np.array([2 * (PLAN_ORDER - order) for order, _ in places], np.int64)
    first = np.array([pixel for _, pixel in places], np.int64)
    first, after = first << shift, (first + 1) << shift
    shards, n_rows = [[] for _ in places], np.zeros(len(places), np.int64)
    for shard, pixels, counts in zip(found.shards, found.pixels, found.counts, strict=True):
        total = np.concatenate([[0], np.cumsum(counts)])
        inside = total[np.searchsorted(pixels, after)] - total[np.searchsorted(pixels, first)]
        n_rows += inside
        for k in np.flatnonzero(inside):
            shards[k].append(shard)
    return [
        Cell(order, pixel, tuple(shards[k]), int(n_rows[k]))
        for k, (order, pixel) in enumerate(places)
    ]


def _read_some(reader, names, start, stop, chosen):
    """Datasets of the rows start..stop where chosen (n,) is true."""
    if chosen.sum() * MOST_SKIPPED > len(chosen):
        return {name: reader.read(name, start, stop)[chosen] for name in names}
    rows = start + np.flatnonzero(chosen)
    return {name: reader.read_rows(name, rows) for name in names}


def _tables(catalogue, shard, ends, names, wanted):
    """Yield {dataset: (n, ...)} of the wanted stars of a shard whose pixels are within ends."""
    place = healpix_column(catalogue.release)
    few = tuple(dict.fromkeys((*place.needs, *wanted.needs)))
    rest = tuple(name for name in names if name not in few)
    with catalogue.open(shard) as reader:
        for start in range(0, reader.n_rows, CHUNK_ROWS):
            stop = min(start + CHUNK_ROWS, reader.n_rows)
            table = reader.read_table(few, start, stop)
            pixel = place.values(table)
            chosen = (pixel >= ends[0]) & (pixel < ends[1])
            if chosen.any():
                chosen &= wanted.of(table, stop - start)
            if chosen.any():
                table = {name: values[chosen] for name, values in table.items()}
                yield table | _read_some(reader, rest, start, stop, chosen)


def gathered(catalogue, cell, columns, wanted) -> dict:
    """{name: (n,)} of the stars of a `Cell`, in no order. ShardError where they are not as many as
    were counted."""
    kinds = {c.name: object if c.dtype == "text" else c.dtype for c in columns}
    out = {name: np.empty(cell.n_rows, kind) for name, kind in kinds.items()}
    names, at = needed(columns), 0
    for shard in cell.shards:
        for table in _tables(catalogue, shard, cell.ends, names, wanted):
            n = len(table["ra"])
            if at + n <= cell.n_rows:
                for column in columns:
                    out[column.name][at : at + n] = column.values(table)
            at += n
    if at != cell.n_rows:
        raise ShardError(
            f"{cell.shards[0].path.parent}: shards changed while they were exported ({at} stars "
            f"in a pixel, {cell.n_rows} were counted): run the same command again"
        )
    return out


def in_order(rows, column, id_column):
    """Yield the rows {name: (n,)}, by pixel and id, in groups of GROUP_ROWS."""
    order = np.lexsort((rows[id_column], rows[column.name]))
    for start in range(0, len(order), GROUP_ROWS):
        chosen = order[start : start + GROUP_ROWS]
        yield {name: values[chosen] for name, values in rows.items()}


def make_cell(cell, catalogue, columns, wanted, told, path) -> Counts:
    """Write the file of a `Cell`."""
    rows, id_column = gathered(catalogue, cell, columns, wanted), catalogue.release.id_column
    require_apart(np.sort(rows[id_column]), cell.shards)
    batches = in_order(rows, columns[0], id_column)
    n = write_checked(path, ".parquet", columns, batches, told)
    return Counts(n, n)


def sky_columns(chosen, known, release) -> list:
    """The columns of the files: the pixel, then id and position, then those chosen."""
    first = [known[name] for name in (release.id_column, "ra", "dec")]
    return [healpix_column(release), *first, *(c for c in chosen if c not in first)]


def sky_parts(catalogue, columns, wanted, told, max_rows=MAX_ROWS):
    """(`Part`s of a folder, rows that the selection leaves out)."""
    found = survey(catalogue, wanted)
    parts = [
        Part(
            (f"catalogue/{file_name(cell.order, cell.pixel)}",),
            cell.shards,
            partial(make_cell, cell, catalogue, columns, wanted, told),
            f"order {cell.order}, pixel {cell.pixel}",
        )
        for cell in cells(found, max_rows)
    ]
    return parts, catalogue.n_rows - found.n_wanted
