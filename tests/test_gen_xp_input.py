"""Step 9 by its command line, on small made-up data directories."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

import gen_xp_input_allsources as step
import xp_utils
from pipeline.read import ShardReader
from pipeline.select import shard_path
from pipeline.write import ShardWriter
from xp_utils import InputFlag

ROOT = Path(__file__).resolve().parents[1]
FIDS = ("000000-000009", "000010-000019", "000020-000029")
N_STARS = 40  # in each shard


def random_spectra(n, rng):
    """XP columns with weak random correlations, so that every star differs."""
    xp = {}
    for band in xp_utils.XP_BANDS:
        coefficients = rng.normal(size=(n, 55))
        coefficients[:, 0] += 30
        xp[f"{band}_coefficients"] = coefficients
        xp[f"{band}_coefficient_errors"] = rng.uniform(0.01, 0.02, (n, 55)).astype("f4")
        correlations = rng.uniform(-0.03, 0.03, (n, 1485))
        xp[f"{band}_coefficient_correlations"] = correlations.astype("f4")
        xp[f"{band}_n_parameters"] = np.full(n, 55, "i2")
        xp[f"{band}_standard_deviation"] = np.ones(n, "f4")
    return xp


def make_tables(fid, n, seed):
    """{kind: table} of one shard. 2MASS lacks every third star, unWISE every other."""
    rng = np.random.default_rng(seed)
    first = int(fid[:6]) << 43
    ids = np.sort(first + rng.choice(10**6, n, replace=False) * 128)
    metadata = {"source_id": ids, "ra": rng.uniform(0, 360, n), "dec": rng.uniform(-90, 90, n)}
    metadata |= {"parallax": rng.uniform(0.1, 5, n), "parallax_error": np.full(n, 0.1, "f4")}
    metadata |= {"norm_dg": np.where(np.arange(n) % 4, -20, np.nan), "ruwe": np.ones(n, "f4")}
    metadata |= {name: rng.uniform(1e3, 1e5, n) for name in step.PHOT_COLUMNS}
    near = np.arange(n) % 3 > 0
    tmass = {"gdr3_source_id": ids[near], "ph_qual": np.full(near.sum(), b"AAA")}
    for band in ("j", "h", "ks"):
        tmass[f"{band}_m"] = rng.uniform(9, 13, near.sum())
        tmass[f"{band}_msigcom"] = np.full(near.sum(), 0.03)
    wise = np.arange(n) % 2 == 0
    shape = (int(wise.sum()), 2)
    unwise = {"gdr3_source_id": ids[wise], "flux": rng.uniform(1e3, 1e5, shape)}
    unwise |= {"dflux": np.full(shape, 10.0), "qf": np.ones(shape), "fracflux": np.ones(shape)}
    unwise |= {"sep_arcsec": np.full(shape[0], 0.1)}
    xp = {"source_id": ids, **random_spectra(n, rng)}
    return {"xp": xp, "metadata": metadata, "tmass": tmass, "unwise": unwise}


def write_table(data_dir, kind, fid, table):
    """One shard; the spectra are written as a foreign file is, without our markers."""
    path = shard_path(data_dir, kind, fid)
    id_column = next(name for name in table if name.endswith("source_id"))
    with ShardWriter(path, len(table[id_column]), id_column, {}) as writer:
        writer.write_table(table)
    if kind == "xp":
        with h5py.File(path, "r+") as file:
            for name in list(file.attrs):
                del file.attrs[name]


def write_sky(data_dir, tables_of):
    for fid, tables in tables_of.items():
        for kind, table in tables.items():
            write_table(data_dir, kind, fid, table)


@pytest.fixture(scope="module")
def tables_of():
    return {fid: make_tables(fid, N_STARS, seed) for seed, fid in enumerate(FIDS)}


@pytest.fixture
def sky(tmp_path, tables_of):
    """A fresh data directory of three shards."""
    write_sky(tmp_path / "data", tables_of)
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch):
    for name in list(os.environ):
        if name.startswith("SLURM"):
            monkeypatch.delenv(name)


def run(data_dir, *options):
    return step.main(["--data-dir", str(data_dir), *options])


def output(data_dir, fid=FIDS[0]):
    return shard_path(data_dir, "opt_input", fid)


def datasets(path):
    with ShardReader(path) as reader:
        return {name: reader.read(name) for name in reader.columns}


def assert_same_datasets(left, right):
    left, right = datasets(left), datasets(right)
    assert set(left) == set(right)
    for name, array in left.items():
        np.testing.assert_array_equal(array, right[name], name)


def by_id(path):
    """The datasets of a file in the order of the ids."""
    table = datasets(path)
    order = np.argsort(table["gdr3_source_id"])
    return {name: array[order] for name, array in table.items()}


def shuffled(table, seed):
    id_column = next(name for name in table if name.endswith("source_id"))
    order = np.random.default_rng(seed).permutation(len(table[id_column]))
    return {name: array[order] for name, array in table.items()}


# --- what comes out -------------------------------------------------------------------------
def test_script_by_its_command_line_writes_every_star_in_order(sky, tables_of):
    command = [sys.executable, ROOT / "gen_xp_input_allsources.py", "--data-dir", sky]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "3 done, 0 already complete, 0 failed" in done.stderr
    assert f"stars: {3 * N_STARS}" in done.stderr
    for fid in FIDS:
        table = datasets(output(sky, fid))
        np.testing.assert_array_equal(table["gdr3_source_id"], tables_of[fid]["xp"]["source_id"])
        assert table["flux"].shape == (N_STARS, 66)
        assert table["flux_err"].shape == (N_STARS, 66)
        assert np.isfinite(table["flux"]).all()


def test_output_holds_what_inference_reads_and_no_more(sky):
    inference = pytest.importorskip("xp_opt_allsources")
    catalogue = pytest.importorskip("fitting.catalogue")
    assert run(sky, "--shards", FIDS[0]) == 0
    needed = {"gdr3_source_id", *inference.COPIED, *catalogue.OBSERVED}
    assert set(datasets(output(sky))) == needed


def test_covariance_without_whitening_is_still_flagged(sky, tables_of):
    xp = {k: v.copy() for k, v in tables_of[FIDS[0]]["xp"].items()}
    xp["rp_coefficient_correlations"][4] = 0.9 * (-1) ** np.arange(1485)  # of no covariance
    write_table(sky, "xp", FIDS[0], xp)
    assert run(sky, "--shards", FIDS[0]) == 0
    flags = datasets(output(sky))["input_flags"]
    troubled = (flags & (InputFlag.COV_FLOORED | InputFlag.COV_BAD)) > 0
    assert np.flatnonzero(troubled).tolist() == [4]


def test_columns_are_those_of_the_star(sky, tables_of):
    assert run(sky) == 0
    table, tables = datasets(output(sky)), tables_of[FIDS[0]]
    metadata = tables["metadata"]
    np.testing.assert_array_equal(table["ra"], metadata["ra"])
    np.testing.assert_array_equal(table["plx"], metadata["parallax"].astype("f4"))
    np.testing.assert_array_equal(table["norm_dg"], metadata["norm_dg"].astype("f4"))
    for name in step.PHOT_COLUMNS:
        np.testing.assert_array_equal(table[name], metadata[name].astype("f4"))
    np.testing.assert_allclose(
        table["flux"][:, :61], xp_utils.sample_xp(tables["xp"]).flux, rtol=1e-6
    )
    star = 4  # has 2MASS and unWISE
    place = np.searchsorted(tables["tmass"]["gdr3_source_id"], table["gdr3_source_id"][star])
    expected = xp_utils.vega_to_flux(tables["tmass"]["h_m"][place], xp_utils.PHOTOMETRIC_BANDS[1])
    assert table["flux"][star, 62] == pytest.approx(expected, rel=1e-6)
    assert np.isfinite(table["flux_err"][star]).all()
    star = 3  # has neither
    assert np.isinf(table["flux_err"][star, 61:]).all()
    assert table["input_flags"][star] == InputFlag.NO_2MASS | InputFlag.NO_WISE


def test_output_tells_units_wavelengths_flags_and_where_it_comes_from(sky):
    assert run(sky) == 0
    with ShardReader(output(sky)) as reader:
        np.testing.assert_array_equal(
            reader.attributes("flux")["sample_wavelengths"], xp_utils.SAMPLE_WAVELENGTHS
        )
        assert reader.attributes("flux")["units"] == xp_utils.FLUX_UNIT
        assert "COV_BAD" in reader.attributes("input_flags")["description"]
        assert reader.attrs["script"] == "gen_xp_input_allsources"
        for kind in ("xp", "metadata", "tmass", "unwise"):
            assert shard_path(sky, kind, FIDS[0]).name in reader.attrs["inputs"]
        assert "GaiaXPy" in reader.attrs["xp_basis"]


def test_order_of_rows_in_any_file_does_not_matter(sky, tables_of, tmp_path):
    assert run(sky) == 0
    mixed = tmp_path / "mixed"
    for seed, (kind, table) in enumerate(tables_of[FIDS[0]].items()):
        write_table(mixed, kind, FIDS[0], shuffled(table, seed))
    assert run(mixed) == 0
    ids = datasets(output(mixed))["gdr3_source_id"]
    assert not np.array_equal(ids, np.sort(ids))
    expected, found = by_id(output(sky)), by_id(output(mixed))
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, name)


def test_size_of_the_chunks_does_not_matter_and_bounds_what_is_held(sky, tmp_path, monkeypatch):
    assert run(sky) == 0
    other = tmp_path / "other"
    shutil.copytree(sky, other, ignore=shutil.ignore_patterns("xp_opt_input_files", "logs"))
    seen = []
    whole = xp_utils.flux_vectors

    def recorded(xp, *args):
        seen.append(len(xp["bp_coefficients"]))
        return whole(xp, *args)

    monkeypatch.setattr(step, "CHUNK_STARS", 7)
    monkeypatch.setattr(xp_utils, "flux_vectors", recorded)
    assert run(other) == 0
    assert max(seen) == 7
    assert sum(seen) == 3 * N_STARS
    assert_same_datasets(output(sky), output(other))


def test_stars_without_metadata_are_kept_flagged_and_counted(sky, tables_of, capsys):
    metadata = tables_of[FIDS[0]]["metadata"]
    keep = np.ones(N_STARS, bool)
    keep[[2, 5]] = False
    write_table(sky, "metadata", FIDS[0], {k: v[keep] for k, v in metadata.items()})
    assert run(sky, "--shards", FIDS[0]) == 0
    table = datasets(output(sky))
    flagged = (table["input_flags"] & InputFlag.NO_METADATA) > 0
    np.testing.assert_array_equal(flagged, ~keep)
    assert np.isnan(table["ra"][~keep]).all()
    assert np.isnan(table["plx"][~keep]).all()
    assert np.isfinite(table["flux_err"][~keep, :61]).all()
    assert "2 of 40 stars have no metadata row" in capsys.readouterr().err


def test_metadata_without_spectra_are_counted(sky, tables_of, capsys):
    xp = tables_of[FIDS[0]]["xp"]
    write_table(sky, "xp", FIDS[0], {name: array[3:] for name, array in xp.items()})
    assert run(sky, "--shards", FIDS[0]) == 0
    assert "metadata rows without a spectrum: 3" in capsys.readouterr().err
    assert len(datasets(output(sky))["gdr3_source_id"]) == N_STARS - 3


def test_parallax_without_an_error_is_no_parallax(sky, tables_of):
    metadata = {k: v.copy() for k, v in tables_of[FIDS[0]]["metadata"].items()}
    metadata["parallax"][0] = np.nan
    metadata["parallax_error"][1] = np.nan
    metadata["parallax_error"][2] = 0.0
    metadata["parallax"][3] = -0.4  # a good measurement
    write_table(sky, "metadata", FIDS[0], metadata)
    assert run(sky, "--shards", FIDS[0]) == 0
    table = datasets(output(sky))
    flagged = (table["input_flags"] & InputFlag.NO_PARALLAX) > 0
    assert np.flatnonzero(flagged).tolist() == [0, 1, 2]
    assert np.isnan(table["plx"][:3]).all()
    assert np.isnan(table["plx_err"][:3]).all()
    assert table["plx"][3] == np.float32(-0.4)


def test_damaged_spectra_of_a_star_are_flagged_not_lost(sky, tables_of):
    xp = {k: v.copy() for k, v in tables_of[FIDS[0]]["xp"].items()}
    xp["bp_n_parameters"][0] = 0
    xp["rp_coefficients"][1, 5] = np.nan
    write_table(sky, "xp", FIDS[0], xp)
    assert run(sky, "--shards", FIDS[0]) == 0
    flags = datasets(output(sky))["input_flags"]
    assert flags[0] & InputFlag.BP_MISSING
    assert flags[1] & InputFlag.RP_MISSING
    assert len(flags) == N_STARS


def test_shard_without_stars_gives_a_whole_output_without_stars(sky, tables_of):
    for kind, table in tables_of[FIDS[0]].items():
        write_table(sky, kind, FIDS[0], {name: array[:0] for name, array in table.items()})
    assert run(sky) == 0
    table = datasets(output(sky))
    assert table["flux"].shape == (0, 66)
    assert set(table) == set(datasets(output(sky, FIDS[1])))


def test_vector_is_the_one_of_the_training_set(sky, tables_of, tmp_path):
    """Model and inference must see the same numbers for the same star."""
    training = pytest.importorskip("compile_training_data")
    ids = tables_of[FIDS[1]]["xp"]["source_id"][::5]
    for fid in FIDS:
        metadata = tables_of[fid]["metadata"] | {"fidelity_v2": np.ones(N_STARS, "f4")}
        metadata["parallax"] = np.maximum(metadata["parallax"], 1.0)
        write_table(sky, "metadata", fid, metadata)
    labels = {
        "gdr3_source_id": ids,
        "params_est": np.tile([5.0, 0.0, 4.5], (len(ids), 1)),
        "params_err": np.full((len(ids), 3), 0.1),
    }
    with ShardWriter(tmp_path / "labels.h5", len(ids), "gdr3_source_id", {}) as writer:
        writer.write_table(labels)
    made = tmp_path / "training_data.h5"
    command = ["--data-dir", sky, "--stellar-params", tmp_path / "labels.h5", "--output", made]
    status = training.main([str(word) for word in [*command, "--without", "reddening"]])
    assert status == 0
    assert run(sky) == 0
    trained, inferred = datasets(made), datasets(output(sky, FIDS[1]))
    rows = np.searchsorted(inferred["gdr3_source_id"], trained["gdr3_source_id"])
    assert trained["gdr3_source_id"].tolist() == ids.tolist()
    for name in step.VECTOR_COLUMNS:
        np.testing.assert_array_equal(trained[name], inferred[name][rows], name)


# --- surveys left out -----------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["tmass", "unwise"])
def test_missing_folder_needs_without(sky, kind, capsys):
    shutil.rmtree(shard_path(sky, kind, FIDS[0]).parent)
    assert run(sky) == 2
    assert f"--without {kind}" in capsys.readouterr().err
    assert not output(sky).exists()
    assert run(sky, "--without", kind) == 0
    table = datasets(output(sky))
    bands = slice(61, 64) if kind == "tmass" else slice(64, 66)
    flag = InputFlag.NO_2MASS if kind == "tmass" else InputFlag.NO_WISE
    assert np.isinf(table["flux_err"][:, bands]).all()
    assert ((table["input_flags"] & flag) > 0).all()
    with ShardReader(output(sky)) as reader:
        assert reader.attrs["without"] == kind


def test_survey_added_later_makes_the_output_stale(sky, capsys):
    assert run(sky, "--without", "tmass", "unwise") == 0
    assert run(sky) == 0
    assert "stale" in capsys.readouterr().err
    assert np.isfinite(datasets(output(sky))["flux_err"]).all(axis=1).any()


def test_missing_shard_of_a_used_survey_is_an_error(sky, capsys):
    path = shard_path(sky, "tmass", FIDS[1])
    path.unlink()
    assert run(sky) == 1
    assert path.name in capsys.readouterr().err
    assert [output(sky, fid).exists() for fid in FIDS] == [True, False, True]


def test_missing_metadata_cannot_be_left_out(sky, capsys):
    shutil.rmtree(sky / "xp_metadata")
    assert run(sky) == 2
    assert "xp_metadata" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        run(sky, "--without", "metadata")
    assert stop.value.code == 2


def test_missing_data_folder_is_wrong_usage(tmp_path, capsys):
    assert run(tmp_path / "nowhere") == 2
    message = capsys.readouterr().err
    assert "nowhere" in message
    assert "Traceback" not in message


# --- damaged files --------------------------------------------------------------------------
def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def flip_bit(path):
    """One bit in the middle of the largest dataset's stored bytes."""
    with h5py.File(path) as file:
        place = file["bp_coefficient_correlations"].id.get_chunk_info(0)
    with open(path, "r+b") as raw:
        raw.seek(place.byte_offset + place.size // 2)
        byte = raw.read(1)
        raw.seek(-1, os.SEEK_CUR)
        raw.write(bytes([byte[0] ^ 8]))


def not_hdf5(path):
    path.write_text("<html>Service unavailable</html>")


def drop_dataset(path):
    with h5py.File(path, "r+") as file:
        del file["rp_coefficient_errors"]


def short_dataset(path):
    with h5py.File(path, "r+") as file:
        del file["rp_n_parameters"]
        file["rp_n_parameters"] = np.full(N_STARS - 1, 55)


def narrow_dataset(path):
    with h5py.File(path, "r+") as file:
        del file["rp_coefficients"]
        file["rp_coefficients"] = np.ones((N_STARS, 40))


def repeat_id(path):
    with h5py.File(path, "r+") as file:
        file["source_id"][3] = file["source_id"][7]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, "XpContinuousMeanSpectrum_000010-000019.h5"),
        (empty, "empty file (0 bytes)"),
        (flip_bit, "dataset bp_coefficient_correlations"),
        (not_hdf5, "not a readable HDF5 file"),
        (drop_dataset, "no dataset rp_coefficient_errors; found: bp_coefficient_correlations"),
        (short_dataset, "rp_n_parameters is (39,)"),
        (narrow_dataset, "rp_coefficients: shape (40, 40), expected (N, 55)"),
        (repeat_id, "1 repeated ids"),
    ],
)
def test_bad_spectra_are_named_and_the_other_shards_done(sky, damage, words, capsys):
    damage(shard_path(sky, "xp", FIDS[1]))
    assert run(sky) == 1
    message = capsys.readouterr().err
    assert FIDS[1] in message
    assert words in message
    assert "Traceback" not in message
    assert "2 done, 0 already complete, 1 failed" in message
    assert [output(sky, fid).exists() for fid in FIDS] == [True, False, True]
    folder = output(sky).parent
    assert len(list(folder.iterdir())) == 2  # no half-written file either


