"""The demo sky: formats a user's data directory has, real stars unchanged, reproducible."""

from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.table import Table

import match_unwise_gaia
from demo import build_sky
from pipeline.read import ShardReader
from pipeline.schema import KINDS, Layout, load_release, resolved
from pipeline.select import list_fids, shard_path
from tools import select_demo_stars
from xp_utils import load_xp_basis, sample_xp

ROOT = Path(__file__).resolve().parents[1]
STARS = ROOT / "demo" / "stars.h5"
REAL = ROOT.parent / "shared" / "real" / "apogee_xp_train.h5"
N_PIXELS = 12 * 4**8
DR3 = load_release()


def build(out, *options):
    arguments = ["--stars", STARS, "--out", out, *options]
    return build_sky.main([str(argument) for argument in arguments])


def read_all(data_dir):
    """{relative path: {dataset: array}} of every HDF5 file under a folder."""
    contents = {}
    for path in sorted(data_dir.rglob("*.h5")):
        with h5py.File(path) as file:
            contents[str(path.relative_to(data_dir))] = {name: file[name][()] for name in file}
    return contents


def assert_same(a, b):
    assert a.keys() == b.keys()
    for path in a:
        assert a[path].keys() == b[path].keys()
        for name in a[path]:
            np.testing.assert_array_equal(a[path][name], b[path][name], err_msg=f"{path} {name}")


def column(data_dir, kind, name):
    parts = []
    for fid in list_fids(data_dir, kind):
        with h5py.File(shard_path(data_dir, kind, fid)) as file:
            parts.append(file[name][()])
    return np.concatenate(parts)


def by_id(stars, name, ids):
    order = np.argsort(stars["source_id"])
    return stars[name][order[np.searchsorted(stars["source_id"][order], ids)]]


@pytest.fixture(scope="module")
def stars():
    return build_sky.read_stars(STARS)[0]


@pytest.fixture(scope="module")
def sky(tmp_path_factory):
    out = tmp_path_factory.mktemp("sky")
    assert build(out) == 0
    return out


def test_bundled_file_is_under_5_MB_and_spans_the_types(stars):
    assert STARS.stat().st_size < 5e6
    assert len(np.unique(stars["source_id"])) == 4000
    assert np.sum(stars["feh"] < -1.5) > 100
    assert np.sum((stars["logg"] > 4) & (stars["teff"] < 4300)) > 50
    assert np.sum(stars["logg"] < 1) > 100
    assert np.sum(stars["teff"] > 6200) > 100


def test_every_star_is_in_every_full_kind_once(sky, stars):
    for kind in ("xp", "metadata", "tmass", "reddening"):
        ids = column(sky, kind, KINDS[kind].id_column(DR3))
        np.testing.assert_array_equal(np.sort(ids), np.sort(stars["source_id"]))


def test_ids_are_sorted_and_within_the_range_their_file_is_named_after(sky):
    fids = list_fids(sky, "xp")
    assert len(fids) == 8
    for kind in build_sky.OUR_KINDS:
        assert list_fids(sky, kind) == fids
    for fid in fids:
        with h5py.File(shard_path(sky, "xp", fid)) as file:
            ids = file["source_id"][()]
        first, last = map(int, fid.split("-"))
        assert len(ids)
        assert np.all(np.diff(ids) > 0)
        assert first <= ids[0] >> 43
        assert ids[-1] >> 43 <= last


def test_ranges_cover_the_sky_without_gap_and_hold_about_equal_counts(sky):
    bounds = [tuple(map(int, fid.split("-"))) for fid in list_fids(sky, "xp")]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == N_PIXELS - 1
    assert all(a[1] + 1 == b[0] for a, b in pairwise(bounds))
    counts = []
    for fid in list_fids(sky, "xp"):
        with h5py.File(shard_path(sky, "xp", fid)) as file:
            counts.append(file["source_id"].shape[0])
    assert max(counts) < 1.2 * min(counts)


