"""Statistics that outliers and missing values do not spoil."""

import numpy as np

MAD_TO_SIGMA = 1.4826  # of a Gaussian


def robust_width(x):
    """1.4826 times the median absolute deviation: the standard deviation, if x is Gaussian.

    x (N, ...): the width is along the first axis. Values that are not finite are left out. Returns
    a float of (N,), an array of the other axes of more; NaN where nothing is finite.
    """
    x = np.asarray(x)
    if x.ndim > 1:
        columns = x.reshape(len(x), int(np.prod(x.shape[1:])))
        return np.array([robust_width(column) for column in columns.T]).reshape(x.shape[1:])
    x = x[np.isfinite(x)]
    if not x.size:
        return np.nan
    return float(MAD_TO_SIGMA * np.median(np.abs(x - np.median(x))))
