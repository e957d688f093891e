"""The training stars: who trains, calibrates and validates, and what a batch shows of them."""

import numpy as np
import pytest
from demo_model import RECIPE
from model_case import (
    BP,
    CHANNELS,
    DIRECT_ALPHA,
    FINE_GRID,
    LABEL_SETS,
    N_WL,
    N_XP,
    NO_BP,
    RP,
    add_direct,
    add_screens,
    make_model,
    replaced,
)
from training_case import NOISELESS, N, labelled, make_batches, stage_of

from fitting.batches import FLAT_LN_PLX_ERR, REFERENCE_G, START_EXT, UNKNOWN_EXT_ERR
from fitting.direct import direct_inputs, hide_parallax
from fitting.recipe import make_recipe
from fitting.split import hash_fraction, split_stars

ROWS = np.arange(N)
N_BANDS = N_WL - N_XP
SHARES = ("hide_parallax", "hide_photometry", "hide_bp", "hide_rp", "faint_share", "blur_parallax")
SHOW_ALL = dict.fromkeys(SHARES, 0.0)
LABELS = {"4": LABEL_SETS[4], "direct": DIRECT_ALPHA}
KINDS = ("likelihood", "posterior", "direct", "distance", "oddity", "calibration")


@pytest.fixture(scope="module", params=LABELS)
def case(request):
    """(model, its training stars)."""
    model = add_direct(make_model(LABELS[request.param]))
    return model, labelled(model)


@pytest.fixture(scope="module")
def usual():
    model = add_screens(add_direct(make_model(fine_wavelengths=FINE_GRID)))
    return model, labelled(model)


def batch_of(case, kind, seed=0, changes=None, **recipe):
    batches = make_batches(*case, **recipe)
    return batches.of(ROWS, stage_of(kind, **(changes or {})), np.random.default_rng(seed))


# ---- which stars are used --------------------------------------------------------------------


def test_side_of_a_star_depends_on_its_id_alone():
    recipe = make_recipe(RECIPE)
    ids = np.random.default_rng(0).integers(0, 2**62, 20000)
    sides = np.zeros(len(ids), int)
    for side, rows in enumerate(split_stars(ids, recipe)):
        sides[rows] = side
    fractions = np.bincount(sides) / len(ids)
    np.testing.assert_allclose(fractions, [0.6, 0.2, 0.2], atol=0.01)
    some = np.random.default_rng(1).permutation(len(ids))[:500]
    for side, rows in enumerate(split_stars(ids[some], recipe)):
        assert (sides[some][rows] == side).all()


def test_sides_do_not_follow_the_patches_of_the_sky():
    neighbours = (123456 << 43) + 128 * np.arange(5000)  # of one HEALPix pixel
    shares = [len(rows) for rows in split_stars(neighbours, make_recipe(RECIPE))]
    np.testing.assert_allclose(np.divide(shares, 5000), [0.6, 0.2, 0.2], atol=0.03)


def test_hashes_are_uniform_and_differ_with_the_salt():
    ids = np.arange(20000)
    one, other = hash_fraction(ids), hash_fraction(ids, salt=1)
    np.testing.assert_allclose(np.histogram(one, 10, (0, 1))[0], 2000, atol=200)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.03


def test_stage_trains_on_the_training_stars_and_calibration_on_the_others(case):
    batches, calibration = make_batches(*case), case[1].calibration
    rejected = ROWS % 7 == 0
    for kind in KINDS:
        chosen = batches.selected(stage_of(kind), rejected)
        expected = ~rejected & (calibration == (kind == "calibration"))
        np.testing.assert_array_equal(chosen, np.flatnonzero(expected))


@pytest.mark.parametrize(
    ("limits", "keeps"),
    [
        ({"max_err": {"teff": 0.1}}, lambda d: d.theta_err[:, 0] <= 0.1),
        ({"max_err": {"logg": 0.1, "feh": 0.05}},
         lambda d: (d.theta_err[:, 2] <= 0.1) & (d.theta_err[:, 1] <= 0.05)),
        ({"min_parallax_snr": 10.0}, lambda d: d.parallax / d.parallax_err >= 10.0),
        ({"min_extinction": 0.5}, lambda d: d.extinction >= 0.5),
    ],
)  # fmt: skip
def test_stars_are_selected_by_their_errors_parallax_and_dust(usual, limits, keeps):
    chosen = make_batches(*usual).selected(stage_of("likelihood", select=limits), np.zeros(N, bool))
    keep = keeps(usual[1].data) & ~usual[1].calibration
    np.testing.assert_array_equal(chosen, np.flatnonzero(keep))
    assert 0 < len(chosen) < usual[1].training.size


