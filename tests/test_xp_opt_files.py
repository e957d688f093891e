"""Step 10 by its command line: parts, interruptions, outdated and damaged files, wrong models.

Tests of what happens to files use a stand-in for the inference, which costs no time.
"""

import os
import shutil
import signal

import numpy as np
import pytest
import step10_case
from demo_model import run_inference, run_python
from helpers import assert_same_datasets, flip_bit, read_all, truncate
from step10_case import N_STARS, WAVELENGTHS, output

from fitting import catalogue
from fitting.observed import FINE, OBSERVED
from pipeline.read import read_arrays
from pipeline.select import shard_path
from pipeline.write import write_arrays


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch):
    for name in list(os.environ):
        if name.startswith("SLURM"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def fids(step10):
    return step10.fids


@pytest.fixture
def sky(tmp_path, step10):
    """A fresh data directory of three small shards."""
    return step10.write_sky(tmp_path / "data")


@pytest.fixture
def model(demo_model, tmp_path):
    """A folder with a copy of the model, which may be damaged."""
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(demo_model.model / "model.h5", folder)
    return folder


@pytest.fixture
def stand_in(monkeypatch):
    """Inference that takes no time."""
    monkeypatch.setattr(catalogue, "infer", step10_case.stand_in)


def change_arrays(path, change):
    """A model file whose arrays were changed."""
    arrays, _ = read_arrays(path)
    change(arrays)
    write_arrays(path, arrays, {})


def test_shard_without_stars_gives_a_whole_output_without_stars(
    demo_model, sky, step10, fids, stand_in
):
    none = {name: values[:0] for name, values in step10.tables[fids[1]].items()}
    step10.write(sky, fids[1], none)
    assert run_inference(sky, demo_model.model) == 0
    empty, other = (read_all(output(sky, fid)) for fid in fids[1:])
    assert {k: v.shape[1:] for k, v in empty.items()} == {k: v.shape[1:] for k, v in other.items()}
    assert {k: v.dtype for k, v in empty.items()} == {k: v.dtype for k, v in other.items()}
    assert len(empty["ra"]) == 0


# --- parts, interruptions, outdated outputs -------------------------------------------------


def test_parts_together_are_the_whole(demo_model, sky, fids, tmp_path, stand_in):
    whole = tmp_path / "whole"
    shutil.copytree(sky, whole)
    assert run_inference(whole, demo_model.model) == 0
    for k in range(4):
        assert run_inference(sky, demo_model.model, "--partition", 4, k) == 0
    for fid in fids:
        assert_same_datasets(output(whole, fid), output(sky, fid))
    assert (sky / "logs/xp_opt_allsources_part3-of-4.log").exists()


KILLED = """
from fitting import catalogue
from pipeline import write
import step10_case
import xp_opt_allsources as step
catalogue.infer = step10_case.stand_in
whole, calls = write.ShardWriter.write_table, []
def write_table(self, table, **options):
    calls.append(1)
    if len(calls) < 2:
        return whole(self, table, **options)
    whole(self, dict(list(table.items())[:5]), **options)  # in the middle of the second shard
    os.kill(os.getpid(), signal.SIGKILL)
write.ShardWriter.write_table = write_table
with quick():
    step.main(sys.argv[1:])
"""


def test_shards_at_once_give_the_same_files(demo_model, sky, fids, tmp_path, stand_in):
    whole = tmp_path / "one after another"
    shutil.copytree(sky, whole)
    assert run_inference(whole, demo_model.model) == 0
    assert run_inference(sky, demo_model.model, "--jobs", 3) == 0
    for fid in fids:
        assert_same_datasets(output(whole, fid), output(sky, fid))


@pytest.mark.parametrize("option", ["--jobs", "--batch-size"])
def test_no_shard_and_no_star_at_once_is_wrong_usage(demo_model, sky, option, capsys):
    with pytest.raises(SystemExit, match="2"):
        run_inference(sky, demo_model.model, option, 0)
    assert f"{option}: invalid number of at least 1 value" in capsys.readouterr().err


def test_killed_run_finished_by_running_again_gives_the_same_datasets(
    demo_model, sky, fids, tmp_path, stand_in
):
    whole = tmp_path / "whole"
    shutil.copytree(sky, whole)
    assert run_inference(whole, demo_model.model) == 0
    words = ["--data-dir", sky, "--model", demo_model.model, "--threads", 1]
    killed = run_python(KILLED, *words)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [output(sky, fid).exists() for fid in fids] == [True, False, False]
    first = output(sky, fids[0]).stat().st_mtime_ns
    assert run_inference(sky, demo_model.model) == 0
    assert output(sky, fids[0]).stat().st_mtime_ns == first  # skipped
    for fid in fids:
        assert_same_datasets(output(whole, fid), output(sky, fid))
    names = sorted(path.name for path in output(sky, fids[0]).parent.iterdir())
    assert names == [output(sky, fid).name for fid in fids]  # nothing of the killed run


def test_outputs_of_another_model_are_made_again_and_said(sky, fids, model, stand_in, capsys):
    assert run_inference(sky, model) == 0
    before = read_all(output(sky, fids[0]))
    capsys.readouterr()
    assert run_inference(sky, model) == 0
    assert "0 done, 3 already complete" in capsys.readouterr().err

    def change(arrays):
        arrays["bias_out"] = arrays["bias_out"] + np.float32(0.5)

    change_arrays(model / "model.h5", change)
    assert run_inference(sky, model) == 0
    message = capsys.readouterr().err
    assert message.count("stale output is made again") == 3
    assert "model.h5" in message
    after = read_all(output(sky, fids[0]))
    assert not np.array_equal(before["stellar_params_est"], after["stellar_params_est"])


def test_model_copied_elsewhere_is_the_same_model(demo_model, sky, model, stand_in, capsys):
    assert run_inference(sky, demo_model.model) == 0
    capsys.readouterr()
    assert run_inference(sky, model) == 0
    assert "0 done, 3 already complete" in capsys.readouterr().err


def test_changed_input_makes_its_output_outdated(demo_model, sky, step10, fids, stand_in, capsys):
    assert run_inference(sky, demo_model.model) == 0
    table = step10.tables[fids[2]]
    table = table | {"plx": table["plx"] + 1}
    step10.write(sky, fids[2], table)
    assert run_inference(sky, demo_model.model) == 0
    assert "1 done, 2 already complete" in capsys.readouterr().err
    np.testing.assert_array_equal(read_all(output(sky, fids[2]))["plx"], table["plx"])


@pytest.mark.parametrize(
    "damage",
    [truncate, lambda path: os.truncate(path, 0), lambda path: flip_bit(path, "gdr3_source_id")],
)
def test_damaged_output_is_made_again(demo_model, sky, fids, damage, stand_in, capsys):
    assert run_inference(sky, demo_model.model) == 0
    whole = read_all(output(sky, fids[0]))
    damage(output(sky, fids[0]))
    assert run_inference(sky, demo_model.model) == 0
    assert "1 done, 2 already complete" in capsys.readouterr().err
    np.testing.assert_array_equal(read_all(output(sky, fids[0]))["ra"], whole["ra"])


# --- inputs that cannot be used -------------------------------------------------------------


@pytest.fixture
def one_failed(demo_model, sky, fids, stand_in, capsys):
    """A check that the middle shard fails and is named, and the others are done."""

    def check(*words):
        assert run_inference(sky, demo_model.model) == 1
        message = capsys.readouterr().err
        assert "Traceback" not in message
        assert "2 done, 0 already complete, 1 failed" in message
        for word in (shard_path(sky, "opt_input", fids[1]).name, *words):
            assert word in message
        assert [output(sky, fid).exists() for fid in fids] == [True, False, True]
        assert len(list(output(sky, fids[0]).parent.iterdir())) == 2  # no half-written file either

    return check


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, "not a readable HDF5 file"),
        (lambda path: os.truncate(path, 0), "empty file (0 bytes)"),
        (lambda path: flip_bit(path, "flux"), "dataset flux, rows 0 to 30, cannot be read"),
        (lambda path: flip_bit(path, "norm_dg"), "dataset norm_dg"),
        (lambda path: path.write_text("<html>"), "not a readable HDF5 file"),
    ],
)
def test_damaged_input_is_named_and_the_others_done(sky, fids, damage, words, one_failed):
    damage(shard_path(sky, "opt_input", fids[1]))
    one_failed(words)


