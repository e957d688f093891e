"""The forward model against slow float64 counterparts (tests/model_oracle.py), and its export."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf
from model_case import (
    CHANNELS,
    LABEL_SETS,
    MEAN,
    N_WL,
    SCALE,
    THETA_MEAN,
    THETA_SCALE,
    WISE,
    make_flux_model,
    make_model,
)
from model_oracle import Oracle, slope

from model import FluxModel, export, initial_ln_ext_curve, set_threads

N_STARS = 5
WAVELENGTHS = CHANNELS.wavelengths


@pytest.fixture(scope="module")
def stellar():
    return make_model()


@pytest.fixture(scope="module")
def flux(stellar):
    return stellar.flux


@pytest.fixture(scope="module")
def oracle(stellar):
    return Oracle(stellar)


@pytest.fixture(scope="module")
def stars(stellar):
    """Random stars: z (n, 3), xi, E, ln plx (n,), float32."""
    rng = np.random.default_rng(1)
    z = np.clip(stellar.prior.sample(N_STARS, rng), -2.5, 2.5)
    values = z, rng.normal(size=N_STARS), rng.uniform(0.1, 2, N_STARS), rng.normal(size=N_STARS)
    return tuple(x.astype("f4") for x in values)


# ------------------------------------------------------------------------ network and extinction


@pytest.mark.parametrize(
    ("n_layers", "hidden", "n_labels"), [(1, 7, 2), (2, 5, 3), (3, 16, 4), (4, 6, 3)]
)
def test_network_and_its_jacobian_equal_the_equations_and_their_differences(
    n_layers, hidden, n_labels
):
    rng = np.random.default_rng(n_layers)
    mean, basis = rng.normal(size=N_WL), rng.normal(0, 0.2, (N_WL, N_WL))
    types = MEAN[:n_labels], SCALE[:n_labels]
    model = FluxModel(WAVELENGTHS, *types, mean, basis, hidden, n_layers, seed=3)
    for variable in model.network_variables:
        variable.assign(variable + rng.normal(0, 0.3, variable.shape).astype("f4"))
    stellar = make_model()
    stellar.flux = model
    oracle = Oracle(stellar)
    z = rng.normal(0, 1.2, (9, n_labels)).astype("f4")
    value, jacobian = (x.numpy() for x in model.ln_flux_and_jacobian(tf.constant(z)))
    np.testing.assert_allclose(value, [oracle.ln_flux(row) for row in z.astype("f8")], atol=1e-5)
    np.testing.assert_allclose(model.ln_flux(z), value, atol=1e-5)
    expected = [slope(oracle.ln_flux, row, 1e-5).T for row in z]
    np.testing.assert_allclose(jacobian, expected, atol=2e-5)


def test_jacobian_equals_that_of_automatic_differentiation(flux, stars):
    z = tf.constant(stars[0])
    _, jacobian = flux.ln_flux_and_jacobian(z)
    for k in range(3):
        tangent = np.zeros_like(stars[0])
        tangent[:, k] = 1
        with tf.autodiff.ForwardAccumulator(z, tf.constant(tangent)) as accumulator:
            ln_flux = flux.ln_flux(z)
        np.testing.assert_allclose(jacobian[:, k], accumulator.jvp(ln_flux), atol=1e-5)


def test_float32_flux_equals_the_float64_equations(flux, oracle, stars):
    z, xi, ext, ln_plx = stars
    u = np.column_stack([z, xi, np.log(ext.astype("f8")), ln_plx]).astype("f8")
    expected = np.exp([oracle.mu(row) for row in u])
    np.testing.assert_allclose(flux.flux(*stars), expected, rtol=3e-5)


@pytest.mark.parametrize("n_labels", [2, 4])
def test_order_of_the_labels_does_not_matter(n_labels):
    model, order = make_flux_model(LABEL_SETS[n_labels]), np.roll(np.arange(n_labels), 1)
    arrays = model.to_arrays()
    for name in ("theta_mean", "theta_scale"):
        arrays[name] = arrays[name][order]
    for layer in range(model.n_layers):
        arrays[f"w_theta_{layer}"] = arrays[f"w_theta_{layer}"][order]
    other = FluxModel.from_arrays(arrays)
    z = np.random.default_rng(0).normal(size=(8, n_labels)).astype("f4")
    (value, jacobian), (value_2, jacobian_2) = (
        m.ln_flux_and_jacobian(tf.constant(x)) for m, x in ((model, z), (other, z[:, order]))
    )
    np.testing.assert_allclose(value_2, value, atol=1e-5)
    np.testing.assert_allclose(jacobian_2, jacobian.numpy()[:, order], atol=1e-5)


def test_without_dust_the_flux_does_not_depend_on_xi(flux, stars):
    z, xi, ext, ln_plx = stars
    without = flux.flux(z, xi, 0 * ext, ln_plx)
    np.testing.assert_array_equal(without, flux.flux(z, xi + 1, 0 * ext, ln_plx))
    changed = flux.flux(z, xi + 1, ext, ln_plx)
    assert not np.allclose(changed, flux.flux(z, xi, ext, ln_plx), rtol=1e-3)


@pytest.mark.parametrize("k", [4.0, 0.01])
def test_flux_times_k_is_parallax_times_the_root_of_k(flux, stars, k):
    z, xi, ext, ln_plx = stars
    near = flux.flux(z, xi, ext, ln_plx + np.float32(0.5 * np.log(k)))
    np.testing.assert_allclose(near, k * flux.flux(*stars), rtol=1e-5)


def test_ln_flux_is_linear_in_dust_and_ln_parallax(flux, stars):
    z, xi, ext, ln_plx = stars

    def ln_flux(factor):
        return np.log(flux.flux(z, xi, factor * ext, factor * ln_plx))

    np.testing.assert_allclose(ln_flux(2) - ln_flux(1), ln_flux(1) - ln_flux(0), atol=1e-5)


def test_extinction_in_W1_and_W2_does_not_depend_on_xi(flux):
    assert (flux.ln_ext_curve_xi.numpy()[WISE] != 0).all()  # what the mask has to hold back
    curve, by_xi = (x.numpy() for x in flux.ext_curve(np.array([-2.0, 0.0, 3.0], "f4")))
    np.testing.assert_array_equal(curve[:, WISE], np.repeat(curve[:1, WISE], 3, 0))
    np.testing.assert_array_equal(by_xi[:, WISE], 0)
    assert (np.ptp(curve[:, : WISE[0]], axis=0) > 0).all()


def test_slope_of_the_extinction_curve_equals_its_difference(flux):
    xi, step = np.array([-1.5, 0.0, 0.7], "f4"), np.float32(0.01)
    high, low = (np.log(flux.ext_curve(xi + d)[0]) for d in (step, -step))
    np.testing.assert_allclose(flux.ext_curve(xi)[1], (high - low) / (2 * step), atol=1e-4)


def test_flux_of_a_wild_trial_point_is_finite(flux):
    wild = flux.flux(
        np.full((2, 3), 50, "f4"),
        np.array([9, -9], "f4"),
        np.array([1e4, 0], "f4"),
        np.array([-50, 90], "f4"),
    )
    assert np.isfinite(wild).all()


def test_first_extinction_curve_is_the_documented_power_law():
    np.testing.assert_allclose(np.exp(initial_ln_ext_curve([550.0, 2200.0])), [2.0, 0.25])


def test_initial_weights_follow_the_seed_and_predict_the_mean():
    mean = np.linspace(1, 3, N_WL)
    a, b, c = (
        FluxModel(WAVELENGTHS, THETA_MEAN, THETA_SCALE, mean, hidden=8, seed=s) for s in (1, 1, 2)
    )
    z = np.random.default_rng(0).normal(size=(20, 3)).astype("f4")
    np.testing.assert_array_equal(a.ln_flux(z), b.ln_flux(z))
    assert not np.allclose(a.ln_flux(z), c.ln_flux(z))
    np.testing.assert_allclose(np.mean(a.ln_flux(z), 0), mean, atol=0.3)


# ------------------------------------------------------------------------- saving and exporting


@pytest.mark.parametrize("kwargs", [{"hidden": 5, "n_layers": 1}, {"hidden": 9, "n_layers": 4}])
@pytest.mark.parametrize("n_labels", [2, 4])
def test_networks_of_other_sizes_are_restored(kwargs, n_labels):
    rng = np.random.default_rng(0)
    given = MEAN[:n_labels], SCALE[:n_labels], rng.normal(size=N_WL), rng.normal(size=(N_WL, N_WL))
    model = FluxModel(WAVELENGTHS, *given, seed=5, **kwargs)
    z = rng.normal(size=(4, n_labels)).astype("f4")
    restored = FluxModel.from_arrays(model.to_arrays())
    np.testing.assert_array_equal(restored.ln_flux(z), model.ln_flux(z))


USE_EXPORT = """
    import sys
    import numpy as np
    import tensorflow as tf

    try:
        import model
        sys.exit("the project can be imported: this would prove nothing")
    except ImportError:
        pass
    folder, arrays, output = sys.argv[1:]
    m = tf.saved_model.load(folder)
    given = np.load(arrays)
    out = {"wavelengths": m._sample_wavelengths.numpy(), "ln_curve": m._ln_ext_curve.numpy()}
    for kind in ("f4", "f8"):
        for convert in (np.asarray, tf.constant):
            theta, xi, E, plx = (convert(given[k].astype(kind))
                                 for k in ("theta", "xi", "E", "plx"))
            key = f"{kind}_{convert.__name__}_"
            out[key + "intrinsic"] = m.predict_intrinsic_ln_flux(theta)
            out[key + "observed"] = m.predict_observed_flux(theta, E, plx)
            out[key + "obs"] = m.predict_obs_flux(theta, xi, E, plx)
            out[key + "curve"] = m.predict_ln_ext_curve(xi)
            out[key + "R55"] = m.predict_R55(xi)
            out[key + "keywords"] = m.predict_obs_flux(stellar_type=theta, xi=xi, E=E, plx=plx)
    np.savez(output, **{k: np.asarray(v) for k, v in out.items()})
