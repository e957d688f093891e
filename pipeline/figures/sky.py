"""Maps of the sky in Galactic coordinates, from values of HEALPix pixels or from single stars."""

from dataclasses import dataclass, replace
from pathlib import Path

import healpy
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.ticker import FuncFormatter, LogLocator

from pipeline.figures.style import VALUE_MAP, drawing, footer, wrapped
from pipeline.sphere import unit_vectors

GRID = "#999999"
EMPTY = "#e4e4e4"
PATCH = 45.0  # degrees: stars within it about their centre are shown as a patch
PIXELS_ACROSS = 900  # of the image that a map is drawn as
_ANGLE = np.linspace(-np.pi / 2, np.pi / 2, 4001)
_SIN_LAT = np.clip((2 * _ANGLE + np.sin(2 * _ANGLE)) / np.pi, -1, 1)
NICE_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30)  # degrees, of the grid of a patch


class Mollweide:
    """The whole sky about (0, 0), longitude increasing to the left; x within +-2, y within +-1."""

    def to_plane(self, lon, lat):
        """x, y of positions in degrees."""
        angle = np.interp(np.sin(np.deg2rad(lat)), _SIN_LAT, _ANGLE)
        away = (np.asarray(lon, "f8") + 180.0) % 360.0 - 180.0
        return -away / 90.0 * np.cos(angle), np.sin(angle)

    def to_sky(self, x, y):
        """Positions in degrees; NaN outside of the sky."""
        inside = x**2 / 4 + y**2 <= 1
        angle = np.arcsin(np.where(inside, y, 0.0))
        lat = np.rad2deg(np.arcsin(np.clip((2 * angle + np.sin(2 * angle)) / np.pi, -1, 1)))
        lon = -90.0 * np.where(inside, x, 0.0) / np.maximum(np.cos(angle), 1e-9)
        return np.where(inside, lon, np.nan), np.where(inside, lat, np.nan)

    frame = (-2.02, 2.02, -1.01, 1.01)

    def meridians(self):
        """[(lon (n,), lat (n,))] of the lines of the grid."""
        line = np.linspace(-90, 90, 181)
        lines = [(np.full(181, lon), line) for lon in (-179.999, *range(-120, 121, 60), 179.999)]
        across = np.linspace(-179.999, 179.999, 361)
        return lines + [(across, np.full(361, lat)) for lat in (-60, -30, 0, 30, 60)]

    def words(self):
        """[(x, y, text, alignment)] along the grid."""
        out = []
        for lon in (120, 60, 0, -60, -120):
            x, y = self.to_plane(lon, 0.0)
            out.append((x, y - 0.02, f"{lon % 360}°", "center", "top"))
        for lat in (-60, -30, 30, 60):
            x, y = self.to_plane(180.0, lat)
            text = f"{lat}°".replace("-", "−")
            out.append((-abs(x) - 0.03, y, text, "right", "center"))
        return out


