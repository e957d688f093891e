#!/usr/bin/env python3
"""Step 7: collect the training set: flux vectors of the stars that have labels.

    python compile_training_data.py --stellar-params training_params.h5 --output training_data.h5
    python compile_training_data.py ... --labels teff feh logg alpha_m

Reads the labels (HDF5, also in a group, FITS, ECSV, Parquet, VOTable: the id column (N,),
`params_est` (N,K), `params_err` (N,K), K >= 2; masked values are missing) and, of DATA_DIR, the
shards of the spectra, metadata, photometry and reddening whose range of sky holds a labelled star.
What the labels are is said by --labels, else by attributes of the table (in Astropy: its `meta`),
`label_names`, and where needed `label_units`, `label_scales`, `label_tolerances`; three labels
without names are Teff (kK), [Fe/H], log g.

Keeps stars with parallax / parallax_error > 3 and fidelity_v2 > 0.5, and labels that are possible.
The log, `training_data.log` beside the output, accounts for every label; its table is printed at
the end. Writes one row per star, ordered by source id; and, by G magnitude, how the errors of their
XP coefficients are correlated in the mean, where these are reported and not modelled.

Exit status: 0 written (or already complete), 1 a shard failed or no star is left, 2 wrong usage,
3 another process is making the output: left to it.
"""

import argparse
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from astropy import units
from astropy.coordinates import SkyCoord

import xp_utils
from pipeline import lease
from pipeline.errors import ShardError, UsageError
from pipeline.joining import Needs, aligned_chunks, join_rows
from pipeline.provenance import Status, output_state, provenance, see
from pipeline.read import ShardReader
from pipeline.run import collect_failure, left_to, progress, reasons_of, setup_logging, usage_exit
from pipeline.schema import KINDS, KNOWN_LABELS, Layout, flags, resolved
from pipeline.schema.columns import COLUMN_MAPS
from pipeline.schema.labels import LABEL_GRAMMAR, parse_label
from pipeline.select import (
    add_release_argument,
    input_paths,
    list_fids,
    shard_path,
    step_parser,
    used_kinds,
)
from pipeline.training_labels import (
    LABEL_EXCEPTIONS,
    account,
    clean_labels,
    labels_by_shard,
    name_exceptions,
    read_labels,
)
from pipeline.typical_noise import LEAST_STARS, NoiseSums, write_noise
from pipeline.write import ShardWriter

SCRIPT = "compile_training_data"
MIN_PARALLAX_SNR = 3.0
MIN_FIDELITY = 0.5
# The dust lies near the plane: a star farther from it than this is behind all of it, so the
# reddening of the whole column is its own.
MIN_DUST_HEIGHT = 0.4  # kpc
DUST_HEIGHT_SIGMA = 2.0  # the height is certain if it holds at parallax + this many errors
COLUMN_RELATIVE_ERR = 0.1  # of maps of the whole column: calibration, structure below resolution
EXT_ERR_FLOOR = 0.03  # mag, in quadrature
EXT_ERR_RELATIVE = 0.1  # of E, in quadrature

FIDELITY = "fidelity_v2"
EXTINCTION_COLUMNS = ("ra", "dec", "parallax", "parallax_error")  # of the metadata
BAYESTAR_COLUMNS = ("E_mean_bayestar", "E_sigma_bayestar")
COLUMN_MAP_COLUMNS = tuple(f"E_mean_{name}" for name in COLUMN_MAPS)
REDDENING_COLUMNS = (*BAYESTAR_COLUMNS, *COLUMN_MAP_COLUMNS)

# Exceptions, after those of the labels, in the order in which they are looked for.
BAD_SHARD = "its shard is bad and was skipped"
NO_SPECTRUM = "star has no spectrum"
NO_METADATA = "star has no metadata"
NO_PARALLAX = "no parallax"
POOR_PARALLAX = f"parallax / error <= {MIN_PARALLAX_SNR:g}"
NO_FIDELITY = f"{FIDELITY} missing"
POOR_FIDELITY = f"{FIDELITY} <= {MIN_FIDELITY:g}"
EXCEPTIONS = (
    *LABEL_EXCEPTIONS, BAD_SHARD, NO_SPECTRUM, NO_METADATA, NO_PARALLAX, POOR_PARALLAX,
    NO_FIDELITY, POOR_FIDELITY,
)  # fmt: skip


