#!/usr/bin/env python3
"""Lay real stars out as a data directory, with every file that steps 1 to 6 would have made.

    python demo/build_sky.py --stars demo/stars.h5 --out demo/run/data

Reads a file in the format of demo/stars.h5 (described in demo/README.md). Writes under DIR the
shards of the XP spectra, metadata, 2MASS, unWISE and reddening, and training_params.h5. Every
dataset of ours carries `origin` (real, derived, synthetic or none) and `description`. The
parallaxes are spectro-photometric, NOT Gaia's; the WISE photometry is synthetic.

With --tiles it writes, in the place of the unWISE shards, synthetic unWISE catalogue tiles under
DIR/unwise_tiles: the same detections among unrelated ones, for match_unwise_gaia.py to find.

With --n larger than the file, stars are repeated under new ids in the same pixel (copies of a star
are the same star: good for measuring time and memory, not accuracy). Whole files are kept, so an
interrupted run is finished by the same command. 4,000 stars: 6.5 MB and 1 s (with --tiles 40 MB
more, 4 s); 65,000 in one shard: 31 MB, 3 s, 0.1 GB of memory (the correlations are the same for
every star and compress well).

The labels are APOGEE's Teff, [Fe/H] and log g; --labels takes others of the file's columns.
"""

import argparse
import contextlib
import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo.sky_columns import (
    LABEL_ERROR_FLOOR,
    id_column,
    label_table,
    metadata_columns,
    reddening_columns,
    tmass_columns,
    unwise_columns,
)
from demo.unwise_tiles import RING_STEP, ring_size, tile_name, tile_of, write_tile
from pipeline.errors import UsageError
from pipeline.provenance import Status, output_state, provenance
from pipeline.read import ShardReader
from pipeline.run import usage_exit
from pipeline.schema import (
    DEFAULT_LABELS,
    KINDS,
    KNOWN_LABELS,
    XP_BANDS,
    LabelSet,
    Layout,
    Release,
    resolved,
)
from pipeline.schema.labels import parse_label
from pipeline.select import add_release_argument, list_fids, shard_path
from pipeline.write import ShardWriter

TEMPLATES = tuple(f"{band}_correlation_template" for band in XP_BANDS)
OUR_KINDS = ("xp", "metadata", "tmass", "unwise", "reddening")
ID_STEP = 128  # the lowest 7 bits of every Gaia source_id are 0, so copies can use them
RING_SEED = 12 * 4**8  # added to a ring, which may be negative, in seeds
TILE_FOLDER = "unwise_tiles"
TILE_POSITION_ERROR = 0.035 / 3600  # deg, each way; assumed
N_UNRELATED = 20  # other detections in each tile
UNRELATED_PRIMARY = 0.8  # of them; the others are duplicates that a neighbouring tile has as well
N_XP_CHUNK = 1024  # stars whose correlations are expanded at a time (12 MB)


@dataclass
class Sky:
    """The stars to lay out, ordered by their new source ids.

    stars: per-star arrays of the star file; templates: dict of correlations (n (n - 1) / 2,); row
    (N,): row in `stars`; source_id (N,) int64, ascending and unique; settings: what the sky was
    asked to be.
    """

    release: Release
    stars: dict
    templates: dict
    row: np.ndarray
    source_id: np.ndarray
    settings: dict
    shards: list = field(default_factory=list)  # (fid, first, last + 1) along source_id
    made_by: dict = field(default_factory=dict)
    star_file: Path | None = None

    def part(self, first, stop):
        """Columns of the star file and ids of the sky's stars first..stop."""
        rows = self.row[first:stop]
        part = {k: v[rows] for k, v in self.stars.items() if v.ndim == 1}
        return part | {"source_id": self.source_id[first:stop]}


def read_stars(path):
    """Everything in a star file: dicts of per-star arrays and of templates, attributes."""
    with ShardReader(path) as reader:
        stars = {name: reader.read(name) for name in reader.columns if name not in TEMPLATES}
        return stars, {name: reader.read(name) for name in TEMPLATES}, dict(reader.attrs)


