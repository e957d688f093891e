"""Labels and parameters: what a star's type is made of, and what is inferred beside it.

A label is data: the training table names its labels, and everything after follows from that. The
parameters of a star are its labels, then xi, E, parallax: the order of Zhang & Green (2025).
"""

import dataclasses
import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np

MIN_LABELS = 2


@dataclass(frozen=True)
class Label:
    """A label.

    name: of columns, as in `teff_confidence`. unit: as stored. scale: stored times scale is the
    number shown, in shown_unit. tolerance: an estimate within it of the truth is useful (stored
    unit); the confidences ask for that. default_err: for a label that comes without a valid error.
    width: of the candidates about the truth in the posterior stage, wide against the posterior and
    narrow against the prior; it grows as the label, relative to width_at, to the power width_power.
    possible: a value outside is no measurement. forward: it is a part of the forward model; else
    the direct estimate alone gives it.
    """

    name: str
    title: str
    unit: str
    tolerance: float
    scale: float = 1.0
    shown_unit: str = ""
    symbol: str = ""
    ucd: str = ""
    digits: int = 3
    default_err: float = 0.0
    width: float = 0.0
    width_at: float = 1.0
    width_power: float = 0.0
    possible: tuple = (-np.inf, np.inf)
    forward: bool = True

    def __post_init__(self):
        defaults = {
            "shown_unit": self.unit,
            "symbol": self.title,
            "default_err": 0.5 * self.tolerance,
            "width": 0.5 * self.tolerance,
        }
        for name, value in defaults.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)
        object.__setattr__(self, "possible", tuple(self.possible))


TEFF = Label(
    name="teff",
    title="Teff",
    unit="kK",
    tolerance=0.25,
    scale=1000.0,
    shown_unit="K",
    symbol=r"$T_\mathrm{eff}$",
    ucd="phys.temperature.effective",
    digits=0,
    default_err=0.15,
    width=0.084,
    width_at=4.8,
    width_power=3.0,
    possible=(1.0, 100.0),
)
FEH = Label(
    name="feh",
    title="[Fe/H]",
    unit="dex",
    tolerance=0.3,
    ucd="phys.abund.Fe",
    default_err=0.15,
    width=0.15,
    possible=(-8.0, 2.0),
)
LOGG = Label(
    name="logg",
    title="log g",
    unit="dex",
    tolerance=0.4,
    symbol=r"$\log\,g$",
    ucd="phys.gravity",
    default_err=0.25,
    width=0.2,
    possible=(-2.0, 10.0),
)
ALPHA_M = Label(
    name="alpha_m",
    title="[alpha/M]",
    unit="dex",
    tolerance=0.1,
    symbol=r"[$\alpha$/M]",
    ucd="phys.abund",
    default_err=0.05,
    width=0.06,
    possible=(-1.0, 2.0),
)
KNOWN_LABELS = {label.name: label for label in (TEFF, FEH, LOGG, ALPHA_M)}


@dataclass(frozen=True)
class Parameter:
    """A parameter of a star: name (in the attribute `parameters`), title, unit, UCD, text; scale,
    shown_unit, symbol: as of a `Label`, shown_unit None for the unit itself."""

    name: str
    title: str
    unit: str
    ucd: str = ""
    text: str = ""
    scale: float = 1.0
    shown_unit: str | None = None
    symbol: str = ""

    def __post_init__(self):
        if self.shown_unit is None:
            object.__setattr__(self, "shown_unit", self.unit)
        if not self.symbol:
            object.__setattr__(self, "symbol", self.title)


XI = Parameter(
    "xi",
    "xi",
    "",
    text="shape of the extinction curve; little but its prior below E = 0.3",
    symbol=r"$\xi$",
)
EXTINCTION = Parameter(
    "E",
    "E",
    "units of the training set's reddening",
    "phys.absorption",
    "amount of dust in front of the star",
    shown_unit="",  # too long for an axis
    symbol="$E$",
)
PARALLAX = Parameter("parallax", "parallax", "mas", "pos.parallax", "zero point corrected")
BESIDE_LABELS = (XI, EXTINCTION, PARALLAX)


