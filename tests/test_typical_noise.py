"""Typical noise: what step 7 averages and from which stars; what dimming makes of it; faults."""

import dataclasses
import json
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from demo_stars_case import ALONE, N_XP, stars_and_g
from helpers import FIDS, assert_same_datasets, changed, lay_out, make_sky, shuffled
from step7_case import make_labels, result, run
from xp_case import BASIS, ROOT, packed_covariances, random_stars

from demo import build_sky
from fitting.batches import Batches, TrainingStars
from fitting.dimming import NEAR_G
from fitting.held_out import shown_at
from fitting.training_set import read_training_data
from pipeline.errors import ShardError, UsageError
from pipeline.read import ShardReader
from pipeline.schema import NOISES, XP_BANDS, Layout, load_release, resolved
from pipeline.select import shard_path
from pipeline.typical_noise import LEAST_STARS, TypicalNoise, release_noise
from xp_utils import floor_variance

DR3 = load_release()
FOLDER = DR3.spectra.basis.parent
N_COEFFICIENTS = 55
N_STARS = 90  # a shard
G_OF = (13.2, 16.4, 18.6)  # the last has too few stars


# ---- what step 7 averages --------------------------------------------------------------------


@pytest.fixture(scope="module", params=["correlations", "covariances"])
def name(request, tmp_path_factory):
    """The name of DR3; the path of a release as DR3, with covariances in the place of errors and
    correlations."""
    if request.param == "correlations":
        return "dr3"
    text = (FOLDER / "dr3.toml").read_text()
    text = text.replace('covariance = "correlations"', 'covariance = "covariances"')
    for table in ("dr3_basis.npz", "dr3_noise.npz"):
        text = text.replace(json.dumps(table), json.dumps(str(FOLDER / table)))
    path = tmp_path_factory.mktemp("release") / "dr3.toml"
    path.write_text(text)
    return str(path)


def noisy_sky(release):
    """A sky whose stars have correlations of their own, and G magnitudes about G_OF."""
    sky, rng = make_sky(N_STARS), np.random.default_rng(1)
    for k, tables in enumerate(sky.values()):
        spectra = random_stars(N_STARS, seed=k, error=0.05)
        if release.spectra.covariance == "covariances":
            spectra = packed_covariances(spectra)
            tables["xp"] = {k: v for k, v in tables["xp"].items() if "_coefficient_" not in k}
        errors = {k: v.astype("f4") for k, v in spectra.items() if "_coefficient_" in k}
        tables["xp"] |= errors
        g = rng.choice(G_OF, N_STARS, p=[0.45, 0.45, 0.1]) + rng.uniform(-0.1, 0.3, N_STARS)
        tables["metadata"]["phot_g_mean_flux"] = 10 ** (-0.4 * (g - release.g_zero_point))
    return sky


def spoil(sky, release):
    """Ids of stars whose spectra, or magnitudes, cannot be used; they are changed in the sky."""
    tables = sky[FIDS[1]]
    column = f"rp_{release.spectra.array_columns[-1]}"
    tables["xp"][column][3, 7] = np.nan
    tables["xp"][column][4, 1] = 1e3 * np.abs(tables["xp"][column][4]).max()
    tables["xp"]["bp_n_parameters"][5] = 20
    tables["metadata"]["phot_g_mean_flux"][6:9] = np.nan, -1.0, 1e12
    return tables["xp"]["source_id"][3:9].tolist()


def oracle(sky, release, ids):
    """{bin: (G, number, {band: (shape, packed correlations)})}: one star after the other."""
    stars = {}
    for tables in sky.values():
        xp, flux = tables["xp"], tables["metadata"]["phot_g_mean_flux"]
        g = 25.6874 - 2.5 * np.log10(np.where(flux > 0, flux, np.nan))
        for row in np.flatnonzero(np.isin(xp["source_id"], ids)):
            one = {}
            for band in XP_BANDS:
                matrix = full_covariance(xp, band, row, release)
                sigma = np.sqrt(np.diag(matrix))
                one[band] = (sigma / np.median(sigma), matrix / np.outer(sigma, sigma))
            stars.setdefault(int(np.floor(g[row])), []).append((g[row], one))
    lower = np.tril_indices(N_COEFFICIENTS, -1)
    out = {}
    for k, several in stars.items():
        both = {}
        for band in XP_BANDS:
            shapes, matrices = zip(*(one[band] for _, one in several), strict=True)
            both[band] = np.exp(np.mean(np.log(shapes), 0)), np.mean(matrices, 0)[lower]
        out[k] = np.mean([g for g, _ in several]), len(several), both
    return out


