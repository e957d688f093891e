"""The fast way to read the archive's rows gives the numbers of the careful one, bit for bit."""

import gzip

import h5py
import numpy as np
import pytest
from test_convert_xp_csv import FID, REAL, convert, csv_lines, read, spectra, write_csv

from pipeline import csv_rows, spectra_account, spectra_files, spectra_plan, usual_rows
from pipeline.schema import load_release
from pipeline.select import shard_path

RELEASE = load_release()
FILE = "spectra.csv.gz"
N_CELLS = len(spectra(1))


def slow_way(monkeypatch):
    """Have neither of the fast packages."""
    monkeypatch.setattr(usual_rows, "simdjson", None)
    monkeypatch.setattr(spectra_files, "igzip", None)


def plan(table=None):
    names = list(spectra(1) if table is None else table)
    return spectra_plan.plan_columns(FILE, names, RELEASE)[0]


def row_lines(table):
    """The rows of a table as lines of a file."""
    return [f"{line}\n".encode() for line in csv_lines(table, ecsv=False)[1:]]


def parse(lines):
    """({name: array}, whether each line is read the fast way)."""
    found, parsed, others = usual_rows.UsualRows(plan(), N_CELLS).parse(enumerate(lines), 999)
    assert others == [(i, i, lines[i]) for i in np.flatnonzero(~parsed)]
    return found, parsed


def parsed_fast(lines):
    """Whether each line is read the fast way."""
    return parse(lines)[1].tolist()


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == expected[name].dtype, name
        assert found[name].tobytes() == expected[name].tobytes(), name


def both_ways(tmp_path, monkeypatch, lines):
    """What the shards of a CSV are, {name: array}, by the fast way and by the slow one."""
    path = write_csv(tmp_path / "in", lines)
    assert convert(path, tmp_path / "fast") == 0
    slow_way(monkeypatch)
    assert convert(path, tmp_path / "slow") == 0
    (fast, fast_attrs), (slow, slow_attrs) = read(tmp_path / "fast"), read(tmp_path / "slow")
    assert fast_attrs["content_id"] == slow_attrs["content_id"]
    return fast, slow


def random_digits(n, rng):
    """Numbers as text, of 1 to 25 digits and any exponent, with and without a dot."""
    signs, digits = rng.choice(["", "-"], n), rng.integers(1, 26, n)
    out = []
    for sign, k in zip(signs, digits, strict=True):
        text = "".join(map(str, rng.integers(0, 10, k)))
        whole = text[: rng.integers(1, k + 1)].lstrip("0") or "0"
        rest = text[len(whole) :]
        exponent = rng.choice(["", f"e{rng.integers(-30, 8)}", f"E+{rng.integers(0, 8)}"])
        out.append(f"{sign}{whole}{'.' + rest if rest else ''}{exponent}")
    return out


# Halfway between neighbours of float64 and of float32, smallest and largest numbers, and whole ones
# beyond 2^53.
HARD = (
    "9007199254740993", "9007199254740992.99999999999999999999", "1.00000005960464477539062500001",
    "16777217", "4.9e-324", "2.4703282292062327e-324", "2.2250738585072011e-308", "1e-400",
    "1.17549429e-38", "7.0064923216240854e-46", "3.4028235677973366e+38", "0.1", "-0.0", "0.0",
    "1e5", "1E-5", "-3", "18446744073709551615", "8.41e21", "6929495644600919.5",
)  # fmt: skip


ARRAYS = [name for name, column in spectra(1).items() if column.ndim > 1]


@pytest.mark.parametrize("column", ["bp_coefficients", "rp_coefficient_correlations"])
def test_any_digits_round_as_pythons_float_does_also_to_single_precision(column):
    table, rng = spectra(1), np.random.default_rng(1)
    (line,), width = row_lines(table), table[column].shape[1]
    words = [[*HARD, *random_digits(width, rng)][:width] for _ in range(8)]
    words = [[word if is_json(word) else "-0.0" for word in row] for row in words]
    parts, place = line.split(b'"'), 1 + 2 * ARRAYS.index(column)
    lines = [b'"'.join([*parts[:place], list_of(row), *parts[place + 1 :]]) for row in words]
    with np.errstate(over="ignore"):
        found, parsed = parse(lines)
        expected = np.array([[float(word) for word in row] for row in words])
        expected = expected.astype(table[column].dtype)
    assert parsed.all()
    assert_same_bits({column: found[column]}, {column: expected})


