"""The forward model of a star's fluxes, its noise model and its prior, in TensorFlow.

A star of type theta = (Teff/1000 K, [Fe/H], log g) behind dust E with extinction-curve shape xi,
at parallax plx (mas), has at 66 wavelengths the flux (1e-18 W m^-2 nm^-1)

    f(theta, E, xi, plx) = exp[ F(theta) - E R(xi) ] plx^2,      ln R(xi) = a + b tanh(xi)

with F a small neural network (ln flux at 1 kpc without dust), and a, b one number a wavelength
(Zhang, Green & Rix 2023, MNRAS 524, 1855; Zhang & Green 2025, Science). Observed ln fluxes scatter
about it with a full covariance that a second network gives as a function of the star (NoiseModel).
In ln flux dust and distance are linear, so they can be marginalised in closed form
(`marginal_chi2`). Beside the forward model stands a network that knows nothing of physics and gives
the type straight from the fluxes (DirectNetwork). docs/model.md has the equations.

This file knows TensorFlow and arrays, nothing of files, except the export of a TensorFlow
SavedModel, whose interface is that of the published model.
"""

import itertools
import logging
import os
from dataclasses import dataclass

import numpy as np

import xp_utils

# TensorFlow's notices of what a machine lacks would bury the scripts' own lines.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import tensorflow as tf

N_LABELS = 3
LABEL_NAMES = ("Teff", "[Fe/H]", "log g")
LABEL_UNITS = ("kK", "dex", "dex")

# First guess of the mean extinction curve: ln R = ln[2 (lambda / 550 nm)^-1.5]. The factor 2 sets
# the unit of E near that of E(B-V) maps, as in Zhang, Green & Rix (2023).
EXT_CURVE_NORM = 2.0
EXT_CURVE_PIVOT_NM = 550.0
EXT_CURVE_SLOPE = -1.5

# The extinction curve has no xi-variation redward of this: W1 and W2 carry too little of it.
XI_MAX_WAVELENGTH_NM = 3000.0

# ln flux is held within these bounds, so that a wild trial point cannot overflow float32.
LN_FLUX_LIMIT = 40.0


