#!/usr/bin/env python3
"""Step 8: train the forward model, its noise model and the direct estimate on stars with labels.

    python train.py -i training_data.h5 -o output_folder/
    python train.py -i training_data.h5 -o output_folder/ --resume      after an interruption
    python train.py -i training_data.h5 -o output_folder/ --recipe my_recipe.toml

Reads training_data.h5 (step 7), which says what its labels are, and a recipe (default: recipe.toml;
docs/model.md explains it). A fifth of the stars, chosen by a hash of their source id, is held out
for validation and never used; some of the rest calibrate noise level, pool and confidences and are
not trained on either. The stages of the default recipe: model, mean extinction curve and noise from
the best stars; the curve's xi-variation from reddened stars; model and noise from all stars, by
likelihood; stars' own parameters given their labels, which rejects outliers; then model and noise
by how well the posterior finds the label; the noise level; at last the networks of the direct
estimate. Then stars simulated by the model tell by how much its errors are too small, and the
validation stars are inferred as any other star.

Steps are counted, and of stars that are fitted, calibrate or validate there are as many at most as
the recipe says: more stars take the time to read them, and no more. Their spectra are copied to a
scratch file without a name beside the output, 0.9 kB a star, which goes with the process.

output_folder/:

  model.h5               model, noise, prior, direct estimate, error factors, pool, confidences:
                         what step 10 needs
  saved_model/           the forward model as a TensorFlow SavedModel (see model.export)
  checkpoint.h5          state of the training, for --resume
  history.json           loss by stage and epoch
  validation.json        offset, scatter, pull width of the validation stars, and how many stars
                         were held out; also printed
  validation_ids.txt     their source ids
  validation.h5          their inferred parameters and labels (below)
  *.png                  figures: losses, extinction curve, model spectra, residuals, labels, ...
  report.html            a page on all that (XPFWD_REPORT=off: none)
  train.log

A run that was killed or ended by a signal goes on with --resume from its last checkpoint, to the
same result.
Exit status: 0 trained, 1 the disk is full, 2 wrong usage or input, 3 another process trains into
OUTPUT_FOLDER, 128 + n ended by signal n.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path

import numpy as np

from fitting.recipe import read_recipe
from fitting.report.after import after_training
from fitting.split import hash_fraction, held_out, split_stars
from fitting.training_set import LABELS, read_training_data
from pipeline import lease
from pipeline.beside import record_beside, require_beside
from pipeline.errors import ShardError, UsageError
from pipeline.provenance import provenance, see
from pipeline.read import check_whole, read_arrays
from pipeline.row_store import folder_beside
from pipeline.run import left_to, progress, setup_logging, usage_exit
from pipeline.schema import MODEL_FILE, Layout, resolved
from pipeline.select import add_release_argument, step_parser
from pipeline.whole_files import write_text
from pipeline.write import ShardWriter, write_arrays

SCRIPT = "train"
DEFAULT_RECIPE = Path(__file__).resolve().parent / "recipe.toml"

# What belongs to the model: patterns in the output folder.
OUTPUTS = ("saved_model/**/*", "validation*", "history.json", "*.png")
CHECKPOINT_SECONDS = 20.0  # at most so much work is lost
MIN_TRAINING_STARS = 200
MOST_REJECTED = 0.2  # of the stars: more are warned of


def parse_args(argv=None):
    parser = step_parser(__doc__, "validation")
    parser.add_argument("-i", "--input", type=Path, required=True, metavar="TRAINING_DATA.h5")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUTPUT_FOLDER")
    parser.add_argument("--recipe", type=Path, default=DEFAULT_RECIPE, help="default: recipe.toml")
    former = parser.add_mutually_exclusive_group()
    former.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    former.add_argument(
        "--check",
        action="store_true",
        help="as --resume; of a finished training all outputs are read whole, and made again "
        "where one is not what was written",
    )
    former.add_argument("--overwrite", action="store_true", help="train anew over a former result")
    add_release_argument(parser)
    parser.add_argument(
        "--parallax-scale",
        default="",
        metavar="WORDS",
        help="what the training's parallaxes are, where they are not Gaia's: the model says so, "
        "and step 10 leaves parallaxes out unless told otherwise",
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; default: all cores")
    parser.add_argument("--log", type=Path, help="default: OUTPUT_FOLDER/train.log")
    return parser.parse_args(argv)


# ---------------------------------------------------------------------------- what comes of it


def write_validation(path, data, validation, columns, layout, made_by):
    """validation.h5: inferred parameters and labels of the stars `validation` (rows)."""
    id_column = layout.release.id_column
    table = columns | {name: data.table[name][validation] for name in LABELS}
    with ShardWriter(path, len(validation), id_column, made_by) as writer:
        writer.create_columns(resolved("validation", layout))
        writer.write_table(table | {id_column: data.ids[validation]})


def validation_scores(columns, data, validation):
    """(accuracy of the catalogue, that of the forward model alone) on the stars `validation`."""
    from fitting.accuracy import accuracy
    from fitting.catalogue import label_estimates

    labels = [data.table[name][validation] for name in LABELS]
    return [
        accuracy(*label_estimates(columns, data.labels, kind), *labels, data.labels)
        for kind in ("stellar", "model")
    ]


def finish(trainer, args, data, validation, made_by, log):
    """Write the model, its validation and its figures."""
    from fitting.held_out import infer_stars, trained_model
    from fitting.model_file import save_model
    from fitting.star_solver import StarSolver
    from fitting.training_figures import draw_figures
    from model import export

    solver = StarSolver(trainer.model)  # one for all: compiling it takes seconds
    trained = trained_model(trainer, solver)
    trained = dataclasses.replace(trained, parallax_scale=args.parallax_scale)
    export(trained.stellar.flux, args.output / "saved_model")
    seen = data.rows(validation)
    columns = infer_stars(trained, solver, seen, slice(None))
    scores, alone = validation_scores(columns, data, validation)
    layout = Layout(args.release, data.labels)
    write_validation(args.output / "validation.h5", data, validation, columns, layout, made_by)
    ids_text = "".join(f"{i}\n" for i in data.ids[validation])
    write_text(args.output / "validation_ids.txt", ids_text)
    n_held_out = int(held_out(data.ids, trainer.recipe).sum())
    scores |= {"held_out": n_held_out}
    scores_text = json.dumps(scores | {"forward model alone": alone}, indent=1)
    write_text(args.output / "validation.json", scores_text + "\n")
    write_text(args.output / "history.json", json.dumps(trainer.history, indent=1) + "\n")
    draw_figures(args.output, trainer, columns, seen)
    # The model comes last: where it is, all the rest is, and is as it says.
    made_by = made_by | record_beside(args.output, OUTPUTS)
    recipe = json.dumps(dataclasses.asdict(trainer.recipe))
    save_model(args.output / MODEL_FILE, trained, made_by, recipe)
    log_outcome(trained, scores, alone, data.labels, log)


def log_outcome(trained, scores, alone, labels, log):
    """Log and print factors, pool and accuracy."""
    from fitting.accuracy import format_accuracy

    say = {"extra": {"summary": True}}
    titles = [p.title for p in labels.parameters]
    errors = trained.errors
    for k, level in enumerate(errors.levels):
        for factors, stars in zip(errors.factors[:, k], ("with", "without"), strict=True):
            words = ", ".join(f"{t} {f:.2f}" for t, f in zip(titles, factors, strict=True))
            log.info(
                "error factors of stars %s a parallax, S/N %.0f: %s",
                stars,
                np.exp(-level),
                words,
                **say,
            )
        words = "pool, S/N %.0f: weights %.2f of the forward model, %.2f of the direct estimate"
        log.info(words, np.exp(-level), *errors.pool_weights[k], **say)
    if errors.pool_weights[:, 1].any():
        text = format_accuracy(alone, labels)
        log.info("validation stars, the forward model alone:\n%s", text, **say)
    log.info("validation stars:\n%s", format_accuracy(scores, labels), **say)


# ------------------------------------------------------------------------------------ the script


def stage_warnings(entries):
    """What the history entries of a stage tell that a user should know, as sentences."""
    refused = sum(entry.get("steps_refused", 0) for entry in entries)
    if refused:
        yield f"{refused} steps were refused, as their gradient was not finite"
    last = entries[-1]
    if "skipped" in last:
        yield f"skipped: {last['skipped']}"
    if last.get("rejected", 0) > MOST_REJECTED * last["stars"]:
        yield (
            f"{last['rejected']} of {last['stars']} stars were rejected: the model does not fit "
            "them yet; give the stages before it more steps"
        )


def train(trainer, checkpoint, settings, made_by, log):
    """Run all epochs that are left, with checkpoints at the ends of stages and in time between."""
    saved = time.monotonic()
    stages = trainer.recipe.stages
    for stage in progress(range(trainer.stage, len(stages)), SCRIPT, unit="stage"):
        first = len(trainer.history) - trainer.epoch
        while trainer.stage == stage:
            ended = trainer.run_epoch()
            log.info("%s", trainer.history[-1])
            if ended or time.monotonic() - saved > CHECKPOINT_SECONDS:
                attrs = {"settings": settings, "history": json.dumps(trainer.history)}
                attrs |= {"stage": trainer.stage, "epoch": trainer.epoch}
                write_arrays(checkpoint, trainer.state(), made_by, **attrs)
                saved = time.monotonic()
        summary = {
            k: float(f"{v:.4g}") if isinstance(v, float) else v
            for k, v in trainer.history[-1].items()
        }
        log.info("stage %s done: %s", stages[stage].name, summary, extra={"summary": True})
        for sentence in stage_warnings(trainer.history[first:]):
            log.warning("stage %s: %s", stages[stage].name, sentence)


def former_state(args, settings):
    """What --resume goes on from: (arrays, attributes) of the checkpoint, None where none is there.
    UsageError where a former result would be overwritten, or the checkpoint is of another training.
    """
    checkpoint, model = args.output / "checkpoint.h5", args.output / MODEL_FILE
    if args.overwrite:
        model.unlink(missing_ok=True)
        checkpoint.unlink(missing_ok=True)
    found = next((path for path in (checkpoint, model) if path.exists()), None)
    if found is None:
        return None
    if not (args.resume or args.check):
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


def is_trained(args, recipe, former, log) -> bool:
    """Whether nothing is left to do: all stages are done and the model is whole; with --check, all
    else in the output folder too."""
    model = args.output / MODEL_FILE
    if former is None or int(former[1]["stage"]) < len(recipe.stages) or not model.exists():
        return False
    try:
        attrs = check_whole(model, deep=args.check)
        if args.check:
            require_beside(model, attrs)
    except ShardError as error:
        log.warning("the outputs are made again: %s", error)
        return False
    return True


def start_trainer(data, training, calibration, release, recipe, former):
    """A `Trainer` of the stars `training` and `calibration` (rows), in its former state if there is
    one."""
    from fitting.batches import TrainingStars
    from fitting.training import Trainer
    from xp_utils import flux_channels, load_xp_basis

    rows = np.concatenate([training, calibration])
    basis = load_xp_basis(release)
    stars = data.stored_stars(rows, flux_channels(basis))
    g = data.g_magnitudes(release)[rows]
    calibrating = np.arange(len(rows)) >= len(training)
    draw = hash_fraction(data.ids[rows], salt=2)
    stars = TrainingStars(stars, calibrating, g, basis, data.noise, draw)
    trainer = Trainer(stars, data.labels, recipe, release.name, data.basis)
    if former is not None:
        try:
            trainer.restore(*former)
        except (KeyError, ValueError) as error:
            raise UsageError(
                f"the checkpoint is of another version of the project ({error}): give "
                "--overwrite to train anew, or use that version"
            ) from error
    return trainer


def check_recipe_fits(recipe, labels, path):
    """UsageError where labels need a stage that the recipe has not."""
    alone = [label.title for label in labels if not label.forward]
    if alone and not recipe.of_kind("direct"):
        raise UsageError(
            f"{path}: has no stage of kind direct, which alone gives {', '.join(alone)}"
        )


@usage_exit(again="run the same command with --resume, which goes on from its last checkpoint")
def main(argv=None) -> int:
    args = parse_args(argv)
    seen = [see(path) for path in (args.input, args.recipe) if path.is_file()]
    recipe = read_recipe(args.recipe)
    data = read_training_data(args.input, args.release, folder_beside(args.output))
    check_recipe_fits(recipe, data.labels, args.recipe)
    training, _, validation = split_stars(data.ids, recipe)
    if len(training) < MIN_TRAINING_STARS or not len(validation):
        raise UsageError(
            f"{args.input}: {len(training)} training and {len(validation)} validation "
            f"stars; at least {MIN_TRAINING_STARS} and 1 are needed"
        )
    log = setup_logging(SCRIPT, args.log or args.output / "train.log")
    # They are read to their ends, and may change from now on: the results say what was read.
    made_by = dict(provenance(SCRIPT, argv, seen, args.release))
    with lease.taken(args.output / MODEL_FILE) as other:
        if other is not None:
            return left_to(other, args.output, log)
        return make_model(args, recipe, data, made_by, seen[0], log)


def make_model(args, recipe, data, made_by, training_data, log) -> int:
    """All that is left to do, in an output folder that is this process's alone; the exit status.

    training_data: the file of `data`, as it was `Seen`.
    """
    training, calibration, validation = split_stars(data.ids, recipe)
    identity = training_data.entry["identity"]
    chosen = {"recipe": dataclasses.asdict(recipe), "training_data": identity}
    if args.parallax_scale:
        chosen["parallax_scale"] = args.parallax_scale
    settings = json.dumps(chosen, sort_keys=True)
    former = former_state(args, settings)
    if is_trained(args, recipe, former, log):
        log.info("%s: already trained", args.output, extra={"summary": True})
        after_training(args, log)
        return 0
    from model import set_threads  # TensorFlow takes seconds to load: not before it is needed

    set_threads(args.threads)
    trainer = start_trainer(data, training, calibration, args.release, recipe, former)
    log.info(
        "%d training, %d calibration, %d validation stars (of %d held out); labels %s; "
        "at stage %d, epoch %d",
        len(training),
        len(calibration),
        len(validation),
        held_out(data.ids, recipe).sum(),
        data.labels.words,
        trainer.stage,
        trainer.epoch,
    )
    train(trainer, args.output / "checkpoint.h5", settings, made_by, log)
    finish(trainer, args, data, validation, made_by, log)
    after_training(args, log)
    return 0


if __name__ == "__main__":
    sys.exit(main())
