"""The catalogue's inferred columns, of stars of any sort and for any labels."""

import numpy as np
import pytest
from model_case import (
    DIRECT_ALPHA,
    FINE_GRID,
    LABEL_SETS,
    N_WL,
    N_XP,
    THETA_MEAN,
    THETA_SCALE,
    add_direct,
    add_screens,
    make_model,
    make_solver,
    make_trained,
    mock_stars,
    table_of,
)

from fitting import settling as settling_module
from fitting import star_solver as star_solver_module
from fitting import starts as starts_module
from fitting.catalogue import MIN_XP_FLUXES, infer, label_estimates, odd_columns
from fitting.observed import FINE, StarData
from fitting.parallaxes import doubted, tension
from fitting.posterior import ErrorModel, estimates, pool, widened
from pipeline.schema import DEFAULT_LABELS, flags, inferred_columns

BITS = flags.quality_flag(DEFAULT_LABELS)
INTEGERS = ("n_flux", "quality_flags")
ODD = ("parallax_tension", "blend_probability", "strange_probability")
BAD = [0, 1, 2, 4]
N = 60


@pytest.fixture(scope="module")
def trained(star_solver):
    return make_trained(star_solver.model)


def odd_table(model):
    """Observed columns of 60 mock stars; the first nine have too few fluxes or miss something."""
    columns = table_of(mock_stars(model, N, seed=21)[0])
    err = columns["flux_err"]
    err[0] = np.inf  # nothing
    err[1, :N_XP] = np.inf  # photometry only
    err[2, MIN_XP_FLUXES - 1 : N_XP] = np.inf  # one XP flux too few
    err[3, MIN_XP_FLUXES:N_XP] = np.inf  # just enough
    columns["flux"][4] = np.nan  # errors without fluxes
    err[5, 61:] = np.inf
    columns["plx"][6] = columns["plx_err"][6] = np.nan
    columns["plx"][7] += 15 * columns["plx_err"][7]
    columns["flux"][8] *= 1 + np.sin(np.arange(N_WL) ** 2)  # no star
    return columns


@pytest.fixture(scope="module")
def table(star_solver):
    return odd_table(star_solver.model)


@pytest.fixture(scope="module")
def inferred(table, star_solver, trained):
    return infer(table, star_solver, trained)


def floats(found):
    return {name: value for name, value in found.items() if name not in INTEGERS}


def matrices(triangles, n):
    """(N, n, n) float64 symmetric matrices of their upper triangles."""
    out = np.zeros((len(triangles), n, n))
    row, column = np.triu_indices(n)
    out[:, row, column] = out[:, column, row] = triangles
    return out


# ------------------------------------------------------------------------------- what is written


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_star_without_usable_spectrum_is_NaN_and_flagged_and_no_other(table, star_solver, trained):
    found = infer(table, star_solver, trained)
    bad = np.isin(np.arange(N), BAD)
    for name, value in floats(found).items():
        assert np.isnan(value[bad]).all(), name
        if name in ODD:
            assert np.isnan(value).all(), name  # the model has no networks for it
        elif not name.startswith("second"):
            assert np.isfinite(value[~bad]).all(), name
    np.testing.assert_array_equal(found["quality_flags"][bad], BITS.BAD_INPUT)
    assert not (found["quality_flags"][~bad] & BITS.BAD_INPUT).any()


def test_columns_are_those_of_the_schema(inferred, table):
    declared = inferred_columns(DEFAULT_LABELS)
    assert inferred.keys() == declared.keys()
    for name, data in declared.items():
        assert inferred[name].shape == (N, *data.shape)
        assert inferred[name].dtype == data.dtype
    usable = np.isfinite(table["flux"]) & np.isfinite(table["flux_err"])
    np.testing.assert_array_equal(inferred["n_flux"], usable.sum(1))


