#!/usr/bin/env python3
"""Step 8: train the forward model on stars with labels.

    python train.py -i training_data.h5 -o output_folder/
    python train.py -i training_data.h5 -o output_folder/ --resume      after an interruption

Reads training_data.h5 (step 7). A fifth of the stars, chosen by a hash of their source id, is held
out for validation and never trained on. Training alternates epochs of gradient steps on the model
(network and extinction curve) with a fit of every star's own parameters (type, E, xi, parallax),
in which labels, reddening and parallax are Gaussian priors. Then the validation stars are inferred
as any other star, their labels hidden. Writes into output_folder/:

  model.h5               model and prior, what step 10 needs
  saved_model/           the same as a TensorFlow SavedModel (model.export tells its interface)
  checkpoint.h5          state of the training, for --resume
  history.json           loss by epoch
  validation.json        offset, scatter, pull width of the validation stars; also printed
  validation_ids.txt     their source ids
  validation.h5          their inferred parameters and labels
  *.png                  figures: loss, extinction curve, model spectra, residuals, labels
  train.log

Size: 10 MB. Time on one core: about 2 minutes for 17,000 stars or fewer. Memory: 1 GB + 8 kB a star.
A killed run goes on with --resume from its last checkpoint, to the same result.
Exit status: 0 trained, 2 wrong usage or input.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import figures
import numpy as np

from shards import (
    ShardError,
    ShardReader,
    ShardWriter,
    UsageError,
    identity,
    progress,
    provenance,
    setup_logging,
    usage_exit,
    write_text,
)

SCRIPT = "train"
LABELS = ("stellar_type", "stellar_type_err")
OBSERVED = ("flux", "flux_err", "flux_sqrticov_tril", "plx", "plx_err")
EXTINCTION = ("stellar_ext", "stellar_ext_err")

ADAM_BETA = (0.9, 0.999)
ADAM_EPSILON = 1e-8
GRADIENT_CLIP = 5.0          # of the norm over all weights, of the mean over a batch
WARM_UP_STEPS = 100
ROBUST_CHI2_PER_FLUX = 4.0   # chi^2 grows as its logarithm beyond this many per flux
START_EXT = 0.1              # where no map has a value
MIN_START_EXT = 0.02         # ln E needs a positive start
XI_SLOPE = 0.1               # start of d ln R / d xi per e-fold of wavelength: any but 0, as a
                             # curve without xi-variation and stars with xi = 0 hold each other
MIN_TRAINING_STARS = 100
MAIN_SEQUENCE = np.array([[t, 0.0, np.interp(t, [3.5, 4.5, 5.8, 6.8], [4.8, 4.6, 4.4, 4.2])]
                          for t in np.arange(3.6, 6.81, 0.4)])
GIANT_BRANCH = np.array([[t, -0.2, np.interp(t, [3.7, 4.2, 4.8, 5.1], [0.7, 1.7, 2.6, 3.4])]
                         for t in np.arange(3.7, 5.11, 0.2)])


@dataclass(frozen=True)
class Options:
    """What decides the result, beside the data (stored in the checkpoint)."""

    steps: int               # gradient steps in all
    epochs_per_cycle: int    # between two fits of the stars' parameters
    batch_size: int          # stars a step
    learning_rate: float     # at the start; falls to final_learning_rate as a cosine
    final_learning_rate: float
    hidden: int              # units in each of the network's three hidden layers
    star_iterations: int     # Levenberg-Marquardt steps a cycle
    validation_fraction: float
    seed: int


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-i", "--input", type=Path, required=True, metavar="TRAINING_DATA.h5")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUTPUT_FOLDER")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="train anew over a former result")
    parser.add_argument("--steps", type=int, default=12000, help="gradient steps (%(default)s)")
    parser.add_argument("--epochs-per-cycle", type=int, default=15, help="%(default)s")
    parser.add_argument("--batch-size", type=int, default=512, help="%(default)s")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="%(default)s")
    parser.add_argument("--final-learning-rate", type=float, default=1e-5, help="%(default)s")
    parser.add_argument("--hidden", type=int, default=64, help="%(default)s")
    parser.add_argument("--star-iterations", type=int, default=6, help="%(default)s")
    parser.add_argument("--validation-fraction", type=float, default=0.2, help="%(default)s")
    parser.add_argument("--seed", type=int, default=0, help="%(default)s")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; default: all cores")
    parser.add_argument("--log", type=Path, help="default: OUTPUT_FOLDER/train.log")
    args = parser.parse_args(argv)
    if not 0 < args.validation_fraction < 1:
        parser.error("--validation-fraction must lie between 0 and 1")
    return args


# ------------------------------------------------------------------------------------- the data


def read_training_data(path):
    """(ids (N,), table of the columns that training needs, wavelengths (66,) nm)."""
    with ShardReader(path, "gdr3_source_id") as reader:
        ids = reader.source_id()
        table = reader.read_table((*OBSERVED, *LABELS, *EXTINCTION))
        wavelengths = reader.attributes("flux").get("sample_wavelengths")
    if wavelengths is None:
        raise ShardError(f"{path}: flux has no attribute sample_wavelengths; make the file with "
                         "compile_training_data.py")
    if not np.isfinite(table["stellar_type"]).all():
        raise ShardError(f"{path}: stellar_type has NaN; make the file with "
                         "compile_training_data.py, which leaves such labels out")
    return ids, table, np.asarray(wavelengths)


def is_validation(ids, fraction):
    """Whether each source id (N,) is held out: a hash of the id alone (splitmix64), so that a star
    stays on its side whatever else is in the training set."""
    x = np.asarray(ids).astype(np.uint64)
    with np.errstate(over="ignore"):
        x += np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)) / 2.0**53 < fraction


def star_data(table, rows, labelled):
    """`StarData` of some rows; with labels and reddening as priors where `labelled`."""
    from star_solver import StarData

    names = (*OBSERVED, *LABELS, *EXTINCTION) if labelled else OBSERVED
    return StarData(*(table[name][rows].astype("f4") for name in names))


# ------------------------------------------------------------------------------- the training


def start_model(stars, wavelengths, options):
    """A `FluxModel` that predicts the median intrinsic spectrum of the training stars."""
    from model import FluxModel, initial_ln_ext_curve

    theta_mean, theta_scale = stars.theta.mean(0), stars.theta.std(0)
    curve = np.exp(initial_ln_ext_curve(wavelengths))
    ext = np.where(np.isfinite(stars.ext), stars.ext, START_EXT)
    with np.errstate(divide="ignore", invalid="ignore"):
        ln_flux = np.log(stars.flux) + ext[:, None] * curve - 2 * np.log(stars.plx)[:, None]
    ln_flux[~np.isfinite(stars.flux_err) | ~np.isfinite(ln_flux)] = np.nan
    seen = np.isfinite(ln_flux).any(0)
    start = np.full(len(wavelengths), np.nanmedian(ln_flux))
    start[seen] = np.nanmedian(ln_flux[:, seen], axis=0)
    model = FluxModel(wavelengths, theta_mean, theta_scale, start, options.hidden,
                      seed=options.seed)
    model.ln_ext_curve_xi.assign(XI_SLOPE * np.log(wavelengths / 550.0) * model.xi_mask)
    return model


class Trainer:
    """The state of a training and what advances it by a cycle.

    u (N, 6): the stars' own parameters (see star_solver); moments: of Adam, two a variable;
    history: one dict an epoch.
    """

    def __init__(self, stars, wavelengths, options):
        import tensorflow as tf

        from star_solver import StarSolver

        self.stars, self.options = stars, options
        self.model = start_model(stars, wavelengths, options)
        self.variables = [*self.model.network_variables, self.model.ln_ext_curve,
                          self.model.ln_ext_curve_xi]
        self.moments = [[tf.Variable(tf.zeros_like(v)) for _ in range(2)] for v in self.variables]
        self.solver = StarSolver(self.model, labelled=True, batch_size=256)
        self.batch_size = min(options.batch_size, len(stars))
        self.batches = len(stars) // self.batch_size
        self.cycles = max(1, round(options.steps / (self.batches * options.epochs_per_cycle)))
        self.total_steps = self.cycles * options.epochs_per_cycle * self.batches
        self.cycle, self.history = 0, []
        ext = np.where(np.isfinite(stars.ext), stars.ext, START_EXT)
        z = (stars.theta - self.model.theta_mean.numpy()) / self.model.theta_scale.numpy()
        self.u = np.column_stack([z, np.zeros(len(z)), np.log(np.maximum(ext, MIN_START_EXT)),
                                  np.log(stars.plx)]).astype("f4")
        self._step_tf = tf.function(self._step, jit_compile=True)

    def _step(self, u, flux, tril, weight, step, learning_rate):
        """One step of Adam on the model, the stars' parameters held. Returns the loss."""
        import tensorflow as tf

        from star_solver import LN_E, LN_PLX, XI, Z, unpack_whitening

        whitening = unpack_whitening(tril, weight)
        limit = ROBUST_CHI2_PER_FLUX * flux.shape[1]
        with tf.GradientTape() as tape:
            predicted = self.model.flux(u[:, Z], u[:, XI], tf.exp(u[:, LN_E]), u[:, LN_PLX])
            chi2 = tf.reduce_sum(tf.linalg.matvec(whitening, flux - predicted) ** 2, 1)
            robust = limit * (1.0 + tf.math.log(tf.maximum(chi2, limit) / limit))
            loss = tf.reduce_mean(tf.where(chi2 < limit, chi2, robust)) / flux.shape[1]
        gradients = tape.gradient(loss, self.variables)
        gradients, _ = tf.clip_by_global_norm(gradients, GRADIENT_CLIP)
        b1, b2 = ADAM_BETA
        for variable, gradient, (m1, m2) in zip(self.variables, gradients, self.moments,
                                                strict=True):
            m1.assign(b1 * m1 + (1 - b1) * gradient)
            m2.assign(b2 * m2 + (1 - b2) * gradient * gradient)
            scale = tf.sqrt(m2 / (1 - b2**step)) + ADAM_EPSILON
            variable.assign_sub(learning_rate * m1 / (1 - b1**step) / scale)
        return loss

    def learning_rate(self, step):
        """Cosine from the first to the final rate, after a linear warm-up."""
        first, last = self.options.learning_rate, self.options.final_learning_rate
        cosine = 0.5 * (1 + np.cos(np.pi * step / self.total_steps))
        return (last + (first - last) * cosine) * min(1.0, step / WARM_UP_STEPS)

    def _epoch(self, epoch):
        """One pass over the training stars, in an order drawn from (seed, epoch) alone."""
        order = np.random.default_rng([self.options.seed, epoch]).permutation(len(self.stars))
        losses = []
        for k in range(self.batches):
            rows = order[k * self.batch_size:(k + 1) * self.batch_size]
            step = epoch * self.batches + k + 1
            stars = self.stars
            losses.append(self._step_tf(
                self.u[rows], stars.flux[rows], stars.flux_sqrticov_tril[rows],
                1.0 / stars.flux_err[rows], np.float32(step), np.float32(self.learning_rate(step))))
        return {"epoch": epoch, "loss": float(np.mean([float(x) for x in losses])),
                "learning_rate": float(self.learning_rate(step))}

    def advance(self):
        """One cycle: epochs on the model, then a fit of the stars' own parameters."""
        for _ in range(self.options.epochs_per_cycle):
            self.history.append(self._epoch(len(self.history)))
        found = self.solver.minimise(self.stars, self.u, self.options.star_iterations)
        good = np.isfinite(found.phi) & np.isfinite(found.u).all(1)
        self.u[good] = found.u[good]
        self.history[-1] |= {"median_chi2": float(np.median(found.chi2[good])),
                             "lost_stars": int((~good).sum())}
        self.cycle += 1

    def state(self):
        """Everything that the next cycle depends on, as {name: array}."""
        arrays = self.model.to_arrays()
        for k, moments in enumerate(self.moments):
            for order, moment in enumerate(moments):
                arrays[f"moment{order}_{k}"] = moment.numpy()
        arrays["star_parameters"] = self.u
        return arrays

    def restore(self, arrays, cycle, history):
        """Go back to a former `state`."""
        for variable in self.model.variables:
            variable.assign(arrays[variable.name.split(":")[0]])
        for k, moments in enumerate(self.moments):
            for order, moment in enumerate(moments):
                moment.assign(arrays[f"moment{order}_{k}"])
        self.u, self.cycle, self.history = arrays["star_parameters"], cycle, history


