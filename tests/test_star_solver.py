"""The star solver against the objective written in float64 NumPy (tests/oracle.py) and SciPy."""

import numpy as np
import pytest
import tensorflow as tf
from oracle import (
    N_WL,
    THETA_MEAN,
    THETA_SCALE,
    Oracle,
    Star,
    make_model,
    mock_stars,
    replaced,
    shared_solver,
)
from scipy import optimize

import xp_utils
from fitting import star_solver as star_solver_module
from fitting.posterior import estimates
from fitting.star_solver import (
    LN_E,
    LN_PLX,
    LOWER,
    SAME_MODE,
    UPPER,
    XI,
    Solution,
    StarData,
    StarSolver,
    StartSearch,
    Z,
    family_of,
    gaussian_prior,
    projectable,
)

BP = np.flatnonzero(xp_utils.XP_WAVELENGTHS < 640)
RP = np.flatnonzero(xp_utils.XP_WAVELENGTHS >= 640)
WISE = [64, 65]
TO_U = [0, 1, 2, 5, 3, 4]  # columns of `Estimates.est` in the order of u


@pytest.fixture(scope="module")
def star_solver():
    return shared_solver()


@pytest.fixture(scope="module")
def model(star_solver):
    return star_solver.model


@pytest.fixture(scope="module")
def oracle(model):
    return Oracle(model)


@pytest.fixture(scope="module")
def mocks(model):
    """500 stars drawn from the model, and their true u."""
    return mock_stars(model, 500, seed=1)


@pytest.fixture(scope="module")
def solved(star_solver, mocks):
    """(best, second) of the mock stars."""
    return star_solver.solve(mocks[0])


@pytest.fixture(scope="module")
def varied(mocks):
    """12 stars, most with something missing or odd: `StarData`, and their true u."""
    data, u = mocks[0].take(slice(0, 12)), mocks[1][:12]
    flux, err, plx, plx_err = (x.copy() for x in (data.flux, data.flux_err, data.plx, data.plx_err))
    for i, missing in enumerate(
        ([], WISE, [61], range(61, 66), BP, [*BP, *WISE], RP, [30, 40, 63], [0, 1], [])
    ):
        err[i, list(missing)] = np.inf
    flux[9, :3] = -flux[9, :3]
    plx[10] = plx_err[10] = np.nan
    plx[11], plx_err[11] = -0.5, 1.0
    return replaced(data, flux=flux, flux_err=err, plx=plx, plx_err=plx_err), u


def slope(function, x, step=1e-4):
    """Central differences (len(x),) of a function of x."""
    moves = step * np.eye(len(x))
    return np.array([(function(x + d) - function(x - d)) / (2 * step) for d in moves])


def curvature(function, x, step=1e-3):
    hessian = np.array(
        [
            (slope(function, x + d) - slope(function, x - d)) / (2 * step)
            for d in step * np.eye(len(x))
        ]
    )
    return (hessian + hessian.T) / 2


def refined(solver, data, u):
    """Descents from u (n, 6) with the noise held there, so that the oracle can hold the same."""
    return solver.minimise(data, np.asarray(u, "f4"), iterations=60)


def errors(solution, model):
    """1 sigma (n, 6) in physical units, in the order of u."""
    return estimates(solution, model).err[:, TO_U]


def physical(u):
    """u (n, 6) in physical units: theta, xi, E, plx."""
    u = np.array(u, "f8")
    return np.column_stack([u[:, :3] * THETA_SCALE + THETA_MEAN, u[:, 3], np.exp(u[:, 4:])])


def assert_same_solution(a, b, ln_plx_shift=0.0, tolerance=2e-3):
    np.testing.assert_allclose(b.u[:, :LN_PLX], a.u[:, :LN_PLX], atol=tolerance)
    np.testing.assert_allclose(b.u[:, LN_PLX], a.u[:, LN_PLX] + ln_plx_shift, atol=tolerance)
    np.testing.assert_allclose(b.phi, a.phi, atol=tolerance)


# -------------------------------------------------------------------------------- the objective


