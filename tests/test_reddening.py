"""Step 5: a star's reddening is that of dustmaps at its place, over what its parallax allows."""

import os
import sys

import h5py
import numpy as np
import pytest
from astropy import units
from astropy.coordinates import SkyCoord

import query_reddening_gaia as step
from demo import dust_maps
from pipeline.schema.columns import DUST_MAPS
from pipeline.schema.flags import Coverage
from pipeline.select import shard_path
from pipeline.write import ShardWriter

FID = "000000-786431"
ALL_MAPS = list(DUST_MAPS)


@pytest.fixture(scope="module")
def maps_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps")
    dust_maps.write_sfd(folder)
    dust_maps.write_planck(folder)
    dust_maps.write_bayestar(folder)
    return folder


@pytest.fixture(scope="module")
def bayestar(maps_dir):
    return step.BayestarQuery(map_fname=str(maps_dir / step.BAYESTAR_FILE))


def random_sky(n, seed=1, min_lat=0.0):
    rng = np.random.default_rng(seed)
    lat = np.rad2deg(np.arcsin(rng.uniform(np.sin(np.deg2rad(min_lat)), 1, n)))
    lat *= rng.choice([-1, 1], n)
    place = SkyCoord(rng.uniform(0, 360, n) * units.deg, lat * units.deg, frame="galactic").icrs
    distance = rng.uniform(0.1, 4, n)
    plx_err = rng.uniform(0.02, 0.2, n)
    return place.ra.deg, place.dec.deg, rng.normal(1 / distance, plx_err), plx_err


def galactic(ra, dec):
    return SkyCoord(ra * units.deg, dec * units.deg).galactic


def write_metadata(data, ra, dec, plx, plx_err, source_id=None, fid=FID):
    ids = np.arange(len(ra)) * 3 + 5 if source_id is None else np.asarray(source_id)
    with ShardWriter(shard_path(data, "metadata", fid), len(ra), "source_id", {}) as writer:
        writer.write("source_id", 0, ids.astype(np.int64))
        columns = {"ra": ra, "dec": dec, "parallax": plx, "parallax_error": plx_err}
        writer.write_table({name: np.asarray(values, "f8") for name, values in columns.items()})
    return ids


def run(data, maps_dir, *options):
    arguments = ["--data-dir", data, "--dustmaps-dir", maps_dir, *options]
    return step.main([str(argument) for argument in arguments])


def read(data, fid=FID):
    with h5py.File(shard_path(data, "reddening", fid)) as file:
        attrs = {name: dict(file[name].attrs) for name in file}
        return {name: file[name][()] for name in file}, attrs


def posterior(plx, plx_err, n=400_000):
    """Distances (kpc) and probabilities of one star by a dense grid in d."""
    d = np.linspace(0.004, 60, n)
    ln_p = 2 * np.log(d) - d / step.PRIOR_LENGTH
    if np.isfinite(plx) and plx_err > 0:
        ln_p = ln_p - 0.5 * ((1 / d - plx) / plx_err) ** 2
    p = np.exp(ln_p - ln_p.max())
    return d, p / p.sum()


@pytest.mark.parametrize(
    ("plx", "plx_err"),
    [
        (10.0, 0.05), (1.0, 0.02), (1.0, 0.2), (0.3, 0.2), (0.05, 0.05), (0.0, 0.1),
        (-0.2, 0.1), (-2.0, 0.3), (0.4, 3.0), (np.nan, np.nan), (1.0, np.nan), (1.0, 0.0),
        (0.08, 0.005),
    ],
)  # fmt: skip
def test_quantiles_of_distance_are_those_of_the_posterior(plx, plx_err):
    levels = np.array([0.005, 0.05, 0.25, 0.5, 0.75, 0.95, 0.995])
    found = step.distance_quantiles(np.array([plx]), np.array([plx_err]), levels)[0]
    d, p = posterior(plx, plx_err)
    expected = np.interp(levels, np.cumsum(p), d)
    width = expected[4] - expected[2]
    np.testing.assert_allclose(found, expected, atol=0.02 * width, rtol=0.01)
    assert np.all(np.diff(found) > 0)


