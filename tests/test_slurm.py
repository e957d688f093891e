"""The chain of steps on a real Slurm: what it makes, and what becomes of it when things fail."""

import json
import os
import shutil

import pytest
from demo_model import ROOT, run_inference
from helpers import assert_same_datasets
from services.slurm import CannotServeError, Slurm

from pipeline.select import in_part, list_fids, shard_path
from tools import status

pytestmark = pytest.mark.slurm

N_SHARDS, STARS = 24, 10  # of each
OUTPUTS = ("unwise", "reddening", "opt_input", "opt_output")
DONE = ("COMPLETED", "0:0", 0)
LIMIT = "--time=1 --signal=B:USR1@15"  # the least that Slurm knows
WITHOUT = {"OPTIONS_9": "--without unwise"}  # for runs of step 9 alone


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    try:
        service = Slurm(tmp_path_factory.mktemp("slurm"))
    except CannotServeError as error:
        pytest.skip(str(error))
    yield service
    service.stop()


@pytest.fixture(scope="module")
def sky(tmp_path_factory):
    """Demo stars in 24 shards with what steps 1 to 3 make, and unWISE tiles."""
    from demo import build_sky

    folder = tmp_path_factory.mktemp("sky") / "data"
    words = ["--stars", ROOT / "demo/stars.h5", "--out", folder, "--tiles"]
    words += ["--n", N_SHARDS * STARS, "--shards", N_SHARDS]
    assert build_sky.main([str(word) for word in words]) == 0
    shutil.rmtree(shard_path(folder, "reddening", "x").parent)
    assert len(list_fids(folder, "xp")) == N_SHARDS
    return folder


@pytest.fixture
def data_dir(sky, tmp_path):
    """The same for one test."""
    return shutil.copytree(sky, tmp_path / "data", symlinks=True)


def variables(data_dir, steps, parts, **more):
    named = {"STEPS": steps, "PARTS": parts, "UNWISE_DIR": data_dir / "unwise_tiles"}
    return {"data_dir": data_dir} | named | more


def state_of(data_dir, *options, capsys):
    """(exit status, what it says) of tools/status.py."""
    capsys.readouterr()
    found = status.main(["--data-dir", str(data_dir), "--json", *options])
    return found, json.loads(capsys.readouterr().out)["steps"]


def times(data_dir, kind):
    """{fid: when it was written}."""
    return {
        fid: shard_path(data_dir, kind, fid).stat().st_mtime_ns for fid in list_fids(data_dir, kind)
    }


def remains(data_dir):
    """Temporaries and leases."""
    return [path for path in data_dir.rglob(".*") if path.is_file()]


def serial(data_dir, model):
    import gen_xp_input_allsources
    import match_unwise_gaia
    import query_reddening_gaia

    here = ["--data-dir", str(data_dir)]
    assert match_unwise_gaia.main([*here, "--unwise-dir", str(data_dir / "unwise_tiles")]) == 0
    assert query_reddening_gaia.main([*here, "--maps", "bh"]) == 0
    assert gen_xp_input_allsources.main(here) == 0
    assert run_inference(data_dir, model) == 0


def test_two_tasks_side_by_side_make_what_a_serial_run_makes(
    slurm, sky, data_dir, tmp_path, demo_model, capsys
):
    jobs = slurm.submit(**variables(data_dir, "4 5 9 10", 2, MODEL=demo_model.model))
    other = shutil.copytree(sky, tmp_path / "serial")
    serial(other, demo_model.model)
    assert slurm.wait(jobs) == {step: {0: DONE, 1: DONE} for step in (4, 5, 9, 10)}
    for kind in OUTPUTS:
        assert list_fids(data_dir, kind) == list_fids(sky, "xp")
        for fid in list_fids(data_dir, kind):
            assert_same_datasets(*(shard_path(one, kind, fid) for one in (data_dir, other)))
    assert state_of(data_dir, "--model", str(demo_model.model), capsys=capsys)[0] == 0
    assert remains(data_dir) == []


def test_a_bad_shard_fails_its_task_alone_and_the_failed_part_run_again_finishes(
    slurm, data_dir, capsys
):
    fids = list_fids(data_dir, "xp")
    parts = [in_part(fids, fids, (4, k)) for k in range(4)]
    bad = parts[2][1]
    path = shard_path(data_dir, "metadata", bad)
    whole = path.read_bytes()
    path.write_bytes(whole[:3000])
    found = slurm.wait(slurm.submit(**variables(data_dir, "4 9", 4)))
    assert found[4] == {0: DONE, 1: DONE, 2: ("FAILED", "1:0", 0), 3: DONE}
    assert {k: state for k, (state, _, _) in found[9].items()} == {
        0: "COMPLETED", 1: "COMPLETED", 2: "CANCELLED", 3: "COMPLETED",
    }  # fmt: skip
    assert list_fids(data_dir, "unwise") == [fid for fid in fids if fid != bad]
    assert list_fids(data_dir, "opt_input") == sorted({*fids} - {*parts[2]})
    exit_status, said = state_of(data_dir, "--steps", "4", "9", "--parts", "4", capsys=capsys)
    assert exit_status == 1
    assert said["4"]["shards"][bad]["state"] == "failed"
    assert "xp_metadata" in said["4"]["shards"][bad]["reason"]
    assert (said["4"]["parts_left"], said["9"]["parts_left"]) == ([2], [2])

    path.write_bytes(whole)
    before = times(data_dir, "unwise")
    again = slurm.wait(slurm.submit(**variables(data_dir, "4 9", 4, ARRAY="2")))
    assert again == {4: {2: DONE}, 9: {2: DONE}}
    assert {fid: times(data_dir, "unwise")[fid] for fid in before} == before
    assert state_of(data_dir, "--steps", "4", "9", capsys=capsys)[0] == 0


