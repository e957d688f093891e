"""Tables of labels as people have them: HDF5, FITS, ECSV, Parquet or VOTable, with their masks.

The form is told by the content, not by the name. Of HDF5 the table is a compound dataset, as
Astropy's `Table.write` makes it, or plain datasets, at the root or in a group.
"""

import contextlib
import gzip
import warnings
import zlib
from dataclasses import dataclass, field, replace

import h5py
import numpy as np
from astropy.io import fits
from astropy.io.votable import parse as parse_votable
from astropy.table import MaskedColumn, Table
from astropy.table.meta import get_header_from_yaml

from pipeline.errors import UsageError
from pipeline.read import HDF5_ERRORS, ShardReader

HEAD_BYTES = 1024
HDF5 = b"\x89HDF\r\n"
MASKS = (".mask", "_mask")  # endings of columns that say where another has no value
FORMS = "HDF5, FITS, ECSV, Parquet or VOTable"


@dataclass
class Columns:
    """Columns {name: (N, ...) array}, masks {name: bool array of the same or of one axis fewer},
    words: {name: value} that describe the table, found: names of all columns seen."""

    columns: dict
    masks: dict
    words: dict = field(default_factory=dict)
    found: list = field(default_factory=list)


def read_columns(path, names, release, what="labels") -> Columns:
    """The columns `names` (the id first, whatever their case) of the table that has the id.

    Those that it lacks are absent. what: the table holds, in messages. Raises ShardError or
    UsageError where the file cannot be read, is of another release, or has several such tables.
    """
    if path.is_dir():
        raise UsageError(f"{path}: a folder; expected a table of {what} ({FORMS})")
    head = _head(path)
    reader = _reader_of(head)
    if reader is None and head and not head.startswith(HDF5) and b"\0" not in head:
        raise UsageError(
            f"{path}: text that is no table of {what}; expected {FORMS} (in Astropy: "
            "table.write('training_params.h5', path='labels'))"
        )
    if reader is None:  # HDF5, or no file, or an empty one
        return _from_hdf5(path, names, release, what)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of units and words that Astropy does not know
            tables = list(reader(path))
    except ImportError as error:
        raise UsageError(f"{path}: {error}; pip install it, or give {FORMS}") from error
    except Exception as error:  # whatever Astropy's readers raise on a damaged file
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{path}: cannot be read as a table of {what} ({reason})") from error
    return _chosen(path, [_of_astropy(table, names) for table in tables], names, what)


def _head(path) -> bytes:
    """The first bytes of a file, unpacked; none where it is not there or damaged."""
    if not path.is_file():
        return b""
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    if head.startswith(b"\x1f\x8b"):
        with contextlib.suppress(OSError, EOFError, zlib.error), gzip.open(path) as file:
            return file.read(HEAD_BYTES)
    return head


