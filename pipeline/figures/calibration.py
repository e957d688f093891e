"""Figures of whether errors and confidences are true."""

from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator

from pipeline.figures.arrays import binomial_interval, checked, wilson_interval
from pipeline.figures.style import (
    BLACK,
    BLUE,
    CYCLE,
    GREY,
    MARKERS,
    SKY,
    drawing,
    footer,
    leftmost,
    no_data,
    panel_columns,
    plain_log,
    wrapped,
)
from pipeline.schema import DEFAULT_LABELS

MAD_SIGMA_ERROR = 1.17  # a Gaussian's MAD-based width has the sampling error 1.17 width / sqrt(n)
BEYOND_3_SIGMA = 0.27  # percent of a Gaussian
GROUP_INCHES, LABEL_INCHES = 0.42, 0.13  # of the height of a group of stars: at least, and a label
MOST_PULL_PANELS = 5  # beside each other
MOST_IN_LEGEND = 5  # labels in a line


# --- Confidences ------------------------------------------------------------------------------
def reliability(
    path,
    predicted,
    correct,
    title="Are the confidences true?",
    n_bins=10,
    labels=DEFAULT_LABELS,
):
    """Fraction found correct against predicted confidence, with counts below; a panel a label.

    Args:
        predicted: {label: (N,)} confidences in 0..1; values outside are left out.
        correct: {label: (N,)} truth (bool, or 0 and 1 with NaN for unknown); the same labels.
        labels: the name of one of them, as a key, is shown by its symbol; other keys as they are.
    """
    if predicted.keys() != correct.keys():
        raise ValueError(
            f"predicted has the labels {sorted(predicted)}, "
            f"correct {sorted(correct)}: give both the same"
        )
    symbols = {label.name: label.symbol for label in labels}
    data = {}
    for name in predicted:
        p = checked(f"predicted {name!r}", predicted[name], (None,))
        c = checked(f"correct {name!r}", correct[name], p.shape)
        seen = (p >= 0) & (p <= 1) & np.isfinite(c)
        data[symbols.get(name, name)] = p[seen], c[seen]
    n = max(len(data), 1)
    height = 7.0 if n == 1 else 5.0 * wrapped(n)[0]
    with drawing(path, height, title) as figure:
        axes = panel_columns(figure, n, [2.6, 1], share_y=True)
        for column, (name, (p, c)) in zip(axes.T, data.items(), strict=False):
            _reliability_column(column, p, c, n_bins)
            column[0].set_title(name, pad=22)  # above the line of `_reliability_points`
        for row, text in zip(axes, ("fraction correct", "stars in bin"), strict=True):
            for ax in leftmost(row):
                ax.set_ylabel(text)
        most = max((ax.dataLim.y1 for ax in axes[1] if ax.patches), default=1.0)
        axes[1, 0].set_ylim(0.7, 1.6 * max(most, 10.0))
        footer(figure, "Bars: 68% binomial intervals.")
    return Path(path)


def _reliability_column(axes, predicted, correct, n_bins):
    top, bottom = axes
    edges = np.linspace(0, 1, n_bins + 1)
    bins = np.minimum((predicted * n_bins).astype(int), n_bins - 1)
    n = np.bincount(bins, minlength=n_bins)
    top.plot([0, 1], [0, 1], "--", color=GREY, lw=1.2)
    if n.any():
        _reliability_points(top, bins, predicted, correct)
        bottom.set_yscale("log")
        plain_log(bottom.yaxis, subs=(1.0,))
    else:
        no_data(top)
    bottom.bar(edges[:-1], n, 1 / n_bins, align="edge", color=SKY, edgecolor="white", lw=0.8)
    bottom.set_xlabel("predicted confidence")
    bottom.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    top.set_xlim(-0.02, 1.02)
    top.set_ylim(-0.02, 1.05)
    for ax in axes:
        ax.grid(True)


