"""Spectra of a list of sources from a DataLink service: all ids accounted for, nothing lost."""

import csv
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import astroquery
import numpy as np
import pytest
from astropy.table import Table
from datalink_stub import DataLinkStub, document, rows_of, zipped
from tap_case import FAST, ROOT, wait_for
from test_convert_xp_csv import FID, assert_equal_tables, convert, csv_lines, read, write_csv
from test_spectra_forms import two_bands

from pipeline import spectra_merge, spectra_others
from pipeline.datalink import EmptyAnswerError, read_answer
from pipeline.schema import load_release
from pipeline.select import list_fids, shard_path
from tools import fetch_xp

RELEASE = load_release()
N = 10
ABSENT = 4295806720  # no spectrum of it
SPECTRA = two_bands(N)
IDS = SPECTRA["source_id"]
ASTROQUERY = Path(astroquery.__file__).parent / "gaia" / "tests" / "data"


@pytest.fixture
def stub():
    with DataLinkStub(SPECTRA) as service:
        yield service


def write_list(folder, ids, name="list.txt"):
    path = folder / name
    path.write_text("\n".join(map(str, ids)) + "\n")
    return path


def fetch(folder, stub, ids=IDS, *options):
    """Exit status of the tool; ids: of the list, or None with --cone among the options."""
    words = [] if ids is None else ["--ids", write_list(folder, ids)]
    words += ["--data-dir", folder / "data", "--datalink-url", stub.data_url, "--tap-url", stub.url]
    words += ["--batch-size", 4, "--attempts", 3, *FAST, *options]
    return fetch_xp.main([str(word) for word in words])


def kept(folder):
    return sorted((folder / "data" / "xp_datalink").glob("dr3_*.zip"))


def lacking(folder):
    with open(folder / "data" / "xp_datalink" / "not_received.csv") as file:
        return {row["source_id"]: (row["outcome"], row["reason"]) for row in csv.DictReader(file)}


def asked(stub):
    return [i for ids in stub.asked for i in ids]


def ids_of(folder):
    """Those of all shards."""
    fids = list_fids(folder / "data", "xp")
    return np.concatenate([read(folder / "data", fid)[0]["source_id"] for fid in fids])


def numbers(err):
    """{what: number} of the account on the terminal."""
    lines = err.split("fetch_xp: ")[-1].splitlines()
    words = [line.rsplit(None, 1) for line in lines if line.startswith("  ")]
    return {w[0].strip(): int(w[1]) for w in words if len(w) == 2 and w[1].isdigit()}


# ---- what comes ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["csv", "ecsv", "votable", "fits"])
@pytest.mark.parametrize("individual", [False, True])
def test_spectra_of_every_form_of_answer_become_the_shard(tmp_path, stub, form, individual):
    stub.form, stub.individual = form, individual
    assert fetch(tmp_path, stub) == 0
    found, attrs = read(tmp_path / "data", FID)
    assert_equal_tables(found, SPECTRA)
    assert attrs["sorted_by_id"]
    assert "n_repeated" not in attrs
    assert sorted(asked(stub)) == IDS.tolist()
    assert lacking(tmp_path) == {}


@pytest.mark.parametrize("form", ["csv", "votable", "fits"])
def test_a_plain_document_is_taken_as_the_zip_of_it(tmp_path, stub, form):
    stub.form, stub.plain = form, True
    assert fetch(tmp_path, stub) == 0
    assert_equal_tables(read(tmp_path / "data", FID)[0], SPECTRA)


def test_what_is_sent_is_what_the_release_says(tmp_path, stub):
    assert fetch(tmp_path, stub, IDS[:4]) == 0
    sent = dict(stub.sent[0])
    assert sent.pop("ID") == ",".join(map(str, IDS[:4]))
    assert sent == RELEASE.datalink.parameters
    assert sent["RETRIEVAL_TYPE"] == "XP_CONTINUOUS"


