"""Lists of ids as people have them: an entry is an id, a repeat, missing, or named with why."""

import bz2
import gzip

import h5py
import pandas
import pytest
from astropy.table import MaskedColumn, Table

from pipeline.errors import UsageError
from pipeline.id_lists import read_ids
from pipeline.schema import load_release

RELEASE = load_release()
A, B = 5853498713190525697, 4295806720  # one that a float would not hold
BOTH = [B, A]


def ids_in(folder, content, name="list.txt", column=None):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_ids(path, RELEASE, column)


TEXTS = {
    "an id a line": f"{A}\n{B}\n",
    "with the ends of lines of Windows and a mark at the start": f"\ufeff{A}\r\n{B}\r\n",
    "without an end of the last line": f"{A}\n{B}",
    "with comments and a header": f"# my stars\n\nstars\n{A}\n# bright\n{B}\n",
    "in one line": f"{A}, {B}",
    "of designations": f"Gaia DR3 {A}\nGaia EDR3 {B}\n",
    "of designations with a header": f"name\nGaia DR3 {A}\ngaia_dr3_{B}\n",
    "of quoted designations": f'designation,ra\n"Gaia DR3 {A}",1\n"Gaia DR3 {B}",2\n',
    "csv": f"ra,source_id\n1.5,{A}\n2,{B}\n",
    "csv with spaces": f"ra, source_id\n1.5, {A}\n2, {B}\n",
    "csv of semicolons and quotes": f'"source_id";"x"\n"{A}";"1"\n"{B}";"2"\n',
    "csv of tabs": f"x\tGAIAEDR3_SOURCE_ID\nHD 1\t{A}\nHD 2\t{B}\n",
    "csv with cells over lines": f'x,source_id\n"[1\n2]",{A}\n"[3\n4]",{B}\n',
    "columns with a header in a comment": f"# source_id ra\n{A} 1.5\n{B} 2.5\n",
    "csv with a header in a comment": f"# ra,source_id\n1.5,{A}\n2.5,{B}\n",
    "columns without names": f"1.5 {A} 12\n2.5 {B} 13\n",
    "fixed width": f"| source_id | ra |\n| {A} | 1 |\n| {B} | 2 |\n",
    "the column of this release": f"source_id,dr2_source_id,GaiaDR3\n1,2,{A}\n3,4,{B}\n",
    "of VizieR": f"DR3Name,Source,DR2Name\nGaia DR3 {A},1,Gaia DR2 7\nGaia DR3 {B},2,\n",
    "the plain column before the designation": f"designation,source_id\nx,{A}\ny,{B}\n",
}


@pytest.mark.parametrize("form", TEXTS)
def test_a_text_is_read_in_any_way_it_is_written(tmp_path, form):
    found = ids_in(tmp_path, TEXTS[form])
    assert found.ids.tolist() == BOTH
    assert (found.n_entries, found.n_missing, found.n_repeated, found.refused) == (2, 0, 0, [])


def test_lines_of_units_and_rules_below_the_names_are_no_ids_and_no_faults(tmp_path):
    found = ids_in(tmp_path, f"#Catalogue\nSource\tRA\n \tdeg\n-----\t---\n{A}\t1.5\n{B}\t2\n")
    assert (found.ids.tolist(), found.n_missing, found.refused) == (BOTH, 2, [])


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_packed_lists_are_unpacked(tmp_path, pack):
    assert ids_in(tmp_path, pack(f"{A}\n{B}\n".encode())).ids.tolist() == BOTH


def write_hdf5(table, path):
    with h5py.File(path, "w") as file:
        file["catalogue/gdr3_source_id"] = table["SOURCE_ID"].filled(0)


TABLES = {
    "fits": lambda table, path: table.write(path),
    "xml": lambda table, path: table.write(path, format="votable"),
    "ecsv": lambda table, path: table.write(path, format="ascii.ecsv"),
    "parquet": lambda table, path: table.write(path, format="parquet"),
    "hdf5": lambda table, path: table.write(path, path="t", format="hdf5", serialize_meta=True),
    "h5": write_hdf5,
}


@pytest.mark.parametrize("form", TABLES)
def test_masked_ids_of_a_table_of_any_form_are_missing(tmp_path, form):
    ids = MaskedColumn([A, 7, B, A], mask=[False, True, False, False])
    TABLES[form](Table({"ra": [1.0, 2, 3, 4], "SOURCE_ID": ids}), tmp_path / f"list.{form}")
    found = read_ids(tmp_path / f"list.{form}", RELEASE)
    assert found.ids.tolist() == BOTH
    assert (found.n_entries, found.n_missing, found.n_repeated) == (4, 1, 1)


