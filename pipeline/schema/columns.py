"""Every dataset of every file, once: dtype, shape, unit, UCD, words, and the step that writes it.

Writers create from these tables and readers check against them; `--help`, the attributes of the
datasets and the tables in README.md and docs/files.md come from them. A Column may stand for
several datasets: "{label}_confidence" is one a label, "{band}_coefficients" one for BP and one for
RP, "{id}" the release's name of the id. `files.resolved` spells them out for a release and labels.

To add a column of the archive: one line in METADATA (and its name in the release's file, where it
differs). With `passed` it is copied on, through steps 7 and 9 into the catalogue. To add an
inferred one: a line in INFERRED, and what computes it in fitting/catalogue.py.
"""

import dataclasses
from dataclasses import dataclass

from pipeline.schema import flags
from pipeline.schema.labels import EXTINCTION

FLUX_UNIT = "1e-18 W m-2 nm-1"
MAP_UNIT = "in the map's own unit, which is its attribute `units`"
STARS, NOISES = "N", "m"  # first axes of datasets: the stars of the file; sorts of noise


@dataclass(frozen=True)
class Column:
    """A dataset, or several alike. shape: after the star axis, numbers or the names of `sizes`.

    passed: dtype under which the column is copied on into training set, inputs and catalogue.
    source: of a column of the metadata, the archive's table (a key of the release's tables).
    optional: a file without it can be used. attributes: names of further attributes. axis: what the
    first axis is of, STARS or another.
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
    axis: str = STARS


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
    _quality("fidelity_v2", None, "fidelity of the astrometry, 0..1", "stat.probability", "f4"),
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


def survey_columns(survey):
    columns = (
        Column(**fields | {"shape": tuple(fields.get("shape", ()))}) for fields in survey.columns
    )
    return (ID, *columns)


# ---- step 5: reddening -----------------------------------------------------------------------

COLUMN_MAPS = ("sfd", "planck", "bh")  # of the whole line of sight, the preferred ones first
DUST_MAPS = ("bayestar", *COLUMN_MAPS)
_REDDENING = ("phys.absorption", "stat.error;phys.absorption")


def _of_map(name, text):
    """The mean reddening of a map, and where it has one."""
    coverage = flags.describe(flags.Coverage)
    return (
        Column(f"E_mean_{name}", text=f"{text}, {MAP_UNIT}", ucd=_REDDENING[0], optional=True),
        Column(f"coverage_{name}", "u1", None, coverage, "meta.code", optional=True),
    )


REDDENING = (
    ID,
    *_of_map("bayestar", "reddening at the star"),
    Column(
        "E_sigma_bayestar",
        text="standard deviation over distances and samples of the map",
        ucd=_REDDENING[1],
        optional=True,
    ),
    *(
        column
        for name in COLUMN_MAPS
        for column in _of_map(name, "reddening of the whole line of sight")
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
FINE = Column(
    "xp_fine",
    "f2",
    None,
    "XP spectrum on a finer grid, over the mean flux where RP alone has weight (else BP); NaN "
    "where not used",
    "phot.flux.density;em.wl",
    ("fine",),
    attributes=("fine_wavelengths",),
)
STAR_FORMAT = 2  # 1 had the whitening of the XP covariance, and no names of the channels
INPUT_FLAGS = Column("input_flags", "u2", None, flags.describe(flags.InputFlag), "meta.code")
SAMPLED = (
    SOURCE_ID,
    Column(
        "xp_flux",
        "f4",
        FLUX_UNIT,
        "XP spectrum; 0 where not used",
        "phot.flux.density;em.wl",
        ("xp",),
        attributes=("xp_wavelengths",),
    ),
    Column(
        "xp_flux_err",
        "f4",
        FLUX_UNIT,
        "1 sigma with error floors; inf where not used",
        "stat.error;phot.flux.density;em.wl",
        ("xp",),
        attributes=("xp_wavelengths",),
    ),
    FINE,
    INPUT_FLAGS,
)  # of step 1 with --sampled: what steps 7 and 9 make of the coefficients
STAR = (ID, *PASSED, *PARALLAX, *FLUX, FINE, INPUT_FLAGS)
COPIED = (ID, *PASSED, *PARALLAX, INPUT_FLAGS)  # from there into the catalogue
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


def _noise(name, *fields, **more):
    return Column(f"typical_noise/{name}", *fields, optional=True, axis=NOISES, **more)


# Of the reported errors of the coefficients, by brightness; a group, as these are not of stars.
TYPICAL_NOISE = (
    _noise("g", "f4", "mag", "mean G of the stars that each is the mean of", "phot.mag;em.opt"),
    _noise("n_stars", "i8", None, "their number", "meta.number"),
    _noise(
        "{band}_shape",
        text="errors of the coefficients relative to their median, geometric mean",
        ucd="stat.error",
        shape=("{band}:coefficients",),
    ),
    _noise(
        "{band}_correlations",
        text="mean correlations of the coefficients' errors: strictly lower triangle, row order",
        ucd="stat.correlation",
        shape=("{band}:coefficient_correlations",),
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
        "ext_signed_est",
        unit=EXTINCTION.unit,
        text="E by the posterior without the condition E > 0, so of either sign: where dust is "
        "little, means over stars are to be made of this one",
        ucd="phys.absorption",
    ),
    Column("ext_signed_err", unit=EXTINCTION.unit, text="1 sigma", ucd=_ERR),
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
        "parallax_tension",
        text="ln of the parallax less what the fluxes alone say of it, over both errors; NaN: no "
        "parallax",
        ucd="stat.fit.residual",
    ),
    Column(
        "blend_probability",
        text="that it is two stars of unlike type in one spectrum",
        ucd="stat.probability",
    ),
    Column(
        "strange_probability",
        text="that it is no star of the training set's kinds, nor two of them",
        ucd="stat.probability",
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
    Column("quality_flags", "u4", text="{quality_flags}", ucd="meta.code.qual"),
)

# ---- step 10 with --samples: draws from the posteriors of chosen stars -----------------------

_DRAWN = {"shape": ("draw", "parameter"), "attributes": ("parameters", "parameter_units")}
SAMPLES = (
    ID,
    Column(
        "stellar_samples",
        text="draws of {parameters}: of the catalogue's estimate, so of the forward model pooled "
        "with the direct estimate",
        **_DRAWN,
    ),
    Column(
        "model_samples",
        text="draws of {parameters}: of the forward model's posterior, as it is",
        **_DRAWN,
    ),
    Column(
        "effective_sample_size",
        text="of the draws of each parameter of model_samples",
        ucd="meta.number",
        shape=("parameter",),
        attributes=("parameters",),
    ),
    Column(
        "r_hat",
        text="of the split chains of each parameter of model_samples: near 1 where they have mixed",
        ucd="stat.value",
        shape=("parameter",),
        attributes=("parameters",),
    ),
    Column("acceptance", text="share of the chains' moves that were taken", ucd="stat.value"),
    Column(
        "second_share",
        text="share of model_samples nearer in type to second_params_est than to "
        "model_params_est; 0: there is no second solution",
        ucd="stat.probability",
    ),
    Column("sample_flags", "u1", None, flags.describe(flags.SampleFlag), "meta.code.qual"),
)
