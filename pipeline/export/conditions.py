"""Which stars are wanted: conditions on flat columns, and cones on the sky.

A condition is a Python expression, of which only what is listed here is known: it is taken apart by
`ast` and never evaluated as a program.
"""

import ast
import difflib
import operator
from dataclasses import dataclass

import healpy
import numpy as np

from pipeline.errors import UsageError
from pipeline.sphere import chord, unit_vectors

FUNCTIONS = {
    "abs": np.abs,
    "sqrt": np.sqrt,
    "log10": np.log10,
    "exp": np.exp,
    "isfinite": np.isfinite,
    "isnan": np.isnan,
}
BINARY = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: np.true_divide,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
}
UNARY = {ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: lambda x: ~_truth(x)}
COMPARISONS = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
GRAMMAR = (
    "columns, numbers, names of flags, + - * / & |, comparisons, and, or, not, "
    f"{', '.join(FUNCTIONS)}"
)
FID_LEVEL = 8  # of the HEALPix pixels in the names of shards
SAFETY = 0.02  # degrees about a cone: ids keep the pixel of a position that was revised since


def _truth(x):
    return np.asarray(x) if np.asarray(x).dtype == bool else np.asarray(x) != 0


def similar(name, known) -> str:
    """Words that say which of the known names are like one that is not known."""
    found = difflib.get_close_matches(name, known, 4, 0.6)
    return f"; similar: {', '.join(found)}" if found else ""


def pixels_of(fid) -> tuple[int, int]:
    """First and last pixel of FID_LEVEL of a shard."""
    first, last = fid.split("-")
    return int(first), int(last)


class Condition:
    """A condition on columns: `of` says for which rows it is true.

    known: {name: dtype} of columns; constants: {name: number}. Raises UsageError where the text is
    no condition, and says what it does not know.
    """

    def __init__(self, text, known, constants=None):
        self.text, self._known, self._constants = text, known, constants or {}
        self.names = {}  # of columns, in the order in which they come
        try:
            tree = ast.parse(text.strip(), mode="eval")
            self._evaluate = self._compiled(tree.body)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise UsageError(f"--select {text!r}: not a condition ({error})") from error
        self.of({name: np.zeros(1, known[name]) for name in self.names})  # what cannot be, now

    def of(self, table) -> np.ndarray:
        """(N,) bool, for columns {name: (N,)} that hold all `names`."""
        try:
            with np.errstate(all="ignore"):
                return _truth(self._evaluate(table))
        except (TypeError, OverflowError) as error:
            raise UsageError(
                f"--select {self.text!r}: & and | are for whole numbers and for comparisons in (), "
                f"as in (teff > 4) & (logg < 3); better write `and`, `or` ({error})"
            ) from error

    def _fault(self, node, why):
        part = ast.get_source_segment(self.text.strip(), node) or type(node).__name__
        return UsageError(f"--select {self.text!r}: {part!r} {why}")

    def _compiled(self, node):
        """A function of a table that has the value of a node of the expression."""
        make = getattr(self, f"_of_{type(node).__name__}", None)
        if make is None:
            raise self._fault(node, f"cannot be used; known are {GRAMMAR}")
        return make(node)

    def _of_Constant(self, node):  # noqa: N802
        if isinstance(node.value, bool) or not isinstance(node.value, int | float):
            raise self._fault(node, "is no number")
        return lambda table: node.value

    def _of_Name(self, node):  # noqa: N802
        name = node.id
        if name in self._known:
            self.names.setdefault(name)
            return lambda table: table[name]
        if name in self._constants:
            return lambda table: self._constants[name]
        known = [*self._known, *self._constants]
        raise self._fault(node, f"is no column{similar(name, known)}")

    def _of_BinOp(self, node):  # noqa: N802
        if type(node.op) not in BINARY:
            raise self._fault(node, f"cannot be used; known are {GRAMMAR}")
        apply, left, right = BINARY[type(node.op)], *map(self._compiled, (node.left, node.right))
        return lambda table: apply(left(table), right(table))

    def _of_UnaryOp(self, node):  # noqa: N802
        if type(node.op) not in UNARY:
            raise self._fault(node, f"cannot be used; known are {GRAMMAR}")
        apply, operand = UNARY[type(node.op)], self._compiled(node.operand)
        return lambda table: apply(operand(table))

    def _of_BoolOp(self, node):  # noqa: N802
        parts = [self._compiled(value) for value in node.values]
        join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
        return lambda table: join.reduce([_truth(part(table)) for part in parts])

    def _of_Compare(self, node):  # noqa: N802
        for op in node.ops:
            if type(op) not in COMPARISONS:
                raise self._fault(node, f"cannot be used; known are {GRAMMAR}")
        parts = [self._compiled(part) for part in (node.left, *node.comparators)]
        applied = [COMPARISONS[type(op)] for op in node.ops]

        def value(table):
            values = [part(table) for part in parts]
            pairs = zip(applied, values[:-1], values[1:], strict=True)
            return np.logical_and.reduce([apply(a, b) for apply, a, b in pairs])

        return value

    def _of_Call(self, node):  # noqa: N802
        name = getattr(node.func, "id", None)
        if name not in FUNCTIONS or len(node.args) != 1 or node.keywords:
            raise self._fault(node, f"is none of the functions {', '.join(FUNCTIONS)}")
        argument = self._compiled(node.args[0])
        return lambda table: FUNCTIONS[name](argument(table))


