"""Draws from the posteriors of chosen stars.

`model_samples` are of the forward model's posterior as it is. `stellar_samples` are of the
catalogue's pool of it with the direct estimate: the same draws, moved and stretched as the pool
moves and narrows their mean and covariance. The error factors of simulated stars are in neither:
they stand for what a Gaussian at the maximum lacks, and draws do not.
"""

import numpy as np

from fitting.catalogue import find_modes, observed_stars
from fitting.posterior import inverse_or_nan, physical
from fitting.sampling.proposals import Mixture
from fitting.sampling.random_numbers import star_keys
from fitting.sampling.sampler import LEAST_KEPT, WALKERS, sample
from fitting.sampling.star_density import StarDensity
from pipeline.schema import Layout, flags, resolved

LEAST_SHARE = 0.05  # of the proposals, of a second mode at the start
WIDE, WIDE_SHARE = 2.5, 0.3  # of the errors: posteriors have tails
BATCH_STARS = {"CPU": 16, "GPU": 512}  # whose densities are computed in one call


class StarSampler:
    """Draws from the posteriors of stars, which `solver`, of a `TrainedModel`, solves first.

    seed: of the random numbers, which depend on it and the source id alone. batch_size: of
    BATCH_STARS.
    """

    def __init__(self, solver, trained, seed=0, batch_size=BATCH_STARS["CPU"]):
        self.solver, self.trained, self.seed = solver, trained, seed
        self.at = solver.at
        self.density = StarDensity(solver.objective, batch_size)

    def columns(self, table, ids, n_draws):
        """Datasets of the kind "samples" but for the ids, of stars whose columns are `table` (see
        `catalogue.infer`) and whose source ids are ids (N,)."""
        layout = Layout(labels=self.trained.stellar.labels, draws=n_draws)
        out = {}
        for name, data in resolved("samples", layout).items():
            if name != layout.release.id_column:
                fill = np.nan if data.dtype[0] == "f" else 0
                out[name] = np.full((len(ids), *data.shape), fill, data.dtype)
        out["sample_flags"][:] = flags.SampleFlag.NO_SOLUTION
        rows, data, _ = observed_stars(table, self.trained.stellar)
        if len(rows):
            proper, found = self._draws(data, ids[rows], n_draws)
            for name, values in found.items():
                out[name][rows[proper]] = values
        return out

    def _draws(self, data, ids, n_draws):
        """Which stars (M,) of `StarData` have a solution, and their columns {name: (M, ...)}."""
        data, seen, _, modes = find_modes(data, self.solver, self.trained.alarms)
        solutions, covariances, share = self._solutions(data, modes)
        proper = np.flatnonzero(np.isfinite(covariances).all((1, 2, 3)))
        if not len(proper):
            return proper, {}
        data, solutions, d = data.take(proper), solutions[proper], self.at.ln_plx
        start = start_mixture(solutions[:, :, :d], covariances[proper][:, :, :d, :d], share[proper])
        draws = sample(
            self.density.of(data, solutions),
            start,
            star_keys(ids[proper], self.seed),
            max(n_draws, LEAST_KEPT * WALKERS),
            self._shown,
            n_fresh=1,
        )
        pooled = self._pooled(draws.values, data, seen.direct, proper)
        kept = np.arange(n_draws) * draws.values.shape[1] // n_draws
        mixed = draws.r_hat.max(1) <= flags.MIXED_R_HAT
        mixed &= draws.ess.min(1) >= flags.MIXED_DRAWS
        return proper, {
            "stellar_samples": physical(pooled[:, kept], self.solver.model),
            "model_samples": physical(draws.values[:, kept], self.solver.model),
            "effective_sample_size": np.minimum(draws.ess, n_draws),
            "r_hat": draws.r_hat,
            "acceptance": draws.acceptance,
            "second_share": _second_share(draws.values[..., self.at.z], solutions[..., self.at.z]),
            "sample_flags": np.where(mixed, 0, flags.SampleFlag.NOT_MIXED).astype("u1"),
        }

    def _shown(self, x, said):
        """Places of the chains as coordinates u (S, W, n)."""
        return np.concatenate([x[..., : self.at.ln_plx], said], 2)

    def _solutions(self, data, modes):
        """Solutions (N, 2, n), covariances (N, 2, n, n) and weights (N, 2) of the best two modes;
        where there is no second one, the first again, of weight 0."""
        best, other = modes.best.gaussian, modes.second.gaussian
        cov, cov_other = (inverse_or_nan(one.precision) for one in (best, other))
        two = np.isfinite(cov_other).all((1, 2)) & np.isfinite(cov).all((1, 2))
        cov_other[~two] = cov[~two]
        other.mean[~two] = best.mean[~two]
        ln_ratio = np.where(two, modes.best.phi - modes.second.phi, -np.inf)
        volumes = [np.linalg.slogdet(one[two])[1] for one in (cov_other, cov)]
        ln_ratio[two] += 0.5 * (volumes[0] - volumes[1])
        share = np.exp(-np.logaddexp(0.0, -ln_ratio))
        share = np.where(two, np.clip(share, LEAST_SHARE, 1 - LEAST_SHARE), 0.0)
        solutions = np.stack([best.mean, other.mean], 1)
        return solutions, np.stack([cov, cov_other], 1), np.stack([1 - share, share], 1)

    def _pooled(self, u, data, direct, rows):
        """Draws u (M, N, n) of the forward model as the pool has them; direct: of `Seen`, of more
        stars, of which these are `rows`; without one, the draws as they are."""
        _, weights = self.trained.errors.of(data)
        if direct is None or not weights[:, 1].any():
            return u
        forward = self.solver.model.is_forward
        of_type = self.trained.errors.of_type(direct[0])[:, forward]
        return pooled_draws(u, *direct[:, rows][:, :, forward], weights, of_type[rows], self.at)


