"""Observed stars as the model takes them: ln fluxes, relative errors, what is used."""

import dataclasses
import functools
from dataclasses import dataclass

import numpy as np

from xp_utils import FluxChannels

MIN_FLUX_SIGMAS = 0.7  # ln flux is taken of at least this many sigma: fluxes may be negative
USEFUL_PARALLAX_ERR = 0.5  # of the parallax: with a larger error, it says little
OBSERVED = ("flux", "flux_err", "plx", "plx_err")  # datasets that stars are observed by
FINE = "xp_fine"  # and, where the release has it, the XP spectrum on a finer grid


@dataclass
class LnFlux:
    """Observed fluxes as the likelihood takes them, float32.

    value (N, n): ln flux, 0 where not used; rel_err (N, n): relative error, 1 where not used;
    used (N, n): 1 or 0; features (N, 2): brightness (mean ln flux of RP, or else of BP) and the
    mean ln relative error of the XP fluxes.
    """

    value: np.ndarray
    rel_err: np.ndarray
    used: np.ndarray
    features: np.ndarray

    def take(self, rows):
        """The same, of some rows (an index array or slice)."""
        return LnFlux(*(v[rows] for v in vars(self).values()))

    def hide(self, rows, channels):
        """Have the stars `rows` not observed in some channels, in place; the features stay."""
        where = np.ix_(np.flatnonzero(rows), channels)
        for values, blank in ((self.value, 0.0), (self.rel_err, 1.0), (self.used, 0.0)):
            values[where] = blank


def used_fluxes(flux, flux_err):
    """Which fluxes count (N, n) bool: those that are finite, with a finite error above 0."""
    return np.isfinite(flux) & np.isfinite(flux_err) & (np.asarray(flux_err) > 0)


def floored_flux(flux, flux_err):
    """Fluxes (N, n) as ln flux is taken of them: at least MIN_FLUX_SIGMAS errors."""
    return np.maximum(flux, MIN_FLUX_SIGMAS * flux_err)


def ln_flux_data(flux, flux_err, channels):
    """`LnFlux` of fluxes and errors (N, n); error inf = not used. channels: `FluxChannels`.

    A flux below 0.7 sigma is replaced by that: y = ln max(f, 0.7 sigma), with the relative error
    sigma / max(f, 0.7 sigma).
    """
    flux, flux_err = np.asarray(flux, "f4"), np.asarray(flux_err, "f4")
    used = used_fluxes(flux, flux_err)
    err = np.where(used, flux_err, 1.0)
    floored = np.where(used, floored_flux(flux, err), 1.0)
    value, rel_err = np.log(floored), np.where(used, err / floored, 1.0)
    xp = used & (channels.bp | channels.rp)
    red = xp & ~channels.bp
    bright = np.where(red.any(1)[:, None], red, xp)
    features = np.stack([_masked_mean(value, bright), _masked_mean(np.log(rel_err), xp)], 1)
    return LnFlux(*(np.ascontiguousarray(x, "f4") for x in (value, rel_err, used, features)))


def _masked_mean(values, mask):
    """Mean over axis 1 where mask is true; 0 where it never is."""
    return np.where(mask, values, 0.0).sum(1) / np.maximum(mask.sum(1), 1)


@dataclass
class StarData:
    """Observed stars: what the solver needs of each.

    flux, flux_err (N, n) as `xp_utils.flux_vectors` makes them (error inf = not used), channels:
    what they are of; parallax, parallax_err (N,) mas, NaN where there is none. theta, theta_err
    (N, K): labels as Gaussian priors. extinction, extinction_err (N,): a Gaussian prior on E (error
    inf = none). These four: training only. fine (N, m), where there is one: the XP spectrum on the
    release's finer grid, over `xp_utils.reference_flux`, NaN where not used.
    """

    flux: np.ndarray
    flux_err: np.ndarray
    parallax: np.ndarray
    parallax_err: np.ndarray
    channels: FluxChannels
    theta: np.ndarray | None = None
    theta_err: np.ndarray | None = None
    extinction: np.ndarray | None = None
    extinction_err: np.ndarray | None = None
    fine: np.ndarray | None = None

    def __len__(self):
        return len(self.flux)

    @classmethod
    def of_table(cls, table, channels, rows=slice(None)):
        """The stars `rows` of a table with the columns OBSERVED, and FINE if it has that."""
        fine = table[FINE][rows] if FINE in table else None
        return cls(*(table[name][rows] for name in OBSERVED), channels, fine=fine)

    @property
    def has_fine(self):
        """Whether the stars have the XP spectrum on a finer grid."""
        return self.fine is not None

    @functools.cached_property
    def observed(self):
        """`LnFlux` of the stars, made once: the arrays are not to be changed afterwards."""
        return ln_flux_data(self.flux, self.flux_err, self.channels)

    @property
    def useful_parallax(self):
        """Which stars have a parallax larger than twice its error (N,) bool."""
        measured = np.isfinite(self.parallax) & (self.parallax_err > 0)
        return measured & (self.parallax_err < USEFUL_PARALLAX_ERR * self.parallax)

    def without_parallax(self):
        """The same stars, their parallaxes hidden."""
        nothing = np.full_like(self.parallax, np.nan)
        return dataclasses.replace(self, parallax=nothing, parallax_err=nothing)

    def with_labels(self, chosen):
        """The same stars with some of their labels (K,) bool."""
        theta, err = self.theta[:, chosen], self.theta_err[:, chosen]
        return dataclasses.replace(self, theta=theta, theta_err=err)

    def take(self, rows):
        """The same, of some rows (an index array or slice)."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        per_star = {k: v[rows] for k, v in values.items() if isinstance(v, np.ndarray)}
        return StarData(**values | per_star)


def without_parallax(table):
    """The same columns, the parallaxes hidden."""
    return table | {name: np.full_like(table[name], np.nan) for name in ("plx", "plx_err")}
