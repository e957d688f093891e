"""Spectra in text tables: the archive's bulk CSV, DataLink's csv and ecsv, and what became of them.

An ECSV header, if any, the names, one row per source with arrays as quoted cells. Rows of the usual
form are read the fast way (pipeline/usual_rows.py), the others one by one; both give the same
numbers. A quoted cell may have line breaks.
"""

import csv
import itertools
import re
from collections import deque
from functools import partial

import numpy as np

from pipeline.cells import parse_arrays, parse_numbers
from pipeline.errors import ShardError
from pipeline.schema import XP_BANDS
from pipeline.spectra_account import Account
from pipeline.spectra_files import read_to_end
from pipeline.spectra_plan import (
    OtherReleaseError,
    fault_of_id,
    id_of,
    plan_columns,
    require_release,
)
from pipeline.usual_rows import UsualRows
from pipeline.usual_rows import available as has_usual_rows

CHUNK_ROWS = 768  # 10 MB of numbers
FIELD_BYTES = 1 << 20  # longest cell; the correlations of a band take 20 kB
MOST_LINES = 10_000  # of one row
MOST_BYTES = 1 << 25  # of a line, and of a row: an archive's takes 150 kB
DELIMITERS = (",", "\t", ";", "|", " ")
CLOSING = b"])}"
BOM = "\ufeff"
DELIMITER_WORDS = re.compile(r"#\s*delimiter:\s*['\"]?(.)['\"]?")


def read_head(file, wanted, path="a file") -> tuple[list[str], int, str]:
    """Column names, number of lines of the head, and the delimiter: the first by which there is a
    column of the name `wanted`, else a comma."""
    n_lines, line = 0, "#"
    while line.startswith("#") or (line and not line.strip()):
        raw = read_line(file, path)
        n_lines += bool(raw)
        line = raw.decode("utf-8", "replace").lstrip(BOM)
        if not raw:
            break
    for mark in DELIMITERS:
        names = [name.strip() for name in next(csv.reader([line], delimiter=mark), [])]
        if wanted.lower() in map(str.lower, names):
            return names, n_lines, mark
    return [name.strip() for name in next(csv.reader([line]), [])], n_lines, ","


def read_line(file, path) -> bytes:
    """The next line of an open file; ShardError where it does not end within MOST_BYTES."""
    line = file.readline(MOST_BYTES)
    if len(line) == MOST_BYTES:
        raise ShardError(
            f"{path}: a line of more than {MOST_BYTES >> 20} MB, which is no row of spectra; fetch "
            "the file again"
        )
    return line


def split_cells(line, delimiter=",") -> list[str] | None:
    """The cells of a row; None where a quoted one does not end in it."""
    reader = csv.reader([line.decode("utf-8", "replace"), ""], delimiter=delimiter)
    try:
        cells = next(reader)
    except csv.Error:
        return None
    return cells if reader.line_num == 1 else None


def records(file, number, is_row, path):
    """Yield (number of its first line, text) of each row; of several lines where a quoted cell has
    line breaks. is_row(text): whether it has as many cells as a row has.

    Blank lines are passed over. Raises ShardError where the file ends within a row.
    """
    ahead = deque()  # lines that were looked at already
    while line := ahead.popleft() if ahead else read_line(file, path):
        n_lines = 1
        last = line.rfind(b'"')  # of most rows it closes an array, and they are whole
        if last >= 0 and line[last - 1] not in CLOSING and ends_within_quotes(line):
            lines = _lines_of_row(line, ahead, partial(read_line, file, path), is_row)
            n_lines, line = len(lines), b"".join(lines)
        if not line.endswith(b"\n") and not is_row(line):
            raise ShardError(
                f"{path}: ends within the row of line {number} (truncated); fetch it again"
            )
        if not line.isspace():
            yield number, line
        number += n_lines


def ends_within_quotes(line) -> bool:
    """Whether a line has an odd number of quotes; by find, which is faster than count for few."""
    odd, place = False, line.find(b'"')
    while place >= 0:
        odd, place = not odd, line.find(b'"', place + 1)
    return odd


def _lines_of_row(line, ahead, read, is_row) -> list[bytes]:
    """The lines of a row whose first one ends within quotes; that alone where they are no row."""
    lines, looked, n_bytes = [line], 0, len(line)
    while len(lines) < MOST_LINES and n_bytes < MOST_BYTES:
        if looked == len(ahead):
            following = read()
            if not following:
                break
            ahead.append(following)
        following, looked = ahead[looked], looked + 1
        n_bytes += len(following)
        whole = not ends_within_quotes(following)
        if whole and is_row(following):
            break
        lines.append(following)
        if not whole:
            if not is_row(b"".join(lines)):
                break
            for _ in range(looked):
                ahead.popleft()
            return lines
    return [line]


