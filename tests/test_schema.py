"""The schema is whole, and scripts, files and pages are what it says."""

import ast
import dataclasses
import importlib
import re
import tomllib
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy import units
from astropy.io.votable.ucd import check_ucd

from pipeline import schema
from pipeline.schema import (
    BANDS,
    DEFAULT_LABELS,
    FILES,
    KINDS,
    KNOWN_LABELS,
    SURVEYS,
    Label,
    LabelSet,
    Layout,
    columns,
    files,
    flags,
    load_release,
    resolved,
)
from pipeline.schema.bands import TABLE, parse_bands
from pipeline.schema.labels import EXTINCTION, LABEL_GRAMMAR, parse_label
from pipeline.schema.release import FOLDER, read_release
from tools import write_tables

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = [column for kind in FILES.values() for column in kind.columns]

# Numbers that have no unit, and words of the units that astropy does not know.
PURE = {
    "acceptance", "effective_sample_size", "r_hat", "second_share",
    "blend_probability", "chi2_opt", "fidelity_v2", "fracflux", "ln_post", "ln_prior",
    "parallax_tension", "phot_bp_rp_excess_factor", "qf", "rchi2", "ruwe", "rv_chisq_pvalue",
    "rv_expected_sig_to_noise", "rv_renormalised_gof", "second_delta_ln_post",
    "strange_probability", "typical_noise/{band}_correlations", "typical_noise/{band}_shape",
    "xp_fine", "{label}_confidence",
}  # fmt: skip
OF_THE_MAP = {"E_mean_bayestar", "E_sigma_bayestar", "E_mean_sfd", "E_mean_planck", "E_mean_bh"}
SEVERAL_UNITS = {  # of labels or parameters, which the texts and attributes name
    "stellar_type", "stellar_type_err", "stellar_params_est", "stellar_params_err",
    "stellar_params_cov_triu", "stellar_params_icov_triu", "model_params_est", "model_params_err",
    "second_params_est", "stellar_samples", "model_samples",
}  # fmt: skip
OF_THE_BASIS = {
    "{band}_chi_squared", "{band}_coefficient_correlations", "{band}_coefficient_covariances",
    "{band}_coefficient_errors", "{band}_coefficients", "{band}_relative_shrinking",
    "{band}_standard_deviation",
}  # fmt: skip
UNIT_WORDS = {"Vega nanomaggy", "{unit}", EXTINCTION.unit}


# ---- columns and files -----------------------------------------------------------------------


def test_every_column_has_words_a_dtype_and_a_valid_ucd():
    for column in COLUMNS:
        name, kind = column.name, np.dtype(column.dtype).kind
        assert column.text, name
        assert kind in "fiubS", name
        assert column.passed is None or np.dtype(column.passed).kind == kind, name
        assert column.ucd is None or check_ucd(column.ucd, check_controlled_vocabulary=True), name
    for label in (*KNOWN_LABELS.values(), *DEFAULT_LABELS.parameters):
        assert not label.ucd or check_ucd(label.ucd, check_controlled_vocabulary=True), label.name


def test_every_column_has_a_unit_or_has_none_on_purpose():
    without = PURE | OF_THE_MAP | SEVERAL_UNITS | OF_THE_BASIS
    for column in COLUMNS:
        name = column.name
        if column.unit is None:
            assert np.dtype(column.dtype).kind != "f" or name in without, name
        else:
            assert name not in without, name
            assert column.unit in UNIT_WORDS or units.Unit(column.unit), name


@pytest.mark.parametrize("kind", FILES)
def test_a_kind_of_file_is_made_by_a_script_and_has_each_dataset_once(kind):
    one, datasets = FILES[kind], resolved(kind)
    assert (ROOT / one.step).is_file()
    assert (one.folder is None) == (one.prefix is None)
    names = [column.name for column in one.columns]
    assert len(set(names)) == len(names)
    assert next(iter(datasets)) == one.id_column(load_release())
    assert all(data.attributes["description"] for data in datasets.values())
    for data in datasets.values():
        assert "{" not in f"{data.name} {data.attributes['description']}"


