"""A shard with few sources spread over the sky is asked for by id, not by its range."""

import numpy as np
import pytest
from helpers import read_all
from tap_case import FAST, QUESTION, archive_schema, gaia_table, write_spectra
from tap_stub import TapStub
from test_query_2mass import SCHEMA as TMASS_SCHEMA
from test_query_2mass import answer_table

import query_2mass
import query_xp_metadata
from pipeline import tap_question
from pipeline.select import shard_path
from pipeline.tap_question import IDS_PER_QUERY

WHOLE_SKY = "000000-786431"


def spread(n, first=0, last=786_431):
    return (np.linspace(first, last, n).astype(np.int64) << 43) + np.arange(n) + 1


@pytest.mark.parametrize("n", [2, 3, 100_000])
def test_few_sources_in_a_wide_range_are_asked_for_by_id(n):
    ids = spread(n)
    assert QUESTION.of_range(ids, WHOLE_SKY) is None
    queries = list(QUESTION.by_name(ids))
    assert len(queries) == -(-n // IDS_PER_QUERY)
    assert all(str(source_id) in "".join(queries) for source_id in ids[:: n // 2])


@pytest.mark.parametrize(("n", "last"), [(1, 786_431), (12, 999), (20_000, 3111), (65_000, 3111)])
def test_a_shard_of_the_archive_or_a_small_patch_is_asked_for_by_its_range(n, last):
    ids = spread(n, 0, last)
    assert f"BETWEEN {ids.min()} AND {ids.max()}" in QUESTION.of_range(ids, f"000000-{last:06d}")


@pytest.mark.parametrize("step", ["metadata", "tmass"])
def test_sources_spread_over_the_sky_come_by_id_and_through_the_proxy(tmp_path, monkeypatch, step):
    monkeypatch.setattr(tap_question, "IDS_PER_QUERY", 5)
    tmass = answer_table()
    ids = spread(len(tmass["source_id"]), first=1)
    if step == "metadata":
        script, table, schema = query_xp_metadata, gaia_table(ids), archive_schema(QUESTION)
    else:
        script, table, schema = query_2mass, tmass | {"source_id": np.ma.array(ids)}, TMASS_SCHEMA
    write_spectra(tmp_path, WHOLE_SKY, ids)
    with TapStub(table, schema=schema) as stub:
        for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY", "HTTP_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("http_proxy", stub.url)  # it answers for any host
        options = ["--data-dir", str(tmp_path), "--tap-url", "http://archive.test/tap-server/tap"]
        assert script.main([*options, *FAST]) == 0
        assert len(stub.queries) == 3
        assert all(" IN (" in query and "BETWEEN" not in query for query in stub.queries)
    found = read_all(shard_path(tmp_path, step, WHOLE_SKY))
    column = "source_id" if step == "metadata" else "gdr3_source_id"
    np.testing.assert_array_equal(found[column], ids)