def test_spectra_have_the_archives_columns_and_shapes(sky):
    with h5py.File(shard_path(sky, "xp", list_fids(sky, "xp")[0])) as file:
        n = len(file["source_id"])
        for band in ("bp", "rp"):
            assert file[f"{band}_coefficients"].shape == (n, 55)
            assert file[f"{band}_coefficient_errors"].shape == (n, 55)
            assert file[f"{band}_coefficient_correlations"].shape == (n, 1485)
            assert np.all(file[f"{band}_n_parameters"][()] == 55)
            assert np.all(file[f"{band}_standard_deviation"][()] == 1)
            basis_id = DR3.spectra.bands[band].basis_id
            assert np.all(file[f"{band}_basis_function_id"][()] == basis_id)


def test_every_file_is_as_the_schema_declares_and_of_the_release(sky):
    for kind in build_sky.OUR_KINDS:
        for fid in list_fids(sky, kind):
            with ShardReader(shard_path(sky, kind, fid)) as reader:
                reader.check(resolved(kind, Layout(DR3)))
                assert reader.attrs["release"] == "dr3"


def test_sampled_coefficients_reproduce_the_published_spectrum_of_the_same_star(sky, stars):
    fid = list_fids(sky, "xp")[3]
    with h5py.File(shard_path(sky, "xp", fid)) as file:
        xp = {name: file[name][()] for name in file}
    flux = sample_xp(xp, load_xp_basis(DR3)).flux
    published = by_id(stars, "sampled_flux", xp["source_id"])
    sigma = by_id(stars, "sampled_flux_err", xp["source_id"])
    assert np.max(np.abs(flux - published) / sigma) < 0.004


def test_photometry_and_parallax_belong_to_the_star_of_the_row(sky, stars):
    ids = column(sky, "metadata", "source_id")
    for name, origin in {"ra": "ra", "parallax": "spectro_plx", "phot_g_mean_mag": None}.items():
        expected = by_id(stars, origin or name, ids)
        found = column(sky, "metadata", name)
        np.testing.assert_array_equal(found.astype("f4"), expected.astype("f4"))
    flux = column(sky, "metadata", "phot_g_mean_flux")
    mag = 25.6874 - 2.5 * np.log10(flux)
    np.testing.assert_allclose(mag, by_id(stars, "phot_g_mean_mag", ids), atol=1e-5)
    ids = column(sky, "tmass", "gdr3_source_id")
    np.testing.assert_array_equal(column(sky, "tmass", "ks_m"), by_id(stars, "ks_m", ids))
    assert np.all(column(sky, "tmass", "ph_qual") == b"AAA")


def test_reddening_is_the_targeting_extinction_and_never_negative(sky, stars):
    ids = column(sky, "reddening", "gdr3_source_id")
    ebv = by_id(stars, "ak_targ", ids) / 0.306
    E, sigma = (column(sky, "reddening", f"E_{s}_bayestar") for s in ("mean", "sigma"))
    np.testing.assert_allclose(E, np.maximum(ebv, 0), rtol=1e-6)
    assert np.all(sigma >= np.float32(0.03))
    assert np.all(sigma >= 0.199 * np.abs(ebv))
    assert np.any(ebv < 0)


def test_a_fifth_of_the_stars_has_wise_fluxes_near_the_flux_of_ks(sky, stars):
    ids = column(sky, "unwise", "gdr3_source_id")
    assert 0.15 < len(ids) / len(stars["source_id"]) < 0.25
    assert np.isin(ids, stars["source_id"]).all()
    w1, w2 = (22.5 - 2.5 * np.log10(column(sky, "unwise", "flux"))).T
    ks = by_id(stars, "ks_m", ids)
    assert 0 < np.median(ks - w1) < 0.2
    assert np.std(ks - w1) < 0.2
    assert abs(np.median(w1 - w2)) < 0.1


