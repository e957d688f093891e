"""The best parameters of every star under a forward model: batched Levenberg-Marquardt.

A star's six coordinates are u = (z (3), xi, ln E, ln plx), z the standardised stellar type. The
solver minimises

    phi(u) = -ln posterior = chi^2 / 2 - ln p(z) + xi^2 / 2 - ln E + (plx - plx_obs)^2 / 2 sigma^2

with chi^2 = |S (f_model - f_obs)|^2. The term -ln E is the Jacobian of a flat prior in E > 0:
phi is the density per unit of ln E, whose mode lies inside the allowed range also for stars
without dust (close to the posterior mean of E), where a density per unit of E peaks on the edge.
During training the labels and a dust map's reddening enter as Gaussian priors.

Everything runs in TensorFlow on batches of one fixed shape, so that the same code serves a CPU and
a GPU. Arrays inside are (coordinate, star): "structure of arrays".
"""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

import xp_utils

N_PAR = 6
Z, XI, LN_E, LN_PLX = slice(0, 3), 3, 4, 5

# Bounds of the coordinates, and the largest step in each.
LOWER = np.array([-6, -6, -6, -3.5, -9.0, -9.0], "f4")
UPPER = np.array([6, 6, 6, 3.5, 2.75, 9.0], "f4")
STEP_BOX = np.array([1, 1, 1, 1, 1.5, 1], "f4")

START_DAMPING = 1e-4
DAMPING_FLOOR = 1e-3       # relative damping of a coordinate without curvature
CONVERGED_DECREASE = 5e-4  # of phi, predicted
FIRST_ITERATIONS = 12      # then the few unfinished stars are pooled
POOLED_ITERATIONS = 60

# Start search: templates are drawn from the prior, widened, and compared in ln flux.
N_TEMPLATES = 512
TEMPLATE_WIDENING = 1.4
TEMPLATE_MIN_NM = 442.0    # bluer, the flux of red stars is noise
TEMPLATE_N_PCA = 12
TEMPLATE_LN_FLUX_ERR = 0.04  # distance of a star to the nearest template, per channel
MAX_STARTS = 4
START_MARGIN = 25.0          # a family this much worse (in chi^2) than the best is tried as well
TRIAL_ITERATIONS = 6         # then starts that are behind by more than TRIAL_MARGIN in phi end
TRIAL_MARGIN = 8.0
FAMILY_LOGG = (2.55, 3.5, 4.15)   # bright giants | lower giants | subgiants | dwarfs
FAMILY_GIANT_FEH = -1.0           # dex: metal-poor | metal-rich giants
FAMILY_DWARF_TEFF = 5.2           # kK: cool | hot dwarfs


@dataclass
class StarData:
    """Observed stars: what the solver needs of each.

    flux (N, 66), flux_err (N, 66; inf = not used), flux_sqrticov_tril (N, 1891), all float32, as
    `xp_utils.flux_vectors` makes them; plx, plx_err (N,) mas, NaN where there is none.
    theta, theta_err (N, 3): labels as Gaussian priors (training). ext, ext_err (N,): a Gaussian
    prior on E (training; error inf = none).
    """

    flux: np.ndarray
    flux_err: np.ndarray
    flux_sqrticov_tril: np.ndarray
    plx: np.ndarray
    plx_err: np.ndarray
    theta: np.ndarray | None = None
    theta_err: np.ndarray | None = None
    ext: np.ndarray | None = None
    ext_err: np.ndarray | None = None

    def __len__(self):
        return len(self.flux)

    def take(self, rows):
        """The same, of some rows (an index array or slice)."""
        return StarData(*(None if v is None else v[rows] for v in vars(self).values()))


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
        return cls(np.full((n, N_PAR), np.nan, "f4"), np.full(n, np.inf, "f4"),
                   np.full((n, N_PAR, N_PAR), np.nan, "f4"), np.full(n, np.nan, "f4"),
                   np.zeros(n, bool))

    def put(self, rows, other, select=slice(None)):
        for name, value in vars(self).items():
            value[rows] = getattr(other, name)[select]


def gaussian_prior(value, err):
    """(value, inverse variance) with weight 0 where the value is missing or the error infinite."""
    value, err = np.asarray(value, "f8"), np.asarray(err, "f8")
    good = np.isfinite(value) & (err > 0)
    ivar = np.where(good, 1.0 / np.where(good, err, 1.0) ** 2, 0.0)
    return np.where(good, value, 0.0).astype("f4"), ivar.astype("f4")


