"""The extinction curve as people use it: tables, R(55), R(V), A(V), their errors, from a model."""

import sys

import numpy as np
import pytest
import tensorflow as tf
from astropy.table import Table
from dust_case import POWER, power_law
from matplotlib.image import imread
from model_case import CHANNELS, RELEASE, WISE, make_flux_model

from model import export
from pipeline.errors import ShardError
from pipeline.extinction_law import MAG, ExtinctionLaw, dust_of, interpolation, law_of_model
from pipeline.write import write_arrays
from tools import export_extinction

XI = np.array([-3.0, -1.0, 0.0, 0.5, 2.0])


@pytest.fixture(scope="module")
def flux():
    return make_flux_model()


def arrays_of(flux):
    """The arrays of the file of a model that the law is read from."""
    return flux.to_arrays() | CHANNELS.to_arrays() | {"release": np.array(RELEASE.name)}


@pytest.fixture(scope="module")
def law(flux):
    return ExtinctionLaw.of_arrays(arrays_of(flux))


@pytest.fixture(scope="module")
def folder(flux, tmp_path_factory):
    """What the tool writes of the model: its folder."""
    folder = tmp_path_factory.mktemp("dust")
    write_arrays(folder / "model.h5", arrays_of(flux), {"script": "train"})
    words = ["--model", str(folder), "--out", str(folder / "out"), "--xi", "-1", "0", "0.5"]
    assert export_extinction.main(words) == 0
    return folder


# ---- the curve -------------------------------------------------------------------------------


def test_extinction_in_mag_is_what_the_model_dims_a_flux_by(flux, law):
    z, ext = np.zeros((len(XI), 3), "f4"), np.full(len(XI), 0.8, "f4")
    near, far = (np.log(flux.flux(z, XI.astype("f4"), e, 0 * ext)) for e in (0 * ext, ext))
    np.testing.assert_allclose(MAG * (near - far), 0.8 * law.a_per_e(XI), rtol=1e-4, atol=1e-5)


def test_at_xi_0_it_is_the_mean_curve_and_W1_and_W2_are_so_at_every_xi(flux, law):
    mean = MAG * np.exp(flux.ln_ext_curve.numpy())
    np.testing.assert_allclose(law.a_per_e(0.0), mean, rtol=1e-6)
    np.testing.assert_allclose(law.a_per_e(XI)[:, WISE], np.tile(mean[WISE], (len(XI), 1)), 1e-6)


def test_ratios_of_a_power_law_are_those_of_the_power_law():
    excess = 0.8**-POWER - 1
    np.testing.assert_allclose(power_law().r55(XI), 1 / excess)
    np.testing.assert_allclose(power_law().rv(XI), 1.01 / excess + 0.049)
    np.testing.assert_allclose(power_law().av_per_e(0.0), 1)
    np.testing.assert_allclose(power_law().reddening_per_e(0.0), excess)


def test_R55_times_the_colour_excess_is_the_extinction(law):
    np.testing.assert_allclose(law.r55(XI) * law.reddening_per_e(XI), law.av_per_e(XI))


@pytest.mark.parametrize("sign", [1, -1])
def test_R55_goes_one_way_with_xi_as_the_slope_at_550_less_that_at_440_nm_says(sign):
    steps = np.diff(power_law(0.2 * sign).r55(np.linspace(-3.5, 3.5, 50)))
    assert (sign * steps > 0).all()


def test_interpolation_is_linear_in_ln_lambda_in_any_order_and_NaN_outside():
    wavelengths = np.array([600.0, 400.0, 500.0])
    at = interpolation(wavelengths, 450.0)
    np.testing.assert_allclose(at @ np.log(wavelengths), np.log(450.0))
    assert at[0] == 0
    np.testing.assert_array_equal(interpolation(wavelengths, 500.0) > 1e-12, [0, 0, 1])
    assert np.isnan(interpolation(wavelengths, 390.0)).all()


def test_R55_of_the_saved_model_is_that_of_the_tables(flux, law, tmp_path):
    export(flux, tmp_path)
    saved = tf.saved_model.load(str(tmp_path))
    for kind in ("f4", "f8"):
        np.testing.assert_allclose(saved.predict_R55(XI.astype(kind)), law.r55(XI), rtol=2e-5)


# ---- of stars --------------------------------------------------------------------------------


def of_one(law, xi, ext, xi_err, ext_err, corr):
    return dust_of(law, *([x] for x in (xi, ext, xi_err, ext_err, corr)))


@pytest.mark.parametrize(
    "star", [(0.3, 0.8, 0.4, 0.03, 0.6), (2.5, 0.2, 1.0, 0.02, -0.5), (-1.0, 3.0, 0.1, 0.1, 0.95)]
)
def test_errors_of_what_is_derived_are_those_of_draws_of_xi_and_E(star):
    law, (xi, ext, xi_err, ext_err, corr) = power_law(0.15), star
    found, rng = of_one(law, *star), np.random.default_rng(1)
    both = xi_err * ext_err * corr
    draws = rng.multivariate_normal([xi, ext], [[xi_err**2, both], [both, ext_err**2]], 200_000)
    expected = {
        "R55": law.r55,
        "RV": law.rv,
        "AV": lambda x: law.av_per_e(x) * draws[:, 1] if np.ndim(x) else ext * law.av_per_e(x),
        "E44_55": lambda x: law.reddening_per_e(x) * (draws[:, 1] if np.ndim(x) else ext),
    }
    for name, of in expected.items():
        np.testing.assert_allclose(found[name], of(xi), rtol=1e-12, err_msg=name)
        rms = np.sqrt(np.mean((of(draws[:, 0]) - of(xi)) ** 2))
        np.testing.assert_allclose(found[f"{name}_err"], rms, rtol=0.02, err_msg=name)