def test_every_dataset_says_where_it_comes_from(sky):
    for path in sky.rglob("*.h5"):
        with h5py.File(path) as file:
            for name in file:
                assert file[name].attrs["origin"] in {"real", "derived", "synthetic", "none"}
                assert file[name].attrs["description"]
    with h5py.File(shard_path(sky, "metadata", list_fids(sky, "metadata")[0])) as file:
        assert "NOT Gaia" in file["parallax"].attrs["description"]
        missing = [n for n in file if file[n].attrs["origin"] == "none"]
        assert all(np.isnan(file[name][()]).all() for name in missing)


def test_labels_are_an_astropy_table_in_kK_feh_logg(sky, stars):
    table = Table.read(sky / "training_params.h5", path="training_params")
    ids = np.asarray(table["gdr3_source_id"])
    np.testing.assert_array_equal(ids, np.sort(stars["source_id"]))
    expected = [by_id(stars, name, ids) for name in ("teff", "feh", "logg")]
    scale = np.array([1e-3, 1, 1])
    np.testing.assert_allclose(table["params_est"], np.stack(expected, 1) * scale, rtol=1e-6)
    formal = [by_id(stars, f"{name}_err", ids) for name in ("teff", "feh", "logg")]
    error = np.hypot(np.stack(formal, 1) * scale, 0.02)
    np.testing.assert_allclose(table["params_err"], error, rtol=1e-5)


def labels_of(data_dir):
    return Table.read(data_dir / "training_params.h5", path="training_params")


def test_other_labels_are_columns_of_the_star_file_and_named_in_the_table(tmp_path, stars):
    names = ["teff", "feh", "logg", "alpha_m"]
    assert build(tmp_path, "--n", 60, "--labels", *names) == 0
    table = labels_of(tmp_path)
    assert table.meta["label_names"].tolist() == names
    ids = np.asarray(table["gdr3_source_id"])
    alpha = by_id(stars, "alpha_m", ids)
    np.testing.assert_array_equal(table["params_est"][:, 3], alpha)
    np.testing.assert_allclose(table["params_err"][:, 3], 0.02, rtol=1e-6)  # the file has none
    fid = list_fids(tmp_path, "xp")[0]
    before = shard_path(tmp_path, "xp", fid).stat().st_mtime_ns
    assert build(tmp_path, "--n", 60, "--labels", "logg", "teff") == 0
    assert labels_of(tmp_path).meta["label_names"].tolist() == ["logg", "teff"]
    np.testing.assert_array_equal(
        labels_of(tmp_path)["params_est"][:, 0], by_id(stars, "logg", ids)
    )
    assert shard_path(tmp_path, "xp", fid).stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["teff", "feh", "mass"], "label 'mass' is not known"),
        (["teff", "feh", "mass:Msun:1:0.1"], "no column mass"),
        (["teff"], "at least 2"),
    ],
)
def test_labels_that_cannot_be_had_are_usage_errors(tmp_path, capsys, names, words):
    assert build(tmp_path, "--n", 20, "--labels", *names) == 2
    shown = capsys.readouterr().err
    assert words in shown
    assert len(shown.splitlines()) == 1


def test_a_star_file_without_a_label_is_named(tmp_path, capsys):
    with h5py.File(STARS) as file, h5py.File(tmp_path / "few.h5", "w") as few:
        for name in file:
            if name not in ("alpha_m", "feh", "feh_err"):
                few[name] = file[name][()]
    options = ["--stars", tmp_path / "few.h5", "--out", tmp_path / "out", "--n", 20]
    assert build_sky.main([str(option) for option in options]) == 2
    assert "few.h5: no column feh; known labels that it has: teff, logg" in capsys.readouterr().err


