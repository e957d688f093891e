"""What the catalogue says of a star: its inferred columns, flags and confidences.

`infer` makes the inferred columns of step 10 (`schema.columns.INFERRED`) from observed columns and
a trained model; training uses it too, so that validation stars are treated as any other star.
Arrays in, arrays out.
"""

import numpy as np

from fitting.confidence import confidence_features
from fitting.observed import StarData, used_fluxes
from fitting.parallaxes import doubted, tension
from fitting.posterior import (
    estimates,
    linear_in_extinction,
    pool,
    signed_extinction,
    widened,
)
from pipeline.schema import flags, inferred_columns

MIN_XP_FLUXES = 20  # fewer say too little to solve for a star's parameters
FIDELITY = "fidelity_v2"  # optional column of a table of observed stars


def infer(table, solver, trained):
    """The inferred columns of stars, {name: (N, ...)}.

    table: columns OBSERVED, and FINE if the model sees that, rows aligned; where it has FIDELITY,
    parallaxes of a poor astrometric solution are not used. solver: a `StarSolver` of
    `trained.stellar`. A star without a usable spectrum, or whose precision is not positive
    definite, has NaN and is flagged.
    """
    labels = trained.stellar.labels
    used = used_fluxes(table["flux"], table["flux_err"])
    rows, data, unreliable = observed_stars(table, trained.stellar)
    out = {
        name: np.full((len(used), *data.shape), np.nan if data.dtype[0] == "f" else 0, data.dtype)
        for name, data in inferred_columns(labels).items()
    }
    out["n_flux"][:] = used.sum(1)
    out["quality_flags"][:] = flags.quality_flag(labels).BAD_INPUT
    if len(rows):
        found, converged = solve_stars(data, solver, trained.errors, trained.alarms)
        confidence = _confidences(found, data, trained)
        found |= {f"{x.name}_confidence": c for x, c in zip(labels, confidence.T, strict=True)}
        conditions = _conditions(found, confidence, data, trained)
        conditions |= {"NOT_CONVERGED": ~converged, "LOW_FIDELITY": unreliable}
        bits = flags.quality_flag(labels)
        found["quality_flags"] = sum(
            np.where(where, bits[name].value, 0) for name, where in conditions.items()
        )
        for name, values in found.items():
            out[name][rows] = values
    return out


def observed_stars(table, model):
    """Rows (M,) of a table (see `infer`) that have a usable spectrum, `StarData` of these, and
    which of them (M,) bool have an unreliable parallax, which is left out."""
    channels = model.channels
    used = used_fluxes(table["flux"], table["flux_err"])
    rows = np.flatnonzero(used[:, : channels.n_xp].sum(1) >= MIN_XP_FLUXES)
    data, unreliable = StarData.of_table(table, channels, rows), np.zeros(len(rows), bool)
    if FIDELITY in table:
        unreliable = table[FIDELITY][rows] < flags.LEAST_FIDELITY
        data.parallax = np.where(unreliable, np.nan, data.parallax)
    return rows, data, unreliable


def solve_stars(data, solver, errors, alarms=None):
    """The inferred columns but for confidences and flags, and converged (N,) bool, of usable stars.

    errors: `posterior.ErrorModel`. alarms: `trained_model.Alarms`; where the parallax is in tension
    with the fluxes by these, the solution without it is the second one.
    """
    model = solver.model
    data, seen, odd, modes = find_modes(data, solver, alarms)
    best, second = modes.best, modes.second
    first, other = best.gaussian, second.gaussian
    ln_ratio = best.phi - second.phi
    factors, weights = errors.of(data)
    whole = widened(first, other, ln_ratio, factors)
    alone, elsewhere = estimates(whole, model), estimates(other, model)
    pooled, direct, of_type = alone, None, 1.0
    if seen.direct is not None and weights[:, 1].any():
        direct = seen.direct[:, :, model.is_forward]
        of_type = errors.of_type(seen.direct[0])[:, model.is_forward]
        pooled = estimates(pool(whole, *direct, weights, of_type), model)
    linear = linear_in_extinction(*first.point, model.coordinates)
    signed = signed_extinction(linear, factors, direct, weights, model.coordinates, of_type)
    signed = np.where(np.isfinite(pooled.est[:, 0]), signed, np.nan)
    triangle = np.triu_indices(len(model.coordinates))
    found = {
        "stellar_params_est": pooled.est,
        "stellar_params_err": pooled.err,
        "stellar_params_cov_triu": pooled.cov[:, *triangle],
        "stellar_params_icov_triu": pooled.icov[:, *triangle],
        "model_params_est": alone.est,
        "model_params_err": alone.err,
        "ext_signed_est": signed[0],
        "ext_signed_err": signed[1],
        "second_params_est": elsewhere.est,
        "second_delta_ln_post": np.where(np.isfinite(elsewhere.est[:, 0]), ln_ratio, np.nan),
        "chi2_opt": best.chi2,
        "n_flux": data.observed.used.sum(1).astype("i2"),
        "ln_prior": model.prior.ln_density(best.u[:, model.coordinates.z]).numpy(),
        "ln_post": -best.phi,
    }
    return found | odd | _direct_columns(seen.direct, errors, len(data), model), best.converged


