"""tools/report.py where something is missing, damaged, odd or too large: the page says so."""

import json

import numpy as np
import pytest
from export_case import stars, write_catalogue, write_shard
from helpers import FIDS, flip_bit
from report_case import (
    number_in,
    page_of,
    soup_of,
    table_of,
    text_of,
    validation_stars,
    worries_of,
    write_all,
    write_model,
    write_validation,
)

from fitting.report import pictures
from pipeline.provenance import identity
from pipeline.schema import KNOWN_LABELS, LabelSet, Layout
from pipeline.select import shard_path
from pipeline.write import write_arrays
from tools import report

# ---- what is missing or damaged --------------------------------------------------------------


def test_shards_that_cannot_be_read_are_named_and_their_stars_are_not_counted(tmp_path, undrawn):
    data_dir, _, table, _ = write_all(tmp_path)
    cut, bad = (shard_path(data_dir, "opt_output", fid) for fid in FIDS[:2])
    cut.write_bytes(cut.read_bytes()[:3000])
    flip_bit(bad, "quality_flags")
    soup = soup_of(page_of(tmp_path / "report.html", data_dir, tmp_path / "model"))
    rows = {row["shard"]: row for row in table_of(soup, "Shards of step 10 that are not complete")}
    assert rows.keys() == set(FIDS[:2])
    assert rows[FIDS[0]]["state"] == "partial"
    assert rows[FIDS[1]]["state"] == "damaged"
    assert "quality_flags" in rows[FIDS[1]]["why"]
    first, last = map(int, FIDS[2].split("-"))
    inside = (table["gdr3_source_id"] >> 43 >= first) & (table["gdr3_source_id"] >> 43 <= last)
    counted = table_of(soup, "From the spectra to good stars")[0]
    assert number_in(counted["number"]) == inside.sum()
    said = next(worry for worry in worries_of(soup) if worry.startswith("Shards of step 10"))
    assert "1 complete, 1 damaged, 1 partial" in said
    assert "2 shards to be made again" in said
    assert "1 of 3" in text_of(soup.select(".tiles > div")[2])


def test_what_is_damaged_where_only_figures_look_is_named_too(tmp_path, small_pictures):
    data_dir, _, _, _ = write_all(tmp_path, 300)
    flip_bit(shard_path(data_dir, "opt_output", FIDS[1]), "ra")
    soup = soup_of(page_of(tmp_path / "report.html", data_dir))
    row = table_of(soup, "Shards of step 10 that are not complete")[0]
    assert (row["shard"], row["state"]) == (FIDS[1], "damaged")


def write_spectra(data_dir, rows):
    """Shards of spectra, as far as their number of rows is asked for: {fid: rows}."""
    from pipeline.write import ShardWriter

    for fid, n in rows.items():
        path = shard_path(data_dir, "xp", fid)
        path.parent.mkdir(parents=True, exist_ok=True)
        with ShardWriter(path, n, "source_id", {"script": "convert_xp_csv"}) as writer:
            writer.write_table({"source_id": np.arange(n, dtype="i8")})


def test_stars_of_the_spectra_that_are_in_no_shard_are_counted_with_the_reason(tmp_path, undrawn):
    data_dir = tmp_path / "data"
    table = write_catalogue(data_dir, 400)
    pixel = table["gdr3_source_id"] >> 43
    rows = {}
    for fid in FIDS:
        first, last = map(int, fid.split("-"))
        rows[fid] = int(((pixel >= first) & (pixel <= last)).sum())
    write_spectra(data_dir, rows)
    shard_path(data_dir, "opt_output", FIDS[2]).unlink()
    (data_dir / "logs").mkdir(exist_ok=True)
    (data_dir / "logs" / "xp_opt_allsources.log").write_text(
        f"2026-01-01 00:00:00,000 ERROR {FIDS[2]}: failed: the input is older than Rome\n"
    )
    soup = soup_of(page_of(tmp_path / "report.html", data_dir))
    row = table_of(soup, "Shards of step 10 that are not complete")[0]
    assert (row["shard"], row["state"], number_in(row["stars"])) == (
        FIDS[2],
        "failed",
        rows[FIDS[2]],
    )
    assert "older than Rome" in row["why"]
    said = table_of(soup, "From the spectra to good stars")
    assert number_in(said[0]["number"]) == 400
    assert number_in(said[1]["number"]) == 400 - rows[FIDS[2]]
    assert f"not in the catalogue: shard {FIDS[2]}, failed" in said[-1]["stars"]
    words = f"({rows[FIDS[2]]:,} of 400)"
    assert any("not in the catalogue" in w and words in w for w in worries_of(soup))