def inputs(release) -> dict:
    """{kind: Needs} of what the step reads."""
    needs = {kind: Needs(*names) for kind, names in xp_utils.star_columns(release).items()}
    required, optional = needs["metadata"].required, needs["metadata"].optional
    if FIDELITY in release.archive.needed:
        needs["metadata"] = Needs((*required, FIDELITY), optional)
    else:
        needs["metadata"] = Needs(required, (*optional, FIDELITY))
    return needs | {"reddening": Needs((), REDDENING_COLUMNS)}


def _label(text):
    try:
        return parse_label(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def parse_args(argv=None):
    parser, known = step_parser(__doc__, "training"), KNOWN_LABELS.values()
    parser.add_argument("--stellar-params", type=Path, required=True, help="table of labels")
    parser.add_argument("--output", type=Path, required=True, help="training set (HDF5)")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="default: %(default)s")
    parser.add_argument(
        "--labels",
        nargs="+",
        type=_label,
        metavar="LABEL",
        help=f"what the columns of params_est are: {LABEL_GRAMMAR}. No labels are values beyond "
        + ", ".join(f"{x.name} {x.possible[0]:g} to {x.possible[1]:g}" for x in known),
    )
    add_release_argument(parser)
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
    parser.add_argument(
        "--check", action="store_true", help="read a finished output whole, to see that it is"
    )
    parser.add_argument("--log", type=Path, help="default: the output's name with .log")
    return parser.parse_args(argv)


# ---- extinction ------------------------------------------------------------------------------


def beyond_dust(ra, dec, parallax, parallax_error) -> np.ndarray:
    """(N,) bool: |z| > MIN_DUST_HEIGHT even at parallax + DUST_HEIGHT_SIGMA errors.

    ra, dec in degrees, parallax in mas. z = sin(b) / parallax kpc, from the plane of galactic
    latitude 0 through the Sun. False where the parallax is missing.
    """
    latitude = SkyCoord(ra * units.deg, dec * units.deg).galactic.b.rad
    largest = parallax + DUST_HEIGHT_SIGMA * parallax_error
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
    beyond = beyond_dust(*(metadata[name] for name in EXTINCTION_COLUMNS))
    choices = [(np.isfinite(bayestar) & np.isfinite(sigma), bayestar, sigma, b"bayestar")]
    for name, column in zip(COLUMN_MAPS, column_maps, strict=True):
        has, size = np.isfinite(column), np.abs(column)
        choices.append((has & beyond, column, COLUMN_RELATIVE_ERR * size, name.encode()))
        choices.append((has, column, size, f"{name}_limit".encode()))
    where, extinction, err, source = zip(*choices, strict=True)
    extinction, err = np.select(where, extinction, np.nan), np.select(where, err, np.inf)
    inflation = np.hypot(EXT_ERR_FLOOR, EXT_ERR_RELATIVE * np.nan_to_num(extinction))
    return extinction, np.hypot(err, inflation), np.select(where, source, b"none").astype("S12")


# ---- first pass: which stars -----------------------------------------------------------------


@dataclass
class Selection:
    """The training stars of one shard, ordered by source id.

    label (n,): rows of the label table; row (n,): rows of the spectra shard; columns: dict of
    (n,), their initial extinction.
    """

    label: np.ndarray
    row: np.ndarray
    columns: dict


@dataclass
class Work:
    """What both passes use: options, labels, the columns to read, and where things are said."""

    args: argparse.Namespace
    table: object  # LabelTable
    needs: dict
    basis: xp_utils.XPBasis
    log: object
    missing: set = field(default_factory=set)  # columns that some metadata lack

    def chunks(self, fid, kinds, **options):
        """`aligned_chunks` of a shard, of some kinds."""
        needs = {kind: self.needs[kind] for kind in kinds if kind in self.needs}
        if "xp" not in needs:  # their ids alone
            needs["xp"] = Needs()
        return aligned_chunks(self.args.data_dir, fid, needs, self.args.release, **options)


