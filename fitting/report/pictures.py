"""Figures as pictures within the page: those of a training, and those drawn of a catalogue."""

import base64
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pipeline.export.shards import Catalogue
from pipeline.tallies.columns import chi2, errors
from pipeline.tallies.diagrams import kiel
from pipeline.tallies.maps import sky_flagged, sky_number
from pipeline.tallies.quantities import GOOD, Quantities
from pipeline.tallies.shown import Shown
from pipeline.tallies.stream import counted

# That figures of a catalogue are of; of more, shards from all over it.
MOST_STARS, MOST_SHARDS = 1_000_000, 60
MOST_BYTES = 7_000_000  # of all pictures of a page, encoded
MOST_WIDE = 1440  # pixels
COUNTED = ("kiel density", "kiel label feh", "sky all", "sky flagged", "g error", "g chi2")
GOODNESS = {
    "validation": (
        "Inferred against label, for validation stars, which the training never saw.",
        "Inferred labels against catalogued ones; below, their difference.",
    ),
    "confidence": (
        "Share of right estimates against confidence: on the diagonal the confidences are true.",
        "A panel a label: share right against confidence, with the number of stars below.",
    ),
    "residuals": (
        "Observed less model flux by wavelength, and in errors of the learned noise model.",
        "Median and 68% and 95% ranges of the residuals of the fluxes.",
    ),
}
TRAINING = {
    "extinction_curve": (
        "The learned extinction curve, for five values of xi.",
        "Extinction against wavelength.",
    ),
    "model_spectra": (
        "Spectra of the model along the main sequence and the giant branch.",
        "Model spectra by Teff.",
    ),
    "stars": (
        "Training stars fitted with their label as a prior, against the label.",
        "Fitted labels against catalogued ones.",
    ),
    "loss_likelihood": ("Loss of the likelihood stages.", "Loss against epoch."),
    "loss_posterior": ("Loss of the posterior stages.", "Loss against epoch."),
    "loss_direct": ("Loss of the networks of the direct estimate.", "Loss against epoch."),
}
CATALOGUE = {
    kiel: (
        "Stellar types of the good stars.",
        "Kiel diagram: log g against Teff, by number of stars and by [Fe/H].",
    ),
    sky_number: ("All stars on the sky, in Galactic coordinates.", "Map of the sky."),
    sky_flagged: (
        "Share of stars with a flag but those of confidences.",
        "Map of the sky: share of flagged stars.",
    ),
    errors: (
        "Errors of the parameters by brightness.",
        "A panel a parameter: its error against G magnitude, with median, 16% and 84%.",
    ),
    chi2: (
        "Quality of the fits by brightness: chi² for each flux is about 1 where the noise is as "
        "the model has it.",
        "chi² for each flux against G magnitude, with median, 16% and 84%.",
    ),
}


@dataclass
class Picture:
    """A figure of the page: name, caption, alternative text; uri: of its PNG, "" where there is
    none, for a reason; width, height in pixels."""

    name: str
    caption: str
    alt: str
    uri: str = ""
    width: int = 0
    height: int = 0
    reason: str = ""


def picture(path, name, caption, alt) -> Picture:
    """The PNG of a file, in 256 colours, which makes it a third of the size."""
    out = Picture(name, caption, alt)
    if not path.is_file():
        out.reason = f"there is no {path.name}"
        return out
    try:
        with Image.open(path) as image:
            image = image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        out.reason = f"{path.name} cannot be read ({error})"
        return out
    if image.width > MOST_WIDE:
        image = image.resize((MOST_WIDE, round(image.height * MOST_WIDE / image.width)))
    content = io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(content, "PNG", optimize=True)
    out.width, out.height = image.size
    out.uri = "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
    return out


def pictures_of(folder, wanted) -> list:
    """`Picture`s of files in the folder of a training, [] where it has none of them; wanted {name:
    (caption, alt)}."""
    paths = {name: Path(folder) / f"{name}.png" for name in wanted}
    if not any(path.exists() for path in paths.values()):
        return []
    return [picture(paths[name], name, *words) for name, words in wanted.items()]


def within(pictures):
    """Leave out what a page would be too large with, the last first to go, and say so."""
    n_bytes = 0
    for one in pictures:
        n_bytes += len(one.uri)
        if n_bytes > MOST_BYTES:
            n_bytes -= len(one.uri)
            one.uri, one.reason = "", "left out, as the page would be too large with it"


# ---- of a catalogue --------------------------------------------------------------------------


def some_of(rows) -> list:
    """Some of the shards {fid: stars}, from all over them: MOST_SHARDS at most, of MOST_STARS or
    little more."""
    fids = sorted(fid for fid, n in rows.items() if n) or sorted(rows)
    return fids[:: max(1, -(-sum(rows.values()) // MOST_STARS), -(-len(fids) // MOST_SHARDS))]


def draw_catalogue(data_dir, rows, release) -> tuple:
    """(`Picture`s of shards {fid: stars} of the catalogue, words on which stars they are of,
    {fid: why it cannot be read})."""
    fids = some_of(rows)
    catalogue = Catalogue(data_dir, fids, release, mixed_models=True)
    if not catalogue.shards:
        return [], "", catalogue.failed
    quantities = Quantities(catalogue.layout, GOOD)
    counts, few, (n, n_selected) = counted(catalogue, quantities, wanted=_is_drawn)
    note = f"{n_selected:,} of {n:,} stars: {GOOD}."
    if len(fids) < len([n for n in rows.values() if n]):
        note += f" Of {len(fids):,} of {len(rows):,} shards."
    out = []
    with tempfile.TemporaryDirectory() as folder:
        shown = Shown(Path(folder), catalogue.layout.labels, counts, few, note, quantities.slices)
        for draw, (caption, alt) in CATALOGUE.items():
            result = draw(shown, Path(folder) / f"{draw.__name__}.png")
            if isinstance(result, Path):
                out.append(picture(result, draw.__name__, caption, f"{alt} {note}"))
            else:
                out.append(Picture(draw.__name__, caption, alt, reason=str(result)))
    return out, note, catalogue.failed


def _is_drawn(key) -> bool:
    return key.startswith(COUNTED)
