"""tools/report.py: what the page says is what is in the files, whatever is missing or hostile."""

import itertools
import json
import shlex

import html5lib
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

from fitting.report import facts, pictures, worries
from pipeline.figures import style
from pipeline.provenance import identity
from pipeline.schema import DEFAULT_LABELS, KNOWN_LABELS, LabelSet, Layout, flags, resolved
from pipeline.select import shard_path
from pipeline.write import write_arrays
from tools import report

SECTIONS = ["worries", "run", "stars", "accuracy", "figures", "training", "columns"]


@pytest.fixture(scope="module")
def small_pictures():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("figure.dpi", "savefig.dpi"):
            patch.setitem(style.STYLE, name, 40)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory, small_pictures):
    """(page as text, taken apart, columns of the catalogue, of the validation stars)."""
    folder = tmp_path_factory.mktemp("report")
    data_dir, model, table, validation = write_all(folder)
    text = page_of(folder / "report.html", data_dir, model)
    return text, soup_of(text), table, validation


@pytest.fixture
def undrawn(monkeypatch):
    """No figures of catalogues, which take most of the time."""
    monkeypatch.setattr(pictures, "CATALOGUE", {})


# ---- numbers ---------------------------------------------------------------------------------


def test_flags_of_every_star_are_counted_as_one_by_one(made):
    _, soup, table, _ = made
    rows = {row["flag"]: row for row in table_of(soup, "quality_flags")}
    assert len(rows) == 14
    for flag in flags.quality_flag(DEFAULT_LABELS):
        n = sum(1 for value in table["quality_flags"].tolist() if value & flag.value)
        row = rows[flag.name]
        assert (number_in(row["stars"]), row["bit"]) == (n, str(flag.value))
        assert row["set when"] == flag.text
        if 0.1 < 100 * n / 600 < 99.9:
            assert row["share"] == f"{100 * n / 600:.1f}%"
    assert rows["CHI2"]["of validation stars"] == f"{100 * 50 / 500:.1f}%"
    rows = {
        row["flag"]: row for row in table_of(soup, "input_flags: what was missing in the input")
    }
    for flag in flags.InputFlag:
        n = sum(1 for value in table["input_flags"].tolist() if value & flag.value)
        assert number_in(rows[flag.name]["stars"]) == n


def test_every_star_is_accounted_for(made):
    _, soup, table, _ = made
    rows = {row["stars"]: row for row in table_of(soup, "From the spectra to good stars")}
    solved = sum(1 for star in table["stellar_params_est"] if np.isfinite(star).all())
    good = sum(1 for value in table["quality_flags"].tolist() if value < 8)
    none = sum(1 for value in table["quality_flags"].tolist() if value == 0)
    counted = [number_in(row["number"]) for row in rows.values()]
    assert counted == [600, solved, good, none]
    tiles = {text_of(d.dt): text_of(d) for d in soup.select(".tiles > div")}
    assert f"{solved:,} of 600" in tiles["Stars with parameters"]
    assert f"quality_flags < 8: {good:,}" in tiles["Good stars"]
    assert "3 of 3" in tiles["Shards complete"]


