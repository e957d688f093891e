"""What the networks see of a star, and what the solver has them say of it."""

import numpy as np
import pytest
from model_case import (
    CHANNELS,
    FINE_GRID,
    N_WL,
    N_XP,
    NO_BP,
    NO_FINE_GRID,
    RP,
    WISE,
    add_direct,
    add_screens,
    make_model,
    make_solver,
    mock_stars,
    replaced,
)

from fitting.direct import FINE_SOFTENING, direct_inputs, hide_parallax
from fitting.observed import used_fluxes

N, N_BANDS = 40, N_WL - N_XP
GRIDS = {"no finer grid": NO_FINE_GRID, "finer grid": FINE_GRID}
ALONE = {"bp": CHANNELS.bp & ~CHANNELS.rp, "rp": CHANNELS.rp & ~CHANNELS.bp}


class Columns:
    """Where `direct_inputs` has what, with a finer spectrum of n_fine fluxes."""

    def __init__(self, n_fine):
        sizes = {
            "xp": N_XP,
            "fine": n_fine,
            "bands": N_BANDS,
            "ln_err": N_BANDS,
            "bp_level": 1,
            "rp_level": 1,
            "ln_at_1_kpc": 1,
            "parallax_err": 1,
            "share": 1,
            "used": N_BANDS,
            "known": 1,
        }
        ends = np.cumsum(list(sizes.values()))
        for (name, size), end in zip(sizes.items(), ends, strict=True):
            setattr(self, name, end - 1 if size == 1 else slice(end - size, end))
        self.n = ends[-1]


@pytest.fixture(scope="module", params=GRIDS)
def grid(request):
    return GRIDS[request.param]


@pytest.fixture(scope="module")
def at(grid):
    return Columns(len(grid))


@pytest.fixture(scope="module")
def model(grid):
    return add_screens(add_direct(make_model(fine_wavelengths=grid), n_networks=3))


@pytest.fixture(scope="module")
def data(model):
    """40 stars, some without bands or parallax."""
    stars, _ = mock_stars(model, N, seed=9)
    stars.flux_err[:10, NO_BP] = np.inf
    stars.flux_err[10:13, RP] = np.inf
    stars.flux_err[5:20, WISE] = np.inf
    stars.parallax[15:25] = stars.parallax_err[15:25] = np.nan
    if stars.fine is not None:
        stars.fine[:10, :50] = np.nan
    return replaced(stars)


@pytest.fixture(scope="module")
def inputs(data):
    return direct_inputs(data)


# ---- what the networks see


def test_inputs_do_not_know_the_distance(model, at):
    data, _ = mock_stars(model, 30, seed=9)
    far = replaced(
        data,
        flux=data.flux / 4,
        flux_err=data.flux_err / 4,
        parallax=data.parallax / 2,
        parallax_err=data.parallax_err / 2,
    )
    found, near = direct_inputs(far), direct_inputs(data)
    np.testing.assert_allclose(found, near, atol=1e-4)
    assert np.ptp(near[:, at.ln_at_1_kpc]) > 1


def test_inputs_of_what_is_missing_are_nan_and_told(data, inputs, at):
    used, known = used_fluxes(data.flux, data.flux_err), np.isfinite(data.parallax)
    assert inputs.shape == (N, at.n)
    assert inputs.dtype == np.float32
    seen = np.isfinite(inputs)
    np.testing.assert_array_equal(seen[:, at.xp], used[:, :N_XP])
    for bands in (at.bands, at.ln_err):
        np.testing.assert_array_equal(seen[:, bands], used[:, N_XP:])
    for name, alone in ALONE.items():
        np.testing.assert_array_equal(seen[:, getattr(at, f"{name}_level")], used[:, alone].any(1))
    for place in (at.ln_at_1_kpc, at.parallax_err):
        np.testing.assert_array_equal(seen[:, place], known)
    np.testing.assert_array_equal(inputs[:, at.known], known)
    np.testing.assert_array_equal(inputs[:, at.used], used[:, N_XP:])
    np.testing.assert_allclose(inputs[:, at.share], used[:, :N_XP].mean(1), rtol=1e-6)
    if data.fine is not None:
        np.testing.assert_array_equal(seen[:, at.fine], np.isfinite(data.fine))


