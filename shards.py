"""Files of the pipeline: finding, selecting, reading, writing and running over shards.

A shard is an HDF5 file for one patch of sky: one root-level dataset per column, first axis = star,
missing floats NaN, strings fixed-length bytes. `fid` = "000000-003111" names the inclusive range of
level-8 nested HEALPix pixels it covers. This module knows files and nothing of astronomy.

A file appears under its final name only when whole: `ShardWriter` writes beside it, checks, syncs
and renames. Every dataset with rows carries a fletcher32 checksum, so a flipped bit raises on
reading. `ShardWriter` is the only code of the project that opens HDF5 files for writing.
"""

import argparse
import contextlib
import enum
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

FID_PATTERN = re.compile(r"\d{6}-\d{6}")
CHUNK_BYTES = 1 << 18  # of a dataset's chunk: small enough for sparse rows, large enough for gzip
MOST_GAP = 8  # rows between two wanted ones that are read rather than skipped
CACHE_BYTES = 1 << 25  # per dataset read: foreign files may hold large or column-wise chunks
HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError)  # what h5py raises on damaged files
MOST_INPUTS = 64  # named one by one in an output; more are named by folder
PACKAGES = ("numpy", "scipy", "h5py", "astropy", "tensorflow")


class ShardError(Exception):
    """A file that cannot be used: the message says which, what was found and what to do."""


class UsageError(ShardError):
    """Wrong options or missing inputs: exit status 2."""


@dataclass(frozen=True)
class ShardKind:
    """Where the shards of one kind live.

    foreign: not written by this project. optional: its folder may be left out with --without.
    """

    folder: str
    prefix: str
    id_column: str = "gdr3_source_id"
    foreign: bool = False
    optional: bool = False


KINDS = {
    "xp": ShardKind("xp_continuous_mean_spectrum", "XpContinuousMeanSpectrum", "source_id", True),
    "metadata": ShardKind("xp_metadata", "xp_metadata", "source_id"),
    "tmass": ShardKind("xp_tmass_match", "xp_tmass_match", optional=True),
    "unwise": ShardKind("xp_unwise_match", "xp_unwise_match", optional=True),
    "reddening": ShardKind("xp_dustmap_match", "xp_reddening_match", optional=True),
    "opt_input": ShardKind("xp_opt_input_files", "xp_opt_input"),
    "opt_output": ShardKind("xp_opt_output_files", "xp_opt_output"),
}


# ---- finding and selecting -------------------------------------------------------------------


def shard_path(data_dir, kind, fid) -> Path:
    """Path of shard `fid` of a kind (a key of KINDS)."""
    return Path(data_dir) / KINDS[kind].folder / f"{KINDS[kind].prefix}_{fid}.h5"


def list_fids(data_dir, kind) -> list[str]:
    """Sorted fids present in the folder of a kind; temporary and foreign names are ignored."""
    pattern = re.compile(rf"{KINDS[kind].prefix}_({FID_PATTERN.pattern})\.h5")
    folder = Path(data_dir) / KINDS[kind].folder
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(match[1] for match in map(pattern.fullmatch, names) if match)


def input_paths(data_dir, fid, kinds) -> list[Path]:
    """Paths of shard `fid` of several kinds; ShardError where one does not exist."""
    paths = [shard_path(data_dir, kind, fid) for kind in kinds]
    for path in paths:
        if not path.is_file():
            raise ShardError(f"{path}: not found; the shard is missing from a folder in use")
    return paths


def used_kinds(data_dir, kinds, without=()) -> list[str]:
    """Those of `kinds` not in `without`; UsageError where the folder of one does not exist."""
    used = [kind for kind in kinds if kind not in (without or ())]
    for kind in used:
        folder = Path(data_dir) / KINDS[kind].folder
        if not folder.is_dir():
            way_out = f", or leave it out with --without {kind}" if KINDS[kind].optional else ""
            raise UsageError(f"{folder}: no such folder; make it with its step{way_out}")
    return used