def test_a_star_does_not_depend_on_the_others():
    plx, err = np.array([1.0, -1.0, np.nan, 5.0]), np.array([0.1, 0.2, 0.1, 0.01])
    levels, _ = step.quantile_rule()
    together = step.distance_quantiles(plx, err, levels)
    for i in range(4):
        alone = step.distance_quantiles(plx[i : i + 1], err[i : i + 1], levels)
        np.testing.assert_array_equal(alone[0], together[i])


@pytest.mark.parametrize(
    ("plx", "plx_err"), [(5.0, 0.02), (1.0, 0.3), (0.2, 0.1), (-0.3, 0.2), (np.nan, np.nan)]
)
def test_bayestar_is_the_mean_and_width_over_distances_and_samples(bayestar, plx, plx_err):
    rng = np.random.default_rng(4)
    lon, lat = rng.uniform(30, 200, 12), rng.uniform(1, 60, 12)
    d, p = posterior(plx, plx_err)
    keep = np.linspace(0, 1, 4001)[1:-1]
    dense = np.interp(keep, np.cumsum(p), d)  # equally probable distances
    place = SkyCoord(lon * units.deg, lat * units.deg, frame="galactic")
    found = step.query_bayestar(bayestar, place, np.full(12, plx), np.full(12, plx_err))
    for i in range(12):
        places = SkyCoord(
            np.full(len(dense), lon[i]) * units.deg, np.full(len(dense), lat[i]) * units.deg,
            distance=dense * units.kpc, frame="galactic",
        )  # fmt: skip
        samples = bayestar(places, mode="samples").astype(float)
        assert np.isfinite(samples).all()
        np.testing.assert_allclose(found["E_mean_bayestar"][i], samples.mean(), rtol=0.01)
        np.testing.assert_allclose(found["E_sigma_bayestar"][i], samples.std(), rtol=0.03)


def test_with_a_certain_distance_sigma_is_that_of_the_samples(bayestar):
    place = SkyCoord([100.0] * units.deg, [30.0] * units.deg, frame="galactic")
    found = step.query_bayestar(bayestar, place, np.array([2.0]), np.array([1e-4]))
    at_star = bayestar(
        SkyCoord(place.l, place.b, distance=[0.5] * units.kpc, frame="galactic"), mode="samples"
    )
    np.testing.assert_allclose(found["E_mean_bayestar"], at_star.mean(), rtol=1e-4)
    np.testing.assert_allclose(found["E_sigma_bayestar"], at_star.std(), rtol=1e-3)


def test_bayestar_has_no_value_south_of_its_footprint_and_says_so(bayestar):
    ra, dec = np.array([10.0, 10.0]), np.array([-45.0, 20.0])
    found = step.query_maps({"bayestar": bayestar}, ra, dec, np.ones(2), np.full(2, 0.1))
    assert np.isnan(found["E_mean_bayestar"]).tolist() == [True, False]
    assert np.isnan(found["E_sigma_bayestar"]).tolist() == [True, False]
    assert found["coverage_bayestar"][0] == 0


def test_coverage_bits_tell_parallax_and_reliable_distance(bayestar):
    ra, dec = np.full(4, 50.0), np.full(4, 60.0)
    plx, plx_err = np.array([1.0, 200.0, np.nan, 1.0]), np.array([0.1, 1.0, np.nan, -1.0])
    found = step.query_maps({"bayestar": bayestar}, ra, dec, plx, plx_err)["coverage_bayestar"]
    bits = Coverage
    both = bits.VALUE | bits.CONVERGED
    near = both | bits.PARALLAX  # 5 pc: nearer than the map is reliable
    prior = both | bits.RELIABLE_DISTANCE  # no usable parallax
    assert found.tolist() == [prior | bits.PARALLAX, near, prior, prior]


def test_maps_of_the_whole_column_give_dustmaps_values_at_the_star(tmp_path, maps_dir):
    ra, dec, plx, plx_err = random_sky(500, min_lat=12)
    write_metadata(tmp_path, ra, dec, plx, plx_err)
    assert run(tmp_path, maps_dir, "--maps", "sfd", "planck", "bh") == 0
    found, attrs = read(tmp_path)
    place = galactic(ra, dec)
    column = dust_maps.disc_column(place.l.deg, place.b.deg)
    ratios = found["E_mean_sfd"] / column, found["E_mean_planck"] / column
    assert np.percentile(np.abs(ratios[0] - 1), 95) < 0.01
    assert np.percentile(np.abs(ratios[1] - 1), 95) < 0.06
    np.testing.assert_array_equal(found["E_mean_bh"], step.BHQuery()(place).astype("f4"))
    for name in ("sfd", "planck", "bh"):
        assert attrs[f"E_mean_{name}"]["units"] == "E(B-V) mag"
        np.testing.assert_array_equal(
            found[f"coverage_{name}"], np.isfinite(found[f"E_mean_{name}"])
        )


