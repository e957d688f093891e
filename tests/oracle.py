"""Slow, obvious float64 NumPy counterparts of `model.py` and `star_solver.py`, and small models.

`Oracle` is written from the equations of docs/model.md, one star at a time, with dense matrices and
library densities; it shares no code with what it is compared with.
"""

import dataclasses
import functools

import numpy as np
from scipy import stats
from scipy.special import logsumexp

import xp_utils
from fitting.star_solver import StarData, StarSolver
from model import FluxModel, MixturePrior, NoiseModel, StellarModel

N_WL = xp_utils.N_FLUX
THETA_MEAN, THETA_SCALE = np.array([5.2, -0.3, 3.2]), np.array([0.7, 0.4, 1.1])
PRIOR_WEIGHTS = np.array([0.5, 0.3, 0.2])
PRIOR_MEANS = np.array([[0.6, 0.1, 0.9], [-0.6, 0.0, -1.0], [0.0, -1.2, 0.3]])
PRIOR_COVARIANCES = np.array(
    [
        [[0.5, 0.1, -0.2], [0.1, 0.6, 0.0], [-0.2, 0.0, 0.3]],
        [[0.2, 0.0, 0.15], [0.0, 0.5, 0.1], [0.15, 0.1, 0.4]],
        [[0.6, -0.2, 0.0], [-0.2, 0.4, 0.1], [0.0, 0.1, 0.8]],
    ]
)


def randomise(module, rng, sizes):
    """Add normal noise of the sizes {part of a variable's name: standard deviation}."""
    for name, size in sizes.items():
        for variable in module.variables:
            if name in variable.name:
                noise = rng.normal(0, size, variable.shape)
                variable.assign(variable.numpy() + noise.astype("f4"))


def make_flux_model(seed=0, hidden=12):
    """A forward model with smooth spectra that differ by some 30% for a unit of z."""
    rng = np.random.default_rng(seed)
    wavelengths = np.asarray(xp_utils.SAMPLE_WAVELENGTHS, "f8")
    x = np.log(wavelengths / 550.0)
    basis = stats.ortho_group.rvs(N_WL, random_state=seed)
    model = FluxModel(
        wavelengths, THETA_MEAN, THETA_SCALE, 3.0 - x - x * x, basis, hidden=hidden, seed=seed
    )
    randomise(model, rng, {"bias_0": 0.5, "bias_1": 0.3, "bias_2": 0.3})
    smooth = np.cos(np.arange(10)[:, None] * (2.0 * x + 1.0))  # (10, n_wl)
    spectra = rng.normal(0, 0.3, (hidden + 1, 10)) @ smooth / np.sqrt(10)
    outputs = (spectra @ basis.T).astype("f4")  # basis^-1 = basis^T
    model.w_out.assign(outputs[:-1])
    model.bias_out.assign(outputs[-1])
    model.ln_ext_curve_xi.assign((0.15 * np.cos(4 * x) - 0.1).astype("f4"))
    return model


def make_noise_model(seed=0, hidden=6):
    """A noise model whose covariance is full and depends on the star."""
    rng = np.random.default_rng(seed)
    noise = NoiseModel(N_WL, [3.0, np.log(0.02)], [1.0, 0.5], hidden, seed)
    randomise(
        noise,
        rng,
        {
            "b1": 0.3,
            "b2": 0.3,
            "w_out": 0.3,
            "base": 0.1,
            "ln_scatter": 0.2,
            "ln_err_factor": 0.2,
            "ln_level": 0.1,
            "ln_nu": 0.5,
        },
    )
    return noise


def make_prior():
    return MixturePrior(PRIOR_WEIGHTS, PRIOR_MEANS, PRIOR_COVARIANCES, THETA_SCALE, -9.0)


def make_model(seed=0):
    return StellarModel(make_flux_model(seed), make_noise_model(seed), make_prior())


@functools.cache
def shared_solver():
    """One `StarSolver` of `make_model()` for all tests: compiling it takes seconds."""
    return StarSolver(make_model(), batch_size=64)


