"""The reader of the archive's tables against Astropy's, value for value, and against damage."""

import base64
import io
import struct
import warnings

import numpy as np
import pytest
from astropy.io import votable
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import votable_rows, votable_scan
from pipeline.errors import ShardError
from pipeline.tap_answer import BadAnswerError, parse_answer, parsed_by_astropy, plain_columns
from pipeline.votable_rows import DamagedError, Field
from pipeline.votable_scan import Document

MANY = 10**6  # rows, more than any table here has
HEAD = '<?xml version="1.0"?>\n<VOTABLE version="1.4" xmlns="http://www.ivoa.net/xml/VOTable/v1.3">'
TAIL = "</TABLE></RESOURCE></VOTABLE>"
RESOURCE = '<RESOURCE type="results"><INFO name="QUERY_STATUS" value="OK"/>'
SIZES = {"boolean": 1, "bit": 1, "unsignedByte": 1, "short": 2, "int": 4, "long": 8}
SIZES |= {"float": 4, "double": 8, "floatComplex": 8, "doubleComplex": 16}
NULLS = {"unsignedByte": "255", "short": "-1", "int": "0x10", "long": "-9223372036854775808"}
NULLS |= {"float": "0.5", "double": "-1e300"}


def element(field, number):
    """The FIELD of a column."""
    size = "" if field.arraysize is None else f' arraysize="{field.arraysize}"'
    null = "" if field.null is None else f'<VALUES null="{field.null}"></VALUES>'
    form = f'name="{field.name}" datatype="{field.datatype}"{size}'
    return f'<FIELD ID="c{number}" {form}>{null}</FIELD>'


def stream(raw):
    return f'<STREAM encoding="base64">\n{base64.encodebytes(raw).decode()}</STREAM>'


def document(fields, raw, table="<TABLE>", after="", text=None):
    """Bytes of a VOTable with rows `raw`, or another text in its stream."""
    listed = "\n".join(element(field, k) for k, field in enumerate(fields))
    data = f"<DATA><BINARY2>{text or stream(raw)}</BINARY2></DATA>{after}"
    return f"{HEAD}{RESOURCE}{table}{listed}\n{data}{TAIL}".encode()


def cell(field, rng):
    """Bytes of a random cell; numbers of any bits, now and then of the value that means null."""
    if field.datatype in SIZES:
        if field.null is not None and rng.random() < 0.3:
            kind = votable_rows.NUMBERS[field.datatype]
            number = int(field.null, 0) if "i" in kind or "u" in kind else float(field.null)
            return np.array(number, kind).tobytes()
        if field.datatype == "boolean":
            return bytes(rng.choice(list(b"Tt1Ff0 ?\0x"), 1).astype("u1"))
        return rng.bytes(SIZES[field.datatype])
    most = int(field.arraysize.removesuffix("*") or 20)
    text = "".join(map(chr, rng.integers(32, 127, rng.integers(0, most + 1))))
    code, wide = ("latin-1", 1) if field.datatype == "char" else ("utf_16_be", 2)
    if field.arraysize.endswith("*"):
        return struct.pack(">I", len(text)) + text.encode(code)
    return text.encode(code).ljust(most * wide, b"\0")


