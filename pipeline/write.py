"""Writing files that appear under their final name only when whole.

`ShardWriter` writes beside the final name, checks, syncs and renames. Every dataset with rows
carries a fletcher32 checksum, HDF5's own structures one of theirs (its format of 2016), and all but
the values a hash (pipeline/trailer.py), so a flipped bit raises on reading. It is the only code of
the project that opens HDF5 files for writing.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from pipeline import content, signals, trailer
from pipeline.errors import ShardError, unwritable
from pipeline.provenance import MadeBy
from pipeline.read import HDF5_ERRORS, check_whole, id_hash
from pipeline.whole_files import Sink, put_in_place, remove_dead_temporaries, temporary_beside

CHUNK_BYTES = 1 << 18  # of a dataset's chunk: small enough for sparse rows, large enough for gzip
FORMAT = h5py.h5f.LIBVER_V110  # of HDF5, the first whose structures all have checksums
GROWN_ROWS = 8192  # most in a chunk where the number of rows is not known before


def _storable(values) -> np.ndarray:
    """Array with strings as fixed-length bytes and native byte order."""
    array = np.asarray(values)
    if array.dtype.kind == "O":
        array = array.astype(str)
    if array.dtype.kind == "U":
        array = np.strings.encode(array, "utf-8")
    if array.dtype == np.dtype("S0"):
        array = array.astype("S1")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _is_noise(dtype, shape_tail) -> bool:
    """Whether the rows are arrays of floats, such as spectra and their errors.

    Compression saves 15 to 25% of them, and takes longer than it takes to compute them.
    """
    return bool(shape_tail) and np.dtype(dtype).kind == "f"


@dataclass
class _Column:
    """A dataset being written: rows so far, and the hash of their bytes while in order."""

    dataset: h5py.Dataset
    written: np.ndarray | None  # (n_rows,) bool; None for a free array
    digest: object
    next_row: int = 0

    def __post_init__(self):
        self.row_shape, self.dtype = self.dataset.shape[1:], self.dataset.dtype

    def grow(self, n_rows):
        """Have at least so many rows."""
        more = n_rows - len(self.written)
        if more > 0:
            self.dataset.resize(n_rows, axis=0)
            self.written = np.concatenate([self.written, np.zeros(more, bool)])


def _new_file(sink) -> h5py.File:
    """An empty HDF5 file written to a file object; the same content gives the same bytes, so the
    root group has no times (h5py.File has no option for that)."""
    created, access = (h5py.h5p.create(x) for x in (h5py.h5p.FILE_CREATE, h5py.h5p.FILE_ACCESS))
    created.set_obj_track_times(False)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    access.set_libver_bounds(FORMAT, FORMAT)
    access.set_fileobj_driver(h5py.h5fd.fileobj_driver, sink)
    return h5py.File(h5py.h5f.create(b"sink", h5py.h5f.ACC_TRUNC, created, access))


class ShardWriter:
    """Write an HDF5 file that appears under its final name only when whole.

    Where `provenance` is that of files (`provenance.provenance`), they must be at the end what they
    were then, else ShardError and no file.

    With `id_column`, every dataset has `n_rows` rows, all of which must be written before the end
    of the `with` block (else ShardError and no file). Where `n_rows` is None, the datasets grow as
    rows come in, and must end up with as many. With `id_column=None` (models, checkpoints)
    arrays of any shape go in by `write_array`. Root attributes of the result: `complete`,
    those of pipeline/content.py (of which `content_id` is kept by copying), `n_rows`, `id_column`,
    `sourceid_hash`, the entries of `provenance` and of `attrs`. On an exception nothing is left
    behind; where the disk does not take the file it is a WriteError.
    """

    def __init__(self, path, n_rows, id_column, provenance: dict, attrs: dict | None = None):
        self.path = Path(path)
        self.n_rows = n_rows
        self.id_column = id_column
        self._grows = n_rows is None and id_column is not None
        self._made_by = provenance
        self._attrs = dict(provenance) | (attrs or {})
        self._columns: dict[str, _Column] = {}
        self._declared, self._sink, self._file = False, None, None

    def __enter__(self):
        self._temporary = temporary_beside(self.path)
        try:
            with self._writing():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                remove_dead_temporaries(self.path)
                self._sink = Sink(self._temporary)
                self._file = _new_file(self._sink)
                self._file.attrs["complete"] = False
        except BaseException:
            self._give_up()
            raise
        return self

    def __exit__(self, kind, error, trace):
        try:
            if kind is None:
                with self._writing():
                    self._finish()
        finally:
            self._give_up()

    def _give_up(self):
        """Close, and remove the temporary file where it has not become the final one."""
        with signals.quiet():
            if self._file is not None:
                with contextlib.suppress(*HDF5_ERRORS):
                    self._file.close()
            if self._sink is not None:
                self._sink.close()
            with contextlib.suppress(OSError):
                self._temporary.unlink()

    def describe(self, **attrs):
        """Root attributes that tell of the content, as do the `attrs` given at the start."""
        self._attrs |= attrs

    @contextlib.contextmanager
    def _writing(self):
        """Around all that writes: its faults as errors of ours, signals after it."""
        signals.check()
        with signals.held():
            try:
                yield
            except (OSError, RuntimeError) as error:
                raise unwritable(self.path, self._fault() or error) from error
            if self._fault():
                raise unwritable(self.path, self._fault())

    def _fault(self):
        return self._sink and self._sink.error

    def create(self, name, shape_tail=(), dtype="f4", units=None, description=None, **attrs):
        """Create a dataset of shape (n_rows, *shape_tail), chunked, with checksum.

        It is compressed, unless its rows are arrays of floats.
        """
        compress = not _is_noise(dtype, shape_tail)
        self._create(name, (self.n_rows or 0, *shape_tail), dtype, True, compress)
        described = {"units": units, "description": description, **attrs}
        self.set_attributes(name, **{k: v for k, v in described.items() if v is not None})

    def create_columns(self, datasets: dict, compress=False):
        """Create the datasets of a kind of file (`schema.Datasets`), and allow no others.

        compress: also those whose rows are arrays of floats.
        """
        self._attrs |= {"kind": datasets.kind, "format": datasets.format}
        for data in datasets.values():
            pays = compress or not _is_noise(data.dtype, data.shape)
            self._create(data.name, (self.n_rows or 0, *data.shape), data.dtype, True, pays)
            self.set_attributes(data.name, **data.attributes)
        self._declared = True

    def set_attributes(self, name, /, **attrs):
        """Set attributes of a dataset already created."""
        with self._writing():
            for key, value in attrs.items():
                self._columns[name].dataset.attrs[key] = value

    def write(self, name, start, array):
        """Write rows start..start+len(array); makes the dataset on first use where needed."""
        array = _storable(array)
        if name not in self._columns:
            if self._declared:
                raise ShardError(f"{self.path}: {name} is not a dataset of this kind of file")
            self.create(name, array.shape[1:], array.dtype)
        column = self._columns[name]
        stop = start + len(array)
        most = stop if self._grows else self.n_rows
        if array.shape[1:] != column.row_shape or not 0 <= start <= stop <= most:
            raise ShardError(
                f"{self.path}: dataset {name} of shape {column.dataset.shape} "
                f"cannot take an array of shape {array.shape} at row {start}"
            )
        array = self._cast(name, array, column.dtype)
        with self._writing():
            column.grow(stop)
            column.dataset[start:stop] = array
        if start == column.next_row and not column.written[start:stop].any():
            column.digest.update(np.ascontiguousarray(array))
            column.next_row = stop
        else:
            column.next_row = -1  # out of order: hashed from the file at the end
        column.written[start:stop] = True

    def write_table(self, table: dict, units: dict | None = None, start=0):
        """Write columns {name: (n, ...) array} at row `start`; units: {name: text}."""
        for name, array in table.items():
            self.write(name, start, array)
            if units and name in units:
                self.set_attributes(name, units=units[name])

    def write_array(self, name, array, /, **attrs):
        """Write a whole array or scalar of any shape under a name (may hold "/")."""
        array = _storable(array)
        column = self._create(name, array.shape, array.dtype, rows=False)
        with self._writing():
            column.dataset[...] = array
        column.digest.update(np.ascontiguousarray(array))
        self.set_attributes(name, **attrs)

    def _cast(self, name, array, dtype):
        if dtype.kind == "S" and array.dtype.itemsize > dtype.itemsize:
            raise ShardError(f"{self.path}: a string of {name} is longer than its {dtype}")
        if not np.can_cast(array.dtype, dtype, "same_kind"):
            raise ShardError(f"{self.path}: {name} holds {dtype}, given {array.dtype}")
        return array.astype(dtype, copy=False)

    def _create(self, name, shape, dtype, rows, compress=True) -> _Column:
        if name in self._columns:
            raise ShardError(f"{self.path}: dataset {name} is created twice")
        dtype = np.dtype(dtype)
        filters, grows = {}, rows and self._grows
        # Neither scalars nor empty datasets can be chunked.
        if shape and min(shape[1:] if grows else shape, default=1) > 0:
            row_bytes = max(1, dtype.itemsize * int(np.prod(shape[1:])))
            most = GROWN_ROWS if grows else shape[0]
            chunk_rows = min(most, max(1, CHUNK_BYTES // row_bytes))
            filters = {"chunks": (chunk_rows, *shape[1:]), "fletcher32": True}
            if grows:
                filters["maxshape"] = (None, *shape[1:])
            if compress:
                filters |= {"shuffle": True, "compression": "gzip", "compression_opts": 1}
        with self._writing():
            dataset = self._file.create_dataset(name, shape=shape, dtype=dtype, **filters)
        written = np.zeros(shape[0], bool) if rows else None
        column = _Column(dataset, written, content.new_digest())
        self._columns[name] = column
        return column

    def _column_digest(self, column) -> str:
        if column.next_row >= 0:
            return column.digest.hexdigest()
        return content.digest_of_dataset(column.dataset)

    def _finish(self):
        if self._grows:
            self.n_rows = max((len(c.written) for c in self._columns.values()), default=0)
        for name, column in self._columns.items():
            missing = 0 if column.written is None else self.n_rows - int(column.written.sum())
            if missing:
                raise ShardError(
                    f"{self.path}: {missing} of {self.n_rows} rows of {name} were not written"
                )
        attrs = self._file.attrs
        for key, value in self._attrs.items():
            attrs[key] = value
        if self.id_column is not None:
            if self.id_column not in self._columns:
                raise ShardError(f"{self.path}: the id column {self.id_column} was not written")
            attrs["id_column"], attrs["n_rows"] = self.id_column, self.n_rows
            attrs["sourceid_hash"] = id_hash(self._file[self.id_column][...])
        attrs["complete"] = True
        digests = {name: self._column_digest(column) for name, column in self._columns.items()}
        content.put_hashes(self._file, digests)
        attrs[trailer.ATTRIBUTE] = "behind the end of HDF5's file: hashes, docs/files.md"
        self._file.flush()
        chunks = trailer.stored_values(self._file)
        self._file.close()
        trailer.append_trailer(self._sink, chunks)
        if self._fault():
            return
        check_whole(self._temporary)
        if isinstance(self._made_by, MadeBy):
            self._made_by.require_unchanged()
        self._sink.sync()
        put_in_place(self._temporary, self.path)


def write_arrays(path, arrays, made_by, **attrs):
    """An HDF5 file of arrays, {name: array}, written whole or not at all."""
    with ShardWriter(path, None, None, made_by, attrs) as writer:
        for name, array in arrays.items():
            writer.write_array(name, array)