def test_folders_of_shards_are_their_own():
    assert len({kind.folder for kind in KINDS.values()}) == len(KINDS)


def test_what_is_passed_on_is_in_every_later_file():
    passed = [column.name for column in columns.METADATA if column.passed]
    assert {"norm_dg", "fidelity_v2"} <= set(passed)
    for kind in ("training", "opt_input", "opt_output"):
        datasets = resolved(kind)
        assert set(passed) <= datasets.keys()
        assert all(datasets[c.name].dtype == c.passed for c in columns.METADATA if c.passed)


# ---- flags -----------------------------------------------------------------------------------

FLAGS = {
    "quality_flags": flags.quality_flag(DEFAULT_LABELS),
    "input_flags": flags.InputFlag,
    "parallax_zeropoint_flags": flags.ZeroPointFlag,
    "coverage_bayestar": flags.Coverage,
    "sample_flags": flags.SampleFlag,
}


@pytest.mark.parametrize("name", FLAGS)
def test_every_flag_is_a_bit_of_its_own_with_words_and_fits_its_dataset(name):
    datasets = {k: data for kind in FILES for k, data in resolved(kind).items()}
    bits = [flag.value for flag in FLAGS[name]]
    assert len(set(bits)) == len(bits)
    assert all(bit > 0 and bit & (bit - 1) == 0 for bit in bits)
    assert max(bits) <= np.iinfo(datasets[name].dtype).max
    described = datasets[name].attributes["description"]
    for flag in FLAGS[name]:
        assert flag.text
        assert f"{flag.value} {flag.name}" in described


def test_two_flags_of_one_bit_are_refused():
    with pytest.raises(ValueError, match="Toy: two flags have the same bit"):
        flags._flags("Toy", {"A": (1, "a"), "B": (1, "b")})


def label_set(*names):
    """The labels of these names, made up where they are not known."""
    return LabelSet(KNOWN_LABELS.get(n, Label(n, n.upper(), "dex", 0.1)) for n in names)


def test_labels_bring_their_flags_and_the_published_ones_keep_their_bits():
    bits = {
        names: {
            flag.name: flag.value
            for flag in flags.quality_flag(label_set(*names))
            if "CONFIDENCE" in flag.name
        }
        for names in (("teff", "logg"), ("age", "logg", "teff", "alpha_m"))
    }
    assert bits["teff", "logg"] == {"TEFF_CONFIDENCE": 1, "LOGG_CONFIDENCE": 4}
    assert bits["age", "logg", "teff", "alpha_m"] == {
        "AGE_CONFIDENCE": 1 << 16,
        "LOGG_CONFIDENCE": 4,
        "TEFF_CONFIDENCE": 1,
        "ALPHA_M_CONFIDENCE": 1 << 17,
    }
    most = label_set("teff", "feh", "logg", *"abcdefghijklmno")
    assert max(flag.value for flag in flags.quality_flag(most)) == 1 << 30
    with pytest.raises(ValueError, match="16 labels beside teff, feh, logg: at most 15"):
        flags.quality_flag(label_set("teff", *"abcdefghijklmnop"))


# ---- labels ----------------------------------------------------------------------------------


def test_labels_come_back_from_their_text_as_they_were():
    own = parse_label("age:Gyr:1:2.5:direct")
    for labels in (DEFAULT_LABELS, label_set("logg", "alpha_m"), LabelSet((*DEFAULT_LABELS, own))):
        assert LabelSet.from_json(labels.to_json()) == labels


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"name": "teff"}]', '[{"colour": 3}]'])
def test_a_text_that_describes_no_labels_is_refused(text):
    with pytest.raises(ValueError, match="not a description of labels"):
        LabelSet.from_json(text)


