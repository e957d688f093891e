#!/usr/bin/env python3
"""Step 8: train the forward model and its noise model on stars with labels.

    python train.py -i training_data.h5 -o output_folder/
    python train.py -i training_data.h5 -o output_folder/ --resume      after an interruption
    python train.py -i training_data.h5 -o output_folder/ --recipe my_recipe.json

Reads training_data.h5 (step 7) and a recipe (default: recipe.json; docs/model.md explains it).
A fifth of the stars, chosen by a hash of their source id, is held out for validation and never
used; a tenth of the rest calibrates the confidences and is not trained on either. The stages of the
default recipe: model, mean extinction curve and noise from the best stars; the curve's
xi-variation from reddened stars; every star's own parameters given its label, which rejects
outliers; then model and noise from all stars, by likelihood and at last by how well the posterior
finds the label. Then the validation stars are inferred as any other star. output_folder/:

  model.h5               model, noise, prior, confidences: what step 10 needs
  saved_model/           the forward model as a TensorFlow SavedModel (see model.export)
  checkpoint.h5          state of the training, for --resume
  history.json           loss by stage and epoch
  validation.json        offset, scatter, pull width of the validation stars; also printed
  validation_ids.txt     their source ids
  validation.h5          their inferred parameters and labels
  *.png                  figures: losses, extinction curve, model spectra, residuals, labels, ...
  train.log

Size: 10 MB. Memory: 2 GB + 1 kB a star. A killed run goes on with --resume from its last
checkpoint, to the same result.
Exit status: 0 trained, 2 wrong usage or input.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from shards import (
    ShardError,
    ShardReader,
    ShardWriter,
    Status,
    UsageError,
    identity,
    output_state,
    progress,
    provenance,
    setup_logging,
    usage_exit,
    write_text,
)
from xp_utils import SAMPLE_WAVELENGTHS

SCRIPT = "train"
DEFAULT_RECIPE = Path(__file__).resolve().parent / "recipe.json"
LABELS = ("stellar_type", "stellar_type_err")
OBSERVED = ("flux", "flux_err", "plx", "plx_err")
EXTINCTION = ("stellar_ext", "stellar_ext_err")
RECIPE_KEYS = {"seed", "validation_fraction", "calibration_fraction", "hidden", "noise_hidden",
               "prior_components", "hide_parallax", "hide_photometry", "hide_bp",
               "rare_type_weight_cap", "stages"}
FRACTIONS = {"validation_fraction", "calibration_fraction", "hide_parallax", "hide_photometry",
             "hide_bp"}
SIZES = {"hidden", "noise_hidden", "prior_components", "steps", "batch_size"}
INTEGERS = SIZES | {"seed"}
GROUPS = ("network", "extinction", "extinction_xi", "noise")   # of variables
SELECTIONS = {"max_teff_err", "max_feh_err", "max_logg_err", "min_plx_snr", "min_ext"}
_GRADIENT_KEYS = {"name", "kind", "steps", "batch_size", "learning_rate", "train"}
STAGE_KEYS = {"likelihood": _GRADIENT_KEYS, "posterior": _GRADIENT_KEYS,
              "stars": {"name", "kind", "reject_sigma", "reject_chi2_factor"}}

ADAM_BETA = (0.9, 0.999)
ADAM_EPSILON = 1e-8
GRADIENT_CLIP = 2.0          # of the norm over all weights, of the mean over a batch
WARM_UP_STEPS = 150
CHECKPOINT_SECONDS = 20.0    # at most so much work is lost
START_EXT = 0.1              # E where no map has a value, +- UNKNOWN_EXT_ERR
UNKNOWN_EXT_ERR = 1.0
XI_SLOPE = 0.1               # start of d ln R / d xi per e-fold of wavelength: any but 0, as a
                             # curve without xi-variation and stars with xi = 0 hold each other
FLAT_LN_PLX_ERR = 3.0        # prior of ln plx where the parallax is hidden or missing
FLAT_EXT_ERR = 3.0           # prior of E where it is to be found out
MIN_NOISE_EXT = 0.02         # E at which the noise is evaluated is at least this
# Candidates of the posterior stage: the truth and draws within these widths of a common centre, in
# kK (Teff / 4.8)^3, dex, dex: wide against the posterior, narrow against the prior.
CANDIDATES = 12
CANDIDATE_WIDTH = (0.084, 0.15, 0.2)
CANDIDATE_TEFF = 4.8
LOSS_LINEAR_UNTIL = 6.0      # the posterior loss of a star grows as its logarithm beyond
ANCHOR = 2.0                 # weight of the likelihood in the posterior stage
MIN_BASIS_SIZE = 0.01        # of a component of ln flux in the network's output basis
MIN_TRAINING_STARS = 200
MOST_REJECTED = 0.2          # of the stars: more are warned of


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-i", "--input", type=Path, required=True, metavar="TRAINING_DATA.h5")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUTPUT_FOLDER")
    parser.add_argument("--recipe", type=Path, default=DEFAULT_RECIPE, help="default: recipe.json")
    former = parser.add_mutually_exclusive_group()
    former.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    former.add_argument("--overwrite", action="store_true", help="train anew over a former result")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; default: all cores")
    parser.add_argument("--log", type=Path, help="default: OUTPUT_FOLDER/train.log")
    return parser.parse_args(argv)


# ------------------------------------------------------------------------- the recipe, the data


def read_recipe(path):
    """The recipe as a dict. UsageError where it cannot be read, or could not be trained by: that is
    said now rather than hours later, when training meets the mistake."""
    try:
        recipe = json.loads(path.read_text())
        check_recipe(recipe)
    except (OSError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: not a usable recipe ({error})") from error
    return recipe


def check_recipe(recipe):
    """ValueError where a recipe has unknown or missing keys, or values out of range."""
    _check_keys("the recipe", recipe, RECIPE_KEYS)
    for name in sorted(RECIPE_KEYS - {"stages"}):
        _check_number("the recipe", recipe, name, least=1 if name in SIZES else 0,
                      most=1 if name in FRACTIONS else np.inf)
    if not isinstance(recipe["stages"], list) or not recipe["stages"]:
        raise ValueError("stages: a list of at least one stage is expected")
    for stage in recipe["stages"]:
        check_stage(stage)


def check_stage(stage):
    """ValueError where a stage of a recipe is not one that can be run."""
    kind = stage.get("kind") if isinstance(stage, dict) else stage
    if not isinstance(kind, str) or kind not in STAGE_KEYS:
        raise ValueError(f"a stage of kind {kind!r}; known: {', '.join(sorted(STAGE_KEYS))}")
    where = f"stage {stage.get('name')}"
    gradient = STAGE_KEYS[kind] is _GRADIENT_KEYS
    _check_keys(where, stage, STAGE_KEYS[kind], {"select"} if gradient else ())
    for name in sorted(STAGE_KEYS[kind] - {"name", "kind", "train"}):
        _check_number(where, stage, name, least=1 if name in SIZES else 0)
    if gradient:
        unknown = set(stage["train"]) - set(GROUPS)
        if unknown or not stage["train"]:
            raise ValueError(f"{where}: train is {stage['train']}; known: {', '.join(GROUPS)}")
        limits = stage.get("select", {})
        _check_keys(f"{where}, select", limits, set(), SELECTIONS)
        for name in limits:
            _check_number(f"{where}, select", limits, name)


def _check_keys(where, found, required, optional=()):
    keys = set(found) if isinstance(found, dict) else {f"{type(found).__name__} in its place"}
    wrong = (keys - set(optional)) ^ required
    if wrong:
        raise ValueError(f"{where}: unknown or missing: {', '.join(sorted(wrong))}")


def _check_number(where, found, name, least=0, most=np.inf):
    value, kind = found[name], int if name in INTEGERS else int | float
    if (isinstance(value, bool) or not isinstance(value, kind) or not least <= value <= most
            or not np.isfinite(value)):
        article = "an integer" if kind is int else "a number"
        raise ValueError(f"{where}: {name} is {value!r}; {article} from {least} to {most} is "
                         "expected")


def read_training_data(path):
    """(ids (N,), table of the columns that training needs, wavelengths (66,) nm)."""
    with ShardReader(path, "gdr3_source_id") as reader:
        ids = reader.source_id()
        table = reader.read_table((*OBSERVED, *LABELS, *EXTINCTION))
        wavelengths = reader.attributes("flux").get("sample_wavelengths")
    problem = training_data_problem(table, wavelengths)
    if problem:
        raise ShardError(f"{path}: {problem}; make the file with compile_training_data.py, which "
                         "leaves such stars out")
    return ids, table, np.asarray(wavelengths)


def training_data_problem(table, wavelengths):
    """What is wrong with a training set, in words that name the dataset; None where nothing is."""
    n = len(table["plx"])
    if wavelengths is None:
        return "flux has no attribute sample_wavelengths"
    expected = SAMPLE_WAVELENGTHS
    if np.shape(wavelengths) != expected.shape or not np.allclose(wavelengths, expected):
        return (f"flux has {np.size(wavelengths)} sample_wavelengths that are not the "
                f"{len(expected)} of this version of the project")
    shapes = (dict.fromkeys(("flux", "flux_err"), (n, len(expected)))
              | dict.fromkeys(LABELS, (n, 3)))
    for name, values in table.items():
        shape = shapes.get(name, (n,))
        if values.shape != shape or values.dtype.kind not in "fiu":
            return f"{name} is {values.dtype} of shape {values.shape}, expected floats {shape}"
    for name in (*LABELS, "plx", "plx_err"):
        least, words = ((-np.inf, "finite") if name == "stellar_type" else
                        (0.0, "finite and positive"))
        bad = ~np.isfinite(table[name]) | (table[name] <= least)
        bad = bad if bad.ndim == 1 else bad.any(1)
        if bad.any():
            return f"{name} is not {words} for {bad.sum()} of {n} stars, e.g. row {bad.argmax()}"
    if n > 1 and not np.ptp(table["stellar_type"], axis=0).all():
        return "stellar_type has the same Teff, [Fe/H] or log g for all stars"
    return None


def hash_fraction(ids, salt=0):
    """A number in 0..1 for each source id (N,), from a hash of the id alone (splitmix64), so that a
    star falls on the same side of a split whatever else is in the training set."""
    x = np.asarray(ids).astype(np.uint64)
    with np.errstate(over="ignore"):
        x += np.uint64(0x9E3779B97F4A7C15) * np.uint64(1 + salt)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)) / 2.0**53


def split_stars(ids, recipe):
    """Index arrays of the training, calibration and validation stars."""
    held = hash_fraction(ids) < recipe["validation_fraction"]
    calibration = ~held & (hash_fraction(ids, salt=1) < recipe["calibration_fraction"])
    return tuple(np.flatnonzero(x) for x in (~held & ~calibration, calibration, held))


def star_data(table, rows, labelled):
    """`StarData` of some rows; with labels and reddening as priors where `labelled`."""
    from star_solver import StarData

    names = (*OBSERVED, *LABELS, *EXTINCTION) if labelled else OBSERVED
    return StarData(*(table[name][rows].astype("f4") for name in names))


# -------------------------------------------------------------------------------- the training


def start_model(stars, observed, wavelengths, recipe):
    """A `StellarModel` that predicts the median intrinsic spectrum of the training stars."""
    from model import FluxModel, NoiseModel, StellarModel, fit_prior, initial_ln_ext_curve

    theta_mean, theta_scale = stars.theta.mean(0), stars.theta.std(0)
    ext = np.where(np.isfinite(stars.ext), stars.ext, START_EXT)
    curve = np.exp(initial_ln_ext_curve(wavelengths))
    intrinsic = observed.value + ext[:, None] * curve - 2 * np.log(stars.plx)[:, None]
    intrinsic[observed.used == 0] = np.nan
    mean, basis = spectrum_basis(intrinsic, curve)
    flux = FluxModel(wavelengths, theta_mean, theta_scale, mean, basis, recipe["hidden"],
                     seed=recipe["seed"])
    flux.ln_ext_curve_xi.assign(XI_SLOPE * np.log(wavelengths / 550.0) * flux.xi_mask)
    noise = NoiseModel(len(wavelengths), observed.features.mean(0), observed.features.std(0),
                       recipe["noise_hidden"], recipe["seed"])
    prior = fit_prior(stars.theta, theta_mean, theta_scale, recipe["prior_components"],
                      recipe["seed"])
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
    soft = np.linalg.qr(np.stack([np.ones(len(curve)), curve], 1))[0]      # (n_wl, 2)
    size = (left @ soft).std(0)
    left -= left @ soft @ soft.T
    variance, axes = np.linalg.eigh(left.T @ left / len(left) + 1e-12 * np.eye(len(curve)))
    axes = axes[:, np.argsort(-variance)][:, :len(curve) - 2]
    axes = np.linalg.qr(np.concatenate([soft, axes], 1))[0][:, 2:]
    sizes = np.concatenate([size, (left @ axes).std(0)])
    basis = np.concatenate([soft, axes], 1) * np.maximum(sizes, MIN_BASIS_SIZE)
    return mean, basis.T


class Trainer:
    """The state of a training and what advances it.

    model: `StellarModel`; moments: of Adam, two a variable; stage, epoch: what comes next;
    rejected (N,) bool: outliers; history: one dict an epoch.
    """

    def __init__(self, stars, wavelengths, recipe):
        import tensorflow as tf

        from model import ln_flux_data

        self.stars, self.recipe = stars, recipe
        self.observed = ln_flux_data(stars.flux, stars.flux_err)
        self.without_bp = self._without_bp()
        self.model = start_model(stars, self.observed, wavelengths, recipe)
        flux, noise = self.model.flux, self.model.noise
        self.groups = {"network": flux.network_variables, "extinction": [flux.ln_ext_curve],
                       "extinction_xi": [flux.ln_ext_curve_xi], "noise": list(noise.variables)}
        self.variables = [v for group in self.groups.values() for v in group]
        self.moments = [[tf.Variable(tf.zeros_like(v)) for _ in range(2)] for v in self.variables]
        self.stage, self.epoch, self.history = 0, 0, []
        self.rejected = np.zeros(len(stars), bool)
        self.fitted_type = np.full((len(stars), 3), np.nan, "f4")     # by the "stars" stage
        z = (stars.theta - flux.theta_mean.numpy()) / flux.theta_scale.numpy()
        self.z, self.z_err = (x.astype("f4") for x in
                              (z, stars.theta_err / flux.theta_scale.numpy()))
        known = np.isfinite(stars.ext) & np.isfinite(stars.ext_err)
        self.ext = np.where(known, stars.ext, START_EXT).astype("f4")
        self.ext_err = np.where(known, stars.ext_err, UNKNOWN_EXT_ERR).astype("f4")
        self.ln_plx = np.log(stars.plx)
        self.ln_plx_err = (stars.plx_err / stars.plx).astype("f4")
        self.weight = self._rarity_weight()
        self._steps = {}

    def _without_bp(self):
        """The observed fluxes as they would be had BP not been seen."""
        import xp_utils
        from model import ln_flux_data

        basis = xp_utils.load_xp_basis()
        err = self.stars.flux_err.copy()
        err[:, :xp_utils.N_XP][:, basis.bp_weight > 0] = np.inf
        return ln_flux_data(self.stars.flux, err)

    def _rarity_weight(self):
        """Weights (N,) of mean 1 that let rare types count: the inverse root of the prior density,
        with a soft cap."""
        ln_p = self.model.prior.ln_density_z(self.z).numpy()
        weight = np.exp(-0.5 * (ln_p - np.median(ln_p)))
        weight = weight / (1.0 + weight / self.recipe["rare_type_weight_cap"])
        return (weight / weight.mean()).astype("f4")

    # ---- losses, in TensorFlow

    def _whitened(self, batch, columns, residuals):
        """Nuisance columns and residuals, whitened, and ln |det S|."""
        import tensorflow as tf

        ext = tf.maximum(batch["ext"], MIN_NOISE_EXT)
        whitening, ln_det = self.model.noise.whitening(
            batch["z_noise"], ext, batch["rel_err"], batch["used"], batch["features"])
        white = tf.matmul(tf.concat([columns, residuals], 1), whitening, transpose_b=True)
        k = columns.shape[1]
        return white[:, :k], white[:, k:], ln_det

    def _curve_columns(self, batch):
        """R at xi = 0 (B, n_wl) and the change of ln flux with xi there."""
        import tensorflow as tf

        curve, slope = self.model.flux.ext_curve(tf.zeros_like(batch["ext"]))
        return curve, -tf.maximum(batch["ext"], MIN_NOISE_EXT)[:, None] * curve * slope

    def likelihood_loss(self, batch):
        """-ln p(fluxes | label, E, parallax) per flux, (B,): the errors of all three and xi are
        marginalised."""
        import tensorflow as tf

        from model import marginal_chi2, student_misfit

        ln_flux, dz = self.model.flux.ln_flux_and_jacobian(batch["z"])
        curve, dxi = self._curve_columns(batch)
        residual = (batch["value"] - ln_flux + batch["ext"][:, None] * curve
                    - 2.0 * batch["ln_plx"][:, None])
        plx = 2.0 * batch["ln_plx_err"][:, None] * tf.ones_like(curve)
        columns = tf.concat([tf.stack([curve * batch["ext_err"][:, None], plx, dxi], 1),
                             tf.stop_gradient(dz) * batch["z_err"][:, :, None]], 1)
        u, r, ln_det = self._whitened(batch, columns, residual[:, None])
        chi2, _, _, ln_det_m = marginal_chi2(r, u)
        n = tf.reduce_sum(batch["used"], 1)
        misfit = student_misfit(chi2[:, 0], n)
        return (misfit + 0.5 * ln_det_m - ln_det) / tf.maximum(n, 1.0)

    def posterior_loss(self, batch):
        """-ln probability (B,) of the label among CANDIDATES types, given the fluxes.

        The label and the other candidates are drawn alike about a common centre, so they are
        exchangeable but for the prior and the fluxes: this is small where the posterior is right,
        in place and in width. E > 0, parallax and xi are marginalised.
        """
        import tensorflow as tf

        from model import marginal_chi2, student_misfit

        candidates = batch["candidates"]                                   # (B, k, 3)
        shape = candidates.shape[:2]
        flat = tf.reshape(candidates, (-1, 3))
        ln_flux = tf.reshape(self.model.flux.ln_flux(flat), (*shape, -1))
        curve, dxi = self._curve_columns(batch)
        residual = batch["value"][:, None] - ln_flux - 2.0 * batch["ln_plx"][:, None, None]
        plx = 2.0 * batch["ln_plx_err"][:, None] * tf.ones_like(curve)
        u, r, _ = self._whitened(batch, tf.stack([-FLAT_EXT_ERR * curve, plx, dxi], 1), residual)
        chi2, amplitude, inverse, _ = marginal_chi2(r, u)
        n = tf.reduce_sum(batch["used"], 1)[:, None]
        # The part of the Gaussian in E that lies at E > 0, relative to its width.
        positive = _ln_normal_cdf(amplitude[:, :, 0] * tf.math.rsqrt(inverse[:, 0, 0])[:, None])
        ln_prior = tf.reshape(self.model.prior.ln_density_z(flat), shape)
        ln_post = ln_prior + positive - student_misfit(chi2, n)
        loss = tf.reduce_logsumexp(ln_post, 1) - ln_post[:, 0]
        excess = tf.maximum(loss / LOSS_LINEAR_UNTIL, 1.0)
        return tf.where(loss < LOSS_LINEAR_UNTIL, loss,
                        LOSS_LINEAR_UNTIL * (1.0 + tf.math.log(excess)))

    def _make_step(self, kind, trained):
        """A compiled step of Adam on the variable groups `trained`."""
        import tensorflow as tf

        chosen = [k for k, v in enumerate(self.variables)
                  if any(v is w for group in trained for w in self.groups[group])]
        variables = [self.variables[k] for k in chosen]
        b1, b2 = ADAM_BETA

        def step(batch, number, learning_rate):
            with tf.GradientTape() as tape:
                likelihood = tf.reduce_mean(batch["weight"] * self.likelihood_loss(batch))
                posterior = (tf.reduce_mean(self.posterior_loss(batch))
                             if kind == "posterior" else 0.0)
                loss = posterior + (ANCHOR if kind == "posterior" else 1.0) * likelihood
            gradients = tape.gradient(loss, variables, unconnected_gradients="zero")
            gradients, norm = tf.clip_by_global_norm(gradients, GRADIENT_CLIP)
            sane = tf.math.is_finite(norm)
            rate = tf.where(sane, learning_rate, 0.0)
            for k, variable, gradient in zip(chosen, variables, gradients, strict=True):
                m1, m2 = self.moments[k]
                gradient = tf.where(sane, gradient, 0.0)
                m1.assign(b1 * m1 + (1 - b1) * gradient)
                m2.assign(b2 * m2 + (1 - b2) * gradient * gradient)
                scale = tf.sqrt(m2 / (1 - b2**number)) + ADAM_EPSILON
                variable.assign_sub(rate * m1 / (1 - b1**number) / scale)
            return likelihood, posterior, tf.cast(sane, tf.float32)

        return tf.function(step, jit_compile=True)

    # ---- batches

    def _batch(self, rows, kind, rng):
        """The tensors of the stars `rows`: some have their parallax or bands hidden, so that the
        model learns from stars of every sort."""
        recipe, n, n_xp = self.recipe, len(rows), 61
        no_bp = (rng.random(n) < recipe["hide_bp"])[:, None]
        batch = {name: np.where(no_bp, getattr(self.without_bp, name)[rows],
                                getattr(self.observed, name)[rows])
                 for name in ("value", "rel_err", "used", "features")}
        no_phot = rng.random(n) < recipe["hide_photometry"]
        for name, blank in (("value", 0.0), ("rel_err", 1.0), ("used", 0.0)):
            batch[name][no_phot, n_xp:] = blank
        no_plx = rng.random(n) < recipe["hide_parallax"]
        batch |= {"z": self.z[rows], "z_err": self.z_err[rows], "ext": self.ext[rows],
                  "ext_err": self.ext_err[rows], "ln_plx": self.ln_plx[rows],
                  "ln_plx_err": np.where(no_plx, FLAT_LN_PLX_ERR, self.ln_plx_err[rows])}
        scale = self.model.flux.theta_scale.numpy()
        teff = self.stars.theta[rows, 0]
        width = np.repeat([CANDIDATE_WIDTH], n, 0) / scale
        width[:, 0] *= (teff / CANDIDATE_TEFF) ** 3
        centre = batch["z"] + width * rng.normal(size=(n, 3))
        batch["z_noise"] = centre
        batch["weight"] = self.weight[rows] if kind == "likelihood" else np.ones(n)
        if kind == "posterior":
            draws = rng.normal(size=(n, CANDIDATES, 3))
            batch["candidates"] = centre[:, None] + width[:, None] * draws
            batch["candidates"][:, 0] = batch["z"]
        return {name: np.asarray(value, "f4") for name, value in batch.items()}

    def selected(self, stage):
        """Index array of the stars that a stage trains on."""
        limits, stars = stage.get("select", {}), self.stars
        err = dict(zip(("max_teff_err", "max_feh_err", "max_logg_err"), stars.theta_err.T,
                       strict=True))
        keep = ~self.rejected
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
        if len(rows) < MIN_TRAINING_STARS // 4:
            return rows, 0, 0, 0
        size = min(stage["batch_size"], len(rows))
        batches = len(rows) // size
        return rows, size, batches, max(1, round(stage["steps"] / batches))

    def run_epoch(self):
        """One epoch of the current stage (or all of a stage that fits stars); True at its end."""
        stage = self.recipe["stages"][self.stage]
        if stage["kind"] == "stars":
            self._fit_stars(stage)
            return self._next_stage()
        rows, size, batches, epochs = self.stage_plan(stage)
        if not epochs:
            self.history.append({"stage": stage["name"], "epoch": 0, "stars": len(rows),
                                 "skipped": "too few stars"})
            return self._next_stage()
        if self.stage not in self._steps:
            self._steps = {self.stage: self._make_step(stage["kind"], stage["train"])}
        rng = np.random.default_rng([self.recipe["seed"], self.stage, self.epoch])
        order, losses = rng.permutation(rows), []
        for k in range(batches):
            number = self.epoch * batches + k + 1
            rate = _learning_rate(stage["learning_rate"], number, epochs * batches)
            batch = self._batch(order[k * size:(k + 1) * size], stage["kind"], rng)
            losses.append(self._steps[self.stage](batch, np.float32(number), np.float32(rate)))
        losses = np.array([[float(x) for x in loss] for loss in losses])
        sane = losses[:, 2] > 0                    # steps that were not refused
        likelihood, posterior = losses[sane, :2].mean(0) if sane.any() else (np.nan, np.nan)
        entry = {"stage": stage["name"], "epoch": self.epoch, "stars": len(rows),
                 "likelihood_loss": float(likelihood), "learning_rate": float(rate),
                 "steps_refused": int((~sane).sum())}
        if stage["kind"] == "posterior":
            entry["posterior_loss"] = float(posterior)
        self.history.append(entry)
        self.epoch += 1
        return self._next_stage() if self.epoch >= epochs else False

    def _next_stage(self):
        """Begin the next stage with Adam's moments at zero."""
        import tensorflow as tf

        self.stage, self.epoch = self.stage + 1, 0
        for moments in self.moments:
            for moment in moments:
                moment.assign(tf.zeros_like(moment))
        return True

    def _fit_stars(self, stage):
        """Fit every star's own parameters, its label, reddening and parallax as priors; stars whose
        label is off by more than `reject_sigma`, or whose chi^2 is more than `reject_chi2_factor`
        times the usual, are trained on no more."""
        from star_solver import LN_E, LN_PLX, StarSolver, Z

        u = np.zeros((len(self.stars), 6), "f4")
        u[:, Z] = self.z
        u[:, LN_E], u[:, LN_PLX] = np.log(np.maximum(self.ext, MIN_NOISE_EXT)), self.ln_plx
        found = StarSolver(self.model, labelled=True).minimise(self.stars, u, 20)
        flux = self.model.flux
        self.fitted_type = found.u[:, Z] * flux.theta_scale.numpy() + flux.theta_mean.numpy()
        n = np.maximum(self.observed.used.sum(1), 1)
        pull = np.abs(found.u[:, Z] - self.z).max(1) / self.z_err.max(1)
        good = np.isfinite(found.u).all(1) & np.isfinite(found.chi2)
        ratio = found.chi2 / n
        usual = float(np.median(ratio[good]))
        self.rejected = (~good | (pull > stage["reject_sigma"])
                         | (ratio > stage["reject_chi2_factor"] * usual))
        self.history.append({"stage": stage["name"], "epoch": 0, "stars": len(self.stars),
                             "rejected": int(self.rejected.sum()),
                             "median_chi2_per_flux": usual})

    # ---- checkpoints

    def state(self):
        """Everything that the next epoch depends on, as {name: array}."""
        arrays = self.model.to_arrays() | {"rejected": self.rejected.astype("u1"),
                                            "fitted_type": self.fitted_type}
        for k, moments in enumerate(self.moments):
            for order, moment in enumerate(moments):
                arrays[f"moment{order}_{k}"] = moment.numpy()
        return arrays

    def restore(self, arrays, attrs):
        """Go back to a former `state`."""
        for module in (self.model.flux, self.model.noise):
            for variable in module.variables:
                variable.assign(arrays[variable.name.split(":")[0]])
        for k, moments in enumerate(self.moments):
            for order, moment in enumerate(moments):
                moment.assign(arrays[f"moment{order}_{k}"])
        self.rejected = arrays["rejected"].astype(bool)
        self.fitted_type = arrays["fitted_type"]
        self.stage, self.epoch = int(attrs["stage"]), int(attrs["epoch"])
        self.history = json.loads(attrs["history"])


