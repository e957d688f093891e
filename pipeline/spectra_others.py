"""Files of spectra without a fid in their names: read once, their sources sorted into shards.

Their rows are in a scratch file, so memory does not grow with them.
"""

import contextlib
from dataclasses import dataclass, field

import numpy as np

from pipeline.errors import ShardError
from pipeline.provenance import see
from pipeline.read import ShardReader
from pipeline.run import collect_failure, progress
from pipeline.select import list_fids, shard_path
from pipeline.spectra_account import checked_tables, report
from pipeline.spectra_files import faults_of
from pipeline.spectra_merge import MOST_SOURCES, NAMED_IDS, Gathered, edges_of, fids_of
from pipeline.spectra_tables import spectra_in

MOST_GROWN = 3 * MOST_SOURCES  # of a sorted shard to which sources are added
SORTED = "sorted_by_id"  # attribute of shards that were made of other files than bulk files


@dataclass
class Others:
    """Sources of files without a fid in their names. gathered: their rows; files: that of each of
    its inputs, as it was `Seen`; accounts: what is odd in each; failed: {file: why}; fid (N,): of
    each row, "" where it is in no shard of this run."""

    gathered: Gathered
    files: list = field(default_factory=list)
    accounts: list = field(default_factory=list)
    failed: dict = field(default_factory=dict)
    fid: np.ndarray = None

    def rows(self, fid):
        return np.flatnonzero(self.fid == fid)

    def files_of(self, fid) -> list:
        """Files that sources of a shard are from, as they were `Seen`."""
        origins = np.unique(self.gathered.origin[self.rows(fid)])
        return list({self.files[i].path: self.files[i] for i in origins}.values())


def read_others(files, release, log, folder) -> Others:
    """Read all files without a fid; those that fail are logged and left out as a whole."""
    others = Others(Gathered(release, folder))
    good = []
    for path in progress(files, "reading", unit="file"):
        n_before = len(others.gathered.inputs)
        with collect_failure(path.name, others.failed, log):
            seen = see(path)
            with faults_of(path), contextlib.closing(spectra_in(path, release)) as sources:
                for source in sources:
                    others.files.append(seen)
                    others.accounts.append(source.account)
                    tables = checked_tables(source.tables(), source.account)
                    others.gathered.add(tables, source.account.path)
                    report(source, log)
            added = range(n_before, len(others.gathered.inputs))
            if not np.isin(others.gathered.origin, added).any():
                raise ShardError(f"{path}: no source in it; give files of spectra alone")
            good += added
    use = np.isin(others.gathered.origin, good)
    others.fid = np.where(use, "?", "").astype(object)
    return others


def sort_into_shards(others, bulk, data_dir, release, log):
    """Set `others.fid`, by the ids. bulk: fids of this run's bulk files.

    Shards that were sorted before keep their ranges, as long as they do not grow too much. Sources
    in the range of a shard that is there already, of other files, or in none, count as failures.
    """
    use = np.flatnonzero(others.fid == "?")
    pixels, n_pixels = release.pixel(others.gathered.ids[use]), 12 * 4**release.healpix_level
    old = [fid for fid in list_fids(data_dir, "xp") if fid not in bulk]
    grown = [fid for fid in old if _is_sorted(shard_path(data_dir, "xp", fid))]
    there = [fid for fid in old if fid not in grown]
    inside = pixels < n_pixels
    fids = np.full(len(use), "", object)
    for taken in ([*bulk, *there, *grown], [*bulk, *there]):
        fids[inside] = fids_of(pixels[inside], taken, release)
        if all((fids == fid).sum() <= MOST_GROWN for fid in grown):
            break
    refused = {"no pixel of the sky: no id of Gaia": ~inside}
    for fid in sorted(set(fids) & set(there), key=edges_of):
        why = f"in the shard {fid}, which was made of other files: give those too"
        refused[why] = fids == fid
    for why, bad in refused.items():
        if bad.any():
            shown = " ".join(map(str, others.gathered.ids[use[bad]][:NAMED_IDS]))
            with collect_failure(f"{bad.sum()} sources", others.failed, log):
                raise ShardError(f"left out: {why}: source_id {shown}")
            fids[bad] = ""
    others.fid[use] = fids


def ids_of_other_shards(data_dir, ids, release) -> np.ndarray:
    """Those of ids (n,) that are in shards of spectra made of other files, as bulk files are.

    ShardError where one of these cannot be read.
    """
    pixels, found = release.pixel(ids), [ids[:0]]
    for fid in list_fids(data_dir, "xp"):
        first, last = edges_of(fid)
        inside = ids[(pixels >= first) & (pixels <= last)]
        path = shard_path(data_dir, "xp", fid)
        if len(inside) and not _is_sorted(path):
            with ShardReader(path, "source_id") as reader:
                found.append(np.intersect1d(inside, reader.source_id()))
    return np.concatenate(found)


def _is_sorted(path) -> bool:
    with contextlib.suppress(ShardError), ShardReader(path) as reader:
        return bool(reader.attrs.get(SORTED, False))
    return False
