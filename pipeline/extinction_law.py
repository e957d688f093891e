"""The learned extinction curve as people use it: A(lambda), R(55), R(V), A(V), and their errors.

The forward model dims a flux by exp[-E R(lambda)], with ln R = a + b tanh(xi), a and b one number
a wavelength. So the extinction in magnitudes is

    A(lambda) = (2.5 / ln 10) E R(lambda; xi)

and all that is asked of a curve follows from R at 440 and 550 nm (ln R is linear in ln lambda
between the wavelengths of the model):

    E(44-55) = A(440 nm) - A(550 nm)            a colour excess, monochromatic
    R(55)    = A(550 nm) / E(44-55)             as Fitzpatrick et al. (2019, ApJ 886, 108) have it
    R(V)     = 1.01 R(55) + 0.049               their relation to the R(V) of broad bands
    A(V)     = A(550 nm)

Arrays in, arrays out; no TensorFlow.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.errors import ShardError
from pipeline.read import read_arrays

MAG = 2.5 / np.log(10.0)  # magnitudes of a ln flux of 1
BLUE_NM, VISUAL_NM = 440.0, 550.0  # of R(55) and E(44-55)
RV_SLOPE, RV_OFFSET = 1.01, 0.049  # R(V) of R(55); Fitzpatrick et al. 2019, ApJ 886, 108
# The extinction curve has no xi-variation redward of this: W1 and W2 carry too little of it.
XI_MAX_WAVELENGTH_NM = 3000.0
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(9)  # of a Gaussian
WEIGHTS = WEIGHTS / WEIGHTS.sum()
ARRAYS = ("sample_wavelengths", "ln_ext_curve", "ln_ext_curve_xi", "channel_names", "release")
DEFINITIONS = {
    "E44_55": "A(440 nm) - A(550 nm), monochromatic (mag)",
    "R55": "A(550 nm) / [A(440 nm) - A(550 nm)], monochromatic",
    "RV": f"{RV_SLOPE} R(55) + {RV_OFFSET} (Fitzpatrick et al. 2019, ApJ 886, 108)",
    "AV": "A(550 nm), monochromatic (mag)",
}  # of the quantities of `dust_of`, and of the tables of tools/export_extinction.py


def interpolation(wavelengths, nm):
    """Weights (n_wl,) that sum ln R at wavelengths (n_wl,) to that at nm, linear in ln lambda; NaN
    where nm is outside of them."""
    wavelengths = np.asarray(wavelengths, "f8")
    order = np.argsort(wavelengths)
    x = np.log(wavelengths[order])
    if not x[0] <= np.log(nm) <= x[-1]:
        return np.full(len(x), np.nan)
    right = min(max(int(np.searchsorted(x, np.log(nm))), 1), len(x) - 1)
    share = (np.log(nm) - x[right - 1]) / (x[right] - x[right - 1])
    weights = np.zeros(len(x))
    weights[order[[right - 1, right]]] = 1 - share, share
    return weights


def varies(wavelengths):
    """Whether the curve varies with xi (n_wl,) bool at wavelengths in nm."""
    return np.asarray(wavelengths) < XI_MAX_WAVELENGTH_NM


@dataclass(frozen=True)
class ExtinctionLaw:
    """The curve ln R = ln_curve + slope tanh(xi) at wavelengths (n_wl,) nm, whose channels have the
    names (n_wl,): "xp", or a band's."""

    wavelengths: np.ndarray
    ln_curve: np.ndarray
    slope: np.ndarray
    names: np.ndarray

    @classmethod
    def of_arrays(cls, arrays):
        """The law of a model's arrays. KeyError where one is missing."""
        wavelengths = np.asarray(arrays["sample_wavelengths"], "f8")
        slope = np.asarray(arrays["ln_ext_curve_xi"], "f8") * varies(wavelengths)
        names = np.asarray(arrays["channel_names"]).astype(str)
        return cls(wavelengths, np.asarray(arrays["ln_ext_curve"], "f8"), slope, names)

    @property
    def n_xp(self) -> int:
        """How many of the wavelengths, from the first on, are the XP spectrum's."""
        return int((self.names == "xp").sum())

    def ln_r(self, xi) -> np.ndarray:
        """ln R (..., n_wl) at all wavelengths, for xi (...)."""
        return self.ln_curve + self.slope * np.tanh(np.asarray(xi, "f8"))[..., None]

    def a_per_e(self, xi) -> np.ndarray:
        """A(lambda) / E (..., n_wl) in mag at all wavelengths, for xi (...)."""
        return MAG * np.exp(self.ln_r(xi))

    def _at(self, nm, xi):
        weights = interpolation(self.wavelengths, nm)
        a, b = weights @ self.ln_curve, weights @ self.slope
        return MAG * np.exp(a + b * np.tanh(np.asarray(xi, "f8")))

    def av_per_e(self, xi) -> np.ndarray:
        """A(V) / E (...), in mag, for xi (...)."""
        return self._at(VISUAL_NM, xi)

    def reddening_per_e(self, xi) -> np.ndarray:
        """E(44-55) / E (...), in mag, for xi (...)."""
        return self._at(BLUE_NM, xi) - self._at(VISUAL_NM, xi)

    def r55(self, xi) -> np.ndarray:
        """R(55) (...) for xi (...)."""
        return self._at(VISUAL_NM, xi) / self.reddening_per_e(xi)

    def rv(self, xi) -> np.ndarray:
        """R(V) (...) for xi (...)."""
        return RV_SLOPE * self.r55(xi) + RV_OFFSET


