"""The starter model of the repository, its card, and the command that builds it."""

import shlex

import numpy as np
import pytest

from demo.chain import ROOT, SCALE
from fitting.accuracy import accuracy
from fitting.model_file import load_model
from fitting.recipe import read_recipe
from fitting.split import held_out
from pipeline.errors import ShardError
from pipeline.schema import DEFAULT_LABELS, load_release
from pipeline.whole_files import write_bytes, write_text
from tools import build_starter_model as builder

FOLDER = ROOT / "models/starter"


@pytest.fixture(scope="module")
def trained():
    return load_model(FOLDER / "model.h5", load_release("dr3"))


def test_the_model_is_small_enough_for_the_repository():
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    assert size <= builder.MOST_BYTES


def test_the_model_says_that_its_parallaxes_are_not_gaias(trained):
    assert trained.parallax_scale == SCALE
    card = " ".join((FOLDER / "README.md").read_text().split())
    assert SCALE in card
    assert "`--use-parallaxes`" in card


def test_its_validation_stars_were_held_out_by_the_recipe():
    ids = np.loadtxt(FOLDER / "validation_ids.txt", dtype=np.int64)
    assert len(ids) == len(set(ids.tolist())) > 4000
    assert held_out(ids, read_recipe(ROOT / "recipe.toml")).all()


def test_its_spectra_are_those_of_stars(trained):
    """A hotter dwarf is brighter and bluer, and the Sun at 10 pc has its absolute magnitude."""
    flux, wavelengths = trained.stellar.flux, trained.stellar.channels.wavelengths
    types = np.array([[5.772, 0.0, 4.44], [5.0, 0.0, 4.55], [4.3, 0.0, 1.8]], "f4")
    ln_flux = flux.ln_flux(flux.standardise(types)).numpy()
    sun, cool, giant = np.exp(ln_flux.astype("f8"))
    blue, red = (np.argmin(abs(wavelengths - nm)) for nm in (452, 802))
    assert sun[blue] > cool[blue]
    assert sun[blue] / sun[red] > cool[blue] / cool[red] > giant[blue] / giant[red]
    assert giant[red] > 50 * sun[red]
    # M_V = 4.81 (Willmer 2018, ApJS 236, 47); zero of V 3.631e-11 W m^-2 nm^-1 at 550 nm, Vega.
    v = -2.5 * np.log10(sun[np.argmin(abs(wavelengths - 552))] * 1e-18 / 3.631e-11) - 10
    assert abs(v - 4.81) < 0.25


def test_the_build_is_steps_by_their_documented_command_lines():
    shown = [shlex.join(command) for command in builder.steps("stars.h5", "elsewhere")]
    assert shown == [
        "demo/build_sky.py --stars stars.h5 --out elsewhere/data --labels teff feh logg alpha_m",
        "compile_training_data.py --data-dir elsewhere/data --stellar-params "
        "elsewhere/data/training_params.h5 --output elsewhere/training_data.h5 "
        "--labels teff feh logg alpha_m:direct",
        "train.py -i elsewhere/training_data.h5 -o elsewhere/model --parallax-scale "
        "'spectro-photometric parallaxes'",
        "gen_xp_input_allsources.py --data-dir elsewhere/data",
        "xp_opt_allsources.py --data-dir elsewhere/data --model elsewhere/model",
    ]


def test_the_card_has_the_measured_scores():
    rng = np.random.default_rng(1)
    truth = np.column_stack([rng.uniform(4, 6, 500), np.zeros(500), rng.uniform(1, 5, 500)])
    noise = rng.normal(0, [0.04, 0.1, 0.1], (500, 3))
    found = accuracy(
        truth + noise, np.full((500, 3), 0.1), truth, np.zeros((500, 3)), DEFAULT_LABELS
    )
    table = builder.score_table(found, DEFAULT_LABELS)
    rows = [line.split("|")[1:-1] for line in table.splitlines()[2:]]
    assert [row[0].split()[0] for row in rows] == ["all"] * 3 + ["giants"] * 3 + ["dwarfs"] * 3
    assert float(rows[0][3]) == round(found["all"]["teff"]["scatter"])
    assert float(rows[1][4]) == pytest.approx(found["all"]["feh"]["pull_width"], abs=0.005)


def test_a_model_too_large_for_the_repository_is_refused(tmp_path, monkeypatch):
    (tmp_path / "work/model").mkdir(parents=True)
    write_bytes(tmp_path / "work/model/model.h5", b"x" * 100)
    write_text(tmp_path / "work/model/validation_ids.txt", "1\n")
    monkeypatch.setattr(builder, "MOST_BYTES", 99)
    with pytest.raises(ShardError, match="at most"):
        builder.copy_model(tmp_path / "work", tmp_path / "out")
    assert not (tmp_path / "out").exists()
