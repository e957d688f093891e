"""Effective sample sizes and R-hat of chains whose answers are known."""

import numpy as np
import pytest

from fitting.sampling.mixing import effective_sample_size, split_r_hat

LENGTH, CHAINS, STARS = 400, 8, 40


def ar1(rho, seed=0, shape=(LENGTH, CHAINS, STARS, 1)):
    """Stationary chains whose autocorrelation at lag t is rho^t."""
    noise = np.random.default_rng(seed).normal(size=shape)
    out = noise.copy()
    for t in range(1, len(out)):
        out[t] = rho * out[t - 1] + np.sqrt(1 - rho**2) * noise[t]
    return out


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6, 0.9])
def test_effective_sample_size_of_an_autoregressive_chain_is_what_theory_says(rho):
    """N (1 - rho) / (1 + rho), within 8% in the mean of many stars."""
    expected = LENGTH * CHAINS * (1 - rho) / (1 + rho)
    assert effective_sample_size(ar1(rho)).mean() == pytest.approx(expected, rel=0.08)


def test_the_mean_of_chains_scatters_as_their_effective_sample_size_says():
    draws = ar1(0.7, seed=1, shape=(LENGTH, CHAINS, 400, 1))
    means = draws.mean((0, 1))[:, 0]
    claimed = 1 / np.sqrt(effective_sample_size(draws)[:, 0])
    assert (means / claimed).std() == pytest.approx(1, abs=0.12)


def test_antithetic_chains_count_as_at_most_their_number():
    assert effective_sample_size(ar1(-0.8)).max() <= LENGTH * CHAINS


def test_each_star_and_parameter_is_judged_by_itself():
    both = np.concatenate([ar1(0.0), ar1(0.9)], 3)
    together = effective_sample_size(both)
    np.testing.assert_allclose(together[:, :1], effective_sample_size(ar1(0.0)))
    np.testing.assert_allclose(together[:, 1:], effective_sample_size(ar1(0.9)))
    np.testing.assert_allclose(
        effective_sample_size(both[:, :, 3:4]), together[3:4], err_msg="one star alone"
    )


def test_r_hat_is_1_of_chains_that_agree_and_large_where_one_does_not_or_drifts():
    draws = ar1(0.2)
    assert split_r_hat(draws).max() < 1.02
    apart = draws.copy()
    apart[:, 0] += 4.0
    assert split_r_hat(apart).min() > 1.3
    drifting = draws + np.linspace(-2, 2, LENGTH)[:, None, None, None]
    assert split_r_hat(drifting).min() > 1.3


def test_chains_that_never_moved_have_one_draw_and_no_r_hat():
    still = np.broadcast_to(np.arange(CHAINS, dtype=float)[:, None, None], (20, CHAINS, 2, 1))
    assert (effective_sample_size(still) == 1).all()
    assert np.isinf(split_r_hat(still)).all()


def test_short_chains_of_independent_draws_are_worth_their_number():
    draws = np.random.default_rng(2).normal(size=(32, 32, 30, 3))
    assert effective_sample_size(draws).mean() > 0.95 * 32 * 32