def select_stars(work, fid, label_rows) -> tuple[Selection, dict]:
    """The stars of one shard that have what training needs, and {exception: label rows}.

    Nothing is excluded here, so that a shard that fails halfway leaves no trace.
    """
    input_paths(work.args.data_dir, fid, work.needs)
    whole = next(work.chunks(fid, ("metadata", "reddening"), chunk_size=sys.maxsize), None)
    if whole is None:
        return None, {NO_SPECTRUM: label_rows}
    tables, source_id = whole[1], work.table.source_id
    label_rows = label_rows[np.argsort(source_id[label_rows])]
    rows = join_rows(source_id[label_rows], tables["xp"]["source_id"])
    excluded = {NO_SPECTRUM: label_rows[rows < 0]}
    label_rows, rows = label_rows[rows >= 0], rows[rows >= 0]
    metadata = {name: column[rows] for name, column in tables["metadata"].items()}
    reddening = tables["reddening"] and {k: v[rows] for k, v in tables["reddening"].items()}
    _require_map(reddening, shard_path(work.args.data_dir, "reddening", fid))
    work.missing |= set(work.needs["metadata"].optional) - set(metadata)
    reasons = _cuts(metadata)
    for reason in set(reasons) - {""}:
        excluded[reason] = label_rows[reasons == reason]
    keep = reasons == ""
    names = ("stellar_ext", "stellar_ext_err", "stellar_ext_source")
    extinction = zip(names, initial_extinction(metadata, reddening), strict=True)
    columns = {name: values[keep] for name, values in extinction}
    return Selection(label_rows[keep], rows[keep], columns), excluded


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
    """(N,) the exception that each star meets first, "" for a good one.

    Without a column of the fidelity its cut is left out.
    """
    plx, plx_err = metadata["parallax"], metadata["parallax_error"]
    with np.errstate(divide="ignore", invalid="ignore"):
        snr = np.where(plx_err > 0, plx / plx_err, np.nan)
    fidelity = metadata.get(FIDELITY, np.ones(len(snr)))
    return np.select(
        [
            ~metadata["matched"], ~np.isfinite(snr), ~(snr > MIN_PARALLAX_SNR),
            ~np.isfinite(fidelity), ~(fidelity > MIN_FIDELITY),
        ],
        [NO_METADATA, NO_PARALLAX, POOR_PARALLAX, NO_FIDELITY, POOR_FIDELITY],
        "",
    )  # fmt: skip


def choose(work, by_shard) -> tuple[dict, dict]:
    """First pass: {fid: Selection} of shards with training stars, {fid: error} of bad shards."""
    selections, failed = {}, {}
    for fid, rows in progress(by_shard.items(), "selecting"):
        with collect_failure(fid, failed, work.log):
            selection, excluded = select_stars(work, fid, rows)
            for reason, excluded_rows in excluded.items():
                work.table.exclude(excluded_rows, reason)
            if selection is not None and len(selection.row):
                selections[fid] = selection
    return selections, failed


# ---- second pass: their flux vectors ---------------------------------------------------------


def star_columns(work, fid, selection, source_id, noise) -> dict:
    """Columns of `xp_utils.star_table` of a Selection, in its order; noise: the `NoiseSums` that
    its spectra are added to."""
    out, path = {}, shard_path(work.args.data_dir, "xp", fid)
    kinds = [kind for kind in work.needs if kind != "reddening"]
    for rows, tables in work.chunks(fid, kinds, wanted_rows=selection.row, look=noise.begin):
        place = join_rows(rows, selection.row)
        if not np.array_equal(tables["xp"]["source_id"], source_id[place]):
            raise ShardError(f"{path}: changed while it was read")
        try:
            table = xp_utils.star_table(tables, work.basis, noise)
        except ValueError as error:  # spectra of another release
            raise ShardError(
                f"{path}: {error}; give --release, or fetch the spectra again"
            ) from error
        for name, array in table.items():
            out.setdefault(name, np.zeros((len(selection.row), *array.shape[1:]), array.dtype))
            out[name][place] = array
    return out


def write_training_set(work, selections, made_by, attrs) -> dict:
    """Write the training set shard by shard; returns {fid: error} of those that failed.

    Where any failed nothing is written: the number of rows is no longer right.
    """
    release, table = work.args.release, work.table
    n_rows = sum(len(selection.row) for selection in selections.values())
    noise, layout = NoiseSums(release), Layout(release, table.labels)
    failed, counts, start = {}, Counter(), 0
    try:
        with ShardWriter(work.args.output, n_rows, release.id_column, made_by, attrs) as writer:
            writer.create_columns(resolved("training", layout))
            for fid, selection in progress(selections.items(), "flux vectors"):
                with collect_failure(fid, failed, work.log):
                    ids = table.source_id[selection.label]
                    columns = star_columns(work, fid, selection, ids, noise)
                if not failed:
                    columns |= selection.columns | {
                        "stellar_type": table.est[selection.label],
                        "stellar_type_err": table.err[selection.label],
                    }
                    writer.write_table(columns, start=start)
                    counts.update(flags.counts(flags.InputFlag, columns["input_flags"]))
                start += len(selection.row)
            typical = noise.mean()
            if typical is not None:
                write_noise(writer, typical, layout)
    except ShardError:  # rows left unwritten by the shards that failed
        if not failed:
            raise
    if not failed:
        counted = ", ".join(f"{name} {count}" for name, count in counts.items())
        work.log.info("input_flags of the training stars: %s", counted)
        say_noise(typical, noise.origins, work.log)
    return failed


