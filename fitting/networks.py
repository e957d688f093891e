"""Small networks that are averaged, on what is observed of stars: TensorFlow."""

import itertools

import numpy as np

from pipeline.quiet_tensorflow import tf

INPUT_LIMIT = 6.0  # standardised inputs are bent to this range
MIN_SCALE = 0.05  # of an input
START_LN_SIGMA = -1.5
LN_SIGMA_LIMITS = (-5.0, 2.0)  # of the standardised values


class Networks(tf.Module):
    """Small networks alike, with outputs (n_networks, B, n_out).

    Args:
        inputs (N, p): of training stars, which set the standardisation; inputs that are the same
            for all of them are not used; NaN is nothing to show.
        n_out: outputs of each. masks (n_networks, p): which inputs each network sees. hidden: units
            of their layers. name: of the arrays. seed: of their weights.
    """

    def __init__(self, inputs, n_out, masks, hidden, name, seed=0):
        super().__init__(name=f"{name}_network")
        inputs = np.asarray(inputs, "f8")
        seen, count = np.isfinite(inputs), np.isfinite(inputs).sum(0).clip(1)
        mean = np.where(seen, inputs, 0).sum(0) / count
        scale = np.sqrt((np.where(seen, inputs - mean, 0) ** 2).sum(0) / count)
        scale = np.where(scale > 1e-6, np.maximum(scale, MIN_SCALE), np.inf)
        self.prefix = name
        self.mean, self.scale = tf.constant(mean, tf.float32), tf.constant(scale, tf.float32)
        self.masks = tf.constant(np.asarray(masks)[:, None], tf.float32)
        rng = np.random.default_rng([seed, *name.encode()])
        sizes = (inputs.shape[1], *hidden, n_out)
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
        x = INPUT_LIMIT * tf.tanh(tf.where(tf.math.is_nan(x), 0.0, x) / INPUT_LIMIT)
        h = x[None] * self.masks
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = tf.matmul(tf.nn.relu(h) if k else h, weight) + bias
        return h

    def to_arrays(self):
        """All that defines the networks, as {name: array}."""
        arrays = {v.name.split(":")[0]: v.numpy() for v in self.variables}
        return arrays | {
            f"{self.prefix}_mean": self.mean.numpy(),
            f"{self.prefix}_scale": self.scale.numpy(),
            f"{self.prefix}_masks": self.masks.numpy()[:, 0],
        }

    @classmethod
    def from_arrays(cls, arrays, name):
        """The networks that `to_arrays` described; None where there are none of the name."""
        if f"{name}_mean" not in arrays:
            return None
        layers = sum(key.startswith(f"{name}_w") for key in arrays)
        shapes = [arrays[f"{name}_w{k}"].shape for k in range(layers)]
        hidden = [shape[2] for shape in shapes[:-1]]
        nothing = np.zeros((1, shapes[0][1]))
        networks = cls(nothing, shapes[-1][2], arrays[f"{name}_masks"], hidden, name)
        networks.mean, networks.scale = (
            tf.constant(arrays[f"{name}_{key}"], tf.float32) for key in ("mean", "scale")
        )
        for variable in networks.variables:
            variable.assign(arrays[variable.name.split(":")[0]])
        return networks


class Regression(Networks):
    """Networks that give values and the ln of their errors: n_out is twice the number of values."""

    def outputs(self, inputs):
        """Standardised values (n_networks, B, k) and ln of their errors, from inputs (B, p)."""
        out = self.forward(inputs)
        k = out.shape[2] // 2
        return out[:, :, :k], tf.clip_by_value(out[:, :, k:] + START_LN_SIGMA, *LN_SIGMA_LIMITS)

    def estimate(self, inputs):
        """Values (B, k) and their errors (B, k), which grow where the networks disagree."""
        z, ln_sigma = self.outputs(inputs)
        variance = tf.math.reduce_mean(tf.exp(2.0 * ln_sigma), 0) + tf.math.reduce_variance(z, 0)
        return tf.reduce_mean(z, 0), tf.sqrt(variance)


class Classification(Networks):
    """Networks that tell n_out kinds of objects apart."""

    def probabilities(self, inputs):
        """Probability of each kind (B, n_out), from inputs (B, p)."""
        return tf.reduce_mean(tf.nn.softmax(self.forward(inputs)), 0)
