#!/usr/bin/env python3
"""What steps 2 and 3 would have made of demo stars, without asking the archive.

    python demo/archive_answers.py --data-dir demo/run/stars/data

For each shard of spectra (step 1) of stars that are in a star file, writes the metadata and the
2MASS photometry with the columns of demo/build_sky.py; demo/README.md says what of them is real.
Any other star's are asked for by query_xp_metadata.py and query_2mass.py.
Exit status: 0 written, 2 a star is not in the star file.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo.build_sky import Sky, read_stars, write_shard
from pipeline.errors import ShardError, UsageError
from pipeline.joining import join_rows
from pipeline.provenance import provenance
from pipeline.read import open_shard
from pipeline.run import usage_exit
from pipeline.select import add_release_argument, list_fids

KINDS = ("metadata", "tmass")


def sky_of(args, fid, stars, templates) -> Sky:
    """The part of the sky that a shard of spectra is of."""
    with open_shard(args.data_dir, "xp", fid, args.release) as reader:
        ids = np.sort(reader.source_id())
    rows = join_rows(ids, stars["source_id"])
    if (rows < 0).any():
        raise ShardError(
            f"{fid}: {(rows < 0).sum()} sources are not in {args.stars}, the first is "
            f"{ids[rows < 0][0]}; ask the archive: query_xp_metadata.py, query_2mass.py"
        )
    settings = {"n": len(ids), "seed": 1, "parallax": "spectro", "shards": 1}
    return Sky(args.release, stars, templates, rows, ids, settings, star_file=args.stars)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).resolve().parent / "stars.h5"
    parser.add_argument("--stars", type=Path, default=default, help="star file")
    parser.add_argument("--data-dir", type=Path, required=True, help="with the spectra of step 1")
    add_release_argument(parser)
    return parser.parse_args(argv)


@usage_exit
def main(argv=None):
    args = parse_args(argv)
    fids = list_fids(args.data_dir, "xp")
    if not fids:
        raise UsageError(f"{args.data_dir}: no spectra there; make them by step 1")
    stars, templates, _ = read_stars(args.stars)
    made_by = provenance(Path(__file__).name, argv, [args.stars], args.release)
    for fid in fids:
        sky = sky_of(args, fid, stars, templates)
        sky.made_by = made_by
        write_shard(args.data_dir, fid, 0, len(sky.source_id), sky, KINDS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
