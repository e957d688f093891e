"""Rows of the archive's CSV of spectra, fast where they have the usual form.

A row has it where it is one line of ASCII with as many cells as there are columns, each array is a
quoted "[a,b,...]" of as many numbers as the release has, and all that is converted is a number as
JSON writes numbers. Those are most of the archive's; simdjson reads them, and rounds as Python's
float() does. Every other row (null, nan, an empty array, other quotes) is left to the caller.
"""

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
        cells = [()] * n
        for i, (line, *views) in enumerate(zip(lines, *table.values(), strict=True)):
            try:
                cells[i] = self._parse_row(line, views)
            except UNUSUAL:
                continue
            parsed[i] = True
        for columns, kind in ((self._whole, "i"), (self._real, "d")):
            numbers = self._parse_numbers(cells, parsed, columns, kind)
            for (name, column), wide in zip(columns.items(), numbers.T, strict=True):
                table[name] = wide.astype(column.dtype)
                if kind == "i":
                    parsed &= table[name] == wide
        self._leave_negative_zeros(lines, table, parsed)
        if not parsed.all():
            for column in table.values():
                column[~parsed] = 0
        return table, parsed

    def _parse_row(self, line, arrays) -> list[bytes]:
        """Fill views of the arrays of a row; its cells. Raises one of UNUSUAL for another form."""
        parts = line.split(b'"')
        outside, inside = parts[::2], parts[1::2]
        numbers = b"".join(outside).rstrip(b"\r\n")
        cells = numbers.split(b",")
        if (
            len(inside) != len(arrays)
            or [part.count(b",") for part in outside] != self._commas
            or any(cells[place] for place in self._array_places)
            or not cells[self._id_place].isdigit()
            or not numbers.isascii()  # nor are the arrays anything else, where they are numbers
        ):
            raise UnusualError
        for out, text in zip(arrays, inside, strict=True):
            # A list within the list would be read as part of it.
            if not text.startswith(b"[") or text.find(b"[", 1) >= 0:
                raise UnusualError
            out[:] = self._list(text, len(out), "d")
        return cells

    def _parse_numbers(self, cells, parsed, columns, kind) -> np.ndarray:
        """The cells of some columns as (n, columns) numbers; unsets `parsed` where they are none.

        All rows at once or, where that fails, one by one.
        """
        numbers = np.zeros((len(cells), len(columns)), DTYPES[kind])
        places, rows = [column.place for column in columns.values()], np.flatnonzero(parsed)
        texts = [b",".join([cells[i][place] for place in places]) for i in rows]
        try:
            flat = self._list_of(texts, len(places) * len(rows), kind)
            numbers[rows] = flat.reshape(len(rows), len(places))
        except UNUSUAL:
            for i, text in zip(rows, texts, strict=True):
                try:
                    numbers[i] = self._list_of([text], len(places), kind)
                except UNUSUAL:
                    parsed[i] = False
        return numbers

    def _list_of(self, texts, n, kind) -> np.ndarray:
        """As `_list`, of cells joined by commas."""
        text = b",".join(texts)
        if b"[" in text:
            raise UnusualError
        return self._list(b"[" + text + b"]", n, kind)

    def _list(self, text, n, kind) -> np.ndarray:
        """The n numbers of a list; UnusualError where they are not as many."""
        numbers = np.frombuffer(self._parser.parse(text).as_buffer(of_type=kind), DTYPES[kind])
        if len(numbers) != n:
            raise UnusualError
        return numbers

    def _leave_negative_zeros(self, lines, table, parsed):
        """Unset `parsed` of rows with a zero that may have lost its sign."""
        has_zero = np.zeros(len(lines), bool)
        for column in table.values():
            if column.dtype.kind == "f":
                has_zero |= ~column.reshape(len(lines), -1).all(axis=1)
        for i in np.flatnonzero(parsed & has_zero):
            parsed[i] = NEGATIVE_ZERO.search(lines[i]) is None
