"""The networks on what is observed of stars, and their losses, against float64 NumPy."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from fitting.direct import REPRESENTATIONS, representation_masks
from fitting.losses import DIRECT_NU, Losses
from fitting.networks import (
    INPUT_LIMIT,
    LEAST_COMPONENT,
    LN_SIGMA_LIMITS,
    START_LN_SIGMA,
    Classification,
    Regression,
    principal_components,
)
from pipeline.quiet_tensorflow import tf

N, P, N_NETWORKS = 60, 7, 3
HIDDEN = (9, 5)
SMALL = 1e-5  # step of differences, float64


def made(cls, inputs, n_out, n_networks=N_NETWORKS, masks=None, **options):
    """Networks whose outputs are not small."""
    masks = np.ones((n_networks, P)) if masks is None else masks
    networks = cls(inputs, n_out, masks, HIDDEN, "some", **options)
    rng = np.random.default_rng(1)
    for variable in networks.variables:
        variable.assign_add(rng.normal(0, 0.3, variable.shape).astype("f4"))
    return networks


@pytest.fixture(scope="module")
def inputs():
    """Inputs (N, P) float32 of scales from 0.3 to 30, some NaN."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(N, P)) * np.geomspace(0.3, 30, P) + 5 * rng.normal(size=P)
    values[rng.random((N, P)) < 0.1] = np.nan
    return values.astype("f4")


@pytest.fixture(scope="module")
def regression(inputs):
    return made(Regression, inputs, 2)


@pytest.fixture(scope="module")
def classification(inputs):
    return made(Classification, inputs, 3)


def oracle(arrays, inputs):
    """Outputs (n_networks, B, n_out) float64 by the equations, one network at a time."""
    a = {name.removeprefix("some_"): np.asarray(value, "f8") for name, value in arrays.items()}
    x = (np.asarray(inputs, "f8") - a["mean"]) / a["scale"]
    x = INPUT_LIMIT * np.tanh(np.nan_to_num(x) / INPUT_LIMIT)
    spectrum = x[:, : len(a["components"])] @ a["components"]
    x = np.column_stack([x, INPUT_LIMIT * np.tanh(spectrum / INPUT_LIMIT)])
    outputs = []
    for k, mask in enumerate(a["masks"] > 0):
        seen = x[:, mask]
        h = np.maximum(seen @ a["w0"][k][: seen.shape[1]] + a["b0"][k], 0)
        h = np.maximum(h @ a["w1"][k] + a["b1"][k], 0)
        outputs.append(h @ a["w2"][k] + a["b2"][k])
    return np.array(outputs)


# ---- inputs


def test_networks_are_their_equations(regression, classification, inputs):
    for networks in (regression, classification):
        found = networks.forward(inputs)
        np.testing.assert_allclose(found, oracle(networks.to_arrays(), inputs), atol=2e-5)


@pytest.mark.parametrize("cls", [Regression, Classification])
def test_a_network_does_not_depend_on_inputs_that_it_does_not_see(inputs, cls):
    masks = np.ones((3, P))
    masks[0, :3] = masks[1, 3:5] = 0
    networks = made(cls, inputs, 4, masks=masks)
    first, second, third = networks.forward(inputs).numpy()
    changed = inputs.copy()
    changed[:, :3] = np.random.default_rng(5).normal(0, 50, (N, 3))
    new = networks.forward(changed).numpy()
    np.testing.assert_array_equal(new[0], first)
    assert (new[1] != second).any(1).all()
    assert (new[2] != third).any(1).all()
    changed = inputs.copy()
    changed[:, 3:5] = np.nan
    np.testing.assert_array_equal(networks.forward(changed)[1], second)


def test_an_input_that_is_missing_counts_as_its_mean(regression, inputs):
    mean = np.broadcast_to(regression.mean.numpy(), inputs.shape)
    filled = np.where(np.isnan(inputs), mean, inputs)
    np.testing.assert_array_equal(regression.forward(filled), regression.forward(inputs))


def test_standardisation_is_of_what_is_seen(regression, inputs):
    np.testing.assert_allclose(regression.mean, np.nanmean(inputs, 0), rtol=1e-5)
    np.testing.assert_allclose(regression.scale, np.nanstd(inputs, 0), rtol=1e-5)


def test_inputs_that_are_the_same_for_all_or_never_seen_do_not_count(inputs):
    some = inputs.copy()
    some[:, 2], some[:, 4] = 0.7, np.nan
    networks = made(Regression, some, 2)
    other = some.copy()
    other[:, 2], other[:, 4] = -80.0, 3.0
    np.testing.assert_array_equal(networks.forward(other), networks.forward(some))


def test_outputs_are_finite_for_any_input(regression, classification):
    rng = np.random.default_rng(0)
    wild = rng.normal(0, 1e8, (30, P)).astype("f4")
    wild[rng.random(wild.shape) < 0.3] = np.nan
    wild[0] = np.nan
    wild[1, 0], wild[2, 1] = np.inf, -np.inf
    z, error = regression.estimate(wild)
    assert np.isfinite(z).all()
    assert np.isfinite(error).all()
    assert (error.numpy() > 0).all()
    assert np.isfinite(classification.probabilities(wild)).all()


