"""What training makes and the solver needs, in one piece."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fitting.coordinates import Coordinates
from fitting.networks import Classification, Regression
from fitting.noise import NoiseModel
from fitting.prior import MixturePrior
from fitting.second_modes import ModeSearch
from model import FluxModel
from pipeline.schema import LabelSet
from xp_utils import FluxChannels


@dataclass
class StellarModel:
    """Forward model, noise model, prior and, where the recipe trains them, networks on what is
    observed: the direct estimate of the labels, the distance, and what is odd.

    labels: K of them, of which the forward model has those that are its own, in the same order;
    label_mean, label_scale (K,): their standardisation. channels: what the fluxes are of;
    fine_wavelengths (m,) nm: of the spectrum that the direct estimate sees besides. release: name
    of the data release, xp_basis: source of the XP basis that the fluxes were sampled with.
    distance_mean, distance_scale: standardisation of the ln flux at 1 kpc, which `distance` gives.
    search: which stars are searched for other modes; None: all.
    """

    labels: LabelSet
    channels: FluxChannels
    fine_wavelengths: np.ndarray
    release: str
    xp_basis: str
    label_mean: np.ndarray
    label_scale: np.ndarray
    flux: FluxModel
    noise: NoiseModel
    prior: MixturePrior
    direct: Regression | None = None
    distance: Regression | None = None
    oddity: Classification | None = None
    distance_mean: float = 0.0
    distance_scale: float = 1.0
    search: ModeSearch | None = None

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

    def to_arrays(self):
        """All that defines the model, as {name: array}."""
        arrays = self.channels.to_arrays() | {
            "labels": np.array(self.labels.to_json()),
            "release": np.array(self.release),
            "xp_basis": np.array(self.xp_basis),
            "fine_wavelengths": np.asarray(self.fine_wavelengths, "f8"),
            "distance_mean_scale": np.array([self.distance_mean, self.distance_scale]),
            "label_mean": np.asarray(self.label_mean, "f8"),
            "label_scale": np.asarray(self.label_scale, "f8"),
        }
        networks = (self.direct, self.distance, self.oddity)
        for part in (self.flux, self.noise, self.prior, *networks, self.search):
            if part is not None:
                arrays |= part.to_arrays()
        return arrays

    @classmethod
    def from_arrays(cls, arrays):
        """The model that `to_arrays` described. Raises KeyError where an array is missing."""
        labels, release, xp_basis = (text_of(arrays[k]) for k in ("labels", "release", "xp_basis"))
        return cls(
            LabelSet.from_json(labels),
            FluxChannels.from_arrays(arrays),
            arrays["fine_wavelengths"],
            release,
            xp_basis,
            arrays["label_mean"],
            arrays["label_scale"],
            FluxModel.from_arrays(arrays),
            NoiseModel.from_arrays(arrays),
            MixturePrior.from_arrays(arrays),
            Regression.from_arrays(arrays, "direct"),
            Regression.from_arrays(arrays, "distance"),
            Classification.from_arrays(arrays, "oddity"),
            *arrays["distance_mean_scale"],
            ModeSearch.from_arrays(arrays),
        )


def text_of(array) -> str:
    """The text that an array of `to_arrays` holds."""
    value = np.asarray(array).item()
    return value.decode() if isinstance(value, bytes) else str(value)
