"""What is made of a training by stars that it never saw: error factors, pool, confidences."""

import dataclasses

import numpy as np
from scipy.optimize import minimize

from fitting.batches import N_KINDS
from fitting.catalogue import (
    chi2_per_flux,
    infer,
    known_features,
    label_estimates,
    odd_columns,
    solve_stars,
    trusted,
)
from fitting.confidence import is_right
from fitting.logistic import fit_logistic
from fitting.observed import StarData
from fitting.posterior import (
    NO_TYPE_FACTORS,
    ErrorModel,
    fitted_type_factors,
    needed_factors,
    physical,
    pool,
    pool_loss,
    type_variance,
    widened,
)
from fitting.second_modes import fit_mode_search, search_features
from fitting.simulation import simulate
from fitting.trained_model import Alarms, TrainedModel, TrainingRange
from pipeline.schema import flags

MIN_POOL_STARS = 30  # fewer cannot calibrate the pool: the forward model is left alone
START_WEIGHTS = (0.5, 0.5)  # of the pool
SIMULATED_LEVELS = 3  # brightnesses at which stars calibrate: as they are, and fainter
# Of ordinary stars, for each alarm; more where what is wrong is hard to tell.
FALSE_ALARMS, FALSE_CHI2, FALSE_TENSION = 0.01, 0.015, 0.02
LEAST_TENSION, LEAST_PROBABILITY = 3.0, 0.5  # alarms are not below
WIDEST_STEP = 1e-3  # of a level, at least: levels ascend


@dataclasses.dataclass
class Calibrators:
    """Stars by which errors are calibrated, as they look at some brightness.

    data: `StarData`; label, label_err (N, K).
    """

    data: StarData
    label: np.ndarray
    label_err: np.ndarray

    def without_parallax(self):
        """The same stars, their parallaxes hidden."""
        return dataclasses.replace(self, data=self.data.without_parallax())


def brightnesses(stars, recipe):
    """G magnitudes to which stars are shown fainter to calibrate: none (as they are), and, where
    the training shows them fainter, others down to its faintest."""
    if stars.dimming is None or not recipe.faint_share:
        return [-np.inf]
    bright, faint = recipe.faint_g
    fainter = np.linspace(bright, faint, SIMULATED_LEVELS)[1:]
    return [-np.inf, *fainter.tolist()]


def shown_at(stars, rows, g, seed):
    """`StarData` of the stars `rows` as they look at G magnitude g, or as they are if brighter."""
    data = stars.data.take(rows)
    if not np.isfinite(g):
        return data
    rng, own = np.random.default_rng(seed), stars.g[rows]
    return stars.dimming.show(data, np.maximum(g - own, 0.0), rng, own)


def trained_model(trainer, solver):
    """The `TrainedModel` of a training: its range, error factors from simulated stars and, from the
    calibration stars, which stars are searched for other modes, pool and confidences.

    solver: a `StarSolver` of the trainer's model.
    """
    stars, seed = trainer.stars, trainer.recipe.seed
    rows = np.flatnonzero(stars.calibration)
    sets = [
        Calibrators(
            shown_at(stars, rows, g, [seed, 1, k]),
            stars.data.theta[rows],
            stars.data.theta_err[rows],
        )
        for k, g in enumerate(brightnesses(stars, trainer.recipe))
        if len(rows)
    ]
    trainer.model.search = solver.model.search = fitted_search(solver, sets)
    errors = error_model(trainer, solver, sets)
    alarms = fitted_alarms(solver, sets, chi2_alarm(solver, sets))
    odd = odd_sets(trainer, rows) if len(rows) else []
    confidence = fitted_confidence(trainer, solver, sets, odd, errors)
    return TrainedModel(trainer.model, errors, confidence, training_range(trainer), alarms)


def fitted_search(solver, sets):
    """`ModeSearch` from sets of `Calibrators`, with and without their parallaxes; None where the
    model has no direct estimate or there are no sets."""
    model, features, found = solver.model, [], []
    if model.direct is None or not sets:
        return None
    for shown in (shown for one in sets for shown in (one, one.without_parallax())):
        data, seen, _ = trusted(shown.data, solver)
        direct = seen.direct[:, :, model.is_forward]
        features.append(search_features(data, direct))
        found.append(solver.search_matters(data, direct))
    matters, chi2 = map(np.concatenate, zip(*found, strict=True))
    return fit_mode_search(np.concatenate(features), matters, chi2)