def _reader_of(head):
    """A function path -> tables, for the first bytes of a file; None for HDF5."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"SIMPLE  ="):
        return _fits_tables
    if text.startswith(b"# %ECSV"):
        return lambda path: [Table.read(path, format="ascii.ecsv")]
    if head.startswith(b"PAR1"):
        return _parquet_tables
    if text.startswith(b"<") and b"VOTABLE" in text.upper():
        return _votable_tables
    return None


def _parquet_tables(path):
    """The table of a Parquet file; integers with gaps stay integers, which Astropy makes floats."""
    import pyarrow.parquet

    table, content = Table.read(path, format="parquet"), pyarrow.parquet.read_table(path)
    for name in content.column_names:
        column = content[name]
        if column.null_count and pyarrow.types.is_integer(column.type):
            values, mask = column.fill_null(0).to_numpy(), column.is_null().to_numpy()
            table[name] = MaskedColumn(values, mask=mask)
    yield table


def _fits_tables(path):
    with fits.open(path) as hdus:
        for hdu in hdus:
            if isinstance(hdu, fits.BinTableHDU | fits.TableHDU):
                yield Table.read(hdu, unit_parse_strict="silent")


def _votable_tables(path):
    for table in parse_votable(path, verify="ignore").iter_tables():
        yield table.to_table(use_names_over_ids=True)


def _chosen(path, tables, names, what) -> Columns:
    """The one table that has the id; where none has, the first, with the names of all."""
    having = [table for table in tables if names[0] in table.columns]
    if len(having) > 1:
        raise UsageError(
            f"{path}: {len(having)} tables with {names[0]}; keep the one that holds the {what}"
        )
    if having:
        return having[0]
    found = [name for table in tables for name in table.found]
    return replace(tables[0] if tables else Columns({}, {}), found=found)


def _by_case(found, names) -> dict:
    """{ours: theirs} of the names that are found, in any case where not as they are."""
    lower = {name.lower(): name for name in reversed(found)}
    places = {name: name if name in found else lower.get(name.lower()) for name in names}
    return {name: their for name, their in places.items() if their is not None}


def _of_astropy(table, names) -> Columns:
    columns, masks = {}, {}
    for name, their in _by_case(table.colnames, names).items():
        column = table[their]
        if getattr(column, "mask", None) is not None and np.any(column.mask):
            masks[name] = np.asarray(column.mask)
        columns[name] = _plain(np.asarray(getattr(column, "value", column)))
    words = {str(key).lower(): value for key, value in table.meta.items()}
    return Columns(columns, masks, words, table.colnames)


def _plain(array) -> np.ndarray:
    """An array of lists of one length (Parquet, VOTable) as one of two axes; else as it is."""
    if array.dtype.kind == "O" and [np.ndim(row) for row in array[:1]] == [1]:
        if len({np.shape(row) for row in array}) > 1:
            return array
        return np.stack([np.ma.filled(np.ma.asarray(row, float), np.nan) for row in array])
    array = np.ma.getdata(array)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


# ---- HDF5 ------------------------------------------------------------------------------------


def _from_hdf5(path, names, release, what) -> Columns:
    with ShardReader(path) as reader:
        reader.require_release(release)
        places, tables = _hdf5_places(reader, names), []
        for place in places:
            tables.append(_compound(reader, place, names) or _plain_datasets(reader, place, names))
        found = reader.columns
    chosen = _chosen(path, tables, names, what)
    chosen.found = chosen.found or found
    return chosen


def _hdf5_places(reader, names) -> list[str]:
    """Paths of the compound datasets, and of the groups with the id, in an HDF5 file."""
    compound, groups = [], ["/"]

    def look(name, item):
        if isinstance(item, h5py.Dataset) and item.dtype.names:
            compound.append(name)
        elif isinstance(item, h5py.Group) and _by_case(list(item), names[:1]):
            groups.append(name)

    try:
        reader.visit(look)
    except HDF5_ERRORS as error:
        raise UsageError(f"{reader.path}: damaged ({error}); write it again") from error
    return [*compound, *groups]


def _compound(reader, place, names) -> Columns | None:
    """The fields of a compound dataset; None where `place` is a group."""
    if place == "/" or not isinstance(reader.item(place), h5py.Dataset):
        return None
    table, words = reader.read(place), reader.attributes(place)
    described = f"{place}.__table_column_meta__"  # of Astropy, with serialize_meta=True
    if reader.has(described):
        lines = [line.decode() for line in reader.read(described)]
        words |= get_header_from_yaml(lines).get("meta", {})
    fields = table.dtype.names
    return _with_masks({name: table[name] for name in fields}, names, words)


def _plain_datasets(reader, place, names) -> Columns:
    """The datasets of a group."""
    group = reader.item(place)
    datasets = [name for name in group if isinstance(group[name], h5py.Dataset)]
    wanted = [*names, *(name + ending for name in names for ending in MASKS)]
    paths = _by_case(datasets, wanted)
    prefix = "" if place == "/" else f"{place}/"
    columns = {name: reader.read(prefix + their) for name, their in paths.items()}
    words = dict(group.attrs)
    if "params_est" in paths:
        words |= reader.attributes(prefix + paths["params_est"])
    return _with_masks(columns, names, words, datasets)


def _with_masks(columns, names, words, found=None) -> Columns:
    theirs = _by_case(list(columns), names)
    masks = {}
    for name, their in theirs.items():
        for ending in MASKS:
            if their + ending in columns or name + ending in columns:
                mask = columns.get(their + ending, columns.get(name + ending))
                masks[name] = np.asarray(mask, bool)
    kept = {name: _plain(np.asarray(columns[their])) for name, their in theirs.items()}
    return Columns(kept, masks, words, found or list(columns))
