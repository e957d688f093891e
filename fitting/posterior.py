"""The posterior of every star: estimates and errors, second modes, the direct estimate pooled in.

`StarSolver` finds the maximum and the curvature there; what the catalogue says of a star is made of
these here. Arrays in, arrays out.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, ndtri

from fitting.star_solver import LN_E, LN_PLX, LOWER, N_PAR, UPPER, XI, Solution

# Order of `stellar_params_est`: Teff (kK), [Fe/H], log g, E, parallax (mas), xi.
PARAMETER_NAMES = ("teff", "feh", "logg", "E", "plx", "xi")
_FROM_U = np.array([0, 1, 2, LN_E, LN_PLX, XI])


@dataclass
class Estimates:
    """Parameters in physical units, in the order of PARAMETER_NAMES, float64.

    est, err (N, 6); cov, icov (N, 6, 6); NaN in all of them for a star without a solution or
    whose curvature is not positive definite.
    """

    est: np.ndarray
    err: np.ndarray
    cov: np.ndarray
    icov: np.ndarray


def physical(u, flux_model):
    """Parameters (..., 6) float64, in the order of PARAMETER_NAMES, of coordinates u (..., 6)."""
    out = u.astype("f8")[..., _FROM_U]
    out[..., :3] = (
        out[..., :3] * flux_model.theta_scale.numpy().astype("f8") + flux_model.theta_mean.numpy()
    )
    out[..., 3:5] = np.exp(out[..., 3:5])
    return out


def estimates(solution, model):
    """`Estimates` from a `Solution`: the covariance is the inverse of its Hessian, carried from u
    to physical units to first order."""
    est = physical(solution.u, model.flux)
    slope = np.ones_like(est)  # d est / d u
    slope[:, :3], slope[:, 3:5] = model.flux.theta_scale.numpy(), est[:, 3:5]
    icov = solution.hessian.astype("f8")[:, _FROM_U][:, :, _FROM_U]
    icov = icov / (slope[:, :, None] * slope[:, None])
    cov = inverse_or_nan(icov)
    bad = ~np.isfinite(cov).all((1, 2))
    est[bad], icov[bad] = np.nan, np.nan
    return Estimates(est, np.sqrt(np.einsum("nii->ni", cov)), cov, icov)


def inverse_or_nan(matrices):
    """Inverses (N, k, k) float64 of symmetric matrices; NaN where not positive definite."""
    scale = np.sqrt(np.abs(np.einsum("nii->ni", matrices)))
    scale = np.where(np.isfinite(scale) & (scale > 0), scale, 1.0)
    unit = matrices / (scale[:, :, None] * scale[:, None])
    good = np.isfinite(unit).all((1, 2))
    eigenvalues = np.linalg.eigvalsh(np.where(good[:, None, None], unit, np.eye(unit.shape[1])))
    good &= eigenvalues[:, 0] > 1e-10
    out = np.full_like(unit, np.nan)
    out[good] = np.linalg.inv(unit[good])
    return out / (scale[:, :, None] * scale[:, None])


# --------------------------------------------------- what the curvature at the maximum cannot tell


CURVATURE_ALONE = np.ones((2, N_PAR))  # error factors that leave the curvature's errors alone
LEAST_LN_EVIDENCE = -10.0  # of a second mode, curvature aside: one below is as none
COVERAGE = (0.68, 0.95)  # shares of the truths that the errors are to hold
MOST_OVER = 1.035  # times what the first needs: then 69.7% are inside


def widened(best, second, useful_parallax, error_factors):
    """`Solution` of N stars: best, with the Hessian of the errors that the catalogue gives them.

    The covariance becomes the second moment, about the maximum, of the two modes best and second
    in the proportion of their evidences (Laplace's approximation). Then each parameter's error is
    multiplied by a factor: error_factors (2, 6), in the order of PARAMETER_NAMES, are for stars
    where useful_parallax (N,) holds, and for others. A star without proper curvature remains so.
    """
    of_u = np.asarray(error_factors, "f8")[:, np.argsort(_FROM_U)]
    factor = np.where(useful_parallax[:, None], *of_u)
    hessian = _with_second_mode(best, second) / (factor[:, :, None] * factor[:, None])
    return dataclasses.replace(best, hessian=hessian)


def _with_second_mode(best, second):
    """The inverse (N, 6, 6) of the second moment of both modes about the best."""
    hessian = best.hessian.astype("f8")
    first, other = (inverse_or_nan(s.hessian.astype("f8")) for s in (best, second))
    rows = np.flatnonzero(np.isfinite(first).all((1, 2)) & np.isfinite(other).all((1, 2)))
    rows = rows[best.phi[rows] - second.phi[rows] > LEAST_LN_EVIDENCE]
    first, other = first[rows], other[rows]
    ln_ratio = (
        best.phi[rows]
        - second.phi[rows]
        + 0.5 * (np.linalg.slogdet(other)[1] - np.linalg.slogdet(first)[1])
    )
    share = expit(ln_ratio)[:, None, None]  # of the second mode
    away = (second.u[rows] - best.u[rows]).astype("f8")
    # E and parallax are exponentials of their coordinates: to first order about the best, as
    # `estimates` has them, this is how far away, and how uncertain, they are in the second mode.
    stretch = np.ones_like(away)
    stretch[:, [LN_E, LN_PLX]] = np.exp(away[:, [LN_E, LN_PLX]])
    away[:, [LN_E, LN_PLX]] = stretch[:, [LN_E, LN_PLX]] - 1.0
    other = other * stretch[:, :, None] * stretch[:, None]
    moment = (1 - share) * first + share * (other + away[:, :, None] * away[:, None])
    found = inverse_or_nan(moment)
    proper = np.isfinite(found).all((1, 2))
    hessian[rows[proper]] = found[proper]
    return hessian


def needed_error_factors(est, err, truth):
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


MODEL_ALONE = np.array([1.0, 0.0])  # pool weights that leave the forward model's posterior alone
POOL_NU = 7.0  # of the labels' errors, when the weights are fitted


def pool(solution, z, sigma, weights):
    """`Solution` of N stars with the direct estimate z, sigma (N, 3) of their types pooled in.

    The type's posterior is the logarithmic pool (Genest & Zidek 1986, Statistical Science 1, 114)
    of the forward model's, dust and the rest marginalised, and of the direct estimate: precision
    a P + b diag(1/sigma^2), weights (a, b). Both come from the same fluxes, so a + b is near 1, not
    2. Dust, parallax and xi given the type are the forward model's: E and parallax follow the type
    linearly (but stay positive) and keep their errors given the type, as the covariance describes
    them. phi, chi2 and converged remain those of the forward model's maximum. A star without proper
    curvature stays as it is.
    """
    out = Solution(*(value.copy() for value in vars(solution).values()))
    hessian = solution.hessian.astype("f8")
    rows = np.flatnonzero(
        np.isfinite(inverse_or_nan(hessian)).all((1, 2))
        & np.isfinite(z).all(1)
        & np.isfinite(sigma).all(1)
    )
    hessian, first = hessian[rows], solution.u[rows].astype("f8")
    to_rest = np.linalg.solve(hessian[:, 3:, 3:], hessian[:, 3:, :3])  # of the rest with z
    own = hessian[:, :3, :3] - hessian[:, :3, 3:] @ to_rest
    extra = weights[1] / sigma[rows].astype("f8") ** 2
    pooled = weights[0] * own + extra[:, :, None] * np.eye(3)
    step = np.linalg.solve(pooled, (extra * (z[rows] - first[:, :3]))[:, :, None])
    move = np.concatenate([step, -to_rest @ step], 1)[:, :, 0]
    soft = move[:, [LN_E, LN_PLX]]
    move[:, [LN_E, LN_PLX]] = np.where(soft > 0, np.log1p(np.maximum(soft, 0)), soft)
    out.u[rows] = np.clip(first + move, LOWER, UPPER)
    out.hessian[rows, :3, :3] += pooled - own
    grown = np.ones_like(first)
    grown[:, [LN_E, LN_PLX]] = np.exp((out.u[rows] - first)[:, [LN_E, LN_PLX]])
    out.hessian[rows] *= grown[:, :, None] * grown[:, None]
    return out


def pool_loss(solution, z):
    """-ln p of labels z (N, 3) under the pooled `solution`, Student-t, mean over stars and labels,
    up to a constant; stars without proper curvature are left out."""
    cov = inverse_or_nan(solution.hessian.astype("f8"))[:, :3, :3]
    variance = np.einsum("nii->ni", cov)
    off2 = (solution.u[:, :3] - z) ** 2 / variance
    return np.nanmean(0.5 * np.log(variance) + 0.5 * (POOL_NU + 1) * np.log1p(off2 / POOL_NU))
