"""The tables of the page, of what was counted and measured."""

from fitting.report import accounts as accounting
from fitting.report.words import NONE, Cell, Table, count, is_number, share, value
from pipeline.schema import Layout, flags, resolved
from pipeline.states import Shard

MOST_SHARDS = 20  # that are named
LOSSES = ("posterior_loss", "likelihood_loss")  # of several, what the stage is for


def of_steps(accounts) -> Table:
    """Shards of every step by state."""
    rows = []
    for kind, step in accounts.steps.items():
        counts = step.counts()
        rows.append([
            Cell(accounting.NUMBERS[kind]), accounting.title_of(kind),
            *(Cell(count(n) if n else NONE, strong=bool(n) and s is not Shard.COMPLETE)
              for s, n in counts.items()),
            count(step.n_rows),
        ])  # fmt: skip
    heads = ("step", "", *(state.value for state in Shard), "rows")
    return Table("Shards of every step", heads, rows, tuple(range(2, len(heads))),
                 "Rows of steps 3 and 4 are matches; spectra of others may not say how many "
                 "they have.")  # fmt: skip


def of_left(accounts) -> Table:
    """Shards of step 10 that are not complete, and why."""
    order = [state.value for state in Shard]
    left = sorted(
        accounts.left, key=lambda one: (-order.index(one.state) if one.state in order else -99,
                                        one.fid)
    )  # fmt: skip
    rows = [
        [Cell(one.fid, code=True), one.state, NONE if one.stars is None else count(one.stars),
         one.reason or "not made yet"]
        for one in left[:MOST_SHARDS]
    ]  # fmt: skip
    more = len(left) - len(rows)
    note = f"And {count(more)} more: python tools/status.py --all names them." if more else ""
    heads = ("shard", "state", "stars", "why")
    return Table("Shards of step 10 that are not complete", heads, rows, (2,), note)


def of_stars(accounts, census) -> Table:
    """From the spectra to good stars."""
    n, rows = census.stars, []
    if accounts.source:
        rows.append([f"in the {accounting.title_of(accounts.source)}", count(accounts.stars), ""])
    counts = census.counts
    for what, number in (
        ("in the catalogue", n),
        ("with parameters and errors", counts["solved"]),
        ("no flag but those of three confidences (quality_flags < 8)", counts["good"]),
        ("no flag at all", counts["unflagged"]),
    ):
        total = n if what != "in the catalogue" else accounts.stars
        rows.append([what, count(number), Cell(share(number, total) if total else "")])
    for one in accounts.lost(census.rows)[:MOST_SHARDS]:
        stars = NONE if one.stars is None else count(one.stars)
        rows.append([f"not in the catalogue: shard {one.fid}, {one.state}", stars, ""])
    return Table("From the spectra to good stars", ("stars", "number", "share"), rows, (1, 2),
                 "Shares of stars in the catalogue are of those that should be in it, the others "
                 "of those that are.")  # fmt: skip


def of_quality(labels, census=None, good=None) -> Table:
    """Each bit of quality_flags, and how many stars have it in the catalogue and in the validation
    stars."""
    rows, heads = [], ["bit", "flag"]
    if census:
        heads += ["stars", "share"]
    if good:
        heads += ["of validation stars"]
    for flag in flags.quality_flag(labels):
        row = [str(flag.value), Cell(flag.name, code=True)]
        if census:
            n = census.quality[flag.name]
            row += [count(n), Cell(share(n, census.stars), n / census.stars if census.stars else 0)]
        if good:
            row.append(share(good.quality.get(flag.name, 0), good.stars))
        rows.append([*row, flag.text])
    numbers = tuple(range(2, len(heads)))
    return Table("quality_flags", (*heads, "set when"), rows, (0, *numbers))


def of_inputs(census) -> Table:
    """Each bit of input_flags, and how many stars have it."""
    rows = [
        [str(flag.value), Cell(flag.name, code=True), count(n := census.inputs[flag.name]),
         Cell(share(n, census.stars), n / census.stars if census.stars else 0), flag.text]
        for flag in flags.InputFlag
    ]  # fmt: skip
    return Table("input_flags: what was missing in the input",
                 ("bit", "flag", "stars", "share", "set when"), rows, (0, 2, 3))  # fmt: skip


