#!/usr/bin/env python3
"""Kill the steps at random moments and damage their files at random: nothing is lost or wrong.

    python tests/torture.py --kills 300 --damage 2000 --seed 1
    python tests/torture.py --kills 20 --damage 0 --steps 8 10
    python tests/torture.py --kills 0 --damage 500 --files model labels

Kills: a step on small inputs, in a process of its own, ends by SIGKILL, or by SIGTERM, at a random
moment, up to three times. What then has its final name must be whole, and the same command must
finish with the datasets of a run that was not disturbed, and leave nothing beside them. The archive
of steps 2 and 3 is a stand-in; steps 8 and 10 run as in the tests, take minutes, and are chosen
less often.

Damage: files of every kind, with some bits flipped, a block zeroed, cut short, or two of their
blocks exchanged. Reading one gives what is in it, or an error of ours that names the file. Never
other numbers, another exception, or the end of the interpreter. FITS tiles and what others write
have no checksums: of them other numbers may come.

Prints what became of each, and ends with status 1 where something was lost, wrong or ended badly.
"""

import argparse
import os
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

for name in ("OPENBLAS_NUM", "OMP_NUM"):
    os.environ.setdefault(f"{name}_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
# ruff: noqa: E402 (imports after the path)

from torture_damage import BATCH, FILES, Damaging
from torture_kills import Killing
from torture_steps import STEPS, WITHOUT_TENSORFLOW, begin, make_base, status_of

GOOD = ("refused", "same", "unnoticed")


def say_now(text):
    print(text, flush=True)


def damage_files(base, damages, seed, names, say) -> list[str]:
    """What went wrong in reading so many damaged files of these kinds (all by default)."""
    sky = base / "sky"
    for step in ("7", "9"):
        if status_of(begin(STEPS[step], sky)):
            raise RuntimeError(f"step {step} fails undisturbed")
    damaging, found = Damaging(sky, seed, names), Counter()
    for start in range(0, damages, BATCH):
        found += damaging.batch(range(start, min(start + BATCH, damages)))
    good = {name: found.pop(name, 0) for name in GOOD}
    say(f"{damages} damaged files: {good}; wrong: {sum(found.values())}")
    for step in ("7", "9"):
        for path in STEPS[step].outputs(sky):
            path.unlink()
    return list(found)


def kill_steps(base, kills, seed, names, work, say) -> list[str]:
    """What went wrong with these steps, which are ended `kills` times in all."""
    killing, bad = Killing(base, random.Random(seed), work, names), []
    while killing.kills.total() < kills:
        bad += killing.once()
    by_step = ", ".join(
        f"step {name} {killing.struck[name]} of {killing.kills[name]}" for name in names
    )
    say(f"{killing.kills.total()} kills, at work when struck: {by_step}; wrong: {len(bad)}")
    return bad


def torture(kills, damages, seed, steps=WITHOUT_TENSORFLOW, files=(), say=say_now) -> list[str]:
    """What went wrong; [] where nothing did."""
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        base = make_base(Path(folder) / "base", steps if kills else ())
        if damages:
            wrong += damage_files(base, damages, seed, files, say)
        if kills:
            wrong += kill_steps(base, kills, seed, steps, Path(folder), say)
    return wrong


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--damage", type=int, default=500, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), help="to kill")
    parser.add_argument("--files", nargs="+", choices=FILES, default=(), help="to damage")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = parse_args(argv)
    wrong = torture(args.kills, args.damage, args.seed, args.steps, args.files)
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