def test_flags_follow_from_the_columns(inferred, table, trained):
    found, est = inferred["quality_flags"], inferred["stellar_params_est"]
    usable = np.isfinite(table["flux"]) & np.isfinite(table["flux_err"])
    n_xp = usable[:, :N_XP].sum(1)
    expected = {
        BITS.CHI2: inferred["chi2_opt"] / n_xp.clip(1) > 2,
        BITS.LN_PRIOR: inferred["ln_prior"] < trained.stellar.prior.ln_prior_floor,
        BITS.PARALLAX: np.abs(est[:, 5] - table["plx"]) > 10 * table["plx_err"],
        BITS.BAD_INPUT: np.isnan(est[:, 0]),
        BITS.TEFF_CONFIDENCE: inferred["teff_confidence"] < 0.5,
    }
    for flag, condition in expected.items():
        np.testing.assert_array_equal((found & flag) > 0, condition, err_msg=flag.name)
    assert found[7] & BITS.PARALLAX
    assert found[8] & BITS.CHI2
    assert (found[9:] == 0).mean() > 0.9


def test_precision_column_inverted_gives_the_errors_and_the_covariance(inferred):
    good = np.isfinite(inferred["ln_post"])
    icov, cov = (
        matrices(inferred[f"stellar_params_{name}_triu"][good], 6) for name in ("icov", "cov")
    )
    assert inferred["stellar_params_icov_triu"].dtype == np.float64
    inverse = np.linalg.inv(icov)
    err = inferred["stellar_params_err"][good]
    np.testing.assert_allclose(np.sqrt(np.einsum("nii->ni", inverse)), err, rtol=1e-4)
    size = err[:, :, None] * err[:, None]
    np.testing.assert_allclose(inverse / size, cov / size, atol=1e-4)


def test_ln_prior_column_is_per_kK_dex_dex(inferred, oracle, star_solver):
    est = inferred["model_params_est"]
    rows = np.isfinite(est[:, 0])
    z = (est[rows, :3].astype("f8") - THETA_MEAN) / THETA_SCALE
    expected = oracle.ln_prior_z(z) - np.log(THETA_SCALE).sum()
    np.testing.assert_allclose(inferred["ln_prior"][rows], expected, atol=1e-3)


def test_rows_in_another_order_give_the_same_catalogue(table, star_solver, trained, inferred):
    order = np.random.default_rng(6).permutation(N)
    again = infer({name: value[order] for name, value in table.items()}, star_solver, trained)
    for name, value in inferred.items():
        near = {"rtol": 1e-3, "atol": 1e-4} if "cov" in name else {"rtol": 1e-4, "atol": 1e-5}
        np.testing.assert_allclose(again[name], value[order], **near, err_msg=name)


def test_second_mode_is_less_probable_and_only_where_found(star_solver, trained, monkeypatch):
    monkeypatch.setattr(starts_module, "START_MARGIN", 1e3)  # so that there are
    monkeypatch.setattr(star_solver_module, "TRIAL_MARGIN", 1e3)  # second modes enough
    data, _ = mock_stars(star_solver.model, 300, seed=12, rel_err=0.4, plx_snr=1.0)
    found = infer(table_of(data), star_solver, trained)
    modes = star_solver.solve(data)
    delta = found["second_delta_ln_post"]
    with_second = np.isfinite(delta)
    assert with_second.sum() > 5
    assert (delta[with_second] <= 0).all()
    expected = (modes.best.phi - modes.second.phi)[with_second]
    np.testing.assert_allclose(delta[with_second], expected, rtol=1e-4)
    np.testing.assert_allclose(found["ln_post"], -modes.best.phi, rtol=1e-5)
    np.testing.assert_array_equal(np.isfinite(found["second_params_est"]).all(1), with_second)


@pytest.mark.parametrize("rows", [[], BAD])
def test_table_without_usable_stars_gives_their_rows(table, star_solver, trained, rows):
    found = infer({name: value[rows] for name, value in table.items()}, star_solver, trained)
    for name, data in inferred_columns(DEFAULT_LABELS).items():
        assert found[name].shape == (len(rows), *data.shape)
    for value in floats(found).values():
        assert np.isnan(value).all()
    np.testing.assert_array_equal(found["quality_flags"], BITS.BAD_INPUT)


def test_star_whose_curvature_is_not_positive_definite_is_flagged_alone(
    table, star_solver, trained, inferred, monkeypatch
):
    honest = star_solver.solve

    def solve(*args, **options):
        modes = honest(*args, **options)
        modes.best.precision[4] *= -1  # of the usable stars: row 8 of the table
        return modes

    monkeypatch.setattr(star_solver, "solve", solve)
    found = infer(table, star_solver, trained)
    for name in floats(found):
        if name.startswith(("stellar_params", "model_params")) or "confidence" in name:
            assert np.isnan(found[name][8]).all(), name
    assert found["quality_flags"][8] & BITS.BAD_INPUT
    others = np.delete(np.arange(N), 8)
    for name, value in inferred.items():
        np.testing.assert_array_equal(found[name][others], value[others], err_msg=name)


