#!/usr/bin/env python3
"""Step 2: metadata of every source with an XP spectrum, from the Gaia archive.

    python query_xp_metadata.py --data-dir data
    python query_xp_metadata.py --data-dir data --login login.txt --partition 10 3
    python query_xp_metadata.py --data-dir data --dry-run

Reads the ids of the spectra (step 1). Writes DATA_DIR/xp_metadata/xp_metadata_{fid}.h5, one row
per source that the archive has, by ascending source_id: the datasets listed below, from the tables
and columns that the file of the release names (tables/releases/). Columns that the archive has not
and that no step needs are left out, said in the log and in the attribute `absent_columns`.

`parallax` is corrected by the zero point of Lindegren et al. 2021 (A&A 649, A4), or by a column of
the archive where the release has one. Where there is no zero point (no solution for the parallax,
or no colour) it is the raw value: a shift of some 0.03 mas is less than what dropping the parallax
would lose. Such rows are flagged. Sources that the archive does not have, asked twice, have no
row; the attributes `n_missing` and `missing_source_id` and the log name them.

One job a shard (pipeline/tap_jobs.py). When it fails: run the same command again; finished shards
are skipped and jobs under way are taken up.
Exit status: 0 every selected shard is done, 1 some failed, 2 wrong usage or missing inputs, or the
archive lacks a column that is needed.
"""

import sys
import warnings

import numpy as np
from zero_point import zpt

from pipeline.errors import ShardError
from pipeline.run import usage_exit
from pipeline.schema import Layout, resolved
from pipeline.schema.flags import ZeroPointFlag, counts
from pipeline.select import add_release_argument, add_shard_arguments, step_parser
from pipeline.tap_question import Column, Join, ask_about
from pipeline.tap_service import add_tap_arguments
from pipeline.tap_sources import run_queries

SCRIPT = "query_xp_metadata"
JOINS = (Join("quality", "source_id", "source", "source_id"),)

SOLVED = "astrometric_params_solved"
# What the recipe of Lindegren et al. is a function of, in the order of the package's arguments.
RECIPE = ("phot_g_mean_mag", "nu_eff_used_in_astrometry", "pseudocolour", "ecl_lat")
# What the package calls solutions of five parameters, and of six, with the colour.
PACKAGE_FIVE, PACKAGE_SIX = 31, 95
# Where the recipe was calibrated: Lindegren et al. 2021, and the package's own limits.
CALIBRATED_G = (6.0, 21.0)  # mag
CALIBRATED_NU_EFF = (1.1, 1.9)  # um-1, of solutions without the colour
CALIBRATED_PSEUDOCOLOUR = (1.24, 1.72)  # um-1, of solutions for it


# ---- what is asked ---------------------------------------------------------------------------


def question(release):
    """What is asked about each source: the columns of the metadata, and of the zero point."""
    rule = release.parallax
    needed = {"source_id", "parallax", SOLVED, *(RECIPE if rule.zero_point == "recipe" else ())}
    columns = {
        name: Column(
            data.source,
            release.archive.name_of(name, data.source),
            data.dtype,
            name in needed or not data.optional,
        )
        for name, data in resolved("metadata", Layout(release)).items()
        if data.source
    }
    if rule.zero_point == "column":
        columns["parallax_zeropoint"] = Column("source", rule.zero_point_column, "f4")
    return ask_about(release, columns, JOINS)


# ---- parallaxes ------------------------------------------------------------------------------


def has_bit(solved, bit):
    """Whether a bit of `astrometric_params_solved` (n,) is set."""
    return (solved >> bit) & 1 == 1


def _outside(values, limits):
    return (values <= limits[0]) | (values >= limits[1])


def recipe_zero_points(table, rule):
    """Zero points (n,) f4, mas, by Lindegren et al. 2021, and ZeroPointFlag bits (n,) u1.

    NaN, flagged NONE, where no parallax was solved for or an input is NaN; outside the calibrated
    range the package's extrapolation, flagged.
    """
    six = has_bit(table[SOLVED], rule.pseudocolour_bit)
    colour = np.where(six, table["pseudocolour"], table["nu_eff_used_in_astrometry"])
    known = has_bit(table[SOLVED], rule.parallax_bit) & np.isfinite(colour)
    known &= np.isfinite(table["phot_g_mean_mag"]) & np.isfinite(table["ecl_lat"])
    value = np.full(len(six), np.nan, "f4")
    if known.any():  # the package takes arrays of such sources only
        zpt.load_tables()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # out of range: flagged here
            value[known] = zpt.get_zpt(
                *(table[name][known] for name in RECIPE),
                np.where(six, PACKAGE_SIX, PACKAGE_FIVE)[known],
            )
    limits = _outside(colour, CALIBRATED_NU_EFF)
    limits = np.where(six, _outside(colour, CALIBRATED_PSEUDOCOLOUR), limits)
    outside = known & (limits | _outside(table["phot_g_mean_mag"], CALIBRATED_G))
    flags = np.where(outside, ZeroPointFlag.OUT_OF_RANGE.value, 0)
    return value, np.where(known, flags, ZeroPointFlag.NONE.value).astype("u1")


def column_zero_points(table, rule):
    """As `recipe_zero_points`, from the archive's column: NaN where there is no parallax."""
    known = has_bit(table[SOLVED], rule.parallax_bit) & np.isfinite(table["parallax_zeropoint"])
    value = np.where(known, table["parallax_zeropoint"], np.nan).astype("f4")
    return value, np.where(known, 0, ZeroPointFlag.NONE.value).astype("u1")


ZERO_POINTS = {"recipe": recipe_zero_points, "column": column_zero_points}


def correct_parallax(table, rule):
    """The table with zero-point corrected `parallax`, and the three columns that go with it."""
    value, flags = ZERO_POINTS[rule.zero_point](table, rule)
    raw = table["parallax"]
    return table | {
        "parallax": raw - np.where(np.isnan(value), 0, value),
        "parallax_raw": raw,
        "parallax_zeropoint": value,
        "parallax_zeropoint_flags": flags,
    }


# ---- the step --------------------------------------------------------------------------------


def prepare(table, release):
    """The datasets of a shard, from an answer's columns (n,), and counters."""
    found = table["source_id"]
    repeated = int((found[1:] == found[:-1]).sum())
    if repeated:
        raise ShardError(f"the answer repeats {repeated} sources")
    table = correct_parallax(table, release.parallax)
    flags = counts(ZeroPointFlag, table["parallax_zeropoint_flags"])
    counters = {f"parallax zero point {name}": number for name, number in flags.items()}
    return table, {"metadata rows": len(found)} | counters


def parse_args(argv=None):
    parser = step_parser(__doc__, "metadata")
    add_shard_arguments(parser)
    add_release_argument(parser)
    add_tap_arguments(parser)
    return parser.parse_args(argv)


@usage_exit
def main(argv=None) -> int:
    args = parse_args(argv)
    return run_queries(SCRIPT, args, argv, "metadata", question(args.release), prepare)


if __name__ == "__main__":
    sys.exit(main())
