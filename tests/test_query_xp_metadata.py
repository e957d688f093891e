"""Step 2, and the jobs it shares with step 3: against a stub that fails, and a real TAP server."""

import http.client
import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from astropy.io.votable import from_table
from astropy.table import Table
from helpers import assert_same_datasets, read_all
from services import patch_dachs
from tap_stub import TapStub, select_items
from zero_point import zpt

import query_xp_metadata as step
from pipeline import tap_jobs
from pipeline.provenance import Status, output_state
from pipeline.read import ShardReader, join_rows
from pipeline.select import list_fids, shard_path
from pipeline.write import ShardWriter

ROOT = Path(__file__).resolve().parents[1]
FIDS = ("000000-000099", "000100-000199", "000200-000299", "000300-000399")
N_STARS = 30  # in each shard
FAST = ("--retry-wait", "0.01", "--poll", "0.01", "--pace", "0", "--http-timeout", "0.5")


def make_ids(fid, n=N_STARS):
    """Ids beyond 2^53 where the pixel allows, odd, so that a float would not hold them."""
    rng = np.random.default_rng(int(fid[:6]) + 1)
    return np.sort((int(fid[:6]) << 43) + (99 << 43) + rng.choice(2**42, n, replace=False) * 2 + 1)


def write_spectra(data_dir, fid, ids):
    with ShardWriter(shard_path(data_dir, "xp", fid), len(ids), "source_id", {}) as writer:
        writer.write("source_id", 0, ids)


def gaia_table(ids):
    """What the archive would answer for `ids`, {column: (n,) masked array}."""
    rng = np.random.default_rng(7)
    n = len(ids)
    table = {}
    for name, column in step.COLUMNS.items():
        kind = np.dtype(column.dtype).kind
        if kind == "f":
            values = rng.uniform(0.1, 1, n).astype(column.dtype)
        elif kind == "i":
            values = rng.integers(0, 100, n).astype(column.dtype)
        else:
            values = rng.random(n) < 0.5
        table[name] = np.ma.array(values)
    table["source_id"] = np.ma.array(ids)
    variable = np.where(np.arange(n) % 3, "VARIABLE", "NOT_AVAILABLE")
    table["phot_variable_flag"] = np.ma.array(variable)
    table["phot_g_mean_mag"] = np.ma.array(rng.uniform(8, 18, n).astype("f4"))
    solved = np.resize(np.array([31, 95, 31, 3], "i2"), n)
    table["astrometric_params_solved"] = np.ma.array(solved)
    nu_eff = np.ma.array(rng.uniform(1.2, 1.8, n).astype("f4"), mask=solved != 31)
    colour = np.ma.array(rng.uniform(1.3, 1.7, n).astype("f4"), mask=solved != 95)
    table |= {"nu_eff_used_in_astrometry": nu_eff, "pseudocolour": colour}
    table["parallax"] = np.ma.array(rng.uniform(-1, 5, n), mask=solved == 3)
    table["ecl_lat"] = np.ma.array(rng.uniform(-90, 90, n))
    table["norm_dg"].mask = np.arange(n) % 2 == 0
    table["rv_nb_transits"].mask = np.arange(n) % 3 == 0
    return table


@pytest.fixture
def data_dir(tmp_path):
    for fid in FIDS:
        write_spectra(tmp_path, fid, make_ids(fid))
    return tmp_path


@pytest.fixture
def stub():
    with TapStub(gaia_table(np.concatenate([make_ids(fid) for fid in FIDS]))) as service:
        yield service


def run(data_dir, stub, *options, fast=FAST):
    arguments = ["--data-dir", data_dir, "--tap-url", getattr(stub, "url", stub), *fast, *options]
    return step.main([str(argument) for argument in arguments])


def output(data_dir, fid=FIDS[0]):
    return shard_path(data_dir, "metadata", fid)


def leftovers(data_dir):
    folder = output(data_dir).parent
    return sorted(p.name for p in folder.iterdir() if p.name.startswith("."))


def log_text(data_dir):
    return (data_dir / "logs" / "query_xp_metadata.log").read_text()


# ---- the content -----------------------------------------------------------------------------


