"""A DataLink service, which gives the spectra of a list of sources: one request, one answer.

An answer is a zip of files of spectra, or one such file. It is read to its end, by the readers of
step 1, before it is taken for one: an error document, a zip cut short or one without anything in it
is a fault of the service, to be asked again. What is kept is a zip with the service's files and,
beside them, REQUEST: which ids were asked for, and which came.
"""

import contextlib
import http.client
import json
import re
import tempfile
import time
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import numpy as np

from pipeline.errors import ShardError, UsageError
from pipeline.spectra_account import checked_tables
from pipeline.spectra_files import faults_of, parts
from pipeline.spectra_plan import OtherReleaseError
from pipeline.spectra_tables import spectra_in
from pipeline.tap_answer import BadAnswerError
from pipeline.tap_service import PassingError, TapService, first_words
from pipeline.whole_files import whole_file

REQUEST = "request.json"  # in a kept zip; no ending of a file of spectra
READ_BYTES = 1 << 20
STATUS = re.compile(rb"<INFO\b[^>]*\bQUERY_STATUS\b[^>]*>([^<]*)", re.IGNORECASE)
BAD_STATUS = re.compile(rb"value\s*=\s*[\"'](ERROR|OVERFLOW)[\"']", re.IGNORECASE)


class EmptyAnswerError(BadAnswerError):
    """An answer without anything in it: a fault, or none of the sources has a spectrum."""


@dataclass
class Answer:
    """What came: ids asked (n,), received (m,); n_odd: rows that could not be read."""

    asked: np.ndarray
    received: np.ndarray
    n_odd: int = 0

    @property
    def lacking(self):
        """Ids (k,) that were asked for and did not come."""
        return np.setdiff1d(self.asked, self.received)


def request_of(release, ids) -> dict:
    """What is sent for ids (n,)."""
    return release.datalink.parameters | {"ID": ",".join(map(str, ids.tolist()))}


class DataLink:
    """The service, as the options of `add_tap_arguments`, --release and --datalink-url say."""

    def __init__(self, args, log, known_source=None):
        declared = args.release.datalink
        if declared is None:
            raise UsageError(f"the release {args.release.name} has no [datalink] in its file")
        self.release, self.log = args.release, log
        self.service = TapService(args, log, args.datalink_url or declared.url, "--datalink-url")
        self.known_source = known_source or declared.known_source

    def fetch(self, ids, path) -> Answer:
        """Ask for ids (n,), as often as the options say, and keep the answer as `path`, a zip.

        ShardError where all attempts failed, or the answer cannot be written; UsageError where it
        is of another release.
        """
        return self.service.attempt(path.stem, lambda: self._fetch(ids, path))

    def _fetch(self, ids, path) -> Answer:
        self.service.wait_for_turn()
        try:
            with whole_file(path) as temporary, open(temporary, "x+b") as file:
                try:
                    answer = self._receive(ids, file)
                except EmptyAnswerError:
                    if not self.is_well(path.parent):
                        raise
                    answer = Answer(ids, ids[:0])
                seal(file, answer)
        except OSError as error:  # those of the network are PassingError by now
            raise ShardError(
                f"{path}: cannot be written ({error}); is the disk full, or the folder closed?"
            ) from error
        if len(answer.received):
            self.known_source = int(answer.received[0])
        return answer

    def is_well(self, folder) -> bool:
        """Whether the service gives a spectrum of a source that has one."""
        if self.known_source is None:
            return False
        ids = np.array([self.known_source])
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            try:
                return len(self._receive(ids, file).received) == 1
            except (PassingError, ShardError) as error:
                self.log.info("asked for a source that has a spectrum: %s", error)
                return False

    def _receive(self, ids, file) -> Answer:
        """Ask for ids (n,) and write the answer to an open file; PassingError where it is none."""
        with _network():
            connection = self.service.connection()
            response = connection.execute_datapost(urlencode(request_of(self.release, ids)))
        if response.status >= 300:
            where = response.getheader("Location")
            raise ShardError(f"{self.service.url} leads to {where}: give that as --datalink-url")
        self._copy(response, file)
        return read_answer(Path(file.name), ids, self.release)

    def _copy(self, response, file):
        """The body of a response to an open file."""
        deadline = time.monotonic() + self.service.args.timeout
        while True:
            with _network():
                block = response.read1(READ_BYTES)
            if not block:
                break
            file.write(block)
            if self.service.stop.is_set():
                raise ShardError("interrupted")
            if time.monotonic() > deadline:
                raise PassingError(f"not at its end after {self.service.args.timeout:.0f} s")
        file.flush()
        if response.length:  # of what was announced
            raise PassingError(f"cut short: {response.length} bytes of the answer did not come")


