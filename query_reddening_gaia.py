#!/usr/bin/env python3
"""Step 5: reddening of every Gaia source from dust maps.

    python query_reddening_gaia.py --data-dir data --dustmaps-dir /data/dustmaps
    python query_reddening_gaia.py --data-dir data --maps bayestar sfd planck --partition 100 7
    python query_reddening_gaia.py --data-dir data --maps bh          (needs no download)

Reads the metadata (step 2). Writes DATA_DIR/xp_dustmap_match/xp_reddening_match_{fid}.h5 (or below
--output-dir), one row per row of the metadata, in their order, for the maps asked for: of the
datasets listed below the ids, and those that end in the name of such a map:

  bayestar     Bayestar2019 at the star: mean and standard deviation over the distances that the
               parallax allows and the map's samples. North of Dec -30 only
  sfd          Schlegel, Finkbeiner & Davis 1998, of the whole line of sight, as the next two
  planck       Planck 2013, from the optical depth at 353 GHz
  bh           Burstein & Heiles 1982 (|b| > 10 deg)

Each is in its map's own units (attributes `units` and `map`); NaN where the map has no value.

Distances: the posterior of d given the parallax (zero point corrected) has the prior
d^2 exp(-d / PRIOR_LENGTH) (Bailer-Jones 2015, PASP 127, 994), so negative and imprecise parallaxes
need no exception. A star without a parallax has the prior alone: its E_sigma covers the whole line
of sight, and the bit PARALLAX is not set. The map is asked at N_QUANTILES quantiles of the
posterior, the nodes of a Gauss-Legendre rule in probability.

dustmaps holds Bayestar whole in memory; --bayestar-samples 2 halves it. When it fails: a missing
map is named with the command that fetches it; a bad shard is named.
Exit status: 0 every selected shard is done, 1 some failed, 2 wrong usage or missing inputs.
"""

import contextlib
import functools
import io
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.utils.exceptions import AstropyWarning

from pipeline.errors import ShardError, UsageError
from pipeline.provenance import provenance, see
from pipeline.read import open_shard
from pipeline.run import run_shards, setup_logging, usage_exit
from pipeline.schema import KINDS, Layout, resolved
from pipeline.schema.columns import DUST_MAPS
from pipeline.schema.flags import Coverage
from pipeline.select import (
    add_release_argument,
    add_shard_arguments,
    input_paths,
    select_fids,
    shard_path,
    step_parser,
    used_kinds,
)
from pipeline.write import ShardWriter

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of dustmaps, where the user has no configuration file
    import dustmaps.std_paths
    from dustmaps.bayestar import BayestarQuery
    from dustmaps.bh import BHQuery
    from dustmaps.planck import PlanckQuery
    from dustmaps.sfd import SFDQuery

SCRIPT = "query_reddening_gaia"
PRIOR_LENGTH = 1.35  # kpc; Astraatmadja & Bailer-Jones 2016, ApJ 833, 119
NEAREST, FARTHEST = 0.005, 60.0  # kpc, of distances considered; the map reaches 0.06 to 60
PARALLAX_SIGMAS = 6.0  # of the parallax error, that the grid of distances reaches
N_GRID = 200  # distances in the grid of a star's posterior: 0.06 sigma apart at best
N_QUANTILES = 16
MAP_ERRORS = (OSError, KeyError, ValueError, TypeError, IndexError)  # of damaged map files
CHUNK_STARS = 4096  # asked for at a time: 65,536 places of 5 samples


@dataclass(frozen=True)
class DustMap:
    """A map: its files below the folder of maps, the unit of its values, how to open and get it."""

    files: tuple
    unit: str
    text: str
    open: object  # (folder, args) -> query object of dustmaps
    fetch: str = ""  # Python that downloads it; "" for a map that comes with dustmaps


