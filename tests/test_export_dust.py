"""R(V), R(55), A(V) of every star as columns of the exported catalogue, with errors."""

import numpy as np
import pyarrow.dataset
import pytest
from export_case import write_catalogue
from model_case import CHANNELS, RELEASE, make_flux_model
from test_export_table import read, run

from pipeline.extinction_law import DEFINITIONS, dust_of, law_of_model
from pipeline.provenance import see
from pipeline.write import write_arrays

N = 300
NAMES = [name + end for name in DEFINITIONS for end in ("", "_err")]


def write_model(folder, **changes):
    """An output folder of train.py with what the extinction curve is read from."""
    folder.mkdir()
    arrays = make_flux_model().to_arrays() | CHANNELS.to_arrays()
    arrays |= {"release": np.array(RELEASE.name)} | changes
    write_arrays(folder / "model.h5", arrays, {"script": "train"})
    return folder


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """(data directory, folder of the model that made it)."""
    folder = tmp_path_factory.mktemp("dust")
    model = write_model(folder / "model")
    write_catalogue(folder / "data", N, model=see(model / "model.h5").entry["identity"])
    return folder / "data", model


def expected(found, model):
    """`dust_of` the columns of a table."""
    law = law_of_model(model / "model.h5", RELEASE)
    names = ("xi", "ext", "xi_err", "ext_err", "xi_ext_corr")
    return dust_of(law, *(found[name] for name in names))


def test_dust_of_every_star_follows_from_its_xi_and_E_and_their_errors(case, tmp_path):
    data_dir, model = case
    assert run(data_dir, "--dust", model, "--out", tmp_path / "stars.fits") == 0
    found = read(tmp_path / "stars.fits")
    assert len(found["RV"]) == N
    for name, values in expected(found, model).items():
        np.testing.assert_allclose(found[name], values, rtol=2e-5, err_msg=name)
    unsolved = np.isnan(found["xi"])
    assert unsolved.sum() == 2
    assert all((np.isnan(found[name]) == unsolved).all() for name in NAMES)
    assert all((found[f"{name}_err"][~unsolved] > 0).all() for name in DEFINITIONS)


def test_dust_can_be_selected_and_cut_on_and_is_in_files_by_sky(case, tmp_path):
    data_dir, model = case
    words = ["--dust", model, "--columns", "gdr3_source_id", "xi*", "ext*", "RV*", "AV*"]
    words += ["--select", "RV > 3 and AV / AV_err > 1"]
    assert run(data_dir, *words, "--layout", "parquet", "--out", tmp_path / "sky") == 0
    dataset = tmp_path / "sky/catalogue/dataset"
    found = pyarrow.dataset.dataset(dataset, format="parquet").to_table().to_pydict()
    assert run(data_dir, "--dust", model, "--out", tmp_path / "stars.fits") == 0
    every = read(tmp_path / "stars.fits")
    kept = (every["RV"] > 3) & (every["AV"] / every["AV_err"] > 1)
    assert 0 < kept.sum() < N
    ids = np.argsort(found["gdr3_source_id"])
    for name in ("gdr3_source_id", "RV", "RV_err", "AV"):
        np.testing.assert_array_equal(np.array(found[name])[ids], every[name][kept], err_msg=name)


def test_a_model_that_did_not_make_the_catalogue_is_refused(case, tmp_path, capsys):
    data_dir, _ = case
    other = write_model(tmp_path / "other", ln_ext_curve=np.zeros(len(CHANNELS), "f4"))
    assert run(data_dir, "--dust", other, "--out", tmp_path / "stars.fits") == 2
    assert "made with another model" in capsys.readouterr().err
    assert run(data_dir, "--dust", tmp_path, "--out", tmp_path / "stars.fits") == 2
    assert "no trained model there" in capsys.readouterr().err
    assert not (tmp_path / "stars.fits").exists()


def test_published_layouts_have_no_place_for_dust(case, tmp_path, capsys):
    data_dir, model = case
    words = ["--dust", model, "--layout", "zgr23", "--out", tmp_path / "zgr23"]
    assert run(data_dir, *words) == 2
    assert "--dust" in capsys.readouterr().err


def test_dust_is_listed_with_its_words(case, capsys):
    data_dir, model = case
    assert run(data_dir, "--dust", model, "--list-columns") == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split(" ")[0] for line in lines} >= set(NAMES)
    assert next(line for line in lines if line.startswith("AV (")).endswith(
        "[mag]: A(550 nm), monochromatic"
    )
