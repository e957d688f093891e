"""How likely an estimate is right: logistic regressions on what is known of any star."""

from dataclasses import dataclass

import numpy as np

# An estimate is right when within 3 reported sigma (label errors included) and the label's
# tolerance.
CONFIDENCE_SIGMAS = 3.0
NO_SECOND_MODE = -20.0  # ln posterior of a second mode that was not found
MOST_TENSION, MOST_LN_ODDS = 6.0, 8.0  # of features
MOST_STANDARDISED = 5.0  # features are clipped to this range
REGULARISATION = 0.02  # inverse strength of the L2 penalty, of scikit-learn


@dataclass(frozen=True)
class Confidence:
    """Logistic regressions of K labels on p features, squared about `centre` as well.

    centre (p,); mean, scale (2p,); weight (K, 2p); offset (K,).
    """

    centre: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    offset: np.ndarray

    def of(self, features):
        """Probabilities (N, K) that the labels are right, from features (N, p)."""
        x = (_with_squares(features, self.centre) - self.mean) / self.scale
        x = np.clip(x, -MOST_STANDARDISED, MOST_STANDARDISED) @ self.weight.T + self.offset
        return 1.0 / (1.0 + np.exp(-x))

    def to_arrays(self):
        """All that defines it, as {name: array}."""
        return {f"confidence_{name}": value for name, value in vars(self).items()}

    @classmethod
    def from_arrays(cls, arrays):
        """What `to_arrays` described. Raises KeyError where an array is missing."""
        names = ("centre", "mean", "scale", "weight", "offset")
        return cls(*(arrays[f"confidence_{name}"] for name in names))


def _with_squares(features, centre):
    away = features - centre
    return np.concatenate([features, away * away], 1)


def confidence_features(columns, features, has_parallax, at):
    """What the confidences are computed from (N, p): quantities known of any star.

    columns: inferred columns of `catalogue.solve_stars`, all finite; features (N, 2) of
    `observed.LnFlux`; has_parallax (N,) bool; at: `Coordinates`.
    """
    est, err = columns["stellar_params_est"], columns["stellar_params_err"]
    model_est, model_err = columns["model_params_est"], columns["model_params_err"]
    second, z, ext = columns["second_delta_ln_post"], at.z, at.ln_ext
    apart = np.abs(est - model_est)[:, z] / model_err[:, z]
    return np.column_stack(
        [
            est[:, z],
            np.log(est[:, ext] + 0.05),
            est[:, at.xi],
            np.log(err[:, z] + 1e-4),
            np.log(err[:, ext] + 1e-4),
            np.log(columns["chi2_opt"] / np.maximum(columns["n_flux"], 1) + 0.1),
            np.maximum(columns["ln_prior"], -20.0),
            np.where(np.isfinite(second), np.maximum(second, NO_SECOND_MODE), NO_SECOND_MODE),
            features,
            has_parallax,
            columns["n_flux"],
            np.log(apart.max(1) + 0.1),
            np.minimum(np.abs(np.nan_to_num(columns["parallax_tension"])), MOST_TENSION),
            _ln_odds(columns["blend_probability"]),
            _ln_odds(columns["strange_probability"]),
        ]
    ).astype("f8")


def _ln_odds(probability):
    """ln odds, within MOST_LN_ODDS; those of nothing odd where the probability is not known."""
    p = np.clip(np.nan_to_num(probability), 1e-6, 1 - 1e-6)
    return np.clip(np.log(p / (1 - p)), -MOST_LN_ODDS, MOST_LN_ODDS)


def is_right(est, err, label, label_err, labels):
    """Whether each label is right (N, K) bool, as the confidences have it; labels: `LabelSet`."""
    off = np.abs(est - label)
    return (off < CONFIDENCE_SIGMAS * np.hypot(err, label_err)) & (off < labels.array("tolerance"))


def fit_confidence(features, right):
    """`Confidence` from held-out stars: features (N, p), right (N, K) bool. Stars whose features
    are not finite are left out; without any, every confidence is a half."""
    from sklearn.linear_model import LogisticRegression

    good = np.isfinite(features).all(1)
    features, right = features[good], right[good]
    p, n_labels = features.shape[1], right.shape[1]
    if not len(features):
        zero = np.zeros(2 * p)
        return Confidence(zero[:p], zero, zero + 1, np.zeros((n_labels, 2 * p)), np.zeros(n_labels))
    centre = np.median(features, 0)
    x = _with_squares(features, centre)
    mean, scale = x.mean(0), x.std(0) + 1e-6
    x = np.clip((x - mean) / scale, -MOST_STANDARDISED, MOST_STANDARDISED)
    weight, offset = np.zeros((n_labels, 2 * p)), np.zeros(n_labels)
    for k in range(n_labels):
        n_right, n = right[:, k].sum(), len(right)
        if 0 < n_right < n:
            fit = LogisticRegression(C=REGULARISATION, max_iter=2000).fit(x, right[:, k])
            weight[k], offset[k] = fit.coef_[0], fit.intercept_[0]
        else:  # one class only: its odds by Laplace's rule
            offset[k] = np.log((n_right + 1) / (n - n_right + 1))
    return Confidence(centre, mean, scale, weight, offset)
