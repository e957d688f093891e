#!/usr/bin/env python3
"""Step 1, second half: files of XP continuous spectra, of any form -> the HDF5 shards of step 1.

    python tools/convert_xp_csv.py downloads/XpContinuousMeanSpectrum_*.csv.gz --data-dir data
    python tools/convert_xp_csv.py downloads --data-dir data --partition 100 7
    python tools/convert_xp_csv.py downloads --data-dir data --sampled
    python tools/convert_xp_csv.py "XP_CONTINUOUS-Gaia DR3 5937083312263887616.csv" datalink.zip

Reads the archive's bulk files (for DR3 XpContinuousMeanSpectrum_{fid}.csv.gz), what its DataLink
service gives (csv, ecsv, fits, VOTable, a zip of them) and HDF5, of mirrors or your own (a dataset
a column); compressed or not, told apart by their content. Arguments are files, or folders that hold
them. Needed are the columns `source_id` and, of each band, the number of coefficients, these,
their errors and correlations; others that are listed below are kept, the rest is named in the log.

A file with a fid in its name becomes that shard, row for row, in the file's order. The sources of
all other files are sorted into shards by their ids: into the shard of a file with a fid where its
range has them, the others into one shard (of more than 100,000 into 12, 48 ... equal parts of the
sky), by ascending id. They are read into a scratch file first, 14 kB a star beside the output. A
source that comes twice is kept once, and said; where its spectra differ the shard fails.

Missing is NaN, 0 for integers; it may be written null, NaN, None, --, N/A, masked, \\N, or as an
empty cell or array, as a mask in tables. A cell that cannot be read costs that cell alone, and is
counted and named. Rows without an id or of another number of cells are left out, and listed in the
attributes `unusable_lines` and `unusable_reasons`. Where exceptions are the rule (more than 10 such
rows; more than half of a column's cells, or than 5% and 10 of them; ids written as floats; arrays
printed by NumPy; spectra of another release) the file fails, and one line says what was found, what
was expected and what to do.

Rows of the usual form are read the fast way (pipeline/usual_rows.py), the others one by one; both
give the same numbers. Without isal and pysimdjson it takes six times as long, and says so.

With --sampled the shards hold what steps 7 and 9 make of the coefficients (fluxes, errors, the
finer spectrum, flags) in the place of these, in a fifteenth of the space. Every later step takes
either form and gives the same numbers; another basis or grid of wavelengths needs the files again.

Finished shards are skipped, so running again goes on; a bulk file may be deleted once its shard is
there. When it fails: the summary names the file and says what to do.
Exit status: 0 every file is done, 1 some failed, 2 wrong usage or missing inputs.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline import csv_rows, spectra_files
from pipeline.errors import UsageError, shortened
from pipeline.provenance import provenance
from pipeline.row_store import folder_beside
from pipeline.run import run_shards, setup_logging, usage_exit
from pipeline.select import (
    add_release_argument,
    add_shard_arguments,
    chosen_partition,
    list_fids,
    output_path,
    partition_of,
    step_parser,
)
from pipeline.spectra_merge import require_apart
from pipeline.spectra_others import read_others, sort_into_shards
from pipeline.spectra_shards import (
    Form,
    convert,
    put_others_together,
)
from pipeline.xp_basis import load_xp_basis
from xp_utils import sampled_columns

SCRIPT = "convert_xp_csv"


def parse_args(argv=None):
    parser = step_parser(__doc__, "xp", "sampled")
    parser.add_argument("inputs", nargs="+", type=Path, help="files of spectra, or folders of them")
    add_shard_arguments(parser)
    add_release_argument(parser)
    parser.add_argument(
        "--sampled",
        action="store_true",
        help="keep fluxes and errors at the release's wavelengths, and no coefficients",
    )
    return parser.parse_args(argv)


def chosen_fids(args, found) -> list[str]:
    """The fids of `found` that --shards and --partition (or Slurm) choose."""
    unknown = sorted(set(args.shards or ()) - set(found))
    if unknown:
        raise UsageError(f"--shards {shortened(unknown)}: not among the inputs")
    part = chosen_partition(args)
    fids = sorted(set(args.shards or found))
    return [fid for fid in fids if part is None or partition_of(fid, part[0]) == part[1]]


def log_slow_parts(log):
    """One line where a fast package is missing."""
    lacking = {
        "isal": spectra_files.igzip is not None,
        "pysimdjson": csv_rows.has_usual_rows(),
    }
    names = " and ".join(name for name, there in lacking.items() if not there)
    if names:
        log.warning(
            "%s: not installed, the conversion takes several times longer (pip install %s)",
            names, names.replace(" and", ""),
        )  # fmt: skip


def require_no_output_among(files, args):
    """UsageError where an input is what would be written."""
    folder = output_path(args.data_dir, "xp", "").parent.resolve()
    for file in files:
        if file.parent == folder:
            raise UsageError(
                f"{file}: is where the shards are written; give --data-dir another folder, or, "
                "where it is a shard already, nothing is to be done"
            )


def find_others(args, bulk, files, log):
    """The `Others` of files without a fid, sorted into shards; None without any."""
    if not files:
        return None
    folder = folder_beside(args.data_dir)
    others = read_others(files, args.release, log, folder)
    sort_into_shards(others, list(bulk), args.data_dir, args.release, log)
    return others


def form_of(args) -> Form:
    """What the shards hold: coefficients or, with --sampled, what is made of them."""
    if not args.sampled:
        return Form()
    basis = load_xp_basis(args.release)
    return Form("sampled", lambda table: sampled_columns(table, basis), {"xp_basis": basis.source})


@usage_exit
def main(argv=None) -> int:
    args = parse_args(argv)
    bulk, files = spectra_files.find_files(args.inputs, args.release)
    require_no_output_among([*files, *(file for group in bulk.values() for file in group)], args)
    log = setup_logging(SCRIPT, args.log, args)
    log_slow_parts(log)
    others = find_others(args, bulk, files, log)
    found = set(bulk) | (set(others.fid) - {""} if others else set())
    require_apart(found | set(list_fids(args.data_dir, "xp")))
    form = form_of(args)

    def inputs_of(fid):
        return [*bulk.get(fid, ()), *(others.files_of(fid) if others else ())]

    def make(fid, output, log):
        made_by = provenance(SCRIPT, argv, inputs_of(fid), args.release)
        if fid in bulk:
            return convert(bulk[fid], output, args.release, log, made_by, form, others, fid)
        return put_others_together(others, fid, output, log, made_by, form, args.overwrite)

    status = run_shards(
        SCRIPT,
        args,
        chosen_fids(args, found),
        inputs_of=inputs_of,
        output_of=lambda fid: output_path(args.data_dir, "xp", fid),
        process=make,
        log=log,
        kind=form.kind,
    )
    if others and others.failed:
        log.error("%s: failed beside: %s", SCRIPT, ", ".join(map(str, others.failed)))
        return status or 1
    return status


if __name__ == "__main__":
    sys.exit(main())
