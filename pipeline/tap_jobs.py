"""The jobs of one output at a TAP service, which survive interruptions.

A query is one asynchronous job: submitted, polled with a deadline, fetched, validated, and deleted
once the output is written. The job's id is kept in a small file beside the output
(`.{name}.jobs.json`), so that a run that was killed picks its job up again.

The waiting is ours and not astroquery's, for three reasons: its wait has no time limit, it takes
the error document of a failed job for the result, and it says nothing of a result cut at the row
limit.
"""

import contextlib
import hashlib
import json
import re
import time
from pathlib import Path
from urllib.parse import urlencode

from astroquery.utils.tap import TapPlus
from astroquery.utils.tap.model.job import Job

from pipeline.errors import ShardError
from pipeline.tap_answer import MOST_BYTES, BadAnswerError, parse_answer, require_size
from pipeline.tap_service import (
    FAULTS,
    LostJobError,
    PassingError,
    TapService,
    first_words,
)
from pipeline.whole_files import remove_dead_temporaries, write_text

OUTPUT_FORMAT = "votable_gzip"  # keeps 64-bit ids exact, and tells where rows were cut
PHASES_OVER = ("ABORTED", "ERROR", "ARCHIVED")  # IVOA Universal Worker Service 1.1


class JobNotes:
    """{key of a query: id of its job}, kept beside an output; output None: in memory only."""

    def __init__(self, output):
        self._ids, self._path = {}, None
        if output is not None:
            self._path = Path(output).with_name(f".{Path(output).name}.jobs.json")
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError, ValueError, AttributeError):
                noted = json.loads(self._path.read_text())
                self._ids = {str(key): str(job) for key, job in noted.items()}

    def get(self, key) -> str | None:
        return self._ids.get(key)

    def add(self, key, job):
        self._ids[key] = job
        self._save()

    def forget(self, key):
        del self._ids[key]
        self._save()

    @property
    def jobs(self) -> list[str]:
        return list(self._ids.values())

    def remove(self):
        """The notes are of no use any more."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            remove_dead_temporaries(self._path)

    def _save(self):
        if self._path is not None:
            write_text(self._path, json.dumps(self._ids))


class ShardJobs:
    """The jobs of one output, remembered beside it until `finish`.

    output None: not remembered, for a small query.
    """

    def __init__(self, service: TapService, output, name):
        self.service, self.log, self.name = service, service.log, name
        self._notes = JobNotes(output)

    def _key(self, query) -> str:
        """Of a job that this query may take over: the same question to the same service."""
        args = self.service.args
        question = (self.service.url, args.row_limit, bool(args.login), query)
        return hashlib.sha256(repr(question).encode()).hexdigest()

    def fetch(self, query):
        """The result of a query: {column name in lower case: (n,) masked array}.

        Takes up the job of an earlier run where there is one. Raises ShardError where the service
        refuses the query, the result was cut, or all attempts failed.
        """
        return self.service.attempt(self.name, lambda: self._attempt(query))

    def _attempt(self, query):
        key = self._key(query)
        job = self._notes.get(key)
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
                self._delete(job)
                self._notes.forget(key)
            raise

    def _submit(self, query, key) -> str:
        """Create the job, note its id, and only then start it: no job runs that nobody knows."""
        self.service.wait_for_turn()
        client = TapPlus(connhandler=self.service.connection())
        job = client.launch_job_async(
            query, output_format=OUTPUT_FORMAT, background=True, autorun=False,
            maxrec=self.service.args.row_limit,
        )  # fmt: skip
        self._notes.add(key, job.jobid)
        job.start()
        self.log.info("%s: job %s submitted", self.name, job.jobid)
        return job.jobid

    def _phase(self, job_id) -> str:
        job = Job(async_job=True, connhandler=self.service.connection())
        job.jobid = job_id
        phase = job.get_phase(update=True).strip().upper()
        if not re.fullmatch("[A-Z]{1,20}", phase):
            raise PassingError(f"not a phase of a job: {first_words(phase.encode())}")
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
            return first_words(self._get(f"async/{job_id}/error")) or "no reason given"
        return "no reason given"

    def _get(self, context) -> bytes:
        """Body of a GET, following redirects."""
        for _ in range(5):
            response = self.service.connection().execute_tapget(context)
            if response.status < 300:
                data = response.read(MOST_BYTES + 1)
                require_size(data)
                return data
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
        for job in self._notes.jobs:
            self._delete(job)
        self._notes.remove()
