#!/usr/bin/env python3
"""Step 9: the inputs of the inference, for every source with an XP spectrum.

    python gen_xp_input_allsources.py --data-dir data
    python gen_xp_input_allsources.py --data-dir data --without unwise --partition 100 7

Reads, shard by shard, the spectra (step 1), the metadata (2), 2MASS (3) and unWISE (4). Writes
DATA_DIR/xp_opt_input_files/xp_opt_input_{fid}.h5, one row per row of the spectra, in their order:

  gdr3_source_id                 int64
  ra, dec                        deg
  flux, flux_err (N,66)          1e-18 W m-2 nm-1 at the attribute `sample_wavelengths` (nm);
                                 0 and inf where not used
  plx, plx_err                   mas, zero point corrected; NaN where there is none
  phot_{g,bp,rp}_mean_flux (+ _error), norm_dg, ruwe   copied from the metadata
  input_flags                    bits of xp_utils.InputFlag: what was missing or mended

No star is left out: one without a metadata row keeps its spectrum and photometry, has NaN for the
rest, and is flagged. The attribute `without` names the surveys that were left out on purpose.

Size: 0.5 kB a star (30 MB for 65,000). Time: about 7 s for 65,000 stars on one core, 0.2 GB of
memory. When it fails: the summary and the log name each bad shard and what to do; run the same
command again and only the missing ones are made.
Exit status: 0 every selected shard is done, 1 some failed, 2 wrong usage or missing inputs.
"""

import argparse
import sys

import numpy as np

import xp_utils
from pipeline.errors import ShardError
from pipeline.provenance import provenance
from pipeline.read import ShardReader, aligned_chunks
from pipeline.run import run_shards, setup_logging, usage_exit
from pipeline.schema import KINDS
from pipeline.select import add_shard_arguments, input_paths, select_fids, shard_path, used_kinds
from pipeline.write import ShardWriter
from xp_utils import InputFlag

SCRIPT = "gen_xp_input_allsources"
INPUT_KINDS = ("xp", "metadata", "tmass", "unwise")
CHUNK_STARS = 2048  # rows read at a time: 50 MB of coefficients and correlations

PHOT_COLUMNS = tuple(
    f"phot_{band}_mean_flux{error}" for band in ("g", "bp", "rp") for error in ("", "_error")
)
COLUMNS = {
    "xp": (xp_utils.XP_COLUMNS, ()),
    "metadata": (
        ("ra", "dec", "parallax", "parallax_error", "norm_dg", "ruwe", *PHOT_COLUMNS), ()
    ),
    "tmass": (xp_utils.TMASS_COLUMNS, ()),
    "unwise": (xp_utils.UNWISE_COLUMNS, ()),
}  # fmt: skip
UNITS = {
    "ra": "deg",
    "dec": "deg",
    "plx": "mas",
    "plx_err": "mas",
    "norm_dg": "mag",
    **dict.fromkeys(PHOT_COLUMNS, "electron s-1"),
}
# Of the flux vectors. Computing them makes their whitening as well, as flags depend on it, but
# inference has a noise model of its own.
VECTOR_COLUMNS = tuple(name for name in xp_utils.DATASETS if name != "flux_sqrticov_tril")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_shard_arguments(parser)
    parser.add_argument(
        "--without",
        nargs="+",
        default=[],
        choices=[kind for kind in INPUT_KINDS if KINDS[kind].optional],
        help="do without these surveys",
    )
    return parser.parse_args(argv)


def metadata_columns(metadata):
    """Columns of the output that come from the metadata, and flags (n,) of what is missing."""
    plx = metadata["parallax"].astype("f4")
    plx_err = metadata["parallax_error"].astype("f4")
    has_plx = np.isfinite(plx) & np.isfinite(plx_err) & (plx_err > 0)
    flags = np.where(metadata["matched"], 0, InputFlag.NO_METADATA.value)
    flags = flags | np.where(has_plx, 0, InputFlag.NO_PARALLAX.value)
    table = {
        "ra": metadata["ra"].astype("f8"),
        "dec": metadata["dec"].astype("f8"),
        "plx": np.where(has_plx, plx, np.float32(np.nan)),
        "plx_err": np.where(has_plx, plx_err, np.float32(np.nan)),
    }
    table |= {name: metadata[name].astype("f4") for name in ("norm_dg", "ruwe", *PHOT_COLUMNS)}
    return table, flags.astype(np.uint8)


