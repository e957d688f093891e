"""Step 9 by its command line, on small made-up data directories."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_same_datasets, shuffled
from step9_case import (
    FIDS,
    N_STARS,
    PHOT_COLUMNS,
    all_tables,
    by_id,
    datasets,
    output,
    run,
    write_sky,
    write_table,
)

import compile_training_data
import gen_xp_input_allsources as step
import xp_utils
from pipeline.photometry import vega_to_flux
from pipeline.read import ShardReader
from pipeline.schema import BANDS, FLUX_UNIT, Layout, resolved
from pipeline.schema.flags import InputFlag
from pipeline.select import shard_path
from pipeline.write import ShardWriter

ROOT = Path(__file__).resolve().parents[1]
LAYOUT = Layout()
BASIS = xp_utils.load_xp_basis(LAYOUT.release)


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch):
    for name in list(os.environ):
        if name.startswith("SLURM"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def tables_of():
    return all_tables()


@pytest.fixture
def sky(tmp_path, tables_of):
    """A fresh data directory of three shards."""
    return write_sky(tmp_path / "data", tables_of)


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


def test_output_holds_the_columns_of_the_schema_and_no_more(sky):
    assert run(sky, "--shards", FIDS[0]) == 0
    declared = resolved("opt_input", LAYOUT)
    with ShardReader(output(sky)) as reader:
        assert set(reader.columns) == set(declared)
        reader.check(declared)


def test_help_lists_every_dataset_of_the_schema(capsys):
    with pytest.raises(SystemExit) as stop:
        run("anywhere", "--help")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for name, data in resolved("opt_input", LAYOUT).items():
        assert f"  {name} (N" in shown
        assert data.attributes["description"] in shown


def test_impossible_correlations_are_flagged(sky, tables_of):
    xp = {k: v.copy() for k, v in tables_of[FIDS[0]]["xp"].items()}
    xp["rp_coefficient_correlations"][4] = 1.5 * (-1) ** np.arange(1485)
    write_table(sky, "xp", FIDS[0], xp)
    assert run(sky, "--shards", FIDS[0]) == 0
    flags = datasets(output(sky))["input_flags"]
    assert np.flatnonzero(flags & InputFlag.COV_BAD).tolist() == [4]


def test_columns_are_those_of_the_star(sky, tables_of):
    assert run(sky) == 0
    table, tables = datasets(output(sky)), tables_of[FIDS[0]]
    metadata = tables["metadata"]
    np.testing.assert_array_equal(table["ra"], metadata["ra"])
    np.testing.assert_array_equal(table["plx"], metadata["parallax"].astype("f4"))
    for name in ("norm_dg", "fidelity_v2"):
        np.testing.assert_array_equal(table[name], metadata[name].astype("f4"))
    for name in PHOT_COLUMNS:
        np.testing.assert_array_equal(table[name], metadata[name].astype("f4"))
    np.testing.assert_allclose(
        table["flux"][:, :61], xp_utils.sample_xp(tables["xp"], BASIS).flux, rtol=1e-6
    )
    star = 4  # has 2MASS and unWISE
    place = np.searchsorted(tables["tmass"]["gdr3_source_id"], table["gdr3_source_id"][star])
    expected = vega_to_flux(tables["tmass"]["h_m"][place], BANDS[1])
    assert table["flux"][star, 62] == pytest.approx(expected, rel=1e-6)
    assert np.isfinite(table["flux_err"][star]).all()
    star = 3  # has neither
    assert np.isinf(table["flux_err"][star, 61:]).all()
    assert table["input_flags"][star] == InputFlag.NO_2MASS | InputFlag.NO_WISE


def test_output_tells_units_wavelengths_flags_and_where_it_comes_from(sky):
    assert run(sky) == 0
    with ShardReader(output(sky)) as reader:
        flux = reader.attributes("flux")
        np.testing.assert_array_equal(flux["sample_wavelengths"], LAYOUT.wavelengths)
        fine = reader.attributes("xp_fine")["fine_wavelengths"]
        np.testing.assert_array_equal(fine, LAYOUT.release.spectra.fine_wavelengths)
        assert flux["channels"].tolist() == ["xp"] * 61 + ["J", "H", "Ks", "W1", "W2"]
        assert flux["units"] == FLUX_UNIT
        assert "COV_BAD" in reader.attributes("input_flags")["description"]
        assert reader.attrs["script"] == "gen_xp_input_allsources"
        assert reader.attrs["release"] == "dr3"
        for kind in ("xp", "metadata", "tmass", "unwise"):
            assert shard_path(sky, kind, FIDS[0]).name in reader.attrs["inputs"]
        assert "GaiaXPy" in reader.attrs["xp_basis"]


def test_order_of_rows_in_any_file_does_not_matter(sky, tables_of, tmp_path):
    assert run(sky) == 0
    mixed = tmp_path / "mixed"
    for seed, (kind, table) in enumerate(tables_of[FIDS[0]].items()):
        write_table(mixed, kind, FIDS[0], shuffled(table, np.random.default_rng(seed)))
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

    def recorded(xp, *args, **options):
        seen.append(len(xp["bp_coefficients"]))
        return whole(xp, *args, **options)

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
    status = compile_training_data.main(
        [str(word) for word in [*command, "--without", "reddening"]]
    )
    assert status == 0
    assert run(sky) == 0
    trained, inferred = datasets(made), datasets(output(sky, FIDS[1]))
    rows = np.searchsorted(inferred["gdr3_source_id"], trained["gdr3_source_id"])
    assert trained["gdr3_source_id"].tolist() == ids.tolist()
    for name in inferred:
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


def test_metadata_that_lack_a_column_are_used_and_that_is_said(sky, tables_of, capsys):
    metadata = dict(tables_of[FIDS[0]]["metadata"])
    del metadata["norm_dg"]
    write_table(sky, "metadata", FIDS[0], metadata)
    assert run(sky, "--shards", FIDS[0]) == 0
    assert "the metadata have no norm_dg" in capsys.readouterr().err
    table = datasets(output(sky))
    assert np.isnan(table["norm_dg"]).all()
    assert np.isfinite(table["flux_err"][1, 61:64]).all()
    with ShardReader(output(sky)) as reader:
        assert reader.attrs["missing_metadata"] == "norm_dg"
