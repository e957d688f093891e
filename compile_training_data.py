#!/usr/bin/env python3
"""Step 7: collect the training set: flux vectors of the stars that have labels.

    python compile_training_data.py --stellar-params training_params.h5 --output training_data.h5

Reads the labels (HDF5, an Astropy Table or plain datasets: `gdr3_source_id` (N,), `params_est`
(N,3) = Teff/1000 K, [Fe/H], log g, `params_err` (N,3)) and, of DATA_DIR, the shards of the spectra,
metadata, 2MASS, unWISE and reddening whose range of sky holds a labelled star.

Keeps stars with parallax / parallax_error > 3 and fidelity_v2 > 0.5. The log, `training_data.log`
beside the output, accounts for every label; its table is printed at the end.

Writes one row per star, ordered by source id (`inf` = not used, NaN = missing):
  gdr3_source_id, ra, dec (deg)
  flux, flux_err (n,66)          1e-18 W m-2 nm-1 at the attribute `sample_wavelengths` (nm)
  flux_sqrticov_tril (n,1891)    lower triangle of the whitening of the 61 XP fluxes, row order
  flux_cov_eival_min, _max       extreme eigenvalues of their covariance
  input_flags                    bits of xp_utils.InputFlag
  stellar_type, stellar_type_err (n,3)  the labels
  plx, plx_err (mas)             zero point corrected
  stellar_ext, stellar_ext_err   initial extinction, in the units of the map that
  stellar_ext_source             names: bayestar; sfd, planck, bh for a star beyond the dust, with
                                 _limit for one that may lie within it; none
  phot_{g,bp,rp}_mean_flux (+ _error), norm_dg, ruwe   copied from the metadata

Size: about 7 kB a star. Time on one core: 15 s for 65,000 labelled stars of one shard, 1 s for 300
of 65,000 (only rows near labelled stars are read). Memory: one shard's labelled stars (65,000:
0.7 GB).
Exit status: 0 written (or already complete), 1 a shard failed or no star is left, 2 wrong usage.
"""

import argparse
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy import units
from astropy.coordinates import SkyCoord

import xp_utils
from pipeline.errors import ShardError, UsageError
from pipeline.provenance import Status, output_state, provenance
from pipeline.read import ShardReader, aligned_chunks, join_rows
from pipeline.run import collect_failure, progress, setup_logging, usage_exit
from pipeline.schema import KINDS
from pipeline.select import input_paths, list_fids, shard_path, used_kinds
from pipeline.write import ShardWriter

SCRIPT = "compile_training_data"
LABELS = ("Teff (kK)", "[Fe/H]", "log g")
# Errors for labels that come without a valid one. Of the order of what low-resolution surveys
# reach on noisy spectra: such a label still counts, but less than one with a good error.
DEFAULT_LABEL_ERR = np.array([0.15, 0.15, 0.25])  # kK, dex, dex
MIN_PARALLAX_SNR = 3.0
MIN_FIDELITY = 0.5
# The dust lies near the plane: a star farther from it than this is behind all of it, so the
# reddening of the whole column is its own.
MIN_DUST_HEIGHT = 0.4  # kpc
DUST_HEIGHT_SIGMA = 2.0  # the height is certain if it holds at parallax + this many errors
COLUMN_MAPS = ("sfd", "planck", "bh")  # maps of the whole column, the preferred ones first
COLUMN_RELATIVE_ERR = 0.1  # of these maps: calibration and structure below their resolution
EXT_ERR_FLOOR = 0.03  # mag, in quadrature
EXT_ERR_RELATIVE = 0.1  # of E, in quadrature
NAMED_IDS = 5  # ids named in the log for each exception

PHOT_COLUMNS = tuple(f"phot_{b}_mean_flux{e}" for b in ("g", "bp", "rp") for e in ("", "_error"))
METADATA_COLUMNS = (
    "ra", "dec", "parallax", "parallax_error", "fidelity_v2", "norm_dg", "ruwe", *PHOT_COLUMNS,
)  # fmt: skip
BAYESTAR_COLUMNS = ("E_mean_bayestar", "E_sigma_bayestar")
COLUMN_MAP_COLUMNS = tuple(f"E_mean_{name}" for name in COLUMN_MAPS)
REDDENING_COLUMNS = (*BAYESTAR_COLUMNS, *COLUMN_MAP_COLUMNS)

