"""The loop over shards: log, progress, failures, signals, outcome."""

import contextlib
import functools
import logging
import os
import signal
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from pipeline import lease, signals
from pipeline.errors import (
    CLOSED,
    FULL,
    ShardError,
    UsageError,
    WriteError,
    forbidden,
    shortened,
    unwritable,
)
from pipeline.provenance import Status, output_state, project_version
from pipeline.read import ShardReader
from pipeline.select import chosen_partition
from pipeline.whole_files import remove_dead_temporaries

MOST_FAILED = 20  # reasons of failures in a summary; the log has all
HELD = "in work elsewhere"  # outcome of a shard
HELD_STATUS = 3  # exit status where nothing failed, but such shards are left
NAMED_FIDS = 4  # shards in it of each reason
_log = None  # of the run, for what ends it


def say(text, stream=None):
    """A line for the terminal; nothing where it goes to a disk that is full, or a closed pipe."""
    with contextlib.suppress(OSError, ValueError):
        tqdm.write(text, file=stream or sys.stderr)


class _TerminalHandler(logging.Handler):
    """Warnings and summaries to stderr, without tearing a progress bar."""

    def emit(self, record):
        if record.levelno >= logging.WARNING or getattr(record, "summary", False):
            say(record.getMessage())


class _FileHandler(logging.FileHandler):
    """The log's file; where it cannot be written the terminal says so, once."""

    failed = False

    def handleError(self, record):  # noqa: N802 (logging's name)
        error = sys.exc_info()[1]
        if not self.failed and isinstance(error, OSError):
            self.failed = True
            say(f"{self.baseFilename}: the log is not complete: {unwritable('it', error)}")

    def close(self):
        with contextlib.suppress(OSError):
            super().close()


def setup_logging(script: str, log_file=None, args=None) -> logging.Logger:
    """Logger that appends everything to a file, and warnings and summaries to stderr.

    The file is `log_file`, else {args.data_dir}/logs/{script}[_partK-of-N].log.
    """
    if log_file is None:
        part = chosen_partition(args)
        suffix = f"_part{part[1]}-of-{part[0]}" if part else ""
        log_file = Path(getattr(args, "data_dir", "data")) / "logs" / f"{script}{suffix}.log"
    try:
        Path(log_file).parent.mkdir(parents=True, exist_ok=True)
        to_file = _FileHandler(log_file)
    except OSError as error:
        raise UsageError(f"{log_file}: the log cannot be written ({error}); give --log") from error
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log = logging.getLogger(script)
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    log.addHandler(to_file)
    log.addHandler(_TerminalHandler())
    log.setLevel(logging.INFO)
    log.propagate = False
    global _log
    _log = log
    return log


def progress(items, words, unit="shard", total=None):
    """Iterate with a progress bar, on a terminal only."""
    return tqdm(items, desc=words, unit=unit, disable=None, file=sys.stderr, total=total)


@contextlib.contextmanager
def collect_failure(fid, failed: dict, log, fatal=()):
    """Log an exception of the `with` block and put its reason into failed[fid]; go on after it.

    fatal: exceptions that are raised. The traceback goes to the log file only.
    """
    try:
        yield
    except fatal:
        raise
    except Exception as error:
        failed[fid] = reason_of(error)
        log.error("%s: failed: %s", fid, failed[fid])
        log.info("traceback of %s", fid, exc_info=True)


def reason_of(error) -> str:
    """Why something failed, in one line."""
    if isinstance(error, ShardError):
        return str(error)
    if isinstance(error, OSError) and error.errno in FULL:
        return str(unwritable(error.filename or "a file", error))
    if isinstance(error, OSError) and error.errno in CLOSED:
        return str(forbidden(error.filename or "a file", error))
    return " ".join(repr(error).split())


def _require_release(output, args):
    """ShardError where a finished output is of another data release than the run's."""
    if getattr(args, "release", None) is not None:
        with ShardReader(output) as reader:
            reader.require_release(args.release)


