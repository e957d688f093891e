"""The losses of the training against Gaussians written out, star by star; and their gradients."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from demo_model import RECIPE
from model_case import DIRECT_ALPHA, LABEL_SETS, N_WL, add_direct, add_screens, make_model
from scipy import stats
from scipy.special import logsumexp
from training_case import labelled, make_batches, stage_of

from fitting.losses import (
    EXT_SHARE,
    EXTINCTION_ERR,
    FLAT_EXT_ERR,
    LOSS_LINEAR_UNTIL,
    MIN_NOISE_EXT,
    RIDGE,
    SPECTRUM_SCATTER,
    Losses,
    held_extinction,
)
from pipeline.schema import BANDS

LABELS = {"3": LABEL_SETS[3], "direct": DIRECT_ALPHA}
N = 8


class Case:
    """A model, its losses and stars; batches of N of them."""

    def __init__(self, labels):
        self.model = add_screens(add_direct(make_model(labels)))
        self.stars = labelled(self.model)
        self.losses = Losses(self.model)
        self.batches = make_batches(self.model, self.stars)

    def batch(self, kind, n=N, seed=4):
        return self.batches.of(np.arange(n), stage_of(kind), np.random.default_rng(seed))


@pytest.fixture(scope="module", params=LABELS)
def case(request):
    return Case(LABELS[request.param])


class Dense:
    """What a batch says of star i, in float64: covariance and residuals of the fluxes seen."""

    def __init__(self, model, batch, i):
        self.batch, self.i, flux = {k: v[i].astype("f8") for k, v in batch.items()}, i, model.flux
        one = {k: v[i : i + 1] for k, v in batch.items()}
        self.ext = max(self.batch["ext"], MIN_NOISE_EXT)
        whitening = model.noise.whitening(
            one["z_noise"],
            np.maximum(one["ext"], np.float32(MIN_NOISE_EXT)),
            one["rel_err"],
            one["used"],
            one["features"],
        )
        self.seen = batch["used"][i] > 0
        s = whitening.transposed()[0].numpy().T.astype("f8")
        block = np.ix_(self.seen, self.seen)
        self.covariance = np.linalg.inv((s.T @ s)[block])
        curve, by_xi = (x[0].numpy().astype("f8") for x in flux.ext_curve(np.zeros(1, "f4")))
        self.curve, self.by_xi = curve, self.ext * curve * by_xi
        self.nu, self.n = float(model.noise.nu), self.seen.sum()
        self.flux, self.one = flux, one

    def slopes(self, name):
        """d ln flux / dz (K, n) at a type of the batch."""
        return self.flux.ln_flux_and_jacobian(tf.constant(self.one[name]))[1][0].numpy()

    def residual(self, z):
        """Residuals (k, n) of types z (k, K), before dust."""
        ln_flux = self.flux.ln_flux(z.astype("f4")).numpy().astype("f8")
        return self.batch["value"] - ln_flux - 2 * self.batch["ln_plx"]

    def marginal(self, nuisances):
        """The columns (n, k) of nuisances that are seen, and the covariance with them."""
        columns = np.stack(nuisances, 1)[self.seen]
        return columns, self.covariance + columns @ columns.T


def test_likelihood_loss_is_that_of_a_t_distribution_written_out(case):
    """The errors of the label, of E and of the parallax, and xi, added to the covariance."""
    batch, expected = case.batch("likelihood"), []
    for i in range(N):
        star = Dense(case.model, batch, i)
        own = star.batch
        nuisances = [
            own["ext_err"] * star.curve,
            2 * own["ln_plx_err"] * np.ones(N_WL),
            star.by_xi,
            *(star.slopes("z") * own["z_err"][:, None]),
        ]
        _, total = star.marginal(nuisances)
        residual = (star.residual(own["z"][None])[0] + own["ext"] * star.curve)[star.seen]
        density = stats.multivariate_t(np.zeros(star.n), total, df=star.nu)
        peak = stats.multivariate_t(np.zeros(star.n), np.eye(star.n), df=star.nu)
        # But for what depends on nu alone.
        ln_p = density.logpdf(residual) - peak.logpdf(np.zeros(star.n))
        expected.append(-ln_p / star.n)
    np.testing.assert_allclose(case.losses.likelihood(batch), expected, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("kind", ["posterior", "calibration"])
def test_posterior_loss_is_that_of_gaussians_written_out(case, kind):
    """Nuisances (and, to calibrate, the label's errors) added to the covariance, star by star."""
    batch, expected = case.batch(kind), []
    for i in range(N):
        star = Dense(case.model, batch, i)
        own = star.batch
        nuisances = [
            FLAT_EXT_ERR * star.curve,
            2 * own["ln_plx_err"] * np.ones(N_WL),
            star.by_xi,
        ]
        if kind == "calibration":
            nuisances += list(star.slopes("z_noise") * own["z_err"][:, None])
        columns, total = star.marginal(nuisances)
        inverse = np.linalg.inv(total)
        residual = star.residual(own["candidates"])[:, star.seen]
        chi2 = np.einsum("ci,ij,cj->c", residual, inverse, residual)
        ext = -residual @ inverse @ columns[:, 0]  # of E / 3, whose column is -curve
        width = np.sqrt(1 - columns[:, 0] @ inverse @ columns[:, 0])
        ln_p = (
            case.model.prior.ln_density_z(batch["candidates"][i]).numpy()
            + stats.norm.logcdf(ext / width)
            - (star.nu + star.n) / 2 * np.log1p(chi2 / star.nu)
        )
        expected.append(logsumexp(ln_p) - ln_p[0])
    expected, limit = np.array(expected), LOSS_LINEAR_UNTIL
    bent = limit * (1 + np.log(np.maximum(expected / limit, 1)))
    expected = np.where(expected < limit, expected, bent)
    np.testing.assert_allclose(case.losses.posterior(batch), expected, rtol=2e-2, atol=2e-2)
    assert ("label_err" in batch) == (kind == "calibration")
    assert (expected < np.log(RECIPE["candidates"])).mean() > 0.3  # it says something


def test_spectrum_loss_is_a_cauchy_misfit_of_fluxes_written_out(case):
    """About the label's spectrum, brightness and E fitted star by star."""
    batch, expected = case.batch("posterior"), []
    for i in range(N):
        star = Dense(case.model, batch, i)
        own, seen = star.batch, star.seen
        residual = star.residual(own["z"][None])[0] + 2 * own["ln_plx"] + own["ext"] * star.curve
        columns = np.stack([np.ones(N_WL), -star.curve], 1)[seen]
        weight = 1 / (own["rel_err"] ** 2 + SPECTRUM_SCATTER**2)
        gram = columns.T @ (weight[seen, None] * columns) + RIDGE * np.eye(2)
        fitted = np.linalg.solve(gram, columns.T @ (weight * residual)[seen])
        # Back to fluxes: the model's, and what was observed, below the floor of ln flux too.
        observed = np.exp(own["value"][seen])
        model = observed / np.exp(residual[seen] - columns @ fitted)
        off = (observed * own["above_floor"][seen] - model) / model
        scatter2 = (own["rel_err"][seen] * observed / model) ** 2 + SPECTRUM_SCATTER**2
        of_ext = np.log1p((fitted[1] / own["ext_err"]) ** 2)
        expected.append(np.mean(np.log1p(off**2 / scatter2)) + EXT_SHARE * of_ext)
    np.testing.assert_allclose(case.losses.spectrum(batch), expected, rtol=5e-3, atol=1e-3)


def test_spectrum_loss_does_not_see_how_far_a_star_is(case):
    batch = case.batch("posterior")
    farther = batch | {"value": batch["value"] - np.float32(1.5)}
    np.testing.assert_allclose(
        case.losses.spectrum(farther), case.losses.spectrum(batch), rtol=2e-3
    )


def test_spectrum_loss_is_least_at_the_stars_own_spectra(case):
    """In whatever way all types are made brighter or fainter: here in the blue."""
    batch, offset = case.batch("posterior", 24), case.model.flux.mean_ln_flux
    before, losses = offset.numpy(), []
    blue = np.where(np.arange(N_WL) < N_WL // 4, 1.0, 0.0).astype("f4")
    for shift in (-0.3, 0.0, 0.3):
        case.model.flux.mean_ln_flux = tf.constant(before + np.float32(shift) * blue)
        losses.append(float(tf.reduce_mean(case.losses.spectrum(batch))))
    case.model.flux.mean_ln_flux = offset
    assert losses[1] < min(losses[0], losses[2])


def test_extinction_law_is_held_where_the_bands_say_so(case):
    flux = case.model.flux
    places, pivot, held = held_extinction(case.model.channels)
    assert [case.model.channels.names[k] for k in places] == ["Ks"]
    assert abs(case.model.channels.wavelengths[pivot] - 550) <= 5
    assert held == pytest.approx(np.log([b.extinction for b in BANDS if b.extinction]))
    before, batch = flux.ln_ext_curve.numpy(), case.batch("likelihood")
    for off in (0.0, 0.25):
        curve = before.copy()
        curve[places] = curve[pivot] + held + off
        flux.ln_ext_curve.assign(curve)
        expected = np.full(N, 0.5 * (off / EXTINCTION_ERR) ** 2)
        np.testing.assert_allclose(case.losses.extinction_law(batch), expected, rtol=1e-4)
    flux.ln_ext_curve.assign(before)
    nothing = [dataclasses.replace(band, extinction=None) for band in BANDS]
    assert not len(held_extinction(case.model.channels, nothing)[0])


def test_direct_loss_is_that_of_t_distributions_of_six_degrees(case):
    batch = case.batch("direct")
    z, ln_sigma = (x.numpy().astype("f8") for x in case.model.direct.outputs(batch["inputs"]))
    ln_p = stats.t(6).logpdf((batch["z"] - z) / np.exp(ln_sigma)) - ln_sigma - stats.t(6).logpdf(0)
    expected = -ln_p.sum(2).mean(0)
    np.testing.assert_allclose(case.losses.direct(batch), expected, rtol=1e-4, atol=1e-4)


# Groups of variables of which each loss has gradients. In the likelihood, dF/dtheta is held in the
# network's.
GRADIENTS = {
    "posterior": ["network", "extinction", "extinction_xi", "noise", "noise_level"],
    "likelihood": ["extinction", "extinction_xi", "noise"],
    "spectrum": ["network"],
    "extinction_law": ["extinction"],
    "direct": ["direct"],
    "distance": ["distance"],
    "oddity": ["oddity"],
}


def variables_of(model):
    flux, noise = model.flux, model.noise
    return {
        "network": flux.network_variables,
        "extinction": [flux.ln_ext_curve],
        "extinction_xi": [flux.ln_ext_curve_xi],
        "noise": noise.shape_variables,
        "noise_level": noise.level_variables,
        "direct": model.direct.variables,
        "distance": model.distance.variables,
        "oddity": model.oddity.variables,
    }


@pytest.mark.parametrize("kind", GRADIENTS)
def test_gradients_of_the_losses_are_those_of_differences(case, kind):
    stage = {"spectrum": "posterior", "extinction_law": "posterior"}.get(kind, kind)
    batch = case.batch(stage, 24)
    loss = getattr(case.losses, kind)
    if kind == "posterior":  # float32 has no digits for differences of what is far off
        tame = np.flatnonzero(loss(batch) < LOSS_LINEAR_UNTIL)
        assert len(tame) > 12
        batch = {name: values[tame] for name, values in batch.items()}
    for group in GRADIENTS[kind]:
        variables = variables_of(case.model)[group]
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(loss(batch))
        slopes = tape.gradient(value, variables)
        norm = float(tf.linalg.global_norm(slopes))
        step = 0.02 / norm if kind == "posterior" else 3e-4
        before, ends = [v.numpy() for v in variables], []
        for sign in (1, -1):  # a small step along the gradient, and one against it
            for v, old, slope in zip(variables, before, slopes, strict=True):
                v.assign(old + sign * step / norm * slope)
            ends.append(float(tf.reduce_sum(tf.cast(loss(batch), tf.float64))))
        for v, old in zip(variables, before, strict=True):
            v.assign(old)
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(norm, rel=0.03), group


def test_losses_of_wild_stars_are_finite(case):
    for kind in ("likelihood", "posterior", "calibration"):
        batch = case.batch(kind)
        batch["value"] = batch["value"] + np.float32(50)
        batch["ext"] = np.zeros_like(batch["ext"])
        loss = "posterior" if kind == "calibration" else kind
        assert np.isfinite(getattr(case.losses, loss)(batch)).all()
