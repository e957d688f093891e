"""Cells of text tables as numbers and arrays, in any of the usual ways to write them.

A cell that cannot be read costs itself alone: it becomes missing, and is pointed out.
"""

import re
import warnings
from dataclasses import dataclass

import numpy as np

# What stands for "no value", in lower case; of elements of arrays too.
MISSING_WORDS = frozenset(
    ("", "null", "nan", "none", "\\n", "--", "-", "masked", "n/a", "na", "#n/a", "<na>", "nil",
     "empty", "nat", "undefined", "missing", "?", "..", "inf", "-inf")
)  # fmt: skip
LONGEST_WORD = 10
BRACKETS = "[](){}<> \t\r\n'\""
# Separators of numbers: the first that a text has; else white space.
SEPARATORS = (",", ";", "|")
CALL = re.compile(r"(?:np|numpy)?\.?(?:float|int)\d*\(([^()]*)\)")  # np.float64(1.0)
WRAPPED = re.compile(r"\s*\w[\w.]*\(\s*([\[({].*[\])}])\s*(?:,[^\])}]*)?\)\s*", re.DOTALL)
PRINTED = "..."  # NumPy's mark, in a printed array, of numbers left out


@dataclass
class Cells:
    """A column as read. values (n,) or (n, length), NaN or 0 where missing or bad; given (n,) bool:
    not missing; bad (n,) bool: given, but not readable; lengths (n,): numbers in each array."""

    values: np.ndarray
    given: np.ndarray
    bad: np.ndarray
    lengths: np.ndarray | None = None


def is_missing(cell) -> bool:
    """Whether a text has no value; only short ones are looked at closely."""
    return len(cell) <= LONGEST_WORD and cell.strip(BRACKETS).lower() in MISSING_WORDS


def parse_numbers(cells, dtype) -> Cells:
    """Number cells -> `Cells` of (n,) values.

    Integers of up to 4 bytes may be written as "55.0", as they are after a column with gaps became
    floats; longer ones would have lost digits.
    """
    dtype = np.dtype(dtype)
    missing = np.array([is_missing(cell) for cell in cells], bool)
    fill = "nan" if dtype.kind == "f" else "0"
    texts = [fill if no else cell for no, cell in zip(missing, cells, strict=True)]
    values, bad = np.zeros(len(cells), dtype), np.zeros(len(cells), bool)
    try:
        values[:] = np.array(texts, str).astype(dtype)
    except (ValueError, OverflowError):
        for i, text in enumerate(texts):
            values[i], bad[i] = _number(text, dtype)
    return Cells(values, ~missing, bad)


def _number(text, dtype):
    """A number and whether it could not be read, when it is NaN or 0."""
    nothing = np.nan if dtype.kind == "f" else 0
    try:
        if dtype.kind == "f":
            return float(text), False
        if dtype.itemsize > 4:
            number = int(text)
        else:
            number = float(text)
            if number != int(number):
                return nothing, True
        info = np.iinfo(dtype)
        return (int(number), False) if info.min <= number <= info.max else (nothing, True)
    except (ValueError, OverflowError):
        return nothing, True


def parse_arrays(cells, dtype, length) -> Cells:
    """Array cells -> `Cells` of (n, length) values.

    "[a,b,...]" with any brackets or none, commas, semicolons, bars or spaces; what is missing in an
    array is NaN, and so is an array of another length, which is bad, or without any number.
    """
    n = len(cells)
    out, lengths = np.full((n, length), np.nan, dtype), np.zeros(n, int)
    bad, usual = np.zeros(n, bool), []
    bodies = [None if is_missing(cell) else cell.strip(BRACKETS) for cell in cells]
    for i, body in enumerate(bodies):
        if body is not None:
            lengths[i] = body.count(",") + 1
            if lengths[i] == length:
                usual.append(i)
    if not _fill(out, usual, ",".join(bodies[i] for i in usual)):
        usual = [i for i in usual if _fill(out, [i], bodies[i])]
    empty = [i for i in usual if np.isnan(out[i]).all()]
    for i in empty:
        lengths[i], bodies[i] = 0, None
    for i in set(range(n)) - set(usual):
        if bodies[i] is not None:
            numbers = _numbers_of(cells[i])
            lengths[i] = len(numbers) if numbers is not None else max(lengths[i], 1)
            if numbers is not None and not np.isfinite(numbers).any():
                lengths[i], bodies[i] = 0, None
            elif numbers is None or len(numbers) != length:
                bad[i] = True
            else:
                out[i] = numbers
    return Cells(out, np.array([body is not None for body in bodies], bool), bad, lengths)


