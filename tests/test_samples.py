"""Draws from the posteriors of stars: the right density, and the catalogue's errors against it."""

import numpy as np
import pytest
from model_case import (
    N_XP,
    NO_BP,
    add_direct,
    as_graphs,
    make_model,
    make_sampler,
    make_solver,
    make_trained,
    mock_stars,
    replaced,
    table_of,
)
from model_oracle import Star
from scipy import stats

from fitting.catalogue import infer
from fitting.posterior import physical
from fitting.sampling import sampler as chains
from fitting.sampling.samples import StarSampler, pooled_draws
from fitting.sampling.star_density import StarDensity
from pipeline.schema import flags

N_STARS, DRAWS = 32, 1000
IDS = np.arange(N_STARS, dtype=np.int64) * 10**12 + 4295806720


@pytest.fixture(scope="module", autouse=True)
def short_chains():
    """Shorter chains than usual, and no longer ones for stars that do not mix."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chains, "WARM_UP", (15, 15))
        patch.setattr(chains, "BURN_IN", 15)
        patch.setattr(chains, "THINNING", (6,))
        yield


@pytest.fixture(scope="module")
def sampler(star_solver):
    return make_sampler(star_solver, make_trained(star_solver.model))


@pytest.fixture(scope="module")
def table(mocks):
    return table_of(mocks[0].take(slice(0, N_STARS)))


@pytest.fixture(scope="module")
def drawn(sampler, table):
    return sampler.columns(table, IDS, DRAWS)


@pytest.fixture(scope="module")
def catalogue(sampler, table):
    return infer(table, sampler.solver, sampler.trained)


def some(table, rows):
    return {name: values[rows] for name, values in table.items()}


def good(drawn):
    return drawn["sample_flags"] == 0


# ---- the density -----------------------------------------------------------------------------


def test_the_density_is_the_oracles_with_the_noise_at_the_solution(star_solver, varied, oracle):
    """At places about the solutions of odd stars: ln density in x is that in u, plus ln width."""
    data, at = varied[0], star_solver.at
    modes = star_solver.solve(data)
    solutions = np.repeat(modes.best.u[:, None].astype("f8"), 2, 1)
    with as_graphs():
        density = StarDensity(star_solver.objective, 16)
    rng, n = np.random.default_rng(0), len(data)
    x = np.repeat(solutions[:, :1], 16, 1) + 0.2 * rng.normal(size=(n, 16, len(at)))
    x[..., at.ln_plx] = rng.normal(size=(n, 16))
    ln, ln_plx = density.of(data, solutions)(np.arange(n))(x)
    moved = x.copy()
    moved[..., at.ln_plx] += 1e-2  # by which the width follows from ln plx
    width = (density.of(data, solutions)(np.arange(n))(moved)[1] - ln_plx)[..., 0] / 1e-2
    for i in range(n):
        star = Star(data, i)
        noise = oracle.noise_at(solutions[i, 0], star)
        u = np.concatenate([x[i, :, : at.ln_plx], ln_plx[i]], 1)
        expected = np.array([-oracle.phi(one, star, noise) for one in u])
        off = ln[i] - np.log(width[i]) - expected
        np.testing.assert_allclose(off - off.mean(), 0, atol=0.02)
        np.testing.assert_allclose(off.mean(), 0, atol=0.2)  # float32: ln det


def test_places_outside_the_bounds_have_no_density(star_solver, mocks):
    data, at = mocks[0].take(slice(0, 4)), star_solver.at
    solutions = np.repeat(star_solver.solve(data).best.u[:, None].astype("f8"), 2, 1)
    with as_graphs():
        density = StarDensity(star_solver.objective, 16).of(data, solutions)(np.arange(4))
    x = np.repeat(solutions[:, :1], 16, 1)
    x[..., at.ln_plx] = 0.0
    assert np.isfinite(density(x)[0]).all()
    for k, beyond in ((0, 6.1), (at.xi, -3.6), (at.ln_ext, 2.8), (at.ln_ext, 500.0)):
        outside = x.copy()
        outside[..., k] = beyond
        assert (density(outside)[0] == -np.inf).all()


def test_draws_agree_with_importance_sampling_of_the_oracle(sampler, drawn, table, mocks, oracle):
    """Means and deviations of three stars, by 3,000 evaluations of the slow density of each."""
    rng, at = np.random.default_rng(1), sampler.at
    data = mocks[0].take(slice(0, N_STARS))
    solutions = sampler.solver.solve(data).best.u
    for i in np.flatnonzero(good(drawn))[:3]:
        star, u = Star(data, i), to_coordinates(drawn["model_samples"][i], sampler.solver.model)
        shape = 1.3 * np.cov(u.T)
        proposal = stats.multivariate_t(u.mean(0), shape, 6, seed=rng)
        places = proposal.rvs(3000)
        noise = oracle.noise_at(solutions[i], star)
        ln = np.array([-oracle.phi(one, star, noise) for one in places]) - proposal.logpdf(places)
        inside = (places > at.lower).all(1) & (places < at.upper).all(1)
        weight = np.exp(ln - ln[inside].max()) * inside
        weight /= weight.sum()
        size = 1 / (weight**2).sum()
        assert size > 100
        mean = weight @ places
        sd = np.sqrt(weight @ (places - mean) ** 2)
        error = sd * np.sqrt(1 / size + 1 / drawn["effective_sample_size"][i])
        assert (np.abs(u.mean(0) - mean) < 4 * error).all()
        np.testing.assert_allclose(u.std(0), sd, rtol=5 / np.sqrt(size))


def to_coordinates(params, model):
    """Coordinates u (..., n) of parameters, the reverse of `posterior.physical`."""
    at, u = model.coordinates, np.array(params, "f8")
    forward = model.is_forward
    u[..., at.z] = (u[..., at.z] - model.label_mean[forward]) / model.label_scale[forward]
    u[..., at.logarithms] = np.log(u[..., at.logarithms])
    return u


# ---- what comes out --------------------------------------------------------------------------


def test_draws_are_finite_positive_and_said_to_have_mixed(drawn):
    assert good(drawn).mean() > 0.8
    assert np.isfinite(drawn["model_samples"]).all()
    assert (drawn["model_samples"][..., 4:] > 0).all()
    assert (drawn["r_hat"][good(drawn)] <= flags.MIXED_R_HAT).all()
    assert (drawn["effective_sample_size"] <= DRAWS).all()
    assert np.median(drawn["effective_sample_size"]) > 0.5 * DRAWS
    assert ((drawn["acceptance"] > 0.1) & (drawn["acceptance"] < 0.9)).all()


def test_without_a_direct_estimate_the_catalogues_draws_are_the_models(drawn):
    np.testing.assert_array_equal(drawn["stellar_samples"], drawn["model_samples"])


def test_truths_are_among_the_draws_as_often_as_they_should(drawn, mocks, sampler):
    """Ranks of the true parameters of stars drawn from the model are uniform."""
    truth = physical(mocks[1][:N_STARS], sampler.solver.model)
    rank = (drawn["model_samples"] < truth[:, None]).mean(1)[good(drawn)]
    for k in range(5):
        assert stats.kstest(rank[:, k], "uniform").pvalue > 1e-3, k


def test_errors_of_the_curvature_are_the_deviations_of_the_draws_within_a_quarter(drawn, catalogue):
    """In the median of stars, uncalibrated, as here no error factors are: the curvature misses what
    is not Gaussian, so draws are wider, by 1.05 to 1.1 as calibrated factors say."""
    ratio = drawn["model_samples"].std(1) / catalogue["model_params_err"]
    ratio = np.median(ratio[good(drawn)], 0)
    assert 0.9 < ratio.min() < ratio.max() < 1.25, ratio


def test_the_catalogues_estimate_is_within_the_draws(drawn, catalogue):
    draws = drawn["model_samples"]
    off = (draws.mean(1) - catalogue["model_params_est"]) / draws.std(1)
    assert np.abs(np.median(off[good(drawn)], 0)).max() < 0.4
    assert np.quantile(np.abs(off[good(drawn)]), 0.9) < 1.0


# ---- relations -------------------------------------------------------------------------------


def test_draws_of_a_star_are_the_same_bit_for_bit_whoever_is_beside_it(sampler, table, drawn):
    rows = np.array([5, 30, 11])
    alone = sampler.columns(some(table, rows), IDS[rows], DRAWS)
    for name, values in alone.items():
        np.testing.assert_array_equal(values, drawn[name][rows], name)


def test_fewer_draws_are_some_of_the_same_chains(sampler, table, drawn):
    few = sampler.columns(some(table, slice(0, 3)), IDS[:3], 10)
    assert few["model_samples"].shape == (3, 10, 6)
    assert (few["effective_sample_size"] <= 10).all()
    assert (few["r_hat"] == drawn["r_hat"][:3]).all()


def test_another_id_has_other_draws_of_the_same_posterior(sampler, table, drawn):
    other = sampler.columns(some(table, slice(0, 8)), IDS[:8] + 1, DRAWS)
    one = {name: values[:8] for name, values in drawn.items()}
    rows = good(one) & good(other)
    assert not (other["model_samples"] == one["model_samples"]).any()
    away = other["model_samples"].mean(1) - one["model_samples"].mean(1)
    sizes = [x["effective_sample_size"] for x in (one, other)]
    error = one["model_samples"].std(1) * np.sqrt(1 / sizes[0] + 1 / sizes[1])
    assert np.abs(away / error)[rows].max() < 5


def test_without_a_precise_parallax_the_draws_are_wider_and_still_positive(sampler, table, drawn):
    hidden, precise = some(table, slice(0, 16)), some(table, slice(0, 16))
    hidden |= {name: np.full(16, np.nan, "f4") for name in ("plx", "plx_err")}
    precise["plx"] = drawn["model_samples"][:16, :, 5].mean(1)
    precise["plx_err"] = 0.2 * drawn["model_samples"][:16, :, 5].std(1)
    without, known = (sampler.columns(one, IDS[:16], DRAWS) for one in (hidden, precise))
    rows = good(without) & good(known)
    ratio = (without["model_samples"].std(1) / known["model_samples"].std(1))[rows]
    assert np.median(ratio[:, 5]) > 3
    assert np.median(ratio[:, :3].max(1)) > 1.05
    assert np.median(ratio[:, 4]) > 0.95
    assert (without["model_samples"][rows][..., 5] > 0).all()


def test_larger_errors_of_the_fluxes_make_wider_draws(sampler, table, drawn):
    worse = some(table, slice(0, 12))
    worse["flux_err"] = 4 * worse["flux_err"]
    found = sampler.columns(worse, IDS[:12], DRAWS)
    rows = good(found) & good(drawn)[:12]
    ratio = found["model_samples"].std(1) / drawn["model_samples"][:12].std(1)
    assert np.median(ratio[rows][:, :3]) > 1.3


def test_stars_without_a_spectrum_are_nan_and_flagged_and_the_others_as_they_were(
    sampler, table, drawn
):
    broken = some(table, slice(0, 4))
    broken["flux_err"] = broken["flux_err"].copy()
    broken["flux_err"][1] = np.inf
    found = sampler.columns(broken, IDS[:4], DRAWS)
    bit = flags.SampleFlag.NO_SOLUTION
    assert (found["sample_flags"] & bit > 0).tolist() == [False, True, False, False]
    assert np.isnan(found["model_samples"][1]).all()
    assert np.isnan(found["effective_sample_size"][1]).all()
    others = [0, 2, 3]
    np.testing.assert_array_equal(found["model_samples"][others], drawn["model_samples"][others])
    nothing = {name: values[1:2] for name, values in broken.items()}
    assert sampler.columns(nothing, IDS[1:2], 5)["sample_flags"] == [bit]


# ---- two modes -------------------------------------------------------------------------------


def test_a_star_of_two_modes_has_draws_at_both_by_their_evidence(sampler, mocks):
    """Of stars with RP alone, poorly measured: the odds of the second solution among the draws are
    those of Laplace's approximation, within a factor of 2 in the median, and 4 for most."""
    stars = mocks[0].take(slice(0, 120))
    err = 10 * stars.flux_err
    err[:, NO_BP] = err[:, N_XP:] = np.inf
    data = replaced(stars, flux_err=err).without_parallax()
    modes = sampler.solver.solve(data)
    shares = sampler._solutions(data, modes)[2][:, 1]
    apart = np.abs(modes.best.u[:, :3] - modes.second.u[:, :3]).max(1) > 1.0
    rows = np.flatnonzero(apart & (shares > 0.1) & (shares < 0.9))[:16]
    assert len(rows) > 8
    share = sampler.columns(table_of(data.take(rows)), rows + 1, DRAWS)["second_share"]
    assert (share > 0).all()
    assert (share < 1).all()
    odds = np.log(share / (1 - share)) - np.log(shares[rows] / (1 - shares[rows]))
    assert abs(np.median(odds)) < np.log(2)
    assert np.quantile(np.abs(odds), 0.75) < np.log(4)


