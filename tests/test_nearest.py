"""The nearest of many places is that of a tree of all of them, bit for bit."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from pipeline import nearest
from pipeline.nearest import CELL, Places
from pipeline.sphere import chord, local_axes, unit_vectors

RADIUS = 0.5 / 3600
CENTRES = {
    "equator": (150.5, 0.75), "ra 0": (0.0, -1.6), "ra 360": (359.99, 61.3),
    "north pole": (77.0, 90.0), "south pole": (200.0, -89.95), "galaxy": (266.4, -29.0),
}  # fmt: skip


def degrees(vectors):
    x, y, z = vectors.T
    return np.rad2deg(np.arctan2(y, x)) % 360, np.rad2deg(np.arctan2(z, np.hypot(x, y)))


def moved(vectors, step, rng):
    """Vectors some degrees off, to all sides."""
    vectors = vectors + np.deg2rad(step) * rng.normal(size=vectors.shape)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def field(centre, n, rng, width=0.8):
    """n vectors in a square, `width` degrees to each side of a centre."""
    centre = np.array(centre, float)[:, None]
    offset = np.tan(np.deg2rad(rng.uniform(-width, width, (2, n, 1))))
    east, north = local_axes(*centre)
    vectors = unit_vectors(*centre) + offset[0] * east + offset[1] * north
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def require_as_tree(places, vectors):
    """Equal to what a tree of all places finds; returns the number of those found."""
    tree = cKDTree(unit_vectors(places.ra, places.dec), balanced_tree=False)
    limit = np.nextafter(chord(RADIUS), 1)
    distance, place = tree.query(vectors, distance_upper_bound=limit)
    found = places.nearest(vectors, RADIUS)
    np.testing.assert_array_equal(found[0], distance)
    np.testing.assert_array_equal(found[1], place)
    return int(np.isfinite(distance).sum())


@pytest.mark.parametrize("name", CENTRES)
@pytest.mark.parametrize("width", [0.003, 0.8, 4.0])
def test_it_is_that_of_a_tree_of_all_places(name, width):
    """Also of a field larger than the grid."""
    rng = np.random.default_rng(1)
    near = field(CENTRES[name], 500, rng, width)
    all_places = np.concatenate([moved(near, RADIUS / 2, rng), field(CENTRES[name], 20_000, rng)])
    places = Places(*degrees(rng.permutation(all_places)))
    assert 150 < require_as_tree(places, near) <= 500
    assert require_as_tree(places, near[:1]) == require_as_tree(places, near[:1])


def test_places_at_one_spot_are_as_in_a_tree_of_all_whatever_else_is_asked_for():
    rng = np.random.default_rng(2)
    near = field((10.0, 20.0), 300, rng)
    spots = np.repeat(moved(near, RADIUS / 3, rng), rng.integers(1, 40, 300), axis=0)
    places = Places(
        *degrees(rng.permutation(np.concatenate([spots, field((10.0, 20.0), 999, rng)])))
    )
    require_as_tree(places, near)
    together = places.nearest(near, RADIUS)[1]
    alone = [places.nearest(near[i : i + 1], RADIUS)[1][0] for i in range(300)]
    np.testing.assert_array_equal(alone, together)


def test_all_in_a_cell_or_on_the_border_of_the_grid_are_found():
    rng = np.random.default_rng(3)
    near = field((359.999, -30.0), 2000, rng, width=CELL)
    far = field((3.0, -30.0), 2000, rng, width=CELL)  # beyond the grid, that is about the others
    others = field((359.999, -30.0), 9000, rng)
    all_places = np.concatenate([moved(near, RADIUS, rng), moved(far, RADIUS, rng), others])
    places = Places(*degrees(all_places))
    assert require_as_tree(places, np.concatenate([near, far])) > 1000


@pytest.mark.parametrize("turns", [-7200.0, -360.0, 360.0, 3.6e5])
def test_angles_of_many_turns_are_places_too(turns):
    rng = np.random.default_rng(4)
    near = field((100.0, 20.0), 400, rng)
    ra, dec = degrees(moved(near, RADIUS / 2, rng))
    assert require_as_tree(Places(ra + turns, dec), near) > 100


def test_single_precision_does_not_take_a_place_out_of_reach():
    """Of 2,000,000 places at the worst right ascensions, as near as the cells allow."""
    rng = np.random.default_rng(5)
    ra, dec = 359 + rng.random(2_000_000), rng.uniform(-0.4, 0.4, 2_000_000)
    places, exact = Places(ra, dec), unit_vectors(ra, dec)
    cells = places._cells_of(exact)
    row, column = (np.stack(np.divmod(x, nearest.GRID)) for x in (places._cells, cells))
    assert np.abs(row - column).max() <= 1
    in_cells = chord(0.3 / 3600) / chord(CELL)
    exact_place = (exact @ places._axes) / chord(CELL)
    vectors = unit_vectors(ra.astype("f4"), dec.astype("f4"))
    single = (vectors @ places._axes) / chord(CELL)
    assert np.abs(exact_place - single).max() < in_cells


@pytest.mark.parametrize("n", [0, 1])
def test_of_no_place_and_of_one_place(n):
    places = Places(np.full(n, 30.0), np.full(n, -10.0))
    vectors = unit_vectors(np.array([30.0, 31.0]), np.array([-10.0, -10.0]))
    distance, place = places.nearest(vectors, RADIUS)
    np.testing.assert_array_equal(place, [0, n])
    assert np.isinf(distance[1])
    assert len(places) == n
