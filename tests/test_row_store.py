"""Rows in a scratch file come back as they were written; nothing is left of it."""

import os

import numpy as np
import pytest

from pipeline.errors import ShardError, WriteError
from pipeline.row_store import RowStore, folder_beside

N = 50
TABLE = {
    "flux": np.random.default_rng(0).normal(size=(N, 7)).astype("f4"),
    "fine": np.random.default_rng(1).normal(size=(N, 3)).astype("f2"),
    "g": np.arange(N, dtype="f8"),
}
COLUMNS = {name: (values.dtype, values.shape[1:]) for name, values in TABLE.items()}


@pytest.fixture
def store(tmp_path):
    """A store of the rows of TABLE, appended in three parts."""
    out = RowStore(COLUMNS, tmp_path)
    for part in np.split(np.arange(N), [11, 12]):
        out.append({name: values[part] for name, values in TABLE.items()})
    return out


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [49],
        [3, 4, 5],
        [7, 7, 7, 8],
        [40, 0, 12, 11, 10, 49],
        range(N),
        np.random.default_rng(2).integers(N, size=500),
    ],
)
def test_rows_come_in_the_order_asked_for(store, rows):
    rows = np.array(rows, int)
    found = store.take(rows)
    assert found.keys() == TABLE.keys()
    for name, values in TABLE.items():
        assert found[name].dtype == values.dtype
        assert found[name].flags.c_contiguous
        np.testing.assert_array_equal(found[name], values[rows])
    assert len(store) == N


def test_scratch_file_has_no_name(store, tmp_path):
    assert len(store.take(np.arange(3))["g"]) == 3
    assert list(tmp_path.iterdir()) == []


def test_rows_that_are_gone_are_said(store, tmp_path):
    os.ftruncate(store._file.fileno(), store.dtype.itemsize * (N - 1))
    store.take(np.arange(N - 1))
    with pytest.raises(ShardError, match="cut short") as error:
        store.take(np.arange(N))
    assert str(tmp_path) in str(error.value)


def test_full_disk_is_said(store):
    words = r"0\.0 kB each\): cannot be written .*the disk or a quota is full: make room"
    with (
        open("/dev/full", "wb", buffering=0) as store._file,
        pytest.raises(WriteError, match=words),
    ):
        store.append(TABLE)
    assert len(store) == N


def test_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(ShardError, match="cannot be written"):
        RowStore(COLUMNS, tmp_path / "none")


def test_scratch_is_beside_the_output_also_before_that_is_there(tmp_path):
    assert folder_beside(tmp_path) == tmp_path
    assert folder_beside(tmp_path / "new/model") == tmp_path
    (tmp_path / "file").write_text("")
    assert folder_beside(tmp_path / "file") == tmp_path
