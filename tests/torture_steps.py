"""The steps, on small inputs, each in a process of its own: for `torture.py`."""

import contextlib
import os
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import step7_case
import tap_case
import test_query_2mass
from helpers import lay_out, make_sky
from tap_stub import TapStub
from test_convert_xp_csv import csv_lines, write_csv
from test_match_unwise import write_tiles

import compile_training_data
import gen_xp_input_allsources
import match_unwise_gaia
import query_2mass
import query_reddening_gaia
import query_xp_metadata
from pipeline.schema import KINDS
from pipeline.select import list_fids, shard_path
from pipeline.write import write_arrays
from tools import convert_xp_csv

N_STARS = 150
FIDS = ("000000-000999", "001000-001999", "400000-400999")
TAP = ["--retry-wait", "0.01", "--poll", "0.01", "--pace", "0", "--http-timeout", "60"]


# ---- processes -------------------------------------------------------------------------------


def in_process(work) -> int:
    """Begin `work()` in a process of its own, which says nothing; its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 99
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        status = work() or 0
    finally:
        os._exit(status)


def status_of(pid) -> int:
    """Exit status of a process, negative where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def must(work):
    """Run `work()` in a process of its own, which must succeed."""
    if status_of(in_process(work)):
        raise RuntimeError(f"{work} fails undisturbed")


# ---- inputs ----------------------------------------------------------------------------------


def make_small_sky(folder):
    """Inputs of the steps that need no archive and no model, a file of arrays, a foreign shard."""
    sky = make_sky(N_STARS, seed=4, fids=FIDS)
    for tables in sky.values():
        tables["metadata"] |= {name: np.full(N_STARS, 5.0) for name in ("pmra", "pmdec")}
    lay_out(folder / "data", sky)
    for number, (fid, tables) in enumerate(sky.items()):
        write_csv(folder / "csv", csv_lines(tables["xp"], ecsv=number == 0), fid)
        metadata = tables["metadata"]
        with contextlib.suppress(FileExistsError):
            (folder / "tiles").mkdir()
        write_tiles(folder / "tiles", metadata["ra"][:4], metadata["dec"][:4])
    step7_case.write_labels(folder / "labels.h5", step7_case.make_labels(sky))
    rng = np.random.default_rng(0)
    arrays = {f"layer{k}/kernel": rng.normal(size=(40, 30)).astype("f4") for k in range(6)}
    arrays |= {"scale": np.float64(3.5), "names": np.array([b"teff", b"feh"]), "n": np.arange(5)}
    write_arrays(folder / "model.h5", arrays, {"script": "train"}, recipe="{}")
    write_foreign(folder / "foreign" / KINDS["xp"].folder, sky[FIDS[0]]["xp"])


def write_foreign(folder, table):
    """A shard of spectra as others write it: by h5py as it is, without checksums."""
    folder.mkdir(parents=True)
    with h5py.File(folder / f"{KINDS['xp'].prefix}_{FIDS[0]}.h5", "w") as file:
        for name, values in table.items():
            file.create_dataset(name, data=values, compression="gzip").attrs["note"] = name
        file.attrs["made by"] = "a mirror"


def serve(folder, make_stub):
    """A TAP service in a process of its own; its url is in folder/"url". Its id."""

    def work():
        with make_stub() as stub:
            (folder / "url.part").write_text(stub.url)
            (folder / "url.part").rename(folder / "url")
            os.read(stop, 1)  # until all who could write are gone

    stop, alive = os.pipe()
    pid = in_process(lambda: os.close(alive) or work())
    os.close(stop)
    return pid


def make_for_metadata(folder):
    tap_case.make_data_dir(folder / "data")
    serve(folder, tap_case.make_stub)


def make_for_2mass(folder):
    for k, fid in enumerate(FIDS):
        test_query_2mass.write_ids(folder / "data", fid, test_query_2mass.IDS[4 * k : 4 * k + 4])
    table, schema = test_query_2mass.answer_table(), test_query_2mass.SCHEMA
    serve(folder, lambda: TapStub(table, schema=schema))


