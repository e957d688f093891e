"""The learned extinction curve against published laws, and the zero point of E.

    python benchmarks/calibration_extinction.py [--model FOLDER --training-data FILE]

The curve R(lambda) at xi = -2, 0, 2 is compared with the laws of Gordon et al. (2023, ApJ 950, 86:
G23) and Fitzpatrick (1999, PASP 111, 63: F99) for R(V) = 2.5, 3.1 and 4, as the package
`dust_extinction` gives them, all set to 1 at 550 nm. The laws are taken at one wavelength a flux,
whatever its width; F99 ends at 3.3 um. Prints the ratio to G23 with R(V) = 3.1 at some wavelengths
and in every band, and colour excesses: a grey part of the curve, which is told from distance by the
parallaxes alone, is in the ratios but not in these.

Then the validation stars: E as inferred, less E as the training set's map has it, in groups:
median, 16% to 84%, and the width of the pulls by both errors. E is positive in the catalogue; where
that has a signed estimate (`ext_signed_est`) it is taken, as a positive one cannot be unbiased
where there is no dust. A map has errors and a zero point of its own; far from the plane, where
there is hardly any dust, both E should be near 0. The demo's WISE photometry is synthetic: a curve
learned from it says nothing in W1 and W2.

Writes extinction.json and extinction_laws.png to --out. Takes half a minute. Needs
`dust_extinction` (requirements-dev.txt).
"""

import argparse
import sys

import common  # sets one thread, before NumPy is loaded
import numpy as np

from pipeline.published_laws import published_laws
from pipeline.run import usage_exit

XI = np.array([-2.0, 0.0, 2.0])
REFERENCE = ("G23", "R(V) = 3.1")
PRINTED_NM = (392, 422, 452, 492, 552, 602, 652, 702, 752, 802, 852, 902, 952, 992)  # of the XP's
COOL_KK, HIGH_LATITUDE, LITTLE_DUST = 4.5, 50.0, 0.1  # kK, deg, E of the map
SIGNED = ("ext_signed_est", "ext_signed_err")  # columns of a catalogue that has them


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    common.add_arguments(parser)
    return parser.parse_args(argv)


# -------------------------------------------------------------------------------------- the curve


def learned_curves(model):
    """R(lambda) (k, n_wl) of a `StellarModel` at XI."""
    return model.flux.ext_curve(XI.astype("f4"))[0].numpy().astype("f8")


def comparisons(model, laws):
    """{what is compared: {wavelength or band: {curve: number}}}: ratios to the REFERENCE, and
    colour excesses; NaN where a law says nothing."""
    from pipeline.figures.dust import colour_excesses, curves_at_norm

    channels = model.channels
    xp = channels.wavelengths[: channels.n_xp]
    learned = curves_at_norm(xp, np.log(learned_curves(model)))
    curves = np.concatenate([learned, list(laws.values())])
    names = [*(f"xi = {xi:g}" for xi in XI), *map(", ".join, laws)]
    shown = {
        f"Ratio to {', '.join(REFERENCE)}, all 1 at 550 nm": curves / laws[REFERENCE],
        "Colour excess, E(lambda - 550 nm) / E(450 nm - 550 nm)": colour_excesses(xp, curves),
    }
    places = printed_places(channels)
    return {
        heading: {
            where: {name: float(row[k]) for name, row in zip(names, values, strict=True)}
            for where, k in places.items()
        }
        for heading, values in shown.items()
    }


def printed_places(channels):
    """{words: place} of the fluxes that are printed: some of the XP spectrum, and every band."""
    nearest = [int(np.argmin(np.abs(channels.wavelengths - nm))) for nm in PRINTED_NM]
    places = {f"{channels.wavelengths[k]:g} nm": k for k in dict.fromkeys(nearest)}
    return places | {str(channels.names[k]): k for k in range(channels.n_xp, len(channels))}


def print_comparison(heading, numbers):
    print(f"\n{heading}")
    heads = next(iter(numbers.values()))
    print(" " * 8 + "".join(f"{words:>17s}" for words in heads))
    for where, of in numbers.items():
        print(f"{where:8s}" + "".join(f"{number:17.3f}" for number in of.values()))


# --------------------------------------------------------------------------------- the zero point