def input_rows(fid, tables):
    """All columns of the output for one chunk of aligned rows."""
    try:
        vectors = xp_utils.flux_vectors(
            tables["xp"], tables["tmass"], tables["unwise"], tables["metadata"]
        )
    except ValueError as error:  # a column of the wrong shape
        raise ShardError(f"inputs of {fid}: {error}; fetch or make that file again") from error
    table, flags = metadata_columns(tables["metadata"])
    table |= {name: getattr(vectors, name) for name in VECTOR_COLUMNS}
    table["input_flags"] = vectors.input_flags | flags
    table["gdr3_source_id"] = tables["xp"]["source_id"]
    return table


def create_datasets(writer):
    """All datasets of the output, so that a shard without stars has them too."""
    writer.create("gdr3_source_id", dtype="i8", description="Gaia DR3 source_id")
    for name in ("ra", "dec"):
        writer.create(name, dtype="f8", units=UNITS[name])
    for name in ("plx", "plx_err"):
        writer.create(name, units=UNITS[name], description="zero point corrected; NaN: none")
    for name in ("norm_dg", "ruwe", *PHOT_COLUMNS):
        writer.create(name, units=UNITS.get(name))
    for name in VECTOR_COLUMNS:
        writer.create(name, **xp_utils.DATASETS[name])


def count_rows(data_dir, fid, kind):
    """Number of rows of a shard."""
    with ShardReader(shard_path(data_dir, kind, fid), KINDS[kind].id_column) as reader:
        return reader.n_rows


def make_shard(fid, output, log, *, data_dir, kinds, without, argv):
    """Write the output of one shard; returns {what: number of stars} for the log."""
    columns = {kind: COLUMNS[kind] for kind in kinds}
    n_stars = count_rows(data_dir, fid, "xp")
    made_by = provenance(SCRIPT, argv, input_paths(data_dir, fid, kinds))
    counters = {"stars": n_stars} | {flag.name: 0 for flag in InputFlag}
    attrs = {"without": " ".join(sorted(set(without))), "xp_basis": xp_utils.load_xp_basis().source}
    with ShardWriter(output, n_stars, "gdr3_source_id", made_by, attrs) as writer:
        create_datasets(writer)
        for rows, tables in aligned_chunks(data_dir, fid, columns, chunk_size=CHUNK_STARS):
            table = input_rows(fid, tables)
            writer.write_table(table, start=int(rows[0]))
            for flag in InputFlag:
                counters[flag.name] += int(np.count_nonzero(table["input_flags"] & flag.value))
    unused = count_rows(data_dir, fid, "metadata") - (n_stars - counters["NO_METADATA"])
    counters["metadata rows without a spectrum"] = unused
    if counters["NO_METADATA"]:
        log.warning(
            "%s: %d of %d stars have no metadata row; flagged NO_METADATA",
            fid, counters["NO_METADATA"], n_stars,
        )  # fmt: skip
    return counters


@usage_exit
def main(argv=None) -> int:
    args = parse_args(argv)
    kinds = used_kinds(args.data_dir, INPUT_KINDS, args.without)
    fids = select_fids(args, "xp")
    log = setup_logging(SCRIPT, args.log, args)
    if args.without:
        log.info("without %s: their bands have no weight", ", ".join(sorted(set(args.without))))

    def process(fid, output, log):
        return make_shard(
            fid,
            output,
            log,
            data_dir=args.data_dir,
            kinds=kinds,
            without=args.without,
            argv=argv,
        )

    return run_shards(
        SCRIPT,
        args,
        fids,
        inputs_of=lambda fid: input_paths(args.data_dir, fid, kinds),
        output_of=lambda fid: shard_path(args.data_dir, "opt_input", fid),
        process=process,
        log=log,
    )


if __name__ == "__main__":
    sys.exit(main())
