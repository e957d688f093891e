"""The loop over shards: log, progress, failures, outcome."""

import contextlib
import functools
import logging
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from pipeline import lease
from pipeline.errors import ShardError, UsageError
from pipeline.provenance import Status, output_state, project_version
from pipeline.read import ShardReader
from pipeline.select import chosen_partition

HELD = "in work elsewhere"  # outcome of a shard
HELD_STATUS = 3  # exit status where nothing failed, but such shards are left


class _TerminalHandler(logging.Handler):
    """Warnings and summaries to stderr, without tearing a progress bar."""

    def emit(self, record):
        if record.levelno >= logging.WARNING or getattr(record, "summary", False):
            tqdm.write(record.getMessage(), file=sys.stderr)


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
        to_file = logging.FileHandler(log_file)
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
        failed[fid] = str(error) if isinstance(error, ShardError) else repr(error)
        log.error("%s: failed: %s", fid, failed[fid])
        log.info("traceback of %s", fid, exc_info=True)


def _require_release(output, args):
    """ShardError where a finished output is of another data release than the run's."""
    if getattr(args, "release", None) is not None:
        with ShardReader(output) as reader:
            reader.require_release(args.release)


def _is_complete(fid, output, args, inputs_of, log, kind, settings) -> bool:
    """Whether nothing is left to do for a shard; why something is, is logged."""
    if args.overwrite:
        return False
    state = output_state(output, inputs_of(fid), kind, settings)
    if state.status is Status.COMPLETE:
        _require_release(output, args)
        return True
    if state.status is not Status.ABSENT and log:
        log.warning("%s: %s output is made again: %s", fid, state.status.value, state.reason)
    return False


def _run_one(fid, args, inputs_of, output_of, process, log, kind, settings) -> tuple[str, dict]:
    """Outcome ("done", "already complete" or HELD) and counters of one shard."""
    output, began = output_of(fid), time.monotonic()
    state = fid, output, args, inputs_of
    if _is_complete(*state, None, kind, settings):
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
) -> int:
    """Make the output of every shard that is not complete; the exit status of the script.

    inputs_of(fid) -> list of paths; output_of(fid) -> path; process(fid, output, log) writes the
    output and may return counters {name: number}, which are logged and summed. Outcomes of a
    shard: already complete (skipped unless args.overwrite); absent, partial or stale (made, the
    last two with a warning that tells why); failed (any exception: logged with its traceback in
    the log file; the others go on); in work elsewhere (another process is making it: tried once
    more at the end). A UsageError, with which no shard can be made, ends the run. Returns 0 where
    all are done, 1 where some failed, HELD_STATUS where some are in work elsewhere, 130 where
    interrupted from the keyboard.

    kind: of the outputs (a key of `schema.FILES`), where their folder does not say it.
    settings: {attribute: value} that the outputs are written with; one of another is made again.
    jobs: shards handled at once, in threads (for work that waits); `process` must then allow it,
    and `on_interrupt()` is to make the calls of `process` that are under way return soon.
    """
    log = log or setup_logging(script, args.log, args)
    log.info("%s %s: %d shards selected", script, project_version(), len(fids))
    outcomes, totals, failed, held = Counter(), Counter(), {}, set()

    def work(fid):
        held.discard(fid)
        with collect_failure(fid, failed, log, fatal=UsageError):
            one = _run_one(fid, args, inputs_of, output_of, process, log, kind, settings)
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
    except KeyboardInterrupt:
        log.warning("%s: interrupted; run again to go on where it stopped", script)
        return 130
    done = f"{outcomes['done']} done, {outcomes['already complete']} already complete"
    reasons = "; ".join(f"{fid} ({reason})" for fid, reason in failed.items())
    counted = "".join(f"\n  {name}: {value}" for name, value in totals.items())
    others = f", {len(held)} {HELD}: {' '.join(sorted(held))}" if held else ""
    failures = f"{len(failed)} failed{': ' + reasons if failed else ''}"
    log.info("%s: %s, %s%s%s", script, done, failures, others, counted, extra={"summary": True})
    return 1 if failed else HELD_STATUS if held else 0


def usage_exit(main):
    """Decorate a script's `main`: UsageError and ShardError become one line and status 2."""

    @functools.wraps(main)
    def wrapped(argv=None) -> int:
        try:
            return main(argv)
        except ShardError as error:
            sys.stderr.write(f"error: {error}\n")
            return 2
        except KeyboardInterrupt:
            return 130

    return wrapped