class Oracle:
    """Equations of a `StellarModel` for one star, float64."""

    def __init__(self, model):
        self.a = {name: np.asarray(value, "f8") for name, value in model.to_arrays().items()}
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
        """ln observed flux (n_wl,) at u = (z, xi, ln E, ln plx)."""
        slope = np.where(self.a["sample_wavelengths"] < 3000, self.a["ln_ext_curve_xi"], 0)
        curve = np.exp(self.a["ln_ext_curve"] + slope * np.tanh(u[3]))
        return self.ln_flux(u[:3]) - np.exp(u[4]) * curve + 2 * u[5]

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

    def phi(self, u, star, noise):
        """-ln posterior at u (6,) of a star (`Star`) under a `precision` held fixed."""
        precision, ln_det = noise
        u = np.asarray(u, "f8")
        residual = star.value - self.mu(u)
        nu, n = np.exp(self.a["noise_ln_nu"]), star.used.sum()
        misfit = (nu + n) / 2 * np.log(1 + residual @ precision @ residual / nu)
        ln_prior = star.ln_prior_labels(u) if star.labels else self.ln_prior_z(u[:3])
        ln_prior += -0.5 * u[3] ** 2 + u[4]
        if np.isfinite(star.plx):
            ln_prior -= 0.5 * ((np.exp(u[5]) - star.plx) / star.plx_err) ** 2
        return misfit - ln_det - ln_prior

    def noise_at(self, u, star):
        return self.precision(
            np.asarray(u[:3], "f8"),
            np.exp(np.float64(u[4])),
            star.rel_err,
            star.used,
            star.features,
        )


class Star:
    """What the likelihood sees of star i of a `StarData`, after docs/model.md."""

    def __init__(self, data, i):
        flux, err = np.asarray(data.flux[i], "f8"), np.asarray(data.flux_err[i], "f8")
        self.used = np.isfinite(err).astype("f8")
        good = self.used > 0
        floored = np.maximum(flux[good], 0.7 * err[good])
        self.value, self.rel_err = np.zeros(len(flux)), np.ones(len(flux))
        self.value[good], self.rel_err[good] = np.log(floored), err[good] / floored
        xp = good & (np.arange(len(flux)) < xp_utils.N_XP)
        red = xp & (xp_utils.SAMPLE_WAVELENGTHS > 645)
        bright = red if red.any() else xp
        self.features = np.array(
            [
                self.value[bright].mean() if bright.any() else 0.0,
                np.log(self.rel_err[xp]).mean() if xp.any() else 0.0,
            ]
        )
        self.plx, self.plx_err = float(data.plx[i]), float(data.plx_err[i])
        self.labels = data.theta is not None
        if self.labels:
            self.theta, self.theta_err = data.theta[i], data.theta_err[i]
            self.ext, self.ext_err = data.ext[i], data.ext_err[i]

    def ln_prior_labels(self, u):
        theta = u[:3] * THETA_SCALE + THETA_MEAN
        off = np.append(
            (theta - self.theta) / self.theta_err, (np.exp(u[4]) - self.ext) / self.ext_err
        )
        return -0.5 * np.sum(off[np.isfinite(off)] ** 2)


def mock_stars(model, n, seed=0, plx_snr=10.0, rel_err=0.02):
    """`StarData` of n stars drawn from the model: types from the prior, fluxes from the noise
    model; and their true u (n, 6)."""
    rng, oracle = np.random.default_rng(seed), Oracle(model)
    u = np.column_stack(
        [
            model.prior.sample(n, rng),
            rng.normal(size=n),
            np.log(rng.uniform(0.05, 1.5, n)),
            rng.normal(0, 0.7, n),
        ]
    )
    errors = rel_err * np.exp(rng.normal(0, 0.2, (n, 1))) * np.ones(N_WL)
    ln_flux = np.array([oracle.mu(row) for row in u])
    for i in range(n):
        features = np.array([ln_flux[i, 26:61].mean(), np.log(errors[i, :61]).mean()])
        covariance = oracle.covariance(u[i, :3], np.exp(u[i, 4]), errors[i], features)
        ln_flux[i] += np.linalg.cholesky(covariance) @ rng.normal(size=N_WL)
    flux, plx = np.exp(ln_flux), np.exp(u[:, 5])
    plx_err = plx / plx_snr
    data = StarData(
        flux.astype("f4"),
        (errors * flux).astype("f4"),
        (plx + plx_err * rng.normal(size=n)).astype("f4"),
        plx_err.astype("f4"),
    )
    return data, u


def replaced(data, **columns):
    """The same stars with some columns replaced."""
    return dataclasses.replace(data, **columns)
