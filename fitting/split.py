"""Which stars train, calibrate and validate: by a hash of the source id alone."""

import numpy as np


def hash_fraction(ids, salt=0):
    """A number in 0..1 for each source id (N,), from a hash of the id alone (splitmix64), so that a
    star falls on the same side of a split whatever else is in the training set."""
    x = np.asarray(ids).astype(np.uint64)
    with np.errstate(over="ignore"):
        x += np.uint64(0x9E3779B97F4A7C15) * np.uint64(1 + salt)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)) / 2.0**53


def lowest(rows, fraction, most):
    """Of the rows (n,), ascending, those `most` whose number in fraction (N,) is lowest; all of
    them, where they are no more."""
    if len(rows) <= most:
        return rows
    return np.sort(rows[np.argpartition(fraction[rows], most)[:most]])


def held_out(ids, recipe):
    """Which stars (N,) bool are never trained on."""
    return hash_fraction(ids) < recipe.validation_fraction


def split_stars(ids, recipe):
    """Index arrays of the training, calibration and validation stars.

    Calibration and validation stars beyond the recipe's numbers of them are of no use, and not
    trained on.
    """
    held, fraction = held_out(ids, recipe), hash_fraction(ids, salt=1)
    calibration = ~held & (fraction < recipe.calibration_fraction)
    return (
        np.flatnonzero(~held & ~calibration),
        lowest(np.flatnonzero(calibration), fraction, recipe.calibration_stars),
        lowest(np.flatnonzero(held), hash_fraction(ids), recipe.validation_stars),
    )