def of_accuracy(good) -> Table:
    """Offset, scatter and pulls of each label, by group of stars."""
    rows, groups = [], {}
    for name, (n, scores) in good.groups.items():
        groups[len(rows)] = f"{name}: {count(n)} stars"
        for label in good.labels:
            if label.name not in scores:
                continue
            s, unit = scores[label.name], f" ({label.shown_unit})" if label.shown_unit else ""
            rows.append([
                f"{label.title}{unit}",
                *(value(s[key], label.digits) for key in ("offset", "scatter")),
                value(s["pull_width"], 2), f"{100 * s['frac_gt3']:.1f}%",
            ])  # fmt: skip
    return Table(
        "Inferred − label, validation stars",
        ("label", "offset", "scatter", "pull width", "beyond 3 σ"), rows, (1, 2, 3, 4),
        "Offset: median. Scatter: 1.4826 times the median absolute deviation. Pull: difference "
        "over both errors in quadrature, 1 wide where errors are true; 0.3% of a Gaussian are "
        "beyond 3 σ.",
        groups,
    )  # fmt: skip


def of_confidences(good) -> Table:
    """Whether confidences are true, by label and bin."""
    rows, groups = [], {}
    for label in good.labels:
        groups[len(rows)] = label.title
        for one in good.bins[label.name]:
            rows.append([f"{one.low:g} to {one.high:g}", count(one.n), f"{100 * one.mean:.1f}%",
                         f"{100 * one.right:.1f}%"])  # fmt: skip
    return Table(
        "Confidences, validation stars", ("confidence", "stars", "said", "right"), rows, (1, 2, 3),
        "Right: within 3 σ and the label's tolerance of the label.", groups,
    )  # fmt: skip


def of_stages(history) -> Table:
    """The stages of a training, at their ends."""
    rows, stages = [], {}
    for one in history:
        stages.setdefault(str(one.get("stage")), []).append(one)
    for name, of_stage in stages.items():
        last = of_stage[-1]
        losses = {k for k, x in last.items() if k.endswith("_loss") and is_number(x)}
        shown = next((k for k in (*LOSSES, *sorted(losses)) if k in losses), None)
        rows.append([
            name, count(len(of_stage)),
            *(count(last[k]) if is_number(last.get(k)) else NONE for k in ("stars", "rejected")),
            f"{shown.removesuffix('_loss')}: {value(last[shown], 3)}" if shown else NONE,
        ])  # fmt: skip
    return Table("Stages", ("stage", "epochs", "stars", "rejected", "loss at its end"), rows,
                 (1, 2, 3))  # fmt: skip


def of_checks(checks) -> Table:
    """What was looked at and found in order."""
    rows = [[c.what, c.found, c.limit] for c in checks]
    return Table("Looked at, and within its limit", ("what", "found", "limit"), rows)


def of_columns(release, labels) -> Table:
    """Every dataset of the catalogue."""
    rows = []
    for data in resolved("opt_output", Layout(release, labels)).values():
        shape = ", ".join(["N", *map(str, data.shape)])
        attrs = data.attributes
        rows.append([
            Cell(data.name, code=True), Cell(data.dtype, code=True), shape,
            attrs.get("units", ""), attrs.get("description", ""),
            Cell(attrs.get("ucd", ""), code=True),
        ])  # fmt: skip
    heads = ("dataset", "type", "shape", "unit", "meaning", "UCD")
    return Table("Datasets of the catalogue", heads, rows, (), "N stars.")


def of_parameters(labels) -> Table:
    """The second axis of the parameters."""
    rows = [[str(k), Cell(p.name, code=True), p.title, p.unit, p.text]
            for k, p in enumerate(labels.parameters)]  # fmt: skip
    return Table("Order of the parameters", ("place", "name", "is", "unit", ""), rows, (0,))


def tiles(accounts, census, good) -> list:
    """[(term, value, more words)] of what is seen first."""
    out = []
    if accounts and census:
        total = accounts.stars if accounts.source else census.stars
        n, complete = accounts.shards, accounts.states[Shard.COMPLETE.value]
        out += [
            ("Stars with parameters", share(census.counts["solved"], total),
             f"{count(census.counts['solved'])} of {count(total)}"),
            ("Good stars", share(census.counts["good"], census.stars),
             f"quality_flags < 8: {count(census.counts['good'])}"),
            ("Shards complete", f"{count(complete)} of {count(n)}", "of step 10"),
        ]  # fmt: skip
    if good and good.all:
        for label in good.labels:
            s, unit = good.all[label.name], f" {label.shown_unit}".rstrip()
            out.append((f"Scatter of {label.title}",
                        f"{value(s['scatter'], label.digits)}{unit}",
                        f"pull width {value(s['pull_width'], 2)}"))  # fmt: skip
    return out
