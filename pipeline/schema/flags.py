"""The flags of every file: name, bit and text of each, once."""

import functools
from enum import IntFlag

import numpy as np

from pipeline.schema.bands import SURVEYS


def _flags(name, members):
    """An IntFlag class of {member: (bit, text)}; each member has its text as `.text`."""
    bits = [bit for bit, _ in members.values()]
    if len(set(bits)) < len(bits):
        raise ValueError(f"{name}: two flags have the same bit")
    cls = IntFlag(name, {member: bit for member, (bit, _) in members.items()})
    for member, (_, text) in members.items():
        cls[member].text = text
    return cls


def describe(flags) -> str:
    """All bits of a class of flags with their names, for the attribute of a dataset."""
    return "bits: " + ", ".join(f"{flag.value} {flag.name}" for flag in flags)


def counts(flags, values) -> dict:
    """{name: rows with it} of the bits of values (N,)."""
    return {flag.name: int(np.count_nonzero(values & flag.value)) for flag in flags}


# Of `input_flags`: what was missing in a star's input. Bit 4 is free, and was once another flag.
InputFlag = _flags(
    "InputFlag",
    {
        "BP_MISSING": (1, "BP spectrum absent or unusable: no flux where BP has weight"),
        "RP_MISSING": (2, "RP spectrum absent or unusable: no flux where RP has weight"),
        "COV_BAD": (8, "XP flux or variance not finite, out of range or not positive: not used"),
        **{s.flag.name: (s.flag.bit, s.flag.text) for s in SURVEYS.values()},
        "NO_METADATA": (64, "no row in the metadata"),
        "NO_PARALLAX": (128, "no parallax"),
    },
)

# Of `parallax_zeropoint_flags`.
ZeroPointFlag = _flags(
    "ZeroPointFlag",
    {
        "OUT_OF_RANGE": (1, "magnitude or colour outside the calibrated range: extrapolated"),
        "NONE": (2, "no zero point: `parallax` is the raw value"),
    },
)

# Of `coverage_{map}`.
Coverage = _flags(
    "Coverage",
    {
        "VALUE": (1, "the map has a value there"),
        "CONVERGED": (2, "Bayestar: its fit of this pixel converged"),
        "RELIABLE_DISTANCE": (4, "Bayestar: more likely than not within its reliable distances"),
        "PARALLAX": (8, "Bayestar: the distance is from a parallax, not from the prior alone"),
    },
)

# Of `sample_flags`.
MIXED_R_HAT, MIXED_DRAWS = 1.1, 100  # of chains that have mixed: R-hat below, effective draws above
SampleFlag = _flags(
    "SampleFlag",
    {
        "NO_SOLUTION": (1, "no usable spectrum, or no proper covariance: draws are NaN"),
        "NOT_MIXED": (
            2,
            f"R-hat above {MIXED_R_HAT:g}, or fewer than {MIXED_DRAWS} effective draws, of a "
            "parameter: the draws are not to be trusted",
        ),
    },
)

# Of `quality_flags`. Bits 0 to 5 mean what they mean in the catalogue of Zhang, Green & Rix (2023).
CONFIDENCE_LIMIT = 0.5
LEAST_CHI2 = 2.0  # for each XP flux used: fits below are never poor
PARALLAX_SIGMAS = 10.0
LEAST_FIDELITY = 0.5
_QUALITY = {
    "CHI2": (8, f"chi^2 above {LEAST_CHI2:g} for each XP flux used, and what ordinary stars have"),
    "LN_PRIOR": (16, "a type as rare as the rarest 0.1% of the training stars"),
    "PARALLAX": (32, f"more than {PARALLAX_SIGMAS:g} sigma from the observed parallax"),
    "NOT_CONVERGED": (64, "the solver did not converge"),
    "BAD_INPUT": (128, "no usable spectrum, or no proper covariance: parameters are NaN"),
    "OUT_OF_RANGE": (256, "outside what training saw in type, dust or error level"),
    "PARALLAX_TENSION": (512, "the parallax disagrees with what the fluxes alone say of it"),
    "BLEND": (1024, "looks like two stars of unlike type in one spectrum"),
    "STRANGE": (2048, "looks like no star of the training set's kinds, nor two of them"),
    "LOW_FIDELITY": (4096, f"fidelity_v2 below {LEAST_FIDELITY:g}: the parallax was not used"),
    "BAND_MISSING": (8192, "BP or RP was not used"),
}
_LABEL_BITS = {"teff": 1, "feh": 2, "logg": 4}  # of the confidences; those of other labels follow
FIRST_FREE_BIT = 1 << 16
MOST_OTHER_LABELS = 15  # then the bits of quality_flags are used up


def confidence_flag(label_name) -> str:
    """Name of the flag of a label's confidence."""
    return f"{label_name.upper()}_CONFIDENCE"


@functools.cache
def quality_flag(labels):
    """The class of flags of `quality_flags`, for a `LabelSet`.

    Raises ValueError where there are more labels than bits.
    """
    others = [label.name for label in labels if label.name not in _LABEL_BITS]
    if len(others) > MOST_OTHER_LABELS:
        raise ValueError(
            f"{len(others)} labels beside {', '.join(_LABEL_BITS)}: at most {MOST_OTHER_LABELS} "
            "can have a flag"
        )
    bits = _LABEL_BITS | {name: FIRST_FREE_BIT << k for k, name in enumerate(others)}
    of_labels = {
        confidence_flag(label.name): (
            bits[label.name],
            f"the confidence in {label.title} is below {CONFIDENCE_LIMIT:g}",
        )
        for label in labels
    }
    return _flags("QualityFlag", of_labels | _QUALITY)
