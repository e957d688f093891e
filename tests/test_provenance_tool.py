"""The chain behind a file is told as far as it is found, with what changed since."""

import pytest
from shard_case import write_shard

from pipeline.provenance import provenance
from pipeline.select import shard_path
from pipeline.write import ShardWriter, write_arrays
from tools import provenance as tool

FID = "000000-003111"


@pytest.fixture
def sky(tmp_path):
    """A catalogue made of an input and a model, these of spectra and of a training set."""
    data = tmp_path / "data"
    paths = {kind: shard_path(data, kind, FID) for kind in ("xp", "opt_input", "opt_output")}
    write_shard(paths["xp"], script="convert_xp_csv")
    write_shard(paths["opt_input"], inputs=[paths["xp"]], script="gen_xp_input_allsources")
    training, model = tmp_path / "training_data.h5", tmp_path / "model" / "model.h5"
    write_shard(training, inputs=[paths["xp"]], script="compile_training_data")
    write_arrays(model, {"a": [1.0]}, provenance("train", ["-i", "x"], [training]))
    inputs = [paths["opt_input"], model]
    write_shard(paths["opt_output"], inputs=inputs, script="xp_opt_allsources")
    return paths | {"training": training, "model": model}


def told(capsys, *words):
    capsys.readouterr()
    status = tool.main([str(word) for word in words])
    return status, capsys.readouterr()


def test_the_chain_goes_back_to_the_spectra_with_code_commands_and_contents(sky, tmp_path, capsys):
    folders = ["--look", tmp_path / "model", tmp_path, sky["xp"].parent.parent]
    status, shown = told(capsys, sky["opt_output"], *folders)
    assert status == 0
    for script in ("xp_opt_allsources", "gen_xp_input_allsources", "train", "convert_xp_csv",
                   "compile_training_data"):  # fmt: skip
        assert f"script: {script}" in shown.out
    assert "command line: train -i x" in shown.out
    assert shown.out.count("as recorded") == 5
    assert shown.out.count("script: convert_xp_csv") == 1  # told once
    assert f"{sky['xp'].name}: above" in shown.out


def test_what_is_not_found_ends_the_chain_there(sky, capsys):
    status, shown = told(capsys, sky["opt_output"])
    assert status == 0
    assert shown.out.count("not found") == 1
    assert "script: train" not in shown.out
    assert "script: convert_xp_csv" in shown.out


def test_an_input_with_another_content_is_told_and_is_exit_status_1(sky, capsys):
    write_shard(sky["xp"], value=2.0, script="convert_xp_csv")
    status, shown = told(capsys, sky["opt_output"])
    assert status == 1
    assert "another content now" in shown.out


def test_files_of_others_and_damaged_ones_are_told_as_such(sky, tmp_path, capsys):
    catalogue = tmp_path / "0000p000.cat.fits"
    catalogue.write_text("SIMPLE")
    output = tmp_path / "x.h5"
    sources = [catalogue, sky["xp"]]
    with ShardWriter(output, None, None, provenance("match", [], sources)) as writer:
        writer.write_array("a", [1])
    sky["xp"].write_bytes(b"\x89HDF\r\n\x1a\n" + b"0" * 50)
    status, shown = told(capsys, output, "--look", sky["xp"].parent)
    assert status == 1
    assert "not made by this project" in shown.out
    assert "not a readable HDF5 file" in shown.out


@pytest.mark.parametrize("content", [None, b"\x89HDF\r\n\x1a\nxxx"])
def test_a_file_that_cannot_be_read_is_wrong_usage(tmp_path, capsys, content):
    path = tmp_path / "x.h5"
    if content:
        path.write_bytes(content)
    status, shown = told(capsys, path)
    assert status == 2
    assert "x.h5" in shown.err
