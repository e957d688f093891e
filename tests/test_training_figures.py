"""What the figures of a training show: tracks of types, and the model's ln fluxes of estimates."""

import numpy as np
import pytest
from model_case import DIRECT_ALPHA, LABEL_SETS, make_model

from fitting.training_figures import TRACKS, predicted_ln_flux, track_types

MODELS = {"2": LABEL_SETS[2], "4": LABEL_SETS[4], "direct": DIRECT_ALPHA}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return make_model(MODELS[request.param])


@pytest.mark.parametrize("name", TRACKS)
def test_tracks_have_all_labels_and_the_mean_where_they_name_none(model, name):
    theta, labels = track_types(TRACKS[name], model), model.labels.forward
    teff = TRACKS[name]["teff"]
    assert theta.shape == (len(teff), len(labels))
    np.testing.assert_allclose(theta[:, labels.place["teff"]], teff, rtol=1e-6)
    gravity = theta[:, labels.place["logg"]]
    assert (np.diff(gravity) < 0).all() == (name == "Main sequence")
    assert (gravity.max() < 3.5) == (name == "Giant branch")
    if "alpha_m" in labels.place:
        mean = model.label_mean[list(model.labels.place).index("alpha_m")]
        np.testing.assert_allclose(theta[:, labels.place["alpha_m"]], mean, rtol=1e-6)


def test_predicted_ln_fluxes_are_those_of_the_forward_model(model):
    rng, k = np.random.default_rng(0), len(model.labels.forward)
    z, xi = rng.normal(size=(5, k)).astype("f4"), rng.normal(size=5).astype("f4")
    ext, plx = rng.uniform(0, 1, (2, 5)).astype("f4") + np.float32(0.1)
    est = np.column_stack([model.theta(z), xi, ext, plx])
    expected = np.log(model.flux.flux(z, xi, ext, np.log(plx)))
    np.testing.assert_allclose(predicted_ln_flux(model, est), expected, atol=1e-4)
