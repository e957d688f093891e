"""Rows of the archive's CSV of spectra, fast where they have the usual form.

A row has it where it is one line of ASCII with as many cells as there are columns, each array is a
quoted "[a,b,...]" of as many numbers as the release has, and all that is converted is a number as
JSON writes numbers. Those are most of the archive's; simdjson reads them, and rounds as Python's
float() does. Every other row (null, nan, an empty array, other quotes) is left to the caller.
"""

import re
from itertools import islice

import numpy as np

try:
    import simdjson
except ImportError:  # the caller does without: see `available`
    simdjson = None

DTYPES = {"d": np.dtype("f8"), "i": np.dtype("i8")}  # of simdjson's arrays
BATCH_ROWS = 64  # whose text, 2.5 MB, is held at once; NumPy takes as long for a row as for all
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
        self._batch = [np.zeros((BATCH_ROWS, c.length), DTYPES["d"]) for c in self._arrays.values()]
        # The same as bytes, and how many a row has; simdjson's are copied to them in no time.
        self._bytes = [
            (memoryview(numbers).cast("B"), numbers[0].nbytes) for numbers in self._batch
        ]
        self._whole = named(lambda c: not c.length and c.dtype.kind == "i")
        self._real = named(lambda c: not c.length and c.dtype.kind == "f")
        limits = [np.iinfo(c.dtype) for c in self._whole.values()]
        self._least = np.array([one.min for one in limits])
        self._least[list(self._whole).index("source_id")] = 1
        self._most = np.array([one.max for one in limits])
        self._id_place = columns["source_id"].place
        self._array_places = [c.place for c in self._arrays.values()]
        # Of the text before, between and after the arrays.
        self._commas = np.diff([0, *self._array_places, n_cells - 1]).tolist()

    def parse(self, rows, most) -> tuple[dict, np.ndarray, list]:
        """The next rows, `most` or fewer, of an iterator of (line's number, line as bytes).

        Returns {name: (n,) or (n, length) array}, (n,) bool: the row is parsed, and [(place,
        number, line)] of the others, which are 0 in every column.
        """
        table = {name: np.empty((most, c.length), c.dtype) for name, c in self._arrays.items()}
        whole = np.zeros((most, len(self._whole)), DTYPES["i"])
        real = np.zeros((most, len(self._real)), DTYPES["d"])
        parsed, others, n = np.zeros(most, bool), [], 0
        while batch := list(islice(rows, min(BATCH_ROWS, most - n))):
            now = slice(n, n + len(batch))
            arrays, whole[now], real[now], parsed[now] = self._parse_batch([x for _, x in batch])
            for column, values in zip(table.values(), arrays, strict=True):
                column[now] = values
            others += [(n + i, *batch[i]) for i in np.flatnonzero(~parsed[now]).tolist()]
            n = now.stop
        for columns, numbers in ((self._whole, whole), (self._real, real)):
            for (name, column), wide in zip(columns.items(), numbers.T, strict=True):
                table[name] = wide.astype(column.dtype)
        return {name: column[:n] for name, column in table.items()}, parsed[:n], others

    def _parse_batch(self, lines) -> tuple[list, np.ndarray, np.ndarray, np.ndarray]:
        """n lines -> [(n, length) array], which the next call fills again, (n, columns) whole and
        real numbers, (n,) bool: the row is parsed; the others are 0."""
        arrays = [numbers[: len(lines)] for numbers in self._batch]
        parsed, cells = np.zeros(len(lines), bool), [()] * len(lines)
        for i, line in enumerate(lines):
            try:
                cells[i] = self._parse_row(line, i)
            except UNUSUAL:
                continue
            parsed[i] = True
        whole = self._parse_numbers(cells, parsed, self._whole, "i")
        real = self._parse_numbers(cells, parsed, self._real, "d")
        parsed &= ((whole >= self._least) & (whole <= self._most)).all(axis=1)
        has_zero = ~real.all(axis=1)
        for column in arrays:
            has_zero |= ~column.all(axis=1)
        for i in np.flatnonzero(parsed & has_zero):  # of which one may have lost its sign
            parsed[i] = NEGATIVE_ZERO.search(lines[i]) is None
        if not parsed.all():
            for column in (*arrays, whole, real):
                column[~parsed] = 0
        return arrays, whole, real, parsed

    def _parse_row(self, line, i) -> list[bytes]:
        """Put the arrays of a row into row i of the batch; its cells. Raises one of UNUSUAL for
        another form."""
        opening, closing = self._quotes(line)
        outside = [
            line[first:last]
            for first, last in zip([0, *(q + 1 for q in closing)], [*opening, None], strict=True)
        ]
        outer = b"".join(outside).rstrip(b"\r\n")
        cells = outer.split(b",")
        if (
            [part.count(b",") for part in outside] != self._commas
            or any(cells[place] for place in self._array_places)
            or not cells[self._id_place].isdigit()
            or not outer.isascii()  # nor are the arrays anything else, where they are numbers
        ):
            raise UnusualError
        for (numbers, size), first, last in zip(self._bytes, opening, closing, strict=True):
            text = line[first + 1 : last]
            # A list within the list would be read as part of it.
            if not text.startswith(b"[") or text.find(b"[", 1) >= 0:
                raise UnusualError
            # Raises ValueError where there are fewer or more.
            numbers[i * size : (i + 1) * size] = self._parser.parse(text).as_buffer(of_type="d")
        return cells

    def _quotes(self, line) -> tuple[list[int], list[int]]:
        """Places of the quotes before and after each array; UnusualError where there are others."""
        places, place = [], line.find(b'"')
        while place >= 0:
            places.append(place)
            place = line.find(b'"', place + 1)
        if len(places) != 2 * len(self._arrays):
            raise UnusualError
        return places[::2], places[1::2]

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
