"""Text of a star's page: lines at places in inches, and numbers with their errors."""

import textwrap
from dataclasses import dataclass, field

import numpy as np

from pipeline.figures.style import BLACK, WIDTH, in_unit, number

MARGIN = 0.16  # inches, at the left
LINE = 0.2  # inches, of text of SIZE
SIZE = 9.5  # points
MOST_CHARACTERS = 14  # of the name of a parameter
INCH_A_CHARACTER = 0.070  # of text of SIZE, on average and a little more
BOLD = 1.3  # times as wide, with many capitals


@dataclass
class Line:
    """A line of text: pieces (inches from the margin, words, style); its height in inches."""

    pieces: list
    height: float = LINE


@dataclass
class Text:
    """Lines of text, one below the other."""

    lines: list = field(default_factory=list)

    def add(self, words, height=LINE, **style):
        self.lines.append(Line([(0.0, words, style)], height))

    def wrap(self, words, indent="", **style):
        """Add words in as many lines as they take, those after the first indented."""
        size = INCH_A_CHARACTER * style.get("fontsize", SIZE) / SIZE
        size *= BOLD if style.get("fontweight") == "bold" else 1.0
        most = int((WIDTH - 2 * MARGIN) / size)
        for line in textwrap.wrap(words, most, subsequent_indent=indent, break_on_hyphens=False):
            self.add(line, **style)

    @property
    def height(self):
        """In inches."""
        return sum(line.height for line in self.lines)

    def draw(self, figure, height):
        """Into a (sub)figure as wide as a page, from its top down; height: its own, in inches."""
        y = height
        for line in self.lines:
            y -= line.height
            for x, words, style in line.pieces:
                style = {"fontsize": SIZE, "color": BLACK, "va": "baseline"} | style
                figure.text((MARGIN + x) / WIDTH, (y + 0.05) / height, words, **style)


def named(parameter):
    """Symbol and unit of a label or parameter; a long one is cut."""
    symbol = parameter.symbol
    if "$" not in symbol and len(symbol) > MOST_CHARACTERS:
        symbol = symbol[: MOST_CHARACTERS - 1].rstrip() + "…"
    return in_unit(symbol, parameter)


def with_error(value, err):
    """A number and its error, with two digits of the latter; "" where it is none."""
    if not np.isfinite(value):
        return ""
    if not (np.isfinite(err) and err > 0):
        return number(float(value), 3)
    digits = digits_of(err)
    return f"{number(float(value), digits)} ± {number(float(err), digits)}"


def digits_of(err):
    """Digits after the point, of a number of which two digits of the error err > 0 are known."""
    return int(np.clip(1 - np.floor(np.log10(err)), 0, 8))
