"""Step 4: the right unWISE source for each Gaia source, wherever it is on the sky."""

import dataclasses
import gzip

import h5py
import numpy as np
import pytest

import match_unwise_gaia as step
from demo.unwise_tiles import N_RINGS, RING_STEP, ring_size, tile_name, tile_of, write_tile
from pipeline import unwise_tiles
from pipeline.errors import ShardError
from pipeline.schema import FILES, Column, load_release
from pipeline.select import shard_path
from pipeline.sphere import local_axes, unit_vectors
from pipeline.write import ShardWriter

FID = "000000-786431"
ARCSEC = 1 / 3600
DR3 = load_release()
YEARS = step.UNWISE_EPOCH - DR3.reference_epoch
CATALOGUE = step.catalogue_datasets(DR3)
PAIR_COLUMNS = [name for name, data in CATALOGUE.items() if data.shape]
# RA, Dec of fields: tile corners and edges, RA = 0, poles, the middle of nowhere.
FIELDS = {
    "equator": (150.5, 0.75), "ra 0": (0.0, -1.6), "ra 0 north": (359.99, 61.3),
    "north pole": (77.0, 89.9), "south pole": (200.0, -89.95), "polar ring": (10.0, 88.5),
    "south": (266.4, -29.0),
}  # fmt: skip


def offset(ra, dec, east, north):
    """Positions (degrees) after steps (arcsec) towards east and north in the tangent plane."""
    e, n = local_axes(np.asarray(ra, float), np.asarray(dec, float))
    v = unit_vectors(np.asarray(ra, float), np.asarray(dec, float))
    v = v + np.deg2rad(np.asarray(east) * ARCSEC)[..., None] * e
    v = v + np.deg2rad(np.asarray(north) * ARCSEC)[..., None] * n
    v /= np.linalg.norm(v, axis=-1, keepdims=True)
    x, y, z = np.moveaxis(v, -1, 0)
    return np.rad2deg(np.arctan2(y, x)) % 360, np.rad2deg(np.arctan2(z, np.hypot(x, y)))


def write_metadata(data, ra, dec, pmra=0.0, pmdec=0.0, source_id=None, fid=FID):
    n = len(ra)
    ids = np.arange(n) * 7 + 1000 if source_id is None else source_id
    with ShardWriter(shard_path(data, "metadata", fid), n, "source_id", {}) as writer:
        writer.write("source_id", 0, np.asarray(ids, np.int64))
        for name, values in {"ra": ra, "dec": dec, "pmra": pmra, "pmdec": pmdec}.items():
            writer.write(name, 0, np.broadcast_to(np.asarray(values, float), n))
    return np.asarray(ids)


def write_tiles(folder, ra, dec, **columns):
    """Write each source into the tile whose primary region it lies in; returns {name: rows}."""
    folder.mkdir(parents=True, exist_ok=True)
    ring, number = tile_of(ra, dec)
    n = len(ra)
    columns = {"flux": np.stack([np.arange(n) + 1.0, np.arange(n) + 0.5], 1)} | columns
    places = {}
    for row, place in enumerate(zip(ring.tolist(), number.tolist(), strict=True)):
        places.setdefault(tile_name(*place), []).append(row)
    for name, rows in places.items():
        sources = {"ra": ra, "dec": dec, **columns}
        write_tile(folder, name, {k: np.asarray(v)[rows] for k, v in sources.items()})
    return places


def run(data, tiles, *options):
    return step.main(["--data-dir", str(data), "--unwise-dir", str(tiles), *map(str, options)])


def read(data, fid=FID):
    with h5py.File(shard_path(data, "unwise", fid)) as file:
        return {name: file[name][()] for name in file}, dict(file.attrs)


def separation(a, b):
    """Angle in arcsec between unit vectors, by the cross product."""
    sine = np.linalg.norm(np.cross(a, b), axis=-1)
    return np.rad2deg(np.arctan2(sine, np.sum(a * b, axis=-1))) * 3600


def oracle(ids, gaia, detections, radius=step.MAX_SEP_ARCSEC):
    """{source_id: row of its detection} by comparing every source with every detection."""
    wants = {}
    for source_id, vector in zip(ids.tolist(), gaia, strict=True):
        distance = separation(vector, detections)
        best = int(np.argmin(distance))
        if distance[best] <= radius:
            wants.setdefault(best, []).append((distance[best], source_id))
    return {min(rivals)[1]: row for row, rivals in wants.items()}


