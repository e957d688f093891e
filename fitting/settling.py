"""How descents end: a last step with the noise as it is there, and the curvature, in one.

The noise is evaluated where a descent begins, and anew where it ends. Of that one evaluation a last
step is made, and the curvature. The errors need the objective where the step ends, so that this
shows, too, whether the minimum is there.
"""

import numpy as np

from fitting.algebra import eigen_small
from fitting.minimiser import START_DAMPING, Minimiser, chosen, is_small
from fitting.solutions import Settled, Stop
from pipeline.quiet_tensorflow import compiled, tf

MORE_EVALUATIONS = (3, 6, 24)  # of descents unfinished, the noise evaluated anew
AGREED = 0.01  # phi of a step's end as the step has it, and as it is: the end is the minimum
LEAST_CURVATURE = 0.25  # of Gauss-Newton's: errors are at most twice as wide


class Settler(Minimiser):
    """Finishes descents; arguments as of `Minimiser`."""

    def __init__(self, objective, batch_size=256):
        super().__init__(objective, batch_size)
        self._settle_tf, self._curved_tf = map(compiled, (self._settle, self._curved))

    def settle(self, data, u0, rows=None):
        """A last step from u0 (M, n) of the stars `rows` (M,), default all, with the noise as it is
        there, and the curvature: `Settled` of M rows, converged where the step is small or leads to
        the minimum. The precision is that of `curved`.
        """
        return self._settled(self._settle_tf, data, u0, rows)

    def curved(self, data, u, rows=None, over_a_sigma=True):
        """`Settled` of M rows: the stars `rows` (M,), default all, at u (M, n) as they are, and the
        curvature, with the noise as it is there.

        At a point, the curvature of a learned model may be that of a ripple, and a posterior that
        leans to one side has its mean, and most of the truths, on its flatter one. So over_a_sigma:
        along each principal axis of the covariance (of all coordinates but ln plx, which is at its
        best everywhere), the rise of phi over a sigma on the flatter side takes the place of the
        curvature where it is smaller, down to LEAST_CURVATURE of it. Errors only grow by this.
        """
        return self._settled(self._curved_tf, data, u, rows, over_a_sigma)

    def _settled(self, function, data, u0, rows, *options):
        """What a compiled function makes of all stars, batch by batch."""
        rows = np.arange(len(data)) if rows is None else rows
        settled = Settled.empty(len(rows), len(self.at))
        tables = {"noise_tables": self._noise_tables_tf()}
        for part, general in self.parts(data, rows):
            start = tf.constant(u0[part[self.padding(len(part))]].T, tf.float32)
            out = function(start, self.batch(data, rows[part]) | tables, general, *options)
            settled.put(part, Settled(*(np.moveaxis(x.numpy(), -1, 0)[: len(part)] for x in out)))
        return settled

    def _settle(self, u, data, general):
        """The fields of `Settled`, stars last, of a step from u (n, B)."""
        whitening = self.objective.whitening(u, data, general)
        here = self.objective.evaluate(u, data, whitening, tf.float64)
        hessian, damping = here.hessian, tf.fill(tf.shape(here.phi), START_DAMPING)
        here = here._replace(hessian=tf.cast(hessian, tf.float32))
        ahead, promised, limited = self._ahead(here, damping, data, whitening.ln_det)
        precision, phi = self._over_a_sigma(ahead.u, hessian, data, whitening)
        done = is_small(here.phi - ahead.phi, promised) | (tf.abs(phi - ahead.phi) < AGREED)
        end = chosen(phi <= here.phi, ahead._replace(phi=phi), here)
        stop = tf.where(done & ~limited, Stop.CONVERGED.value, Stop.ITERATIONS.value)
        stop = tf.cast(stop, tf.uint8)
        return end.u, end.phi, end.chi2, stop, precision, here.u, hessian, here.gradient

    def _curved(self, u, data, general, over_a_sigma):
        """The fields of `Settled`, stars last, at u (n, B)."""
        whitening = self.objective.whitening(u, data, general)
        here = self.objective.evaluate(u, data, whitening, tf.float64)
        precision = here.hessian
        if over_a_sigma:
            precision, _ = self._over_a_sigma(u, precision, data, whitening)
        stop = tf.fill(tf.shape(here.phi), np.uint8(Stop.ITERATIONS))
        return u, here.phi, here.chi2, stop, precision, here.u, here.hessian, here.gradient

    def _over_a_sigma(self, u, hessian, data, whitening):
        """The precision (n, n, B) float64 at u (n, B), see `curved`, of the hessian there or beside
        it; and phi (B,) at u."""
        n_free = self.at.ln_plx
        curvature, axes = principal_axes(hessian)
        steps = axes * tf.math.rsqrt(tf.where(curvature > 0, curvature, 1.0))[:, None]
        steps = tf.pad(tf.cast(steps, u.dtype), ((0, 0), (0, 1), (0, 0)))  # (axis, n, B)
        points = u + tf.concat([tf.zeros_like(steps[:1]), steps, -steps], 0)
        points = tf.clip_by_value(points, self.at.lower[:, None], self.at.upper[:, None])
        phi = self.objective.values(points, data, whitening)
        rise = tf.minimum(phi[1 : n_free + 1], phi[n_free + 1 :]) - phi[0]  # 1/2 for a parabola
        less = tf.clip_by_value(2.0 * rise, LEAST_CURVATURE, 1.0) - 1.0
        less = (tf.cast(less, axes.dtype) * curvature)[:, None, None]
        change = tf.reduce_sum(less * axes[:, :, None] * axes[:, None], 0)
        return hessian + tf.pad(change, ((0, 1), (0, 1), (0, 0))), phi[0] - whitening.ln_det

    def finish(self, data, u0, rows=None):
        """`Settled` of descents from u0 (M, n) of the stars `rows` (M,), default all."""
        rows = np.arange(len(data)) if rows is None else rows
        begun = self.minimise(data, u0, rows=rows)
        return self.settle_all(data, self.go_on(data, begun, rows), rows)

    def go_on(self, data, begun, rows):
        """`Solution` of M descents that have come to the `Solution` begun, of the stars `rows`
        (M,). In a batch, the slowest star holds up the others: so those unfinished are pooled."""
        found = begun.take(slice(None))
        for evaluations in MORE_EVALUATIONS:
            left = np.flatnonzero(~found.converged)
            found.put(left, self.minimise(data, found.u[left], evaluations, rows=rows[left]))
        return found

    def settle_all(self, data, found, rows):
        """`Settled` of M descents that came to the `Solution` found, of the stars `rows` (M,)."""
        settled = self.settle(data, found.u, rows)
        left = np.flatnonzero(~settled.converged)
        settled.put(left, self.settle(data, settled.u[left], rows[left]))
        left = np.flatnonzero(~settled.converged)
        longer = self.minimise(data, settled.u[left], MORE_EVALUATIONS[-1], rows=rows[left])
        ends = self.settle(data, longer.u, rows[left])
        ends.stop = longer.stop  # two places may lead to one another by the noise at each of them
        settled.put(left, ends)
        return settled

    def gaussian(self, data, solution, over_a_sigma=True):
        """The posterior about `Solution`s of all stars as a `Gaussian`, NaN where there is none;
        over_a_sigma: of `curved`."""
        settled = Settled.empty(len(data), len(self.at))
        rows = np.flatnonzero(np.isfinite(solution.u).all(1))
        settled.put(rows, self.curved(data, solution.u[rows], rows, over_a_sigma))
        return settled.gaussian


def principal_axes(hessian):
    """Curvatures (n - 1, B) and axes (n - 1, n - 1, B), one a row, of all coordinates but the last,
    ln plx, at its best everywhere, of Hessians (n, n, B). Where one is not positive definite, they
    are 0."""
    plx = hessian[-1, :-1]
    free = hessian[:-1, :-1] - plx[:, None] * plx[None] / hessian[-1, -1]
    finite = tf.reduce_all(tf.math.is_finite(free), (0, 1))
    curvature, axes = eigen_small(tf.where(finite, free, 0.0))
    proper = tf.reduce_min(curvature, 0) > 0
    return tf.where(proper, curvature, 0.0), tf.where(proper, axes, 0.0)
