"""What figures compute from arrays before they draw."""

import math

import numpy as np

XP_MAX_NM = 1100.0  # RP ends near 1050 nm
MIN_IN_BIN = 8  # stars, for a percentile to be drawn
PERCENTILES = (2.5, 16.0, 50.0, 84.0, 97.5)


def checked(name, values, shape):
    """values as floats of a shape in which None is any length, NaN for inf. Raises ValueError."""
    values = np.asarray(values)
    fits = values.ndim == len(shape) and all(
        want in (None, got) for want, got in zip(shape, values.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(
            f"{name} has shape {values.shape}, expected ({wanted}): "
            "give one row per star (or curve) and one column per wavelength or label"
        )
    values = values if values.dtype.kind == "f" else values.astype(float)
    return np.where(np.isfinite(values), values, np.nan)


def size_of_spectrum(wavelengths, n_xp=None):
    """How many of wavelengths (n_wl,) in nm, from the first on, are the XP spectrum's.

    n_xp: that number, where it is known; else the spectrum ends before the first one above 1100 nm.
    Raises ValueError where there are not so many.
    """
    if n_xp is None:
        return int(np.argmin(np.append(wavelengths < XP_MAX_NM, False)))
    if not 0 <= n_xp <= len(wavelengths):
        raise ValueError(f"n_xp is {n_xp}, expected 0 to {len(wavelengths)}, as many wavelengths")
    return int(n_xp)


def limits_of(*arrays, percentile=0.0, pad=0.04):
    """Axis limits (low, high): the percentile range of all finite values, and a margin."""
    values = np.concatenate([np.ravel(a) for a in arrays])
    values = values[np.isfinite(values)].astype(float)
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, [percentile, 100 - percentile])
    margin = pad * (high - low) if high > low else 0.05 * max(abs(low), 0.1)
    return low - margin, high + margin


def column_percentiles(values):
    """PERCENTILES (5, n_wl) of the finite values in each column of (N, n_wl)."""
    out = np.full((len(PERCENTILES), values.shape[1]), np.nan)
    for column in range(values.shape[1]):
        finite = values[np.isfinite(values[:, column]), column]
        if finite.size:
            out[:, column] = np.percentile(finite, PERCENTILES)
    return out


def running_percentiles(x, y, limits, n_bins=24):
    """Bin centres (m,) and the 16th, 50th, 84th percentile (3, m) of y in bins of x.

    A bin with fewer than MIN_IN_BIN stars has NaN: lines are not drawn over it.
    """
    edges = np.linspace(*limits, n_bins + 1)
    bins = np.digitize(x, edges) - 1
    out = np.full((3, n_bins), np.nan)
    for i in range(n_bins):
        inside = y[bins == i]
        if inside.size >= MIN_IN_BIN:
            out[:, i] = np.percentile(inside, PERCENTILES[1:4])
    return 0.5 * (edges[1:] + edges[:-1]), out


def binomial_interval(n, p, level=0.95):
    """Counts (low, high) that hold at least `level` of a binomial distribution, exactly."""
    if n == 0:
        return 0, 0
    if not 0.0 < p < 1.0:
        return (0, 0) if p <= 0.0 else (n, n)
    ln_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1.0, n + 1)))])
    k = np.arange(n + 1)
    ln_pmf = (
        ln_factorial[n]
        - ln_factorial
        - ln_factorial[::-1]
        + k * math.log(p)
        + (n - k) * math.log1p(-p)
    )
    cumulative = np.cumsum(np.exp(ln_pmf))
    tail = (1.0 - level) / 2
    low, high = np.searchsorted(cumulative, [tail, 1 - tail])
    return int(low), min(int(high), n)


def wilson_interval(k, n, z=1.0):
    """Wilson's z-sigma interval (low, high) of a fraction k / n; a k of 0 or n gets a width too."""
    centre = (k + 0.5 * z * z) / (n + z * z)
    half = z / (n + z * z) * np.sqrt(k * (n - k) / n + 0.25 * z * z)
    return centre - half, centre + half
