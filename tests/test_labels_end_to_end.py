"""Steps 7 to 10 by their command lines with other labels, and of another release.

Two labels of the stars of a made-up release, whose spectra have another number of wavelengths; and
four labels of demo stars beside one that the direct estimate alone gives.
"""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from demo_model import (
    make_sky,
    make_training_data,
    run_inference,
    run_step,
    run_train,
    stage,
    write_recipe,
)
from helpers import FIDS, lay_out, read_all
from helpers import make_sky as planck_sky
from test_release import N_XP, write_release

import gen_xp_input_allsources
import train
from fitting.model_file import load_model
from pipeline import select
from pipeline.errors import ShardError
from pipeline.read import ShardReader
from pipeline.schema import DEFAULT_RELEASE, LabelSet, Layout, flags, load_release, resolved
from pipeline.schema.labels import parse_label
from pipeline.select import shard_path
from pipeline.write import ShardWriter

# Words of --labels of step 7.
CASES = {
    "two": ["logg", "teff"],
    "four": ["teff", "feh", "logg", "alpha_m", "ak_targ:mag:1:0.1:direct"],
}
STAGES = [
    stage(steps=4, max_epochs=2, select={"max_err": {"teff": 0.5, "feh": 0.5}}),
    stage("stars"),
    stage("posterior", steps=1),
    stage("calibration", steps=1),
    stage("direct", steps=8),
    stage("distance", steps=2),
    stage("oddity", steps=2),
]
CHANGES = {"calibration_fraction": 0.18, "simulated_stars": 20, "stages": STAGES}


def demo_stars(folder, words):
    """Demo stars, and a label file with columns of the labels' names."""
    names = [":".join(word.split(":")[:4]) for word in words]
    make_sky(folder / "data", "--labels", *names, n_stars=330, n_shards=10)
    return DEFAULT_RELEASE


def stars_of_another_release(folder, words):
    """Stars with Planck spectra, and labels of which one follows their colours."""
    path = write_release(folder)
    release, data_dir, rng = load_release(str(path)), folder / "data", np.random.default_rng(0)
    lay_out(data_dir, planck_sky(n_stars=110, release=release, seed=3), release=release)
    run_step(gen_xp_input_allsources, "--data-dir", data_dir, "--release", path)
    parts = [read_all(shard_path(data_dir, "opt_input", fid)) for fid in FIDS]
    flux, ids = (np.concatenate([p[k] for p in parts]) for k in ("flux", release.id_column))
    teff = (5.5 + np.log(np.abs(flux[:, 3] / flux[:, N_XP - 3]))).clip(2, 9)
    est = np.column_stack([rng.normal(4, 0.3, len(ids)), teff])
    made_by = {"release": release.name}
    with ShardWriter(data_dir / "training_params.h5", len(ids), release.id_column, made_by) as file:
        file.write_table({release.id_column: ids, "params_est": est})
        file.write("params_err", 0, np.full(est.shape, 0.1))
    return path


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """What the steps made: labels, and the paths of the files; what step 10 said."""
    words, folder = CASES[request.param], tmp_path_factory.mktemp(request.param)
    make = stars_of_another_release if request.param == "two" else demo_stars
    data_dir, training_data, model = folder / "data", folder / "training.h5", folder / "model"
    release = make(folder, words)
    make_training_data(data_dir, training_data, "--labels", *words, "--release", release)
    recipe = write_recipe(folder / "recipe.toml", **CHANGES)
    assert run_train(training_data, model, "--release", release, recipe=recipe) == 0
    fid = select.list_fids(data_dir, "opt_input")[0]
    of_it = ["--shards", fid, "--release", release]
    assert run_inference(data_dir, model, *of_it) == 0
    labels, release = LabelSet(map(parse_label, words)), load_release(str(release))
    return SimpleNamespace(
        release=release,
        labels=labels,
        layout=Layout(release, labels),
        training_data=training_data,
        model=model,
        input=shard_path(data_dir, "opt_input", fid),
        output=shard_path(data_dir, "opt_output", fid),
        log=(data_dir / "logs/xp_opt_allsources.log").read_text(),
    )


def matrices(triangles, n):
    out = np.zeros((len(triangles), n, n))
    row, column = np.triu_indices(n)
    out[:, row, column] = out[:, column, row] = triangles
    return out


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("training", lambda case: case.training_data),
        ("validation", lambda case: case.model / "validation.h5"),
        ("opt_output", lambda case: case.output),
    ],
)
def test_files_are_as_the_schema_says_for_their_labels_and_release(case, kind, path):
    with ShardReader(path(case)) as reader:
        datasets = resolved(kind, case.layout)
        reader.check(datasets)
        assert reader.attrs["release"] == case.release.name
        assert reader.id_column == case.release.id_column
        assert set(reader.columns) == datasets.keys()
        for name, data in datasets.items():
            for key, value in data.attributes.items():
                assert np.array_equal(reader.attributes(name)[key], value), (name, key)


def test_labels_go_from_the_training_set_to_the_catalogue(case):
    with ShardReader(case.training_data) as reader:
        assert LabelSet.from_json(reader.attributes("stellar_type")["labels"]) == case.labels
    assert load_model(case.model / "model.h5", case.release).stellar.labels == case.labels
    with ShardReader(case.output) as reader:
        assert LabelSet.from_json(reader.attrs["labels"]) == case.labels
        parameters = list(reader.attributes("stellar_params_est")["parameters"])
    names = [label.name for label in case.labels if label.forward]
    assert parameters == [*names, "xi", "E", "parallax"]