@pytest.mark.parametrize("wild", [0.0, 0.1, 1.0])
def test_objective_equals_the_oracle_after_the_best_parallax(star_solver, oracle, varied, wild):
    data, truth = varied
    u0 = truth + wild * np.random.default_rng(3).normal(size=truth.shape)
    u0 = np.clip(u0, LOWER, UPPER).astype("f4")
    found = star_solver.minimise(data, u0, iterations=0)
    np.testing.assert_array_equal(found.u[:, :LN_PLX], u0[:, :LN_PLX])
    np.testing.assert_array_equal(star_solver.objective(data, u0), found.phi)
    for i in range(len(data)):
        star = Star(data, i)
        noise = oracle.noise_at(u0[i], star)

        def phi(ln_plx, i=i, star=star, noise=noise):
            return oracle.phi(np.append(u0[i, :LN_PLX], ln_plx), star, noise)

        at = found.u[i, LN_PLX]
        assert found.phi[i] == pytest.approx(phi(at), abs=0.01, rel=1e-5)
        if wild < 1:  # a thousand sigma away, the parallax is near its best only
            best = optimize.minimize_scalar(phi, (at - 0.05, at + 0.05))
            assert phi(at) < best.fun + 0.01


def test_gradient_equals_differences_of_the_oracle(star_solver, oracle, varied):
    """The gradient is inside the compiled descent, so its private maker is called here."""
    data, truth = varied
    rows = np.arange(len(data))
    u0 = (truth + 0.2 * np.random.default_rng(4).normal(size=truth.shape)).astype("f4")
    padded = np.concatenate([u0, np.repeat(u0[:1], star_solver.batch_size - len(u0), 0)])
    batch = star_solver.batch(data, rows)
    whitening, ln_det = star_solver.model.noise.whitening(
        padded[:, Z],
        np.exp(padded[:, LN_E]),
        batch["rel_err"],
        batch["used"],
        batch["features"],
        general=True,
    )
    u, _, gradient, _, _ = (
        x.numpy() for x in star_solver._evaluate(tf.constant(padded.T), batch, whitening, ln_det)
    )
    for i in rows:
        star = Star(data, i)
        noise = oracle.noise_at(u0[i], star)
        expected = slope(lambda x, a=star, b=noise: oracle.phi(x, a, b), u[:, i].astype("f8"))
        np.testing.assert_allclose(
            gradient[:, i], expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max()
        )


def test_labelled_objective_equals_the_oracle(model, oracle, varied):
    """Labels and reddening as priors in the place of the mixture; NaN or infinite: none."""
    data, truth = varied
    rng = np.random.default_rng(5)
    theta = physical(truth)[:, :3] + rng.normal(0, 0.1, (len(truth), 3))
    theta_err = rng.uniform(0.05, 0.2, theta.shape)
    theta[2, 1] = np.nan
    theta_err[3] = np.inf
    ext = np.exp(truth[:, LN_E]) + rng.normal(0, 0.1, len(truth))
    ext_err = np.where(np.arange(len(truth)) == 4, np.inf, 0.1)
    ext[5] = np.nan
    data = replaced(data, theta=theta, theta_err=theta_err, ext=ext, ext_err=ext_err)
    solver = StarSolver(model, labelled=True, batch_size=len(data))
    solver._minimise_tf = solver._minimise  # not compiled: that would take longer than all else
    u0 = truth.astype("f4")
    found = solver.minimise(data, u0, iterations=15)
    for i in range(len(data)):
        star = Star(data, i)
        noise = oracle.noise_at(u0[i], star)
        assert found.phi[i] == pytest.approx(oracle.phi(found.u[i], star, noise), abs=0.01)
        best = optimize.minimize(oracle.phi, found.u[i], (star, noise))
        assert found.phi[i] < best.fun + 0.05


# ----------------------------------------------------------------------------------- the optimum


def test_optimum_is_not_beaten_by_scipy_from_several_starts(star_solver, oracle, mocks, solved):
    n = 20
    data, truth = mocks[0].take(slice(0, n)), mocks[1][:n]
    u0 = solved[0].u[:n]
    found = refined(star_solver, data, u0)
    assert found.converged.all()
    rng = np.random.default_rng(6)
    for i in range(n):
        star = Star(data, i)
        noise = oracle.noise_at(u0[i], star)
        assert found.phi[i] == pytest.approx(oracle.phi(found.u[i], star, noise), abs=0.01)
        starts = [
            found.u[i],
            truth[i],
            *(
                np.append(z, [0.0, -1.0, np.log(star.plx)])
                for z in star_solver.model.prior.sample(2, rng)
            ),
        ]
        lowest = min(
            optimize.minimize(
                oracle.phi,
                start,
                (star, noise),
                options={"maxiter": 100},
                bounds=list(zip(LOWER, UPPER, strict=True)),
            ).fun
            for start in starts
        )
        assert found.phi[i] < lowest + 0.1


