"""The catalogue's columns, flags, confidences and scores."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from oracle import (
    N_WL,
    THETA_MEAN,
    THETA_SCALE,
    Oracle,
    make_model,
    mock_stars,
    shared_solver,
)
from scipy.spatial import ConvexHull
from scipy.special import expit

import xp_utils
from fitting import catalogue, star_solver
from fitting.catalogue import (
    CONFIDENCES,
    INFERRED,
    MIN_XP_FLUXES,
    QualityFlag,
    TrainedModel,
    accuracy,
    confidence_features,
    format_accuracy,
    infer,
    is_right,
    quality_flags,
    robust_width,
)
from fitting.posterior import CURVATURE_ALONE, MODEL_ALONE, estimates, pool, widened
from fitting.star_solver import StarData, StarSolver
from model import DirectNetwork, ln_flux_data
from pipeline.write import ShardWriter

SCORE = Path(__file__).resolve().parents[2] / "shared" / "real" / "score.py"
N_FEATURES = 34
TRIU = np.triu_indices(6)
HIGH = 0.95  # all confidences of `trained`
LOGIT = np.log(HIGH / (1 - HIGH))


@pytest.fixture(scope="module")
def solver():
    return shared_solver()


def make_trained(stellar, offset=(LOGIT, LOGIT, LOGIT), weight=0.0, **changes):
    """A `TrainedModel` with constant confidences (unless weight) and a wide training range."""
    rng = np.random.default_rng(0)
    corners = THETA_MEAN + 8 * THETA_SCALE * np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1).T
    values = {
        "confidence_mean": rng.normal(size=N_FEATURES),
        "confidence_scale": np.ones(N_FEATURES),
        "confidence_weight": weight * rng.normal(size=(3, N_FEATURES)),
        "confidence_offset": np.array(offset),
        "hull": ConvexHull(corners).equations,
        "ranges": np.array([[0, -20, -20], [20, 20, 20.0]]),
        "error_factors": CURVATURE_ALONE,
        "pool_weights": MODEL_ALONE,
    }
    return TrainedModel(stellar, **(values | changes))


@pytest.fixture(scope="module")
def trained(solver):
    return make_trained(solver.model)


@pytest.fixture(scope="module")
def table(solver):
    """Observed columns of 60 mock stars; the first ten have too few fluxes or miss something."""
    data, _ = mock_stars(solver.model, 60, seed=21)
    columns = {name: getattr(data, name).copy() for name in catalogue.OBSERVED}
    err, n_xp = columns["flux_err"], xp_utils.N_XP
    err[0] = np.inf  # nothing
    err[1, :n_xp] = np.inf  # photometry only
    err[2, MIN_XP_FLUXES - 1 : n_xp] = np.inf  # one XP flux too few
    err[3, MIN_XP_FLUXES:n_xp] = np.inf  # just enough
    columns["flux"][4] = np.nan  # errors without fluxes
    err[5, 61:] = np.inf
    columns["plx"][6] = columns["plx_err"][6] = np.nan
    columns["plx"][7] += 15 * columns["plx_err"][7]
    columns["flux"][8] *= 1 + np.sin(np.arange(N_WL) ** 2)  # no star
    return columns


BAD = [0, 1, 2, 4]


@pytest.fixture(scope="module")
def inferred(table, solver, trained):
    return infer(table, solver, trained)


# ---------------------------------------------------------------------------------------- flags


def test_flags_are_distinct_powers_of_two_that_fit_their_column(inferred):
    values = [flag.value for flag in QualityFlag]
    assert sorted(values) == [2**k for k in range(len(values))]
    assert sum(values) <= np.iinfo(inferred["quality_flags"].dtype).max


def test_bits_of_the_published_catalogue_keep_their_meaning():
    names = (
        "TEFF_CONFIDENCE",
        "FEH_CONFIDENCE",
        "LOGG_CONFIDENCE",
        "CHI2",
        "LN_PRIOR",
        "PARALLAX",
        "NOT_CONVERGED",
        "BAD_INPUT",
    )
    assert [QualityFlag[name].value for name in names] == [1, 2, 4, 8, 16, 32, 64, 128]


@pytest.fixture
def clean(solver):
    """Two stars without any flag: (found, converged, n_xp, data)."""
    data, _ = mock_stars(solver.model, 2, seed=4)
    est = np.tile([*THETA_MEAN, 0.5, 1.0, 0.0], (2, 1))
    est[:, 4] = data.plx
    found = {
        "stellar_params_est": est,
        "stellar_params_err": np.full((2, 6), 0.1),
        "model_params_est": est.copy(),
        "model_params_err": np.full((2, 6), 0.1),
        "second_delta_ln_post": np.array([np.nan, -3.0]),
        "chi2_opt": np.full(2, 60.0),
        "ln_prior": np.full(2, -3.0),
        "n_flux": np.full(2, 66),
    }
    return found, np.ones(2, bool), np.full(2, 61), data


def test_clean_star_has_no_flag(clean, trained):
    np.testing.assert_array_equal(quality_flags(*clean, trained), 0)
    for name in CONFIDENCES:
        np.testing.assert_allclose(clean[0][name], HIGH)


# What is done to the second star: column, index in it, value; and the flags it then has.
CHANGES = [
    ("chi2_opt", (), 2 * 61 * 0.999, 0),
    ("chi2_opt", (), 2 * 61 * 1.001, QualityFlag.CHI2),
    ("ln_prior", (), -8.99, 0),  # the floor of `make_prior` is -9
    ("ln_prior", (), -9.01, QualityFlag.LN_PRIOR),
    ("stellar_params_est", 0, THETA_MEAN[0] + 8.1 * THETA_SCALE[0], QualityFlag.OUT_OF_RANGE),
    ("stellar_params_est", 1, THETA_MEAN[1] - 8.1 * THETA_SCALE[1], QualityFlag.OUT_OF_RANGE),
    ("stellar_params_est", 2, THETA_MEAN[2] + 7.9 * THETA_SCALE[2], 0),
    ("stellar_params_est", 3, 19.9, 0),
    ("stellar_params_est", 3, 20.1, QualityFlag.OUT_OF_RANGE),
    ("stellar_params_est", 2, np.nan, QualityFlag.BAD_INPUT),
]


@pytest.mark.parametrize(("name", "index", "value", "expected"), CHANGES)
def test_flag_is_set_just_when_its_condition_holds(clean, trained, name, index, value, expected):
    found, converged, n_xp, data = clean
    found[name][(1, index) if index != () else 1] = value
    np.testing.assert_array_equal(
        quality_flags(found, converged, n_xp, data, trained), [0, int(expected)]
    )


def test_chi2_limit_counts_the_XP_fluxes_used(clean, trained):
    found, converged, _, data = clean
    flags = quality_flags(found, converged, np.array([31, 29]), data, trained)  # chi^2 is 60
    np.testing.assert_array_equal(flags, [0, QualityFlag.CHI2])


@pytest.mark.parametrize(
    ("sigmas", "expected"),
    [(9.9, 0), (-9.9, 0), (10.1, QualityFlag.PARALLAX), (-10.1, QualityFlag.PARALLAX)],
)
def test_parallax_flag_is_set_beyond_10_sigma(clean, trained, sigmas, expected):
    found, converged, n_xp, data = clean
    found["stellar_params_est"][1, 4] = data.plx[1] + sigmas * data.plx_err[1]
    flags = quality_flags(found, converged, n_xp, data, trained)
    np.testing.assert_array_equal(flags, [0, int(expected)])
    data.plx[1] = np.nan
    np.testing.assert_array_equal(quality_flags(found, converged, n_xp, data, trained), 0)


def test_star_that_did_not_converge_is_flagged(clean, trained):
    found, _, n_xp, data = clean
    flags = quality_flags(found, np.array([True, False]), n_xp, data, trained)
    np.testing.assert_array_equal(flags, [0, QualityFlag.NOT_CONVERGED])


@pytest.mark.parametrize("parameter", range(3))
def test_confidence_flag_is_set_for_its_parameter_below_one_half(clean, solver, parameter):
    offset = np.full(3, 0.01)
    offset[parameter] = -0.01
    flags = quality_flags(*clean, make_trained(solver.model, offset))
    np.testing.assert_array_equal(flags, 2**parameter)


@pytest.mark.parametrize("feature", [1, 2])
@pytest.mark.parametrize("end", [0, 1])
def test_brightness_and_error_level_outside_the_training_range_are_flagged(
    clean, solver, feature, end
):
    features = ln_flux_data(clean[3].flux, clean[3].flux_err).features
    low, high = sorted(features[:, feature - 1])
    assert high > low
    ranges = np.array([[0, -20, -20], [20, 20, 20.0]])
    ranges[end, feature] = (low + high) / 2
    flags = quality_flags(*clean, make_trained(solver.model, ranges=ranges))
    outside = features[:, feature - 1] == (low, high)[end]
    expected = np.where(outside, QualityFlag.OUT_OF_RANGE, 0)
    np.testing.assert_array_equal(flags, expected)


# ---------------------------------------------------------------------------------- confidences


def test_confidence_is_the_logistic_function_of_the_features(solver):
    trained = make_trained(solver.model, offset=(0.3, -0.2, 0.0), weight=0.2)
    features = trained.confidence_mean + np.random.default_rng(5).normal(0, 2, (50, N_FEATURES))
    x = np.clip(features - trained.confidence_mean, -5, 5)
    expected = expit(x @ trained.confidence_weight.T + trained.confidence_offset)
    found = trained.confidences(features)
    np.testing.assert_allclose(found, expected)
    assert np.ptp(found) > 0.3


def test_confidence_is_between_0_and_1_for_any_features(solver):
    trained = make_trained(solver.model, weight=3.0)
    features = np.full((3, N_FEATURES), [[1e30], [-1e30], [np.inf]])
    found = trained.confidences(features)
    assert ((found >= 0) & (found <= 1)).all()


def test_confidence_features_are_finite_with_and_without_a_second_mode(clean):
    found, _, _, data = clean
    features = ln_flux_data(data.flux, data.flux_err).features
    values = confidence_features(found, features, np.isfinite(data.plx))
    assert values.shape == (2, N_FEATURES)
    assert np.isfinite(values).all()


def test_estimate_is_right_within_3_sigma_and_the_tolerance():
    label, label_err = np.tile([5.0, 0.0, 4.0], (4, 1)), np.full((4, 3), 0.03)
    err = np.full((4, 6), 0.04)  # both: 0.05
    err[3] = 1.0
    est = np.zeros((4, 6))
    est[:, :3] = label + np.array([[0.14], [0.16], [-0.14], [0.26]])
    columns = {"stellar_params_est": est, "stellar_params_err": err}
    np.testing.assert_array_equal(
        is_right(columns, label, label_err),
        [[True] * 3, [False] * 3, [True] * 3, [False, True, True]],
    )


def test_inferred_columns_with_a_direct_estimate_are_those_of_the_pool(table, trained, solver):
    stellar = make_model()
    stellar.direct = DirectNetwork(np.random.default_rng(0).normal(size=(50, 76)), 2, (8, 8))
    with_direct, weights = StarSolver(stellar, batch_size=64), np.array([0.6, 0.3])
    factors = np.random.default_rng(1).uniform(0.9, 1.3, (2, 6))
    found = infer(
        table, with_direct, make_trained(stellar, pool_weights=weights, error_factors=factors)
    )
    data = StarData(*(np.delete(table[name], BAD, 0) for name in catalogue.OBSERVED))
    best = widened(*with_direct.solve(data), data.useful_parallax, factors)
    expected = estimates(pool(best, *with_direct.direct(data), weights), stellar)
    own = estimates(best, stellar)
    rows = np.delete(np.arange(60), BAD)
    for name, values in (("stellar", expected), ("model", own)):
        np.testing.assert_allclose(found[f"{name}_params_est"][rows], values.est, rtol=1e-5)
        np.testing.assert_allclose(found[f"{name}_params_err"][rows], values.err, rtol=1e-5)
    assert (np.abs(expected.est - own.est)[:, :3] > 1e-3).any()
    alone = infer(table, with_direct, make_trained(stellar))
    for kind in ("est", "err"):
        np.testing.assert_array_equal(
            alone[f"stellar_params_{kind}"], alone[f"model_params_{kind}"]
        )


# ------------------------------------------------------------------------------------- infer


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_star_without_usable_spectrum_is_NaN_and_flagged_and_no_other(table, solver, trained):
    found = infer(table, solver, trained)
    bad = np.isin(np.arange(60), BAD)
    for name in INFERRED:
        assert np.isnan(found[name][bad]).all(), name
        if not name.startswith("second"):
            assert np.isfinite(found[name][~bad]).all(), name
    np.testing.assert_array_equal(found["quality_flags"][bad], QualityFlag.BAD_INPUT)
    assert not (found["quality_flags"][~bad] & QualityFlag.BAD_INPUT).any()


def test_columns_have_the_documented_shapes(inferred, table):
    assert set(inferred) == set(INFERRED) | {"n_flux", "quality_flags"}
    for name, shape in INFERRED.items():
        assert inferred[name].shape == (60, *shape)
        assert inferred[name].dtype == np.float32
    np.testing.assert_array_equal(
        inferred["n_flux"], (np.isfinite(table["flux"]) & np.isfinite(table["flux_err"])).sum(1)
    )
    assert set(catalogue.DESCRIPTIONS) == set(INFERRED)


def test_flags_follow_from_the_columns(inferred, table, trained):
    flags, est = inferred["quality_flags"], inferred["stellar_params_est"]
    usable = np.isfinite(table["flux"]) & np.isfinite(table["flux_err"])
    n_xp = usable[:, : xp_utils.N_XP].sum(1)
    expected = {
        QualityFlag.CHI2: inferred["chi2_opt"] / n_xp.clip(1) > 2,
        QualityFlag.LN_PRIOR: inferred["ln_prior"] < trained.stellar.prior.ln_prior_floor,
        QualityFlag.PARALLAX: np.abs(est[:, 4] - table["plx"]) > 10 * table["plx_err"],
        QualityFlag.BAD_INPUT: np.isnan(est[:, 0]),
        QualityFlag.TEFF_CONFIDENCE: inferred["teff_confidence"] < 0.5,
    }
    for flag, condition in expected.items():
        np.testing.assert_array_equal((flags & flag) > 0, condition, err_msg=flag.name)
    assert flags[7] & QualityFlag.PARALLAX
    assert flags[8] & QualityFlag.CHI2
    assert (flags[9:] == 0).mean() > 0.9


def test_covariance_columns_are_triangles_of_matrices_inverse_to_each_other(inferred):
    good = np.flatnonzero(np.isfinite(inferred["ln_post"]))
    cov, icov = np.zeros((2, len(good), 6, 6))
    for matrix, name in ((cov, "cov"), (icov, "icov")):
        matrix[:, TRIU[0], TRIU[1]] = inferred[f"stellar_params_{name}_triu"][good]
        matrix[:, TRIU[1], TRIU[0]] = matrix[:, TRIU[0], TRIU[1]]
    sigma = np.sqrt(np.einsum("nii->ni", cov))
    np.testing.assert_allclose(inferred["stellar_params_err"][good], sigma, rtol=1e-6)
    product = icov @ cov * sigma[:, :, None] / sigma[:, None]
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(6), product.shape), atol=0.01)


def test_ln_prior_column_is_per_kK_dex_dex(inferred, solver):
    oracle, est = Oracle(solver.model), inferred["stellar_params_est"]
    rows = np.flatnonzero(np.isfinite(est[:, 0]))
    z = (est[rows, :3].astype("f8") - THETA_MEAN) / THETA_SCALE
    expected = oracle.ln_prior_z(z) - np.log(THETA_SCALE).sum()
    np.testing.assert_allclose(inferred["ln_prior"][rows], expected, atol=1e-3)


def test_rows_in_another_order_give_the_same_catalogue(table, solver, trained, inferred):
    order = np.random.default_rng(6).permutation(60)
    again = infer({name: value[order] for name, value in table.items()}, solver, trained)
    for name, value in inferred.items():
        np.testing.assert_allclose(again[name], value[order], rtol=1e-4, atol=1e-5, err_msg=name)


def test_second_mode_is_less_probable_and_only_where_found(solver, trained, monkeypatch):
    for margin in ("START_MARGIN", "TRIAL_MARGIN"):  # so that there are second modes enough
        monkeypatch.setattr(star_solver, margin, 1e3)
    data, _ = mock_stars(solver.model, 300, seed=12, rel_err=0.4, plx_snr=1.0)
    found = infer({name: getattr(data, name) for name in catalogue.OBSERVED}, solver, trained)
    best, second = solver.solve(data)
    delta = found["second_delta_ln_post"]
    with_second = np.isfinite(delta)
    assert with_second.sum() > 5
    assert (delta[with_second] <= 0).all()
    np.testing.assert_allclose(delta[with_second], (best.phi - second.phi)[with_second], rtol=1e-4)
    np.testing.assert_allclose(found["ln_post"], -best.phi, rtol=1e-5)
    np.testing.assert_array_equal(np.isfinite(found["second_params_est"]).all(1), with_second)


@pytest.mark.parametrize("rows", [[], BAD])
def test_table_without_usable_stars_gives_their_rows(table, solver, trained, rows):
    found = infer({name: value[rows] for name, value in table.items()}, solver, trained)
    for name, shape in INFERRED.items():
        assert found[name].shape == (len(rows), *shape)
        assert np.isnan(found[name]).all()
    np.testing.assert_array_equal(found["quality_flags"], QualityFlag.BAD_INPUT)


def test_star_whose_curvature_is_not_positive_definite_is_flagged_alone(
    table, solver, trained, inferred, monkeypatch
):
    honest = solver.solve

    def solve(data, z_direct):
        best, second = honest(data, z_direct)
        best.hessian[4] = -best.hessian[4]  # of the usable stars: row 8 of the table
        return best, second

    monkeypatch.setattr(solver, "solve", solve)
    found = infer(table, solver, trained)
    for name in (
        "stellar_params_est",
        "stellar_params_err",
        "stellar_params_cov_triu",
        "stellar_params_icov_triu",
        "model_params_est",
        *CONFIDENCES,
    ):
        assert np.isnan(found[name][8]).all(), name
    assert found["quality_flags"][8] & QualityFlag.BAD_INPUT
    others = np.delete(np.arange(60), 8)
    for name, value in inferred.items():
        np.testing.assert_array_equal(found[name][others], value[others], err_msg=name)


def test_trained_model_restored_from_its_arrays_infers_the_same(table, solver, inferred):
    stellar = solver.model
    trained = make_trained(stellar, offset=(0.5, 0.1, -0.3), weight=0.3)
    restored = TrainedModel.from_arrays(
        {name: np.array(value) for name, value in trained.to_arrays().items()}
    )
    for name in TrainedModel.ARRAYS:
        np.testing.assert_array_equal(getattr(restored, name), getattr(trained, name))
    first, second = (infer(table, solver, model) for model in (trained, restored))
    for name, value in first.items():
        np.testing.assert_array_equal(second[name], value, err_msg=name)
    rows = np.arange(9, 60)
    features = ln_flux_data(table["flux"], table["flux_err"]).features[rows]
    expected = trained.confidences(
        confidence_features(
            {name: value[rows] for name, value in first.items()},
            features,
            np.isfinite(table["plx"][rows]),
        )
    )
    np.testing.assert_allclose(
        np.column_stack([first[name][rows] for name in CONFIDENCES]), expected, atol=1e-3
    )
    changed = first["teff_confidence"] != inferred["teff_confidence"]
    assert changed[9:].all()


@pytest.mark.parametrize("name", ["hull", "confidence_weight", "error_factors", "w_out"])
def test_missing_array_of_a_trained_model_is_told(trained, name):
    arrays = trained.to_arrays()
    del arrays[name]
    with pytest.raises(KeyError, match=name):
        TrainedModel.from_arrays(arrays)


# ------------------------------------------------------------------------------------- accuracy


@pytest.fixture(scope="module")
def scored():
    """(est, err, label, label_err) of 500 stars, heavy tails, some without an estimate."""
    rng = np.random.default_rng(7)
    n = 500
    label = np.column_stack(
        [rng.uniform(3.5, 7, n), rng.normal(-0.3, 0.4, n), rng.uniform(0, 5, n)]
    )
    label_err = rng.uniform(0.01, 0.05, (n, 3))
    err = rng.uniform(0.02, 0.1, (n, 6))
    est = np.zeros((n, 6))
    est[:, :3] = label + [0.02, -0.03, 0.05] + err[:, :3] * rng.standard_t(3, (n, 3))
    est[:20], err[20:30, 1] = np.nan, np.nan
    return est.astype("f4"), err.astype("f4"), label, label_err


def test_robust_width_of_a_normal_sample_is_its_standard_deviation():
    x = np.random.default_rng(8).normal(5, 3, 100_000)
    assert robust_width(x) == pytest.approx(3, rel=0.02)
    x[:10_000] = 1e9
    assert robust_width(x) < 4


def test_accuracy_equals_its_formulas(scored):
    est, err, label, label_err = scored
    found = accuracy(*scored)
    assert (found["stars"], found["finite"]) == (500, 470)
    giant = label[:, 2] < 3.5
    for group, rows in (("all", np.ones(500, bool)), ("giants", giant), ("dwarfs", ~giant)):
        rows = rows & (np.arange(500) >= 30)
        assert found[group]["n"] == rows.sum()
        for k, (name, unit) in enumerate((("Teff", 1000), ("[Fe/H]", 1), ("log g", 1))):
            residual = (est[rows, k] - label[rows, k]) * unit
            pull = residual / unit / np.sqrt(err[rows, k] ** 2 + label_err[rows, k] ** 2)
            expected = {
                "offset": np.median(residual),
                "scatter": 1.4826 * np.median(np.abs(residual - np.median(residual))),
                "pull_width": 1.4826 * np.median(np.abs(pull - np.median(pull))),
                "frac_gt3": np.mean(np.abs(pull) > 3),
            }
            assert found[group][name] == pytest.approx(expected, rel=1e-5)


def test_accuracy_of_a_group_without_stars_has_its_count_alone(scored):
    dwarfs = scored[2][:, 2] >= 3.5
    found = accuracy(*(x[dwarfs] for x in scored))
    assert found["giants"] == {"n": 0}
    assert json.loads(json.dumps(found)) == found
    assert "giants" not in format_accuracy(found)


def test_accuracy_as_text_shows_its_numbers(scored):
    found = accuracy(*scored)
    lines = format_accuracy(found).splitlines()
    assert lines[0] == "500 stars, 470 with finite parameters"
    assert len(lines) == 2 + 9
    assert f"{found['dwarfs']['log g']['scatter']:.3f}" in lines[-1]


def test_accuracy_equals_that_of_the_independent_scorer(scored, tmp_path, monkeypatch, capsys):
    if not SCORE.is_file():
        pytest.skip(f"{SCORE} is absent")
    est, err, label, label_err = scored
    ids = np.arange(1, 501, dtype="i8")
    names = ("teff", "feh", "logg")
    unit = np.array([1e3, 1, 1])
    with ShardWriter(tmp_path / "labels.h5", 500, "source_id", {}) as writer:
        columns = {name: (label * unit)[:, k] for k, name in enumerate(names)}
        columns |= {f"{name}_err": (label_err * unit)[:, k] for k, name in enumerate(names)}
        writer.write_table({"source_id": ids} | columns)
    order = np.random.default_rng(9).permutation(500)
    with ShardWriter(tmp_path / "catalogue.h5", 500, "gdr3_source_id", {}) as writer:
        writer.write_table(
            {
                "gdr3_source_id": ids[order],
                "stellar_params_est": est[order],
                "stellar_params_err": err[order],
                "quality_flags": np.zeros(500, "u2"),
            }
        )
    spec = importlib.util.spec_from_file_location("score", SCORE)
    score = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(score)
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "score.py",
            str(tmp_path / "catalogue.h5"),
            "--labels",
            str(tmp_path / "labels.h5"),
            "--json",
        ],
    )
    score.main()
    expected, found = json.loads(capsys.readouterr().out), accuracy(*scored)
    assert expected["finite"] == found["finite"]
    for ours, theirs in (
        ("all", "all"),
        ("giants", "giants logg<3.5"),
        ("dwarfs", "dwarfs logg>=3.5"),
    ):
        assert expected[theirs]["n"] == found[ours]["n"]
        for name, label_name in zip(names, ("Teff", "[Fe/H]", "log g"), strict=True):
            assert found[ours][label_name] == pytest.approx(expected[theirs][name], rel=1e-5)


def test_star_data_of_rows_is_that_of_the_rows(solver):
    data, _ = mock_stars(solver.model, 5, seed=1)
    taken = data.take([3, 1])
    assert isinstance(taken, StarData)
    np.testing.assert_array_equal(taken.flux, data.flux[[3, 1]])
    assert taken.theta is None
