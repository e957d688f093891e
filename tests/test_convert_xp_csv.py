"""The archive's CSV files of spectra: every number arrives, every odd row is accounted for."""

import gzip
from pathlib import Path

import h5py
import numpy as np
import pytest

from demo import build_sky
from pipeline import csv_rows
from pipeline.schema import load_release, resolved
from pipeline.select import list_fids, shard_path
from tools import convert_xp_csv
from xp_utils import load_xp_basis, sample_xp

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / "shared" / "xp_continuous" / "real_xp_continuous.h5"
FID = "000000-786431"
ECSV_TYPES = {"i8": "int64", "i2": "int16", "f4": "float32", "f8": "float64"}


def cell(value):
    """A value as the archive writes it."""
    if np.ndim(value):
        finite = np.isfinite(value)
        if not finite.any():
            return '"[]"'
        return '"[' + ",".join(map(str, value)).replace("nan", "null") + ']"'
    return "null" if isinstance(value, np.floating) and np.isnan(value) else str(value)


def ecsv_head(table):
    lines = ["# %ECSV 1.0", "# ---", "# delimiter: ','", "# datatype:"]
    for name, column in table.items():
        kind = ECSV_TYPES[column.dtype.str[1:]]
        lines += ["# -", f"#   name: {name}"]
        if column.ndim > 1:
            lines += ["#   datatype: string", f"#   subtype: {kind}[null]"]
        else:
            lines += [f"#   datatype: {kind}"]
        lines += ["#   description: what it is"]
    return lines


def csv_lines(table, ecsv=True):
    n = len(table["source_id"])
    rows = [",".join(cell(column[i]) for column in table.values()) for i in range(n)]
    return [*(ecsv_head(table) if ecsv else []), ",".join(table), *rows]


def write_csv(folder, lines, fid=FID):
    folder.mkdir(exist_ok=True)
    path = folder / f"XpContinuousMeanSpectrum_{fid}.csv.gz"
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), 1))
    return path


def spectra(n=12):
    """The first n demo stars as the columns of the archive's table."""
    stars, templates, _ = build_sky.read_stars(ROOT / "demo" / "stars.h5")
    table = {"source_id": stars["source_id"][:n], "solution_id": np.full(n, 4545469030156206080)}
    for band, basis_id in (("bp", 56), ("rp", 57)):
        template = templates[f"{band}_correlation_template"]
        table |= {
            f"{band}_basis_function_id": np.full(n, basis_id, "i2"),
            f"{band}_n_parameters": np.full(n, 55, "i2"),
            f"{band}_standard_deviation": np.linspace(0.9, 2, n).astype("f4"),
            f"{band}_coefficients": stars[f"{band}_coefficients"][:n],
            f"{band}_coefficient_errors": stars[f"{band}_coefficient_errors"][:n].astype("f4"),
            f"{band}_coefficient_correlations": np.tile(template.astype("f4"), (n, 1)),
        }
    return table


def convert(path, data, *options):
    return convert_xp_csv.main([str(path), "--data-dir", str(data), *map(str, options)])


def read(data, fid=FID):
    with h5py.File(shard_path(data, "xp", fid)) as file:
        return {name: file[name][()] for name in file}, dict(file.attrs)