class FluxModel(tf.Module):
    """The forward model: network F(theta) and extinction curve R(xi).

    Args:
        sample_wavelengths (n_wl,): nm, in the order of the flux vectors.
        theta_mean (3,), theta_scale (3,): standardisation z = (theta - mean) / scale, theta in
            (kK, dex, dex).
        mean_ln_flux (n_wl,): ln flux at 1 kpc that the untrained network predicts.
        basis (n_wl, n_wl): rows are the spectra that the network's outputs multiply; default: one
            output a wavelength. A basis in which what is hard to tell (brightness, dust) stands
            apart lets Adam find each direction at its own pace.
        hidden: units in each hidden layer (tanh); every layer is fed z again.
        n_layers: number of hidden layers.
        seed: of the initial weights.
    """

    def __init__(
        self,
        sample_wavelengths,
        theta_mean,
        theta_scale,
        mean_ln_flux=None,
        basis=None,
        hidden=64,
        n_layers=3,
        seed=0,
    ):
        super().__init__(name="flux_model")
        wavelengths = np.asarray(sample_wavelengths, "f8")
        n_wl = len(wavelengths)
        self.hidden, self.n_layers = int(hidden), int(n_layers)
        self.sample_wavelengths = tf.constant(wavelengths, tf.float32)
        self.theta_mean = tf.constant(theta_mean, tf.float32)
        self.theta_scale = tf.constant(theta_scale, tf.float32)
        self.basis = tf.constant(np.eye(n_wl) if basis is None else basis, tf.float32)
        rng = np.random.default_rng(seed)

        def weight(n_in, n_out, fan_in, name):
            values = rng.normal(0.0, 1.0 / np.sqrt(fan_in), (n_in, n_out))
            return tf.Variable(values, dtype=tf.float32, name=name)

        self.w_theta, self.w_hidden, self.bias = [], [], []
        for layer in range(self.n_layers):
            fan_in = N_LABELS + (self.hidden if layer else 0)
            self.w_theta.append(weight(N_LABELS, hidden, fan_in, f"w_theta_{layer}"))
            if layer:
                self.w_hidden.append(weight(hidden, hidden, fan_in, f"w_hidden_{layer}"))
            self.bias.append(tf.Variable(tf.zeros(hidden), name=f"bias_{layer}"))
        self.w_out = weight(hidden, n_wl, 100.0 * hidden, "w_out")
        self.bias_out = tf.Variable(tf.zeros(n_wl), name="bias_out")
        start = np.zeros(n_wl) if mean_ln_flux is None else mean_ln_flux
        self.mean_ln_flux = tf.constant(start, tf.float32)

        self.ln_ext_curve = tf.Variable(
            initial_ln_ext_curve(wavelengths), dtype=tf.float32, name="ln_ext_curve"
        )
        self.ln_ext_curve_xi = tf.Variable(tf.zeros(n_wl), name="ln_ext_curve_xi")
        self.xi_mask = tf.constant(wavelengths < XI_MAX_WAVELENGTH_NM, tf.float32)

    @property
    def network_variables(self):
        """The network's weights and biases, input layer first."""
        return [*self.w_theta, *self.w_hidden, *self.bias, self.w_out, self.bias_out]

    def standardise(self, theta):
        """theta (..., 3) in (kK, dex, dex) -> z (..., 3)."""
        return (theta - self.theta_mean) / self.theta_scale

    def ln_flux(self, z):
        """ln flux at 1 kpc without dust (B, n_wl), from the standardised type z (B, 3)."""
        h = tf.tanh(z @ self.w_theta[0] + self.bias[0])
        for layer in range(1, self.n_layers):
            h = tf.tanh(h @ self.w_hidden[layer - 1] + z @ self.w_theta[layer] + self.bias[layer])
        return h @ (self.w_out @ self.basis) + self._offset()

    def _offset(self):
        return self.mean_ln_flux + tf.linalg.matvec(self.basis, self.bias_out, transpose_a=True)

    def ln_flux_and_jacobian(self, z):
        """ln flux (B, n_wl) and d ln flux / dz (B, 3, n_wl).

        Forward mode: the value and its three tangents go through each layer as 4B rows of one
        matrix product, which costs a hundredth of TensorFlow's `batch_jacobian`.
        """
        batch = tf.shape(z)[0]
        h = tf.tanh(z @ self.w_theta[0] + self.bias[0])  # (B, h)
        dh = (1.0 - h * h)[None] * self.w_theta[0][:, None, :]  # (3, B, h)
        for layer in range(1, self.n_layers):
            w_theta = self.w_theta[layer]
            stacked = tf.reshape(tf.concat([h[None], dh], 0), (4 * batch, self.hidden))
            rows = tf.reshape(stacked @ self.w_hidden[layer - 1], (4, batch, self.hidden))
            h = tf.tanh(rows[0] + z @ w_theta + self.bias[layer])
            dh = (1.0 - h * h)[None] * (rows[1:] + w_theta[:, None, :])
        # One product for value and tangents, laid out as (B, 4, n_wl).
        stacked = tf.concat([h[:, None], tf.transpose(dh, (1, 0, 2))], 1)
        rows = tf.reshape(stacked, (4 * batch, self.hidden)) @ (self.w_out @ self.basis)
        rows = tf.reshape(rows, (batch, 4, self.w_out.shape[1]))
        return rows[:, 0] + self._offset(), rows[:, 1:]

    def ext_curve(self, xi):
        """R(xi) (B, n_wl) for xi (B,), and d ln R / d xi (B, n_wl)."""
        t = tf.tanh(xi)[:, None]
        slope = self.ln_ext_curve_xi * self.xi_mask
        return tf.exp(self.ln_ext_curve + slope * t), slope * (1.0 - t * t)

    def flux(self, z, xi, ext, ln_plx):
        """Observed flux (B, n_wl) from z (B, 3), xi (B,), E (B,), ln parallax/mas (B,)."""
        curve, _ = self.ext_curve(xi)
        ln_flux = self.ln_flux(z) - ext[:, None] * curve + 2.0 * ln_plx[:, None]
        return tf.exp(tf.clip_by_value(ln_flux, -LN_FLUX_LIMIT, LN_FLUX_LIMIT))

    def to_arrays(self):
        """All that defines the model, as {name: array}; `from_arrays` restores it."""
        arrays = {v.name.split(":")[0]: v.numpy() for v in self.variables}
        arrays.update(
            sample_wavelengths=self.sample_wavelengths.numpy(),
            theta_mean=self.theta_mean.numpy(),
            theta_scale=self.theta_scale.numpy(),
            basis=self.basis.numpy(),
            mean_ln_flux=self.mean_ln_flux.numpy(),
        )
        return arrays

    @classmethod
    def from_arrays(cls, arrays):
        """The model that `to_arrays` described. Raises KeyError where an array is missing."""
        n_layers = sum(name.startswith("w_theta_") for name in arrays)
        model = cls(
            arrays["sample_wavelengths"],
            arrays["theta_mean"],
            arrays["theta_scale"],
            arrays["mean_ln_flux"],
            arrays["basis"],
            hidden=arrays["w_out"].shape[0],
            n_layers=n_layers,
        )
        for variable in model.variables:
            variable.assign(arrays[variable.name.split(":")[0]])
        return model


def initial_ln_ext_curve(wavelengths):
    """The extinction curve that training starts from: ln R (n_wl,) at wavelengths (n_wl,) nm."""
    return np.log(
        EXT_CURVE_NORM * (np.asarray(wavelengths) / EXT_CURVE_PIVOT_NM) ** EXT_CURVE_SLOPE
    )


# ------------------------------------------------------------------------------ the noise model