# ------------------------------------------------------------------------------- checkpoints


def write_arrays(path, arrays, made_by, **attrs):
    """An HDF5 file of arrays, written whole or not at all."""
    with ShardWriter(path, None, None, made_by, attrs) as writer:
        for name, array in arrays.items():
            writer.write_array(name, array)


def read_arrays(path):
    """({name: array}, attributes) of such a file."""
    with ShardReader(path) as reader:
        return {name: reader.read(name) for name in reader.columns}, reader.attrs


def settings(options, training_data):
    """What must be the same when a training is resumed, as a string."""
    return json.dumps(asdict(options) | {"training_data": identity(training_data)}, sort_keys=True)


def resume(trainer, path, expected):
    """Restore `trainer` from the checkpoint; UsageError where it is of another training."""
    arrays, attrs = read_arrays(path)
    if attrs["settings"] != expected:
        raise UsageError(f"{path}: made with other options or training data ({attrs['settings']}); "
                         "give the same ones, or --overwrite to train anew")
    trainer.restore(arrays, int(attrs["cycle"]), json.loads(attrs["history"]))


# ------------------------------------------------------------------------------- validation


def validate(trainer, prior, table, rows):
    """Infer the stars `rows`, labels hidden, as step 10 does. {name: array}."""
    from star_solver import StarSolver, estimates

    stars = star_data(table, rows, labelled=False)
    best, _ = StarSolver(trainer.model, prior).solve(stars)
    found = estimates(best, trainer.model)
    return {"stellar_params_est": found.est, "stellar_params_err": found.err,
            "chi2_opt": best.chi2, "converged": best.converged,
            "stellar_type": table["stellar_type"][rows],
            "stellar_type_err": table["stellar_type_err"][rows]}


