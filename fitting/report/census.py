"""Every star of a catalogue counted, in one stream: what was found of it, and what is flagged."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from pipeline.errors import ShardError
from pipeline.run import progress
from pipeline.schema import flags

ROWS = 1 << 17  # read at a time
GOOD_BELOW = 8  # quality_flags of stars that are good for most uses (docs/flags.md)
SAID = ("command_line", "version", "parallaxes", "packages", "xp_basis", "release")
FAINT_G, HOT_TEFF = 15.0, 6.8  # mag, kK: beyond them the starter model knows nothing (its card)


@dataclass
class Census:
    """What was counted of the shards that could be read.

    stars: in all; counts {what: stars}: "solved" (all parameters finite), "good" (GOOD_BELOW),
    "unflagged", "flagged" (any flag but those of confidences), "faint", "hot", "with_g"; quality,
    inputs {name of a flag: stars}; rows {fid: stars}; said {attribute: {its value: shards}}; times:
    of the first and the last shard; models {identity: shards}.
    """

    labels: object
    stars: int = 0
    counts: Counter = field(default_factory=Counter)
    quality: Counter = field(default_factory=Counter)
    inputs: Counter = field(default_factory=Counter)
    rows: dict = field(default_factory=dict)
    said: dict = field(default_factory=lambda: {name: Counter() for name in SAID})
    times: list = field(default_factory=list)
    models: Counter = field(default_factory=Counter)

    @property
    def confidence_flags(self) -> list:
        """Names of the flags of confidences."""
        return [flags.confidence_flag(label.name) for label in self.labels]


def take_census(catalogue) -> Census:
    """The `Census` of a `Catalogue`; a shard that is damaged is named in its `failed`, and not
    counted."""
    out = Census(catalogue.layout.labels)
    for shard in progress(catalogue.shards, "stars counted"):
        try:
            one, attrs = _count_shard(catalogue, shard)
        except ShardError as error:
            catalogue.failed[shard.fid] = str(error)
            continue
        for name in ("counts", "quality", "inputs"):
            getattr(out, name).update(getattr(one, name))
        out.stars += shard.n_rows
        out.rows[shard.fid] = shard.n_rows
        out.models[shard.model] += 1
        out.times = _range(out.times, attrs.get("time"))
        for name in SAID:
            if name in attrs:
                out.said[name][str(attrs[name])] += 1
    return out


def _range(times, new):
    if new is None:
        return times
    return [min([*times, str(new)]), max([*times, str(new)])]


def _count_shard(catalogue, shard):
    """(`Census` of its flags and counts, attributes) of a shard; ShardError where it is damaged."""
    out = Census(catalogue.layout.labels)
    names = ("quality_flags", "input_flags", "stellar_params_est", "phot_g_mean_flux")
    with catalogue.open(shard) as reader:
        names = [name for name in names if reader.has(name)]
        for start in range(0, shard.n_rows, ROWS):
            table = reader.read_table(names, start, min(start + ROWS, shard.n_rows))
            _add(out, table, catalogue.release)
        return out, reader.attrs


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
