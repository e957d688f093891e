"""What the steps cost (tables/costs.toml), and the whole sky (tables/whole_sky.toml)."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

TABLES = Path(__file__).resolve().parents[2] / "tables"


@dataclass(frozen=True)
class Cost:
    """Size of the output, time and memory of a step, in words; the command that measures them."""

    size: str
    time: str
    memory: str
    measured_by: str = ""

    def words(self) -> str:
        """As lines of text."""
        return f"size: {self.size}\ntime, one core: {self.time}\nmemory: {self.memory}"


def _table(name):
    return tomllib.loads((TABLES / name).read_text())


COSTS = {script: Cost(**one) for script, one in _table("costs.toml").items()}
# {step: {what: number}}, as benchmarks/bench_sky.py measured it, and the core's sgemm_gflops.
WHOLE_SKY = _table("whole_sky.toml")
