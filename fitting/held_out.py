"""What is made of a training by stars that it never saw: error factors, pool, confidences."""

import numpy as np
from scipy.optimize import minimize

from fitting.catalogue import infer, known_features, label_estimates, solve_stars
from fitting.confidence import fit_confidence, is_right
from fitting.observed import StarData, without_parallax
from fitting.posterior import ErrorModel, needed_factors, physical, pool, pool_loss, widened
from fitting.simulation import simulate
from fitting.trained_model import TrainedModel, TrainingRange

MIN_POOL_STARS = 30  # fewer cannot calibrate the pool: the forward model is left alone
START_WEIGHTS = (0.5, 0.5)  # of the pool


def trained_model(trainer, solver, table):
    """The `TrainedModel` of a training: its range, error factors from simulated stars and, from the
    calibration stars (rows of `table`, with labels), pool and confidences.

    solver: a `StarSolver` of the trainer's model.
    """
    errors = ErrorModel(simulated_factors(trainer, solver), np.array([1.0, 0.0]))
    n_calibration = len(table["plx"])
    if trainer.model.direct is not None and n_calibration >= MIN_POOL_STARS:
        errors = ErrorModel(errors.factors, pool_weights(solver, table, errors.factors))
    confidence = fitted_confidence(solver, table, errors) if n_calibration else None
    if confidence is None:
        confidence = no_confidence(trainer, solver, errors)
    return TrainedModel(trainer.model, errors, confidence, training_range(trainer))


def training_range(trainer):
    """The range of the stars that were trained on."""
    kept = ~trainer.rejected & ~trainer.stars.calibration
    stars = trainer.stars
    theta = stars.data.theta[kept][:, trainer.model.is_forward]
    return TrainingRange.of_stars(theta, stars.ext[kept], stars.observed.features[kept])


def simulated_factors(trainer, solver):
    """The error factors (2, n) that simulated stars need, with a parallax (of 20%) and without;
    real stars lend them their errors and brightness."""
    model, data, recipe = trainer.model, trainer.stars.data, trainer.recipe
    hosts = {"flux": data.flux, "flux_err": data.flux_err}
    alone, factors = ErrorModel.curvature_alone(len(model.coordinates)), []
    for with_parallax in (True, False):
        rng = np.random.default_rng([recipe.seed, len(recipe.stages), with_parallax])
        table, u = simulate(model, hosts, recipe.simulated_stars, with_parallax, rng)
        found, _ = solve_stars(StarData.of_table(table, model.channels), solver, alone)
        est, err = found["model_params_est"], found["model_params_err"]
        factors.append(needed_factors(est, err, physical(u, model)))
    return np.array(factors)


def pool_weights(solver, table, factors):
    """The weights (2,) of `posterior.pool` that make the labels of held-out stars most likely, with
    and without parallaxes."""
    model, seen = solver.model, []
    z = model.standardised(table["stellar_type"])[:, model.is_forward]
    for shown in (table, without_parallax(table)):
        data = StarData.of_table(shown, model.channels)
        direct = solver.direct(data)
        modes = solver.solve(data, direct)
        first, second = (solver.gaussian(data, mode) for mode in (modes.best, modes.second))
        ln_ratio = modes.best.phi - modes.second.phi
        whole = widened(first, second, ln_ratio, data.useful_parallax, factors)
        seen.append((whole, *direct[:, :, model.is_forward]))

    def loss(ln_weights):
        return np.mean([pool_loss(pool(*one, np.exp(ln_weights)), z) for one in seen])

    return np.exp(minimize(loss, np.log(START_WEIGHTS), method="Nelder-Mead").x)


def fitted_confidence(solver, table, errors):
    """`Confidence` in the labels, from held-out stars with and without their parallaxes."""
    model, features, right = solver.model, [], []
    for shown in (table, without_parallax(table)):
        data = StarData.of_table(shown, model.channels)
        found, _ = solve_stars(data, solver, errors)
        features.append(known_features(found, data, model))
        est, err = label_estimates(found, model.labels)
        label = (table["stellar_type"], table["stellar_type_err"])
        right.append(is_right(est, err, *label, model.labels))
    return fit_confidence(np.concatenate(features), np.concatenate(right))


def no_confidence(trainer, solver, errors):
    """The `Confidence` of a training without calibration stars: a half for every star."""
    data = trainer.stars.data.take(np.arange(1))
    found, _ = solve_stars(data, solver, errors)
    features = known_features(found, data, trainer.model)
    return fit_confidence(np.full_like(features, np.nan), np.zeros((1, len(trainer.model.labels))))


def infer_stars(trained, solver, table, rows):
    """Inferred columns of the stars `rows`, their labels hidden, as step 10 would have them."""
    return infer({name: values[rows] for name, values in table.items()}, solver, trained)
