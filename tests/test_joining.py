"""Rows of several shards are joined by id: every star has its own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import joining, select
from pipeline.errors import ShardError
from pipeline.joining import Needs, aligned_chunks
from pipeline.schema import KINDS, load_release
from pipeline.write import ShardWriter

RELEASE = load_release()
COEFFICIENTS = Needs(("bp_coefficients",))


ID_LISTS = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 12), max_size=30)


@settings(max_examples=200, deadline=None)
@given(ID_LISTS, ID_LISTS)
def test_join_rows_agrees_with_a_dictionary(wanted, other):
    other = list(dict.fromkeys(other))
    where = {value: row for row, value in enumerate(other)}
    found = joining.join_rows(np.array(wanted, np.int64), np.array(other, np.int64))
    assert found.tolist() == [where.get(value, -1) for value in wanted]


def test_join_rows_refuses_repeated_ids():
    with pytest.raises(ShardError, match="repeated"):
        joining.join_rows([1], [2, 2])


def test_take_rows_fills_what_is_absent_by_type():
    table = {"f": np.arange(4.0).reshape(2, 2), "s": np.array([b"a", b"b"]), "i": np.array([3, 4])}
    out = joining.take_rows(table, np.array([1, -1]))
    np.testing.assert_array_equal(out["f"], [[2, 3], [np.nan, np.nan]])
    assert out["s"].tolist() == [b"b", b""]
    assert out["i"].tolist() == [4, 0]
    empty = joining.take_rows({"f": np.zeros((0, 2))}, np.array([-1]))
    assert np.isnan(empty["f"]).all()


def small_sky(data_dir, n=50):
    """A shard of n stars whose values follow from their ids: fid, ids, {kind: its ids}."""
    rng = np.random.default_rng(3)
    ids = rng.permutation(n) + 1000
    fid = "000000-000099"
    ids_of = {"xp": ids, "metadata": rng.permutation(ids), "tmass": rng.permutation(ids)[: n // 2]}
    names = {"metadata": "parallax", "tmass": "j_m"}
    for kind, kind_ids in ids_of.items():
        table = {KINDS[kind].id_column(RELEASE): kind_ids}
        if kind == "xp":
            table["bp_coefficients"] = np.repeat(kind_ids[:, None], 55, axis=1).astype("f8")
        else:
            table[names[kind]] = kind_ids * 2.0
        path, id_column = select.shard_path(data_dir, kind, fid), KINDS[kind].id_column(RELEASE)
        with ShardWriter(path, len(kind_ids), id_column, {}) as writer:
            writer.write_table(table)
    return fid, ids, ids_of


@pytest.mark.parametrize("chunk_size", [1, 7, 50, 2048])
def test_aligned_chunks_give_every_star_its_own_rows(tmp_path, chunk_size):
    fid, ids, ids_of = small_sky(tmp_path)
    needs = {
        "xp": COEFFICIENTS,
        "metadata": Needs(("parallax",), ("ruwe",)),
        "tmass": Needs(("j_m",)),
    }
    seen = []
    for rows, table in aligned_chunks(tmp_path, fid, needs, RELEASE, chunk_size=chunk_size):
        star = ids[rows]
        seen.append(star)
        assert len(rows) <= chunk_size
        np.testing.assert_array_equal(table["xp"]["source_id"], star)
        np.testing.assert_array_equal(table["xp"]["bp_coefficients"][:, 3], star)
        np.testing.assert_array_equal(table["metadata"]["parallax"], 2.0 * star)
        assert "ruwe" not in table["metadata"]
        matched = np.isin(star, ids_of["tmass"])
        np.testing.assert_array_equal(table["tmass"]["matched"], matched)
        expected = np.where(matched, 2.0 * star, np.nan)
        np.testing.assert_array_equal(table["tmass"]["j_m"], expected)
        assert table["unwise"] is None
    np.testing.assert_array_equal(np.concatenate(seen), ids)


def test_aligned_chunks_of_wanted_rows_give_those_only(tmp_path):
    fid, ids, _ = small_sky(tmp_path)
    needs = {"xp": COEFFICIENTS, "metadata": Needs(("parallax",))}
    wanted = np.array([44, 3, 17, 6])
    found = list(aligned_chunks(tmp_path, fid, needs, RELEASE, wanted, chunk_size=10))
    np.testing.assert_array_equal(np.concatenate([rows for rows, _ in found]), np.sort(wanted))
    for rows, table in found:
        np.testing.assert_array_equal(table["xp"]["bp_coefficients"][:, 0], ids[rows])
        np.testing.assert_array_equal(table["metadata"]["parallax"], 2.0 * ids[rows])


@pytest.mark.parametrize("chunk_size", [5, 2048])
def test_sparse_rows_of_a_large_shard_are_their_own(tmp_path, chunk_size):
    fid, ids, _ = small_sky(tmp_path, 1500)
    wanted = np.random.default_rng(4).choice(1500, 150, replace=False)
    needs = {"xp": Needs(("bp_coefficients",), ("bp_basis_function_id",))}
    found = list(aligned_chunks(tmp_path, fid, needs, RELEASE, wanted, chunk_size))
    rows = np.concatenate([rows for rows, _ in found])
    np.testing.assert_array_equal(rows, np.sort(wanted))
    values = np.concatenate([table["xp"]["bp_coefficients"][:, 0] for _, table in found])
    np.testing.assert_array_equal(values, ids[rows])
    assert list(aligned_chunks(tmp_path, fid, needs, RELEASE, [])) == []


@pytest.mark.parametrize(("kind", "name"), [("xp", "rp_coefficients"), ("metadata", "ruwe")])
def test_a_needed_dataset_that_is_not_there_is_named_with_its_file(tmp_path, kind, name):
    fid, _, _ = small_sky(tmp_path)
    needs = {"xp": COEFFICIENTS, "metadata": Needs(("parallax",))}
    needs[kind] = Needs((name,))
    file = f"{KINDS[kind].prefix}_{fid}"
    with pytest.raises(ShardError, match=rf"{file}.*no dataset {name}; found"):
        list(aligned_chunks(tmp_path, fid, needs, RELEASE))


@pytest.mark.parametrize("kind", ["xp", "metadata"])
def test_a_needed_dataset_of_another_shape_is_refused_before_the_first_chunk(tmp_path, kind):
    fid, ids, _ = small_sky(tmp_path)
    name = {"xp": "bp_coefficients", "metadata": "parallax"}[kind]
    with ShardWriter(select.shard_path(tmp_path, kind, fid), len(ids), "source_id", {}) as writer:
        writer.write_table({"source_id": ids, name: np.zeros((len(ids), 51))})
    needs = {"xp": COEFFICIENTS, "metadata": Needs(("parallax",))}
    with pytest.raises(ShardError, match=rf"{name} is float64 with rows of shape \(51,\)"):
        next(aligned_chunks(tmp_path, fid, needs, RELEASE))
