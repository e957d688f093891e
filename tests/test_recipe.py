"""Recipes: every field is checked, in words that name it, before anything is trained."""

import tomllib
from pathlib import Path

import pytest
from demo_model import ALL_GROUPS, RECIPE, recipe_text, stage

from fitting.recipe import (
    GROUPS,
    OWN_GROUPS,
    STAGES,
    CalibrationStage,
    DirectStage,
    DistanceStage,
    LikelihoodStage,
    OddityStage,
    PosteriorStage,
    Recipe,
    StarsStage,
    make_recipe,
    read_recipe,
)
from pipeline.errors import UsageError

ROOT = Path(__file__).resolve().parents[1]
FRACTIONS = (
    "validation_fraction", "calibration_fraction", "hide_parallax", "hide_photometry", "hide_bp",
    "hide_rp", "faint_share", "blur_parallax",
)  # fmt: skip
SIZES = (
    "hidden", "noise_hidden", "prior_components", "direct_networks", "screen_networks",
    "simulated_stars",
)  # fmt: skip


def one_stage(**changes):
    """RECIPE with a single stage, changed."""
    return RECIPE | {"stages": [stage(**changes)]}


def without(table, *keys):
    return {key: value for key, value in table.items() if key not in keys}


# ---- usable recipes --------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["recipe.toml", "demo/recipe.toml"])
def test_recipes_of_the_project_are_usable(path):
    recipe = read_recipe(ROOT / path)
    assert [type(one) for one in recipe.stages] == [
        LikelihoodStage, LikelihoodStage, LikelihoodStage, LikelihoodStage, StarsStage,
        PosteriorStage, CalibrationStage, DirectStage, DistanceStage, OddityStage,
    ]  # fmt: skip
    assert recipe.stages[1].select.max_err == {"teff": 0.1, "feh": 0.1, "logg": 0.15}
    assert [s.name for s in recipe.of_kind("calibration", "direct")] == ["calibration", "direct"]


def test_recipe_of_the_tests_survives_its_file(tmp_path):
    assert tomllib.loads(recipe_text(RECIPE)) == RECIPE
    path = tmp_path / "a.toml"
    path.write_text(recipe_text(RECIPE))
    assert read_recipe(path) == make_recipe(RECIPE)


def test_fields_are_as_given_and_others_at_their_defaults():
    recipe = make_recipe(RECIPE)
    assert isinstance(recipe, Recipe)
    assert (recipe.direct_hidden, recipe.screen_hidden) == ((24, 16), (16,))
    assert recipe.faint_g == (15.0, 18.0)
    first, xi, stars, posterior, *_ = recipe.stages
    assert (first.name, first.steps, first.learning_rate) == ("first", 9, 2e-2)
    assert first.train == ("network", "extinction", "noise")
    assert (first.max_epochs, first.weight_decay, first.hide_parallax) == (None, 0.0, None)
    assert first.select.max_err == {"teff": 0.1}
    assert (first.select.min_parallax_snr, first.select.min_extinction) == (None, None)
    assert xi.select.min_extinction == 0.1
    assert (stars.reject_sigma, stars.reject_chi2_factor) == (20.0, 20.0)
    assert posterior.weight_decay == 0.1


def test_labels_that_the_stars_may_not_have_can_be_selected_by():
    recipe = make_recipe(one_stage(select={"max_err": {"nothing_known": 0.1}}))
    assert recipe.stages[0].select.max_err == {"nothing_known": 0.1}


def test_stages_have_the_losses_of_their_kind():
    losses = {kind: set(getattr(one, "losses", ())) for kind, one in STAGES.items()}
    assert losses == {
        "likelihood": {"likelihood", "extinction_law"},
        "posterior": {"likelihood", "posterior", "spectrum", "extinction_law"},
        "calibration": {"posterior"},
        "direct": {"direct"},
        "distance": {"distance"},
        "oddity": {"oddity"},
        "stars": set(),
    }


# ---- unusable ones ---------------------------------------------------------------------------


def assert_refused(table, *words):
    with pytest.raises(ValueError) as refusal:
        make_recipe(table)
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize("name", [key for key in RECIPE if key != "stages"])
def test_every_key_of_a_recipe_is_needed(name):
    assert_refused(without(RECIPE, name), "the recipe: unknown or missing", name)


@pytest.mark.parametrize("name", ["name", "steps", "batch_size", "learning_rate", "train"])
def test_every_key_of_a_stage_without_a_default_is_needed(name):
    changed = RECIPE | {"stages": [without(stage(), name)]}
    assert_refused(changed, "unknown or missing", name)


@pytest.mark.parametrize("name", ["name", "reject_sigma", "reject_chi2_factor"])
def test_every_key_of_a_stage_that_fits_stars_is_needed(name):
    changed = RECIPE | {"stages": [without(stage("stars"), name)]}
    assert_refused(changed, "unknown or missing", name)


