"""The prior of stellar types: a Gaussian mixture fitted to the training labels."""

import numpy as np

from pipeline.quiet_tensorflow import tf


class MixturePrior(tf.Module):
    """A Gaussian mixture over the standardised stellar type z.

    Args:
        weights (M,), means (M, K), covariances (M, K, K): in z, of M components and K labels.
        theta_scale (K,): turns a density in z into one per unit of the labels.
        ln_prior_floor: the 0.1% quantile of `ln_density` over the training stars (a flag's limit).
    """

    def __init__(self, weights, means, covariances, theta_scale, ln_prior_floor=-np.inf):
        super().__init__(name="prior")
        precisions = np.linalg.inv(np.asarray(covariances, "f8"))
        chol = np.linalg.cholesky(precisions)  # P = L L^T
        ln_norm = (
            np.log(weights)
            + 0.5 * np.linalg.slogdet(precisions)[1]
            - 0.5 * len(theta_scale) * np.log(2.0 * np.pi)
        )
        self.weights = np.asarray(weights, "f8")
        self.means_np, self.covariances = np.asarray(means, "f8"), np.asarray(covariances, "f8")
        self.theta_scale = np.asarray(theta_scale, "f8")
        self.n_labels = len(self.theta_scale)
        self.ln_prior_floor = float(ln_prior_floor)
        self.means = tf.constant(means, tf.float32)
        self.precisions = tf.constant(precisions, tf.float32)
        self.precisions_flat = tf.reshape(self.precisions, (len(weights), -1))
        self.precision_chol = tf.constant(chol, tf.float32)
        self.ln_norm = tf.constant(ln_norm, tf.float32)
        self.ln_jacobian = float(-np.log(self.theta_scale).sum())
        # (x, 1) @ whiten gives L_k^T (z - mu_k) for all components in one product.
        flat = chol.transpose(1, 0, 2).reshape(self.n_labels, -1)
        shift = -np.einsum("ki,kij->kj", self.means_np, chol).reshape(-1)
        self.whiten, self.whiten_shift = (
            tf.constant(flat, tf.float32),
            tf.constant(shift, tf.float32),
        )

    def _terms(self, z):
        white = tf.reshape(
            z @ self.whiten + self.whiten_shift, (-1, len(self.weights), self.n_labels)
        )
        return white, self.ln_norm - 0.5 * tf.reduce_sum(white * white, -1)  # (B, M)

    def ln_density_z(self, z):
        """ln p(z) (B,), per unit of z."""
        return tf.reduce_logsumexp(self._terms(z)[1], -1)

    def ln_density(self, z):
        """ln p(theta) (B,), per unit of the labels."""
        return self.ln_density_z(z) + self.ln_jacobian

    def value_gradient_hessian(self, z):
        """-ln p(z) (B,), its gradient (B, K) and a bound of its Hessian (B, K, K).

        The bound is the mean of the components' precisions, weighted by their responsibilities: the
        true Hessian less a positive semi-definite term, so a step with it cannot overshoot.
        """
        white, terms = self._terms(z)
        ln_p = tf.reduce_logsumexp(terms, -1)
        resp = tf.exp(terms - ln_p[:, None])  # (B, M)
        gradient = tf.einsum("bk,bkj,kij->bi", resp, white, self.precision_chol)
        hessian = tf.reshape(resp @ self.precisions_flat, (-1, self.n_labels, self.n_labels))
        return -ln_p, gradient, hessian

    def sample(self, n, rng, widen=1.0):
        """n draws of z (n, K) float64; each component's covariance times widen^2."""
        component = rng.choice(len(self.weights), n, p=self.weights / self.weights.sum())
        chol = np.linalg.cholesky(self.covariances)[component]
        noise = rng.normal(size=(n, self.n_labels))
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
    """Fit a `MixturePrior` to labels theta (N, K). Seeded, so repeatable.

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
    covariances = mixture.covariances_ + PRIOR_SMOOTHING**2 * np.eye(len(theta_scale))
    prior = MixturePrior(mixture.weights_, mixture.means_, covariances, theta_scale)
    prior.ln_prior_floor = float(np.quantile(prior.ln_density(z.astype("f4")).numpy(), 0.001))
    return prior