BAYESTAR_FILE = "bayestar/bayestar2019.h5"
PLANCK_FILE = "planck/HFI_CompMap_ThermalDustModel_2048_R1.20.fits"
MAPS = {
    "bayestar": DustMap(
        (BAYESTAR_FILE,),
        "Bayestar2019 reddening unit, mag",
        "Green et al. 2019, ApJ 887, 93: to be multiplied by the coefficients of its table 1",
        lambda folder, args: BayestarQuery(
            map_fname=str(folder / BAYESTAR_FILE), max_samples=args.bayestar_samples
        ),
        "import dustmaps.bayestar as m; m.fetch(version='bayestar2019')",
    ),
    "sfd": DustMap(
        ("sfd/SFD_dust_4096_ngp.fits", "sfd/SFD_dust_4096_sgp.fits"),
        "E(B-V) mag",
        "Schlegel, Finkbeiner & Davis 1998, on their own scale (not times 0.86)",
        lambda folder, args: SFDQuery(map_dir=str(folder / "sfd")),
        "import dustmaps.sfd as m; m.fetch()",
    ),
    "planck": DustMap(
        (PLANCK_FILE,),
        "E(B-V) mag",
        "Planck Collaboration 2013 XI (2014, A&A 571, A11): 1.49e4 times optical depth at 353 GHz",
        lambda folder, args: PlanckQuery(map_fname=str(folder / PLANCK_FILE), component="tau"),
        "import dustmaps.planck as m; m.fetch()",
    ),
    "bh": DustMap(
        ("bh/bh.h5",),
        "E(B-V) mag",
        "Burstein & Heiles 1982, from HI and galaxy counts; small negative values are the map's",
        lambda folder, args: BHQuery(bh_dir=str(folder / "bh")),
    ),
}


def parse_args(argv=None):
    parser = step_parser(__doc__, "reddening")
    add_shard_arguments(parser)
    add_release_argument(parser)
    parser.add_argument(
        "--maps", nargs="+", choices=DUST_MAPS, default=["bayestar", "sfd"], help="%(default)s"
    )
    parser.add_argument(
        "--dustmaps-dir", type=Path, help="folder of the maps (default: dustmaps' own setting)"
    )
    parser.add_argument(
        "--bayestar-samples", type=int, help="use the first so many samples (default: all)"
    )
    parser.add_argument(
        "--output-dir", type=Path, help="data directory to write to (default: DATA_DIR)"
    )
    args = parser.parse_args(argv)
    if args.bayestar_samples is not None and args.bayestar_samples < 1:
        parser.error("--bayestar-samples: at least 1 is needed")
    return args


# ---- maps ------------------------------------------------------------------------------------


def map_folder(name, dustmaps_dir) -> Path:
    """Folder below which a map's files are; the bundled map's is dustmaps' own."""
    if not MAPS[name].fetch:
        return Path(dustmaps.std_paths.data_dir_default)
    return Path(dustmaps_dir or dustmaps.std_paths.data_dir())


def map_files(name, dustmaps_dir) -> list[Path]:
    """The files of a map; UsageError with the command that fetches it where one is missing."""
    folder = map_folder(name, dustmaps_dir)
    paths = [folder / file for file in MAPS[name].files]
    for path in paths:
        if not path.is_file():
            setting = f"from dustmaps.config import config; config['data_dir'] = '{folder}'"
            fetch = MAPS[name].fetch
            way_out = (
                f'fetch it with: python -c "{setting}; {fetch}"' if fetch else "reinstall dustmaps"
            )
            raise UsageError(f"{path}: the map {name} is not there; {way_out}")
    return paths


def open_map(name, args, log):
    """dustmaps' query object of a map; ShardError where its file cannot be used."""
    folder, said = map_folder(name, args.dustmaps_dir), io.StringIO()
    try:
        with contextlib.redirect_stdout(said), warnings.catch_warnings():
            warnings.filterwarnings("error", ".*truncated.*", AstropyWarning)
            query = MAPS[name].open(folder, args)
    except (*MAP_ERRORS, AstropyWarning) as error:
        files = ", ".join(MAPS[name].files)
        raise ShardError(
            f"{folder}: the map {name} ({files}) cannot be read ({error}); delete and fetch it "
            "again"
        ) from error
    log.info("opened the map %s: %s", name, " ".join(said.getvalue().split()))
    return query


# ---- distances -------------------------------------------------------------------------------


def has_parallax(plx, plx_err) -> np.ndarray:
    """(n,) bool: a parallax, of either sign, with an error."""
    return np.isfinite(plx) & np.isfinite(plx_err) & (plx_err > 0)


