"""Things that are no single star of the training set, simulated: blends, hot stars, white dwarfs,
galaxies, quasars, and spectra that nothing explains.

They teach the networks of `oddity` what is not ordinary; they need not be accurate, but of every
sort. Each takes the brightness of an ordinary star, its host, and the noise that goes with it.
"""

import dataclasses

import numpy as np

from fitting.observed import StarData
from xp_utils import reference_flux

UNLIKE = (0.5, 1.0)  # kK, dex: stars of a blend differ by more in Teff or in log g
BLEND_RATIO = (0.15, 1.0)  # of the fluxes of its stars
BALMER_NM = np.array([656.3, 486.1, 434.0, 410.2, 397.0])
QUASAR_LINES_NM = np.array([121.6, 154.9, 190.9, 279.8, 486.1, 656.3])
QUASAR_STRENGTHS = np.array([1.5, 0.7, 0.5, 0.5, 0.4, 1.2])  # of the continuum, about
SMOOTH_NM = 60.0  # correlation length of spectra that nothing explains
PLANCK_NM_K = 1.4388e7  # h c / k
EXT_SLOPE, EXT_PIVOT_NM, EXT_NORM = -1.4, 550.0, 2.0  # of their dust: A ~ lambda^-1.4
OBJECTS = ("hot star", "white dwarf", "quasar", "galaxy", "unexplained")
QUALITY_SCATTER = 0.25  # of ln errors, about the usual
ERR_PARALLAX = (0.02, 0.3)  # relative error of parallaxes, or of that of the host where it is none


