"""Maps of a catalogue on the sky.

Every function of a `Shown` and a path draws a figure and returns its path, or says why there is
none.
"""

import numpy as np

from pipeline.figures.sky import SkyMap, sky_maps
from pipeline.figures.style import BLUE, VERMILION
from pipeline.tallies.counts import Pixels, quantile
from pipeline.tallies.quantities import TELLING_E

TYPICAL_PIXEL, LEAST_PIXEL = 6, 3  # stars in it; for a median
SKY_DEG2 = 41252.96  # square degrees


def sky_number(shown, path):
    """Number of stars, selected or not."""
    pixels = Pixels.of(shown.counts["sky all"]).suited(TYPICAL_PIXEL)
    if not len(pixels.pixels):
        return "no star has a position"
    if shown.everyone is not None:
        lon, lat = shown.everyone["l"], shown.everyone["b"]
        known = np.isfinite(lon)
        one = SkyMap(shown.everyone["flagged"][known] + 0.0, lon=lon[known], lat=lat[known])
        kinds = {"no flag": BLUE, "flagged": VERMILION}
        label = "flags, but for those of confidences"
        return sky_maps(path, [one], label, f"{known.sum():,} stars on the sky", kinds=kinds)
    area = SKY_DEG2 / (12 * 4**pixels.level)  # square degrees
    one = SkyMap(pixels.number / area, pixels.level, pixels.pixels)
    n = int(pixels.number.sum())
    return sky_maps(
        path, [one], "stars in a square degree", f"All {n:,} stars on the sky",
        _pixel_words(pixels), log=True,
    )  # fmt: skip


def sky_flagged(shown, path):
    """Share of the stars with a flag."""
    if shown.everyone is not None:
        return "few stars: sky_number has each, and its flag"
    everyone, flagged = (Pixels.of(shown.counts[f"sky {k}"]) for k in ("all", "flagged"))
    if not len(everyone.pixels):
        return "no star has a position"
    number = np.zeros(len(everyone.pixels), "i8")
    number[np.searchsorted(everyone.pixels, flagged.pixels)] = flagged.number
    both = Pixels(everyone.level, everyone.pixels, np.stack([everyone.number, number], 1))
    both = both.suited(2 * TYPICAL_PIXEL, 2 * LEAST_PIXEL)  # `number` adds up both columns
    share = np.where(
        both.counts[:, 0] >= LEAST_PIXEL, 100 * both.counts[:, 1] / both.counts[:, 0], np.nan
    )
    if not np.isfinite(share).any():
        return f"no pixel has {LEAST_PIXEL} stars"
    one = SkyMap(share, both.level, both.pixels)
    label = "share of stars with a flag, but for those of confidences (%)"
    return sky_maps(path, [one], label, "Flagged stars", _pixel_words(both))


def sky_feh(shown, path):
    """Median [Fe/H]."""
    if "feh" not in shown.labels.place:
        return "feh is not among the labels"
    return _median_map(shown, path, ["label feh"], ["sky label feh"], "Metallicity")


def sky_rv(shown, path):
    """Median R(V)."""
    if "sky RV" not in shown.counts:
        return f"it needs --model, and selected stars with E > {TELLING_E}"
    return _median_map(
        shown, path, ["RV"], ["sky RV"], "Shape of the extinction curve",
        more=f" Stars with E > {TELLING_E}.",
    )  # fmt: skip


def sky_extinction(shown, path):
    """Median E in slices of distance."""
    keys = [f"sky slice {k}" for k in range(len(shown.slices))]
    keys = [k for k in keys if k in shown.counts and shown.counts[k].counts.any()]
    if not keys:
        return "no selected star has a position, a distance and E"
    titles = [_slice_words(*shown.slices[int(k.split()[-1])]) for k in keys]
    return _median_map(shown, path, ["ext"] * len(keys), keys, "Dust by distance", titles)


def _slice_words(low, high):
    if high == np.inf:
        return f"beyond {low:g} kpc" if low else "all distances"
    return f"{low:g} to {high:g} kpc" if low else f"within {high:g} kpc"


def _median_map(shown, path, names, keys, title, titles=("",), more=""):
    """Maps of medians of quantities, one a key of the counts."""
    maps, level = [], None
    for name, key, words in zip(names, keys, titles, strict=True):
        if shown.stars is not None:
            rows = (
                shown.stars[key.removeprefix("sky ")] if "slice" in key else shown.stars["selected"]
            )
            values, lon, lat = (shown.stars[k][rows] for k in (name, "l", "b"))
            known = np.isfinite(values) & np.isfinite(lon)
            one = SkyMap(values[known], lon=lon[known], lat=lat[known], title=words)
        elif key in shown.counts:
            pixels = Pixels.of(shown.counts[key]).suited(TYPICAL_PIXEL, LEAST_PIXEL)
            median = quantile(pixels.counts, shown.counts[key].axes[1].edges)
            median[pixels.number < LEAST_PIXEL] = np.nan
            one, level = SkyMap(median, pixels.level, pixels.pixels, title=words), pixels
        else:
            continue
        maps.append(one)
    maps = [one for one in maps if np.isfinite(one.values).any()]
    if not maps:
        return "no selected star with a position has it, or too few in a pixel"
    label = shown.words(names[0])
    if level is not None:
        label, more = f"median {label}", f"{_pixel_words(level) if len(maps) == 1 else ''}{more}"
    return sky_maps(path, maps, label, title, f"{more} {shown.note}".strip())


def _pixel_words(pixels):
    side = np.sqrt(SKY_DEG2 / (12 * 4**pixels.level))
    size = f"{side:.2g}°" if side < 10 else f"{side:.0f}°"
    return f"Pixels of {size} (nside {2**pixels.level})."
