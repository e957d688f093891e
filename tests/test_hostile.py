"""Huge, hostile and private things: refused, not shown, not followed."""

import gzip
import os
from types import SimpleNamespace

import pytest
from shard_case import arguments, fid_list, touch_shards

from pipeline import csv_rows, run, select, tap_answer, whole_files
from pipeline.errors import ShardError, UsageError
from pipeline.tap_service import TapService, first_words
from pipeline.write import ShardWriter
from tools import convert_xp_csv

NAME = "XpContinuousMeanSpectrum_000000-003111.csv.gz"


@pytest.mark.parametrize("head", [b"", b"source_id,bp_coefficients\n", b'source_id,x\n1,"['])
def test_a_line_without_an_end_is_refused_without_being_held(tmp_path, head, monkeypatch, capsys):
    monkeypatch.setattr(csv_rows, "MOST_BYTES", 1 << 16)
    with gzip.open(tmp_path / NAME, "wb", compresslevel=1) as file:
        file.write(head)
        for _ in range(40):
            file.write(b"0123456789" * 1000)
    words = [str(tmp_path / NAME), "--data-dir", str(tmp_path / "data")]
    assert convert_xp_csv.main(words) == 1
    shown = capsys.readouterr().err
    assert NAME in shown
    assert "Traceback" not in shown
    assert max(map(len, shown.splitlines())) < 1000


def test_the_memory_of_a_line_without_an_end_is_bounded(tmp_path):
    """A line of 2.5 GB takes 2.5 MB packed; it is passed over in blocks."""
    block = gzip.compress(bytes(50 << 20).replace(b"\0", b"1"), 9)
    (tmp_path / NAME).write_bytes(gzip.compress(b"source_id,bp_coefficients\n") + block * 3)
    with gzip.open(tmp_path / NAME) as file:
        names, n_head, _ = csv_rows.read_head(file, "source_id")
        assert (names[0], n_head) == ("source_id", 1)
        with pytest.raises(ShardError, match=f"{NAME}: a line of more than 32 MB"):
            next(csv_rows.records(file, 2, lambda line: False, tmp_path / NAME))


def test_an_answer_that_inflates_without_bound_is_refused(monkeypatch):
    monkeypatch.setattr(tap_answer, "MOST_BYTES", 1 << 20)
    with pytest.raises(ShardError, match="the answer is larger than 1 MB"):
        tap_answer.parse_answer(gzip.compress(bytes(1 << 24)), 10)
    with pytest.raises(tap_answer.BadAnswerError, match="not a VOTable"):
        tap_answer.parse_answer(gzip.compress(bytes(1 << 19)), 10)


def test_thousands_of_unknown_shards_are_a_short_message(tmp_path):
    touch_shards(tmp_path, fid_list(3))
    with pytest.raises(UsageError, match=r"\(5000 in all\)") as found:
        select.select_fids(arguments(tmp_path, "--shards", *fid_list(5003)[3:]), "xp")
    assert len(str(found.value)) < 400


def test_the_reasons_of_thousands_of_failures_are_told_together(tmp_path):
    same = dict.fromkeys(fid_list(3000), "model.h5: was replaced")
    assert run.reasons_of(same).count("was replaced") == 1
    assert "(3000 in all)" in run.reasons_of(same)
    each = {fid: f"{fid}.h5: damaged" for fid in fid_list(3000)}
    assert len(run.reasons_of(each)) < 2000
    assert "and 2980 more, see the log" in run.reasons_of(each)


# ---- secrets ---------------------------------------------------------------------------------


def service(log=None, **options):
    args = SimpleNamespace(**{"tap_url": None, "login": None, "http_timeout": 1.0} | options)
    return TapService(args, log)


@pytest.mark.parametrize("url", ["https://me:secret@host/tap", "ftp://me:secret@host/tap"])
def test_a_password_in_the_url_is_refused_and_not_shown(url):
    with pytest.raises(UsageError, match="--login FILE") as found:
        service(tap_url=url)
    assert "secret" not in str(found.value)


@pytest.mark.parametrize(
    "page",
    [
        b"<html><form action=login><input name=user value=me><input value=secret></form>",
        b"<html><body>401: you sent user=me&password=secret</body>",
    ],
)
def test_a_page_with_a_login_is_not_shown(page):
    assert "secret" not in first_words(page)
    assert "perhaps a login" in first_words(page)


@pytest.mark.parametrize(("mode", "told"), [(0o600, False), (0o644, True), (0o640, True)])
def test_a_login_file_that_others_can_read_is_told(tmp_path, mode, told, monkeypatch):
    said = []
    log = SimpleNamespace(warning=lambda words, *values: said.append(words % values))
    path = tmp_path / "login.txt"
    path.write_text("me\nsecret\n")
    path.chmod(mode)
    monkeypatch.setattr(TapService, "connection", lambda self: None)
    service(log, tap_url="https://host/tap", login=path)
    assert [f"chmod 600 {path}" in line for line in said] == [True] * told


# ---- links and permissions -------------------------------------------------------------------


def test_a_link_in_the_place_of_a_temporary_is_not_followed(tmp_path, monkeypatch):
    victim, place = tmp_path / "victim", tmp_path / ".out.h5.part"
    victim.write_text("precious")
    place.symlink_to(victim)
    monkeypatch.setattr("pipeline.write.temporary_beside", lambda path: place)
    monkeypatch.setattr(whole_files, "temporary_beside", lambda path: place)
    with (
        pytest.raises(ShardError, match=r"out\.h5: cannot be written"),
        ShardWriter(tmp_path / "out.h5", 3, "source_id", {}),
    ):
        pass
    place.unlink(missing_ok=True)
    place.symlink_to(victim)
    with pytest.raises(ShardError, match=r"notes\.json: cannot be written"):
        whole_files.write_text(tmp_path / "notes.json", "x")
    assert victim.read_text() == "precious"


def test_a_folder_that_may_not_be_written_ends_the_run_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(run.os, "access", lambda path, mode: False)
    args = arguments(tmp_path)
    with pytest.raises(UsageError, match="xp_dustmap_match: no permission to write there"):
        run.run_shards(
            "toy", args, fid_list(3), lambda fid: [],
            lambda fid: select.output_path(tmp_path, "reddening", fid), None,
        )  # fmt: skip


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path):
    from pipeline.read import ShardReader

    path = tmp_path / "a.h5"
    path.touch(mode=0)
    with pytest.raises(ShardError, match=r"a\.h5: no permission for it"):
        ShardReader(path)


@pytest.mark.parametrize(("error", "status"), [(PermissionError(13, "denied", "/x/y"), 2),
                                               (OSError(28, "No space", "/x/y"), 1)])  # fmt: skip
def test_what_the_system_refuses_is_one_line_that_names_the_file(capsys, error, status):
    @run.usage_exit
    def main(argv=None):
        raise error

    assert main([]) == status
    shown = capsys.readouterr().err
    assert "/x/y: " in shown
    assert shown.count("\n") == 1
