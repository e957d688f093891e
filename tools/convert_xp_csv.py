#!/usr/bin/env python3
"""Step 1, second half: the archive's own CSV files of XP spectra -> the HDF5 shards of step 1.

    python tools/convert_xp_csv.py downloads/XpContinuousMeanSpectrum_*.csv.gz --data-dir data
    python tools/convert_xp_csv.py downloads --data-dir data --partition 100 7
    python tools/convert_xp_csv.py downloads --data-dir data --sampled

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

Rows of the usual form are read the fast way (pipeline/usual_rows.py), the others one by one; both
give the same numbers. Without isal and pysimdjson it takes six times as long, and says so.

With --sampled the shards hold what steps 7 and 9 make of the coefficients (fluxes, errors, the
finer spectrum, flags) in the place of these, in a fifteenth of the space. Every later step takes
either form and gives the same numbers; another basis or grid of wavelengths needs the CSV again.

Finished shards are skipped, so running again goes on; a CSV may be deleted once its shard is there.
When it fails: the summary names the file; fetch that one again.
Exit status: 0 every file is done, 1 some failed, 2 wrong usage or missing inputs.
"""

import contextlib
import csv
import gzip
import io
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
from pipeline.usual_rows import UsualRows
from pipeline.usual_rows import available as has_usual_rows
from pipeline.write import ShardWriter
from pipeline.xp_basis import load_xp_basis
from xp_utils import sampled_columns

try:
    from isal import igzip, isal_zlib
except ImportError:  # gzip does, at a fifth of the speed
    igzip = None

SCRIPT = "convert_xp_csv"
CHUNK_ROWS = 768  # 30 MB of text, 10 MB of numbers
READ_BYTES = 1 << 20  # read at a time
FIELD_BYTES = 1 << 20  # longest cell; the correlations of a band take 20 kB
MOST_UNUSABLE = 10  # rows of a file; the archive's 614517-614573 is reported to have one odd row
NAMED_ROWS = 5  # of each kind of exception in the log
MISSING = frozenset(("", "null", "nan", "none", "\\n", "--"))  # cells without a value, lower case
PARSE_ERRORS = (ValueError, OverflowError, DeprecationWarning)
READ_ERRORS = (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error)
if igzip is not None:
    READ_ERRORS += (isal_zlib.error,)


@dataclass(frozen=True)
class CsvColumn:
    """A column to convert: its place in a row, dtype, length of its arrays (0: a number), and
    whether a star is of use without it."""

    place: int
    dtype: np.dtype
    length: int
    optional: bool


def parse_args(argv=None):
    parser = step_parser(__doc__, "xp", "sampled")
    parser.add_argument("inputs", nargs="+", type=Path, help="CSV files, or folders of them")
    add_shard_arguments(parser)
    add_release_argument(parser)
    parser.add_argument(
        "--sampled",
        action="store_true",
        help="keep fluxes and errors at the release's wavelengths, and no coefficients",
    )
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


def open_csv(path):
    """The bytes of a file, unpacked where it is compressed."""
    if path.suffix != ".gz":
        return open(path, "rb")
    return io.BufferedReader((igzip or gzip).open(path, "rb"), READ_BYTES)


def read_head(file) -> tuple[list[str], int]:
    """Column names and number of lines of the head: an ECSV header, if any, and the names."""
    line, n_lines = file.readline().decode("ascii"), 1
    while line.startswith("#"):
        line = file.readline().decode("ascii")
        n_lines += 1
    return next(csv.reader([line]), []), n_lines


def read_to_end(file):
    """Raises one of READ_ERRORS where the rest of the file is damaged."""
    while file.read(READ_BYTES):
        pass


def split_cells(line) -> list[str] | None:
    """The cells of a line; None where a quoted one does not end in it."""
    reader = csv.reader([line.decode("ascii"), ""])
    cells = next(reader)
    return cells if reader.line_num == 1 else None


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
    texts = np.array([missing if is_missing(cell) else cell for cell in cells], str)
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


def fault_of(row, n_cells, id_place) -> str:
    """Why the cells of a line are not a row, "" where they are one."""
    if row is None:
        return "a quoted cell does not end in it"
    if len(row) != n_cells:
        return f"{len(row)} cells instead of {n_cells}"
    if not row[id_place].isdecimal():
        return f"source_id is {row[id_place][:30]!r}"
    return ""