def assert_equal_tables(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == expected[name].dtype, name
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_every_number_of_the_demo_stars_arrives_unchanged(tmp_path):
    table = spectra()
    assert convert(write_csv(tmp_path / "in", csv_lines(table)), tmp_path / "data") == 0
    found, attrs = read(tmp_path / "data")
    assert_equal_tables(found, table)
    assert attrs["complete"]
    assert attrs["release"] == "dr3"
    basis = load_xp_basis(load_release())
    np.testing.assert_array_equal(sample_xp(found, basis).flux, sample_xp(table, basis).flux)


def test_chunks_do_not_change_the_result(tmp_path, monkeypatch):
    table = spectra(11)
    monkeypatch.setattr(csv_rows, "CHUNK_ROWS", 4)
    assert convert(write_csv(tmp_path / "in", csv_lines(table)), tmp_path / "data") == 0
    assert_equal_tables(read(tmp_path / "data")[0], table)


@pytest.mark.skipif(not REAL.is_file(), reason="../shared/xp_continuous is not here")
def test_real_rows_of_the_archive_arrive_unchanged_with_the_missing_band_as_nan(tmp_path):
    with h5py.File(REAL) as file:
        table = {name: file[name][()] for name in file}
    table = {"source_id": table.pop("source_id"), **table}
    assert convert(write_csv(tmp_path / "in", csv_lines(table)), tmp_path / "data") == 0
    found, _ = read(tmp_path / "data")
    assert_equal_tables(found, table)
    missing = found["source_id"] == 5405570973190252288
    assert np.isnan(found["bp_coefficients"][missing]).all()
    assert found["bp_n_parameters"][missing] == 0


def test_a_file_without_ecsv_header_gives_the_same(tmp_path):
    table = spectra(3)
    assert convert(write_csv(tmp_path / "in", csv_lines(table, ecsv=False)), tmp_path / "d") == 0
    assert_equal_tables(read(tmp_path / "d")[0], table)


def test_a_file_without_rows_becomes_a_shard_without_rows(tmp_path):
    table = {name: column[:0] for name, column in spectra(2).items()}
    assert convert(write_csv(tmp_path / "in", csv_lines(table)), tmp_path / "data") == 0
    assert_equal_tables(read(tmp_path / "data")[0], table)


@pytest.mark.parametrize("missing", ['"[]"', "null", '""', '"()"'])
def test_every_way_to_write_a_missing_array_is_nan(tmp_path, missing):
    lines = csv_lines(spectra(3))
    cells = lines[-1].split('"')
    cells[1] = "@"  # the first array of the last star: bp_coefficients
    lines[-1] = '"'.join(cells).replace('"@"', missing)
    assert convert(write_csv(tmp_path / "in", lines), tmp_path / "data") == 0
    found, _ = read(tmp_path / "data")
    assert np.isnan(found["bp_coefficients"]).any(axis=1).tolist() == [False, False, True]
    assert np.isfinite(found["rp_coefficients"]).all()


def test_null_elements_of_an_array_are_nan_and_the_others_stay(tmp_path):
    table = spectra(3)
    table["rp_coefficients"][1, 7] = np.nan
    assert convert(write_csv(tmp_path / "in", csv_lines(table)), tmp_path / "data") == 0
    assert_equal_tables(read(tmp_path / "data")[0], table)


def test_the_shard_has_the_columns_of_the_schema_and_the_log_names_the_others(tmp_path):
    table = spectra(3)
    table["bp_invented"] = np.ones(3, "f4")
    assert convert(write_csv(tmp_path / "in", csv_lines(table)), tmp_path / "data") == 0
    found, _ = read(tmp_path / "data")
    del table["bp_invented"]
    assert_equal_tables(found, table)
    declared = resolved("xp")
    assert set(found) <= set(declared)
    assert all(name in found or data.optional for name, data in declared.items())
    log = (tmp_path / "data" / "logs" / "convert_xp_csv.log").read_text()
    assert "columns left out: bp_invented" in log


@pytest.mark.parametrize(
    ("old", "new"), [('"[', '"[1.5,'), ('"[', '"[x')], ids=["too long", "not numbers"]
)
def test_an_odd_array_is_nan_and_its_star_is_kept_and_named(tmp_path, capsys, old, new):
    table = spectra(5)
    lines = csv_lines(table)
    lines[-3] = lines[-3].replace(old, new, 1)
    assert convert(write_csv(tmp_path / "in", lines), tmp_path / "data") == 0
    found, _ = read(tmp_path / "data")
    np.testing.assert_array_equal(found["source_id"], table["source_id"])
    assert (
        np.isnan(found["bp_coefficients"]).all(axis=1).tolist()
        == [False] * 2 + [True] + [False] * 2
    )
    np.testing.assert_array_equal(found["rp_coefficients"][3], table["rp_coefficients"][3])
    assert str(table["source_id"][2]) in capsys.readouterr().err


@pytest.mark.parametrize("written", ["55.0", " 55"])
def test_whole_numbers_may_be_written_as_floats(tmp_path, written):
    lines = [line.replace(",55,", f",{written},") for line in csv_lines(spectra(3))]
    assert convert(write_csv(tmp_path / "in", lines), tmp_path / "data") == 0
    assert_equal_tables(read(tmp_path / "data")[0], spectra(3))


@pytest.mark.parametrize("written", ["", "null", "NULL", "NaN", "None", "--", "\\N"])
def test_every_way_to_write_a_missing_number_is_zero_or_nan(tmp_path, written):
    table = spectra(3)
    lines = csv_lines(table)
    lines[-1] = lines[-1].replace(",56,55,2.0,", f",{written},{written},{written},")
    assert convert(write_csv(tmp_path / "in", lines), tmp_path / "data") == 0
    found, _ = read(tmp_path / "data")
    assert found["bp_n_parameters"].tolist() == [55, 55, 0]
    assert found["bp_basis_function_id"].tolist() == [56, 56, 0]
    assert np.isnan(found["bp_standard_deviation"]).tolist() == [False, False, True]
    np.testing.assert_array_equal(found["rp_coefficients"], table["rp_coefficients"])


def test_a_bad_cell_that_no_step_needs_costs_only_that_cell(tmp_path, capsys):
    table = spectra(3)
    lines = csv_lines(table)
    lines[-2] = lines[-2].replace("4545469030156206080", "1e400", 1)
    assert convert(write_csv(tmp_path / "in", lines), tmp_path / "data") == 0
    found, _ = read(tmp_path / "data")
    np.testing.assert_array_equal(found["bp_coefficients"], table["bp_coefficients"])
    assert found["solution_id"][1] == 0
    assert str(table["source_id"][1]) in capsys.readouterr().err


# ---- another release -------------------------------------------------------------------------


def cut(table, band, n):
    """The columns of a band as they are with n coefficients."""
    widths = {
        "coefficients": n,
        "coefficient_errors": n,
        "coefficient_correlations": n * (n - 1) // 2,
    }
    table |= {f"{band}_{name}": table[f"{band}_{name}"][:, :w] for name, w in widths.items()}
    table[f"{band}_n_parameters"] = np.full(len(table["source_id"]), n, "i2")
    return table


def with_basis(table, band, basis_id):
    return table | {f"{band}_basis_function_id": np.full(len(table["source_id"]), basis_id, "i2")}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (cut(spectra(4), "bp", 51), "bp_coefficients of source {} has 51 numbers, expected 55"),
        (
            with_basis(spectra(4), "rp", 62),
            "rp_basis_function_id of source {} has 62 as its id, expected 57",
        ),
    ],
    ids=["fewer coefficients", "another basis"],
)
def test_spectra_of_another_release_fail_the_file_by_name(tmp_path, capsys, table, message):
    path = write_csv(tmp_path / "in", csv_lines(table))
    assert convert(path, tmp_path / "data") == 1
    shown = capsys.readouterr().err
    assert f"{path}: " + message.format(table["source_id"][0]) in shown
    assert "of Gaia DR3: spectra of another release; give its --release" in shown
    assert not shard_path(tmp_path / "data", "xp", FID).exists()