@pytest.mark.parametrize("form", ["csv", "ecsv", "vot", "fits"])
def test_a_real_answer_of_the_archive_is_read(tmp_path, form):
    path = ASTROQUERY / f"gaia_dr3_source_id_5937083312263887616_dl_products_{form}.zip"
    if not path.is_file():
        pytest.skip("astroquery came without its tests")
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.startswith("XP_CONTINUOUS")]
        (tmp_path / "one.zip").write_bytes(zipped({n: archive.read(n) for n in names}))
    ids = np.array([ABSENT, 5937083312263887616])
    answer = read_answer(tmp_path / "one.zip", ids, RELEASE)
    assert answer.received.tolist() == ids[1:].tolist()
    assert answer.lacking.tolist() == ids[:1].tolist()
    assert answer.n_odd == 0


def test_sampled_shards_and_no_shards_at_all(tmp_path, stub):
    assert fetch(tmp_path, stub, IDS, "--no-convert") == 0
    assert len(kept(tmp_path)) == 3
    assert list_fids(tmp_path / "data", "xp") == []
    assert fetch(tmp_path, stub, IDS, "--sampled") == 0
    assert len(stub.asked) == 3
    found = read(tmp_path / "data", FID)[0]
    assert found["source_id"].tolist() == IDS.tolist()
    assert "bp_coefficients" not in found


# ---- the account -----------------------------------------------------------------------------


def test_entries_and_ids_add_up_and_those_without_spectrum_are_named(tmp_path, stub, capsys):
    entries = [*IDS, "", IDS[0], "Gaia DR3 " + str(IDS[1]), ABSENT, ABSENT + 1, ""]
    assert fetch(tmp_path, stub, entries) == 0
    found = numbers(capsys.readouterr().err)
    assert found == {
        "entries of the list": 15, "empty or missing": 1, "repeated": 2, "no id of a source": 0,
        "ids asked for": 12, "received": 10, "without spectrum": 2, "failed": 0,
    }  # fmt: skip
    assert {i: outcome for i, (outcome, _) in lacking(tmp_path).items()} == {
        str(ABSENT): "without spectrum", str(ABSENT + 1): "without spectrum",
    }  # fmt: skip
    assert asked(stub).count(ABSENT) == 2
    log = (tmp_path / "data" / "logs" / "fetch_xp.log").read_text()
    assert "ids asked for" in log


def test_an_entry_that_is_no_id_is_named_and_the_others_are_fetched(tmp_path, stub, capsys):
    assert fetch(tmp_path, stub, [*IDS, "HD 1234"]) == 1
    assert "line 11 of the list: 'HD 1234'" in capsys.readouterr().err
    assert lacking(tmp_path)["HD 1234"][0] == "no id"
    assert ids_of(tmp_path).tolist() == IDS.tolist()


def test_lost_sources_are_asked_for_once_more_and_come(tmp_path, stub):
    stub.faults["data"] = ["lose 1", "lose 2", None]
    assert fetch(tmp_path, stub) == 0
    assert ids_of(tmp_path).tolist() == IDS.tolist()
    assert sorted(asked(stub)) == sorted([*IDS, *IDS[:1], *IDS[4:6]])
    assert len(stub.asked) == 4


def test_a_list_without_any_spectrum_is_no_failure_and_makes_no_shard(tmp_path, stub):
    assert fetch(tmp_path, stub, [ABSENT]) == 0
    assert lacking(tmp_path)[str(ABSENT)][0] == "without spectrum"
    assert list_fids(tmp_path / "data", "xp") == []
    assert fetch(tmp_path, stub, [ABSENT]) == 0
    assert len(stub.asked) == 2
    assert fetch(tmp_path, stub, [ABSENT], "--ask-again") == 0
    assert len(stub.asked) == 3


# ---- faults ----------------------------------------------------------------------------------

PASSING = [500, 503, 429, "reset", "silent", "html", "error document", "error votable", "json",
           "text", "empty zip", "nothing", "cut zip", "damaged zip", "half", "others"]  # fmt: skip


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_is_no_answer_and_is_asked_again(tmp_path, stub, fault):
    stub.faults["data"] = [fault, fault]
    assert fetch(tmp_path, stub, IDS[:4]) == 0
    assert ids_of(tmp_path).tolist() == IDS[:4].tolist()
    # After an empty answer another one was used up by the question whether the service is well.
    assert stub.asked.count(IDS[:4].tolist()) == (2 if fault in ("empty zip", "nothing") else 3)
    assert len(kept(tmp_path)) == 1


