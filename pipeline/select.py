"""Finding shards, and selecting those that a run handles.

A shard is an HDF5 file for one patch of sky; `fid` = "000000-003111" names the inclusive range of
level-8 nested HEALPix pixels that it covers.
"""

import argparse
import os
import re
from pathlib import Path

from pipeline.errors import ShardError, UsageError, shortened
from pipeline.schema import COSTS, DEFAULT_RELEASE, FILES, KINDS, describe, load_release

PARTS = "XPFWD_PARTS"  # variable of the environment: as --parts
HELD_WORDS = "exit status 3: nothing failed, but other processes are at work on some shards"
FID_PATTERN = re.compile(r"\d{6}-\d{6}")


def output_path(data_dir, kind, fid) -> Path:
    """Path under which shard `fid` of a kind (a key of KINDS) is written."""
    return Path(data_dir) / KINDS[kind].folder / f"{KINDS[kind].prefix}_{fid}.h5"


def shard_path(data_dir, kind, fid) -> Path:
    """Path of shard `fid` of a kind: as it is written or, of what others made, with .hdf5."""
    path = output_path(data_dir, kind, fid)
    if KINDS[kind].foreign and not path.exists():
        foreign = path.with_suffix(".hdf5")
        return foreign if foreign.exists() else path
    return path


def list_fids(data_dir, kind) -> list[str]:
    """Sorted fids present in the folder of a kind; temporary and foreign names are ignored."""
    ending = r"\.(?:h5|hdf5)" if KINDS[kind].foreign else r"\.h5"
    pattern = re.compile(rf"{KINDS[kind].prefix}_({FID_PATTERN.pattern}){ending}")
    folder = Path(data_dir) / KINDS[kind].folder
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted({match[1] for match in map(pattern.fullmatch, names) if match})


def input_paths(data_dir, fid, kinds) -> list[Path]:
    """Paths of shard `fid` of several kinds; ShardError where one does not exist."""
    paths = [shard_path(data_dir, kind, fid) for kind in kinds]
    for path in paths:
        if not path.is_file():
            raise ShardError(f"{path}: not found; the shard is missing from a folder in use")
    return paths


def used_kinds(data_dir, kinds, without=()) -> list[str]:
    """Those of `kinds` not in `without`; UsageError where the folder of one does not exist."""
    used = [kind for kind in kinds if kind not in (without or ())]
    for kind in used:
        folder = Path(data_dir) / KINDS[kind].folder
        if not folder.is_dir():
            way_out = f", or leave it out with --without {kind}" if KINDS[kind].optional else ""
            raise UsageError(f"{folder}: no such folder; make it with its step{way_out}")
    return used


