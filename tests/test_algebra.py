"""Small linear systems, marginalised nuisances and the misfit against dense counterparts."""

import numpy as np
import pytest
import tensorflow as tf
from model_oracle import slope
from scipy import stats

from fitting.algebra import (
    cholesky_small,
    eigen_small,
    marginal_chi2,
    solve_small,
    student_misfit,
)

N_WL = 66


@pytest.mark.parametrize("k", [2, 6, 8])
def test_small_cholesky_solves_a_batch_of_systems(k):
    rng = np.random.default_rng(0)
    root = rng.normal(size=(40, k, k + 3))
    matrices, b = root @ root.transpose(0, 2, 1), rng.normal(size=(40, k))
    factor = cholesky_small(tf.constant(matrices.transpose(1, 2, 0)))
    found = solve_small(factor, tf.constant(b.T)).numpy().T
    np.testing.assert_allclose(found, np.linalg.solve(matrices, b[:, :, None])[:, :, 0], rtol=1e-7)


def test_small_cholesky_of_a_singular_matrix_is_finite_and_leaves_its_neighbour():
    matrices = np.stack([np.zeros((6, 6)), np.diag(np.arange(1.0, 7))])
    factor = cholesky_small(tf.constant(matrices.transpose(1, 2, 0)), floor=1e-6)
    found = solve_small(factor, tf.ones((6, 2), tf.float64)).numpy()
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:, 1], 1 / np.arange(1.0, 7))


def dense_chi2(residual, columns):
    """chi^2 (n,) of residual (n, m) under 1 + U^T U, and its ln det; U = columns (k, m)."""
    covariance = np.eye(residual.shape[1]) + columns.T @ columns
    solved = np.linalg.solve(covariance, residual.T)
    return (residual.T * solved).sum(0), np.linalg.slogdet(covariance)[1]


@pytest.fixture(scope="module")
def nuisances():
    """Whitened residuals (B, n, m) and columns (B, k, m). One column is grey and 300 times the
    noise, with residuals along it of some 240 sigma; another, as of dust, is nearly parallel."""
    rng = np.random.default_rng(11)
    residual, columns = rng.normal(size=(4, 3, N_WL)), rng.normal(0, 0.7, (4, 6, N_WL))
    grey = 1 + 0.2 * rng.normal(size=(4, N_WL))
    columns[:, 1] = 300 * grey / np.linalg.norm(grey, axis=1)[:, None]
    columns[:, 2] = columns[:, 1] / 3 + rng.normal(size=(4, N_WL))
    residual += rng.normal(0, 0.8, (4, 3, 1)) * columns[:, 1][:, None]
    return residual, columns


def test_marginal_chi2_equals_the_dense_one_in_float32_with_a_column_of_300_sigma(nuisances):
    residual, columns = nuisances
    chi2, amplitude, inverse, ln_det = (
        x.numpy() for x in marginal_chi2(*(tf.constant(x, tf.float32) for x in nuisances))
    )
    for i in range(len(residual)):
        expected, expected_ln_det = dense_chi2(residual[i], columns[i])
        np.testing.assert_allclose(chi2[i], expected, rtol=1e-4)
        np.testing.assert_allclose(ln_det[i], expected_ln_det, atol=1e-3)
        m_inverse = np.linalg.inv(np.eye(6) + columns[i] @ columns[i].T)
        np.testing.assert_allclose(inverse[i], m_inverse, atol=1e-5)
        np.testing.assert_allclose(amplitude[i], residual[i] @ columns[i].T @ m_inverse, atol=2e-5)