def predicted_flux(model, est):
    """Flux (N, 66) of the estimates (N, 6) in the order of `stellar_params_est`."""
    z = (est[:, :3] - model.theta_mean.numpy()) / model.theta_scale.numpy()
    parts = [part.astype("f4") for part in (z, est[:, 5], est[:, 3], np.log(est[:, 4]))]
    return model.flux(*parts).numpy()


def draw_figures(folder, trainer, result, stars):
    """The figures of the training, into `folder`."""
    model, history = trainer.model, trainer.history
    wavelengths = model.sample_wavelengths.numpy()
    figures.loss_history(folder / "loss_history.png", np.array([h["epoch"] for h in history]),
                         {"training loss (robust chi$^2$ per flux)":
                          np.array([h["loss"] for h in history])},
                         np.array([h["learning_rate"] for h in history]))
    xi = np.linspace(-2, 2, 5)
    curve = np.log(model.ext_curve(xi.astype("f4"))[0].numpy())
    figures.extinction_curve(folder / "extinction_curve.png", wavelengths, xi, curve)
    tracks = {}
    for title, theta in (("Main sequence", MAIN_SEQUENCE), ("Giant branch", GIANT_BRANCH)):
        z = model.standardise(theta.astype("f4"))
        tracks[title] = theta, model.ln_flux(z).numpy()
    figures.model_spectra(folder / "model_spectra.png", wavelengths, tracks)
    good = np.isfinite(result["stellar_params_est"]).all(1)
    model_flux = predicted_flux(model, result["stellar_params_est"][good])
    used = np.isfinite(stars.flux_err[good])
    ratio = np.where(used, stars.flux[good] / model_flux - 1, np.nan)
    pull = np.where(used, (stars.flux[good] - model_flux) / stars.flux_err[good], np.nan)
    figures.residuals_by_wavelength(folder / "residuals.png", wavelengths, ratio, pull)
    figures.inferred_against_label(
        folder / "validation.png", result["stellar_type"], result["stellar_params_est"][:, :3],
        result["stellar_type_err"], result["stellar_params_err"][:, :3],
        title="Validation stars, never trained on")


