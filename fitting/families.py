"""Families of stars whose fluxes can be mistaken for one another: giants and dwarfs, and so on."""

import numpy as np

LOGG_LIMITS = (2.55, 3.5, 4.15)  # bright giants | lower giants | subgiants | dwarfs
GIANT_FEH = -1.0  # dex: metal-poor | metal-rich giants
DWARF_TEFF = 5.2  # kK: cool | hot dwarfs


class Families:
    """The families that labels tell apart: seven with Teff, [Fe/H] and log g, fewer without one of
    them, one where none is known."""

    def __init__(self, labels):
        self.place = labels.forward.place

    def of(self, theta):
        """The family of each star (N,) int, for types theta (N, K)."""
        teff, feh, logg = (
            theta[:, self.place[name]] if name in self.place else None
            for name in ("teff", "feh", "logg")
        )
        cool = 0 if teff is None else (teff < DWARF_TEFF).astype(int)
        poor = 0 if feh is None else (feh < GIANT_FEH).astype(int)
        if logg is None:
            return np.zeros(len(theta), int) + 2 * poor + cool
        limits = [logg < limit for limit in LOGG_LIMITS]
        return np.select(limits, [0 + poor, 2 + poor, 4], 5 + cool)


N_FAMILIES = 7  # at most: numbers given by `Families.of` are below
