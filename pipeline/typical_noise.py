"""Typical noise of XP spectra: how the errors of the coefficients are correlated, and their shape.

A training set has its own, averaged by brightness over the reported errors of its stars
(`NoiseSums`, by step 7); where it has none, that of the release stands for it (`release_noise`).
"""

import zipfile
from dataclasses import dataclass

import numpy as np

from pipeline.errors import ShardError, UsageError
from pipeline.schema import NOISES, XP_BANDS, Layout, resolved

G_EDGES = np.arange(12.0, 21.0)  # mag, of the sorts of stars that are averaged
LEAST_STARS = 100  # of a sort that is kept
GROUP = "typical_noise/"  # of the datasets in the training set
REAL = "real"  # an `origin` of datasets; those of the archive say none


@dataclass(frozen=True)
class TypicalNoise:
    """Noise of m sorts of spectra: shape {band: (m, n)}, errors of the n coefficients relative to
    their median; correlations {band: (m, n (n - 1) / 2)}, strictly lower triangle in row order; g
    (m,): the G magnitude of each, None where not told, NaN for sorts of any; n_stars (m,), None
    where not told."""

    shape: dict
    correlations: dict
    g: np.ndarray | None = None
    n_stars: np.ndarray | None = None

    def datasets(self):
        """{name in the training set: array}."""
        out = {"g": self.g, "n_stars": self.n_stars}
        for name in ("shape", "correlations"):
            out |= {f"{band}_{name}": array for band, array in getattr(self, name).items()}
        return {f"{GROUP}{name}": array for name, array in out.items()}

    @classmethod
    def of_arrays(cls, arrays):
        """The noise of {"g", "n_stars", "{band}_shape", ...: array}; g and n_stars may lack."""
        both = (
            {band: arrays[f"{band}_{name}"] for band in XP_BANDS}
            for name in ("shape", "correlations")
        )
        return cls(*both, arrays.get("g"), arrays.get("n_stars"))


# ---- of a training set -----------------------------------------------------------------------


def modelled_origin(reader, release):
    """The `origin` of the errors of an XP shard where they are not real, e.g. synthetic; else None.

    Datasets that do not say where they come from are the archive's.
    """
    for name in release.spectra.array_columns[1:]:
        for band in XP_BANDS:
            column = f"{band}_{name}"
            if column in reader.columns:
                origin = str(reader.attributes(column).get("origin", REAL))
                if origin != REAL:
                    return origin
    return None


class NoiseSums:
    """Sums by G magnitude over stars, as many numbers whatever their number.

    origins: those of the errors of shards that are left out, as they are not real.
    """

    def __init__(self, release):
        n_sorts, self.release = len(G_EDGES) - 1, release
        self.origins, self._real = set(), True
        self.n_stars, self.g = np.zeros(n_sorts, "i8"), np.zeros(n_sorts)
        self.ln_shape, self.correlations = {}, {}
        for band, one in release.spectra.bands.items():
            self.ln_shape[band] = np.zeros((n_sorts, one.n_coefficients))
            self.correlations[band] = np.zeros((n_sorts, one.width("coefficient_correlations")))

    def begin(self, reader):
        """Those added next are of the shard of a reader: none, if its errors are modelled."""
        origin = modelled_origin(reader, self.release)
        self._real = origin is None
        self.origins |= set() if self._real else {origin}

    def add(self, bands, g, usable):
        """Add stars: {band: `Coefficients`} of N or more stars, the G magnitudes (N,) of the first,
        and whether both bands are usable (N,) bool."""
        if not self._real:
            return
        rows = np.flatnonzero(usable & (g >= G_EDGES[0]) & (g < G_EDGES[-1]))
        sort = np.searchsorted(G_EDGES, g[rows], side="right") - 1
        ln_shape = {}
        for band, one in bands.items():
            errors = one.errors[rows]
            ln_shape[band] = np.log(errors / np.median(errors, axis=1, keepdims=True))
        for k in set(sort.tolist()):
            own = sort == k
            self.n_stars[k] += own.sum()
            self.g[k] += g[rows[own]].sum(dtype=float)
            for band, one in bands.items():
                self.ln_shape[band][k] += ln_shape[band][own].sum(0)
                self.correlations[band][k] += one.correlations[rows[own]].sum(0, dtype=float)

    def mean(self):
        """The `TypicalNoise` of sorts with LEAST_STARS stars or more; None where no sort has."""
        kept = self.n_stars >= LEAST_STARS
        if not kept.any():
            return None
        n = self.n_stars[kept]
        return TypicalNoise(
            {band: np.exp(x[kept] / n[:, None]).astype("f4") for band, x in self.ln_shape.items()},
            {band: (x[kept] / n[:, None]).astype("f4") for band, x in self.correlations.items()},
            (self.g[kept] / n).astype("f4"),
            n,
        )


def write_noise(writer, noise, layout):
    """Write a `TypicalNoise` into a training set that a `ShardWriter` writes."""
    arrays = noise.datasets()
    for name, data in resolved("training", layout, (NOISES,)).items():
        writer.write_array(name, arrays[name].astype(data.dtype), **data.attributes)


def read_noise(reader, layout):
    """The `TypicalNoise` of a training set, None where it has none; ShardError for another's."""
    declared = resolved("training", layout, (NOISES,))
    if not reader.has(GROUP.rstrip("/")):
        return None
    arrays = {name.removeprefix(GROUP): reader.read(name) for name in declared}
    widths = {name.removeprefix(GROUP): data.shape for name, data in declared.items()}
    problem = _problem(arrays, widths)
    if problem:
        raise ShardError(
            f"{reader.path}: {GROUP}{problem} of {layout.release.title}; make the file again with "
            "compile_training_data.py --overwrite"
        )
    return TypicalNoise.of_arrays(arrays)


# ---- of a release ----------------------------------------------------------------------------


def release_noise(release):
    """The `TypicalNoise` of a release's table, None where it has none.

    UsageError where the table cannot be read, or is of another release.
    """
    path = release.spectra.noise
    if path is None:
        return None
    declared = resolved("training", Layout(release), (NOISES,))
    widths = {name.removeprefix(GROUP): data.shape for name, data in declared.items()}
    widths = {name: width for name, width in widths.items() if width}
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in widths}
        problem = _problem(arrays, widths)
    except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
        problem = f"cannot be used ({error})"
    if problem:
        raise UsageError(
            f"{path}: {problem}; make the noise table of {release.title} with "
            "tools/make_noise_table.py, or take `noise` out of the release"
        )
    return TypicalNoise.of_arrays(arrays)


def usual_noise(own, release):
    """The `TypicalNoise` of a training set and, for magnitudes that its stars do not tell of, that
    of its release's table; either alone where the other is None, None where both are."""
    table = release_noise(release)
    if own is None or table is None:
        return own or table
    both = {
        name: {
            band: np.concatenate([getattr(x, name)[band] for x in (own, table)])
            for band in XP_BANDS
        }
        for name in ("shape", "correlations")
    }
    return TypicalNoise(**both, g=np.append(own.g, np.full(len(table.shape["bp"]), np.nan)))


def _problem(arrays, widths):
    """What is wrong with arrays (m, *width) of some widths, in words; None where nothing is."""
    m = max(len(np.atleast_1d(array)) for array in arrays.values())
    if not m:
        return "holds the noise of no sort of source, expected one or more"
    for name, width in widths.items():
        array, expected = arrays[name], (m, *width)
        if array.shape != expected:
            return f"{name} has the shape {array.shape}, expected {expected}"
        if not np.isfinite(array).all():
            return f"{name} has numbers that are not finite, expected none"
    return None
