#!/usr/bin/env python3
"""Step 1, second half: the archive's own CSV files of XP spectra -> the HDF5 shards of step 1.

    python tools/convert_xp_csv.py downloads/XpContinuousMeanSpectrum_*.csv.gz --data-dir data
    python tools/convert_xp_csv.py downloads --data-dir data --partition 100 7

Reads XpContinuousMeanSpectrum_{fid}.csv.gz (or .csv) as ESA publishes them: an ECSV header, one row
per source, arrays as quoted strings "[a,b,...]", an empty array or `null` for what is missing.
Arguments are files or folders that hold them. Writes, row for row, in the file's order,

  DATA_DIR/xp_continuous_mean_spectrum/XpContinuousMeanSpectrum_{fid}.h5

  source_id (and every other number of the CSV)   under the archive's names and types; where the
                                                  CSV has null: NaN, 0 for integers
  {bp,rp}_coefficients, _coefficient_errors       (N,55) f8, f4; NaN where the band is missing
  {bp,rp}_coefficient_correlations                (N,1485) f4

Text columns are left out (the log names them). An array of another length than its column has is
stored as NaN, as are the cells of a row that are not numbers; such rows are counted and the first
are named. Lines that are no row at all (other number of cells, no source_id) are left out, and
listed in the attribute `unusable_lines`; with more than MOST_UNUSABLE of them the file counts as
damaged and fails.

Size: about 11 kB a star (0.7 GB for 65,000; ESA's compressed CSV has 16 kB). Time: 1,000 stars/s on
one core, 65 s for 65,000. Memory: 0.2 GB whatever the file. Finished shards are skipped, so running
again goes on; a CSV may be deleted once its shard is there. When it fails: the summary names the
file; fetch that one again.
Exit status: 0 every file is done, 1 some failed, 2 wrong usage or missing inputs.
"""

import argparse
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
from astropy.table.meta import get_header_from_yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.errors import ShardError, UsageError
from pipeline.provenance import provenance
from pipeline.run import run_shards, setup_logging, usage_exit
from pipeline.select import (
    FID_PATTERN,
    add_shard_arguments,
    chosen_partition,
    partition_of,
    shard_path,
)
from pipeline.write import ShardWriter

SCRIPT = "convert_xp_csv"
FILE_NAME = re.compile(rf"XpContinuousMeanSpectrum_({FID_PATTERN.pattern})\.csv(\.gz)?")
CHUNK_ROWS = 512  # 15 MB of text, 20 MB of numbers
COUNT_BYTES = 1 << 22  # read at a time when lines are counted
FIELD_BYTES = 1 << 20  # longest cell; 1,485 correlations take 20 kB
MOST_UNUSABLE = 10  # rows of a file; the archive's 614517-614573 is reported to have one odd row
NAMED_ROWS = 5  # of each kind of exception in the log
ARRAY_LENGTHS = {"coefficients": 55, "coefficient_errors": 55, "coefficient_correlations": 1485}
# Gaia DR3 data model, xp_continuous_mean_spectrum; where the file has no ECSV header.
PLAIN_TYPES = {
    "source_id": "i8", "solution_id": "i8", "basis_function_id": "i2", "degrees_of_freedom": "i2",
    "n_parameters": "i2", "n_measurements": "i2", "n_rejected_measurements": "i2",
    "n_relevant_bases": "i2", "standard_deviation": "f4", "chi_squared": "f4",
    "relative_shrinking": "f4", "coefficients": "f8", "coefficient_errors": "f4",
    "coefficient_correlations": "f4",
}  # fmt: skip
REQUIRED = (
    "source_id",
    *(
        f"{band}_{name}"
        for band in ("bp", "rp")
        for name in ("n_parameters", "standard_deviation", *ARRAY_LENGTHS)
    ),
)
READ_ERRORS = (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error)


@dataclass(frozen=True)
class CsvColumn:
    """A column to convert: its place in a row, dtype, and length of its arrays (0: a number)."""

    place: int
    dtype: np.dtype
    length: int
    units: str | None = None
    description: str | None = None


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs", nargs="+", type=Path, help="CSV files, or folders of them")
    add_shard_arguments(parser)
    return parser.parse_args(argv)