def is_json(word):
    """Whether simdjson reads a number, its sign included: no whole one beyond 64 bits, no "-0"."""
    whole = word.isdigit() or word[1:].isdigit()
    return not (whole and (word == "-0" or not -(2**63) <= int(word) < 2**64))


def list_of(words):
    return f"[{','.join(words)}]".encode()


@pytest.mark.parametrize("word", [*HARD, *random_digits(40, np.random.default_rng(2))])
def test_numbers_beside_the_arrays_round_as_the_careful_way_has_them(word):
    (line,) = row_lines(spectra(1))
    line = line.replace(b",55,0.9,", f",55,{word},".encode(), 1)
    with np.errstate(over="ignore"):
        found, (parsed,) = parse([line])
        cells = csv_rows.split_cells(line)
        account = spectra_account.Account(FILE, plan(), RELEASE)
        expected = csv_rows.parse_rows([cells], plan(), RELEASE, account)
    assert parsed == is_json(word)
    if parsed:
        assert_same_bits(found, {name: expected[name] for name in found})


@pytest.mark.skipif(not REAL.is_file(), reason="../shared/xp_continuous is not here")
def test_real_rows_are_the_same_both_ways(tmp_path, monkeypatch):
    with h5py.File(REAL) as file:
        table = {name: file[name][()] for name in file}
    table = {"source_id": table.pop("source_id"), **table}
    assert_same_bits(*both_ways(tmp_path, monkeypatch, csv_lines(table)))


def test_rows_of_the_usual_form_are_read_the_fast_way():
    assert parsed_fast(row_lines(spectra(12))) == [True] * 12


def in_first_array(line, new):
    """The line with another text in the place of its first array."""
    before, _, after = line.split('"', 2)
    return f'{before}"{new}"{after}'


def first_array(line):
    return line.split('"')[1]


# {what is odd: (line, its first array) -> the line with it}
ODD = {
    "no array": lambda line, array: in_first_array(line, "[]"),
    "round brackets": lambda line, array: in_first_array(line, f"({array[1:-1]})"),
    "no brackets": lambda line, array: in_first_array(line, array[1:-1]),
    "null array": lambda line, array: in_first_array(line, "").replace('""', "null", 1),
    "null element": lambda line, array: in_first_array(line, "[null" + array[array.index(",") :]),
    "nan element": lambda line, array: in_first_array(line, "[NaN" + array[array.index(",") :]),
    "inf element": lambda line, array: in_first_array(line, "[inf" + array[array.index(",") :]),
    "lost sign": lambda line, array: in_first_array(line, "[-0" + array[array.index(",") :]),
    "overflow": lambda line, array: in_first_array(line, "[1e999" + array[array.index(",") :]),
    "one number": lambda line, array: in_first_array(line, "[1.5]"),
    "one too few": lambda line, array: in_first_array(line, "[" + array[array.index(",") + 1 :]),
    "one too many": lambda line, array: in_first_array(line, "[1," + array[1:]),
    "list in a list": lambda line, array: in_first_array(line, "[" + array.replace(",", "],[", 1)),
    "a word": lambda line, array: in_first_array(line, "[x" + array[array.index(",") :]),
    "true": lambda line, array: in_first_array(line, "[true" + array[array.index(",") :]),
    "plus sign": lambda line, array: in_first_array(line, "[+1" + array[array.index(",") :]),
    "no leading zero": lambda line, array: in_first_array(line, "[.5" + array[array.index(",") :]),
    "spaces": lambda line, array: in_first_array(line, array.replace(",", " , ")),
    "no digits left": lambda line, array: in_first_array(line, array[:-1] + ",]"),
    "two quotes": lambda line, array: in_first_array(line, '""' + array),
    "text before a quote": lambda line, array: line.replace('"[', '5"[', 1),
    "text after a quote": lambda line, array: line.replace(']"', ']"5', 1),
    "quoted number": lambda line, array: line.replace(",56,", ',"56",', 1),
    "float for an integer": lambda line, array: line.replace(",55,", ",55.0,", 1),
    "large integer": lambda line, array: line.replace(",55,", ",70000,", 1),
    "no number": lambda line, array: line.replace(",55,", ",,", 1),
    "brackets over cells": lambda line, array: line.replace(",56,55,", ",[56,55],", 1),
    "short row": lambda line, array: line.rsplit(",", 1)[0],
    "long row": lambda line, array: line + ",1",
    "open quote": lambda line, array: line[:-1],
    "spaced id": lambda line, array: " " + line,
    "id of a float": lambda line, array: line.replace(",", ".0,", 1),
    "no line": lambda line, array: "",
    "carriage return": lambda line, array: line + "\r",
}  # fmt: skip


