"""The best parameters of every star under a model: batched Levenberg-Marquardt.

The solver minimises the objective of `fitting.objective` in the coordinates of
`fitting.coordinates`, from the starts of `fitting.starts`. The noise is evaluated where a descent
starts and held during it.

Everything runs in TensorFlow, compiled, on batches of one fixed shape, so that the same code serves
a CPU and a GPU. Arrays inside are (coordinate, star): "structure of arrays".
"""

import enum
from dataclasses import dataclass

import numpy as np

from fitting.algebra import cholesky_small, solve_small
from fitting.direct import direct_inputs, hide_parallax
from fitting.families import Families
from fitting.objective import MixtureTerm, Objective, Point, gaussian_prior
from fitting.posterior import Gaussian
from fitting.starts import StartSearch
from pipeline.quiet_tensorflow import tf

START_DAMPING = 1e-4
DAMPING_FLOOR = 1e-3  # relative damping of a coordinate without curvature
LEAST_DAMPING, MOST_DAMPING = 1e-7, 1e6
CONVERGED_DECREASE = 1e-3  # of phi, predicted
FIRST_ITERATIONS = 6  # then the unfinished stars are pooled,
SECOND_ITERATIONS = 10  # and again, their noise evaluated anew
POOLED_ITERATIONS = 60
POOR_CHI2 = 1.5  # a flux: with a worse fit, all families are tried after all
TRIAL_ITERATIONS = 5  # then starts that are behind by more than TRIAL_MARGIN in phi end
TRIAL_MARGIN = 5.0
TRIAL_SAME_MODE = 0.3  # of z: starts closer than this to the star's best end as well
SAME_MODE = 0.1  # of z: solutions closer than this are one mode
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


@dataclass
class Seen:
    """What the networks on the observed say of N stars, None where there are none of a kind.

    direct (2, N, K): standardised labels and their errors; distance (2, N, 1): standardised ln flux
    at 1 kpc by the fluxes alone, and its error; kinds (N, 3): probabilities that it is ordinary, a
    blend, or strange.
    """

    direct: np.ndarray | None = None
    distance: np.ndarray | None = None
    kinds: np.ndarray | None = None


