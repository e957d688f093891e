"""Small networks that are averaged, on what is observed of stars: TensorFlow."""

import itertools

import numpy as np

from pipeline.quiet_tensorflow import tf

INPUT_LIMIT = 6.0  # standardised inputs are bent to this range
MIN_SCALE = 0.05  # of an input
LEAST_COMPONENT = 0.02  # of standardised inputs: components that vary by less are not used
START_LN_SIGMA = -1.5
LN_SIGMA_LIMITS = (-5.0, 2.0)  # of the standardised values


class Networks(tf.Module):
    """Small networks alike, with outputs (n_networks, B, n_out).

    The first c inputs, a spectrum, may be shown as their c principal components, too, each scaled
    to unit variance: what tells stars apart is in differences between neighbours, which are small
    against what all have in common, and gradients would find them last.

    Args:
        inputs (N, p): of training stars, which set the standardisation and the components; inputs
            that are the same for all of them are not used; NaN is nothing to show.
        n_out: outputs of each. masks (n_networks, p + c): which inputs, and which components, each
            network sees. hidden: units of their layers. name: of the arrays. seed: of their
            weights.
    """

    def __init__(self, inputs, n_out, masks, hidden, name, seed=0):
        super().__init__(name=f"{name}_network")
        inputs, masks = np.asarray(inputs, "f8"), np.asarray(masks, bool)
        seen, count = np.isfinite(inputs), np.isfinite(inputs).sum(0).clip(1)
        mean = np.where(seen, inputs, 0).sum(0) / count
        scale = np.sqrt((np.where(seen, inputs - mean, 0) ** 2).sum(0) / count)
        scale = np.where(scale > 1e-6, np.maximum(scale, MIN_SCALE), np.inf)
        self.prefix, self.masks = name, masks
        self.mean, self.scale = tf.constant(mean, tf.float32), tf.constant(scale, tf.float32)
        n_components = masks.shape[1] - inputs.shape[1]
        spectra = _bent(np, np.nan_to_num((inputs - mean) / scale)[:, :n_components])
        self.components = tf.constant(principal_components(spectra), tf.float32)
        # Networks that see the same, together: one product for all of them.
        alike, of_group = np.unique(masks, axis=0, return_inverse=True)
        self._groups = [
            (np.flatnonzero(mask), np.flatnonzero(of_group == k)) for k, mask in enumerate(alike)
        ]
        most = int(masks.sum(1).max())  # rows of the first weights: those who see less use fewer
        rng = np.random.default_rng([seed, *name.encode()])
        sizes = (most, *hidden, n_out)
        self.weights, self.biases = [], []
        for k, (n_in, n_next) in enumerate(itertools.pairwise(sizes)):
            size = np.sqrt(2 / n_in) if k < len(hidden) else 0.1 / np.sqrt(n_in)
            values = size * rng.normal(size=(len(masks), n_in, n_next))
            self.weights.append(tf.Variable(values, dtype=tf.float32, name=f"{name}_w{k}"))
            zeros = tf.zeros((len(masks), 1, n_next))
            self.biases.append(tf.Variable(zeros, name=f"{name}_b{k}"))

    def forward(self, inputs):
        """Outputs (n_networks, B, n_out) of inputs (B, p)."""
        x = (inputs - self.mean) / self.scale
        x = _bent(tf, tf.where(tf.math.is_nan(x), 0.0, x))
        components = _bent(tf, x[:, : self.components.shape[0]] @ self.components)
        x = tf.concat([x, components], 1)
        first, layer = tf.unstack(tf.identity(self.weights[0])), [None] * len(self.masks)
        for places, which in self._groups:
            weight = tf.concat([first[k][: len(places)] for k in which], 1)
            units = tf.split(tf.gather(x, places, axis=1) @ weight, len(which), 1)
            for k, unit in zip(which, units, strict=True):
                layer[k] = unit
        h = tf.stack(layer) + self.biases[0]
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            h = tf.matmul(tf.nn.relu(h), weight) + bias
        return h

    def to_arrays(self):
        """All that defines the networks, as {name: array}."""
        arrays = {v.name.split(":")[0]: v.numpy() for v in self.variables}
        return arrays | {
            f"{self.prefix}_mean": self.mean.numpy(),
            f"{self.prefix}_scale": self.scale.numpy(),
            f"{self.prefix}_masks": self.masks,
            f"{self.prefix}_components": self.components.numpy(),
        }

    @classmethod
    def from_arrays(cls, arrays, name):
        """The networks that `to_arrays` described; None where there are none of the name."""
        if f"{name}_mean" not in arrays:
            return None
        layers = sum(key.startswith(f"{name}_w") for key in arrays)
        shapes = [arrays[f"{name}_w{k}"].shape for k in range(layers)]
        hidden = [shape[2] for shape in shapes[:-1]]
        nothing = np.zeros((1, len(arrays[f"{name}_mean"])))
        networks = cls(nothing, shapes[-1][2], arrays[f"{name}_masks"], hidden, name)
        for key in ("mean", "scale", "components"):
            setattr(networks, key, tf.constant(arrays[f"{name}_{key}"], tf.float32))
        for variable in networks.variables:
            variable.assign(arrays[variable.name.split(":")[0]])
        return networks


def _bent(library, x):
    """x within INPUT_LIMIT: as it is where it is small. library: NumPy or TensorFlow."""
    return INPUT_LIMIT * library.tanh(x / INPUT_LIMIT)


def principal_components(x):
    """(p, p): columns that make of values (N, p) of zero mean their principal components of unit
    variance; 0 for those that vary by less than LEAST_COMPONENT."""
    variance, axes = np.linalg.eigh(x.T @ x / max(len(x), 1))
    size = np.sqrt(np.maximum(variance, 0.0))
    return axes * np.where(size > LEAST_COMPONENT, 1.0 / np.maximum(size, LEAST_COMPONENT), 0.0)


class Regression(Networks):
    """Networks that give values and the ln of their errors: n_out is twice the number of values."""

    def outputs(self, inputs):
        """Standardised values (n_networks, B, k) and ln of their errors, from inputs (B, p)."""
        out = self.forward(inputs)
        k = out.shape[2] // 2
        return out[:, :, :k], tf.clip_by_value(out[:, :, k:] + START_LN_SIGMA, *LN_SIGMA_LIMITS)

    def estimate(self, inputs):
        """Values (B, k) and their errors (B, k), which grow where the networks disagree; networks
        count by what they say of their errors."""
        z, ln_sigma = self.outputs(inputs)
        share = tf.nn.softmax(-2.0 * ln_sigma, 0)
        mean = tf.reduce_sum(share * z, 0)
        variance = tf.reduce_sum(share * (tf.exp(2.0 * ln_sigma) + (z - mean) ** 2), 0)
        return mean, tf.sqrt(variance)


class Classification(Networks):
    """Networks that tell n_out kinds of objects apart."""

    def probabilities(self, inputs):
        """Probability of each kind (B, n_out), from inputs (B, p)."""
        return tf.reduce_mean(tf.nn.softmax(self.forward(inputs)), 0)