def find_modes(data, solver, alarms=None):
    """What `trusted` gives of `StarData`, and `Modes` of it; arguments as of `solve_stars`."""
    data, seen, odd = trusted(data, solver)
    modes = solver.solve(data, seen.direct)
    if alarms is not None:
        _solve_without_parallax(modes, data, solver, alarms.tense(odd["parallax_tension"]))
    return data, seen, odd, modes


def trusted(data, solver):
    """`StarData` whose parallaxes are trusted as far as the fluxes allow, what is `Seen` of it by a
    `StarSolver`, and `odd_columns` of the stars as they were."""
    seen = solver.seen(data)
    odd = odd_columns(seen, data, solver.model)
    data, rows = doubted(data, *tension(data, seen.distance, solver.model))
    if seen.direct is not None and len(rows):
        seen.direct[:, rows] = solver.seen(data.take(rows)).direct
    return data, seen, odd


def chi2_per_flux(found, data):
    """chi^2 (N,) for each XP flux used, of inferred columns."""
    return found["chi2_opt"] / (data.observed.used[:, : data.channels.n_xp] > 0).sum(1)


def _solve_without_parallax(modes, data, solver, tense):
    """Put the solutions without parallax in the place of the second ones, of the stars `tense` (N,)
    bool; their ln posterior and its curvature are those with the parallax."""
    rows = np.flatnonzero(tense)
    if not len(rows):
        return
    some = data.take(rows)
    hidden = some.without_parallax()
    free = solver.solve(hidden, solver.seen(hidden).direct, every_family=False).best
    k = solver.at.ln_plx
    plx = np.exp(free.u[:, k])
    off, steep = (plx - some.parallax) / some.parallax_err, plx / some.parallax_err
    free.phi = free.phi + 0.5 * off**2
    free.precision[:, k, k] += steep**2 + np.maximum(off * steep, 0.0)
    modes.second.put(rows, free)


def odd_columns(seen, data, model):
    """Columns that say what is odd of stars; NaN where the model has no networks for it."""
    nothing = np.full(len(data), np.nan)
    blend, strange = (nothing, nothing) if seen.kinds is None else seen.kinds[:, 1:].T
    return {
        "parallax_tension": tension(data, seen.distance, model)[1],
        "blend_probability": blend,
        "strange_probability": strange,
    }


def _direct_columns(direct, errors, n, model):
    """Columns of the labels that the direct estimate alone gives."""
    out = {}
    direct = np.full((2, n, len(model.labels)), np.nan) if direct is None else direct.astype("f8")
    sigma = direct[1] * errors.of_type(direct[0])
    for k, label in enumerate(model.labels):
        if not label.forward:
            est = direct[0, :, k] * model.label_scale[k] + model.label_mean[k]
            out[f"{label.name}_est"] = est
            out[f"{label.name}_err"] = sigma[:, k] * model.label_scale[k]
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


def _conditions(found, confidence, data, trained):
    """{name of a quality flag: where it is set (N,) bool} of solved stars, whose confidences are
    (N, K)."""
    model, est = trained.stellar, found["stellar_params_est"]
    at, channels = model.coordinates, model.channels
    used = data.observed.used > 0
    off_parallax = np.abs(est[:, at.ln_plx] - data.parallax)
    alone = (channels.bp & ~channels.rp, channels.rp & ~channels.bp)
    level = data.observed.features[:, 1]
    return {
        flags.confidence_flag(label.name): confidence[:, k] < flags.CONFIDENCE_LIMIT
        for k, label in enumerate(model.labels)
    } | {
        "CHI2": chi2_per_flux(found, data) > trained.alarms.chi2,
        "LN_PRIOR": found["ln_prior"] < model.prior.ln_prior_floor,
        "PARALLAX": off_parallax > flags.PARALLAX_SIGMAS * data.parallax_err,
        "BAD_INPUT": ~np.isfinite(est).all(1),
        "OUT_OF_RANGE": trained.range.excludes(est[:, at.z], est[:, at.ln_ext], level),
        "PARALLAX_TENSION": trained.alarms.tense(found["parallax_tension"]),
        "BLEND": found["blend_probability"] > trained.alarms.blend,
        "STRANGE": found["strange_probability"] > trained.alarms.strange,
        "BAND_MISSING": ~(used[:, alone[0]].any(1) & used[:, alone[1]].any(1)),
    }
