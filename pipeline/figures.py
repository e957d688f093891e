"""Figures, all drawn here and from arrays only: nothing of files but the PNG that is written.

Every function is `name(path, ...) -> Path`. It draws one figure and saves it as a PNG, which
appears under its name only when whole. Common to all:

    wavelengths (n_wl,) in nm: XP sampled spectrum first (below 1100 nm), photometric bands after
    stellar labels (N, 3) = Teff / 1000 K, [Fe/H] / dex, log g / dex; Teff is shown in K
    NaN or inf means "not there": left out, never drawn, never an error
    arrays of shapes that do not fit together raise ValueError before anything is drawn

Nothing here imports pyplot, so no figure stays open and no setting of the caller's is changed.
"""

import math
import os
import secrets
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from xp_utils import PHOTOMETRIC_BANDS

# --- Style ------------------------------------------------------------------------------------
WIDTH = 9.0  # inches, of every figure: shown 830 pixels wide, 10.5 points are 13 pixels
STYLE = {
    "figure.dpi": 160, "savefig.dpi": 160, "figure.facecolor": "white",
    "font.family": "DejaVu Sans", "font.size": 10.5, "mathtext.fontset": "dejavusans",
    "axes.titlesize": 11, "axes.labelsize": 10.5, "xtick.labelsize": 9.5, "ytick.labelsize": 9.5,
    "legend.fontsize": 9.5, "legend.frameon": False, "figure.titlesize": 12.5,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.grid": False, "grid.color": "#dddddd", "grid.linewidth": 0.6, "lines.linewidth": 1.6,
}  # fmt: skip
# Okabe & Ito's palette, told apart with every common colour blindness.
PALE_BLUE, MID_BLUE = "#cfe8f7", "#7fb8da"  # 95% and 68% of stars
BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
PURPLE, SKY, BLACK, GREY = "#CC79A7", "#56B4E9", "#222222", "#888888"
CYCLE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
LABEL_COLOURS, LABEL_MARKERS = (BLUE, VERMILION, GREEN), ("o", "s", "D")
DASHES = ("-", "--", "-.", ":")
# Perceptually uniform, less the ends too pale to be seen on white.
DENSITY_MAP = ListedColormap(mpl.colormaps["viridis"](np.linspace(0.0, 0.97, 256)))
GREY_MAP = ListedColormap(mpl.colormaps["Greys"](np.linspace(0.15, 0.75, 256)))
VALUE_MAP = ListedColormap(mpl.colormaps["viridis"](np.linspace(0.0, 0.92, 256)))
TEFF_MAP = ListedColormap(mpl.colormaps["plasma_r"](np.linspace(0.12, 1.0, 256)))  # cool orange

# --- What is drawn how ------------------------------------------------------------------------
LABEL_AXES = (r"$T_\mathrm{eff}$ (K)", "[Fe/H] (dex)", r"$\log\,g$ (dex)")
LABEL_NAMES = (r"$T_\mathrm{eff}$", "[Fe/H]", r"$\log\,g$")
LABEL_UNITS, LABEL_DIGITS = ("K", "dex", "dex"), (0, 3, 3)
LABEL_SCALE = np.array([1000.0, 1.0, 1.0])  # kK -> K
XP_MAX_NM = 1100.0  # what is redder is photometry: RP ends near 1050 nm
NORM_NM = 550.0  # where extinction curves are set to 1
MAX_POINTS = 2000  # more stars than this are shown as density
MAX_KIEL_POINTS = 20000
MIN_IN_BIN = 8  # stars, for a percentile to be drawn
PERCENTILES = (2.5, 16.0, 50.0, 84.0, 97.5)
MAD_TO_SIGMA = 1.4826  # of a Gaussian
MAD_SIGMA_ERROR = 1.17  # a Gaussian's MAD-based width has the sampling error 1.17 width / sqrt(n)


# --- Saving -----------------------------------------------------------------------------------
@contextmanager
def _drawing(path, height, title=""):
    """A Figure in our style, WIDTH x height inches, saved when the block ends without error."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06, wspace=0.03, hspace=0.03)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        yield figure
        _save(figure, Path(path))


def _save(figure, path):
    """Write a PNG beside its final name, sync, rename; nothing is left behind on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "xb") as file:
            figure.savefig(file, format="png")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# --- Arrays -----------------------------------------------------------------------------------
