"""Figures of many stars in a plane: cells coloured by what is in them, and running percentiles."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from pipeline.figures.style import (
    BLUE,
    DENSITY_MAP,
    GREY,
    GREY_MAP,
    VALUE_MAP,
    VERMILION,
    drawing,
    footer,
    halo,
    panel_columns,
    plain_log,
    wrapped,
)

LABEL_OF_NUMBER = "stars in a cell"


@dataclass(frozen=True)
class Panel:
    """A plane of stars. Of cells: edges x (nx + 1,), y (ny + 1,) and values (nx, ny), NaN where
    there is none; weights (nx, ny): stars in each, by which colours are spread. Of single stars: x,
    y, values (n,), or values None. label: of the colours; log: colours of the logarithm; title:
    above the panel; lines (3, k) at centres (k,): percentiles."""

    x: np.ndarray
    y: np.ndarray
    values: np.ndarray | None
    label: str = LABEL_OF_NUMBER
    log: bool = False
    title: str = ""
    ylabel: str = ""
    centres: np.ndarray | None = None
    lines: np.ndarray | None = None
    weights: np.ndarray | None = None

    @property
    def of_stars(self) -> bool:
        return self.values is None or self.values.ndim == 1


def _norm(values, log, weights=None):
    """Norm of colours, and at which ends values are beyond it: the central 98% of the stars; all
    where they are numbers of stars."""
    known = np.isfinite(values)
    values = values[known]
    if log and weights is None:
        low = max(values.min(initial=np.inf, where=values > 0), 1e-12)
        return LogNorm(low, max(values.max(), 2 * low)), "neither"
    weights = None if weights is None else weights[known]
    how = {"method": "inverted_cdf", "weights": weights} if weights is not None else {}
    low, high = np.percentile(values, (1, 99), **how)
    if log:
        high = max(high, 1.5 * low)
    elif not high > low:
        low, high = low - max(abs(low), 1) * 0.05, high + max(abs(high), 1) * 0.05
    beyond = (values.min() < low, values.max() > high)
    words = {(True, True): "both", (True, False): "min", (False, True): "max"}
    return (LogNorm if log else Normalize)(low, high), words.get(beyond, "neither")


def planes(path, panels, xlabel, ylabel, title, note="", *, inverted=(), log=()):
    """The same plane of stars, coloured by another quantity in each panel.

    inverted: which of "x", "y" decrease; log: which of them are logarithmic.
    """
    most = _most_across(len(panels))
    rows, across = wrapped(len(panels), most)
    with drawing(path, 0.9 + 3.9 * rows * (1.25 if across == 1 else 1.0), title) as figure:
        axes = panel_columns(figure, len(panels), [1], share_x=False, most=most)[0]
        for k, (ax, panel) in enumerate(zip(axes, panels, strict=True)):
            _plane(figure, ax, panel)
            _scales(ax, panels[0], inverted, log)
            ax.set_xlabel(xlabel)
            if k % across == 0:
                ax.set_ylabel(ylabel)
        footer(figure, note)
    return Path(path)


def _plane(figure, ax, panel):
    if panel.values is None:
        ax.scatter(panel.x, panel.y, s=_size(len(panel.x)), color=BLUE, alpha=0.6, lw=0)
        ax.set_title(f"{len(panel.x):,} stars", fontsize=10, pad=4)
        return
    norm, beyond = _norm(panel.values, panel.log, panel.weights)
    number = panel.label == LABEL_OF_NUMBER
    style = {"norm": norm, "cmap": DENSITY_MAP if number else VALUE_MAP}
    if panel.of_stars:
        known = np.isfinite(panel.values)
        at = (panel.x[known], panel.y[known])
        drawn = ax.scatter(*at, c=panel.values[known], s=_size(known.sum()), lw=0, **style)
    else:
        drawn = ax.pcolormesh(panel.x, panel.y, np.ma.masked_invalid(panel.values).T, **style)
        drawn.set_rasterized(True)
    bar = figure.colorbar(drawn, ax=ax, location="top", aspect=25, pad=0.02, extend=beyond)
    bar.set_label(panel.label, fontsize=9.5)
    if panel.log:
        _log_bar(bar, norm)
    else:
        bar.ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    bar.ax.tick_params(labelsize=8.5)


def _log_bar(bar, norm):
    subs = (1.0, 3.0) if norm.vmax < 30 * norm.vmin else (1.0,)
    bar.ax.xaxis.set_major_locator(LogLocator(subs=subs, numticks=5))
    bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    bar.ax.minorticks_off()


def _size(n):
    return 22 if n < 300 else 7


def _scales(ax, panel, inverted, log):
    """Scales and limits: of the cells, or of the stars."""
    for way, set_scale, set_limits, axis, edges in (
        ("x", ax.set_xscale, ax.set_xlim, ax.xaxis, panel.x),
        ("y", ax.set_yscale, ax.set_ylim, ax.yaxis, panel.y),
    ):
        low, high = edges[np.isfinite(edges)].min(), edges[np.isfinite(edges)].max()
        if way in log:
            set_scale("log")
            plain_log(axis, (1.0, 3.0) if high > 30 * low else (1.0, 2.0, 5.0))
            factor = max((high / low) ** 0.04, 1.1) if panel.of_stars else 1.0
            low, high = low / factor, high * factor
        else:
            axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
            margin = (0.04 * (high - low) or 0.5) if panel.of_stars else 0.0
            low, high = low - margin, high + margin
        set_limits((high, low) if way in inverted else (low, high))
    ax.grid(True)


def _most_across(n):
    """Panels beside each other, of n, so that none stands alone in a row."""
    return 4 if n in (4, 7, 8) else 3


def percentile_panels(path, panels, xlabel, title, note="", *, log_x=False, log_y=True, most=None):
    """Panels of a quantity against another: stars in cells (or single ones) in grey, the median and
    16% and 84% of each column over them (`Panel.lines`).

    log_y: whether the y axes are logarithmic; most: panels beside each other.
    """
    most = most or _most_across(len(panels))
    rows, across = wrapped(len(panels), most)
    with drawing(path, 1.0 + (3.0 if across > 1 else 4.2) * rows, title) as figure:
        axes = panel_columns(figure, len(panels), [1], share_x=False, most=most)[0]
        for ax, panel in zip(axes, panels, strict=True):
            _percentiles(ax, panel)
            ways = ("x" if log_x else "") + ("y" if log_y else "")
            _scales(ax, panel, (), tuple(ways))
            ax.set_xlabel(xlabel)
            ax.set_ylabel(panel.ylabel)
            ax.set_title(panel.title, fontsize=10.5)
        footer(figure, note)
    return Path(path)


def _percentiles(ax, panel):
    if panel.of_stars:
        ax.scatter(panel.x, panel.y, s=_size(len(panel.x)), color=GREY, alpha=0.6, lw=0)
    else:
        norm, _ = _norm(panel.values, True)
        shown = np.ma.masked_invalid(panel.values).T
        ax.pcolormesh(panel.x, panel.y, shown, norm=norm, cmap=GREY_MAP).set_rasterized(True)
    if panel.lines is None:
        return
    low, median, high = panel.lines
    for values in (low, high):
        ax.plot(panel.centres, values, color=BLUE, lw=1.2, path_effects=halo(2.2))
    marker = "o" if np.isfinite(median).sum() < 4 else None
    style = {"color": VERMILION, "lw": 2.0, "marker": marker, "ms": 4}
    ax.plot(panel.centres, median, path_effects=halo(3.4), **style)
