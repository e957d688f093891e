"""The trailer of a file of ours: a hash of all in it that HDF5 takes on trust.

Values of datasets have checksums in HDF5; in its other structures some damage makes it crash or
hang, where nobody can catch it. So behind what HDF5 calls the end of the file stands a hash of all
that is not the values, which is compared before HDF5 opens the file. Other programs do not see it.
One that opens the file to change it cuts it off; that there was one is told by the root attribute
`trailer`. The bytes, in this order, numbers as little-endian int64:

    (n, 2) first byte of each hashed part, and the byte after its last
    n, and where the trailer begins
    BLAKE2b of 16 bytes, of the hashed parts and of all of the trailer before it
    MARK, the last 8 bytes of the file

Files of former versions, and of others, have none: HDF5 is to find their damage itself.
"""

import hashlib
import os
from functools import partial

import h5py
import numpy as np

from pipeline.errors import ShardError
from pipeline.text_heaps import require_heaps

MARK = b"xpfwdEND"
HASH_BYTES = 16
TAIL_BYTES = 16 + HASH_BYTES + len(MARK)  # of the trailer, without its parts
MOST_PARTS = 1 << 24
BLOCK_BYTES = 1 << 20  # hashed at a time
ATTRIBUTE = "trailer"
# HDF5 File Format Specification 3.0, II.A: the superblock of versions 2 and 3.
SIGNATURE, END_AT = b"\x89HDF\r\n\x1a\n", 28
REMEDY = (
    "make or fetch it again; or, where a change was meant, accept it by python "
    "tools/accept_changes.py FILE"
)


def stored_values(file) -> np.ndarray:
    """(m, 2) first byte and the byte after the last of each chunk of an HDF5 file that is open and
    flushed, sorted."""
    found = []

    def look(name, item):
        if isinstance(item, h5py.Dataset) and item.chunks:
            item.id.chunk_iter(lambda one: found.append((one.byte_offset, one.size)))

    file.visititems(look)
    chunks = np.array(sorted(found), np.int64).reshape(-1, 2)
    chunks[:, 1] += chunks[:, 0]
    return chunks


def _between(chunks, end) -> np.ndarray:
    """(n, 2) the parts of a file of `end` bytes that are in no chunk."""
    parts = np.column_stack([np.append(0, chunks[:, 1]), np.append(chunks[:, 0], end)])
    return parts[parts[:, 1] > parts[:, 0]]


def _hash(read_at, parts, tail) -> bytes:
    """The hash of parts of a file, and of the trailer's own bytes before it."""
    digest = hashlib.blake2b(digest_size=HASH_BYTES)
    for first, stop in parts.tolist():
        for start in range(first, stop, BLOCK_BYTES):
            digest.update(read_at(min(BLOCK_BYTES, stop - start), start))
    digest.update(tail)
    return digest.digest()


def append_trailer(sink, chunks):
    """Give a file, which HDF5 has written to a `Sink` and closed, its trailer.

    chunks: its `stored_values` before it was closed.
    """
    end = sink.seek(0, os.SEEK_END)

    def read_at(size, start):
        sink.seek(start)
        return sink.read(size)

    parts = _between(chunks, end)
    tail = parts.astype("<i8").tobytes() + np.array([len(parts), end], "<i8").tobytes()
    found = _hash(read_at, parts, tail)
    sink.seek(end)
    sink.write(tail + found + MARK)


def has_trailer(file, path) -> bool:
    """Whether a file, open without a buffer, has a trailer; ShardError where it has, and is not as
    it was written, or where it has lost it, or where HDF5 would hang on it."""
    size = file.seek(0, os.SEEK_END)
    number = file.fileno()
    tail = os.pread(number, TAIL_BYTES, max(0, size - TAIL_BYTES))
    if not tail.endswith(MARK):
        _require_end(os.pread(number, 64, 0), size, path)
        require_heaps(file, path)
        return False
    n, end = np.frombuffer(tail[:16], "<i8").tolist() if len(tail) == TAIL_BYTES else (-1, 0)
    if not (0 <= n < MOST_PARTS and 0 <= end == size - TAIL_BYTES - 16 * n):
        raise _changed(path)
    before = os.pread(number, 16 * n + 16, end)
    parts = np.frombuffer(before[: 16 * n], "<i8").reshape(-1, 2)
    in_order = np.all(np.diff(parts.ravel(), prepend=0, append=end) >= 0)
    if not in_order or _hash(partial(os.pread, number), parts, before) != tail[16 : -len(MARK)]:
        raise _changed(path)
    return True


def _require_end(head, size, path):
    """ShardError where a file goes on behind what HDF5 calls its end, with no whole trailer."""
    has_end = head.startswith(SIGNATURE) and len(head) == 64 and head[8] in (2, 3)
    if has_end and size > int.from_bytes(head[END_AT : END_AT + 8], "little"):
        raise _changed(path)


def require_none(attrs, path):
    """ShardError where a file has no trailer, but was written with one."""
    if ATTRIBUTE in attrs:
        raise _changed(path)


def _changed(path) -> ShardError:
    return ShardError(
        f"{path}: not as it was written (damaged, or changed by another program): {REMEDY}"
    )
