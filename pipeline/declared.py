"""Whether the datasets of a file are as they are declared (pipeline/schema)."""

import h5py
import numpy as np

from pipeline.errors import ShardError
from pipeline.schema import FILES

# Kinds of dtype that a declared one (f, i, u, b, S) may be read from.
KINDS_READ_AS = {"f": "fiu", "i": "iu", "u": "iu", "b": "b", "S": "SO"}


def require_declared(reader, datasets):
    """ShardError where a dataset of a `ShardReader` is not as declared.

    datasets: `schema.Datasets` of a kind of file. Those that are optional, or of a file that
    others made and that are not there, are passed over: reading them says what is missing.
    """
    said = reader.attrs.get("kind")
    _require_format(reader, FILES[said if said in FILES else datasets.kind].format)
    for name, data in datasets.items():
        if reader.has(name) or not (data.optional or "script" not in reader.attrs):
            _require_dataset(reader, name, data)


def _require_format(reader, expected):
    found = reader.attrs.get("format", 1)
    if "script" in reader.attrs and found != expected:
        raise ShardError(
            f"{reader.path}: made by another version of {reader.attrs['script']} (format {found}, "
            f"now {expected}): make it again with that script and --overwrite"
        )


def _require_dataset(reader, name, data):
    reader.require(name)
    item = reader.item(name)
    if not isinstance(item, h5py.Dataset):
        raise ShardError(
            f"{reader.path}: {name} is no dataset, but a {_sort_of(item)}; "
            f"expected {data.dtype} and {data.shape} a row: make or fetch it again"
        )
    found = item.shape[1:] if item.shape else None
    if found != data.shape or not _is_read_as(item.dtype, np.dtype(data.dtype)):
        raise ShardError(
            f"{reader.path}: {name} is {item.dtype} with rows of shape {found}, expected "
            f"{data.dtype} and {data.shape}: make or fetch the file again, or give "
            "--release where it is of another one"
        )
    _require_unit(reader, name, item, data.attributes.get("units"))


def _require_unit(reader, name, item, expected):
    found = item.attrs.get("units")
    if found is None or expected is None:
        return
    if _is_other_unit(str(found), expected, strict="script" in reader.attrs):
        raise ShardError(
            f"{reader.path}: {name} is in {found}, expected {expected}: make the file again"
        )


def _sort_of(item) -> str:
    return "group" if isinstance(item, h5py.Group) else "named type"


def _is_read_as(found, declared) -> bool:
    """Whether a dataset of a dtype is read as one that is declared: numbers as numbers, no enum or
    reference among them."""
    if found.kind == "O":
        return declared.kind == "S" and h5py.check_string_dtype(found) is not None
    if found.kind in "iu" and h5py.check_enum_dtype(found) is not None:
        return False
    return found.kind in KINDS_READ_AS[declared.kind]


def _is_other_unit(found, expected, strict) -> bool:
    """Whether a unit, as it is written, is another one; strict: what is no unit is another."""
    if found.replace(" ", "") == expected.replace(" ", ""):
        return False
    from astropy.units import Unit  # takes a while to load

    try:
        return Unit(found) != Unit(expected)
    except (ValueError, TypeError):
        return strict