def test_networks_take_turns_with_the_representations_of_the_spectrum():
    n_xp, n_fine, rest = 5, 8, 4
    n_spectrum, n_inputs = n_xp + n_fine, n_xp + n_fine + rest
    for fine in (n_fine, 0):
        n_spectrum, n_inputs = n_xp + fine, n_xp + fine + rest
        masks = representation_masks(n_inputs, n_xp, fine, 7)
        assert masks.shape == (7, n_inputs + n_spectrum)
        assert masks[:, n_spectrum:n_inputs].all()
        for k, mask in enumerate(masks):
            kind = REPRESENTATIONS[k % len(REPRESENTATIONS)]
            assert (mask[n_inputs:] == (kind == "components")).all()
            coarse, finer = mask[:n_xp], mask[n_xp:n_spectrum]
            assert (coarse == (kind == "coarse" or (kind == "fine" and not fine))).all()
            assert (finer == (kind == "fine")).all()


@pytest.fixture(scope="module")
def spectra():
    """Inputs (N, P) whose first 4 are alike but for small differences, and one network each that
    sees these, and their components."""
    rng = np.random.default_rng(8)
    values = rng.normal(size=(N, P))
    values[:, 1:4] = values[:, :1] + 0.1 * values[:, 1:4]
    masks = np.zeros((2, P + 4), bool)
    masks[:, 4:P] = masks[0, :4] = masks[1, P:] = True
    return values.astype("f4"), made(Regression, values, 2, masks=masks)


def test_components_are_uncorrelated_and_of_unit_variance(spectra):
    values, networks = spectra
    x = (values - values.mean(0)) / values.std(0)
    x = INPUT_LIMIT * np.tanh(x[:, :4] / INPUT_LIMIT)
    found = x @ networks.components.numpy()
    np.testing.assert_allclose(found.T @ found / N, np.eye(4), atol=1e-4)


def test_components_that_hardly_vary_are_not_used():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(500, 3)) * [1.0, 2 * LEAST_COMPONENT, 0.5 * LEAST_COMPONENT]
    size = np.abs(x @ principal_components(x)).max(0)
    assert sorted((size > 0).tolist()) == [False, True, True]
    assert principal_components(np.zeros((1, 0))).shape == (0, 0)


def test_networks_with_components_are_their_equations(spectra):
    values, networks = spectra
    arrays = networks.to_arrays()
    np.testing.assert_allclose(networks.forward(values), oracle(arrays, values), atol=5e-5)
    again = Regression.from_arrays(arrays, "some")
    np.testing.assert_array_equal(again.forward(values), networks.forward(values))


def test_the_spectrum_is_seen_by_its_components_alone_where_the_mask_says_so(spectra):
    values, networks = spectra
    moved = values.copy()
    moved[:, :4] += 0.5
    before, after = (networks.forward(x).numpy() for x in (values, moved))
    assert (before != after).any((1, 2)).all()
    arrays = networks.to_arrays() | {"some_components": np.zeros((4, 4), "f4")}
    blind = Regression.from_arrays(arrays, "some")
    np.testing.assert_array_equal(blind.forward(values)[1], blind.forward(moved)[1])


# ---- weights


def test_networks_restored_from_their_arrays_are_the_same(regression, classification, inputs):
    for networks in (regression, classification):
        arrays = {name: np.array(value) for name, value in networks.to_arrays().items()}
        again = type(networks).from_arrays(arrays, "some")
        np.testing.assert_array_equal(again.forward(inputs), networks.forward(inputs))
        restored = again.to_arrays()
        assert restored.keys() == arrays.keys()
        for name, value in arrays.items():
            np.testing.assert_array_equal(restored[name], value, err_msg=name)


def test_networks_of_another_name_are_not_there(regression):
    assert Regression.from_arrays(regression.to_arrays(), "other") is None
    assert Regression.from_arrays({}, "some") is None


def test_networks_that_lack_an_array_are_refused_by_its_name(regression):
    arrays = regression.to_arrays()
    del arrays["some_b1"]
    with pytest.raises(KeyError, match="some_b1"):
        Regression.from_arrays(arrays, "some")


def test_weights_follow_from_the_seed_and_the_name(inputs):
    def first_weight(name, seed):
        return Regression(inputs, 2, np.ones((2, P)), HIDDEN, name, seed).weights[0].numpy()

    one = first_weight("direct", 0)
    np.testing.assert_array_equal(first_weight("direct", 0), one)
    for other in (first_weight("direct", 1), first_weight("distance", 0)):
        assert (other != one).all()
    assert (one[0] != one[1]).all()


# ---- what the networks say