def full_covariance(xp, band, row, release):
    """(55, 55) of one star."""
    matrix, n = np.zeros((N_COEFFICIENTS, N_COEFFICIENTS)), N_COEFFICIENTS
    if release.spectra.covariance == "covariances":
        matrix[np.tril_indices(n)] = xp[f"{band}_coefficient_covariances"][row]
        return matrix + matrix.T - np.diag(np.diag(matrix))
    matrix[np.tril_indices(n, -1)] = xp[f"{band}_coefficient_correlations"][row]
    matrix += matrix.T + np.eye(n)
    sigma = xp[f"{band}_coefficient_errors"][row].astype(float)
    return matrix * np.outer(sigma, sigma)


@pytest.fixture(scope="module")
def step7(name, tmp_path_factory):
    """(sky, data directory, ids of the stars that do not count) of a run of step 7."""
    folder, release = tmp_path_factory.mktemp("noise"), load_release(name)
    sky = noisy_sky(release)
    labels = make_labels(sky)
    unused = spoil(sky, release) + labels["gdr3_source_id"][:5].tolist()
    labels = {key: values[5:] for key, values in labels.items()}  # five have none
    assert run(lay_out(folder, sky, release=release), "--release", name, labels=labels) == 0
    return sky, folder, unused


def noise_of(data_dir, release=DR3):
    return read_training_data(data_dir / "training_data.h5", release).noise


def test_the_means_are_those_of_the_usable_training_stars_by_magnitude(step7, name):
    sky, folder, unused = step7
    release = load_release(name)
    ids = np.setdiff1d(result(folder)["gdr3_source_id"], unused)
    found, sorts = noise_of(folder, release), oracle(sky, release, ids)
    kept = [sorts[k] for k in sorted(sorts) if sorts[k][1] >= LEAST_STARS]
    assert len(sorts) == 3
    assert len(found.g) == len(kept) == 2
    assert found.n_stars.tolist() == [n for _, n, _ in kept]
    np.testing.assert_allclose(found.g, [g for g, *_ in kept], atol=1e-5)
    for band in XP_BANDS:
        for k, (_, _, both) in enumerate(kept):
            np.testing.assert_allclose(found.shape[band][k], both[band][0], rtol=1e-5)
            np.testing.assert_allclose(found.correlations[band][k], both[band][1], atol=1e-6)
            assert both[band][1].std() > 1e-3


def test_datasets_are_as_declared_and_so_is_the_rest_of_the_file(step7, name):
    path, layout = step7[1] / "training_data.h5", Layout(load_release(name))
    with h5py.File(path) as file:
        for dataset, wanted in resolved("training", layout, (NOISES,)).items():
            assert file[dataset].dtype == wanted.dtype
            assert file[dataset].shape == (2, *wanted.shape)
            assert {k: file[dataset].attrs[k] for k in wanted.attributes} == wanted.attributes
    with ShardReader(path) as reader:
        reader.check(resolved("training", layout))
    log = path.with_suffix(".log").read_text()
    assert "typical noise kept: the mean of 1" in log
    assert "WARNING" not in log