def test_integers_of_pandas_with_gaps_keep_their_digits(tmp_path):
    table = pandas.DataFrame({"source_id": pandas.array([A, None, B], dtype="Int64")})
    table.to_parquet(tmp_path / "list.parquet")
    found = read_ids(tmp_path / "list.parquet", RELEASE)
    assert (found.ids.tolist(), found.n_missing) == (BOTH, 1)


@pytest.mark.parametrize("write", ["fits", "csv", "hdf5"])
def test_ids_that_are_floats_are_refused_with_what_to_do(tmp_path, write):
    path = tmp_path / f"list.{write}"
    if write == "csv":  # as pandas writes integers with gaps
        pandas.DataFrame({"source_id": [A, None, B]}).to_csv(path, index=False)
    else:
        TABLES[write](Table({"source_id": [float(A), float(B)]}), path)
    with pytest.raises(UsageError, match=r"los[te]+ digits: write .*64-bit integers"):
        read_ids(path, RELEASE)


def test_every_entry_of_a_list_is_counted_once(tmp_path):
    lines = [A, "", B, A, f"Gaia DR3 {B}", "null", "HD 12", "5.8e18", 2**63 - 1, "-1", "x1"]
    lines += range(B, B + 6)
    found = ids_in(tmp_path, "\n".join(map(str, lines)))
    assert found.n_entries == len(lines)
    assert found.n_entries == len(found.ids) + sum(found.counts().values())
    assert found.counts() == {"empty or missing": 3, "repeated": 3, "no id of a source": 4}
    assert [place for place, _, _ in found.refused] == ["line 7", "line 8", "line 9", "line 11"]
    assert "lost digits" in found.refused[1][2]
    assert "no id of Gaia DR3" in found.refused[2][2]


@pytest.mark.parametrize(("text", "column", "words"), [
    ("", None, "empty"),
    ("\n# nothing\n", None, "no ids in it"),
    ("source_id\n\n", None, "no id in source_id"),
    (f"Gaia DR2 {A}\nGaia DR2 {B}\n", None, "of another release than Gaia DR3"),
    (f"dr2_source_id\n{A}\n", None, "not evident, it has dr2_source_id"),
    (f"a,b\n{A},1\n", None, "not evident, it has a, b: say it with --id-column NAME"),
    (f"gaia_source_id,source_id\n{A},{B}\n", None, "several columns may (gaia_source_id, source"),
    (f"{A},{B}\n{B},{A}\n", None, "2 of which may be ids: say which with --id-column NUMBER"),
    (f"{A},{B}\n{B},{A}\n", "3", "give --id-column a number, 1 to 2"),
    (f"a,b\n{A},1\n", "c", "no column c (--id-column); it has a, b"),
    ("HD 1\nHD 2\nHD 3\n", None, "0 of which may be ids"),
    ("\ufeffsource_id".encode("utf-16"), None, "save it as UTF-8"),
    (b"PK\3\4" + bytes(50), None, "save it as CSV"),
    (b"<!DOCTYPE html><p>Log in", None, "a web page"),
])  # fmt: skip
def test_what_is_no_list_is_refused_in_one_line(tmp_path, text, column, words):
    with pytest.raises(UsageError) as error:
        ids_in(tmp_path, text, column=column)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "column"), [
    (f"a,b\n{A},1\n{B},2\n", "A"),
    (f"{A},7{B}\n{B},7{A}\n", "1"),
    (f"gaia_source_id,source_id\n{A},1\n{B},2\n", "gaia_source_id"),
])  # fmt: skip
def test_the_column_that_is_said_is_taken(tmp_path, text, column):
    assert ids_in(tmp_path, text, column=column).ids.tolist() == BOTH


def test_a_table_without_a_column_of_ids_is_refused_with_the_names_it_has(tmp_path):
    Table({"ra": [1.0], "dec": [2.0]}).write(tmp_path / "list.fits")
    with pytest.raises(UsageError, match="not evident, it has ra, dec"):
        read_ids(tmp_path / "list.fits", RELEASE)
    with pytest.raises(UsageError, match="not found"):
        read_ids(tmp_path / "none.fits", RELEASE)
