"""The posterior density of stars at many places at once, as step 10 maximises it.

It is that of `fitting.objective`, exp(-phi) in the coordinates u = (z, xi, ln E, ln plx), in which
the prior of E is flat in E, and that of the parallax flat in ln plx. The noise is held where step
10 evaluates it, at the solutions: of two, a place takes that of the nearer one in type.

The brightness of a star is known far better than the rest, so ln plx lies in a thin sheet, bent as
the model is. Places are therefore x = (z, xi, ln E, e): ln plx is its best value for the others
plus e times its width there, and e is about normal whatever the others are. Both follow from the
others alone, so that the density in x is that in u times the width.
"""

from dataclasses import dataclass

import numpy as np

from fitting.minimiser import Minimiser
from fitting.sampling.sampler import WALKERS
from pipeline.quiet_tensorflow import compiled, tf

PLACES = WALKERS // 2  # of a star in a call


@dataclass
class _Batch:
    """Stars of a call: their places among those asked for, tensors, noise at both solutions,
    and their types (2, K, B) there."""

    places: np.ndarray
    data: dict
    noises: tuple
    centres: tf.Tensor


class StarDensity:
    """The density of stars under an `Objective`; batch_size: stars in a TensorFlow call."""

    def __init__(self, objective, batch_size):
        self.objective, self.at = objective, objective.at
        self.batches = Minimiser(objective, batch_size)
        self._ln_density_tf = compiled(self._ln_density)
        self._whitening_tf = compiled(objective.whitening)
        self._tables_tf = compiled(objective.model.noise.tables)

    def of(self, data, solutions):
        """The density of `StarData` as `sampler.sample` takes it; solutions (N, 2, n): u of the
        best two, the second the first again where there is none."""

        def density(stars):
            parts = list(self._parts(data, solutions, np.asarray(stars)))

            def ln_density(x):
                """ln density (M, W') float64 and ln plx (M, W', 1) of places x (M, W', n)."""
                out = np.empty((2, *x.shape[:2]))
                for part in parts:
                    padded = x[part.places[self.batches.padding(len(part.places))]]
                    places = tf.constant(padded.transpose(1, 2, 0), tf.float32)
                    found = self._ln_density_tf(places, part.data, part.noises, part.centres)
                    out[:, part.places] = found.numpy().transpose(0, 2, 1)[:, : len(part.places)]
                return out[0], out[1][..., None]

            return ln_density

        return density

    def _parts(self, data, solutions, stars):
        """Yield the `_Batch`es of the stars."""
        tables = {"noise_tables": self._tables_tf()}
        for places, general in self.batches.parts(data, stars):
            rows = stars[places]
            batch = self.batches.batch(data, rows)
            u = solutions[rows[self.batches.padding(len(rows))]].astype("f4")
            noises = tuple(
                self._whitening_tf(tf.constant(u[:, k].T), batch | tables, general)
                for k in range(2)
            )
            centres = tf.constant(u[:, :, self.at.z].transpose(1, 2, 0))
            yield _Batch(places, batch, noises, centres)

    def _ln_density(self, x, data, noises, centres):
        """ln density and ln plx (2, k, B) at places x (k, n, B)."""
        objective, at = self.objective, self.at
        free, width_off = x[:, : at.ln_plx], x[:, at.ln_plx]
        residual = objective.residuals(tf.concat([free, 0.0 * x[:, at.ln_plx :]], 1), data)
        used = data["used"]
        start = 0.5 * tf.reduce_sum(residual * used, 2) / tf.reduce_sum(used, 1)  # (k, B)
        residual -= 2.0 * start[:, :, None]
        z = tf.transpose(free[:, at.z], (1, 0, 2))
        known = objective.term.value(z, tf.exp(free[:, at.ln_ext]), data)
        away = tf.reduce_sum((z - centres[:, :, None]) ** 2, 1)  # (2, k, B)
        out = []
        for noise in noises:
            gram = objective.brightness_gram(residual, noise)
            off, width, chi2 = self._around_best(start, width_off, gram, data)
            u = tf.concat([tf.transpose(free, (1, 0, 2)), (start + off)[None]], 0)
            phi = objective.phi(u, chi2, known, data) - noise.ln_det
            inside = tf.reduce_all(u <= at.upper[:, None, None], 0)
            inside &= tf.reduce_all(u >= at.lower[:, None, None], 0)
            ln_density = tf.where(inside, tf.math.log(width) - phi, -np.inf)
            out.append(tf.stack([ln_density, start + off]))
        return tf.where(away[1] < away[0], out[1], out[0])

    def _around_best(self, ln_plx, e, gram, data):
        """Change of ln plx (k, B) to e widths beside its best, its width, and chi^2 there; gram
        (2, 2, k, B): of `Objective.brightness_gram` at ln_plx."""
        best, chi2 = self.objective.best_ln_plx(ln_plx, gram, data)
        nu = self.objective.model.noise.nu
        weight = (nu + tf.reduce_sum(data["used"], 1)) / (nu + chi2)
        plx = tf.exp(ln_plx + best)
        slope = data["plx_ivar"] * plx * (plx - data["plx"])
        curvature = data["plx_ivar"] * plx * plx + tf.maximum(slope, 0.0)
        width = tf.math.rsqrt(weight * gram[0, 0] + curvature + 1e-6)
        off = best + e * width
        chi2 = gram[1, 1] - 2.0 * off * gram[0, 1] + off * off * gram[0, 0]
        return off, width, tf.maximum(chi2, 0.0)
