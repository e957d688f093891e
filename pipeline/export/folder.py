"""A data set of many files in a folder: made part by part, accounted for in its manifest.

The manifest says of each file how many rows and bytes it has, its SHA-256, and of what it was made;
it is written anew after each part, so that a run that was ended goes on where it was. A part is
made again where its shards, the selection, the columns or the layout are others than then, or its
file is not as it was.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import ShardError, UsageError
from pipeline.export.words import write_words
from pipeline.provenance import provenance
from pipeline.run import progress
from pipeline.whole_files import write_text

MANIFEST = "manifest.json"
FORMAT = 1  # of what the layouts write: files of another are made again
READ_BYTES = 1 << 22


@dataclass(frozen=True)
class Part:
    """Files that are made together. make(paths) writes them and returns `table.Counts` of its rows
    (each file has all of them); of: what they are made of, beside the shards."""

    names: tuple
    shards: tuple
    make: Callable
    of: str = ""

    def identity(self, settings) -> str:
        """What changes when the files would."""
        content = [shard.content for shard in self.shards]
        return hashlib.sha256(repr((FORMAT, settings, self.of, content)).encode()).hexdigest()


@dataclass
class DataSet:
    """What is to be in a folder.

    layout: its name; title; parts; settings: what the files depend on beside their shards; notes:
    {name: text} for the manifest; columns: (name, type, unit, words, UCD) of each; left_out: rows
    of the shards that no part reads, as the selection does not want them (parts count the others).
    finish(folder, files): writes what goes with the parts, and returns the names of its files.
    """

    layout: str
    title: str
    parts: list
    settings: dict
    notes: dict
    columns: list
    left_out: int = 0
    finish: Callable | None = None
    hints: tuple = ()
    failed: dict = field(default_factory=dict)


def sha256(path) -> str:
    """Of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while content := file.read(READ_BYTES):
            digest.update(content)
    return digest.hexdigest()


def read_manifest(folder) -> dict:
    """The manifest of a folder; {} where there is none. UsageError where it is no manifest."""
    path = Path(folder) / MANIFEST
    if not path.exists():
        return {}
    try:
        manifest = json.loads(path.read_text())
        if {"layout", "files", "settings"} <= manifest.keys():
            return manifest
    except (ValueError, AttributeError):
        pass
    raise UsageError(f"{path}: is no manifest of an export; give another --out")


def open_folder(folder, layout, overwrite) -> dict:
    """Make a folder, or see that it is one of an export; its manifest, {} of a new one. UsageError
    where it holds anything else, or another layout."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file; this layout writes a folder: give another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = os.listdir(folder)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be used ({error.strerror})") from error
    manifest = read_manifest(folder)
    if there and not manifest:
        raise UsageError(f"{folder}: holds other files; give an empty folder, or one of an export")
    if manifest.get("layout", layout) != layout and not overwrite:
        raise UsageError(
            f"{folder}: holds the layout {manifest['layout']}; give another --out, or --overwrite"
        )
    return manifest


def _is_done(folder, part, identity, entries) -> bool:
    """Whether the files of a part are there, as they were made, of what would be taken now."""
    for name in part.names:
        entry, path = entries.get(name), folder / name
        if entry is None or entry.get("made_of") != identity or not path.is_file():
            return False
        if path.stat().st_size != entry["bytes"]:
            return False
    return True


def _made(folder, part, identity) -> list[dict]:
    """Make the files of a part; what the manifest says of them."""
    paths = [folder / name for name in part.names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    counts = part.make(*paths)
    return [
        {
            "name": name,
            "rows": counts.written,
            "rows_read": counts.read,
            "bytes": path.stat().st_size,
            "sha256": sha256(path),
            "made_of": identity,
        }
        for name, path in zip(part.names, paths, strict=True)
    ]


def _write_manifest(folder, data_set, entries, complete, more=()):
    """Write the manifest; what it says."""
    first = [entries[part.names[0]] for part in data_set.parts if part.names[0] in entries]
    read, written = (sum(entry[name] for entry in first) for name in ("rows_read", "rows"))
    manifest = {
        "layout": data_set.layout,
        "title": data_set.title,
        **data_set.notes,
        "complete": complete,
        "rows_read": read + data_set.left_out,
        "rows_written": written,
        "rows_left_out_by_the_selection": read + data_set.left_out - written,
        "shards_left_out": data_set.failed,
        "settings": data_set.settings,
        "files": [
            entries[name] for part in data_set.parts for name in part.names if name in entries
        ],
        "other_files": list(more),
    }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return manifest


def _remove_old(folder, names, kept):
    """Remove files of a manifest that are no more; folders that this empties go, too."""
    for name in names:
        path = folder / name
        if name in kept or folder not in path.resolve().parents:
            continue
        path.unlink(missing_ok=True)
        for above in path.parents:
            if above == folder or any(above.iterdir()):
                break
            above.rmdir()


def make_data_set(data_set, folder, n_rows, log, overwrite=False) -> dict:
    """Make the parts that are not done, and all that goes with them; the manifest.

    n_rows: of the shards; all must be accounted for. ShardError where a part cannot be made: run
    again to go on from there.
    """
    folder = Path(folder).resolve()
    old = open_folder(folder, data_set.layout, overwrite)
    before = {entry["name"]: entry for entry in old.get("files", ())}
    planned = {name for part in data_set.parts for name in part.names}
    _remove_old(folder, before, planned)
    entries = {n: entry for n, entry in before.items() if n in planned and not overwrite}
    others, done = old.get("other_files", []), 0
    _write_manifest(folder, data_set, entries, False, others)  # the folder is known as an export's
    for part in progress(data_set.parts, "files", unit="part"):
        identity = part.identity(data_set.settings)
        if _is_done(folder, part, identity, entries):
            done += 1
            continue
        entries |= {entry["name"]: entry for entry in _made(folder, part, identity)}
        _write_manifest(folder, data_set, entries, False, others)
        log.info("%s: %d rows", part.names[0], entries[part.names[0]]["rows"])
    if done:
        log.info("%d of %d parts were done already", done, len(data_set.parts))
    files = [entries[name] for part in data_set.parts for name in part.names]
    more = [] if data_set.finish is None else data_set.finish(folder, files)
    n_written = sum(entries[part.names[0]]["rows"] for part in data_set.parts)
    more += write_words(folder, data_set, n_written, len(files))
    _remove_old(folder, others, planned.union(more))
    manifest = _write_manifest(folder, data_set, entries, True, more)
    if manifest["rows_read"] != n_rows:
        raise ShardError(
            f"{folder}: the files are of {manifest['rows_read']} rows, the shards have {n_rows}: "
            "did they change meanwhile? Run the same command again"
        )
    return manifest


def notes_of(catalogue, selection, script, argv) -> dict:
    """What the manifest says of where a data set comes from."""
    made_by = provenance(script, argv, (), catalogue.release)
    names = ("script", "version", "time", "command_line", "release")
    return {
        **{name: made_by[name] for name in names},
        "packages": json.loads(made_by["packages"]),
        "model": catalogue.models,
        "labels": catalogue.layout.labels.texts("name"),
        "selection": selection.text,
        "shards": len(catalogue.shards),
    }
