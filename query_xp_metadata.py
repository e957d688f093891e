#!/usr/bin/env python3
"""Step 2: what the Gaia archive knows of every source with an XP spectrum.

    python query_xp_metadata.py --data-dir data
    python query_xp_metadata.py --data-dir data --login login.txt --partition 10 3
    python query_xp_metadata.py --data-dir data --dry-run

Reads the ids of the spectra (step 1). Writes DATA_DIR/xp_metadata/xp_metadata_{fid}.h5, one row
per source that the archive has, by ascending source_id: the columns of COLUMNS below, from
gaiadr3.gaia_source and external.gaiaedr3_spurious, under the archive's names, and

  parallax                       mas, zero point subtracted
  parallax_raw                   mas, as in the archive
  parallax_zeropoint             mas, Lindegren et al. 2021, A&A 649, A4; NaN where there is none
  parallax_zeropoint_flags       bits of ZeroPointFlag

Where there is no zero point (no five- or six-parameter solution, or no colour) `parallax` is the
raw value: a shift of some 0.03 mas is less than what dropping the parallax would lose. Such rows
are flagged. Sources that the archive does not have, asked twice, have no row; the attributes
`n_missing` and `missing_source_id` and the log name them.

One job a shard (tap_jobs.py). Size: about 175 bytes a source (11 MB for 65,000). Time: the
archive's own, and 3 s of CPU and 0.45 GB of memory for 65,000 sources. When it fails: run the same
command again; finished shards are skipped and jobs under way are taken up.
Exit status: 0 every selected shard is done, 1 some failed, 2 wrong usage or missing inputs.
"""

import argparse
import enum
import sys
import warnings

import numpy as np
from zero_point import zpt

from pipeline.errors import ShardError
from pipeline.provenance import provenance
from pipeline.run import usage_exit
from pipeline.select import add_shard_arguments, input_paths
from pipeline.tap_jobs import Column, add_tap_arguments, fetch_sources, run_queries, select_list
from pipeline.write import ShardWriter

SCRIPT = "query_xp_metadata"

_GAIA = {
    "source_id": ("i8", None),
    "random_index": ("i8", None),
    "ref_epoch": ("f8", "yr"),
    "ra": ("f8", "deg"),
    "ra_error": ("f4", "mas"),
    "dec": ("f8", "deg"),
    "dec_error": ("f4", "mas"),
    "parallax": ("f8", "mas"),
    "parallax_error": ("f4", "mas"),
    "pmra": ("f8", "mas / yr"),
    "pmra_error": ("f4", "mas / yr"),
    "pmdec": ("f8", "mas / yr"),
    "pmdec_error": ("f4", "mas / yr"),
    "ruwe": ("f4", None),
    "astrometric_excess_noise": ("f4", "mas"),
    "astrometric_sigma5d_max": ("f4", "mas"),
    "visibility_periods_used": ("i2", None),
    "nu_eff_used_in_astrometry": ("f4", "um-1"),
    "pseudocolour": ("f4", "um-1"),
    "ecl_lat": ("f8", "deg"),
    "astrometric_params_solved": ("i2", None),
    "radial_velocity": ("f4", "km / s"),
    "radial_velocity_error": ("f4", "km / s"),
    "rv_nb_transits": ("i2", None),
    "rv_expected_sig_to_noise": ("f4", None),
    "rv_renormalised_gof": ("f4", None),
    "rv_chisq_pvalue": ("f4", None),
    "phot_g_mean_mag": ("f4", "mag"),
    "phot_bp_mean_mag": ("f4", "mag"),
    "phot_rp_mean_mag": ("f4", "mag"),
    "phot_g_mean_flux": ("f8", "electron/s"),
    "phot_g_mean_flux_error": ("f4", "electron/s"),
    "phot_bp_mean_flux": ("f8", "electron/s"),
    "phot_bp_mean_flux_error": ("f4", "electron/s"),
    "phot_rp_mean_flux": ("f8", "electron/s"),
    "phot_rp_mean_flux_error": ("f4", "electron/s"),
    "phot_g_n_obs": ("i2", None),
    "phot_bp_n_obs": ("i2", None),
    "phot_rp_n_obs": ("i2", None),
    "phot_bp_rp_excess_factor": ("f4", None),
    "has_xp_continuous": ("?", None),
    "has_rvs": ("?", None),
    "non_single_star": ("i2", None),
    "phot_variable_flag": ("S13", None),
}
_SPURIOUS = {
    "fidelity_v2": ("f4", None),
    "norm_dg": ("f4", "mag"),
    "theta_arcsec_worst_source": ("f4", "arcsec"),
    "dist_nearest_neighbor_at_least_m2_brighter": ("f4", "arcsec"),
    "dist_nearest_neighbor_at_least_0_brighter": ("f4", "arcsec"),
    "dist_nearest_neighbor_at_least_2_brighter": ("f4", "arcsec"),
}
COLUMNS = {name: Column(f"g.{name}", *described) for name, described in _GAIA.items()} | {
    name: Column(f"s.{name}", *described) for name, described in _SPURIOUS.items()
}
QUERY = (
    f"SELECT {select_list(COLUMNS)} FROM gaiadr3.gaia_source AS g "
    "LEFT OUTER JOIN external.gaiaedr3_spurious AS s ON s.source_id = g.source_id WHERE {where}"
)

