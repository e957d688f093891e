"""Small models of stars with 2, 3 or 4 labels, and stars drawn from them."""

import contextlib
import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from model_oracle import Oracle
from scipy import stats

from fitting.direct import direct_inputs, hide_parallax, representation_masks
from fitting.logistic import Logistic
from fitting.networks import Classification, Regression
from fitting.noise import NoiseModel
from fitting.observed import FINE, OBSERVED, StarData
from fitting.posterior import ErrorModel
from fitting.prior import MixturePrior
from fitting.sampling.samples import StarSampler
from fitting.star_solver import StarSolver
from fitting.stellar_model import StellarModel
from fitting.trained_model import NO_ALARMS, TrainedModel, TrainingRange
from model import FluxModel
from pipeline import quiet_tensorflow
from pipeline.schema import DEFAULT_LABELS, KNOWN_LABELS, LabelSet, load_release
from pipeline.schema.labels import parse_label
from xp_utils import flux_channels, load_xp_basis, reference_flux

RELEASE = load_release()
CHANNELS = flux_channels(load_xp_basis(RELEASE))
FINE_GRID, NO_FINE_GRID = RELEASE.spectra.fine_wavelengths, np.empty(0)
N_WL, N_XP = len(CHANNELS), CHANNELS.n_xp
BP = np.flatnonzero(CHANNELS.bp & ~CHANNELS.rp)
NO_BP = np.flatnonzero(CHANNELS.bp)  # what a star without BP lacks
RP = np.flatnonzero(CHANNELS.rp & ~CHANNELS.bp)
TMASS, WISE = CHANNELS.photometry.values()

# Of the labels: mean, scale, and of a mixture in z the means and covariances, a row a component.
NAMES = ("teff", "feh", "logg", "alpha_m")
MEAN, SCALE = np.array([5.2, -0.3, 3.2, 0.1]), np.array([0.7, 0.4, 1.1, 0.12])
PRIOR_WEIGHTS = np.array([0.5, 0.3, 0.2])
MEANS = np.array([[0.6, 0.1, 0.9, -0.3], [-0.6, 0.0, -1.0, 0.2], [0.0, -1.2, 0.3, 1.1]])
COVARIANCES = np.array(
    [
        [[0.5, 0.1, -0.2, 0.0], [0.1, 0.6, 0.0, -0.2], [-0.2, 0.0, 0.3, 0.1], [0, -0.2, 0.1, 0.5]],
        [[0.2, 0.0, 0.15, 0.0], [0.0, 0.5, 0.1, -0.1], [0.15, 0.1, 0.4, 0], [0, -0.1, 0, 0.4]],
        [[0.6, -0.2, 0.0, 0.0], [-0.2, 0.4, 0.1, 0.0], [0.0, 0.1, 0.8, 0.1], [0, 0, 0.1, 0.3]],
    ]
)
DIRECT_ALPHA = LabelSet(
    [*(KNOWN_LABELS[name] for name in ("teff", "logg")), parse_label("alpha_m:direct")]
)
LABEL_SETS = {
    2: LabelSet([KNOWN_LABELS[name] for name in ("teff", "logg")]),
    3: DEFAULT_LABELS,
    4: LabelSet([KNOWN_LABELS[name] for name in NAMES]),
}


def of_labels(labels):
    """Places (K,) of labels in the constants above."""
    return [NAMES.index(label.name) for label in labels]


THETA_MEAN, THETA_SCALE = MEAN[:3], SCALE[:3]  # of the usual labels


def randomise(module, rng, sizes):
    """Add normal noise of the sizes {part of a variable's name: standard deviation}."""
    for name, size in sizes.items():
        for variable in module.variables:
            if name in variable.name:
                noise = rng.normal(0, size, variable.shape)
                variable.assign(variable.numpy() + noise.astype("f4"))


def make_flux_model(labels=DEFAULT_LABELS, seed=0, hidden=12):
    """A forward model with smooth spectra that differ by some 30% for a unit of z."""
    rng, place = np.random.default_rng(seed), of_labels(labels)
    x = np.log(CHANNELS.wavelengths / 550.0)
    basis = stats.ortho_group.rvs(N_WL, random_state=seed)
    model = FluxModel(
        CHANNELS.wavelengths, MEAN[place], SCALE[place], 3.0 - x - x * x, basis, hidden, seed=seed
    )
    randomise(model, rng, {"bias_0": 0.5, "bias_1": 0.3, "bias_2": 0.3})
    smooth = np.cos(np.arange(10)[:, None] * (2.0 * x + 1.0))  # (10, n_wl)
    spectra = rng.normal(0, 0.3, (hidden + 1, 10)) @ smooth / np.sqrt(10)
    outputs = (spectra @ basis.T).astype("f4")  # basis^-1 = basis^T
    model.w_out.assign(outputs[:-1])
    model.bias_out.assign(outputs[-1])
    model.ln_ext_curve_xi.assign((0.15 * np.cos(4 * x) - 0.1).astype("f4"))
    return model


