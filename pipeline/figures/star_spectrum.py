"""A star's observed fluxes beside the model's, and the differences: a part of its page."""

from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from pipeline.figures.arrays import checked
from pipeline.figures.spectra import band_symbol
from pipeline.figures.style import BLACK, BLUE, GREY, PALE_BLUE, VERMILION, corner

MOST_SIGMAS = 6.0  # shown of residuals; larger ones are at the edge
FRAME_NM = (384.0, 1000.0)  # of the XP spectrum, at least
PALE = "#f2f2f2"
ORDER = ("observed", "observed, finer", "model", "model's own scatter")  # in the legend


@dataclass
class StarSpectrum:
    """What was observed of a star, and what its model says; fluxes in 1e-18 W m^-2 nm^-1.

    wavelengths, flux, flux_err (n,): nm, XP first, n_xp of them; error inf where not used. model,
    own (n,): the model's flux, and its relative scatter; residual (n,): observed less model, in
    sigma; NaN where there is none. fine_wavelengths, fine (m,): the observed XP flux on a finer
    grid. unused, reasons (n - n_xp,): measured fluxes of bands that are not used, and why.
    """

    wavelengths: np.ndarray
    n_xp: int
    flux: np.ndarray
    flux_err: np.ndarray
    model: np.ndarray
    own: np.ndarray
    residual: np.ndarray
    fine_wavelengths: np.ndarray
    fine: np.ndarray
    unused: np.ndarray
    reasons: list

    def __post_init__(self):
        n, m = len(self.wavelengths), len(self.fine_wavelengths)
        for name in ("flux", "flux_err", "model", "own", "residual"):
            setattr(self, name, checked(name, getattr(self, name), (n,)).astype(float))
        self.fine = checked("fine", self.fine, (m,)).astype(float)
        self.unused = checked("unused", self.unused, (n - self.n_xp,)).astype(float)
        # Those not used have 0 there, which is no measurement.
        self.flux = np.where(np.isfinite(self.flux_err), self.flux, np.nan)

    @property
    def has_model(self):
        return bool(np.isfinite(self.model).any())

    @property
    def has_xp(self):
        xp = self.flux[: self.n_xp]
        return bool(np.isfinite(xp).any() or np.isfinite(self.fine).any())

    @property
    def has_bands(self):
        n = self.n_xp
        shown = np.concatenate([self.flux[n:], self.model[n:], self.unused])
        return bool((np.isfinite(shown) & (shown > 0)).any())


def draw_star_spectrum(figure, star):
    """Observed and model flux, XP beside photometry, residuals below: into a (sub)figure."""
    shown = [star.has_xp, star.has_bands]
    n_bands = len(star.wavelengths) - star.n_xp
    widths = (3.3, np.clip(0.27 * n_bands, 0.9, 2.4))  # a band has room for its name
    widths = [width for width, there in zip(widths, shown, strict=True) if there]
    heights = [2.2, 1.15] if star.has_model else [1.0]
    axes = figure.subplots(
        len(heights), len(widths), squeeze=False, width_ratios=widths, height_ratios=heights
    )
    columns = list(axes.T)
    if star.has_xp:
        _xp(columns.pop(0), star)
    if star.has_bands:
        _bands(columns.pop(0), star)
    if star.has_model:
        for ax, is_first in zip(axes[1], [True, False], strict=False):
            _residual_frame(ax, star.residual, is_first)


# --- The XP spectrum --------------------------------------------------------------------------
def _xp(axes, star):
    n, x = star.n_xp, star.wavelengths[: star.n_xp]
    flux, err, model, own = (v[:n] for v in (star.flux, star.flux_err, star.model, star.own))
    shown = np.concatenate([flux, model, star.fine[_inside(star.fine_wavelengths)]])
    exponent = _exponent(shown)
    unit = 10.0**exponent
    ax = axes[0]
    ax.plot(star.fine_wavelengths, star.fine / unit, color=GREY, lw=1.0, label="observed, finer")
    ax.fill_between(
        x,
        model * np.exp(-own) / unit,
        model * np.exp(own) / unit,
        color=PALE_BLUE,
        lw=0,
        label="model's own scatter",
    )
    ax.plot(x, model / unit, color=BLUE, label="model")
    style = {"ms": 3.4, "color": BLACK, "elinewidth": 1.0, "mew": 0, "zorder": 4}
    ax.errorbar(x, flux / unit, err / unit, fmt="o", label="observed", **style)
    ax.set_xlim(min(FRAME_NM[0], *(x - 8)), max(FRAME_NM[1], *(x + 8)))
    ax.set_ylim(_flux_limits(shown / unit))
    ax.set_ylabel(_flux_words(exponent))
    _say_unused(ax, x, np.isfinite(flux))
    _legend(ax, star)
    if len(axes) > 1:
        ax.tick_params(labelbottom=False)
        axes[1].sharex(ax)
        axes[1].axhspan(-1, 1, color=PALE, lw=0)
        _draw_residuals(axes[1], x, star.residual[:n], 3.4)
    axes[-1].set_xlabel("wavelength (nm)")


def _inside(wavelengths):
    return (wavelengths >= FRAME_NM[0]) & (wavelengths <= FRAME_NM[1])


def _legend(ax, star):
    handles, words = ax.get_legend_handles_labels()
    there = {
        "observed, finer": np.isfinite(star.fine).any(),
        "observed": np.isfinite(star.flux[: star.n_xp]).any(),
    }
    kept = [(h, w) for h, w in zip(handles, words, strict=True) if there.get(w, star.has_model)]
    if kept:
        order = sorted(kept, key=lambda pair: ORDER.index(pair[1]))
        ax.legend(*zip(*order, strict=True), loc="best", handlelength=1.4, labelspacing=0.3)


