"""Lists of source ids as people have them: text, CSV, or a table of any usual form.

Every entry is accounted for: an id, a repeat, missing, or no id, with the reason.
"""

import re
from dataclasses import dataclass

import numpy as np

from pipeline.cells import is_missing
from pipeline.errors import ShardError, UsageError
from pipeline.id_text import text_entries
from pipeline.label_tables import FORMS, read_columns
from pipeline.spectra_account import MOST_UNUSABLE
from pipeline.spectra_files import READ_BYTES, READ_ERRORS, kind_of, unpacked
from pipeline.spectra_plan import SHOWN, fault_of_id

DESIGNATION = re.compile(r"gaia[\s_:-]*(e?dr\d+)[\s_:-]*(\d{1,19})", re.IGNORECASE)
LARGEST = str(2**63 - 1)
# What a column of ids is called, less signs and the release, in lower case: plainly, and loosely.
PLAIN = ("sourceid", "gaiasourceid", "gsourceid", "srcid", "gaiasrcid", "gaiaid", "gaiasource")
LOOSE = ("source", "designation", "gaiadesignation", "gaia")
# The same, only together with a release ("GaiaDR3", "DR3Name").
WITH_RELEASE = ("", "g", "id", "gid", "name", "gaianame", *PLAIN, *LOOSE)
LIKELY = ("source_id", "gaia_source_id", "GaiaDR3", "GaiaEDR3")  # looked for in groups of HDF5


@dataclass
class IdList:
    """The ids of a list. ids (n,) int64, ascending, each once; column: where they were;
    n_entries: of the list; n_missing, n_repeated: of them; refused: [(place, text, why)]."""

    ids: np.ndarray
    column: str
    n_entries: int
    n_missing: int = 0
    n_repeated: int = 0
    refused: list = None

    def counts(self) -> dict:
        """{what: number}, which with the ids add up to the entries of the list."""
        return {
            "empty or missing": self.n_missing,
            "repeated": self.n_repeated,
            "no id of a source": len(self.refused),
        }


def read_ids(path, release, column=None) -> IdList:
    """The ids in a file; column: its name (or, of text without names, number) where not evident.

    Raises UsageError where there are none, it is not evident which column has them, they have lost
    digits, or entries that are no ids are no exception.
    """
    if not path.is_file():
        raise UsageError(f"{path}: {'a folder' if path.is_dir() else 'not found'}; give a list")
    if not path.stat().st_size:
        raise UsageError(f"{path}: empty; give a list of ids")
    try:
        with open(path, "rb", buffering=READ_BYTES) as packed:
            file = unpacked(packed)
            kind = kind_of(file, path)
            text = file.read().decode("utf-8", "replace") if kind == "csv" else None
    except (ShardError, *READ_ERRORS) as error:
        raise UsageError(f"{path}: no list of ids can be read there ({error})") from error
    if kind == "zip":
        raise UsageError(f"{path}: a zip or a spreadsheet: unpack it, or save it as CSV")

    def pick(names):
        return choose_column(path, names, release, column)

    if kind == "csv":
        name, places, entries = text_entries(path, text, pick, column)
        return _of_texts(path, name, entries, np.zeros(len(entries), bool), places, release)
    name, entries, mask = _table_entries(path, release, column, pick)
    return _of_column(path, name, entries, mask, release)


# ---- which column ----------------------------------------------------------------------------


def tokens(release) -> set:
    """Words like "dr3" of the releases whose ids these are."""
    return {title.split()[-1].lower() for title in (release.title, *release.same_ids)}


def _rank(name, release) -> int | None:
    """How plainly a name is that of a column of ids of a release, 0 most; None: it is not."""
    word = re.sub("[^a-z0-9]", "", name.lower())
    base, found = re.sub(r"e?dr\d+", "", word), re.findall(r"e?dr\d+", word)
    if set(found) - tokens(release) or base not in (WITH_RELEASE if found else PLAIN + LOOSE):
        return None
    return 2 * (not found) + (base not in PLAIN)


def choose_column(path, names, release, column=None) -> str:
    """The one of the names that is said (`column`), or that says that it holds ids.

    UsageError where there is none, or more than one.
    """
    if column is not None:
        found = [n for n in names if n == column] or [
            n for n in names if n.lower() == column.lower()
        ]
        if len(set(found)) != 1:
            raise UsageError(f"{path}: no column {column} (--id-column); it has {_some(names)}")
        return found[0]
    ranks = {name: _rank(name, release) for name in names}
    known = [rank for rank in ranks.values() if rank is not None]
    best = [name for name, rank in ranks.items() if known and rank == min(known)]
    if len(best) != 1:
        why = f"several columns may ({', '.join(best)})" if best else f"it has {_some(names)}"
        raise UsageError(
            f"{path}: which column holds the ids of {release.title} is not evident, {why}: say it "
            "with --id-column NAME"
        )
    return best[0]


