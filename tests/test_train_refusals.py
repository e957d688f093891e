"""Step 8 refuses recipes and training sets that cannot be used, in one line, before it trains."""

import os

import numpy as np
import pytest
from demo_model import run_train, stage, write_recipe
from helpers import flip_bit, read_all, truncate
from train_case import WAVELENGTHS, assert_refused, write_training_data

from fitting.observed import FINE, OBSERVED
from fitting.training_set import EXTINCTION, G_FLUX, LABELS
from pipeline.schema import DEFAULT_LABELS, LabelSet
from pipeline.schema.labels import parse_label


@pytest.fixture(scope="module")
def table(demo_model):
    """All datasets of the training data."""
    return read_all(demo_model.training_data)


@pytest.fixture
def refused(demo_model, tmp_path, capsys):
    """A check that a training set is refused with some words, and nothing written."""

    def check(path, *words):
        status = run_train(path, tmp_path / "model", recipe=demo_model.recipe)
        assert_refused(capsys, status, path.name, *words)
        assert not (tmp_path / "model").exists()

    return check


# --- recipes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden": 0}, "hidden is 0"),
        ({"hiden": 3}, "unknown or missing: hiden"),
        ({"stages": [stage(kind="liklihood")]}, "kind 'liklihood'"),
        ({"stages": []}, "at least one"),
    ],
)
def test_unusable_recipe_is_refused_before_training(demo_model, tmp_path, changes, words, capsys):
    path = write_recipe(tmp_path / "mine.toml", **changes)
    status = run_train(demo_model.training_data, tmp_path / "model", recipe=path)
    assert_refused(capsys, status, "mine.toml: not a usable recipe", words)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("none.toml", None, "No such file"),
        ("recipe.json", '{"seed": 0}', "recipes are TOML files, as recipe.toml"),
    ],
)
def test_file_that_is_no_recipe_is_refused(demo_model, tmp_path, name, text, words, capsys):
    if text is not None:
        (tmp_path / name).write_text(text)
    status = run_train(demo_model.training_data, tmp_path / "model", recipe=tmp_path / name)
    assert_refused(capsys, status, name, words)


def test_label_of_the_direct_estimate_alone_needs_a_stage_that_trains_it(
    demo_model, table, tmp_path, capsys
):
    labels = LabelSet([*list(DEFAULT_LABELS)[:2], parse_label("logg:direct")])
    data = write_training_data(tmp_path / "data.h5", table, labels)
    recipe = write_recipe(tmp_path / "recipe.toml", stages=[stage()])
    status = run_train(data, tmp_path / "model", recipe=recipe)
    words = "no stage of kind direct, which alone gives log g"
    assert_refused(capsys, status, "recipe.toml", words)


# --- training data --------------------------------------------------------------------------


def without(name):
    def change(table):
        del table[name]

    return change


def with_value(name, row, value):
    def change(table):
        table[name][row] = value

    return change


def with_shape(name, shape):
    def change(table):
        table[name] = np.ones((len(table["plx"]), *shape), "f4")

    return change


def with_text(table):
    table["plx"] = table["plx"].astype("S8")


def constant(table):
    table["stellar_type"][:, 1] = 0.0


NEEDED = (*OBSERVED, FINE, *LABELS, *EXTINCTION, G_FLUX)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *((without(name), f"no dataset {name}") for name in NEEDED),
        (with_value("stellar_type", 7, np.nan), "stellar_type is not finite for 1 of 400 stars"),
        (with_value("stellar_type", (7, 1), -9999), "[Fe/H] of stellar_type is outside of -8 to 2"),
        (with_value("stellar_type_err", (7, 1), np.nan), "e.g. row 7"),
        (with_value("stellar_type_err", (7, 1), 0.0), "type_err is not finite and positive"),
        (with_value("plx", slice(3, 5), -0.1), "plx is not finite and positive for 2 of 400"),
        (with_value("plx_err", 3, np.inf), "plx_err is not finite and positive for 1 of 400"),
        (with_shape("flux_err", (61,)), "flux_err is float32 with rows of shape (61,), expected"),
        (with_shape(FINE, (61,)), "xp_fine is float32 with rows of shape (61,), expected"),
        (with_shape("stellar_type", (2,)), "stellar_type is float32 with rows of shape (2,)"),
        (with_shape("plx", (1,)), "plx is float32 with rows of shape (1,)"),
        (with_text, "plx is |S8"),
        (with_value("gdr3_source_id", slice(0, 3), 5), "2 repeated ids, the first is 5"),
        (constant, "stellar_type has the same [Fe/H] for all stars"),
    ],
)
def test_unusable_training_data_are_refused(table, tmp_path, change, words, refused):
    changed = {k: v.copy() for k, v in table.items()}
    change(changed)
    refused(write_training_data(tmp_path / "data.h5", changed), words)


@pytest.mark.parametrize(
    ("wavelengths", "words"),
    [
        (None, "flux has 0 sample_wavelengths"),
        (WAVELENGTHS[:61], "flux has 61 sample_wavelengths"),
        (WAVELENGTHS + 5, "flux has 66 sample_wavelengths that are not the 66 of Gaia DR3"),
    ],
)
def test_other_wavelengths_are_refused(table, tmp_path, wavelengths, words, refused):
    refused(write_training_data(tmp_path / "data.h5", table, wavelengths=wavelengths), words)


def test_training_set_that_does_not_say_its_labels_is_refused(table, tmp_path, refused):
    words = "stellar_type does not say what its labels are", "compile_training_data.py"
    refused(write_training_data(tmp_path / "data.h5", table, labels=None), *words)


def test_training_set_of_an_older_format_is_refused(table, tmp_path, refused):
    words = "another version of compile_training_data (format 1, now 2)", "--overwrite"
    refused(write_training_data(tmp_path / "data.h5", table, format=1), *words)


def test_training_set_of_another_release_is_refused(table, tmp_path, refused):
    words = "of the release dr9, but dr3 is in use: give --release dr9"
    refused(write_training_data(tmp_path / "data.h5", table, release="dr9"), words)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ("not json", "not a description of labels"),
        ('[{"name": "teff"}]', "not a description of labels"),
    ],
)
def test_labels_that_are_no_description_are_refused(table, tmp_path, labels, words, refused):
    class Described:
        def to_json(self):
            return labels

    refused(write_training_data(tmp_path / "data.h5", table, Described()), words)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (os.unlink, "not found"),
        (truncate, "not a readable HDF5 file"),
        (lambda path: os.truncate(path, 0), "empty file (0 bytes)"),
        (lambda path: flip_bit(path, "flux"), "dataset flux, rows 0 to"),
    ],
)
def test_damaged_training_data_are_named(table, tmp_path, damage, words, refused):
    path = write_training_data(tmp_path / "data.h5", table)
    damage(path)
    refused(path, words)


@pytest.mark.parametrize("n", [0, 1, 200])
def test_too_few_stars_are_refused(table, tmp_path, n, refused):
    few = {k: v[:n] for k, v in table.items()}
    refused(write_training_data(tmp_path / "few.h5", few), "at least 200")


def test_output_that_is_a_file_is_refused(demo_model, tmp_path, capsys):
    (tmp_path / "model").write_text("mine")
    status = run_train(demo_model.training_data, tmp_path / "model", recipe=demo_model.recipe)
    assert_refused(capsys, status, str(tmp_path / "model"))
    assert (tmp_path / "model").read_text() == "mine"
