"""Small synthetic dust maps in the formats of the real ones, for dustmaps' own query classes.

What is real is the format alone: file names, FITS and HDF5 layout, projections, pixel orders. The
reddening is that of a smooth exponential disc with a dependence on longitude (see `disc_column`).
"""

from pathlib import Path

import healpy
import numpy as np
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.io import fits

from pipeline.write import ShardWriter

SCALE_HEIGHT = 0.1  # kpc, of the disc of dust
SOUTH_LIMIT = -30.0  # Dec (deg) to which Bayestar reaches
DM_BINS = np.linspace(4.0, 18.875, 120)  # distance moduli of Bayestar2019
PIXEL_ROW = np.dtype(
    [
        ("nside", "i4"), ("healpix_index", "i8"), ("converged", "u1"),
        ("DM_reliable_min", "f4"), ("DM_reliable_max", "f4"),
    ]
)  # fmt: skip


def disc_column(lon, lat) -> np.ndarray:
    """Reddening of the whole line of sight at galactic coordinates (degrees)."""
    slope = np.maximum(np.abs(np.sin(np.deg2rad(lat))), 0.02)
    return 0.05 * (1 + 0.5 * np.sin(np.deg2rad(lon))) / slope


def disc_reddening(lon, lat, distance) -> np.ndarray:
    """Reddening to a distance (kpc)."""
    slope = np.maximum(np.abs(np.sin(np.deg2rad(lat))), 0.02)
    return disc_column(lon, lat) * -np.expm1(-distance * slope / SCALE_HEIGHT)


def write_sfd(folder, n=256):
    """FOLDER/sfd/SFD_dust_4096_{n,s}gp.fits of n x n pixels (the real ones: 4096 x 4096).

    Lambert's zenithal equal-area projection about either galactic pole (Schlegel, Finkbeiner &
    Davis 1998, ApJ 500, 525, appendix C): x = r cos l, y = -+ r sin l, r = sqrt(1 -+ sin b).
    """
    (Path(folder) / "sfd").mkdir(parents=True, exist_ok=True)
    y, x = (np.mgrid[:n, :n] - (n - 1) / 2) / (n / 2)
    radius = np.minimum(np.hypot(x, y), 1)
    step = np.rad2deg(np.sqrt(2)) / (n / 2)  # degrees a pixel at the pole
    for name, sign in (("ngp", 1), ("sgp", -1)):
        lat = sign * np.rad2deg(np.arcsin(1 - radius**2))
        lon = np.rad2deg(np.arctan2(-sign * y, x))
        hdu = fits.PrimaryHDU(disc_column(lon, lat).astype("f4"))
        hdu.header.update(
            CTYPE1="GLON-ZEA", CTYPE2="GLAT-ZEA", CRVAL1=90.0, CRVAL2=90.0 * sign,
            CRPIX1=(n + 1) / 2, CRPIX2=(n + 1) / 2, CD1_1=-step, CD1_2=0.0, CD2_1=0.0,
            CD2_2=step, LONPOLE=180.0, LAM_NSGP=sign, LAM_SCAL=n // 2, BUNIT="mag",
        )  # fmt: skip
        hdu.writeto(Path(folder) / "sfd" / f"SFD_dust_4096_{name}.fits", overwrite=True)


def write_planck(folder, nside=64):
    """FOLDER/planck/HFI_CompMap_ThermalDustModel_2048_R1.20.fits (the real one: nside 2048)."""
    (Path(folder) / "planck").mkdir(parents=True, exist_ok=True)
    n_pixels = healpy.nside2npix(nside)
    ebv = disc_column(*healpy.pix2ang(nside, np.arange(n_pixels), nest=True, lonlat=True))
    values = {
        "TAU353": ebv / 1.49e4, "ERR_TAU": 0 * ebv, "EBV": 0.9 * ebv, "RADIANCE": ebv / 5.4e5,
        "TEMP": 20 + 0 * ebv, "ERR_TEMP": 0 * ebv, "BETA": 1.6 + 0 * ebv, "ERR_BETA": 0 * ebv,
    }  # fmt: skip
    table = fits.BinTableHDU.from_columns(
        [fits.Column(name, "E", array=column) for name, column in values.items()], name="COMP-MAP"
    )
    table.header.update(PIXTYPE="HEALPIX", ORDERING="NESTED", NSIDE=nside, COORDSYS="GALACTIC")
    path = Path(folder) / "planck" / "HFI_CompMap_ThermalDustModel_2048_R1.20.fits"
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path, overwrite=True)


def bayestar_pixels(nside, keep=None) -> np.ndarray:
    """Rows PIXEL_ROW of two levels, nside and 2 nside, that share the sky north of SOUTH_LIMIT.

    The coarse level has the galactic longitudes below 180, the fine one the others. keep: function
    of (lon, lat) arrays -> bool, to limit the area. The order is shuffled: the real map's is its
    own, too.
    """
    rows = []
    for level, first in ((nside, True), (2 * nside, False)):
        index = np.arange(healpy.nside2npix(level))
        parent = index // (level // nside) ** 2
        parent_lon = healpy.pix2ang(nside, parent, nest=True, lonlat=True)[0]
        index = index[(parent_lon < 180) == first]
        lon, lat = healpy.pix2ang(level, index, nest=True, lonlat=True)
        inside = np.ones(len(index), bool) if keep is None else keep(lon, lat)
        index, lon, lat = index[inside], lon[inside], lat[inside]
        dec = SkyCoord(lon * units.deg, lat * units.deg, frame="galactic").icrs.dec.deg
        part = np.zeros(np.count_nonzero(dec > SOUTH_LIMIT), PIXEL_ROW)
        part["nside"], part["healpix_index"] = level, index[dec > SOUTH_LIMIT]
        rows.append(part)
    rows = np.random.default_rng(0).permutation(np.concatenate(rows))
    rows["converged"], rows["DM_reliable_min"], rows["DM_reliable_max"] = 1, 7.0, 14.0
    return rows


def write_bayestar(folder, nside=16, n_samples=5, spread=0.2, keep=None):
    """FOLDER/bayestar/bayestar2019.h5: sample s is the disc's reddening times 1 +- spread.

    Returns the factors (n_samples,) of the samples, whose mean is 1.
    """
    pixels = bayestar_pixels(nside, keep)
    lon, lat = np.zeros(len(pixels)), np.zeros(len(pixels))
    for level in np.unique(pixels["nside"]):
        rows = pixels["nside"] == level
        index = pixels["healpix_index"][rows]
        lon[rows], lat[rows] = healpy.pix2ang(int(level), index, nest=True, lonlat=True)
    distance = 10 ** (DM_BINS / 5 - 2)
    profile = disc_reddening(lon[:, None], lat[:, None], distance).astype("f4")
    factors = 1 + spread * np.linspace(-1, 1, n_samples)
    samples = profile[:, None, :] * factors.astype("f4")[:, None]
    path = Path(folder) / "bayestar" / "bayestar2019.h5"
    with ShardWriter(path, 0, None, {}) as writer:
        writer.write_array("pixel_info", pixels, DM_bin_edges=DM_BINS)
        writer.write_array("samples", samples)
        writer.write_array("best_fit", profile)
    return factors
