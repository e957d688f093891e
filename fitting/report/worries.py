"""What to worry about: numbers held against limits, and what to do where they are beyond.

Limits on flags are a few times the shares of ordinary stars in docs/flags.md: beyond them the
stars, the inputs or the model are others than what was tested there.
"""

from dataclasses import dataclass

import numpy as np

from fitting.report.census import FAINT_G, HOT_TEFF
from fitting.report.facts import is_starter
from fitting.report.words import count, is_number, of, plural, value
from pipeline.errors import shortened

PULLS = (0.8, 1.25)  # of a width that is no worry
LEAST_PULLED = 100  # stars of a group whose pulls are judged
OFFSET = 0.25  # of the scatter
BEYOND = 0.03  # share of pulls beyond 3 sigma; of a Gaussian 0.0027
LEAST_VALIDATION = 300  # stars: of fewer, widths are known to 7% at best
# Of shares that are right: how far below what the confidence says, how far above (validation stars
# are ordinary, and confidences are fitted with blends and oddities among the stars), in sigmas too.
TOO_SURE, TOO_CAUTIOUS, CONFIDENCE_SIGMAS = 0.05, 0.15, 3.0
LEAST_IN_BIN = 50
MOST_REJECTED = 0.2  # of the training stars
LOGS = "DATA_DIR/logs/ and python tools/status.py say why; run the step again"
LEAVE_OUT = "leave these stars out"

# {flag: (share, what to do beyond it)}
QUALITY = {
    "CHI2": (
        0.05,
        "the model fits these stars badly: leave them out (quality_flags & 8), and look at where "
        "on the sky and at which G they are",
    ),
    "LN_PRIOR": (0.02, "types that the training has hardly any of: leave them out"),
    "PARALLAX": (0.02, "the solution is far from the parallax: blends, wrong parallaxes, scale"),
    "NOT_CONVERGED": (0.005, "leave them out; where they are many, no star is like the training's"),
    "BAD_INPUT": (0.01, "no parameters: the flags of the inputs, below, say what was missing"),
    "OUT_OF_RANGE": (
        0.05,
        "the training set has no such stars: leave them out, or train with labels of their kind",
    ),
    "PARALLAX_TENSION": (
        0.05,
        "parallaxes and fluxes disagree: wrong parallaxes, blends, or a model of another parallax "
        "scale",
    ),
    "BLEND": (0.05, "crowded fields: leave them out where single stars are wanted"),
    "STRANGE": (0.03, "no stars of the training set's kinds: leave them out"),
    "LOW_FIDELITY": (0.2, "their parallaxes were not used: distances are of the fluxes alone"),
    "BAND_MISSING": (0.05, "half a spectrum: errors are larger"),
}
CONFIDENCE = (0.2, "ask for the confidence that you need, as NAME_confidence > 0.5")
INPUTS = {
    "BP_MISSING": (0.05, "see the spectra of these stars"),
    "RP_MISSING": (0.05, "see the spectra of these stars"),
    "COV_BAD": (0.05, "see the spectra of these stars"),
    "NO_2MASS": (0.3, "was step 3 done for all shards? Without, E and Teff are known less well"),
    "NO_WISE": (0.6, "was step 4 done for all shards? Without, E and Teff are known less well"),
    "NO_METADATA": (0.001, "run step 2 again: they have no position, parallax or magnitude"),
    "NO_PARALLAX": (0.3, "distances are of the fluxes alone, giants and dwarfs less certain"),
}
OTHER = (0.05, LEAVE_OUT)
ANY = (0.15, "look at which flags, below, and at where on the sky")


@dataclass(frozen=True)
class Check:
    """Something looked at: what, what was found, which limit it has, in words; whether it is beyond
    it, and what to do then."""

    what: str
    found: str
    limit: str
    worrying: bool
    do: str = ""


def limited(what, n, total, most, do) -> Check:
    """A `Check` that n of a total are no larger share than `most`."""
    return Check(what, of(n, total), f"at most {100 * most:g}%", n > most * total, do)


# ---- the catalogue ---------------------------------------------------------------------------


