"""The trained model, whole: what step 10 needs of a training."""

from dataclasses import dataclass

import numpy as np

from fitting.logistic import Logistic
from fitting.posterior import ErrorModel
from fitting.stellar_model import StellarModel, text_of
from pipeline.schema import flags

MOST_HULL_LABELS = 4  # of more labels, a convex hull has too many faces: a box takes its place
INSIDE = 1e-6  # of the hull: rounding
# Of the fields of `ErrorModel`, in their order.
ERROR_ARRAYS = ("error_levels", "error_factors", "pool_weights", "type_factors")


@dataclass(frozen=True)
class TrainingRange:
    """Where the training stars are. faces (m, K + 1): of the convex hull of their types, points x
    inside have faces[:, :K] x + faces[:, K] <= 0. limits (2, 2): lowest and highest E and error
    level that training saw."""

    faces: np.ndarray
    limits: np.ndarray

    @classmethod
    def of_stars(cls, theta, ext, level):
        """The range of stars: theta (N, K), ext (N,), error level (N,) as the training saw them."""
        values = np.column_stack([ext, level])
        return cls(_faces(np.asarray(theta, "f8")), np.stack([values.min(0), values.max(0)]))

    def excludes(self, theta, ext, level):
        """Which stars are outside (N,) bool; arguments as in `of_stars`."""
        outside = (theta @ self.faces[:, :-1].T + self.faces[:, -1] > INSIDE).any(1)
        values = np.column_stack([ext, level])
        low, high = self.limits
        return outside | (values < low).any(1) | (values > high).any(1)


def _faces(theta):
    from scipy.spatial import ConvexHull

    n_labels = theta.shape[1]
    if n_labels <= MOST_HULL_LABELS:
        return ConvexHull(theta).equations
    one = np.eye(n_labels)
    high = np.column_stack([one, -theta.max(0)])
    return np.concatenate([high, np.column_stack([-one, theta.min(0)])])


@dataclass(frozen=True)
class Alarms:
    """Above what an ordinary star is rarely: |parallax_tension|, blend_ and strange_probability,
    chi^2 for each XP flux used."""

    tension: float
    blend: float
    strange: float
    chi2: float = flags.LEAST_CHI2

    def tense(self, tension):
        """Where a parallax is in tension with the fluxes (N,) bool."""
        with np.errstate(invalid="ignore"):
            return np.abs(tension) > self.tension


NO_ALARMS = Alarms(np.inf, np.inf, np.inf)


@dataclass(frozen=True)
class TrainedModel:
    """Model, error model, confidences, range of the training stars, and alarms.

    parallax_scale: what the parallaxes of the training were, in words, where they were not those of
    the stars that the model is meant for; parallaxes are then best left out.
    """

    stellar: StellarModel
    errors: ErrorModel
    confidence: Logistic
    range: TrainingRange
    alarms: Alarms = NO_ALARMS
    parallax_scale: str = ""

    def to_arrays(self):
        """All that defines it, as {name: array}."""
        return (
            self.stellar.to_arrays()
            | self.confidence.to_arrays("confidence")
            | dict(zip(ERROR_ARRAYS, vars(self.errors).values(), strict=True))
            | {
                "alarms": np.array(list(vars(self.alarms).values())),
                "range_faces": self.range.faces,
                "range_limits": self.range.limits,
                "parallax_scale": np.array(self.parallax_scale),
            }
        )

    @classmethod
    def from_arrays(cls, arrays):
        """What `to_arrays` described. Raises KeyError where an array is missing."""
        return cls(
            StellarModel.from_arrays(arrays),
            ErrorModel(*(arrays[k] for k in ERROR_ARRAYS)),
            Logistic.from_arrays(arrays, "confidence"),
            TrainingRange(arrays["range_faces"], arrays["range_limits"]),
            Alarms(*arrays["alarms"].tolist()),
            text_of(arrays["parallax_scale"]) if "parallax_scale" in arrays else "",
        )
