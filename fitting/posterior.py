"""The posterior of every star: estimates and errors, second modes, the direct estimate pooled in.

The solver finds the maximum and the curvature there; what the catalogue says of a star is made of
these here. Arrays in, arrays out.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, ndtri

from fitting.coordinates import Coordinates

LEAST_PIVOT = 1e-10  # of a matrix with ones on its diagonal, for it to be positive definite


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian in the coordinates u of each of N stars: mean (N, n), precision (N, n, n), both
    float64; NaN in a precision where nothing is known. point: coordinates (N, n) of a place beside
    the mean, and Hessian (N, n, n) and gradient (N, n) of -ln posterior as they are there."""

    mean: np.ndarray
    precision: np.ndarray
    point: tuple | None = None


@dataclass
class Estimates:
    """Parameters in physical units, in the order of `LabelSet.parameters`, float64.

    est, err (N, n); cov, icov (N, n, n); NaN in all of them for a star without a solution or whose
    precision is not positive definite.
    """

    est: np.ndarray
    err: np.ndarray
    cov: np.ndarray
    icov: np.ndarray


def physical(u, model):
    """Parameters (..., n) float64 of coordinates u (..., n) under a `StellarModel`."""
    at = model.coordinates
    out = np.array(u, "f8")
    out[..., at.z] = model.theta(out[..., at.z])
    out[..., at.logarithms] = np.exp(out[..., at.logarithms])
    return out


def estimates(gaussian, model):
    """`Estimates` from a `Gaussian`, carried from u to physical units to first order."""
    at = model.coordinates
    est = physical(gaussian.mean, model)
    slope = np.ones_like(est)  # d est / d u
    slope[:, at.z] = model.label_scale[model.is_forward]
    slope[:, at.logarithms] = est[:, at.logarithms]
    icov = gaussian.precision / (slope[:, :, None] * slope[:, None])
    cov = inverse_or_nan(icov)
    bad = ~np.isfinite(cov).all((1, 2))
    est[bad], icov[bad] = np.nan, np.nan
    return Estimates(est, np.sqrt(np.einsum("nii->ni", cov)), cov, icov)


def inverse_or_nan(matrices):
    """Inverses (N, k, k) float64 of symmetric matrices; NaN where not positive definite.

    By Cholesky's decomposition, written out over all stars at once: LAPACK takes them one by one.
    """
    scale = np.sqrt(np.abs(np.einsum("nii->ni", matrices)))
    scale = np.where(np.isfinite(scale) & (scale > 0), scale, 1.0)
    size = scale[:, :, None] * scale[:, None]
    unit = np.ascontiguousarray(np.moveaxis(matrices / size, 0, -1))  # (k, k, N)
    k, good = len(unit), np.isfinite(unit).all((0, 1))
    unit[:, :, ~good] = np.eye(k)[:, :, None]
    low, inverse = np.zeros_like(unit), np.zeros_like(unit)  # L, and L^-1
    for j in range(k):
        column = unit[j:, j] - np.einsum("imn,mn->in", low[j:, :j], low[j, :j])
        good &= column[0] > LEAST_PIVOT
        root = np.sqrt(np.maximum(column[0], LEAST_PIVOT))
        low[j:, j], low[j, j] = column / root, root
    for i in range(k):
        inverse[i, i] = 1.0
        inverse[i, :i] = -np.einsum("mn,mjn->jn", low[i, :i], inverse[:i, :i])
        inverse[i, : i + 1] /= low[i, i]
    out = np.einsum("min,mjn->nij", inverse, inverse)
    out[~good] = np.nan
    return out / size


# --------------------------------------------------- what the curvature at the maximum cannot tell


LEAST_LN_EVIDENCE = -10.0  # of a second mode, curvature aside: one below is as none
COVERAGE = (0.68, 0.95)  # shares of the truths that the errors are to hold
MOST_OVER = 1.035  # times what the first needs: then 69.7% are inside
POOL_NU = 7.0  # degrees of freedom of the labels' errors, when the pool's weights are fitted
TYPE_LIMIT = 2.0  # of standardised types: error factors are constant well beyond
TYPE_SLOPE = 0.05  # how much ln error factors may change per standardised label: a prior's width
NO_TYPE_FACTORS = np.zeros((1, 1))


@dataclass(frozen=True)
class ErrorModel:
    """What makes honest errors of the curvature, at L error levels, and between them.

    levels (L,): mean ln relative error of the XP fluxes, ascending; factors (2, L, n): of each
    parameter's error, for stars with a useful parallax and for others; pool_weights (L, 2): of the
    forward model and the direct estimate in `pool`; type_factors (K, 1 + K): ln factors of the
    labels' errors after that, linear in the `type_terms` of the direct estimate; (1, 1) for none.
    """

    levels: np.ndarray
    factors: np.ndarray
    pool_weights: np.ndarray
    type_factors: np.ndarray

    @classmethod
    def curvature_alone(cls, n_parameters):
        """The errors of the curvature as they are, of the forward model alone."""
        factors = np.ones((2, 1, n_parameters))
        return cls(np.zeros(1), factors, np.array([[1.0, 0.0]]), NO_TYPE_FACTORS)

    def of(self, data):
        """Factors (N, n) and pool weights (N, 2) of `StarData`."""
        level, useful = data.observed.features[:, 1], data.useful_parallax
        factors = [self._between(level, one) for one in self.factors]
        return np.where(useful[:, None], *factors), self._between(level, self.pool_weights)

    def of_type(self, z):
        """Factors (N, K) of the errors of labels, of stars whose direct estimate is z (N, K)."""
        ln_factors = (type_terms(z)[:, None] * self.type_factors).sum(2)
        return np.broadcast_to(np.exp(ln_factors), z.shape)

    def _between(self, level, values):
        """Values (L, k) at the levels, interpolated (N, k); beyond the ends as at the ends."""
        return np.stack([np.interp(level, self.levels, column) for column in values.T], 1)


