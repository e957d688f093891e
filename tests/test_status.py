"""What tools/status.py says of shards is what the steps would do with them."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import changed
from shard_case import ROOT, arguments, dead_pid, fid_list

from pipeline import index, lease, run, select
from pipeline.errors import ShardError
from pipeline.figures.states import sky_states
from pipeline.provenance import provenance
from pipeline.run_logs import read_logs
from pipeline.schema import FILES, KINDS
from pipeline.select import shard_path
from pipeline.states import Shard, find_states
from pipeline.write import ShardWriter, write_arrays
from tools import status

INPUTS = {
    "metadata": ["xp"],
    "tmass": ["xp"],
    "unwise": ["metadata"],
    "reddening": ["metadata"],
    "opt_input": ["xp", "metadata", "tmass", "unwise"],
    "opt_output": ["opt_input"],
}
N_ROWS = 5


def make(data_dir, kind, fid, value=1.0, inputs=None, **attrs):
    """A shard as its step leaves it, as far as attributes go."""
    if inputs is None:
        inputs = [shard_path(data_dir, one, fid) for one in INPUTS.get(kind, ())]
    made_by = provenance(Path(KINDS[kind].step).stem, [], inputs)
    made_by |= {"kind": kind, "format": FILES[kind].format} | attrs
    path = select.output_path(data_dir, kind, fid)
    with ShardWriter(path, N_ROWS, "id", made_by) as writer:
        writer.write("id", 0, np.arange(N_ROWS))
        writer.write("flux", 0, np.full(N_ROWS, value))
    return path


@pytest.fixture(scope="module")
def complete_sky(tmp_path_factory):
    """Six shards of every kind, complete."""
    folder = tmp_path_factory.mktemp("complete")
    for fid in fid_list(6):
        for kind in KINDS:
            make(folder, kind, fid)
    return folder


@pytest.fixture
def sky(complete_sky, tmp_path):
    """The same for one test."""
    return shutil.copytree(complete_sky, tmp_path / "data")


def states(data_dir, kind, **options):
    return find_states(data_dir, **options)[kind].states


def ask(data_dir, *options):
    return status.main(["--data-dir", str(data_dir), *map(str, options)])


def asked(data_dir, capsys, *options):
    capsys.readouterr()
    found = ask(data_dir, "--json", *options)
    return found, json.loads(capsys.readouterr().out)


# ---- states ----------------------------------------------------------------------------------


def test_a_finished_sky_is_complete_with_its_rows_and_bytes(sky, capsys):
    exit_status, said = asked(sky, capsys)
    assert exit_status == 0
    assert list(said["steps"]) == ["1", "2", "3", "4", "5", "9", "10"]
    for name, one in said["steps"].items():
        assert one["complete"] == 6
        assert one["shards"] == {}
        folder = sky / KINDS[status.STEPS[name]].folder
        assert one["rows"] == 6 * N_ROWS
        assert one["bytes"] == sum(file.stat().st_size for file in folder.iterdir())


def test_every_state_is_told_with_its_reason(sky):
    fids = fid_list(6)
    shard_path(sky, "tmass", fids[0]).unlink()
    os.truncate(shard_path(sky, "tmass", fids[1]), 700)
    shard_path(sky, "tmass", fids[2]).write_bytes(b"")
    make(sky, "tmass", fids[3], format=0)
    make(sky, "xp", fids[4], value=2.0)
    with changed(shard_path(sky, "tmass", fids[5])) as file:
        file.attrs["complete"] = False
    found = states(sky, "tmass")
    assert [found[fid][0] for fid in fids] == [
        Shard.MISSING, Shard.PARTIAL, Shard.PARTIAL, Shard.STALE, Shard.STALE, Shard.PARTIAL,
    ]  # fmt: skip
    reasons = ("", "truncated", "not a readable", "another version", "xp_", "no marker")
    for fid, reason in zip(fids, reasons, strict=True):
        assert reason.lower() in found[fid][1].lower().replace("xpcontinuousmeanspectrum_", "xp_")


@pytest.mark.parametrize("step", sorted(INPUTS))
@pytest.mark.parametrize("change", ["same content", "other content"])
def test_a_shard_is_stale_where_an_input_has_another_content(sky, step, change):
    fid, source = fid_list(6)[2], INPUTS[step][0]
    make(sky, source, fid, value=1.0 if change == "same content" else 2.0)
    expected = Shard.COMPLETE if change == "same content" else Shard.STALE
    found = states(sky, step)
    assert found[fid][0] is expected
    assert all(state is Shard.COMPLETE for one, (state, _) in found.items() if one != fid)


def test_inputs_that_are_gone_or_not_known_here_make_nothing_stale(sky):
    fid = fid_list(6)[0]
    tile = sky / "0000p000.cat.fits"
    tile.write_text("x")
    make(sky, "unwise", fid, inputs=[shard_path(sky, "metadata", fid), tile])
    make(sky, "opt_input", fid)
    tile.write_text("other")
    shard_path(sky, "xp", fid).unlink()
    assert states(sky, "unwise")[fid][0] is Shard.COMPLETE
    assert states(sky, "opt_input")[fid][0] is Shard.COMPLETE


def test_inputs_that_are_recorded_by_folder_are_compared_too(sky):
    fid = fid_list(6)[0]
    tiles = [sky / f"{i}.cat.fits" for i in range(70)]
    for tile in tiles:
        tile.touch()
    make(sky, "unwise", fid, inputs=[shard_path(sky, "metadata", fid), *tiles])
    assert states(sky, "unwise")[fid][0] is Shard.COMPLETE
    make(sky, "metadata", fid, value=2.0)
    assert states(sky, "unwise")[fid][0] is Shard.STALE


def test_outputs_of_another_model_are_stale_where_the_model_is_given(sky, capsys):
    fid = fid_list(6)[1]
    model = sky / "model"
    model.mkdir()
    (model / "model.h5").write_bytes(b"one")
    make(sky, "opt_output", fid, inputs=[shard_path(sky, "opt_input", fid), model / "model.h5"])
    assert states(sky, "opt_output", model=model)[fid][0] is Shard.COMPLETE
    (model / "model.h5").write_bytes(b"another")
    assert states(sky, "opt_output", model=model)[fid][0] is Shard.STALE
    assert states(sky, "opt_output")[fid][0] is Shard.COMPLETE
    assert ask(sky) == 0
    assert ask(sky, "--model", model) == 1
    assert "partial: " in capsys.readouterr().out


def test_the_training_set_and_the_model_are_told_where_they_are_given(sky, capsys):
    training, model = sky / "training.h5", sky / "model" / "model.h5"
    options = ("--training-data", training, "--model", model.parent, "--steps", "2")
    exit_status, said = asked(sky, capsys, *options)
    assert exit_status == 1
    assert [said["steps"][k]["state"] for k in "78"] == ["missing", "missing"]
    write_arrays(training, {"a": [1]}, provenance("compile_training_data", [], []))
    (model.parent / "checkpoint.h5").parent.mkdir()
    (model.parent / "checkpoint.h5").touch()
    said = asked(sky, capsys, *options)[1]
    assert [said["steps"][k]["state"] for k in "78"] == ["complete", "begun, not finished"]
    write_arrays(model, {"a": [1]}, provenance("train", [], [training]))
    assert asked(sky, capsys, *options)[0] == 0
    write_arrays(training, {"a": [2]}, provenance("compile_training_data", [], []))
    exit_status, said = asked(sky, capsys, *options)
    assert exit_status == 1
    assert said["steps"]["8"]["state"].startswith("stale")


def test_spectra_that_others_made_are_complete_when_they_can_be_opened(sky):
    fid = fid_list(6)[3]
    shard_path(sky, "xp", fid).unlink()
    path = shard_path(sky, "xp", fid).with_suffix(".hdf5")
    with h5py.File(path, "w") as file:
        file["source_id"] = np.arange(7)
    found = find_states(sky)["xp"]
    assert found.states[fid] == (Shard.COMPLETE, "")
    assert found.n_rows == 5 * N_ROWS + 7
    os.truncate(path, 900)
    assert states(sky, "xp")[fid][0] is Shard.PARTIAL


def test_states_agree_with_what_a_step_does(sky):
    """What is not complete is made by a run, and then all is."""
    fids = fid_list(6)
    shard_path(sky, "reddening", fids[0]).unlink()
    os.truncate(shard_path(sky, "reddening", fids[1]), 700)
    make(sky, "metadata", fids[2], value=2.0)
    left = find_states(sky)["reddening"].left()
    made = []

    def process(fid, output, log):
        make(sky, "reddening", fid)
        made.append(fid)

    assert run.run_shards(
        "query_reddening_gaia", arguments(sky), fids,
        lambda fid: [shard_path(sky, "metadata", fid)],
        lambda fid: shard_path(sky, "reddening", fid), process,
    ) == 0  # fmt: skip
    assert made == left == fids[:3]
    assert find_states(sky)["reddening"].left() == []


# ---- failures, work under way, pace ----------------------------------------------------------


def failing_run(data_dir, fid, why="no answer"):
    """A run of step 2 on one shard, which fails."""

    def process(fid, output, log):
        raise ShardError(why)

    args = arguments(data_dir, "--overwrite")
    outputs = (lambda fid: [], lambda fid: shard_path(data_dir, "metadata", fid))
    return run.run_shards("query_xp_metadata", args, [fid], *outputs, process)


def test_a_missing_shard_whose_last_try_failed_is_failed_with_the_reason(sky):
    first, second = fid_list(6)[:2]
    for fid in (first, second):
        shard_path(sky, "metadata", fid).unlink()
    assert failing_run(sky, first) == 1
    found = states(sky, "metadata")
    assert found[first] == (Shard.FAILED, "no answer")
    assert found[second] == (Shard.MISSING, "")
    make(sky, "metadata", first)
    assert states(sky, "metadata")[first][0] is Shard.COMPLETE


def test_a_stale_shard_that_could_not_be_made_again_is_failed(sky):
    fid = fid_list(6)[0]
    make(sky, "metadata", fid, format=0)
    path = shard_path(sky, "metadata", fid)
    os.utime(path, (time.time() - 100, time.time() - 100))
    assert states(sky, "metadata")[fid][0] is Shard.STALE
    failing_run(sky, fid)
    state, why = states(sky, "metadata")[fid]
    assert state is Shard.FAILED
    assert why == "no answer (stale: made by another version of the script)"


def test_logs_of_all_parts_are_read_and_the_last_word_counts(tmp_path):
    one, two, three = fid_list(3)
    day = "2026-01-02 03:04:"
    (tmp_path / "toy_part0-of-2.log").write_text(
        f"{day}05,000 ERROR {one}: failed: first\n{day}06,000 INFO traceback of {one}\nlines\n"
        f"{day}07,000 ERROR {two}: failed: second: with a colon\n"
    )
    (tmp_path / "toy.log").write_text(
        f"{day}08,000 INFO {one}: done in 12.5 s. stars 3\n"
        f"{day}09,000 ERROR {three}: failed: third\n{day}04,000 INFO {three}: done in 2.0 s. \n"
    )
    (tmp_path / "toy_other.log").write_text(f"{day}59,000 ERROR {one}: failed: not of this\n")
    said = read_logs(tmp_path, "toy")
    assert (said[one].failed, said[one].seconds) == (None, 12.5)
    assert said[two].failed[1] == "second: with a colon"
    assert said[three].failed[1] == "third"
    assert read_logs(tmp_path / "absent", "toy") == {}


def write_lease(path, **changes):
    path = lease.lease_path(path)
    path.write_text(json.dumps(asdict(lease._own()) | changes))


def test_shards_in_work_are_told_with_the_process_and_those_of_dead_ones_are_not(sky):
    one, two, three = fid_list(6)[:3]
    for fid in (one, two, three):
        shard_path(sky, "opt_output", fid).unlink()
    write_lease(shard_path(sky, "opt_output", one))
    write_lease(shard_path(sky, "opt_output", two), pid=dead_pid())
    found = states(sky, "opt_output")
    assert found[one][0] is Shard.WORKING
    assert f"process {os.getpid()} on {socket.gethostname()}" in found[one][1]
    assert (found[two][0], found[three][0]) == (Shard.MISSING, Shard.MISSING)


def test_pace_and_time_left_follow_from_what_was_written_in_the_last_hour(sky):
    fids, now = fid_list(6), time.time()
    for fid, ago in zip(fids[:4], (7200, 1800, 1200, 600), strict=True):
        path = shard_path(sky, "opt_output", fid)
        os.utime(path, (now - ago, now - ago))
    for fid in fids[4:]:
        shard_path(sky, "opt_output", fid).unlink()
    step = find_states(sky, now=now)["opt_output"]
    assert step.per_hour == pytest.approx(6, rel=1e-3)
    assert step.hours_left == pytest.approx(2 / 6, rel=1e-3)
    later = find_states(sky, now=now + 7200)["opt_output"]
    assert (later.per_hour, later.hours_left) == (0, None)


# ---- the index -------------------------------------------------------------------------------


def test_what_was_read_is_remembered_and_read_again_where_a_file_changed(sky, monkeypatch):
    fid = fid_list(6)[0]
    find_states(sky)
    read = []

    def counted(paths):
        read.extend(paths)
        return [index.read_attributes(path) for path in paths]

    monkeypatch.setattr(index, "read_all", counted)
    find_states(sky)
    assert read == []
    path = make(sky, "tmass", fid, format=0)
    assert states(sky, "tmass")[fid][0] is Shard.STALE
    assert read == [path]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"tmass 000000-000099": 3}', '{"a": [1, 2]}'])
def test_a_damaged_index_is_read_anew(sky, content):
    (sky / index.INDEX).parent.mkdir(exist_ok=True)
    (sky / index.INDEX).write_text(content)
    assert find_states(sky)["tmass"].left() == []


def test_a_data_directory_that_cannot_be_written_is_read_all_the_same(sky, monkeypatch):
    def refuse(path, text):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(index, "write_text", refuse)
    assert find_states(sky)["tmass"].left() == []


def test_many_files_are_read_by_several_processes_as_by_one(sky, monkeypatch):
    paths = sorted((sky / KINDS["tmass"].folder).glob("*.h5")) * 4
    paths.append(sky / "absent.h5")
    alone = index.read_all(paths)
    monkeypatch.setattr(index, "BATCH", 3)
    assert index.read_all(paths) == alone
    assert "fault" in alone[-1]


# ---- the command -----------------------------------------------------------------------------


def test_the_exit_status_is_of_the_steps_asked_about(sky):
    shard_path(sky, "opt_output", fid_list(6)[0]).unlink()
    assert ask(sky) == 1
    assert ask(sky, "--steps", "2", "9") == 0
    assert ask(sky, "--steps", "10") == 1


def test_an_empty_folder_is_wrong_usage(tmp_path, capsys):
    assert ask(tmp_path) == 2
    assert "no shards in" in capsys.readouterr().err


def test_the_table_names_the_worst_first_and_how_many_more_there_are(sky, capsys):
    fids = fid_list(6)
    for fid in fids:
        make(sky, "opt_input", fid, format=0)
    shard_path(sky, "opt_input", fids[5]).write_bytes(b"")
    ask(sky, "--steps", "9")
    shown = capsys.readouterr().out.splitlines()
    assert shown[1].split()[-4:-1] != []
    assert shown[3].strip().startswith(f"{fids[5]}: partial")
    assert shown[-1].strip() == "... and 1 more (--all)"
    ask(sky, "--steps", "9", "--all")
    assert len(capsys.readouterr().out.splitlines()) == len(shown)


def test_parts_that_are_left_are_those_that_the_steps_would_find(sky, capsys):
    fids = fid_list(6)
    for fid in (fids[1], fids[5]):
        shard_path(sky, "opt_output", fid).unlink()
    exit_status, said = asked(sky, capsys, "--parts", 4, "--steps", "10")
    assert exit_status == 1
    assert said["steps"]["10"]["parts_left"] == [1]
    ask(sky, "--parts", 4, "--steps", "9", "10")
    assert capsys.readouterr().out.splitlines()[-1] == "--array=1"
    for k in range(4):
        chosen = select.select_fids(arguments(sky, "--partition", 4, k), "xp")
        assert bool({fids[1], fids[5]} & {*chosen}) == (k == 1)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], ""), ([3], "3"), ([0, 1, 2, 9], "0-2,9"), ([5, 4, 7], "4-5,7"), (range(101), "0-100")],
)
def test_parts_are_written_as_slurm_takes_them(numbers, text):
    assert status.ranges(numbers) == text


def test_the_map_is_drawn_and_other_shapes_are_refused(sky, tmp_path):
    picture = tmp_path / "figures" / "map.png"
    assert ask(sky, "--map", picture) == 0
    assert picture.read_bytes()[:4] == b"\x89PNG"
    words = [state.value for state in Shard]
    with pytest.raises(ValueError, match="same shards"):
        sky_states(picture, [0, 10], [9, 19], {"a": [0]}, words)
    with pytest.raises(ValueError, match="words"):
        sky_states(picture, [0], [9], {"a": [0]}, ["one"])


def test_it_runs_from_the_command_line(sky):
    command = [sys.executable, "tools/status.py", "--data-dir", str(sky)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "the catalogue" in done.stdout
