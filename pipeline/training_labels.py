"""The labels of a training set: read from anyone's table, cleaned, and accounted for to the last.

A table of N labels has an id column (N,), `params_est` (N, K) and `params_err` (N, K), K >= 2: a
compound dataset, as Astropy's `Table.write` makes it, or plain datasets. What the K labels are is
said by attributes of the table, or of `params_est`: `label_names` and, for labels that are not
known or are stored in other units, `label_units`, `label_scales`, `label_tolerances`.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from astropy.table.meta import get_header_from_yaml

from pipeline.errors import UsageError
from pipeline.read import ShardReader
from pipeline.schema.labels import (
    DEFAULT_LABELS,
    LABEL_GRAMMAR,
    LabelSet,
    described_label,
)

NAMED_IDS = 5  # ids named in the log for each exception
# Of the values of a label: with more than this share outside of what is possible the column is in
# another unit, or is another quantity.
MOST_IMPOSSIBLE = 0.5

# Exceptions, in the order in which they are looked for: a label counts under the first it meets.
NO_ID = "label without a source id (masked)"
NOT_FINITE = "label not finite"
IMPOSSIBLE = "label outside its possible range"
REPEATED = "repeated id (the label with smaller errors kept)"
NO_SHARD = "no shard covers the star"
LABEL_EXCEPTIONS = (NO_ID, NOT_FINITE, IMPOSSIBLE, REPEATED, NO_SHARD)


@dataclass
class LabelTable:
    """N stars' labels as read, and what became of each.

    labels: the K labels; source_id (N,) int64; est, err (N, K) in the labels' units; fate (N,): ""
    or the exception that excludes the star.
    """

    labels: LabelSet
    source_id: np.ndarray
    est: np.ndarray
    err: np.ndarray
    fate: np.ndarray

    def exclude(self, rows, reason):
        """Exclude stars (row numbers) that have no exception yet."""
        rows = rows[self.fate[rows] == ""]
        self.fate[rows] = reason

    def left(self):
        """Row numbers of the stars not excluded."""
        return np.flatnonzero(self.fate == "")


# ---- reading ---------------------------------------------------------------------------------


def _columns_and_words(reader, id_column) -> tuple[dict, dict]:
    """Columns of the first compound dataset that holds labels, else the plain datasets; and the
    attributes that say what the labels are."""
    for name in reader.columns:
        fields = reader.read(name, 0, 0).dtype.names or ()
        if id_column in fields:
            table, words = reader.read(name), reader.attributes(name)
            described = f"{name}.__table_column_meta__"  # of Astropy, with serialize_meta=True
            if described in reader.columns:
                lines = [line.decode() for line in reader.read(described)]
                words |= get_header_from_yaml(lines).get("meta", {})
            return {field: table[field] for field in fields}, words
    names = [n for n in (id_column, "params_est", "params_err") if n in reader.columns]
    words = reader.attributes("params_est") if "params_est" in names else {}
    return reader.read_table(names), words


def _texts(value) -> list[str]:
    """Words of an attribute: an array of texts, or one text with spaces or commas."""
    if isinstance(value, bytes | str):
        value = (value.decode() if isinstance(value, bytes) else value).replace(",", " ").split()
    return [word.decode() if isinstance(word, bytes) else str(word) for word in value]


def _described(words) -> list | None:
    """The labels that a table's attributes describe, None where it names none."""
    if "label_names" not in words:
        return None
    names = _texts(words["label_names"])
    columns = {"unit": _texts(words["label_units"])} if "label_units" in words else {}
    for key in ("scale", "tolerance"):
        if f"label_{key}s" in words:
            columns[key] = np.asarray(words[f"label_{key}s"], float).ravel().tolist()
    for key, values in columns.items():
        if len(values) != len(names):
            raise ValueError(f"label_{key}s has {len(values)} entries, label_names {len(names)}")
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return [
        described_label(
            name.removesuffix(":direct"), **fields, forward=not name.endswith(":direct")
        )
        for name, fields in zip(names, rows or [{}] * len(names), strict=True)
    ]


def _label_set(path, words, given, n_labels) -> LabelSet:
    """The labels of a table: those of --labels (`given`), else its own, else the usual three."""
    try:
        labels = given or _described(words)
        if labels is None and n_labels == len(DEFAULT_LABELS):
            labels = DEFAULT_LABELS
        found = None if labels is None else LabelSet(labels)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path}: {error}") from error
    if found is None:
        raise UsageError(
            f"{path}: params_est has {n_labels} columns and nothing says what they are: give the "
            "table an attribute label_names (in Astropy: table.meta['label_names'] = [...]), or "
            f"--labels with {n_labels} words, each {LABEL_GRAMMAR}"
        )
    if len(found) != n_labels:
        raise UsageError(
            f"{path}: params_est has {n_labels} columns, but {len(found)} labels are named "
            f"({', '.join(found.texts('name'))}): give one name a column (--labels)"
        )
    return found


