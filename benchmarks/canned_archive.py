"""Archives with canned answers, on loopback, and what they are asked about: for benchmarks of what
steps 2 to 4 do themselves."""

import base64
import contextlib
import gzip
import itertools
import struct
import sys
from types import SimpleNamespace

import common
import numpy as np
from bench_conversion import FID
from bench_matching import make_patch

sys.path.insert(0, str(common.ROOT / "tests"))

from tap_case import archive_schema, gaia_table
from tap_stub import TapStub

import query_2mass
import query_xp_metadata
from pipeline.schema import load_release
from pipeline.select import shard_path
from pipeline.write import ShardWriter

TILES, DETECTIONS = 54, 80_000  # around the sources of a shard, and in a tile
WITH_2MASS = 0.9  # of the sources
LAST_PIXEL = int(FID.split("-")[1])
SOON = ("--poll", 0.1, "--pace", 0)  # these archives are in no hurry


def ids_of_shard(n, rng):
    """n ids in the pixels of the shard FID, ascending."""
    return np.unique(rng.integers(1, (LAST_PIXEL + 1) << 43, 2 * n))[::2][:n]


def tmass_table(ids, rng):
    """What the archive would answer about 2MASS, {column: (n,) masked array}."""
    n, there = len(ids), rng.random(len(ids)) < WITH_2MASS
    names = np.where(there, [f"{k:08d}+{k:07d} " for k in range(n)], "")
    table = {"ext_key": np.ma.array(np.zeros(n), mask=True), "source_id": np.ma.array(ids)}
    for name in ("designation", "original_ext_source_id"):
        table[name] = np.ma.array(names)
    for name, column in query_2mass.question(load_release()).columns.items():
        if np.dtype(column.dtype).kind == "f" and name not in table:
            table[name] = np.ma.array(rng.uniform(0, 15, n).astype(column.dtype), mask=~there)
    return {"ph_qual": np.ma.array(np.where(there, "AAB", ""))} | table


def lay_out(folder, n, few):
    """Of n sources, and of the first few of them: {number: data directory of a shard of ids}, the
    tables of their metadata and 2MASS answers, and the folder of tiles around them all."""
    rng, tiles = np.random.default_rng(0), folder / "tiles"
    tiles.mkdir()
    patch = SimpleNamespace(sources=n, tiles=TILES, detections=DETECTIONS)
    ra, dec, *_ = make_patch(tiles, patch, rng)
    return *lay_out_ids(folder, n, few, {"ra": ra, "dec": dec}), tiles


def lay_out_ids(folder, n, few, place):
    """As `lay_out`, without tiles, at a place {"ra": (n,), "dec": (n,)}."""
    rng = np.random.default_rng(0)
    ids = ids_of_shard(n, rng)
    place = {name: np.ma.array(values) for name, values in place.items()}
    tables = {"metadata": gaia_table(ids) | place, "tmass": tmass_table(ids, rng)}
    data = {m: folder / f"asked_{m}" for m in (few, n)}
    for m, path in data.items():
        with ShardWriter(shard_path(path, "xp", FID), m, "source_id", {}) as writer:
            writer.write("source_id", 0, ids[:m])
    return data, tables


# ---- what is answered ------------------------------------------------------------------------

DATATYPES = {"i8": "long", "i4": "int", "i2": "short", "f4": "float", "f8": "double"}


def field_and_cells(name, column):
    """Of a column (n,): its FIELD, and its cells [(n,) bytes], of a fixed width but for texts."""
    values, form = np.ma.filled(column, 0), ""
    if values.dtype.kind == "U":
        texts = [text.encode() for text in np.ma.filled(column, "").tolist()]
        cells, form = [struct.pack(">I", len(text)) + text for text in texts], 'char" arraysize="*'
    elif values.dtype.kind == "b":
        masked = np.ma.getmaskarray(column)
        cells, form = list(np.where(masked, b"?", np.where(values, b"T", b"F"))), "boolean"
    else:
        big = values.astype(values.dtype.newbyteorder(">"))
        cells, form = big.view(f"V{big.itemsize}").tolist(), DATATYPES[values.dtype.str[1:]]
    return f'<FIELD name="{name}" datatype="{form}"/>', cells


def archive_document(columns, status="OK"):
    """A VOTable of {name: (n,) masked array} in the Gaia archive's form: BINARY2, texts of any
    length, gzip."""
    null = np.array([np.ma.getmaskarray(np.ma.asarray(column)) for column in columns.values()])
    flags = np.packbits(null.T, axis=1)
    cells = [list(map(bytes, flags))]
    fields = []
    for name, column in columns.items():
        field, its = field_and_cells(name, column)
        fields.append(field)
        cells.append(its)
    rows = b"".join(itertools.chain.from_iterable(zip(*cells, strict=True)))
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<VOTABLE version="1.4" xmlns="http://www.ivoa.net/xml/VOTable/v1.3">'
        f'<RESOURCE type="results"><INFO name="QUERY_STATUS" value="{status}"/>'
        f"<TABLE>{''.join(fields)}<DATA><BINARY2><STREAM encoding='base64'>"
        f"{base64.encodebytes(rows).decode()}</STREAM></BINARY2></DATA></TABLE></RESOURCE></VOTABLE>"
    )
    return gzip.compress(text.encode(), 6)


class Archive(TapStub):
    """The stub, with answers in the archive's form, each made once."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._made = {}

    def answer(self, query, fault):
        if query not in self._made:
            self._made[query] = super().answer(query, fault)
        return self._made[query]

    def document(self, table, fault=None):
        columns = {name: np.ma.asarray(table[name]) for name in table.colnames}
        return archive_document(columns, "OVERFLOW" if fault == "overflow" else "OK")


@contextlib.contextmanager
def archives(tables):
    """{kind: URL of an archive that answers so}."""
    asked = {"metadata": query_xp_metadata, "tmass": query_2mass}
    with contextlib.ExitStack() as stack:
        urls = {}
        for kind, table in tables.items():
            schema = archive_schema(asked[kind].question(load_release()))
            urls[kind] = stack.enter_context(Archive(table, schema=schema)).url
        yield urls