def unpack_whitening(tril, weight):
    """Full whitening (B, 66, 66) from the XP triangle (B, 1891) and the weights 1/error (B, 66).

    The same as `xp_utils.unpack_tril`, in TensorFlow: one copy, by rows.
    """
    n_wl = weight.shape[1]
    zeros = tf.zeros_like(weight)
    pieces, start = [], 0
    for row in range(xp_utils.N_XP):
        pieces += [tril[:, start:start + row + 1], zeros[:, row + 1:]]
        start += row + 1
    for row in range(xp_utils.N_XP, n_wl):
        pieces += [zeros[:, :row], weight[:, row:row + 1], zeros[:, row + 1:]]
    return tf.reshape(tf.concat(pieces, 1), (-1, n_wl, n_wl))


class StarSolver:
    """Finds the maximum of the posterior of many stars.

    Args:
        model: `model.FluxModel`; prior: `model.MixturePrior`.
        labelled: True in training: labels (`StarData.theta`) and reddenings as Gaussian priors
            in the place of the mixture.
        batch_size: stars in a TensorFlow call (fixed; the last batch is padded).
    """

    def __init__(self, model, prior=None, labelled=False, batch_size=512, seed=0):
        if prior is None and not labelled:
            raise ValueError("a StarSolver without labels needs a prior of stellar types")
        self.model, self.prior, self.labelled = model, prior, labelled
        self.batch_size = batch_size
        self.n_wl = int(model.sample_wavelengths.shape[0])
        self._starts = None if labelled else StartSearch(model, prior, seed)
        self._minimise_tf = tf.function(self._minimise, jit_compile=True)

    # ------------------------------------------------------------------ the objective, in TensorFlow

    def _model_columns(self, u, flux):
        """[d f / d u (6), f_obs - f] as (B, 7, n_wl)."""
        ln_flux, dz = self.model.ln_flux_and_jacobian(tf.transpose(u[Z]))
        curve, dln_curve = self.model.ext_curve(u[XI])
        extinction = tf.exp(u[LN_E])[:, None] * curve                          # (B, n_wl)
        limit = 40.0
        f = tf.exp(tf.clip_by_value(ln_flux - extinction + 2.0 * u[LN_PLX][:, None],
                                    -limit, limit))
        rest = tf.stack([-extinction * dln_curve, -extinction, 2.0 * tf.ones_like(f)], 1)
        jacobian = tf.concat([dz, rest], 1) * f[:, None]
        return tf.concat([jacobian, (flux - f)[:, None]], 1)

    def _evaluate(self, u, data):
        """phi and its derivatives at u (6, B), after the best ln plx was put in.

        The flux is proportional to plx^2, so the optimum over ln plx for given other coordinates
        follows from the 7 x 7 Gram matrix of the whitened columns by scalar Newton steps.
        Returns u (6, B), phi (B,), gradient (6, B), hessian (6, 6, B), chi2 (B,).
        """
        columns = self._model_columns(u, data["flux"])
        white = tf.matmul(columns, data["S"], transpose_b=True)                # (B, 7, n_wl)
        gram = tf.transpose(tf.matmul(white, white, transpose_b=True), (1, 2, 0))  # (7, 7, B)
        delta = self._best_ln_plx(u[LN_PLX], gram, data)
        grow = tf.exp(2.0 * delta)                                             # flux ratio
        u = tf.concat([u[:LN_PLX], (u[LN_PLX] + delta)[None]], 0)
        half = 0.5 * (grow - 1.0)              # the residual loses this times the ln plx column
        cross = grow * (gram[:N_PAR, N_PAR] - half * gram[:N_PAR, LN_PLX])     # (6, B)
        chi2 = (gram[N_PAR, N_PAR] - 2.0 * half * gram[N_PAR, LN_PLX]
                + half * half * gram[LN_PLX, LN_PLX])
        hessian = grow * grow * gram[:N_PAR, :N_PAR]
        phi, gradient, hessian = self._add_priors(u, tf.maximum(chi2, 0.0) / 2, -cross, hessian,
                                                  data)
        return u, phi, gradient, hessian, chi2

    def _best_ln_plx(self, ln_plx, gram, data):
        """The change of ln plx (B,) that minimises phi, the other coordinates held."""
        jj, jr = gram[LN_PLX, LN_PLX] / 4.0, gram[LN_PLX, N_PAR] / 2.0
        delta = tf.zeros_like(ln_plx)
        for _ in range(4):
            k = tf.exp(2.0 * delta)
            plx = tf.exp(ln_plx + delta)
            prior_slope = data["plx_ivar"] * plx * (plx - data["plx"])
            slope = 2.0 * k * ((k - 1.0) * jj - jr) + prior_slope
            curvature = (4.0 * k * k * jj + data["plx_ivar"] * plx * plx
                         + tf.maximum(prior_slope, 0.0) + 1e-6)
            delta = delta - tf.clip_by_value(slope / curvature, -0.7, 0.7)
        return tf.clip_by_value(delta, LOWER[LN_PLX] - ln_plx, UPPER[LN_PLX] - ln_plx)

    def _add_priors(self, u, phi, gradient, hessian, data):
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
            p_z, g_z, h_z = self.prior.value_gradient_hessian(tf.transpose(z))
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
        corner = tf.stack([tf.stack([tf.ones_like(xi), h_xi_ext, zero]),
                           tf.stack([h_xi_ext, h_ext, zero]),
                           tf.stack([zero, zero, h_plx])])                     # (3, 3, B)
        h_z = tf.pad(tf.transpose(h_z, (1, 2, 0)), ((0, 3), (0, 3), (0, 0)))
        return phi, gradient, hessian + h_z + tf.pad(corner, ((3, 0), (3, 0), (0, 0)))

    @staticmethod
    def _bounded_cross(hessian, slope_xi, h_ext):
        """The xi-ln E term beyond Gauss-Newton, held where the 2 x 2 block stays positive."""
        limit = 0.9 * tf.sqrt((hessian[XI, XI] + 1.0) * (hessian[LN_E, LN_E] + h_ext))
        cross = hessian[XI, LN_E]
        return tf.clip_by_value(cross + slope_xi, -limit, limit) - tf.clip_by_value(
            cross, -limit, limit)

    # ------------------------------------------------------------------ the minimiser, in TensorFlow

    def _minimise(self, u, data, iterations):
        """Levenberg-Marquardt from u (6, B), at most `iterations` trial steps."""
        data = dict(data, S=unpack_whitening(data["tril"], data["weight"]))
        u, phi, grad, hess, chi2 = self._evaluate(u, data)
        damping = tf.fill(tf.shape(phi), START_DAMPING)
        done = tf.zeros_like(phi, tf.bool)

        def unfinished(i, u, phi, grad, hess, chi2, damping, done):
            return (i < iterations) & ~tf.reduce_all(done)

        def iterate(i, u, phi, grad, hess, chi2, damping, done):
            step, limited = _damped_step(grad, hess, damping)
            trial = tf.clip_by_value(u + step, LOWER[:, None], UPPER[:, None])
            moved = trial - u
            predicted = -tf.reduce_sum(moved * (grad + 0.5 * tf.reduce_sum(
                hess * moved[None], 1)), 0)
            new = self._evaluate(trial, data)
            gain = (phi - new[1]) / tf.maximum(predicted, 1e-12)
            accept = (new[1] <= phi) & ~done
            small = (predicted < CONVERGED_DECREASE) & ~limited & ((damping < 0.1) | ~accept)
            u, phi, grad, hess, chi2 = (tf.where(accept, b, a) for a, b in
                                        zip((u, phi, grad, hess, chi2), new, strict=True))
            damping = _next_damping(damping, gain, accept)
            return i + 1, u, phi, grad, hess, chi2, damping, done | small

        out = tf.while_loop(unfinished, iterate, (0, u, phi, grad, hess, chi2, damping, done))
        return *out[1:6], out[7]

    # ------------------------------------------------------------------ stars in, solutions out

    def batch(self, data, rows):
        """TensorFlow tensors of the stars `rows`, padded to `batch_size` with the first of them."""
        rows = np.concatenate([rows, np.full(self.batch_size - len(rows), rows[0])])
        take = data.take(rows)
        out = {"flux": take.flux, "tril": take.flux_sqrticov_tril}
        out["weight"] = 1.0 / take.flux_err
        out["plx"], out["plx_ivar"] = gaussian_prior(take.plx, take.plx_err)
        if self.labelled:
            mean, scale = self.model.theta_mean.numpy(), self.model.theta_scale.numpy()
            z, ivar = gaussian_prior((take.theta - mean) / scale, take.theta_err / scale)
            out["z"], out["z_ivar"] = z.T, ivar.T
            out["ext"], out["ext_ivar"] = gaussian_prior(take.ext, take.ext_err)
        return {name: tf.constant(value, tf.float32) for name, value in out.items()}

    def minimise(self, data, u0, iterations=FIRST_ITERATIONS, rows=None):
        """At most `iterations` steps from the starts u0 (M, 6) of the stars `rows` (M,), default
        all. Returns a `Solution` of M rows."""
        rows = np.arange(len(data)) if rows is None else rows
        solution = Solution.empty(len(rows))
        limit = tf.constant(iterations)
        for start in range(0, len(rows), self.batch_size):
            part = slice(start, start + self.batch_size)
            m = len(rows[part])
            u = np.repeat(u0[start:start + 1], self.batch_size, 0)
            u[:m] = u0[part]
            out = self._minimise_tf(tf.constant(u.T, tf.float32), self.batch(data, rows[part]),
                                    limit)
            u, phi, _, hessian, chi2, done = (x.numpy() for x in out)
            found = Solution(u.T, phi, hessian.transpose(2, 0, 1), chi2, done)
            solution.put(part, found, slice(0, m))
        return solution

    def objective(self, data, u):
        """phi (N,) at u (N, 6), after the best ln plx was put in."""
        return self.minimise(data, u, iterations=0).phi

    def solve(self, data):
        """Start search, descents from the starts worth it, and the best two modes found.

        Every start gets a few iterations; those still close to a star's best are finished.
        Returns (best, second): `Solution`s of N stars; the second is the best one of another
        family of stars, NaN (phi inf) where none was near.
        """
        starts, n_starts = self._starts.find(data, self.batch_size)        # (N, k, 6), (N,)
        star, rank = np.nonzero(np.arange(starts.shape[1]) < n_starts[:, None])
        trial = self.minimise(data, starts[star, rank], TRIAL_ITERATIONS, rows=star)
        lowest = np.full(len(data), np.inf, "f4")
        np.minimum.at(lowest, star, trial.phi)
        go_on = np.flatnonzero(~trial.converged & ~(trial.phi > lowest[star] + TRIAL_MARGIN))
        trial.put(go_on, self.finish(data, trial.u[go_on], rows=star[go_on]))
        order = np.lexsort((trial.phi, star))
        position = np.arange(len(star)) - np.searchsorted(star[order], star[order])
        modes = [Solution.empty(len(data)) for _ in range(2)]
        for k, mode in enumerate(modes):
            chosen = order[position == k]
            mode.put(star[chosen], trial, chosen)
        return tuple(modes)

    def finish(self, data, u0, rows=None):
        """Descent from u0 (M, 6) of the stars `rows` (M,), default all: first in full batches,
        then those unfinished in a pool."""
        rows = np.arange(len(data)) if rows is None else rows
        solution = self.minimise(data, u0, rows=rows)
        left = np.flatnonzero(~solution.converged)
        if len(left):
            solution.put(left, self.minimise(data, solution.u[left], POOLED_ITERATIONS,
                                             rows=rows[left]))
        return solution


