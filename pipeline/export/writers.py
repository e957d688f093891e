"""Tables written as they come: FITS, Parquet, CSV and ECSV, each in bounded memory.

A writer takes the path to write to, the columns (`FlatColumn`), an iterable of tables {name: (n,)}
of one and the same columns, and `About`; it returns the number of rows.
"""

import io
import warnings
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from astropy.io import fits
from astropy.table import Column, Table
from astropy.utils.exceptions import AstropyUserWarning

from pipeline.export.flat import TEXT
from pipeline.export.votable import votable

FITS_BLOCK = 2880  # bytes
FITS_FORMATS = {"i2": "I", "i4": "J", "i8": "K", "f4": "E", "f8": "D"}
CARD_TEXT = 67  # most characters of a text in one card of a FITS header
VOPARQUET = "IVOA.VOTable-Parquet"


@dataclass(frozen=True)
class About:
    """What is told of a table: a title, and notes {name: text}."""

    title: str
    notes: dict = field(default_factory=dict)


def _empty_table(columns) -> Table:
    """An astropy table of the columns without rows."""
    return Table(
        [
            Column(
                np.empty(0, str if column.dtype == TEXT else column.dtype),
                column.name,
                unit=column.unit,
                description=column.text,
                meta={"ucd": column.ucd} if column.ucd else None,
            )
            for column in columns
        ]
    )


# ---- FITS ------------------------------------------------------------------------------------


def _ascii(text):
    return text.encode("ascii", "replace").decode()


def _shortened(text):
    """As much of a text as one card of a header takes."""
    text = _ascii(text)
    if len(text) <= CARD_TEXT:
        return text
    return text[: CARD_TEXT - 3].rsplit(" ", 1)[0] + "..."


def _fits_type(column):
    """(TFORM, dtype of the big-endian rows) of a column."""
    if column.dtype in FITS_FORMATS:
        return FITS_FORMATS[column.dtype], f">{column.dtype}"
    return f"{np.dtype(column.dtype).itemsize}A", column.dtype


def _fits_head(columns, about):
    """The header of the table, with 0 rows; what astropy reads words from is in its comments.

    Units that the FITS standard lacks (dex) are in TUNIT too, as in other catalogues: astropy keeps
    them, and warns of them unless it is told unit_parse_strict="silent".
    """
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyUserWarning)  # of those units
        _empty_table(columns).write(content, format="fits")
    content.seek(0)
    header = fits.open(content)[1].header
    header["EXTNAME"] = "CATALOGUE"
    for k, column in enumerate(columns, 1):
        for key, text in (("TCOMM", column.text), ("TUCD", column.ucd), ("TUNIT", column.unit)):
            if text:
                header.set(f"{key}{k}", _shortened(text), after=f"TFORM{k}")
    for name, text in {"title": about.title, **about.notes}.items():
        header.add_history(_ascii(f"{name}: {text}"))
    return header


def _fits_primary(columns, about):
    """The primary HDU, which holds a VOTable of the columns: these cards in this order are what
    STIL (TOPCAT) knows it by."""
    content = votable(columns, about.notes, about.title).encode()
    header = fits.Header()
    for name, value, comment in (
        ("SIMPLE", True, ""), ("BITPIX", 8, ""), ("NAXIS", 1, ""),
        ("NAXIS1", len(content), ""), ("VOTMETA", True, "Table metadata in VOTable format"),
        ("EXTEND", True, ""),
    ):  # fmt: skip
        header[name] = (value, comment)
    return header.tostring().encode() + content + b"\0" * (-len(content) % FITS_BLOCK)


def write_fits(path, columns, tables, about) -> int:
    """One binary table, with units, UCDs and words (those longer than a card are whole in the
    VOTable of the primary HDU)."""
    types = [(column.name, _fits_type(column)[1]) for column in columns]
    header, n = _fits_head(columns, about), 0
    with open(path, "xb") as file:
        file.write(_fits_primary(columns, about))
        at = file.tell()
        file.write(header.tostring().encode())
        for table in tables:
            rows = np.empty(len(table[columns[0].name]), types)
            for column in columns:
                rows[column.name] = table[column.name]
            file.write(rows.tobytes())
            n += len(rows)
        file.write(b"\0" * (-n * np.dtype(types).itemsize % FITS_BLOCK))
        header["NAXIS2"] = n
        file.seek(at)
        file.write(header.tostring().encode())
    return n


