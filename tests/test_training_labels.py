"""Labels of the training set: read, named, cleaned, and accounted for to the last."""

import os

import h5py
import numpy as np
import pytest
from astropy.table import MaskedColumn, Table
from helpers import FIDS, ID_STEP, assert_same_datasets, lay_out, make_sky, truncate
from step7_case import make_labels, result, run, write_labels

import compile_training_data as step
from pipeline import joining, read, training_labels
from pipeline.schema import DEFAULT_LABELS, KNOWN_LABELS, LabelSet

DEFAULT_ERR = DEFAULT_LABELS.array("default_err")


@pytest.fixture
def sky():
    return make_sky()


@pytest.fixture
def data_dir(tmp_path, sky):
    return lay_out(tmp_path, sky)


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
        "labels in": 39, training_labels.NOT_FINITE: -2, training_labels.REPEATED: -2,
        training_labels.NO_SHARD: -1,
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
    row_of = joining.join_rows(labels["gdr3_source_id"], out["gdr3_source_id"])
    expected = labels["params_err"].copy()
    for row in range(3 * len(bad)):
        expected[row, row % 3] = DEFAULT_ERR[row % 3]
    np.testing.assert_allclose(out["stellar_type_err"][row_of], expected, rtol=1e-6)
    assert len(set(DEFAULT_ERR)) > 1
    assert "4 errors of [Fe/H] not positive" in capsys.readouterr().err