def _is_complete(fid, output, args, inputs_of, log, kind, settings) -> bool:
    """Whether nothing is left to do for a shard; why something is, is logged."""
    if args.overwrite:
        return False
    deep = getattr(args, "check", False)
    settings = settings(fid) if callable(settings) else settings
    state = output_state(output, inputs_of(fid), kind, settings, deep)
    if state.status is Status.COMPLETE:
        _require_release(output, args)
        return True
    if state.status is not Status.ABSENT and log:
        log.warning("%s: %s output is made again: %s", fid, state.status.value, state.reason)
    return False


def _clear(fid, output, tidy):
    """Clear away what a process that was killed when its output was written left beside it."""
    if lease.lease_path(output).exists():
        with lease.taken(output) as other:
            if other is None and tidy is not None:
                tidy(fid, output)


def _run_one(fid, args, inputs_of, output_of, process, log, kind, settings, tidy):
    """(outcome: "done", "already complete" or HELD, counters) of one shard."""
    signals.check()
    output, began = output_of(fid), time.monotonic()
    state = fid, output, args, inputs_of
    if _is_complete(*state, None, kind, settings):
        _clear(fid, output, tidy)
        return "already complete", {}
    with lease.taken(output) as other:
        if other is not None:
            log.warning("%s: left to %s, which is making it", fid, other.words())
            return HELD, {}
        if _is_complete(*state, log, kind, settings):  # another process had it until now
            return "already complete", {}
        counters = process(fid, output, log) or {}
    counted = ", ".join(f"{name} {value}" for name, value in counters.items())
    log.info("%s: done in %.1f s. %s", fid, time.monotonic() - began, counted)
    return "done", counters


def map_threads(work, items, words, jobs, on_interrupt, unit="shard"):
    """Yield work(item) of every item, with a progress bar; `jobs` > 1: of so many threads at once.

    Leaving early (an interrupt) drops the items not begun and waits for the others.
    """
    if jobs == 1:
        yield from map(work, progress(items, words, unit))
        return
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in progress(as_completed(futures), words, unit, total=len(futures)):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            if on_interrupt:
                on_interrupt()
            raise


def run_shards(
    script,
    args,
    fids,
    inputs_of,
    output_of,
    process,
    log=None,
    jobs=1,
    on_interrupt=None,
    kind=None,
    settings=None,
    tidy=None,
) -> int:
    """Make the output of every shard that is not complete; the exit status of the script.

    inputs_of(fid) -> list of paths; output_of(fid) -> path; process(fid, output, log) writes the
    output and may return counters {name: number}, which are logged and summed. Outcomes of a
    shard: already complete (skipped unless args.overwrite); absent, partial or stale (made, the
    last two with a warning that tells why); failed (any exception: logged with its traceback in
    the log file; the others go on); in work elsewhere (another process is making it: tried once
    more at the end). A UsageError, with which no shard can be made, ends the run. Returns 0 where
    all are done, 1 where some failed, HELD_STATUS where some are in work elsewhere, 128 and its
    number where a signal ended the run: the shards under way are given up, and the summary says
    what was done.

    kind: of the outputs (a key of `schema.FILES`), where their folder does not say it.
    settings: {attribute: value} that the outputs are written with, or what gives it of a fid; an
    output of others is made again.
    tidy(fid, output): clears away what `process` keeps beside an output until that is written.
    jobs: shards handled at once, in threads (for work that waits); `process` must then allow it,
    and `on_interrupt()` is to make the calls of `process` that are under way return soon.
    """
    log = log or setup_logging(script, args.log, args)
    log.info("%s %s: %d shards selected", script, project_version(), len(fids))
    outcomes, totals, failed, ended, held = Counter(), Counter(), {}, None, set()
    _prepare_folders({output_of(fid).parent for fid in fids})

    def work(fid):
        held.discard(fid)
        with collect_failure(fid, failed, log, fatal=UsageError):
            one = _run_one(fid, args, inputs_of, output_of, process, log, kind, settings, tidy)
            if one[0] == HELD:
                held.add(fid)
            return one
        return None

    try:
        todo = fids
        for _ in range(2):
            results = map_threads(work, todo, script, jobs, on_interrupt)
            for outcome, counters in filter(None, results):
                outcomes[outcome] += 1
                totals.update(counters)
            todo = sorted(held)
            if not todo:
                break
    except KeyboardInterrupt as error:
        ended = error
    done = f"{outcomes['done']} done, {outcomes['already complete']} already complete"
    reasons = f": {reasons_of(failed)}" if failed else ""
    counted = "".join(f"\n  {name}: {value}" for name, value in totals.items())
    others = f", {len(held)} {HELD}: {shortened(sorted(held), NAMED_FIDS)}" if held else ""
    message = f"{script}: {done}, {len(failed)} failed{reasons}{others}{counted}"
    if ended is not None:
        done_with = outcomes["done"] + outcomes["already complete"]
        left = len(fids) - done_with - len(failed)
        message += f"\n{script}: {_ended_by(ended)}, {left} shards not made: {AGAIN}"
    log.info(message, extra={"summary": True})
    if ended is not None:
        return status_of(ended)
    return 1 if failed else HELD_STATUS if held else 0


