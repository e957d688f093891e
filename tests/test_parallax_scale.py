"""A model trained on parallaxes that are not Gaia's leaves Gaia's out, unless told otherwise."""

import shutil

import numpy as np
import pytest
import step10_case
from demo_model import run_inference
from helpers import read_all
from step10_case import output

from fitting import catalogue
from pipeline.provenance import Status, output_state
from pipeline.read import ShardReader, read_arrays
from pipeline.schema import load_release
from pipeline.write import write_arrays

SCALE = "parallaxes of a made-up scale"


@pytest.fixture
def sky(tmp_path, step10):
    return step10.write_sky(tmp_path / "data")


@pytest.fixture
def model(demo_model, tmp_path):
    """A model whose training had other parallaxes."""
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(demo_model.model / "model.h5", folder)
    arrays, _ = read_arrays(folder / "model.h5")
    write_arrays(folder / "model.h5", arrays | {"parallax_scale": np.array(SCALE)}, {})
    return folder


@pytest.fixture
def seen(monkeypatch):
    """The parallaxes that the inference is given, which takes no time."""
    given = []

    def infer(table, solver, trained):
        given.append((table["plx"], table["plx_err"]))
        return step10_case.stand_in(table, solver, trained)

    monkeypatch.setattr(catalogue, "infer", infer)
    return given


def parallaxes(path):
    with ShardReader(path) as reader:
        return reader.attrs["parallaxes"]


def test_a_model_of_another_parallax_scale_leaves_parallaxes_out(sky, model, step10, seen, capfd):
    assert run_inference(sky, model) == 0
    assert all(np.isnan(value).all() for pair in seen for value in pair)
    for fid in step10.fids:
        assert parallaxes(output(sky, fid)) == f"left out: the model was trained on {SCALE}"
        copied = read_all(output(sky, fid))["plx"]
        assert np.array_equal(copied, step10.tables[fid]["plx"], equal_nan=True)
    assert f"parallaxes are left out: the model was trained on {SCALE}" in capfd.readouterr().err


def test_told_otherwise_it_uses_them_and_makes_the_shards_again(sky, model, step10, seen, capfd):
    assert run_inference(sky, model) == 0
    seen.clear()
    assert run_inference(sky, model, "--use-parallaxes") == 0
    assert len(seen) == len(step10.fids)
    assert np.isfinite(seen[0][0]).any()
    assert {parallaxes(output(sky, fid)) for fid in step10.fids} == {"used"}
    assert "now used" in capfd.readouterr().err
    seen.clear()
    assert run_inference(sky, model, "--use-parallaxes") == 0
    assert not seen  # complete


def test_a_model_of_the_stars_own_scale_uses_parallaxes(sky, demo_model, step10, seen):
    assert run_inference(sky, demo_model.model) == 0
    for pair, fid in zip(seen, step10.fids, strict=True):
        assert np.array_equal(pair[0], step10.tables[fid]["plx"], equal_nan=True)
    assert parallaxes(output(sky, step10.fids[0])) == "used"


def test_the_scale_is_kept_with_the_model(model):
    from fitting.model_file import load_model

    trained = load_model(model / "model.h5", load_release("dr3"))
    assert trained.parallax_scale == SCALE
    assert trained.to_arrays()["parallax_scale"] == np.array(SCALE)


def test_an_output_with_another_setting_is_stale_and_says_which(sky, demo_model, step10, seen):
    run_inference(sky, demo_model.model)
    path = output(sky, step10.fids[0])
    inputs = [
        sky / "xp_opt_input_files" / path.name.replace("output", "input"),
        demo_model.model / "model.h5",
    ]
    assert output_state(path, inputs, settings={"parallaxes": "used"}).status is Status.COMPLETE
    assert output_state(path, inputs, settings={"not there": "x"}).status is Status.COMPLETE
    state = output_state(path, inputs, settings={"parallaxes": "left out"})
    assert state.status is Status.STALE
    assert state.reason == "parallaxes: used, now left out"
