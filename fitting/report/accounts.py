"""What became of every shard and of the stars in it, by step."""

from collections import Counter
from dataclasses import dataclass, field

from fitting.report.census import OUTPUT
from pipeline.index import index, scan
from pipeline.schema import FILES, KINDS
from pipeline.states import Shard, find_states

SOURCES = ("xp", "opt_input")  # what has all stars, the better one first
NUMBERS = {"xp": "1", "metadata": "2", "tmass": "3", "unwise": "4", "reddening": "5",
           "opt_input": "9", OUTPUT: "10"}  # fmt: skip


@dataclass
class Left:
    """A shard whose stars are not, or not as they should be, in the catalogue: state in words;
    stars that it should have, None where that is not known."""

    fid: str
    state: str
    reason: str
    stars: int | None


@dataclass
class Accounts:
    """steps {kind: `Step`} of those that have files, and of step 10; source: the kind whose stars
    are all that should be in the catalogue, rows {fid: stars} of it; left: shards of step 10 that
    are not complete."""

    steps: dict
    source: str | None = None
    rows: dict = field(default_factory=dict)
    left: list = field(default_factory=list)

    @property
    def stars(self) -> int:
        """That should be in the catalogue."""
        return sum(self.rows.values())

    @property
    def shards(self) -> int:
        """Of step 10, in all."""
        return len(self.steps[OUTPUT].states)

    @property
    def states(self) -> dict:
        """{state in words: shards of step 10 in it}, of those that some are in."""
        left = Counter(one.state for one in self.left)
        return {Shard.COMPLETE.value: self.shards - len(self.left)} | dict(sorted(left.items()))

    def lost(self, counted) -> list:
        """[`Left`] whose stars are not among the shards {fid: stars} counted."""
        return [one for one in self.left if one.fid not in counted]


def take_account(data_dir, model=None) -> Accounts:
    """`Accounts` of a data directory; model: folder of the training."""
    folders = {kind: scan(data_dir, kind) for kind in KINDS}
    there = [kind for kind, folder in folders.items() if folder.files]
    states = find_states(data_dir, list(dict.fromkeys([*there, OUTPUT])), model)
    source = next((kind for kind in SOURCES if kind in there), None)
    out = Accounts({kind: states[kind] for kind in NUMBERS if kind in states}, source)
    found = index(data_dir, {kind: folders[kind] for kind in KINDS})
    if source is not None:
        out.rows = {fid: file.rows for fid, file in found[source].items()}
    for fid in states[OUTPUT].left():
        state, reason = states[OUTPUT].states[fid]
        out.left.append(Left(fid, state.value, reason, out.rows.get(fid)))
    return out


def add_left(accounts, failed):
    """Put shards that are not counted, {fid: (state, reason)}, among those that are left."""
    known = {one.fid: one for one in accounts.left}
    for fid, (state, reason) in failed.items():
        if fid not in known or known[fid].state == Shard.STALE.value:
            known[fid] = Left(fid, state, reason, accounts.rows.get(fid))
    accounts.left = list(known.values())
    accounts.left.sort(key=lambda one: one.fid)


def title_of(kind) -> str:
    """A step in words."""
    return FILES[kind].title