@pytest.mark.parametrize("part", ["chi2", "ln_det", "amplitude", "inverse"])
def test_gradients_of_marginal_chi2_equal_differences_of_the_dense_one(nuisances, part):
    residual, columns = (x[0] for x in nuisances)
    weight = np.random.default_rng(1).normal(size=(3, 6))

    def dense(r, u):
        m_inverse = np.linalg.inv(np.eye(6) + u @ u.T)
        if part == "amplitude":
            return (weight * (r @ u.T @ m_inverse)).sum()
        if part == "inverse":
            return (weight * m_inverse[:3]).sum()
        chi2, ln_det = dense_chi2(r, u)
        return (weight[:, 0] * chi2).sum() if part == "chi2" else ln_det

    variables = [tf.Variable(x[None], dtype=tf.float32) for x in (residual, columns)]
    with tf.GradientTape() as tape:
        chi2, amplitude, inverse, ln_det = marginal_chi2(*variables)
        loss = {
            "chi2": tf.reduce_sum(weight[:, 0].astype("f4") * chi2),
            "ln_det": tf.reduce_sum(ln_det),
            "amplitude": tf.reduce_sum(weight.astype("f4") * amplitude),
            "inverse": tf.reduce_sum(weight.astype("f4") * inverse[:, :3]),
        }[part]
    found = tape.gradient(loss, variables, unconnected_gradients="zero")
    by_residual = slope(lambda x: dense(x.reshape(3, N_WL), columns), residual.ravel(), 1e-5)
    by_columns = slope(lambda x: dense(residual, x.reshape(6, N_WL)), columns.ravel(), 1e-4)
    for gradient, expected in zip(found, (by_residual, by_columns), strict=True):
        np.testing.assert_allclose(
            gradient.numpy().ravel(), expected, atol=1e-4 + 1e-3 * np.abs(expected).max()
        )


def test_student_misfit_is_that_of_the_multivariate_t_distribution():
    n, x = 12, np.random.default_rng(0).normal(size=(5, 12)) * [[0], [0.3], [1], [3], [20]]
    for nu in (4.0, 30.0):
        density = stats.multivariate_t(np.zeros(n), np.eye(n), df=nu)
        expected = density.logpdf(np.zeros(n)) - density.logpdf(x)
        found = student_misfit(tf.constant((x * x).sum(1)), n, nu)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_student_misfit_becomes_half_chi2_for_many_degrees_of_freedom():
    chi2 = tf.constant([0.0, 1.0, 66.0, 400.0], tf.float64)
    np.testing.assert_allclose(student_misfit(chi2, 66.0, 1e9), chi2 / 2, rtol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 6, 7])
def test_eigenvectors_of_small_matrices_are_those_of_lapack(k):
    rng = np.random.default_rng(k)
    root = rng.normal(size=(300, k, k + 1)) * 10.0 ** rng.uniform(-3, 4, (300, k, 1))
    matrix = root @ root.transpose(0, 2, 1)
    matrix[0], matrix[1] = 0.0, np.eye(k)
    values, axes = (x.numpy() for x in eigen_small(tf.constant(matrix.transpose(1, 2, 0))))
    axes = axes.transpose(2, 0, 1)  # (300, axis, coordinate)
    np.testing.assert_allclose(
        axes @ axes.transpose(0, 2, 1), np.eye(k)[None].repeat(300, 0), atol=1e-12
    )
    again = axes.transpose(0, 2, 1) @ (values.T[:, :, None] * axes)
    largest = np.abs(matrix).max((1, 2), keepdims=True) + 1e-300
    np.testing.assert_allclose(again / largest, matrix / largest, atol=1e-12)
    expected = np.linalg.eigvalsh(matrix)
    np.testing.assert_allclose(
        np.sort(values.T, 1) / largest[:, :, 0], expected / largest[:, :, 0], atol=1e-12
    )


def test_eigenvectors_do_not_depend_on_the_neighbours():
    rng = np.random.default_rng(2)
    root = rng.normal(size=(5, 5, 64)) * 10.0 ** rng.uniform(-3, 4, (1, 5, 64))
    matrix = np.einsum("ijn,kjn->ikn", root, root)
    compiled = tf.function(eigen_small, jit_compile=True, autograph=False)
    whole = compiled(tf.constant(matrix))
    others = matrix * 1e6
    others[:, :, 7] = matrix[:, :, 7]
    for one, other in zip(whole, compiled(tf.constant(others)), strict=True):
        np.testing.assert_array_equal(one[..., 7], other[..., 7])