def _ln_normal_cdf(x):
    """ln of the normal distribution function, without cancellation in its lower tail."""
    import tensorflow as tf

    bent = tf.maximum(x, -4.0)
    tail = tf.where(x < -4.0, 0.5 * (x * x - 16.0), 0.0)
    return tf.math.log(0.5 * tf.math.erfc(-bent / np.sqrt(2.0))) - tail


def _learning_rate(first, number, total):
    """Falls as a cosine to a thousandth of the first rate, after a linear warm-up."""
    cosine = 0.5 * (1 + np.cos(np.pi * number / total))
    return first * (1e-3 + (1 - 1e-3) * cosine) * min(1.0, number / WARM_UP_STEPS)


# ---------------------------------------------------------------------------- what comes of it


def write_arrays(path, arrays, made_by, **attrs):
    """An HDF5 file of arrays, written whole or not at all."""
    with ShardWriter(path, None, None, made_by, attrs) as writer:
        for name, array in arrays.items():
            writer.write_array(name, array)


def read_arrays(path):
    """({name: array}, attributes) of such a file."""
    with ShardReader(path) as reader:
        return {name: reader.read(name) for name in reader.columns}, reader.attrs


def infer_stars(trained, table, rows):
    """Inferred columns of the stars `rows`, their labels hidden, as step 10 would have them."""
    from catalogue import infer
    from star_solver import StarSolver

    hidden = {name: table[name][rows] for name in OBSERVED}
    return infer(hidden, StarSolver(trained.stellar), trained)