def _fill(out, rows, text) -> bool:
    """Fill rows of an array with the numbers of a text; whether it holds as many and no others."""
    if not rows:
        return True
    if "null" in text:
        text = text.replace("null", "nan")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # NumPy's word for unreadable text
            numbers = np.fromstring(text, dtype=np.float64, sep=",")
        out[rows] = numbers.reshape(len(rows), out.shape[1])
    except (ValueError, OverflowError, DeprecationWarning):
        return False
    return True


def _numbers_of(cell) -> np.ndarray | None:
    """The numbers of an array cell in an unusual form, NaN where missing; None where it is none."""
    if match := WRAPPED.fullmatch(cell):  # array([...], dtype=...)
        cell = match[1]
    body = CALL.sub(r"\1", cell).strip(BRACKETS)
    separator = next((mark for mark in SEPARATORS if mark in body), None)
    words = [word.strip(" \t\r\n'\"") for word in body.split(separator)]
    try:
        return np.array([np.nan if is_missing(word) else float(word) for word in words])
    except ValueError:
        return None


# ---- columns of tables -----------------------------------------------------------------------


def _texts(column, mask) -> list[str]:
    """The cells of a column of texts or of objects, "" where masked."""
    return [
        "" if no or cell is None else cell.decode(errors="replace") if isinstance(cell, bytes)
        else str(cell)
        for no, cell in zip(mask, column, strict=True)
    ]  # fmt: skip


def numbers_of_column(column, mask, dtype) -> Cells:
    """A column (n,) of any type, and where it has no value (n,) bool -> `Cells` of (n,) values."""
    dtype = np.dtype(dtype)
    if column.ndim != 1 or column.dtype.kind not in "fiub":
        if column.ndim != 1:
            column = np.array([str(cell) for cell in column], object)
        return parse_numbers(_texts(column, mask), dtype)
    given = ~mask & ~np.isnan(column) if column.dtype.kind == "f" else ~mask
    values = np.full(len(column), np.nan if dtype.kind == "f" else 0, dtype)
    good = given.copy()
    if dtype.kind in "iu" and column.dtype.kind in "fiu":
        info = np.iinfo(dtype)
        good &= (column >= info.min) & (column <= info.max)
        if column.dtype.kind == "f":
            good &= (column == np.rint(column)) & (dtype.itemsize <= 4)
    with np.errstate(over="ignore"):
        values[good] = column[good].astype(dtype)
    return Cells(values, given, given & ~good)


def arrays_of_column(column, mask, dtype, length) -> Cells:
    """A column of arrays -> `Cells` of (n, length) values.

    column: numbers (n, ...), or (n,) arrays of any length, or texts; mask: of it or of its rows.
    """
    n = len(column)
    if column.dtype.kind in "SU" or any(isinstance(cell, str | bytes) for cell in column[:1]):
        row_mask = mask if mask.ndim == 1 else mask.all(1)
        return parse_arrays(_texts(column, row_mask), dtype, length)
    if column.dtype.kind == "O":
        rows = [np.ma.filled(np.ma.asarray(_array(cell), float), np.nan).ravel() for cell in column]
        wide = np.full((n, max((len(row) for row in rows), default=0)), np.nan)
        for out, row in zip(wide, rows, strict=True):
            out[: len(row)] = row
        if mask.ndim == 1:
            wide[mask] = np.nan
    else:
        mask = np.broadcast_to(mask.reshape(n, *mask.shape[1:], *[1] * (column.ndim - mask.ndim)),
                               column.shape)  # fmt: skip
        wide = np.where(mask, np.nan, column).reshape(n, -1)
    finite = ~np.isnan(wide)
    given = finite.any(1)
    last = wide.shape[1] - finite[:, ::-1].argmax(1) if wide.shape[1] else np.zeros(n, int)
    # Of rows padded to one width the padding is no part.
    lengths = np.where(given, last if wide.shape[1] > length else wide.shape[1], 0)
    values, good = np.full((n, length), np.nan, dtype), given & (lengths <= length)
    good &= wide.shape[1] >= length
    values[good] = wide[good, :length]
    bad = given & ~good
    return Cells(values, given, bad, np.where(good, length, lengths))


def _array(cell):
    """A cell of a column of objects as an array; an empty one where it has no value."""
    return np.empty(0) if cell is None or cell is np.ma.masked else cell
