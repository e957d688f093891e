#!/usr/bin/env python3
"""Kill the steps at random moments and damage their files at random: nothing is lost or wrong.

    python tests/torture.py --kills 300 --damage 2000 --seed 1

Kills: a step (1, 4, 5, 7 or 9) on a small made-up sky, in a process of its own, ends by SIGKILL, or
by SIGTERM, at a random moment. What then has its final name must be whole, and the same command
must finish with the datasets of a run that was not disturbed, and leave no temporary file.

Damage: files of every kind, with some bits flipped, a block zeroed, cut short, or two of their
blocks exchanged. Reading one gives what is in it, or an error of ours that names the file. Never
other numbers, another exception, or the end of the interpreter. FITS tiles and tables of labels
that others write have no checksums: of them other numbers may come.

Prints what became of each, and ends with status 1 where something was lost, wrong or ended badly.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

for name in ("OPENBLAS_NUM", "OMP_NUM"):
    os.environ.setdefault(f"{name}_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
# ruff: noqa: E402 (imports after the path)

import h5py
import numpy as np
import step7_case
from helpers import DR3, lay_out, make_sky
from test_convert_xp_csv import csv_lines, write_csv
from test_match_unwise import write_tiles

import compile_training_data
import gen_xp_input_allsources
import match_unwise_gaia
import query_reddening_gaia
from fitting.training_set import read_training_data
from pipeline.errors import ShardError
from pipeline.label_tables import read_columns
from pipeline.provenance import Status, output_state, provenance
from pipeline.read import ShardReader, open_shard, read_arrays
from pipeline.schema import KINDS, Layout, resolved
from pipeline.select import list_fids, shard_path
from pipeline.unwise_tiles import read_tile
from pipeline.write import write_arrays
from tools import convert_xp_csv

N_STARS = 150
FIDS = ("000000-000999", "001000-001999", "400000-400999")
LONGEST = 120  # s, to read a damaged file
BATCH = 20  # damaged files read in one process
SAME = 1e-5  # relative: sums of float32 may differ by the order that BLAS takes


# ---- a small sky -----------------------------------------------------------------------------


def make_base(folder) -> Path:
    """The inputs of all steps, and what the undisturbed steps make of them."""
    sky = make_sky(N_STARS, seed=4, fids=FIDS)
    for tables in sky.values():
        tables["metadata"] |= {name: np.full(N_STARS, 5.0) for name in ("pmra", "pmdec")}
    lay_out(folder / "data", sky)
    for number, (fid, tables) in enumerate(sky.items()):
        write_csv(folder / "csv", csv_lines(tables["xp"], ecsv=number == 0), fid)
        metadata = tables["metadata"]
        with contextlib.suppress(FileExistsError):
            (folder / "tiles").mkdir()
        write_tiles(folder / "tiles", metadata["ra"][:4], metadata["dec"][:4])
    step7_case.write_labels(folder / "labels.h5", step7_case.make_labels(sky))
    rng = np.random.default_rng(0)
    arrays = {f"layer{k}/kernel": rng.normal(size=(40, 30)).astype("f4") for k in range(6)}
    arrays |= {"scale": np.float64(3.5), "names": np.array([b"teff", b"feh"]), "n": np.arange(5)}
    write_arrays(folder / "model.h5", arrays, {"script": "train"}, recipe="{}")
    write_foreign(folder / "foreign" / KINDS["xp"].folder, sky[FIDS[0]]["xp"])
    return folder


def write_foreign(folder, table):
    """A shard of spectra as others write it: by h5py as it is, without checksums."""
    folder.mkdir(parents=True)
    with h5py.File(folder / f"{KINDS['xp'].prefix}_{FIDS[0]}.h5", "w") as file:
        for name, values in table.items():
            file.create_dataset(name, data=values, compression="gzip").attrs["note"] = name
        file.attrs["made by"] = "a mirror"


@dataclass(frozen=True)
class Step:
    """A step: its main, its words for a folder of the inputs, and the outputs in that folder."""

    main: object
    words: object
    outputs: object


def _shards(folder, kind):
    return [shard_path(folder, kind, fid) for fid in FIDS]


STEPS = {
    "1": Step(
        convert_xp_csv.main,
        lambda f: [f / "csv", "--data-dir", f / "out"],
        lambda f: _shards(f / "out", "xp"),
    ),
    "4": Step(
        match_unwise_gaia.main,
        lambda f: ["--data-dir", f / "data", "--unwise-dir", f / "tiles", "--overwrite"],
        lambda f: _shards(f / "data", "unwise"),
    ),
    "5": Step(
        query_reddening_gaia.main,
        lambda f: ["--data-dir", f / "data", "--maps", "bh", "--output-dir", f / "out"],
        lambda f: _shards(f / "out", "reddening"),
    ),
    "7": Step(
        compile_training_data.main,
        lambda f: ["--data-dir", f / "data", "--stellar-params", f / "labels.h5",
                   "--output", f / "training_data.h5"],
        lambda f: [f / "training_data.h5"],
    ),
    "9": Step(
        gen_xp_input_allsources.main,
        lambda f: ["--data-dir", f / "data"],
        lambda f: _shards(f / "data", "opt_input"),
    ),
}  # fmt: skip


def in_process(work) -> int:
    """Begin `work()` in a process of its own, which says nothing; its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 99
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        status = work() or 0
    finally:
        os._exit(status)