MIN_FLUX_SIGMAS = 0.7  # ln flux is taken of at least this many sigma: fluxes may be negative
N_NOISE_FEATURES = N_LABELS + 3
FEATURE_LIMIT = 3.0  # standardised features are bent to this range: no wild extrapolation
START_NU = 30.0  # degrees of freedom of the residuals: tails heavier than Gaussian
OUTPUT_STEP = 0.1  # scale of the network's part of W: the rest is one matrix for all stars
LN_DIAGONAL_LIMIT = 4.0
SCALE_FLOOR = 1e-3  # of a channel's scatter in ln flux
START_SCATTER = 0.02  # of ln flux, before training
RED_MIN_NM = 645.0  # RP alone has weight redward of this
PHOTOMETRY = range(xp_utils.N_XP, xp_utils.N_FLUX)


@dataclass
class LnFlux:
    """Observed fluxes as the likelihood takes them, float32.

    value (N, 66): ln flux, 0 where not used; rel_err (N, 66): relative error, 1 where not used;
    used (N, 66): 1 or 0; features (N, 2): brightness (mean ln flux of RP, or else of BP) and the
    mean ln relative error of the XP fluxes.
    """

    value: np.ndarray
    rel_err: np.ndarray
    used: np.ndarray
    features: np.ndarray

    def take(self, rows):
        """The same, of some rows (an index array or slice)."""
        return LnFlux(*(v[rows] for v in vars(self).values()))


def used_fluxes(flux, flux_err):
    """Which fluxes count (N, 66) bool: those that are finite, with a finite error above 0."""
    return np.isfinite(flux) & np.isfinite(flux_err) & (np.asarray(flux_err) > 0)


def ln_flux_data(flux, flux_err):
    """`LnFlux` of fluxes and errors (N, 66); error inf = not used.

    A flux below 0.7 sigma is replaced by that: y = ln max(f, 0.7 sigma), with the relative error
    sigma / max(f, 0.7 sigma).
    """
    flux, flux_err = np.asarray(flux, "f4"), np.asarray(flux_err, "f4")
    used = used_fluxes(flux, flux_err)
    err = np.where(used, flux_err, 1.0)
    floored = np.where(used, np.maximum(flux, MIN_FLUX_SIGMAS * err), 1.0)
    value, rel_err = np.log(floored), np.where(used, err / floored, 1.0)
    xp = used.copy()
    xp[:, PHOTOMETRY.start :] = False
    red = xp & (xp_utils.SAMPLE_WAVELENGTHS > RED_MIN_NM)
    bright = np.where(red.any(1)[:, None], red, xp)
    features = np.stack([_masked_mean(value, bright), _masked_mean(np.log(rel_err), xp)], 1)
    return LnFlux(*(np.ascontiguousarray(x, "f4") for x in (value, rel_err, used, features)))


def _masked_mean(values, mask):
    """Mean over axis 1 where mask is true; 0 where it never is."""
    return np.where(mask, values, 0.0).sum(1) / np.maximum(mask.sum(1), 1)


