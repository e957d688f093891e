"""The best parameters of every star under a model: batched Levenberg-Marquardt.

A star's six coordinates are u = (z (3), xi, ln E, ln plx), z the standardised stellar type. The
solver minimises

    phi(u) = -ln posterior = misfit - ln |det S| - ln p(z) + xi^2 / 2 - ln E
             + (plx - plx_obs)^2 / 2 sigma^2

with misfit = (nu + n) / 2 ln(1 + chi^2 / nu) (Student-t over n used fluxes),
chi^2 = |S (y - mu(u))|^2, y the observed ln fluxes, mu = F(z) - E R(xi) + 2 ln plx, and the
whitening S of the noise model, evaluated where a descent starts and held during it. The term -ln E
is the Jacobian of a flat prior in E > 0: phi is the density per unit of ln E, whose mode lies
inside the allowed range also for stars without dust (close to the posterior mean of E), where a
density per unit of E peaks on the edge. With labels (training), these and a dust map's reddening
enter as Gaussian priors, and the mixture prior p(z) does not.

Everything runs in TensorFlow, compiled, on batches of one fixed shape, so that the same code serves
a CPU and a GPU. Arrays inside are (coordinate, star): "structure of arrays".
"""

import dataclasses
import functools
import itertools
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

import xp_utils
from model import (
    cholesky_small,
    direct_inputs,
    ln_flux_data,
    solve_small,
    student_misfit,
)

N_PAR = 6
Z, XI, LN_E, LN_PLX = slice(0, 3), 3, 4, 5

# Bounds of the coordinates, and the largest step in each.
LOWER = np.array([-6, -6, -6, -3.5, -9.0, -9.0], "f4")
UPPER = np.array([6, 6, 6, 3.5, 2.75, 9.0], "f4")
STEP_BOX = np.array([1, 1, 1, 1, 1.5, 1], "f4")

START_DAMPING = 1e-4
DAMPING_FLOOR = 1e-3  # relative damping of a coordinate without curvature
CONVERGED_DECREASE = 1e-3  # of phi, predicted
FIRST_ITERATIONS = 6  # then the unfinished stars are pooled,
SECOND_ITERATIONS = 10  # and again, their noise evaluated anew
POOLED_ITERATIONS = 60

# Start search: templates are drawn from the prior, widened, and compared in ln flux.
N_TEMPLATES = 512
TEMPLATE_WIDENING = 1.4
TEMPLATE_MIN_NM = 442.0  # bluer, the flux of red stars is noise
TEMPLATE_N_PCA = 12
TEMPLATE_LN_FLUX_ERR = 0.04  # distance of a star to the nearest template, per channel
BESIDE_DIRECT = 1.0  # of z: templates of its family that are nearer to the direct estimate
# are not tried
START_EXT_RANGE = (0.02, 8.0)
START_MARGIN = 5.0  # a family this much worse (in chi^2) than the best is tried as well
USEFUL_PLX_ERR = 0.5  # of the parallax: with a larger error, all families are tried
POOR_CHI2 = 1.5  # a flux: with a worse fit, they are tried after all
TRIAL_ITERATIONS = 5  # then starts that are behind by more than TRIAL_MARGIN in phi end
TRIAL_MARGIN = 5.0
TRIAL_SAME_MODE = 0.3  # of z: starts closer than this to the star's best end as well
SAME_MODE = 0.1  # of z: solutions closer than this are one mode
LEAST_CURVATURE = 0.25  # of Gauss-Newton's: errors are at most twice as wide
N_FAMILIES = 7
FAMILY_LOGG = (2.55, 3.5, 4.15)  # bright giants | lower giants | subgiants | dwarfs
FAMILY_GIANT_FEH = -1.0  # dex: metal-poor | metal-rich giants
FAMILY_DWARF_TEFF = 5.2  # kK: cool | hot dwarfs


