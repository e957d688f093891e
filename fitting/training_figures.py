"""The figures of a training and of its validation stars."""

import numpy as np

from fitting.catalogue import label_estimates
from fitting.confidence import is_right
from fitting.fitted_spectrum import predicted_ln_flux
from fitting.observed import ln_flux_data
from pipeline import figures

XI_SHOWN = np.linspace(-2, 2, 5)
# Tracks of stellar types whose model spectra are drawn: Teff (kK) and what goes with it.
TRACKS = {
    "Main sequence": {
        "teff": np.arange(3.6, 6.81, 0.4),
        "feh": 0.0,
        "logg": ([3.5, 4.5, 5.8, 6.8], [4.8, 4.6, 4.4, 4.2]),
    },
    "Giant branch": {
        "teff": np.arange(3.7, 5.11, 0.2),
        "feh": -0.2,
        "logg": ([3.7, 4.2, 4.8, 5.1], [0.7, 1.7, 2.6, 3.4]),
    },
}


def track_types(track, model):
    """Types (k, Kf) along a track of TRACKS; labels that it does not name are at the mean of the
    training stars."""
    labels, forward = model.labels.forward, model.is_forward
    theta = np.tile(model.label_mean[forward], (len(track["teff"]), 1))
    for name, value in track.items():
        if name in labels.place:
            along = np.interp(track["teff"], *value) if isinstance(value, tuple) else value
            theta[:, labels.place[name]] = along
    return theta.astype("f4")


def draw_figures(folder, trainer, columns, table):
    """All figures, into `folder`; columns: inferred columns of the validation stars, table: what
    was observed of them, and their labels."""
    _losses(folder, trainer)
    _the_model(folder, trainer.model)
    _residuals(folder, trainer.model, columns, table)
    _labels(folder, trainer, columns, table)


def _losses(folder, trainer):
    for kind in ("likelihood", "posterior", "direct"):
        stages = [stage.name for stage in trainer.recipe.of_kind(kind)]
        losses = np.array(
            [h.get(f"{kind}_loss", np.nan) for h in trainer.history if h["stage"] in stages]
        )
        if len(losses):
            figures.loss_history(
                folder / f"loss_{kind}.png",
                np.arange(len(losses)),
                {f"{kind} loss": losses},
                xlabel=f"epoch of {', '.join(stages)}",
            )


def _the_model(folder, model):
    flux, wavelengths = model.flux, model.channels.wavelengths
    curve = np.log(flux.ext_curve(XI_SHOWN.astype("f4"))[0].numpy())
    shown = {"n_xp": model.channels.n_xp}
    figures.extinction_curve(folder / "extinction_curve.png", wavelengths, XI_SHOWN, curve, **shown)
    if "teff" in model.labels.forward.place:
        types = {name: track_types(track, model) for name, track in TRACKS.items()}
        tracks = {
            name: (theta, flux.ln_flux(flux.standardise(theta)).numpy())
            for name, theta in types.items()
        }
        labels = model.labels.forward
        figures.model_spectra(
            folder / "model_spectra.png", wavelengths, tracks, labels=labels, **shown
        )


def _residuals(folder, model, columns, table):
    good = np.isfinite(columns["model_params_est"]).all(1)
    seen = ln_flux_data(table["flux"][good], table["flux_err"][good], model.channels)
    left = seen.value - predicted_ln_flux(model, columns["model_params_est"][good])
    left = np.where(seen.used > 0, left, np.nan)
    wavelengths, n_xp = model.channels.wavelengths, model.channels.n_xp
    figures.residuals_by_wavelength(
        folder / "residuals.png", wavelengths, np.expm1(left), left / seen.rel_err, n_xp=n_xp
    )


def _labels(folder, trainer, columns, table):
    labels = trainer.model.labels
    est, err = label_estimates(columns, labels)
    label, label_err = table["stellar_type"], table["stellar_type_err"]
    figures.inferred_against_label(
        folder / "validation.png",
        label,
        est,
        label_err,
        err,
        title="Validation stars, never trained on",
        labels=labels,
    )
    fitted, forward = ~trainer.stars.calibration[trainer.fitted], trainer.model.is_forward
    used, stars = trainer.fitted[fitted], trainer.stars.data
    figures.inferred_against_label(
        folder / "stars.png",
        stars.theta[used][:, forward],
        trainer.fitted_type[fitted],
        stars.theta_err[used][:, forward],
        title="Training stars: fitted with the label as prior, against the label",
        note=f"{trainer.rejected[used].sum()} of {len(used)} rejected",
        labels=labels.forward,
    )
    good = np.isfinite(est).all(1)
    right = is_right(est, err, label, label_err, labels)
    figures.reliability(
        folder / "confidence.png",
        {x.title: columns[f"{x.name}_confidence"][good] for x in labels},
        {x.title: right[good, k] for k, x in enumerate(labels)},
    )
