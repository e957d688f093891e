"""Step 10 by its command line, on demo stars and a tiny model of them.

It runs eagerly (see demo_model), but for the test that the compiled script finds the same. Tests
of what happens to files use a stand-in for the inference, which costs no time.
"""

import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from demo_model import ROOT, quick, run_python
from helpers import assert_same_datasets, flip_bit, read_all, truncate

import train
import xp_opt_allsources as step
import xp_utils
from fitting import catalogue
from fitting.catalogue import QualityFlag
from pipeline import read, select
from pipeline.read import ShardReader
from pipeline.select import shard_path
from pipeline.write import ShardWriter

N_STARS = 30  # of each shard that are used
WL = xp_utils.XP_WAVELENGTHS


# --- tools ----------------------------------------------------------------------------------
@pytest.fixture(autouse=True)
def no_slurm(monkeypatch):
    for name in list(os.environ):
        if name.startswith("SLURM"):
            monkeypatch.delenv(name)


def write_input(data_dir, fid, table, wavelengths=xp_utils.SAMPLE_WAVELENGTHS):
    path = shard_path(data_dir, "opt_input", fid)
    with ShardWriter(path, len(table["gdr3_source_id"]), "gdr3_source_id", {}) as writer:
        writer.write_table(table, units={"plx": "mas", "ra": "deg"})
        if wavelengths is not None and "flux" in table:
            writer.set_attributes("flux", sample_wavelengths=wavelengths)
    return path


@pytest.fixture(scope="module")
def tables(demo_model):
    """{fid: table} of the first stars of each shard of step 9."""
    out = {}
    for fid in select.list_fids(demo_model.data_dir, "opt_input"):
        table = read_all(shard_path(demo_model.data_dir, "opt_input", fid))
        out[fid] = {name: values[:N_STARS] for name, values in table.items()}
    return out


@pytest.fixture(scope="module")
def fids(tables):
    return list(tables)


@pytest.fixture
def sky(tmp_path, tables):
    """A fresh data directory of three small shards."""
    for fid, table in tables.items():
        write_input(tmp_path / "data", fid, table)
    return tmp_path / "data"


def output(data_dir, fid):
    return shard_path(data_dir, "opt_output", fid)


def run(data_dir, model, *options):
    """Exit status of the script, run in this process without compiling."""
    words = ["--data-dir", data_dir, "--model", model, "--threads", 1, *options]
    with quick():
        return step.main([str(word) for word in words])


@pytest.fixture(scope="module")
def result(demo_model, tables, tmp_path_factory):
    """A data directory with the outputs of all three shards."""
    data_dir = tmp_path_factory.mktemp("result")
    for fid, table in tables.items():
        write_input(data_dir, fid, table)
    assert run(data_dir, demo_model.model) == 0
    return data_dir


@pytest.fixture
def stand_in(monkeypatch):
    """Inference that takes no time: numbers that follow from each star's fluxes."""

    def infer(table, solver, trained):
        seed = table["flux"][:, :1] + trained.stellar.flux.bias_out.numpy()[0]
        n = len(seed)
        out = {
            name: np.broadcast_to(seed.reshape(n, *[1] * len(shape)), (n, *shape)).astype("f4")
            for name, shape in catalogue.INFERRED.items()
        }
        return out | {"n_flux": np.full(n, 66, "i2"), "quality_flags": np.zeros(n, "u2")}

    monkeypatch.setattr(catalogue, "infer", infer)


def full(triu):
    """(N, 6, 6) symmetric matrices of their upper triangles (N, 21)."""
    out = np.zeros((len(triu), 6, 6))
    row, column = np.triu_indices(6)
    out[:, row, column] = out[:, column, row] = triu
    return out


def assert_close_solutions(one, other, sigmas=0.05, share=1.0):
    """Estimates within a fraction of their errors, for this share of the stars at least."""
    off = np.abs(one["stellar_params_est"] - other["stellar_params_est"])
    near = (off <= sigmas * one["stellar_params_err"]).all(1)
    assert near.mean() >= share, off[~near] / one["stellar_params_err"][~near]


