#!/usr/bin/env python3
"""A page for each of a few stars: its spectrum, the model's, and all that the catalogue says of it.

    python tools/plot_star.py 4295806720 --data-dir data --model output_folder/
    python tools/plot_star.py --ids stars.txt --data-dir data --model output_folder/ --format pdf

Reads, of the shards of DATA_DIR that hold them, the stars' rows of steps 10 and 9, the match files
of the surveys (where there are any: why a band is not used), and the model of step 10.
Writes OUT/star_{source_id}.png: observed spectrum and photometry, the model's at its own solution
with the learned scatter, what is left in units of the learned noise with the star's errors; where
the star is among the training stars, and the posterior of its parameters; and these as a table,
with the flags in words. 10 s for the first page, a second for each of the others.

An id that has no page is named with the reason; the others have theirs.
Exit status: 0 every star has a page, 1 some have not, 2 wrong usage or missing inputs.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.errors import ShardError, UsageError
from pipeline.provenance import Status, output_state
from pipeline.run import collect_failure, progress, setup_logging, usage_exit
from pipeline.schema import KINDS, MODEL_FILE
from pipeline.select import add_release_argument, list_fids, shard_path
from pipeline.star_rows import CATALOGUE, INPUT, find_ids, read_stars, why_missing

SCRIPT = "plot_star"
FORMATS = ("png", "pdf")
CHUNK_STARS = 64  # read at a time


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source_id", nargs="*", help="source ids of the release")
    parser.add_argument(
        "--ids", type=Path, metavar="FILE", help="a file of more, the first word of each line"
    )
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="default: %(default)s")
    parser.add_argument(
        "--model",
        type=Path,
        required=True,
        metavar="OUTPUT_FOLDER",
        help="the output folder of train.py that the catalogue was made with",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("star_pages"),
        metavar="FOLDER",
        help="default: %(default)s",
    )
    parser.add_argument(
        "--format", choices=FORMATS, default=FORMATS[0], help="default: %(default)s"
    )
    parser.add_argument("--log", type=Path, help="default: DATA_DIR/logs/SCRIPT.log")
    add_release_argument(parser)
    return parser.parse_args(argv)


# --- Which stars ------------------------------------------------------------------------------
def wanted_ids(args):
    """The ids asked for (n,) int64, each once, in their order. UsageError where one is no id."""
    words = [word.removeprefix(args.release.title).strip() for word in args.source_id]
    if args.ids is not None:
        words += listed_ids(args.ids, args.release.title)
    odd = [word for word in words if not word.isdecimal() or int(word) >= 2**63]
    if odd:
        raise UsageError(f"{odd[0]!r} is no source id: give whole numbers, all digits of them")
    if not words:
        raise UsageError("no source id: give some, or --ids FILE")
    return np.array(list(dict.fromkeys(map(int, words))), np.int64)


def listed_ids(path, title):
    """The first words of the lines of a text file, less a headline, comments, and the release's
    title before an id. UsageError where it cannot be read."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from error
    lines = (line.split("#")[0].strip(' \t"').removeprefix(title) for line in lines)
    words = [line.replace(",", " ").split()[0].strip('"') for line in lines if line.strip(" ,\t")]
    headed = words and not any(letter.isdigit() for letter in words[0])
    return words[1:] if headed else words


def check_inputs(args):
    """UsageError where there is no catalogue, or no model."""
    if not list_fids(args.data_dir, CATALOGUE):
        raise UsageError(
            f"{args.data_dir / KINDS[CATALOGUE].folder}: no shards of the catalogue there; check "
            f"--data-dir, or run {KINDS[CATALOGUE].step}"
        )
    if not (args.model / MODEL_FILE).is_file():
        raise UsageError(
            f"{args.model / MODEL_FILE}: no trained model there; give --model the folder that "
            "train.py wrote with -o"
        )


def check_state(args, fid):
    """ShardError where the catalogue's shard was not made of the inputs and the model that there
    are: the page would show another fit than the one of its numbers."""
    output = shard_path(args.data_dir, CATALOGUE, fid)
    state = output_state(output, [shard_path(args.data_dir, INPUT, fid), args.model / MODEL_FILE])
    if state.status is not Status.COMPLETE:
        raise ShardError(
            f"{output}: {state.reason}; give --model the folder that it was made with, or run "
            f"{KINDS[CATALOGUE].step} again"
        )


# --- Pages ------------------------------------------------------------------------------------
def pages_of(args, fid, ids, trained):
    """Yield (id, its `StarPage`) of the stars ids (n,) of a shard."""
    from fitting.star_view import star_pages

    check_state(args, fid)
    for start in range(0, len(ids), CHUNK_STARS):
        some = ids[start : start + CHUNK_STARS]
        stars = read_stars(args.data_dir, fid, some, args.release)
        yield from zip(some.tolist(), star_pages(stars, trained, args.release), strict=True)


def draw_pages(args, fid, ids, trained, log):
    """Draw the pages of the stars ids (n,) of a shard; {id: why it has none} of the others."""
    from pipeline.figures import star_page

    left, failed, whole = dict.fromkeys(ids.tolist()), {}, {}
    with collect_failure(fid, whole, log):
        for one, page in progress(pages_of(args, fid, ids, trained), fid, "star", len(ids)):
            del left[one]
            with collect_failure(one, failed, log):
                path = star_page(args.out / f"star_{one}.{args.format}", page)
                log.info("%s: written", path)
    return failed | dict.fromkeys(left, whole.get(fid))


def draw_all(args, ids, log):
    """Draw all pages there can be; {id: why it has none} of the others."""
    from fitting.model_file import load_model  # TensorFlow takes seconds to load

    bad_shards = {}
    found = find_ids(args.data_dir, CATALOGUE, ids, args.release, bad_shards)
    placed = np.concatenate([*found.values(), np.empty(0, np.int64)])
    failed = why_missing(args.data_dir, np.setdiff1d(ids, placed), args.release, bad_shards)
    for fid, reason in bad_shards.items():
        log.warning("%s: not looked into: %s", fid, reason)
    trained = load_model(args.model / MODEL_FILE, args.release) if found else None
    for fid, here in found.items():
        failed |= draw_pages(args, fid, here, trained, log)
    return failed


@usage_exit
def main(argv=None) -> int:
    args = parse_args(argv)
    ids = wanted_ids(args)
    check_inputs(args)
    log = setup_logging(SCRIPT, args.log, args)
    failed = draw_all(args, ids, log)
    lines = [f"{SCRIPT}: {len(ids) - len(failed)} of {len(ids)} pages in {args.out}"]
    lines += [f"  {one}: {failed[one]}" for one in ids.tolist() if one in failed]
    log.info("\n".join(lines), extra={"summary": True})
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