def type_terms(z):
    """What ln factors are linear in (N, 1 + K): 1, and types z (N, K) bent to TYPE_LIMIT."""
    return np.column_stack([np.ones(len(z)), TYPE_LIMIT * np.tanh(z / TYPE_LIMIT)])


def widened(first, second, ln_ratio, factors):
    """The `Gaussian` of N stars whose covariance is the second moment, about the maximum, of two
    modes in the proportion of their evidences (Laplace's approximation), times factors (N, n).

    first, second: `Gaussian`s of the modes, the second NaN where there is none; ln_ratio (N,): ln
    posterior of the second relative to the first. A star without proper precision remains so.
    """
    precision = _with_second_mode(first, second, ln_ratio)
    return Gaussian(first.mean, precision / (factors[:, :, None] * factors[:, None]))


def _with_second_mode(first, second, ln_ratio):
    """The inverse (N, n, n) of the second moment of both modes about the first."""
    logs = Coordinates(first.mean.shape[1] - 3).logarithms
    precision = first.precision.copy()
    cov, other = inverse_or_nan(first.precision), inverse_or_nan(second.precision)
    rows = np.flatnonzero(np.isfinite(cov).all((1, 2)) & np.isfinite(other).all((1, 2)))
    rows = rows[ln_ratio[rows] > LEAST_LN_EVIDENCE]
    cov, other = cov[rows], other[rows]
    ln_share = ln_ratio[rows] + 0.5 * (np.linalg.slogdet(other)[1] - np.linalg.slogdet(cov)[1])
    share = expit(ln_share)[:, None, None]  # of the second mode
    away = second.mean[rows] - first.mean[rows]
    # E and parallax are exponentials of their coordinates: to first order about the first, as
    # `estimates` has them, this is how far away, and how uncertain, they are in the second mode.
    stretch = np.ones_like(away)
    stretch[:, logs] = np.exp(away[:, logs])
    away[:, logs] = stretch[:, logs] - 1.0
    other = other * stretch[:, :, None] * stretch[:, None]
    moment = (1 - share) * cov + share * (other + away[:, :, None] * away[:, None])
    found = inverse_or_nan(moment)
    proper = np.isfinite(found).all((1, 2))
    precision[rows[proper]] = found[proper]
    return precision


def needed_factors(est, err, truth):
    """The factors (k,) by which errors err (N, k) should be larger for the truths to be within them
    as often as they claim: the geometric mean of what 68% and 95% need, but at most MOST_OVER times
    what 68% need, where tails are too heavy for both. 1 where no star has an answer."""
    pull = np.abs(est - truth) / err
    pull = pull[np.isfinite(pull).all(1)]
    if not len(pull):
        return np.ones(est.shape[1])
    core, tail = (np.quantile(pull, level, 0) / ndtri(0.5 + 0.5 * level) for level in COVERAGE)
    return np.minimum(np.sqrt(core * tail), MOST_OVER * core)


# ------------------------------------------------------------- the direct estimate and the model's


def linear_in_extinction(u, hessian, gradient, at):
    """The `Gaussian` of N stars in (z, xi, E, ln plx), E of either sign: that of the posterior
    without the condition E > 0, its maximum a Newton step from u.

    u (N, n), Hessian (N, n, n) and gradient (N, n) of phi there, in the coordinates `at`. Where
    dust is little, E > 0 makes means over stars come out too large. ln flux is linear in E, so this
    is Gaussian in E for given type and xi.
    """
    ext = np.exp(u[:, at.ln_ext])
    to_linear = np.ones_like(u)
    to_linear[:, at.ln_ext] = 1.0 / ext
    mean, slope, precision = u.copy(), gradient.astype("f8"), hessian.copy()
    mean[:, at.ln_ext] = ext
    slope[:, at.ln_ext] += 1.0  # phi has -ln E; and its slope is in its curvature in ln E
    precision[:, at.ln_ext, at.ln_ext] -= np.maximum(slope[:, at.ln_ext], 0.0)
    precision *= to_linear[:, :, None] * to_linear[:, None]
    step = inverse_or_nan(precision) @ (slope * to_linear)[:, :, None]
    return Gaussian(mean - step[:, :, 0], precision)