def _array(name, values, shape):
    """values as floats of a shape in which None is any length, NaN for inf. Raises ValueError."""
    values = np.asarray(values)
    fits = values.ndim == len(shape) and all(
        want in (None, got) for want, got in zip(shape, values.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(
            f"{name} has shape {values.shape}, expected ({wanted}): "
            "give one row per star (or curve) and one column per wavelength or label"
        )
    values = values if values.dtype.kind == "f" else values.astype(float)
    return np.where(np.isfinite(values), values, np.nan)


def robust_width(values):
    """1.4826 MAD of the finite values, NaN where there are none."""
    values = values[np.isfinite(values)]
    if not values.size:
        return np.nan
    return float(MAD_TO_SIGMA * np.median(np.abs(values - np.median(values))))


def _limits(*arrays, percentile=0.0, pad=0.04):
    """Axis limits (low, high): the percentile range of all finite values, and a margin."""
    values = np.concatenate([np.ravel(a) for a in arrays])
    values = values[np.isfinite(values)].astype(float)
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, [percentile, 100 - percentile])
    margin = pad * (high - low) if high > low else 0.05 * max(abs(low), 0.1)
    return low - margin, high + margin


def _column_percentiles(values):
    """PERCENTILES (5, n_wl) of the finite values in each column of (N, n_wl)."""
    out = np.full((len(PERCENTILES), values.shape[1]), np.nan)
    for column in range(values.shape[1]):
        finite = values[np.isfinite(values[:, column]), column]
        if finite.size:
            out[:, column] = np.percentile(finite, PERCENTILES)
    return out


def _running_percentiles(x, y, limits, n_bins=24):
    """Bin centres (m,) and the 16th, 50th, 84th percentile (3, m) of y in bins of x.

    A bin with fewer than MIN_IN_BIN stars has NaN: lines are not drawn over it.
    """
    edges = np.linspace(*limits, n_bins + 1)
    bins = np.digitize(x, edges) - 1
    out = np.full((3, n_bins), np.nan)
    for i in range(n_bins):
        inside = y[bins == i]
        if inside.size >= MIN_IN_BIN:
            out[:, i] = np.percentile(inside, PERCENTILES[1:4])
    return 0.5 * (edges[1:] + edges[:-1]), out


def _binomial_interval(n, p, level=0.95):
    """Counts (low, high) that hold at least `level` of a binomial distribution, exactly."""
    if n == 0:
        return 0, 0
    if not 0.0 < p < 1.0:
        return (0, 0) if p <= 0.0 else (n, n)
    ln_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1.0, n + 1)))])
    k = np.arange(n + 1)
    ln_pmf = (
        ln_factorial[n]
        - ln_factorial
        - ln_factorial[::-1]
        + k * math.log(p)
        + (n - k) * math.log1p(-p)
    )
    cumulative = np.cumsum(np.exp(ln_pmf))
    tail = (1.0 - level) / 2
    low, high = np.searchsorted(cumulative, [tail, 1 - tail])
    return int(low), min(int(high), n)


def _wilson_interval(k, n, z=1.0):
    """Wilson's z-sigma interval (low, high) of a fraction k / n; a k of 0 or n gets a width too."""
    centre = (k + 0.5 * z * z) / (n + z * z)
    half = z / (n + z * z) * np.sqrt(k * (n - k) / n + 0.25 * z * z)
    return centre - half, centre + half


# --- Pieces of figures ------------------------------------------------------------------------
def _halo(width=3.0):
    return [withStroke(linewidth=width, foreground="white")]


def _corner(ax, text, x=0.03, y=0.97, ha="left", va="top", **style):
    style = {"fontsize": 9.5, "linespacing": 1.35} | style
    ax.text(
        x,
        y,
        text,
        transform=ax.transAxes,
        ha=ha,
        va=va,
        zorder=10,
        bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5},
        **style,
    )


def _footer(figure, text):
    figure.supxlabel(text, x=0.01, ha="left", fontsize=9, color="#555555")


def _no_data(ax):
    ax.text(0.5, 0.5, "no data", transform=ax.transAxes, ha="center", va="center", color=GREY)


def _number(value, digits):
    # Adding 0.0 turns -0.0 into 0.0.
    return (
        "n/a"
        if not np.isfinite(value)
        else f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")
    )


