"""The sampler on densities whose moments, weights and shapes are known."""

import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from fitting.sampling import sampler
from fitting.sampling.proposals import Mixture
from fitting.sampling.random_numbers import DEGREES, star_keys, t_numbers, uniforms
from fitting.sampling.sampler import sample

STARS = 24
KEYS = star_keys(np.arange(1, STARS + 1) * 7919)
N = 1024


def density(ln_density):
    """What `sample` takes, of a function of x (M, W, d)."""

    def of_stars(stars):
        return lambda x: (ln_density(x, stars), np.zeros((*x.shape[:2], 1)))

    return of_stars


def mixture(means, sizes, weights, n=STARS):
    """Spherical components, the same for n stars."""
    means = np.array(means, float)
    covariances = np.array([s * s * np.eye(means.shape[1]) for s in sizes])
    return Mixture.of_covariances(*(np.tile(x, (n,) + (1,) * np.ndim(x)) for x in (
        np.array(weights, float), means, covariances)))  # fmt: skip


def off(values, ess, mean):
    """How far means (S, D) of draws (S, N, D) are from the truth, in standard errors."""
    return (values.mean(1) - mean) / (values.std(1) / np.sqrt(ess))


COV = np.array([[4.0, 1.5, 0.0], [1.5, 1.0, -0.3], [0.0, -0.3, 0.25]])
MEAN = np.array([1.0, -2.0, 0.5])
GAUSS = stats.multivariate_normal(MEAN, COV)


@pytest.fixture(scope="module")
def of_gauss():
    start = mixture([[0.0, 0, 0]], [1.0], [1])
    return sample(density(lambda x, _: GAUSS.logpdf(x)), start, KEYS, N)


def test_a_gaussian_has_its_mean_and_covariance_within_their_own_standard_errors(of_gauss):
    values, ess = of_gauss.values.astype("f8"), of_gauss.ess
    assert ess.min() > 0.5 * N
    pulls = off(values, ess, MEAN)
    assert 0.8 < pulls.std() < 1.25
    assert abs(pulls.mean()) < 0.4
    together = values.reshape(-1, 3)
    np.testing.assert_allclose(np.cov(together.T), COV, atol=0.05 * COV.max())
    assert of_gauss.r_hat.max() < 1.05


def test_the_distribution_of_each_coordinate_is_the_right_one(of_gauss):
    for k in range(3):
        drawn = of_gauss.values[:, ::8, k].ravel()
        assert stats.kstest(drawn, stats.norm(MEAN[k], COV[k, k] ** 0.5).cdf).pvalue > 1e-3


def test_a_coordinate_drawn_anew_has_its_own_density_not_that_of_the_proposals():
    def ln_density(x, _):
        return -0.5 * x[..., 0] ** 2 - 0.5 * ((x[..., 1] - 0.3) / 0.8) ** 2

    found = sample(density(ln_density), mixture([[0.0]], [1.0], [1]), KEYS, N, n_fresh=1)
    pulls = off(found.values.astype("f8"), found.ess, np.array([0.0, 0.3]))
    assert np.abs(pulls.mean(0)).max() < 0.6
    assert found.values[..., 1].std() == pytest.approx(0.8, rel=0.03)


def test_two_modes_far_apart_have_the_shares_of_their_evidence():
    """Ten sigma apart, unequal in height and width; a start that thinks them equal."""
    share = 0.2

    def ln_density(x, _):
        one = np.log(1 - share) - 0.5 * ((x - 3) ** 2).sum(-1)
        other = np.log(share) - 0.5 * (((x + 3) / 0.5) ** 2).sum(-1) - 3 * np.log(0.5)
        return logsumexp([one, other], 0)

    start = mixture([[3.0] * 3, [-3.0] * 3], [1, 1], [0.5, 0.5])
    found = sample(density(ln_density), start, KEYS, N)
    second = (found.values[..., 0] < 0).mean(1)
    error = np.sqrt(share * (1 - share) / found.ess[:, 0])
    assert 0.7 < ((second - share) / error).std() < 1.4
    assert second.mean() == pytest.approx(share, abs=3.5 * error.mean() / np.sqrt(STARS))


def test_a_curved_density_has_the_moments_of_its_parts():
    """x normal, y normal about x^2 - 1: mean of y 0, variance 3; y has a tail to one side, so that
    single stars' means lean to the other, and all together do not."""

    def ln_density(x, _):
        a, b = x[..., 0], x[..., 1]
        return -0.5 * a * a - 0.5 * (b - a * a + 1) ** 2

    found = sample(density(ln_density), mixture([[0.0, -1.0]], [0.6], [1]), KEYS, N)
    values = found.values.astype("f8")
    means = values.mean(1)
    assert (np.abs(means.mean(0)) < 4 * means.std(0) / np.sqrt(STARS)).all()
    claimed = values.std(1) / np.sqrt(found.ess)
    np.testing.assert_allclose(means.std(0), claimed.mean(0), rtol=0.4)
    np.testing.assert_allclose(values.var((0, 1)), [1, 3], rtol=0.08)


def test_a_density_with_an_edge_is_not_left():
    def ln_density(x, _):
        return np.where(x[..., 0] > 0, -x[..., 0] - 0.5 * x[..., 1] ** 2, -np.inf)

    found = sample(density(ln_density), mixture([[1.0, 0.0]], [1.0], [1]), KEYS, N)
    assert (found.values[..., 0] > 0).all()
    pulls = off(found.values.astype("f8"), found.ess, np.array([1.0, 0.0]))
    assert np.abs(pulls.mean(0)).max() < 0.7