def _reliability_points(ax, bins, predicted, correct):
    counts = np.bincount(bins)
    full = counts > 0
    n, k = counts[full], np.bincount(bins, correct)[full]
    low, high = wilson_interval(k, n)
    errors = np.maximum([k / n - low, high - k / n], 0)
    style = {"fmt": "o-", "color": BLUE, "ms": 5, "lw": 1.2, "elinewidth": 1.4, "capsize": 2.5}
    ax.errorbar(np.bincount(bins, predicted)[full] / n, k / n, errors, **style)
    text = f"mean {predicted.mean():.3f}, correct {correct.mean():.3f} of {len(predicted):,} stars"
    ax.text(0.5, 1.02, text, transform=ax.transAxes, ha="center", va="bottom", fontsize=8.5)


# --- Pulls ------------------------------------------------------------------------------------
def pulls_in_bins(
    path, rows, title="Honesty of the errors, by group of stars", labels=DEFAULT_LABELS
):
    """Pull width, share of outliers and scatter in groups of stars: a horizontal dot plot.

    Bars on pull widths are their 1 sigma sampling errors, taking them for 1.4826 MAD. Labels shown
    in the same unit share a panel of scatter.

    Args:
        rows: list of dicts, from the top down: group (name), n (stars), and one number a label in
            pull_width (K,), scatter (K,) in the units of the labels, and frac_gt3 (K,), the
            fraction 0..1 beyond 3 sigma.
        labels: the K labels.
    """
    names = [f"{row['group']}  ({int(row['n']):,})" for row in rows]
    panels = _pull_panels(rows, labels)
    n_labels = len(labels)
    height = max(GROUP_INCHES, LABEL_INCHES * n_labels) * max(len(rows), 2)
    n_blocks = wrapped(len(panels), MOST_PULL_PANELS)[0]
    with drawing(path, 1.0 + (0.7 + height) * n_blocks, title) as figure:
        axes = panel_columns(figure, len(panels), [1], share_y=True, most=MOST_PULL_PANELS)[0]
        for ax, (xlabel, *panel) in zip(axes, panels, strict=True):
            _dots(ax, labels, *panel)
            ax.set_xlabel(xlabel)
        axes[0].set_yticks(np.arange(len(rows)), names)
        axes[0].set_ylim(len(rows) - 0.45, -0.55)
        handles, texts = axes[0].get_legend_handles_labels()
        if handles:
            n_columns = wrapped(n_labels, MOST_IN_LEGEND)[1]
            figure.legend(handles, texts, loc="outside upper right", ncols=n_columns)
    return Path(path)


def _pull_panels(rows, labels):
    """(axis, values (g, K), places of labels shown, value to expect, errors (g, K)) of each panel.

    The last two may be None.
    """
    shape = (len(labels),)
    width, beyond, scatter = (
        np.reshape([checked(key, row[key], shape) for row in rows], (-1, *shape))
        for key in ("pull_width", "frac_gt3", "scatter")
    )
    n = np.array([max(int(row["n"]), 1) for row in rows])
    errors = width * (MAD_SIGMA_ERROR / np.sqrt(n))[:, None]
    everyone = list(range(len(labels)))
    units = labels.texts("shown_unit")
    return [
        ("pull width", width, everyone, 1.0, errors),
        (r"beyond 3$\sigma$ (%)", 100 * beyond, everyone, BEYOND_3_SIGMA, None),
        *(
            (
                f"scatter ({unit})" if unit else "scatter",
                scatter * labels.array("scale"),
                [k for k in everyone if units[k] == unit],
                None,
                None,
            )
            for unit in dict.fromkeys(units)
        ),
    ]


