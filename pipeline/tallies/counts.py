"""Histograms of several axes, added up chunk by chunk: medians of millions of stars.

The median of a quantity in each cell comes from counts along one more axis, that quantity's: exact
to a fraction of its bins. Cells may be put together (`halved`, `coarser`), so they are counted
finely and shown as finely as the number of stars allows.
"""

from dataclasses import dataclass, field
from functools import cached_property

import healpy
import numpy as np

SCALES = {
    "linear": (lambda x: x, lambda x: x),
    "log": (np.log10, lambda x: 10.0**x),
    "sqrt": (lambda x: np.sqrt(np.maximum(x, 0.0)), np.square),
}  # name: from values to where bins are of equal width, and back
MOST = 0.85  # of the pixels of a map
BASE_LEVEL = 4  # HEALPix, of the blocks that `Sky` has places for: 13 square degrees


@dataclass(frozen=True)
class Axis:
    """n bins of a quantity from low to high, of equal width on a scale (a key of SCALES).

    name: of the quantity. ends: values beyond count in the first or last bin; else they are left
    out. NaN is always left out.
    """

    name: str
    low: float
    high: float
    n: int
    scale: str = "linear"
    ends: bool = False

    @cached_property
    def edges(self) -> np.ndarray:
        """(n + 1,)."""
        there, back = SCALES[self.scale]
        return back(np.linspace(there(self.low), there(self.high), self.n + 1))

    def bins(self, table) -> np.ndarray:
        """(N,) int64 of the quantity in a table {name: (N,)}; -1: in none."""
        there, _ = SCALES[self.scale]
        first, last = there(self.low), there(self.high)
        with np.errstate(invalid="ignore", divide="ignore"):
            at = (there(np.asarray(table[self.name], "f8")) - first) * (self.n / (last - first))
            if self.ends:
                at = np.clip(at, 0, self.n - 1)
            inside = (at >= 0) & (at <= self.n)
        return np.where(inside, np.minimum(np.where(inside, at, 0), self.n - 1), -1).astype("i8")


class Sky:
    """Nested HEALPix pixels of a level on the sky, by Galactic longitude `l` and latitude `b` in
    degrees. Blocks of pixels get places as stars are seen in them, so that a patch of the sky takes
    little memory however fine the pixels."""

    def __init__(self, level):
        self.level = max(int(level), BASE_LEVEL)
        self._place = np.full(healpy.nside2npix(2**BASE_LEVEL), -1)
        self._blocks = []  # pixels of BASE_LEVEL, by place

    @property
    def _of_block(self) -> int:
        return 4 ** (self.level - BASE_LEVEL)

    @property
    def n(self) -> int:
        """Places so far."""
        return len(self._blocks) * self._of_block

    @property
    def pixels(self) -> np.ndarray:
        """(n,) pixel of each place."""
        first = np.array(self._blocks, "i8") * self._of_block
        return (first[:, None] + np.arange(self._of_block)).ravel()

    def bins(self, table) -> np.ndarray:
        """(N,) int64 places of stars; -1: no position."""
        lon, lat = table["l"], table["b"]
        known = np.isfinite(lon) & np.isfinite(lat)
        lon, lat = np.where(known, lon, 0.0), np.where(known, lat, 0.0)
        pixel = healpy.ang2pix(2**self.level, lon, lat, nest=True, lonlat=True)
        block, within = np.divmod(pixel, self._of_block)
        seen = np.unique(block[known])
        new = seen[self._place[seen] < 0]
        self._place[new] = len(self._blocks) + np.arange(len(new))
        self._blocks.extend(new.tolist())
        return np.where(known, self._place[block] * self._of_block + within, -1)