def test_accuracy_is_that_of_the_stars_one_by_one(made):
    _, soup, _, validation = made
    rows = table_of(soup, "Inferred − label, validation stars")[:3]
    for k, (row, label) in enumerate(zip(rows, DEFAULT_LABELS, strict=True)):
        off, pulls = [], []
        for est, err, true, true_err in zip(
            validation["stellar_params_est"], validation["stellar_params_err"],
            validation["stellar_type"], validation["stellar_type_err"], strict=True,
        ):  # fmt: skip
            if np.isfinite(est).all():
                off.append((est[k] - true[k]) * label.scale)
                pulls.append((est[k] - true[k]) / (err[k] ** 2 + true_err[k] ** 2) ** 0.5)
        median = sorted(off)[len(off) // 2]
        scatter = 1.4826 * np.median([abs(x - np.median(off)) for x in off])
        width = 1.4826 * np.median([abs(x - np.median(pulls)) for x in pulls])
        shown = {name: float(row[name].replace("−", "-")) for name in ("offset", "scatter")}
        least = 1.01 * 10.0**-label.digits
        assert shown["offset"] == pytest.approx(median, abs=least + 0.02 * scatter)
        assert shown["scatter"] == pytest.approx(scatter, rel=0.01, abs=least)
        assert float(row["pull width"]) == pytest.approx(width, abs=0.006)


def test_confidences_are_held_against_what_is_right(made):
    _, soup, _, validation = made
    rows = table_of(soup, "Confidences, validation stars")
    confidence, n_right, n = validation["teff_confidence"], 0, 0
    est, err = (validation[f"stellar_params_{x}"][:, 0] for x in ("est", "err"))
    true, true_err = (validation[f"stellar_type{x}"][:, 0] for x in ("", "_err"))
    for i in range(500):
        if 0.5 <= np.float32(confidence[i]) < 0.8:
            n += 1
            away = abs(np.float32(est[i]) - np.float32(true[i]))
            n_right += away < min(3 * np.hypot(err[i], true_err[i]), 0.25)
    row = rows[1]
    assert (row["confidence"], number_in(row["stars"])) == ("0.5 to 0.8", n)
    assert row["right"] == f"{100 * n_right / n:.1f}%"


def test_all_columns_and_parameters_of_the_schema_are_there(made):
    _, soup, _, _ = made
    rows = {row["dataset"]: row for row in table_of(soup, "Datasets of the catalogue")}
    datasets = resolved("opt_output", Layout())
    assert rows.keys() == datasets.keys()
    assert rows["stellar_params_cov_triu"]["shape"] == "N, 21"
    assert [row["name"] for row in table_of(soup, "Order of the parameters")] == [
        "teff", "feh", "logg", "xi", "E", "parallax",
    ]  # fmt: skip


# ---- the page as such ------------------------------------------------------------------------


def test_the_page_is_valid_html_that_asks_nothing_of_a_network(made):
    text, soup, _, _ = made
    html5lib.HTMLParser(strict=True).parse(text)
    assert not soup.find_all(["script", "iframe", "object", "embed", "base"])
    for node in soup.find_all(src=True):
        assert node["src"].startswith("data:image/png;base64,")
    assert all(a["href"].startswith("#") for a in soup.find_all("a"))
    assert "default-src 'none'" in soup.find("meta", {"http-equiv": True})["content"]
    assert "url(" not in soup.style.string
    assert soup.html["lang"] == "en"


def test_contents_headings_tables_and_pictures_are_as_readers_of_all_kinds_need_them(made):
    _, soup, _, _ = made
    assert [a["href"] for a in soup.nav.find_all("a")] == [f"#{name}" for name in SECTIONS]
    ids = [node["id"] for node in soup.find_all(id=True)]
    assert ids == SECTIONS
    levels = [int(node.name[1]) for node in soup.find_all(["h1", "h2", "h3", "h4"])]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    for table in soup.find_all("table"):
        assert text_of(table.caption)
        assert all(th["scope"] in ("col", "row", "rowgroup") for th in table.find_all("th"))
    figures = soup.find_all("figure")
    assert len(figures) >= 9 + 3
    for figure in figures:
        assert len(figure.img["alt"]) > 10
        assert text_of(figure.figcaption)


def test_the_command_in_the_page_makes_it_again(made, tmp_path):
    _, soup, _, _ = made
    words = shlex.split(soup.footer.code.string)
    assert words[:2] == ["python", "tools/report.py"]
    place = words.index("--out") + 1
    words[place] = str(tmp_path / "again.html")
    assert report.main(words[2:]) == 0
    again = soup_of((tmp_path / "again.html").read_text())
    assert [text_of(t) for t in again.find_all("table")] == [
        text_of(t) for t in soup.find_all("table")
    ]


HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>&amp;{{ 7*7 }}\u202e\x07\x1b'


def test_what_users_and_files_say_is_shown_as_it_is_and_never_obeyed(tmp_path, undrawn):
    data_dir, model = tmp_path / "da<b>ta'", tmp_path / "mo<i>del\udcff"
    ours = write_model(
        model, scale=HOSTILE, command_line=HOSTILE, version=HOSTILE, time=HOSTILE,
        packages=json.dumps({HOSTILE: HOSTILE}),
        inputs=json.dumps([{"name": HOSTILE, "identity": HOSTILE, "size": 3}]),
        history=[{"stage": HOSTILE, "skipped": HOSTILE, "stars": "many", "rejected": None}, 3],
    )  # fmt: skip
    (model / "README.md").write_text(HOSTILE)
    write_catalogue(data_dir, 60, model=ours, command_line=HOSTILE, parallaxes="left out" + HOSTILE)
    (data_dir / "logs").mkdir()
    (data_dir / "logs" / "xp_opt_allsources.log").write_text(
        f"2026-01-01 00:00:00,000 ERROR {FIDS[0]}: failed: {HOSTILE}\n"
    )
    shard_path(data_dir, "opt_output", FIDS[0]).unlink()
    (data_dir / "xp_metadata").mkdir()
    write_as = shard_path(data_dir, "metadata", FIDS[0])
    write_as.write_bytes(b"no HDF5")
    text = page_of(tmp_path / "report.html", data_dir, model)
    soup = soup_of(text)
    html5lib.HTMLParser(strict=True).parse(text)
    assert not soup.find_all(["script", "b", "i"])
    assert all(img["src"].startswith("data:") for img in soup.find_all("img"))
    assert not [a for node in soup.find_all() for a in node.attrs if a.startswith("on")]
    assert text.count("{{ 7*7 }}") > 6
    for place in ("#worries", "#run", "#stars", "#accuracy", "#training"):
        assert "<script>alert(1)</script>" in text_of(soup.select_one(place))
    assert "da<b>ta'" in text_of(soup.h1)


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


# ---- what to worry about ---------------------------------------------------------------------


def test_every_flag_has_a_limit_and_words_on_what_to_do():
    confidences = [flags.confidence_flag(label.name) for label in DEFAULT_LABELS]
    quality = [flag.name for flag in flags.quality_flag(DEFAULT_LABELS)]
    assert set(worries.QUALITY) == set(quality) - set(confidences)
    assert set(worries.INPUTS) == {flag.name for flag in flags.InputFlag}


def quiet_stars(n, rng):
    """Stars with no flags at all."""
    table = stars(n, n_bad=0, seed=int(rng.integers(99)))
    table["quality_flags"][:] = table["input_flags"][:] = 0
    return table


@pytest.mark.parametrize("name", ["CHI2", "NOT_CONVERGED", "OUT_OF_RANGE", "PARALLAX_TENSION"])
def test_a_flag_worries_from_its_limit_on(name, tmp_path, undrawn):
    bit, most = flags.quality_flag(DEFAULT_LABELS)[name].value, worries.QUALITY[name][0]
    table = quiet_stars(1000, np.random.default_rng(1))
    told = []
    for n in (int(1000 * most), int(1000 * most) + 1):
        table["quality_flags"][:n] = bit
        write_shard(tmp_path / "data", FIDS[0], table, version="v1", parallaxes="used")
        found = worries_of(soup_of(page_of(tmp_path / "report.html", tmp_path / "data")))
        told.append([worry for worry in found if worry.startswith(f"Stars flagged {name}")])
    assert not told[0]
    assert f"({int(1000 * most) + 1} of 1,000)" in told[1][0]


def test_nothing_to_worry_about_is_said_with_how_much_was_looked_at(tmp_path, undrawn):
    ours = write_model(tmp_path / "model")
    table = validation_stars(4000)
    table["stellar_params_est"][::7] = table["model_params_est"][::7]
    for label in DEFAULT_LABELS:
        table[f"{label.name}_confidence"][:] = 0.99
    write_validation(tmp_path / "model", table)
    quiet = quiet_stars(300, np.random.default_rng(2))
    write_shard(tmp_path / "data", FIDS[0], quiet, model=ours, version="v1", parallaxes="used")
    soup = soup_of(page_of(tmp_path / "report.html", tmp_path / "data", tmp_path / "model"))
    assert worries_of(soup) == []
    n = len(table_of(soup, "Looked at, and within its limit"))
    assert f"Nothing: {n} checks found all within their limits." in text_of(soup)


@pytest.mark.parametrize(("pull", "words"), [(1.6, "too small"), (0.5, "too large"), (1.0, None)])
def test_pulls_that_are_too_wide_or_narrow_worry(pull, words, tmp_path):
    write_model(tmp_path / "model")
    write_validation(tmp_path / "model", validation_stars(2000, pull=pull))
    soup = soup_of(page_of(tmp_path / "report.html", None, tmp_path / "model"))
    found = [worry for worry in worries_of(soup) if worry.startswith("Pulls of Teff")]
    assert bool(found) == (words is not None)
    assert all(words in worry for worry in found)


def test_a_catalogue_of_another_model_or_of_two_or_of_dirty_code_worries(tmp_path, undrawn):
    write_model(tmp_path / "model")
    one, other = stars(40), stars(40, seed=3)
    write_shard(tmp_path / "data", FIDS[0], one, model="content a", version="v1-dirty")
    write_shard(tmp_path / "data", FIDS[1], other, model="content b", version="v1")
    found = " ".join(worries_of(soup_of(page_of(tmp_path / "r", tmp_path / "data",
                                                tmp_path / "model"))))  # fmt: skip
    assert "Models : 2 models" in found
    assert "The model of this page : not that of all shards" in found
    assert "v1-dirty" in found


def test_the_starter_model_beyond_its_range_worries(tmp_path, undrawn, monkeypatch):
    table = quiet_stars(200, np.random.default_rng(4))
    table["phot_g_mean_flux"][:] = 1e4  # G = 15.7
    table["phot_g_mean_flux"][:150] = 1e5
    table["stellar_params_est"][:, 0] = 5.0
    table["stellar_params_est"][:20, 0] = 9.0
    write_shard(tmp_path / "data", FIDS[0], table, model=identity(facts.STARTER))
    text = page_of(tmp_path / "report.html", tmp_path / "data", facts.STARTER.parent)
    found = " ".join(worries_of(soup_of(text)))
    assert "Starter model beyond its range: G > 15 : 25.0% (50 of 200)" in found
    assert "Starter model beyond its range: Teff > 6,800 K : 10.0% (20 of 200)" in found
    assert "Parallax scale of the model : spectro-photometric parallaxes" in found
    assert "the starter model" in text_of(soup_of(text).header)


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
