"""The figures of a catalogue, from what was counted of it; each is drawn where there is something
to draw, else it is said why not."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pipeline.figures.arrays import MIN_IN_BIN
from pipeline.figures.cells import LABEL_OF_NUMBER, Panel, percentile_panels, planes
from pipeline.figures.sky import SkyMap, sky_maps
from pipeline.figures.style import BLUE, VERMILION, in_unit
from pipeline.tallies.counts import Pixels, quantile, suited
from pipeline.tallies.quantities import LATITUDES, TELLING_E

TYPICAL_CELL, TYPICAL_PIXEL, LEAST_PIXEL = 5, 6, 3  # stars
LEAST_ALONG = 30  # stars in a direction
PERCENTILES = (0.16, 0.5, 0.84)


@dataclass
class Shown:
    """What figures are made of: labels; counts {key: `Counts`}; few {rows: {name: (n,)}}: columns
    of groups of stars that are few and shown one by one, "all", "selected", "direction 0" ...;
    slices [(low, high)] in kpc; directions [(l, b)], radius, in degrees; note: words on which stars
    they are."""

    folder: Path
    labels: object
    counts: dict
    few: dict
    note: str
    slices: list = field(default_factory=list)
    directions: list = field(default_factory=list)
    radius: float = 1.0

    @property
    def stars(self):
        """The selected stars, where they are few, else None."""
        return self.few.get("selected")

    @property
    def everyone(self):
        """All stars, where they are few, else None."""
        return self.few.get("all")

    def words(self, name) -> str:
        """What a quantity is, with its unit."""
        known = {
            "telling xi": rf"$\xi$, where $E>{TELLING_E}$",
            "ext": "$E$",
            "distance": "distance (kpc)",
            "bp_rp": r"$G_\mathrm{BP}-G_\mathrm{RP}$ (mag)",
            "abs_g": r"$M_G$ (mag), not corrected for dust",
            "RV": r"$R(V)$",
            "chi2": r"$\chi^2$ for each flux",
            "error xi": r"error of $\xi$",
            "error ext": "error of $E$",
            "error parallax": "error of the parallax\nrelative to it",
        }
        what, _, label = name.partition(" ")
        if name in known or what not in ("label", "error", "confidence"):
            return known[name]
        label = next(one for one in self.labels if one.name == label)
        if what == "confidence":
            return f"confidence in {label.symbol}"
        return in_unit(label.symbol if what == "label" else f"error of {label.symbol}", label)


def draw_all(shown):
    """{name of a figure: its path, or why it is not drawn}."""
    figures = {
        "kiel": kiel, "colour_magnitude": colour_magnitude, "sky_number": sky_number,
        "sky_flagged": sky_flagged, "sky_feh": sky_feh, "sky_extinction": sky_extinction,
        "sky_rv": sky_rv, "extinction_latitude": extinction_latitude,
        "extinction_direction": extinction_direction, "errors": errors, "chi2": chi2,
        "confidences": confidences,
    }  # fmt: skip
    out = {}
    for name, draw in figures.items():
        path = shown.folder / f"{name}.png"
        path.unlink(missing_ok=True)  # none of an earlier run is taken for one of this
        out[name] = draw(shown, path)
    return out


# ---- diagrams --------------------------------------------------------------------------------


def kiel(shown, path):
    """log g against Teff, coloured by each quantity."""
    missing = [name for name in ("teff", "logg") if name not in shown.labels.place]
    if missing:
        return f"{' and '.join(missing)} not among the labels"
    return _diagrams(shown, path, "kiel", "label teff", "label logg", "Stellar types", "xy")


def colour_magnitude(shown, path):
    """M_G against BP - RP, coloured by each quantity."""
    return _diagrams(shown, path, "cmd", "bp_rp", "abs_g", "Colours and magnitudes", "y")


def _diagrams(shown, path, key, x, y, title, inverted):
    density = shown.counts.get(f"{key} density")
    if density is None or not density.counts.any():
        return "no selected star has both coordinates"
    names = [k.removeprefix(f"{key} ") for k in shown.counts if k.startswith(f"{key} ")]
    make = _star_panel if shown.stars is not None else _cell_panel
    panels = [make(shown, key, name, x, y) for name in names]
    panels = [panel for panel in panels if panel is not None]
    if shown.stars is not None and len(panels) > 1:
        panels = panels[1:]  # the others show the same stars, and more of them
    note = shown.note
    if density.outside:
        note += f" {density.outside:,} of them outside of the frame, or without coordinates."
    if shown.stars is None:
        note += "\nColours: the median of the stars in a cell."
    words = shown.words(x), shown.words(y)
    return planes(path, panels, *words, title, note, inverted=inverted)


def _star_panel(shown, key, name, x, y):
    at = shown.stars[x], shown.stars[y]
    known = np.isfinite(at).all(0)
    if name == "density":
        return Panel(*(v[known] for v in at), None)
    values = shown.stars[name][known]
    if not np.isfinite(values).any():
        return None
    return Panel(*(v[known] for v in at), values, shown.words(name), name == "distance")


def _cell_panel(shown, key, name, x, y):
    counts = shown.counts[f"{key} {name}"]
    cells = suited(counts.cells, TYPICAL_CELL, 24)
    edges = [a.edges[:: a.n // n] for a, n in zip(counts.axes[:2], cells.shape[:2], strict=True)]
    if name == "density":
        return Panel(*edges, np.where(cells > 0, cells, np.nan), LABEL_OF_NUMBER, True)
    median = quantile(cells, counts.axes[2].edges)
    if not np.isfinite(median).any():
        return None
    number = cells.sum(-1)
    return Panel(*edges, median, shown.words(name), name == "distance", weights=number)


# ---- maps ------------------------------------------------------------------------------------


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
    area = 41252.96 / (12 * 4**pixels.level)  # square degrees
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
        else:
            pixels = Pixels.of(shown.counts[key]).suited(TYPICAL_PIXEL, LEAST_PIXEL)
            median = quantile(pixels.counts, shown.counts[key].axes[1].edges)
            median[pixels.number < LEAST_PIXEL] = np.nan
            one, level = SkyMap(median, pixels.level, pixels.pixels, title=words), pixels
        maps.append(one)
    maps = [one for one in maps if np.isfinite(one.values).any()]
    if not maps:
        return "no selected star with a position has it, or too few in a pixel"
    label = shown.words(names[0])
    if level is not None:
        label, more = f"median {label}", f"{_pixel_words(level) if len(maps) == 1 else ''}{more}"
    return sky_maps(path, maps, label, title, f"{more} {shown.note}".strip())


def _pixel_words(pixels):
    side = np.sqrt(41252.96 / (12 * 4**pixels.level))
    size = f"{side:.2g}°" if side < 10 else f"{side:.0f}°"
    return f"Pixels of {size} (nside {2**pixels.level})."


# ---- against another quantity ----------------------------------------------------------------


def extinction_latitude(shown, path):
    """E against distance, by Galactic latitude."""
    keys = [f"latitude {k}" for k in range(len(LATITUDES))]
    titles = [f"$|b|$ {low} to {high}°" for low, high in LATITUDES]
    return _along(shown, path, keys, titles, "Dust against distance, by latitude")


def extinction_direction(shown, path):
    """E against distance, toward the directions asked for."""
    if not shown.directions:
        return "no --direction was given"
    titles = [f"$l={lon:g}°$, $b={lat:g}°$".replace("-", "−") for lon, lat in shown.directions]
    keys = [f"direction {k}" for k in range(len(shown.directions))]
    return _along(shown, path, keys, titles, f"Dust within {shown.radius:g}° of directions")


def _along(shown, path, keys, titles, title):
    panels, few = [], []
    for key, words in zip(keys, titles, strict=True):
        counts = shown.counts.get(f"along {key}")
        n = int(counts.counts.sum()) if counts is not None else 0
        if n < LEAST_ALONG:
            few.append(f"{words.replace('$', '')}: {n}")
            continue
        panel = _columns(counts, shown.few.get(key), shown.words("ext"))
        panels.append(replace(panel, title=f"{words}, {n:,} stars"))
    if not panels:
        return f"fewer than {LEAST_ALONG} selected stars with a distance and E ({'; '.join(few)})"
    note = shown.note + (f" Not shown, few stars: {'; '.join(few)}." if few else "")
    return percentile_panels(
        path, panels, shown.words("distance"), title, f"{LINES} {note}", log_x=True, log_y=False
    )


LINES = "Lines: median, 16% and 84%."


def _columns(counts, stars, ylabel):
    """`Panel` of the two axes of counts, with percentiles of its columns; of single stars {name:
    (n,)} where they are given."""
    x, y = counts.axes
    cells = counts.cells
    while cells.shape[0] >= 12 and np.median(_some(cells.sum(1))) < 5 * MIN_IN_BIN:
        cells = cells.reshape(cells.shape[0] // 2, 2, -1).sum(1)
    step = x.n // len(cells)
    edges = x.edges[::step]
    lines = np.array([quantile(cells, y.edges, q) for q in PERCENTILES])
    lines[:, cells.sum(1) < np.clip(0.003 * cells.sum(), MIN_IN_BIN, 30)] = np.nan
    centres = (
        np.sqrt(edges[1:] * edges[:-1]) if x.scale == "log" else 0.5 * (edges[1:] + edges[:-1])
    )
    if stars is not None:
        at = [stars[axis.name] for axis in counts.axes]
        known = np.isfinite(at).all(0)
        at = [values[known] for values in at]
        return Panel(*at, None, ylabel=ylabel, centres=centres, lines=lines)
    fine = counts.cells
    while fine.shape[1] > 48 and np.median(_some(fine)) < TYPICAL_CELL:
        fine = fine.reshape(fine.shape[0], fine.shape[1] // 2, 2).sum(2)
    y_edges = y.edges[:: y.n // fine.shape[1]]
    fine = fine.reshape(len(cells), step, -1).sum(1)
    values = np.where(fine > 0, fine.astype("f8"), np.nan)
    seen = np.flatnonzero(fine.any(0))
    if seen.size:  # the panel ends where the stars do
        values, y_edges = values[:, seen[0] : seen[-1] + 1], y_edges[seen[0] : seen[-1] + 2]
    return Panel(edges, y_edges, values, ylabel=ylabel, centres=centres, lines=lines)


def _some(counts):
    some = counts[counts > 0]
    return some if some.size else np.zeros(1)


def _against_g(shown, path, names, title, log_y):
    keys = [f"g {name}" for name in names]
    there = [k for k in keys if k in shown.counts and shown.counts[k].counts.any()]
    if not there:
        return "no selected star has it and a G magnitude"
    words = [shown.words(k.removeprefix("g ")) for k in there]
    panels = [_columns(shown.counts[k], shown.stars, w) for k, w in zip(there, words, strict=True)]
    note = f"{LINES} {shown.note}"
    return percentile_panels(path, panels, "$G$ (mag)", title, note, log_y=log_y, most=3)


def errors(shown, path):
    """Errors of the parameters against G."""
    names = [f"error {label.name}" for label in shown.labels]
    names += ["error xi", "error ext", "error parallax"]
    return _against_g(shown, path, names, "Errors by brightness", True)


def chi2(shown, path):
    """chi^2 for each flux against G."""
    return _against_g(shown, path, ["chi2"], "Quality of the fits by brightness", True)


def confidences(shown, path):
    """Confidences against G."""
    names = [f"confidence {label.name}" for label in shown.labels]
    return _against_g(shown, path, names, "Confidences by brightness", False)
