"""Data sets of many files: accounted for in a manifest, gone on with after an end, made again where
what they are of has changed; FITS tables by rows."""

import hashlib
import os
import re
import shutil

import h5py
import numpy as np
import pyarrow.parquet
import pytest
from astropy.io import fits
from export_case import KIND, parts_of, write_catalogue, write_shard
from helpers import FIDS, flip_bit
from shard_case import ROOT

from pipeline.export import folder as folders
from pipeline.export import layouts
from pipeline.export.folder import read_manifest
from pipeline.export.layouts import FOLDERS
from pipeline.select import shard_path
from tools import export_catalogue

N = 300
OPTIONS = {"fits": ("--max-rows", 90)}


def run(data_dir, layout, out, *words):
    words = ("--data-dir", data_dir, "--layout", layout, "--out", out, *words)
    return export_catalogue.main([str(word) for word in words])


@pytest.fixture(params=FOLDERS)
def layout(request):
    return request.param


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """(data directory, columns sorted by id)."""
    data_dir = tmp_path_factory.mktemp("folder") / "data"
    return data_dir, write_catalogue(data_dir, N)


@pytest.fixture(scope="module")
def exports(case, tmp_path_factory):
    """{layout: folder of an export of the whole catalogue}, made where they are asked for."""

    class Made(dict):
        def __missing__(self, layout):
            self[layout] = tmp_path_factory.mktemp(layout) / "out"
            assert run(case[0], layout, self[layout], *OPTIONS.get(layout, ())) == 0
            return self[layout]

    return Made()


@pytest.fixture
def own(case, tmp_path):
    """The same, to be changed."""
    return shutil.copytree(case[0], tmp_path / "data"), case[1]


def ids_in(path):
    """Source ids in a file of any layout."""
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path, columns=["gdr3_source_id"])[0].to_numpy()
    if path.suffix == ".fits":
        return np.asarray(fits.getdata(path, 1)["gdr3_source_id"], np.int64)
    return published_ids(path)


def published_ids(path):
    with h5py.File(path) as file:
        return file["gdr3_source_id"][:]


def mains(manifest):
    """Entries of the files that together have each star once."""
    return [entry for entry in manifest["files"] if "covariances" not in entry["name"]]


# ---- the manifest ----------------------------------------------------------------------------


def test_rows_of_the_files_add_up_and_every_star_is_in_one(case, layout, exports):
    out, expected = exports[layout], case[1]
    manifest = read_manifest(out)
    assert manifest["complete"]
    assert manifest["rows_read"] == manifest["rows_written"] == N
    assert manifest["rows_left_out_by_the_selection"] == 0
    assert sum(entry["rows"] for entry in mains(manifest)) == N
    assert len(mains(manifest)) > 1
    found = np.concatenate([ids_in(out / entry["name"]) for entry in mains(manifest)])
    np.testing.assert_array_equal(np.sort(found), expected["gdr3_source_id"])
    for entry in mains(manifest):
        assert len(ids_in(out / entry["name"])) == entry["rows"]


def test_bytes_and_checksums_are_those_of_the_files(layout, exports):
    out = exports[layout]
    manifest = read_manifest(out)
    for entry in manifest["files"]:
        content = (out / entry["name"]).read_bytes()
        assert entry["bytes"] == len(content)
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    there = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    named = {entry["name"] for entry in manifest["files"]} | set(manifest["other_files"])
    assert there == named | {"manifest.json"}


def test_what_the_selection_leaves_out_is_counted(case, layout, tmp_path):
    data_dir, expected = case
    wanted = (expected["quality_flags"] < 8) & (expected["stellar_params_est"][:, 0] > 5)
    assert (
        run(data_dir, layout, tmp_path / "out", "--select", "quality_flags < 8 and teff > 5") == 0
    )
    manifest = read_manifest(tmp_path / "out")
    assert (manifest["rows_read"], manifest["rows_written"]) == (N, wanted.sum())
    assert manifest["rows_left_out_by_the_selection"] == N - wanted.sum()
    assert manifest["selection"] == "quality_flags < 8 and teff > 5"
    found = np.concatenate([ids_in(tmp_path / "out" / e["name"]) for e in mains(manifest)])
    np.testing.assert_array_equal(np.sort(found), expected["gdr3_source_id"][wanted])


def test_words_go_with_the_files(layout, exports):
    out = exports[layout]
    assert f"{N} stars" in (out / "README.md").read_text()
    code = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    compile(code, "README.md", "exec")
    licence = (out / "LICENCE.md").read_text()
    assert "CC BY-SA 3.0 IGO" in " ".join(licence.split())
    assert all(word in licence for word in ("DPAC", "2MASS", "unWISE", "MNRAS 524, 1855"))
    lines = (out / "columns.csv").read_text().splitlines()
    assert lines[0] == "name,type,unit,ucd,description"
    assert any(line.startswith("quality_flags,") for line in lines)
    manifest = read_manifest(out)
    assert manifest["model"] == ["content 0123456789abcdef"]
    assert {"numpy", "pyarrow"} <= manifest["packages"].keys()


