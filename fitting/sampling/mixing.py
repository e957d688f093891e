"""Whether Markov chains have mixed: effective sample sizes and R-hat, for many stars at once.

Both are of chains split in halves (Gelman et al. 2013, Bayesian Data Analysis, 11.4-11.5), so that
a drift counts as well as chains that disagree.
"""

import numpy as np
from scipy import fft


def effective_sample_size(draws):
    """Effective sample sizes (S, p) of draws (L, W, S, p): L of each of W chains; at most L W.

    The autocorrelation at a lag is that of all chains together, less what they differ by in their
    means; it is summed by pairs of lags as long as these are positive and falling (Geyer 1992,
    Statistical Science 7, 473). 1 where a chain never moves.
    """
    return np.stack([_size(_halves(one)) for one in np.moveaxis(draws, -1, 0)], -1)


def split_r_hat(draws):
    """R-hat (S, p) of draws (L, W, S, p): root of the variance of all chains over that within
    them, 1 where they have mixed; inf where no chain moves."""
    within, whole = _variances(_halves(draws))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(within > 0, np.sqrt(whole / within), np.inf)


def _halves(draws):
    """Draws (L, W, ...) as (L // 2, 2 W, ...), float64; an odd one in the middle left out."""
    half = len(draws) // 2
    return np.concatenate([draws[:half], draws[-half:]], 1).astype("f8")


def _variances(chains):
    """Variance within chains (L, W, ...), and of all of them."""
    length = len(chains)
    within = chains.var(0, ddof=1).mean(0)
    return within, within * (length - 1) / length + chains.mean(0).var(0, ddof=1)


def _size(chains):
    """Effective sample sizes (S,) of chains (L, W, S)."""
    length, n_chains = chains.shape[:2]
    within, whole = _variances(chains)
    spectrum = fft.rfft(chains - chains.mean(0), fft.next_fast_len(2 * length), axis=0)
    power = (spectrum.real**2 + spectrum.imag**2).mean(1)  # over chains
    covariance = fft.irfft(power, fft.next_fast_len(2 * length), axis=0)[:length] / length
    moving = within > 0
    rho = 1.0 - (within - covariance) / np.where(moving, whole, 1.0)
    rho[0] = 1.0
    n_pairs = length // 2
    pairs = rho[: 2 * n_pairs].reshape(n_pairs, 2, -1).sum(1)
    pairs = np.minimum.accumulate(pairs * (np.cumprod(pairs > 0, 0) > 0), 0)
    total = length * n_chains
    time = np.maximum(2.0 * pairs.sum(0) - 1.0, 1.0)
    return np.where(moving, total / time, 1.0)
