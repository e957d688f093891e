"""Figures of how well fluxes are fitted and labels are found."""

from pathlib import Path

import numpy as np
from matplotlib.colors import Normalize

from pipeline.figures.arrays import (
    checked,
    column_percentiles,
    limits_of,
    running_percentiles,
    size_of_spectrum,
)
from pipeline.figures.spectra import band_symbol
from pipeline.figures.style import (
    BLACK,
    BLUE,
    GREY,
    GREY_MAP,
    MAX_POINTS,
    MID_BLUE,
    PALE_BLUE,
    VALUE_MAP,
    VERMILION,
    cloud,
    corner,
    drawing,
    footer,
    halo,
    in_unit,
    no_data,
    number,
    panel_columns,
    tell_outside,
    wrapped,
)
from pipeline.schema import DEFAULT_LABELS
from pipeline.statistics import robust_width

MAX_KIEL_POINTS = 20000


# --- Fluxes -----------------------------------------------------------------------------------
def residuals_by_wavelength(
    path, wavelengths, ratio, pull=None, title="Observed against model flux", n_xp=None
):
    """Median and percentiles of the residuals at every wavelength.

    Args:
        wavelengths (n_wl,): nm.
        ratio (N, n_wl): observed / model - 1, NaN where a flux was not used.
        pull (N, n_wl), optional: (observed - model) / error, NaN likewise.
        n_xp: how many wavelengths are the XP spectrum's.
    """
    wavelengths = checked("wavelengths", wavelengths, (None,))
    n_xp = size_of_spectrum(wavelengths, n_xp)
    ratio = checked("ratio", ratio, (None, len(wavelengths)))
    rows = [("residual (%)", 100 * column_percentiles(ratio))]
    if pull is not None:
        pull = checked("pull", pull, ratio.shape)
        rows.append((r"pull ($\sigma$)", column_percentiles(pull)))
    n_bands = len(wavelengths) - n_xp
    title = f"{title}, {len(ratio):,} stars"
    with drawing(path, 1.4 + 2.6 * len(rows), title) as figure:
        widths = [4.4, max(1.5, 0.3 * n_bands)] if n_bands else [1, 0.001]
        axes = figure.subplots(
            len(rows), 2, sharex="col", sharey="row", width_ratios=widths, squeeze=False
        )
        for pair, (words, percentiles) in zip(axes, rows, strict=True):
            _residual_row(pair, wavelengths[:n_xp], percentiles)
            pair[0].set_ylabel(words)
        if pull is not None:
            for ax in axes[1]:
                for level in (-1.96, -1, 1, 1.96):
                    ax.axhline(level, color=VERMILION, lw=1, ls=":", zorder=3)
            footer(figure, "Dotted: where the 68% and 95% ranges end when the errors are right.")
        _residual_axes(axes, wavelengths, n_xp)
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return Path(path)


def _residual_row(pair, xp, percentiles):
    """Percentiles (5, n_wl): areas at the XP wavelengths xp (left), bars for the bands (right)."""
    low2, low, median, high, high2 = percentiles
    n_xp = len(xp)
    left, right = pair
    left.fill_between(xp, low2[:n_xp], high2[:n_xp], color=PALE_BLUE, lw=0, label="95% of stars")
    left.fill_between(xp, low[:n_xp], high[:n_xp], color=MID_BLUE, lw=0, label="68% of stars")
    left.plot(xp, median[:n_xp], color=BLACK, label="median")
    at = np.arange(len(median) - n_xp)
    right.vlines(at, low2[n_xp:], high2[n_xp:], color=PALE_BLUE, lw=9)
    right.vlines(at, low[n_xp:], high[n_xp:], color=MID_BLUE, lw=9)
    right.plot(at, median[n_xp:], "_", color=BLACK, ms=13, mew=2)
    for ax in pair:
        ax.axhline(0, color=BLACK, lw=0.7, zorder=1)
        ax.grid(True, axis="y")
    if np.isfinite(median).any():
        _residual_frame(left, percentiles)
    else:
        no_data(left)


def _residual_frame(ax, percentiles):
    """A frame that one very noisy end (near 392 nm) cannot spoil."""
    largest = np.nanmax(np.abs(percentiles))
    reach = np.nanmax(
        [
            np.nanmax(np.abs(percentiles[1:4])) * 1.3,
            np.nanpercentile(np.abs(percentiles[[0, 4]]), 92) * 1.2,
            1e-6,
        ]
    )
    reach = min(reach, 1.08 * largest) or 1.0
    ax.set_ylim(-reach, reach)
    if largest > reach:
        place = {"x": 0.97, "y": 0.03, "ha": "right", "va": "bottom", "fontsize": 9}
        corner(ax, "the 95% range reaches beyond the frame", **place)


