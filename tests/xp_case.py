"""Spectra and photometry for the tests of `xp_utils`."""

import dataclasses
from pathlib import Path

import h5py
import numpy as np

import xp_utils
from pipeline.schema import XP_BANDS, load_release

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "demo" / "stars.h5"
RELEASE = load_release()
BASIS = xp_utils.load_xp_basis(RELEASE)


def demo_stars(n):
    """XP columns of every k-th of the bundled stars, correlations expanded per star."""
    xp = {}
    with h5py.File(DEMO) as file:
        step = len(file["source_id"]) // n
        xp["source_id"] = file["source_id"][: n * step : step]
        for band in XP_BANDS:
            for name in ("coefficients", "coefficient_errors"):
                xp[f"{band}_{name}"] = file[f"{band}_{name}"][: n * step : step]
            template = file[f"{band}_correlation_template"][()]
            xp[f"{band}_coefficient_correlations"] = np.repeat(template[None], n, axis=0)
            xp[f"{band}_n_parameters"] = np.full(n, 55, np.int16)
    return xp


def random_stars(n, seed=1, error=1e-2, sizes=(55, 55)):
    """Spectra with a random, well-conditioned correlation matrix of its own for every star."""
    rng = np.random.default_rng(seed)
    xp = {"source_id": np.arange(n)}
    for band, size in zip(XP_BANDS, sizes, strict=True):
        rows, columns = np.tril_indices(size, -1)
        draws = rng.normal(size=(n, size, 70))
        cov = draws @ draws.transpose(0, 2, 1)
        sigma = np.sqrt(np.einsum("nii->ni", cov))
        corr = cov / sigma[:, :, None] / sigma[:, None, :]
        fall = 0.8 ** np.arange(size)
        xp[f"{band}_coefficients"] = rng.normal(size=(n, size)) * fall + 20 * (np.arange(size) == 0)
        xp[f"{band}_coefficient_errors"] = error * rng.uniform(0.5, 2, (n, size)).astype("f4")
        xp[f"{band}_coefficient_correlations"] = corr[:, rows, columns].astype("f4")
        xp[f"{band}_n_parameters"] = np.full(n, size, np.int16)
    return xp


def packed_covariances(xp):
    """The same spectra with covariances in the place of errors and correlations."""
    out = dict(xp)
    for band in XP_BANDS:
        errors = out.pop(f"{band}_coefficient_errors").astype(float)
        correlations = out.pop(f"{band}_coefficient_correlations").astype(float)
        n = errors.shape[1]
        matrix = np.zeros((len(errors), n, n))
        matrix[:, *np.tril_indices(n, -1)] = correlations
        matrix[:, np.arange(n), np.arange(n)] = 1
        matrix *= errors[:, :, None] * errors[:, None, :]
        out[f"{band}_coefficient_covariances"] = matrix[:, *np.tril_indices(n)]
    return out


def no_neighbours(n):
    return {"norm_dg": np.full(n, np.nan)}


def good_tmass(n):
    table = {"ph_qual": np.full(n, b"AAA")}
    for band, magnitude in (("j", 12.0), ("h", 11.5), ("ks", 11.4)):
        table[f"{band}_m"] = np.full(n, magnitude, "f4")
        table[f"{band}_msigcom"] = np.full(n, 0.03, "f4")
    return table


def good_unwise(n):
    return {
        "flux": np.tile(np.array([2e4, 1e4], "f4"), (n, 1)),
        "dflux": np.tile(np.array([20, 30], "f4"), (n, 1)),
        "qf": np.full((n, 2), 0.99, "f4"),
        "fracflux": np.full((n, 2), 0.95, "f4"),
        "sep_arcsec": np.full(n, 0.05, "f4"),
    }


def good_surveys(n):
    return {"tmass": good_tmass(n), "unwise": good_unwise(n)}


def vectors(xp, basis=BASIS):
    n = len(xp["bp_coefficients"])
    return xp_utils.flux_vectors(xp, good_surveys(n), no_neighbours(n), basis)


def assert_same(left, right):
    for field in dataclasses.fields(left):
        expected = getattr(right, field.name)
        if expected is not None:
            np.testing.assert_array_equal(getattr(left, field.name), expected, field.name)


def rows_of(table, rows):
    return {name: column[rows] for name, column in table.items()}
