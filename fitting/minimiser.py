"""Batched Levenberg-Marquardt: descends to the minimum of the objective of many stars at a time.

Everything runs in TensorFlow, compiled, on batches of one fixed shape, so that the same code serves
a CPU and a GPU. Arrays inside are (coordinate, star): "structure of arrays".

An evaluation of the objective is a network, its tangents and a product with the star's whitening;
what follows from their Gram matrix alone costs little. So between two evaluations there are several
steps on the objective with ln flux linear in the type (`Objective.linearised`), and the next
evaluation says whether they are good.
"""

import numpy as np

from fitting.algebra import cholesky_small, solve_small
from fitting.objective import Point, gaussian_prior
from fitting.solutions import Solution, Stop
from pipeline.quiet_tensorflow import compiled, tf

START_DAMPING = 1e-7
DAMPING_FLOOR = 1e-3  # relative damping of a coordinate without curvature
LEAST_DAMPING, MOST_DAMPING = 1e-7, 1e6
CONVERGED_DECREASE = 0.02  # of phi, predicted, and gained: what is left is some 0.1 sigma
MOST_ASTRAY = 10.0  # of phi: a step up that may lead down
INNER_STEPS = 4  # between two evaluations
FIRST_EVALUATIONS = 3


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
            best = chosen(accept, new, best)
            point = chosen(accept | stray, new, best)
            next_damping = tf.where(stray, damping, _next_damping(damping, gain, accept))
            damping = tf.where(i > 0, next_damping, damping)
            ahead, promised, limited = self._ahead(point, damping, data, whitening.ln_det)
            small = is_small(point.phi - ahead.phi, promised)
            small &= ~limited & ((damping < 0.1) | ~accept) & ~stray
            trial = chosen(done, trial, ahead)
            return i + 1, best, point, trial, damping, stray, done | small

        none = tf.zeros([n_stars], tf.bool)
        start = (0, nowhere, nowhere, nowhere, damping, none, none)
        _, point, _, trial, damping, _, done = tf.while_loop(unfinished, iterate, start)
        point = chosen(done & (evaluations > 1), trial, point)
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
            return i + 1, chosen(accept, new, here), inner, promised, limited

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


def is_small(gained, promised):
    """Whether a step gains less than CONVERGED_DECREASE (B,) bool: what it gains by the model, and
    where that is nothing, what the gradient promised."""
    return tf.where(gained > 0, gained, promised) < CONVERGED_DECREASE


def chosen(which, point, other):
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