def test_the_bundled_map_has_its_published_value_at_the_north_galactic_pole(tmp_path, maps_dir):
    pole = SkyCoord([0.0, 0.0] * units.deg, [90.0, 5.0] * units.deg, frame="galactic").icrs
    write_metadata(tmp_path, pole.ra.deg, pole.dec.deg, np.ones(2), np.ones(2))
    assert run(tmp_path, tmp_path / "no maps here", "--maps", "bh") == 0
    found, _ = read(tmp_path)
    assert abs(found["E_mean_bh"][0]) < 0.03  # the pole is nearly free of dust on this scale
    assert np.isnan(found["E_mean_bh"][1])  # the map leaves out |b| < 10
    assert found["coverage_bh"].tolist() == [1, 0]


def test_every_star_is_in_the_output_in_the_order_of_the_metadata(tmp_path, maps_dir, capsys):
    ra, dec, plx, plx_err = random_sky(300)
    ra[7], dec[9] = np.nan, np.nan
    plx[20:30] = np.nan
    ids = np.random.default_rng(2).permutation(9000)[:300]
    write_metadata(tmp_path, ra, dec, plx, plx_err, ids)
    assert run(tmp_path, maps_dir, "--maps", *ALL_MAPS) == 0
    found, _ = read(tmp_path)
    np.testing.assert_array_equal(found["gdr3_source_id"], ids)
    for name in ALL_MAPS:
        assert np.isnan(found[f"E_mean_{name}"][[7, 9]]).all()
        assert np.all(found[f"coverage_{name}"][[7, 9]] == 0)
    assert np.isfinite(found["E_mean_sfd"]).sum() == 298
    err = capsys.readouterr().err
    assert "stars: 300" in err
    assert "without a parallax: 10" in err
    assert f"not in bayestar: {np.isnan(found['E_mean_bayestar']).sum()}" in err
    assert "not in sfd: 2" in err


def test_chunks_and_the_order_of_rows_change_nothing(tmp_path, maps_dir, monkeypatch):
    columns = random_sky(100)
    order = np.random.default_rng(3).permutation(100)
    write_metadata(tmp_path / "a", *columns)
    write_metadata(tmp_path / "b", *(c[order] for c in columns), order * 3 + 5)
    assert run(tmp_path / "a", maps_dir) == 0
    monkeypatch.setattr(step, "CHUNK_STARS", 7)
    assert run(tmp_path / "b", maps_dir) == 0
    a, b = read(tmp_path / "a")[0], read(tmp_path / "b")[0]
    assert set(a) == {"gdr3_source_id", "E_mean_bayestar", "E_sigma_bayestar", "E_mean_sfd",
                      "coverage_bayestar", "coverage_sfd"}  # fmt: skip
    for name in a:
        np.testing.assert_array_equal(a[name][order], b[name], err_msg=name)


def test_every_map_that_has_datasets_is_one_that_the_step_knows():
    assert tuple(step.MAPS) == DUST_MAPS


@pytest.mark.parametrize("name", ["bayestar", "sfd", "planck"])
def test_a_missing_map_is_one_line_with_the_command_that_fetches_it(tmp_path, capsys, name):
    write_metadata(tmp_path, *random_sky(3))
    assert run(tmp_path, tmp_path / "maps", "--maps", name) == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1
    assert f"the map {name} is not there; fetch it with: python -c" in err
    assert f"config['data_dir'] = '{tmp_path / 'maps'}'; import dustmaps.{name}" in err


def test_the_command_that_fetches_a_map_is_python_and_its_functions_exist(capsys):
    for name, kind in step.MAPS.items():
        if kind.fetch:
            compile(kind.fetch, name, "exec")
            assert callable(sys.modules[f"dustmaps.{name}"].fetch)


