"""Facts that step 7 protects: a star keeps its own spectrum, every label is accounted for."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.table import MaskedColumn, Table
from helpers import (
    FIDS,
    ID_STEP,
    assert_same_datasets,
    flip_bit,
    lay_out,
    make_sky,
    read_all,
    shuffled,
    truncate,
    write_kind,
)

import compile_training_data as step
import xp_utils
from pipeline import read, select

ROOT = Path(__file__).resolve().parent.parent


def make_labels(sky, seed=2) -> dict:
    """A label for every star, in random order."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(np.concatenate([t["xp"]["source_id"] for t in sky.values()]))
    n = len(ids)
    est = np.stack([rng.uniform(4, 8, n), rng.uniform(-2, 0.5, n), rng.uniform(1, 5, n)], axis=1)
    err = np.stack([rng.uniform(low, 2 * low, n) for low in (0.02, 0.03, 0.04)], axis=1)
    return {"gdr3_source_id": ids, "params_est": est, "params_err": err}


def write_labels(path, labels):
    Table(labels).write(path, path="training_params", overwrite=True)


def run(data_dir, *options, labels=None):
    """Exit status of the step over a data directory, by its command line."""
    if labels is not None:
        write_labels(data_dir / "labels.h5", labels)
    return step.main(
        ["--data-dir", str(data_dir), "--stellar-params", str(data_dir / "labels.h5"),
         "--output", str(data_dir / "training_data.h5"), *map(str, options)]
    )  # fmt: skip


def result(data_dir):
    return read_all(data_dir / "training_data.h5")


def stars_of(sky, kind):
    """One table of all shards."""
    return {
        name: np.concatenate([tables[kind][name] for tables in sky.values()])
        for name in next(iter(sky.values()))[kind]
    }


@pytest.fixture
def sky():
    return make_sky()


@pytest.fixture
def data_dir(tmp_path, sky):
    return lay_out(tmp_path, sky)


# ---- rows ------------------------------------------------------------------------------------


def own_row(table, source_id, id_column="gdr3_source_id"):
    """The row of one star as a table of one row; missing: NaN or empty."""
    index = read.join_rows([source_id], table[id_column])
    return read.take_rows(table, index)


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
        vectors = xp_utils.flux_vectors(
            own_row(all_of["xp"], source_id, "source_id"), own_row(all_of["tmass"], source_id),
            own_row(all_of["unwise"], source_id), meta, eigenvalues=True,
        )  # fmt: skip
        np.testing.assert_allclose(out["flux"][row], vectors.flux[0], rtol=2e-6)
        np.testing.assert_allclose(out["flux_err"][row], vectors.flux_err[0], rtol=1e-5)
        scale = np.abs(vectors.flux_sqrticov_tril[0]).max()
        np.testing.assert_allclose(
            out["flux_sqrticov_tril"][row], vectors.flux_sqrticov_tril[0], atol=1e-4 * scale
        )
        assert out["input_flags"][row] == vectors.input_flags[0]
        np.testing.assert_allclose(out["flux_cov_eival_max"][row], vectors.eival_max[0], rtol=1e-3)
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
        scale = np.abs(a[name]).max(initial=0) if a[name].dtype.kind == "f" else 0
        if name == "flux_sqrticov_tril":
            np.testing.assert_allclose(a[name], b[name], atol=1e-5 * scale)
        elif a[name].dtype.kind == "f":
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4, err_msg=name)
        else:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_file_says_units_wavelengths_origin_and_accounting(data_dir, sky):
    assert run(data_dir, labels=make_labels(sky)) == 0
    with read.ShardReader(data_dir / "training_data.h5") as reader:
        flux, attrs = reader.attributes("flux"), reader.attrs
        columns = set(reader.columns)
    np.testing.assert_array_equal(flux["sample_wavelengths"], xp_utils.SAMPLE_WAVELENGTHS)
    assert flux["units"] == xp_utils.FLUX_UNIT
    assert attrs["script"] == "compile_training_data"
    assert "labels.h5" in attrs["inputs"]
    assert "training stars" in attrs["accounting"]
    documented = set(step.__doc__.split())
    assert {"stellar_ext_source", "flux_sqrticov_tril", "input_flags"} <= columns & documented


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