def test_inputs_are_the_fluxes_their_errors_and_the_parallax(data, inputs, at):
    """Written out, of stars that lack nothing."""
    whole = np.arange(25, N)
    flux, err, plx, plx_err = (
        x[whole].astype("f8") for x in (data.flux, data.flux_err, data.parallax, data.parallax_err)
    )
    bright = np.log(flux[:, ALONE["rp"]]).mean(1)
    relative, ln_err = np.log(flux) - bright[:, None], np.log(err / flux)
    expected = {
        "xp": relative[:, :N_XP],
        "bands": relative[:, N_XP:],
        "ln_err": ln_err[:, N_XP:],
        "bp_level": ln_err[:, ALONE["bp"]].mean(1),
        "rp_level": ln_err[:, ALONE["rp"]].mean(1),
        "ln_at_1_kpc": bright - 2 * np.log(plx),
        "parallax_err": np.log(plx_err / plx),
    }
    for name, values in expected.items():
        found = inputs[whole][:, getattr(at, name)]
        np.testing.assert_allclose(found, values, atol=1e-4, err_msg=name)
    if data.fine is not None:
        fine = np.arcsinh(data.fine[whole].astype("f8") / FINE_SOFTENING)
        np.testing.assert_allclose(inputs[whole][:, at.fine], fine, atol=1e-4)


@pytest.mark.parametrize("parallax", [-3.0, 0.0, 0.1, 0.5])
def test_a_parallax_below_its_error_counts_as_its_error(data, parallax):
    one, err = data.take(slice(30, 31)), np.array([0.5])
    found, limit = (
        direct_inputs(replaced(one, parallax=np.array([x]), parallax_err=err))
        for x in (parallax, 0.5)
    )
    np.testing.assert_array_equal(found, limit)


def test_inputs_with_the_parallax_hidden_are_those_of_stars_without(data, inputs):
    hidden = hide_parallax(inputs, N_BANDS)
    np.testing.assert_array_equal(hidden, direct_inputs(data.without_parallax()))
    assert (np.isfinite(inputs).sum(1) > np.isfinite(hidden).sum(1)).sum() == N - 10


def test_inputs_of_a_star_do_not_depend_on_its_neighbours(data, inputs):
    order = np.random.default_rng(1).permutation(N)
    np.testing.assert_array_equal(direct_inputs(data.take(order)), inputs[order])


# ---- what the solver has them say


@pytest.fixture(scope="module")
def seen(model, data):
    return make_solver(model, batch_size=16).seen(data)


def test_solver_has_the_networks_say_what_they_say_of_the_inputs(model, inputs, seen):
    hidden = hide_parallax(inputs, N_BANDS)
    assert seen.direct.shape == (2, N, 3)
    assert seen.distance.shape == (2, N, 1)
    assert seen.kinds.shape == (N, 3)
    near = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(seen.direct, np.stack(model.direct.estimate(inputs)), **near)
    np.testing.assert_allclose(seen.distance, np.stack(model.distance.estimate(hidden)), **near)
    np.testing.assert_allclose(seen.kinds, model.oddity.probabilities(hidden), **near)
    for values in (seen.direct[0], seen.distance[0], seen.kinds):
        assert (np.ptp(values, 0) > 0.01).all()


def test_networks_that_the_model_has_not_say_nothing(grid, data, seen):
    alone = add_direct(make_model(fine_wavelengths=grid), n_networks=3)
    found = make_solver(alone, batch_size=N).seen(data)
    np.testing.assert_allclose(found.direct, seen.direct, rtol=1e-4, atol=1e-5)
    assert found.distance is None
    assert found.kinds is None
    none = make_solver(make_model(fine_wavelengths=grid)).seen(data)
    assert (none.direct, none.distance, none.kinds) == (None, None, None)