@dataclass
class StarData:
    """Observed stars: what the solver needs of each.

    flux, flux_err (N, 66) as `xp_utils.flux_vectors` makes them (error inf = not used); plx,
    plx_err (N,) mas, NaN where there is none. theta, theta_err (N, 3): labels as Gaussian priors.
    ext, ext_err (N,): a Gaussian prior on E (error inf = none). The last four: training only.
    """

    flux: np.ndarray
    flux_err: np.ndarray
    plx: np.ndarray
    plx_err: np.ndarray
    theta: np.ndarray | None = None
    theta_err: np.ndarray | None = None
    ext: np.ndarray | None = None
    ext_err: np.ndarray | None = None

    def __len__(self):
        return len(self.flux)

    @functools.cached_property
    def observed(self):
        """`model.LnFlux` of the stars, made once: the arrays are not to be changed afterwards."""
        return ln_flux_data(self.flux, self.flux_err)

    @property
    def useful_parallax(self):
        """Which stars have a parallax larger than twice its error (N,) bool."""
        measured = np.isfinite(self.plx) & (self.plx_err > 0)
        return measured & (self.plx_err < USEFUL_PLX_ERR * self.plx)

    def take(self, rows):
        """The same, of some rows (an index array or slice)."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return StarData(*(None if v is None else v[rows] for v in values))


@dataclass
class Solution:
    """Where the solver ended. u (N, 6); phi (N,); hessian (N, 6, 6) of phi in u; chi2 (N,);
    converged (N,) bool."""

    u: np.ndarray
    phi: np.ndarray
    hessian: np.ndarray
    chi2: np.ndarray
    converged: np.ndarray

    @classmethod
    def empty(cls, n):
        return cls(
            np.full((n, N_PAR), np.nan, "f4"),
            np.full(n, np.inf, "f4"),
            np.full((n, N_PAR, N_PAR), np.nan, "f4"),
            np.full(n, np.nan, "f4"),
            np.zeros(n, bool),
        )

    def put(self, rows, other, select=slice(None)):
        for name, value in vars(self).items():
            value[rows] = getattr(other, name)[select]


def gaussian_prior(value, err):
    """(value, inverse variance) with weight 0 where the value is missing or the error infinite."""
    value, err = np.asarray(value, "f8"), np.asarray(err, "f8")
    good = np.isfinite(value) & (err > 0)
    ivar = np.where(good, 1.0 / np.where(good, err, 1.0) ** 2, 0.0)
    return np.where(good, value, 0.0).astype("f4"), ivar.astype("f4")


def projectable(used):
    """Whether the missing channels of used (N, 66) bool are only BP or photometric bands, which
    the noise model drops fast; other patterns need its general way."""
    xp = used[:, : xp_utils.N_XP]
    first = np.where(xp.any(1), xp.argmax(1), xp_utils.N_XP)
    return (xp | (np.arange(xp_utils.N_XP) < first[:, None])).all(1)


class StarSolver:
    """Finds the maximum of the posterior of many stars.

    Args:
        model: `model.StellarModel`.
        labelled: labels (`StarData.theta`) and reddenings as Gaussian priors in the place of the
            mixture.
        batch_size: stars in a TensorFlow call (fixed; the last batch is padded).
        seed: of the templates of the start search.
    """

    def __init__(self, model, labelled=False, batch_size=256, seed=0):
        self.model, self.labelled, self.batch_size = model, labelled, batch_size
        self._starts = None if labelled else StartSearch(model, seed)
        self._minimise_tf = tf.function(self._minimise, jit_compile=True)
        self._curvature_tf = tf.function(self._curvature, jit_compile=True)
        self._values_tf = tf.function(self._values, jit_compile=True)
        if model.direct is not None:
            self._direct_tf = tf.function(model.direct.estimate, jit_compile=True)

    # ---------------------------------------------------------------- the objective, in TensorFlow

    def _evaluate(self, u, data, whitening, ln_det):
        """phi and its derivatives at u (6, B), after the best ln plx was put in.

        Returns u (6, B), phi (B,), gradient (6, B), hessian (6, 6, B), chi2 (B,).
        """
        white = self._whitened(u, data, whitening)
        gram = tf.transpose(tf.matmul(white, white, transpose_b=True), (1, 2, 0))  # (7, 7, B)
        u, phi, gradient, weight, prior, chi2 = self._from_gram(u, gram, data)
        return u, phi - ln_det, gradient, weight * gram[:N_PAR, :N_PAR] + prior, chi2

    def _curvature(self, u, data, general):
        """The whitening at u (6, B), and the Hessian of phi there (6, 6, B) float64.

        The brightness of a star is known a million times better than its type and dust one by one:
        in float32, the Gram matrix would lose these. Its columns have the digits, so it is enough
        to multiply them in float64.
        """
        whitening, _ = self.model.noise.whitening(
            tf.transpose(u[Z]),
            tf.exp(u[LN_E]),
            data["rel_err"],
            data["used"],
            data["features"],
            general,
        )
        white = tf.cast(self._whitened(u, data, whitening), tf.float64)
        gram = tf.transpose(tf.matmul(white, white, transpose_b=True), (1, 2, 0))
        _, _, _, weight, prior, _ = self._from_gram(u, tf.cast(gram, tf.float32), data)
        hessian = tf.cast(weight, tf.float64) * gram[:N_PAR, :N_PAR]
        return whitening, hessian + tf.cast(prior, tf.float64)

    def _whitened(self, u, data, whitening):
        """Whitened columns (B, 7, n_wl) at u (6, B): of the six coordinates, and the residual."""
        ln_flux, dz = self.model.flux.ln_flux_and_jacobian(tf.transpose(u[Z]))
        curve, dln_curve = self.model.flux.ext_curve(u[XI])
        dimming = tf.exp(u[LN_E])[:, None] * curve  # (B, n_wl)
        residual = data["value"] - ln_flux + dimming - 2.0 * u[LN_PLX][:, None]
        rest = tf.stack([-dimming * dln_curve, -dimming, 2.0 * tf.ones_like(dimming), residual], 1)
        return tf.matmul(tf.concat([dz, rest], 1), whitening, transpose_b=True)

    def _from_gram(self, u, gram, data):
        """What follows from the Gram matrix (7, 7, B) of the whitened columns at u (6, B).

        ln flux is linear in ln plx, so its optimum for given other coordinates follows by scalar
        Newton steps (with the parallax). Returns u (6, B), phi (B,) but for the determinant,
        gradient (6, B), the weight (B,) of the Gram matrix in the Hessian, what the priors add to
        it (6, 6, B), chi2 (B,).
        """
        delta, chi2 = self._best_ln_plx(u[LN_PLX], gram[LN_PLX:, LN_PLX:], data)
        u = tf.concat([u[:LN_PLX], (u[LN_PLX] + delta)[None]], 0)
        n, nu = tf.reduce_sum(data["used"], 1), self.model.noise.nu
        weight = (nu + n) / (nu + chi2)
        gradient = -weight * (gram[:N_PAR, N_PAR] - delta * gram[:N_PAR, LN_PLX])
        phi, gradient, prior = self._add_priors(
            u, student_misfit(chi2, n, nu), gradient, weight * gram[:N_PAR, :N_PAR], data
        )
        return u, phi, gradient, weight, prior, chi2

    def _best_ln_plx(self, ln_plx, gram, data):
        """The change of ln plx (B,) that minimises phi, the other coordinates held, and chi^2 (B,)
        there. gram (2, 2, B): of the whitened ln plx column and the residual."""
        n, nu = tf.reduce_sum(data["used"], 1), self.model.noise.nu
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
            delta = tf.clip_by_value(delta, LOWER[LN_PLX] - ln_plx, UPPER[LN_PLX] - ln_plx)
            chi2 = tf.maximum(gram[1, 1] - 2.0 * delta * gram[0, 1] + delta**2 * gram[0, 0], 0.0)
            weight = (nu + n) / (nu + chi2)
        return delta, chi2

    def _add_priors(self, u, phi, gradient, hessian, data):
        """phi and gradient with the priors, and what these add to the Gauss-Newton hessian."""
        z, xi, ext, plx = u[Z], u[XI], tf.exp(u[LN_E]), tf.exp(u[LN_PLX])
        if self.labelled:
            off = z - data["z"]
            p_z = tf.reduce_sum(0.5 * data["z_ivar"] * off * off, 0)
            g_z, h_z = data["z_ivar"] * off, tf.linalg.diag(tf.transpose(data["z_ivar"]))
            d_ext = ext - data["ext"]
            phi += 0.5 * data["ext_ivar"] * d_ext * d_ext
            g_ext = data["ext_ivar"] * ext * d_ext
            h_ext = data["ext_ivar"] * ext * ext
        else:
            p_z, g_z, h_z = self.model.prior.value_gradient_hessian(tf.transpose(z))
            g_z = tf.transpose(g_z)
            g_ext = h_ext = tf.zeros_like(ext)
        d_plx = plx - data["plx"]
        phi += p_z + 0.5 * xi * xi - u[LN_E] + 0.5 * data["plx_ivar"] * d_plx * d_plx
        # E enters as exp(u): the curvature in u is E^2 phi_EE + E phi_E. Gauss-Newton has the
        # first part; the second is the slope, 1 at the optimum. Likewise for xi with E.
        slope_ext = gradient[LN_E] + g_ext
        slope_plx = data["plx_ivar"] * plx * d_plx
        h_ext += tf.maximum(slope_ext, 0.0)
        h_plx = data["plx_ivar"] * plx * plx + tf.maximum(slope_plx, 0.0)
        h_xi_ext = self._bounded_cross(hessian, gradient[XI], h_ext)
        gradient += tf.concat([g_z, xi[None], (g_ext - 1.0)[None], slope_plx[None]], 0)
        zero = tf.zeros_like(xi)
        corner = tf.stack(
            [
                tf.stack([tf.ones_like(xi), h_xi_ext, zero]),
                tf.stack([h_xi_ext, h_ext, zero]),
                tf.stack([zero, zero, h_plx]),
            ]
        )  # (3, 3, B)
        h_z = tf.pad(tf.transpose(h_z, (1, 2, 0)), ((0, 3), (0, 3), (0, 0)))
        return phi, gradient, h_z + tf.pad(corner, ((3, 0), (3, 0), (0, 0)))

    @staticmethod
    def _bounded_cross(hessian, slope_xi, h_ext):
        """The xi-ln E term beyond Gauss-Newton, held where the 2 x 2 block stays positive."""
        limit = 0.9 * tf.sqrt((hessian[XI, XI] + 1.0) * (hessian[LN_E, LN_E] + h_ext))
        cross = hessian[XI, LN_E]
        return tf.clip_by_value(cross + slope_xi, -limit, limit) - tf.clip_by_value(
            cross, -limit, limit
        )

    # ---------------------------------------------------------------- the minimiser, in TensorFlow

    def _minimise(self, u, noise_at, data, iterations, general):
        """Levenberg-Marquardt from u (6, B), at most `iterations` trial steps, with the noise as
        it is at noise_at (6, B)."""
        whitening, ln_det = self.model.noise.whitening(
            tf.transpose(noise_at[Z]),
            tf.exp(noise_at[LN_E]),
            data["rel_err"],
            data["used"],
            data["features"],
            general,
        )
        u, phi, grad, hess, chi2 = self._evaluate(u, data, whitening, ln_det)
        damping = tf.fill(tf.shape(phi), START_DAMPING)
        done = tf.zeros_like(phi, tf.bool)

        def unfinished(i, u, phi, grad, hess, chi2, damping, done):
            return (i < iterations) & ~tf.reduce_all(done)

        def iterate(i, u, phi, grad, hess, chi2, damping, done):
            step, limited = _damped_step(grad, hess, damping)
            trial = tf.clip_by_value(u + step, LOWER[:, None], UPPER[:, None])
            moved = trial - u
            predicted = -tf.reduce_sum(
                moved * (grad + 0.5 * tf.reduce_sum(hess * moved[None], 1)), 0
            )
            new = self._evaluate(trial, data, whitening, ln_det)
            gain = (phi - new[1]) / tf.maximum(predicted, 1e-12)
            accept = (new[1] <= phi) & ~done
            small = (predicted < CONVERGED_DECREASE) & ~limited & ((damping < 0.1) | ~accept)
            u, phi, grad, hess, chi2 = (
                tf.where(accept, b, a) for a, b in zip((u, phi, grad, hess, chi2), new, strict=True)
            )
            damping = _next_damping(damping, gain, accept)
            return i + 1, u, phi, grad, hess, chi2, damping, done | small

        out = tf.while_loop(unfinished, iterate, (0, u, phi, grad, hess, chi2, damping, done))
        return out[1], out[2], out[4], out[5], out[7]

    def _values(self, u, data, whitening):
        """phi (k, B), up to a constant, at the points u (k, 6, B), with the best ln plx put in."""
        k, flat = u.shape[0], tf.reshape(tf.transpose(u, (1, 0, 2)), (N_PAR, -1))
        ln_flux = self.model.flux.ln_flux(tf.transpose(flat[Z]))
        curve, _ = self.model.flux.ext_curve(flat[XI])
        model = ln_flux - tf.exp(flat[LN_E])[:, None] * curve + 2.0 * flat[LN_PLX][:, None]
        residual = data["value"] - tf.reshape(model, (k, -1, model.shape[1]))
        columns = tf.concat([2.0 * tf.ones_like(residual[:1]), residual], 0)  # (1 + k, B, n_wl)
        white = tf.matmul(tf.transpose(columns, (1, 0, 2)), whitening, transpose_b=True)
        jj, rr = tf.reduce_sum(white[:, :1] ** 2, 2), tf.reduce_sum(white[:, 1:] ** 2, 2)
        jr = tf.reduce_sum(white[:, :1] * white[:, 1:], 2)
        phi = []
        for i in range(k):
            gram = tf.stack([tf.stack([jj[:, 0], jr[:, i]]), tf.stack([jr[:, i], rr[:, i]])])
            delta, chi2 = self._best_ln_plx(u[i, LN_PLX], gram, data)
            d_plx = tf.exp(u[i, LN_PLX] + delta) - data["plx"]
            misfit = student_misfit(chi2, tf.reduce_sum(data["used"], 1), self.model.noise.nu)
            phi.append(
                misfit
                - self.model.prior.ln_density_z(tf.transpose(u[i, Z]))
                + 0.5 * u[i, XI] ** 2
                - u[i, LN_E]
                + 0.5 * data["plx_ivar"] * d_plx**2
            )
        return tf.stack(phi)

    # ---------------------------------------------------------------- stars in, solutions out

    def batch(self, data, rows):
        """TensorFlow tensors of the stars `rows`, padded to `batch_size` with the last of them."""
        rows = rows[self._padding(len(rows))]
        out = dict(vars(data.observed.take(rows)))
        out["plx"], out["plx_ivar"] = gaussian_prior(data.plx[rows], data.plx_err[rows])
        if self.labelled:
            flux = self.model.flux
            mean, scale = flux.theta_mean.numpy(), flux.theta_scale.numpy()
            z, ivar = gaussian_prior(
                (data.theta[rows] - mean) / scale, data.theta_err[rows] / scale
            )
            out["z"], out["z_ivar"] = z.T, ivar.T
            out["ext"], out["ext_ivar"] = gaussian_prior(data.ext[rows], data.ext_err[rows])
        return {name: tf.constant(value, tf.float32) for name, value in out.items()}

    def minimise(self, data, u0, iterations=FIRST_ITERATIONS, rows=None, noise_at=None):
        """At most `iterations` steps from the starts u0 (M, 6) of the stars `rows` (M,), default
        all, with the noise as it is at noise_at (M, 6), default the starts. Returns a `Solution` of
        M rows."""
        rows = np.arange(len(data)) if rows is None else rows
        noise_at = u0 if noise_at is None else noise_at
        solution = Solution.empty(len(rows))
        for part, general in self._parts(data, rows):
            solution.put(
                part,
                self._minimise_batch(
                    data, rows[part], u0[part], noise_at[part], iterations, general
                ),
            )
        return solution

    def _parts(self, data, rows):
        """Places in `rows` of at most `batch_size` stars at a time, and whether their missing
        channels need the noise model's general way."""
        fast = projectable(data.observed.used[rows] > 0)
        for general in (False, True):
            chosen = np.flatnonzero(fast != general)
            for start in range(0, len(chosen), self.batch_size):
                yield chosen[start : start + self.batch_size], general

    def _padding(self, n):
        """Places 0..n-1, the last one repeated up to `batch_size`."""
        return np.minimum(np.arange(self.batch_size), n - 1)

    def _minimise_batch(self, data, rows, u0, noise_at, iterations, general):
        m = len(rows)
        pad = self._padding(m)
        u0, noise_at = (tf.constant(u[pad].T, tf.float32) for u in (u0, noise_at))
        out = self._minimise_tf(
            u0, noise_at, self.batch(data, rows), tf.constant(iterations), general
        )
        u, phi, hessian, chi2, done = (x.numpy() for x in out)
        return Solution(u.T[:m], phi[:m], hessian.transpose(2, 0, 1)[:m], chi2[:m], done[:m])

    def objective(self, data, u):
        """phi (N,) at u (N, 6), after the best ln plx was put in."""
        return self.minimise(data, u, iterations=0).phi

    def solve(self, data, z_direct=None):
        """Start search, descents from the starts worth it, and the best two modes found.

        Every start gets a few iterations; those still close to a star's best, but not where it is,
        are finished, with the noise model evaluated anew where they are. Stars whose best fit is
        poor are searched again from all families.
        Returns (best, second): `Solution`s of N stars; the second is the best one of another
        family of stars, NaN (phi inf) where none was near. Their hessian is that of `curvature`
        over a sigma. z_direct (N, 3): the types that `direct` gives, if known.
        """
        if z_direct is None and self.model.direct is not None:
            z_direct, _ = self.direct(data)
        best, second = self._search(data, z_direct)
        poor = np.flatnonzero(
            (best.chi2 > POOR_CHI2 * data.observed.used.sum(1)) & data.useful_parallax
        )  # the others did so already
        if len(poor):
            again = self._search(
                data.take(poor), None if z_direct is None else z_direct[poor], every_family=True
            )
            better = again[0].phi <= best.phi[poor]
            for former, new in zip((best, second), again, strict=True):
                former.put(poor[better], new, better)
        best.hessian = self.curvature(data, best, over_a_sigma=True)
        second.hessian = self.curvature(data, second, over_a_sigma=True)
        return best, second

    def _search(self, data, z_direct, every_family=False):
        """The best two modes (`Solution`s) from the starts worth it, or those of all families."""
        starts, tried = self._starts.find(data, self.batch_size, z_direct, every_family)
        rank, star = np.nonzero(tried.T)  # starts of one kind together: they take alike long
        trial = self.minimise(data, starts[star, rank], TRIAL_ITERATIONS, rows=star)
        go_on = self._worth_finishing(trial, star, len(data))
        finished = self.finish(data, trial.u[go_on], rows=star[go_on])
        return self._modes(finished, star[go_on], len(data))

    def direct(self, data):
        """The model's direct estimate of the stars: z (N, 3) and its error (N, 3)."""
        out = np.empty((2, len(data), 3), "f4")
        for k in range(0, len(data), self.batch_size):
            rows = np.arange(k, min(k + self.batch_size, len(data)))
            pad = rows[self._padding(len(rows))]
            inputs = direct_inputs(data.observed.take(pad), data.plx[pad], data.plx_err[pad])
            out[:, rows] = [x.numpy()[: len(rows)] for x in self._direct_tf(inputs)]
        return out

    def curvature(self, data, solution, over_a_sigma=False):
        """The Hessian (N, 6, 6) float64 of phi at `Solution`s of all stars, NaN where there is
        none, with the noise as it is there.

        At a point, the curvature of a learned model may be that of a ripple, and a posterior that
        leans to one side has its mean, and most of the truths, on its flatter one. So over_a_sigma:
        along each principal axis of the covariance (of all coordinates but ln plx, which is at its
        best everywhere), the rise of phi over a sigma on the flatter side takes the place of the
        curvature where it is smaller, down to LEAST_CURVATURE of it. Errors only grow by this.
        """
        out = np.full((len(data), N_PAR, N_PAR), np.nan)
        solved = np.flatnonzero(np.isfinite(solution.u).all(1))
        for part, general in self._parts(data, solved):
            rows = solved[part]
            batch, u = self.batch(data, rows), solution.u[rows[self._padding(len(rows))]]
            whitening, hessian = self._curvature_tf(tf.constant(u.T, tf.float32), batch, general)
            hessian = hessian.numpy().transpose(2, 0, 1)
            if over_a_sigma:
                curvature, axes = _principal_axes(hessian)
                points = _a_sigma_away(u, curvature, axes)  # (11, 6, B)
                phi = self._values_tf(tf.constant(points), batch, whitening).numpy()
                rise = np.minimum(phi[1::2], phi[2::2]) - phi[0]  # 1/2 for a parabola
                less = np.clip(2 * rise.T, LEAST_CURVATURE, 1.0) - 1.0
                hessian[:, :LN_PLX, :LN_PLX] += (
                    axes * (less * curvature)[:, None]
                ) @ axes.transpose(0, 2, 1)
            out[rows] = hessian[: len(rows)]
        return out

    @staticmethod
    def _worth_finishing(trial, star, n):
        """Which of the descents `trial` of each of n stars to finish (an index array): the lowest,
        and those not far above it, unless they are in its mode."""
        order = np.lexsort((trial.phi, star))
        stars, first = np.unique(star[order], return_index=True)
        lowest = np.zeros(n, int)
        lowest[stars] = order[first]
        lowest = lowest[star]  # of each descent
        away = np.abs(trial.u[:, Z] - trial.u[lowest, Z]).max(1)
        near = trial.phi <= trial.phi[lowest] + TRIAL_MARGIN
        return np.flatnonzero((lowest == np.arange(len(star))) | (near & (away > TRIAL_SAME_MODE)))

    def _modes(self, finished, star, n):
        """The lowest of the `finished` descents of each of n stars, and that of another family.

        Descents that met in one mode are told from two modes by their distance: near the limit of
        two families, the family alone says nothing.
        """
        best, second = Solution.empty(n), Solution.empty(n)
        order = np.lexsort((finished.phi, star))
        stars, first = np.unique(star[order], return_index=True)
        best.put(stars, finished, order[first])
        z, z_best = finished.u[:, Z], best.u[star, Z]
        other = (self._family(z) != self._family(z_best)) & (np.abs(z - z_best).max(1) > SAME_MODE)
        order = order[(other & np.isfinite(finished.phi))[order]]
        stars, first = np.unique(star[order], return_index=True)
        second.put(stars, finished, order[first])
        return best, second

    def _family(self, z):
        flux = self.model.flux
        return family_of(z * flux.theta_scale.numpy() + flux.theta_mean.numpy())

    def finish(self, data, u0, rows=None):
        """Descent from u0 (M, 6) of the stars `rows` (M,), default all: all of them first, then
        those unfinished in a pool, twice. (In a batch, the slowest star holds up the others.)"""
        rows = np.arange(len(data)) if rows is None else rows
        solution = self.minimise(data, u0, FIRST_ITERATIONS, rows=rows)
        for iterations in (SECOND_ITERATIONS, POOLED_ITERATIONS):
            left = np.flatnonzero(~solution.converged)
            if len(left):
                solution.put(
                    left, self.minimise(data, solution.u[left], iterations, rows=rows[left])
                )
        return solution


