"""What is minimised for every star, and its derivatives, in TensorFlow.

    phi(u) = -ln posterior = misfit - ln |det S| + type(z, E) + xi^2 / 2 - ln E
             + (plx - plx_obs)^2 / 2 sigma^2

with misfit = (nu + n) / 2 ln(1 + chi^2 / nu) (Student-t over n used fluxes),
chi^2 = |S (y - mu(u))|^2, y the observed ln fluxes, mu = F(z) - E R(xi) + 2 ln plx, and the
whitening S of the noise model, evaluated at one place and held. type(z, E) is what is known of the
star's type beside the fluxes: the mixture prior (`MixtureTerm`), or in training the star's label
and the reddening of a dust map (`LabelTerm`). The term -ln E is the Jacobian of a flat prior in
E > 0: phi is the density per unit of ln E, whose mode lies inside the allowed range also for stars
without dust (close to the posterior mean of E), where a density per unit of E peaks on the edge.

Arrays are (coordinate, star): "structure of arrays". `data` is a batch of `StarSolver.batch`.
"""

from typing import NamedTuple

import numpy as np

from fitting.algebra import student_misfit
from pipeline.quiet_tensorflow import tf


class TypeTerm(NamedTuple):
    """type(z, E) of B stars and its derivatives: value (B,), in z (K, B) and (B, K, K), and the
    slope and curvature in E (B,), or zeros."""

    value: tf.Tensor
    gradient: tf.Tensor
    hessian: tf.Tensor
    slope_ext: tf.Tensor
    curvature_ext: tf.Tensor


class MixtureTerm:
    """The mixture prior: -ln p(z)."""

    def __init__(self, prior):
        self.prior = prior

    def value(self, z, ext, data):
        """type(z, E) (..., B) at z (K, ..., B), E (..., B)."""
        flat = tf.transpose(tf.reshape(z, (z.shape[0], -1)))
        return -tf.reshape(self.prior.ln_density_z(flat), tf.shape(ext))

    def derivatives(self, z, ext, data):
        """`TypeTerm` at z (K, B), E (B,)."""
        value, gradient, hessian = self.prior.value_gradient_hessian(tf.transpose(z))
        zero = tf.zeros_like(ext)
        return TypeTerm(value, tf.transpose(gradient), hessian, zero, zero)

    @staticmethod
    def tensors(data, rows):
        """What a batch must hold of the stars `rows` for this term."""
        return {}


class LabelTerm:
    """A star's own label and reddening, with Gaussian errors."""

    def __init__(self, flux_model):
        self.flux_model = flux_model

    def value(self, z, ext, data):
        """type(z, E) (..., B) at z (K, ..., B), E (..., B)."""
        known, ivar = data["z"], data["z_ivar"]
        if ext.shape.rank > 1:
            known, ivar = known[:, None], ivar[:, None]
        off, off_ext = z - known, ext - data["ext"]
        return 0.5 * (tf.reduce_sum(ivar * off * off, 0) + data["ext_ivar"] * off_ext * off_ext)

    def derivatives(self, z, ext, data):
        """`TypeTerm` at z (K, B), E (B,)."""
        return TypeTerm(
            self.value(z, ext, data),
            data["z_ivar"] * (z - data["z"]),
            tf.linalg.diag(tf.transpose(data["z_ivar"])),
            data["ext_ivar"] * (ext - data["ext"]),
            data["ext_ivar"],
        )

    def tensors(self, data, rows):
        """What a batch must hold of the stars `rows` for this term."""
        z = self.flux_model.standardise(data.theta[rows]).numpy()
        z_err = data.theta_err[rows] / self.flux_model.theta_scale.numpy()
        z, z_ivar = gaussian_prior(z, z_err)
        ext, ext_ivar = gaussian_prior(data.extinction[rows], data.extinction_err[rows])
        return {"z": z.T, "z_ivar": z_ivar.T, "ext": ext, "ext_ivar": ext_ivar}


def gaussian_prior(value, err):
    """(value, inverse variance) with weight 0 where the value is missing or the error infinite."""
    value, err = np.asarray(value, "f8"), np.asarray(err, "f8")
    good = np.isfinite(value) & (err > 0)
    ivar = np.where(good, 1.0 / np.where(good, err, 1.0) ** 2, 0.0)
    return np.where(good, value, 0.0).astype("f4"), ivar.astype("f4")