"""


def test_saved_model_equals_the_model_where_the_project_is_not_installed(tmp_path, stars):
    model = make_flux_model()
    z, xi, ext, ln_plx = stars
    theta, plx = z * THETA_SCALE + THETA_MEAN, np.exp(ln_plx)
    export(model, tmp_path / "saved")
    np.savez(tmp_path / "in.npz", theta=theta, xi=xi, E=ext, plx=plx)
    (tmp_path / "use.py").write_text(textwrap.dedent(USE_EXPORT))
    arguments = [tmp_path / "use.py", tmp_path / "saved", tmp_path / "in.npz", tmp_path / "out.npz"]
    run = subprocess.run(
        [sys.executable, "-I", *map(str, arguments)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = np.load(tmp_path / "out.npz")
    expected = {
        "intrinsic": model.ln_flux(z),
        "curve": np.log(model.ext_curve(xi)[0]),
        "R55": model.r55(xi),
        "obs": model.flux(*stars),
        "keywords": model.flux(*stars),
        "observed": model.flux(z, 0 * xi, ext, ln_plx),
    }
    np.testing.assert_allclose(found["wavelengths"], WAVELENGTHS, rtol=1e-6)
    np.testing.assert_array_equal(found["ln_curve"], model.ln_ext_curve.numpy())
    assert len(found.files) == 2 + 4 * len(expected)
    for key in set(found.files) - {"wavelengths", "ln_curve"}:
        np.testing.assert_allclose(
            found[key], expected[key.split("_")[-1]], rtol=1e-4, atol=1e-5, err_msg=key
        )


@pytest.mark.parametrize("n_labels", [2, 4])
def test_saved_model_takes_any_number_of_labels(tmp_path, monkeypatch, n_labels):
    monkeypatch.setattr("model.EXPORTED_TYPES", (tf.float32,))  # others are tested below
    model = make_flux_model(LABEL_SETS[n_labels])
    export(model, tmp_path)
    z = np.random.default_rng(3).normal(size=(4, n_labels)).astype("f4")
    theta = z * model.theta_scale + model.theta_mean
    saved = tf.saved_model.load(str(tmp_path))
    found = saved.predict_intrinsic_ln_flux(theta)
    np.testing.assert_allclose(found, model.ln_flux(z), atol=1e-4)


def test_threads_set_after_tensorflow_began_are_left_and_told(caplog):
    tf.constant(1.0) + 1.0
    before = tf.config.threading.get_intra_op_parallelism_threads()
    set_threads(before + 1)
    assert tf.config.threading.get_intra_op_parallelism_threads() == before
    assert "threads" in caplog.text


CALLS = {
    "float32 and float64 mixed": lambda t, v: (t.astype("f4"), v.astype("f8"), v.astype("f4"), v),
    "tensors of both": lambda t, v: (tf.constant(t, tf.float64), tf.constant(v, tf.float32), v, v),
    "integers": lambda t, v: (t.astype(int), np.zeros(len(v), int), v, np.ones(len(v), int)),
    "lists": lambda t, v: (t.tolist(), v.tolist(), v.tolist(), v.tolist()),
    "columns": lambda t, v: (t, v[:, None], v[:, None], v[:, None]),
    "one number for all": lambda t, v: (t, 0, 0.5, 1.0),
    "one star": lambda t, v: (t[0], v[0], v[0], v[0]),
    "one star, in integers": lambda t, v: (t[0].astype(int), 0, 0, 1),
}


@pytest.fixture(scope="module")
def exported(flux, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "saved_model"
    export(flux, path)
    return tf.saved_model.load(str(path))


@pytest.mark.parametrize("call", CALLS)
def test_the_exported_model_takes_any_numbers_in_any_mix(flux, exported, call):
    rng = np.random.default_rng(5)
    types, vector = rng.uniform(3, 6, (4, flux.n_labels)), rng.uniform(0.2, 1.0, 4)
    args = CALLS[call](types, vector)
    found = exported.predict_obs_flux(*args).numpy()
    theta = np.reshape(np.asarray(args[0], "f4"), (-1, flux.n_labels))
    xi, ext, plx = (np.broadcast_to(np.asarray(x, "f4").ravel(), len(theta)) for x in args[1:])
    expected = flux.flux(flux.standardise(tf.constant(theta)), *map(tf.constant, (xi, ext)),
                         tf.math.log(tf.constant(plx)))  # fmt: skip
    assert np.allclose(found, expected, rtol=1e-5)
    without_xi = exported.predict_observed_flux(args[0], args[2], args[3]).numpy()
    assert without_xi.shape == found.shape
    assert exported.predict_intrinsic_ln_flux(args[0]).shape == found.shape
    assert exported.predict_ln_ext_curve(args[1]).shape[1] == found.shape[1]
