"""Every star of a catalogue counted, in one stream: what was found of it, and what is flagged."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from fitting.report.facts import entries
from pipeline.errors import ShardError
from pipeline.export.shards import labels_of, model_of
from pipeline.read import open_shard
from pipeline.run import progress
from pipeline.schema import flags
from pipeline.select import FID_PATTERN

OUTPUT = "opt_output"
# States of shards that are complete by their attributes, and are not counted.
DAMAGED, OTHER_LABELS = "damaged", "other labels"
ROWS = 1 << 17  # read at a time
GOOD_BELOW = 8  # quality_flags of stars that are good for most uses (docs/flags.md)
SAID = ("command_line", "version", "parallaxes", "packages", "xp_basis", "release")
FAINT_G, HOT_TEFF = 15.0, 6.8  # mag, kK: beyond them the starter model knows nothing (its card)


@dataclass
class Census:
    """What was counted of the shards that could be read.

    stars: in all; counts {what: stars}: "solved" (all parameters finite), "good" (GOOD_BELOW),
    "unflagged", "flagged" (any flag but those of confidences), "faint", "hot", "with_g"; quality,
    inputs {name of a flag: stars}; rows {fid: stars}; files {name of an input, {fid} for what it is
    of: shards}; said {attribute: {its value: shards}}; times:
    of the first and the last shard; models {identity: shards}.
    """

    labels: object
    stars: int = 0
    counts: Counter = field(default_factory=Counter)
    quality: Counter = field(default_factory=Counter)
    inputs: Counter = field(default_factory=Counter)
    rows: dict = field(default_factory=dict)
    said: dict = field(default_factory=lambda: {name: Counter() for name in SAID})
    files: Counter = field(default_factory=Counter)
    times: list = field(default_factory=list)
    models: Counter = field(default_factory=Counter)

    @property
    def confidence_flags(self) -> list:
        """Names of the flags of confidences."""
        return [flags.confidence_flag(label.name) for label in self.labels]


def take_census(data_dir, fids, release) -> tuple:
    """(`Census` or None, {fid: (state, reason)}) of shards of step 10, each opened once.

    A shard that is damaged is not counted, nor is one of other labels than most have: they are in
    the second. None where none can be read.
    """
    of_labels, failed = {}, {}
    for fid in progress(fids, "stars counted"):
        try:
            with open_shard(data_dir, OUTPUT, fid, release) as reader:
                labels = labels_of(reader.attrs, reader.path)
                one = _count_shard(reader, labels, release)
                census = of_labels.setdefault(labels.to_json(), Census(labels))
                _put(census, fid, one, reader)
        except ShardError as error:
            failed[fid] = DAMAGED, str(error)
    if not of_labels:
        return None, failed
    most = max(of_labels.values(), key=lambda census: len(census.rows))
    for census in of_labels.values():
        if census is not most:
            why = f"its labels are {census.labels.words}, most shards' {most.labels.words}"
            failed |= dict.fromkeys(census.rows, (OTHER_LABELS, why))
    return most, failed


def _put(census, fid, one, reader):
    """Add a shard's own `Census` to that of all."""
    attrs = reader.attrs
    for name in ("counts", "quality", "inputs"):
        getattr(census, name).update(getattr(one, name))
    census.stars += reader.n_rows
    census.rows[fid] = reader.n_rows
    census.models[model_of(attrs)] += 1
    census.files.update(FID_PATTERN.sub("{fid}", str(e.get("name"))) for e in entries(attrs))
    census.times = _range(census.times, attrs.get("time"))
    for name in SAID:
        if name in attrs:
            census.said[name][str(attrs[name])] += 1


def _range(times, new):
    if new is None:
        return times
    return [min([*times, str(new)]), max([*times, str(new)])]


def _count_shard(reader, labels, release) -> Census:
    """The `Census` of flags and counts of a shard; ShardError where it is damaged."""
    out = Census(labels)
    names = ("quality_flags", "input_flags", "stellar_params_est", "phot_g_mean_flux")
    names = [name for name in names if reader.has(name)]
    for start in range(0, reader.n_rows, ROWS):
        table = reader.read_table(names, start, min(start + ROWS, reader.n_rows))
        _add(out, table, release)
    return out


def _add(census, table, release):
    """Count the stars of a table {name: (n, ...)}."""
    labels, quality = census.labels, table["quality_flags"]
    bits = flags.quality_flag(labels)
    members = sum(flag.value for flag in bits)
    confidences = sum(bits[name].value for name in census.confidence_flags)
    census.quality.update(flags.counts(bits, quality))
    if "input_flags" in table:
        census.inputs.update(flags.counts(flags.InputFlag, table["input_flags"]))
    est = table["stellar_params_est"]
    found = {
        "solved": np.isfinite(est).all(1),
        "good": quality < GOOD_BELOW,
        "unflagged": quality == 0,
        "flagged": (quality & (members & ~confidences)) > 0,
    }
    if "teff" in labels.forward.place:
        found["hot"] = est[:, labels.forward.place["teff"]] > HOT_TEFF
    if "phot_g_mean_flux" in table:
        with np.errstate(invalid="ignore", divide="ignore"):
            g = release.g_magnitudes(table["phot_g_mean_flux"])
        found |= {"faint": g > FAINT_G, "with_g": np.isfinite(g)}
    census.counts.update({name: int(np.count_nonzero(rows)) for name, rows in found.items()})
