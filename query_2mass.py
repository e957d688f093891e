#!/usr/bin/env python3
"""Step 3: 2MASS photometry of every source with an XP spectrum, from the Gaia archive.

    python query_2mass.py --data-dir data
    python query_2mass.py --data-dir data --login login.txt --partition 10 3
    python query_2mass.py --data-dir data --dry-run

Reads the ids of the spectra (step 1). Writes DATA_DIR/xp_tmass_match/xp_tmass_match_{fid}.h5, one
row per matched source, by ascending id: the datasets listed below. The match is the archive's own
(the tables tmass_neighbour and tmass_join of the release's file, tables/releases/), the photometry
that of its table tmass. Kept are point sources (no `ext_key`) with at least one band of `ph_qual`
A; a shard without any is valid. An answer holds every source, matched or not, so that a
source is never taken for unmatched because its row got lost; the log counts the sources without a
match by reason, and the attribute `n_missing` those that the archive does not have.

One job a shard (pipeline/tap_jobs.py). When it fails: run the same command again; finished shards
are skipped and jobs under way are taken up.
Exit status: 0 every selected shard is done, 1 some failed, 2 wrong usage or missing inputs, or the
archive lacks a column that is needed.
"""

import sys

import numpy as np

from pipeline.run import usage_exit
from pipeline.schema import KINDS, Layout, resolved
from pipeline.select import add_release_argument, add_shard_arguments, step_parser
from pipeline.tap_question import Column, Join, ask_about
from pipeline.tap_service import add_tap_arguments
from pipeline.tap_sources import run_queries

SCRIPT = "query_2mass"

# The datasets are columns of the table tmass, under the same names, but for these.
ADQL = {
    "tm_ra": ("tmass", "ra"),
    "tm_dec": ("tmass", "dec"),
    "gaia_tmass_angular_distance": ("tmass_neighbour", "angular_distance"),
}
# What the match is judged by.
JUDGED = {
    "source_id": ("source", "i8"),
    "original_ext_source_id": ("tmass_neighbour", "S17"),
    "designation": ("tmass", "S17"),
    "ph_qual": ("tmass", "S3"),
    "ext_key": ("tmass", "f8"),  # whole numbers; float so that null is NaN
}
JOINS = (
    Join("tmass_neighbour", "source_id", "source", "source_id"),
    Join("tmass_join", "clean_tmass_psc_xsc_oid", "tmass_neighbour", "clean_tmass_psc_xsc_oid"),
    Join("tmass", "designation", "tmass_join", "original_psc_source_id"),
)


def datasets_of(release):
    """The datasets of 2MASS: those of the file but the id."""
    datasets = resolved("tmass", Layout(release))
    return datasets.only([name for name in datasets if name != release.id_column])


def question(release):
    """What is asked about each source: the datasets, and what the match is judged by."""
    archive = release.archive
    columns = {
        name: Column(table, archive.name_of(name, table), dtype)
        for name, (table, dtype) in JUDGED.items()
    }
    for name, data in datasets_of(release).items():
        table, usual = ADQL.get(name, ("tmass", name))
        named = archive.name_of(name, table)
        theirs = usual if named == name else named
        columns[name] = Column(table, theirs, data.dtype, name in JUDGED or not data.optional)
    return ask_about(release, columns, JOINS)


def one_row_each(table):
    """One row per source, and how many were left out.

    2MASS holds some objects twice; the join gives both. The one that the match was made with
    (`original_ext_source_id`) is kept, else the first.
    """
    other = table["designation"] != table["original_ext_source_id"]
    order = np.lexsort((table["designation"], other, table["source_id"]))
    ids = table["source_id"][order]
    first = np.ones(len(ids), bool)
    first[1:] = ids[1:] != ids[:-1]
    return {name: values[order[first]] for name, values in table.items()}, int((~first).sum())


def good_matches(table):
    """Which rows (n,) are matches to keep, and {reason: number} of the others."""
    absent = table["designation"] == b""
    extended = ~absent & np.isfinite(table["ext_key"])
    poor = ~absent & ~extended & (np.strings.find(table["ph_qual"], b"A") < 0)
    reasons = {
        "no 2MASS counterpart": absent,
        "extended in 2MASS": extended,
        "no band of quality A": poor,
    }
    return ~(absent | extended | poor), {why: int(rows.sum()) for why, rows in reasons.items()}


def prepare(table, release):
    """The datasets of a shard, from an answer's columns (n,), and counters."""
    table, repeated = one_row_each(table)
    keep, reasons = good_matches(table)
    out = {KINDS["tmass"].id_column(release): table["source_id"][keep]}
    out |= {name: table[name][keep] for name in datasets_of(release) if name in table}
    counters = {"matches": int(keep.sum()), **reasons}
    return out, counters | {"second entries of 2MASS dropped": repeated}


def parse_args(argv=None):
    parser = step_parser(__doc__, "tmass")
    add_shard_arguments(parser)
    add_release_argument(parser)
    add_tap_arguments(parser)
    return parser.parse_args(argv)


@usage_exit
def main(argv=None) -> int:
    args = parse_args(argv)
    return run_queries(SCRIPT, args, argv, "tmass", question(args.release), prepare)


if __name__ == "__main__":
    sys.exit(main())
