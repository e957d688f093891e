"""What is counted for the figures of a catalogue: axes whose ranges suit the stars, and which."""

import contextlib
from dataclasses import dataclass

import numpy as np

from pipeline.errors import ShardError
from pipeline.export.flat import KIND
from pipeline.read import open_shard
from pipeline.tallies.counts import BASE_LEVEL, Axis, Counts, Sky
from pipeline.tallies.quantities import LATITUDES

SAMPLE_ROWS, SAMPLE_SHARDS, SAMPLE_BLOCKS = 200_000, 200, 16  # that ranges are taken from
LEAST_SELECTED = 2000  # in the sample
CELLS, VALUES = 192, 64  # of diagrams across; of quantities of which there is a median
SKY_VALUES = 96
TAIL = 0.2  # percent of the sample beyond the ends of a range
FINEST_PIXELS = 200_000  # of a map
STARS_A_PIXEL = 4  # when maps are counted; they are shown with more
DISTANCES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, np.inf)  # kpc, of slices
SLICE_SHARE, MOST_SLICES = 0.05, 6  # least share of the stars in a slice
POSITIVE = 1e-3  # least of a range on a log scale, relative to its largest


def sample(catalogue, quantities) -> dict:
    """Columns {name: (n,)} of `Quantities` of some stars of a `Catalogue`, from all over it: of all
    where there are no more than SAMPLE_ROWS. They do not depend on how it is read. Where few of
    them are selected, of selected stars alone, for which all of it is read."""
    shards = [shard for shard in catalogue.shards if shard.n_rows]
    every = max(1, -(-len(shards) // SAMPLE_SHARDS))
    shards = shards[::every]
    share = min(1.0, SAMPLE_ROWS / max(1, sum(shard.n_rows for shard in shards)))
    parts = []
    for shard in shards:
        with contextlib.suppress(ShardError):  # a damaged one is named when all rows are read
            parts += list(_some_rows(catalogue, shard, quantities, share))
    n_selected = sum(int(part["selected"].sum()) for part in parts)
    if n_selected < LEAST_SELECTED and (share < 1 or every > 1):
        parts = list(_selected_rows(catalogue, quantities)) or parts
    if not parts:
        return {}
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _selected_rows(catalogue, quantities):
    """Yield columns of the selected stars, about SAMPLE_ROWS at most."""
    n = 0
    for table in catalogue.chunks(quantities.needs):
        columns = quantities.of(table)
        rows = columns["selected"]
        n += int(rows.sum())
        if rows.any():
            yield {name: values[rows] for name, values in columns.items()}
        if n > SAMPLE_ROWS:
            return


def _some_rows(catalogue, shard, quantities, share):
    """Yield columns of a share of a shard's rows, in blocks from all over it."""
    with open_shard(catalogue.data_dir, KIND, shard.fid, catalogue.release) as reader:
        blocks = 1 if share == 1 else min(SAMPLE_BLOCKS, shard.n_rows)
        n = max(1, int(np.ceil(share * shard.n_rows / blocks)))
        for first in np.linspace(0, shard.n_rows, blocks, endpoint=False).astype(int):
            stop = min(first + n, shard.n_rows)
            yield quantities.of(reader.read_table(quantities.needs, first, stop))


def sky_level(catalogue) -> int:
    """HEALPix level that maps of a `Catalogue` are counted at: fine enough for its stars over the
    sky that their ids span, and of no more than FINEST_PIXELS."""
    shift = catalogue.release.id_shift + 2 * (catalogue.release.healpix_level - BASE_LEVEL)
    spans = [(s.first >> shift, s.last >> shift) for s in catalogue.shards if s.n_rows]
    blocks = np.unique(np.concatenate([np.arange(a, b + 1) for a, b in spans] or [[0]]))
    pixels = np.clip(catalogue.n_rows / STARS_A_PIXEL, 1, FINEST_PIXELS)
    return BASE_LEVEL + max(0, int(0.5 * np.log2(max(pixels / len(blocks), 1))))


def slices_of(distance) -> list:
    """[(low, high)] in kpc: slices of DISTANCES with SLICE_SHARE or more of the distances (n,)."""
    distance = distance[np.isfinite(distance)]
    out, low = [], 0.0
    for high in DISTANCES[1:]:
        inside = np.mean((distance >= low) & (distance < high)) if distance.size else 0.0
        beyond = np.mean(distance >= high) if distance.size else 0.0
        full = inside >= SLICE_SHARE and beyond >= SLICE_SHARE and len(out) < MOST_SLICES - 1
        if full or high == np.inf:
            out.append((low, high))
            low = high
    return out


@dataclass
class Plan:
    """Makes the `Counts` of a catalogue's figures.

    labels: its `LabelSet`; seen: a `sample` of it; level: of its maps, `sky_level`; n_slices,
    n_directions: of distance, on the sky. Where a quantity has no numbers, what would be made of it
    is left out.
    """

    labels: object
    seen: dict
    level: int
    n_slices: int = 0
    n_directions: int = 0

    def axis(self, name, n, scale="linear", ends=False, tail=TAIL):
        """An `Axis` over the range of a quantity of selected stars; None where there is none."""
        values = self.seen.get(name, np.empty(0))
        rows = self.seen.get("selected", np.empty(0, bool))
        values = values[rows & np.isfinite(values)] if len(values) else values
        if scale != "linear":
            values = values[values >= 0] if scale == "sqrt" else values[values > 0]
        if not values.size:
            return None
        low, high = np.percentile(values, (tail, 100 - tail)).astype(float)
        if values.size <= SAMPLE_ROWS // 100:  # few: none is left out
            low, high = float(values.min()), float(values.max())
        if scale == "log":
            low = max(low, POSITIVE * high)
            margin = max((high / low) ** 0.03, 1.02)
            return Axis(name, low / margin, high * margin, n, scale, ends)
        margin = 0.03 * (high - low) or max(0.05 * abs(high), 0.05)
        low = 0.0 if scale == "sqrt" else low - margin
        return Axis(name, low, high + margin, n, scale, ends)

    @property
    def values(self) -> list:
        """Axes of what diagrams are coloured by: labels, shape and amount of dust, distance."""
        names = [*(f"label {label.name}" for label in self.labels), "telling xi"]
        axes = [self.axis(name, VALUES, ends=True) for name in names]
        axes += [self.axis("ext", VALUES, "sqrt", True), self.axis("distance", VALUES, "log", True)]
        return [axis for axis in axes if axis is not None]

    def counts(self) -> dict:
        """{key: Counts}."""
        out = self._diagram("kiel", "label teff", "label logg")
        out |= self._diagram("cmd", "bp_rp", "abs_g")
        out |= self._maps() | self._along_distance() | self._by_brightness()
        return out

    def _diagram(self, key, x, y):
        """Density, and one for each value, in the plane of two quantities."""
        plane = (self.axis(x, CELLS), self.axis(y, CELLS))
        if None in plane:
            return {}
        out = {f"{key} density": Counts(plane, "selected")}
        for value in self.values:
            if value.name not in (x, y):
                out[f"{key} {value.name}"] = Counts((*plane, value), "selected")
        return out

    def _maps(self):
        sky = Sky(self.level)
        out = {"sky all": Counts((sky,), "all"), "sky flagged": Counts((sky,), "flagged")}
        for name in ("label feh", "RV"):
            value = self.axis(name, SKY_VALUES, ends=True)
            if value is not None:
                out[f"sky {name}"] = Counts((sky, value), "selected")
        ext = self.axis("ext", SKY_VALUES, "sqrt", True)
        for k in range(self.n_slices if ext is not None else 0):
            out[f"sky slice {k}"] = Counts((sky, ext), f"slice {k}")
        return out

    def _along_distance(self):
        plane = (self.axis("distance", 96, "log"), self.axis("ext", 192, ends=True, tail=TAIL / 10))
        if None in plane:
            return {}
        names = [f"direction {k}" for k in range(self.n_directions)]
        names += [f"latitude {k}" for k in range(len(LATITUDES))]
        return {f"along {name}": Counts(plane, name) for name in names}

    def _by_brightness(self):
        g = self.axis("g", 48)
        if g is None:
            return {}
        errors = [*(label.name for label in self.labels), "xi", "ext", "parallax"]
        axes = {f"error {name}": self.axis(f"error {name}", 96, "log", True) for name in errors}
        axes["chi2"] = self.axis("chi2", 96, "log", True)
        axes |= {
            f"confidence {label.name}": Axis(f"confidence {label.name}", 0.0, 1.0, 50)
            for label in self.labels
        }
        return {
            f"g {name}": Counts((g, axis), "selected")
            for name, axis in axes.items()
            if axis is not None
        }