def test_a_label_is_a_known_name_or_its_description():
    assert parse_label("teff") == KNOWN_LABELS["teff"]
    assert parse_label("alpha_m:direct") == dataclasses.replace(
        KNOWN_LABELS["alpha_m"], forward=False
    )
    age = parse_label("age:Gyr:1:2.5")
    assert (age.name, age.unit, age.shown_unit, age.tolerance) == ("age", "Gyr", "Gyr", 2.5)
    assert (age.default_err, age.width) == (1.25, 1.25)
    teff = parse_label("teff:kK:1000:0.5")
    assert (teff.tolerance, teff.symbol) == (0.5, KNOWN_LABELS["teff"].symbol)


@pytest.mark.parametrize(("text", "message"), [
    ("age", "age.*is not known"),
    ("age:Gyr", re.escape(LABEL_GRAMMAR)),
    ("age:Gyr:1:2:3", re.escape(LABEL_GRAMMAR)),
    ("a b:Gyr:1:2", re.escape(LABEL_GRAMMAR)),
    ("age:Gyr:1:old", "could not convert"),
    ("age:Gyr:0:2", "scale is 0.0, expected more than 0"),
    ("age:Gyr:1:-2", "tolerance is -2.0, expected more than 0"),
    ("teff:K:1:250", "in K, expected kK"),
])  # fmt: skip
def test_a_word_that_is_no_label_is_refused_with_what_is(text, message):
    with pytest.raises(ValueError, match=message):
        parse_label(text)


@pytest.mark.parametrize(("labels", "message"), [
    ([], "the labels are none: at least 2"),
    (["teff"], "the labels are teff: at least 2"),
    (["teff", "alpha_m:direct"], "at least 2 that are part of the forward model"),
    (["teff", "logg", "teff"], "two have the same name"),
])  # fmt: skip
def test_too_few_labels_or_one_twice_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        LabelSet(map(parse_label, labels))


def test_shapes_and_names_follow_from_the_labels():
    labels = LabelSet((*label_set("teff", "logg"), parse_label("age:Gyr:1:2:direct")))
    datasets = resolved("opt_output", Layout(labels=labels))
    parameters = datasets["stellar_params_est"]
    assert parameters.attributes["parameters"] == ["teff", "logg", "xi", "E", "parallax"]
    assert parameters.shape == (5,)
    assert datasets["stellar_params_cov_triu"].shape == (15,)
    assert {"teff_confidence", "logg_confidence", "age_confidence"} <= datasets.keys()
    assert "feh_confidence" not in datasets
    assert datasets["age_est"].attributes["units"] == "Gyr"
    assert "teff_est" not in datasets
    assert resolved("training", Layout(labels=labels))["stellar_type"].shape == (3,)


# ---- bands -----------------------------------------------------------------------------------

BAND = """
[[bands]]
name = "W3"
symbol = "$W_3$"
survey = "unwise"
wavelength = 11560.8
vega_to_ab = 5.174
depth = 12.0
value = "flux[0]"
error = "dflux[0]"
cuts = []
"""


def test_a_band_more_is_a_flux_and_a_channel_more(monkeypatch):
    surveys, bands = parse_bands(TABLE.read_text() + BAND)
    assert (list(surveys), bands[:-1]) == (list(SURVEYS), BANDS)
    monkeypatch.setattr(files, "BANDS", bands)
    layout = Layout()
    assert layout.channels[-2:] == ["W2", "W3"]
    assert layout.wavelengths[-1] == 11560.8
    for kind in ("training", "opt_input"):
        flux = resolved(kind, layout)["flux"]
        assert flux.shape == (67,)
        assert list(flux.attributes["channels"])[-1] == "W3"
        assert len(flux.attributes["sample_wavelengths"]) == 67


def test_a_flux_needs_the_columns_of_its_band_and_cuts_only():
    assert schema.photometry_columns("unwise") == ("sep_arcsec", "flux", "dflux", "fracflux", "qf")
    for name, survey in SURVEYS.items():
        assert set(schema.photometry_columns(name)) <= {c["name"] for c in survey.columns}


