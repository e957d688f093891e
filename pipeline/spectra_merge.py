"""Spectra of many files put together: repeats dropped, sources sorted into shards.

Rows are kept in a scratch file, so memory does not grow with them.
"""

import itertools

import numpy as np

from pipeline.csv_rows import CHUNK_ROWS
from pipeline.errors import ShardError, UsageError
from pipeline.row_store import RowStore
from pipeline.schema import Layout, resolved

MOST_SOURCES = 100_000  # of a shard in the mean, by which the sky is divided
SAME = 1e-6  # relative: of a number written in single precision and read again
NAMED_IDS = 5


class Gathered:
    """Rows of several inputs. ids (N,), origin (N,): number of the input in `inputs`; present:
    names of the datasets that any input has. folder: of the scratch file, 14 kB a star."""

    def __init__(self, release, folder=None):
        self._datasets = resolved("xp", Layout(release))
        self._store = RowStore(
            {name: (data.dtype, data.shape) for name, data in self._datasets.items()}, folder
        )
        self._ids, self._origins = [np.empty(0, np.int64)], [np.empty(0, int)]
        self.inputs, self.present = [], set()

    def add(self, tables, name):
        """Append the rows of tables of one input. What it lacks is NaN or 0."""
        self.inputs.append(name)
        for table in tables:
            self.present |= table.keys()
            self._store.append({k: _column(table, k, data) for k, data in self._datasets.items()})
            self._ids.append(table["source_id"])
            self._origins.append(np.full(len(table["source_id"]), len(self.inputs) - 1))

    @property
    def ids(self):
        return np.concatenate(self._ids)

    @property
    def origin(self):
        return np.concatenate(self._origins)

    def columns(self):
        """Datasets that any input has."""
        return [name for name in self._datasets if name in self.present]

    def tables(self, rows):
        """Yield {name: (n, ...) array} of rows, in their order."""
        names = self.columns()
        for start in range(0, len(rows), CHUNK_ROWS):
            table = self._store.take(rows[start : start + CHUNK_ROWS])
            yield {name: table[name] for name in names}

    def without_repeats(self, rows) -> tuple[np.ndarray, np.ndarray]:
        """The rows with the first of each id alone, and the ids that were repeated.

        ShardError where the spectra of an id differ.
        """
        ids = self.ids[rows]
        order = np.argsort(ids, kind="stable")
        starts = np.r_[True, ids[order][1:] != ids[order][:-1]]
        first = order[starts][np.cumsum(starts) - 1][~starts]
        again = order[~starts]
        for block in range(0, len(again), CHUNK_ROWS):
            part = slice(block, block + CHUNK_ROWS)
            self._require_same(rows[first[part]], rows[again[part]])
        return np.delete(rows, again), np.unique(ids[again])

    def _require_same(self, left, right):
        a, b = self._store.take(left), self._store.take(right)
        same = np.ones(len(left), bool)
        for name, data in self._datasets.items():
            if name in self.present and not data.optional:
                close = np.isclose(a[name], b[name], rtol=SAME, atol=0, equal_nan=True)
                same &= close.reshape(len(left), -1).all(1)
        if not same.all():
            i, origin = np.flatnonzero(~same)[0], self.origin
            files = dict.fromkeys(self.inputs[origin[row]] for row in (left[i], right[i]))
            more = f" (and {(~same).sum() - 1} more)" if (~same).sum() > 1 else ""
            raise ShardError(
                f"{' and '.join(map(str, files))}: source {a['source_id'][i]}{more} is there twice "
                "with different spectra; keep one"
            )


def _column(table, name, data) -> np.ndarray:
    if name in table:
        return table[name]
    fill = np.nan if np.dtype(data.dtype).kind == "f" else 0
    return np.full((len(table["source_id"]), *data.shape), fill, data.dtype)


# ---- shards ----------------------------------------------------------------------------------


def edges_of(fid) -> tuple[int, int]:
    """First and last pixel of a fid."""
    first, last = map(int, fid.split("-"))
    return first, last


def require_apart(fids):
    """UsageError where the ranges of two fids overlap."""
    ordered = sorted(fids, key=edges_of)
    for left, right in itertools.pairwise(ordered):
        if edges_of(right)[0] <= edges_of(left)[1]:
            raise UsageError(
                f"the shards {left} and {right} overlap: delete the one that is out of date, or "
                "give another --data-dir"
            )


def fids_of(pixels, taken, release) -> np.ndarray:
    """(N,) fids of the shards of sources without a shard of their own, by their pixels (N,).

    taken: fids that there are: a source within one has that. The rest of the sky is one shard for
    few sources, and for more as many as have MOST_SOURCES in the mean: 12, 48, 192 ... equal ranges
    of pixels, less what is taken.
    """
    n_pixels, n_blocks = 12 * 4**release.healpix_level, 1
    while n_blocks * MOST_SOURCES < len(pixels) and n_blocks * 4 <= n_pixels:
        n_blocks = 12 if n_blocks == 1 else 4 * n_blocks
    first, last = np.array([edges_of(fid) for fid in taken], int).reshape(-1, 2).T
    size = n_pixels // n_blocks
    edges = np.unique(np.r_[np.arange(0, n_pixels + 1, size), first, last + 1])
    place = np.searchsorted(edges, pixels, side="right") - 1
    names = [f"{low:06d}-{high - 1:06d}" for low, high in itertools.pairwise(edges)]
    for fid, low, high in zip(taken, first, last, strict=True):
        inside = slice(np.searchsorted(edges, low), np.searchsorted(edges, high + 1))
        names[inside] = [fid] * (inside.stop - inside.start)
    return np.array(names, object)[place] if len(pixels) else np.empty(0, object)
