#!/usr/bin/env python3
"""How far the steps are: which shards are complete, and what became of the others.

    python tools/status.py --data-dir data --model output_folder/
    python tools/status.py --data-dir data --steps 9 10 --json
    python tools/status.py --data-dir data --map status.png
    python tools/status.py --data-dir data --parts 100           (what is left of a job array)

A shard of a step is
  complete   whole, and made from what its inputs are now
  in work    another process is making it (its lease, .NAME.lease, tells which)
  missing    not made yet
  stale      made by another version, or from other inputs than now: running the step makes it again
  partial    there, but not a whole file: running the step makes it again
  failed     not complete, and the last line of the logs (DATA_DIR/logs/) on it says why

Only attributes are read: bytes damaged within a file are found when a step reads it. What was read
is kept in DATA_DIR/logs/status_index.json: asking again is fast. Shards are those of all folders.
Exit status: 0 all shards of the steps asked about are complete (and the training set and the model,
where given), 1 not, 2 wrong usage.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.errors import UsageError
from pipeline.index import read_attributes
from pipeline.provenance import Status, identity, output_state
from pipeline.run import usage_exit
from pipeline.schema import FILES, KINDS, MODEL_FILE
from pipeline.select import dealing_order, in_part, number
from pipeline.states import Shard, find_states

STEPS = {
    "1": "xp",
    "2": "metadata",
    "3": "tmass",
    "4": "unwise",
    "5": "reddening",
    "9": "opt_input",
    "10": "opt_output",
}
NAMED = 5  # shards of a step whose reasons are printed, but with --all


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="default: %(default)s")
    parser.add_argument(
        "--model", type=Path, metavar="FOLDER", help="output folder of train.py (steps 8 and 10)"
    )
    parser.add_argument("--training-data", type=Path, metavar="FILE", help="of step 7")
    parser.add_argument(
        "--steps", nargs="+", choices=list(STEPS), default=list(STEPS), help="default: all of them"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--all", action="store_true", help="name every shard that is not complete")
    parser.add_argument("--map", type=Path, metavar="FILE", help="draw maps of the sky (PNG)")
    parser.add_argument(
        "--parts", type=number(int, 1), metavar="N", help="name the parts that are left, of N"
    )
    return parser.parse_args(argv)


# ---- words -----------------------------------------------------------------------------------


def amount(n_bytes) -> str:
    """Bytes in words."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"


def duration(hours) -> str:
    """Hours in words."""
    if hours < 1:
        return f"{60 * hours:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} d"


def time_left(step) -> str:
    """How long what is left takes, as far as that is known."""
    n_left = len(step.left())
    if not n_left:
        return ""
    if step.per_hour:
        return f"{duration(step.hours_left)}, at {step.per_hour:.3g} an hour"
    if step.seconds:
        return f"{duration(n_left * step.seconds / 3600)} of one process"
    return "unknown"


def as_table(steps) -> str:
    """The table of all steps."""
    heads = ["step", "", *(state.value for state in Shard), "rows", "size", "left"]
    rows = [heads]
    for name, step in steps.items():
        numbers = [f"{n:,}" for n in step.counts().values()]
        amounts = [f"{step.n_rows:,}", amount(step.n_bytes), time_left(step)]
        rows.append([name, FILES[step.kind].title, *numbers, *amounts])
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    left = (1, len(heads) - 1)  # columns of words
    return "\n".join(
        "  ".join(
            f"{cell:<{width}}" if i in left else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(pairs)
        ).rstrip()
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    )


def reasons(step, most) -> list[str]:
    """Lines on shards that are not complete, but for those simply missing; the worst first."""
    order = list(Shard)[::-1]
    odd = [
        (order.index(state), fid, state.value, why)
        for fid, (state, why) in step.states.items()
        if state not in (Shard.COMPLETE, Shard.MISSING)
    ]
    lines = [f"  {fid}: {state}: {why}" for _, fid, state, why in sorted(odd)]
    if most is not None and len(lines) > most:
        return [*lines[:most], f"  ... and {len(lines) - most} more (--all)"]
    return lines


def ranges(numbers) -> str:
    """Numbers as Slurm's --array takes them: 0-3,17."""
    groups = []
    for k in sorted(numbers):
        if groups and groups[-1][1] == k - 1:
            groups[-1][1] = k
        else:
            groups.append([k, k])
    return ",".join(f"{a}-{b}" if b > a else f"{a}" for a, b in groups)