# Exceptions, in the order in which they are looked for: a label counts under the first it meets.
NOT_FINITE = "label not finite"
REPEATED = "repeated id (the label with smaller errors kept)"
NO_SHARD = "no shard covers the star"
BAD_SHARD = "its shard is bad and was skipped"
NO_SPECTRUM = "star has no spectrum"
NO_METADATA = "star has no metadata"
NO_PARALLAX = "no parallax"
POOR_PARALLAX = f"parallax / error <= {MIN_PARALLAX_SNR:g}"
NO_FIDELITY = "fidelity_v2 missing"
POOR_FIDELITY = f"fidelity_v2 <= {MIN_FIDELITY:g}"
EXCEPTIONS = (
    NOT_FINITE, REPEATED, NO_SHARD, BAD_SHARD, NO_SPECTRUM, NO_METADATA, NO_PARALLAX,
    POOR_PARALLAX, NO_FIDELITY, POOR_FIDELITY,
)  # fmt: skip


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stellar-params", type=Path, required=True, help="labels (HDF5)")
    parser.add_argument("--output", type=Path, required=True, help="training set (HDF5)")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="default: %(default)s")
    parser.add_argument(
        "--without",
        nargs="+",
        default=[],
        choices=[kind for kind in KINDS if KINDS[kind].optional],
        help="do without these folders",
    )
    parser.add_argument(
        "--skip-bad-shards",
        action="store_true",
        help="leave out the stars of shards that cannot be read, rather than fail",
    )
    parser.add_argument("--overwrite", action="store_true", help="make a finished output again")
    parser.add_argument("--log", type=Path, help="default: the output's name with .log")
    return parser.parse_args(argv)


# ---- labels ----------------------------------------------------------------------------------


@dataclass
class Labels:
    """The N labels as read, and what became of each.

    source_id (N,) int64; est, err (N,3); fate (N,): "" or the exception that excludes the label.
    """

    source_id: np.ndarray
    est: np.ndarray
    err: np.ndarray
    fate: np.ndarray

    def exclude(self, rows, reason):
        """Exclude labels (row numbers) that have no exception yet."""
        rows = rows[self.fate[rows] == ""]
        self.fate[rows] = reason

    def left(self):
        """Row numbers of the labels not excluded."""
        return np.flatnonzero(self.fate == "")


def _label_columns(reader) -> dict:
    """Columns of the first compound dataset that holds labels, else the plain datasets."""
    for name in reader.columns:
        fields = reader.read(name, 0, 0).dtype.names or ()
        if "gdr3_source_id" in fields:
            table = reader.read(name)
            return {field: table[field] for field in fields}
    names = [n for n in reader.columns if n in ("gdr3_source_id", "params_est", "params_err")]
    return reader.read_table(names)


def read_labels(path) -> Labels:
    """Labels of an Astropy Table or of plain datasets; masked values (`X.mask`) become NaN.

    Raises UsageError where a column is missing or has the wrong shape or type.
    """
    with ShardReader(path) as reader:
        columns = _label_columns(reader)
        found = ", ".join(reader.columns)
    ids = columns.get("gdr3_source_id")
    if ids is None or ids.ndim != 1 or ids.dtype.kind not in "iu":
        what = "is missing" if ids is None else f"is {ids.dtype} of shape {ids.shape}"
        raise UsageError(
            f"{path}: gdr3_source_id {what}, expected one 64-bit integer per label, in a table at "
            f"the root of the file or as a plain dataset (found: {found})"
        )
    values = {}
    for name in ("params_est", "params_err"):
        column = columns.get(name)
        if column is None or column.shape != (len(ids), 3) or column.dtype.kind not in "fiu":
            what = "is missing" if column is None else f"is {column.dtype}, shape {column.shape}"
            raise UsageError(
                f"{path}: {name} {what}, expected numbers of shape ({len(ids)}, 3): "
                "Teff/1000 K, [Fe/H], log g"
            )
        values[name] = column.astype(float)
        values[name][columns.get(f"{name}.mask", np.zeros(column.shape, bool))] = np.nan
    fate = np.full(len(ids), "", dtype=object)
    return Labels(ids.astype(np.int64), values["params_est"], values["params_err"], fate)


