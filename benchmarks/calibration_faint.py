"""Accuracy, pulls and flags against brightness, and of what is no ordinary star.

    python benchmarks/calibration_faint.py [--model FOLDER --training-data FILE]

Shows the validation stars of a trained model (the stars never trained on) as they are and as they
would look at fainter G magnitudes (fitting/dimming.py), with their parallax and with it hidden,
with 2MASS and without, and infers them. Then the same with stars that the forward model itself
draws (fitting/simulation.py), whose true distance is known: with a parallax of 20%, with one as
good as Gaia's, and with none; judged are the forward model's own estimates, as in
calibration_sbc.py. Prints robust scatter (1.4826 MAD), pull width, coverage of the 68% and 95%
intervals and the fraction of pulls beyond 3 of each label.

Then what the flags catch: the same stars with wrong parallaxes (of the same relative error), in
blends with others, and in the place of their spectra hot stars, white dwarfs, quasars, galaxies and
what nothing explains (fitting/strange.py), as they are and at G = 17. Prints, as the Markdown
tables of docs/flags.md, how often each flag is set of ordinary stars and of these, and how many
have no flag and are wrong by 3 sigma in any label (what is no star of the kinds that have labels is
wrong whatever comes out). Flags of the confidences alone do not count.

Writes faint.json, faint_accuracy.png and faint_flags.png to --out. Takes about three minutes.
"""

import argparse
import dataclasses
import sys

import common  # sets one thread, before NumPy is loaded
import numpy as np

from pipeline.run import usage_exit
from pipeline.schema import flags, load_release

MAGNITUDES = (None, 14.0, 15.0, 16.0, 17.0, 17.6)  # None: as they are
ODD_MAGNITUDES = (None, 17.0)
WRONG_PARALLAXES = {"doubled": 2.0, "halved": 0.5, "3 times": 3.0, "a third": 1 / 3}
WRONG_SIGMAS = 3.0
FEW = 1500  # stars of a case that is not the main one
# Errors of Gaia DR3's parallaxes (mas) at G: Lindegren et al. 2021, A&A 649, A2; in between, their
# ln is interpolated.
GAIA_G, GAIA_ERROR = (15.0, 17.0, 20.0), (0.025, 0.07, 0.5)
PARALLAX, GAIA, NO_PARALLAX = "20% parallax", "Gaia-like parallax", "no parallax"
TMASS, NO_TMASS = "with 2MASS", "without 2MASS"
SIMULATED = "simulated, forward model"
INTERVALS = {"inside_68": 1.0, "inside_95": 1.96}  # sigma
SEED = 0


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    common.add_arguments(parser)
    return parser.parse_args(argv)


def read_stars(args):
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


def some(rows):
    """At most FEW of the rows, by chance."""
    return np.sort(np.random.default_rng(SEED).choice(rows, min(FEW, len(rows)), replace=False))


def words_of(g):
    return "as they are" if g is None else f"G = {g:g}"


# ---------------------------------------------------------------------------- observed differently


def shown_at(stars, data, rows, g):
    """`StarData` of the stars `rows`, which data is of, as they look at G magnitude g (or are)."""
    if g is None:
        return data
    rng = np.random.default_rng(SEED)
    own = stars.g[rows]
    return stars.dimming.show(data, np.maximum(g - own, 0.0), rng, own)


def without_tmass(data):
    """The same `StarData`, 2MASS not used."""
    hidden = np.isin(np.arange(len(data.channels)), data.channels.photometry["tmass"])
    return dataclasses.replace(
        data,
        flux=np.where(hidden, 0.0, data.flux).astype("f4"),
        flux_err=np.where(hidden, np.inf, data.flux_err).astype("f4"),
    )


def as_table(data):
    """`StarData` as `catalogue.infer` takes it."""
    from fitting.observed import FINE

    values = (data.flux, data.flux_err, data.parallax, data.parallax_err)
    table = dict(zip(("flux", "flux_err", "plx", "plx_err"), values, strict=True))
    return table if data.fine is None else table | {FINE: data.fine}