# ---- going on --------------------------------------------------------------------------------


def made(out):
    """{file: when it was made}."""
    names = [entry["name"] for entry in read_manifest(out)["files"]]
    return {name: os.stat(out / name).st_mtime_ns for name in names}


def test_a_second_run_makes_nothing_again(case, layout, tmp_path):
    out = tmp_path / "out"
    assert run(case[0], layout, out) == 0
    before = made(out)
    assert run(case[0], layout, out) == 0
    assert made(out) == before
    assert run(case[0], layout, out, "--overwrite") == 0
    assert not set(made(out).values()) & set(before.values())


def test_a_run_that_was_ended_goes_on_and_gives_the_same_files(
    case, layout, exports, tmp_path, monkeypatch
):
    options = OPTIONS.get(layout, ())
    whole, calls = folders._made, []

    def ended(*given):
        if calls:
            raise KeyboardInterrupt
        calls.append(given)
        return whole(*given)

    with monkeypatch.context() as patch:
        patch.setattr(folders, "_made", ended)
        assert run(case[0], layout, tmp_path / "out", *options) == 130
    begun = read_manifest(tmp_path / "out")
    assert not begun["complete"]
    kept = made(tmp_path / "out")
    assert run(case[0], layout, tmp_path / "out", *options) == 0
    now = made(tmp_path / "out")
    assert {name: now[name] for name in kept} == kept
    expected, found = (read_manifest(x)["files"] for x in (exports[layout], tmp_path / "out"))
    assert found == expected


def test_a_run_that_was_ended_at_its_first_file_goes_on(case, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(folders, "sha256", full)  # the file is there, and not in the manifest
        assert run(case[0], "fits", out) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert (out / "catalogue_000.fits").exists()
    assert run(case[0], "fits", out) == 0
    assert read_manifest(out)["complete"]


def test_parts_of_shards_that_changed_are_made_again_and_no_others(own, layout, tmp_path):
    data_dir, expected = own
    out, options = tmp_path / "out", OPTIONS.get(layout, ())
    assert run(data_dir, layout, out, *options) == 0
    before = made(out)
    part = parts_of(expected, "gdr3_source_id")[FIDS[2]]
    write_shard(data_dir, FIDS[2], part | {"chi2_opt": part["chi2_opt"] + 1})
    assert run(data_dir, layout, out, *options) == 0
    after = made(out)
    assert after.keys() == before.keys()
    changed = [name for name in after if after[name] != before[name]]
    for entry in mains(read_manifest(out)):
        ids = ids_in(out / entry["name"])
        if np.isin(ids, part["gdr3_source_id"]).any():
            assert entry["name"] in changed
    if layout != "fits":
        assert len(changed) < len(after)


def test_a_file_that_is_gone_or_cut_short_is_made_again(case, layout, tmp_path):
    out, options = tmp_path / "out", OPTIONS.get(layout, ())
    assert run(case[0], layout, out, *options) == 0
    entries = {entry["name"]: entry for entry in read_manifest(out)["files"]}
    first, last = (out / name for name in (min(entries), max(entries)))
    first.unlink()
    last.write_bytes(last.read_bytes()[:-10])
    assert run(case[0], layout, out, *options) == 0
    for path in (first, last):
        entry = entries[str(path.relative_to(out))]
        assert len(ids_in(path)) == entry["rows"]
        assert folders.sha256(path) == entry["sha256"]


def test_another_selection_makes_all_again_and_removes_files_that_are_no_more(case, tmp_path):
    data_dir, expected = case
    out = tmp_path / "out"
    assert run(data_dir, "parquet", out, "--max-rows", 20) == 0
    before = read_manifest(out)["files"]
    assert run(data_dir, "parquet", out, "--select", "dec > 60") == 0
    manifest = read_manifest(out)
    assert len(manifest["files"]) < len(before)
    there = {str(path.relative_to(out)) for path in out.rglob("*.parquet")}
    assert there == {entry["name"] for entry in manifest["files"]}
    found = np.concatenate([ids_in(out / entry["name"]) for entry in manifest["files"]])
    wanted = expected["gdr3_source_id"][expected["dec"] > 60]
    np.testing.assert_array_equal(np.sort(found), wanted)


def test_another_layout_takes_the_place_of_one_only_if_told(case, tmp_path):
    out = tmp_path / "out"
    assert run(case[0], "parquet", out) == 0
    assert run(case[0], "fits", out) == 2
    assert run(case[0], "fits", out, "--overwrite") == 0
    names = {"catalogue_000.fits", "README.md", "LICENCE.md", "columns.csv", "manifest.json"}
    assert {path.name for path in out.rglob("*")} == names


def test_no_star_selected_is_a_data_set_without_rows(case, layout, tmp_path):
    assert run(case[0], layout, tmp_path / "out", "--cone", 10, 20, 1e-4) == 0
    assert read_manifest(tmp_path / "out")["rows_written"] == 0


# ---- refusals --------------------------------------------------------------------------------


def test_a_folder_of_other_files_or_of_another_layout_is_refused(case, tmp_path, capsys):
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.tex").write_text("x")
    assert run(case[0], "fits", other) == 2
    assert "holds other files" in capsys.readouterr().err
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]
    (other / "manifest.json").write_text("[1]")
    assert run(case[0], "fits", other) == 2
    assert "is no manifest of an export" in capsys.readouterr().err
    assert run(case[0], "fits", tmp_path / "out") == 0
    assert run(case[0], "zgr23", tmp_path / "out") == 2
    assert "holds the layout fits" in capsys.readouterr().err
    assert run(case[0], "fits", other / "thesis.tex") == 2
    assert "is a file" in capsys.readouterr().err


