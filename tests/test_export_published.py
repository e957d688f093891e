"""What scripts for the published catalogues do works on the layouts zgr23 and zg25."""

import itertools

import h5py
import healpy
import numpy as np
import pytest
from astropy.table import Table
from export_case import stars, write_catalogue, write_shard
from helpers import FIDS
from test_export_folder import run

from pipeline.export import published
from pipeline.export.published import PUBLISHED, covariance_triangles, in_shares, published_flags
from pipeline.schema import LabelSet, Layout, flags
from pipeline.schema.labels import parse_label

N = 400
PLACES = {"zgr23": [0, 1, 2, 4, 5], "zg25": [0, 1, 2, 3, 4, 5]}
LAYOUTS = tuple(PUBLISHED)
MANY = LabelSet(map(parse_label, ["alpha_m", "logg", "teff", "feh", "ak:mag:1:0.1:direct"]))


@pytest.fixture(scope="module")
def sky(tmp_path_factory):
    """(data directory, columns sorted by id)."""
    data_dir = tmp_path_factory.mktemp("published") / "data"
    return data_dir, write_catalogue(data_dir, N)


@pytest.fixture(scope="module", params=LAYOUTS)
def exported(request, sky, tmp_path_factory):
    """(layout, folder of the export, columns of the shards)."""
    out = tmp_path_factory.mktemp(request.param) / "out"
    assert run(sky[0], request.param, out) == 0
    return request.param, out, sky[1]


def read_all_of(paths):
    """{dataset: (N, ...)} of files put together, as scripts do it."""
    parts = {}
    for path in sorted(paths):
        with h5py.File(path, "r") as file:
            for key in file:
                parts.setdefault(key, []).append(file[key][:])
    return {key: np.concatenate(values) for key, values in parts.items()}


def main_files(layout, out):
    return [out / PUBLISHED[layout].main.format(k) for k in range(10)]


def covariance_files(layout, out):
    return [out / PUBLISHED[layout].covariances.format(k) for k in range(10)]


# ---- files and datasets ----------------------------------------------------------------------


def test_there_are_ten_files_of_each_kind_under_the_published_names(exported):
    layout, out, _ = exported
    found = {path.name for path in out.glob("*.h5")}
    assert found == {p.name for p in main_files(layout, out) + covariance_files(layout, out)}
    patterns = {"zgr23": "stellar_params_catalog_*.h5", "zg25": "xpparams_v2_zenodo_*.h5"}
    assert sorted(out.glob(patterns[layout])) == main_files(layout, out)


def test_datasets_are_those_of_the_published_files_and_nothing_else(exported):
    layout, out, _ = exported
    n = len(PLACES[layout])
    expected = {
        "gdr3_source_id": ("i8", ()), "ra": ("f8", ()), "dec": ("f8", ()),
        "stellar_params_est": ("f4", (n,)), "stellar_params_err": ("f4", (n,)),
        "chi2_opt": ("f4", ()), "ln_prior": ("f4", ()), "teff_confidence": ("f4", ()),
        "feh_confidence": ("f4", ()), "logg_confidence": ("f4", ()), "quality_flags": ("u1", ()),
    }  # fmt: skip
    for path in main_files(layout, out):
        with h5py.File(path) as file:
            assert set(file) == expected.keys()
            assert {key: (file[key].dtype.str[1:], file[key].shape[1:]) for key in file} == expected
            assert len({len(file[key]) for key in file}) == 1
    triangle = n * (n + 1) // 2
    with h5py.File(covariance_files(layout, out)[0]) as file:
        assert file["stellar_params_cov_triu"].shape[1:] == (triangle,)
        assert file["stellar_params_icov_triu"].shape[1:] == (triangle,)


# ---- what scripts do -------------------------------------------------------------------------


def test_parameters_are_where_scripts_look_from_the_front_and_from_the_end(exported):
    layout, out, expected = exported
    d = read_all_of(main_files(layout, out))
    teff, feh, logg = d["stellar_params_est"][:, :3].T
    extinction, parallax = d["stellar_params_est"][:, -2], d["stellar_params_est"][:, -1]
    for found, k in ((teff, 0), (feh, 1), (logg, 2), (extinction, 4), (parallax, 5)):
        np.testing.assert_array_equal(found, expected["stellar_params_est"][:, k])
    np.testing.assert_array_equal(
        d["stellar_params_err"], expected["stellar_params_err"][:, PLACES[layout]]
    )
    if layout == "zgr23":
        teff, feh, logg, extinction, parallax = d["stellar_params_est"].T
    else:
        np.testing.assert_array_equal(
            d["stellar_params_est"][:, 3], expected["stellar_params_est"][:, 3]
        )
    for name in ("ra", "dec", *published.COPIED):
        np.testing.assert_array_equal(d[name], expected[name])