def test_a_votable_that_says_it_was_cut_is_no_answer(tmp_path, stub):
    stub.form, stub.faults["data"] = "votable", ["overflow"]
    assert fetch(tmp_path, stub, IDS[:4]) == 0
    assert stub.asked == [IDS[:4].tolist()] * 2


@pytest.mark.parametrize(("fault", "words"), [
    (500, "HTTP 500"), ("html", "Maintenance"), ("json", "Cannot process request"),
    ("error votable", "out of memory"), ("cut zip", "cut short"), ("half", "did not come"),
    ("text", "null"), (400, "refuses: HTTP 400"),
])  # fmt: skip
def test_a_source_on_which_the_service_fails_is_named_with_the_reason_and_all_others_come(
    tmp_path, stub, fault, words, capsys
):
    stub.poison = {int(IDS[1]): fault}
    assert fetch(tmp_path, stub, IDS, "--attempts", 2) == 1
    ((source_id, (outcome, why)),) = lacking(tmp_path).items()
    assert (source_id, outcome) == (str(IDS[1]), "failed")
    assert words in why
    assert ids_of(tmp_path).tolist() == np.delete(IDS, 1).tolist()
    assert numbers(capsys.readouterr().err)["failed"] == 1
    stub.poison = {}
    assert fetch(tmp_path, stub) == 0
    assert ids_of(tmp_path).tolist() == IDS.tolist()
    assert lacking(tmp_path) == {}


def test_no_more_is_asked_of_a_service_that_is_down(tmp_path, stub):
    stub.poison = dict.fromkeys(IDS.tolist(), 503)
    assert fetch(tmp_path, stub, IDS, "--batch-size", 1, "--attempts", 1) == 1
    assert len(stub.asked) == 3
    reasons = [why for _, why in lacking(tmp_path).values()]
    assert len(reasons) == N
    assert sum("not asked: 3 batches before it failed" in why for why in reasons) == N - 3


def test_an_empty_answer_is_believed_where_the_service_gives_a_known_source(tmp_path, stub):
    stub.form, stub.individual = "votable", True  # of no source it is an empty zip
    assert fetch(tmp_path, stub, [ABSENT, *IDS[:4]]) == 0
    assert lacking(tmp_path)[str(ABSENT)][0] == "without spectrum"
    assert stub.asked[-2:] in ([[ABSENT], [i]] for i in IDS.tolist())


@pytest.mark.parametrize("fault", ["empty zip", "nothing"])
def test_empty_answers_are_a_failure_where_no_known_source_comes_either(tmp_path, stub, fault):
    stub.poison = dict.fromkeys(IDS.tolist(), fault)
    assert fetch(tmp_path, stub, IDS[:4], "--attempts", 1) == 1
    assert {outcome for outcome, _ in lacking(tmp_path).values()} == {"failed"}
    assert [RELEASE.datalink.known_source] in stub.asked
    assert kept(tmp_path) == []


@pytest.mark.parametrize(("faults", "failed", "words"), [
    (["odd row"] * 10, 3, "1 lines are no rows"),  # in an answer of itself alone
    (["lose 3", "odd row"], 2, "rows that cannot be read"),
])  # fmt: skip
def test_a_row_that_cannot_be_read_is_a_failure_not_a_source_without_spectrum(
    tmp_path, stub, faults, failed, words
):
    stub.faults["data"] = list(faults)
    assert fetch(tmp_path, stub, IDS[:4]) == 1
    ((source_id, (outcome, why)),) = lacking(tmp_path).items()
    assert (source_id, outcome) == (str(IDS[failed]), "failed")
    assert words in why
    assert fetch(tmp_path, stub, IDS[:4]) == 0
    assert ids_of(tmp_path).tolist() == IDS[:4].tolist()


def test_spectra_of_another_release_end_the_run(tmp_path, stub, capsys):
    stub.spectra = SPECTRA | {"bp_basis_function_id": np.full(N, 99, "i2")}
    assert fetch(tmp_path, stub) == 2
    assert "spectra of another release" in capsys.readouterr().err
    assert len(stub.asked) == 1
    assert kept(tmp_path) == []