def _plain_log(axis, subs=(1.0, 2.0, 5.0)):
    """Ticks of a log axis as plain numbers (0.5, 1, 2), not powers of ten."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def _log_y(ax):
    """A log y axis with plain numbers, where there is anything to show."""
    if not np.isfinite(ax.dataLim.minposy):
        return _no_data(ax)
    ax.set_yscale("log")
    return _plain_log(ax.yaxis)


def _wavelength_axis(ax):
    """A log wavelength axis in um with the ticks people know."""
    ax.set_xscale("log")
    ax.set_xlim(0.37, 5.2)
    ax.xaxis.set_major_locator(FixedLocator([0.4, 0.5, 0.6, 0.8, 1, 1.5, 2, 3, 5]))
    ax.xaxis.set_minor_locator(FixedLocator([0.7, 0.9, 2.5, 4]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _band_name(wavelength):
    """Name of the photometric band at a wavelength in nm."""
    for band in PHOTOMETRIC_BANDS:
        if abs(band.wavelength - wavelength) < 1.0:
            return "$K_s$" if band.name == "Ks" else band.name
    return f"{wavelength / 1000:.3g}"


def _name_bands(ax, wavelengths, y=1.0):
    """Names of the photometric bands along the top of a panel in um."""
    for wavelength in wavelengths[wavelengths > XP_MAX_NM]:
        ax.axvline(wavelength / 1000, color="#eeeeee", lw=0.8, zorder=0)
        ax.text(
            wavelength / 1000,
            y,
            _band_name(wavelength),
            transform=ax.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=9,
            color="#555555",
        )


def _spectrum(ax, wavelengths, values, colour, **style):
    """One curve: the XP spectrum as a line, photometric bands as points, x in um."""
    xp = wavelengths < XP_MAX_NM
    um = wavelengths / 1000
    ax.plot(um[xp], values[xp], color=colour, **style)
    ax.plot(um[~xp], values[~xp], "o", color=colour, ms=4.5, mew=0, zorder=style.get("zorder", 2))


def _cloud(ax, x, y, xlim, ylim, cmap=DENSITY_MAP, colour=BLUE, cells_across=(60, 36)):
    """Stars at (x, y) within the limits: points when few, hexagons of log density when many.

    Returns the number of stars outside the limits.
    """
    inside = (x >= xlim[0]) & (x <= xlim[1]) & (y >= ylim[0]) & (y <= ylim[1])
    if len(x) <= MAX_POINTS:
        size, alpha = (18, 0.7) if len(x) < 300 else (6, 0.4)
        ax.scatter(x[inside], y[inside], s=size, color=colour, alpha=alpha, lw=0, zorder=2)
    else:
        cells = ax.hexbin(
            x[inside],
            y[inside],
            gridsize=cells_across,
            mincnt=1,
            cmap=cmap,
            extent=(*xlim, *ylim),
            linewidths=0.1,
        )
        cells.set_norm(LogNorm(1, np.max(np.asarray(cells.get_array()), initial=2)))
    ax.set_xlim(xlim)
    ax.set_ylim(ylim)
    return int((~inside).sum())


# --- Training ---------------------------------------------------------------------------------
def loss_history(
    path, epoch, series, learning_rate=None, title="Training history", ylabel="loss", xlabel="epoch"
):
    """Losses against epoch, the learning rate below.

    Args:
        epoch (n,): epochs.
        series: {name: (n,)} losses; NaN where a loss was not computed.
        learning_rate (n,), optional.
        title, ylabel, xlabel: what the losses are, and of which stages the epochs.
    """
    epoch = _array("epoch", epoch, (None,))
    series = {
        name: _array(f"series {name!r}", values, epoch.shape) for name, values in series.items()
    }
    if learning_rate is not None:
        learning_rate = _array("learning_rate", learning_rate, epoch.shape)
    with _drawing(path, 4.6 if learning_rate is None else 5.4, title) as figure:
        ratios = [1] if learning_rate is None else [3.4, 1]
        axes = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios, squeeze=False)
        _losses(axes[0, 0], epoch, series)
        axes[0, 0].set_ylabel(ylabel)
        if learning_rate is not None:
            _learning_rate(axes[1, 0], epoch, learning_rate)
        axes[-1, 0].set_xlabel(xlabel)
        axes[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    return Path(path)


def _losses(ax, epoch, series):
    marker = "o" if len(epoch) <= 30 else None
    for i, (name, values) in enumerate(series.items()):
        seen = np.isfinite(values) & np.isfinite(epoch)
        if not seen.any():
            continue
        best = np.flatnonzero(seen)[np.argmin(values[seen])]
        text = f"{name} (lowest {values[best]:.4g} at epoch {epoch[best]:g})".replace("-", "−")
        ax.plot(
            epoch[seen],
            values[seen],
            DASHES[i % 4],
            color=CYCLE[i % 7],
            marker=marker,
            ms=4,
            label=text,
        )
        ax.plot(epoch[best], values[best], "o", color=CYCLE[i % 7], ms=7, mfc="white", mew=1.6)
    ax.grid(True, which="major")
    if not ax.lines:
        return _no_data(ax)
    ax.legend(loc="upper right")
    return _loss_scale(ax, epoch, np.array(list(series.values())))


def _loss_scale(ax, epoch, values):
    """Log y for positive losses over a factor of 4; else a frame that a wild start cannot spoil."""
    finite = values[np.isfinite(values)]
    if finite.min() > 0 and finite.max() > 4 * finite.min():
        ax.set_yscale("log")
        return _plain_log(ax.yaxis)
    late = values[:, len(epoch) // 10 :]
    late = late[np.isfinite(late)]
    if late.size and np.ptp(finite) > 10 * np.ptp(late) > 0:
        ax.set_ylim(_limits(late, pad=0.08))
        _corner(ax, "the first epochs lie outside the frame", y=0.04, va="bottom", color="#555555")
    return None


def _learning_rate(ax, epoch, learning_rate):
    seen = np.isfinite(learning_rate) & (learning_rate > 0)
    ax.set_ylabel("learning rate")
    ax.grid(True)
    if not seen.any():
        return _no_data(ax)
    ax.plot(
        epoch[seen],
        learning_rate[seen],
        color=BLACK,
        drawstyle="steps-mid",
        marker="o" if len(epoch) <= 30 else None,
        ms=3,
    )
    if np.ptp(learning_rate[seen]) > 0:
        ax.set_yscale("log")
        ax.yaxis.set_minor_formatter(NullFormatter())
    return None


# --- The model --------------------------------------------------------------------------------
def extinction_curve(
    path, wavelengths, xi, ln_curve, title="The learned extinction curve and its variation"
):
    """R(lambda), 1 at 550 nm, for several xi; below, the ratio to xi = 0.

    Args:
        wavelengths (n_wl,): nm.
        xi (k,): shapes of the curve; one of them must be 0.
        ln_curve (k, n_wl): ln R, in any normalisation.

    Raises: ValueError where no xi is 0 or 550 nm is outside the spectrum.
    """
    wavelengths = _array("wavelengths", wavelengths, (None,))
    xi = _array("xi", xi, (None,))
    ln_curve = _array("ln_curve", ln_curve, (len(xi), len(wavelengths)))
    if not np.any(np.abs(xi) < 1e-6):
        raise ValueError("xi holds no 0, the curve that others are compared with: add it")
    xp = wavelengths < XP_MAX_NM
    if not xp.any() or not wavelengths[xp].min() <= NORM_NM <= wavelengths[xp].max():
        raise ValueError("wavelengths must be in nm and hold 550 nm, where curves are set to 1")
    at_norm = [np.interp(math.log(NORM_NM), np.log(wavelengths[xp]), row[xp]) for row in ln_curve]
    curve = np.exp(ln_curve - np.array(at_norm)[:, None])  # (k, n_wl)
    ratio = curve / curve[np.nanargmin(np.abs(xi))]
    with _drawing(path, 6.4, title) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1.5, 1])
        norm = Normalize(*_symmetric(xi))
        for i in np.argsort(-np.abs(xi))[: np.isfinite(xi).sum()]:
            middle = abs(xi[i]) < 1e-6
            colour = BLACK if middle else VALUE_MAP(norm(xi[i]))
            for ax, values in ((top, curve[i]), (bottom, ratio[i])):
                _spectrum(ax, wavelengths, values, colour, zorder=4 if middle else 2)
        _extinction_axes(figure, top, bottom, wavelengths, norm, xi)
    return Path(path)


def _symmetric(xi):
    largest = np.max(np.abs(xi[np.isfinite(xi)]), initial=0.0) or 1.0
    return -largest, largest


def _extinction_axes(figure, top, bottom, wavelengths, norm, xi):
    for ax in (top, bottom):
        _wavelength_axis(ax)
        ax.grid(True)
    _name_bands(top, wavelengths)
    _log_y(top)
    top.set_ylabel(r"$R(\lambda)\,/\,R(550\,\mathrm{nm})$")
    bottom.set_ylabel(r"ratio to $\xi=0$")
    bottom.set_xlabel("wavelength (µm)")
    bar = figure.colorbar(ScalarMappable(norm, VALUE_MAP), ax=[top, bottom], pad=0.02, aspect=35)
    bar.set_label(r"shape of the curve $\xi$ (black: 0)")
    if len(xi) <= 9:
        bar.set_ticks(np.unique(xi[np.isfinite(xi)]))


def model_spectra(path, wavelengths, tracks, title="Model spectra without dust"):
    """lambda * f along tracks of stellar types, one panel a track, coloured by Teff.

    Curves are divided by their geometric mean over the XP range, so that shapes are compared. A
    track of one Teff is coloured by the label that varies most along it instead.

    Args:
        wavelengths (n_wl,): nm.
        tracks: {title: (theta (k, 3) in (kK, dex, dex), ln_flux (k, n_wl))}.
    """
    wavelengths = _array("wavelengths", wavelengths, (None,))
    checked = {}
    for name, (theta, ln_flux) in tracks.items():
        theta = _array(f"theta of {name!r}", theta, (None, 3))
        checked[name] = (
            theta,
            _array(f"ln_flux of {name!r}", ln_flux, (len(theta), len(wavelengths))),
        )
    n_columns = min(max(len(checked), 1), 3 if len(checked) != 4 else 2)
    n_rows = -(-max(len(checked), 1) // n_columns)
    with _drawing(path, 0.5 + (5.0 if n_columns == 1 else 4.4) * n_rows, title) as figure:
        axes = figure.subplots(n_rows, n_columns, sharey=True, sharex=True, squeeze=False)
        teff = [theta[:, 0] for theta, _ in checked.values()]
        teff_norm = Normalize(*_limits(*teff, pad=0.0)) if teff else None
        for ax, (name, track) in zip(axes.flat, checked.items(), strict=False):
            _track(figure, ax, wavelengths, *track, teff_norm)
            ax.set_title(name, pad=16, loc="left")
        for ax in axes.flat[len(checked) :]:
            ax.set_axis_off()
        for ax in axes[:, 0]:
            ax.set_ylabel(r"$\lambda f_\lambda$, relative to its mean over XP")
    return Path(path)


def _track(figure, ax, wavelengths, theta, ln_flux, teff_norm):
    spread = np.array([np.ptp(c[np.isfinite(c)]) if np.isfinite(c).any() else 0 for c in theta.T])
    by = 0 if spread[0] > 0.01 or not spread.any() else int(np.argmax(spread))
    norm = teff_norm if by == 0 else Normalize(*_limits(theta[:, by], pad=0.0))
    norm = Normalize(norm.vmin * LABEL_SCALE[by], norm.vmax * LABEL_SCALE[by])
    cmap = TEFF_MAP if by == 0 else VALUE_MAP
    ln_value = ln_flux + np.log(wavelengths)  # (k, n_wl)
    for colour_by, row in zip(theta[:, by] * LABEL_SCALE[by], ln_value, strict=True):
        level = row[(wavelengths < XP_MAX_NM) & np.isfinite(row)]
        if level.size and np.isfinite(colour_by):
            _spectrum(ax, wavelengths, np.exp(row - level.mean()), cmap(norm(colour_by)), lw=1.4)
    _log_y(ax)
    ax.grid(True)
    _wavelength_axis(ax)
    ax.xaxis.set_major_locator(FixedLocator([0.4, 0.6, 1, 2, 3, 5]))
    ax.tick_params(labelbottom=True)
    _name_bands(ax, wavelengths)
    ax.set_xlabel("wavelength (µm)")
    bar = figure.colorbar(ScalarMappable(norm, cmap), ax=ax, location="bottom", aspect=30, pad=0.02)
    bar.set_label(LABEL_AXES[by])
    bar.ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


# --- Quality of the fit -----------------------------------------------------------------------
def residuals_by_wavelength(
    path, wavelengths, ratio, pull=None, title="Observed against model flux"
):
    """Median and percentiles of the residuals at every wavelength.

    Args:
        wavelengths (n_wl,): nm.
        ratio (N, n_wl): observed / model - 1, NaN where a flux was not used.
        pull (N, n_wl), optional: (observed - model) / error, NaN likewise.
    """
    wavelengths = _array("wavelengths", wavelengths, (None,))
    ratio = _array("ratio", ratio, (None, len(wavelengths)))
    rows = [("residual (%)", 100 * _column_percentiles(ratio))]
    if pull is not None:
        pull = _array("pull", pull, ratio.shape)
        rows.append((r"pull ($\sigma$)", _column_percentiles(pull)))
    n_bands = int((wavelengths > XP_MAX_NM).sum())
    title = f"{title}, {len(ratio):,} stars"
    with _drawing(path, 1.4 + 2.6 * len(rows), title) as figure:
        widths = [4.4, 1.5] if n_bands else [1, 0.001]
        axes = figure.subplots(
            len(rows), 2, sharex="col", sharey="row", width_ratios=widths, squeeze=False
        )
        for pair, (label, percentiles) in zip(axes, rows, strict=True):
            _residual_row(pair, wavelengths, percentiles)
            pair[0].set_ylabel(label)
        if pull is not None:
            for ax in axes[1]:
                for level in (-1.96, -1, 1, 1.96):
                    ax.axhline(level, color=VERMILION, lw=1, ls=":", zorder=3)
            _footer(figure, "Dotted: where the 68% and 95% ranges end when the errors are right.")
        _residual_axes(axes, wavelengths, n_bands)
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return Path(path)


def _residual_row(pair, wavelengths, percentiles):
    """Percentiles (5, n_wl): bands over the XP range (left), bars for the photometry (right)."""
    low2, low, median, high, high2 = percentiles
    xp = wavelengths < XP_MAX_NM
    left, right = pair
    left.fill_between(
        wavelengths[xp], low2[xp], high2[xp], color=PALE_BLUE, lw=0, label="95% of stars"
    )
    left.fill_between(
        wavelengths[xp], low[xp], high[xp], color=MID_BLUE, lw=0, label="68% of stars"
    )
    left.plot(wavelengths[xp], median[xp], color=BLACK, label="median")
    at = np.arange(int((~xp).sum()))
    right.vlines(at, low2[~xp], high2[~xp], color=PALE_BLUE, lw=9)
    right.vlines(at, low[~xp], high[~xp], color=MID_BLUE, lw=9)
    right.plot(at, median[~xp], "_", color=BLACK, ms=13, mew=2)
    for ax in pair:
        ax.axhline(0, color=BLACK, lw=0.7, zorder=1)
        ax.grid(True, axis="y")
    if not np.isfinite(median).any():
        return _no_data(left)
    # One very noisy end (near 392 nm) must not flatten all the rest.
    reach = np.nanmax(
        [
            np.nanmax(np.abs(percentiles[1:4])) * 1.3,
            np.nanpercentile(np.abs(percentiles[[0, 4]]), 92) * 1.2,
            1e-6,
        ]
    )
    reach = min(reach, 1.08 * np.nanmax(np.abs(percentiles))) or 1.0
    left.set_ylim(-reach, reach)
    if np.nanmax(np.abs(percentiles)) > reach:
        _corner(
            left,
            "the 95% range reaches beyond the frame",
            x=0.97,
            y=0.03,
            ha="right",
            va="bottom",
            fontsize=9,
        )
    return None


def _residual_axes(axes, wavelengths, n_bands):
    axes[-1, 0].set_xlabel("wavelength (nm), XP spectrum")
    axes[-1, 0].set_xlim(380, 1000)
    if not n_bands:
        for ax in axes[:, 1]:
            ax.set_axis_off()
        return
    redder = wavelengths[wavelengths > XP_MAX_NM]
    axes[-1, 1].set_xticks(np.arange(n_bands), [_band_name(w) for w in redder])
    axes[-1, 1].set_xlim(-0.6, n_bands - 0.4)
    axes[-1, 1].set_xlabel("band, photometry")


# --- Quality of the labels --------------------------------------------------------------------
def inferred_against_label(path, label, estimate, label_err=None, err=None, title="", note=""):
    """Inferred against catalogued labels; below, the difference against the label.

    In the corner: offset (median), scatter (1.4826 MAD) and, where errors are given, the pull
    width (1.4826 MAD of difference / joint error) of all stars, those outside the frame included.

    Args:
        label, estimate (N, 3): kK, dex, dex.
        label_err, err (N, 3), optional: their 1 sigma errors, same units.
        title: says what is seen; note: a line under the figure.
    """
    label = _array("label", label, (None, 3))
    estimate = _array("estimate", estimate, label.shape)
    variance = None
    for name, sigma in (("label_err", label_err), ("err", err)):
        if sigma is not None:
            square = _array(name, sigma, label.shape).astype(float) ** 2
            variance = square if variance is None else variance + square
    with _drawing(path, 6.6, title or "Inferred against catalogued labels") as figure:
        axes = figure.subplots(2, 3, sharex="col", height_ratios=[1.45, 1])
        for i in range(3):
            sigma = None if variance is None else np.sqrt(variance[:, i]) * LABEL_SCALE[i]
            _label_column(
                axes[:, i], label[:, i] * LABEL_SCALE[i], estimate[:, i] * LABEL_SCALE[i], sigma, i
            )
        _footer(
            figure,
            "Offset: median. Scatter: 1.4826 MAD. Blue: running median and 16–84%."
            + (f"\n{note}" if note else ""),
        )
    return Path(path)


def _label_column(axes, label, estimate, sigma, i):
    """The two panels of label i, in the units shown."""
    top, bottom = axes
    top.set_title(LABEL_NAMES[i])
    top.set_ylabel(f"inferred ({LABEL_UNITS[i]})")
    bottom.set_ylabel(f"inferred − label ({LABEL_UNITS[i]})")
    bottom.set_xlabel(f"label {LABEL_NAMES[i]} ({LABEL_UNITS[i]})")
    seen = np.isfinite(label) & np.isfinite(estimate)
    if not seen.any():
        _no_data(top)
        return _no_data(bottom)
    x, y = label[seen].astype(float), estimate[seen].astype(float)
    residual = y - x
    tail = 0.05 if len(x) > MAX_POINTS else 0.1 if len(x) > 500 else 0.0
    limits = _limits(x, y, percentile=tail)
    n_outside = _cloud(top, x, y, limits, limits)
    many = len(x) > MAX_POINTS
    top.plot(
        limits,
        limits,
        "--",
        color=VERMILION,
        lw=1.4,
        zorder=3 if many else 0.5,
        path_effects=_halo() if many else None,
    )
    pull = None if sigma is None else residual / sigma[seen]
    _corner(top, _summary(residual, pull, i))
    if n_outside:
        _corner(top, f"{n_outside:,} outside", x=0.97, y=0.03, ha="right", va="bottom", fontsize=9)
    return _residual_against_label(bottom, x, residual, limits)


def _summary(residual, pull, i):
    digits, unit = LABEL_DIGITS[i], LABEL_UNITS[i]
    lines = [
        f"offset {_number(np.median(residual), digits)} {unit}",
        f"scatter {_number(robust_width(residual), digits)} {unit}",
    ]
    if pull is not None:
        lines.append(f"pull width {_number(robust_width(pull), 2)}")
    return "\n".join([*lines, f"{len(residual):,} stars"])


def _residual_against_label(ax, x, residual, xlim):
    reach = np.percentile(np.abs(residual), 99.0 if len(x) > MAX_POINTS else 100.0) * 1.1 or 1.0
    n_outside = _cloud(
        ax, x, residual, xlim, (-reach, reach), cmap=GREY_MAP, colour=GREY, cells_across=(60, 24)
    )
    ax.axhline(0, color=VERMILION, ls="--", lw=1.4)
    centres, (low, median, high) = _running_percentiles(x, residual, xlim)
    for values, style in ((low, "-"), (high, "-")):
        ax.plot(centres, values, style, color=BLUE, lw=1.2, path_effects=_halo(2.2))
    marker = "o" if np.isfinite(median).sum() < 4 else None
    ax.plot(centres, median, color=BLUE, lw=2.2, marker=marker, path_effects=_halo(3.6))
    if n_outside:
        _corner(ax, f"{n_outside:,} outside", x=0.97, y=0.03, ha="right", va="bottom", fontsize=9)


def kiel_diagram(path, theta, title="Inferred stellar types"):
    """log g against Teff, coloured by [Fe/H] (its median in each cell when stars are many).

    Args:
        theta (N, 3): kK, dex, dex.
    """
    theta = _array("theta", theta, (None, 3))
    theta = theta[np.isfinite(theta).all(axis=1)].astype(float)
    with _drawing(path, 6.0, f"{title}, {len(theta):,} stars") as figure:
        ax = figure.subplots()
        ax.set_xlabel(LABEL_AXES[0])
        ax.set_ylabel(r"$\log\,g$ (dex, $g$ in cm s$^{-2}$)")
        if not len(theta):
            _no_data(ax)
        else:
            _kiel(figure, ax, theta[:, 0] * LABEL_SCALE[0], theta[:, 1], theta[:, 2])
    return Path(path)


def _kiel(figure, ax, teff, feh, logg):
    tail = 0.02 if len(teff) > MAX_POINTS else 0.0
    xlim, ylim = _limits(teff, percentile=tail), _limits(logg, percentile=tail)
    norm = Normalize(*np.percentile(feh, [1, 99])) if np.ptp(feh) else Normalize(feh[0] - 1, feh[0])
    many = len(teff) > MAX_KIEL_POINTS
    if many:
        inside = (teff >= xlim[0]) & (teff <= xlim[1]) & (logg >= ylim[0]) & (logg <= ylim[1])
        drawn = ax.hexbin(
            teff[inside],
            logg[inside],
            C=feh[inside],
            reduce_C_function=np.median,
            gridsize=(160, 70),
            extent=(*xlim, *ylim),
            cmap=VALUE_MAP,
            norm=norm,
            linewidths=0.1,
        )
    else:
        order = np.random.default_rng(0).permutation(len(teff))  # no metallicity always on top
        size = 40 if len(teff) < 300 else 7
        drawn = ax.scatter(
            teff[order], logg[order], c=feh[order], s=size, lw=0, cmap=VALUE_MAP, norm=norm
        )
    n_outside = int(
        ((teff < xlim[0]) | (teff > xlim[1]) | (logg < ylim[0]) | (logg > ylim[1])).sum()
    )
    if n_outside:
        _corner(ax, f"{n_outside:,} outside", x=0.02, y=0.98, fontsize=9)
    ax.set_xlim(xlim[::-1])
    ax.set_ylim(ylim[::-1])
    ax.grid(True)
    bar = figure.colorbar(drawn, ax=ax, extend="both", pad=0.02, aspect=30)
    bar.set_label("median [Fe/H] (dex) in each cell" if many else "[Fe/H] (dex)")


# --- Calibration ------------------------------------------------------------------------------
def reliability(path, predicted, correct, title="Are the confidences true?", n_bins=10):
    """Fraction found correct against predicted confidence, with counts below; a panel a label.

    Args:
        predicted: {label: (N,)} confidences in 0..1; values outside are left out.
        correct: {label: (N,)} truth (bool, or 0 and 1 with NaN for unknown); the same labels.
    """
    if predicted.keys() != correct.keys():
        raise ValueError(
            f"predicted has the labels {sorted(predicted)}, "
            f"correct {sorted(correct)}: give both the same"
        )
    data = {}
    for name in predicted:
        p = _array(f"predicted {name!r}", predicted[name], (None,))
        c = _array(f"correct {name!r}", correct[name], p.shape)
        seen = (p >= 0) & (p <= 1) & np.isfinite(c)
        data[name] = p[seen], c[seen]
    n = max(len(data), 1)
    with _drawing(path, 5.0 if n > 1 else 7.0, title) as figure:
        axes = figure.subplots(
            2, n, sharex=True, sharey="row", height_ratios=[2.6, 1], squeeze=False
        )
        for i, (name, (p, c)) in enumerate(data.items()):
            _reliability_column(axes[:, i], p, c, n_bins)
            axes[0, i].set_title(name)
        axes[0, 0].set_ylabel("fraction correct")
        axes[1, 0].set_ylabel("stars in bin")
        most = max((ax.dataLim.y1 for ax in axes[1] if ax.patches), default=1.0)
        axes[1, 0].set_ylim(0.7, 1.6 * max(most, 10.0))
        _footer(figure, "Bars: 68% binomial intervals.")
    return Path(path)


def _reliability_column(axes, predicted, correct, n_bins):
    top, bottom = axes
    edges = np.linspace(0, 1, n_bins + 1)
    bins = np.minimum((predicted * n_bins).astype(int), n_bins - 1)
    n = np.bincount(bins, minlength=n_bins)
    k = np.bincount(bins, correct, minlength=n_bins)
    full = n > 0
    top.plot([0, 1], [0, 1], "--", color=GREY, lw=1.2)
    if full.any():
        at = np.bincount(bins, predicted, minlength=n_bins)[full] / n[full]
        fraction = k[full] / n[full]
        low, high = _wilson_interval(k[full], n[full])
        errors = np.maximum([fraction - low, high - fraction], 0)
        top.errorbar(
            at, fraction, errors, fmt="o-", color=BLUE, ms=5, lw=1.2, elinewidth=1.4, capsize=2.5
        )
        _corner(
            top,
            f"mean predicted {predicted.mean():.3f}\nmean correct {correct.mean():.3f}\n"
            f"{len(predicted):,} stars",
            x=0.97,
            y=0.03,
            ha="right",
            va="bottom",
        )
        bottom.set_yscale("log")
        _plain_log(bottom.yaxis, subs=(1.0,))
    else:
        _no_data(top)
    bottom.bar(edges[:-1], n, 1 / n_bins, align="edge", color=SKY, edgecolor="white", lw=0.8)
    bottom.set_xlabel("predicted confidence")
    bottom.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    top.set_xlim(-0.02, 1.02)
    top.set_ylim(-0.02, 1.05)
    for ax in axes:
        ax.grid(True)


def pulls_in_bins(path, rows, title="Honesty of the errors, by group of stars"):
    """Pull width, share of outliers and scatter in groups of stars: a horizontal dot plot.

    Bars on pull widths are their 1 sigma sampling errors, taking them for 1.4826 MAD.

    Args:
        rows: list of dicts, from the top down: group (name), n (stars), and one number a label
            (Teff, [Fe/H], log g) in pull_width (3,), scatter (3,) in (kK, dex, dex), and
            frac_gt3 (3,), the fraction 0..1 beyond 3 sigma.
    """
    names = [f"{row['group']}  ({int(row['n']):,})" for row in rows]
    n = np.array([max(int(row["n"]), 1) for row in rows])
    columns = {
        key: np.reshape([_array(key, row[key], (3,)) for row in rows], (-1, 3))
        for key in ("pull_width", "frac_gt3", "scatter")
    }
    scatter = columns["scatter"] * LABEL_SCALE
    panels = (  # axis, values (g, 3), labels shown, value to expect
        ("pull width", columns["pull_width"], (0, 1, 2), 1.0),
        (r"beyond 3$\sigma$ (%)", 100 * columns["frac_gt3"], (0, 1, 2), 0.27),
        ("scatter (K)", scatter, (0,), None),
        ("scatter (dex)", scatter, (1, 2), None),
    )
    with _drawing(path, 1.7 + 0.42 * max(len(rows), 2), title) as figure:
        axes = figure.subplots(1, len(panels), sharey=True)
        for ax, (xlabel, values, shown, expected) in zip(axes, panels, strict=True):
            width_error = MAD_SIGMA_ERROR / np.sqrt(n) if xlabel == "pull width" else None
            _dots(ax, values, shown, expected, width_error)
            ax.set_xlabel(xlabel)
        axes[0].set_yticks(np.arange(len(rows)), names)
        axes[0].set_ylim(len(rows) - 0.45, -0.55)
        handles, labels = axes[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside upper right", ncols=3)
    return Path(path)


def _dots(ax, values, shown, expected, relative_error):
    """values (g, 3) of the labels shown, one height a group, labels a little apart."""
    y = np.arange(len(values))
    for j in shown:
        shift = 0.2 * (shown.index(j) - (len(shown) - 1) / 2)
        errors = None if relative_error is None else values[:, j] * relative_error
        ax.errorbar(
            values[:, j],
            y + shift,
            xerr=errors,
            fmt=LABEL_MARKERS[j],
            ms=5.5,
            color=LABEL_COLOURS[j],
            mec="white",
            mew=0.5,
            elinewidth=1.2,
            label=LABEL_NAMES[j],
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


def coverage(path, ranks, levels, observed, title="Calibration of the posteriors"):
    """Simulation-based calibration: ranks of the truth, and coverage of credible intervals.

    Grey is where 95% of the values lie when the posteriors are right, given the number of stars.

    Args:
        ranks (N, 3): rank of the true label within its posterior, 0..1.
        levels (k,): nominal probability of central intervals, 0..1.
        observed (k, 3): the fraction of stars whose true label lies inside.
    """
    ranks = _array("ranks", ranks, (None, 3))
    levels = _array("levels", levels, (None,))
    observed = _array("observed", observed, (len(levels), 3))
    with _drawing(path, 6.0, title) as figure:
        axes = figure.subplots(2, 3, sharey="row", height_ratios=[1, 1.35])
        for i in range(3):
            column = ranks[:, i]
            column = column[(column >= 0) & (column <= 1)]
            _rank_histogram(axes[0, i], column)
            axes[0, i].set_title(f"{LABEL_NAMES[i]}, {len(column):,} stars")
            _coverage_curve(axes[1, i], levels, observed[:, i], len(column))
        axes[0, 0].set_ylim(
            0, 1.05 * max((ax.dataLim.y1 for ax in axes[0] if ax.has_data()), default=1.0)
        )
        axes[0, 0].set_ylabel("stars in bin / expected")
        axes[1, 0].set_ylabel("fraction of truths inside")
        _footer(figure, "Grey: where 95% of the values lie when the posteriors are right.")
    return Path(path)


def _rank_histogram(ax, ranks):
    ax.set_xlabel("rank of the truth in its posterior")
    ax.set_xlim(0, 1)
    if not len(ranks):
        return _no_data(ax)
    n_bins = int(np.clip(len(ranks) // 20, 2, 20))
    expected = len(ranks) / n_bins
    low, high = _binomial_interval(len(ranks), 1 / n_bins)
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
        band = np.array([_binomial_interval(n, p) for p in grid]) / n  # (41, 2)
        ax.fill_between(grid, band[:, 0], band[:, 1], color=GREY, alpha=0.3, lw=0)
    seen = np.isfinite(levels) & np.isfinite(observed)
    ax.plot(levels[seen], observed[seen], "o-", color=BLUE, ms=4.5, lw=1.4)
    if not seen.any():
        _no_data(ax)
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.02)
    ax.set_box_aspect(1)
    ax.grid(True)
    ax.set_xlabel("nominal probability of the interval")
