"""The training set, as step 7 writes it, read and checked."""

import dataclasses

import numpy as np

from fitting.observed import FINE, OBSERVED, StarData
from pipeline.errors import ShardError
from pipeline.read import ShardReader
from pipeline.schema import LabelSet, Layout, resolved
from pipeline.typical_noise import TypicalNoise, read_noise
from xp_utils import G_FLUX

LABELS = ("stellar_type", "stellar_type_err")
EXTINCTION = ("stellar_ext", "stellar_ext_err")


@dataclasses.dataclass
class TrainingSet:
    """A training set: ids (N,), the columns that training needs, labels, basis (its source), and
    the typical noise of its spectra, None where it does not tell."""

    ids: np.ndarray
    table: dict
    labels: LabelSet
    basis: str
    noise: TypicalNoise | None = None

    def rows(self, rows):
        """Columns of some stars."""
        return {name: values[rows] for name, values in self.table.items()}

    def g_magnitudes(self, release):
        """G magnitudes (N,) by the release's zero point."""
        return release.g_magnitudes(self.table[G_FLUX])

    def star_data(self, rows, channels):
        """`StarData` of some stars, with labels and reddening."""
        names = (*OBSERVED, *LABELS, *EXTINCTION)
        columns = [self.table[name][rows].astype("f4") for name in names]
        fine = self.table[FINE][rows] if FINE in self.table else None
        return StarData(*columns[: len(OBSERVED)], channels, *columns[len(OBSERVED) :], fine)


def read_training_data(path, release):
    """The `TrainingSet` of a file. ShardError where it is not one that can be trained on."""
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
        names = ("flux", "flux_err", "plx", "plx_err", *LABELS, *EXTINCTION, G_FLUX)
        table, ids = reader.read_table(names, optional=("xp_fine",)), reader.source_id()
        wavelengths = reader.attributes("flux").get("sample_wavelengths", ())
        basis, noise = str(reader.attrs.get("xp_basis", "")), read_noise(reader, layout)
    problem = training_data_problem(table, wavelengths, layout)
    if problem:
        raise ShardError(
            f"{path}: {problem}; make the file with compile_training_data.py, which "
            "leaves such stars out"
        )
    return TrainingSet(ids, table, labels, basis, noise)


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
    alike = (table["stellar_type"] == table["stellar_type"][:1]).all(0)
    if n > 1 and alike.any():
        names = [x.title for x, same in zip(layout.labels, alike, strict=True) if same]
        return f"stellar_type has the same {' or '.join(names)} for all stars"
    return None