@dataclass(frozen=True)
class Patch:
    """A part of the sky of a radius about a centre (degrees), areas kept, north up, longitude
    increasing to the left; x, y in degrees."""

    lon: float
    lat: float
    radius: float

    def _axes(self):
        centre = unit_vectors(self.lon, self.lat)
        lon = np.deg2rad(self.lon)
        east = np.array([-np.sin(lon), np.cos(lon), 0.0])
        return east, np.cross(centre, east), centre

    def to_plane(self, lon, lat):
        """x, y of positions in degrees."""
        east, north, centre = self._axes()
        place = unit_vectors(lon, lat)
        factor = np.sqrt(2 / np.maximum(1 + place @ centre, 1e-9))
        x, y = -factor * (place @ east), factor * (place @ north)
        return np.rad2deg(x), np.rad2deg(y)

    def to_sky(self, x, y):
        """Positions in degrees; NaN outside of the sky."""
        x, y = np.deg2rad(x), np.deg2rad(y)
        rho2 = x**2 + y**2
        inside = rho2 <= 4
        rho2 = np.where(inside, rho2, 0.0)
        factor = np.sqrt(1 - rho2 / 4)[..., None]
        east, north, centre = self._axes()
        place = (1 - rho2 / 2)[..., None] * centre + factor * (
            -x[..., None] * east + y[..., None] * north
        )
        lon = np.rad2deg(np.arctan2(place[..., 1], place[..., 0]))
        lat = np.rad2deg(np.arcsin(np.clip(place[..., 2], -1, 1)))
        return np.where(inside, lon, np.nan), np.where(inside, lat, np.nan)

    @property
    def frame(self):
        return -self.radius, self.radius, -self.radius, self.radius

    def _ticks(self):
        """Longitudes and latitudes (degrees) of the grid."""
        lats = _multiples(self.lat, self.radius, NICE_STEPS)
        lats = lats[np.abs(lats) <= 90]
        narrow = max(np.cos(np.deg2rad(min(abs(self.lat), 89.0))), 0.02)
        reach = min(self.radius / narrow, 180.0)
        return _multiples(self.lon, reach, (*NICE_STEPS, 45, 60, 90)), lats, reach

    def meridians(self):
        """[(lon (n,), lat (n,))] of the lines of the grid."""
        lons, lats, reach = self._ticks()
        low, high = np.clip([self.lat - 1.5 * self.radius, self.lat + 1.5 * self.radius], -90, 90)
        lines = [(np.full(91, lon), np.linspace(low, high, 91)) for lon in lons]
        across = self.lon + np.linspace(-1.5, 1.5, 181) * reach
        return lines + [(across, np.full(181, lat)) for lat in lats]

    def words(self):
        """[(x, y, text, alignments)] below and left of the frame, where the grid meets it."""
        lons, lats, reach = self._ticks()
        out, edge = [], self.radius
        for lon in lons:
            lat = np.linspace(max(self.lat - 2 * edge, -90), min(self.lat + 2 * edge, 90), 2001)
            x, y = self.to_plane(np.full(2001, lon), lat)
            k = np.argmin(np.abs(y + edge))
            if abs(x[k]) <= edge and abs(y[k] + edge) < 0.02 * edge:
                out.append((x[k], -1.03 * edge, f"{_plain(lon % 360)}°", "center", "top"))
        for lat in lats:
            lon = self.lon + np.linspace(0, 1.6, 2001) * reach
            x, y = self.to_plane(lon, np.full(2001, lat))
            k = np.argmin(np.abs(x + edge))
            if abs(y[k]) <= edge and abs(x[k] + edge) < 0.02 * edge:
                out.append((-1.03 * edge, y[k], f"{_plain(lat)}°", "right", "center"))
        return out


def _multiples(centre, reach, steps):
    """Multiples of one of the steps within reach of the centre: 2 to 5 of them, or so."""
    step = next((s for s in steps if 2 * reach / s <= 5), steps[-1])
    return step * np.arange(np.ceil((centre - reach) / step), (centre + reach) / step + 1e-9)


def _plain(value):
    return f"{round(float(value), 4) + 0.0:g}".replace("-", "−")


def projection_of(lon, lat):
    """The `Patch` that holds positions (n,) in degrees where they are near each other, else
    `Mollweide`."""
    places = unit_vectors(lon, lat)
    if not len(places):
        return Mollweide()
    centre = places.mean(0)
    length = np.linalg.norm(centre)
    if length < 0.1:
        return Mollweide()
    centre = centre / length
    away = np.rad2deg(np.arccos(np.clip(places @ centre, -1, 1)))
    radius = float(away.max())
    if radius > PATCH:
        return Mollweide()
    lon, lat = _degrees(centre)
    around = Patch(float(lon), float(lat), radius)
    reach = np.abs(around.to_plane(*_degrees(places))).max()
    return replace(around, radius=max(1.06 * float(reach), 0.02))


def _degrees(places):
    """Longitudes and latitudes (n,) of unit vectors (n, 3)."""
    x, y, z = places.T
    return np.rad2deg(np.arctan2(y, x)), np.rad2deg(np.arcsin(np.clip(z, -1, 1)))


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
