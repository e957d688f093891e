"""The descents of the star solver against SciPy, in the objective's float64 counterpart."""

import numpy as np
import pytest
from model_case import (
    BP,
    LABEL_SETS,
    N_WL,
    RP,
    WISE,
    eagerly,
    make_model,
    mock_stars,
    permuted,
    replaced,
)
from model_oracle import Star, slope
from scipy import optimize

from fitting import minimiser as minimiser_module
from fitting.minimiser import Minimiser, projectable
from fitting.objective import LabelTerm, MixtureTerm, Objective
from fitting.posterior import estimates, physical
from fitting.solutions import Solution, Stop
from fitting.star_solver import StarSolver
from pipeline.statistics import robust_width


@pytest.fixture(scope="module")
def model(star_solver):
    return star_solver.model


@pytest.fixture(scope="module")
def at(model):
    return model.coordinates


def refined(solver, data, u):
    """Descents from u (n, 6) with the noise held there, so that the oracle can hold the same."""
    return solver.minimise(data, np.asarray(u, "f4"), evaluations=60)


def errors(solver, data, solution):
    """1 sigma (n, 6) in physical units."""
    return estimates(solver.gaussian(data, solution, over_a_sigma=False), solver.model).err


def lowest(oracle, starts, star, noise, at):
    """The lowest phi that SciPy finds."""
    bounds = list(zip(at.lower, at.upper, strict=True))
    options = {"maxiter": 100}
    return min(
        optimize.minimize(oracle.phi, start, (star, noise), bounds=bounds, options=options).fun
        for start in starts
    )


def assert_same_solution(a, b, at, ln_plx_shift=0.0, tolerance=2e-3):
    shift = np.eye(len(at))[at.ln_plx] * ln_plx_shift
    np.testing.assert_allclose(b.u, a.u + shift, atol=tolerance)
    np.testing.assert_allclose(b.phi, a.phi, atol=tolerance)


# ----------------------------------------------------------------------------------- the optimum


def test_optimum_is_not_beaten_by_scipy_from_several_starts(
    star_solver, oracle, mocks, solved, at, model
):
    n = 5
    data, truth = mocks[0].take(slice(0, n)), mocks[1][:n]
    u0 = solved.best.u[:n]
    found = refined(star_solver, data, u0)
    assert found.converged.all()
    rng = np.random.default_rng(6)
    for i in range(n):
        star = Star(data, i)
        noise = oracle.noise_at(u0[i], star)
        assert found.phi[i] == pytest.approx(oracle.phi(found.u[i], star, noise), abs=0.01)
        away = np.append(model.prior.sample(1, rng)[0], [0.0, -1.0, np.log(star.parallax)])
        starts = (found.u[i], truth[i], away)
        assert found.phi[i] < lowest(oracle, starts, star, noise, at) + 0.1


def test_slope_vanishes_at_the_solution(star_solver, oracle, varied):
    data, _ = varied
    u0 = star_solver.solve(data).best.u
    found = refined(star_solver, data, u0)
    precision = star_solver.gaussian(data, found, over_a_sigma=False).precision
    sigma = np.sqrt(np.einsum("nii->ni", np.linalg.inv(precision)))
    for i in range(len(data)):
        star = Star(data, i)
        noise = oracle.noise_at(u0[i], star)
        gradient = slope(lambda x, a=star, b=noise: oracle.phi(x, a, b), found.u[i])
        assert (np.abs(gradient * sigma[i]) < 0.1).all()  # 0.1 sigma costs 0.005 of phi


def test_stars_drawn_from_the_model_are_recovered_within_their_errors(
    star_solver, model, mocks, solved
):
    best = solved.best
    assert best.converged.all()
    sigma = errors(star_solver, mocks[0], best)
    pull = (physical(best.u, model) - physical(mocks[1], model)) / sigma
    width = robust_width(pull)
    assert ((width > 0.8) & (width < 1.2)).all()
    assert (np.abs(np.median(pull, 0)) < 0.25).all()
    assert (np.mean(np.abs(pull) > 4, 0) < 0.02).all()
    assert np.median(best.chi2) == pytest.approx(N_WL - 6, abs=2)  # six parameters