# --- what comes out -------------------------------------------------------------------------
def test_every_star_is_in_the_output_in_order_finite_or_flagged(result, tables):
    for fid, table in tables.items():
        found = read_all(output(result, fid))
        np.testing.assert_array_equal(found["gdr3_source_id"], table["gdr3_source_id"])
        finite = np.isfinite(found["stellar_params_est"]).all(1)
        finite &= np.isfinite(found["stellar_params_err"]).all(1)
        assert (finite | (found["quality_flags"] & QualityFlag.BAD_INPUT > 0)).all()
        assert finite.all()  # these are good stars


def test_copied_columns_are_those_of_the_input(result, tables):
    for fid, table in tables.items():
        found = read_all(output(result, fid))
        for name in step.COPIED:
            np.testing.assert_array_equal(found[name], table[name], name)
            assert found[name].dtype == table[name].dtype


def test_datasets_have_the_documented_shapes_types_and_units(result, fids):
    shapes = {
        "stellar_params_est": (6,), "stellar_params_err": (6,), "stellar_params_cov_triu": (21,),
        "stellar_params_icov_triu": (21,), "model_params_est": (6,), "model_params_err": (6,),
        "second_params_est": (6,), "second_delta_ln_post": (),
        "chi2_opt": (), "n_flux": (), "ln_prior": (), "ln_post": (), "teff_confidence": (),
        "feh_confidence": (), "logg_confidence": (), "quality_flags": (),
    }  # fmt: skip
    types = {"n_flux": "i2", "quality_flags": "u2"}
    with ShardReader(output(result, fids[0])) as reader:
        assert set(reader.columns) == {"gdr3_source_id", *step.COPIED, *shapes}
        for name, shape in shapes.items():
            values = reader.read(name)
            assert values.shape == (N_STARS, *shape), name
            assert values.dtype == types.get(name, "f4"), name
            assert name in step.__doc__ or "confidence" in name
            if name in catalogue.INFERRED:
                assert "description" in reader.attributes(name)
        assert reader.read("gdr3_source_id").dtype == "i8"
        assert reader.attributes("plx")["units"] == "mas"
        flags = reader.attributes("quality_flags")["description"]
        assert all(f"{flag.value}: {flag.name}" in flags for flag in QualityFlag)
        assert reader.attrs["script"] == "xp_opt_allsources"
        assert "model.h5" in reader.attrs["inputs"]
        assert f"xp_opt_input_{fids[0]}.h5" in reader.attrs["inputs"]


def test_parameters_are_in_physical_units(result, fids):
    est = np.concatenate([read_all(output(result, fid))["stellar_params_est"] for fid in fids])
    plx = np.concatenate([read_all(output(result, fid))["plx"] for fid in fids])
    assert 3 < np.median(est[:, 0]) < 8  # kK
    assert 0 < np.median(est[:, 2]) < 5
    assert (est[:, 3:5] > 0).all()
    assert np.median(np.abs(np.log(est[:, 4] / plx))) < 1  # mas both


def test_covariances_are_positive_inverse_and_fit_the_errors(result, fids):
    for fid in fids:
        found = read_all(output(result, fid))
        err = found["stellar_params_err"].astype("f8")
        scale = err[:, :, None] * err[:, None]
        correlation = full(found["stellar_params_cov_triu"]) / scale
        inverse = full(found["stellar_params_icov_triu"]) * scale
        np.testing.assert_allclose(np.einsum("nii->ni", correlation), 1, rtol=1e-5)
        assert (np.linalg.eigvalsh(correlation)[:, 0] > 0).all()
        size = np.abs(inverse).max(axis=(1, 2))
        product = (correlation @ inverse - np.eye(6)) / size[:, None, None]
        assert np.abs(product).max() < 1e-6


def test_validation_stars_are_inferred_as_training_said(demo_model, result, fids):
    validation = read_all(demo_model.model / "validation.h5")
    n = 0
    for fid in fids:
        found = read_all(output(result, fid))
        rows = read.join_rows(found["gdr3_source_id"], validation["gdr3_source_id"])
        both = rows >= 0
        n += both.sum()
        assert_close_solutions(
            read.take_rows(validation, rows[both]),
            {name: values[both] for name, values in found.items()},
        )
    assert n > 5


