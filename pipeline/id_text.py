"""The entries of a list of ids in a text: an id a line, a line of ids, or a column of a table."""

import csv
import io
import re

from pipeline.errors import UsageError

DELIMITERS = (",", "\t", ";", "|")  # the first that the first line has; else white space
# "Gaia DR3 123" is one word, not three.
SPACED = re.compile(r"\b(gaia)[ _]*(e?dr\d+)[ _]+(?=\d)", re.IGNORECASE)
LEAST_DIGITS = 10  # of an id, where nothing says which of several columns has them
NUMBER = re.compile(r"[\"']?(gaia\w*:)?[-+.\d][-+.\deE]*[\"']?", re.IGNORECASE)
COMMENT = "#"


def text_entries(path, text, pick, column=None) -> tuple[str, list, list]:
    """(name of the column, numbers of the lines, entries) of a text.

    pick(names): which of a header's names is that of the ids; column: of the user, a number of a
    column (from 1) where there are no names. Raises UsageError where that is not evident.
    """
    rows, comment = _rows(text)
    if not rows:
        raise UsageError(f"{path}: no ids in it: it is empty")
    first = rows[0][1]
    if _is_header(first):
        names, rows = first, rows[1:]
    else:
        names = comment if comment and len(comment) == len(first) else None
    if names is not None and (len(names) > 1 or column is not None):
        place = names.index(pick(names))
    elif names is not None:
        place = _single(path, names[0], pick)
    elif len(rows) == 1 and column is None:  # all in one line
        return "the list", [rows[0][0]] * len(first), first
    else:
        place = _unnamed(path, first, column)
    name = names[place] if names else f"column {place + 1}" if len(first) > 1 else "the list"
    cells = [row[place] if place < len(row) else "" for _, row in rows]
    return name, [line for line, _ in rows], cells


def _rows(text) -> tuple[list, list | None]:
    """([(number of line, cells)] of the lines that are neither empty nor comments, cells of the
    last comment before them)."""
    text = SPACED.sub(r"\1\2:", text.removeprefix("\ufeff"))
    lines = io.StringIO(text, newline=None)
    start, n_before, comment = lines.tell(), 0, None
    while (line := lines.readline()) and (not line.strip() or line.lstrip().startswith(COMMENT)):
        comment = line.lstrip()[1:] if line.strip() else comment
        start, n_before = lines.tell(), n_before + 1
    lines.seek(start)
    mark = next((mark for mark in DELIMITERS if mark in line), None)
    if mark is None:
        one = len(line.split()) == 1  # a column: what has more words is no id, and shown as it is
        found = ((n_before + i, [x] if one else x.split()) for i, x in enumerate(lines, 1))
    else:
        reader = csv.reader(lines, delimiter=mark, skipinitialspace=True)
        found = ((n_before + reader.line_num, row) for row in reader)
    rows = [
        (number, [cell.strip() for cell in row])
        for number, row in found
        if not (row and row[0].lstrip().startswith(COMMENT))
    ]
    head = comment.split(mark) if comment else None
    return _without_ends(rows), head and [word.strip() for word in head]


def _without_ends(rows) -> list:
    """The rows less the empty ones at the end, as a text ends in."""
    while rows and not any(rows[-1][1]):
        rows.pop()
    return rows


def _is_header(cells) -> bool:
    """Whether none of the cells of a first line is a number, or ends in one as a designation."""
    return not any(
        re.fullmatch(r"[\"']?(gaia\w*:)?[-+.\d][-+.\deE]*[\"']?", c, re.I) for c in cells
    )


def _single(path, name, pick) -> int:
    """Place of the only column: any name does but that of another release."""
    if re.search(r"e?dr\d", name, re.IGNORECASE):
        pick([name])
    return 0


def _unnamed(path, first, column) -> int:
    """Place of the column of ids of a text without names."""
    if column is not None:
        if not column.isdigit() or not 1 <= int(column) <= len(first):
            raise UsageError(
                f"{path}: its columns have no names: give --id-column a number, 1 to {len(first)}"
            )
        return int(column) - 1
    if len(first) == 1:
        return 0
    likely = [i for i, cell in enumerate(first) if _is_long(cell)]
    if len(likely) != 1:
        raise UsageError(
            f"{path}: {len(first)} columns without names, {len(likely)} of which may be ids: say "
            "which with --id-column NUMBER (from 1), or write a first line with names"
        )
    return likely[0]


def _is_long(cell) -> bool:
    digits = cell.rpartition(":")[2]
    return digits.isdigit() and len(digits) >= LEAST_DIGITS
