"""HDF5 files that hold all their content themselves.

Links to other files and storage outside of a file are refused: what they lead to is no part of what
is checked, copied and recorded.
"""

import h5py

from pipeline.content import datasets_of
from pipeline.errors import ShardError


def require_own(file, path):
    """ShardError where an open HDF5 file has links to other files, or data in others."""
    foreign = {}

    def look(name, info):
        if info.type == h5py.h5l.TYPE_EXTERNAL:
            foreign[name.decode(errors="replace")] = "a link to another file"
        elif info.type == h5py.h5l.TYPE_SOFT and file.get(name) is None:
            foreign[name.decode(errors="replace")] = "a link to nothing"

    file.id.links.visit(look, info=True)
    if not foreign:
        for name, data in datasets_of(file).items():
            plan = data.id.get_create_plist()
            if plan.get_layout() == h5py.h5d.VIRTUAL or plan.get_external_count():
                foreign[name] = "stored in another file"
    for name, what in foreign.items():
        raise ShardError(
            f"{path}: {name} is {what}: refused; copy all into one file (h5repack, h5copy)"
        )
