"""What makes a folder of Parquet files a HATS collection: its properties, partitions and schema.

HATS (https://hats.readthedocs.io) is what LSDB reads, and what survey archives publish in. The
files are those that its packages write; none of these is needed here.
"""

import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from pipeline.export.sky import ORDER
from pipeline.whole_files import whole_file, write_text

NAME = "catalogue"  # its folder, too
VERSION = "v1.0"


def _text(entries) -> str:
    return "".join(f"{name}={value}\n" for name, value in entries.items())


def _cell(name):
    """(order, pixel) of the name of a file."""
    words = dict(word.split("=") for word in Path(name).with_suffix("").parts if "=" in word)
    return int(words["Norder"]), int(words["Npix"])


def _write_schemas(folder, files, schema):
    """The schema of the files, and their footers together with their paths."""
    base, footers = folder / NAME / "dataset", []
    for entry in files:
        footer = pa.parquet.read_metadata(folder / entry["name"])
        footer.set_file_path(str(Path(entry["name"]).relative_to(f"{NAME}/dataset")))
        footers.append(footer)
    base.mkdir(parents=True, exist_ok=True)
    for name, collected in (("_common_metadata", None), ("_metadata", footers)):
        with whole_file(base / name) as temporary:
            pa.parquet.write_metadata(schema, temporary, metadata_collector=collected)
    return [f"{NAME}/dataset/_common_metadata", f"{NAME}/dataset/_metadata"]


def write_hats(folder, files, schema, title, release, max_rows, version) -> list[str]:
    """Write what goes with the files (entries of a manifest); names of what was written."""
    places = [_cell(entry["name"]) for entry in files]
    made = {"hats_builder": f"xpfwd {version}", "hats_version": VERSION}
    size = {"hats_estsize": math.ceil(sum(entry["bytes"] for entry in files) / 1024)}
    catalogue = {
        "obs_collection": NAME,
        "obs_title": title,
        "dataproduct_type": "object",
        "hats_nrows": sum(entry["rows"] for entry in files),
        "hats_col_ra": "ra",
        "hats_col_dec": "dec",
        "hats_col_healpix": f"_healpix_{ORDER}",
        "hats_col_healpix_order": ORDER,
        "hats_cols_sort": f"_healpix_{ORDER} {release.id_column}",
        "hats_npix_suffix": ".parquet",
        "hats_order": max((order for order, _ in places), default=0),
        "hats_max_rows": max_rows,
        "obs_regime": "Optical",
    }
    sky = sum(4.0**-order for order, _ in places) / 12
    catalogue |= {"moc_sky_fraction": f"{sky:.10g}"} | size | made
    collection = {"obs_collection": NAME, "hats_primary_table_url": NAME} | size | made
    partitions = "Norder,Npix\n" + "".join(f"{order},{pixel}\n" for order, pixel in places)
    texts = {
        "collection.properties": _text(collection),
        f"{NAME}/hats.properties": _text(catalogue),
        f"{NAME}/partition_info.csv": partitions,
    }
    names = _write_schemas(folder, files, schema)
    for name, text in texts.items():
        write_text(folder / name, text)
    return [*texts, *names]