def test_every_star_is_in_the_catalogue_and_its_precision_is_that_of_its_errors(case):
    out, n = read_all(case.output), len(case.labels.forward) + 3
    ids = read_all(case.input)[case.release.id_column]
    np.testing.assert_array_equal(out[case.release.id_column], ids)
    assert len(ids) > 10
    finite = np.isfinite(out["stellar_params_est"]).all(1)
    bad = flags.quality_flag(case.labels).BAD_INPUT
    np.testing.assert_array_equal(finite, out["quality_flags"] & bad == 0)
    assert finite.mean() > 0.9
    inverse = np.linalg.inv(matrices(out["stellar_params_icov_triu"][finite], n))
    sigma = np.sqrt(np.einsum("nii->ni", inverse))
    np.testing.assert_allclose(sigma, out["stellar_params_err"][finite], rtol=1e-4)
    cov = matrices(out["stellar_params_cov_triu"][finite], n)
    size = sigma[:, :, None] * sigma[:, None]
    np.testing.assert_allclose(inverse / size, cov / size, atol=1e-4)
    assert (out["stellar_params_est"][finite, -2:] > 0).all()  # E, parallax


def test_each_label_has_a_confidence_and_a_flag(case):
    out, bits = read_all(case.output), flags.quality_flag(case.labels)
    for label in case.labels:
        confidence, name = out[f"{label.name}_confidence"], f"{label.name.upper()}_CONFIDENCE"
        assert ((confidence >= 0) & (confidence <= 1) | np.isnan(confidence)).all()
        flagged = out["quality_flags"] & bits[name] > 0
        np.testing.assert_array_equal(flagged, confidence < flags.CONFIDENCE_LIMIT)
        assert f"  {name}: {flagged.sum()}" in case.log.splitlines()
    with ShardReader(case.output) as reader:
        words = reader.attributes("quality_flags")["description"]
    assert ("ALPHA_M_CONFIDENCE" in words) == ("alpha_m" in case.labels.place)


def test_validation_scores_every_label(case):
    scores = json.loads((case.model / "validation.json").read_text())
    columns = read_all(case.model / "validation.h5")
    listed = (case.model / "validation_ids.txt").read_text().split()
    assert [int(word) for word in listed] == columns[case.release.id_column].tolist()
    assert scores["stars"] == len(columns["stellar_type"]) > 30
    for group in (scores["all"], scores["forward model alone"]["all"]):
        assert group.keys() == {"n", *case.labels.texts("name")}
    place = case.labels.forward.place
    finite = np.isfinite(columns["stellar_params_est"]).all(1)
    for k, label in enumerate(case.labels):
        name, params = label.name, columns["stellar_params_est"]
        est = params[:, place[name]] if label.forward else columns[f"{name}_est"]
        offset = np.median((est - columns["stellar_type"][:, k])[finite]) * label.scale
        assert scores["all"][name]["offset"] == pytest.approx(offset, rel=1e-3, abs=1e-5)


def test_figures_of_any_labels_are_drawn(case):
    names = {path.name for path in case.model.glob("*.png")}
    assert names >= {
        "validation.png", "stars.png", "confidence.png", "residuals.png", "model_spectra.png"
    }  # fmt: skip


def test_label_of_the_direct_estimate_alone_is_no_parameter_but_has_columns(case):
    out = read_all(case.output)
    for label in case.labels:
        for kind in ("est", "err"):
            name = f"{label.name}_{kind}"
            assert (name in out) != label.forward
            if not label.forward:
                assert np.isfinite(out[name]).all()
                assert (kind == "est") or (out[name] > 0).all()


# ---- another release -------------------------------------------------------------------------


def test_model_has_the_wavelengths_basis_and_name_of_its_release(case):
    stellar = load_model(case.model / "model.h5", case.release).stellar
    n = len(case.release.spectra.wavelengths)
    assert stellar.release == case.release.name
    assert stellar.channels.n_xp == n
    assert stellar.noise.n_wl == len(case.layout.wavelengths) == n + 5
    np.testing.assert_allclose(stellar.channels.wavelengths, case.layout.wavelengths)
    assert read_all(case.output)["n_flux"].max() <= n + 5
    with ShardReader(case.input) as reader:
        assert stellar.xp_basis == reader.attrs["xp_basis"]


def test_nothing_odd_is_told_of_a_release_without_typical_noise(case):
    """Its training skips that stage, and says so; the tension of a parallax is told anyway."""
    out, known = read_all(case.output), case.release.spectra.noise is not None
    assert known == (case.release.name == "dr3")
    skipped = "stage oddity: skipped: the release has no typical noise"
    assert (skipped in (case.model / "train.log").read_text()) != known
    solved = np.isfinite(out["stellar_params_est"]).all(1)
    for name in ("blend_probability", "strange_probability"):
        assert (np.isfinite(out[name][solved]) == known).all()
    assert np.isfinite(out["parallax_tension"][solved & (out["plx_err"] > 0)]).all()
    levels = load_model(case.model / "model.h5", case.release).errors.levels
    assert len(levels) == (2 if known else 1)


def test_files_of_another_release_are_refused(case):
    other, name = dataclasses.replace(case.release, name="other"), case.release.name
    words = f"{name}, but other is in use: give --release {name}"
    with pytest.raises(ShardError, match=f"trained on {words}"):
        load_model(case.model / "model.h5", other)
    with pytest.raises(ShardError, match=f"of the release {words}"):
        train.read_training_data(case.training_data, other)