class NoiseModel(tf.Module):
    """The precision of ln flux as a function of the star.

        C^-1 = diag(1/s) W^T W diag(1/s),   s^2 = k^2 [exp(2 l0) + (exp(l1) sigma)^2 + 1e-6]

    sigma: the star's own relative errors, so that reported errors larger than usual widen the
    covariance; l0, l1: one number a channel. W: upper triangular, a base matrix plus what a small
    network (two layers with swish) makes of the type, the brightness, the error level and E. The
    level k and the degrees of freedom nu of the Student-t tails are left to stars that the rest was
    not trained on.

    W diag(1/s) is the whitening. As W is upper triangular, channels missing at the blue end (BP)
    drop out exactly with their rows; others are projected out (`whitening`).

    Args:
        n_wl: number of wavelengths. feature_mean, feature_scale (2,): of `LnFlux.features`.
        hidden: units a layer. seed: of the initial weights.
    """

    def __init__(self, n_wl, feature_mean, feature_scale, hidden=32, seed=0):
        super().__init__(name="noise_model")
        rng = np.random.default_rng([seed, 1])
        self.n_wl, self.n_out = n_wl, n_wl * (n_wl + 1) // 2
        self.feature_mean = tf.constant(feature_mean, tf.float32)
        self.feature_scale = tf.constant(feature_scale, tf.float32)

        def variable(values, name):
            return tf.Variable(values, dtype=tf.float32, name=f"noise_{name}")

        def weight(n_in, n_out, size, name):
            return variable(rng.normal(0, size / np.sqrt(n_in), (n_in, n_out)), name)

        self.w1 = weight(N_NOISE_FEATURES, hidden, 1, "w1")
        self.b1 = variable(np.zeros(hidden), "b1")
        self.w2 = weight(hidden, hidden, 1, "w2")
        self.b2 = variable(np.zeros(hidden), "b2")
        self.w_out = weight(hidden, self.n_out, 0.1, "w_out")
        self.base = variable(np.zeros(self.n_out), "base")
        self.ln_scatter = variable(np.full(n_wl, np.log(START_SCATTER)), "ln_scatter")
        self.ln_err_factor = variable(np.zeros(n_wl), "ln_err_factor")
        self.ln_level = variable(0.0, "ln_level")
        self.ln_nu = variable(np.log(START_NU), "ln_nu")

    @property
    def level_variables(self):
        """Those of the level and the tails."""
        return [self.ln_level, self.ln_nu]

    @property
    def shape_variables(self):
        """All the others."""
        return [v for v in self.variables if all(v is not w for w in self.level_variables)]

    @property
    def nu(self):
        """Degrees of freedom of the Student-t distribution of the residuals."""
        return tf.exp(self.ln_nu)

    def _outputs(self, z, features, ext):
        """The n_out entries of W (B, n_out), rows one after another, before exp of the diagonal."""
        x = (features - self.feature_mean) / self.feature_scale
        x = tf.concat([z, x, (tf.math.log(ext + 0.1) + 1.0)[:, None]], 1)
        x = FEATURE_LIMIT * tf.tanh(x / FEATURE_LIMIT)
        h = tf.nn.swish(x @ self.w1 + self.b1)
        h += tf.nn.swish(h @ self.w2 + self.b2)
        return self.base + OUTPUT_STEP * (h @ self.w_out)

    def _triangle(self, outputs):
        """W (B, n_wl, n_wl) and the logarithms of its diagonal (B, n_wl)."""
        w = upper_triangle(outputs, self.n_wl)
        ln_diagonal = LN_DIAGONAL_LIMIT * tf.tanh(tf.linalg.diag_part(w) / LN_DIAGONAL_LIMIT)
        return tf.linalg.set_diag(w, tf.exp(ln_diagonal)), ln_diagonal

    def whitening(self, z, ext, rel_err, used, features, general=False):
        """S (B, n_wl, n_wl) with S^T S the precision of the used channels, and ln |det S| (B,).

        z (B, 3), ext (B,): the type and dust at which the noise is evaluated. rel_err, used
        (B, n_wl), features (B, 2): see `LnFlux`. Missing channels are marginalised exactly and
        leave zero columns: BP by dropping its rows, the photometric bands by projecting their
        columns out. `general`: project out every missing channel (any pattern; slower).
        """
        w, ln_diagonal = self._triangle(self._outputs(z, features, ext))
        ln_s = 0.5 * tf.math.log(
            tf.exp(2.0 * self.ln_scatter)
            + (tf.exp(self.ln_err_factor) * rel_err) ** 2
            + SCALE_FLOOR**2
        )
        ln_s += self.ln_level
        s = w * tf.exp(-ln_s)[:, None]
        if general:
            return self._project_all(s, tf.reduce_sum(ln_diagonal - ln_s, 1), used)
        n_xp = PHOTOMETRY.start
        rows = tf.concat([used[:, :n_xp], tf.ones_like(used[:, n_xp:])], 1)
        s = s * rows[:, :, None] * rows[:, None]
        ln_det = tf.reduce_sum((ln_diagonal - ln_s) * rows, 1)
        axes, ln_norm = _missing_axes(s[:, :, n_xp:], 1.0 - used[:, n_xp:])
        s -= tf.matmul(axes, tf.matmul(axes, s), transpose_a=True)
        return s * used[:, None], ln_det - ln_norm

    def _project_all(self, s, ln_det, used):
        def project(k, s, ln_det):
            return k + 1, *_project_out(
                s, ln_det, tf.gather(s, k, axis=2), 1.0 - tf.gather(used, k, axis=1)
            )

        _, s, ln_det = tf.while_loop(lambda k, *_: k < self.n_wl, project, (0, s, ln_det))
        return s * used[:, None], ln_det


def upper_triangle(entries, n):
    """Matrices (B, n, n), upper triangular, from entries (B, n (n + 1) / 2), rows one after
    another. The gradient is written out: that of so many slices would be summed slice by slice."""

    @tf.custom_gradient
    def fill(entries):
        zeros = tf.zeros_like(entries[:, :n])
        pieces, start = [], 0
        for row in range(n):
            pieces += [zeros[:, :row], entries[:, start : start + n - row]]
            start += n - row

        def gradient(upstream):
            return tf.concat([upstream[:, row, row:] for row in range(n)], 1)

        return tf.reshape(tf.concat(pieces, 1), (-1, n, n)), gradient

    return fill(entries)


def _missing_axes(columns, missing):
    """Orthonormal axes (B, k, n) of the whitened columns (B, n, k) of missing channels, zero where
    missing (B, k) is 0, and ln of the volume (B,) that those columns span: Gram-Schmidt, so that
    the whole matrix is projected at once."""
    axes, ln_volume = [], 0.0
    for k in range(columns.shape[2]):
        column = columns[:, :, k]
        for axis in axes:
            column -= axis * tf.reduce_sum(axis * column, 1, keepdims=True)
        norm2 = tf.reduce_sum(column * column, 1)
        norm2 = tf.where(missing[:, k] > 0, tf.maximum(norm2, 1e-20), 1.0)
        axes.append(column * (missing[:, k] * tf.math.rsqrt(norm2))[:, None])
        ln_volume += 0.5 * tf.math.log(norm2)
    return tf.stack(axes, 1), ln_volume