def clean_labels(labels, log):
    """Exclude labels that are not finite or repeated; give invalid errors the default.

    Of labels with the same id the one with the smallest sum of errors, each relative to its
    DEFAULT_LABEL_ERR, is kept (the first of equals).
    """
    labels.exclude(np.flatnonzero(~np.isfinite(labels.est).all(axis=1)), NOT_FINITE)
    invalid = ~(np.isfinite(labels.err) & (labels.err > 0)) & (labels.fate == "")[:, None]
    labels.err = np.where(invalid, DEFAULT_LABEL_ERR, labels.err)
    for name, default, count in zip(LABELS, DEFAULT_LABEL_ERR, invalid.sum(axis=0), strict=True):
        if count:
            log.warning("%d errors of %s not positive: set to %g", count, name, default)
    left = labels.left()
    score = (labels.err[left] / DEFAULT_LABEL_ERR).sum(axis=1)
    order = left[np.lexsort((score, labels.source_id[left]))]
    ids = labels.source_id[order]
    labels.exclude(order[1:][ids[1:] == ids[:-1]], REPEATED)


def labels_by_shard(labels, fids) -> dict:
    """{fid: row numbers of its labels}, for shards with any; a label lies in one range at most.

    A fid is the inclusive range of level-8 nested HEALPix pixels, which are source_id // 2**43
    (Gaia DR3 documentation, source_id). Raises UsageError where ranges overlap.
    """
    low, high = np.array([[int(edge) for edge in fid.split("-")] for fid in fids]).T
    overlap = np.flatnonzero((low[1:] <= high[:-1]) | (high[1:] < low[1:]))
    if len(overlap):
        first, second = fids[overlap[0]], fids[overlap[0] + 1]
        raise UsageError(f"the spectra's shards {first} and {second} overlap; remove one")
    left = labels.left()
    pixel = labels.source_id[left] >> 43
    place = np.searchsorted(low, pixel, side="right") - 1
    inside = (place >= 0) & (pixel <= high[place])
    labels.exclude(left[~inside], NO_SHARD)
    left, place = left[inside], place[inside]
    order = np.argsort(place, kind="stable")
    used, starts = np.unique(place[order], return_index=True)
    return dict(zip([fids[i] for i in used], np.split(left[order], starts[1:]), strict=True))


# ---- extinction ------------------------------------------------------------------------------


def beyond_dust(ra, dec, plx, plx_err) -> np.ndarray:
    """(N,) bool: |z| > MIN_DUST_HEIGHT even at parallax + DUST_HEIGHT_SIGMA errors.

    ra, dec in degrees, plx in mas. z = sin(b) / plx kpc, from the plane of galactic latitude 0
    through the Sun. False where the parallax is missing.
    """
    latitude = SkyCoord(ra * units.deg, dec * units.deg).galactic.b.rad
    largest = plx + DUST_HEIGHT_SIGMA * plx_err
    return (largest > 0) & (np.abs(np.sin(latitude)) > MIN_DUST_HEIGHT * largest)


def initial_extinction(metadata, reddening):
    """Extinction (N,), its error (N,) and the map it is from (N,) bytes.

    Bayestar where it has a value; else the first of COLUMN_MAPS that has one: with
    COLUMN_RELATIVE_ERR where the star is certainly beyond the dust, with 100% where it may lie
    within it ("_limit"); else NaN with error inf. The errors are inflated by EXT_ERR_FLOOR and
    EXT_ERR_RELATIVE E. reddening: dict of (N,) columns, any of REDDENING_COLUMNS, or None.
    """
    missing = np.full(len(metadata["ra"]), np.nan)
    table = {} if reddening is None else reddening
    bayestar, sigma, *column_maps = (table.get(k, missing).astype(float) for k in REDDENING_COLUMNS)
    beyond = beyond_dust(*(metadata[k] for k in ("ra", "dec", "parallax", "parallax_error")))
    choices = [(np.isfinite(bayestar) & np.isfinite(sigma), bayestar, sigma, b"bayestar")]
    for name, column in zip(COLUMN_MAPS, column_maps, strict=True):
        has, size = np.isfinite(column), np.abs(column)
        choices.append((has & beyond, column, COLUMN_RELATIVE_ERR * size, name.encode()))
        choices.append((has, column, size, f"{name}_limit".encode()))
    where, ext, err, source = zip(*choices, strict=True)
    ext, err = np.select(where, ext, np.nan), np.select(where, err, np.inf)
    inflation = np.hypot(EXT_ERR_FLOOR, EXT_ERR_RELATIVE * np.nan_to_num(ext))
    return ext, np.hypot(err, inflation), np.select(where, source, b"none").astype("S12")


