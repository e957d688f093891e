"""The state of every shard of every step: complete, partial, stale, failed, in work, missing.

By attributes alone (pipeline/index.py): a file that opens, carries its marker, is of the format of
today, and was made from what its inputs are now, is complete. Bytes that changed within a file are
found when it is read, not here. What a step's options would change is not known here either.
"""

import enum
import hashlib
import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import lease
from pipeline.index import index, scan
from pipeline.provenance import identity
from pipeline.run_logs import read_logs, time_of
from pipeline.schema import FILES, KINDS, MODEL_FILE
from pipeline.select import FID_PATTERN

GROUPED = re.compile(r"(.+) \(1 files\)")  # an input that is named by its folder
LAST_SECONDS = 3600  # of work that the pace is of
SHARD_NAME = re.compile(rf"(.+)_({FID_PATTERN.pattern})\.(?:h5|hdf5)")
KIND_OF_PREFIX = {kind.prefix: name for name, kind in KINDS.items()}


class Shard(enum.Enum):
    """States, the best first."""

    COMPLETE = "complete"
    WORKING = "in work"
    MISSING = "missing"
    STALE = "stale"
    PARTIAL = "partial"
    FAILED = "failed"


@dataclass
class Step:
    """A step: states {fid: (Shard, reason)}; n_rows, n_bytes of what is there; per_hour: shards
    of the last hour (0: none); hours_left: at that pace, None where there is none; seconds: that
    one took one process in the mean, None where no log says."""

    kind: str
    states: dict = field(default_factory=dict)
    n_rows: int = 0
    n_bytes: int = 0
    per_hour: float = 0.0
    hours_left: float | None = None
    seconds: float | None = None

    def counts(self) -> dict:
        """{Shard: how many}."""
        found = [state for state, _ in self.states.values()]
        return {state: found.count(state) for state in Shard}

    def left(self) -> list[str]:
        """Fids that are not complete, sorted."""
        return sorted(fid for fid, (state, _) in self.states.items() if state is not Shard.COMPLETE)


class Inputs:
    """Identities of files by the names under which outputs record them."""

    def __init__(self, found, model=None):
        self._found, self._model = found, None
        if model is not None and (Path(model) / MODEL_FILE).is_file():
            self._model = identity(Path(model) / MODEL_FILE)

    def now(self, name, fid) -> str | None:
        """Identity of an input of a shard; None where it is not known here, or is gone."""
        if name == MODEL_FILE:
            return self._model
        if match := SHARD_NAME.fullmatch(name):
            return self._of_shard(KIND_OF_PREFIX.get(match[1]), match[2])
        if match := GROUPED.fullmatch(name):
            kind = next((k for k, one in KINDS.items() if one.folder == match[1]), None)
            return self._of_group(kind, fid)
        return None

    def _of_shard(self, kind, fid):
        file = self._found.get(kind, {}).get(fid)
        return file and file.identity

    def _of_group(self, kind, fid):
        file = self._found.get(kind, {}).get(fid)
        if file is None:
            return None
        entry = {"name": file.path.name, "identity": file.identity, "size": file.size}
        return hashlib.sha256(repr(sorted([str(entry)])).encode()).hexdigest()


def state_of_file(kind, fid, file, inputs) -> tuple[Shard, str]:
    """State of a `Found` file, and the reason where it is not complete."""
    said = file.said
    if "fault" in said:
        return Shard.PARTIAL, said["fault"]
    if "script" not in said and KINDS[kind].foreign:
        return Shard.COMPLETE, ""
    if not said.get("complete", False):
        return Shard.PARTIAL, "no marker of completeness"
    which = said.get("kind") if said.get("kind") in FILES else kind
    if said.get("format", 1) != FILES[which].format:
        return Shard.STALE, "made by another version of the script"
    changed = []
    for entry in json.loads(said.get("inputs") or "[]"):
        now = inputs.now(entry["name"], fid)
        if now is not None and now != entry["identity"]:
            changed.append(entry["name"])
    if changed:
        return Shard.STALE, f"made from other inputs than now: {', '.join(sorted(changed))}"
    return Shard.COMPLETE, ""


def _state(kind, fid, folder, file, inputs, said) -> tuple[Shard, str]:
    """State of a shard; file: `Found` or None; said: `run_logs.Said` or None."""
    state, why = state_of_file(kind, fid, file, inputs) if file else (Shard.MISSING, "")
    if state is Shard.COMPLETE:
        return state, ""
    if fid in folder.leases:
        other = lease.holder(folder.leases[fid].with_name(f"{KINDS[kind].prefix}_{fid}.h5"))
        if other is not None:
            return Shard.WORKING, other.words()
    if said and said.failed and not (file and file.mtime > time_of(said.failed[0])):
        return Shard.FAILED, said.failed[1] + (f" ({state.value}: {why})" if why else "")
    return state, why


def _pace(step, mtimes, seconds, now):
    """Fill in how fast a step goes and how long the rest takes."""
    recent = [mtime for mtime in mtimes if now - LAST_SECONDS < mtime <= now]
    n_left = len(step.left())
    if recent:
        step.per_hour = len(recent) / max(now - min(recent), 1.0) * 3600
        step.hours_left = n_left / step.per_hour if n_left else 0.0
    if seconds:
        step.seconds = sum(seconds) / len(seconds)


def find_states(data_dir, kinds=tuple(KINDS), model=None, now=None) -> dict:
    """{kind: Step} of a data directory, whose shards are all that any kind has.

    model: output folder of the training, for the state of what was made with it.
    """
    now = time.time() if now is None else now
    folders = {kind: scan(data_dir, kind) for kind in KINDS}
    found = index(data_dir, folders)
    inputs = Inputs(found, model)
    fids = sorted({fid for folder in folders.values() for fid in folder.files})
    steps = {}
    for kind in kinds:
        files, folder = found[kind], folders[kind]
        logs = read_logs(Path(data_dir) / "logs", Path(KINDS[kind].step).stem)
        step = steps[kind] = Step(kind)
        step.states = {
            fid: _state(kind, fid, folder, files.get(fid), inputs, logs.get(fid)) for fid in fids
        }
        step.n_rows = sum(file.rows for file in files.values())
        step.n_bytes = sum(file.size for file in files.values())
        seconds = [one.seconds for one in logs.values() if one.seconds is not None]
        _pace(step, [file.mtime for file in files.values()], seconds, now)
    return steps
