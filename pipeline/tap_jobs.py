"""Queries to a TAP service such as the Gaia archive: asynchronous jobs that survive interruptions.

What steps 2 and 3 share. A shard's query is one job: submitted, polled with a deadline, fetched,
validated, and deleted once the shard is written. The job's id is kept in a small file beside the
output (`.{name}.jobs.json`), so that a run that was killed picks its job up again.

astroquery's TAP+ client makes the requests and the login; the waiting is ours, for three reasons:
its wait has no time limit, it takes the error document of a failed job for the result, and it
says nothing of a result cut at the row limit. (`astroquery.gaia` is not imported: on import it
asks the archive for its notices.)
"""

import contextlib
import gzip
import hashlib
import http.client
import io
import json
import logging
import os
import random
import re
import threading
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import numpy as np
from astropy.io import votable
from astroquery.utils.tap import TapPlus
from astroquery.utils.tap.conn.tapconn import TapConn
from astroquery.utils.tap.model.job import Job

from pipeline.errors import ShardError, UsageError
from pipeline.read import ShardReader
from pipeline.run import run_shards, setup_logging
from pipeline.schema import KINDS
from pipeline.select import input_paths, select_fids, shard_path

GAIA_TAP_URL = "https://gea.esac.esa.int/tap-server/tap"
ROW_LIMIT = 3_000_000  # the Gaia archive's, of anonymous asynchronous jobs
ROW_LIMIT_ADVICE = "; give --login and a larger --row-limit"
OUTPUT_FORMAT = "votable_gzip"  # keeps 64-bit ids exact, and tells where rows were cut
LONGEST_WAIT = 600.0  # s, between two attempts
IDS_PER_QUERY = 2000  # asked for by name in one query: 40 kB of ADQL
NAMED_IDS = 4000  # kept in an attribute of the output (HDF5 allows 64 kB); the log names all
PIXEL_SHIFT = 43  # source_id >> 43 is the nested HEALPix level-8 pixel; Gaia DR3 documentation
TRUE = ("true", "t", "1")  # booleans that come as text
LOOPBACK = ("127.0.0.1", "localhost", "::1")

# Words of the UWS standard (IVOA Universal Worker Service 1.1).
PHASES_OVER = ("ABORTED", "ERROR", "ARCHIVED")


class PassingError(Exception):
    """The service or the way to it fails now; asking again may work."""


class LostJobError(PassingError):
    """The job will give no result; a new one may."""


class LoginError(PassingError):
    """Not allowed, or no longer: the session has expired."""


class BadAnswerError(PassingError):
    """What was fetched is not a whole VOTable."""


FAULTS = (PassingError, OSError, http.client.HTTPException)  # worth asking again


# ---- options ---------------------------------------------------------------------------------


def _number(kind, least):
    def parse(text):
        value = kind(text)
        if value < least:
            raise ValueError(text)
        return value

    parse.__name__ = f"number of at least {least}"
    return parse


def add_tap_arguments(parser) -> None:
    """Add the options of the scripts that query a TAP service."""
    group = parser.add_argument_group("archive")
    group.add_argument("--dry-run", action="store_true", help="print the queries; ask nothing")
    group.add_argument("--tap-url", default=GAIA_TAP_URL, help="default: %(default)s")
    group.add_argument(
        "--login", type=Path, metavar="FILE", help="two lines: user, password (default: anonymous)"
    )
    numbers = {
        "--row-limit": (int, 1, ROW_LIMIT, "a result of so many rows was cut: a failure"),
        "--jobs": (int, 1, 2, "shards asked for at once; the archive prefers few"),
        "--timeout": (float, 0, 10800, "most seconds for one job, queueing included"),
        "--attempts": (int, 1, 5, "for each query, before the shard counts as failed"),
        "--retry-wait": (float, 0, 10, "seconds before the second attempt; doubled each time"),
        "--poll": (float, 0, 15, "most seconds between two looks at a job"),
        "--pace": (float, 0, 1, "least seconds between two submissions"),
        "--http-timeout": (float, 0.01, 120, "most seconds without a byte from the service"),
    }
    for name, (kind, least, default, text) in numbers.items():
        group.add_argument(
            name, type=_number(kind, least), default=default, help=f"{text} (%(default)s)"
        )


# ---- the way to the service ------------------------------------------------------------------


class _Connections:
    """Opens TapConn's connections, with a time limit: astroquery's own have none."""

    def __init__(self, url, timeout):
        self._parts = urlsplit(url)
        self._timeout = timeout

    def get_connection(self, ishttps=False, cookie=None, verbose=False):
        secure = self._parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        return kind(self._parts.hostname, self._parts.port, timeout=self._timeout)

    def get_connection_secure(self, verbose=False):
        return self.get_connection()