class StrangeThings:
    """Makes strange things. stars: `batches.TrainingStars`; labels: `LabelSet`."""

    def __init__(self, stars, labels):
        self.stars, self.dimming, self.channels = stars, stars.dimming, stars.data.channels
        self.place = labels.place
        self.fine_nm = stars.basis.release.spectra.fine_wavelengths
        if not stars.data.has_fine:
            self.fine_nm = self.fine_nm[:0]

    # ---- blends

    def blends(self, rows, rng):
        """`StarData` (n,) of the stars `rows`, each with another of unlike type in its light."""
        data = self.stars.data
        other = self._unlike(rows, rng)
        first, second = data.take(rows), data.take(other)
        ratio = rng.uniform(*BLEND_RATIO, len(rows))
        reference = [self._reference(one) for one in (first, second)]
        factor = (ratio * reference[0] / reference[1])[:, None]
        used = np.isfinite(first.flux_err) & np.isfinite(second.flux_err)
        flux = np.where(used, first.flux + factor * second.flux, 0.0)
        # Errors add up, as the floors do; in quadrature they would fall below what any star has.
        err = np.where(used, first.flux_err + factor * second.flux_err, np.inf)
        fine = first.fine
        if fine is not None:
            absolute = [
                one.fine.astype("f4") * of[:, None]
                for one, of in zip((first, second), reference, strict=True)
            ]
            total = absolute[0] + factor * absolute[1]
            own = reference_flux(flux, used, self.channels.bp, self.channels.rp)
            fine = total / own[:, None]
        return dataclasses.replace(
            first, flux=flux.astype("f4"), flux_err=err.astype("f4"), fine=fine
        )

    def _reference(self, data):
        used = np.isfinite(data.flux_err)
        return reference_flux(data.flux, used, self.channels.bp, self.channels.rp)

    def _unlike(self, rows, rng):
        """For each of `rows` a star of another type; where none is met soon, any."""
        names = [name for name in ("teff", "logg") if name in self.place]
        places = [self.place[name] for name in names]
        theta = self.stars.data.theta
        least = np.array([dict(zip(("teff", "logg"), UNLIKE, strict=True))[n] for n in names])
        training = self.stars.training
        other = rng.choice(training, len(rows))
        for _ in range(5):
            apart = np.abs(theta[other] - theta[rows])[:, places]
            alike = (apart < least).all(1)
            other[alike] = rng.choice(training, int(alike.sum()))
        return other

    # ---- what is no star of ours

    def objects(self, rows, rng, kind=None):
        """`StarData` (n,) of OBJECTS, or of one kind of them, with the brightness of the hosts
        `rows`."""
        host = self.stars.data.take(rows)
        reference = self._reference(host)
        n_wl = len(self.channels)
        grid = np.concatenate([self.channels.wavelengths, self.fine_nm])
        ln_flux = np.zeros((len(rows), len(grid)))
        drawn = rng.integers(len(OBJECTS), size=len(rows))
        kind = drawn if kind is None else np.full(len(rows), kind)
        for k, make in enumerate((_hot_stars, _white_dwarfs, _quasars)):
            ln_flux[kind == k] = make(int((kind == k).sum()), grid, rng)
        own = self._ln_host(host, reference)
        ln_flux[kind == 3] = self._galaxies(own, kind == 3, grid, rng)
        ln_flux[kind == 4] = own[kind == 4] + _unexplained(int((kind == 4).sum()), grid, rng)
        flux = np.exp(np.clip(ln_flux - ln_flux[:, :n_wl].mean(1, keepdims=True), -12, 12))
        scale = reference / self._mean_red(flux[:, :n_wl])
        flux *= scale[:, None]
        noise = self.dimming.kinds(self.stars.g[rows], rng)
        return self._observed(host, flux, kind, noise, rng)

    def _mean_red(self, flux):
        red = self.channels.rp & ~self.channels.bp
        return flux[:, red].mean(1)

    def _ln_host(self, host, reference):
        """ln fluxes (n, n_wl + m) of the hosts, positive everywhere."""
        least = 1e-3 * reference[:, None]
        coarse = np.where(np.isfinite(host.flux_err), host.flux, reference[:, None])
        parts = [coarse]
        if host.fine is not None:
            parts.append(host.fine.astype("f4") * reference[:, None])
        return np.log(np.maximum(np.nan_to_num(np.concatenate(parts, 1)), least))

    def _galaxies(self, own, rows, grid, rng):
        """Sums of hosts, redshifted; their photometric bands stay, but for some reddening."""
        n, n_wl = int(rows.sum()), len(self.channels)
        mixed = np.logaddexp(own[rows], own[rng.integers(len(own), size=n)])
        mixed = np.logaddexp(mixed, own[rng.integers(len(own), size=n)])
        spectrum, start = (
            (mixed[:, n_wl:], self.fine_nm)
            if len(self.fine_nm)
            else (mixed[:, : self.channels.n_xp], self.channels.wavelengths)
        )
        at = grid[None] / (1 + rng.uniform(0.02, 0.35, (n, 1)))
        moved = _interpolated(spectrum, start[0], start[1] - start[0], at)
        bands = slice(self.channels.n_xp, n_wl)
        moved[:, bands] = mixed[:, bands] + rng.normal(0.2, 0.2, (n, 1))
        return moved

    def _observed(self, host, flux, kind, noise, rng):
        """The host's data with other fluxes (n, n_wl + m): noise as of a star so bright, of the
        typical noises `noise` (n,)."""
        n, n_wl = len(flux), len(self.channels)
        used = np.isfinite(host.flux_err)
        relative = np.where(used, host.flux_err / np.maximum(host.flux, 1e-12), np.inf)
        # Some are measured better than usual, some worse, as stars are.
        quality = np.exp(QUALITY_SCATTER * rng.normal(size=(2, n)))
        sigma = [q * s for q, s in zip(quality, self.dimming.levels(flux[:, :n_wl]), strict=True)]
        err = self.dimming.errors(flux[:, :n_wl], sigma, noise)
        err[:, self.channels.n_xp :] = (relative * flux[:, :n_wl])[:, self.channels.n_xp :]
        err = np.where(used, err, np.inf)
        noisy, fine = self.dimming.noise(noise, rng)
        shown = flux[:, :n_wl] + sum(s[:, None] * x for s, x in zip(sigma, noisy, strict=True))
        finer = None
        if host.fine is not None:
            finer = flux[:, n_wl:] + sum(s[:, None] * x for s, x in zip(sigma, fine, strict=True))
            reference = reference_flux(shown, np.isfinite(err), self.channels.bp, self.channels.rp)
            finer = np.where(np.isfinite(host.fine), finer / reference[:, None], np.nan)
            finer = finer.astype("f4")
        plx, plx_err = self._parallaxes(host, kind, rng)
        return StarData(
            np.where(used, shown, 0.0).astype("f4"),
            err.astype("f4"),
            plx.astype("f4"),
            plx_err.astype("f4"),
            host.channels,
            fine=finer,
        )

    def _parallaxes(self, host, kind, rng):
        """Those of hosts moved at random; of white dwarfs large, of quasars and galaxies none."""
        n = len(kind)
        plx = host.parallax * np.exp(rng.normal(0, 1.0, n))
        plx = np.where(kind == 1, host.parallax * np.exp(rng.normal(3.5, 1.0, n)), plx)
        err = plx * np.exp(rng.uniform(*np.log(ERR_PARALLAX), n))
        far = (kind == 2) | (kind == 3)
        err = np.where(far, host.parallax_err, err)
        return np.where(far, 0.0, plx) + err * rng.normal(size=n), err


