"""Every dataset of every file, once: dtype, shape, unit, UCD, words, and the step that writes it.

Writers create from these tables and readers check against them; `--help`, the attributes of the
datasets and the tables in README.md and docs/files.md come from them. A Column may stand for
several datasets: "{label}_confidence" is one a label, "{band}_coefficients" one for BP and one for
RP, "{id}" the release's name of the id. `resolved` spells them out for a release and its labels.

To add a column of the archive: one line in METADATA (and its name in the release's file, where it
differs). With `passed` it is copied on, through steps 7 and 9 into the catalogue. To add an
inferred one: a line in INFERRED, and what computes it in fitting/catalogue.py.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from pipeline.schema import flags
from pipeline.schema.bands import BANDS, SURVEYS
from pipeline.schema.labels import DEFAULT_LABELS, LabelSet
from pipeline.schema.release import XP_BANDS, Release, load_release

MODEL_FILE = "model.h5"  # in the output folder of train.py: arrays, as fitting/ makes them
FLUX_UNIT = "1e-18 W m-2 nm-1"
MAP_UNIT = "in the map's own unit, which is its attribute `units`"


@dataclass(frozen=True)
class Column:
    """A dataset, or several alike. shape: after the star axis, numbers or the names of `sizes`.

    passed: dtype under which the column is copied on into training set, inputs and catalogue.
    source: of a column of the metadata, the archive's table (a key of the release's tables).
    optional: a file without it can be used. attributes: names of further attributes.
    """

    name: str
    dtype: str = "f4"
    unit: str | None = None
    text: str = ""
    ucd: str | None = None
    shape: tuple = ()
    passed: str | None = None
    source: str | None = None
    optional: bool = False
    attributes: tuple = ()


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


ID = Column("{id}", "i8", text="source id of the release", ucd="meta.id;meta.main")
SOURCE_ID = Column("source_id", "i8", text="source id of the release", ucd="meta.id;meta.main")

# ---- step 1: the spectra ---------------------------------------------------------------------

XP = (
    SOURCE_ID,
    Column("{band}_basis_function_id", "i2", text="id of the basis", optional=True),
    Column("{band}_n_parameters", "i2", text="number of coefficients"),
    Column(
        "{band}_coefficients", "f8", text="of the basis functions", shape=("{band}:coefficients",)
    ),
    Column("{band}_coefficient_errors", text="1 sigma", shape=("{band}:coefficient_errors",)),
    Column(
        "{band}_coefficient_correlations",
        text="strictly lower triangle, row order",
        shape=("{band}:coefficient_correlations",),
    ),
    Column(
        "{band}_coefficient_covariances",
        text="lower triangle, row order",
        shape=("{band}:coefficient_covariances",),
    ),
    # What the archive says of the solution, kept for whom it may interest; no step reads it.
    Column("solution_id", "i8", text="of the processing", optional=True),
    Column("{band}_degrees_of_freedom", "i2", text="of the solution", optional=True),
    Column("{band}_n_measurements", "i2", text="used", optional=True),
    Column("{band}_n_rejected_measurements", "i2", text="not used", optional=True),
    Column("{band}_standard_deviation", text="of the solution, in the errors", optional=True),
    Column("{band}_chi_squared", text="of the solution", optional=True),
    Column("{band}_n_relevant_bases", "i2", text="bases beyond the noise", optional=True),
    Column("{band}_relative_shrinking", text="by leaving out the others", optional=True),
)

# ---- step 2: the metadata --------------------------------------------------------------------


def _gaia(name, dtype, unit=None, text="", ucd=None, passed=None):
    return Column(name, dtype, unit, text, ucd, passed=passed, source="source")


def _quality(name, unit=None, text="", ucd=None, passed=None):
    return Column(name, "f4", unit, text, ucd, passed=passed, source="quality")


METADATA = (
    _gaia("source_id", "i8", None, "source id of the release", "meta.id;meta.main"),
    _gaia("random_index", "i8", None, "random number, for subsets", "meta.code"),
    _gaia("ref_epoch", "f8", "yr", "epoch of the position", "meta.ref;time.epoch"),
    _gaia("ra", "f8", "deg", "right ascension", "pos.eq.ra;meta.main", passed="f8"),
    _gaia("ra_error", "f4", "mas", "1 sigma", "stat.error;pos.eq.ra"),
    _gaia("dec", "f8", "deg", "declination", "pos.eq.dec;meta.main", passed="f8"),
    _gaia("dec_error", "f4", "mas", "1 sigma", "stat.error;pos.eq.dec"),
    _gaia(
        "parallax", "f8", "mas", "zero point subtracted; raw where there is none", "pos.parallax"
    ),
    _gaia("parallax_error", "f4", "mas", "1 sigma", "stat.error;pos.parallax"),
    _gaia("pmra", "f8", "mas / yr", "proper motion in RA, times cos dec", "pos.pm;pos.eq.ra"),
    _gaia("pmra_error", "f4", "mas / yr", "1 sigma", "stat.error;pos.pm;pos.eq.ra"),
    _gaia("pmdec", "f8", "mas / yr", "proper motion in declination", "pos.pm;pos.eq.dec"),
    _gaia("pmdec_error", "f4", "mas / yr", "1 sigma", "stat.error;pos.pm;pos.eq.dec"),
    _gaia("ruwe", "f4", None, "renormalised unit weight error", "stat.error", passed="f4"),
    _gaia("astrometric_excess_noise", "f4", "mas", "excess noise", "stat.value"),
    _gaia("astrometric_sigma5d_max", "f4", "mas", "longest axis of the 5-d error", "stat.error"),
    _gaia("visibility_periods_used", "i2", None, "visibility periods", "meta.number"),
    _gaia("nu_eff_used_in_astrometry", "f4", "um-1", "effective wavenumber", "em.wavenumber"),
    _gaia("pseudocolour", "f4", "um-1", "astrometric pseudocolour", "em.wavenumber"),
    _gaia("ecl_lat", "f8", "deg", "ecliptic latitude", "pos.ecliptic.lat"),
    _gaia("astrometric_params_solved", "i2", None, "bits of what was solved for", "meta.number"),
    _gaia("radial_velocity", "f4", "km / s", "radial velocity", "spect.dopplerVeloc.opt"),
    _gaia("radial_velocity_error", "f4", "km / s", "1 sigma", "stat.error;spect.dopplerVeloc.opt"),
    _gaia("rv_nb_transits", "i2", None, "transits of the radial velocity", "meta.number"),
    _gaia("rv_expected_sig_to_noise", "f4", None, "signal to noise", "stat.snr"),
    _gaia("rv_renormalised_gof", "f4", None, "goodness of fit", "stat.fit.goodness"),
    _gaia("rv_chisq_pvalue", "f4", None, "p-value of constancy", "stat.fit.param"),
    _gaia("phot_g_mean_mag", "f4", "mag", "G", "phot.mag;em.opt"),
    _gaia("phot_bp_mean_mag", "f4", "mag", "BP", "phot.mag;em.opt.B"),
    _gaia("phot_rp_mean_mag", "f4", "mag", "RP", "phot.mag;em.opt.R"),
    _gaia("phot_g_mean_flux", "f8", "electron/s", "G flux", "phot.flux;em.opt", passed="f4"),
    _gaia("phot_g_mean_flux_error", "f4", "electron/s", "1 sigma", "stat.error", passed="f4"),
    _gaia("phot_bp_mean_flux", "f8", "electron/s", "BP flux", "phot.flux;em.opt.B", passed="f4"),
    _gaia("phot_bp_mean_flux_error", "f4", "electron/s", "1 sigma", "stat.error", passed="f4"),
    _gaia("phot_rp_mean_flux", "f8", "electron/s", "RP flux", "phot.flux;em.opt.R", passed="f4"),
    _gaia("phot_rp_mean_flux_error", "f4", "electron/s", "1 sigma", "stat.error", passed="f4"),
    _gaia("phot_g_n_obs", "i2", None, "observations in G", "meta.number"),
    _gaia("phot_bp_n_obs", "i2", None, "observations in BP", "meta.number"),
    _gaia("phot_rp_n_obs", "i2", None, "observations in RP", "meta.number"),
    _gaia("phot_bp_rp_excess_factor", "f4", None, "(BP + RP) / G flux", "stat.value"),
    _gaia("has_xp_continuous", "?", None, "whether there is an XP spectrum", "meta.code"),
    _gaia("has_rvs", "?", None, "whether there is an RVS spectrum", "meta.code"),
    _gaia("non_single_star", "i2", None, "bits of non-single-star solutions", "meta.code"),
    _gaia("phot_variable_flag", "S13", None, "photometric variability", "meta.code"),
    _quality("fidelity_v2", None, "fidelity of the astrometry, 0..1", "stat.probability"),
    _quality("norm_dg", "mag", "flux of neighbours; NaN: none", "phot.mag", passed="f4"),
    _quality(
        "theta_arcsec_worst_source",
        "arcsec",
        "distance of the neighbour that disturbs most",
        "pos.angDistance",
    ),
    _quality(
        "dist_nearest_neighbor_at_least_m2_brighter",
        "arcsec",
        "distance of the nearest source that is at most 2 mag fainter",
        "pos.angDistance",
    ),
    _quality(
        "dist_nearest_neighbor_at_least_0_brighter",
        "arcsec",
        "distance of the nearest source that is brighter",
        "pos.angDistance",
    ),
    _quality(
        "dist_nearest_neighbor_at_least_2_brighter",
        "arcsec",
        "distance of the nearest source that is 2 mag brighter or more",
        "pos.angDistance",
    ),
)
ZERO_POINT = (
    Column("parallax_raw", "f8", "mas", "as in the archive", "pos.parallax"),
    Column("parallax_zeropoint", "f4", "mas", "what was subtracted; NaN: nothing", "pos.parallax"),
    Column(
        "parallax_zeropoint_flags", "u1", None, flags.describe(flags.ZeroPointFlag), "meta.code"
    ),
)

# ---- steps 3 and 4: the surveys --------------------------------------------------------------


def _survey_columns(survey):
    columns = (
        Column(**fields | {"shape": tuple(fields.get("shape", ()))}) for fields in survey.columns
    )
    return (ID, *columns)


# ---- step 5: reddening -----------------------------------------------------------------------

DUST_MAPS = ("bayestar", "sfd", "planck", "bh")
_OF_COLUMN = f"reddening of the whole line of sight, {MAP_UNIT}"
REDDENING = (
    ID,
    *(
        column
        for name in DUST_MAPS
        for column in (
            Column(
                f"E_mean_{name}",
                text=f"reddening at the star, {MAP_UNIT}" if name == "bayestar" else _OF_COLUMN,
                ucd="phys.absorption",
                optional=True,
            ),
            *(
                [
                    Column(
                        "E_sigma_bayestar",
                        text="standard deviation over distances and samples of the map",
                        ucd="stat.error;phys.absorption",
                        optional=True,
                    )
                ]
                if name == "bayestar"
                else []
            ),
            Column(
                f"coverage_{name}",
                "u1",
                text=flags.describe(flags.Coverage),
                ucd="meta.code",
                optional=True,
            ),
        )
    ),
)

# ---- steps 7 and 9: stars as the model sees them ---------------------------------------------

PASSED = tuple(
    dataclasses.replace(column, dtype=column.passed, passed=None, source=None)
    for column in METADATA
    if column.passed
)
PARALLAX = (
    Column("plx", "f4", "mas", "parallax, zero point corrected; NaN: none", "pos.parallax"),
    Column("plx_err", "f4", "mas", "1 sigma of the parallax", "stat.error;pos.parallax"),
)
FLUX = (
    Column(
        "flux",
        "f4",
        FLUX_UNIT,
        "XP spectrum, then photometric bands (attribute `channels`); 0 where not used",
        "phot.flux.density;em.wl",
        ("flux",),
        attributes=("sample_wavelengths", "channels"),
    ),
    Column(
        "flux_err",
        "f4",
        FLUX_UNIT,
        "1 sigma with error floors; inf where not used",
        "stat.error;phot.flux.density;em.wl",
        ("flux",),
        attributes=("sample_wavelengths", "channels"),
    ),
)
STAR_FORMAT = 2  # 1 had the whitening of the XP covariance, and no names of the channels
INPUT_FLAGS = Column("input_flags", "u2", None, flags.describe(flags.InputFlag), "meta.code")
STAR = (ID, *PASSED, *PARALLAX, *FLUX, INPUT_FLAGS)
TRAINING = (
    Column(
        "stellar_type",
        text="labels: {labels}",
        shape=("label",),
        attributes=("labels", "label_names", "label_units"),
    ),
    Column("stellar_type_err", text="1 sigma of the labels", ucd="stat.error", shape=("label",)),
    Column(
        "stellar_ext",
        unit="mag",
        text="initial reddening in the unit of the map of stellar_ext_source; NaN: none",
        ucd="phys.absorption",
    ),
    Column(
        "stellar_ext_err", unit="mag", text="1 sigma; inf: none", ucd="stat.error;phys.absorption"
    ),
    Column(
        "stellar_ext_source",
        "S12",
        text="bayestar; sfd, planck, bh for a star beyond the dust, with _limit for one that may "
        "lie within it; none",
        ucd="meta.ref",
    ),
)

# ---- step 10: the catalogue ------------------------------------------------------------------

_ERR = "stat.error"
INFERRED_FORMAT = 2  # 1 had the parameters in another order: E, parallax, xi
INFERRED = (
    Column(
        "stellar_params_est",
        text="{parameters}: the forward model, pooled with the direct estimate",
        shape=("parameter",),
        attributes=("parameters", "parameter_units"),
    ),
    Column(
        "stellar_params_err",
        text="1 sigma",
        ucd=_ERR,
        shape=("parameter",),
        attributes=("parameters", "parameter_units"),
    ),
    Column(
        "stellar_params_cov_triu",
        text="covariance: upper triangle, row order",
        ucd="stat.covariance",
        shape=("triangle",),
        attributes=("parameters",),
    ),
    Column(
        "stellar_params_icov_triu",
        "f8",
        text="inverse of the covariance: upper triangle, row order; float64, so that it can be "
        "inverted",
        ucd="stat.covariance",
        shape=("triangle",),
        attributes=("parameters",),
    ),
    Column(
        "model_params_est",
        text="{parameters}: the forward model alone, the maximum of its posterior",
        shape=("parameter",),
        attributes=("parameters", "parameter_units"),
    ),
    Column(
        "model_params_err",
        text="1 sigma, of the forward model alone",
        ucd=_ERR,
        shape=("parameter",),
        attributes=("parameters", "parameter_units"),
    ),
    Column(
        "second_params_est",
        text="{parameters}: best solution in another family of stars; NaN: none",
        shape=("parameter",),
        attributes=("parameters", "parameter_units"),
    ),
    Column(
        "second_delta_ln_post",
        text="ln posterior of that solution, relative to the best",
        ucd="stat.likelihood",
    ),
    Column(
        "chi2_opt", text="chi^2 under the learned noise, at model_params_est", ucd="stat.fit.chi2"
    ),
    Column("n_flux", "i2", text="fluxes with weight", ucd="meta.number"),
    Column("ln_prior", text="ln of the prior of stellar types there", ucd="stat.likelihood"),
    Column(
        "ln_post",
        text="ln posterior there, per unit of ln E, up to a constant",
        ucd="stat.likelihood",
    ),
    Column(
        "{direct}_est",
        unit="{unit}",
        text="{title}, by the direct estimate alone",
    ),
    Column("{direct}_err", unit="{unit}", text="1 sigma of it", ucd=_ERR),
    Column(
        "{label}_confidence",
        text="probability of being within 3 sigma and {tolerance} {unit} of the truth",
        ucd="stat.probability",
    ),
    Column("quality_flags", "u2", text="{quality_flags}", ucd="meta.code.qual"),
)

FILES = {
    "xp": FileKind(
        "XP continuous mean spectra",
        "tools/convert_xp_csv.py",
        XP,
        "xp_continuous_mean_spectrum",
        "XpContinuousMeanSpectrum",
        archive_ids=True,
        foreign=True,
    ),
    "metadata": FileKind(
        "metadata of the archive",
        "query_xp_metadata.py",
        (*METADATA, *ZERO_POINT),
        "xp_metadata",
        "xp_metadata",
        archive_ids=True,
    ),
    **{
        survey.name: FileKind(
            f"{survey.title} photometry, matched sources only",
            survey.step,
            _survey_columns(survey),
            survey.folder,
            survey.prefix,
            optional=True,
        )
        for survey in SURVEYS.values()
    },
    "reddening": FileKind(
        "reddening, of the maps asked for",
        "query_reddening_gaia.py",
        REDDENING,
        "xp_dustmap_match",
        "xp_reddening_match",
        optional=True,
    ),
    "training": FileKind(
        "the training set", "compile_training_data.py", (*STAR, *TRAINING), format=STAR_FORMAT
    ),
    "opt_input": FileKind(
        "inputs of the inference",
        "gen_xp_input_allsources.py",
        STAR,
        "xp_opt_input_files",
        "xp_opt_input",
        format=STAR_FORMAT,
    ),
    "opt_output": FileKind(
        "the catalogue",
        "xp_opt_allsources.py",
        (ID, *PASSED, *PARALLAX, INPUT_FLAGS, *INFERRED),
        "xp_opt_output_files",
        "xp_opt_output",
        format=INFERRED_FORMAT,
    ),
    "validation": FileKind(
        "validation stars", "train.py", (ID, *INFERRED, *TRAINING[:2]), format=INFERRED_FORMAT
    ),
}
KINDS = {name: kind for name, kind in FILES.items() if kind.folder}


# ---- spelling out ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Layout:
    """What the sizes of datasets follow from: the release and its labels."""

    release: Release = dataclasses.field(default_factory=load_release)
    labels: LabelSet = DEFAULT_LABELS

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
            "triangle": n * (n + 1) // 2,
            "flux": len(self.wavelengths),
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
            "labels": self.labels.to_json,
            "label_names": lambda: self.labels.texts("name"),
            "label_units": lambda: self.labels.texts("unit"),
            "parameters": lambda: [p.name for p in self.labels.parameters],
            "parameter_units": lambda: [p.unit for p in self.labels.parameters],
        }
        return values[name]()


@dataclass(frozen=True)
class Dataset:
    """A dataset spelled out: shape after the star axis in numbers; attributes {name: value}."""

    name: str
    dtype: str
    shape: tuple
    attributes: dict
    optional: bool = False
    passed: bool = False
    source: str | None = None


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


def resolved(kind, layout=None) -> Datasets:
    """{name: Dataset} of a kind of file (a key of FILES), spelled out for a `Layout`."""
    layout = Layout() if layout is None else layout
    out = Datasets(kind)
    for column in FILES[kind].columns:
        if not _is_of(column, layout.release):
            continue
        for name, words in _several(column, layout):
            shape = tuple(
                layout.size(s.format(**words) if isinstance(s, str) else s) for s in column.shape
            )
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
            )
    return out


def inferred_columns(labels) -> dict:
    """{name: Dataset} of what the inference makes of a star, for a `LabelSet`."""
    copied = {column.name for column in (ID, *PASSED, *PARALLAX, INPUT_FLAGS)}
    layout = Layout(labels=labels)
    copied.add(layout.release.id_column)
    found = resolved("opt_output", layout)
    return {name: data for name, data in found.items() if name not in copied}


def describe(kind, layout=None) -> str:
    """The datasets of a kind of file as a text table, for --help."""
    rows = []
    for data in resolved(kind, layout).values():
        shape = "".join(f",{n}" for n in data.shape)
        unit = data.attributes.get("units")
        text = data.attributes.get("description", "")
        rows.append(f"  {data.name} (N{shape}){f' [{unit}]' if unit else ''}: {text}")
    return "\n".join(rows)
