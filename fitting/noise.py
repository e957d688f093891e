"""The noise model: the precision of ln flux as a function of the star."""

from typing import NamedTuple

import numpy as np

from pipeline.quiet_tensorflow import tf

N_STAR_FEATURES = 3  # beside the type: brightness, error level, extinction
FEATURE_LIMIT = 3.0  # standardised features are bent to this range: no wild extrapolation
START_NU = 30.0  # degrees of freedom of the residuals: tails heavier than Gaussian
OUTPUT_STEP = 0.1  # scale of the network's part of W: the rest is one matrix for all stars
LN_DIAGONAL_LIMIT = 4.0
SCALE_FLOOR = 1e-3  # of a channel's scatter in ln flux
START_SCATTER = 0.02  # of ln flux, before training


class Whitening(NamedTuple):
    """The whitening S of B stars, S^T S the precision of their used channels, in pieces, so that no
    matrix is written twice for a star.

    triangle (B, n, n): W^T without its diagonal; diagonal, scale (B, n): that of W, and of S = P W
    diag(scale) with P the projection that drops rows (B, n), where they are 0, and axes (B, k, n),
    orthonormal or 0. ln_det (B,): ln |det S|.
    """

    triangle: tf.Tensor
    diagonal: tf.Tensor
    scale: tf.Tensor
    rows: tf.Tensor
    axes: tf.Tensor
    ln_det: tf.Tensor

    def of(self, spectra):
        """Whitened spectra (B, m, n), of spectra (B, m, n)."""
        white = self._unprojected(spectra)
        return white - tf.matmul(tf.matmul(white, self.axes, transpose_b=True), self.axes)

    def products(self, spectra, dtype=tf.float32):
        """Products (m, m, B) of whitened spectra (B, m, n) with one another, summed in dtype."""
        white, m = tf.cast(self._unprojected(spectra), dtype), spectra.shape[1]
        both = tf.concat([white, tf.cast(self.axes, dtype)], 1)
        products = tf.transpose(tf.matmul(white, both, transpose_b=True), (1, 2, 0))
        along = products[:, m:]
        return products[:, :m] - tf.reduce_sum(along[:, None] * along[None], 2)

    def _unprojected(self, spectra):
        scaled = spectra * self.scale[:, None]
        white = tf.matmul(scaled, self.triangle) + scaled * self.diagonal[:, None]
        return white * self.rows[:, None]

    def transposed(self):
        """S^T (B, n, n)."""
        return self.of(tf.eye(self.scale.shape[1], batch_shape=tf.shape(self.scale)[:1]))


