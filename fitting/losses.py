"""The losses of the training, in TensorFlow: of a batch as `fitting.batches` makes it."""

import numpy as np

from fitting.algebra import marginal_chi2, student_misfit
from pipeline.quiet_tensorflow import tf
from pipeline.schema import BANDS

FLAT_EXT_ERR = 3.0  # prior of E where it is to be found out
MIN_NOISE_EXT = 0.02  # E at which the noise is evaluated is at least this
LOSS_LINEAR_UNTIL = 6.0  # the posterior loss of a star grows as its logarithm beyond
DIRECT_NU = 6.0  # degrees of freedom of the direct estimate's errors: labels are wrong
SPECTRUM_SCATTER = 0.05  # of fluxes about the mean spectrum, besides their errors
MOST_LN_RATIO = 3.0  # of flux over model
RIDGE = 1e-3
EXT_SHARE = 0.3  # of the spectrum loss: that of the star's own E, against what is known of it
PIVOT_NM, EXTINCTION_ERR = 550.0, 0.1  # of ln A(band) / A(550 nm), where it is held
LN_CDF_SERIES = -4.0  # below, the ln of the normal distribution function goes as its tail


class Losses:
    """The losses of stars under a `StellarModel`, each (B,)."""

    def __init__(self, model):
        self.model = model

    def _whitened(self, batch, columns, residuals):
        """Nuisance columns and residuals, whitened, and ln |det S|."""
        ext = tf.maximum(batch["ext"], MIN_NOISE_EXT)
        whitening = self.model.noise.whitening(
            batch["z_noise"], ext, batch["rel_err"], batch["used"], batch["features"]
        )
        white, k = whitening.of(tf.concat([columns, residuals], 1)), columns.shape[1]
        return white[:, :k], white[:, k:], whitening.ln_det

    def _curve_columns(self, batch):
        """R at xi = 0 (B, n_wl) and the change of ln flux with xi there."""
        curve, slope = self.model.flux.ext_curve(tf.zeros_like(batch["ext"]))
        return curve, -tf.maximum(batch["ext"], MIN_NOISE_EXT)[:, None] * curve * slope

    def likelihood(self, batch):
        """-ln p(fluxes | label, E, parallax) per flux: the errors of all three and xi are
        marginalised."""
        ln_flux, dz = self.model.flux.ln_flux_and_jacobian(batch["z"])
        curve, dxi = self._curve_columns(batch)
        residual = (
            batch["value"]
            - ln_flux
            + batch["ext"][:, None] * curve
            - 2.0 * batch["ln_plx"][:, None]
        )
        plx = 2.0 * batch["ln_plx_err"][:, None] * tf.ones_like(curve)
        columns = tf.concat(
            [
                tf.stack([curve * batch["ext_err"][:, None], plx, dxi], 1),
                tf.stop_gradient(dz) * batch["z_err"][:, :, None],
            ],
            1,
        )
        u, r, ln_det = self._whitened(batch, columns, residual[:, None])
        chi2, _, _, ln_det_m = marginal_chi2(r, u)
        n = tf.reduce_sum(batch["used"], 1)
        misfit = student_misfit(chi2[:, 0], n, self.model.noise.nu)
        return (misfit + 0.5 * ln_det_m - ln_det) / tf.maximum(n, 1.0)

    def posterior(self, batch):
        """-ln probability of the label among the batch's candidate types, given the fluxes.

        The label and the other candidates are drawn alike about a common centre, so they are
        exchangeable but for the prior and the fluxes: this is small where the posterior is right,
        in place and in width. E > 0, parallax and xi are marginalised, and so are the errors of the
        label where the batch has them.
        """
        candidates = batch["candidates"]  # (B, k, K)
        shape = candidates.shape[:2]
        flat = tf.reshape(candidates, (-1, candidates.shape[2]))
        ln_flux = tf.reshape(self.model.flux.ln_flux(flat), (*shape, -1))
        curve, dxi = self._curve_columns(batch)
        residual = batch["value"][:, None] - ln_flux - 2.0 * batch["ln_plx"][:, None, None]
        plx = 2.0 * batch["ln_plx_err"][:, None] * tf.ones_like(curve)
        columns = tf.stack([-FLAT_EXT_ERR * curve, plx, dxi], 1)
        if "label_err" in batch:
            _, dz = self.model.flux.ln_flux_and_jacobian(batch["z_noise"])
            columns = tf.concat([columns, dz * batch["label_err"][:, :, None]], 1)
        u, r, _ = self._whitened(batch, columns, residual)
        chi2, amplitude, inverse, _ = marginal_chi2(r, u)
        n = tf.reduce_sum(batch["used"], 1)[:, None]
        # The part of the Gaussian in E that lies at E > 0, relative to its width.
        positive = _ln_normal_cdf(amplitude[:, :, 0] * tf.math.rsqrt(inverse[:, 0, 0])[:, None])
        ln_prior = tf.reshape(self.model.prior.ln_density_z(flat), shape)
        ln_post = ln_prior + positive - student_misfit(chi2, n, self.model.noise.nu)
        loss = tf.reduce_logsumexp(ln_post, 1) - ln_post[:, 0]
        excess = tf.maximum(loss / LOSS_LINEAR_UNTIL, 1.0)
        bent = LOSS_LINEAR_UNTIL * (1.0 + tf.math.log(excess))
        return tf.where(loss < LOSS_LINEAR_UNTIL, loss, bent)

    def spectrum(self, batch):
        """Misfit of the label's mean spectrum per flux, whatever the noise model is: else mean and
        noise make up for each other where the noise is wide, and spectra are not predicted.

        Of fluxes, not their ln, so that noise is no bias; brightness and E are the star's own, by
        weighted least squares, and E is held to what is known of it, so that the mean spectrum is
        free of dust; Cauchy losses, for labels and fluxes that are wrong.
        """
        ln_flux = self.model.flux.ln_flux(batch["z"])
        curve, _ = self._curve_columns(batch)
        residual = batch["value"] - ln_flux + batch["ext"][:, None] * curve
        variance = batch["rel_err"] ** 2 + SPECTRUM_SCATTER**2
        weight = batch["used"] / variance
        columns = tf.stack([tf.ones_like(curve), -curve], 1)  # (B, 2, n_wl)
        gram = tf.einsum("bkw,bw,blw->bkl", columns, weight, columns) + RIDGE * tf.eye(2)
        own = tf.linalg.solve(gram, tf.einsum("bkw,bw->bk", columns, weight * residual)[..., None])
        own = own[..., 0]
        residual -= tf.einsum("bkw,bk->bw", columns, own)
        # Relative to the model: flux / model - 1, over its scatter.
        ratio = tf.exp(tf.clip_by_value(residual, -MOST_LN_RATIO, MOST_LN_RATIO))
        off = batch["above_floor"] * ratio - 1.0
        variance = (batch["rel_err"] * ratio) ** 2 + SPECTRUM_SCATTER**2
        terms = batch["used"] * tf.math.log1p(off * off / variance)
        of_ext = tf.math.log1p((own[:, 1] / batch["ext_err"]) ** 2)
        n = tf.maximum(tf.reduce_sum(batch["used"], 1), 1.0)
        return tf.reduce_sum(terms, 1) / n + EXT_SHARE * of_ext

    def extinction_law(self, batch):
        """Misfit of the extinction curve at xi = 0 to what is held of it (`Band.extinction`); the
        same for all stars."""
        curve = self.model.flux.ln_ext_curve
        places, pivot, held = held_extinction(self.model.channels)
        off = tf.gather(curve, places) - curve[pivot] - held
        misfit = 0.5 * tf.reduce_sum((off / EXTINCTION_ERR) ** 2)
        return misfit * tf.ones_like(batch["ext"])

    def direct(self, batch):
        """-ln p(label) by the direct estimate, Student-t, up to a constant; the mean over its
        networks. The errors of the labels count as its own."""
        z, ln_sigma = self.model.direct.outputs(batch["inputs"])
        off = (batch["z"] - z) * tf.exp(-ln_sigma)
        terms = ln_sigma + 0.5 * (DIRECT_NU + 1) * tf.math.log1p(off * off / DIRECT_NU)
        return tf.reduce_mean(tf.reduce_sum(terms, 2), 0)

    def distance(self, batch):
        """-ln p(ln flux at 1 kpc) by the networks, Student-t, up to a constant; the error of the
        parallax is not theirs."""
        z, ln_sigma = self.model.distance.outputs(batch["inputs"])
        variance = tf.exp(2.0 * ln_sigma[:, :, 0]) + batch["z_err"] ** 2
        off2 = (batch["z"] - z[:, :, 0]) ** 2 / variance
        terms = 0.5 * tf.math.log(variance)
        terms += 0.5 * (DIRECT_NU + 1) * tf.math.log1p(off2 / DIRECT_NU)
        return tf.reduce_mean(terms, 0)

    def oddity(self, batch):
        """-ln probability of the kind that a star is."""
        logits = self.model.oddity.forward(batch["inputs"])
        ln_p = tf.nn.log_softmax(logits)
        return -tf.reduce_mean(tf.reduce_sum(batch["kind"] * ln_p, 2), 0)


def held_extinction(channels, bands=BANDS):
    """Places (m,) of the bands where the extinction curve is held, that of the XP flux next to
    PIVOT_NM, and ln of the curve at the bands relative to it (m,) float32."""
    known = {band.name: band.extinction for band in bands if band.extinction is not None}
    places = [k for k, name in enumerate(channels.names) if name in known]
    pivot = np.argmin(np.abs(channels.wavelengths[: channels.n_xp] - PIVOT_NM))
    ratios = [known[channels.names[k]] for k in places]
    return np.array(places, int), int(pivot), np.log(ratios).astype("f4")


def _ln_normal_cdf(x):
    """ln of the normal distribution function, without cancellation in its lower tail."""
    bent = tf.maximum(x, LN_CDF_SERIES)
    tail = tf.where(x < LN_CDF_SERIES, 0.5 * (x * x - LN_CDF_SERIES**2), 0.0)
    return tf.math.log(0.5 * tf.math.erfc(-bent / np.sqrt(2.0))) - tail
