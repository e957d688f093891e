"""Figures of a training: losses, and what the model has learned."""

from pathlib import Path

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator, NullFormatter

from pipeline.figures.arrays import checked, limits_of, size_of_spectrum
from pipeline.figures.dust import curves_at_norm
from pipeline.figures.spectra import FEWER_UM, draw_fluxes, name_bands, wavelength_axis
from pipeline.figures.style import (
    BLACK,
    CYCLE,
    TEFF_MAP,
    VALUE_MAP,
    corner,
    drawing,
    in_unit,
    log_y,
    no_data,
    plain_log,
)
from pipeline.schema import DEFAULT_LABELS

DASHES = ("-", "--", "-.", ":")
ONE_VALUE = 0.04  # of a label's tolerance: stars within it have the same


# --- Losses -----------------------------------------------------------------------------------
def loss_history(
    path, epoch, series, learning_rate=None, title="Training history", ylabel="loss", xlabel="epoch"
):
    """Losses against epoch, the learning rate below.

    Args:
        epoch (n,): epochs.
        series: {name: (n,)} losses; NaN where a loss was not computed.
        learning_rate (n,), optional.
        title, ylabel, xlabel: what the losses are, and of which stages the epochs.
    """
    epoch = checked("epoch", epoch, (None,))
    series = {
        name: checked(f"series {name!r}", values, epoch.shape) for name, values in series.items()
    }
    if learning_rate is not None:
        learning_rate = checked("learning_rate", learning_rate, epoch.shape)
    with drawing(path, 4.6 if learning_rate is None else 5.4, title) as figure:
        ratios = [1] if learning_rate is None else [3.4, 1]
        axes = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios, squeeze=False)
        _losses(axes[0, 0], epoch, series)
        axes[0, 0].set_ylabel(ylabel)
        if learning_rate is not None:
            _learning_rate(axes[1, 0], epoch, learning_rate)
        axes[-1, 0].set_xlabel(xlabel)
        axes[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    return Path(path)


def _losses(ax, epoch, series):
    marker = "o" if len(epoch) <= 30 else None
    for i, (name, values) in enumerate(series.items()):
        seen = np.isfinite(values) & np.isfinite(epoch)
        if not seen.any():
            continue
        best = np.flatnonzero(seen)[np.argmin(values[seen])]
        text = f"{name} (lowest {values[best]:.4g} at epoch {epoch[best]:g})".replace("-", "−")
        style = {"color": CYCLE[i % 7], "marker": marker, "ms": 4, "label": text}
        ax.plot(epoch[seen], values[seen], DASHES[i % 4], **style)
        ax.plot(epoch[best], values[best], "o", color=CYCLE[i % 7], ms=7, mfc="white", mew=1.6)
    ax.grid(True, which="major")
    if not ax.lines:
        return no_data(ax)
    ax.legend(loc="upper right")
    return _loss_scale(ax, epoch, np.array(list(series.values())))


def _loss_scale(ax, epoch, values):
    """Log y for positive losses over a factor of 4; else a frame that a wild start cannot spoil."""
    finite = values[np.isfinite(values)]
    if finite.min() > 0 and finite.max() > 4 * finite.min():
        ax.set_yscale("log")
        return plain_log(ax.yaxis)
    late = values[:, len(epoch) // 10 :]
    late = late[np.isfinite(late)]
    if late.size and np.ptp(finite) > 10 * np.ptp(late) > 0:
        ax.set_ylim(limits_of(late, pad=0.08))
        corner(ax, "the first epochs lie outside the frame", y=0.04, va="bottom", color="#555555")
    return None


def _learning_rate(ax, epoch, learning_rate):
    seen = np.isfinite(learning_rate) & (learning_rate > 0)
    ax.set_ylabel("learning rate")
    ax.grid(True)
    if not seen.any():
        return no_data(ax)
    marker = "o" if len(epoch) <= 30 else None
    style = {"color": BLACK, "drawstyle": "steps-mid", "marker": marker, "ms": 3}
    ax.plot(epoch[seen], learning_rate[seen], **style)
    if np.ptp(learning_rate[seen]) > 0:
        ax.set_yscale("log")
        ax.yaxis.set_minor_formatter(NullFormatter())
    return None


# --- The extinction curve ---------------------------------------------------------------------
def extinction_curve(
    path,
    wavelengths,
    xi,
    ln_curve,
    title="The learned extinction curve and its variation",
    n_xp=None,
):
    """R(lambda), 1 at 550 nm, for several xi; below, the ratio to xi = 0.

    Args:
        wavelengths (n_wl,): nm.
        xi (k,): shapes of the curve; one of them must be 0.
        ln_curve (k, n_wl): ln R, in any normalisation.
        n_xp: how many wavelengths are the XP spectrum's.

    Raises: ValueError where no xi is 0 or 550 nm is outside the spectrum.
    """
    wavelengths = checked("wavelengths", wavelengths, (None,))
    xi = checked("xi", xi, (None,))
    ln_curve = checked("ln_curve", ln_curve, (len(xi), len(wavelengths)))
    if not np.any(np.abs(xi) < 1e-6):
        raise ValueError("xi holds no 0, the curve that others are compared with: add it")
    n_xp = size_of_spectrum(wavelengths, n_xp)
    curve = curves_at_norm(wavelengths[:n_xp], ln_curve)
    ratio = curve / curve[np.nanargmin(np.abs(xi))]
    with drawing(path, 6.4, title) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1.5, 1])
        norm = Normalize(*_symmetric(xi))
        for i in np.argsort(-np.abs(xi))[: np.isfinite(xi).sum()]:
            middle = abs(xi[i]) < 1e-6
            colour = BLACK if middle else VALUE_MAP(norm(xi[i]))
            for ax, values in ((top, curve[i]), (bottom, ratio[i])):
                draw_fluxes(ax, wavelengths, values, n_xp, colour, zorder=4 if middle else 2)
        name_bands(top, wavelengths[n_xp:])
        _extinction_axes(figure, top, bottom, wavelengths, norm, xi)
    return Path(path)


