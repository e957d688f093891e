"""Columns of dust for a table of the catalogue: R(55), R(V), A(V), E(44-55) and their errors.

They follow from xi and E by the extinction curve of the model that the catalogue was made with.
"""

from pipeline.errors import UsageError
from pipeline.export.flat import COVARIANCE, FlatColumn, correlation
from pipeline.extinction_law import DEFINITIONS, dust_of, law_of_model
from pipeline.provenance import see
from pipeline.schema import MODEL_FILE
from pipeline.schema.labels import EXTINCTION, XI

EST, ERR = "stellar_params_est", "stellar_params_err"
UNITS = {"R55": None, "RV": None, "AV": "mag", "E44_55": "mag"}
UCDS = {"AV": "phys.absorption;em.opt.V", "E44_55": "phot.color.excess;em.opt"}
ERROR = "root mean square over the Gaussian of xi and E, about the estimate"


class _DustOf:
    """`dust_of` the stars of a table of datasets, made once for all columns."""

    def __init__(self, law, labels):
        names = [parameter.name for parameter in labels.parameters]
        self.law, self.xi, self.ext = law, names.index(XI.name), names.index(EXTINCTION.name)
        self.corr = correlation(len(names), *sorted((self.xi, self.ext)))
        self.table, self.values = None, {}

    def __call__(self, table) -> dict:
        if self.table is not table:
            columns = [table[kind][:, k] for kind in (EST, ERR) for k in (self.xi, self.ext)]
            self.values = dust_of(self.law, *columns, self.corr(table))
            self.table = table
        return self.values


def _column(name, unit, text, ucd, dust):
    def of(table):
        return dust(table)[name]

    return FlatColumn(name, "f4", unit, text, ucd, (EST, ERR, COVARIANCE), of)


def dust_columns(law, labels) -> dict:
    """{name: FlatColumn} of an `ExtinctionLaw`, for a catalogue of the labels: each quantity of
    `dust_of` with its error."""
    dust, out = _DustOf(law, labels), {}
    for name, unit in UNITS.items():
        text, ucd = DEFINITIONS[name].removesuffix(" (mag)"), UCDS.get(name)
        error = f"stat.error;{ucd}" if ucd else "stat.error"
        out[name] = _column(name, unit, text, ucd, dust)
        out[f"{name}_err"] = _column(f"{name}_err", unit, f"error of {name}: {ERROR}", error, dust)
    return out


def law_of_catalogue(folder, catalogue):
    """The `ExtinctionLaw` of the model in the output folder of train.py that made a `Catalogue`.
    UsageError where it is another model, or there is none."""
    path = folder / MODEL_FILE
    if not path.is_file():
        raise UsageError(
            f"{path}: no trained model there; give --dust the output folder of train.py"
        )
    found = see(path).entry["identity"]
    if catalogue.models != [found]:
        raise UsageError(
            f"{path}: the catalogue was made with another model ({', '.join(catalogue.models)}; "
            f"this one is {found}): xi and E are told by their own model's curve alone"
        )
    return law_of_model(path, catalogue.release)
