"""tools/report.py: what to worry about, and what not."""

import numpy as np
import pytest
from export_case import stars, write_shard
from helpers import FIDS
from report_case import (
    page_of,
    soup_of,
    table_of,
    text_of,
    validation_stars,
    worries_of,
    write_model,
    write_validation,
)

from fitting.report import facts, worries
from pipeline.provenance import identity
from pipeline.schema import DEFAULT_LABELS, flags

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