def _project_out(s, ln_det, column, missing):
    """Marginalise the channel whose whitened column (B, n) is given, where missing (B,) is 1."""
    norm2 = tf.reduce_sum(column * column, 1)
    norm2 = tf.where(missing > 0, tf.maximum(norm2, 1e-20), 1.0)
    axis = column * (missing * tf.math.rsqrt(norm2))[:, None]
    s -= axis[:, :, None] * tf.linalg.matvec(s, axis, transpose_a=True)[:, None]
    return s, ln_det - 0.5 * tf.math.log(norm2)


# -------------------------------------------------------------------------- the direct estimate


DIRECT_NETWORKS = 4  # whose mean is the estimate
DIRECT_HIDDEN = (128, 128, 64)  # units of their layers
DIRECT_LIMIT = 6.0  # standardised inputs are bent to this range
DIRECT_MIN_SCALE = 0.05  # of an input
DIRECT_START_LN_SIGMA = -1.5
DIRECT_LN_SIGMA = (-5.0, 2.0)  # limits, of the standardised labels


def direct_inputs(observed, plx, plx_err):
    """What the direct estimate sees of stars, float32, NaN where a star has nothing to show.

    observed: `LnFlux` of N stars; plx, plx_err (N,): mas, NaN where there is none. Columns (N, 76):
    the ln fluxes relative to the brightness; the error level; the ln flux at 1 kpc and the ln
    relative error of the parallax, a parallax below its error taken as that; and what is there:
    the share of XP fluxes, each photometric band, the parallax.
    """
    used, n_xp = observed.used > 0, xp_utils.N_XP
    bright, level = observed.features.T
    plx, plx_err = np.asarray(plx, "f8"), np.asarray(plx_err, "f8")
    known = np.isfinite(plx) & (plx_err > 0)
    err = np.where(known, plx_err, np.nan)
    floored = np.fmax(plx, err) + 0.0 * err
    fluxes = np.where(used, observed.value - bright[:, None], np.nan)
    return np.column_stack(
        [
            fluxes,
            level,
            bright - 2 * np.log(floored),
            np.log(err / floored),
            used[:, :n_xp].mean(1),
            used[:, n_xp:],
            known,
        ]
    ).astype("f4")


class DirectNetwork(tf.Module):
    """Teff, [Fe/H] and log g straight from the observed fluxes: small networks that are averaged.

    It knows neither dust nor distance, and its errors are not those of the forward model: together
    they are better than either (`fitting.posterior.pool`).

    Args:
        inputs (N, p): `direct_inputs` of training stars, which set the standardisation; inputs that
            are the same for all of them are not used.
        n_networks, hidden: number of networks, units of their layers. seed: of their weights.
    """

    def __init__(self, inputs, n_networks=DIRECT_NETWORKS, hidden=DIRECT_HIDDEN, seed=0):
        super().__init__(name="direct_network")
        inputs = np.asarray(inputs, "f8")
        seen, count = np.isfinite(inputs), np.isfinite(inputs).sum(0).clip(1)
        mean = np.where(seen, inputs, 0).sum(0) / count
        scale = np.sqrt((np.where(seen, inputs - mean, 0) ** 2).sum(0) / count)
        scale = np.where(scale > 1e-6, np.maximum(scale, DIRECT_MIN_SCALE), np.inf)
        self.mean, self.scale = tf.constant(mean, tf.float32), tf.constant(scale, tf.float32)
        rng = np.random.default_rng([seed, 2])
        sizes = (inputs.shape[1], *hidden, 2 * N_LABELS)
        self.weights, self.biases = [], []
        for k, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
            size = np.sqrt(2 / n_in) if k < len(hidden) else 0.1 / np.sqrt(n_in)
            values = size * rng.normal(size=(n_networks, n_in, n_out))
            self.weights.append(tf.Variable(values, dtype=tf.float32, name=f"direct_w{k}"))
            self.biases.append(tf.Variable(tf.zeros((n_networks, 1, n_out)), name=f"direct_b{k}"))

    def outputs(self, inputs):
        """Standardised types (n_networks, B, 3) and ln of their errors, from inputs (B, p)."""
        x = (inputs - self.mean) / self.scale
        x = DIRECT_LIMIT * tf.tanh(tf.where(tf.math.is_nan(x), 0.0, x) / DIRECT_LIMIT)
        h = tf.tile(x[None], (self.weights[0].shape[0], 1, 1))
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = tf.matmul(tf.nn.relu(h) if k else h, weight) + bias
        ln_sigma = tf.clip_by_value(h[:, :, N_LABELS:] + DIRECT_START_LN_SIGMA, *DIRECT_LN_SIGMA)
        return h[:, :, :N_LABELS], ln_sigma

    def estimate(self, inputs):
        """z (B, 3) and its error (B, 3), which grows where the networks disagree."""
        z, ln_sigma = self.outputs(inputs)
        variance = tf.math.reduce_mean(tf.exp(2.0 * ln_sigma), 0) + tf.math.reduce_variance(z, 0)
        return tf.reduce_mean(z, 0), tf.sqrt(variance)

    def to_arrays(self):
        """All that defines the network, as {name: array}."""
        arrays = {v.name.split(":")[0]: v.numpy() for v in self.variables}
        return arrays | {"direct_mean": self.mean.numpy(), "direct_scale": self.scale.numpy()}

    @classmethod
    def from_arrays(cls, arrays):
        """The network that `to_arrays` described. Raises KeyError where an array is missing."""
        layers = sum(name.startswith("direct_w") for name in arrays)
        shapes = [arrays[f"direct_w{k}"].shape for k in range(layers)]
        network = cls(np.zeros((1, shapes[0][1])), shapes[0][0], [s[2] for s in shapes[:-1]])
        network.mean, network.scale = (
            tf.constant(arrays[f"direct_{name}"], tf.float32) for name in ("mean", "scale")
        )
        for variable in network.variables:
            variable.assign(arrays[variable.name.split(":")[0]])
        return network


