"""Logistic regressions: probabilities of yes or no from a few quantities known of every star."""

from dataclasses import dataclass

import numpy as np

MOST_STANDARDISED = 5.0  # features are clipped to this range
REGULARISATION = 0.02  # inverse strength of the L2 penalty, of scikit-learn


@dataclass(frozen=True)
class Logistic:
    """Logistic regressions of K answers on p features, squared about `centre` as well.

    centre (p,); mean, scale (2p,); weight (K, 2p); offset (K,).
    """

    centre: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    offset: np.ndarray

    def of(self, features):
        """Probabilities (N, K) of yes, from features (N, p)."""
        x = (_with_squares(features, self.centre) - self.mean) / self.scale
        x = np.clip(x, -MOST_STANDARDISED, MOST_STANDARDISED) @ self.weight.T + self.offset
        return 1.0 / (1.0 + np.exp(-x))

    def to_arrays(self, prefix):
        """All that defines it, as {name: array}, the names with a prefix."""
        return {f"{prefix}_{name}": value for name, value in vars(self).items()}

    @classmethod
    def from_arrays(cls, arrays, prefix):
        """What `to_arrays` described. Raises KeyError where an array is missing."""
        names = ("centre", "mean", "scale", "weight", "offset")
        return cls(*(arrays[f"{prefix}_{name}"] for name in names))


def _with_squares(features, centre):
    away = features - centre
    return np.concatenate([features, away * away], 1)


def fit_logistic(features, yes):
    """`Logistic` from stars with features (N, p) and answers yes (N, K) bool. Stars whose features
    are not finite are left out; without any, every probability is a half."""
    from sklearn.linear_model import LogisticRegression

    good = np.isfinite(features).all(1)
    features, yes = features[good], yes[good]
    p, n_answers = features.shape[1], yes.shape[1]
    if not len(features):
        zero = np.zeros(2 * p)
        return Logistic(zero[:p], zero, zero + 1, np.zeros((n_answers, 2 * p)), np.zeros(n_answers))
    centre = np.median(features, 0)
    x = _with_squares(features, centre)
    mean, scale = x.mean(0), x.std(0) + 1e-6
    x = np.clip((x - mean) / scale, -MOST_STANDARDISED, MOST_STANDARDISED)
    weight, offset = np.zeros((n_answers, 2 * p)), np.zeros(n_answers)
    for k in range(n_answers):
        n_yes, n = yes[:, k].sum(), len(yes)
        if 0 < n_yes < n:
            fit = LogisticRegression(C=REGULARISATION, max_iter=2000).fit(x, yes[:, k])
            weight[k], offset[k] = fit.coef_[0], fit.intercept_[0]
        else:  # one class only: its odds by Laplace's rule
            offset[k] = np.log((n_yes + 1) / (n - n_yes + 1))
    return Logistic(centre, mean, scale, weight, offset)