def test_same_seed_gives_the_same_datasets_and_another_seed_other_stars(tmp_path):
    for name, seed in {"a": 5, "b": 5, "c": 6}.items():
        assert build(tmp_path / name, "--n", 300, "--seed", seed, "--shards", 3) == 0
    first = read_all(tmp_path / "a")
    assert_same(first, read_all(tmp_path / "b"))
    ids = [column(tmp_path / name, "xp", "source_id") for name in "ac"]
    assert len(np.unique(ids[0])) == 300
    assert len(np.intersect1d(*ids)) < 100


def test_repeated_stars_get_unique_ids_in_the_same_pixel_and_the_same_data(tmp_path, stars):
    assert build(tmp_path, "--n", 9000, "--shards", 1) == 0
    ids = column(tmp_path, "xp", "source_id")
    assert len(list_fids(tmp_path, "xp")) == 1
    assert len(np.unique(ids)) == 9000
    original = ids - ids % 128
    assert set(original) == set(stars["source_id"])
    assert np.all(original >> 43 == ids >> 43)
    np.testing.assert_array_equal(
        column(tmp_path, "xp", "bp_coefficients"), by_id(stars, "bp_coefficients", original)
    )


def test_parallax_none_leaves_parallaxes_and_errors_missing(tmp_path):
    assert build(tmp_path, "--n", 50, "--parallax", "none") == 0
    for name in ("parallax", "parallax_error", "parallax_raw"):
        assert np.isnan(column(tmp_path, "metadata", name)).all()


