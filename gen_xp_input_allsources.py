#!/usr/bin/env python3
"""Step 9: the inputs of the inference, for every source with an XP spectrum.

    python gen_xp_input_allsources.py --data-dir data
    python gen_xp_input_allsources.py --data-dir data --without unwise --partition 100 7

Reads, shard by shard, the spectra (step 1), the metadata (2) and the photometry (3, 4). Writes
DATA_DIR/xp_opt_input_files/xp_opt_input_{fid}.h5, one row per row of the spectra, in their order.

No star is left out: one without a metadata row keeps its spectrum and photometry, has NaN for the
rest, and is flagged. The attribute `without` names the surveys that were left out on purpose.

When it fails: the summary and the log name each bad shard and what to do; run the same command
again and only the missing ones are made.
Exit status: 0 every selected shard is done, 1 some failed, 2 wrong usage or missing inputs.
"""

import functools
import sys

import xp_utils
from pipeline.errors import ShardError
from pipeline.joining import Needs, aligned_chunks
from pipeline.provenance import provenance
from pipeline.read import open_shard
from pipeline.run import run_shards, setup_logging, usage_exit
from pipeline.schema import SURVEYS, Layout, flags, resolved
from pipeline.select import (
    add_release_argument,
    add_shard_arguments,
    input_paths,
    select_fids,
    shard_path,
    step_parser,
    used_kinds,
)
from pipeline.write import ShardWriter

SCRIPT = "gen_xp_input_allsources"
OUTPUT = "opt_input"
CHUNK_STARS = 2048  # rows read at a time: 50 MB of coefficients and correlations


def inputs(release) -> dict:
    """{kind: Needs} of what the step reads."""
    return {kind: Needs(*names) for kind, names in xp_utils.star_columns(release).items()}


def parse_args(argv=None):
    parser = step_parser(__doc__, OUTPUT)
    add_shard_arguments(parser)
    add_release_argument(parser)
    parser.add_argument(
        "--without",
        nargs="+",
        default=[],
        choices=list(SURVEYS),
        help="do without these surveys",
    )
    return parser.parse_args(argv)


def input_rows(tables, basis, path):
    """All columns of the output for one chunk of aligned rows; path: of the spectra."""
    try:
        return xp_utils.star_table(tables, basis)
    except ValueError as error:  # spectra of another release
        raise ShardError(f"{path}: {error}; give --release, or fetch the spectra again") from error


def make_shard(fid, output, log, *, args, needs, argv):
    """Write the output of one shard; returns {what: number of stars} for the log."""
    release, basis = args.release, xp_utils.load_xp_basis(args.release)
    spectra = shard_path(args.data_dir, "xp", fid)
    made_by = provenance(SCRIPT, argv, input_paths(args.data_dir, fid, needs), release)
    n_rows, columns = {}, {}
    for kind in ("xp", "metadata"):
        with open_shard(args.data_dir, kind, fid, release) as reader:
            n_rows[kind], columns[kind] = reader.n_rows, reader.columns
    missing = [name for name in needs["metadata"].optional if name not in columns["metadata"]]
    if missing:
        log.warning("%s: the metadata have no %s: stored as NaN", fid, ", ".join(missing))
    counters = {"stars": n_rows["xp"]} | dict.fromkeys((f.name for f in flags.InputFlag), 0)
    attrs = {"without": " ".join(sorted(set(args.without))), "xp_basis": basis.source}
    attrs["missing_metadata"] = " ".join(missing)
    with ShardWriter(output, n_rows["xp"], release.id_column, made_by, attrs) as writer:
        writer.create_columns(resolved(OUTPUT, Layout(release)))
        chunks = aligned_chunks(args.data_dir, fid, needs, release, chunk_size=CHUNK_STARS)
        for rows, tables in chunks:
            table = input_rows(tables, basis, spectra)
            writer.write_table(table, start=int(rows[0]))
            for name, count in flags.counts(flags.InputFlag, table["input_flags"]).items():
                counters[name] += count
    unused = n_rows["metadata"] - (n_rows["xp"] - counters["NO_METADATA"])
    counters["metadata rows without a spectrum"] = unused
    if counters["NO_METADATA"]:
        log.warning(
            "%s: %d of %d stars have no metadata row; flagged NO_METADATA",
            fid, counters["NO_METADATA"], n_rows["xp"],
        )  # fmt: skip
    return counters


@usage_exit
def main(argv=None) -> int:
    args = parse_args(argv)
    needs = inputs(args.release)
    needs = {kind: needs[kind] for kind in used_kinds(args.data_dir, needs, args.without)}
    fids = select_fids(args, "xp")
    log = setup_logging(SCRIPT, args.log, args)
    if args.without:
        log.info("without %s: their bands have no weight", ", ".join(sorted(set(args.without))))
    return run_shards(
        SCRIPT,
        args,
        fids,
        inputs_of=lambda fid: input_paths(args.data_dir, fid, needs),
        output_of=lambda fid: shard_path(args.data_dir, OUTPUT, fid),
        process=functools.partial(make_shard, args=args, needs=needs, argv=argv),
        log=log,
    )


if __name__ == "__main__":
    sys.exit(main())