def of_shards(accounts, census) -> list:
    """`Check`s that everything is in the catalogue."""
    counted = census.rows if census else {}
    n, lost = accounts.shards, accounts.lost(counted)
    states = ", ".join(f"{count(k)} {s}" for s, k in accounts.states.items()) if n else "no shards"
    out = [
        Check("Shards of step 10", states, "all complete", bool(accounts.left) or not n,
              f"{plural(len(accounts.left), 'shard')} to be made again, below: {LOGS}"),
    ]  # fmt: skip
    if accounts.source and census:
        here = sum(accounts.rows.get(fid, 0) for fid in counted)
        missing = accounts.stars - here
        out.append(
            Check(
                "Stars that are not in the catalogue",
                of(missing, accounts.stars),
                "none",
                missing > 0,
                f"they are in {plural(len(lost), 'shard')}, below: {LOGS}",
            )
        )
        odd = [fid for fid, n in counted.items() if accounts.rows.get(fid, n) != n]
        out.append(
            Check(
                "Shards with another number of stars than their spectra",
                f"{count(len(odd))}{': ' * bool(odd)}{shortened(odd, 3)}",
                "none",
                bool(odd),
                "inputs were made of other spectra: run steps 9 and 10 again for them",
            )
        )
    return out


def of_flags(census) -> list:
    """`Check`s of the shares of stars with each flag, any of them first."""
    n = census.stars
    if not n:
        return [Check("Stars", "the catalogue has none", "some", True, "see the inputs")]
    out = [limited("Stars with any flag but those of confidences", census.counts["flagged"], n,
                   *ANY)]  # fmt: skip
    for name, found in census.quality.items():
        most, do = CONFIDENCE if name in census.confidence_flags else QUALITY.get(name, OTHER)
        out.append(limited(f"Stars flagged {name}", found, n, most, do))
    for name, found in census.inputs.items():
        out.append(limited(f"Inputs flagged {name}", found, n, *INPUTS.get(name, OTHER)))
    return out


def of_run(census) -> list:
    """`Check`s of models, versions and parallaxes of a catalogue."""
    models, left_out = census.models, _left_out(census)
    out = [
        Check("Models", plural(len(models), "model"), "one", len(models) > 1,
              "shards are of different models: run step 10 for all of them"),
        *of_version(census.said["version"], "Code of step 10"),
        Check("Parallaxes", "; ".join(left_out) or "used", "used", bool(left_out),
              "distances are in the model's own scale, and giants are told from dwarfs by the "
              "fluxes alone; --use-parallaxes uses Gaia's"),
    ]  # fmt: skip
    starters = [one for one in models if is_starter(one)]
    if starters:
        out += [
            limited(f"Starter model beyond its range: G > {FAINT_G:g}", census.counts["faint"],
                    census.counts["with_g"], 0.0,
                    "it was trained on brighter stars; train a model of your own"),
            limited(f"Starter model beyond its range: Teff > {1000 * HOT_TEFF:,.0f} K",
                    census.counts["hot"], census.stars, 0.0,
                    "it knows cool stars alone; train a model of your own"),
        ]  # fmt: skip
    return out


def of_same_model(census, facts) -> Check:
    """The `Check` that the catalogue was made by the model whose accuracy is shown."""
    ours = set(census.models) == {facts.identity}
    return Check(
        "The model of this page", "the catalogue's" if ours else "not that of all shards",
        "the catalogue's", not ours,
        "what is said here of accuracy is of another model: give --model the folder that step 10 "
        "was given, or run step 10 again",
    )  # fmt: skip


def _left_out(census) -> list:
    return [words for words in census.said["parallaxes"] if words.startswith("left out")]


def of_version(versions, what) -> list:
    """`Check`s that code versions {version: files} can be found again."""
    odd = [v for v in versions if v.endswith("-dirty") or v == "unknown"]
    several = len(versions) > 1
    return [
        Check(what, ", ".join(versions) or "not said", "one version, committed",
              bool(odd) or several,
              "what was run cannot be found in the repository: commit, and run again" if odd
              else "make all with one version, unless you know that they agree"),
    ]  # fmt: skip


# ---- the model -------------------------------------------------------------------------------


def of_goodness(good) -> list:
    """`Check`s of accuracy and calibration on validation stars."""
    n = good.stars
    out = [
        Check("Validation stars", count(n), f"at least {LEAST_VALIDATION}", n < LEAST_VALIDATION,
              "the numbers on accuracy are themselves uncertain"),
        Check("Validation stars without parameters", of(n - good.finite, n), "at most 1%",
              n - good.finite > 0.01 * n, "see which, in validation.h5"),
    ]  # fmt: skip
    for label in good.labels:
        out += _of_label(label, good)
        out.append(_of_confidence(label, good.bins[label.name]))
    return out