@pytest.mark.parametrize("n_labels", [2, 4])
def test_stars_with_any_number_of_labels_are_recovered_within_their_errors(n_labels):
    with eagerly():
        solver = StarSolver(make_model(LABEL_SETS[n_labels]))
        data, truth = mock_stars(solver.model, 150, seed=2)
        found = solver.solve(data).best
        sigma = errors(solver, data, found)
    assert found.u.shape == (150, n_labels + 3)
    assert found.converged.all()
    pull = (physical(found.u, solver.model) - physical(truth, solver.model)) / sigma
    width = robust_width(pull)
    assert ((width > 0.75) & (width < 1.3)).all()
    assert np.median(found.chi2) == pytest.approx(N_WL - n_labels - 3, abs=3)


def test_order_of_the_labels_permutes_solutions_and_precisions():
    n_labels = 4
    model, order = make_model(LABEL_SETS[n_labels]), np.roll(np.arange(n_labels), 1)
    whole = [*order, n_labels, n_labels + 1, n_labels + 2]
    data, truth = mock_stars(model, 24, seed=8)
    with eagerly():
        solvers = [StarSolver(m, batch_size=24) for m in (model, permuted(model, order))]
        modes = [solver.solve(data).best for solver in solvers]
        # Other templates are drawn, so the starts, where the noise is taken, are not the same.
        assert np.mean(np.abs(modes[1].phi - modes[0].phi) < 0.3) > 0.9
        starts = truth.astype("f4"), truth[:, whole].astype("f4")
        ends = [s.minimise(data, u, 15) for s, u in zip(solvers, starts, strict=True)]
        gaussians = [s.gaussian(data, end) for s, end in zip(solvers, ends, strict=True)]
    np.testing.assert_allclose(ends[1].u, ends[0].u[:, whole], atol=0.01)
    first, second = (g.precision for g in gaussians)
    size = np.sqrt(np.einsum("nii->ni", first))[:, whole]
    size = size[:, :, None] * size[:, None]
    np.testing.assert_allclose(second / size, first[:, whole][:, :, whole] / size, atol=0.02)


def test_stars_with_labels_descend_to_the_lowest_that_scipy_finds(model, oracle, varied, at):
    """Labels and reddening as priors in the place of the mixture."""
    data, truth = varied
    rng = np.random.default_rng(5)
    known = physical(truth, model)
    theta = known[:, at.z] + rng.normal(0, 0.1, (len(truth), 3))
    data = replaced(
        data,
        theta=theta,
        theta_err=rng.uniform(0.05, 0.2, theta.shape),
        extinction=known[:, at.ln_ext] + rng.normal(0, 0.1, len(truth)),
        extinction_err=np.full(len(truth), 0.1),
    )
    u0 = truth.astype("f4")
    with eagerly():
        minimiser = Minimiser(Objective(model, LabelTerm(model.flux)), len(data))
        found = minimiser.minimise(data, u0, evaluations=15)
    for i in range(len(data)):
        star = Star(data, i)
        noise = oracle.noise_at(u0[i], star)
        assert found.phi[i] == pytest.approx(oracle.phi(found.u[i], star, noise), abs=0.01)
        assert found.phi[i] < lowest(oracle, [found.u[i]], star, noise, at) + 0.05


def test_flux_errors_larger_than_usual_give_larger_parameter_errors(star_solver, mocks, solved, at):
    data = mocks[0].take(slice(0, 60))
    wide = replaced(data, flux_err=4 * data.flux_err)
    worse = errors(star_solver, wide, star_solver.solve(wide).best)
    usual = errors(star_solver, mocks[0], solved.best)[:60]
    assert (np.median(worse / usual, 0)[at.z] > 1.5).all()


# ------------------------------------------------------------------------- why a descent stopped


class Uphill(Objective):
    """An objective whose gradient points the wrong way: no step gains anything."""

    def evaluate(self, u, data, whitening):
        point = super().evaluate(u, data, whitening)
        return point._replace(gradient=-1e9 * point.gradient)


