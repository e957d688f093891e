"""The figures of a catalogue, from what was counted of it; each is drawn where there is something
to draw, else it is said why not."""

from pipeline.tallies.columns import (
    chi2,
    confidences,
    errors,
    extinction_direction,
    extinction_latitude,
)
from pipeline.tallies.diagrams import colour_magnitude, kiel
from pipeline.tallies.maps import sky_extinction, sky_feh, sky_flagged, sky_number, sky_rv

FIGURES = (
    kiel,
    colour_magnitude,
    sky_number,
    sky_flagged,
    sky_feh,
    sky_extinction,
    sky_rv,
    extinction_latitude,
    extinction_direction,
    errors,
    chi2,
    confidences,
)


def draw_all(shown):
    """{name of a figure: its path, or why it is not drawn}, of a `Shown`."""
    out = {}
    for draw in FIGURES:
        path = shown.folder / f"{draw.__name__}.png"
        path.unlink(missing_ok=True)  # none of an earlier run is taken for one of this
        out[draw.__name__] = draw(shown, path)
    return out