def test_one_spectrum_of_another_release_among_many_fails_the_file(tmp_path, capsys):
    table, other = spectra(4), cut(spectra(4), "bp", 51)
    lines = csv_lines(table)
    lines[-2] = csv_lines(other)[-2]
    assert convert(write_csv(tmp_path / "in", lines), tmp_path / "data") == 1
    assert f"source {table['source_id'][2]} has 51 numbers" in capsys.readouterr().err


def test_a_missing_band_is_of_any_release(tmp_path):
    table = with_basis(spectra(3), "bp", 0)
    for name in ("coefficients", "coefficient_errors", "coefficient_correlations"):
        table[f"bp_{name}"][:] = np.nan
    table["bp_n_parameters"][:] = 0
    assert convert(write_csv(tmp_path / "in", csv_lines(table)), tmp_path / "data") == 0
    assert_equal_tables(read(tmp_path / "data")[0], table)


# ---- lines that are no rows, damaged files ---------------------------------------------------


def test_a_line_that_is_no_row_is_left_out_and_listed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(csv_rows, "CHUNK_ROWS", 2)
    table = spectra(6)
    lines = csv_lines(table)
    lines.insert(len(lines) - 3, "1234,oops")
    assert convert(write_csv(tmp_path / "in", lines), tmp_path / "data") == 0
    found, attrs = read(tmp_path / "data")
    assert_equal_tables(found, table)
    assert attrs["unusable_lines"] == str(len(lines) - 3)
    assert "2 cells instead of" in capsys.readouterr().err


