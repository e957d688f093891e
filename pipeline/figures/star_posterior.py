"""Where a star is among stars, and how well its parameters are known: a part of its page."""

from dataclasses import dataclass

import numpy as np
from matplotlib.patches import Ellipse
from matplotlib.ticker import MaxNLocator

from pipeline.figures.arrays import checked
from pipeline.figures.star_text import named, with_error
from pipeline.figures.style import (
    BLUE,
    GREEN,
    MID_BLUE,
    PALE_BLUE,
    VERMILION,
    corner,
    wrapped,
)
from pipeline.schema import LabelSet
from pipeline.schema.labels import EXTINCTION, PARALLAX

MOST_PAIRS = 6
FRAME_SIGMAS = 3.0  # of the pooled solution, shown at least
NEAR_SIGMAS = 9.0  # what is so near, beside it, is brought into the frame
SHARES = (0.997, 0.95, 0.68)  # of the training stars, within the contours
GRID = 120
GREYS = ("#ececec", "#d6d6d6", "#bcbcbc")
ROOM_FOR_WORDS = 0.25  # of a panel's height
SAND = "#f6e3b5"
UPSIDE_DOWN = ("teff", "logg")  # as astronomers draw them


@dataclass
class StarPosterior:
    """A star's parameters (P,) in the order of `labels.parameters`, units as stored.

    est, cov (P, P): the pooled solution; model_est, model_err: of the forward model alone;
    second_est: in another family of stars, NaN where there is none. plx, plx_err: observed.
    types: weights (M,), means (M, Kf), covariances (M, Kf, Kf) of a mixture of Gaussians that the
    training stars' types are like, or None.
    """

    labels: LabelSet
    est: np.ndarray
    cov: np.ndarray
    model_est: np.ndarray
    model_err: np.ndarray
    second_est: np.ndarray
    plx: float = np.nan
    plx_err: float = np.nan
    types: tuple | None = None

    def __post_init__(self):
        n, scale = len(self.labels.parameters), self.scale
        for name in ("est", "model_est", "model_err", "second_est"):
            setattr(self, name, checked(name, getattr(self, name), (n,)) * scale)
        self.cov = checked("cov", self.cov, (n, n)) * scale * scale[:, None]
        if self.types is not None:
            weights, means, covs = self.types
            k = scale[: len(self.labels.forward)]
            self.types = (weights, means * k, covs * k * k[:, None])

    @property
    def scale(self):
        """From the units as stored to those shown."""
        return np.array([parameter.scale for parameter in self.labels.parameters])

    @property
    def err(self):
        return np.sqrt(np.diag(self.cov))


def kiel_axes(labels):
    """Names of the two labels that stand for a star's place among stars: Teff and log g, or else
    the first two."""
    names = labels.texts("name")
    return ("teff", "logg") if {"teff", "logg"} <= set(names) else tuple(names[:2])


def shown_pairs(labels):
    """Pairs of names of parameters that are shown, an even number of them."""
    first, second = kiel_axes(labels.forward)
    others = [name for name in labels.forward.texts("name") if name not in (first, second)]
    dust, distance = EXTINCTION.name, PARALLAX.name
    pairs = [(first, second), (first, dust), (second, distance)]
    pairs[1:1] = [(first, other) for other in others[: MOST_PAIRS - len(pairs)]]
    return pairs + [(dust, distance)] * (len(pairs) % 2)


