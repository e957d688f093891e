"""Shards are found by their names, and every one is in one part."""

import pytest
from shard_case import arguments, fid_list, touch_shards

from pipeline import schema, select
from pipeline.errors import ShardError, UsageError


def parts_of(data_dir, n, kind="xp", options=()):
    return [
        select.select_fids(arguments(data_dir, "--partition", n, k, *options), kind)
        for k in range(n)
    ]


@pytest.mark.parametrize("n", [1, 4, 7, 60, 75])
def test_every_shard_is_in_exactly_one_part_and_parts_are_even(tmp_path, n):
    touch_shards(tmp_path, fid_list(60))
    parts = parts_of(tmp_path, n)
    assert sorted(fid for part in parts for fid in part) == fid_list(60)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_the_parts_of_a_whole_sky_on_1000_tasks_are_even():
    fids = fid_list(3386)
    sizes = [len(select.in_part(fids, fids, (1000, k))) for k in range(1000)]
    assert (min(sizes), max(sizes), sum(sizes)) == (3, 4, 3386)


def test_a_part_is_the_same_shards_in_every_step_whatever_is_there_of_its_own_inputs(tmp_path):
    fids = fid_list(30)
    touch_shards(tmp_path, fids)
    parts = parts_of(tmp_path, 4)
    there = fids[3:25:3]
    touch_shards(tmp_path, there, "metadata")
    for part, found in zip(parts, parts_of(tmp_path, 4, "metadata"), strict=True):
        assert found == [fid for fid in part if fid in there]
    for part, found in zip(parts, parts_of(tmp_path, 4, "xp", ["--shards", *there]), strict=True):
        assert found == [fid for fid in part if fid in there]


def test_shards_without_spectra_are_dealt_out_too_and_move_no_others(tmp_path):
    touch_shards(tmp_path, fid_list(9))
    touch_shards(tmp_path, fid_list(9), "metadata")
    before = parts_of(tmp_path, 3, "metadata")
    others = ["000050-000060", "700000-700001", "800000-800001"]
    touch_shards(tmp_path, others, "metadata")
    after = parts_of(tmp_path, 3, "metadata")
    assert sorted(fid for part in after for fid in part) == sorted(fid_list(9) + others)
    for part, found in zip(before, after, strict=True):
        assert [fid for fid in found if fid not in others] == part
        assert len(found) == 4


def test_without_spectra_the_shards_of_the_step_are_dealt_out(tmp_path):
    touch_shards(tmp_path, fid_list(6), "opt_input")
    parts = parts_of(tmp_path, 4, "opt_input")
    assert [len(part) for part in parts] == [2, 2, 1, 1]


@pytest.mark.parametrize("first", [0, 1])
def test_slurm_array_tasks_cover_the_shards_wherever_the_array_starts(tmp_path, monkeypatch, first):
    touch_shards(tmp_path, fid_list(20))
    chosen = []
    for task in range(first, first + 3):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
        chosen += select.select_fids(arguments(tmp_path, "--parts", 3), "xp")
    assert sorted(chosen) == fid_list(20)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    with pytest.raises(UsageError, match="part 7 of 3"):
        select.select_fids(arguments(tmp_path, "--parts", 3), "xp")
    assert select.select_fids(arguments(tmp_path, "--partition", 1, 0), "xp") == fid_list(20)


@pytest.mark.parametrize("tasks", ["3,17", "0-19:10"])
def test_a_task_that_is_run_again_in_a_smaller_array_does_the_part_that_it_did(
    tmp_path, monkeypatch, tasks
):
    touch_shards(tmp_path, fid_list(60))
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "17" if tasks == "3,17" else "10")
    parts = []
    for count in ("20", "2"):  # of the whole array, and of the smaller one
        monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", count)
        monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "0")
        parts.append(select.select_fids(arguments(tmp_path, "--parts", 20), "xp"))
    assert parts[0] == parts[1] != []
    monkeypatch.setenv("XPFWD_PARTS", "20")
    assert select.select_fids(arguments(tmp_path), "xp") == parts[0]