def trained_model(trainer, table, calibration):
    """A `catalogue.TrainedModel`: the model with its training range and, from the calibration
    stars, its confidences."""
    from scipy.spatial import ConvexHull

    from catalogue import CONFIDENCE_CENTRE, TrainedModel

    kept = ~trainer.rejected
    hull = ConvexHull(trainer.stars.theta[kept].astype("f8")).equations
    values = np.column_stack([trainer.ext, trainer.observed.features])[kept]
    p = 2 * len(CONFIDENCE_CENTRE)
    trained = TrainedModel(trainer.model, np.zeros(p), np.ones(p), np.zeros((3, p)), np.zeros(3),
                           hull, np.stack([values.min(0), values.max(0)]))
    if len(calibration):
        fit_confidences(trained, infer_stars(trained, table, calibration), table, calibration)
    return trained


def fit_confidences(trained, columns, table, rows):
    """Put into `trained` logistic regressions for Teff, [Fe/H], log g, from held-out stars."""
    from sklearn.linear_model import LogisticRegression

    from catalogue import confidence_features, is_right
    from model import ln_flux_data

    observed = ln_flux_data(table["flux"][rows], table["flux_err"][rows])
    features = confidence_features(columns, observed.features, np.isfinite(table["plx"][rows]))
    good = np.isfinite(features).all(1)
    features = features[good]
    right = is_right(columns, table["stellar_type"][rows], table["stellar_type_err"][rows])[good]
    if not len(features):
        return
    trained.confidence_mean = features.mean(0)
    trained.confidence_scale = features.std(0) + 1e-6
    x = np.clip((features - trained.confidence_mean) / trained.confidence_scale, -5, 5)
    for k in range(right.shape[1]):
        n_right, n = right[:, k].sum(), len(right)
        if 0 < n_right < n:
            fit = LogisticRegression(C=0.02, max_iter=2000).fit(x, right[:, k])
            trained.confidence_weight[k] = fit.coef_[0]
            trained.confidence_offset[k] = fit.intercept_[0]
        else:  # one class only: its odds by Laplace's rule
            trained.confidence_offset[k] = np.log((n_right + 1) / (n - n_right + 1))


