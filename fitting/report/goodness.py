"""How good a model is, from its validation stars, which the training never saw."""

import itertools
import json
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from fitting.accuracy import accuracy
from fitting.catalogue import label_estimates
from fitting.confidence import is_right
from fitting.report.census import GOOD_BELOW
from pipeline.errors import ShardError
from pipeline.read import ShardReader, check_whole
from pipeline.schema import FILES, LabelSet, Layout, flags, resolved

BINS = (0.0, 0.5, 0.8, 0.9, 0.95, 1.0)  # of confidences


@dataclass(frozen=True)
class Bin:
    """Stars whose confidence in a label lies between low and high: n, its mean, and the share of
    them that are right."""

    low: float
    high: float
    n: int
    mean: float
    right: float


@dataclass
class Goodness:
    """groups {words: (n, {label: `accuracy.scores`})}; stars, finite: how many, and with
    parameters; bins {label: [Bin]}; quality {name of a flag: stars}; held_out: stars that were
    never trained on, of which these are some."""

    labels: LabelSet
    stars: int
    finite: int
    groups: dict
    bins: dict
    quality: dict = field(default_factory=dict)
    held_out: int | None = None

    @property
    def all(self) -> dict:
        """{label: scores} of all validation stars."""
        return self.groups["all"][1]


def read_goodness(folder, release) -> Goodness:
    """`Goodness` of validation.h5 in the folder of a model; ShardError where it cannot be used."""
    path = folder / "validation.h5"
    if not path.is_file():
        raise ShardError(f"no {path.name} in {folder}")
    check_whole(path)
    with ShardReader(path) as reader:
        if reader.attrs.get("format", 1) != FILES["validation"].format:
            raise ShardError(f"{path}: made by another version of train.py; train again")
        try:
            labels = LabelSet.from_json(reader.attributes("stellar_type")["labels"])
        except (KeyError, TypeError, ValueError) as error:
            raise ShardError(f"{path}: does not say what its labels are ({error})") from error
        names = [n for n in resolved("validation", Layout(release, labels)) if "triu" not in n]
        table = reader.read_table(names)
    out = judge(table, labels)
    with suppress(OSError, ValueError, TypeError, KeyError):
        out.held_out = int(json.loads((folder / "validation.json").read_text())["held_out"])
    return out


def judge(table, labels) -> Goodness:
    """`Goodness` of the columns of validation stars {name: (N, ...)}."""
    truth = table["stellar_type"], table["stellar_type_err"]
    est, err = label_estimates(table, labels)
    found = accuracy(est, err, *truth, labels)
    alone = accuracy(*label_estimates(table, labels, "model"), *truth, labels)
    good = table["quality_flags"] < GOOD_BELOW
    unflagged = accuracy(*(x[good] for x in (est, err, *truth)), labels)
    groups = {name: of for name, of in found.items() if isinstance(of, dict)}
    groups |= {f"quality_flags < {GOOD_BELOW}": unflagged["all"]}
    groups |= {"all, the forward model alone": alone["all"]}
    groups = {name: (of["n"], {k: s for k, s in of.items() if k != "n"})
              for name, of in groups.items() if of["n"]}  # fmt: skip
    groups.setdefault("all", (0, {}))
    right = is_right(est, err, *truth, labels)
    return Goodness(
        labels, found["stars"], found["finite"], groups,
        {x.name: list(bins_of(table[f"{x.name}_confidence"], right[:, k]))
         for k, x in enumerate(labels)},
        flags.counts(flags.quality_flag(labels), table["quality_flags"]),
    )  # fmt: skip


def bins_of(confidence, right):
    """Yield the `Bin`s that have stars; confidence (N,), right (N,) bool."""
    for low, high in itertools.pairwise(BINS):
        rows = (confidence >= low) & ((confidence < high) | (high == 1.0) & (confidence <= 1.0))
        if rows.any():
            n = int(np.count_nonzero(rows))
            yield Bin(low, high, n, float(confidence[rows].mean(dtype="f8")), right[rows].mean())