def _residual_axes(axes, wavelengths, n_xp):
    xp, bands = wavelengths[:n_xp], wavelengths[n_xp:]
    axes[-1, 0].set_xlabel("wavelength (nm), XP spectrum")
    axes[-1, 0].set_xlim(min([380, *(xp - 12)]), max([1000, *(xp + 8)]))
    if not len(bands):
        for ax in axes[:, 1]:
            ax.set_axis_off()
        return
    axes[-1, 1].set_xticks(np.arange(len(bands)), [band_symbol(w) for w in bands])
    axes[-1, 1].set_xlim(-0.6, len(bands) - 0.4)
    axes[-1, 1].set_xlabel("band, photometry")


# --- Labels -----------------------------------------------------------------------------------
def inferred_against_label(
    path, label, estimate, label_err=None, err=None, title="", note="", labels=DEFAULT_LABELS
):
    """Inferred against catalogued labels; below, the difference against the label.

    In the corner: offset (median), scatter (1.4826 MAD) and, where errors are given, the pull
    width (1.4826 MAD of difference / joint error) of all stars, those outside the frame included.

    Args:
        label, estimate (N, K): in the units of the labels.
        label_err, err (N, K), optional: their 1 sigma errors, same units.
        title: says what is seen; note: a line under the figure.
        labels: the K labels.
    """
    label = checked("label", label, (None, len(labels)))
    estimate = checked("estimate", estimate, label.shape)
    variance = None
    for name, sigma in (("label_err", label_err), ("err", err)):
        if sigma is not None:
            square = checked(name, sigma, label.shape).astype(float) ** 2
            variance = square if variance is None else variance + square
    height = 6.6 * wrapped(len(labels))[0]
    with drawing(path, height, title or "Inferred against catalogued labels") as figure:
        axes = panel_columns(figure, len(labels), [1.45, 1])
        for i, shown in enumerate(labels):
            sigma = None if variance is None else np.sqrt(variance[:, i]) * shown.scale
            values = (label[:, i] * shown.scale, estimate[:, i] * shown.scale, sigma)
            _label_column(axes[:, i], *values, shown)
        note = f"\n{note}" if note else ""
        text = "Offset: median. Scatter: 1.4826 MAD. Blue: running median and 16–84%."
        footer(figure, text + note)
    return Path(path)


def _label_column(axes, label, estimate, sigma, shown):
    """The two panels of a label, in the unit shown. label, estimate, sigma (or None) (N,)."""
    top, bottom = axes
    top.set_title(shown.symbol)
    top.set_ylabel(in_unit("inferred", shown))
    bottom.set_ylabel(in_unit("inferred − label", shown))
    bottom.set_xlabel(in_unit(f"label {shown.symbol}", shown))
    seen = np.isfinite(label) & np.isfinite(estimate)
    if not seen.any():
        no_data(top)
        return no_data(bottom)
    x, y = label[seen].astype(float), estimate[seen].astype(float)
    residual = y - x
    tail = 0.05 if len(x) > MAX_POINTS else 0.1 if len(x) > 500 else 0.0
    limits = limits_of(x, y, percentile=tail)
    n_outside = cloud(top, x, y, limits, limits)
    over = {"zorder": 3, "path_effects": halo()} if len(x) > MAX_POINTS else {"zorder": 0.5}
    top.plot(limits, limits, "--", color=VERMILION, lw=1.4, **over)
    pull = None if sigma is None else residual / sigma[seen]
    corner(top, _summary(residual, pull, shown))
    tell_outside(top, n_outside)
    return _residual_against_label(bottom, x, residual, limits)


def _summary(residual, pull, shown):
    unit = f" {shown.shown_unit}".rstrip()
    lines = [
        f"offset {number(np.median(residual), shown.digits)}{unit}",
        f"scatter {number(robust_width(residual), shown.digits)}{unit}",
    ]
    if pull is not None:
        lines.append(f"pull width {number(robust_width(pull), 2)}")
    return "\n".join([*lines, f"{len(residual):,} stars"])