def test_an_answer_without_anything_in_it_is_told_from_one_of_no_rows(tmp_path):
    (tmp_path / "a.zip").write_bytes(zipped({}))
    with pytest.raises(EmptyAnswerError):
        read_answer(tmp_path / "a.zip", IDS, RELEASE)
    (tmp_path / "b.zip").write_bytes(zipped({"x.csv": document(SPECTRA, [])}))
    assert len(read_answer(tmp_path / "b.zip", IDS, RELEASE).lacking) == N


# ---- running again ---------------------------------------------------------------------------


def test_a_longer_list_asks_for_what_is_new_and_the_shard_has_all(tmp_path, stub):
    assert fetch(tmp_path, stub, IDS[::2]) == 0
    n_before = len(stub.asked)
    assert fetch(tmp_path, stub, IDS) == 0
    assert sorted(i for ids in stub.asked[n_before:] for i in ids) == IDS[1::2].tolist()
    assert_equal_tables(read(tmp_path / "data", FID)[0], SPECTRA)
    assert fetch(tmp_path, stub, IDS[:2]) == 0  # a shorter one takes nothing away
    assert ids_of(tmp_path).tolist() == IDS.tolist()
    assert sorted(asked(stub)) == IDS.tolist()


def test_a_shard_to_which_sources_are_added_keeps_its_range_unless_it_grows_too_much(
    tmp_path, stub, monkeypatch, capsys
):
    monkeypatch.setattr(spectra_merge, "MOST_SOURCES", 3)
    assert fetch(tmp_path, stub, IDS[:3]) == 0
    monkeypatch.setattr(spectra_others, "MOST_GROWN", 9)
    assert fetch(tmp_path, stub, IDS[:9]) == 0
    assert list_fids(tmp_path / "data", "xp") == [FID]
    assert ids_of(tmp_path).tolist() == IDS[:9].tolist()
    assert fetch(tmp_path, stub, IDS) == 2
    assert "overlap: delete the one that is out of date" in capsys.readouterr().err
    shard_path(tmp_path / "data", "xp", FID).unlink()
    assert fetch(tmp_path, stub, IDS) == 0
    assert list_fids(tmp_path / "data", "xp") == ["000000-065535"]
    assert ids_of(tmp_path).tolist() == IDS.tolist()
    assert sorted(asked(stub)) == IDS.tolist()


def test_sources_converted_before_of_other_files_stay_with_also(tmp_path, stub, capsys):
    path = tmp_path / "mine.csv"
    path.write_bytes(document(SPECTRA, range(5)))
    assert convert(path, tmp_path / "data") == 0
    assert fetch(tmp_path, stub, IDS[3:]) == 1
    assert "in none of the files given now" in capsys.readouterr().err
    assert fetch(tmp_path, stub, IDS[3:], "--also", path) == 0
    assert ids_of(tmp_path).tolist() == IDS.tolist()


def test_spectra_that_are_there_from_bulk_files_are_not_asked_for(tmp_path, stub, capsys):
    edge = int(IDS[4] >> 43)
    bulk = write_csv(
        tmp_path / "in", csv_lines(rows_of(SPECTRA, slice(0, 4))), f"000000-{edge - 1:06d}"
    )
    assert convert(bulk, tmp_path / "data") == 0
    assert fetch(tmp_path, stub) == 0
    assert sorted(asked(stub)) == IDS[4:].tolist()
    assert numbers(capsys.readouterr().err)["received"] == N
    assert ids_of(tmp_path).tolist() == IDS.tolist()


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "empty"])
def test_a_damaged_file_is_fetched_again(tmp_path, stub, damage, capsys):
    assert fetch(tmp_path, stub) == 0
    path = kept(tmp_path)[0]
    content = path.read_bytes()
    changed = {
        "cut": content[:-100], "empty": b"", "foreign": b"some words",
        "flipped": content[:2000] + bytes([content[2000] ^ 1]) + content[2001:],
    }  # fmt: skip
    path.write_bytes(changed[damage])
    assert fetch(tmp_path, stub) == 0
    assert "asked for again" in capsys.readouterr().err
    assert len(stub.asked) == 4
    assert_equal_tables(read(tmp_path / "data", FID)[0], SPECTRA)


