"""Speed of step 1 on one core: the archive's CSV to HDF5, the careful way and the fast one.

    python benchmarks/bench_conversion.py [--stars demo/stars.h5] [--n 3000] [--csv FOLDER]

Writes a compressed CSV as the archive publishes it, whose stars have digits of their own: the
bundled stars' spectra with noise, and every 997th without BP. Converts it the careful way, as odd
rows and machines without the fast packages have it (gzip, csv, NumPy's parser), and the fast way
(isal, simdjson). Prints the CPU time a star of each part, the ratio, and whether both files have
the same content. The best of several repetitions counts. Takes about a minute, half of it to write
the CSV; --csv keeps that in a folder, and takes it from there where it is.
"""

import argparse
import gzip
import logging
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import common  # sets one thread, before NumPy is loaded
import numpy as np

from pipeline import csv_rows, spectra_files, spectra_shards
from pipeline.errors import ShardError
from pipeline.read import ShardReader
from pipeline.schema import XP_BANDS, load_release
from pipeline.usual_rows import UsualRows
from pipeline.write import ShardWriter

FID = "000000-003111"
WITHOUT_BP = 997  # one star in so many
NO_BP = '"[]"'


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stars", type=Path, default=common.ROOT / "demo" / "stars.h5")
    parser.add_argument("--n", type=int, default=3000, help="stars (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--csv", type=Path, metavar="FOLDER", help="keep the CSV there")
    return parser.parse_args(argv)


# ---- the CSV ---------------------------------------------------------------------------------


def band_columns(reader, band, basis_id, rows, rng):
    """Columns of a band, as the archive has them, with digits of their own for every star."""
    n, whole = len(rows), lambda low, high: rng.integers(low, high, len(rows)).astype("i2")
    coefficients, errors = (
        reader.read(f"{band}_{name}")[rows] for name in ("coefficients", "coefficient_errors")
    )
    template = reader.read(f"{band}_correlation_template")
    correlations = template + 0.03 * rng.normal(size=(n, len(template)))
    columns = {
        "basis_function_id": np.full(n, basis_id, "i2"),
        "degrees_of_freedom": whole(300, 2000),
        "n_parameters": np.full(n, coefficients.shape[1], "i2"),
        "n_measurements": whole(300, 2000),
        "n_rejected_measurements": whole(0, 30),
        "standard_deviation": rng.uniform(0.9, 2, n).astype("f4"),
        "chi_squared": rng.uniform(300, 3000, n).astype("f4"),
        "coefficients": coefficients * (1 + 1e-9 * rng.normal(size=coefficients.shape)),
        "coefficient_errors": errors * rng.uniform(0.99, 1.01, errors.shape),
        "coefficient_correlations": np.clip(correlations, -0.999, 0.999),
        "n_relevant_bases": whole(3, 55),
        "relative_shrinking": rng.uniform(0, 1, n).astype("f4"),
    }
    for name in ("coefficient_errors", "coefficient_correlations"):
        columns[name] = columns[name].astype("f4")
    return {f"{band}_{name}": column for name, column in columns.items()}


def archive_table(stars, n):
    """The archive's columns of n stars."""
    rng = np.random.default_rng(0)
    release = load_release()
    with ShardReader(stars) as reader:
        ids = reader.read("source_id")
        rows = np.arange(n) % len(ids)
        table = {"source_id": ids[rows] + np.arange(n) // len(ids)}
        table["solution_id"] = np.full(n, 4545469030156206080)
        for band in XP_BANDS:
            basis_id = release.spectra.bands[band].basis_id
            table |= band_columns(reader, band, basis_id, rows, rng)
    return table


def cell(name, value, has_bp):
    """A value as the archive writes it."""
    if np.ndim(value):
        missing = name.startswith("bp") and not has_bp
        return NO_BP if missing else '"[' + ",".join(map(str, value)) + ']"'
    return str(value)


def write_csv(path, table):
    """The table as the archive's bulk file, ECSV header and all."""
    head = ["# %ECSV 1.0", "# ---", "# delimiter: ','", "# datatype:"]
    for name in table:
        head += ["# -", f"#   name: {name}"]
    with gzip.open(path, "wt", compresslevel=6, encoding="ascii") as file:
        file.write("\n".join([*head, ",".join(table)]) + "\n")
        for i in range(len(table["source_id"])):
            has_bp = i % WITHOUT_BP != 5
            file.write(",".join(cell(k, v[i], has_bp) for k, v in table.items()) + "\n")


# ---- the two ways ----------------------------------------------------------------------------

WAYS = {
    "careful": (None, lambda: False),
    "fast": (spectra_files.igzip, lambda: True),
}
PARTS = {
    "parse": ((UsualRows, "_parse_batch"), (csv_rows.CsvSpectra, "_careful")),
    "write": ((ShardWriter, "write_table"), (ShardWriter, "_finish")),
}


def convert(way, path, output):
    """Convert the CSV one way; {part: CPU seconds}, of which "unpack" is all but the others."""
    log, watch = logging.getLogger("bench_conversion"), common.Stopwatch()
    log.addHandler(logging.NullHandler())
    log.propagate = False
    for part, functions in PARTS.items():
        for owner, name in functions:
            watch.wrap(owner, name, part)
    igzip, has_usual_rows = WAYS[way]
    with (
        mock.patch.object(spectra_files, "igzip", igzip),
        mock.patch.object(csv_rows, "has_usual_rows", has_usual_rows),
    ):
        start = time.process_time()
        spectra_shards.convert([path], output, load_release(), log, {}, fid=FID)
        total = time.process_time() - start
    watch.unwrap()
    rest = total - sum(watch.seconds.values())
    return {"unpack": rest, **watch.seconds, "total": total}


def best(way, path, output, repeats):
    """Of several conversions, the one that took the least time."""
    return min((convert(way, path, output) for _ in range(repeats)), key=lambda t: t["total"])


def same_content(left, right):
    """Whether two files have the same datasets, bit for bit."""
    with ShardReader(left) as a, ShardReader(right) as b:
        names, equal = a.columns, a.attrs["content_id"] == b.attrs["content_id"]
        return (
            equal
            and names == b.columns
            and all(a.read(name).tobytes() == b.read(name).tobytes() for name in names)
        )


def main(argv=None):
    args = parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        name = load_release().spectra.file_name.format(fid=FID) + ".csv.gz"
        path = (args.csv or Path(folder)) / name
        try:
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_csv(path, archive_table(args.stars, args.n))
            outputs = {way: Path(folder) / f"{way}.h5" for way in WAYS}
            times = {way: best(way, path, out, args.repeats) for way, out in outputs.items()}
        except ShardError as error:
            sys.stderr.write(f"bench_conversion: {error}\n")
            return 2
        with ShardReader(outputs["fast"]) as reader:
            n_stars = reader.n_rows
        same = same_content(*outputs.values())
    print(f"conversion of XP spectra, one core, {n_stars} stars: CPU microseconds a star")
    print(f"  {'':24}{'careful':>10}{'fast':>10}")
    for part, words in (
        ("unpack", "unpack, read lines"),
        ("parse", "split and parse"),
        ("write", "hash and write HDF5"),
        ("total", "in all"),
    ):
        numbers = "".join(f"{1e6 * times[way][part] / n_stars:10.0f}" for way in WAYS)
        print(f"  {words:24}{numbers}")
    print(f"  ratio {times['careful']['total'] / times['fast']['total']:.1f}")
    print(f"  the same content: {'yes' if same else 'NO'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