def say_noise(noise, origins, log):
    """Log what typical noise (or None) is kept; origins: of errors that are not real."""
    if origins:
        log.info(
            "typical noise: of spectra whose errors are modelled (origin %s) none is kept",
            ", ".join(sorted(origins)),
        )
    if noise is not None:
        of_each = zip(noise.n_stars, noise.g, strict=True)
        sorts = ", ".join(f"{n} stars of G {g:.1f}" for n, g in of_each)
        log.info("typical noise kept: the mean of %s", sorts)
    elif not origins:
        log.info("no typical noise kept: fewer than %d stars at every G magnitude", LEAST_STARS)


# ---- the step --------------------------------------------------------------------------------


def compile_set(work, argv, by_shard, inputs) -> int:
    """Both passes and the summary; the exit status. inputs: as they were `Seen`."""
    args = work.args
    selections, failed = choose(work, by_shard)
    if work.missing:
        work.log.warning(
            "some metadata have no %s: NaN, and no cut on it", ", ".join(sorted(work.missing))
        )
    made_by = provenance(SCRIPT, argv, inputs, args.release)
    while True:
        for fid in failed:
            work.table.exclude(by_shard[fid], BAD_SHARD)
            selections.pop(fid, None)
        if not selections or (failed and not args.skip_bad_shards):
            break
        attrs = {
            "without": " ".join(args.without),
            "bad_shards": " ".join(sorted(failed)),
            "missing_metadata": " ".join(sorted(work.missing)),
            "accounting": account(work.table, EXCEPTIONS),
            "default_label_err": work.table.labels.array("default_err"),
            "xp_basis": work.basis.source,
        }
        again = write_training_set(work, selections, made_by, attrs)
        failed |= again
        if not again:
            break
    return summarise(work, selections, failed)


def summarise(work, selections, failed) -> int:
    """Log and print what became of the labels; the exit status."""
    args, log = work.args, work.log
    accounting = account(work.table, EXCEPTIONS)
    name_exceptions(work.table, EXCEPTIONS, log)
    log.info("what became of the labels\n%s", accounting)
    print(accounting)
    bad = reasons_of(failed)
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


def is_done(args, inputs, labels, log) -> bool:
    """Whether the output is complete, and of these labels; ShardError where of another release."""
    state = output_state(args.output, inputs, "training", deep=args.check)
    if state.status is Status.COMPLETE:
        with ShardReader(args.output) as reader:
            reader.require_release(args.release)
            if reader.attributes("stellar_type").get("labels") == labels.to_json():
                log.info("%s is already complete", args.output, extra={"summary": True})
                print(reader.attrs.get("accounting", ""))
                return True
        log.warning("the output is made again: its labels were others")
    elif state.status is not Status.ABSENT:
        log.warning("%s output is made again: %s", state.status.value, state.reason)
    return False


@usage_exit
def main(argv=None) -> int:
    args = parse_args(argv)
    needs = inputs(args.release)
    needs = {kind: needs[kind] for kind in used_kinds(args.data_dir, needs, args.without)}
    fids = list_fids(args.data_dir, "xp")
    if not fids:
        raise UsageError(f"{args.data_dir}: no spectra shards there; check --data-dir")
    log = setup_logging(SCRIPT, args.log or args.output.with_suffix(".log"))
    labels = see(args.stellar_params)
    table = read_labels(args.stellar_params, args.release, args.labels)
    log.info("labels: %s", table.labels.words)
    clean_labels(table, args.stellar_params, log)
    by_shard = labels_by_shard(table, fids, args.release)
    paths = [shard_path(args.data_dir, kind, fid) for fid in by_shard for kind in needs]
    seen = [labels, *(see(path) for path in paths if path.is_file())]
    with lease.taken(args.output) as other:
        if other is not None:
            return left_to(other, args.output, log)
        if not args.overwrite and is_done(args, seen, table.labels, log):
            return 0
        if args.without:
            log.warning("done without %s", ", ".join(args.without))
        work = Work(args, table, needs, xp_utils.load_xp_basis(args.release), log)
        try:
            return compile_set(work, argv, by_shard, seen)
        except ShardError as error:  # not of one shard: the output cannot be written
            log.error("%s", error)
            print(account(table, EXCEPTIONS))
            return 1


if __name__ == "__main__":
    sys.exit(main())
