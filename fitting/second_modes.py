"""Which stars may have another mode than the one at the direct estimate, so that it is worth to
search for it: most have none, and the search costs more than all the rest."""

from dataclasses import dataclass

import numpy as np

from fitting.logistic import Logistic, fit_logistic

NEAR, APART = 2.0, 0.3  # a second mode matters with a ln posterior so close to the best's, so far
# away in z: closer ones are ripples of one mode
WORSE = 2.0  # of ln posterior: as much is lost where the direct estimate's mode is not the best
MOST_MISSED = 0.05  # of the stars for which a search matters
FEW_CASES = 30  # of such stars cannot tell the others from them
POOR_CHI2, POOR_SHARE = 1.5, 0.03  # a fit is poor with a worse chi^2 a flux, if that is as rare


@dataclass(frozen=True)
class ModeSearch:
    """chance: `Logistic` that a search matters, on `search_features`; least: of the chance, for a
    search. poor: chi^2 a flux above which a fit is poor, so that a search is made after all."""

    chance: Logistic
    least: float
    poor: float = POOR_CHI2

    def worth(self, data, direct):
        """For which stars (N,) bool a search is worth it; arguments of `search_features`."""
        return self.chance.of(search_features(data, direct))[:, 0] >= self.least

    def to_arrays(self):
        """All that defines it, as {name: array}."""
        limits = {"search_least": np.float64(self.least), "search_poor": np.float64(self.poor)}
        return self.chance.to_arrays("search") | limits

    @classmethod
    def from_arrays(cls, arrays):
        """What `to_arrays` described; None where it was not fitted."""
        if "search_least" not in arrays:
            return None
        limits = (float(arrays[f"search_{name}"]) for name in ("least", "poor"))
        return cls(Logistic.from_arrays(arrays, "search"), *limits)


def search_features(data, direct):
    """What the chance is computed from (N, p): the direct estimate (2, N, Kf) of the forward
    model's labels, brightness, error level, and the parallax of `StarData`."""
    z, sigma = direct.astype("f8")
    useful = data.useful_parallax
    ln_err = np.log(np.where(useful, data.parallax_err / np.where(useful, data.parallax, 1.0), 1.0))
    return np.column_stack([z, np.log(sigma), data.observed.features, ln_err, useful])


def fit_mode_search(features, matters, chi2):
    """`ModeSearch` that misses MOST_MISSED of the stars for which a search matters (N,) bool; None
    where these are few. features (N, p): of `search_features`; chi2 (N,): of the fit, a flux."""
    if matters.sum() < FEW_CASES or matters.all():
        return None
    chance = fit_logistic(features, matters[:, None])
    least = np.quantile(chance.of(features[matters])[:, 0], MOST_MISSED)
    poor = max(POOR_CHI2, float(np.nanquantile(chi2, 1 - POOR_SHARE)))
    return ModeSearch(chance, float(least), poor)