@dataclass
class Counts:
    """Numbers of stars in the cells of some axes; a `Sky` may be the first of them. rows: name of
    the column (N,) bool of those that count. outside: those that count and are in no cell."""

    axes: tuple
    rows: str
    counts: np.ndarray = field(init=False)
    outside: int = 0

    def __post_init__(self):
        self.counts = np.zeros(int(np.prod(self.shape)), "u4")

    @property
    def shape(self) -> tuple:
        return tuple(axis.n for axis in self.axes)

    @property
    def cells(self) -> np.ndarray:
        """The counts in the shape of the axes."""
        self._grow()
        return self.counts.reshape(self.shape)

    def _grow(self):
        n = int(np.prod(self.shape))
        if n > len(self.counts):
            self.counts = np.concatenate([self.counts, np.zeros(n - len(self.counts), "u4")])

    def add(self, bins, rows):
        """Count stars: bins of each axis (N,), rows (N,) bool."""
        self._grow()
        inside, place = rows.copy(), 0
        for one, n in zip(bins, self.shape, strict=True):
            inside &= one >= 0
            place = place * n + one
        self.outside += int(np.count_nonzero(rows) - np.count_nonzero(inside))
        np.add.at(self.counts, place[inside], np.uint32(1))


class Tallies:
    """Several `Counts` {key: Counts} of one stream of tables; axes that they share are sorted into
    bins once."""

    def __init__(self, counts):
        self.counts = counts

    def add(self, table):
        """Count the stars of a table {name: (N,)}."""
        bins = {}
        for one in self.counts.values():
            for axis in one.axes:
                if axis not in bins:
                    bins[axis] = axis.bins(table)
            one.add([bins[axis] for axis in one.axes], table[one.rows])


# ---- what is shown of them -------------------------------------------------------------------


def quantile(counts, edges, q=0.5) -> np.ndarray:
    """Quantile (...) of a quantity from its counts (..., n) between edges (n + 1,), linear within a
    bin; NaN where nothing is counted."""
    total = counts.sum(-1, dtype="i8")
    below = np.cumsum(counts, -1, dtype="i8")
    wanted = q * total
    at = np.minimum((below < wanted[..., None]).sum(-1), counts.shape[-1] - 1)
    inside = np.take_along_axis(counts, at[..., None], -1)[..., 0].astype("f8")
    last = np.take_along_axis(below, at[..., None], -1)[..., 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (wanted - (last - inside)) / inside
    value = edges[at] + np.clip(share, 0, 1) * (edges[at + 1] - edges[at])
    return np.where(total > 0, value, np.nan)


def halved(cells) -> np.ndarray:
    """Counts (nx, ny, ...) of cells twice as large; nx and ny must be even."""
    nx, ny, *rest = cells.shape
    return cells.reshape(nx // 2, 2, ny // 2, 2, *rest).sum((1, 3), dtype="u4")


def typical(counts) -> float:
    """Median number in cells that are not empty; 0 where all are."""
    some = counts[counts > 0]
    return float(np.median(some)) if some.size else 0.0


def suited(cells, least, fewest=16) -> np.ndarray:
    """Counts (nx, ny, ...) in cells so large that a typical one has `least` stars; not fewer cells
    across than `fewest`."""
    while min(cells.shape[:2]) >= 2 * fewest:
        number = cells if cells.ndim == 2 else cells.sum(-1)
        if typical(number) >= least or any(n % 2 for n in cells.shape[:2]):
            break
        cells = halved(cells)
    return cells


@dataclass(frozen=True)
class Pixels:
    """Occupied nested HEALPix pixels (m,) of a level, ascending, with counts (m, ...)."""

    level: int
    pixels: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, counts):
        """Of `Counts` whose first axis is a `Sky`."""
        cells, sky = counts.cells, counts.axes[0]
        occupied = np.flatnonzero(cells.reshape(sky.n, -1).any(1)) if sky.n else np.empty(0, int)
        pixels = sky.pixels[occupied]
        order = np.argsort(pixels)
        return cls(sky.level, pixels[order], cells[occupied[order]])

    @property
    def number(self) -> np.ndarray:
        """(m,) stars in each."""
        return self.counts.reshape(len(self.pixels), -1).sum(1)

    def coarser(self):
        """The same in pixels of the level above."""
        parents, first = np.unique(self.pixels >> 2, return_index=True)
        counts = np.add.reduceat(self.counts, first, 0) if len(first) else self.counts
        return Pixels(self.level - 1, parents, counts)

    def suited(self, least, fewest=1):
        """The same in pixels so large that a typical one has `least` stars, and most of them
        `fewest`."""
        out = self
        while out.level > 0 and len(out.pixels):
            if typical(out.number) >= least and np.mean(out.number >= fewest) >= MOST:
                break
            out = out.coarser()
        return out