@dataclass(frozen=True)
class Cone:
    """A cone on the sky: centre and radius in degrees. UsageError where it is none."""

    ra: float
    dec: float
    radius: float

    names = ("ra", "dec")

    def __post_init__(self):
        if not (np.isfinite(self.ra) and abs(self.dec) <= 90 and 0 < self.radius <= 180):
            raise UsageError(
                f"--cone {self.ra:g} {self.dec:g} {self.radius:g}: expected RA and Dec (-90 to 90) "
                "of the centre and a radius (0 to 180), in degrees"
            )

    @property
    def text(self):
        return f"within {self.radius:g} deg of RA {self.ra:g}, Dec {self.dec:g} deg"

    def of(self, table) -> np.ndarray:
        """(N,) bool, for columns with `ra` and `dec` (N,) in degrees."""
        away = unit_vectors(table["ra"], table["dec"]) - unit_vectors(self.ra, self.dec)
        return np.linalg.norm(away, axis=-1) <= chord(self.radius)

    def fids(self, fids) -> list[str]:
        """Those of the shards that may have stars in the cone."""
        centre = unit_vectors(self.ra, self.dec)
        radius = min(np.deg2rad(self.radius + SAFETY), np.pi)
        pixels = healpy.query_disc(2**FID_LEVEL, centre, radius, inclusive=True, nest=True)
        pixels = np.sort(pixels)
        ends = np.array([pixels_of(fid) for fid in fids]).reshape(-1, 2)
        first, after = np.searchsorted(pixels, ends[:, 0]), np.searchsorted(pixels, ends[:, 1] + 1)
        return [fid for fid, there in zip(fids, after > first, strict=True) if there]


@dataclass(frozen=True)
class Selection:
    """Conditions that must all be true; none: all stars."""

    conditions: tuple = ()

    @property
    def names(self) -> tuple:
        """Of the columns that are needed."""
        return tuple(dict.fromkeys(name for one in self.conditions for name in one.names))

    @property
    def text(self) -> str:
        return " and ".join(one.text for one in self.conditions) or "all stars"

    def of(self, table, n) -> np.ndarray:
        """(n,) bool of n rows, for columns {name: (n,)}."""
        parts = [np.broadcast_to(one.of(table), n) for one in self.conditions]
        return np.logical_and.reduce(parts) if parts else np.ones(n, bool)
