"""Models as arrays: what is stored is restored, whole, for any labels; and the training range."""

import numpy as np
import pytest
from model_case import (
    DIRECT_ALPHA,
    FINE_GRID,
    LABEL_SETS,
    add_direct,
    add_screens,
    eagerly,
    make_model,
    make_trained,
    mock_stars,
    table_of,
)

from fitting.catalogue import infer
from fitting.coordinates import Coordinates
from fitting.star_solver import StarSolver
from fitting.stellar_model import StellarModel
from fitting.trained_model import Alarms, TrainedModel, TrainingRange
from pipeline.schema import KNOWN_LABELS, LabelSet

CASES = {"4": LABEL_SETS[4], "direct": DIRECT_ALPHA}


@pytest.fixture(scope="module", params=CASES)
def stellar(request):
    """A model with all networks; that with four labels sees a finer spectrum."""
    grid = {"fine_wavelengths": FINE_GRID} if request.param == "4" else {}
    return add_screens(add_direct(make_model(CASES[request.param], **grid)))


def copied(arrays):
    return {name: np.array(value) for name, value in arrays.items()}


# ---- models as arrays ------------------------------------------------------------------------


def test_model_restored_from_its_arrays_is_the_same(stellar):
    restored = StellarModel.from_arrays(copied(stellar.to_arrays()))
    assert restored.labels == stellar.labels
    assert (restored.release, restored.xp_basis) == ("dr3", "a basis")
    np.testing.assert_array_equal(restored.channels.surveys, stellar.channels.surveys)
    np.testing.assert_array_equal(restored.is_forward, stellar.is_forward)
    np.testing.assert_array_equal(restored.fine_wavelengths, stellar.fine_wavelengths)
    for name in ("distance_mean", "distance_scale"):
        assert getattr(restored, name) == getattr(stellar, name)
    found, expected = restored.to_arrays(), stellar.to_arrays()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_model_without_networks_on_what_is_observed_is_restored_without():
    restored = StellarModel.from_arrays(make_model().to_arrays())
    assert (restored.direct, restored.distance, restored.oddity) == (None, None, None)
    assert len(restored.fine_wavelengths) == 0


@pytest.mark.parametrize(
    "name",
    [
        "labels",
        "release",
        "w_out",
        "noise_base",
        "prior_means",
        "theta_scale",
        "label_mean",
        "fine_wavelengths",
        "distance_mean_scale",
    ],
)
def test_missing_array_is_told(name):
    arrays = make_model().to_arrays()
    del arrays[name]
    with pytest.raises(KeyError, match=name):
        StellarModel.from_arrays(arrays)


def test_arrays_of_the_parts_do_not_share_names(stellar):
    parts = (stellar.channels, stellar.flux, stellar.noise, stellar.prior)
    parts += (stellar.direct, stellar.distance, stellar.oddity)
    names = [name for part in parts for name in part.to_arrays()]
    names += ["labels", "release", "xp_basis", "label_mean", "label_scale"]
    names += ["fine_wavelengths", "distance_mean_scale"]
    assert len(names) == len(set(names))
    assert set(names) == stellar.to_arrays().keys()


def test_types_and_labels_are_standardised_by_their_mean_and_scale(stellar):
    k, forward = len(stellar.labels), stellar.is_forward
    labels = np.random.default_rng(0).normal(size=(7, k))
    z = stellar.standardised(labels)
    np.testing.assert_allclose(z * stellar.label_scale + stellar.label_mean, labels)
    np.testing.assert_allclose(stellar.theta(z[:, forward]), labels[:, forward])
    flux = stellar.flux.standardise(labels[:, forward].astype("f4"))
    np.testing.assert_allclose(flux, z[:, forward], atol=1e-4)


