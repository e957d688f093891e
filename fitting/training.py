"""Training of the model: the losses, the batches, the stages and their state.

`Trainer` runs the stages of a recipe (docs/model.md) epoch by epoch on stars with labels; its state
can be saved after any epoch and restored. Arrays in, arrays out: files are the script's (train.py).
"""

import json

import numpy as np
import tensorflow as tf

import xp_utils
from fitting.star_solver import LN_E, LN_PLX, StarSolver, Z
from model import (
    DirectNetwork,
    FluxModel,
    LnFlux,
    NoiseModel,
    StellarModel,
    direct_inputs,
    fit_prior,
    initial_ln_ext_curve,
    ln_flux_data,
    marginal_chi2,
    student_misfit,
)

ADAM_BETA = (0.9, 0.999)
ADAM_EPSILON = 1e-8
GRADIENT_CLIP = 2.0  # of the norm over all weights, of the mean over a batch
WARM_UP_STEPS = 150
START_EXT = 0.1  # E where no map has a value, +- UNKNOWN_EXT_ERR
UNKNOWN_EXT_ERR = 1.0
XI_SLOPE = 0.1  # start of d ln R / d xi per e-fold of wavelength: any but 0, as a
# curve without xi-variation and stars with xi = 0 hold each other
FLAT_LN_PLX_ERR = 3.0  # prior of ln plx where the parallax is hidden or missing
FLAT_EXT_ERR = 3.0  # prior of E where it is to be found out
MIN_NOISE_EXT = 0.02  # E at which the noise is evaluated is at least this
# Candidates of the posterior stage: the truth and draws within these widths of a common centre, in
# kK (Teff / 4.8)^3, dex, dex: wide against the posterior, narrow against the prior.
CANDIDATES = 12
CANDIDATE_WIDTH = (0.084, 0.15, 0.2)
CANDIDATE_TEFF = 4.8
LOSS_LINEAR_UNTIL = 6.0  # the posterior loss of a star grows as its logarithm beyond
# Weights of the losses, by kind of stage: in a posterior stage the likelihood stays as an anchor.
LOSS_WEIGHTS = {
    "likelihood": {"likelihood": 1.0},
    "posterior": {"likelihood": 2.0, "posterior": 1.0},
    "calibration": {"posterior": 1.0},
    "direct": {"direct": 1.0},
}
DIRECT_NU = 6.0  # degrees of freedom of the direct estimate's errors: labels are wrong
BLURRED_SHARE = 0.3  # of the stars show a worse parallax, with errors of about its size
NIR, WISE = slice(xp_utils.N_XP, xp_utils.N_XP + 3), slice(xp_utils.N_XP + 3, xp_utils.N_FLUX)
MIN_BASIS_SIZE = 0.01  # of a component of ln flux in the network's output basis
MIN_STAGE_STARS = 50  # with fewer selected, a stage is skipped


def start_model(stars, observed, wavelengths, recipe):
    """A `StellarModel` that predicts the median intrinsic spectrum of the training stars."""
    theta_mean, theta_scale = stars.theta.mean(0), stars.theta.std(0)
    ext = np.where(np.isfinite(stars.ext), stars.ext, START_EXT)
    curve = np.exp(initial_ln_ext_curve(wavelengths))
    intrinsic = observed.value + ext[:, None] * curve - 2 * np.log(stars.plx)[:, None]
    intrinsic[observed.used == 0] = np.nan
    mean, basis = spectrum_basis(intrinsic, curve)
    flux = FluxModel(
        wavelengths, theta_mean, theta_scale, mean, basis, recipe["hidden"], seed=recipe["seed"]
    )
    flux.ln_ext_curve_xi.assign(XI_SLOPE * np.log(wavelengths / 550.0) * flux.xi_mask)
    noise = NoiseModel(
        len(wavelengths),
        observed.features.mean(0),
        observed.features.std(0),
        recipe["noise_hidden"],
        recipe["seed"],
    )
    prior = fit_prior(
        stars.theta, theta_mean, theta_scale, recipe["prior_components"], recipe["seed"]
    )
    return StellarModel(flux, noise, prior)