def field_of_stars(centre, n, seed, width=1.2):
    """n stars within `width` degrees of a place, half of them in tight groups."""
    rng = np.random.default_rng(seed)
    radius, angle = width * 3600 * np.sqrt(rng.random(n)), rng.uniform(0, 2 * np.pi, n)
    angle[n // 2 :] = angle[: n - n // 2]
    radius[n // 2 :] = radius[: n - n // 2]
    ra, dec = offset(*centre, radius * np.cos(angle), radius * np.sin(angle))
    return offset(ra, dec, *rng.normal(0, 0.4, (2, n)))


@pytest.mark.parametrize("name", FIELDS)
def test_matches_equal_those_of_brute_force(tmp_path, name):
    rng = np.random.default_rng(5)
    ra, dec = field_of_stars(FIELDS[name], 600, 1)
    pm = rng.normal(0, 300, (2, 600))
    pm[:, ::9] = np.nan
    ids = write_metadata(tmp_path / "data", ra, dec, *pm, source_id=rng.permutation(10_000)[:600])
    moved = offset(ra, dec, *np.nan_to_num(pm) / 1000 * YEARS)
    w_ra, w_dec = offset(*moved, *rng.normal(0, 0.25, (2, 600)))
    keep = rng.random(600) < 0.8
    places = write_tiles(tmp_path / "tiles", w_ra[keep], w_dec[keep])
    assert len(places) > 1
    assert run(tmp_path / "data", tmp_path / "tiles") == 0
    found, _ = read(tmp_path / "data")
    expected = oracle(ids, unit_vectors(*moved), unit_vectors(w_ra[keep], w_dec[keep]))
    assert len(expected) > 200
    flux_row = np.rint(found["flux"][:, 0] - 1).astype(int)
    assert dict(zip(found["gdr3_source_id"].tolist(), flux_row.tolist(), strict=True)) == expected
    wanted = [np.flatnonzero(ids == i)[0] for i in found["gdr3_source_id"]]
    assert wanted == sorted(wanted)
    distance = separation(
        unit_vectors(*moved)[wanted], unit_vectors(w_ra[keep], w_dec[keep])[flux_row]
    )
    np.testing.assert_allclose(found["sep_arcsec"], distance, atol=1e-5)


def test_columns_are_the_catalogues_with_the_documented_types(tmp_path):
    ra, dec = np.array([150.0]), np.array([2.0])
    write_metadata(tmp_path / "data", ra, dec)
    pair = {k: np.array([[i + 0.25, i + 0.5]]) for i, k in enumerate(PAIR_COLUMNS)}
    write_tiles(tmp_path / "tiles", ra, dec, **pair)
    assert run(tmp_path / "data", tmp_path / "tiles") == 0
    found, attrs = read(tmp_path / "data")
    for name, values in pair.items():
        assert found[name].dtype == np.dtype("f4")
        np.testing.assert_array_equal(found[name], values)
    assert (
        found["unwise_objid"][0] == f"{tile_name(*map(int, tile_of(150.0, 2.0)))}o0000000".encode()
    )
    assert found["gdr3_source_id"].dtype == np.dtype("i8")
    assert attrs["unwise_epoch"] == step.UNWISE_EPOCH


def add_to_the_table(monkeypatch, **column):
    """As a line more among the columns of the survey in tables/bands.toml."""
    kind = FILES["unwise"]
    columns = (*kind.columns, Column(**column))
    monkeypatch.setitem(FILES, "unwise", dataclasses.replace(kind, columns=columns))


def test_a_column_more_in_the_table_of_bands_is_a_dataset_more(tmp_path, monkeypatch):
    ra, dec = np.array([150.0]), np.array([2.0])
    write_metadata(tmp_path / "data", ra, dec)
    write_tiles(tmp_path / "tiles", ra, dec, nm=np.array([[70_000, 40]]), coadd_id=["1500p015"])
    add_to_the_table(monkeypatch, name="nm", dtype="i4", shape=(2,), text="exposures")
    add_to_the_table(monkeypatch, name="coadd_id", dtype="S8", text="of the tile")
    assert run(tmp_path / "data", tmp_path / "tiles") == 0
    found, _ = read(tmp_path / "data")
    np.testing.assert_array_equal(found["nm"], [[70_000, 40]])
    assert found["nm"].dtype == np.dtype("i4")
    assert found["coadd_id"].tolist() == [b"1500p015"]


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "message"),
    [("nm", "i2", (2,), "does not fit int16"), ("nm", "i4", (), "nm has rows of shape (2,)"),
     ("flux_err", "f4", (2,), "no column flux_err")],
)  # fmt: skip
def test_a_column_that_is_not_as_declared_is_refused(
    tmp_path, monkeypatch, capsys, name, dtype, shape, message
):
    ra, dec = np.array([150.0]), np.array([2.0])
    write_metadata(tmp_path / "data", ra, dec)
    write_tiles(tmp_path / "tiles", ra, dec, nm=np.array([[70_000, 40]]))
    add_to_the_table(monkeypatch, name=name, dtype=dtype, shape=shape)
    assert run(tmp_path / "data", tmp_path / "tiles") == 1
    assert message in capsys.readouterr().err


