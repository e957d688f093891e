"""Which columns of a file are the spectra's, whether they are of the release, and what is odd.

Damage of single cells is counted and named; where it is the rule rather than the exception the file
is of another form than expected, and is refused.
"""

import functools
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from pipeline.cells import PRINTED
from pipeline.errors import ShardError
from pipeline.schema import XP_BANDS, Layout, resolved

MOST_UNUSABLE = 10  # rows of a file; the archive's 614517-614573 is reported to have one odd row
MOST_BAD = 0.05  # share of the cells of a column, where they are more than MOST_UNUSABLE
NAMED_ROWS = 5  # of each kind of exception on the terminal
MOST_NAMED = 500  # ids in an attribute, which holds 64 kB
SHOWN = 40  # characters of a cell in a message
LARGEST = 1 + 1e-6  # of a correlation, rounded; as in pipeline/coefficients.py


class OtherReleaseError(Exception):
    """Spectra of another release than the one in use."""


@dataclass(frozen=True)
class PlannedColumn:
    """A column to convert: its place among the file's, dtype, length of its arrays (0: a number),
    and whether a star is of use without it."""

    place: int
    dtype: np.dtype
    length: int
    optional: bool


def plan_columns(path, names, release) -> tuple[dict, list[str]]:
    """{our name: PlannedColumn} of what is converted, and the file's names of what is not.

    Raises ShardError where a column that the release's spectra must have is missing.
    """
    datasets, lower = resolved("xp", Layout(release)), [name.lower() for name in names]
    theirs = {name: release.spectra.names.get(name, name) for name in datasets}
    places = {
        ours: names.index(their) if their in names else lower.index(their.lower())
        for ours, their in theirs.items()
        if their.lower() in lower
    }
    missing = [theirs[k] for k, d in datasets.items() if not d.optional and k not in places]
    if missing:
        found = ", ".join(names[:8]) or "nothing"
        hint = " (sampled spectra do not serve)" if "flux" in lower or "xp_flux" in lower else ""
        raise ShardError(
            f"{path}: no column {', '.join(missing)} (found: {found} ...); expected the continuous "
            f"spectra of {release.title}{hint}: give --release where they are of another one"
        )
    columns = {
        ours: PlannedColumn(
            place, np.dtype(datasets[ours].dtype), sum(datasets[ours].shape),
            datasets[ours].optional,
        )
        for ours, place in places.items()
    }  # fmt: skip
    return columns, [name for i, name in enumerate(names) if i not in places.values()]


def id_of(text) -> int:
    """The id that a text holds; 0 where it is none."""
    text = text.strip(" \t\"'=")
    number = int(text) if text.isascii() and text.isdigit() else 0
    return number if number < 2**63 else 0


def fault_of_id(text) -> str:
    """Why a text that is no id is none."""
    shown = text.strip()[:SHOWN]
    try:
        float(shown)
    except ValueError:
        return f"source_id is {shown!r}"
    if not shown.lstrip("-").isdigit() and shown.lower() != "nan":
        return (
            f"source_id is {shown!r}, a float, which has lost digits: write ids as 64-bit integers "
            "(in pandas: dtype={'source_id': 'int64'})"
        )
    return f"source_id is {shown!r}"


def require_release(table, lengths, band, release):
    """OtherReleaseError where spectra are of another release: whole, but of other numbers.

    lengths (n,): of the arrays of coefficients, as the file has them.
    """
    expected = release.spectra.bands[band]
    n_parameters = table[f"{band}_n_parameters"]
    checks = {
        f"{band}_coefficients": (lengths, expected.n_coefficients),
        f"{band}_basis_function_id": (
            table.get(f"{band}_basis_function_id", np.zeros(len(lengths), int)),
            expected.basis_id,
        ),
    }
    for (name, (found, right)), what in zip(checks.items(), ("numbers", "as its id"), strict=True):
        other = (lengths > 0) & (lengths == n_parameters) & (found > 0) & (found != right)
        for row in np.flatnonzero(other)[:1]:
            raise OtherReleaseError(
                f"{name} of source {table['source_id'][row]} has {found[row]} {what}, expected "
                f"{right} of {release.title}: spectra of another release; give its --release"
            )


def usable(table, band, release) -> np.ndarray:
    """(n,) bool: the spectrum of a band has all its numbers, possible ones."""
    good = table[f"{band}_n_parameters"] == release.spectra.bands[band].n_coefficients
    most = {"coefficient_errors": (0, np.inf), "coefficient_correlations": (-LARGEST, LARGEST)}
    for name in release.spectra.array_columns:
        array = table[f"{band}_{name}"]
        low, high = most.get(name, (-np.inf, np.inf))
        good &= (array.min(1) > low) & (array.max(1) < high)  # NaN is neither
    return good


def too_many(n_bad, n_given) -> bool:
    """Whether so many exceptions are no exceptions."""
    return n_bad > n_given / 2 or n_bad > max(MOST_UNUSABLE, MOST_BAD * n_given)