def finish(trainer, args, ids, table, held_out, made_by, log):
    """Write the model, its validation and its figures."""
    from model import accuracy, export, fit_prior, format_accuracy

    model = trainer.model
    prior = fit_prior(trainer.stars.theta, model.theta_mean.numpy(), model.theta_scale.numpy(),
                      seed=trainer.options.seed)
    export(model, args.output / "saved_model")
    result = validate(trainer, prior, table, held_out)
    scores = accuracy(result["stellar_params_est"], result["stellar_params_err"],
                      result["stellar_type"], result["stellar_type_err"])
    write_arrays(args.output / "validation.h5", result | {"gdr3_source_id": ids[held_out]}, made_by)
    write_text(args.output / "validation_ids.txt", "".join(f"{i}\n" for i in ids[held_out]))
    write_text(args.output / "validation.json", json.dumps(scores, indent=1) + "\n")
    write_text(args.output / "history.json", json.dumps(trainer.history, indent=1) + "\n")
    draw_figures(args.output, trainer, result, star_data(table, held_out, labelled=False))
    # The model comes last: where it is, all the rest is.
    write_arrays(args.output / "model.h5", model.to_arrays() | prior.to_arrays(), made_by,
                 settings=settings(trainer.options, args.input))
    log.info("validation stars:\n%s", format_accuracy(scores), extra={"summary": True})


