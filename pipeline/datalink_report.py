"""The account of a list of sources whose spectra were asked for."""

import csv
import io

from pipeline.datalink_batches import FAILED
from pipeline.whole_files import write_text

LACKING = "not_received.csv"
NO_ID = "no id"


def write_lacking(folder, fate, listed):
    """The ids whose spectra are not there, and entries of the list that are no ids, and why.

    The file has a header alone where there are none.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["source_id", "outcome", "reason"])
    rows.writerows([i, outcome, why] for i, (outcome, why) in sorted(fate.reasons.items()))
    for place, entry, why in listed.refused if listed else ():
        rows.writerow([entry, NO_ID, f"{place}: {why}"])
    write_text(folder / LACKING, text.getvalue())


def report(log, script, fate, listed, folder):
    """Log the account of all entries and ids, on the terminal too."""
    counts, lines = fate.counts(), []
    if listed is not None:
        lines += [("entries of the list", listed.n_entries)]
        lines += [(f"  {what}", count) for what, count in listed.counts().items()]
    lines += [("ids asked for", len(fate.ids))]
    lines += [(f"  {what}", count) for what, count in counts.items()]
    new = counts["received"] - int(fate.before.sum())
    width = max(len(what) for what, _ in lines)
    table = "".join(f"\n  {what:{width}} {count:9d}" for what, count in lines)
    words = f"{script}: {new} spectra fetched, {int(fate.before.sum())} were there already{table}"
    if fate.reasons or (listed and listed.refused):
        words += f"\n  which are not received, and why: {folder / LACKING}"
    if counts[FAILED]:
        words += "\n  run the same command again for those that failed"
    for place, _, why in listed.refused if listed else ():
        log.warning("%s of the list: %s", place, why)
    log.info(words, extra={"summary": True})
