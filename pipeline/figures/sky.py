"""Maps of the sky in Galactic coordinates, from values of HEALPix pixels or from single stars."""

from dataclasses import dataclass
from pathlib import Path

import healpy
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.ticker import FuncFormatter, LogLocator

from pipeline.figures.projections import Mollweide, projection_of
from pipeline.figures.style import VALUE_MAP, drawing, footer, wrapped

GRID = "#999999"
EMPTY = "#e4e4e4"
PIXELS_ACROSS = 900  # of the image that a map is drawn as


@dataclass(frozen=True)
class SkyMap:
    """A map. Of pixels: level and pixels (m,) of nested HEALPix; or of stars: lon, lat (m,) in
    degrees. values (m,); NaN is not drawn. title: above it."""

    values: np.ndarray
    level: int | None = None
    pixels: np.ndarray | None = None
    lon: np.ndarray | None = None
    lat: np.ndarray | None = None
    title: str = ""

    def positions(self):
        """Centres (m,), (m,) in degrees."""
        if self.pixels is None:
            return self.lon, self.lat
        return healpy.pix2ang(2**self.level, self.pixels, nest=True, lonlat=True)

    def at(self, lon, lat):
        """Values (...) of the pixels at positions in degrees; NaN where there is none."""
        known = np.isfinite(lon)
        pixel = healpy.ang2pix(
            2**self.level, np.where(known, lon, 0.0), np.where(known, lat, 0.0), True, True
        )
        if not len(self.pixels):
            return np.full(pixel.shape, np.nan)
        place = np.minimum(np.searchsorted(self.pixels, pixel), len(self.pixels) - 1)
        return np.where(known & (self.pixels[place] == pixel), self.values[place], np.nan)


def sky_maps(path, maps, label, title, note="", *, log=False, kinds=None):
    """`SkyMap`s of one quantity beside each other, with the same colours, in the same projection.

    label: of the colours; log: colours of the logarithm; kinds {words: colour}: where values are
    0, 1 ... for the first, second ... of them. Colours span the central 98% of values, all where
    log. Galactic coordinates, north up, longitude increasing to the left. Raises ValueError where
    there is no value.
    """
    values = np.concatenate([one.values for one in maps])
    values = values[np.isfinite(values) & ((values > 0) | (not log))]
    if not values.size:
        raise ValueError(f"{path}: no value is finite: there is nothing to draw")
    norm, beyond = _norm(values, log, kinds)
    cmap = ListedColormap(list(kinds.values())) if kinds else VALUE_MAP
    lon, lat = (np.concatenate(x) for x in zip(*(one.positions() for one in maps), strict=True))
    projection = projection_of(lon, lat)
    rows, across = wrapped(len(maps), 1 if len(maps) == 1 else 2)
    whole = isinstance(projection, Mollweide)
    each = 8.4 / across * (0.47 if whole else min(1.0, 0.62 * across))
    with drawing(path, 1.2 + (each + 0.3) * rows, title) as figure:
        axes = figure.subplots(rows, across, squeeze=False)
        for ax, one in zip(axes.flat, maps, strict=False):
            _map(ax, projection, one, norm, cmap, small=across > 1)
        for ax in axes.flat[len(maps) :]:
            ax.remove()
        bar = figure.colorbar(
            ScalarMappable(norm, cmap), ax=list(axes.flat[: len(maps)]), location="bottom",
            aspect=45, pad=0.02, shrink=0.7, extend=beyond,
        )  # fmt: skip
        bar.set_label(label)
        if kinds:
            bar.set_ticks(range(len(kinds)), labels=list(kinds))
        if log:
            subs = (1.0, 2.0, 5.0) if norm.vmax < 50 * norm.vmin else (1.0,)
            bar.ax.xaxis.set_major_locator(LogLocator(subs=subs))
            bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            bar.ax.minorticks_off()
        footer(figure, f"Galactic coordinates. {note}".strip())
    return Path(path)


def _norm(values, log, kinds):
    """Norm of colours, and at which ends values are beyond it."""
    low, high = np.percentile(values, (1, 99))
    if kinds:
        low, high = -0.5, len(kinds) - 0.5
    elif log:
        low, high = values.min(), max(values.max(), 2 * values.min())
    elif not high > low:
        low, high = low - max(abs(low), 1) * 0.05, high + max(abs(high), 1) * 0.05
    ends = (values.min() < low, values.max() > high)
    words = {(True, True): "both", (True, False): "min", (False, True): "max"}
    return (LogNorm if log else Normalize)(low, high), words.get(ends, "neither")


def _map(ax, projection, one, norm, cmap, small):
    x0, x1, y0, y1 = projection.frame
    height = int(PIXELS_ACROSS * (y1 - y0) / (x1 - x0))
    step = (x1 - x0) / PIXELS_ACROSS
    x, y = np.meshgrid(
        x0 + step * (np.arange(PIXELS_ACROSS) + 0.5), y0 + step * (np.arange(height) + 0.5)
    )
    lon, lat = projection.to_sky(x, y)
    style = {"extent": (x0, x1, y0, y1), "origin": "lower", "interpolation": "nearest"}
    whole = isinstance(projection, Mollweide)
    if whole:
        ax.imshow(
            np.where(np.isfinite(lon), 0.0, np.nan), cmap=ListedColormap([EMPTY]), zorder=0, **style
        )
    if one.pixels is None:
        known = np.isfinite(one.values)
        size = 26 if known.sum() < 300 else 9
        ax.scatter(
            *projection.to_plane(one.lon[known], one.lat[known]), c=one.values[known], s=size,
            norm=norm, cmap=cmap, lw=0.3, edgecolors="#555555", zorder=3,
        )  # fmt: skip
    else:
        ax.imshow(np.ma.masked_invalid(one.at(lon, lat)), norm=norm, cmap=cmap, zorder=1, **style)
    for lon, lat in projection.meridians():
        ax.plot(*projection.to_plane(lon, lat), color=GRID, lw=0.5, zorder=2, alpha=0.8)
    text = {"fontsize": 7.5 if small else 8.5, "color": "#333333", "zorder": 4}
    box = {"facecolor": "white", "alpha": 0.6, "edgecolor": "none", "pad": 0.6} if whole else None
    for x, y, words, ha, va in projection.words():
        ax.text(x, y, words, ha=ha, va=va, bbox=box, **text)
    ax.set_xlim(x0 - (0.22 if whole else 0), x1)
    ax.set_ylim(y0, y1)
    ax.set_aspect("equal")
    if whole:
        ax.set_axis_off()
    else:
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[["top", "right"]].set_visible(True)
        ax.set_xlabel("Galactic longitude", labelpad=16)
        ax.set_ylabel("Galactic latitude", labelpad=30)
    ax.set_title(one.title, fontsize=10.5, pad=3)
