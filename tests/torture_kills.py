"""Steps that are killed at random moments: for `torture.py`."""

import os
import shutil
import signal
import time
from collections import Counter

import numpy as np
from torture_steps import STEPS, begin, status_of

from pipeline.provenance import Status, output_state, provenance
from pipeline.read import ShardReader

SAME = 1e-5  # relative: sums of float32 may differ by the order that BLAS takes


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


def left_by_steps(folder) -> list:
    """What steps leave beside their outputs while they are at work."""
    ends = (".part", ".lease", ".jobs.json")
    return [path for path in folder.rglob(".*") if path.name.endswith(ends)]


class Killing:
    """Steps that are killed. base: folder of `make_base`; rng: `random.Random`; work: a folder."""

    def __init__(self, base, rng, work, names):
        self.base, self.rng, self.work, self.names = base, rng, work, list(names)
        provenance("", [], [])  # what it looks up once, for all processes to come
        self.whole, self.seconds = {}, {}
        self.kills, self.struck = Counter(), Counter()  # by step; of them, while it was at work
        for name in self.names:
            step, folder = STEPS[name], self._copy(name, f"whole{name}")
            began = time.monotonic()
            if status_of(begin(step, folder)):
                raise RuntimeError(f"step {name} fails undisturbed")
            self.seconds[name] = time.monotonic() - began
            self.whole[name] = [datasets(path) for path in step.outputs(folder)]

    def _copy(self, name, to):
        """Inputs of a step, which no step changes in their place."""
        home = self.base / STEPS[name].home
        return shutil.copytree(home, self.work / to, copy_function=os.link)

    def once(self) -> list[str]:
        """What went wrong with one step that is ended up to three times; [] where nothing did."""
        shares = [STEPS[name].share for name in self.names]
        (name,) = self.rng.choices(self.names, shares)
        step, folder = STEPS[name], self._copy(name, "killed")
        try:
            found = []
            for _ in range(self.rng.randint(1, 3)):
                found += self._end(name, step, folder)
            status = status_of(begin(step, folder))
            if status:
                return [*found, f"step {name}: ends with {status} when run again"]
            for path, whole in zip(step.outputs(folder), self.whole[name], strict=True):
                if not same(datasets(path), whole):
                    found.append(f"step {name}: {path.name} is another than undisturbed")
            return found + [f"step {name}: left {path.name}" for path in left_by_steps(folder)]
        finally:
            shutil.rmtree(folder)

    def _end(self, name, step, folder):
        number = self.rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
        former = [path.read_bytes() if path.exists() else None for path in step.outputs(folder)]
        pid = begin(step, folder)
        time.sleep(self.rng.uniform(0, 1.1 * self.seconds[name]))
        os.kill(pid, number)
        status = status_of(pid)
        self.kills[name] += 1
        self.struck[name] += status != 0
        if status not in (0, -number, 128 + number):
            yield f"step {name}: {number.name} ended it with {status}"
        if number == signal.SIGTERM and status == 128 + number:
            dead = [path.name for path in left_by_steps(folder) if f"-{pid}." in path.name]
            yield from (f"step {name}: SIGTERM left {name_}" for name_ in dead)
        for path, content in zip(step.outputs(folder), former, strict=True):
            there = path.exists()
            if content is not None and not there:
                yield f"step {name}: {path.name} was lost"
            if there and output_state(path, deep=True).status is Status.PARTIAL:
                yield f"step {name}: {path.name} is not whole"