def read_labels(path, release, given=None) -> LabelTable:
    """Labels of an Astropy Table or of plain datasets; masked values (`X.mask`) become NaN.

    given: list of Labels over those of the table. Raises UsageError where a column is missing or
    has the wrong shape or type, or nothing says what the labels are.
    """
    id_column = release.id_column
    with ShardReader(path) as reader:
        reader.require_release(release)
        columns, words = _columns_and_words(reader, id_column)
        found = ", ".join(reader.columns)
    ids = columns.get(id_column)
    if ids is None or ids.ndim != 1 or ids.dtype.kind not in "iu":
        what = "is missing" if ids is None else f"is {ids.dtype} of shape {ids.shape}"
        raise UsageError(
            f"{path}: {id_column} {what}, expected one 64-bit integer per label, in a table at "
            f"the root of the file or as a plain dataset (found: {found})"
        )
    values = {name: _values(path, columns, name, len(ids)) for name in ("params_est", "params_err")}
    est, err = values.values()
    if err.shape != est.shape:
        raise UsageError(f"{path}: params_err has shape {err.shape}, params_est {est.shape}")
    labels = _label_set(path, words, given, est.shape[1])
    fate = np.full(len(ids), "", dtype=object)
    fate[np.asarray(columns.get(f"{id_column}.mask", np.zeros(len(ids), bool)))] = NO_ID
    return LabelTable(labels, ids.astype(np.int64), est, err, fate)


def _values(path, columns, name, n_rows) -> np.ndarray:
    column = columns.get(name)
    good = column is not None and column.ndim == 2 and len(column) == n_rows
    if not good or column.dtype.kind not in "fiu":
        what = "is missing" if column is None else f"is {column.dtype}, shape {column.shape}"
        raise UsageError(
            f"{path}: {name} {what}, expected numbers of shape ({n_rows}, K), a column a label"
        )
    values = column.astype(float)
    values[columns.get(f"{name}.mask", np.zeros(column.shape, bool))] = np.nan
    return values


# ---- cleaning --------------------------------------------------------------------------------


def clean_labels(table, path, log):
    """Exclude labels that are not finite, impossible or repeated; give invalid errors the default.

    Of labels with the same id the one with the smallest sum of errors, each relative to the
    label's default, is kept (the first of equals). Raises UsageError where most values of a label
    are impossible.
    """
    default = table.labels.array("default_err")
    table.exclude(np.flatnonzero(~np.isfinite(table.est).all(axis=1)), NOT_FINITE)
    _exclude_impossible(table, path)
    invalid = ~(np.isfinite(table.err) & (table.err > 0)) & (table.fate == "")[:, None]
    table.err = np.where(invalid, default, table.err)
    for label, count in zip(table.labels, invalid.sum(axis=0), strict=True):
        if count:
            log.warning(
                "%d errors of %s not positive: set to %g %s",
                count, label.title, label.default_err, label.unit,
            )  # fmt: skip
    left = table.left()
    score = (table.err[left] / default).sum(axis=1)
    order = left[np.lexsort((score, table.source_id[left]))]
    ids = table.source_id[order]
    table.exclude(order[1:][ids[1:] == ids[:-1]], REPEATED)


def _exclude_impossible(table, path):
    left = table.left()
    low, high = table.labels.array("possible").T
    outside = (table.est[left] < low) | (table.est[left] > high)
    for k in np.flatnonzero(outside.mean(axis=0) > MOST_IMPOSSIBLE if len(left) else []):
        label = list(table.labels)[k]
        raise UsageError(
            f"{path}: {outside[:, k].sum()} of {len(left)} values of {label.title} (column {k} of "
            f"params_est) are outside of {low[k]:g} to {high[k]:g} {label.unit}, the median is "
            f"{np.median(table.est[left, k]):g}: store it in {label.unit} (params_err too), or "
            "name the columns in their order with --labels"
        )
    table.exclude(left[outside.any(axis=1)], IMPOSSIBLE)


def labels_by_shard(table, fids, release) -> dict:
    """{fid: row numbers of its labels}, for shards with any; a label lies in one range at most.

    A fid is an inclusive range of the release's HEALPix pixels. Raises UsageError where ranges
    overlap.
    """
    low, high = np.array([[int(edge) for edge in fid.split("-")] for fid in fids]).T
    overlap = np.flatnonzero((low[1:] <= high[:-1]) | (high[1:] < low[1:]))
    if len(overlap):
        first, second = fids[overlap[0]], fids[overlap[0] + 1]
        raise UsageError(f"the spectra's shards {first} and {second} overlap; remove one")
    left = table.left()
    pixel = release.pixel(table.source_id[left])
    place = np.searchsorted(low, pixel, side="right") - 1
    inside = (place >= 0) & (pixel <= high[place])
    table.exclude(left[~inside], NO_SHARD)
    left, place = left[inside], place[inside]
    order = np.argsort(place, kind="stable")
    used, starts = np.unique(place[order], return_index=True)
    groups = np.split(left[order], starts[1:]) if len(used) else []
    return dict(zip([fids[i] for i in used], groups, strict=True))


# ---- accounting ------------------------------------------------------------------------------


def account(table, exceptions) -> str:
    """The text table that accounts for every label."""
    counts = Counter(table.fate.tolist())
    lines = [f"{'labels in':<50}{len(table.fate):>10}"]
    lines += [f"  {why:<48}{-counts[why]:>10}" for why in exceptions if counts[why]]
    return "\n".join([*lines, f"{'training stars':<50}{counts['']:>10}"])


def name_exceptions(table, exceptions, log):
    """Log the first ids of each exception."""
    for why in exceptions:
        ids = table.source_id[table.fate == why]
        if len(ids):
            log.info("%s: %d, e.g. %s", why, len(ids), " ".join(map(str, ids[:NAMED_IDS])))