class NoiseModel(tf.Module):
    """The precision of ln flux as a function of the star.

        C^-1 = diag(1/s) W^T W diag(1/s),   s^2 = k^2 [exp(2 l0) + (exp(l1) sigma)^2 + 1e-6]

    sigma: the star's own relative errors, so that reported errors larger than usual widen the
    covariance; l0, l1: one number a channel. W: upper triangular, a base matrix plus what a small
    network (two layers with swish) makes of the type, the brightness, the error level and E. The
    level k and the degrees of freedom nu of the Student-t tails are left to stars that the rest was
    not trained on.

    W diag(1/s) is the `Whitening`. As W is upper triangular, channels missing at the blue end (BP)
    drop out exactly with their rows; others are projected out (`whitening`).

    Args:
        n_wl: number of wavelengths, n_xp: of those of XP, which come first. n_labels: of the
            type. feature_mean, feature_scale (2,): of `LnFlux.features`.
        hidden: units a layer. seed: of the initial weights.
    """

    def __init__(self, n_wl, n_xp, n_labels, feature_mean, feature_scale, hidden=32, seed=0):
        super().__init__(name="noise_model")
        rng = np.random.default_rng([seed, 1])
        self.n_wl, self.n_xp, self.n_labels = n_wl, n_xp, n_labels
        self.n_out = n_wl * (n_wl + 1) // 2
        self.feature_mean = tf.constant(feature_mean, tf.float32)
        self.feature_scale = tf.constant(feature_scale, tf.float32)

        def variable(values, name):
            return tf.Variable(values, dtype=tf.float32, name=f"noise_{name}")

        def weight(n_in, n_out, size, name):
            return variable(rng.normal(0, size / np.sqrt(n_in), (n_in, n_out)), name)

        self.w1 = weight(n_labels + N_STAR_FEATURES, hidden, 1, "w1")
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

    def _hidden(self, z, features, ext):
        """Units (B, hidden) of the last hidden layer."""
        x = (features - self.feature_mean) / self.feature_scale
        x = tf.concat([z, x, (tf.math.log(ext + 0.1) + 1.0)[:, None]], 1)
        x = FEATURE_LIMIT * tf.tanh(x / FEATURE_LIMIT)
        h = tf.nn.swish(x @ self.w1 + self.b1)
        return h + tf.nn.swish(h @ self.w2 + self.b2)

    def tables(self):
        """What W^T and the logarithm of its diagonal are linear in the last hidden layer, and 1,
        by: (hidden + 1, n_wl n_wl), zero beside the triangle, and (hidden + 1, n_wl).

        One product with matrices that hold zeros beside the triangle: twice the sums, but no pieces
        to put together for every star. Made once for many batches: it takes as long as a batch.
        """
        n = self.n_wl
        entries = tf.concat([OUTPUT_STEP * self.w_out, self.base[None]], 0)
        full = tf.transpose(upper_triangle(entries, n), (0, 2, 1))
        diagonal = tf.linalg.diag_part(full)
        return tf.reshape(tf.linalg.set_diag(full, tf.zeros_like(diagonal)), (-1, n * n)), diagonal

    def _triangle(self, z, features, ext, tables):
        """W^T (B, n_wl, n_wl) without its diagonal, and the logarithm of that (B, n_wl)."""
        flat, diagonal = self.tables() if tables is None else tables
        h = self._hidden(z, features, ext)
        h = tf.concat([h, tf.ones_like(h[:, :1])], 1)
        ln_diagonal = LN_DIAGONAL_LIMIT * tf.tanh(h @ diagonal / LN_DIAGONAL_LIMIT)
        return tf.reshape(h @ flat, (-1, self.n_wl, self.n_wl)), ln_diagonal

    def whitening(self, z, ext, rel_err, used, features, general=False, tables=None):
        """The `Whitening` of B stars.

        z (B, K), ext (B,): the type and dust at which the noise is evaluated. rel_err, used
        (B, n_wl), features (B, 2): see `LnFlux`. Missing channels are marginalised exactly and
        whitened to 0: BP by dropping its rows of W, the photometric bands by projecting theirs out.
        `general`: project out every missing channel (any pattern; slower). tables: of `tables`.
        """
        triangle, ln_diagonal = self._triangle(z, features, ext, tables)
        ln_s = 0.5 * tf.math.log(
            tf.exp(2.0 * self.ln_scatter)
            + (tf.exp(self.ln_err_factor) * rel_err) ** 2
            + SCALE_FLOOR**2
        )
        ln_s += self.ln_level
        n_xp, all_rows = self.n_xp, tf.ones_like(used)
        rows = tf.concat([used[:, :n_xp], all_rows[:, n_xp:]], 1)
        rows = all_rows if general else rows
        bands, missing = _last_rows(triangle, tf.exp(ln_diagonal), n_xp), 1.0 - used[:, n_xp:]
        bands *= tf.exp(-ln_s[:, n_xp:, None]) * rows[:, None]
        ln_det = tf.reduce_sum((ln_diagonal - ln_s) * rows, 1)
        axes, ln_norm = _missing_axes(bands, tf.zeros_like(missing) if general else missing)
        scale = tf.exp(-ln_s)
        whole = Whitening(triangle, tf.exp(ln_diagonal), scale, rows, axes, ln_det - ln_norm)
        if general:
            return self._project_all(whole, used)
        return whole._replace(scale=scale * used)

    def _project_all(self, whole, used):
        """The `Whitening`, all channels missing in `used` (B, n_wl) projected out one by one."""

        def project(k, s, ln_det):
            return k + 1, *_project_out(
                s, ln_det, tf.gather(s, k, axis=1), 1.0 - tf.gather(used, k, axis=1)
            )

        start = (0, whole.transposed(), whole.ln_det)
        _, s, ln_det = tf.while_loop(lambda k, *_: k < self.n_wl, project, start)
        none = tf.zeros_like(used)
        return whole._replace(triangle=s, diagonal=none, scale=used, ln_det=ln_det)

    def to_arrays(self):
        """All that defines the noise model, as {name: array}."""
        arrays = {v.name.split(":")[0]: v.numpy() for v in self.variables}
        return arrays | {
            "noise_n_xp": np.int64(self.n_xp),
            "noise_feature_mean": self.feature_mean.numpy(),
            "noise_feature_scale": self.feature_scale.numpy(),
        }

    @classmethod
    def from_arrays(cls, arrays):
        """The model that `to_arrays` described. Raises KeyError where an array is missing."""
        n_labels = len(arrays["noise_w1"]) - N_STAR_FEATURES
        mean, scale = arrays["noise_feature_mean"], arrays["noise_feature_scale"]
        n_wl, hidden = len(arrays["noise_ln_scatter"]), len(arrays["noise_b1"])
        noise = cls(n_wl, int(arrays["noise_n_xp"]), n_labels, mean, scale, hidden)
        for variable in noise.variables:
            variable.assign(arrays[variable.name.split(":")[0]])
        return noise


def upper_triangle(entries, n):
    """Matrices (B, n, n), upper triangular, from entries (B, n (n + 1) / 2), rows one after
    another. The gradient is written out: it is a selection, too, and not a sum over places."""
    rows, columns = np.triu_indices(n)
    places = rows * n + columns
    sources = np.full(n * n, len(places))  # a zero, but for
    sources[places] = np.arange(len(places))

    @tf.custom_gradient
    def fill(entries):
        padded = tf.pad(entries, ((0, 0), (0, 1)))

        def gradient(upstream):
            return tf.gather(tf.reshape(upstream, (-1, n * n)), places, axis=1)

        return tf.reshape(tf.gather(padded, sources, axis=1), (-1, n, n)), gradient

    return fill(entries)


def _last_rows(triangle, diagonal, first):
    """Rows (B, n - first, n) of a matrix from row `first` on, of its lower triangle (B, n, n) and
    its diagonal (B, n)."""
    return triangle[:, first:] + tf.linalg.diag(diagonal)[:, first:]


def _missing_axes(columns, missing):
    """Orthonormal axes (B, k, n) of the whitened columns (B, k, n) of missing channels, zero where
    missing (B, k) is 0, and ln of the volume (B,) that those columns span: Gram-Schmidt, so that
    the whole matrix is projected at once."""
    axes, ln_volume = [], 0.0
    for k in range(columns.shape[1]):
        column = columns[:, k]
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
    s -= tf.linalg.matvec(s, axis)[:, :, None] * axis[:, None]
    return s, ln_det - 0.5 * tf.math.log(norm2)
