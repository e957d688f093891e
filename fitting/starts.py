"""Where to start: templates of the prior, compared in ln flux with one matrix product.

Dust and distance are linear in ln flux, so they are projected out of stars and templates alike and
come back as estimates of E and ln plx for each pair, which must be compatible with E > 0 and with
the parallax.
"""

import itertools

import numpy as np

from fitting.families import N_FAMILIES, Families
from fitting.objective import gaussian_prior
from pipeline.quiet_tensorflow import compiled, tf

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
        self._search_tf, self._at_direct_tf = map(compiled, (self._search, self._at_direct))

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

    def _at_direct(self, ln_flux, z_direct, project, coords):
        """ln plx and E (B, 2) at the direct estimate."""
        n = coords.shape[1] - 2
        return (ln_flux - self.model.flux.ln_flux(z_direct)) @ project[:, n:]

    def _search(self, ln_flux, plx, plx_ivar, project, coords):
        """Of the best template of each family: cost, index, ln plx and E (B, families)."""
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
        chosen = (tf.gather(x, index, batch_dims=1) for x in (ln_plx, ext))
        return tf.stack(best, 1), index, *chosen

    def _family_slices(self):
        edges = np.searchsorted(self.family, np.arange(N_FAMILIES + 1))
        return [(a, b) for a, b in itertools.pairwise(edges) if b > a]

    def find(self, data, batch_size, z_direct=None, every_family=None, only_direct=None):
        """Starts u (N, k, n) of each star, and which of them are worth a try (N, k) bool: all, or
        those of families not far behind, as every_family says; None: all of stars without a useful
        parallax. Of the stars only_direct (N,) bool, default none, the direct estimate alone.

        The first is at the direct estimate z_direct (N, K), if there is one; the others are the
        best templates of each family, best first, but for one that would start beside it.
        """
        at, n = self.at, len(data)
        starts = np.zeros((n, 1 + N_FAMILIES, len(at)), "f4")
        starts[:, :, at.ln_ext] = START_LN_EXT  # without a spectrum: the centre of the prior
        tried = np.zeros(starts.shape[:2], bool)
        tried[:, 1] = True
        used = data.observed.used[:, : self.model.channels.n_xp] > 0
        wide = ~data.useful_parallax if every_family is None else np.full(n, every_family)
        searched = np.ones(n, bool) if only_direct is None else ~only_direct
        for pattern, alike in _patterns(used):
            channels = self.usable[pattern[self.usable]]
            if len(channels) <= TEMPLATE_N_PCA:
                continue
            table = self._table(channels)
            if z_direct is not None:
                for rows in _parts(alike, batch_size):
                    ln_flux = self._ln_flux(data, rows, channels, batch_size)
                    starts[rows, 0] = self._from_direct(ln_flux, z_direct[rows], table)
                    tried[rows, 0], tried[rows, 1] = True, False
            for rows in _parts(alike[searched[alike]], batch_size):
                ln_flux = self._ln_flux(data, rows, channels, batch_size)
                plx = gaussian_prior(data.parallax[rows], data.parallax_err[rows])
                starts[rows, 1:], cost = self._of_families(ln_flux, plx, table)
                margin = np.where(wide[rows, None], np.inf, START_MARGIN)
                tried[rows, 1:] = cost < cost[:, :1] + margin
        if z_direct is None:
            return starts[:, 1:], tried[:, 1:]
        z = starts[:, :, at.z]
        family = self.families.of(self.model.theta(z).reshape(-1, at.n_labels)).reshape(tried.shape)
        beside = (family == family[:, :1]) & (np.abs(z - z[:, :1]).max(2) < BESIDE_DIRECT)
        beside[:, 0] = False
        return starts, tried & ~(beside & tried[:, :1])

    def _ln_flux(self, data, rows, channels, batch_size):
        """ln fluxes (batch_size, n_wl) of the stars `rows` in some channels, 0 elsewhere."""
        ln_flux = np.zeros((batch_size, data.flux.shape[1]), "f4")
        ln_flux[: len(rows), channels] = data.observed.value[rows][:, channels]
        return ln_flux

    def _from_direct(self, ln_flux, z_direct, table):
        """Starts (m, n) at the direct estimates z_direct (m, K)."""
        at, m = self.at, len(z_direct)
        z = np.zeros((len(ln_flux), at.n_labels), "f4")
        z[:m] = z_direct
        ln_plx, ext = self._at_direct_tf(ln_flux, z, *table).numpy()[:m].T
        u = np.zeros((m, len(at)), "f4")
        u[:, at.z], u[:, at.ln_plx] = z[:m], ln_plx
        u[:, at.ln_ext] = np.log(np.clip(ext, *START_EXT_RANGE))
        return at.clip(u)

    def _of_families(self, ln_flux, parallax, table):
        """Starts (m, families, n), best first, and how unlikely they are (m, families), inf where
        there is none, of stars with a parallax (value, inverse variance), each (m,)."""
        at, m = self.at, len(parallax[0])
        plx, ivar = np.zeros((2, len(ln_flux)), "f4")
        plx[:m], ivar[:m] = parallax
        out = (x.numpy()[:m] for x in self._search_tf(ln_flux, plx, ivar, *table))
        cost, *found = out  # (m, families)
        order = np.argsort(cost, 1)
        cost, index, ln_plx, ext = (np.take_along_axis(x, order, 1) for x in (cost, *found))
        k = order.shape[1]
        u, costs = np.zeros((m, N_FAMILIES, len(at)), "f4"), np.full((m, N_FAMILIES), np.inf)
        u[:, :k, at.z], u[:, :k, at.ln_plx], costs[:, :k] = self.z[index], ln_plx, cost
        u[:, :k, at.ln_ext] = np.log(np.clip(ext, *START_EXT_RANGE))
        return at.clip(u), costs


def _parts(rows, size):
    """The rows, at most `size` at a time."""
    return (rows[k : k + size] for k in range(0, len(rows), size))


def _patterns(used):
    """(pattern (n,) bool, rows (m,) that have it) of used (N, n) bool, patterns in their order as
    rows of a table."""
    packed = np.ascontiguousarray(np.packbits(used, axis=1))
    keys = packed.view(f"V{packed.shape[1]}")[:, 0]
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    for i, row in enumerate(first):
        yield used[row], np.flatnonzero(which == i)
