"""Heaps of texts in HDF5 files of others: HDF5 has no checksums of them, and goes round for ever in
one that was zeroed (HDF5 File Format Specification 3.0, III.E: global heap)."""

import os

from pipeline.errors import ShardError

HEAP = b"GCOL\1\0\0\0"  # begins one
BLOCK_BYTES = 1 << 24  # searched at a time
MOST_BYTES = (
    1 << 28
)  # of a heap that is looked through; HDF5's own are of 4 kB, or of one long text
HEAD = 16  # bytes of the head of a heap, and of an object in it
_known = {}  # of files looked through before: {what changes with a file: whether they are sound}


def require_heaps(file, path):
    """ShardError where HDF5 would not get through a heap in a file, open without a buffer."""
    stat = os.fstat(file.fileno())
    stamp = stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
    if stamp not in _known:
        _known[stamp] = _are_sound(file.fileno(), stat.st_size)
    if not _known[stamp]:
        raise ShardError(f"{path}: damaged (texts of its attributes); make or fetch it again")


def _are_sound(number, size) -> bool:
    """Whether all heaps of an open file of so many bytes are sound."""
    head = os.pread(number, HEAD, 0)
    if len(head) < HEAD or head[14 if head[8] < 2 else 10] != 8:  # bytes of a length
        return True
    for start in range(0, size, BLOCK_BYTES):
        block = os.pread(number, BLOCK_BYTES + len(HEAP) - 1, start)
        place = block.find(HEAP)
        while place >= 0:
            if not _is_sound(number, start + place):
                return False
            place = block.find(HEAP, place + 1)
    return True


def _is_sound(number, place) -> bool:
    """Whether the objects of a heap follow one another to its end, as HDF5 walks over them."""
    size = int.from_bytes(os.pread(number, HEAD, place)[8:], "little")
    heap = os.pread(number, min(size, MOST_BYTES), place)
    if len(heap) < size:
        return True  # HDF5 says so itself
    at = HEAD
    while at + HEAD <= size:
        index = int.from_bytes(heap[at : at + 2], "little")
        length = int.from_bytes(heap[at + 8 : at + HEAD], "little")
        step = HEAD + (length + 7) // 8 * 8 if index else length  # 0: what is free, with its head
        if step < HEAD:
            return False
        at += step
    return at <= size
