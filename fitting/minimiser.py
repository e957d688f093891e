"""Batched Levenberg-Marquardt: descends to the minimum of the objective of many stars at a time.

Everything runs in TensorFlow, compiled, on batches of one fixed shape, so that the same code serves
a CPU and a GPU. Arrays inside are (coordinate, star): "structure of arrays".

An evaluation of the objective is a network, its tangents and a product with the star's whitening;
what follows from their Gram matrix alone costs little. So between two evaluations there are several
steps on the objective with ln flux linear in the type (`Objective.linearised`), and the next
evaluation says whether they are good.
"""

import enum
from dataclasses import dataclass

import numpy as np

from fitting.algebra import cholesky_small, solve_small
from fitting.objective import Point, gaussian_prior
from fitting.posterior import Gaussian
from pipeline.quiet_tensorflow import compiled, tf

START_DAMPING = 1e-7
DAMPING_FLOOR = 1e-3  # relative damping of a coordinate without curvature
LEAST_DAMPING, MOST_DAMPING = 1e-7, 1e6
CONVERGED_DECREASE = 0.02  # of phi, predicted, and gained: what is left is 0.1 sigma at most
AGREED = 0.01  # phi of a step's end, by the step and evaluated: then it is the minimum
MOST_ASTRAY = 10.0  # of phi: a step up that may lead down
INNER_STEPS = 4  # between two evaluations
FIRST_EVALUATIONS = 3
MORE_EVALUATIONS = (3, 6, 24)  # of descents unfinished, the noise evaluated anew
LEAST_CURVATURE = 0.25  # of Gauss-Newton's: errors are at most twice as wide


class Stop(enum.IntEnum):
    """Why a descent stopped."""

    NONE = 0  # there was none
    CONVERGED = 1  # the next step would gain less than CONVERGED_DECREASE
    STALLED = 2  # no step gains anything, however short
    ITERATIONS = 3  # the steps allowed were used up


@dataclass
class Solution:
    """Where the descents of N stars ended: u (N, n); phi (N,), inf where there was none; chi2 (N,);
    stop (N,) of `Stop`."""

    u: np.ndarray
    phi: np.ndarray
    chi2: np.ndarray
    stop: np.ndarray

    @classmethod
    def empty(cls, n, n_coordinates):
        return cls(
            np.full((n, n_coordinates), np.nan, "f4"),
            np.full(n, np.inf, "f4"),
            np.full(n, np.nan, "f4"),
            np.full(n, Stop.NONE.value, "u1"),
        )

    @property
    def converged(self):
        """(N,) bool."""
        return self.stop == Stop.CONVERGED

    def take(self, rows):
        """The same, of some rows (an index array or slice), copied."""
        return type(self)(*(np.array(value[rows]) for value in vars(self).values()))

    def with_rows(self, other):
        """These and those of another one, of all that this one has."""
        pairs = ((value, getattr(other, name)) for name, value in vars(self).items())
        return type(self)(*(np.concatenate(pair) for pair in pairs))

    def put(self, rows, other, select=slice(None)):
        """Put the rows `select` of other ones in the place of `rows`."""
        for name, value in vars(self).items():
            value[rows] = getattr(other, name)[select]


@dataclass
class Settled(Solution):
    """`Solution`s and the curvature there: precision (N, n, n) float64, the Hessian of phi as
    `Minimiser.settle` makes it; and the point beside, a small step away, where it was taken, with
    hessian (N, n, n) float64 and gradient (N, n) as they are there."""

    precision: np.ndarray
    point: np.ndarray
    hessian: np.ndarray
    gradient: np.ndarray

    @classmethod
    def empty(cls, n, n_coordinates):
        vectors = (np.full((n, n_coordinates), np.nan, "f4") for _ in range(2))
        matrices = (np.full((n, n_coordinates, n_coordinates), np.nan) for _ in range(2))
        point, gradient = vectors
        precision, hessian = matrices
        found = vars(Solution.empty(n, n_coordinates))
        return cls(**found, precision=precision, point=point, hessian=hessian, gradient=gradient)

    @property
    def gaussian(self):
        """The posterior about the solutions as a `Gaussian`."""
        point = (self.point.astype("f8"), self.hessian, self.gradient.astype("f8"))
        return Gaussian(self.u.astype("f8"), self.precision, point)


def projectable(used, n_xp):
    """Whether the missing channels of used (N, n) bool are only the first of XP (BP) or photometric
    bands, which the noise model drops fast; other patterns need its general way."""
    xp = used[:, :n_xp]
    first = np.where(xp.any(1), xp.argmax(1), n_xp)
    return (xp | (np.arange(n_xp) < first[:, None])).all(1)


