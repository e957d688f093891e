"""Step 1 takes spectra of any form, by any name, and sorts their sources into shards."""

import bz2
import gzip
import zipfile

import h5py
import numpy as np
import pytest
from astropy.table import MaskedColumn, Table
from test_convert_xp_csv import FID, assert_equal_tables, csv_lines, read, spectra, write_csv

from pipeline.read import ShardReader
from pipeline.schema import load_release
from pipeline.select import list_fids, shard_path
from pipeline.spectra_merge import edges_of, fids_of
from tools import convert_xp_csv

DATALINK = "XP_CONTINUOUS-Gaia DR3 5937083312263887616"
RELEASE = load_release()


def convert(data, *inputs):
    return convert_xp_csv.main([*map(str, inputs), "--data-dir", str(data)])


def two_bands(n=4):
    """Spectra by ascending id, the second star without BP."""
    table = spectra(n)
    order = np.argsort(table["source_id"])
    table = {name: column[order] for name, column in table.items()}
    for name in ("coefficients", "coefficient_errors", "coefficient_correlations"):
        table[f"bp_{name}"][1] = np.nan
    for name in ("basis_function_id", "n_parameters"):
        table[f"bp_{name}"][1] = 0
    table["bp_standard_deviation"][1] = np.nan
    return table


def text(table):
    return ("\n".join(csv_lines(table)) + "\n").encode()


def masked(table):
    """As an Astropy table, what is missing masked."""
    columns = {}
    for name, column in table.items():
        missing = (table["bp_n_parameters"] == 0) & name.startswith("bp_")
        mask = np.broadcast_to(missing.reshape(-1, *[1] * (column.ndim - 1)), column.shape)
        columns[name] = MaskedColumn(np.where(mask, 7, column).astype(column.dtype), mask=mask)
    return Table(columns)


def ragged(table):
    """As an Astropy table with arrays of any length, empty where missing."""
    out = masked(table)
    for name, column in table.items():
        if column.ndim > 1:
            cells = np.empty(len(column), object)
            for i, row in enumerate(column):
                cells[i] = row[~np.isnan(row)]
            out[name] = cells
    return out


def write_hdf5(path, table, group="/"):
    with h5py.File(path, "w") as file:
        for name, column in table.items():
            file[f"{group}/{name}"] = column


def write_zip(path, table):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "some words")
        for i in range(len(table["source_id"])):
            one = {name: column[i : i + 1] for name, column in table.items()}
            archive.writestr(f"XP {i}.csv", text(one))


FORMS = {
    "csv": lambda path, table: path.write_bytes(text(table)),
    "csv.gz": lambda path, table: path.write_bytes(gzip.compress(text(table), 1)),
    "csv.bz2": lambda path, table: path.write_bytes(bz2.compress(text(table), 1)),
    "ecsv": lambda path, table: masked(table).write(path, format="ascii.ecsv"),
    "ecsv of commas": lambda path, table: masked(table).write(
        path, format="ascii.ecsv", delimiter=","
    ),
    "fits": lambda path, table: masked(table).write(path, format="fits"),
    "fits of lists": lambda path, table: ragged(table).write(path, format="fits"),
    "xml": lambda path, table: masked(table).write(path, format="votable"),
    "xml of lists": lambda path, table: ragged(table).write(path, format="votable"),
    "zip": write_zip,
    "hdf5": write_hdf5,
    "h5 with a group": lambda path, table: write_hdf5(path, table, "spectra"),
    "h5 of a table": lambda path, table: masked(table).write(
        path, path="t", format="hdf5", serialize_meta=True
    ),
}


