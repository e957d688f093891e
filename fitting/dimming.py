"""Stars as they would look fainter: fluxes, errors and parallaxes of the same star farther away.

The added XP noise is correlated as that of real spectra is (pipeline/typical_noise.py: that of the
training set near the magnitude at which a star is shown, or the release's), and as large as the
brightness law

    sigma^2 = background + a F + (c F)^2

of the training stars' own errors says, F the mean flux of BP or RP; a star that was measured better
or worse than usual stays so. Where the training stars are too bright to tell the background, it is
the photon noise of a star of BACKGROUND_G (what real faint stars show). Photometric bands get the
errors that their depth gives, and go where they are too poor. Parallaxes shrink with the brightness
and keep their relative error.
"""

import dataclasses

import numpy as np
from scipy.optimize import nnls

from pipeline.photometry import vega_to_flux
from pipeline.schema import BANDS, SURVEYS, XP_BANDS
from xp_utils import floor_variance, reference_flux

BACKGROUND_G = 17.6  # mag
FAINT_ENOUGH = 16.5  # mag: where a hundredth of the stars is fainter, these tell the background
QUALITY = (0.5, 2.0)  # of a star's errors, relative to the usual
NEAR_G = 1.5  # mag: as much fainter stars still have a typical noise of some magnitude
BLOCK = 4096  # stars at a time: 10 kB each
ROUNDING = 1e-12
MAG = np.log(10) / 2.5  # relative error of a flux per magnitude
DEPTH_ERROR = 0.1  # mag, of a band at its depth


@dataclasses.dataclass(frozen=True)
class NoiseLaw:
    """sigma^2 = background + a F + c2 F^2 of the mean flux F of a band."""

    background: float
    a: float
    c2: float

    def sigma(self, flux):
        """Errors (N,) of mean fluxes (N,)."""
        flux = np.maximum(flux, 0.0)
        return np.sqrt(self.background + self.a * flux + self.c2 * flux * flux)

    @classmethod
    def fitted(cls, flux, sigma, g):
        """The law of stars: mean flux, error, G magnitude (N,) each."""
        terms = np.stack([np.ones_like(flux), flux, flux * flux], 1) / sigma[:, None] ** 2
        if np.mean(g > FAINT_ENOUGH) < 0.01:
            (a, c2), _ = nnls(terms[:, 1:], np.ones(len(flux)))
            at_limit = np.median(flux * 10 ** (0.4 * (g - BACKGROUND_G)))
            return cls(a * at_limit, a, c2)
        return cls(*nnls(terms, np.ones(len(flux)))[0])


@dataclasses.dataclass(frozen=True)
class BandNoise:
    """The noise of BP or RP: where it alone has weight (n,) bool, its law, and m typical noises:
    the fluxes (m, n_coefficients, n), and finer fluxes, of each coefficient per unit of noise."""

    alone: np.ndarray
    law: NoiseLaw
    root: np.ndarray
    fine_root: np.ndarray

    def mean_flux(self, flux, used):
        """Mean flux (N,) where the band alone has weight; 0 where it is not used."""
        inside = used & self.alone
        return np.where(inside, flux, 0.0).sum(1) / np.maximum(inside.sum(1), 1)

    def level(self, err, used):
        """Mean error (N,) there; NaN where it is not used."""
        inside = (used & self.alone)[:, self.alone]
        n = inside.sum(1)
        total = np.where(inside, err[:, self.alone], 0.0).sum(1)
        return np.where(n > 0, total / np.maximum(n, 1), np.nan)

    def variance(self, kind):
        """Variances (N, n) of the fluxes per unit of noise, of the typical noises `kind` (N,)."""
        return (self.root**2).sum(1)[kind]

    def of_draws(self, draws, kind):
        """Noise (N, n) and (N, m) of fluxes and finer fluxes, of draws (N, n_coefficients) and the
        typical noises `kind` (N,)."""
        coarse, fine = (
            np.empty((len(draws), root.shape[2]), draws.dtype)
            for root in (self.root, self.fine_root)
        )
        for k in np.unique(kind):
            rows = kind == k
            coarse[rows], fine[rows] = draws[rows] @ self.root[k], draws[rows] @ self.fine_root[k]
        return coarse, fine