def test_star_that_did_not_converge_is_flagged(table, star_solver, trained, monkeypatch):
    monkeypatch.setattr(settling_module, "MORE_EVALUATIONS", (1,))
    monkeypatch.setattr(star_solver_module, "TRIAL_EVALUATIONS", 1)
    rows = np.arange(9, 30)
    some = {name: value[rows] for name, value in table.items()}
    found = infer(some, star_solver, trained)
    best = star_solver.solve(StarData.of_table(some, trained.stellar.channels)).best
    flagged = (found["quality_flags"] & BITS.NOT_CONVERGED) > 0
    np.testing.assert_array_equal(flagged, ~best.converged)
    assert flagged.any()


# -------------------------------------------------------------------------------- direct estimate


@pytest.fixture(scope="module")
def direct_alone():
    """(solver, table, inferred columns) of stars with a label that the direct estimate alone gives,
    under a model that sees the finer spectrum and has all networks."""
    model = add_screens(add_direct(make_model(DIRECT_ALPHA, fine_wavelengths=FINE_GRID)))
    solver, table = make_solver(model), odd_table(model)
    trained = make_trained(model, offset=[3.0, 3.0, -3.0], pool_weights=np.array([[0.6, 0.3]]))
    return solver, table, infer(table, solver, trained)


def test_inferred_columns_with_a_direct_estimate_are_those_of_the_pool(direct_alone):
    solver, table, _ = direct_alone
    model, rng = solver.model, np.random.default_rng(1)
    errors = {
        "levels": np.array([-4.2, -3.7]),  # the stars are between
        "factors": rng.uniform(0.9, 1.3, (2, 2, 5)),
        "pool_weights": np.array([[0.7, 0.2], [0.5, 0.4]]),
        "type_factors": rng.normal(0.0, 0.2, (3, 4)),
    }
    found = infer(table, solver, make_trained(model, **errors))
    rows = np.delete(np.arange(N), BAD)
    data = StarData.of_table(table, model.channels, rows)
    data, less = doubted(data, *tension(data, solver.seen(data).distance, model))
    assert len(less)
    direct = solver.seen(data).direct
    modes = solver.solve(data, direct)
    gaussians = (modes.best.gaussian, modes.second.gaussian)
    ln_ratio = modes.best.phi - modes.second.phi
    factors, weights = ErrorModel(**errors).of(data)
    of_type = ErrorModel(**errors).of_type(direct[0])
    assert (np.ptp(of_type, 0) > 0.01).all()
    assert (np.ptp(weights, 0) > 0.05).all()
    whole = widened(*gaussians, ln_ratio, factors)
    expected = estimates(pool(whole, *direct[:, :, :2], weights, of_type[:, :2]), model)
    own = estimates(whole, model)
    for name, values in (("stellar", expected), ("model", own)):
        np.testing.assert_allclose(found[f"{name}_params_est"][rows], values.est, rtol=1e-5)
        np.testing.assert_allclose(found[f"{name}_params_err"][rows], values.err, rtol=1e-5)
    assert (np.abs(expected.est - own.est)[:, :2] > 1e-3).any()
    alpha_err = (direct[1] * of_type)[:, 2] * model.label_scale[2]
    np.testing.assert_allclose(found["alpha_m_err"][rows], alpha_err, rtol=1e-5)
    alone = infer(table, solver, make_trained(model))
    for kind in ("est", "err"):
        np.testing.assert_array_equal(
            alone[f"stellar_params_{kind}"], alone[f"model_params_{kind}"]
        )