def assert_same_spectra(found, table):
    """The same numbers; what no step reads may be missing in some forms."""
    assert found.keys() == table.keys()
    for name in table:
        np.testing.assert_array_equal(found[name], table[name], err_msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_spectra_by_any_name_becomes_the_same_shard(tmp_path, form):
    table = two_bands()
    path = tmp_path / f"{DATALINK}.{form.split()[0]}"
    FORMS[form](path, table)
    assert convert(tmp_path / "data", path) == 0
    assert list_fids(tmp_path / "data", "xp") == [FID]
    assert_same_spectra(read(tmp_path / "data")[0], table)


@pytest.mark.parametrize("form", ["csv", "hdf5", "fits"])
def test_a_fid_in_the_name_of_a_file_of_any_form_is_its_shard(tmp_path, form):
    table = spectra(4)
    path = tmp_path / f"XpContinuousMeanSpectrum_{FID}.{form}"
    FORMS[form](path, table)
    assert convert(tmp_path / "data", tmp_path) == 0
    assert_equal_tables(read(tmp_path / "data")[0], table)


@pytest.mark.parametrize("ending", ["csv", "csv.gz"])
def test_what_a_file_is_is_told_by_its_content_not_its_ending(tmp_path, ending):
    table = spectra(3)
    content = text(table) if ending == "csv.gz" else gzip.compress(text(table))
    path = tmp_path / f"XpContinuousMeanSpectrum_{FID}.{ending}"
    path.write_bytes(content)
    assert convert(tmp_path / "data", path) == 0
    assert_equal_tables(read(tmp_path / "data")[0], table)


def test_shards_that_others_made_may_end_in_hdf5(tmp_path):
    path = shard_path(tmp_path, "xp", FID)
    path.parent.mkdir()
    write_hdf5(path.with_suffix(".hdf5"), spectra(3))
    assert list_fids(tmp_path, "xp") == [FID]
    with ShardReader(shard_path(tmp_path, "xp", FID), "source_id") as reader:
        assert reader.n_rows == 3


def test_the_inputs_may_not_be_where_the_shards_are_written(tmp_path, capsys):
    path = shard_path(tmp_path, "xp", FID)
    path.parent.mkdir()
    write_hdf5(path.with_suffix(".hdf5"), spectra(3))
    assert convert(tmp_path, path.with_suffix(".hdf5")) == 2
    assert "is where the shards are written" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["csv", "fits", "zip"])
def test_sampled_shards_are_the_same_of_every_form(tmp_path, form):
    table = two_bands()
    write_csv(tmp_path / "in", csv_lines(table))
    FORMS[form](tmp_path / f"spectra.{form}", table)
    for way, path in (("a", tmp_path / "in"), ("b", tmp_path / f"spectra.{form}")):
        assert convert(tmp_path / way, path, "--sampled") == 0
    assert_equal_tables(read(tmp_path / "b")[0], read(tmp_path / "a")[0])


# ---- sorting ---------------------------------------------------------------------------------


def test_sources_of_a_bulk_files_range_go_into_its_shard_and_others_beside_it(tmp_path):
    table = two_bands(6)
    ids = table["source_id"]
    edge = int(ids[3] >> 43)
    parts = [{name: column[rows] for name, column in table.items()}
             for rows in (slice(0, 2), slice(2, 3), slice(3, 6))]  # fmt: skip
    fid = f"000000-{edge - 1:06d}"
    write_csv(tmp_path / "in", csv_lines(parts[0]), fid)
    (tmp_path / "in" / "a.csv").write_bytes(text(parts[1]))
    write_hdf5(tmp_path / "in" / "b.h5", parts[2])
    assert convert(tmp_path / "data", tmp_path / "in") == 0
    fids = list_fids(tmp_path / "data", "xp")
    assert fids == [fid, f"{edge:06d}-786431"]
    for name, rows in zip(fids, (slice(0, 3), slice(3, 6)), strict=True):
        found = read(tmp_path / "data", name)[0]
        assert_same_spectra(found, {k: column[rows] for k, column in table.items()})


@pytest.mark.parametrize("n", [3, 100_001, 3_000_000])
def test_the_ranges_of_sorted_sources_hold_their_pixels_and_do_not_overlap(n):
    pixels = np.linspace(0, 12 * 4**8 - 1, n).astype(int)
    taken = ["000000-003111", "500000-500099"]
    fids = fids_of(pixels, taken, RELEASE)
    used = sorted(set(fids), key=edges_of)
    first, last = np.array([edges_of(fid) for fid in used]).T
    assert (first[1:] > last[:-1]).all()
    low, high = np.array([edges_of(fid) for fid in used])[
        np.searchsorted(first, pixels, "right") - 1
    ].T
    assert ((low <= pixels) & (pixels <= high)).all()
    assert "000000-003111" in used
    assert np.bincount(np.unique(fids, return_inverse=True)[1]).max() < 150_000 or n == 3


def test_running_again_is_idle_and_a_new_file_makes_only_its_shard_again(tmp_path, capsys):
    table, folder = two_bands(4), tmp_path / "in"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.csv").write_bytes(text({k: v[i : i + 1] for k, v in table.items()}))
    assert convert(tmp_path / "data", folder) == 0
    capsys.readouterr()
    assert convert(tmp_path / "data", folder) == 0
    assert "1 already complete" in capsys.readouterr().err
    (folder / "3.csv").write_bytes(text({k: v[3:] for k, v in table.items()}))
    assert convert(tmp_path / "data", folder) == 0
    assert_same_spectra(read(tmp_path / "data")[0], table)


