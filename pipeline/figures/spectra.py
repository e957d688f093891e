"""Pieces of figures that show fluxes against wavelength."""

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from pipeline.schema import BANDS

AXIS_UM = (0.37, 5.2)  # shown at least
NUMBERED_UM = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30)
FEWER_UM = (0.1, 0.2, 0.4, 0.6, 1, 2, 3, 5, 10, 20, 30)  # of a narrow panel
TICKED_UM = (0.7, 0.9, 2.5, 4)
SAME_NM = 1.0


def wavelength_axis(ax, wavelengths, numbered=NUMBERED_UM):
    """A log wavelength axis in um with the ticks people know, of wavelengths (n_wl,) in nm."""
    um = wavelengths[np.isfinite(wavelengths)] / 1000
    ax.set_xscale("log")
    ax.set_xlim(
        np.min(0.94 * um, initial=AXIS_UM[0]),
        np.max(1.08 * um, initial=AXIS_UM[1]),
    )
    ax.xaxis.set_major_locator(FixedLocator(numbered))
    ax.xaxis.set_minor_locator(FixedLocator(TICKED_UM))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("wavelength (µm)")


def band_symbol(wavelength):
    """Symbol of the photometric band at a wavelength in nm; the wavelength in um where none is."""
    for band in BANDS:
        if abs(band.wavelength - wavelength) < SAME_NM:
            return band.symbol
    return f"{wavelength / 1000:.3g}"


def name_bands(ax, wavelengths):
    """Symbols of the bands at wavelengths (n,) in nm along the top of a panel in um."""
    for wavelength in wavelengths:
        ax.axvline(wavelength / 1000, color="#eeeeee", lw=0.8, zorder=0)
        ax.text(
            wavelength / 1000,
            1.0,
            band_symbol(wavelength),
            transform=ax.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=9,
            color="#555555",
        )


def draw_fluxes(ax, wavelengths, values, n_xp, colour, marker="o", **style):
    """One curve: the first n_xp as a line, photometric bands as points, x in um."""
    um = wavelengths / 1000
    size = {"ms": 4.5, "mew": 0} if marker == "o" else {"ms": 12, "mew": 1.5}
    bands = {"color": colour, "zorder": style.get("zorder", 2)} | size
    ax.plot(um[:n_xp], values[:n_xp], color=colour, **style)
    ax.plot(um[n_xp:], values[n_xp:], marker, **bands)
