"""A quantity of a catalogue's stars against another: E against distance, errors against G.

Every function of a `Shown` and a path draws a figure and returns its path, or says why there is
none.
"""

from dataclasses import replace

import numpy as np

from pipeline.figures.arrays import MIN_IN_BIN
from pipeline.figures.cells import Panel, percentile_panels
from pipeline.tallies.counts import quantile
from pipeline.tallies.quantities import LATITUDES

TYPICAL_CELL = 5  # stars in it
LEAST_ALONG = 30  # stars in a direction
PERCENTILES = (0.16, 0.5, 0.84)
LINES = "Lines: median, 16% and 84%."


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
        path,
        panels,
        shown.words("distance"),
        title,
        f"{LINES} {note}",
        log_x=True,
        log_y=False,
        most=2,
    )


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
    return percentile_panels(path, panels, "$G$ (mag)", title, note, log_y=log_y)


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
