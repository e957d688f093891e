"""The layouts of the export that are folders: what each is made of."""

from functools import partial

from pipeline.errors import UsageError
from pipeline.export.flat import TEXT
from pipeline.export.folder import DataSet, Part, notes_of
from pipeline.export.hats import write_hats
from pipeline.export.published import (
    PUBLISHED,
    left_out,
    published_columns,
    published_parts,
)
from pipeline.export.shards import groups_by_id
from pipeline.export.sky import sky_columns, sky_parts
from pipeline.export.table import (
    LASTING,
    Counts,
    about,
    chosen_columns,
    chosen_stars,
    rebatched,
    selected_rows,
    write_checked,
)
from pipeline.export.words import flat_rows
from pipeline.export.writers import arrow_schema
from pipeline.provenance import project_version

SKY, FITS = "parquet", "fits"
FOLDERS = (SKY, FITS, *PUBLISHED)
MAX_ROWS = {SKY: 1_000_000, FITS: 5_000_000}  # of a file, by default
HINTS = {
    SKY: (
        "import pyarrow.dataset as ds",
        "",
        'stars = ds.dataset("catalogue/dataset", format="parquet")',
        'good = (ds.field("quality_flags") < 8) & (ds.field("parallax") > 5)',
        'table = stars.to_table(columns=["teff", "logg", "ext"], filter=good).to_pandas()',
        "",
        '# or, with the package lsdb: lsdb.open_catalog(".")',
    ),
    FITS: (
        "from astropy.table import Table",
        "",
        'stars = Table.read("catalogue_000.fits", unit_parse_strict="silent")',
        'good = stars[stars["quality_flags"] < 8]',
    ),
    **{
        name: (
            "import h5py",
            "",
            f'with h5py.File("{layout.main.format(0)}") as file:',
            '    good = file["quality_flags"][:] < 8',
            f'    {", ".join(layout.parameters)} = file["stellar_params_est"][good].T',
        )
        for name, layout in PUBLISHED.items()
    },
}


def _make_fits(catalogue, groups, columns, wanted, told, path) -> Counts:
    counts = Counts()
    rows = rebatched(selected_rows(catalogue, columns, wanted, counts, groups))
    write_checked(path, ".fits", columns, rows, told)
    return counts


def _of_some_rows(groups, max_rows) -> list[list]:
    """Groups of shards as lists of no more rows than that, but for groups that have more."""
    out, n = [], 0
    for group in groups:
        rows = sum(shard.n_rows for shard in group)
        if not out or n + rows > max_rows:
            out.append([])
            n = 0
        out[-1].append(group)
        n += rows
    return out


def fits_parts(catalogue, columns, wanted, told, max_rows):
    """The `Part`s of FITS tables, by ascending id."""
    if any(column.dtype == TEXT for column in columns):
        raise UsageError(f"--layout {FITS}: columns of words are for text and Parquet")
    return [
        Part(
            (f"catalogue_{k:03d}.fits",),
            tuple(shard for group in groups for shard in group),
            partial(_make_fits, catalogue, groups, columns, wanted, told),
        )
        for k, groups in enumerate(_of_some_rows(groups_by_id(catalogue.shards), max_rows))
    ]


def _published(layout, catalogue, wanted, told, patterns, max_rows):
    if patterns or max_rows or catalogue.added:
        raise UsageError(
            f"--layout {layout}: its columns and files are fixed; leave out --columns, --max-rows, "
            "--dust"
        )
    return {
        "parts": published_parts(layout, catalogue, wanted, told),
        "columns": list(published_columns(PUBLISHED[layout], catalogue.layout)),
    }


def _fits(layout, catalogue, wanted, told, patterns, max_rows):
    columns = chosen_columns(catalogue.columns, patterns)
    return {
        "parts": fits_parts(catalogue, columns, wanted, told, max_rows or MAX_ROWS[FITS]),
        "columns": flat_rows(columns),
    }


def _sky(layout, catalogue, wanted, told, patterns, max_rows):
    known, max_rows = catalogue.columns, max_rows or MAX_ROWS[SKY]
    columns = sky_columns(chosen_columns(known, patterns), known, catalogue.release)
    parts, left_out = sky_parts(catalogue, columns, wanted, told, max_rows)
    finish = partial(
        write_hats,
        schema=arrow_schema(columns, told),
        title=told.title,
        release=catalogue.release,
        max_rows=max_rows,
        version=project_version(),
    )
    return {
        "parts": parts,
        "columns": flat_rows(columns),
        "left_out": left_out,
        "finish": finish,
    }


def data_set(
    layout, catalogue, patterns=None, select=None, cone=None, max_rows=None, *, script, argv
) -> DataSet:
    """What a layout of FOLDERS makes of a `Catalogue`. UsageError where it cannot."""
    labels = catalogue.layout.labels
    wanted = chosen_stars(catalogue.columns, labels, select, cone)
    told = about(catalogue, wanted.selection, script, argv, LASTING)
    make = {SKY: _sky, FITS: _fits}.get(layout, _published)
    made = make(layout, catalogue, wanted, told, patterns, max_rows)
    notes = notes_of(catalogue, wanted.selection, script, argv)
    if layout in PUBLISHED:
        notes["labels_left_out"] = left_out(labels)
    settings = {
        "selection": wanted.selection.text,
        "columns": [row[0] for row in made["columns"]],
        "labels": labels.to_json(),
    }
    return DataSet(
        layout=layout,
        title=told.title,
        settings=settings,
        notes=notes,
        hints=HINTS[layout],
        failed=catalogue.failed,
        **made,
    )