def test_neither_another_run_nor_the_order_of_rows_changes_them(step7, name, tmp_path):
    (sky, folder, _), release = step7, load_release(name)
    rng = np.random.default_rng(3)
    mixed = {f: {k: shuffled(t, rng) for k, t in tables.items()} for f, tables in sky.items()}
    (tmp_path / "labels.h5").write_bytes((folder / "labels.h5").read_bytes())
    assert run(lay_out(tmp_path, mixed, release=release), "--release", name) == 0
    path, other = folder / "training_data.h5", tmp_path / "training_data.h5"
    assert_same_datasets(path, other)
    before, after = (noise_of(x, release).datasets() for x in (folder, tmp_path))
    for key in before:
        np.testing.assert_array_equal(before[key], after[key], err_msg=key)
    with h5py.File(path) as file:
        first = file.attrs["content_id"]
    assert run(folder, "--release", name, "--overwrite") == 0
    with h5py.File(path) as file:
        assert file.attrs["content_id"] == first


def test_few_stars_of_every_magnitude_leave_none_and_this_is_said(tmp_path):
    sky = make_sky()
    assert run(lay_out(tmp_path, sky), labels=make_labels(sky)) == 0
    assert noise_of(tmp_path) is None
    log = (tmp_path / "training_data.log").read_text()
    assert f"no typical noise kept: fewer than {LEAST_STARS} stars at every G magnitude" in log


def test_modelled_correlations_of_the_demo_are_not_kept_and_real_ones_beside_them_are(tmp_path):
    words = ["--stars", ROOT / "demo/stars.h5", "--out", tmp_path, "--n", 800, "--shards", 2]
    assert build_sky.main([str(word) for word in words]) == 0
    labels = "--stellar-params", tmp_path / "training_params.h5"
    log = tmp_path / "training_data.log"
    assert run(tmp_path, *labels) == 0
    assert noise_of(tmp_path) is None
    said = "of spectra whose errors are modelled (origin synthetic) none is kept"
    assert [line for line in log.read_text().splitlines() if "typical noise" in line] == [
        line for line in log.read_text().splitlines() if said in line
    ]
    path = next(iter(sorted(shard_path(tmp_path, "xp", "0").parent.glob("*.h5"))))
    with changed(path) as file:
        for band in XP_BANDS:
            for column in ("coefficient_errors", "coefficient_correlations"):
                file[f"{band}_{column}"].attrs["origin"] = "real"
        n_real = len(file["source_id"])
    assert run(tmp_path, *labels, "--overwrite") == 0
    found = noise_of(tmp_path)
    assert LEAST_STARS <= found.n_stars.sum() <= n_real
    assert said in log.read_text()


# ---- what dimming makes of it ----------------------------------------------------------------

COPIES = 3000
SORTS_G = np.array([13.0, 15.0, 17.0], "f4")


def sorts():
    """Three typical noises that are little alike."""
    n = N_COEFFICIENTS
    row, column = np.tril_indices(n, -1)
    packed = np.stack([0.0 * row, 0.9 ** (row - column), (-0.7) ** (row - column)]).astype("f4")
    shape = np.linspace([1.0] * n, np.linspace(2.0, 0.5, n), 3).astype("f4")
    both = (dict.fromkeys(XP_BANDS, x) for x in (shape, packed))
    return TypicalNoise(*both, SORTS_G)


@pytest.fixture(scope="module")
def own():
    """`TrainingStars` of the demo stars with typical noise of their own."""
    data, g = stars_and_g()
    return TrainingStars(data, np.arange(len(g)) >= len(g) - 100, g, BASIS, sorts())


def expected_correlations(kind):
    """{band: correlations of the fluxes where it alone has weight} of a sort of noise."""
    noise, out = sorts(), {}
    for band in XP_BANDS:
        matrix = np.eye(N_COEFFICIENTS)
        matrix[np.tril_indices(N_COEFFICIENTS, -1)] = noise.correlations[band][kind]
        matrix = np.maximum(matrix, matrix.T) + np.minimum(matrix, matrix.T) - np.eye(len(matrix))
        matrix *= np.outer(noise.shape[band][kind], noise.shape[band][kind])
        design = getattr(BASIS, f"{band}_design")[:, ALONE[band][:N_XP]]
        cov = design.T @ matrix @ design
        sigma = np.sqrt(np.diag(cov))
        out[band] = cov / np.outer(sigma, sigma)
    return out


