"""Reading shards, ours or foreign, and joining their rows by id.

Every fault of a file is a ShardError that says which file and dataset, and what to do.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from pipeline import content
from pipeline.errors import ShardError, unreadable
from pipeline.own_content import require_own
from pipeline.schema import FILES, KINDS, LabelSet, Layout, resolved
from pipeline.select import shard_path
from pipeline.xp_basis import load_xp_basis

MOST_GAP = 8  # rows between two wanted ones that are read rather than skipped
CACHE_BYTES = 1 << 25  # per dataset read: foreign files may hold large or column-wise chunks
# Kinds of dtype that a declared one (f, i, u, b, S) may be read from.
KINDS_READ_AS = {"f": "fiu", "i": "iu", "u": "iu", "b": "b", "S": "SO"}
# What h5py raises on damaged files.
HDF5_ERRORS = (
    OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, ArithmeticError,
    MemoryError,
)  # fmt: skip


def _open(path: Path) -> h5py.File:
    try:
        with open(path, "rb") as file:
            empty = not file.read(1)
    except FileNotFoundError as error:
        raise ShardError(f"{path}: not found") from error
    except OSError as error:
        raise unreadable(path, error) from error
    if empty:
        raise ShardError(f"{path}: empty file (0 bytes); delete it and fetch or make it again")
    try:
        return h5py.File(path, "r", locking=False, rdcc_nbytes=CACHE_BYTES)
    except OSError as error:
        raise ShardError(
            f"{path}: not a readable HDF5 file (truncated or damaged; {error}); make it again"
        ) from error


class ShardReader:
    """Read a shard, ours or foreign, with every fault of the file as a ShardError.

    `n_rows`, `columns` (root-level datasets) and `attrs` are read on opening. With an `id_column`
    (given, or recorded in the file) all datasets must have as many rows as it has. names: {our
    name of a dataset: a foreign file's}, where they differ. A file of ours must be as it was
    written, but for the values of its datasets (`verify`): see pipeline/content.py.
    """

    def __init__(self, path, id_column=None, names=None):
        self.path = Path(path)
        self._theirs = names or {}
        self._file = _open(self.path)
        try:
            self._inspect(id_column)
        except BaseException:
            self._file.close()
            raise

    def _inspect(self, id_column):
        try:
            content.require_heaps(self._file, self.path)
            require_own(self._file, self.path)
            self._digests = content.read_seal(self._file, self.path)
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

    def _stored(self, name):
        """The HDF5 object of a dataset, by our name or by a path within the file."""
        return self._items[name] if name in self._items else self._file[name]

    def item(self, name):
        """The HDF5 object at a path within the file."""
        return self._file[name]

    def visit(self, look):
        """Call look(path, HDF5 object) for all that is in the file, groups within groups too."""
        self._file.visititems(look)

    def _require(self, name):
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
        self._require(name)
        try:
            data = self._stored(name)
            array = data[start:stop] if data.shape else data[()]
        except HDF5_ERRORS as error:
            raise ShardError(
                f"{self.path}: dataset {name}, rows {start} to {stop or 'the end'}, cannot be read "
                f"(checksum or truncation; {error}); make the file again (--overwrite) or fetch it"
            ) from error
        array = np.asarray(array)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        if self._digests is not None and data.chunks is None:  # so it has no checksum
            self._require_digest(name, data, array)
        return array

    def _require_digest(self, name, data, array):
        if array.shape == data.shape:
            found = content.digest_of_array(array)
            content.require_digest(found, self._digests, data.name.lstrip("/"), self.path)

    def verify(self):
        """ShardError where a dataset does not hold what was written into it; all is read."""
        for name, data in content.datasets_of(self._file).items():
            try:
                found = content.digest_of_dataset(data)
            except HDF5_ERRORS as error:
                raise ShardError(
                    f"{self.path}: dataset {name} cannot be read (checksum or truncation; "
                    f"{error}); make the file again (--overwrite) or fetch it"
                ) from error
            content.require_digest(found, self._digests, name, self.path)

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
        self._require(name)
        return dict(self._stored(name).attrs)

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
        """ShardError where a dataset is not as declared.

        datasets: `schema.Datasets` of a kind of file. Those that are optional, or of a file that
        others made and that are not there, are passed over: reading them says what is missing.
        """
        said = self.attrs.get("kind")
        self._check_format(FILES[said if said in FILES else datasets.kind].format)
        for name, data in datasets.items():
            if name not in self._shapes:
                if name in self._items:
                    raise ShardError(
                        f"{self.path}: {name} is no dataset, but a {_sort_of(self._items[name])}; "
                        f"expected {data.dtype} and {data.shape} a row: make or fetch it again"
                    )
                if data.optional or "script" not in self.attrs:
                    continue
                self._require(name)
            found, dtype = self._shape_of_rows(name), self._items[name].dtype
            if found != data.shape or not _is_read_as(dtype, np.dtype(data.dtype)):
                raise ShardError(
                    f"{self.path}: {name} is {dtype} with rows of shape {found}, expected "
                    f"{data.dtype} and {data.shape}: make or fetch the file again, or give "
                    "--release where it is of another one"
                )
            self._check_unit(name, data.attributes.get("units"))

    def _check_format(self, expected):
        found = self.attrs.get("format", 1)
        if "script" in self.attrs and found != expected:
            raise ShardError(
                f"{self.path}: made by another version of {self.attrs['script']} (format {found}, "
                f"now {expected}): make it again with that script and --overwrite"
            )

    def _shape_of_rows(self, name):
        shape = self._shapes[name]
        return None if not shape else shape[1:]

    def _check_unit(self, name, expected):
        found = self._items[name].attrs.get("units")
        if found is None or expected is None:
            return
        if _is_other_unit(str(found), expected, strict="script" in self.attrs):
            raise ShardError(
                f"{self.path}: {name} is in {found}, expected {expected}: make the file again"
            )

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


def _sort_of(item) -> str:
    return "group" if isinstance(item, h5py.Group) else "named type"


def _is_read_as(found, declared) -> bool:
    """Whether a dataset of a dtype is read as one that is declared: numbers as numbers, no enum or
    reference among them."""
    if found.kind == "O":
        return declared.kind == "S" and h5py.check_string_dtype(found) is not None
    if found.kind in "iu" and h5py.check_enum_dtype(found) is not None:
        return False
    return found.kind in KINDS_READ_AS[declared.kind]


def _is_other_unit(found, expected, strict) -> bool:
    """Whether a unit, as it is written, is another one; strict: what is no unit is another."""
    if found.replace(" ", "") == expected.replace(" ", ""):
        return False
    from astropy.units import Unit  # takes a while to load

    try:
        return Unit(found) != Unit(expected)
    except (ValueError, TypeError):
        return strict


def id_hash(ids) -> str:
    return hashlib.sha256(np.ascontiguousarray(ids).tobytes()).hexdigest()


def check_whole(path, deep=False) -> dict:
    """Attributes of a file of ours; ShardError where it is not whole.

    Whole: opens, carries the marker, what it says of itself and of its datasets is what was written
    (`content.read_seal`), its datasets have the recorded number of rows and its ids the recorded
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


# ---- joining ---------------------------------------------------------------------------------


def join_rows(wanted_ids, other_ids) -> np.ndarray:
    """(N,) int64 row of each wanted id in `other_ids` (any order), -1 where it is absent.

    ShardError where `other_ids` repeats an id.
    """
    wanted = np.asarray(wanted_ids, np.int64)
    other = np.asarray(other_ids, np.int64)
    require_unique(other, "the table to join")
    if not len(other):
        return np.full(len(wanted), -1)
    order = np.argsort(other)
    place = np.minimum(np.searchsorted(other, wanted, sorter=order), len(other) - 1)
    rows = order[place]
    return np.where(other[rows] == wanted, rows, -1)


def take_rows(table: dict, index) -> dict:
    """Rows `index` of each column; where index is -1: NaN, b"" or 0 by the column's type."""
    index = np.asarray(index)
    out = {}
    for name, column in table.items():
        fill = np.nan if column.dtype.kind in "fc" else b"" if column.dtype.kind == "S" else 0
        out[name] = np.full((len(index), *column.shape[1:]), fill, column.dtype)
        out[name][index >= 0] = column[index[index >= 0]]
    return out


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


def _declared(kind, names, release):
    """The `schema.Datasets` of the columns of `Needs`."""
    datasets = resolved(kind, Layout(release))
    return datasets.only([n for n in (*names.required, *names.optional) if n in datasets])


def _spectra(reader, wanted, release):
    """(kind, `Needs`) of what a shard of spectra holds in the place of the `Needs` wanted.

    ShardError where its spectra were sampled with another basis than the release's.
    """
    if reader.attrs.get("kind") != "sampled" or not wanted.required:
        return "xp", wanted
    found, expected = reader.attrs.get("xp_basis"), load_xp_basis(release).source
    if found != expected:
        raise ShardError(
            f"{reader.path}: sampled with the basis {found!r}, but {expected!r} is in use: convert "
            "the spectra again"
        )
    return "sampled", Needs(tuple(resolved("sampled", Layout(release))))


def _joined_table(data_dir, fid, kind, names, ids, release) -> dict:
    """Small columns of a kind in the order of `ids`; `matched` tells which have a row."""
    with open_shard(data_dir, kind, fid, release) as reader:
        reader.check(_declared(kind, names, release))
        index = join_rows(ids, reader.source_id())
        table = reader.read_table(names.required, optional=names.optional)
    return {**take_rows(table, index), "matched": index >= 0}


@dataclass(frozen=True)
class Needs:
    """The datasets that a step reads of a kind of shard."""

    required: tuple = ()
    optional: tuple = ()


def aligned_chunks(
    data_dir, fid, needs: dict, release, wanted_rows=None, chunk_size=2048, look=None
):
    """Yield (rows, {kind: table or None}) with the rows of all kinds aligned to the spectra's.

    needs: {kind: Needs}; must hold "xp", whose shard gives the order and is read at most
    `chunk_size` rows at a time; where it holds sampled spectra in the place of coefficients, its
    table has those. The other kinds are small: they are read whole and joined by id;
    their rows without a match are NaN, b"" or 0, and False in an added column `matched`. Kinds not
    in `needs` come as None. wanted_rows: row numbers of the spectra shard (any order), None for
    all; others are not read. rows: (n,) int64, increasing. The "xp" table always holds its id
    column. look: called first with the reader of the spectra, if it holds coefficients. Raises
    ShardError for every fault of a file.
    """
    with open_shard(data_dir, "xp", fid, release) as reader:
        kind, xp = _spectra(reader, needs["xp"], release)
        reader.check(_declared(kind, xp, release))
        if look is not None and kind == "xp":
            look(reader)
        ids = reader.source_id()
        wanted = np.arange(len(ids)) if wanted_rows is None else np.unique(wanted_rows)
        joined = {
            kind: _joined_table(data_dir, fid, kind, names, ids, release)
            for kind, names in needs.items()
            if kind != "xp"
        }
        present = [*xp.required, *(name for name in xp.optional if name in reader.columns)]
        for start in range(0, len(wanted), chunk_size):
            rows = wanted[start : start + chunk_size]
            tables = dict.fromkeys(KINDS) | {
                kind: {name: column[rows] for name, column in table.items()}
                for kind, table in joined.items()
            }
            tables["xp"] = {name: reader.read_rows(name, rows) for name in present}
            tables["xp"][KINDS["xp"].id_column(release)] = ids[rows]
            yield rows, tables
