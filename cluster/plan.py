#!/usr/bin/env python3
"""What cluster/submit_all.sh submits: for each step, the options of sbatch and the command line.

    python cluster/plan.py --data-dir data --model output_folder/ --parts 100

Times and memory follow from what the steps cost as measured (tables/costs.toml, whole_sky.toml) and
from the shards and stars of DATA_DIR. Prints a line of four fields, between tabs, for each step:

  number    needs    options of sbatch    command line

needs are words such as `aftercorr:2`: a part waits for its own part of that step, or `afterok:8`:
for all of it. Options and command line are quoted for a shell. What it means in words goes to
stderr. Exit status: 0, or 2 where something is missing or does not fit.
"""

import argparse
import math
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import h5py
import numpy as np

from pipeline.errors import UsageError
from pipeline.index import index, scan
from pipeline.run import usage_exit
from pipeline.schema import MODEL_FILE, rate_of
from pipeline.select import dealing_order, in_part, number
from tools.status import STEPS as KIND_OF_STEP
from tools.status import find_states, parts_left, ranges

USUAL_STARS = 65_000  # of a shard that does not say
MOST_LABELS = 2_000_000  # assumed of step 7, more than surveys have
ARCHIVE_JOBS = 2  # of steps 2 and 3, in a task: their own default
LEAST_MINUTES, ROUND_MINUTES = 10, 5
MEMORY_SLACK, MEMORY_MORE = 1.5, 0.5  # times the memory measured, and GB for the libraries
BAYESTAR_FILE = Path("bayestar") / "bayestar2019.h5"
BAYESTAR_GB = 16  # where the map is not there to be asked
NOTICE_SECONDS = 120  # before the time limit; Slurm may be a minute early
ARRAY = re.compile(r"\d+(-\d+(:\d+)?)?(,\d+(-\d+(:\d+)?)?)*")


@dataclass(frozen=True)
class Step:
    """A step as jobs. after: steps whose same part a part waits for; barrier: steps that must be
    done in all parts; whole: one job, no parts; asks: the archive, few at once."""

    script: str
    after: tuple = ()
    barrier: tuple = ()
    whole: bool = False
    asks: bool = False
    cores: int = 1