AGAIN = "run the same command again, which goes on from there"


def left_to(other, output, log) -> int:
    """Say that another process, whose `Lease` it is, is making an output; the exit status."""
    log.warning("%s: left to %s, which is making it", output, other.words())
    return HELD_STATUS


def _prepare_folders(folders):
    """Clear away what killed runs left in the folders of outputs. UsageError where one cannot be
    made or written to: no shard could be made."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno in FULL:
                continue  # each shard says so, and may find room
            raise UsageError(str(unwritable(folder, error))) from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UsageError(
                f"{folder}: no permission to write there: ask its owner, or give another --data-dir"
            )
        remove_dead_temporaries(folder)


def reasons_of(failed) -> str:
    """The failures of shards, {fid: reason}, in a summary: those of one reason together."""
    of_reason = {}
    for fid, reason in failed.items():
        of_reason.setdefault(reason, []).append(fid)
    said = [f"{shortened(fids, NAMED_FIDS)} ({reason})" for reason, fids in of_reason.items()]
    more = f"; and {len(said) - MOST_FAILED} more, see the log" if len(said) > MOST_FAILED else ""
    return "; ".join(said[:MOST_FAILED]) + more


def _ended_by(error) -> str:
    """What ended a run, in words."""
    number = getattr(error, "number", signal.SIGINT)
    return f"ended by {signal.Signals(number).name}"


def status_of(error) -> int:
    """Exit status of a run that a signal ended, as of a process that it killed."""
    return 128 + getattr(error, "number", signal.SIGINT)


def usage_exit(main=None, *, again=AGAIN):
    """Decorate a script's `main`: what ends it becomes one line, in the log too, and a status.

    UsageError and ShardError: 2; WriteError, and a full disk: 1; a signal: 128 and its number, and
    the line says what to do `again`.
    """
    if main is None:
        return functools.partial(usage_exit, again=again)

    @functools.wraps(main)
    def wrapped(argv=None) -> int:
        global _log
        _log = None
        try:
            with signals.raised():
                return main(argv)
        except ShardError as error:
            return _end(f"error: {error}", 1 if isinstance(error, WriteError) else 2)
        except KeyboardInterrupt as error:
            return _end(f"{_ended_by(error)}: {again}", status_of(error))
        except OSError as error:
            if error.errno not in FULL + CLOSED:
                raise
            return _end(f"error: {reason_of(error)}", 1 if error.errno in FULL else 2)
        finally:
            _flush()

    return wrapped


def _end(line, status) -> int:
    """Say why a run ends, on the terminal and in the log's file; the status."""
    say(line)
    if _log is not None:
        _log.info("%s", line)
    return status


def _flush():
    """Have what was printed written, or given up: Python's own attempt at the end would fail too,
    and change the exit status."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
