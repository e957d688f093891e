"""Compiled programs, kept between processes: half a minute of XLA's for step 10, once a machine.

TensorFlow can keep what XLA compiles in a folder and load it in the next process. Alone it would
fail where an entry is damaged, run what another kind of processor compiled, and look for programs
by names that change with all that a process did before. So each process has a folder of its own,
with links to the entries that it may use: those of its `machine`, whole by the hash in their names.
What it compiles itself is moved to where the next processes look. TensorFlow compares the whole
program before it runs an entry, so other code or another model never runs an old one.

The folder is $XDG_CACHE_HOME/xpfwd (~/.cache/xpfwd); the environment variable XPFWD_CACHE names
another one, or is "off". Entries are machine code: a folder that others can write is not used.
"""

import atexit
import contextlib
import functools
import hashlib
import itertools
import os
import platform
import re
import shutil
import socket
import tempfile
import threading
import time
import zlib
from pathlib import Path

from pipeline.errors import UsageError

VARIABLE = "XPFWD_CACHE"
OFF = ("off", "0", "")
LARGEST_BYTES = 1 << 27  # of all entries, whose hashes every process computes; step 10 has 20 MB
DEAD_SECONDS = 7 * 86400  # without a change: the folder of a process of another host
LEAST_FREE_BYTES = 1 << 28  # on the disk: TensorFlow fails where an entry cannot be written
ENTRY = re.compile(r"(.+\.pb)\.([0-9a-f]{64})")
IN_USE = re.compile(r"use-(.+)-(\d+)-\w+")  # a process's own folder: host and process
PACKAGES = ("tensorflow", "numpy")
# What compilers go by, beside the program: of /proc/cpuinfo, and of the environment.
PROCESSOR = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags", "Features",
             "CPU implementer", "CPU part", "CPU variant", "CPU revision")  # fmt: skip
ENVIRONMENT = ("XLA_FLAGS", "TF_ENABLE_ONEDNN_OPTS")
FLAGS = "TF_XLA_FLAGS"  # variable of the environment, read by TensorFlow
PREFIX = "--tf_xla_persistent_cache_"  # of those that are set here
OURS = f"{PREFIX}prefix=xpfwd"


# ---- which folder ----------------------------------------------------------------------------


def root():
    """The folder of all entries; None where there is to be none."""
    given = os.environ.get(VARIABLE)
    if given is not None:
        return None if given.lower() in OFF else Path(given)
    try:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # no home
        return None
    return Path(caches) / "xpfwd"


def machine():
    """What programs are compiled for, as a short text: the processor with its instructions, the
    number of cores, versions, options; None where it cannot be told."""
    from importlib.metadata import version

    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        fields = dict(line.split(":", 1) for line in first.splitlines() if ":" in line)
        cores = len(os.sched_getaffinity(0))
        versions = [version(name) for name in PACKAGES]
    except (OSError, AttributeError, ImportError):
        return None
    processor = {k.strip(): " ".join(v.split()) for k, v in fields.items()}
    told = [processor.get(name) for name in PROCESSOR]
    if not any(told):
        return None
    options = [os.environ.get(name) for name in ENVIRONMENT] + other_flags()
    words = [platform.machine(), told, cores, versions, options]
    return hashlib.sha256(repr(words).encode()).hexdigest()[:16]


def _require_ours(folder):
    """OSError where a folder is not this user's alone to write, or there is little room left."""
    state = folder.stat()
    if state.st_uid != os.getuid() or state.st_mode & 0o022:
        raise PermissionError(f"{folder} can be written by others")
    if shutil.disk_usage(folder).free < LEAST_FREE_BYTES:
        raise OSError(f"{folder} has less than {LEAST_FREE_BYTES >> 20} MB of room left")


# ---- entries ---------------------------------------------------------------------------------


def _digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_gone(path, host, process):
    """Whether the process that a folder belongs to is gone, as far as can be told from here."""
    if host != socket.gethostname():
        return time.time() - path.stat().st_mtime > DEAD_SECONDS
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    return False


def _remove_dead(folder):
    """Remove what processes that were killed left in `folder`."""
    for path in folder.iterdir():
        found = IN_USE.fullmatch(path.name)
        with contextlib.suppress(FileNotFoundError):
            if found and _is_gone(path, *found.groups()):
                shutil.rmtree(path, ignore_errors=True)


def _link_entries(folder, own):
    """Link the entries of `folder` into a process's `own`; remove those that are damaged."""
    for path in folder.iterdir():
        found = ENTRY.fullmatch(path.name)
        if not found:
            continue
        with contextlib.suppress(FileNotFoundError):  # another process removes old ones
            if _digest(path) != found[2]:
                path.unlink()
                continue
            os.utime(path)
            with contextlib.suppress(FileExistsError):
                (own / found[1]).symlink_to(path)


