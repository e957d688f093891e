"""tools/report.py: what the page says is what is in the files, and is never obeyed."""

import itertools
import json
import shlex

import html5lib
import numpy as np
import pytest
from export_case import write_catalogue
from helpers import FIDS
from report_case import (
    number_in,
    page_of,
    soup_of,
    table_of,
    text_of,
    write_all,
    write_model,
)

from pipeline.schema import DEFAULT_LABELS, Layout, flags, resolved
from pipeline.select import shard_path
from tools import report

SECTIONS = ["worries", "run", "stars", "accuracy", "figures", "training", "columns"]


@pytest.fixture(scope="module")
def made(tmp_path_factory, small_pictures):
    """(page as text, taken apart, columns of the catalogue, of the validation stars)."""
    folder = tmp_path_factory.mktemp("report")
    data_dir, model, table, validation = write_all(folder)
    text = page_of(folder / "report.html", data_dir, model)
    return text, soup_of(text), table, validation


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
