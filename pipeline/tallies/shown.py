"""What the figures of a catalogue are made of, and the words for it."""

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.figures.style import in_unit
from pipeline.tallies.quantities import TELLING_E


@dataclass
class Shown:
    """What figures are made of: labels; counts {key: `Counts`}; few {rows: {name: (n,)}}: columns
    of groups of stars that are few and shown one by one, "all", "selected", "direction 0" ...;
    slices [(low, high)] in kpc; directions [(l, b)], radius, in degrees; note: words on which stars
    they are."""

    folder: Path
    labels: object
    counts: dict
    few: dict
    note: str
    slices: list = field(default_factory=list)
    directions: list = field(default_factory=list)
    radius: float = 1.0

    @property
    def stars(self):
        """The selected stars, where they are few, else None."""
        return self.few.get("selected")

    @property
    def everyone(self):
        """All stars, where they are few, else None."""
        return self.few.get("all")

    def words(self, name) -> str:
        """What a quantity is, with its unit."""
        known = {
            "telling xi": rf"$\xi$, where $E>{TELLING_E}$",
            "ext": "$E$",
            "distance": "distance (kpc)",
            "bp_rp": r"$G_\mathrm{BP}-G_\mathrm{RP}$ (mag)",
            "abs_g": r"$M_G$ (mag), not corrected for dust",
            "RV": r"$R(V)$",
            "chi2": r"$\chi^2$ for each flux",
            "error xi": r"error of $\xi$",
            "error ext": "error of $E$",
            "error parallax": "error of the parallax\nrelative to it",
        }
        what, _, label = name.partition(" ")
        if name in known or what not in ("label", "error", "confidence"):
            return known[name]
        label = next(one for one in self.labels if one.name == label)
        if what == "confidence":
            return f"confidence in {label.symbol}"
        return in_unit(label.symbol if what == "label" else f"error of {label.symbol}", label)