def test_every_spectrum_has_its_row_in_order_of_id_with_types_units_and_nan(data_dir, stub):
    shuffled = np.random.default_rng(0).permutation(N_STARS)
    write_spectra(data_dir, FIDS[0], make_ids(FIDS[0])[shuffled])
    assert run(data_dir, stub) == 0
    for number, fid in enumerate(FIDS):
        rows = slice(number * N_STARS, (number + 1) * N_STARS)
        found = read_all(output(data_dir, fid))
        np.testing.assert_array_equal(found["source_id"], make_ids(fid))
        for name, column in step.COLUMNS.items():
            if name == "parallax":
                continue
            expected = stub.table[name][rows]
            fill = {"f": np.nan, "S": ""}.get(np.dtype(column.dtype).kind, 0)
            expected = np.ma.filled(expected, fill)
            assert found[name].dtype == np.dtype(column.dtype), name
            np.testing.assert_array_equal(found[name], expected.astype(column.dtype), name)
    with ShardReader(output(data_dir)) as reader:
        assert reader.attributes("pmra")["units"] == "mas / yr"
        assert reader.attrs["n_missing"] == 0
        assert reader.attrs["n_spectra"] == N_STARS
        assert "gaiadr3.gaia_source" in reader.attrs["query"]
    state = output_state(output(data_dir), [shard_path(data_dir, "xp", FIDS[0])])
    assert state.status is Status.COMPLETE


def test_parallax_is_the_raw_one_less_the_zero_point_of_lindegren(data_dir, stub):
    assert run(data_dir, stub) == 0
    found = read_all(output(data_dir))
    table = {name: np.ma.filled(v[:N_STARS], 0) for name, v in stub.table.items()}
    solved = table["astrometric_params_solved"]
    zpt.load_tables()
    for row in np.flatnonzero(np.isin(solved, (31, 95))):
        one = slice(row, row + 1)
        names = ("phot_g_mean_mag", "nu_eff_used_in_astrometry", "pseudocolour", "ecl_lat")
        expected = zpt.get_zpt(*(table[name][one] for name in names), solved[one])[0]
        assert found["parallax_zeropoint"][row] == pytest.approx(expected, abs=1e-6)
        assert -0.15 < expected < 0.05
    assert np.count_nonzero(solved == 3) > 3
    np.testing.assert_array_equal(np.isnan(found["parallax_zeropoint"]), solved == 3)
    np.testing.assert_array_equal(np.isnan(found["parallax_raw"]), solved == 3)
    np.testing.assert_array_equal(
        found["parallax"], found["parallax_raw"] - found["parallax_zeropoint"]
    )
    raw = table["parallax"][solved != 3]
    np.testing.assert_array_equal(found["parallax_raw"][solved != 3], raw)


def zero_point_table(**columns):
    n = len(columns["astrometric_params_solved"])
    table = {"phot_g_mean_mag": np.full(n, 15.0), "ecl_lat": np.full(n, 30.0)}
    table |= {"nu_eff_used_in_astrometry": np.full(n, 1.5), "pseudocolour": np.full(n, 1.5)}
    return table | {name: np.array(values) for name, values in columns.items()}


def test_zero_points_out_of_range_are_flagged_and_absent_ones_leave_the_raw_parallax():
    nan = np.nan
    table = zero_point_table(
        astrometric_params_solved=[31, 31, 31, 31, 95, 95, 95, 3, 31, 31, 0],
        phot_g_mean_mag=[15, 5.5, 21.5, 15, 15, 15, 15, 15, 15, nan, 15],
        nu_eff_used_in_astrometry=[1.5, 1.5, 1.5, 1.95, nan, nan, nan, nan, nan, 1.5, 1.5],
        pseudocolour=[nan, nan, nan, nan, 1.5, 1.2, nan, nan, nan, nan, nan],
    )
    value, flags = step.zero_points(table)
    flag = step.ZeroPointFlag
    out, none = flag.OUT_OF_RANGE.value, flag.NONE.value
    assert flags.tolist() == [0, out, out, out, 0, out, none, none, none, none, none]
    assert np.isnan(value).tolist() == (flags == none).tolist()
    raw = np.arange(11.0)
    corrected = step.correct_parallax(table | {"parallax": raw})
    np.testing.assert_array_equal(corrected["parallax"][flags == none], raw[flags == none])
    assert np.all(corrected["parallax"][flags != none] != raw[flags != none])


