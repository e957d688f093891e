"""The direct estimate: labels straight from the observed fluxes, by small networks."""

import itertools

import numpy as np

from pipeline.quiet_tensorflow import tf

DIRECT_LIMIT = 6.0  # standardised inputs are bent to this range
DIRECT_MIN_SCALE = 0.05  # of an input
DIRECT_START_LN_SIGMA = -1.5
DIRECT_LN_SIGMA = (-5.0, 2.0)  # limits, of the standardised labels


def direct_inputs(observed, parallax, parallax_err, n_xp):
    """What the direct estimate sees of stars, float32, NaN where a star has nothing to show.

    observed: `LnFlux` of N stars; parallax, parallax_err (N,): mas, NaN where there is none; n_xp:
    number of XP fluxes, which come first. Columns (N, p):
    the ln fluxes relative to the brightness; the error level; the ln flux at 1 kpc and the ln
    relative error of the parallax, a parallax below its error taken as that; and what is there:
    the share of XP fluxes, each photometric band, the parallax.
    """
    used = observed.used > 0
    bright, level = observed.features.T
    parallax, err = np.asarray(parallax, "f8"), np.asarray(parallax_err, "f8")
    known = np.isfinite(parallax) & (err > 0)
    err = np.where(known, err, np.nan)
    floored = np.fmax(parallax, err) + 0.0 * err
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
    """The labels straight from the observed fluxes: small networks that are averaged.

    It knows neither dust nor distance, and its errors are not those of the forward model: together
    they are better than either (`fitting.posterior.pool`).

    Args:
        inputs (N, p): `direct_inputs` of training stars, which set the standardisation; inputs that
            are the same for all of them are not used.
        n_labels: K. n_networks, hidden: number of networks, units of their layers. seed: of their
            weights.
    """

    def __init__(self, inputs, n_labels, n_networks, hidden, seed=0):
        super().__init__(name="direct_network")
        inputs = np.asarray(inputs, "f8")
        seen, count = np.isfinite(inputs), np.isfinite(inputs).sum(0).clip(1)
        mean = np.where(seen, inputs, 0).sum(0) / count
        scale = np.sqrt((np.where(seen, inputs - mean, 0) ** 2).sum(0) / count)
        scale = np.where(scale > 1e-6, np.maximum(scale, DIRECT_MIN_SCALE), np.inf)
        self.mean, self.scale = tf.constant(mean, tf.float32), tf.constant(scale, tf.float32)
        rng = np.random.default_rng([seed, 2])
        self.n_labels = n_labels
        sizes = (inputs.shape[1], *hidden, 2 * n_labels)
        self.weights, self.biases = [], []
        for k, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
            size = np.sqrt(2 / n_in) if k < len(hidden) else 0.1 / np.sqrt(n_in)
            values = size * rng.normal(size=(n_networks, n_in, n_out))
            self.weights.append(tf.Variable(values, dtype=tf.float32, name=f"direct_w{k}"))
            self.biases.append(tf.Variable(tf.zeros((n_networks, 1, n_out)), name=f"direct_b{k}"))

    def outputs(self, inputs):
        """Standardised labels (n_networks, B, K) and ln of their errors, from inputs (B, p)."""
        x = (inputs - self.mean) / self.scale
        x = DIRECT_LIMIT * tf.tanh(tf.where(tf.math.is_nan(x), 0.0, x) / DIRECT_LIMIT)
        h = tf.tile(x[None], (self.weights[0].shape[0], 1, 1))
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = tf.matmul(tf.nn.relu(h) if k else h, weight) + bias
        ln_sigma = tf.clip_by_value(
            h[:, :, self.n_labels :] + DIRECT_START_LN_SIGMA, *DIRECT_LN_SIGMA
        )
        return h[:, :, : self.n_labels], ln_sigma

    def estimate(self, inputs):
        """z (B, K) and its error (B, K), which grows where the networks disagree."""
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
        network = cls(
            np.zeros((1, shapes[0][1])),
            shapes[-1][2] // 2,
            shapes[0][0],
            [s[2] for s in shapes[:-1]],
        )
        network.mean, network.scale = (
            tf.constant(arrays[f"direct_{name}"], tf.float32) for name in ("mean", "scale")
        )
        for variable in network.variables:
            variable.assign(arrays[variable.name.split(":")[0]])
        return network