# ---- first pass: which stars -----------------------------------------------------------------


@dataclass
class Selection:
    """The training stars of one shard, ordered by source id.

    label (n,): rows of Labels; row (n,): rows of the spectra shard; columns: dict of (n, ...).
    """

    label: np.ndarray
    row: np.ndarray
    columns: dict


def select_stars(labels, data_dir, fid, kinds, label_rows) -> tuple[Selection, dict]:
    """The stars of one shard that have what training needs, and {exception: label rows}.

    Nothing is excluded here, so that a shard that fails halfway leaves no trace.
    """
    columns = {"xp": ((), ()), "metadata": (METADATA_COLUMNS, ())}
    if "reddening" in kinds:
        columns["reddening"] = ((), REDDENING_COLUMNS)
    input_paths(data_dir, fid, kinds)
    whole = next(aligned_chunks(data_dir, fid, columns, chunk_size=sys.maxsize), None)
    if whole is None:
        return None, {NO_SPECTRUM: label_rows}
    tables = whole[1]
    label_rows = label_rows[np.argsort(labels.source_id[label_rows])]
    rows = join_rows(labels.source_id[label_rows], tables["xp"]["source_id"])
    excluded = {NO_SPECTRUM: label_rows[rows < 0]}
    label_rows, rows = label_rows[rows >= 0], rows[rows >= 0]
    metadata = {name: column[rows] for name, column in tables["metadata"].items()}
    reddening = tables["reddening"] and {k: v[rows] for k, v in tables["reddening"].items()}
    _require_map(reddening, shard_path(data_dir, "reddening", fid))
    reasons = _cuts(metadata)
    for reason in set(reasons) - {""}:
        excluded[reason] = label_rows[reasons == reason]
    keep = reasons == ""
    star = _star_columns(metadata, reddening)
    selection = Selection(label_rows[keep], rows[keep], {k: v[keep] for k, v in star.items()})
    return selection, excluded


def _require_map(reddening, path):
    if reddening is None or set(BAYESTAR_COLUMNS) <= set(reddening):
        return
    if not set(COLUMN_MAP_COLUMNS) & set(reddening):
        raise ShardError(
            f"{path}: neither {' and '.join(BAYESTAR_COLUMNS)} nor any of "
            f"{', '.join(COLUMN_MAP_COLUMNS)} is in it; ask for a map in step 5, "
            "or do --without reddening"
        )


def _cuts(metadata) -> np.ndarray:
    """(N,) the exception that each star meets first, "" for a good one."""
    plx, plx_err = metadata["parallax"], metadata["parallax_error"]
    fidelity = metadata["fidelity_v2"]
    with np.errstate(divide="ignore", invalid="ignore"):
        snr = np.where(plx_err > 0, plx / plx_err, np.nan)
    return np.select(
        [
            ~metadata["matched"], ~np.isfinite(snr), ~(snr > MIN_PARALLAX_SNR),
            ~np.isfinite(fidelity), ~(fidelity > MIN_FIDELITY),
        ],
        [NO_METADATA, NO_PARALLAX, POOR_PARALLAX, NO_FIDELITY, POOR_FIDELITY],
        "",
    )  # fmt: skip


def _star_columns(metadata, reddening) -> dict:
    ext, ext_err, source = initial_extinction(metadata, reddening)
    copied = {k: metadata[k].astype("f4") for k in (*PHOT_COLUMNS, "norm_dg", "ruwe")}
    return {
        "ra": metadata["ra"].astype("f8"),
        "dec": metadata["dec"].astype("f8"),
        "plx": metadata["parallax"].astype("f4"),
        "plx_err": metadata["parallax_error"].astype("f4"),
        "stellar_ext": ext.astype("f4"),
        "stellar_ext_err": ext_err.astype("f4"),
        "stellar_ext_source": source,
        **copied,
    }