def make_trained(folder):
    """Demo stars and a tiny model of them. TensorFlow is loaded here once, but computes only in
    processes of its own: what it begins does not survive a fork."""
    import demo_model
    import tensorflow  # noqa: F401

    import train  # noqa: F401
    import xp_opt_allsources  # noqa: F401

    must(lambda: demo_model.make(folder) and None)
    shutil.rmtree(folder / "data" / "logs")


HOMES = {"sky": make_small_sky, "metadata": make_for_metadata, "2mass": make_for_2mass,
         "trained": make_trained}  # fmt: skip


# ---- the steps -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """A step: its main, its words for a folder of its inputs, the outputs in that folder, which of
    HOMES the inputs are, and how often it is chosen."""

    main: object
    words: object
    outputs: object
    home: str = "sky"
    share: int = 10


def shards(folder, kind, fids=FIDS):
    return [shard_path(folder, kind, fid) for fid in fids]


def url(folder):
    return (folder / "url").read_text()


def quickly(name, words):
    """A step of TensorFlow, as the tests run it."""
    import importlib

    from demo_model import quick

    with quick():
        return importlib.import_module(name).main(words)


STEPS = {
    "1": Step(
        convert_xp_csv.main,
        lambda f: [f / "csv", "--data-dir", f / "out"],
        lambda f: shards(f / "out", "xp"),
    ),
    "2": Step(
        query_xp_metadata.main,
        lambda f: ["--data-dir", f / "data", "--tap-url", url(f), *TAP],
        lambda f: shards(f / "data", "metadata", tap_case.FIDS),
        "metadata",
    ),
    "3": Step(
        query_2mass.main,
        lambda f: ["--data-dir", f / "data", "--tap-url", url(f), *TAP],
        lambda f: shards(f / "data", "tmass"),
        "2mass",
    ),
    "4": Step(
        match_unwise_gaia.main,
        lambda f: ["--data-dir", f / "data", "--unwise-dir", f / "tiles", "--overwrite"],
        lambda f: shards(f / "data", "unwise"),
    ),
    "5": Step(
        query_reddening_gaia.main,
        lambda f: ["--data-dir", f / "data", "--maps", "bh", "--output-dir", f / "out"],
        lambda f: shards(f / "out", "reddening"),
    ),
    "7": Step(
        compile_training_data.main,
        lambda f: ["--data-dir", f / "data", "--stellar-params", f / "labels.h5",
                   "--output", f / "training_data.h5"],
        lambda f: [f / "training_data.h5"],
    ),
    "8": Step(
        partial(quickly, "train"),
        lambda f: ["-i", f / "training_data.h5", "-o", f / "out", "--recipe", f / "recipe.toml",
                   "--threads", "1", "--check"],
        lambda f: [f / "out" / name for name in ("model.h5", "validation.h5")],
        "trained",
        1,
    ),
    "9": Step(
        gen_xp_input_allsources.main,
        lambda f: ["--data-dir", f / "data"],
        lambda f: shards(f / "data", "opt_input"),
    ),
    "10": Step(
        partial(quickly, "xp_opt_allsources"),
        lambda f: ["--data-dir", f / "data", "--model", f / "model", "--threads", "1"],
        lambda f: shards(f / "data", "opt_output", list_fids(f / "data", "opt_input")),
        "trained",
        2,
    ),
}  # fmt: skip
WITHOUT_TENSORFLOW = [name for name, step in STEPS.items() if step.home != "trained"]


def begin(step, folder) -> int:
    """Begin a step on a folder; the id of its process."""
    words = [str(word) for word in step.words(folder)]
    return in_process(lambda: step.main(words))


def make_base(folder, steps=("1",)) -> Path:
    """The inputs of steps, each kind in a folder of its name."""
    for home in sorted({STEPS[name].home for name in steps} | {"sky"}):
        (folder / home).mkdir(parents=True)
        HOMES[home](folder / home)
    return folder