def test_a_moving_star_is_found_where_it_was_at_the_epoch_of_unwise(tmp_path):
    ra, dec = np.array([80.0, 81.0]), np.array([70.0, 70.0])
    pmra, pmdec = np.array([-3000.0, np.nan]), np.array([4000.0, 4000.0])
    ids = write_metadata(tmp_path / "data", ra, dec, pmra, pmdec)
    then = offset(ra[0], dec[0], -3.0 * YEARS, 4.0 * YEARS)
    w_ra = np.array([then[0], ra[0], ra[1]])  # the star then, a decoy where it is now, the other
    w_dec = np.array([then[1], dec[0], dec[1]])
    write_tiles(tmp_path / "tiles", w_ra, w_dec)
    assert run(tmp_path / "data", tmp_path / "tiles") == 0
    found, _ = read(tmp_path / "data")
    np.testing.assert_array_equal(found["gdr3_source_id"], ids)
    np.testing.assert_array_equal(found["flux"][:, 0], [1, 3])
    np.testing.assert_allclose(found["sep_arcsec"], 0, atol=1e-4)


def test_detections_that_are_not_primary_or_have_no_position_are_not_used(tmp_path):
    ra, dec = np.full(3, 30.0) + [0, 1e-2, 2e-2], np.full(3, 10.2)
    ids = write_metadata(tmp_path / "data", ra, dec)
    tile = tile_name(*(int(k) for k in tile_of(30.0, 10.2)))
    sources = {"ra": ra.copy(), "dec": dec, "flux": np.ones((3, 2)), "primary": [0, 1, 1]}
    sources["ra"][1] = np.nan
    (tmp_path / "tiles").mkdir()
    write_tile(tmp_path / "tiles", tile, sources)
    assert run(tmp_path / "data", tmp_path / "tiles") == 0
    np.testing.assert_array_equal(read(tmp_path / "data")[0]["gdr3_source_id"], ids[2:])


@pytest.mark.parametrize("near_tile", [0, 1])
def test_of_detections_in_two_tiles_the_nearer_is_taken(tmp_path, near_tile):
    names = [tile_name(1, 40), tile_name(1, 41)]
    edge = 40.5 * 360 / ring_size(1)
    write_metadata(tmp_path / "data", [edge], [RING_STEP])
    (tmp_path / "tiles").mkdir()
    for number, name in enumerate(names):
        east = 0.1 if number == near_tile else 0.3
        ra, dec = map(np.atleast_1d, offset(edge, RING_STEP, east, 0.0))
        write_tile(tmp_path / "tiles", name, {"ra": ra, "dec": dec, "flux": np.full((1, 2), east)})
    assert run(tmp_path / "data", tmp_path / "tiles") == 0
    found, attrs = read(tmp_path / "data")
    assert attrs["n_tiles"] == 2
    np.testing.assert_allclose(found["flux"], 0.1, rtol=1e-6)
    np.testing.assert_allclose(found["sep_arcsec"], 0.1, atol=1e-5)


@pytest.mark.parametrize(("distance", "matched"), [(0.499, 1), (0.501, 0)])
def test_the_limit_is_half_an_arcsecond(tmp_path, distance, matched):
    write_metadata(tmp_path / "data", [200.0], [-45.0])
    write_tiles(tmp_path / "tiles", *map(np.atleast_1d, offset(200.0, -45.0, 0.0, distance)))
    assert run(tmp_path / "data", tmp_path / "tiles") == 0
    assert len(read(tmp_path / "data")[0]["gdr3_source_id"]) == matched


