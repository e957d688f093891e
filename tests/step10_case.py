"""Small shards of step 9 from demo stars, and what step 10 makes of them."""

import numpy as np
import pytest
from demo_model import run_inference
from helpers import read_all

from pipeline import select
from pipeline.read import ShardReader
from pipeline.schema import FILES, Layout, inferred_columns
from pipeline.select import shard_path
from pipeline.write import ShardWriter

N_STARS = 30  # of each shard that are used
SHUFFLED, ODD_STARS = "800000-800000", "900000-900000"  # shards made of them
CHUNK_STARS = 37  # does not divide the shuffled shard
LAYOUT = Layout()
WAVELENGTHS = LAYOUT.wavelengths
WL = LAYOUT.release.spectra.wavelengths


class Step10:
    """Of a tiny model: the first stars of the shards of step 9, and their outputs in data_dir.

    fids, tables {fid: columns}: of the three shards; basis: that they were sampled with. The data
    directory also has a shard of all their stars, shuffled, and one of ODD stars.
    """

    def __init__(self, demo_model):
        self.model, data_dir = demo_model.model, demo_model.data_dir
        self.fids, self.tables = select.list_fids(data_dir, "opt_input"), {}
        for fid in self.fids:
            path = shard_path(data_dir, "opt_input", fid)
            self.tables[fid] = {name: values[:N_STARS] for name, values in read_all(path).items()}
        with ShardReader(path) as reader:
            self.basis = reader.attrs["xp_basis"]

    def write(self, data_dir, fid, table, wavelengths=WAVELENGTHS, **attrs):
        """A shard of these columns, whatever they are; wavelengths None: not said."""
        path = shard_path(data_dir, "opt_input", fid)
        made_by = {"script": "gen_xp_input_allsources", "format": FILES["opt_input"].format}
        made_by |= {"release": "dr3", "xp_basis": self.basis} | attrs
        n = len(table["gdr3_source_id"])
        with ShardWriter(path, n, "gdr3_source_id", made_by) as writer:
            writer.write_table(table, units={"plx": "mas", "ra": "deg"})
            if wavelengths is not None and "flux" in table:
                writer.set_attributes("flux", sample_wavelengths=wavelengths)
        return path

    def write_sky(self, data_dir):
        """The three shards."""
        for fid, table in self.tables.items():
            self.write(data_dir, fid, table)
        return data_dir

    def shuffled(self):
        """(all stars in another order, that order)."""
        tables = list(self.tables.values())
        together = {name: np.concatenate([t[name] for t in tables]) for name in tables[0]}
        order = np.random.default_rng(0).permutation(len(together["plx"]))
        return {name: values[order] for name, values in together.items()}, order

    def odd(self):
        """One star as often as there are oddities, each with one of them."""
        table = self.tables[self.fids[0]]
        table = {name: np.repeat(values[:1], len(ODD), 0) for name, values in table.items()}
        table["gdr3_source_id"] = table["gdr3_source_id"] + np.arange(len(ODD))
        for row, change in enumerate(ODD.values()):
            change(table, row)
        return table

    def make(self, data_dir):
        """All shards and their outputs."""
        import xp_opt_allsources

        self.write_sky(data_dir)
        self.write(data_dir, SHUFFLED, self.shuffled()[0])
        self.write(data_dir, ODD_STARS, self.odd())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(xp_opt_allsources, "CHUNK_STARS", CHUNK_STARS)
            if run_inference(data_dir, self.model):
                raise RuntimeError("step 10 failed")

    def output(self, fid):
        """The datasets of an output."""
        return read_all(output(self.data_dir, fid))


def output(data_dir, fid):
    return shard_path(data_dir, "opt_output", fid)


# ---- odd stars -------------------------------------------------------------------------------


def put(**values):
    """What sets columns of a row."""

    def change(table, row):
        for name, value in values.items():
            table[name][row] = value

    return change


def put_at(name, channels, value):
    return lambda table, row: table[name].__setitem__((row, channels), value)


def unused(channels):
    def change(table, row):
        table["flux"][row, channels] = 0.0
        table["flux_err"][row, channels] = np.inf

    return change


ODD = {
    "as it is": put(),
    "no flux used": unused(slice(None)),
    "no XP flux used": unused(slice(0, 61)),
    "too few XP fluxes": unused(slice(10, 61)),
    "BP missing": unused(np.flatnonzero(WL < 645)),
    "RP missing": unused(np.flatnonzero(WL > 635)),
    "no photometry": unused(slice(61, 66)),
    "a gap": unused(slice(30, 33)),
    "no parallax": put(plx=np.nan, plx_err=np.nan),
    "no parallax error": put(plx_err=np.nan),
    "negative parallax": put(plx=-0.5),
    "parallax of another star": put(plx=90.0, plx_err=0.01),
    "low fidelity": put(fidelity_v2=0.1),
    "unknown fidelity": put(fidelity_v2=np.nan),
    "no finer spectrum": put(xp_fine=np.nan),
    "absurd finer spectrum": put(xp_fine=6e4),
    "NaN flux": put_at("flux", 12, np.nan),
    "zero error": put_at("flux_err", 12, 0.0),
    "negative error": put_at("flux_err", 12, -1.0),
    "negative fluxes": put_at("flux", slice(0, 20), -1.0),
    "all fluxes NaN": put(flux=np.nan),
    "absurdly bright": put(flux=1e30),
    "absurdly faint": put(flux=1e-30),
    "flat": put(flux=1.0),
}
HOPELESS = {"no flux used", "no XP flux used", "too few XP fluxes", "all fluxes NaN"}
FINE = {
    "as it is",
    "BP missing",
    "RP missing",
    "no photometry",
    "a gap",
    "no parallax",
    "no parallax error",
    "low fidelity",
    "unknown fidelity",
    "no finer spectrum",
    "NaN flux",
    "zero error",
    "negative error",
}


# ---- a stand-in for the inference ------------------------------------------------------------


def stand_in(table, solver, trained):
    """Inferred columns that take no time: numbers that follow from each star's fluxes."""
    seed = table["flux"][:, :1] + trained.stellar.flux.bias_out.numpy()[0]
    n, out = len(seed), {}
    for name, data in inferred_columns(trained.stellar.labels).items():
        values = np.broadcast_to(seed.reshape(n, *[1] * len(data.shape)), (n, *data.shape))
        out[name] = values.astype(data.dtype) if data.dtype[0] == "f" else np.ones(n, data.dtype)
    return out