def _damped_step(grad, hess, damping):
    """The step -(H + damping diag) ^-1 g (6, B), shortened to the step box; was it shortened (B,)?

    The 6 x 6 Cholesky is written out over vectors of stars: many times faster than a batched
    solver for matrices this small.
    """
    low = [[None] * N_PAR for _ in range(N_PAR)]
    y = [None] * N_PAR
    inverse = [None] * N_PAR
    for i in range(N_PAR):
        for j in range(i + 1):
            total = hess[i, j]
            if i == j:
                total += damping * (hess[i, i] + DAMPING_FLOOR)
            for k in range(j):
                total -= low[i][k] * low[j][k]
            if i == j:
                inverse[i] = tf.math.rsqrt(tf.maximum(total, 1e-6))
            else:
                low[i][j] = total * inverse[j]
        y[i] = (grad[i] - sum((low[i][k] * y[k] for k in range(i)), 0.0)) * inverse[i]
    for i in reversed(range(N_PAR)):
        y[i] = (y[i] - sum((low[k][i] * y[k] for k in range(i + 1, N_PAR)), 0.0)) * inverse[i]
    step = -tf.stack(y)
    shrink = tf.reduce_min(STEP_BOX[:, None] / tf.maximum(tf.abs(step), 1e-12), 0)
    return step * tf.minimum(shrink, 1.0), shrink < 1.0