def test_a_contested_detection_goes_to_the_nearer_and_the_other_gets_no_second_choice(
    tmp_path, capsys
):
    # West to east (arcsec): star A at 0, detection at 0.1, star B at 0.3, detection at 0.7.
    ra, dec = offset(120.0, 20.0, np.array([0.0, 0.3]), 0.0)
    ids = write_metadata(tmp_path / "data", ra, dec)
    write_tiles(tmp_path / "tiles", *offset(120.0, 20.0, np.array([0.1, 0.7]), 0.0))
    assert run(tmp_path / "data", tmp_path / "tiles") == 0
    found, _ = read(tmp_path / "data")
    np.testing.assert_array_equal(found["gdr3_source_id"], ids[:1])
    np.testing.assert_array_equal(found["flux"][:, 0], [1])
    err = capsys.readouterr().err
    assert "contested unWISE sources: 1" in err
    assert "lost theirs to a nearer one: 1" in err


def test_an_equally_near_detection_goes_to_the_smaller_source_id_in_any_order():
    length, key = np.array([1e-7, 1e-7, 2e-7]), np.array([4, 4, 4])
    ids = np.array([30, 20, 10])
    np.testing.assert_array_equal(step.one_to_one(length, key, ids), [False, True, False])


def test_a_shard_without_any_match_and_an_empty_tile_give_a_valid_shard(tmp_path):
    write_metadata(tmp_path / "data", [10.0], [0.1])
    (tmp_path / "tiles").mkdir()
    empty = {"ra": np.zeros(0), "dec": np.zeros(0), "flux": np.zeros((0, 2))}
    write_tile(tmp_path / "tiles", tile_name(*(int(k) for k in tile_of(10.0, 0.1))), empty)
    assert run(tmp_path / "data", tmp_path / "tiles") == 0
    found, attrs = read(tmp_path / "data")
    assert attrs["n_rows"] == 0
    assert found["flux"].shape == (0, 2)
    assert set(found) == {"gdr3_source_id", "unwise_objid", "sep_arcsec", *PAIR_COLUMNS}


def test_a_shard_without_sources_is_valid(tmp_path):
    write_metadata(tmp_path / "data", [], [])
    write_tiles(tmp_path / "tiles", np.array([1.0]), np.array([1.0]))
    assert run(tmp_path / "data", tmp_path / "tiles") == 0
    assert read(tmp_path / "data")[1]["n_rows"] == 0


def test_only_tiles_that_a_source_can_lie_in_are_opened(tmp_path):
    ra, dec = field_of_stars((45.0, 10.0), 50, 3)
    write_metadata(tmp_path / "data", ra, dec)
    write_tiles(tmp_path / "tiles", ra, dec)
    for number in range(0, ring_size(30), 2):  # elsewhere: not even FITS files
        (tmp_path / "tiles" / f"{tile_name(30, number)}.cat.fits").write_text("not a table")
    assert run(tmp_path / "data", tmp_path / "tiles") == 0
    found, attrs = read(tmp_path / "data")
    assert len(found["flux"]) > 20
    assert attrs["n_tiles"] <= 9


def test_every_place_in_a_tile_is_looked_for_in_it_in_spite_of_its_rounded_name():
    rng = np.random.default_rng(2)
    half = unwise_tiles.TILE_HALF_WIDTH * 3600
    for ring in range(-N_RINGS, N_RINGS + 1):
        number = int(rng.integers(ring_size(ring)))
        index = unwise_tiles.TileIndex([tile_name(ring, number)], {})
        corners = np.array([[-half, half, half, -half, 0], [-half, -half, half, half, half]])
        centre = number * 360 / ring_size(ring), ring * RING_STEP
        vectors = unit_vectors(*offset(*centre, *corners))
        rows = index.around(vectors)
        np.testing.assert_array_equal(rows[0], np.arange(5), err_msg=f"ring {ring}")


def test_tiles_far_away_are_not_looked_at():
    names = [tile_name(ring, 0) for ring in range(-N_RINGS, N_RINGS + 1)]
    index = unwise_tiles.TileIndex(names, {})
    for ra, dec in FIELDS.values():
        for number in index.around(unit_vectors(np.array([ra]), np.array([dec]))):
            apart = separation(index.vectors[number], unit_vectors(ra, dec))
            assert apart < 1.3 * 3600


