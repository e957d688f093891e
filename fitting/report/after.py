"""The page at the end of steps 8 and 10, which are no failure where it cannot be made."""

import os
from pathlib import Path

from pipeline import lease
from pipeline.run import HELD_STATUS, reason_of
from pipeline.schema import MODEL_FILE
from pipeline.select import chosen_partition, list_fids, shard_path
from pipeline.states import find_states

NAME = "report.html"
SWITCH = "XPFWD_REPORT"  # variable of the environment: "off" for no page
INPUT, OUTPUT = "opt_input", "opt_output"


def after_training(args, log):
    """Write OUTPUT_FOLDER/report.html, of the arguments of train.py."""
    what = {"model": args.output, "release": args.release, "training_data": args.input}
    _write(args.output / NAME, [args.output / MODEL_FILE], log, what)


def after_inference(args, status, log):
    """Write DATA_DIR/report.html, of the arguments and the exit status of step 10.

    A run of some shards alone (a part of a Slurm array) leaves it to the one that ends last, as
    stars are read for it: it writes none while any shard is left.
    """
    if _is_off() or status not in (0, 1, HELD_STATUS):  # a signal ended the run
        return
    some = chosen_partition(args) is not None or bool(args.shards)
    if (some or status == HELD_STATUS) and (n := _n_left(args)):
        log.info("no report: %d shards are left; the run that makes the last writes it", n)
        return
    made = [shard_path(args.data_dir, OUTPUT, fid) for fid in list_fids(args.data_dir, OUTPUT)]
    what = {"data_dir": args.data_dir, "model": args.model, "release": args.release}
    inputs = [*made, args.model / MODEL_FILE]
    _write(Path(args.data_dir) / NAME, inputs if status == 0 else None, log, what)


def _n_left(args) -> int:
    """Shards of step 10 that are not complete; first by the names in its folder, which is cheap."""
    left = set(list_fids(args.data_dir, INPUT)) - set(list_fids(args.data_dir, OUTPUT))
    return len(left) or len(find_states(args.data_dir, (OUTPUT,), args.model)[OUTPUT].left())


def _is_off() -> bool:
    return os.environ.get(SWITCH, "").lower() == "off"


def _is_newer(path, inputs) -> bool:
    """Whether a page was written after all of the files."""
    try:
        made = path.stat().st_mtime_ns
        return all(Path(one).stat().st_mtime_ns <= made for one in inputs)
    except OSError:
        return False


def _write(path, inputs, log, what):
    """Write a page unless it is newer than its inputs (None: in any case), or another process is at
    it. What fails is said in a line."""
    if _is_off():
        return
    try:
        with lease.taken(path) as other:
            if other is not None or (inputs is not None and _is_newer(path, inputs)):
                return
            from fitting.report.page import write_page  # takes a second to load

            write_page(path, **what)
        log.info("report: %s", path, extra={"summary": True})
    except Exception as error:
        log.warning("%s: not written (%s); python tools/report.py makes it", path, reason_of(error))
        log.info("traceback of the report", exc_info=True)