@pytest.mark.parametrize("name", FRACTIONS)
@pytest.mark.parametrize("value", [-0.1, 1.1, 20, float("nan"), float("inf"), "some", True, [0.5]])
def test_fractions_are_numbers_from_0_to_1(name, value):
    assert_refused(RECIPE | {name: value}, f"{name} is {value!r}")


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", [0, -3, 2.5, "many", True, float("nan")])
def test_sizes_are_whole_numbers_from_1(name, value):
    assert_refused(RECIPE | {name: value}, f"{name} is {value!r}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("candidates", 1),
        ("candidates", 2.5),
        ("seed", -1),
        ("seed", 0.5),
        ("rare_type_weight_cap", -1.0),
        ("rare_type_weight_cap", float("inf")),
        ("rare_type_weight_cap", float("nan")),
    ],
)
def test_other_numbers_have_limits_too(name, value):
    assert_refused(RECIPE | {name: value}, f"{name} is {value!r}")


@pytest.mark.parametrize("name", ["direct_hidden", "screen_hidden"])
@pytest.mark.parametrize("value", [[], [0], [2.5], ["a"], [True], 32, "32"])
def test_layers_of_the_networks_on_what_is_observed_are_sizes(name, value):
    assert_refused(RECIPE | {name: value}, f"{name} is")


@pytest.mark.parametrize(
    "value",
    [[], [15.0], [15.0, 16.0, 17.0], ["a", 18.0], [True, 18.0], [18.0, 15.0], [16.0, 16.0],
     [float("nan"), 18.0], [15.0, float("inf")], 18.0, "15-18"],
)  # fmt: skip
def test_brightnesses_that_stars_are_shown_at_are_the_brightest_and_the_faintest(value):
    assert_refused(RECIPE | {"faint_g": value}, "faint_g is")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "liklihood"}, "kind 'liklihood'; known: likelihood"),
        ({"kind": ["stars"]}, "kind ['stars']"),
        ({"kind": None}, "kind None"),
        ({"rate": 2}, "stage first: unknown or missing: rate"),
        ({"name": 3}, "name is 3; str is expected"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 6.5}, "steps is 6.5; int is expected"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 6.5}, "batch_size is 6.5; int is expected"),
        ({"learning_rate": -1e-3}, "learning_rate is -0.001"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'; float is expected"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"max_epochs": 0}, "max_epochs is 0"),
        ({"hide_parallax": 2}, "hide_parallax is 2"),
        ({"train": ["netwrk"]}, "train is ['netwrk']; known: network"),
        ({"train": []}, "train is []"),
        ({"train": 3}, "train is 3; tuple is expected"),
        ({"train": "network"}, "train is 'network'"),
        ({"train": ["network", "direct"]}, "a stage of kind direct, distance, oddity trains"),
        ({"train": ["distance"]}, "a stage of kind direct, distance, oddity trains"),
        *(
            ({"kind": kind, "train": train}, "a stage of kind direct, distance, oddity trains")
            for kind in OWN_GROUPS
            for train in (["network"], [kind, "network"], ["network", kind], [*OWN_GROUPS])
        ),
        ({"select": {"max_teff": 1}}, "select: unknown or missing: max_teff"),
        ({"select": {"max_err": 0.1}}, "max_err is 0.1; dict is expected"),
        ({"select": {"max_err": {"teff": "low"}}}, "max_err of teff is 'low'"),
        ({"select": {"max_err": {"teff": 0}}}, "max_err of teff is 0"),
        ({"select": {"min_extinction": "low"}}, "min_extinction is 'low'"),
        ({"select": {"min_parallax_snr": -1}}, "min_parallax_snr is -1"),
        ({"select": 3}, "select is 3"),
    ],
)
def test_unusable_stage_is_refused(changes, words):
    assert_refused(one_stage(**changes), words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"reject_sigma": -1}, "reject_sigma is -1"), ({"steps": 3}, "unknown or missing: steps")],
)
def test_unusable_stage_that_fits_stars_is_refused(changes, words):
    assert_refused(RECIPE | {"stages": [stage("stars", **changes)]}, "stage stars", words)


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([], "at least one"),
        (["first"], "kind 'first'"),
        ("first", "a list is expected"),
        ({"name": "first"}, "a list is expected"),
        (3, "a list is expected"),
    ],
)
def test_stages_are_a_list_of_tables(stages, words):
    assert_refused(RECIPE | {"stages": stages}, words)


def test_unknown_key_is_refused():
    assert_refused(RECIPE | {"hiden": 3}, "the recipe: unknown or missing: hiden")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("none.toml", None, "No such file"),
        ("a.toml", "{not toml", "not a usable recipe"),
        ("a.toml", "", "unknown or missing"),
        ("a.toml", "stages = 7", "a list is expected"),
        ("recipe.json", '{"seed": 0, "stages": []}', "recipes are TOML files, as recipe.toml"),
    ],
)
def test_file_that_is_no_recipe_is_refused_by_name(tmp_path, name, text, words):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError) as refusal:
        read_recipe(path)
    message = str(refusal.value)
    assert message.startswith(f"{path}: not a usable recipe")
    assert words in message
    assert "\n" not in message


def test_groups_of_the_tests_are_those_of_recipes():
    assert set(ALL_GROUPS) < set(GROUPS)