@pytest.mark.parametrize(("old", "new", "message"), [
    ('"flux[0]"', '"flux[x]"', "'flux[x]' is not a column"),
    ("cuts = []", 'cuts = ["qf over 0.8"]', "'qf over 0.8' is not a cut"),
    ("cuts = []", 'cuts = ["qf > good"]', "could not convert"),
    ('survey = "unwise"', 'survey = "glimpse"', "band W3: no survey 'glimpse'"),
])  # fmt: skip
def test_a_band_that_is_not_as_it_should_be_is_refused(old, new, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_bands(TABLE.read_text() + BAND.replace(old, new))


def test_a_survey_of_an_unknown_system_is_refused():
    text = TABLE.read_text().replace('system = "nanomaggy"', 'system = "jansky"')
    with pytest.raises(ValueError, match="survey unwise: system 'jansky', known"):
        parse_bands(text)


# ---- releases --------------------------------------------------------------------------------

DR3 = (FOLDER / "dr3.toml").read_text()


def release_of(folder, *changes):
    """A release like DR3, with changes (old, new) to the text of its file."""
    text = DR3
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "dr9.toml"
    path.write_text(text)
    return read_release(path)


@pytest.mark.parametrize("change", [
    ('title = "Gaia DR3"', ""),
    ('title = "Gaia DR3"', 'title = "Gaia DR3"\ncolour = "red"'),
    ("wavelengths = [392.0, 992.0, 10.0]", "wavelengths = [392.0, 992.0]"),
    ("[spectra.bp]", "[spectra.blue]"),
    ('covariance = "correlations"', 'covariance = "square"'),
    ('zero_point = "recipe"', 'zero_point = "guess"'),
    ('name = "dr3"', "name = dr3"),
])  # fmt: skip
def test_a_file_that_describes_no_release_is_named(tmp_path, change):
    with pytest.raises(ValueError, match=r"dr9\.toml: "):
        release_of(tmp_path, change)


def test_a_release_that_there_is_not_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match="no release dr9: known are dr3"):
        load_release("dr9")
    with pytest.raises(ValueError, match=r"no release /none/dr9\.toml"):
        load_release("/none/dr9.toml")


