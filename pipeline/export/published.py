"""The catalogue in the files of the published ones, so that scripts for these go on working.

What is known, and from where:

- `zgr23`, of Zhang, Green & Rix (2023): names of files and datasets, their order, units and bits of
  flags are those of the README that is published with it (Zenodo 7811871): ten files
  `stellar_params_catalog_0?.h5` (id, position, five parameters and their errors, chi2_opt,
  ln_prior, confidences, quality_flags as one byte), and ten `stellar_covariances_catalog_0?.h5` of
  the same rows with the upper triangles (15 numbers) of the covariance and of its inverse.
- `zg25`, of Zhang & Green (2025): six parameters, xi before E and the parallax, so that scripts
  that count from the end work for both; names of its ten files `xpparams_v2_zenodo_0?.h5` and the
  datasets ra, dec, stellar_params_est, stellar_params_err, quality_flags as in public code that
  reads them (Zenodo 11394477). That triangles (21 numbers) go row by row: the table xpparams2.covs
  of the GAVO data centre, where element 4 is the covariance of Teff and xi.

What is not certain: number types are those that databases use which took the first one in (ids 8
bytes, positions float64, the rest float32); the triangles are float64 here, as their inverses are
of no use otherwise. That the second has all the other columns of the first, and the name of its
files of covariances (ours does not match xpparams_v2_zenodo_*). `gdr3_source_id` in the files of
covariances is an addition.

What differs in meaning: chi2_opt is under the learned noise, and bit 3 also asks for what ordinary
stars have; bit 4 is the model's own 0.1%. Bits 6 and 7, which the published ones never set, are set
where the catalogue has a flag that they lack: 7 for BAD_INPUT, 6 for any other. So
`quality_flags < 8` are good stars here, too. E is in the units of the training set's reddenings.
Of the covariance, parameters that a layout lacks are marginalised over: it is cut, then inverted.
Labels beside Teff, [Fe/H], log g are left out, with the flags of their confidences.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from pipeline.errors import UsageError
from pipeline.export.folder import Part
from pipeline.export.shards import groups_by_id
from pipeline.export.table import Counts, selected_tables
from pipeline.schema import flags, resolved
from pipeline.schema.labels import EXTINCTION, FEH, LOGG, PARALLAX, TEFF, XI
from pipeline.write import ShardWriter

N_FILES = 10  # scripts count them
LABELS = (TEFF.name, FEH.name, LOGG.name)
SAME_BITS = 0b111111  # of quality_flags
OTHER_FLAG, BAD_FLAG = 64, 128
PRECISION = "stellar_params_icov_triu"
COPIED = ("chi2_opt", "ln_prior", *(f"{name}_confidence" for name in LABELS))


@dataclass(frozen=True)
class Published:
    """A published layout: parameters by their names, in its order; names of files."""

    name: str
    parameters: tuple
    main: str
    covariances: str

    def names(self, k) -> tuple:
        """Of the k-th file of each kind."""
        return self.main.format(k), self.covariances.format(k)

    @property
    def n_triangle(self) -> int:
        n = len(self.parameters)
        return n * (n + 1) // 2


PUBLISHED = {
    layout.name: layout
    for layout in (
        Published(
            "zgr23",
            (*LABELS, EXTINCTION.name, PARALLAX.name),
            "stellar_params_catalog_{:02d}.h5",
            "stellar_covariances_catalog_{:02d}.h5",
        ),
        Published(
            "zg25",
            (*LABELS, XI.name, EXTINCTION.name, PARALLAX.name),
            "xpparams_v2_zenodo_{:02d}.h5",
            "stellar_covariances_v2_{:02d}.h5",
        ),
    )
}


def places(layout, labels) -> list[int]:
    """Where the parameters of a `Published` layout are among those of a `LabelSet`. UsageError
    where the model lacks one."""
    names = [parameter.name for parameter in labels.parameters]
    lacking = [name for name in layout.parameters if name not in names]
    if lacking:
        raise UsageError(
            f"--layout {layout.name}: the model has the parameters {', '.join(names)}; the layout "
            f"needs {', '.join(lacking)}, too: use --layout parquet, fits or table"
        )
    return [names.index(name) for name in layout.parameters]


def left_out(labels) -> list[str]:
    """Names of the labels that published layouts have no place for."""
    return [label.name for label in labels if label.name not in LABELS]


def published_flags(values, labels) -> np.ndarray:
    """(N,) uint8 flags of quality_flags (N,)."""
    bits = flags.quality_flag(labels)
    of_labels = sum(bits[flags.confidence_flag(label.name)].value for label in labels)
    other = np.uint32(sum(bits) & ~(SAME_BITS | bits.BAD_INPUT | of_labels))
    out = (values & SAME_BITS).astype("u1")
    out |= np.where(values & other, OTHER_FLAG, 0).astype("u1")
    return out | np.where(values & np.uint32(bits.BAD_INPUT), BAD_FLAG, 0).astype("u1")


def covariance_triangles(precision, at, n):
    """Upper triangles, row by row, of the covariance of some parameters and of its inverse.

    precision: (N, n (n + 1) / 2) of the inverse covariance of all n; at: which are wanted. NaN
    where the inverse covariance is not positive definite.
    """
    whole = np.zeros((len(precision), n, n))
    row, column = np.triu_indices(n)
    whole[:, row, column] = whole[:, column, row] = precision
    good = np.isfinite(whole).all((1, 2))
    good[good] = np.linalg.eigvalsh(whole[good])[:, 0] > 0
    cov = np.linalg.inv(whole[good])[:, at][:, :, at]
    icov = whole[good] if list(at) == list(range(n)) else np.linalg.inv(cov)
    out, triangle = [], np.triu_indices(len(at))
    for matrices in (cov, icov):
        found = np.full((len(whole), len(triangle[0])), np.nan)
        found[good] = matrices[:, *triangle]
        out.append(found)
    return out


def published_tables(table, layout, labels, id_column):
    """({dataset: (N, ...)} of the main file, the same of that of the covariances)."""
    at, n = places(layout, labels), len(labels.parameters)
    main = {name: table[name] for name in (id_column, "ra", "dec")}
    main |= {name: table[name][:, at] for name in ("stellar_params_est", "stellar_params_err")}
    main |= {name: table[name] for name in COPIED}
    main["quality_flags"] = published_flags(table["quality_flags"], labels)
    cov, icov = covariance_triangles(table[PRECISION], at, n)
    triangles = {"stellar_params_icov_triu": icov, "stellar_params_cov_triu": cov}
    return main, {id_column: table[id_column]} | triangles


def _datasets(layout, schema):
    """(name, dtype, shape of a row, unit, words) of both files."""
    datasets, words = resolved("opt_output", schema), ", ".join(layout.parameters)
    main = []
    for name in (schema.release.id_column, "ra", "dec"):
        data = datasets[name]
        given = data.attributes
        main.append((name, data.dtype, (), given.get("units"), given["description"]))
    n = (len(layout.parameters),)
    main.append(("stellar_params_est", "f4", n, None, f"{words}: kK, dex, dex, ..., mas"))
    main.append(("stellar_params_err", "f4", n, None, f"1 sigma: {words}"))
    main += [(name, "f4", (), None, datasets[name].attributes["description"]) for name in COPIED]
    kept = [flag for flag in flags.quality_flag(schema.labels) if flag.value & SAME_BITS]
    text = ", ".join(f"{flag.value} {flag.name}" for flag in kept)
    text = f"bits: {text}, {OTHER_FLAG} another flag, {BAD_FLAG} BAD_INPUT"
    main.append(("quality_flags", "u1", (), None, text))
    triangle = (layout.n_triangle,)
    covariances = [
        main[0],
        (PRECISION, "f8", triangle, None, f"inverse covariance, upper triangle by rows: {words}"),
        ("stellar_params_cov_triu", "f8", triangle, None, f"covariance, upper triangle: {words}"),
    ]
    return main, covariances


def published_columns(layout, schema):
    """(name, type, unit, UCD, words) of the datasets of both files."""
    for datasets in _datasets(layout, schema):
        for name, dtype, shape, unit, text in datasets:
            yield name, f"{dtype} (N{''.join(f', {n}' for n in shape)})", unit, None, text


def make_files(layout, catalogue, groups, wanted, told, main, covariances) -> Counts:
    """Write a file of each kind."""
    schema, counts = catalogue.layout, Counts()
    id_column = schema.release.id_column
    names = tuple(
        dict.fromkeys(
            (id_column, "ra", "dec", "stellar_params_est", "stellar_params_err", *COPIED,
             "quality_flags", PRECISION)
        )
    )  # fmt: skip
    made_by = {"title": told.title, **told.notes}
    with (
        ShardWriter(main, None, id_column, made_by) as one,
        ShardWriter(covariances, None, id_column, made_by) as other,
    ):
        for writer, datasets in zip((one, other), _datasets(layout, schema), strict=True):
            for name, dtype, shape, unit, text in datasets:
                writer.create(name, shape, dtype, unit, text)
        for table in selected_tables(catalogue, names, wanted, counts, groups):
            start = counts.written - len(table[id_column])
            tables = published_tables(table, layout, schema.labels, id_column)
            for writer, part in zip((one, other), tables, strict=True):
                writer.write_table(part, start=start)
    return counts


def in_shares(groups, n) -> list[list]:
    """Groups of shards as n lists of about as many rows each, in their order."""
    rows = np.array([sum(shard.n_rows for shard in group) for group in groups], float)
    middle = np.cumsum(rows) - rows / 2
    which = np.minimum((middle / max(rows.sum(), 1) * n).astype(int), n - 1)
    return [
        [group for group, k in zip(groups, which, strict=True) if k == part] for part in range(n)
    ]


def published_parts(name, catalogue, wanted, told) -> list[Part]:
    """The `Part`s of a published layout."""
    layout = PUBLISHED[name]
    places(layout, catalogue.layout.labels)
    return [
        Part(
            layout.names(k),
            tuple(shard for group in groups for shard in group),
            partial(make_files, layout, catalogue, groups, wanted, told),
        )
        for k, groups in enumerate(in_shares(groups_by_id(catalogue.shards), N_FILES))
    ]