def count_fits(path) -> int:
    """Rows of a table of `write_fits`, all of which are in the file."""
    with fits.open(path, memmap=True) as hdus:
        return len(hdus[1].data)


# ---- Parquet ---------------------------------------------------------------------------------

ARROW = {"i2": pa.int16(), "i4": pa.int32(), "i8": pa.int64(), "f4": pa.float32()}
ARROW |= {"f8": pa.float64()}


def arrow_schema(columns, about) -> pa.Schema:
    """The schema of an Arrow table; each field has unit, description and ucd, and the table what
    VOParquet 1.0 asks for."""
    fields = []
    for column in columns:
        told = {"unit": column.unit, "description": column.text, "ucd": column.ucd}
        told = {key: text for key, text in told.items() if text}
        fields.append(pa.field(column.name, ARROW.get(column.dtype, pa.string()), metadata=told))
    content = votable(columns, about.notes, about.title)
    return pa.schema(
        fields,
        metadata={
            f"{VOPARQUET}.version": "1.0",
            f"{VOPARQUET}.content": content,
            "title": about.title,
            **{name: str(text) for name, text in about.notes.items()},
        },
    )


def arrow_table(table, columns, schema) -> pa.Table:
    """An Arrow table of columns {name: (n,)}; NaN is null."""
    arrays = []
    for column, one in zip(columns, schema, strict=True):
        values = table[column.name]
        if values.dtype.kind == "S":
            values = np.strings.decode(values, "utf-8")
        arrays.append(pa.array(values, one.type, from_pandas=True))
    return pa.Table.from_arrays(arrays, schema=schema)


def write_parquet(path, columns, tables, about) -> int:
    """Apache Parquet with checksums of its pages; missing numbers are null."""
    schema, n = arrow_schema(columns, about), 0
    words = [column.name for column in columns if column.dtype not in ARROW]
    with pa.parquet.ParquetWriter(
        path, schema, compression="zstd", use_dictionary=words, write_page_checksum=True
    ) as writer:
        for table in tables:
            writer.write_table(arrow_table(table, columns, schema))
            n += len(table[columns[0].name])
    return n


def count_parquet(path) -> int:
    """Rows of a Parquet file, as its footer says."""
    return pa.parquet.read_metadata(path).num_rows


# ---- text ------------------------------------------------------------------------------------


def _write_rows(file, columns, tables, about) -> int:
    """Lines of comma-separated values with all digits; missing ones are empty."""
    schema, n = arrow_schema(columns, about), 0
    options = pa.csv.WriteOptions(include_header=False, quoting_style="needed")
    with pa.csv.CSVWriter(file, schema, write_options=options) as writer:
        for table in tables:
            writer.write_table(arrow_table(table, columns, schema))
            n += len(table[columns[0].name])
    return n


def write_csv(path, columns, tables, about) -> int:
    """Comma-separated values below one line of names."""
    with open(path, "xb") as file:
        file.write((",".join(column.name for column in columns) + "\n").encode())
        return _write_rows(file, columns, tables, about)


def _ecsv_head(columns, about) -> str:
    text = io.StringIO()
    table = _empty_table(columns)
    table.meta = {"title": about.title, **about.notes}
    table.write(text, format="ascii.ecsv", delimiter=",")
    return text.getvalue()


def write_ecsv(path, columns, tables, about) -> int:
    """As CSV, below a header that has types, units, words and UCDs."""
    with open(path, "xb") as file:
        file.write(_ecsv_head(columns, about).encode())
        return _write_rows(file, columns, tables, about)


def count_lines(path) -> int:
    """Rows of a file of `write_csv` or `write_ecsv`."""
    with open(path, "rb") as file:
        lines = 0
        while line := file.readline():  # a header, then one line of names
            if not line.startswith(b"#"):
                break
        while part := file.read(1 << 20):
            lines += part.count(b"\n")
    return lines


FORMATS = {  # {ending: (writer, what counts the rows of what it wrote)}
    ".fits": (write_fits, count_fits),
    ".parquet": (write_parquet, count_parquet),
    ".csv": (write_csv, count_lines),
    ".ecsv": (write_ecsv, count_lines),
}
FOR_THE_EYE = (".csv", ".ecsv")  # columns of words are written too