@dataclass(frozen=True)
class LabelSet:
    """The K labels of a training set, in the order of its columns.

    Raises ValueError where there are too few, or two of one name.
    """

    labels: tuple

    def __post_init__(self):
        object.__setattr__(self, "labels", tuple(self.labels))
        names = [label.name for label in self.labels]
        if len(set(names)) < len(names):
            raise ValueError(f"the labels are {', '.join(names)}: two have the same name")
        if sum(label.forward for label in self.labels) < MIN_LABELS:
            raise ValueError(
                f"the labels are {', '.join(names) or 'none'}: at least {MIN_LABELS} that are part "
                "of the forward model are needed"
            )

    def __len__(self):
        return len(self.labels)

    def __iter__(self):
        return iter(self.labels)

    def array(self, field) -> np.ndarray:
        """(K,) values of a field of `Label`, float64."""
        return np.array([getattr(label, field) for label in self.labels], float)

    def texts(self, field) -> list[str]:
        """K values of a text field of `Label`."""
        return [getattr(label, field) for label in self.labels]

    @cached_property
    def place(self) -> dict:
        """{name: column} of the labels."""
        return {label.name: k for k, label in enumerate(self.labels)}

    @cached_property
    def forward(self) -> "LabelSet":
        """Those that are part of the forward model."""
        return LabelSet(label for label in self.labels if label.forward)

    @property
    def parameters(self) -> tuple:
        """The parameters of a star: the forward model's labels, xi, E, parallax."""
        named = (
            Parameter(
                x.name,
                x.title,
                x.unit,
                x.ucd,
                scale=x.scale,
                shown_unit=x.shown_unit,
                symbol=x.symbol,
            )
            for x in self.forward
        )
        return (*named, *BESIDE_LABELS)

    @property
    def words(self) -> str:
        """The labels with their units, for texts."""
        return _in_words(self.labels)

    @property
    def parameter_words(self) -> str:
        """The parameters with their units, for texts."""
        return _in_words(self.parameters)

    def to_json(self) -> str:
        """All that defines the labels, as text; `from_json` restores it."""
        return json.dumps([dataclasses.asdict(label) for label in self.labels])

    @classmethod
    def from_json(cls, text) -> "LabelSet":
        """The labels that `to_json` described. ValueError where it is no such text."""
        try:
            return cls(Label(**fields) for fields in json.loads(text))
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"not a description of labels ({error})") from error


def _in_words(named):
    return ", ".join(f"{x.title} ({x.unit})" if x.unit else x.title for x in named)


DEFAULT_LABELS = LabelSet((TEFF, FEH, LOGG))
LABEL_GRAMMAR = (
    f"a known label ({', '.join(KNOWN_LABELS)}) or NAME:UNIT:SCALE:TOLERANCE, with the factor from "
    "the unit to the one shown and the error within which an estimate is useful; with :direct at "
    "its end, a label that the direct estimate alone gives"
)


def parse_label(text) -> Label:
    """The label of a word of --labels (LABEL_GRAMMAR). Raises ValueError where it is none."""
    name, *fields = text.split(":")
    direct = fields[-1:] == ["direct"]
    fields = fields[:-1] if direct else fields
    if not fields:
        return described_label(name, forward=not direct)
    if not name.isidentifier() or len(fields) != 3:
        raise ValueError(f"label {text!r}: expected {LABEL_GRAMMAR}")
    unit, scale, tolerance = fields
    return described_label(name, unit, float(scale), float(tolerance), forward=not direct)


def described_label(name, unit=None, scale=None, tolerance=None, forward=True) -> Label:
    """A label of a table: what is given, over what is known of a label of this name.

    Raises ValueError where the name is not known and its unit or tolerance is missing, where a
    known label has another unit than the known one, or scale or tolerance is not positive.
    """
    known = KNOWN_LABELS.get(name)
    given = {"unit": unit, "scale": scale, "tolerance": tolerance}
    given = {key: value for key, value in given.items() if value is not None}
    if known is None and {"unit", "tolerance"} - given.keys():
        raise ValueError(f"label {name!r} is not known, so more is needed: {LABEL_GRAMMAR}")
    for key in ("scale", "tolerance"):
        if key in given and not given[key] > 0:
            raise ValueError(f"label {name!r}: {key} is {given[key]}, expected more than 0")
    if known is None:
        return Label(name, name, forward=forward, **given)
    if given.pop("unit", known.unit) != known.unit:
        raise ValueError(f"label {name!r} is in {unit}, expected {known.unit}: convert it")
    return dataclasses.replace(known, forward=forward, **given)