def test_the_name_gives_the_centre_of_the_tile():
    assert unwise_tiles.tile_centre("0000m016") == (0.0, -1.6)
    assert unwise_tiles.tile_centre("1497p015") == (149.7, 1.5)


def test_a_missing_tile_is_reported_and_when_it_arrives_the_shard_is_done_again(tmp_path, capsys):
    ra, dec = np.array([40.0, 46.0]), np.array([0.0, 0.0])
    ids = write_metadata(tmp_path / "data", ra, dec)
    write_tiles(tmp_path / "tiles", ra[:1], dec[:1])
    assert run(tmp_path / "data", tmp_path / "tiles") == 0
    err = capsys.readouterr().err
    assert "1 sources in no tile of the folder; around: RA 46" in err
    assert read(tmp_path / "data")[1]["sources_in_no_tile"] == 1
    names = write_tiles(tmp_path / "later", ra, dec)
    (tmp_path / "list.txt").write_text("\n".join(f'<a href="{name}.cat.fits">' for name in names))
    assert run(tmp_path / "data", tmp_path / "tiles", "--tile-list", tmp_path / "list.txt",
               "--overwrite") == 0  # fmt: skip
    assert f"missing tiles: {list(names)[1]}" in capsys.readouterr().err
    write_tiles(tmp_path / "tiles", ra[1:], dec[1:])
    assert run(tmp_path / "data", tmp_path / "tiles") == 0
    assert "stale output is made again" in capsys.readouterr().err
    np.testing.assert_array_equal(read(tmp_path / "data")[0]["gdr3_source_id"], ids)
    assert run(tmp_path / "data", tmp_path / "tiles") == 0
    assert "0 done, 1 already complete" in capsys.readouterr().err


def single_band(path):
    """Rewrite a band-merged tile as a single-band one: one value per source, unwise_detid."""
    from astropy.io import fits

    with fits.open(path) as hdus:
        data = hdus[1].data
        columns = [fits.Column(k, "E", array=data[k][:, 0]) for k in PAIR_COLUMNS]
        columns += [fits.Column(k, "D", array=data[k]) for k in ("ra", "dec")]
        columns += [fits.Column("primary", "I", array=data["primary"])]
        columns += [fits.Column("unwise_detid", "40A", array=data["unwise_objid"])]
        table = fits.BinTableHDU.from_columns(columns)
    table.writeto(path, overwrite=True)


def test_single_band_files_are_refused_by_name_and_by_content(tmp_path, capsys):
    ra, dec = np.array([100.0]), np.array([30.0])
    write_metadata(tmp_path / "data", ra, dec)
    (name,) = write_tiles(tmp_path / "tiles", ra, dec)
    tile = tmp_path / "tiles" / f"{name}.cat.fits"
    single_band(tile)
    assert run(tmp_path / "data", tmp_path / "tiles") == 1
    err = capsys.readouterr().err
    assert str(tile) in err
    assert "a single-band catalogue? expected a band-merged TILE.cat.fits" in err
    tile.rename(tile.with_name(f"{name}.1.cat.fits"))
    assert run(tmp_path / "data", tmp_path / "tiles") == 2
    err = capsys.readouterr().err
    assert "holds single-band catalogues" in err
    assert len(err.strip().splitlines()) == 1
    assert not shard_path(tmp_path / "data", "unwise", FID).exists()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-4000])


def cut_header(path):
    path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.parametrize("damage", [truncate, cut_header, lambda path: path.write_bytes(b"")])
def test_a_damaged_tile_fails_its_shard_clearly_and_the_others_are_done(tmp_path, capsys, damage):
    ra, dec = np.array([100.0, 220.0]), np.array([30.0, -30.0])
    for i, fid in enumerate(("000000-000009", "000010-786431")):
        write_metadata(tmp_path / "data", ra[i : i + 1], dec[i : i + 1], fid=fid)
    bad, _ = write_tiles(tmp_path / "tiles", ra, dec)
    damage(tmp_path / "tiles" / f"{bad}.cat.fits")
    assert run(tmp_path / "data", tmp_path / "tiles") == 1
    err = capsys.readouterr().err
    assert f"{bad}.cat.fits" in err
    assert "Traceback" not in err
    assert not shard_path(tmp_path / "data", "unwise", "000000-000009").exists()
    assert len(read(tmp_path / "data", "000010-786431")[0]["flux"]) == 1


