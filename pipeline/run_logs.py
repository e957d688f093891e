"""What the logs of the steps say of each shard: when it was done, in how long, why it failed."""

import contextlib
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pipeline.select import FID_PATTERN

LINE = re.compile(
    rf"(\S+ \S+) (?:ERROR|INFO) ({FID_PATTERN.pattern}): (?:failed: (.*)|done in ([\d.]+) s)"
)


@dataclass
class Said:
    """The last words on a shard. failed: (when, why) or None; seconds: that it took, or None."""

    failed: tuple | None = None
    seconds: float | None = None
    done: str = ""


def _log_files(folder, script):
    """Logs of a script, of all its parts."""
    pattern = re.compile(rf"{re.escape(script)}(_part\d+-of-\d+)?\.log")
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(path for path in Path(folder).iterdir() if pattern.fullmatch(path.name))
    return []


def read_logs(folder, script) -> dict:
    """{fid: Said} of a script (its name without .py), from the logs in a folder."""
    said = {}
    for path in _log_files(folder, script):
        with contextlib.suppress(OSError), open(path, errors="replace") as lines:
            for line in lines:
                if match := LINE.match(line):
                    _hear(said.setdefault(match[2], Said()), *match.group(1, 3, 4))
    for one in said.values():
        if one.failed and one.failed[0] < one.done:
            one.failed = None
    return said


def _hear(one, when, why, seconds):
    if why is None:
        if when >= one.done:
            one.done, one.seconds = when, float(seconds)
    elif one.failed is None or when >= one.failed[0]:
        one.failed = when, why


def time_of(when) -> float:
    """Seconds since 1970 of a time as the logs write it."""
    return datetime.strptime(when, "%Y-%m-%d %H:%M:%S,%f").timestamp()
