#!/usr/bin/env python3
"""Accept what another program changed in files of ours.

    python tools/accept_changes.py training_data.h5

A file that was opened for writing by another program (h5py, h5repack, HDFView) is refused by all
steps, as damage cannot be told from a change. Where the change was meant, this writes the file anew
with what is in it now, so that it is read again. All values, attributes and checks of the file are
read; the root attribute `accepted` says when. Outputs made from the file before are older than it
then, and made again.

Exit status: 0: all are accepted, or as they were written; 2: one cannot be, and stays as it is.
"""

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import h5py

from pipeline import content, trailer
from pipeline.errors import ShardError
from pipeline.own_content import require_own
from pipeline.read import HDF5_ERRORS
from pipeline.run import usage_exit
from pipeline.write import ShardWriter

BLOCK_BYTES = 1 << 26  # of a dataset, copied at a time
MADE_ANEW = {"complete", "n_rows", "id_column", "sourceid_hash", "digests", "content_id",
             "accepted", trailer.ATTRIBUTE, content.SEAL, "heaps"}  # fmt: skip


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    return parser.parse_args(argv)


def is_as_written(path) -> bool:
    """Whether a file has a trailer that fits. ShardError where there is no such file."""
    try:
        with open(path, "rb", buffering=0) as file:
            return trailer.has_trailer(file, path)
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror})") from error
    except ShardError:
        return False


def copy_rows(writer, name, data):
    """Copy a dataset of a row for each star, block by block."""
    writer.create(name, data.shape[1:], data.dtype)
    writer.set_attributes(name, **data.attrs)
    n_rows = max(1, BLOCK_BYTES * len(data) // max(1, data.nbytes))
    for start in range(0, len(data), n_rows):
        writer.write(name, start, data[start : start + n_rows])


def accept(path):
    """Write a file anew. ShardError where it is none of ours, or what is in it cannot be kept."""
    with h5py.File(path, "r", locking=False) as file:
        require_own(file, path)
        datasets, attrs = content.datasets_of(file), dict(file.attrs)
        if "complete" not in attrs or not attrs["complete"]:
            raise ShardError(f"{path}: incomplete, or not of this project: make it again")
        if lost := [group.name for group in content.groups_in(file) if len(group.attrs)]:
            raise ShardError(f"{path}: the group {lost[0]} has attributes: move them to a dataset")
        column = attrs.get("id_column")
        n_rows = None if column is None else len(datasets[column])
        for name, data in datasets.items():
            if column is not None and (not data.shape or len(data) != n_rows):
                raise ShardError(f"{path}: {name} is {data.shape}, but {column} has {n_rows} rows")
        kept = {key: value for key, value in attrs.items() if key not in MADE_ANEW}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with ShardWriter(path, n_rows, column, kept, {"accepted": now}) as writer:
            for name, data in datasets.items():
                if column is None:
                    writer.write_array(name, data[()], **data.attrs)
                else:
                    copy_rows(writer, name, data)


@usage_exit
def main(argv=None) -> int:
    args = parse_args(argv)
    for path in args.files:
        if is_as_written(path):
            print(f"{path}: as it was written")
            continue
        try:
            accept(path)
        except HDF5_ERRORS as error:
            raise ShardError(f"{path}: cannot be read whole ({error}): make it again") from error
        print(f"{path}: accepted")
    return 0


if __name__ == "__main__":
    sys.exit(main())