# ---- finding the files -----------------------------------------------------------------------


def find_inputs(paths) -> dict:
    """{fid: CSV path} of files and of folders' files; UsageError where a fid comes twice."""
    found = {}
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path}: not found")
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            match = FILE_NAME.fullmatch(file.name)
            if match is None and not path.is_dir():
                raise UsageError(
                    f"{file}: expected a name like XpContinuousMeanSpectrum_000000-003111.csv.gz"
                )
            if match and found.setdefault(match[1], file) != file:
                raise UsageError(f"{found[match[1]]} and {file} are the same shard; give one")
    if not found:
        raise UsageError(f"{paths[0]}: no XpContinuousMeanSpectrum_*.csv[.gz] there")
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


def read_head(file) -> tuple[dict, list[str], int]:
    """ECSV column definitions {name: dict}, column names and number of lines of the head."""
    yaml_lines, line = [], file.readline()
    n_lines = 1
    while line.startswith("#"):
        yaml_lines.append(line[1:].removeprefix(" ").rstrip("\n"))
        line = file.readline()
        n_lines += 1
    names = next(csv.reader([line]), [])
    # The first line says "%ECSV 1.0"; what follows is YAML.
    header = get_header_from_yaml(yaml_lines[1:]) if len(yaml_lines) > 1 else {"datatype": []}
    return {column["name"]: column for column in header["datatype"]}, names, n_lines


def column_type(name, definition) -> np.dtype | None:
    """dtype of a column from its ECSV definition, else from the data model; None for text."""
    kind = definition.get("datatype")
    if kind == "string":
        kind = definition.get("subtype", "string").split("[")[0]
    if kind is None:
        kind = PLAIN_TYPES.get(name.split("_", 1)[1] if name[:3] in ("bp_", "rp_") else name)
    if kind is None or kind == "string":
        return None
    return np.dtype(kind)


def plan_columns(path, definitions, names) -> tuple[dict, list[str]]:
    """{name: CsvColumn} of what is converted and the names of what is not."""
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        found = ", ".join(names[:8]) or "nothing"
        raise ShardError(
            f"{path}: no column {', '.join(missing)} (found: {found} ...); expected the archive's "
            "xp_continuous_mean_spectrum"
        )
    columns, left_out = {}, []
    for place, name in enumerate(names):
        definition = definitions.get(name, {})
        dtype = column_type(name, definition)
        length = ARRAY_LENGTHS.get(name[3:], 0)
        if dtype is None or (definition.get("datatype") == "string" and not length):
            left_out.append(name)
            continue
        columns[name] = CsvColumn(
            place, dtype, length, definition.get("unit"), definition.get("description")
        )
    return columns, left_out


def parse_numbers(cells, dtype) -> np.ndarray:
    """Number cells -> (n,) array; null or empty: NaN, 0 for integers and booleans."""
    missing = "nan" if dtype.kind == "f" else "0"
    cells = [missing if cell in ("", "null", "nan") else cell for cell in cells]
    if dtype.kind == "b":
        return np.array([cell.lower() in ("true", "1") for cell in cells])
    return np.array(cells).astype(dtype)


def parse_arrays(cells, dtype, length) -> tuple[np.ndarray, np.ndarray]:
    """Array cells "[a,b,...]" -> (n, length) array and (n,) bool: which had an odd length.

    Empty arrays and null are rows of NaN; so are arrays of an odd length. Elements `null` are NaN.
    """
    out = np.full((len(cells), length), np.nan, dtype)
    bodies = [cell.strip("[]() ") for cell in cells]
    filled = np.array([body not in ("", "null", "nan") for body in bodies], bool)
    whole = np.array([body.count(",") == length - 1 for body in bodies], bool)
    good = np.flatnonzero(filled & whole)
    if len(good):
        text = ",".join(bodies[i] for i in good)
        if "null" in text:
            text = text.replace("null", "nan")
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # NumPy's word for unreadable text
            values = np.fromstring(text, dtype=np.float64, sep=",")
        out[good] = values.reshape(len(good), length)
    return out, filled & ~whole