def predicted_ln_flux(flux_model, est):
    """ln flux (N, 66) of the estimates (N, 6) in the order of `stellar_params_est`."""
    z = (est[:, :3] - flux_model.theta_mean.numpy()) / flux_model.theta_scale.numpy()
    curve, _ = flux_model.ext_curve(est[:, 5].astype("f4"))
    return (flux_model.ln_flux(z.astype("f4")).numpy() - est[:, 3:4] * curve.numpy()
            + 2 * np.log(est[:, 4:5]))


MAIN_SEQUENCE = np.array([[t, 0.0, np.interp(t, [3.5, 4.5, 5.8, 6.8], [4.8, 4.6, 4.4, 4.2])]
                          for t in np.arange(3.6, 6.81, 0.4)], "f4")
GIANT_BRANCH = np.array([[t, -0.2, np.interp(t, [3.7, 4.2, 4.8, 5.1], [0.7, 1.7, 2.6, 3.4])]
                         for t in np.arange(3.7, 5.11, 0.2)], "f4")


def draw_figures(folder, trainer, columns, table, rows):
    """The figures of the training and of the validation stars `rows`, into `folder`."""
    import figures
    from catalogue import CONFIDENCES, is_right
    from model import ln_flux_data

    model = trainer.model.flux
    wavelengths = model.sample_wavelengths.numpy()
    for kind in ("likelihood", "posterior"):
        losses = np.array([h.get(f"{kind}_loss", np.nan) for h in trainer.history])
        figures.loss_history(folder / f"loss_{kind}.png", np.arange(len(losses)),
                             {f"{kind} loss": losses})
    xi = np.linspace(-2, 2, 5)
    curve = np.log(model.ext_curve(xi.astype("f4"))[0].numpy())
    figures.extinction_curve(folder / "extinction_curve.png", wavelengths, xi, curve)
    tracks = {name: (theta, model.ln_flux(model.standardise(theta)).numpy()) for name, theta in
              (("Main sequence", MAIN_SEQUENCE), ("Giant branch", GIANT_BRANCH))}
    figures.model_spectra(folder / "model_spectra.png", wavelengths, tracks)
    est, err = columns["stellar_params_est"], columns["stellar_params_err"]
    good = np.isfinite(est).all(1)
    seen = ln_flux_data(table["flux"][rows][good], table["flux_err"][rows][good])
    left = np.where(seen.used > 0, seen.value - predicted_ln_flux(model, est[good]), np.nan)
    figures.residuals_by_wavelength(folder / "residuals.png", wavelengths, np.expm1(left),
                                    left / seen.rel_err)
    label, label_err = table["stellar_type"][rows], table["stellar_type_err"][rows]
    figures.inferred_against_label(folder / "validation.png", label, est[:, :3], label_err,
                                   err[:, :3], title="Validation stars, never trained on")
    stars = trainer.stars
    figures.inferred_against_label(
        folder / "stars.png", stars.theta, trainer.fitted_type, stars.theta_err,
        title="Training stars: fitted with the label as prior, against the label",
        note=f"{trainer.rejected.sum()} of {len(stars)} rejected")
    right = is_right(columns, label, label_err)
    names = ("Teff", "[Fe/H]", "log g")
    figures.reliability(folder / "confidence.png",
                        {name: columns[c][good] for name, c in zip(names, CONFIDENCES,
                                                                   strict=True)},
                        {name: right[good, k] for k, name in enumerate(names)})


