"""How likely an estimate is right: what the confidences are computed from, and fitted to."""

import numpy as np

# An estimate is right when within 3 reported sigma (label errors included) and the label's
# tolerance.
CONFIDENCE_SIGMAS = 3.0
NO_SECOND_MODE = -20.0  # ln posterior of a second mode that was not found
MOST_TENSION, MOST_LN_ODDS = 6.0, 8.0  # of features


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
