"""Facts that step 7 protects: a star keeps its own spectrum, a bad shard is named."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import (
    FIDS,
    assert_same_datasets,
    flip_bit,
    lay_out,
    make_sky,
    shuffled,
    truncate,
    write_kind,
)
from shard_case import dead_pid
from step7_case import make_labels, result, run, stars_of, write_labels
from test_lease import write_lease

import compile_training_data as step
import xp_utils
from pipeline import joining, read, select
from pipeline.schema import FLUX_UNIT, Layout, load_release, resolved
from pipeline.schema.flags import InputFlag

ROOT = Path(__file__).resolve().parent.parent
BASIS = xp_utils.load_xp_basis(load_release())


@pytest.fixture
def sky():
    return make_sky()


@pytest.fixture
def data_dir(tmp_path, sky):
    return lay_out(tmp_path, sky)


# ---- rows ------------------------------------------------------------------------------------


def own_row(table, source_id, id_column="gdr3_source_id"):
    """The row of one star as a table of one row; missing: NaN or empty."""
    index = joining.join_rows([source_id], table[id_column])
    return joining.take_rows(table, index)


def test_every_star_has_its_own_flux_labels_and_metadata_whatever_the_order_of_rows(tmp_path, sky):
    rng = np.random.default_rng(5)
    labels = make_labels(sky)
    mixed = {f: {k: shuffled(t, rng) for k, t in tables.items()} for f, tables in sky.items()}
    assert run(lay_out(tmp_path, mixed), labels=labels) == 0
    out = result(tmp_path)
    all_of = {kind: stars_of(sky, kind) for kind in ("xp", "metadata", "tmass", "unwise")}
    assert np.array_equal(out["gdr3_source_id"], np.sort(labels["gdr3_source_id"]))
    for row, source_id in enumerate(out["gdr3_source_id"]):
        meta = own_row(all_of["metadata"], source_id, "source_id")
        surveys = {kind: own_row(all_of[kind], source_id) for kind in ("tmass", "unwise")}
        vectors = xp_utils.flux_vectors(
            own_row(all_of["xp"], source_id, "source_id"), surveys, meta, BASIS
        )
        np.testing.assert_array_equal(out["flux"][row], vectors.flux[0])
        np.testing.assert_array_equal(out["flux_err"][row], vectors.flux_err[0])
        assert out["input_flags"][row] == vectors.input_flags[0]
        label = np.flatnonzero(labels["gdr3_source_id"] == source_id)[0]
        np.testing.assert_allclose(out["stellar_type"][row], labels["params_est"][label], rtol=1e-6)
        np.testing.assert_allclose(
            out["stellar_type_err"][row], labels["params_err"][label], rtol=1e-6
        )
        for name in ("plx", "ra", "ruwe", "norm_dg", "phot_bp_mean_flux_error"):
            column = "parallax" if name == "plx" else name
            np.testing.assert_allclose(out[name][row], meta[column][0], rtol=1e-6)


def test_order_of_rows_and_labels_does_not_change_the_training_set(tmp_path, sky):
    rng = np.random.default_rng(6)
    labels = make_labels(sky)
    mixed = {f: {k: shuffled(t, rng) for k, t in tables.items()} for f, tables in sky.items()}
    assert run(lay_out(tmp_path / "a", sky), labels=labels) == 0
    assert run(lay_out(tmp_path / "b", mixed), labels=shuffled(labels, rng)) == 0
    a, b = result(tmp_path / "a"), result(tmp_path / "b")
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_file_says_units_wavelengths_origin_and_accounting(data_dir, sky):
    assert run(data_dir, labels=make_labels(sky)) == 0
    with read.ShardReader(data_dir / "training_data.h5") as reader:
        flux, attrs = reader.attributes("flux"), reader.attrs
        columns = set(reader.columns)
    np.testing.assert_array_equal(flux["sample_wavelengths"], Layout().wavelengths)
    assert flux["units"] == FLUX_UNIT
    assert attrs["script"] == "compile_training_data"
    assert attrs["release"] == "dr3"
    assert "GaiaXPy" in attrs["xp_basis"]
    assert "labels.h5" in attrs["inputs"]
    assert "training stars" in attrs["accounting"]
    assert columns == set(resolved("training"))


def test_a_star_takes_less_than_1_kB():
    rows = resolved("training").values()
    size = sum(np.dtype(data.dtype).itemsize * math.prod(data.shape) for data in rows)
    assert 500 < size < 1000


def test_help_lists_every_dataset_of_the_schema_and_how_labels_are_named(capsys):
    with pytest.raises(SystemExit) as stop:
        step.main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for name in resolved("training"):
        assert f"  {name} (N" in shown
    assert "NAME:UNIT:SCALE:TOLERANCE" in " ".join(shown.split())


@pytest.mark.parametrize("kind", ["tmass", "unwise", "reddening"])
def test_a_folder_left_out_is_said_and_leaves_its_bands_unused(tmp_path, sky, kind, capsys):
    lay_out(tmp_path, sky, without=[kind])
    assert run(tmp_path, labels=make_labels(sky)) == 2
    assert f"--without {kind}" in capsys.readouterr().err
    assert not (tmp_path / "training_data.h5").exists()
    assert run(tmp_path, "--without", kind) == 0
    assert f"without {kind}" in capsys.readouterr().err
    out = result(tmp_path)
    bands = {"tmass": slice(61, 64), "unwise": slice(64, 66), "reddening": slice(0, 0)}[kind]
    assert np.isinf(out["flux_err"][:, bands]).all()
    if kind == "reddening":
        assert np.isnan(out["stellar_ext"]).all()
        assert np.isinf(out["stellar_ext_err"]).all()
        assert set(out["stellar_ext_source"]) == {b"none"}


# ---- bad shards ------------------------------------------------------------------------------


def damage_shard(data_dir, sky, how):
    """Damage the shard of FIDS[1]; returns the name that the message must hold."""
    fid = FIDS[1]
    xp = select.shard_path(data_dir, "xp", fid)
    tables = sky[fid]
    if how == "truncated":
        truncate(xp)
    elif how == "bit flipped in coefficients":
        flip_bit(xp, "rp_coefficients")
    elif how == "empty":
        os.truncate(xp, 0)
    elif how == "metadata shard missing":
        xp = select.shard_path(data_dir, "metadata", fid)
        xp.unlink()
    elif how == "2MASS shard missing":
        xp = select.shard_path(data_dir, "tmass", fid)
        xp.unlink()
    elif how == "no correlations":
        table = {k: v for k, v in tables["xp"].items() if k != "bp_coefficient_correlations"}
        write_kind(data_dir, "xp", fid, table)
        return "bp_coefficient_correlations"
    elif how == "54 coefficients":
        table = tables["xp"] | {"bp_coefficients": tables["xp"]["bp_coefficients"][:, :54]}
        write_kind(data_dir, "xp", fid, table)
        return fid
    elif how == "repeated ids":
        ids = tables["xp"]["source_id"].copy()
        ids[3] = ids[4]
        write_kind(data_dir, "xp", fid, tables["xp"] | {"source_id": ids})
        return f"the first is {ids[3]}"
    elif how == "no reddening map":
        write_kind(data_dir, "reddening", fid, {"gdr3_source_id": tables["xp"]["source_id"]})
        return "E_mean_sfd"
    return xp.name


DAMAGES = (
    "truncated", "bit flipped in coefficients", "empty", "metadata shard missing",
    "2MASS shard missing", "no correlations", "54 coefficients", "repeated ids",
    "no reddening map",
)  # fmt: skip


@pytest.mark.parametrize("how", DAMAGES)
def test_a_bad_shard_is_named_and_nothing_is_written_unless_it_is_skipped(
    data_dir, sky, how, capsys
):
    message = damage_shard(data_dir, sky, how)
    assert run(data_dir, labels=make_labels(sky)) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert FIDS[1] in captured.err
    assert "Traceback" not in captured.err
    assert not list(data_dir.glob("*training_data.h5*"))
    assert run(data_dir, "--skip-bad-shards") == 0
    captured = capsys.readouterr()
    assert FIDS[1] in captured.err
    out = result(data_dir)
    expected = np.concatenate([sky[fid]["xp"]["source_id"] for fid in (FIDS[0], FIDS[2])])
    np.testing.assert_array_equal(out["gdr3_source_id"], expected)
    assert "training stars" in captured.out.splitlines()[-1]
    assert captured.out.split()[-1] == str(len(expected))
    with read.ShardReader(data_dir / "training_data.h5") as reader:
        assert reader.attrs["bad_shards"] == FIDS[1]


def test_shards_without_any_labelled_star_are_not_opened(data_dir, sky):
    labels = make_labels({fid: sky[fid] for fid in FIDS[:2]})
    damaged = select.shard_path(data_dir, "xp", FIDS[2])
    truncate(damaged)
    assert run(data_dir, labels=labels) == 0
    assert len(result(data_dir)["flux"]) == 24


def test_a_shard_without_any_spectrum_is_no_failure(data_dir, sky):
    labels = make_labels(sky)
    empty = {name: column[:0] for name, column in sky[FIDS[1]]["xp"].items()}
    write_kind(data_dir, "xp", FIDS[1], empty)
    assert run(data_dir, labels=labels) == 0
    assert len(result(data_dir)["flux"]) == 24


def test_overlapping_ranges_of_spectra_shards_are_refused(data_dir, sky, capsys):
    write_kind(data_dir, "xp", "000500-000700", sky[FIDS[0]]["xp"])
    assert run(data_dir, labels=make_labels(sky)) == 2
    assert "overlap" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_exits_1_with_a_clear_line(data_dir, sky, capsys):
    write_labels(data_dir / "labels.h5", make_labels(sky))
    (data_dir / "file").touch()
    output = data_dir / "file" / "t.h5"
    assert run(data_dir, "--output", output, "--log", data_dir / "t.log") == 1
    assert "t.h5: cannot be written" in capsys.readouterr().err


def test_missing_bands_are_flagged_and_counted_in_the_log(tmp_path, sky):
    sky[FIDS[0]]["xp"]["bp_coefficients"][2] = np.nan
    sky[FIDS[0]]["xp"]["rp_n_parameters"][4:6] = 0
    assert run(lay_out(tmp_path, sky), labels=make_labels(sky)) == 0
    out = result(tmp_path)
    flags = out["input_flags"]
    assert np.flatnonzero(flags & InputFlag.BP_MISSING).tolist() == [2]
    assert np.flatnonzero(flags & InputFlag.RP_MISSING).tolist() == [4, 5]
    assert np.isfinite(out["flux"]).all()
    log = (tmp_path / "training_data.log").read_text()
    assert "BP_MISSING 1, RP_MISSING 2" in log


def test_a_sky_with_only_a_whole_column_map_is_used(tmp_path, sky):
    for tables in sky.values():
        ids = tables["reddening"]["gdr3_source_id"]
        tables["reddening"] = {"gdr3_source_id": ids, "E_mean_bh": np.full(len(ids), 0.1, "f4")}
    assert run(lay_out(tmp_path, sky), labels=make_labels(sky)) == 0
    assert set(result(tmp_path)["stellar_ext_source"]) == {b"bh", b"bh_limit"}


def test_no_star_left_exits_1_without_output(tmp_path, sky, capsys):
    for tables in sky.values():
        tables["metadata"]["parallax"][:] = np.nan
    assert run(lay_out(tmp_path, sky), labels=make_labels(sky)) == 1
    assert "no label is left" in capsys.readouterr().err
    assert not (tmp_path / "training_data.h5").exists()


@pytest.mark.parametrize(
    "options", [["--without", "xp"], ["--data-dir", "nowhere"], ["--stellar-params"]]
)
def test_wrong_usage_exits_2(data_dir, sky, options):
    write_labels(data_dir / "labels.h5", make_labels(sky))
    command = [
        sys.executable, ROOT / "compile_training_data.py", "--data-dir", data_dir,
        "--stellar-params", data_dir / "labels.h5", "--output", data_dir / "t.h5", *options,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not (data_dir / "t.h5").exists()


# ---- running again ---------------------------------------------------------------------------


def test_a_complete_output_is_kept_until_an_input_changes_or_overwrite(data_dir, sky, capsys):
    labels = make_labels(sky)
    output = data_dir / "training_data.h5"

    def made():
        return output.stat().st_mtime_ns, output.stat().st_ino

    assert run(data_dir, labels=labels) == 0
    first = made()
    assert run(data_dir) == 0
    assert made() == first
    assert "already complete" in capsys.readouterr().err
    assert run(data_dir, "--overwrite") == 0
    assert made() != first
    sky[FIDS[2]]["metadata"]["parallax"][0] = np.nan
    write_kind(data_dir, "metadata", FIDS[2], sky[FIDS[2]]["metadata"])
    assert run(data_dir) == 0
    assert "stale" in capsys.readouterr().err
    assert len(result(data_dir)["flux"]) == 35


SLOW_STEP = """
import sys, time, compile_training_data as step, xp_utils
fast = xp_utils.flux_vectors
calls = []
def slow(*args, **kwargs):
    calls.append(1)
    if len(calls) == 2:
        print("halfway", flush=True)
        time.sleep(60)
    return fast(*args, **kwargs)