# ---- the pool --------------------------------------------------------------------------------


def test_pooled_draws_have_the_mean_and_covariance_of_the_pool(star_solver):
    """Of Gaussian draws, by the formula written out for one star."""
    rng, at = np.random.default_rng(3), star_solver.at
    k, n = at.n_labels, len(at)
    root = 0.05 * rng.normal(size=(n, n))
    draws = rng.normal(size=(1, 4000, n)) @ root.T
    cov, mean = np.cov(draws[0].T), draws[0].mean(0)
    z, sigma, weights, factors = mean[:k] + 0.03, np.full(k, 0.05), np.array([0.6, 0.5]), 1.2
    found = pooled_draws(draws, z[None], sigma[None], weights[None], np.full((1, k), factors), at)[
        0
    ].astype("f8")
    own = np.linalg.inv(cov[:k, :k])
    precision = weights[0] * own + weights[1] * np.eye(k) / sigma**2
    expected = mean[:k] + np.linalg.solve(precision, weights[1] * (z - mean[:k]) / sigma**2)
    np.testing.assert_allclose(found[:, :k].mean(0), expected, atol=2e-4)
    target = factors**2 * np.linalg.inv(precision)
    np.testing.assert_allclose(np.cov(found[:, :k].T), target, atol=2e-5)
    along = cov[k:, :k] @ own
    np.testing.assert_allclose(
        found[:, k:].mean(0), mean[k:] + along @ (expected - mean[:k]), atol=3e-3
    )