def test_order_of_the_rows_and_size_of_the_shard_do_not_matter(
    demo_model, tables, fids, result, tmp_path
):
    """One shuffled shard of all stars, in chunks that do not divide it."""
    together = {
        name: np.concatenate([tables[fid][name] for fid in fids]) for name in tables[fids[0]]
    }
    order = np.random.default_rng(0).permutation(len(together["plx"]))
    write_input(tmp_path, "000000-786431", {name: v[order] for name, v in together.items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "CHUNK_STARS", 37)
        assert run(tmp_path, demo_model.model) == 0
    found = read_all(output(tmp_path, "000000-786431"))
    parts = [read_all(output(result, fid)) for fid in fids]
    expected = {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}
    np.testing.assert_array_equal(found["gdr3_source_id"], expected["gdr3_source_id"])
    np.testing.assert_array_equal(found["ra"], expected["ra"])
    assert_close_solutions(found, expected)
    np.testing.assert_allclose(found["chi2_opt"], expected["chi2_opt"], rtol=0.02, atol=0.1)


def test_compiled_script_finds_what_the_eager_one_finds(demo_model, result, fids, tmp_path):
    shutil.copytree(result / "xp_opt_input_files", tmp_path / "xp_opt_input_files")
    command = [
        sys.executable,
        ROOT / "xp_opt_allsources.py",
        "--data-dir",
        tmp_path,
        "--model",
        demo_model.model,
        "--shards",
        fids[1],
        "--threads",
        "1",
    ]
    fast = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}  # to compile
    done = subprocess.run(command, env=fast, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 done, 0 already complete, 0 failed" in done.stderr
    assert f"stars: {N_STARS}" in done.stderr
    found, expected = (read_all(output(where, fids[1])) for where in (tmp_path, result))
    assert found.keys() == expected.keys()
    assert_close_solutions(found, expected, share=0.9)


# --- odd stars ------------------------------------------------------------------------------
def unused(table, row, channels):
    table["flux"][row, channels] = 0.0
    table["flux_err"][row, channels] = np.inf


ODD = {
    "as it is": lambda t, r: None,
    "no flux used": lambda t, r: unused(t, r, slice(None)),
    "no XP flux used": lambda t, r: unused(t, r, slice(0, 61)),
    "too few XP fluxes": lambda t, r: unused(t, r, slice(10, 61)),
    "BP missing": lambda t, r: unused(t, r, np.flatnonzero(WL < 645)),
    "RP missing": lambda t, r: unused(t, r, np.flatnonzero(WL > 635)),
    "no photometry": lambda t, r: unused(t, r, slice(61, 66)),
    "a gap": lambda t, r: unused(t, r, slice(30, 33)),
    "no parallax": lambda t, r: (
        t["plx"].__setitem__(r, np.nan),
        t["plx_err"].__setitem__(r, np.nan),
    ),
    "no parallax error": lambda t, r: t["plx_err"].__setitem__(r, np.nan),
    "negative parallax": lambda t, r: t["plx"].__setitem__(r, -0.5),
    "parallax of another star": lambda t, r: (
        t["plx"].__setitem__(r, 90.0),
        t["plx_err"].__setitem__(r, 0.01),
    ),
    "NaN flux": lambda t, r: t["flux"].__setitem__((r, 12), np.nan),
    "zero error": lambda t, r: t["flux_err"].__setitem__((r, 12), 0.0),
    "negative error": lambda t, r: t["flux_err"].__setitem__((r, 12), -1.0),
    "negative fluxes": lambda t, r: t["flux"].__setitem__((r, slice(0, 20)), -1.0),
    "all fluxes NaN": lambda t, r: t["flux"].__setitem__(r, np.nan),
    "absurdly bright": lambda t, r: t["flux"].__setitem__(r, 1e30),
    "absurdly faint": lambda t, r: t["flux"].__setitem__(r, 1e-30),
    "flat": lambda t, r: t["flux"].__setitem__(r, 1.0),
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
    "NaN flux",
    "zero error",
    "negative error",
}


@pytest.fixture(scope="module")
def odd(demo_model, tables, fids, tmp_path_factory):
    """{name of an oddity: row of the output}, all of the same star."""
    data_dir = tmp_path_factory.mktemp("odd")
    table = {name: np.repeat(values[:1], len(ODD), 0) for name, values in tables[fids[0]].items()}
    table["gdr3_source_id"] = table["gdr3_source_id"] + np.arange(len(ODD))
    for row, change in enumerate(ODD.values()):
        change(table, row)
    write_input(data_dir, fids[0], table)
    assert run(data_dir, demo_model.model) == 0
    found = read_all(output(data_dir, fids[0]))
    return {name: {k: v[row] for k, v in found.items()} for row, name in enumerate(ODD)}


@pytest.mark.parametrize("name", ODD)
def test_odd_star_is_finite_or_flagged(odd, name):
    star = odd[name]
    finite = all(
        np.isfinite(star[f"stellar_params_{k}"]).all()
        for k in ("est", "err", "cov_triu", "icov_triu")
    )
    bad = bool(star["quality_flags"] & QualityFlag.BAD_INPUT)
    assert finite != bad
    assert (name not in HOPELESS) or bad
    assert (name not in FINE) or finite
    for column in (*catalogue.INFERRED,):
        assert not np.isinf(star[column]).any(), column
    if bad:
        assert np.isnan(star["stellar_params_est"]).all()
        assert np.isnan(star["teff_confidence"])


def test_number_of_fluxes_counts_those_with_weight(odd):
    n = int(odd["as it is"]["n_flux"])
    assert odd["no flux used"]["n_flux"] == 0
    assert odd["no XP flux used"]["n_flux"] == n - 61
    assert odd["a gap"]["n_flux"] == n - 3
    for name in ("NaN flux", "zero error", "negative error"):
        assert odd[name]["n_flux"] == n - 1


def test_unknown_parallax_widens_the_error_and_a_wrong_one_is_flagged(odd):
    usual = odd["as it is"]["stellar_params_err"][4]
    for name in ("no parallax", "no parallax error"):
        assert odd[name]["stellar_params_err"][4] >= usual
        assert not odd[name]["quality_flags"] & QualityFlag.PARALLAX
    wrong = QualityFlag.PARALLAX | QualityFlag.CHI2 | QualityFlag.BAD_INPUT
    assert odd["parallax of another star"]["quality_flags"] & wrong


def test_flux_that_does_not_count_does_not_change_the_solution(odd):
    for name in ("zero error", "negative error"):
        assert_close_solutions(
            {k: v[None] for k, v in odd["NaN flux"].items()},
            {k: v[None] for k, v in odd[name].items()},
            sigmas=1e-3,
        )


def test_shard_without_stars_gives_a_whole_output_without_stars(
    demo_model, sky, tables, fids, stand_in
):
    write_input(sky, fids[1], {name: values[:0] for name, values in tables[fids[1]].items()})
    assert run(sky, demo_model.model) == 0
    empty, other = (read_all(output(sky, fid)) for fid in fids[1:])
    assert {k: v.shape[1:] for k, v in empty.items()} == {k: v.shape[1:] for k, v in other.items()}
    assert {k: v.dtype for k, v in empty.items()} == {k: v.dtype for k, v in other.items()}
    assert len(empty["ra"]) == 0


# --- parts, interruptions, outdated outputs -------------------------------------------------
def test_parts_together_are_the_whole(demo_model, sky, fids, tmp_path, stand_in):
    whole = tmp_path / "whole"
    shutil.copytree(sky, whole)
    assert run(whole, demo_model.model) == 0
    for k in range(4):
        assert run(sky, demo_model.model, "--partition", 4, k) == 0
    for fid in fids:
        assert_same_datasets(output(whole, fid), output(sky, fid))
    assert (sky / "logs/xp_opt_allsources_part3-of-4.log").exists()


KILLED = """
from pipeline import read
from pipeline import select
from pipeline import write
import xp_opt_allsources as step
whole, calls = write.ShardWriter.write_table, []
def write_table(self, table, **options):
    calls.append(1)
    if len(calls) < 2:
        return whole(self, table, **options)
    whole(self, dict(list(table.items())[:5]), **options)  # in the middle of the second shard
    os.kill(os.getpid(), signal.SIGKILL)
write.ShardWriter.write_table = write_table
with quick():
    step.main(sys.argv[1:])
"""


def test_killed_run_finished_by_running_again_gives_the_same_datasets(
    demo_model, sky, fids, result
):
    killed = run_python(KILLED, "--data-dir", sky, "--model", demo_model.model, "--threads", 1)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [output(sky, fid).exists() for fid in fids] == [True, False, False]
    first = output(sky, fids[0]).stat().st_mtime_ns
    assert run(sky, demo_model.model) == 0
    assert output(sky, fids[0]).stat().st_mtime_ns == first  # skipped
    for fid in fids:
        assert_same_datasets(output(result, fid), output(sky, fid))
    names = sorted(path.name for path in output(sky, fids[0]).parent.iterdir())
    assert names == [output(sky, fid).name for fid in fids]  # nothing of the killed run


def test_outputs_of_another_model_are_made_again_and_said(
    demo_model, sky, fids, tmp_path, stand_in, capsys
):
    model = tmp_path / "model"
    model.mkdir()
    shutil.copy(demo_model.model / "model.h5", model)
    assert run(sky, model) == 0
    before = read_all(output(sky, fids[0]))
    capsys.readouterr()
    assert run(sky, model) == 0
    assert "0 done, 3 already complete" in capsys.readouterr().err
    arrays, _ = train.read_arrays(model / "model.h5")
    arrays["bias_out"] = arrays["bias_out"] + np.float32(0.5)
    train.write_arrays(model / "model.h5", arrays, {})
    assert run(sky, model) == 0
    message = capsys.readouterr().err
    assert message.count("stale output is made again") == 3
    assert "model.h5" in message
    after = read_all(output(sky, fids[0]))
    assert not np.array_equal(before["stellar_params_est"], after["stellar_params_est"])


def test_model_copied_elsewhere_is_the_same_model(demo_model, sky, tmp_path, stand_in, capsys):
    assert run(sky, demo_model.model) == 0
    shutil.copytree(demo_model.model, tmp_path / "copy")
    capsys.readouterr()
    assert run(sky, tmp_path / "copy") == 0
    assert "0 done, 3 already complete" in capsys.readouterr().err


def test_changed_input_makes_its_output_outdated(demo_model, sky, tables, fids, stand_in, capsys):
    assert run(sky, demo_model.model) == 0
    table = tables[fids[2]] | {"plx": tables[fids[2]]["plx"] + 1}
    write_input(sky, fids[2], table)
    assert run(sky, demo_model.model) == 0
    assert "1 done, 2 already complete" in capsys.readouterr().err
    np.testing.assert_array_equal(read_all(output(sky, fids[2]))["plx"], table["plx"])


@pytest.mark.parametrize(
    "damage",
    [truncate, lambda path: os.truncate(path, 0), lambda path: flip_bit(path, "gdr3_source_id")],
)
def test_damaged_output_is_made_again(demo_model, sky, fids, damage, stand_in, capsys):
    assert run(sky, demo_model.model) == 0
    whole = read_all(output(sky, fids[0]))
    damage(output(sky, fids[0]))
    assert run(sky, demo_model.model) == 0
    assert "1 done, 2 already complete" in capsys.readouterr().err
    np.testing.assert_array_equal(read_all(output(sky, fids[0]))["ra"], whole["ra"])


# --- damaged inputs -------------------------------------------------------------------------
def assert_one_failed(sky, fids, model, capsys, *words):
    """The middle shard fails and is named; the others are done."""
    assert run(sky, model) == 1
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert "2 done, 0 already complete, 1 failed" in message
    for word in (fids[1], *words):
        assert word in message
    assert [output(sky, fid).exists() for fid in fids] == [True, False, True]
    assert len(list(output(sky, fids[0]).parent.iterdir())) == 2  # no half-written file either


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, "not a readable HDF5 file"),
        (lambda path: os.truncate(path, 0), "empty file (0 bytes)"),
        (lambda path: flip_bit(path, "flux"), "dataset flux, rows 0 to 30, cannot be read"),
        (lambda path: flip_bit(path, "norm_dg"), "dataset norm_dg"),
        (lambda path: path.write_text("<html>"), "not a readable HDF5 file"),
    ],
)
def test_damaged_input_is_named_and_the_others_done(
    demo_model, sky, fids, damage, words, stand_in, capsys
):
    path = shard_path(sky, "opt_input", fids[1])
    damage(path)
    assert_one_failed(sky, fids, demo_model.model, capsys, path.name, words)


