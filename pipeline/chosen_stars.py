"""The stars of a list of ids: which shards have them, what became of each."""

import csv
import hashlib
import io
from dataclasses import dataclass

import numpy as np

from pipeline.errors import ShardError, UsageError, shortened
from pipeline.read import ShardReader
from pipeline.schema import Layout, flags
from pipeline.star_rows import INPUT, find_ids, why_missing
from pipeline.whole_files import write_text

ACCOUNT = "not_sampled.csv"
MOST_DRAWS = 100_000  # of a star: 4.8 MB on disk
NAMED = 8  # ids in a summary; the account has all


def check_arguments(args):
    """UsageError where --samples and --ids are not together, or --samples is too many."""
    if args.samples is None and (args.ids or args.id_column or args.samples_out):
        raise UsageError("--ids, --id-column and --samples-out are for --samples N: give that too")
    if args.samples is not None and args.ids is None:
        n_values = 2 * Layout(args.release).size("parameter")
        raise UsageError(
            "--samples needs --ids FILE: draws are for chosen stars. Of every star they would take "
            f"{4e-3 * n_values * args.samples:.2g} kB on disk, and some 0.6 s of a core"
        )
    if args.samples is not None and args.samples > MOST_DRAWS:
        raise UsageError(f"--samples {args.samples}: at most {MOST_DRAWS}")


@dataclass
class Chosen:
    """Stars of a list: of_shard {fid: ids (m,), ascending}, of the inputs of step 9; lacking {id:
    (outcome, reason)} of the others; listed: the `IdList`; draws: of each star."""

    of_shard: dict
    lacking: dict
    listed: object
    draws: int

    def settings(self, fid) -> dict:
        """What tells outputs of this choice from those of another."""
        digest = hashlib.sha256(np.ascontiguousarray(self.of_shard[fid]).tobytes()).hexdigest()
        return {"draws": self.draws, "chosen": digest[:16]}


def find_chosen(args, listed):
    """`Chosen` stars of a data directory. What is not in its inputs has a reason."""
    bad = {}
    found = find_ids(args.data_dir, INPUT, listed.ids, args.release, bad)
    placed = np.concatenate([*found.values(), np.empty(0, np.int64)])
    absent = np.setdiff1d(listed.ids, placed)
    reasons = why_missing(args.data_dir, absent, args.release, dict(bad))
    pixel = args.release.pixel(absent)
    for fid, why in bad.items():
        first, last = map(int, fid.split("-"))
        within = absent[(pixel >= first) & (pixel <= last)]
        reasons |= dict.fromkeys(within.tolist(), f"its shard {fid} cannot be read: {why}")
    lacking = {one: ("not found", why) for one, why in reasons.items()}
    return Chosen(found, lacking, listed, args.samples)


def require_nothing_lost(chosen, folder, path_of):
    """UsageError where the run would write over draws that it does not make again: of stars that
    are not chosen now, or another number of draws."""
    for fid, ids in chosen.of_shard.items():
        path = path_of(fid)
        if not path.exists():
            continue
        try:
            with ShardReader(path) as reader:
                there, draws = reader.read(reader.id_column), reader.attrs.get("draws")
        except ShardError:
            continue  # of no use: made again
        lost = np.setdiff1d(there, ids)
        if len(lost) or draws != chosen.draws:
            what = f"{len(lost)} stars that the list has not" if len(lost) else f"{draws} draws"
            raise UsageError(
                f"{path}: has draws of another run ({what}): give --overwrite to replace them, or "
                f"--samples-out FOLDER, another than {folder}"
            )


def account(chosen, made, folder, log) -> int:
    """Write and log what became of every id of a list; how many have no row.

    made: {fid: path of its output, None where it was not made}.
    """
    rows = dict(chosen.lacking)
    for fid, path in made.items():
        if path is None:
            why = f"its shard {fid} was not made: see the log, and run the same command again"
            rows |= dict.fromkeys(chosen.of_shard[fid].tolist(), ("not made", why))
    n_lacking = len(rows)
    for path in filter(None, made.values()):
        rows |= _flagged(path)
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["source_id", "outcome", "reason"])
    out.writerows([one, *rows[one]] for one in sorted(rows))
    refused = chosen.listed.refused or ()
    out.writerows([entry, "no id", f"{place}: {why}"] for place, entry, why in refused)
    write_text(folder / ACCOUNT, text.getvalue())
    _summary(chosen, rows, folder, log)
    return n_lacking + len(refused)


def _flagged(path):
    """{id: (outcome, reason)} of the stars of an output whose draws are not to be used."""
    with ShardReader(path) as reader:
        ids, bits = reader.read(reader.id_column), reader.read("sample_flags")
    return {
        int(one): (flag.name.lower().replace("_", " "), flag.text)
        for flag in flags.SampleFlag
        for one in ids[bits & flag.value > 0]
    }


def _summary(chosen, rows, folder, log):
    """Log how many ids of the list have draws, and which have not, or none to be trusted."""
    listed, of_outcome = chosen.listed, {}
    for one in sorted(rows):
        of_outcome.setdefault(rows[one][0], []).append(str(one))
    good = len(listed.ids) - len(rows)
    lines = [f"draws of {good} of {len(listed.ids)} ids of the list"]
    lines += [f"  {what}: {len(ids)} ({shortened(ids, NAMED)})" for what, ids in of_outcome.items()]
    lines += [f"  {what}: {count}" for what, count in listed.counts().items() if count]
    if rows or listed.refused:
        lines.append(f"  which, and why: {folder / ACCOUNT}")
    log.info("\n".join(lines), extra={"summary": True})