def _dots(ax, labels, values, shown, expected, errors):
    """values (g, K) of the labels shown, one height a group, labels a little apart."""
    y = np.arange(len(values))
    apart = min(0.2, 0.75 / len(labels))
    symbols = labels.texts("symbol")
    for i, k in enumerate(shown):
        ax.errorbar(
            values[:, k],
            y + apart * (i - (len(shown) - 1) / 2),
            xerr=None if errors is None else errors[:, k],
            fmt=MARKERS[k % len(MARKERS)],
            ms=5.5,
            color=CYCLE[k % len(CYCLE)],
            mec="white",
            mew=0.5,
            elinewidth=1.2,
            label=symbols[k],
        )
    for edge in y[:-1] + 0.5:
        ax.axhline(edge, color="#eeeeee", lw=0.8, zorder=0)
    if expected is not None:
        ax.axvline(expected, color=BLACK, lw=1, ls="--", zorder=1)
    finite = values[:, shown][np.isfinite(values[:, shown])]
    top = max([*finite, expected or 0.0]) or 1.0
    ax.set_xlim(0, 1.12 * top)
    ax.grid(True, axis="x")
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))


# --- Posteriors -------------------------------------------------------------------------------
def coverage(
    path,
    ranks,
    levels,
    observed,
    title="Calibration of the posteriors",
    labels=DEFAULT_LABELS,
):
    """Simulation-based calibration: ranks of the truth, and coverage of credible intervals.

    Grey is where 95% of the values lie when the posteriors are right, given the number of stars.

    Args:
        ranks (N, K): rank of the true label within its posterior, 0..1.
        levels (k,): nominal probability of central intervals, 0..1.
        observed (k, K): the fraction of stars whose true label lies inside.
        labels: the K labels.
    """
    ranks = checked("ranks", ranks, (None, len(labels)))
    levels = checked("levels", levels, (None,))
    observed = checked("observed", observed, (len(levels), len(labels)))
    with drawing(path, 6.0 * wrapped(len(labels))[0], title) as figure:
        axes = panel_columns(figure, len(labels), [1, 1.35], share_x=False, share_y=True)
        for i, label in enumerate(labels):
            column = ranks[:, i]
            column = column[(column >= 0) & (column <= 1)]
            _rank_histogram(axes[0, i], column)
            axes[0, i].set_title(f"{label.symbol}, {len(column):,} stars")
            _coverage_curve(axes[1, i], levels, observed[:, i], len(column))
        most = max((ax.dataLim.y1 for ax in axes[0] if ax.has_data()), default=1.0)
        axes[0, 0].set_ylim(0, 1.05 * most)
        for row, text in zip(
            axes, ("stars in bin / expected", "fraction of truths inside"), strict=True
        ):
            for ax in leftmost(row):
                ax.set_ylabel(text)
        footer(figure, "Grey: where 95% of the values lie when the posteriors are right.")
    return Path(path)


def _rank_histogram(ax, ranks):
    ax.set_xlabel("rank of the truth in its posterior")
    ax.set_xlim(0, 1)
    if not len(ranks):
        return no_data(ax)
    n_bins = int(np.clip(len(ranks) // 20, 2, 20))
    expected = len(ranks) / n_bins
    low, high = binomial_interval(len(ranks), 1 / n_bins)
    ax.axhspan(low / expected, high / expected, color=GREY, alpha=0.3, lw=0)
    ax.axhline(1, color=GREY, lw=1)
    counts, edges = np.histogram(ranks, n_bins, (0, 1))
    ax.stairs(counts / expected, edges, baseline=None, color=BLUE, lw=1.8)
    return None


def _coverage_curve(ax, levels, observed, n):
    order = np.argsort(levels)
    levels, observed = levels[order], observed[order]
    grid = np.linspace(0, 1, 41)
    ax.plot([0, 1], [0, 1], "--", color=GREY, lw=1.2)
    if n:
        band = np.array([binomial_interval(n, p) for p in grid]) / n  # (41, 2)
        ax.fill_between(grid, band[:, 0], band[:, 1], color=GREY, alpha=0.3, lw=0)
    seen = np.isfinite(levels) & np.isfinite(observed)
    ax.plot(levels[seen], observed[seen], "o-", color=BLUE, ms=4.5, lw=1.4)
    if not seen.any():
        no_data(ax)
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.02)
    ax.set_box_aspect(1)
    ax.grid(True)
    ax.set_xlabel("nominal probability of the interval")
