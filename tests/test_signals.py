"""Signals end a run cleanly: nothing half is left, the summary is told, with what to do."""

import os
import signal
import subprocess
import threading

import pytest
from helpers import lay_out, make_sky
from shard_case import run_code

from pipeline import signals
from pipeline.provenance import Status, output_state
from pipeline.write import ShardWriter

SIGNALS = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]

STEP = """
import argparse, signal, sys, time
for number in (signal.SIGHUP, signal.SIGTERM):  # which the tests may have been told to ignore
    signal.signal(number, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
import numpy as np
from pipeline import run, select, write

def process(fid, output, log):
    with write.ShardWriter(output, 4000, "gdr3_source_id", {"inputs": "[]"}) as writer:
        writer.write("gdr3_source_id", 0, np.arange(4000))
        for start in range(0, 4000, 100):
            writer.write("flux", start, np.ones((100, 50)))
            if fid.startswith("000100") and start == 1000 and "slow" in sys.argv:
                print("writing", flush=True)
                time.sleep(60)
            elif "slow" in sys.argv:
                time.sleep(0.005)
    return {"stars": 4000}

@run.usage_exit
def main(argv=None):
    parser = argparse.ArgumentParser()
    select.add_shard_arguments(parser)
    args = parser.parse_known_args()[0]
    return run.run_shards("toy", args, [f"000{k}00-000{k}99" for k in range(6)], lambda fid: [],
        lambda fid: select.output_path(args.data_dir, "reddening", fid), process,
        jobs=JOBS, on_interrupt=lambda: None)

sys.exit(main())
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_run_with_its_summary_and_what_to_do(tmp_path, number):
    code = STEP.replace("JOBS", "1")
    run = run_code(code, "--data-dir", tmp_path, "slow", stderr=subprocess.PIPE, text=True)
    assert run.stdout.readline() == "writing\n"
    run.send_signal(number)
    _, shown = run.communicate(timeout=30)
    assert run.returncode == 128 + number
    assert "1 done, 0 already complete, 0 failed" in shown
    assert f"ended by {number.name}, 5 shards not made: run the same command again" in shown
    assert "stars: 4000" in shown
    assert "Traceback" not in shown
    assert f"ended by {number.name}" in (tmp_path / "logs" / "toy.log").read_text()
    assert os.listdir(tmp_path / "xp_dustmap_match") == ["xp_reddening_match_000000-000099.h5"]
    run = run_code(code, "--data-dir", tmp_path, stderr=subprocess.PIPE, text=True)
    _, shown = run.communicate()
    assert run.returncode == 0
    assert "5 done, 1 already complete" in shown


def test_a_signal_ends_the_shards_that_are_made_at_once(tmp_path):
    code = STEP.replace("JOBS", "3").replace("time.sleep(60)", "time.sleep(0.5)")
    run = run_code(code, "--data-dir", tmp_path, "slow", stderr=subprocess.PIPE, text=True)
    assert run.stdout.readline() == "writing\n"
    run.send_signal(signal.SIGTERM)
    _, shown = run.communicate(timeout=30)
    assert run.returncode == 128 + signal.SIGTERM
    assert "ended by SIGTERM" in shown
    assert "Traceback" not in shown
    left = os.listdir(tmp_path / "xp_dustmap_match")
    assert "xp_reddening_match_000100-000199.h5" not in left
    assert not [name for name in left if name.startswith(".")]


MOMENTS = """
import os, random, signal, sys, threading
import numpy as np
from pipeline import signals
from pipeline.provenance import Status, output_state
from pipeline.write import ShardWriter

rng, flux, ended, whole = random.Random(1), np.random.default_rng(0).normal(size=(900, 50)), 0, 0
path = sys.argv[1] + "/out.h5"
for turn in range(250):
    timer = threading.Timer(rng.uniform(0, 0.02), os.kill, (os.getpid(), signal.SIGTERM))
    try:
        with signals.raised():
            timer.start()
            with ShardWriter(path, 900, "source_id", {}) as writer:
                writer.write("source_id", 0, np.arange(900))
                for start in range(0, 900, 90):
                    writer.write("flux", start, flux[start : start + 90])
            timer.join()
            signals.check()
    except signals.Interrupted:
        ended += 1
    timer.cancel()
    timer.join()
    left = os.listdir(sys.argv[1])
    if left not in ([], ["out.h5"]):
        sys.exit(f"left: {left}")
    if left:
        if output_state(path, deep=True).status is not Status.COMPLETE:
            sys.exit("not whole")
        whole += 1
        os.remove(path)
