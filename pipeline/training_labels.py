"""The labels of a training set: read from anyone's table, cleaned, and accounted for to the last.

A table of N labels has an id column (N,), `params_est` (N, K) and `params_err` (N, K), K >= 2, in
any form that `label_tables` reads. What the K labels are is
said by attributes of the table, or of `params_est`: `label_names` and, for labels that are not
known or are stored in other units, `label_units`, `label_scales`, `label_tolerances`.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.cells import MISSING_WORDS
from pipeline.errors import UsageError
from pipeline.label_tables import FORMS, read_columns
from pipeline.schema.labels import (
    DEFAULT_LABELS,
    LABEL_GRAMMAR,
    LabelSet,
    described_label,
)

NAMED_IDS = 5  # ids named in the log for each exception
# Of the values of a label: with more than this share outside of what is possible the column is in
# another unit, or is another quantity. Likewise where more than this share are such values in the
# unit that is shown (K for kK), as of two tables put together.
MOST_IMPOSSIBLE, MOST_OTHER_UNIT = 0.5, 0.05
LEAST_OTHER_UNIT = 3  # values
# One value that so many of the impossible ones share stands for "missing", as -9999 does.
SENTINEL_SHARE = 0.25
MOST_ERROR = 10.0  # tolerances of the label; what is beyond is no error, or is in another unit

# Exceptions, in the order in which they are looked for: a label counts under the first it meets.
NO_ID = "label without a source id (masked)"
NOT_FINITE = "label not finite"
IMPOSSIBLE = "label outside its possible range"
UNCERTAIN = "label error larger than any in use"
REPEATED = "repeated id (the label with smaller errors kept)"
NO_SHARD = "no shard covers the star"
LABEL_EXCEPTIONS = (NO_ID, NOT_FINITE, IMPOSSIBLE, UNCERTAIN, REPEATED, NO_SHARD)


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


def _texts(value) -> list[str]:
    """Words of an attribute: an array of texts, or one text with spaces or commas."""
    if isinstance(value, bytes | str):
        value = (value.decode() if isinstance(value, bytes) else value).replace(",", " ").split()
    return [word.decode() if isinstance(word, bytes) else str(word) for word in value]


def _described(words) -> list | None:
    """The labels that a table's attributes describe, None where it names none.

    Units without names are those of the usual labels.
    """
    if not {"label_names", "label_units"} & set(words):
        return None
    names = _texts(words.get("label_names", DEFAULT_LABELS.texts("name")))
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
    """Labels of a table in any form of `label_tables`; what is masked there is missing here.

    given: list of Labels over those of the table. Raises UsageError where a column is missing or
    has the wrong shape or type, or nothing says what the labels are.
    """
    names = (release.id_column, "params_est", "params_err")
    table = read_columns(Path(path), names, release)
    ids, has_id = _ids(path, table, names[0])
    est, err = (_values(path, table, name, len(ids)) for name in names[1:])
    if err.shape != est.shape:
        raise UsageError(f"{path}: params_err has shape {err.shape}, params_est {est.shape}")
    labels = _label_set(path, table.words, given, est.shape[1])
    fate = np.full(len(ids), "", dtype=object)
    fate[~has_id] = NO_ID
    return LabelTable(labels, ids, est, err, fate)


def _ids(path, table, name) -> tuple[np.ndarray, np.ndarray]:
    """Source ids (N,) int64, 0 where there is none, and (N,) bool whether there is one."""
    ids = table.columns.get(name)
    masked = table.masks.get(name, False)
    if ids is not None and ids.ndim == 1 and ids.dtype.kind in "SUO":
        texts = [_text(value) for value in ids]
        missing = np.array([text.lower() in MISSING_WORDS for text in texts], bool) | masked
        if all(text.isdecimal() for text in np.array(texts, object)[~missing]):
            ids = np.array([0 if no else int(x) for no, x in zip(missing, texts, strict=True)])
    wide = ids is not None and ids.dtype.kind in "iu" and (ids.itemsize == 8 or not len(ids))
    if not wide or ids.ndim != 1:
        what = "is missing" if ids is None else f"is {ids.dtype} of shape {ids.shape}"
        raise UsageError(
            f"{path}: {name} {what}, expected one 64-bit integer per label (other types have lost "
            f"digits), in a table of {FORMS} (found: {', '.join(table.found) or 'nothing'})"
        )
    ids = ids.astype(np.int64)
    has = (ids > 0) & ~np.broadcast_to(masked, ids.shape)
    return np.where(has, ids, 0), has


def _text(value) -> str:
    return (value.decode(errors="replace") if isinstance(value, bytes) else str(value)).strip()


def _values(path, table, name, n_rows) -> np.ndarray:
    """A column of labels or errors (N, K), float64; NaN where masked."""
    column, mask = table.columns.get(name), table.masks.get(name)
    good = column is not None and column.ndim == 2 and len(column) == n_rows
    if not good or column.dtype.kind not in "fiu":
        what = "is missing" if column is None else f"is {column.dtype}, shape {column.shape}"
        raise UsageError(
            f"{path}: {name} {what}, expected numbers of shape ({n_rows}, K), a column a label"
        )
    values = column.astype(float)
    if mask is not None:
        if mask.shape not in (values.shape, values.shape[:1]):
            raise UsageError(f"{path}: the mask of {name} has shape {mask.shape}")
        values[mask] = np.nan
    return values


# ---- cleaning --------------------------------------------------------------------------------


def clean_labels(table, path, log):
    """Exclude labels that are not finite, impossible, uncertain or repeated.

    Invalid errors become the label's default. Of labels with the same id the one with the smallest
    sum of errors, each relative to the label's default, is kept (the first of equals). Raises
    UsageError where most values or errors of a label are impossible.
    """
    default = table.labels.array("default_err")
    table.exclude(np.flatnonzero(~np.isfinite(table.est).all(axis=1)), NOT_FINITE)
    _exclude_impossible(table, path)
    _exclude_uncertain(table, path)
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
    for k, label in enumerate(table.labels):
        _require_unit(table.est[left, k], outside[:, k], label, k, path)
    table.exclude(left[outside.any(axis=1)], IMPOSSIBLE)


def _without_sentinels(values) -> np.ndarray:
    """The values (n,) less those that many of them share."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    sentinel = (counts > 1) & (counts > SENTINEL_SHARE * len(values))
    return values[~sentinel[place]]