def add_shard_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that every shard script has."""
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="default: %(default)s")
    parser.add_argument(
        "--partition",
        nargs=2,
        type=int,
        metavar=("N", "K"),
        help="handle the K-th (from 0) of N parts; default: the Slurm array task, if any",
    )
    parser.add_argument("--shards", nargs="+", metavar="FID", help="handle only these shards")
    parser.add_argument("--overwrite", action="store_true", help="make finished shards again")
    parser.add_argument("--log", type=Path, help="default: DATA_DIR/logs/SCRIPT[_part].log")


def partition_of(fid: str, n: int) -> int:
    """Part 0..n-1 of a shard: a hash of its name alone, so parts do not move as files come."""
    return int.from_bytes(hashlib.sha256(fid.encode()).digest()[:8], "big") % n


def chosen_partition(args) -> tuple[int, int] | None:
    """(N, K) of --partition, else of the Slurm array task, else None; UsageError where invalid.

    Slurm arrays may start at 1 (`SLURM_ARRAY_TASK_MIN`).
    """
    source = "--partition"
    part = getattr(args, "partition", None)
    if part is None and {"SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_ID"} <= os.environ.keys():
        source = "the Slurm array task"
        first = int(os.environ.get("SLURM_ARRAY_TASK_MIN", 0))
        task = int(os.environ["SLURM_ARRAY_TASK_ID"])
        part = int(os.environ["SLURM_ARRAY_TASK_COUNT"]), task - first
    if part is None:
        return None
    n, k = part
    if n < 1 or not 0 <= k < n:
        raise UsageError(f"{source} gives part {k} of {n}: K must be 0..N-1; give --partition N K")
    return n, k


def select_fids(args, kind) -> list[str]:
    """The fids of a kind that --shards and --partition (or Slurm) choose.

    Raises UsageError for a missing or empty folder, unknown fids and an impossible partition.
    """
    folder = Path(args.data_dir) / KINDS[kind].folder
    fids = list_fids(args.data_dir, kind)
    if not fids:
        raise UsageError(f"{folder}: no {KINDS[kind].prefix}_*.h5 shards there; check --data-dir")
    if args.shards:
        unknown = sorted(set(args.shards) - set(fids))
        if unknown:
            raise UsageError(f"--shards {' '.join(unknown)}: not in {folder} (e.g. {fids[0]} is)")
        fids = sorted(set(args.shards))
    part = chosen_partition(args)
    return [fid for fid in fids if part is None or partition_of(fid, part[0]) == part[1]]


# ---- log and provenance ----------------------------------------------------------------------


class _TerminalHandler(logging.Handler):
    """Warnings and summaries to stderr, without tearing a progress bar."""

    def emit(self, record):
        if record.levelno >= logging.WARNING or getattr(record, "summary", False):
            tqdm.write(record.getMessage(), file=sys.stderr)


def setup_logging(script: str, log_file=None, args=None) -> logging.Logger:
    """Logger that appends everything to a file, and warnings and summaries to stderr.

    The file is `log_file`, else {args.data_dir}/logs/{script}[_partK-of-N].log.
    """
    if log_file is None:
        part = chosen_partition(args)
        suffix = f"_part{part[1]}-of-{part[0]}" if part else ""
        log_file = Path(getattr(args, "data_dir", "data")) / "logs" / f"{script}{suffix}.log"
    try:
        Path(log_file).parent.mkdir(parents=True, exist_ok=True)
        to_file = logging.FileHandler(log_file)
    except OSError as error:
        raise UsageError(f"{log_file}: the log cannot be written ({error}); give --log") from error
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log = logging.getLogger(script)
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    log.addHandler(to_file)
    log.addHandler(_TerminalHandler())
    log.setLevel(logging.INFO)
    log.propagate = False
    return log


@functools.cache
def project_version() -> str:
    """`git describe` of the project, else its VERSION file, else "unknown"."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--tags"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()
    with contextlib.suppress(OSError):
        return (here / "VERSION").read_text().strip()
    return "unknown"


@functools.cache
def _package_versions() -> str:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return json.dumps(found)


