#!/usr/bin/env python3
"""After step 10: the catalogue as tables that TOPCAT, astropy and pandas open.

    python tools/export_catalogue.py --data-dir data --out stars.fits
    python tools/export_catalogue.py --out pleiades.csv --cone 56.75 24.1 2
    python tools/export_catalogue.py --out giants.parquet \\
        --columns gdr3_source_id ra dec "teff*" "logg*" quality_flags \\
        --select "quality_flags < 8 and logg < 3.5 and parallax / parallax_err > 5"
    python tools/export_catalogue.py --layout parquet --out catalogue
    python tools/export_catalogue.py --layout zgr23 --out as_published

Reads DATA_DIR/xp_opt_output_files/xp_opt_output_{fid}.h5 (step 10). Layouts:

  table     one flat table, sorted by source id, in the format of the ending of --out: .fits,
            .parquet, .csv, .ecsv (default where --out has an ending); in a stream, so of any size
            (.ecsv is read by astropy whole: a few million stars at most)
  parquet   a folder of Parquet files by place on the sky, of a million stars at most, as a HATS
            collection, which LSDB reads (default)
  fits      a folder of such tables as FITS, of some 5 million stars
  zgr23     the files of Zhang, Green & Rix (2023), for scripts that read these
  zg25      the files of Zhang & Green (2025)

A folder has a manifest with rows and SHA-256 of each file, a table of its columns, a README and
whom to cite. When it was ended, run the same command again: files that are done are kept, those of
other shards than now, or made for another selection, are made again.

Columns have units, words and UCDs: the parameters by their names (Teff in kK, as in the shards; E
is `ext`) with `_err`, correlations of the errors (`teff_feh_corr`), confidences, flags, the forward
model's own parameters (`model_teff`), those of a second solution (`second_teff`), what was copied
from the inputs. Missing numbers are NaN, null in Parquet, empty in text. --list-columns prints all.

--select takes a condition on columns, in Python's words: comparisons, and, or, not, + - * /,
isfinite(x), isnan(x), abs, sqrt, log10, exp, and names of flags, as in `not quality_flags & BLEND`.
A comparison with a missing number is false.

A shard that is damaged, of another release, format or model than most is named in one line, and
nothing is written: make it again, or see --skip-bad-shards and --mixed-models. Shards of step 9
that step 10 has not done yet are counted in a warning.
Exit status: 0 all is written, 1 shards or files failed, 2 wrong usage or missing inputs.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.errors import ShardError, UsageError
from pipeline.export.conditions import Cone
from pipeline.export.dust import dust_columns, law_of_catalogue
from pipeline.export.flat import KIND
from pipeline.export.folder import make_data_set
from pipeline.export.layouts import FOLDERS, SKY, data_set
from pipeline.export.shards import Catalogue, shards_within
from pipeline.export.table import export_table, format_of
from pipeline.row_store import folder_beside
from pipeline.run import setup_logging, usage_exit
from pipeline.select import add_release_argument, list_fids, named_fids, number

SCRIPT = "export_catalogue"
INPUT = "opt_input"
TABLE = "table"
MOST_NAMED = 10


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="default: %(default)s")
    parser.add_argument(
        "--layout", choices=(TABLE, *FOLDERS), help="default: by the ending of --out"
    )
    parser.add_argument("--out", type=Path, help="what is written: a table, or a folder")
    parser.add_argument(
        "--columns", nargs="+", metavar="NAME", help="names, or patterns as *_corr; default: all"
    )
    parser.add_argument("--select", metavar="CONDITION", help="stars for which it is true")
    parser.add_argument(
        "--cone", nargs=3, type=float, metavar=("RA", "DEC", "RADIUS"), help="in degrees"
    )
    parser.add_argument(
        "--dust",
        type=Path,
        metavar="MODEL",
        help="with columns R55, RV, AV, E44_55 and their errors, by the extinction curve of the "
        "model (output folder of train.py) that the catalogue was made with",
    )
    parser.add_argument("--list-columns", action="store_true", help="print the columns and end")
    parser.add_argument("--shards", nargs="+", metavar="FID", help="only these shards")
    parser.add_argument(
        "--mixed-models", action="store_true", help="take shards of more than one model"
    )
    parser.add_argument(
        "--skip-bad-shards",
        action="store_true",
        help="leave out shards that cannot be read, rather than fail",
    )
    parser.add_argument(
        "--max-rows", type=number(int, 1), metavar="N", help="of a file, layouts parquet and fits"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="put it in the place of what is there"
    )
    parser.add_argument("--log", type=Path, help="default: the output's name with .log")
    add_release_argument(parser)
    args = parser.parse_args(argv)
    if args.out is None and not args.list_columns:
        parser.error("the following arguments are required: --out")
    if args.layout is None and args.out is not None:
        args.layout = TABLE if args.out.suffix and not args.out.is_dir() else SKY
    return args


def check_output(args):
    """UsageError where the output is of no format, or there."""
    if not args.out.absolute().parent.is_dir():
        raise UsageError(f"{args.out.parent}: no such folder; make it, or give another --out")
    if args.layout != TABLE:
        return
    format_of(args.out)
    if args.max_rows:
        raise UsageError("--max-rows: of a file of the layouts parquet and fits; a table is one")
    if args.out.is_dir():
        raise UsageError(f"{args.out}: is a folder; give another --out")
    if args.out.exists() and not args.overwrite:
        raise UsageError(f"{args.out}: exists; give --overwrite, or another --out")


def chosen_fids(args, cone) -> list[str]:
    """The shards to be read: those of --shards that a cone may touch; one at least, which says what
    the columns are."""
    fids = named_fids(args, KIND)
    return fids if cone is None else shards_within(cone, args.data_dir, fids) or fids[:1]


def warn_of_absent(args, fids, log):
    """Say which shards step 10 has not made."""
    absent = sorted(set(list_fids(args.data_dir, INPUT)) - set(list_fids(args.data_dir, KIND)))
    if absent and not args.shards:
        more = f" and {len(absent) - MOST_NAMED} more" if len(absent) > MOST_NAMED else ""
        log.warning(
            "%d shards of step 9 have no output of step 10, and are not in the table: %s%s",
            len(absent), " ".join(absent[:MOST_NAMED]), more,
        )  # fmt: skip


def told_of_failures(args, catalogue, log) -> bool:
    """Log the shards that cannot be used; whether that ends the run."""
    if not catalogue.failed:
        return False
    reasons = "; ".join(f"{fid} ({reason})" for fid, reason in catalogue.failed.items())
    n = len(catalogue.failed)
    if args.skip_bad_shards and catalogue.shards:
        log.warning("without the stars of %d bad shards: %s", n, reasons)
        return False
    log.error(
        "%s not written: %d bad shards: %s. Make them again, or give --skip-bad-shards",
        args.out, n, reasons,
    )  # fmt: skip
    return True


def add_dust(args, catalogue):
    """Give a catalogue the columns of --dust. UsageError where that is not its model."""
    if args.dust is not None:
        law = law_of_catalogue(args.dust, catalogue)
        catalogue.added = dust_columns(law, catalogue.layout.labels)


def print_columns(catalogue):
    for column in catalogue.columns.values():
        unit = f" [{column.unit}]" if column.unit else ""
        sys.stdout.write(f"{column.name} ({column.dtype}){unit}: {column.text}\n")


def export(args, catalogue, cone, argv, log):
    """Write what is asked for, and say how much it is."""
    given = {"select": args.select, "cone": cone, "script": SCRIPT, "argv": argv}
    if args.layout == TABLE:
        counts = export_table(catalogue, args.out, args.columns, **given)
        read, written = counts.read, counts.written
    else:
        wanted = data_set(args.layout, catalogue, args.columns, max_rows=args.max_rows, **given)
        if wanted.notes.get("labels_left_out"):
            log.warning("left out: %s, as the layout has no place for labels beside Teff, [Fe/H], "
                        "log g", ", ".join(wanted.notes["labels_left_out"]))  # fmt: skip
        made = make_data_set(wanted, args.out, catalogue.n_rows, log, args.overwrite)
        read, written = made["rows_read"], made["rows_written"]
    if not written and read:
        log.warning("no star is selected by: %s", args.select or cone.text)
    log.info(
        "%s: %d of %d stars of %d shards",
        args.out, written, read, len(catalogue.shards),
        extra={"summary": True},
    )  # fmt: skip


@usage_exit
def main(argv=None) -> int:
    args = parse_args(argv)
    cone = None if args.cone is None else Cone(*args.cone)
    fids = chosen_fids(args, cone)
    if args.list_columns:
        catalogue = Catalogue(args.data_dir, fids[:1], args.release)
        add_dust(args, catalogue)
        print_columns(catalogue)
        return 0
    check_output(args)
    log = setup_logging(SCRIPT, args.log or args.out.with_suffix(".log"), args)
    warn_of_absent(args, fids, log)
    catalogue = Catalogue(
        args.data_dir,
        fids,
        args.release,
        mixed_models=args.mixed_models,
        thorough=args.skip_bad_shards,
        folder=folder_beside(args.out.parent),
    )
    if told_of_failures(args, catalogue, log):
        return 1
    add_dust(args, catalogue)
    try:
        export(args, catalogue, cone, argv, log)
    except UsageError:
        raise
    except ShardError as error:
        log.error("%s", error)
        return 1
    except OSError as error:
        log.error("%s: cannot be written (%s); is the disk full, or closed?", args.out, error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
