"""From the rows of some stars and the model to what their pages show (tools/plot_star.py)."""

import numpy as np

from fitting.catalogue import MIN_XP_FLUXES
from fitting.fitted_spectrum import fitted_spectrum
from fitting.observed import StarData, used_fluxes
from pipeline.figures import StarPage, StarPosterior, StarSpectrum
from pipeline.unused_bands import unused_bands
from xp_utils import reference_flux


def star_pages(stars, trained, release):
    """Yield the `StarPage` of each of `StarRows`, in their order, under a `TrainedModel`."""
    model, inputs = trained.stellar, stars.inputs
    channels = model.channels
    used = used_fluxes(inputs["flux"], inputs["flux_err"])
    fitted = fitted_spectrum(
        model, StarData.of_table(inputs, channels), stars.catalogue["model_params_est"]
    )
    fine_wavelengths, fine = _fine(inputs, used, channels, release)
    unused, reasons = _unused(stars, used, channels)
    for k in range(len(used)):
        spectrum = StarSpectrum(
            channels.wavelengths,
            channels.n_xp,
            inputs["flux"][k],
            np.where(used[k], inputs["flux_err"][k], np.inf),
            np.exp(fitted.ln_flux[k]),
            fitted.own[k],
            fitted.residual[k],
            fine_wavelengths,
            fine[k],
            unused[k],
            reasons[k],
        )
        row = {name: values[k] for name, values in stars.catalogue.items()}
        posterior = _posterior(row, model)
        why = "" if posterior else _why_none(used[k, : channels.n_xp].sum())
        yield StarPage(row, release, model.labels, spectrum, posterior, why)


def _fine(inputs, used, channels, release):
    """Wavelengths (m,) and the observed XP fluxes there (N, m); none of a release without them."""
    if "xp_fine" not in inputs:
        return np.empty(0), np.empty((len(used), 0))
    reference = reference_flux(inputs["flux"].astype("f8"), used, channels.bp, channels.rp)
    return release.spectra.fine_wavelengths, inputs["xp_fine"] * reference[:, None]


def _unused(stars, used, channels):
    """Measured fluxes (N, bands) of bands that are not used, else NaN, and why: words, or ""."""
    flux, reasons = unused_bands(stars.surveys, stars.inputs)
    for survey, places in channels.photometry.items():
        if survey in stars.without:
            reasons[:, places - channels.n_xp] = "left out"
    bands = used[:, channels.n_xp :]
    return np.where(bands, np.nan, flux), np.where(bands, "", reasons)


def _posterior(row, model):
    """`StarPosterior` of a row of the catalogue; None where the star has no parameters."""
    if not np.isfinite(row["stellar_params_est"]).all():
        return None
    n, forward, prior = len(model.labels.parameters), model.is_forward, model.prior
    cov = np.zeros((n, n))
    cov[np.triu_indices(n)] = row["stellar_params_cov_triu"]
    scale = model.label_scale[forward]
    return StarPosterior(
        model.labels,
        row["stellar_params_est"],
        cov + np.triu(cov, 1).T,
        row["model_params_est"],
        row["model_params_err"],
        row["second_params_est"],
        float(row["plx"]),
        float(row["plx_err"]),
        (prior.weights, model.theta(prior.means_np), prior.covariances * scale * scale[:, None]),
    )


def _why_none(n_xp):
    if n_xp < MIN_XP_FLUXES:
        return (
            f"No parameters: {n_xp} XP fluxes can be used, at least {MIN_XP_FLUXES} are needed. "
            "What there is of this star is shown."
        )
    return (
        "No parameters: the posterior has no proper covariance at its maximum. What was observed "
        "is shown."
    )
