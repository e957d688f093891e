"""The training stars as the losses take them: batches in which some show less than they have.

So the model learns from stars of every sort: with and without parallax, photometry, BP.
"""

from dataclasses import dataclass

import numpy as np

from fitting.dimming import Dimming
from fitting.direct import direct_inputs, hide_parallax
from fitting.observed import StarData
from fitting.recipe import (
    CalibrationStage,
    DirectStage,
    DistanceStage,
    LikelihoodStage,
    OddityStage,
)
from fitting.split import hash_fraction, lowest
from fitting.strange import StrangeThings
from pipeline.typical_noise import TypicalNoise, usual_noise
from xp_utils import XPBasis, reference_flux

MEASURED_STARS = 20_000  # of which means, prior, components, noise law are made: right to 1%
BLOCK = 1 << 16  # stars that are looked at together
START_EXT = 0.1  # E where no map has a value, +- UNKNOWN_EXT_ERR
UNKNOWN_EXT_ERR = 1.0
N_KINDS = 3  # ordinary stars, blends, and what is no star of ours
FLAT_LN_PLX_ERR = 3.0  # prior of ln plx where the parallax is hidden or missing
# Mag, of a `reference_flux` of 1, where the G magnitude is not known: median of the demo's stars.
REFERENCE_G = 18.56


@dataclass
class TrainingStars:
    """Stars with labels, as `StarData` or `StoredStars` of all K labels; calibration (N,) bool:
    those that serve a stage of that kind alone; g (N,): G magnitudes, NaN where not known; basis:
    of their spectra; noise: their own typical noise, where they tell it; draw (N,): numbers in
    0..1 by which some stars are chosen of many, of their source ids.

    ext, ext_err (N,): E and its error, where no map has a value a wide guess. dimming: what shows
    them fainter, None where there is no typical noise.
    """

    data: StarData
    calibration: np.ndarray
    g: np.ndarray
    basis: XPBasis
    noise: TypicalNoise | None = None
    draw: np.ndarray | None = None

    def __post_init__(self):
        data = self.data
        if self.draw is None:
            self.draw = hash_fraction(np.arange(len(data)))
        known = np.isfinite(data.extinction) & np.isfinite(data.extinction_err)
        self.ext = np.where(known, data.extinction, START_EXT).astype("f4")
        self.ext_err = np.where(known, data.extinction_err, UNKNOWN_EXT_ERR).astype("f4")
        self.g = self._g_magnitudes()
        noise = usual_noise(self.noise, self.basis.release)
        self.dimming = None
        if noise is not None:
            rows = self.sample(self.training)
            self.dimming = Dimming(data.take(rows), self.g[rows], self.basis, noise)

    def _g_magnitudes(self):
        """G magnitudes (N,), about what the fluxes say where they are not known."""
        g, channels = np.array(self.g, "f8"), self.data.channels
        unknown = np.flatnonzero(~np.isfinite(g))
        for start in range(0, len(unknown), BLOCK):
            rows = unknown[start : start + BLOCK]
            data = self.data.take(rows)
            used = np.isfinite(data.flux_err)
            reference = reference_flux(data.flux, used, channels.bp, channels.rp)
            g[rows] = REFERENCE_G - 2.5 * np.log10(reference)
        return g

    def __len__(self):
        return len(self.data)

    @property
    def training(self):
        """Rows of the stars that are trained on."""
        return np.flatnonzero(~self.calibration)

    def sample(self, rows, most=None):
        """Some of the rows (n,), ascending: those that statistics are made of, or at most `most`.
        Always the same."""
        return lowest(rows, self.draw, MEASURED_STARS if most is None else most)


