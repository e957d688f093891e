"""What is odd in a file of spectra: counted, named, and refused where it is the rule.

Damage of single cells is an exception; where it is none the file is of another form than expected.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from pipeline.cells import PRINTED
from pipeline.coefficients import ROUNDING
from pipeline.errors import ShardError
from pipeline.schema import XP_BANDS
from pipeline.spectra_plan import SHOWN

MOST_UNUSABLE = 10  # rows of a file; the archive's 614517-614573 is reported to have one odd row
MOST_BAD = 0.05  # share of the cells of a column, where they are more than MOST_UNUSABLE
NAMED_ROWS = 5  # of each kind of exception on the terminal
MOST_NAMED = 500  # ids in an attribute, which holds 64 kB
LARGEST = 1 + ROUNDING  # of a correlation


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


def report(source, log):
    """Log what is odd in a source of spectra, and the columns that it has beside."""
    source.account.report(log)
    if source.left_out:
        log.info("%s: columns left out: %s", source.account.path, ", ".join(source.left_out))
