"""Synthetic unWISE tiles in the layout of the real band-merged catalogue files.

What is real is the layout alone: file names, FITS table, column names, types and byte order
(catalog.unwise.me, "band-merged catalogs"). The primary header says that the content is synthetic.
"""

import functools
from pathlib import Path

import numpy as np
from astropy.io import fits

RING_STEP = 180 / 119  # deg: rings of tiles at Dec = k RING_STEP, as the WISE atlas has
N_RINGS = 59  # on either side of the equator
FITS_BLOCK = 2880  # bytes
# Columns of a band-merged catalogue: those with a value for W1 and one for W2, and the others.
PAIR_FORMATS = {
    "x": "2D", "y": "2D", "flux": "2E", "dx": "2E", "dy": "2E", "dflux": "2E", "qf": "2E",
    "rchi2": "2E", "fracflux": "2E", "fluxlbs": "2E", "dfluxlbs": "2E", "fwhm": "2E",
    "spread_model": "2E", "dspread_model": "2E", "sky": "2E", "ra12": "2D", "dec12": "2D",
    "nm": "2J", "primary12": "2I", "flags_unwise": "2J", "flags_info": "2J",
}  # fmt: skip
SCALAR_FORMATS = {
    "coadd_id": "8A", "unwise_detid": "40A", "ra": "D", "dec": "D", "primary": "I",
    "unwise_objid": "16A",
}  # fmt: skip


def ring_size(ring) -> np.ndarray:
    """Number of tiles of each ring: enough to cover its side towards the equator."""
    widest = np.maximum(np.abs(ring) - 0.5, 0) * RING_STEP
    return np.ceil(360 * np.cos(np.deg2rad(widest)) / RING_STEP).astype(int)


def tile_of(ra, dec) -> tuple[np.ndarray, np.ndarray]:
    """Ring and number in the ring of the tile whose centre is nearest in RA and Dec (degrees)."""
    ring = np.clip(np.rint(np.asarray(dec) / RING_STEP), -N_RINGS, N_RINGS).astype(int)
    size = ring_size(ring)
    return ring, np.rint(np.asarray(ra) * size / 360).astype(int) % size


def tile_name(ring, number) -> str:
    """Name of a tile: RA and Dec of its centre in units of 0.1 deg, rounded downwards."""
    ra, dec = number * 360 / ring_size(ring), ring * RING_STEP
    sign = "m" if ring < 0 else "p"
    return f"{int(ra * 10):04d}{sign}{abs(int(np.floor(dec * 10))):03d}"


def object_ids(name, n) -> np.ndarray:
    """(n,) identifiers of the n sources of a tile."""
    return np.array([f"{name}o{i:07d}" for i in range(n)], "S16")


def tile_columns(name, sources) -> dict:
    """All columns of the catalogue for n sources; what is not given has a neutral value.

    sources: ra, dec (n,), flux (n,2), and any other column.
    """
    n = len(sources["ra"])
    columns = {key: np.zeros((n, 2)) for key in PAIR_FORMATS}
    columns |= {key: np.ones((n, 2)) for key in ("qf", "rchi2", "fracflux", "primary12")}
    columns |= {"fwhm": np.full((n, 2), 2.5), "nm": np.full((n, 2), 100)}
    columns |= {"dflux": 0.01 * np.asarray(sources["flux"]), "fluxlbs": sources["flux"]}
    columns |= {"primary": np.ones(n), "unwise_objid": object_ids(name, n)}
    columns |= {"coadd_id": np.full(n, name), "unwise_detid": np.full(n, "")}
    for key in ("ra", "dec"):
        columns[f"{key}12"] = np.repeat(np.asarray(sources[key])[:, None], 2, axis=1)
    return columns | sources


@functools.cache
def _layout() -> tuple[np.dtype, bytes, fits.Header]:
    """Row type (big-endian, as FITS has it), bytes of the primary header, header of the table."""
    formats = PAIR_FORMATS | SCALAR_FORMATS
    table = fits.BinTableHDU.from_columns([fits.Column(key, formats[key]) for key in formats])
    kinds = {"D": ">f8", "E": ">f4", "J": ">i4", "I": ">i2"}
    row = [(key, kinds[kind[1]], (2,)) for key, kind in PAIR_FORMATS.items()]
    row += [(key, kinds.get(kind) or f"S{kind[:-1]}") for key, kind in SCALAR_FORMATS.items()]
    primary = fits.PrimaryHDU()
    primary.header["EXTEND"] = True
    primary.header["COMMENT"] = "SYNTHETIC: made for tests and the demo, not observed by WISE"
    return np.dtype(row), primary.header.tostring().encode(), table.header


def write_tile(folder, name, sources) -> Path:
    """Write FOLDER/NAME.cat.fits with the given sources (see tile_columns); replaces the file.

    The bytes are put together here because Astropy takes 12 ms for a table of so many columns.
    """
    row_type, head, table_header = _layout()
    columns = tile_columns(name, sources)
    rows = np.zeros(len(sources["ra"]), row_type)
    for key in row_type.names:
        rows[key] = columns[key]
    header = table_header.copy()
    header["NAXIS2"] = len(rows)
    body = rows.tobytes()
    path = Path(folder) / f"{name}.cat.fits"
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(head + header.tostring().encode() + body + bytes(-len(body) % FITS_BLOCK))
    part.replace(path)
    return path