def test_slope_vanishes_at_the_solution(star_solver, oracle, varied):
    data, _ = varied
    u0 = star_solver.solve(data)[0].u
    found = refined(star_solver, data, u0)
    sigma = np.sqrt(np.einsum("nii->ni", np.linalg.inv(found.hessian.astype("f8"))))
    for i in range(len(data)):
        star = Star(data, i)
        noise = oracle.noise_at(u0[i], star)
        gradient = slope(lambda x, a=star, b=noise: oracle.phi(x, a, b), found.u[i].astype("f8"))
        assert (np.abs(gradient * sigma[i]) < 0.1).all()  # 0.1 sigma costs 0.005 of phi


def test_stars_drawn_from_the_model_are_recovered_within_their_errors(model, mocks, solved):
    best = solved[0]
    assert best.converged.all()
    pull = (physical(best.u) - physical(mocks[1])) / errors(best, model)
    width = 1.4826 * np.median(np.abs(pull - np.median(pull, 0)), 0)
    assert ((width > 0.8) & (width < 1.2)).all()
    assert (np.abs(np.median(pull, 0)) < 0.25).all()
    assert (np.mean(np.abs(pull) > 4, 0) < 0.02).all()
    assert np.median(best.chi2) == pytest.approx(N_WL - 6, abs=2)  # six parameters


def test_flux_errors_larger_than_usual_give_larger_parameter_errors(
    star_solver, model, mocks, solved
):
    data = mocks[0].take(slice(0, 60))
    worse = star_solver.solve(replaced(data, flux_err=4 * data.flux_err))[0]
    ratio = errors(worse, model)[:, :3] / errors(solved[0], model)[:60, :3]
    assert (np.median(ratio, 0) > 1.5).all()


# --------------------------------------------------------------- stars do not see their neighbours


def test_order_of_the_stars_does_not_matter(star_solver, mocks, solved):
    order = np.random.default_rng(7).permutation(150)
    again = star_solver.solve(mocks[0].take(order))
    for a, b in zip(solved, again, strict=True):
        for name, value in vars(a).items():
            np.testing.assert_allclose(
                getattr(b, name), value[order], rtol=1e-4, atol=1e-4, err_msg=name
            )


@pytest.mark.parametrize("n", [1, 7])
def test_padding_of_the_batch_does_not_matter(star_solver, mocks, solved, n):
    alone = star_solver.solve(mocks[0].take(slice(40, 40 + n)))[0]
    np.testing.assert_allclose(alone.u, solved[0].u[40 : 40 + n], atol=1e-4)
    np.testing.assert_allclose(alone.phi, solved[0].phi[40 : 40 + n], atol=1e-3)


def test_neighbours_of_impossible_stars_are_unharmed(star_solver, mocks, solved):
    data = mocks[0].take(slice(0, 30))
    flux, err = data.flux.copy(), data.flux_err.copy()
    flux[3], err[4], flux[5], err[6] = 1e30, 1e-30, 1e-30, 1e30
    plx, plx_err = data.plx.copy(), data.plx_err.copy()
    plx[7], plx[8], plx_err[8] = 1e8, -1e8, 1e-3
    bad = replaced(data, flux=flux, flux_err=err, plx=plx, plx_err=plx_err)
    found = star_solver.solve(bad)[0]
    others = np.delete(np.arange(30), np.arange(3, 9))
    np.testing.assert_allclose(found.u[others], solved[0].u[others], atol=1e-4)
    np.testing.assert_allclose(found.phi[others], solved[0].phi[others], atol=1e-3)


def test_stars_of_all_patterns_in_one_call_equal_each_alone(star_solver, varied):
    data, _ = varied
    together = star_solver.solve(data)[0]
    for i in range(len(data)):
        alone = star_solver.solve(data.take([i]))[0]
        np.testing.assert_allclose(alone.u[0], together.u[i], atol=1e-4)
    assert np.isfinite(together.u).all()
    assert together.converged.all()


@pytest.mark.parametrize("general", [False, True])
def test_values_of_points_are_those_of_the_descent(star_solver, varied, general):
    data, truth = varied
    rows = np.flatnonzero(projectable(data.observed.used > 0) != general)
    rng = np.random.default_rng(4)
    points = truth[rows, None].astype("f4") + 0.1 * rng.normal(size=(len(rows), 11, 6)).astype("f4")
    expected = np.stack(
        [star_solver.minimise(data, points[:, k], 0, rows, points[:, 0]).phi for k in range(11)], 1
    )
    padded = points[star_solver._padding(len(rows))].transpose(1, 2, 0)
    batch = star_solver.batch(data, rows)
    whitening, _ = star_solver._curvature_tf(tf.constant(padded[0]), batch, general)
    found = star_solver._values_tf(tf.constant(padded), batch, whitening).numpy().T[: len(rows)]
    assert len(rows) > 1
    np.testing.assert_allclose(found - found[:, :1], expected - expected[:, :1], atol=0.02)


