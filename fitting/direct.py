"""The direct estimate: labels straight from the observed fluxes, by small networks."""

import numpy as np

# Of the spectrum, where there is a finer one: the networks take turns. On whitened components they
# learn more of bright stars, on the fluxes themselves of faint ones.
REPRESENTATIONS = ("coarse", "components", "fine", "components")
# Of the finer spectrum, relative to the reference flux: asinh is linear below.
FINE_SOFTENING = 0.02


def direct_inputs(data):
    """What the direct estimate sees of `StarData` of N stars (N, p) float32, NaN where a star has
    nothing to show, and which of it is the spectrum on the model's grid, and on the finer one.

    Columns: the ln XP fluxes relative to the brightness; the finer spectrum; the ln fluxes of the
    photometric bands and their ln errors; the error levels of BP and RP; the ln flux at 1 kpc and
    the ln relative error of the parallax, a parallax below its error taken as that; and what is
    there: the share of XP fluxes, each photometric band, the parallax.
    """
    observed, channels = data.observed, data.channels
    n_xp, used = channels.n_xp, observed.used > 0
    bright = observed.features[:, :1]
    fluxes = np.where(used, observed.value - bright, np.nan)
    ln_err = np.where(used, np.log(observed.rel_err), np.nan)
    alones = (channels.bp & ~channels.rp, channels.rp & ~channels.bp)
    levels = [_mean(ln_err[:, alone]) for alone in alones]
    parallax, err = np.asarray(data.parallax, "f8"), np.asarray(data.parallax_err, "f8")
    known = np.isfinite(parallax) & (err > 0)
    err = np.where(known, err, np.nan)
    floored = np.fmax(parallax, err) + 0.0 * err
    fine = np.empty((len(data), 0)) if data.fine is None else np.asarray(data.fine, "f4")
    columns = [
        fluxes[:, :n_xp],
        np.arcsinh(fine / FINE_SOFTENING),
        fluxes[:, n_xp:],
        ln_err[:, n_xp:],
        *levels,
        bright[:, 0] - 2 * np.log(floored),
        np.log(err / floored),
        used[:, :n_xp].mean(1),
        used[:, n_xp:],
        known,
    ]
    return np.column_stack(columns).astype("f4")


def hide_parallax(inputs, n_bands):
    """`direct_inputs` (N, p) of stars with n_bands photometric bands, their parallaxes hidden."""
    out = inputs.copy()
    out[:, -n_bands - 4 : -n_bands - 2] = np.nan
    out[:, -1] = 0.0
    return out


def _mean(values):
    """Mean over axis 1 of what is finite; NaN where nothing is."""
    seen = np.isfinite(values)
    n = seen.sum(1)
    return np.where(n > 0, np.where(seen, values, 0.0).sum(1) / np.maximum(n, 1), np.nan)


def representation_masks(n_inputs, n_xp, n_fine, n_networks):
    """(n_networks, n_inputs + n_xp + n_fine) bool: what a network sees of `direct_inputs`, and of
    the components of the spectrum in them."""
    n_spectrum = n_xp + n_fine
    masks = np.zeros((n_networks, n_inputs + n_spectrum), bool)
    masks[:, n_spectrum:n_inputs] = True
    places = {
        "coarse": slice(0, n_xp),
        "fine": slice(n_xp, n_spectrum) if n_fine else slice(0, n_xp),
        "components": slice(n_inputs, None),
    }
    for k, mask in enumerate(masks):
        mask[places[REPRESENTATIONS[k % len(REPRESENTATIONS)]]] = True
    return masks