@dataclass
class Modes:
    """The best two modes found of N stars: second is the best one of another family of stars, none
    (phi inf) where none was near."""

    best: Solution
    second: Solution


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
        self._minimise_tf = tf.function(self._minimise, jit_compile=True)
        self._curvature_tf = tf.function(objective.curvature, jit_compile=True)
        self._values_tf = tf.function(objective.values, jit_compile=True)

    def _minimise(self, u, noise_at, data, iterations, general):
        """Levenberg-Marquardt from u (n, B), at most `iterations` trial steps, with the noise as
        it is at noise_at (n, B)."""
        objective = self.objective
        lower, upper = self.at.lower[:, None], self.at.upper[:, None]
        whitening, ln_det = objective.whitening(noise_at, data, general)
        point = objective.evaluate(u, data, whitening, ln_det)
        damping = tf.fill(tf.shape(point.phi), START_DAMPING)
        done = tf.zeros_like(point.phi, tf.bool)

        def unfinished(i, point, damping, done):
            return (i < iterations) & ~tf.reduce_all(done)

        def iterate(i, point, damping, done):
            step, limited = self._damped_step(point, damping)
            trial = tf.clip_by_value(point.u + step, lower, upper)
            moved = trial - point.u
            slope = point.gradient + 0.5 * tf.reduce_sum(point.hessian * moved[None], 1)
            predicted = -tf.reduce_sum(moved * slope, 0)
            new = objective.evaluate(trial, data, whitening, ln_det)
            gain = (point.phi - new.phi) / tf.maximum(predicted, 1e-12)
            accept = (new.phi <= point.phi) & ~done
            small = (predicted < CONVERGED_DECREASE) & ~limited & ((damping < 0.1) | ~accept)
            point = Point(*(tf.where(accept, b, a) for a, b in zip(point, new, strict=True)))
            return i + 1, point, _next_damping(damping, gain, accept), done | small

        _, point, damping, done = tf.while_loop(unfinished, iterate, (0, point, damping, done))
        stop = tf.where(
            done,
            Stop.CONVERGED.value,
            tf.where(damping >= MOST_DAMPING, Stop.STALLED.value, Stop.ITERATIONS.value),
        )
        return point.u, point.phi, point.chi2, tf.cast(stop, tf.uint8)

    def _damped_step(self, point, damping):
        """The step -(H + damping diag) ^-1 g (n, B), no longer than allowed; was it shortened?"""
        diagonal = tf.stack([point.hessian[i, i] for i in range(len(self.at))])
        diagonal = damping * (diagonal + DAMPING_FLOOR)
        damped = point.hessian + tf.transpose(tf.linalg.diag(tf.transpose(diagonal)), (1, 2, 0))
        step = -solve_small(cholesky_small(damped, floor=1e-6), point.gradient)
        longest = self.at.largest_step[:, None]
        shrink = tf.reduce_min(longest / tf.maximum(tf.abs(step), 1e-12), 0)
        return step * tf.minimum(shrink, 1.0), shrink < 1.0

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

    def _parts(self, data, rows):
        """Places in `rows` of at most `batch_size` stars at a time, and whether their missing
        channels need the noise model's general way."""
        fast = projectable(data.observed.used[rows] > 0, self.model.channels.n_xp)
        for general in (False, True):
            chosen = np.flatnonzero(fast != general)
            for start in range(0, len(chosen), self.batch_size):
                yield chosen[start : start + self.batch_size], general

    def minimise(self, data, u0, iterations=FIRST_ITERATIONS, rows=None, noise_at=None):
        """At most `iterations` steps from the starts u0 (M, n) of the stars `rows` (M,), default
        all, with the noise as it is at noise_at (M, n), default the starts. Returns a `Solution` of
        M rows."""
        rows = np.arange(len(data)) if rows is None else rows
        noise_at = u0 if noise_at is None else noise_at
        solution = Solution.empty(len(rows), len(self.at))
        for part, general in self._parts(data, rows):
            m, pad = len(part), part[self.padding(len(part))]
            starts = (tf.constant(u[pad].T, tf.float32) for u in (u0, noise_at))
            batch = self.batch(data, rows[part])
            out = self._minimise_tf(*starts, batch, tf.constant(iterations), general)
            u, phi, chi2, stop = (x.numpy() for x in out)
            solution.put(part, Solution(u.T[:m], phi[:m], chi2[:m], stop[:m]))
        return solution

    def objective_at(self, data, u):
        """phi (N,) at u (N, n), after the best ln plx was put in."""
        return self.minimise(data, u, iterations=0).phi

    def finish(self, data, u0, rows=None):
        """Descent from u0 (M, n) of the stars `rows` (M,), default all: all of them first, then
        those unfinished in a pool, twice. (In a batch, the slowest star holds up the others.)"""
        rows = np.arange(len(data)) if rows is None else rows
        solution = self.minimise(data, u0, FIRST_ITERATIONS, rows=rows)
        for iterations in (SECOND_ITERATIONS, POOLED_ITERATIONS):
            left = np.flatnonzero(~solution.converged)
            if len(left):
                again = self.minimise(data, solution.u[left], iterations, rows=rows[left])
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
        for part, general in self._parts(data, solved):
            rows = solved[part]
            batch, u = self.batch(data, rows), solution.u[rows[self.padding(len(rows))]]
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


