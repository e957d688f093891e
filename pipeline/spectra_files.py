"""Files that hold spectra: found in folders, told apart by their first bytes, unpacked.

What a file is, is said by its content: a CSV that is still called .gz is read as a CSV.
"""

import bz2
import contextlib
import csv
import gzip
import io
import lzma
import re
import zipfile
import zlib
from pathlib import Path

from pipeline.errors import ShardError, UsageError
from pipeline.select import FID_PATTERN
from pipeline.spectra_plan import OtherReleaseError

try:
    from isal import igzip, isal_zlib
except ImportError:  # gzip does, at a fifth of the speed
    igzip = None

READ_BYTES = 1 << 18  # read at a time: few enough to stay in the processor's cache
HEAD_BYTES = 4096
ENDINGS = ("csv", "ecsv", "tsv", "fits", "fit", "vot", "votable", "xml", "zip", "h5", "hdf5",
           "hdf", "parquet")  # fmt: skip
ENDING = re.compile(rf".*\.(?:{'|'.join(ENDINGS)})(?:\.(?:gz|bz2|xz))?", re.IGNORECASE)
READ_ERRORS = (
    OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, csv.Error, RuntimeError,
)  # fmt: skip
if igzip is not None:
    READ_ERRORS += (isal_zlib.error,)


def fid_in_name(path, release) -> str | None:
    """The fid in the name of one of a release's bulk files, None where the name has none."""
    before, after = map(re.escape, release.spectra.file_name.split("{fid}"))
    match = re.match(rf"{before}({FID_PATTERN.pattern}){after}\.(?!zip)", path.name)
    return match and match[1]


def find_files(paths, release) -> tuple[dict, list]:
    """({fid: [paths]} of bulk files, [paths] of others) among files and in folders.

    Of folders, files with other endings than ENDINGS are passed over. UsageError where there are
    none.
    """
    files, bulk, others = [], {}, []
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path}: not found")
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        files += [
            file for file in inside
            if file == path
            or (file.is_file() and file.name[0] != "." and ENDING.fullmatch(file.name))
        ]  # fmt: skip
    for file in dict.fromkeys(map(Path.resolve, files)):
        fid = fid_in_name(file, release)
        if fid is None:
            others.append(file)
        else:
            bulk.setdefault(fid, []).append(file)
    if not files:
        raise UsageError(f"{paths[0]}: no files of spectra there ({', '.join(ENDINGS)})")
    return bulk, others


def kind_of(file, name) -> str:
    """ "csv", "fits", "votable", "hdf5", "parquet" or "zip", by the first bytes of an open file.

    ShardError where it is none of them.
    """
    head = file.peek(HEAD_BYTES)[:HEAD_BYTES]
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for start, kind in (
        (b"\x89HDF\r\n", "hdf5"), (b"SIMPLE  =", "fits"), (b"PAR1", "parquet"), (b"PK\3\4", "zip"),
    ):  # fmt: skip
        if head.startswith(start):
            return kind
    if text.startswith(b"<"):
        if b"VOTABLE" in text.upper():
            return "votable"
        raise ShardError(f"{name}: a web page or XML, not spectra: fetch it again")
    if not head:
        raise ShardError(f"{name}: cannot be read to its end (empty); fetch it again")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ShardError(f"{name}: text of 16 bits a character: save it as UTF-8")
    if b"\0" in head or sum(byte < 9 for byte in head):
        raise ShardError(
            f"{name}: cannot be read to its end (damaged, or of no form that is known: csv, ecsv, "
            "fits, VOTable, HDF5, Parquet, zip of them); fetch it again"
        )
    return "csv"


def unpacked(file) -> io.BufferedReader:
    """An open file as it is, or unpacked, by its first bytes."""
    head = file.peek(6)[:6]
    if head.startswith(b"\x1f\x8b"):
        return io.BufferedReader((igzip or gzip).open(file, "rb"), READ_BYTES)
    if head.startswith(b"BZh"):
        return io.BufferedReader(bz2.open(file), READ_BYTES)
    if head.startswith(b"\xfd7zXZ"):
        return io.BufferedReader(lzma.open(file), READ_BYTES)
    return file


def parts(path):
    """Yield (name, kind, open file) of a file or, of a zip, of each spectra's file in it."""
    with open(path, "rb", buffering=READ_BYTES) as packed:
        file = unpacked(packed)
        kind = kind_of(file, path)
        if kind != "zip":
            yield str(path), kind, file
            return
        with zipfile.ZipFile(seekable(file)) as archive:
            members = [item for item in archive.infolist() if _is_member(item)]
            if not members:
                raise ShardError(f"{path}: no files of spectra in the zip ({', '.join(ENDINGS)})")
            for item in members:
                with archive.open(item) as member:
                    name = f"{path}: {item.filename}"
                    inner = unpacked(io.BufferedReader(member, READ_BYTES))
                    yield name, kind_of(inner, name), inner


def _is_member(item) -> bool:
    hidden = Path(item.filename).name.startswith(".") or item.filename.startswith("__MACOSX")
    return not (item.is_dir() or hidden) and ENDING.fullmatch(item.filename) is not None


def seekable(file):
    """An open file in which one can go back: it, if it is on the disk, else a copy in memory."""
    on_disk = isinstance(getattr(file, "raw", None), io.FileIO)
    return file if on_disk else io.BytesIO(file.read())


def read_to_end(file):
    """Raises one of READ_ERRORS where the rest of the file is damaged."""
    while file.read(READ_BYTES):
        pass


@contextlib.contextmanager
def faults_of(path):
    """Every fault of a file of spectra as a ShardError."""
    try:
        yield
    except OtherReleaseError as error:
        raise ShardError(f"{path}: {error}") from error
    except READ_ERRORS as error:
        raise ShardError(
            f"{path}: cannot be read to its end (truncated or damaged; {error}); fetch it again"
        ) from error