def test_curvature_over_a_sigma_is_that_of_the_flatter_side_where_that_is_less(star_solver, mocks):
    data = mocks[0].take(slice(0, 60))
    solution = star_solver.minimise(data, mocks[1][:60].astype("f4"), 60)
    before, after = (
        np.linalg.inv(star_solver.curvature(data, solution, over))[:, :LN_PLX, :LN_PLX]
        for over in (False, True)
    )
    ratios = []
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        variance, axes = np.linalg.eigh(old)
        for sigma2, axis in zip(variance, axes.T, strict=True):
            point = np.repeat(solution.u[i][None], 3, 0)
            point[1:, :LN_PLX] += np.outer([1, -1], np.sqrt(sigma2) * axis)
            middle, *ends = star_solver.minimise(
                data, np.clip(point, LOWER, UPPER), 0, np.full(3, i), point[:1].repeat(3, 0)
            ).phi.astype("f8")
            growth = axis @ new @ axis / sigma2
            ratios.append((1 / np.clip(2 * (min(ends) - middle), 0.25, 1), growth))
    expected, found = np.array(ratios).T
    np.testing.assert_allclose(found, expected, rtol=0.02)
    assert (found > 1.02).any()
    assert (found < 1.02).any()
    assert np.linalg.eigvalsh(after - before).min() > -1e-9


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_curvature_of_a_star_without_solution_is_NaN(star_solver, mocks):
    data = mocks[0].take(slice(0, 3))
    solution = star_solver.minimise(data, mocks[1][:3].astype("f4"), 60)
    whole = star_solver.curvature(data, solution, over_a_sigma=True)
    solution.u[1] = np.nan
    found = star_solver.curvature(data, solution, over_a_sigma=True)
    assert np.isnan(found[1]).all()
    np.testing.assert_array_equal(found[[0, 2]], whole[[0, 2]])
    solution.u[:] = np.nan
    assert np.isnan(star_solver.curvature(data, solution)).all()


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_axes_of_a_matrix_that_is_not_positive_definite_are_left_out():
    bad = np.diag([1.0, 2, 3, 4, -5, 6])
    infinite = np.full((6, 6), np.inf)
    curvature, axes = star_solver_module._principal_axes(np.stack([bad, np.eye(6), infinite]))
    assert (curvature[[0, 2]] == 0).all()
    assert (axes[[0, 2]] == 0).all()
    np.testing.assert_allclose(curvature[1], 1)
    u = np.zeros((3, 6), "f4")
    points = star_solver_module._a_sigma_away(u, curvature, axes)
    assert (points[:, :, [0, 2]] == 0).all()
    np.testing.assert_allclose(np.abs(points[1:, :, 1]).sum(1), 1)


def test_curvature_is_precise_where_brightness_is_known_a_million_times_better():
    """Its float32 Gram matrix is wrong by up to a factor of two in the errors."""
    model, n = make_model(), 20
    base = model.noise.base.numpy()
    base[1:N_WL] = 60.0  # the first row of W: the sum of all residuals, and more
    model.noise.base.assign(base)
    model.noise.ln_nu.assign(np.log(1e6))
    solver, exact = StarSolver(model, batch_size=32), Oracle(model)
    data, u = mock_stars(model, n, seed=3)
    flux = np.exp([exact.mu(row) for row in u]).astype("f4")  # no residuals: Gauss-Newton is
    data = replaced(data, flux=flux, flux_err=0.02 * flux)  # exact but for the prior
    solution = solver.minimise(data, u.astype("f4"), 0)
    precise, rough = (
        np.sqrt(np.einsum("nii->ni", np.linalg.inv(h.astype("f8"))))
        for h in (solver.curvature(data, solution), solution.hessian)
    )
    prior = model.prior.value_gradient_hessian(solution.u[:, Z])[2].numpy()
    expected = []
    for i in range(n):
        star, at = Star(data, i), solution.u[i].astype("f8")
        precision, _ = exact.noise_at(at, star)
        jacobian = np.array(
            [(exact.mu(at + d) - exact.mu(at - d)) / 2e-5 for d in 1e-5 * np.eye(6)]
        )
        hessian = jacobian @ precision @ jacobian.T
        hessian[Z, Z] += prior[i]
        plx, ivar = np.exp(at[LN_PLX]), star.plx_err**-2.0
        hessian[XI, XI] += 1
        hessian[LN_PLX, LN_PLX] += ivar * plx * (plx + max(plx - star.plx, 0))
        assert np.linalg.cond(hessian) > 1e7
        expected.append(np.sqrt(np.diag(np.linalg.inv(hessian))))
    np.testing.assert_allclose(precise, expected, rtol=0.03)
    assert np.nanmax(np.abs(rough / np.array(expected) - 1)) > 0.1