@pytest.fixture
def pace(tmp_path):
    """Sets how many seconds more a shard takes, in jobs with PACE_FILE."""
    path = tmp_path / "pace"

    def set_pace(seconds):
        path.write_text(str(seconds))
        return path

    return set_pace


def test_before_the_time_limit_a_job_ends_and_goes_on_in_another_run(slurm, data_dir, pace):
    words = {"PACE_FILE": pace(7), "SBATCH_OPTIONS": LIMIT} | WITHOUT
    jobs = slurm.submit(**variables(data_dir, "9", 1, **words))
    slurm.wait_until(lambda: slurm.states(jobs[9])[0][2] == 1)
    kept = times(data_dir, "opt_input")
    pace(0)
    assert len(kept) < N_SHARDS
    state, exit_status, restarts = slurm.wait(jobs)[9][0]
    assert (state, exit_status) == ("COMPLETED", "0:0")
    assert restarts >= 1  # the limit is of a minute, which a busy machine may need twice
    after = times(data_dir, "opt_input")
    assert len(after) == N_SHARDS
    assert {fid: after[fid] for fid in kept} == kept
    assert remains(data_dir) == []
    (log,) = (data_dir / "logs" / "slurm").iterdir()
    assert "queued again, to go on with what is left" in log.read_text()


def test_a_job_that_may_not_be_queued_again_keeps_what_it_did_and_fails(slurm, data_dir, pace):
    words = {"PACE_FILE": pace(20), "SBATCH_OPTIONS": LIMIT} | WITHOUT
    jobs = slurm.submit(**variables(data_dir, "9", 1, REQUEUES=0, **words))
    state, exit_status, restarts = slurm.wait(jobs)[9][0]
    assert (state, restarts) == ("FAILED", 0)
    assert exit_status != "0:0"
    kept = times(data_dir, "opt_input")
    assert len(kept) < N_SHARDS
    jobs = slurm.submit(**variables(data_dir, "9", 1, **WITHOUT))
    assert slurm.wait(jobs) == {9: {0: DONE}}
    after = times(data_dir, "opt_input")
    assert len(after) == N_SHARDS
    assert {fid: after[fid] for fid in kept} == kept


@pytest.mark.parametrize("how", ["queued again by hand", "node lost"])
def test_what_is_done_is_kept_when_a_job_is_queued_again(slurm, data_dir, pace, how):
    words = {"PACE_FILE": pace(2)} | WITHOUT
    jobs = slurm.submit(**variables(data_dir, "9", 2, **words))
    slurm.wait_until(lambda: len(list_fids(data_dir, "opt_input")) >= 4)
    if how == "node lost":
        slurm.lose_node()
    else:
        slurm.run("scontrol", "requeue", jobs[9])
    slurm.wait_until(lambda: {state[2] for state in slurm.states(jobs[9]).values()} == {1})
    kept = times(data_dir, "opt_input")
    pace(0)
    if how == "node lost":
        slurm.return_node()
    assert slurm.wait(jobs)[9] == dict.fromkeys((0, 1), ("COMPLETED", "0:0", 1))
    after = times(data_dir, "opt_input")
    assert 4 <= len(kept) < N_SHARDS
    assert len(after) == N_SHARDS
    assert {fid: after[fid] for fid in kept} == kept
    assert remains(data_dir) == []


def test_a_cancelled_job_is_not_queued_again(slurm, data_dir, pace):
    words = {"PACE_FILE": pace(2)} | WITHOUT
    jobs = slurm.submit(**variables(data_dir, "9", 1, **words))
    slurm.wait_until(lambda: list_fids(data_dir, "opt_input"))
    slurm.run("scancel", jobs[9])
    state, _, restarts = slurm.wait(jobs)[9][0]
    assert (state, restarts) == ("CANCELLED", 0)
    assert 0 < len(list_fids(data_dir, "opt_input")) < N_SHARDS


def test_parts_that_are_left_are_found_and_run(slurm, data_dir):
    fids = list_fids(data_dir, "xp")
    slurm.wait(slurm.submit(**variables(data_dir, "9", 6, ARRAY="0,2-4", **WITHOUT)))
    done = [fid for i, fid in enumerate(fids) if i % 6 not in (1, 5)]
    assert list_fids(data_dir, "opt_input") == done
    jobs = slurm.submit(**variables(data_dir, "9", 6, ARRAY="left", **WITHOUT))
    assert slurm.wait(jobs) == {9: {1: DONE, 5: DONE}}
    assert list_fids(data_dir, "opt_input") == fids
    assert slurm.submit(**variables(data_dir, "9", 6, ARRAY="left", **WITHOUT)) == {}
    assert os.listdir(data_dir / "logs" / "slurm")