def test_a_shard_with_other_stars_than_its_spectra_worries(tmp_path, undrawn):
    write_shard(tmp_path / "data", FIDS[0], stars(30))
    write_spectra(tmp_path / "data", {FIDS[0]: 31})
    found = " ".join(worries_of(soup_of(page_of(tmp_path / "r", tmp_path / "data"))))
    assert f"another number of stars than their spectra : 1: {FIDS[0]}" in found


def test_what_was_run_names_commands_versions_model_and_inputs(tmp_path, undrawn):
    ours = write_model(tmp_path / "model")
    for k, fid in enumerate(FIDS):
        more = {"command_line": f"xp_opt --partition 3 {k}", "version": "v7"}
        write_shard(
            tmp_path / "data", fid, stars(20, seed=k), model=ours, time=f"2026-0{k + 1}", **more
        )
    soup = soup_of(page_of(tmp_path / "report.html", tmp_path / "data", tmp_path / "model"))
    facts_of = {text_of(d.dt): text_of(d) for d in soup.select(".facts")[0].find_all("div")}
    assert all(f"xp_opt --partition 3 {k}" in facts_of["commands"] for k in range(3))
    assert facts_of["code version"].endswith("v7")
    assert facts_of["time"].endswith("2026-01 to 2026-03")
    assert f"{ours} (3 shards)" in facts_of["model id"]
    assert "model.h5 (3)" in facts_of["inputs"]
    assert "xp_opt --partition 3 0" in text_of(soup.header)


def test_what_became_of_the_labels_is_said_where_the_training_set_is_the_models_own(tmp_path):
    training = tmp_path / "training_data.h5"
    write_arrays(training, {"x": np.zeros(3)}, {"script": "compile"}, accounting="labels in 12 <b>")
    entry = {"name": training.name, "identity": identity(training), "size": 7}
    write_model(tmp_path / "model", inputs=json.dumps([entry]))
    soup = soup_of(page_of(tmp_path / "report.html", None, tmp_path / "model"))
    assert soup.select_one("#stars pre").string == "labels in 12 <b>"
    training.unlink()
    write_arrays(training, {"x": np.ones(3)}, {"script": "compile"}, accounting="of others")
    soup = soup_of(page_of(tmp_path / "report.html", None, tmp_path / "model"))
    assert not soup.select_one("#stars pre")
    assert "is not said here" in text_of(soup.select_one("#stars"))


def test_stages_of_the_training_are_shown_and_what_went_wrong_in_them_worries(tmp_path):
    history = [
        {"stage": "first", "stars": 500, "likelihood_loss": -1.0, "steps_refused": 2},
        {"stage": "first", "stars": 500, "likelihood_loss": -2.5, "steps_refused": 1},
        {"stage": "stars", "stars": 400, "rejected": 100},
        {"stage": "xi", "stars": 3, "skipped": "too few reddened stars"},
    ]
    write_model(tmp_path / "model", history=history)
    soup = soup_of(page_of(tmp_path / "report.html", None, tmp_path / "model"))
    first, fitted, _ = table_of(soup, "Stages")
    assert (first["epochs"], first["loss at its end"]) == ("2", "likelihood: −2.500")
    assert (fitted["stars"], fitted["rejected"]) == ("400", "100")
    found = " ".join(worries_of(soup))
    assert "Training stars rejected : 25.0%" in found
    assert "not finite : 3 (expected" in found
    assert "xi: too few reddened stars" in found


