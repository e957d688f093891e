"""Small linear systems written out, and nuisances marginalised: TensorFlow, many stars at once."""

from pipeline.quiet_tensorflow import tf


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
