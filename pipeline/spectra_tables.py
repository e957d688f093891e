"""Spectra in FITS, VOTable, Parquet and HDF5, as tables like those of CSV, and what is odd there.

Each kind of source has columns, left_out, account and tables(), as `csv_rows.CsvSpectra`.
"""

import warnings

import h5py
import numpy as np
from astropy.io import fits
from astropy.io.votable import parse as parse_votable
from astropy.table import Table

from pipeline.cells import arrays_of_column, numbers_of_column
from pipeline.csv_rows import CHUNK_ROWS, CsvSpectra
from pipeline.errors import ShardError
from pipeline.own_content import require_own
from pipeline.read import HDF5_ERRORS
from pipeline.schema import XP_BANDS
from pipeline.spectra_account import Account
from pipeline.spectra_files import parts, read_to_end, seekable
from pipeline.spectra_plan import fault_of_id, id_of, plan_columns, require_release


def spectra_in(path, release):
    """Yield each source of spectra in a file. To be used within `spectra_files.faults_of`."""
    for name, kind, file in parts(path):
        if kind == "csv":
            try:
                source = CsvSpectra(file, name, release)
            except ShardError:
                read_to_end(file)  # damage, where there is some, is the reason to be told
                raise
            yield source
        elif kind == "hdf5":
            with h5py.File(seekable(file), "r") as content:
                require_own(content, name)
                yield Hdf5Spectra(content, name, release)
        else:
            tables = _astropy_tables(seekable(file), kind, name)
            id_name = release.spectra.names.get("source_id", "source_id").lower()
            having = [t for t in tables if id_name in map(str.lower, t.colnames)] or tables[:1]
            if not having:
                raise ShardError(f"{name}: no table in it; fetch it again")
            for table in having:
                yield TableSpectra(table, name, release)


