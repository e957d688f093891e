"""The columns of the demo sky's files, made from the columns of a star file.

Every Column says whether it is real (observed), derived (computed from what is observed),
synthetic (assumed or made up) or none (nothing is known: NaN); types and units are those of
pipeline/schema/columns.py. `star` is everywhere a dict of (N,) arrays under the names of
demo/stars.h5 (described in demo/README.md).
"""

from dataclasses import dataclass

import numpy as np

from pipeline.schema import load_release

GAIA_ZERO_POINT = load_release("dr3").zero_points  # Vega
GAIA_FLUX_ERROR = {"g": 0.001, "bp": 0.005, "rp": 0.005}  # relative, assumed
OBLIQUITY = np.deg2rad(84381.411 / 3600)  # of the ecliptic in ICRS; Gaia DR3 documentation
TMASS_ERROR = 0.024  # mag, assumed: the file gives none
R_KS = 0.306  # A(Ks)/E(B-V); Yuan, Liu & Xiang 2013, MNRAS 430, 2188, as the next two
R_WISE = np.array([0.18, 0.16])  # A(W1), A(W2) over E(B-V)
KS_MINUS_WISE = np.array([0.06, 0.03])  # intrinsic Ks-W1, Ks-W2 of FGK stars, rounded
MAP_UNIT = "E(B-V) mag"  # of the reddening
UNWISE_FRACTION = 0.2  # of the stars get synthetic W1, W2
UNWISE_ERROR = 0.05  # relative, and the scatter put in
UNWISE_ZERO_POINT = 22.5  # Vega nanomaggies
REDDENING_ERROR_MIN, REDDENING_ERROR_RELATIVE = 0.03, 0.2  # assumed: the file gives none
LABEL_ERROR_FLOOR = 0.02  # kK or dex, in quadrature


@dataclass
class Column:
    """One dataset: values (N, ...), where they come from, words about them; units: where they are
    not those of the schema."""

    values: np.ndarray
    origin: str  # real, derived, synthetic or none
    text: str
    units: str | None = None


def nan_column(n):
    return Column(np.full(n, np.nan, "f4"), "none", "nothing known of these stars")


def constant_column(n, value, text):
    return Column(np.full(n, value), "synthetic", text)


def astrometry_columns(star, use_parallax, epoch):
    """Astrometry at an epoch (Julian year); parallaxes are NaN where not `use_parallax`."""
    n = len(star["source_id"])
    ra, dec = np.deg2rad(star["ra"]), np.deg2rad(star["dec"])
    sin_lat = np.cos(OBLIQUITY) * np.sin(dec) - np.sin(OBLIQUITY) * np.cos(dec) * np.sin(ra)
    plx_text = "spectro-photometric parallax (APOGEE Teff, log g; Ks) with 20% noise, NOT Gaia's"
    plx, plx_err = (
        star[k].astype("f8") if use_parallax else np.full(n, np.nan)
        for k in ("spectro_plx", "spectro_plx_err")
    )
    origin = "derived" if use_parallax else "none"
    out = {
        "ra": Column(star["ra"], "real", "2MASS position (0.1 arcsec), not Gaia's"),
        "dec": Column(star["dec"], "real", "2MASS position (0.1 arcsec), not Gaia's"),
        "parallax": Column(plx, origin, plx_text),
        "parallax_error": Column(plx_err.astype("f4"), origin, plx_text),
        "parallax_raw": Column(plx, origin, plx_text + "; no zero point applies"),
        "parallax_zeropoint": constant_column(n, 0.0, "none applies: not Gaia's"),
        "parallax_zeropoint_flags": constant_column(n, 0, "none applies: not Gaia's"),
        "ecl_lat": Column(np.rad2deg(np.arcsin(sin_lat)), "derived", "from ra, dec"),
        "ref_epoch": constant_column(n, epoch, "the archive's value"),
        "ruwe": constant_column(n, 1.0, "neutral value"),
        "astrometric_params_solved": constant_column(n, 31, "neutral value"),
        "visibility_periods_used": constant_column(n, 0, "0: not known"),
    }
    unknown = (
        "ra_error", "dec_error", "pmra", "pmra_error", "pmdec", "pmdec_error",
        "astrometric_excess_noise", "astrometric_sigma5d_max", "nu_eff_used_in_astrometry",
        "pseudocolour",
    )  # fmt: skip
    return out | {name: nan_column(n) for name in unknown}


