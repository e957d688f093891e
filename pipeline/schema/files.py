"""The kinds of files, and their datasets spelled out for a release and its labels."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from pipeline.schema import columns as tables
from pipeline.schema import flags
from pipeline.schema.bands import BANDS, SURVEYS
from pipeline.schema.labels import DEFAULT_LABELS, LabelSet
from pipeline.schema.release import XP_BANDS, Release, load_release

MODEL_FILE = "model.h5"  # in the output folder of train.py: arrays, as fitting/ makes them


@dataclass(frozen=True)
class FileKind:
    """A kind of file: the shards of a folder, or (folder None) one file.

    step: the script that writes it. archive_ids: its ids are called as the archive calls them.
    foreign: not written by this project alone. optional: its folder may be left out (--without).
    format: version of what is in it; a file of another is refused, or made again.
    """

    title: str
    step: str
    columns: tuple
    folder: str | None = None
    prefix: str | None = None
    archive_ids: bool = False
    foreign: bool = False
    optional: bool = False
    format: int = 1

    def id_column(self, release) -> str:
        """Name of the column of source ids."""
        return "source_id" if self.archive_ids else release.id_column


FILES = {
    "xp": FileKind(
        "XP continuous mean spectra",
        "tools/convert_xp_csv.py",
        tables.XP,
        "xp_continuous_mean_spectrum",
        "XpContinuousMeanSpectrum",
        archive_ids=True,
        foreign=True,
    ),
    "sampled": FileKind(  # in the folder of the spectra, in the place of their shards
        "XP spectra sampled already, without their coefficients",
        "tools/convert_xp_csv.py",
        tables.SAMPLED,
        archive_ids=True,
    ),
    "metadata": FileKind(
        "metadata of the archive",
        "query_xp_metadata.py",
        (*tables.METADATA, *tables.ZERO_POINT),
        "xp_metadata",
        "xp_metadata",
        archive_ids=True,
    ),
    **{
        survey.name: FileKind(
            f"{survey.title} photometry, matched sources only",
            survey.step,
            tables.survey_columns(survey),
            survey.folder,
            survey.prefix,
            optional=True,
        )
        for survey in SURVEYS.values()
    },
    "reddening": FileKind(
        "reddening, of the maps asked for",
        "query_reddening_gaia.py",
        tables.REDDENING,
        "xp_dustmap_match",
        "xp_reddening_match",
        optional=True,
    ),
    "training": FileKind(
        "the training set",
        "compile_training_data.py",
        (*tables.STAR, *tables.TRAINING, *tables.TYPICAL_NOISE),
        format=tables.STAR_FORMAT,
    ),
    "opt_input": FileKind(
        "inputs of the inference",
        "gen_xp_input_allsources.py",
        tables.STAR,
        "xp_opt_input_files",
        "xp_opt_input",
        format=tables.STAR_FORMAT,
    ),
    "opt_output": FileKind(
        "the catalogue",
        "xp_opt_allsources.py",
        (*tables.COPIED, *tables.INFERRED),
        "xp_opt_output_files",
        "xp_opt_output",
        format=tables.INFERRED_FORMAT,
    ),
    "validation": FileKind(
        "validation stars",
        "train.py",
        (tables.ID, *tables.INFERRED, *tables.TRAINING[:2]),
        format=tables.INFERRED_FORMAT,
    ),
    "samples": FileKind(  # in a folder of their own, of the shards that have chosen stars
        "draws from the posteriors of chosen stars",
        "xp_opt_allsources.py",
        tables.SAMPLES,
    ),
}
KINDS = {name: kind for name, kind in FILES.items() if kind.folder}


# ---- spelling out ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Layout:
    """What the sizes of datasets follow from: the release and its labels; draws of a star."""

    release: Release = dataclasses.field(default_factory=load_release)
    labels: LabelSet = DEFAULT_LABELS
    draws: int = 1000

    def size(self, symbol) -> int:
        """The number that a name in `Column.shape` stands for."""
        if isinstance(symbol, int):
            return symbol
        if ":" in symbol:
            band, column = symbol.split(":")
            return self.release.spectra.bands[band].width(column)
        n = len(self.labels.parameters)
        sizes = {
            "label": len(self.labels),
            "parameter": n,
            "draw": self.draws,
            "triangle": n * (n + 1) // 2,
            "flux": len(self.wavelengths),
            "xp": len(self.release.spectra.wavelengths),
            "fine": len(self.release.spectra.fine_wavelengths),
        }
        return sizes[symbol]

    @property
    def wavelengths(self) -> np.ndarray:
        """(n_flux,) nm, of the flux vector: XP, then the photometric bands."""
        return np.concatenate([self.release.spectra.wavelengths, [b.wavelength for b in BANDS]])

    @property
    def channels(self) -> list[str]:
        """What each flux is of: "xp", or the name of a band."""
        return ["xp"] * len(self.release.spectra.wavelengths) + [band.name for band in BANDS]

    def attribute(self, name):
        """The value of a name in `Column.attributes`."""
        values = {
            "sample_wavelengths": lambda: self.wavelengths,
            "channels": lambda: self.channels,
            "xp_wavelengths": lambda: self.release.spectra.wavelengths,
            "fine_wavelengths": lambda: self.release.spectra.fine_wavelengths,
            "labels": self.labels.to_json,
            "label_names": lambda: self.labels.texts("name"),
            "label_units": lambda: self.labels.texts("unit"),
            "parameters": lambda: [p.name for p in self.labels.parameters],
            "parameter_units": lambda: [p.unit for p in self.labels.parameters],
        }
        return values[name]()


@dataclass(frozen=True)
class Dataset:
    """A dataset spelled out: shape after the first axis in numbers; attributes {name: value}."""

    name: str
    dtype: str
    shape: tuple
    attributes: dict
    optional: bool = False
    passed: bool = False
    source: str | None = None
    axis: str = tables.STARS


def _words(column, layout) -> dict:
    """{name in braces: what it stands for} in a column's text."""
    if "{quality_flags}" in column.text:
        return {"quality_flags": flags.describe(flags.quality_flag(layout.labels))}
    return {"labels": layout.labels.words, "parameters": layout.labels.parameter_words}