def finish(trainer, args, ids, table, calibration, held_out, made_by, log):
    """Write the model, its validation and its figures."""
    from catalogue import accuracy, format_accuracy
    from model import export

    trained = trained_model(trainer, table, calibration)
    export(trained.stellar.flux, args.output / "saved_model")
    columns = infer_stars(trained, table, held_out)
    labels = {name: table[name][held_out] for name in LABELS}
    scores = accuracy(columns["stellar_params_est"], columns["stellar_params_err"],
                      *labels.values())
    write_arrays(args.output / "validation.h5",
                 columns | labels | {"gdr3_source_id": ids[held_out]}, made_by)
    write_text(args.output / "validation_ids.txt", "".join(f"{i}\n" for i in ids[held_out]))
    write_text(args.output / "validation.json", json.dumps(scores, indent=1) + "\n")
    write_text(args.output / "history.json", json.dumps(trainer.history, indent=1) + "\n")
    draw_figures(args.output, trainer, columns, table, held_out)
    # The model comes last: where it is, all the rest is.
    write_arrays(args.output / "model.h5", trained.to_arrays(), made_by,
                 recipe=json.dumps(trainer.recipe))
    log.info("validation stars:\n%s", format_accuracy(scores), extra={"summary": True})


# ------------------------------------------------------------------------------------ the script