def test_general_way_of_missing_channels_equals_the_fast_one(star_solver, varied):
    data, truth = varied
    rows = np.flatnonzero(projectable(np.isfinite(data.flux_err)))
    assert len(rows) > 5
    u = truth[rows].astype("f4")
    fast, general = (
        star_solver._minimise_batch(data, rows, u, u, 40, way) for way in (False, True)
    )
    assert_same_solution(fast, general, tolerance=5e-3)
    np.testing.assert_allclose(general.chi2, fast.chi2, rtol=5e-3)


# ------------------------------------------------------------------------------------ metamorphic


@pytest.mark.parametrize("missing", [[62], WISE, BP, RP, [20, 33]])
def test_flux_of_a_band_with_infinite_error_does_not_matter(star_solver, mocks, missing):
    data = mocks[0].take(slice(0, 8))
    flux, err = data.flux.copy(), data.flux_err.copy()
    err[:, missing] = np.inf
    first = star_solver.solve(replaced(data, flux_err=err))[0]
    flux[:, missing] = np.array([0, -3, 1e20, np.nan, np.inf, 1, 5, 1e-20])[:, None]
    second = star_solver.solve(replaced(data, flux=flux, flux_err=err))[0]
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
def test_flux_times_k_is_parallax_times_the_root_of_k(star_solver, mocks, k):
    data, root = mocks[0].take(slice(0, 40)), np.float32(np.sqrt(k))
    near = replaced(
        data,
        flux=np.float32(k) * data.flux,
        flux_err=np.float32(k) * data.flux_err,
        plx=root * data.plx,
        plx_err=root * data.plx_err,
    )
    first, second = (star_solver.solve(x)[0] for x in (data, near))
    assert_same_solution(first, second, ln_plx_shift=np.log(root), tolerance=0.02)


# ------------------------------------------------------------------------ parallax, dust at zero


def test_star_without_parallax_is_solved_from_its_fluxes(star_solver, model, mocks):
    data, truth = mocks[0].take(slice(0, 100)), mocks[1][:100]
    found = star_solver.solve(
        replaced(data, plx=np.full(100, np.nan, "f4"), plx_err=np.full(100, np.nan, "f4"))
    )[0]
    assert found.converged.all()
    pull = (physical(found.u) - physical(truth)) / errors(found, model)
    assert (np.abs(np.median(pull, 0)) < 0.5).all()
    width = 1.4826 * np.median(np.abs(pull - np.median(pull, 0)), 0)
    assert ((width > 0.7) & (width < 1.35)).all()


@pytest.mark.parametrize(
    ("plx", "plx_err"),
    [(np.nan, 0.1), (1.0, np.nan), (1.0, np.inf), (1.0, 0.0), (1.0, -1.0), (np.inf, 1.0)],
)
def test_parallax_that_is_no_measurement_has_no_weight_and_no_use(plx, plx_err):
    value, weight = gaussian_prior([plx, 2.0], [plx_err, 0.5])
    np.testing.assert_array_equal(weight, [0.0, 4.0])
    assert np.isfinite(value).all()
    stars = StarData(*np.ones((2, 2, N_WL)), np.array([plx, 2.0]), np.array([plx_err, 0.5]))
    np.testing.assert_array_equal(stars.useful_parallax, [False, True])


@pytest.mark.parametrize("sigma", [0.3, 1.0, 100.0])
def test_star_with_a_negative_parallax_has_a_finite_positive_distance(
    star_solver, oracle, mocks, sigma
):
    data = mocks[0].take(slice(0, 10))
    data = replaced(data, plx=np.full(10, -0.3, "f4"), plx_err=np.full(10, sigma, "f4"))
    found = star_solver.solve(data)[0]
    assert found.converged.all()
    assert np.isfinite(found.u).all()
    again = refined(star_solver, data, found.u)
    for i in range(3):
        star = Star(data, i)
        best = optimize.minimize(oracle.phi, again.u[i], (star, oracle.noise_at(found.u[i], star)))
        assert again.phi[i] < best.fun + 0.1


