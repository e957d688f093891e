"""A data release of Gaia, as a file of tables/releases declares it (docs/releases.md)."""

import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parents[2] / "tables" / "releases"
DEFAULT_RELEASE = "dr3"
XP_BANDS = ("bp", "rp")
MAGNITUDES = ("g", *XP_BANDS)
COVARIANCE_FORMS = ("correlations", "covariances")
ZERO_POINTS = ("recipe", "column")


@dataclass(frozen=True)
class SpectraBand:
    """BP or RP: number of coefficients, id of their basis, GaiaXPy's name of its model."""

    n_coefficients: int
    basis_id: int
    model: str = ""

    def width(self, column) -> int:
        """Numbers in a cell of an array column (its name without the band)."""
        n = self.n_coefficients
        widths = {
            "coefficients": n,
            "coefficient_errors": n,
            "coefficient_correlations": n * (n - 1) // 2,  # strictly lower triangle, row order
            "coefficient_covariances": n * (n + 1) // 2,  # lower triangle, row order
        }
        return widths[column]


@dataclass(frozen=True, eq=False)
class Spectra:
    """The XP continuous mean spectra of a release.

    bands: {"bp", "rp": SpectraBand}; wavelengths (n,) nm, at which they are sampled for the forward
    model, and fine_wavelengths (m,) for the direct estimate, empty where it does without; basis,
    noise: paths of the tables of design matrices, and of typical covariances (None: none); names:
    {ours: the file's} where they differ.
    """

    file_name: str
    address: str
    hdf5_mirror: str
    covariance: str
    basis: Path
    wavelengths: np.ndarray
    fine_wavelengths: np.ndarray
    noise: Path | None
    bands: dict
    names: dict

    @property
    def array_columns(self) -> tuple:
        """Names, without the band, of the columns that hold arrays."""
        if self.covariance == "covariances":
            return ("coefficients", "coefficient_covariances")
        return ("coefficients", "coefficient_errors", "coefficient_correlations")


@dataclass(frozen=True, eq=False)
class Archive:
    """Where the archive has the metadata: tables {role: name}, names {ours: the archive's} where
    they differ (or {role: {ours: the archive's}}, of one table), needed: our names of columns that
    a step cannot do without."""

    url: str
    has_spectrum: str
    needed: tuple
    tables: dict
    names: dict

    def name_of(self, column, table=None) -> str:
        """The archive's name of a column; table: the role of the one it is in."""
        own = self.names.get(table, {})
        return own.get(column, self.names.get(column, column))


@dataclass(frozen=True, eq=False)
class DataLink:
    """The service that gives the spectra of a list of sources.

    most_ids: that it takes in a request; parameters: {name: value} sent with the ids; known_source:
    id of one that has a spectrum, None where none is known.
    """

    url: str
    most_ids: int
    parameters: dict
    known_source: int | None = None


@dataclass(frozen=True)
class ParallaxRule:
    """How parallaxes are corrected: zero_point "recipe", or "column" (subtracted); and the bits of
    `astrometric_params_solved` that say that a parallax, and the colour, were solved for."""

    zero_point: str
    zero_point_column: str
    parallax_bit: int
    pseudocolour_bit: int


@dataclass(frozen=True, eq=False)
class Release:
    """A data release. id_column: of our files; reference_epoch: Julian year of the positions;
    source_id >> id_shift is a nested HEALPix pixel of level healpix_level; zero_points {"g", "bp",
    "rp": magnitude of a flux of 1 electron/s}, NaN where not known; datalink: None where it has
    none; same_ids: titles of releases whose ids are the same."""

    name: str
    title: str
    id_column: str
    reference_epoch: float
    healpix_level: int
    id_shift: int
    zero_points: dict
    spectra: Spectra
    archive: Archive
    parallax: ParallaxRule
    datalink: DataLink | None = None
    same_ids: tuple = ()

    def pixel(self, source_id):
        """Nested HEALPix pixel of source ids."""
        return source_id >> self.id_shift

    @property
    def g_zero_point(self) -> float:
        return self.zero_points["g"]

    def g_magnitudes(self, flux):
        """G magnitudes (N,) of G fluxes (N,) in electron/s; NaN where there is none."""
        return self.magnitudes("g", flux)

    def magnitudes(self, band, flux):
        """Magnitudes (N,) in a band (g, bp, rp) of fluxes (N,) in electron/s; NaN where there is
        none."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(flux > 0, self.zero_points[band] - 2.5 * np.log10(flux), np.nan)


def _grid(*limits):
    """Wavelengths of (first, last, step); none of ()."""
    if not limits:
        return np.empty(0)
    first, last, step = limits
    return first + step * np.arange(round((last - first) / step) + 1)


def read_release(path) -> Release:
    """The release that a file declares.

    Raises ValueError, with the name of the file, where an entry is missing or not known.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text())
        spectra, sky = table.pop("spectra"), table.pop("sky")
        spectra["bands"] = {band: SpectraBand(**spectra.pop(band)) for band in XP_BANDS}
        spectra["basis"] = path.parent / spectra["basis"]
        spectra["noise"] = path.parent / spectra["noise"] if "noise" in spectra else None
        for name in ("wavelengths", "fine_wavelengths"):
            spectra[name] = _grid(*spectra.get(name, ()))
        archive, photometry = table.pop("archive"), table.pop("photometry", {})
        archive["needed"] = tuple(archive["needed"])
        datalink = table.pop("datalink", None)
        release = Release(
            healpix_level=sky["level"],
            id_shift=sky["id_shift"],
            zero_points={band: photometry.get(f"{band}_zero_point", np.nan) for band in MAGNITUDES},
            spectra=Spectra(**spectra),
            archive=Archive(**archive),
            parallax=ParallaxRule(**table.pop("parallax")),
            datalink=DataLink(**datalink) if datalink else None,
            same_ids=tuple(table.pop("same_ids", ())),
            **table,
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a description of a release ({error!r})") from error
    for value, known in (
        (release.spectra.covariance, COVARIANCE_FORMS),
        (release.parallax.zero_point, ZERO_POINTS),
    ):
        if value not in known:
            raise ValueError(f"{path}: {value!r} is not one of {', '.join(known)}")
    return release


@functools.cache
def load_release(name=DEFAULT_RELEASE) -> Release:
    """The release of a name (a file of tables/releases), or of a path to such a file.

    Raises ValueError where there is none.
    """
    path = Path(name) if Path(name).suffix == ".toml" else FOLDER / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.toml")))
        raise ValueError(f"no release {name}: known are {known}; or give the path of a file")
    return read_release(path)
