"""Figures of how good the labels are where less is known, and of what the flags catch."""

from pathlib import Path

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from pipeline.figures.arrays import checked
from pipeline.figures.style import (
    BLACK,
    BLUE,
    CYCLE,
    GREY,
    MARKERS,
    SKY,
    VERMILION,
    drawing,
    footer,
    in_unit,
    leftmost,
    no_data,
    panel_columns,
    wrapped,
)
from pipeline.schema import DEFAULT_LABELS

DASHES = ("-", "--", ":")
PULL_FRAME = (0.7, 1.3)  # of pull widths, at least
BAR_INCHES, HEADING_INCHES = 0.27, 0.34
BAR = 0.78  # of the distance of bars
LEAST_INSIDE = 0.055  # of a bar: a smaller share has no number within it
# What can come of a star: words, colour, colour of the number on it (None: it stands at the right).
OUTCOMES = (
    ("no flag, right", BLUE, "white"),
    ("flagged", SKY, BLACK),
    ("no flag, wrong", VERMILION, None),
)


# --- Scatter and pulls ------------------------------------------------------------------------
def scores_against(
    path, x, cases, xlabel, title="Scatter and pulls", note="", log_x=False, labels=DEFAULT_LABELS
):
    """Scatter of each label, and its pull width below, against a quantity; a line a case.

    Args:
        x (k,): the quantity, in the unit that xlabel says.
        cases: {(words, more words): {"scatter": (k, K), "pull_width": (k, K)}}, scatter in the
            units of the labels, NaN where there is none. Cases of the same first words have the
            same colour, of the same second words the same dashes.
        note: a line under the figure; log_x: a log axis with a tick at each x.
        labels: the K labels.
    """
    x = checked("x", x, (None,))
    shape = (len(x), len(labels))
    values = {
        words: [checked(f"{key} of {words}", of[key], shape) for key in ("scatter", "pull_width")]
        for words, of in cases.items()
    }
    firsts, seconds = (list(dict.fromkeys(words[k] for words in cases)) for k in (0, 1))
    with drawing(path, 6.4 * wrapped(len(labels))[0], title) as figure:
        axes = panel_columns(figure, len(labels), [1.3, 1])
        for words, (scatter, width) in values.items():
            a, b = firsts.index(words[0]), seconds.index(words[1])
            style = _line_style(a, b)
            for k, label in enumerate(labels):
                axes[0, k].plot(x, scatter[:, k] * label.scale, **style)
                axes[1, k].plot(x, width[:, k], **style)
        for column, label in zip(axes.T, labels, strict=True):
            _trend_axes(column, x, label, log_x)
            column[1].set_xlabel(xlabel)
        for ax in leftmost(axes[1]):
            ax.set_ylabel("pull width")
        _trend_legend(axes[0], firsts, seconds)
        if note:
            footer(figure, note)
    return Path(path)


def _line_style(first, second):
    colour, marker = CYCLE[first % len(CYCLE)], MARKERS[first % len(MARKERS)]
    filled = colour if second == 0 else "white"
    dashes = DASHES[second % len(DASHES)]
    return {"color": colour, "ls": dashes, "marker": marker, "ms": 5, "mfc": filled, "mew": 1.1}


def _trend_axes(column, x, label, log_x):
    top, bottom = column
    top.set_title(label.symbol)
    top.set_ylabel(in_unit("scatter", label))
    highest = max((y for line in top.lines for y in line.get_ydata() if np.isfinite(y)), default=0)
    if highest > 0:
        top.set_ylim(0, 1.08 * highest)
    else:
        no_data(top)
    bottom.axhline(1, color=BLACK, lw=1, ls="--", zorder=1)
    widths = np.concatenate([PULL_FRAME, *(line.get_ydata() for line in bottom.lines)])
    bottom.set_ylim(np.nanmin(widths) - 0.03, np.nanmax(widths) + 0.03)
    for ax in column:
        ax.grid(True)
        if log_x and np.any(x > 0):
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(FixedLocator(x[x > 0]))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        else:
            ax.xaxis.set_major_locator(MaxNLocator(7, integer=True))


def _trend_legend(axes, firsts, seconds):
    """Colours for the first words and, where there is more than one, dashes for the second."""
    colours = [Line2D([], [], label=word, **_line_style(k, 0)) for k, word in enumerate(firsts)]
    dashes = [
        Line2D([], [], color=GREY, ls=DASHES[k % len(DASHES)], label=word)
        for k, word in enumerate(seconds)
    ]
    if colours:
        axes[0].legend(handles=colours, loc="best")
    if len(dashes) > 1:
        axes[1].legend(handles=dashes, loc="best")


# --- Flags ------------------------------------------------------------------------------------
def outcomes(path, groups, title="What is flagged, and what is not", note=""):
    """Shares of stars that have no flag and are right, are flagged, or have none and are wrong.

    Args:
        groups: {heading: {words: (right, flagged, wrong)}}, from the top down; shares 0..1 that add
            up to 1, NaN for a bar that is left out.
        note: a line under the figure.
    """
    groups = {
        heading: {words: checked(words, shares, (len(OUTCOMES),)) for words, shares in bars.items()}
        for heading, bars in groups.items()
    }
    n_bars = sum(map(len, groups.values()))
    height = 1.5 + BAR_INCHES * max(n_bars, 2) + HEADING_INCHES * len(groups)
    with drawing(path, height, title) as figure:
        ax = figure.subplots()
        ticks, y = {}, 0.0
        for heading, bars in groups.items():
            y += HEADING_INCHES / BAR_INCHES
            text = {"fontweight": "bold", "fontsize": 10, "va": "center", "ha": "left"}
            ax.text(0, y - 0.95, heading, **text)
            for words, shares in bars.items():
                _bar(ax, y, shares)
                ticks[y] = words
                y += 1.0
        if not n_bars:
            no_data(ax)
        ax.set_yticks(list(ticks), list(ticks.values()))
        ax.tick_params(axis="y", length=0)
        ax.set_ylim(max(y, 1.0) - 0.3, -0.3)
        ax.set_xlim(0, 100)
        ax.set_xlabel("share of stars (%)")
        ax.spines["left"].set_visible(False)
        square = {"ls": "", "marker": "s", "ms": 9}
        handles = [Line2D([], [], color=c, label=words, **square) for words, c, _ in OUTCOMES]
        figure.legend(handles=handles, loc="outside upper right", ncols=len(handles))
        footer(figure, f"Right of the bars: no flag, wrong (%).{note and ' ' + note}")
    return Path(path)


def _bar(ax, y, shares):
    """A stacked bar of shares (3,) as in OUTCOMES, in percent; right of it the last one."""
    if not np.isfinite(shares).all():
        return
    left = 0.0
    for share, (_, colour, of_text) in zip(100 * shares, OUTCOMES, strict=True):
        ax.barh(y, share, BAR, left, color=colour, edgecolor="white", lw=0.8)
        if of_text and share >= 100 * LEAST_INSIDE:
            text = {
                "ha": "center",
                "va": "center",
                "color": of_text,
                "fontsize": 8.5,
                "clip_on": True,
            }
            ax.text(left + share / 2, y, f"{share:.0f}", **text)
        left += share
    at = {"ha": "left", "va": "center", "fontsize": 8.5, "color": VERMILION}
    ax.text(100.8, y, f"{100 * shares[2]:.1f}", **at)
