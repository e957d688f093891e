"""Observed stars as the likelihood takes them: ln fluxes, relative errors, what is used."""

import numpy as np
import pytest
from model_case import (
    BP,
    CHANNELS,
    N_WL,
    NO_BP,
    RP,
    TMASS,
    WISE,
    make_model,
    mock_stars,
    replaced,
    table_of,
)
from model_oracle import Star

from fitting.observed import StarData, ln_flux_data, used_fluxes, without_parallax


@pytest.fixture(scope="module")
def mocks():
    return mock_stars(make_model(), 8, seed=7)[0]


@pytest.fixture(scope="module")
def observed(mocks):
    """Stars with negative fluxes and missing channels of many kinds."""
    rng = np.random.default_rng(7)
    flux, err = mocks.flux.copy(), mocks.flux_err.copy()
    flux[0, :6] = -flux[0, :6]
    flux[1, 3] = 0
    missing = ([], WISE, TMASS, NO_BP, [*NO_BP, *TMASS, *WISE], RP, BP[3:9])
    for i, channels in enumerate(missing):
        err[i, channels] = np.inf
    err[7] = np.inf
    flux[~np.isfinite(err)] = rng.normal(size=(~np.isfinite(err)).sum())
    return replaced(mocks, flux=flux, flux_err=err)


def test_ln_fluxes_equal_their_definition_also_where_negative_or_missing(observed):
    found = observed.observed
    assert all(x.dtype == np.float32 for x in vars(found).values())
    for i in range(len(observed)):
        star = Star(observed, i)
        for name in ("value", "rel_err", "used", "features"):
            np.testing.assert_allclose(
                getattr(found, name)[i],
                getattr(star, name),
                rtol=1e-5,
                atol=1e-6,
                err_msg=f"{name} of star {i}",
            )


def test_flux_below_0p7_sigma_counts_as_0p7_sigma():
    flux, err = np.full((1, N_WL), -5.0), np.full((1, N_WL), 2.0)
    found = ln_flux_data(flux, err, CHANNELS)
    np.testing.assert_allclose(found.value, np.log(1.4), rtol=1e-6)
    np.testing.assert_allclose(found.rel_err, 1 / 0.7, rtol=1e-6)


def test_star_without_any_flux_has_finite_ln_fluxes_and_features():
    found = ln_flux_data(np.full((2, N_WL), np.nan), np.full((2, N_WL), np.inf), CHANNELS)
    assert all(np.isfinite(x).all() for x in vars(found).values())
    assert not found.used.any()


@pytest.mark.parametrize("value", [0.0, -7.0, 1e30, np.nan, np.inf])
def test_flux_of_a_missing_channel_does_not_matter(observed, value):
    flux = np.where(np.isfinite(observed.flux_err), observed.flux, value)
    other = replaced(observed, flux=flux).observed
    for name, values in vars(observed.observed).items():
        np.testing.assert_array_equal(getattr(other, name), values)


@pytest.mark.parametrize(
    ("flux", "err"), [(np.nan, 1), (np.inf, 1), (1, np.nan), (1, np.inf), (1, 0), (1, -1), (0, 0)]
)
def test_flux_that_is_no_measurement_is_not_used(flux, err):
    fluxes, errors = np.ones((1, N_WL)), np.ones((1, N_WL))
    fluxes[0, 9], errors[0, 9] = flux, err
    assert not used_fluxes(fluxes, errors)[0, 9]
    found = ln_flux_data(fluxes, errors, CHANNELS)
    assert found.used.sum() == N_WL - 1
    assert all(np.isfinite(x).all() for x in vars(found).values())


def test_hidden_channels_are_as_if_they_had_not_been_observed_but_the_features_stay(observed):
    whole = observed.observed.take(slice(0, 4))
    hidden = observed.observed.take(np.arange(4))
    rows = np.array([True, False, True, False])
    hidden.hide(rows, WISE)
    err = observed.flux_err[:4].copy()
    err[np.ix_([0, 2], WISE)] = np.inf
    expected = ln_flux_data(observed.flux[:4], err, CHANNELS)
    for name in ("value", "rel_err", "used"):
        np.testing.assert_array_equal(getattr(hidden, name), getattr(expected, name))
    np.testing.assert_array_equal(hidden.features, whole.features)


@pytest.mark.parametrize(
    ("plx", "plx_err"),
    [(np.nan, 0.1), (1.0, np.nan), (1.0, np.inf), (1.0, 0.0), (1.0, -1.0), (np.inf, 1.0)],
)
def test_parallax_that_is_no_measurement_is_of_no_use(plx, plx_err):
    parallaxes = np.array([plx, 2.0]), np.array([plx_err, 0.5])
    stars = StarData(*np.ones((2, 2, N_WL)), *parallaxes, CHANNELS)
    np.testing.assert_array_equal(stars.useful_parallax, [False, True])


def test_star_data_of_rows_is_that_of_the_rows(mocks):
    labels = np.arange(24.0).reshape(8, 3)
    data = replaced(mocks, theta=labels, theta_err=labels / 10)
    taken = data.take([3, 1])
    assert isinstance(taken, StarData)
    np.testing.assert_array_equal(taken.flux, data.flux[[3, 1]])
    np.testing.assert_array_equal(taken.theta, labels[[3, 1]])
    assert taken.extinction is None
    np.testing.assert_array_equal(taken.observed.value, data.observed.value[[3, 1]])
    table = table_of(data)
    of_table = StarData.of_table(table, CHANNELS, [3, 1])
    np.testing.assert_array_equal(of_table.parallax_err, data.parallax_err[[3, 1]])


def test_labels_that_are_not_chosen_are_left_out(mocks):
    labels = np.arange(24.0).reshape(8, 3)
    data = replaced(mocks, theta=labels, theta_err=labels / 10)
    some = data.with_labels(np.array([True, False, True]))
    np.testing.assert_array_equal(some.theta, labels[:, [0, 2]])
    np.testing.assert_array_equal(some.theta_err, labels[:, [0, 2]] / 10)
    np.testing.assert_array_equal(some.flux, data.flux)


def test_table_without_parallaxes_has_all_else(mocks):
    table = table_of(mocks)
    hidden = without_parallax(table)
    assert np.isnan(hidden["plx"]).all()
    assert np.isnan(hidden["plx_err"]).all()
    assert hidden["flux"] is table["flux"]
    assert np.isfinite(table["plx"]).all()