def test_columns_of_what_is_odd_are_those_of_the_networks(direct_alone):
    solver, table, found = direct_alone
    rows = np.delete(np.arange(N), BAD)
    data = StarData.of_table(table, solver.model.channels, rows)
    seen = solver.seen(data)
    for k, name in enumerate(ODD[1:]):
        np.testing.assert_allclose(found[name][rows], seen.kinds[:, k + 1], rtol=1e-5)
    tension = odd_columns(seen, data, solver.model)["parallax_tension"]
    np.testing.assert_allclose(found["parallax_tension"][rows], tension, rtol=1e-5)
    np.testing.assert_array_equal(np.isfinite(tension), np.isfinite(data.parallax))
    for name in ODD:
        assert np.isnan(found[name][BAD]).all()


def test_stars_without_the_finer_spectrum_have_the_forward_model_alone(direct_alone):
    solver, table, whole = direct_alone
    trained = make_trained(solver.model, pool_weights=np.array([[0.6, 0.3]]))
    found = infer({k: v for k, v in table.items() if k != FINE}, solver, trained)
    good = np.delete(np.arange(N), BAD)
    for kind in ("est", "err"):
        values = found[f"stellar_params_{kind}"]
        np.testing.assert_array_equal(values, found[f"model_params_{kind}"])
        assert np.isfinite(values[good]).all()
    assert (found["stellar_params_est"][good] != whole["stellar_params_est"][good]).any()
    for name in (*ODD, "alpha_m_est", "alpha_m_err"):
        assert np.isnan(found[name]).all()


def test_label_of_the_direct_estimate_alone_has_columns_of_its_own(direct_alone):
    solver, table, found = direct_alone
    rows = np.delete(np.arange(N), BAD)
    data = StarData.of_table(table, solver.model.channels, rows)
    data, _ = doubted(data, *tension(data, solver.seen(data).distance, solver.model))
    z, sigma = solver.seen(data).direct
    mean, scale = solver.model.label_mean[2], solver.model.label_scale[2]
    np.testing.assert_allclose(found["alpha_m_est"][rows], z[:, 2] * scale + mean, rtol=1e-4)
    np.testing.assert_allclose(found["alpha_m_err"][rows], sigma[:, 2] * scale, rtol=1e-4)
    assert found["stellar_params_est"].shape == (N, 5)  # Teff, log g, xi, E, parallax
    assert found.keys() == inferred_columns(DIRECT_ALPHA).keys()
    assert np.isnan(found["alpha_m_est"][BAD]).all()


def test_label_of_the_direct_estimate_alone_has_a_confidence_and_a_flag(direct_alone):
    *_, found = direct_alone
    good, bits = np.delete(np.arange(N), BAD), flags.quality_flag(DIRECT_ALPHA)
    np.testing.assert_allclose(found["alpha_m_confidence"][good], 1 / (1 + np.exp(3)), rtol=1e-5)
    flagged = found["quality_flags"][good] & bits.ALPHA_M_CONFIDENCE
    assert (flagged == 1 << 16).all()
    assert not (found["quality_flags"][good] & bits.TEFF_CONFIDENCE).any()


def test_estimates_of_all_labels_are_in_their_order(direct_alone):
    *_, found = direct_alone
    est, err = label_estimates(found, DIRECT_ALPHA)
    np.testing.assert_array_equal(est[:, :2], found["stellar_params_est"][:, :2])
    np.testing.assert_array_equal(est[:, 2], found["alpha_m_est"])
    np.testing.assert_array_equal(err[:, 2], found["alpha_m_err"])
    alone, _ = label_estimates(found, DIRECT_ALPHA, "model")
    np.testing.assert_array_equal(alone[:, 0], found["model_params_est"][:, 0])


# ---------------------------------------------------------------------------- any number of labels


def test_stars_with_other_labels_have_all_columns():
    labels = LABEL_SETS[4]
    model = make_model(labels)
    solver, table = make_solver(model), odd_table(model)
    found = infer(table, solver, make_trained(model))
    declared = inferred_columns(labels)
    assert found.keys() == declared.keys()
    assert {f"{x.name}_confidence" for x in labels} < found.keys()
    good = np.delete(np.arange(N), BAD)
    n = 7
    assert np.isfinite(found["stellar_params_est"][good]).all()
    assert np.isnan(found["stellar_params_est"][BAD]).all()
    inverse = np.linalg.inv(matrices(found["stellar_params_icov_triu"][good], n))
    sigma = np.sqrt(np.einsum("nii->ni", inverse))
    np.testing.assert_allclose(sigma, found["stellar_params_err"][good], rtol=1e-4)
