"""A VOTable document gone through as XML: what its header says, what its INFOs report, and, of a
BINARY2 stream, its rows.

Everything is looked at, wherever it is in the document, so that nothing else in it is acted upon
later: entities are not declared, and no data are fetched from elsewhere.
"""

from dataclasses import dataclass, field
from xml.parsers import expat

from pipeline.votable_rows import DamagedError, Field, OtherFormError, RowReader

STEP = 1 << 20  # bytes gone through at a time
MOST_FIELDS, DEEPEST = 1000, 100  # of any table, of any document
FORMS = ("TABLEDATA", "BINARY", "BINARY2", "FITS", "PARQUET")


@dataclass
class Table:
    """A table: the form of its data, and its columns."""

    n_rows: int | None = None  # that it says it has, or that it has
    form: str | None = None
    fields: list = field(default_factory=list)
    columns: list | None = None  # [(name, (n,) array)], where they were read
    other: str = ""  # why they were not
    streams: int = 0


class Document:
    """A VOTable's `tables`, and [(value, parts of the text)] of its INFOs called QUERY_STATUS.

    DamagedError where the document is none, claims more than it can hold, or holds what no answer
    needs: entities of its own, data to be fetched from elsewhere, several streams in a table.
    """

    def __init__(self, data: bytes):
        self.tables, self.statuses = [], []
        self._size, self._path, self._reader = len(data), [], None
        parser = expat.ParserCreate()
        parser.buffer_text, parser.buffer_size = True, STEP
        parser.StartElementHandler, parser.EndElementHandler = self._start, self._end
        parser.EntityDeclHandler = self._entity
        self._parser, view = parser, memoryview(data)
        try:
            for start in range(0, len(data), STEP):
                parser.Parse(view[start : start + STEP], False)
            parser.Parse(b"", True)
        except expat.ExpatError as error:
            raise DamagedError(f"no whole XML: {error}") from error

    def _entity(self, *_):
        raise DamagedError("it declares entities")

    def _start(self, name, attributes):
        name, parent = name.rpartition(":")[2], self._path[-1] if self._path else ""
        self._path.append(name)
        if len(self._path) > DEEPEST:
            raise DamagedError(f"elements within elements, more than {DEEPEST} deep")
        if parent == "STREAM":
            raise DamagedError(f"a {name} within a stream")
        if name == "TABLE":
            self.tables.append(self._table(attributes))
        elif name == "INFO" and attributes.get("name") == "QUERY_STATUS":
            words = []
            self.statuses.append((attributes.get("value", ""), words))
            self._parser.CharacterDataHandler = words.append
        elif name == "STREAM":
            self._stream(attributes)
        elif self.tables:
            self._in_table(self.tables[-1], name, parent, attributes)

    def _table(self, attributes):
        claimed = attributes.get("nrows")
        try:
            n_rows = None if claimed is None else int(claimed)
        except ValueError:
            n_rows = -1
        if n_rows is not None and not 0 <= n_rows <= self._size:
            raise DamagedError(f"a table claims {claimed} rows, in {self._size} bytes")
        return Table(n_rows, other="a table like another" if "ref" in attributes else "")

    def _in_table(self, table, name, parent, attributes):
        """What is in a table before its data."""
        if parent == "DATA" and name in FORMS:
            table.form = table.form or name
            if name == "TABLEDATA":
                self._parser.StartElementHandler = None
                self._parser.EndElementHandler = self._end_of_cell
        elif name == "FIELD" and parent == "TABLE" and table.form is None:
            if len(table.fields) == MOST_FIELDS:
                raise DamagedError(f"more than {MOST_FIELDS} columns")
            called, *form = map(attributes.get, ("name", "datatype", "arraysize"))
            table.fields.append(Field(called or attributes.get("ID", ""), *form))
        elif name == "VALUES" and parent == "FIELD" and table.form is None and table.fields:
            table.fields[-1].null = attributes.get("null")
            if "ref" in attributes:
                table.other = "null values like another's"

    def _stream(self, attributes):
        """The beginning of a stream, whose rows are read where they are of the form."""
        if "href" in attributes:
            raise DamagedError(f"its data are to be fetched from elsewhere, {attributes['href']}")
        if not self.tables:
            raise DamagedError("a stream without a table")
        table = self.tables[-1]
        table.streams += 1
        if table.streams > 1:
            raise DamagedError("several streams in a table")
        if table.form != "BINARY2" or attributes.get("encoding") != "base64":
            table.other = table.other or f"{table.form}, encoding {attributes.get('encoding')}"
        if not table.fields:
            table.other = "no columns"
        if table.other:
            return
        try:
            self._reader = RowReader(table.fields)
            self._parser.CharacterDataHandler = self._reader.feed
        except OtherFormError as error:
            table.other = str(error)

    def _end_of_cell(self, name):
        """Of one of many elements, in which nothing is looked for; the last is their table's."""
        if name.endswith("TABLEDATA"):
            self._parser.StartElementHandler = self._start
            self._parser.EndElementHandler = self._end
            self._end(name)

    def _end(self, name):
        name = name.rpartition(":")[2]
        del self._path[-1:]  # of tables within cells there may be none left
        if name == "INFO":
            self._parser.CharacterDataHandler = None
        elif name == "STREAM" and self._reader is not None:
            self._rows_of(self.tables[-1], self._reader)
            self._reader, self._parser.CharacterDataHandler = None, None

    @staticmethod
    def _rows_of(table, reader):
        reader.finish()
        if table.n_rows not in (None, reader.n_rows):
            raise DamagedError(f"a table of {table.n_rows} rows has {reader.n_rows}")
        table.n_rows = reader.n_rows
        try:
            table.columns = reader.columns()
        except OtherFormError as error:
            table.other = str(error)