NOISE_SIZES = {
    "b1": 0.3,
    "b2": 0.3,
    "w_out": 0.3,
    "base": 0.1,
    "ln_scatter": 0.2,
    "ln_err_factor": 0.2,
    "ln_level": 0.1,
    "ln_nu": 0.5,
}


def make_noise_model(n_labels=3, seed=0, hidden=6):
    """A noise model whose covariance is full and depends on the star."""
    noise = NoiseModel(N_WL, N_XP, n_labels, [3.0, np.log(0.02)], [1.0, 0.5], hidden, seed)
    randomise(noise, np.random.default_rng(seed), NOISE_SIZES)
    return noise


def make_prior(labels=DEFAULT_LABELS):
    place = of_labels(labels)
    covariances = COVARIANCES[:, place][:, :, place]
    return MixturePrior(PRIOR_WEIGHTS, MEANS[:, place], covariances, SCALE[place], -9.0)


def make_model(labels=DEFAULT_LABELS, seed=0, fine_wavelengths=NO_FINE_GRID):
    """A `StellarModel` without networks on what is observed."""
    place, forward = of_labels(labels), labels.forward
    grids = (CHANNELS, fine_wavelengths, "dr3", "a basis")
    parts = (
        make_flux_model(forward, seed),
        make_noise_model(len(forward), seed),
        make_prior(forward),
    )
    return StellarModel(labels, *grids, MEAN[place], SCALE[place], *parts)


def network_data(model, seed=0):
    """`StarData` of 50 stars to standardise networks by, some without bands or parallaxes."""
    data, _ = mock_stars(model, 50, seed)
    data.flux_err[:20, NO_BP] = data.flux_err[10:30, WISE] = np.inf
    data.parallax[25:35] = np.nan
    return replaced(data)


def masks_of(model, inputs, n_networks):
    """Which of its inputs each network sees."""
    return representation_masks(inputs.shape[1], N_XP, len(model.fine_wavelengths), n_networks)


def add_direct(model, seed=0, n_networks=2):
    """Give a model a direct estimate, of random networks that see what differs between stars."""
    seen, n_out = direct_inputs(network_data(model, seed)), 2 * len(model.labels)
    masks = masks_of(model, seen, n_networks)
    model.direct = Regression(seen, n_out, masks, (8, 8), "direct", seed)
    return model


def add_screens(model, seed=0, n_networks=2):
    """Give a model random networks that tell the distance and what is odd."""
    data = network_data(model, seed)
    at_kpc = (data.observed.features[:, 0] - 2 * np.log(data.parallax))[data.useful_parallax]
    model.distance_mean, model.distance_scale = float(at_kpc.mean()), float(at_kpc.std())
    seen = direct_inputs(data)
    hidden, masks = hide_parallax(seen, N_WL - N_XP), masks_of(model, seen, n_networks)
    model.distance = Regression(hidden, 2, masks, (8,), "distance", seed)
    model.oddity = Classification(seen, 3, masks, (8,), "oddity", seed)
    return model


def permuted(model, order):
    """The same model with its labels in another order."""
    arrays, order = model.to_arrays(), list(order)
    arrays["labels"] = np.array(LabelSet([list(model.labels)[k] for k in order]).to_json())
    for name in ("label_mean", "label_scale", "theta_mean", "theta_scale", "prior_theta_scale"):
        arrays[name] = arrays[name][order]
    for layer in range(model.flux.n_layers):
        arrays[f"w_theta_{layer}"] = arrays[f"w_theta_{layer}"][order]
    arrays["noise_w1"] = arrays["noise_w1"][order + [len(order), len(order) + 1, len(order) + 2]]
    arrays["prior_means"] = arrays["prior_means"][:, order]
    arrays["prior_covariances"] = arrays["prior_covariances"][:, order][:, :, order]
    return StellarModel.from_arrays(arrays)


@contextlib.contextmanager
def eagerly():
    """TensorFlow without graphs, which cost more than they save where they are used once."""
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


@contextlib.contextmanager
def as_graphs():
    """Functions that are compiled become graphs instead: to compile takes five times as long, and a
    test of step 10 runs the compiled ones."""
    with pytest.MonkeyPatch.context() as patch:
        whole = tf.function
        patch.setattr(quiet_tensorflow, "PROGRAMS", None)
        patch.setattr(tf, "function", lambda f, **_: whole(f, autograph=False))
        yield