def _principal_axes(hessian):
    """Curvatures (N, 5) and axes (N, 5, 5) of all coordinates but ln plx, at its best everywhere,
    of Hessians (N, 6, 6). Where one is not positive definite, curvature and axes are 0."""
    free, plx = hessian[:, :LN_PLX, :LN_PLX], hessian[:, LN_PLX, :LN_PLX]
    with np.errstate(divide="ignore", invalid="ignore"):
        known = plx[:, :, None] * plx[:, None] / hessian[:, LN_PLX, LN_PLX, None, None]
    finite = np.isfinite(free - known).all((1, 2))
    curvature, axes = np.linalg.eigh(np.where(finite[:, None, None], free - known, 0.0))
    proper = curvature[:, :1] > 0
    return np.where(proper, curvature, 0.0), np.where(proper[:, :, None], axes, 0.0)


def _a_sigma_away(u, curvature, axes):
    """Points (11, 6, N) float32: u (N, 6), and a sigma up and down each of its principal axes."""
    points = np.repeat(u.T[None], 2 * LN_PLX + 1, 0)
    steps = axes / np.sqrt(np.where(curvature > 0, curvature, 1.0))[:, None]
    steps = steps.transpose(2, 1, 0)  # (axis, coordinate, N)
    points[1::2, :LN_PLX] += steps
    points[2::2, :LN_PLX] -= steps
    return np.clip(points, LOWER[:, None], UPPER[:, None]).astype("f4")