def stage_warnings(entries):
    """What the history entries of a stage tell that a user should know, as sentences."""
    refused = sum(entry.get("steps_refused", 0) for entry in entries)
    if refused:
        yield f"{refused} steps were refused, as their gradient was not finite"
    last = entries[-1]
    if "skipped" in last:
        yield f"skipped: only {last['stars']} stars are left to train on"
    if last.get("rejected", 0) > MOST_REJECTED * last["stars"]:
        yield (f"{last['rejected']} of {last['stars']} stars were rejected: the model does not fit "
               "them yet; give the stages before it more steps")


def train(trainer, checkpoint, settings, made_by, log):
    """Run all epochs that are left, with checkpoints at the ends of stages and in time between."""
    saved = time.monotonic()
    stages = trainer.recipe["stages"]
    for stage in progress(range(trainer.stage, len(stages)), SCRIPT, unit="stage"):
        first = len(trainer.history) - trainer.epoch
        while trainer.stage == stage:
            ended = trainer.run_epoch()
            log.info("%s", trainer.history[-1])
            if ended or time.monotonic() - saved > CHECKPOINT_SECONDS:
                write_arrays(checkpoint, trainer.state(), made_by, settings=settings,
                             stage=trainer.stage, epoch=trainer.epoch,
                             history=json.dumps(trainer.history))
                saved = time.monotonic()
        summary = {k: float(f"{v:.4g}") if isinstance(v, float) else v
                   for k, v in trainer.history[-1].items()}
        log.info("stage %s done: %s", stages[stage]["name"], summary, extra={"summary": True})
        for sentence in stage_warnings(trainer.history[first:]):
            log.warning("stage %s: %s", stages[stage]["name"], sentence)


