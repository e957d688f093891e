"""Spectra as people have them: what is understood is read, what is not is refused in one line."""

import gzip
import json

import h5py
import numpy as np
import pytest
from astropy.table import MaskedColumn, Table
from test_convert_xp_csv import (
    FID,
    assert_equal_tables,
    convert,
    csv_lines,
    read,
    spectra,
    write_csv,
)

from pipeline.select import shard_path


def write_plain(folder, content, ending="csv"):
    folder.mkdir(exist_ok=True)
    path = folder / f"XpContinuousMeanSpectrum_{FID}.{ending}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def text(lines):
    return "\n".join(lines) + "\n"


def with_arrays(table, write):
    """Lines of a CSV whose arrays are written by a function of the array."""
    rows = []
    for i in range(len(table["source_id"])):
        cells = [
            '"' + write(column[i]).replace('"', '""') + '"' if column.ndim > 1 else str(column[i])
            for column in table.values()
        ]
        rows.append(",".join(cells))
    return [",".join(table), *rows]


def all_of_it(array, **options):
    with np.printoptions(threshold=10**6, floatmode="unique", **options):
        return str(array)


ARRAYS = {
    "braces": lambda a: "{" + ", ".join(map(str, a)) + "}",
    "angles and bars": lambda a: "<" + "|".join(map(str, a)) + ">",
    "semicolons": lambda a: "[" + "; ".join(map(str, a)) + "]",
    "spaces over lines": all_of_it,
    "JSON over lines": lambda a: json.dumps([float(x) for x in a], indent=1),
    "repr": lambda a: f"array({[float(x) for x in a]}, dtype=float64)",
    "NumPy's numbers": lambda a: "[" + ", ".join(f"np.float64({x})" for x in a) + "]",
}


@pytest.mark.parametrize("dialect", ARRAYS)
def test_arrays_of_any_usual_dialect_are_read(tmp_path, dialect):
    table = spectra(4)
    path = write_plain(tmp_path / "in", text(with_arrays(table, ARRAYS[dialect])))
    assert convert(path, tmp_path / "data") == 0
    found = read(tmp_path / "data")[0]
    for name, column in table.items():
        np.testing.assert_allclose(found[name], column, rtol=3e-8, err_msg=name)


@pytest.mark.parametrize("word", ["null", "NaN", "None", "--", "masked", "N/A", "NULL", ""])
def test_missing_elements_of_arrays_in_any_word_are_nan_and_the_others_stay(tmp_path, word):
    table = spectra(3)
    table["rp_coefficients"][1, 7] = np.nan
    lines = [line.replace("null", word) for line in csv_lines(table, ecsv=False)]
    assert convert(write_plain(tmp_path / "in", text(lines)), tmp_path / "data") == 0
    assert_equal_tables(read(tmp_path / "data")[0], table)


@pytest.mark.parametrize("mark", ["\t", ";", "|"])
def test_other_delimiters_than_commas_are_read(tmp_path, mark):
    table = spectra(3)
    parts = [line.split('"') for line in csv_lines(table, ecsv=False)]
    lines = ['"'.join(p if i % 2 else p.replace(",", mark) for i, p in enumerate(row))
             for row in parts]  # fmt: skip
    assert convert(write_plain(tmp_path / "in", text(lines)), tmp_path / "data") == 0
    assert_equal_tables(read(tmp_path / "data")[0], table)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["csv", "csv.gz"])
def test_a_byte_order_mark_windows_lines_and_blank_lines_change_nothing(tmp_path, pack):
    table = spectra(3)
    content = "\ufeff" + "\r\n".join([*csv_lines(table), "", ""])
    path = write_plain(tmp_path / "in", pack(content.encode()))
    assert convert(path, tmp_path / "data") == 0
    found, attrs = read(tmp_path / "data")
    assert_equal_tables(found, table)
    assert attrs["unusable_lines"] == ""


def test_names_of_columns_may_be_in_capitals(tmp_path):
    table = spectra(3)
    lines = csv_lines(table, ecsv=False)
    lines[0] = lines[0].upper()
    assert convert(write_plain(tmp_path / "in", text(lines)), tmp_path / "data") == 0
    assert_equal_tables(read(tmp_path / "data")[0], table)


