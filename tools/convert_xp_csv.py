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

from pipeline.run import setup_logging, usage_exit
from pipeline.select import add_release_argument, add_shard_arguments, step_parser
from pipeline.spectra_conversion import add_form_argument, convert_files, find_inputs
from xp_utils import sampled_columns

SCRIPT = "convert_xp_csv"


def parse_args(argv=None):
    parser = step_parser(__doc__, "xp", "sampled")
    parser.add_argument("inputs", nargs="+", type=Path, help="files of spectra, or folders of them")
    add_shard_arguments(parser)
    add_release_argument(parser)
    add_form_argument(parser)
    return parser.parse_args(argv)


@usage_exit
def main(argv=None) -> int:
    args = parse_args(argv)
    inputs = find_inputs(args.inputs, args)
    log = setup_logging(SCRIPT, args.log, args)
    return convert_files(SCRIPT, args, argv, inputs, log, sampled_columns)


if __name__ == "__main__":
    sys.exit(main())
