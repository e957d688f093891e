"""The shards of the catalogue, checked to belong together; their rows in the order of the ids."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import healpy
import numpy as np

from pipeline.errors import ShardError, UsageError
from pipeline.export.conditions import FID_LEVEL, pixels_of
from pipeline.export.flat import KIND, flat_columns
from pipeline.read import ShardReader, check_whole, open_shard
from pipeline.row_store import RowStore
from pipeline.run import progress
from pipeline.schema import MODEL_FILE, LabelSet, Layout, resolved
from pipeline.select import shard_path

CHUNK_ROWS = 32_768  # read at a time
NO_MODEL = "no model named"
LOOKED_AT, MOST = 1000, 0.9  # rows, and share of them that must be where the shard's name says


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


def model_of(attrs) -> str:
    """Identity of the model that a shard was made with."""
    try:
        inputs = json.loads(attrs.get("inputs", "[]"))
    except ValueError:
        inputs = []
    found = [entry["identity"] for entry in inputs if entry.get("name") == MODEL_FILE]
    return found[0] if found else NO_MODEL


def labels_of(attrs, path) -> LabelSet:
    try:
        return LabelSet.from_json(attrs["labels"])
    except (KeyError, ValueError) as error:
        raise ShardError(
            f"{path}: does not say what its labels are ({error}); make it again with step 10"
        ) from error


def look_at(data_dir, fid, release, thorough=False) -> Shard:
    """What a shard is. ShardError where it is not a whole shard of the catalogue of a release;
    thorough: every number of it is read, too, which finds what was damaged since."""
    path = shard_path(data_dir, KIND, fid)
    attrs = check_whole(path)
    datasets = resolved(KIND, Layout(release, labels_of(attrs, path)))
    with open_shard(data_dir, KIND, fid, release) as reader:
        reader.check(datasets)
        ids = reader.source_id()
        for start in range(0, len(ids) if thorough else 0, CHUNK_ROWS):
            reader.read_table(datasets, start, min(start + CHUNK_ROWS, len(ids)))
    return Shard(
        fid,
        path,
        len(ids),
        int(ids.min(initial=np.iinfo("i8").max)),
        int(ids.max(initial=-1)),
        bool((np.diff(ids) > 0).all()),
        attrs["labels"],
        model_of(attrs),
        str(attrs.get("content_id")),
    )


def _follows_its_name(data_dir, fid) -> bool:
    """Whether the first stars of a shard are in the pixels of its name; True of one that cannot be
    read, or has none. Not so of files that are made up."""
    try:
        with ShardReader(shard_path(data_dir, KIND, fid)) as reader:
            ra, dec = (reader.read(name, 0, LOOKED_AT) for name in ("ra", "dec"))
    except ShardError:
        return True
    there = np.isfinite(ra) & (np.abs(dec) <= 90)
    pixel = healpy.ang2pix(2**FID_LEVEL, ra[there], dec[there], nest=True, lonlat=True)
    first, last = pixels_of(fid)
    return np.mean((pixel >= first) & (pixel <= last)) > MOST if len(pixel) else True


def shards_within(cone, data_dir, fids) -> list[str]:
    """Those of the shards that may have stars in a `Cone`."""
    near = set(cone.fids(fids))
    return [fid for fid in fids if fid in near or not _follows_its_name(data_dir, fid)]


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

    failed: {fid: reason} of those that cannot be used. added: {name: FlatColumn} of further
    columns. thorough: as of `look_at`. folder: of scratch files.
    """

    def __init__(self, data_dir, fids, release, *, mixed_models=False, thorough=False, folder=None):
        self.data_dir, self.release, self.folder = data_dir, release, folder
        self.shards, self.failed, self.added = [], {}, {}
        for fid in progress(fids, "shards looked at"):
            try:
                self.shards.append(look_at(data_dir, fid, release, thorough))
            except ShardError as error:
                self.failed[fid] = str(error)
        if self.shards:
            require_alike(self.shards, mixed_models)

    @property
    def layout(self) -> Layout:
        return Layout(self.release, LabelSet.from_json(self.shards[0].labels))

    @property
    def columns(self) -> dict:
        """{name: FlatColumn} of all that can be written of its stars."""
        return flat_columns(self.layout, self.added)

    @property
    def models(self) -> list[str]:
        """Identities of the models that made it."""
        return sorted({shard.model for shard in self.shards})

    @property
    def n_rows(self) -> int:
        return sum(shard.n_rows for shard in self.shards)

    def open(self, shard):
        """A reader of a shard."""
        return open_shard(self.data_dir, KIND, shard.fid, self.release)

    def tables(self, names, groups=None):
        """Yield {dataset: (n, ...)} of the rows of groups of shards (of `groups_by_id`; default:
        of all) by ascending id. ShardError where a shard is damaged or a star is in two."""
        names = tuple(dict.fromkeys((self.release.id_column, *names)))
        for group in groups_by_id(self.shards) if groups is None else groups:
            if len(group) == 1 and group[0].ascending:
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
        with self.open(shard) as reader:
            for start in range(0, reader.n_rows, CHUNK_ROWS):
                yield reader.read_table(names, start, min(start + CHUNK_ROWS, reader.n_rows))

    def _sorted(self, group, names):
        """Rows of shards whose ids are in no order, or overlap, by way of a scratch file."""
        datasets, ids = resolved(KIND, self.layout), []
        store = RowStore({n: (datasets[n].dtype, datasets[n].shape) for n in names}, self.folder)
        for shard in group:
            for table in self._streamed(shard, names):
                store.append(table)
                ids.append(table[self.release.id_column])
        ids = np.concatenate(ids)
        rows = np.argsort(ids)
        require_apart(ids[rows], group)
        for start in range(0, len(rows), CHUNK_ROWS):
            yield store.take(rows[start : start + CHUNK_ROWS])


def require_apart(ids, group):
    """ShardError where ids (n,), sorted, of a group of shards repeat."""
    repeated = ids[1:][ids[1:] == ids[:-1]]
    if len(repeated):
        holding = [s.fid for s in group if s.first <= repeated[0] <= s.last]
        raise ShardError(
            f"{group[0].path.parent}: {len(repeated)} stars are in two shards, the first is "
            f"{repeated[0]} ({', '.join(holding)}): export those shards apart with --shards, or "
            "remove what is there twice"
        )