def former_state(args, settings):
    """What --resume goes on from: (arrays, attributes) of the checkpoint, None where none is there.
    UsageError where a former result would be overwritten, or the checkpoint is of another training.
    """
    checkpoint, model = args.output / "checkpoint.h5", args.output / "model.h5"
    if args.overwrite:
        model.unlink(missing_ok=True)
        checkpoint.unlink(missing_ok=True)
    found = next((path for path in (checkpoint, model) if path.exists()), None)
    if found is None:
        return None
    if not args.resume:
        raise UsageError(f"{found}: a training was begun here; give --resume to go on with it, "
                         "--overwrite to train anew, or another -o")
    if found is model:
        raise UsageError(f"{model}: trained, but its checkpoint.h5 is gone, so there is nothing to "
                         "go on from; give --overwrite to train anew, or another -o")
    try:
        arrays, attrs = read_arrays(checkpoint)
    except ShardError as error:
        raise UsageError(f"{error}: give --overwrite to train anew") from error
    if attrs.get("settings") != settings:
        raise UsageError(f"{checkpoint}: made with another recipe or other training data; give the "
                         "same ones, or --overwrite to train anew")
    return arrays, attrs


def is_trained(args, recipe, former):
    """Whether nothing is left to do: all stages are done and the model is whole."""
    whole = output_state(args.output / "model.h5").status not in (Status.ABSENT, Status.PARTIAL)
    return former is not None and int(former[1]["stage"]) == len(recipe["stages"]) and whole