@pytest.mark.parametrize(("at", "kind"), [(13.9, 0), (14.1, 1), (15.9, 1), (16.1, 2), (18.4, 2)])
def test_dimmed_stars_get_the_correlations_nearest_in_magnitude(own, at, kind):
    row = np.argmin(own.g)
    star = own.data.take(np.full(COPIES, row))
    fainter = np.full(COPIES, at - own.g[row])
    g = np.full(COPIES, own.g[row])
    shown = own.dimming.show(star, fainter, np.random.default_rng(4), g)
    off = shown.flux - star.flux * 10 ** (-0.4 * fainter[:, None])
    for band, expected in expected_correlations(kind).items():
        found = np.corrcoef(off[:, ALONE[band]].T)
        np.testing.assert_allclose(found, expected, atol=0.1)
        for other in {0, 1, 2} - {kind}:
            assert np.abs(found - expected_correlations(other)[band]).max() > 0.3


def test_stars_of_many_magnitudes_each_get_their_own(own):
    fainter, row = np.linspace(0.5, 3, len(own)), np.arange(len(own))
    assert (own.g + fainter).max() < max(SORTS_G) + NEAR_G
    nearest = np.abs((own.g + fainter)[:, None] - SORTS_G).argmin(1)
    np.testing.assert_array_equal(
        own.dimming.kinds(own.g + fainter, np.random.default_rng(0)), nearest
    )
    mixed = own.dimming.show(own.data, fainter, np.random.default_rng(5), own.g)
    for kind in range(3):
        rows = row[nearest == kind]
        assert len(rows) > 10
        one = own.dimming.show(
            own.data, fainter, np.random.default_rng(5), kind_g(own, fainter, kind)
        )
        np.testing.assert_array_equal(mixed.flux[rows], one.flux[rows])
        assert (mixed.flux != one.flux)[nearest != kind].mean() > 0.5


def kind_g(stars, fainter, kind):
    """Own magnitudes of stars that are all shown at that of a sort of noise."""
    return np.full(len(stars), SORTS_G[kind]) - fainter


def test_training_and_calibration_choose_the_noise_by_the_magnitude_shown(own):
    rows, fainter = np.arange(50), np.linspace(0.5, 4, 50)
    stars, rng = own.data.take(rows), np.random.default_rng
    recipe = SimpleNamespace(hide_bp=0.0, hide_rp=0.0)
    batches = SimpleNamespace(stars=own, recipe=recipe, alone=ALONE, magnitudes=lambda *_: fainter)
    shown = Batches.fainter(batches, stars, rows, rng(6))
    expected = own.dimming.show(stars, fainter, rng(6), own.g[rows])
    np.testing.assert_array_equal(shown.flux, expected.flux)
    fainter = np.maximum(17.0 - own.g[rows], 0.0)
    expected = own.dimming.show(stars, fainter, rng(6), own.g[rows])
    np.testing.assert_array_equal(shown_at(own, rows, 17.0, 6).flux, expected.flux)


@pytest.mark.parametrize("kind", range(3))
def test_simulated_things_have_the_noise_of_their_magnitude(own, kind):
    kinds = own.dimming.kinds(np.full(COPIES, SORTS_G[kind]), np.random.default_rng(0))
    coarse, _ = own.dimming.noise(kinds, np.random.default_rng(7))
    for one, (band, expected) in zip(coarse, expected_correlations(kind).items(), strict=True):
        inside = ALONE[band]
        np.testing.assert_allclose(np.corrcoef(one[:, inside].T), expected, atol=0.1)
        assert one[:, inside].std(0).mean() == pytest.approx(1.0, abs=0.03)
    level = own.dimming.levels(own.data.flux)
    kinds = kinds[: len(own)]
    err = own.dimming.errors(own.data.flux, level, kinds)[:, :N_XP]
    variance = err**2 - floor_variance(own.data.flux[:, :N_XP])
    for band, one, sigma in zip(XP_BANDS, coarse, level, strict=True):
        inside = np.flatnonzero(ALONE[band])
        ratio = np.sqrt(variance[:, inside]) / sigma[:, None]
        np.testing.assert_allclose(ratio, np.tile(one[:, inside].std(0), (len(own), 1)), rtol=0.1)


