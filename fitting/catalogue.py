"""What the catalogue says of a star: its columns, flags and confidences.

`infer` makes the inferred columns of step 10 from observed columns and a trained model; training
uses it too, so that validation stars are treated as any other star. `accuracy` compares a
catalogue with labels. Arrays in, arrays out.
"""

from dataclasses import dataclass
from enum import IntFlag

import numpy as np

import xp_utils
from fitting.posterior import estimates, pool, widened
from fitting.star_solver import StarData
from model import LABEL_NAMES, N_LABELS, StellarModel, used_fluxes

# --------------------------------------------------------------------------- flags, confidence


MIN_XP_FLUXES = 20  # fewer say too little to solve for six parameters
CHI2_PER_XP_FLUX = 2.0  # flag limits, as in the catalogue of Zhang, Green & Rix (2023)
PARALLAX_SIGMAS = 10.0
CONFIDENCE_LIMIT = 0.5
# An estimate is right when within 3 reported sigma (label errors included) and these tolerances.
CONFIDENCE_SIGMAS = 3.0
CONFIDENCE_TOLERANCE = (0.25, 0.3, 0.4)  # kK, dex, dex
NO_SECOND_MODE = -20.0  # ln posterior of a second mode that was not found


class QualityFlag(IntFlag):
    """Bits of `quality_flags`. Bits 0-5 mean what they mean in the published catalogue."""

    TEFF_CONFIDENCE = 1  # confidence in Teff below 0.5
    FEH_CONFIDENCE = 2  # confidence in [Fe/H] below 0.5
    LOGG_CONFIDENCE = 4  # confidence in log g below 0.5
    CHI2 = 8  # chi^2 / 61 above 2 (of the XP fluxes used, for a star with fewer)
    LN_PRIOR = 16  # the prior there is lower than at all but 0.1% of the training stars
    PARALLAX = 32  # more than 10 sigma from the observed parallax
    NOT_CONVERGED = 64
    BAD_INPUT = 128  # no usable spectrum, or no proper covariance: parameters are NaN
    OUT_OF_RANGE = 256  # outside the training stars in type, dust, brightness or error level


@dataclass
class TrainedModel:
    """All that step 10 needs: model, confidences, range of the training stars, pool weights.

    confidence_mean, _scale (p,), _weight (3, p), _offset (3,): logistic regressions on
    `confidence_features`. hull (k, 4): the convex hull of the training labels, points x inside
    have hull[:, :3] x + hull[:, 3] <= 0. ranges (2, 3): lowest and highest E, brightness and error
    level of the training stars. error_factors (2, 6): see `posterior.widened`. pool_weights (2,):
    of the forward model and the direct estimate in `posterior.pool`.
    """

    stellar: StellarModel
    confidence_mean: np.ndarray
    confidence_scale: np.ndarray
    confidence_weight: np.ndarray
    confidence_offset: np.ndarray
    hull: np.ndarray
    ranges: np.ndarray
    error_factors: np.ndarray
    pool_weights: np.ndarray

    ARRAYS = (
        "confidence_mean",
        "confidence_scale",
        "confidence_weight",
        "confidence_offset",
        "hull",
        "ranges",
        "error_factors",
        "pool_weights",
    )

    def to_arrays(self):
        """All that defines it, as {name: array}."""
        return self.stellar.to_arrays() | {name: getattr(self, name) for name in self.ARRAYS}

    @classmethod
    def from_arrays(cls, arrays):
        """What `to_arrays` described. Raises KeyError where an array is missing."""
        return cls(StellarModel.from_arrays(arrays), *(arrays[name] for name in cls.ARRAYS))

    def confidences(self, features):
        """Probabilities (N, 3) that Teff, [Fe/H] and log g are right, from features (N, p)."""
        x = (features - self.confidence_mean) / self.confidence_scale
        x = np.clip(x, -5, 5) @ self.confidence_weight.T + self.confidence_offset
        return 1.0 / (1.0 + np.exp(-x))

    def out_of_range(self, theta, ext, features):
        """Whether stars are outside the training range: theta (N, 3), ext (N,), features (N, 2) of
        `model.LnFlux`."""
        outside = (theta @ self.hull[:, :3].T + self.hull[:, 3] > 1e-6).any(1)
        values = np.column_stack([ext, features])
        low, high = self.ranges
        return outside | (values < low).any(1) | (values > high).any(1)


def confidence_features(columns, features, has_parallax):
    """What the confidences are computed from (N, p): quantities known of any star.

    columns: inferred columns of `infer`, all finite; features (N, 2) of `model.LnFlux`;
    has_parallax (N,) bool.
    """
    est, err = columns["stellar_params_est"], columns["stellar_params_err"]
    second = columns["second_delta_ln_post"]
    model_est, model_err = columns["model_params_est"], columns["model_params_err"]
    apart = np.abs(est - model_est)[:, :N_LABELS] / model_err[:, :N_LABELS]
    linear = np.column_stack(
        [
            est[:, :3],
            np.log(est[:, 3] + 0.05),
            est[:, 5],
            np.log(err[:, :4] + 1e-4),
            np.log(columns["chi2_opt"] / np.maximum(columns["n_flux"], 1) + 0.1),
            np.maximum(columns["ln_prior"], -20.0),
            np.where(np.isfinite(second), np.maximum(second, NO_SECOND_MODE), NO_SECOND_MODE),
            features,
            has_parallax,
            columns["n_flux"],
            np.log(apart.max(1) + 0.1),
        ]
    ).astype("f8")
    centred = linear - CONFIDENCE_CENTRE
    return np.concatenate([linear, centred * centred], 1)


