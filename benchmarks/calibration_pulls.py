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

G_ZERO_POINT = 25.6874  # Vega; Gaia EDR3 documentation, section 5.4.1
LABELS = ("Teff", "[Fe/H]", "log g")
UNITS = np.array([1e3, 1.0, 1.0])
MIN_STARS = 30  # fewer in a group say little
# Targets: pull width, fraction beyond 3 sigma, offset in (K, dex, dex); the widths of the groups
# that have a target of their own, and of all stars.
ALL_WIDTH, GROUP_WIDTH, BEYOND, OFFSET = (0.93, 1.12), (0.88, 1.2), 0.03, (6.0, 0.01, 0.015)
WITH_TARGET = ("giants", "dwarfs", "G < 11", "G 11-13", "G > 13")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    common.add_arguments(parser)
    return parser.parse_args(argv)


def read_stars(args):
    """Columns of the validation stars from the training data, with `g` (mag)."""
    from fitting.catalogue import OBSERVED

    names = (*OBSERVED, "stellar_type", "stellar_type_err", "stellar_ext", "phot_g_mean_flux")
    stars = common.validation_stars(args, names)
    stars["g"] = G_ZERO_POINT - 2.5 * np.log10(stars["phot_g_mean_flux"])
    return stars


def inferred(stars, trained, solver, with_parallax):
    """The stars with what `catalogue.infer` finds."""
    from fitting.catalogue import OBSERVED, infer
    from train import without_parallax

    seen = {name: stars[name] for name in OBSERVED}
    return stars | infer(seen if with_parallax else without_parallax(seen), solver, trained)


def groups(stars):
    """{name: rows (N,) bool}, by label, G and the reddening that training was given."""
    from fitting.catalogue import GIANT_LOGG

    g, ext, logg = stars["g"], stars["stellar_ext"], stars["stellar_type"][:, 2]
    giant, teff, feh = logg < GIANT_LOGG, stars["stellar_type"][:, 0], stars["stellar_type"][:, 1]
    return {
        "all": np.ones(len(g), bool),
        "giants": giant,
        "dwarfs": ~giant,
        "G < 11": g < 11,
        "G 11-13": (g >= 11) & (g < 13),
        "G > 13": g >= 13,
        "E < 0.1": ext < 0.1,
        "E 0.1-0.5": (ext >= 0.1) & (ext < 0.5),
        "E > 0.5": ext >= 0.5,
        "cool dwarfs, < 4.5 kK": ~giant & (teff < 4.5),
        "[Fe/H] < -1": feh < -1,
        "log g < 1.5": logg < 1.5,
        "no flag": (stars["quality_flags"] == 0),
    }


def scores(stars, rows, kind="stellar"):
    """Accuracy of some stars: n, and arrays (3,) offset, scatter, pull_width, frac_gt3; kind
    "stellar": the catalogue's estimates, "model": those of the forward model alone."""
    from fitting.catalogue import robust_width

    est, err = (stars[f"{kind}_params_{name}"][:, :3] for name in ("est", "err"))
    label, label_err = stars["stellar_type"], stars["stellar_type_err"]
    rows = rows & np.isfinite(est).all(1) & np.isfinite(err).all(1)
    off = (est - label)[rows].astype("f8")
    pull = off / np.hypot(err, label_err)[rows]
    return {
        "n": int(rows.sum()),
        "offset": np.median(off, 0),
        "scatter": np.array([robust_width(x) for x in off.T]),
        "pull_width": np.array([robust_width(x) for x in pull.T]),
        "frac_gt3": np.mean(np.abs(pull) > 3, 0),
    }


def misses(name, one):
    """What of a group is outside the targets, a text a label."""
    out = [[] for _ in LABELS]
    low, high = ALL_WIDTH if name == "all" else GROUP_WIDTH
    for k in range(len(LABELS)):
        if name in ("all", *WITH_TARGET) and not low <= one["pull_width"][k] <= high:
            out[k].append("width")
        if name == "all" and one["frac_gt3"][k] > BEYOND:
            out[k].append("beyond 3")
        if name == "all" and abs(one["offset"][k] * UNITS[k]) > OFFSET[k]:
            out[k].append("offset")
    return [", ".join(words) for words in out]


def print_table(table):
    print("stars                      n  label      offset  scatter  pull width  beyond 3")
    for name, one in table.items():
        for k, label in enumerate(LABELS):
            digits = 1 if k == 0 else 3
            missed = misses(name, one)[k]
            print(
                f"{name:22s} {one['n']:5d}  {label:8s} {one['offset'][k] * UNITS[k]:8.{digits}f} "
                f"{one['scatter'][k] * UNITS[k]:8.{digits}f} {one['pull_width'][k]:11.2f} "
                f"{one['frac_gt3'][k]:9.1%}{'  outside: ' + missed if missed else ''}"
            )


def draw(folder, stars, table, suffix):
    from fitting.catalogue import CONFIDENCES, is_right
    from pipeline import figures

    rows = [{"group": name} | one for name, one in table.items()]
    figures.pulls_in_bins(folder / f"pulls_{suffix}.png", rows)
    right = is_right(stars, stars["stellar_type"], stars["stellar_type_err"])
    good = np.isfinite(stars["stellar_params_est"]).all(1)
    figures.reliability(
        folder / f"reliability_{suffix}.png",
        {label: stars[c][good] for label, c in zip(LABELS, CONFIDENCES, strict=True)},
        {label: right[good, k] for k, label in enumerate(LABELS)},
    )


@usage_exit
def main(argv=None):
    args = parse_args(argv)
    common.check_inputs(args)
    trained, solver = common.load_solver(args)
    known, result = read_stars(args), {}
    print(f"{len(known['g'])} validation stars (spectro-photometric parallaxes, not Gaia's)")
    for words, with_parallax in (("20% parallax", True), ("parallax hidden", False)):
        stars = inferred(known, trained, solver, with_parallax)
        tables = {
            kind: {
                name: scores(stars, rows, kind)
                for name, rows in groups(stars).items()
                if rows.sum() >= MIN_STARS
            }
            for kind in ("stellar", "model")
        }
        for kind, title in (("stellar", "catalogue"), ("model", "forward model alone")):
            print(f"\n{words}: {title}")
            print_table(tables[kind])
            result[f"{words}, {title}"] = {
                name: {key: value.tolist() if key != "n" else value for key, value in one.items()}
                for name, one in tables[kind].items()
            }
        draw(args.out, stars, tables["stellar"], words.replace(" ", "_").replace("%", ""))
    common.write_json(args.out / "pulls.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