def test_a_shard_without_five_or_six_parameter_solutions_has_no_zero_point():
    value, flags = step.zero_points(zero_point_table(astrometric_params_solved=[3, 3]))
    assert np.isnan(value).all()
    assert flags.tolist() == [2, 2]
    assert step.zero_points(zero_point_table(astrometric_params_solved=[]))[0].shape == (0,)


def test_upper_case_column_names_of_the_archive_are_understood(data_dir, stub):
    stub.table["upper"] = True
    assert run(data_dir, stub, "--shards", FIDS[0]) == 0


def test_a_shard_without_spectra_is_written_without_asking(tmp_path, stub):
    write_spectra(tmp_path, FIDS[0], np.zeros(0, "i8"))
    assert run(tmp_path, stub) == 0
    found = read_all(output(tmp_path))
    extra = {"parallax_raw", "parallax_zeropoint", "parallax_zeropoint_flags"}
    assert found.keys() == step.COLUMNS.keys() | extra
    assert all(len(values) == 0 for values in found.values())
    assert stub.requests == []


# ---- ids in = ids out + named exceptions -----------------------------------------------------


def test_rows_that_did_not_come_are_asked_for_by_id_once(data_dir, stub):
    stub.faults = {"result": ["lose 4"]}
    assert run(data_dir, stub, "--shards", FIDS[0]) == 0
    np.testing.assert_array_equal(read_all(output(data_dir))["source_id"], make_ids(FIDS[0]))
    first = make_ids(FIDS[0])[:4]
    assert len(stub.queries) == 2
    assert stub.queries[1].endswith(f"IN ({', '.join(map(str, first))})")
    assert "asked for again by id 4" in log_text(data_dir)
    assert "not in the archive 0" in log_text(data_dir)


def test_sources_that_the_archive_lacks_are_named_and_counted(data_dir, stub, capsys):
    gone = make_ids(FIDS[1])[[3, 17]]
    keep = ~np.isin(stub.table["source_id"], gone)
    stub.table = {name: values[keep] for name, values in stub.table.items()}
    assert run(data_dir, stub) == 0
    assert len(stub.queries) == len(FIDS) + 1
    with ShardReader(output(data_dir, FIDS[1])) as reader:
        assert reader.attrs["n_missing"] == 2
        np.testing.assert_array_equal(reader.attrs["missing_source_id"], gone)
        found = reader.source_id()
    assert sorted([*found, *gone]) == make_ids(FIDS[1]).tolist()
    assert f"{FIDS[1]}: not in the archive: {gone[0]} {gone[1]}" in log_text(data_dir)
    assert "not in the archive: 2" in capsys.readouterr().err


def test_long_lists_of_missing_ids_are_asked_for_in_parts(data_dir, stub, monkeypatch):
    monkeypatch.setattr(tap_jobs, "IDS_PER_QUERY", 7)
    stub.faults = {"result": ["lose 20"]}
    assert run(data_dir, stub, "--shards", FIDS[0]) == 0
    assert len(stub.queries) == 1 + 3
    np.testing.assert_array_equal(read_all(output(data_dir))["source_id"], make_ids(FIDS[0]))
    assert len(stub.deleted) == 4


def test_an_id_outside_the_file_range_does_not_stretch_the_range_asked_for(data_dir, stub):
    stray = make_ids(FIDS[3])[0]
    ids = np.append(make_ids(FIDS[0]), stray)
    write_spectra(data_dir, FIDS[0], ids)
    assert run(data_dir, stub, "--shards", FIDS[0]) == 0
    assert f"BETWEEN {ids[0]} AND {ids[-2]} " in stub.queries[0]
    assert stub.queries[1].endswith(f"IN ({stray})")
    np.testing.assert_array_equal(read_all(output(data_dir))["source_id"], ids)


def test_archive_rows_without_a_spectrum_are_left_out_and_counted(data_dir, stub):
    ids = make_ids(FIDS[0])[::2]
    write_spectra(data_dir, FIDS[0], ids)
    assert run(data_dir, stub, "--shards", FIDS[0]) == 0
    np.testing.assert_array_equal(read_all(output(data_dir))["source_id"], ids)
    assert "archive rows without a spectrum 14" in log_text(data_dir)


