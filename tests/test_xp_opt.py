"""Step 10 by its command line, on demo stars and a tiny model of them: what comes out.

Nothing is compiled (see demo_model), but in the test that the compiled script finds the same.
"""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from demo_model import ROOT
from helpers import read_all
from step10_case import (
    CHUNK_STARS,
    FINE,
    HOPELESS,
    N_STARS,
    ODD,
    ODD_STARS,
    SHUFFLED,
    output,
)

from pipeline import joining
from pipeline.read import ShardReader
from pipeline.schema import DEFAULT_LABELS, LabelSet, Layout, flags, inferred_columns, resolved

BITS = flags.quality_flag(DEFAULT_LABELS)
INFERRED = inferred_columns(DEFAULT_LABELS)
FLOATS = [name for name, data in INFERRED.items() if data.dtype.startswith("f")]


@pytest.fixture(scope="module")
def found(step10):
    """{fid: datasets} of the outputs of the three shards."""
    return {fid: step10.output(fid) for fid in step10.fids}


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


def test_every_star_is_in_the_output_in_order_finite_or_flagged(found, step10):
    for fid, table in step10.tables.items():
        out = found[fid]
        np.testing.assert_array_equal(out["gdr3_source_id"], table["gdr3_source_id"])
        finite = np.isfinite(out["stellar_params_est"]).all(1)
        finite &= np.isfinite(out["stellar_params_err"]).all(1)
        assert (finite | (out["quality_flags"] & BITS.BAD_INPUT > 0)).all()
        assert finite.all()  # these are good stars


def test_copied_columns_are_those_of_the_input(found, step10):
    copied = set(resolved("opt_output", Layout())) - set(INFERRED)
    assert {"ra", "dec", "plx", "plx_err", "input_flags", "ruwe"} < copied
    for fid, table in step10.tables.items():
        for name in copied:
            np.testing.assert_array_equal(found[fid][name], table[name], name)
            assert found[fid][name].dtype == table[name].dtype


def test_output_is_as_the_schema_says(step10):
    with ShardReader(output(step10.data_dir, step10.fids[0])) as reader:
        datasets = resolved("opt_output", Layout())
        reader.check(datasets)
        assert set(reader.columns) == datasets.keys()
        for name, data in datasets.items():
            values = reader.read(name)
            assert values.shape == (N_STARS, *data.shape), name
            assert values.dtype == data.dtype, name
        assert reader.attributes("plx")["units"] == "mas"
        described = reader.attributes("quality_flags")["description"]
        assert all(f"{flag.value} {flag.name}" in described for flag in BITS)
        assert reader.attrs["script"] == "xp_opt_allsources"
        assert reader.attrs["release"] == "dr3"
        assert reader.attrs["xp_basis"] == step10.basis
        assert LabelSet.from_json(reader.attrs["labels"]) == DEFAULT_LABELS
        for name in ("model.h5", f"xp_opt_input_{step10.fids[0]}.h5"):
            assert name in reader.attrs["inputs"]


@pytest.mark.parametrize("kind", ["stellar_params_est", "model_params_err", "second_params_est"])
def test_parameters_are_named_with_their_units(step10, kind):
    with ShardReader(output(step10.data_dir, step10.fids[0])) as reader:
        words = reader.attributes(kind)
        labels = reader.attributes("stellar_params_cov_triu")["parameters"]
    assert list(words["parameters"]) == ["teff", "feh", "logg", "xi", "E", "parallax"]
    assert list(labels) == list(words["parameters"])
    assert words["parameter_units"][0] == "kK"
    assert words["parameter_units"][5] == "mas"


def test_parameters_are_in_physical_units(found):
    est = np.concatenate([out["stellar_params_est"] for out in found.values()])
    plx = np.concatenate([out["plx"] for out in found.values()])
    assert 3 < np.median(est[:, 0]) < 8  # kK
    assert 0 < np.median(est[:, 2]) < 5
    assert (est[:, 4:] > 0).all()
    assert np.median(np.abs(np.log(est[:, 5] / plx))) < 1  # mas both


def test_precision_inverted_gives_the_errors_and_the_covariance_of_every_star(step10, found):
    for out in (*found.values(), step10.output(ODD_STARS)):
        finite = np.isfinite(out["stellar_params_est"]).all(1)
        out = {name: values[finite] for name, values in out.items()}
        err = out["stellar_params_err"].astype("f8")
        assert out["stellar_params_icov_triu"].dtype == np.float64
        inverse = np.linalg.inv(full(out["stellar_params_icov_triu"]))
        np.testing.assert_allclose(np.sqrt(np.einsum("nii->ni", inverse)), err, rtol=1e-4)
        scale = err[:, :, None] * err[:, None]
        correlation = full(out["stellar_params_cov_triu"]) / scale
        np.testing.assert_allclose(inverse / scale, correlation, atol=1e-4)
        np.testing.assert_allclose(np.einsum("nii->ni", correlation), 1, rtol=1e-5)
        assert (np.linalg.eigvalsh(correlation)[:, 0] > 0).all()


