"""What is counted of a catalogue's stars: columns that follow from the datasets of its shards."""

from functools import cached_property

import numpy as np
from astropy.coordinates import ICRS, Galactic, SkyCoord

from pipeline.export.flat import KIND, flat_columns
from pipeline.export.table import chosen_stars
from pipeline.schema import flags, resolved
from pipeline.sphere import chord, unit_vectors

GOOD = "quality_flags < 8"  # no flag but those of three confidences
TELLING_E = 0.3  # below it xi is little but its prior (docs/model.md)
PHOTOMETRY = ("g", "bp", "rp")
LATITUDES = ((0, 5), (5, 15), (15, 35), (35, 90))  # |b| in degrees
COPIED = ("ra", "dec", "quality_flags", "chi2_opt", "n_flux")
SOLUTION = ("stellar_params_est", "stellar_params_err")


def galactic_axes() -> np.ndarray:
    """(3, 3): rows are the axes of the Galactic frame in ICRS."""
    axes = SkyCoord(*np.eye(3), representation_type="cartesian", frame=ICRS()).transform_to(
        Galactic()
    )
    return axes.cartesian.xyz.value


GALACTIC = galactic_axes()


def galactic(ra, dec):
    """(l, b) in degrees, l within 0..360, of ICRS positions (N,) in degrees."""
    x, y, z = GALACTIC @ unit_vectors(ra, dec).T
    return np.rad2deg(np.arctan2(y, x)) % 360.0, np.rad2deg(np.arcsin(np.clip(z, -1, 1)))


class Quantities:
    """Columns of a catalogue with a `schema.Layout`: `of` makes them of the datasets `needs`.

    select: condition on flat columns; law: an `ExtinctionLaw`, for R(V), or None. directions:
    (l, b) in degrees, radius: of the cones about them. UsageError where the condition is none.

    Columns: "label NAME", "error NAME" and "confidence NAME" of each label, in the units that it is
    shown in; xi, "error xi" and those of E ("ext"), where E tells something of it "telling xi", and
    RV; distance (kpc) of the parallax, "error parallax" relative to it; g, bp_rp, abs_g (mag, not
    corrected for dust); chi2, for each flux; l, b; and bool: all, selected, flagged, "slice K",
    "direction K", "latitude K".
    """

    def __init__(self, layout, select, law=None, directions=(), radius=1.0):
        self.layout, self.law, self.slices = layout, law, ()
        self.wanted = chosen_stars(flat_columns(layout), layout.labels, select)
        self._centres = [unit_vectors(*direction) for direction in directions]
        self._chord = chord(radius)

    @cached_property
    def needs(self) -> tuple:
        """Names of the datasets that are read."""
        there = resolved(KIND, self.layout)
        fluxes = [f"phot_{band}_mean_flux" for band in PHOTOMETRY]
        of_labels = [
            f"{label.name}_{what}"
            for label in self.layout.labels
            for what in (("confidence",) if label.forward else ("est", "err", "confidence"))
        ]
        names = (*COPIED, *SOLUTION, *of_labels, *self.wanted.needs)
        return tuple(dict.fromkeys((*names, *(name for name in fluxes if name in there))))

    @property
    def bits(self) -> int:
        """Of the flags that make a star flagged: all but those of confidences."""
        members = flags.quality_flag(self.layout.labels)
        confidences = [flags.confidence_flag(label.name) for label in self.layout.labels]
        return sum(flag.value for flag in members if flag.name not in confidences)

    def of(self, table) -> dict:
        """{name: (N,)} of datasets {name: (N, ...)}."""
        n = len(table["ra"])
        out = {"all": np.ones(n, bool), "flagged": (table["quality_flags"] & self.bits) > 0}
        out["selected"] = self.wanted.of(table, n)
        with np.errstate(invalid="ignore", divide="ignore"):
            out |= self._labels(table) | self._dust_and_distance(table) | self._place(table)
            out["chi2"] = table["chi2_opt"] / np.where(table["n_flux"] > 0, table["n_flux"], np.nan)
            out |= self._photometry(table, out["distance"])
        return out | self._slices(out)

    def _labels(self, table):
        out, place = {}, self.layout.labels.forward.place
        for label in self.layout.labels:
            for what, name, dataset in zip(
                ("label", "error"), ("est", "err"), SOLUTION, strict=True
            ):
                if label.forward:
                    values = table[dataset][:, place[label.name]]
                else:
                    values = table[f"{label.name}_{name}"]
                out[f"{what} {label.name}"] = values * label.scale
            out[f"confidence {label.name}"] = table[f"{label.name}_confidence"]
        return out

    def _dust_and_distance(self, table):
        (xi, ext, plx), (xi_err, ext_err, plx_err) = (table[name][:, -3:].T for name in SOLUTION)
        telling = np.where(ext > TELLING_E, xi, np.nan)
        out = {"xi": xi, "ext": ext, "telling xi": telling, "distance": 1.0 / plx}
        out |= {"error xi": xi_err, "error ext": ext_err, "error parallax": plx_err / plx}
        return out if self.law is None else out | {"RV": self.law.rv(telling)}

    def _photometry(self, table, distance):
        release, nothing = self.layout.release, np.full(len(distance), np.nan)
        g, bp, rp = (
            release.magnitudes(band, table[name]) if name in table else nothing
            for band, name in ((band, f"phot_{band}_mean_flux") for band in PHOTOMETRY)
        )
        return {"g": g, "bp_rp": bp - rp, "abs_g": g - 5 * np.log10(distance) - 10}

    def _place(self, table):
        lon, lat = galactic(table["ra"], table["dec"])
        out = {"l": lon, "b": lat}
        if self._centres:
            places = unit_vectors(lon, lat)
            for k, centre in enumerate(self._centres):
                out[f"direction {k}"] = np.linalg.norm(places - centre, axis=1) <= self._chord
        return out

    def _slices(self, out):
        found, away = {}, np.abs(out["b"])
        for k, (low, high) in enumerate(self.slices):
            found[f"slice {k}"] = (out["distance"] >= low) & (out["distance"] < high)
        for k, (low, high) in enumerate(LATITUDES):
            found[f"latitude {k}"] = (away >= low) & ((away < high) | (high == 90))
        found |= {k: v for k, v in out.items() if k.startswith("direction ")}
        return {name: rows & out["selected"] for name, rows in found.items()}
