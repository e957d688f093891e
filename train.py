#!/usr/bin/env python3
"""Step 8: train the forward model, its noise model and the direct estimate on stars with labels.

    python train.py -i training_data.h5 -o output_folder/
    python train.py -i training_data.h5 -o output_folder/ --resume      after an interruption
    python train.py -i training_data.h5 -o output_folder/ --recipe my_recipe.json

Reads training_data.h5 (step 7) and a recipe (default: recipe.json; docs/model.md explains it).
A fifth of the stars, chosen by a hash of their source id, is held out for validation and never
used; some of the rest calibrate noise level, pool and confidences and are not trained on either.
The stages of the default recipe: model, mean extinction curve and noise from the best stars; the
curve's xi-variation from reddened stars; model and noise from all stars, by likelihood; every
star's own parameters given its label, which rejects outliers; then model and noise by how well the
posterior finds the label; the noise level; at last the networks of the direct estimate. Then stars
simulated by the model tell by how much its errors are too small, and the validation stars are
inferred as any other star. output_folder/:

  model.h5               model, noise, prior, direct estimate, error factors, pool, confidences:
                         what step 10 needs
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

from pipeline.errors import ShardError, UsageError
from pipeline.provenance import Status, identity, output_state, provenance
from pipeline.read import ShardReader
from pipeline.run import progress, setup_logging, usage_exit
from pipeline.write import ShardWriter, write_text
from xp_utils import SAMPLE_WAVELENGTHS

SCRIPT = "train"
DEFAULT_RECIPE = Path(__file__).resolve().parent / "recipe.json"
LABELS = ("stellar_type", "stellar_type_err")
OBSERVED = ("flux", "flux_err", "plx", "plx_err")
EXTINCTION = ("stellar_ext", "stellar_ext_err")
RECIPE_KEYS = {
    "seed",
    "validation_fraction",
    "calibration_fraction",
    "hidden",
    "noise_hidden",
    "prior_components",
    "hide_parallax",
    "hide_photometry",
    "hide_bp",
    "rare_type_weight_cap",
    "stages",
}
FRACTIONS = {
    "validation_fraction",
    "calibration_fraction",
    "hide_parallax",
    "hide_photometry",
    "hide_bp",
}
SIZES = {"hidden", "noise_hidden", "prior_components", "steps", "max_epochs", "batch_size"}
INTEGERS = SIZES | {"seed"}
GROUPS = ("network", "extinction", "extinction_xi", "noise", "noise_level", "direct")
SELECTIONS = {"max_teff_err", "max_feh_err", "max_logg_err", "min_plx_snr", "min_ext"}
_GRADIENT_KEYS = {"name", "kind", "steps", "batch_size", "learning_rate", "train"}
_OPTIONAL_KEYS = {"select", "max_epochs", "weight_decay", "hide_parallax"}
STAGE_KEYS = {
    "likelihood": _GRADIENT_KEYS,
    "posterior": _GRADIENT_KEYS,
    "calibration": _GRADIENT_KEYS,
    "direct": _GRADIENT_KEYS,
    "stars": {"name", "kind", "reject_sigma", "reject_chi2_factor"},
}

CHECKPOINT_SECONDS = 20.0  # at most so much work is lost
MIN_TRAINING_STARS = 200
SIMULATED_STARS = 16_000  # of each kind, for the error factors
MIN_POOL_STARS = 30  # fewer cannot calibrate the pool: the forward model is left alone
MOST_REJECTED = 0.2  # of the stars: more are warned of


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
        _check_number(
            "the recipe",
            recipe,
            name,
            least=1 if name in SIZES else 0,
            most=1 if name in FRACTIONS else np.inf,
        )
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
    _check_keys(where, stage, STAGE_KEYS[kind], _OPTIONAL_KEYS if gradient else ())
    for name in sorted(set(stage) - {"name", "kind", "train", "select"}):
        _check_number(
            where,
            stage,
            name,
            least=1 if name in SIZES else 0,
            most=1 if name in FRACTIONS else np.inf,
        )
    if gradient:
        unknown = set(stage["train"]) - set(GROUPS)
        if unknown or not stage["train"]:
            raise ValueError(f"{where}: train is {stage['train']}; known: {', '.join(GROUPS)}")
        if ("direct" in stage["train"] and stage["train"] != ["direct"]) or (
            (kind == "direct") != ("direct" in stage["train"])
        ):
            raise ValueError(
                f"{where}: train is {stage['train']}; a stage of kind direct trains "
                '["direct"], and no other stage does'
            )
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
    if (
        isinstance(value, bool)
        or not isinstance(value, kind)
        or not least <= value <= most
        or not np.isfinite(value)
    ):
        article = "an integer" if kind is int else "a number"
        raise ValueError(
            f"{where}: {name} is {value!r}; {article} from {least} to {most} is expected"
        )


def read_training_data(path):
    """(ids (N,), table of the columns that training needs, wavelengths (66,) nm)."""
    with ShardReader(path, "gdr3_source_id") as reader:
        ids = reader.source_id()
        table = reader.read_table((*OBSERVED, *LABELS, *EXTINCTION))
        wavelengths = reader.attributes("flux").get("sample_wavelengths")
    problem = training_data_problem(table, wavelengths)
    if problem:
        raise ShardError(
            f"{path}: {problem}; make the file with compile_training_data.py, which "
            "leaves such stars out"
        )
    return ids, table, np.asarray(wavelengths)


def training_data_problem(table, wavelengths):
    """What is wrong with a training set, in words that name the dataset; None where nothing is."""
    n = len(table["plx"])
    if wavelengths is None:
        return "flux has no attribute sample_wavelengths"
    expected = SAMPLE_WAVELENGTHS
    if np.shape(wavelengths) != expected.shape or not np.allclose(wavelengths, expected):
        return (
            f"flux has {np.size(wavelengths)} sample_wavelengths that are not the "
            f"{len(expected)} of this version of the project"
        )
    shapes = dict.fromkeys(("flux", "flux_err"), (n, len(expected))) | dict.fromkeys(LABELS, (n, 3))
    for name, values in table.items():
        shape = shapes.get(name, (n,))
        if values.shape != shape or values.dtype.kind not in "fiu":
            return f"{name} is {values.dtype} of shape {values.shape}, expected floats {shape}"
    for name in (*LABELS, "plx", "plx_err"):
        least, words = (
            (-np.inf, "finite") if name == "stellar_type" else (0.0, "finite and positive")
        )
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
    from fitting.star_solver import StarData

    names = (*OBSERVED, *LABELS, *EXTINCTION) if labelled else OBSERVED
    return StarData(*(table[name][rows].astype("f4") for name in names))


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


def without_parallax(table):
    """The same columns, the parallaxes hidden."""
    return table | {name: np.full_like(table[name], np.nan) for name in ("plx", "plx_err")}


def infer_stars(trained, solver, table, rows):
    """Inferred columns of the stars `rows`, their labels hidden, as step 10 would have them."""
    from fitting.catalogue import infer

    return infer({name: table[name][rows] for name in OBSERVED}, solver, trained)


def trained_model(trainer, solver, table, calibration):
    """A `catalogue.TrainedModel`: the model with its training range, its error factors from
    simulated stars and, from the calibration stars, its pool and confidences."""
    from scipy.spatial import ConvexHull

    from fitting.catalogue import CONFIDENCE_CENTRE, TrainedModel
    from fitting.posterior import CURVATURE_ALONE, MODEL_ALONE

    kept = ~trainer.rejected & ~trainer.calibration
    hull = ConvexHull(trainer.stars.theta[kept].astype("f8")).equations
    values = np.column_stack([trainer.ext, trainer.observed.features])[kept]
    p = 2 * len(CONFIDENCE_CENTRE)
    trained = TrainedModel(
        trainer.model,
        np.zeros(p),
        np.ones(p),
        np.zeros((3, p)),
        np.zeros(3),
        hull,
        np.stack([values.min(0), values.max(0)]),
        CURVATURE_ALONE,
        MODEL_ALONE,
    )
    trained.error_factors = fit_error_factors(trained, solver, trainer)
    if len(calibration):
        if trainer.model.direct is not None and len(calibration) >= MIN_POOL_STARS:
            trained.pool_weights = fit_pool(trained, solver, table, calibration)
        fit_confidences(trained, solver, table, calibration)
    return trained


def fit_error_factors(trained, solver, trainer):
    """The factors (2, 6) of `posterior.widened` that simulated stars need, with a parallax (of 20%)
    and without; real stars lend them their errors and brightness."""
    from fitting.catalogue import infer
    from fitting.posterior import needed_error_factors, physical
    from fitting.simulation import simulate

    hosts, factors = {name: getattr(trainer.stars, name) for name in ("flux", "flux_err")}, []
    for with_parallax in (True, False):
        rng = np.random.default_rng(
            [trainer.recipe["seed"], len(trainer.recipe["stages"]), with_parallax]
        )
        table, u = simulate(trainer.model, hosts, SIMULATED_STARS, with_parallax, rng)
        columns = infer(table, solver, trained)
        factors.append(
            needed_error_factors(
                columns["model_params_est"],
                columns["model_params_err"],
                physical(u, trainer.model.flux),
            )
        )
    return np.array(factors)


def fit_pool(trained, solver, table, rows):
    """The weights (2,) of `posterior.pool` that make the labels of held-out stars most likely, with
    and without parallaxes."""
    from scipy.optimize import minimize

    from fitting.posterior import pool, pool_loss, widened
    from fitting.star_solver import StarData

    seen = []
    z = solver.model.flux.standardise(table["stellar_type"][rows]).numpy()
    for shown in (table, without_parallax(table)):
        data = StarData(*(shown[name][rows] for name in OBSERVED))
        direct = solver.direct(data)
        modes = solver.solve(data, direct[0])
        seen.append((widened(*modes, data.useful_parallax, trained.error_factors), *direct))

    def loss(ln_weights):
        return np.mean([pool_loss(pool(*one, np.exp(ln_weights)), z) for one in seen])

    return np.exp(minimize(loss, np.log([0.5, 0.5]), method="Nelder-Mead").x)


def fit_confidences(trained, solver, table, rows):
    """Put into `trained` logistic regressions for Teff, [Fe/H], log g, from held-out stars, with
    and without their parallaxes."""
    from sklearn.linear_model import LogisticRegression

    from fitting.catalogue import confidence_features, is_right
    from model import ln_flux_data

    observed = ln_flux_data(table["flux"][rows], table["flux_err"][rows])
    features, right = [], []
    for seen in (table, without_parallax(table)):
        columns = infer_stars(trained, solver, seen, rows)
        known = np.isfinite(seen["plx"][rows])
        features.append(confidence_features(columns, observed.features, known))
        right.append(
            is_right(columns, table["stellar_type"][rows], table["stellar_type_err"][rows])
        )
    features, right = np.concatenate(features), np.concatenate(right)
    good = np.isfinite(features).all(1)
    features, right = features[good], right[good]
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
    """ln flux (N, 66) of the estimates (N, 6) in the order of `posterior.PARAMETER_NAMES`."""
    z = (est[:, :3] - flux_model.theta_mean.numpy()) / flux_model.theta_scale.numpy()
    curve, _ = flux_model.ext_curve(est[:, 5].astype("f4"))
    return (
        flux_model.ln_flux(z.astype("f4")).numpy()
        - est[:, 3:4] * curve.numpy()
        + 2 * np.log(est[:, 4:5])
    )


MAIN_SEQUENCE = np.array(
    [
        [t, 0.0, np.interp(t, [3.5, 4.5, 5.8, 6.8], [4.8, 4.6, 4.4, 4.2])]
        for t in np.arange(3.6, 6.81, 0.4)
    ],
    "f4",
)
GIANT_BRANCH = np.array(
    [
        [t, -0.2, np.interp(t, [3.7, 4.2, 4.8, 5.1], [0.7, 1.7, 2.6, 3.4])]
        for t in np.arange(3.7, 5.11, 0.2)
    ],
    "f4",
)


def draw_figures(folder, trainer, columns, table, rows):
    """The figures of the training and of the validation stars `rows`, into `folder`."""
    from fitting.catalogue import CONFIDENCES, is_right
    from model import ln_flux_data
    from pipeline import figures

    model = trainer.model.flux
    wavelengths = model.sample_wavelengths.numpy()
    for kind in ("likelihood", "posterior", "direct"):
        stages = [s["name"] for s in trainer.recipe["stages"] if s["kind"] == kind]
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
    xi = np.linspace(-2, 2, 5)
    curve = np.log(model.ext_curve(xi.astype("f4"))[0].numpy())
    figures.extinction_curve(folder / "extinction_curve.png", wavelengths, xi, curve)
    tracks = {
        name: (theta, model.ln_flux(model.standardise(theta)).numpy())
        for name, theta in (("Main sequence", MAIN_SEQUENCE), ("Giant branch", GIANT_BRANCH))
    }
    figures.model_spectra(folder / "model_spectra.png", wavelengths, tracks)
    est, err = columns["stellar_params_est"], columns["stellar_params_err"]
    good = np.isfinite(est).all(1)
    seen = ln_flux_data(table["flux"][rows][good], table["flux_err"][rows][good])
    fitted = predicted_ln_flux(model, columns["model_params_est"][good])
    left = np.where(seen.used > 0, seen.value - fitted, np.nan)
    figures.residuals_by_wavelength(
        folder / "residuals.png", wavelengths, np.expm1(left), left / seen.rel_err
    )
    label, label_err = table["stellar_type"][rows], table["stellar_type_err"][rows]
    figures.inferred_against_label(
        folder / "validation.png",
        label,
        est[:, :3],
        label_err,
        err[:, :3],
        title="Validation stars, never trained on",
    )
    used = ~trainer.calibration
    stars = trainer.stars.take(used)
    figures.inferred_against_label(
        folder / "stars.png",
        stars.theta,
        trainer.fitted_type[used],
        stars.theta_err,
        title="Training stars: fitted with the label as prior, against the label",
        note=f"{trainer.rejected[used].sum()} of {len(stars)} rejected",
    )
    right = is_right(columns, label, label_err)
    names = ("Teff", "[Fe/H]", "log g")
    figures.reliability(
        folder / "confidence.png",
        {name: columns[c][good] for name, c in zip(names, CONFIDENCES, strict=True)},
        {name: right[good, k] for k, name in enumerate(names)},
    )


def finish(trainer, args, ids, table, calibration, held_out, made_by, log):
    """Write the model, its validation and its figures."""
    from fitting.catalogue import accuracy, format_accuracy
    from fitting.star_solver import StarSolver
    from model import export

    solver = StarSolver(trainer.model)  # one for all: compiling it takes seconds
    trained = trained_model(trainer, solver, table, calibration)
    export(trained.stellar.flux, args.output / "saved_model")
    columns = infer_stars(trained, solver, table, held_out)
    labels = {name: table[name][held_out] for name in LABELS}
    scores, alone = (
        accuracy(columns[f"{kind}_params_est"], columns[f"{kind}_params_err"], *labels.values())
        for kind in ("stellar", "model")
    )
    write_arrays(
        args.output / "validation.h5", columns | labels | {"gdr3_source_id": ids[held_out]}, made_by
    )
    write_text(args.output / "validation_ids.txt", "".join(f"{i}\n" for i in ids[held_out]))
    scores_text = json.dumps(scores | {"forward model alone": alone}, indent=1)
    write_text(args.output / "validation.json", scores_text + "\n")
    write_text(args.output / "history.json", json.dumps(trainer.history, indent=1) + "\n")
    draw_figures(args.output, trainer, columns, table, held_out)
    # The model comes last: where it is, all the rest is.
    write_arrays(
        args.output / "model.h5", trained.to_arrays(), made_by, recipe=json.dumps(trainer.recipe)
    )
    for factors, stars in zip(trained.error_factors, ("with", "without"), strict=True):
        log.info(
            "error factors of stars %s a parallax: Teff %.2f, [Fe/H] %.2f, log g %.2f, E %.2f",
            stars,
            *factors[:4],
            extra={"summary": True},
        )
    if trained.pool_weights[1]:
        log.info(
            "pool: weights %.2f of the forward model, %.2f of the direct estimate",
            *trained.pool_weights,
            extra={"summary": True},
        )
        log.info(
            "validation stars, the forward model alone:\n%s",
            format_accuracy(alone),
            extra={"summary": True},
        )
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
        yield (
            f"{last['rejected']} of {last['stars']} stars were rejected: the model does not fit "
            "them yet; give the stages before it more steps"
        )


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
                write_arrays(
                    checkpoint,
                    trainer.state(),
                    made_by,
                    settings=settings,
                    stage=trainer.stage,
                    epoch=trainer.epoch,
                    history=json.dumps(trainer.history),
                )
                saved = time.monotonic()
        summary = {
            k: float(f"{v:.4g}") if isinstance(v, float) else v
            for k, v in trainer.history[-1].items()
        }
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
        raise UsageError(
            f"{found}: a training was begun here; give --resume to go on with it, "
            "--overwrite to train anew, or another -o"
        )
    if found is model:
        raise UsageError(
            f"{model}: trained, but its checkpoint.h5 is gone, so there is nothing to "
            "go on from; give --overwrite to train anew, or another -o"
        )
    try:
        arrays, attrs = read_arrays(checkpoint)
    except ShardError as error:
        raise UsageError(f"{error}: give --overwrite to train anew") from error
    if attrs.get("settings") != settings:
        raise UsageError(
            f"{checkpoint}: made with another recipe or other training data; give the "
            "same ones, or --overwrite to train anew"
        )
    return arrays, attrs


def is_trained(args, recipe, former):
    """Whether nothing is left to do: all stages are done and the model is whole."""
    whole = output_state(args.output / "model.h5").status not in (Status.ABSENT, Status.PARTIAL)
    return former is not None and int(former[1]["stage"]) == len(recipe["stages"]) and whole


def start_trainer(table, training, calibration, wavelengths, recipe, former):
    """A `Trainer` of the stars `training` and `calibration` (rows), in its former state if there is
    one."""
    from fitting.training import Trainer

    rows = np.concatenate([training, calibration])
    trainer = Trainer(
        star_data(table, rows, labelled=True),
        wavelengths,
        recipe,
        np.arange(len(rows)) >= len(training),
    )
    if former is not None:
        try:
            trainer.restore(*former)
        except (KeyError, ValueError) as error:
            raise UsageError(
                f"the checkpoint is of another version of the project ({error}): give "
                "--overwrite to train anew, or use that version"
            ) from error
    return trainer


@usage_exit
def main(argv=None) -> int:
    args = parse_args(argv)
    recipe = read_recipe(args.recipe)
    ids, table, wavelengths = read_training_data(args.input)
    training, calibration, held_out = split_stars(ids, recipe)
    if len(training) < MIN_TRAINING_STARS or not len(held_out):
        raise UsageError(
            f"{args.input}: {len(training)} training and {len(held_out)} validation "
            f"stars; at least {MIN_TRAINING_STARS} and 1 are needed"
        )
    log = setup_logging(SCRIPT, args.log or args.output / "train.log")
    made_by = provenance(SCRIPT, argv, [args.input, args.recipe])
    settings = json.dumps({"recipe": recipe, "training_data": identity(args.input)}, sort_keys=True)
    former = former_state(args, settings)
    if is_trained(args, recipe, former):
        log.info("%s: already trained", args.output, extra={"summary": True})
        return 0
    from model import set_threads  # TensorFlow takes seconds to load: not before it is needed

    set_threads(args.threads)
    trainer = start_trainer(table, training, calibration, wavelengths, recipe, former)
    log.info(
        "%d training, %d calibration, %d validation stars; at stage %d, epoch %d",
        len(training),
        len(calibration),
        len(held_out),
        trainer.stage,
        trainer.epoch,
    )
    train(trainer, args.output / "checkpoint.h5", settings, made_by, log)
    finish(trainer, args, ids, table, calibration, held_out, made_by, log)
    return 0


if __name__ == "__main__":
    sys.exit(main())
