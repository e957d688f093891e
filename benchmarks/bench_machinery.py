"""What the handling of a shard costs beside what is computed of it.

    python benchmarks/bench_machinery.py [--model FOLDER] [--stars 65000] [--steps 4 5 9 10]

Lays demo stars, repeated under new ids, out as a shard in a temporary folder, runs steps 4, 5, 9
and 10 on it within this process, on one thread, and prints of each the CPU time, and the parts of
it that are spent on handling: the state of outputs and inputs (with the identities of files and
where things come from), leases, opening files, hashes of what is read and written, the check of
what was written. Reading and writing the values themselves (HDF5 with its checksums and
compression) is told apart, as is all else: the computing. What a process does once (loading, and
compiling in step 10) is done on few stars before. Model: `make demo`. Takes about three minutes.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path

import bench_sky
import canned_archive
import common  # sets one thread

import gen_xp_input_allsources
import match_unwise_gaia
import query_reddening_gaia
import query_xp_metadata
from pipeline import content, lease, read, run, trailer, write
from pipeline.run import usage_exit
from pipeline.schema import MODEL_FILE

STATES, LEASES, OPENING = "states", "leases", "opening"
HASHES, CHECK = "hashes", "check"
READING, WRITING = "reading", "writing"
HANDLING = (STATES, LEASES, OPENING, HASHES, CHECK)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=common.DEFAULT_MODEL, metavar="FOLDER")
    parser.add_argument("--stars", type=int, default=65_000, help="(%(default)s)")
    parser.add_argument("--steps", nargs="+", default=["4", "5", "9", "10"], help="(all)")
    return parser.parse_args(argv)


class TimedHash:
    """A hash, whose updates are counted."""

    def __init__(self, whole):
        self._whole = whole
        self.hexdigest = whole.hexdigest

    def update(self, values):
        self._whole.update(values)


def watch(clock, module):
    """Have the parts of the handling of a step counted."""
    new_digest = content.new_digest
    content.new_digest = lambda: TimedHash(new_digest())
    for owner, name, part in [
        (run, "_is_complete", STATES), (module, "provenance", STATES),
        (lease, "_take", LEASES), (lease, "_remove", LEASES),
        (read.ShardReader, "__init__", OPENING), (write.ShardWriter, "__enter__", OPENING),
        (TimedHash, "update", HASHES), (trailer, "stored_values", HASHES),
        (trailer, "append_trailer", HASHES), (content, "put_hashes", HASHES),
        (write, "id_hash", HASHES), (content, "digest_of_dataset", HASHES),
        (write, "check_whole", CHECK),
        (read.ShardReader, "read", READING),
        (write.h5py.Dataset, "__setitem__", WRITING), (write.h5py.File, "close", WRITING),
        (write.h5py.File, "flush", WRITING),
    ]:  # fmt: skip
        clock.wrap(owner, name, part)
    return new_digest


def measure(module, commands, n):
    """(CPU seconds of a step on n stars, {part: those of it}), after it has run on few."""
    few = [str(word) for word in commands[bench_sky.FEW][1:]]
    many = [str(word) for word in commands[n][1:]]
    with open("/dev/null", "w") as nowhere, contextlib.redirect_stderr(nowhere):
        if module.main(few):
            raise SystemExit(f"{module.__name__} failed")
        clock = common.Stopwatch()
        new_digest = watch(clock, module)
        try:
            start = time.process_time()
            if module.main(many):
                raise SystemExit(f"{module.__name__} failed")
            return time.process_time() - start, clock.seconds
        finally:
            clock.unwrap()
            content.new_digest = new_digest


def steps(folder, args):
    """{step: (module, {number of stars: command line})}, each ready after those before it."""
    skies = {
        m: bench_sky.lay_out(folder / f"sky_{m}", m, "--shards", 1)
        for m in (bench_sky.FEW, args.stars)
    }
    found = {}
    if "4" in args.steps:
        data, tables, tiles = canned_archive.lay_out(folder, args.stars, bench_sky.FEW)
        with canned_archive.archives(tables) as urls:
            for d in data.values():
                asked = ["--data-dir", d, "--tap-url", urls["metadata"], *canned_archive.SOON]
                asked += ["--http-timeout", 600]
                if query_xp_metadata.main([str(word) for word in asked]):
                    raise SystemExit("step 2 failed")
        commands = {m: ["", "--data-dir", d, "--unwise-dir", tiles] for m, d in data.items()}
        found["4"] = match_unwise_gaia, commands
    of_skies = {m: ["", "--data-dir", d] for m, d in skies.items()}
    found["5"] = (
        query_reddening_gaia,
        {m: [*words, "--maps", "bh", "--overwrite"] for m, words in of_skies.items()},
    )
    found["9"] = gen_xp_input_allsources, of_skies
    if "10" in args.steps:
        import xp_opt_allsources

        more = ["--model", args.model.resolve(), "--threads", 1, "--use-parallaxes"]
        found["10"] = xp_opt_allsources, {m: [*words, *more] for m, words in of_skies.items()}
    return found


def line(name, seconds, parts):
    handling = sum(parts.get(part, 0.0) for part in HANDLING)
    shown = "".join(f"{parts.get(part, 0.0):9.2f}" for part in (*HANDLING, READING, WRITING))
    return f"step {name:3s} {seconds:8.1f}{shown}   {100 * handling / seconds:.1f}%"


@usage_exit
def main(argv=None):
    args = parse_args(argv)
    if "10" in args.steps:
        common.require(args.model / MODEL_FILE)
    names = "".join(f"{part:>9s}" for part in (*HANDLING, READING, WRITING))
    print(f"CPU seconds, {args.stars} stars in a shard\n{'':8s} {'in all':>8s}{names}   handling")
    with tempfile.TemporaryDirectory(prefix="bench_machinery_") as folder:
        for name, (module, commands) in steps(Path(folder), args).items():
            seconds, parts = measure(module, commands, args.stars)
            if name in args.steps:
                print(line(name, seconds, parts), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