print(ended, whole)
"""


def test_at_whatever_moment_a_signal_comes_a_file_is_whole_or_absent(tmp_path):
    run = run_code(MOMENTS, tmp_path, stderr=subprocess.PIPE, text=True)
    out, err = run.communicate()
    assert run.returncode == 0, err
    ended, whole = map(int, out.split())
    assert ended == 250
    assert 0 < whole < 250


def test_signals_that_are_ignored_stay_so_as_nohup_has_it():
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.raised():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)


def end_by_signal(clear):
    """SIGTERM comes, and `clear` runs after it."""
    with signals.raised():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            clear()


def test_a_second_signal_does_not_disturb_what_the_first_clears_away():
    cleared = []

    def clear():
        os.kill(os.getpid(), signal.SIGINT)  # would be a KeyboardInterrupt
        cleared.append(True)

    with pytest.raises(signals.Interrupted):
        end_by_signal(clear)
    assert cleared


def test_threads_are_told_that_the_run_ends():
    found = []

    def work():
        try:
            signals.check()
        except signals.Interrupted as error:
            found.append(error.number)

    def clear():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    with pytest.raises(signals.Interrupted):
        end_by_signal(clear)
    assert found == [signal.SIGTERM]


def test_an_error_before_the_first_row_leaves_nothing(tmp_path, monkeypatch):
    import pipeline.write

    def fails(*words, **options):
        raise MemoryError

    monkeypatch.setattr(pipeline.write.h5py, "File", fails)
    with pytest.raises(MemoryError), ShardWriter(tmp_path / "out.h5", 3, "source_id", {}):
        pass
    assert os.listdir(tmp_path) == []


def test_what_dead_processes_left_of_any_shard_goes_when_a_run_begins(tmp_path):
    folder = tmp_path / "xp_dustmap_match"
    folder.mkdir()
    host = os.uname().nodename
    dead = folder / f".xp_reddening_match_009900-009999.h5.{host}-99999999.0123abcd.part"
    elsewhere = folder / ".xp_reddening_match_009900-009999.h5.node7-1.0123abcd.part"
    young = folder / ".xp_reddening_match_009900-009999.h5.node8-1.0123abcd.part"
    for path in (dead, elsewhere, young):
        path.touch()
    os.utime(elsewhere, (1, 1))
    run = run_code(STEP.replace("JOBS", "1"), "--data-dir", tmp_path, stderr=subprocess.DEVNULL)
    run.communicate()
    assert [name for name in os.listdir(folder) if name[0] == "."] == [young.name]


# ---- the steps that are not of shards --------------------------------------------------------


def test_a_signal_ends_step_7_without_a_training_set(tmp_path, monkeypatch, capsys):
    import step7_case

    sky = make_sky()
    lay_out(tmp_path, sky)
    whole = step7_case.step.star_columns

    def star_columns(*words):
        os.kill(os.getpid(), signal.SIGTERM)
        return whole(*words)

    monkeypatch.setattr(step7_case.step, "star_columns", star_columns)
    labels = step7_case.make_labels(sky)
    assert step7_case.run(tmp_path, labels=labels) == 128 + signal.SIGTERM
    assert "ended by SIGTERM: run the same command again" in capsys.readouterr().err
    assert "ended by SIGTERM" in (tmp_path / "training_data.log").read_text()
    left = [path.name for path in tmp_path.iterdir() if path.is_file()]
    assert sorted(left) == ["labels.h5", "training_data.log"]
    monkeypatch.undo()
    assert step7_case.run(tmp_path) == 0
    assert output_state(tmp_path / "training_data.h5", kind="training").status is not Status.PARTIAL


def test_a_signal_ends_a_training_which_goes_on_with_resume(
    demo_model, tmp_path, monkeypatch, capsys
):
    from demo_model import quick

    import train
    from fitting.training import Trainer

    words = ["-i", demo_model.training_data, "-o", tmp_path / "out", "--recipe", demo_model.recipe]
    words = [str(word) for word in (*words, "--threads", 1)]
    whole, epochs = Trainer.run_epoch, []

    def run_epoch(trainer):
        epochs.append(trainer.stage)
        if len(epochs) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(trainer)

    monkeypatch.setattr(Trainer, "run_epoch", run_epoch)
    with quick():
        assert train.main(words) == 128 + signal.SIGTERM
    assert "ended by SIGTERM: run the same command with --resume" in capsys.readouterr().err
    assert "ended by SIGTERM" in (tmp_path / "out" / "train.log").read_text()
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.startswith(".")]
    assert train.main(words) == 2
    assert "give --resume" in capsys.readouterr().err