def test_a_pool_that_leaves_all_to_the_model_changes_nothing(star_solver):
    at, draws = star_solver.at, 0.1 * np.random.default_rng(4).normal(size=(2, 500, 6))
    z, ones = np.zeros((2, 3)), np.ones((2, 3))
    same = pooled_draws(draws, z, ones, np.tile([1.0, 0.0], (2, 1)), ones, at)
    np.testing.assert_allclose(same, draws, atol=1e-6)
    unknown = pooled_draws(draws, z * np.nan, ones, np.tile([0.5, 0.5], (2, 1)), ones, at)
    np.testing.assert_allclose(unknown, draws, atol=1e-6)


def test_the_catalogues_draws_are_of_the_catalogues_estimates_and_errors():
    """With a direct estimate, in the median of stars; the errors of the curvature are narrower than
    the draws, which weighs in the pool."""
    model = add_direct(make_model())
    solver = make_solver(model)
    trained = make_trained(model, pool_weights=np.array([[0.5, 0.5]]))
    data = mock_stars(model, 16, seed=5)[0]
    table, ids = table_of(data), np.arange(16) + 77
    found, known = (
        make_sampler(solver, trained).columns(table, ids, DRAWS),
        infer(table, solver, trained),
    )
    rows = good(found)
    assert rows.sum() > 10
    draws = found["stellar_samples"]
    assert not np.array_equal(draws, found["model_samples"])
    off = (draws.mean(1) - known["stellar_params_est"]) / known["stellar_params_err"]
    ratio = draws.std(1) / known["stellar_params_err"]
    assert np.abs(np.median(off[rows][:, :3], 0)).max() < 0.4
    middle = np.median(ratio[rows], 0)
    assert 0.85 < middle.min() < middle.max() < 1.3, middle
    assert (draws[rows][..., 4:] > 0).all()


def test_stars_of_a_call_of_another_size_have_the_same_posterior(sampler, table, drawn):
    with as_graphs():
        other = StarSampler(sampler.solver, sampler.trained, batch_size=4)
    found = other.columns(some(table, slice(0, 4)), IDS[:4], DRAWS)
    away = found["model_samples"].mean(1) - drawn["model_samples"][:4].mean(1)
    error = drawn["model_samples"][:4].std(1) / np.sqrt(drawn["effective_sample_size"][:4])
    assert np.abs(away / error)[good(found) & good(drawn)[:4]].max() < 6
