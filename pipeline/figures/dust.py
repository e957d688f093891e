"""Figures of extinction curves beside published laws."""

from pathlib import Path

import numpy as np

from pipeline.figures.arrays import checked, size_of_spectrum
from pipeline.figures.spectra import draw_fluxes, name_bands, wavelength_axis
from pipeline.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    drawing,
    footer,
    log_y,
)

NORM_NM = 550.0  # where extinction curves are set to 1
BLUE_NM = 450.0  # and the other end of the colour excess that they are compared by
LEARNED_COLOURS = (BLUE, BLACK, VERMILION, SKY)
LAW_COLOURS = (GREEN, PURPLE, ORANGE)
LAW_DASHES = ("--", "-.", ":")


def curves_at_norm(xp, ln_curve):
    """Curves (k, n_wl), 1 at NORM_NM, of ln R (k, n_wl) whose first wavelengths are xp (n,)."""
    if not xp.size or not xp.min() <= NORM_NM <= xp.max():
        raise ValueError("wavelengths must be in nm and hold 550 nm, where curves are set to 1")
    return np.exp(ln_curve - _at(NORM_NM, xp, ln_curve))


def _at(nm, xp, curves):
    """Values (k, 1) of curves (k, n_wl) at a wavelength, linear in ln lambda."""
    at = [np.interp(np.log(nm), np.log(xp), row[: len(xp)]) for row in curves]
    return np.array(at).reshape(-1, 1)


def colour_excesses(xp, curves):
    """Colour excesses (k, n_wl) of curves, [R(lambda) - R(550 nm)] / [R(450 nm) - R(550 nm)]: a
    grey part of a curve, which distances alone can tell, drops out."""
    norm = _at(NORM_NM, xp, curves)
    return (curves - norm) / (_at(BLUE_NM, xp, curves) - norm)


def extinction_laws(
    path,
    wavelengths,
    xi,
    ln_curve,
    laws,
    reference,
    title="The learned extinction curve and published laws",
    note="",
    n_xp=None,
    words=None,
):
    """Learned curves and published laws, each 1 at 550 nm; below, over one of the laws, and their
    colour excesses less that law's.

    Args:
        wavelengths (n_wl,): nm.
        xi (k,): shapes of the learned curve.
        ln_curve (k, n_wl): ln R, in any normalisation.
        laws: {(law, words): (n_wl,)} A(lambda) of published laws, in any normalisation; NaN where
            a law says nothing. A law has a colour, words have dashes.
        reference: the law (a key of laws) that the others are compared with.
        note: a line under the figure.
        n_xp: how many wavelengths are the XP spectrum's.
        words: of each xi, put after it in the legend.
    """
    wavelengths = checked("wavelengths", wavelengths, (None,))
    xi = checked("xi", xi, (None,))
    ln_curve = checked("ln_curve", ln_curve, (len(xi), len(wavelengths)))
    laws = {key: checked(" ".join(key), law, wavelengths.shape) for key, law in laws.items()}
    if reference not in laws:
        raise ValueError(f"laws has no {reference!r}: give the law that others are compared with")
    n_xp = size_of_spectrum(wavelengths, n_xp)
    xp = wavelengths[:n_xp]
    with np.errstate(invalid="ignore", divide="ignore"):
        ln_laws = np.log(np.array(list(laws.values())))
        curves = curves_at_norm(xp, np.concatenate([ln_laws, ln_curve]))
        excess = colour_excesses(xp, curves)
    at = list(laws).index(reference)
    with drawing(path, 8.8, title) as figure:
        axes = figure.subplots(3, 1, sharex=True, height_ratios=[1.2, 1, 1])
        for k, style in enumerate(
            [*_law_styles(laws), *_learned_styles(xi, words or [""] * len(xi))]
        ):
            label = style.pop("label")
            for ax, values in zip(
                axes, (curves[k], curves[k] / curves[at], excess[k] - excess[at]), strict=True
            ):
                draw_fluxes(ax, wavelengths, values, n_xp, **style)
            axes[0].lines[-2].set_label(label)
        _law_axes(axes, wavelengths, n_xp, ", ".join(reference))
        if note:
            footer(figure, note)
    return Path(path)


def _law_styles(laws):
    names, words = (list(dict.fromkeys(key[k] for key in laws)) for k in (0, 1))
    for key in laws:
        yield {
            "colour": LAW_COLOURS[names.index(key[0]) % len(LAW_COLOURS)],
            "ls": LAW_DASHES[words.index(key[1]) % len(LAW_DASHES)],
            "lw": 1.4,
            "marker": "_",
            "label": ", ".join(key),
        }


def _learned_styles(xi, words):
    for k, (x, more) in enumerate(zip(xi, words, strict=True)):
        label = rf"learned, $\xi={x:g}$".replace("-", "−") + more
        colour = LEARNED_COLOURS[k % len(LEARNED_COLOURS)]
        yield {"colour": colour, "lw": 2.0, "zorder": 3, "label": label}


def _law_axes(axes, wavelengths, n_xp, reference):
    for ax in axes:
        wavelength_axis(ax, wavelengths)
        ax.grid(True)
    for ax in axes[:2]:
        ax.set_xlabel("")
    name_bands(axes[0], wavelengths[n_xp:])
    log_y(axes[0])
    axes[0].legend(loc="upper right", ncols=3)
    axes[0].set_ylabel(r"$A(\lambda)\,/\,A(550)$")
    axes[1].set_ylabel(f"ratio to\n{reference}")
    axes[2].set_ylabel("$E(\\lambda-550)\\,/\\,E(450-550)$\n" + f"less {reference}'s")
