"""What a step asks an archive for: ADQL of a release's tables and columns, less those not there."""

import re
import threading
from dataclasses import dataclass, replace

from pipeline.errors import ShardError, UsageError
from pipeline.schema import Release
from pipeline.tap_answer import plain_columns
from pipeline.tap_jobs import ShardJobs
from pipeline.tap_service import TapService

IDS_PER_QUERY = 2000  # asked for by name in one query: 40 kB of ADQL
# A range is asked for as a whole where it is expected to hold no more sources with spectra than
# this, or than this many for each one wanted.
MOST_IN_RANGE, MOST_FOR_EACH = 500_000, 100
MEAN_SOURCES = 219e6 / (12 * 4**8)  # with spectra, in a HEALPix pixel of level 8
TEXT = "S256"  # of the names in TAP_SCHEMA


@dataclass(frozen=True)
class Column:
    """A column asked for: role of its table (a key of the release's), the archive's name of it,
    type of our dataset; needed: without it the step cannot do."""

    table: str
    name: str
    dtype: str
    needed: bool = True


@dataclass(frozen=True)
class Join:
    """A table joined to those before it where table.column = other.other_column; their rows stay.

    Tables by their roles, columns by our names.
    """

    table: str
    column: str
    other: str
    other_column: str


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked about the sources of each shard.

    columns: {our name: Column}, with `source_id`; joins: of the tables beside that of the sources;
    absent: our names of columns that the archive has not. Tables have their roles as aliases.
    """

    release: Release
    columns: dict
    joins: tuple = ()
    absent: tuple = ()

    @property
    def tables(self) -> dict:
        """{role: the archive's name} of the tables in use."""
        roles = ["source", *(join.table for join in self.joins)]
        return {role: self.release.archive.tables[role] for role in roles}

    @property
    def dtypes(self) -> dict:
        """{our name: dtype} of the columns of an answer."""
        return {name: column.dtype for name, column in self.columns.items()}

    def _of(self, role, column) -> str:
        return f"{role}.{self.release.archive.name_of(column, role)}"

    def query(self, where) -> str:
        """ADQL for the sources that fulfil a condition."""
        items = ", ".join(
            f"{column.table}.{column.name}" + ("" if column.name == name else f" AS {name}")
            for name, column in self.columns.items()
        )
        source, *others = self.tables.items()
        text = f"SELECT {items} FROM {source[1]} AS {source[0]}"
        for (role, table), join in zip(others, self.joins, strict=True):
            on = f"{self._of(role, join.column)} = {self._of(join.other, join.other_column)}"
            text += f" LEFT OUTER JOIN {table} AS {role} ON {on}"
        return f"{text} WHERE {where}"

    def of_range(self, ids, fid) -> str | None:
        """The query for the ids (n,) that lie in the range of shard `fid`; None where none does.

        Ids that stray out of the file's range would stretch the range over the sky. None also where
        few ids lie in a wide range, of which the archive has many others.
        """
        first, last = (int(pixel) for pixel in fid.split("-"))
        pixels = self.release.pixel(ids)
        inside = ids[(pixels >= first) & (pixels <= last)]
        if not len(inside) or self._is_sparse(inside):
            return None
        spectrum = self.release.archive.has_spectrum
        condition = f" AND source.{spectrum}" if spectrum else ""
        source_id = self._of("source", "source_id")
        return self.query(f"{source_id} BETWEEN {inside.min()} AND {inside.max()}{condition}")

    def _is_sparse(self, ids) -> bool:
        """Whether the range of ids (n,) is expected to hold far more than these."""
        pixels = self.release.pixel(ids)
        level_8 = 4.0 ** (8 - self.release.healpix_level)  # of them in a pixel of the release
        expected = MEAN_SOURCES * level_8 * (pixels.max() - pixels.min() + 1)
        return expected > max(MOST_IN_RANGE, MOST_FOR_EACH * len(ids))

    def by_name(self, ids):
        """Queries for ids (n,), whether or not the archive says that they have spectra."""
        for start in range(0, len(ids), IDS_PER_QUERY):
            names = ", ".join(map(str, ids[start : start + IDS_PER_QUERY].tolist()))
            yield self.query(f"{self._of('source', 'source_id')} IN ({names})")

    def needed(self) -> list[tuple]:
        """(role, the archive's name) of the columns without which it cannot be asked."""
        found = [(column.table, column.name) for column in self.columns.values() if column.needed]
        for join in self.joins:
            for role, column in ((join.table, join.column), (join.other, join.other_column)):
                found.append((role, self.release.archive.name_of(column, role)))
        spectrum = re.match(r"\w+", self.release.archive.has_spectrum)
        return found + ([("source", spectrum[0])] if spectrum else [])

    def less(self, names) -> "Question":
        """The same question without some columns (our names), which are absent."""
        columns = {name: column for name, column in self.columns.items() if name not in names}
        return replace(self, columns=columns, absent=(*self.absent, *names))


def ask_about(release, columns, joins) -> Question:
    """The question for columns {our name: Column}, as far as the release has their tables.

    Columns that are not needed are left out with their table. UsageError where one is needed.
    """
    named = {role for role, table in release.archive.tables.items() if table}
    lacking = {name: c for name, c in columns.items() if c.table not in named}
    needed = sorted({column.table for column in lacking.values() if column.needed})
    needed += ["source"] if "source" not in named else []
    if needed:
        raise UsageError(
            f"the release {release.name} has no table {', '.join(needed)}: name it in "
            "[archive.tables] of the release's file, or go on without this step"
        )
    joins = tuple(join for join in joins if join.table in named)
    return Question(release, columns, joins).less(tuple(lacking))


# ---- what the archive has --------------------------------------------------------------------


def _bare(table) -> str:
    return table.rpartition(".")[2]


def schema_query(tables) -> str:
    """ADQL for the columns of tables, whose names may be listed with or without their schema."""
    names = {form for table in tables for form in (table, _bare(table))}
    names = sorted({form for name in names for form in (name, name.lower(), name.upper())})
    listed = ", ".join(f"'{name}'" for name in names)
    return f"SELECT table_name, column_name FROM TAP_SCHEMA.columns WHERE table_name IN ({listed})"


def archive_columns(service: TapService, tables) -> dict:
    """{table: names of its columns, lower case}, of the tables that the service describes.

    Raises ShardError where it does not answer.
    """
    jobs = ShardJobs(service, None, "TAP_SCHEMA")
    answer = jobs.fetch(schema_query(tables))
    jobs.finish()
    rows = plain_columns(answer, {"table_name": TEXT, "column_name": TEXT})
    found = {}
    for table, column in zip(rows["table_name"], rows["column_name"], strict=True):
        name = table.decode().lower().replace('"', "")
        found.setdefault(name, set()).add(column.decode().lower().strip('"'))
    described = {t: found.get(t.lower(), found.get(_bare(t).lower())) for t in tables}
    return {table: columns for table, columns in described.items() if columns}


def require_needed(question, url, existing):
    """UsageError where a needed column is not among the existing {table: names} of the archive."""
    lacking = {}
    for role, name in question.needed():
        table = question.tables[role]
        if table in existing and name.lower() not in existing[table]:
            lacking.setdefault(table, {})[name] = None
    if lacking:
        words = "; ".join(f"{table} has no column {', '.join(c)}" for table, c in lacking.items())
        raise UsageError(
            f"{url}: {words}, which is needed: tell in [archive.names] of the file of the release "
            f"{question.release.name} what it is called there"
        )


class Settled:
    """A question, once it is known which of its columns the archive has: it is asked once a run."""

    def __init__(self, question: Question, service: TapService):
        self._question, self._service = question, service
        self._lock = threading.Lock()
        self._outcome = None

    def question(self) -> Question:
        """The question without the columns that the archive has not.

        UsageError where it lacks a needed one. Where the service does not tell, all are asked for.
        """
        with self._lock:
            if self._outcome is None:
                try:
                    self._outcome = self._settle()
                except UsageError as error:
                    self._service.log.info("%s", error)
                    self._outcome = error
        if isinstance(self._outcome, UsageError):
            raise self._outcome
        return self._outcome

    def _settle(self):
        question, service = self._question, self._service
        tables = question.tables
        try:
            existing = archive_columns(service, list(tables.values()))
        except ShardError as error:
            if service.stop.is_set():
                raise
            service.log.warning("which columns the archive has is not known (%s)", error)
            existing = {}
        for table in sorted(set(tables.values()) - existing.keys()):
            service.log.info("%s: its columns are not listed; all are asked for", table)
        require_needed(question, service.url, existing)
        lacking = tuple(
            name
            for name, column in question.columns.items()
            if column.name.lower() not in existing.get(tables[column.table], {column.name.lower()})
        )
        settled = question.less(lacking)
        if settled.absent:
            service.log.warning("not in the archive, left out: %s", ", ".join(settled.absent))
        return settled
