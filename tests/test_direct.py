"""The direct estimate: what it sees of a star, and its networks against their equations."""

import numpy as np
import pytest
from model_case import CHANNELS, N_WL, N_XP, NO_BP, WISE, make_model, mock_stars, replaced

from fitting.direct import DIRECT_LIMIT, DirectNetwork, direct_inputs
from fitting.observed import ln_flux_data, used_fluxes

LEVEL, LN_AT_1_KPC, PLX_ERR, SHARE, KNOWN = N_WL, N_WL + 1, N_WL + 2, N_WL + 3, -1
N_BANDS = N_WL - N_XP


def inputs_of(data):
    return direct_inputs(data.observed, data.parallax, data.parallax_err, N_XP)


@pytest.fixture(scope="module")
def seen():
    """(`StarData`, their inputs) of 40 stars, some without bands or parallax."""
    data, _ = mock_stars(make_model(), 40, seed=9)
    data.flux_err[:10, NO_BP] = np.inf
    data.flux_err[5:20, WISE] = np.inf
    data.parallax[15:25] = data.parallax_err[15:25] = np.nan
    data = replaced(data)
    return data, inputs_of(data)


@pytest.fixture(scope="module", params=[2, 4])
def n_labels(request):
    return request.param


@pytest.fixture(scope="module")
def network(seen, n_labels):
    return DirectNetwork(seen[1], n_labels, n_networks=3, hidden=(9, 7), seed=4)


def test_direct_inputs_do_not_know_the_distance():
    data, _ = mock_stars(make_model(), 30, seed=9)
    far = replaced(
        data,
        flux=data.flux / 4,
        flux_err=data.flux_err / 4,
        parallax=data.parallax / 2,
        parallax_err=data.parallax_err / 2,
    )
    np.testing.assert_allclose(inputs_of(far), inputs_of(data), atol=1e-4)


def test_direct_inputs_of_what_is_missing_are_nan_and_told(seen):
    data, inputs = seen
    used, known = used_fluxes(data.flux, data.flux_err), np.isfinite(data.parallax)
    assert inputs.shape[1] == N_WL + 4 + N_BANDS + 1
    np.testing.assert_array_equal(np.isfinite(inputs[:, :N_WL]), used)
    np.testing.assert_array_equal(np.isfinite(inputs[:, [LN_AT_1_KPC, PLX_ERR]]).all(1), known)
    np.testing.assert_array_equal(inputs[:, KNOWN], known)
    np.testing.assert_array_equal(inputs[:, SHARE + 1 : -1], used[:, N_XP:])
    np.testing.assert_allclose(inputs[:, SHARE], used[:, :N_XP].mean(1), rtol=1e-6)
    assert np.isfinite(inputs[:, LEVEL]).all()


@pytest.mark.parametrize("parallax", [-3.0, 0.0, 0.1, 0.5])
def test_a_parallax_below_its_error_counts_as_its_error(seen, parallax):
    observed = ln_flux_data(seen[0].flux[30:31], seen[0].flux_err[30:31], CHANNELS)
    found, limit = (direct_inputs(observed, [x], [0.5], N_XP) for x in (parallax, 0.5))
    np.testing.assert_array_equal(found, limit)


def test_direct_network_is_its_equations(network, seen, n_labels):
    a = {name: value.astype("f8") for name, value in network.to_arrays().items()}
    x = (seen[1].astype("f8") - a["direct_mean"]) / a["direct_scale"]
    x = DIRECT_LIMIT * np.tanh(np.nan_to_num(x) / DIRECT_LIMIT)
    z, variance = [], []
    for k in range(3):
        h = np.maximum(x @ a["direct_w0"][k] + a["direct_b0"][k], 0)
        h = np.maximum(h @ a["direct_w1"][k] + a["direct_b1"][k], 0)
        h = h @ a["direct_w2"][k] + a["direct_b2"][k]
        z.append(h[:, :n_labels])
        variance.append(np.exp(2 * (h[:, n_labels:] - 1.5)))
    found, error = network.estimate(seen[1])
    assert found.shape == (40, n_labels)
    np.testing.assert_allclose(found, np.mean(z, 0), atol=1e-5)
    np.testing.assert_allclose(error, np.sqrt(np.mean(variance, 0) + np.var(z, 0)), rtol=1e-4)


def test_inputs_that_training_stars_share_or_lack_are_not_used(seen):
    inputs = seen[1].copy()
    inputs[:, 3], inputs[:, 64], inputs[:, -2] = 0.2, np.nan, 0.0
    network = DirectNetwork(inputs, 3, n_networks=1, hidden=(8,), seed=1)
    other = inputs.copy()
    other[:, 3], other[:, 64], other[:, -2] = 5.0, 1.0, 1.0
    for one, two in zip(network.estimate(inputs), network.estimate(other), strict=True):
        np.testing.assert_array_equal(one, two)
    other[:, 5] += 1.0
    assert (network.estimate(inputs)[0].numpy() != network.estimate(other)[0].numpy()).any()


def test_direct_estimate_is_finite_for_any_star(network, seen):
    rng = np.random.default_rng(0)
    wild = rng.normal(0, 1e6, (30, seen[1].shape[1])).astype("f4")
    wild[rng.random(wild.shape) < 0.3] = np.nan
    z, error = network.estimate(wild)
    assert np.isfinite(z).all()
    assert np.isfinite(error).all()
    assert (error.numpy() > 0).all()


def test_direct_network_restored_from_its_arrays_estimates_the_same(network, seen):
    arrays = {name: np.array(value) for name, value in network.to_arrays().items()}
    restored = DirectNetwork.from_arrays(arrays)
    for one, two in zip(restored.estimate(seen[1]), network.estimate(seen[1]), strict=True):
        np.testing.assert_array_equal(one, two)
    del arrays["direct_b1"]
    with pytest.raises(KeyError, match="direct_b1"):
        DirectNetwork.from_arrays(arrays)
