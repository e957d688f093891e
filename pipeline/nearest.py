"""The nearest of many places on the sky to each of a few, where most of the many are near none."""

import numpy as np
from scipy.spatial import cKDTree

from pipeline.sphere import chord, unit_vectors

CELL = 4 / 3600  # deg; single precision moves a place by up to 0.3 arcsec
GRID = 1600  # cells a side: 1.8 deg, and what is beyond is in the outermost but one
AROUND = [row * GRID + column for row in (-1, 0, 1) for column in (-1, 0, 1)]
MOST_DEGREES = 720  # of an angle whose single precision is taken


class Places:
    """n places with the coordinates ra, dec (n,), finite, in degrees; of a field on the sky.

    Of each the cell is kept that holds it, of a grid in the tangent plane. A tree is made only of
    the places in cells about those that are asked for: one of all would take longer than anything
    else.
    """

    def __init__(self, ra, dec):
        self.ra, self.dec = ra, dec
        largest = max(np.abs(ra).max(initial=0), np.abs(dec).max(initial=0))
        kind = "f4" if largest <= MOST_DEGREES else "f8"
        vectors = unit_vectors(ra.astype(kind), dec.astype(kind))
        self._axes = np.linalg.svd(vectors[::64].sum(axis=0)[None])[2][1:].T  # (3, 2)
        self._cells = self._cells_of(vectors)

    def __len__(self):
        return len(self.ra)

    @property
    def nbytes(self) -> int:
        return self.ra.nbytes + self.dec.nbytes + self._cells.nbytes

    def _cells_of(self, vectors) -> np.ndarray:
        """(n,) number of the cell of each vector; neighbours on the sky are in neighbouring ones,
        as no step here takes two places further apart."""
        cells = (vectors @ self._axes) * vectors.dtype.type(1 / chord(CELL)) + GRID // 2
        column, row = np.clip(cells, 1, GRID - 2).astype("i4").T
        return row * GRID + column

    def nearest(self, vectors, radius) -> tuple[np.ndarray, np.ndarray]:
        """The chord (m,) to, and the number (m,) of, the nearest place within `radius` degrees (up
        to half a cell) of unit vectors (m,3); inf and n where there is none.
        """
        distance, place = np.full(len(vectors), np.inf), np.full(len(vectors), len(self))
        marked = np.zeros(GRID * GRID, bool)
        cells = self._cells_of(vectors)
        for step in AROUND:
            marked[cells + step] = True
        rows = np.flatnonzero(marked[self._cells])
        if not len(rows):
            return distance, place
        limit = np.nextafter(chord(radius), 1)  # the tree's bound is exclusive
        near = cKDTree(unit_vectors(self.ra[rows], self.dec[rows]), balanced_tree=False)
        two, which = near.query(vectors, k=2, distance_upper_bound=limit)
        found = np.isfinite(two[:, 0])
        distance[found], place[found] = two[found, 0], rows[which[found, 0]]
        # Which of equally near ones a tree takes depends on all that are in it.
        tied = found & (two[:, 0] == two[:, 1])
        if tied.any():
            everything = cKDTree(unit_vectors(self.ra, self.dec), balanced_tree=False)
            place[tied] = everything.query(vectors[tied], distance_upper_bound=limit)[1]
        return distance, place
