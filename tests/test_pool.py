"""The direct estimate pooled with the forward model's posterior, for 2 to 4 labels."""

import numpy as np
import pytest
from model_case import LABEL_SETS, make_model

from fitting import posterior
from fitting.coordinates import Coordinates
from fitting.posterior import Gaussian, estimates, pool, pool_loss, widened

N = 20
ALONE = (1.0, 0.0)


def of_all(a, b):
    """Weights (N, 2) that are alike for all stars."""
    return np.tile([a, b], (N, 1))


@pytest.fixture(params=[2, 3, 4])
def case(request):
    """(K, `Coordinates`, a `Gaussian` of 20 stars, z and sigma of a direct estimate)."""
    k, rng = request.param, np.random.default_rng(5)
    gaussian = Gaussian(0.3 * rng.normal(size=(N, k + 3)), positive_definite(N, rng, k + 3))
    z, sigma = 0.3 * rng.normal(size=(N, k)), rng.uniform(0.2, 2.0, (N, k))
    return k, Coordinates(k), gaussian, z, sigma


def positive_definite(n, rng, k):
    root = rng.normal(size=(n, k, k + 2))
    return root @ root.transpose(0, 2, 1)


def grows(at):
    """Which coordinates (n,) are logarithms of E and parallax."""
    out = np.zeros(len(at), bool)
    out[at.logarithms] = True
    return out


def linear(moved, at):
    """Changes of u in which E and parallax have grown by a multiple of what they were."""
    return np.where(grows(at) & (moved > 0), np.expm1(moved), moved)


def in_physical_units(moved, at):
    """What errors of ln E and ln plx are to be divided by, to be relative to the new values."""
    return np.where(grows(at), np.exp(moved), 1.0)


def test_pool_of_full_weights_is_the_product_of_both_gaussians(case):
    _, at, gaussian, z, sigma = case
    found = pool(gaussian, z, sigma, of_all(1.0, 1.0))
    for i, (u, precision) in enumerate(zip(gaussian.mean, gaussian.precision, strict=True)):
        extra = np.diag(np.append(sigma[i] ** -2, np.zeros(3)))
        given = precision @ u + extra @ np.append(z[i], np.zeros(3))
        mean = np.linalg.solve(precision + extra, given)
        moved = found.mean[i] - u
        np.testing.assert_allclose(linear(moved, at), mean - u, atol=1e-6)
        grown = in_physical_units(moved, at)
        np.testing.assert_allclose(
            found.precision[i] / np.outer(grown, grown), precision + extra, rtol=1e-6
        )


@pytest.mark.parametrize("weights", [(0.4, 0.5), (0.9, 0.05), (0.1, 1.0)])
def test_pool_is_the_logarithmic_pool_of_the_type_and_leaves_the_rest_given_it(case, weights):
    k, at, gaussian, z, sigma = case
    found = pool(gaussian, z, sigma, of_all(*weights))
    before, after = (np.linalg.inv(g.precision) for g in (gaussian, found))
    own, new = (np.linalg.inv(c[:, :k, :k]) for c in (before, after))
    extra = sigma[:, :, None] ** -2 * np.eye(k)
    np.testing.assert_allclose(new, weights[0] * own + weights[1] * extra, rtol=1e-6, atol=1e-6)
    slopes = [
        np.linalg.solve(g.precision[:, k:, k:], g.precision[:, k:, :k]) for g in (gaussian, found)
    ]
    moved = found.mean - gaussian.mean
    unit = in_physical_units(moved, at)[:, k:, None]
    np.testing.assert_allclose(unit * slopes[1], slopes[0], rtol=1e-6)
    moved = linear(moved, at)
    rest = -np.einsum("nij,nj->ni", slopes[0], moved[:, :k])
    np.testing.assert_allclose(moved[:, k:], rest, atol=1e-6)


def test_pool_with_the_model_alone_changes_nothing(case):
    *_, gaussian, z, sigma = case
    found = pool(gaussian, z, sigma, of_all(*ALONE))
    np.testing.assert_allclose(found.mean, gaussian.mean, rtol=1e-6)
    np.testing.assert_allclose(found.precision, gaussian.precision, rtol=1e-9)


def test_every_star_is_pooled_with_its_own_weights(case):
    *_, gaussian, z, sigma = case
    weights = np.random.default_rng(2).uniform(0.1, 1.0, (N, 2))
    found = pool(gaussian, z, sigma, weights)
    for i in range(N):
        alone = pool(gaussian, z, sigma, of_all(*weights[i]))
        np.testing.assert_allclose(found.mean[i], alone.mean[i], rtol=1e-9)
        np.testing.assert_allclose(found.precision[i], alone.precision[i], rtol=1e-9)


