"""Labels as people have them: any form, masks, sentinels and units, each told apart."""

import gzip
import importlib.util

import h5py
import numpy as np
import pytest
from astropy.table import MaskedColumn, Table
from helpers import lay_out, make_sky
from step7_case import make_labels, result, run

from pipeline import training_labels


@pytest.fixture
def sky():
    return make_sky()


@pytest.fixture
def data_dir(tmp_path, sky):
    return lay_out(tmp_path, sky)


def accounting(capsys) -> dict:
    lines = [line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    return {name.strip(): int(count) for name, count in lines}


def masked_table(labels):
    """Labels whose second id, third label and fourth label's first error are masked, with another
    star's values beneath."""
    n = len(labels["gdr3_source_id"])
    mask = np.arange(n) == 1
    ids = np.where(mask, labels["gdr3_source_id"][0], labels["gdr3_source_id"])
    est_mask, err_mask = np.zeros((n, 3), bool), np.zeros((n, 3), bool)
    est_mask[2, 1] = err_mask[3, 0] = True
    return Table(
        {
            "gdr3_source_id": MaskedColumn(ids, mask=mask),
            "params_est": MaskedColumn(labels["params_est"], mask=est_mask),
            "params_err": MaskedColumn(labels["params_err"], mask=err_mask),
        }
    )


def as_groups(path, table):
    """Plain datasets in a group of HDF5, with masks beside them."""
    with h5py.File(path, "w") as file:
        for name in table.colnames:
            file[f"survey/{name}"] = np.ma.getdata(table[name])
            file[f"survey/{name}.mask"] = table[name].mask


FORMS = {
    "FITS": lambda path, table: table.write(path, format="fits", overwrite=True),
    "ECSV": lambda path, table: table.write(path, format="ascii.ecsv", overwrite=True),
    "VOTable": lambda path, table: table.write(path, format="votable", overwrite=True),
    "HDF5 in a group": lambda path, table: table.write(
        path, path="a/b/labels", format="hdf5", overwrite=True, serialize_meta=True
    ),
    "HDF5 datasets in a group": as_groups,
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_of_any_form_are_read_and_their_masks_kept(data_dir, sky, capsys, form):
    labels = make_labels(sky)
    FORMS[form](data_dir / "labels.h5", masked_table(labels))
    assert run(data_dir) == 0
    counts = accounting(capsys)
    assert counts[training_labels.NO_ID] == -1
    assert counts[training_labels.NOT_FINITE] == -1
    assert counts["training stars"] == len(labels["gdr3_source_id"]) - 2
    out = result(data_dir)
    for row, error in ((0, labels["params_err"][0, 0]), (3, 0.15)):
        kept = out["gdr3_source_id"] == labels["gdr3_source_id"][row]
        np.testing.assert_allclose(out["stellar_type"][kept], labels["params_est"][[row]])
        np.testing.assert_allclose(out["stellar_type_err"][kept][0, 0], error, rtol=1e-6)


def test_names_of_columns_may_be_in_capitals(data_dir, sky):
    labels = {name.upper(): column for name, column in make_labels(sky).items()}
    Table(labels).write(data_dir / "labels.h5", format="fits")
    assert run(data_dir) == 0
    assert len(result(data_dir)["flux"]) == 36


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is not None, reason="pyarrow is here")
def test_parquet_without_its_package_is_one_clear_line(data_dir, capsys):
    (data_dir / "labels.h5").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    assert run(data_dir) == 2
    assert "pyarrow" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["FITS", "ECSV", "VOTable"])
def test_a_damaged_table_of_any_form_is_one_clear_line(data_dir, sky, capsys, form):
    path = data_dir / "labels.h5"
    FORMS[form](path, Table(make_labels(sky)))
    path.write_bytes(path.read_bytes()[:3000] if form != "ECSV" else b"# %ECSV 1.0\n# - {")
    assert run(data_dir) == 2
    shown = capsys.readouterr().err
    assert "labels.h5" in shown
    assert len(shown.splitlines()) == 1


@pytest.mark.parametrize("form", ["FITS", "ECSV", "VOTable"])
def test_a_compressed_table_of_labels_is_read(data_dir, sky, form):
    path = data_dir / "labels.h5"
    FORMS[form](path, Table(make_labels(sky)))
    path.write_bytes(gzip.compress(path.read_bytes(), 1))
    assert run(data_dir) == 0
    assert len(result(data_dir)["flux"]) == 36


