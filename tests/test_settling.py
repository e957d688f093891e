"""The last step of a descent and the curvature that comes with it; the searches that know modes."""

import numpy as np
import pytest
from model_case import mock_stars

from fitting.posterior import estimates

FREE = slice(0, 5)  # coordinates but ln plx


@pytest.fixture(scope="module")
def begun(star_solver):
    """(`StarData` of 200 stars, places (200, 6) three evaluations from where descents begin)."""
    data, truth = mock_stars(star_solver.model, 200, seed=61, rel_err=0.03)
    rng = np.random.default_rng(3)
    start = star_solver.at.clip(truth + 0.2 * rng.normal(size=truth.shape)).astype("f4")
    return data, star_solver.minimise(data, start, 3).u


def test_a_settled_star_is_at_the_minimum_for_the_noise_where_it_was(star_solver, begun):
    data, u = begun
    settled = star_solver.settle(data, u)
    done = settled.converged
    assert 0.5 < done.mean() < 1.0
    long = star_solver.minimise(data, u, 60, noise_at=u)
    there = star_solver.minimise(data, settled.u, 1, noise_at=u)
    assert np.quantile((there.phi - long.phi)[done], 0.97) < 0.02  # 0.2 sigma
    np.testing.assert_allclose(there.phi, settled.phi, rtol=1e-5, atol=5e-3)


def test_a_step_from_far_away_is_not_the_end_and_leads_down(star_solver, begun):
    data, _ = begun
    far = np.zeros((len(data), 6), "f4")
    settled = star_solver.settle(data, far)
    before = star_solver.minimise(data, far, 1).phi
    assert settled.converged.mean() < 0.1
    assert (settled.phi <= before + 1e-3).all()
    assert (settled.phi < before - 1.0).mean() > 0.9


def test_the_curvature_of_the_step_is_that_at_its_end(star_solver, begun):
    data, u = begun
    settled = star_solver.settle_all(data, star_solver.minimise(data, u), np.arange(len(data)))
    assert settled.converged.mean() > 0.95
    errors = [
        estimates(one, star_solver.model).err[settled.converged]
        for one in (settled.gaussian, star_solver.gaussian(data, settled))
    ]
    ratio = np.abs(np.log(errors[0] / errors[1]))
    assert np.median(ratio) < 0.01
    assert np.quantile(ratio, 0.95) < 0.15


def test_curvature_of_a_place_leaves_the_star_there(star_solver, begun):
    data, u = begun
    found = star_solver.curved(data, u)
    np.testing.assert_array_equal(found.u, u)
    np.testing.assert_allclose(found.phi, star_solver.objective_at(data, u), rtol=1e-5, atol=5e-3)
    plain = star_solver.curved(data, u, over_a_sigma=False)
    np.testing.assert_array_equal(plain.precision, plain.hessian)
    wider = (
        np.einsum("nii->ni", found.precision) <= np.einsum("nii->ni", plain.precision) * 1.000001
    )
    assert wider.all()


def test_rows_may_come_in_any_order_and_more_than_once(star_solver, begun):
    data, u = begun
    rows = np.array([5, 3, 3, 170, 0])
    whole, some = star_solver.settle(data, u), star_solver.settle(data, u[rows], rows)
    for name, value in vars(some).items():
        expected = getattr(whole, name)[rows]
        np.testing.assert_allclose(value, expected, rtol=2e-3, atol=2e-3, err_msg=name)


def test_a_search_keeps_the_modes_that_are_known(star_solver, begun):
    """What was found before is not lost where the search finds nothing better, and not gone to
    again."""
    data, u = begun
    best = star_solver.finish(data, u)
    known = star_solver._modes(best, np.arange(len(data)), len(data))
    again = star_solver._search(data, u[:, star_solver.at.z], True, known=known)
    assert (again.best.phi <= known.best.phi).all()
    same = again.best.phi == known.best.phi
    assert same.mean() > 0.8
    np.testing.assert_array_equal(again.best.u[same], known.best.u[same])
    fresh = star_solver._search(data, u[:, star_solver.at.z], True)
    assert (again.best.phi < fresh.best.phi + 0.1).mean() > 0.98