class Connection(TapConn):
    """astroquery's connection to a TAP service, with every refusal an exception of ours.

    PassingError for 5xx, 408, 425, 429; LoginError for 401 and 403; LostJobError for 404 and 410;
    ShardError for the others.
    """

    logged_in = False

    def __init__(self, url, timeout):
        parts = urlsplit(url)
        server, _, tap = parts.path.rstrip("/").rpartition("/")
        super().__init__(
            ishttps=parts.scheme == "https", host=parts.hostname, server_context=server or None,
            tap_context=tap, connhandler=_Connections(url, timeout),
        )  # fmt: skip

    def execute_tapget(self, subcontext, *, verbose=False):
        return _accepted(super().execute_tapget(subcontext))

    def execute_tappost(self, subcontext, data, *args, **kwargs):
        return _accepted(super().execute_tappost(subcontext, data, *args, **kwargs))

    def set_cookie(self, cookie):
        super().set_cookie(cookie)
        self.logged_in = True

    def execute_secure(self, subcontext, data, *, verbose=False):
        return _accepted(super().execute_secure(subcontext, data))


def _accepted(response):
    """The response, where its status is below 400."""
    status = response.status
    if status < 400:
        return response
    words = _first_words(response.read())
    message = f"HTTP {status} {response.reason}: {words}"
    if status in (401, 403):
        raise LoginError(message)
    if status >= 500 or status in (408, 425, 429):
        raise PassingError(message)
    if status in (404, 410):
        raise LostJobError(message)
    raise ShardError(f"the TAP service refuses: {message}")


def _first_words(data: bytes) -> str:
    """The text of an HTML or XML document, shortened to one line."""
    text = re.sub(r"<(style|script)\b.*?</\1>", " ", data.decode("utf-8", "replace"), flags=re.S)
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())[:200]


class TapService:
    """A TAP service and how to treat it; used by several threads at once.

    args: the options of `add_tap_arguments`. Raises UsageError where the service cannot be used
    at all: a malformed URL, a login file that cannot be read, a login that is refused.
    """

    def __init__(self, args, log):
        parts = urlsplit(args.tap_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"--tap-url {args.tap_url}: expected http(s)://host/path")
        self.args, self.log = args, log
        self.stop = threading.Event()
        self._local = threading.local()
        self._pace = threading.Lock()
        self._next_submission = 0.0
        self._credentials = None
        logging.getLogger("astropy").setLevel(logging.WARNING)  # astroquery talks to stdout there
        if args.login:
            self._credentials = _read_login(args.login, parts)
            try:
                self.connection()
            except FAULTS as error:
                raise UsageError(f"--login {args.login}: refused by {args.tap_url}: {error}") from (
                    error
                )

    def connection(self) -> Connection:
        """This thread's connection, logged in where --login was given."""
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = Connection(self.args.tap_url, self.args.http_timeout)
            if self._credentials:
                user, password = self._credentials
                TapPlus(connhandler=connection).login(user=user, password=password)
                if not connection.logged_in:
                    raise PassingError("the service gave no session for this user and password")
            self._local.connection = connection
        return connection

    def log_out(self):
        """Forget this thread's connection: the next one logs in again."""
        self._local.connection = None

    def pause(self, seconds):
        """Wait; ShardError where the run is being interrupted."""
        if self.stop.wait(seconds):
            raise ShardError("interrupted; the next run picks its job up")

    def wait_for_turn(self):
        """Keep --pace between submissions of all threads."""
        with self._pace:
            now = time.monotonic()
            wait = max(0.0, self._next_submission - now)
            self._next_submission = now + wait + self.args.pace
        self.pause(wait)

    def back_off(self, failures):
        """Wait before another attempt: exponential, with jitter so that many runs spread out."""
        wait = min(LONGEST_WAIT, self.args.retry_wait * 2 ** (failures - 1))
        self.pause(wait * random.uniform(0.5, 1.5))


def _read_login(path, parts) -> tuple[str, str]:
    if parts.scheme != "https" and parts.hostname not in LOOPBACK:
        raise UsageError(f"--login: a password is not sent over {parts.scheme}; use https")
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--login {path}: cannot be read ({error})") from error
    if len(lines) < 2 or not lines[0].strip() or not lines[1].strip():
        raise UsageError(f"--login {path}: expected two lines, the user and the password")
    return lines[0].strip(), lines[1].strip()


# ---- jobs of one output ----------------------------------------------------------------------


