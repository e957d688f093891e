"""The catalogue as one flat table: numbers, units and words as in the shards, in each format; which
stars; shards that cannot be used."""

import dataclasses
import io
import re

import numpy as np
import pyarrow.parquet
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.io.votable import parse as parse_votable
from astropy.io.votable.ucd import check_ucd
from astropy.table import Table
from export_case import (
    KIND,
    parts_of,
    set_attribute,
    stars,
    write_catalogue,
    write_shard,
)
from helpers import FIDS, flip_bit
from test_release import write_release

from pipeline.export import shards, table, writers
from pipeline.export.flat import flag_names, flat_columns
from pipeline.schema import DEFAULT_LABELS, LabelSet, Layout, flags, load_release
from pipeline.schema.labels import parse_label
from pipeline.select import shard_path
from tools import export_catalogue

N = 700
ENDINGS = tuple(writers.FORMATS)
KNOWN = flat_columns(Layout())


def run(data_dir, *words):
    """Exit status of the tool."""
    return export_catalogue.main([str(word) for word in ("--data-dir", data_dir, *words)])


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """(data directory of three shards, their columns sorted by id)."""
    data_dir = tmp_path_factory.mktemp("export") / "data"
    return data_dir, write_catalogue(data_dir, N)


@pytest.fixture(scope="module")
def small_pieces():
    """Chunks and batches that do not divide the stars."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "CHUNK_ROWS", 37)
        patch.setattr(table, "BATCH_ROWS", 101)
        yield


@pytest.fixture(scope="module", params=ENDINGS)
def written(request, case, small_pieces, tmp_path_factory):
    """(path of the table in a format, its columns, those of the shards)."""
    path = tmp_path_factory.mktemp("out") / f"stars{request.param}"
    assert run(case[0], "--out", path) == 0
    return path, read(path), case[1]


def astropy_table(path):
    how = {".fits": {"memmap": False, "unit_parse_strict": "silent"}, ".parquet": {}}
    return Table.read(path, **how.get(path.suffix, {"format": f"ascii{path.suffix}"}))


def read(path) -> dict:
    """{name: (N,)} as astropy reads a file; missing floats as NaN, missing words as none."""
    found, fill = astropy_table(path), {"f": np.nan, "U": "", "i": 0}
    return {
        name: np.asarray(np.ma.filled(found[name], fill[found[name].dtype.kind]))
        for name in found.colnames
    }


# ---- numbers ---------------------------------------------------------------------------------


def test_every_star_is_in_the_table_once_by_ascending_id_and_ids_are_exact(written):
    found, expected = written[1]["gdr3_source_id"], written[2]
    assert (found.dtype.kind, found.dtype.itemsize) == ("i", 8)
    np.testing.assert_array_equal(found, expected["gdr3_source_id"])
    assert (np.diff(found) > 0).all()
    assert found.max() > 2**53  # where float64 would lose digits


def test_parameters_and_errors_are_those_of_the_shards_to_the_last_bit(written):
    _, found, expected = written
    for k, name in enumerate(("teff", "feh", "logg", "xi", "ext", "parallax")):
        for flat, dataset in (
            (name, "stellar_params_est"),
            (f"{name}_err", "stellar_params_err"),
            (f"model_{name}", "model_params_est"),
            (f"second_{name}", "second_params_est"),
        ):
            values = found[flat].astype("f4")
            np.testing.assert_array_equal(values, expected[dataset][:, k], err_msg=flat)
    for name in ("ra", "dec", "chi2_opt", "n_flux", "ln_prior", "teff_confidence", "plx", "ruwe"):
        np.testing.assert_array_equal(found[name].astype(expected[name].dtype), expected[name])
    for name in ("quality_flags", "input_flags"):
        np.testing.assert_array_equal(found[name], expected[name])
    np.testing.assert_array_equal(found["ext_signed"].astype("f4"), expected["ext_signed_est"])


def test_missing_stays_missing(written):
    _, found, expected = written
    missing = np.isnan(expected["second_params_est"][:, 0])
    assert 0 < missing.sum() < N
    np.testing.assert_array_equal(np.isnan(found["second_teff"]), missing)
    unsolved = np.isnan(expected["stellar_params_est"][:, 0])
    assert unsolved.sum() == 2
    np.testing.assert_array_equal(np.isnan(found["teff"]), unsolved)
    np.testing.assert_array_equal(np.isnan(found["teff_logg_corr"]), np.isnan(found["teff"]))


def test_errors_and_correlations_give_the_covariance_back(written):
    _, found, expected = written
    names = ("teff", "feh", "logg", "xi", "ext", "parallax")
    for k, (i, j) in enumerate(zip(*np.triu_indices(6), strict=True)):
        corr = 1.0 if i == j else found[f"{names[i]}_{names[j]}_corr"]
        cov = found[f"{names[i]}_err"] * found[f"{names[j]}_err"] * corr
        np.testing.assert_allclose(
            cov, expected["stellar_params_cov_triu"][:, k], rtol=1e-5, atol=1e-9
        )


def test_a_shard_gives_every_dataset_but_the_inverse_of_the_covariance(case):
    used = {name for column in KNOWN.values() for name in column.needs}
    assert case[1].keys() - used == {"stellar_params_icov_triu"}


def test_pandas_reads_the_same_numbers(written):
    pandas = pytest.importorskip("pandas")
    path, _, expected = written
    readers = {".csv": pandas.read_csv, ".parquet": pandas.read_parquet}
    if path.suffix not in readers:
        pytest.skip(f"pandas has no reader of {path.suffix}")
    frame = readers[path.suffix](path)
    assert frame["gdr3_source_id"].dtype == np.int64
    np.testing.assert_array_equal(frame["gdr3_source_id"], expected["gdr3_source_id"])
    np.testing.assert_array_equal(frame["teff"].astype("f4"), expected["stellar_params_est"][:, 0])


def test_flags_are_spelled_out_where_people_read_them(written):
    path, found, expected = written
    if path.suffix in writers.FOR_THE_EYE:
        bits = flags.quality_flag(DEFAULT_LABELS)
        names = np.ma.filled(np.ma.asarray(found["quality_flag_names"]), "")
        for value, text in zip(expected["quality_flags"], names, strict=True):
            assert sum(bits[word].value for word in str(text).split()) == value
    else:
        assert "quality_flag_names" not in found


def test_names_of_flags_are_those_of_the_bits():
    bits = flags.quality_flag(DEFAULT_LABELS)
    found = flag_names(np.array([8, 0, 9, 8]), bits).tolist()
    assert found == ["CHI2", "", "TEFF_CONFIDENCE CHI2", "CHI2"]


# ---- words -----------------------------------------------------------------------------------


def test_every_column_has_words_and_a_valid_ucd_and_names_differ_in_more_than_case():
    assert len({name.lower() for name in KNOWN}) == len(KNOWN)
    for column in KNOWN.values():
        assert column.text
        assert column.ucd is None or check_ucd(column.ucd, check_controlled_vocabulary=True)
    assert KNOWN["teff"].unit == "kK"
    assert "units of the training set's reddening" in KNOWN["ext"].text


def votable_fields(text):
    return parse_votable(io.BytesIO(text)).get_first_table().fields


def require_fields(fields):
    columns = [column for column in KNOWN.values() if not column.aside]
    assert [field.name for field in fields] == [column.name for column in columns]
    for field, column in zip(fields, columns, strict=True):
        assert str(field.unit or "").replace(" ", "") == (column.unit or "")
        assert field.description == column.text
        assert field.ucd == column.ucd


@pytest.mark.filterwarnings("ignore::astropy.io.votable.exceptions.W50")  # dex, kK
def test_fits_has_units_ucds_and_words_and_topcats_votable(case, tmp_path):
    path = tmp_path / "stars.fits"
    assert run(case[0], "--out", path) == 0
    with fits.open(path) as hdus:
        hdus.verify("exception")
        head = hdus[1].header
        places = {head[f"TTYPE{k}"]: k for k in range(1, head["TFIELDS"] + 1)}
        assert list(places) == [name for name, column in KNOWN.items() if not column.aside]
        for name, k in places.items():
            column = KNOWN[name]
            assert head.get(f"TUNIT{k}") == column.unit
            assert head.get(f"TUCD{k}") == column.ucd
            comment = head[f"TCOMM{k}"]
            assert comment == column.text or column.text.startswith(comment.removesuffix("..."))
        assert head[f"TFORM{places['gdr3_source_id']}"] == "K"
        cards = path.read_bytes()[:400]
        names = [cards[k : k + 8].decode().strip() for k in range(0, 400, 80)]
        assert names == ["SIMPLE", "BITPIX", "NAXIS", "NAXIS1", "VOTMETA"]
        require_fields(votable_fields(hdus[0].data.tobytes()))
        said = "\n".join(map(str, head["HISTORY"]))
        assert "model: content 0123456789abcdef" in said
    assert astropy_table(path)["quality_flags"].description == KNOWN["quality_flags"].text


@pytest.mark.filterwarnings("ignore::astropy.io.votable.exceptions.W50")
def test_parquet_is_voparquet_and_its_fields_have_words(case, tmp_path):
    path = tmp_path / "stars.parquet"
    assert run(case[0], "--out", path) == 0
    schema = pyarrow.parquet.read_schema(path)
    assert schema.metadata[b"IVOA.VOTable-Parquet.version"] == b"1.0"
    require_fields(votable_fields(schema.metadata[b"IVOA.VOTable-Parquet.content"]))
    field = schema.field("teff")
    assert field.metadata[b"unit"] == b"kK"
    assert field.metadata[b"ucd"] == b"phys.temperature.effective"
    assert str(schema.field("gdr3_source_id").type) == "int64"
    column = pyarrow.parquet.read_table(path, columns=["second_teff"])["second_teff"]
    assert column.null_count > 0  # null rather than NaN, which some programs sort as a number


def test_ecsv_has_units_and_words(case, tmp_path):
    path = tmp_path / "stars.ecsv"
    assert run(case[0], "--out", path) == 0
    found = Table.read(path)
    for name, column in KNOWN.items():
        assert str(found[name].unit or "").replace(" ", "") == (column.unit or "")
        assert found[name].description == column.text
    assert found.meta["selection"] == "all stars"


# ---- other labels and releases ---------------------------------------------------------------


def test_names_follow_from_the_labels_and_the_release(tmp_path):
    release = load_release(str(write_release(tmp_path)))
    labels = LabelSet(map(parse_label, ["logg", "teff", "ra:Gyr:1:2", "ak:mag:1:0.1:direct"]))
    layout = Layout(release, labels)
    expected = write_catalogue(tmp_path / "data", 90, layout)
    out = tmp_path / "stars.fits"
    assert run(tmp_path / "data", "--out", out, "--release", tmp_path / "new.toml") == 0
    found = read(out)
    assert list(found)[:7] == [
        "gdr4_source_id",
        "ra",
        "dec",
        "logg",
        "logg_err",
        "teff",
        "teff_err",
    ]
    np.testing.assert_array_equal(found["gdr4_source_id"], expected["gdr4_source_id"])
    np.testing.assert_array_equal(found["ra"], expected["ra"])
    np.testing.assert_array_equal(found["ra_label"], expected["stellar_params_est"][:, 2])
    np.testing.assert_array_equal(found["ak"], expected["ak_est"])
    np.testing.assert_array_equal(found["ak_err"], expected["ak_err"])
    assert {"logg_teff_corr", "teff_ext_corr", "model_ra", "ak_confidence"} <= found.keys()
    assert not {"feh", "ak_teff_corr", "second_ak"} & found.keys()


# ---- which stars and columns -----------------------------------------------------------------

CONDITIONS = {
    "quality_flags < 8 and teff > 4": lambda t: (t["quality_flags"] < 8) & (t["teff"] > 4),
    "not quality_flags & CHI2": lambda t: t["quality_flags"] & 8 == 0,
    "quality_flags & (BLEND | STRANGE)": lambda t: t["quality_flags"] & 3072 > 0,
    "(teff > 5) & (logg < 1)": lambda t: (t["teff"] > 5) & (t["logg"] < 1),
    "4 < teff <= 6 or isnan(teff)": lambda t: (
        (t["teff"] > 4) & (t["teff"] <= 6) | np.isnan(t["teff"])
    ),
    "parallax / parallax_err > 50 and abs(dec) < 30": lambda t: (
        (t["parallax"] / t["parallax_err"] > 50) & (np.abs(t["dec"]) < 30)
    ),
    "second_teff > -99": lambda t: np.isfinite(t["second_teff"]),
    "teff > 1e9": lambda t: t["teff"] > 1e9,
}


@pytest.fixture(scope="module")
def everything(case, tmp_path_factory):
    path = tmp_path_factory.mktemp("all") / "stars.parquet"
    assert run(case[0], "--out", path) == 0
    return read(path)


@pytest.mark.parametrize("text", CONDITIONS)
def test_a_condition_selects_those_stars_and_no_others(
    case, everything, small_pieces, text, tmp_path
):
    wanted = CONDITIONS[text](everything)
    out = tmp_path / "some.parquet"
    assert run(case[0], "--out", out, "--select", text, "--columns", "gdr3_source_id", "ra") == 0
    found = read(out)
    assert list(found) == ["gdr3_source_id", "ra"]
    np.testing.assert_array_equal(found["gdr3_source_id"], everything["gdr3_source_id"][wanted])


@pytest.mark.parametrize(("text", "message"), [
    ("tef > 4", "'tef' is no column; similar: teff"),
    ("__import__('os').system('false')", "cannot be used|is none of the functions"),
    ("teff.__class__", "'teff.__class__' cannot be used"),
    ("teff > '4'", "is no number"),
    ("teff > 4 & logg < 3", "better write `and`"),
    ("teff >", "not a condition"),
    ("[x for x in teff]", "cannot be used"),
    ("teff ** 2 > 4", "cannot be used"),
    ("abs(teff, 1)", "is none of the functions"),
    ("quality_flag_names > 1", "is no column"),
    ("(" * 500 + "teff" + ")" * 500, "not a condition"),
    ("", "not a condition"),
])  # fmt: skip
def test_what_is_no_condition_is_refused_in_one_line(case, text, message, tmp_path, capsys):
    assert run(case[0], "--out", tmp_path / "a.fits", "--select", text) == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert said.startswith("error: --select")
    assert said.count("\n") == 1
    assert not (tmp_path / "a.fits").exists()


def test_a_cone_has_the_stars_within_and_no_others_also_over_the_pole_and_at_ra_0(
    case, everything, tmp_path
):
    places = SkyCoord(everything["ra"], everything["dec"], unit="deg")
    for k, (ra, dec, radius) in enumerate([(0, 10, 25), (200, 89, 30), (56, -24, 9), (10, 0, 170)]):
        wanted = places.separation(SkyCoord(ra, dec, unit="deg")).deg <= radius
        out = tmp_path / f"{k}.parquet"
        assert run(case[0], "--out", out, "--cone", ra, dec, radius) == 0
        np.testing.assert_array_equal(
            read(out)["gdr3_source_id"], everything["gdr3_source_id"][wanted]
        )
        assert wanted.any()


def test_a_cone_has_its_stars_also_where_ids_say_nothing_of_places(tmp_path):
    rows = stars(200, seed=9)
    rows["gdr3_source_id"] = np.random.default_rng(0).permutation(rows["gdr3_source_id"])
    for fid, part in parts_of(rows, "gdr3_source_id").items():
        write_shard(tmp_path, fid, part)
    assert run(tmp_path, "--out", tmp_path / "a.parquet", "--cone", 120, 40, 30) == 0
    places = SkyCoord(rows["ra"], rows["dec"], unit="deg")
    wanted = places.separation(SkyCoord(120, 40, unit="deg")).deg <= 30
    assert wanted.sum() > 3
    found = read(tmp_path / "a.parquet")["gdr3_source_id"]
    np.testing.assert_array_equal(found, np.sort(rows["gdr3_source_id"][wanted]))


def test_a_condition_in_another_unit_that_selects_nothing_is_said(case, tmp_path, capsys):
    assert run(case[0], "--out", tmp_path / "a.csv", "--select", "teff > 4000") == 0
    assert "no star is selected by: teff > 4000" in capsys.readouterr().err


def test_shards_away_from_a_cone_are_not_read(case, tmp_path, capsys):
    assert run(case[0], "--out", tmp_path / "a.parquet", "--cone", 45, 0.1, 0.01) == 0
    assert "of 1 shards" in capsys.readouterr().err


def test_a_cone_without_stars_is_a_table_without_rows(case, tmp_path):
    for ending in ENDINGS:
        out = tmp_path / f"none{ending}"
        assert run(case[0], "--out", out, "--cone", 10, 20, 1e-4) == 0
        found = read(out)
        assert list(found)[:2] == ["gdr3_source_id", "ra"]
        assert len(found["ra"]) == 0


def test_columns_are_chosen_by_name_or_pattern_in_the_order_given(case, tmp_path, capsys):
    out = tmp_path / "a.csv"
    chosen = ["quality_flags", "teff*", "gdr3_source_id"]
    assert run(case[0], "--out", out, "--columns", *chosen) == 0
    names = out.read_text().split("\n")[0].split(",")
    assert names[:3] == ["quality_flags", "teff", "teff_err"]
    assert names[-1] == "gdr3_source_id"
    assert run(case[0], "--out", tmp_path / "b.csv", "--columns", "tef") == 2
    assert "--columns tef: no such column; similar: teff" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "message"), [
    (["--out", "{}/a.txt"], "its ending says the format"),
    (["--out", "{}/none/a.fits"], "no such folder"),
    (["--out", "{}/a.fits", "--cone", "1", "91", "1"], "--cone 1 91 1: expected RA and Dec"),
    (["--out", "{}/a.fits", "--shards", "000000-000001"], "not in"),
    (["--out", "{}/a.fits", "--columns", "quality_flag_names"], "columns of words are for"),
])  # fmt: skip
def test_wrong_usage_is_one_line_and_status_2(case, tmp_path, words, message, capsys):
    assert run(case[0], *(word.format(tmp_path) for word in words)) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not list(tmp_path.glob("a*fits"))


def test_a_table_that_is_there_is_kept_unless_told(case, tmp_path):
    out = tmp_path / "a.csv"
    out.write_text("mine")
    assert run(case[0], "--out", out) == 2
    assert out.read_text() == "mine"
    assert run(case[0], "--out", out, "--overwrite") == 0
    assert out.read_text().startswith("gdr3_source_id,")


# ---- shards ----------------------------------------------------------------------------------


def test_shards_whose_ids_are_in_no_order_or_overlap_give_one_sorted_table(tmp_path, small_pieces):
    rows = stars(400, seed=5)
    half = np.random.default_rng(1).random(400) < 0.5
    for fid, part in zip(FIDS, (half, ~half), strict=False):
        write_shard(tmp_path, fid, {name: v[part] for name, v in rows.items()})
    out = tmp_path / "a.parquet"
    assert run(tmp_path, "--out", out, "--columns", "gdr3_source_id", "chi2_opt") == 0
    found, order = read(out), np.argsort(rows["gdr3_source_id"])
    np.testing.assert_array_equal(found["gdr3_source_id"], rows["gdr3_source_id"][order])
    np.testing.assert_array_equal(found["chi2_opt"], rows["chi2_opt"][order].astype("f4"))


def test_a_star_in_two_shards_is_refused_and_named(tmp_path, capsys):
    rows = stars(50)
    write_shard(tmp_path, FIDS[0], rows)
    write_shard(tmp_path, FIDS[1], {name: v[10:11] for name, v in rows.items()})
    assert run(tmp_path, "--out", tmp_path / "a.fits") == 1
    said = capsys.readouterr().err
    assert str(rows["gdr3_source_id"][10]) in said
    assert FIDS[0] in said
    assert FIDS[1] in said
    assert not (tmp_path / "a.fits").exists()


@pytest.fixture
def broken(tmp_path):
    """A data directory with one more shard than it has whole ones."""
    return tmp_path, write_catalogue(tmp_path, 120)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-2000])


DAMAGES = {
    "truncated": (truncate, "truncated or damaged"),
    "incomplete": (lambda path: set_attribute(path, "complete", False), "incomplete"),
    "of another release": (
        lambda path: set_attribute(path, "release", "dr9"),
        "of the release dr9, but dr3 is in use",
    ),
    "of another format": (lambda path: set_attribute(path, "format", 1), "format 1, now 2"),
    "a bit flipped": (lambda path: flip_bit(path, "chi2_opt"), "dataset chi2_opt"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_named_and_nothing_written_or_it_is_left_out_if_told(
    broken, damage, capsys
):
    data_dir, expected = broken
    path, (make, words) = shard_path(data_dir, KIND, FIDS[1]), DAMAGES[damage]
    make(path)
    out = data_dir / "a.parquet"
    assert run(data_dir, "--out", out) in (1, 2)
    said = capsys.readouterr().err
    assert path.name in said
    assert words in said
    assert said.count("\n") == 1
    assert [p.name for p in data_dir.iterdir() if "a.parquet" in p.name] == []
    assert run(data_dir, "--out", out, "--skip-bad-shards") == 0
    assert path.name in capsys.readouterr().err
    ids = parts_of(expected, "gdr3_source_id")
    whole = np.concatenate([ids[fid]["gdr3_source_id"] for fid in (FIDS[0], FIDS[2])])
    np.testing.assert_array_equal(read(out)["gdr3_source_id"], whole)


def test_shards_of_two_models_are_refused_unless_told(broken, capsys):
    data_dir, expected = broken
    part = parts_of(expected, "gdr3_source_id")[FIDS[2]]
    path = write_shard(data_dir, FIDS[2], part, model="content other")
    out = data_dir / "a.fits"
    assert run(data_dir, "--out", out) == 2
    said = capsys.readouterr().err
    assert f"{path}: made with another model than most (1 of 3 shards differ)" in said
    assert said.count("\n") == 1
    assert run(data_dir, "--out", out, "--mixed-models") == 0
    assert len(read(out)["ra"]) == 120
    history = "\n".join(map(str, fits.getheader(out, 1)["HISTORY"]))
    assert "content other" in history


def test_shards_of_other_labels_are_refused_always(broken, capsys):
    data_dir, _ = broken
    layout = Layout(labels=LabelSet(map(parse_label, ["teff", "logg"])))
    path = write_shard(data_dir, FIDS[2], stars(5, layout), layout)
    assert run(data_dir, "--out", data_dir / "a.fits", "--mixed-models") == 2
    said = capsys.readouterr().err
    assert f"{path}: of a model with the labels teff, logg" in said
    assert "teff, feh, logg" in said


def test_labels_that_mean_something_else_are_other_labels(broken, capsys):
    data_dir, expected = broken
    teff = dataclasses.replace(DEFAULT_LABELS.labels[0], tolerance=0.5)
    layout = Layout(labels=LabelSet((teff, *DEFAULT_LABELS.labels[1:])))
    write_shard(data_dir, FIDS[2], parts_of(expected, "gdr3_source_id")[FIDS[2]], layout)
    assert run(data_dir, "--out", data_dir / "a.fits") == 2
    assert "or of other units" in capsys.readouterr().err


def test_inputs_without_output_are_named_in_a_warning(broken, capsys):
    data_dir, _ = broken
    absent = shard_path(data_dir, "opt_input", "700000-700001")
    absent.parent.mkdir()
    absent.touch()
    assert run(data_dir, "--out", data_dir / "a.fits") == 0
    assert "1 shards of step 9 have no output of step 10" in capsys.readouterr().err


def test_a_full_disk_leaves_the_old_table(broken, monkeypatch, capsys):
    data_dir, _ = broken
    out = data_dir / "a.parquet"
    out.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writers, "arrow_table", full)
    assert run(data_dir, "--out", out, "--overwrite") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert out.read_bytes() == b"old"
    assert [p.name for p in data_dir.iterdir() if p.name.startswith(".")] == []


def test_columns_are_listed_with_units_and_words(case, capsys):
    assert run(case[0], "--list-columns") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(KNOWN)
    assert "teff (f4) [kK]: Teff: the forward model, pooled with the direct estimate" in lines


def test_what_step_10_writes_is_exported(step10, tmp_path):
    out = tmp_path / "stars.parquet"
    assert run(step10.data_dir, "--out", out, "--shards", *step10.fids) == 0
    expected = [step10.output(fid) for fid in step10.fids]
    ids, est = (
        np.concatenate([part[name] for part in expected])
        for name in ("gdr3_source_id", "stellar_params_est")
    )
    found, order = read(out), np.argsort(ids)
    np.testing.assert_array_equal(found["gdr3_source_id"], ids[order])
    np.testing.assert_array_equal(found["teff"], est[order, 0])
    np.testing.assert_array_equal(found["parallax"], est[order, -1])
    corr = np.column_stack([found[name] for name in found if name.endswith("_corr")])
    assert np.nanmax(np.abs(corr)) <= 1
