"""Positions on the sky as unit vectors."""

import numpy as np

MAS = np.deg2rad(1 / 3.6e6)  # rad


def unit_vectors(ra, dec) -> np.ndarray:
    """(n,3) unit vectors of positions in degrees."""
    ra, dec = np.deg2rad(ra), np.deg2rad(dec)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)


def local_axes(ra, dec) -> tuple[np.ndarray, np.ndarray]:
    """(n,3) unit vectors towards east and north at positions in degrees."""
    ra, dec = np.deg2rad(ra), np.deg2rad(dec)
    east = np.stack([-np.sin(ra), np.cos(ra), np.zeros_like(ra)], axis=-1)
    north = np.stack([-np.sin(dec) * np.cos(ra), -np.sin(dec) * np.sin(ra), np.cos(dec)], axis=-1)
    return east, north


def moved_vectors(ra, dec, pmra, pmdec, years) -> np.ndarray:
    """(n,3) unit vectors after `years` of proper motion.

    ra, dec in degrees; pmra (with the factor cos dec, as the archive's) and pmdec in mas/yr. Where
    either is missing the source stays. Linear in the tangent plane, right to 1e-9 rad for the
    fastest star over decades; works at the poles.
    """
    east, north = local_axes(ra, dec)
    known = np.isfinite(pmra) & np.isfinite(pmdec)
    shift = np.where(known, [pmra, pmdec], 0.0) * (years * MAS)  # (2, n) rad
    vectors = unit_vectors(ra, dec) + shift[0][:, None] * east + shift[1][:, None] * north
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def chord(degrees):
    """Distance of unit vectors that are this far apart on the sphere."""
    return 2 * np.sin(np.deg2rad(degrees) / 2)


def arcsec_of_chord(length) -> np.ndarray:
    return np.rad2deg(2 * np.arcsin(np.asarray(length) / 2)) * 3600
