"""Step 10 with --samples by its command line: files, lists of ids, what is missing and kept."""

import csv

import h5py
import numpy as np
import pytest
from demo_model import run_inference
from helpers import read_all
from step10_case import ODD, ODD_STARS
from test_schema import assert_as_declared

from fitting.sampling import sampler
from pipeline.schema import FILES, Layout, flags
from pipeline.select import shard_path

N = 40
UNKNOWN = 123456789


@pytest.fixture(scope="module", autouse=True)
def short_chains():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "WARM_UP", (4,))
        patch.setattr(sampler, "BURN_IN", 2)
        patch.setattr(sampler, "THINNING", (1,))
        yield


@pytest.fixture
def sky(step10, tmp_path):
    """A data directory with the inputs of three shards alone, no catalogue."""
    return step10.write_sky(tmp_path / "data")


def ids_of(step10, *counts):
    """The first ids of each of the shards."""
    tables = (step10.tables[fid]["gdr3_source_id"] for fid in step10.fids)
    return [table[:n] for table, n in zip(tables, counts, strict=False)]


def write_list(path, *ids):
    path.write_text("source_id\n" + "".join(f"{one}\n" for some in ids for one in some))
    return path


def run(step10, sky, ids, *options, n=N):
    return run_inference(sky, step10.model, "--samples", n, "--ids", ids, *options)


def output(sky, fid):
    return sky / f"xp_samples/xp_samples_{fid}.h5"


def account(sky):
    with open(sky / "xp_samples/not_sampled.csv") as file:
        return {row["source_id"]: (row["outcome"], row["reason"]) for row in csv.DictReader(file)}


def test_draws_are_written_for_the_chosen_stars_alone_as_the_schema_says(step10, sky, tmp_path):
    first, second = ids_of(step10, 3, 2)
    chosen = write_list(tmp_path / "list.csv", second[::-1], first, first[:1])
    assert run(step10, sky, chosen) == 0
    assert not output(sky, step10.fids[2]).exists()
    assert not (sky / "xp_opt_output_files").exists()
    for fid, ids in zip(step10.fids, (first, second), strict=False):
        path = output(sky, fid)
        assert_as_declared(path, "samples", Layout(draws=N))
        found = read_all(path)
        np.testing.assert_array_equal(found["gdr3_source_id"], np.sort(ids))
        assert found["model_samples"].shape == (len(ids), N, 6)
        assert np.isfinite(found["stellar_samples"]).all()
        assert (found["stellar_samples"][..., 4:] > 0).all()
        with h5py.File(path) as file:
            assert file.attrs["draws"] == N
            assert "model.h5" in file.attrs["inputs"]
            assert f"xp_opt_input_{fid}.h5" in file.attrs["inputs"]


def test_finished_draws_stay_and_a_longer_list_adds_to_them(step10, sky, tmp_path):
    (first,) = ids_of(step10, 4)
    path = output(sky, step10.fids[0])
    assert run(step10, sky, write_list(tmp_path / "a.txt", first[:2])) == 0
    before, stamp = read_all(path), path.stat().st_mtime_ns
    assert run(step10, sky, tmp_path / "a.txt") == 0
    assert path.stat().st_mtime_ns == stamp
    assert run(step10, sky, write_list(tmp_path / "b.txt", first)) == 0
    after = read_all(path)
    rows = np.isin(after["gdr3_source_id"], before["gdr3_source_id"])
    for name, values in before.items():
        np.testing.assert_array_equal(after[name][rows], values, name)


def test_draws_of_other_stars_or_of_another_number_are_not_written_over(
    step10, sky, tmp_path, capsys
):
    (first,) = ids_of(step10, 4)
    both, other = write_list(tmp_path / "a", first[:2]), write_list(tmp_path / "b", first[1:])
    assert run(step10, sky, both) == 0
    kept = output(sky, step10.fids[0]).read_bytes()
    assert run(step10, sky, other) == 2
    assert "1 stars that the list has not" in capsys.readouterr().err
    assert run(step10, sky, both, n=7) == 2
    said = capsys.readouterr().err
    assert f"{N} draws" in said
    assert "--samples-out" in said
    assert output(sky, step10.fids[0]).read_bytes() == kept
    assert run(step10, sky, other, "--samples-out", tmp_path / "beside") == 0
    assert (tmp_path / f"beside/xp_samples_{step10.fids[0]}.h5").exists()
    assert run(step10, sky, other, "--overwrite") == 0
    found = read_all(output(sky, step10.fids[0]))["gdr3_source_id"]
    np.testing.assert_array_equal(found, np.sort(first[1:]))