def _exponent(flux):
    """Power of ten by which fluxes are divided, so that numbers have few digits."""
    most = np.nanmax(np.abs(flux), initial=0.0)
    return int(np.floor(np.log10(most))) if most > 0 else 0


def _flux_words(exponent):
    return r"flux" + "\n" + rf"($10^{{{exponent - 18}}}$ W m$^{{-2}}$ nm$^{{-1}}$)"


def _flux_limits(flux):
    low, high = np.nanmin(flux, initial=0.0), np.nanmax(flux, initial=0.0)
    margin = 0.07 * (high - low) or 1.0
    return low - margin, high + margin


def _say_unused(ax, x, used):
    """Grey where a stretch of the spectrum was not used."""
    step = np.median(np.diff(x)) if len(x) > 1 else 10.0
    edges = np.flatnonzero(np.diff(np.concatenate([[0], ~used, [0]]).astype(int)))
    for first, last in edges.reshape(-1, 2):
        low, high = x[first] - step / 2, x[last - 1] + step / 2
        ax.axvspan(low, high, color=PALE, lw=0, zorder=0)
        if high - low > 60:
            ax.text(
                (low + high) / 2, 0.03, "not used", transform=ax.get_xaxis_transform(),
                ha="center", va="bottom", fontsize=9, color="#555555",
            )  # fmt: skip


# --- Photometry -------------------------------------------------------------------------------
def _bands(axes, star):
    n, at = star.n_xp, np.arange(len(star.wavelengths) - star.n_xp)
    flux, err, model, own = (v[n:] for v in (star.flux, star.flux_err, star.model, star.own))
    ax = axes[0]
    for x, low, high, value in zip(
        at, model * np.exp(-own), model * np.exp(own), model, strict=True
    ):
        if np.isfinite(value):
            ax.fill_between([x - 0.36, x + 0.36], low, high, color=PALE_BLUE, lw=0)
            ax.plot([x - 0.36, x + 0.36], [value, value], color=BLUE)
    measured = ~np.isfinite(flux) & (star.unused > 0)
    ax.plot(at[measured], star.unused[measured], "o", ms=6, mfc="none", mec=GREY, mew=1.2)
    good = flux > 0
    ax.errorbar(
        at[good], flux[good], err[good], fmt="o", ms=5, color=BLACK, elinewidth=1.2, mew=0, zorder=4
    )
    ax.set_yscale("log")
    _log_frame(ax, np.concatenate([flux, model, np.where(measured, star.unused, np.nan)]))
    if measured.any():
        corner(ax, "○ not used", fontsize=9, color="#555555", y=0.03, va="bottom")
    names = [f"{band_symbol(w)}\n{w / 1000:.3g}" for w in star.wavelengths[n:]]
    for one in axes:
        one.set_xlim(-0.6, len(at) - 0.4)
        one.set_xticks(at, [""] * len(at))
    axes[-1].set_xticks(at, names)
    axes[-1].set_xlabel("photometric band (µm)")
    if len(axes) > 1:
        axes[1].axhspan(-1, 1, color=PALE, lw=0)
        _draw_residuals(axes[1], at, star.residual[n:], 5)
    _say_why(axes, at, np.isfinite(flux), star)


def _log_frame(ax, flux):
    """A frame of at least half a decade, and ticks 1, 2, 5 where it is not many decades."""
    flux = flux[np.isfinite(flux) & (flux > 0)]
    low, high = np.log10([flux.min(), flux.max()])
    margin = max(0.1 * (high - low), (0.5 - (high - low)) / 2, 0.05)
    ax.set_ylim(10 ** (low - margin), 10 ** (high + margin))
    subs = (1, 2, 5) if high - low < 1.6 else (1,)
    decades = np.arange(np.floor(low - margin), np.ceil(high + margin) + 1)
    ax.yaxis.set_major_locator(FixedLocator([s * 10.0**d for d in decades for s in subs]))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_formatter(FuncFormatter(_plain))
    ax.set_ylabel(_flux_words(0))


def _plain(value, _):
    if 0.001 <= value < 1e5:
        return f"{value:,.6g}"
    exponent = int(np.floor(np.log10(value) + 1e-9))
    factor = value / 10.0**exponent
    return (rf"{factor:.0f}$\times$" if factor > 1.5 else "") + rf"$10^{{{exponent}}}$"


def _say_why(axes, at, used, star):
    """Words along the place of a band that is not used, in the lowest panel."""
    for x, is_used, reason in zip(at, used, star.reasons, strict=True):
        if not is_used:
            axes[-1].text(
                x, 0.5, reason or "not used", transform=axes[-1].get_xaxis_transform(),
                rotation=90, ha="center", va="center", fontsize=8, color="#555555",
            )  # fmt: skip


# --- Residuals --------------------------------------------------------------------------------
def _draw_residuals(ax, x, residual, size):
    ax.axhline(0, color=BLUE, lw=1.0)
    inside = np.abs(residual) <= MOST_SIGMAS
    ax.plot(x[inside], residual[inside], "o", color=BLACK, ms=size, mew=0)
    for sign, marker in ((1, "^"), (-1, "v")):
        over = sign * residual > MOST_SIGMAS
        ax.plot(x[over], np.full(over.sum(), sign * MOST_SIGMAS), marker, color=VERMILION, ms=5)


def _residual_frame(ax, residual, is_first):
    reach = np.clip(1.15 * np.nanmax(np.abs(residual), initial=0.0), 3.2, MOST_SIGMAS * 1.1)
    ax.set_ylim(-reach, reach)
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True, symmetric=True))
    ax.grid(True, axis="y")
    if is_first:
        ax.set_ylabel(r"residual ($\sigma$)")
    else:
        ax.tick_params(labelleft=False)
