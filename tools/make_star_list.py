#!/usr/bin/env python3
"""Write some of the demo's stars as an astronomer would hold them: a list of ids, and their spectra
as the archive's DataLink service gives them.

    python tools/make_star_list.py --stars demo/stars.h5 --out demo/list

Writes ids.csv (source_id) and XP_CONTINUOUS_RAW.zip: one CSV of all sources with the archive's
columns, as far as the star file has them, arrays in brackets; numbers in their shortest form that
reads back the same. Stars are chosen at random of those that training with recipe.toml holds out,
so that a model trained by it (models/starter) never saw them. 100 stars: 1.6 MB.
"""

import argparse
import csv
import io
import sys
import zipfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo.build_sky import read_stars
from fitting.recipe import read_recipe
from fitting.split import held_out
from pipeline.errors import UsageError
from pipeline.run import usage_exit
from pipeline.schema import XP_BANDS, load_release
from pipeline.whole_files import write_bytes, write_text

ROOT = Path(__file__).resolve().parents[1]
MEMBER = "XP_CONTINUOUS_RAW.csv"
ZIP_TIME = (2026, 1, 1, 0, 0, 0)  # of the member: the same stars give the same bytes


def choose(source_id, n, seed):
    """Rows (n,) of stars that training holds out, ascending. UsageError where there are fewer."""
    rows = np.flatnonzero(held_out(source_id, read_recipe(ROOT / "recipe.toml")))
    if len(rows) < n:
        raise UsageError(f"--n {n}: only {len(rows)} of the stars are held out of a training")
    return np.sort(np.random.default_rng(seed).choice(rows, n, replace=False))


def cell(values) -> str:
    """An array as the archive writes one."""
    return "[" + ", ".join(map(str, values)) + "]"


def spectra_csv(stars, templates, rows, release) -> str:
    """The archive's table of XP continuous spectra of some rows of a star file, as CSV."""
    bands = release.spectra.bands
    header = ["source_id"] + [
        f"{band}_{name}"
        for band in XP_BANDS
        for name in ("basis_function_id", "n_parameters", "standard_deviation", "coefficients",
                     "coefficient_errors", "coefficient_correlations")
    ]  # fmt: skip
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        line = [int(stars["source_id"][row])]
        for band in XP_BANDS:
            line += [bands[band].basis_id, bands[band].n_coefficients, 1.0]
            line += [cell(stars[f"{band}_{name}"][row])
                     for name in ("coefficients", "coefficient_errors")]  # fmt: skip
            line.append(cell(templates[f"{band}_correlation_template"]))
        writer.writerow(line)
    return text.getvalue()


def zipped(text) -> bytes:
    """A zip with one member."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        member = zipfile.ZipInfo(MEMBER, ZIP_TIME)
        member.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(member, text, compresslevel=9)
    return content.getvalue()


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stars", type=Path, default=ROOT / "demo/stars.h5", help="star file")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--n", type=int, default=100, help="number of stars (default 100)")
    parser.add_argument("--seed", type=int, default=1, help="default 1")
    return parser.parse_args(argv)


@usage_exit
def main(argv=None):
    args = parse_args(argv)
    stars, templates, _ = read_stars(args.stars)
    rows = choose(stars["source_id"], args.n, args.seed)
    ids = "".join(f"{i}\n" for i in stars["source_id"][rows])
    text = spectra_csv(stars, templates, rows, load_release())
    args.out.mkdir(parents=True, exist_ok=True)
    write_text(args.out / "ids.csv", f"source_id\n{ids}")
    write_bytes(args.out / "XP_CONTINUOUS_RAW.zip", zipped(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