def photometry_columns(star):
    """Gaia photometry of the metadata: fluxes are made from the real magnitudes."""
    out, flux = {}, {}
    n = len(star["source_id"])
    for band, zero_point in GAIA_ZERO_POINT.items():
        name = f"phot_{band}_mean"
        mag = star[f"{name}_mag"]
        flux[band] = 10 ** (-0.4 * (mag.astype("f8") - zero_point))
        error = (GAIA_FLUX_ERROR[band] * flux[band]).astype("f4")
        error_text = f"{GAIA_FLUX_ERROR[band]:.1%} of the flux, assumed"
        out[f"{name}_mag"] = Column(mag, "real", "Gaia DR3")
        out[f"{name}_flux"] = Column(
            flux[band], "derived", f"from the magnitude, Vega zero point {zero_point}"
        )
        out[f"{name}_flux_error"] = Column(error, "synthetic", error_text)
        out[f"phot_{band}_n_obs"] = constant_column(n, 0, "0: not known")
    excess = ((flux["bp"] + flux["rp"]) / flux["g"]).astype("f4")
    text = "(BP flux + RP flux) / G flux"
    return out | {"phot_bp_rp_excess_factor": Column(excess, "derived", text)}


def flag_columns(n):
    """Radial velocity, flags and neighbours of the metadata: nothing is known of these."""
    unknown = (
        "radial_velocity", "radial_velocity_error", "rv_expected_sig_to_noise",
        "rv_renormalised_gof", "rv_chisq_pvalue", "norm_dg", "theta_arcsec_worst_source",
        "dist_nearest_neighbor_at_least_m2_brighter", "dist_nearest_neighbor_at_least_0_brighter",
        "dist_nearest_neighbor_at_least_2_brighter",
    )  # fmt: skip
    return {name: nan_column(n) for name in unknown} | {
        "rv_nb_transits": constant_column(n, 0, "0: not known"),
        "has_xp_continuous": Column(np.ones(n, "?"), "real", "these stars have XP spectra"),
        "has_rvs": constant_column(n, False, "neutral value"),
        "non_single_star": constant_column(n, 0, "neutral value"),
        "phot_variable_flag": constant_column(n, b"NOT_AVAILABLE", "neutral value"),
        "fidelity_v2": constant_column(n, 1.0, "neutral value"),
    }


def id_column(star, text="Gaia DR3; the lowest 7 bits number the copies of a repeated star"):
    return Column(star["source_id"], "real", text)


def metadata_columns(star, use_parallax, epoch, seed):
    """Rows of the metadata, one per star; epoch: of the positions, Julian year."""
    n = len(star["source_id"])
    shuffled = np.random.default_rng([seed, int(star["source_id"][0])]).permutation(n)
    return {
        "source_id": id_column(star),
        "random_index": Column(shuffled.astype("i8"), "synthetic", "random within the shard"),
        **astrometry_columns(star, use_parallax, epoch),
        **photometry_columns(star),
        **flag_columns(n),
    }


def tmass_columns(star):
    """2MASS rows, one per star: magnitudes are real, errors and quality flags are not."""
    n = len(star["source_id"])
    designation = np.char.replace(star["apogee_id"], b"2M", b"").astype("S17")
    out = {
        "source_id": id_column(star),
        "designation": Column(designation, "real", "from the APOGEE id"),
        "tm_ra": Column(star["ra"], "real", "from the designation"),
        "tm_dec": Column(star["dec"], "real", "from the designation"),
        "ph_qual": constant_column(n, b"AAA", "neutral value"),
        "gaia_tmass_angular_distance": constant_column(
            n, 0.0, "0: the position given for the star is 2MASS's"
        ),
    }
    text = f"{TMASS_ERROR} mag, assumed"
    for band in ("j", "h", "ks"):
        out[f"{band}_m"] = Column(star[f"{band}_m"], "real", "2MASS")
        name = f"{band}_msigcom"
        given = name in star
        out[name] = (
            Column(star[name], "derived", "2MASS, as the star file has it")
            if given
            else constant_column(n, TMASS_ERROR, text)
        )
    return out


