#!/usr/bin/env python3
"""Step 1, second half: the archive's own CSV files of XP spectra -> the HDF5 shards of step 1.

    python tools/convert_xp_csv.py downloads/XpContinuousMeanSpectrum_*.csv.gz --data-dir data
    python tools/convert_xp_csv.py downloads --data-dir data --partition 100 7

Reads the archive's bulk files (for DR3 XpContinuousMeanSpectrum_{fid}.csv.gz, or .csv): an ECSV
header, one row per source, arrays as quoted strings "[a,b,...]", an empty array or `null` for what
is missing. Arguments are files or folders that hold them. Writes, row for row, in the file's order,
DATA_DIR/xp_continuous_mean_spectrum/XpContinuousMeanSpectrum_{fid}.h5. Where the CSV has null: NaN,
0 for integers. Columns that are not listed below are left out (the log names them).

Spectra of another release (another basis id, or as many coefficients as they say, but not as the
release has) fail the file. An array of any other length is stored as NaN, as are the cells of a
row that are not numbers; such rows are counted and the first are named. Lines that are no row at
all (other number of cells, no id) are left out, and listed in the attribute `unusable_lines`; with
more than MOST_UNUSABLE of them the file counts as damaged and fails.

Finished shards are skipped, so running again goes on; a CSV may be deleted once its shard is there.
When it fails: the summary names the file; fetch that one again.
Exit status: 0 every file is done, 1 some failed, 2 wrong usage or missing inputs.
"""

import contextlib
import csv
import gzip
import itertools
import re
import sys
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.errors import ShardError, UsageError
from pipeline.provenance import provenance
from pipeline.run import run_shards, setup_logging, usage_exit
from pipeline.schema import XP_BANDS, Layout, resolved
from pipeline.select import (
    FID_PATTERN,
    add_release_argument,
    add_shard_arguments,
    chosen_partition,
    partition_of,
    shard_path,
    step_parser,
)
from pipeline.write import ShardWriter

SCRIPT = "convert_xp_csv"
CHUNK_ROWS = 512  # 15 MB of text, 20 MB of numbers
COUNT_BYTES = 1 << 22  # read at a time when lines are counted
FIELD_BYTES = 1 << 20  # longest cell; the correlations of a band take 20 kB
MOST_UNUSABLE = 10  # rows of a file; the archive's 614517-614573 is reported to have one odd row
NAMED_ROWS = 5  # of each kind of exception in the log
MISSING = frozenset(("", "null", "nan", "none", "\\n", "--"))  # cells without a value, lower case
PARSE_ERRORS = (ValueError, OverflowError, DeprecationWarning)
READ_ERRORS = (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error)


@dataclass(frozen=True)
class CsvColumn:
    """A column to convert: its place in a row, dtype, length of its arrays (0: a number), and
    whether a star is of use without it."""

    place: int
    dtype: np.dtype
    length: int
    optional: bool


def parse_args(argv=None):
    parser = step_parser(__doc__, "xp")
    parser.add_argument("inputs", nargs="+", type=Path, help="CSV files, or folders of them")
    add_shard_arguments(parser)
    add_release_argument(parser)
    return parser.parse_args(argv)


# ---- finding the files -----------------------------------------------------------------------


def file_pattern(release):
    """Regular expression of the names of a release's bulk files; its group 1 is the fid."""
    before, after = map(re.escape, release.spectra.file_name.split("{fid}"))
    return re.compile(rf"{before}({FID_PATTERN.pattern}){after}\.csv(?:\.gz)?")


def find_inputs(paths, release) -> dict:
    """{fid: CSV path} of files and of folders' files; UsageError where a fid comes twice."""
    pattern, found = file_pattern(release), {}
    example = release.spectra.file_name.format(fid="000000-003111") + ".csv.gz"
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path}: not found")
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            match = pattern.fullmatch(file.name)
            if match is None and not path.is_dir():
                raise UsageError(f"{file}: expected a name like {example} of {release.title}")
            if match and found.setdefault(match[1], file) != file:
                raise UsageError(f"{found[match[1]]} and {file} are the same shard; give one")
    if not found:
        raise UsageError(f"{paths[0]}: no files like {example} there, of {release.title}")
    return found


