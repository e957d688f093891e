"""A made-up data release, as a file and no code, through steps 1, 7 and 9; and mixed releases."""

import gzip

import h5py
import numpy as np
import pytest
import xp_oracle
from helpers import FIDS, changed, made_by, make_sky, read_all, write_kind

import compile_training_data
import gen_xp_input_allsources
import xp_utils
from pipeline.provenance import provenance
from pipeline.read import ShardReader
from pipeline.schema import XP_BANDS, Layout, load_release, resolved
from pipeline.select import shard_path
from pipeline.write import ShardWriter
from tools import convert_xp_csv

RELEASE = """
name = "new"
title = "Gaia NEW"
id_column = "gdr4_source_id"
reference_epoch = 2017.5

[sky]
level = 8
id_shift = 43

[spectra]
file_name = "XpMean.{fid}.v2"
address = "https://nowhere.example/xp"
hdf5_mirror = ""
covariance = "covariances"
basis = "new_basis.npz"
wavelengths = [400.0, 980.0, 20.0]

[spectra.bp]
n_coefficients = 51
basis_id = 71

[spectra.rp]
n_coefficients = 55
basis_id = 72

[spectra.names]
source_id = "object"
bp_coefficients = "bp_c"
bp_coefficient_covariances = "bp_cov"
bp_n_parameters = "bp_n"
bp_basis_function_id = "bp_basis"

[archive]
url = "https://nowhere.example/tap"
has_spectrum = "xp = 1"
needed = ["source_id", "ra", "dec", "parallax", "parallax_error"]

[archive.tables]
source = "new.source"
quality = ""

[archive.names]
source_id = "object"
parallax = "plx"

[parallax]
zero_point = "column"
zero_point_column = "plx_zp"
parallax_bit = 2
pseudocolour_bit = 6
"""
N_XP = 30
TO_NAN = ("fidelity_v2", "norm_dg", "ruwe")  # columns that its archive lacks


def write_release(folder):
    """Its file and its basis table, of smooth functions."""
    path = folder / "new.toml"
    path.write_text(RELEASE)
    wavelength = np.arange(400.0, 981.0, 20.0)
    x = (wavelength - 400) / 290 - 1
    arrays = {"wavelength": wavelength, "unit": "1e-18 W m-2 nm-1", "source": "made up"}
    arrays["bp_weight"] = np.clip((660 - wavelength) / 40, 0, 1)
    arrays["rp_weight"] = 1 - arrays["bp_weight"]
    for band, n in (("bp", 51), ("rp", 55)):
        design = np.cos(np.arange(n)[:, None] * np.arccos(np.clip(x * 0.97, -1, 1)))
        arrays[f"{band}_design"] = design * (arrays[f"{band}_weight"] > 0)
    np.savez(folder / "new_basis.npz", **arrays)
    return path


def write_csv(path, table, release):
    """The spectra as the archive of the release would have them."""
    names = [release.spectra.names.get(name, name) for name in table]
    lines = [",".join(names)]
    for star in range(len(table["source_id"])):
        cells = []
        for column in table.values():
            value = column[star]
            text = "[" + ",".join(map(repr, value.tolist())) + "]" if np.ndim(value) else value
            cells.append(f'"{text}"' if np.ndim(value) else str(text))
        lines.append(",".join(cells))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), 1))


def labels_of(sky, release):
    ids = np.concatenate([tables["xp"]["source_id"] for tables in sky.values()])
    n = len(ids)
    return {
        release.id_column: ids,
        "params_est": np.tile([5.0, -0.1, 4.4], (n, 1)),
        "params_err": np.full((n, 3), 0.1),
    }


def write_labels(path, labels, release):
    id_column = next(iter(labels))
    with ShardWriter(path, len(labels[id_column]), id_column, made_by(release)) as writer:
        writer.write_table(labels)


class World:
    """A data directory of one release, made by the steps' own command lines where they are ours."""

    def __init__(self, folder, release, option):
        self.folder, self.release, self.option = folder, release, option
        self.data = folder / "data"
        self.sky = make_sky(n_stars=8, release=release, seed=3)
        for tables in self.sky.values():
            tables["xp"] = {k: v for k, v in tables["xp"].items() if "standard" not in k}
            for name in TO_NAN:
                tables["metadata"].pop(name)

    def lay_out(self, *without):
        for fid, tables in self.sky.items():
            for kind, table in tables.items():
                if kind not in without:
                    write_kind(self.data, kind, fid, table, self.release, made_by(self.release))
        write_labels(self.folder / "labels.h5", labels_of(self.sky, self.release), self.release)

    def convert(self, release=None):
        for fid, tables in self.sky.items():
            name = self.release.spectra.file_name.format(fid=fid)
            write_csv(self.folder / "csv" / f"{name}.csv.gz", tables["xp"], self.release)
        return self._run(convert_xp_csv, release, self.folder / "csv")

    def step9(self, release=None, *options):
        return self._run(gen_xp_input_allsources, release, *options)

    def step7(self, release=None, *options):
        words = ["--stellar-params", self.folder / "labels.h5"]
        words += ["--output", self.folder / "training_data.h5"]
        return self._run(compile_training_data, release, *words, *options)

    def _run(self, module, release, *words):
        words = [*words, "--data-dir", self.data, "--release", release or self.option]
        return module.main([str(word) for word in words])

    def output(self, fid):
        return read_all(shard_path(self.data, "opt_input", fid))

    def training(self):
        return read_all(self.folder / "training_data.h5")