def test_where_errors_are_small_they_follow_the_slopes():
    law, xi, ext, (xi_err, ext_err, corr) = power_law(0.15), 0.4, 1.5, (1e-3, 2e-3, -0.7)
    step = 1e-5
    slope = (law.r55(xi + step) - law.r55(xi - step)) / (2 * step)
    of_a = ext * (law.av_per_e(xi + step) - law.av_per_e(xi - step)) / (2 * step)
    by_ext = law.av_per_e(xi)
    variance = (of_a * xi_err) ** 2 + (by_ext * ext_err) ** 2
    variance += 2 * corr * of_a * by_ext * xi_err * ext_err
    found = of_one(law, xi, ext, xi_err, ext_err, corr)
    np.testing.assert_allclose(found["R55_err"], abs(slope) * xi_err, rtol=1e-3)
    np.testing.assert_allclose(found["AV_err"], np.sqrt(variance), rtol=1e-3)


def test_a_star_without_parameters_has_none_of_these_and_others_are_as_without_it(law):
    stars = np.array([[0.1, 0.5, 0.9, 0.02, 0.3], [np.nan] * 5, [-1.0, 2.0, 0.5, 0.1, -0.2]])
    found, alone = dust_of(law, *stars.T), dust_of(law, *stars[[0, 2]].T)
    for name, values in found.items():
        assert np.isnan(values[1])
        np.testing.assert_allclose(values[[0, 2]], alone[name], rtol=1e-12)


# ---- the tool --------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["ecsv", "csv"])
def test_tables_hold_the_curves_and_ratios(folder, law, ending):
    form = {"format": f"ascii.{ending}"}
    curve = Table.read(folder / f"out/extinction_curve.{ending}", **form)
    np.testing.assert_allclose(curve["wavelength"], CHANNELS.wavelengths, atol=1e-3)
    assert list(curve["channel"]) == list(CHANNELS.names)
    assert curve.colnames[2:] == ["A_xi_m1", "A_xi_0", "A_xi_0.5"]
    for name, xi in (("A_xi_m1", -1.0), ("A_xi_0", 0.0), ("A_xi_0.5", 0.5)):
        np.testing.assert_allclose(curve[name], law.a_per_e(xi), atol=1e-6)
    ratios = Table.read(folder / f"out/extinction_by_xi.{ending}", **form)
    for name, of in (("R55", law.r55), ("RV", law.rv), ("AV", law.av_per_e)):
        np.testing.assert_allclose(ratios[name], of(np.asarray(ratios["xi"])), atol=1e-6)
    np.testing.assert_allclose(ratios["R55"] * ratios["E44_55"], ratios["AV"], rtol=1e-4)


def test_tables_have_units_and_words(folder):
    curve = Table.read(folder / "out/extinction_curve.ecsv", format="ascii.ecsv")
    assert str(curve["wavelength"].unit) == "nm"
    ratios = Table.read(folder / "out/extinction_by_xi.ecsv", format="ascii.ecsv")
    assert all(ratios[name].description for name in ratios.colnames[1:])
    assert ratios.meta["release"] == RELEASE.name


def test_without_published_laws_tables_are_written_and_the_figure_is_told_to_be_missing(
    folder, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("dust_extinction")
    assert imread(folder / "out/extinction_curve.png").shape[0] > 500
    monkeypatch.setitem(sys.modules, "dust_extinction", None)
    assert export_extinction.main(["--model", str(folder), "--out", str(tmp_path / "out")]) == 0
    assert "extinction_curve.png is not drawn" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"extinction_{x}.{e}" for x in ("curve", "by_xi") for e in ("csv", "ecsv")}


def test_what_is_no_model_is_refused_in_one_line(tmp_path, flux, capsys):
    run = ["--model", str(tmp_path), "--out", str(tmp_path / "out")]
    assert export_extinction.main(run) == 2
    assert "no trained model there" in capsys.readouterr().err
    write_arrays(tmp_path / "model.h5", {"flux": np.ones(3)}, {"script": "train"})
    assert export_extinction.main(run) == 2
    assert "not a model of train.py" in capsys.readouterr().err
    other = arrays_of(flux) | {"release": np.array("dr4")}
    write_arrays(tmp_path / "model.h5", other, {"script": "train"})
    with pytest.raises(ShardError, match="trained on dr4"):
        law_of_model(tmp_path / "model.h5", RELEASE)


def test_a_model_whose_spectra_lack_440_nm_is_refused(tmp_path, flux, capsys):
    given = arrays_of(flux)
    given["sample_wavelengths"] = given["sample_wavelengths"] + 60.0
    write_arrays(tmp_path / "model.h5", given, {"script": "train"})
    assert export_extinction.main(["--model", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "440 and 550 nm" in capsys.readouterr().err