def chosen_fids(args, found) -> list[str]:
    """The fids of `found` that --shards and --partition (or Slurm) choose."""
    unknown = sorted(set(args.shards or ()) - set(found))
    if unknown:
        raise UsageError(f"--shards {' '.join(unknown)}: not among the inputs")
    part = chosen_partition(args)
    fids = sorted(set(args.shards or found))
    return [fid for fid in fids if part is None or partition_of(fid, part[0]) == part[1]]


# ---- reading ---------------------------------------------------------------------------------


class OtherReleaseError(Exception):
    """Spectra of another release than the one in use."""


def open_csv(path, mode="rt"):
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, mode) if "b" in mode else opener(path, mode, encoding="ascii")


def count_lines(path) -> int:
    """Number of lines; reads the whole file, so that a truncated one is found at once."""
    lines, last = 0, b"\n"
    with open_csv(path, "rb") as file:
        while block := file.read(COUNT_BYTES):
            lines += block.count(b"\n")
            last = block[-1:]
    return lines + (last != b"\n")


def read_head(file) -> tuple[list[str], int]:
    """Column names and number of lines of the head: an ECSV header, if any, and the names."""
    line, n_lines = file.readline(), 1
    while line.startswith("#"):
        line = file.readline()
        n_lines += 1
    return next(csv.reader([line]), []), n_lines


def plan_columns(path, names, release) -> tuple[dict, list[str]]:
    """{our name: CsvColumn} of what is converted, and the file's names of what is not.

    Raises ShardError where a column that the release's spectra must have is missing.
    """
    datasets = resolved("xp", Layout(release))
    theirs = {name: release.spectra.names.get(name, name) for name in datasets}
    missing = [theirs[k] for k, d in datasets.items() if not d.optional and theirs[k] not in names]
    if missing:
        found = ", ".join(names[:8]) or "nothing"
        raise ShardError(
            f"{path}: no column {', '.join(missing)} (found: {found} ...); expected the spectra "
            f"of {release.title}: give --release where they are of another one"
        )
    columns = {
        name: CsvColumn(
            names.index(theirs[name]), np.dtype(data.dtype), sum(data.shape), data.optional
        )
        for name, data in datasets.items()
        if theirs[name] in names
    }
    return columns, [name for name in names if name not in theirs.values()]


def is_missing(cell) -> bool:
    """Whether a cell has no value; only short ones are looked at closely."""
    return len(cell) < 5 and cell.lower() in MISSING


def parse_numbers(cells, dtype) -> np.ndarray:
    """Number cells -> (n,) array; those of MISSING: NaN, 0 for integers.

    Small integers may be written as "55.0", as they are after a column with gaps became floats.
    """
    missing = "nan" if dtype.kind == "f" else "0"
    texts = np.array([missing if is_missing(cell) else cell for cell in cells])
    if dtype.kind != "i" or dtype.itemsize > 4 or not np.strings.count(texts, ".").any():
        return texts.astype(dtype)
    numbers = texts.astype(float)
    if (numbers != np.rint(numbers)).any():
        raise ValueError("a number that is not whole")
    return numbers.astype(dtype)


