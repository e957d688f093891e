"""Where descents start, families of stars, and the two modes that are kept."""

import numpy as np
import pytest
from model_case import LABEL_SETS, THETA_MEAN, THETA_SCALE, make_model, mock_stars, replaced

from fitting import star_solver as star_solver_module
from fitting import starts as starts_module
from fitting.families import N_FAMILIES, Families
from fitting.solutions import Settled
from fitting.star_solver import SAME_MODE, Modes
from fitting.starts import StartSearch
from pipeline.schema import KNOWN_LABELS, LabelSet


@pytest.fixture(scope="module")
def model(star_solver):
    return star_solver.model


@pytest.fixture(scope="module")
def at(model):
    return model.coordinates


@pytest.fixture(scope="module")
def search(model):
    return StartSearch(model, seed=0)


def without_parallax(data):
    none = np.full(len(data), np.nan, "f4")
    return replaced(data, parallax=none, parallax_err=none)


# ---------------------------------------------------------------------------------------- families

TYPES = np.array(
    [
        [4.5, -1.5, 2.0],
        [4.5, -0.5, 2.0],
        [4.8, -1.5, 3.0],
        [4.8, 0.0, 3.0],
        [5.5, 0.0, 3.9],
        [6.0, 0.0, 4.4],
        [4.0, 0.0, 4.7],
    ]
)


def families_of(*names):
    """The families of TYPES where only some labels are known."""
    labels = LabelSet([KNOWN_LABELS[name] for name in names])
    columns = {"teff": 0, "feh": 1, "logg": 2}
    theta = [TYPES[:, columns[n]] if n in columns else np.zeros(7) for n in names]
    return Families(labels).of(np.column_stack(theta))


def test_families_are_split_where_documented():
    np.testing.assert_array_equal(families_of("teff", "feh", "logg"), [1, 0, 3, 2, 4, 5, 6])


def test_families_do_not_depend_on_the_order_of_the_labels_or_on_others():
    expected = families_of("teff", "feh", "logg")
    np.testing.assert_array_equal(families_of("logg", "alpha_m", "teff", "feh"), expected)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("teff", "logg"), [0, 0, 2, 2, 4, 5, 6]),
        (("feh", "logg"), [1, 0, 3, 2, 4, 5, 5]),
        (("logg", "alpha_m"), [0, 0, 2, 2, 4, 5, 5]),
        (("teff", "feh"), [3, 1, 3, 1, 0, 0, 1]),
        (("teff", "alpha_m"), [1, 1, 1, 1, 0, 0, 1]),
    ],
)
def test_families_without_a_label_are_those_that_the_others_tell_apart(names, expected):
    found = families_of(*names)
    np.testing.assert_array_equal(found, expected)
    assert found.max() < N_FAMILIES


# ------------------------------------------------------------------------------------------ starts


def test_star_that_is_a_template_starts_there(model, search, at):
    order = np.argsort(-search.ln_prior)[:50]  # likely types, not the odd ones of the wide margins
    n, ext, plx = len(order), 0.3, np.float32(2.0)
    ln_flux = search.ln_flux[order] - ext * search.curve + 2 * np.log(plx)
    flux = np.exp(ln_flux).astype("f4")
    stars, _ = mock_stars(model, n)
    data = replaced(
        stars,
        flux=flux,
        flux_err=0.02 * flux,
        parallax=np.full(n, plx),
        parallax_err=np.full(n, np.float32(0.1)),
    )
    starts, tried = search.find(data, batch_size=32)
    np.testing.assert_allclose(starts[:, 0, at.z], search.z[order], atol=0.7)
    exact = np.abs(starts[:, 0, at.z] - search.z[order]).max(1) < 1e-6
    assert exact.mean() > 0.6
    np.testing.assert_allclose(np.exp(starts[exact, 0, at.ln_ext]), ext, rtol=1e-2)
    np.testing.assert_allclose(np.exp(starts[exact, 0, at.ln_plx]), plx, rtol=1e-2)
    assert tried[:, 0].all()