def test_descent_says_why_it_stopped(model, mocks):
    data, far = mocks[0].take(slice(0, 10)), np.zeros((10, 6), "f4")
    with eagerly():
        downhill, uphill = (
            Minimiser(kind(model, MixtureTerm(model.prior)), 10) for kind in (Objective, Uphill)
        )
        found = {steps: downhill.minimise(data, far, steps) for steps in (1, 3, 60)}
        stuck = uphill.minimise(data, mocks[1][:10].astype("f4"), 40)
    assert (found[1].stop == Stop.ITERATIONS).all()
    assert (found[3].stop == Stop.ITERATIONS).all()
    assert (found[60].stop == Stop.CONVERGED).all()
    assert (stuck.stop == Stop.STALLED).all()
    for solution, converged in ((found[1], False), (found[60], True), (stuck, False)):
        assert (solution.converged == converged).all()
    assert (found[3].phi < found[1].phi).all()
    assert (found[60].phi <= found[3].phi).all()


def test_star_without_a_descent_has_no_solution(star_solver, mocks, solved):
    empty = Solution.empty(3, 6)
    assert (empty.stop == Stop.NONE).all()
    assert not empty.converged.any()
    assert np.isnan(empty.u).all()
    assert np.isinf(empty.phi).all()
    none = ~np.isfinite(solved.second.phi)
    assert none.any()
    assert (solved.second.stop[none] == Stop.NONE).all()
    assert (solved.second.stop[~none] != Stop.NONE).all()


def test_stop_reasons_are_distinct_and_fit_their_array():
    assert sorted(Stop) == list(range(len(Stop)))
    assert Solution.empty(1, 6).stop.dtype == np.uint8


def test_unfinished_descents_are_finished_in_a_pool(star_solver, mocks, solved):
    data = mocks[0].take(slice(0, 60))
    far = np.zeros((60, 6), "f4")
    first = star_solver.minimise(data, far, minimiser_module.FIRST_EVALUATIONS)
    assert not first.converged.all()
    assert star_solver.finish(data, far).converged.mean() > 0.95


# --------------------------------------------------------------- stars do not see their neighbours


def test_order_of_the_stars_does_not_matter(star_solver, mocks, solved):
    order = np.random.default_rng(7).permutation(150)
    again = star_solver.solve(mocks[0].take(order))
    for a, b in ((solved.best, again.best), (solved.second, again.second)):
        for name, value in vars(a).items():
            np.testing.assert_allclose(
                getattr(b, name), value[order], rtol=1e-4, atol=1e-4, err_msg=name
            )


@pytest.mark.parametrize("n", [1, 7])
def test_padding_of_the_batch_does_not_matter(star_solver, mocks, solved, n):
    alone = star_solver.solve(mocks[0].take(slice(40, 40 + n))).best
    np.testing.assert_allclose(alone.u, solved.best.u[40 : 40 + n], atol=1e-4)
    np.testing.assert_allclose(alone.phi, solved.best.phi[40 : 40 + n], atol=1e-3)


def test_neighbours_of_impossible_stars_are_unharmed(star_solver, mocks, solved):
    data = mocks[0].take(slice(0, 30))
    flux, err = data.flux.copy(), data.flux_err.copy()
    flux[3], err[4], flux[5], err[6] = 1e30, 1e-30, 1e-30, 1e30
    plx, plx_err = data.parallax.copy(), data.parallax_err.copy()
    plx[7], plx[8], plx_err[8] = 1e8, -1e8, 1e-3
    bad = replaced(data, flux=flux, flux_err=err, parallax=plx, parallax_err=plx_err)
    found = star_solver.solve(bad).best
    others = np.delete(np.arange(30), np.arange(3, 9))
    np.testing.assert_allclose(found.u[others], solved.best.u[others], atol=1e-4)
    np.testing.assert_allclose(found.phi[others], solved.best.phi[others], atol=1e-3)


