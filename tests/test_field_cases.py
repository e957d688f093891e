"""Inputs that people really have, as files: three real sources of Gaia DR3, one without BP."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from step7_case import run
from test_convert_xp_csv import FID, convert, read

from pipeline.schema import load_release
from pipeline.select import shard_path
from pipeline.training_labels import IMPOSSIBLE, NO_ID, clean_labels, read_labels

CASES = Path(__file__).resolve().parents[1].parent / "shared" / "field_cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="../shared/field_cases is not here")
IDS = [5853498713190525696, 5405570973190252288, 5762406957886626816]


def file_of(case, pattern):
    return next(CASES.glob(f"{case}_*/{pattern}"))


@pytest.mark.parametrize("case", ["04", "05", "08", "10", "12", "13", "14", "15"])
@pytest.mark.parametrize("name", [f"XpContinuousMeanSpectrum_{FID}.csv", "XP_CONTINUOUS.csv"])
def test_three_good_stars_are_read(tmp_path, case, name):
    shutil.copy(file_of(case, "*.csv"), tmp_path / name)
    assert convert(tmp_path / name, tmp_path / "data") == 0
    found, _ = read(tmp_path / "data")
    assert sorted(found["source_id"]) == sorted(IDS)
    for band, whole in (("bp", 2), ("rp", 3)):
        good = np.isfinite(found[f"{band}_coefficients"]).all(1)
        assert good.sum() == whole
        assert (found[f"{band}_n_parameters"] == np.where(good, 55, 0)).all()


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("06", "has 51 numbers, expected 55 of Gaia DR3"),
        ("07", "a float, which has lost digits: write ids as 64-bit integers"),
        ("11", "were printed, not stored"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(tmp_path, capsys, case, words):
    assert convert(file_of(case, "*.csv"), tmp_path / "data") == 1
    assert words in capsys.readouterr().err
    assert not shard_path(tmp_path / "data", "xp", FID).exists()


@pytest.mark.parametrize(("case", "why", "n"), [("01", NO_ID, 3), ("02", IMPOSSIBLE, 2)])
def test_labels_that_are_none_are_counted(case, why, n):
    path = file_of(case, "*.h5")
    table = read_labels(path, load_release())
    clean_labels(table, path, log=None)
    assert (table.fate == why).sum() == n
    assert (table.fate == "").sum() == 20 - n


@pytest.mark.parametrize(
    ("case", "status", "words"), [("03", 2, "store it in kK"), ("22", 1, "no label is left")]
)
def test_labels_of_another_unit_or_sky_are_refused(tmp_path, capsys, case, status, words):
    shard = file_of("08", "*.csv")
    assert convert(shard, tmp_path) == 0
    shutil.copy(file_of(case, "*.h5"), tmp_path / "labels.h5")
    (tmp_path / "xp_metadata").mkdir()
    without = ["--without", "tmass", "unwise", "reddening"]
    if case == "22":  # none of its stars is in the shard's pixels
        made = shard_path(tmp_path, "xp", FID)
        made.rename(shard_path(tmp_path, "xp", "600000-600001"))
    assert run(tmp_path, *without) == status
    shown = capsys.readouterr()
    assert words in shown.err
    assert "Traceback" not in shown.err
    if status == 1:
        assert shown.out.split()[-1] == "0"