def test_a_slurm_array_without_the_number_of_parts_is_refused_with_what_to_do(
    tmp_path, monkeypatch
):
    touch_shards(tmp_path, fid_list(4))
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "4")
    with pytest.raises(UsageError, match="give --parts N"):
        select.select_fids(arguments(tmp_path), "xp")


def test_only_exact_names_are_shards(tmp_path):
    touch_shards(tmp_path, ["000000-000099"])
    folder = tmp_path / "xp_continuous_mean_spectrum"
    for name in (
        ".XpContinuousMeanSpectrum_000100-000199.h5.node-1.ab.part",
        "XpContinuousMeanSpectrum_000100-000199.h5.bak",
        "XpContinuousMeanSpectrum_100-199.h5",
        "copy_XpContinuousMeanSpectrum_000100-000199.h5",
    ):
        (folder / name).touch()
    assert select.list_fids(tmp_path, "xp") == ["000000-000099"]
    assert select.list_fids(tmp_path, "tmass") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--partition", 2, 2], "part 2 of 2"),
        (["--partition", 0, 0], "part 0 of 0"),
        (["--shards", "000001-000002"], "000001-000002"),
    ],
)
def test_impossible_selections_are_usage_errors(tmp_path, options, message):
    touch_shards(tmp_path, fid_list(3))
    with pytest.raises(UsageError, match=message):
        select.select_fids(arguments(tmp_path, *options), "xp")


def test_missing_folders_are_usage_errors_that_name_the_way_out(tmp_path):
    with pytest.raises(UsageError, match="--data-dir"):
        select.select_fids(arguments(tmp_path), "xp")
    touch_shards(tmp_path, fid_list(1))
    with pytest.raises(UsageError, match="--without tmass"):
        select.used_kinds(tmp_path, ["xp", "tmass"])
    assert select.used_kinds(tmp_path, ["xp", "tmass"], ["tmass"]) == ["xp"]
    with pytest.raises(ShardError, match="xp_tmass_match_000000"):
        select.input_paths(tmp_path, fid_list(1)[0], ["xp", "tmass"])


def test_help_of_a_step_is_its_docstring_and_every_dataset_that_it_writes():
    text = select.step_parser(
        "What it does.\n\n    python step.py", "tmass", "training"
    ).format_help()
    assert "What it does.\n\n    python step.py" in text
    for kind in ("tmass", "training"):
        for name in schema.resolved(kind):
            assert f"  {name} (N" in text
    assert "  flux (N,66) [1e-18 W m-2 nm-1]: XP spectrum" in text


def test_help_of_a_shard_step_has_the_exit_status_for_work_elsewhere():
    parser = select.step_parser("What it does.", "tmass")
    select.add_shard_arguments(parser)
    assert "exit status 3: nothing failed" in parser.format_help()
    assert "  designation (N" in parser.format_help()


def parse_release(*words):
    parser = select.step_parser("What it does.")
    select.add_release_argument(parser)
    return parser.parse_args([str(word) for word in words]).release


def test_a_release_is_asked_for_by_name_or_by_the_path_of_its_file(tmp_path):
    assert parse_release() is schema.load_release("dr3")
    text = (schema.release.FOLDER / "dr3.toml").read_text()
    path = tmp_path / "own.toml"
    path.write_text(text.replace('name = "dr3"', 'name = "own"'))
    assert parse_release("--release", path).name == "own"


@pytest.mark.parametrize("damage", ["absent", "not a release"])
def test_a_release_that_cannot_be_read_is_one_clear_error(tmp_path, capsys, damage):
    path = tmp_path / "dr9.toml"
    if damage != "absent":
        path.write_text("name = 3")
    with pytest.raises(SystemExit) as exit_status:
        parse_release("--release", path)
    assert exit_status.value.code == 2
    assert "dr9.toml" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_release("--release", "dr9")
    assert "no release dr9: known are dr3" in capsys.readouterr().err
