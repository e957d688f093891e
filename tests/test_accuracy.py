"""How well labels are recovered: scores of groups of stars against their formulas."""

import json

import numpy as np
import pytest
from model_case import LABEL_SETS

from fitting.accuracy import accuracy, format_accuracy
from pipeline.schema import DEFAULT_LABELS

N = 500


def make_scored(labels):
    """(est, err, label, label_err) of 500 stars, heavy tails, some without an estimate."""
    rng = np.random.default_rng(7)
    columns = {
        "teff": rng.uniform(3.5, 7, N),
        "feh": rng.normal(-0.3, 0.4, N),
        "logg": rng.uniform(0, 5, N),
        "alpha_m": rng.normal(0.1, 0.1, N),
    }
    label = np.column_stack([columns[x.name] for x in labels])
    shape = label.shape
    label_err, err = rng.uniform(0.01, 0.05, shape), rng.uniform(0.02, 0.1, shape)
    est = label + 0.03 + err * rng.standard_t(3, shape)
    est[:20], err[20:30, 1] = np.nan, np.nan
    return est.astype("f4"), err.astype("f4"), label, label_err


@pytest.fixture(scope="module")
def scored():
    return make_scored(DEFAULT_LABELS)


def assert_scores(found, est, err, label, label_err, k, unit):
    residual = (est[:, k] - label[:, k]) * unit
    pull = residual / unit / np.sqrt(err[:, k] ** 2 + label_err[:, k] ** 2)
    expected = {
        "offset": np.median(residual),
        "scatter": 1.4826 * np.median(np.abs(residual - np.median(residual))),
        "pull_width": 1.4826 * np.median(np.abs(pull - np.median(pull))),
        "frac_gt3": np.mean(np.abs(pull) > 3),
    }
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("n_labels", [2, 3, 4])
def test_accuracy_equals_its_formulas(n_labels):
    labels = LABEL_SETS[n_labels]
    arrays = make_scored(labels)
    found = accuracy(*arrays, labels)
    assert (found["stars"], found["finite"]) == (N, N - 30)
    giant = arrays[2][:, labels.place["logg"]] < 3.5
    for group, rows in (("all", np.ones(N, bool)), ("giants", giant), ("dwarfs", ~giant)):
        rows = rows & (np.arange(N) >= 30)
        assert found[group]["n"] == rows.sum()
        for k, name in enumerate(labels.texts("name")):
            unit = 1000 if name == "teff" else 1
            assert_scores(found[group][name], *(x[rows] for x in arrays), k, unit)


def test_without_log_g_there_are_no_giants_and_dwarfs():
    labels = type(DEFAULT_LABELS)([x for x in LABEL_SETS[4] if x.name != "logg"])
    found = accuracy(*make_scored(labels), labels)
    assert found.keys() == {"stars", "finite", "all"}
    assert found["all"].keys() == {"n", "teff", "feh", "alpha_m"}


def test_accuracy_of_a_group_without_stars_has_its_count_alone(scored):
    dwarfs = scored[2][:, 2] >= 3.5
    found = accuracy(*(x[dwarfs] for x in scored), DEFAULT_LABELS)
    assert found["giants"] == {"n": 0}
    assert json.loads(json.dumps(found)) == found
    assert "giants" not in format_accuracy(found, DEFAULT_LABELS)


@pytest.mark.parametrize("n_labels", [2, 3, 4])
def test_accuracy_as_text_shows_its_numbers(n_labels):
    labels = LABEL_SETS[n_labels]
    found = accuracy(*make_scored(labels), labels)
    lines = format_accuracy(found, labels).splitlines()
    assert lines[0] == "500 stars, 470 with finite parameters"
    assert len(lines) == 2 + 3 * n_labels
    last = list(labels)[-1]
    assert f"{found['dwarfs'][last.name]['scatter']:.3f}" in lines[-1]
    assert last.title in lines[-1]
    assert "Teff (K)" in lines[2]


def test_text_of_stars_without_estimates_is_their_number(scored):
    nan = np.full((5, 3), np.nan)
    found = accuracy(nan, nan, *(x[:5] for x in scored[2:]), DEFAULT_LABELS)
    assert format_accuracy(found, DEFAULT_LABELS).splitlines()[0] == (
        "5 stars, 0 with finite parameters"
    )