def test_before_step_10_the_page_says_so_in_a_line(tmp_path):
    write_spectra(tmp_path / "data", {FIDS[0]: 5})
    soup = soup_of(page_of(tmp_path / "report.html", tmp_path / "data"))
    assert "step 10 has not written any shard yet" in text_of(soup.select_one("#run"))
    assert "No figures: " in text_of(soup.select_one("#figures"))
    assert "No model was given" in text_of(soup.select_one("#run"))
    assert not soup.find_all("img")


def test_a_model_without_validation_or_figures_has_its_card(tmp_path):
    write_model(tmp_path / "model", pictures=False)
    (tmp_path / "model" / "README.md").write_text("It knows cool stars.")
    soup = soup_of(page_of(tmp_path / "report.html", None, tmp_path / "model"))
    accuracy = text_of(soup.select_one("#accuracy"))
    assert "no validation.h5" in accuracy
    assert "It knows cool stars." in accuracy
    assert "No figures of the training" in text_of(soup.select_one("#training"))
    assert not soup.select_one("#figures")


@pytest.mark.parametrize("damage", ["cut", "not HDF5", "wrong format", "flipped"])
def test_a_damaged_validation_is_said_and_the_rest_is_there(tmp_path, damage):
    model = tmp_path / "model"
    write_model(model)
    path = write_validation(model, validation_stars(100))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:2000])
    elif damage == "not HDF5":
        path.write_text("hello")
    elif damage == "flipped":
        flip_bit(path, "stellar_type")
    else:
        write_arrays_as(path)
    soup = soup_of(page_of(tmp_path / "report.html", None, model))
    assert "validation.h5" in text_of(soup.select_one("#accuracy .missing"))
    assert "train -i training_data.h5" in text_of(soup.select_one("#run"))


def write_arrays_as(path):
    path.unlink()
    write_arrays(path, {"x": np.zeros(3)}, {"script": "train", "format": 1})


def test_pictures_that_cannot_be_read_are_named_and_the_others_shown(tmp_path):
    model = tmp_path / "model"
    write_model(model)
    write_validation(model, validation_stars(100))
    (model / "stars.png").write_bytes((model / "stars.png").read_bytes()[:80])
    (model / "confidence.png").write_text("<svg onload=alert(1)>")
    (model / "residuals.png").unlink()
    soup = soup_of(page_of(tmp_path / "report.html", None, model))
    missing = " ".join(text_of(p) for p in soup.select(".missing"))
    assert "stars.png cannot be read" in missing
    assert "confidence.png cannot be read" in missing
    assert "there is no residuals.png" in missing
    assert len(soup.find_all("img")) == 6


def test_a_page_would_not_grow_beyond_its_limit(tmp_path, monkeypatch):
    model = tmp_path / "model"
    write_model(model)
    write_validation(model, validation_stars(100))
    monkeypatch.setattr(pictures, "MOST_BYTES", 600)
    soup = soup_of(page_of(tmp_path / "report.html", None, model))
    shown = soup.find_all("img")
    assert 0 < len(shown) < 9
    assert sum(len(img["src"]) for img in shown) <= 600
    assert "the page would be too large with it" in text_of(soup)


def test_shards_of_other_labels_than_most_are_named_and_not_counted(tmp_path, undrawn):
    write_shard(tmp_path / "data", FIDS[0], stars(30))
    write_shard(tmp_path / "data", FIDS[2], stars(30))
    other = Layout(labels=LabelSet([KNOWN_LABELS["teff"], KNOWN_LABELS["logg"]]))
    write_shard(tmp_path / "data", FIDS[1], stars(30, other), other)
    soup = soup_of(page_of(tmp_path / "report.html", tmp_path / "data"))
    row = table_of(soup, "Shards of step 10 that are not complete")[0]
    assert (row["shard"], row["state"]) == (FIDS[1], "other labels")
    assert "its labels are Teff (kK), log g (dex), most shards' Teff (kK), [Fe/H]" in row["why"]
    assert number_in(table_of(soup, "From the spectra to good stars")[0]["number"]) == 60


