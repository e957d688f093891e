"""The forward model of a star's fluxes, in TensorFlow.

A star of type theta (its K labels: Teff/1000 K, [Fe/H], log g by default) behind dust E with
extinction-curve shape xi, at parallax plx (mas), has at each wavelength the flux
(1e-18 W m^-2 nm^-1)

    f(theta, E, xi, plx) = exp[ F(theta) - E R(xi) ] plx^2,      ln R(xi) = a + b tanh(xi)

with F a small neural network (ln flux at 1 kpc without dust), and a, b one number a wavelength
(Zhang, Green & Rix 2023, MNRAS 524, 1855; Zhang & Green 2025, Science). In ln flux dust and
distance are linear. What stands beside it (noise, prior, direct estimate) is in fitting/;
docs/model.md has the equations.

This file knows TensorFlow and arrays, nothing of files, except the export of a TensorFlow
SavedModel, whose interface is that of the published model.
"""

import itertools
import logging

import numpy as np

from pipeline.extinction_law import BLUE_NM, VISUAL_NM, interpolation, varies
from pipeline.quiet_tensorflow import tf, without_notices
from pipeline.saved_model import save_whole

# First guess of the mean extinction curve: ln R = ln[2 (lambda / 550 nm)^-1.5]. The factor 2 sets
# the unit of E near that of E(B-V) maps, as in Zhang, Green & Rix (2023).
EXT_CURVE_NORM = 2.0
EXT_CURVE_PIVOT_NM = 550.0
EXT_CURVE_SLOPE = -1.5

EXPORTED_TYPES = (tf.float32, tf.float64, tf.int64)  # of numbers that the exported model takes

# ln flux is held within these bounds, so that a wild trial point cannot overflow float32.
LN_FLUX_LIMIT = 40.0


class FluxModel(tf.Module):
    """The forward model: network F(theta) and extinction curve R(xi).

    Args:
        sample_wavelengths (n_wl,): nm, in the order of the flux vectors.
        theta_mean (K,), theta_scale (K,): standardisation z = (theta - mean) / scale, theta in
            the units of the labels.
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
        self.hidden, self.n_layers, self.n_labels = int(hidden), int(n_layers), len(theta_mean)
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
            fan_in = self.n_labels + (self.hidden if layer else 0)
            self.w_theta.append(weight(self.n_labels, hidden, fan_in, f"w_theta_{layer}"))
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
        self.xi_mask = tf.constant(varies(wavelengths), tf.float32)
        at = np.transpose([interpolation(wavelengths, nm) for nm in (BLUE_NM, VISUAL_NM)])
        self.blue_visual = tf.constant(at, tf.float32)  # (n_wl, 2)

    @property
    def network_variables(self):
        """The network's weights and biases, input layer first."""
        return [*self.w_theta, *self.w_hidden, *self.bias, self.w_out, self.bias_out]

    def standardise(self, theta):
        """theta (..., K)  -> z (..., K)."""
        return (theta - self.theta_mean) / self.theta_scale

    def ln_flux(self, z):
        """ln flux at 1 kpc without dust (B, n_wl), from the standardised type z (B, K)."""
        h = tf.tanh(z @ self.w_theta[0] + self.bias[0])
        for layer in range(1, self.n_layers):
            h = tf.tanh(h @ self.w_hidden[layer - 1] + z @ self.w_theta[layer] + self.bias[layer])
        return h @ (self.w_out @ self.basis) + self._offset()

    def _offset(self):
        return self.mean_ln_flux + tf.linalg.matvec(self.basis, self.bias_out, transpose_a=True)

    def ln_flux_and_jacobian(self, z):
        """ln flux (B, n_wl) and d ln flux / dz (B, K, n_wl).

        Forward mode: the value and its K tangents go through each layer as (1 + K) B rows of one
        matrix product, which costs a hundredth of TensorFlow's `batch_jacobian`.
        """
        batch = tf.shape(z)[0]
        h = tf.tanh(z @ self.w_theta[0] + self.bias[0])  # (B, h)
        dh = (1.0 - h * h)[None] * self.w_theta[0][:, None, :]  # (K, B, h)
        for layer in range(1, self.n_layers):
            w_theta = self.w_theta[layer]
            stacked = tf.reshape(
                tf.concat([h[None], dh], 0), ((1 + self.n_labels) * batch, self.hidden)
            )
            rows = tf.reshape(
                stacked @ self.w_hidden[layer - 1], (1 + self.n_labels, batch, self.hidden)
            )
            h = tf.tanh(rows[0] + z @ w_theta + self.bias[layer])
            dh = (1.0 - h * h)[None] * (rows[1:] + w_theta[:, None, :])
        # One product for value and tangents, laid out as (B, 1 + K, n_wl).
        stacked = tf.concat([h[:, None], tf.transpose(dh, (1, 0, 2))], 1)
        rows = tf.reshape(stacked, ((1 + self.n_labels) * batch, self.hidden)) @ (
            self.w_out @ self.basis
        )
        rows = tf.reshape(rows, (batch, 1 + self.n_labels, self.w_out.shape[1]))
        return rows[:, 0] + self._offset(), rows[:, 1:]

    def ext_curve(self, xi):
        """R(xi) (B, n_wl) for xi (B,), and d ln R / d xi (B, n_wl)."""
        t = tf.tanh(xi)[:, None]
        slope = self.ln_ext_curve_xi * self.xi_mask
        return tf.exp(self.ln_ext_curve + slope * t), slope * (1.0 - t * t)

    def r55(self, xi):
        """R(55) (B,) for xi (B,), as pipeline/extinction_law.py defines it; NaN where the model
        has no wavelengths about 440 and 550 nm."""
        blue, visual = tf.unstack(tf.math.log(self.ext_curve(xi)[0]) @ self.blue_visual, axis=1)
        return 1.0 / tf.math.expm1(blue - visual)

    def flux(self, z, xi, ext, ln_plx):
        """Observed flux (B, n_wl) from z (B, K), xi (B,), E (B,), ln parallax/mas (B,)."""
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


