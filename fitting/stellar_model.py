"""What training makes and the solver needs, in one piece."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fitting.coordinates import Coordinates
from fitting.direct import DirectNetwork, direct_inputs
from fitting.noise import NoiseModel
from fitting.prior import MixturePrior
from model import FluxModel
from pipeline.schema import LabelSet
from xp_utils import FluxChannels


@dataclass
class StellarModel:
    """Forward model, noise model, prior and, where the recipe trains one, the direct estimate.

    labels: K of them, of which the forward model has those that are its own, in the same order;
    label_mean, label_scale (K,): their standardisation. channels: what the fluxes are of. release:
    name of the data release, xp_basis: source of the XP basis that the fluxes were sampled with.
    """

    labels: LabelSet
    channels: FluxChannels
    release: str
    xp_basis: str
    label_mean: np.ndarray
    label_scale: np.ndarray
    flux: FluxModel
    noise: NoiseModel
    prior: MixturePrior
    direct: DirectNetwork | None = None

    @property
    def coordinates(self) -> Coordinates:
        return Coordinates(len(self.labels.forward))

    @cached_property
    def is_forward(self) -> np.ndarray:
        """Which labels (K,) bool are part of the forward model."""
        return np.array([label.forward for label in self.labels])

    def standardised(self, labels):
        """Labels (N, K) as z (N, K), float64."""
        return (np.asarray(labels, "f8") - self.label_mean) / self.label_scale

    def theta(self, z):
        """The type (..., Kf), of the forward model's labels, of standardised z; float64."""
        forward = self.is_forward
        return np.asarray(z, "f8") * self.label_scale[forward] + self.label_mean[forward]

    def direct_inputs(self, observed, parallax, parallax_err):
        """What the direct estimate sees of stars (N, p); see `fitting.direct.direct_inputs`."""
        return direct_inputs(observed, parallax, parallax_err, self.channels.n_xp)

    def to_arrays(self):
        """All that defines the model, as {name: array}."""
        arrays = self.channels.to_arrays() | {
            "labels": np.array(self.labels.to_json()),
            "release": np.array(self.release),
            "xp_basis": np.array(self.xp_basis),
            "label_mean": np.asarray(self.label_mean, "f8"),
            "label_scale": np.asarray(self.label_scale, "f8"),
        }
        parts = (self.flux, self.noise, self.prior, self.direct)
        for part in parts:
            if part is not None:
                arrays |= part.to_arrays()
        return arrays

    @classmethod
    def from_arrays(cls, arrays):
        """The model that `to_arrays` described. Raises KeyError where an array is missing."""
        labels, release, xp_basis = (_text(arrays[k]) for k in ("labels", "release", "xp_basis"))
        return cls(
            LabelSet.from_json(labels),
            FluxChannels.from_arrays(arrays),
            release,
            xp_basis,
            arrays["label_mean"],
            arrays["label_scale"],
            FluxModel.from_arrays(arrays),
            NoiseModel.from_arrays(arrays),
            MixturePrior.from_arrays(arrays),
            DirectNetwork.from_arrays(arrays) if "direct_mean" in arrays else None,
        )


def _text(array) -> str:
    value = np.asarray(array).item()
    return value.decode() if isinstance(value, bytes) else str(value)