def _damped_step(grad, hess, damping):
    """The step -(H + damping diag) ^-1 g (6, B), shortened to the step box; was it shortened?"""
    diagonal = damping * (tf.stack([hess[i, i] for i in range(N_PAR)]) + DAMPING_FLOOR)
    damped = hess + tf.transpose(tf.linalg.diag(tf.transpose(diagonal)), (1, 2, 0))
    step = -solve_small(cholesky_small(damped, floor=1e-6), grad)
    shrink = tf.reduce_min(STEP_BOX[:, None] / tf.maximum(tf.abs(step), 1e-12), 0)
    return step * tf.minimum(shrink, 1.0), shrink < 1.0


def _next_damping(damping, gain, accept):
    """Less damping after a step that gained what was predicted, more after one that did not."""
    factor = tf.where(gain > 0.75, 0.1, tf.where(gain > 0.25, 0.5, 3.0))
    return tf.where(
        accept, tf.maximum(damping * factor, 1e-7), tf.minimum(tf.maximum(damping, 1e-3) * 8.0, 1e6)
    )


def family_of(theta):
    """Families of stars whose fluxes can be mistaken for one another: below N_FAMILIES, for theta
    (N, 3)."""
    teff, feh, logg = theta.T
    return np.select(
        [logg < FAMILY_LOGG[0], logg < FAMILY_LOGG[1], logg < FAMILY_LOGG[2]],
        [0 + (feh < FAMILY_GIANT_FEH), 2 + (feh < FAMILY_GIANT_FEH), 4],
        5 + (teff < FAMILY_DWARF_TEFF),
    )


