"""The demo sky as the Gaia archive would hold it: tables under the archive's names.

Real stars of demo/stars.h5 with made-up astrometry, radial velocities and oddities, so that every
kind of row that the queries must handle occurs. `start` serves them with a real TAP server.
"""

import csv
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from demo import build_sky
from pipeline.read import ShardReader
from pipeline.schema.columns import METADATA
from pipeline.select import list_fids, shard_path

HERE = Path(__file__).resolve().parent
STARS = HERE.parents[1] / "demo" / "stars.h5"
PORT = int(os.environ.get("TAP_TEST_PORT", "8085"))
CANNOT = 77  # exit status of tap_server.sh: not on this machine

N_ABSENT = 3  # sources of the spectra that the archive does not have
N_UNFLAGGED = 5  # whose has_xp_continuous is false: only come when asked by id
N_STRANGERS = 40  # archive rows with XP spectra that the shards lack
# {role of a table: {name: Column}} of the metadata.
COLUMNS = {
    role: {column.name: column for column in METADATA if column.source == role}
    for role in ("source", "quality")
}
SCHEMAS = {
    "gaia_source": "gaiadr3",
    "tmass_psc_xsc_best_neighbour": "gaiadr3",
    "tmass_psc_xsc_join": "gaiadr3",
    "gaiaedr3_spurious": "external",
    "tmass_original_valid": "gaiadr1",
}


class CannotServeError(Exception):
    """The TAP server cannot be installed on this machine: the reason."""


@dataclass
class Archive:
    """tables: {name: {column: (n,) masked array}}; absent, unflagged: ids (see above)."""

    tables: dict
    absent: np.ndarray
    unflagged: np.ndarray


def build_data_dir(out):
    """Spectra of the demo sky at `out`; returns its metadata and 2MASS rows, by id."""
    if build_sky.main(["--stars", str(STARS), "--out", str(out), "--shards", "8"]):
        raise RuntimeError("demo/build_sky.py failed")
    rows = {}
    for kind in ("metadata", "tmass"):
        parts = []
        for fid in list_fids(out, kind):
            with ShardReader(shard_path(out, kind, fid)) as reader:
                parts.append(reader.read_table(reader.columns))
        rows[kind] = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        shutil.rmtree(shard_path(out, kind, "0").parent)
    return rows["metadata"], rows["tmass"]


def gaia_source(metadata, rng):
    """Gaia's columns: parallaxes and all, with five-, six- and two-parameter solutions."""
    n = len(metadata["source_id"])
    table = {}
    for name, column in COLUMNS["source"].items():
        values = np.zeros(n) * np.nan if column.dtype[0] == "f" else np.zeros(n, column.dtype)
        table[name] = np.ma.array(metadata.get(name, values), dtype=column.dtype, copy=True)
    for name, values in table.items():
        if values.dtype.kind == "f" and np.isnan(values.data).all():
            table[name] = np.ma.array(rng.uniform(0.1, 1, n).astype(values.dtype))
    solved = np.full(n, 31, "i2")
    solved[1::7], solved[2::50] = 95, 3
    table["astrometric_params_solved"] = np.ma.array(solved)
    nu_eff = rng.uniform(1.2, 1.8, n).astype("f4")
    nu_eff[::90] = 1.95  # out of the calibrated range
    table["nu_eff_used_in_astrometry"] = np.ma.array(nu_eff, mask=solved != 31)
    table["nu_eff_used_in_astrometry"][35] = np.ma.masked
    colour = rng.uniform(1.3, 1.7, n).astype("f4")
    colour[1::210] = 1.1
    table["pseudocolour"] = np.ma.array(colour, mask=solved != 95)
    for name in ("parallax", "parallax_error", "pmra", "pmdec", "pmra_error", "pmdec_error"):
        table[name][solved == 3] = np.ma.masked
    slow = rng.random(n) < 2 / 3
    for name in ("radial_velocity", "radial_velocity_error", "rv_nb_transits", "rv_chisq_pvalue",
                 "rv_expected_sig_to_noise", "rv_renormalised_gof"):  # fmt: skip
        table[name] = np.ma.array(table[name], mask=slow)
    for name in ("phot_g_n_obs", "phot_bp_n_obs", "phot_rp_n_obs", "visibility_periods_used"):
        table[name] = np.ma.array(rng.integers(1, 400, n).astype("i2"))
    table["rv_nb_transits"] = np.ma.array(rng.integers(1, 40, n).astype("i2"), mask=slow)
    table["has_rvs"] = np.ma.array(~slow)
    table["phot_variable_flag"][::5] = b"VARIABLE"
    return table


def spurious(ids, rng):
    """external.gaiaedr3_spurious: one source in 60 is not in it, norm_dg is mostly null."""
    ids = ids[rng.random(len(ids)) > 1 / 60]
    table = {"source_id": np.ma.array(ids)}
    for name in COLUMNS["quality"]:
        table[name] = np.ma.array(rng.uniform(0, 30, len(ids)).astype("f4"))
    table["norm_dg"].mask = rng.random(len(ids)) < 0.7
    return table