class Minimiser:
    """Descends to the minimum of an `Objective`, many stars at a time.

    batch_size: stars in a TensorFlow call (fixed; the last batch is padded).
    """

    def __init__(self, objective, batch_size=256):
        self.objective, self.batch_size = objective, batch_size
        self.model, self.at = objective.model, objective.at
        self._minimise_tf = compiled(self._minimise)
        self._settle_tf = compiled(self._settle)
        self._noise_tables_tf = compiled(self.model.noise.tables)

    def _minimise(self, u, noise_at, data, evaluations, general):
        """Descent from u (n, B) with at most so many evaluations of the objective, the noise as it
        is at noise_at (n, B).

        A star is done where the next steps would gain less than CONVERGED_DECREASE; they are taken
        (not with a single evaluation, which is of the objective at u alone).
        """
        objective = self.objective
        whitening = objective.whitening(noise_at, data, general)
        size, n_stars = len(self.at), tf.shape(u)[1]
        damping, nothing = tf.fill([n_stars], START_DAMPING), tf.zeros([n_stars])
        nowhere = Point(
            u,
            nothing + np.inf,
            tf.zeros_like(u),
            tf.zeros((size, size, n_stars)),
            nothing,
            tf.zeros((size + 1, size + 1, n_stars)),
        )

        def unfinished(i, best, point, trial, damping, strayed, done):
            return (i < evaluations) & ~tf.reduce_all(done)

        def iterate(i, best, point, trial, damping, strayed, done):
            new = objective.evaluate(trial.u, data, whitening)
            gain = (point.phi - new.phi) / tf.maximum(point.phi - trial.phi, 1e-12)
            accept = (new.phi <= best.phi) & ~done
            stray = ~accept & ~strayed & (new.phi <= best.phi + MOST_ASTRAY) & ~done
            best = _chosen(accept, new, best)
            point = _chosen(accept | stray, new, best)
            next_damping = tf.where(stray, damping, _next_damping(damping, gain, accept))
            damping = tf.where(i > 0, next_damping, damping)
            ahead, promised, limited = self._ahead(point, damping, data, whitening.ln_det)
            small = _is_small(point.phi - ahead.phi, promised)
            small &= ~limited & ((damping < 0.1) | ~accept) & ~stray
            trial = _chosen(done, trial, ahead)
            return i + 1, best, point, trial, damping, stray, done | small

        none = tf.zeros([n_stars], tf.bool)
        start = (0, nowhere, nowhere, nowhere, damping, none, none)
        _, point, _, trial, damping, _, done = tf.while_loop(unfinished, iterate, start)
        point = _chosen(done & (evaluations > 1), trial, point)
        stop = tf.where(
            done,
            Stop.CONVERGED.value,
            tf.where(damping >= MOST_DAMPING, Stop.STALLED.value, Stop.ITERATIONS.value),
        )
        return point.u, point.phi, point.chi2, tf.cast(stop, tf.uint8)

    def _ahead(self, point, damping, data, ln_det):
        """The `Point` that INNER_STEPS steps lead to if ln flux were linear in the type, the
        decrease (B,) of phi that its gradient and Hessian promise, and was the way cut at the
        longest allowed?

        What the steps minimise is phi and damping / 2 times the squared way from the point, in
        units of its curvatures.
        """
        lower, upper = self.at.lower[:, None], self.at.upper[:, None]
        longest = self.at.largest_step[:, None]
        diagonal = tf.stack([point.hessian[i, i] for i in range(len(self.at))]) + DAMPING_FLOOR
        stiff = damping * diagonal

        def held(here):
            return here.phi + 0.5 * tf.reduce_sum(stiff * (here.u - point.u) ** 2, 0)

        def step(i, here, inner, promised, limited):
            way = here.u - point.u
            added = tf.linalg.diag(tf.transpose(stiff + inner * diagonal))
            factor = cholesky_small(here.hessian + tf.transpose(added, (1, 2, 0)), floor=1e-6)
            slope = here.gradient + stiff * way
            move = solve_small(factor, slope)
            promised = tf.where(i > 0, promised, 0.5 * tf.reduce_sum(slope * move, 0))
            way -= move
            shrink = tf.reduce_min(longest / tf.maximum(tf.abs(way), 1e-12), 0)
            to = tf.clip_by_value(point.u + way * tf.minimum(shrink, 1.0), lower, upper)
            new = self.objective.linearised(point, to, data, ln_det)
            accept = held(new) <= held(here)
            limited = tf.where(accept, shrink < 1.0, limited)
            inner = _inner_damping(inner, accept)
            return i + 1, _chosen(accept, new, here), inner, promised, limited

        none = tf.zeros_like(damping)
        start = (0, point, none + LEAST_DAMPING, none, none > 0)
        _, here, _, promised, limited = tf.while_loop(lambda i, *_: i < INNER_STEPS, step, start)
        return here, promised, limited

    # ---------------------------------------------------------------- stars in, solutions out

    def batch(self, data, rows):
        """TensorFlow tensors of the stars `rows`, padded to `batch_size` with the last of them."""
        rows = rows[self.padding(len(rows))]
        out = dict(vars(data.observed.take(rows)))
        plx = gaussian_prior(data.parallax[rows], data.parallax_err[rows])
        out["plx"], out["plx_ivar"] = plx
        out |= self.objective.term.tensors(data, rows)
        return {name: tf.constant(value, tf.float32) for name, value in out.items()}

    def padding(self, n):
        """Places 0..n-1, the last one repeated up to `batch_size`."""
        return np.minimum(np.arange(self.batch_size), n - 1)

    def parts(self, data, rows):
        """Places in `rows` of at most `batch_size` stars at a time, and whether their missing
        channels need the noise model's general way."""
        fast = projectable(data.observed.used[rows] > 0, self.model.channels.n_xp)
        for general in (False, True):
            chosen = np.flatnonzero(fast != general)
            for start in range(0, len(chosen), self.batch_size):
                yield chosen[start : start + self.batch_size], general

    def minimise(self, data, u0, evaluations=FIRST_EVALUATIONS, rows=None, noise_at=None):
        """Descents with at most so many evaluations from the starts u0 (M, n) of the stars `rows`
        (M,), default all, with the noise as it is at noise_at (M, n), default the starts. Returns a
        `Solution` of M rows."""
        rows = np.arange(len(data)) if rows is None else rows
        noise_at = u0 if noise_at is None else noise_at
        solution = Solution.empty(len(rows), len(self.at))
        tables = {"noise_tables": self._noise_tables_tf()}
        for part, general in self.parts(data, rows):
            m, pad = len(part), part[self.padding(len(part))]
            starts = (tf.constant(u[pad].T, tf.float32) for u in (u0, noise_at))
            batch = self.batch(data, rows[part]) | tables
            out = self._minimise_tf(*starts, batch, tf.constant(evaluations), general)
            u, phi, chi2, stop = (x.numpy() for x in out)
            solution.put(part, Solution(u.T[:m], phi[:m], chi2[:m], stop[:m]))
        return solution

    def objective_at(self, data, u):
        """phi (N,) at u (N, n), after the best ln plx was put in."""
        return self.minimise(data, u, evaluations=1).phi

    def settle(self, data, u0, rows=None, step=True, over_a_sigma=True):
        """A last step from u0 (M, n) of the stars `rows` (M,), default all, with the noise as it is
        there, and the curvature: `Settled` of M rows.

        converged where the step leads to the minimum; not where another one is needed, or where the
        noise is another one at the end. step: False for the curvature at u0 as it is.

        At a point, the curvature of a learned model may be that of a ripple, and a posterior that
        leans to one side has its mean, and most of the truths, on its flatter one. So over_a_sigma:
        along each principal axis of the covariance (of all coordinates but ln plx, which is at its
        best everywhere), the rise of phi over a sigma on the flatter side takes the place of the
        curvature where it is smaller, down to LEAST_CURVATURE of it. Errors only grow by this.
        """
        rows = np.arange(len(data)) if rows is None else rows
        settled = Settled.empty(len(rows), len(self.at))
        tables = {"noise_tables": self._noise_tables_tf()}
        for part, general in self.parts(data, rows):
            pad = part[self.padding(len(part))]
            batch = self.batch(data, rows[part]) | tables
            start = tf.constant(u0[pad].T, tf.float32)
            out = self._settle_tf(start, batch, general, step, over_a_sigma)
            whole = (np.moveaxis(x.numpy(), -1, 0)[: len(part)] for x in out)
            settled.put(part, Settled(*whole))
        return settled

    def _settle(self, u, data, general, step, over_a_sigma):
        """The fields of `Settled`, stars last, of a step from u (n, B)."""
        whitening = self.objective.whitening(u, data, general)
        here = self.objective.evaluate(u, data, whitening, tf.float64)
        hessian = here.hessian
        end, done = here._replace(u=u), tf.ones_like(here.phi, tf.bool)
        if step:
            here = here._replace(hessian=tf.cast(here.hessian, tf.float32))
            damping = tf.fill(tf.shape(here.phi), START_DAMPING)
            end, promised, limited = self._ahead(here, damping, data, whitening.ln_det)
        precision, phi = hessian, end.phi
        if over_a_sigma:
            precision, phi = self._over_a_sigma(end.u, hessian, data, whitening)
            phi -= whitening.ln_det
        if step:
            agree = tf.abs(phi - end.phi) < AGREED
            done = (_is_small(here.phi - end.phi, promised) | agree) & ~limited
            end = _chosen(phi <= here.phi, end._replace(phi=phi), here)
        stop = tf.cast(tf.where(done, Stop.CONVERGED.value, Stop.ITERATIONS.value), tf.uint8)
        return end.u, end.phi, end.chi2, stop, precision, here.u, hessian, here.gradient

    def _over_a_sigma(self, u, hessian, data, whitening):
        """The precision (n, n, B) float64 at u (n, B) of which the Hessian is about `hessian`: see
        `settle`; and phi (B,) there, but for ln |det S|."""
        n_free = self.at.ln_plx
        curvature, axes = _principal_axes(hessian)  # (B, n_free), (B, n_free, n_free)
        steps = axes * tf.math.rsqrt(tf.where(curvature > 0, curvature, 1.0))[:, None]
        steps = tf.pad(tf.cast(tf.transpose(steps, (2, 1, 0)), u.dtype), ((0, 0), (0, 1), (0, 0)))
        points = u + tf.concat([tf.zeros_like(steps[:1]), steps, -steps], 0)  # (., n, B)
        lower, upper = self.at.lower[:, None], self.at.upper[:, None]
        points = tf.clip_by_value(points, lower, upper)
        phi = self.objective.values(points, data, whitening)
        rise = tf.minimum(phi[1 : n_free + 1], phi[n_free + 1 :]) - phi[0]  # 1/2 for a parabola
        less = tf.clip_by_value(2.0 * tf.transpose(rise), LEAST_CURVATURE, 1.0) - 1.0
        less = tf.cast(less, axes.dtype) * curvature
        change = tf.matmul(axes * less[:, None], axes, transpose_b=True)
        return hessian + tf.pad(tf.transpose(change, (1, 2, 0)), ((0, 1), (0, 1), (0, 0))), phi[0]

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
        """`Settled` of M descents that ended in the `Solution` found, of the stars `rows` (M,)."""
        settled = self.settle(data, found.u, rows)
        left = np.flatnonzero(~settled.converged)
        settled.put(left, self.settle(data, settled.u[left], rows[left]))
        left = np.flatnonzero(~settled.converged)
        found = self.minimise(data, settled.u[left], MORE_EVALUATIONS[-1], rows=rows[left])
        ends = self.settle(data, found.u, rows[left])
        ends.stop = found.stop  # there may be a noise at each of two places that leads to the other
        settled.put(left, ends)
        return settled

    def gaussian(self, data, solution, over_a_sigma=True):
        """The posterior about `Solution`s of all stars as a `Gaussian`: its precision is the
        Hessian (N, n, n) float64 of phi, NaN where there is none, with the noise as it is there;
        over_a_sigma: of `settle`."""
        settled = Settled.empty(len(data), len(self.at))
        rows = np.flatnonzero(np.isfinite(solution.u).all(1))
        settled.put(rows, self.settle(data, solution.u[rows], rows, False, over_a_sigma))
        return settled.gaussian


