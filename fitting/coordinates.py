"""The coordinates in which a star is fitted: u = (z (K), xi, ln E, ln parallax).

z is the standardised stellar type; the parameters of a star (`LabelSet.parameters`) are in the same
order. Everything that has K labels takes its places from here.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

Z_LIMIT, XI_LIMIT = 6.0, 3.5
LN_EXT_LIMITS, LN_PLX_LIMITS = (-9.0, 2.75), (-9.0, 9.0)
LN_EXT_STEP = 1.5  # largest step of ln E; 1 of the others


@dataclass(frozen=True)
class Coordinates:
    """Places of the coordinates of stars with n_labels labels."""

    n_labels: int

    @property
    def z(self) -> slice:
        return slice(0, self.n_labels)

    @property
    def xi(self) -> int:
        return self.n_labels

    @property
    def ln_ext(self) -> int:
        return self.n_labels + 1

    @property
    def ln_plx(self) -> int:
        return self.n_labels + 2

    @property
    def logarithms(self) -> slice:
        """Those of which the parameter is the exponential: E, parallax."""
        return slice(self.ln_ext, self.ln_plx + 1)

    def __len__(self):
        return self.n_labels + 3

    @cached_property
    def lower(self) -> np.ndarray:
        """Lower bounds (n,) float32."""
        return self._array(-Z_LIMIT, -XI_LIMIT, LN_EXT_LIMITS[0], LN_PLX_LIMITS[0])

    @cached_property
    def upper(self) -> np.ndarray:
        """Upper bounds (n,) float32."""
        return self._array(Z_LIMIT, XI_LIMIT, LN_EXT_LIMITS[1], LN_PLX_LIMITS[1])

    @cached_property
    def largest_step(self) -> np.ndarray:
        """(n,) float32: of one step of the solver."""
        return self._array(1.0, 1.0, LN_EXT_STEP, 1.0)

    def _array(self, z, *others):
        return np.array([z] * self.n_labels + list(others), "f4")

    def clip(self, u):
        """u (..., n) within the bounds."""
        return np.clip(u, self.lower, self.upper)