def signed_extinction(linear, factors, direct, weights, at, of_type=1.0):
    """E of either sign (N,) and its error, of N stars.

    linear: of `linear_in_extinction`. factors (N, n): of the errors. direct (2, N, K): the direct
    estimate, pooled in with weights (N, 2) and factors `of_type` (N, K), as in `pool`; or None.
    """
    precision = linear.precision / (factors[:, :, None] * factors[:, None])
    mean = linear.mean.copy()
    if direct is not None:
        rows, move, pooled = _pooled(mean, precision, *direct, weights, of_type)
        mean[rows] += move
        precision[rows] = pooled
    variance = np.einsum("nii->ni", inverse_or_nan(precision))[:, at.ln_ext]
    return np.where(np.isfinite(variance), mean[:, at.ln_ext], np.nan), np.sqrt(variance)


def pool(gaussian, z, sigma, weights, of_type=1.0):
    """The `Gaussian` of N stars with the direct estimate z, sigma (N, K) of their types pooled in.

    The type's posterior is the logarithmic pool (Genest & Zidek 1986, Statistical Science 1, 114)
    of the forward model's, dust and the rest marginalised, and of the direct estimate: precision
    a P + b diag(1/sigma^2), with weights (N, 2) of a, b. Both come from the same fluxes, so a + b
    is near 1, not 2. The errors of the pooled type are multiplied by of_type (N, K). Dust, parallax
    and xi given the type are the forward model's: E and parallax follow the type linearly (but stay
    positive) and keep their errors given the type, as the covariance describes them. A star without
    proper precision stays as it is.
    """
    at = Coordinates(z.shape[1])
    mean, precision = gaussian.mean.copy(), gaussian.precision.copy()
    rows, move, pooled = _pooled(mean, precision, z, sigma, weights, of_type)
    first = mean[rows]
    soft = move[:, at.logarithms]
    move[:, at.logarithms] = np.where(soft > 0, np.log1p(np.maximum(soft, 0)), soft)
    mean[rows] = at.clip(first + move)
    grown = np.ones_like(first)
    grown[:, at.logarithms] = np.exp((mean[rows] - first)[:, at.logarithms])
    precision[rows] = pooled * grown[:, :, None] * grown[:, None]
    return Gaussian(mean, precision)


def _pooled(mean, precision, z, sigma, weights, of_type):
    """Which stars (an index array) have a pool, how far the mean moves (M, n), and its precision
    (M, n, n); arguments as of `pool`."""
    k = z.shape[1]
    rows = np.flatnonzero(
        np.isfinite(inverse_or_nan(precision)).all((1, 2))
        & np.isfinite(z).all(1)
        & np.isfinite(sigma).all(1)
    )
    whole = precision[rows]
    to_rest = np.linalg.solve(whole[:, k:, k:], whole[:, k:, :k])  # of the rest with z
    own = whole[:, :k, :k] - whole[:, :k, k:] @ to_rest
    a, b = weights[rows].T
    extra = b[:, None] / sigma[rows].astype("f8") ** 2
    pooled = a[:, None, None] * own + extra[:, :, None] * np.eye(k)
    step = np.linalg.solve(pooled, (extra * (z[rows] - mean[rows, :k]))[:, :, None])
    factors = np.broadcast_to(of_type, z.shape)[rows]
    whole[:, :k, :k] += pooled / (factors[:, :, None] * factors[:, None]) - own
    return rows, np.concatenate([step, -to_rest @ step], 1)[:, :, 0], whole


def type_variance(gaussian, k):
    """Variances (N, k) of the k labels that come first; NaN without proper precision."""
    return np.einsum("nii->ni", inverse_or_nan(gaussian.precision)[:, :k, :k])


def pool_loss(gaussian, z):
    """-ln p of types z (N, K) under a pooled `Gaussian`, Student-t, mean over stars and labels, up
    to a constant; stars without proper precision are left out."""
    k = z.shape[1]
    variance = type_variance(gaussian, k)
    off2 = (gaussian.mean[:, :k] - z) ** 2 / variance
    return np.nanmean(0.5 * np.log(variance) + 0.5 * (POOL_NU + 1) * np.log1p(off2 / POOL_NU))


def fitted_type_factors(pull, z):
    """`ErrorModel.type_factors` of N stars, each shown M times: pulls (M, N, K) of their labels,
    and their direct estimates z (M, N, K).

    Student-t likelihood, the slopes held by a prior, which counts every star once. How large errors
    are in the mean is a matter of the pool: the mean ln factor is 0.
    """
    n, k = pull.shape[1:]
    good = np.isfinite(pull).all(2) & np.isfinite(z).all(2)
    pull, terms = pull[good], type_terms(z[good])

    def loss(ln_factors, pull):
        s = terms @ ln_factors
        tails = 0.5 * (POOL_NU + 1) * np.log1p((pull * np.exp(-s)) ** 2 / POOL_NU)
        return np.mean(s + tails) + 0.5 * np.sum((ln_factors[1:] / TYPE_SLOPE) ** 2) / n

    out = np.array([minimize(loss, np.zeros(1 + k), args=(one,)).x for one in pull.T])
    out[:, 0] = -out[:, 1:] @ terms[:, 1:].mean(0)
    return out
