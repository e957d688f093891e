"""What cluster/submit_all.sh would submit: times, memory, parts, order; without Slurm."""

import os
import re
import shlex
import subprocess
import sys

import h5py
import pytest
from shard_case import ROOT, fid_list, touch_shards

from cluster import plan
from pipeline.schema import FILES, rate_of
from pipeline.select import shard_path

SUBMIT = ROOT / "cluster" / "submit_all.sh"
VARIABLES = ("MODEL", "TRAINING_DATA", "DUSTMAPS_DIR", "STEPS", "PARTS", "ARRAY", "SBATCH_OPTIONS")


def make_spectra(data_dir, rows):
    """A shard with so many stars for each of `rows`."""
    for fid, n in zip(fid_list(len(rows)), rows, strict=True):
        path = shard_path(data_dir, "xp", fid)
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file.create_dataset("source_id", (n,), "i8", chunks=(1000,))  # no disk


@pytest.fixture
def place(tmp_path):
    """A folder with all that the steps need: 12 shards of 1,000 to 12,000 stars."""
    make_spectra(tmp_path / "data", [1000 * (i + 1) for i in range(12)])
    (tmp_path / "tiles").mkdir()
    (tmp_path / "labels.h5").touch()
    return tmp_path


def planned(place, *options, capsys):
    """{step: (needs, {option of sbatch: value}, words of the command)}."""
    words = ["--data-dir", place / "data", "--labels", place / "labels.h5"]
    words += ["--unwise-dir", place / "tiles", *options]
    capsys.readouterr()
    assert plan.main([str(word) for word in words]) == 0
    out = {}
    for line in capsys.readouterr().out.splitlines():
        step, needs, settings, command = line.split("\t")
        named = dict(word.removeprefix("--").split("=", 1) for word in shlex.split(settings))
        out[int(step)] = needs.split(), named, shlex.split(command)
    return out


def refused(place, *options, capsys):
    """What is said where a plan is refused."""
    words = ["--data-dir", place / "data", "--labels", place / "labels.h5"]
    words += ["--unwise-dir", place / "tiles", *options]
    capsys.readouterr()
    assert plan.main([str(word) for word in words]) == 2
    return capsys.readouterr().err


def submit(place, *words, **env):
    """A run of the script itself."""
    given = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    usual = {"DATA_DIR": "data", "LABELS": "labels.h5", "UNWISE_DIR": "tiles", "MAPS": "bh"}
    given |= usual | {"PYTHON": sys.executable} | {k: str(v) for k, v in env.items()}
    return subprocess.run(
        ["bash", SUBMIT, *words], cwd=place, env=given, capture_output=True, text=True, check=False
    )


# ---- order, parts ----------------------------------------------------------------------------


def test_parts_wait_for_their_own_inputs_and_all_for_the_training_set_and_the_model(place, capsys):
    needs = {step: one[0] for step, one in planned(place, capsys=capsys).items()}
    assert needs == {
        2: [],
        3: [],
        4: ["aftercorr:2"],
        5: ["aftercorr:2"],
        7: ["afterok:2", "afterok:3", "afterok:4", "afterok:5"],
        8: ["afterok:7"],
        9: ["aftercorr:2", "aftercorr:3", "aftercorr:4"],
        10: ["aftercorr:9", "afterok:8"],
    }


def test_every_step_knows_the_same_number_of_parts_whatever_is_submitted(place, capsys):
    for options in ([], ["--array", "3"], ["--array", "0-2,4"]):
        found = planned(place, "--parts", 5, *options, capsys=capsys)
        for step, (_, settings, words) in found.items():
            if step in (7, 8):
                assert "array" not in settings
                assert "--parts" not in words
            else:
                assert words[words.index("--parts") + 1] == "5"
                array = options[1] if options else "0-4"
                assert settings["array"] == (f"{array}%1" if step in (2, 3) else array)


def test_there_are_no_more_parts_than_shards_nor_than_the_cluster_allows(place, capsys):
    assert planned(place, capsys=capsys)[9][1]["array"] == "0-11"
    said = refused(place, "--parts", 12, "--max-array", 11, capsys=capsys)
    assert "12 parts, but the cluster allows arrays of 11 (MaxArraySize)" in said
    assert planned(place, "--parts", 11, "--max-array", 11, capsys=capsys)[9][1]["array"] == "0-10"


@pytest.mark.parametrize("array", ["x", "3;ls", "1-", "5", "0-5", "2,%3", "1 2"])
def test_parts_that_there_are_not_are_refused(place, capsys, array):
    assert f"ARRAY={array}" in refused(place, "--parts", 5, "--array", array, capsys=capsys)


