"""The quality flags of the catalogue: each is set just when its condition holds."""

import numpy as np
import pytest
from model_case import (
    CHANNELS,
    DIRECT_ALPHA,
    LABEL_SETS,
    THETA_MEAN,
    THETA_SCALE,
    WISE,
    make_model,
    make_trained,
    mock_stars,
    replaced,
)

from fitting.catalogue import _conditions
from fitting.trained_model import Alarms
from pipeline.schema import DEFAULT_LABELS, flags

BITS = flags.quality_flag(DEFAULT_LABELS)
HIGH = 0.95  # confidences


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def trained(model):
    return make_trained(model, alarms=Alarms(4.0, 0.6, 0.7))


class Clean:
    """Two stars without any flag; what is told of them may be changed."""

    def __init__(self, model):
        n_labels, n_forward = len(model.labels), len(model.labels.forward)
        self.data, _ = mock_stars(model, 2, seed=4)
        mean = model.label_mean[model.is_forward]
        est = np.tile([*mean, 0.0, 0.5, 1.0], (2, 1))
        est[:, n_forward + 2] = self.data.parallax
        self.found = {
            "stellar_params_est": est,
            "chi2_opt": np.full(2, 60.0),
            "ln_prior": np.full(2, -3.0),
            "parallax_tension": np.zeros(2),
            "blend_probability": np.full(2, 0.1),
            "strange_probability": np.full(2, 0.1),
        }
        self.confidence = np.full((2, n_labels), HIGH)
        self.bits = flags.quality_flag(model.labels)

    def hide(self, channels):
        """Have the second star not observed in some channels."""
        err = self.data.flux_err.copy()
        err[1, channels] = np.inf
        self.data = replaced(self.data, flux_err=err)

    def flags(self, trained):
        """The sum of the bits that are set, (2,)."""
        conditions = _conditions(self.found, self.confidence, self.data, trained)
        return sum(np.where(where, self.bits[name].value, 0) for name, where in conditions.items())


@pytest.fixture
def clean(model):
    return Clean(model)


def test_clean_star_has_no_flag(clean, trained):
    np.testing.assert_array_equal(clean.flags(trained), 0)


# What is done to the second star: column, index in it, value; and the flags it then has.
CHANGES = [
    ("chi2_opt", (), 2 * 61 * 0.999, 0),
    ("chi2_opt", (), 2 * 61 * 1.001, BITS.CHI2),
    ("ln_prior", (), -8.99, 0),  # the floor of `make_prior` is -9
    ("ln_prior", (), -9.01, BITS.LN_PRIOR),
    ("stellar_params_est", 0, THETA_MEAN[0] + 8.1 * THETA_SCALE[0], BITS.OUT_OF_RANGE),
    ("stellar_params_est", 1, THETA_MEAN[1] - 8.1 * THETA_SCALE[1], BITS.OUT_OF_RANGE),
    ("stellar_params_est", 2, THETA_MEAN[2] + 7.9 * THETA_SCALE[2], 0),
    ("stellar_params_est", 3, 5.0, 0),  # xi
    ("stellar_params_est", 4, 19.9, 0),  # E
    ("stellar_params_est", 4, 20.1, BITS.OUT_OF_RANGE),
    ("stellar_params_est", 2, np.nan, BITS.BAD_INPUT),
    ("parallax_tension", (), 3.9, 0),
    ("parallax_tension", (), -3.9, 0),
    ("parallax_tension", (), 4.1, BITS.PARALLAX_TENSION),
    ("parallax_tension", (), -4.1, BITS.PARALLAX_TENSION),
    ("parallax_tension", (), np.nan, 0),
    ("blend_probability", (), 0.59, 0),
    ("blend_probability", (), 0.61, BITS.BLEND),
    ("blend_probability", (), np.nan, 0),
    ("strange_probability", (), 0.69, 0),
    ("strange_probability", (), 0.71, BITS.STRANGE),
    ("strange_probability", (), np.nan, 0),
]