def parse_arrays(cells, dtype, length) -> tuple[np.ndarray, np.ndarray]:
    """Array cells "[a,b,...]" -> (n, length) array and (n,) numbers that each of them has.

    Empty arrays and null are rows of NaN; so are arrays of another length. Elements `null` are NaN.
    """
    out = np.full((len(cells), length), np.nan, dtype)
    bodies = [cell.strip("[]() ") for cell in cells]
    lengths = [0 if is_missing(body) else body.count(",") + 1 for body in bodies]
    lengths = np.array(lengths, int)
    good = np.flatnonzero(lengths == length)
    if len(good):
        text = ",".join(bodies[i] for i in good)
        if "null" in text:
            text = text.replace("null", "nan")
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # NumPy's word for unreadable text
            values = np.fromstring(text, dtype=np.float64, sep=",")
        out[good] = values.reshape(len(good), length)
    return out, lengths


def parse_rows(rows, columns, release) -> tuple[dict, np.ndarray]:
    """Rows of cells -> {name: (n,) or (n, length) array} and (n,) bool: an array had an odd length.

    Raises ValueError where a cell is not a number, OtherReleaseError for another release.
    """
    table, lengths, odd = {}, {}, np.zeros(len(rows), bool)
    for name, column in columns.items():
        cells = [row[column.place] for row in rows]
        if column.length:
            table[name], lengths[name] = parse_arrays(cells, column.dtype, column.length)
            odd |= ~np.isin(lengths[name], (0, column.length))
        else:
            table[name] = parse_numbers(cells, column.dtype)
    for band in XP_BANDS:
        require_release(table, lengths[f"{band}_coefficients"], band, release)
    return table, odd


def require_release(table, lengths, band, release):
    """OtherReleaseError where spectra are of another release: whole, but of other numbers.

    lengths (n,): of the arrays of coefficients, as the file has them.
    """
    expected = release.spectra.bands[band]
    n_parameters = table[f"{band}_n_parameters"]
    checks = {
        f"{band}_coefficients": (lengths, expected.n_coefficients),
        f"{band}_basis_function_id": (
            table.get(f"{band}_basis_function_id", np.zeros(len(lengths), int)),
            expected.basis_id,
        ),
    }
    for (name, (found, right)), what in zip(checks.items(), ("numbers", "as its id"), strict=True):
        other = (lengths > 0) & (lengths == n_parameters) & (found > 0) & (found != right)
        for row in np.flatnonzero(other)[:1]:
            raise OtherReleaseError(
                f"{name} of source {table['source_id'][row]} has {found[row]} {what}, expected "
                f"{right} of {release.title}: spectra of another release; give its --release"
            )


def blank_row(row, columns, of_all) -> list[str]:
    """The row with null in its optional cells or, `of_all`, in every cell but its id."""
    kept = [c.place for k, c in columns.items() if k == "source_id" or not (of_all or c.optional)]
    return [cell if i in kept else "null" for i, cell in enumerate(row)]


def mend_row(row, columns, release) -> tuple[list, bool]:
    """The row, with as many cells blank as it takes to parse it; whether any are."""
    for tried in (row, blank_row(row, columns, False), blank_row(row, columns, True)):
        with contextlib.suppress(*PARSE_ERRORS):
            parse_rows([tried], columns, release)
            break
    return tried, tried is not row


def parse_chunk(rows, columns, release) -> tuple[dict, np.ndarray]:
    """As parse_rows, but a row with a cell that is no number keeps its id alone and is odd.

    A cell that a star can do without costs the row the cells of that kind alone.
    """
    try:
        return parse_rows(rows, columns, release)
    except PARSE_ERRORS:
        mended, broken = zip(*(mend_row(row, columns, release) for row in rows), strict=True)
        table, odd = parse_rows(mended, columns, release)
        return table, odd | np.array(broken)


# ---- converting ------------------------------------------------------------------------------


class UnusableLinesError(Exception):
    """Lines that are no rows were met: `lines` {line number: reason}."""

    def __init__(self, lines):
        super().__init__(f"{len(lines)} unusable lines")
        self.lines = lines


def fault_of(row, n_cells, id_place) -> str:
    """Why a line is not a row, "" where it is one."""
    if len(row) != n_cells:
        return f"{len(row)} cells instead of {n_cells}"
    if not row[id_place].isdecimal():
        return f"source_id is {row[id_place][:30]!r}"
    return ""