def test_a_small_cache_reads_more_but_changes_nothing(tmp_path):
    ra, dec = field_of_stars((150.5, 0.75), 400, 8)
    write_tiles(tmp_path / "tiles", ra, dec)
    results, reads = [], []
    index = unwise_tiles.index_tiles(tmp_path / "tiles")
    for max_bytes in (10**9, 1):
        cache = unwise_tiles.TileCache(index, max_bytes, CATALOGUE)
        vectors = unit_vectors(ra, dec)
        for _ in range(2):
            by_tile = cache.index.around(vectors)
            results.append(step.match(np.arange(400), vectors, by_tile, cache).columns)
        reads.append(cache.n_read)
    assert reads[0] == len(cache.index.names)
    assert reads[1] == 2 * reads[0]
    for other in results[1:]:
        for name, column in results[0].items():
            np.testing.assert_array_equal(column, other[name])


def test_a_star_without_a_position_is_counted_and_never_matched(tmp_path, capsys):
    ra, dec = np.array([50.0, np.nan, 50.01]), np.array([5.0, 5.0, np.nan])
    ids = write_metadata(tmp_path / "data", ra, dec)
    write_tiles(tmp_path / "tiles", ra[:1], dec[:1])
    assert run(tmp_path / "data", tmp_path / "tiles") == 0
    np.testing.assert_array_equal(read(tmp_path / "data")[0]["gdr3_source_id"], ids[:1])
    assert "without a position: 2" in capsys.readouterr().err


def test_unusable_arguments_are_usage_errors_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("UNWISE_DIR", raising=False)
    data, tiles = tmp_path / "data", tmp_path / "tiles"
    write_metadata(data, [1.0], [1.0])
    tiles.mkdir()
    (tmp_path / "list.txt").write_text("nothing")
    cases = [["--unwise-dir", tmp_path / "absent"], ["--unwise-dir", tiles], []]
    for options in cases:
        assert step.main(["--data-dir", str(data), *map(str, options)]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    write_tiles(tiles, np.array([1.0]), np.array([1.0]))
    assert run(data, tiles, "--tile-list", tmp_path / "list.txt") == 2
    assert run(tmp_path / "nowhere", tiles) == 2


def test_the_folder_can_be_given_by_the_environment(tmp_path, monkeypatch):
    write_metadata(tmp_path / "data", [1.0], [1.0])
    write_tiles(tmp_path / "tiles", np.array([1.0]), np.array([1.0]))
    monkeypatch.setenv("UNWISE_DIR", str(tmp_path / "tiles"))
    assert step.main(["--data-dir", str(tmp_path / "data")]) == 0
    assert read(tmp_path / "data")[1]["n_rows"] == 1


def test_a_missing_column_of_the_metadata_is_named(tmp_path, capsys):
    with ShardWriter(shard_path(tmp_path / "data", "metadata", FID), 1, "source_id", {}) as writer:
        writer.write_table({"source_id": np.array([5]), "ra": np.ones(1), "dec": np.ones(1)})
    write_tiles(tmp_path / "tiles", np.array([1.0]), np.array([1.0]))
    assert run(tmp_path / "data", tmp_path / "tiles") == 1
    assert "no dataset pmra" in capsys.readouterr().err


def test_a_compressed_tile_is_read_and_a_damaged_one_refused(tmp_path):
    rng = np.random.default_rng(1)
    ra, dec = 10 + rng.random(500) / 10, rng.random(500) / 10
    (name,) = write_tiles(tmp_path, ra, dec, qf=rng.random((500, 2)))
    plain = tmp_path / f"{name}.cat.fits"
    packed = gzip.compress(plain.read_bytes())
    path = tmp_path / f"{name}.cat.fits.gz"
    path.write_bytes(packed)
    expected = unwise_tiles.read_tile(plain, CATALOGUE).columns
    for column, values in unwise_tiles.read_tile(path, CATALOGUE).columns.items():
        np.testing.assert_array_equal(values, expected[column])
    for place in rng.integers(100, len(packed), 50).tolist():
        for damaged in (
            packed[:place],
            packed[:place] + bytes([packed[place] ^ 1]) + packed[place + 1 :],
        ):
            path.write_bytes(damaged)
            with pytest.raises(ShardError, match="truncated or damaged"):
                unwise_tiles.read_tile(path, CATALOGUE)