class Point(NamedTuple):
    """The objective of B stars at u (n, B): phi (B,), gradient (n, B), Gauss-Newton hessian
    (n, n, B), chi2 (B,), and the Gram matrix (n + 1, n + 1, B) of the whitened columns there: how
    ln flux changes with each coordinate, and the residual. All float32 but for the hessian, which
    has the precision of the Gram matrix that the point was made of."""

    u: tf.Tensor
    phi: tf.Tensor
    gradient: tf.Tensor
    hessian: tf.Tensor
    chi2: tf.Tensor
    gram: tf.Tensor


class Objective:
    """The objective of stars under a model: `model` a StellarModel, `term` a type term."""

    def __init__(self, model, term):
        self.model, self.term, self.at = model, term, model.coordinates

    def whitening(self, u, data, general=False):
        """The `noise.Whitening` of the noise at u (n, B)."""
        return self.model.noise.whitening(
            tf.transpose(u[self.at.z]),
            tf.exp(u[self.at.ln_ext]),
            data["rel_err"],
            data["used"],
            data["features"],
            general,
            data.get("noise_tables"),
        )

    def evaluate(self, u, data, whitening, precision=tf.float32):
        """`Point` at u (n, B), after the best ln plx was put in, its hessian with a precision.

        The brightness of a star is known a million times better than its type and dust one by one:
        in float32, the Gram matrix loses these, which a step can do without and errors cannot. Its
        columns have the digits, so it is enough to multiply them in float64.
        """
        gram = whitening.products(self._columns(u, data), precision)
        return self._point(u, gram, data, whitening.ln_det)

    def linearised(self, point, u, data, ln_det):
        """`Point` at u (n, B) after the best ln plx was put in, if ln flux were linear in z, and
        R in tanh xi, from `point` on: by the Gram matrix of that alone.

        The whitened columns at u are linear in those at the point, so that their Gram matrix is
        T^T G T; E, ln plx, the priors and the Student-t weight are as they are.
        """
        at, n = self.at, len(self.at)
        moved = u - point.u
        grown = tf.exp(moved[at.ln_ext])
        before, after = tf.tanh(point.u[at.xi]), tf.tanh(u[at.xi])
        slope = 1.0 / (1.0 - before * before)
        bent = grown * slope * (after - before)  # of the column of xi in that of ln E
        steeper = grown * slope * (1.0 - after * after)

        def transformed(rows):  # (n + 1, n + 1, B) -> T^T rows
            xi, ext = rows[at.xi], rows[at.ln_ext]
            residual = rows[n] - bent * xi - (grown - 1.0) * ext
            residual -= tf.reduce_sum(moved[at.z, None] * rows[at.z], 0)
            residual -= moved[at.ln_plx] * rows[at.ln_plx]
            rest = [steeper * xi, grown * ext + bent * xi, rows[at.ln_plx], residual]
            return tf.concat([rows[at.z], tf.stack(rest)], 0)

        gram = transformed(tf.transpose(transformed(point.gram), (1, 0, 2)))
        return self._point(u, gram, data, ln_det)

    def _point(self, u, gram, data, ln_det):
        """`Point` of the Gram matrix (n + 1, n + 1, B) of the whitened columns at u (n, B)."""
        n, at = len(self.at), self.at
        whole, gram = gram, tf.cast(gram, tf.float32)
        best, phi, gradient, weight, prior, chi2 = self._from_gram(u, gram, data)
        hessian = tf.cast(weight, whole.dtype) * whole[:n, :n] + tf.cast(prior, whole.dtype)
        residual = gram[:, n] - (best[at.ln_plx] - u[at.ln_plx]) * gram[:, at.ln_plx]
        residual = tf.concat([residual[:n], chi2[None]], 0)
        gram = tf.concat([gram[:n], residual[None, :]], 0)
        gram = tf.concat([gram[:, :n], residual[:, None]], 1)
        return Point(best, phi - ln_det, gradient, hessian, chi2, gram)

    def values(self, u, data, whitening):
        """phi (k, B), but for ln |det S|, at points u (k, n, B), with the best ln plx put in."""
        at = self.at
        gram = self.brightness_gram(self.residuals(u, data), whitening)
        delta, chi2 = self.best_ln_plx(u[:, at.ln_plx], gram, data)
        u = tf.transpose(u, (1, 0, 2))
        u = tf.concat([u[: at.ln_plx], (u[at.ln_plx] + delta)[None]], 0)
        return self.phi(u, chi2, self.term.value(u[at.z], tf.exp(u[at.ln_ext]), data), data)

    def residuals(self, u, data):
        """Observed less predicted ln fluxes (k, B, n_wl) at points u (k, n, B)."""
        at = self.at
        flat = tf.reshape(tf.transpose(u, (1, 0, 2)), (len(at), -1))
        ln_flux = self.model.flux.ln_flux(tf.transpose(flat[at.z]))
        curve, _ = self.model.flux.ext_curve(flat[at.xi])
        model = ln_flux - tf.exp(flat[at.ln_ext])[:, None] * curve + 2.0 * flat[at.ln_plx][:, None]
        return data["value"] - tf.reshape(model, (u.shape[0], -1, model.shape[1]))

    @staticmethod
    def brightness_gram(residual, whitening):
        """Products (2, 2, k, B) of the whitened column of ln plx and residuals (k, B, n_wl)."""
        columns = tf.concat([2.0 * tf.ones_like(residual[:1]), residual], 0)  # (1 + k, B, n_wl)
        white = tf.transpose(whitening.of(tf.transpose(columns, (1, 0, 2))), (1, 0, 2))
        jj, rr = tf.reduce_sum(white[:1] ** 2, 2), tf.reduce_sum(white[1:] ** 2, 2)
        jr = tf.reduce_sum(white[:1] * white[1:], 2)
        return tf.stack([tf.stack([jj + 0.0 * jr, jr]), tf.stack([jr, rr])])

    def phi(self, u, chi2, known, data):
        """phi (..., B) but for ln |det S| at u (n, ..., B); known (..., B): the type term there."""
        xi, ln_ext, ln_plx = u[self.at.xi], u[self.at.ln_ext], u[self.at.ln_plx]
        misfit = student_misfit(chi2, tf.reduce_sum(data["used"], 1), self.model.noise.nu)
        off = tf.exp(ln_plx) - data["plx"]
        return misfit + known + 0.5 * xi * xi - ln_ext + 0.5 * data["plx_ivar"] * off * off

    def _columns(self, u, data):
        """How ln flux changes with each coordinate, and the residual, at u (n, B): (B, n + 1,
        n_wl)."""
        at = self.at
        ln_flux, dz = self.model.flux.ln_flux_and_jacobian(tf.transpose(u[at.z]))
        curve, dln_curve = self.model.flux.ext_curve(u[at.xi])
        dimming = tf.exp(u[at.ln_ext])[:, None] * curve  # (B, n_wl)
        residual = data["value"] - ln_flux + dimming - 2.0 * u[at.ln_plx][:, None]
        rest = tf.stack([-dimming * dln_curve, -dimming, 2.0 * tf.ones_like(dimming), residual], 1)
        return tf.concat([dz, rest], 1)

    def _from_gram(self, u, gram, data):
        """What follows from the Gram matrix (n + 1, n + 1, B) of the whitened columns at u (n, B).

        ln flux is linear in ln plx, so its optimum for given other coordinates follows by scalar
        Newton steps (with the parallax). Returns u (n, B), phi (B,) but for the determinant,
        gradient (n, B), the weight (B,) of the Gram matrix in the Hessian, what the priors add to
        it (n, n, B), chi2 (B,).
        """
        at, n = self.at, len(self.at)
        delta, chi2 = self.best_ln_plx(u[at.ln_plx], gram[at.ln_plx :, at.ln_plx :], data)
        u = tf.concat([u[: at.ln_plx], (u[at.ln_plx] + delta)[None]], 0)
        n_used, nu = tf.reduce_sum(data["used"], 1), self.model.noise.nu
        weight = (nu + n_used) / (nu + chi2)
        gradient = -weight * (gram[:n, n] - delta * gram[:n, at.ln_plx])
        known = self.term.derivatives(u[at.z], tf.exp(u[at.ln_ext]), data)
        phi = self.phi(u, chi2, known.value, data)
        gradient, prior = self._add_priors(u, gradient, weight * gram[:n, :n], known, data)
        return u, phi, gradient, weight, prior, chi2

    def best_ln_plx(self, ln_plx, gram, data):
        """The change of ln plx (..., B) that minimises phi, the other coordinates held, and chi^2
        there. gram (2, 2, ..., B): of the whitened ln plx column and the residual."""
        n, nu = tf.reduce_sum(data["used"], 1), self.model.noise.nu
        low, high = self.at.lower[self.at.ln_plx], self.at.upper[self.at.ln_plx]
        weight, delta = tf.ones_like(ln_plx), tf.zeros_like(ln_plx)
        for _ in range(2):  # the weight of the Student-t tails follows chi^2
            delta = tf.zeros_like(ln_plx)
            for _ in range(3):
                plx = tf.exp(ln_plx + delta)
                prior_slope = data["plx_ivar"] * plx * (plx - data["plx"])
                slope = weight * (gram[0, 0] * delta - gram[0, 1]) + prior_slope
                curvature = (
                    weight * gram[0, 0]
                    + data["plx_ivar"] * plx * plx
                    + tf.maximum(prior_slope, 0.0)
                    + 1e-6
                )
                delta -= tf.clip_by_value(slope / curvature, -1.0, 1.0)
            delta = tf.clip_by_value(delta, low - ln_plx, high - ln_plx)
            chi2 = tf.maximum(gram[1, 1] - 2.0 * delta * gram[0, 1] + delta**2 * gram[0, 0], 0.0)
            weight = (nu + n) / (nu + chi2)
        return delta, chi2

    def _add_priors(self, u, gradient, hessian, known, data):
        """The gradient with the priors, and what these add to the Gauss-Newton hessian.

        known: `TypeTerm` at u (n, B).
        """
        at = self.at
        xi, ext, plx = u[at.xi], tf.exp(u[at.ln_ext]), tf.exp(u[at.ln_plx])
        # E enters as exp(u): the curvature in u is E^2 phi_EE + E phi_E. Gauss-Newton has the
        # first part; the second is the slope, 1 at the optimum. Likewise for xi with E.
        g_ext = ext * known.slope_ext
        slope_ext = gradient[at.ln_ext] + g_ext
        slope_plx = data["plx_ivar"] * plx * (plx - data["plx"])
        h_ext = known.curvature_ext * ext * ext + tf.maximum(slope_ext, 0.0)
        h_plx = data["plx_ivar"] * plx * plx + tf.maximum(slope_plx, 0.0)
        h_xi_ext = self._bounded_cross(hessian, gradient[at.xi], h_ext)
        gradient += tf.concat([known.gradient, xi[None], (g_ext - 1.0)[None], slope_plx[None]], 0)
        one, zero = tf.ones_like(xi), tf.zeros_like(xi)
        rest = [[one, h_xi_ext, zero], [h_xi_ext, h_ext, zero], [zero, zero, h_plx]]
        rest = tf.stack([tf.stack(row) for row in rest])  # of xi, ln E, ln plx: (3, 3, B)
        k, n_rest = at.n_labels, len(at) - at.n_labels
        h_z = tf.pad(tf.transpose(known.hessian, (1, 2, 0)), ((0, n_rest), (0, n_rest), (0, 0)))
        return gradient, h_z + tf.pad(rest, ((k, 0), (k, 0), (0, 0)))

    def _bounded_cross(self, hessian, slope_xi, h_ext):
        """The xi-ln E term beyond Gauss-Newton, held where the 2 x 2 block stays positive."""
        xi, ln_ext = self.at.xi, self.at.ln_ext
        limit = 0.9 * tf.sqrt((hessian[xi, xi] + 1.0) * (hessian[ln_ext, ln_ext] + h_ext))
        cross = hessian[xi, ln_ext]
        return tf.clip_by_value(cross + slope_xi, -limit, limit) - tf.clip_by_value(
            cross, -limit, limit
        )
