"""Maps of the sky by what became of its shards."""

from pathlib import Path

import healpy
import numpy as np
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.patches import Patch

from pipeline.figures.style import (
    GREEN,
    GREY,
    ORANGE,
    PALE_BLUE,
    PURPLE,
    VERMILION,
    drawing,
    footer,
)

NSIDE = 256  # of the nested pixels, level 8, whose ranges shards cover
ACROSS, UP = 720, 360  # cells of a map: 0.5 deg, shards are 3.5
NO_SHARD = "#f4f4f4"
# In the order of `states.Shard`.
COLOURS = (PALE_BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION)
RA_NUMBERED = (60, 120, 180, 240, 300)  # deg
DEC_NUMBERED = (-60, -30, 0, 30, 60)  # deg


def _shard_of_pixels(first, last):
    """(12 NSIDE^2,) number of the shard of each pixel, -1 where there is none."""
    shard = np.full(healpy.nside2npix(NSIDE), -1)
    for number, (start, stop) in enumerate(zip(first, last, strict=True)):
        shard[start : stop + 1] = number
    return shard


def _cells():
    """Corners (n+1,) of the cells of a map in longitude and latitude, and the pixel (UP, ACROSS) at
    each centre. Longitude in rad is that of the axes, RA - 180 deg to the left."""
    lon = np.linspace(-np.pi, np.pi, ACROSS + 1)
    lat = np.linspace(-np.pi / 2, np.pi / 2, UP + 1)
    x, y = np.meshgrid((lon[1:] + lon[:-1]) / 2, (lat[1:] + lat[:-1]) / 2)
    pixel = healpy.ang2pix(NSIDE, 180 - np.degrees(x), np.degrees(y), nest=True, lonlat=True)
    return lon, lat, pixel


def _draw(ax, title, lon, lat, states):
    colours = ListedColormap([NO_SHARD, *COLOURS])
    norm = BoundaryNorm(np.arange(-1.5, len(COLOURS)), colours.N)
    ax.pcolormesh(lon, lat, states, cmap=colours, norm=norm, rasterized=True)
    ax.set_title(title, pad=8)
    ax.set_xticks(np.radians([180 - ra for ra in RA_NUMBERED]))
    ax.set_xticklabels([f"{ra}°" for ra in RA_NUMBERED], fontsize=7.5, color="#333333")
    ax.set_yticks(np.radians(DEC_NUMBERED))
    ax.set_yticklabels([f"{dec}°".replace("-", "−") for dec in DEC_NUMBERED], fontsize=7.5)
    ax.set_axisbelow(False)  # lines and numbers over the map
    ax.grid(color="#666666", lw=0.4, alpha=0.5)


def sky_states(path, first, last, steps, words) -> Path:
    """A map of the sky for each step, in equatorial coordinates, Mollweide's projection.

    first, last (n,): pixels of the shards, level 8, nested, inclusive; steps: {title: states (n,)},
    numbers of `words`, which name the states; words: as many as there are COLOURS.
    """
    first, last = np.asarray(first, int), np.asarray(last, int)
    if first.shape != last.shape or any(len(s) != len(first) for s in steps.values()):
        raise ValueError("first, last and the states of every step must be of the same shards")
    if len(words) != len(COLOURS):
        raise ValueError(f"{len(words)} words for {len(COLOURS)} colours")
    lon, lat, pixel = _cells()
    shard = _shard_of_pixels(first, last)[pixel]
    rows = -(-len(steps) // 2)
    with drawing(path, 0.9 + 2.55 * rows) as figure:
        axes = figure.subplots(
            rows, 2 if len(steps) > 1 else 1, squeeze=False, subplot_kw={"projection": "mollweide"}
        )
        for ax, (title, states) in zip(axes.flat, steps.items(), strict=False):
            states = np.append(states, -1)  # what is in no shard has the number -1
            _draw(ax, title, lon, lat, states[shard])
        for ax in axes.flat[len(steps) :]:
            ax.axis("off")
        keys = zip((*COLOURS, NO_SHARD), (*words, "no shard"), strict=True)
        handles = [Patch(fc=colour, ec="#999999", lw=0.5, label=word) for colour, word in keys]
        figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))
        footer(figure, "RA (numbers along the equator) grows to the left, Dec upwards")
    return Path(path)