def test_validation_stars_are_inferred_as_training_said(demo_model, found):
    validation = read_all(demo_model.model / "validation.h5")
    n = 0
    for out in found.values():
        rows = joining.join_rows(out["gdr3_source_id"], validation["gdr3_source_id"])
        both = rows >= 0
        n += both.sum()
        known = joining.take_rows(validation, rows[both])
        assert_close_solutions(known, {name: values[both] for name, values in out.items()})
    assert n > 5


def test_order_of_the_rows_and_size_of_the_shard_do_not_matter(step10, found):
    """One shuffled shard of all stars, in chunks that do not divide it."""
    out, parts, (_, order) = step10.output(SHUFFLED), list(found.values()), step10.shuffled()
    expected = {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}
    assert len(order) % CHUNK_STARS
    np.testing.assert_array_equal(out["gdr3_source_id"], expected["gdr3_source_id"])
    np.testing.assert_array_equal(out["ra"], expected["ra"])
    assert_close_solutions(out, expected)
    np.testing.assert_allclose(out["chi2_opt"], expected["chi2_opt"], rtol=0.02, atol=0.1)


def test_compiled_script_finds_the_same_and_shows_its_own_lines_alone(step10, found, tmp_path):
    """TensorFlow's notices do not reach the terminal, from its loading to its compiler's."""
    fid = step10.fids[1]
    shutil.copytree(step10.data_dir / "xp_opt_input_files", tmp_path / "xp_opt_input_files")
    words = ["--data-dir", tmp_path, "--model", step10.model, "--shards", fid]
    command = [sys.executable, ROOT / "xp_opt_allsources.py", *words, "--threads", "1"]
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TF_CPP")}
    done = subprocess.run(command, env=kept, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    out, expected = read_all(output(tmp_path, fid)), found[fid]
    counts = {"stars": N_STARS} | flags.counts(BITS, out["quality_flags"])
    assert done.stderr.splitlines() == [
        "xp_opt_allsources: 1 done, 0 already complete, 0 failed",
        *(f"  {name}: {n}" for name, n in counts.items()),
    ]
    assert done.stdout == ""
    assert out.keys() == expected.keys()
    # What is run in this process gives up early; and of both, what is left to gain is a sigma's
    # 0.1 at most.
    both = (out["quality_flags"] | expected["quality_flags"]) & BITS.NOT_CONVERGED == 0
    assert both.mean() > 0.3
    pair = ({name: values[both] for name, values in x.items()} for x in (out, expected))
    assert_close_solutions(*pair, sigmas=0.2, share=0.9)


# --- odd stars ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def odd(step10):
    """{name of an oddity: row of the output}, all of the same star."""
    out = step10.output(ODD_STARS)
    return {name: {k: v[row] for k, v in out.items()} for row, name in enumerate(ODD)}


@pytest.mark.parametrize("name", ODD)
def test_odd_star_is_finite_or_flagged(odd, name):
    star = odd[name]
    finite = all(
        np.isfinite(star[f"stellar_params_{k}"]).all()
        for k in ("est", "err", "cov_triu", "icov_triu")
    )
    bad = bool(star["quality_flags"] & BITS.BAD_INPUT)
    assert finite != bad
    assert (name not in HOPELESS) or bad
    assert (name not in FINE) or finite
    for column in FLOATS:
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


def test_parallax_of_another_star_is_flagged_but_none_is_not(odd):
    for name in ("no parallax", "no parallax error"):
        assert not odd[name]["quality_flags"] & BITS.PARALLAX
    wrong = BITS.PARALLAX | BITS.CHI2 | BITS.BAD_INPUT
    assert odd["parallax of another star"]["quality_flags"] & wrong


def test_star_of_low_fidelity_is_flagged_and_solved_as_one_without_a_parallax(odd):
    flagged = {name for name, star in odd.items() if star["quality_flags"] & BITS.LOW_FIDELITY}
    assert flagged == {"low fidelity"}
    for name, same in (("low fidelity", "no parallax"), ("unknown fidelity", "as it is")):
        one, other = ({k: v[None] for k, v in odd[n].items()} for n in (name, same))
        assert_close_solutions(one, other, sigmas=1e-3)


def test_star_without_BP_or_RP_is_flagged(odd):
    for name in ("BP missing", "RP missing"):
        assert odd[name]["quality_flags"] & BITS.BAND_MISSING
    for name in ("as it is", "no photometry", "a gap"):
        assert not odd[name]["quality_flags"] & BITS.BAND_MISSING


def test_what_is_odd_is_told_of_every_star_and_tension_where_there_is_a_parallax(found, odd):
    for out in found.values():
        p = out["blend_probability"] + out["strange_probability"]
        assert ((p > 0) & (p < 1)).all()
        assert np.isfinite(out["parallax_tension"]).all()
    assert np.isnan(odd["no parallax"]["parallax_tension"])
    assert abs(odd["parallax of another star"]["parallax_tension"]) > 3


def test_flux_that_does_not_count_does_not_change_the_solution(odd):
    for name in ("zero error", "negative error"):
        assert_close_solutions(
            {k: v[None] for k, v in odd["NaN flux"].items()},
            {k: v[None] for k, v in odd[name].items()},
            sigmas=1e-3,
        )