def _next_damping(damping, gain, accept):
    """Less damping after a step that gained what was predicted, more after one that did not."""
    factor = tf.where(gain > 0.75, 0.1, tf.where(gain > 0.25, 0.5, 3.0))
    return tf.where(accept, tf.maximum(damping * factor, 1e-7),
                    tf.minimum(tf.maximum(damping, 1e-3) * 8.0, 1e6))


def family_of(theta):
    """Families of stars whose fluxes can be mistaken for one another: 0..6 for theta (N, 3)."""
    teff, feh, logg = theta.T
    return np.select([logg < FAMILY_LOGG[0], logg < FAMILY_LOGG[1], logg < FAMILY_LOGG[2]],
                     [0 + (feh < FAMILY_GIANT_FEH), 2 + (feh < FAMILY_GIANT_FEH), 4],
                     5 + (teff < FAMILY_DWARF_TEFF))


class StartSearch:
    """Where to start: templates of the prior, compared in ln flux with one matrix product.

    Dust and distance are linear in ln flux, so they are projected out of stars and templates
    alike and come back as estimates of E and ln plx for each pair, which must be compatible with
    E > 0 and with the parallax.
    """

    def __init__(self, model, prior, seed=0):
        rng = np.random.default_rng(seed)
        z = np.clip(prior.sample(N_TEMPLATES, rng, TEMPLATE_WIDENING), LOWER[Z], UPPER[Z])
        theta = z * model.theta_scale.numpy() + model.theta_mean.numpy()
        family = family_of(theta)
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

    def _table(self, channels):
        """Projection and template coordinates for one set of XP channels (cached)."""
        key = channels.tobytes()
        if key not in self._tables:
            design = np.stack([2.0 * np.ones(len(channels)), -self.curve[channels]], 1)
            fit = np.linalg.pinv(design)                           # -> (ln plx, E)
            t = self.ln_flux[:, channels]
            left = t - (t @ fit.T) @ design.T
            _, _, axes = np.linalg.svd(left - left.mean(0), full_matrices=False)
            axes = axes[:TEMPLATE_N_PCA]
            project = np.concatenate([
                axes @ (np.eye(len(channels)) - design @ fit) / TEMPLATE_LN_FLUX_ERR, fit]).T
            padded = np.zeros((len(self.ln_flux[0]), project.shape[1]))
            padded[channels] = project
            coords = t @ project
            self._tables[key] = tuple(tf.constant(a, tf.float32) for a in (padded, coords))
        return self._tables[key]

    def _search(self, ln_flux, plx, plx_ivar, project, coords):
        x = ln_flux @ project                                      # (B, n_pca + 2)
        n = project.shape[1] - 2
        t, s = coords[:, :n], x[:, :n]
        cost = (tf.reduce_sum(s * s, 1)[:, None] + tf.reduce_sum(t * t, 1)[None]
                - 2.0 * tf.matmul(s, t, transpose_b=True))
        ln_plx = x[:, n, None] - coords[None, :, n]                # (B, n_templates)
        ext = x[:, n + 1, None] - coords[None, :, n + 1]
        p = tf.exp(tf.clip_by_value(ln_plx, LOWER[LN_PLX], UPPER[LN_PLX]))
        w = plx_ivar[:, None]
        cost += w * (p - plx[:, None]) ** 2 / (1.0 + w * (0.15 * p) ** 2)
        cost += (tf.minimum(ext, 0.0) / 0.05) ** 2 - 2.0 * self.ln_prior[None]
        best = [tf.reduce_min(cost[:, a:b], 1) for a, b in self._family_slices()]
        index = [a + tf.argmin(cost[:, a:b], 1, tf.int32) for a, b in self._family_slices()]
        index = tf.stack(index, 1)
        return (tf.stack(best, 1), index, tf.gather(ln_plx, index, batch_dims=1),
                tf.gather(ext, index, batch_dims=1))

    def _family_slices(self):
        edges = np.searchsorted(self.family, np.arange(8))
        return [(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True) if b > a]

    def find(self, data, batch_size):
        """Starts u (N, MAX_STARTS, 6) of each star, best first, and how many are worth a try."""
        starts = np.zeros((len(data), MAX_STARTS, N_PAR), "f4")
        starts[:, :, LN_E] = -2.0           # without a spectrum: the centre of the prior
        n_starts = np.ones(len(data), int)
        used = np.isfinite(data.flux_err[:, :xp_utils.N_XP])
        patterns, which = np.unique(used, axis=0, return_inverse=True)
        for i, pattern in enumerate(patterns):
            channels = self.usable[pattern[self.usable]]
            if len(channels) <= TEMPLATE_N_PCA:
                continue
            alike = np.flatnonzero(which == i)
            for k in range(0, len(alike), batch_size):
                rows = alike[k:k + batch_size]
                starts[rows], n_starts[rows] = self._find_batch(data, rows, channels, batch_size)
        return starts, n_starts

    def _find_batch(self, data, rows, channels, batch_size):
        """Starts (m, MAX_STARTS, 6) and their number (m,) for at most `batch_size` stars."""
        m = len(rows)
        flux, err = data.flux[rows][:, channels], data.flux_err[rows][:, channels]
        ln_flux = np.zeros((batch_size, data.flux.shape[1]), "f4")
        ln_flux[:m, channels] = np.log(np.maximum(flux, np.maximum(0.5 * err, 1e-30)))
        plx, ivar = np.zeros((2, batch_size), "f4")
        plx[:m], ivar[:m] = gaussian_prior(data.plx[rows], data.plx_err[rows])
        out = self._search_tf(ln_flux, plx, ivar, *self._table(channels))
        cost, index, ln_plx, ext = (x.numpy()[:m] for x in out)            # (m, families)
        order = np.argsort(cost, 1)[:, :MAX_STARTS]
        cost, index, ln_plx, ext = (np.take_along_axis(a, order, 1)
                                    for a in (cost, index, ln_plx, ext))
        u = np.zeros((m, MAX_STARTS, N_PAR), "f4")
        k = order.shape[1]
        u[:, :k, Z] = self.z[index]
        u[:, :k, LN_E] = np.log(np.clip(ext, 0.02, 8.0))
        u[:, :k, LN_PLX] = ln_plx
        return np.clip(u, LOWER, UPPER), (cost < cost[:, :1] + START_MARGIN).sum(1)


