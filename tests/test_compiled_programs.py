"""Compiled programs kept between processes: found again, never run where damaged, never in the way
where they cannot be kept."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import compiled_programs as programs
from pipeline.errors import UsageError

ROOT = Path(__file__).resolve().parents[1]
# Two programs, the second with a loop, whose functions have names of their own. What a process did
# before, and their order, is another one each time.
CODE = """
import sys
from pipeline.quiet_tensorflow import compiled, tf
def twice(x): return tf.tanh(x @ x) * 2
def loop(x):
    return tf.while_loop(lambda i, _: i < 4, lambda i, y: (i + 1, tf.tanh(y @ x)), (0, x))[1]
before = [tf.zeros(3) + k for k in range(int(sys.argv[1]))]
x = tf.reshape(tf.range(64.0), (8, 8)) / 300
found = {f.__name__: compiled(f)(x).numpy().tobytes().hex()
         for f in ((twice, loop) if before else (loop, twice))}
print(found["twice"], found["loop"])
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A folder for entries, and no flags of a parent process."""
    monkeypatch.setenv(programs.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv(programs.FLAGS, raising=False)
    return tmp_path / "cache"


def entries(cache):
    return sorted(cache.glob("*/*.pb.*"))


def put_entry(own, name="a", content=b"program"):
    """An entry as TensorFlow writes one; its name."""
    (own / f"{name}.pb").write_bytes(content)
    return f"{name}.pb.{hashlib.sha256(content).hexdigest()}"


def run(cache, before):
    """The answers of CODE in a new process, which must say nothing on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(before)],
        cwd=ROOT,
        env=os.environ | {programs.VARIABLE: str(cache), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


# ---- with TensorFlow -------------------------------------------------------------------------


def test_the_next_process_has_the_same_answers_and_compiles_only_what_is_damaged(cache):
    first = run(cache, 0)
    made = entries(cache)
    assert len(made) >= 2
    dated = {path: path.stat().st_ino for path in made}
    damaged, halved = made[:2]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-40] + bytes(byte ^ 16 for byte in whole[-40:]))
    halved.write_bytes(halved.read_bytes()[: halved.stat().st_size // 2])
    assert run(cache, 700) == first
    now = entries(cache)
    names = [programs.ENTRY.fullmatch(path.name)[1] for path in made]
    assert [programs.ENTRY.fullmatch(path.name)[1] for path in now] == names  # none beside them
    for path in made[2:]:
        assert path.stat().st_ino == dated[path]
    for path in now:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name[-64:]
    assert not list(cache.glob("*/use-*"))
    assert run("off", 3) == first


# ---- the folder ------------------------------------------------------------------------------


def test_a_process_links_to_what_another_published(cache):
    own = programs.open_folder()
    name = put_entry(own)
    programs.publish(own)
    assert [path.name for path in entries(cache)] == [name]
    assert (own / "a.pb").read_bytes() == b"program"  # as before, for this process
    other = programs.open_folder()
    assert other != own
    assert (other / "a.pb").is_symlink()
    assert (other / "a.pb").read_bytes() == b"program"


def test_of_two_processes_that_compile_the_same_program_the_first_publishes_it(cache):
    first, second = programs.open_folder(), programs.open_folder()
    name = put_entry(first)
    put_entry(second, content=b"the same, compiled again")
    programs.publish(first)
    programs.publish(second)
    assert [path.name for path in entries(cache)] == [name]


@pytest.mark.parametrize("content", [b"", b"progra", b"pr0gram", b"program and more"])
def test_a_damaged_entry_is_removed_and_not_linked(cache, content):
    own = programs.open_folder()
    name = put_entry(own)
    programs.publish(own)
    (own.parent / name).write_bytes(content)
    assert not list(programs.open_folder().iterdir())
    assert not entries(cache)


def test_another_processor_sees_no_entries(cache, monkeypatch):
    own = programs.open_folder()
    put_entry(own)
    programs.publish(own)
    monkeypatch.setattr(programs, "PROCESSOR", (*programs.PROCESSOR, "bogomips", "processor"))
    assert not list(programs.open_folder().iterdir())


def test_other_options_of_the_compiler_see_no_entries(cache, monkeypatch):
    before = programs.machine()
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    assert programs.machine() != before


def test_nothing_is_kept_where_the_processor_cannot_be_told(cache, monkeypatch):
    monkeypatch.setattr(programs, "PROCESSOR", ("no such field",))
    assert programs.open_folder() is None


def test_entries_used_last_are_kept_when_there_are_too_many(cache, monkeypatch):
    own = programs.open_folder()
    names = [put_entry(own, name, 100 * name.encode()) for name in "abc"]
    programs.publish(own)
    for age, name in zip((30, 10, 20), names, strict=True):
        os.utime(own.parent / name, (1e9 - age, 1e9 - age))
    monkeypatch.setattr(programs, "LARGEST_BYTES", 250)
    programs.publish(own)
    assert [path.name for path in entries(cache)] == sorted(names[1:])


def test_what_a_killed_process_left_is_removed_and_that_of_a_living_one_is_not(cache):
    own = programs.open_folder()
    child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                           capture_output=True, text=True, check=True)  # fmt: skip
    dead = own.with_name(own.name.replace(str(os.getpid()), child.stdout.strip()))
    dead.mkdir()
    programs.open_folder()
    assert own.exists()
    assert not dead.exists()


def test_a_folder_that_others_can_write_is_refused(cache):
    folder = programs.open_folder().parent
    folder.chmod(0o777)
    with pytest.raises(UsageError, match=r"can be written by others.*XPFWD_CACHE=off"):
        programs.open_folder()


def test_a_default_folder_that_cannot_be_made_costs_only_the_cache(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.delenv(programs.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert programs.open_folder() is None
    monkeypatch.setenv(programs.VARIABLE, str(tmp_path / "file"))
    with pytest.raises(UsageError, match="name a folder of your own"):
        programs.open_folder()


def test_nothing_is_kept_on_a_full_disk(cache, monkeypatch):
    monkeypatch.delenv(programs.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(programs, "LEAST_FREE_BYTES", 1 << 62)
    assert programs.open_folder() is None


@pytest.mark.parametrize("word", ["off", "0", "", "OFF"])
def test_off_is_off(cache, monkeypatch, word):
    monkeypatch.setenv(programs.VARIABLE, word)
    assert programs.set_up() is None
    assert programs.FLAGS not in os.environ


def test_flags_of_ones_own_stay_and_a_child_gets_a_folder_of_its_own(cache, monkeypatch):
    monkeypatch.setenv(programs.FLAGS, "--tf_xla_clustering_debug=false")
    first = programs.set_up()
    assert os.environ[programs.FLAGS].startswith("--tf_xla_clustering_debug=false ")
    second = programs.set_up()  # as a child does, which inherits the environment
    flags = os.environ[programs.FLAGS]
    assert first.parent == second.parent
    assert str(second) in flags
    assert str(first) not in flags


def test_a_cache_of_tensorflow_that_is_set_up_already_is_left_alone(cache, monkeypatch):
    given = f"{programs.PREFIX}directory=/somewhere"
    monkeypatch.setenv(programs.FLAGS, given)
    assert programs.set_up() is None
    assert os.environ[programs.FLAGS] == given


# ---- names -----------------------------------------------------------------------------------


def numbers_of(*what):
    """The first two numbers of a program."""
    with programs.names.named():
        programs.names.begin(*what)
        return next(programs.names.numbers), next(programs.names.numbers)


def test_numbers_follow_from_the_program_and_are_given_once(monkeypatch):
    monkeypatch.setattr(programs, "_taken", set())
    first = numbers_of("f", ("float32", "(3,)"))
    other, again = numbers_of("f", ("float32", "(4,)")), numbers_of("f", ("float32", "(3,)"))
    assert first[1] == first[0] + 1
    assert len({*first, *other, *again}) == 6
    monkeypatch.setattr(programs, "_taken", set())  # as in the next process
    assert numbers_of("f", ("float32", "(4,)")) == other
    assert numbers_of("f", ("float32", "(3,)")) == first
    assert programs.names.numbers is None  # TensorFlow's own again