def distance_grid(plx, plx_err) -> np.ndarray:
    """(n, N_GRID) distances in kpc, even in ln d, over what a parallax (mas) allows.

    NaN parallax: NEAREST to FARTHEST.
    """
    reach = PARALLAX_SIGMAS * plx_err
    with np.errstate(divide="ignore", invalid="ignore"):
        near = 1 / (np.maximum(plx, 0) + reach)
        far = np.where(plx - reach > 1 / FARTHEST, 1 / (plx - reach), FARTHEST)
    near = np.clip(np.where(np.isfinite(near), near, NEAREST), NEAREST, FARTHEST / 2)
    far = np.clip(np.where(np.isfinite(plx), far, FARTHEST), near * (1 + 1e-6), FARTHEST)
    steps = np.linspace(0, 1, N_GRID)
    return near[:, None] * (far / near)[:, None] ** steps


def distance_quantiles(plx, plx_err, levels) -> np.ndarray:
    """(n, k) quantiles in kpc of the posterior of distance at probabilities `levels` (k,).

    plx, plx_err (n,) in mas; NaN or an error that is not positive: the prior alone.
    """
    usable = has_parallax(plx, plx_err)
    plx, plx_err = np.where(usable, plx, np.nan), np.where(usable, plx_err, np.nan)
    grid = distance_grid(plx, plx_err)  # (n, G)
    pull = np.where(usable[:, None], (1 / grid - plx[:, None]) / plx_err[:, None], 0.0)
    ln_p = 3 * np.log(grid) - grid / PRIOR_LENGTH - 0.5 * pull**2  # of ln d
    density = np.exp(ln_p - ln_p.max(axis=1, keepdims=True))
    cumulative = np.zeros_like(grid)
    np.cumsum(0.5 * (density[:, 1:] + density[:, :-1]), axis=1, out=cumulative[:, 1:])
    cumulative /= cumulative[:, -1:]
    rows = np.arange(len(grid))
    out = np.empty((len(grid), len(levels)))
    for k, level in enumerate(levels):
        right = np.clip((cumulative < level).sum(axis=1), 1, N_GRID - 1)
        low, high = cumulative[rows, right - 1], cumulative[rows, right]
        part = (level - low) / np.maximum(high - low, np.finfo(float).tiny)
        out[:, k] = grid[rows, right - 1] * (grid[rows, right] / grid[rows, right - 1]) ** part
    return out