def identity(path) -> str:
    """What changes when the file's content does.

    A file of ours: its `content_id`, which survives copying. A foreign or damaged one: size and
    mtime (copy those with `cp -p` or `rsync -a`). ShardError where there is no such file.
    """
    with contextlib.suppress(*HDF5_ERRORS), h5py.File(path, "r", locking=False) as file:
        if "content_id" in file.attrs:
            return f"content {file.attrs['content_id']}"
    try:
        stat = os.stat(path)
    except OSError as error:
        raise ShardError(f"{path}: input not found ({error.strerror})") from error
    return f"size {stat.st_size} mtime {stat.st_mtime_ns}"


def _input_entries(inputs) -> list[dict]:
    """Name, size and identity of each input; of each folder where they are many.

    HDF5 attributes hold at most 64 kB, and one file may be made from 17,000.
    """
    entries = [
        {"name": Path(path).name, "identity": identity(path), "size": os.stat(path).st_size}
        for path in inputs
    ]
    if len(entries) <= MOST_INPUTS:
        return entries
    folders = {}
    for path, entry in zip(inputs, entries, strict=True):
        folders.setdefault(Path(path).parent.name, []).append(entry)
    return [
        {
            "name": f"{folder} ({len(group)} files)",
            "size": sum(entry["size"] for entry in group),
            "identity": hashlib.sha256(repr(sorted(map(str, group))).encode()).hexdigest(),
        }
        for folder, group in folders.items()
    ]