def test_parts_with_something_left_are_chosen(place, capsys):
    fids = fid_list(12)
    options = ("--steps", 9, "--parts", 4, "--array", "left")
    assert planned(place, *options, capsys=capsys)[9][1]["array"] == "0-3"
    touch_shards(place / "data", fids, "opt_input")
    for path in (place / "data" / "xp_opt_input_files").iterdir():
        with h5py.File(path, "w") as file:
            file.attrs["complete"] = True
            file.attrs["format"] = FILES["opt_input"].format
    assert planned(place, *options, capsys=capsys) == {}
    shard_path(place / "data", "opt_input", fids[7]).unlink()
    assert planned(place, *options, capsys=capsys)[9][1]["array"] == "3"


# ---- time and memory -------------------------------------------------------------------------


def test_time_limits_follow_from_the_stars_of_the_largest_part_and_what_was_measured(place, capsys):
    make_spectra(place / "data", [40_000_000 if i == 5 else 1000 for i in range(12)])
    found = planned(place, "--parts", 4, "--slack", 3, capsys=capsys)
    measured = rate_of("xp_opt_allsources.py")
    seconds = measured.start_s + measured.star_us * 40.002
    assert 3 * seconds / 60 <= int(found[10][1]["time"]) < 3 * seconds / 60 + 5
    assert found[9][1]["time"] != found[10][1]["time"]
    longer = planned(place, "--parts", 4, "--slack", 6, capsys=capsys)
    assert int(longer[10][1]["time"]) == pytest.approx(2 * int(found[10][1]["time"]), abs=5)
    archive = planned(place, "--parts", 4, "--archive-minutes", 60, capsys=capsys)
    asked = 3 * 60 / 2 + rate_of("query_xp_metadata.py").star_us * 40.002 / 60
    assert 4 * asked <= int(archive[2][1]["time"]) < 4 * asked + 5


def test_small_skies_get_the_least_time_and_memory_is_above_what_was_measured(place, capsys):
    found = planned(place, "--maps", "bh", capsys=capsys)
    assert found[9][1]["time"] == "10"
    for step, (_, settings, words) in found.items():
        measured = rate_of(plan.STEPS[step].script).memory_gb
        assert 1.5 * measured <= int(settings["mem"].removesuffix("G")) <= 1.5 * measured + 2
        assert words[0] == plan.STEPS[step].script


def test_memory_for_bayestar_is_that_of_the_map_on_disk(place, capsys):
    path = place / "maps" / "bayestar" / "bayestar2019.h5"
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:  # of chunks that are not written: no disk
        file.create_dataset("samples", (3_000_000, 5, 120), "f4", chunks=(1000, 5, 120))
    found = planned(place, "--dustmaps-dir", place / "maps", capsys=capsys)
    assert found[5][1]["mem"] == "10G"  # 3e6 x 120 x 6 x 4 bytes are 8.6 GB
    path.write_bytes(b"")
    assert planned(place, capsys=capsys)[5][1]["mem"] == "18G"


def test_shards_that_do_not_say_their_rows_count_as_usual_ones(place):
    touch_shards(place / "data", ["999900-999999"])
    args = plan.parse_args(["--data-dir", str(place / "data"), "--parts", "1"])
    assert plan.look(args).stars.sum() == sum(range(1, 13)) * 1000 + plan.USUAL_STARS


# ---- what is missing -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data-dir", "{}/absent"], "no spectra shards there"),
        (["--unwise-dir", "{}/absent"], "UNWISE_DIR"),
        (["--labels", "{}/absent"], "LABELS"),
        (["--steps", "8", "--training-data", "{}/absent"], "TRAINING_DATA"),
        (["--steps", "9", "10", "--model", "{}/absent"], "step 10: no model.h5"),
    ],
)
def test_what_no_step_makes_and_is_missing_is_named_before_anything_is_submitted(
    place, capsys, options, said
):
    assert said in refused(place, *(word.format(place) for word in options), capsys=capsys)


# ---- the script ------------------------------------------------------------------------------


def test_a_dry_run_prints_the_chain_and_submits_nothing(place):
    done = submit(place, "--dry-run", ACCOUNT="dept", PARTITION="long", SBATCH_OPTIONS="--qos=low")
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["sbatch"] * 8
    last = lines[-1]
    for word in (
        "--dependency=aftercorr:JOB_OF_STEP_9,afterok:JOB_OF_STEP_8",
        "--kill-on-invalid-dep=yes",
        "--account=dept",
        "--partition=long",
        "--requeue",
        f"--output={place}/data/logs/slurm/step10_%A_%a.log",
    ):
        assert word in last
    assert last.index("--qos=low") + 1 == last.index(f"{ROOT}/cluster/step.sh")
    assert last[last.index("--model") + 1] == str(place / "output_folder")
    assert not (place / "data" / "logs" / "slurm").exists()
    assert "12 shards, 78,000 stars" in done.stderr