def test_shapes_and_ids_follow_from_the_release(tmp_path):
    release = release_of(
        tmp_path,
        ("[spectra.bp]\nn_coefficients = 55", "[spectra.bp]\nn_coefficients = 51"),
        ('covariance = "correlations"', 'covariance = "covariances"'),
        ("gdr3_source_id", "gdr9_source_id"),
        ("[392.0, 992.0, 10.0]", "[400.0, 980.0, 20.0]"),
    )
    spectra = resolved("xp", Layout(release))
    assert spectra["bp_coefficients"].shape == (51,)
    assert spectra["bp_coefficient_covariances"].shape == (51 * 52 // 2,)
    assert spectra["rp_coefficient_covariances"].shape == (55 * 56 // 2,)
    assert not [name for name in spectra if "correlations" in name or "errors" in name]
    inputs = resolved("opt_input", Layout(release))
    assert next(iter(inputs)) == "gdr9_source_id"
    assert inputs["flux"].shape == (30 + len(BANDS),)
    assert inputs["xp_fine"].shape == (172,)


def test_a_release_may_do_without_a_finer_grid_typical_noise_and_a_zero_point(tmp_path):
    left_out = [
        (line, "")
        for line in DR3.splitlines()
        if line.startswith(("fine_wavelengths", "noise", "[photometry]")) or "_zero_point =" in line
    ]
    assert len(left_out) == 6
    release = release_of(tmp_path, *left_out)
    assert release.spectra.noise is None
    assert len(release.spectra.fine_wavelengths) == 0
    assert np.isnan(release.g_zero_point)
    for kind in ("training", "opt_input"):
        assert "xp_fine" not in resolved(kind, Layout(release))
        assert "xp_fine" in resolved(kind)


def test_every_entry_of_a_release_is_explained_in_its_page():
    page = (ROOT / "docs/releases.md").read_text()
    entries, todo = set(), [tomllib.loads(DR3)]
    while todo:
        for name, value in todo.pop().items():
            entries.add(name)
            todo += [value] if isinstance(value, dict) else []
    unknown = {name for name in entries if not re.search(rf"`\[?{name}\]?`", page)}
    assert unknown == set()


# ---- scripts, pages, files -------------------------------------------------------------------


def step_module(script):
    return importlib.import_module(script.removesuffix(".py").replace("/", "."))


@pytest.mark.parametrize("kind", FILES)
def test_help_of_a_step_names_every_dataset_that_it_writes(capsys, kind):
    with pytest.raises(SystemExit) as exit_status:
        step_module(FILES[kind].step).parse_args(["--help"])
    assert exit_status.value.code == 0
    text = capsys.readouterr().out
    missing = [name for name in resolved(kind) if f"\n  {name} (N" not in text]
    assert missing == []


def test_steps_are_numbered_and_there_are_ten():
    numbers = [
        int(line.split(" | ")[0][2:]) for line in write_tables.steps_table().splitlines()[2:-1]
    ]
    assert numbers == list(range(1, 11))


def test_tables_of_the_pages_are_those_of_the_schema(capsys):
    status = write_tables.main(["--check"])
    assert status == 0, f"{capsys.readouterr().out}: run python tools/write_tables.py"


def test_pages_hold_every_kind_of_file_and_every_class_of_flags():
    page = (ROOT / "docs/files.md").read_text()
    for kind in FILES:
        assert f"### `{kind}`: " in page
    for cls in FLAGS.values():
        assert all(f"| {flag.value} | `{flag.name}` |" in page for flag in cls)


def test_a_marker_without_an_end_or_of_no_table_is_refused():
    with pytest.raises(write_tables.NoTableError, match="no table nonsense"):
        write_tables.filled("<!-- table: nonsense -->\n<!-- end -->\n")
    with pytest.raises(write_tables.NoTableError, match="no line <!-- end -->"):
        write_tables.filled("<!-- table: bands -->\n<!-- table: steps -->\n<!-- end -->\n")
    text = "before\n<!-- table: bands -->\nold\n<!-- end -->\nafter\n"
    new = write_tables.filled(text)
    assert new.startswith("before\n<!-- table: bands -->\n| band |")
    assert new.endswith("|\n<!-- end -->\nafter\n")
    assert write_tables.filled(new) == new


def assert_as_declared(path, kind, layout):
    """A file's datasets are those of a kind: names, dtypes, shapes, attributes."""
    with h5py.File(path) as file:
        expected = resolved(kind, layout)
        optional = {name for name, data in expected.items() if data.optional}
        assert file.keys() | optional == expected.keys()
        for name, data in file.items():
            wanted = expected[name]
            assert data.dtype == np.dtype(wanted.dtype), name
            assert data.shape[1:] == wanted.shape, name
            found = {key: np.asarray(value).tolist() for key, value in data.attrs.items()}
            assert found == {k: np.asarray(v).tolist() for k, v in wanted.attributes.items()}, name
        assert (file.attrs["kind"], file.attrs["format"]) == (kind, FILES[kind].format)
        assert file.attrs["release"] == layout.release.name


def test_files_of_the_steps_are_as_declared(demo_model):
    (inputs, *_) = sorted((demo_model.data_dir / KINDS["opt_input"].folder).glob("*.h5"))
    with h5py.File(demo_model.training_data) as file:
        labels = LabelSet.from_json(file["stellar_type"].attrs["labels"])
    assert_as_declared(inputs, "opt_input", Layout(labels=labels))
    assert_as_declared(demo_model.training_data, "training", Layout(labels=labels))
    assert_as_declared(demo_model.model / "validation.h5", "validation", Layout(labels=labels))


def test_the_code_in_the_pages_runs_as_python():
    for page in ("docs/files.md", "docs/releases.md"):
        for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL):
            ast.parse(block)