def test_a_service_that_knows_none_of_the_sources_is_a_failure(data_dir, stub, capsys):
    stub.table["source_id"] = np.ma.array(np.arange(len(stub.table["source_id"])))
    assert run(data_dir, stub, "--shards", FIDS[0]) == 1
    assert f"none of the {N_STARS} sources" in capsys.readouterr().err
    assert not output(data_dir).exists()


def test_a_repeated_source_is_a_failure(data_dir, stub, capsys):
    stub.table["source_id"] = stub.table["source_id"].copy()
    stub.table["source_id"][1] = stub.table["source_id"][0]
    assert run(data_dir, stub, "--shards", FIDS[0]) == 1
    assert "repeats 1 sources" in capsys.readouterr().err


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
    monkeypatch.setattr(stub, "answer", lambda q, f: original(q.replace("g.ruwe, ", ""), f))
    assert run(data_dir, stub, "--shards", FIDS[0]) == 1
    assert "no column ruwe" in capsys.readouterr().err


def test_ids_that_come_as_floats_are_refused():
    column = tap_jobs.Column("g.source_id", "i8")
    answer = {"source_id": np.ma.array([1.0e18])}
    with pytest.raises(tap_jobs.ShardError, match="float64"):
        tap_jobs.plain_columns(answer, {"source_id": column})


def test_numbers_that_do_not_fit_and_null_ids_are_refused():
    short = {"n": tap_jobs.Column("g.n", "i2")}
    with pytest.raises(tap_jobs.ShardError, match="does not fit"):
        tap_jobs.plain_columns({"n": np.ma.array([40000])}, short)
    ids = {"source_id": tap_jobs.Column("g.source_id", "i8")}
    with pytest.raises(tap_jobs.ShardError, match="1 rows of the answer have no source_id"):
        tap_jobs.plain_columns({"source_id": np.ma.array([5, 6], mask=[0, 1])}, ids)


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
    assert len(tap_jobs.parse_answer(whole, 51)["source_id"]) == 50
    for length in range(0, len(whole.rstrip()), 7):
        with pytest.raises(tap_jobs.BadAnswerError):
            tap_jobs.parse_answer(whole[:length], 51)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_connections_have_a_time_limit(scheme):
    handler = tap_jobs._Connections(f"{scheme}://127.0.0.1/tap", 7)
    for connection in (handler.get_connection(), handler.get_connection_secure()):
        assert connection.timeout == 7
        assert isinstance(connection, http.client.HTTPSConnection) == (scheme == "https")


# ---- interruptions, partitions, threads ------------------------------------------------------


def start_run(data_dir, stub, *options):
    command = [sys.executable, ROOT / "query_xp_metadata.py", "--data-dir", data_dir]
    command += ["--tap-url", stub.url, *FAST, *options]
    # A suite started in the background has SIGINT ignored, and its children inherit that.
    return subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_takes_its_jobs_up_again(data_dir, stub, sign):
    stub.phases = [["EXECUTING"]]
    process = start_run(data_dir, stub)
    wait_for(lambda: stub.count("phase") >= 6)
    process.send_signal(sign)
    process.communicate(timeout=60)
    under_way = dict(stub.jobs)
    assert len(under_way) == 2
    assert len(leftovers(data_dir)) == 2
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