def start_trainer(table, training, wavelengths, recipe, former):
    """A `Trainer` of the stars `training`, in its former state if there is one."""
    trainer = Trainer(star_data(table, training, labelled=True), wavelengths, recipe)
    if former is not None:
        try:
            trainer.restore(*former)
        except (KeyError, ValueError) as error:
            raise UsageError(f"the checkpoint is of another version of the project ({error}): give "
                             "--overwrite to train anew, or use that version") from error
    return trainer


@usage_exit
def main(argv=None) -> int:
    args = parse_args(argv)
    recipe = read_recipe(args.recipe)
    ids, table, wavelengths = read_training_data(args.input)
    training, calibration, held_out = split_stars(ids, recipe)
    if len(training) < MIN_TRAINING_STARS or not len(held_out):
        raise UsageError(f"{args.input}: {len(training)} training and {len(held_out)} validation "
                         f"stars; at least {MIN_TRAINING_STARS} and 1 are needed")
    log = setup_logging(SCRIPT, args.log or args.output / "train.log")
    made_by = provenance(SCRIPT, argv, [args.input, args.recipe])
    settings = json.dumps({"recipe": recipe, "training_data": identity(args.input)}, sort_keys=True)
    former = former_state(args, settings)
    if is_trained(args, recipe, former):
        log.info("%s: already trained", args.output, extra={"summary": True})
        return 0
    from model import set_threads  # TensorFlow takes seconds to load: not before it is needed

    set_threads(args.threads)
    trainer = start_trainer(table, training, wavelengths, recipe, former)
    log.info("%d training, %d calibration, %d validation stars; at stage %d, epoch %d",
             len(training), len(calibration), len(held_out), trainer.stage, trainer.epoch)
    train(trainer, args.output / "checkpoint.h5", settings, made_by, log)
    finish(trainer, args, ids, table, calibration, held_out, made_by, log)
    return 0


if __name__ == "__main__":
    sys.exit(main())