def test_limit_of_a_label_that_the_stars_have_not_is_ignored(usual):
    batches, none = make_batches(*usual), np.zeros(N, bool)
    limits = {"max_err": {"alpha_m": 1e-9, "teff": 0.1}}
    some = batches.selected(stage_of("likelihood", select=limits), none)
    del limits["max_err"]["alpha_m"]
    expected = batches.selected(stage_of("likelihood", select=limits), none)
    np.testing.assert_array_equal(some, expected)


def test_rare_types_weigh_more_but_not_without_limit(case):
    cap = RECIPE["rare_type_weight_cap"]
    batches, used = make_batches(*case), ~case[1].calibration
    assert batches.weight[used].mean() == pytest.approx(1, rel=1e-5)
    ln_p = case[0].prior.ln_density_z(batches.z[:, batches.forward]).numpy()
    order = np.argsort(ln_p)
    assert (np.diff(batches.weight[order]) <= 1e-6).all()
    assert batches.weight.max() / batches.weight.min() > 1.5
    usual = np.median(batches.weight[used])
    assert batches.weight.max() < usual * (1 + 1 / cap) * cap


# ---- what is known of them -------------------------------------------------------------------


def test_unknown_extinction_is_a_wide_guess(usual):
    stars = usual[1]
    unknown = ~np.isfinite(stars.data.extinction)
    assert unknown.any()
    np.testing.assert_array_equal(stars.ext[unknown], np.float32(START_EXT))
    np.testing.assert_array_equal(stars.ext_err[unknown], UNKNOWN_EXT_ERR)
    np.testing.assert_array_equal(stars.ext[~unknown], stars.data.extinction[~unknown])


def test_batch_shows_all_that_is_there_where_nothing_is_hidden(case):
    model, stars = case
    batch = batch_of(case, "likelihood", **SHOW_ALL)
    for name, value in vars(stars.data.observed).items():
        np.testing.assert_array_equal(batch[name], value)
    z = model.standardised(stars.data.theta)[:, model.is_forward]
    np.testing.assert_allclose(batch["z"], z, atol=1e-5)
    scale = model.label_scale[model.is_forward]
    np.testing.assert_allclose(
        batch["z_err"], stars.data.theta_err[:, model.is_forward] / scale, rtol=1e-5
    )
    np.testing.assert_allclose(batch["ln_plx"], np.log(stars.data.parallax), rtol=1e-5)
    relative = stars.data.parallax_err / stars.data.parallax
    np.testing.assert_allclose(batch["ln_plx_err"], relative, rtol=1e-5)
    assert all(value.dtype == np.float32 for value in batch.values())
    assert (batch["used"] == 1).all()


def test_batch_hides_as_much_as_told(case):
    batches = [
        batch_of(
            case,
            "likelihood",
            seed,
            **SHOW_ALL | {"hide_bp": 0.3, "hide_photometry": 0.4, "hide_parallax": 0.2},
        )
        for seed in range(6)
    ]
    used = np.concatenate([b["used"] for b in batches]) > 0
    no_bp, no_photometry = ~used[:, NO_BP].any(1), ~used[:, N_XP:].any(1)
    assert no_bp.mean() == pytest.approx(0.3, abs=0.04)
    assert no_photometry.mean() == pytest.approx(0.4, abs=0.04)
    # All of BP, and all surveys' bands, or none.
    np.testing.assert_array_equal(used[:, NO_BP].all(1), ~no_bp)
    np.testing.assert_array_equal(used[:, N_XP:].all(1), ~no_photometry)
    assert used[:, CHANNELS.rp & ~CHANNELS.bp].all()
    flat = np.concatenate([b["ln_plx_err"] for b in batches]) == np.float32(FLAT_LN_PLX_ERR)
    assert flat.mean() == pytest.approx(0.2, abs=0.04)


def test_stage_may_hide_more_parallaxes_than_the_recipe(usual):
    batch = batch_of(usual, "posterior", 0, {"hide_parallax": 1.0}, **SHOW_ALL)
    assert (batch["ln_plx_err"] == np.float32(FLAT_LN_PLX_ERR)).all()


