"""The forward model of a star's fluxes, and the prior of stellar types, in TensorFlow.

A star of type theta = (Teff/1000 K, [Fe/H], log g) behind dust E with extinction-curve shape xi,
at parallax plx (mas), has the flux

    f(theta, E, xi, plx) = exp[ F(theta) - E R(xi) ] plx^2        (66 wavelengths)
    ln R(xi) = a + b tanh(xi)

with F a small neural network (ln flux at 1 kpc without dust), and a, b one number a wavelength
(Zhang, Green & Rix 2023, MNRAS 524, 1855; Zhang & Green 2025, Science). Fluxes are in
1e-18 W m^-2 nm^-1. This file knows TensorFlow and arrays, nothing of files, except the export of
a TensorFlow SavedModel, whose interface is that of the published model.
"""

import numpy as np
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
        hidden: units in each hidden layer (tanh); every layer is fed z again.
        n_layers: number of hidden layers.
        seed: of the initial weights.
    """

    def __init__(self, sample_wavelengths, theta_mean, theta_scale, mean_ln_flux=None,
                 hidden=64, n_layers=3, seed=0):
        super().__init__(name="flux_model")
        wavelengths = np.asarray(sample_wavelengths, "f8")
        n_wl = len(wavelengths)
        self.hidden, self.n_layers = int(hidden), int(n_layers)
        self.sample_wavelengths = tf.constant(wavelengths, tf.float32)
        self.theta_mean = tf.constant(theta_mean, tf.float32)
        self.theta_scale = tf.constant(theta_scale, tf.float32)
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
        start = np.zeros(n_wl) if mean_ln_flux is None else mean_ln_flux
        self.bias_out = tf.Variable(start, dtype=tf.float32, name="bias_out")

        self.ln_ext_curve = tf.Variable(initial_ln_ext_curve(wavelengths), dtype=tf.float32,
                                        name="ln_ext_curve")
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
        return h @ self.w_out + self.bias_out

    def ln_flux_and_jacobian(self, z):
        """ln flux (B, n_wl) and d ln flux / dz (B, 3, n_wl).

        Forward mode: the value and its three tangents go through each layer as 4B rows of one
        matrix product, which costs a hundredth of TensorFlow's `batch_jacobian`.
        """
        batch = tf.shape(z)[0]
        h = tf.tanh(z @ self.w_theta[0] + self.bias[0])                    # (B, h)
        dh = (1.0 - h * h)[None] * self.w_theta[0][:, None, :]             # (3, B, h)
        for layer in range(1, self.n_layers):
            w_theta = self.w_theta[layer]
            stacked = tf.reshape(tf.concat([h[None], dh], 0), (4 * batch, self.hidden))
            rows = tf.reshape(stacked @ self.w_hidden[layer - 1], (4, batch, self.hidden))
            h = tf.tanh(rows[0] + z @ w_theta + self.bias[layer])
            dh = (1.0 - h * h)[None] * (rows[1:] + w_theta[:, None, :])
        # One product for value and tangents, laid out as (B, 4, n_wl).
        stacked = tf.concat([h[:, None], tf.transpose(dh, (1, 0, 2))], 1)
        rows = tf.reshape(tf.reshape(stacked, (4 * batch, self.hidden)) @ self.w_out,
                          (batch, 4, self.w_out.shape[1]))
        return rows[:, 0] + self.bias_out, rows[:, 1:]

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
        arrays.update(sample_wavelengths=self.sample_wavelengths.numpy(),
                      theta_mean=self.theta_mean.numpy(), theta_scale=self.theta_scale.numpy())
        return arrays

    @classmethod
    def from_arrays(cls, arrays):
        """The model that `to_arrays` described. Raises KeyError where an array is missing."""
        n_layers = sum(name.startswith("w_theta_") for name in arrays)
        model = cls(arrays["sample_wavelengths"], arrays["theta_mean"], arrays["theta_scale"],
                    hidden=arrays["w_out"].shape[0], n_layers=n_layers)
        for variable in model.variables:
            variable.assign(arrays[variable.name.split(":")[0]])
        return model


def initial_ln_ext_curve(wavelengths):
    """The extinction curve that training starts from: ln R (n_wl,) at wavelengths (n_wl,) nm."""
    return np.log(EXT_CURVE_NORM * (np.asarray(wavelengths) / EXT_CURVE_PIVOT_NM)
                  ** EXT_CURVE_SLOPE)


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
        chol = np.linalg.cholesky(precisions)                              # P = L L^T
        ln_norm = (np.log(weights) + 0.5 * np.linalg.slogdet(precisions)[1]
                   - 0.5 * N_LABELS * np.log(2.0 * np.pi))
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
        self.whiten, self.whiten_shift = (tf.constant(flat, tf.float32),
                                          tf.constant(shift, tf.float32))

    def _terms(self, z):
        white = tf.reshape(z @ self.whiten + self.whiten_shift, (-1, len(self.weights), N_LABELS))
        return white, self.ln_norm - 0.5 * tf.reduce_sum(white * white, -1)      # (B, K)

    def ln_density_z(self, z):
        """ln p(z) (B,), per unit of z."""
        return tf.reduce_logsumexp(self._terms(z)[1], -1)

    def ln_density(self, z):
        """ln p(theta) (B,), per kK dex dex."""
        return self.ln_density_z(z) + self.ln_jacobian

    def value_gradient_hessian(self, z):
        """-ln p(z) (B,), its gradient (B, 3) and a positive definite bound of its Hessian (B, 3, 3).

        The bound is the responsibility-weighted mean of the components' precisions: the true
        Hessian less a positive semi-definite term, so a step with it cannot overshoot.
        """
        white, terms = self._terms(z)
        ln_p = tf.reduce_logsumexp(terms, -1)
        resp = tf.exp(terms - ln_p[:, None])                               # (B, K)
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
        return {"prior_weights": self.weights, "prior_means": self.means_np,
                "prior_covariances": self.covariances, "prior_theta_scale": self.theta_scale,
                "prior_ln_floor": np.float64(self.ln_prior_floor)}

    @classmethod
    def from_arrays(cls, arrays):
        """The prior that `to_arrays` described. Raises KeyError where an array is missing."""
        return cls(arrays["prior_weights"], arrays["prior_means"], arrays["prior_covariances"],
                   arrays["prior_theta_scale"], float(arrays["prior_ln_floor"]))


def fit_prior(theta, theta_mean, theta_scale, n_components=16, seed=0):
    """Fit a `MixturePrior` to labels theta (N, 3) in (kK, dex, dex). Seeded, so repeatable."""
    from sklearn.mixture import GaussianMixture

    z = (np.asarray(theta, "f8") - theta_mean) / theta_scale
    mixture = GaussianMixture(min(n_components, max(1, len(z) // 50)), reg_covar=1e-3,
                              random_state=seed, n_init=1, max_iter=300).fit(z)
    ln_density = mixture.score_samples(z) - np.log(theta_scale).sum()
    return MixturePrior(mixture.weights_, mixture.means_, mixture.covariances_, theta_scale,
                        np.quantile(ln_density, 0.001))


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
        return self._model.flux(z, tf.cast(xi, tf.float32), tf.cast(E, tf.float32),
                                tf.math.log(tf.cast(plx, tf.float32)))

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
    """Let TensorFlow use n CPU threads (0: all cores). Call before anything is computed."""
    tf.config.threading.set_intra_op_parallelism_threads(n)
    tf.config.threading.set_inter_op_parallelism_threads(1 if n == 1 else 0)


# ------------------------------------------------------------------ how well labels are recovered


GIANT_LOGG = 3.5


def robust_width(x):
    """1.4826 times the median absolute deviation: the standard deviation, if x is Gaussian."""
    return float(1.4826 * np.median(np.abs(x - np.median(x))))


def accuracy(est, err, label, label_err):
    """How labels (N, 3) in (kK, dex, dex) are recovered by est (N, >=3) with errors err.

    Returns {group: {"n": stars, parameter: {"offset", "scatter", "pull_width", "frac_gt3"}}} for
    all stars, giants (log g < 3.5) and dwarfs, with Teff in K; stars without a finite estimate
    are counted in {"stars", "finite"} only. Offset: median of estimate - label; scatter: robust
    width of it; pull: divided by both errors in quadrature.
    """
    est, err = np.asarray(est)[:, :N_LABELS], np.asarray(err)[:, :N_LABELS]
    finite = np.isfinite(est).all(1) & np.isfinite(err).all(1)
    residual = (est - label) * np.array([1e3, 1.0, 1.0])
    pull = (est - label) / np.hypot(err, label_err)
    giant = label[:, 2] < GIANT_LOGG
    out = {"stars": len(est), "finite": int(finite.sum())}
    for group, rows in (("all", finite), ("giants", finite & giant), ("dwarfs", finite & ~giant)):
        out[group] = {"n": int(rows.sum())}
        for k, name in enumerate(LABEL_NAMES if rows.any() else ()):
            out[group][name] = {
                "offset": float(np.median(residual[rows, k])),
                "scatter": robust_width(residual[rows, k]),
                "pull_width": robust_width(pull[rows, k]),
                "frac_gt3": float(np.mean(np.abs(pull[rows, k]) > 3)),
            }
    return out


def format_accuracy(scores):
    """The table of `accuracy` as text."""
    lines = [f"{scores['stars']} stars, {scores['finite']} with finite parameters",
             f"{'group':8s} {'n':>7s}  {'':7s} {'offset':>8s} {'scatter':>8s} {'pull':>6s} {'>3':>6s}"]
    for group in ("all", "giants", "dwarfs"):
        for name in LABEL_NAMES:
            if name in scores[group]:
                s, unit = scores[group][name], " (K)" if name == "Teff" else ""
                lines.append(f"{group:8s} {scores[group]['n']:7d}  {name + unit:9s}"
                             f"{s['offset']:8.3f} {s['scatter']:8.3f} {s['pull_width']:6.2f} "
                             f"{s['frac_gt3']:6.3f}")
    return "\n".join(lines)
