#!/usr/bin/env python3
"""Train the starter model from nothing, and write its card.

    python tools/build_starter_model.py --stars apogee_xp_train.h5 --out models/starter

Reads a file of real stars in the format of demo/stars.h5 (demo/README.md says where they come from;
the 21,421 that the model in the repository is made of are 34 MB, and so not in it). Lays them out
as a data directory, compiles the training set, trains by recipe.toml and infers all of them without
their parallaxes, each by the step's own command line, in --work. Writes into --out:

  model.h5             what step 10 needs
  validation_ids.txt   ids of the stars that were never trained on
  README.md            the model card: what it is, what it may be used for, how accurate it is

The parallaxes of these stars are spectro-photometric, so the model says that its parallax scale is
not Gaia's, and step 10 leaves parallaxes out unless told otherwise. 21,421 stars take about 20
minutes on 2 cores and 2.5 GB. What was finished is kept: run again to go on after an interruption.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
from astropy.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo.build_sky import read_stars
from demo.chain import ROOT, SCALE, join_labels, read_catalogue, run_steps
from fitting.accuracy import accuracy
from pipeline.errors import ShardError
from pipeline.provenance import project_version
from pipeline.read import ShardReader
from pipeline.run import usage_exit
from pipeline.schema import MODEL_FILE
from pipeline.whole_files import write_bytes, write_text

CARD = Path(__file__).with_name("starter_card.md")  # with places for what is measured
LABELS = ["teff", "feh", "logg", "alpha_m"]
DIRECT = "alpha_m"  # of them, by the direct estimate alone
MOST_BYTES = 6_000_000  # of the model: it is kept in the repository
BRIGHT, FAINT = 1, 99  # per cent: range of the training stars that the card gives


def steps(stars, work):
    """Command lines in the order in which they run."""
    data, training, model = f"{work}/data", f"{work}/training_data.h5", f"{work}/model"
    labels = f"{data}/training_params.h5"
    kinds = [f"{name}:direct" if name == DIRECT else name for name in LABELS]
    train = ["train.py", "-i", training, "-o", model, "--parallax-scale", SCALE]
    return [
        ["demo/build_sky.py", "--stars", str(stars), "--out", data, "--labels", *LABELS],
        ["compile_training_data.py", "--data-dir", data, "--stellar-params", labels,
         "--output", training, "--labels", *kinds],
        [*train, "--resume"] if (ROOT / model).exists() else train,
        ["gen_xp_input_allsources.py", "--data-dir", data],
        ["xp_opt_allsources.py", "--data-dir", data, "--model", model],
    ]  # fmt: skip


def measured(work):
    """(`accuracy` of the stars never trained on, without parallaxes, their number, the labels)."""
    catalogue, labels = read_catalogue(work / "data")
    ids = np.loadtxt(work / "model/validation_ids.txt", dtype=np.int64, ndmin=1)
    table = Table.read(work / "data/training_params.h5", path="training_params")
    known = np.isfinite(np.asarray(table["params_est"])).all(1)
    ids = ids[np.isin(ids, np.asarray(table["gdr3_source_id"])[known])]
    return accuracy(*join_labels(catalogue, table, labels, ids), labels), len(ids), labels


def score_table(found, labels) -> str:
    """Markdown table of `accuracy`."""
    rows = ["| stars | label | offset | scatter | pull width | beyond 3 sigma |", "|---|" * 6]
    rows[1] = "|" + "---|" * 6
    for group in ("all", "giants", "dwarfs"):
        for label in labels if group in found else ():
            s, unit = found[group][label.name], f" ({label.shown_unit})" if label.shown_unit else ""
            digits = 0 if label.scale != 1 else 3
            offset = round(s["offset"], digits) + 0.0  # which makes 0 of -0
            rows.append(
                f"| {group} ({found[group]['n']:,}) | {label.title}{unit} | "
                f"{offset:.{digits}f} | {s['scatter']:.{digits}f} | {s['pull_width']:.2f} | "
                f"{s['frac_gt3']:.1%} |"
            )
    return "\n".join(rows)


def ranges(stars) -> str:
    """Words on what the training stars cover."""
    columns = {
        "Teff": ("teff", "K", 0), "[Fe/H]": ("feh", "dex", 1), "log g": ("logg", "dex", 1),
        "G": ("phot_g_mean_mag", "mag", 1), "A_K": ("ak_targ", "mag", 2),
    }  # fmt: skip
    words = []
    for title, (name, unit, digits) in columns.items():
        low, high = np.nanpercentile(stars[name], [BRIGHT, FAINT])
        words.append(f"{title} {low:.{digits}f} to {high:.{digits}f} {unit}")
    return ", ".join(words)


def write_card(out, stars, work):
    """README.md of the model."""
    found, n, labels = measured(work)
    columns, _, _ = read_stars(stars)
    with ShardReader(out / MODEL_FILE) as reader:
        version = reader.attrs.get("version", project_version())
    write_text(
        out / "README.md",
        CARD.read_text().format(
            version=version,
            n_stars=len(columns["source_id"]),
            ranges=ranges(columns),
            scale=SCALE,
            n_validation=n,
            table=score_table(found, labels),
            size=(out / MODEL_FILE).stat().st_size / 1e6,
        ),
    )


def copy_model(work, out):
    """The files of the model; ShardError where it is too large to be kept in the repository."""
    size = (work / "model" / MODEL_FILE).stat().st_size
    if size > MOST_BYTES:
        raise ShardError(
            f"{work / 'model' / MODEL_FILE}: {size / 1e6:.1f} MB, at most {MOST_BYTES / 1e6:.0f} MB"
        )
    out.mkdir(parents=True, exist_ok=True)
    for name in (MODEL_FILE, "validation_ids.txt"):
        write_bytes(out / name, (work / "model" / name).read_bytes())


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stars", type=Path, required=True, help="file like demo/stars.h5")
    parser.add_argument("--out", type=Path, default=ROOT / "models/starter", help="model folder")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "demo/run/starter", help="where the steps write"
    )
    return parser.parse_args(argv)


@usage_exit
def main(argv=None):
    args = parse_args(argv)
    stars, work = (os.path.relpath(path, ROOT) for path in (args.stars, args.work))
    if not run_steps(steps(stars, work)):
        return 1
    copy_model(args.work, args.out)
    write_card(args.out, args.stars, args.work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
