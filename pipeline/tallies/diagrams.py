"""Kiel and colour-magnitude diagrams of a catalogue.

Every function of a `Shown` and a path draws a figure and returns its path, or says why there is
none.
"""

import numpy as np

from pipeline.figures.cells import LABEL_OF_NUMBER, Panel, planes
from pipeline.tallies.counts import quantile, suited

TYPICAL_CELL = 5  # stars in it


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
