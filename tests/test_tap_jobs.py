"""The jobs of steps 2 and 3, against a stub that fails; and the patches of the test server."""

import http.client
import io
import json
import logging
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from astropy.io.votable import from_table
from astropy.table import Table
from helpers import assert_same_datasets, read_all
from services import patch_dachs
from shard_case import dead_pid
from tap_case import (
    FIDS,
    N_STARS,
    ROOT,
    leftovers,
    log_text,
    make_data_dir,
    make_ids,
    make_stub,
    output,
    run,
    start_run,
    wait_for,
    write_spectra,
)
from test_lease import write_lease

import query_xp_metadata as step
from pipeline import tap_jobs, tap_service
from pipeline.errors import ShardError
from pipeline.read import ShardReader
from pipeline.tap_answer import BadAnswerError, parse_answer, plain_columns
from pipeline.whole_files import temporary_beside


@pytest.fixture
def data_dir(tmp_path):
    return make_data_dir(tmp_path)


@pytest.fixture
def stub():
    with make_stub() as service:
        yield service


# ---- faults of the service -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_kind", "fault"),
    [
        ("submit", 500), ("submit", 503), ("submit", "reset"), ("submit", "silent"),
        ("submit", 429), ("start", 500), ("start", "reset"), ("phase", 500), ("phase", "reset"),
        ("phase", "silent"), ("phase", "html"), ("result", 500), ("result", "reset"),
        ("result", "silent"), ("result", "cut"), ("result", "half"), ("result", "html"),
        ("result", "error document"),
    ],
)  # fmt: skip
def test_a_passing_fault_is_outlived(data_dir, stub, request_kind, fault):
    stub.faults = {request_kind: [fault]}
    assert run(data_dir, stub, "--shards", FIDS[0]) == 0
    np.testing.assert_array_equal(read_all(output(data_dir))["source_id"], make_ids(FIDS[0]))
    assert stub.requests.count("submit") <= 2
    assert not stub.jobs
    assert leftovers(data_dir) == []


@pytest.mark.parametrize("fault", [500, "reset", "html", "error document"])
def test_a_lasting_fault_fails_the_shard_after_bounded_attempts_and_names_it(
    data_dir, stub, capsys, fault
):
    stub.faults = {"result": [fault] * 1000}
    assert run(data_dir, stub, "--shards", FIDS[0], "--attempts", 3) == 1
    shown = capsys.readouterr().err
    assert "given up after 3 attempts" in shown
    assert f"1 failed: {FIDS[0]}" in shown
    assert "Traceback" not in shown
    assert not output(data_dir).exists()
    assert stub.count("result") <= 6
    stub.faults = {}
    assert run(data_dir, stub, "--shards", FIDS[0]) == 0
    assert not stub.jobs


def test_a_service_that_is_not_there_fails_every_shard_and_exits_1(data_dir, stub):
    stub.__exit__()
    assert run(data_dir, stub.url, "--attempts", 2) == 1
    assert not output(data_dir).exists()
    stub.__enter__()  # for the fixture


@pytest.mark.parametrize("phase", ["ABORTED", "ERROR"])
def test_an_aborted_job_is_deleted_and_submitted_again(data_dir, stub, phase):
    stub.phases = [["EXECUTING", phase], ["EXECUTING", "COMPLETED"]]
    assert run(data_dir, stub, "--shards", FIDS[0]) == 0
    assert stub.deleted == ["job0", "job1"]
    assert f"job job0 ended as {phase}: out of memory" in log_text(data_dir)


@pytest.mark.parametrize("phase", ["QUEUED", "EXECUTING", "HELD"])
def test_a_job_stuck_in_a_phase_is_given_up_at_the_deadline(data_dir, stub, phase):
    stub.phases = [[phase], ["EXECUTING", "COMPLETED"]]
    assert run(data_dir, stub, "--shards", FIDS[0], "--timeout", 0.1) == 0
    assert stub.deleted == ["job0", "job1"]
    assert f"job job0 is {phase} after" in log_text(data_dir)


def test_one_failing_shard_stops_no_other_and_only_it_is_asked_for_again(data_dir, stub):
    stub.phases = [["ERROR"], ["COMPLETED"]]
    assert run(data_dir, stub, "--attempts", 1, "--jobs", 1) == 1
    assert [output(data_dir, fid).exists() for fid in FIDS] == [False, True, True, True]
    assert run(data_dir, stub) == 0
    assert len(stub.queries) == len(FIDS) + 1
    assert run(data_dir, stub) == 0
    assert len(stub.queries) == len(FIDS) + 1