class StartSearch:
    """Where to start: templates of the prior, compared in ln flux with one matrix product.

    Dust and distance are linear in ln flux, so they are projected out of stars and templates
    alike and come back as estimates of E and ln plx for each pair, which must be compatible with
    E > 0 and with the parallax.
    """

    def __init__(self, model, seed=0):
        prior, self.model = model.prior, model.flux
        model = self.model
        rng = np.random.default_rng(seed)
        z = np.clip(prior.sample(N_TEMPLATES, rng, TEMPLATE_WIDENING), LOWER[Z], UPPER[Z])
        family = family_of(self._theta(z))
        order = np.argsort(family, kind="stable")
        self.z, self.family = z[order].astype("f4"), family[order]
        self.ln_flux = model.ln_flux(tf.constant(self.z)).numpy()
        self.curve = np.exp(model.ln_ext_curve.numpy())
        self.ln_prior = prior.ln_density_z(tf.constant(self.z)).numpy()
        wl = model.sample_wavelengths.numpy()
        self.xp = np.arange(xp_utils.N_XP)
        self.usable = self.xp[wl[self.xp] >= TEMPLATE_MIN_NM]
        self._tables = {}
        self._search_tf = tf.function(self._search)

    def _theta(self, z):
        return z * self.model.theta_scale.numpy() + self.model.theta_mean.numpy()

    def _table(self, channels):
        """Projection and template coordinates for one set of XP channels (cached)."""
        key = channels.tobytes()
        if key not in self._tables:
            design = np.stack([2.0 * np.ones(len(channels)), -self.curve[channels]], 1)
            fit = np.linalg.pinv(design)  # -> (ln plx, E)
            t = self.ln_flux[:, channels]
            left = t - (t @ fit.T) @ design.T
            _, _, axes = np.linalg.svd(left - left.mean(0), full_matrices=False)
            axes = axes[:TEMPLATE_N_PCA]
            project = np.concatenate(
                [axes @ (np.eye(len(channels)) - design @ fit) / TEMPLATE_LN_FLUX_ERR, fit]
            ).T
            padded = np.zeros((len(self.ln_flux[0]), project.shape[1]))
            padded[channels] = project
            coords = t @ project
            self._tables[key] = tuple(tf.constant(a, tf.float32) for a in (padded, coords))
        return self._tables[key]

    def _search(self, ln_flux, plx, plx_ivar, z_direct, project, coords):
        x = ln_flux @ project  # (B, n_pca + 2)
        n = project.shape[1] - 2
        t, s = coords[:, :n], x[:, :n]
        cost = (
            tf.reduce_sum(s * s, 1)[:, None]
            + tf.reduce_sum(t * t, 1)[None]
            - 2.0 * tf.matmul(s, t, transpose_b=True)
        )
        ln_plx = x[:, n, None] - coords[None, :, n]  # (B, n_templates)
        ext = x[:, n + 1, None] - coords[None, :, n + 1]
        p = tf.exp(tf.clip_by_value(ln_plx, LOWER[LN_PLX], UPPER[LN_PLX]))
        w = plx_ivar[:, None]
        cost += w * (p - plx[:, None]) ** 2 / (1.0 + w * (0.15 * p) ** 2)
        cost += (tf.minimum(ext, 0.0) / 0.05) ** 2 - 2.0 * self.ln_prior[None]
        best = [tf.reduce_min(cost[:, a:b], 1) for a, b in self._family_slices()]
        index = [a + tf.argmin(cost[:, a:b], 1, tf.int32) for a, b in self._family_slices()]
        index = tf.stack(index, 1)
        soft = x[:, n:] - self.model.ln_flux(z_direct) @ project[:, n:]  # ln plx and E there
        return (
            tf.stack(best, 1),
            index,
            tf.gather(ln_plx, index, batch_dims=1),
            tf.gather(ext, index, batch_dims=1),
            soft,
        )

    def _family_slices(self):
        edges = np.searchsorted(self.family, np.arange(N_FAMILIES + 1))
        return [(a, b) for a, b in itertools.pairwise(edges) if b > a]

    def find(self, data, batch_size, z_direct=None, every_family=False):
        """Starts u (N, k, 6) of each star, and which of them are worth a try (N, k) bool: with
        every_family, or without a useful parallax, all are.

        The first is at the direct estimate z_direct (N, 3), if there is one; the others are the
        best templates of each family, best first, but for one that would start beside it.
        """
        starts = np.zeros((len(data), 1 + N_FAMILIES, N_PAR), "f4")
        starts[:, :, LN_E] = -2.0  # without a spectrum: the centre of the prior
        tried = np.zeros(starts.shape[:2], bool)
        tried[:, 1] = True
        used = data.observed.used[:, : xp_utils.N_XP] > 0
        patterns, which = np.unique(used, axis=0, return_inverse=True)
        for i, pattern in enumerate(patterns):
            channels = self.usable[pattern[self.usable]]
            if len(channels) <= TEMPLATE_N_PCA:
                continue
            alike = np.flatnonzero(which == i)
            for k in range(0, len(alike), batch_size):
                rows = alike[k : k + batch_size]
                z = np.zeros((len(rows), 3)) if z_direct is None else z_direct[rows]
                starts[rows], cost = self._find_batch(data, rows, channels, batch_size, z)
                wide = every_family | ~data.useful_parallax[rows, None]
                tried[rows] = cost < np.where(wide, np.inf, cost[:, 1:2] + START_MARGIN)
        if z_direct is None:
            return starts[:, 1:], tried[:, 1:]
        z = starts[:, :, Z]
        family = family_of(self._theta(z).reshape(-1, 3)).reshape(tried.shape)
        beside = (family == family[:, :1]) & (np.abs(z - z[:, :1]).max(2) < BESIDE_DIRECT)
        beside[:, 0] = False
        return starts, tried & ~(beside & tried[:, :1])

    def _find_batch(self, data, rows, channels, batch_size, z_direct):
        """Starts (m, k, 6) and how unlikely they are (m, k), inf where there is none, for at most
        `batch_size` stars."""
        m = len(rows)
        flux, err = data.flux[rows][:, channels], data.flux_err[rows][:, channels]
        ln_flux = np.zeros((batch_size, data.flux.shape[1]), "f4")
        ln_flux[:m, channels] = np.log(np.maximum(flux, np.maximum(0.5 * err, 1e-30)))
        plx, ivar = np.zeros((2, batch_size), "f4")
        plx[:m], ivar[:m] = gaussian_prior(data.plx[rows], data.plx_err[rows])
        z = np.zeros((batch_size, 3), "f4")
        z[:m] = z_direct
        out = self._search_tf(ln_flux, plx, ivar, z, *self._table(channels))
        cost, index, ln_plx, ext, soft = (x.numpy()[:m] for x in out)  # (m, families), (m, 2)
        order = np.argsort(cost, 1)
        cost, index, ln_plx, ext = (
            np.take_along_axis(a, order, 1) for a in (cost, index, ln_plx, ext)
        )
        u = np.zeros((m, 1 + N_FAMILIES, N_PAR), "f4")
        k = 1 + order.shape[1]
        u[:, 0, Z], u[:, 1:k, Z] = z_direct, self.z[index]
        u[:, 0, LN_PLX], u[:, 1:k, LN_PLX] = soft[:, 0], ln_plx
        u[:, 0, LN_E] = np.log(np.clip(soft[:, 1], *START_EXT_RANGE))
        u[:, 1:k, LN_E] = np.log(np.clip(ext, *START_EXT_RANGE))
        all_costs = np.full(u.shape[:2], np.inf)
        all_costs[:, 0], all_costs[:, 1:k] = -np.inf, cost
        return np.clip(u, LOWER, UPPER), all_costs
