"""Temporary files beside what they become: named after their process, cleared, put in its place."""

import contextlib
import os
import re
import shutil
import socket
import time
import uuid
from pathlib import Path

from pipeline import signals
from pipeline.errors import unwritable

OWNED = r"(.+)-(\d+)\.[0-9a-f]+\.part"  # host and process of a temporary
LONGEST = 86400  # s, that a temporary of another host may be untouched


def temporary_beside(path) -> Path:
    """A new name for what becomes `path`; it tells whose it is, for `remove_dead_temporaries`."""
    path = Path(path)
    owner = f"{socket.gethostname()}-{os.getpid()}"
    return path.with_name(f".{path.name}.{owner}.{uuid.uuid4().hex[:8]}.part")


def remove_dead_temporaries(path) -> None:
    """Remove what killed runs left beside `path`, of it; of a folder, of all that is in it.

    Their process is gone, or they were not touched for a day: only processes of this machine can be
    asked; a cluster's other nodes get the day.
    """
    path = Path(path)
    if path.is_dir():
        _remove_dead_in(path, r".+\.\w+")
    else:
        _remove_dead_in(path.parent, re.escape(path.name))


def _remove_dead_in(folder, name):
    pattern = re.compile(rf"\.{name}\.{OWNED}")
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if match := pattern.fullmatch(name):
                _remove_dead(folder / name, *match.groups())


def _remove_dead(temporary, host, pid):
    with contextlib.suppress(OSError):
        if _process_gone(host, pid) or time.time() - temporary.lstat().st_mtime > LONGEST:
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink()


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


class Sink:
    """A new file for HDF5 to write to, that never fails: `error` is the first fault of the disk.

    HDF5 ends the process (SIGSEGV) where it cannot write on closing. So what the disk does not take
    is kept in memory, and read from there, until the file is given up: a few MB of caches.
    """

    def __init__(self, path):
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o666)
        self._place, self._size, self._kept, self.error = 0, 0, [], None

    def seek(self, offset, whence=os.SEEK_SET):
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = start + offset
        return self._place

    def tell(self):
        return self._place

    def write(self, content):
        content = memoryview(content).cast("B")
        start, self._place = self._place, self._place + len(content)
        self._size = max(self._size, self._place)
        if self.error is None:
            try:
                self._write_all(content, start)
            except OSError as error:
                self.error = error
        if self.error is not None:
            self._kept.append((start, bytes(content)))
        return len(content)

    def _write_all(self, content, start):
        while len(content):
            n = os.pwrite(self._descriptor, content, start)
            content, start = content[n:], start + n

    def readinto(self, buffer):
        buffer = memoryview(buffer).cast("B")
        start, stop = self._place, self._place + len(buffer)
        found = os.pread(self._descriptor, len(buffer), start)
        buffer[: len(found)] = found
        buffer[len(found) :] = bytes(len(buffer) - len(found))
        for place, content in self._kept:
            first, last = max(place, start), min(place + len(content), stop)
            if first < last:
                buffer[first - start : last - start] = content[first - place : last - place]
        self._place = stop
        return len(buffer)

    def read(self, size):
        buffer = bytearray(min(size, max(0, self._size - self._place)))
        self.readinto(buffer)
        return bytes(buffer)

    def truncate(self, size=None):
        self._size = self._place if size is None else size
        if self.error is None:
            try:
                os.ftruncate(self._descriptor, self._size)
            except OSError as error:
                self.error = error
        return self._size

    def flush(self):
        """Nothing is held back."""

    def sync(self):
        """Have all on the disk. OSError where it does not take it."""
        if self.error is None:
            os.fsync(self._descriptor)

    def close(self):
        os.close(self._descriptor)


def put_in_place(temporary, path):
    """Give a file, which is on the disk, its final name."""
    os.replace(temporary, path)
    with contextlib.suppress(OSError):  # some network file systems cannot sync a folder
        _sync(Path(path).parent)


def _sync(path):
    """Have a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path, text: str) -> None:
    """Write a small text file, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


@contextlib.contextmanager
def whole_file(path):
    """A path to write to in the `with` block, which becomes `path` at its end; nothing where an
    exception is raised. What killed runs left of it is removed. WriteError where the disk does not
    take it."""
    path = Path(path)
    remove_dead_temporaries(path)
    temporary = temporary_beside(path)
    try:
        yield temporary
        _sync(temporary)
        put_in_place(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def whole_folder(path):
    """A new folder to write into in the `with` block, which takes the place of `path`, whatever is
    there, at its end; as `whole_file`."""
    path = Path(path)
    temporary, former = temporary_beside(path), temporary_beside(path)
    try:
        _remove_dead_in(path.parent, re.escape(path.name))
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync(file)
        with signals.held():
            with contextlib.suppress(FileNotFoundError):
                os.rename(path, former)
            put_in_place(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        for folder in (temporary, former):
            shutil.rmtree(folder, ignore_errors=True)


def write_bytes(path, content: bytes) -> None:
    """Write a small file, whole or not at all. As `whole_file`."""
    with signals.held(), whole_file(path) as temporary, open(temporary, "xb") as file:
        file.write(content)