def test_a_damaged_shard_is_one_line_and_the_parts_made_are_kept(own, layout, tmp_path, capsys):
    path = shard_path(own[0], KIND, FIDS[2])
    flip_bit(path, "stellar_params_est")
    out = tmp_path / "out"
    assert run(own[0], layout, out, *OPTIONS.get(layout, ())) == 1
    said = capsys.readouterr().err
    assert path.name in said
    assert "stellar_params_est" in said
    assert said.count("\n") == 1
    assert not [p for p in out.rglob("*") if p.name.endswith(".part")]
    assert run(own[0], layout, out, "--skip-bad-shards", *OPTIONS.get(layout, ())) == 0
    manifest = read_manifest(out)
    assert list(manifest["shards_left_out"]) == [FIDS[2]]
    whole = parts_of(own[1], "gdr3_source_id")
    assert manifest["rows_written"] == sum(len(whole[fid]["ra"]) for fid in FIDS[:2])


def test_rows_that_are_not_accounted_for_are_an_error(case, tmp_path, monkeypatch, capsys):
    whole = layouts.fits_parts
    monkeypatch.setattr(layouts, "fits_parts", lambda *given: whole(*given)[:-1])
    assert run(case[0], "fits", tmp_path / "out", "--max-rows", 90) == 1
    assert "did they change meanwhile?" in capsys.readouterr().err


@pytest.mark.parametrize(("layout", "words", "message"), [
    ("zgr23", ["--columns", "ra"], "its columns and files are fixed"),
    ("zg25", ["--max-rows", 5], "its columns and files are fixed"),
    ("fits", ["--columns", "quality_flag_names"], "columns of words"),
    ("table", ["--max-rows", 5], "--max-rows: of a file of the layouts"),
])  # fmt: skip
def test_options_that_a_layout_has_not_are_refused(case, tmp_path, capsys, layout, words, message):
    assert run(case[0], layout, tmp_path / "a.fits", *words) == 2
    assert message in capsys.readouterr().err


def test_the_layout_follows_from_the_ending_of_the_output():
    for out, layout in (("a.fits", "table"), ("b.csv", "table"), ("c", "parquet")):
        assert export_catalogue.parse_args(["--out", out]).layout == layout


# ---- FITS ------------------------------------------------------------------------------------


def test_fits_tables_follow_one_another_by_id(case, tmp_path):
    out = tmp_path / "out"
    assert run(case[0], "fits", out, "--max-rows", 90, "--columns", "gdr3_source_id", "teff") == 0
    names = [entry["name"] for entry in read_manifest(out)["files"]]
    assert names == sorted(names)
    assert names[0] == "catalogue_000.fits"
    found = np.concatenate([ids_in(out / name) for name in names])
    np.testing.assert_array_equal(found, case[1]["gdr3_source_id"])
    assert fits.getdata(out / names[0], 1).names == ["gdr3_source_id", "teff"]


# ---- the page --------------------------------------------------------------------------------


def test_the_lines_of_the_readme_open_what_was_exported(case, exports, tmp_path, monkeypatch):
    pytest.importorskip("pandas")
    page = (ROOT / "README.md").read_text().split("\n## Use the catalogue")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for ending in ("fits", "parquet"):
        assert run(case[0], "table", tmp_path / f"stars.{ending}") == 0
    shutil.copytree(exports["parquet"], tmp_path / "sky")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("matplotlib.pyplot.savefig", lambda name: None)
    found = {}
    exec(code, found)
    good = case[1]["quality_flags"] < 8
    good &= case[1]["teff_confidence"] > 0.5
    assert len(found["good"]) == good.sum() > 20
    assert len(found["stars"]) == N
