"""What a file was made from, and whether it still is what would be made now."""

import contextlib
import enum
import functools
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import ShardError
from pipeline.read import HDF5_ERRORS, check_whole, open_hdf5
from pipeline.schema import FILES, KINDS

MOST_INPUTS = 64  # named one by one in an output; more are named by folder
PACKAGES = ("numpy", "scipy", "h5py", "astropy", "tensorflow", "pyarrow")


def _git(here, *words) -> str:
    """Answer of git, which may take no lock: many jobs ask at once, beside people who commit."""
    done = subprocess.run(
        ["git", "-C", str(here), *words],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
        env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
    )
    return done.stdout.strip()


@functools.cache
def project_version() -> str:
    """`git describe` of the project, else its VERSION file, else "unknown".

    Whether it is dirty `git status` tells: `git describe --dirty` would take a lock all the same.
    """
    here = Path(__file__).resolve().parents[1]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        version = _git(here, "describe", "--always", "--tags")
        dirty = _git(here, "status", "--porcelain", "--untracked-files=no")
        return version + ("-dirty" if dirty else "")
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
    with contextlib.suppress(ShardError, *HDF5_ERRORS), open_hdf5(path)[0] as file:
        if "content_id" in file.attrs:
            return f"content {file.attrs['content_id']}"
    size, mtime, _ = _stamp(path)
    return f"size {size} mtime {mtime}"


def _stamp(path) -> tuple:
    """What changes whenever a file is written or replaced; ShardError where there is none."""
    try:
        stat = os.stat(path)
    except OSError as error:
        raise ShardError(f"{path}: input not found ({error.strerror})") from error
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


@dataclass(frozen=True)
class Seen:
    """A file as it was before it was read: see `see`. entry: what outputs record of it."""

    path: Path
    entry: dict
    stamp: tuple

    def require_unchanged(self):
        """ShardError where the file has another content now, or is gone."""
        if _stamp(self.path) != self.stamp and identity(self.path) != self.entry["identity"]:
            raise ShardError(
                f"{self.path}: was replaced or changed while it was in use: run the same command "
                "again, when it stays as it is"
            )


def see(path) -> Seen:
    """A file as it is now, to be asked for before it is read; what is `Seen` already stays so.

    ShardError where there is no such file.
    """
    if isinstance(path, Seen):
        return path
    stamp = _stamp(path)
    entry = {"name": Path(path).name, "identity": identity(path), "size": stamp[0]}
    return Seen(Path(path), entry, stamp)


def _input_entries(inputs) -> list[dict]:
    """Name, size and identity of each input; of each folder where they are many.

    HDF5 attributes hold at most 64 kB, and one file may be made from 17,000.
    """
    seen = [see(one) for one in inputs]
    if len(seen) <= MOST_INPUTS:
        return [one.entry for one in seen]
    folders = {}
    for one in seen:
        folders.setdefault(one.path.parent.name, []).append(one.entry)
    return [
        {
            "name": f"{folder} ({len(group)} files)",
            "size": sum(entry["size"] for entry in group),
            "identity": hashlib.sha256(repr(sorted(map(str, group))).encode()).hexdigest(),
        }
        for folder, group in folders.items()
    ]


class MadeBy(dict):
    """Attributes of an output, which know the files that it is made from."""

    def __init__(self, attrs, inputs):
        super().__init__(attrs)
        self._inputs = inputs

    def require_unchanged(self):
        """ShardError where an input is not what it was when it was seen."""
        for one in self._inputs:
            one.require_unchanged()


def provenance(script: str, argv, inputs, release=None) -> MadeBy:
    """Attributes of an output: script, version, time, command line, inputs, package versions.

    To be asked for before the inputs are read, as their identities are those of now. argv: list of
    arguments (None: those of this process); inputs: paths of the files to be read, or as they were
    `Seen` before they were; release: the data release that the content is of. ShardError where one
    has changed since it was seen.
    """
    for one in inputs:
        if isinstance(one, Seen):
            one.require_unchanged()
    inputs = [see(one) for one in inputs]
    arguments = sys.argv[1:] if argv is None else argv
    of_release = {} if release is None else {"release": release.name}
    attrs = of_release | {
        "script": script,
        "version": project_version(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command_line": " ".join([script, *map(str, arguments)]),
        "inputs": json.dumps(_input_entries(inputs)),
        "packages": _package_versions(),
    }
    return MadeBy(attrs, inputs)


def made_from(path, name) -> str | None:
    """Identity of the input of that name that a file records; None where it records none."""
    with contextlib.suppress(ShardError, *HDF5_ERRORS), open_hdf5(path)[0] as file:
        entries = json.loads(file.attrs.get("inputs", "[]"))
        return next((e["identity"] for e in entries if e["name"] == name), None)
    return None


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


def output_state(path, inputs=(), kind=None, settings=None, deep=False) -> State:
    """State of an output made from the files `inputs` (paths, or `Seen`); kind: a key of
    `schema.FILES`, by default the one that it says, else that of the folder it is in; settings:
    {attribute: what it is now}, which an output that has the attribute must agree with; deep: all
    of it is read and compared with what was written.

    ABSENT: not there. PARTIAL: not whole (see `check_whole`). STALE: it is of another kind or
    format, or an input's identity, the set of inputs, or a setting is not the recorded one. Raises
    ShardError where an input does not exist.
    """
    if not Path(path).exists():
        return State(Status.ABSENT)
    try:
        attrs = check_whole(path, deep)
    except ShardError as error:
        return State(Status.PARTIAL, str(error))
    said = attrs.get("kind")
    if said in FILES and kind is not None and said != kind:
        return State(Status.STALE, f"it holds {FILES[said].title}")
    kind = said if said in FILES else kind
    if kind is None:
        folder = Path(path).parent.name
        kind = next((name for name, one in KINDS.items() if one.folder == folder), None)
    if kind is not None and attrs.get("format", 1) != FILES[kind].format:
        return State(Status.STALE, "made by another version of the script")
    for name, value in (settings or {}).items():
        if attrs.get(name, value) != value:
            return State(Status.STALE, f"{name}: {attrs[name]}, now {value}")
    recorded = {(e["name"], e["identity"]) for e in json.loads(attrs.get("inputs", "[]"))}
    now = {(e["name"], e["identity"]) for e in _input_entries(inputs)}
    if recorded == now:
        return State(Status.COMPLETE)
    changed = sorted({name for name, _ in recorded ^ now})
    return State(Status.STALE, f"made from other inputs than now: {', '.join(changed)}")