class StarSolver(Minimiser):
    """Finds the maximum of the posterior of many stars under a `StellarModel`.

    batch_size: see `Minimiser`. seed: of the templates of the start search.
    """

    def __init__(self, model, batch_size=256, seed=0):
        super().__init__(Objective(model, MixtureTerm(model.prior)), batch_size)
        self.starts = StartSearch(model, seed)
        self.families = Families(model.labels)
        self._seen_tf = tf.function(self._seen, jit_compile=True)

    def _seen(self, inputs, hidden):
        """Outputs of the model's networks, in the order of `Seen`; None where it has none."""
        model = self.model
        return tuple(
            None if network is None else tf.stack(getattr(network, what)(x))
            for network, what, x in (
                (model.direct, "estimate", inputs),
                (model.distance, "estimate", hidden),
                (model.oddity, "probabilities", hidden),
            )
        )

    def seen(self, data):
        """`Seen` of the stars: what the networks say; None for the networks that the model has not,
        and for all where the stars have not the finer spectrum that these need."""
        model = self.model
        networks = (model.direct, model.distance, model.oddity)
        if all(one is None for one in networks) or (
            len(model.fine_wavelengths) and data.fine is None
        ):
            return Seen()
        n, n_bands = len(data), len(model.channels) - model.channels.n_xp
        parts = []
        for k in range(0, n, self.batch_size):
            rows = np.arange(k, min(k + self.batch_size, n))
            inputs = direct_inputs(data.take(rows[self.padding(len(rows))]))
            out = self._seen_tf(inputs, hide_parallax(inputs, n_bands))
            parts.append([None if x is None else x.numpy()[..., : len(rows), :] for x in out])
        columns = zip(*parts, strict=True)
        return Seen(*(None if x[0] is None else np.concatenate(x, -2) for x in columns))

    def solve(self, data, direct=None, every_family=None):
        """`Modes` of N stars: start search, and descents from the starts worth it.

        Every start gets a few iterations; those still close to a star's best, but not where it is,
        are finished, with the noise model evaluated anew where they are. Stars whose best fit is
        poor are searched again from all families. direct (2, N, K): of `Seen`, or None;
        every_family: of `StartSearch.find`.
        """
        z_direct = None if direct is None else direct[0][:, self.model.is_forward]
        modes = self._search(data, z_direct, every_family)
        poor = np.flatnonzero(
            (modes.best.chi2 > POOR_CHI2 * data.observed.used.sum(1)) & data.useful_parallax
        )  # the others did so already
        if len(poor):
            z_poor = None if z_direct is None else z_direct[poor]
            again = self._search(data.take(poor), z_poor, every_family=True)
            better = again.best.phi <= modes.best.phi[poor]
            modes.best.put(poor[better], again.best, better)
            modes.second.put(poor[better], again.second, better)
        return modes

    def _search(self, data, z_direct, every_family):
        """`Modes` from the starts worth it; every_family: of `StartSearch.find`."""
        starts, tried = self.starts.find(data, self.batch_size, z_direct, every_family)
        rank, star = np.nonzero(tried.T)  # starts of one kind together: they take alike long
        trial = self.minimise(data, starts[star, rank], TRIAL_ITERATIONS, rows=star)
        go_on = self._worth_finishing(trial, star, len(data))
        finished = self.finish(data, trial.u[go_on], rows=star[go_on])
        return self._modes(finished, star[go_on], len(data))

    def _worth_finishing(self, trial, star, n):
        """Which of the descents `trial` of each of n stars to finish (an index array): the lowest,
        and those not far above it, unless they are in its mode."""
        order = np.lexsort((trial.phi, star))
        stars, first = np.unique(star[order], return_index=True)
        lowest = np.zeros(n, int)
        lowest[stars] = order[first]
        lowest = lowest[star]  # of each descent
        away = np.abs(trial.u[:, self.at.z] - trial.u[lowest, self.at.z]).max(1)
        near = trial.phi <= trial.phi[lowest] + TRIAL_MARGIN
        return np.flatnonzero((lowest == np.arange(len(star))) | (near & (away > TRIAL_SAME_MODE)))

    def _modes(self, finished, star, n):
        """The lowest of the `finished` descents of each of n stars, and that of another family.

        Descents that met in one mode are told from two modes by their distance: near the limit of
        two families, the family alone says nothing.
        """
        best, second = (Solution.empty(n, len(self.at)) for _ in range(2))
        order = np.lexsort((finished.phi, star))
        stars, first = np.unique(star[order], return_index=True)
        best.put(stars, finished, order[first])
        z, z_best = finished.u[:, self.at.z], best.u[star, self.at.z]
        family, family_best = (self.families.of(self.model.theta(x)) for x in (z, z_best))
        other = (family != family_best) & (np.abs(z - z_best).max(1) > SAME_MODE)
        order = order[(other & np.isfinite(finished.phi))[order]]
        stars, first = np.unique(star[order], return_index=True)
        second.put(stars, finished, order[first])
        return Modes(best, second)


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


def _next_damping(damping, gain, accept):
    """Less damping after a step that gained what was predicted, more after one that did not."""
    factor = tf.where(gain > 0.75, 0.1, tf.where(gain > 0.25, 0.5, 3.0))
    return tf.where(
        accept,
        tf.maximum(damping * factor, LEAST_DAMPING),
        tf.minimum(tf.maximum(damping, 1e-3) * 8.0, MOST_DAMPING),
    )
