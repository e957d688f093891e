"""Leases: a small file beside an output tells which process is making it, so that no two do.

A lease only saves work: outputs appear whole or not at all, so two processes at one shard do no
harm. It is a hidden file `.NAME.lease`, refreshed every BEAT_SECONDS, that its process removes. One
whose process is gone (on this machine), was an earlier run of the same Slurm job, or has not
refreshed it for STALE_SECONDS is taken over. Ages are by the file system's clock, not by this
machine's.
"""

import contextlib
import errno
import json
import os
import socket
import threading
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipeline.write import remove_dead_temporaries, temporary_beside

BEAT_SECONDS = 30
STALE_SECONDS = 300  # a busy network file system may show a change a minute late
TRIES = 5
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True)
class Lease:
    """Who makes an output. machine: host and, in a container, which; started: of the process, by
    the kernel; job, restart: of Slurm; token: tells leases apart."""

    host: str
    machine: str
    pid: int
    started: str
    job: str
    restart: int
    since: str
    token: str

    def words(self) -> str:
        job = f", Slurm job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"


def lease_path(output) -> Path:
    """The lease of an output."""
    output = Path(output)
    return output.with_name(f".{output.name}.lease")


def _started(pid) -> str:
    """When a process began, in the kernel's ticks; "" where that is not known or it is gone."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def _machine() -> str:
    with contextlib.suppress(OSError):
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def _own() -> Lease:
    job = os.environ.get("SLURM_JOB_ID", "")
    restart = os.environ.get("SLURM_RESTART_COUNT", "0")
    return Lease(
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        started=_started(os.getpid()),
        job=job,
        restart=int(restart) if restart.isdigit() else 0,
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        token=uuid.uuid4().hex,
    )


def _process_gone(lease) -> bool:
    """Whether a process of this machine is gone; another may have its number by now."""
    try:
        os.kill(lease.pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    return bool(lease.started) and _started(lease.pid) not in ("", lease.started)


def _age(path) -> float:
    """Seconds since a file was refreshed, by the clock of its file system."""
    probe = temporary_beside(path)
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _is_dead(lease, age) -> bool:
    if age > STALE_SECONDS:
        return True
    if lease is None:  # just being written, or unreadable: only its age counts
        return False
    own = _own()
    if lease.job and lease.job == own.job and lease.restart < own.restart:
        return True
    return lease.machine == own.machine and _process_gone(lease)


def _read(path) -> Lease | None:
    """A lease; None where it cannot be read. FileNotFoundError where there is none."""
    try:
        return Lease(**json.loads(path.read_text()))
    except (ValueError, TypeError):
        return None


def holder(output, age=None) -> Lease | None:
    """The live lease of an output, or None; age: of its file in seconds, where it is known."""
    path = lease_path(output)
    with contextlib.suppress(OSError):
        lease = _read(path)
        if lease is not None and not _is_dead(lease, _age(path) if age is None else age):
            return lease
    return None


# ---- taking and giving back ------------------------------------------------------------------


def _create(path, lease) -> bool:
    """Make the file of a lease, whole at once; False where there is one."""
    content = json.dumps(asdict(lease))
    draft = temporary_beside(path)
    try:
        draft.write_text(content)
        os.link(draft, path)
    except FileExistsError:  # NFS may say so of a link that it made, when its answer got lost
        return draft.stat().st_nlink == 2
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        try:
            with open(path, "x") as file:
                file.write(content)
        except FileExistsError:
            return False
    finally:
        draft.unlink(missing_ok=True)
    return True


def _remove(path, lease) -> None:
    """Remove a lease, if it is still this one: another may have been made in its place."""
    aside = temporary_beside(path)
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, aside)
        if _read(aside) != lease:
            with contextlib.suppress(OSError):
                os.link(aside, path)
        aside.unlink()


def _take(path) -> tuple[Lease | None, Lease | None]:
    """(own lease, None), or (None, who else has it)."""
    own, other = _own(), None
    for _ in range(TRIES):
        if _create(path, own):
            return own, None
        remove_dead_temporaries(path)
        with contextlib.suppress(FileNotFoundError):  # given back since
            other = _read(path)
            if not _is_dead(other, _age(path)):
                break
            _remove(path, other)
    nobody = Lease("a host unknown", "", 0, "", "", 0, "just now", "")
    return None, other or nobody


class _Beats:
    """Refreshes the leases held by this process, in one thread."""

    def __init__(self):
        self._held, self._lock, self._thread = set(), threading.Lock(), None

    def add(self, path):
        with self._lock:
            self._held.add(path)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._beat, name="leases", daemon=True)
                self._thread.start()

    def drop(self, path):
        with self._lock:
            self._held.discard(path)

    def _beat(self):
        while True:
            threading.Event().wait(BEAT_SECONDS)
            with self._lock:
                if not self._held:
                    self._thread = None
                    return
                held = list(self._held)
            for path in held:
                with contextlib.suppress(OSError):
                    os.utime(path)


_BEATS = _Beats()


@contextlib.contextmanager
def taken(output):
    """Hold the lease of an output while the block lasts.

    Yields None, or the `Lease` of the process that has it; then the block is to leave the output
    alone. Where no lease can be written (the writer of the output says why), none is held.
    """
    path = lease_path(output)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        own, other = _take(path)
    except OSError:
        own, other = None, None
    if own is None:
        yield other
        return
    _BEATS.add(path)
    try:
        yield None
    finally:
        _BEATS.drop(path)
        with contextlib.suppress(OSError):
            _remove(path, own)