@pytest.mark.parametrize("limit", [N_STARS, N_STARS - 5])
def test_a_result_of_as_many_rows_as_the_limit_is_a_failure(data_dir, stub, capsys, limit):
    assert run(data_dir, stub, "--shards", FIDS[0], "--row-limit", limit) == 1
    assert "larger --row-limit" in capsys.readouterr().err
    assert not output(data_dir).exists()
    assert stub.deleted == ["job0"]
    assert stub.forms[0]["MAXREC"] == str(limit)
    assert run(data_dir, stub, "--shards", FIDS[0], "--row-limit", N_STARS + 1) == 0


def test_overflow_is_a_failure_whatever_the_number_of_rows(data_dir, stub, capsys):
    stub.faults = {"result": ["overflow"]}
    assert run(data_dir, stub, "--shards", FIDS[0]) == 1
    assert "cut the result" in capsys.readouterr().err
    assert len(stub.queries) == 1
    assert not output(data_dir).exists()


def test_a_refused_query_is_told_and_not_asked_again(data_dir, stub, capsys):
    stub.faults = {"submit": [400]}
    assert run(data_dir, stub, "--shards", FIDS[0]) == 1
    assert "HTTP 400" in capsys.readouterr().err
    assert stub.count("submit") == 1


def test_an_answer_without_a_column_names_it(data_dir, stub, capsys, monkeypatch):
    original = stub.answer
    monkeypatch.setattr(stub, "answer", lambda q, f: original(q.replace("source.ruwe, ", ""), f))
    assert run(data_dir, stub, "--shards", FIDS[0]) == 1
    assert "no column ruwe" in capsys.readouterr().err


def test_ids_that_come_as_floats_are_refused():
    answer = {"source_id": np.ma.array([1.0e18])}
    with pytest.raises(ShardError, match="float64"):
        plain_columns(answer, {"source_id": "i8"})


def test_numbers_that_do_not_fit_and_null_ids_are_refused():
    with pytest.raises(ShardError, match="does not fit"):
        plain_columns({"n": np.ma.array([40000])}, {"n": "i2"})
    with pytest.raises(ShardError, match="1 rows of the answer have no source_id"):
        plain_columns({"source_id": np.ma.array([5, 6], mask=[0, 1])}, {"source_id": "i8"})


def test_jobs_are_deleted_as_uws_has_it_where_the_service_has_no_tap_plus(data_dir, stub):
    stub.deny_tap_plus = True
    assert run(data_dir, stub) == 0
    assert sorted(stub.deleted) == ["job0", "job1", "job2", "job3"]


def test_a_job_that_cannot_be_deleted_is_no_failure(data_dir, stub):
    stub.faults = {"delete": [500] * 100}
    assert run(data_dir, stub, "--shards", FIDS[0]) == 0
    assert "job0 could not be deleted" in log_text(data_dir)


@pytest.mark.parametrize("form", ["tabledata", "binary2"])
def test_a_document_cut_anywhere_is_no_small_success(form):
    table = Table({"source_id": np.arange(50)})
    stream = io.BytesIO()
    from_table(table).to_xml(stream, tabledata_format=form)
    whole = stream.getvalue()
    assert len(parse_answer(whole, 51)["source_id"]) == 50
    for length in range(0, len(whole.rstrip()), 7):
        with pytest.raises(BadAnswerError):
            parse_answer(whole[:length], 51)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_connections_have_a_time_limit(scheme):
    handler = tap_service._Connections(f"{scheme}://127.0.0.1/tap", 7)
    for connection in (handler.get_connection(), handler.get_connection_secure()):
        assert connection.timeout == 7
        assert isinstance(connection, http.client.HTTPSConnection) == (scheme == "https")


# ---- interruptions, partitions, threads ------------------------------------------------------


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_takes_its_jobs_up_again(data_dir, stub, sign):
    stub.phases = [["EXECUTING"]]
    process = start_run(data_dir, stub)
    wait_for(lambda: stub.count("phase") >= 6)
    process.send_signal(sign)
    process.communicate(timeout=60)
    under_way = dict(stub.jobs)
    assert len(under_way) == 2
    notes = [name for name in leftovers(data_dir) if name.endswith(".jobs.json")]
    assert len(notes) == 2
    for job in under_way.values():
        job["phases"] = ["COMPLETED"]
    stub.phases = [["EXECUTING", "COMPLETED"]]
    assert run(data_dir, stub) == 0
    assert len(stub.queries) == len(FIDS)
    assert not stub.jobs
    assert leftovers(data_dir) == []
    assert "job job0 is taken up again" in log_text(data_dir)


