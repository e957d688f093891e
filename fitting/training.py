"""Training of the model: its start, its stages, and their state.

`Trainer` runs the stages of a recipe (docs/model.md) epoch by epoch on stars with labels; its state
can be saved after any epoch and restored. Arrays in, arrays out: files are the script's (train.py).
"""

import json

import numpy as np

from fitting.batches import N_KINDS, START_EXT, Batches
from fitting.direct import representation_masks
from fitting.losses import MIN_NOISE_EXT, Losses
from fitting.minimiser import Minimiser
from fitting.networks import Classification, Regression
from fitting.noise import NoiseModel
from fitting.objective import LabelTerm, Objective
from fitting.prior import fit_prior
from fitting.recipe import OWN_GROUPS, OddityStage, StarsStage
from fitting.stellar_model import StellarModel
from model import FluxModel, initial_ln_ext_curve
from pipeline.quiet_tensorflow import compiled, tf

ADAM_BETA = (0.9, 0.999)
ADAM_EPSILON = 1e-8
GRADIENT_CLIP = 2.0  # of the norm over all weights, of the mean over a batch
WARM_UP_STEPS = 150
LAST_RATE = 1e-3  # of the learning rate, at the end of a stage
XI_SLOPE = 0.1  # start of d ln R / d xi per e-fold of wavelength: any but 0, as a
# curve without xi-variation and stars with xi = 0 hold each other
XI_PIVOT_NM = 550.0
MIN_BASIS_SIZE = 0.01  # of a component of ln flux in the network's output basis
MIN_STAGE_STARS = 50  # with fewer selected, a stage is skipped
EPOCH_STEPS = 500  # at most: after an epoch a training can be gone on with
STARS_EVALUATIONS = 20  # of the objective, in a stage that fits stars
STARS_BLOCK = 80 * 256  # that it fits at a time


