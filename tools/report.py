#!/usr/bin/env python3
"""After step 8 or 10: one HTML page on a training or a catalogue.

    python tools/report.py --data-dir data --model output_folder/ --out report.html
    python tools/report.py --model output_folder/
    python tools/report.py --data-dir data

What was run (commands, code version, model, release, inputs); what became of every shard and star,
and how many stars have each flag; accuracy and calibration on the validation stars; figures; the
columns; and what to worry about: numbers beyond their limits, and what to do. The page is one file,
opens from disk without a network, and can be mailed.

Steps 8 and 10 write it at their end (OUTPUT_FOLDER/report.html, DATA_DIR/report.html), the latter
when no shard is left or all of them were selected; XPFWD_REPORT=off keeps them from it. Flags are
counted of every star, some at a time; figures of a catalogue are of a million stars at most. What
is missing or damaged is said in the page.

Exit status: 0 the page is written, whatever it says; 1 it cannot be; 2 wrong usage.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fitting.report.after import NAME
from fitting.report.page import write_page
from pipeline.errors import UsageError
from pipeline.run import usage_exit
from pipeline.schema import KINDS, MODEL_FILE
from pipeline.select import add_release_argument, list_fids


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, metavar="FOLDER", help="of the catalogue")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="output folder of train.py")
    parser.add_argument(
        "--training-data", type=Path, metavar="FILE", help="of step 7; default: beside the model"
    )
    parser.add_argument("--out", type=Path, default=Path(NAME), help="default: %(default)s")
    add_release_argument(parser)
    args = parser.parse_args(argv)
    if args.data_dir is None and args.model is None:
        parser.error("give --data-dir, --model, or both")
    return args


def require_inputs(args):
    """UsageError where what was asked for is not there."""
    if args.data_dir is not None and not any(list_fids(args.data_dir, kind) for kind in KINDS):
        folders = ", ".join(kind.folder for kind in KINDS.values())
        raise UsageError(f"{args.data_dir}: no shards in {folders}; check --data-dir")
    if args.model is not None and not (args.model / MODEL_FILE).is_file():
        raise UsageError(
            f"{args.model / MODEL_FILE}: no trained model there; give --model the folder of step 8"
        )
    if args.training_data is not None and not args.training_data.is_file():
        raise UsageError(f"{args.training_data}: no such file; check --training-data")


@usage_exit
def main(argv=None) -> int:
    args = parse_args(argv)
    require_inputs(args)
    write_page(
        args.out, data_dir=args.data_dir, model=args.model, release=args.release,
        training_data=args.training_data,
    )  # fmt: skip
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
