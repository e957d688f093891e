"""What the steps cost, as tables/costs.toml says."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).resolve().parents[2] / "tables" / "costs.toml"


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


COSTS = {script: Cost(**one) for script, one in tomllib.loads(TABLE.read_text()).items()}