def make_solver(model, **options):
    """A `StarSolver` whose functions are graphs."""
    with as_graphs():
        return StarSolver(model, **{"batch_size": 64} | options)


def make_sampler(solver, trained, **options):
    """A `StarSampler` whose functions are graphs."""
    with as_graphs():
        return StarSampler(solver, trained, **options)


def mock_stars(model, n, seed=0, plx_snr=10.0, rel_err=0.02):
    """`StarData` of n stars drawn from the model: types from the prior, fluxes from the noise
    model, a finer spectrum, where the model sees one, from the fluxes; and their true u (n, K + 3).
    """
    rng, oracle, at = np.random.default_rng(seed), Oracle(model), model.coordinates
    u = np.column_stack(
        [
            model.prior.sample(n, rng),
            rng.normal(size=n),
            np.log(rng.uniform(0.05, 1.5, n)),
            rng.normal(0, 0.7, n),
        ]
    )
    errors = rel_err * np.exp(rng.normal(0, 0.2, (n, 1))) * np.ones(N_WL)
    ln_flux = np.array([oracle.mu(row) for row in u])
    bright = CHANNELS.rp & ~CHANNELS.bp
    for i in range(n):
        features = np.array([ln_flux[i, bright].mean(), np.log(errors[i, :N_XP]).mean()])
        covariance = oracle.covariance(u[i, at.z], np.exp(u[i, at.ln_ext]), errors[i], features)
        ln_flux[i] += np.linalg.cholesky(covariance) @ rng.normal(size=N_WL)
    flux, plx = np.exp(ln_flux), np.exp(u[:, at.ln_plx])
    plx_err = plx / plx_snr
    data = StarData(
        flux.astype("f4"),
        (errors * flux).astype("f4"),
        (plx + plx_err * rng.normal(size=n)).astype("f4"),
        plx_err.astype("f4"),
        CHANNELS,
        fine=finer_spectrum(flux, model.fine_wavelengths),
    )
    return data, u


def finer_spectrum(flux, wavelengths):
    """The XP part of fluxes (n, n_wl) on a finer grid, as `StarData.fine`; None without a grid."""
    if not len(wavelengths):
        return None
    coarse = CHANNELS.wavelengths[:N_XP]
    finer = np.array([np.interp(wavelengths, coarse, one[:N_XP]) for one in flux])
    reference = reference_flux(flux, np.ones(flux.shape, bool), CHANNELS.bp, CHANNELS.rp)
    return (finer / reference[:, None]).astype("f2")


def replaced(data, **columns):
    """The same stars with some columns replaced."""
    return dataclasses.replace(data, **columns)


def table_of(data):
    """Columns `OBSERVED` of stars, and `FINE` where they have it, which may be changed."""
    values = (data.flux, data.flux_err, data.parallax, data.parallax_err)
    finer = {} if data.fine is None else {FINE: data.fine.copy()}
    return {name: value.copy() for name, value in zip(OBSERVED, values, strict=True)} | finer


N_FEATURES = 14  # of the confidences, and two more a label


def make_trained(stellar, offset=3.0, weight=0.0, highest=(20.0, 20.0), alarms=NO_ALARMS, **errors):
    """A `TrainedModel` with constant confidences (unless weight) and a wide training range.

    offset: of the confidences, of all or one a label. highest: E and error level trained on.
    errors: fields of the `ErrorModel`, of one level where they are not told.
    """
    rng, n_labels = np.random.default_rng(0), len(stellar.labels)
    at, place = stellar.coordinates, of_labels(stellar.labels.forward)
    p, corners = N_FEATURES + 2 * at.n_labels, np.meshgrid(*[[-1, 1]] * at.n_labels)
    confidence = Logistic(
        rng.normal(size=p),
        rng.normal(size=2 * p),
        np.ones(2 * p),
        weight * rng.normal(size=(n_labels, 2 * p)),
        np.broadcast_to(np.asarray(offset, "f8"), n_labels).copy(),
    )
    theta = MEAN[place] + 8 * SCALE[place] * np.reshape(corners, (at.n_labels, -1)).T
    limits = np.stack([np.array([0, -20]), np.asarray(highest, "f8")])
    faces = TrainingRange.of_stars(theta, np.zeros(len(theta)), np.zeros(len(theta))).faces
    alone = vars(ErrorModel.curvature_alone(len(at)))
    return TrainedModel(
        stellar, ErrorModel(**alone | errors), confidence, TrainingRange(faces, limits), alarms
    )