@pytest.mark.parametrize("damage", ["truncated", "empty"])
@pytest.mark.parametrize("name", ["bayestar", "planck"])
def test_a_damaged_map_is_named(tmp_path, maps_dir, capsys, name, damage):
    write_metadata(tmp_path, *random_sky(3))
    file = step.MAPS[name].files[0]
    copy = tmp_path / "maps" / file
    copy.parent.mkdir(parents=True)
    data = (maps_dir / file).read_bytes()
    copy.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"")
    assert run(tmp_path, tmp_path / "maps", "--maps", name) == 1
    err = capsys.readouterr().err
    assert f"the map {name} ({file}) cannot be read" in err
    assert "Traceback" not in err
    assert not shard_path(tmp_path, "reddening", FID).exists()


def test_finished_shards_are_skipped_without_opening_a_map_and_other_maps_make_them_again(
    tmp_path, maps_dir, capsys, monkeypatch
):
    write_metadata(tmp_path, *random_sky(3))
    assert run(tmp_path, maps_dir, "--maps", "sfd") == 0

    def never(*arguments):
        raise RuntimeError("a map was opened")

    with monkeypatch.context() as patch:
        patch.setattr(step, "open_map", never)
        assert run(tmp_path, maps_dir, "--maps", "sfd") == 0
    capsys.readouterr()
    assert run(tmp_path, maps_dir, "--maps", "sfd", "bh") == 0
    assert "stale output is made again" in capsys.readouterr().err
    assert {"E_mean_sfd", "E_mean_bh"} < set(read(tmp_path)[0])


def test_another_output_folder_leaves_the_reddening_in_use_alone(tmp_path, maps_dir):
    write_metadata(tmp_path / "data", *random_sky(3))
    assert run(tmp_path / "data", maps_dir, "--maps", "sfd") == 0
    before = shard_path(tmp_path / "data", "reddening", FID).read_bytes()
    assert run(tmp_path / "data", maps_dir, "--maps", "bh", "--output-dir", tmp_path / "bh") == 0
    assert shard_path(tmp_path / "data", "reddening", FID).read_bytes() == before
    assert "E_mean_bh" in read(tmp_path / "bh")[0]


def test_a_shard_without_stars_is_valid(tmp_path, maps_dir):
    write_metadata(tmp_path, *(np.zeros(0),) * 4)
    assert run(tmp_path, maps_dir, "--maps", *ALL_MAPS) == 0
    found, _ = read(tmp_path)
    assert {f"E_mean_{name}" for name in ALL_MAPS} < set(found)
    assert len(found["gdr3_source_id"]) == 0


def test_a_bad_shard_fails_clearly_and_the_others_are_done(tmp_path, maps_dir, capsys):
    write_metadata(tmp_path, *random_sky(3), fid="000000-000009")
    write_metadata(tmp_path, *random_sky(3), fid="000010-786431")
    bad = shard_path(tmp_path, "metadata", "000000-000009")
    bad.write_bytes(bad.read_bytes()[:500])
    assert run(tmp_path, maps_dir, "--maps", "sfd") == 1
    err = capsys.readouterr().err
    assert "000000-000009" in err
    assert "Traceback" not in err
    assert read(tmp_path, "000010-786431")[0]["E_mean_sfd"].shape == (3,)


def test_fewer_samples_can_be_asked_for(tmp_path, maps_dir):
    place = SkyCoord([100.0] * units.deg, [30.0] * units.deg, frame="galactic").icrs
    ra, dec = place.ra.deg, place.dec.deg
    write_metadata(tmp_path, ra, dec, [2.0], [1e-4])
    assert run(tmp_path, maps_dir, "--maps", "bayestar", "--bayestar-samples", "1") == 0
    assert read(tmp_path)[0]["E_sigma_bayestar"][0] < 1e-3


def test_the_configuration_of_dustmaps_in_the_home_folder_is_not_touched(tmp_path, maps_dir):
    path = os.path.expanduser("~/.dustmapsrc")
    before = os.path.exists(path) and os.stat(path).st_mtime_ns
    write_metadata(tmp_path, *random_sky(3))
    assert run(tmp_path, maps_dir, "--maps", *ALL_MAPS) == 0
    assert (os.path.exists(path) and os.stat(path).st_mtime_ns) == before