@pytest.mark.parametrize("kind", ["metadata", "tmass", "unwise"])
def test_other_damaged_inputs_are_named_too(sky, kind, capsys):
    path = shard_path(sky, kind, FIDS[2])
    truncate(path)
    assert run(sky) == 1
    assert path.name in capsys.readouterr().err
    assert [output(sky, fid).exists() for fid in FIDS] == [True, True, False]


@pytest.mark.parametrize("kind", ["metadata", "tmass", "unwise"])
def test_repeated_ids_in_a_joined_table_are_refused(sky, tables_of, kind, capsys):
    table = tables_of[FIDS[0]][kind]
    twice = {name: np.concatenate([array, array[:2]]) for name, array in table.items()}
    write_table(sky, kind, FIDS[0], twice)
    assert run(sky, "--shards", FIDS[0]) == 1
    assert "2 repeated ids" in capsys.readouterr().err


# --- running again --------------------------------------------------------------------------
KILLER = """
import os, signal, sys
import gen_xp_input_allsources as step
step.CHUNK_STARS = 16
whole, calls = step.input_rows, []
def input_rows(*args):
    calls.append(1)
    if len(calls) == 5:  # in the middle of the second shard
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*args)
step.input_rows = input_rows
step.main(sys.argv[1:])
"""


