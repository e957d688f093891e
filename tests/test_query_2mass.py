"""Step 3, against a stub and a real TAP server; the life of a job is tested with step 2."""

import numpy as np
import pytest
from helpers import assert_same_datasets, read_all
from tap_case import DR3, FAST, SLOWER, archive_schema
from tap_case import write_spectra as write_ids
from tap_stub import TapStub

import gen_xp_input_allsources
import query_2mass as step
import query_xp_metadata
from pipeline.read import ShardReader
from pipeline.select import list_fids, shard_path

FID = "000000-000099"
DATASETS = step.datasets_of(DR3)
SCHEMA = archive_schema(step.question(DR3))
IDS = np.arange(12, dtype="i8") * 2**40 + 2**39 + 1


def answer_table():
    """What the joins of the archive give for IDS: one row each, all matched and good."""
    n = len(IDS)
    table = {"source_id": np.ma.array(IDS)}
    rng = np.random.default_rng(2)
    for name, column in DATASETS.items():
        if column.dtype[0] == "f":
            table[name] = np.ma.array(rng.uniform(1, 20, n).astype(column.dtype), mask=False)
    designation = np.array([f"{k:08d}+{k:07d}" for k in range(n)])
    table["designation"] = np.ma.array(designation, mask=False)
    table["original_ext_source_id"] = np.ma.array(designation.copy(), mask=False)
    table["ph_qual"] = np.ma.array(np.full(n, "AAA"), mask=False)
    table["ext_key"] = np.ma.array(np.arange(n, dtype="i4"), mask=True)
    return table


@pytest.fixture
def table():
    return answer_table()


@pytest.fixture
def data_dir(tmp_path):
    write_spectra(tmp_path, IDS)
    return tmp_path


def write_spectra(data_dir, ids):
    write_ids(data_dir, FID, ids)


def run(data_dir, table, *options):
    with TapStub(table, schema=SCHEMA) as stub:
        arguments = ["--data-dir", data_dir, "--tap-url", stub.url, *FAST, *options]
        status = step.main([str(argument) for argument in arguments])
        assert not stub.jobs
        return status


def output(data_dir):
    return shard_path(data_dir, "tmass", FID)


def unmatch(table, rows):
    for name in table.keys() - {"source_id"}:
        table[name][rows] = np.ma.masked


def log_text(data_dir):
    return (data_dir / "logs" / "query_2mass.log").read_text()


def test_matches_keep_their_values_types_and_units_in_order_of_id(data_dir, table):
    write_spectra(data_dir, IDS[::-1])
    table["h_msigcom"][3] = np.ma.masked
    assert run(data_dir, table) == 0
    found = read_all(output(data_dir))
    assert found.keys() == {"gdr3_source_id", *DATASETS}
    np.testing.assert_array_equal(found["gdr3_source_id"], IDS)
    for name, column in DATASETS.items():
        fill = "" if column.dtype[0] == "S" else np.nan
        expected = np.ma.filled(table[name], fill).astype(column.dtype)
        assert found[name].dtype == np.dtype(column.dtype)
        np.testing.assert_array_equal(found[name], expected, err_msg=name)
    with ShardReader(output(data_dir)) as reader:
        assert reader.attributes("ks_m")["units"] == "mag"
        assert reader.attributes("tm_ra")["units"] == "deg"


def test_every_source_is_a_match_or_counted_with_its_reason(data_dir, table):
    unmatch(table, [0, 1, 2])
    table["ext_key"][3] = 0  # a key like any other
    table["ext_key"][3:5].mask = False
    table["ph_qual"][5], table["ph_qual"][6], table["ph_qual"][7] = "UUU", "BCD", "BAU"
    gone = IDS[11]
    table = {name: values[:11] for name, values in table.items()}
    assert run(data_dir, table) == 0
    found = read_all(output(data_dir))["gdr3_source_id"]
    np.testing.assert_array_equal(found, IDS[[7, 8, 9, 10]])
    log = log_text(data_dir)
    for words in (
        "spectra 12", "matches 4", "no 2MASS counterpart 3", "extended in 2MASS 2",
        "no band of quality A 2", "not in the archive 1", f"not in the archive: {gone}",
    ):  # fmt: skip
        assert words in log
    with ShardReader(output(data_dir)) as reader:
        np.testing.assert_array_equal(reader.attrs["missing_source_id"], [gone])


@pytest.mark.parametrize("quality", ["AUU", "UAU", "UUA"])
def test_one_band_of_quality_a_is_enough(data_dir, table, quality):
    table["ph_qual"][:] = quality
    assert run(data_dir, table) == 0
    assert len(read_all(output(data_dir))["ph_qual"]) == len(IDS)


def test_no_match_at_all_is_a_valid_shard(data_dir, table):
    unmatch(table, slice(None))
    assert run(data_dir, table) == 0
    found = read_all(output(data_dir))
    assert found.keys() == {"gdr3_source_id", *DATASETS}
    assert {len(values) for values in found.values()} == {0}
    assert run(data_dir, table) == 0
    assert "1 already complete" in log_text(data_dir)


def test_no_spectra_at_all_is_a_valid_shard(data_dir, table):
    write_spectra(data_dir, IDS[:0])
    assert run(data_dir, table) == 0
    assert len(read_all(output(data_dir))["gdr3_source_id"]) == 0


