"""What the shards of a data directory say of themselves, read fast and remembered.

Of each file only a few attributes are read, by HDF5's low-level calls, in several processes; what
was read is kept in INDEX, and read again only where size, time or inode of the file are others.
"""

import contextlib
import itertools
import json
import os
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np

from pipeline import trailer
from pipeline.errors import ShardError
from pipeline.schema import KINDS
from pipeline.select import FID_PATTERN
from pipeline.whole_files import write_text

INDEX = Path("logs") / "status_index.json"  # below the data directory
WANTED = ("complete", "n_rows", "content_id", "format", "kind", "script", "inputs")
ID_NAMES = (b"source_id", b"SOURCE_ID")  # of spectra that others made
BATCH = 200  # files that a process reads at a time; fewer are not worth a second process
PROCESSES = 8  # at most: a network file system answers so many at once


@dataclass(frozen=True)
class Found:
    """A file of a shard. mtime in seconds; stamp: changes with the file; said: its attributes, or
    {"fault": why they cannot be read}."""

    path: Path
    size: int
    mtime: float
    stamp: tuple
    said: dict

    @property
    def identity(self) -> str:
        """As `provenance.identity`."""
        if "content_id" in self.said:
            return f"content {self.said['content_id']}"
        return f"size {self.size} mtime {self.stamp[1]}"

    @property
    def rows(self) -> int:
        return int(self.said.get("n_rows", 0))


@dataclass(frozen=True)
class Folder:
    """A kind's folder: files {fid: path}, stats {fid: os.stat_result}, leases {fid: path}."""

    files: dict
    stats: dict
    leases: dict


def scan(data_dir, kind) -> Folder:
    """One look into the folder of a kind."""
    one, files, stats, leases = KINDS[kind], {}, {}, {}
    endings = "h5|hdf5" if one.foreign else "h5"
    pattern = re.compile(rf"{one.prefix}_({FID_PATTERN.pattern})\.(?:{endings})")
    lease = re.compile(rf"\.{one.prefix}_({FID_PATTERN.pattern})\.h5\.lease")
    folder = Path(data_dir) / one.folder
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda e: e.name, reverse=True):  # .h5 after .hdf5
            if match := pattern.fullmatch(entry.name):
                with contextlib.suppress(OSError):  # removed since, or a link to nothing
                    stats[match[1]] = entry.stat()
                    files[match[1]] = folder / entry.name
            elif match := lease.fullmatch(entry.name):
                leases[match[1]] = folder / entry.name
    return Folder(files, stats, leases)


def stamp_of(stat) -> tuple:
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


# ---- attributes ------------------------------------------------------------------------------


def _value(attribute):
    array = np.empty(attribute.shape, attribute.dtype)
    attribute.read(array)
    value = array.item() if array.shape == () else array.tolist()
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _rows_of_ids(file):
    """Rows of a file that does not say how many: of its ids."""
    group = h5py.h5g.open(file, b"/")
    name = next((name for name in ID_NAMES if name in group), None)
    return {} if name is None else {"n_rows": h5py.h5d.open(group, name).shape[0]}


def read_attributes(path) -> dict:
    """{name: value} of those of WANTED that a file has, or {"fault": why not}."""
    plan = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    plan.set_file_locking(False, True)
    try:
        with open(path, "rb", buffering=0) as raw:
            whole = trailer.has_trailer(raw, path)
        file = h5py.h5f.open(os.fsencode(path), h5py.h5f.ACC_RDONLY, plan)
        try:
            if not whole and h5py.h5a.exists(file, trailer.ATTRIBUTE.encode()):
                trailer.require_none({trailer.ATTRIBUTE}, path)
            said = {
                name: _value(h5py.h5a.open(file, name.encode()))
                for name in WANTED
                if h5py.h5a.exists(file, name.encode())
            }
            return said if "n_rows" in said else said | _rows_of_ids(file)
        finally:
            file.close()
    except ShardError as error:
        return {"fault": str(error)}
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        return {"fault": f"not a readable HDF5 file (truncated or damaged; {error})"}


def _read_many(paths) -> list[dict]:
    return [read_attributes(path) for path in paths]


def _batches(paths):
    iterator = iter(paths)
    while batch := list(itertools.islice(iterator, BATCH)):
        yield batch


def read_all(paths) -> list[dict]:
    """`read_attributes` of many files, in several processes."""
    processes = min(PROCESSES, 2 * (os.cpu_count() or 1), len(paths) // BATCH)
    if processes < 2:
        return _read_many(paths)
    with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
        parts = list(pool.map(_read_many, _batches(paths)))
    return [one for part in parts for one in part]


# ---- remembered ------------------------------------------------------------------------------


def _remembered(data_dir) -> dict:
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        found = json.loads((Path(data_dir) / INDEX).read_text())
        return {
            key: (tuple(stamp), said)
            for key, (stamp, said) in found.items()
            if isinstance(said, dict)
        }
    return {}


def index(data_dir, folders) -> dict:
    """{kind: {fid: Found}} of the `Folder`s {kind: Folder}.

    What is new is read, and remembered where the data directory can be written.
    """
    former = _remembered(data_dir)
    wanted, known = [], {}
    for kind, folder in folders.items():
        for fid, path in folder.files.items():
            key, stamp = f"{kind} {fid}", stamp_of(folder.stats[fid])
            old = former.get(key)
            if old and old[0] == stamp:
                known[key] = old
            else:
                wanted.append((key, stamp, path))
    said = read_all([path for _, _, path in wanted])
    new = {key: [stamp, one] for (key, stamp, _), one in zip(wanted, said, strict=True)}
    known |= new
    if new or known.keys() != former.keys():
        with contextlib.suppress(OSError):
            (Path(data_dir) / INDEX).parent.mkdir(parents=True, exist_ok=True)
            write_text(Path(data_dir) / INDEX, json.dumps(known, separators=(",", ":")))
    return {
        kind: {
            fid: _found(path, folder.stats[fid], known[f"{kind} {fid}"][1])
            for fid, path in folder.files.items()
        }
        for kind, folder in folders.items()
    }


def _found(path, stat, said) -> Found:
    return Found(path, stat.st_size, stat.st_mtime_ns / 1e9, stamp_of(stat), said)