def status_of(pid) -> int:
    """Exit status of a process, negative where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_step(step, folder) -> int:
    """Begin a step on a folder; the id of its process."""
    words = [str(word) for word in step.words(folder)]
    return in_process(lambda: step.main(words))


# ---- kills -----------------------------------------------------------------------------------


def datasets(path) -> dict:
    with ShardReader(path) as reader:
        reader.verify()
        return {name: reader.read(name) for name in reader.columns}


def same(left, right) -> bool:
    """Whether two tables are the same, but for how sums of floats were rounded."""
    if left.keys() != right.keys():
        return False
    for name, a in left.items():
        b = right[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if a.dtype.kind == "f":
            a, b = a.astype("f8"), b.astype("f8")
            if not np.allclose(a, b, rtol=SAME, atol=1e-30, equal_nan=True):
                return False
        elif not np.array_equal(a, b):
            return False
    return True


def temporaries(folder) -> list:
    return [path for path in folder.rglob(".*") if path.name.endswith(".part")]


class Killing:
    """Steps that are killed. base: folder of `make_base`; rng: `random.Random`."""

    def __init__(self, base, rng, work):
        self.base, self.rng, self.work = base, rng, work
        provenance("", [], [])  # what it looks up once, for all processes to come
        self.whole, self.seconds = {}, {}
        for name, step in STEPS.items():
            folder = shutil.copytree(base, work / f"whole{name}")
            began = time.monotonic()
            if status_of(run_step(step, folder)):
                raise RuntimeError(f"step {name} fails undisturbed")
            self.seconds[name] = time.monotonic() - began
            self.whole[name] = [datasets(path) for path in step.outputs(folder)]

    def once(self) -> list[str]:
        """What went wrong with one step that is ended up to three times; [] where nothing did."""
        name = self.rng.choice(list(STEPS))
        step, folder = STEPS[name], self.work / "killed"
        shutil.copytree(self.base, folder)
        try:
            found = []
            for _ in range(self.rng.randint(1, 3)):
                found += self._end(name, step, folder)
            status = status_of(run_step(step, folder))
            if status:
                return [*found, f"step {name}: ends with {status} when run again"]
            for path, whole in zip(step.outputs(folder), self.whole[name], strict=True):
                if not same(datasets(path), whole):
                    found.append(f"step {name}: {path.name} is another than undisturbed")
            return found + [f"step {name}: left {path.name}" for path in temporaries(folder)]
        finally:
            shutil.rmtree(folder)

    def _end(self, name, step, folder):
        number = self.rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
        former = [path.read_bytes() if path.exists() else None for path in step.outputs(folder)]
        pid = run_step(step, folder)
        time.sleep(self.rng.uniform(0, 1.1 * self.seconds[name]))
        os.kill(pid, number)
        status = status_of(pid)
        if status not in (0, -number, 128 + number):
            yield f"step {name}: {number.name} ended it with {status}"
        if number == signal.SIGTERM and status != -number and temporaries(folder):
            dead = [path.name for path in temporaries(folder) if f"-{pid}." in path.name]
            yield from (f"step {name}: SIGTERM left {name_}" for name_ in dead)
        for path, content in zip(step.outputs(folder), former, strict=True):
            there = path.exists()
            if content is not None and not there:
                yield f"step {name}: {path.name} was lost"
            if there and output_state(path, deep=True).status is Status.PARTIAL:
                yield f"step {name}: {path.name} is not whole"


# ---- damage ----------------------------------------------------------------------------------


def read_shard(kind):
    """A reader of a shard's datasets, as the steps do it."""

    def read(path):
        data_dir = path.parents[1]
        fid = path.stem[-13:]
        with open_shard(data_dir, kind, fid, DR3) as reader:
            reader.check(resolved(kind, Layout(DR3)))
            ids = reader.source_id()
            return {name: reader.read(name) for name in reader.columns} | {"ids": ids}

    return read