def test_the_columns_that_the_fluxes_need_are_enough(tmp_path):
    table = {
        name: column
        for name, column in spectra(3).items()
        if name == "source_id" or name.split("_", 1)[1].startswith(("coefficient", "n_param"))
    }
    assert convert(write_csv(tmp_path / "in", csv_lines(table)), tmp_path / "data") == 0
    assert_equal_tables(read(tmp_path / "data")[0], table)


# ---- refused ---------------------------------------------------------------------------------


def refused(path, tmp_path, capsys, *words, status=1):
    assert convert(path, tmp_path / "data") == status
    shown = capsys.readouterr().err
    for word in words:
        assert word in shown
    assert "Traceback" not in shown
    assert not shard_path(tmp_path / "data", "xp", FID).exists()


def test_arrays_printed_by_numpy_are_refused_as_printed(tmp_path, capsys):
    lines = with_arrays(spectra(3), str)
    path = write_plain(tmp_path / "in", text(lines))
    refused(path, tmp_path, capsys, "3 of 3 cells of", "were printed, not stored")


@pytest.mark.parametrize("n", [1, 3, 15])
def test_ids_written_as_floats_are_refused_with_what_to_do(tmp_path, capsys, n):
    table = spectra(n)
    lines = csv_lines(table | {"source_id": table["source_id"].astype(float)}, ecsv=False)
    path = write_plain(tmp_path / "in", text(lines))
    refused(path, tmp_path, capsys, "a float, which has lost digits", "write ids as 64-bit")


@pytest.mark.parametrize("cut", [40, 5_000, 100_000])
def test_a_plain_file_that_ends_within_a_row_is_truncated(tmp_path, capsys, cut):
    content = text(csv_lines(spectra(3))).encode()
    path = write_plain(tmp_path / "in", content[:-cut])
    refused(path, tmp_path, capsys, "ends within the row", "truncated", "fetch it again")


def unreadable(table, lines):
    return [line.replace('"[', '"[x', 1) for line in lines]


def full_matrix(table, lines):
    n = len(table["source_id"])
    table = table | {"bp_coefficient_correlations": np.tile(np.eye(55).ravel(), (n, 1))}
    return csv_lines(table, ecsv=False)


def no_errors(table, lines):
    zeros = 0 * table["rp_coefficient_errors"]
    return csv_lines(table | {"rp_coefficient_errors": zeros}, ecsv=False)


def no_numbers(table, lines):
    return [line.replace(",56,55,", ",56,,") for line in lines]


def other_unit(table, lines):
    percent = 100 * table["bp_coefficient_correlations"]
    return csv_lines(table | {"bp_coefficient_correlations": percent}, ecsv=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (unreadable, "12 of 12 cells of bp_coefficients cannot be read, e.g. '[x"),
        (full_matrix, "another length: 3025 numbers, expected 1485 of Gaia DR3"),
        (no_errors, "12 of 12 spectra of RP have missing or impossible numbers"),
        (no_numbers, "12 of 12 spectra of BP have missing or impossible numbers"),
        (other_unit, "12 of 12 spectra of BP have missing or impossible numbers"),
    ],
)
def test_a_form_that_is_not_understood_is_no_damage_of_rows(tmp_path, capsys, change, words):
    table = spectra(12)
    lines = change(table, csv_lines(table, ecsv=False))
    refused(write_plain(tmp_path / "in", text(lines)), tmp_path, capsys, words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("<html>not found</html>", "a web page"),
        ("source_id\n1\n".encode("utf-16"), "save it as UTF-8"),
        (b"\x00\x01\x02" * 99, "cannot be read to its end"),
        ("source_id,wavelength,flux\n1,2,3\n", "sampled spectra do not serve"),
    ],
)
def test_what_holds_no_continuous_spectra_is_refused_by_what_it_is(
    tmp_path, capsys, content, words
):
    refused(write_plain(tmp_path / "in", content), tmp_path, capsys, words)


# ---- named -----------------------------------------------------------------------------------


def test_a_row_without_an_id_among_others_is_left_out_and_named(tmp_path, capsys):
    table = spectra(6)
    lines = csv_lines(table, ecsv=False)
    lines[3] = lines[3].replace(str(table["source_id"][2]), "null", 1)
    lines[5] = lines[5][:2000]  # its id can be told
    path = write_plain(tmp_path / "in", text(lines))
    assert convert(path, tmp_path / "data") == 0
    found, attrs = read(tmp_path / "data")
    np.testing.assert_array_equal(found["source_id"], np.delete(table["source_id"], [2, 4]))
    assert attrs["unusable_lines"] == "4 6"
    assert "source_id is 'null'" in attrs["unusable_reasons"]
    shown = capsys.readouterr().err
    for words in (f"line 6 left out (source {table['source_id'][4]})", "line 4 left out"):
        assert words in shown


