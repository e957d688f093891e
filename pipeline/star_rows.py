"""Some stars of a data directory by their ids: where they are, and what is known of them."""

from dataclasses import dataclass

import numpy as np

from pipeline.errors import ShardError
from pipeline.joining import join_rows, take_rows
from pipeline.read import open_shard
from pipeline.run import progress
from pipeline.schema import KINDS, SURVEYS, photometry_columns
from pipeline.select import list_fids

CATALOGUE, INPUT, SPECTRA = "opt_output", "opt_input", "xp"


@dataclass
class StarRows:
    """Stars of a shard, in the order of source_id (n,).

    catalogue, inputs: all columns of step 10, and those of step 9, {name: (n, ...)}; surveys
    {survey: columns of its match file and `matched` (n,) bool, or None where it is not there};
    without: surveys that step 9 did without.
    """

    source_id: np.ndarray
    catalogue: dict
    inputs: dict
    surveys: dict
    without: tuple


def find_ids(data_dir, kind, ids, release, failed):
    """{fid: ids (m,)} of the shards of a kind that hold some of ids (n,).

    Shards whose pixels an id is in are looked at first, the others only for ids that are not there.
    The reasons of those that cannot be read go into failed {fid: reason}.
    """
    found, left = {}, np.unique(np.asarray(ids, np.int64))
    fids = list_fids(data_dir, kind)
    edges = {fid: tuple(int(edge) for edge in fid.split("-")) for fid in fids}
    pixel = release.pixel(left)
    likely = [fid for fid in fids if _within(pixel, *edges[fid]).any()]
    others = [fid for fid in fids if fid not in set(likely)]
    for fid in [*likely, *progress(others, f"ids in {KINDS[kind].folder}")]:
        if not len(left):
            break
        try:
            with open_shard(data_dir, kind, fid, release) as reader:
                here = np.isin(left, reader.source_id())
        except ShardError as error:
            failed[fid] = str(error)
            continue
        if here.any():
            found[fid], left = left[here], left[~here]
    return found


def _within(pixel, first, last):
    return (pixel >= first) & (pixel <= last)


def why_missing(data_dir, ids, release, failed):
    """{id: why the catalogue of a data directory does not have it} of ids that it has not."""
    reasons = dict.fromkeys(map(int, ids), f"not in {data_dir}")
    for kind, words in (
        (SPECTRA, "its spectrum is there, but not in the inputs of step 9: run"),
        (INPUT, "in the inputs, but not in the catalogue: run"),
    ):
        step = KINDS[INPUT if kind == SPECTRA else CATALOGUE].step
        for here in find_ids(data_dir, kind, ids, release, failed).values():
            reasons |= dict.fromkeys(map(int, here), f"{words} {step}")
    return reasons


def read_stars(data_dir, fid, ids, release):
    """`StarRows` of ids (n,) that the catalogue's shard `fid` has.

    ShardError where a file cannot be read, or the inputs lack one of them. A survey whose file is
    not there, or is of no use, is None: a page does without.
    """
    with open_shard(data_dir, CATALOGUE, fid, release) as reader:
        catalogue = _rows(reader, ids, reader.columns)
    with open_shard(data_dir, INPUT, fid, release) as reader:
        inputs = _rows(reader, ids, reader.columns)
        without = tuple(str(reader.attrs.get("without", "")).split())
        if not inputs["matched"].all():
            lost = ids[~inputs["matched"]]
            raise ShardError(f"{reader.path}: no row of {lost[0]}, which the catalogue has")
    surveys = {name: _survey(data_dir, name, fid, ids, release) for name in SURVEYS}
    return StarRows(ids, catalogue, inputs, surveys, without)


def _survey(data_dir, name, fid, ids, release):
    try:
        with open_shard(data_dir, name, fid, release) as reader:
            return _rows(reader, ids, photometry_columns(name))
    except ShardError:
        return None


def _rows(reader, ids, names):
    """{name: (n, ...)} of the rows of ids (n,), NaN, b"" or 0 without a row, and `matched`."""
    index = join_rows(ids, reader.source_id())
    present = np.unique(index[index >= 0])
    place = np.where(index >= 0, np.searchsorted(present, index), -1)
    table = {name: reader.read_rows(name, present) for name in names}
    return take_rows(table, place) | {"matched": index >= 0}