def test_too_many_lines_that_are_no_rows_fail_the_file(tmp_path, capsys):
    lines = csv_lines(spectra(3)) + ["1,2"] * 11
    assert convert(write_csv(tmp_path / "in", lines), tmp_path / "data") == 1
    assert not shard_path(tmp_path / "data", "xp", FID).exists()
    assert "11 lines are no rows" in capsys.readouterr().err


def damage_truncate(data):
    return data[: len(data) // 2]


def damage_flip(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip, lambda data: b""])
def test_a_damaged_file_fails_clearly_and_the_others_are_converted(tmp_path, capsys, damage):
    table, folder = spectra(6), tmp_path / "in"
    bad = write_csv(folder, csv_lines(table), "000000-000009")
    bad.write_bytes(damage(bad.read_bytes()))
    write_csv(folder, csv_lines(table), "000010-786431")
    assert convert(folder, tmp_path / "data") == 1
    assert list_fids(tmp_path / "data", "xp") == ["000010-786431"]
    assert list(shard_path(tmp_path / "data", "xp", FID).parent.glob(".*")) == []
    err = capsys.readouterr().err
    assert str(bad) in err
    assert "Traceback" not in err
    write_csv(folder, csv_lines(table), "000000-000009")
    assert convert(folder, tmp_path / "data") == 0
    assert_equal_tables(read(tmp_path / "data", "000000-000009")[0], table)


def test_a_missing_column_is_named(tmp_path, capsys):
    table = spectra(2)
    del table["rp_coefficient_errors"]
    assert convert(write_csv(tmp_path / "in", csv_lines(table)), tmp_path / "data") == 1
    assert "no column rp_coefficient_errors" in capsys.readouterr().err


def test_a_finished_shard_is_skipped_also_when_other_files_are_added(tmp_path, capsys):
    table, folder = spectra(3), tmp_path / "in"
    write_csv(folder, csv_lines(table), "000000-000009")
    assert convert(folder, tmp_path / "data") == 0
    before = shard_path(tmp_path / "data", "xp", "000000-000009").stat().st_mtime_ns
    write_csv(folder, csv_lines(table), "000010-786431")
    assert convert(folder, tmp_path / "data") == 0
    assert "1 done, 1 already complete" in capsys.readouterr().err
    assert shard_path(tmp_path / "data", "xp", "000000-000009").stat().st_mtime_ns == before


def test_partitions_convert_every_file_once(tmp_path):
    table, folder = spectra(1), tmp_path / "in"
    fids = [f"{i:06d}-{i:06d}" for i in range(6)]
    for fid in fids:
        write_csv(folder, csv_lines(table), fid)
    counts = []
    for part in range(2):
        assert convert(folder, tmp_path / str(part), "--partition", 2, part) == 0
        counts.append(list_fids(tmp_path / str(part), "xp"))
    assert sorted(counts[0] + counts[1]) == fids


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: folder / "absent.csv.gz",
        lambda folder: folder,
    ],
    ids=["absent file", "empty folder"],
)
def test_unusable_arguments_are_usage_errors_in_one_line(tmp_path, capsys, make):
    folder = tmp_path / "in"
    folder.mkdir()
    assert convert(make(folder), tmp_path / "data") == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