def test_steps_that_are_not_submitted_are_not_waited_for(place):
    done = submit(place, "--dry-run", STEPS="4 9", ARRAY="3,5-7", PARTS=9)
    first, second = (shlex.split(line) for line in done.stdout.splitlines())
    assert not [word for word in first if word.startswith("--dependency")]
    assert "--dependency=aftercorr:JOB_OF_STEP_4" in second
    assert "--array=3,5-7" in first


def test_folders_with_blanks_and_options_of_a_step_reach_its_command_line(place):
    (place / "data").rename(place / "my data | all")
    options = "--login 'my login.txt' --row-limit 5"
    done = submit(place, "--dry-run", STEPS=2, DATA_DIR="my data | all", OPTIONS_2=options)
    (line,) = done.stdout.splitlines()
    words = shlex.split(line)
    assert words[words.index("--data-dir") + 1] == str(place / "my data | all")
    assert words[-4:] == ["--login", "my login.txt", "--row-limit", "5"]


FAKE = """#!/bin/sh
[ -d "$LOGS" ] || exit 1
echo "$*" >> "$SUBMITTED"
wc -l < "$SUBMITTED"
"""


def test_the_folder_of_logs_is_there_before_anything_is_submitted_and_jobs_are_chained(place):
    folder = place / "bin"
    folder.mkdir()
    (folder / "sbatch").write_text(FAKE)
    (folder / "sbatch").chmod(0o755)
    env = {"PATH": f"{folder}:{os.environ['PATH']}", "SUBMITTED": place / "submitted"}
    done = submit(place, LOGS=place / "data/logs/slurm", STEPS="2 4 9", **env)
    assert done.returncode == 0, done.stderr
    jobs = re.findall(r"step (\d+): job (\d+)(, after .*)?", done.stdout)
    assert jobs == [("2", "1", ""), ("4", "2", ", after aftercorr:1"),
                    ("9", "3", ", after aftercorr:1,aftercorr:2")]  # fmt: skip
    assert len((place / "submitted").read_text().splitlines()) == 3


@pytest.mark.parametrize("words", [["--help"], ["--dry"], ["10"]])
def test_other_words_are_answered_by_how_it_is_used(place, words):
    done = submit(place, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "cluster/submit_all.sh --dry-run" in done.stderr


# ---- the job ---------------------------------------------------------------------------------


def run_job(tmp_path, code, requeues=5, restarts=0):
    """cluster/step.sh with a Python program, and a scontrol that only notes what it was asked."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "scontrol").write_text(f'#!/bin/sh\necho "$*" > {tmp_path}/asked\nexit 1\n')
    (folder / "scontrol").chmod(0o755)
    env = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    env["SLURM_RESTART_COUNT"] = str(restarts)
    return subprocess.Popen(
        ["bash", ROOT / "cluster/step.sh", str(requeues), sys.executable, "-c", code],
        env=env, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("status", [0, 1, 2, 3])
def test_the_exit_status_of_a_job_is_the_steps(tmp_path, status):
    job = run_job(tmp_path, f"import sys; print('here'); sys.exit({status})")
    said = job.communicate()[0]
    assert job.returncode == status
    assert "here" in said
    assert f"status {status}" in said
    assert not (tmp_path / "asked").exists()


ENDS_CLEANLY = """
import signal, sys, time
def end(*_):
    time.sleep(0.3)
    print("cleared away", flush=True)
    sys.exit(int(sys.argv[1]) if len(sys.argv) > 1 else STATUS)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("status", "restarts", "asked"),
    [(130, 0, True), (130, 4, True), (130, 5, False), (0, 0, False)],
)
def test_before_the_limit_the_step_is_ended_waited_for_and_queued_again_some_times(
    tmp_path, status, restarts, asked
):
    job = run_job(tmp_path, ENDS_CLEANLY.replace("STATUS", str(status)), restarts=restarts)
    while (line := job.stdout.readline()) != "ready\n":
        assert line
    job.send_signal(10)  # USR1
    said = job.communicate()[0]
    assert "cleared away" in said
    assert job.returncode == status
    assert (tmp_path / "asked").exists() == asked
    if asked:
        assert (tmp_path / "asked").read_text() == "requeue 7\n"
        assert "could not be queued again" in said