# Typical values, about which the features are squared.
CONFIDENCE_CENTRE = np.array(
    [
        5.0,
        -0.4,
        3.0,
        -1.5,
        0.0,
        -3.0,
        -2.7,
        -2.5,
        -3.0,
        0.0,
        -3.0,
        NO_SECOND_MODE,
        6.0,
        -4.0,
        0.5,
        64.0,
        -1.0,
    ]
)


def is_right(columns, label, label_err):
    """Whether each of Teff, [Fe/H], log g is right (N, 3) bool, as the confidences have it."""
    est, err = (columns[f"stellar_params_{name}"][:, :N_LABELS] for name in ("est", "err"))
    off = np.abs(est - label)
    return (off < CONFIDENCE_SIGMAS * np.hypot(err, label_err)) & (
        off < np.array(CONFIDENCE_TOLERANCE)
    )


# ------------------------------------------------------------------------------- the catalogue


CONFIDENCES = ("teff_confidence", "feh_confidence", "logg_confidence")
OBSERVED = ("flux", "flux_err", "plx", "plx_err")
# Inferred columns: shape after the star axis. float32; NaN where there is nothing to say.
INFERRED = {
    "stellar_params_est": (6,),
    "stellar_params_err": (6,),
    "stellar_params_cov_triu": (21,),
    "stellar_params_icov_triu": (21,),
    "model_params_est": (6,),
    "model_params_err": (6,),
    "second_params_est": (6,),
    "second_delta_ln_post": (),
    "chi2_opt": (),
    "ln_prior": (),
    "ln_post": (),
    **dict.fromkeys(CONFIDENCES, ()),
}
PARAMETERS = (
    "Teff (kK), [Fe/H] (dex), log g (dex), E (units of the training set's reddening), "
    "parallax (mas), xi"
)
DESCRIPTIONS = {
    "stellar_params_est": f"{PARAMETERS}: the forward model, pooled with the direct estimate",
    "stellar_params_err": f"{PARAMETERS}: 1 sigma",
    "stellar_params_cov_triu": "upper triangle, row order, of the covariance",
    "stellar_params_icov_triu": "upper triangle, row order, of the inverse covariance",
    "model_params_est": f"{PARAMETERS}: of the forward model alone, the maximum of its posterior",
    "model_params_err": f"{PARAMETERS}: 1 sigma, of the forward model alone",
    "second_params_est": f"{PARAMETERS}: best solution in another family of stars",
    "second_delta_ln_post": "ln posterior of that solution, relative to the best",
    "chi2_opt": "chi^2 of the fluxes under the learned noise, at model_params_est",
    "ln_prior": "ln of the prior of stellar types at model_params_est, per kK dex dex",
    "ln_post": "ln posterior at model_params_est, per unit of ln E, up to a constant",
    **dict.fromkeys(
        CONFIDENCES,
        "probability of being within 3 sigma and "
        f"{CONFIDENCE_TOLERANCE} (kK, dex, dex) of the truth",
    ),
}


def infer(table, solver, trained):
    """The inferred columns of stars, {name: (N, ...)}: INFERRED, n_flux, quality_flags.

    table: columns OBSERVED, rows aligned. solver: a `StarSolver` of `trained.stellar`. A star
    without a usable spectrum, or whose curvature is not positive definite, has NaN and is flagged.
    """
    used = used_fluxes(table["flux"], table["flux_err"])
    n_xp = used[:, : xp_utils.N_XP].sum(1)
    rows = np.flatnonzero(n_xp >= MIN_XP_FLUXES)
    out = {name: np.full((len(used), *shape), np.nan, "f4") for name, shape in INFERRED.items()}
    out["n_flux"] = used.sum(1).astype("i2")
    out["quality_flags"] = np.full(len(used), QualityFlag.BAD_INPUT.value, "u2")
    if len(rows):
        data = StarData(*(table[name][rows] for name in OBSERVED))
        found, converged = solved_columns(data, solver, trained, out["n_flux"][rows])
        flags = quality_flags(found, converged, n_xp[rows], data, trained)
        for name in INFERRED:
            out[name][rows] = found[name]
        out["quality_flags"][rows] = flags
    return out


