"""The spectra of many sources from a DataLink service, in batches that are kept.

Each answer is a file, written whole, that says which ids were asked for and which came; so what is
known is what the files say, and a run that was killed goes on where it was.
"""

import hashlib
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.datalink import Answer, DataLink, read_kept
from pipeline.errors import ShardError, UsageError
from pipeline.run import map_threads
from pipeline.whole_files import remove_dead_temporaries

KEY = 16  # characters, in the name of an answer
FOLDER = "xp_datalink"  # in the data directory
TIMES = 2  # that a source is asked for before it counts as one without a spectrum
MOST_FAILED = 3  # batches one after another, before no more are asked for
DIVIDED = 10  # into so many, a batch that failed
NO_SPECTRUM, FAILED = "without spectrum", "failed"


class Kept:
    """The answers kept in a folder, of one release. answers: {path: Answer}."""

    def __init__(self, data_dir, release):
        self.folder, self.release = Path(data_dir) / FOLDER, release
        self.answers: dict[Path, Answer] = {}

    def load(self, log=None):
        """Read what is there. log: where damaged files are named, which are removed; without one
        all is left as it is."""
        for path in sorted(self.folder.glob(f"{self.release.name}_{'?' * KEY}.zip")):
            try:
                self.answers[path] = read_kept(path, whole=log is not None)
            except ShardError as error:
                if log is not None:
                    log.warning("%s; its sources are asked for again", error)
                    path.unlink()
        return self

    def prepare(self):
        """Make the folder; remove what killed runs left in it. UsageError where that cannot be."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self.folder.glob(".*.part"):
                if match := re.match(r"\.(.+?\.(?:zip|csv))\.", path.name):
                    remove_dead_temporaries(self.folder / match[1])
        except OSError as error:
            raise UsageError(f"{self.folder}: cannot be written ({error})") from error

    def path_for(self, ids) -> Path:
        """Of the answer about ids (n,), which were asked for as often as they are there."""
        n_before = sum(np.isin(ids, answer.asked).any() for answer in self.answers.values())
        key = hashlib.sha256(f"{ids.tolist()} {n_before}".encode()).hexdigest()[:KEY]
        return self.folder / f"{self.release.name}_{key}.zip"

    def received(self) -> np.ndarray:
        """Ids (n,), ascending, whose spectra are there."""
        found = [answer.received for answer in self.answers.values()]
        return np.unique(np.concatenate([np.empty(0, np.int64), *found]))

    def times_in_vain(self, ids) -> np.ndarray:
        """How often each of ids (n,), ascending, was asked for and did not come."""
        return _count(ids, [answer.lacking for answer in self.answers.values()])

    def unreadable(self, ids) -> np.ndarray:
        """Whether an answer without a source (n,) had rows that could not be read."""
        return _count(ids, [a.lacking for a in self.answers.values() if a.n_odd]) > 0

    def files(self) -> list[Path]:
        """Those that hold spectra."""
        return [path for path, answer in self.answers.items() if len(answer.received)]


def _count(ids, groups) -> np.ndarray:
    """How often each of ids (n,), ascending, is in groups of ids."""
    found = np.concatenate([np.empty(0, np.int64), *groups])
    return np.searchsorted(np.sort(found), ids, "right") - np.searchsorted(np.sort(found), ids)


def batches_of(ids, size) -> list[np.ndarray]:
    """Ids (n,) in groups of about the same number, `size` at most."""
    return np.array_split(ids, -(-len(ids) // size)) if len(ids) else []


@dataclass
class Fate:
    """What became of ids (n,). received, before (n,) bool: the spectrum is there; was, before this
    run; reasons: {id: (NO_SPECTRUM or FAILED, why)} of the others."""

    ids: np.ndarray
    received: np.ndarray
    before: np.ndarray
    reasons: dict = field(default_factory=dict)

    def counts(self) -> dict:
        """{what: number}, which add up to the ids."""
        outcomes = [outcome for outcome, _ in self.reasons.values()]
        return {
            "received": int(self.received.sum()),
            NO_SPECTRUM: outcomes.count(NO_SPECTRUM),
            FAILED: outcomes.count(FAILED),
        }


class Fetch:
    """Asks a `DataLink` for ids (n,), ascending, in batches of `size`, of which `Kept` are there.

    there: ids whose spectra are had from elsewhere; again: ask once more for those that did not
    come before. link None: ask nothing, in a dry run.
    """

    def __init__(self, link: DataLink, kept: Kept, ids, size, there=(), again=False):
        self.link, self.kept, self.ids, self.size = link, kept, ids, size
        self._there = np.isin(ids, there)
        self.failed = {}
        self._lock, self._in_a_row, self._down = threading.Lock(), 0, ""
        self._before = self._received()
        again = again | kept.unreadable(ids)
        self._limit = np.where(again, kept.times_in_vain(ids) + 1, 0).clip(TIMES)

    def _received(self) -> np.ndarray:
        """Whether the spectrum of each of the ids is there, (n,) bool."""
        return self._there | np.isin(self.ids, self.kept.received())

    def wanted(self) -> np.ndarray:
        """Ids that are to be asked for, at once."""
        open_ = ~self._received()
        open_ &= self.kept.times_in_vain(self.ids) < self._limit
        open_ &= ~np.isin(self.ids, list(self.failed))
        return self.ids[open_]

    def run(self):
        """Ask, and ask again for what did not come; for batches that failed in smaller ones, so
        that a source on which the service fails costs itself alone."""
        try:
            self._run()
            while self.failed and not self._down and self.size > 1:
                self.size = -(-self.size // DIVIDED)
                self.link.log.warning(
                    "%d sources are in batches that failed; asked again, %d at once",
                    len(self.failed), self.size,
                )  # fmt: skip
                self.failed, self._in_a_row = {}, 0
                self._run()
        except KeyboardInterrupt:
            self.link.log.warning("interrupted; run again to go on where it stopped")
            raise

    def _run(self):
        while len(ids := self.wanted()):
            vain = self.kept.times_in_vain(ids) > 0
            if vain.any() and not vain.all():
                ids = ids[~vain]  # first those not asked for yet
            elif vain.any():
                self.link.log.warning("%d sources did not come; asked again", len(ids))
            batches = batches_of(ids, self.size)
            service = self.link.service
            outcomes = map_threads(
                self._one, batches, "fetching", service.args.jobs, service.stop.set, "batch"
            )
            for _ in outcomes:
                pass

    def _one(self, ids):
        """Ask for a batch."""
        if self._down:
            self.failed.update(dict.fromkeys(ids.tolist(), f"not asked: {self._down}"))
            return
        path = self.kept.path_for(ids)
        try:
            answer = self.link.fetch(ids, path)
        except UsageError:
            raise
        except ShardError as error:
            self._note_failure(ids, str(error))
            return
        with self._lock:
            self._in_a_row = 0
            self.kept.answers = self.kept.answers | {path: answer}
        self.link.log.info(
            "%s: %d of %d received%s", path.name, len(answer.received), len(ids),
            f", {answer.n_odd} rows could not be read" if answer.n_odd else "",
        )  # fmt: skip

    def _note_failure(self, ids, why):
        self.link.log.error("a batch of %d sources failed: %s", len(ids), why)
        with self._lock:
            self.failed.update(dict.fromkeys(ids.tolist(), why))
            self._in_a_row += 1
            if self._in_a_row >= MOST_FAILED and not self._down:
                self._down = f"{self._in_a_row} batches before it failed"
                self.link.log.error("%s; no more are asked for in this run", self._down)

    def lacking(self) -> np.ndarray:
        """Ids (k,) whose spectra are not there, and that no failed batch asked for."""
        return self.ids[~self._received() & ~np.isin(self.ids, list(self.failed))]

    def fate(self, expected=(), why="though the archive says it has one: --ask-again") -> Fate:
        """What became of the ids; expected: those that have spectra, as far as is known (`why`)."""
        received = self._received()
        fate = Fate(self.ids, received, self._before)
        lacking = self.ids[~received]
        rows = zip(
            lacking.tolist(),
            self.kept.times_in_vain(lacking).tolist(),
            self.kept.unreadable(lacking),
            np.isin(lacking, expected),
            strict=True,
        )
        for source_id, n, odd, has_one in rows:
            said = f"not in {n} answers of the service"
            if source_id in self.failed:
                fate.reasons[source_id] = FAILED, self.failed[source_id]
            elif odd:
                fate.reasons[source_id] = FAILED, f"{said}, which had rows that cannot be read"
            elif has_one:
                fate.reasons[source_id] = FAILED, f"{said}, {why}"
            else:
                fate.reasons[source_id] = NO_SPECTRUM, said
        return fate