def _black_body(teff, grid):
    """ln of Planck's law (n, n_wl), up to a constant."""
    x = np.minimum(PLANCK_NM_K / (grid * teff[:, None]), 600.0)
    return -5 * np.log(grid) - np.log(np.expm1(x))


def _dust(ext, grid):
    return -ext[:, None] * EXT_NORM * (grid / EXT_PIVOT_NM) ** EXT_SLOPE


def _lines(grid, centres, strengths, widths):
    """Sum of Gaussian lines (n, n_wl): centres, strengths, widths (n, k), nm."""
    away = (grid[None, :, None] - centres[:, None]) / widths[:, None]
    return (strengths[:, None] * np.exp(-0.5 * away * away)).sum(2)


def _hot_stars(n, grid, rng):
    teff = np.exp(rng.uniform(np.log(7.2e3), np.log(5e4), n))
    depth = rng.uniform(0.05, 0.5, (n, 1)) * np.ones(len(BALMER_NM))
    lines = _lines(grid, np.tile(BALMER_NM, (n, 1)), depth, rng.uniform(4, 9, (n, 1)) + 0 * depth)
    jump = np.where(grid < 372.0, -rng.uniform(0, 0.9, (n, 1)), 0.0)
    ext = rng.uniform(0, 2.0, n) * (rng.random(n) < 0.7)
    return _black_body(teff, grid) + np.log1p(-np.minimum(lines, 0.9)) + jump + _dust(ext, grid)


def _white_dwarfs(n, grid, rng):
    teff = np.exp(rng.uniform(np.log(4e3), np.log(6e4), n))
    depth = rng.uniform(0.0, 0.6, (n, 1)) * np.ones(len(BALMER_NM))
    lines = _lines(grid, np.tile(BALMER_NM, (n, 1)), depth, rng.uniform(8, 20, (n, 1)) + 0 * depth)
    return _black_body(teff, grid) + np.log1p(-np.minimum(lines, 0.9))


def _quasars(n, grid, rng):
    slope = rng.uniform(-2.2, 0.2, (n, 1))
    centres = QUASAR_LINES_NM * (1 + rng.uniform(0, 4.5, (n, 1)))
    strengths = QUASAR_STRENGTHS * rng.lognormal(0, 0.4, (n, len(QUASAR_LINES_NM)))
    widths = np.hypot(8.0, 0.012 * centres)
    ext = rng.uniform(0, 0.5, n)
    lines = np.log1p(_lines(grid, centres, strengths, widths))
    break_ = np.where(grid < centres[:, :1], -rng.uniform(0.2, 1.5, (n, 1)), 0.0)  # Lyman forest
    return slope * np.log(grid / EXT_PIVOT_NM) + lines + break_ + _dust(ext, grid)


def _unexplained(n, grid, rng):
    """Smooth random curves: changes of ln flux over SMOOTH_NM."""
    n_knots = int(np.ceil((np.max(grid) - np.min(grid)) / SMOOTH_NM)) + 2
    values = rng.uniform(0.08, 0.6, (n, 1)) * rng.normal(size=(n, n_knots))
    return _interpolated(values, np.min(grid), SMOOTH_NM, np.tile(grid, (n, 1)))


def _interpolated(values, first, step, at):
    """Linear interpolation of values (n, k) on a grid from `first` by `step`, at places (n, m);
    beyond the ends as at the ends."""
    place = np.clip((at - first) / step, 0, values.shape[1] - 1)
    left = np.minimum(place.astype(int), values.shape[1] - 2)
    part = place - left
    low, high = (np.take_along_axis(values, left + k, 1) for k in (0, 1))
    return (1 - part) * low + part * high
