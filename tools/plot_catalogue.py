#!/usr/bin/env python3
"""After step 10: figures of the catalogue.

    python tools/plot_catalogue.py --data-dir data --model output_folder/
    python tools/plot_catalogue.py --data-dir data --out pleiades/ --direction 166.6 -23.5

Reads DATA_DIR/xp_opt_output_files/xp_opt_output_{fid}.h5 (step 10), some rows at a time: millions
of stars are counted in cells, so memory does not grow with them (docs/catalogue.md has time and
memory). Writes to the folder --out, as PNG:

  kiel, colour_magnitude    number of stars, and medians of each label, xi, E and distance in cells
  sky_number, sky_flagged   all stars; the share with a flag but those of confidences
  sky_extinction            median E in slices of distance
  sky_feh, sky_rv           median [Fe/H]; R(V) of xi where E > 0.3, by the curve of --model
  extinction_latitude, extinction_direction    E against distance, by latitude and toward each
                            --direction L B (degrees), within --radius of it
  errors, chi2, confidences    against G

Figures are of the stars that --select chooses (as in tools/export_catalogue.py), by default those
without a flag but three confidences'; each says of how many. Distances are of the posterior
parallax. Few stars are shown one by one, a patch of the sky as a patch. A figure for which there is
nothing is not drawn, and the summary says why; one of an earlier run is removed.
Exit status: 0; 1 where shards could not be read: they are named, and the figures are of the
others; 2 wrong usage or missing inputs.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from pipeline.errors import UsageError
from pipeline.export.flat import KIND
from pipeline.export.shards import Catalogue
from pipeline.extinction_law import law_of_model
from pipeline.run import setup_logging, usage_exit
from pipeline.schema import MODEL_FILE
from pipeline.select import add_release_argument, named_fids
from pipeline.tallies.draw import draw_all
from pipeline.tallies.quantities import GOOD, Quantities
from pipeline.tallies.shown import Shown
from pipeline.tallies.stream import counted

SCRIPT = "plot_catalogue"


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="default: %(default)s")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: DATA_DIR/figures")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="of train.py, for R(V)")
    parser.add_argument("--select", default=GOOD, metavar="CONDITION", help="default: %(default)s")
    parser.add_argument(
        "--direction",
        nargs=2,
        type=float,
        action="append",
        default=[],
        metavar=("L", "B"),
        help="Galactic, in degrees; may be given several times",
    )
    parser.add_argument(
        "--radius", type=float, default=2.0, help="of --direction, in degrees; default: %(default)s"
    )
    parser.add_argument("--shards", nargs="+", metavar="FID", help="only these shards")
    parser.add_argument(
        "--mixed-models", action="store_true", help="take shards of more than one model"
    )
    parser.add_argument("--log", type=Path, help="default: plot_catalogue.log in --out")
    add_release_argument(parser)
    args = parser.parse_args(argv)
    args.out = args.out or args.data_dir / "figures"
    for lon, lat in args.direction:
        if not (np.isfinite(lon) and abs(lat) <= 90):
            parser.error(
                f"--direction {lon:g} {lat:g}: expected l, and b within -90 to 90, in degrees"
            )
    if not 0 < args.radius <= 90:
        parser.error(f"--radius {args.radius:g}: expected 0 to 90 degrees")
    return args


def law_of(args):
    """The `ExtinctionLaw` of --model, or None."""
    if args.model is None:
        return None
    file = args.model / MODEL_FILE
    if not file.is_file():
        raise UsageError(f"{file}: no trained model there; give --model the folder of step 8")
    return law_of_model(file, args.release)


@usage_exit
def main(argv=None) -> int:
    args = parse_args(argv)
    fids, law = named_fids(args, KIND), law_of(args)
    args.out.mkdir(parents=True, exist_ok=True)
    log = setup_logging(SCRIPT, args.log or args.out / f"{SCRIPT}.log", args)
    catalogue = Catalogue(args.data_dir, fids, args.release, mixed_models=args.mixed_models)
    if not catalogue.shards:
        raise UsageError(f"no shard can be read: {next(iter(catalogue.failed.values()))}")
    quantities = Quantities(catalogue.layout, args.select, law, args.direction, args.radius)
    counts, few, (n, n_selected) = counted(catalogue, quantities, args.direction)
    note = f"{n_selected:,} of {n:,} stars: {args.select}."
    shown = Shown(
        args.out, catalogue.layout.labels, counts, few, note, quantities.slices, args.direction,
        args.radius,
    )  # fmt: skip
    made = draw_all(shown)
    for name, result in made.items():
        drawn = isinstance(result, Path)
        log.info(
            "%s", result if drawn else f"{name} is not drawn: {result}", extra={"summary": True}
        )
    log.info("%s %s left out", note, f"{n - n_selected:,}", extra={"summary": True})
    for fid, reason in catalogue.failed.items():
        log.error("%s is not in the figures, or not all of it: %s", fid, reason)
    return 1 if catalogue.failed else 0


if __name__ == "__main__":
    sys.exit(main())