@pytest.fixture(scope="session")
def release_path(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("release"))


@pytest.fixture
def new(tmp_path, release_path):
    """A world of the made-up release, with all but its spectra laid out."""
    world = World(tmp_path, load_release(str(release_path)), release_path)
    world.lay_out("xp")
    return world


def assert_vectors(world, fid, table, rows):
    """`table`'s fluxes are those of `rows` of the shard's spectra, by the formulae."""
    basis = xp_utils.load_xp_basis(world.release)
    for place, star in enumerate(rows):
        flux, err = xp_oracle.flux_vector(world.sky[fid], star, basis, "gdr4_source_id")
        np.testing.assert_allclose(table["flux"][place], flux, rtol=2e-5, atol=1e-5 * flux.max())
        np.testing.assert_allclose(table["flux_err"][place], err, rtol=2e-5)


# ---- a release is a file ---------------------------------------------------------------------


def test_the_made_up_release_differs_from_dr3_in_everything_a_step_reads(new):
    dr3, release = load_release(), new.release
    for name in ("id_column", "reference_epoch", "name", "title"):
        assert getattr(dr3, name) != getattr(release, name)
    assert dr3.spectra.covariance != release.spectra.covariance
    assert len(release.spectra.wavelengths) == N_XP
    assert [release.spectra.bands[band].n_coefficients for band in XP_BANDS] == [51, 55]


def test_step_1_makes_shards_of_the_canonical_columns_from_its_bulk_files(new, capsys):
    assert new.convert() == 0, capsys.readouterr().err
    for fid in FIDS:
        with ShardReader(shard_path(new.data, "xp", fid)) as reader:
            reader.check(resolved("xp", Layout(new.release)))
            assert reader.attrs["release"] == "new"
            for name, column in new.sky[fid]["xp"].items():
                np.testing.assert_allclose(reader.read(name), column, rtol=1e-6, err_msg=name)


def test_step_9_makes_its_flux_vectors(new, capsys):
    assert new.convert() == 0
    assert new.step9() == 0, capsys.readouterr().err
    for fid in FIDS:
        table, spectra = new.output(fid), new.sky[fid]["xp"]
        assert table["flux"].shape == (8, N_XP + 5)
        np.testing.assert_array_equal(table["gdr4_source_id"], spectra["source_id"])
        assert_vectors(new, fid, table, range(8))
        for name in ("norm_dg", "ruwe"):
            assert np.isnan(table[name]).all()
    with ShardReader(shard_path(new.data, "opt_input", FIDS[0])) as reader:
        reader.check(resolved("opt_input", Layout(new.release)))
        assert reader.attrs["release"] == "new"
        assert reader.attrs["xp_basis"] == "made up"
        wavelengths = reader.attributes("flux")["sample_wavelengths"]
    np.testing.assert_array_equal(wavelengths[:N_XP], new.release.spectra.wavelengths)


def test_step_7_makes_its_training_set_without_the_cut_that_it_cannot_make(new, capsys):
    assert new.convert() == 0
    assert new.step7() == 0
    shown = capsys.readouterr().err
    assert "some metadata have no fidelity_v2, norm_dg, ruwe: NaN, and no cut on it" in shown
    table, start = new.training(), 0
    assert len(table["flux"]) == 24
    for fid in FIDS:
        part = {name: column[start : start + 8] for name, column in table.items()}
        assert_vectors(new, fid, part, range(8))
        start += 8
    with ShardReader(new.folder / "training_data.h5") as reader:
        reader.check(resolved("training", Layout(new.release)))
        assert reader.attrs["missing_metadata"] == "fidelity_v2 norm_dg ruwe"
        assert reader.attrs["release"] == "new"


def test_step_9_reads_foreign_spectra_under_the_names_of_the_release(new):
    names = new.release.spectra.names
    for fid in FIDS:
        path = shard_path(new.data, "xp", fid)
        path.parent.mkdir(exist_ok=True)
        with h5py.File(path, "w") as file:
            for name, column in new.sky[fid]["xp"].items():
                file[names.get(name, name)] = column
    assert new.step9() == 0
    assert_vectors(new, FIDS[1], new.output(FIDS[1]), range(8))


