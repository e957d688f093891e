"""Hashes of the files that belong to a file of ours, which is written last and records them."""

import hashlib
import json
from pathlib import Path

from pipeline.errors import ShardError

ATTRIBUTE = "beside"  # root attribute: {place from the file's folder: hash} as JSON


def record_beside(folder, patterns) -> dict:
    """The attribute that tells of the files in a folder, of these patterns of `Path.glob`."""
    found = sorted(path for pattern in patterns for path in Path(folder).glob(pattern))
    hashes = {str(path.relative_to(folder)): _hash(path) for path in found if path.is_file()}
    return {ATTRIBUTE: json.dumps(hashes)}


def require_beside(path, attrs):
    """ShardError where a file that belongs to `path`, by its attributes, is not as it was."""
    for name, expected in json.loads(attrs.get(ATTRIBUTE, "{}")).items():
        file = Path(path).parent / name
        try:
            found = _hash(file)
        except OSError as error:
            raise ShardError(f"{file}: cannot be read ({error.strerror})") from error
        if found != expected:
            raise ShardError(f"{file}: not as it was written (damaged, or changed)")


def _hash(path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