def parts_left(data_dir, step, n) -> list[int]:
    """Parts of n in which a shard of a step is left."""
    order, left = dealing_order(data_dir, step.kind), step.left()
    return [k for k in range(n) if in_part(left, order, (n, k))]


# ---- steps that make one file ----------------------------------------------------------------


def file_state(path) -> tuple[bool, str]:
    """Whether a file is there and whole, in words too."""
    state = output_state(path)
    if state.status is Status.ABSENT:
        begun = (path.parent / "checkpoint.h5").exists() and path.name == MODEL_FILE
        return False, "begun, not finished" if begun else "missing"
    if state.status is Status.PARTIAL:
        return False, f"partial: {state.reason}"
    return True, "complete"


def model_state(model, training_data) -> tuple[bool, str]:
    """As `file_state`, of the model; stale where the training set has another content now."""
    path = model / MODEL_FILE
    state = file_state(path)
    if state[0] and training_data is not None and training_data.is_file():
        inputs = json.loads(read_attributes(path).get("inputs", "[]"))
        recorded = {entry["name"]: entry["identity"] for entry in inputs}
        now = identity(training_data)
        if recorded.get(training_data.name, now) != now:
            return False, f"stale: made from other inputs than now: {training_data.name}"
    return state


def single_files(args) -> dict:
    """{number of a step that makes one file: (whether it is whole, words)}, of those given."""
    found = {}
    if args.training_data is not None:
        found["7"] = file_state(args.training_data)
    if args.model is not None:
        found["8"] = model_state(args.model, args.training_data)
    return found


# ---- output ----------------------------------------------------------------------------------


def as_json(steps, singles, parts) -> str:
    """All that is known."""
    out = {
        name: {
            "kind": step.kind,
            **{state.value: n for state, n in step.counts().items()},
            "rows": step.n_rows,
            "bytes": step.n_bytes,
            "per_hour": step.per_hour,
            "hours_left": step.hours_left,
            "seconds_a_shard": step.seconds,
            "shards": {
                fid: {"state": state.value, "reason": why}
                for fid, (state, why) in step.states.items()
                if state is not Shard.COMPLETE
            },
        }
        for name, step in steps.items()
    }
    for name, left in parts.items():
        out[name]["parts_left"] = left
    out |= {name: {"state": words} for name, (_, words) in singles.items()}
    return json.dumps({"steps": out}, indent=1)


def print_words(steps, singles, parts, args):
    print(as_table(steps))
    for name, step in steps.items():
        lines = reasons(step, None if args.all else NAMED)
        if lines:
            print(f"step {name}:", *lines, sep="\n")
    for name, (_, words) in singles.items():
        print(f"step {name}, {args.training_data if name == '7' else args.model}: {words}")
    for name, left in parts.items():
        print(f"step {name}, parts left of {args.parts}: {ranges(left) or 'none'}")
    if parts:
        print(f"--array={ranges(set().union(*parts.values())) or 'none'}")


def draw_map(path, steps):
    """Maps of the sky, by the pixels in the fids."""
    from pipeline.figures.states import sky_states

    fids = list(next(iter(steps.values())).states)
    first, last = ([int(fid.split("-")[i]) for fid in fids] for i in (0, 1))
    order = list(Shard)
    maps = {
        f"step {name}: {FILES[step.kind].title}": [order.index(step.states[f][0]) for f in fids]
        for name, step in steps.items()
    }
    sky_states(path, first, last, maps, [state.value for state in order])


@usage_exit
def main(argv=None) -> int:
    args = parse_args(argv)
    chosen = [name for name in STEPS if name in args.steps]
    found = find_states(args.data_dir, [STEPS[name] for name in chosen], args.model)
    steps = {name: found[STEPS[name]] for name in chosen}
    if not any(step.states for step in steps.values()):
        folders = ", ".join(kind.folder for kind in KINDS.values())
        raise UsageError(f"{args.data_dir}: no shards in {folders}; check --data-dir")
    singles = single_files(args)
    parts = {}
    if args.parts:
        parts = {name: parts_left(args.data_dir, step, args.parts) for name, step in steps.items()}
    if args.json:
        print(as_json(steps, singles, parts))
    else:
        print_words(steps, singles, parts, args)
    if args.map:
        draw_map(args.map, steps)
    whole = not any(step.left() for step in steps.values())
    return 0 if whole and all(whole for whole, _ in singles.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