class ShardJobs:
    """The jobs of one output, remembered beside it until `finish`."""

    def __init__(self, service: TapService, output, name):
        self.service, self.log, self.name = service, service.log, name
        output = Path(output)
        self.path = output.with_name(f".{output.name}.jobs.json")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._ids = {}
        with contextlib.suppress(OSError, ValueError, AttributeError):
            noted = json.loads(self.path.read_text())
            self._ids = {str(key): str(job) for key, job in noted.items()}

    def _key(self, query) -> str:
        """Of a job that this query may take over: the same question to the same service."""
        args = self.service.args
        question = (args.tap_url, args.row_limit, bool(args.login), query)
        return hashlib.sha256(repr(question).encode()).hexdigest()

    def _remember(self):
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        temporary.write_text(json.dumps(self._ids))
        os.replace(temporary, self.path)

    def fetch(self, query):
        """The result of a query: {column name in lower case: (n,) masked array}.

        Takes up the job of an earlier run where there is one. Raises ShardError where the service
        refuses the query, the result was cut, or all attempts failed.
        """
        args = self.service.args
        for attempt in range(1, args.attempts + 1):
            try:
                return self._attempt(query)
            except FAULTS as error:
                reason = f"{type(error).__name__}: {error}"
                self.log.warning(
                    "%s: attempt %d of %d: %s", self.name, attempt, args.attempts, reason
                )
                if isinstance(error, LoginError):
                    self.service.log_out()
            if attempt < args.attempts:
                self.service.back_off(attempt)
        raise ShardError(
            f"{args.tap_url}: given up after {args.attempts} attempts, the last: {reason}; run the "
            "same command again later"
        )

    def _attempt(self, query):
        key = self._key(query)
        job = self._ids.get(key)
        if job is None:
            job = self._submit(query, key)
        else:
            self.log.info("%s: job %s is taken up again", self.name, job)
        try:
            self._wait(job)
            return self._result(job)
        except (LostJobError, ShardError) as error:
            if not self.service.stop.is_set():
                self.log.info("%s: job %s is dropped: %s", self.name, job, error)
                self._forget(key)
            raise

    def _submit(self, query, key) -> str:
        """Create the job, note its id, and only then start it: no job runs that nobody knows."""
        self.service.wait_for_turn()
        client = TapPlus(connhandler=self.service.connection())
        job = client.launch_job_async(
            query, output_format=OUTPUT_FORMAT, background=True, autorun=False,
            maxrec=self.service.args.row_limit,
        )  # fmt: skip
        self._ids[key] = job.jobid
        self._remember()
        job.start()
        self.log.info("%s: job %s submitted", self.name, job.jobid)
        return job.jobid

    def _phase(self, job_id) -> str:
        job = Job(async_job=True, connhandler=self.service.connection())
        job.jobid = job_id
        phase = job.get_phase(update=True).strip().upper()
        if not re.fullmatch("[A-Z]{1,20}", phase):
            raise PassingError(f"not a phase of a job: {_first_words(phase.encode())}")
        if phase == "PENDING":  # an earlier run, or a fault, came between its making and its start
            job.set_phase(phase)
            with contextlib.suppress(ShardError):  # has been started meanwhile
                job.start()
        return phase

    def _wait(self, job_id):
        """Return when the job is complete; LostJobError where it failed or the time is over.

        Fewer than --attempts failed looks in a row are borne.
        """
        args = self.service.args
        deadline = time.monotonic() + args.timeout
        interval, failures, phase = min(1.0, args.poll), 0, "unknown"
        while True:
            try:
                phase, failures = self._phase(job_id), 0
            except LostJobError:
                raise
            except FAULTS as error:
                failures += 1
                if failures >= args.attempts:
                    raise
                self.log.info("%s: job %s cannot be looked at: %s", self.name, job_id, error)
                self.service.back_off(failures)
            if phase == "COMPLETED":
                return
            if phase in PHASES_OVER:
                raise LostJobError(f"job {job_id} ended as {phase}: {self._error_of(job_id)}")
            if time.monotonic() > deadline:
                raise LostJobError(f"job {job_id} is {phase} after {args.timeout:.0f} s")
            self.service.pause(interval)
            interval = min(1.5 * interval, args.poll)

    def _error_of(self, job_id) -> str:
        with contextlib.suppress(ShardError, *FAULTS):
            return _first_words(self._get(f"async/{job_id}/error")) or "no reason given"
        return "no reason given"

    def _get(self, context) -> bytes:
        """Body of a GET, following redirects."""
        for _ in range(5):
            response = self.service.connection().execute_tapget(context)
            if response.status < 300:
                return response.read()
            context = response.getheader("Location") or ""
        raise PassingError(f"redirected without end to {context}")

    def _result(self, job_id):
        """Fetch and parse; where that failed twice the stored result is bad, and the job lost."""
        context, limit = f"async/{job_id}/results/result", self.service.args.row_limit
        try:
            return parse_answer(self._get(context), limit)
        except BadAnswerError as error:
            self.log.info("%s: job %s: %s; fetched again", self.name, job_id, error)
        self.service.back_off(1)
        try:
            return parse_answer(self._get(context), limit)
        except BadAnswerError as error:
            raise LostJobError(f"job {job_id}: {error}") from error

    def _forget(self, key):
        self._delete(self._ids.pop(key))
        self._remember()

    def _delete(self, job_id):
        """Delete a remote job: by the TAP+ extension, else as UWS has it. Failing is no harm."""
        requests = {
            "deletejobs": {"JOB_IDS": job_id},
            f"async/{job_id}": {"ACTION": "DELETE"},
        }
        for context, data in requests.items():
            with contextlib.suppress(ShardError, *FAULTS):
                self.service.connection().execute_tappost(context, urlencode(data)).read()
                return
        self.log.info("%s: job %s could not be deleted", self.name, job_id)

    def finish(self):
        """Delete the remote jobs and the note of them: the output is written."""
        for job in self._ids.values():
            self._delete(job)
        self.path.unlink(missing_ok=True)