def _residual_against_label(ax, x, residual, xlim):
    reach = np.percentile(np.abs(residual), 99.0 if len(x) > MAX_POINTS else 100.0) * 1.1 or 1.0
    n_outside = cloud(
        ax, x, residual, xlim, (-reach, reach), cmap=GREY_MAP, colour=GREY, cells_across=(60, 24)
    )
    ax.axhline(0, color=VERMILION, ls="--", lw=1.4)
    centres, (low, median, high) = running_percentiles(x, residual, xlim)
    for values in (low, high):
        ax.plot(centres, values, color=BLUE, lw=1.2, path_effects=halo(2.2))
    marker = "o" if np.isfinite(median).sum() < 4 else None
    ax.plot(centres, median, color=BLUE, lw=2.2, marker=marker, path_effects=halo(3.6))
    tell_outside(ax, n_outside)


# --- Stellar types ----------------------------------------------------------------------------
def kiel_diagram(path, theta, title="Inferred stellar types", labels=DEFAULT_LABELS):
    """log g against Teff, coloured by [Fe/H] (its median in each cell when stars are many).

    Where Teff or log g is not among the labels, the second against the first of them; where [Fe/H]
    is not, or is an axis, density.

    Args:
        theta (N, K): in the units of the labels.
        labels: the K labels.
    """
    theta = checked("theta", theta, (None, len(labels)))
    theta = theta.astype(float) * labels.array("scale")
    place = labels.place
    kiel = {"teff", "logg"} <= place.keys()
    at = (place["teff"], place["logg"]) if kiel else (0, 1)
    if place.get("feh", at[0]) not in at:
        at = (*at, place["feh"])
    columns = theta[np.isfinite(theta[:, at]).all(axis=1)][:, at].T  # (2 or 3, N)
    of_axes = [labels.labels[k] for k in at]
    with drawing(path, 6.0, f"{title}, {columns.shape[1]:,} stars") as figure:
        ax = figure.subplots()
        texts = [in_unit(label.symbol, label) for label in of_axes]
        ax.set_xlabel(texts[0])
        ax.set_ylabel(r"$\log\,g$ (dex, $g$ in cm s$^{-2}$)" if kiel else texts[1])
        if not columns.size:
            no_data(ax)
        else:
            _stars(figure, ax, columns, texts[2:])
            if kiel:
                ax.invert_xaxis()
                ax.invert_yaxis()
    return Path(path)


def _stars(figure, ax, columns, colour_text):
    """Stars in a plane, columns (2 or 3, N): x, y, and the value of the text that colours them."""
    x, y = columns[:2]
    tail = 0.02 if len(x) > MAX_POINTS else 0.0
    xlim, ylim = limits_of(x, percentile=tail), limits_of(y, percentile=tail)
    if colour_text:
        _coloured_stars(figure, ax, columns, (*xlim, *ylim), colour_text[0])
    else:
        cells_across = (160, 70) if len(x) > MAX_KIEL_POINTS else (100, 50)
        cloud(ax, x, y, xlim, ylim, cells_across=cells_across)
    outside = (x < xlim[0]) | (x > xlim[1]) | (y < ylim[0]) | (y > ylim[1])
    tell_outside(ax, int(outside.sum()), x=0.02, y=0.98, ha="left", va="top")
    ax.set_xlim(xlim)
    ax.set_ylim(ylim)
    ax.grid(True)


def _coloured_stars(figure, ax, columns, extent, text):
    x, y, value = columns
    same = not np.ptp(value)
    norm = Normalize(value[0] - 1, value[0]) if same else Normalize(*np.percentile(value, [1, 99]))
    style = {"cmap": VALUE_MAP, "norm": norm}
    many = len(x) > MAX_KIEL_POINTS
    if many:
        low_x, high_x, low_y, high_y = extent
        inside = (x >= low_x) & (x <= high_x) & (y >= low_y) & (y <= high_y)
        cells = {"reduce_C_function": np.median, "gridsize": (160, 70), "linewidths": 0.1}
        drawn = ax.hexbin(x[inside], y[inside], C=value[inside], extent=extent, **cells, **style)
    else:
        order = np.random.default_rng(0).permutation(len(x))  # no metallicity always on top
        size = 40 if len(x) < 300 else 7
        drawn = ax.scatter(x[order], y[order], c=value[order], s=size, lw=0, **style)
    bar = figure.colorbar(drawn, ax=ax, extend="both", pad=0.02, aspect=30)
    bar.set_label(f"median {text} in each cell" if many else text)
