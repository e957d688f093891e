"""A tiny DataLink service beside a tiny TAP service, which misbehaves when told to.

It gives spectra in the forms in which the archive does: a zip with a file for all sources, or one
for each, of csv, ecsv, VOTable or FITS; or a plain document.
"""

import io
import zipfile
from urllib.parse import parse_qs

from tap_stub import ERROR_DOCUMENT, HTML, TapHandler, TapStub
from test_convert_xp_csv import csv_lines
from test_spectra_forms import masked

RETRIEVAL = "XP_CONTINUOUS"
ENDINGS = {"csv": "csv", "ecsv": "ecsv", "votable": "xml", "fits": "fits"}
ASTROPY = {"ecsv": "ascii.ecsv", "votable": "votable", "fits": "fits"}


LINES = {}  # {id of spectra: (spectra, lines of CSV)}: to write them takes longer than a request


def csv_of(spectra, rows) -> bytes:
    """Rows of spectra {name: (n, ...)} as CSV."""
    if id(spectra) not in LINES:
        LINES[id(spectra)] = spectra, csv_lines(spectra, ecsv=False)
    head, *lines = LINES[id(spectra)][1]
    return "\n".join([head, *(lines[row] for row in rows), ""]).encode()


def document(spectra, rows, form="csv") -> bytes:
    """Rows of spectra as one of the service's files."""
    if form == "csv":
        return csv_of(spectra, rows)
    table = rows_of(spectra, rows)
    out = io.BytesIO() if form != "ecsv" else io.StringIO()
    masked(table).write(out, format=ASTROPY[form])
    return out.getvalue() if form != "ecsv" else out.getvalue().encode()


def zipped(files) -> bytes:
    """A zip of {name: content}."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def rows_of(table, rows):
    return {name: column[rows] for name, column in table.items()}


class DataLinkStub(TapStub):
    """`with DataLinkStub(spectra) as stub:` serves spectra {name: (n, ...)} at stub.data_url.

    form: of the files; individual: a file for each source; plain: no zip. faults["data"]: used up
    one a request: those of `TapStub`, and "empty zip", "nothing", "cut zip", "damaged zip", "json",
    "text", "half" (the announced bytes do not all come), "error votable", "overflow", "others"
    (sources not asked for), "odd row" (the last one), or "lose N" (rows). poison: {id: fault} of
    all requests with that source. asked: lists of ids, one a request.
    """

    def __init__(self, spectra, form="csv", individual=False, plain=False, table=None, **options):
        super().__init__(table, **options)
        self.spectra, self.form, self.individual, self.plain = spectra, form, individual, plain
        self.poison = {}
        self.asked, self.sent, self.data_paths, self.before = [], [], [], lambda: None

    @property
    def data_url(self):
        return self.url.replace("/tap-server/tap", "/data-server/data")

    def files(self, ids, fault):
        """{name: content} of an answer about ids."""
        ids = [i for i in ids if i in set(self.spectra["source_id"].tolist())]
        ids = ids[int(fault.split()[1]) :] if str(fault).startswith("lose") else ids
        place = {i: n for n, i in enumerate(self.spectra["source_id"].tolist())}
        if fault == "others":
            ids = [i for i in place if i not in ids][:1] + ids
        ending = ENDINGS[self.form]
        if not self.individual:
            if not ids and self.form != "csv":
                return {}
            rows = [place[i] for i in ids]
            return {f"{RETRIEVAL}_RAW.{ending}": document(self.spectra, rows, self.form)}
        return {
            f"{RETRIEVAL}-Gaia DR3 {i}.{ending}": document(self.spectra, [place[i]], self.form)
            for i in ids
        }

    def body(self, ids, fault):
        """Bytes of an answer."""
        odd = {
            "empty zip": zipped({}),
            "nothing": b"",
            "json": b'{"error": "Cannot process request", "status": 500}',
            "text": b"Error 500:\nnull\n",
            "error votable": zipped({"XP_CONTINUOUS_RAW.xml": ERROR_DOCUMENT}),
            "error document": ERROR_DOCUMENT,
            "html": HTML,
        }
        if fault in odd:
            return odd[fault]
        files = self.files(ids, fault)
        if fault == "odd row":
            files = {n: c.replace(b"\n%d," % ids[-1], b"\n?,") for n, c in files.items()}
        if fault == "overflow":
            info = b'<INFO name="QUERY_STATUS" value="OVERFLOW"/></RESOURCE>'
            files = {n: c.replace(b"</RESOURCE>", info, 1) for n, c in files.items()}
        if self.plain:
            return next(iter(files.values()))
        body = zipped(files)
        if fault == "damaged zip":
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 255]) + body[middle + 1 :]
        return body[: len(body) // 2] if fault == "cut zip" else body


class DataLinkHandler(TapHandler):
    def handle_request(self):
        if "/data-server/" not in self.path:  # whole URLs, where it is a proxy
            super().handle_request()
            return
        stub = self.stub
        length = int(self.headers.get("Content-Length") or 0)
        form = {k: v[0] for k, v in parse_qs(self.rfile.read(length).decode()).items()}
        if self.path.endswith("/login"):
            self.do_login(None, form, None)
            return
        ids = [int(text) for text in form["ID"].split(",")]
        with stub.lock:
            stub.asked.append(ids)
            stub.sent.append(form)
            stub.data_paths.append(self.path)
            queue = stub.faults.get("data")
            fault = queue.pop(0) if queue else None
            fault = next((stub.poison[i] for i in ids if i in stub.poison), fault)
        stub.before()
        if fault not in ("html", "error document") and self.misbehave(fault):
            return
        if stub.user and f"SESSION={stub.session}" not in self.headers.get("Cookie", ""):
            self.reply(401, b"log in first")
            return
        body = stub.body(ids, fault)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault == "half" else body)


DataLinkStub.handler = DataLinkHandler
