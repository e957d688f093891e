"""Stars for their pages: made-up rows of the catalogue and spectra, with what can be odd."""

import numpy as np

from pipeline.figures import StarPage, StarPosterior, StarSpectrum
from pipeline.schema import BANDS, Layout, flags, load_release, resolved

RELEASE = load_release()
N_BANDS = len(BANDS)
SOURCE_ID = 6_917_528_997_577_384_320  # as long as ids are


def all_bits(bits):
    return sum(flag.value for flag in bits)


def catalogue_row(labels, **changes):
    """A row of the catalogue for a `LabelSet`, of numbers that are possible."""
    n, rng = len(labels.parameters), np.random.default_rng(0)
    row = {}
    for name, data in resolved("opt_output", Layout(RELEASE, labels)).items():
        row[name] = rng.uniform(0.1, 1.0, data.shape)[()] if data.dtype[0] == "f" else np.int64(0)
    est = np.concatenate([labels.forward.array("width_at"), [-0.3, 0.21, 0.834]])
    err = np.array([*labels.forward.array("tolerance") / 4, 0.8, 0.02, 0.013])
    mixed = np.eye(n) + 0.4 * rng.uniform(-1, 1, (n, n))
    cov = mixed @ mixed.T
    cov *= err * err[:, None] / np.sqrt(np.diag(cov) * np.diag(cov)[:, None])
    row |= {
        RELEASE.id_column: SOURCE_ID, "ra": 359.987654, "dec": -89.123456, "n_flux": 66,
        "phot_g_mean_flux": 12345.6, "plx": 0.82, "plx_err": 0.03, "chi2_opt": 61.234,
        "stellar_params_est": est, "stellar_params_err": err,
        "stellar_params_cov_triu": cov[np.triu_indices(n)],
        "model_params_est": est + 0.7 * err, "model_params_err": 1.1 * err,
        "second_params_est": np.full(n, np.nan), "second_delta_ln_post": np.nan,
    }  # fmt: skip
    return row | changes


def spectrum(**changes):
    """A `StarSpectrum` that is all there."""
    channels, rng = Layout(RELEASE), np.random.default_rng(1)
    wavelengths, fine = channels.wavelengths, RELEASE.spectra.fine_wavelengths
    n = len(wavelengths)

    def shape(x):
        return 90.0 * (x / 600) ** -2.5

    fields = {
        "wavelengths": wavelengths, "n_xp": n - N_BANDS,
        "flux": shape(wavelengths) * rng.normal(1, 0.01, n),
        "flux_err": 0.012 * shape(wavelengths),
        "model": shape(wavelengths), "own": np.full(n, 0.008),
        "residual": rng.normal(0, 1, n),
        "fine_wavelengths": fine, "fine": shape(fine),
        "unused": np.full(N_BANDS, np.nan), "reasons": [""] * N_BANDS,
    }  # fmt: skip
    return StarSpectrum(**fields | changes)


def without(fields, channels):
    """Fields of `spectrum` with some channels not used."""
    star = spectrum(**fields)
    flux_err, residual = np.array(star.flux_err), np.array(star.residual)
    flux_err[channels], residual[channels] = np.inf, np.nan
    return fields | {"flux_err": flux_err, "residual": residual}


def posterior(labels, row, types=None):
    """The `StarPosterior` of a row."""
    n = len(labels.parameters)
    cov = np.zeros((n, n))
    cov[np.triu_indices(n)] = row["stellar_params_cov_triu"]
    cov += np.triu(cov, 1).T
    names = ("stellar_params_est", "model_params_est", "model_params_err", "second_params_est")
    est, *others = (row[name] for name in names)
    return StarPosterior(labels, est, cov, *others, row["plx"], row["plx_err"], types)


def types_near(labels, row):
    """A mixture of two components about a star."""
    k = len(labels.forward)
    centre, width = row["stellar_params_est"][:k], labels.forward.array("tolerance")
    covs = np.stack([np.diag(width**2), np.diag((2 * width) ** 2)])
    return np.array([0.6, 0.4]), np.stack([centre, centre + 3 * width]), covs


def page(labels, fields=None, **changes):
    """The `StarPage` of a star that has parameters."""
    row = catalogue_row(labels, **changes)
    shown = posterior(labels, row, types_near(labels, row))
    return StarPage(row, RELEASE, labels, spectrum(**fields or {}), shown)


def page_without_parameters(labels, fields, why="No parameters: none."):
    """The `StarPage` of a star that has none, with all flags."""
    nothing = np.full(len(RELEASE.spectra.wavelengths) + N_BANDS, np.nan)
    of_model = dict.fromkeys(("model", "own", "residual"), nothing)
    bits = {"quality_flags": all_bits(flags.quality_flag(labels))}
    bits["input_flags"] = all_bits(flags.InputFlag)
    row = catalogue_row(labels, plx=np.nan, plx_err=np.nan, ra=np.nan, dec=np.nan, **bits)
    return StarPage(row, RELEASE, labels, spectrum(**of_model | fields), None, why)