def test_ctrl_c_stops_soon_with_130_and_the_next_call_finishes(data_dir, stub):
    stub.phases = [["EXECUTING"]]
    process = start_run(data_dir, stub, "--poll", "300")
    wait_for(lambda: stub.count("phase") >= 2)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in shown
    for job in stub.jobs.values():
        job["phases"] = ["COMPLETED"]
    stub.phases = [["COMPLETED"]]
    assert run(data_dir, stub) == 0
    assert len(stub.queries) == len(FIDS)


def test_a_noted_job_that_was_never_started_is_started(data_dir, stub):
    stub.faults = {"start": ["reset"]}
    assert run(data_dir, stub, "--shards", FIDS[0]) == 0
    assert (stub.count("submit"), stub.count("start")) == (1, 2)


def test_notes_half_written_by_a_killed_run_go_with_the_notes(data_dir, stub):
    note = output(data_dir).with_name(f".{output(data_dir).name}.jobs.json")
    note.parent.mkdir()
    half = temporary_beside(note)
    half = half.with_name(half.name.replace(f"-{os.getpid()}.", "-99999999."))
    half.write_text('{"a quest')
    assert run(data_dir, stub, "--shards", FIDS[0]) == 0
    assert list(note.parent.iterdir()) == [output(data_dir)]


def test_a_noted_job_that_is_gone_or_of_another_query_is_not_waited_for(data_dir, stub):
    note = output(data_dir).with_name(f".{output(data_dir).name}.jobs.json")
    note.parent.mkdir()
    note.write_text(json.dumps({"another question": "job99"}))
    assert run(data_dir, stub, "--shards", FIDS[0]) == 0
    note.write_text("{ broken")
    assert run(data_dir, stub, "--shards", FIDS[0], "--overwrite") == 0
    stub.phases = [["EXECUTING"]]
    process = start_run(data_dir, stub, "--shards", FIDS[1])
    wait_for(lambda: stub.jobs)
    wait_for(lambda: stub.count("phase") >= 8)
    process.kill()
    process.communicate(timeout=60)
    stub.jobs.clear()
    stub.phases = [["COMPLETED"]]
    assert run(data_dir, stub, "--shards", FIDS[1]) == 0


def test_two_partitions_side_by_side_equal_one_run(data_dir, stub, tmp_path_factory):
    alone = tmp_path_factory.mktemp("alone")
    for fid in FIDS:
        write_spectra(alone, fid, make_ids(fid))
    assert run(alone, stub) == 0
    both = [start_run(data_dir, stub, "--partition", 2, part) for part in (0, 1)]
    for process in both:
        _, shown = process.communicate(timeout=120)
        assert process.returncode == 0, shown
    for fid in FIDS:
        assert_same_datasets(output(data_dir, fid), output(alone, fid))
    assert len(stub.queries) == 2 * len(FIDS)
    assert leftovers(data_dir) == []


@pytest.mark.parametrize("jobs", [1, 3])
def test_no_more_jobs_at_once_than_asked(data_dir, stub, jobs):
    stub.phases = [["EXECUTING"] * 5 + ["COMPLETED"]]
    assert run(data_dir, stub, "--jobs", jobs) == 0
    assert stub.most <= jobs
    assert (stub.most > 1) == (jobs > 1)


# ---- login and options -----------------------------------------------------------------------


@pytest.fixture
def login(tmp_path):
    path = tmp_path / "login.txt"
    path.write_text("astronomer\nsecret-word\n")
    return path


def test_a_login_goes_with_every_request_and_is_renewed_when_it_expires(data_dir, stub, login):
    stub.user = ("astronomer", "secret-word")
    assert run(data_dir, stub, "--login", login, "--shards", FIDS[0]) == 0
    assert stub.count("login") >= 1
    phases = iter(range(10**6))
    original = stub.answer

    def answer_once_and_expire(query, fault):
        if next(phases) == 0:
            stub.session = "two"
        return original(query, fault)

    stub.answer = answer_once_and_expire
    assert run(data_dir, stub, "--login", login, "--jobs", 1) == 0
    assert "secret-word" not in log_text(data_dir)
    with ShardReader(output(data_dir)) as reader:
        assert "secret-word" not in repr(reader.attrs)


def test_a_refused_login_exits_2_before_anything_is_asked(data_dir, stub, login, capsys):
    stub.user = ("astronomer", "another-word")
    assert run(data_dir, stub, "--login", login) == 2
    shown = capsys.readouterr()
    assert "--login" in shown.err
    assert "secret-word" not in shown.err + shown.out
    assert set(stub.requests) == {"login"}