def inferred_extinction(args, trained, solver):
    """(columns of the validation stars from the training data, E as inferred and its error (N,),
    name of the column of E), in the unit of the training set."""
    from fitting.catalogue import infer

    observed = common.observed_names(args)
    names = (*observed, "stellar_type", "stellar_ext", "stellar_ext_err", "ra", "dec")
    stars = common.validation_stars(args, names)
    columns = infer({name: stars[name] for name in observed}, solver, trained)
    if SIGNED[0] in columns:
        return stars, *(columns[name] for name in SIGNED), SIGNED[0]
    place, names = trained.stellar.coordinates.ln_ext, ("stellar_params_est", "stellar_params_err")
    return stars, *(columns[name][:, place] for name in names), names[0]


def groups(stars, labels):
    """{name: rows (N,) bool}: by label, by Galactic latitude and by the dust of the map."""
    from astropy.coordinates import SkyCoord

    from fitting.accuracy import groups_of

    label = stars["stellar_type"]
    out = groups_of(label, labels)
    if {"teff", "logg"} <= labels.place.keys():
        out["cool dwarfs, < 4.5 kK"] = out["dwarfs"] & (label[:, labels.place["teff"]] < COOL_KK)
    here = np.isfinite(stars["ra"]) & np.isfinite(stars["dec"])
    sky = SkyCoord(np.where(here, stars["ra"], 0.0), np.where(here, stars["dec"], 0.0), unit="deg")
    high = here & (np.abs(sky.galactic.b.deg) > HIGH_LATITUDE)
    out["|b| > 50 deg"] = high
    for name in ("giants", "dwarfs"):
        if name in out:
            out[f"|b| > 50 deg, {name}"] = high & out[name]
    out[f"E of the map < {LITTLE_DUST:g}"] = stars["stellar_ext"] < LITTLE_DUST
    return out


def zero_points(stars, est, err, labels):
    """{group: {"n", "map", "inferred", "offset", "low", "high", "error", "pull_width"}}: medians of
    E of the map, of E as inferred (est, err (N,)), and of their difference, with its 16% and 84%,
    the error of the median, and the width of the pulls."""
    from pipeline.statistics import robust_width

    pull = (est - stars["stellar_ext"]) / np.hypot(err, stars["stellar_ext_err"])
    known = np.isfinite(pull)
    out = {}
    for name, rows in groups(stars, labels).items():
        chosen = rows & known
        n = int(chosen.sum())
        if n:
            off = est[chosen] - stars["stellar_ext"][chosen]
            low, middle, high = np.percentile(off, (16, 50, 84))
            out[name] = {
                "n": n,
                "map": float(np.median(stars["stellar_ext"][chosen])),
                "inferred": float(np.median(est[chosen])),
                "offset": float(middle),
                "low": float(low),
                "high": float(high),
                "error": float(1.2533 * 0.5 * (high - low) / np.sqrt(n)),  # of a Gaussian's median
                "pull_width": float(robust_width(pull[chosen])),
            }
    return out


def print_zero_points(found, kind):
    print(f"\nE as inferred ({kind}) less E of the training set's map")
    heads = ("E of the map", "inferred", "difference", "16% .. 84%", "pulls")
    print("{:22s} {:>6s} {:>13s} {:>9s} {:>17s} {:>17s} {:>6s}".format("stars", "n", *heads))
    for group, one in found.items():
        print(
            f"{group:22s} {one['n']:6d} {one['map']:13.3f} {one['inferred']:9.3f} "
            f"{one['offset']:+7.4f} +- {one['error']:.4f} {one['low']:+8.3f} .. "
            f"{one['high']:+.3f} {one['pull_width']:6.2f}"
        )


def draw(path, model, laws):
    from pipeline import figures

    figures.extinction_laws(
        path,
        model.channels.wavelengths,
        XI,
        np.log(learned_curves(model)),
        laws,
        REFERENCE,
        note="Laws at one wavelength a flux, whatever its width; F99 ends at 3.3 µm. A grey part "
        "of a curve is told\nfrom distance by the parallaxes alone; colour excesses have none.",
        n_xp=model.channels.n_xp,
    )


@usage_exit
def main(argv=None):
    args = parse_args(argv)
    common.check_inputs(args)
    trained, solver = common.load_solver(args)
    model = trained.stellar
    channels = model.channels
    laws = published_laws(channels.wavelengths)
    compared = comparisons(model, laws)
    for heading, numbers in compared.items():
        print_comparison(heading, numbers)
    stars, est, err, kind = inferred_extinction(args, trained, solver)
    found = zero_points(stars, est, err, model.labels)
    print_zero_points(found, kind)
    common.write_json(args.out / "extinction.json", compared | {"zero point of E": found})
    draw(args.out / "extinction_laws.png", model, laws)
    return 0


if __name__ == "__main__":
    sys.exit(main())
