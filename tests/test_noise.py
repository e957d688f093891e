"""The noise model against the used block of dense float64 covariances (tests/model_oracle.py)."""

import numpy as np
import pytest
import tensorflow as tf
from model_case import LABEL_SETS, N_WL, NO_BP, RP, TMASS, WISE, make_model, make_noise_model
from model_oracle import Oracle

from fitting.noise import NoiseModel

N_STARS = 5
MISSING = {
    "nothing": [],
    "WISE": WISE,
    "2MASS": TMASS,
    "J": TMASS[:1],
    "photometry": [*TMASS, *WISE],
    "BP": NO_BP,
    "BP and photometry": [*NO_BP, *TMASS, *WISE],
}
GENERAL_MISSING = {
    "RP": RP,
    "random channels": np.flatnonzero(np.random.default_rng(5).random(N_WL) < 0.4),
    "all but one": np.delete(np.arange(N_WL), 20),
}


class Case:
    """A noise model of K labels, its oracle, and z, E, rel_err, features of stars."""

    def __init__(self, n_labels):
        model = make_model(LABEL_SETS[n_labels])
        self.noise, self.oracle = model.noise, Oracle(model)
        rng = np.random.default_rng(2)
        z = np.clip(model.prior.sample(N_STARS, rng), -2.5, 2.5)
        rel_err = np.exp(rng.normal(np.log(0.03), 0.6, (N_STARS, N_WL)))
        features = [rng.normal(3, 1, N_STARS), rng.normal(np.log(0.03), 0.3, N_STARS)]
        inputs = z, rng.uniform(0.1, 2, N_STARS), rel_err, np.column_stack(features)
        self.inputs = tuple(x.astype("f4") for x in inputs)

    def expected(self, i, used):
        z, ext, rel_err, features = (x[i].astype("f8") for x in self.inputs)
        return self.oracle.precision(z, ext, rel_err, used[i], features)


@pytest.fixture(scope="module", params=[2, 4])
def any_case(request):
    return Case(request.param)


@pytest.fixture(scope="module")
def case():
    return Case(3)


def whitening(noise, inputs, used, general):
    z, ext, rel_err, features = inputs
    one = noise.whitening(
        *(tf.constant(x, tf.float32) for x in (z, ext, rel_err, used, features)), general
    )
    return one.transposed().numpy().transpose(0, 2, 1), one.ln_det.numpy()


def used_without(missing):
    used = np.ones((N_STARS, N_WL), "f4")
    used[:, list(missing)] = 0
    return used


def assert_same_precision(s, expected, tolerance=2e-4):
    """S^T S equals a precision matrix, in units of its diagonal."""
    found = s.astype("f8").T @ s
    scale = np.sqrt(np.diag(expected))
    scale = np.where(scale > 0, scale, 1.0)
    size = np.outer(scale, scale)
    np.testing.assert_allclose(found / size, expected / size, atol=tolerance)


def assert_whitening_is_the_oracles(case, used, general):
    s, ln_det = whitening(case.noise, case.inputs, used, general)
    for i in range(N_STARS):
        expected, expected_ln_det = case.expected(i, used)
        assert_same_precision(s[i], expected)
        np.testing.assert_allclose(ln_det[i], expected_ln_det, atol=2e-3)


@pytest.mark.parametrize(
    ("pattern", "general"),
    [
        *((pattern, False) for pattern in MISSING),
        *((pattern, True) for pattern in ("nothing", "WISE", "BP", *GENERAL_MISSING)),
    ],
)
def test_whitening_is_that_of_the_used_block_of_the_covariance(case, pattern, general):
    used = used_without((MISSING | GENERAL_MISSING)[pattern])
    assert_whitening_is_the_oracles(case, used, general)


def test_whitening_depends_on_all_labels_however_many(any_case):
    assert_whitening_is_the_oracles(any_case, used_without(WISE), general=False)
    z, *rest = any_case.inputs
    for k in range(z.shape[1]):
        moved = z.copy()
        moved[:, k] += 0.5
        s, other = (
            whitening(any_case.noise, (x, *rest), used_without([]), False)[0] for x in (z, moved)
        )
        assert not np.allclose(s, other, rtol=1e-3)


def test_oracle_covariances_are_full_and_differ_between_stars(case):
    """Else the tests above would say little."""
    first, second = (case.oracle.covariance(*(x[i].astype("f8") for x in case.inputs)) for i in
                     (0, 1))  # fmt: skip
    sigma = np.sqrt(np.diag(first))
    off_diagonal = (first / np.outer(sigma, sigma))[np.triu_indices(N_WL, 1)]
    assert np.abs(off_diagonal).mean() > 0.05
    assert not np.allclose(first, second, rtol=0.3)