def test_an_interrupted_build_is_finished_to_the_same_datasets(tmp_path):
    assert build(tmp_path, "--n", 200, "--shards", 2) == 0
    expected = read_all(tmp_path)
    kept, damaged = (shard_path(tmp_path, "tmass", fid) for fid in list_fids(tmp_path, "tmass"))
    damaged.write_bytes(damaged.read_bytes()[:5000])
    (tmp_path / "training_params.h5").unlink()
    before = kept.stat().st_mtime_ns
    assert build(tmp_path, "--n", 200, "--shards", 2) == 0
    assert kept.stat().st_mtime_ns == before
    assert_same(read_all(tmp_path), expected)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (["--n", "200", "--seed", "1", "--parallax", "none"], "other settings"),
        (["--n", "200", "--seed", "9"], "another sky"),
    ],
)
def test_a_folder_with_another_sky_is_refused_and_untouched(tmp_path, capsys, other, words):
    assert build(tmp_path, "--n", 200) == 0
    expected = read_all(tmp_path)
    assert build(tmp_path, *other) == 2
    assert words in capsys.readouterr().err
    assert_same(read_all(tmp_path), expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--n", "0"], "at least 1 star"),
        (["--shards", "0"], "at least 1 is needed"),
        (["--n", "600000"], "at most 512000"),
    ],
)
def test_impossible_numbers_are_usage_errors(tmp_path, capsys, options, words):
    assert build(tmp_path / "out", *options) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_star_file_is_named_with_what_is_missing(tmp_path, capsys, sky):
    wrong = shard_path(sky, "metadata", list_fids(sky, "metadata")[0])
    assert build_sky.main(["--stars", str(wrong), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert str(wrong) in message
    assert "bp_correlation_template" in message


def test_fewer_pixels_than_shards_still_leave_no_shard_empty():
    pixel = np.array([3, 3, 3, 7, 9], dtype=np.int64)
    ranges = build_sky.shard_ranges(pixel << 43, 4, DR3)
    assert all(stop > first for _, first, stop in ranges)
    assert ranges[0][0].startswith("000000-")
    assert ranges[-1][0].endswith("-786431")
    assert [r[1] for r in ranges[1:]] == [r[2] for r in ranges[:-1]]
    assert ranges[-1][2] == 5


def test_inclusion_probabilities_are_at_most_one_and_sum_to_n():
    weight = np.array([100.0, 50.0, 1.0, 1.0, 1.0, 1.0])
    p = select_demo_stars.inclusion_probability(weight, 4)
    assert p.max() <= 1
    assert p.sum() == pytest.approx(4)
    assert list(p[:2]) == [1, 1]
    with pytest.raises(ValueError, match="7 stars wanted, 6 in the file"):
        select_demo_stars.inclusion_probability(weight, 7)


def test_selection_draws_distinct_stars_and_prefers_rare_types():
    rng = np.random.default_rng(2)
    rare = np.arange(2000) < 40
    labels = {
        "teff": np.where(rare, 8000.0, 5000.0) + rng.uniform(0, 200, 2000),
        "logg": np.full(2000, 4.2),
        "feh": np.full(2000, 0.1),
        "ak_targ": rng.uniform(0, 1, 2000),
        "phot_g_mean_mag": rng.uniform(10, 15, 2000),
    }
    rows = select_demo_stars.select_stars(labels, 400, 0.3, 1)
    assert len(np.unique(rows)) == 400
    assert rare[rows].sum() > 1.5 * 400 * rare.mean()
    plain = select_demo_stars.select_stars(labels, 400, 0.0, 1)
    assert rare[plain].sum() == 8


@pytest.mark.skipif(not REAL.exists(), reason="the full star file is not beside the project")
def test_bundled_stars_are_those_of_the_full_file_to_the_documented_rounding(stars):
    full = build_sky.read_stars(REAL)[0]
    ids = stars["source_id"]
    for name, values in stars.items():
        expected = by_id(full, name, ids)
        if name.endswith("coefficients"):
            sigma = stars[name.replace("coefficients", "coefficient_errors")]
            assert np.max(np.abs(values - expected) / sigma) < 1.6e-5
        elif name.endswith("coefficient_errors"):
            np.testing.assert_allclose(values, expected, rtol=1.3e-4)
        else:
            np.testing.assert_array_equal(values, expected)


def test_step_4_finds_in_the_tiles_the_matches_that_the_ready_shards_have(tmp_path):
    ready, tiles = tmp_path / "ready", tmp_path / "tiles"
    assert build(ready, "--n", 400, "--shards", 3) == 0
    assert build(tiles, "--n", 400, "--shards", 3, "--tiles") == 0
    assert list_fids(tiles, "unwise") == []
    folder = tiles / build_sky.TILE_FOLDER
    options = ["--data-dir", tiles, "--unwise-dir", folder]
    assert match_unwise_gaia.main([str(option) for option in options]) == 0
    for name in ("gdr3_source_id", "flux", "dflux", "qf", "fracflux"):
        np.testing.assert_array_equal(
            column(tiles, "unwise", name), column(ready, "unwise", name), err_msg=name
        )
    assert len(column(tiles, "unwise", "flux")) > 40
    assert np.max(column(tiles, "unwise", "sep_arcsec")) < 0.25  # else the fluxes are not used
    for fid in list_fids(tiles, "unwise"):
        with h5py.File(shard_path(tiles, "unwise", fid)) as file:
            assert file.attrs["sources_in_no_tile"] == 0


def test_tiles_are_the_same_again_and_say_that_they_are_synthetic(tmp_path):
    contents = []
    for name in "ab":
        assert build(tmp_path / name, "--n", 40, "--tiles") == 0
        files = sorted((tmp_path / name / build_sky.TILE_FOLDER).iterdir())
        contents.append({path.name: path.read_bytes() for path in files})
    assert contents[0] == contents[1]
    assert all(b"SYNTHETIC" in content for content in contents[0].values())


def test_tiles_that_are_there_are_not_written_again(tmp_path):
    assert build(tmp_path, "--n", 40, "--tiles") == 0
    files = sorted((tmp_path / build_sky.TILE_FOLDER).iterdir())
    before = [path.stat().st_mtime_ns for path in files]
    files[3].unlink()
    assert build(tmp_path, "--n", 40, "--tiles") == 0
    after = [path.stat().st_mtime_ns for path in files]
    assert [i for i in range(len(files)) if before[i] != after[i]] == [3]