def odd_sets(trainer, rows):
    """`Calibrators` that are blends, whose label is the brighter star's, and strange things, which
    have none (NaN), made of the stars `rows`, as the training shows them."""
    stars, batches = trainer.stars, trainer.batches
    if trainer.model.oddity is None:
        return []
    rng, out = np.random.default_rng([trainer.recipe.seed, 4]), []
    for kind in range(1, N_KINDS):
        data = batches.fainter(batches.odd(kind, rows, rng), rows, rng)
        label = (
            stars.data.theta[rows] if kind == 1 else np.full_like(stars.data.theta[rows], np.nan)
        )
        out.append(Calibrators(data, label, stars.data.theta_err[rows]))
    return out


def fitted_alarms(solver, sets, chi2=flags.LEAST_CHI2):
    """`Alarms` that a share of the calibration stars set, at the brightness where most do; chi2: of
    `chi2_alarm`."""
    found = [odd_columns(solver.seen(one.data), one.data, solver.model) for one in sets]

    def limit(name, least, share=FALSE_ALARMS):
        values = [np.abs(one[name]) for one in found]
        values = [x[np.isfinite(x)] for x in values]
        of_sets = [np.quantile(x, 1 - share) for x in values if len(x)]
        return max([least, *of_sets]) if of_sets else np.inf

    return Alarms(
        limit("parallax_tension", LEAST_TENSION, FALSE_TENSION),
        limit("blend_probability", LEAST_PROBABILITY),
        limit("strange_probability", LEAST_PROBABILITY),
        chi2,
    )


def chi2_alarm(solver, sets):
    """chi^2 for each XP flux that FALSE_CHI2 of the calibration stars exceed, where most do."""
    alone, limits = ErrorModel.curvature_alone(len(solver.model.coordinates)), []
    for one in sets:
        found, _ = solve_stars(one.data, solver, alone)
        limits.append(np.nanquantile(chi2_per_flux(found, one.data), 1 - FALSE_CHI2))
    return max([flags.LEAST_CHI2, *limits])


def training_range(trainer):
    """The range of the stars that were trained on, as they were shown."""
    stars, recipe = trainer.stars, trainer.recipe
    kept = stars.sample(np.flatnonzero(~trainer.rejected & ~stars.calibration))
    theta = stars.data.theta[kept][:, trainer.model.is_forward]
    levels = [
        shown_at(stars, kept, g, [recipe.seed, 2, k]).observed.features[:, 1]
        for k, g in enumerate(brightnesses(stars, recipe))
    ]
    n = len(levels)
    return TrainingRange.of_stars(
        np.tile(theta, (n, 1)), np.tile(stars.ext[kept], n), np.concatenate(levels)
    )


def error_model(trainer, solver, sets):
    """The `ErrorModel` of a training: factors from simulated stars and, from calibration stars,
    weights of the pool, at each brightness of `sets`, and factors by type."""
    model, levels, factors, weights, pulls = trainer.model, [], [], [], []
    for k in range(len(brightnesses(trainer.stars, trainer.recipe))):
        level, of_set = simulated_factors(trainer, solver, k)
        levels.append(max([level, *(x + WIDEST_STEP for x in levels)]))
        factors.append(of_set)
        own = np.array([1.0, 0.0])
        if sets and model.direct is not None and len(sets[k].data) >= MIN_POOL_STARS:
            seen = both_estimates(solver, sets[k], of_set)
            own = pool_weights(seen, sets[k], model)
            pulls += type_pulls(seen, own, sets[k], model)
        weights.append(own)
    of_type = NO_TYPE_FACTORS
    if pulls:
        of_type = fitted_type_factors(*(np.stack(x) for x in zip(*pulls, strict=True)))
    return ErrorModel(np.array(levels), np.stack(factors, 1), np.array(weights), of_type)


def simulated_factors(trainer, solver, k):
    """(error level, factors (2, n)) that simulated stars need at the k-th of `brightnesses`, with a
    parallax (of 20%) and without; real stars lend them their errors and brightness."""
    model, stars, recipe = trainer.model, trainer.stars, trainer.recipe
    g = brightnesses(stars, recipe)[k]
    data = shown_at(stars, stars.sample(np.arange(len(stars))), g, [recipe.seed, 3, k])
    hosts = {"flux": data.flux, "flux_err": data.flux_err}
    alone, factors = ErrorModel.curvature_alone(len(model.coordinates)), []
    for with_parallax in (True, False):
        rng = np.random.default_rng([recipe.seed, len(recipe.stages), with_parallax, k])
        table, u = simulate(model, hosts, recipe.simulated_stars, with_parallax, rng)
        found, _ = solve_stars(StarData.of_table(table, model.channels), solver, alone)
        est, err = found["model_params_est"], found["model_params_err"]
        factors.append(needed_factors(est, err, physical(u, model)))
    return float(np.median(data.observed.features[:, 1])), np.array(factors)


