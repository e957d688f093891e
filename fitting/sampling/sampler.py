"""Draws from densities of many stars at once, by Markov chains; a star's own whatever others do.

Every star has an ensemble of walkers. A step moves one half of them and then the other, in turn by
two kinds of moves, each of which leaves the density as it is:

- places proposed from a `Mixture` of t distributions, which knows all modes that were found, so
  that walkers change modes (Metropolis-Hastings with independent proposals);
- away by the difference of two walkers of the other half, which follows the density's own shape
  (differential evolution, ter Braak 2006, Statistics and Computing 16, 239; halves after Foreman-
  Mackey et al. 2013, PASP 125, 306), now and then by all of it: from one mode to another.

The mixture is fitted to the walkers during the warm-up, and held while draws are kept. Stars whose
chains have not mixed go on, with longer ways between two draws, up to a limit.
"""

from dataclasses import dataclass

import numpy as np

from fitting.sampling.mixing import effective_sample_size, split_r_hat
from fitting.sampling.proposals import Mixture
from fitting.sampling.random_numbers import DEGREES, t_numbers, uniforms

WALKERS = 32  # of a star
HALVES = (slice(0, WALKERS // 2), slice(WALKERS // 2, WALKERS))
LEAST_KEPT = 32  # of each walker: fewer do not tell how they mix
WARM_UP = (20, 20, 20, 20)  # steps, after each of which the proposals are fitted to them
BURN_IN = 64  # steps after that, by the proposals as they stay
THINNING = (8, 32, 96)  # steps from one draw kept to the next: the later ones where needed
MOST_R_HAT = 1.05  # above, or with fewer effective draws than this share of those kept, a star
LEAST_ESS = 0.25  # goes on
EM_STEPS = 5  # in each fit
JUMP_SHARE = 0.15  # of the steps by differences that are by all of the difference
ONE_SHARE = 0.4  # that change one coordinate alone
START_WEIGHT = 0.15  # of the mixture at the start, in the fitted one
HALF_T = DEGREES // 2


@dataclass
class Draws:
    """Draws of S stars, in the order in which they came, all walkers after one another.

    values (S, N, D) float32; ess, r_hat (S, D): effective sample size, and split R-hat; acceptance
    (S,): share of the moves that were taken.
    """

    values: np.ndarray
    ess: np.ndarray
    r_hat: np.ndarray
    acceptance: np.ndarray


def sample(density, start, keys, n_draws, shown=lambda x, said: x, n_fresh=0):
    """`Draws` of the values shown(x, said) (S, W, D) of S stars: n_draws of each, or some more.

    density(stars): for an index array (M,), a function of x (M, W', d + f), WALKERS / 2 places of
    each, to their ln density (M, W') and what is to be kept of the places besides, `said`
    (M, W', e). start: `Mixture` (d) of the modes. keys (S,): of the random numbers. n_fresh: f,
    how many of the last coordinates have about a t distribution of unit scale whatever the others
    are: they are drawn anew in each move.
    """
    kept, left, out = max(LEAST_KEPT, -(-n_draws // WALKERS)), np.arange(len(keys)), None
    ensemble = _Ensemble.begun(density, start, keys, n_fresh)
    for thinning in THINNING:
        record, acceptance = ensemble.record(kept, thinning, shown)
        ess, r_hat = effective_sample_size(record), split_r_hat(record)
        found = Draws(_in_order(record), ess, r_hat, acceptance)
        if out is None:
            out = found
        else:
            for mine, new in zip(vars(out).values(), vars(found).values(), strict=True):
                mine[left] = new
        poor = (r_hat.max(1) > MOST_R_HAT) | (ess.min(1) < LEAST_ESS * kept * WALKERS)
        if not poor.any():
            break
        left = left[poor]
        ensemble = ensemble.take(np.flatnonzero(poor), density(left))
    return out


def _in_order(record):
    """A record (L, W, S, D) as (S, L W, D)."""
    flat = record.reshape(-1, *record.shape[2:])
    return np.ascontiguousarray(np.moveaxis(flat, 0, 1))


@dataclass
class _Ensemble:
    """Walkers of S stars at x (S, W, d + f), with their ln density (S, W) and what it says besides
    (S, W, e); the mixture that proposes; how many steps were made."""

    density: object
    keys: np.ndarray
    n_fresh: int
    start: Mixture
    mixture: Mixture
    x: np.ndarray
    ln: np.ndarray
    said: np.ndarray
    step: int = 0
    n_own: int = 0

    @classmethod
    def begun(cls, density, start, keys, n_fresh):
        """After the warm-up, at draws of the mixture `start` at first."""
        out = cls(density(np.arange(len(keys))), keys, n_fresh, start, start, None, None, None)
        out.n_own = start.n_components
        halves = [(x, *out.density(x)) for x in (out._proposed(half)[0] for half in HALVES)]
        out.x, out.ln, out.said = (np.concatenate(parts, 1) for parts in zip(*halves, strict=True))
        out.step = 1  # step 0 was the start
        seen = None
        for n_steps in WARM_UP:
            seen = out._adapt(n_steps, seen)
        out.record(1, BURN_IN, lambda x, said: x[:, :0])
        return out

    def _adapt(self, n_steps, seen):
        """Have the mixture fitted to so many steps and those `seen` before, with a component more
        there where the density is most above what the mixture has; returns all that was seen."""
        d = self.d
        record, _ = self.record(
            n_steps, 1, lambda x, said: np.concatenate([x, self.ln[..., None]], 2)
        )
        record = _in_order(record)
        record = record if seen is None else np.concatenate([seen, record], 1)
        draws, ln = record[..., :d].astype("f8"), record[..., -1] - _ln_t(record[..., d:-1])
        own = self.mixture.take(slice(None), slice(self.n_own))
        lacking = np.argmax(ln - self.mixture.ln_density(draws), 1)
        own = own.grown(draws[np.arange(len(draws)), lacking])
        for _ in range(EM_STEPS):
            own = own.fitted(draws)
        self.mixture, self.n_own = own.beside(self.start, START_WEIGHT), own.n_components
        return record

    @property
    def d(self):
        return self.start.means.shape[2]

    def take(self, stars, density):
        """The same, of some stars; density: theirs."""
        rest = (values[stars] for values in (self.x, self.ln, self.said))
        mixtures = (one.take(stars) for one in (self.start, self.mixture))
        return _Ensemble(
            density, self.keys[stars], self.n_fresh, *mixtures, *rest, self.step, self.n_own
        )

    def record(self, kept, thinning, shown):
        """Draws kept (L, W, S, D), and the share of moves taken (S,), of so many steps each."""
        out, taken = [], np.zeros(len(self.keys))
        for _ in range(kept):
            for _ in range(thinning):
                for half, other in (HALVES, HALVES[::-1]):
                    taken += self._move(half, other)
                self.step += 1
            out.append(np.swapaxes(shown(self.x, self.said), 0, 1).astype("f4"))
        return np.stack(out), taken / (kept * thinning * WALKERS)

    def _move(self, half, other):
        """One move of a half of the walkers; how many (S,) were taken."""
        propose = self._proposed if self.step % 2 else self._differing
        new, ln_ratio, u = propose(half, other)
        ln, said = self.density(new)
        old, d = self.x[:, half], self.d
        ln_ratio += _ln_t(old[..., d:]) - _ln_t(new[..., d:])
        with np.errstate(invalid="ignore"):
            gain = ln - self.ln[:, half] + ln_ratio
        chosen = (np.log(u) < gain) | ~np.isfinite(self.ln[:, half])
        for mine, theirs in ((self.x, new), (self.ln, ln), (self.said, said)):
            where = chosen if mine.ndim == 2 else chosen[:, :, None]
            mine[:, half] = np.where(where, theirs, mine[:, half])
        return chosen.sum(1)

    def _proposed(self, half, other=None):
        """Places (S, W', d + f) of the mixture, ln ratio of the proposals, and numbers to accept
        by (S, W')."""
        u, rest = self._numbers(half, self.mixture.n_uniforms)
        new, fresh = self.mixture.draw(u), self._fresh(rest)
        ratio = 0.0
        if self.x is not None:
            ratio = self.mixture.ln_density(self.x[:, half, : self.d])
            ratio = ratio - self.mixture.ln_density(new)
        return np.concatenate([new, fresh], 2), ratio, rest[..., -1]

    def _differing(self, half, other):
        """The same, away by the difference of two walkers of the other half."""
        u, rest = self._numbers(half, 4)
        others, n, d = self.x[:, other, : self.d], WALKERS // 2, self.d
        first = (u[..., 0] * n).astype(int)
        second = (first + 1 + (u[..., 1] * (n - 1)).astype(int)) % n
        star = np.arange(len(u))[:, None]
        # One coordinate alone, or all of them.
        one = (u[..., 3] / ONE_SHARE * d).astype(int)
        moved = (one[..., None] == np.arange(d)) | (u[..., 3:] > ONE_SHARE)
        # Half to three halves of the step that is best for a Gaussian, or all of the difference.
        size = 2.38 / np.sqrt(2 * moved.sum(2)) * (0.5 + u[..., 2] / (1 - JUMP_SHARE))
        size = np.where(u[..., 2] > 1 - JUMP_SHARE, 1.0, size)[..., None] * moved
        new = self.x[:, half, : self.d] + size * (others[star, first] - others[star, second])
        return np.concatenate([new, self._fresh(rest)], 2), 0.0, rest[..., -1]

    def _numbers(self, half, n):
        """Uniform numbers (S, W', n), and what `_fresh` and accepting take besides."""
        n_walkers = half.stop - half.start
        shape = (n_walkers, n + self.n_fresh * (1 + HALF_T) + 1)
        u = uniforms(self.keys, 2 * self.step + (half.start > 0), shape)
        return u[..., :n], u[..., n:]

    def _fresh(self, u):
        """Numbers (S, W', f) of t distributions."""
        parts = u[..., :-1].reshape(*u.shape[:2], self.n_fresh, 1 + HALF_T)
        return t_numbers(parts)[..., 0]


def _ln_t(x):
    """ln density (...) of t distributions at x (..., f), up to a constant."""
    return -0.5 * (DEGREES + 1) * np.log1p(x**2 / DEGREES).sum(-1)