@pytest.mark.parametrize("n_labels", [2, 4])
def test_starts_of_any_number_of_labels_are_near_the_stars(n_labels):
    model = make_model(LABEL_SETS[n_labels])
    data, truth = mock_stars(model, 60, seed=3, rel_err=0.01)
    starts, tried = StartSearch(model, seed=0).find(data, 64)
    assert starts.shape[2] == n_labels + 3
    away = np.abs(starts - truth[:, None])[:, :, 0]  # of Teff, in z
    assert np.median(np.where(tried, away, np.inf).min(1)) < 0.5


def test_all_families_are_tried_without_a_useful_parallax_or_when_asked_to(model, search):
    data, _ = mock_stars(model, 30, seed=8, rel_err=0.01)
    weak = replaced(data, parallax_err=(0.6 * data.parallax).astype("f4"))
    negative = replaced(data, parallax=-data.parallax)
    families = len(np.unique(search.family))
    assert search.find(data, 16)[1].sum(1).min() < families
    for stars, every in ((weak, None), (without_parallax(data), None), (negative, None),
                         (data, True)):  # fmt: skip
        _, tried = search.find(stars, 16, every_family=every)
        np.testing.assert_array_equal(tried.sum(1), families)
    _, tried = search.find(without_parallax(data), 16, every_family=False)
    assert 1 <= tried.sum(1).min() < families


def test_patterns_of_channels_are_those_of_a_table_of_them():
    rng = np.random.default_rng(4)
    used = rng.random((50, 13)) > [[0.0] * 6 + [0.5] * 2 + [0.0] * 5]
    expected, which = np.unique(used, axis=0, return_inverse=True)
    found = list(starts_module._patterns(used))
    assert len(found) == len(expected) == 4
    for (pattern, rows), k in zip(found, range(4), strict=True):
        np.testing.assert_array_equal(pattern, expected[k])
        np.testing.assert_array_equal(rows, np.flatnonzero(which == k))


def test_starts_are_finite_and_within_the_bounds_for_any_star(search, varied, at):
    data, _ = varied
    err, flux = data.flux_err.copy(), data.flux.copy()
    err[8] = np.inf
    flux[7], flux[2] = 0.0, -1e6
    starts, tried = search.find(replaced(data, flux=flux, flux_err=err), 8)
    assert np.isfinite(starts).all()
    assert ((starts >= at.lower) & (starts <= at.upper)).all()
    assert tried[:, 0].all()


def test_the_direct_estimate_is_the_first_start_and_its_like_are_left_out(model, search, at):
    data, truth = mock_stars(model, 40, seed=8, rel_err=0.01)
    z_direct = truth[:, at.z].astype("f4")
    starts, tried = search.find(data, 16, z_direct)
    np.testing.assert_array_equal(starts[:, 0, at.z], at.clip(truth.astype("f4"))[:, at.z])
    assert tried[:, 0].all()
    # Dust and distance follow from the fluxes, at the mean extinction curve.
    np.testing.assert_allclose(starts[:, 0, at.ln_plx], truth[:, at.ln_plx], atol=0.3)
    dusty = truth[:, at.ln_ext] > np.log(0.3)
    off = starts[dusty, 0, at.ln_ext] - truth[dusty, at.ln_ext]
    np.testing.assert_allclose(np.exp(off), 1, atol=0.35)
    templates, worth = search.find(data, 16)
    np.testing.assert_array_equal(starts[:, 1:], templates)
    z = starts[:, :, at.z]
    family = Families(model.labels).of(model.theta(z).reshape(-1, 3)).reshape(tried.shape)
    near = np.abs(z - z[:, :1]).max(2) < starts_module.BESIDE_DIRECT
    beside = ((family == family[:, :1]) & near)[:, 1:]
    np.testing.assert_array_equal(tried[:, 1:], worth & ~beside)
    assert (worth & beside).any()