@contextlib.contextmanager
def _network():
    """Faults of the network as PassingError, so that those of the disk are not taken for them."""
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise PassingError(f"{type(error).__name__}: {error}") from error


# ---- what an answer is -----------------------------------------------------------------------


def read_answer(path, asked, release) -> Answer:
    """The `Answer` in a file that the service gave, read to its end.

    Raises BadAnswerError where it is not a whole one, EmptyAnswerError where nothing is in it,
    UsageError where it holds spectra of another release.
    """
    _require_content(path)
    found, n_odd = [np.empty(0, np.int64)], 0
    try:
        with faults_of(path):
            for name, kind, file in parts(path):
                if kind == "votable":
                    _require_ok(file.read(), name)
            with contextlib.closing(spectra_in(path, release)) as sources:
                for source in sources:
                    tables = checked_tables(source.tables(), source.account)
                    found += [table["source_id"] for table in tables]
                    n_odd += len(source.account.unusable)
    except ShardError as error:
        words = str(error).replace(f"{path}: ", "")
        if isinstance(error.__cause__, OtherReleaseError):
            raise UsageError(f"the service's answer: {words}") from error
        raise BadAnswerError(f"the answer is not one of spectra: {words}{_shown(path)}") from error
    received = np.unique(np.concatenate(found))
    others = np.setdiff1d(received, asked)
    if len(others):
        raise BadAnswerError(
            f"the answer has {len(others)} sources that were not asked for, e.g. {others[0]}"
        )
    return Answer(asked, received, n_odd)


def _require_content(path):
    """EmptyAnswerError where a file or zip has nothing in it, BadAnswerError of a damaged zip."""
    with open(path, "rb") as file:
        head = file.read(4)
    if not head:
        raise EmptyAnswerError("the answer is empty")
    if head[:2] != b"PK":
        return
    try:
        with zipfile.ZipFile(path) as archive:
            names, bad = archive.namelist(), archive.testzip()
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as error:
        raise BadAnswerError(
            f"the answer is a zip that is cut short or damaged: {error}"
        ) from error
    if bad:
        raise BadAnswerError(f"the answer is a zip with a damaged file, {bad}")
    if not names:
        raise EmptyAnswerError("the answer is a zip without anything in it")


def _require_ok(content, name):
    """BadAnswerError where a VOTable says that it is an error document, or was cut."""
    for info in STATUS.finditer(content):
        if status := BAD_STATUS.search(info[0]):
            words = first_words(info[1]) or "no reason given"
            raise BadAnswerError(f"{Path(name).name} says {status[1].decode()}: {words}")


def _shown(path) -> str:
    """The first words of a text that is no answer."""
    with open(path, "rb") as file:
        head = file.read(2000)
    words = first_words(head) if b"\0" not in head and head[:2] != b"PK" else ""
    return f" ({words})" if words else ""


# ---- what is kept ----------------------------------------------------------------------------


def seal(file, answer):
    """Make a zip of an open file with a whole answer (or of nothing), with REQUEST in it."""
    file.seek(0)
    if not zipfile.is_zipfile(file):
        file.seek(0)
        content = file.read()
        file.seek(0)
        file.truncate()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            if content:  # told apart by its content when it is read
                archive.writestr("spectra.csv", content)
    said = {
        "asked": answer.asked.tolist(),
        "received": answer.received.tolist(),
        "n_odd": answer.n_odd,
    }
    file.seek(0)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(REQUEST, json.dumps(said))


def read_kept(path, whole=True) -> Answer:
    """The `Answer` that a kept zip holds; whole: all of it is read to its end.

    ShardError where it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            said = json.loads(archive.read(REQUEST))
            if whole and (bad := archive.testzip()):
                raise ShardError(f"{path}: {bad} in it is damaged")
        asked, received = (np.array(said[name], np.int64) for name in ("asked", "received"))
        return Answer(asked, received, int(said["n_odd"]))
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, KeyError, ValueError,
            TypeError, NotImplementedError, zlib.error) as error:  # fmt: skip
        raise ShardError(f"{path}: damaged ({error})") from error
