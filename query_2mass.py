#!/usr/bin/env python3
"""Step 3: 2MASS photometry of every source with an XP spectrum, from the Gaia archive.

    python query_2mass.py --data-dir data
    python query_2mass.py --data-dir data --login login.txt --partition 10 3
    python query_2mass.py --data-dir data --dry-run

Reads the ids of the spectra (step 1). Writes DATA_DIR/xp_tmass_match/xp_tmass_match_{fid}.h5, one
row per matched source, by ascending gdr3_source_id: the columns of DATASETS below. The match is
the archive's own (gaiadr3.tmass_psc_xsc_best_neighbour, tmass_psc_xsc_join), the photometry that
of gaiadr1.tmass_original_valid. Kept are point sources (no `ext_key`) with at least one band of
`ph_qual` A; a shard without any is valid. An answer holds every source, matched or not, so that a
source is never taken for unmatched because its row got lost; the log counts the sources without a
match by reason, and the attribute `n_missing` those that the archive does not have.

One job a shard (tap_jobs.py). Size: about 50 bytes a match (3 MB for 65,000). Time: the archive's
own, and 2 s of CPU and 0.3 GB of memory for 65,000 sources. When it fails: run the same command
again; finished shards are skipped and jobs under way are taken up.
Exit status: 0 every selected shard is done, 1 some failed, 2 wrong usage or missing inputs.
"""

import argparse
import sys

import numpy as np

from pipeline.provenance import provenance
from pipeline.run import usage_exit
from pipeline.select import add_shard_arguments, input_paths
from pipeline.tap_jobs import Column, add_tap_arguments, fetch_sources, run_queries, select_list
from pipeline.write import ShardWriter

SCRIPT = "query_2mass"

DATASETS = {
    "designation": Column("t.designation", "S17"),
    "tm_ra": Column("t.ra", "f8", "deg", "2MASS position"),
    "tm_dec": Column("t.dec", "f8", "deg", "2MASS position"),
    "j_m": Column("t.j_m", "f4", "mag"),
    "j_msigcom": Column("t.j_msigcom", "f4", "mag"),
    "h_m": Column("t.h_m", "f4", "mag"),
    "h_msigcom": Column("t.h_msigcom", "f4", "mag"),
    "ks_m": Column("t.ks_m", "f4", "mag"),
    "ks_msigcom": Column("t.ks_msigcom", "f4", "mag"),
    "ph_qual": Column("t.ph_qual", "S3", None, "photometric quality of J, H, Ks"),
    "gaia_tmass_angular_distance": Column("b.angular_distance", "f4", "arcsec"),
}
COLUMNS = DATASETS | {
    "source_id": Column("g.source_id", "i8"),
    "original_ext_source_id": Column("b.original_ext_source_id", "S17"),
    "ext_key": Column("t.ext_key", "f8"),  # whole numbers; float so that null is NaN
}
QUERY = (
    f"SELECT {select_list(COLUMNS)} FROM gaiadr3.gaia_source AS g "
    "LEFT OUTER JOIN gaiadr3.tmass_psc_xsc_best_neighbour AS b ON b.source_id = g.source_id "
    "LEFT OUTER JOIN gaiadr3.tmass_psc_xsc_join AS x "
    "ON x.clean_tmass_psc_xsc_oid = b.clean_tmass_psc_xsc_oid "
    "LEFT OUTER JOIN gaiadr1.tmass_original_valid AS t "
    "ON t.designation = x.original_psc_source_id WHERE {where}"
)


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


def make_shard(jobs, fid, ids, output, *, data_dir, argv):
    """Fetch and write the matches of the sources `ids` of a shard; returns counters."""
    made_by = provenance(SCRIPT, argv, input_paths(data_dir, fid, ["xp"]))
    sources = fetch_sources(jobs, QUERY, COLUMNS, ids, fid)
    table, repeated = one_row_each(sources.table)
    keep, reasons = good_matches(table)
    attrs = {"tap_url": jobs.service.args.tap_url, "query": QUERY, "n_spectra": len(ids)}
    attrs |= sources.attributes()
    with ShardWriter(output, int(keep.sum()), "gdr3_source_id", made_by, attrs) as writer:
        writer.create("gdr3_source_id", (), "i8", description="Gaia DR3 source_id")
        writer.write("gdr3_source_id", 0, table["source_id"][keep])
        for name, column in DATASETS.items():
            writer.create(name, (), column.dtype, units=column.units, description=column.text)
            writer.write(name, 0, table[name][keep])
    counters = {"spectra": len(ids), "matches": int(keep.sum()), **reasons}
    return counters | sources.counters() | {"second entries of 2MASS dropped": repeated}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_shard_arguments(parser)
    add_tap_arguments(parser)
    return parser.parse_args(argv)


@usage_exit
def main(argv=None) -> int:
    args = parse_args(argv)

    def write_shard(jobs, fid, ids, output):
        return make_shard(jobs, fid, ids, output, data_dir=args.data_dir, argv=argv)

    return run_queries(SCRIPT, args, "tmass", QUERY, write_shard)


if __name__ == "__main__":
    sys.exit(main())
