"""The rows of a VOTable's BINARY2 stream as NumPy arrays, without a Python object for each cell.

A row (VOTable 1.3 and later, section 5.4) is a bit for each column that says whether it is null,
then the columns, big-endian; a text without a fixed length has its number of characters before it.
What comes out is what `astropy.io.votable` reads, value for value and null for null, but that texts
are bytes (dtype S); columns of other forms (arrays, texts beyond ASCII) are left to it.
"""

import binascii
import re
import struct
from dataclasses import dataclass

import numpy as np

NUMBERS = {
    "boolean": "u1", "bit": "u1", "unsignedByte": "u1", "short": ">i2", "int": ">i4",
    "long": ">i8", "float": ">f4", "double": ">f8", "floatComplex": ">c8", "doubleComplex": ">c16",
}  # fmt: skip
CHARACTERS = {"char": "u1", "unicodeChar": ">u2"}
TRUE, FALSE = b"Tt1", b"Ff0"  # of a boolean; any other byte is null
BIT = 0x08  # where in its byte astropy writes a bit, and looks for it
BLOCK = 1 << 20  # characters of base64 decoded at a time
LONGEST_TEXT = 4096  # characters; the archives' are 256 at most
MOST_BYTES = 1 << 30  # of a column of texts, all as wide as the longest
WHITE = b" \t\r\n"


class DamagedError(Exception):
    """The document is cut short or damaged."""


class OtherFormError(Exception):
    """Nothing wrong, but of a form that is not read here."""


@dataclass
class Field:
    """A column as the header describes it; null: text of the number that means null, or None."""

    name: str
    datatype: str
    arraysize: str | None = None
    null: str | None = None


# ---- columns ---------------------------------------------------------------------------------


class Number:
    """A column of single numbers, booleans or bits; dtype: of a cell."""

    varies = False

    def __init__(self, field):
        if field.arraysize is not None:
            raise OtherFormError(f"column {field.name}: arrays")
        self.dtype, self._datatype = np.dtype(NUMBERS[field.datatype]), field.datatype
        self._null = None if field.null is None else self._null_of(field)

    def _null_of(self, field):
        """The number that means null, None where the datatype has none."""
        text, kind = field.null.strip().lower(), self.dtype.kind
        if self._datatype in ("boolean", "bit"):
            return None
        try:
            if kind in "iu":
                value = int(text, 16 if text.startswith("0x") else 10)
                least, most = np.iinfo(self.dtype).min, np.iinfo(self.dtype).max
                if least <= value <= most:
                    return self.dtype.type(value)
            elif kind == "f":
                return self.dtype.type(float(text))
        except ValueError:
            pass
        raise OtherFormError(f"column {field.name}: null={field.null}")

    def values(self, cells, flagged):
        """Masked array (n,) of cells (n,), which may be flagged (n,) as null."""
        cells = cells.astype(self.dtype.newbyteorder("="))
        if self._datatype == "boolean":
            true = np.isin(cells, list(TRUE))
            return np.ma.array(true, mask=flagged | ~(true | np.isin(cells, list(FALSE))))
        if self._datatype == "bit":
            return np.ma.array((cells & BIT) != 0, mask=flagged)
        if self._null is not None:
            flagged = flagged | (cells == self._null)
        elif self.dtype.kind in "fc":
            flagged = flagged | np.isnan(cells)
        return np.ma.array(cells, mask=flagged)


