"""Numbers in words, and the tables that the page is made of."""

from dataclasses import dataclass, field

import numpy as np

NONE = "–"


def count(n) -> str:
    """A whole number."""
    return f"{int(n):,}"


def share(n, total) -> str:
    """n of a total, in percent: of what is there never 0%, of what is not all never 100%."""
    if not total:
        return NONE
    percent = 100.0 * n / total
    if n and percent < 0.1:
        return "< 0.1%"
    if n < total and percent > 99.9:
        return "> 99.9%"
    return f"{percent:.1f}%" if 0 < n < total else f"{percent:.0f}%"


def of(n, total) -> str:
    """n of a total, as numbers and in percent."""
    return f"{share(n, total)} ({count(n)} of {count(total)})"


def value(x, digits) -> str:
    """A number with so many digits and a typographic minus."""
    if x is None or not np.isfinite(x):
        return NONE
    return f"{round(float(x), digits) + 0.0:,.{digits}f}".replace("-", "−")


def is_number(x) -> bool:
    """Whether what was read of JSON is a number."""
    return isinstance(x, int | float) and not isinstance(x, bool) and bool(np.isfinite(x))


def plural(n, word) -> str:
    """A number of things."""
    return f"{count(n)} {word}{'' if n == 1 else 's'}"


@dataclass(frozen=True)
class Cell:
    """A cell of a table. bar: share 0..1 that is drawn below it, or None; code: a name as it
    stands in a file."""

    text: str
    bar: float | None = None
    code: bool = False
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """A table: caption, heads of the columns; rows of texts and `Cell`s, the first of each its
    head. numbers: places of the columns of numbers. groups: {number of a row: words above it}.
    """

    caption: str
    heads: tuple
    rows: list
    numbers: tuple = ()
    note: str = ""
    groups: dict = field(default_factory=dict)

    def cells(self, row):
        """`Cell`s of a row."""
        return [cell if isinstance(cell, Cell) else Cell(str(cell)) for cell in row]
