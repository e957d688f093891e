"""From a list of stars to their parameters: the bundled list, and the way of its spectra."""

import shlex

import numpy as np
import pytest
from helpers import read_all

import gen_xp_input_allsources
from demo import archive_answers, build_sky, run_stars
from demo.chain import ROOT
from fitting.recipe import read_recipe
from fitting.split import held_out
from pipeline.joining import join_rows
from pipeline.select import list_fids, shard_path
from tools import convert_xp_csv, make_star_list

IDS = np.loadtxt(ROOT / run_stars.LIST, dtype=np.int64, skiprows=1)


def test_the_steps_are_scripts_by_their_documented_command_lines():
    commands, instead = run_stars.steps("elsewhere", IDS)
    shown = [shlex.join(command) for command in commands]
    assert shown[:4] == [
        "tools/convert_xp_csv.py demo/list/XP_CONTINUOUS_RAW.zip --data-dir elsewhere/data",
        "demo/archive_answers.py --data-dir elsewhere/data",
        "gen_xp_input_allsources.py --data-dir elsewhere/data --without unwise",
        "xp_opt_allsources.py --data-dir elsewhere/data --model models/starter",
    ]
    assert all((ROOT / command[0]).is_file() for command in commands)
    assert set(instead) == {0, 1}
    for words in instead.values():
        for part in words.replace("python ", "").split("; "):
            assert (ROOT / part.split()[0]).is_file()


def test_the_list_is_of_stars_that_the_starter_model_never_saw():
    assert len(set(IDS.tolist())) == len(IDS) == 100
    assert held_out(IDS, read_recipe(ROOT / "recipe.toml")).all()


def test_the_bundled_files_are_what_their_tool_makes(tmp_path):
    assert make_star_list.main(["--out", str(tmp_path)]) == 0
    for name in ("ids.csv", "XP_CONTINUOUS_RAW.zip"):
        assert (tmp_path / name).read_bytes() == (ROOT / "demo/list" / name).read_bytes()


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """The data directory of the list, up to step 9."""
    data = tmp_path_factory.mktemp("listed") / "data"
    of_data = ["--data-dir", str(data)]
    assert convert_xp_csv.main([str(ROOT / run_stars.SPECTRA), *of_data]) == 0
    assert archive_answers.main(of_data) == 0
    assert gen_xp_input_allsources.main([*of_data, "--without", "unwise"]) == 0
    return data


@pytest.fixture(scope="module")
def bulk(tmp_path_factory):
    """The data directory of all demo stars as of bulk files, up to step 9."""
    data = tmp_path_factory.mktemp("bulk") / "data"
    stars = str(ROOT / run_stars.STARS)
    assert build_sky.main(["--stars", stars, "--out", str(data), "--shards", "2"]) == 0
    assert gen_xp_input_allsources.main(["--data-dir", str(data), "--without", "unwise"]) == 0
    return data


def inputs(data):
    """The columns of step 9, of all shards."""
    parts = [read_all(shard_path(data, "opt_input", fid)) for fid in list_fids(data, "opt_input")]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_inputs_of_the_list_equal_those_of_the_bulk_path_bit_for_bit(listed, bulk):
    one, other = inputs(listed), inputs(bulk)
    rows = join_rows(one["gdr3_source_id"], other["gdr3_source_id"])
    assert sorted(one["gdr3_source_id"]) == sorted(IDS)
    assert (rows >= 0).all()
    for name, values in one.items():
        assert values.tobytes() == np.ascontiguousarray(other[name][rows]).tobytes(), name


def test_answers_for_stars_that_the_demo_has_not_are_refused(tmp_path, listed, capfd):
    few = tmp_path / "few.h5"
    stars, templates, _ = build_sky.read_stars(ROOT / run_stars.STARS)
    keep = stars["source_id"] != IDS[3]
    from pipeline.write import ShardWriter

    with ShardWriter(few, int(keep.sum()), None, {}, {}) as writer:
        for name, values in {**{k: v[keep] for k, v in stars.items()}, **templates}.items():
            writer.write_array(name, values)
    assert archive_answers.main(["--data-dir", str(listed), "--stars", str(few)]) == 2
    assert str(IDS[3]) in capfd.readouterr().err


def test_answers_of_the_list_equal_those_of_the_bulk_path_bit_for_bit(listed, bulk):
    """By the starter model, compiled as in step 10: the list alone, and in the midst of others."""
    from fitting.catalogue import infer
    from fitting.model_file import load_model
    from fitting.star_solver import StarSolver
    from pipeline.schema import load_release
    from xp_opt_allsources import BATCH_STARS

    trained = load_model(ROOT / run_stars.MODEL / "model.h5", load_release("dr3"))
    solver = StarSolver(trained.stellar, BATCH_STARS["CPU"])
    one, other = inputs(listed), inputs(bulk)
    rows = join_rows(one["gdr3_source_id"], other["gdr3_source_id"])
    rng = np.random.default_rng(7)
    more = rng.permutation(np.union1d(rows, rng.choice(len(other["plx"]), 250, replace=False)))
    alone = infer(one, solver, trained)
    among = infer({name: values[more] for name, values in other.items()}, solver, trained)
    place = join_rows(rows, more)
    for name, values in alone.items():
        assert values.tobytes() == np.ascontiguousarray(among[name][place]).tobytes(), name