@pytest.mark.parametrize("name", [*catalogue.OBSERVED, "ra", "phot_g_mean_flux", "input_flags"])
def test_missing_dataset_is_named(demo_model, sky, tables, fids, name, stand_in, capsys):
    table = {k: v for k, v in tables[fids[1]].items() if k != name}
    path = write_input(sky, fids[1], table)
    words = f"{path.name}: no dataset {name}; found: dec"
    assert_one_failed(sky, fids, demo_model.model, capsys, words)


@pytest.mark.parametrize(
    ("wavelengths", "words"),
    [
        (None, "0 sample_wavelengths that are not the model's 66"),
        (xp_utils.SAMPLE_WAVELENGTHS[:61], "61 sample_wavelengths that are not"),
        (xp_utils.SAMPLE_WAVELENGTHS + 1, "66 sample_wavelengths that are not"),
    ],
)
def test_other_wavelengths_are_refused(
    demo_model, sky, tables, fids, wavelengths, words, stand_in, capsys
):
    path = write_input(sky, fids[1], tables[fids[1]], wavelengths)
    assert_one_failed(sky, fids, demo_model.model, capsys, path.name, words)


@pytest.mark.parametrize("name", ["flux", "flux_err"])
def test_fluxes_of_another_shape_are_refused(demo_model, sky, tables, fids, name, stand_in, capsys):
    path = write_input(sky, fids[1], tables[fids[1]] | {name: np.ones((N_STARS, 61), "f4")})
    words = f"{path.name}: {name} has rows of shape (61,), expected (66,)"
    assert_one_failed(sky, fids, demo_model.model, capsys, words)