def test_estimate_is_that_of_the_networks_by_their_own_errors(regression, inputs):
    out = oracle(regression.to_arrays(), inputs)
    z, ln_sigma = out[..., :1], np.clip(out[..., 1:] + START_LN_SIGMA, *LN_SIGMA_LIMITS)
    found, error = regression.estimate(inputs)
    weight = np.exp(-2 * ln_sigma)
    expected = np.average(z, 0, weight)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    variance = np.average(np.exp(2 * ln_sigma) + (z - expected) ** 2, 0, weight)
    np.testing.assert_allclose(error, np.sqrt(variance), rtol=1e-4)


def test_error_grows_where_the_networks_disagree(inputs):
    networks = made(Regression, inputs, 2, n_networks=2)
    for weight in networks.variables:  # two equal networks
        weight.assign(np.repeat(weight.numpy()[:1], 2, 0))
    centre, alone = (x.numpy() for x in networks.estimate(inputs))
    for apart in (0.5, 2.0):
        bias = networks.biases[-1].numpy().copy()
        shift = np.zeros_like(bias)
        shift[:, 0, 0] = [apart, -apart]
        networks.biases[-1].assign(bias + shift)
        z, error = networks.estimate(inputs)
        np.testing.assert_allclose(z, centre, atol=1e-5)
        np.testing.assert_allclose(error, np.hypot(alone, apart), rtol=1e-4)
        networks.biases[-1].assign(bias)


def test_probabilities_are_means_over_the_networks_and_sum_to_1(classification, inputs):
    found = classification.probabilities(inputs).numpy()
    expected = softmax(oracle(classification.to_arrays(), inputs), 2).mean(0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(1), 1.0, rtol=1e-6)
    assert ((found >= 0) & (found <= 1)).all()


# ---- losses


@pytest.fixture(scope="module")
def batch(inputs):
    rng = np.random.default_rng(3)
    kind = np.eye(3)[rng.integers(3, size=N)]
    z, z_err = rng.normal(size=N), rng.uniform(0.01, 1.0, N)
    values = {"inputs": inputs, "z": z, "z_err": z_err, "kind": kind}
    return {name: np.asarray(value, "f4") for name, value in values.items()}


def distance_loss(arrays, batch):
    out = oracle(arrays, batch["inputs"])
    ln_sigma = np.clip(out[..., 1] + START_LN_SIGMA, *LN_SIGMA_LIMITS)
    variance = np.exp(2 * ln_sigma) + batch["z_err"].astype("f8") ** 2
    off2 = (batch["z"] - out[..., 0]) ** 2 / variance
    student = 0.5 * (DIRECT_NU + 1) * np.log1p(off2 / DIRECT_NU)
    return (0.5 * np.log(variance) + student).mean(0)


def oddity_loss(arrays, batch):
    ln_p = log_softmax(oracle(arrays, batch["inputs"]), 2)
    return -(ln_p * batch["kind"]).sum(2).mean(0)


LOSSES = {"distance": distance_loss, "oddity": oddity_loss}


@pytest.fixture(scope="module")
def model(regression, classification):
    return SimpleNamespace(distance=regression, oddity=classification)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_its_equation(model, batch, name):
    found = getattr(Losses(model), name)(batch)
    assert found.shape == (N,)
    np.testing.assert_allclose(found, LOSSES[name](getattr(model, name).to_arrays(), batch), 1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_of_the_loss_is_that_of_differences(model, batch, name):
    networks, expected = getattr(model, name), LOSSES[name]
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(getattr(Losses(model), name)(batch))
    variables = list(networks.variables)
    gradients = tape.gradient(loss, variables)
    arrays = {k: np.asarray(v, "f8") for k, v in networks.to_arrays().items()}
    rng = np.random.default_rng(6)
    for variable, gradient in zip(variables, gradients, strict=True):
        key = variable.name.split(":")[0]
        direction = rng.normal(size=arrays[key].shape)
        up, down = (
            expected(arrays | {key: arrays[key] + step * direction}, batch).mean()
            for step in (SMALL, -SMALL)
        )
        slope = float((gradient.numpy() * direction).sum())
        assert slope == pytest.approx((up - down) / (2 * SMALL), rel=2e-3, abs=1e-5), key


def test_distance_loss_forgives_what_the_parallax_error_allows(model, batch):
    loss = Losses(model).distance
    far = {**batch, "z": batch["z"] + 20}
    sure, unsure = (loss({**far, "z_err": np.full(N, err, "f4")}).numpy() for err in (0.01, 10.0))
    assert (unsure < sure).mean() > 0.9


def test_oddity_loss_is_small_where_the_right_kind_is_certain(model, batch):
    logits = model.oddity.forward(batch["inputs"]).numpy()
    best = np.eye(3, dtype="f4")[logits.mean(0).argmax(1)]
    worst = np.eye(3, dtype="f4")[logits.mean(0).argmin(1)]
    right, wrong = (Losses(model).oddity({**batch, "kind": k}).numpy() for k in (best, worst))
    assert (right < wrong).all()
    assert (right >= 0).all()
