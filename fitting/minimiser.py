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
CONVERGED_DECREASE = 4e-3  # of phi, predicted: 0.1 sigma at most
MOST_ASTRAY = 10.0  # of phi: a step up that may lead down
INNER_STEPS = 4  # between two evaluations
FIRST_EVALUATIONS = 3  # then the unfinished stars are pooled,
POOLED_EVALUATIONS = (6, 10, 24)  # again and again, their noise evaluated anew
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

    def put(self, rows, other, select=slice(None)):
        for name, value in vars(self).items():
            value[rows] = getattr(other, name)[select]


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
        self._curvature_tf = compiled(objective.curvature)
        self._noise_tables_tf = compiled(self.model.noise.tables)
        self._values_tf = compiled(objective.values)

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
            gained = point.phi - ahead.phi
            small = tf.where(gained > 0, gained, promised) < CONVERGED_DECREASE
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

    def finish(self, data, u0, rows=None):
        """Descent from u0 (M, n) of the stars `rows` (M,), default all: all of them first, then
        those unfinished in pools. (In a batch, the slowest star holds up the others.)"""
        rows = np.arange(len(data)) if rows is None else rows
        solution = self.minimise(data, u0, FIRST_EVALUATIONS, rows=rows)
        for evaluations in POOLED_EVALUATIONS:
            left = np.flatnonzero(~solution.converged)
            if len(left):
                again = self.minimise(data, solution.u[left], evaluations, rows=rows[left])
                solution.put(left, again)
        return solution

    def gaussian(self, data, solution, over_a_sigma=True):
        """The posterior about `Solution`s of all stars as a `Gaussian`: its precision is the
        Hessian (N, n, n) float64 of phi, NaN where there is none, with the noise as it is there.

        At a point, the curvature of a learned model may be that of a ripple, and a posterior that
        leans to one side has its mean, and most of the truths, on its flatter one. So over_a_sigma:
        along each principal axis of the covariance (of all coordinates but ln plx, which is at its
        best everywhere), the rise of phi over a sigma on the flatter side takes the place of the
        curvature where it is smaller, down to LEAST_CURVATURE of it. Errors only grow by this.
        """
        n, n_free = len(self.at), self.at.ln_plx
        out, point = (np.full((len(data), n, n), np.nan) for _ in range(2))
        gradient = np.full((len(data), n), np.nan)
        solved = np.flatnonzero(np.isfinite(solution.u).all(1))
        tables = {"noise_tables": self._noise_tables_tf()}
        for part, general in self.parts(data, solved):
            rows = solved[part]
            batch, u = self.batch(data, rows) | tables, solution.u[rows[self.padding(len(rows))]]
            at_u = tf.constant(u.T, tf.float32)
            whitening, hessian, slope = self._curvature_tf(at_u, batch, general)
            hessian = hessian.numpy().transpose(2, 0, 1)
            for own, values in ((point, hessian), (gradient, slope.numpy().T)):
                own[rows] = values[: len(rows)]
            if over_a_sigma:
                curvature, axes = _principal_axes(hessian)
                points = self._a_sigma_away(u, curvature, axes)  # (2 n_free + 1, n, B)
                phi = self._values_tf(tf.constant(points), batch, whitening).numpy()
                rise = np.minimum(phi[1::2], phi[2::2]) - phi[0]  # 1/2 for a parabola
                less = np.clip(2 * rise.T, LEAST_CURVATURE, 1.0) - 1.0
                hessian[:, :n_free, :n_free] += (
                    axes * (less * curvature)[:, None]
                ) @ axes.transpose(0, 2, 1)
            out[rows] = hessian[: len(rows)]
        return Gaussian(solution.u.astype("f8"), out, (point, gradient))

    def _a_sigma_away(self, u, curvature, axes):
        """Points (2 n_free + 1, n, N) float32: u (N, n), and a sigma up and down each of its
        principal axes."""
        n_free = axes.shape[1]
        points = np.repeat(u.T[None], 2 * n_free + 1, 0)
        steps = axes / np.sqrt(np.where(curvature > 0, curvature, 1.0))[:, None]
        steps = steps.transpose(2, 1, 0)  # (axis, coordinate, N)
        points[1::2, :n_free] += steps
        points[2::2, :n_free] -= steps
        return np.clip(points, self.at.lower[:, None], self.at.upper[:, None]).astype("f4")


def _principal_axes(hessian):
    """Curvatures (N, n - 1) and axes (N, n - 1, n - 1) of all coordinates but the last, ln plx, at
    its best everywhere, of Hessians (N, n, n). Where one is not positive definite, curvature and
    axes are 0."""
    free, plx = hessian[:, :-1, :-1], hessian[:, -1, :-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        known = plx[:, :, None] * plx[:, None] / hessian[:, -1, -1, None, None]
    finite = np.isfinite(free - known).all((1, 2))
    curvature, axes = np.linalg.eigh(np.where(finite[:, None, None], free - known, 0.0))
    proper = curvature[:, :1] > 0
    return np.where(proper, curvature, 0.0), np.where(proper[:, :, None], axes, 0.0)


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
