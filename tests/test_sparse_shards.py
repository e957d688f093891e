"""A shard with few sources spread over the sky is asked for by id, not by its range."""

import numpy as np
import pytest
from tap_case import QUESTION

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
