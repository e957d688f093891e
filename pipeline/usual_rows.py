"""Rows of the archive's CSV of spectra, fast where they have the usual form.

A row has it where it is one line of ASCII with as many cells as there are columns, each array is a
quoted "[a,b,...]" of as many numbers as the release has, and all that is converted is a number as
JSON writes numbers. Those are most of the archive's; simdjson reads them, and rounds as Python's
float() does. Every other row (null, nan, an empty array, other quotes) is left to the caller.
"""

import contextlib
import re

import numpy as np

try:
    import simdjson
except ImportError:  # the caller does without: see `available`
    simdjson = None

DTYPES = {"d": np.dtype("f8"), "i": np.dtype("i8")}  # of simdjson's arrays
# A whole number for JSON, in which simdjson drops the sign. Not "-0.5" or "1e-05".
NEGATIVE_ZERO = re.compile(rb"-0(?![.eE\d])")


def available() -> bool:
    """Whether rows can be read the fast way: simdjson is installed."""
    return simdjson is not None


class UnusualError(ValueError):
    """A row is not of the usual form."""


# Beside it, what simdjson raises for text that is no list of numbers of the type wanted.
UNUSUAL = (UnusualError, ValueError, TypeError, RuntimeError)


def quoted_spans(line, n) -> list[tuple[int, int]]:
    """(start, stop) of what is between the quotes of a line; UnusualError where not n times."""
    spans, stop = [], -1
    for _ in range(n):
        start = line.find(b'"', stop + 1) + 1
        stop = line.find(b'"', start)
        if not start or stop < 0:
            raise UnusualError
        spans.append((start, stop))
    if line.find(b'"', stop + 1) >= 0:
        raise UnusualError
    return spans


class UsualRows:
    """Parses the rows of one file that have the usual form.

    columns: {name: column with its place, dtype and length (0: a number)}; n_cells: of a row.
    """

    def __init__(self, columns, n_cells):
        def named(wanted):
            return {name: c for name, c in columns.items() if wanted(c)}

        self._parser = simdjson.Parser()
        arrays = named(lambda c: c.length)
        self._arrays = dict(sorted(arrays.items(), key=lambda item: item[1].place))
        self._whole = named(lambda c: not c.length and c.dtype.kind == "i")
        self._real = named(lambda c: not c.length and c.dtype.kind == "f")
        self._id_place = columns["source_id"].place
        self._array_places = [c.place for c in self._arrays.values()]
        # Of the text before, between and after the arrays.
        self._commas = np.diff([0, *self._array_places, n_cells - 1]).tolist()

    def parse(self, lines) -> tuple[dict, np.ndarray]:
        """Lines (bytes) -> {name: (n,) or (n, length) array} and (n,) bool: the row is parsed.

        Rows that are not are 0 in every column.
        """
        n, parsed = len(lines), np.zeros(len(lines), bool)
        table = {name: np.zeros((n, c.length), c.dtype) for name, c in self._arrays.items()}
        whole, real = np.zeros((n, len(self._whole)), "i8"), np.zeros((n, len(self._real)))
        for i, line in enumerate(lines):
            views = [table[name][i] for name in self._arrays]
            with contextlib.suppress(*UNUSUAL):
                self._parse_row(line, views, whole[i], real[i])
                parsed[i] = True
        for columns, numbers in ((self._whole, whole), (self._real, real)):
            for (name, column), wide in zip(columns.items(), numbers.T, strict=True):
                table[name] = wide.astype(column.dtype)
                if column.dtype.kind == "i":
                    parsed &= table[name] == wide
        self._leave_negative_zeros(lines, table, parsed)
        if not parsed.all():
            for column in table.values():
                column[~parsed] = 0
        return table, parsed

    def _parse_row(self, line, arrays, whole, real):
        """Fill the views of one row; raises one of UNUSUAL where its form is another."""
        spans = quoted_spans(line, len(arrays))
        begins, ends = (
            [0, *(stop + 1 for _, stop in spans)],
            [*(start - 1 for start, _ in spans), None],
        )
        outside = [line[begin:end] for begin, end in zip(begins, ends, strict=True)]
        cells = b"".join(outside).rstrip(b"\r\n").split(b",")
        if (
            [part.count(b",") for part in outside] != self._commas
            or any(cells[place] for place in self._array_places)
            or not cells[self._id_place].isdigit()
            or not line.isascii()
        ):
            raise UnusualError
        for out, columns, kind in ((whole, self._whole, "i"), (real, self._real, "d")):
            chosen = b",".join([cells[column.place] for column in columns.values()])
            if b"[" in chosen:
                raise UnusualError
            self._fill(out, b"[" + chosen + b"]", kind)
        view = memoryview(line)
        for out, (start, stop) in zip(arrays, spans, strict=True):
            # A list within the list would be read as part of it.
            if line[start : start + 1] != b"[" or line.find(b"[", start + 1, stop) >= 0:
                raise UnusualError
            self._fill(out, view[start:stop], "d")

    def _fill(self, out, text, kind):
        """Put the numbers of a list into a view; UnusualError where they are not as many."""
        numbers = np.frombuffer(self._parser.parse(text).as_buffer(of_type=kind), DTYPES[kind])
        if len(numbers) != len(out):
            raise UnusualError
        out[:] = numbers

    def _leave_negative_zeros(self, lines, table, parsed):
        """Unset `parsed` of rows with a zero that may have lost its sign."""
        has_zero = np.zeros(len(lines), bool)
        for column in table.values():
            if column.dtype.kind == "f":
                has_zero |= ~column.reshape(len(lines), -1).all(axis=1)
        for i in np.flatnonzero(parsed & has_zero):
            parsed[i] = NEGATIVE_ZERO.search(lines[i]) is None
