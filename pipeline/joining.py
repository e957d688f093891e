"""Joining the rows of shards by id, chunk by chunk."""

from dataclasses import dataclass

import numpy as np

from pipeline.errors import ShardError
from pipeline.read import open_shard, require_unique
from pipeline.schema import KINDS, Layout, resolved
from pipeline.xp_basis import load_xp_basis


def join_rows(wanted_ids, other_ids) -> np.ndarray:
    """(N,) int64 row of each wanted id in `other_ids` (any order), -1 where it is absent.

    ShardError where `other_ids` repeats an id.
    """
    wanted = np.asarray(wanted_ids, np.int64)
    other = np.asarray(other_ids, np.int64)
    require_unique(other, "the table to join")
    if not len(other):
        return np.full(len(wanted), -1)
    order = np.argsort(other)
    place = np.minimum(np.searchsorted(other, wanted, sorter=order), len(other) - 1)
    rows = order[place]
    return np.where(other[rows] == wanted, rows, -1)


def take_rows(table: dict, index) -> dict:
    """Rows `index` of each column; where index is -1: NaN, b"" or 0 by the column's type."""
    index = np.asarray(index)
    out = {}
    for name, column in table.items():
        fill = np.nan if column.dtype.kind in "fc" else b"" if column.dtype.kind == "S" else 0
        out[name] = np.full((len(index), *column.shape[1:]), fill, column.dtype)
        out[name][index >= 0] = column[index[index >= 0]]
    return out


def _declared(kind, names, release):
    """The `schema.Datasets` of the columns of `Needs`."""
    datasets = resolved(kind, Layout(release))
    return datasets.only([n for n in (*names.required, *names.optional) if n in datasets])


def _spectra(reader, wanted, release):
    """(kind, `Needs`) of what a shard of spectra holds in the place of the `Needs` wanted.

    ShardError where its spectra were sampled with another basis than the release's.
    """
    if reader.attrs.get("kind") != "sampled" or not wanted.required:
        return "xp", wanted
    found, expected = reader.attrs.get("xp_basis"), load_xp_basis(release).source
    if found != expected:
        raise ShardError(
            f"{reader.path}: sampled with the basis {found!r}, but {expected!r} is in use: convert "
            "the spectra again"
        )
    return "sampled", Needs(tuple(resolved("sampled", Layout(release))))


def _joined_table(data_dir, fid, kind, names, ids, release) -> dict:
    """Small columns of a kind in the order of `ids`; `matched` tells which have a row."""
    with open_shard(data_dir, kind, fid, release) as reader:
        reader.check(_declared(kind, names, release))
        index = join_rows(ids, reader.source_id())
        table = reader.read_table(names.required, optional=names.optional)
    return {**take_rows(table, index), "matched": index >= 0}


@dataclass(frozen=True)
class Needs:
    """The datasets that a step reads of a kind of shard."""

    required: tuple = ()
    optional: tuple = ()


def aligned_chunks(
    data_dir, fid, needs: dict, release, wanted_rows=None, chunk_size=2048, look=None
):
    """Yield (rows, {kind: table or None}) with the rows of all kinds aligned to the spectra's.

    needs: {kind: Needs}; must hold "xp", whose shard gives the order and is read at most
    `chunk_size` rows at a time; where it holds sampled spectra in the place of coefficients, its
    table has those. The other kinds are small: they are read whole and joined by id;
    their rows without a match are NaN, b"" or 0, and False in an added column `matched`. Kinds not
    in `needs` come as None. wanted_rows: row numbers of the spectra shard (any order), None for
    all; others are not read. rows: (n,) int64, increasing. The "xp" table always holds its id
    column. look: called first with the reader of the spectra, if it holds coefficients. Raises
    ShardError for every fault of a file.
    """
    with open_shard(data_dir, "xp", fid, release) as reader:
        kind, xp = _spectra(reader, needs["xp"], release)
        reader.check(_declared(kind, xp, release))
        if look is not None and kind == "xp":
            look(reader)
        ids = reader.source_id()
        wanted = np.arange(len(ids)) if wanted_rows is None else np.unique(wanted_rows)
        joined = {
            kind: _joined_table(data_dir, fid, kind, names, ids, release)
            for kind, names in needs.items()
            if kind != "xp"
        }
        present = [*xp.required, *(name for name in xp.optional if name in reader.columns)]
        for start in range(0, len(wanted), chunk_size):
            rows = wanted[start : start + chunk_size]
            tables = dict.fromkeys(KINDS) | {
                kind: {name: column[rows] for name, column in table.items()}
                for kind, table in joined.items()
            }
            tables["xp"] = {name: reader.read_rows(name, rows) for name in present}
            tables["xp"][KINDS["xp"].id_column(release)] = ids[rows]
            yield rows, tables
