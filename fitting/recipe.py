"""How a training goes: the recipe, its stages, and the check of both before anything is trained.

A recipe is a TOML file whose keys are the fields of `Recipe` and, a stage, those of its kind. So a
key more is a field more here.
"""

import dataclasses
import math
import tomllib
import types
import typing
from dataclasses import dataclass, field

from pipeline.errors import UsageError

OWN_GROUPS = ("direct", "distance", "oddity")  # each trained by the stage of that kind alone
GROUPS = ("network", "extinction", "extinction_xi", "noise", "noise_level", *OWN_GROUPS)


def _number(least=0.0, most=float("inf"), **kwargs):
    """A field that must lie within limits."""
    return field(metadata={"least": least, "most": most}, **kwargs)


def _fraction(**kwargs):
    return _number(0.0, 1.0, **kwargs)


def _size(**kwargs):
    return _number(1, **kwargs)


@dataclass(frozen=True)
class Selection:
    """Which stars a stage trains on: those with label errors (stored units) up to max_err, of the
    labels named there that the stars have; parallax over error and E of at least so much."""

    max_err: dict = field(default_factory=dict)
    min_parallax_snr: float | None = _number(default=None)
    min_extinction: float | None = _number(default=None)


@dataclass(frozen=True)
class GradientStage:
    """A stage of gradient steps. train: groups of variables. max_epochs: fewer steps where the
    stars are few. hide_parallax: in the place of the recipe's."""

    name: str
    steps: int = _size()
    batch_size: int = _size()
    learning_rate: float = _number()
    train: tuple = field()
    max_epochs: int | None = _size(default=None)
    weight_decay: float = _number(default=0.0)
    hide_parallax: float | None = _fraction(default=None)
    select: Selection = field(default_factory=Selection)

    losses: typing.ClassVar[dict] = {}  # {loss: weight}

    def __post_init__(self):
        unknown = set(self.train) - set(GROUPS)
        if unknown or not self.train:
            raise ValueError(f"train is {list(self.train)}; known: {', '.join(GROUPS)}")
        own = [group for group in OWN_GROUPS if group in self.losses]
        if own != [group for group in OWN_GROUPS if group in self.train] or (
            own and self.train[1:]
        ):
            raise ValueError(
                f"train is {list(self.train)}; a stage of kind {', '.join(OWN_GROUPS)} trains what "
                "is called as it is, and no other stage does"
            )


class LikelihoodStage(GradientStage):
    """Maximises the likelihood of the fluxes given the labels."""

    losses: typing.ClassVar[dict] = {"likelihood": 1.0, "extinction_law": 0.01}


class PosteriorStage(GradientStage):
    """Maximises the posterior of the labels given the fluxes; the likelihood is an anchor, and
    the mean spectrum as what stars look like."""

    losses: typing.ClassVar[dict] = {
        "likelihood": 2.0,
        "posterior": 1.0,
        "spectrum": 1.0,
        "extinction_law": 0.01,
    }


class CalibrationStage(GradientStage):
    """The posterior loss of stars that nothing else is trained on."""

    losses: typing.ClassVar[dict] = {"posterior": 1.0}


class DirectStage(GradientStage):
    """Trains the networks of the direct estimate."""

    losses: typing.ClassVar[dict] = {"direct": 1.0}


class DistanceStage(GradientStage):
    """Trains the networks that tell the distance from the fluxes alone."""

    losses: typing.ClassVar[dict] = {"distance": 1.0}


class OddityStage(GradientStage):
    """Trains the networks that tell blends, and what is no star of ours, from ordinary stars."""

    losses: typing.ClassVar[dict] = {"oddity": 1.0}


@dataclass(frozen=True)
class StarsStage:
    """Fits stars' own parameters, and rejects outliers among them."""

    name: str
    reject_sigma: float = _number()
    reject_chi2_factor: float = _number()


STAGES = {
    "likelihood": LikelihoodStage,
    "posterior": PosteriorStage,
    "calibration": CalibrationStage,
    "direct": DirectStage,
    "distance": DistanceStage,
    "oddity": OddityStage,
    "stars": StarsStage,
}