@pytest.fixture(scope="module")
def dustless(model, oracle):
    """Stars with E = 0 whose fluxes look as if it were -2, -1, 0, 1 sigma or so."""
    data, u = mock_stars(model, 16, seed=9)
    curve = np.exp(model.flux.ln_ext_curve.numpy())
    off = np.repeat([-0.01, -0.005, 0.0, 0.005], 4)
    flux = np.array([oracle.mu(np.concatenate([row[:4], [-30.0], row[5:]])) for row in u])
    flux = np.exp(flux - off[:, None] * curve)
    err = 0.02 * flux
    return replaced(data, flux=flux.astype("f4"), flux_err=err.astype("f4"))


def test_star_without_dust_is_not_stuck(star_solver, oracle, model, dustless):
    best = star_solver.solve(dustless)[0]
    assert best.converged.all()
    ext, ext_err = np.exp(best.u[:, LN_E]), errors(best, model)[:, LN_E]
    assert ((ext > 0) & (ext < 0.05)).all()
    assert ((ext_err > 1e-4) & (ext_err < 0.05)).all()
    found = refined(star_solver, dustless, best.u)
    for i in range(len(ext)):
        star = Star(dustless, i)
        noise = oracle.noise_at(best.u[i], star)
        lowest = min(
            optimize.minimize(oracle.phi, start, (star, noise)).fun
            for start in (found.u[i], np.concatenate([found.u[i, :4], [-3.0], found.u[i, 5:]]))
        )
        assert found.phi[i] < lowest + 0.05
        gradient = slope(lambda x, a=star, b=noise: oracle.phi(x, a, b), found.u[i].astype("f8"))
        assert abs(gradient[LN_E]) < 0.1


# --------------------------------------------------------------------------------- the covariance


def assert_covariance_is_inverse_curvature(solver, oracle, data, tolerance):
    """Errors within a fraction of those of the oracle's finite differences, in physical units. In
    xi, three times as much: Gauss-Newton leaves out the bend of tanh."""
    u0 = solver.solve(data)[0].u
    found = refined(solver, data, u0)
    result = estimates(found, solver.model)
    for i in range(len(data)):
        star = Star(data, i)
        noise = oracle.noise_at(u0[i], star)
        hessian = curvature(lambda x, a=star, b=noise: oracle.phi(x, a, b), found.u[i].astype("f8"))
        units = np.concatenate([THETA_SCALE, [1.0], np.exp(found.u[i, 4:].astype("f8"))])
        expected = np.linalg.inv(hessian) * np.outer(units, units)
        sigma = np.sqrt(np.diag(expected))
        err = result.err[i, TO_U]
        assert (np.abs(err / sigma - 1) < tolerance * np.array([1, 1, 1, 3, 1, 1])).all()
        cov, icov = (x[i][np.ix_(TO_U, TO_U)] for x in (result.cov, result.icov))
        np.testing.assert_allclose(
            cov / np.outer(err, err), expected / np.outer(sigma, sigma), atol=0.15
        )  # the correlations
        np.testing.assert_allclose(cov @ icov, np.eye(6), atol=1e-4)


def test_covariance_is_the_inverse_curvature_of_the_oracle(star_solver, oracle, mocks):
    assert_covariance_is_inverse_curvature(star_solver, oracle, mocks[0].take(slice(0, 12)), 0.1)


def test_covariance_with_a_precise_parallax_is_the_inverse_curvature_too(
    star_solver, oracle, model
):
    data, _ = mock_stars(model, 6, seed=13, plx_snr=1000.0)
    assert_covariance_is_inverse_curvature(star_solver, oracle, data, 0.1)


def test_covariance_of_a_star_without_dust_is_the_inverse_curvature_too(
    star_solver, oracle, dustless
):
    assert_covariance_is_inverse_curvature(star_solver, oracle, dustless, 0.05)


# ------------------------------------------------------------------ starts, modes, small functions


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ([], True),
        (BP, True),
        ([0], True),
        (WISE, True),
        ([*BP, 61, 65], True),
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
    assert projectable(used)[0] == expected


