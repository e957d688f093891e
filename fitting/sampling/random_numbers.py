"""Random numbers that depend on a star's key and a counter alone, made for many stars at once.

So the draws of a star are the same whichever other stars are beside it. The generator is SplitMix64
(Steele, Lea & Flood 2014, OOPSLA): a counter times GAMMA, mixed.
"""

import numpy as np
from scipy.special import ndtri

GAMMA = np.uint64(0x9E3779B97F4A7C15)
MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))  # shifts and factors
STEP_BITS = np.uint64(32)  # of the counter that are within a step
DEGREES = 8  # of freedom of the t distributions drawn here: even, so that chi^2 is a few logarithms


def mixed(words):
    """Words (...) uint64, their bits mixed."""
    out = np.asarray(words, np.uint64)
    for shift, factor in MIX:
        out = (out ^ (out >> np.uint64(shift))) * np.uint64(factor)
    return out ^ (out >> np.uint64(31))


def star_keys(ids, seed=0):
    """Keys (S,) uint64 of source ids (S,)."""
    return mixed(mixed(np.asarray(ids, np.int64).view(np.uint64) + GAMMA) + np.uint64(seed))


def uniforms(keys, step, shape):
    """Numbers (S, *shape) in (0, 1) of keys (S,) at a step, which is at most 2^32."""
    counter = np.arange(int(np.prod(shape)), dtype=np.uint64) + (np.uint64(step) << STEP_BITS)
    words = mixed(keys[:, None] + (counter + np.uint64(1)) * GAMMA)
    numbers = ((words >> np.uint64(11)) + 0.5) * 2.0**-53
    return numbers.reshape(len(keys), *shape)


def t_numbers(u):
    """Student-t numbers (..., k), one vector of DEGREES degrees of freedom, of uniform numbers
    u (..., k + DEGREES / 2)."""
    half = DEGREES // 2
    chi2 = -2.0 * np.log(u[..., :half]).sum(-1, keepdims=True)
    return ndtri(u[..., half:]) / np.sqrt(chi2 / DEGREES)
