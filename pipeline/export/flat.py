"""The catalogue's datasets as flat columns: one number a star and column, with unit, words and UCD.

The names follow from the labels of the shards: each parameter by its name (that of E is `ext`, as
names that differ from others in case alone are trouble in many programs), with `_err`; then the
correlations `teff_feh_corr`; `model_` and `second_` before the parameters of the other solutions.
"""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from astropy.units import Unit

from pipeline.schema import flags, inferred_columns, resolved
from pipeline.schema.labels import EXTINCTION

KIND = "opt_output"
FLAT_NAMES = {EXTINCTION.name: "ext"}  # of parameters
OF_PARAMETERS = {"stellar_params": "", "model_params": "model_", "second_params": "second_"}
COVARIANCE, PRECISION = "stellar_params_cov_triu", "stellar_params_icov_triu"
FLAGS, FLAG_NAMES = "quality_flags", "quality_flag_names"
SIGNED = {"u1": "i2", "u2": "i4", "u4": "i8"}  # FITS and VOTable have no others of these sizes
TEXT = "text"  # dtype of columns of words


@dataclass(frozen=True)
class FlatColumn:
    """A column of a flat table.

    dtype: i2, i4, i8, f4, f8, S<n> or TEXT; needs: datasets of a shard that it is made of; of:
    {dataset: (N, ...)} -> (N,). aside: only written where it is asked for or files are for the eye.
    """

    name: str
    dtype: str
    unit: str | None
    text: str
    ucd: str | None
    needs: tuple
    of: Callable
    aside: bool = False

    def values(self, table) -> np.ndarray:
        """(N,) of the rows of a table of datasets; missing floats are NaN."""
        values = self.of(table)
        return values if self.dtype == TEXT else values.astype(self.dtype, copy=False)


@functools.cache
def _is_unit(text) -> bool:
    try:
        Unit(text)
    except ValueError:
        return False
    return True


def _unit_and_text(unit, text):
    """(unit, words): a unit that is none for programs is put into the words."""
    if unit and not _is_unit(unit):
        return None, f"{text}, in {unit}"
    return unit or None, text


def _column(name, dtype, unit, text, ucd, needs, of, aside=False):
    unit, text = _unit_and_text(unit, text)
    return FlatColumn(name, SIGNED.get(dtype, dtype), unit, text, ucd or None, needs, of, aside)


def _as_it_is(data, name=None, ucd=None):
    given = data.attributes
    return _column(
        name or data.name,
        data.dtype,
        given.get("units"),
        given["description"],
        ucd or given.get("ucd"),
        (data.name,),
        lambda table: table[data.name],
    )


def _place(dataset, k):
    return lambda table: table[dataset][:, k]


def _joined_ucd(*words):
    return ";".join(word for word in words if word)


def flat_name(parameter) -> str:
    """Name of the flat column of a `Parameter`."""
    return FLAT_NAMES.get(parameter.name, parameter.name)


def _solution(datasets, kind, labels):
    """Columns of the parameters of a solution: estimate and, where there is one, error."""
    prefix, est, err = OF_PARAMETERS[kind], f"{kind}_est", f"{kind}_err"
    said = datasets[est].attributes["description"].removeprefix(f"{labels.parameter_words}: ")
    for k, parameter in enumerate(labels.parameters):
        name = prefix + flat_name(parameter)
        unit, title = _unit_and_text(parameter.unit, parameter.title)
        text = f"{title}: {'; '.join(filter(None, (parameter.text, said)))}"
        of = _place(est, k)
        yield _column(name, datasets[est].dtype, unit, text, parameter.ucd, (est,), of)
        if err in datasets:
            text = f"{datasets[err].attributes['description']}: {title}"
            ucd = _joined_ucd("stat.error", parameter.ucd)
            dtype, of = datasets[err].dtype, _place(err, k)
            yield _column(f"{name}_err", dtype, unit, text, ucd, (err,), of)


def correlation(n, first, second):
    """What makes the correlation of two parameters of n from the covariance's triangle."""
    at = {pair: k for k, pair in enumerate(zip(*np.triu_indices(n), strict=True))}

    def of(table):
        triangle = table[COVARIANCE]
        i, j, both = (
            triangle[:, at[pair]].astype("f8")
            for pair in ((first, first), (second, second), (first, second))
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            return (both / np.sqrt(i * j)).astype("f4")

    return of


def _correlations(labels):
    parameters = labels.parameters
    for (i, one), (j, other) in itertools.combinations(enumerate(parameters), 2):
        name = f"{flat_name(one)}_{flat_name(other)}_corr"
        text = f"correlation of the errors of {one.title} and {other.title}"
        ucd = _joined_ucd("stat.correlation", one.ucd, other.ucd)
        of = correlation(len(parameters), i, j)
        yield _column(name, "f4", None, text, ucd, (COVARIANCE,), of)


def flag_names(values, bits) -> np.ndarray:
    """(N,) texts: the names of the bits of values (N,), with blanks between them."""
    found, which = np.unique(values, return_inverse=True)
    names = [" ".join(flag.name for flag in bits if value & flag.value) for value in found.tolist()]
    return np.array(names, object)[which]


def _flag_names(labels):
    bits = flags.quality_flag(labels)

    def of(table):
        return flag_names(table[FLAGS], bits)

    words = f"names of the bits of {FLAGS}"
    return _column(FLAG_NAMES, TEXT, None, words, "meta.code.qual", (FLAGS,), of, aside=True)


def _inferred(datasets, labels):
    """The columns of a dataset of the inference, dataset by dataset."""
    direct = {f"{x.name}_{e}": (x, e) for x in labels if not x.forward for e in ("est", "err")}
    for name, data in datasets.items():
        if name.removesuffix("_est") in OF_PARAMETERS:
            yield from _solution(datasets, name.removesuffix("_est"), labels)
        elif name == COVARIANCE:
            yield from _correlations(labels)
        elif name == FLAGS:
            yield from (_as_it_is(data), _flag_names(labels))
        elif name in direct:
            label, what = direct[name]
            ucd = label.ucd if what == "est" else _joined_ucd("stat.error", label.ucd)
            yield _as_it_is(data, label.name if what == "est" else name, ucd)
        elif not data.shape:
            yield _as_it_is(data, name.removesuffix("_est"))


def flat_columns(layout, added=None) -> dict:
    """{name: FlatColumn} of the catalogue, for a `schema.Layout`: id and position first, what was
    inferred, the columns `added` to that, what was copied from the inputs. A name that is taken,
    whatever its case, gets `_label` at its end."""
    datasets = resolved(KIND, layout)
    made = inferred_columns(layout.labels)
    copied = [name for name in datasets if name not in made]
    first = [layout.release.id_column, "ra", "dec"]
    rest = [name for name in copied if name not in first]
    inferred = {name: datasets[name] for name in datasets if name in made}
    taken = {name.lower() for name in copied}
    out = {name: _as_it_is(datasets[name]) for name in first}
    for column in (*_inferred(inferred, layout.labels), *(added or {}).values()):
        if column.name.lower() in taken:
            column = replace(column, name=f"{column.name}_label")
        taken.add(column.name.lower())
        out[column.name] = column
    return out | {name: _as_it_is(datasets[name]) for name in rest}