def test_stars_with_different_missing_bands_in_one_batch_equal_each_alone(case):
    used = np.ones((N_STARS, N_WL), "f4")
    for row, missing in zip(used, list(MISSING.values())[1:], strict=False):
        row[list(missing)] = 0
    s, ln_det = whitening(case.noise, case.inputs, used, general=False)
    general_s, general_ln_det = whitening(case.noise, case.inputs, used, general=True)
    for i in range(N_STARS):
        assert_same_precision(s[i], general_s[i].astype("f8").T @ general_s[i])
    np.testing.assert_allclose(ln_det, general_ln_det, atol=2e-3)


@pytest.mark.parametrize("general", [False, True])
def test_error_of_a_missing_channel_does_not_matter(case, general):
    missing = [*MISSING["BP"], *MISSING["J"], *MISSING["WISE"]]
    used = used_without(missing)
    z, ext, rel_err, features = case.inputs
    s, ln_det = whitening(case.noise, case.inputs, used, general)
    other = rel_err.copy()
    other[:, missing] = np.random.default_rng(3).choice([1e-4, 1.0, 300.0], other[:, missing].shape)
    other_s, other_ln_det = whitening(case.noise, (z, ext, other, features), used, general)
    for i in range(N_STARS):
        assert_same_precision(other_s[i], s[i].astype("f8").T @ s[i])
    np.testing.assert_allclose(other_ln_det, ln_det, atol=2e-3)
    np.testing.assert_array_equal(other_s[:, :, missing], 0)


def test_larger_reported_errors_widen_every_variance(case):
    z, ext, rel_err, features = case.inputs
    used = used_without([])

    def variances(factor):
        s, ln_det = whitening(case.noise, (z, ext, factor * rel_err, features), used, False)
        s = s.astype("f8")
        return np.einsum("nii->ni", np.linalg.inv(s.transpose(0, 2, 1) @ s)), ln_det

    (before, ln_det), (after, ln_det_after) = variances(1), variances(5)
    assert (after > 1.05 * before).all()
    assert (ln_det_after < ln_det).all()


def test_whitening_of_a_wild_star_is_finite(any_case):
    z = np.zeros((3, any_case.inputs[0].shape[1]), "f4")
    z[0], z[1] = 50, -50
    one = any_case.noise.whitening(
        tf.constant(z),
        tf.constant([1e4, 0.0, 0.0]),
        tf.fill((3, N_WL), 1e3),
        tf.ones((3, N_WL)),
        tf.constant([[1e6, 1e3], [-1e6, -1e3], [0.0, 0.0]]),
    )
    assert np.isfinite(one.transposed()).all()
    assert np.isfinite(one.ln_det).all()


@pytest.mark.parametrize("general", [False, True])
def test_products_are_those_of_whitened_spectra(case, general):
    used, rng = used_without([*TMASS[:1], *NO_BP]), np.random.default_rng(3)
    z, ext, rel_err, features = case.inputs
    one = case.noise.whitening(
        *(tf.constant(x, tf.float32) for x in (z, ext, rel_err, used, features)), general
    )
    spectra = tf.constant(rng.normal(size=(N_STARS, 4, N_WL)), tf.float32)
    white = one.of(spectra).numpy().astype("f8")
    expected = np.einsum("bin,bjn->ijb", white, white)
    np.testing.assert_allclose(one.products(spectra), expected, rtol=1e-4, atol=1e-3)
    s = one.transposed().numpy().astype("f8")
    np.testing.assert_allclose(white, spectra.numpy() @ s, rtol=1e-4, atol=1e-3)


def test_level_and_tails_are_apart_from_the_shape():
    noise = make_noise_model()
    names = [v.name for v in (*noise.shape_variables, *noise.level_variables)]
    assert sorted(names) == sorted(v.name for v in noise.variables)
    assert len(noise.level_variables) == 2


def test_noise_model_restored_from_its_arrays_whitens_the_same(any_case):
    arrays = {name: np.array(value) for name, value in any_case.noise.to_arrays().items()}
    restored, used = NoiseModel.from_arrays(arrays), used_without([*TMASS[:1], *NO_BP])
    assert restored.n_labels == any_case.noise.n_labels
    for one, two in zip(
        whitening(restored, any_case.inputs, used, False),
        whitening(any_case.noise, any_case.inputs, used, False),
        strict=True,
    ):
        np.testing.assert_array_equal(one, two)


def test_tables_made_before_give_the_same_whitening(case):
    used, tables = used_without(NO_BP), case.noise.tables()
    tensors = [tf.constant(x, tf.float32) for x in (*case.inputs[:3], used, case.inputs[3])]
    once, again = case.noise.whitening(*tensors, tables=tables), case.noise.whitening(*tensors)
    for left, right in zip(once, again, strict=True):
        np.testing.assert_array_equal(left.numpy(), right.numpy())