@dataclass
class Account:
    """What is odd in a file. path: its name in messages; columns: {our name: PlannedColumn}.

    unusable: [(place, why, id or 0)] of what is no row; bad: {column: [ids]} whose cell cannot be
    read; lost: {band: [ids]} whose spectrum cannot be used for its numbers.
    """

    path: object
    columns: dict
    release: object
    n_rows: int = 0
    unusable: list = field(default_factory=list)
    bad: dict = field(default_factory=dict)
    examples: dict = field(default_factory=dict)
    given: Counter = field(default_factory=Counter)
    lost: dict = field(default_factory=dict)

    def add_cells(self, name, cells, source_id, show):
        """Count the `Cells` of a column; show(row): the text of one, for the first bad one."""
        self.given[name] += int(cells.given.sum())
        if cells.bad.any():
            self.bad.setdefault(name, []).extend(source_id[cells.bad].tolist())
            row = int(np.flatnonzero(cells.bad)[0])
            if name not in self.examples:
                length = None if cells.lengths is None else int(cells.lengths[row])
                self.examples[name] = (str(show(row)), length)

    def add_table(self, table):
        """Count the rows and the spectra of a table."""
        ids = table["source_id"]
        self.n_rows += len(ids)
        for band in XP_BANDS:
            coefficients = table[f"{band}_coefficients"]
            # Where all are the same number, that stands for "missing".
            there = ~np.isnan(coefficients[:, 0]) & (coefficients != coefficients[:, :1]).any(1)
            self.given[band] += int(there.sum())
            lost = there & ~usable(table, band, self.release)
            if lost.any():
                self.lost.setdefault(band, []).extend(ids[lost].tolist())

    @property
    def odd(self) -> list[int]:
        """Ids with a cell that cannot be read, in order of the columns."""
        return list(dict.fromkeys(i for ids in self.bad.values() for i in ids))

    def check(self):
        """ShardError where what is odd is no exception."""
        n_all = self.n_rows + len(self.unusable)
        if self.unusable and (len(self.unusable) > MOST_UNUSABLE or len(self.unusable) > n_all / 2):
            place, why, _ = self.unusable[0]
            remedy = "" if "write ids" in why else "; the file is damaged, fetch it again"
            raise ShardError(
                f"{self.path}: {len(self.unusable)} lines are no rows, of {n_all}, the first is "
                f"{place} ({why}){remedy}"
            )
        for name, ids in self.bad.items():
            if not self.columns[name].optional and too_many(len(ids), self.given[name]):
                raise ShardError(
                    f"{self.path}: {len(ids)} of {self.given[name]} cells of {name} "
                    f"{self._fault(name)}"
                )
        for band, ids in self.lost.items():
            if len(ids) > self.given[band] / 2:
                raise ShardError(
                    f"{self.path}: {len(ids)} of {self.given[band]} spectra of {band.upper()} have "
                    f"missing or impossible numbers, e.g. of source {ids[0]}: expected "
                    f"{band}_n_parameters as the release has, errors above 0, correlations of -1 "
                    "to 1; write these columns as the archive has them"
                )

    def _fault(self, name) -> str:
        """What is wrong with the cells of a column, what was expected, and what to do."""
        (example, found), column = self.examples[name], self.columns[name]
        if not column.length:
            return f"are no {column.dtype} numbers, e.g. {example[:SHOWN]!r}: write plain numbers"
        if PRINTED in example:
            return (
                "were printed, not stored ('...' stands for numbers that are gone): write each "
                "array with all its numbers, e.g. by json.dumps(array.tolist())"
            )
        if found and found not in (1, column.length):
            return (
                f"have another length: {found} numbers, expected {column.length} of "
                f"{self.release.title}; give --release where they are of another one"
            )
        return (
            f"cannot be read, e.g. {example[:SHOWN]!r}: expected {column.length} numbers, as in "
            "[1.5,2.5,...]"
        )

    def report(self, log):
        """Log what is odd, all of it in the log file and the first on the terminal."""
        for place, why, source_id in self.unusable:
            of = f" (source {source_id})" if source_id else ""
            log.warning("%s: %s left out%s: %s", self.path, place, of, why)
        for name, ids in self.bad.items():
            log.warning(
                "%s: %d cells of %s cannot be read (%s), and are missing now: source_id %s",
                self.path, len(ids), name, self.examples[name][0][:SHOWN],
                " ".join(map(str, ids[:NAMED_ROWS])),
            )  # fmt: skip
            log.info("%s: all of them in %s: %s", self.path, name, " ".join(map(str, ids)))
        for band, ids in self.lost.items():
            log.warning(
                "%s: %d spectra of %s have missing or impossible numbers and will not be used: "
                "source_id %s",
                self.path, len(ids), band.upper(), " ".join(map(str, ids[:NAMED_ROWS])),
            )  # fmt: skip

    def attributes(self) -> dict:
        """The same as attributes of a file."""
        bad = [f"{name}: {' '.join(map(str, ids))}" for name, ids in self.bad.items()]
        return {
            "unusable_lines": " ".join(place.split()[-1] for place, _, _ in self.unusable),
            "unusable_reasons": "; ".join(
                f"{place}{f' (source {i})' if i else ''}: {why}" for place, why, i in self.unusable
            ),
            "unreadable_cells": "; ".join(bad)[: 20 * MOST_NAMED],
        }

    def counters(self) -> dict:
        """{name: number} for the summary."""
        return {"odd rows": len(self.odd), "unusable lines": len(self.unusable)}


def checked_tables(tables, account):
    """Pass tables on, and account for them; ShardError at their end where they are of no use."""
    for table in tables:
        account.add_table(table)
        yield table
    account.check()


@functools.cache
def dataset_names(release) -> tuple:
    """Names of all datasets that the spectra of a release may have."""
    return tuple(resolved("xp", Layout(release)))