# ---- what comes back -------------------------------------------------------------------------


def parse_answer(data: bytes, row_limit):
    """{column name in lower case: (n,) masked array} of a VOTable document.

    Raises BadAnswerError where it is no whole VOTable or an error document, ShardError where rows
    were cut: the service says OVERFLOW, or there are `row_limit` of them.
    """
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise BadAnswerError(f"a broken gzip stream of {len(data)} bytes") from error
    if not re.search(rb"</(\w+:)?VOTABLE>\s*\Z", data[-64:]):
        kind = "not a VOTable" if b"VOTABLE" not in data[:1000] else "a VOTable cut short"
        raise BadAnswerError(f"{kind}: {_first_words(data[:1000])}")
    try:
        document = votable.parse(io.BytesIO(data), verify="ignore")
    except Exception as error:  # whatever a damaged document makes of the parser
        raise BadAnswerError(f"a VOTable that cannot be parsed: {error!r}") from error
    tables = list(document.iter_tables())
    infos = [info for resource in document.resources for info in resource.infos]
    infos += [info for table in tables for info in table.infos] + list(document.infos)
    for info in infos:
        status = info.value.upper() if info.name == "QUERY_STATUS" else ""
        if status == "ERROR":
            words = _first_words((info.content or "no reason given").encode())
            raise BadAnswerError(f"an error document: {words}")
        if status == "OVERFLOW":
            raise ShardError(f"the service cut the result at its row limit{ROW_LIMIT_ADVICE}")
    if not tables:
        raise BadAnswerError("a VOTable without a table")
    table = tables[0]
    if len(table.array) >= row_limit:
        raise ShardError(f"the result has {len(table.array)} rows, the row limit{ROW_LIMIT_ADVICE}")
    names = [field.name.lower() for field in table.fields]
    columns = table.array.dtype.names or ()
    return {name: table.array[column] for name, column in zip(names, columns, strict=True)}


@dataclass(frozen=True)
class Column:
    """A column asked for: ADQL expression, type and unit of the dataset, and words about it."""

    adql: str
    dtype: str
    units: str | None = None
    text: str | None = None


def select_list(columns) -> str:
    """ADQL of {name: Column}."""
    return ", ".join(
        col.adql if col.adql.endswith(f".{name}") else f"{col.adql} AS {name}"
        for name, col in columns.items()
    )


def plain_columns(answer, columns) -> dict:
    """Columns {name: (n,) array of its dtype} of an answer; what is null becomes NaN, 0 or b"".

    ShardError where a column is absent, an id is null or not a whole number, or a number does
    not fit.
    """
    absent = [name for name in columns if name not in answer]
    if absent:
        raise ShardError(f"the answer has no column {', '.join(absent)}; found {', '.join(answer)}")
    return {name: _plain(name, answer[name], column.dtype) for name, column in columns.items()}


def _plain(name, column, dtype):
    null, values = np.ma.getmaskarray(column), np.ma.getdata(column)
    kind = np.dtype(dtype).kind
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


# ---- the sources of a shard ------------------------------------------------------------------