def gaia_error(g):
    """Errors (N,) in mas of Gaia DR3's parallaxes of stars of magnitudes g (N,)."""
    return np.exp(np.interp(g, GAIA_G, np.log(GAIA_ERROR)))


# ------------------------------------------------------------------------------- ordinary stars


def label_scores(est, err, label, label_err, labels):
    """`accuracy.scores` of the stars with finite estimates, all arrays (N, K), with the shares of
    truths within the INTERVALS."""
    from fitting.accuracy import scores

    good = np.isfinite(est).all(1) & np.isfinite(err).all(1)
    arrays = [x[good] for x in (est, err, label, label_err)]
    out = scores(*arrays, labels)
    pull = np.abs(arrays[0] - arrays[2]) / np.hypot(arrays[1], arrays[3])
    for k, label_ in enumerate(labels):
        inside = {key: float(np.mean(pull[:, k] < most)) for key, most in INTERVALS.items()}
        out[label_.name] |= inside
    return out


def ordinary(stars, rows, trained, solver):
    """{"G, parallax, photometry": scores and outcomes} of the stars `rows` at MAGNITUDES."""
    from fitting.catalogue import infer, label_estimates

    labels, out = trained.stellar.labels, {}
    print(f"{'':58s}" + " | ".join(f"{x.title:^31s}" for x in labels) + " | flagged")
    for photometry, chosen in ((TMASS, rows), (NO_TMASS, some(rows))):
        of_star = (stars.data.theta[chosen], stars.data.theta_err[chosen])
        for g in MAGNITUDES:
            data = shown_at(stars, stars.data.take(chosen), chosen, g)
            data = data if photometry == TMASS else without_tmass(data)
            for parallax, seen in ((PARALLAX, data), (NO_PARALLAX, data.without_parallax())):
                columns = infer(as_table(seen), solver, trained)
                one = label_scores(*label_estimates(columns, labels), *of_star, labels)
                one |= outcome(columns, *of_star, labels)
                name = f"{words_of(g)}, {parallax}, {photometry}"
                out[name] = one | {"n": len(chosen)}
                print_scores(name, one, labels)
    return out


def simulated(stars, rows, trained, solver):
    """{"G, parallax, simulated": scores} of stars that the forward model draws.

    The stars with labels have spectro-photometric parallaxes of 20%. A better one cannot be made of
    these: it would have to be drawn about the true parallax, which they do not tell to better than
    20%, and drawn about the observed one it would claim that to be true. Simulated stars have a
    true parallax.
    """
    from fitting.catalogue import label_estimates, solve_stars
    from fitting.observed import StarData
    from fitting.posterior import physical
    from fitting.simulation import simulate

    model, out = trained.stellar, {}
    labels, chosen = model.labels.forward, some(rows)
    for g in MAGNITUDES:
        data = shown_at(stars, stars.data.take(chosen), chosen, g)
        hosts = {"flux": data.flux, "flux_err": data.flux_err}
        table, u = simulate(model, hosts, FEW, False, np.random.default_rng(SEED))
        label = physical(u, model)[:, : len(labels)]
        true_plx = np.exp(u[:, model.coordinates.ln_plx]).astype("f8")
        magnitude = host_magnitudes(table, stars, model)
        for parallax, seen in simulated_parallaxes(table, true_plx, magnitude):
            data = StarData.of_table(seen, model.channels)
            columns, _ = solve_stars(data, solver, trained.errors)
            found = label_estimates(columns, labels, "model")
            one = label_scores(*found, label, np.zeros_like(label), labels)
            name = f"{words_of(g)}, {parallax}, {SIMULATED}"
            out[name] = one | {"n": FEW}
            print_scores(name, one, labels)
    return out


def host_magnitudes(table, stars, model):
    """G magnitudes (N,) of simulated stars, by their brightness in RP, as real stars have them."""
    from fitting.observed import ln_flux_data

    simulated = ln_flux_data(table["flux"], table["flux_err"], model.channels).features[:, 0]
    bright = stars.data.observed.features[:, 0]
    return np.median(stars.g + 1.0857 * bright) - 1.0857 * simulated


