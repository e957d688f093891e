"""What a file of ours holds, as hashes in it: of each dataset, of all that is said of them, of all.

Root attributes: `digests`, {dataset: hash of its bytes} as JSON; `content_id`, of the datasets'
names, types, shapes, attributes and digests and of what is said of the content, which is the same
for files of the same content, whenever and from wherever they were made. Files of the first
versions have none: of them nothing is known.
"""

import hashlib
import json

import h5py
import numpy as np

from pipeline.errors import ShardError

BLOCK_BYTES = 1 << 24  # read at a time to be hashed
SEAL = "seal"  # attribute of files that former versions wrote, and `heaps`
# Root attributes that tell how a file came to be, or are made here; all others tell of the content.
ABOUT = {"script", "version", "time", "command_line", "inputs", "packages", "complete", "n_rows",
         "id_column", "sourceid_hash", "digests", "content_id", "trailer", "accepted", "beside",
         SEAL, "heaps"}  # fmt: skip


def new_digest():
    """A hash to be updated with the bytes of a dataset."""
    return hashlib.blake2b(digest_size=16)


def digest_of_array(array) -> str:
    """Hash of an array's bytes."""
    digest = new_digest()
    digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def digest_of_dataset(data) -> str:
    """Hash of the bytes of an HDF5 dataset, read block by block."""
    if not data.shape:
        return digest_of_array(data[()])
    row_bytes = max(1, data.dtype.itemsize * int(np.prod(data.shape[1:])))
    digest, n = new_digest(), max(1, BLOCK_BYTES // row_bytes)
    if data.chunks:
        n = max(1, n // data.chunks[0]) * data.chunks[0]
    for start in range(0, len(data), n):
        digest.update(np.ascontiguousarray(data[start : start + n]))
    return digest.hexdigest()


def datasets_of(file) -> dict:
    """{path: dataset} of all in a file, in groups too, by name."""
    found = {}
    for group in (file, *groups_in(file)):
        for name in group:
            if group.get(name, getclass=True, getlink=True) is h5py.HardLink:
                item = group[name]
                found |= {item.name.lstrip("/"): item} if is_dataset(item) else {}
    return dict(sorted(found.items()))


def groups_in(file) -> list:
    """All groups below an open file or group, each once."""
    found, seen, left = [], set(), [file]
    while left:
        group = left.pop()
        for name in group:
            is_hard = group.get(name, getclass=True, getlink=True) is h5py.HardLink
            if is_hard and group.get(name, getclass=True) is h5py.Group:
                place = h5py.h5o.get_info(group[name].id).addr
                if place not in seen:
                    seen.add(place)
                    found.append(group[name])
                    left.append(group[name])
    return found


def is_dataset(item) -> bool:
    return isinstance(item, h5py.Dataset)


def _plain(attrs) -> list:
    """Attributes as they are stored, in words that do not depend on how they are read."""
    found = [(key, np.asarray(attrs[key])) for key in sorted(attrs)]
    return [(key, "" if a.dtype.kind in "OU" else str(a.dtype), a.tolist()) for key, a in found]


def _hash(words) -> str:
    return hashlib.blake2b(repr(words).encode(), digest_size=20).hexdigest()


def content_id(file, digests: dict) -> str:
    """`content_id` of an open file, whose datasets have these digests."""
    datasets = [
        (name, str(data.dtype), data.shape, digests.get(name), _plain(data.attrs))
        for name, data in datasets_of(file).items()
    ]
    return _hash([datasets, _plain({k: v for k, v in file.attrs.items() if k not in ABOUT})])


def put_hashes(file, digests: dict):
    """Give a file that is being written, and has all its other attributes, those of its content."""
    file.attrs["digests"] = json.dumps(digests, sort_keys=True)
    file.attrs["content_id"] = content_id(file, digests)


def read_digests(attrs) -> dict | None:
    """{dataset: its hash} by the root attributes of a file that is as it was written; None where
    it has none."""
    return json.loads(attrs["digests"]) if "digests" in attrs else None


def require_digest(found, digests, name, path):
    """ShardError where a dataset has not the digest that was recorded."""
    if digests is not None and digests.get(name) != found:
        raise ShardError(
            f"{path}: dataset {name} does not hold what was written (damaged): make or fetch the "
            "file again"
        )