def publish(own):
    """Move new entries of a process's `own` folder to where the next processes look, unless another
    one was faster."""
    for path in own.glob("*.pb"):
        if not path.is_symlink() and not any(own.parent.glob(f"{path.name}.*")):
            with contextlib.suppress(OSError):
                kept = own.parent / f"{path.name}.{_digest(path)}"
                path.rename(kept)
                path.symlink_to(kept)
    with contextlib.suppress(OSError):
        _remove_oldest(own.parent.parent)


def _remove_oldest(folder):
    """Remove what was not used for longest, until the entries of all machines take at most
    LARGEST_BYTES."""
    entries = [(path.stat(), path) for path in folder.glob("*/*.pb.*")]
    entries.sort(key=lambda entry: entry[0].st_mtime)
    too_much = sum(state.st_size for state, _ in entries) - LARGEST_BYTES
    for state, path in entries:
        if too_much <= 0:
            break
        path.unlink(missing_ok=True)
        too_much -= state.st_size


def open_folder():
    """A folder of this process alone, with links to the entries it may use, removed at its end;
    None where nothing is kept. UsageError where XPFWD_CACHE names a folder that cannot be used."""
    base, kind = root(), machine()
    if base is None or kind is None:
        return None
    try:
        folder = base / kind
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_ours(folder)
        _remove_dead(folder)
        prefix = f"use-{socket.gethostname()}-{os.getpid()}-"
        own = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.resolve()))
        atexit.register(shutil.rmtree, own, ignore_errors=True)
        _link_entries(folder.resolve(), own)
    except OSError as error:
        if VARIABLE in os.environ:
            raise UsageError(
                f"{VARIABLE}={base}: cannot keep compiled programs there ({error}); name a folder "
                f"of your own, or set {VARIABLE}=off"
            ) from error
        return None
    return own


def other_flags():
    """The flags in TF_XLA_FLAGS that are not set here, nor were in the process that started this
    one."""
    given = os.environ.get(FLAGS, "").split()
    return [flag for flag in given if OURS not in given or not flag.startswith(PREFIX)]


def set_up():
    """Have TensorFlow, which is not loaded yet, keep programs; the folder of `open_folder`, or
    None."""
    others = other_flags()
    own = None if any(flag.startswith(PREFIX) for flag in others) else open_folder()
    if own is not None:
        keep = (f"{PREFIX}directory={own}", f"{PREFIX}device_types=CPU", OURS)
        os.environ[FLAGS] = " ".join([*others, *keep])
    return own


# ---- names -----------------------------------------------------------------------------------


FIRST_NUMBER = 1 << 40  # beyond all that TensorFlow counts itself
NUMBERS = 1 << 20  # of one program


class Names(threading.local):
    """Numbers in the names of functions within programs: TensorFlow counts all that a process
    makes, so that the same program would have another name, and not be found, in the next one.
    Within `named`, they follow from what is compiled."""

    numbers = None

    @contextlib.contextmanager
    def named(self):
        """The block calls one compiled function, which calls `begin` if it is traced."""
        before, self.numbers = self.numbers, None
        try:
            yield
        finally:
            self.numbers = before

    def begin(self, *what):
        """Number from here on what belongs to `what`, which repr tells apart."""
        first = FIRST_NUMBER + NUMBERS * _once(zlib.crc32(repr(what).encode()))
        self.numbers = itertools.count(first)


_taken, _lock = set(), threading.Lock()


def _once(number):
    """The number, or the next one not taken in this process."""
    with _lock:
        while number in _taken:
            number += 1
        _taken.add(number)
    return number


names = Names()


def number_by_program():
    """Have TensorFlow take its numbers from `names` where there are any."""
    from tensorflow.python.framework import ops

    counted = ops.uid

    @functools.wraps(counted)
    def uid():
        return counted() if names.numbers is None else next(names.numbers)

    ops.uid = uid


def kept(compile_it, function, own):
    """`function`, compiled by compile_it, its program kept in a process's `own` folder."""

    @functools.wraps(function)
    def traced(*args):
        nonlocal is_new
        is_new = True
        names.begin(function.__qualname__, *map(_form, args))
        return function(*args)

    program, is_new = compile_it(traced), False

    @functools.wraps(function)
    def call(*args):
        nonlocal is_new
        with names.named():
            out = program(*args)
        if is_new:
            is_new = False
            publish(own)
        return out

    return call


def _form(value):
    """Of an argument that is traced, what another program would follow from."""
    if isinstance(value, dict):
        return {name: _form(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_form(one) for one in value]
    return (value.dtype.name, str(value.shape)) if hasattr(value, "shape") else value
