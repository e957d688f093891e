"""What is replaced while a step runs never gives an output that says it is of something else."""

import json
import shutil

import numpy as np
import pytest
import step9_case
from helpers import lay_out, make_sky, read_all
from shard_case import write_shard
from test_match_unwise import write_metadata, write_tiles

import match_unwise_gaia
import query_reddening_gaia
from demo import dust_maps
from pipeline import training_labels
from pipeline.errors import ShardError
from pipeline.provenance import Status, output_state, provenance, see
from pipeline.read import ShardReader
from pipeline.select import shard_path
from pipeline.write import ShardWriter


def write_meanwhile(path, source, happens):
    """A shard made from `source`, with which something happens while it is written."""
    made_by = provenance("test", [], [source])
    with ShardWriter(path, 3, "source_id", made_by) as writer:
        writer.write("source_id", 0, np.arange(3))
        happens()


@pytest.mark.parametrize("foreign", [False, True])
def test_a_shard_whose_input_is_replaced_before_its_end_fails_and_names_it(tmp_path, foreign):
    source, output = tmp_path / "in.h5", tmp_path / "out.h5"
    if foreign:
        source.write_text("a tile")
        replace = lambda: source.write_text("another tile")  # noqa: E731
    else:
        write_shard(source)
        replace = lambda: write_shard(source, value=2.0)  # noqa: E731
    with pytest.raises(ShardError, match=r"in\.h5: was replaced or changed"):
        write_meanwhile(output, source, replace)
    assert [path.name for path in tmp_path.iterdir()] == ["in.h5"]
    write_meanwhile(output, source, lambda: None)
    assert output_state(output, [source]).status is Status.COMPLETE


def test_an_input_made_again_with_the_same_content_meanwhile_is_no_matter(tmp_path):
    source, output = write_shard(tmp_path / "in.h5"), tmp_path / "out.h5"
    write_meanwhile(output, source, lambda: write_shard(source, script="again"))
    assert output_state(output, [source]).status is Status.COMPLETE


def test_an_input_that_is_removed_before_the_end_is_named(tmp_path):
    source = write_shard(tmp_path / "in.h5")
    with pytest.raises(ShardError, match=r"in\.h5: input not found"):
        write_meanwhile(tmp_path / "out.h5", source, source.unlink)


def test_what_was_loaded_and_then_replaced_makes_no_output(tmp_path):
    source = write_shard(tmp_path / "in.h5")
    loaded = see(source)
    write_shard(source, value=2.0)
    with pytest.raises(ShardError, match="was replaced"):
        provenance("test", [], [loaded])


# ---- the steps -------------------------------------------------------------------------------


def two_shards_of_one_tile(folder):
    ra, dec = np.linspace(150.2, 150.4, 20), np.full(20, 0.75)
    fids = ["000000-393215", "393216-786431"]
    for fid in fids:
        write_metadata(folder / "data", ra, dec, fid=fid)
    write_tiles(folder / "tiles", ra, dec)
    return fids, ra, dec


def test_a_tile_replaced_between_shards_is_read_again(tmp_path, monkeypatch):
    """Else the second shard would hold the old tile's fluxes and the new one's identity."""
    fids, ra, dec = two_shards_of_one_tile(tmp_path)
    whole = match_unwise_gaia.write_matches

    def write_matches(output, *rest):
        whole(output, *rest)
        if fids[0] in output.name:
            write_tiles(tmp_path / "tiles", ra, dec, flux=np.full((20, 2), 77.0))

    monkeypatch.setattr(match_unwise_gaia, "write_matches", write_matches)
    words = ["--data-dir", str(tmp_path / "data"), "--unwise-dir", str(tmp_path / "tiles")]
    assert match_unwise_gaia.main(words) == 0
    fluxes = [read_all(shard_path(tmp_path / "data", "unwise", fid))["flux"] for fid in fids]
    assert (fluxes[0] != 77.0).any()
    assert (fluxes[1] == 77.0).all()
    monkeypatch.undo()
    assert match_unwise_gaia.main(words) == 0  # the first is of another tile than now
    assert (read_all(shard_path(tmp_path / "data", "unwise", fids[0]))["flux"] == 77.0).all()


def test_a_map_replaced_while_step_5_runs_fails_the_shards_that_are_left(
    tmp_path, monkeypatch, capsys
):
    fids, *_ = two_shards_of_one_tile(tmp_path)
    for fid in fids:
        step9_case.write_table(tmp_path / "data", "metadata", fid, metadata_of(20))
    dust_maps.write_sfd(tmp_path / "maps")
    file = tmp_path / "maps" / query_reddening_gaia.MAPS["sfd"].files[0]
    whole = query_reddening_gaia.make_shard

    def make_shard(source_id, columns, output, *rest):
        counts = whole(source_id, columns, output, *rest)
        with open(file, "r+b") as opened:  # in place, as a download does
            opened.seek(-100, 2)
            opened.write(b"\1" * 100)
        return counts

    monkeypatch.setattr(query_reddening_gaia, "make_shard", make_shard)
    words = ["--data-dir", str(tmp_path / "data"), "--dustmaps-dir", str(tmp_path / "maps")]
    assert query_reddening_gaia.main([*words, "--maps", "sfd"]) == 1
    shown = capsys.readouterr().err
    assert "1 done" in shown
    assert f"{file.name}: was replaced or changed while it was in use" in shown
    monkeypatch.undo()
    assert query_reddening_gaia.main([*words, "--maps", "sfd"]) == 0
    assert "2 done" in capsys.readouterr().err  # the first was of the former map


def metadata_of(n):
    table = {"source_id": np.arange(n) + 5, "ra": np.linspace(10, 20, n), "dec": np.zeros(n)}
    return table | {"parallax": np.ones(n), "parallax_error": np.full(n, 0.1)}