def test_draws_of_a_star_do_not_depend_on_the_others():
    def ln_density(x, stars):
        return -0.5 * ((x - MEAN) ** 2).sum(-1) / (1.0 + 0.1 * stars[:, None])

    start = mixture([[0.0, 0, 0]], [1.0], [1])
    whole = sample(density(ln_density), start, KEYS, 100)
    some = np.array([3, 17])
    alone = sample(
        density(lambda x, stars: ln_density(x, some[stars])), start.take(some), KEYS[some], 100
    )
    for name in ("values", "ess", "r_hat", "acceptance"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(whole, name)[some], name)
    assert not (whole.values[0] == whole.values[1]).any()


def test_a_star_that_does_not_mix_goes_on_longer_and_is_told_by_its_r_hat(monkeypatch):
    """Two modes of which the start knows one, twenty sigma apart, in one star of three."""
    asked = []

    def ln_density(x, stars):
        asked.append(len(stars))
        gap = np.where(stars == 1, 20.0, 0.0)[:, None]
        terms = [-0.5 * ((x - k * gap[..., None]) ** 2).sum(-1) for k in (0, 1)]
        return logsumexp(terms, 0)

    start = mixture([[0.0, 0.0]], [1.0], [1], n=3)
    start.means[1] = 10.0  # between both
    start.roots[1] *= 9.0
    monkeypatch.setattr(sampler, "THINNING", (1, 2))
    found = sample(density(ln_density), start, KEYS[:3], 64)
    assert found.r_hat[[0, 2]].max() < 1.2
    assert set(asked) <= {1, 2, 3}
    assert 1 in asked or 2 in asked  # some went on, without those that had mixed
    assert found.values.shape == (3, N, 2)


# ---- random numbers and proposals ------------------------------------------------------------


def test_numbers_are_uniform_and_uncorrelated_between_stars_steps_and_places():
    u = uniforms(star_keys(np.arange(40)), 5, (50, 10))
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    flat = u.reshape(40, -1)
    off_diagonal = np.corrcoef(flat)[~np.eye(40, dtype=bool)]
    assert np.abs(off_diagonal).max() < 0.2  # 4.5 sigma of 500 numbers
    other = uniforms(star_keys(np.arange(40)), 6, (50, 10)).reshape(40, -1)
    assert abs(np.corrcoef(flat.ravel(), other.ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(flat[:, 1:].ravel(), flat[:, :-1].ravel())[0, 1]) < 0.03


def test_numbers_depend_on_the_seed_and_the_whole_id():
    ids = np.array([1, 2, 2**62, 2**62 + 1, 2**31, 2**32])
    assert len(np.unique(star_keys(ids))) == len(ids)
    assert not np.isin(star_keys(ids, 1), star_keys(ids)).any()


def test_t_numbers_have_the_density_of_their_degrees_of_freedom():
    u = uniforms(KEYS, 1, (2000, 1 + DEGREES // 2))
    assert stats.kstest(t_numbers(u).ravel(), stats.t(DEGREES).cdf).pvalue > 1e-3


def test_density_of_a_mixture_is_that_of_its_draws_and_of_scipys():
    some = mixture([[0.0, 1.0], [2.0, -1.0]], [1.0, 0.5], [0.3, 0.7], n=2)
    x = np.random.default_rng(0).normal(size=(2, 50, 2))
    shapes = [stats.multivariate_t(m, r @ r.T, DEGREES) for m, r in zip(
        some.means[0], some.roots[0], strict=True)]  # fmt: skip
    expected = np.log(0.3 * shapes[0].pdf(x) + 0.7 * shapes[1].pdf(x))
    np.testing.assert_allclose(some.ln_density(x), expected, rtol=1e-10)
    drawn = some.draw(uniforms(KEYS[:2], 3, (20000, some.n_uniforms)))
    assert (drawn[..., 0] > 1).mean() == pytest.approx(_share(shapes), abs=0.01)


def _share(shapes):
    """Chance that the first coordinate is above 1: margins are t, too."""
    margins = [stats.t(DEGREES, s.loc[0], np.sqrt(s.shape[0, 0])) for s in shapes]
    return 0.3 * margins[0].sf(1) + 0.7 * margins[1].sf(1)


def test_a_fitted_mixture_finds_components_and_keeps_one_that_has_no_draws():
    rng = np.random.default_rng(1)
    draws = np.concatenate([rng.normal(0, 1, (2, 600, 2)), rng.normal(8, 0.5, (2, 200, 2))], 1)
    fitted = mixture([[1.0, 1], [6.0, 6], [-50.0, 0]], [2, 2, 1], [1, 1, 1], n=2)
    for _ in range(20):
        fitted = fitted.fitted(draws)
    np.testing.assert_allclose(fitted.means[:, 0], 0, atol=0.2)
    np.testing.assert_allclose(fitted.means[:, 1], 8, atol=0.6)
    weights = fitted.weights / fitted.weights.sum(1, keepdims=True)
    np.testing.assert_allclose(weights[:, :2], [[0.735, 0.245]] * 2, atol=0.03)
    assert (weights[:, 2] > 0.01).all()
    np.testing.assert_allclose(fitted.means[:, 2], [[-50, 0]] * 2, atol=1e-6)