class ExportedModel(tf.Module):
    """The model as a SavedModel with the interface of the published one (see `export`)."""

    def __init__(self, model):
        super().__init__(name="exported_flux_model")
        self._model = model
        self._sample_wavelengths = tf.Variable(model.sample_wavelengths, trainable=False)
        self._ln_ext_curve = model.ln_ext_curve

    @tf.function(autograph=False)
    def predict_intrinsic_ln_flux(self, stellar_type):
        return self._intrinsic_ln_flux(self._types(stellar_type))

    @tf.function(autograph=False)
    def predict_obs_flux(self, stellar_type, xi, E, plx):
        return self._flux(self._types(stellar_type), _vector(xi), _vector(E), _vector(plx))

    @tf.function(autograph=False)
    def predict_observed_flux(self, stellar_type, E, plx):
        ext = _vector(E)
        return self._flux(self._types(stellar_type), tf.zeros_like(ext), ext, _vector(plx))

    @tf.function(autograph=False)
    def predict_ln_ext_curve(self, xi):
        return tf.math.log(self._model.ext_curve(_vector(xi))[0])

    @tf.function(autograph=False)
    def predict_R55(self, xi):  # noqa: N802
        return self._model.r55(_vector(xi))

    def _types(self, stellar_type):
        """(N, K) float32; one star (K,) is N = 1."""
        return tf.reshape(tf.cast(stellar_type, tf.float32), (-1, self._model.n_labels))

    # One graph each, whatever the types of number of what comes in.
    @tf.function(autograph=False)
    def _intrinsic_ln_flux(self, theta):
        return self._model.ln_flux(self._model.standardise(theta))

    @tf.function(autograph=False)
    def _flux(self, theta, xi, ext, plx):
        return self._model.flux(self._model.standardise(theta), xi, ext, tf.math.log(plx))


def _vector(values):
    """(N,) float32, of (N,), (N, 1) or a number."""
    return tf.reshape(tf.cast(values, tf.float32), (-1,))


def export(model, path):
    """Write `model` as a TensorFlow SavedModel into the folder `path`.

    After `m = tf.saved_model.load(path)` in any process:
        m.predict_intrinsic_ln_flux(stellar_type)         (N, K) -> ln flux at 1 kpc (N, n)
        m.predict_observed_flux(stellar_type, E, plx)     xi = 0: flux (N, n)
        m.predict_obs_flux(stellar_type, xi, E, plx)      flux (N, n)
        m.predict_ln_ext_curve(xi)                        (N,) -> ln R (N, n)
        m.predict_R55(xi)                                 (N,) -> A(550) / [A(440) - A(550)] (N,)
        m._sample_wavelengths (nm), m._ln_ext_curve       (n,)
    stellar_type in (kK, dex, dex), plx in mas, fluxes in 1e-18 W m^-2 nm^-1. Arguments may be
    float32, float64 or int64 arrays or tensors, lists or numbers, two types mixed in a call; one
    star may be (K,), and xi, E, plx (N,), (N, 1) or one number for all. WriteError where the disk
    does not take it.
    """
    exported = ExportedModel(model)
    functions = {
        exported.predict_intrinsic_ln_flux: 1,
        exported.predict_observed_flux: 3,
        exported.predict_obs_flux: 4,
        exported.predict_ln_ext_curve: 1,
        exported.predict_R55: 1,
    }
    for function, n_arguments in functions.items():  # loaded, it takes what it was traced for
        mixes = itertools.product(EXPORTED_TYPES, repeat=n_arguments)
        for dtypes in (mix for mix in mixes if len(set(mix)) <= 2):
            function.get_concrete_function(*(tf.TensorSpec(None, dtype) for dtype in dtypes))
    save_whole(exported, path)


def device_kind():
    """Where TensorFlow computes, in one word: GPU where it finds one, else CPU."""
    return "GPU" if tf.config.list_physical_devices("GPU") else "CPU"


def set_threads(n):
    """Let TensorFlow use n CPU threads (0: all cores). Once it has computed anything, as in a
    second call within a process, it keeps the threads it has, and the log says so."""
    try:
        tf.config.threading.set_intra_op_parallelism_threads(n)
        tf.config.threading.set_inter_op_parallelism_threads(1 if n == 1 else 0)
    except RuntimeError as error:
        logging.getLogger(__name__).warning("the number of threads stays as it is: %s", error)
    with without_notices():  # of the compiler, which greets at its first use
        tf.function(tf.negative, jit_compile=True)(tf.zeros(1))
