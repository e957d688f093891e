"""The training stars as the losses take them: batches in which some show less than they have.

So the model learns from stars of every sort: with and without parallax, photometry, BP.
"""

from dataclasses import dataclass

import numpy as np

from fitting.observed import LnFlux, StarData, ln_flux_data
from fitting.recipe import CalibrationStage, DirectStage, LikelihoodStage

START_EXT = 0.1  # E where no map has a value, +- UNKNOWN_EXT_ERR
UNKNOWN_EXT_ERR = 1.0
FLAT_LN_PLX_ERR = 3.0  # prior of ln plx where the parallax is hidden or missing


@dataclass
class TrainingStars:
    """Stars with labels, as `StarData` of all K labels; calibration (N,) bool: those that serve a
    stage of that kind alone.

    start_ext, start_ext_err (N,): E and its error, where no map has a value a wide guess.
    """

    data: StarData
    calibration: np.ndarray

    def __post_init__(self):
        data = self.data
        self.observed = data.observed
        err = data.flux_err.copy()
        err[:, data.channels.bp] = np.inf
        self.without_bp = ln_flux_data(data.flux, err, data.channels)
        known = np.isfinite(data.extinction) & np.isfinite(data.extinction_err)
        self.ext = np.where(known, data.extinction, START_EXT).astype("f4")
        self.ext_err = np.where(known, data.extinction_err, UNKNOWN_EXT_ERR).astype("f4")
        self.ln_plx = np.log(data.parallax)
        self.ln_plx_err = (data.parallax_err / data.parallax).astype("f4")

    def __len__(self):
        return len(self.data)

    @property
    def training(self):
        """Rows of the stars that are trained on."""
        return np.flatnonzero(~self.calibration)


class Batches:
    """Makes the batches of a recipe for stars under a `StellarModel`.

    stars: `TrainingStars`; weight (N,): by which rare types count more in likelihood stages.
    """

    def __init__(self, stars, model, recipe):
        self.stars, self.model, self.recipe = stars, model, recipe
        self.labels, self.forward = model.labels, model.is_forward
        self.z = model.standardised(stars.data.theta).astype("f4")  # of all K labels
        self.z_err = (stars.data.theta_err / model.label_scale).astype("f4")
        self.weight = self._rarity_weight()

    def _rarity_weight(self):
        """Weights (N,) of mean 1 that let rare types count: the inverse root of the prior density,
        with a soft cap."""
        ln_p = self.model.prior.ln_density_z(self.z[:, self.forward]).numpy()
        used = ~self.stars.calibration
        ln_weight = -0.5 * (ln_p - np.median(ln_p[used]))
        weight = 1.0 / (np.exp(-ln_weight) + 1.0 / self.recipe.rare_type_weight_cap)
        return (weight / weight[used].mean()).astype("f4")

    def of(self, rows, stage, rng):
        """{name: (B, ...) float32} of the stars `rows` for a stage."""
        if isinstance(stage, DirectStage):
            inputs = self.direct_inputs(rows, stage, rng)
            return {"inputs": inputs, "z": self.z[rows], "weight": np.ones(len(rows), "f4")}
        batch = vars(self._fluxes(rows, rng)) | self._known(rows, stage, rng)
        centre, width = self._centre(rows, rng)
        batch["z_noise"] = centre
        if isinstance(stage, LikelihoodStage):
            batch["weight"] = self.weight[rows]
        else:
            draws = rng.normal(size=(len(rows), self.recipe.candidates, centre.shape[1]))
            batch["candidates"] = centre[:, None] + width[:, None] * draws
            batch["candidates"][:, 0] = batch["z"]
            batch["weight"] = np.ones(len(rows))
        if isinstance(stage, CalibrationStage):  # the errors of labels are not the model's
            batch["label_err"] = batch["z_err"]
        return {name: np.asarray(value, "f4") for name, value in batch.items()}

    def _fluxes(self, rows, rng):
        """`LnFlux` of the stars: some not seen by BP, some without photometry."""
        observed = self._some_without_bp(rows, rng)
        photometry = np.arange(self.model.channels.n_xp, len(self.model.channels))
        observed.hide(rng.random(len(rows)) < self.recipe.hide_photometry, photometry)
        return observed

    def _some_without_bp(self, rows, rng):
        no_bp = (rng.random(len(rows)) < self.recipe.hide_bp)[:, None]
        pairs = zip(
            vars(self.stars.without_bp).values(), vars(self.stars.observed).values(), strict=True
        )
        return LnFlux(*(np.where(no_bp, hidden[rows], seen[rows]) for hidden, seen in pairs))

    def _known(self, rows, stage, rng):
        """Labels, extinction and parallax of the stars, some parallaxes hidden."""
        stars, forward = self.stars, self.forward
        no_plx = rng.random(len(rows)) < self._hide_parallax(stage)
        return {
            "z": self.z[rows][:, forward],
            "z_err": self.z_err[rows][:, forward],
            "ext": stars.ext[rows],
            "ext_err": stars.ext_err[rows],
            "ln_plx": stars.ln_plx[rows],
            "ln_plx_err": np.where(no_plx, FLAT_LN_PLX_ERR, stars.ln_plx_err[rows]),
        }

    def _hide_parallax(self, stage):
        own = stage.hide_parallax
        return self.recipe.hide_parallax if own is None else own

    def _centre(self, rows, rng):
        """Centres of the candidates (B, Kf) and their widths about them, both in z."""
        labels = self.labels.forward
        values = self.stars.data.theta[rows][:, self.forward]
        relative = values / labels.array("width_at")
        power = labels.array("width_power")
        growth = np.where(power == 0, 1.0, np.abs(relative) ** power)
        width = labels.array("width") / self.model.label_scale[self.forward] * growth
        return self.z[rows][:, self.forward] + width * rng.normal(size=width.shape), width

    def direct_inputs(self, rows, stage, rng):
        """What the direct estimate sees of the stars `rows`: some have a worse parallax or none, or
        do without a part of their fluxes."""
        n, observed = len(rows), self._some_without_bp(rows, rng)
        for places in self.model.channels.photometry.values():
            observed.hide(rng.random(n) < self.recipe.hide_photometry, places)
        data = self.stars.data
        plx, err = (x[rows].astype("f8") for x in (data.parallax, data.parallax_err))
        blur = (rng.random(n) < self.recipe.blur_parallax) * np.abs(plx * rng.normal(size=n))
        plx, err = plx + blur * rng.normal(size=n), np.hypot(err, blur)
        hidden = rng.random(n) < self._hide_parallax(stage)
        return self.model.direct_inputs(observed, np.where(hidden, np.nan, plx), err)

    def selected(self, stage, rejected):
        """Rows of the stars that a gradient stage trains on; rejected (N,) bool: none of these."""
        stars, limits = self.stars, stage.select
        keep = ~rejected & (stars.calibration == isinstance(stage, CalibrationStage))
        for name, most in limits.max_err.items():
            if name in self.labels.place:
                keep &= stars.data.theta_err[:, self.labels.place[name]] <= most
        if limits.min_parallax_snr is not None:
            keep &= stars.data.parallax >= limits.min_parallax_snr * stars.data.parallax_err
        if limits.min_extinction is not None:
            keep &= stars.ext >= limits.min_extinction
        return np.flatnonzero(keep)