class Batches:
    """Makes the batches of a recipe for stars under a `StellarModel`.

    stars: `TrainingStars`; weight (N,): by which rare types count more in likelihood stages.
    """

    def __init__(self, stars, model, recipe):
        self.stars, self.model, self.recipe = stars, model, recipe
        self.labels, self.forward = model.labels, model.is_forward
        self.z = model.standardised(stars.data.theta).astype("f4")  # (N, K), of all labels
        self.z_err = (stars.data.theta_err / model.label_scale).astype("f4")
        self.weight = self._rarity_weight()
        channels = model.channels
        self.n_bands = len(channels) - channels.n_xp
        self.alone = {"bp": channels.bp & ~channels.rp, "rp": channels.rp & ~channels.bp}
        self.strange = None if stars.dimming is None else StrangeThings(stars, model.labels)

    def _rarity_weight(self):
        """Weights (N,) of mean 1 that let rare types count: the inverse root of the prior density,
        with a soft cap."""
        blocks = (self.z[k : k + BLOCK, self.forward] for k in range(0, len(self.z), BLOCK))
        ln_p = np.concatenate([self.model.prior.ln_density_z(z).numpy() for z in blocks])
        used = ~self.stars.calibration
        ln_weight = -0.5 * (ln_p - np.median(ln_p[used]))
        weight = 1.0 / (np.exp(-ln_weight) + 1.0 / self.recipe.rare_type_weight_cap)
        return (weight / weight[used].mean()).astype("f4")

    def of(self, rows, stage, rng):
        """{name: (B, ...) float32} of the stars `rows` for a stage."""
        one = np.ones(len(rows), "f4")
        if isinstance(stage, OddityStage):
            inputs, kind = self.odd_inputs(rows, stage, rng)
            return {"inputs": inputs, "kind": np.eye(N_KINDS, dtype="f4")[kind], "weight": one}
        shown = self.shown(rows, stage, rng)
        if isinstance(stage, DirectStage):
            inputs = self.direct_inputs(shown, stage, rng)
            return {"inputs": inputs, "z": self.z[rows], "weight": one}
        if isinstance(stage, DistanceStage):
            z, z_err = self.distances(shown)
            inputs = hide_parallax(self.direct_inputs(shown, stage, rng), self.n_bands)
            return {"inputs": inputs, "z": z, "z_err": z_err, "weight": one}
        batch = self._fluxes(shown, rng) | self._known(rows, shown, stage, rng)
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

    def shown(self, rows, stage, rng):
        """`StarData` of the stars `rows` as a stage sees them: some fainter, some without BP or RP.

        Likelihood stages see them as they are, but for the missing bands.
        """
        stars, recipe, n = self.stars, self.recipe, len(rows)
        data = stars.data.take(rows)
        if stars.dimming is None:
            return data
        if not isinstance(stage, LikelihoodStage):
            return self.fainter(data, rows, rng)
        return stars.dimming.hide(data, rng.random(n) < recipe.hide_bp, "bp")

    def fainter(self, data, rows, rng):
        """`StarData` of the stars `rows`: some fainter, some without BP or RP."""
        dimming, recipe, n = self.stars.dimming, self.recipe, len(rows)
        data = dimming.show(data, self.magnitudes(rows, rng), rng, self.stars.g[rows])
        no_bp = rng.random(n) < recipe.hide_bp
        no_rp = ~no_bp & (rng.random(n) < recipe.hide_rp)
        # Not both: a star that one band has not seen keeps the other.
        seen = {
            band: np.isfinite(data.flux_err)[:, place].any(1) for band, place in self.alone.items()
        }
        data = dimming.hide(data, no_rp & seen["bp"], "rp")
        return dimming.hide(data, no_bp & seen["rp"], "bp")

    def magnitudes(self, rows, rng):
        """By how many magnitudes (n,) the stars `rows` are shown fainter."""
        bright, faint = self.recipe.faint_g
        at = rng.uniform(bright, faint, len(rows))
        fainter = np.maximum(at - self.stars.g[rows], 0.0)
        return np.where(rng.random(len(rows)) < self.recipe.faint_share, fainter, 0.0)

    def _fluxes(self, shown, rng):
        """The batch's ln fluxes; some stars without photometry."""
        observed = shown.observed
        photometry = np.arange(self.model.channels.n_xp, len(self.model.channels))
        observed.hide(rng.random(len(shown)) < self.recipe.hide_photometry, photometry)
        # What is left of fluxes that ln flux is not taken of, as they are below the floor.
        above = np.where(observed.used > 0, shown.flux / np.exp(observed.value), 1.0)
        return dict(vars(observed)) | {"above_floor": above}

    def _known(self, rows, shown, stage, rng):
        """Labels, extinction and parallax of the stars, some parallaxes hidden."""
        stars, forward = self.stars, self.forward
        no_plx = rng.random(len(rows)) < self._hide_parallax(stage)
        relative = shown.parallax_err / shown.parallax
        return {
            "z": self.z[rows][:, forward],
            "z_err": self.z_err[rows][:, forward],
            "ext": stars.ext[rows],
            "ext_err": stars.ext_err[rows],
            "ln_plx": np.log(shown.parallax),
            "ln_plx_err": np.where(no_plx, FLAT_LN_PLX_ERR, relative),
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

    def direct_inputs(self, shown, stage, rng):
        """What the direct estimate sees of `StarData`: some stars have a worse parallax or none, or
        do without a part of their fluxes."""
        n = len(shown)
        for places in self.model.channels.photometry.values():
            shown.observed.hide(rng.random(n) < self.recipe.hide_photometry, places)
        plx, err = (x.astype("f8") for x in (shown.parallax, shown.parallax_err))
        blur = (rng.random(n) < self.recipe.blur_parallax) * np.abs(plx * rng.normal(size=n))
        plx, err = plx + blur * rng.normal(size=n), np.hypot(err, blur)
        hidden = rng.random(n) < self._hide_parallax(stage)
        shown.parallax, shown.parallax_err = np.where(hidden, np.nan, plx), err
        return direct_inputs(shown)

    def distances(self, shown):
        """Standardised ln flux at 1 kpc of `StarData`, by their parallaxes, and its error (n,)."""
        at_kpc = shown.observed.features[:, 0] - 2 * np.log(shown.parallax)
        mean, scale = self.model.distance_mean, self.model.distance_scale
        err = 2 * shown.parallax_err / shown.parallax / scale
        return ((at_kpc - mean) / scale).astype("f4"), err.astype("f4")

    def odd_inputs(self, rows, stage, rng):
        """Inputs of stars, half of them ordinary (kind 0), a quarter blends (1) and a quarter
        things that are no stars of ours (2); and their kinds. Parallaxes are hidden: those of the
        simulated are made up, and their errors would give them away."""
        kind = np.where(rng.random(len(rows)) < 0.5, 0, rng.integers(1, N_KINDS, len(rows)))
        order = np.argsort(kind, kind="stable")
        rows, kind = rows[order], kind[order]
        inputs = []
        for k in range(N_KINDS):
            chosen = rows[kind == k]
            shown = self.odd(k, chosen, rng)
            shown = self.fainter(shown, chosen, rng)
            inputs.append(self.direct_inputs(shown, stage, rng))
        return hide_parallax(np.concatenate(inputs), self.n_bands), kind

    def odd(self, kind, rows, rng):
        """`StarData` of a kind of things, made of the stars `rows`."""
        if kind == 0 or not len(rows):
            return self.stars.data.take(rows)
        return (self.strange.blends if kind == 1 else self.strange.objects)(rows, rng)

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