def spectrum_basis(intrinsic, curve):
    """Median spectrum (n_wl,) and basis (n_wl, n_wl) of the network's outputs.

    intrinsic (N, n_wl): ln fluxes at 1 kpc without dust, as far as is known; NaN where not seen.
    curve (n_wl,): an extinction curve. The first two rows of the basis are the directions that
    parallax and dust leave uncertain, grey and the curve; the others the principal components of
    what is left. Each row is scaled to the stars' standard deviation along it.
    """
    seen = np.isfinite(intrinsic).any(0)
    mean = np.full(len(curve), np.nanmedian(intrinsic))
    mean[seen] = np.nanmedian(intrinsic[:, seen], axis=0)
    left = np.where(np.isfinite(intrinsic), intrinsic - mean, 0.0)
    soft = np.linalg.qr(np.stack([np.ones(len(curve)), curve], 1))[0]  # (n_wl, 2)
    size = (left @ soft).std(0)
    left -= left @ soft @ soft.T
    variance, axes = np.linalg.eigh(left.T @ left / len(left) + 1e-12 * np.eye(len(curve)))
    axes = axes[:, np.argsort(-variance)][:, : len(curve) - 2]
    axes = np.linalg.qr(np.concatenate([soft, axes], 1))[0][:, 2:]
    sizes = np.concatenate([size, (left @ axes).std(0)])
    basis = np.concatenate([soft, axes], 1) * np.maximum(sizes, MIN_BASIS_SIZE)
    return mean, basis.T


