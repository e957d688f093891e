"""Accuracy, pulls and flags against brightness, and of what is no ordinary star.

    python benchmarks/calibration_faint.py [--model FOLDER --training-data FILE]

Shows the validation stars of a trained model (the stars never trained on) as they are and as they
would look at fainter G magnitudes (fitting/dimming.py), with their parallax and with it hidden, and
infers them. Prints robust scatter (1.4826 MAD), pull width and the fraction of pulls beyond 3 of
each label, and the fraction of stars with any flag but those of the confidences. Then the same
stars with wrong parallaxes (of the same relative error), in blends with others, and in the place of
their spectra hot stars, white dwarfs, quasars, galaxies and what nothing explains
(fitting/strange.py): how many come out without a flag, and wrong. Writes faint.json to --out. Takes
about two minutes.
"""

import argparse
import dataclasses
import sys

import common  # sets one thread, before NumPy is loaded
import numpy as np

from pipeline.run import usage_exit
from pipeline.schema import flags, load_release

MAGNITUDES = (None, 14.0, 15.0, 16.0, 17.0, 17.6)  # None: as they are
WRONG_PARALLAXES = {"doubled": 2.0, "halved": 0.5, "3 times": 3.0, "a third": 1 / 3}
WRONG_SIGMAS = 3.0
SEED = 0


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    common.add_arguments(parser)
    return parser.parse_args(argv)


def read_stars(args, labels):
    """`batches.TrainingStars` of the training set, and rows of the validation stars in it."""
    from fitting.batches import TrainingStars
    from fitting.training_set import read_training_data
    from xp_utils import flux_channels, load_xp_basis

    release = load_release()
    data = read_training_data(args.training_data, release)
    rows = common.validation_rows(args, data.ids)
    basis = load_xp_basis(release)
    held_out = np.isin(np.arange(len(data.ids)), rows)
    stars = data.star_data(np.arange(len(data.ids)), flux_channels(basis))
    g = data.g_magnitudes(release)
    return TrainingStars(stars, held_out, g, basis, data.noise), rows


def as_table(data):
    """`StarData` as `catalogue.infer` takes it."""
    from fitting.observed import FINE

    values = (data.flux, data.flux_err, data.parallax, data.parallax_err)
    table = dict(zip(("flux", "flux_err", "plx", "plx_err"), values, strict=True))
    return table if data.fine is None else table | {FINE: data.fine}


def beside_confidences(quality, labels):
    """Where a flag is set that is not of a confidence (N,) bool."""
    bits = flags.quality_flag(labels)
    own = sum(bits[flags.confidence_flag(x.name)].value for x in labels)
    return (quality & ~np.uint32(own)) > 0


def ordinary(stars, rows, trained, solver):
    """{words: scores} of the stars `rows` at several brightnesses."""
    from fitting.accuracy import scores
    from fitting.catalogue import infer, label_estimates

    labels, out = trained.stellar.labels, {}
    label, label_err = stars.data.theta[rows], stars.data.theta_err[rows]
    for g in MAGNITUDES:
        data, rng = stars.data.take(rows), np.random.default_rng(SEED)
        if g is not None:
            own = stars.g[rows]
            data = stars.dimming.show(data, np.maximum(g - own, 0.0), rng, own)
        for words, shown in (("parallax", data), ("none", data.without_parallax())):
            columns = infer(as_table(shown), solver, trained)
            est, err = label_estimates(columns, labels)
            good = np.isfinite(est).all(1)
            one = scores(est[good], err[good], label[good], label_err[good], labels)
            flagged = beside_confidences(columns["quality_flags"], labels)
            name = f"{'as they are' if g is None else f'G = {g:g}'}, {words}"
            out[name] = one | {"flagged": float(flagged.mean())}
            print_line(name, out[name], labels)
    return out


def print_line(name, one, labels):
    cells = [
        f"{one[x.name]['scatter']:8.{1 if x.scale != 1 else 3}f} {one[x.name]['pull_width']:5.2f} "
        f"{one[x.name]['frac_gt3']:5.1%}"
        for x in labels
    ]
    print(f"{name:24s}{' |'.join(cells)} | {one['flagged']:6.1%}", flush=True)


def odd_things(stars, rows, labels):
    """{words: `StarData`} of what is no ordinary star, made of the stars `rows`."""
    from fitting.strange import OBJECTS, StrangeThings

    rng, data = np.random.default_rng(SEED), stars.data.take(rows)
    for words, factor in WRONG_PARALLAXES.items():
        plx, err = data.parallax * factor, data.parallax_err * factor
        yield f"parallax {words}", dataclasses.replace(data, parallax=plx, parallax_err=err)
    strange = StrangeThings(stars, labels)
    yield "blend", strange.blends(rows, rng)
    for kind, words in enumerate(OBJECTS):
        yield words, strange.objects(rows, rng, kind)


def unusual(stars, rows, trained, solver):
    """{words: shares} of what is no ordinary star: flagged, unflagged and wrong, and confident."""
    from fitting.catalogue import infer, label_estimates

    labels, out = trained.stellar.labels, {}
    label, label_err = stars.data.theta[rows], stars.data.theta_err[rows]
    print(f"\n{'':24s}flagged  unflagged and wrong  confidence above 1/2 in " + labels.words)
    for words, data in odd_things(stars, rows, labels):
        columns = infer(as_table(data), solver, trained)
        est, err = label_estimates(columns, labels)
        flagged = beside_confidences(columns["quality_flags"], labels)
        pull = np.abs(est - label) / np.hypot(err, label_err)
        wrong = (pull > WRONG_SIGMAS).any(1) | ~np.isfinite(est).all(1)
        trusted = {
            x.name: float(np.mean(columns[f"{x.name}_confidence"] > flags.CONFIDENCE_LIMIT))
            for x in labels
        }
        out[words] = {
            "flagged": float(flagged.mean()),
            "unflagged_and_wrong": float(np.mean(~flagged & wrong)),
            "confident": trusted,
        }
        cells = " ".join(f"{share:6.1%}" for share in trusted.values())
        print(
            f"{words:24s}{out[words]['flagged']:7.1%} "
            f"{out[words]['unflagged_and_wrong']:20.1%}  {cells}",
            flush=True,
        )
    return out


@usage_exit
def main(argv=None):
    args = parse_args(argv)
    common.check_inputs(args)
    trained, solver = common.load_solver(args)
    labels = trained.stellar.labels
    stars, rows = read_stars(args, labels)
    print(f"{len(rows)} validation stars; scatter, pull width, beyond 3 sigma of ", end="")
    print(", ".join(f"{x.title} ({x.shown_unit})" for x in labels), "| flagged")
    result = {"ordinary": ordinary(stars, rows, trained, solver)}
    result["unusual"] = unusual(stars, rows, trained, solver)
    common.write_json(args.out / "faint.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