# ---- labels ----------------------------------------------------------------------------------


def test_every_exception_is_counted_and_named_and_the_sum_is_right(tmp_path, sky, capsys):
    labels = make_labels(sky)
    first, second = sky[FIDS[0]], sky[FIDS[1]]
    ids = first["xp"]["source_id"]
    meta = first["metadata"]
    meta["parallax"][:5] = [np.nan, -1.0, 0.06, 0.05, 0.061]  # error 0.02: the last one passes
    meta["parallax_error"][:5] = np.float32(0.02)
    meta["parallax_error"][3] = 0.0
    meta["parallax"][2] = 3 * float(np.float32(0.02))  # exactly 3 sigma fails
    meta["fidelity_v2"][5:8] = [np.nan, 0.5, 0.51]
    for name in second["metadata"]:
        second["metadata"][name] = second["metadata"][name][1:]
    lost = second["xp"]["source_id"][-1]
    for name in second["xp"]:
        second["xp"][name] = second["xp"][name][:-1]
    where = {value: row for row, value in enumerate(labels["gdr3_source_id"])}
    labels["params_est"][where[ids[8]], 1] = np.nan
    labels["params_est"][where[ids[9]], 2] = np.inf
    again = {name: column[[where[ids[10]]] * 2] for name, column in labels.items()}
    again["params_est"] = again["params_est"] + 1
    again["params_err"] = again["params_err"] * [[2.0], [0.5]]
    nowhere = {name: column[:1] for name, column in labels.items()}
    nowhere["gdr3_source_id"] = np.array([786432 * ID_STEP])
    labels = {n: np.concatenate([labels[n], again[n], nowhere[n]]) for n in labels}
    assert run(lay_out(tmp_path, sky), labels=labels) == 0
    printed = capsys.readouterr().out
    expected = {
        "labels in": 39, step.NOT_FINITE: -2, step.REPEATED: -2, step.NO_SHARD: -1,
        step.NO_SPECTRUM: -1, step.NO_METADATA: -1, step.NO_PARALLAX: -2, step.POOR_PARALLAX: -2,
        step.NO_FIDELITY: -1, step.POOR_FIDELITY: -1, "training stars": 26,
    }  # fmt: skip
    found = dict(line.strip().rsplit(maxsplit=1) for line in printed.splitlines())
    assert {name.strip(): int(count) for name, count in found.items()} == expected
    out = result(tmp_path)
    assert len(out["flux"]) == 26
    assert {ids[4], ids[7]} <= set(out["gdr3_source_id"])
    log = (tmp_path / "training_data.log").read_text()
    for source_id in (lost, ids[0], ids[5], ids[8], 786432 * ID_STEP):
        assert str(source_id) in log
    kept = out["stellar_type"][out["gdr3_source_id"] == ids[10]]
    np.testing.assert_allclose(kept, again["params_est"][1:], rtol=1e-6)


def test_label_errors_that_are_not_positive_get_the_default_of_their_own_column(
    data_dir, sky, capsys
):
    labels = make_labels(sky)
    bad = [0.0, -1.0, np.nan, np.inf]
    for row, value in enumerate(bad):
        for column in range(3):
            labels["params_err"][3 * row + column, column] = value
    assert run(data_dir, labels=labels) == 0
    out = result(data_dir)
    row_of = read.join_rows(labels["gdr3_source_id"], out["gdr3_source_id"])
    expected = labels["params_err"].copy()
    for row in range(3 * len(bad)):
        expected[row, row % 3] = step.DEFAULT_LABEL_ERR[row % 3]
    np.testing.assert_allclose(out["stellar_type_err"][row_of], expected, rtol=1e-6)
    assert len(set(step.DEFAULT_LABEL_ERR)) > 1
    assert "4 errors of [Fe/H] not positive" in capsys.readouterr().err