STEPS = {
    2: Step("query_xp_metadata.py", asks=True),
    3: Step("query_2mass.py", asks=True),
    4: Step("match_unwise_gaia.py", after=(2,)),
    5: Step("query_reddening_gaia.py", after=(2,)),
    7: Step("compile_training_data.py", barrier=(2, 3, 4, 5), whole=True),
    8: Step("train.py", barrier=(7,), whole=True, cores=4),
    9: Step("gen_xp_input_allsources.py", after=(2, 3, 4)),
    10: Step("xp_opt_allsources.py", after=(9,), barrier=(8,)),
}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("data-dir", "data"), ("model", "output_folder")):
        parser.add_argument(f"--{name}", type=Path, default=Path(default))
    parser.add_argument("--labels", type=Path, default=Path("training_params.h5"))
    parser.add_argument("--training-data", type=Path, default=Path("training_data.h5"))
    parser.add_argument("--unwise-dir", type=Path)
    parser.add_argument("--dustmaps-dir", type=Path)
    parser.add_argument("--maps", nargs="+", default=["bayestar", "sfd"])
    parser.add_argument("--steps", nargs="+", type=int, choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--parts", type=number(int, 1), default=100, help="of a step's job array")
    parser.add_argument("--array", default="", help="parts: 3,17; left: those with something left")
    parser.add_argument("--max-array", type=int, default=1001, help="MaxArraySize of the cluster")
    parser.add_argument("--slack", type=number(float, 1), default=4.0, help="times what it takes")
    parser.add_argument("--archive-minutes", type=number(float, 0), default=2.0, help="of one job")
    parser.add_argument("--archive-tasks", type=number(int, 1), default=1, help="at once")
    parser.add_argument("--logs", type=Path, help="default: DATA_DIR/logs/slurm")
    parser.add_argument("--name", default="xpfwd", help="of the jobs")
    parser.add_argument(
        "--extra",
        nargs=2,
        action="append",
        default=[],
        metavar=("STEP", "WORDS"),
        help="further options of a step's script",
    )
    return parser.parse_args(argv)


# ---- how large -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sky:
    """The shards: n_parts; per part the number of shards and stars (n_parts,)."""

    n_parts: int
    shards: np.ndarray
    stars: np.ndarray


def look(args) -> Sky:
    """What there is to be done. UsageError where there are no spectra, or too many parts."""
    found = index(args.data_dir, {"xp": scan(args.data_dir, "xp")})["xp"]
    if not found:
        raise UsageError(f"{args.data_dir}: no spectra shards there (step 1); check DATA_DIR")
    n_parts = min(args.parts, len(found))
    if n_parts > args.max_array:
        raise UsageError(
            f"{n_parts} parts, but the cluster allows arrays of {args.max_array} (MaxArraySize): "
            "set fewer PARTS"
        )
    order = dealing_order(args.data_dir, "xp")
    stars = {fid: file.rows or USUAL_STARS for fid, file in found.items()}
    parts = [in_part(order, order, (n_parts, k)) for k in range(n_parts)]
    counts = [[len(part), sum(stars[fid] for fid in part)] for part in parts]
    return Sky(n_parts, *np.array(counts).T)


def bayestar_gb(folder) -> float:
    """GB of Bayestar in memory: 4 bytes a sample and distance, and the best of each."""
    path = None if folder is None else folder / BAYESTAR_FILE
    if path is None or not path.is_file():
        return BAYESTAR_GB
    try:
        with h5py.File(path, "r", locking=False) as file:
            n_pixels, n_samples, n_distances = file["samples"].shape
    except (OSError, KeyError, ValueError):  # step 5 says what is wrong with it
        return BAYESTAR_GB
    return 4 * n_pixels * n_distances * (n_samples + 1) / 1e9


def memory_gb(step, args) -> int:
    """GB to ask for."""
    asked = MEMORY_SLACK * rate_of(step.script).memory_gb + MEMORY_MORE
    if step.script == "query_reddening_gaia.py" and "bayestar" in args.maps:
        asked += bayestar_gb(args.dustmaps_dir)
    return math.ceil(asked)


def seconds(step, args, sky) -> np.ndarray:
    """Seconds that each job of a step takes, as measured on one core."""
    rate = rate_of(step.script)
    if step.whole:
        return np.array([rate.seconds(MOST_LABELS, sky.shards.sum())])
    asking = args.archive_minutes * 60 / ARCHIVE_JOBS * sky.shards if step.asks else 0
    return rate.seconds(sky.stars, sky.shards) + asking


def minutes(measured, slack) -> int:
    """The time limit."""
    asked = max(slack * float(measured) / 60, LEAST_MINUTES)
    return math.ceil(asked / ROUND_MINUTES) * ROUND_MINUTES


# ---- words -----------------------------------------------------------------------------------


def chosen_array(args, sky) -> str:
    """The tasks, as --array takes them; "" where nothing is left. UsageError where it is none."""
    if not args.array:
        return f"0-{sky.n_parts - 1}" if sky.n_parts > 1 else "0"
    if args.array == "left":
        kinds = [KIND_OF_STEP[str(k)] for k in args.steps if not STEPS[k].whole]
        model = args.model if 8 not in args.steps else None
        steps = find_states(args.data_dir, kinds, model).values()
        return ranges(set().union(*(parts_left(args.data_dir, s, sky.n_parts) for s in steps)))
    if not ARRAY.fullmatch(args.array):
        raise UsageError(f"ARRAY={args.array}: give parts as in 3,17 or 0-9, or left")
    last = max(int(k) for k in re.findall(r"\d+", re.sub(r":\d+", "", args.array)))
    if last >= sky.n_parts:
        raise UsageError(f"ARRAY={args.array}: there are parts 0 to {sky.n_parts - 1}")
    return args.array


def command_of(k, args, sky) -> list[str]:
    """The command line of a step, without the interpreter."""
    step, data = STEPS[k], ["--data-dir", str(args.data_dir)]
    words = [step.script] if k == 8 else [step.script, *data]
    if not step.whole:
        words += ["--parts", str(sky.n_parts)]
    if k == 4:
        words += ["--unwise-dir", str(args.unwise_dir)]
    if k == 5:
        words += ["--maps", *args.maps]
        words += ["--dustmaps-dir", str(args.dustmaps_dir)] if args.dustmaps_dir else []
    if k == 7:
        words += ["--stellar-params", str(args.labels), "--output", str(args.training_data)]
    extra = [word for number, text in args.extra if number == str(k) for word in shlex.split(text)]
    if k == 8:
        words += ["-i", str(args.training_data), "-o", str(args.model)]
        words += ["--threads", str(step.cores)]
        words += [] if "--overwrite" in extra else ["--resume"]
    if k == 10:
        words += ["--model", str(args.model), "--threads", "1"]
    return words + extra


def options_of(k, args, sky, array) -> list[str]:
    """Options of sbatch for a step."""
    step = STEPS[k]
    limit = minutes(seconds(step, args, sky).max(), args.slack)
    place = "%A_%a" if array else "%j"
    options = {
        "job-name": f"{args.name}-{k}",
        "output": str(args.logs / f"step{k}_{place}.log"),
        "time": limit,
        "mem": f"{memory_gb(step, args)}G",
        "cpus-per-task": step.cores,
        "signal": f"B:USR1@{NOTICE_SECONDS}",
    }
    if array:
        options["array"] = f"{array}%{args.archive_tasks}" if step.asks else array
    return [f"--{name}={value}" for name, value in options.items()]


def needs_of(k) -> str:
    """Which jobs a step waits for."""
    step = STEPS[k]
    words = [f"aftercorr:{other}" for other in step.after]
    return " ".join([*words, *(f"afterok:{other}" for other in step.barrier)])


def say(k, args, sky):
    """A line on stderr."""
    step = STEPS[k]
    each = seconds(step, args, sky)
    jobs = "one job" if step.whole else f"{sky.n_parts} parts"
    sys.stderr.write(
        f"step {k:2d} {step.script:28s} {jobs}, {each.max() / 60:.3g} min expected, limit "
        f"{minutes(each.max(), args.slack)} min, {memory_gb(step, args)} GB, {step.cores} core(s); "
        f"{each.sum() / 3600:.3g} h in all\n"
    )


def check(args):
    """UsageError where something that a step needs, and no other step makes, is missing."""
    steps = set(args.steps)
    if 4 in steps and (args.unwise_dir is None or not args.unwise_dir.is_dir()):
        raise UsageError(f"step 4: no folder of unWISE tiles {args.unwise_dir or ''}: UNWISE_DIR")
    if 7 in steps and not args.labels.is_file():
        raise UsageError(f"step 7: no table of labels {args.labels}: LABELS (step 6)")
    if 8 in steps and 7 not in steps and not args.training_data.is_file():
        raise UsageError(f"step 8: no training set {args.training_data}: TRAINING_DATA, or step 7")
    if 10 in steps and 8 not in steps and not (args.model / MODEL_FILE).is_file():
        raise UsageError(f"step 10: no {MODEL_FILE} in {args.model}: MODEL, or step 8")


@usage_exit
def main(argv=None) -> int:
    args = parse_args(argv)
    args.logs = args.logs or args.data_dir / "logs" / "slurm"
    check(args)
    sky = look(args)
    array = chosen_array(args, sky)
    sys.stderr.write(f"{sky.shards.sum():,} shards, {sky.stars.sum():,} stars\n")
    for k in sorted(args.steps):
        of_parts = "" if STEPS[k].whole else array
        if not array and not STEPS[k].whole:
            sys.stderr.write(f"step {k:2d}: nothing is left\n")
            continue
        say(k, args, sky)
        options = shlex.join(options_of(k, args, sky, of_parts))
        print(k, needs_of(k), options, shlex.join(command_of(k, args, sky)), sep="\t")
    return 0


if __name__ == "__main__":
    sys.exit(main())