def read_set(path):
    data = read_training_data(path, DR3)
    return data.rows(np.arange(len(data.ids))) | {"ids": data.ids}


def read_state(path):
    """As the check of a finished output does, and then the steps."""
    state = output_state(path, deep=True)
    if state.status is Status.PARTIAL:
        raise ShardError(state.reason)
    return datasets(path)


def read_csv(path):
    """What step 1 makes of it, which fails by its exit status and its summary."""
    with tempfile.TemporaryDirectory() as folder:
        status = convert_xp_csv.main([str(path), "--data-dir", folder])
        if status:
            raise ShardError(f"{path}: status {status}")
        (fid,) = list_fids(folder, "xp")
        return datasets(shard_path(folder, "xp", fid))


def read_labels(path):
    return read_columns(path, ["gdr3_source_id", "params_est", "params_err"], DR3).columns


TILE = match_unwise_gaia.catalogue_datasets(DR3)
# {kind of file: (where it is, how it is read, whether other numbers are always noticed)}
FILES = {kind: (lambda f, k=kind: shard_path(f / "data", k, FIDS[0]), read_shard(kind), True)
         for kind in ("xp", "metadata", "tmass", "unwise", "reddening", "opt_input")} | {
    "training set": (lambda f: f / "training_data.h5", read_set, True),
    "finished shard": (lambda f: shard_path(f / "data", "opt_input", FIDS[1]), read_state, True),
    "model": (lambda f: f / "model.h5", lambda path: read_arrays(path)[0], True),
    "bulk file": (lambda f: f / "csv" / f"XpContinuousMeanSpectrum_{FIDS[0]}.csv.gz", read_csv,
                  True),
    "labels": (lambda f: f / "labels.h5", read_labels, False),
    "foreign spectra": (lambda f: shard_path(f / "foreign", "xp", FIDS[0]), read_shard("xp"),
                        False),
    "tile": (lambda f: next(iter(sorted((f / "tiles").glob("*.fits")))),
             lambda path: read_tile(path, TILE).columns, False),
}  # fmt: skip