def test_an_empty_catalogue_has_a_page(tmp_path):
    write_shard(tmp_path / "data", FIDS[0], {k: v[:0] for k, v in stars(5).items()})
    soup = soup_of(page_of(tmp_path / "report.html", tmp_path / "data"))
    assert any("the catalogue has none" in worry for worry in worries_of(soup))


def test_a_catalogue_that_cannot_be_read_at_all_has_a_page(tmp_path):
    path = write_shard(tmp_path / "data", FIDS[0], stars(20))
    flip_bit(path, "quality_flags")
    soup = soup_of(page_of(tmp_path / "report.html", tmp_path / "data"))
    assert table_of(soup, "Shards of step 10 that are not complete")[0]["state"] == "damaged"
    path.write_bytes(b"cut")
    soup = soup_of(page_of(tmp_path / "report.html", tmp_path / "data"))
    assert "no shard of step 10 can be read" in text_of(soup)


def test_stars_without_parameters_or_positions_have_a_page(tmp_path, small_pictures):
    table = stars(50, n_bad=50)
    table["ra"][:] = np.nan
    write_shard(tmp_path / "data", FIDS[0], table)
    soup = soup_of(page_of(tmp_path / "report.html", tmp_path / "data"))
    assert any("BAD_INPUT : 100% (50 of 50)" in worry for worry in worries_of(soup))
    assert "No figure kiel" in text_of(soup.select_one("#figures"))


@pytest.mark.parametrize("names", [("teff", "feh"), ("teff", "feh", "logg", "alpha_m")])
def test_any_labels_have_a_page(names, tmp_path, undrawn):
    labels = LabelSet([KNOWN_LABELS[name] for name in names])
    ours = write_model(tmp_path / "model", labels=labels)
    write_validation(tmp_path / "model", validation_stars(200, labels), labels)
    write_catalogue(tmp_path / "data", 60, Layout(labels=labels), model=ours)
    soup = soup_of(page_of(tmp_path / "report.html", tmp_path / "data", tmp_path / "model"))
    flagged = [row["flag"] for row in table_of(soup, "quality_flags")]
    assert [f"{name.upper()}_CONFIDENCE" for name in names] == flagged[: len(names)]
    titles = {row["label"].split(" (")[0] for row in
              table_of(soup, "Inferred − label, validation stars")}  # fmt: skip
    assert titles == {label.title for label in labels}


# ---- many stars ------------------------------------------------------------------------------


def test_figures_of_many_stars_are_of_some_shards_and_counts_are_of_all(
    tmp_path, monkeypatch, small_pictures
):
    monkeypatch.setattr(pictures, "MOST_STARS", 250)
    data_dir = tmp_path / "data"
    for k in range(6):
        write_shard(data_dir, f"{k:06d}-{k:06d}", stars(100, seed=k))
    soup = soup_of(page_of(tmp_path / "report.html", data_dir))
    assert "of 200 stars: quality_flags < 8. Of 2 of 6 shards." in text_of(soup)
    assert number_in(table_of(soup, "From the spectra to good stars")[0]["number"]) == 600


# ---- the command -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data-dir", "nowhere"], "no shards"),
        (["--model", "nowhere"], "no trained model there"),
    ],
)
def test_what_is_not_there_is_wrong_usage(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert report.main(words) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_nothing_asked_for_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as error:
        report.main([])
    assert error.value.code == 2


def test_a_page_that_cannot_be_written_is_one_line(tmp_path, capsys):
    write_model(tmp_path / "model")
    words = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "no" / "such" / "x.html")]
    assert report.main(words) == 1
    assert capsys.readouterr().err.count("\n") == 1
