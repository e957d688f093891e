"""What a TAP service answers: a VOTable document, made into plain columns or a reason why not."""

import gzip
import io
import re

import numpy as np
from astropy.io import votable

from pipeline.errors import ShardError
from pipeline.spectra_files import READ_ERRORS, igzip
from pipeline.tap_service import PassingError, first_words
from pipeline.votable_rows import DamagedError
from pipeline.votable_scan import Document

ROW_LIMIT_ADVICE = "; give --login and a larger --row-limit"
MOST_BYTES = 1 << 30  # of an answer, unpacked: that for 65,000 sources takes 40 MB
TRUE = ("true", "t", "1")  # booleans that come as text


class BadAnswerError(PassingError):
    """What was fetched is not a whole VOTable."""


def unpacked(data: bytes) -> bytes:
    """What a gzip stream holds. BadAnswerError where it is broken, ShardError where it is more than
    MOST_BYTES."""
    try:
        with (igzip or gzip).open(io.BytesIO(data)) as file:
            out = file.read(MOST_BYTES + 1)
    except READ_ERRORS as error:
        raise BadAnswerError(f"a broken gzip stream of {len(data)} bytes") from error
    require_size(out)
    return out


def require_size(data: bytes):
    """ShardError where a document is larger than any answer."""
    if len(data) > MOST_BYTES:
        raise ShardError(
            f"the answer is larger than {MOST_BYTES >> 20} MB, which no shard's is: refused; is "
            "--tap-url the archive?"
        )


def parse_answer(data: bytes, row_limit):
    """{column name in lower case: (n,) array, masked but for texts} of a VOTable document.

    Raises BadAnswerError where it is no whole VOTable or an error document, ShardError where rows
    were cut: the service says OVERFLOW, or there are `row_limit` of them.
    """
    if data[:2] == b"\x1f\x8b":
        data = unpacked(data)
    if not re.search(rb"</(\w+:)?VOTABLE>\s*\Z", data[-64:]):
        kind = "not a VOTable" if b"VOTABLE" not in data[:1000] else "a VOTable cut short"
        raise BadAnswerError(f"{kind}: {first_words(data[:1000])}")
    try:
        document = Document(data)
    except DamagedError as error:
        raise BadAnswerError(f"a VOTable that cannot be parsed: {error}") from error
    _require_whole(document.statuses)
    if len(document.tables) != 1:
        raise BadAnswerError(f"a VOTable with {len(document.tables)} tables, expected one")
    (table,) = document.tables
    columns = parsed_by_astropy(data) if table.columns is None else table.columns
    n = len(columns[0][1]) if columns else 0
    if n >= row_limit:
        raise ShardError(f"the result has {n} rows, the row limit{ROW_LIMIT_ADVICE}")
    if table.n_rows not in (None, n):
        raise BadAnswerError(f"a VOTable of {table.n_rows} rows of which {n} came")
    return {name.lower(): values for name, values in columns}


def _require_whole(statuses):
    """BadAnswerError or ShardError where a QUERY_STATUS [(value, parts of a text)] says that rows
    are lacking."""
    for value, words in statuses:
        if value.upper() == "ERROR":
            words = first_words("".join(words).encode() or b"no reason given")
            raise BadAnswerError(f"an error document: {words}")
        if value.upper() == "OVERFLOW":
            raise ShardError(f"the service cut the result at its row limit{ROW_LIMIT_ADVICE}")


def parsed_by_astropy(data) -> list:
    """[(name, (n,) masked array)] of a document with one table, by Astropy."""
    try:
        (table,) = votable.parse(io.BytesIO(data), verify="ignore").iter_tables()
    except Exception as error:  # whatever a damaged document makes of the parser
        raise BadAnswerError(f"a VOTable that cannot be parsed: {error!r}") from error
    names = [field.name for field in table.fields]
    columns = table.array.dtype.names or ()
    return [(name, table.array[column]) for name, column in zip(names, columns, strict=True)]


def plain_columns(answer, dtypes) -> dict:
    """Columns {name: (n,) array of its dtype} of an answer; what is null becomes NaN, 0 or b"".

    dtypes: {name: dtype}. ShardError where a column is absent, an id is null or not a whole number,
    or a number does not fit.
    """
    absent = [name for name in dtypes if name not in answer]
    if absent:
        raise ShardError(f"the answer has no column {', '.join(absent)}; found {', '.join(answer)}")
    return {name: _plain(name, answer[name], dtype) for name, dtype in dtypes.items()}


def _plain(name, column, dtype):
    null, values = np.ma.getmaskarray(column), np.ma.getdata(column)
    kind = np.dtype(dtype).kind
    if kind == "S" and values.dtype.kind == "S":
        return np.strings.strip(values)
    if kind == "S":
        return np.strings.encode(np.strings.strip(np.where(null, "", values).astype(str)), "utf-8")
    if kind == "b":
        if values.dtype.kind != "b":
            values = np.isin(np.strings.lower(np.where(null, "", values).astype(str)), TRUE)
        return values & ~null
    if values.dtype.kind not in ("iu" if kind == "i" else "fiu"):
        raise ShardError(f"column {name} of the answer is {values.dtype}, expected {dtype}")
    if kind == "f":
        return np.where(null, np.nan, values).astype(dtype)
    if name == "source_id" and null.any():
        raise ShardError(f"{int(null.sum())} rows of the answer have no {name}")
    whole = np.where(null, 0, values)
    if len(whole) and not np.iinfo(dtype).min <= whole.min() <= whole.max() <= np.iinfo(dtype).max:
        raise ShardError(f"column {name} of the answer does not fit {dtype}")
    return whole.astype(dtype)
