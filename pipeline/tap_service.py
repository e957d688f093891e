"""A service such as the Gaia archive's TAP: options, errors, connection, login, pacing, attempts.

astroquery's TAP+ client makes the requests and the login; time limits and what a refusal means are
ours. (`astroquery.gaia` is not imported: on import it asks the archive for its notices.)
"""

import http.client
import logging
import random
import re
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from astroquery.utils.tap import TapPlus
from astroquery.utils.tap.conn.tapconn import TapConn

from pipeline.errors import ShardError, UsageError
from pipeline.proxy import connect
from pipeline.select import number

ROW_LIMIT = 3_000_000  # the Gaia archive's, of anonymous asynchronous jobs
LONGEST_WAIT = 600.0  # s, between two attempts
FORM = re.compile(rb"<form\b|\bpassword\b", re.IGNORECASE)
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class PassingError(Exception):
    """The service or the way to it fails now; asking again may work."""


class LostJobError(PassingError):
    """The job will give no result; a new one may."""


class LoginError(PassingError):
    """Not allowed, or no longer: the session has expired."""


FAULTS = (PassingError, OSError, http.client.HTTPException)  # worth asking again


# ---- options ---------------------------------------------------------------------------------


def add_tap_arguments(parser, unit="shard") -> None:
    """Add the options of the scripts that query a TAP service; unit: what is asked for at once."""
    group = parser.add_argument_group("archive")
    group.add_argument("--dry-run", action="store_true", help="print the queries; ask nothing")
    group.add_argument("--tap-url", metavar="URL", help="default: that of the release")
    group.add_argument(
        "--login", type=Path, metavar="FILE", help="two lines: user, password (default: anonymous)"
    )
    numbers = {
        "--row-limit": (int, 1, ROW_LIMIT, "a result of so many rows was cut: a failure"),
        "--jobs": (int, 1, 2, f"{unit}s asked for at once; the archive prefers few"),
        "--timeout": (float, 0, 10800, "most seconds for one job, queueing included"),
        "--attempts": (int, 1, 5, f"for each query, before the {unit} counts as failed"),
        "--retry-wait": (float, 0, 10, "seconds before the second attempt; doubled each time"),
        "--poll": (float, 0, 15, "most seconds between two looks at a job"),
        "--pace": (float, 0, 1, "least seconds between two submissions"),
        "--http-timeout": (float, 0.01, 120, "most seconds without a byte from the service"),
    }
    for name, (kind, least, default, text) in numbers.items():
        group.add_argument(
            name, type=number(kind, least), default=default, help=f"{text} (%(default)s)"
        )


# ---- the way to the service ------------------------------------------------------------------


class _Connections:
    """Opens TapConn's connections, with a time limit and by way of the proxy that the environment
    names: astroquery's own have neither."""

    def __init__(self, url, timeout):
        self._parts = urlsplit(url)
        self._timeout = timeout

    def get_connection(self, ishttps=False, cookie=None, verbose=False):
        return connect(self._parts, self._timeout)

    def get_connection_secure(self, verbose=False):
        return self.get_connection()


class Connection(TapConn):
    """astroquery's connection to a TAP or data service, with every refusal an exception of ours.

    PassingError for 5xx, 408, 425, 429; LoginError for 401 and 403; LostJobError for 404 and 410;
    ShardError for the others.
    """

    logged_in = False

    def __init__(self, url, timeout):
        parts = urlsplit(url)
        server, _, tap = parts.path.rstrip("/").rpartition("/")
        super().__init__(
            ishttps=parts.scheme == "https", host=parts.hostname, server_context=server or None,
            tap_context=tap, data_context=tap, connhandler=_Connections(url, timeout),
        )  # fmt: skip

    def execute_tapget(self, subcontext, *, verbose=False):
        return _accepted(super().execute_tapget(subcontext))

    def execute_tappost(self, subcontext, data, *args, **kwargs):
        return _accepted(super().execute_tappost(subcontext, data, *args, **kwargs))

    def execute_datapost(self, data, *args, **kwargs):
        return _accepted(super().execute_datapost(data, *args, **kwargs))

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
    words = first_words(response.read())
    message = f"HTTP {status} {response.reason}: {words}"
    if status in (401, 403):
        raise LoginError(message)
    if status >= 500 or status in (408, 425, 429):
        raise PassingError(message)
    if status in (404, 410):
        raise LostJobError(message)
    raise ShardError(f"the service refuses: {message}")


def first_words(data: bytes) -> str:
    """The text of an HTML or XML document, shortened to one line; nothing of a page with a form,
    which may hold what was sent to it, a password."""
    if FORM.search(data):
        return "a web page with a form, perhaps a login, which is not shown"
    text = re.sub(r"<(style|script)\b.*?</\1>", " ", data.decode("utf-8", "replace"), flags=re.S)
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())[:200]


class TapService:
    """A TAP service and how to treat it; used by several threads at once.

    args: the options of `add_tap_arguments` and --release. url: of another service beside it, which
    the `option` names. Raises UsageError where the service cannot be used at all: a malformed URL,
    a login file that cannot be read, a refused login.
    """

    def __init__(self, args, log, url=None, option="--tap-url"):
        self.url = url or args.tap_url or args.release.archive.url
        parts = urlsplit(self.url)
        if "@" in parts.netloc:
            raise UsageError(
                "--tap-url: holds a user or a password, which would be logged and recorded: give "
                "them in a file, --login FILE"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{option} {self.url}: expected http(s)://host/path")
        self.args, self.log = args, log
        self.stop = threading.Event()
        self._local = threading.local()
        self._pace = threading.Lock()
        self._next_submission = 0.0
        self._credentials = None
        logging.getLogger("astropy").setLevel(logging.WARNING)  # astroquery talks to stdout there
        if args.login:
            self._credentials = _read_login(args.login, parts)
            if args.login.stat().st_mode & 0o044:
                log.warning("%s: others can read it: chmod 600 %s", args.login, args.login)
            try:
                self.connection()
            except FAULTS as error:
                raise UsageError(f"--login {args.login}: refused by {self.url}: {error}") from error

    def connection(self) -> Connection:
        """This thread's connection, logged in where --login was given."""
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = Connection(self.url, self.args.http_timeout)
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

    def attempt(self, name, ask):
        """ask(), up to --attempts times, with growing waits between them.

        name: of what is asked for, in the log. ShardError where all attempts failed, or where the
        service refuses.
        """
        for attempt in range(1, self.args.attempts + 1):
            try:
                return ask()
            except FAULTS as error:
                reason = f"{type(error).__name__}: {error}"
                self.log.warning(
                    "%s: attempt %d of %d: %s", name, attempt, self.args.attempts, reason
                )
                if isinstance(error, LoginError):
                    self.log_out()
            if attempt < self.args.attempts:
                self.back_off(attempt)
        raise ShardError(
            f"{self.url}: given up after {self.args.attempts} attempts, the last: {reason}; run "
            "the same command again later"
        )

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
