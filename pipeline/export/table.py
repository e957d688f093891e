"""One flat table of the catalogue: which columns, which stars, written whole or not at all."""

import fnmatch
from dataclasses import dataclass

import numpy as np

from pipeline.errors import ShardError, UsageError
from pipeline.export.conditions import Condition, Selection, similar
from pipeline.export.flat import TEXT
from pipeline.export.writers import FOR_THE_EYE, FORMATS, About
from pipeline.provenance import provenance
from pipeline.schema import flags
from pipeline.whole_files import whole_file

BATCH_ROWS = 65_536  # handed to a writer at a time; of a row group of Parquet
LASTING = ("script", "version", "release")  # notes of the provenance: the same in every run
NOTES = (*LASTING, "time", "command_line")


def chosen_columns(known, patterns=None, for_the_eye=False) -> list:
    """The columns, of `Catalogue.columns`, that names or patterns like *_corr choose, in their
    order; None: all but those that are written aside. UsageError where one chooses none."""
    if not patterns:
        return [column for column in known.values() if for_the_eye or not column.aside]
    chosen = {}
    for pattern in patterns:
        found = [name for name in known if fnmatch.fnmatchcase(name, pattern)]
        if not found:
            raise UsageError(
                f"--columns {pattern}: no such column{similar(pattern, known)}; all are: "
                + ", ".join(known)
            )
        chosen |= {name: known[name] for name in found}
    return list(chosen.values())


def chosen_stars(known, labels, select=None, cone=None):
    """`Wanted`: what a condition on the columns `known` and a `Cone` choose."""
    conditions = [] if cone is None else [cone]
    if select is not None:
        types = {name: column.dtype for name, column in known.items() if column.dtype != TEXT}
        bits = {flag.name: flag.value for flag in flags.quality_flag(labels)}
        conditions.append(Condition(select, types, bits))
    selection = Selection(tuple(conditions))
    return Wanted(selection, tuple(known[name] for name in selection.names))


@dataclass
class Counts:
    """Rows read, and of these written."""

    read: int = 0
    written: int = 0


def needed(columns) -> tuple:
    """Datasets that columns are made of."""
    return tuple(dict.fromkeys(name for column in columns for name in column.needs))


@dataclass(frozen=True)
class Wanted:
    """The stars that are wanted: a `Selection`, and the columns that it needs."""

    selection: Selection
    tests: tuple

    @property
    def needs(self) -> tuple:
        """Datasets."""
        return needed(self.tests)

    def of(self, table, n) -> np.ndarray:
        """(n,) bool of the rows of a table of datasets."""
        return self.selection.of({test.name: test.values(table) for test in self.tests}, n)


def selected_tables(catalogue, names, wanted, counts, groups=None):
    """Yield {dataset: (n, ...)} of the stars that are `Wanted`; counts them."""
    for table in catalogue.tables((*names, *wanted.needs), groups):
        n = len(table[catalogue.release.id_column])
        kept = wanted.of(table, n)
        if not kept.all():
            table = {name: values[kept] for name, values in table.items()}
        counts.read += n
        counts.written += int(kept.sum())
        if kept.any():
            yield table


def selected_rows(catalogue, columns, wanted, counts, groups=None):
    """Yield {name: (n,)} of columns, for the stars that are `Wanted`; counts them."""
    for table in selected_tables(catalogue, needed(columns), wanted, counts, groups):
        yield {column.name: column.values(table) for column in columns}


def rebatched(tables, n_rows=BATCH_ROWS):
    """Tables {name: (n,)} put together until they have n_rows or more."""
    waiting, n = [], 0
    for table in tables:
        waiting.append(table)
        n += len(next(iter(table.values())))
        if n >= n_rows:
            yield _together(waiting)
            waiting, n = [], 0
    if waiting:
        yield _together(waiting)


def _together(tables):
    if len(tables) == 1:
        return tables[0]
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def about(catalogue, selection, script, argv, names=NOTES) -> About:
    """What a table is told of where it comes from; names: of notes of the provenance."""
    made_by = provenance(script, argv, (), catalogue.release)
    notes = {name: made_by[name] for name in names}
    notes["model"] = "; ".join(catalogue.models)
    notes["shards"] = str(len(catalogue.shards))
    notes["selection"] = selection.text
    labels = ", ".join(label.title for label in catalogue.layout.labels)
    title = f"Stellar parameters ({labels}) from {catalogue.release.title} XP spectra"
    return About(title, notes)


def format_of(out) -> str:
    """The ending of an output. UsageError where it is of no format."""
    if out.suffix not in FORMATS:
        raise UsageError(
            f"{out}: its ending says the format, one of {', '.join(FORMATS)}; for a folder give "
            "--layout"
        )
    return out.suffix


def export_table(catalogue, out, patterns=None, select=None, cone=None, *, script, argv) -> Counts:
    """Write the stars of a `Catalogue` as one table, in the format of the ending of `out`, sorted
    by source id; the number of rows. ShardError where it cannot be written, or a shard be read."""
    ending, known = format_of(out), catalogue.columns
    columns = chosen_columns(known, patterns, ending in FOR_THE_EYE)
    if ending == ".fits" and any(column.dtype == TEXT for column in columns):
        raise UsageError(f"{out}: columns of words are for {', '.join(FOR_THE_EYE)} and .parquet")
    wanted, counts = chosen_stars(known, catalogue.layout.labels, select, cone), Counts()
    rows = rebatched(selected_rows(catalogue, columns, wanted, counts))
    write_checked(out, ending, columns, rows, about(catalogue, wanted.selection, script, argv))
    return counts


def write_checked(out, ending, columns, rows, told) -> int:
    """Write a table in the format of an ending, whole or not at all, and count what is in it; the
    number of rows. ShardError where it cannot be written, or is not all there."""
    write, count = FORMATS[ending]
    try:
        with whole_file(out) as temporary:
            n = write(temporary, columns, rows, told)
            found = count(temporary)
            if found != n:
                raise ShardError(f"{out}: {found} rows are in the file, of {n}; try again")
    except OSError as error:
        raise ShardError(
            f"{out}: cannot be written ({error}); is the disk full, or the folder closed?"
        ) from error
    return n