def test_killed_run_finished_by_running_again_gives_the_same_datasets(sky, tmp_path):
    whole = tmp_path / "whole"
    shutil.copytree(sky, whole)
    assert run(whole) == 0
    killed = subprocess.run(
        [sys.executable, "-c", KILLER, "--data-dir", sky],
        cwd=ROOT,
        check=False,
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL
    assert [output(sky, fid).exists() for fid in FIDS] == [True, False, False]
    first = output(sky).stat().st_mtime_ns
    assert run(sky) == 0
    assert output(sky).stat().st_mtime_ns == first  # the finished shard was skipped
    for fid in FIDS:
        assert_same_datasets(output(sky, fid), output(whole, fid))
    assert len(list(output(sky).parent.iterdir())) == 3


def test_finished_shards_are_skipped_unless_overwrite(sky, capsys):
    assert run(sky) == 0
    before = output(sky).stat().st_mtime_ns
    assert run(sky) == 0
    assert "0 done, 3 already complete" in capsys.readouterr().err
    assert output(sky).stat().st_mtime_ns == before
    assert run(sky, "--overwrite") == 0
    assert output(sky).stat().st_mtime_ns > before


def test_parts_together_equal_the_whole(sky, tmp_path):
    parts = tmp_path / "parts"
    shutil.copytree(sky, parts)
    assert run(sky) == 0
    for part in ("0", "1"):
        assert run(parts, "--partition", "2", part) == 0
    for fid in FIDS:
        assert_same_datasets(output(sky, fid), output(parts, fid))


def test_log_tells_what_was_done(sky):
    assert run(sky, "--without", "unwise") == 0
    log = (sky / "logs" / "gen_xp_input_allsources.log").read_text()
    assert "without unwise" in log
    assert FIDS[2] in log
    assert "stars 40" in log
