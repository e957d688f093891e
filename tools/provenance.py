#!/usr/bin/env python3
"""Where a file comes from: the chain of files, code and commands behind it.

    python tools/provenance.py data/xp_opt_output_files/xp_opt_output_000000-003111.h5
    python tools/provenance.py output_folder/model.h5 --look . data/ /data/unwise

Prints which script made the file, when, by which version of the code, by which command, for which
release, and its inputs as they were recorded; then the same of each input that is found: in the
folder of the file, in the data directory that it is in, or in the folders that --look names. Of an
input it says whether it still is what was used: as recorded, another content now, or not found.
More than 64 inputs are recorded by their folder.

Exit status: 0, also where inputs are not found; 1 where one has another content now; 2 where FILE
cannot be read.
"""

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.errors import ShardError
from pipeline.provenance import identity
from pipeline.read import ShardReader
from pipeline.run import usage_exit
from pipeline.schema import KINDS

MADE = ("script", "version", "time", "release", "command_line", "content_id")
RECORDED, CHANGED, ABSENT = "as recorded", "another content now", "not found"


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument(
        "--look", nargs="+", type=Path, default=[], metavar="FOLDER", help="where inputs may be"
    )
    return parser.parse_args(argv)


def attributes(path) -> dict:
    """Attributes of a file; {} of one that is no HDF5 file of ours. ShardError where damaged."""
    with path.open("rb") as file:
        if file.read(4) != b"\x89HDF":
            return {}
    with ShardReader(path) as reader:
        return reader.attrs


@dataclass
class Chain:
    """A walk from a file to what it was made from. told: files that were described already;
    n_changed: inputs with another content now."""

    look: list
    told: set = field(default_factory=set)
    n_changed: int = 0

    def folders(self, path):
        """Where inputs of a file may be: with it, in its data directory, where asked to look."""
        data_dir = path.resolve().parent.parent
        kinds = [kind.folder for kind in KINDS.values()]
        for base in (path.resolve().parent, data_dir, *self.look):
            yield base
            yield from (base / folder for folder in kinds)

    def find(self, entry, path):
        """(path or None, what is to be said) of an input recorded in the file `path`."""
        found = None
        for folder in self.folders(path):
            candidate = folder / entry["name"]
            if candidate.is_file():
                found = found or candidate
                if identity(candidate) == entry["identity"]:
                    return candidate, RECORDED
        if found is None:
            return None, ABSENT
        self.n_changed += 1
        return found, CHANGED

    def tell(self, path, indent=0):
        """Print what is known of a file, then of its inputs."""
        margin = " " * indent
        try:
            attrs = attributes(path)
        except ShardError as error:
            print(f"{margin}{error}")
            return
        if "script" not in attrs:
            print(f"{margin}not made by this project")
        for name in MADE:
            if name in attrs:
                print(f"{margin}{name.replace('_', ' ')}: {attrs[name]}")
        for entry in json.loads(attrs.get("inputs", "[]")):
            self.tell_input(entry, path, indent)

    def tell_input(self, entry, path, indent):
        found, state = self.find(entry, path)
        size = f"{entry['size']:,} bytes"
        print(f"{' ' * indent}<- {entry['name']} ({entry['identity']}, {size}): {state}")
        if found is None:
            return
        key = found.resolve()
        if key in self.told:
            print(f"{' ' * indent}   {found}: above")
            return
        self.told.add(key)
        print(f"{' ' * indent}   {found}")
        self.tell(found, indent + 3)


@usage_exit
def main(argv=None) -> int:
    args = parse_args(argv)
    if not args.file.is_file():
        raise ShardError(f"{args.file}: no such file")
    attributes(args.file)
    chain = Chain(args.look)
    chain.told.add(args.file.resolve())
    print(args.file)
    chain.tell(args.file)
    return 1 if chain.n_changed else 0


if __name__ == "__main__":
    sys.exit(main())