def unwise_columns(star, seed):
    """Synthetic W1, W2 for a random UNWISE_FRACTION of the stars, from Ks and A_K.

    m_W = Ks - (Ks - W)_0 - (A_K - A_W), with Gaussian noise of UNWISE_ERROR in flux.
    """
    rng = np.random.default_rng([seed, 1, int(star["source_id"][0])])
    matched = np.flatnonzero(rng.random(len(star["source_id"])) < UNWISE_FRACTION)
    e_bv = np.maximum(star["ak_targ"][matched, None].astype("f8"), 0) / R_KS
    mag = star["ks_m"][matched, None] - KS_MINUS_WISE - (R_KS - R_WISE) * e_bv  # (n, 2)
    exact = 10 ** (0.4 * (UNWISE_ZERO_POINT - mag))
    noise = 1 + UNWISE_ERROR * rng.standard_normal(exact.shape)
    source_id = star["source_id"][matched]
    text = "made from 2MASS Ks, not observed"
    pair = exact.shape
    return {
        "source_id": id_column({"source_id": source_id}),
        "unwise_objid": Column(
            np.char.add(b"d", source_id.astype("S19")), "synthetic", "not an unWISE object"
        ),
        "flux": Column((exact * noise).astype("f4"), "synthetic", text),
        "dflux": Column((exact * UNWISE_ERROR).astype("f4"), "synthetic", text),
        "qf": Column(np.full(pair, 1.0, "f4"), "synthetic", "neutral value"),
        "rchi2": Column(np.full(pair, 1.0, "f4"), "synthetic", "neutral value"),
        "fracflux": Column(np.full(pair, 1.0, "f4"), "synthetic", "neutral value"),
        "sep_arcsec": Column(np.full(len(matched), 0.05, "f4"), "synthetic", "neutral value"),
    }


def reddening_columns(star):
    """APOGEE's targeting A_K as E(B-V) in the place of Bayestar.

    The error is the larger of REDDENING_ERROR_MIN and 20% of |A_K| / 0.306: a strongly negative
    A_K is a failed estimate, so it becomes 0 with a large error.
    """
    e_bv = star["ak_targ"] / R_KS
    sigma = np.maximum(REDDENING_ERROR_MIN, REDDENING_ERROR_RELATIVE * np.abs(e_bv))
    text = "from APOGEE's targeting A_K / 0.306, NOT from the Bayestar map"
    return {
        "source_id": id_column(star),
        "E_mean_bayestar": Column(np.maximum(e_bv, 0).astype("f4"), "derived", text, "E(B-V) mag"),
        "E_sigma_bayestar": Column(
            sigma.astype("f4"), "synthetic", "larger of 0.03 and 20%, assumed", "E(B-V) mag"
        ),
        "coverage_bayestar": constant_column(len(sigma), 1, "1: a value is given"),
    }


def label_table(star, labels, id_column):
    """Structured array (N,) as Astropy's Table has it: labels, APOGEE DR17, and their errors.

    labels: LabelSet of K labels, columns of `star` in their shown units; where there is no column
    of the errors they are LABEL_ERROR_FLOOR.
    """
    shape = (len(labels),)
    fields = [(id_column, "i8"), ("params_est", "f4", shape), ("params_err", "f4", shape)]
    table = np.zeros(len(star["source_id"]), fields)
    table[id_column] = star["source_id"]
    for k, label in enumerate(labels):
        formal = star.get(f"{label.name}_err", np.zeros(len(table)))
        table["params_est"][:, k] = star[label.name] / label.scale
        table["params_err"][:, k] = np.hypot(formal / label.scale, LABEL_ERROR_FLOOR)
    return table
