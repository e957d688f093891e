"""Parallaxes that may be wrong: how far they are from what the fluxes alone say, and how much they
are trusted."""

import dataclasses

import numpy as np
from scipy.stats import norm

WRONG_SHARE = 0.03  # of parallaxes, before anything is known of the star
WRONG_RANGE = 3.0  # of ln plx, either way, where wrong ones are
NOTICEABLE = 0.2  # of both errors: additions to them below are left out


def tension(data, distance, model):
    """ln of the parallax less what the fluxes alone say of it (N,), and the same over both errors;
    NaN where there is no parallax.

    data: `StarData`; distance (2, N, 1): of `Seen`, or None; a parallax below its error is taken as
    that.
    """
    if distance is None:
        return (np.full(len(data), np.nan),) * 2
    z, sigma = distance[:, :, 0].astype("f8") * model.distance_scale
    with np.errstate(invalid="ignore", divide="ignore"):
        floored = np.maximum(data.parallax, data.parallax_err)
        expected = 0.5 * (data.observed.features[:, 0] - (model.distance_mean + z))
        off = np.log(floored) - expected
        return off, off / np.hypot(data.parallax_err / floored, 0.5 * sigma)


def doubted(data, off, tense):
    """`StarData` whose parallaxes are trusted as far as the fluxes allow, and which stars (M,) have
    less trust.

    off, tense (N,): of `tension`. A parallax is right, or, with the probability WRONG_SHARE, off by
    anything up to WRONG_RANGE; given the tension, the chance that it is wrong follows, and with it
    the second moment of what it is off by, which is added to its error.
    """
    total = np.abs(off) / np.maximum(np.abs(tense), 1e-6)  # both errors
    wrong = WRONG_SHARE * total / (2 * WRONG_RANGE)
    right = (1 - WRONG_SHARE) * norm.pdf(tense)
    relative = np.sqrt(wrong / (wrong + right)) * np.abs(off)
    rows = np.flatnonzero(relative > NOTICEABLE * total)
    err = data.parallax_err.astype("f8").copy()
    err[rows] = np.hypot(err[rows], relative[rows] * np.maximum(data.parallax, err)[rows])
    return dataclasses.replace(data, parallax_err=err.astype("f4")), rows