def start_mixture(means, covariances, shares):
    """The `Mixture` at the start, of modes (M, 2, d), and WIDE_SHARE of it wider by WIDE."""
    both = (
        np.concatenate([(1 - WIDE_SHARE) * shares, WIDE_SHARE * shares], 1),
        np.concatenate([means, means], 1),
        np.concatenate([covariances, WIDE**2 * covariances], 1),
    )
    return Mixture.of_covariances(*both)


def pooled_draws(u, z, sigma, weights, of_type, at):
    """Draws u (M, N, n) of the posteriors of M stars, carried to the pool of these with the direct
    estimates z, sigma (M, K): see `posterior.pool`.

    Of mean and covariance of the draws, the pool makes others. The types go there by the linear map
    that moves them least (that of optimal transport between the Gaussians); xi, E and parallax go
    with them along the draws' covariance, E and parallax so that they stay positive. Stars without
    a direct estimate stay as they are.
    """
    k, out = at.n_labels, np.array(u, "f4")
    good = np.flatnonzero(np.isfinite(z).all(1) & np.isfinite(sigma).all(1))
    u, z, extra = u[good].astype("f8"), z[good], weights[good, 1:] / sigma[good] ** 2.0
    mean = u.mean(1)
    away = u - mean[:, None]
    cov = np.einsum("mni,mnj->mij", away, away) / (u.shape[1] - 1)
    own = inverse_or_nan(cov[:, :k, :k])
    pooled = weights[good, :1, None] * own + extra[:, :, None] * np.eye(k)
    step = np.linalg.solve(pooled, (extra * (z - mean[:, :k]))[:, :, None])[:, :, 0]
    factors = of_type[good]
    target = np.linalg.inv(pooled) * factors[:, :, None] * factors[:, None]
    stretch = _least_moving(cov[:, :k, :k], target) - np.eye(k)
    move_z = step[:, None] + np.einsum("mij,mnj->mni", stretch, away[..., :k])
    along = cov[:, k:, :k] @ own
    move = np.concatenate([move_z, np.einsum("mij,mnj->mni", along, move_z)], 2)
    soft = move[..., at.logarithms]
    move[..., at.logarithms] = np.where(soft > 0, np.log1p(np.maximum(soft, 0)), soft)
    moved = at.clip(u + move)
    usable = np.isfinite(moved).all((1, 2))
    out[good[usable]] = moved[usable]
    return out


def _least_moving(cov, target):
    """Symmetric maps (M, k, k) that take Gaussians of covariances cov to such of `target`."""
    root = _power(cov, 0.5)
    inverse = _power(cov, -0.5)
    return inverse @ _power(root @ target @ root, 0.5) @ inverse


def _power(matrices, power):
    """Powers of symmetric positive definite matrices (M, k, k)."""
    values, axes = np.linalg.eigh(matrices)
    values = np.maximum(values, 1e-12 * values[:, -1:])
    return np.einsum("mij,mj,mkj->mik", axes, values**power, axes)


def _second_share(z, solutions):
    """Share (M,) of draws z (M, N, K) that are nearer to the second of the solutions (M, 2, K)."""
    away = ((z[:, :, None] - solutions[:, None]) ** 2).sum(3)
    return (away[..., 1] < away[..., 0]).mean(1)
