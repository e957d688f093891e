"""The shards of the catalogue, checked to belong together; their rows in the order of the ids."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import ShardError, UsageError
from pipeline.export.flat import KIND
from pipeline.read import check_whole, open_shard
from pipeline.row_store import RowStore
from pipeline.run import progress
from pipeline.schema import MODEL_FILE, LabelSet, Layout, resolved
from pipeline.select import shard_path

CHUNK_ROWS = 32_768  # read at a time
NO_MODEL = "no model named"


@dataclass(frozen=True)
class Shard:
    """What is known of a shard of the catalogue: ids lie in first..last; model: identity of the one
    that it was made with; ascending: its rows are in the order of their ids."""

    fid: str
    path: Path
    n_rows: int
    first: int
    last: int
    ascending: bool
    labels: str
    model: str
    content: str


def _model_of(attrs) -> str:
    """Identity of the model that a shard was made with."""
    try:
        inputs = json.loads(attrs.get("inputs", "[]"))
    except ValueError:
        inputs = []
    found = [entry["identity"] for entry in inputs if entry.get("name") == MODEL_FILE]
    return found[0] if found else NO_MODEL


def _labels_of(attrs, path) -> LabelSet:
    try:
        return LabelSet.from_json(attrs["labels"])
    except (KeyError, ValueError) as error:
        raise ShardError(
            f"{path}: does not say what its labels are ({error}); make it again with step 10"
        ) from error


def look_at(data_dir, fid, release) -> Shard:
    """What a shard is. ShardError where it is not a whole shard of the catalogue of a release."""
    path = shard_path(data_dir, KIND, fid)
    attrs = check_whole(path)
    with open_shard(data_dir, KIND, fid, release) as reader:
        reader.check(resolved(KIND, Layout(release, _labels_of(attrs, path))))
        ids = reader.source_id()
    return Shard(
        fid,
        path,
        len(ids),
        int(ids.min(initial=np.iinfo("i8").max)),
        int(ids.max(initial=-1)),
        bool((np.diff(ids) > 0).all()),
        attrs["labels"],
        _model_of(attrs),
        str(attrs.get("content_id")),
    )


def _most_common(shards, what):
    return Counter(getattr(shard, what) for shard in shards).most_common(1)[0][0]


def require_alike(shards, mixed_models=False):
    """UsageError where shards have other labels than most, or were made with another model."""
    labels = _most_common(shards, "labels")
    odd = [shard for shard in shards if shard.labels != labels]
    if odd:
        names = [
            ", ".join(label.name for label in LabelSet.from_json(text))
            for text in (odd[0].labels, labels)
        ]
        raise UsageError(
            f"{odd[0].path}: of a model with the labels {names[0]} (or of other units), others "
            f"have {names[1]} ({len(odd)} of {len(shards)} shards differ): make them with one "
            "model, or export them one by one with --shards"
        )
    model = _most_common(shards, "model")
    odd = [shard for shard in shards if shard.model != model]
    if odd and not mixed_models:
        raise UsageError(
            f"{odd[0].path}: made with another model than most ({len(odd)} of {len(shards)} shards "
            "differ): run step 10 again, which makes those that are older than the model, or give "
            "--mixed-models"
        )


def groups_by_id(shards) -> list[list[Shard]]:
    """Shards with rows in the order of their ids; those whose ranges overlap are in one group."""
    out, last = [], -1
    for shard in sorted((s for s in shards if s.n_rows), key=lambda s: s.first):
        if out and shard.first <= last:
            out[-1].append(shard)
        else:
            out.append([shard])
        last = max(last, shard.last)
    return out


class Catalogue:
    """Shards of the catalogue that belong together, as one table sorted by source id.

    failed: {fid: reason} of those that cannot be used; with `careful` those are found before a row
    of them is given out (each shard is read into a scratch file first, in `folder`), and left out.
    """

    def __init__(self, data_dir, fids, release, *, mixed_models=False, careful=False, folder=None):
        self.data_dir, self.release, self.careful, self.folder = data_dir, release, careful, folder
        self.failed, shards = {}, []
        for fid in progress(fids, "shards looked at"):
            try:
                shards.append(look_at(data_dir, fid, release))
            except ShardError as error:
                self.failed[fid] = str(error)
        self.shards = shards
        if shards:
            require_alike(shards, mixed_models)

    @property
    def layout(self) -> Layout:
        return Layout(self.release, LabelSet.from_json(self.shards[0].labels))

    @property
    def models(self) -> list[str]:
        """Identities of the models that made it."""
        return sorted({shard.model for shard in self.shards})

    @property
    def n_rows(self) -> int:
        """Of the shards that can be used."""
        return sum(shard.n_rows for shard in self.shards if shard.fid not in self.failed)

    def tables(self, names):
        """Yield {dataset: (n, ...)} of all rows by ascending id. ShardError where a shard is
        damaged (with `careful` it is left out) or a star is in two."""
        id_column = self.release.id_column
        names = tuple(dict.fromkeys((id_column, *names)))
        for group in progress(groups_by_id(self.shards), "shards", unit="group"):
            if len(group) == 1 and group[0].ascending and not self.careful:
                yield from self._streamed(group[0], names)
            else:
                yield from self._sorted(group, names)

    def chunks(self, names):
        """Yield {dataset: (n, ...)} of all rows as they are stored, in no order. A shard that is
        damaged is named in `failed`; its rows from there on are missing."""
        for shard in progress(self.shards, "shards"):
            try:
                yield from self._streamed(shard, names)
            except ShardError as error:
                self.failed[shard.fid] = str(error)

    def _streamed(self, shard, names):
        with open_shard(self.data_dir, KIND, shard.fid, self.release) as reader:
            for start in range(0, reader.n_rows, CHUNK_ROWS):
                yield reader.read_table(names, start, min(start + CHUNK_ROWS, reader.n_rows))

    def _staged(self, shard, names, store):
        """Append the rows of a shard to a `RowStore`; their ids, or None where it is damaged, is
        left out and is named in `failed`."""
        ids, tables = [], self._streamed(shard, names)
        while True:
            try:
                table = next(tables, None)
            except ShardError as error:
                if not self.careful:
                    raise
                self.failed[shard.fid] = str(error)
                return None
            if table is None:
                return np.concatenate(ids)
            store.append(table)
            ids.append(table[self.release.id_column])

    def _sorted(self, group, names):
        """Rows of shards whose ids are in no order, or overlap, by way of a scratch file."""
        datasets = resolved(KIND, self.layout)
        store = RowStore({n: (datasets[n].dtype, datasets[n].shape) for n in names}, self.folder)
        ids, rows = [np.empty(0, "i8")], [np.empty(0, "i8")]
        for shard in group:
            start, found = len(store), self._staged(shard, names, store)
            if found is not None:
                ids.append(found)
                rows.append(start + np.arange(len(found)))
        ids, rows = np.concatenate(ids), np.concatenate(rows)
        order = np.argsort(ids, kind="stable")
        _require_apart(ids[order], group)
        rows = rows[order]
        for start in range(0, len(rows), CHUNK_ROWS):
            yield store.take(rows[start : start + CHUNK_ROWS])


def _require_apart(ids, group):
    """ShardError where ids (n,), sorted, of a group of shards repeat."""
    repeated = ids[1:][ids[1:] == ids[:-1]]
    if len(repeated):
        holding = [s.fid for s in group if s.first <= repeated[0] <= s.last]
        raise ShardError(
            f"{group[0].path.parent}: {len(repeated)} stars are in two shards, the first is "
            f"{repeated[0]} ({', '.join(holding)}): export those shards apart with --shards, or "
            "remove what is there twice"
        )