def simulated_parallaxes(table, true_plx, g):
    """(words, table with these parallaxes) of simulated stars, true parallaxes (N,) in mas."""
    from fitting.simulation import PARALLAX_ERROR, parallax_ratio

    rng = np.random.default_rng(SEED)
    near = true_plx / parallax_ratio(len(g), rng)
    error = gaia_error(g)
    gaia = true_plx + error * rng.normal(size=len(g))
    for words, plx, err in ((PARALLAX, near, PARALLAX_ERROR * near), (GAIA, gaia, error)):
        yield words, table | {"plx": plx.astype("f4"), "plx_err": err.astype("f4")}
    yield NO_PARALLAX, table


def print_scores(name, one, labels):
    cells = [
        f"{s['scatter']:7.{1 if x.scale != 1 else 3}f} {s['pull_width']:5.2f} "
        f"{s['inside_68']:5.1%} {s['inside_95']:5.1%} {s['frac_gt3']:5.1%}"
        for x in labels
        for s in (one[x.name],)
    ]
    flagged = f" | {one['flagged']:6.1%}" if "flagged" in one else ""
    print(f"{name:58s}{' | '.join(cells)}{flagged}", flush=True)


# ------------------------------------------------------------------------------------- the flags


def beside_confidences(quality, labels):
    """Where a flag is set that is not of a confidence (N,) bool."""
    bits = flags.quality_flag(labels)
    own = sum(bits[flags.confidence_flag(x.name)].value for x in labels)
    return (quality & ~np.uint32(own)) > 0


def outcome(columns, label, label_err, labels):
    """{"flagged", "unflagged_and_right", "unflagged_and_wrong", "bits": {flag: share},
    "confident": {label name: share}} of inferred columns; label, label_err (N, K), NaN where
    whatever is said of a label is wrong."""
    from fitting.catalogue import label_estimates

    est, err = label_estimates(columns, labels)
    quality = columns["quality_flags"]
    flagged = beside_confidences(quality, labels)
    right = (np.abs(est - label) <= WRONG_SIGMAS * np.hypot(err, label_err)).all(1)
    return {
        "flagged": float(flagged.mean()),
        "unflagged_and_right": float(np.mean(~flagged & right)),
        "unflagged_and_wrong": float(np.mean(~flagged & ~right)),
        "bits": {
            flag.name: float(np.mean((quality & flag.value) > 0))
            for flag in flags.quality_flag(labels)
        },
        "confident": {
            x.name: float(np.mean(columns[f"{x.name}_confidence"] > flags.CONFIDENCE_LIMIT))
            for x in labels
        },
    }


def odd_things(stars, rows, labels):
    """(words, `StarData`, whether it has the labels of its star) of what is no ordinary star, made
    of the stars `rows`."""
    from fitting.strange import OBJECTS, StrangeThings

    rng, data = np.random.default_rng(SEED), stars.data.take(rows)
    for words, factor in WRONG_PARALLAXES.items():
        plx, err = data.parallax * factor, data.parallax_err * factor
        wrong = dataclasses.replace(data, parallax=plx, parallax_err=err)
        yield f"parallax {words}", wrong, True
    strange = StrangeThings(stars, labels)
    yield "blend", strange.blends(rows, rng), True
    for kind, words in enumerate(OBJECTS):
        yield words, strange.objects(rows, rng, kind), False


def unusual(stars, rows, trained, solver):
    """{"G": {words: outcome}} of what is no ordinary star, at ODD_MAGNITUDES."""
    from fitting.catalogue import infer

    labels, rows = trained.stellar.labels, some(rows)
    out = {words_of(g): {} for g in ODD_MAGNITUDES}
    for words, data, has_labels in odd_things(stars, rows, labels):
        label = stars.data.theta[rows] if has_labels else np.nan
        for g in ODD_MAGNITUDES:
            columns = infer(as_table(shown_at(stars, data, rows, g)), solver, trained)
            out[words_of(g)][words] = outcome(columns, label, stars.data.theta_err[rows], labels)
    return out


# -------------------------------------------------------------------------------- what comes of it