def test_of_a_second_entry_the_one_of_the_match_is_kept(data_dir, table):
    twice = np.array([4, 4, 9])
    table = {name: np.ma.concatenate([v[twice], v]) for name, v in table.items()}
    table["designation"][:3] = ["00000000-0000004", "00000001-0000004", "99999999+0000009"]
    assert run(data_dir, table) == 0
    found = read_all(output(data_dir))
    np.testing.assert_array_equal(found["gdr3_source_id"], IDS)
    np.testing.assert_array_equal(
        found["designation"].astype(str), answer_table()["designation"].data
    )
    assert "second entries of 2MASS dropped 3" in log_text(data_dir)


def test_a_lost_row_is_asked_for_again_and_not_taken_for_unmatched(data_dir, table):
    with TapStub(table, schema=SCHEMA) as stub:
        stub.faults = {"result": ["lose 5"]}
        arguments = ["--data-dir", str(data_dir), "--tap-url", stub.url, *FAST]
        assert step.main(arguments) == 0
        assert len(stub.queries) == 2
    assert len(read_all(output(data_dir))["gdr3_source_id"]) == len(IDS)


@pytest.mark.parametrize("fault", [500, "reset", "cut", "html", "error document", "overflow"])
def test_a_lasting_fault_is_never_a_small_success(data_dir, table, fault):
    with TapStub(table, schema=SCHEMA) as stub:
        stub.faults = {"result": [fault] * 1000}
        arguments = ["--data-dir", str(data_dir), "--tap-url", stub.url, *FAST, "--attempts", "2"]
        assert step.main(arguments) == 1
    assert not output(data_dir).exists()


def test_dry_run_names_the_tables_of_the_match(data_dir, capsys):
    assert step.main(["--data-dir", str(data_dir), "--dry-run"]) == 0
    query = capsys.readouterr().out
    for name in ("tmass_psc_xsc_best_neighbour", "tmass_psc_xsc_join", "tmass_original_valid"):
        assert name in query
    assert f"BETWEEN {IDS[0]} AND {IDS[-1]}" in query


# ---- a real TAP server -----------------------------------------------------------------------


def expected_matches(archive):
    """{source_id: row of tmass_original_valid}, by a loop over the tables."""
    tables = archive.tables
    photometry = tables["tmass_original_valid"]
    rows = {name: k for k, name in enumerate(photometry["designation"].data)}
    join = {}
    names = tables["tmass_psc_xsc_join"]["original_psc_source_id"]
    for oid, name in zip(tables["tmass_psc_xsc_join"]["clean_tmass_psc_xsc_oid"], names,
                         strict=True):  # fmt: skip
        if name is not np.ma.masked:
            join.setdefault(int(oid), []).append(name)
    known = set(tables["gaia_source"]["source_id"].data.tolist())
    neighbour, matches = tables["tmass_psc_xsc_best_neighbour"], {}
    for source, oid, original in zip(
        *(neighbour[name] for name in ("source_id", "clean_tmass_psc_xsc_oid",
                                       "original_ext_source_id")), strict=True,
    ):  # fmt: skip
        entries = join.get(int(oid), [])
        if not entries or int(source) not in known:
            continue
        row = rows[original if original in entries else min(entries)]
        point = photometry["ext_key"][row] is np.ma.masked
        if point and b"A" in photometry["ph_qual"][row]:
            matches[int(source)] = row
    return matches


@pytest.mark.tap
def test_matches_from_a_real_tap_server_are_those_of_a_loop_over_the_tables(archive):
    arguments = ["--data-dir", str(archive.data_dir), "--tap-url", archive.url, *SLOWER]
    assert step.main(arguments) == 0
    paths = sorted((archive.data_dir / "xp_tmass_match").glob("xp_*.h5"))
    parts = [read_all(path) for path in paths]
    assert len(parts) == 8
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    expected = expected_matches(archive)
    assert 3000 < len(expected) < 4000
    assert found["gdr3_source_id"].tolist() == sorted(expected)
    photometry = archive.tables["tmass_original_valid"]
    rows = [expected[source] for source in found["gdr3_source_id"].tolist()]
    for name in ("designation", "j_m", "h_m", "ks_m", "h_msigcom", "ph_qual"):
        values = photometry[name][rows]
        values = np.ma.filled(values, np.nan) if values.dtype.kind == "f" else values.data
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    np.testing.assert_array_equal(found["tm_ra"], photometry["ra"].data[rows])


@pytest.mark.tap
def test_two_partitions_at_a_real_server_equal_one_run_and_feed_the_next_steps(archive, tmp_path):
    fids = list_fids(archive.data_dir, "xp")[:3]
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    for folder in (whole, parted):
        for fid in fids:
            target = shard_path(folder, "xp", fid)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(shard_path(archive.data_dir, "xp", fid))
    service = ["--tap-url", archive.url, *SLOWER]
    for part in ("0", "1"):
        options = ["--data-dir", str(parted), *service, "--partition", "2", part]
        assert step.main(options) == 0
    for script in (step, query_xp_metadata):
        assert script.main(["--data-dir", str(whole), *service]) == 0
    for fid in fids:
        assert_same_datasets(shard_path(whole, "tmass", fid), shard_path(parted, "tmass", fid))
    options = ["--data-dir", str(whole), "--without", "unwise"]
    assert gen_xp_input_allsources.main(options) == 0
    made = [read_all(shard_path(whole, "opt_input", fid)) for fid in fids]
    assert sum(len(part["gdr3_source_id"]) for part in made) == 1500
    j_used = np.concatenate([np.isfinite(part["flux_err"][:, 61]) for part in made])
    assert 300 < np.count_nonzero(j_used) < 1500
