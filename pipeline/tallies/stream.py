"""A catalogue's stars counted in one stream, and those kept one by one where they are few."""

import numpy as np

from pipeline.figures.style import MAX_POINTS
from pipeline.tallies.counts import Tallies
from pipeline.tallies.plan import Plan, sample, sky_level, slices_of

ALONG = ("direction ", "latitude ")  # groups of stars that E is shown of against distance


class FewStars:
    """Columns of the stars for which the column `rows` (N,) bool is true, kept while they are
    MAX_POINTS or fewer."""

    def __init__(self, rows):
        self.rows, self.parts, self.n = rows, [], 0

    def add(self, table):
        chosen = table[self.rows]
        self.n += int(chosen.sum())
        if self.n <= MAX_POINTS:
            self.parts.append({name: values[chosen] for name, values in table.items()})
        else:
            self.parts = None

    def columns(self):
        """{name: (n,)}."""
        return {name: np.concatenate([p[name] for p in self.parts]) for name in self.parts[0]}


def counted(catalogue, quantities, directions=(), wanted=None):
    """({key: `Counts`}, {rows: columns {name: (n,)}} of groups of few stars, numbers (2,) of all
    and of the selected stars), of a `Catalogue`.

    quantities: `Quantities` of its layout; directions: those that they have; wanted(key): whether
    that is counted, by default all is.
    """
    seen = sample(catalogue, quantities)
    if seen:
        quantities.slices = slices_of(seen["distance"][seen["selected"]])
    plan = Plan(
        catalogue.layout.labels, seen, sky_level(catalogue), len(quantities.slices), len(directions)
    )
    counts = plan.counts()
    tallies = Tallies({key: one for key, one in counts.items() if not wanted or wanted(key)})
    groups = [name for name in seen if name in ("all", "selected") or name.startswith(ALONG)]
    groups = {rows: FewStars(rows) for rows in groups}
    for table in catalogue.chunks(quantities.needs):
        columns = quantities.of(table)
        tallies.add(columns)
        for group in groups.values():
            group.add(columns)
    few = {rows: group.columns() for rows, group in groups.items() if group.parts}
    return tallies.counts, few, [groups[rows].n if groups else 0 for rows in ("all", "selected")]
