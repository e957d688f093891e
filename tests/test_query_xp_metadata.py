"""Step 2: the metadata of every source, against a stub and a real TAP server."""

import dataclasses
import os

import numpy as np
import pytest
from helpers import read_all
from tap_case import (
    DR3,
    FIDS,
    N_STARS,
    QUESTION,
    SLOWER,
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
from tap_stub import select_items
from zero_point import zpt

import query_xp_metadata as step
from pipeline import tap_question
from pipeline.joining import join_rows
from pipeline.provenance import Status, output_state
from pipeline.read import ShardReader
from pipeline.schema.flags import ZeroPointFlag
from pipeline.select import list_fids, shard_path


@pytest.fixture
def data_dir(tmp_path):
    return make_data_dir(tmp_path)


@pytest.fixture
def stub():
    with make_stub() as service:
        yield service


# ---- the content -----------------------------------------------------------------------------


def test_every_spectrum_has_its_row_in_order_of_id_with_types_units_and_nan(data_dir, stub):
    shuffled = np.random.default_rng(0).permutation(N_STARS)
    write_spectra(data_dir, FIDS[0], make_ids(FIDS[0])[shuffled])
    assert run(data_dir, stub) == 0
    for number, fid in enumerate(FIDS):
        rows = slice(number * N_STARS, (number + 1) * N_STARS)
        found = read_all(output(data_dir, fid))
        np.testing.assert_array_equal(found["source_id"], make_ids(fid))
        for name, column in QUESTION.columns.items():
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
    table |= {name: np.array(values) for name, values in columns.items()}
    return table | {step.SOLVED: table[step.SOLVED].astype("i2")}


def recipe(table):
    return step.recipe_zero_points(table, DR3.parallax)


def test_zero_points_out_of_range_are_flagged_and_absent_ones_leave_the_raw_parallax():
    nan = np.nan
    table = zero_point_table(
        astrometric_params_solved=[31, 31, 31, 31, 95, 95, 95, 3, 31, 31, 0],
        phot_g_mean_mag=[15, 5.5, 21.5, 15, 15, 15, 15, 15, 15, nan, 15],
        nu_eff_used_in_astrometry=[1.5, 1.5, 1.5, 1.95, nan, nan, nan, nan, nan, 1.5, 1.5],
        pseudocolour=[nan, nan, nan, nan, 1.5, 1.2, nan, nan, nan, nan, nan],
    )
    value, flags = recipe(table)
    flag = ZeroPointFlag
    out, none = flag.OUT_OF_RANGE.value, flag.NONE.value
    assert flags.tolist() == [0, out, out, out, 0, out, none, none, none, none, none]
    assert np.isnan(value).tolist() == (flags == none).tolist()
    raw = np.arange(11.0)
    corrected = step.correct_parallax(table | {"parallax": raw}, DR3.parallax)
    np.testing.assert_array_equal(corrected["parallax"][flags == none], raw[flags == none])
    assert np.all(corrected["parallax"][flags != none] != raw[flags != none])


def test_a_shard_without_five_or_six_parameter_solutions_has_no_zero_point():
    value, flags = recipe(zero_point_table(astrometric_params_solved=[3, 3]))
    assert np.isnan(value).all()
    assert flags.tolist() == [2, 2]
    assert recipe(zero_point_table(astrometric_params_solved=[]))[0].shape == (0,)


def test_upper_case_column_names_of_the_archive_are_understood(data_dir, stub):
    stub.table["upper"] = True
    assert run(data_dir, stub, "--shards", FIDS[0]) == 0


def test_a_shard_without_spectra_is_written_without_asking(tmp_path, stub):
    write_spectra(tmp_path, FIDS[0], np.zeros(0, "i8"))
    assert run(tmp_path, stub) == 0
    found = read_all(output(tmp_path))
    extra = {"parallax_raw", "parallax_zeropoint", "parallax_zeropoint_flags"}
    assert found.keys() == QUESTION.columns.keys() | extra
    assert all(len(values) == 0 for values in found.values())
    assert stub.queries == []


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
    monkeypatch.setattr(tap_question, "IDS_PER_QUERY", 7)
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


def test_dry_run_prints_the_queries_and_asks_nothing(data_dir, stub, capsys):
    assert run(data_dir, stub, "--dry-run", "--shards", *FIDS[:2]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"-- {FIDS[0]}"
    ids = make_ids(FIDS[0])
    assert f"BETWEEN {ids[0]} AND {ids[-1]} AND source.has_xp_continuous = 'True'" in lines[1]
    assert len(select_items(lines[1])) == len(QUESTION.columns)
    assert len(lines) == 4
    assert stub.requests == []
    assert not (data_dir / "logs").exists()
    assert not output(data_dir).parent.exists()


# ---- a real TAP server -----------------------------------------------------------------------


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
    columns = QUESTION.columns | {"ruwe": tap_question.Column("source", "nonsense", "f4")}
    question = dataclasses.replace(QUESTION, columns=columns)
    monkeypatch.setattr(step, "question", lambda release: question)
    monkeypatch.setattr(tap_question, "archive_columns", lambda service, tables: {})
    assert run(tmp_path, archive, "--attempts", 1, fast=SLOWER) == 1
    assert "column 'nonsense'" in capsys.readouterr().err