@pytest.mark.parametrize("chunk", [1, 3, 512])
def test_odd_rows_among_good_ones_are_the_same_both_ways(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(csv_rows, "CHUNK_ROWS", chunk)
    monkeypatch.setattr(spectra_account, "MOST_UNUSABLE", len(ODD))
    lines = csv_lines(spectra(2 * len(ODD)))
    for i, change in enumerate(ODD.values()):
        lines[-2 * i - 1] = change(lines[-2 * i - 1], first_array(lines[-2 * i - 1]))
    fast, slow = both_ways(tmp_path, monkeypatch, lines)
    assert_same_bits(fast, slow)
    assert len(ODD) < len(fast["source_id"]) < 2 * len(ODD)


@pytest.mark.parametrize("odd", ODD)
def test_the_good_rows_beside_an_odd_one_are_read_the_fast_way(odd):
    lines = csv_lines(spectra(3), ecsv=False)[1:]
    lines[1] = ODD[odd](lines[1], first_array(lines[1]))
    fast = odd in ("spaces", "carriage return")  # which JSON passes over
    assert parsed_fast([f"{line}\n".encode() for line in lines]) == [True, fast, True]


def test_a_cell_with_another_character_costs_itself_alone(tmp_path):
    table = spectra(3)
    table["remark"] = np.ones(3, "f4")  # a column that is left out
    lines = csv_lines(table)
    lines[-1] = lines[-1][:-3] + "é"
    assert convert(write_csv(tmp_path / "in", lines), tmp_path / "data") == 0
    found, _ = read(tmp_path / "data")
    assert_same_bits(found, spectra(3))


# ---- without the fast packages, damaged files ------------------------------------------------


@pytest.mark.parametrize(
    ("module", "package"),
    [((spectra_files, "igzip"), "isal"), ((usual_rows, "simdjson"), "pysimdjson")],
    ids=["isal", "pysimdjson"],
)
def test_without_a_fast_package_the_result_is_the_same_and_one_line_says_so(
    tmp_path, monkeypatch, capsys, module, package
):
    path = write_csv(tmp_path / "in", csv_lines(spectra(5)))
    assert convert(path, tmp_path / "with") == 0
    capsys.readouterr()
    monkeypatch.setattr(*module, None)
    assert convert(path, tmp_path / "without") == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "not installed" in line]
    assert len(told) == 1
    assert told[0].startswith(f"{package}: ")
    assert_same_bits(read(tmp_path / "without")[0], read(tmp_path / "with")[0])


def test_damage_anywhere_in_a_compressed_file_is_told_both_ways(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(csv_rows, "CHUNK_ROWS", 2)
    path = write_csv(tmp_path / "in", csv_lines(spectra(6)))
    whole = path.read_bytes()
    flipped = [n for n in np.linspace(0, len(whole) - 1, 9).astype(int) if n > 9]
    damaged = [whole[:n] + bytes([whole[n] ^ 255]) + whole[n + 1 :] for n in flipped]
    damaged += [whole[:n] for n in (5, 15, len(whole) // 3, len(whole) - 9, len(whole) - 1)]
    damaged += [whole + b"garbage"]
    for way in ("fast", "slow"):
        if way == "slow":
            slow_way(monkeypatch)
        for content in damaged:
            path.write_bytes(content)
            assert convert(path, tmp_path / way) == 1, (way, len(content))
            assert f"{path}: cannot be read to its end" in capsys.readouterr().err
            assert not shard_path(tmp_path / way, "xp", FID).exists()


def test_members_of_a_compressed_file_are_read_one_after_another(tmp_path):
    path = write_csv(tmp_path / "in", csv_lines(spectra(6)))
    text = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(text[:70_000]) + gzip.compress(text[70_000:]))
    assert convert(path, tmp_path / "data") == 0
    assert len(read(tmp_path / "data")[0]["source_id"]) == 6


def test_a_file_is_read_a_chunk_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_rows, "CHUNK_ROWS", 2)
    monkeypatch.setattr(usual_rows, "BATCH_ROWS", 1)
    held, table = [], csv_rows.CsvSpectra._table
    monkeypatch.setattr(
        csv_rows.CsvSpectra,
        "_table",
        lambda self, rows: held.append(self._file.tell()) or table(self, rows),
    )
    lines = csv_lines(spectra(7))
    path = write_csv(tmp_path / "in", lines)
    assert convert(path, tmp_path / "data") == 0
    ends = np.cumsum([len(line) + 1 for line in lines])
    assert held == [ends[-8], ends[-6], ends[-4], ends[-2]]