@functools.cache
def quantile_rule() -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N_QUANTILES,) and weights of the rule over the distance posterior."""
    nodes, weights = np.polynomial.legendre.leggauss(N_QUANTILES)
    return (nodes + 1) / 2, weights / 2


# ---- reddening -------------------------------------------------------------------------------


def query_bayestar(query, galactic, plx, plx_err) -> dict:
    """Columns of Bayestar for n stars: mean, sigma and coverage.

    galactic: SkyCoord (n,) in galactic coordinates; plx, plx_err (n,) in mas. The variance is that
    of the map's samples at the quantiles of distance taken together.
    """
    levels, weights = quantile_rule()
    distance = distance_quantiles(plx, plx_err, levels)  # (n, k)
    n, k = distance.shape
    places = SkyCoord(
        np.repeat(galactic.l.deg, k) * units.deg, np.repeat(galactic.b.deg, k) * units.deg,
        distance=distance.ravel() * units.kpc, frame="galactic",
    )  # fmt: skip
    samples, flags = query(places, mode="samples", return_flags=True)
    samples = np.asarray(samples, float).reshape(n, k, -1)
    mean = np.einsum("k,nks->n", weights, samples) / samples.shape[2]
    spread = samples - mean[:, None, None]
    variance = np.einsum("k,nks,nks->n", weights, spread, spread) / samples.shape[2]
    value = np.isfinite(mean)
    reliable = flags["reliable_dist"].reshape(n, k) @ weights > 0.5
    coverage = (
        np.where(value, Coverage.VALUE, 0)
        | np.where(value & flags["converged"].reshape(n, k)[:, 0], Coverage.CONVERGED, 0)
        | np.where(value & reliable, Coverage.RELIABLE_DISTANCE, 0)
        | np.where(value & has_parallax(plx, plx_err), Coverage.PARALLAX, 0)
    )
    return {
        "E_mean_bayestar": mean.astype("f4"),
        "E_sigma_bayestar": np.sqrt(variance).astype("f4"),
        "coverage_bayestar": coverage.astype("u1"),
    }


def query_column(name, query, galactic) -> dict:
    """Columns of a two-dimensional map for n stars: value and coverage."""
    value = np.asarray(query(galactic), "f4")
    coverage = np.where(np.isfinite(value), Coverage.VALUE, 0).astype("u1")
    return {f"E_mean_{name}": value, f"coverage_{name}": coverage}


def query_maps(maps, ra, dec, plx, plx_err) -> dict:
    """Columns of all maps {name: query object} for n stars; NaN for a star without a position."""
    placed = np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90)
    galactic = SkyCoord(ra[placed] * units.deg, dec[placed] * units.deg).galactic
    out = {}
    for name, query in maps.items():
        if name == "bayestar":
            columns = query_bayestar(query, galactic, plx[placed], plx_err[placed])
        else:
            columns = query_column(name, query, galactic)
        for column, values in columns.items():
            out[column] = np.full(len(ra), np.nan if values.dtype.kind == "f" else 0, values.dtype)
            out[column][placed] = values
    return out


# ---- the step --------------------------------------------------------------------------------


def datasets_of(maps, release):
    """The datasets of the output, for some maps (their names)."""
    datasets = resolved("reddening", Layout(release))
    id_column = KINDS["reddening"].id_column(release)
    ends = tuple(f"_{name}" for name in maps)
    return datasets.only([n for n in datasets if n == id_column or n.endswith(ends)])


def create_datasets(writer, datasets):
    """All datasets of the output, so that a shard without stars has them too."""
    writer.create_columns(datasets)
    for dataset in datasets:
        name = dataset.rpartition("_")[2]
        if dataset.startswith("E_"):
            writer.set_attributes(dataset, units=MAPS[name].unit, map=MAPS[name].text)


def count_chunk(columns, names, counts):
    """Add to counts {what: number} the stars of a chunk that each map has no value for."""
    for name in names:
        without = int((columns[f"coverage_{name}"] & Coverage.VALUE == 0).sum())
        counts[f"not in {name}"] = counts.get(f"not in {name}", 0) + without


def read_stars(data_dir, fid, release):
    """Ids (n,) of a metadata shard, and RA, Dec, parallax and its error (each (n,) f8)."""
    with open_shard(data_dir, "metadata", fid, release) as reader:
        reader.check(resolved("metadata", Layout(release)))
        table = reader.read_table(("ra", "dec", "parallax", "parallax_error"))
        return reader.source_id(), [column.astype(float) for column in table.values()]


def make_shard(source_id, columns, output, maps, release, made_by) -> dict:
    """Write the reddening of the stars of a shard; returns counters for the log.

    source_id, columns: see `read_stars`; maps: {name: query object}.
    """
    attrs = {"prior_length_kpc": PRIOR_LENGTH, "n_quantiles": N_QUANTILES}
    id_column = KINDS["reddening"].id_column(release)
    without = int((~has_parallax(*columns[2:])).sum())
    counts = {"stars": len(source_id), "without a parallax": without}
    with ShardWriter(output, len(source_id), id_column, made_by, attrs) as writer:
        create_datasets(writer, datasets_of(maps, release))
        writer.write(id_column, 0, source_id)
        for start in range(0, len(source_id), CHUNK_STARS):
            chunk = query_maps(maps, *(c[start : start + CHUNK_STARS] for c in columns))
            writer.write_table(chunk, start=start)
            count_chunk(chunk, maps, counts)
    return counts


@usage_exit
def main(argv=None) -> int:
    args = parse_args(argv)
    used_kinds(args.data_dir, ["metadata"])
    fids = select_fids(args, "metadata")
    names = [name for name in DUST_MAPS if name in args.maps]
    files = [see(path) for name in names for path in map_files(name, args.dustmaps_dir)]
    log = setup_logging(SCRIPT, args.log, args)

    @functools.cache
    def open_maps():
        """Opened with the first shard that needs them: a finished run loads nothing."""
        return {name: open_map(name, args, log) for name in names}

    def inputs_of(fid):
        return [*input_paths(args.data_dir, fid, ["metadata"]), *files]

    def process(fid, output, log):
        made_by = provenance(SCRIPT, argv, inputs_of(fid), args.release)
        stars = read_stars(args.data_dir, fid, args.release)
        return make_shard(*stars, output, open_maps(), args.release, made_by)

    return run_shards(
        SCRIPT,
        args,
        fids,
        inputs_of=inputs_of,
        output_of=lambda fid: shard_path(args.output_dir or args.data_dir, "reddening", fid),
        process=process,
        log=log,
    )


if __name__ == "__main__":
    sys.exit(main())