def test_families_are_split_where_documented():
    theta = np.array(
        [
            [4.5, -1.5, 2.0],
            [4.5, -0.5, 2.0],
            [4.8, -1.5, 3.0],
            [4.8, 0.0, 3.0],
            [5.5, 0.0, 3.9],
            [6.0, 0.0, 4.4],
            [4.0, 0.0, 4.7],
        ]
    )
    np.testing.assert_array_equal(family_of(theta), [1, 0, 3, 2, 4, 5, 6])


def test_star_that_is_a_template_starts_there(model):
    search = StartSearch(model, seed=0)
    order = np.argsort(-search.ln_prior)[:50]  # likely types, not the odd ones of the wide margins
    n, ext, plx = len(order), 0.3, np.float32(2.0)
    ln_flux = search.ln_flux[order] - ext * search.curve + 2 * np.log(plx)
    flux = np.exp(ln_flux).astype("f4")
    stars, _ = mock_stars(model, n)
    data = replaced(
        stars,
        flux=flux,
        flux_err=0.02 * flux,
        plx=np.full(n, plx),
        plx_err=np.full(n, np.float32(0.1)),
    )
    starts, tried = search.find(data, batch_size=32)
    np.testing.assert_allclose(starts[:, 0, Z], search.z[order], atol=0.7)
    exact = np.abs(starts[:, 0, Z] - search.z[order]).max(1) < 1e-6
    assert exact.mean() > 0.6
    np.testing.assert_allclose(np.exp(starts[exact, 0, LN_E]), ext, rtol=1e-2)
    np.testing.assert_allclose(np.exp(starts[exact, 0, LN_PLX]), plx, rtol=1e-2)
    assert tried[:, 0].all()


def test_all_families_are_tried_without_a_useful_parallax_or_when_asked_to(model):
    search = StartSearch(model, seed=0)
    data, _ = mock_stars(model, 30, seed=8, rel_err=0.01)
    weak = replaced(data, plx_err=(0.6 * data.plx).astype("f4"))
    none = replaced(data, plx=np.full(30, np.nan, "f4"), plx_err=np.full(30, np.nan, "f4"))
    negative = replaced(data, plx=-data.plx)
    families = len(np.unique(search.family))
    assert search.find(data, 16)[1].sum(1).min() < families
    for stars, every in ((weak, False), (none, False), (negative, False), (data, True)):
        _, tried = search.find(stars, 16, every_family=every)
        np.testing.assert_array_equal(tried.sum(1), families)


def test_stars_that_fit_badly_are_searched_again_from_all_families(model, monkeypatch):
    """A first search that left every third star at its worst start; its second is not asked where
    all families were tried already."""
    solver = StarSolver(model, batch_size=64)
    data, _ = mock_stars(model, 60, seed=33)
    data.plx[:6] = np.nan
    expected = solver.solve(data)
    asked, whole, bad = [], solver._search, np.arange(60) % 3 == 0

    def search(stars, z_direct, every_family=False):
        best, second = whole(stars, z_direct, every_family)
        asked.append((stars.flux, every_family))
        if not every_family:
            best.u[bad], best.chi2[bad], best.phi[bad] = UPPER, 1e4, 1e4
        return best, second

    monkeypatch.setattr(solver, "_search", search)
    found = solver.solve(data)
    again = bad & data.useful_parallax
    assert [every for _, every in asked] == [False, True]
    np.testing.assert_array_equal(asked[1][0], data.flux[again])
    assert (found[0].phi[again] < expected[0].phi[again] + 0.1).all()
    np.testing.assert_array_equal(found[0].u[~bad], expected[0].u[~bad])
    np.testing.assert_array_equal(found[0].u[bad & ~again], np.tile(UPPER, (2, 1)))


def test_starts_are_finite_and_within_the_bounds_for_any_star(star_solver, varied):
    data, _ = varied
    err = data.flux_err.copy()
    err[8] = np.inf
    flux = data.flux.copy()
    flux[7], flux[2] = 0.0, -1e6
    starts, tried = star_solver._starts.find(replaced(data, flux=flux, flux_err=err), 8)
    assert np.isfinite(starts).all()
    assert ((starts >= LOWER) & (starts <= UPPER)).all()
    assert tried[:, 0].all()


