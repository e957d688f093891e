"""Slow, obvious float64 NumPy counterparts of the models and of the objective.

`Oracle` is written from the equations of docs/model.md, one star at a time, with dense matrices and
library densities; it shares no code with what it is compared with.
"""

import numpy as np
from scipy import stats
from scipy.special import logsumexp


class Oracle:
    """Equations of a `StellarModel` for one star, float64. u = (z (K), xi, ln E, ln parallax)."""

    def __init__(self, model):
        arrays = model.to_arrays().items()
        self.a = {k: np.asarray(v, "f8") for k, v in arrays if np.asarray(v).dtype.kind in "fiu"}
        self.components = [
            stats.multivariate_normal(mean, covariance)
            for mean, covariance in zip(
                self.a["prior_means"], self.a["prior_covariances"], strict=True
            )
        ]

    # ------------------------------------------------------------------------ the forward model

    def ln_flux(self, z):
        """(n_wl,) at 1 kpc without dust."""
        a, layer = self.a, 1
        h = np.tanh(z @ a["w_theta_0"] + a["bias_0"])
        while f"bias_{layer}" in a:
            weights = np.concatenate([a[f"w_hidden_{layer}"], a[f"w_theta_{layer}"]])
            h = np.tanh(np.concatenate([h, z]) @ weights + a[f"bias_{layer}"])
            layer += 1
        return a["mean_ln_flux"] + (h @ a["w_out"] + a["bias_out"]) @ a["basis"]

    def mu(self, u):
        """ln observed flux (n_wl,) at u."""
        *z, xi, ln_ext, ln_plx = u
        slope = np.where(self.a["sample_wavelengths"] < 3000, self.a["ln_ext_curve_xi"], 0)
        curve = np.exp(self.a["ln_ext_curve"] + slope * np.tanh(xi))
        return self.ln_flux(np.array(z)) - np.exp(ln_ext) * curve + 2 * ln_plx

    # -------------------------------------------------------------------------- the noise model

    def covariance(self, z, ext, rel_err, features):
        """C (n_wl, n_wl) of ln flux, all channels."""
        a, n = self.a, len(rel_err)
        x = (features - a["noise_feature_mean"]) / a["noise_feature_scale"]
        x = np.concatenate([z, x, [np.log(ext + 0.1) + 1]])
        x = 3 * np.tanh(x / 3)

        def swish(t):
            return t / (1 + np.exp(-t))

        h = swish(x @ a["noise_w1"] + a["noise_b1"])
        h = h + swish(h @ a["noise_w2"] + a["noise_b2"])
        w = np.zeros((n, n))
        w[np.triu_indices(n)] = a["noise_base"] + 0.1 * h @ a["noise_w_out"]
        np.fill_diagonal(w, np.exp(4 * np.tanh(np.diag(w) / 4)))
        s = np.sqrt(
            np.exp(2 * a["noise_ln_scatter"])
            + 1e-6
            + (np.exp(a["noise_ln_err_factor"]) * rel_err) ** 2
        )
        s *= np.exp(a["noise_ln_level"])
        inverse = s[:, None] * np.linalg.inv(w)
        return inverse @ inverse.T

    def precision(self, z, ext, rel_err, used, features):
        """Inverse of the used block of the covariance, zeros elsewhere, and its ln det / 2."""
        block = np.ix_(used > 0, used > 0)
        inverse = np.linalg.inv(self.covariance(z, ext, rel_err, features)[block])
        out = np.zeros((len(used), len(used)))
        out[block] = inverse
        return out, 0.5 * np.linalg.slogdet(inverse)[1]

    # ------------------------------------------------------------------------------- posterior

    def ln_prior_z(self, z):
        terms = [
            np.log(weight) + component.logpdf(z)
            for weight, component in zip(self.a["prior_weights"], self.components, strict=True)
        ]
        return logsumexp(terms, axis=0)

    def chi2(self, u, star, noise):
        residual = star.value - self.mu(u)
        return residual @ noise[0] @ residual

    def phi(self, u, star, noise):
        """-ln posterior at u of a star (`Star`) under a `precision` held fixed."""
        u = np.asarray(u, "f8")
        *_, xi, ln_ext, ln_plx = u
        nu, n = np.exp(self.a["noise_ln_nu"]), star.used.sum()
        misfit = (nu + n) / 2 * np.log(1 + self.chi2(u, star, noise) / nu)
        ln_prior = self.ln_prior_labels(u, star) if star.labels else self.ln_prior_z(u[:-3])
        ln_prior += -0.5 * xi**2 + ln_ext
        if np.isfinite(star.parallax):
            ln_prior -= 0.5 * ((np.exp(ln_plx) - star.parallax) / star.parallax_err) ** 2
        return misfit - noise[1] - ln_prior

    def ln_prior_labels(self, u, star):
        theta = u[:-3] * self.a["theta_scale"] + self.a["theta_mean"]
        off = (theta - star.theta) / star.theta_err
        off = np.append(off, (np.exp(u[-2]) - star.extinction) / star.extinction_err)
        return -0.5 * np.sum(off[np.isfinite(off)] ** 2)

    def noise_at(self, u, star):
        u = np.asarray(u, "f8")
        return self.precision(u[:-3], np.exp(u[-2]), star.rel_err, star.used, star.features)


class Star:
    """What the likelihood sees of star i of a `StarData`, after docs/model.md."""

    def __init__(self, data, i):
        flux, err = np.asarray(data.flux[i], "f8"), np.asarray(data.flux_err[i], "f8")
        self.used = np.isfinite(err).astype("f8")
        good = self.used > 0
        floored = np.maximum(flux[good], 0.7 * err[good])
        self.value, self.rel_err = np.zeros(len(flux)), np.ones(len(flux))
        self.value[good], self.rel_err[good] = np.log(floored), err[good] / floored
        wavelengths = data.channels.wavelengths
        xp = good & (np.arange(len(flux)) < 61)
        red = xp & (wavelengths > 645)
        bright = red if red.any() else xp
        self.features = np.array(
            [
                self.value[bright].mean() if bright.any() else 0.0,
                np.log(self.rel_err[xp]).mean() if xp.any() else 0.0,
            ]
        )
        self.parallax, self.parallax_err = float(data.parallax[i]), float(data.parallax_err[i])
        self.labels = data.theta is not None
        if self.labels:
            self.theta, self.theta_err = data.theta[i], data.theta_err[i]
            self.extinction, self.extinction_err = data.extinction[i], data.extinction_err[i]


def slope(function, x, step=1e-4):
    """Central differences (..., len(x)) of a function of x (k,), float64."""
    x = np.asarray(x, "f8")
    moves = step * np.eye(len(x))
    return np.stack([(function(x + d) - function(x - d)) / (2 * step) for d in moves], -1)


def curvature(function, x, step=1e-3):
    """Second derivatives (k, k) of a function of x (k,), by differences."""
    hessian = slope(lambda point: slope(function, point, step), x, step)
    return (hessian + hessian.T) / 2
