"""The recipes of docs/labels.md run, as they stand, on tables in the surveys' form."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import MaskedColumn, Table

from pipeline.schema import load_release
from pipeline.training_labels import account, clean_labels, read_labels

PAGE = Path(__file__).resolve().parents[1] / "docs/labels.md"
IDS = np.array([5937083312263887616, 4096, 0, 5937083312263887617, 8192], "i8")
TEFF = np.array([5000.0, 4500.0, 6000.0, 5500.0, 4800.0])
FEH = np.array([0.1, -0.5, 0.0, -9999.0, -1.2])
LOGG = np.array([2.5, 4.5, 4.0, 4.1, 1.9])
ERR = np.full(5, 0.01)


def code_blocks() -> dict:
    """{title of the section: Python of it}, the function that all use under ""."""
    text = PAGE.read_text()
    parts = re.split(r"^### (.*)$", text, flags=re.M)
    sections = {"": parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))
    blocks = {k: re.findall(r"```python\n(.*?)```", v, re.S) for k, v in sections.items()}
    return {k.split(" ")[0]: "\n".join(v) for k, v in blocks.items()}


def apogee():
    n = len(IDS)
    table = {"GAIAEDR3_SOURCE_ID": IDS, "TEFF": TEFF, "FE_H": FEH, "LOGG": LOGG}
    table |= {"ALPHA_M": np.full(n, 0.1), "ALPHA_M_ERR": ERR, "SNR": np.full(n, 100.0)}
    table |= {"TEFF_ERR": 1000 * ERR, "FE_H_ERR": ERR, "LOGG_ERR": ERR}
    flags = {"ASPCAPFLAG": np.zeros(n, "i8"), "EXTRATARG": np.zeros(n, "i4")}
    flags["ASPCAPFLAG"][1] = 1 << 23
    Table(table | flags | {"FE_H_FLAG": np.zeros(n, "i4")}).write("allStar-dr17-synspec_rev1.fits")


def galah():
    n = len(IDS)
    flag = MaskedColumn(np.zeros(n, "i4"), mask=[False, True, False, False, False])
    table = {"dr3_source_id": IDS, "teff": TEFF, "fe_h": FEH, "logg": LOGG}
    table |= {"e_teff": 1000 * ERR, "e_fe_h": ERR, "e_logg": ERR}
    table |= {"flag_sp": flag, "flag_fe_h": np.zeros(n, "i4"), "snr_c3_iraf": np.full(n, 50.0)}
    Table(table).write("GALAH_DR3_main_allstar_v2.fits")


def lamost():
    names = [str(i) if i else " " for i in IDS]
    table = {"gaia_source_id": names, "teff": TEFF, "feh": FEH, "logg": LOGG}
    table |= {"teff_err": 1000 * ERR, "feh_err": ERR, "logg_err": ERR}
    table["snrg"] = np.array([50.0, 10.0, 50.0, 50.0, 50.0])
    Table(table).write("dr8_v2.0_LRS_stellar.fits")


def desi():
    rv = {"TEFF": TEFF, "FEH": FEH, "LOGG": LOGG, "SN_R": np.full(5, 50.0)}
    rv |= {"TEFF_ERR": 1000 * ERR, "FEH_ERR": ERR, "LOGG_ERR": ERR}
    rv |= {"RVS_WARN": np.array([0, 1, 0, 0, 0]), "RR_SPECTYPE": ["STAR  "] * 5}
    tables = {"RVTAB": Table(rv), "GAIA": Table({"SOURCE_ID": IDS})}
    hdus = [fits.BinTableHDU(table, name=name) for name, table in tables.items()]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto("mwsall-pix-iron.fits")


@pytest.mark.parametrize(
    ("survey", "make"),
    [("APOGEE", apogee), ("GALAH", galah), ("LAMOST", lamost), ("DESI", desi)],
)
def test_the_recipe_of_a_survey_gives_the_labels_that_it_has(survey, make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make()
    blocks = code_blocks()
    exec(blocks[""] + blocks[survey], {})  # the page's own code
    table = read_labels(tmp_path / "training_params.h5", load_release("dr3"))
    clean_labels(table, tmp_path / "training_params.h5", logging.getLogger("test"))
    left = table.left()
    # The second row is bad by its flags, the third has no id, the fourth no [Fe/H].
    assert list(table.source_id[left]) == [IDS[0], IDS[4]]
    assert np.allclose(table.est[left][:, :3], [[5.0, 0.1, 2.5], [4.8, -1.2, 1.9]], atol=1e-6)
    assert (table.err[left] > 0).all()
    assert (table.err[left] < 0.2).all()
    assert table.labels.texts("name")[:3] == ["teff", "feh", "logg"]
    assert "label" in account(table, {})


def test_every_survey_of_the_page_is_tried():
    assert set(code_blocks()) == {"", "APOGEE", "GALAH", "LAMOST", "DESI"}
