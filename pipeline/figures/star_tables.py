"""What the catalogue says of a star in words and numbers: parts of its page."""

import numpy as np

from pipeline.figures.star_text import LINE, Line, digits_of, named, with_error
from pipeline.figures.style import VERMILION, number
from pipeline.schema import flags
from pipeline.schema.labels import EXTINCTION, PARALLAX, XI

SOFT = "#555555"
INPUT = "#8a5a00"  # of the flags of the input: a dark orange
ROW = 0.215  # inches, of a table's row
NAMES = 1.45  # inches, of the column of names
COLUMNS = {"solution": 1.75, "forward model": 1.65, "second mode": 1.1, "confidence": 0.9}
BESIDE = 6.9  # inches, where the lines beside the table begin
NEAR_ENOUGH = 0.2  # relative error of a parallax below which its inverse is a distance
PC_MAS = 1000.0  # parallax in mas of 1 pc


def add_parameters(text, row, labels):
    """Add the table of a star's parameters: row, its columns of the catalogue."""
    parameters = labels.parameters
    forward = labels.forward.place
    shown = [(x, forward.get(x.name)) for x in labels]
    shown += [(x, len(forward) + k) for k, x in enumerate(parameters[len(forward) :])]
    cells = [_cells(row, x, place) for x, place in shown]
    used = [name for name in COLUMNS if any(cell[name] for cell in cells)]
    beside = _beside(row, parameters)
    beside += [""] * (len(cells) + 1 - len(beside))
    places = NAMES + np.cumsum([0.0, *(COLUMNS[name] for name in used)])
    at = dict(zip(used, places, strict=False))
    head = [(at[name], name, {"color": SOFT, "fontsize": 9}) for name in used]
    lines = [head]
    for (x, place), cell in zip(shown, cells, strict=True):
        name = named(x) + ("" if place is not None else " *")
        doubtful = {"color": VERMILION} if _low(cell["confidence"]) else {}
        styles = {"confidence": doubtful, "solution": {"fontweight": "bold"}}
        pieces = [(at[one], cell[one], styles.get(one, {})) for one in used]
        lines.append([(0.0, name, {}), *pieces])
    lines += [[] for _ in range(len(beside) - len(lines))]
    for pieces, words in zip(lines, beside, strict=True):
        text.lines.append(Line([*pieces, (BESIDE, words, {})], ROW))
    text.add("", height=0.04)
    for note in _notes(labels):
        text.wrap(note, color=SOFT, fontsize=9)


def _cells(row, parameter, place):
    """{column: text} of a parameter or label; place: among the parameters, None of no such one."""
    of = {"solution": "stellar_params", "forward model": "model_params"}
    cells = dict.fromkeys(COLUMNS, "")
    for column, name in of.items():
        if place is not None:
            cells[column] = _scaled(row[f"{name}_est"][place], row[f"{name}_err"][place], parameter)
    if place is None:
        names = (f"{parameter.name}_est", f"{parameter.name}_err")
        cells["solution"] = _scaled(*(row[name] for name in names), parameter)
    elif np.isfinite(row["second_params_est"][place]):
        digits = digits_of(row["stellar_params_err"][place] * parameter.scale)
        cells["second mode"] = number(row["second_params_est"][place] * parameter.scale, digits)
    confidence = row.get(f"{parameter.name}_confidence", np.nan)
    cells["confidence"] = number(confidence, 2) if np.isfinite(confidence) else ""
    return cells


def _low(confidence):
    return confidence != "" and float(confidence) < flags.CONFIDENCE_LIMIT


def _scaled(value, err, parameter):
    return with_error(value * parameter.scale, err * parameter.scale)


def _beside(row, parameters):
    """Lines beside the table: how good the fit is, and what is odd."""
    at = [p.name for p in parameters].index(PARALLAX.name)
    plx, plx_err = row["stellar_params_est"][at], row["stellar_params_err"][at]
    lines = [f"χ² {number(row['chi2_opt'], 1)}, {int(row['n_flux'])} fluxes"]
    if plx_err < NEAR_ENOUGH * plx:
        distance = PC_MAS / plx
        lines.append(f"distance {with_error(distance, distance * plx_err / plx)} pc")
    lines.append(f"signed E {with_error(row['ext_signed_est'], row['ext_signed_err'])}")
    lines.append(f"ln prior {number(row['ln_prior'], 1)}")
    if np.isfinite(row["parallax_tension"]):
        lines.append(f"parallax tension {number(row['parallax_tension'], 1)} σ")
    if np.isfinite(row["blend_probability"]):
        odd = (number(row[f"{name}_probability"], 2) for name in ("blend", "strange"))
        lines.append("blend {}, strange {}".format(*odd))
    if np.isfinite(row["second_delta_ln_post"]):
        lines.append(f"second mode Δ ln p {number(row['second_delta_ln_post'], 1)}")
    else:
        lines.append("no second mode")
    return lines


def _notes(labels):
    within = ", ".join(
        f"{x.tolerance * x.scale:g} {x.shown_unit}".strip() + f" ({x.title})" for x in labels
    )
    rest = [] if labels.forward == labels else ["*: by the direct estimate alone"]
    for one in (XI, EXTINCTION):
        unit = f", in {one.unit}" if one.unit and not one.shown_unit else ""
        rest.append(f"{one.symbol}: {one.text.split(';')[0]}{unit}")
    return [
        "residuals, χ²: under the learned noise with this star's errors, χ² with correlations",
        f"confidence: probability of being within 3 σ and {within} of the truth",
        "; ".join(rest),
    ]


# --- Flags ------------------------------------------------------------------------------------
def set_flags(bits, value):
    """Members of a class of flags that are set in a value."""
    return [flag for flag in bits if int(value) & flag.value]


def add_flags(text, row, labels):
    """Add what each flag of a star that is set means; nothing where none is."""
    kinds = (
        ("quality_flags", flags.quality_flag(labels), VERMILION),
        ("input_flags", flags.InputFlag, INPUT),
    )
    for name, bits, colour in kinds:
        value = int(row[name])
        found = set_flags(bits, value)
        if found:
            text.add(f"{name} {value}", height=LINE + 0.07, fontweight="bold")
        for flag in found:
            words = flag.text.replace("chi^2", "χ²")
            text.wrap(f"{flag.name} ({flag.value}): {words}", indent="    ", color=colour)