def choose_stars(source_id, n, seed):
    """Rows (n,) of the star file and ids (n,), ascending in id: a subset, or all with repeats.

    Copy c of a star has the star's id + c, so it lies in the same pixel. Raises UsageError where
    an id has no room for that many copies.
    """
    n = len(source_id) if n is None else n
    if n < 1:
        raise UsageError(f"--n {n}: at least 1 star is needed")
    copy, index = np.divmod(np.arange(n), len(source_id))
    row = np.random.default_rng(seed).permutation(len(source_id))[index]
    if copy[-1] and (copy[-1] >= ID_STEP or np.any(source_id % ID_STEP)):
        most = ID_STEP * len(source_id)
        raise UsageError(
            f"--n {n}: at most {most} stars can be made of the {len(source_id)} in the file, "
            f"whose ids must be multiples of {ID_STEP}"
        )
    new_id = source_id[row] + copy
    order = np.argsort(new_id)
    return row[order], new_id[order]


def shard_ranges(source_id, n_shards, release):
    """Cut ascending ids (N,) into at most n_shards HEALPix ranges of about equal counts.

    Returns a list of (fid, first, stop): rows first..stop-1 have pixels within the inclusive range
    named by fid. The ranges cover the sky and none is without stars.
    """
    if n_shards < 1:
        raise UsageError(f"--shards {n_shards}: at least 1 is needed")
    pixel = release.pixel(source_id)
    cuts = np.unique(pixel[np.arange(1, n_shards) * len(pixel) // n_shards])
    lower = np.concatenate([[0], cuts[cuts > pixel[0]]])
    upper = np.append(lower[1:], 12 * 4**release.healpix_level)
    first = np.searchsorted(pixel, lower)
    stop = np.searchsorted(pixel, upper)
    return [
        (f"{a:06d}-{b - 1:06d}", int(i), int(j))
        for a, b, i, j in zip(lower, upper, first, stop, strict=True)
    ]


def is_done(path, sky):
    """True where `path` is whole and of this sky; UsageError where it belongs to another."""
    if output_state(path, [sky.star_file]).status is not Status.COMPLETE:
        return False
    with ShardReader(path) as reader:
        found = reader.attrs.get("sky")
    if found != json.dumps(sky.settings):
        raise UsageError(
            f"{path} was made with other settings ({found}, now {json.dumps(sky.settings)}): "
            "choose another --out, or remove that folder"
        )
    return True


def write_columns(path, kind, columns, sky):
    """A file of a kind; columns {name: Column}, of which `source_id` gets the kind's own name."""
    id_name = KINDS[kind].id_column(sky.release)
    columns = {id_name if name == "source_id" else name: col for name, col in columns.items()}
    attrs = {"sky": json.dumps(sky.settings)}
    with ShardWriter(path, len(columns[id_name].values), id_name, sky.made_by, attrs) as writer:
        datasets = resolved(kind, Layout(sky.release)).only(columns)
        writer.create_columns(datasets)
        for name, col in columns.items():
            writer.set_attributes(name, origin=col.origin, description=col.text)
            if col.units:
                writer.set_attributes(name, units=col.units)
            writer.write(name, 0, col.values.astype(datasets[name].dtype))


# Of the columns of a band: where they come from, and words.
BAND_ORIGINS = {
    "coefficients": ("derived", "from the published sampled spectrum"),
    "coefficient_errors": ("synthetic", "modelled on the published errors"),
    "coefficient_correlations": ("synthetic", "the same for every star"),
    "n_parameters": ("real", "number of coefficients"),
    "basis_function_id": ("real", "id of the basis"),
    "standard_deviation": ("synthetic", "1: contained in the errors"),
}


def write_spectra(path, first, stop, sky):
    """XP shard of the sky's stars first..stop-1; correlations are expanded chunk by chunk."""
    attrs = {"sky": json.dumps(sky.settings)}
    origins = {"source_id": ("real", id_column(sky.stars).text)}
    origins |= {f"{band}_{name}": v for band in XP_BANDS for name, v in BAND_ORIGINS.items()}
    with ShardWriter(path, stop - first, "source_id", sky.made_by, attrs) as writer:
        datasets = resolved("xp", Layout(sky.release)).only(origins)
        writer.create_columns(datasets, compress=True)
        for name, (origin, text) in origins.items():
            writer.set_attributes(name, origin=origin, description=text)
        for start in range(first, stop, N_XP_CHUNK):
            end = min(start + N_XP_CHUNK, stop)
            writer.write("source_id", start - first, sky.source_id[start:end])
            for band in XP_BANDS:
                writer.write_table(band_values(sky, band, sky.row[start:end]), start=start - first)


def band_values(sky, band, rows):
    """{dataset: values} of a band of some rows of the star file: those of BAND_ORIGINS."""
    n, of_release = len(rows), sky.release.spectra.bands[band]
    template = sky.templates[f"{band}_correlation_template"]
    values = {
        "coefficients": sky.stars[f"{band}_coefficients"][rows],
        "coefficient_errors": sky.stars[f"{band}_coefficient_errors"][rows],
        "coefficient_correlations": np.broadcast_to(template, (n, len(template))),
        "n_parameters": np.full(n, of_release.n_coefficients),
        "basis_function_id": np.full(n, of_release.basis_id),
        "standard_deviation": np.ones(n, "f4"),
    }
    return {f"{band}_{name}": array for name, array in values.items()}


def write_shard(out, fid, first, stop, sky, kinds=OUR_KINDS):
    """Write the files of one range, of these kinds, that are not there yet."""
    star = sky.part(first, stop)
    seed, epoch = sky.settings["seed"], sky.release.reference_epoch
    spectro = sky.settings["parallax"] == "spectro"
    make = {
        "metadata": lambda: metadata_columns(star, spectro, epoch, seed),
        "tmass": lambda: tmass_columns(star),
        "unwise": lambda: unwise_columns(star, seed),
        "reddening": lambda: reddening_columns(star),
    }
    if sky.settings.get("tiles"):
        del make["unwise"]
    xp_path = shard_path(out, "xp", fid)
    if "xp" in kinds and not is_done(xp_path, sky):
        write_spectra(xp_path, first, stop, sky)
    for kind, columns in make.items():
        path = shard_path(out, kind, fid)
        if kind in kinds and not is_done(path, sky):
            write_columns(path, kind, columns(), sky)


def detections(sky):
    """The synthetic detections of the sky's stars, ordered as they: ra, dec, flux, dflux.

    The fluxes are those of the unWISE shards; the positions are the stars' (no proper motion is
    known of them) with Gaussian errors.
    """
    seed, parts = sky.settings["seed"], []
    for _, first, stop in sky.shards:
        star = sky.part(first, stop)
        columns = unwise_columns(star, seed)
        rows = np.searchsorted(star["source_id"], columns["source_id"].values)
        rng = np.random.default_rng([seed, 2, int(star["source_id"][0])])
        east, north = TILE_POSITION_ERROR * rng.standard_normal((2, len(rows)))
        dec = star["dec"][rows] + north
        ra = (star["ra"][rows] + east / np.cos(np.deg2rad(dec))) % 360
        pair = {name: columns[name].values for name in ("flux", "dflux")}
        parts.append({"ra": ra, "dec": dec, **pair})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def unrelated_detections(ring, number, seed):
    """N_UNRELATED detections at random places of a tile, faint, some of them not primary."""
    rng = np.random.default_rng([seed, 3, ring + RING_SEED, number])
    size = np.array([360 / ring_size(ring), RING_STEP])
    ra, dec = ((np.array([number, ring]) + rng.uniform(-0.5, 0.5, (N_UNRELATED, 2))) * size).T
    return {
        "ra": ra % 360,
        "dec": np.clip(dec, -90, 90),
        "flux": rng.uniform(10, 100, (N_UNRELATED, 2)).astype("f4"),
        "dflux": np.full((N_UNRELATED, 2), 5, "f4"),
        "primary": (rng.random(N_UNRELATED) < UNRELATED_PRIMARY).astype("i2"),
    }


def write_tiles(folder, sky):
    """Write the tiles that hold the sky's stars and are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    found = detections(sky)
    found["primary"] = np.ones(len(found["ra"]), "i2")
    stars = sky.part(0, len(sky.source_id))
    tiles = {place: [] for place in zip(*(k.tolist() for k in tile_of(stars["ra"], stars["dec"])),
                                        strict=True)}  # fmt: skip
    places = zip(*(k.tolist() for k in tile_of(found["ra"], found["dec"])), strict=True)
    for row, place in enumerate(places):
        tiles.setdefault(place, []).append(row)
    for (ring, number), rows in tiles.items():
        name = tile_name(ring, number)
        if not (folder / f"{name}.cat.fits").exists():
            other = unrelated_detections(ring, number, sky.settings["seed"])
            columns = {key: np.concatenate([other[key], found[key][rows]]) for key in other}
            write_tile(folder, name, columns)


def write_labels(path, labels, sky):
    """training_params.h5: `Table.read(path, path="training_params")` reads it."""
    settings = sky.settings | {"labels": labels.texts("name")}
    with contextlib.suppress(UsageError):  # of other labels: made again
        if is_done(path, dataclasses.replace(sky, settings=settings)):
            return
    table = label_table(sky.part(0, len(sky.source_id)), labels, sky.release.id_column)
    attrs = {"sky": json.dumps(settings)}
    with ShardWriter(path, len(sky.source_id), None, sky.made_by, attrs) as writer:
        writer.write_array(
            "training_params",
            table,
            origin="real",
            description=f"APOGEE DR17 {labels.words}; formal errors, where given, with "
            f"{LABEL_ERROR_FLOOR} in quadrature",
            label_names=labels.texts("name"),
        )


def require_spectra(args, stars, templates):
    """UsageError where the star file's spectra are not of the release."""
    release = args.release
    if release.spectra.covariance != "correlations":
        raise UsageError(f"{args.stars}: has correlations, {release.title} has covariances")
    for band, one in release.spectra.bands.items():
        found = len(templates[f"{band}_correlation_template"])
        n = stars[f"{band}_coefficients"].shape[1]
        if (n, found) != (one.n_coefficients, one.width("coefficient_correlations")):
            raise UsageError(
                f"{args.stars}: {n} coefficients and {found} correlations in {band}, expected "
                f"{one.n_coefficients} of {release.title}"
            )


def plan_sky(args):
    """The Sky asked for on the command line; UsageError where --out holds other shards."""
    stars, templates, _ = read_stars(args.stars)
    require_spectra(args, stars, templates)
    row, source_id = choose_stars(stars["source_id"], args.n, args.seed)
    settings = {
        "n": len(row), "seed": args.seed, "parallax": args.parallax, "shards": args.shards,
    }  # fmt: skip
    if args.tiles:
        settings["tiles"] = True
    sky = Sky(args.release, stars, templates, row, source_id, settings, star_file=args.stars)
    sky.shards = shard_ranges(source_id, args.shards, args.release)
    expected = {fid for fid, _, _ in sky.shards}
    for kind in OUR_KINDS:
        folder = shard_path(args.out, kind, "0").parent
        strange = set(list_fids(args.out, kind)) - expected if folder.is_dir() else set()
        if strange:
            raise UsageError(
                f"{folder} holds shards of another sky ({min(strange)}): choose another --out, "
                "or remove that folder"
            )
    return sky


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stars", type=Path, required=True, help="file like demo/stars.h5")
    parser.add_argument("--out", type=Path, required=True, help="data directory to write")
    parser.add_argument("--n", type=int, help="number of stars (default: all in the file)")
    parser.add_argument("--seed", type=int, default=1, help="default 1")
    parser.add_argument(
        "--parallax",
        choices=("spectro", "none"),
        default="spectro",
        help="spectro: spectro-photometric parallaxes with 20%% error; none: NaN",
    )
    parser.add_argument("--shards", type=int, default=8, help="number of files (default 8)")
    parser.add_argument(
        "--tiles", action="store_true", help="write unWISE tiles in the place of unWISE shards"
    )
    parser.add_argument(
        "--labels",
        nargs="+",
        default=DEFAULT_LABELS.texts("name"),
        metavar="LABEL",
        help="labels to write: columns of the star file (default: %(default)s)",
    )
    add_release_argument(parser)
    return parser.parse_args(argv)


def chosen_labels(args, stars):
    """The LabelSet of --labels; UsageError where one is not known, or no column of the stars."""
    try:
        labels = LabelSet(map(parse_label, args.labels))
    except ValueError as error:
        raise UsageError(f"--labels: {error}") from error
    missing = [name for name in labels.texts("name") if name not in stars]
    if missing:
        known = ", ".join(name for name in KNOWN_LABELS if name in stars)
        raise UsageError(
            f"{args.stars}: no column {', '.join(missing)}; known labels that it has: {known}"
        )
    return labels


@usage_exit
def main(argv=None):
    args = parse_args(argv)
    sky = plan_sky(args)
    labels = chosen_labels(args, sky.stars)
    sky.made_by = provenance(Path(__file__).name, argv, [args.stars], args.release)
    for fid, first, stop in sky.shards:
        write_shard(args.out, fid, first, stop, sky)
    if args.tiles:
        write_tiles(args.out / TILE_FOLDER, sky)
    write_labels(args.out / "training_params.h5", labels, sky)
    print(f"{args.out}: {len(sky.source_id)} stars in {len(sky.shards)} shards")
    return 0


if __name__ == "__main__":
    sys.exit(main())