@pytest.mark.parametrize("content", [None, "", "only-a-user\n", "user\n\n"])
def test_a_login_file_that_is_none_exits_2(data_dir, stub, tmp_path, capsys, content):
    path = tmp_path / "odd.txt"
    if content is not None:
        path.write_text(content)
    assert run(data_dir, stub, "--login", path) == 2
    assert "--login" in capsys.readouterr().err


def test_a_password_is_not_sent_in_the_clear_over_the_network(data_dir, login, capsys):
    assert run(data_dir, "http://tap.example.invalid/tap", "--login", login) == 2
    assert "use https" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [["--jobs", "0"], ["--attempts", "0"], ["--row-limit", "none"], ["--timeout", "-1"]]
)
def test_impossible_options_exit_2(data_dir, stub, options):
    with pytest.raises(SystemExit) as exit_:
        run(data_dir, stub, *options)
    assert exit_.value.code == 2


def test_a_malformed_url_and_a_missing_folder_exit_2(data_dir, tmp_path, capsys):
    assert run(data_dir, "gea.esac.esa.int") == 2
    assert "--tap-url" in capsys.readouterr().err
    assert run(tmp_path / "nowhere", "http://127.0.0.1:9/tap") == 2


def test_importing_the_step_does_not_contact_the_archive():
    code = "import sys, query_xp_metadata, query_2mass; sys.exit('astroquery.gaia' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_waits_grow_and_are_spread(data_dir, monkeypatch):
    args = step.parse_args(["--retry-wait", "10"])
    service = tap_service.TapService(args, logging.getLogger("toy"))
    waits = []
    monkeypatch.setattr(service, "pause", waits.append)
    for failures in (1, 1, 2, 4, 30):
        service.back_off(failures)
    assert waits[0] != waits[1]
    limits = [10, 10, 20, 80, tap_service.LONGEST_WAIT]
    assert all(0.5 * t <= w <= 1.5 * t for t, w in zip(limits, waits, strict=True))


# ---- the patches of the test server ----------------------------------------------------------


def test_a_patch_is_applied_once_and_fails_loudly_where_its_text_is_not_found(tmp_path, capsys):
    path = tmp_path / "grammar.py"
    path.write_text('words = {"EXTERNAL", "EXTRACT", "FALSE"}')
    for _ in range(2):
        patch_dachs.replace_once(path, '"EXTERNAL", "EXTRACT"', '{"EXTRACT"')
        assert path.read_text() == 'words = {{"EXTRACT", "FALSE"}'
    for text in ("something else", '"EXTERNAL", "EXTRACT" "EXTERNAL", "EXTRACT"'):
        path.write_text(text)
        with pytest.raises(patch_dachs.PatchError, match="expected once"):
            patch_dachs.replace_once(path, '"EXTERNAL", "EXTRACT"', '{"EXTRACT"')
        assert path.read_text() == text
    (tmp_path / "pg_sphere--1.2.0.sql").write_text("CREATE OPERATOR @ (LEFTARG = a);")
    with pytest.raises(patch_dachs.PatchError, match="no COMMUTATOR"):
        patch_dachs.patch_pgsphere(tmp_path)
    assert patch_dachs.main(["nonsense"]) == 2


def test_the_pg_sphere_patch_drops_only_the_contains_operators_hints(tmp_path):
    path = tmp_path / "pg_sphere--1.2.0.sql"
    kept = "   COMMUTATOR = '=',\n   LEFTARG = spoint,\n"
    path.write_text(f"   COMMUTATOR = '@>',\n   NEGATOR    = '!<@' ,\n{kept}")
    for _ in range(2):
        patch_dachs.patch_pgsphere(tmp_path)
        assert path.read_text().endswith(f"dropped\n{kept}")


def test_what_a_run_left_that_was_killed_when_its_output_was_there_is_cleared_away(data_dir, stub):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tap_jobs.ShardJobs, "finish", lambda jobs: None)  # killed before
        assert run(data_dir, stub) == 0
    for fid in FIDS:
        write_lease(output(data_dir, fid), pid=dead_pid())
    assert len(leftovers(data_dir)) == 2 * len(FIDS)
    assert len(stub.jobs) == 1 + len(FIDS)  # and the one about the archive's columns
    assert run(data_dir, stub) == 0
    assert leftovers(data_dir) == []
    assert len(stub.jobs) == 1
    assert stub.count("submit") == len(FIDS)