class Dimming:
    """Shows stars fainter than they are.

    data: `StarData` of training stars, g (N,): their G magnitudes, which the noise law is fitted
    to; basis: `XPBasis`; noise: `TypicalNoise`.
    """

    def __init__(self, data, g, basis, noise):
        g_of = np.nan if noise.g is None else noise.g
        self.noise_g = np.broadcast_to(g_of, len(noise.shape["bp"]))
        self.channels, self.n_xp = data.channels, data.channels.n_xp
        if basis.fine is not None:
            self.fine_seen = {b: getattr(basis.fine, f"{b}_weight") > 0 for b in XP_BANDS}
        used = np.isfinite(data.flux_err)
        sigma = self._without_floors(data.flux, data.flux_err)
        self.bands = []
        for band in XP_BANDS:
            typical = noise.shape[band], noise.correlations[band]
            self.bands.append(self._band(band, basis, typical, data.flux, sigma, used, g))
        self.depth = np.array([vega_to_flux(band.depth, band) for band in BANDS])
        self.worst = np.array([SURVEYS[band.survey].max_error for band in BANDS])
        self.worst *= np.where([SURVEYS[b.survey].system == "mag" for b in BANDS], MAG, 1.0)

    def _without_floors(self, flux, flux_err):
        """Errors (N, n) of XP fluxes less the floors that are added to them; inf where not used."""
        left = flux_err.astype("f8") ** 2 - floor_variance(flux)
        with np.errstate(invalid="ignore"):
            return np.sqrt(np.maximum(left, 0.01 * flux_err.astype("f8") ** 2))

    def _band(self, band, basis, typical, flux, sigma, used, g):
        other = {"bp": self.channels.rp, "rp": self.channels.bp}[band]
        alone = getattr(self.channels, band) & ~other
        roots, fine_roots = [], []
        for shape, packed in zip(*typical, strict=True):
            n, shape = len(shape), shape.astype("f8")
            correlation = np.zeros((n, n))
            correlation[np.tril_indices(n, -1)] = packed
            correlation += correlation.T + np.eye(n)
            value, vector = np.linalg.eigh(shape[:, None] * correlation * shape)
            root = vector * np.sqrt(np.maximum(value, 0.0))  # (n_coefficients, n)
            start, stop, design = basis.weighted(band)
            out = np.zeros((n, len(self.channels)))
            out[:, start:stop] = root.T @ design
            unit = np.mean(np.sqrt((out**2).sum(0))[alone])
            roots.append(out / unit)
            fine_roots.append(_fine_root(root, band, basis) / unit)
        noise = BandNoise(alone, None, np.array(roots, "f4"), np.array(fine_roots, "f4"))
        mean, level = noise.mean_flux(flux, used), noise.level(sigma, used)
        good = np.isfinite(level) & (level > 0) & (mean > 0) & np.isfinite(g)
        law = NoiseLaw.fitted(mean[good].astype("f8"), level[good], g[good])
        return dataclasses.replace(noise, law=law)

    def kinds(self, g, rng):
        """Places (N,) of the typical noises that go with G magnitudes (N,): the nearest, but any of
        those of no magnitude, where there are, for stars fainter than all by more than NEAR_G."""
        apart = np.abs(np.asarray(g)[:, None] - self.noise_g)
        nearest = np.where(np.isnan(apart), np.inf, apart).argmin(1)
        of_any = np.flatnonzero(np.isnan(self.noise_g))
        if not len(of_any):
            return nearest
        faintest = np.max(self.noise_g, where=np.isfinite(self.noise_g), initial=-np.inf)
        far = ~(np.asarray(g) <= faintest + NEAR_G)
        return np.where(far, rng.choice(of_any, len(apart)), nearest)

    def show(self, data, magnitudes, rng, g=None):
        """`StarData` of the stars, each fainter by so many magnitudes (N,) >= 0, noise added; those
        that stay as bright stay as they are. g (N,): their own G magnitudes, of no use where no
        typical noise is of a magnitude."""
        rows = np.flatnonzero(magnitudes > 0)
        if not len(rows):
            return data
        g = np.full(len(data), np.nan) if g is None else g
        kind = self.kinds((g + magnitudes)[rows], rng)
        names = ("flux", "flux_err", "parallax", "parallax_err", "fine")
        values = {name: getattr(data, name) for name in names}
        changed = {name: np.array(x, "f4") for name, x in values.items() if x is not None}
        for k in range(0, len(rows), BLOCK):
            some = rows[k : k + BLOCK]
            fainter = self._fainter(data.take(some), magnitudes[some], kind[k : k + BLOCK], rng)
            for name, x in changed.items():
                x[some] = getattr(fainter, name)
        return dataclasses.replace(data, **changed)

    def _fainter(self, data, magnitudes, kind, rng):
        """`StarData` of stars that are all fainter, by magnitudes (N,) > 0, with the typical noises
        `kind` (N,)."""
        scale = 10 ** (-0.4 * magnitudes)[:, None]
        used = np.isfinite(data.flux_err)
        flux = np.where(used, data.flux * scale, 0.0)
        sigma = np.where(used, self._without_floors(data.flux, data.flux_err) * scale, 0.0)
        reference = reference_flux(data.flux, used, self.channels.bp, self.channels.rp)
        fine = None if data.fine is None else data.fine.astype("f4") * (reference[:, None] * scale)
        variance = sigma**2
        for band in self.bands:
            added = self._added(band, data.flux, flux, sigma, used, scale)
            draws = added[:, None] * rng.standard_normal((len(flux), band.root.shape[1]), "f4")
            coarse, finer = band.of_draws(draws, kind)
            flux += coarse
            variance += added[:, None] ** 2 * band.variance(kind)
            if fine is not None:
                fine += finer
        self._photometry(data, flux, variance, used, scale, rng)
        xp_err = np.sqrt(variance + floor_variance(flux))
        flux_err = np.where(used, xp_err, np.inf)
        flux_err[:, self.n_xp :] = np.where(used, np.sqrt(variance), np.inf)[:, self.n_xp :]
        if fine is not None:
            fine /= reference_flux(flux, used, self.channels.bp, self.channels.rp)[:, None]
        root = np.sqrt(scale[:, 0])
        return dataclasses.replace(
            data,
            flux=np.where(used, flux, 0.0).astype("f4"),
            flux_err=flux_err.astype("f4"),
            parallax=(data.parallax * root).astype("f4"),
            parallax_err=(data.parallax_err * root).astype("f4"),
            fine=fine,
        )

    def _added(self, band, bright, flux, sigma, used, scale):
        """Errors (N,) that are to be added to a band's, in units of `BandNoise.root`."""
        usual = band.law.sigma(band.mean_flux(bright, used))
        own = np.nan_to_num(band.level(np.where(used, sigma, np.nan), used))
        quality = np.clip(own / scale[:, 0] / np.maximum(usual, ROUNDING), *QUALITY)
        target = quality * band.law.sigma(band.mean_flux(flux, used))
        added = np.sqrt(np.maximum(target**2 - own**2, 0.0))
        return np.where((scale[:, 0] < 1) & (own > 0), added, 0.0)

    def _photometry(self, data, flux, variance, used, scale, rng):
        """Put noise into the photometric bands, in place, and drop those that are too poor."""
        n_xp = self.n_xp
        before = np.maximum(data.flux[:, n_xp:], ROUNDING)
        with np.errstate(over="ignore", divide="ignore"):
            depth = DEPTH_ERROR * MAG * self.depth
            extra = (depth / (before * scale)) ** 2 - (depth / before) ** 2
        extra = np.where(used[:, n_xp:], np.maximum(extra, 0.0), 0.0)
        relative = np.where(used[:, n_xp:], data.flux_err[:, n_xp:] / before, 0.0)
        total = np.sqrt(relative**2 + extra)
        noise = 1.0 + np.sqrt(extra) * rng.standard_normal(extra.shape)
        flux[:, n_xp:] *= np.maximum(noise, 0.0)
        variance[:, n_xp:] = (total * flux[:, n_xp:]) ** 2
        used[:, n_xp:] &= (total < self.worst) & (flux[:, n_xp:] > 0)

    def levels(self, flux):
        """Usual errors (N,) of the mean flux of BP and of RP, for fluxes (N, n)."""
        used = np.ones(flux.shape, bool)
        return [band.law.sigma(band.mean_flux(flux, used)) for band in self.bands]

    def errors(self, flux, levels, kind):
        """Errors (N, n), floors included, of fluxes (N, n) whose mean BP and RP fluxes have the
        errors `levels`, by the typical noises `kind` (N,)."""
        variance = floor_variance(flux)
        for band, sigma in zip(self.bands, levels, strict=True):
            variance += sigma[:, None] ** 2 * band.variance(kind)
        return np.sqrt(variance)

    def noise(self, kind, rng):
        """Typical noises `kind` (N,) per unit of BP's and RP's level: [(N, n_wl)] * 2 of the
        fluxes, and [(N, m)] * 2 of the finer ones."""
        parts = []
        for band in self.bands:
            draws = rng.standard_normal((len(kind), band.root.shape[1]), "f4")
            parts.append(band.of_draws(draws, kind))
        return tuple(zip(*parts, strict=True))

    def hide(self, data, rows, band):
        """The stars with BP or RP (band "bp" or "rp") not seen where rows (N,) bool."""
        if not rows.any():
            return data
        unseen = getattr(self.channels, band)
        flux_err = np.where(rows[:, None] & unseen, np.inf, data.flux_err)
        if data.fine is None:
            return dataclasses.replace(data, flux_err=flux_err)
        seen = (self.channels.bp, self.channels.rp)
        before = reference_flux(data.flux, np.isfinite(data.flux_err), *seen)
        after = reference_flux(data.flux, np.isfinite(flux_err), *seen)
        fine = np.where(rows[:, None] & self.fine_seen[band], np.nan, data.fine)
        return dataclasses.replace(data, flux_err=flux_err, fine=fine * (before / after)[:, None])


def _fine_root(root, band, basis):
    if basis.fine is None:
        return np.zeros((root.shape[1], 0))
    start, stop, design = basis.fine.weighted(band)
    out = np.zeros((root.shape[1], len(basis.fine.wavelengths)))
    out[:, start:stop] = root.T @ design
    return out
