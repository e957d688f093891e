"""Mixtures of multivariate t distributions, one a star, from which new places are proposed."""

from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln, logsumexp

from fitting.sampling.random_numbers import DEGREES, t_numbers

HELD_BY = 10.0  # draws' worth of the former mixture, where it is fitted to draws
OF_COVARIANCE = 0.85  # the scale matrix of a component: a t distribution is wider than that
NEW_WEIGHT = 0.2  # of a component added to others that sum to 1
LEAST_WEIGHT = 0.02  # of a component that there is


@dataclass
class Mixture:
    """C components of S stars: weights (S, C), 0 where there is none; means (S, C, d); roots
    (S, C, d, d), lower triangular, of their scale matrices."""

    weights: np.ndarray
    means: np.ndarray
    roots: np.ndarray

    @classmethod
    def of_covariances(cls, weights, means, covariances):
        """Of covariances (S, C, d, d)."""
        return cls(weights, means, np.linalg.cholesky(OF_COVARIANCE * covariances))

    def take(self, stars, components=slice(None)):
        """The same, of some stars (an index array) and components."""
        return Mixture(*(values[stars][:, components] for values in vars(self).values()))

    @property
    def n_components(self):
        return self.weights.shape[1]

    @property
    def n_uniforms(self):
        """Uniform numbers that a draw takes."""
        return 1 + DEGREES // 2 + self.means.shape[2]

    def draw(self, u):
        """Draws (S, W, d), of uniform numbers u (S, W, n_uniforms)."""
        steps = np.cumsum(self.weights, 1)[:, None] / self.weights.sum(1)[:, None, None]
        which = np.minimum((u[..., :1] > steps).sum(2), steps.shape[2] - 1)  # (S, W)
        star = np.arange(len(u))[:, None]
        root, numbers = self.roots[star, which], t_numbers(u[..., 1:])
        return self.means[star, which] + np.einsum("swij,swj->swi", root, numbers)

    def terms(self, x):
        """ln of weight times density (S, W, C) of each component at x (S, W, d)."""
        d = x.shape[2]
        inverse = np.linalg.inv(self.roots)
        white = np.einsum("scij,swcj->swci", inverse, x[:, :, None] - self.means[:, None])
        ln_root = np.log(np.einsum("scii->sci", self.roots)).sum(2)
        ln_norm = gammaln(0.5 * (DEGREES + d)) - gammaln(0.5 * DEGREES)
        ln_norm -= 0.5 * d * np.log(DEGREES * np.pi)
        with np.errstate(divide="ignore"):
            ln_weight = np.log(self.weights / self.weights.sum(1, keepdims=True))
        tails = 0.5 * (DEGREES + d) * np.log1p((white**2).sum(3) / DEGREES)
        return (ln_weight - ln_root + ln_norm)[:, None] - tails

    def ln_density(self, x):
        """ln density (S, W) at x (S, W, d)."""
        return logsumexp(self.terms(x), 2)

    def fitted(self, draws):
        """The mixture after a step of the EM algorithm on draws (S, P, d), which components with
        few of them hardly follow; at least LEAST_WEIGHT is left to each that there is."""
        terms = self.terms(draws)
        share = np.exp(terms - logsumexp(terms, 2, keepdims=True))  # (S, P, C)
        count = share.sum(1)  # (S, C)
        total = (count + HELD_BY)[:, :, None]
        means = (np.einsum("spc,spi->sci", share, draws) + HELD_BY * self.means) / total
        away = draws[:, :, None] - means[:, None]  # (S, P, C, d)
        moment = np.einsum("spc,spci,spcj->scij", share, away, away, optimize=True)
        former = np.einsum("scij,sckj->scik", self.roots, self.roots) / OF_COVARIANCE
        covariances = (moment + HELD_BY * former) / total[..., None]
        weights = np.maximum(count / draws.shape[1], LEAST_WEIGHT) * (self.weights > 0)
        return self.of_covariances(weights, means, covariances)

    def grown(self, places):
        """This mixture with a component more, at places (S, d), half as wide as the first."""
        weights = np.where(self.weights.sum(1, keepdims=True) > 0, NEW_WEIGHT, 0.0)
        return Mixture(
            np.concatenate([self.weights, weights], 1),
            np.concatenate([self.means, places[:, None]], 1),
            np.concatenate([self.roots, 0.5 * self.roots[:, :1]], 1),
        )

    def beside(self, other, weight):
        """This mixture, and with that weight another of the same stars."""
        both = (self.weights, other.weights)
        both = [w / w.sum(1, keepdims=True) for w in both]
        return Mixture(
            np.concatenate([(1 - weight) * both[0], weight * both[1]], 1),
            np.concatenate([self.means, other.means], 1),
            np.concatenate([self.roots, other.roots], 1),
        )