def random_rows(fields, n, rng, flagged=True):
    """Bytes of n rows, with any null bits, or none."""
    size = -(-len(fields) // 8)
    rows = []
    for _ in range(n):
        flags = rng.bytes(size) if flagged else bytes(size)
        rows.append(flags + b"".join(cell(field, rng) for field in fields))
    return b"".join(rows)


def assert_as_astropy(data):
    """That a document is read here, and to what Astropy makes of it."""
    (table,) = Document(data).tables
    assert table.columns is not None, table.other
    theirs = parsed_by_astropy(data)
    assert [name for name, _ in table.columns] == [name for name, _ in theirs]
    for (name, ours), (_, expected) in zip(table.columns, theirs, strict=True):
        masks = np.ma.getmaskarray(ours), np.ma.getmaskarray(expected).astype(bool)
        np.testing.assert_array_equal(*masks, err_msg=name)
        ours, expected = np.ma.getdata(ours), np.ma.getdata(expected)
        if ours.dtype.kind == "S":
            np.testing.assert_array_equal(ours.astype(str), expected.astype(str), err_msg=name)
            continue
        assert ours.dtype == expected.dtype
        known = ours == ours
        assert ours[known].tobytes() == expected[known].tobytes(), name
        np.testing.assert_array_equal(ours, expected, err_msg=name)
    return table


numbers = st.builds(
    lambda kind, null: Field("x", kind, None, NULLS.get(kind) if null else None),
    st.sampled_from(sorted(SIZES)),
    st.booleans(),
)
texts = st.builds(
    Field,
    st.just("x"),
    st.sampled_from(["char", "unicodeChar"]),
    st.sampled_from(["1", "3", "17", "*", "17*"]),
)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(st.lists(numbers | texts, min_size=1, max_size=19), st.integers(0, 12), st.integers(0, 99))
def test_any_table_is_read_as_by_astropy_value_for_value_and_null_for_null(fields, n, seed):
    fields = [Field(f"Col_{k}", f.datatype, f.arraysize, f.null) for k, f in enumerate(fields)]
    raw = random_rows(fields, n, np.random.default_rng(seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = assert_as_astropy(document(fields, raw, f'<TABLE nrows="{n}">'))
    assert table.n_rows == n


FORMS = [
    Field("source_id", "long"), Field("flag", "boolean"), Field("variable", "char", "*"),
    Field("G", "float"), Field("name", "unicodeChar", "5*"), Field("quality", "char", "3"),
    Field("designation", "char", "17*"), Field("n", "short", None, "-1"), Field("ra", "double"),
]  # fmt: skip


@pytest.mark.parametrize("step", [3, 64, 1000])
def test_rows_may_lie_across_any_borders_of_what_is_read_at_a_time(step, monkeypatch):
    data = document(FORMS, random_rows(FORMS, 20, np.random.default_rng(3)))
    whole = parse_answer(data, MANY)
    monkeypatch.setattr(votable_rows, "BLOCK", step)
    monkeypatch.setattr(votable_scan, "STEP", step)
    parts = parse_answer(data, MANY)
    assert list(parts) == list(whole) == [field.name.lower() for field in FORMS]
    for name, values in whole.items():
        np.testing.assert_array_equal(np.ma.filled(parts[name]), np.ma.filled(values))
        np.testing.assert_array_equal(
            np.ma.getmaskarray(parts[name]), np.ma.getmaskarray(values), err_msg=name
        )


def astropys_document(form):
    """A document that Astropy wrote, with a column of each type and nulls in each."""
    kinds = {kind: votable_rows.NUMBERS[kind].replace(">", "") for kind in SIZES}
    kinds["boolean"] = kinds["bit"] = "?"
    file = votable.tree.VOTableFile(version="1.4")
    resource, table = votable.tree.Resource(type="results"), votable.tree.TableElement(file)
    file.resources.append(resource)
    resource.tables.append(table)
    for kind in kinds:
        table.fields.append(votable.tree.Field(file, name=kind, datatype=kind))
        if kind in NULLS and kind not in ("float", "double"):
            table.fields[-1].values.null = int(NULLS[kind], 0)
    for kind, size in (("char", "6"), ("char", "*"), ("unicodeChar", "6"), ("unicodeChar", "*")):
        name = f"{kind}{size.replace('*', 'v')}"
        table.fields.append(votable.tree.Field(file, name=name, datatype=kind, arraysize=size))
    table.create_arrays(9)
    rng = np.random.default_rng(5)
    for k, name in enumerate(table.array.dtype.names):
        column = table.array[name]
        if name in kinds:
            values = rng.integers(0, 2 if kinds[name] == "?" else 200, 9).astype(kinds[name])
        else:
            values = np.array([" odd "[: j % 6] for j in range(9)])
        for j in range(9):
            column[j] = values[j]
        if name not in ("bit",) and "har" not in name:
            table.array.mask[name][k % 9] = True
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file.to_xml(out, tabledata_format=form)
    return out.getvalue()


def test_what_astropy_writes_is_read_and_its_other_forms_come_to_the_same():
    data = astropys_document("binary2")
    assert_as_astropy(data)
    ours = parse_answer(data, MANY)
    assert sum(np.ma.getmaskarray(column).any() for column in ours.values()) == 9
    for form in ("tabledata", "binary"):
        (table,) = Document(astropys_document(form)).tables
        assert (table.columns, table.other.split(",")[0]) == (None, form.upper()[:6]) or (
            form == "tabledata" and table.form == "TABLEDATA"
        )
        theirs = parse_answer(astropys_document(form), MANY)
        for name in ("long", "double", "boolean", "char6", "charv"):
            kind = "S6" if "char" in name else {"boolean": "?", "double": "f8"}.get(name, "i8")
            columns = [plain_columns(answer, {name: kind})[name] for answer in (ours, theirs)]
            np.testing.assert_array_equal(*columns, err_msg=f"{form} {name}")


def test_texts_beyond_ascii_and_texts_longer_than_declared_are_astropys():
    for kind, code, size, text in (
        ("unicodeChar", "utf_16_be", "*", "é"), ("unicodeChar", "utf_16_be", "4", "éa\0\0"),
        ("char", "ascii", "*", "a\tb"), ("char", "ascii", "2*", "long"),
    ):  # fmt: skip
        length = struct.pack(">I", len(text)) if "*" in size else b""
        raw = b"\0" + length + text.encode(code) + struct.pack(">q", 7)
        data = document([Field("text", kind, size), Field("n", "long")], raw * 3)
        (table,) = Document(data).tables
        assert (table.columns, table.n_rows) == (None, 3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = text.rstrip("\0")[: int(size[0]) if size == "2*" else None]
            assert parse_answer(data, MANY)["text"].tolist() == [expected] * 3


def test_arrays_are_astropys():
    data = document([Field("x", "float", "2")], (b"\0" + struct.pack(">2f", 1, 2)) * 2)
    np.testing.assert_array_equal(parse_answer(data, MANY)["x"], [[1, 2], [1, 2]])


# ---- damage ----------------------------------------------------------------------------------

N = 7


def whole_rows(fields, n=N):
    """Bytes of rows whose ids are not null."""
    return random_rows(fields, n, np.random.default_rng(8), flagged=False)


DTYPES = {"source_id": "i8", "flag": "?", "g": "f4", "quality": "S3", "n": "i2", "ra": "f8"}
WHOLE = document(FORMS, whole_rows(FORMS))
START, END = WHOLE.index(b"<STREAM"), WHOLE.index(b"</STREAM>")
FIXED = [field for field in FORMS if field.arraysize in (None, "3")]
WHOLE_FIXED = document(FIXED, whole_rows(FIXED))


def read(data):
    """(number of rows, {name: values as plain bytes}) of a document; None where it is refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            plain = plain_columns(parse_answer(data, MANY), DTYPES)
        except (BadAnswerError, ShardError):
            return None
    texts = {name for name, values in plain.items() if values.dtype.kind == "S"}
    values = {name: v.tolist() if name in texts else v.tobytes() for name, v in plain.items()}
    return len(plain["source_id"]), values


def changed(data, place, byte):
    return data[:place] + byte + data[place + 1 :]


@pytest.mark.parametrize("byte", [b"x", b"4", b" ", b'"', b"<"])
@pytest.mark.parametrize("whole", [WHOLE, WHOLE_FIXED], ids=["texts", "fixed"])
def test_a_damaged_header_is_an_error_or_changes_nothing(whole, byte):
    """But for the value that means null: what was null may then be a number."""
    sound, start = read(whole), whole.index(b"<STREAM")
    null = range(whole.index(b"<VALUES"), whole.index(b"</VALUES>"))
    refused = 0
    for place in range(start + len(b'<STREAM encoding="base64">')):
        found = read(changed(whole, place, byte))
        refused += found is None
        if found is not None:
            assert found[0] == N, place
            assert found == sound or place in null, place
    assert refused > start / 3


@pytest.mark.parametrize("byte", [b"\n", b"-", b"=", b"<", b"&", b"\xff", b""])
def test_what_is_no_base64_or_a_character_lost_is_an_error(byte):
    for place in range(START + 30, END):
        if WHOLE[place : place + 1] not in b"\n=":
            assert read(changed(WHOLE, place, byte)) is None, place


def test_another_character_of_base64_never_changes_the_number_of_rows():
    for place in range(START + 30, END, 3):
        for byte in (b"A", b"B", b"/"):
            found = read(changed(WHOLE, place, byte))
            assert found is None or found[0] == N, place


@pytest.mark.parametrize("fields", [FORMS, FIXED])
def test_a_stream_cut_within_a_row_is_an_error_although_the_document_goes_on(fields):
    one, raw = len(whole_rows(fields, 1)), whole_rows(fields, 2)
    for size in range(1, len(raw)):
        if size != one:
            assert read(document(fields, raw[:size])) is None, size
    assert read(document(fields, raw[:one])) is not None


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("Excess data after padding", "AA==AAAA"),
        ("the base64 ends too early", "AAA"),
        ("a GROUP within a stream", "AAAA<GROUP/>AAAA"),
        ("a text of 4294967295 characters", base64.b64encode(b"\0" + b"\xff" * 40).decode()),
    ],
)
def test_what_a_stream_may_not_hold_is_named(words, text):
    stream = f'<STREAM encoding="base64">{text}</STREAM>'
    data = document([Field("text", "char", "*")], b"", text=stream)
    with pytest.raises(BadAnswerError, match=f"cannot be parsed: .*{words}"):
        parse_answer(data, MANY)


def test_base64_that_goes_on_after_its_end_is_an_error_in_the_next_block_too(monkeypatch):
    monkeypatch.setattr(votable_rows, "BLOCK", 4)
    reader = votable_rows.RowReader([Field("n", "unsignedByte")])
    reader.feed("AAE=")
    with pytest.raises(DamagedError, match="goes on after its end"):
        reader.feed("AAEC")


def with_status(value, where):
    """A document of two rows in which an INFO says so."""
    info = f'<INFO name="QUERY_STATUS" value="{value}">why <b>so</b></INFO>'
    data = document([Field("n", "long")], (b"\0" + bytes(8)) * 2, after=info * (where == "table"))
    if where == "document":
        return data.replace(b"</RESOURCE>", b"</RESOURCE>" + info.encode())
    if where == "start":
        return data.replace(b"<TABLE>", info.encode() + b"<TABLE>")
    return data if where == "table" else data.replace(b"</TABLE>", b"</TABLE>" + info.encode())


@pytest.mark.parametrize("where", ["start", "table", "end", "document"])
def test_a_status_is_seen_wherever_it_is(where):
    assert len(parse_answer(with_status("ok", where), MANY)["n"]) == 2
    with pytest.raises(ShardError, match="cut the result at its row limit"):
        parse_answer(with_status("OVERFLOW", where), MANY)
    with pytest.raises(BadAnswerError, match="an error document: why so"):
        parse_answer(with_status("Error", where), MANY)


def test_more_tables_than_one_are_refused_and_none_too():
    one = document([Field("n", "long")], b"\0" + bytes(8)).decode()
    table = one[one.index("<TABLE>") : one.index("</RESOURCE>")]
    with pytest.raises(BadAnswerError, match="with 2 tables, expected one"):
        parse_answer(one.replace(table, table * 2).encode(), MANY)
    with pytest.raises(BadAnswerError, match="with 0 tables"):
        parse_answer(one.replace(table, "").encode(), MANY)


@pytest.mark.parametrize("claimed", ["1", "3", "999999999999999", "-1", "many"])
def test_rows_that_are_claimed_must_come(claimed):
    data = document([Field("n", "long")], (b"\0" + bytes(8)) * 2, '<TABLE nrows="2">')
    start, end = data.index(b"<BINARY2>"), data.index(b"</DATA>")
    rows = b"<TABLEDATA>" + b"<TR><TD>0</TD></TR>" * 2 + b"</TABLEDATA>"
    for form in (data, data[:start] + rows + data[end:]):
        assert len(parse_answer(form, MANY)["n"]) == 2
        with pytest.raises(BadAnswerError, match="rows"):
            parse_answer(form.replace(b'nrows="2"', f'nrows="{claimed}"'.encode()), MANY)


ELSEWHERE = "<FITS><STREAM href='file:///etc/passwd'/></FITS>"
TWICE = "<BINARY2>" + "<STREAM encoding='base64'/>" * 2 + "</BINARY2>"
LONG = f"{HEAD}<RESOURCE><TABLE><FIELD name='n' datatype='long'/><DATA>"
HOSTILE = {
    "it declares entities": '<!DOCTYPE x [<!ENTITY a "b">]>'
    + HEAD.split("\n")[1]
    + "&a;</VOTABLE>",
    "to be fetched from elsewhere": f"{LONG}{ELSEWHERE}</DATA>{TAIL}",
    "more than 100 deep": HEAD + "<RESOURCE>" * 200 + "</RESOURCE>" * 200 + "</VOTABLE>",
    "more than 1000 columns": f"{HEAD}<RESOURCE><TABLE>{'<FIELD/>' * 1001}{TAIL}",
    "several streams": f"{LONG}{TWICE}</DATA>{TAIL}",
    "no whole XML": f"{HEAD}<RESOURCE></VOTABLE>",
    "has no datatype": LONG.replace("datatype", "type")
    + f"<BINARY2>{stream(b'')}</BINARY2></DATA>{TAIL}",
}


@pytest.mark.parametrize("words", HOSTILE)
def test_hostile_documents_are_refused_before_anything_is_made_of_them(words):
    with pytest.raises(DamagedError, match=words):
        Document(HOSTILE[words].encode())
    with pytest.raises(BadAnswerError, match=words):
        parse_answer(HOSTILE[words].encode(), MANY)
