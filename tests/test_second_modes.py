"""Which stars are searched for other modes: what tells them, and what the solver makes of it."""

import numpy as np
import pytest
from model_case import mock_stars, replaced

from fitting.second_modes import (
    APART,
    FEW_CASES,
    MOST_MISSED,
    NEAR,
    POOR_CHI2,
    WORSE,
    ModeSearch,
    fit_mode_search,
    search_features,
)
from fitting.solutions import Settled
from fitting.star_solver import Modes


@pytest.fixture(scope="module")
def observed(star_solver):
    """(`StarData`, direct estimates (2, N, 3) with errors of 0.1) of stars of the model."""
    data, truth = mock_stars(star_solver.model, 120, seed=41)
    z = truth[:, star_solver.at.z] + 0.1 * np.random.default_rng(2).normal(size=(120, 3))
    return data, np.stack([z, np.full_like(z, 0.1)]).astype("f4")


@pytest.fixture(scope="module")
def fitted():
    """(features, matters, `ModeSearch`) of stars of which a search matters for the faint ones."""
    rng = np.random.default_rng(1)
    features = rng.normal(size=(4000, 10))
    matters = rng.random(4000) < 0.5 / (1 + np.exp(-4 * (features[:, 7] - 1)))
    return features, matters, fit_mode_search(features, matters, rng.chisquare(60, 4000) / 60)


def worth(search, features):
    return search.chance.of(features)[:, 0] >= search.least


def test_a_stated_share_is_missed_and_most_stars_are_not_searched(fitted):
    features, matters, search = fitted
    assert np.mean(~worth(search, features)[matters]) == pytest.approx(MOST_MISSED, abs=0.01)
    assert worth(search, features)[~matters].mean() < 0.4


def test_few_cases_do_not_tell_and_all_stars_are_searched():
    features, chi2 = np.random.default_rng(0).normal(size=(500, 10)), np.ones(500)
    for n in (0, FEW_CASES - 1, 500):
        assert fit_mode_search(features, np.arange(500) < n, chi2) is None


def test_fits_are_poor_as_rarely_as_said_but_never_below_the_limit():
    features, matters = np.random.default_rng(0).normal(size=(500, 10)), np.arange(500) < 100
    for scale in (0.1, 10.0):
        chi2 = scale * np.linspace(0, 1, 500)
        found = fit_mode_search(features, matters, chi2)
        assert found.poor == pytest.approx(max(POOR_CHI2, np.quantile(chi2, 0.97)))


def test_what_is_fitted_comes_back_from_its_arrays(fitted):
    features, _, search = fitted
    restored = ModeSearch.from_arrays(search.to_arrays())
    np.testing.assert_array_equal(worth(restored, features), worth(search, features))
    assert restored.poor == search.poor
    assert ModeSearch.from_arrays({}) is None


def test_features_are_finite_whatever_the_parallax(observed):
    data, direct = observed
    parallax, err = data.parallax.copy(), data.parallax_err.copy()
    parallax[:4], err[:4] = [np.nan, -1.0, 1e-9, 1.0], [np.nan, 1.0, 1.0, np.inf]
    found = search_features(replaced(data, parallax=parallax, parallax_err=err), direct)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[:4, -1], 0)
    assert (found[4:, -1] == 1).all()


class Says:
    """A `ModeSearch` that says of all stars whether a search is worth it."""

    def __init__(self, answer, poor=POOR_CHI2):
        self.answer, self.poor = answer, poor

    def worth(self, data, direct):
        return np.full(len(data), self.answer)


def starts_of(solver, monkeypatch):
    """List of which starts are tried, one array a search."""
    asked, find = [], solver.starts.find

    def spy(*args, **kwargs):
        starts, tried = find(*args, **kwargs)
        asked.append(tried)
        return starts, tried

    monkeypatch.setattr(solver.starts, "find", spy)
    return asked


def test_sure_stars_start_at_the_direct_estimate_alone_and_end_where_a_search_does(
    star_solver, observed, monkeypatch
):
    data, direct = observed
    monkeypatch.setattr(star_solver.model, "search", None)
    whole = star_solver.solve(data, direct)
    monkeypatch.setattr(star_solver.model, "search", Says(False, poor=np.inf))
    asked = starts_of(star_solver, monkeypatch)
    alone = star_solver.solve(data, direct)
    assert len(asked) == 1
    assert asked[0][:, 0].all()
    assert not asked[0][:, 1:].any()
    assert np.mean(alone.best.phi < whole.best.phi + 0.3) > 0.9
    assert not np.isfinite(alone.second.phi).any()


def test_sure_stars_that_fit_badly_are_searched_after_all(star_solver, observed, monkeypatch):
    data, direct = observed
    data = data.take(np.arange(40)).without_parallax()
    monkeypatch.setattr(star_solver.model, "search", Says(False, poor=0.0))
    asked = starts_of(star_solver, monkeypatch)
    star_solver.solve(data, direct[:, :40])
    first, second = asked
    assert first.sum() == 40
    assert len(second) == 40
    assert (second.sum(1) > 1).all()


def modes(n, at, best_phi, second_phi=np.inf, away=1.0):
    """`Modes` of n stars, all the same; `away`: how far the second is in z."""
    best, second = Settled.empty(n, len(at)), Settled.empty(n, len(at))
    best.u[:], best.phi[:], best.chi2[:] = 0.0, best_phi, 33.0
    second.u[:], second.phi[:] = 0.0, second_phi
    second.u[:, at.z] = away
    return Modes(best, second)


@pytest.mark.parametrize(
    ("second_phi", "away", "alone_phi", "matters"),
    [
        (np.inf, 1.0, 10.1, False),  # another noise
        (10.0 + 0.9 * NEAR, 1.1 * APART, 10.0, True),
        (10.0 + 1.1 * NEAR, 1.1 * APART, 10.0, False),
        (10.0 + 0.9 * NEAR, 0.9 * APART, 10.0, False),  # a ripple
        (np.inf, 1.0, 10.0 + 1.1 * WORSE, True),
        (np.inf, 1.0, 10.0 + 0.9 * WORSE, False),
    ],
)
def test_a_search_matters_where_a_mode_is_near_and_apart_or_better(
    star_solver, observed, monkeypatch, second_phi, away, alone_phi, matters
):
    data, direct = observed
    at = star_solver.at

    def search(data, z_direct, every_family=None, only_direct=None):
        if only_direct is None:
            return modes(len(data), at, 10.0, second_phi, away)
        assert only_direct.all()
        return modes(len(data), at, alone_phi)

    monkeypatch.setattr(star_solver, "_search", search)
    found, chi2 = star_solver.search_matters(data, direct)
    np.testing.assert_array_equal(found, np.full(len(data), matters))
    np.testing.assert_allclose(chi2, 33.0 / data.observed.used.sum(1))