def test_a_bad_cell_costs_its_band_alone_and_is_named_in_the_attributes(tmp_path):
    table = spectra(6)
    lines = csv_lines(table, ecsv=False)
    lines[2] = lines[2].replace(",57,55,", ",57,x,", 1)
    assert convert(write_plain(tmp_path / "in", text(lines)), tmp_path / "data") == 0
    found, attrs = read(tmp_path / "data")
    assert found["rp_n_parameters"].tolist() == [55, 0, 55, 55, 55, 55]
    np.testing.assert_array_equal(found["bp_coefficients"], table["bp_coefficients"])
    assert attrs["unreadable_cells"] == f"rp_n_parameters: {table['source_id'][1]}"


def test_an_open_quote_costs_its_row_alone(tmp_path):
    table = spectra(6)
    lines = csv_lines(table, ecsv=False)
    lines[3] = lines[3].replace('"[', '"["', 1)
    assert convert(write_plain(tmp_path / "in", text(lines)), tmp_path / "data") == 0
    found = read(tmp_path / "data")[0]
    np.testing.assert_array_equal(found["source_id"], np.delete(table["source_id"], 2))


# ---- tables ----------------------------------------------------------------------------------


def test_masked_ids_of_a_table_are_left_out_and_named_not_taken_for_another(tmp_path, capsys):
    table = spectra(5)
    ids = np.where(np.arange(5) == 3, table["source_id"][0], table["source_id"])
    masked = Table(table | {"source_id": MaskedColumn(ids, mask=np.arange(5) == 3)})
    path = tmp_path / f"XpContinuousMeanSpectrum_{FID}.fits"
    masked.write(path)
    assert convert(path, tmp_path / "data") == 0
    found, attrs = read(tmp_path / "data")
    np.testing.assert_array_equal(found["source_id"], np.delete(table["source_id"], 3))
    assert attrs["unusable_reasons"] == "row 4: source_id is masked"
    assert "row 4 left out: source_id is masked" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["f8", "i4"])
def test_ids_of_a_table_of_a_type_that_loses_digits_are_refused(tmp_path, capsys, dtype):
    table = spectra(3)
    path = tmp_path / f"XpContinuousMeanSpectrum_{FID}.h5"
    with h5py.File(path, "w") as file:
        for name, column in table.items():
            file[name] = column.astype(dtype) if name == "source_id" else column
    refused(path, tmp_path, capsys, "which has lost digits: write ids as 64-bit integers")


def test_a_damaged_hdf5_file_fails_clearly(tmp_path, capsys):
    path = tmp_path / f"XpContinuousMeanSpectrum_{FID}.hdf5"
    with h5py.File(path, "w") as file:
        for name, column in spectra(3).items():
            file[name] = column
    path.write_bytes(path.read_bytes()[:20_000])
    refused(path, tmp_path, capsys, "truncated or damaged", "fetch it again")


def test_columns_of_another_number_of_rows_are_refused(tmp_path, capsys):
    path = tmp_path / f"XpContinuousMeanSpectrum_{FID}.hdf5"
    with h5py.File(path, "w") as file:
        for name, column in spectra(3).items():
            file[name] = column[:2] if name == "rp_coefficients" else column
    refused(path, tmp_path, capsys, "rp_coefficients has the shape (2, 55), but there are 3 ids")


@pytest.mark.parametrize("fill", [0.0, -9999.0])
def test_a_missing_band_filled_with_one_number_is_missing_not_a_form_that_is_wrong(tmp_path, fill):
    table = spectra(1)
    for name, column in table.items():
        if name.startswith("bp_"):
            column[:] = fill if column.ndim > 1 else 0
    path = tmp_path / f"XpContinuousMeanSpectrum_{FID}.hdf5"
    with h5py.File(path, "w") as file:
        for name, column in table.items():
            file[name] = column
    assert convert(path, tmp_path / "data") == 0
    assert read(tmp_path / "data")[0]["bp_n_parameters"].tolist() == [0]