def test_candidates_are_about_a_common_centre_with_the_label_first(case):
    model, _ = case
    labels = model.labels.forward
    batch = batch_of(case, "posterior")
    k = len(labels)
    assert batch["candidates"].shape == (N, RECIPE["candidates"], k)
    np.testing.assert_array_equal(batch["candidates"][:, 0], batch["z"])
    off = batch["candidates"] - batch["z_noise"][:, None]
    theta = model.theta(batch["z"])
    relative = np.abs(theta / labels.array("width_at")) ** labels.array("width_power")
    width = labels.array("width") * relative / model.label_scale[model.is_forward]
    pull = off / width[:, None]
    # The label is as far from the centre as the others are.
    np.testing.assert_allclose(pull[:, 0].std(0), 1, atol=0.12)
    np.testing.assert_allclose(pull[:, 1:].std((0, 1)), 1, atol=0.06)


def test_only_calibration_counts_the_errors_of_the_labels(usual):
    with_errors = {
        kind: "label_err" in batch_of(usual, kind)
        for kind in ("likelihood", "posterior", "calibration")
    }
    assert with_errors == {"likelihood": False, "posterior": False, "calibration": True}
    np.testing.assert_array_equal(batch_of(usual, "posterior")["weight"], 1)
    np.testing.assert_array_equal(
        batch_of(usual, "likelihood")["weight"], make_batches(*usual).weight
    )


# ---- what the direct estimate sees -----------------------------------------------------------


def test_direct_estimate_learns_all_labels(case):
    model, stars = case
    batch = batch_of(case, "direct")
    assert batch.keys() == {"inputs", "z", "weight"}
    np.testing.assert_allclose(batch["z"], model.standardised(stars.data.theta), atol=1e-5)


def test_direct_inputs_in_training_hide_and_blur_as_told(usual):
    batches = make_batches(*usual, **SHOW_ALL | {"hide_photometry": 0.2, "blur_parallax": 0.3})
    one = stage_of("direct", hide_parallax=0.5)
    stars, hidden, twomass = usual[1], [], []
    parallax_err, twomass_flux = -N_BANDS - 3, N_XP + len(FINE_GRID)  # places of inputs
    for seed in range(20):
        rng = np.random.default_rng(seed)
        inputs = batches.direct_inputs(batches.shown(ROWS, one, rng), one, rng)
        hidden.append(1 - inputs[:, -1].mean())
        twomass.append(1 - np.isfinite(inputs[:, twomass_flux]).mean())
        sharp = np.log(stars.data.parallax_err / stars.data.parallax)
        shown = np.isfinite(inputs[:, parallax_err])
        blurred = inputs[shown, parallax_err] > np.minimum(sharp, 0)[shown] + 1e-3
        assert 0.15 < blurred.mean() < 0.45
    assert np.mean(hidden) == pytest.approx(0.5, abs=0.03)
    assert np.mean(twomass) == pytest.approx(0.2, abs=0.03)


def test_direct_inputs_where_nothing_is_hidden_are_those_of_the_inference(usual):
    model, stars = usual
    expected = direct_inputs(stars.data)
    assert expected.shape[1] == model.direct.mean.shape[0]
    found = batch_of(usual, "direct", changes={"hide_parallax": 0.0}, **SHOW_ALL)
    np.testing.assert_allclose(found["inputs"], expected, atol=1e-5)
    found = batch_of(usual, "distance", **SHOW_ALL)
    np.testing.assert_allclose(found["inputs"], hide_parallax(expected, N_BANDS), atol=1e-5)


def test_distances_to_learn_are_ln_fluxes_at_1_kpc_by_the_parallax_with_its_error(usual):
    model, stars = usual
    batch, data = batch_of(usual, "distance"), stars.data
    assert batch.keys() == {"inputs", "z", "z_err", "weight"}
    relative = data.parallax_err / data.parallax
    np.testing.assert_allclose(batch["z_err"], 2 * relative / model.distance_scale, rtol=1e-4)
    batch = batch_of(usual, "distance", **SHOW_ALL)
    at_kpc = stars.data.observed.features[:, 0] - 2 * np.log(data.parallax)
    found = batch["z"] * model.distance_scale + model.distance_mean
    np.testing.assert_allclose(found, at_kpc, atol=1e-4)


