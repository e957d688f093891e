"""What the tests of steps 2 and 3 and of their jobs share: shards of ids, an archive's answer."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from tap_stub import TapStub

import query_xp_metadata
from pipeline.schema import load_release
from pipeline.select import shard_path
from pipeline.write import ShardWriter

ROOT = Path(__file__).resolve().parents[1]
FIDS = ("000000-000099", "000100-000199", "000200-000299", "000300-000399")
N_STARS = 30  # in each shard
FAST = ("--retry-wait", "0.01", "--poll", "0.01", "--pace", "0", "--http-timeout", "0.5")
SLOWER = ("--retry-wait", "0.5", "--poll", "0.2", "--pace", "0")  # for a real server
DR3 = load_release()
QUESTION = query_xp_metadata.question(DR3)


def make_ids(fid, n=N_STARS):
    """Ids beyond 2^53 where the pixel allows, odd, so that a float would not hold them."""
    rng = np.random.default_rng(int(fid[:6]) + 1)
    return np.sort((int(fid[:6]) << 43) + (99 << 43) + rng.choice(2**42, n, replace=False) * 2 + 1)


def write_spectra(data_dir, fid, ids, **attrs):
    with ShardWriter(shard_path(data_dir, "xp", fid), len(ids), "source_id", attrs) as writer:
        writer.write("source_id", 0, ids)


def gaia_table(ids):
    """What the archive would answer for `ids`, {column: (n,) masked array}."""
    rng = np.random.default_rng(7)
    n = len(ids)
    table = {}
    for name, column in QUESTION.columns.items():
        kind = np.dtype(column.dtype).kind
        if kind == "f":
            values = rng.uniform(0.1, 1, n).astype(column.dtype)
        elif kind == "i":
            values = rng.integers(0, 100, n).astype(column.dtype)
        else:
            values = rng.random(n) < 0.5
        table[name] = np.ma.array(values)
    table["source_id"] = np.ma.array(ids)
    variable = np.where(np.arange(n) % 3, "VARIABLE", "NOT_AVAILABLE")
    table["phot_variable_flag"] = np.ma.array(variable)
    table["phot_g_mean_mag"] = np.ma.array(rng.uniform(8, 18, n).astype("f4"))
    solved = np.resize(np.array([31, 95, 31, 3], "i2"), n)
    table["astrometric_params_solved"] = np.ma.array(solved)
    nu_eff = np.ma.array(rng.uniform(1.2, 1.8, n).astype("f4"), mask=solved != 31)
    colour = np.ma.array(rng.uniform(1.3, 1.7, n).astype("f4"), mask=solved != 95)
    table |= {"nu_eff_used_in_astrometry": nu_eff, "pseudocolour": colour}
    table["parallax"] = np.ma.array(rng.uniform(-1, 5, n), mask=solved == 3)
    table["ecl_lat"] = np.ma.array(rng.uniform(-90, 90, n))
    table["norm_dg"].mask = np.arange(n) % 2 == 0
    table["rv_nb_transits"].mask = np.arange(n) % 3 == 0
    return table


def archive_schema(question):
    """{table: names of its columns} of an archive that has all that a question asks for."""
    schema = {}
    asked = [(column.table, column.name) for column in question.columns.values()]
    for role, name in asked + question.needed():
        schema.setdefault(question.tables[role], set()).add(name)
    return {table: sorted(names) for table, names in schema.items()}


def make_data_dir(folder):
    """Spectra (their ids) of all FIDS."""
    for fid in FIDS:
        write_spectra(folder, fid, make_ids(fid))
    return folder


def make_stub():
    """An archive with the metadata of all their sources."""
    table = gaia_table(np.concatenate([make_ids(fid) for fid in FIDS]))
    return TapStub(table, schema=archive_schema(QUESTION))


def run(data_dir, stub, *options, fast=FAST):
    arguments = ["--data-dir", data_dir, "--tap-url", getattr(stub, "url", stub), *fast, *options]
    return query_xp_metadata.main([str(argument) for argument in arguments])


def output(data_dir, fid=FIDS[0]):
    return shard_path(data_dir, "metadata", fid)


def leftovers(data_dir):
    folder = output(data_dir).parent
    return sorted(p.name for p in folder.iterdir() if p.name.startswith("."))


def log_text(data_dir):
    return (data_dir / "logs" / "query_xp_metadata.log").read_text()


def start_run(data_dir, stub, *options):
    command = [sys.executable, ROOT / "query_xp_metadata.py", "--data-dir", data_dir]
    command += ["--tap-url", stub.url, *FAST, *options]
    # A suite started in the background has SIGINT ignored, and its children inherit that.
    return subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