def test_factors_by_type_multiply_the_errors_of_the_type_and_leave_the_rest_given_it(case):
    k, _, gaussian, z, sigma = case
    factors = np.random.default_rng(3).uniform(0.7, 1.4, (N, k))
    before = pool(gaussian, z, sigma, of_all(0.4, 0.5))
    after = pool(gaussian, z, sigma, of_all(0.4, 0.5), factors)
    np.testing.assert_array_equal(after.mean, before.mean)
    np.testing.assert_array_equal(after.precision[:, k:], before.precision[:, k:])
    first, then = (np.linalg.inv(g.precision)[:, :k, :k] for g in (before, after))
    np.testing.assert_allclose(then, first * factors[:, :, None] * factors[:, None], rtol=1e-6)


def test_order_of_the_labels_permutes_the_pool(case):
    k, _, gaussian, z, sigma = case
    order = np.roll(np.arange(k), 1)
    whole = [*order, k, k + 1, k + 2]
    other = Gaussian(gaussian.mean[:, whole], gaussian.precision[:, whole][:, :, whole])
    found = pool(other, z[:, order], sigma[:, order], of_all(0.4, 0.5))
    expected = pool(gaussian, z, sigma, of_all(0.4, 0.5))
    np.testing.assert_allclose(found.mean, expected.mean[:, whole], atol=1e-9)
    precision = expected.precision[:, whole][:, :, whole]
    np.testing.assert_allclose(found.precision, precision, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("there", [0.1, 0.5, 1.0])
@pytest.mark.parametrize(
    ("first", "other"), [((0.02, 0.05), (0.5, 1.2)), ((0.5, 1.2), (0.02, 0.05))]
)
@pytest.mark.parametrize("n_labels", [2, 3, 4])
def test_pool_of_two_modes_stays_between_them(n_labels, there, first, other):
    """A giant and a dwarf, whose dust and parallaxes differ by 24, and a direct estimate between
    the two or at the second: neither E nor parallax goes beyond it, nor do their errors."""
    model = make_model(LABEL_SETS[n_labels])
    rng, at = np.random.default_rng(12), model.coordinates
    mean = 0.1 * rng.normal(size=(N, len(at)))
    away = np.zeros(len(at))
    away[:n_labels] = [0.3, 0.2, 1.5, 0.4][-n_labels:]
    precision = np.tile(np.diag([*[100.0] * n_labels, 1, 100, 100]), (N, 1, 1))
    best, second = Gaussian(mean, precision), Gaussian(mean + away, precision)
    for mode, values in ((best, first), (second, other)):
        mode.mean[:, at.logarithms] = np.log(values)
    both = widened(best, second, -rng.uniform(0, 3, N), np.ones(mean.shape))
    z = best.mean[:, at.z] + there * (second.mean - best.mean)[:, at.z]
    found = pool(both, z, np.full(z.shape, 0.1), of_all(0.5, 0.5))
    before, after = (estimates(g, model) for g in (both, found))
    ends = np.sort([first, other], 0)
    value, margin = after.est[:, at.logarithms], 0.15 * ends[1]
    assert ((value > ends[0] - margin) & (value < ends[1] + margin)).all()
    assert (after.err[:, at.logarithms] <= 1.01 * before.err[:, at.logarithms]).all()


def test_pool_leaves_stars_without_curvature_or_direct_estimate_alone(case):
    *_, gaussian, z, sigma = case
    gaussian.precision[3] *= -1
    gaussian.mean[5] = gaussian.precision[5] = np.nan
    z[7] = np.nan
    found = pool(gaussian, z, sigma, of_all(0.5, 0.5))
    for name in ("mean", "precision"):
        one, two = (getattr(g, name)[[3, 5, 7]] for g in (found, gaussian))
        np.testing.assert_array_equal(one, two)
    others = np.delete(np.arange(N), [3, 5, 7])
    assert (found.mean[others] != gaussian.mean[others]).any(1).all()


def test_pool_stays_within_the_bounds(case):
    _, at, gaussian, z, sigma = case
    found = pool(gaussian, z + 50, sigma, of_all(0.5, 0.5))
    assert ((found.mean >= at.lower) & (found.mean <= at.upper)).all()


@pytest.mark.parametrize("n_labels", [2, 3, 4])
def test_pool_loss_is_least_for_honest_errors(n_labels):
    rng, n, k = np.random.default_rng(7), 20_000, n_labels
    z, precision = rng.normal(size=(n, k)), positive_definite(1, rng, k + 3)[0]
    root = np.linalg.cholesky(np.linalg.inv(precision)[:k, :k])
    tails = np.sqrt(posterior.POOL_NU / rng.chisquare(posterior.POOL_NU, (n, 1)))
    mean = np.pad(z + tails * (rng.normal(size=(n, k)) @ root.T), ((0, 0), (0, 3)))
    losses = [
        pool_loss(Gaussian(mean, np.tile(precision / size**2, (n, 1, 1))), z)
        for size in (0.8, 0.9, 1.0, 1.1, 1.2)
    ]
    assert np.argmin(losses) == 2
