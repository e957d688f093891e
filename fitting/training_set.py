"""The training set, as step 7 writes it, read and checked: what is large of it, fluxes, goes to a
scratch file on disk and is read for some stars at a time."""

import dataclasses

import numpy as np

from fitting.observed import FINE, StarData
from pipeline.errors import ShardError
from pipeline.read import ShardReader
from pipeline.row_store import RowStore
from pipeline.schema import LabelSet, Layout, resolved
from pipeline.typical_noise import TypicalNoise, read_noise
from xp_utils import G_FLUX, FluxChannels

SPECTRA = ("flux", "flux_err", FINE)
LABELS = ("stellar_type", "stellar_type_err")
EXTINCTION = ("stellar_ext", "stellar_ext_err")
BLOCK = 1 << 14  # stars whose spectra are copied at a time


@dataclasses.dataclass
class TrainingSet:
    """A training set: ids (N,), the columns that training needs, but for SPECTRA, which are in a
    `RowStore`; labels, basis (its source), and the typical noise of its spectra, None where it does
    not tell."""

    ids: np.ndarray
    table: dict
    spectra: RowStore
    labels: LabelSet
    basis: str
    noise: TypicalNoise | None = None

    def rows(self, rows):
        """Columns of the stars `rows` (n,), their spectra among them."""
        return self.spectra.take(rows) | {name: x[rows] for name, x in self.table.items()}

    def g_magnitudes(self, release):
        """G magnitudes (N,) by the release's zero point."""
        return release.g_magnitudes(self.table[G_FLUX])

    def stored_stars(self, rows, channels):
        """`StoredStars` of the stars `rows` (n,), with labels and reddening."""
        names = ("plx", "plx_err", *LABELS, *EXTINCTION)
        columns = (self.table[name][rows].astype("f4", copy=False) for name in names)
        return StoredStars(self.spectra, rows, channels, *columns)

    def star_data(self, rows, channels):
        """`StarData` of the stars `rows` (n,), with labels and reddening."""
        return self.stored_stars(rows, channels).take(np.arange(len(rows)))


@dataclasses.dataclass
class StoredStars:
    """`StarData` of many stars, whose spectra are read for those that are asked for.

    spectra: `RowStore` of SPECTRA; places (N,): the stars' in it. Else as in `StarData`.
    """

    spectra: RowStore
    places: np.ndarray
    channels: FluxChannels
    parallax: np.ndarray
    parallax_err: np.ndarray
    theta: np.ndarray
    theta_err: np.ndarray
    extinction: np.ndarray
    extinction_err: np.ndarray

    def __len__(self):
        return len(self.places)

    @property
    def has_fine(self):
        """Whether the stars have the XP spectrum on a finer grid."""
        return FINE in self.spectra.names

    def take(self, rows):
        """`StarData` of some stars (an index array)."""
        found = self.spectra.take(self.places[rows])
        flux, flux_err = (found[name].astype("f4", copy=False) for name in ("flux", "flux_err"))
        names = ("theta", "theta_err", "extinction", "extinction_err")
        return StarData(
            flux,
            flux_err,
            self.parallax[rows],
            self.parallax_err[rows],
            self.channels,
            **{name: getattr(self, name)[rows] for name in names},
            fine=found.get(FINE),
        )


def read_training_data(path, release, folder=None):
    """The `TrainingSet` of a file. ShardError where it is not one that can be trained on.

    folder: of the scratch copy of its spectra, 0.9 kB a star; default the system's.
    """
    with ShardReader(path, release.id_column) as reader:
        reader.require_release(release)
        text = reader.attributes("stellar_type").get("labels")
        if text is None:
            raise ShardError(
                f"{path}: stellar_type does not say what its labels are: made by an older version "
                "of the project; make the file again with compile_training_data.py"
            )
        try:
            labels = LabelSet.from_json(text)
        except ValueError as error:
            raise ShardError(
                f"{path}: stellar_type: {error}; make the file again with compile_training_data.py"
            ) from error
        layout = Layout(release, labels)
        reader.check(resolved("training", layout))
        table = reader.read_table(("plx", "plx_err", *LABELS, *EXTINCTION, G_FLUX))
        ids, wavelengths = (
            reader.source_id(),
            reader.attributes("flux").get("sample_wavelengths", ()),
        )
        basis, noise = str(reader.attrs.get("xp_basis", "")), read_noise(reader, layout)
        problem = training_data_problem(table, wavelengths, layout)
        if problem:
            raise ShardError(
                f"{path}: {problem}; make the file with compile_training_data.py, which "
                "leaves such stars out"
            )
        return TrainingSet(ids, table, stored_spectra(reader, folder), labels, basis, noise)


def stored_spectra(reader, folder=None):
    """A `RowStore` in a folder of the SPECTRA that a `ShardReader` reads."""
    first = reader.read_table(SPECTRA[:2], 0, 0, optional=SPECTRA[2:])
    store = RowStore({name: (x.dtype, x.shape[1:]) for name, x in first.items()}, folder)
    for start in range(0, reader.n_rows, BLOCK):
        stop = min(start + BLOCK, reader.n_rows)
        store.append({name: reader.read(name, start, stop) for name in store.names})
    return store


def training_data_problem(table, wavelengths, layout):
    """What is wrong with a training set, in words that name the dataset; None where nothing is."""
    expected = layout.wavelengths
    if np.shape(wavelengths) != expected.shape or not np.allclose(wavelengths, expected):
        return (
            f"flux has {np.size(wavelengths)} sample_wavelengths that are not the "
            f"{len(expected)} of {layout.release.title} and the photometric bands"
        )
    n = len(table["plx"])
    for name in (*LABELS, "plx", "plx_err"):
        positive = name != "stellar_type"
        bad = ~np.isfinite(table[name]) | (table[name] <= (0.0 if positive else -np.inf))
        bad = bad if bad.ndim == 1 else bad.any(1)
        if bad.any():
            words = "finite and positive" if positive else "finite"
            return f"{name} is not {words} for {bad.sum()} of {n} stars, e.g. row {bad.argmax()}"
    low, high = layout.labels.array("possible").T
    bad = (table["stellar_type"] < low) | (table["stellar_type"] > high)
    for k, label in enumerate(layout.labels):
        if bad[:, k].any():
            row = bad[:, k].argmax()
            return (
                f"{label.title} of stellar_type is outside of {low[k]:g} to {high[k]:g} "
                f"{label.unit} for {bad[:, k].sum()} of {n} stars, e.g. row {row}: "
                f"{table['stellar_type'][row, k]:g}"
            )
    alike = (table["stellar_type"] == table["stellar_type"][:1]).all(0)
    if n > 1 and alike.any():
        names = [x.title for x, same in zip(layout.labels, alike, strict=True) if same]
        return f"stellar_type has the same {' or '.join(names)} for all stars"
    return None