def test_of_repeated_labels_the_smallest_relative_errors_win(data_dir, sky):
    labels = make_labels(sky)
    source_id = labels["gdr3_source_id"][0]
    default = DEFAULT_ERR
    tries = default * np.array([[0.5, 0.5, 0.5], [0.1, 0.1, 0.9], [0.9, 0.4, 0.1]])  # 1.5 1.1 1.4
    repeated = {
        "gdr3_source_id": np.full(3, source_id),
        "params_est": np.array([[4, -1, 1], [5, -0.5, 2], [6, 0, 3.0]]),
        "params_err": tries,
    }
    labels = {n: np.concatenate([repeated[n], labels[n][1:]]) for n in labels}
    assert run(data_dir, labels=labels) == 0
    out = result(data_dir)
    np.testing.assert_array_equal(
        out["stellar_type"][out["gdr3_source_id"] == source_id], [[5, -0.5, 2]]
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
    "params_err has shape (36, 3), params_est (36, 2)": lambda t: (
        t | {"params_est": t["params_est"][:, :2]}
    ),
    "params_est is float64, shape (36,)": lambda t: t | {"params_est": t["params_est"][:, 0]},
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


# ---- what the labels are ---------------------------------------------------------------------


def four(labels):
    """The labels with [alpha/M] as a fourth."""
    n = len(labels["params_est"])
    alpha = np.linspace(-0.1, 0.4, n)[:, None]
    return labels | {
        "params_est": np.hstack([labels["params_est"], alpha]),
        "params_err": np.hstack([labels["params_err"], np.full((n, 1), 0.02)]),
    }


NAMES = ["teff", "feh", "logg", "alpha_m"]
OWN = {
    "label_names": [*NAMES[:3], "mass"],
    "label_units": ["kK", "dex", "dex", "Msun"],
    "label_scales": [1000.0, 1.0, 1.0, 1.0],
    "label_tolerances": [0.25, 0.3, 0.4, 0.1],
}


def recorded_labels(data_dir):
    """The LabelSet, and attributes, of stellar_type."""
    with read.ShardReader(data_dir / "training_data.h5") as reader:
        attrs = reader.attributes("stellar_type")
    return LabelSet.from_json(attrs["labels"]), attrs


@pytest.mark.parametrize(
    ("options", "meta"),
    [
        ([], {"label_names": NAMES}),
        ([], {"label_names": "teff, feh logg alpha_m"}),
        (["--labels", *NAMES], {}),
        (["--labels", *NAMES], {"label_names": ["a", "b", "c", "d"]}),
    ],
    ids=["attribute", "text", "option", "option first"],
)
def test_four_labels_are_named_by_the_table_or_an_option(data_dir, sky, options, meta):
    labels = four(make_labels(sky))
    assert run(data_dir, *options, labels=labels, **meta) == 0
    found, attrs = recorded_labels(data_dir)
    assert list(found) == [KNOWN_LABELS[name] for name in NAMES]
    assert attrs["label_names"].tolist() == NAMES
    assert attrs["label_units"].tolist() == ["kK", "dex", "dex", "dex"]
    out = result(data_dir)
    rows = joining.join_rows(out["gdr3_source_id"], labels["gdr3_source_id"])
    np.testing.assert_allclose(out["stellar_type"], labels["params_est"][rows], rtol=1e-6)
    np.testing.assert_allclose(out["stellar_type_err"], labels["params_err"][rows], rtol=1e-6)


@pytest.mark.parametrize("how", ["table", "meta in YAML", "plain datasets"])
def test_a_label_that_is_not_known_is_described_by_attributes(data_dir, sky, how):
    labels, path = four(make_labels(sky)), data_dir / "labels.h5"
    if how == "plain datasets":
        with h5py.File(path, "w") as file:
            for name, column in labels.items():
                file[name] = column
            file["params_est"].attrs.update(OWN)
    else:
        Table(labels, meta=OWN).write(path, path="t", serialize_meta=how != "table")
    assert run(data_dir) == 0
    mass = list(recorded_labels(data_dir)[0])[3]
    assert (mass.name, mass.unit, mass.tolerance, mass.forward) == ("mass", "Msun", 0.1, True)


def test_a_label_described_by_the_option_may_be_of_the_direct_estimate_alone(data_dir, sky):
    words = [*NAMES[:3], "mass:Msun:1:0.1:direct"]
    assert run(data_dir, "--labels", *words, labels=four(make_labels(sky))) == 0
    found, _ = recorded_labels(data_dir)
    assert [label.forward for label in found] == [True, True, True, False]
    assert result(data_dir)["stellar_type"].shape[1] == 4


def test_three_labels_without_names_are_the_usual_three_and_two_can_be_named(data_dir, sky):
    labels = make_labels(sky)
    assert run(data_dir, labels=labels) == 0
    assert list(recorded_labels(data_dir)[0]) == list(DEFAULT_LABELS)
    two = labels | {name: labels[name][:, :2] for name in ("params_est", "params_err")}
    assert run(data_dir, "--labels", "teff", "feh", labels=two) == 0
    assert result(data_dir)["stellar_type"].shape[1] == 2


def test_other_names_make_a_complete_output_again(data_dir, sky, capsys):
    labels = make_labels(sky)
    assert run(data_dir, labels=labels) == 0
    other = ["teff", "feh", "size:Rsun:1:0.1"]
    assert run(data_dir, "--labels", *other) == 0
    assert "its labels were others" in capsys.readouterr().err
    assert recorded_labels(data_dir)[1]["label_names"].tolist() == ["teff", "feh", "size"]
    assert run(data_dir, "--labels", *other) == 0
    assert "already complete" in capsys.readouterr().err


WRONG_NAMES = {
    "4 columns and nothing says what they are": ([], {}),
    "4 columns, but 3 labels are named": ([], {"label_names": NAMES[:3]}),
    "4 columns, but 2 labels are named (teff, feh)": (["--labels", "teff", "feh"], {}),
    "label 'mass' is not known": ([], {"label_names": [*NAMES[:3], "mass"]}),
    "two have the same name": ([], {"label_names": ["teff", "feh", "feh", "logg"]}),
    "in K, expected kK": ([], {"label_names": NAMES, "label_units": ["K", "dex", "dex", "dex"]}),
    "label_scales has 3 entries": ([], {"label_names": NAMES, "label_scales": [1.0, 1.0, 1.0]}),
}


@pytest.mark.parametrize("message", WRONG_NAMES)
def test_names_that_do_not_fit_exit_2_with_one_clear_line(data_dir, sky, message, capsys):
    options, meta = WRONG_NAMES[message]
    assert run(data_dir, *options, labels=four(make_labels(sky)), **meta) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "labels.h5" in shown
    assert len(shown.splitlines()) == 1


def test_a_label_word_that_is_none_is_wrong_usage(data_dir, sky, capsys):
    with pytest.raises(SystemExit) as stop:
        run(data_dir, "--labels", "teff", "mass", labels=make_labels(sky))
    assert stop.value.code == 2
    assert "NAME:UNIT:SCALE:TOLERANCE" in capsys.readouterr().err


# ---- labels that are none --------------------------------------------------------------------


def test_a_masked_id_is_no_star_and_counted(data_dir, sky, capsys):
    labels = make_labels(sky)
    mask = np.zeros(len(labels["gdr3_source_id"]), bool)
    mask[[3, 5]] = True
    ids = labels["gdr3_source_id"].copy()
    ids[mask] = ids[0]  # what lies under the mask after a left join
    table = Table(labels | {"gdr3_source_id": MaskedColumn(ids, mask=mask)})
    table.write(data_dir / "labels.h5", path="t", serialize_meta=True)
    assert run(data_dir) == 0
    assert f"{training_labels.NO_ID}" in capsys.readouterr().out
    out = result(data_dir)
    assert len(out["flux"]) == len(mask) - 2
    kept = out["stellar_type"][out["gdr3_source_id"] == ids[0]]
    np.testing.assert_allclose(kept, labels["params_est"][:1], rtol=1e-6)


def test_sentinels_are_outside_of_what_is_possible_and_counted(data_dir, sky, capsys):
    labels = make_labels(sky)
    labels["params_est"][0, 1] = -9999
    labels["params_est"][1, 0] = -9.999
    labels["params_err"][2] = -9999
    assert run(data_dir, labels=labels) == 0
    printed = capsys.readouterr().out
    assert [line.split()[-1] for line in printed.splitlines() if "possible" in line] == ["-2"]
    out = result(data_dir)
    kept = out["gdr3_source_id"] == labels["gdr3_source_id"][2]
    np.testing.assert_allclose(out["stellar_type_err"][kept], [DEFAULT_ERR], rtol=1e-6)


def test_a_temperature_in_kelvin_is_refused_with_what_to_do(data_dir, sky, capsys):
    labels = make_labels(sky)
    labels["params_est"][:, 0] *= 1000
    assert run(data_dir, labels=labels) == 2
    shown = capsys.readouterr().err
    assert "36 of 36 values of Teff" in shown
    assert "store it in kK" in shown


@pytest.mark.parametrize("what", ["another patch of sky", "not finite", "empty"])
def test_a_table_without_any_star_of_the_shards_exits_1_with_the_accounting(
    data_dir, sky, what, capsys
):
    labels = make_labels(sky)
    if what == "another patch of sky":
        labels["gdr3_source_id"] = np.arange(36) + 800_000 * ID_STEP
    elif what == "not finite":
        labels["params_est"][:] = np.nan
    else:
        labels = {name: column[:0] for name, column in labels.items()}
    assert run(data_dir, labels=labels) == 1
    shown = capsys.readouterr()
    assert "no label is left" in shown.err
    assert shown.out.split()[-1] == "0"
    assert "Traceback" not in shown.err
