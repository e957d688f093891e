"""Shards of spectra from files of any form: streamed of one file, or put together of several."""

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from pipeline.errors import ShardError
from pipeline.read import ShardReader
from pipeline.row_store import folder_beside
from pipeline.schema import Layout, resolved
from pipeline.spectra_account import MOST_NAMED, checked_tables, report
from pipeline.spectra_files import faults_of
from pipeline.spectra_merge import NAMED_IDS, Gathered, edges_of
from pipeline.spectra_others import SORTED
from pipeline.spectra_plan import OtherReleaseError
from pipeline.spectra_tables import spectra_in
from pipeline.write import ShardWriter


class NotOneTableError(Exception):
    """A file does not stream into a shard: it repeats ids, or has several tables."""


def write_tables(tables, output, datasets, made_by, account) -> int:
    """Write tables one after another; returns the number of rows.

    account(ids): attributes of the file, asked for after the last table.
    """
    first, ids = list(itertools.islice(tables, 2)), []
    n_rows = sum(len(table["source_id"]) for table in first) if len(first) < 2 else None
    with ShardWriter(output, n_rows, "source_id", made_by) as writer:
        writer.create_columns(datasets)
        start = 0
        for table in itertools.chain((first.pop(0) for _ in range(len(first))), tables):
            writer.write_table(table, start=start)
            ids.append(table["source_id"])
            start += len(ids[-1])
        writer.describe(**account(np.concatenate(ids) if ids else np.empty(0, int)))
    return start


@dataclass(frozen=True)
class Form:
    """What a shard holds. kind: a key of `schema.FILES`; make(table): its table of one of
    coefficients, None: that itself; attributes: of the shard."""

    kind: str = "xp"
    make: Callable | None = None
    attributes: dict = field(default_factory=dict)

    def datasets(self, columns, release):
        """The `schema.Datasets` of a shard, whose spectra come with some columns."""
        datasets = resolved(self.kind, Layout(release))
        return datasets.only(columns) if self.make is None else datasets

    def tables(self, tables):
        """Tables of coefficients in this form."""
        for table in tables:
            try:
                made = table if self.make is None else self.make(table)
            except ValueError as error:  # a basis id or a shape
                raise OtherReleaseError(f"{error}; give its --release") from error
            yield {"source_id": table["source_id"], **made}


WHOLE = Form()


def warn_of_others(ids, fid, release, log):
    """One line where a shard has sources that are not in the pixels of its name."""
    first, last = edges_of(fid)
    pixel = release.pixel(ids)
    outside = ids[(pixel < first) | (pixel > last)]
    if len(outside):
        log.warning(
            "%s: %d of %d sources are not in the pixels that the name of its file says, e.g. %d: "
            "step 7 will not find their labels; give the file another name, to have them sorted",
            fid, len(outside), len(ids), outside[0],
        )  # fmt: skip


def stream(path, fid, output, release, log, made_by, form=WHOLE) -> dict:
    """One bulk file to one shard, row for row; counters for the log.

    Raises NotOneTableError where that cannot be, ShardError for every fault of the file.
    """
    with faults_of(path), contextlib.closing(spectra_in(path, release)) as sources:
        source = next(sources)
        tables = checked_tables(source.tables(), source.account)

        def account(ids):
            if len(np.unique(ids)) < len(ids) or next(sources, None) is not None:
                raise NotOneTableError
            warn_of_others(ids, fid, release, log)
            report(source, log)
            return source.account.attributes() | form.attributes

        datasets = form.datasets(source.columns, release)
        n_rows = write_tables(form.tables(tables), output, datasets, made_by, account)
    return {"stars": n_rows, **source.account.counters()}