def flag_table(outcomes, labels):
    """A Markdown table of outcomes {words: `outcome`}: a column each, a row a flag."""
    rows = [("", *outcomes), ("---", *["---:"] * len(outcomes))]
    for flag in flags.quality_flag(labels):
        shares = (one["bits"][flag.name] for one in outcomes.values())
        rows.append((f"`{flag.name}`", *map(_percent, shares)))
    for words, key in (
        ("any but a confidence", "flagged"),
        ("none, and right", "unflagged_and_right"),
        ("none, and wrong", "unflagged_and_wrong"),
    ):
        rows.append((f"**{words}**", *(_percent(one[key]) for one in outcomes.values())))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _percent(share):
    return "–" if share == 0 else f"{100 * share:.1f}"


def flag_tables(result, labels):
    """{heading: Markdown table} of the result: ordinary stars, and what is none."""
    of_stars = {
        words_of(g): result["ordinary"][f"{words_of(g)}, {PARALLAX}, {TMASS}"] for g in MAGNITUDES
    }
    tables = {"Ordinary stars, with their parallax (%)": flag_table(of_stars, labels)}
    for g, of_things in result["unusual"].items():
        tables[f"What is no ordinary star, {g} (%)"] = flag_table(of_things, labels)
    return tables


def draw(folder, result, stars, rows, labels):
    """faint_accuracy.png and faint_flags.png."""
    from pipeline import figures

    usual = float(np.median(stars.g[rows]))
    figures.scores_against(
        folder / "faint_accuracy.png",
        [usual if g is None else g for g in MAGNITUDES],
        accuracy_cases(result, labels),
        "G (mag)",
        title="Accuracy and pulls of stars as they would look at G",
        note=f"The first point of each line: stars as they are, at their median G = {usual:.1f}. "
        "Simulated stars have more dust (E up to 1.5)\nthan those with labels, and are judged by "
        "the forward model's own estimates.",
        labels=labels,
    )
    groups = {
        f"Ordinary stars, {parallax}": {
            words_of(g): result["ordinary"][f"{words_of(g)}, {parallax}, {TMASS}"]
            for g in MAGNITUDES
        }
        for parallax in (PARALLAX, NO_PARALLAX)
    }
    groups |= {f"What is no ordinary star, {g}": one for g, one in result["unusual"].items()}
    keys = ("unflagged_and_right", "flagged", "unflagged_and_wrong")
    shares = {
        heading: {words: [one[key] for key in keys] for words, one in of.items()}
        for heading, of in groups.items()
    }
    figures.outcomes(folder / "faint_flags.png", shares, note="Wrong: by 3σ in any label.")


def accuracy_cases(result, labels):
    """The result as `figures.scores_against` takes it."""
    scores, cases = result["ordinary"] | result["simulated"], {}
    for photometry in (TMASS, NO_TMASS, SIMULATED):
        for parallax in (PARALLAX, GAIA, NO_PARALLAX):
            of_g = [scores.get(f"{words_of(g)}, {parallax}, {photometry}") for g in MAGNITUDES]
            if None not in of_g:
                cases[parallax, photometry] = {
                    key: np.array([[_score(one, x, key) for x in labels] for one in of_g])
                    for key in ("scatter", "pull_width")
                }
                cases[parallax, photometry]["scatter"] /= labels.array("scale")
    return cases


def _score(one, label, key):
    return one[label.name][key] if label.name in one else np.nan


@usage_exit
def main(argv=None):
    args = parse_args(argv)
    common.check_inputs(args)
    trained, solver = common.load_solver(args)
    labels = trained.stellar.labels
    stars, rows = read_stars(args)
    shown = ", ".join(f"{x.title} ({x.shown_unit})" for x in labels)
    print(f"{len(rows)} validation stars; of {shown}:")
    print("scatter, pull width, inside 68% and 95%, beyond 3 sigma")
    result = {"ordinary": ordinary(stars, rows, trained, solver)}
    result["simulated"] = simulated(stars, rows, trained, solver)
    result["unusual"] = unusual(stars, rows, trained, solver)
    for heading, table in flag_tables(result, labels).items():
        print(f"\n### {heading}\n\n{table}", end="", flush=True)
    common.write_json(args.out / "faint.json", result)
    draw(args.out, result, stars, rows, labels)
    return 0


if __name__ == "__main__":
    sys.exit(main())