def _symmetric(xi):
    largest = np.max(np.abs(xi[np.isfinite(xi)]), initial=0.0) or 1.0
    return -largest, largest


def _extinction_axes(figure, top, bottom, wavelengths, norm, xi):
    for ax in (top, bottom):
        wavelength_axis(ax, wavelengths)
        ax.grid(True)
    log_y(top)
    top.set_xlabel("")
    top.set_ylabel(r"$R(\lambda)\,/\,R(550\,\mathrm{nm})$")
    bottom.set_ylabel(r"ratio to $\xi=0$")
    bar = figure.colorbar(ScalarMappable(norm, VALUE_MAP), ax=[top, bottom], pad=0.02, aspect=35)
    bar.set_label(r"shape of the curve $\xi$ (black: 0)")
    if len(xi) <= 9:
        bar.set_ticks(np.unique(xi[np.isfinite(xi)]))


# --- Model spectra ----------------------------------------------------------------------------
def model_spectra(
    path,
    wavelengths,
    tracks,
    title="Model spectra without dust",
    labels=DEFAULT_LABELS,
    n_xp=None,
):
    """lambda * f along tracks of stellar types, one panel a track, coloured by Teff.

    Curves are divided by their geometric mean over the XP range, so that shapes are compared. A
    track of one Teff is coloured by the label that varies most along it instead, as measured by
    its tolerance. Without a Teff the first label takes its place.

    Args:
        wavelengths (n_wl,): nm.
        tracks: {title: (theta (k, K), ln_flux (k, n_wl))}.
        labels: the K labels of theta.
        n_xp: how many wavelengths are the XP spectrum's.
    """
    wavelengths = checked("wavelengths", wavelengths, (None,))
    n_xp = size_of_spectrum(wavelengths, n_xp)
    thetas = {k: checked(f"theta of {k!r}", v[0], (None, len(labels))) for k, v in tracks.items()}
    fluxes = {
        name: checked(f"ln_flux of {name!r}", ln_flux, (len(thetas[name]), len(wavelengths)))
        for name, (_, ln_flux) in tracks.items()
    }
    n_columns = min(max(len(tracks), 1), 3 if len(tracks) != 4 else 2)
    n_rows = -(-max(len(tracks), 1) // n_columns)
    with drawing(path, 0.5 + (5.0 if n_columns == 1 else 4.4) * n_rows, title) as figure:
        axes = figure.subplots(n_rows, n_columns, sharey=True, sharex=True, squeeze=False)
        for ax, name in zip(axes.flat, tracks, strict=False):
            colouring = _colouring(thetas[name], list(thetas.values()), labels)
            _track(ax, wavelengths, n_xp, fluxes[name], *colouring[:2])
            _track_axes(figure, ax, wavelengths, n_xp, *colouring[1:])
            ax.set_title(name, pad=16, loc="left")
        for ax in axes.flat[len(tracks) :]:
            ax.set_axis_off()
        for ax in axes[:, 0]:
            ax.set_ylabel(r"$\lambda f_\lambda$, relative to its mean over XP")
    return Path(path)


def _colouring(theta, thetas, labels):
    """What a track's curves are coloured by: values (k,) as shown, their colours, their label.

    theta (k, K) of the track; thetas: of all tracks, which share the colours of Teff.
    """
    spread = np.array([np.ptp(c[np.isfinite(c)]) if np.isfinite(c).any() else 0 for c in theta.T])
    spread = spread / labels.array("tolerance")
    main = labels.place.get("teff", 0)
    by = main if spread[main] > ONE_VALUE or not spread.any() else int(np.argmax(spread))
    label = labels.labels[by]
    low, high = limits_of(*(t[:, by] for t in (thetas if by == main else [theta])), pad=0.0)
    norm = Normalize(low * label.scale, high * label.scale)
    colours = ScalarMappable(norm, TEFF_MAP if label.name == "teff" else VALUE_MAP)
    return theta[:, by] * label.scale, colours, label


def _track(ax, wavelengths, n_xp, ln_flux, colour_by, colours):
    ln_value = ln_flux + np.log(wavelengths)  # (k, n_wl)
    for value, row in zip(colour_by, ln_value, strict=True):
        level = row[:n_xp][np.isfinite(row[:n_xp])]
        if level.size and np.isfinite(value):
            colour = colours.to_rgba(value)
            draw_fluxes(ax, wavelengths, np.exp(row - level.mean()), n_xp, colour, lw=1.4)


def _track_axes(figure, ax, wavelengths, n_xp, colours, label):
    log_y(ax)
    ax.grid(True)
    wavelength_axis(ax, wavelengths, FEWER_UM)
    ax.tick_params(labelbottom=True)
    name_bands(ax, wavelengths[n_xp:])
    bar = figure.colorbar(colours, ax=ax, location="bottom", aspect=30, pad=0.02)
    bar.set_label(in_unit(label.symbol, label))
    bar.ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