class Trainer:
    """The state of a training and what advances it.

    stars: `StarData` with labels; calibration (N,) bool: those that serve a stage of that kind
    alone (default: none).

    model: `StellarModel`; moments: of Adam, two a variable; stage, epoch: what comes next;
    rejected (N,) bool: outliers; history: one dict an epoch.
    """

    def __init__(self, stars, wavelengths, recipe, calibration=None):
        self.stars, self.recipe = stars, recipe
        self.calibration = np.zeros(len(stars), bool) if calibration is None else calibration
        self.observed = ln_flux_data(stars.flux, stars.flux_err)
        self.without_bp = self._without_bp()
        training = np.flatnonzero(~self.calibration)
        self.model = start_model(
            stars.take(training), self.observed.take(training), wavelengths, recipe
        )
        direct = [stage for stage in recipe["stages"] if stage["kind"] == "direct"]
        if direct:
            seen = self._direct_inputs(training, direct[0], np.random.default_rng(recipe["seed"]))
            self.model.direct = DirectNetwork(seen, seed=recipe["seed"])
        flux, noise = self.model.flux, self.model.noise
        self.groups = {
            "network": flux.network_variables,
            "extinction": [flux.ln_ext_curve],
            "extinction_xi": [flux.ln_ext_curve_xi],
            "noise": noise.shape_variables,
            "noise_level": noise.level_variables,
            "direct": self.model.direct.variables if direct else [],
        }
        self.variables = [v for group in self.groups.values() for v in group]
        self.moments = [[tf.Variable(tf.zeros_like(v)) for _ in range(2)] for v in self.variables]
        self.stage, self.epoch, self.history = 0, 0, []
        self.rejected = np.zeros(len(stars), bool)
        self.fitted_type = np.full((len(stars), 3), np.nan, "f4")  # by the "stars" stage
        z = (stars.theta - flux.theta_mean.numpy()) / flux.theta_scale.numpy()
        self.z, self.z_err = (
            x.astype("f4") for x in (z, stars.theta_err / flux.theta_scale.numpy())
        )
        known = np.isfinite(stars.ext) & np.isfinite(stars.ext_err)
        self.ext = np.where(known, stars.ext, START_EXT).astype("f4")
        self.ext_err = np.where(known, stars.ext_err, UNKNOWN_EXT_ERR).astype("f4")
        self.ln_plx = np.log(stars.plx)
        self.ln_plx_err = (stars.plx_err / stars.plx).astype("f4")
        self.weight = self._rarity_weight()
        self._steps = {}

    def _without_bp(self):
        """The observed fluxes as they would be had BP not been seen."""
        basis = xp_utils.load_xp_basis()
        err = self.stars.flux_err.copy()
        err[:, : xp_utils.N_XP][:, basis.bp_weight > 0] = np.inf
        return ln_flux_data(self.stars.flux, err)

    def _rarity_weight(self):
        """Weights (N,) of mean 1 that let rare types count: the inverse root of the prior density,
        with a soft cap."""
        ln_p = self.model.prior.ln_density_z(self.z).numpy()
        ln_weight = -0.5 * (ln_p - np.median(ln_p[~self.calibration]))
        weight = 1.0 / (np.exp(-ln_weight) + 1.0 / self.recipe["rare_type_weight_cap"])
        return (weight / weight[~self.calibration].mean()).astype("f4")

    # ---- losses, in TensorFlow

    def _whitened(self, batch, columns, residuals):
        """Nuisance columns and residuals, whitened, and ln |det S|."""
        ext = tf.maximum(batch["ext"], MIN_NOISE_EXT)
        whitening, ln_det = self.model.noise.whitening(
            batch["z_noise"], ext, batch["rel_err"], batch["used"], batch["features"]
        )
        white = tf.matmul(tf.concat([columns, residuals], 1), whitening, transpose_b=True)
        k = columns.shape[1]
        return white[:, :k], white[:, k:], ln_det

    def _curve_columns(self, batch):
        """R at xi = 0 (B, n_wl) and the change of ln flux with xi there."""
        curve, slope = self.model.flux.ext_curve(tf.zeros_like(batch["ext"]))
        return curve, -tf.maximum(batch["ext"], MIN_NOISE_EXT)[:, None] * curve * slope

    def likelihood_loss(self, batch):
        """-ln p(fluxes | label, E, parallax) per flux, (B,): the errors of all three and xi are
        marginalised."""
        ln_flux, dz = self.model.flux.ln_flux_and_jacobian(batch["z"])
        curve, dxi = self._curve_columns(batch)
        residual = (
            batch["value"]
            - ln_flux
            + batch["ext"][:, None] * curve
            - 2.0 * batch["ln_plx"][:, None]
        )
        plx = 2.0 * batch["ln_plx_err"][:, None] * tf.ones_like(curve)
        columns = tf.concat(
            [
                tf.stack([curve * batch["ext_err"][:, None], plx, dxi], 1),
                tf.stop_gradient(dz) * batch["z_err"][:, :, None],
            ],
            1,
        )
        u, r, ln_det = self._whitened(batch, columns, residual[:, None])
        chi2, _, _, ln_det_m = marginal_chi2(r, u)
        n = tf.reduce_sum(batch["used"], 1)
        misfit = student_misfit(chi2[:, 0], n, self.model.noise.nu)
        return (misfit + 0.5 * ln_det_m - ln_det) / tf.maximum(n, 1.0)

    def posterior_loss(self, batch):
        """-ln probability (B,) of the label among CANDIDATES types, given the fluxes.

        The label and the other candidates are drawn alike about a common centre, so they are
        exchangeable but for the prior and the fluxes: this is small where the posterior is right,
        in place and in width. E > 0, parallax and xi are marginalised, and so are the errors of the
        label where the batch has them.
        """
        candidates = batch["candidates"]  # (B, k, 3)
        shape = candidates.shape[:2]
        flat = tf.reshape(candidates, (-1, 3))
        ln_flux = tf.reshape(self.model.flux.ln_flux(flat), (*shape, -1))
        curve, dxi = self._curve_columns(batch)
        residual = batch["value"][:, None] - ln_flux - 2.0 * batch["ln_plx"][:, None, None]
        plx = 2.0 * batch["ln_plx_err"][:, None] * tf.ones_like(curve)
        columns = tf.stack([-FLAT_EXT_ERR * curve, plx, dxi], 1)
        if "label_err" in batch:
            _, dz = self.model.flux.ln_flux_and_jacobian(batch["z_noise"])
            columns = tf.concat([columns, dz * batch["label_err"][:, :, None]], 1)
        u, r, _ = self._whitened(batch, columns, residual)
        chi2, amplitude, inverse, _ = marginal_chi2(r, u)
        n = tf.reduce_sum(batch["used"], 1)[:, None]
        # The part of the Gaussian in E that lies at E > 0, relative to its width.
        positive = _ln_normal_cdf(amplitude[:, :, 0] * tf.math.rsqrt(inverse[:, 0, 0])[:, None])
        ln_prior = tf.reshape(self.model.prior.ln_density_z(flat), shape)
        ln_post = ln_prior + positive - student_misfit(chi2, n, self.model.noise.nu)
        loss = tf.reduce_logsumexp(ln_post, 1) - ln_post[:, 0]
        excess = tf.maximum(loss / LOSS_LINEAR_UNTIL, 1.0)
        return tf.where(
            loss < LOSS_LINEAR_UNTIL, loss, LOSS_LINEAR_UNTIL * (1.0 + tf.math.log(excess))
        )

    def direct_loss(self, batch):
        """-ln p(label) (B,) by the direct estimate, Student-t, up to a constant; the mean over its
        networks. The errors of the labels count as its own."""
        z, ln_sigma = self.model.direct.outputs(batch["inputs"])
        off = (batch["z"] - z) * tf.exp(-ln_sigma)
        terms = ln_sigma + 0.5 * (DIRECT_NU + 1) * tf.math.log1p(off * off / DIRECT_NU)
        return tf.reduce_mean(tf.reduce_sum(terms, 2), 0)

    def _make_step(self, stage):
        """A compiled step of a stage: Adam on its variable groups, its matrices drawn towards 0
        (weight decay as of Loshchilov & Hutter 2019, ICLR)."""
        losses = {
            name: (getattr(self, f"{name}_loss"), weight)
            for name, weight in LOSS_WEIGHTS[stage["kind"]].items()
        }
        chosen = [
            k
            for k, v in enumerate(self.variables)
            if any(v is w for group in stage["train"] for w in self.groups[group])
        ]
        variables = [self.variables[k] for k in chosen]
        decay = [stage.get("weight_decay", 0.0) * _is_matrix(v) for v in variables]
        b1, b2 = ADAM_BETA

        def step(batch, number, learning_rate):
            with tf.GradientTape() as tape:
                found = {
                    name: tf.reduce_mean(batch["weight"] * loss(batch))
                    for name, (loss, _) in losses.items()
                }
                total = sum(weight * found[name] for name, (_, weight) in losses.items())
            gradients = tape.gradient(total, variables, unconnected_gradients="zero")
            gradients, norm = tf.clip_by_global_norm(gradients, GRADIENT_CLIP)
            sane = tf.math.is_finite(norm)
            rate = tf.where(sane, learning_rate, 0.0)
            for k, variable, gradient, pull in zip(
                chosen, variables, gradients, decay, strict=True
            ):
                m1, m2 = self.moments[k]
                gradient = tf.where(sane, gradient, 0.0)
                m1.assign(b1 * m1 + (1 - b1) * gradient)
                m2.assign(b2 * m2 + (1 - b2) * gradient * gradient)
                scale = tf.sqrt(m2 / (1 - b2**number)) + ADAM_EPSILON
                variable.assign_sub(rate * (m1 / (1 - b1**number) / scale + pull * variable))
            return found, sane

        return tf.function(step, jit_compile=True)

    # ---- batches

    def _batch(self, rows, stage, rng):
        """The tensors of the stars `rows`: some have their parallax or bands hidden, so that the
        model learns from stars of every sort."""
        recipe, kind, n, n_xp = self.recipe, stage["kind"], len(rows), xp_utils.N_XP
        if kind == "direct":
            return {
                "inputs": self._direct_inputs(rows, stage, rng),
                "z": self.z[rows],
                "weight": np.ones(n, "f4"),
            }
        batch = vars(self._some_without_bp(rows, rng))
        no_phot = rng.random(n) < recipe["hide_photometry"]
        for name, blank in (("value", 0.0), ("rel_err", 1.0), ("used", 0.0)):
            batch[name][no_phot, n_xp:] = blank
        no_plx = rng.random(n) < stage.get("hide_parallax", recipe["hide_parallax"])
        batch |= {
            "z": self.z[rows],
            "z_err": self.z_err[rows],
            "ext": self.ext[rows],
            "ext_err": self.ext_err[rows],
            "ln_plx": self.ln_plx[rows],
            "ln_plx_err": np.where(no_plx, FLAT_LN_PLX_ERR, self.ln_plx_err[rows]),
        }
        scale = self.model.flux.theta_scale.numpy()
        teff = self.stars.theta[rows, 0]
        width = np.repeat([CANDIDATE_WIDTH], n, 0) / scale
        width[:, 0] *= (teff / CANDIDATE_TEFF) ** 3
        centre = batch["z"] + width * rng.normal(size=(n, 3))
        batch["z_noise"] = centre
        batch["weight"] = self.weight[rows] if kind == "likelihood" else np.ones(n)
        if kind != "likelihood":
            draws = rng.normal(size=(n, CANDIDATES, 3))
            batch["candidates"] = centre[:, None] + width[:, None] * draws
            batch["candidates"][:, 0] = batch["z"]
        if kind == "calibration":  # the errors of labels are not the model's
            batch["label_err"] = self.z_err[rows]
        return {name: np.asarray(value, "f4") for name, value in batch.items()}

    def _some_without_bp(self, rows, rng):
        """`LnFlux` of the stars `rows`, some of which (`hide_bp`) were not seen by BP."""
        no_bp = (rng.random(len(rows)) < self.recipe["hide_bp"])[:, None]
        return LnFlux(
            *(
                np.where(no_bp, without[rows], seen[rows])
                for without, seen in zip(
                    vars(self.without_bp).values(), vars(self.observed).values(), strict=True
                )
            )
        )

    def _direct_inputs(self, rows, stage, rng):
        """`model.direct_inputs` of the stars `rows`: some have a worse parallax or none, or do
        without a part of their fluxes."""
        n, observed = len(rows), self._some_without_bp(rows, rng)
        for bands in (NIR, WISE):
            observed.used[rng.random(n) < self.recipe["hide_photometry"], bands] = 0.0
        plx, plx_err = (x[rows].astype("f8") for x in (self.stars.plx, self.stars.plx_err))
        blur = (rng.random(n) < BLURRED_SHARE) * np.abs(plx * rng.normal(size=n))
        plx, plx_err = plx + blur * rng.normal(size=n), np.hypot(plx_err, blur)
        hidden = rng.random(n) < stage.get("hide_parallax", self.recipe["hide_parallax"])
        return direct_inputs(observed, np.where(hidden, np.nan, plx), plx_err)

    def selected(self, stage):
        """Index array of the stars that a stage trains on."""
        limits, stars = stage.get("select", {}), self.stars
        err = dict(
            zip(("max_teff_err", "max_feh_err", "max_logg_err"), stars.theta_err.T, strict=True)
        )
        keep = ~self.rejected & (self.calibration == (stage["kind"] == "calibration"))
        for name, limit in limits.items():
            if name in err:
                keep &= err[name] <= limit
            elif name == "min_plx_snr":
                keep &= stars.plx >= limit * stars.plx_err
            elif name == "min_ext":
                keep &= self.ext >= limit
        return np.flatnonzero(keep)

    # ---- stages

    def stage_plan(self, stage):
        """(rows to train on, stars a step, steps an epoch, epochs) of a gradient stage."""
        rows = self.selected(stage)
        if len(rows) < MIN_STAGE_STARS:
            return rows, 0, 0, 0
        size = min(stage["batch_size"], len(rows))
        batches = len(rows) // size
        epochs = min(round(stage["steps"] / batches), stage.get("max_epochs", stage["steps"]))
        return rows, size, batches, max(1, epochs)

    def run_epoch(self):
        """One epoch of the current stage (or all of a stage that fits stars); True at its end."""
        stage = self.recipe["stages"][self.stage]
        if stage["kind"] == "stars":
            self._fit_stars(stage)
            return self._next_stage()
        rows, size, batches, epochs = self.stage_plan(stage)
        if not epochs:
            self.history.append(
                {"stage": stage["name"], "epoch": 0, "stars": len(rows), "skipped": "too few stars"}
            )
            return self._next_stage()
        if self.stage not in self._steps:
            self._steps = {self.stage: self._make_step(stage)}
        rng = np.random.default_rng([self.recipe["seed"], self.stage, self.epoch])
        order, losses = rng.permutation(rows), []
        for k in range(batches):
            number = self.epoch * batches + k + 1
            rate = _learning_rate(stage["learning_rate"], number, epochs * batches)
            batch = self._batch(order[k * size : (k + 1) * size], stage, rng)
            losses.append(self._steps[self.stage](batch, np.float32(number), np.float32(rate)))
        sane = [bool(good) for _, good in losses]
        entry = {
            "stage": stage["name"],
            "epoch": self.epoch,
            "stars": len(rows),
            "learning_rate": float(rate),
            "steps_refused": sane.count(False),
        }
        for name in LOSS_WEIGHTS[stage["kind"]]:
            values = [
                float(loss[name]) for (loss, _), good in zip(losses, sane, strict=True) if good
            ]
            entry[f"{name}_loss"] = float(np.mean(values)) if values else np.nan
        self.history.append(entry)
        self.epoch += 1
        return self._next_stage() if self.epoch >= epochs else False

    def _next_stage(self):
        """Begin the next stage with Adam's moments at zero."""
        self.stage, self.epoch = self.stage + 1, 0
        for moments in self.moments:
            for moment in moments:
                moment.assign(tf.zeros_like(moment))
        return True

    def _fit_stars(self, stage):
        """Fit every star's own parameters, its label, reddening and parallax as priors; stars whose
        label is off by more than `reject_sigma`, or whose chi^2 is more than `reject_chi2_factor`
        times the usual, are trained on no more."""
        u = np.zeros((len(self.stars), 6), "f4")
        u[:, Z] = self.z
        u[:, LN_E], u[:, LN_PLX] = np.log(np.maximum(self.ext, MIN_NOISE_EXT)), self.ln_plx
        found = StarSolver(self.model, labelled=True).minimise(self.stars, u, 20)
        flux = self.model.flux
        self.fitted_type = found.u[:, Z] * flux.theta_scale.numpy() + flux.theta_mean.numpy()
        n = np.maximum(self.observed.used.sum(1), 1)
        pull = (np.abs(found.u[:, Z] - self.z) / self.z_err).max(1)
        good = np.isfinite(found.u).all(1) & np.isfinite(found.chi2)
        ratio = found.chi2 / n
        usual = float(np.median(ratio[good & ~self.calibration]))
        self.rejected = (
            ~good | (pull > stage["reject_sigma"]) | (ratio > stage["reject_chi2_factor"] * usual)
        )
        training = self.rejected[~self.calibration]
        self.history.append(
            {
                "stage": stage["name"],
                "epoch": 0,
                "stars": len(training),
                "rejected": int(training.sum()),
                "median_chi2_per_flux": usual,
            }
        )

    # ---- checkpoints

    def state(self):
        """Everything that the next epoch depends on, as {name: array}."""
        arrays = self.model.to_arrays() | {
            "rejected": self.rejected.astype("u1"),
            "fitted_type": self.fitted_type,
        }
        for k, moments in enumerate(self.moments):
            for order, moment in enumerate(moments):
                arrays[f"moment{order}_{k}"] = moment.numpy()
        return arrays

    def restore(self, arrays, attrs):
        """Go back to a former `state`."""
        for variable in self.variables:
            variable.assign(arrays[variable.name.split(":")[0]])
        for k, moments in enumerate(self.moments):
            for order, moment in enumerate(moments):
                moment.assign(arrays[f"moment{order}_{k}"])
        self.rejected = arrays["rejected"].astype(bool)
        self.fitted_type = arrays["fitted_type"]
        self.stage, self.epoch = int(attrs["stage"]), int(attrs["epoch"])
        self.history = json.loads(attrs["history"])


def _is_matrix(variable):
    """Whether a variable is a matrix, or several; not a bias, or one of each of some networks."""
    return len(variable.shape) >= 2 and variable.shape[-2] > 1


def _ln_normal_cdf(x):
    """ln of the normal distribution function, without cancellation in its lower tail."""
    bent = tf.maximum(x, -4.0)
    tail = tf.where(x < -4.0, 0.5 * (x * x - 16.0), 0.0)
    return tf.math.log(0.5 * tf.math.erfc(-bent / np.sqrt(2.0))) - tail


def _learning_rate(first, number, total):
    """Falls as a cosine to a thousandth of the first rate, after a linear warm-up."""
    cosine = 0.5 * (1 + np.cos(np.pi * number / total))
    return first * (1e-3 + (1 - 1e-3) * cosine) * min(1.0, number / WARM_UP_STEPS)