def law_of_model(path, release) -> ExtinctionLaw:
    """The law of a file of train.py (model.h5). ShardError where it is none, or of another release
    than the `schema.Release`."""
    arrays, _ = read_arrays(path)
    missing = [name for name in ARRAYS if name not in arrays]
    if missing:
        raise ShardError(
            f"{path}: not a model of train.py (no {', '.join(missing)}), or of another version of "
            "it; train it again (--overwrite)"
        )
    found = np.asarray(arrays["release"]).astype(str).item()
    if found != release.name:
        raise ShardError(
            f"{path}: trained on {found}, but {release.name} is in use: give --release {found}, or "
            f"a model of {release.name}"
        )
    return ExtinctionLaw.of_arrays(arrays)


def dust_of(law, xi, ext, xi_err, ext_err, corr) -> dict:
    """What the catalogue's xi and E say of dust, with errors: {"R55", "R55_err", "RV", "RV_err",
    "AV", "AV_err", "E44_55", "E44_55_err": (N,)}, in mag but for the ratios.

    xi, ext, xi_err, ext_err, corr (N,): the columns `xi`, `ext`, their errors and `xi_ext_corr`.
    An error is the root of the mean square about the estimate, over a Gaussian of (xi, E). It is
    not that of a slope at xi, which is near 0 where tanh(xi) is at its end and xi little known.
    """
    xi, ext, xi_err, ext_err, corr = (
        np.asarray(x, "f8")[:, None] for x in (xi, ext, xi_err, ext_err, corr)
    )
    nodes = xi + xi_err * NODES  # (N, n): places of xi, of WEIGHTS
    ext_there = ext + corr * ext_err * NODES  # E is Gaussian about this one, given xi
    left = ext_err**2 * (1 - corr**2)
    out = {}
    for name, ratio in (("R55", law.r55), ("RV", law.rv)):
        out[name] = ratio(xi)[:, 0]
        out[f"{name}_err"] = np.sqrt((ratio(nodes) - ratio(xi)) ** 2 @ WEIGHTS)
    for name, factor in (("AV", law.av_per_e), ("E44_55", law.reddening_per_e)):
        each, estimate = factor(nodes), ext * factor(xi)
        out[name] = estimate[:, 0]
        out[f"{name}_err"] = np.sqrt(
            ((ext_there * each - estimate) ** 2 + left * each**2) @ WEIGHTS
        )
    return out