def parse_rows(rows, columns) -> tuple[dict, np.ndarray]:
    """Rows of cells -> {name: (n,) or (n, length) array} and (n,) bool: an array had an odd length.

    Raises ValueError where a cell is not a number.
    """
    table, odd = {}, np.zeros(len(rows), bool)
    for name, column in columns.items():
        cells = [row[column.place] for row in rows]
        if column.length:
            table[name], wrong = parse_arrays(cells, column.dtype, column.length)
            odd |= wrong
        else:
            table[name] = parse_numbers(cells, column.dtype)
    return table, odd


def blank_row(row, columns) -> list[str]:
    """The row with null in every cell but its source_id."""
    place = columns["source_id"].place
    return [cell if i == place else "null" for i, cell in enumerate(row)]


def parse_chunk(rows, columns) -> tuple[dict, np.ndarray]:
    """As parse_rows, but a row with a cell that is no number keeps its id alone and is odd."""
    try:
        return parse_rows(rows, columns)
    except (ValueError, OverflowError, DeprecationWarning):
        mended, broken = [], np.zeros(len(rows), bool)
        for i, row in enumerate(rows):
            try:
                parse_rows([row], columns)
                mended.append(row)
            except (ValueError, OverflowError, DeprecationWarning):
                mended.append(blank_row(row, columns))
                broken[i] = True
        table, odd = parse_rows(mended, columns)
        return table, odd | broken


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


def create_datasets(writer, columns):
    """All datasets of the output, so that a file without rows has them too."""
    for name, column in columns.items():
        tail = (column.length,) if column.length else ()
        writer.create(name, tail, column.dtype, column.units, column.description)


def copy_rows(file, writer, columns, n_cells, first_line, known) -> list[int]:
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
        table, odd = parse_chunk(rows, columns)
        writer.write_table(table, start=start)
        odd_ids += table["source_id"][odd].tolist()
        start += len(rows)
    if unusable.keys() != known.keys():
        raise UnusableLinesError(unusable)
    return odd_ids


def write_shard(path, output, n_lines, known, made_by, log) -> dict:
    """Write one shard without the unusable lines `known`; returns counters for the log."""
    with open_csv(path) as file:
        definitions, names, n_head = read_head(file)
        columns, left_out = plan_columns(path, definitions, names)
        n_rows = n_lines - n_head - len(known)
        attrs = {"unusable_lines": " ".join(map(str, sorted(known)))}
        with ShardWriter(output, n_rows, "source_id", made_by, attrs) as writer:
            create_datasets(writer, columns)
            odd = copy_rows(file, writer, columns, len(names), n_head + 1, known)
    if left_out:
        log.info("%s: text columns left out: %s", path.name, ", ".join(left_out))
    if odd:
        log.warning(
            "%s: %d rows with arrays of a wrong length or no numbers, stored as NaN: source_id %s",
            path, len(odd), " ".join(map(str, odd[:NAMED_ROWS])),
        )  # fmt: skip
    return {"stars": n_rows, "odd rows": len(odd), "unusable lines": len(known)}


def convert(path, output, log, argv=None) -> dict:
    """Convert one CSV file; ShardError for every fault of it. Returns counters for the log."""
    csv.field_size_limit(FIELD_BYTES)
    made_by = provenance(SCRIPT, argv, [path])
    known = {}
    try:
        n_lines = count_lines(path)
        while True:
            try:
                return write_shard(path, output, n_lines, known, made_by, log)
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
    except READ_ERRORS as error:
        raise ShardError(
            f"{path}: cannot be read to its end (truncated or damaged; {error}); fetch it again"
        ) from error


@usage_exit
def main(argv=None) -> int:
    args = parse_args(argv)
    found = find_inputs(args.inputs)
    fids = chosen_fids(args, found)
    log = setup_logging(SCRIPT, args.log, args)
    return run_shards(
        SCRIPT,
        args,
        fids,
        inputs_of=lambda fid: [found[fid]],
        output_of=lambda fid: shard_path(args.data_dir, "xp", fid),
        process=lambda fid, output, log: convert(found[fid], output, log, argv),
        log=log,
    )


if __name__ == "__main__":
    sys.exit(main())
