"""Step 1 with --sampled: later steps find all they need, and give the same numbers."""

import numpy as np
import pytest
import step9_case
from helpers import assert_same_datasets, changed
from test_convert_xp_csv import FID, convert, csv_lines, read, spectra, write_csv

import gen_xp_input_allsources
import xp_utils
from pipeline import csv_rows
from pipeline.joining import Needs, aligned_chunks
from pipeline.read import ShardReader
from pipeline.schema import load_release, resolved
from pipeline.schema.flags import InputFlag
from pipeline.select import shard_path
from pipeline.tap_sources import read_ids
from pipeline.write import ShardWriter

RELEASE = load_release()
BASIS = xp_utils.load_xp_basis(RELEASE)


@pytest.fixture
def csv(tmp_path):
    """A CSV of 300 stars (several chunks of the sampler): one without BP, one with impossible
    correlations, one with an odd array, and a line that is no row."""
    table = spectra(300)
    table["rp_coefficient_correlations"][7] = 1.5
    lines = csv_lines(table)
    parts = lines[-50].split('"')
    lines[-50] = '"'.join([*parts[:1], "[]", *parts[2:]])
    lines[-20] = lines[-20].replace('"[', '"[x', 1)
    lines.insert(-100, "no row")
    return write_csv(tmp_path / "in", lines)


def add_other_kinds(data_dir, ids):
    """Metadata and photometry of the stars of the shard."""
    tables = step9_case.make_tables(FID, len(ids), 3)
    for kind in ("metadata", "tmass", "unwise"):
        name = "source_id" if kind == "metadata" else "gdr3_source_id"
        places = np.searchsorted(tables["metadata"]["source_id"], tables[kind][name])
        step9_case.write_table(data_dir, kind, FID, tables[kind] | {name: ids[places]})


def step9(data_dir):
    return gen_xp_input_allsources.main(["--data-dir", str(data_dir)])


@pytest.mark.parametrize("chunk", [1, 130, 512])
def test_step_9_gives_the_same_of_sampled_spectra_as_of_their_coefficients(
    tmp_path, monkeypatch, csv, chunk
):
    monkeypatch.setattr(csv_rows, "CHUNK_ROWS", chunk)
    outputs = []
    for way, options in (("whole", ()), ("sampled", ("--sampled",))):
        assert convert(csv, tmp_path / way, *options) == 0
        add_other_kinds(tmp_path / way, read_ids(tmp_path / way, FID, RELEASE))
        assert step9(tmp_path / way) == 0
        outputs.append(shard_path(tmp_path / way, "opt_input", FID))
    assert_same_datasets(*outputs)
    with ShardReader(outputs[1]) as reader:
        assert reader.n_rows == 300
        flags = reader.read("input_flags")
    assert (flags & InputFlag.COV_BAD > 0).sum() == 1
    assert (flags & InputFlag.BP_MISSING > 0).sum() == 2


def test_a_sampled_shard_has_the_datasets_of_the_schema_and_says_what_it_is(tmp_path, csv):
    assert convert(csv, tmp_path, "--sampled") == 0
    found, attrs = read(tmp_path)
    declared = resolved("sampled")
    assert found.keys() == declared.keys()
    with ShardReader(shard_path(tmp_path, "xp", FID)) as reader:
        reader.check(declared)
    assert (attrs["kind"], attrs["xp_basis"]) == ("sampled", BASIS.source)
    assert len(attrs["unusable_lines"].split()) == 1


def test_steps_that_need_ids_alone_read_them_of_either_form(tmp_path, csv):
    ids = []
    for way, options in (("whole", ()), ("sampled", ("--sampled",))):
        assert convert(csv, tmp_path / way, *options) == 0
        ids.append(read_ids(tmp_path / way, FID, RELEASE))
        ((_, tables),) = aligned_chunks(tmp_path / way, FID, {"xp": Needs()}, RELEASE)
        np.testing.assert_array_equal(tables["xp"]["source_id"], ids[-1])
    np.testing.assert_array_equal(*ids)


def test_chosen_rows_of_sampled_spectra_are_those_of_their_coefficients(tmp_path, csv):
    needs, wanted = {"xp": Needs(*xp_utils.star_columns(RELEASE)["xp"])}, [299, 7, 130]
    fluxes = []
    for way, options in (("whole", ()), ("sampled", ("--sampled",))):
        assert convert(csv, tmp_path / way, *options) == 0
        for _, tables in aligned_chunks(tmp_path / way, FID, needs, RELEASE, wanted, 2):
            xp, none = tables["xp"], {"norm_dg": np.full(len(tables["xp"]["source_id"]), np.nan)}
            fluxes.append(xp_utils.flux_vectors(xp, {}, none, BASIS).columns())
    for left, right in zip(fluxes[:2], fluxes[2:], strict=True):
        for name, values in left.items():
            np.testing.assert_array_equal(values, right[name], name)


def test_a_shard_of_the_other_form_is_made_again(tmp_path, capsys, csv):
    assert convert(csv, tmp_path, "--sampled") == 0
    assert convert(csv, tmp_path, "--sampled") == 0
    assert "1 already complete" in capsys.readouterr().err
    assert convert(csv, tmp_path) == 0
    assert "made again: it holds XP spectra sampled already" in capsys.readouterr().err
    assert "bp_coefficients" in read(tmp_path)[0]
    assert convert(csv, tmp_path, "--sampled") == 0
    assert "made again: it holds XP continuous mean spectra" in capsys.readouterr().err
    assert "xp_flux" in read(tmp_path)[0]


def test_spectra_sampled_with_another_basis_are_refused(tmp_path, capsys, csv):
    assert convert(csv, tmp_path, "--sampled") == 0
    path = shard_path(tmp_path, "xp", FID)
    add_other_kinds(tmp_path, read_ids(tmp_path, FID, RELEASE))
    with changed(path) as file:
        file.attrs["xp_basis"] = "another"
    assert step9(tmp_path) == 1
    shown = capsys.readouterr().err
    assert f"{path}: sampled with the basis 'another', but {BASIS.source!r} is in use" in shown
    assert "convert the spectra again" in shown


def test_a_sampled_shard_of_another_version_is_refused_by_name(tmp_path):
    datasets, path = resolved("sampled"), shard_path(tmp_path, "xp", FID)
    with ShardWriter(path, 0, "source_id", {"script": "convert_xp_csv"}) as writer:
        writer.create_columns(datasets)
    with changed(path) as file:
        file.attrs["format"] = 0
    with ShardReader(path) as reader, pytest.raises(Exception, match="make it again with that"):
        reader.check(resolved("xp").only(["source_id"]))


def test_spectra_of_another_release_fail_the_file_also_with_sampled(tmp_path, capsys):
    table = spectra(3)
    table["rp_basis_function_id"][:] = 62
    path = write_csv(tmp_path / "in", csv_lines(table))
    assert convert(path, tmp_path / "data", "--sampled") == 1
    shown = capsys.readouterr().err
    assert "of Gaia DR3: spectra of another release; give its --release" in shown
    assert not shard_path(tmp_path / "data", "xp", FID).exists()