class CsvSpectra:
    """The rows of one open text file as tables. columns: {our name: PlannedColumn}; left_out: names
    of columns that are not converted; account: what is odd."""

    def __init__(self, file, path, release):
        csv.field_size_limit(FIELD_BYTES)
        self._file, self._path, self._release = file, path, release
        id_name = release.spectra.names.get("source_id", "source_id")
        names, self._n_head, self._delimiter = read_head(file, id_name, path)
        self.columns, self.left_out = plan_columns(path, names, release)
        self.account = Account(path, self.columns, release)
        self._n_cells, self._id_place = len(names), self.columns["source_id"].place
        fast = has_usual_rows() and self._delimiter == ","
        self._usual = UsualRows(self.columns, self._n_cells) if fast else None

    def _split(self, line):
        return split_cells(line, self._delimiter)

    def _is_row(self, line):
        cells = self._split(line)
        return cells is not None and len(cells) == self._n_cells

    def tables(self):
        """Yield {name: (n, ...) array}, in order."""
        try:
            yield from self._tables()
        except (ShardError, OtherReleaseError):
            read_to_end(self._file)  # damage, where there is some, is the reason to be told
            raise

    def _tables(self):
        rows = records(self._file, self._n_head + 1, self._is_row, self._path)
        table_of, n_rows = self._careful_table if self._usual is None else self._table, CHUNK_ROWS
        while n_rows == CHUNK_ROWS:
            table, n_rows = table_of(rows)
            if len(table["source_id"]):
                yield table

    def _careful_table(self, rows) -> tuple[dict, int]:
        """The table of the next lines that are rows, and the number of lines."""
        chunk = list(itertools.islice(rows, CHUNK_ROWS))
        return self._careful(chunk)[1], len(chunk)

    def _table(self, rows) -> tuple[dict, int]:
        """As `_careful_table`; those of usual form the fast way."""
        table, parsed, others = self._usual.parse(rows, CHUNK_ROWS)
        for band in XP_BANDS:
            n = self.columns[f"{band}_coefficients"].length
            require_release(table, np.where(parsed, n, 0), band, self._release)
        for name in self.columns:
            self.account.given[name] += int(parsed.sum())
        if others:
            places, found = self._careful([(number, line) for _, number, line in others])
            rows_of = np.array([place for place, _, _ in others])[places]
            for name, column in found.items():
                table[name][rows_of] = column
            parsed[rows_of] = True
        n_lines = len(parsed)
        if not parsed.all():
            table = {name: column[parsed] for name, column in table.items()}
        return table, n_lines

    def _careful(self, lines) -> tuple[list, dict]:
        """Places of the lines, [(number, text)], that are rows, and their table."""
        rows, places = [], []
        for place, (number, line) in enumerate(lines):
            cells = self._split(line)
            if why := self._fault_of(cells):
                self.account.unusable.append((f"line {number}", why, self._id_in(line, cells)))
            else:
                places.append(place)
                rows.append(cells)
        return places, parse_rows(rows, self.columns, self._release, self.account)

    def _id_in(self, line, cells) -> int:
        """The id of a line that is no row; 0 where it cannot be told."""
        cells = cells or line.decode("utf-8", "replace").split(self._delimiter)
        return id_of(cells[self._id_place]) if len(cells) > self._id_place else 0

    def _fault_of(self, cells) -> str:
        """Why the cells of a line are not a row, "" where they are one."""
        if cells is None:
            return "a quoted cell does not end in it"
        if len(cells) != self._n_cells:
            return f"{len(cells)} cells instead of {self._n_cells}"
        return "" if id_of(cells[self._id_place]) else fault_of_id(cells[self._id_place])


def parse_rows(rows, columns, release, account) -> dict:
    """Rows of cells -> {name: (n,) or (n, length) array}; what cannot be read goes to the account.

    Raises OtherReleaseError for another release.
    """
    place = columns["source_id"].place
    source_id = np.array([id_of(row[place]) for row in rows], np.int64)
    table, lengths = {"source_id": source_id}, {}
    for name, column in columns.items():
        if name == "source_id":
            continue
        texts = [row[column.place] for row in rows]
        if column.length:
            cells = parse_arrays(texts, column.dtype, column.length)
            lengths[name] = cells.lengths
        else:
            cells = parse_numbers(texts, column.dtype)
        table[name] = cells.values
        account.add_cells(name, cells, source_id, texts.__getitem__)
    for band in XP_BANDS:
        require_release(table, lengths[f"{band}_coefficients"], band, release)
    return {name: table[name] for name in columns}