def _some(names) -> str:
    return ", ".join(names[:12]) + (" ..." if len(names) > 12 else "") if names else "no columns"


def _table_entries(path, release, column, pick) -> tuple:
    """(name, entries (n,), mask (n,)) of the column of ids of a table that is not text."""
    likely = [column] if column else [*LIKELY, release.id_column]
    names = []
    for name in likely:
        table = read_columns(path, [name], release, "ids")
        names += [n for n in table.found if n not in names]
        if table.columns:
            break
    chosen = pick(names)
    table = read_columns(path, [chosen], release, "ids")
    entries = table.columns[chosen]
    if entries.ndim != 1:
        raise UsageError(f"{path}: {chosen} has the shape {entries.shape}; expected an id a row")
    mask = np.broadcast_to(table.masks.get(chosen, False), entries.shape)
    return chosen, entries, mask


# ---- entries ---------------------------------------------------------------------------------


def _of_column(path, name, entries, mask, release) -> IdList:
    """The `IdList` of a column of a table."""
    if entries.dtype.kind in "iu" and (entries.itemsize == 8 or not len(entries)):
        missing = mask | (entries <= 0)  # what stands for "none" in columns of integers
        ids = np.where(missing | (entries >= 2**63), 0, entries).astype(np.int64)
        return _account(path, name, ids, missing, entries, None, {}, release)
    if entries.dtype.kind in "SUO":
        texts = [x.decode(errors="replace") if isinstance(x, bytes) else str(x) for x in entries]
        if not any(isinstance(x, float) and x == x for x in entries[~mask]):
            return _of_texts(path, name, texts, mask, None, release)
    raise UsageError(
        f"{path}: {name} is {entries.dtype}, in which ids lose digits: write them as 64-bit "
        f"integers (in pandas: dtype={{'{name}': 'int64'}}, or 'Int64' where some are missing)"
    )


def _of_texts(path, name, texts, mask, places, release) -> IdList:
    """The `IdList` of texts; places (n,): of each in its file."""
    cells = np.strings.strip(np.array(texts, np.dtype(str)), " \t\r\n\"'=")
    length = np.strings.str_len(cells)
    usual = np.strings.isdigit(cells) & (length <= 19) & ((length < 19) | (cells <= LARGEST))
    usual &= np.array([cell.isascii() for cell in cells], bool)
    ids, missing, faults = np.zeros(len(cells), np.int64), np.array(mask, bool), {}
    ids[usual] = cells[usual].astype(np.int64)
    for i in np.flatnonzero(~usual & ~missing):
        ids[i], faults[i] = _unusual(str(cells[i]), release)
        missing[i] = faults[i] is None and not ids[i]
    return _account(path, name, ids, missing, cells, places, faults, release)


def _unusual(cell, release) -> tuple[int, str | None]:
    """(id, None) of a designation, (0, None) where nothing is, else (0, why it is no id)."""
    if is_missing(cell) or cell in ("-1", "-9999") or not cell.strip("-=_+"):  # a ruled line
        return 0, None
    match = DESIGNATION.fullmatch(cell)
    if match is None:
        return 0, fault_of_id(cell).removeprefix("source_id is ")
    if match[1].lower() not in tokens(release):
        return 0, (
            f"{cell!r}, of another release than {release.title}, where the same star may have "
            "another id: look it up in the archive's table of neighbours"
        )
    return (int(match[2]), None) if int(match[2]) < 2**63 else (0, f"{cell!r}")


def _account(path, name, ids, missing, shown, places, faults, release) -> IdList:
    """The `IdList` of ids (n,), 0 where there is none; UsageError where too many are none."""
    n_pixels = 12 * 4**release.healpix_level
    good = (ids > 0) & (release.pixel(ids) < n_pixels) & ~missing
    refused = []
    for i in np.flatnonzero(~good & ~missing):
        place = f"row {i + 1}" if places is None else f"line {places[i]}"
        why = faults.get(i) or f"{str(shown[i])[:SHOWN]!r}, no id of {release.title}"
        refused.append((place, str(shown[i])[:SHOWN], why))
    n_given = int((~missing).sum())
    if len(refused) > MOST_UNUSABLE or len(refused) > n_given / 2:
        raise UsageError(
            f"{path}: {len(refused)} of {n_given} entries of {name} are no ids, the first is "
            f"{refused[0][2]} ({refused[0][0]})"
        )
    if not good.any():
        raise UsageError(
            f"{path}: no id in {name}; expected {release.title} ids ({FORMS}, or text)"
        )
    unique = np.unique(ids[good])
    n_repeated = int(good.sum()) - len(unique)
    return IdList(unique, name, len(ids), int(missing.sum()), n_repeated, refused)
