"""Peak memory and time of steps 7, 9 and 10 for one shard, by their command lines.

    python benchmarks/bench_memory.py [--model FOLDER] [--stars 65000]

Lays demo stars, repeated under new ids, out as a data directory of one shard in a temporary folder
(2 GB), and runs compile_training_data.py, gen_xp_input_allsources.py and xp_opt_allsources.py on
it, one after another, each on one thread. Prints the largest resident size of each process, as the
system counts it, beside the target of 2 GB; the seconds of CPU time; and of wall time, TensorFlow's
start included. The model must exist (`make demo`). Takes about two minutes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common  # sets one thread, for the children too

from pipeline.run import usage_exit

TARGET_GB = 2.0


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--model",
        type=Path,
        default=common.DEFAULT_MODEL,
        metavar="FOLDER",
        help="output folder of train.py (default: demo/run/model)",
    )
    parser.add_argument("--stars", type=int, default=65_000, help="(%(default)s)")
    return parser.parse_args(argv)


def measured(command):
    """(exit status, peak memory in GB, CPU seconds, wall seconds) of a script's command line."""
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=common.ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    if process.returncode:
        sys.stderr.write(errors)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, bytes
    return (
        process.returncode,
        usage.ru_maxrss * unit / 1e9,
        usage.ru_utime + usage.ru_stime,
        time.monotonic() - start,
    )


def steps(data, model):
    """{name: command line} of the steps measured."""
    labels, output = data / "training_params.h5", data / "training_data.h5"
    return {
        "7 compile_training_data": [
            "compile_training_data.py",
            "--data-dir",
            data,
            "--stellar-params",
            labels,
            "--output",
            output,
        ],
        "9 gen_xp_input_allsources": ["gen_xp_input_allsources.py", "--data-dir", data],
        "10 xp_opt_allsources": [
            "xp_opt_allsources.py",
            "--data-dir",
            data,
            "--model",
            model.resolve(),
            "--threads",
            "1",
        ],
    }


@usage_exit
def main(argv=None):
    args = parse_args(argv)
    common.require(args.model / "model.h5")
    with tempfile.TemporaryDirectory(prefix="bench_memory_") as folder:
        data = Path(folder)
        build = [
            "demo/build_sky.py",
            "--stars",
            "demo/stars.h5",
            "--out",
            data,
            "--n",
            args.stars,
            "--shards",
            "1",
        ]
        status = measured(build)[0]
        if status:
            return status
        print(
            f"one shard of {args.stars} stars, one thread\n"
            "step                        peak (GB)  CPU (s)  wall (s)"
        )
        for name, command in steps(data, args.model).items():
            status, peak, cpu, wall = measured(command)
            if status:
                return status
            print(
                f"{name:27s} {peak:9.2f} {cpu:8.1f} {wall:9.1f}"
                f"{'  ABOVE THE TARGET' if peak > TARGET_GB else ''}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