def test_ids_without_a_row_and_entries_that_are_none_are_named_with_the_reason(
    step10, sky, tmp_path, capsys
):
    (first,) = ids_of(step10, 3)
    chosen = write_list(tmp_path / "list", first, [UNKNOWN, "no id"])
    assert run(step10, sky, chosen) == 1
    rows = account(sky)
    assert rows[str(UNKNOWN)] == ("not found", f"not in {sky}")
    assert rows["no id"][0] == "no id"
    said = capsys.readouterr().err
    assert f"not found: 1 ({UNKNOWN})" in said
    assert "not_sampled.csv" in said
    assert len(read_all(output(sky, step10.fids[0]))["gdr3_source_id"]) == 3


def test_stars_that_cannot_be_solved_have_a_row_of_nan_and_are_named(step10, sky, tmp_path):
    table = step10.odd()
    step10.write(sky, ODD_STARS, table)
    ids, names = table["gdr3_source_id"], list(ODD)
    chosen = [names.index(x) for x in ("as it is", "no flux used", "no parallax", "BP missing")]
    assert run(step10, sky, write_list(tmp_path / "l", ids[chosen]), "--shards", ODD_STARS) == 0
    found = read_all(output(sky, ODD_STARS))
    row = found["gdr3_source_id"] == ids[names.index("no flux used")]
    assert (found["sample_flags"][row] == flags.SampleFlag.NO_SOLUTION).all()
    assert np.isnan(found["model_samples"][row]).all()
    assert np.isfinite(found["model_samples"][~row]).all()
    assert account(sky)[str(ids[names.index("no flux used")])][0] == "no solution"


def test_a_damaged_input_is_named_and_the_other_shards_are_done(step10, sky, tmp_path, capsys):
    first, second = ids_of(step10, 2, 2)
    path = shard_path(sky, "opt_input", step10.fids[0])
    path.write_bytes(path.read_bytes()[:5000])
    assert run(step10, sky, write_list(tmp_path / "l", first, second)) == 1
    rows = account(sky)
    assert all("cannot be read" in rows[str(one)][1] for one in first)
    assert len(read_all(output(sky, step10.fids[1]))["gdr3_source_id"]) == 2
    assert "not found: 2" in capsys.readouterr().err


def test_a_shard_that_fails_has_its_ids_named(step10, sky, tmp_path):
    first, second = ids_of(step10, 2, 2)
    table = step10.tables[step10.fids[0]]
    step10.write(sky, step10.fids[0], table, wavelengths=np.arange(3.0))
    assert run(step10, sky, write_list(tmp_path / "l", first, second)) == 1
    rows = account(sky)
    assert {rows[str(one)][0] for one in first} == {"not made"}
    assert output(sky, step10.fids[1]).exists()
    assert run(step10, step10.write_sky(sky), tmp_path / "l") == 0  # mended: only this is made
    assert account(sky).keys() <= {str(one) for one in [*first, *second]}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--samples", "1000"], "needs --ids FILE"),
        (["--ids", "absent"], "are for --samples N"),
        (["--samples-out", "x"], "are for --samples N"),
        (["--samples", "100001", "--ids", "absent"], "at most 100000"),
        (["--samples", "5", "--ids", "absent"], "absent: not found"),
        (["--samples", "5", "--ids", "empty"], "empty: empty"),
    ],
)
def test_wrong_usage_is_told_and_nothing_is_made(
    step10, sky, tmp_path, monkeypatch, capsys, options, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").touch()
    assert run_inference(sky, step10.model, *options) == 2
    assert words in capsys.readouterr().err
    assert not (sky / "xp_samples").exists()


@pytest.mark.parametrize("number", ["0", "-1", "x", "1.5"])
def test_a_number_of_draws_that_is_none_is_refused(step10, sky, number, capsys):
    with pytest.raises(SystemExit) as ended:
        run_inference(sky, step10.model, "--samples", number, "--ids", "l")
    assert ended.value.code == 2
    assert "number of at least 1" in capsys.readouterr().err


def test_the_files_have_a_kind_of_their_own():
    assert FILES["samples"].step == "xp_opt_allsources.py"
    assert FILES["samples"].folder is None
