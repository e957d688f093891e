"""Files that are damaged at random, and what reading them gives: for `torture.py`."""

import random
import signal
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from helpers import DR3
from torture_kills import datasets, same
from torture_steps import FIDS, in_process, status_of

import match_unwise_gaia
from fitting.training_set import read_training_data
from pipeline.errors import ShardError
from pipeline.label_tables import read_columns
from pipeline.provenance import Status, output_state
from pipeline.read import open_shard, read_arrays
from pipeline.schema import Layout, resolved
from pipeline.select import list_fids, shard_path
from pipeline.unwise_tiles import read_tile
from tools import convert_xp_csv

LONGEST = 120  # s, to read a damaged file
BATCH = 50  # damaged files read in one process


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

    def __init__(self, folder, seed, names=()):
        self.seed = seed
        self.files = {
            name: (where(folder), *how)
            for name, (where, *how) in FILES.items()
            if not names or name in names
        }
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