def _of_label(label, good):
    """`Check`s of pulls and offsets of a label."""
    groups = {k: (n, s[label.name]) for k, (n, s) in good.groups.items() if n >= LEAST_PULLED}
    groups = {k: groups[k] for k in ("all", "giants", "dwarfs") if k in groups}
    if not groups:
        return
    widths = {k: s["pull_width"] for k, (_, s) in groups.items()}
    low, high = PULLS
    worst = max(widths.values(), key=lambda w: abs(np.log(w)) if w > 0 else np.inf)
    yield Check(
        f"Pulls of {label.title}",
        ", ".join(f"{value(w, 2)} ({k})" for k, w in widths.items()),
        f"widths {low:g} to {high:g}",
        any(not low <= w <= high for w in widths.values()),
        f"errors are too {'small' if worst > 1 else 'large'}: the true ones are {worst:.2f} times "
        "as large",
    )
    whole = groups.get("all", next(iter(groups.values())))[1]
    yield Check(
        f"{label.title} beyond 3 sigma", f"{100 * whole['frac_gt3']:.1f}%", f"at most {BEYOND:.0%}",
        whole["frac_gt3"] > BEYOND, "tails: cut on flags and confidences",
    )  # fmt: skip
    digits, unit = label.digits, f" {label.shown_unit}".rstrip()
    yield Check(
        f"Offset of {label.title}", f"{value(whole['offset'], digits)}{unit}",
        f"within {OFFSET:g} of the scatter, {value(whole['scatter'], digits)}{unit}",
        abs(whole["offset"]) > OFFSET * whole["scatter"],
        "a bias: give the training more steps, or look at the labels",
    )  # fmt: skip


def _of_confidence(label, bins) -> Check:
    """The `Check` that confidences in a label are true, of the bin that is worst."""
    what, limit = (
        f"Confidence in {label.title}",
        f"true within −{TOO_SURE:.0%}, +{TOO_CAUTIOUS:.0%}",
    )
    bins = [one for one in bins if one.n >= LEAST_IN_BIN]
    if not bins:
        return Check(what, f"fewer than {LEAST_IN_BIN} stars in each bin", limit, False)
    worst = max(bins, key=_off)
    found = f"{100 * worst.right:.1f}% right where {100 * worst.mean:.1f}% is said"
    do = (
        "it is too cautious: a cut on it loses stars that are right"
        if worst.right > worst.mean
        else "it is too sure: ask for more than you would"
    )
    return Check(what, found, limit, any(_off(one) > 1 for one in bins), do)


def _off(one) -> float:
    """How far a `Bin` is off, 1 at the limit; less than 1 where that may be chance."""
    more = one.right - one.mean
    limit = TOO_CAUTIOUS if more > 0 else TOO_SURE
    noise = np.sqrt(max(one.mean * (1 - one.mean), 1e-4) / one.n)
    return min(abs(more) / limit, abs(more) / (CONFIDENCE_SIGMAS * noise))


def of_training(facts) -> list:
    """`Check`s of a model's file and history."""
    scale, rejected, refused = facts.parallax_scale, _most_rejected(facts.history), 0
    out = [
        Check("Parallax scale of the model", scale or "Gaia's", "Gaia's", bool(scale),
              "its distances, and E, are in that scale: for science train on Gaia's parallaxes"),
        *of_version([v] if (v := str(facts.attrs.get("version", ""))) else [], "Code of step 8"),
    ]  # fmt: skip
    if facts.history:
        refused = sum(int(n) for one in facts.history if is_number(n := one.get("steps_refused")))
        out += [
            Check("Training stars rejected", f"{rejected:.1%}", f"at most {MOST_REJECTED:.0%}",
                  rejected > MOST_REJECTED,
                  "the model does not fit them yet: give the stages before it more steps"),
            Check("Steps refused, as their gradient was not finite", count(refused), "none",
                  refused > 0, "a lower learning rate in the recipe"),
        ]  # fmt: skip
    skipped = [f"{one.get('stage')}: {one['skipped']}" for one in facts.history if "skipped" in one]
    if skipped:
        out.append(Check("Stages skipped", "; ".join(skipped), "none", True,
                         "the training set lacks what the stage needs"))  # fmt: skip
    return out


def _most_rejected(history) -> float:
    pairs = [(one.get("rejected"), one.get("stars")) for one in history]
    return max((r / n for r, n in pairs if is_number(r) and is_number(n) and n), default=0.0)


def first_worries(checks) -> tuple:
    """(`Check`s that worry, those that do not)."""
    return [c for c in checks if c.worrying], [c for c in checks if not c.worrying]