def test_templates_follow_their_seed(model):
    a, b, c = (StartSearch(model, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a.z, b.z)
    assert not np.array_equal(a.z, c.z)


# ------------------------------------------------------------------------------------------- modes


def test_second_mode_is_the_best_of_another_family(star_solver):
    """Three stars: descents that met, two families, and none that is finite."""
    giant, dwarf = (
        np.append((np.array(theta) - THETA_MEAN) / THETA_SCALE, [0, 0, 0])
        for theta in ([4.8, 0.0, 2.0], [4.8, 0.0, 4.6])
    )
    edge = np.append((np.array([4.8, 0.0, 4.15]) - THETA_MEAN) / THETA_SCALE, [0, 0, 0])
    u = np.array([edge - 0.01, edge + 0.01, giant, dwarf, giant + 0.3, dwarf + 0.1, giant * np.nan])
    phi = np.array([5.0, 4.0, 7.0, 3.0, 2.0, 2.5, np.nan])
    star = np.array([0, 0, 1, 1, 1, 1, 2])
    trial = Settled.empty(len(u), 6)
    trial.u[:], trial.phi[:] = u, phi
    modes = star_solver._modes(trial, star, 4)
    np.testing.assert_array_equal(modes.best.phi, [4.0, 2.0, np.nan, np.inf])
    np.testing.assert_array_equal(modes.second.phi, [np.inf, 2.5, np.inf, np.inf])
    np.testing.assert_allclose(modes.second.u[1], u[5], rtol=1e-6)
    assert np.isnan(modes.second.u[[0, 2, 3]]).all()


def test_modes_of_noisy_stars_are_apart_and_in_order(star_solver, model, at, monkeypatch):
    monkeypatch.setattr(starts_module, "START_MARGIN", 1e3)  # so that there are
    monkeypatch.setattr(star_solver_module, "TRIAL_MARGIN", 1e3)  # second modes enough
    data, _ = mock_stars(model, 300, seed=12, rel_err=0.4, plx_snr=1.0)
    modes = star_solver.solve(data)
    best, second = modes.best, modes.second
    both = np.isfinite(second.phi)
    assert both.sum() > 5
    assert (second.phi >= best.phi).all()
    families = Families(model.labels)
    first, other = (families.of(model.theta(x.u[both, at.z])) for x in (best, second))
    assert (first != other).all()
    assert (np.abs(best.u - second.u)[both, at.z].max(1) > SAME_MODE).all()


def test_stars_that_fit_badly_are_searched_again_from_all_families(
    star_solver, model, at, monkeypatch
):
    """A first search that left every third star at its worst start; its second is not asked where
    all families were tried already."""
    data, _ = mock_stars(model, 60, seed=33)
    data.parallax[:6] = np.nan
    expected = star_solver.solve(data)
    asked, whole, bad = [], star_solver._search, np.arange(60) % 3 == 0

    def search(stars, z_direct, every_family=None, only_direct=None, known=None):
        modes = whole(stars, z_direct, every_family, only_direct, known)
        asked.append((stars.flux, every_family))
        if not every_family:
            best = modes.best
            best.u[bad], best.chi2[bad], best.phi[bad] = at.upper, 1e4, 1e4
        return Modes(modes.best, modes.second)

    monkeypatch.setattr(star_solver, "_search", search)
    found = star_solver.solve(data).best
    again = bad & data.useful_parallax
    assert [every for _, every in asked] == [None, True]
    np.testing.assert_array_equal(asked[1][0], data.flux[again])
    assert (found.phi[again] < expected.best.phi[again] + 0.1).all()
    np.testing.assert_array_equal(found.u[~bad], expected.best.u[~bad])
    np.testing.assert_array_equal(found.u[bad & ~again], np.tile(at.upper, (2, 1)))