def put_together(gathered, rows, accounts, output, log, made_by, form=WHOLE, **said) -> dict:
    """Rows of a `Gathered` to one shard, each source once; counters for the log.

    accounts: what is odd in their inputs. ShardError where a source has two spectra.
    """
    rows, repeated = gathered.without_repeats(rows)
    if len(repeated):
        log.warning(
            "%s: %d sources were there more than once, the same each time, and are kept once: "
            "source_id %s",
            output.name, len(repeated), " ".join(map(str, repeated[:NAMED_IDS])),
        )  # fmt: skip
        log.info("all of them: %s", " ".join(map(str, repeated)))
        said |= {"n_repeated": len(repeated)}
        said |= {"repeated_source_id": " ".join(map(str, repeated[:MOST_NAMED]))}
    release, attrs = accounts[0].release, [one.attributes() for one in accounts]
    for name in attrs[0]:
        said[name] = "; ".join(filter(None, (one[name] for one in attrs)))[: 20 * MOST_NAMED]
    tables, datasets = gathered.tables(rows), form.datasets(gathered.columns(), release)
    said |= form.attributes
    n_rows = write_tables(form.tables(tables), output, datasets, made_by, lambda ids: said)
    return {"stars": n_rows, "repeats dropped": len(repeated)}


def put_files_together(files, others, fid, output, release, log, made_by, form=WHOLE) -> dict:
    """The sources of several files of a shard, and of the `Others` (or None) in it, to one shard.

    As `put_together`. The order is the file's, where it is one, else by id.
    """
    gathered, accounts = Gathered(release, folder_beside(output.parent)), []
    for path in files:
        with faults_of(path), contextlib.closing(spectra_in(path, release)) as sources:
            for source in sources:
                tables = checked_tables(source.tables(), source.account)
                gathered.add(tables, source.account.path)
                accounts.append(source.account)
                report(source, log)
    counters = [account.counters() for account in accounts]
    if others is not None:
        rows = others.rows(fid)
        origin = others.gathered.origin[rows]
        for i in np.unique(origin):
            tables = others.gathered.tables(rows[origin == i])
            gathered.add(tables, others.gathered.inputs[i])
            accounts.append(others.accounts[i])
    rows = np.arange(len(gathered.ids))
    if len(gathered.inputs) > 1:
        rows = rows[np.argsort(gathered.ids, kind="stable")]
    warn_of_others(gathered.ids, fid, release, log)
    found = put_together(gathered, rows, accounts, output, log, made_by, form)
    return found | {name: sum(one[name] for one in counters) for name in counters[0]}


def put_others_together(others, fid, output, log, made_by, form=WHOLE, overwrite=False) -> dict:
    """The `Others` of a shard that has no bulk file, by ascending id. As `put_together`.

    ShardError where the shard is there and has sources that are in no file given now.
    """
    rows = others.rows(fid)
    rows = rows[np.argsort(others.gathered.ids[rows], kind="stable")]
    ids = others.gathered.ids[rows]
    gone = np.setdiff1d(_ids_in(output), ids)
    if len(gone) and not overwrite:
        raise ShardError(
            f"{output}: holds {len(gone)} sources that are in none of the files given now, e.g. "
            f"{gone[0]}: give all files, or --overwrite to do without them"
        )
    origins = np.unique(others.gathered.origin[rows])
    accounts = [others.accounts[i] for i in origins]
    return put_together(
        others.gathered, rows, accounts, output, log, made_by, form, **{SORTED: True}
    )


def _ids_in(path) -> np.ndarray:
    """Ids of a shard; none where it is not there or damaged."""
    with contextlib.suppress(ShardError), ShardReader(path, "source_id") as reader:
        return reader.source_id()
    return np.empty(0, np.int64)


def convert(files, output, release, log, made_by, form=WHOLE, others=None, fid=None) -> dict:
    """Make one shard of its bulk files and of the `Others` in it (None: none); its counters.

    Raises ShardError for every fault of a file.
    """
    others = others if others is not None and len(others.rows(fid)) else None
    if len(files) == 1 and others is None:
        with contextlib.suppress(NotOneTableError):
            return stream(files[0], fid, output, release, log, made_by, form)
    return put_files_together(files, others, fid, output, release, log, made_by, form)
