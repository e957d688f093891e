"""Step 8 in a folder that is finished, in use, or on a full disk."""

import shutil
import subprocess

import pytest
from demo_model import run_python, run_train
from shard_case import run_code
from test_lease import write_lease


@pytest.fixture
def finished(demo_model, tmp_path):
    """A copy of the output folder of a training that is done."""
    return shutil.copytree(demo_model.model, tmp_path / "finished")


def check(demo_model, folder, *options):
    return run_train(demo_model.training_data, folder, *options, recipe=demo_model.recipe)


def test_a_finished_training_that_is_as_it_was_written_passes_the_check(
    demo_model, finished, monkeypatch, capsys
):
    monkeypatch.setattr("fitting.training.Trainer", None)  # not even begun
    assert check(demo_model, finished, "--check") == 0
    assert "already trained" in capsys.readouterr().err


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


DAMAGE = {
    "model.h5": flip,
    "validation.h5": flip,
    "validation.json": flip,
    "validation_ids.txt": lambda path: path.unlink(),
    "history.json": lambda path: path.write_bytes(b""),
    "validation.png": flip,
    "saved_model/saved_model.pb": flip,
    "saved_model/variables/variables.data-00000-of-00001": flip,
}


@pytest.mark.parametrize("name", DAMAGE)
def test_outputs_that_are_not_what_was_written_are_made_again(
    demo_model, finished, monkeypatch, capsys, name
):
    DAMAGE[name](finished / name)
    made = []
    monkeypatch.setattr("train.start_trainer", lambda *args: made.append("begun") or Stages())
    monkeypatch.setattr("train.train", lambda *args: None)
    monkeypatch.setattr("train.finish", lambda *args: made.append("finished"))
    assert check(demo_model, finished, "--check") == 0
    assert made == ["begun", "finished"]
    shown = capsys.readouterr().err
    assert "the outputs are made again" in shown
    assert f"{finished / name}: " in shown


class Stages:
    """Where a trainer is."""

    stage, epoch = 0, 0


def test_without_the_check_only_the_model_is_looked_at(demo_model, finished, monkeypatch):
    monkeypatch.setattr("fitting.training.Trainer", None)
    (finished / "validation.json").unlink()
    assert check(demo_model, finished, "--resume") == 0
    assert not (finished / "validation.json").exists()


def test_a_folder_into_which_another_process_trains_is_left_to_it(
    demo_model, finished, monkeypatch, capsys
):
    monkeypatch.setattr("fitting.training.Trainer", None)
    before = {path: path.stat().st_mtime_ns for path in finished.glob("*.h5")}
    write_lease(finished / "model.h5", host="node7", machine="node7", pid=12)
    for options in ("--resume", "--check", "--overwrite"):
        assert check(demo_model, finished, options) == 3
        assert "left to process 12 on node7" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in finished.glob("*.h5")}


# ---- a full disk -----------------------------------------------------------------------------

FULL = """
import resource, model, train
from fitting import held_out
from fitting.model_file import load_model
from pipeline.schema import load_release

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

whole = model.export
def export(*words):
    limit(50_000)
    whole(*words)

place, ready = sys.argv.pop(1), sys.argv.pop(1)
if place == "export":
    model.export = export
    held_out.trained_model = lambda *args: load_model(ready, load_release())  # takes long
else:
    limit(50_000)
with quick():
    sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("place", "message"), [
    ("scratch", "the scratch copy of the stars (0.9 kB each): cannot be written"),
    ("export", "saved_model: cannot be written"),
])  # fmt: skip
def test_training_on_a_full_disk_ends_with_status_1_and_one_line(
    demo_model, tmp_path, place, message
):
    shutil.copy(demo_model.model / "checkpoint.h5", tmp_path)
    words = ["-i", demo_model.training_data, "-o", tmp_path, "--recipe", demo_model.recipe]
    ready = demo_model.model / "model.h5"
    run = run_python(FULL, place, ready, *words, "--resume", "--threads", 1)
    assert run.returncode == 1, run.stderr
    (line,) = [line for line in run.stderr.splitlines() if message in line]
    assert "the disk or a quota is full: make room and run the same command again" in line
    assert "Traceback" not in run.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"checkpoint.h5", "train.log"}


EXPORT = """
import os, resource, sys
from pipeline.errors import WriteError
from pipeline.quiet_tensorflow import tf
from pipeline.saved_model import save_whole

class Module(tf.Module):
    def __init__(self):
        self.numbers = tf.Variable(tf.zeros(500))

    @tf.function(input_signature=[])
    def total(self):
        return tf.reduce_sum(self.numbers)

def content():
    found = [os.path.join(d, f) for d, _, names in os.walk(path) for f in names]
    return {name: open(name, "rb").read() for name in found}

path, module = sys.argv[1] + "/saved_model", Module()
save_whole(module, path)
former, failed = content(), 0
sizes = sorted(map(len, former.values()))
for limit in [0, *(s // 2 for s in sizes), *(s - 1 for s in sizes)]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        save_whole(module, path)
    except WriteError as error:
        failed += "disk or a quota is full" in str(error) and "\\n" not in str(error)
    if content() != former or os.listdir(sys.argv[1]) != ["saved_model"]:
        sys.exit(f"left: {os.listdir(sys.argv[1])} at {limit}")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
module.numbers.assign(tf.ones(500))
save_whole(module, path)
loaded = tf.saved_model.load(path)
print(failed, len(sizes), loaded.total().numpy())
"""


def test_a_saved_model_is_whole_or_the_former_one_wherever_the_disk_is_full(tmp_path):
    run = run_code(EXPORT, tmp_path, stderr=subprocess.PIPE, text=True)
    out, shown = run.communicate()
    assert run.returncode == 0, shown
    failed, n_files, total = out.split()
    assert int(failed) == 1 + 2 * int(n_files)
    assert float(total) == 500
