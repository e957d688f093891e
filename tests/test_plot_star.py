"""Pages of stars end to end: found by their ids, each drawn or named with the reason."""

import shutil

import numpy as np
import pytest
from helpers import read_all
from step10_case import ODD, ODD_STARS, output

from pipeline import star_rows
from pipeline.figures import style
from pipeline.schema import KINDS, MODEL_FILE, SURVEYS, load_release
from pipeline.select import shard_path
from tools import plot_star

RELEASE = load_release()
UNKNOWN = 123456789


class Sky:
    """A data directory of links to that of `step10`: one shard and the odd stars have a catalogue,
    a second one inputs only, the third one spectra only."""

    def __init__(self, step10, demo_model, folder):
        self.folder, self.model = folder, step10.model
        self.done, self.waiting, self.raw = step10.fids
        links = {"opt_input": [self.done, self.waiting, ODD_STARS], "opt_output": [self.done]}
        links["opt_output"].append(ODD_STARS)
        for kind, fids in links.items():
            self.link(step10.data_dir, kind, fids)
        for kind in ("xp", *SURVEYS):
            self.link(demo_model.data_dir, kind, step10.fids)
        self.tables = step10.tables
        self.odd = dict(zip(ODD, step10.odd()["gdr3_source_id"].tolist(), strict=True))

    def link(self, source, kind, fids):
        (self.folder / KINDS[kind].folder).mkdir(parents=True)
        for fid in fids:
            shard_path(self.folder, kind, fid).symlink_to(shard_path(source, kind, fid))

    def ids(self, fid):
        return self.tables[fid]["gdr3_source_id"].tolist()

    def plot(self, *words, model=None, out="pages"):
        """(exit status, names of the pages)."""
        out = self.folder / out
        options = ["--data-dir", self.folder, "--model", model or self.model, "--out", out]
        status = plot_star.main([str(word) for word in [*words, *options]])
        return status, sorted(path.name for path in out.iterdir()) if out.exists() else []


@pytest.fixture
def sky(step10, demo_model, tmp_path):
    return Sky(step10, demo_model, tmp_path / "data")


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    for name in ("figure.dpi", "savefig.dpi"):
        monkeypatch.setitem(style.STYLE, name, 54)


def test_each_star_has_a_page_and_each_other_id_the_reason_why_not(sky, capsys):
    ids = [sky.ids(sky.done)[4], sky.odd["no flux used"], sky.odd["no photometry"]]
    waiting, raw = sky.ids(sky.waiting)[0], sky.ids(sky.raw)[0]
    status, pages = sky.plot(ids[0], UNKNOWN, waiting, *ids[1:], raw, ids[0])
    assert status == 1
    assert pages == sorted(f"star_{one}.png" for one in ids)
    said = capsys.readouterr().err
    assert "3 of 6 pages" in said
    assert f"{UNKNOWN}: not in {sky.folder}" in said
    assert f"{waiting}: in the inputs, but not in the catalogue: run xp_opt_allsources.py" in said
    assert f"{raw}: its spectrum is there" in said
    assert "run gen_xp_input_allsources.py" in said


def test_ids_may_come_from_a_file_and_pages_be_pdf(sky, tmp_path):
    one, other = sky.ids(sky.done)[:2]
    listed = tmp_path / "ids.txt"
    listed.write_text(f"source_id,note\n# stars\n{one}, a note\n\nGaia DR3 {one}\n")
    status, pages = sky.plot("--ids", listed, other, "--format", "pdf")
    assert (status, pages) == (0, sorted([f"star_{one}.pdf", f"star_{other}.pdf"]))