def test_labels_replaced_while_step_7_runs_give_no_training_set(tmp_path, monkeypatch, capsys):
    import step7_case

    sky = make_sky()
    lay_out(tmp_path, sky)
    labels = step7_case.make_labels(sky)
    whole = training_labels.clean_labels

    def clean_labels(table, path, log):
        step7_case.write_labels(path, labels | {"params_est": labels["params_est"] + 0.1})
        return whole(table, path, log)

    monkeypatch.setattr(step7_case.step, "clean_labels", clean_labels)
    assert step7_case.run(tmp_path, labels=labels) == 1
    assert "labels.h5: was replaced or changed" in capsys.readouterr().err
    assert not (tmp_path / "training_data.h5").exists()
    monkeypatch.undo()
    assert step7_case.run(tmp_path) == 0


def test_files_of_spectra_replaced_after_they_were_sorted_fail(tmp_path, monkeypatch, capsys):
    from test_spectra_forms import two_bands, write_hdf5

    from pipeline import spectra_conversion
    from tools import convert_xp_csv

    write_hdf5(tmp_path / "mine.h5", two_bands())
    whole = spectra_conversion.read_others

    def read_others(*words):
        found = whole(*words)
        write_hdf5(tmp_path / "mine.h5", {**two_bands(), "bp_standard_deviation": np.ones(4)})
        return found

    monkeypatch.setattr(spectra_conversion, "read_others", read_others)
    words = [str(tmp_path / "mine.h5"), "--data-dir", str(tmp_path / "data")]
    assert convert_xp_csv.main(words) == 1
    assert "mine.h5: was replaced or changed" in capsys.readouterr().err


# ---- models ----------------------------------------------------------------------------------


@pytest.fixture
def sky(tmp_path, step10, monkeypatch):
    """Three small shards, and an inference that takes no time."""
    import step10_case

    from fitting import catalogue

    for name in ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(catalogue, "infer", step10_case.stand_in)
    return step10.write_sky(tmp_path / "data")


def other_model(demo_model, folder, shift):
    """A folder with the model, or one like it."""
    from pipeline.read import read_arrays
    from pipeline.write import write_arrays

    folder.mkdir(exist_ok=True)
    if not shift:
        shutil.copy(demo_model.model / "model.h5", folder)
        return folder
    arrays, _ = read_arrays(demo_model.model / "model.h5")
    arrays["bias_out"] = arrays["bias_out"] + np.float32(shift)
    write_arrays(folder / "model.h5", arrays, {})
    return folder


def model_of(data_dir, fid):
    with ShardReader(shard_path(data_dir, "opt_output", fid)) as reader:
        return json.loads(reader.attrs["inputs"])[1]["identity"]


def infer(data_dir, model, *options):
    from demo_model import run_inference

    return run_inference(data_dir, model, *options)


def test_a_model_replaced_while_step_10_runs_makes_no_more_shards(
    sky, step10, demo_model, tmp_path, monkeypatch, capsys
):
    import xp_opt_allsources as step

    model = other_model(demo_model, tmp_path / "model", 0)
    first, whole = see(model / "model.h5").entry["identity"], step.make_shard

    def make_shard(fid, *words, **options):
        counters = whole(fid, *words, **options)
        other_model(demo_model, model, 0.5)
        return counters

    monkeypatch.setattr(step, "make_shard", make_shard)
    assert infer(sky, model) == 1
    shown = capsys.readouterr().err
    assert "1 done" in shown
    assert "model.h5: was replaced or changed while it was in use" in shown
    assert model_of(sky, step10.fids[0]) == first
    monkeypatch.setattr(step, "make_shard", whole)
    assert infer(sky, model) == 0
    assert "3 done" in capsys.readouterr().err
    assert {model_of(sky, fid) for fid in step10.fids} == {
        see(model / "model.h5").entry["identity"]
    }


def test_some_shards_by_another_model_than_the_others_are_refused_unless_told(
    sky, step10, demo_model, tmp_path, monkeypatch, capsys
):
    old, new = (other_model(demo_model, tmp_path / f"m{k}", k) for k in range(2))
    fids = step10.fids
    assert infer(sky, old) == 0
    capsys.readouterr()
    for options in (["--shards", fids[0]], ["--partition", 64, 0]):
        assert infer(sky, new, *options) == 2
        shown = capsys.readouterr().err
        assert "have results of another model" in shown
        assert "--allow-mixed-models" in shown
        assert shown.count("\n") == 1
    assert infer(sky, old, "--shards", fids[0]) == 0
    assert infer(sky, new, "--shards", fids[0], "--allow-mixed-models") == 0
    capsys.readouterr()
    assert infer(sky, new, "--shards", fids[1]) == 0  # goes on with what was begun
    assert "1 shards that this run leaves out" in capsys.readouterr().err
    assert infer(sky, new) == 0  # retrained: all shards
    assert "1 done, 2 already complete" in capsys.readouterr().err
    assert infer(sky, old, "--shards", *fids) == 0
    assert "leaves out" not in capsys.readouterr().err


def test_a_whole_slurm_array_may_bring_a_new_model_and_a_part_of_one_may_not(
    sky, step10, demo_model, tmp_path, monkeypatch, capsys
):
    old, new = (other_model(demo_model, tmp_path / f"m{k}", k) for k in range(2))
    assert infer(sky, old) == 0
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    assert infer(sky, new, "--parts", 4) == 2
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "4")
    for task in range(4):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
        assert infer(sky, new, "--parts", 4) == 0
    assert len({model_of(sky, fid) for fid in step10.fids}) == 1