@pytest.mark.parametrize(("name", "index", "value", "expected"), CHANGES)
def test_flag_is_set_just_when_its_condition_holds(clean, trained, name, index, value, expected):
    clean.found[name][(1, index) if index != () else 1] = value
    np.testing.assert_array_equal(clean.flags(trained), [0, int(expected)])


@pytest.mark.parametrize(("n_hidden", "expected"), [(30, 0), (32, BITS.CHI2)])
def test_chi2_limit_counts_the_XP_fluxes_used(clean, trained, n_hidden, expected):
    """chi^2 is 60; photometry does not count."""
    both = np.flatnonzero(CHANNELS.bp | CHANNELS.rp)
    clean.hide([*both[1 : n_hidden + 1], *WISE])  # a flux of BP is left
    np.testing.assert_array_equal(clean.flags(trained), [0, int(expected)])


@pytest.mark.parametrize("band", ["bp", "rp"])
def test_star_without_a_band_is_flagged_and_one_with_a_part_of_it_is_not(clean, trained, band):
    clean.found["chi2_opt"][:] = 0
    alone = np.flatnonzero(
        {"bp": CHANNELS.bp & ~CHANNELS.rp, "rp": CHANNELS.rp & ~CHANNELS.bp}[band]
    )
    clean.hide(alone[:-1])
    np.testing.assert_array_equal(clean.flags(trained), 0)
    clean.hide(alone)
    np.testing.assert_array_equal(clean.flags(trained), [0, BITS.BAND_MISSING])


def test_without_alarms_nothing_is_odd(clean, model):
    clean.found["parallax_tension"][1] = 1e9
    clean.found["blend_probability"][1] = clean.found["strange_probability"][1] = 1.0
    np.testing.assert_array_equal(clean.flags(make_trained(model)), 0)


@pytest.mark.parametrize(
    ("sigmas", "expected"), [(9.9, 0), (-9.9, 0), (10.1, BITS.PARALLAX), (-10.1, BITS.PARALLAX)]
)
def test_parallax_flag_is_set_beyond_10_sigma(clean, trained, sigmas, expected):
    data = clean.data
    clean.found["stellar_params_est"][1, 5] = data.parallax[1] + sigmas * data.parallax_err[1]
    np.testing.assert_array_equal(clean.flags(trained), [0, int(expected)])
    data.parallax[1] = np.nan
    np.testing.assert_array_equal(clean.flags(trained), 0)


def test_error_level_outside_the_training_range_is_flagged(clean, model):
    level = clean.data.observed.features[:, 1]
    low, high = sorted(level)
    assert high > low
    found = clean.flags(make_trained(model, highest=(20.0, (low + high) / 2)))
    np.testing.assert_array_equal(found, np.where(level == high, BITS.OUT_OF_RANGE, 0))


@pytest.mark.parametrize(
    "labels", [*LABEL_SETS.values(), DIRECT_ALPHA], ids=["2", "3", "4", "direct"]
)
def test_confidence_flag_is_set_for_its_label_below_one_half(labels):
    model = make_model(labels)
    trained, bits, names = make_trained(model), flags.quality_flag(labels), labels.texts("name")
    for k, name in enumerate(names):
        clean = Clean(model)
        clean.confidence[:] = 0.5025
        clean.confidence[1, k] = 0.4975
        expected = bits[f"{name.upper()}_CONFIDENCE"]
        np.testing.assert_array_equal(clean.flags(trained), [0, expected])
        assert expected == {"teff": 1, "feh": 2, "logg": 4, "alpha_m": 1 << 16}[name]


@pytest.mark.parametrize("n_labels", [2, 4])
def test_range_of_other_labels_is_flagged(n_labels):
    model = make_model(LABEL_SETS[n_labels])
    clean, trained = Clean(model), make_trained(model)
    assert not clean.flags(trained).any()
    clean.found["stellar_params_est"][1, n_labels - 1] += 8.1 * model.label_scale[-1]
    bits = flags.quality_flag(LABEL_SETS[n_labels])
    np.testing.assert_array_equal(clean.flags(trained), [0, bits.OUT_OF_RANGE])