class TableReader:
    """Reads the rows of one open file as tables, and keeps account of what is odd.

    unusable: {line number: why it is no row}; odd: ids of rows with arrays of NaN for it.
    """

    def __init__(self, columns, n_cells, release):
        self.columns, self.n_cells, self.release = columns, n_cells, release
        self.unusable, self.odd = {}, []
        self._usual = UsualRows(columns, n_cells) if has_usual_rows() else None

    def tables(self, file, first_line):
        """Yield {name: (n, ...) array}, in order; first_line: number of the file's next line."""
        while lines := list(itertools.islice(file, CHUNK_ROWS)):
            table = self._table(lines, first_line)
            first_line += len(lines)
            del lines  # the larger part of what is held
            if len(table["source_id"]):
                yield table

    def _table(self, lines, first_line) -> dict:
        """The rows among some lines; those of unusual form the careful way."""
        if self._usual is None:
            return self._careful(lines, range(first_line, first_line + len(lines)))[1]
        table, parsed = self._usual.parse(lines)
        for band in XP_BANDS:
            n = self.columns[f"{band}_coefficients"].length
            require_release(table, np.where(parsed, n, 0), band, self.release)
        if parsed.all():
            return table
        others = np.flatnonzero(~parsed)
        places, found = self._careful([lines[i] for i in others], others + first_line)
        for name, column in found.items():
            table[name][others[places]] = column
        parsed[others[places]] = True
        return {name: column[parsed] for name, column in table.items()}

    def _careful(self, lines, numbers) -> tuple[list, dict]:
        """Places of the lines that are rows, and their table."""
        id_place, rows, places = self.columns["source_id"].place, [], []
        for place, (line, number) in enumerate(zip(lines, numbers, strict=True)):
            cells = split_cells(line)
            if why := fault_of(cells, self.n_cells, id_place):
                self.unusable[int(number)] = why
            else:
                places.append(place)
                rows.append(cells)
        table, odd = parse_chunk(rows, self.columns, self.release)
        self.odd += table["source_id"][odd].tolist()
        return places, table

    def report(self, path, log):
        """Log what is odd; ShardError where so many lines are no rows that the file is damaged."""
        if len(self.unusable) > MOST_UNUSABLE:
            line, why = next(iter(self.unusable.items()))
            raise ShardError(
                f"{path}: {len(self.unusable)} lines are no rows, the first is line {line} "
                f"({why}); the file is damaged, fetch it again"
            )
        for line, why in list(self.unusable.items())[:NAMED_ROWS]:
            log.warning("%s: line %d left out: %s", path, line, why)
        if self.odd:
            log.warning(
                "%s: %d rows with arrays of a wrong length or no numbers, stored as NaN: "
                "source_id %s",
                path, len(self.odd), " ".join(map(str, self.odd[:NAMED_ROWS])),
            )  # fmt: skip


def write_tables(tables, output, datasets, made_by, account) -> int:
    """Write tables one after another; returns the number of rows.

    account(): attributes of the file, asked for after the last table.
    """
    first = list(itertools.islice(tables, 2))
    n_rows = sum(len(table["source_id"]) for table in first) if len(first) < 2 else None
    with ShardWriter(output, n_rows, "source_id", made_by) as writer:
        writer.create_columns(datasets)
        start = 0
        for table in itertools.chain((first.pop(0) for _ in range(len(first))), tables):
            writer.write_table(table, start=start)
            start += len(table["source_id"])
        writer.describe(**account())
    return start


def sampled(tables, basis):
    """Tables of coefficients -> tables of what flux vectors take of them."""
    for table in tables:
        try:
            yield {"source_id": table["source_id"], **sampled_columns(table, basis)}
        except ValueError as error:  # a basis id or a shape
            raise OtherReleaseError(f"{error}; give its --release") from error


def write_shard(path, file, output, made_by, log, release, basis=None) -> dict:
    """Write one shard from an open file; returns counters for the log.

    basis: `XPBasis` with which the spectra are sampled; None: their coefficients are kept.
    """
    names, n_head = read_head(file)
    columns, left_out = plan_columns(path, names, release)
    reader = TableReader(columns, len(names), release)

    def account():
        reader.report(path, log)
        attrs = {"unusable_lines": " ".join(map(str, reader.unusable))}
        return attrs if basis is None else attrs | {"xp_basis": basis.source}

    tables = reader.tables(file, n_head + 1)
    datasets = resolved("xp", Layout(release)).only(columns)
    if basis is not None:
        tables, datasets = sampled(tables, basis), resolved("sampled", Layout(release))
    n_rows = write_tables(tables, output, datasets, made_by, account)
    if left_out:
        log.info("%s: columns left out: %s", path.name, ", ".join(left_out))
    return {"stars": n_rows, "odd rows": len(reader.odd), "unusable lines": len(reader.unusable)}


def convert(path, output, log, release, argv=None, basis=None) -> dict:
    """Convert one CSV file; ShardError for every fault of it. Returns counters for the log.

    basis: see `write_shard`.
    """
    csv.field_size_limit(FIELD_BYTES)
    made_by = provenance(SCRIPT, argv, [path], release)
    try:
        with open_csv(path) as file:
            try:
                return write_shard(path, file, output, made_by, log, release, basis)
            except (ShardError, OtherReleaseError):
                read_to_end(file)  # damage, where there is some, is the reason to be told
                raise
    except OtherReleaseError as error:
        raise ShardError(f"{path}: {error}") from error
    except READ_ERRORS as error:
        raise ShardError(
            f"{path}: cannot be read to its end (truncated or damaged; {error}); fetch it again"
        ) from error


def log_slow_parts(log):
    """One line where a fast package is missing."""
    lacking = {"isal": igzip is not None, "pysimdjson": has_usual_rows()}
    names = " and ".join(name for name, there in lacking.items() if not there)
    if names:
        log.warning(
            "%s: not installed, the conversion takes several times longer (pip install %s)",
            names, names.replace(" and", ""),
        )  # fmt: skip


@usage_exit
def main(argv=None) -> int:
    args = parse_args(argv)
    found = find_inputs(args.inputs, args.release)
    fids = chosen_fids(args, found)
    log = setup_logging(SCRIPT, args.log, args)
    log_slow_parts(log)
    basis = load_xp_basis(args.release) if args.sampled else None
    return run_shards(
        SCRIPT,
        args,
        fids,
        inputs_of=lambda fid: [found[fid]],
        output_of=lambda fid: shard_path(args.data_dir, "xp", fid),
        process=lambda fid, output, log: convert(
            found[fid], output, log, args.release, argv, basis
        ),
        log=log,
        kind="sampled" if args.sampled else "xp",
    )


if __name__ == "__main__":
    sys.exit(main())