def tmass_tables(tmass, rng):
    """The three tables of 2MASS; one row in ten odd: see the comments."""
    n = len(tmass["gdr3_source_id"])
    oid = np.arange(n) + 100
    original = tmass["designation"].copy()
    extended, poor, only_extended, double = (np.arange(n) % 40 == k for k in range(4))
    neighbour = {
        "source_id": tmass["gdr3_source_id"],
        "clean_tmass_psc_xsc_oid": oid,
        "original_ext_source_id": original,
        "angular_distance": rng.uniform(0, 0.5, n).astype("f4"),
    }
    unmatched = np.arange(n) % 10 == 7
    neighbour = {name: np.ma.array(values[~unmatched]) for name, values in neighbour.items()}
    second = np.char.replace(original[double], b"+", b"-")  # a second entry of the same object
    second = np.char.add(np.strings.slice(second, 0, 16), b"x").astype("S17")
    join = {
        "clean_tmass_psc_xsc_oid": np.ma.array(np.concatenate([oid, oid[double]])),
        "original_psc_source_id": np.ma.array(
            np.concatenate([original, second]),
            mask=np.concatenate([only_extended, np.zeros(len(second), bool)]),
        ),
        "original_xsc_source_id": np.ma.array(
            np.concatenate([original, second]),
            mask=np.concatenate([~(extended | only_extended), np.ones(len(second), bool)]),
        ),
    }
    photometry = {"designation": original, "ra": tmass["tm_ra"], "dec": tmass["tm_dec"]}
    photometry |= {
        name: tmass[name] for name in tmass if name.endswith(("_m", "_msigcom", "ph_qual"))
    }
    photometry["ph_qual"] = photometry["ph_qual"].copy()
    photometry["ph_qual"][5::11] = b"UBA"
    photometry["ph_qual"][poor] = b"UBC"
    photometry = {
        name: np.ma.array(np.concatenate([values, values[double]]))
        for name, values in photometry.items()
    }
    photometry["designation"][n:] = second
    photometry["h_msigcom"][4::17] = np.ma.masked
    key = np.concatenate([np.arange(n), np.arange(len(second))])
    extended = np.concatenate([extended | only_extended, np.zeros(len(second), bool)])
    photometry["ext_key"] = np.ma.array(key, mask=~extended)
    return neighbour, join, photometry


def make_archive(metadata, tmass, seed=1) -> Archive:
    """Tables of the demo sky's sources, less some, and of sources that it has not."""
    rng = np.random.default_rng(seed)
    gaia = gaia_source(metadata, rng)
    n = len(gaia["source_id"])
    odd = rng.choice(n, N_ABSENT + N_UNFLAGGED, replace=False)
    absent, unflagged = odd[:N_ABSENT], odd[N_ABSENT:]
    gaia["has_xp_continuous"][unflagged] = False
    out = Archive({}, np.sort(gaia["source_id"].data[absent]),
                  np.sort(gaia["source_id"].data[unflagged]))  # fmt: skip
    keep = np.setdiff1d(np.arange(n), absent)
    strangers = rng.choice(keep, N_STRANGERS, replace=False)
    rows = np.concatenate([keep, strangers])
    gaia = {name: values[rows] for name, values in gaia.items()}
    gaia["source_id"][len(keep) :] += 1  # ids of neighbours: spectra unknown to the shards
    neighbour, join, photometry = tmass_tables(tmass, rng)
    out.tables = {
        "gaia_source": gaia,
        "gaiaedr3_spurious": spurious(gaia["source_id"].data, rng),
        "tmass_psc_xsc_best_neighbour": neighbour,
        "tmass_psc_xsc_join": join,
        "tmass_original_valid": photometry,
    }
    return out


def write_csv(archive, folder):
    """FOLDER/{schema}/{table}.csv; nulls are empty, floats as short as they are exact."""
    for name, table in archive.tables.items():
        path = Path(folder) / SCHEMAS[name] / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(table)
            writer.writerows(zip(*(texts(values) for values in table.values()), strict=True))


def texts(values):
    """(n,) list of CSV fields."""
    null = np.ma.getmaskarray(values)
    data = np.ma.getdata(values)
    if data.dtype.kind == "f":
        null = null | np.isnan(data)
    data = np.strings.decode(data, "ascii") if data.dtype.kind == "S" else data.astype("U32")
    return np.where(null, "", data).tolist()


def start(archive, folder, port=PORT) -> str:
    """Serve an archive; its TAP URL. CannotServeError where this machine cannot."""
    write_csv(archive, folder)
    command = ["bash", HERE / "tap_server.sh", "start", str(port), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == CANNOT:
        raise CannotServeError(done.stderr.strip().splitlines()[-1])
    if done.returncode:
        raise RuntimeError(f"tap_server.sh failed:\n{done.stderr[-3000:]}")
    return f"http://127.0.0.1:{port}/tap"


def stop():
    subprocess.run(["bash", HERE / "tap_server.sh", "stop"], capture_output=True, check=True)
