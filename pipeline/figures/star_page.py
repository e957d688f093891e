"""One star's page: its spectrum, how well it is known, and all that the catalogue says of it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.figures.star_posterior import StarPosterior, draw_star_posterior
from pipeline.figures.star_spectrum import StarSpectrum, draw_star_spectrum
from pipeline.figures.star_tables import SOFT, add_flags, add_parameters, set_flags
from pipeline.figures.star_text import Text, with_error
from pipeline.figures.style import GREEN, VERMILION, drawing, number
from pipeline.schema import LabelSet, Release, flags

GAP = 0.14  # inches, below a block of text
SPECTRUM, SPECTRUM_ALONE, POSTERIOR = 4.2, 3.0, 3.9  # inches, heights
# Columns of the catalogue: how they are written, and with how many digits.
FACTS = {
    "ra": ("RA {}°", 6), "dec": ("Dec {}°", 6), "ruwe": ("RUWE {}", 2),
    "fidelity_v2": ("fidelity {}", 2), "norm_dg": ("norm_dg {} mag", 1),
}  # fmt: skip


@dataclass
class StarPage:
    """What a page shows of a star.

    row: its columns of the catalogue {name: value, or array}; labels: its labels; posterior: None
    where the star has no parameters, and then `why` says why.
    """

    row: dict
    release: Release
    labels: LabelSet
    spectrum: StarSpectrum
    posterior: StarPosterior | None = None
    why: str = ""


def star_page(path, page):
    """Draw a `StarPage`, as PNG or PDF by the ending of the path."""
    head, below = _head(page), Text()
    if page.posterior is not None:
        add_parameters(below, page.row, page.labels)
        below.add("", height=0.1)
    add_flags(below, page.row, page.labels)
    blocks = [(head.height + GAP, head.draw)]
    if page.spectrum.has_xp or page.spectrum.has_bands:
        height = SPECTRUM if page.spectrum.has_model else SPECTRUM_ALONE
        blocks.append((height, lambda part, _: draw_star_spectrum(part, page.spectrum)))
    if page.posterior is not None:
        blocks.append((POSTERIOR, lambda part, _: draw_star_posterior(part, page.posterior)))
    blocks.append((below.height + GAP, below.draw))
    heights = [height for height, _ in blocks]
    with drawing(path, sum(heights)) as figure:
        parts = figure.subfigures(len(blocks), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, (height, draw) in zip(parts, blocks, strict=True):
            draw(part, height)
    return Path(path)


def _head(page):
    """Which star it is, and at once whether to trust it."""
    text, source_id = Text(), int(page.row[page.release.id_column])
    title = f"{page.release.title} {source_id}"
    text.add(title, height=0.38, fontsize=15, fontweight="bold")
    text.wrap("   ".join(_facts(page)), color=SOFT)
    found = set_flags(flags.quality_flag(page.labels), page.row["quality_flags"])
    if found:
        names = ", ".join(flag.name for flag in found)
        text.wrap(f"Flags: {names}", color=VERMILION, fontweight="bold")
    else:
        text.add("No quality flag is set.", color=GREEN, fontweight="bold")
    if page.why:
        text.wrap(page.why)
    return text


def _facts(page):
    """What is known of the star beside its fluxes; none is torn when lines are wrapped."""
    row = page.row
    values = [(form, row[name], digits) for name, (form, digits) in FACTS.items() if name in row]
    g = page.release.g_magnitudes(np.asarray(row.get("phot_g_mean_flux", np.nan), "f8"))
    values.insert(2, ("G {} mag", g, 2))
    facts = [
        form.format(number(float(value), digits))
        for form, value, digits in values
        if np.isfinite(value)
    ]
    plx = with_error(row["plx"], row["plx_err"])
    facts.append(f"observed parallax {plx} mas" if plx else "no observed parallax")
    return [fact.replace(" ", "\N{NO-BREAK SPACE}") for fact in facts]
