"""The best parameters of every star under a model: where to start, and which descents to finish.

The solver minimises the objective of `fitting.objective` in the coordinates of
`fitting.coordinates` by `fitting.minimiser`, from the starts of `fitting.starts`. The noise is
evaluated where a descent starts and held during it, and anew where it ends (`fitting.settling`).
"""

from dataclasses import dataclass

import numpy as np

from fitting.direct import direct_inputs, hide_parallax
from fitting.families import Families
from fitting.objective import MixtureTerm, Objective
from fitting.second_modes import APART, NEAR, POOR_CHI2, WORSE
from fitting.settling import Settler
from fitting.solutions import Settled
from fitting.starts import StartSearch
from pipeline.quiet_tensorflow import compiled, tf

TRIAL_EVALUATIONS = 3  # then starts that are behind by more than TRIAL_MARGIN in phi end
TRIAL_MARGIN = 8.0
TRIAL_SAME_MODE = 0.3  # of z: starts closer than this to the star's best end as well
SAME_MODE = 0.1  # of z: solutions closer than this are one mode


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

    best: Settled
    second: Settled

    def take(self, rows):
        """The same, of some stars (an index array)."""
        return Modes(self.best.take(rows), self.second.take(rows))

    def put(self, rows, other):
        """Put those of another one in the place of `rows`."""
        self.best.put(rows, other.best)
        self.second.put(rows, other.second)


class StarSolver(Settler):
    """Finds the maximum of the posterior of many stars under a `StellarModel`.

    batch_size: of `Minimiser`. seed: of the templates of the start search.
    """

    def __init__(self, model, batch_size=256, seed=0):
        super().__init__(Objective(model, MixtureTerm(model.prior)), batch_size)
        self.starts = StartSearch(model, seed)
        self.families = Families(model.labels)
        self._seen_tf = compiled(self._seen)

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

        Every start gets a few steps; those still close to a star's best, but not where it is, are
        finished. Stars of which the model knows (`StellarModel.search`) that there is hardly
        another mode start at the direct estimate alone. Stars whose best fit is poor are searched
        again from all families. direct (2, N, K): of `Seen`, or None; every_family: of
        `StartSearch.find`.
        """
        z_direct, sure, limit = None, np.zeros(len(data), bool), POOR_CHI2
        if direct is not None:
            direct = direct[:, :, self.model.is_forward]
            z_direct = direct[0]
            if self.model.search is not None:
                sure, limit = ~self.model.search.worth(data, direct), self.model.search.poor
        modes = self._search(data, z_direct, every_family, sure)
        poor = modes.best.chi2 > limit * data.observed.used.sum(1)
        poor = np.flatnonzero(poor & (data.useful_parallax | sure))  # of the others all were tried
        if len(poor):
            z_poor = None if z_direct is None else z_direct[poor]
            modes.put(poor, self._search(data.take(poor), z_poor, True, known=modes.take(poor)))
        return modes

    def search_matters(self, data, direct):
        """For which of N stars (N,) bool a search finds more than a descent from the direct
        estimate (2, N, Kf) of the forward model's labels, a second mode near or a better one; and
        chi^2 (N,) a flux of the best."""
        whole = self._search(data, direct[0])
        alone = self._search(data, direct[0], only_direct=np.ones(len(data), bool))
        z, second = (mode.u[:, self.at.z] for mode in (whole.best, whole.second))
        near = whole.second.phi < whole.best.phi + NEAR
        near &= np.abs(z - second).max(1) > APART
        matters = near | (alone.best.phi > whole.best.phi + WORSE)
        return matters, whole.best.chi2 / data.observed.used.sum(1)

    def _search(self, data, z_direct, every_family=None, only_direct=None, known=None):
        """`Modes` from the starts worth it; every_family, only_direct: of `StartSearch.find`.
        known: `Modes` that a search found before, from the direct estimate too, which are kept."""
        starts, tried = self.starts.find(data, self.batch_size, z_direct, every_family, only_direct)
        n, none = len(data), Settled.empty(0, len(self.at))
        there = none if known is None else known.best.with_rows(known.second)
        whose = np.arange(len(there.u)) % n
        tried[:, 0] &= known is None
        rank, star = np.nonzero(tried.T)  # starts of one kind together: they take alike long
        found = self.minimise(data, starts[star, rank], TRIAL_EVALUATIONS, rows=star)
        for go_on in (self.go_on, self.settle_all):  # some meet only when they end
            worth = self._worth_finishing(found.with_rows(there), np.append(star, whose), n)
            worth = worth[worth < len(star)]
            star, found = star[worth], go_on(data, found.take(worth), star[worth])
        return self._modes(found.with_rows(there), np.append(star, whose), n)

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
        best, second = (Settled.empty(n, len(self.at)) for _ in range(2))
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