@pytest.mark.parametrize("name", [*OBSERVED, FINE, "ra", "phot_g_mean_flux", "input_flags"])
def test_missing_dataset_is_named(sky, step10, fids, name, one_failed):
    table = {k: v for k, v in step10.tables[fids[1]].items() if k != name}
    step10.write(sky, fids[1], table)
    one_failed(f"no dataset {name}; found: dec")


@pytest.mark.parametrize(
    ("wavelengths", "words"),
    [
        (None, "0 sample_wavelengths that are not the model's 66"),
        (WAVELENGTHS[:61], "61 sample_wavelengths that are not"),
        (WAVELENGTHS + 1, "66 sample_wavelengths that are not"),
    ],
)
def test_other_wavelengths_are_refused(sky, step10, fids, wavelengths, words, one_failed):
    step10.write(sky, fids[1], step10.tables[fids[1]], wavelengths)
    one_failed(words)


@pytest.mark.parametrize("name", ["flux", "flux_err"])
def test_fluxes_of_another_shape_are_refused(sky, step10, fids, name, one_failed):
    table = step10.tables[fids[1]] | {name: np.ones((N_STARS, 61), "f4")}
    step10.write(sky, fids[1], table)
    one_failed(f"{name} is float32 with rows of shape (61,), expected f4 and (66,)")