# astrometric_params_solved of five- and six-parameter solutions, the only ones with a zero point.
SOLVED_5, SOLVED_6 = 31, 95
# Where the zero point was calibrated: Lindegren et al. 2021, and the package's own limits.
CALIBRATED_G = (6.0, 21.0)  # mag
CALIBRATED_NU_EFF = (1.1, 1.9)  # um-1, of five-parameter solutions
CALIBRATED_PSEUDOCOLOUR = (1.24, 1.72)  # um-1, of six-parameter solutions


class ZeroPointFlag(enum.IntFlag):
    """Bits of `parallax_zeropoint_flags`."""

    OUT_OF_RANGE = 1  # magnitude or colour outside the calibrated range: extrapolated
    NONE = 2  # no zero point; `parallax` is the raw value


def _outside(values, limits):
    return (values <= limits[0]) | (values >= limits[1])


def zero_points(table):
    """Parallax zero points (n,) f4, mas, and their ZeroPointFlag bits (n,) u1.

    table: columns of COLUMNS. NaN, flagged NONE, where the solution has neither five nor six
    parameters or an input is NaN; outside the calibrated range the package's extrapolation.
    """
    solved = table["astrometric_params_solved"]
    six = solved == SOLVED_6
    colour = np.where(six, table["pseudocolour"], table["nu_eff_used_in_astrometry"])
    names = ("phot_g_mean_mag", "nu_eff_used_in_astrometry", "pseudocolour", "ecl_lat")
    known = np.isin(solved, (SOLVED_5, SOLVED_6)) & np.isfinite(colour)
    known &= np.isfinite(table["phot_g_mean_mag"]) & np.isfinite(table["ecl_lat"])
    value = np.full(len(solved), np.nan, "f4")
    if known.any():  # the package takes arrays of such sources only
        zpt.load_tables()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # out of range: flagged here
            value[known] = zpt.get_zpt(*(table[name][known] for name in names), solved[known])
    limits = np.where(six, *(_outside(colour, r) for r in (CALIBRATED_PSEUDOCOLOUR,
                                                           CALIBRATED_NU_EFF)))  # fmt: skip
    outside = known & (limits | _outside(table["phot_g_mean_mag"], CALIBRATED_G))
    flags = np.where(outside, ZeroPointFlag.OUT_OF_RANGE.value, 0)
    return value, np.where(known, flags, ZeroPointFlag.NONE.value).astype("u1")


def correct_parallax(table):
    """The table with zero-point corrected `parallax`, and the three columns that go with it."""
    value, flags = zero_points(table)
    raw = table["parallax"]
    return table | {
        "parallax": raw - np.where(np.isnan(value), 0, value),
        "parallax_raw": raw,
        "parallax_zeropoint": value,
        "parallax_zeropoint_flags": flags,
    }


def create_datasets(writer):
    """All datasets, so that a shard without sources has them too."""
    for name, column in COLUMNS.items():
        writer.create(name, (), column.dtype, units=column.units)
    writer.set_attributes("parallax", description="zero point subtracted; raw where there is none")
    writer.create("parallax_raw", (), "f8", units="mas", description="as in the archive")
    of_whom = "Lindegren et al. 2021; NaN where there is none"
    writer.create("parallax_zeropoint", (), "f4", units="mas", description=of_whom)
    flags = ", ".join(f"{flag.name} {flag.value}" for flag in ZeroPointFlag)
    writer.create("parallax_zeropoint_flags", (), "u1", description=flags)


def make_shard(jobs, fid, ids, output, *, data_dir, argv):
    """Fetch and write the metadata of the sources `ids` of a shard; returns counters."""
    made_by = provenance(SCRIPT, argv, input_paths(data_dir, fid, ["xp"]))
    sources = fetch_sources(jobs, QUERY, COLUMNS, ids, fid)
    found = sources.table["source_id"]
    if np.any(found[1:] == found[:-1]):
        raise ShardError(f"the answer repeats {int((found[1:] == found[:-1]).sum())} sources")
    table = correct_parallax(sources.table)
    attrs = {"tap_url": jobs.service.args.tap_url, "query": QUERY, "n_spectra": len(ids)}
    attrs |= sources.attributes()
    with ShardWriter(output, len(found), "source_id", made_by, attrs) as writer:
        create_datasets(writer)
        writer.write_table(table)
    flags = table["parallax_zeropoint_flags"]
    counters = {"spectra": len(ids), "metadata rows": len(found), **sources.counters()}
    return counters | {
        f"parallax zero point {flag.name}": int(np.count_nonzero(flags & flag.value))
        for flag in ZeroPointFlag
    }


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

    return run_queries(SCRIPT, args, "metadata", QUERY, write_shard)


if __name__ == "__main__":
    sys.exit(main())
