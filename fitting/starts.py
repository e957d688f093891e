"""Where to start: templates of the prior, compared in ln flux with one matrix product.

Dust and distance are linear in ln flux, so they are projected out of stars and templates alike and
come back as estimates of E and ln plx for each pair, which must be compatible with E > 0 and with
the parallax.
"""

import itertools

import numpy as np

from fitting.families import N_FAMILIES, Families
from fitting.objective import gaussian_prior
from pipeline.quiet_tensorflow import tf

N_TEMPLATES = 512
TEMPLATE_WIDENING = 1.4
TEMPLATE_MIN_NM = 442.0  # bluer, the flux of red stars is noise
TEMPLATE_N_PCA = 12
TEMPLATE_LN_FLUX_ERR = 0.04  # distance of a star to the nearest template, per channel
TEMPLATE_PLX_ERR = 0.15  # relative, of a template's parallax
TEMPLATE_EXT_ERR = 0.05  # of its E, below 0
BESIDE_DIRECT = 1.0  # of z: templates of its family that are nearer to the direct estimate
# are not tried
START_EXT_RANGE = (0.02, 8.0)
START_LN_EXT = -2.0  # without a spectrum
START_MARGIN = 5.0  # a family this much worse (in chi^2) than the best is tried as well


class StartSearch:
    """Finds starts for stars under a `StellarModel`. seed: of the templates."""

    def __init__(self, model, seed=0):
        self.model, self.at = model, model.coordinates
        self.families = Families(model.labels)
        rng = np.random.default_rng(seed)
        z = model.prior.sample(N_TEMPLATES, rng, TEMPLATE_WIDENING)
        z = np.clip(z, self.at.lower[self.at.z], self.at.upper[self.at.z])
        family = self.families.of(model.theta(z))
        order = np.argsort(family, kind="stable")
        self.z, self.family = z[order].astype("f4"), family[order]
        self.ln_flux = model.flux.ln_flux(tf.constant(self.z)).numpy()
        self.curve = np.exp(model.flux.ln_ext_curve.numpy())
        self.ln_prior = model.prior.ln_density_z(tf.constant(self.z)).numpy()
        n_xp = model.channels.n_xp
        self.usable = np.flatnonzero(model.channels.wavelengths[:n_xp] >= TEMPLATE_MIN_NM)
        self._tables = {}
        self._search_tf = tf.function(self._search)

    def _table(self, channels):
        """Projection and template coordinates for one set of XP channels (cached)."""
        key = channels.tobytes()
        if key not in self._tables:
            design = np.stack([2.0 * np.ones(len(channels)), -self.curve[channels]], 1)
            fit = np.linalg.pinv(design)  # -> (ln plx, E)
            t = self.ln_flux[:, channels]
            left = t - (t @ fit.T) @ design.T
            _, _, axes = np.linalg.svd(left - left.mean(0), full_matrices=False)
            axes = axes[:TEMPLATE_N_PCA]
            away = axes @ (np.eye(len(channels)) - design @ fit) / TEMPLATE_LN_FLUX_ERR
            project = np.concatenate([away, fit]).T
            padded = np.zeros((len(self.ln_flux[0]), project.shape[1]))
            padded[channels] = project
            coords = t @ project
            self._tables[key] = tuple(tf.constant(a, tf.float32) for a in (padded, coords))
        return self._tables[key]

    def _search(self, ln_flux, plx, plx_ivar, z_direct, project, coords):
        x = ln_flux @ project  # (B, n_pca + 2)
        n = project.shape[1] - 2
        t, s = coords[:, :n], x[:, :n]
        cost = (
            tf.reduce_sum(s * s, 1)[:, None]
            + tf.reduce_sum(t * t, 1)[None]
            - 2.0 * tf.matmul(s, t, transpose_b=True)
        )
        ln_plx = x[:, n, None] - coords[None, :, n]  # (B, n_templates)
        ext = x[:, n + 1, None] - coords[None, :, n + 1]
        low, high = self.at.lower[self.at.ln_plx], self.at.upper[self.at.ln_plx]
        p = tf.exp(tf.clip_by_value(ln_plx, low, high))
        w = plx_ivar[:, None]
        cost += w * (p - plx[:, None]) ** 2 / (1.0 + w * (TEMPLATE_PLX_ERR * p) ** 2)
        cost += (tf.minimum(ext, 0.0) / TEMPLATE_EXT_ERR) ** 2 - 2.0 * self.ln_prior[None]
        best = [tf.reduce_min(cost[:, a:b], 1) for a, b in self._family_slices()]
        index = [a + tf.argmin(cost[:, a:b], 1, tf.int32) for a, b in self._family_slices()]
        index = tf.stack(index, 1)
        # ln plx and E at the direct estimate.
        soft = x[:, n:] - self.model.flux.ln_flux(z_direct) @ project[:, n:]
        return (
            tf.stack(best, 1),
            index,
            tf.gather(ln_plx, index, batch_dims=1),
            tf.gather(ext, index, batch_dims=1),
            soft,
        )

    def _family_slices(self):
        edges = np.searchsorted(self.family, np.arange(N_FAMILIES + 1))
        return [(a, b) for a, b in itertools.pairwise(edges) if b > a]

    def find(self, data, batch_size, z_direct=None, every_family=None):
        """Starts u (N, k, n) of each star, and which of them are worth a try (N, k) bool: all, or
        those of families not far behind, as every_family says; None: all of stars without a useful
        parallax.

        The first is at the direct estimate z_direct (N, K), if there is one; the others are the
        best templates of each family, best first, but for one that would start beside it.
        """
        at = self.at
        starts = np.zeros((len(data), 1 + N_FAMILIES, len(at)), "f4")
        starts[:, :, at.ln_ext] = START_LN_EXT  # without a spectrum: the centre of the prior
        tried = np.zeros(starts.shape[:2], bool)
        tried[:, 1] = True
        used = data.observed.used[:, : self.model.channels.n_xp] > 0
        wide = ~data.useful_parallax if every_family is None else np.full(len(data), every_family)
        for pattern, alike in _patterns(used):
            channels = self.usable[pattern[self.usable]]
            if len(channels) <= TEMPLATE_N_PCA:
                continue
            for k in range(0, len(alike), batch_size):
                rows = alike[k : k + batch_size]
                z = np.zeros((len(rows), at.n_labels)) if z_direct is None else z_direct[rows]
                starts[rows], cost = self._find_batch(data, rows, channels, batch_size, z)
                margin = np.where(wide[rows, None], np.inf, START_MARGIN)
                tried[rows] = cost < cost[:, 1:2] + margin
        if z_direct is None:
            return starts[:, 1:], tried[:, 1:]
        z = starts[:, :, at.z]
        family = self.families.of(self.model.theta(z).reshape(-1, at.n_labels)).reshape(tried.shape)
        beside = (family == family[:, :1]) & (np.abs(z - z[:, :1]).max(2) < BESIDE_DIRECT)
        beside[:, 0] = False
        return starts, tried & ~(beside & tried[:, :1])

    def _find_batch(self, data, rows, channels, batch_size, z_direct):
        """Starts (m, k, n) and how unlikely they are (m, k), inf where there is none, for at most
        `batch_size` stars."""
        at, m = self.at, len(rows)
        ln_flux = np.zeros((batch_size, data.flux.shape[1]), "f4")
        ln_flux[:m, channels] = data.observed.value[rows][:, channels]
        plx, ivar = np.zeros((2, batch_size), "f4")
        plx[:m], ivar[:m] = gaussian_prior(data.parallax[rows], data.parallax_err[rows])
        z = np.zeros((batch_size, at.n_labels), "f4")
        z[:m] = z_direct
        out = self._search_tf(ln_flux, plx, ivar, z, *self._table(channels))
        cost, index, ln_plx, ext, soft = (x.numpy()[:m] for x in out)  # (m, families), (m, 2)
        order = np.argsort(cost, 1)
        cost, index, ln_plx, ext = (
            np.take_along_axis(a, order, 1) for a in (cost, index, ln_plx, ext)
        )
        u = np.zeros((m, 1 + N_FAMILIES, len(at)), "f4")
        k = 1 + order.shape[1]
        u[:, 0, at.z], u[:, 1:k, at.z] = z_direct, self.z[index]
        u[:, 0, at.ln_plx], u[:, 1:k, at.ln_plx] = soft[:, 0], ln_plx
        u[:, 0, at.ln_ext] = np.log(np.clip(soft[:, 1], *START_EXT_RANGE))
        u[:, 1:k, at.ln_ext] = np.log(np.clip(ext, *START_EXT_RANGE))
        all_costs = np.full(u.shape[:2], np.inf)
        all_costs[:, 0], all_costs[:, 1:k] = -np.inf, cost
        return at.clip(u), all_costs


def _patterns(used):
    """(pattern (n,) bool, rows (m,) that have it) of used (N, n) bool, patterns in their order as
    rows of a table."""
    packed = np.ascontiguousarray(np.packbits(used, axis=1))
    keys = packed.view(f"V{packed.shape[1]}")[:, 0]
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    for i, row in enumerate(first):
        yield used[row], np.flatnonzero(which == i)