def test_input_of_an_older_format_is_refused(sky, step10, fids, one_failed):
    step10.write(sky, fids[1], step10.tables[fids[1]], format=1)
    words = "another version of gen_xp_input_allsources (format 1, now 2): make it again"
    one_failed(words, "--overwrite")


def test_input_sampled_with_another_basis_is_refused(sky, step10, fids, one_failed):
    step10.write(sky, fids[1], step10.tables[fids[1]], xp_basis="basis of elsewhere")
    one_failed("sampled with the XP basis 'basis of elsewhere'", "make both with the same")


def test_input_of_another_release_is_refused(sky, step10, fids, one_failed):
    step10.write(sky, fids[1], step10.tables[fids[1]], release="dr9")
    one_failed("of the release dr9, but dr3 is in use: give --release dr9")


# --- models that are none -------------------------------------------------------------------


@pytest.fixture
def refused(sky, model, capsys):
    """A check that the model is refused with some words, and nothing written."""

    def check(*words):
        assert run_inference(sky, model) == 2
        message = capsys.readouterr().err
        assert "Traceback" not in message
        assert message.startswith("error: ")
        assert message.count("\n") == 1
        for word in ("model.h5", *words):
            assert word in message
        assert not (sky / "xp_opt_output_files").exists()

    return check


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (os.unlink, "no trained model there"),
        (truncate, "not a readable HDF5 file"),
        (lambda path: os.truncate(path, 0), "empty file"),
        (lambda path: flip_bit(path, "noise_w_out"), "dataset noise_w_out"),
        (lambda path: path.write_text("{}"), "not a readable HDF5 file"),
    ],
)
def test_damaged_model_is_refused(model, damage, words, refused):
    damage(model / "model.h5")
    refused(words)


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("w_out", None, "not a model of train.py ('w_out')"),
        ("range_faces", None, "not a model of train.py ('range_faces')"),
        ("channel_bp", None, "not a model of train.py ('channel_bp')"),
        ("bias_1", np.zeros(3, "f4"), "not a model of train.py"),
        ("prior_means", np.zeros(3), "not a model of train.py"),
        ("noise_b1", np.float32(1), "not a model of train.py"),
        ("labels", np.array("[]"), "not a model of train.py"),
    ],
)
def test_what_is_no_model_is_refused(model, name, array, words, refused):
    def change(arrays):
        del arrays[name]
        if array is not None:
            arrays[name] = array

    change_arrays(model / "model.h5", change)
    refused(words, "train it again (--overwrite)")


def test_model_of_an_older_version_is_refused_with_what_to_do(model, refused):
    """It has parameters in another order, and does not say what its labels are."""

    def change(arrays):
        for name in ("labels", "release", "xp_basis", "label_mean", "label_scale"):
            del arrays[name]

    change_arrays(model / "model.h5", change)
    refused("of an older version of train.py", "train it again (--overwrite)")


def test_model_of_another_release_is_refused_with_what_to_do(model, refused):
    change_arrays(model / "model.h5", lambda arrays: arrays.update(release=np.array("dr9")))
    refused("trained on dr9, but dr3 is in use: give --release dr9, or a model of dr3")


def test_training_data_are_no_model(demo_model, model, refused):
    shutil.copy(demo_model.training_data, model / "model.h5")
    refused("not a model of train.py")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--shards", "000001-000002"), "000001-000002: not in"),
        (("--partition", 2, 2), "K must be 0..N-1"),
        (("--data-dir", "nowhere"), "nowhere"),
    ],
)
def test_wrong_usage_is_one_line(demo_model, sky, options, words, capsys):
    assert run_inference(sky, demo_model.model, *options) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert words in message