def both_estimates(solver, one, factors):
    """What both estimates say of `Calibrators`, with and without parallaxes: the forward model's
    `Gaussian`, of errors times factors (2, n), and the direct estimate (2, N, K)."""
    out = []
    for shown in (one, one.without_parallax()):
        data, own, _ = trusted(shown.data, solver)
        modes = solver.solve(data, own.direct)
        first, second = modes.best.gaussian, modes.second.gaussian
        ln_ratio = modes.best.phi - modes.second.phi
        of_star = np.where(data.useful_parallax[:, None], *factors)
        out.append((widened(first, second, ln_ratio, of_star), own.direct))
    return out


def pooled(seen, weights, forward):
    """The `Gaussian`s of `both_estimates` pooled with weights (2,), without factors by type."""
    out = []
    for whole, direct in seen:
        z, sigma = direct[:, :, forward]
        out.append(pool(whole, z, sigma, np.tile(weights, (len(z), 1))))
    return out


def pool_weights(seen, one, model):
    """The weights (2,) of `posterior.pool` that make the labels of `Calibrators` most likely, of
    whom `both_estimates` have seen so much; both smaller where the labels would be within the
    errors less often than these claim."""
    forward = model.is_forward
    z = model.standardised(one.label)[:, forward]
    z_err = (one.label_err / model.label_scale)[:, forward]

    def loss(ln_weights):
        return np.mean([pool_loss(x, z) for x in pooled(seen, np.exp(ln_weights), forward)])

    best = np.exp(minimize(loss, np.log(START_WEIGHTS), method="Nelder-Mead").x)
    # The loss has heavy tails, for labels that are wrong; where few are, it makes errors too small.
    needed = [needed_pool_factors(x, z, z_err) for x in pooled(seen, best, forward)]
    return best / max(1.0, np.exp(np.mean(np.log(needed)))) ** 2


def needed_pool_factors(gaussian, z, z_err):
    """`needed_factors` (K,) of a pooled `Gaussian`, for labels z (N, K) and their errors."""
    k = z.shape[1]
    err = np.sqrt(type_variance(gaussian, k) + z_err**2)
    return needed_factors(gaussian.mean[:, :k], err, z)


def type_pulls(seen, weights, one, model):
    """[(pulls (N, K) of all labels, direct estimates (N, K))] of `Calibrators`, with and without
    parallaxes; the other arguments as of `pooled`. The labels' own errors are in the pulls, as they
    are in what both estimates have learned."""
    forward, z, out = model.is_forward, model.standardised(one.label), []
    for gaussian, (_, direct) in zip(pooled(seen, weights, forward), seen, strict=True):
        est, err = direct.astype("f8")
        est[:, forward] = gaussian.mean[:, : forward.sum()]
        err[:, forward] = np.sqrt(type_variance(gaussian, forward.sum()))
        out.append(((est - z) / err, direct[0]))
    return out


def fitted_confidence(trainer, solver, sets, odd, errors):
    """`Logistic` in the labels, from sets of `Calibrators` with and without their parallaxes, and
    from odd ones; a half for every star where there are none."""
    model, features, right = solver.model, [], []
    if not sets:
        data = trainer.stars.data.take(np.arange(1))
        features = known_features(solve_stars(data, solver, errors)[0], data, model)
        return fit_logistic(np.full_like(features, np.nan), np.ones((1, len(model.labels)), bool))
    shown_sets = [shown for one in sets for shown in (one, one.without_parallax())]
    for shown in shown_sets + odd:
        found, _ = solve_stars(shown.data, solver, errors)
        features.append(known_features(found, shown.data, model))
        est, err = label_estimates(found, model.labels)
        right.append(is_right(est, err, shown.label, shown.label_err, model.labels))
    return fit_logistic(np.concatenate(features), np.concatenate(right))


def infer_stars(trained, solver, table, rows):
    """Inferred columns of the stars `rows`, their labels hidden, as step 10 would have them."""
    return infer({name: values[rows] for name, values in table.items()}, solver, trained)