def _several(column, layout):
    """(name, {name in braces: value}) of each dataset that a Column stands for."""
    if "{band}" in column.name:
        for band in XP_BANDS:
            yield column.name.format(band=band), {"band": band}
    elif "{label}" in column.name or "{direct}" in column.name:
        for label in layout.labels:
            if "{direct}" not in column.name or not label.forward:
                words = dataclasses.asdict(label) | {"tolerance": f"{label.tolerance:g}"}
                yield column.name.format(label=label.name, direct=label.name), words
    else:
        yield column.name.format(id=layout.release.id_column), {}


def _may_lack(column, release) -> bool:
    """Whether the archive may lack a column of the metadata: all but those that are needed."""
    archive = release.archive
    return column.source is not None and (
        column.name not in archive.needed or not archive.tables.get(column.source)
    )


def _is_of(column, release) -> bool:
    """Whether a release's spectra have a column: errors and correlations, or covariances."""
    name = column.name.removeprefix("{band}_")
    return not name.startswith("coefficient") or name in release.spectra.array_columns


class Datasets(dict):
    """{name: Dataset} of a kind of file, and which kind it is (a key of FILES)."""

    def __init__(self, kind, datasets=()):
        super().__init__(datasets)
        self.kind = kind

    @property
    def format(self) -> int:
        return FILES[self.kind].format

    def only(self, names):
        """The same kind with some of its datasets."""
        return Datasets(self.kind, {name: self[name] for name in names})


def resolved(kind, layout=None, axes=(tables.STARS,)) -> Datasets:
    """{name: Dataset} of a kind of file (a key of FILES), spelled out for a `Layout`; axes: those
    whose first axis is one of these."""
    layout = Layout() if layout is None else layout
    out = Datasets(kind)
    for column in FILES[kind].columns:
        if column.axis not in axes or not _is_of(column, layout.release):
            continue
        for name, words in _several(column, layout):
            shape = tuple(
                layout.size(s.format(**words) if isinstance(s, str) else s) for s in column.shape
            )
            if 0 in shape:  # a release without it
                continue
            text = column.text.format(**_words(column, layout), **words)
            unit = column.unit and column.unit.format(**words)
            attributes = {"units": unit, "description": text, "ucd": column.ucd}
            attributes |= {key: layout.attribute(key) for key in column.attributes}
            given = {key: value for key, value in attributes.items() if value is not None}
            if not text:
                del given["description"]
            out[name] = Dataset(
                name,
                column.dtype,
                shape,
                given,
                column.optional or _may_lack(column, layout.release),
                column.passed is not None,
                column.source,
                column.axis,
            )
    return out


def inferred_columns(labels) -> dict:
    """{name: Dataset} of what the inference makes of a star, for a `LabelSet`."""
    layout = Layout(labels=labels)
    copied = {column.name.format(id=layout.release.id_column) for column in tables.COPIED}
    found = resolved("opt_output", layout)
    return {name: data for name, data in found.items() if name not in copied}


def describe(kind, layout=None) -> str:
    """The datasets of a kind of file as a text table, for --help."""
    rows = []
    for data in resolved(kind, layout, (tables.STARS, tables.NOISES)).values():
        shape = "".join(f",{n}" for n in data.shape)
        unit = data.attributes.get("units")
        text = data.attributes.get("description", "")
        rows.append(f"  {data.name} ({data.axis}{shape}){f' [{unit}]' if unit else ''}: {text}")
    return "\n".join(rows)