# ---------------------------------------------------------------------- what a solution says

# Order of `stellar_params_est`: Teff (kK), [Fe/H], log g, E, parallax (mas), xi.
PARAMETER_NAMES = ("teff", "feh", "logg", "E", "plx", "xi")
_FROM_U = np.array([0, 1, 2, LN_E, LN_PLX, XI])


@dataclass
class Estimates:
    """Parameters in physical units, in the order of PARAMETER_NAMES, float64.

    est, err (N, 6); cov, icov (N, 6, 6); NaN in all of them for a star without a solution or
    whose curvature is not positive definite.
    """

    est: np.ndarray
    err: np.ndarray
    cov: np.ndarray
    icov: np.ndarray


def estimates(solution, model):
    """`Estimates` from a `Solution`: the covariance is the inverse curvature of -ln posterior
    (Gauss-Newton, with the priors), carried from u to physical units to first order."""
    u = solution.u.astype("f8")
    mean = model.theta_mean.numpy().astype("f8")
    scale = model.theta_scale.numpy().astype("f8")
    est = u[:, _FROM_U]
    est[:, :3] = est[:, :3] * scale + mean
    est[:, 3:5] = np.exp(est[:, 3:5])
    slope = np.concatenate([np.broadcast_to(scale, (len(u), 3)), est[:, 3:5],
                            np.ones((len(u), 1))], 1)                      # d est / d u
    icov = solution.hessian.astype("f8")[:, _FROM_U][:, :, _FROM_U]
    icov = icov / (slope[:, :, None] * slope[:, None])
    cov = inverse_or_nan(icov)
    bad = ~np.isfinite(cov).all((1, 2))
    est[bad], icov[bad] = np.nan, np.nan
    return Estimates(est, np.sqrt(np.einsum("nii->ni", cov)), cov, icov)


def inverse_or_nan(matrices):
    """Inverses (N, k, k) float64 of symmetric matrices; NaN where not positive definite."""
    scale = np.sqrt(np.abs(np.einsum("nii->ni", matrices)))
    scale = np.where(scale > 0, scale, 1.0)
    unit = matrices / (scale[:, :, None] * scale[:, None])
    good = np.isfinite(unit).all((1, 2))
    eigenvalues = np.linalg.eigvalsh(np.where(good[:, None, None], unit, np.eye(unit.shape[1])))
    good &= eigenvalues[:, 0] > 1e-10
    out = np.full_like(unit, np.nan)
    out[good] = np.linalg.inv(unit[good])
    return out / (scale[:, :, None] * scale[:, None])
