"""What the catalogue says is odd of a star, and the errors that depend on how well it is seen."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from model_case import (
    CHANNELS,
    MEAN,
    N_WL,
    N_XP,
    NO_BP,
    RP,
    SCALE,
    make_flux_model,
    make_noise_model,
    make_prior,
    make_solver,
    mock_stars,
    replaced,
    table_of,
)

from fitting.catalogue import FIDELITY, infer, known_features, odd_columns, solve_stars
from fitting.direct import direct_inputs
from fitting.held_out import (
    FALSE_ALARMS,
    FALSE_TENSION,
    LEAST_PROBABILITY,
    LEAST_TENSION,
    Calibrators,
    fitted_alarms,
)
from fitting.logistic import fit_logistic
from fitting.networks import Classification, Regression
from fitting.posterior import NO_TYPE_FACTORS, ErrorModel
from fitting.star_solver import Seen, StarSolver
from fitting.stellar_model import StellarModel
from fitting.trained_model import NO_ALARMS, Alarms, TrainedModel, TrainingRange
from pipeline.schema import DEFAULT_LABELS, flags

BITS = flags.quality_flag(DEFAULT_LABELS)
N = 24
ALONE = ErrorModel.curvature_alone(6)
NO_BP_STAR, NO_RP_STAR = 0, 1


@pytest.fixture(scope="module")
def model():
    """A small model whose networks tell distance and what is odd; they are not trained."""
    labels = {"label_mean": MEAN[:3], "label_scale": SCALE[:3], "fine_wavelengths": np.empty(0)}
    parts = {"flux": make_flux_model(), "noise": make_noise_model(), "prior": make_prior()}
    words = {"labels": DEFAULT_LABELS, "release": "dr3", "xp_basis": "a basis"}
    out = StellarModel(channels=CHANNELS, **words, **labels, **parts)
    data, _ = mock_stars(out, 60, seed=5)
    inputs = direct_inputs(data)
    masks = np.ones((2, inputs.shape[1]))
    out.distance = Regression(inputs, 2, masks, (8,), "distance")
    out.oddity = Classification(inputs, 3, masks, (8,), "oddity")
    out.oddity.weights[-1].assign(5 * out.oddity.weights[-1])
    at_kpc = data.observed.features[:, 0] - 2 * np.log(data.parallax)
    out.distance_mean, out.distance_scale = at_kpc.mean(), at_kpc.std()
    return out


@pytest.fixture(scope="module")
def solver(model):
    return make_solver(model, batch_size=32)


@pytest.fixture(scope="module")
def data(model):
    """Mock stars; the first has no BP, the second no RP."""
    stars, _ = mock_stars(model, N, seed=6)
    stars.flux_err[NO_BP_STAR, NO_BP] = stars.flux_err[NO_RP_STAR, RP] = np.inf
    return replaced(stars)


@pytest.fixture(scope="module")
def solved(data, solver):
    return solve_stars(data, solver, ALONE)[0]


def wide_range(level=(-20.0, 20.0)):
    corners = MEAN[:3] + 9 * SCALE[:3] * np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1).T
    ends = np.resize([[0.0, level[0]], [20.0, level[1]]], (len(corners), 2))
    return TrainingRange.of_stars(corners, *ends.T)


@pytest.fixture(scope="module")
def trained(data, solver, solved):
    features = known_features(solved, data, solver.model)
    confidence = fit_logistic(np.full_like(features, np.nan), np.ones((N, 3), bool))
    return TrainedModel(solver.model, ALONE, confidence, wide_range())


@pytest.fixture(scope="module")
def inferred(data, solver, trained):
    return infer(table_of(data), solver, trained)


def flagged(columns, name):
    return (columns["quality_flags"] & BITS[name].value) > 0


# ---- tension of the parallax


def exact_distance(data, model, sigma=0.05):
    """`Seen` of networks that know the ln flux at 1 kpc, with an error sigma of it."""
    at_kpc = data.observed.features[:, 0] - 2 * np.log(data.parallax)
    z = (at_kpc - model.distance_mean) / model.distance_scale
    sigma = np.full(len(data), sigma / model.distance_scale)
    return Seen(distance=np.stack([z, sigma])[:, :, None])


def tension(data, seen, model):
    return odd_columns(seen, data, model)["parallax_tension"]


def with_parallax(data, factor=1.0, relative=0.01):
    plx = factor * data.parallax
    return replaced(data, parallax=plx, parallax_err=relative * plx)


def test_tension_of_the_right_parallax_is_none_and_of_a_doubled_one_large(data, model):
    seen = exact_distance(data, model)
    np.testing.assert_allclose(tension(with_parallax(data), seen, model), 0.0, atol=1e-3)
    expected = np.log(2) / np.hypot(0.01, 0.025)
    assert expected > 20
    doubled, halved = (with_parallax(data, factor) for factor in (2.0, 0.5))
    np.testing.assert_allclose(tension(doubled, seen, model), expected, rtol=1e-4)
    np.testing.assert_allclose(tension(halved, seen, model), -expected, rtol=1e-4)


def test_tension_is_small_where_the_parallax_or_the_fluxes_say_little(data, model):
    doubled = with_parallax(data, 2.0)
    assert (tension(doubled, exact_distance(data, model, 2.0), model) < 1).all()
    vague = with_parallax(data, 2.0, 0.9)
    assert (tension(vague, exact_distance(data, model), model) < 1).all()


@pytest.mark.parametrize("factor", [-3.0, 0.0, 0.5])
def test_tension_of_a_parallax_below_its_error_is_that_of_the_error(data, model, factor):
    seen, err = exact_distance(data, model), 0.3 * data.parallax
    below = replaced(data, parallax=factor * err, parallax_err=err)
    found = tension(below, seen, model)
    expected = tension(replaced(data, parallax=err, parallax_err=err), seen, model)
    np.testing.assert_array_equal(found, expected)
    assert np.isfinite(found).all()


def test_tension_without_parallax_or_without_networks_is_not_known(data, model):
    hidden = data.without_parallax()
    assert np.isnan(tension(hidden, exact_distance(data, model), model)).all()
    for values in odd_columns(Seen(), data, model).values():
        assert np.isnan(values).all()


def test_what_the_fluxes_say_does_not_know_the_parallax(data, solver):
    seen, other = solver.seen(data), solver.seen(with_parallax(data, 3.0, 0.5))
    np.testing.assert_array_equal(seen.distance, other.distance)
    np.testing.assert_array_equal(seen.kinds, other.kinds)


def test_networks_on_the_finer_spectrum_say_nothing_of_stars_without_it(data, model):
    needing = SimpleNamespace(model=dataclasses.replace(model, fine_wavelengths=np.arange(9.0)))
    assert StarSolver.seen(needing, data) == Seen()


# ---- limits of the alarms


class Sayer:
    """In the place of a solver: says of stars what they carry in their labels."""

    def __init__(self, model):
        self.model = model

    def seen(self, data):
        z, blend, strange = data.theta.T
        distance = np.stack([z, np.full(len(z), 1e-3)])[:, :, None]
        return Seen(None, distance, np.stack([1 - blend - strange, blend, strange], 1))


def calibrators(model, n, scale, seed=0):
    """Stars whose tensions and probabilities are of a size, as the `Sayer` says."""
    rng = np.random.default_rng(seed)
    stars, _ = mock_stars(model, 8, seed=seed)
    stars = with_parallax(stars.take(np.arange(n) % 8), relative=0.02)
    z = exact_distance(stars, model).distance[0, :, 0]
    z = z + scale * 0.1 * rng.standard_t(3, n) / model.distance_scale
    values = np.column_stack([z, *(0.49 * rng.random((2, n)) ** (1 / scale))])
    return Calibrators(replaced(stars, theta=values), None, None)


def test_at_most_the_stated_share_of_calibration_stars_raises_an_alarm(model):
    sets = [calibrators(model, n, scale, n) for n, scale in ((1000, 1.0), (600, 3.0), (2000, 0.5))]
    alarms = fitted_alarms(Sayer(model), sets)
    shares = []
    for one in sets:
        found = odd_columns(Sayer(model).seen(one.data), one.data, model)
        shares.append(
            [
                alarms.tense(found["parallax_tension"]).mean(),
                (found["blend_probability"] > alarms.blend).mean(),
                (found["strange_probability"] > alarms.strange).mean(),
            ]
        )
    assert (np.array(shares) <= [FALSE_TENSION, FALSE_ALARMS, FALSE_ALARMS]).all()
    assert shares[1][0] > 0.5 * FALSE_TENSION  # the set where most do decides
    assert alarms.tension > LEAST_TENSION


def test_alarms_are_not_below_what_is_odd_at_all(model):
    alarms = fitted_alarms(Sayer(model), [calibrators(model, 200, 1e-2)])
    assert alarms.tension == LEAST_TENSION
    assert alarms.blend == alarms.strange == LEAST_PROBABILITY


def test_without_networks_or_calibration_stars_there_are_no_alarms(model):
    silent = SimpleNamespace(model=model, seen=lambda data: Seen())
    assert fitted_alarms(silent, [calibrators(model, 50, 1.0)]) == NO_ALARMS
    assert fitted_alarms(Sayer(model), []) == NO_ALARMS


def test_an_unknown_tension_raises_no_alarm():
    found = Alarms(3.0, 0.5, 0.5).tense(np.array([np.nan, -3.1, 2.9, 3.1]))
    assert found.tolist() == [False, True, False, True]


# ---- errors by level


def at_level(levels, useful=True):
    """Stars of ln relative errors, as `ErrorModel` looks at them."""
    features = np.column_stack([np.zeros(len(levels)), levels])
    observed = SimpleNamespace(features=features)
    return SimpleNamespace(observed=observed, useful_parallax=np.full(len(levels), useful))


def test_error_model_interpolates_between_levels_and_is_constant_beyond():
    factors = np.array([[[1.0, 2.0], [2.0, 6.0], [4.0, 6.0]], [[1.5, 1.5], [1.5, 3.5], [9.5, 3.5]]])
    weights = np.array([[1.0, 0.0], [0.6, 0.4], [0.2, 0.4]])
    errors = ErrorModel(np.array([-4.0, -3.0, -1.0]), factors, weights, NO_TYPE_FACTORS)
    places = [-9.0, -4.0, -3.5, -3.0, -1.5, -1.0, 0.0]
    expected = [[1, 2], [1, 2], [1.5, 4], [2, 6], [3.5, 6], [4, 6], [4, 6]]
    found, pool = errors.of(at_level(places))
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(pool[[0, 2, 4, 6]], [[1, 0], [0.8, 0.2], [0.3, 0.4], [0.2, 0.4]])
    without, same = errors.of(at_level(places, useful=False))
    np.testing.assert_allclose(without[[0, 2, 4]], [[1.5, 1.5], [1.5, 2.5], [7.5, 3.5]])
    np.testing.assert_array_equal(same, pool)


def test_error_model_of_the_curvature_alone_changes_nothing():
    factors, weights = ALONE.of(at_level([-7.0, 0.0, 7.0]))
    assert (factors == 1).all()
    assert (weights == [1, 0]).all()


# ---- flags


def test_a_star_without_BP_or_RP_is_flagged_and_no_other(inferred):
    missing = flagged(inferred, "BAND_MISSING")
    assert np.flatnonzero(missing).tolist() == [NO_BP_STAR, NO_RP_STAR]
    assert np.isfinite(inferred["stellar_params_est"]).all()


def test_parallax_of_low_fidelity_is_not_used(data, solver, trained, inferred):
    table = table_of(data)
    fidelity = np.full(N, 1.0, "f4")
    fidelity[5:9], fidelity[10] = flags.LEAST_FIDELITY - 0.01, np.nan
    low = fidelity < flags.LEAST_FIDELITY
    found = infer(table | {FIDELITY: fidelity}, solver, trained)
    for name in ("plx", "plx_err"):
        table[name][low] = np.nan
    expected = infer(table, solver, trained)
    np.testing.assert_array_equal(flagged(found, "LOW_FIDELITY"), low)
    for name in found:
        if name != "quality_flags":
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    others = found["quality_flags"] & ~np.uint32(BITS.LOW_FIDELITY.value)
    np.testing.assert_array_equal(others, expected["quality_flags"])
    plx = [x["stellar_params_est"][low, 5] for x in (found, inferred)]
    assert (plx[0] != plx[1]).all()


def test_without_a_column_of_fidelity_none_is_low(inferred):
    assert not flagged(inferred, "LOW_FIDELITY").any()


def test_out_of_range_goes_by_the_error_level_and_not_by_the_brightness(data, solver, trained):
    level = data.observed.features[:, 1]
    limits = wide_range((level.min() - 0.1, level.max() + 0.1))
    limited = dataclasses.replace(trained, range=limits)
    table = table_of(data)
    bright = dict(table)
    for name, factor in (("flux", 400.0), ("flux_err", 400.0), ("plx", 20.0), ("plx_err", 20.0)):
        bright[name] = np.float32(factor) * table[name]
    noisy = table | {"flux_err": 2 * table["flux_err"]}
    shares = [
        flagged(infer(x, solver, limited), "OUT_OF_RANGE").mean() for x in (table, bright, noisy)
    ]
    assert shares[:2] == [0.0, 0.0]
    assert shares[2] > 0.5


def test_range_excludes_what_is_beyond_the_levels_of_training():
    limits = wide_range((-5.0, -2.0))
    theta = np.tile(MEAN[:3], (4, 1))
    found = limits.excludes(theta, np.ones(4), np.array([-5.1, -4.9, -2.1, -1.9]))
    assert found.tolist() == [True, False, False, True]


def test_blends_and_strange_things_are_flagged_above_their_alarms(data, solver, trained, inferred):
    names = ("blend_probability", "strange_probability")
    limits = [float(np.median(inferred[name])) for name in names]
    alarmed = dataclasses.replace(trained, alarms=Alarms(np.inf, *limits))
    found = infer(table_of(data), solver, alarmed)
    for flag, name, limit in zip(("BLEND", "STRANGE"), names, limits, strict=True):
        np.testing.assert_array_equal(flagged(found, flag), found[name] > limit)
        assert 0 < flagged(found, flag).sum() < N
        assert not flagged(inferred, flag).any()


def test_a_star_in_tension_has_the_solution_without_parallax_as_its_second(
    data, solver, trained, inferred
):
    pulls = np.abs(inferred["parallax_tension"])
    assert not flagged(inferred, "PARALLAX_TENSION").any()
    alarmed = dataclasses.replace(trained, alarms=Alarms(float(np.median(pulls)), np.inf, np.inf))
    found = infer(table_of(data), solver, alarmed)
    tense = flagged(found, "PARALLAX_TENSION")
    np.testing.assert_array_equal(tense, pulls > np.median(pulls))
    free = infer(table_of(data.without_parallax()), solver, trained)
    np.testing.assert_allclose(
        found["second_params_est"][tense], free["model_params_est"][tense], rtol=2e-2, atol=2e-2
    )
    assert np.isfinite(found["second_delta_ln_post"][tense]).all()
    for name in ("second_params_est", "second_delta_ln_post"):
        np.testing.assert_array_equal(found[name][~tense], inferred[name][~tense])
    np.testing.assert_array_equal(found["model_params_est"], inferred["model_params_est"])


def test_a_star_that_cannot_be_solved_is_bad_input_alone(data, solver, trained):
    table = table_of(data.take(slice(0, 3)))
    table["flux_err"][1, :N_XP] = np.inf
    found = infer(table | {FIDELITY: np.zeros(3, "f4")}, solver, trained)
    assert found["quality_flags"][1] == BITS.BAD_INPUT.value
    assert found["n_flux"][1] == N_WL - N_XP
    for name in ("parallax_tension", "blend_probability", "strange_probability"):
        assert np.isnan(found[name][1])


def test_flags_are_distinct_and_fit_their_column(inferred):
    values = [flag.value for flag in BITS]
    assert len(set(values)) == len(values)
    assert max(values) < flags.FIRST_FREE_BIT <= np.iinfo(inferred["quality_flags"].dtype).max


# ---- kept


def test_a_trained_model_keeps_its_alarms_errors_and_networks(data, solver, trained):
    weights, of_type = np.array([[1, 0], [0.5, 0.5]]), np.full((3, 4), 0.1)
    errors = ErrorModel(np.array([-4.0, -2.0]), np.ones((2, 2, 6)), weights, of_type)
    kept = dataclasses.replace(trained, errors=errors, alarms=Alarms(3.5, 0.7, np.inf))
    arrays = {name: np.array(value) for name, value in kept.to_arrays().items()}
    again = TrainedModel.from_arrays(arrays)
    assert again.alarms == kept.alarms
    np.testing.assert_array_equal(again.errors.levels, errors.levels)
    np.testing.assert_array_equal(again.errors.pool_weights, errors.pool_weights)
    np.testing.assert_array_equal(again.errors.type_factors, errors.type_factors)
    model, other = trained.stellar, again.stellar
    assert other.distance_mean == model.distance_mean
    assert other.distance_scale == model.distance_scale
    inputs = direct_inputs(data)
    for network in ("distance", "oddity"):
        pair = (getattr(x, network).forward(inputs) for x in (model, other))
        np.testing.assert_array_equal(*pair)
    assert other.direct is None
