"""The demo's runner: stops at the first failing step, reports the right numbers."""

import numpy as np
import pytest

from demo import run_demo
from pipeline.errors import ShardError
from pipeline.schema import DEFAULT_LABELS, inferred_columns
from pipeline.select import shard_path
from pipeline.write import ShardWriter

SCRIPT = "import sys; open(sys.argv[1], 'w').write('ran'); sys.exit(int(sys.argv[2]))"


def catalogue_of(ids, est, err, flags):
    """Columns of a catalogue; those that the demo does not look at are zeros."""
    columns = inferred_columns(DEFAULT_LABELS)
    table = {name: np.zeros((len(ids), *data.shape), data.dtype) for name, data in columns.items()}
    table |= {"stellar_params_est": est, "stellar_params_err": err}
    return table | {"gdr3_source_id": ids, "quality_flags": np.asarray(flags, "u2")}


def test_the_demo_stops_at_the_first_failing_step_and_says_which(tmp_path, monkeypatch, capfd):
    script = tmp_path / "step.py"
    script.write_text(SCRIPT)
    done = [tmp_path / name for name in "abc"]
    commands = [[str(script), str(path), code] for path, code in zip(done, "030", strict=True)]
    monkeypatch.setattr(run_demo, "steps", lambda run_dir, stars: commands)
    assert run_demo.main(["--run-dir", str(tmp_path)]) == 1
    assert [path.exists() for path in done] == [True, True, False]
    out, err = capfd.readouterr()
    assert f"$ python {script} {done[0]} 0" in out
    assert "status 3" in err
    assert len(err.strip().splitlines()) == 1


def test_the_steps_are_scripts_by_their_documented_command_lines():
    commands = [" ".join(command) for command in run_demo.steps("elsewhere", "demo/stars.h5")]
    assert commands == [
        "demo/build_sky.py --stars demo/stars.h5 --out elsewhere/data --tiles",
        "match_unwise_gaia.py --data-dir elsewhere/data --unwise-dir elsewhere/data/unwise_tiles",
        "query_reddening_gaia.py --data-dir elsewhere/data --maps bh --output-dir elsewhere/bh",
        "compile_training_data.py --data-dir elsewhere/data "
        "--stellar-params elsewhere/data/training_params.h5 --output elsewhere/training_data.h5",
        "train.py -i elsewhere/training_data.h5 -o elsewhere/model --recipe demo/recipe.toml "
        "--parallax-scale spectro-photometric parallaxes",
        "gen_xp_input_allsources.py --data-dir elsewhere/data",
        "xp_opt_allsources.py --data-dir elsewhere/data --model elsewhere/model --use-parallaxes",
    ]


def test_stars_are_joined_by_id_whatever_the_order():
    rng = np.random.default_rng(3)
    ids = np.arange(100, 120)
    value = np.stack([ids, ids + 0.5, ids - 0.5], axis=1).astype(float)
    a, b = rng.permutation(20), rng.permutation(20)
    six = np.hstack([value, value])
    catalogue = catalogue_of(ids[a], six[a], six[a] / 10, np.zeros(20))
    table = {"gdr3_source_id": ids[b], "params_est": value[b], "params_err": value[b] / 100}
    parts = run_demo.join_labels(catalogue, table, DEFAULT_LABELS, ids[[7, 3, 11]])
    for part, scale in zip(parts, (1, 0.1, 1, 0.01), strict=True):
        np.testing.assert_allclose(part, value[[7, 3, 11]] * scale)
    with pytest.raises(ShardError, match="1 of 2 validation stars"):
        run_demo.join_labels(catalogue, table, DEFAULT_LABELS, np.array([105, 999]))


def test_a_star_that_is_neither_finite_nor_flagged_is_counted():
    est = np.ones((4, 6))
    est[[1, 2], 0] = np.nan
    catalogue = catalogue_of(np.arange(4), est, np.ones((4, 6)), [0, 128, 0, 1])
    text, lost = run_demo.completeness(catalogue)
    assert text == "4 stars in the catalogue: 2 finite, 2 flagged, 1 neither"
    assert lost == 1


def test_the_report_reads_all_shards_and_names_the_figures(tmp_path, capsys):
    ids = np.array([5, 6, 7, 8])
    value = np.tile([5.0, 0.0, 4.5, 0.0, 0.1, 1.0], (4, 1))
    labels = {"labels": DEFAULT_LABELS.to_json()}
    for fid, rows in {"000000-000001": slice(0, 2), "000002-000003": slice(2, 4)}.items():
        path = shard_path(tmp_path / "data", "opt_output", fid)
        with ShardWriter(path, 2, "gdr3_source_id", {}, labels) as writer:
            part = catalogue_of(ids[rows], value[rows], value[rows] * 0 + 0.1, [0, 1])
            writer.write_table(part)
    columns = [("gdr3_source_id", "i8"), ("params_est", "f4", 3), ("params_err", "f4", 3)]
    table = np.zeros(4, columns)
    table["gdr3_source_id"], table["params_est"], table["params_err"] = ids, value[:, :3], 0.1
    with ShardWriter(tmp_path / "data" / "training_params.h5", None, None, {}) as writer:
        writer.write_array("training_params", table)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "validation_ids.txt").write_text("6\n7\n")
    (tmp_path / "model" / "loss.png").touch()
    assert run_demo.report(tmp_path) == 0
    out = capsys.readouterr().out
    assert "4 stars in the catalogue: 4 finite, 2 flagged, 0 neither" in out
    assert "the 2 validation stars" in out
    assert "loss.png" in out