def test_making_a_shard_again_of_fewer_files_is_refused_for_the_sources_it_would_lose(
    tmp_path, capsys
):
    table = two_bands(4)
    for i, rows in enumerate((slice(0, 2), slice(2, 4))):
        (tmp_path / f"{i}.csv").write_bytes(text({k: v[rows] for k, v in table.items()}))
    assert convert(tmp_path / "data", tmp_path / "0.csv", tmp_path / "1.csv") == 0
    assert convert(tmp_path / "data", tmp_path / "1.csv") == 1
    assert "holds 2 sources that are in none of the files given now" in capsys.readouterr().err
    assert_same_spectra(read(tmp_path / "data")[0], table)
    assert convert(tmp_path / "data", tmp_path / "1.csv", "--overwrite") == 0
    assert len(read(tmp_path / "data")[0]["source_id"]) == 2


def test_a_file_that_fails_is_named_and_the_others_are_converted(tmp_path, capsys):
    table = two_bands(4)
    (tmp_path / "good.csv").write_bytes(text(table))
    (tmp_path / "bad.fits").write_bytes(b"SIMPLE  = " + bytes(500))
    (tmp_path / "page.csv").write_bytes(b"<!DOCTYPE html><p>Service unavailable")
    assert convert(tmp_path / "data", tmp_path) == 1
    shown = capsys.readouterr().err
    assert "failed beside: bad.fits, page.csv" in shown
    assert "a web page or XML" in shown
    assert "Traceback" not in shown
    assert_same_spectra(read(tmp_path / "data")[0], table)


def test_sources_in_the_range_of_a_shard_of_other_files_are_refused_by_name(tmp_path, capsys):
    table = two_bands(4)
    path = write_csv(tmp_path / "in", csv_lines(table))
    assert convert(tmp_path / "data", path) == 0
    (tmp_path / "more.csv").write_bytes(text(table))
    assert convert(tmp_path / "data", tmp_path / "more.csv") == 1
    assert f"in the shard {FID}, which was made of other files" in capsys.readouterr().err
    assert convert(tmp_path / "data", tmp_path / "more.csv", path) == 0


def test_sources_outside_the_pixels_of_a_files_name_are_told(tmp_path, capsys):
    path = write_csv(tmp_path / "in", csv_lines(two_bands(4)), "786430-786431")
    assert convert(tmp_path / "data", path) == 0
    assert "4 of 4 sources are not in the pixels" in capsys.readouterr().err


# ---- repeats ---------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["one file", "two files", "two forms"])
def test_a_source_that_comes_twice_is_kept_once_and_named(tmp_path, capsys, where):
    table = two_bands(4)
    again = {name: column[1:3] for name, column in table.items()}
    if where == "one file":
        both = {name: np.concatenate([column, again[name]]) for name, column in table.items()}
        (tmp_path / "a.csv").write_bytes(text(both))
    else:
        (tmp_path / "a.csv").write_bytes(text(table))
        form = "csv" if where == "two files" else "fits"
        FORMS[form](tmp_path / f"b.{form}", again)
    assert convert(tmp_path / "data", tmp_path) == 0
    found, attrs = read(tmp_path / "data")
    assert_same_spectra(found, table)
    assert attrs["n_repeated"] == 2
    assert attrs["repeated_source_id"] == " ".join(map(str, table["source_id"][1:3]))
    assert "2 sources were there more than once, the same each time" in capsys.readouterr().err


@pytest.mark.parametrize("bulk", [True, False])
def test_a_source_with_two_different_spectra_fails_by_name(tmp_path, capsys, bulk):
    table = two_bands(4)
    other = {name: column[2:3].copy() for name, column in table.items()}
    other["rp_coefficients"][0, 0] += 1
    both = {name: np.concatenate([column, other[name]]) for name, column in table.items()}
    if bulk:
        write_csv(tmp_path / "in", csv_lines(both))
    else:
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "a.csv").write_bytes(text(both))
    assert convert(tmp_path / "data", tmp_path / "in") == 1
    shown = capsys.readouterr().err
    assert f"source {table['source_id'][2]} is there twice with different spectra" in shown
    assert not shard_path(tmp_path / "data", "xp", FID).exists()


def test_repeats_in_a_bulk_file_leave_the_order_of_its_rows(tmp_path):
    table = spectra(5)
    rows = [4, 2, 4, 0, 2]
    path = write_csv(tmp_path / "in", csv_lines({k: v[rows] for k, v in table.items()}))
    assert convert(tmp_path / "data", path) == 0
    assert_equal_tables(read(tmp_path / "data")[0], {k: v[[4, 2, 0]] for k, v in table.items()})