def start_or_resume(args, trainer, expected):
    """Restore what --resume asks for; UsageError where a former result would be overwritten."""
    checkpoint = args.output / "checkpoint.h5"
    if args.overwrite:
        (args.output / "model.h5").unlink(missing_ok=True)
    elif checkpoint.exists() and not args.resume:
        raise UsageError(f"{checkpoint}: a training was begun here; give --resume to go on with "
                         "it, --overwrite to train anew, or another -o")
    elif checkpoint.exists():
        resume(trainer, checkpoint, expected)


@usage_exit
def main(argv=None) -> int:
    args = parse_args(argv)
    names = Options.__dataclass_fields__
    options = Options(**{name: getattr(args, name) for name in names})
    ids, table, wavelengths = read_training_data(args.input)
    held = is_validation(ids, options.validation_fraction)
    if (~held).sum() < MIN_TRAINING_STARS or not held.any():
        raise UsageError(f"{args.input}: {(~held).sum()} training and {held.sum()} validation "
                         f"stars; at least {MIN_TRAINING_STARS} and 1 are needed")
    log = setup_logging(SCRIPT, args.log or args.output / "train.log")
    made_by = provenance(SCRIPT, argv, [args.input])
    expected = settings(options, args.input)
    from model import set_threads  # TensorFlow takes seconds to load: not before it is needed

    set_threads(args.threads)
    trainer = Trainer(star_data(table, ~held, labelled=True), wavelengths, options)
    start_or_resume(args, trainer, expected)
    log.info("%d training stars, %d held out; %d cycles of %d epochs of %d steps; at cycle %d",
             (~held).sum(), held.sum(), trainer.cycles, options.epochs_per_cycle, trainer.batches,
             trainer.cycle)
    for _ in progress(range(trainer.cycle, trainer.cycles), SCRIPT, unit="cycle"):
        trainer.advance()
        log.info("cycle %d: %s", trainer.cycle, trainer.history[-1])
        write_arrays(args.output / "checkpoint.h5", trainer.state(), made_by, settings=expected,
                     cycle=trainer.cycle, history=json.dumps(trainer.history))
    if args.resume and (args.output / "model.h5").exists():
        log.info("%s: already trained", args.output, extra={"summary": True})
        return 0
    finish(trainer, args, ids, table, np.flatnonzero(held), made_by, log)
    return 0


if __name__ == "__main__":
    sys.exit(main())
