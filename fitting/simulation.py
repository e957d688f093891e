"""Simulated stars: observed as the forward model believes that stars are.

- type theta from the mixture prior; xi from N(0, 1); E uniform in 0..MAX_EXT, as its prior is flat;
- reported relative errors, missing bands and brightness of a real star each, the parallax following
  from the brightness (its prior in ln parallax is flat);
- ln fluxes from the forward model plus a draw of the noise model, evaluated at the true star:
  multivariate Student-t, as the likelihood has it;
- an observed parallax with an error of 20% of it, drawn so that the true one follows likelihood
  times prior; or none.
"""

import numpy as np

from fitting.observed import MIN_FLUX_SIGMAS, ln_flux_data

MAX_EXT = 1.5
PARALLAX_ERROR = 0.2  # of the observed parallax
HOST_ERROR = 0.01  # relative, of a flux whose brightness alone is asked for
BATCH = 500  # noise matrices at a time


def simulate(model, hosts, n, with_parallax, rng):
    """(table of the datasets `observed.OBSERVED`, true u (n, P)) of simulated stars.

    model: a `StellarModel`. hosts: flux and flux_err (N, n_wl) of real stars, which lend errors,
    missing bands and brightness.
    """
    at, channels = model.coordinates, model.channels
    rows = rng.integers(len(hosts["flux"]), size=n)
    host = ln_flux_data(hosts["flux"][rows], hosts["flux_err"][rows], channels)
    u = np.zeros((n, len(at)), "f4")
    u[:, at.z] = np.clip(model.prior.sample(n, rng), at.lower[at.z], at.upper[at.z])
    u[:, at.xi] = rng.normal(size=n)
    ext = rng.uniform(0, MAX_EXT, n).astype("f4")
    u[:, at.ln_ext] = np.log(ext)
    mean = model.flux.ln_flux(u[:, at.z]) - ext[:, None] * model.flux.ext_curve(u[:, at.xi])[0]
    mean = mean.numpy()
    # ln parallax such that the brightness is the host's, so that the noise is what it says.
    apparent_err = np.where(host.used > 0, HOST_ERROR, np.inf) * np.exp(mean)
    apparent = ln_flux_data(np.exp(mean), apparent_err, channels)
    u[:, at.ln_plx] = 0.5 * (host.features[:, 0] - apparent.features[:, 0])
    y = mean + 2 * u[:, at.ln_plx, None]
    y = y + ln_flux_noise(model.noise, u[:, at.z], ext, host.rel_err, host.features, rng)
    rel_err = np.minimum(host.rel_err, 1 / MIN_FLUX_SIGMAS)
    table = {
        "flux": np.where(host.used > 0, np.exp(y), 0.0),
        "flux_err": np.where(host.used > 0, rel_err * np.exp(y), np.inf),
        "plx": np.full(n, np.nan),
        "plx_err": np.full(n, np.nan),
    }
    if with_parallax:
        table["plx"] = np.exp(u[:, at.ln_plx]) / parallax_ratio(n, rng)
        table["plx_err"] = PARALLAX_ERROR * table["plx"]
    return {name: value.astype("f4") for name, value in table.items()}, u


def parallax_ratio(n, rng):
    """True over observed parallax (n,), for an error of PARALLAX_ERROR times the observed one and a
    prior flat in ln parallax: density exp(-(1 - t)^2 / 2 PARALLAX_ERROR^2) / t, by rejection."""
    out = np.empty(0)
    while len(out) < n:
        t = 1 + PARALLAX_ERROR * rng.normal(size=4 * n)
        t = t[t > PARALLAX_ERROR]
        out = np.concatenate([out, t[rng.random(len(t)) < PARALLAX_ERROR / t]])
    return out[:n]


def ln_flux_noise(noise, z, ext, rel_err, features, rng):
    """Draws of the noise of ln flux (N, n_wl) at the true stars."""
    nu = float(noise.nu)
    out = np.empty_like(rel_err)
    for k in range(0, len(z), BATCH):
        rows = slice(k, k + BATCH)
        whitening = noise.whitening(
            z[rows], ext[rows], rel_err[rows], np.ones_like(rel_err[rows]), features[rows]
        )
        gauss = rng.normal(size=(len(z[rows]), rel_err.shape[1], 1))
        whitening = whitening.transposed().numpy().astype("f8").transpose(0, 2, 1)
        draws = np.linalg.solve(whitening, gauss)[..., 0]
        scale = np.sqrt(nu / rng.chisquare(nu, len(draws)))
        out[rows] = draws * scale[:, None]
    return out