@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
def test_killed_in_the_middle_of_a_batch_it_goes_on_with_what_is_left(tmp_path, stub, how):
    stub.faults["data"] = [None, "silent"]
    command = [sys.executable, ROOT / "tools" / "fetch_xp.py", "--ids", write_list(tmp_path, IDS)]
    command += ["--data-dir", tmp_path / "data", "--datalink-url", stub.data_url]
    command += ["--batch-size", "4", *FAST[:-2], "--http-timeout", "60"]
    process = subprocess.Popen(
        [str(word) for word in command], stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    wait_for(lambda: len(stub.asked) == 2)
    process.send_signal(signal.Signals[how])
    _, err = process.communicate()
    assert how == "SIGKILL" or (process.returncode == 130 and b"run again to go on" in err)
    assert len(kept(tmp_path)) == 1
    assert fetch(tmp_path, stub) == 0
    assert len(stub.asked) == 4
    assert_equal_tables(read(tmp_path / "data", FID)[0], SPECTRA)
    leftovers = [p.name for p in kept(tmp_path)[0].parent.iterdir() if p.name.startswith(".")]
    assert leftovers == []


def test_several_batches_at_once_give_the_same(tmp_path, stub):
    assert fetch(tmp_path, stub, [*IDS, ABSENT], "--jobs", 3, "--batch-size", 2) == 0
    assert_equal_tables(read(tmp_path / "data", FID)[0], SPECTRA)
    assert list(lacking(tmp_path)) == [str(ABSENT)]


def test_a_login_is_sent_and_a_session_that_ended_is_renewed(tmp_path, stub):
    login = tmp_path / "login.txt"
    login.write_text("me\nsecret\n")
    stub.user = ("me", "secret")
    stub.before = lambda: setattr(stub, "session", "two") if len(stub.asked) == 2 else None
    assert fetch(tmp_path, stub, IDS, "--login", login) == 0
    assert ids_of(tmp_path).tolist() == IDS.tolist()
    assert len(stub.asked) == 4


# ---- cones -----------------------------------------------------------------------------------

CONE = ("--cone", 56.75, 24.1, 1.0)


@pytest.fixture
def sky(stub):
    """The stub, whose TAP service knows the sources of its spectra."""
    stub.table = {"source_id": np.ma.array(IDS)}
    stub.answer = lambda query, fault: stub.document(Table(stub.table), fault)
    return stub


def test_a_cone_is_asked_of_the_tap_service_once_and_its_sources_fetched(tmp_path, sky):
    assert fetch(tmp_path, sky, None, *CONE) == 0
    (query,) = sky.queries
    assert "CIRCLE('ICRS', 56.75, 24.1, 1.0)" in query
    assert "source.has_xp_continuous = 'True'" in query
    assert_equal_tables(read(tmp_path / "data", FID)[0], SPECTRA)
    assert fetch(tmp_path, sky, None, *CONE) == 0
    assert len(sky.queries) == 1
    assert sky.deleted == ["job0"]


def test_a_source_of_a_cone_that_does_not_come_failed_as_the_archive_says_it_has_one(tmp_path, sky):
    sky.table = {"source_id": np.ma.array([ABSENT, *IDS])}
    assert fetch(tmp_path, sky, None, *CONE) == 1
    ((source_id, (outcome, why)),) = lacking(tmp_path).items()
    assert (source_id, outcome) == (str(ABSENT), "failed")
    assert "the archive says it has one" in why


def test_with_confirm_the_archive_tells_a_lost_source_from_one_without_a_spectrum(tmp_path, stub):
    stub.table = {"source_id": np.ma.array(IDS)}  # of those with spectra
    ids = [ABSENT, *IDS]
    stub.spectra = rows_of(SPECTRA, slice(1, N))
    assert fetch(tmp_path, stub, ids, "--confirm", "--batch-size", 20) == 1
    (query,) = stub.queries
    assert query.endswith("AND source.has_xp_continuous = 'True'")
    outcomes = {i: outcome for i, (outcome, _) in lacking(tmp_path).items()}
    assert outcomes == {str(ABSENT): "without spectrum", str(IDS[0]): "failed"}
    stub.spectra = SPECTRA
    assert fetch(tmp_path, stub, ids, "--confirm", "--ask-again") == 0
    assert ids_of(tmp_path).tolist() == IDS.tolist()


def test_where_the_tap_service_cannot_confirm_the_account_says_so(tmp_path, stub):
    stub.faults["submit"] = [503] * 3
    assert fetch(tmp_path, stub, [ABSENT, *IDS], "--confirm") == 1
    ((source_id, (outcome, why)),) = lacking(tmp_path).items()
    assert (source_id, outcome) == (str(ABSENT), "failed")
    assert "the TAP service does not tell" in why
    assert ids_of(tmp_path).tolist() == IDS.tolist()


@pytest.mark.parametrize(("options", "fault", "words"), [
    (("--row-limit", N), None, "the row limit"),
    ((), "overflow", "cut the result"),
])  # fmt: skip
def test_a_cone_whose_answer_was_cut_is_refused(tmp_path, sky, options, fault, words, capsys):
    sky.faults["result"] = [fault]
    assert fetch(tmp_path, sky, None, *CONE, *options) == 2
    assert words in capsys.readouterr().err
    assert sky.asked == []


@pytest.mark.parametrize("cone", [(400, 0, 1), (0, 91, 1), (0, 0, 0), (0, 0, "nan")])
def test_a_cone_that_cannot_be_is_refused(tmp_path, stub, cone):
    assert fetch(tmp_path, stub, None, "--cone", *cone) == 2


# ---- usage -----------------------------------------------------------------------------------


def test_a_dry_run_shows_the_first_request_and_asks_nothing(tmp_path, stub, capsys):
    assert fetch(tmp_path, stub, IDS, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "10 ids in the list, 10 to ask for" in out
    assert "3 requests to" in out
    assert "RETRIEVAL_TYPE=XP_CONTINUOUS" in out
    assert fetch(tmp_path, stub, None, *CONE, "--dry-run") == 0
    assert "CONTAINS" in capsys.readouterr().out
    assert stub.asked == stub.requests == []
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("options", "words"), [
    (("--batch-size", 5001), "takes 5000 at most"),
    (("--datalink-url", "ftp://x/y"), "--datalink-url ftp://x/y"),
    (("--id-column", "nothing"), "give --id-column a number"),
])  # fmt: skip
def test_wrong_options_exit_2_with_one_line(tmp_path, stub, options, words, capsys):
    assert fetch(tmp_path, stub, IDS, *options) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


def test_a_release_without_such_a_service_is_refused(tmp_path, stub, capsys):
    folder = Path(RELEASE.spectra.basis).parent
    text = (folder / "dr3.toml").read_text()
    start, end = text.index("[datalink]"), text.index("[parallax]")
    path = tmp_path / "toy.toml"
    path.write_text((text[:start] + text[end:]).replace('"dr3_', f'"{folder}/dr3_'))
    assert fetch(tmp_path, stub, IDS, "--release", path) == 2
    assert "has no [datalink]" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_a_usage_error(tmp_path, stub, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "xp_datalink").write_text("")
    assert fetch(tmp_path, stub) == 2
    assert "xp_datalink: cannot be written" in capsys.readouterr().err


def test_all_goes_through_the_proxy_of_the_environment(tmp_path, sky, monkeypatch):
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", sky.url)  # it answers for any host
    data_url = "http://archive.test/data-server/data"
    tap = ("--tap-url", "http://archive.test/tap-server/tap")
    assert fetch(tmp_path, sky, None, *CONE, "--datalink-url", data_url, *tap) == 0
    assert ids_of(tmp_path).tolist() == IDS.tolist()
    assert set(sky.data_paths) == {data_url}
    assert sky.count("submit") == 1


def test_its_import_asks_nothing_of_the_archive():
    code = "import sys; from tools import fetch_xp; sys.exit('astroquery.gaia' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
