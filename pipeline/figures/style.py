"""How figures look and are saved, and the small pieces that they are made of."""

import io
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from pipeline.whole_files import write_bytes

WIDTH = 9.0  # inches, of every figure: shown 830 pixels wide, 10.5 points are 13 pixels
STYLE = {
    "text.usetex": False,  # whatever other packages set: LaTeX may not be there
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
MARKERS = ("o", "s", "D", "^", "v", "<", ">")
# Perceptually uniform, less the ends too pale to be seen on white.
DENSITY_MAP = ListedColormap(mpl.colormaps["viridis"](np.linspace(0.0, 0.97, 256)))
GREY_MAP = ListedColormap(mpl.colormaps["Greys"](np.linspace(0.15, 0.75, 256)))
VALUE_MAP = ListedColormap(mpl.colormaps["viridis"](np.linspace(0.0, 0.92, 256)))
TEFF_MAP = ListedColormap(mpl.colormaps["plasma_r"](np.linspace(0.12, 1.0, 256)))  # cool orange
MAX_POINTS = 2000  # more stars than this are shown as density
MOST_ACROSS = 3  # panels of labels beside each other; more are wrapped


# --- Saving -----------------------------------------------------------------------------------
@contextmanager
def drawing(path, height, title=""):
    """A Figure in our style, WIDTH x height inches, saved when the block ends without error."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06, wspace=0.03, hspace=0.03)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        yield figure
        save(figure, Path(path))


def save(figure, path):
    """Write a PNG, or what the path's ending says, whole or not at all, into a folder that is made
    where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:] or "png")
    write_bytes(path, content.getvalue())


# --- Panels -----------------------------------------------------------------------------------
def wrapped(n, most=MOST_ACROSS):
    """(rows, panels across) that hold n panels: `most` across, or fewer in rows of like length."""
    rows = -(-max(n, 1) // most)
    return rows, -(-max(n, 1) // rows)


def panel_columns(figure, n, height_ratios, share_x=True, share_y=False, most=MOST_ACROSS):
    """Axes (len(height_ratios), n): n columns of panels one above the other.

    More columns than `most` are wrapped. share_x: the panels of a column have the same x axis, with
    its numbers at the bottom only; share_y: those of a row the same y axis, with its numbers at the
    left only.
    """
    rows, across = wrapped(n, most)
    grid = figure.add_gridspec(
        rows * len(height_ratios), across, height_ratios=[*height_ratios] * rows
    )
    axes = np.empty((len(height_ratios), n), object)
    for column in range(n):
        block, place = divmod(column, across)
        for i in range(len(height_ratios)):
            ax = figure.add_subplot(
                grid[block * len(height_ratios) + i, place],
                sharex=axes[0, column] if share_x and i else None,
                sharey=axes[i, 0] if share_y and column else None,
            )
            ax.tick_params(
                labelbottom=not share_x or i == len(height_ratios) - 1,
                labelleft=not share_y or place == 0,
            )
            axes[i, column] = ax
    return axes


def leftmost(axes):
    """Those of axes (n,) of a row of `panel_columns` that stand at the left."""
    return axes[:: wrapped(len(axes))[1]]


# --- Words ------------------------------------------------------------------------------------
def in_unit(text, label):
    """A text with the unit in which a `schema.Label` is shown."""
    return f"{text} ({label.shown_unit})" if label.shown_unit else text


def number(value, digits):
    """A number with a typographic minus; n/a where it is none."""
    if not np.isfinite(value):
        return "n/a"
    # Adding 0.0 turns -0.0 into 0.0.
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def corner(ax, text, x=0.03, y=0.97, ha="left", va="top", **style):
    """A text in a corner of a panel, on white."""
    style = {"fontsize": 9.5, "linespacing": 1.35} | style
    box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5}
    ax.text(x, y, text, transform=ax.transAxes, ha=ha, va=va, zorder=10, bbox=box, **style)


def footer(figure, text):
    """A line under the figure."""
    figure.supxlabel(text, x=0.01, ha="left", fontsize=9, color="#555555")


def no_data(ax):
    """Say that a panel has nothing to show."""
    ax.text(0.5, 0.5, "no data", transform=ax.transAxes, ha="center", va="center", color=GREY)


def tell_outside(ax, n, **style):
    """Say how many stars are outside the frame, if any."""
    if n:
        style = {"x": 0.97, "y": 0.03, "ha": "right", "va": "bottom"} | style
        corner(ax, f"{n:,} outside", fontsize=9, **style)


# --- Axes -------------------------------------------------------------------------------------
def plain_log(axis, subs=(1.0, 2.0, 5.0)):
    """Ticks of a log axis as plain numbers (0.5, 1, 2), not powers of ten."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def log_y(ax):
    """A log y axis with plain numbers, where there is anything to show."""
    if not np.isfinite(ax.dataLim.minposy):
        return no_data(ax)
    ax.set_yscale("log")
    return plain_log(ax.yaxis)


# --- Stars ------------------------------------------------------------------------------------
def halo(width=3.0):
    """A white rim, for lines over points."""
    return [withStroke(linewidth=width, foreground="white")]


def cloud(ax, x, y, xlim, ylim, cmap=DENSITY_MAP, colour=BLUE, cells_across=(60, 36)):
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
