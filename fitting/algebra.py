"""Small linear systems written out, and nuisances marginalised: TensorFlow, many stars at once."""

import numpy as np

from pipeline.quiet_tensorflow import tf

SWEEPS = 6  # of rotations: off the diagonal, 1e-12 is left at most


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


def eigen_small(matrix):
    """Eigenvalues (k, B), in no order, and eigenvectors (k, k, B), one a row, of symmetric matrices
    (k, k, B), k small: Jacobi's rotations, a fixed number of them, so that no matrix's answer
    depends on its neighbours. Disjoint pairs of rows are rotated at once, and change places as the
    players of a tournament do, so that all pairs meet in a sweep.
    """
    k, tiny = matrix.shape[0], np.finfo(matrix.dtype.as_numpy_dtype).tiny
    n = k + k % 2
    a = tf.pad(matrix, ((0, n - k), (0, n - k), (0, 0)))
    places = tf.constant(_tournament(n))

    def rotated(rows, cos, sin):
        even, odd = rows[::2], rows[1::2]
        pair = cos * even - sin * odd, sin * even + cos * odd
        return tf.reshape(tf.stack(pair, 1), tf.shape(rows))

    def turn(i, a, axes):
        diagonal = tf.stack([a[j, j] for j in range(n)])
        beside = tf.stack([a[j, j + 1] for j in range(0, n, 2)])
        apart = diagonal[1::2] - diagonal[::2]
        size = tf.abs(apart) + tf.sqrt(apart * apart + 4.0 * beside * beside) + tiny
        tan = 2.0 * tf.where(apart < 0, -beside, beside) / size
        cos = tf.math.rsqrt(1.0 + tan * tan)[:, None]
        sin = tan[:, None] * cos
        a = rotated(tf.transpose(rotated(a, cos, sin), (1, 0, 2)), cos, sin)
        a = tf.gather(tf.gather(a, places), places, axis=1)
        return i + 1, a, tf.gather(rotated(axes, cos, sin), places)

    axes = tf.eye(n, dtype=a.dtype)[:, :, None] * tf.ones_like(a)
    turns = SWEEPS * (n - 1)  # in a sweep, all come back to their places
    _, a, axes = tf.while_loop(lambda i, *_: i < turns, turn, (0, a, axes))
    return tf.stack([a[j, j] for j in range(k)]), axes[:k, :k]


def _tournament(n):
    """Who comes next to each of n places, of pairs (0, 1), (2, 3) ...: the first one stays."""
    order = np.arange(n)
    if n > 2:
        order[2::2] = [1, *range(2, n - 2, 2)]
        order[1::2] = [*range(3, n, 2), n - 2]
    return order


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
