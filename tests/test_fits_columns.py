"""Columns of a FITS table are those that Astropy reads, whatever their kind."""

import numpy as np
import pytest
from astropy.io import fits

from pipeline import fits_columns
from pipeline.fits_columns import TableColumns

N = 50
COUNT = np.arange(N)
TEXTS = np.resize([b"0000m016 o0000001", b"a b ", b" lead\t", b"", b"nul\0after", b"x" * 17], N)
PLAIN = {
    "ID": fits.Column("ID", "17A", array=TEXTS),
    "one": fits.Column("one", "1D", array=COUNT / 7),
    "pair": fits.Column("pair", "2E", array=np.arange(2.0 * N).reshape(N, 2)),
    "long": fits.Column("long", "K", array=2**60 + COUNT),
    "int": fits.Column("int", "J", array=-COUNT),
    "short": fits.Column("short", "3I", array=np.arange(3 * N).reshape(N, 3)),
    "byte": fits.Column("byte", "B", array=COUNT.astype("u1")),
}
OTHER = {
    "unsigned": fits.Column("unsigned", "I", bzero=32768, array=COUNT.astype("u2")),
    "scaled": fits.Column("scaled", "E", bscale=0.5, array=COUNT / 4),
    "matrix": fits.Column("matrix", "4E", dim="(2,2)", array=np.ones((N, 2, 2))),
    "null": fits.Column("null", "J", null=-1, array=COUNT - 1),
    "logical": fits.Column("logical", "L", array=COUNT % 3 == 0),
    "bits": fits.Column("bits", "11X", array=np.ones((N, 11), bool)),
    "complex": fits.Column("complex", "C", array=COUNT * 1j),
    "ragged": fits.Column("ragged", "PD()", array=np.array([[1.0]] * N, dtype=object)),
}


def write(path, columns):
    fits.BinTableHDU.from_columns(columns).writeto(path, overwrite=True)
    return path


def read(path, names):
    with fits.open(path, memmap=False) as hdus:
        return TableColumns(hdus[1]).read(names)


def require_as_astropy(path, names):
    found = read(path, [name.lower() for name in names])
    with fits.open(path, memmap=False) as hdus:
        for name in names:
            values, expected = found[name.lower()], np.array(hdus[1].data[name])
            if expected.dtype.kind == "U":
                values, expected = values.astype("S17"), expected.astype("S17")
            assert values.dtype == expected.dtype
            np.testing.assert_array_equal(values, expected, err_msg=name)


@pytest.mark.parametrize("part", [1, 1000, 1 << 18])
@pytest.mark.parametrize("name", ["t.fits", "t.fits.gz"])
def test_plain_columns_are_those_of_astropy_in_parts_of_any_size(tmp_path, monkeypatch, name, part):
    """Texts lose the blanks at their end, and those alone."""
    monkeypatch.setattr(fits_columns, "PART_BYTES", part)
    fixed = [column for name, column in OTHER.items() if name != "ragged"]
    path = write(tmp_path / name, [*fixed, *PLAIN.values()])
    require_as_astropy(path, list(PLAIN))


def test_plain_columns_are_read_without_the_others(tmp_path, monkeypatch):
    fixed = [column for name, column in OTHER.items() if name != "ragged"]
    path = write(tmp_path / "t.fits", [*fixed, *PLAIN.values()])
    monkeypatch.setattr(fits.BinTableHDU, "data", property(lambda self: pytest.fail("whole table")))
    assert len(read(path, ["id", "pair"])["pair"]) == N


@pytest.mark.parametrize("other", OTHER)
def test_columns_that_are_more_than_their_bytes_are_those_of_astropy(tmp_path, other):
    path = write(tmp_path / "t.fits", [PLAIN["ID"], OTHER[other], PLAIN["one"]])
    names = ["ID", "one"] if other == "ragged" else ["ID", other, "one"]
    require_as_astropy(path, names)


def test_of_names_that_differ_in_case_the_last_is_meant(tmp_path):
    columns = [PLAIN["one"], fits.Column("ONE", "D", array=COUNT * 2.0)]
    np.testing.assert_array_equal(read(write(tmp_path / "t", columns), ["one"])["one"], COUNT * 2)


def test_a_text_that_is_not_ascii_is_that_of_astropy(tmp_path):
    path = write(tmp_path / "t.fits", [PLAIN["ID"], PLAIN["one"]])
    path.write_bytes(path.read_bytes().replace(b"0000m016 o", b"0000m016\xe4o"))
    assert read(path, ["id"])["id"][0] == b"0000m016\xe4o0000001"
    require_as_astropy(path, ["ID", "one"])


def test_a_table_without_rows_has_columns_without_rows(tmp_path):
    empty = [fits.Column(name, PLAIN[name].format) for name in PLAIN]
    require_as_astropy(write(tmp_path / "t.fits", empty), list(PLAIN))


def test_a_table_that_ends_within_its_rows_is_refused(tmp_path, recwarn):
    path = write(tmp_path / "t.fits", PLAIN.values())
    path.write_bytes(path.read_bytes()[: -fits_columns_block(path)])
    with pytest.raises(OSError, match="ends within its rows"):
        read(path, ["one"])
    assert any("truncated" in str(warning.message) for warning in recwarn)


def fits_columns_block(path):
    """Bytes from within the last row to the end of a file."""
    with fits.open(path) as hdus:
        info, header = hdus[1].fileinfo(), hdus[1].header
    return info["datSpan"] - header["NAXIS1"] * header["NAXIS2"] + 1


def test_an_image_is_no_table(tmp_path):
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(np.zeros(3))]).writeto(tmp_path / "i.fits")
    with pytest.raises(AttributeError):
        read(tmp_path / "i.fits", ["one"])
