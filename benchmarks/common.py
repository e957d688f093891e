"""What benchmarks share. Import it before NumPy: it sets one thread."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from pipeline.errors import UsageError
from pipeline.joining import join_rows
from pipeline.read import ShardReader
from pipeline.schema import MODEL_FILE, load_release
from pipeline.whole_files import write_text

DEFAULT_MODEL = ROOT / "demo/run/model"
DEFAULT_TRAINING_DATA = ROOT / "demo/run/training_data.h5"
DEFAULT_OUT = ROOT / "benchmarks/out"


def add_arguments(parser, out=True, model=True):
    """--model, --training-data and --out."""
    if model:
        parser.add_argument(
            "--model",
            type=Path,
            default=DEFAULT_MODEL,
            metavar="FOLDER",
            help="output folder of train.py (default: demo/run/model)",
        )
    parser.add_argument(
        "--training-data",
        type=Path,
        default=DEFAULT_TRAINING_DATA,
        metavar="FILE",
        help="what it was trained on (default: demo/run/training_data.h5)",
    )
    if out:
        parser.add_argument(
            "--out",
            type=Path,
            default=DEFAULT_OUT,
            metavar="FOLDER",
            help="for figures and JSON (default: benchmarks/out)",
        )


# A small process starts the one to measure: the largest size of a process is told to be no smaller
# than that of the one that started it.
LAUNCH = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_maxrss, used.ru_utime + used.ru_stime)
sys.exit(status)
"""


def measured(command):
    """(exit status, peak memory in GB, CPU seconds, wall seconds) of a script's command line."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH, sys.executable, *map(str, command)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    wall = time.monotonic() - start
    if done.returncode:
        sys.stderr.write(done.stderr)
    peak, cpu = map(float, done.stdout.split())
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, bytes
    return done.returncode, peak * unit / 1e9, cpu, wall


def require(path):
    """UsageError where a file of `make demo` is absent."""
    if not path.exists():
        raise UsageError(
            f"{path}: absent; run `make demo` first, or give --model FOLDER --training-data FILE"
        )


def check_inputs(args):
    """UsageError where the model or its training data is absent; makes the folder --out."""
    require(args.model / MODEL_FILE)
    require(args.training_data)
    if hasattr(args, "out"):
        args.out.mkdir(parents=True, exist_ok=True)


def load_solver(args):
    """(`TrainedModel`, `StarSolver`), on one thread."""
    from fitting.model_file import load_model
    from fitting.star_solver import StarSolver
    from model import set_threads

    set_threads(1)
    trained = load_model(args.model / MODEL_FILE, load_release())
    return trained, StarSolver(trained.stellar)


def validation_rows(args, ids):
    """Rows (N,) in the training data, whose source ids are given, of the validation stars."""
    held_out = np.loadtxt(args.model / "validation_ids.txt", dtype=np.int64, ndmin=1)
    rows = join_rows(held_out, ids)
    require_all(rows, args)
    return rows


def require_all(rows, args):
    """UsageError where some validation stars have no row (-1) in the training data."""
    if (rows < 0).any():
        raise UsageError(
            f"{args.training_data}: {np.sum(rows < 0)} validation stars of "
            f"{args.model} are not in it: give the file that it was trained on"
        )


def read_table(path, names, rows):
    """Columns of an HDF5 file of ours, of some rows (order kept)."""
    with ShardReader(path) as reader:
        return {name: reader.read(name)[rows] for name in names}


def observed_names(args):
    """Names of the columns of the training data that stars are inferred from."""
    from fitting.observed import FINE, OBSERVED

    with ShardReader(args.training_data) as reader:
        return (*OBSERVED, FINE) if reader.has(FINE) else OBSERVED


def validation_stars(args, names):
    """Columns of the validation stars from the training data, {name: (N, ...)}."""
    with ShardReader(args.training_data, load_release().id_column) as reader:
        rows = validation_rows(args, reader.source_id())
    return read_table(args.training_data, names, rows)


def write_json(path, values):
    write_text(path, json.dumps(values, indent=1, default=float) + "\n")
    print(f"{os.path.relpath(path)}")


class Stopwatch:
    """CPU seconds of this process spent in named parts: on a machine with other work, wall time
    would measure that too. A call within a counted call is counted with the outer one."""

    def __init__(self):
        self.seconds, self._inside, self._wrapped = {}, False, []

    def wrap(self, owner, name, part):
        """Have calls of owner.name counted under `part`."""
        function = getattr(owner, name)

        def timed(*args, **kwargs):
            if self._inside:
                return function(*args, **kwargs)
            self._inside, start = True, time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.process_time() - start
                self.seconds[part] = self.seconds.get(part, 0.0) + spent
                self._inside = False

        setattr(owner, name, timed)
        self._wrapped.append((owner, name, function))

    def unwrap(self):
        """Put the original functions back."""
        while self._wrapped:
            setattr(*self._wrapped.pop())
