"""Statistics: true for a Gaussian, deaf to outliers and to what is missing."""

import numpy as np
import pytest

from pipeline.statistics import robust_width


def test_robust_width_is_sigma_of_a_gaussian_and_deaf_to_outliers():
    values = np.random.default_rng(7).normal(3, 2, 100_000)
    values[:100], values[100:200] = 1e9, np.nan
    assert robust_width(values) == pytest.approx(2, rel=0.02)
    assert np.isnan(robust_width(np.array([np.nan])))
    assert np.isnan(robust_width([]))


def test_robust_width_of_a_table_is_that_of_each_column():
    values = np.random.default_rng(8).normal(size=(500, 3)) * [1, 2, 3]
    values[::7, 1], values[:, 2] = np.inf, np.nan
    widths = robust_width(values)
    assert widths.shape == (3,)
    np.testing.assert_array_equal(widths, [robust_width(column) for column in values.T])
    assert robust_width(np.zeros((0, 2))).shape == (2,)