# --------------------------------------------------------------- small systems, and nuisances


def cholesky_small(matrix, floor=1e-12):
    """Cholesky factor of matrix (k, k, ...), k small, written out over the trailing axes.

    Many times faster than a batched solver for matrices this small. Returns the strictly lower
    entries as a list of lists and the inverse of the diagonal as a list; pivots are held above
    `floor`.
    """
    k = matrix.shape[0]
    low, inverse = [[None] * k for _ in range(k)], [None] * k
    for i in range(k):
        for j in range(i + 1):
            total = matrix[i, j]
            for m in range(j):
                total -= low[i][m] * low[j][m]
            if i == j:
                inverse[i] = tf.math.rsqrt(tf.maximum(total, floor))
            else:
                low[i][j] = total * inverse[j]
    return low, inverse


def solve_small(factor, b):
    """Solution x (k, ...) of matrix x = b, from `cholesky_small` and b (k, ...)."""
    low, inverse = factor
    k, y = len(inverse), [None] * len(inverse)
    for i in range(k):
        y[i] = (b[i] - sum((low[i][m] * y[m] for m in range(i)), 0.0)) * inverse[i]
    for i in reversed(range(k)):
        y[i] = (y[i] - sum((low[m][i] * y[m] for m in range(i + 1, k)), 0.0)) * inverse[i]
    return tf.stack(y)


def marginal_chi2(residual, columns):
    """chi^2 with linear nuisances of unit Gaussian priors marginalised.

    residual (B, n, m): n whitened residuals a star; columns (B, k, m): whitened change of the
    fluxes per unit of each nuisance. With M = 1 + U U^T and amplitudes a = M^-1 U r:

        chi^2 = |r - U^T a|^2 + |a|^2

    This form does not cancel in float32, as r^T r - r^T U^T M^-1 U r does, and is stationary in a,
    so gradients need not pass through the solution.

    Returns chi2 (B, n), amplitudes (B, n, k), M^-1 (B, k, k) and ln det M (B,). Gradients flow
    through all.
    """
    k = columns.shape[1]
    u, r = tf.stop_gradient(columns), tf.stop_gradient(residual)
    gram = tf.matmul(u, u, transpose_b=True) + tf.eye(k)
    # Every pivot of 1 + U U^T is at least 1; in float32 one of nearly parallel columns may not be.
    factor = cholesky_small(tf.transpose(gram, (1, 2, 0))[..., None], floor=1.0)

    def solve(b):  # (B, n, k)
        return tf.transpose(solve_small(factor, tf.transpose(b, (2, 0, 1))), (1, 2, 0))

    def slope(r, u, a):  # of -chi^2 / 2 in a
        return tf.matmul(r - tf.matmul(a, u), u, transpose_b=True) - a

    a = solve(tf.matmul(r, u, transpose_b=True))
    a = tf.stop_gradient(a + solve(slope(r, u, a)))  # once refined: float32
    left = residual - tf.matmul(a, columns)
    chi2 = tf.reduce_sum(left * left, 2) + tf.reduce_sum(a * a, 2)
    inverse = tf.stop_gradient(solve(tf.eye(k, batch_shape=[1]) * tf.ones_like(gram)))
    a += tf.matmul(slope(residual, columns, a), inverse)  # zero; carries the gradient
    ln_det = -2.0 * tf.reduce_sum(tf.math.log(tf.stack(factor[1])[..., 0]), 0)
    gram = tf.matmul(columns, columns, transpose_b=True)
    trace = tf.reduce_sum(inverse * gram, (1, 2))  # d ln det M = tr M^-1 dM
    change = tf.matmul(inverse, tf.matmul(gram, inverse))  # d M^-1 = -M^-1 dM M^-1
    return (
        chi2,
        a,
        inverse + tf.stop_gradient(change) - change,
        tf.stop_gradient(ln_det - trace) + trace,
    )


def student_misfit(chi2, n, nu):
    """-ln likelihood of residuals with chi^2 (B, ...) over n used fluxes, Student-t with nu degrees
    of freedom, up to what depends on nu alone; chi^2 / 2 for nu to infinity."""
    return 0.5 * (nu + n) * tf.math.log1p(chi2 / nu)


