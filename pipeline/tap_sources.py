"""The sources of a shard in an archive: what steps 2 and 3 share.

Each shard of spectra is one query for the range of its ids, and one by name for what did not come;
few ids in a wide range are asked for by name at once.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.errors import ShardError
from pipeline.provenance import provenance
from pipeline.read import open_shard
from pipeline.run import run_shards, setup_logging
from pipeline.schema import KINDS, Layout, resolved
from pipeline.select import input_paths, select_fids, shard_path
from pipeline.tap_answer import plain_columns
from pipeline.tap_jobs import ShardJobs
from pipeline.tap_question import Question, Settled
from pipeline.tap_service import TapService
from pipeline.write import ShardWriter

NAMED_IDS = 4000  # kept in an attribute of the output (HDF5 allows 64 kB); the log names all
LOGGED_IDS = 1000  # in a line of the log


@dataclass
class Sources:
    """What the archive has of the ids asked for.

    table: {column: (n,)}, by ascending `source_id`; missing (m,): ids that it does not have;
    asked_again, unasked: numbers of ids named in a second query, of rows of others (dropped).
    """

    table: dict
    missing: np.ndarray
    asked_again: int = 0
    unasked: int = 0

    def counters(self):
        return {
            "asked for again by id": self.asked_again,
            "not in the archive": len(self.missing),
            "archive rows without a spectrum": self.unasked,
        }

    def attributes(self):
        out = {"n_missing": len(self.missing)}
        if len(self.missing):
            out["missing_source_id"] = self.missing[:NAMED_IDS]
        return out


def _is_in(values, ids) -> np.ndarray:
    """Which of values (n,) are in ids (m,): numpy.isin and setdiff1d take far longer."""
    if not len(ids):
        return np.zeros(len(values), bool)
    ids = np.sort(ids)
    return ids[np.minimum(np.searchsorted(ids, values), len(ids) - 1)] == values


def _lacking(ids, come) -> np.ndarray:
    """Those of ids (n,) that are not among others (m,), ascending, each once."""
    return np.unique(ids[~_is_in(ids, come)])


def fetch_sources(jobs: ShardJobs, question: Question, ids, fid) -> Sources:
    """Ask for the range of a shard, then by name for the ids (n,) that did not come; see Sources.

    Where the range is wide for so few ids, by name alone.
    ShardError where none of the ids came: the service does not hold this catalogue.
    """
    dtypes = question.dtypes
    if not len(ids):
        return Sources({name: np.zeros(0, dtype) for name, dtype in dtypes.items()}, ids)
    first = question.of_range(ids, fid)
    parts = [plain_columns(jobs.fetch(first), dtypes)] if first else []
    come = parts[0]["source_id"] if parts else ids[:0]
    again = _lacking(ids, come)
    if len(again):
        if first:
            jobs.log.warning(
                "%s: %d of %d ids did not come; asked again", fid, len(again), len(ids)
            )
        parts += [plain_columns(jobs.fetch(query), dtypes) for query in question.by_name(again)]
    table = {name: np.concatenate([part[name] for part in parts]) for name in dtypes}
    wanted = _is_in(table["source_id"], ids)
    order = np.argsort(table["source_id"][wanted], kind="stable")
    table = {name: values[wanted][order] for name, values in table.items()}
    missing = _lacking(ids, table["source_id"])
    if len(missing) == len(ids):
        raise ShardError(f"none of the {len(ids)} sources is in {jobs.service.url}")
    for start in range(0, len(missing), LOGGED_IDS):
        named = " ".join(map(str, missing[start : start + LOGGED_IDS]))
        jobs.log.warning("%s: not in the archive: %s", fid, named)
    return Sources(table, missing, len(again) if first else 0, int((~wanted).sum()))


def read_ids(data_dir, fid, release):
    """(n,) int64 ids of the spectra of a shard."""
    with open_shard(data_dir, "xp", fid, release) as reader:
        reader.check(resolved("xp", Layout(release)).only(["source_id"]))
        return reader.source_id()


def write_shard(output, kind, question, table, made_by, attrs):
    """Write the datasets of a kind, less those that the archive has not."""
    release = question.release
    datasets = resolved(kind, Layout(release))
    datasets = datasets.only([name for name in datasets if name not in question.absent])
    id_column = KINDS[kind].id_column(release)
    if question.absent:
        attrs = attrs | {"absent_columns": ", ".join(question.absent)}
    with ShardWriter(output, len(table[id_column]), id_column, made_by, attrs) as writer:
        writer.create_columns(datasets)
        writer.write_table(table)


def run_queries(script, args, argv, kind, question, prepare) -> int:
    """The main part of a script: a shard of `kind` for each shard of spectra; the exit status.

    prepare(table, release): the datasets {name: (n,)} made of an answer's columns, and counters.
    """
    fids = select_fids(args, "xp")
    if args.dry_run:
        for fid in fids:
            ids = read_ids(args.data_dir, fid, args.release)
            query = question.of_range(ids, fid)
            print(f"-- {fid}", *([query] if query else question.by_name(ids)), sep="\n")
        return 0
    log = setup_logging(script, args.log, args)
    service = TapService(args, log)
    settled = Settled(question, service)

    def inputs_of(fid):
        return input_paths(args.data_dir, fid, ["xp"])

    def process(fid, output, log):
        asked = settled.question()
        made_by = provenance(script, argv, inputs_of(fid), args.release)
        ids = read_ids(args.data_dir, fid, args.release)
        jobs = ShardJobs(service, output, fid)
        sources = fetch_sources(jobs, asked, ids, fid)
        table, counters = prepare(sources.table, args.release)
        attrs = {"tap_url": service.url, "query": asked.query("{where}"), "n_spectra": len(ids)}
        write_shard(output, kind, asked, table, made_by, attrs | sources.attributes())
        jobs.finish()
        return {"spectra": len(ids)} | counters | sources.counters()

    return run_shards(
        script, args, fids,
        inputs_of=inputs_of,
        output_of=lambda fid: shard_path(args.data_dir, kind, fid),
        process=process, log=log, jobs=args.jobs, on_interrupt=service.stop.set,
        tidy=lambda fid, output: ShardJobs(service, output, fid).finish(),
    )  # fmt: skip
