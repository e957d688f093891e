"""Where descents ended, of many stars: arrays."""

import enum
from dataclasses import dataclass

import numpy as np

from fitting.posterior import Gaussian


class Stop(enum.IntEnum):
    """Why a descent stopped."""

    NONE = 0  # there was none
    CONVERGED = 1  # the next step would gain less than CONVERGED_DECREASE
    STALLED = 2  # no step gains anything, however short
    ITERATIONS = 3  # the steps allowed were used up


@dataclass
class Solution:
    """Where the descents of N stars ended: u (N, n); phi (N,), inf where there was none; chi2 (N,);
    stop (N,) of `Stop`."""

    u: np.ndarray
    phi: np.ndarray
    chi2: np.ndarray
    stop: np.ndarray

    @classmethod
    def empty(cls, n, n_coordinates):
        return cls(
            np.full((n, n_coordinates), np.nan, "f4"),
            np.full(n, np.inf, "f4"),
            np.full(n, np.nan, "f4"),
            np.full(n, Stop.NONE.value, "u1"),
        )

    @property
    def converged(self):
        """(N,) bool."""
        return self.stop == Stop.CONVERGED

    def take(self, rows):
        """The same, of some rows (an index array or slice), copied."""
        return type(self)(*(np.array(value[rows]) for value in vars(self).values()))

    def with_rows(self, other):
        """These and those of another one, of all that this one has."""
        pairs = ((value, getattr(other, name)) for name, value in vars(self).items())
        return type(self)(*(np.concatenate(pair) for pair in pairs))

    def put(self, rows, other, select=slice(None)):
        """Put the rows `select` of other ones in the place of `rows`."""
        for name, value in vars(self).items():
            value[rows] = getattr(other, name)[select]


@dataclass
class Settled(Solution):
    """`Solution`s and the curvature there: precision (N, n, n) float64, the Hessian of phi as
    `Minimiser.settle` makes it; and the point beside, a small step away, where it was taken, with
    hessian (N, n, n) float64 and gradient (N, n) as they are there."""

    precision: np.ndarray
    point: np.ndarray
    hessian: np.ndarray
    gradient: np.ndarray

    @classmethod
    def empty(cls, n, n_coordinates):
        vectors = (np.full((n, n_coordinates), np.nan, "f4") for _ in range(2))
        matrices = (np.full((n, n_coordinates, n_coordinates), np.nan) for _ in range(2))
        point, gradient = vectors
        precision, hessian = matrices
        found = vars(Solution.empty(n, n_coordinates))
        return cls(**found, precision=precision, point=point, hessian=hessian, gradient=gradient)

    @property
    def gaussian(self):
        """The posterior about the solutions as a `Gaussian`."""
        point = (self.point.astype("f8"), self.hessian, self.gradient.astype("f8"))
        return Gaussian(self.u.astype("f8"), self.precision, point)
