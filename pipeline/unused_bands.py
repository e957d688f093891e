"""Why a photometric band of a star is not used: what was measured, and the first cut that fails."""

import numpy as np

from pipeline.photometry import PHOTOMETRY, cut_values, measured_flux, passes


def unused_bands(tables, metadata, photometry=PHOTOMETRY):
    """What the surveys have of N stars, and why step 9 does not use it.

    tables, metadata: as of `photometry.photometry_flux`; a table has also `matched` (N,) bool, and
    is None where it is not known what is in it.

    Returns flux (N, n) in FLUX_UNIT, NaN where nothing was measured, and reasons (N, n) of str, ""
    where there is none, or none is known.
    """
    surveys, bands = photometry
    n_stars = len(next(iter(metadata.values())))
    flux = np.full((n_stars, len(bands)), np.nan)
    reasons = np.full((n_stars, len(bands)), "", object)
    for k, band in enumerate(bands):
        survey, table = surveys[band.survey], tables.get(band.survey)
        if table is not None:
            flux[:, k], reasons[:, k] = _of_band(band, survey, table, metadata)
    return flux, reasons


def _of_band(band, survey, table, metadata):
    """Flux (N,), NaN where none was measured, and reasons (N,) of a band."""
    with np.errstate(over="ignore", invalid="ignore"):
        flux, _, use = measured_flux(band, survey, table)
    flux = np.where(np.isfinite(flux) & (flux > 0), flux, np.nan)
    reasons = np.full(len(flux), "", object)

    def add(rows, words):
        for row in np.flatnonzero(rows & (reasons == "")):
            reasons[row] = words(row)

    add(~table["matched"], lambda row: "no match")
    add(np.isnan(flux), lambda row: "not measured")
    for cut in (*survey.cuts, *band.cuts):
        values = cut_values(cut, table, metadata)
        add(~passes(cut, table, metadata), lambda row, c=cut, v=values: _words(c, v[row]))
    add(~use, lambda row: "large error")
    return flux, reasons


def _words(cut, value):
    """What a cut found: "qf 0.41", "ph_qual B"."""
    shown = value.decode() if isinstance(value, bytes) else f"{value:.3g}".replace("-", "−")
    return f"{cut.place.column} {shown or 'none'}"
