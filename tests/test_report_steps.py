"""The page at the end of steps 8 and 10: who writes it, and that it never fails a step."""

import logging
import os
import shutil
import sys
from types import SimpleNamespace

import pytest
from demo_model import run_inference
from export_case import stars, write_shard
from helpers import FIDS, flip_bit
from report_case import soup_of, table_of, text_of, write_all, write_model

from fitting.report import after, page
from pipeline.run import HELD_STATUS
from pipeline.schema import load_release
from pipeline.select import shard_path

RELEASE = load_release()


@pytest.fixture(autouse=True)
def switched_on(monkeypatch):
    monkeypatch.setenv(after.SWITCH, "")


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO)
    return logging.getLogger("a step")


@pytest.fixture
def asked(monkeypatch):
    """Pages that were asked for, which are written empty."""
    seen = []

    def write_page(path, **what):
        seen.append(what)
        path.write_text("a page")

    monkeypatch.setattr(page, "write_page", write_page)
    return seen


@pytest.fixture
def args(tmp_path):
    """Arguments of step 10 with three complete shards, whose inputs are there."""
    data_dir, model, _, _ = write_all(tmp_path, 60)
    for fid in FIDS:
        path = shard_path(data_dir, "opt_input", fid)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"an input")
    return SimpleNamespace(
        data_dir=data_dir, model=model, release=RELEASE, shards=None, partition=None, parts=None
    )


def test_a_run_over_all_shards_writes_the_page_also_where_some_failed(args, log, asked):
    for status in (0, 1):
        after.after_inference(args, status, log)
    assert len(asked) == 2
    assert asked[0] == {"data_dir": args.data_dir, "model": args.model, "release": RELEASE}


def test_a_page_that_is_newer_than_the_catalogue_is_not_made_again(args, log, asked):
    after.after_inference(args, 0, log)
    after.after_inference(args, 0, log)
    assert len(asked) == 1
    later = os.stat(args.data_dir / after.NAME).st_mtime + 5
    os.utime(shard_path(args.data_dir, "opt_output", FIDS[1]), (later, later))
    after.after_inference(args, 0, log)
    assert len(asked) == 2


@pytest.mark.parametrize("some", [{"partition": (3, 1)}, {"shards": [FIDS[1]]}])
def test_a_part_writes_the_page_only_when_no_shard_is_left(some, args, log, asked, caplog):
    vars(args).update(some)
    missing = shard_path(args.data_dir, "opt_output", FIDS[2])
    missing.rename(missing.with_suffix(".aside"))
    after.after_inference(args, 0, log)
    assert not asked
    assert "no report: 1 shards are left" in caplog.text
    missing.with_suffix(".aside").rename(missing)
    after.after_inference(args, 0, log)
    assert len(asked) == 1


def test_a_task_of_a_slurm_array_is_a_part(args, log, asked, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    args.parts = 3
    shard_path(args.data_dir, "opt_output", FIDS[0]).unlink()
    after.after_inference(args, 0, log)
    assert not asked


def test_a_part_looks_whether_shards_are_whole_not_only_whether_they_are_there(args, log, asked):
    args.partition = (3, 0)
    write_shard(args.data_dir, FIDS[0], stars(9), model="content of another model")
    after.after_inference(args, 0, log)
    assert not asked


@pytest.mark.parametrize("status", [128 + 15, 130])
def test_a_run_that_a_signal_ended_writes_none(status, args, log, asked):
    after.after_inference(args, status, log)
    assert not asked


def test_where_others_are_at_work_on_shards_theirs_is_the_page(args, log, asked):
    shard_path(args.data_dir, "opt_output", FIDS[0]).unlink()
    after.after_inference(args, HELD_STATUS, log)
    assert not asked


def test_it_can_be_switched_off(args, log, asked, monkeypatch):
    monkeypatch.setenv(after.SWITCH, "off")
    after.after_inference(args, 0, log)
    after.after_training(SimpleNamespace(output=args.model, input=None, release=RELEASE), log)
    assert not asked


@pytest.mark.parametrize("error", [RuntimeError("no {luck}\nat all"), OSError(28, "disk full")])
def test_what_fails_is_a_line_of_warning_and_no_failure(error, args, log, monkeypatch, caplog):
    def fail(path, **what):
        raise error

    monkeypatch.setattr(page, "write_page", fail)
    after.after_inference(args, 0, log)
    warned = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warned) == 1
    assert "report.html: not written" in warned[0]
    assert "\n" not in warned[0]
    assert "tools/report.py" in warned[0]


def test_without_jinja2_a_step_ends_well(args, log, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "fitting.report.page", None)
    after.after_inference(args, 0, log)
    assert "report.html: not written" in caplog.text


def test_step_8_ends_with_a_page_on_the_model(tmp_path, log):
    write_model(tmp_path / "model")
    args = SimpleNamespace(output=tmp_path / "model", input=tmp_path / "none.h5", release=RELEASE)
    after.after_training(args, log)
    soup = soup_of((tmp_path / "model" / "report.html").read_text())
    assert text_of(soup.h1) == f"The model {tmp_path / 'model'}"


def test_step_10_ends_with_a_page_that_names_the_shard_that_failed(step10, tmp_path):
    data_dir = tmp_path / "data"
    shutil.copytree(step10.data_dir, data_dir)
    bad = shard_path(data_dir, "opt_input", step10.fids[1])
    flip_bit(bad, "flux")
    shard_path(data_dir, "opt_output", step10.fids[1]).unlink()
    assert run_inference(data_dir, step10.model) == 1
    soup = soup_of((data_dir / "report.html").read_text())
    row = table_of(soup, "Shards of step 10 that are not complete")[0]
    assert (row["shard"], row["state"]) == (step10.fids[1], "failed")
    assert "flux" in row["why"]
    assert "Scatter of Teff" in text_of(soup.header)
