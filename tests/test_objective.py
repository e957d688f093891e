"""The objective against its float64 counterpart (tests/model_oracle.py), for 2 and 4 labels."""

import numpy as np
import pytest
import tensorflow as tf
from model_case import (
    LABEL_SETS,
    NO_BP,
    RP,
    TMASS,
    WISE,
    make_model,
    mock_stars,
    permuted,
    replaced,
)
from model_oracle import Oracle, Star, curvature, slope
from scipy import optimize

from fitting.minimiser import Minimiser
from fitting.objective import LabelTerm, MixtureTerm, Objective, gaussian_prior
from fitting.posterior import physical

MISSING = ([], WISE, TMASS[:1], [*TMASS, *WISE], NO_BP, [*NO_BP, *WISE], RP, [30, 40, 63], [0, 1])
TERMS = ("mixture", "label")


class Case:
    """Stars under a model of K labels, most with something missing or odd.

    data: `StarData`, with labels for the term of labels; truth (N, n): their u.
    """

    def __init__(self, n_labels, term):
        self.model = make_model(LABEL_SETS[n_labels])
        self.oracle, self.at = Oracle(self.model), self.model.coordinates
        data, self.truth = mock_stars(self.model, 12, seed=1)
        flux, err, plx, plx_err = (
            x.copy() for x in (data.flux, data.flux_err, data.parallax, data.parallax_err)
        )
        for i, missing in enumerate(MISSING):
            err[i, list(missing)] = np.inf
        flux[9, :3] = -flux[9, :3]
        plx[10] = plx_err[10] = np.nan
        plx[11], plx_err[11] = -0.5, 1.0
        data = replaced(data, flux=flux, flux_err=err, parallax=plx, parallax_err=plx_err)
        self.data = self.with_labels(data) if term == "label" else data
        self.objective = self.objective_of(self.model, term)
        self.stars = [Star(self.data, i) for i in range(len(self.data))]

    @staticmethod
    def objective_of(model, term):
        known = LabelTerm(model.flux) if term == "label" else MixtureTerm(model.prior)
        return Objective(model, known)

    def with_labels(self, data):
        """Labels and reddening near the truth; NaN or infinite: none."""
        rng, at, n = np.random.default_rng(5), self.at, len(data)
        theta = physical(self.truth, self.model)[:, at.z]
        theta += 0.1 * rng.normal(size=theta.shape) * self.model.label_scale
        theta_err = rng.uniform(0.05, 0.2, theta.shape)
        theta[2, 1], theta_err[3] = np.nan, np.inf
        ext = np.exp(self.truth[:, at.ln_ext]) + rng.normal(0, 0.1, n)
        ext_err = np.where(np.arange(n) == 4, np.inf, 0.1)
        ext[5] = np.nan
        return replaced(
            data, theta=theta, theta_err=theta_err, extinction=ext, extinction_err=ext_err
        )

    def batch(self, objective=None, data=None):
        data = self.data if data is None else data
        minimiser = Minimiser(objective or self.objective, len(data))
        return minimiser.batch(data, np.arange(len(data)))

    def evaluate(self, u, noise_at=None, data=None):
        """(`Point` with arrays, ln |det S|) at u (N, n), with the noise as it is at noise_at."""
        batch = self.batch(data=data)
        at = u if noise_at is None else noise_at
        whitening = self.objective.whitening(tensor(at), batch, general=True)
        point = self.objective.evaluate(tensor(u), batch, whitening)
        return type(point)(*(x.numpy() for x in point)), whitening.ln_det.numpy()

    def noise(self, u):
        return [self.oracle.noise_at(*pair) for pair in zip(u, self.stars, strict=True)]


def tensor(u):
    """u (N, n) as the objective takes it."""
    return tf.constant(np.asarray(u, "f4").T)


@pytest.fixture(scope="module", params=[2, 4])
def n_labels(request):
    return request.param


@pytest.fixture(scope="module", params=TERMS)
def case(request, n_labels):
    return Case(n_labels, request.param)


@pytest.mark.parametrize("wild", [0.0, 0.1, 1.0])
def test_objective_and_chi2_equal_the_oracle_after_the_best_parallax(case, wild):
    at, truth = case.at, case.truth
    u0 = truth + wild * np.random.default_rng(3).normal(size=truth.shape)
    u0 = at.clip(u0).astype("f4")
    point, _ = case.evaluate(u0)
    u = point.u.T
    np.testing.assert_array_equal(u[:, : at.ln_plx], u0[:, : at.ln_plx])
    for i, (star, noise) in enumerate(zip(case.stars, case.noise(u0), strict=True)):

        def phi(ln_plx, i=i, star=star, noise=noise):
            return case.oracle.phi(np.append(u0[i, : at.ln_plx], ln_plx), star, noise)

        found = u[i, at.ln_plx]
        assert point.phi[i] == pytest.approx(phi(found), abs=0.01, rel=1e-5)
        chi2 = case.oracle.chi2(u[i].astype("f8"), star, noise)
        assert point.chi2[i] == pytest.approx(chi2, rel=2e-3, abs=0.05)
        if wild < 1:  # a thousand sigma away, the parallax is near its best only
            best = optimize.minimize_scalar(phi, (found - 0.05, found + 0.05))
            assert phi(found) < best.fun + 0.01