def provenance(script: str, argv, inputs) -> dict:
    """Attributes of an output: script, version, time, command line, inputs, package versions.

    argv: list of arguments (None: those of this process); inputs: paths of the files read.
    """
    arguments = sys.argv[1:] if argv is None else argv
    return {
        "script": script,
        "version": project_version(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command_line": " ".join([script, *map(str, arguments)]),
        "inputs": json.dumps(_input_entries(inputs)),
        "packages": _package_versions(),
    }


# ---- state of an output ----------------------------------------------------------------------


class Status(enum.Enum):
    ABSENT = "absent"
    COMPLETE = "complete"
    PARTIAL = "partial"
    STALE = "stale"


@dataclass(frozen=True)
class State:
    """Status of an output and, where it is not complete, the reason in words."""

    status: Status
    reason: str = ""


def _id_hash(ids) -> str:
    return hashlib.sha256(np.ascontiguousarray(ids).tobytes()).hexdigest()


def _check_whole(path) -> dict:
    """Attributes of a file of ours; ShardError where it is not whole.

    Whole: opens, carries the marker, its datasets have the recorded number of rows and its ids
    the recorded hash. The checksums of the other datasets are verified when they are read.
    """
    with ShardReader(path) as reader:
        attrs = reader.attrs
        if not attrs.get("complete", False):
            raise ShardError(f"{path}: no marker of completeness; not a finished file of ours")
        column = attrs.get("id_column")
        if column is not None:
            if reader.n_rows != attrs.get("n_rows"):
                raise ShardError(
                    f"{path}: {reader.n_rows} rows, but {attrs.get('n_rows')} were recorded"
                )
            if _id_hash(reader.read(column)) != attrs.get("source_id_hash"):
                raise ShardError(f"{path}: {column} differs from its recorded hash")
    return attrs


def output_state(path, inputs=()) -> State:
    """State of an output made from the files `inputs`.

    ABSENT: not there. PARTIAL: not whole (see `_check_whole`). STALE: an input's identity, or the
    set of inputs, is not the recorded one. Raises ShardError where an input does not exist.
    """
    if not Path(path).exists():
        return State(Status.ABSENT)
    try:
        attrs = _check_whole(path)
    except ShardError as error:
        return State(Status.PARTIAL, str(error))
    recorded = {(e["name"], e["identity"]) for e in json.loads(attrs.get("inputs", "[]"))}
    now = {(e["name"], e["identity"]) for e in _input_entries(inputs)}
    if recorded == now:
        return State(Status.COMPLETE)
    changed = sorted({name for name, _ in recorded ^ now})
    return State(Status.STALE, f"made from other inputs than now: {', '.join(changed)}")


# ---- writing ---------------------------------------------------------------------------------


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


def _remove_dead_temporaries(path: Path) -> None:
    """Remove what killed runs left beside `path`: their process is gone, or a day has passed.

    Only processes of this machine can be asked; a cluster's other nodes get the day.
    """
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(.+)-(\d+)\.[0-9a-f]+\.part")
    for name in os.listdir(path.parent):
        match = pattern.fullmatch(name)
        if not match:
            continue
        temporary = path.parent / name
        with contextlib.suppress(FileNotFoundError):
            if _process_gone(*match.groups()) or time.time() - temporary.stat().st_mtime > 86400:
                temporary.unlink()


def _process_gone(host: str, pid: str) -> bool:
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def _sync(path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass
class _Column:
    """A dataset being written: rows so far, and the hash of their bytes while in order."""

    dataset: h5py.Dataset
    written: np.ndarray | None  # (n_rows,) bool; None for a free array
    digest: object
    next_row: int = 0


class ShardWriter:
    """Write an HDF5 file that appears under its final name only when whole.

    With `id_column`, every dataset has `n_rows` rows, all of which must be written before the end
    of the `with` block (else ShardError and no file). With `id_column=None` (models, checkpoints)
    arrays of any shape go in by `write_array`. Root attributes of the result: `complete`,
    `content_id` (hash of all data, kept by copying), `n_rows`, `id_column`, `source_id_hash`,
    the entries of `provenance` and of `attrs`. On an exception nothing is left behind.
    """

    def __init__(self, path, n_rows, id_column, provenance: dict, attrs: dict | None = None):
        self.path = Path(path)
        self.n_rows = n_rows
        self.id_column = id_column
        self._attrs = {**provenance, **(attrs or {})}
        self._described = attrs or {}
        self._columns: dict[str, _Column] = {}

    def __enter__(self):
        owner = f"{socket.gethostname()}-{os.getpid()}"
        name = f".{self.path.name}.{owner}.{uuid.uuid4().hex[:8]}.part"
        self._temporary = self.path.with_name(name)
        with self._writing():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _remove_dead_temporaries(self.path)
            self._file = h5py.File(self._temporary, "w", locking=False)
            self._file.attrs["complete"] = False
        return self

    def __exit__(self, kind, error, trace):
        try:
            if kind is None:
                with self._writing():
                    self._finish()
        finally:
            with contextlib.suppress(*HDF5_ERRORS):  # a full disk fails here once more
                self._file.close()
            self._temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except (OSError, RuntimeError) as error:
            raise ShardError(
                f"{self.path}: cannot be written ({error}); is the disk full, or the folder closed?"
            ) from error

    def create(self, name, shape_tail=(), dtype="f4", units=None, description=None, **attrs):
        """Create a dataset of shape (n_rows, *shape_tail), chunked, compressed, with checksum."""
        self._create(name, (self.n_rows, *shape_tail), dtype, rows=True)
        described = {"units": units, "description": description, **attrs}
        self.set_attributes(name, **{k: v for k, v in described.items() if v is not None})

    def set_attributes(self, name, **attrs):
        """Set attributes of a dataset already created."""
        for key, value in attrs.items():
            self._columns[name].dataset.attrs[key] = value

    def write(self, name, start, array):
        """Write rows start..start+len(array); makes the dataset on first use where needed."""
        array = _storable(array)
        if name not in self._columns:
            self.create(name, array.shape[1:], array.dtype)
        column = self._columns[name]
        stop = start + len(array)
        if array.shape[1:] != column.dataset.shape[1:] or not 0 <= start <= stop <= self.n_rows:
            raise ShardError(
                f"{self.path}: dataset {name} of shape {column.dataset.shape} "
                f"cannot take an array of shape {array.shape} at row {start}"
            )
        array = self._cast(name, array, column.dataset.dtype)
        with self._writing():
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

    def write_array(self, name, array, **attrs):
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

    def _create(self, name, shape, dtype, rows) -> _Column:
        if name in self._columns:
            raise ShardError(f"{self.path}: dataset {name} is created twice")
        dtype = np.dtype(dtype)
        filters = {}
        if shape and min(shape) > 0:  # neither scalars nor empty datasets can be chunked
            row_bytes = max(1, dtype.itemsize * int(np.prod(shape[1:])))
            chunk_rows = min(shape[0], max(1, CHUNK_BYTES // row_bytes))
            filters = {"chunks": (chunk_rows, *shape[1:]), "shuffle": True, "fletcher32": True}
            filters |= {"compression": "gzip", "compression_opts": 1}
        dataset = self._file.create_dataset(name, shape=shape, dtype=dtype, **filters)
        written = np.zeros(shape[0], bool) if rows else None
        column = _Column(dataset, written, hashlib.blake2b(digest_size=20))
        self._columns[name] = column
        return column

    def _column_digest(self, column) -> str:
        if column.next_row >= 0:
            return column.digest.hexdigest()
        digest, data = hashlib.blake2b(digest_size=20), column.dataset
        for start in range(0, len(data), 4096):
            digest.update(np.ascontiguousarray(data[start : start + 4096]))
        return digest.hexdigest()

    def _content_id(self) -> str:
        whole = hashlib.blake2b(digest_size=20)
        for name, column in sorted(self._columns.items()):
            data = column.dataset
            described = [(key, repr(np.asarray(data.attrs[key]).tolist())) for key in data.attrs]
            entry = [name, str(data.dtype), data.shape, self._column_digest(column), described]
            whole.update(repr(entry).encode())
        described = [(key, repr(value)) for key, value in sorted(self._described.items())]
        whole.update(repr(described).encode())
        return whole.hexdigest()

    def _finish(self):
        for name, column in self._columns.items():
            if column.written is not None and not column.written.all():
                missing = int((~column.written).sum())
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
            attrs["source_id_hash"] = _id_hash(self._file[self.id_column][...])
        attrs["content_id"] = self._content_id()
        attrs["complete"] = True
        self._file.close()
        _check_whole(self._temporary)
        _sync(self._temporary)
        os.replace(self._temporary, self.path)
        with contextlib.suppress(OSError):  # some network file systems cannot sync a folder
            _sync(self.path.parent)


# ---- reading ---------------------------------------------------------------------------------


def write_text(path, text: str) -> None:
    """Write a small text file, whole or not at all."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _open(path: Path) -> h5py.File:
    if not path.exists():
        raise ShardError(f"{path}: not found")
    if path.is_file() and path.stat().st_size == 0:
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
    (given, or recorded in the file) all datasets must have as many rows as it has.
    """

    def __init__(self, path, id_column=None):
        self.path = Path(path)
        self._file = _open(self.path)
        try:
            self._inspect(id_column)
        except BaseException:
            self._file.close()
            raise

    def _inspect(self, id_column):
        try:
            self.attrs = {key: self._file.attrs[key] for key in self._file.attrs}
            items = {name: self._file[name] for name in self._file}
            self._shapes = {k: v.shape for k, v in items.items() if isinstance(v, h5py.Dataset)}
        except HDF5_ERRORS as error:
            raise ShardError(f"{self.path}: damaged ({error}); make it again") from error
        if not self.attrs.get("complete", True):
            raise ShardError(f"{self.path}: marked as incomplete; make it again")
        self.columns = list(self._shapes)
        self.id_column = id_column or self.attrs.get("id_column")
        self.n_rows = None
        if self.id_column is not None:
            self._require(self.id_column)
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
        self._file.close()

    def _require(self, name):
        if name not in self._shapes and name not in self._file:
            found = ", ".join(self.columns) or "none"
            raise ShardError(f"{self.path}: no dataset {name}; found: {found}")

    def read(self, name, start=0, stop=None) -> np.ndarray:
        """Rows start..stop of a dataset (all of it by default), in native byte order."""
        self._require(name)
        try:
            data = self._file[name]
            array = data[start:stop] if data.shape else data[()]
        except HDF5_ERRORS as error:
            raise ShardError(
                f"{self.path}: dataset {name}, rows {start} to {stop or 'the end'}, cannot be read "
                f"(checksum or truncation; {error}); make the file again (--overwrite) or fetch it"
            ) from error
        array = np.asarray(array)
        return array.astype(array.dtype.newbyteorder("="), copy=False)

    def read_rows(self, name, rows) -> np.ndarray:
        """The given rows (n,), increasing; rows far from all of them are not read."""
        if not len(rows):
            return self.read(name, 0, 0)
        groups = np.split(rows, np.flatnonzero(np.diff(rows) > MOST_GAP) + 1)
        parts = [self.read(name, int(g[0]), int(g[-1]) + 1)[g - g[0]] for g in groups]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def attributes(self, name) -> dict:
        """Attributes of a dataset."""
        self._require(name)
        return dict(self._file[name].attrs)

    def read_table(self, names, start=0, stop=None, optional=()) -> dict:
        """{name: rows start..stop} of `names`, and of those of `optional` that exist."""
        present = [name for name in optional if name in self._shapes and name not in names]
        return {name: self.read(name, start, stop) for name in [*names, *present]}

    def source_id(self) -> np.ndarray:
        """(N,) int64 ids, in the file's order; ShardError where they are not unique integers."""
        ids = self.read(self.id_column)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise ShardError(
                f"{self.path}: {self.id_column} is {ids.dtype} of shape {ids.shape}, "
                "expected one integer per row"
            )
        ids = ids.astype(np.int64)
        _require_unique(ids, f"{self.path}: {self.id_column}")
        return ids


def _require_unique(ids, what):
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
    _require_unique(other, "the table to join")
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


def _joined_table(data_dir, fid, kind, names, ids) -> dict:
    """Small columns of a kind in the order of `ids`; `matched` tells which have a row."""
    path = shard_path(data_dir, kind, fid)
    with ShardReader(path, KINDS[kind].id_column) as reader:
        index = join_rows(ids, reader.source_id())
        table = reader.read_table(names[0], optional=names[1])
    return {**take_rows(table, index), "matched": index >= 0}


def aligned_chunks(data_dir, fid, columns: dict, wanted_rows=None, chunk_size=2048):
    """Yield (rows, {kind: table or None}) with the rows of all kinds aligned to the spectra's.

    columns: {kind: (required names, optional names)}; must hold "xp", whose shard gives the order
    and is read at most `chunk_size` rows at a time. The other kinds are small: they are read whole
    and joined by id; their rows without a match are NaN, b"" or 0, and False in an added column
    `matched`. Kinds not in `columns` come as None. wanted_rows: row numbers of the spectra shard
    (any order), None for all; others are not read. rows: (n,) int64, increasing. The "xp" table
    always holds its id column. Raises ShardError for every fault of a file.
    """
    xp = KINDS["xp"]
    with ShardReader(shard_path(data_dir, "xp", fid), xp.id_column) as reader:
        ids = reader.source_id()
        wanted = np.arange(len(ids)) if wanted_rows is None else np.unique(wanted_rows)
        joined = {
            kind: _joined_table(data_dir, fid, kind, names, ids)
            for kind, names in columns.items()
            if kind != "xp"
        }
        required, optional = columns["xp"]
        present = [*required, *(name for name in optional if name in reader.columns)]
        for start in range(0, len(wanted), chunk_size):
            rows = wanted[start : start + chunk_size]
            tables = dict.fromkeys(KINDS) | {
                kind: {name: column[rows] for name, column in table.items()}
                for kind, table in joined.items()
            }
            tables["xp"] = {name: reader.read_rows(name, rows) for name in present}
            tables["xp"][xp.id_column] = ids[rows]
            yield rows, tables


# ---- running ---------------------------------------------------------------------------------


def progress(items, words, unit="shard", total=None):
    """Iterate with a progress bar, on a terminal only."""
    return tqdm(items, desc=words, unit=unit, disable=None, file=sys.stderr, total=total)


@contextlib.contextmanager
def collect_failure(fid, failed: dict, log):
    """Log an exception of the `with` block and put its reason into failed[fid]; go on after it.

    The traceback goes to the log file only.
    """
    try:
        yield
    except Exception as error:
        failed[fid] = str(error) if isinstance(error, ShardError) else repr(error)
        log.error("%s: failed: %s", fid, failed[fid])
        log.info("traceback of %s", fid, exc_info=True)


def _run_one(fid, args, inputs_of, output_of, process, log) -> tuple[str, dict]:
    """Outcome ("done" or "already complete") and counters of one shard."""
    output, began = output_of(fid), time.monotonic()
    if not args.overwrite:
        state = output_state(output, inputs_of(fid))
        if state.status is Status.COMPLETE:
            return "already complete", {}
        if state.status is not Status.ABSENT:
            log.warning("%s: %s output is made again: %s", fid, state.status.value, state.reason)
    counters = process(fid, output, log) or {}
    counted = ", ".join(f"{name} {value}" for name, value in counters.items())
    log.info("%s: done in %.1f s. %s", fid, time.monotonic() - began, counted)
    return "done", counters


def _map_shards(work, fids, words, jobs, on_interrupt):
    """Yield work(fid) of every shard, with a progress bar; `jobs` > 1: of so many threads at once.

    Leaving early (an interrupt) drops the shards not begun and waits for the others.
    """
    if jobs == 1:
        yield from map(work, progress(fids, words))
        return
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(work, fid) for fid in fids]
        try:
            for future in progress(as_completed(futures), words, total=len(futures)):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            if on_interrupt:
                on_interrupt()
            raise


def run_shards(
    script, args, fids, inputs_of, output_of, process, log=None, jobs=1, on_interrupt=None
) -> int:
    """Make the output of every shard that is not complete; the exit status of the script.

    inputs_of(fid) -> list of paths; output_of(fid) -> path; process(fid, output, log) writes the
    output and may return counters {name: number}, which are logged and summed. Outcomes of a
    shard: already complete (skipped unless args.overwrite); absent, partial or stale (made, the
    last two with a warning that tells why); failed (any exception: logged with its traceback in
    the log file; the others go on). Returns 0 where all are done, 1 where some failed, 130 where
    interrupted from the keyboard.

    jobs: shards handled at once, in threads (for work that waits); `process` must then allow it,
    and `on_interrupt()` is to make the calls of `process` that are under way return soon.
    """
    log = log or setup_logging(script, args.log, args)
    log.info("%s %s: %d shards selected", script, project_version(), len(fids))
    outcomes, totals, failed = Counter(), Counter(), {}

    def work(fid):
        with collect_failure(fid, failed, log):
            return _run_one(fid, args, inputs_of, output_of, process, log)
        return None

    try:
        results = _map_shards(work, fids, script, jobs, on_interrupt)
        for outcome, counters in filter(None, results):
            outcomes[outcome] += 1
            totals.update(counters)
    except KeyboardInterrupt:
        log.warning("%s: interrupted; run again to go on where it stopped", script)
        return 130
    done = f"{outcomes['done']} done, {outcomes['already complete']} already complete"
    reasons = "; ".join(f"{fid} ({reason})" for fid, reason in failed.items())
    counted = "".join(f"\n  {name}: {value}" for name, value in totals.items())
    message = f"{script}: {done}, {len(failed)} failed{': ' + reasons if failed else ''}{counted}"
    log.info(message, extra={"summary": True})
    return 1 if failed else 0


def usage_exit(main):
    """Decorate a script's `main`: UsageError and ShardError become one line and status 2."""

    @functools.wraps(main)
    def wrapped(argv=None) -> int:
        try:
            return main(argv)
        except ShardError as error:
            sys.stderr.write(f"error: {error}\n")
            return 2
        except KeyboardInterrupt:
            return 130

    return wrapped
