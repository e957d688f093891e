"""The model's fluxes at a star's solution, and how the observed ones differ from them.

What a page of a star shows (tools/plot_star.py), without the solver: nothing is compiled.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.quiet_tensorflow import tf


@dataclass
class FittedSpectrum:
    """Of N stars, NaN where one has no solution.

    ln_flux (N, n): the model's; own, scatter (N, n): 1 sigma of ln flux under the learned noise, of
    a star observed without error, and of this one with its reported errors; residual (N, n):
    observed less model ln flux in units of `scatter`, NaN where not used; chi2 (N,): of all used
    fluxes, with their correlations.
    """

    ln_flux: np.ndarray
    own: np.ndarray
    scatter: np.ndarray
    residual: np.ndarray
    chi2: np.ndarray


def predicted_ln_flux(model, est):
    """ln flux (N, n_wl) of estimates (N, n) under a `StellarModel`."""
    at, flux = model.coordinates, model.flux
    z = flux.standardise(est[:, at.z].astype("f4"))
    curve, _ = flux.ext_curve(est[:, at.xi].astype("f4"))
    ext, plx = est[:, at.ln_ext, None], est[:, at.ln_plx, None]
    return flux.ln_flux(z).numpy() - ext * curve.numpy() + 2 * np.log(plx)


def fitted_spectrum(model, data, est):
    """`FittedSpectrum` of `StarData` at the parameters est (N, n), in the units of the catalogue,
    under a `StellarModel`; the noise is that of these parameters."""
    shape = data.observed.value.shape
    out = FittedSpectrum(*(np.full(shape, np.nan) for _ in range(4)), np.full(len(data), np.nan))
    rows = np.flatnonzero(np.isfinite(est).all(1))
    if not len(rows):
        return out
    seen, est = data.observed.take(rows), np.asarray(est[rows], "f8")
    cov = noise_covariance(model, seen, est)
    ln_flux = predicted_ln_flux(model, est)
    used, left = seen.used > 0, seen.value - ln_flux
    out.ln_flux[rows] = ln_flux
    out.own[rows] = _scatter(noise_covariance(model, seen, est, rel_err=0.0))
    out.scatter[rows] = np.where(used, _scatter(cov), np.nan)
    out.residual[rows] = left / out.scatter[rows]
    out.chi2[rows] = _chi2(left, cov, used)
    return out


def noise_covariance(model, seen, est, rel_err=None):
    """Covariances (N, n, n) float64 of ln flux under the learned noise at parameters est (N, n).

    seen: `LnFlux`; rel_err: relative errors in the place of the stars' own. The rows and columns of
    fluxes that are not used are of no meaning, but those of the others are right: a channel is
    marginalised by leaving it out of a covariance.
    """
    at, noise = model.coordinates, model.noise
    rel_err = seen.rel_err if rel_err is None else np.full_like(seen.rel_err, rel_err)
    z = model.flux.standardise(est[:, at.z].astype("f4"))
    ext = tf.constant(est[:, at.ln_ext], tf.float32)
    whitening = noise.whitening(z, ext, rel_err, np.ones_like(seen.used), seen.features)
    inverse = np.linalg.inv(whitening.transposed().numpy().astype("f8"))  # of S^T
    return inverse.transpose(0, 2, 1) @ inverse


def _scatter(cov):
    return np.sqrt(np.einsum("nii->ni", cov))


def _chi2(left, cov, used):
    """chi^2 (N,) of residuals (N, n) where used (N, n), with covariances (N, n, n)."""
    both = used[:, :, None] & used[:, None]
    cov = np.where(both, cov, np.eye(used.shape[1]))
    left = np.where(used, left, 0.0)
    return np.einsum("ni,ni->n", left, np.linalg.solve(cov, left[:, :, None])[:, :, 0])