def test_kinds_to_tell_are_one_hot(usual):
    batch = batch_of(usual, "oddity")
    assert batch["inputs"].shape == (N, usual[0].oddity.mean.shape[0])
    assert batch["kind"].shape == (N, 3)
    np.testing.assert_array_equal(np.sort(batch["kind"], 1), np.tile([0, 0, 1], (N, 1)))


def test_nothing_odd_is_told_by_its_parallax(usual):
    inputs, channels = batch_of(usual, "oddity")["inputs"], usual[0].channels
    hidden = hide_parallax(inputs, len(channels) - channels.n_xp)
    np.testing.assert_array_equal(inputs, hidden)


# ---- stars that look fainter, or lack a band ---------------------------------------------------


def test_likelihood_stages_show_stars_as_they_are_and_others_fainter(usual):
    stars, of_all = usual[1].data, {"faint_share": 1.0, "faint_g": [17.0, 18.0]}
    batches = make_batches(*usual, **SHOW_ALL | of_all)
    for kind in KINDS:
        shown = batches.shown(ROWS, stage_of(kind), np.random.default_rng(0))
        fainter = 2.5 * np.log10(stars.parallax / shown.parallax) * 2
        if kind == "likelihood":
            np.testing.assert_array_equal(shown.flux, stars.flux)
            np.testing.assert_allclose(fainter, 0, atol=1e-5)
        else:
            low, high = (np.maximum(g - usual[1].g, 0) for g in of_all["faint_g"])
            assert ((fainter > low - 1e-3) & (fainter < high + 1e-3)).all()
            assert fainter.max() > 1
    np.testing.assert_array_equal(stars.flux, usual[1].data.flux)


def test_share_of_the_stars_is_shown_fainter(usual):
    batches = make_batches(*usual, faint_share=0.3, faint_g=[25.0, 26.0])
    found = [batches.magnitudes(ROWS, np.random.default_rng(seed)) for seed in range(6)]
    assert np.mean(np.array(found) > 0) == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize("kind", ["likelihood", "posterior"])
def test_bands_are_hidden_but_never_both_and_RP_not_in_likelihood_stages(usual, kind):
    model, stars = usual
    data = replaced(stars.data, flux_err=stars.data.flux_err.copy())
    data.flux_err[:40, NO_BP] = data.flux_err[40:80, CHANNELS.rp] = np.inf
    stars = labelled(model)
    stars.data = data
    batches = make_batches(model, stars, **SHOW_ALL | {"hide_bp": 0.3, "hide_rp": 0.3})
    shown = [batches.shown(ROWS, stage_of(kind), np.random.default_rng(s)) for s in range(6)]
    lost = [
        np.array([~np.isfinite(x.flux_err[80:, band]).any(1) for x in shown]) for band in (BP, RP)
    ]
    assert lost[0].mean() == pytest.approx(0.3, abs=0.04)
    # Of those that keep BP.
    assert lost[1].mean() == pytest.approx(0.0 if kind == "likelihood" else 0.7 * 0.3, abs=0.04)
    assert not (lost[0] & lost[1]).any()
    if kind == "posterior":  # what one band has not seen keeps the other
        for x in shown:
            assert np.isfinite(x.flux_err[:40, RP]).all()
            assert np.isfinite(x.flux_err[40:80, BP]).all()


def test_brightness_that_is_not_known_follows_from_the_flux(usual):
    stars = usual[1]
    red = stars.data.flux[:, RP].mean(1)
    np.testing.assert_allclose(stars.g, REFERENCE_G - 2.5 * np.log10(red), atol=1e-4)
    told = type(stars)(stars.data, stars.calibration, np.where(ROWS % 2, 15.0, np.nan), stars.basis)
    np.testing.assert_allclose(told.g, np.where(ROWS % 2, 15.0, stars.g))


def test_release_without_typical_noise_shows_nothing_fainter(usual):
    model, stars = usual
    plain = labelled(model, basis=NOISELESS)
    assert plain.dimming is None
    batches = make_batches(model, plain, **SHOW_ALL | {"faint_share": 1.0, "hide_bp": 1.0})
    assert batches.strange is None
    for kind in ("likelihood", "posterior", "direct", "distance"):
        shown = batches.shown(ROWS, stage_of(kind), np.random.default_rng(0))
        np.testing.assert_array_equal(shown.flux, stars.data.flux)
        assert batches.of(ROWS, stage_of(kind), np.random.default_rng(0))["weight"].shape == (N,)