def id_range(ids, fid):
    """First and last of the ids (n,) that lie in the range of shard `fid`, or None where none does.

    Ids that stray out of the file's range would stretch the range over the sky.
    """
    first, last = (int(pixel) for pixel in fid.split("-"))
    inside = ids[(ids >= first << PIXEL_SHIFT) & (ids < (last + 1) << PIXEL_SHIFT)]
    return (int(inside.min()), int(inside.max())) if len(inside) else None


def range_query(query, ids, fid) -> str | None:
    """The first query of a shard; None where no id lies in its range."""
    span = id_range(ids, fid)
    if span is None:
        return None
    return query.format(
        where=f"g.source_id BETWEEN {span[0]} AND {span[1]} AND g.has_xp_continuous = 'True'"
    )


def list_queries(query, ids):
    """Queries for ids by name."""
    for start in range(0, len(ids), IDS_PER_QUERY):
        names = ", ".join(map(str, ids[start : start + IDS_PER_QUERY].tolist()))
        yield query.format(where=f"g.source_id IN ({names})")


@dataclass
class Sources:
    """What the archive has of the ids asked for.

    table: {column: (n,)}, by ascending `source_id`; missing (m,): ids that it does not have;
    asked_again, unasked: numbers of ids named in a second query, of rows of others (dropped).
    """

    table: dict
    missing: np.ndarray
    asked_again: int = 0
    unasked: int = 0

    def counters(self):
        return {
            "asked for again by id": self.asked_again,
            "not in the archive": len(self.missing),
            "archive rows without a spectrum": self.unasked,
        }

    def attributes(self):
        out = {"n_missing": len(self.missing)}
        if len(self.missing):
            out["missing_source_id"] = self.missing[:NAMED_IDS]
        return out


def fetch_sources(jobs: ShardJobs, query, columns, ids, fid) -> Sources:
    """Ask for the range of a shard, then by name for the ids (n,) that did not come; see Sources.

    query: ADQL with {where}; columns: {name: Column}, with `source_id`. ShardError where none of
    the ids came: the service does not hold this catalogue.
    """
    if not len(ids):
        return Sources({name: np.zeros(0, col.dtype) for name, col in columns.items()}, ids)
    first = range_query(query, ids, fid)
    parts = [plain_columns(jobs.fetch(first), columns)] if first else []
    come = parts[0]["source_id"] if parts else ids[:0]
    again = np.setdiff1d(ids, come)
    if len(again):
        jobs.log.warning("%s: %d of %d ids did not come; asked again", fid, len(again), len(ids))
        parts += [plain_columns(jobs.fetch(q), columns) for q in list_queries(query, again)]
    table = {name: np.concatenate([part[name] for part in parts]) for name in columns}
    wanted = np.isin(table["source_id"], ids)
    order = np.argsort(table["source_id"][wanted], kind="stable")
    table = {name: values[wanted][order] for name, values in table.items()}
    missing = np.setdiff1d(ids, table["source_id"])
    if len(missing) == len(ids):
        raise ShardError(f"none of the {len(ids)} sources is in {jobs.service.args.tap_url}")
    for start in range(0, len(missing), 1000):
        named = " ".join(map(str, missing[start : start + 1000]))
        jobs.log.warning("%s: not in the archive: %s", fid, named)
    return Sources(table, missing, len(again), int((~wanted).sum()))


# ---- the scripts -----------------------------------------------------------------------------


def read_ids(data_dir, fid):
    """(n,) int64 ids of the spectra of a shard."""
    with ShardReader(shard_path(data_dir, "xp", fid), KINDS["xp"].id_column) as reader:
        return reader.source_id()


def run_queries(script, args, kind, query, write_shard) -> int:
    """The main part of a script: a shard of `kind` for each shard of spectra; the exit status.

    query: ADQL with {where}; write_shard(jobs, fid, ids, output) writes an output and returns
    counters.
    """
    fids = select_fids(args, "xp")
    if args.dry_run:
        for fid in fids:
            print(f"-- {fid}\n{range_query(query, read_ids(args.data_dir, fid), fid) or '--'}")
        return 0
    log = setup_logging(script, args.log, args)
    service = TapService(args, log)

    def process(fid, output, log):
        jobs = ShardJobs(service, output, fid)
        counters = write_shard(jobs, fid, read_ids(args.data_dir, fid), output)
        jobs.finish()
        return counters

    return run_shards(
        script, args, fids,
        inputs_of=lambda fid: input_paths(args.data_dir, fid, ["xp"]),
        output_of=lambda fid: shard_path(args.data_dir, kind, fid),
        process=process, log=log, jobs=args.jobs, on_interrupt=service.stop.set,
    )  # fmt: skip