def _astropy_tables(file, kind, name) -> list:
    """All tables of a file; ShardError where it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of units and words that Astropy does not know
            if kind == "fits":
                with fits.open(file) as hdus:
                    tables = [hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU)]
                    return [Table.read(hdu, unit_parse_strict="silent") for hdu in tables]
            if kind == "votable":
                found = parse_votable(file, verify="ignore").iter_tables()
                return [table.to_table(use_names_over_ids=True) for table in found]
            return [Table.read(file, format="parquet")]
    except ImportError as error:
        raise ShardError(f"{name}: {error}; pip install it, or give another form") from error
    except Exception as error:  # whatever Astropy's readers raise on a damaged file
        reason = " ".join(str(error).split())[:200]
        raise ShardError(
            f"{name}: cannot be read to its end (truncated or damaged; {reason}); fetch it again"
        ) from error


class _Columns:
    """A source that gives columns; subclasses have `_names`, `_n_rows` and `_column(name, a, b)`,
    which gives rows a..b and where they are masked."""

    def __init__(self, name, release):
        self._release = release
        self.columns, self.left_out = plan_columns(name, self._names, release)
        self.account = Account(name, self.columns, release)

    def tables(self):
        """Yield {name: (n, ...) array}, in order."""
        for start in range(0, self._n_rows, CHUNK_ROWS):
            table = self._table(start, min(start + CHUNK_ROWS, self._n_rows))
            if len(table["source_id"]):
                yield table

    def _table(self, start, stop) -> dict:
        ids, kept = self._ids(start, stop)
        table, lengths = {"source_id": ids}, {}
        for name, column in self.columns.items():
            if name == "source_id":
                continue
            values, mask = self._column(self._names[column.place], start, stop)
            values, mask = values[kept], mask[kept]
            if column.length:
                cells = arrays_of_column(values, mask, column.dtype, column.length)
                lengths[name] = cells.lengths
            else:
                cells = numbers_of_column(values, mask, column.dtype)
            table[name] = cells.values
            self.account.add_cells(name, cells, ids, values.__getitem__)
        for band in XP_BANDS:
            require_release(table, lengths[f"{band}_coefficients"], band, self._release)
        return {name: table[name] for name in self.columns}

    def _ids(self, start, stop) -> tuple[np.ndarray, np.ndarray]:
        """Ids (n,) of the rows that have one, and where these are among start..stop."""
        values, mask = self._column(self._names[self.columns["source_id"].place], start, stop)
        if values.dtype.kind in "iu" and values.dtype.itemsize == 8 and values.ndim == 1:
            texts = [str(value) for value in values]
        elif values.dtype.kind in "SUO" and values.ndim == 1:
            texts = [v.decode(errors="replace") if isinstance(v, bytes) else str(v) for v in values]
        else:
            raise ShardError(
                f"{self.account.path}: source_id is {values.dtype}, which has lost digits: write "
                "ids as 64-bit integers"
            )
        ids = [0 if no else id_of(text) for no, text in zip(mask, texts, strict=True)]
        for i, (number, no) in enumerate(zip(ids, mask, strict=True)):
            if not number:
                why = "source_id is masked" if no else fault_of_id(texts[i])
                self.account.unusable.append((f"row {start + i + 1}", why, 0))
        ids = np.array(ids, np.int64)
        return ids[ids > 0], np.flatnonzero(ids > 0)


class TableSpectra(_Columns):
    """The rows of an Astropy table."""

    def __init__(self, table, name, release):
        self._content, self._names, self._n_rows = table, table.colnames, len(table)
        super().__init__(name, release)

    def _column(self, name, start, stop):
        column = self._content[name][start:stop]
        mask = np.asarray(getattr(column, "mask", False))
        values = np.ma.getdata(getattr(column, "value", column))
        values = np.asarray(values)
        if values.dtype.kind == "O":  # of arrays, masked ones among them
            mask = np.zeros(len(values), bool) if mask.shape != values.shape else mask
        return values, np.broadcast_to(mask, values.shape) if not mask.ndim else mask


class Hdf5Spectra(_Columns):
    """The rows of an HDF5 file: a compound dataset, or a dataset a column, also in a group."""

    def __init__(self, content, name, release):
        id_name = release.spectra.names.get("source_id", "source_id").lower()
        said = content.attrs.get("release", release.name)
        if said != release.name:
            raise ShardError(f"{name}: of the release {said}: give --release {said}")
        self._content = _with_column(content, id_name, name)
        compound = isinstance(self._content, h5py.Dataset)
        self._names = list(self._content.dtype.names if compound else self._content)
        place = next((n for n in self._names if n.lower() == id_name), None)
        found = self._content if compound else self._content[place] if place else ()
        self._n_rows = len(found)
        super().__init__(name, release)
        for column in self.columns.values():
            their = self._names[column.place]
            if not compound and self._content[their].shape[:1] != (self._n_rows,):
                raise ShardError(
                    f"{name}: {their} has the shape {self._content[their].shape}, but there are "
                    f"{self._n_rows} ids: write a row for each"
                )

    def _column(self, name, start, stop):
        try:
            if isinstance(self._content, h5py.Dataset):
                rows = self._content[start:stop]
                values = rows[name]
                mask = rows[f"{name}.mask"] if f"{name}.mask" in self._names else None
            else:
                values = self._content[name][start:stop]
                has_mask = f"{name}.mask" in self._names
                mask = self._content[f"{name}.mask"][start:stop] if has_mask else None
        except HDF5_ERRORS as error:
            raise ShardError(
                f"{self.account.path}: {name} cannot be read (truncated or damaged; {error}); "
                "fetch it again"
            ) from error
        return values, np.zeros(len(values), bool) if mask is None else np.asarray(mask, bool)


def _with_column(content, id_name, path):
    """The group or compound dataset of an HDF5 file that has the ids; the file where none has."""
    found = []

    def look(_, item):
        names = item.dtype.names if isinstance(item, h5py.Dataset) else item
        if names and id_name in map(str.lower, names):
            found.append(item)

    look("", content)
    content.visititems(look)
    if len(found) > 1:
        names = ", ".join(item.name for item in found)
        raise ShardError(f"{path}: several tables with ids ({names}); keep one a file")
    return found[0] if found else content