def _principal_axes(hessian):
    """Curvatures (B, n - 1) and axes (B, n - 1, n - 1) of all coordinates but the last, ln plx, at
    its best everywhere, of Hessians (n, n, B). Where one is not positive definite, they are 0."""
    hessian = tf.transpose(hessian, (2, 0, 1))
    plx = hessian[:, -1, :-1]
    free = hessian[:, :-1, :-1] - plx[:, :, None] * plx[:, None] / hessian[:, -1:, -1:]
    finite = tf.reduce_all(tf.math.is_finite(free), (1, 2))
    curvature, axes = tf.linalg.eigh(tf.where(finite[:, None, None], free, 0.0))
    proper = curvature[:, :1] > 0
    return tf.where(proper, curvature, 0.0), tf.where(proper[:, :, None], axes, 0.0)


def _is_small(gained, promised):
    """Whether a step gains less than CONVERGED_DECREASE (B,) bool: what it gains by the model, and
    where that is nothing, what the gradient promised."""
    return tf.where(gained > 0, gained, promised) < CONVERGED_DECREASE


def _chosen(which, point, other):
    """`Point` that is the one where `which` (B,), else the other."""
    return Point(*(tf.where(which, a, b) for a, b in zip(point, other, strict=True)))


def _next_damping(damping, gain, accept):
    """Less damping after steps that gained what was predicted, more after some that did not."""
    factor = tf.where(gain > 0.75, 0.1, tf.where(gain > 0.25, 0.5, 3.0))
    return tf.where(accept, tf.maximum(damping * factor, LEAST_DAMPING), _more(damping))


def _inner_damping(damping, accept):
    """The same, of steps whose gain is exact."""
    return tf.where(accept, tf.maximum(0.1 * damping, LEAST_DAMPING), _more(damping))


def _more(damping):
    return tf.minimum(tf.maximum(damping, 1e-3) * 8.0, MOST_DAMPING)
