"""Rows of columns that are too many to be held in memory, in a scratch file, read by their places.

HDF5 reads rows in any order slowly: a whole chunk each. The scratch file has no name, so it is gone
with its process, however that ends; and what becomes of the file that it was copied from does not
matter. What is read often is in the system's cache, as far as there is memory.
"""

import os
import tempfile
import weakref
from pathlib import Path

import numpy as np

from pipeline.errors import ShardError, unwritable


def folder_beside(path) -> Path:
    """The folder `path` if it exists, or else the nearest above that does."""
    path = Path(path).absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


class RowStore:
    """Columns whose rows are appended, and then taken in any order.

    columns: {name: (dtype, shape of a row)}; folder: of the scratch file, default the system's.
    """

    def __init__(self, columns, folder=None):
        self.dtype = np.dtype([(name, dtype, shape) for name, (dtype, shape) in columns.items()])
        self.names, self.folder = tuple(columns), folder or tempfile.gettempdir()
        self._n = 0
        try:
            self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115
        except OSError as error:
            raise self._unwritable(error) from error
        weakref.finalize(self, self._file.close)

    def __len__(self):
        return self._n

    def _unwritable(self, error):
        size = f"{self.dtype.itemsize / 1e3:.1f} kB"
        return unwritable(f"{self.folder}: the scratch copy of the stars ({size} each)", error)

    def append(self, table):
        """Append rows, {name: (n, ...)}. WriteError where the disk does not take them."""
        rows = np.empty(len(table[self.names[0]]), self.dtype)
        for name in self.names:
            rows[name] = table[name]
        try:
            self._file.write(rows)
            self._file.flush()
        except OSError as error:
            raise self._unwritable(error) from error
        self._n += len(rows)

    def take(self, rows) -> dict:
        """{name: (n, ...)} of the rows (n,), in their order. ShardError where they are gone."""
        rows, size = np.asarray(rows), self.dtype.itemsize
        ends = np.flatnonzero(np.diff(rows) != 1) + 1  # of rows that follow one another
        starts, stops = np.r_[0, ends][: len(rows)], np.r_[ends, len(rows)]
        runs = zip(rows[starts].tolist(), (stops - starts).tolist(), strict=False)
        parts = [os.pread(self._file.fileno(), n * size, first * size) for first, n in runs]
        content = b"".join(parts)
        if len(content) != len(rows) * size:
            raise ShardError(f"{self.folder}: the scratch copy of the stars was cut short")
        found = np.frombuffer(content, self.dtype)
        return {name: np.ascontiguousarray(found[name]) for name in self.names}