def start_model(stars, labels, release, basis, recipe):
    """A `StellarModel` that predicts the median intrinsic spectrum of the training stars.

    stars: `TrainingStars`; labels: `LabelSet`; release, basis: see `StellarModel`.
    """
    data = stars.data.take(stars.sample(stars.training))
    observed, theta = data.observed, data.theta
    forward = np.array([label.forward for label in labels])
    mean, scale = theta.mean(0).astype("f8"), theta.std(0).astype("f8")
    ext = np.where(np.isfinite(data.extinction), data.extinction, START_EXT)
    wavelengths = data.channels.wavelengths
    curve = np.exp(initial_ln_ext_curve(wavelengths))
    intrinsic = observed.value + ext[:, None] * curve - 2 * np.log(data.parallax)[:, None]
    intrinsic[observed.used == 0] = np.nan
    spectrum, outputs = spectrum_basis(intrinsic, curve)
    of_type, seed = (mean[forward], scale[forward]), recipe.seed
    flux = FluxModel(wavelengths, *of_type, spectrum, outputs, recipe.hidden, seed=seed)
    flux.ln_ext_curve_xi.assign(XI_SLOPE * np.log(wavelengths / XI_PIVOT_NM) * flux.xi_mask)
    features = observed.features
    noise = NoiseModel(
        len(wavelengths),
        data.channels.n_xp,
        int(forward.sum()),
        features.mean(0),
        features.std(0),
        recipe.noise_hidden,
        seed,
    )
    prior = fit_prior(theta[:, forward], *of_type, recipe.prior_components, seed)
    parts = (flux, noise, prior)
    fine = stars.basis.release.spectra.fine_wavelengths if data.has_fine else np.empty(0)
    return StellarModel(labels, data.channels, fine, release, basis, mean, scale, *parts)


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

    stars: `TrainingStars`; labels: `LabelSet`; recipe: `Recipe`; release, basis: see
    `StellarModel`.

    model: `StellarModel`; moments: of Adam, two a variable; stage, epoch: what comes next;
    rejected (N,) bool: outliers; fitted (m,): rows of the stars that a stage of that kind fits, and
    fitted_type (m, Kf) by it; history: one dict an epoch.
    """

    def __init__(self, stars, labels, recipe, release="", basis=""):
        self.stars, self.recipe = stars, recipe
        self.model = start_model(stars, labels, release, basis, recipe)
        self.batches = Batches(stars, self.model, recipe)
        self._add_networks()
        self.losses = Losses(self.model)
        self.groups = self._variable_groups()
        self.variables = [v for group in self.groups.values() for v in group]
        zeros = tf.zeros_like
        self.moments = [[tf.Variable(zeros(v)) for _ in range(2)] for v in self.variables]
        self.stage, self.epoch, self.history = 0, 0, []
        self.rejected = np.zeros(len(stars), bool)
        chosen = stars.sample(stars.training, recipe.fitted_stars)
        self.fitted = np.union1d(chosen, np.flatnonzero(stars.calibration))
        n_forward = len(self.model.labels.forward)
        self.fitted_type = np.full((len(self.fitted), n_forward), np.nan, "f4")
        self._steps = {}

    def _add_networks(self):
        """Give the model the networks on what is observed that the recipe trains; those that tell
        what is odd only where it can be simulated."""
        recipe, model, batches = self.recipe, self.model, self.batches
        rng = np.random.default_rng(recipe.seed)
        rows = self.stars.sample(self.stars.training)
        kinds = [kind for kind in OWN_GROUPS if recipe.of_kind(kind)]
        if "oddity" in kinds and batches.strange is None:
            kinds.remove("oddity")
        if not kinds:
            return
        stage = recipe.of_kind(*kinds)[0]
        shown = batches.shown(rows, stage, rng)
        at_kpc = shown.observed.features[:, 0] - 2 * np.log(shown.parallax)
        model.distance_mean, model.distance_scale = at_kpc.mean(), at_kpc.std()
        seen = batches.direct_inputs(shown, stage, rng)
        n_xp, n_fine = model.channels.n_xp, len(model.fine_wavelengths)
        of_kind = {
            "direct": (Regression, 2 * len(model.labels), recipe.direct_networks),
            "distance": (Regression, 2, recipe.screen_networks),
            "oddity": (Classification, N_KINDS, recipe.screen_networks),
        }
        for kind in kinds:
            network, n_out, n = of_kind[kind]
            masks = representation_masks(seen.shape[1], n_xp, n_fine, n)
            hidden = recipe.direct_hidden if kind == "direct" else recipe.screen_hidden
            setattr(model, kind, network(seen, n_out, masks, hidden, kind, seed=recipe.seed))

    def _variable_groups(self):
        """{group of `recipe.GROUPS`: its variables}."""
        model, flux, noise = self.model, self.model.flux, self.model.noise
        own = {kind: getattr(model, kind) for kind in OWN_GROUPS}
        return {
            "network": flux.network_variables,
            "extinction": [flux.ln_ext_curve],
            "extinction_xi": [flux.ln_ext_curve_xi],
            "noise": noise.shape_variables,
            "noise_level": noise.level_variables,
        } | {kind: [] if one is None else one.variables for kind, one in own.items()}

    def _make_step(self, stage):
        """A compiled step of a stage: Adam on its variable groups, its matrices drawn towards 0
        (weight decay as of Loshchilov & Hutter 2019, ICLR)."""
        losses = {name: (getattr(self.losses, name), w) for name, w in stage.losses.items()}
        chosen = [
            k
            for k, v in enumerate(self.variables)
            if any(v is w for group in stage.train for w in self.groups[group])
        ]
        variables = [self.variables[k] for k in chosen]
        decay = [stage.weight_decay * _is_matrix(v) for v in variables]
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

        return compiled(step)

    # ---- stages

    def stage_plan(self, stage):
        """(rows to train on, stars a step, steps an epoch, epochs) of a gradient stage.

        An epoch is once through the stars; where they are many, through some of them, at random.
        """
        rows = self.batches.selected(stage, self.rejected)
        if len(rows) < MIN_STAGE_STARS:
            return rows, 0, 0, 0
        size = min(stage.batch_size, len(rows))
        batches = min(len(rows) // size, stage.steps, EPOCH_STEPS)
        epochs = min(round(stage.steps / batches), stage.max_epochs or stage.steps)
        return rows, size, batches, max(1, epochs)

    def run_epoch(self):
        """One epoch of the current stage (or all of a stage that fits stars); True at its end."""
        stage = self.recipe.stages[self.stage]
        if isinstance(stage, StarsStage):
            self._fit_stars(stage)
            return self._next_stage()
        rows, size, batches, epochs = self.stage_plan(stage)
        if isinstance(stage, OddityStage) and self.model.oddity is None:
            return self._skip(stage, rows, "the release has no typical noise to simulate odd stars")
        if not epochs:
            return self._skip(stage, rows, f"only {len(rows)} stars are left to train on")
        if self.stage not in self._steps:
            self._steps = {self.stage: self._make_step(stage)}
        rng = np.random.default_rng([self.recipe.seed, self.stage, self.epoch])
        order, found = rng.permutation(rows), []
        for k in range(batches):
            number = self.epoch * batches + k + 1
            rate = _learning_rate(stage.learning_rate, number, epochs * batches)
            batch = self.batches.of(order[k * size : (k + 1) * size], stage, rng)
            found.append(self._steps[self.stage](batch, np.float32(number), np.float32(rate)))
        self.history.append(self._entry(stage, len(rows), float(rate), found))
        self.epoch += 1
        return self._next_stage() if self.epoch >= epochs else False

    def _skip(self, stage, rows, why):
        entry = {"stage": stage.name, "epoch": 0, "stars": len(rows), "skipped": why}
        self.history.append(entry)
        return self._next_stage()

    def _entry(self, stage, n_stars, rate, found):
        """The history's entry of an epoch whose steps gave `found`, (losses, sane) each."""
        sane = [bool(good) for _, good in found]
        entry = {
            "stage": stage.name,
            "epoch": self.epoch,
            "stars": n_stars,
            "learning_rate": rate,
            "steps_refused": sane.count(False),
        }
        for name in stage.losses:
            values = [float(loss[name]) for (loss, _), ok in zip(found, sane, strict=True) if ok]
            entry[f"{name}_loss"] = float(np.mean(values)) if values else np.nan
        return entry

    def _next_stage(self):
        """Begin the next stage with Adam's moments at zero."""
        self.stage, self.epoch = self.stage + 1, 0
        for moments in self.moments:
            for moment in moments:
                moment.assign(tf.zeros_like(moment))
        return True

    def _fit_stars(self, stage):
        """Fit the parameters of the stars `fitted`, their labels, reddenings and parallaxes as
        priors; those whose label is off by more than `reject_sigma`, or whose chi^2 is more than
        `reject_chi2_factor` times the usual, are trained on no more."""
        minimiser = Minimiser(Objective(self.model, LabelTerm(self.model.flux)))
        blocks = range(0, len(self.fitted), STARS_BLOCK)
        parts = [self._fit(minimiser, self.fitted[k : k + STARS_BLOCK]) for k in blocks]
        self.fitted_type, pull, ratio = (np.concatenate(x) for x in zip(*parts, strict=True))
        good, training = np.isfinite(ratio), ~self.stars.calibration[self.fitted]
        usual = float(np.median(ratio[good & training]))
        far = (pull > stage.reject_sigma) | (ratio > stage.reject_chi2_factor * usual)
        self.rejected[:] = False
        self.rejected[self.fitted] = ~good | far
        self.history.append(
            {
                "stage": stage.name,
                "epoch": 0,
                "stars": int(training.sum()),
                "rejected": int(self.rejected[self.fitted][training].sum()),
                "median_chi2_per_flux": usual,
            }
        )

    def _fit(self, minimiser, rows):
        """Of the stars `rows` (n,), fitted: types (n, Kf), largest pulls of a label (n,), and chi^2
        per flux (n,), NaN where there is no solution."""
        model, at, stars = self.model, self.model.coordinates, self.stars
        z, z_err = (x[rows][:, model.is_forward] for x in (self.batches.z, self.batches.z_err))
        data = stars.data.take(rows).with_labels(model.is_forward)
        u = np.zeros((len(rows), len(at)), "f4")
        u[:, at.z], u[:, at.ln_plx] = z, np.log(data.parallax)
        u[:, at.ln_ext] = np.log(np.maximum(stars.ext[rows], MIN_NOISE_EXT))
        found = minimiser.minimise(data, u, STARS_EVALUATIONS)
        pull = (np.abs(found.u[:, at.z] - z) / z_err).max(1)
        ratio = found.chi2 / np.maximum(data.observed.used.sum(1), 1)
        ratio[~np.isfinite(found.u).all(1)] = np.nan
        return model.theta(found.u[:, at.z]).astype("f4"), pull, ratio

    # ---- checkpoints

    def state(self):
        """Everything that the next epoch depends on, as {name: array}."""
        arrays = self.model.to_arrays()
        arrays |= {"rejected": self.rejected.astype("u1"), "fitted_type": self.fitted_type}
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


def _learning_rate(first, number, total):
    """Falls as a cosine to LAST_RATE of the first rate, after a linear warm-up."""
    cosine = 0.5 * (1 + np.cos(np.pi * number / total))
    return first * (LAST_RATE + (1 - LAST_RATE) * cosine) * min(1.0, number / WARM_UP_STEPS)
