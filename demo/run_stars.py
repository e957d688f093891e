#!/usr/bin/env python3
"""From a list of stars to their parameters and their pages, with the starter model.

    python demo/run_stars.py          (or: make stars)

The list, demo/list/ids.csv, and the spectra beside it, as the archive's DataLink service gives
them, are of 100 real stars that the model never saw. Each step's command line is shown, so that it
can be repeated with another list; what would ask the archive is shown too, and comes from files
here.
Everything is written under demo/run/stars: the data directory `data/`, the table `stars.fits` (and
`stars.csv`), and the star pages in `pages/`. What an earlier run finished is kept. Ends with how
the table compares with the stars' APOGEE labels.
"""

import argparse
import os
import shlex
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo.build_sky import read_stars
from demo.chain import ROOT, completeness, join_labels, read_catalogue, run_steps
from demo.sky_columns import label_table
from fitting.accuracy import accuracy, format_accuracy
from fitting.report.after import NAME as REPORT
from pipeline.run import usage_exit
from pipeline.schema import load_release

LIST = "demo/list/ids.csv"
SPECTRA = "demo/list/XP_CONTINUOUS_RAW.zip"
STARS = "demo/stars.h5"
MODEL = "models/starter"
TABLES = ("stars.fits", "stars.csv")
PAGES = 6  # stars that get a page


def chosen(ids, n=PAGES) -> list[str]:
    """Ids (n,) evenly along the list, as words."""
    return [str(ids[i]) for i in np.linspace(0, len(ids) - 1, n).round().astype(int)]


def steps(run_dir, ids):
    """(command lines in the order in which they run, {place: what takes its place with a list of
    one's own, and with the archive at hand})."""
    data, table = f"{run_dir}/data", ["--layout", "table", "--overwrite", "--out"]
    of_data, by_model = ["--data-dir", data], ["--model", MODEL]
    commands = [
        ["tools/convert_xp_csv.py", SPECTRA, *of_data],
        ["demo/archive_answers.py", *of_data],
        ["gen_xp_input_allsources.py", *of_data, "--without", "unwise"],
        ["xp_opt_allsources.py", *of_data, *by_model],
        *(["tools/export_catalogue.py", *of_data, *table, f"{run_dir}/{x}"] for x in TABLES),
        ["tools/plot_star.py", *chosen(ids), *of_data, *by_model, "--out", f"{run_dir}/pages"],
    ]
    instead = {
        0: f"tools/fetch_xp.py --ids {LIST} {shlex.join(of_data)}",
        1: f"query_xp_metadata.py {shlex.join(of_data)}; "
        f"python query_2mass.py {shlex.join(of_data)}",
    }
    return commands, instead


def run(commands, instead) -> bool:
    """Run command lines, with words on those that stand for another; True where all succeeded."""
    for place, command in enumerate(commands):
        if place in instead:
            print(f"\n# with your own list: python {instead[place]}", end="", flush=True)
        if not run_steps([command]):
            return False
    return True


def report(run_dir, ids) -> int:
    """Print how the catalogue compares with the labels, and where things are; the exit status."""
    catalogue, labels = read_catalogue(run_dir / "data")
    stars, _, _ = read_stars(ROOT / STARS)
    line, lost = completeness(catalogue)
    print(f"\n{line}")
    table = label_table(stars, labels, load_release().id_column)
    print(
        f"\nInferred - APOGEE for the {len(ids)} stars, none of which the model was trained on:\n"
    )
    print(format_accuracy(accuracy(*join_labels(catalogue, table, labels, ids), labels), labels))
    print("\nTo look at:")
    page = run_dir / "data" / REPORT  # of step 10, unless it is switched off
    pages = [*([page] if page.is_file() else []), *sorted((run_dir / "pages").glob("*"))]
    for path in [*(run_dir / name for name in TABLES), *pages]:
        print(f"  {os.path.relpath(path)}")
    return 1 if lost else 0


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run-dir", type=Path, default=ROOT / "demo/run/stars", help="where to write"
    )
    return parser.parse_args(argv)


@usage_exit
def main(argv=None):
    args = parse_args(argv)
    began = time.monotonic()
    ids = np.loadtxt(ROOT / LIST, dtype=np.int64, skiprows=1, ndmin=1)
    if not run(*steps(os.path.relpath(args.run_dir, ROOT), ids)):
        return 1
    status = report(args.run_dir, ids)
    print(f"\n{time.monotonic() - began:.0f} s in all")
    return status


if __name__ == "__main__":
    sys.exit(main())
