"""Reading shards, ours or foreign.

Every fault of a file is a ShardError that says which file and dataset, and what to do.
"""

import contextlib
import hashlib
from pathlib import Path

import h5py
import numpy as np

from pipeline import content, trailer
from pipeline.declared import require_declared
from pipeline.errors import ShardError, unreadable
from pipeline.own_content import require_own
from pipeline.schema import KINDS, LabelSet, Layout, resolved
from pipeline.select import shard_path

MOST_GAP = 8  # rows between two wanted ones that are read rather than skipped
CACHE_BYTES = 1 << 25  # per dataset read: foreign files may hold large or column-wise chunks
# What h5py raises on damaged files.
HDF5_ERRORS = (
    OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, ArithmeticError,
    MemoryError,
)  # fmt: skip


def open_hdf5(path) -> tuple[h5py.File, bool]:
    """An HDF5 file, open for reading, and whether it has a trailer (pipeline/trailer.py).

    ShardError where there is no such file, or HDF5 or its trailer say that it is damaged.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            if not file.read(1):
                raise ShardError(
                    f"{path}: empty file (0 bytes); delete it and fetch or make it again"
                )
            whole = trailer.has_trailer(file, path)
    except FileNotFoundError as error:
        raise ShardError(f"{path}: not found") from error
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        file = h5py.File(path, "r", locking=False, rdcc_nbytes=CACHE_BYTES)
        if not whole:
            with contextlib.ExitStack() as opened:
                opened.enter_context(file)
                trailer.require_none(file.attrs, path)
                opened.pop_all()
        return file, whole
    except HDF5_ERRORS as error:
        raise ShardError(
            f"{path}: not a readable HDF5 file (truncated or damaged; {error}); make it again"
        ) from error


class ShardReader:
    """Read a shard, ours or foreign, with every fault of the file as a ShardError.

    `n_rows`, `columns` (root-level datasets) and `attrs` are read on opening. With an `id_column`
    (given, or recorded in the file) all datasets must have as many rows as it has. names: {our
    name of a dataset: a foreign file's}, where they differ. A file of ours must be as it was
    written (pipeline/trailer.py), but for the values of its datasets: those are `verify`'s.
    """

    def __init__(self, path, id_column=None, names=None):
        self.path = Path(path)
        self._theirs = names or {}
        self._file, self._is_whole = open_hdf5(self.path)
        try:
            self._inspect(id_column)
        except BaseException:
            self._file.close()
            raise

    def _inspect(self, id_column):
        try:
            if not self._is_whole:  # what has a trailer was written without such links
                require_own(self._file, self.path)
            self.attrs = {key: self._file.attrs[key] for key in self._file.attrs}
            ours = {their: our for our, their in self._theirs.items() if our not in self._file}
            items = {ours.get(name, name): self._file[name] for name in self._file}
            self._items = items
            self._shapes = {k: v.shape for k, v in items.items() if isinstance(v, h5py.Dataset)}
        except HDF5_ERRORS as error:
            raise ShardError(f"{self.path}: damaged ({error}); make it again") from error
        if not self.attrs.get("complete", True):
            raise ShardError(f"{self.path}: marked as incomplete; make it again")
        self.columns = list(self._shapes)
        self.id_column = id_column or self.attrs.get("id_column")
        self.n_rows = None
        if self.id_column is not None:
            if self.id_column not in self._shapes:
                self._refuse_absent(self.id_column)
            self.n_rows = self._shapes[self.id_column][0] if self._shapes[self.id_column] else 0
            odd = {k: s for k, s in self._shapes.items() if not s or s[0] != self.n_rows}
            if odd:
                raise ShardError(
                    f"{self.path}: {self.id_column} has {self.n_rows} rows, but the shape of "
                    + ", ".join(f"{name} is {shape}" for name, shape in odd.items())
                )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        self._file.close()

    def item(self, name):
        """The HDF5 object by our name of it, or at a path within the file."""
        return self._items[name] if name in self._items else self._file[name]

    def visit(self, look):
        """Call look(path, HDF5 object) for all that is in the file, groups within groups too."""
        self._file.visititems(look)

    def require(self, name):
        if not self.has(name):
            self._refuse_absent(name)

    def _refuse_absent(self, name):
        found = ", ".join(self.columns) or "none"
        raise ShardError(f"{self.path}: no dataset {name}; found: {found}")

    def has(self, name) -> bool:
        """Whether there is a dataset or group, by our name or by a path within the file."""
        return name in self._items or name in self._file

    def read(self, name, start=0, stop=None) -> np.ndarray:
        """Rows start..stop of a dataset (all of it by default), in native byte order."""
        self.require(name)
        try:
            data = self.item(name)
            array = data[start:stop] if data.shape else data[()]
        except HDF5_ERRORS as error:
            raise ShardError(
                f"{self.path}: dataset {name}, rows {start} to {stop or 'the end'}, cannot be read "
                f"(checksum or truncation; {error}); make the file again (--overwrite) or fetch it"
            ) from error
        array = np.asarray(array)
        return array.astype(array.dtype.newbyteorder("="), copy=False)

    def verify(self):
        """ShardError where a dataset does not hold what was written into it; all is read."""
        known = self._is_whole or content.SEAL in self.attrs
        digests = content.read_digests(self.attrs) if known else None
        for name, data in content.datasets_of(self._file).items():
            try:
                found = content.digest_of_dataset(data)
            except HDF5_ERRORS as error:
                raise ShardError(
                    f"{self.path}: dataset {name} cannot be read (checksum or truncation; "
                    f"{error}); make the file again (--overwrite) or fetch it"
                ) from error
            content.require_digest(found, digests, name, self.path)

    def read_rows(self, name, rows) -> np.ndarray:
        """The given rows (n,), increasing; rows far from all of them are not read."""
        if not len(rows):
            return self.read(name, 0, 0)
        groups = np.split(rows, np.flatnonzero(np.diff(rows) > MOST_GAP) + 1)
        parts = [self._read_group(name, group) for group in groups]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _read_group(self, name, rows):
        first, last = int(rows[0]), int(rows[-1])
        part = self.read(name, first, last + 1)
        return part if len(rows) == last - first + 1 else part[rows - first]

    def attributes(self, name) -> dict:
        """Attributes of a dataset."""
        self.require(name)
        return dict(self.item(name).attrs)

    def read_table(self, names, start=0, stop=None, optional=()) -> dict:
        """{name: rows start..stop} of `names`, and of those of `optional` that exist."""
        present = [name for name in optional if name in self._shapes and name not in names]
        return {name: self.read(name, start, stop) for name in [*names, *present]}

    def require_release(self, release):
        """ShardError where the file says that it is of another data release."""
        found = self.attrs.get("release", release.name)
        if found != release.name:
            raise ShardError(
                f"{self.path}: of the release {found}, but {release.name} is in use: give "
                f"--release {found}, or files of {release.name}"
            )

    def check(self, datasets):
        """ShardError where a dataset is not as declared (`declared.require_declared`)."""
        require_declared(self, datasets)

    def source_id(self) -> np.ndarray:
        """(N,) int64 ids, in the file's order; ShardError where they are not unique integers."""
        ids = self.read(self.id_column)
        if ids.ndim != 1 or ids.dtype != np.int64:
            raise ShardError(
                f"{self.path}: {self.id_column} is {ids.dtype} of shape {ids.shape}, "
                "expected one integer per row, of 64 bits (int64): write the ids so"
            )
        require_unique(ids, f"{self.path}: {self.id_column}")
        return ids


def id_hash(ids) -> str:
    return hashlib.sha256(np.ascontiguousarray(ids).tobytes()).hexdigest()


def check_whole(path, deep=False) -> dict:
    """Attributes of a file of ours; ShardError where it is not whole.

    Whole: opens, carries the marker, what it says of itself and of its datasets is what was written
    (pipeline/trailer.py), its datasets have the recorded number of rows and its ids the recorded
    hash. The checksums of the other datasets are verified when they are read, or where it is deep:
    then all is read, and compared with what was written.
    """
    with ShardReader(path) as reader:
        if deep:
            reader.verify()
        attrs = reader.attrs
        if not attrs.get("complete", False):
            raise ShardError(f"{path}: no marker of completeness; not a finished file of ours")
        column = attrs.get("id_column")
        if column is not None:
            if reader.n_rows != attrs.get("n_rows"):
                raise ShardError(
                    f"{path}: {reader.n_rows} rows, but {attrs.get('n_rows')} were recorded"
                )
            if id_hash(reader.read(column)) != attrs.get("sourceid_hash"):
                raise ShardError(f"{path}: {column} differs from its recorded hash")
    return attrs


def read_arrays(path):
    """({name: array}, attributes) of a file of arrays, as `write_arrays` makes it.

    ShardError where they are not what was written.
    """
    with ShardReader(path) as reader:
        reader.verify()
        return {name: reader.read(name) for name in reader.columns}, reader.attrs


def require_unique(ids, what):
    ordered = np.sort(ids)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(repeated):
        raise ShardError(f"{what} has {len(repeated)} repeated ids, the first is {repeated[0]}")


def open_shard(data_dir, kind, fid, release) -> ShardReader:
    """A reader of a shard; ShardError where it is of another release."""
    path = shard_path(data_dir, kind, fid)
    names = release.spectra.names if kind == "xp" else None
    reader = ShardReader(path, KINDS[kind].id_column(release), names)
    try:
        reader.require_release(release)
        if "script" in reader.attrs:  # of what others made, what is read is checked
            said = reader.attrs.get("kind")
            held = said if said == "sampled" and kind == "xp" else kind
            datasets = resolved(held, _layout_of(reader, release))
            reader.check(datasets.only([name for name in datasets if reader.has(name)]))
    except BaseException:
        reader.close()
        raise
    return reader


def _layout_of(reader, release) -> Layout:
    """The release, and the labels that a file says it is of; ShardError where these are none."""
    said = reader.attrs.get("labels")
    try:
        return Layout(release) if said is None else Layout(release, LabelSet.from_json(said))
    except (KeyError, TypeError, ValueError) as error:
        raise ShardError(
            f"{reader.path}: its attribute `labels` cannot be read ({error}): make the file again"
        ) from error