def _require_unit(values, outside, label, k, path):
    """UsageError where values (n,) of a label look like those of another unit or quantity."""
    low, high = label.possible
    odd = _without_sentinels(values[outside])
    shown = (odd >= low * label.scale) & (odd <= high * label.scale) & (label.scale != 1)
    n_shown = len(np.unique(odd[shown]))
    several = n_shown >= LEAST_OTHER_UNIT and n_shown > MOST_OTHER_UNIT * len(values)
    if len(odd) > MOST_IMPOSSIBLE * len(values) or several:
        raise UsageError(
            f"{path}: {len(odd)} of {len(values)} values of {label.title} (column {k} of "
            f"params_est) are outside of {low:g} to {high:g} {label.unit}, their median is "
            f"{np.median(odd):g}: store it in {label.unit} (params_err too), or "
            "name the columns in their order with --labels"
        )


def _exclude_uncertain(table, path):
    """Exclude labels with impossibly large errors; UsageError where most of a label's are."""
    left = table.left()
    most = MOST_ERROR * table.labels.array("tolerance")
    given, large = table.err[left] > 0, table.err[left] > most
    large &= np.isfinite(table.err[left])
    for k, label in enumerate(table.labels):
        odd = _without_sentinels(table.err[left, k][large[:, k]])
        if len(odd) > MOST_IMPOSSIBLE * given[:, k].sum():
            raise UsageError(
                f"{path}: {len(odd)} of {given[:, k].sum()} errors of {label.title} (column {k} of "
                f"params_err) are above {most[k]:g} {label.unit}, their median is "
                f"{np.median(odd):g}: store them in {label.unit}"
            )
    table.exclude(left[large.any(axis=1)], UNCERTAIN)


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
