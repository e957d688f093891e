"""What more stars with labels would bring: the direct estimate trained on some of them.

    python benchmarks/learning_curve.py --training-data FILE [--steps 20000]

Trains the networks of the direct estimate (the recipe's stage of kind `direct`, alone) on an
eighth, a quarter, half and all of the training stars, chosen by a hash of their source id, each
share within the next. As in the recipe, a stage has --steps steps, but no more than its
`max_epochs` allows: fewer stars are not learned by heart. Prints scatter (1.4826 MAD) and pull
width of the validation stars, as they are, with their parallax and with it hidden. Judged is the
direct estimate: neither the forward model nor what calibrates the errors is there.

Writes learning_curve.json and learning_curve.png to --out. Takes about 10 minutes for 16,000
training stars, in proportion to --steps; so it is no part of `make calibration`.
"""

import argparse
import dataclasses
import sys
import time
from pathlib import Path

import common  # sets one thread, before NumPy is loaded
import numpy as np

from pipeline.errors import UsageError
from pipeline.run import usage_exit
from pipeline.schema import load_release

SHARES = (1 / 8, 1 / 4, 1 / 2, 1)
SALT = 2  # of the hash that chooses stars: 0 and 1 split off validation and calibration
CASES = ("with their parallax", "parallax hidden")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    common.add_arguments(parser, model=False)
    recipe = common.ROOT / "recipe.toml"
    parser.add_argument("--recipe", type=Path, default=recipe, help="default: recipe.toml")
    parser.add_argument("--steps", type=int, help="of a training; default: the recipe's")
    return parser.parse_args(argv)


def direct_recipe(path, steps):
    """The `Recipe` of a file, of its stages those of kind `direct` alone, with so many steps."""
    from fitting.recipe import read_recipe

    recipe = read_recipe(path)
    stages = recipe.of_kind("direct")
    if not stages:
        raise UsageError(f"{path}: has no stage of kind direct; give one that has, as recipe.toml")
    if steps is not None:
        stages = [dataclasses.replace(stage, steps=steps) for stage in stages]
    return dataclasses.replace(recipe, stages=tuple(stages))


def subset(rows, ids, share):
    """Those of the rows whose source ids have a hash below `share`."""
    from fitting.split import hash_fraction

    return rows[hash_fraction(ids[rows], SALT) < share]


def trained_direct(data, rows, release, recipe):
    """(`StellarModel` whose direct estimate alone is trained, on the stars `rows`; its steps)."""
    from train import start_trainer

    trainer = start_trainer(data, rows, np.array([], int), release, recipe, None)
    steps = 0
    while trainer.stage < len(recipe.stages):
        steps += trainer.stage_plan(recipe.stages[trainer.stage])[2]  # of an epoch
        trainer.run_epoch()
    return trainer.model, steps


def validation_scores(model, data, labels):
    """{case: {label name: `accuracy.scores`}} of `StarData` with labels, by the direct estimate."""
    from fitting.accuracy import scores
    from fitting.direct import direct_inputs

    out = {}
    for words, shown in zip(CASES, (data, data.without_parallax()), strict=True):
        z, sigma = (x.numpy().astype("f8") for x in model.direct.estimate(direct_inputs(shown)))
        est, err = z * model.label_scale + model.label_mean, sigma * model.label_scale
        out[words] = scores(est, err, data.theta, data.theta_err, labels)
    return out


def print_line(n, steps, seconds, scores, labels):
    for words, one in scores.items():
        cells = " | ".join(
            f"{one[x.name]['scatter']:8.{1 if x.scale != 1 else 3}f} "
            f"{one[x.name]['pull_width']:5.2f}"
            for x in labels
        )
        print(f"{n:7d} {steps:6d} {seconds:5.0f} s  {words:20s} {cells}", flush=True)


def draw(path, result, labels):
    from pipeline import figures

    def of(words, key):
        return [[one["scores"][words][x.name][key] for x in labels] for one in result]

    cases = {
        (words, ""): {
            "scatter": np.array(of(words, "scatter")) / labels.array("scale"),
            "pull_width": np.array(of(words, "pull_width")),
        }
        for words in CASES
    }
    figures.scores_against(
        path,
        [one["training_stars"] for one in result],
        cases,
        "training stars",
        title="The direct estimate of validation stars, by how many stars it was trained on",
        log_x=True,
        labels=labels,
    )


@usage_exit
def main(argv=None):
    args = parse_args(argv)
    common.require(args.training_data)
    args.out.mkdir(parents=True, exist_ok=True)
    from fitting.split import split_stars
    from fitting.training_set import read_training_data
    from model import set_threads
    from xp_utils import flux_channels, load_xp_basis

    set_threads(1)
    release = load_release()
    recipe = direct_recipe(args.recipe, args.steps)
    data = read_training_data(args.training_data, release)
    training, _, held_out = split_stars(data.ids, recipe)
    validation = data.star_data(held_out, flux_channels(load_xp_basis(release)))
    print(f"{len(held_out)} validation stars; scatter and pull width of ", end="")
    print(", ".join(f"{x.title} ({x.shown_unit})" for x in data.labels))
    print("  stars  steps    CPU")
    result = []
    for share in SHARES:
        rows, start = subset(training, data.ids, share), time.process_time()
        model, steps = trained_direct(data, rows, release, recipe)
        seconds = time.process_time() - start
        scores = validation_scores(model, validation, data.labels)
        result.append({"training_stars": len(rows), "steps": steps, "seconds": seconds})
        result[-1]["scores"] = scores
        print_line(len(rows), steps, seconds, scores, data.labels)
    common.write_json(args.out / "learning_curve.json", result)
    draw(args.out / "learning_curve.png", result, data.labels)
    return 0


if __name__ == "__main__":
    sys.exit(main())