def step_parser(doc, *kinds) -> argparse.ArgumentParser:
    """The parser of a step: its help is the script's docstring, what the step costs, and the
    datasets that it writes.

    kinds: of files (keys of `schema.FILES`) whose datasets are described, all of one step.
    """
    cost = "".join(COSTS[script].words() for script in {FILES[kind].step for kind in kinds})
    described = "\n\n".join(f"datasets, N rows:\n{describe(kind)}" for kind in kinds)
    return argparse.ArgumentParser(
        description=f"{doc}\n{cost}",
        epilog=described,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _release(name):
    try:
        return load_release(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def number(kind, least):
    """A type of arguments: a number of that kind, at least so much."""

    def parse(text):
        value = kind(text)
        if value < least:
            raise ValueError(text)
        return value

    parse.__name__ = f"number of at least {least}"
    return parse


def add_release_argument(parser: argparse.ArgumentParser) -> None:
    """Add --release."""
    parser.add_argument(
        "--release",
        type=_release,
        default=DEFAULT_RELEASE,
        metavar="NAME",
        help="Gaia data release: a name in tables/releases, or the path of such a file "
        "(default: %(default)s)",
    )


def add_shard_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that every shard script has."""
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="default: %(default)s")
    parser.add_argument(
        "--partition",
        nargs=2,
        type=int,
        metavar=("N", "K"),
        help="handle the K-th (from 0) of N parts; in a Slurm array --parts N does",
    )
    parser.add_argument(
        "--parts",
        type=int,
        metavar="N",
        help=f"number of parts in a Slurm array, whose tasks do a part each (default: ${PARTS})",
    )
    parser.add_argument("--shards", nargs="+", metavar="FID", help="handle only these shards")
    parser.add_argument("--overwrite", action="store_true", help="make finished shards again")
    parser.add_argument(
        "--check",
        action="store_true",
        help="read finished shards whole, and make those again that do not hold what was written",
    )
    parser.add_argument("--log", type=Path, help="default: DATA_DIR/logs/SCRIPT[_part].log")
    parser.epilog = f"{HELD_WORDS}\n\n{parser.epilog or ''}"


def dealing_order(data_dir, kind) -> list[str]:
    """The fids of a data directory in the order in which they are dealt out to parts.

    By name those of the spectra, which all steps have in common: so a part is the same shards in
    every step, however many of a step's inputs are there yet. Then those of a kind without spectra.
    """
    spectra = list_fids(data_dir, "xp")
    return spectra + sorted(set(list_fids(data_dir, kind)) - set(spectra))


def in_part(fids, order, part) -> list[str]:
    """Those of `fids` in a part (N, K) of `order`, dealt out like cards; all where it is None.

    So parts differ by one shard at most, and are the same as long as `order` is.
    """
    if part is None:
        return list(fids)
    n, k = part
    dealt = set(order[k::n])
    return [fid for fid in fids if fid in dealt]


def chosen_partition(args) -> tuple[int, int] | None:
    """(N, K) of --partition, else of the Slurm array task, else None; UsageError where invalid.

    In a Slurm array N is given by --parts or PARTS, never taken from the array: an array of those
    tasks that failed is to do their parts. K is the task's number, modulo N where it starts at 1.
    """
    source, part = "--partition", getattr(args, "partition", None)
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    if part is None and task is not None:
        source = "the Slurm array task"
        given = getattr(args, "parts", None) or os.environ.get(PARTS)
        if given is None:
            raise UsageError(
                f"this is task {task} of a Slurm array: give --parts N (or set {PARTS}), the "
                "number of parts in all, which stays the same where only some tasks are run again"
            )
        if not str(given).isdigit() or int(given) < 1 or int(task) > int(given):
            raise UsageError(
                f"{source} gives part {task} of {given}: tasks are 0..N-1 or 1..N; give --parts N"
            )
        part = int(given), int(task) % int(given)
    if part is None:
        return None
    n, k = part
    if n < 1 or not 0 <= k < n:
        raise UsageError(f"{source} gives part {k} of {n}: K must be 0..N-1; give --partition N K")
    return n, k


def whole_array(args) -> bool:
    """Whether this is a task of a Slurm array that does all parts."""
    tasks, part = os.environ.get("SLURM_ARRAY_TASK_COUNT", ""), chosen_partition(args)
    by_slurm = getattr(args, "partition", None) is None and not args.shards
    return by_slurm and part is not None and tasks.isdigit() and int(tasks) >= part[0]


def named_fids(args, kind) -> list[str]:
    """The fids of a kind that --shards names, by default all.

    Raises UsageError for a missing or empty folder and unknown fids.
    """
    folder = Path(args.data_dir) / KINDS[kind].folder
    fids = list_fids(args.data_dir, kind)
    if not fids:
        raise UsageError(f"{folder}: no {KINDS[kind].prefix}_*.h5 shards there; check --data-dir")
    if args.shards:
        unknown = sorted(set(args.shards) - set(fids))
        if unknown:
            raise UsageError(f"--shards {shortened(unknown)}: not in {folder} (e.g. {fids[0]} is)")
        fids = sorted(set(args.shards))
    return fids


def select_fids(args, kind) -> list[str]:
    """The fids of a kind that --shards and --partition (or Slurm) choose.

    Raises UsageError as `named_fids` does, and for an impossible partition.
    """
    order = dealing_order(args.data_dir, kind)
    return in_part(named_fids(args, kind), order, chosen_partition(args))
