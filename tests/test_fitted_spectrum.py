"""The model's spectrum at a solution: flux, learned noise and chi^2 are those of the equations."""

import numpy as np
import pytest
from helpers import read_all
from model_oracle import Star
from step10_case import output

from fitting.fitted_spectrum import fitted_spectrum
from fitting.model_file import load_model
from fitting.observed import StarData
from fitting.posterior import physical
from pipeline.schema import MODEL_FILE, load_release


@pytest.fixture
def fitted(star_solver, varied):
    """`FittedSpectrum` of `varied` at their true parameters."""
    data, u = varied
    return fitted_spectrum(star_solver.model, data, physical(u, star_solver.model))


def test_flux_scatter_and_chi2_are_those_of_the_equations(fitted, varied, oracle):
    data, u = varied
    for i, row in enumerate(np.asarray(u, "f8")):
        star, ext, used = Star(data, i), np.exp(row[-2]), np.isfinite(data.flux_err[i])
        np.testing.assert_allclose(fitted.ln_flux[i], oracle.mu(row), atol=2e-4)
        cov = oracle.covariance(row[:-3], ext, star.rel_err, star.features)
        scatter = np.sqrt(np.diag(cov))
        np.testing.assert_allclose(fitted.scatter[i, used], scatter[used], rtol=2e-3)
        own = oracle.covariance(row[:-3], ext, 0 * star.rel_err, star.features)
        np.testing.assert_allclose(fitted.own[i], np.sqrt(np.diag(own)), rtol=2e-3)
        left = (star.value - oracle.mu(row))[used] / scatter[used]
        np.testing.assert_allclose(fitted.residual[i, used], left, rtol=5e-3, atol=0.02)
        assert np.isnan(fitted.residual[i, ~used]).all()
        chi2 = oracle.chi2(row, star, oracle.noise_at(row, star))
        assert fitted.chi2[i] == pytest.approx(chi2, rel=5e-3)


def test_chi2_is_that_of_the_solver_with_the_noise_of_that_place(star_solver, varied):
    (data, u), objective, n = varied, star_solver.objective, len(varied[0])
    batch = star_solver.batch(data, np.arange(n))
    at = np.asarray(u, "f4")[star_solver.padding(n)].T
    point = objective.evaluate(at, batch, objective.whitening(at, batch, general=True))
    est = physical(point.u.numpy().T[:n], star_solver.model)
    found = fitted_spectrum(star_solver.model, data, est)
    np.testing.assert_allclose(found.chi2, point.chi2.numpy()[:n], rtol=5e-3)


def test_residuals_of_stars_drawn_from_the_model_have_a_width_of_one(star_solver, mocks):
    data, u = mocks
    found = fitted_spectrum(star_solver.model, data, physical(u, star_solver.model))
    width = np.sqrt(np.mean(found.residual**2, axis=0))
    np.testing.assert_allclose(width, 1.0, atol=0.16)  # 5 sigma of 500 stars
    assert np.mean(width) == pytest.approx(1.0, abs=0.03)


def test_a_star_without_solution_has_none_and_the_others_are_as_alone(star_solver, varied):
    data, u = varied
    est = physical(u, star_solver.model)
    est[3, 1] = np.nan
    found = fitted_spectrum(star_solver.model, data, est)
    assert all(np.isnan(values[3]).all() for values in vars(found).values())
    alone = fitted_spectrum(star_solver.model, data.take([7]), est[[7]])
    for name, values in vars(found).items():
        np.testing.assert_allclose(values[7], getattr(alone, name)[0], 1e-4, 1e-4, err_msg=name)


def test_chi2_of_the_catalogue_is_recomputed_from_its_parameters(step10):
    """Step 10 holds the noise where its last descent began, so single stars differ by more."""
    trained = load_model(step10.model / MODEL_FILE, load_release())
    for fid in step10.fids:
        table, found = step10.tables[fid], read_all(output(step10.data_dir, fid))
        data = StarData.of_table(table, trained.stellar.channels)
        chi2 = fitted_spectrum(trained.stellar, data, found["model_params_est"]).chi2
        ratio = chi2 / found["chi2_opt"]
        assert np.median(ratio) == pytest.approx(1.0, abs=0.003)
        assert np.mean(np.abs(ratio - 1) < 0.05) > 0.75
