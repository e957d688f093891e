"""How honest the errors of real stars are, by type, brightness and extinction.

    python benchmarks/calibration_pulls.py [--model FOLDER --training-data FILE]

Infers the validation stars of a trained model (the stars never trained on), with their parallax and
with it hidden, and compares them with their labels. A star's pull is (inferred - label) over both
errors in quadrature, the labels' as they are in the training data. Prints offset, scatter, pull
width (both robust: 1.4826 MAD) and the fraction of pulls beyond 3 in groups of stars, marks what is
outside the targets, and writes pulls.json and, with and without parallax, pulls_*.png and, for the
confidences, reliability_*.png to --out. Also for the forward model alone. Takes half a minute.
"""

import argparse
import sys

import common  # sets one thread, before NumPy is loaded
import numpy as np

from pipeline.run import usage_exit
from pipeline.schema import load_release

MIN_STARS = 30  # fewer in a group say little
# Targets: pull width of all stars and of the groups that have one of their own, fraction beyond 3
# sigma, offset in the units shown.
ALL_WIDTH, GROUP_WIDTH, BEYOND = (0.93, 1.12), (0.88, 1.2), 0.03
OFFSET = {"teff": 6.0, "feh": 0.01, "logg": 0.015}
WITH_TARGET = ("giants", "dwarfs", "G < 11", "G 11-13", "G > 13")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    common.add_arguments(parser)
    return parser.parse_args(argv)


def read_stars(args):
    """Columns of the validation stars from the training data, with `g` (mag)."""
    names = ("stellar_type", "stellar_type_err", "stellar_ext", "phot_g_mean_flux")
    names = (*common.observed_names(args), *names)
    stars = common.validation_stars(args, names)
    stars["g"] = load_release().g_magnitudes(stars["phot_g_mean_flux"])
    return stars


def inferred(stars, trained, solver, with_parallax):
    """The stars with what `catalogue.infer` finds."""
    from fitting.catalogue import infer
    from fitting.observed import FINE, OBSERVED, without_parallax

    seen = {name: stars[name] for name in (*OBSERVED, FINE) if name in stars}
    return stars | infer(seen if with_parallax else without_parallax(seen), solver, trained)


def groups(stars, labels):
    """{name: rows (N,) bool}, by label, G and the reddening that training was given."""
    from fitting.accuracy import groups_of

    g, ext, label = stars["g"], stars["stellar_ext"], stars["stellar_type"]
    of_label = groups_of(label, labels)
    out = of_label | {
        "G < 11": g < 11,
        "G 11-13": (g >= 11) & (g < 13),
        "G > 13": g >= 13,
        "E < 0.1": ext < 0.1,
        "E 0.1-0.5": (ext >= 0.1) & (ext < 0.5),
        "E > 0.5": ext >= 0.5,
        "no flag": stars["quality_flags"] == 0,
    }
    if {"teff", "feh", "logg"} <= labels.place.keys():
        teff, feh, logg = (label[:, labels.place[name]] for name in ("teff", "feh", "logg"))
        out["cool dwarfs, < 4.5 kK"] = of_label["dwarfs"] & (teff < 4.5)
        out |= {"[Fe/H] < -1": feh < -1, "log g < 1.5": logg < 1.5}
    return out


def group_scores(stars, labels, kind):
    """{group: {"n": stars, label name: `accuracy.scores`}}; kind "stellar": the catalogue's
    estimates, "model": those of the forward model alone."""
    from fitting.accuracy import scores
    from fitting.catalogue import label_estimates

    est, err = label_estimates(stars, labels, kind)
    label, label_err = stars["stellar_type"], stars["stellar_type_err"]
    finite, out = np.isfinite(est).all(1) & np.isfinite(err).all(1), {}
    for name, rows in groups(stars, labels).items():
        rows = rows & finite
        if rows.sum() >= MIN_STARS:
            found = scores(est[rows], err[rows], label[rows], label_err[rows], labels)
            out[name] = {"n": int(rows.sum())} | found
    return out


def missed(group, name, one):
    """What of a label's scores in a group is outside the targets, as a text."""
    words = []
    low, high = ALL_WIDTH if group == "all" else GROUP_WIDTH
    if group in ("all", *WITH_TARGET) and not low <= one["pull_width"] <= high:
        words.append("width")
    if group == "all" and one["frac_gt3"] > BEYOND:
        words.append("beyond 3")
    if group == "all" and abs(one["offset"]) > OFFSET.get(name, np.inf):
        words.append("offset")
    return ", ".join(words)


def print_table(table, labels):
    print("stars                      n  label      offset  scatter  pull width  beyond 3")
    for group, of_group in table.items():
        for label in labels:
            one, digits = of_group[label.name], 3 if label.scale == 1 else 1
            words = missed(group, label.name, one)
            print(
                f"{group:22s} {of_group['n']:5d}  {label.title:8s} "
                f"{one['offset']:8.{digits}f} {one['scatter']:8.{digits}f} "
                f"{one['pull_width']:11.2f} {one['frac_gt3']:9.1%}"
                f"{'  outside: ' + words if words else ''}"
            )


def as_rows(table, labels):
    """The table as `figures.pulls_in_bins` takes it: arrays (K,) in the stored units."""
    scale = labels.array("scale")
    for group, of_group in table.items():
        keys = ("pull_width", "frac_gt3", "scatter")
        row = {key: np.array([of_group[x.name][key] for x in labels]) for key in keys}
        yield {"group": group, "n": of_group["n"]} | row | {"scatter": row["scatter"] / scale}


def draw(folder, stars, table, labels, suffix):
    from fitting.catalogue import label_estimates
    from fitting.confidence import is_right
    from pipeline import figures

    rows = list(as_rows(table, labels))
    figures.pulls_in_bins(folder / f"pulls_{suffix}.png", rows, labels=labels)
    est, err = label_estimates(stars, labels)
    right = is_right(est, err, stars["stellar_type"], stars["stellar_type_err"], labels)
    good = np.isfinite(est).all(1)
    figures.reliability(
        folder / f"reliability_{suffix}.png",
        {x.title: stars[f"{x.name}_confidence"][good] for x in labels},
        {x.title: right[good, k] for k, x in enumerate(labels)},
    )


@usage_exit
def main(argv=None):
    args = parse_args(argv)
    common.check_inputs(args)
    trained, solver = common.load_solver(args)
    labels, known, result = trained.stellar.labels, read_stars(args), {}
    print(f"{len(known['g'])} validation stars (spectro-photometric parallaxes, not Gaia's)")
    for words, with_parallax in (("20% parallax", True), ("parallax hidden", False)):
        stars = inferred(known, trained, solver, with_parallax)
        for kind, title in (("stellar", "catalogue"), ("model", "forward model alone")):
            shown = labels if kind == "stellar" else labels.forward
            table = group_scores(stars, labels, kind)
            print(f"\n{words}: {title}")
            print_table(table, shown)
            result[f"{words}, {title}"] = table
            if kind == "stellar":
                draw(args.out, stars, table, labels, words.replace(" ", "_").replace("%", ""))
    common.write_json(args.out / "pulls.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