def test_the_direct_estimate_is_the_first_start_and_its_like_are_left_out(model):
    search, stars = StartSearch(model, seed=0), 40
    data, truth = mock_stars(model, stars, seed=8, rel_err=0.01)
    z_direct = truth[:, Z].astype("f4")
    starts, tried = search.find(data, 16, z_direct)
    np.testing.assert_array_equal(starts[:, 0, Z], np.clip(z_direct, LOWER[Z], UPPER[Z]))
    assert tried[:, 0].all()
    # Dust and distance follow from the fluxes, at the mean extinction curve.
    np.testing.assert_allclose(starts[:, 0, LN_PLX], truth[:, LN_PLX], atol=0.3)
    dusty = truth[:, LN_E] > np.log(0.3)
    np.testing.assert_allclose(np.exp(starts[dusty, 0, LN_E] - truth[dusty, LN_E]), 1, atol=0.35)
    templates, worth = search.find(data, 16)
    np.testing.assert_array_equal(starts[:, 1:], templates)
    theta = physical(starts.reshape(-1, 6))[:, :3].reshape(*starts.shape[:2], 3)
    family = family_of(theta.reshape(-1, 3)).reshape(tried.shape)
    near = np.abs(starts - starts[:, :1])[:, :, Z].max(2) < star_solver_module.BESIDE_DIRECT
    beside = ((family == family[:, :1]) & near)[:, 1:]
    np.testing.assert_array_equal(tried[:, 1:], worth & ~beside)
    assert (worth & beside).any()


def test_solver_follows_its_seed(model):
    a, b, c = (StartSearch(model, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a.z, b.z)
    assert not np.array_equal(a.z, c.z)


def test_second_mode_is_the_best_of_another_family(star_solver):
    """Three stars: descents that met, two families, and none that is finite."""
    giant, dwarf = (
        np.append((np.array(theta) - THETA_MEAN) / THETA_SCALE, [0, 0, 0])
        for theta in ([4.8, 0.0, 2.0], [4.8, 0.0, 4.6])
    )
    edge = np.append((np.array([4.8, 0.0, 4.15]) - THETA_MEAN) / THETA_SCALE, [0, 0, 0])
    u = np.array([edge - 0.01, edge + 0.01, giant, dwarf, giant + 0.3, dwarf + 0.1, giant * np.nan])
    phi = np.array([5.0, 4.0, 7.0, 3.0, 2.0, 2.5, np.nan])
    star = np.array([0, 0, 1, 1, 1, 1, 2])
    trial = Solution.empty(len(u))
    trial.u[:], trial.phi[:] = u, phi
    best, second = star_solver._modes(trial, star, 4)
    np.testing.assert_array_equal(best.phi, [4.0, 2.0, np.nan, np.inf])
    np.testing.assert_array_equal(second.phi, [np.inf, 2.5, np.inf, np.inf])
    np.testing.assert_allclose(second.u[1], u[5], rtol=1e-6)
    assert np.isnan(second.u[[0, 2, 3]]).all()


def test_modes_of_noisy_stars_are_apart_and_in_order(star_solver, model, monkeypatch):
    for margin in ("START_MARGIN", "TRIAL_MARGIN"):  # so that there are second modes enough
        monkeypatch.setattr(star_solver_module, margin, 1e3)
    data, _ = mock_stars(model, 300, seed=12, rel_err=0.4, plx_snr=1.0)
    best, second = star_solver.solve(data)
    both = np.isfinite(second.phi)
    assert both.sum() > 5
    assert (second.phi >= best.phi).all()
    theta, other = (physical(x.u[both])[:, :3] for x in (best, second))
    assert (family_of(theta) != family_of(other)).all()
    assert (np.abs(best.u - second.u)[both, Z].max(1) > SAME_MODE).all()


def test_bounds_hold_whatever_the_fluxes(star_solver, mocks):
    data = mocks[0].take(slice(0, 6))
    scale = np.array([1e-6, 1e6, 1, 1, 1, 1], "f4")[:, None]
    tilt = np.linspace(-1, 1, N_WL) * np.array([0, 0, 30, -30, 5, -5])[:, None]
    flux = (data.flux * scale * np.exp(tilt)).astype("f4")
    found = star_solver.solve(replaced(data, flux=flux, flux_err=0.02 * flux))[0]
    assert np.isfinite(found.u).all()
    assert ((found.u >= LOWER) & (found.u <= UPPER)).all()
    assert np.isfinite(found.phi).all()


def test_xi_of_a_dustless_star_is_its_prior(star_solver, model, dustless):
    best = star_solver.solve(dustless)[0]
    assert (np.abs(best.u[:, XI]) < 0.5).all()
    np.testing.assert_allclose(errors(best, model)[:, XI], 1.0, atol=0.25)
