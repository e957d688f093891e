"""HDF5 files that hold all their content themselves.

Links to other files and storage outside of a file are refused: what they lead to is no part of what
is checked, copied and recorded.
"""

import h5py

from pipeline.content import datasets_of, groups_in
from pipeline.errors import ShardError


def require_own(file, path):
    """ShardError where an open HDF5 file has links to other files, or data in others."""
    foreign = {}

    # Name by name: H5Lvisit ends the process on some files that are damaged.
    for group in (file, *groups_in(file)):
        for name in group:
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                foreign[name] = "a link to another file"
            elif isinstance(link, h5py.SoftLink) and group.get(name) is None:
                foreign[name] = "a link to nothing"
    if not foreign:
        for name, data in datasets_of(file).items():
            plan = data.id.get_create_plist()
            if plan.get_layout() == h5py.h5d.VIRTUAL or plan.get_external_count():
                foreign[name] = "stored in another file"
    for name, what in foreign.items():
        raise ShardError(
            f"{path}: {name} is {what}: refused; copy all into one file (h5repack, h5copy)"
        )
