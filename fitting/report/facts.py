"""What was run: commands, versions, models, inputs, as the files themselves say."""

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fitting.report.words import count, plural
from pipeline.errors import ShardError
from pipeline.provenance import identity
from pipeline.read import HDF5_ERRORS, ShardReader, read_arrays
from pipeline.schema import MODEL_FILE, LabelSet

CARD = "README.md"  # of a model that is handed on
MOST_CARD = 20_000  # characters of it
MOST_SHORT = 12  # digits of an identity that are shown at first sight
MOST_SAID = 3  # different values of an attribute that are shown
STARTER = Path(__file__).resolve().parents[2] / "models" / "starter" / MODEL_FILE


@dataclass
class ModelFacts:
    """What a model's file says: attributes; labels (`LabelSet` or None), parallax_scale in words,
    identity; history of its training; card: its README, where it has one."""

    folder: Path
    attrs: dict
    labels: LabelSet | None
    parallax_scale: str
    identity: str
    history: list = field(default_factory=list)
    card: str = ""

    @property
    def inputs(self) -> list:
        """Entries {"name", "identity", "size"} of what it was trained on."""
        return entries(self.attrs)


def entries(attrs) -> list:
    """Inputs that attributes name."""
    with suppress(ValueError, TypeError):
        found = json.loads(attrs.get("inputs", "[]"))
        return [one for one in found if isinstance(one, dict)]
    return []


def read_model(folder) -> ModelFacts:
    """`ModelFacts` of the output folder of train.py; ShardError where there is none."""
    folder = Path(folder)
    path = folder / MODEL_FILE
    if not path.is_file():
        raise ShardError(f"{path}: no trained model there; give --model the folder of train.py")
    arrays, attrs = read_arrays(path)
    return ModelFacts(
        folder, attrs, _labels(arrays), _text(arrays, "parallax_scale"), identity(path),
        _history(folder), _card(folder),
    )  # fmt: skip


def _text(arrays, name) -> str:
    found = np.asarray(arrays.get(name, "")).reshape(-1)[:1].tolist()
    one = found[0] if found else ""
    return one.decode("utf-8", "replace") if isinstance(one, bytes) else str(one)


def _labels(arrays):
    with suppress(KeyError, TypeError, ValueError):
        return LabelSet.from_json(_text(arrays, "labels"))
    return None


def _history(folder) -> list:
    with suppress(OSError, ValueError):
        found = json.loads((folder / "history.json").read_text())
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    return []


def _card(folder) -> str:
    with suppress(OSError):
        return (folder / CARD).read_text(errors="replace")[:MOST_CARD]
    return ""


def is_starter(model_identity) -> bool:
    """Whether a model is the one that comes with the project."""
    return STARTER.is_file() and identity(STARTER) == model_identity


# ---- the training set ------------------------------------------------------------------------


def find_training_set(facts, folders) -> Path | None:
    """The training set of a model, if it lies in one of the folders as it was."""
    for entry in facts.inputs:
        for folder in folders:
            path = Path(folder) / str(entry.get("name"))
            if path.suffix == ".h5" and path.is_file() and identity(path) == entry.get("identity"):
                return path
    return None


def accounting_of(path) -> str:
    """What became of the labels, as step 7 says in the training set; "" where it does not."""
    with suppress(ShardError, *HDF5_ERRORS), ShardReader(path) as reader:
        return str(reader.attrs.get("accounting", ""))
    return ""


# ---- as terms and values ---------------------------------------------------------------------


def packages(text) -> str:
    """Versions of packages, of the attribute."""
    with suppress(ValueError, TypeError, AttributeError):
        return ", ".join(f"{name} {version}" for name, version in json.loads(text).items())
    return str(text)


def of_model(facts) -> list:
    """[(term, values)] of a model."""
    attrs, labels = facts.attrs, facts.labels
    trained = [
        f"{one.get('name')} ({plural(one.get('size', 0), 'byte')}, {one.get('identity')})"
        for one in facts.inputs
    ]
    out = [
        ("command", [attrs.get("command_line")]),
        ("model id", [facts.identity]),
        ("code version", [attrs.get("version")]),
        ("time", [attrs.get("time")]),
        ("release", [attrs.get("release")]),
        ("labels", [labels.words if labels else None]),
        ("parallaxes of the training", [facts.parallax_scale or "Gaia's"]),
        ("trained on", trained),
        ("folder", [facts.folder]),
        ("packages", [packages(attrs.get("packages"))]),
    ]
    return known(out)


def of_catalogue(census, attrs_of_release, data_dir) -> list:
    """[(term, values)] of a catalogue, of what its shards say."""
    models = [f"{name} ({plural(n, 'shard')})" for name, n in census.models.most_common(MOST_SAID)]
    out = [
        ("commands", said(census, "command_line")),
        ("code version", said(census, "version")),
        ("time", [" to ".join(dict.fromkeys(census.times))]),
        ("release", [attrs_of_release]),
        ("model id", models),
        ("inputs", [", ".join(f"{name} ({count(n)})" for name, n in census.files.most_common(9))]),
        ("parallaxes", said(census, "parallaxes")),
        ("labels", [census.labels.words]),
        ("XP basis", said(census, "xp_basis")),
        ("data directory", [data_dir]),
        ("packages", [packages(one) for one in said(census, "packages")]),
    ]
    return known(out)


def said(census, name) -> list:
    """The values of an attribute that most shards have, and how many there are more."""
    values = census.said[name]
    out = [value for value, _ in values.most_common(MOST_SAID)]
    more = len(values) - len(out)
    return out + ([f"and {count(more)} more in other shards"] if more else [])


def known(pairs) -> list:
    """Pairs without those that have no value."""
    out = [(term, [str(v) for v in values if v not in (None, "", "None")])
           for term, values in pairs]  # fmt: skip
    return [(term, values) for term, values in out if values]


def short_id(model_identity) -> str:
    """The model id as it is shown at first sight."""
    return str(model_identity).removeprefix("content ")[:MOST_SHORT]