def test_of_repeated_labels_the_smallest_relative_errors_win(data_dir, sky):
    labels = make_labels(sky)
    source_id = labels["gdr3_source_id"][0]
    default = step.DEFAULT_LABEL_ERR
    tries = default * np.array([[0.5, 0.5, 0.5], [0.1, 0.1, 0.9], [0.9, 0.4, 0.1]])  # 1.5 1.1 1.4
    repeated = {
        "gdr3_source_id": np.full(3, source_id),
        "params_est": np.arange(9.0).reshape(3, 3),
        "params_err": tries,
    }
    labels = {n: np.concatenate([repeated[n], labels[n][1:]]) for n in labels}
    assert run(data_dir, labels=labels) == 0
    out = result(data_dir)
    np.testing.assert_array_equal(
        out["stellar_type"][out["gdr3_source_id"] == source_id], [[3, 4, 5]]
    )


def test_labels_as_astropy_table_plain_datasets_or_masked_give_the_same(tmp_path, sky):
    labels = make_labels(sky)
    lay_out(tmp_path, sky)
    assert run(tmp_path, labels=labels) == 0
    reference = tmp_path / "reference.h5"
    (tmp_path / "training_data.h5").rename(reference)
    with h5py.File(tmp_path / "labels.h5", "w") as file:
        for name, column in labels.items():
            file[name] = column.astype(column.dtype.newbyteorder(">"))
    assert run(tmp_path) == 0
    assert_same_datasets(reference, tmp_path / "training_data.h5")
    masked = Table(labels)
    mask = np.zeros((len(masked), 3), bool)
    mask[0] = True
    masked["params_est"] = MaskedColumn(labels["params_est"], mask=mask)
    masked.write(tmp_path / "labels.h5", path="t", overwrite=True, serialize_meta=True)
    assert run(tmp_path) == 0
    assert labels["gdr3_source_id"][0] not in result(tmp_path)["gdr3_source_id"]
    assert len(result(tmp_path)["flux"]) == len(mask) - 1


def float_ids(labels):
    return labels | {"gdr3_source_id": labels["gdr3_source_id"].astype("f8")}


BAD_LABELS = {
    "float64": float_ids,
    "params_err is missing": lambda t: {k: v for k, v in t.items() if k != "params_err"},
    "gdr3_source_id is missing": lambda t: {k: v for k, v in t.items() if k[0] == "p"},
    r"shape (36, 2)": lambda t: t | {"params_est": t["params_est"][:, :2]},
}


@pytest.mark.parametrize("message", BAD_LABELS)
def test_label_tables_that_cannot_be_used_exit_2_with_one_clear_line(
    data_dir, sky, message, capsys
):
    assert run(data_dir, labels=BAD_LABELS[message](make_labels(sky))) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "labels.h5" in shown
    assert len(shown.splitlines()) == 1
    assert not (data_dir / "training_data.h5").exists()


@pytest.mark.parametrize("damage", ["absent", "empty", "truncated", "text"])
def test_label_files_that_cannot_be_read_exit_2(data_dir, sky, damage, capsys):
    path = data_dir / "labels.h5"
    write_labels(path, make_labels(sky))
    {
        "absent": path.unlink,
        "empty": lambda: os.truncate(path, 0),
        "truncated": lambda: truncate(path),
        "text": lambda: path.write_text("source_id,teff\n"),
    }[damage]()
    assert run(data_dir) == 2
    assert "labels.h5" in capsys.readouterr().err


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
    assert np.flatnonzero(flags & xp_utils.InputFlag.BP_MISSING).tolist() == [2]
    assert np.flatnonzero(flags & xp_utils.InputFlag.RP_MISSING).tolist() == [4, 5]
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