class Text:
    """A column of texts; of a fixed length `dtype` is a cell's, else that of the number of
    characters before it. As in astropy, a text that is flagged as null stays as it is."""

    def __init__(self, field):
        size, self._name = field.arraysize or "1", field.name
        self._character = np.dtype(CHARACTERS[field.datatype])
        self.varies = size.endswith("*")
        length = size.removesuffix("*")
        if size != "*" and not re.fullmatch("[1-9][0-9]{0,3}", length):
            raise OtherFormError(f"column {field.name}: arraysize={size}")
        self._most = int(length) if length else LONGEST_TEXT
        self.dtype = np.dtype(">u4" if self.varies else f"V{self._most * self.character_bytes}")

    @property
    def character_bytes(self):
        return self._character.itemsize

    def values(self, cells, lengths=None):
        """(n,) bytes of cells (n,), of so many characters each; else up to a first zero."""
        codes = np.ascontiguousarray(cells).view(self._character)
        codes = codes.reshape(len(cells), cells.dtype.itemsize // self.character_bytes)
        if lengths is None:
            outside = np.logical_or.accumulate(codes == 0, axis=1)
        else:
            outside = np.arange(codes.shape[1]) >= lengths[:, None]
            if lengths.max(initial=0) > self._most:
                raise OtherFormError(f"column {self._name}: texts longer than it says")
        if (((codes < ord(" ")) | (codes > ord("~"))) & ~outside).any():
            raise OtherFormError(f"column {self._name}: characters beyond printable ASCII")
        plain = np.where(outside, 0, codes).astype("u1")
        return plain.view(f"S{codes.shape[1]}").reshape(len(cells))


def column_of(field):
    """The Number or Text that a Field describes. OtherFormError where it is neither, DamagedError
    where it has no datatype."""
    if field.datatype is None:
        raise DamagedError(f"column {field.name} has no datatype")
    if field.datatype in NUMBERS:
        return Number(field)
    if field.datatype in CHARACTERS:
        return Text(field)
    raise OtherFormError(f"column {field.name}: datatype {field.datatype}")


# ---- rows ------------------------------------------------------------------------------------


class Layout:
    """How the columns (those of `fields`) lie in a row: in runs of a fixed width; after each but
    the last comes a text, whose length is the run's last item.

    runs: their dtypes, with the numbers of the columns as names; `flags`, in the first, are the
    null bits. texts: numbers of the columns of texts without a fixed length.
    """

    def __init__(self, fields):
        self.columns = [column_of(field) for field in fields]
        self.texts = [k for k, column in enumerate(self.columns) if column.varies]
        runs = [[("flags", "u1", (-(-len(fields) // 8),))]]
        for k, column in enumerate(self.columns):
            runs[-1].append((str(k), column.dtype))
            if column.varies:
                runs.append([])
        self.runs = [np.dtype(run) for run in runs]

    def places(self, data):
        """Where the parts of the whole rows that bytes begin with start (n, runs and the texts
        between them), lengths of these texts (n, texts) in characters, and where the rows end."""
        lengths = self._lengths(data)
        sizes = lengths * [self.columns[k].character_bytes for k in self.texts]
        widths = np.empty((len(lengths), len(self.runs) + len(self.texts)), np.int64)
        widths[:, ::2], widths[:, 1::2] = [run.itemsize for run in self.runs], sizes
        ends = np.cumsum(widths).reshape(widths.shape)
        ends = ends[ends[:, -1] <= len(data)]
        n = len(ends)
        return ends - widths[:n], lengths[:n], int(ends[-1, -1]) if n else 0

    def values(self, data, starts, lengths) -> list:
        """The columns [(n,) array] of the rows at such places."""
        cells = self._cells(data, starts[:, ::2])
        null = np.unpackbits(cells.pop("flags"), axis=1).view(bool).T
        beside = {  # what a column's values are made of beside its cells
            k: null[k] if isinstance(column, Number) else None
            for k, column in enumerate(self.columns)
        }
        for k, start, length in zip(self.texts, starts[:, 1::2].T, lengths.T, strict=True):
            width = length.max(initial=1) * self.columns[k].character_bytes
            cells[k], beside[k] = _taken(data, start, np.dtype(f"V{width}")), length
        return [column.values(cells[k], beside[k]) for k, column in enumerate(self.columns)]

    def _cells(self, data, starts):
        """{number of a column, or "flags": cells (n,)} of the runs that start at (n, runs)."""
        cells = {}
        for run, start in zip(self.runs, starts.T, strict=True):
            if run.itemsize:
                rows = _taken(data, start, run)
                cells |= {int(k) if k.isdigit() else k: rows[k] for k in run.names}
        return cells

    def _lengths(self, data):
        """Lengths of the texts (n, number of texts) of the rows that bytes begin with; the last row
        may not be whole.

        A length says where the next one is: this is a loop, of some 0.15 us a text.
        """
        widths = [run.itemsize for run in self.runs]
        if not self.texts:
            return np.empty((len(data) // widths[0], 0), np.int64)
        sizes = [self.columns[k].character_bytes for k in self.texts]
        steps = list(zip(sizes, [*widths[1:-1], widths[-1] + widths[0]], strict=True))
        found, read, at = [], struct.Struct(">I").unpack_from, widths[0] - 4
        try:
            while True:
                for size, step in steps:
                    (length,) = read(data, at)
                    if length > LONGEST_TEXT:
                        raise DamagedError(f"a text of {length} characters")
                    found.append(length)
                    at += size * length + step
        except struct.error:  # the end of the data
            n = len(found) // len(steps)
        return np.array(found[: n * len(steps)], np.int64).reshape(n, len(steps))


def _taken(data, starts, dtype):
    """Items (n,) of a dtype that start at bytes (n,) of data; beyond its end are zeros."""
    if not len(starts):
        return np.empty(0, dtype)
    room = starts.max() + dtype.itemsize - len(data)
    data = data + bytes(room) if room > 0 else data
    everywhere = np.ndarray(len(data) - dtype.itemsize + 1, f"V{dtype.itemsize}", data, 0, 1)
    return everywhere[starts].view(dtype)


class RowReader:
    """Reads base64 text, as it comes, into the columns of `fields`; `n_rows` counts the rows.

    OtherFormError where such columns are not read here, DamagedError where the text is no base64
    or its end not that of a row.
    """

    def __init__(self, fields):
        self._fields, self._layout, self.n_rows = fields, Layout(fields), 0
        self._text, self._waiting = [], 0
        self._quads, self._padded, self._bytes = b"", False, b""
        self._parts, self._other = [], None

    def feed(self, text):
        """Take more of the text."""
        self._text.append(text)
        self._waiting += len(text)
        if self._waiting >= BLOCK:
            self._decode()

    def finish(self):
        """All is fed."""
        self._decode()
        if self._quads:
            raise DamagedError("the base64 ends too early")
        if self._bytes:
            raise DamagedError(f"{len(self._bytes)} bytes after the last whole row")

    def columns(self) -> list:
        """[(name, (n,) array)] of all columns. OtherFormError where a cell is not read here."""
        if self._other is not None:
            raise self._other
        names = (field.name for field in self._fields)
        return list(zip(names, map(_joined, zip(*self._parts, strict=True)), strict=True))

    def _decode(self):
        """The rows of the text that waits, as far as it goes."""
        try:
            text = self._quads + "".join(self._text).encode("ascii").translate(None, WHITE)
            whole = len(text) // 4 * 4
            if whole and self._padded:
                raise DamagedError("the base64 goes on after its end")
            self._bytes += binascii.a2b_base64(text[:whole], strict_mode=True)
        except ValueError as error:  # binascii's error is one, too
            raise DamagedError(f"not base64: {error}") from error
        self._text, self._waiting, self._quads = [], 0, text[whole:]
        self._padded |= text.endswith(b"=", 0, whole)
        self._take_rows()

    def _take_rows(self):
        starts, lengths, size = self._layout.places(self._bytes)
        self.n_rows += len(starts)
        if self._other is None:
            try:
                self._parts.append(self._layout.values(self._bytes, starts, lengths))
            except OtherFormError as error:
                self._parts, self._other = [], error
        self._bytes = self._bytes[size:]


def _joined(parts):
    """The parts (n,) of a column as one array."""
    if parts[0].dtype.kind == "S":
        widest = max(part.itemsize for part in parts)
        if widest * sum(map(len, parts)) > MOST_BYTES:
            raise DamagedError(f"a column of texts of more than {MOST_BYTES >> 20} MB")
        return np.concatenate(parts)
    return np.ma.concatenate(parts)
