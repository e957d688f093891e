"""Step 9 with damaged inputs, interrupted, run again and in parts."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import assert_same_datasets, flip_bit, truncate
from step9_case import FIDS, N_STARS, all_tables, output, run, write_sky, write_table

from pipeline.select import shard_path

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch):
    for name in list(os.environ):
        if name.startswith("SLURM"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def tables_of():
    return all_tables()


@pytest.fixture
def sky(tmp_path, tables_of):
    """A fresh data directory of three shards."""
    return write_sky(tmp_path / "data", tables_of)


# --- damaged files --------------------------------------------------------------------------
def empty(path):
    os.truncate(path, 0)


def flip_a_bit(path):
    flip_bit(path, "bp_coefficient_correlations")


def not_hdf5(path):
    path.write_text("<html>Service unavailable</html>")


def drop_dataset(path):
    with h5py.File(path, "r+") as file:
        del file["rp_coefficient_errors"]


def short_dataset(path):
    with h5py.File(path, "r+") as file:
        del file["rp_n_parameters"]
        file["rp_n_parameters"] = np.full(N_STARS - 1, 55)


def narrow_dataset(path):
    with h5py.File(path, "r+") as file:
        del file["rp_coefficients"]
        file["rp_coefficients"] = np.ones((N_STARS, 40))


def other_basis(path):
    with h5py.File(path, "r+") as file:
        file["rp_basis_function_id"] = np.full(N_STARS, 62, "i2")


def repeat_id(path):
    with h5py.File(path, "r+") as file:
        file["source_id"][3] = file["source_id"][7]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, "XpContinuousMeanSpectrum_000010-000019.h5"),
        (empty, "empty file (0 bytes)"),
        (flip_a_bit, "dataset bp_coefficient_correlations"),
        (not_hdf5, "not a readable HDF5 file"),
        (drop_dataset, "no dataset rp_coefficient_errors; found: bp_coefficient_correlations"),
        (short_dataset, "rp_n_parameters is (39,)"),
        (
            narrow_dataset,
            "rp_coefficients is float64 with rows of shape (40,), expected f8 and (55,)",
        ),
        (other_basis, "rp_basis_function_id is 62, expected 57 of Gaia DR3"),
        (repeat_id, "1 repeated ids"),
    ],
)
def test_bad_spectra_are_named_and_the_other_shards_done(sky, damage, words, capsys):
    damage(shard_path(sky, "xp", FIDS[1]))
    assert run(sky) == 1
    message = capsys.readouterr().err
    assert FIDS[1] in message
    assert words in message
    assert "Traceback" not in message
    assert "2 done, 0 already complete, 1 failed" in message
    assert [output(sky, fid).exists() for fid in FIDS] == [True, False, True]
    folder = output(sky).parent
    assert len(list(folder.iterdir())) == 2  # no half-written file either


@pytest.mark.parametrize("kind", ["metadata", "tmass", "unwise"])
def test_other_damaged_inputs_are_named_too(sky, kind, capsys):
    path = shard_path(sky, kind, FIDS[2])
    truncate(path)
    assert run(sky) == 1
    assert path.name in capsys.readouterr().err
    assert [output(sky, fid).exists() for fid in FIDS] == [True, True, False]


@pytest.mark.parametrize("kind", ["metadata", "tmass", "unwise"])
def test_repeated_ids_in_a_joined_table_are_refused(sky, tables_of, kind, capsys):
    table = tables_of[FIDS[0]][kind]
    twice = {name: np.concatenate([array, array[:2]]) for name, array in table.items()}
    write_table(sky, kind, FIDS[0], twice)
    assert run(sky, "--shards", FIDS[0]) == 1
    assert "2 repeated ids" in capsys.readouterr().err


# --- running again --------------------------------------------------------------------------
KILLER = """
import os, signal, sys
import gen_xp_input_allsources as step
step.CHUNK_STARS = 16
whole, calls = step.input_rows, []
def input_rows(*args):
    calls.append(1)
    if len(calls) == 5:  # in the middle of the second shard
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*args)
step.input_rows = input_rows
step.main(sys.argv[1:])
"""


def test_killed_run_finished_by_running_again_gives_the_same_datasets(sky, tmp_path):
    whole = tmp_path / "whole"
    shutil.copytree(sky, whole)
    assert run(whole) == 0
    killed = subprocess.run(
        [sys.executable, "-c", KILLER, "--data-dir", sky],
        cwd=ROOT,
        check=False,
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL
    assert [output(sky, fid).exists() for fid in FIDS] == [True, False, False]
    first = output(sky).stat().st_mtime_ns
    assert run(sky) == 0
    assert output(sky).stat().st_mtime_ns == first  # the finished shard was skipped
    for fid in FIDS:
        assert_same_datasets(output(sky, fid), output(whole, fid))
    assert len(list(output(sky).parent.iterdir())) == 3


def test_finished_shards_are_skipped_unless_overwrite(sky, capsys):
    assert run(sky) == 0
    before = output(sky).stat().st_mtime_ns
    assert run(sky) == 0
    assert "0 done, 3 already complete" in capsys.readouterr().err
    assert output(sky).stat().st_mtime_ns == before
    assert run(sky, "--overwrite") == 0
    assert output(sky).stat().st_mtime_ns > before


def test_parts_together_equal_the_whole(sky, tmp_path):
    parts = tmp_path / "parts"
    shutil.copytree(sky, parts)
    assert run(sky) == 0
    for part in ("0", "1"):
        assert run(parts, "--partition", "2", part) == 0
    for fid in FIDS:
        assert_same_datasets(output(sky, fid), output(parts, fid))


def test_log_tells_what_was_done(sky):
    assert run(sky, "--without", "unwise") == 0
    log = (sky / "logs" / "gen_xp_input_allsources.log").read_text()
    assert "without unwise" in log
    assert FIDS[2] in log
    assert "stars 40" in log
