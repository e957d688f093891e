"""Made-up output shards of step 10, written straight from the schema: quick, and no TensorFlow."""

import json

import healpy
import numpy as np
from helpers import FIDS, changed

from pipeline.schema import Layout, resolved
from pipeline.select import shard_path
from pipeline.write import ShardWriter

KIND = "opt_output"
MODEL = "content 0123456789abcdef"


def sky(n, rng):
    """ra, dec (n,) in degrees, and source ids (n,) of these places, in the order of no axis."""
    ra, dec = rng.uniform(0, 360, n), np.rad2deg(np.arcsin(rng.uniform(-1, 1, n)))
    pixel = healpy.ang2pix(2**12, ra, dec, nest=True, lonlat=True)
    ids = (pixel.astype("i8") << 35) + rng.permutation(n)
    return ra, dec, ids


def covariances(n, size, rng):
    """(n, size, size) positive definite, of errors of some hundredths."""
    root = 0.02 * rng.normal(size=(n, size, size + 2))
    return root @ root.transpose(0, 2, 1) + 1e-4 * np.eye(size)


def values_of(data, n, rng):
    if data.dtype[0] == "f":
        return rng.normal(1, 0.3, (n, *data.shape))
    return rng.integers(0, 60, (n, *data.shape)).astype(data.dtype)


def stars(n, layout=None, seed=0, n_bad=2):
    """Columns {name: (n, ...)} of a shard, as the schema says; n_bad stars without parameters."""
    layout, rng = layout or Layout(), np.random.default_rng(seed)
    table = {name: values_of(d, n, rng) for name, d in resolved(KIND, layout).items()}
    ra, dec, ids = sky(n, rng)
    size = len(layout.labels.parameters)
    cov, triangle = covariances(n, size, rng), np.triu_indices(size)
    table |= {"ra": ra, "dec": dec, layout.release.id_column: ids}
    table["stellar_params_est"][:, 0] = rng.uniform(3.5, 9, n)
    table["stellar_params_est"][:, -1] = rng.uniform(0.1, 9, n)
    table["stellar_params_err"] = np.sqrt(np.einsum("nii->ni", cov))
    table["stellar_params_cov_triu"] = cov[:, *triangle]
    table["stellar_params_icov_triu"] = np.linalg.inv(cov)[:, *triangle]
    table["second_params_est"][::3] = np.nan
    table["n_flux"][:] = 66
    table["quality_flags"] = (1 << rng.integers(0, 14, n)).astype("u4") * (rng.random(n) < 0.6)
    for name, data in resolved(KIND, layout).items():
        if n_bad and data.dtype[0] == "f" and name.split("_")[0] in ("stellar", "model", "teff"):
            table[name][:n_bad] = np.nan
    table["quality_flags"][:n_bad] = 128
    return table


def write_shard(data_dir, fid, table, layout=None, model=MODEL, **attrs):
    """A shard of step 10 of these columns."""
    layout, path = layout or Layout(), shard_path(data_dir, KIND, fid)
    path.parent.mkdir(parents=True, exist_ok=True)
    made_by = {
        "script": "xp_opt_allsources",
        "release": layout.release.name,
        "inputs": json.dumps([{"name": "model.h5", "identity": model, "size": 1}]),
    }
    told = {"labels": layout.labels.to_json()} | attrs
    n = len(table[layout.release.id_column])
    with ShardWriter(path, n, layout.release.id_column, made_by | told) as writer:
        writer.create_columns(resolved(KIND, layout))
        writer.write_table(table)
    return path


def parts_of(table, id_column, fids=FIDS):
    """{fid: its columns} of stars, by the level-8 pixels of their ids."""
    pixel, out = table[id_column] >> 43, {}
    for fid in fids:
        first, last = map(int, fid.split("-"))
        inside = (pixel >= first) & (pixel <= last)
        out[fid] = {name: values[inside] for name, values in table.items()}
    return out


def write_catalogue(data_dir, n=600, layout=None, seed=0, **how):
    """Shards FIDS of n stars all over the sky; their columns sorted by source id."""
    layout = layout or Layout()
    table = stars(n, layout, seed)
    for fid, part in parts_of(table, layout.release.id_column).items():
        write_shard(data_dir, fid, part, layout, **how)
    order = np.argsort(table[layout.release.id_column])
    datasets = resolved(KIND, layout)
    return {name: v[order].astype(datasets[name].dtype) for name, v in table.items()}


def set_attribute(path, name, value):
    """Change a root attribute of a shard."""
    with changed(path) as file:
        file.attrs[name] = value