def test_stars_of_all_patterns_in_one_call_equal_each_alone(star_solver, varied):
    data, _ = varied
    together = star_solver.solve(data).best
    for i in range(len(data)):
        alone = star_solver.solve(data.take([i])).best
        np.testing.assert_allclose(alone.u[0], together.u[i], atol=1e-4)
    assert np.isfinite(together.u).all()
    assert together.converged.all()


def test_general_way_of_missing_channels_equals_the_fast_one(star_solver, varied, at, monkeypatch):
    data, truth = varied
    data, u = data.take(slice(0, 6)), truth[:6].astype("f4")
    assert projectable(data.observed.used > 0, data.channels.n_xp).all()
    fast = star_solver.minimise(data, u, 40)
    never = lambda used, n_xp: np.zeros(len(used), bool)  # noqa: E731
    monkeypatch.setattr(minimiser_module, "projectable", never)
    general = star_solver.minimise(data, u, 40)
    assert_same_solution(fast, general, at, tolerance=5e-3)
    np.testing.assert_allclose(general.chi2, fast.chi2, rtol=5e-3)


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ([], True),
        (range(26), True),
        ([0], True),
        (WISE, True),
        ([*range(26), 61, 65], True),
        (range(61), True),
        (range(66), True),
        (RP, False),
        ([1], False),
        ([60], False),
        ([30], False),
        ([*BP[:-1]], True),
        ([*BP[1:]], False),
    ],
)
def test_fast_patterns_are_missing_blue_ends_and_photometry(missing, expected):
    used = np.ones((1, N_WL), bool)
    used[0, list(missing)] = False
    assert projectable(used, 61)[0] == expected


# ------------------------------------------------------------------------------------ metamorphic


@pytest.mark.parametrize("missing", [[62], WISE, range(26), RP, [20, 33]])
def test_flux_of_a_band_with_infinite_error_does_not_matter(star_solver, mocks, missing):
    data, missing = mocks[0].take(slice(0, 8)), list(missing)
    flux, err = data.flux.copy(), data.flux_err.copy()
    err[:, missing] = np.inf
    first = star_solver.solve(replaced(data, flux_err=err)).best
    flux[:, missing] = np.array([0, -3, 1e20, np.nan, np.inf, 1, 5, 1e-20])[:, None]
    second = star_solver.solve(replaced(data, flux=flux, flux_err=err)).best
    assert np.isfinite(first.u).all()
    for name, value in vars(first).items():
        np.testing.assert_array_equal(getattr(second, name), value, err_msg=name)


@pytest.fixture
def noise_blind_to_brightness(model):
    """For a while: a noise model that does not depend on brightness."""
    weights = model.noise.w1.numpy()
    blind = weights.copy()
    blind[3] = 0
    model.noise.w1.assign(blind)
    yield
    model.noise.w1.assign(weights)


@pytest.mark.usefixtures("noise_blind_to_brightness")
@pytest.mark.parametrize("k", [9.0, 0.04])
def test_flux_times_k_is_parallax_times_the_root_of_k(star_solver, mocks, at, k):
    data, root = mocks[0].take(slice(0, 40)), np.float32(np.sqrt(k))
    near = replaced(
        data,
        flux=np.float32(k) * data.flux,
        flux_err=np.float32(k) * data.flux_err,
        parallax=root * data.parallax,
        parallax_err=root * data.parallax_err,
    )
    first, second = (star_solver.solve(x).best for x in (data, near))
    assert_same_solution(first, second, at, ln_plx_shift=np.log(root), tolerance=0.02)


def test_bounds_hold_whatever_the_fluxes(star_solver, mocks, at):
    data = mocks[0].take(slice(0, 6))
    scale = np.array([1e-6, 1e6, 1, 1, 1, 1], "f4")[:, None]
    tilt = np.linspace(-1, 1, N_WL) * np.array([0, 0, 30, -30, 5, -5])[:, None]
    flux = (data.flux * scale * np.exp(tilt)).astype("f4")
    found = star_solver.solve(replaced(data, flux=flux, flux_err=0.02 * flux)).best
    assert np.isfinite(found.u).all()
    assert ((found.u >= at.lower) & (found.u <= at.upper)).all()
    assert np.isfinite(found.phi).all()
