"""Photometric bands and the surveys that they come from, as tables/bands.toml declares them."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).resolve().parents[2] / "tables" / "bands.toml"
_PLACE = re.compile(r"(\w+)(?:\[(\d+)\])?")
_CUT = re.compile(rf"({_PLACE.pattern}) (<|>|==) (\S+)( or missing)?")
SYSTEMS = ("mag", "nanomaggy")
METADATA_COLUMNS = ("norm_dg",)  # of the metadata, that cuts may ask for


@dataclass(frozen=True)
class Place:
    """A column of a match file, or an element of it: of an array, or a character of a text."""

    column: str
    element: int | None = None

    @classmethod
    def parse(cls, text):
        match = _PLACE.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not a column or column[element]")
        return cls(match[1], None if match[2] is None else int(match[2]))


@dataclass(frozen=True)
class Cut:
    """What a flux must fulfil to be used; see the head of tables/bands.toml."""

    place: Place
    relation: str
    limit: float | str
    or_missing: bool

    @classmethod
    def parse(cls, text):
        match = _CUT.fullmatch(text)
        if match is None:
            raise ValueError(f'{text!r} is not a cut, as "qf[0] > 0.8" is one')
        limit = match[5] if match[4] == "==" else float(match[5])
        return cls(Place.parse(match[1]), match[4], limit, match[6] is not None)


@dataclass(frozen=True)
class SurveyFlag:
    """The bit of `input_flags` that says that a star has no flux of the survey."""

    name: str
    bit: int
    text: str


@dataclass(frozen=True)
class Survey:
    """A survey: where its match files lie, what is in them, and when its fluxes are used.

    columns: dicts as in the table. max_error: of a magnitude, or relative for "nanomaggy".
    """

    name: str
    title: str
    folder: str
    prefix: str
    step: str
    system: str
    max_error: float
    cuts: tuple
    flag: SurveyFlag
    columns: tuple


@dataclass(frozen=True)
class Band:
    """A band: wavelength in nm, vega_to_ab with m_AB = m + vega_to_ab, depth (magnitude of an error
    of 0.1 mag), its columns, and extinction, relative to 550 nm, where training holds it."""

    name: str
    symbol: str
    survey: str
    wavelength: float
    vega_to_ab: float
    depth: float
    value: Place
    error: Place
    cuts: tuple
    extinction: float | None = None


def parse_bands(text):
    """({name: Survey}, tuple of Bands) of a table like tables/bands.toml.

    Raises ValueError where an entry is not what it should be.
    """
    table = tomllib.loads(text)
    surveys = {}
    for name, fields in table["surveys"].items():
        parsed = {
            "cuts": tuple(map(Cut.parse, fields["cuts"])),
            "flag": SurveyFlag(**fields["flag"]),
            "columns": tuple(fields["columns"]),
        }
        surveys[name] = Survey(**{"name": name} | fields | parsed)
        if surveys[name].system not in SYSTEMS:
            raise ValueError(f"survey {name}: system {surveys[name].system!r}, known: {SYSTEMS}")
    bands = []
    for fields in table["bands"]:
        parsed = {key: Place.parse(fields[key]) for key in ("value", "error")}
        parsed["cuts"] = tuple(map(Cut.parse, fields["cuts"]))
        bands.append(Band(**fields | parsed))
        if bands[-1].survey not in surveys:
            raise ValueError(f"band {bands[-1].name}: no survey {bands[-1].survey!r}")
    return surveys, tuple(bands)


SURVEYS, BANDS = parse_bands(TABLE.read_text())


def photometry_columns(survey, surveys=SURVEYS, bands=BANDS) -> tuple:
    """Names of the columns of a survey's match file that flux vectors are made from."""
    places = [cut.place for cut in surveys[survey].cuts]
    for band in bands:
        if band.survey == survey:
            places += [band.value, band.error, *(cut.place for cut in band.cuts)]
    return tuple(dict.fromkeys(p.column for p in places if p.column not in METADATA_COLUMNS))
