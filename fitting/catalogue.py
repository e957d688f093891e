"""What the catalogue says of a star: its inferred columns, flags and confidences.

`infer` makes the inferred columns of step 10 (`schema.columns.INFERRED`) from observed columns and
a trained model; training uses it too, so that validation stars are treated as any other star.
Arrays in, arrays out.
"""

import numpy as np

from fitting.confidence import confidence_features
from fitting.observed import OBSERVED, StarData, used_fluxes
from fitting.posterior import estimates, pool, widened
from pipeline.schema import flags, inferred_columns

MIN_XP_FLUXES = 20  # fewer say too little to solve for a star's parameters


def infer(table, solver, trained):
    """The inferred columns of stars, {name: (N, ...)}.

    table: columns OBSERVED, rows aligned. solver: a `StarSolver` of `trained.stellar`. A star
    without a usable spectrum, or whose precision is not positive definite, has NaN and is flagged.
    """
    channels, labels = trained.stellar.channels, trained.stellar.labels
    bits = flags.quality_flag(labels)
    used = used_fluxes(table["flux"], table["flux_err"])
    n_xp = used[:, : channels.n_xp].sum(1)
    rows = np.flatnonzero(n_xp >= MIN_XP_FLUXES)
    out = {
        name: np.full((len(used), *data.shape), np.nan if data.dtype[0] == "f" else 0, data.dtype)
        for name, data in inferred_columns(labels).items()
    }
    out["n_flux"][:] = used.sum(1)
    out["quality_flags"][:] = bits.BAD_INPUT
    if len(rows):
        data = StarData.of_table({name: table[name] for name in OBSERVED}, channels, rows)
        found, converged = solve_stars(data, solver, trained.errors)
        confidence = _confidences(found, data, trained)
        found |= {f"{x.name}_confidence": c for x, c in zip(labels, confidence.T, strict=True)}
        found["quality_flags"] = _quality_flags(
            found, confidence, converged, n_xp[rows], data, trained
        )
        for name, values in found.items():
            out[name][rows] = values
    return out


def solve_stars(data, solver, errors):
    """The inferred columns but for confidences and flags, and converged (N,) bool, of usable stars.

    errors: `posterior.ErrorModel`.
    """
    model, direct = solver.model, solver.direct(data)
    modes = solver.solve(data, direct)
    best, second = modes.best, modes.second
    first, other = (solver.gaussian(data, mode) for mode in (best, second))
    ln_ratio = best.phi - second.phi
    whole = widened(first, other, ln_ratio, data.useful_parallax, errors.factors)
    alone, elsewhere = estimates(whole, model), estimates(other, model)
    pooled = alone
    if errors.pool_weights[1]:
        z, sigma = direct[:, :, model.is_forward]
        pooled = estimates(pool(whole, z, sigma, errors.pool_weights), model)
    triangle = np.triu_indices(len(model.coordinates))
    found = {
        "stellar_params_est": pooled.est,
        "stellar_params_err": pooled.err,
        "stellar_params_cov_triu": pooled.cov[:, *triangle],
        "stellar_params_icov_triu": pooled.icov[:, *triangle],
        "model_params_est": alone.est,
        "model_params_err": alone.err,
        "second_params_est": elsewhere.est,
        "second_delta_ln_post": np.where(np.isfinite(elsewhere.est[:, 0]), ln_ratio, np.nan),
        "chi2_opt": best.chi2,
        "n_flux": data.observed.used.sum(1).astype("i2"),
        "ln_prior": model.prior.ln_density(best.u[:, model.coordinates.z]).numpy(),
        "ln_post": -best.phi,
    }
    return found | _direct_columns(direct, model), best.converged


def _direct_columns(direct, model):
    """Columns of the labels that the direct estimate alone gives."""
    out = {}
    for k, label in enumerate(model.labels):
        if not label.forward:
            z, sigma = direct[:, :, k].astype("f8")
            out[f"{label.name}_est"] = z * model.label_scale[k] + model.label_mean[k]
            out[f"{label.name}_err"] = sigma * model.label_scale[k]
    return out


def label_estimates(columns, labels, kind="stellar"):
    """Estimates and errors (N, K) of all labels from inferred columns; kind "model": of the forward
    model alone, where it has the label."""
    place = labels.forward.place
    pairs = [
        tuple(columns[f"{kind}_params_{e}"][:, place[x.name]] for e in ("est", "err"))
        if x.forward
        else tuple(columns[f"{x.name}_{e}"] for e in ("est", "err"))
        for x in labels
    ]
    est, err = zip(*pairs, strict=True)
    return np.column_stack(est), np.column_stack(err)


def known_features(found, data, model):
    """What confidences are computed from (N, p), of solved stars."""
    has_parallax = np.isfinite(data.parallax)
    return confidence_features(found, data.observed.features, has_parallax, model.coordinates)


def _confidences(found, data, trained):
    """Probabilities (N, K); NaN for stars without parameters."""
    good = np.isfinite(found["stellar_params_est"]).all(1)
    out = np.full((len(good), len(trained.stellar.labels)), np.nan)
    out[good] = trained.confidence.of(known_features(found, data, trained.stellar)[good])
    return out


def _quality_flags(found, confidence, converged, n_xp, data, trained):
    """Quality flags (N,) of solved stars, whose confidences are (N, K)."""
    model, est = trained.stellar, found["stellar_params_est"]
    at, bits = model.coordinates, flags.quality_flag(model.labels)
    off_parallax = np.abs(est[:, at.ln_plx] - data.parallax)
    conditions = {
        bits[flags.confidence_flag(label.name)]: confidence[:, k] < flags.CONFIDENCE_LIMIT
        for k, label in enumerate(model.labels)
    } | {
        bits.CHI2: found["chi2_opt"] > flags.CHI2_PER_XP_FLUX * n_xp,
        bits.LN_PRIOR: found["ln_prior"] < model.prior.ln_prior_floor,
        bits.PARALLAX: off_parallax > flags.PARALLAX_SIGMAS * data.parallax_err,
        bits.NOT_CONVERGED: ~converged,
        bits.BAD_INPUT: ~np.isfinite(est).all(1),
        bits.OUT_OF_RANGE: trained.range.excludes(
            est[:, at.z], est[:, at.ln_ext], data.observed.features
        ),
    }
    return sum(np.where(where, bit.value, 0) for bit, where in conditions.items())
