"""What the steps cost (tables/costs.toml), and the whole sky (tables/whole_sky.toml)."""

import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path

TABLES = Path(__file__).resolve().parents[2] / "tables"


@dataclass(frozen=True)
class Cost:
    """The usual command of a step (without "python"); size of its output, time and memory, in
    words; the command that measures them.

    sky: its entry in WHOLE_SKY; numbers: of `Rate`, where that has others or none.
    """

    command: str
    size: str
    time: str
    memory: str
    measured_by: str = ""
    sky: str = ""
    numbers: dict = field(default_factory=dict)

    def words(self) -> str:
        """As lines of text."""
        return f"size: {self.size}\ntime, one core: {self.time}\nmemory: {self.memory}"


def _table(name):
    return tomllib.loads((TABLES / name).read_text())


COSTS = {script: Cost(**one) for script, one in _table("costs.toml").items()}
# {step: {what: number}}, as benchmarks/bench_sky.py measured it, and the core's sgemm_gflops.
WHOLE_SKY = _table("whole_sky.toml")


@dataclass(frozen=True)
class Rate:
    """What a step costs in numbers, on one core: seconds before the first star, for each shard, and
    microseconds a star; kB a star on disk; memory of a process in GB."""

    star_us: float
    memory_gb: float
    start_s: float = 0.0
    shard_s: float = 0.0
    star_kb: float = 0.0

    def seconds(self, n_stars, n_shards) -> float:
        """Time of a process for so many."""
        return self.start_s + n_shards * self.shard_s + n_stars * self.star_us / 1e6


def rate_of(script) -> Rate:
    """The `Rate` of a step (a key of COSTS), as measured."""
    cost = COSTS[script]
    known = WHOLE_SKY.get(cost.sky, {}) | cost.numbers
    return Rate(**{one.name: known[one.name] for one in fields(Rate) if one.name in known})
