"""Figures, all drawn here and from arrays only: nothing of files but the PNG that is written.

Every function is `name(path, ...) -> Path`. It draws one figure and saves it as a PNG, which
appears under its name only when whole. Common to all:

    labels, a `schema.LabelSet`: stellar labels are (N, K) in its order and units as stored; they
        are shown by its symbols, in the units that it says
    wavelengths (n_wl,) in nm: the XP spectrum first, n_xp of them, photometric bands after; where
        n_xp is not given, the XP spectrum ends before the first wavelength above 1100 nm
    NaN or inf means "not there": left out, never drawn, never an error
    arrays of shapes that do not fit together raise ValueError before anything is drawn

Nothing here imports pyplot, so no figure stays open and no setting of the caller's is changed.
"""

from pipeline.figures.accuracy import inferred_against_label, kiel_diagram, residuals_by_wavelength
from pipeline.figures.calibration import coverage, pulls_in_bins, reliability
from pipeline.figures.dust import extinction_laws
from pipeline.figures.star_page import StarPage, star_page
from pipeline.figures.star_posterior import StarPosterior
from pipeline.figures.star_spectrum import StarSpectrum
from pipeline.figures.training import extinction_curve, loss_history, model_spectra
from pipeline.figures.trends import outcomes, scores_against

__all__ = [
    "StarPage",
    "StarPosterior",
    "StarSpectrum",
    "coverage",
    "extinction_curve",
    "extinction_laws",
    "inferred_against_label",
    "kiel_diagram",
    "loss_history",
    "model_spectra",
    "outcomes",
    "pulls_in_bins",
    "reliability",
    "residuals_by_wavelength",
    "scores_against",
    "star_page",
]