# ---- second pass: their flux vectors ---------------------------------------------------------


def flux_columns(data_dir, fid, kinds, selection, source_id) -> dict:
    """Columns made of the spectra and photometry of a Selection, in its order."""
    columns = {
        "xp": (xp_utils.XP_COLUMNS, ()),
        "metadata": (("norm_dg",), ()),
        "tmass": (xp_utils.TMASS_COLUMNS, ()),
        "unwise": (xp_utils.UNWISE_COLUMNS, ()),
    }
    columns = {kind: names for kind, names in columns.items() if kind in kinds}
    out = {}
    for rows, tables in aligned_chunks(data_dir, fid, columns, selection.row):
        place = join_rows(rows, selection.row)
        if not np.array_equal(tables["xp"]["source_id"], source_id[place]):
            raise ShardError(f"{shard_path(data_dir, 'xp', fid)}: changed while it was read")
        surveys = (tables[kind] for kind in ("xp", "tmass", "unwise", "metadata"))
        try:
            vectors = xp_utils.flux_vectors(*surveys, eigenvalues=True)
        except ValueError as error:  # a column of the wrong shape
            raise ShardError(f"inputs of {fid}: {error}; make or fetch that file again") from error
        for name, array in vectors.columns().items():
            out.setdefault(name, np.zeros((len(selection.row), *array.shape[1:]), array.dtype))
            out[name][place] = array
    return out


def create_datasets(writer):
    """Datasets of the training set that need words; the others are made on first use."""
    of_map = "reddening in the units of the map of stellar_ext_source"
    for name, described in xp_utils.DATASETS.items():
        writer.create(name, **described)
    writer.create("stellar_type", (3,), description=", ".join(LABELS))
    writer.create("stellar_type_err", (3,), description=", ".join(LABELS))
    writer.create("stellar_ext", units="mag", description=of_map + "; NaN where none has a value")
    writer.create("stellar_ext_err", units="mag", description="1 sigma; inf where no value")
    for name, unit in {"ra": "deg", "dec": "deg"}.items():
        writer.create(name, dtype="f8", units=unit)
    for name in ("plx", "plx_err"):
        writer.create(name, units="mas", description="zero point corrected")
    for name in PHOT_COLUMNS:
        writer.create(name, units="electron s-1")


def flag_counts(input_flags) -> dict:
    """{name: stars with it} of the bits of input_flags (n,)."""
    return {f.name: int(np.count_nonzero(input_flags & f.value)) for f in xp_utils.InputFlag}


def write_training_set(path, labels, selections, data_dir, kinds, made_by, attrs, log):
    """Write the training set shard by shard; returns {fid: error} of those that failed.

    Where any failed nothing is written: the number of rows is no longer right.
    """
    n_rows = sum(len(selection.row) for selection in selections.values())
    failed, flags, start = {}, Counter(), 0
    try:
        with ShardWriter(path, n_rows, "gdr3_source_id", made_by, attrs) as writer:
            create_datasets(writer)
            for fid, selection in progress(selections.items(), "flux vectors"):
                ids = labels.source_id[selection.label]
                with collect_failure(fid, failed, log):
                    table = flux_columns(data_dir, fid, kinds, selection, ids)
                if not failed:
                    table |= selection.columns | {
                        "gdr3_source_id": ids,
                        "stellar_type": labels.est[selection.label].astype("f4"),
                        "stellar_type_err": labels.err[selection.label].astype("f4"),
                    }
                    writer.write_table(table, start=start)
                    flags.update(flag_counts(table["input_flags"]))
                start += len(ids)
    except ShardError:  # rows left unwritten by the shards that failed
        if not failed:
            raise
    if not failed:
        counted = ", ".join(f"{name} {count}" for name, count in flags.items())
        log.info("input_flags of the training stars: %s", counted)
    return failed


# ---- the step --------------------------------------------------------------------------------


def account(labels) -> str:
    """The table that accounts for every label."""
    counts = Counter(labels.fate.tolist())
    lines = [f"{'labels in':<50}{len(labels.fate):>10}"]
    lines += [f"  {why:<48}{-counts[why]:>10}" for why in EXCEPTIONS if counts[why]]
    return "\n".join([*lines, f"{'training stars':<50}{counts['']:>10}"])