def test_without_noise_of_its_own_a_training_set_has_that_of_the_release(own):
    stars = TrainingStars(own.data, own.calibration, own.g, BASIS)
    assert np.isnan(stars.dimming.noise_g).all()
    assert len(stars.dimming.bands[0].root) == of_release()
    assert len(own.dimming.bands[0].root) == 3 + of_release()


def test_stars_shown_far_fainter_than_a_training_set_tells_of_have_the_noise_of_the_release(own):
    rng = np.random.default_rng(0)
    for g in (max(SORTS_G) + 1.1 * NEAR_G, np.nan):
        assert set(own.dimming.kinds(np.full(200, g), rng)) == set(range(3, 3 + of_release()))
    near = own.dimming.kinds(np.full(200, max(SORTS_G) + 0.9 * NEAR_G), rng)
    assert set(near) == {int(np.argmax(SORTS_G))}
    bright = own.dimming.kinds(np.full(200, min(SORTS_G) - 2 * NEAR_G), rng)
    assert set(bright) == {int(np.argmin(SORTS_G))}


def of_release():
    """Number of typical noises of the release's table."""
    return len(release_noise(DR3).shape["bp"])


# ---- faults ----------------------------------------------------------------------------------


def release_with(folder, **arrays):
    """DR3 with another noise table, of these arrays in the place of its own."""
    path = folder / "noise.npz"
    with np.load(DR3.spectra.noise) as file:
        table = {key: file[key] for key in file.files} | arrays
    np.savez(path, **{key: array for key, array in table.items() if array is not None})
    return dataclasses.replace(DR3, spectra=dataclasses.replace(DR3.spectra, noise=path))


BAD_TABLES = {
    "another number of coefficients": (
        {"bp_shape": np.ones((2, 51))}, "bp_shape has the shape (2, 51), expected (2, 55)",
    ),
    "other correlations": (
        {"rp_correlations": np.zeros((2, 1275))},
        "rp_correlations has the shape (2, 1275), expected (2, 1485)",
    ),
    "sorts that do not go together": (
        {"rp_shape": np.ones((1, 55))}, "rp_shape has the shape (1, 55), expected (2, 55)",
    ),
    "numbers that are none": (
        {"bp_shape": np.full((2, 55), np.nan)}, "bp_shape has numbers that are not finite",
    ),
    "an array that is not there": ({"bp_correlations": None}, "bp_correlations is not"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_noise_table_that_does_not_fit_the_release_is_named(tmp_path, case, own):
    arrays, words = BAD_TABLES[case]
    release = release_with(tmp_path, **arrays)
    basis = dataclasses.replace(BASIS, release=release)
    with pytest.raises(UsageError) as raised:
        TrainingStars(own.data, own.calibration, own.g, basis)
    message = str(raised.value)
    assert message.startswith(f"{tmp_path / 'noise.npz'}: ")
    assert words in message
    assert "make_noise_table.py" in message


def test_a_noise_table_that_is_no_table_or_not_there_is_named(tmp_path):
    release = release_with(tmp_path)
    release.spectra.noise.write_text("no table")
    with pytest.raises(UsageError, match=r"noise\.npz: cannot be used"):
        release_noise(release)
    release.spectra.noise.unlink()
    with pytest.raises(UsageError, match=r"noise\.npz: cannot be used .*No such file"):
        release_noise(release)


def test_a_training_set_whose_noise_does_not_fit_is_named(step7, name, tmp_path):
    path = tmp_path / "training_data.h5"
    path.write_bytes((step7[1] / "training_data.h5").read_bytes())
    with changed(path) as file:
        del file["typical_noise/bp_shape"]
        file["typical_noise/bp_shape"] = np.ones((2, 51), "f4")
    release = load_release(name)
    with pytest.raises(ShardError, match=r"bp_shape has the shape \(2, 51\), expected \(2, 55\)"):
        read_training_data(path, release)
    with changed(path) as file:
        del file["typical_noise/bp_shape"]
    with pytest.raises(ShardError, match=r"training_data\.h5: no dataset typical_noise/bp_shape"):
        read_training_data(path, release)