def test_gradient_equals_differences_of_the_oracle(case):
    u0 = case.truth + 0.2 * np.random.default_rng(4).normal(size=case.truth.shape)
    point, _ = case.evaluate(u0.astype("f4"))
    noise = case.noise(u0.astype("f4"))
    for i, star in enumerate(case.stars):
        expected = slope(lambda x, i=i, s=star: case.oracle.phi(x, s, noise[i]), point.u[:, i])
        np.testing.assert_allclose(
            point.gradient[:, i], expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max()
        )


def test_hessian_of_stars_without_residuals_equals_differences_of_the_oracle(case):
    """There, Gauss-Newton's is exact, but for the prior, of which it has a bound."""
    at, truth = case.at, case.truth.astype("f4")
    flux = np.exp([case.oracle.mu(u.astype("f8")) for u in truth])
    known = physical(truth, case.model)
    exact = replaced(
        case.data,
        flux=flux.astype("f4"),
        flux_err=0.02 * flux,
        parallax=known[:, at.ln_plx],
        parallax_err=0.1 * known[:, at.ln_plx],
    )
    if exact.theta is not None:
        err = np.full(len(known), 0.003)  # as precise as the fluxes
        ext = known[:, at.ln_ext]
        exact = replaced(exact, theta=known[:, at.z], extinction=ext, extinction_err=err)
    point, _ = case.evaluate(truth, data=exact)
    _, _, bound = case.model.prior.value_gradient_hessian(tf.constant(truth[:, at.z]))
    for i in range(len(truth)):
        star, u = Star(exact, i), truth[i].astype("f8")
        noise = case.oracle.noise_at(u, star)
        expected = curvature(lambda x, s=star, n=noise: case.oracle.phi(x, s, n), u, 1e-4)
        if exact.theta is None:
            expected[at.z, at.z] += curvature(case.oracle.ln_prior_z, u[at.z]) + bound[i].numpy()
        size = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
        np.testing.assert_allclose(point.hessian[:, :, i] / size, expected / size, atol=0.01)


def test_xi_and_dust_have_the_curvature_that_their_slope_adds(case):
    """E multiplies what xi does, so their entry has the slope in xi beside Gauss-Newton's; where
    the block of both stays positive."""
    at, oracle = case.at, case.oracle
    point, _ = case.evaluate(case.truth)
    noise, free, nu = case.noise(case.truth.astype("f4")), 0, np.exp(oracle.a["noise_ln_nu"])
    for i, star in enumerate(case.stars):
        u, (precision, _) = point.u[:, i].astype("f8"), noise[i]
        jacobian, residual = slope(oracle.mu, u), star.value - oracle.mu(u)
        weight = (nu + star.used.sum()) / (nu + residual @ precision @ residual)
        by_xi, by_ext = jacobian[:, at.xi], jacobian[:, at.ln_ext]
        added = -weight * by_xi @ precision @ residual
        hessian = point.hessian[:, :, i]
        limit = np.sqrt(hessian[at.xi, at.xi] * hessian[at.ln_ext, at.ln_ext])
        beyond = hessian[at.xi, at.ln_ext] - weight * by_xi @ precision @ by_ext
        if abs(hessian[at.xi, at.ln_ext]) < 0.8 * limit:
            assert beyond == pytest.approx(added, rel=0.02, abs=0.05)
            free += abs(added) > 1
        assert abs(hessian[at.xi, at.ln_ext]) < limit
    assert free > 3  # else this would say little


def test_values_are_what_evaluate_gives_at_the_same_points(case):
    """The objective is written once, whether one point a star or many are asked for."""
    rng = np.random.default_rng(4)
    points = case.truth[None].astype("f4") + 0.1 * rng.normal(size=(4, *case.truth.shape))
    batch = case.batch()
    whitening = case.objective.whitening(tensor(case.truth), batch, general=True)
    stacked = tf.constant(points.transpose(0, 2, 1).astype("f4"))
    found = case.objective.values(stacked, batch, whitening).numpy()
    for k, u in enumerate(points):
        point, ln_det = case.evaluate(u, noise_at=case.truth)
        np.testing.assert_allclose(found[k], point.phi + ln_det, rtol=1e-5, atol=0.02)