# --- models that are none -------------------------------------------------------------------
def changed_model(path, name, array):
    arrays, _ = train.read_arrays(path)
    if array is None:
        del arrays[name]
    else:
        arrays[name] = array
    train.write_arrays(path, arrays, {})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (os.unlink, "no trained model there"),
        (truncate, "not a readable HDF5 file"),
        (lambda path: os.truncate(path, 0), "empty file"),
        (lambda path: flip_bit(path, "noise_w_out"), "dataset noise_w_out"),
        (lambda path: path.write_text("{}"), "not a readable HDF5 file"),
        (lambda path: changed_model(path, "w_out", None), "not a model of train.py ('w_out')"),
        (lambda path: changed_model(path, "hull", None), "not a model of train.py ('hull')"),
        (lambda path: changed_model(path, "bias_1", np.zeros(3, "f4")), "not a model of train.py"),
        (lambda path: changed_model(path, "prior_means", np.zeros(3)), "not a model of train.py"),
        (lambda path: changed_model(path, "noise_b1", np.float32(1)), "not a model of train.py"),
    ],
)
def test_what_is_no_model_is_refused(demo_model, sky, tmp_path, damage, words, capsys):
    model = tmp_path / "model"
    model.mkdir()
    shutil.copy(demo_model.model / "model.h5", model)
    damage(model / "model.h5")
    assert run(sky, model) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert "model.h5" in message
    assert words in message
    assert not (sky / "xp_opt_output_files").exists()


def test_training_data_are_no_model(demo_model, sky, tmp_path, capsys):
    shutil.copy(demo_model.training_data, tmp_path / "model.h5")
    assert run(sky, tmp_path) == 2
    assert "not a model of train.py" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--shards", "000001-000002"), "000001-000002: not in"),
        (("--partition", 2, 2), "K must be 0..N-1"),
        (("--data-dir", "nowhere"), "nowhere"),
    ],
)
def test_wrong_usage_is_one_line(demo_model, sky, options, words, capsys):
    assert run(sky, demo_model.model, *options) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert words in message