# ------------------------------------------------------------------------------------ the prior


class MixturePrior(tf.Module):
    """A Gaussian mixture over the standardised stellar type z.

    Args:
        weights (K,), means (K, 3), covariances (K, 3, 3): in z.
        theta_scale (3,): turns a density in z into one per kK dex dex.
        ln_prior_floor: the 0.1% quantile of `ln_density` over the training stars (a flag's limit).
    """

    def __init__(self, weights, means, covariances, theta_scale, ln_prior_floor=-np.inf):
        super().__init__(name="prior")
        precisions = np.linalg.inv(np.asarray(covariances, "f8"))
        chol = np.linalg.cholesky(precisions)  # P = L L^T
        ln_norm = (
            np.log(weights)
            + 0.5 * np.linalg.slogdet(precisions)[1]
            - 0.5 * N_LABELS * np.log(2.0 * np.pi)
        )
        self.weights = np.asarray(weights, "f8")
        self.means_np, self.covariances = np.asarray(means, "f8"), np.asarray(covariances, "f8")
        self.theta_scale = np.asarray(theta_scale, "f8")
        self.ln_prior_floor = float(ln_prior_floor)
        self.means = tf.constant(means, tf.float32)
        self.precisions = tf.constant(precisions, tf.float32)
        self.precisions_flat = tf.reshape(self.precisions, (-1, 9))
        self.precision_chol = tf.constant(chol, tf.float32)
        self.ln_norm = tf.constant(ln_norm, tf.float32)
        self.ln_jacobian = float(-np.log(self.theta_scale).sum())
        # (x, 1) @ whiten gives L_k^T (z - mu_k) for all components in one product.
        flat = chol.transpose(1, 0, 2).reshape(N_LABELS, -1)
        shift = -np.einsum("ki,kij->kj", self.means_np, chol).reshape(-1)
        self.whiten, self.whiten_shift = (
            tf.constant(flat, tf.float32),
            tf.constant(shift, tf.float32),
        )

    def _terms(self, z):
        white = tf.reshape(z @ self.whiten + self.whiten_shift, (-1, len(self.weights), N_LABELS))
        return white, self.ln_norm - 0.5 * tf.reduce_sum(white * white, -1)  # (B, K)

    def ln_density_z(self, z):
        """ln p(z) (B,), per unit of z."""
        return tf.reduce_logsumexp(self._terms(z)[1], -1)

    def ln_density(self, z):
        """ln p(theta) (B,), per kK dex dex."""
        return self.ln_density_z(z) + self.ln_jacobian

    def value_gradient_hessian(self, z):
        """-ln p(z) (B,), its gradient (B, 3) and a bound of its Hessian (B, 3, 3).

        The bound is the mean of the components' precisions, weighted by their responsibilities: the
        true Hessian less a positive semi-definite term, so a step with it cannot overshoot.
        """
        white, terms = self._terms(z)
        ln_p = tf.reduce_logsumexp(terms, -1)
        resp = tf.exp(terms - ln_p[:, None])  # (B, K)
        gradient = tf.einsum("bk,bkj,kij->bi", resp, white, self.precision_chol)
        hessian = tf.reshape(resp @ self.precisions_flat, (-1, N_LABELS, N_LABELS))
        return -ln_p, gradient, hessian

    def sample(self, n, rng, widen=1.0):
        """n draws of z (n, 3) float64; each component's covariance times widen^2."""
        component = rng.choice(len(self.weights), n, p=self.weights / self.weights.sum())
        chol = np.linalg.cholesky(self.covariances)[component]
        noise = rng.normal(size=(n, N_LABELS))
        return self.means_np[component] + widen * np.einsum("nij,nj->ni", chol, noise)

    def to_arrays(self):
        """All that defines the prior, as {name: array}."""
        return {
            "prior_weights": self.weights,
            "prior_means": self.means_np,
            "prior_covariances": self.covariances,
            "prior_theta_scale": self.theta_scale,
            "prior_ln_floor": np.float64(self.ln_prior_floor),
        }

    @classmethod
    def from_arrays(cls, arrays):
        """The prior that `to_arrays` described. Raises KeyError where an array is missing."""
        return cls(
            arrays["prior_weights"],
            arrays["prior_means"],
            arrays["prior_covariances"],
            arrays["prior_theta_scale"],
            float(arrays["prior_ln_floor"]),
        )


PRIOR_SMOOTHING = 0.1  # of z: the mixture is smoothed by a Gaussian of this width