@dataclass(frozen=True)
class Recipe:
    """All choices of a training; recipe.toml has words about each."""

    seed: int = _number()
    validation_fraction: float = _fraction()
    calibration_fraction: float = _fraction()
    validation_stars: int = _size()
    calibration_stars: int = _size()
    fitted_stars: int = _size()
    hidden: int = _size()
    noise_hidden: int = _size()
    prior_components: int = _size()
    direct_networks: int = _size()
    direct_hidden: tuple = field()
    screen_networks: int = _size()
    screen_hidden: tuple = field()
    candidates: int = _number(2)
    simulated_stars: int = _size()
    hide_parallax: float = _fraction()
    hide_photometry: float = _fraction()
    hide_bp: float = _fraction()
    hide_rp: float = _fraction()
    faint_share: float = _fraction()
    faint_g: tuple = field()
    blur_parallax: float = _fraction()
    rare_type_weight_cap: float = _number()
    stages: tuple = field()

    def __post_init__(self):
        for name in ("direct_hidden", "screen_hidden"):
            sizes = getattr(self, name)
            if not sizes or any(not _is(int, n) or n < 1 for n in sizes):
                raise ValueError(f"{name} is {list(sizes)}: give sizes of layers")
        limits = self.faint_g
        if (
            len(limits) != 2
            or not all(_is(float, g) and math.isfinite(g) for g in limits)
            or (not limits[0] < limits[1])
        ):
            raise ValueError(f"faint_g is {list(self.faint_g)}: give the brightest and faintest G")
        if not self.stages:
            raise ValueError("stages: at least one is expected")

    def of_kind(self, *kinds):
        """The stages of some kinds (keys of STAGES)."""
        return [s for s in self.stages if isinstance(s, tuple(STAGES[kind] for kind in kinds))]


def read_recipe(path) -> Recipe:
    """The recipe in a file. UsageError where it cannot be read, or could not be trained by: that is
    said now rather than hours later, when training meets the mistake."""
    try:
        return make_recipe(tomllib.loads(path.read_text()))
    except (OSError, TypeError, ValueError) as error:
        hint = "; recipes are TOML files, as recipe.toml" if path.suffix != ".toml" else ""
        raise UsageError(f"{path}: not a usable recipe ({error}){hint}") from error


def make_recipe(table) -> Recipe:
    """The recipe of a dict as TOML gives it. Raises ValueError where a key is unknown or missing,
    or a value out of range."""
    stages = table.get("stages", ())
    if not isinstance(stages, list | tuple):
        raise ValueError(f"stages is {stages!r}: a list is expected ([[stages]])")
    return _build(Recipe, "the recipe", table | {"stages": tuple(map(make_stage, stages))})


def make_stage(table):
    """The stage of a dict; ValueError where it is not one that can be run."""
    kind = table.get("kind") if isinstance(table, dict) else table
    if not isinstance(kind, str) or kind not in STAGES:
        raise ValueError(f"a stage of kind {kind!r}; known: {', '.join(STAGES)}")
    where = f"stage {table.get('name')}"
    fields = {key: value for key, value in table.items() if key != "kind"}
    if isinstance(fields.get("select"), dict):
        fields["select"] = _build(Selection, f"{where}, select", fields["select"])
        for name, most in fields["select"].max_err.items():
            if not _is(float, most) or not most > 0:
                raise ValueError(f"{where}, select: max_err of {name} is {most!r}")
    return _build(STAGES[kind], where, fields)


def _build(cls, where, table):
    """An instance of a dataclass from a dict, its keys, types and limits checked."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    needed = {
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    wrong = (set(table) - set(fields)) | (needed - set(table))
    if wrong:
        raise ValueError(f"{where}: unknown or missing: {', '.join(sorted(wrong))}")
    values = {name: _checked(where, fields[name], value) for name, value in table.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _is(kind, value) -> bool:
    """Whether a value is of a type, an int being a float as well, and a bool neither."""
    return not isinstance(value, bool) and isinstance(
        value, (int, float) if kind is float else kind
    )


def _checked(where, one, value):
    """A value of a field, lists as tuples; ValueError where it is of another type or size."""
    kind = one.type.__args__[0] if isinstance(one.type, types.UnionType) else one.type
    if kind is tuple and isinstance(value, list):
        value = tuple(value)
    if not _is(kind, value):
        raise ValueError(f"{where}: {one.name} is {value!r}; {kind.__name__} is expected")
    least, most = one.metadata.get("least"), one.metadata.get("most")
    if least is not None and not least <= value <= most:
        raise ValueError(
            f"{where}: {one.name} is {value!r}; a number from {least:g} to {most:g} is expected"
        )
    if least is not None and value == float("inf"):
        raise ValueError(f"{where}: {one.name} is infinite")
    return value