def test_pages_are_of_the_star_asked_for_whatever_the_order(sky, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "pipeline.figures.star_page", lambda path, page: drawn.append((path, page)) or path
    )
    ids = sky.ids(sky.done)
    asked = [ids[11], ids[2], sky.odd["BP missing"], ids[29]]
    assert sky.plot(*asked)[0] == 0
    found = read_all(output(sky.folder, sky.done))
    for path, page in drawn:
        one = int(path.stem.removeprefix("star_"))
        assert int(page.row["gdr3_source_id"]) == one
        if one in ids:
            k = ids.index(one)
            used = np.isfinite(sky.tables[sky.done]["flux_err"][k])
            flux = sky.tables[sky.done]["flux"][k]
            np.testing.assert_array_equal(page.spectrum.flux[used], flux[used].astype("f8"))
            scale = page.posterior.scale
            est = found["stellar_params_est"][k] * scale
            np.testing.assert_allclose(page.posterior.est, est, rtol=1e-6)
            np.testing.assert_allclose(
                page.posterior.err, found["stellar_params_err"][k] * scale, rtol=1e-4
            )
    assert {int(path.stem[5:]) for path, _ in drawn} == set(asked)


def test_bands_that_are_not_used_have_their_reason_from_the_match_files(sky, monkeypatch):
    pages = {}
    monkeypatch.setattr(
        "pipeline.figures.star_page", lambda path, page: pages.update({path.stem: page}) or path
    )
    ids = sky.ids(sky.done)
    assert sky.plot(*ids)[0] == 0
    reasons = [reason for page in pages.values() for reason in page.spectrum.reasons]
    used = [np.isfinite(page.spectrum.flux_err[page.spectrum.n_xp :]) for page in pages.values()]
    np.testing.assert_array_equal(np.array(reasons) == "", np.concatenate(used))
    assert "no match" in reasons


def test_another_model_than_that_of_the_catalogue_is_refused(sky, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(sky.model / MODEL_FILE, other / MODEL_FILE)
    assert sky.plot(sky.ids(sky.done)[0], model=other)[0] == 0, "the same, copied"
    from fitting.model_file import load_model, save_model

    trained = load_model(sky.model / MODEL_FILE, RELEASE)
    trained.stellar.flux.bias_out.assign_add(np.full(66, 0.01, "f4"))
    save_model(other / MODEL_FILE, trained, {"script": "train"}, "")
    status, pages = sky.plot(sky.ids(sky.done)[0], model=other, out="none")
    assert (status, pages) == (1, [])
    assert "made from other inputs than now: model.h5; give --model" in capsys.readouterr().err


def test_a_damaged_shard_does_not_stop_the_others(sky, capsys):
    path = shard_path(sky.folder, "opt_output", ODD_STARS)
    path.unlink()
    path.write_bytes(b"nothing")
    one = sky.ids(sky.done)[0]
    status, pages = sky.plot(one, sky.odd["flat"])
    assert (status, pages) == (1, [f"star_{one}.png"])
    assert f"{path}: not a readable HDF5 file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["5.85e18"], "'5.85e18' is no source id"),
        (["-5"], "'-5' is no source id"),
        ([str(2**63)], "is no source id"),
        ([], "no source id: give some"),
        (["--ids", "/nowhere/ids"], "cannot be read"),
        (["1", "--model", "/nowhere"], "no trained model there"),
        (["1", "--data-dir", "/nowhere"], "no shards of the catalogue there"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(sky, words, said, capsys):
    options = ["--data-dir", str(sky.folder), "--model", str(sky.model)]
    try:
        status = plot_star.main([*options, *words])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_ids_are_looked_for_in_the_shards_of_their_pixels_first(sky, monkeypatch):
    opened, whole = [], star_rows.open_shard

    def look(data_dir, kind, fid, release):
        opened.append(fid)
        return whole(data_dir, kind, fid, release)

    monkeypatch.setattr(star_rows, "open_shard", look)
    ids = np.array(sky.ids(sky.done)[:3])
    assert list(star_rows.find_ids(sky.folder, "opt_output", ids, RELEASE, {})) == [sky.done]
    assert opened == [sky.done]
    both = np.array([*ids, sky.odd["flat"]])
    found = star_rows.find_ids(sky.folder, "opt_output", both, RELEASE, {})
    assert {one for ids in found.values() for one in ids.tolist()} == set(both.tolist())
