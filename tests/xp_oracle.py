"""Slow, obvious counterparts of `xp_utils`, one star at a time, from the published formulae.

They share no code with what they are compared with: bands and cuts are spelled out here again.
"""

import math

import numpy as np

LIGHT = 2.99792458e8  # m/s
# name: wavelength (um), Vega -> AB (mag), 2MASS columns or place in the unWISE pair
TMASS = {"J": (1.235, 0.91, "j"), "H": (1.662, 1.39, "h"), "Ks": (2.159, 1.85, "ks")}
UNWISE = {"W1": (3.3526, 2.699, 0), "W2": (4.6028, 3.339, 1)}


def pixel_covariance(xp, star, band, design):
    """D^T C D of one band, from errors and correlations or from covariances."""
    n = len(design)
    covariance = np.zeros((n, n))
    if f"{band}_coefficient_covariances" in xp:
        numbers = iter(xp[f"{band}_coefficient_covariances"][star].astype(float))
        for row in range(n):
            for column in range(row + 1):
                covariance[row, column] = covariance[column, row] = next(numbers)
    else:
        correlation = np.eye(n)
        numbers = iter(xp[f"{band}_coefficient_correlations"][star].astype(float))
        for row in range(n):
            for column in range(row):
                correlation[row, column] = correlation[column, row] = next(numbers)
        error = np.diag(xp[f"{band}_coefficient_errors"][star].astype(float))
        covariance = error @ correlation @ error
    return design.T @ covariance @ design


def sampled(xp, star, basis):
    """flux (n_xp,), covariance without and with error floors (n_xp, n_xp) of one star."""
    n_xp = len(basis.wavelengths)
    flux, cov, floors = np.zeros(n_xp), np.zeros((n_xp, n_xp)), np.zeros((n_xp, n_xp))
    for band in ("bp", "rp"):
        design, weight = getattr(basis, f"{band}_design"), getattr(basis, f"{band}_weight")
        band_flux = weight * (xp[f"{band}_coefficients"][star] @ design)
        flux += band_flux
        cov += np.outer(weight, weight) * pixel_covariance(xp, star, band, design)
        floors += 0.001**2 * np.outer(band_flux, band_flux)
    floors += 0.005**2 * np.outer(flux, flux) + np.diag((0.005 * flux) ** 2)
    return flux, cov, cov + floors


def flux_of_magnitude(magnitude, wavelength, vega_to_ab):
    """1e-18 W m^-2 nm^-1 of a Vega magnitude; wavelength in um."""
    jansky = 3631 * 10 ** (-0.4 * (magnitude + vega_to_ab))
    per_metre = jansky * 1e-26 * LIGHT / (wavelength * 1e-6) ** 2  # W m^-2 m^-1
    return per_metre * 1e-9 / 1e-18


def photometry(tmass, unwise, norm_dg):
    """{band: (flux, err)} of the bands used of one star.

    tmass, unwise: {column: value} of its row, or None where it has none.
    """
    out = {}
    for k, (name, (wavelength, offset, column)) in enumerate(TMASS.items()):
        if tmass is None or not (math.isnan(norm_dg) or norm_dg < -5):
            continue
        error = float(tmass[f"{column}_msigcom"])
        if tmass["ph_qual"][k : k + 1] == b"A" and 0 < error < 0.2:
            flux = flux_of_magnitude(float(tmass[f"{column}_m"]), wavelength, offset)
            out[name] = flux, flux * math.hypot(error * math.log(10) / 2.5, 0.01)
    for name, (wavelength, offset, k) in UNWISE.items():
        if unwise is None or not (math.isnan(norm_dg) or norm_dg < -10):
            continue
        counts, error = float(unwise["flux"][k]), float(unwise["dflux"][k])
        good = unwise["qf"][k] > 0.8 and unwise["fracflux"][k] > 0.8
        if good and unwise["sep_arcsec"] < 0.25 and counts > 0 and 0 < error / counts < 0.2:
            flux = counts * flux_of_magnitude(22.5, wavelength, offset)
            out[name] = flux, flux * math.hypot(error / counts, 0.01)
    return out


def row_of(table, id_column, source_id):
    """{column: value} of a star's row, None where it has none."""
    rows = np.flatnonzero(table[id_column] == source_id)
    return {name: column[rows[0]] for name, column in table.items()} if len(rows) else None


def flux_vector(tables, star, basis, id_column):
    """flux, err (n,) of row `star` of the spectra: 0 and inf where not used.

    tables: {kind: table} of a shard, rows in any order; every XP spectrum is taken to be good.
    """
    source_id = tables["xp"]["source_id"][star]
    flux, _, cov = sampled(tables["xp"], star, basis)
    metadata = row_of(tables["metadata"], "source_id", source_id)
    surveys = (row_of(tables[kind], id_column, source_id) for kind in ("tmass", "unwise"))
    norm_dg = float(metadata.get("norm_dg", math.nan)) if metadata else math.nan
    bands = photometry(*surveys, norm_dg)
    pairs = [bands.get(name, (0.0, math.inf)) for name in (*TMASS, *UNWISE)]
    band_flux, band_err = zip(*pairs, strict=True)
    return np.append(flux, band_flux), np.append(np.sqrt(np.diag(cov)), band_err)