def draw_star_posterior(figure, star):
    """The star among the training stars at the left, ellipses of pairs at the right, a legend
    above: into a (sub)figure."""
    pairs = shown_pairs(star.labels)
    rows, across = wrapped(len(pairs), 2 if len(pairs) <= 4 else 3)
    grid = figure.add_gridspec(rows, across + 1, width_ratios=[1.3 * across / 2, *[1] * across])
    overview = figure.add_subplot(grid[:, 0])
    _overview(overview, star)
    for k, pair in enumerate(pairs):
        ax = figure.add_subplot(grid[k // across, 1 + k % across])
        _pair(ax, star, pair, n_ticks=6 - 2 * (across - 1))
    handles = {}
    for ax in figure.axes:
        handles |= dict(zip(*ax.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles),
        fontsize=9, handletextpad=0.4, columnspacing=1.2, handlelength=1.2,
    )  # fmt: skip


# --- Among stars ------------------------------------------------------------------------------
def _overview(ax, star):
    at = _places(star, kiel_axes(star.labels.forward))
    points = [values[at] for values in (star.est, star.model_est, star.second_est)]
    corners = [point for point in points if np.isfinite(point).all()]
    if star.types is not None:
        corners += _contours(ax, star.types, at)
    _marks(ax, star, at)
    low, high = np.min(corners, 0), np.max(corners, 0)
    margin = 0.05 * (high - low) + 2e-2 * star.err[at]
    _frame(ax, star, at, low - margin, high + margin, 4)
    shares = ", ".join(f"{100 * share:.3g}" for share in SHARES[::-1])
    ax.set_title(f"among the training stars ({shares}%)", fontsize=9.5)


def _contours(ax, types, at):
    """Contours that hold SHARES of the mixture, in two of its dimensions; corners of the largest.

    at: places of the two.
    """
    weights, means, covs = types[0], types[1][:, at], types[2][:, at][:, :, at]
    sigma = np.sqrt(np.einsum("mii->mi", covs))
    low, high = (means - 4 * sigma).min(0), (means + 4 * sigma).max(0)
    x, y = (np.linspace(*edge, GRID) for edge in zip(low, high, strict=True))
    density = _density(weights, means, covs, x, y)
    ordered = np.sort(density.ravel())[::-1]
    share = np.cumsum(ordered) / ordered.sum()
    levels = [ordered[min(np.searchsorted(share, part), len(share) - 1)] for part in SHARES]
    levels = sorted(set(levels))
    ax.contourf(x, y, density, [*levels, np.inf], colors=GREYS[-len(levels) :], zorder=0)
    inside = density >= levels[0]
    seen = x[inside.any(0)], y[inside.any(1)]
    return [np.array([v.min() for v in seen]), np.array([v.max() for v in seen])]


def _density(weights, means, covs, x, y):
    """Density (len(y), len(x)) of a mixture of two dimensions, up to a constant."""
    off = np.stack(np.meshgrid(x, y), -1)[None] - means[:, None, None]  # (M, y, x, 2)
    chi2 = np.einsum("mabi,mij,mabj->mab", off, np.linalg.inv(covs), off)
    height = weights / np.sqrt(np.linalg.det(covs))
    return np.einsum("m,mab->ab", height, np.exp(-0.5 * chi2))


# --- Pairs of parameters ----------------------------------------------------------------------
def _pair(ax, star, names, n_ticks):
    at = _places(star, names)
    centre, err = star.est[at], star.err[at]
    low, high = centre - FRAME_SIGMAS * err, centre + FRAME_SIGMAS * err
    beside = [(star.model_est[at], star.model_err[at]), (star.second_est[at], 0.0 * err)]
    if names[1] == PARALLAX.name:
        beside.append((np.array([centre[0], star.plx]), np.array([0.0, 1.3 * star.plx_err])))
    for point, reach in beside:
        if (np.abs(point - centre) < NEAR_SIGMAS * err).all() and np.isfinite(reach).all():
            margin = np.minimum(reach, NEAR_SIGMAS * err) + 0.4 * err
            low, high = np.minimum(low, point - margin), np.maximum(high, point + margin)
    _marks(ax, star, at)
    _frame(ax, star, at, low, high, n_ticks)
    if names[1] == PARALLAX.name:
        _observed_parallax(ax, star)
    for k, axis in enumerate((ax.axhspan, ax.axvspan)):
        if names[1 - k] == EXTINCTION.name and (low[1 - k]) < 0:
            axis(low[1 - k], 0, color="#f0f0f0", lw=0, zorder=0)  # no dust is less than none


def _observed_parallax(ax, star):
    """The observed parallax with its error, or where it is, if that is outside the frame."""
    if not np.isfinite([star.plx, star.plx_err]).all():
        return
    low, high = ax.get_ylim()
    span = (star.plx - star.plx_err, star.plx + star.plx_err)
    if span[0] < high and span[1] > low:
        ax.axhspan(*span, color=SAND, lw=0, zorder=0, label="observed parallax, 1 σ")
        ax.set_ylim(low, high)
    else:
        above, room = span[0] >= high, ROOM_FOR_WORDS * (high - low)
        ax.set_ylim((low, high + room) if above else (low - room, high))
        place = {"y": 0.97, "va": "top"} if above else {"y": 0.03, "va": "bottom"}
        words = f"observed: {with_error(star.plx, star.plx_err)} {'↑' if above else '↓'}"
        corner(ax, words, **place)


def _places(star, names):
    place = {parameter.name: k for k, parameter in enumerate(star.labels.parameters)}
    return [place[name] for name in names]


def _frame(ax, star, at, low, high, n_ticks):
    parameters = [star.labels.parameters[k] for k in at]
    for k, set_limits in enumerate((ax.set_xlim, ax.set_ylim)):
        upside_down = parameters[k].name in UPSIDE_DOWN
        set_limits((high[k], low[k]) if upside_down else (low[k], high[k]))
    ax.set_xlabel(named(parameters[0]))
    ax.set_ylabel(named(parameters[1]))
    ax.xaxis.set_major_locator(MaxNLocator(n_ticks))
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.ticklabel_format(useOffset=False)


def _marks(ax, star, at):
    """Ellipses of the pooled solution, the forward model's with its errors, the second mode."""
    x, y = star.est[at]
    for n_sigma, colour in ((2, PALE_BLUE), (1, MID_BLUE)):
        ax.add_patch(_ellipse(star.est[at], star.cov[np.ix_(at, at)], n_sigma, colour))
    ax.plot(x, y, "o", color=BLUE, ms=5, mew=0, label="solution, 1 and 2 σ", zorder=5)
    style = {"fmt": "D", "ms": 4.5, "mfc": "white", "color": GREEN, "elinewidth": 1.2, "zorder": 4}
    (x, y), (x_err, y_err) = star.model_est[at], star.model_err[at]
    ax.errorbar(x, y, y_err, x_err, label="forward model alone, 1 σ", **style)
    other = star.second_est[at]
    if np.isfinite(other).all():
        ax.plot(*zip(star.est[at], other, strict=True), ":", color=VERMILION, lw=1.0, zorder=1)
        ax.plot(*other, "s", color=VERMILION, ms=6, mew=0, label="second mode", zorder=3)


def _ellipse(centre, cov, n_sigma, colour):
    variance, axes = np.linalg.eigh(cov)
    width, height = 2 * n_sigma * np.sqrt(np.maximum(variance, 0.0))
    angle = np.degrees(np.arctan2(axes[1, 0], axes[0, 0]))
    return Ellipse(centre, width, height, angle=angle, fc=colour, ec=BLUE, lw=0.8, zorder=2)