def name_exceptions(labels, log):
    """Log the first ids of each exception."""
    for why in EXCEPTIONS:
        ids = labels.source_id[labels.fate == why]
        if len(ids):
            log.info("%s: %d, e.g. %s", why, len(ids), " ".join(map(str, ids[:NAMED_IDS])))


def choose(labels, by_shard, data_dir, kinds, log) -> tuple[dict, dict]:
    """First pass: {fid: Selection} of shards with training stars, {fid: error} of bad shards."""
    selections, failed = {}, {}
    for fid, rows in progress(by_shard.items(), "selecting"):
        with collect_failure(fid, failed, log):
            selection, excluded = select_stars(labels, data_dir, fid, kinds, rows)
            for reason, excluded_rows in excluded.items():
                labels.exclude(excluded_rows, reason)
            if selection is not None and len(selection.row):
                selections[fid] = selection
    return selections, failed


def compile_set(args, argv, labels, by_shard, kinds, inputs, log) -> int:
    """Both passes and the summary; the exit status."""
    selections, failed = choose(labels, by_shard, args.data_dir, kinds, log)
    made_by = provenance(SCRIPT, argv, inputs)
    while True:
        for fid in failed:
            labels.exclude(by_shard[fid], BAD_SHARD)
            selections.pop(fid, None)
        if failed and not args.skip_bad_shards:
            break
        if not selections:
            break
        attrs = {
            "without": " ".join(args.without),
            "bad_shards": " ".join(sorted(failed)),
            "accounting": account(labels),
            "default_label_err": DEFAULT_LABEL_ERR,
        }
        again = write_training_set(
            args.output, labels, selections, args.data_dir, kinds, made_by, attrs, log
        )
        failed |= again
        if not again:
            break
    return summarise(args, labels, selections, failed, log)


def summarise(args, labels, selections, failed, log) -> int:
    """Log and print what became of the labels; the exit status."""
    table = account(labels)
    name_exceptions(labels, log)
    log.info("what became of the labels\n%s", table)
    print(table)
    bad = "; ".join(f"{fid} ({reason})" for fid, reason in failed.items())
    if failed and not args.skip_bad_shards:
        log.error(
            "%s not written: %d bad shards: %s. Make them again, or give --skip-bad-shards",
            args.output, len(failed), bad,
        )  # fmt: skip
        return 1
    if failed:
        log.warning("without the stars of %d bad shards: %s", len(failed), bad)
    if not selections:
        log.error("%s not written: no label is left", args.output)
        return 1
    source = np.concatenate([s.columns["stellar_ext_source"] for s in selections.values()])
    for name, count in Counter(source.tolist()).most_common():
        log.info("extinction from %s: %d stars", name.decode(), count)
    log.info("wrote %s", args.output, extra={"summary": True})
    return 0


@usage_exit
def main(argv=None) -> int:
    args = parse_args(argv)
    all_kinds = ("xp", "metadata", *(kind for kind in KINDS if KINDS[kind].optional))
    kinds = used_kinds(args.data_dir, all_kinds, args.without)
    fids = list_fids(args.data_dir, "xp")
    if not fids:
        raise UsageError(f"{args.data_dir}: no spectra shards there; check --data-dir")
    log = setup_logging(SCRIPT, args.log or args.output.with_suffix(".log"))
    labels = read_labels(args.stellar_params)
    clean_labels(labels, log)
    by_shard = labels_by_shard(labels, fids)
    paths = [shard_path(args.data_dir, kind, fid) for fid in by_shard for kind in kinds]
    inputs = [args.stellar_params, *(path for path in paths if path.is_file())]
    if not args.overwrite:
        state = output_state(args.output, inputs)
        if state.status is Status.COMPLETE:
            log.info("%s is already complete", args.output, extra={"summary": True})
            return 0
        if state.status is not Status.ABSENT:
            log.warning("%s output is made again: %s", state.status.value, state.reason)
    if args.without:
        log.warning("done without %s", ", ".join(args.without))
    try:
        return compile_set(args, argv, labels, by_shard, kinds, inputs, log)
    except ShardError as error:  # not of one shard: the output cannot be written
        log.error("%s", error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