def test_curvature_is_the_hessian_in_float64(case):
    u = case.truth.astype("f4")
    whitening = case.objective.whitening(tensor(u), case.batch(), True)
    precise, rough = (
        case.objective.evaluate(tensor(u), case.batch(), whitening, dtype)
        for dtype in (tf.float64, tf.float32)
    )
    for name, value in precise._asdict().items():
        assert value.dtype == (tf.float64 if name == "hessian" else tf.float32)
    size = np.sqrt(np.einsum("iik->ik", rough.hessian))
    whole = size[:, None] * size[None]
    np.testing.assert_allclose(precise.hessian / whole, rough.hessian / whole, atol=0.01)
    np.testing.assert_allclose(precise.gradient / size, rough.gradient / size, atol=0.02)
    np.testing.assert_allclose(precise.phi, rough.phi, rtol=1e-4, atol=0.02)


def test_linearised_objective_is_the_objective_where_ln_flux_is_linear(case):
    """In E and parallax it is; in type and xi to first order, as are the slopes there."""
    at, objective, batch = case.model.coordinates, case.objective, case.batch()
    whitening = objective.whitening(tensor(case.truth), batch, True)

    def both(u):
        points = (
            objective.linearised(start, tensor(u), batch, whitening.ln_det),
            objective.evaluate(tensor(u), batch, whitening),
        )
        return [type(point)(*(x.numpy() for x in point)) for point in points]

    start = objective.evaluate(tensor(case.truth), batch, whitening)
    begin, rng = start.u.numpy().T, np.random.default_rng(11)
    moved = begin.copy()
    moved[:, at.logarithms] += rng.normal(0, [0.3, 0.1], (len(moved), 2))
    found, expected = both(moved)
    np.testing.assert_allclose(found.u, expected.u, atol=1e-4)
    np.testing.assert_allclose(found.phi, expected.phi, atol=0.05)
    size = np.sqrt(np.einsum("iik->ik", expected.hessian))
    np.testing.assert_allclose(found.gradient / size, expected.gradient / size, atol=0.02)
    off = []
    for step in (0.02, 0.005):
        near = begin.copy()
        near[:, : at.ln_ext] += step * np.sign(rng.normal(size=near[:, : at.ln_ext].shape))
        found, expected = both(near)
        off.append(np.abs(found.phi - expected.phi) / np.abs(expected.phi - start.phi.numpy()))
    assert np.median(off[0]) < 0.2
    assert np.median(off[1]) < np.median(off[0])


def test_order_of_the_labels_does_not_matter(case, n_labels):
    order = np.roll(np.arange(n_labels), 1)
    whole = [*order, n_labels, n_labels + 1, n_labels + 2]
    other = permuted(case.model, order)
    term = "label" if case.data.theta is not None else "mixture"
    objective, data = Case.objective_of(other, term), case.data
    if term == "label":
        data = replaced(data, theta=data.theta[:, order], theta_err=data.theta_err[:, order])
    batch, u = case.batch(objective, data), case.truth[:, whole]
    found = objective.evaluate(tensor(u), batch, objective.whitening(tensor(u), batch, True))
    expected, _ = case.evaluate(case.truth)
    np.testing.assert_allclose(found.phi, expected.phi, atol=0.02)
    np.testing.assert_allclose(found.chi2, expected.chi2, rtol=1e-3)
    np.testing.assert_allclose(found.gradient, expected.gradient[whole], rtol=1e-2, atol=0.1)
    hessian = expected.hessian[whole][:, whole]
    np.testing.assert_allclose(found.hessian, hessian, rtol=1e-2, atol=0.1)


@pytest.mark.parametrize(
    ("value", "err"),
    [(np.nan, 0.1), (1.0, np.nan), (1.0, np.inf), (1.0, 0.0), (1.0, -1.0), (np.inf, 1.0)],
)
def test_value_that_is_no_measurement_has_no_weight(value, err):
    found, weight = gaussian_prior([value, 2.0], [err, 0.5])
    np.testing.assert_array_equal(weight, [0.0, 4.0])
    assert np.isfinite(found).all()


def test_term_of_a_star_without_a_label_is_that_of_the_others(n_labels):
    case = Case(n_labels, "label")
    batch = case.batch()
    z, ext = tensor(case.truth[:, case.at.z]), tf.constant(np.full(12, 0.4, "f4"))
    value = case.objective.term.value(z, ext, batch).numpy()
    for i, star in enumerate(case.stars):
        u = np.concatenate([case.truth[i, case.at.z], [0.0, np.log(0.4), 0.0]])
        assert value[i] == pytest.approx(-case.oracle.ln_prior_labels(u, star), rel=1e-3, abs=1e-4)