def test_text_that_is_no_table_of_labels_is_told_what_is(data_dir, capsys):
    (data_dir / "labels.h5").write_text("gdr3_source_id,teff\n1,2\n")
    assert run(data_dir) == 2
    assert "text that is no table of labels; expected HDF5, FITS, ECSV" in capsys.readouterr().err


def test_two_tables_of_labels_in_one_file_are_refused(data_dir, sky, capsys):
    table = Table(make_labels(sky))
    for name in ("a", "b"):
        table.write(data_dir / "labels.h5", path=name, append=True)
    assert run(data_dir) == 2
    assert "2 tables with gdr3_source_id" in capsys.readouterr().err


# ---- ids -------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [-9999, 0, -1])
def test_an_id_that_is_not_positive_is_none(data_dir, sky, capsys, missing):
    labels = make_labels(sky)
    labels["gdr3_source_id"][4] = missing
    assert run(data_dir, labels=labels) == 0
    assert accounting(capsys)[training_labels.NO_ID] == -1


def test_ids_as_text_are_read_and_words_without_digits_are_none(data_dir, sky, capsys):
    labels = make_labels(sky)
    ids = labels["gdr3_source_id"].astype(str)
    ids[[1, 5]] = ["nan", "--"]
    assert run(data_dir, labels=labels | {"gdr3_source_id": ids.astype("S20")}) == 0
    assert accounting(capsys) == {"labels in": 36, training_labels.NO_ID: -2, "training stars": 34}


@pytest.mark.parametrize("dtype", ["f8", "i4"])
def test_ids_of_a_type_that_loses_digits_are_refused(data_dir, sky, capsys, dtype):
    labels = make_labels(sky)
    labels["gdr3_source_id"] = labels["gdr3_source_id"].astype(dtype)
    assert run(data_dir, labels=labels) == 2
    assert "have lost digits" in capsys.readouterr().err


# ---- sentinels and units ---------------------------------------------------------------------


@pytest.mark.parametrize("value", [-9999, 9999, 99.99e3, -1e20])
def test_a_sentinel_that_most_stars_have_is_no_unit(data_dir, sky, capsys, value):
    labels = make_labels(sky)
    labels["params_est"][:25, 0] = value
    assert run(data_dir, labels=labels) == 0
    counts = accounting(capsys)
    assert counts[training_labels.IMPOSSIBLE] == -25
    assert counts["training stars"] == 11


def test_sentinels_alone_leave_no_label_and_the_accounting_says_so(data_dir, sky, capsys):
    labels = make_labels(sky)
    labels["params_est"][:] = -9999
    assert run(data_dir, labels=labels) == 1
    counts = accounting(capsys)
    assert counts == {"labels in": 36, training_labels.IMPOSSIBLE: -36, "training stars": 0}


def test_two_surveys_put_together_in_K_and_kK_are_refused(data_dir, sky, capsys):
    labels = make_labels(sky)
    labels["params_est"][:6, 0] *= 1000
    assert run(data_dir, labels=labels) == 2
    assert "6 of 36 values of Teff" in capsys.readouterr().err


def test_units_without_names_are_those_of_the_usual_labels(data_dir, sky, capsys):
    labels = make_labels(sky)
    assert run(data_dir, labels=labels, label_units=["kK", "dex", "dex"]) == 0
    assert run(data_dir, labels=labels, label_units=["K", "dex", "dex"]) == 2
    assert "'teff' is in K, expected kK" in capsys.readouterr().err


def test_errors_in_K_are_refused_with_what_to_do(data_dir, sky, capsys):
    labels = make_labels(sky)
    labels["params_err"][:, 0] *= 1000
    assert run(data_dir, labels=labels) == 2
    shown = capsys.readouterr().err
    assert "36 of 36 errors of Teff" in shown
    assert "store them in kK" in shown


def test_a_sentinel_of_the_errors_leaves_the_label_out(data_dir, sky, capsys):
    labels = make_labels(sky)
    labels["params_err"][:3, 1] = 9999
    assert run(data_dir, labels=labels) == 0
    assert accounting(capsys)[training_labels.UNCERTAIN] == -3


def test_a_complete_output_shows_its_accounting_again(data_dir, sky, capsys):
    assert run(data_dir, labels=make_labels(sky)) == 0
    first = accounting(capsys)
    assert run(data_dir) == 0
    assert accounting(capsys) == first