def test_the_reliability_cut_takes_the_stars_that_it_takes_in_the_catalogue(exported):
    layout, out, expected = exported
    d = read_all_of(main_files(layout, out))
    good = d["quality_flags"] < 8
    np.testing.assert_array_equal(good, expected["quality_flags"] < 8)
    assert 0 < good.sum() < N
    assert (d["stellar_params_err"][good & (d["teff_confidence"] > 0.5), 0] > 0).all()
    np.testing.assert_array_equal(d["quality_flags"] & 63, expected["quality_flags"] & 63)


def test_covariances_are_rebuilt_from_their_triangles_and_are_each_others_inverse(exported):
    layout, out, expected = exported
    d, n = read_all_of(covariance_files(layout, out)), len(PLACES[layout])
    main = read_all_of(main_files(layout, out))
    upper = np.triu_indices(n)
    cov, icov = np.zeros((2, N, n, n))
    for matrix, key in ((cov, "stellar_params_cov_triu"), (icov, "stellar_params_icov_triu")):
        matrix[:, upper[0], upper[1]] = d[key]
        matrix[:, upper[1], upper[0]] = d[key]
    good = np.isfinite(main["stellar_params_est"]).all(1)
    assert good.sum() == N - 2
    assert np.isnan(cov[~good]).all()
    np.testing.assert_allclose(np.linalg.inv(icov[good]), cov[good], rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(np.linalg.inv(cov[good]), icov[good], rtol=1e-6, atol=1e-6)
    assert np.linalg.eigvalsh(cov[good]).min() > 0
    sigma = np.sqrt(np.einsum("nii->ni", cov[good]))
    np.testing.assert_allclose(sigma, main["stellar_params_err"][good], rtol=1e-5)
    at = list(itertools.combinations_with_replacement(PLACES[layout], 2))
    whole = dict(zip(itertools.combinations_with_replacement(range(6), 2), range(21), strict=True))
    native = expected["stellar_params_cov_triu"][:, [whole[pair] for pair in at]]
    np.testing.assert_allclose(
        d["stellar_params_cov_triu"][good], native[good], rtol=2e-5, atol=1e-9
    )


def test_rows_of_both_kinds_of_files_belong_together_and_join_by_id(exported):
    layout, out, expected = exported
    main, cov = (read_all_of(f(layout, out)) for f in (main_files, covariance_files))
    np.testing.assert_array_equal(main["gdr3_source_id"], cov["gdr3_source_id"])
    np.testing.assert_array_equal(main["gdr3_source_id"], expected["gdr3_source_id"])
    wanted = np.random.default_rng(0).choice(expected["gdr3_source_id"], 30)
    rows = np.searchsorted(main["gdr3_source_id"], wanted)
    np.testing.assert_array_equal(main["gdr3_source_id"][rows], wanted)


def test_files_are_converted_to_fits_key_by_key(exported, tmp_path):
    layout, out, _ = exported
    source = max(main_files(layout, out), key=lambda path: path.stat().st_size)
    table = Table()
    with h5py.File(source) as file:
        for key in file:
            table[key] = file[key][:]
    table.write(tmp_path / "a.fits")
    found = Table.read(tmp_path / "a.fits")
    assert len(found) == len(table) > 0
    for key in table.colnames:
        np.testing.assert_array_equal(np.asarray(found[key]), np.asarray(table[key]))


def test_a_map_of_the_mean_extinction_is_made_of_positions_or_of_ids(exported):
    layout, out, _ = exported
    d = read_all_of(main_files(layout, out))
    good = (d["quality_flags"] < 8) & np.isfinite(d["stellar_params_est"]).all(1)
    pixel = healpy.ang2pix(2, d["ra"], d["dec"], nest=True, lonlat=True)
    np.testing.assert_array_equal(pixel, d["gdr3_source_id"] // 2**35 // 4**11)
    weight = 1 / (d["stellar_params_err"][:, -2] ** 2 + 1e-4)
    total, norm = (
        np.bincount(pixel[good], (x * weight)[good], 48)
        for x in (d["stellar_params_est"][:, -2], np.ones(N))
    )
    mean = total[norm > 0] / norm[norm > 0]
    assert np.isfinite(mean).all()
    assert abs(mean.mean() - 1) < 0.2


@pytest.fixture(scope="module")
def flux_models(tmp_path_factory):
    """A forward model, and the same one exported and loaded."""
    import tensorflow as tf
    from model_case import make_flux_model

    from model import export

    model, path = make_flux_model(), tmp_path_factory.mktemp("saved") / "model"
    export(model, path)
    return model, tf.saved_model.load(str(path))


def test_model_spectra_are_predicted_from_exported_parameters_of_mixed_types(exported, flux_models):
    layout, out, _ = exported
    flux_model, saved = flux_models
    d = read_all_of(main_files(layout, out))
    rows = np.flatnonzero(d["quality_flags"] == 0)[:5]
    params = d["stellar_params_est"][rows]
    theta, ext, plx = params[:, :3], params[:, -2], params[:, -1].astype("f8")
    z = flux_model.standardise(theta)
    xi = params[:, 3] if layout == "zg25" else np.zeros(len(rows), "f4")
    expected = flux_model.flux(z, xi, ext, np.log(plx).astype("f4"))
    if layout == "zgr23":
        found = saved.predict_observed_flux(theta, ext, plx)
    else:
        found = saved.predict_obs_flux(theta.astype("f8"), xi, ext, plx)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert found.shape[1] == len(saved._sample_wavelengths.numpy())


# ---- other labels ----------------------------------------------------------------------------


def test_labels_without_a_place_are_left_out_said_and_marginalised_over(tmp_path, capsys):
    layout = Layout(labels=MANY)
    expected = write_catalogue(tmp_path / "data", 60, layout)
    names = [p.name for p in MANY.parameters]
    at = [names.index(name) for name in ("teff", "feh", "logg", "E", "parallax")]
    assert at == [2, 3, 1, 5, 6]
    assert run(tmp_path / "data", "zgr23", tmp_path / "out") == 0
    assert "left out: alpha_m, ak" in capsys.readouterr().err
    d = read_all_of(main_files("zgr23", tmp_path / "out"))
    np.testing.assert_array_equal(d["stellar_params_est"], expected["stellar_params_est"][:, at])
    cov = read_all_of(covariance_files("zgr23", tmp_path / "out"))["stellar_params_cov_triu"]
    good = np.isfinite(expected["stellar_params_est"]).all(1)
    sigma = np.sqrt(cov[:, [0, 5, 9, 12, 14]])
    np.testing.assert_allclose(sigma[good], expected["stellar_params_err"][good][:, at], rtol=1e-5)


def test_a_model_without_one_of_the_published_labels_is_refused(tmp_path, capsys):
    for words in (["teff", "logg"], ["teff", "logg", "feh:direct"]):
        labels = LabelSet(map(parse_label, words))
        data_dir = tmp_path / "".join(words)
        write_shard(data_dir, FIDS[0], stars(9, Layout(labels=labels)), Layout(labels=labels))
        assert run(data_dir, "zg25", tmp_path / "out") == 2
        said = capsys.readouterr().err
        assert "the layout needs feh, too" in said
        assert said.count("\n") == 1


def test_flags_without_a_published_bit_are_never_lost():
    bits = flags.quality_flag(MANY)
    for flag in bits:
        (found,) = published_flags(np.array([flag.value], "u4"), MANY)
        if flag.name in ("ALPHA_M_CONFIDENCE", "AK_CONFIDENCE"):
            assert found == 0
        elif flag.value < 64:
            assert found == flag.value
        else:
            assert found == (128 if flag.name == "BAD_INPUT" else 64)
    everything = np.array([sum(bits)], "u4")
    assert published_flags(everything, MANY).dtype == np.uint8
    assert published_flags(everything, MANY)[0] == 255


# ---- parts -----------------------------------------------------------------------------------


def test_a_precision_that_is_not_positive_definite_is_missing_not_an_error():
    good = np.eye(6)[np.triu_indices(6)]
    rows = np.array([good, -good, 0 * good, np.nan * good])
    cov, icov = covariance_triangles(rows, [0, 1, 2, 4, 5], 6)
    assert np.isfinite(cov).all(1).tolist() == [True, False, False, False]
    np.testing.assert_array_equal(icov[0], np.eye(5)[np.triu_indices(5)])


@pytest.mark.parametrize("sizes", [[], [5], [1] * 30, [100, 1, 1, 1], [0, 7, 0, 7], [9] * 7])
def test_shares_hold_every_group_once_in_order_and_are_of_like_size(sizes):
    class Sized:
        def __init__(self, n_rows):
            self.n_rows = n_rows

    groups = [[Sized(n)] for n in sizes]
    shares = in_shares(groups, 10)
    assert len(shares) == 10
    assert [group for share in shares for group in share] == groups
    if sizes == [1] * 30:
        assert {len(share) for share in shares} == {3}
