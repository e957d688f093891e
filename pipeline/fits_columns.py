"""Columns of a FITS binary table, read without a look at the others.

Astropy makes an array of the whole table, and what takes columns of it walks through all of it for
each. Here the rows come in parts that stay in the processor's cache. That is for columns of plain
numbers and texts: those that are scaled, shaped or of a variable length are Astropy's.
"""

import re

import numpy as np
from astropy.io import fits

PLAIN = {"B": "u1", "I": ">i2", "J": ">i4", "K": ">i8", "E": ">f4", "D": ">f8"}
# Bits of an element of each format but those of variable length (FITS 4.0, table 18).
BITS = {"X": 1, "L": 8, "A": 8, "B": 8, "I": 16, "J": 32, "K": 64, "E": 32, "D": 64, "C": 64,
        "M": 128}  # fmt: skip
FORMAT = re.compile(rf"(\d*)([{''.join(BITS)}])")
NOT_PLAIN = ("TSCAL", "TZERO", "TNULL", "TDIM")  # keywords of columns that are not only bytes
PART_BYTES = 1 << 18
BLANK = ord(" ")


class TableColumns:
    """The columns of a table, an open HDU of Astropy's; raises what Astropy does where it is none.

    found: {name in lower case: name in the file}.
    """

    def __init__(self, hdu):
        self._hdu = hdu
        self._plain = _plain_columns(hdu) if type(hdu) is fits.BinTableHDU else {}
        self.found = {name.lower(): name for name in self._plain or hdu.data.names}

    def read(self, names) -> dict:
        """{name: (n, ...) array}, big-endian, of names in lower case; texts without the blanks at
        their end. OSError where the file ends early."""
        own = {name: self.found[name] for name in names}
        plain = {name: self._plain[found] for name, found in own.items() if self._plain}
        of_bytes = plain and all(dtype is not None for _, dtype in plain.values())
        if of_bytes:
            return self._read_plain(plain)
        return {name: np.array(self._hdu.data[found]) for name, found in own.items()}

    def _read_plain(self, columns) -> dict:
        """As `read`, of {name: (first byte, type)}."""
        n_rows, n_bytes = (self._hdu.header[key] for key in ("NAXIS2", "NAXIS1"))
        # As bytes, which NumPy copies faster than pairs of numbers.
        formats = [f"V{dtype.itemsize}" for _, dtype in columns.values()]
        places = [first for first, _ in columns.values()]
        row = np.dtype({"names": list(columns), "formats": formats, "offsets": places,
                        "itemsize": n_bytes})  # fmt: skip
        raw = {name: np.empty(n_rows, row[name]) for name in columns}
        info, step = self._hdu.fileinfo(), max(PART_BYTES // n_bytes, 1)
        info["file"].seek(info["datLoc"])
        for start in range(0, n_rows, step):
            rows = slice(start, min(start + step, n_rows))
            text = info["file"].read((rows.stop - start) * n_bytes)
            if len(text) < (rows.stop - start) * n_bytes:
                raise OSError("it ends within its rows")
            part = np.frombuffer(text, row)
            for name, values in raw.items():
                values[rows] = part[name]
        table = {name: raw[name].view(dtype) for name, (_, dtype) in columns.items()}
        for name, values in table.items():
            if values.dtype.kind == "S" and (values.view("u1") == BLANK).any():
                table[name] = np.strings.rstrip(values, b" ")
        return table


def _plain_columns(hdu) -> dict:
    """{name: (first byte in a row, type, or None where it is not plain)} of a binary table; {}
    where the header does not tell of every column where it is."""
    header, columns, first = hdu.header, {}, 0
    keys = set(header)
    if "PCOUNT" not in keys:  # which every table has
        return {}
    for i in range(1, header["TFIELDS"] + 1):
        form = FORMAT.fullmatch(str(header.get(f"TFORM{i}")))
        name = header.get(f"TTYPE{i}")
        if not form or not isinstance(name, str) or name in columns:
            return {}
        count, kind = int(form[1] or 1), form[2]
        changed = any(f"{key}{i}" in keys for key in NOT_PLAIN)
        columns[name] = (first, None if changed else _plain_type(kind, count))
        first += -(-count * BITS[kind] // 8)
    return columns if first == header["NAXIS1"] else {}


def _plain_type(kind, count) -> np.dtype | None:
    if kind == "A" and count:
        return np.dtype(f"S{count}")
    if kind not in PLAIN or not count:
        return None
    return np.dtype(PLAIN[kind]) if count == 1 else np.dtype((PLAIN[kind], (count,)))
