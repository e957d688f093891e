"""The words of the project, each declared once: labels, parameters, columns, flags, bands, release.

Imports nothing else of the project; reads tables/bands.toml and tables/releases/.
"""

from pipeline.schema import flags
from pipeline.schema.bands import BANDS, SURVEYS, photometry_columns
from pipeline.schema.columns import FLUX_UNIT, NOISES, STARS, Column
from pipeline.schema.costs import COSTS, WHOLE_SKY, Rate, rate_of
from pipeline.schema.files import (
    FILES,
    KINDS,
    MODEL_FILE,
    Dataset,
    FileKind,
    Layout,
    describe,
    inferred_columns,
    resolved,
)
from pipeline.schema.labels import DEFAULT_LABELS, KNOWN_LABELS, Label, LabelSet
from pipeline.schema.release import DEFAULT_RELEASE, XP_BANDS, Release, load_release

__all__ = [
    "BANDS",
    "COSTS",
    "DEFAULT_LABELS",
    "DEFAULT_RELEASE",
    "FILES",
    "FLUX_UNIT",
    "KINDS",
    "KNOWN_LABELS",
    "MODEL_FILE",
    "NOISES",
    "STARS",
    "SURVEYS",
    "WHOLE_SKY",
    "XP_BANDS",
    "Column",
    "Dataset",
    "FileKind",
    "Label",
    "LabelSet",
    "Layout",
    "Rate",
    "Release",
    "describe",
    "flags",
    "inferred_columns",
    "load_release",
    "photometry_columns",
    "rate_of",
    "resolved",
]