def copy_rows(file, writer, columns, n_cells, first_line, known, release) -> list[int]:
    """Parse and write all rows of an open file; returns the ids of odd rows.

    known: {line: reason} of unusable lines met before. Raises UnusableLinesError where there are
    others: the number of rows is then another one.
    """
    unusable, odd_ids, start = {}, [], 0
    id_place = columns["source_id"].place
    lines = enumerate(csv.reader(file), first_line)
    while chunk := list(itertools.islice(lines, CHUNK_ROWS)):
        faults = {line: fault_of(row, n_cells, id_place) for line, row in chunk}
        unusable |= {line: why for line, why in faults.items() if why}
        rows = [row for line, row in chunk if not faults[line]]
        if not rows or unusable.keys() - known.keys():
            continue
        table, odd = parse_chunk(rows, columns, release)
        writer.write_table(table, start=start)
        odd_ids += table["source_id"][odd].tolist()
        start += len(rows)
    if unusable.keys() != known.keys():
        raise UnusableLinesError(unusable)
    return odd_ids


def write_shard(path, output, n_lines, known, made_by, log, release) -> dict:
    """Write one shard without the unusable lines `known`; returns counters for the log."""
    with open_csv(path) as file:
        names, n_head = read_head(file)
        columns, left_out = plan_columns(path, names, release)
        n_rows = n_lines - n_head - len(known)
        attrs = {"unusable_lines": " ".join(map(str, sorted(known)))}
        with ShardWriter(output, n_rows, "source_id", made_by, attrs) as writer:
            writer.create_columns(resolved("xp", Layout(release)).only(columns))
            odd = copy_rows(file, writer, columns, len(names), n_head + 1, known, release)
    if left_out:
        log.info("%s: columns left out: %s", path.name, ", ".join(left_out))
    if odd:
        log.warning(
            "%s: %d rows with arrays of a wrong length or no numbers, stored as NaN: source_id %s",
            path, len(odd), " ".join(map(str, odd[:NAMED_ROWS])),
        )  # fmt: skip
    return {"stars": n_rows, "odd rows": len(odd), "unusable lines": len(known)}


def convert(path, output, log, release, argv=None) -> dict:
    """Convert one CSV file; ShardError for every fault of it. Returns counters for the log."""
    csv.field_size_limit(FIELD_BYTES)
    made_by = provenance(SCRIPT, argv, [path], release)
    known = {}
    try:
        n_lines = count_lines(path)
        while True:
            try:
                return write_shard(path, output, n_lines, known, made_by, log, release)
            except UnusableLinesError as error:
                known = error.lines
            if len(known) > MOST_UNUSABLE:
                line, why = next(iter(known.items()))
                raise ShardError(
                    f"{path}: {len(known)} lines are no rows, the first is line {line} ({why}); "
                    "the file is damaged, fetch it again"
                )
            for line, why in list(known.items())[:NAMED_ROWS]:
                log.warning("%s: line %d left out: %s", path, line, why)
    except OtherReleaseError as error:
        raise ShardError(f"{path}: {error}") from error
    except READ_ERRORS as error:
        raise ShardError(
            f"{path}: cannot be read to its end (truncated or damaged; {error}); fetch it again"
        ) from error


@usage_exit
def main(argv=None) -> int:
    args = parse_args(argv)
    found = find_inputs(args.inputs, args.release)
    fids = chosen_fids(args, found)
    log = setup_logging(SCRIPT, args.log, args)
    return run_shards(
        SCRIPT,
        args,
        fids,
        inputs_of=lambda fid: [found[fid]],
        output_of=lambda fid: shard_path(args.data_dir, "xp", fid),
        process=lambda fid, output, log: convert(found[fid], output, log, args.release, argv),
        log=log,
    )


if __name__ == "__main__":
    sys.exit(main())