def damage(content: bytes, rng) -> bytes:
    """A file's content, damaged in some way."""
    content, size = bytearray(content), len(content)
    way = rng.choice(["bits", "bits", "bits", "head", "cut", "zeros", "exchanged"])
    if way == "cut":
        return bytes(content[: rng.randrange(size)])
    length = min(size // 3, 1 << rng.randrange(3, 13))
    if way == "zeros":
        start = rng.randrange(size - length)
        content[start : start + length] = bytes(length)
    elif way == "exchanged":
        a, b = rng.randrange(size - length), rng.randrange(size - length)
        one, other = content[a : a + length], content[b : b + length]
        content[a : a + length], content[b : b + length] = other, one
    else:
        reach = min(size, 4096) if way == "head" else size
        for _ in range(rng.choice([1, 1, 1, 2, 8])):
            content[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    return bytes(content)


class Damaging:
    """Files that are damaged. folder: of `make_base`, with training set and inputs of step 10."""

    def __init__(self, folder, seed):
        self.seed = seed
        self.files = {name: (where(folder), *how) for name, (where, *how) in FILES.items()}
        self.content = {name: path.read_bytes() for name, (path, *_) in self.files.items()}
        self.whole = {name: read(path) for name, (path, read, _) in self.files.items()}

    def verdict(self, turn) -> str:
        """What reading the damaged file of a turn gives: "refused", "same", "unnoticed" (where that
        cannot be told), or what is wrong."""
        rng = random.Random(f"{self.seed}-{turn}")
        name = rng.choice(list(self.files))
        path, read, noticed = self.files[name]
        path.write_bytes(damage(self.content[name], rng))
        signal.alarm(LONGEST)  # HDF5 hangs on some damage, where nobody can interrupt it
        try:
            found = read(path)
        except ShardError as error:
            named = path.name in str(error) and "\n" not in str(error)
            return "refused" if named else f"{name}: an error that does not name it: {error}"
        except BaseException as error:
            return f"{name}: {error!r}"
        finally:
            signal.alarm(0)
            path.write_bytes(self.content[name])
        if same(found, self.whole[name]):
            return "same"
        return f"{name}: other numbers" if noticed else "unnoticed"

    def batch(self, turns) -> Counter:
        """Verdicts of some turns, read in a process of its own."""
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "verdicts"

            def work():
                with open(report, "w") as file:
                    for turn in turns:
                        file.write(f"turn {turn} {self.verdict(turn)!r}\n")
                        file.flush()

            status = status_of(in_process(work))
            lines = report.read_text().splitlines()
        found = Counter()
        for line in lines:
            turn, verdict = line.split(" ", 2)[1:]
            good = verdict.strip("'") in ("refused", "same", "unnoticed")
            found[verdict.strip("'") if good else f"turn {turn}: {verdict}"] += 1
        if status or len(lines) < len(turns):
            found[f"the process ended with {status} at turn {turns[len(lines)]}"] += 1
            path = self.files
            for name, content in self.content.items():  # what it could not put back
                path[name][0].write_bytes(content)
            if len(lines) + 1 < len(turns):
                found += self.batch(turns[len(lines) + 1 :])
        return found


# ---- both ------------------------------------------------------------------------------------


def say_now(text):
    print(text, flush=True)


def torture(kills, damages, seed, say=say_now) -> list[str]:
    """What went wrong; [] where nothing did."""
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        base = make_base(work / "base")
        for name in ("7", "9") if damages else ():
            if status_of(run_step(STEPS[name], base)):
                raise RuntimeError(f"step {name} fails undisturbed")
        if damages:
            damaging, found = Damaging(base, seed), Counter()
            for start in range(0, damages, BATCH):
                found += damaging.batch(range(start, min(start + BATCH, damages)))
            good = {name: found.pop(name, 0) for name in ("refused", "same", "unnoticed")}
            say(f"{damages} damaged files: {good}; wrong: {sum(found.values())}")
            wrong += list(found)
            for name in ("7", "9"):
                for path in STEPS[name].outputs(base):
                    path.unlink()
        if kills:
            killing = Killing(base, random.Random(seed), work)
            bad = [fault for _ in range(kills) for fault in killing.once()]
            say(f"{kills} steps ended up to three times each: {len(bad)} faults")
            wrong += bad
    return wrong


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--damage", type=int, default=500, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = parse_args(argv)
    wrong = torture(args.kills, args.damage, args.seed)
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