def test_trained_model_restored_from_its_arrays_infers_the_same():
    """By solvers of their own models, with all networks and the finer spectrum."""
    stellar = add_screens(add_direct(make_model(LABEL_SETS[2], fine_wavelengths=FINE_GRID)))
    errors = {
        "levels": np.array([-5.0, -3.0]),
        "factors": np.random.default_rng(0).uniform(0.9, 1.3, (2, 2, 5)),
        "pool_weights": np.array([[0.9, 0.2], [0.5, 0.5]]),
        "type_factors": np.array([[0.1, -0.1, 0.05], [0.0, 0.1, 0.2]]),
    }
    alarms = Alarms(1.0, 0.3, 0.4)
    trained = make_trained(stellar, [0.5, -0.3], 0.3, alarms=alarms, **errors)
    restored = TrainedModel.from_arrays(copied(trained.to_arrays()))
    for name, value in errors.items():
        np.testing.assert_array_equal(getattr(restored.errors, name), value)
    assert restored.alarms == alarms
    table = table_of(mock_stars(stellar, 12)[0])
    with eagerly():
        first, second = (
            infer(table, StarSolver(model.stellar, batch_size=12), model)
            for model in (trained, restored)
        )
    for name, value in first.items():
        np.testing.assert_array_equal(second[name], value, err_msg=name)
    assert np.ptp(first["teff_confidence"]) > 0
    assert np.isfinite(first["blend_probability"]).all()


@pytest.mark.parametrize(
    "name",
    [
        "range_faces",
        "confidence_weight",
        "error_factors",
        "error_levels",
        "pool_weights",
        "type_factors",
        "alarms",
        "w_out",
    ],
)
def test_missing_array_of_a_trained_model_is_told(name):
    arrays = make_trained(make_model()).to_arrays()
    del arrays[name]
    with pytest.raises(KeyError, match=name):
        TrainedModel.from_arrays(arrays)


# ---- the training range ----------------------------------------------------------------------


@pytest.mark.parametrize("n_labels", [2, 3, 4, 6])
def test_training_stars_are_inside_their_range_and_types_far_away_are_not(n_labels):
    rng, n = np.random.default_rng(0), 300
    theta, ext, level = rng.normal(size=(n, n_labels)), rng.uniform(0, 2, n), rng.normal(size=n)
    found = TrainingRange.of_stars(theta, ext, level)
    assert not found.excludes(theta, ext, level).any()
    assert not found.excludes(theta.mean(0)[None], ext[:1], level[:1]).any()
    for k in range(n_labels):
        for sign in (-1, 1):
            far = theta[:1].copy()
            far[0, k] = sign * (np.abs(theta[:, k]).max() + 0.1)
            assert found.excludes(far, ext[:1], level[:1]).all()


def test_hull_excludes_a_corner_where_no_star_is():
    theta = np.array([[0, 0], [1, 0], [0, 1.0]])
    found = TrainingRange.of_stars(theta, np.zeros(3), np.zeros(3))
    points = np.array([[0.49, 0.49], [0.6, 0.6]])
    excluded = found.excludes(points, np.zeros(2), np.zeros(2))
    np.testing.assert_array_equal(excluded, [False, True])


@pytest.mark.parametrize("place", range(2))
def test_range_excludes_what_is_of_other_dust_or_errors(place):
    rng = np.random.default_rng(1)
    theta, others = rng.normal(size=(50, 2)), rng.uniform(1, 2, (50, 2))
    found = TrainingRange.of_stars(theta, *others.T)
    for value in (0.9, 2.1):
        odd = others[:2].copy()
        odd[1, place] = value
        excluded = found.excludes(theta[:2], *odd.T)
        np.testing.assert_array_equal(excluded, [False, True])


# ---- coordinates -----------------------------------------------------------------------------


@pytest.mark.parametrize("n_labels", [2, 3, 5])
def test_coordinates_have_a_place_each_in_the_order_of_the_parameters(n_labels):
    at = Coordinates(n_labels)
    names = np.array(["z"] * n_labels + ["xi", "ln E", "ln plx"])
    assert len(at) == len(names)
    assert (names[at.z] == "z").all()
    assert (names[at.xi], names[at.ln_ext], names[at.ln_plx]) == ("xi", "ln E", "ln plx")
    assert list(names[at.logarithms]) == ["ln E", "ln plx"]
    labels = LabelSet([*KNOWN_LABELS.values()][: min(n_labels, 4)])
    assert len(labels.parameters) == len(Coordinates(len(labels)))


def test_clipped_coordinates_are_within_the_bounds():
    at = Coordinates(4)
    wild = np.array([[1e9] * 7, [-1e9] * 7, [0.1] * 7], "f4")
    found = at.clip(wild)
    assert ((found >= at.lower) & (found <= at.upper)).all()
    np.testing.assert_array_equal(found[2], wild[2])
    assert (at.largest_step > 0).all()
