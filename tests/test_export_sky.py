"""The catalogue by place on the sky: a partition of the sphere, sorted files, a HATS collection."""

import importlib.util
import itertools

import healpy
import numpy as np
import pyarrow.parquet
import pytest
from export_case import parts_of, stars, write_catalogue, write_shard
from helpers import FIDS
from test_export_folder import run

from pipeline.export import shards, sky
from pipeline.export.folder import read_manifest
from pipeline.export.hats import _cell
from pipeline.schema import load_release

N, MOST = 300, 28
DR3 = load_release()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder of an export in files of at most MOST rows, columns of the shards)."""
    folder = tmp_path_factory.mktemp("sky")
    table = write_catalogue(folder / "data", N)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sky, "CHUNK_ROWS", 41)
        patch.setattr(sky, "GROUP_ROWS", 7)
        assert run(folder / "data", "parquet", folder / "out", "--max-rows", MOST) == 0
    return folder / "out", table


def files(out):
    return [out / entry["name"] for entry in read_manifest(out)["files"]]


# ---- the partition ---------------------------------------------------------------------------


def histogram(**places):
    out = np.zeros(12 * 4**sky.PLAN_ORDER, np.int64)
    for pixel, n in places.items():
        out[int(pixel[1:])] = n
    return out


def test_a_partition_holds_every_star_once_in_the_largest_pixels_that_do():
    rng = np.random.default_rng(0)
    counts = np.zeros(12 * 4**sky.PLAN_ORDER, np.int64)
    np.add.at(counts, (rng.random(20_000) ** 3 * len(counts)).astype(int), 1)
    found, total = sky.partition(counts, 300), 0
    ends = []
    for order, pixel in found:
        shift = 2 * (sky.PLAN_ORDER - order)
        first, after = pixel << shift, (pixel + 1) << shift
        n = counts[first:after].sum()
        total += n
        assert 0 < n <= 300
        if order:
            parent = pixel >> 2 << (shift + 2)
            assert counts[parent : parent + (4 << shift)].sum() > 300
        ends.append((first, after))
    assert total == 20_000
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(ends))


def test_a_crowded_pixel_of_the_last_order_is_not_divided():
    found = sky.partition(histogram(p5=1000, p700000=3), 10)
    assert (sky.PLAN_ORDER, 5) in found
    assert len(found) == 2
    assert sky.partition(histogram(), 10) == []


# ---- the files -------------------------------------------------------------------------------


def test_files_are_small_enough_sorted_and_of_their_pixels(exported):
    out, _ = exported
    orders = set()
    for path in files(out):
        table, (order, pixel) = pyarrow.parquet.read_table(path), _cell(path.relative_to(out))
        assert table.num_rows <= MOST
        found = table["_healpix_29"].to_numpy()
        assert found.dtype == np.int64
        assert (np.diff(found) >= 0).all()
        assert (found >> (2 * (29 - order)) == pixel).all()
        ra, dec = table["ra"].to_numpy(), table["dec"].to_numpy()
        np.testing.assert_array_equal(found, healpy.ang2pix(2**29, ra, dec, nest=True, lonlat=True))
        orders.add(order)
    assert len(orders) > 1


def test_numbers_are_those_of_the_shards(exported):
    out, expected = exported
    table = pyarrow.concat_tables([pyarrow.parquet.read_table(path) for path in files(out)])
    order = np.argsort(table["gdr3_source_id"].to_numpy())
    for name, values in (
        ("gdr3_source_id", expected["gdr3_source_id"]),
        ("teff", expected["stellar_params_est"][:, 0]),
        ("parallax_err", expected["stellar_params_err"][:, 5]),
        ("second_teff", expected["second_params_est"][:, 0]),
        ("quality_flags", expected["quality_flags"]),
    ):
        np.testing.assert_array_equal(table[name].to_numpy()[order], values, err_msg=name)


def test_chosen_columns_come_with_pixel_id_and_position(tmp_path):
    write_catalogue(tmp_path / "data", 60)
    assert run(tmp_path / "data", "parquet", tmp_path / "out", "--columns", "teff", "dec") == 0
    names = pyarrow.parquet.read_schema(files(tmp_path / "out")[0]).names
    assert names == ["_healpix_29", "gdr3_source_id", "ra", "dec", "teff"]


def test_stars_whose_ids_say_another_pixel_are_where_they_are(tmp_path):
    """Ids keep the pixel of an old position: here some are of another part of the sky."""
    rows = stars(300, seed=3)
    rows["gdr3_source_id"][::7] = np.roll(rows["gdr3_source_id"][::7], 1)
    for fid, part in parts_of(rows, "gdr3_source_id").items():
        write_shard(tmp_path / "data", fid, part)
    assert run(tmp_path / "data", "parquet", tmp_path / "out", "--max-rows", 40) == 0
    at = dict(zip(rows["gdr3_source_id"].tolist(), rows["ra"].tolist(), strict=True))
    n = 0
    for path in files(tmp_path / "out"):
        table, (order, pixel) = pyarrow.parquet.read_table(path), _cell(path)
        assert (table["_healpix_29"].to_numpy() >> (2 * (29 - order)) == pixel).all()
        ids, ra = (table[name].to_pylist() for name in ("gdr3_source_id", "ra"))
        assert [at[one] for one in ids] == ra
        n += len(ids)
    assert n == 300


def test_a_star_without_position_is_in_the_pixel_of_its_id():
    ids = np.array([3 << 43, (5 << 43) + 9], np.int64)
    found = sky.healpix_29(np.array([np.nan, 10.0]), np.array([np.nan, 99.0]), ids, DR3)
    np.testing.assert_array_equal(found >> 42, [3, 5])


def test_a_star_in_two_shards_is_refused(tmp_path, capsys):
    rows = stars(50)
    write_shard(tmp_path / "data", FIDS[0], rows)
    write_shard(tmp_path / "data", FIDS[1], {name: v[10:11] for name, v in rows.items()})
    assert run(tmp_path / "data", "parquet", tmp_path / "out") == 1
    assert str(rows["gdr3_source_id"][10]) in capsys.readouterr().err


def test_shards_that_change_while_they_are_read_are_noticed(tmp_path, monkeypatch, capsys):
    table = write_catalogue(tmp_path / "data", 100)
    part = parts_of(table, "gdr3_source_id")[FIDS[2]]
    whole = sky.cells

    def meanwhile(*given):
        write_shard(tmp_path / "data", FIDS[2], {name: v[:-1] for name, v in part.items()})
        return whole(*given)

    monkeypatch.setattr(sky, "cells", meanwhile)
    assert run(tmp_path / "data", "parquet", tmp_path / "out") == 1
    assert "changed while they were exported" in capsys.readouterr().err


def test_shards_in_no_order_give_the_same_files(exported, tmp_path):
    _, table = exported
    mixed = np.random.default_rng(0).permutation(N)
    for fid, part in parts_of({k: v[mixed] for k, v in table.items()}, "gdr3_source_id").items():
        write_shard(tmp_path / "data", fid, part)
    assert run(tmp_path / "data", "parquet", tmp_path / "out", "--max-rows", MOST) == 0
    assert shards.CHUNK_ROWS > N
    for one, other in zip(files(exported[0]), files(tmp_path / "out"), strict=True):
        assert one.relative_to(exported[0]) == other.relative_to(tmp_path / "out")
        a, b = (pyarrow.parquet.read_table(path) for path in (one, other))
        assert a.equals(b)


# ---- HATS ------------------------------------------------------------------------------------


def properties(path):
    return dict(line.split("=", 1) for line in path.read_text().splitlines())


def test_properties_and_partitions_are_those_of_the_files(exported):
    out, _ = exported
    collection = properties(out / "collection.properties")
    catalogue = out / collection["hats_primary_table_url"]
    said = properties(catalogue / "hats.properties")
    assert said["hats_nrows"] == str(N)
    assert (said["hats_col_ra"], said["hats_col_healpix"]) == ("ra", "_healpix_29")
    lines = (catalogue / "partition_info.csv").read_text().splitlines()
    assert lines[0] == "Norder,Npix"
    found = {tuple(map(int, line.split(","))) for line in lines[1:]}
    assert found == {_cell(path) for path in files(out)}
    assert said["hats_order"] == str(max(order for order, _ in found))
    assert float(said["moc_sky_fraction"]) == pytest.approx(1.0, abs=0.2)


def test_schema_and_footers_are_together_in_the_dataset(exported):
    out, _ = exported
    base = out / "catalogue/dataset"
    schema = pyarrow.parquet.read_schema(base / "_common_metadata")
    assert schema.equals(pyarrow.parquet.read_schema(files(out)[0]), check_metadata=True)
    footer = pyarrow.parquet.read_metadata(base / "_metadata")
    assert footer.num_rows == N
    named = {footer.row_group(k).column(0).file_path for k in range(footer.num_row_groups)}
    assert named == {str(path.relative_to(base)) for path in files(out)}


@pytest.mark.skipif(importlib.util.find_spec("hats") is None, reason="the package hats is absent")
def test_the_hats_package_reads_it_and_finds_it_valid(exported):
    import hats
    from hats.io.validation import is_valid_catalog

    assert is_valid_catalog(str(exported[0]), strict=True)
    catalogue = hats.read_hats(exported[0]).main_catalog
    assert catalogue.catalog_info.total_rows == N
    assert len(catalogue.get_healpix_pixels()) == len(files(exported[0]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(importlib.util.find_spec("lsdb") is None, reason="the package lsdb is absent")
def test_lsdb_opens_it_cuts_searches_a_cone_and_joins_by_place(exported):
    import dask
    import lsdb

    out, table = exported
    ra, dec = np.deg2rad(table["ra"]), np.deg2rad(table["dec"])
    stars = healpy.ang2vec(table["ra"], table["dec"], lonlat=True)
    near = np.arccos(np.clip(stars @ stars[7], -1, 1)) < np.deg2rad(20)
    warm = table["stellar_params_est"][:, 0] > 5
    with dask.config.set(scheduler="synchronous"):
        cone = lsdb.open_catalog(str(out)).cone_search(
            np.rad2deg(ra[7]), np.rad2deg(dec[7]), radius_arcsec=20 * 3600
        )
        found = cone.query("teff > 5").compute()
        ids = table["gdr3_source_id"]
        assert sorted(found["gdr3_source_id"]) == sorted(ids[near & warm])
        both = lsdb.open_catalog(str(out)).crossmatch(cone, radius_arcsec=0.01, n_neighbors=1)
        both = both.compute()
    names = [name for name in both.columns if name.startswith("gdr3_source_id")]
    assert sorted(both[names[0]]) == sorted(ids[near])
    assert (both[names[0]] == both[names[1]]).all()