def solved_columns(data, solver, trained, n_flux):
    """INFERRED columns but for the confidences, and converged (N,) bool, of usable stars."""
    direct = (None, None) if solver.model.direct is None else solver.direct(data)
    best, second = solver.solve(data, direct[0])
    best = widened(best, second, data.useful_parallax, trained.error_factors)
    first, other = estimates(best, solver.model), estimates(second, solver.model)
    pooled = first
    if trained.pool_weights[1]:
        pooled = estimates(pool(best, *direct, trained.pool_weights), solver.model)
    triu = np.triu_indices(6)
    found = {
        "stellar_params_est": pooled.est,
        "stellar_params_err": pooled.err,
        "stellar_params_cov_triu": pooled.cov[:, triu[0], triu[1]],
        "stellar_params_icov_triu": pooled.icov[:, triu[0], triu[1]],
        "model_params_est": first.est,
        "model_params_err": first.err,
        "second_params_est": other.est,
        "second_delta_ln_post": np.where(
            np.isfinite(other.est[:, 0]), best.phi - second.phi, np.nan
        ),
        "chi2_opt": best.chi2,
        "ln_prior": solver.model.prior.ln_density(best.u[:, :3]).numpy(),
        "ln_post": -best.phi,
        "n_flux": n_flux,
    }
    return found, best.converged


def quality_flags(found, converged, n_xp, data, trained):
    """Quality flags (N,) uint16 of solved stars; adds the confidences to `found`."""
    est = found["stellar_params_est"]
    features = data.observed.features
    good = np.isfinite(est).all(1)
    confidence = np.full((len(est), N_LABELS), np.nan)
    known = confidence_features(found, features, np.isfinite(data.plx))
    confidence[good] = trained.confidences(known[good])
    found |= dict(zip(CONFIDENCES, confidence.T, strict=True))
    conditions = {
        QualityFlag.TEFF_CONFIDENCE: confidence[:, 0] < CONFIDENCE_LIMIT,
        QualityFlag.FEH_CONFIDENCE: confidence[:, 1] < CONFIDENCE_LIMIT,
        QualityFlag.LOGG_CONFIDENCE: confidence[:, 2] < CONFIDENCE_LIMIT,
        QualityFlag.CHI2: found["chi2_opt"] > CHI2_PER_XP_FLUX * n_xp,
        QualityFlag.LN_PRIOR: found["ln_prior"] < trained.stellar.prior.ln_prior_floor,
        QualityFlag.PARALLAX: np.abs(est[:, 4] - data.plx) > PARALLAX_SIGMAS * data.plx_err,
        QualityFlag.NOT_CONVERGED: ~converged,
        QualityFlag.BAD_INPUT: ~good,
        QualityFlag.OUT_OF_RANGE: trained.out_of_range(est[:, :3], est[:, 3], features),
    }
    flags = sum(np.where(where, bit.value, 0) for bit, where in conditions.items())
    return flags.astype("u2")


# ------------------------------------------------------------------ how well labels are recovered


GIANT_LOGG = 3.5


def robust_width(x):
    """1.4826 times the median absolute deviation: the standard deviation, if x is Gaussian."""
    return float(1.4826 * np.median(np.abs(x - np.median(x))))


def accuracy(est, err, label, label_err):
    """How labels (N, 3) in (kK, dex, dex) are recovered by est (N, >=3) with errors err.

    Returns {group: {"n": stars, parameter: {"offset", "scatter", "pull_width", "frac_gt3"}}} for
    all stars, giants (log g < 3.5) and dwarfs, with Teff in K; stars without a finite estimate
    are counted in {"stars", "finite"} only. Offset: median of estimate - label; scatter: robust
    width of it; pull: divided by both errors in quadrature.
    """
    est, err = np.asarray(est)[:, :N_LABELS], np.asarray(err)[:, :N_LABELS]
    finite = np.isfinite(est).all(1) & np.isfinite(err).all(1)
    residual = (est - label) * np.array([1e3, 1.0, 1.0])
    pull = (est - label) / np.hypot(err, label_err)
    giant = label[:, 2] < GIANT_LOGG
    out = {"stars": len(est), "finite": int(finite.sum())}
    for group, rows in (("all", finite), ("giants", finite & giant), ("dwarfs", finite & ~giant)):
        out[group] = {"n": int(rows.sum())}
        for k, name in enumerate(LABEL_NAMES if rows.any() else ()):
            out[group][name] = {
                "offset": float(np.median(residual[rows, k])),
                "scatter": robust_width(residual[rows, k]),
                "pull_width": robust_width(pull[rows, k]),
                "frac_gt3": float(np.mean(np.abs(pull[rows, k]) > 3)),
            }
    return out


def format_accuracy(scores):
    """The table of `accuracy` as text."""
    lines = [
        f"{scores['stars']} stars, {scores['finite']} with finite parameters",
        "group          n             offset  scatter   pull     >3",
    ]
    for group in ("all", "giants", "dwarfs"):
        for name in LABEL_NAMES:
            if name in scores[group]:
                s, unit = scores[group][name], " (K)" if name == "Teff" else ""
                lines.append(
                    f"{group:8s} {scores[group]['n']:7d}  {name + unit:9s}"
                    f"{s['offset']:8.3f} {s['scatter']:8.3f} {s['pull_width']:6.2f} "
                    f"{s['frac_gt3']:6.3f}"
                )
    return "\n".join(lines)