xp_utils.flux_vectors = slow
step.main(sys.argv[1:])
"""


def test_killed_in_the_middle_leaves_no_output_and_the_next_run_gives_the_same(data_dir, sky):
    labels = make_labels(sky)
    assert run(data_dir, labels=labels) == 0
    output, reference = data_dir / "training_data.h5", data_dir / "reference.h5"
    output.rename(reference)
    options = ["--data-dir", data_dir, "--stellar-params", data_dir / "labels.h5"]
    victim = subprocess.Popen(
        [sys.executable, "-c", SLOW_STEP, *options, "--output", output],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert victim.stdout.readline() == b"halfway\n"
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert not output.exists()
    assert len(list(data_dir.glob(".training_data.h5.*.part"))) == 1
    assert run(data_dir) == 0
    assert_same_datasets(output, reference)
    assert not list(data_dir.glob(".*.part"))


def test_an_output_that_another_process_makes_is_left_to_it(data_dir, sky, capsys):
    write_lease(data_dir / "training_data.h5", host="node7", machine="node7", pid=12)
    assert run(data_dir, labels=make_labels(sky)) == 3
    assert "left to process 12 on node7" in capsys.readouterr().err
    assert not (data_dir / "training_data.h5").exists()
    write_lease(data_dir / "training_data.h5", pid=dead_pid())
    assert run(data_dir) == 0
    assert not list(data_dir.glob(".*"))