def test_a_parallax_that_the_release_needs_cannot_be_missing(new, capsys):
    new.lay_out()
    table = {k: v for k, v in new.sky[FIDS[0]]["metadata"].items() if k != "parallax"}
    write_kind(new.data, "metadata", FIDS[0], table, new.release)
    assert new.step9() == 1
    assert "no dataset parallax" in capsys.readouterr().err


# ---- releases do not mix ---------------------------------------------------------------------


def words_of(capsys):
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    return shown


def test_step_1_refuses_files_of_another_release(new, tmp_path, capsys):
    assert new.convert("dr3") == 1  # not even its names
    assert "expected the continuous spectra of Gaia DR3: give --release" in words_of(capsys)
    csv = next((new.folder / "csv").iterdir())
    fid = next(fid for fid in FIDS if fid in csv.name)
    dr3 = tmp_path / f"XpContinuousMeanSpectrum_{fid}.csv.gz"
    csv.rename(dr3)
    words = [str(dr3), "--data-dir", str(new.data)]
    assert convert_xp_csv.main(words) == 1
    assert "no column source_id" in words_of(capsys)


@pytest.mark.parametrize("kind", ["xp", "metadata", "tmass", "unwise"])
def test_step_9_refuses_a_shard_of_another_release(new, kind, capsys):
    new.lay_out()
    dr3 = load_release()
    other = make_sky(n_stars=8, release=dr3, seed=3)[FIDS[1]][kind]
    write_kind(new.data, kind, FIDS[1], other, dr3, made_by(dr3))
    assert new.step9() == 1
    shown = words_of(capsys)
    assert shard_path(new.data, kind, FIDS[1]).name in shown
    if kind in ("xp", "metadata"):  # in the others even the id column is called otherwise
        assert "of the release dr3, but new is in use: give --release dr3" in shown
    assert "2 done, 0 already complete, 1 failed" in shown
    assert not shard_path(new.data, "opt_input", FIDS[1]).exists()


@pytest.mark.parametrize("kind", ["xp", "metadata", "tmass", "unwise", "reddening"])
def test_step_7_refuses_a_shard_of_another_release(new, kind, capsys):
    new.lay_out()
    dr3 = load_release()
    other = make_sky(n_stars=8, release=dr3, seed=3)[FIDS[1]][kind]
    write_kind(new.data, kind, FIDS[1], other, dr3, made_by(dr3))
    assert new.step7() == 1
    assert shard_path(new.data, kind, FIDS[1]).name in words_of(capsys)
    assert not (new.folder / "training_data.h5").exists()


def test_step_7_refuses_labels_of_another_release(new, capsys):
    new.lay_out()
    dr3 = load_release()
    labels = labels_of(new.sky, dr3)
    write_labels(new.folder / "labels.h5", labels, dr3)
    assert new.step7() == 2
    assert "labels.h5: of the release dr3, but new is in use" in words_of(capsys)
    with h5py.File(new.folder / "labels.h5", "w") as file:  # that do not say of which they are
        file.update(labels)
    assert new.step7() == 2
    assert "gdr4_source_id is missing" in words_of(capsys)


@pytest.mark.parametrize("step", ["step7", "step9"])
def test_a_finished_output_of_another_release_is_refused_not_kept(new, step, capsys):
    new.lay_out()
    assert getattr(new, step)() == 0
    capsys.readouterr()
    other = new.folder / "newer.toml"
    other.write_text(RELEASE.replace('name = "new"', 'name = "newer"', 1))
    (new.folder / "new_basis.npz").write_bytes(new.release.spectra.basis.read_bytes())
    for path in new.data.rglob("*.h5"):  # inputs that say nothing of their release
        if "xp_opt_input" not in path.name:
            strip_release(path)
    strip_release(new.folder / "labels.h5")
    assert getattr(new, step)(other) > 0
    assert "of the release new, but newer is in use" in words_of(capsys)


def strip_release(path):
    with changed(path) as file:
        file.attrs.pop("release", None)


def test_spectra_that_say_nothing_of_their_release_are_refused_by_their_arrays(new, capsys):
    new.lay_out("xp")
    for fid, tables in make_sky(n_stars=8, release=load_release(), seed=3).items():
        write_kind(new.data, "xp", fid, dict(tables["xp"]), load_release())
    assert new.step9() == 1
    shown = words_of(capsys)
    assert "bp_coefficients is float64 with rows of shape (55,), expected f8 and (51,)" in shown
    assert "give --release" in shown


def test_provenance_of_a_file_names_its_release(new):
    assert provenance("x", [], [], new.release)["release"] == "new"
    assert "release" not in provenance("x", [], [])
