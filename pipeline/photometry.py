"""Fluxes of the photometric bands of tables/bands.toml, from the match files of their surveys."""

import numpy as np

from pipeline.schema import BANDS, SURVEYS
from pipeline.schema.bands import METADATA_COLUMNS, Place

PHOTOMETRY = (SURVEYS, BANDS)  # what `schema.bands.parse_bands` gives
SPEED_OF_LIGHT = 299792458.0  # m/s, exact
AB_ZERO_POINT = 3631e-26  # W m^-2 Hz^-1 (3631 Jy)
NANOMAGGY_ZERO_POINT = 22.5  # mag, by definition
PHOTOMETRY_ERROR = 0.01  # relative, independent in every band; added in quadrature
# Fluxes and errors outside of this range are no measurements, and their squares leave float32.
FLUX_RANGE = (1e-18, 1e18)  # in schema.FLUX_UNIT


def vega_to_flux(magnitude, band):
    """Flux in FLUX_UNIT of a magnitude of a `schema.bands.Band`; m_AB = 0 is 3631 Jy, times
    c / lambda^2."""
    wavelength = band.wavelength * 1e-9  # m
    zero_point = AB_ZERO_POINT * SPEED_OF_LIGHT / wavelength**2  # W m^-2 m^-1
    return zero_point * 1e-9 * 1e18 * 10 ** (-0.4 * (magnitude + band.vega_to_ab))


def _numbers(table, place: Place):
    """(N,) float64 of a column, or of an element of it."""
    column = np.asarray(table[place.column], float)
    return column if place.element is None else column[:, place.element]


def _texts(table, place: Place):
    """(N,) bytes of a column of texts, or of a character of it."""
    texts = np.asarray(table[place.column]).astype("S")
    if place.element is None:
        return np.strings.strip(texts)
    width = max(texts.dtype.itemsize, place.element + 1)
    return (
        np.ascontiguousarray(texts.astype(f"S{width}"))
        .view("S1")
        .reshape(-1, width)[:, place.element]
    )


def cut_values(cut, table, metadata):
    """(N,) float64, or bytes, that a `schema.bands.Cut` asks about."""
    source = metadata if cut.place.column in METADATA_COLUMNS else table
    is_text = np.asarray(source[cut.place.column]).dtype.kind in "SUO"
    return (_texts if cut.relation == "==" and is_text else _numbers)(source, cut.place)


def passes(cut, table, metadata):
    """(N,) bool: the rows that fulfil a `schema.bands.Cut`."""
    values = cut_values(cut, table, metadata)
    if cut.relation == "==":
        return values == (cut.limit.encode() if values.dtype.kind == "S" else float(cut.limit))
    good = values < cut.limit if cut.relation == "<" else values > cut.limit
    return good | np.isnan(values) if cut.or_missing else good


def measured_flux(band, survey, table):
    """flux, err (N,) of a band before the relative floor, and whether they are measurements."""
    value, error = _numbers(table, band.value), _numbers(table, band.error)
    if survey.system == "mag":
        flux = vega_to_flux(value, band)
        return flux, flux * error * np.log(10) / 2.5, (error > 0) & (error < survey.max_error)
    relative = np.divide(error, value, out=np.full_like(value, np.inf), where=value > 0)
    use = (value > 0) & (relative > 0) & (relative < survey.max_error)
    flux = value * vega_to_flux(NANOMAGGY_ZERO_POINT, band)
    return flux, flux * np.where(use, relative, 1.0), use


def photometry_flux(tables, metadata, photometry=PHOTOMETRY):
    """Fluxes of the photometric bands.

    f_lambda = 3631 Jy c / lambda^2 10^(-0.4 (m_Vega + dm)), error f sigma_m ln(10) / 2.5, with 1%
    of the flux added in quadrature. A flux is used where it and its error are positive, the error
    is below its survey's largest, and the cuts of the survey and of the band are fulfilled.

    Args:
        tables: {survey: dict of its columns (`schema.photometry_columns`), rows aligned with the
            stars, NaN / b"" where there is no match; None where the survey is not used}.
        metadata: dict with the columns of the metadata that cuts ask for, (N,).
        photometry: ({name: Survey}, n bands), as `schema.bands.parse_bands` gives.

    Returns:
        flux, err (N, n) in FLUX_UNIT; 0 and inf where a band is not used.
    """
    surveys, bands = photometry
    n_stars = len(metadata[METADATA_COLUMNS[0]])
    flux = np.zeros((n_stars, len(bands)))
    err = np.full_like(flux, np.inf)
    for k, band in enumerate(bands):
        survey, table = surveys[band.survey], tables.get(band.survey)
        if table is None:
            continue
        with np.errstate(over="ignore", invalid="ignore"):  # of rows that are not used
            measured, error, use = measured_flux(band, survey, table)
            error = np.hypot(error, PHOTOMETRY_ERROR * measured)
        for cut in (*survey.cuts, *band.cuts):
            use &= passes(cut, table, metadata)
        use &= (measured < FLUX_RANGE[1]) & (error > FLUX_RANGE[0]) & (error < FLUX_RANGE[1])
        flux[use, k], err[use, k] = measured[use], error[use]
    return flux, err
