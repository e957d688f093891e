"""A tiny TAP service that misbehaves when told to. For faults only: a real server is in services/.

It understands no ADQL beyond the names of tables and columns, and BETWEEN or IN on ids.
"""

import gzip
import io
import re
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import numpy as np
from astropy.io import votable
from astropy.table import Table

ERROR_DOCUMENT = (
    b'<?xml version="1.0"?><VOTABLE version="1.4" xmlns="http://www.ivoa.net/xml/VOTable/v1.3">'
    b'<RESOURCE type="results"><INFO name="QUERY_STATUS" value="ERROR">out of memory</INFO>'
    b"</RESOURCE></VOTABLE>"
)
HTML = b"<!DOCTYPE html><html><head><style>p {}</style></head><body>Maintenance</body></html>"


class TapStub:
    """`with TapStub(table) as stub:` serves {column: (n,) array} at stub.url.

    The columns are those of the answers, of which `source_id` has the ids. schema: {table: names of
    its columns}, for TAP_SCHEMA; a query for another column, or another table, is refused. None:
    nothing is in TAP_SCHEMA, and nothing refused.

    faults: {request: [fault, ...]}, each used up by one request of that kind (submit, start,
    phase, result, error, delete, login; those about TAP_SCHEMA are "schema submit" and so on, their
    queries are in `schema_queries`). Faults: an HTTP status, "reset", "silent", "html",
    "error document", "cut", "overflow", or a number of rows to lose ("lose 3").
    phases: of the jobs in their order; the last phase of a list stays, as does the last list.
    """

    def __init__(self, table, phases=(("EXECUTING", "COMPLETED"),), user=None, schema=None):
        self.table, self.phases, self.user = table, [list(p) for p in phases], user
        self.schema, self.schema_queries, self.list_as = schema, [], str
        self.faults, self.requests, self.queries, self.forms = {}, [], [], []
        self.jobs, self.deleted, self.running, self.most = {}, [], set(), 0
        self.session, self.deny_tap_plus = "one", False
        self.lock = threading.Lock()

    def __enter__(self):
        handler = type("Handler", (self.handler,), {"stub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/tap-server/tap"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()

    def count(self, request):
        return self.requests.count(request)

    def refusal(self, query):
        """Why a query cannot be asked, or ""."""
        if self.schema is None or "TAP_SCHEMA" in query:
            return ""
        tables = {alias: name for name, alias in re.findall(r"(?:FROM|JOIN) (\S+) AS (\w+)", query)}
        unknown = [name for name in tables.values() if name not in self.schema]
        if unknown:
            return f"no table {unknown[0]}"
        for alias, column in re.findall(r"\b(\w+)\.(\w+)", query):
            if alias in tables and column not in self.schema[tables[alias]]:
                return f"{tables[alias]} has no column {column}"
        return ""

    def schema_answer(self):
        """Rows of TAP_SCHEMA.columns, of all tables, whose names `list_as` may change."""
        schema = self.schema or {}
        rows = [(self.list_as(table), name) for table in schema for name in schema[table]]
        return Table(rows=rows, names=("table_name", "column_name"), dtype=("U99", "U99"))

    def answer(self, query, fault):
        """VOTable of the rows asked for."""
        ids = self.table["source_id"]
        numbers = [int(text) for text in re.findall(r"\b\d{4,}\b", query.split("WHERE")[1])]
        if "BETWEEN" in query:
            rows = np.flatnonzero((ids >= numbers[0]) & (ids <= numbers[1]))
        else:
            rows = np.flatnonzero(np.isin(ids, numbers))
        rows = rows[int(fault.split()[1]) :] if str(fault).startswith("lose") else rows
        names = [re.split(r"\.| AS ", item)[-1] for item in select_items(query)]
        table = Table({name: self.column(name, rows) for name in names})
        if self.table.get("upper"):
            table.rename_column("source_id", "SOURCE_ID")
        return self.document(table, fault)

    def document(self, table, fault=None):
        """Bytes of a VOTable, compressed."""
        document = votable.from_table(table)
        status = "OVERFLOW" if fault == "overflow" else "OK"
        info = votable.tree.Info(name="QUERY_STATUS", value=status)
        document.resources[0].infos.append(info)
        out = io.BytesIO()
        document.to_xml(out, tabledata_format="binary2")
        return gzip.compress(out.getvalue())

    def column(self, name, rows):
        """Rows of a column; a null string is an empty one, as services have it."""
        values = self.table[name][rows]
        return np.ma.filled(values, "") if values.dtype.kind == "U" else values


def select_items(query):
    return query.split("SELECT ")[1].split(" FROM")[0].split(", ")


class TapHandler(BaseHTTPRequestHandler):
    stub: TapStub
    protocol_version = "HTTP/1.0"

    def log_message(self, *words):
        pass

    def reply(self, status, body=b"", **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def misbehave(self, fault):
        """True where the fault is the whole answer."""
        if isinstance(fault, int):
            self.reply(fault, b"<html><body>Sorry, not now</body></html>")
        elif fault == "reset":
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
        elif fault == "silent":
            time.sleep(3)
        elif fault == "html":
            self.reply(200, HTML)
        elif fault == "error document":
            self.reply(200, ERROR_DOCUMENT)
        else:
            return False
        self.close_connection = True
        return True

    def kind(self, form):
        """What is asked for, and the job's id."""
        path = self.path.split("/tap-server/")[-1]
        parts = path.split("/")
        if path == "login":
            return "login", None
        if path == "tap/deletejobs":
            return "delete", form["JOB_IDS"]
        if path == "tap/async":
            return "submit", "schema" if "TAP_SCHEMA" in form["QUERY"] else "job"
        job = parts[2]
        if len(parts) == 3:
            return "delete", job
        if parts[3] == "phase":
            return ("start" if self.command == "POST" else "phase"), job
        return ("result" if parts[3] == "results" else "error"), job

    def do_POST(self):
        self.handle_request()

    def do_GET(self):
        self.handle_request()

    def handle_request(self):
        stub = self.stub
        length = int(self.headers.get("Content-Length") or 0)
        form = {k: v[0] for k, v in parse_qs(self.rfile.read(length).decode()).items()}
        kind, job = self.kind(form)
        named = f"schema {kind}" if str(job).startswith("schema") else kind
        with stub.lock:
            stub.requests.append(named)
            queue = stub.faults.get(named)
            fault = queue.pop(0) if queue else None
        if self.misbehave(fault):
            return
        cookie = self.headers.get("Cookie", "")
        if stub.user and kind != "login" and f"SESSION={stub.session}" not in cookie:
            self.reply(401, b"log in first")
            return
        if kind not in ("login", "submit", "delete") and job not in stub.jobs:
            self.reply(404, b"no such job")
            return
        getattr(self, f"do_{kind}")(job, form, fault)

    def do_login(self, job, form, fault):
        if (form.get("username"), form.get("password")) != self.stub.user:
            self.reply(401, b"wrong user or password")
        else:
            self.reply(200, Set_Cookie=f"SESSION={self.stub.session}; Path=/")

    def do_submit(self, job, form, fault):
        stub = self.stub
        refusal = stub.refusal(form["QUERY"])
        if refusal:
            self.reply(400, refusal.encode())
            return
        with stub.lock:
            if job == "schema":
                phases, job = ["COMPLETED"], f"schema{len(stub.schema_queries)}"
                stub.schema_queries.append(form["QUERY"])
            else:
                number = len(stub.queries)
                stub.queries.append(form["QUERY"])
                stub.forms.append(form)
                job = f"job{number}"
                phases = list(stub.phases[min(number, len(stub.phases) - 1)])
            stub.jobs[job] = {"query": form["QUERY"], "phases": phases, "started": False}
        self.reply(303, Location=f"{stub.url}/async/{job}")

    def do_start(self, job, form, fault):
        stub = self.stub
        with stub.lock:
            stub.jobs[job]["started"] = True
            if not job.startswith("schema"):
                stub.running.add(job)
            stub.most = max(stub.most, len(stub.running))
        self.reply(303, Location=f"{stub.url}/async/{job}")

    def do_phase(self, job, form, fault):
        stub = self.stub
        with stub.lock:
            entry = stub.jobs[job]
            phase = "PENDING"
            if entry["started"]:
                phase = entry["phases"].pop(0) if len(entry["phases"]) > 1 else entry["phases"][0]
            if phase not in ("EXECUTING", "QUEUED", "PENDING"):
                stub.running.discard(job)
        self.reply(200, phase.encode())

    def do_result(self, job, form, fault):
        stub = self.stub
        if job.startswith("schema"):
            body = stub.document(stub.schema_answer(), fault)
        else:
            body = stub.answer(stub.jobs[job]["query"], fault)
        if fault == "cut":
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
            return
        self.reply(200, body[: len(body) // 2] if fault == "half" else body)

    def do_error(self, job, form, fault):
        self.reply(200, ERROR_DOCUMENT)

    def do_delete(self, job, form, fault):
        stub = self.stub
        if "JOB_IDS" in form and stub.deny_tap_plus:
            self.reply(404)
            return
        with stub.lock:
            if not job.startswith("schema"):
                stub.deleted.append(job)
            stub.running.discard(job)
            stub.jobs.pop(job, None)
        self.reply(200)


TapStub.handler = TapHandler