def test_dry_run_prints_the_queries_and_asks_nothing(data_dir, stub, capsys):
    assert run(data_dir, stub, "--dry-run", "--shards", *FIDS[:2]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"-- {FIDS[0]}"
    ids = make_ids(FIDS[0])
    assert f"BETWEEN {ids[0]} AND {ids[-1]} AND g.has_xp_continuous = 'True'" in lines[1]
    assert len(select_items(lines[1])) == len(step.COLUMNS)
    assert len(lines) == 4
    assert stub.requests == []
    assert not (data_dir / "logs").exists()
    assert not output(data_dir).parent.exists()


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
    service = tap_jobs.TapService(args, logging.getLogger("toy"))
    waits = []
    monkeypatch.setattr(service, "pause", waits.append)
    for failures in (1, 1, 2, 4, 30):
        service.back_off(failures)
    assert waits[0] != waits[1]
    limits = [10, 10, 20, 80, tap_jobs.LONGEST_WAIT]
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


# ---- a real TAP server -----------------------------------------------------------------------


SLOWER = ("--retry-wait", "0.5", "--poll", "0.2", "--pace", "0")


@pytest.mark.tap
def test_the_demo_sky_comes_back_from_a_real_tap_server_as_it_went_in(archive):
    assert run(archive.data_dir, archive, fast=SLOWER) == 0
    parts = [read_all(p) for p in sorted((archive.data_dir / "xp_metadata").glob("xp_*.h5"))]
    assert len(parts) == 8
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    gaia = archive.tables["gaia_source"]
    order = np.argsort(gaia["source_id"].data)
    order = order[np.isin(gaia["source_id"].data[order], found["source_id"])]
    np.testing.assert_array_equal(found["source_id"], gaia["source_id"].data[order])
    for name in gaia:
        expected = np.ma.filled(gaia[name][order], np.nan if gaia[name].dtype.kind == "f" else 0)
        name = "parallax_raw" if name == "parallax" else name
        np.testing.assert_array_equal(found[name], expected, err_msg=name)
    spurious = archive.tables["gaiaedr3_spurious"]
    row = join_rows(found["source_id"], spurious["source_id"].data)
    has = row >= 0
    assert 0 < np.count_nonzero(~has) < 200
    for name in ("fidelity_v2", "norm_dg", "theta_arcsec_worst_source"):
        expected = np.where(has, np.ma.filled(spurious[name], np.nan)[row], np.nan)
        np.testing.assert_array_equal(found[name], expected, err_msg=name)
    assert np.isin(archive.unflagged, found["source_id"]).all()
    missing = []
    for path in sorted((archive.data_dir / "xp_metadata").glob("xp_*.h5")):
        with ShardReader(path) as reader:
            missing += list(reader.attrs.get("missing_source_id", []))
    assert sorted(missing) == archive.absent.tolist()
    assert len(found["source_id"]) + len(missing) == 4000
    assert (np.bincount(found["parallax_zeropoint_flags"], minlength=3) > 0).all()


def copy_spectra(archive, out, fids):
    for fid in fids:
        target = shard_path(out, "xp", fid)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(shard_path(archive.data_dir, "xp", fid), target)


def demo_fids(archive):
    return list_fids(archive.data_dir, "xp")


@pytest.mark.tap
def test_a_real_server_cuts_at_the_row_limit_and_that_is_a_failure(archive, tmp_path, capsys):
    fid = demo_fids(archive)[0]
    copy_spectra(archive, tmp_path, [fid])
    assert run(tmp_path, archive, "--row-limit", 50, fast=SLOWER) == 1
    assert "larger --row-limit" in capsys.readouterr().err
    assert not output(tmp_path, fid).exists()


@pytest.mark.tap
def test_a_run_killed_at_a_real_server_takes_its_jobs_up_again(archive, tmp_path):
    fids = demo_fids(archive)[:3]
    copy_spectra(archive, tmp_path, fids)
    process = start_run(tmp_path, archive, *SLOWER)
    folder = tmp_path / "xp_metadata"
    wait_for(lambda: folder.is_dir() and any(p.suffix == ".json" for p in folder.iterdir()))
    process.kill()
    process.communicate(timeout=60)
    noted = [p for p in folder.iterdir() if p.suffix == ".json"]
    assert noted
    assert run(tmp_path, archive, fast=SLOWER) == 0
    assert "is taken up again" in log_text(tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == [f"xp_metadata_{fid}.h5" for fid in fids]


@pytest.mark.tap
def test_a_real_server_tells_what_is_wrong_with_a_query(archive, tmp_path, monkeypatch, capsys):
    fid = demo_fids(archive)[0]
    copy_spectra(archive, tmp_path, [fid])
    monkeypatch.setattr(step, "QUERY", step.QUERY.replace("g.ruwe", "g.nonsense AS ruwe"))
    assert run(tmp_path, archive, "--attempts", 1, fast=SLOWER) == 1
    assert "column 'nonsense'" in capsys.readouterr().err
