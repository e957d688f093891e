"""A small synthetic data directory, for tests of the step scripts."""

import contextlib
import os
from pathlib import Path

import h5py
import numpy as np

import xp_utils
from pipeline import read, schema, select, write
from pipeline.provenance import provenance
from pipeline.schema import XP_BANDS, load_release

FIDS = ("000000-000999", "001000-299999", "300000-786431")
ID_STEP = 2**43  # ids of one level-8 HEALPix pixel
DR3 = load_release()


def blackbody_flux(wavelength, teff, scale):
    """(N, n_xp) Planck curves at wavelengths in nm, 1 at 550 nm times scale (N,)."""

    def planck(wl):
        return wl**-5 / np.expm1(1.4388e7 / (wl * teff[:, None]))  # h c / k in nm K

    return scale[:, None] * planck(wavelength) / planck(np.array([550.0]))


def band_spectra(flux, band, release, rng):
    """Columns of a band: coefficients of the flux (N, n_xp), correlated errors of 1% of the
    largest, in the form that the release has."""
    n, design = len(flux), getattr(xp_utils.load_xp_basis(release), f"{band}_design")
    size = len(design)
    coefficients = flux @ np.linalg.pinv(design)
    errors = 0.01 * np.abs(coefficients).max(axis=1, keepdims=True)
    errors = (errors * rng.uniform(0.5, 1.5, (n, size))).astype("f4")
    row, column = np.tril_indices(size)
    correlations = np.broadcast_to(0.3 ** (row - column), (n, len(row)))
    table = {
        "basis_function_id": np.full(n, release.spectra.bands[band].basis_id, "i2"),
        "n_parameters": np.full(n, size, "i2"),
        "standard_deviation": np.ones(n, "f4"),
        "coefficients": coefficients,
    }
    if release.spectra.covariance == "covariances":
        covariances = correlations * errors[:, row] * errors[:, column]
        table["coefficient_covariances"] = covariances.astype("f4")
    else:
        table["coefficient_errors"] = errors
        table["coefficient_correlations"] = correlations[:, row != column].astype("f4")
    return {f"{band}_{name}": values for name, values in table.items()}


def spectra(ids, rng, release=DR3):
    """XP table of stars with Planck curves."""
    n, wavelengths = len(ids), release.spectra.wavelengths
    flux = blackbody_flux(wavelengths, rng.uniform(4000, 9000, n), 10 ** rng.uniform(0, 3, n))
    table = {"source_id": ids}
    for band in XP_BANDS:
        table |= band_spectra(flux, band, release, rng)
    return table


def metadata(ids, rng):
    n = len(ids)
    table = {
        "source_id": ids,
        "ra": rng.uniform(0, 360, n),
        "dec": np.rad2deg(np.arcsin(rng.uniform(-1, 1, n))),
        "parallax": rng.uniform(0.3, 5, n),
        "parallax_error": np.full(n, 0.02, "f4"),
        "fidelity_v2": rng.uniform(0.6, 1, n).astype("f4"),
        "norm_dg": np.where(rng.random(n) < 0.5, np.nan, -20).astype("f4"),
        "ruwe": rng.uniform(0.9, 1.2, n).astype("f4"),
    }
    for band in ("g", "bp", "rp"):
        table[f"phot_{band}_mean_flux"] = rng.uniform(1e3, 1e5, n)
        table[f"phot_{band}_mean_flux_error"] = rng.uniform(1, 10, n).astype("f4")
    return table


def matches(ids, rng, id_column="gdr3_source_id"):
    """2MASS and unWISE tables: two thirds of the stars have the one, half have the other."""
    tmass_ids, wise_ids = ids[rng.random(len(ids)) < 2 / 3], ids[rng.random(len(ids)) < 1 / 2]
    n, m = len(tmass_ids), len(wise_ids)
    tmass = {id_column: tmass_ids, "ph_qual": np.full(n, b"AAA")}
    for band in ("j", "h", "ks"):
        tmass[f"{band}_m"] = rng.uniform(9, 14, n).astype("f4")
        tmass[f"{band}_msigcom"] = np.full(n, 0.024, "f4")
    flux = rng.uniform(1e3, 1e4, (m, 2)).astype("f4")
    unwise = {
        id_column: wise_ids, "flux": flux, "dflux": 0.02 * flux,
        "qf": np.ones((m, 2), "f4"), "fracflux": np.ones((m, 2), "f4"),
        "sep_arcsec": np.full(m, 0.05, "f4"),
    }  # fmt: skip
    return tmass, unwise


def reddening(ids, rng, id_column="gdr3_source_id"):
    """A third of the stars outside Bayestar, a sixth outside both maps."""
    n = len(ids)
    bayestar = np.where(rng.random(n) < 2 / 3, rng.uniform(0, 1, n), np.nan)
    return {
        id_column: ids,
        "E_mean_bayestar": bayestar.astype("f4"),
        "E_sigma_bayestar": (0.1 + 0 * bayestar).astype("f4"),
        "E_mean_sfd": np.where(rng.random(n) < 1 / 2, rng.uniform(0, 1, n), np.nan).astype("f4"),
    }


def make_sky(n_stars=12, seed=1, fids=FIDS, release=DR3) -> dict:
    """{fid: {kind: table}} of n_stars stars a shard, ordered by id, to be changed and laid out."""
    rng = np.random.default_rng(seed)
    sky = {}
    for fid in fids:
        low, high = (int(edge) for edge in fid.split("-"))
        ids = np.sort(rng.integers(low * ID_STEP, (high + 1) * ID_STEP, n_stars))
        tmass, unwise = matches(ids, rng, release.id_column)
        sky[fid] = {
            "xp": spectra(ids, rng, release),
            "metadata": metadata(ids, rng),
            "tmass": tmass,
            "unwise": unwise,
            "reddening": reddening(ids, rng, release.id_column),
        }
    return sky


def lay_out(data_dir, sky, without=(), release=DR3):
    """Write a sky as the shards of a data directory."""
    for fid, tables in sky.items():
        for kind, table in tables.items():
            if kind not in without:
                write_kind(data_dir, kind, fid, table, release)
    return data_dir


def write_kind(data_dir, kind, fid, table, release=DR3, made_by=None):
    """A shard, as a foreign file is; or with the attributes of one made by a script."""
    id_column = schema.KINDS[kind].id_column(release)
    path = select.shard_path(data_dir, kind, fid)
    with write.ShardWriter(path, len(table[id_column]), id_column, made_by or {}) as writer:
        writer.write_table(table)


def made_by(release, script="test") -> dict:
    """Attributes of a file of a release."""
    return provenance(script, [], [], release)


def shuffled(table, rng):
    """The same rows in another order."""
    order = rng.permutation(len(next(iter(table.values()))))
    return {name: column[order] for name, column in table.items()}


def read_all(path) -> dict:
    with read.ShardReader(path) as reader:
        return {name: reader.read(name) for name in reader.columns}


def assert_same_datasets(a, b):
    a, b = read_all(a), read_all(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@contextlib.contextmanager
def changed(path):
    """A file of ours, open to be changed as one without a trailer."""
    with h5py.File(path, "r+") as file:
        file.attrs.pop("trailer", None)
        yield file


def flip_bit(path, name):
    """Flip one bit in the stored bytes of a dataset."""
    with h5py.File(path, "r") as file:
        place = file[name].id.get_chunk_info(0)
    with open(path, "r+b") as file:
        file.seek(place.byte_offset + place.size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 4]))


def truncate(path, fraction=0.5):
    os.truncate(path, int(fraction * Path(path).stat().st_size))