# ---- extinction ------------------------------------------------------------------------------


def extinction_of_one(ra, dec, plx, plx_err, bayestar, sigma, sfd, planck, bh):
    """The documented choice for one star, in plain Python."""
    latitude = SkyCoord(ra * units.deg, dec * units.deg).galactic.b.rad
    largest = plx + 2 * plx_err
    height_pc = abs(math.sin(latitude)) * 1000 / largest if largest > 0 else 0.0
    column_maps = {"sfd": sfd, "planck": planck, "bh": bh}
    known = [name for name in column_maps if math.isfinite(column_maps[name])]
    if math.isfinite(bayestar) and math.isfinite(sigma):
        ext, err, source = bayestar, sigma, b"bayestar"
    elif not known:
        return math.nan, math.inf, b"none"
    elif height_pc > 400:
        ext = column_maps[known[0]]
        err, source = 0.1 * abs(ext), known[0].encode()
    else:
        ext = column_maps[known[0]]
        err, source = abs(ext), known[0].encode() + b"_limit"
    return ext, math.sqrt(err**2 + 0.03**2 + (0.1 * ext) ** 2), source


def test_extinction_of_many_stars_equals_the_choice_made_for_each():
    rng = np.random.default_rng(8)
    n = 600
    meta = {
        "ra": rng.uniform(0, 360, n), "dec": rng.uniform(-90, 90, n),
        "parallax": np.where(rng.random(n) < 0.1, np.nan, rng.uniform(-0.5, 4, n)),
        "parallax_error": rng.uniform(0.01, 0.3, n),
    }  # fmt: skip
    gap = rng.random((5, n)) < 0.5
    maps = dict(
        zip(step.REDDENING_COLUMNS, np.where(gap, np.nan, rng.uniform(0, 2, (5, n))), strict=True)
    )
    found = step.initial_extinction(meta, maps)
    each = [extinction_of_one(*star) for star in zip(*meta.values(), *maps.values(), strict=True)]
    for column, expected in zip(found, zip(*each, strict=True), strict=True):
        if column.dtype.kind == "S":
            assert column.tolist() == list(expected)
            assert len(set(expected)) == 8
        else:
            np.testing.assert_allclose(column, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("plx", "plx_err", "certain"),
    [(2.49, 0, True), (2.51, 0, False), (1.5, 0.49, True), (1.5, 0.51, False), (-1, 0.1, False)],
)
def test_at_the_galactic_pole_the_height_is_the_distance_at_parallax_plus_2_sigma(
    plx, plx_err, certain
):
    pole = SkyCoord(l=0 * units.deg, b=90 * units.deg, frame="galactic").icrs
    found = step.beyond_dust(*(np.array([x]) for x in (pole.ra.deg, pole.dec.deg, plx, plx_err)))
    assert found.tolist() == [certain]


def test_extinction_in_the_file_is_that_of_the_stars_own_maps(data_dir, sky):
    assert run(data_dir, labels=make_labels(sky)) == 0
    out = result(data_dir)
    meta, maps = stars_of(sky, "metadata"), stars_of(sky, "reddening")
    for row, source_id in enumerate(out["gdr3_source_id"]):
        star = np.flatnonzero(meta["source_id"] == source_id)[0]
        place = [meta[k][star] for k in ("ra", "dec", "parallax", "parallax_error")]
        of_maps = [maps[k][star] if k in maps else math.nan for k in step.REDDENING_COLUMNS]
        ext, err, source = extinction_of_one(*map(float, [*place, *of_maps]))
        np.testing.assert_allclose(out["stellar_ext"][row], ext, rtol=1e-5)
        np.testing.assert_allclose(out["stellar_ext_err"][row], err, rtol=1e-5)
        assert out["stellar_ext_source"][row] == source
