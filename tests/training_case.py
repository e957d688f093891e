"""Stars with labels, drawn from a small model, and trainings of them."""

import dataclasses

import numpy as np
from demo_model import RECIPE
from model_case import RELEASE, make_model, mock_stars, of_labels, replaced, table_of

from fitting.batches import Batches, TrainingStars
from fitting.posterior import physical
from fitting.recipe import OWN_GROUPS, make_recipe, make_stage
from fitting.training import Trainer
from pipeline.schema import DEFAULT_LABELS
from xp_utils import load_xp_basis

BASIS = load_xp_basis(RELEASE)
# Of a release without typical noise: no star can be shown fainter, and nothing odd.
NOISELESS = dataclasses.replace(
    BASIS,
    release=dataclasses.replace(RELEASE, spectra=dataclasses.replace(RELEASE.spectra, noise=None)),
)
LABEL_ERR = np.array([0.1, 0.05, 0.1, 0.03])  # of the labels of model_case.NAMES
N = 320


def labelled(model, n=N, seed=3, share=0.25, basis=BASIS):
    """`TrainingStars` drawn from a model, the last of them for calibration; their G is not known.

    Labels have errors of LABEL_ERR and as much noise; those that are not the forward model's follow
    the others. Every fifth star has no reddening.
    """
    rng, at, place = np.random.default_rng(seed), model.coordinates, of_labels(model.labels)
    data, u = mock_stars(model, n, seed)
    known, theta = physical(u, model), np.empty((n, len(place)))
    theta[:, model.is_forward] = known[:, at.z]
    theta[:, ~model.is_forward] = 0.1 - 0.1 * u[:, :1]
    err = np.tile(LABEL_ERR[place], (n, 1)) * rng.uniform(0.8, 1.2, (n, 1))
    ext_err = np.full(n, 0.1)
    ext = known[:, at.ln_ext] + ext_err * rng.normal(size=n)
    ext[::5] = np.nan
    data = replaced(
        data,
        parallax=np.abs(data.parallax),
        theta=(theta + err * rng.normal(size=err.shape)).astype("f4"),
        theta_err=err.astype("f4"),
        extinction=ext.astype("f4"),
        extinction_err=ext_err.astype("f4"),
    )
    return TrainingStars(data, np.arange(n) >= (1 - share) * n, np.full(n, np.nan), basis)


def labelled_table(data):
    """Columns of stars with labels, as a training set has them."""
    labels = {"stellar_type": data.theta, "stellar_type_err": data.theta_err}
    return table_of(data) | labels


def make_trainer(labels=DEFAULT_LABELS, stars=None, **changes):
    """A `Trainer` of stars drawn from `make_model`, with RECIPE changed."""
    stars = labelled(make_model(labels)) if stars is None else stars
    return Trainer(stars, labels, make_recipe(RECIPE | changes), "dr3", "a basis")


def make_batches(model, stars=None, **changes):
    """`Batches` of stars under a model, with RECIPE changed."""
    stars = labelled(model) if stars is None else stars
    return Batches(stars, model, make_recipe(RECIPE | changes))


def stage_of(kind, **changes):
    """A gradient stage of a kind that trains some of what it may."""
    train = {"calibration": ["noise_level"]} | {own: [own] for own in OWN_GROUPS}
    table = {"name": kind, "steps": 1, "batch_size": 10**4, "learning_rate": 1e-3}
    table["train"] = train.get(kind, ["network"])
    return make_stage(table | {"kind": kind} | changes)
