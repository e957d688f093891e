"""What steps 2 and 3 themselves cost a star, beside reading the answers by Astropy's parser.

    python benchmarks/bench_queries.py [--stars 65000]

Lays the ids of one shard out in a temporary folder, and an archive with canned answers, in the form
of the Gaia archive's (BINARY2 in gzip, texts of any length), on loopback. Reads the answers by our
reader and by Astropy's, which must give the same, and prints the CPU time of both a star; runs the
steps by their command lines, on few sources and on many, and prints what they take a star in all,
and what they would with Astropy's parser instead. What the real archive takes is not in it. Takes
about a minute.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path

import bench_sky  # sets one thread, for the children too
import canned_archive
import numpy as np

import query_2mass
import query_xp_metadata
from pipeline.run import usage_exit
from pipeline.schema import load_release
from pipeline.tap_answer import parse_answer, parsed_by_astropy, plain_columns, unpacked

FEW, REPEATS = 500, 5
MANY = 10**7  # rows, more than there are
SCRIPTS = {"metadata": query_xp_metadata, "tmass": query_2mass}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stars", type=int, default=65_000, help="(%(default)s)")
    return parser.parse_args(argv)


def timed(work, repeats):
    """(result, least CPU seconds) of work()."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        result = work()
        times.append(time.process_time() - start)
    return result, min(times)


def require_same(ours, theirs):
    """SystemExit where the columns {name: (n,)} of the two parsers differ in a bit."""
    for name, values in ours.items():
        if values.dtype.kind == "S":
            same = np.array_equal(values, theirs[name])
        else:
            same = values.tobytes() == theirs[name].tobytes()
        if not same:
            raise SystemExit(f"{name}: not the same as Astropy's")


def readings(kind, table):
    """Of the answer about all sources of a table: its size in bytes, CPU seconds of our reader
    and of Astropy's, both with the conversion to our types."""
    question = SCRIPTS[kind].question(load_release())
    columns = {name: table[name] for name in question.columns}
    data = canned_archive.archive_document(columns)

    def ours():
        return plain_columns(parse_answer(data, MANY), question.dtypes)

    def theirs():
        found = parsed_by_astropy(unpacked(data))
        return plain_columns({name.lower(): values for name, values in found}, question.dtypes)

    (found, time_ours), (expected, time_theirs) = timed(ours, REPEATS), timed(theirs, 1)
    require_same(found, expected)
    return len(data), time_ours, time_theirs


@usage_exit
def main(argv=None):
    n = parse_args(argv).stars
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench_queries_")))
        place = {"ra": np.linspace(10, 11, n), "dec": np.linspace(0, 1, n)}
        data, tables = canned_archive.lay_out_ids(folder, n, FEW, place)
        urls = stack.enter_context(canned_archive.archives(tables))
        print(
            f"us a star, {n} stars     parser: astropy   ours     step: before    now   memory (GB)"
        )
        sums = np.zeros(4)
        for kind, script in SCRIPTS.items():
            size, ours, theirs = readings(kind, tables[kind])
            options = ("--tap-url", urls[kind], *canned_archive.SOON)
            step = bench_sky.of_directories(kind, f"{script.SCRIPT}.py", kind, *options, data=data)
            cost = bench_sky.cost_of(step, 1.0)
            parts = 1e6 * np.array([theirs, ours]) / n
            step_us = cost["star_us"] + np.array([parts[0] - parts[1], 0])
            numbers = np.concatenate([parts, step_us])
            sums += numbers
            print(
                line(script.SCRIPT, numbers),
                f"{cost['memory_gb']:13.2f}",
                f"  answer {size / 1e6:.0f} MB",
            )
        print(line("both", sums))
    print("all values and nulls are the same, bit for bit")
    return 0


def line(words, numbers):
    return f"{words:20s} {numbers[0]:21.1f} {numbers[1]:6.1f} {numbers[2]:16.1f} {numbers[3]:6.1f}"


if __name__ == "__main__":
    sys.exit(main())