def fit_prior(theta, theta_mean, theta_scale, n_components=8, seed=0):
    """Fit a `MixturePrior` to labels theta (N, 3) in (kK, dex, dex). Seeded, so repeatable.

    Smoothed by PRIOR_SMOOTHING: a mixture has seams and knots that the stars have not, and each of
    them can hold an optimum of its own.
    """
    from sklearn.mixture import GaussianMixture

    z = (np.asarray(theta, "f8") - theta_mean) / theta_scale
    mixture = GaussianMixture(
        min(n_components, max(1, len(z) // 50)),
        reg_covar=1e-3,
        random_state=seed,
        n_init=1,
        max_iter=300,
    ).fit(z)
    covariances = mixture.covariances_ + PRIOR_SMOOTHING**2 * np.eye(N_LABELS)
    prior = MixturePrior(mixture.weights_, mixture.means_, covariances, theta_scale)
    prior.ln_prior_floor = float(np.quantile(prior.ln_density(z.astype("f4")).numpy(), 0.001))
    return prior


@dataclass
class StellarModel:
    """What training makes and inference needs: forward model, noise model, prior and, where the
    recipe trains one, the direct estimate."""

    flux: FluxModel
    noise: NoiseModel
    prior: MixturePrior
    direct: DirectNetwork | None = None

    def to_arrays(self):
        """All that defines the model, as {name: array}."""
        arrays = self.flux.to_arrays() | self.prior.to_arrays()
        arrays |= {v.name.split(":")[0]: v.numpy() for v in self.noise.variables}
        if self.direct is not None:
            arrays |= self.direct.to_arrays()
        return arrays | {
            "noise_feature_mean": self.noise.feature_mean.numpy(),
            "noise_feature_scale": self.noise.feature_scale.numpy(),
        }

    @classmethod
    def from_arrays(cls, arrays):
        """The model that `to_arrays` described. Raises KeyError where an array is missing."""
        noise = NoiseModel(
            len(arrays["sample_wavelengths"]),
            arrays["noise_feature_mean"],
            arrays["noise_feature_scale"],
            len(arrays["noise_b1"]),
        )
        for variable in noise.variables:
            variable.assign(arrays[variable.name.split(":")[0]])
        direct = DirectNetwork.from_arrays(arrays) if "direct_mean" in arrays else None
        return cls(FluxModel.from_arrays(arrays), noise, MixturePrior.from_arrays(arrays), direct)


class ExportedModel(tf.Module):
    """The model as a SavedModel with the interface of the published one (see `export`)."""

    def __init__(self, model):
        super().__init__(name="exported_flux_model")
        self._model = model
        self._sample_wavelengths = tf.Variable(model.sample_wavelengths, trainable=False)
        self._ln_ext_curve = model.ln_ext_curve

    @tf.function
    def predict_intrinsic_ln_flux(self, stellar_type):
        z = self._model.standardise(tf.cast(stellar_type, tf.float32))
        return self._model.ln_flux(z)

    @tf.function
    def predict_obs_flux(self, stellar_type, xi, E, plx):
        z = self._model.standardise(tf.cast(stellar_type, tf.float32))
        return self._model.flux(
            z,
            tf.cast(xi, tf.float32),
            tf.cast(E, tf.float32),
            tf.math.log(tf.cast(plx, tf.float32)),
        )

    @tf.function
    def predict_observed_flux(self, stellar_type, E, plx):
        return self.predict_obs_flux(stellar_type, tf.zeros_like(E), E, plx)

    @tf.function
    def predict_ln_ext_curve(self, xi):
        return tf.math.log(self._model.ext_curve(tf.cast(xi, tf.float32))[0])


def export(model, path):
    """Write `model` as a TensorFlow SavedModel into the folder `path`.

    After `m = tf.saved_model.load(path)` in any process:
        m.predict_intrinsic_ln_flux(stellar_type)         (N, 3) -> ln flux at 1 kpc (N, 66)
        m.predict_observed_flux(stellar_type, E, plx)     xi = 0: flux (N, 66)
        m.predict_obs_flux(stellar_type, xi, E, plx)      flux (N, 66)
        m.predict_ln_ext_curve(xi)                        (N,) -> ln R (N, 66)
        m._sample_wavelengths (nm), m._ln_ext_curve       (66,)
    stellar_type in (kK, dex, dex), plx in mas, fluxes in 1e-18 W m^-2 nm^-1. Arguments may be
    float32 or float64 arrays or tensors, all of one type in a call.
    """
    exported = ExportedModel(model)
    for dtype in (tf.float32, tf.float64):
        theta, vector = tf.TensorSpec((None, N_LABELS), dtype), tf.TensorSpec((None,), dtype)
        exported.predict_intrinsic_ln_flux.get_concrete_function(theta)
        exported.predict_observed_flux.get_concrete_function(theta, vector, vector)
        exported.predict_obs_flux.get_concrete_function(theta, vector, vector, vector)
        exported.predict_ln_ext_curve.get_concrete_function(vector)
    tf.saved_model.save(exported, str(path))


def set_threads(n):
    """Let TensorFlow use n CPU threads (0: all cores). Once it has computed anything, as in a
    second call within a process, it keeps the threads it has, and the log says so."""
    try:
        tf.config.threading.set_intra_op_parallelism_threads(n)
        tf.config.threading.set_inter_op_parallelism_threads(1 if n == 1 else 0)
    except RuntimeError as error:
        logging.getLogger(__name__).warning("the number of threads stays as it is: %s", error)
