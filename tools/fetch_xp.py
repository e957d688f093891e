#!/usr/bin/env python3
"""Step 1 for a list of sources: their spectra from the archive's DataLink service -> shards.

    python tools/fetch_xp.py --ids my_stars.csv --data-dir data
    python tools/fetch_xp.py --ids my_stars.fits --id-column GAIA_ID --data-dir data
    python tools/fetch_xp.py --cone 56.75 24.1 1.0 --data-dir data
    python tools/fetch_xp.py --ids my_stars.csv --data-dir data --dry-run

--ids is a text with an id a line, or a table of any usual form (CSV, ECSV, FITS, VOTable, Parquet,
HDF5) with a column of ids, found by its name (source_id, gdr3_source_id, GaiaDR3 ...) or said with
--id-column. "Gaia DR3 123" is read as 123. Empty and repeated entries are counted, those that are
no ids named; ids that have lost digits (floats) are refused. --cone first asks the TAP service for
the sources with spectra there, in degrees.

The ids are asked for in batches. Each answer is read to its end, then kept, in
DATA_DIR/xp_datalink/. What is kept is not asked for again, so running again, with the same list or
a longer one, goes on. A damaged file there is fetched anew. What is not in an answer is asked for
once more; what is not in two is without a spectrum (--confirm: where the TAP service says so too).
The end is an account of all ids, and DATA_DIR/xp_datalink/not_received.csv, with those whose
spectra are not there and why.

All that is kept there is then made into the shards of step 1, as tools/convert_xp_csv.py does it
(--no-convert: not now). Sources that were converted before, of other files, are given by --also.

When it fails: run the same command again; it asks for what is lacking.
Exit status: 0 every id is received, or the service has no spectrum of it; 1 some failed; 2 wrong
usage, or nothing to ask for.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.datalink import DataLink, request_of
from pipeline.datalink_batches import FAILED, Fetch, Kept, batches_of
from pipeline.datalink_report import report, write_lacking
from pipeline.errors import ShardError, UsageError
from pipeline.id_lists import read_ids
from pipeline.run import setup_logging, usage_exit
from pipeline.select import add_release_argument, number
from pipeline.spectra_conversion import add_form_argument, convert_files, find_inputs
from pipeline.spectra_others import ids_of_other_shards
from pipeline.tap_ids import cone_query, ids_in_cone, ids_with_spectra
from pipeline.tap_service import add_tap_arguments
from xp_utils import sampled_columns

SCRIPT = "fetch_xp"
BATCH_SIZE = 500  # ids in a request: 20 MB of text, which a service has to put together at once
HTTP_TIMEOUT = 900  # s: nothing comes until it has


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--ids", type=Path, metavar="FILE", help="a list or table of source ids")
    which.add_argument("--cone", nargs=3, type=float, metavar=("RA", "DEC", "RADIUS"),
                       help="sources with spectra within RADIUS; degrees")  # fmt: skip
    parser.add_argument("--id-column", metavar="NAME", help="of the ids, where it is not evident")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="default: %(default)s")
    parser.add_argument("--batch-size", type=number(int, 1), metavar="N",
                        help=f"ids in a request (default {BATCH_SIZE})")  # fmt: skip
    parser.add_argument("--datalink-url", metavar="URL", help="default: that of the release")
    parser.add_argument("--ask-again", action="store_true",
                        help="also for sources without a spectrum, and the cone's ids")  # fmt: skip
    parser.add_argument("--confirm", action="store_true",
                        help="ask the TAP service about sources without a spectrum")  # fmt: skip
    parser.add_argument("--no-convert", action="store_true", help="keep the files, make no shards")
    parser.add_argument("--also", nargs="+", type=Path, default=[], metavar="FILE",
                        help="files of spectra from elsewhere, for the same shards")  # fmt: skip
    add_form_argument(parser)
    parser.add_argument("--overwrite", action="store_true", help="make finished shards again")
    parser.add_argument("--log", type=Path, help=f"default: DATA_DIR/logs/{SCRIPT}.log")
    add_release_argument(parser)
    add_tap_arguments(parser, "request")
    parser.set_defaults(http_timeout=HTTP_TIMEOUT, jobs=1, shards=None, partition=(1, 0))
    return parser.parse_args(argv)


def batch_size(args) -> int:
    """Ids in a request; UsageError where the service takes fewer."""
    if args.release.datalink is None:
        raise UsageError(f"the release {args.release.name} has no [datalink] in its file")
    most = args.release.datalink.most_ids
    if args.batch_size and args.batch_size > most:
        raise UsageError(f"--batch-size {args.batch_size}: the service takes {most} at most")
    return min(args.batch_size or BATCH_SIZE, most)


def show(args, kept, listed) -> int:
    """Print what would be asked for; ask nothing."""
    if args.cone:
        print(cone_query(args.release, args.cone))
    else:
        there = ids_of_other_shards(args.data_dir, listed.ids, args.release)
        wanted = Fetch(None, kept, listed.ids, 1, there, args.ask_again).wanted()
        batches = batches_of(wanted, batch_size(args))
        print(f"-- {args.ids}: {len(listed.ids)} ids in {listed.column}, {len(wanted)} to ask for")
        print(f"-- {len(batches)} requests to {args.datalink_url or args.release.datalink.url}")
        for name, value in (request_of(args.release, batches[0]) if batches else {}).items():
            print(f"{name}={value}")
    return 0


def fate_of(args, log, fetch):
    """The `Fate` of the ids; what did not come is confirmed where that is wanted, or known."""
    if args.cone:
        return fetch.fate(fetch.ids)
    lacking = fetch.lacking()
    if not (args.confirm and len(lacking)):
        return fetch.fate()
    try:
        return fetch.fate(ids_with_spectra(args, log, lacking))
    except UsageError:
        raise
    except ShardError as error:
        log.error("whether %d sources have no spectrum is not known: %s", len(lacking), error)
        return fetch.fate(lacking, "and the TAP service does not tell whether it has one")


def make_shards(args, argv, kept, log) -> int:
    """The shards of all that is kept, and of --also; the exit status."""
    paths = [*kept.files(), *args.also]
    if args.no_convert or not paths:
        return 0
    return convert_files(SCRIPT, args, argv, find_inputs(paths, args), log, sampled_columns)


@usage_exit
def main(argv=None) -> int:
    args = parse_args(argv)
    size, kept = batch_size(args), Kept(args.data_dir, args.release)
    listed = read_ids(args.ids, args.release, args.id_column) if args.ids else None
    if args.dry_run:
        return show(args, kept.load(), listed)
    args.log = args.log or args.data_dir / "logs" / f"{SCRIPT}.log"
    log = setup_logging(SCRIPT, args.log, args)
    kept.prepare()
    link = DataLink(args, log)
    ids = listed.ids if listed else ids_in_cone(args, log, kept.folder)
    there = ids_of_other_shards(args.data_dir, ids, args.release)
    fetch = Fetch(link, kept.load(log), ids, size, there, args.ask_again or bool(args.cone))
    fetch.run()
    fate = fate_of(args, log, fetch)
    write_lacking(kept.folder, fate, listed)
    try:
        converted = make_shards(args, argv, kept, log)
    finally:
        report(log, SCRIPT, fate, listed, kept.folder)
    failed = fate.counts()[FAILED] or (listed and listed.refused)
    return 1 if failed or converted else 0


if __name__ == "__main__":
    sys.exit(main())
