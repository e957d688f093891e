"""What a TAP service says of which sources have spectra: those in a cone, and of some ids."""

import re

import numpy as np

from pipeline.errors import ShardError, UsageError
from pipeline.tap_answer import plain_columns
from pipeline.tap_jobs import ShardJobs
from pipeline.tap_question import Column, ask_about
from pipeline.tap_service import TapService
from pipeline.whole_files import write_text

HEAD = "source_id"


def cone_query(release, cone) -> str:
    """ADQL for the ids in a cone (RA, Dec, radius; degrees). UsageError of an impossible one."""
    ra, dec, radius = cone
    if not (0 <= ra <= 360 and -90 <= dec <= 90 and 0 < radius <= 180):
        raise UsageError(
            f"--cone {ra:g} {dec:g} {radius:g}: expected RA of 0 to 360, Dec of -90 to 90 and a "
            "radius above 0, in degrees"
        )
    archive = release.archive
    place = ", ".join(f"source.{archive.name_of(name, 'source')}" for name in ("ra", "dec"))
    circle = f"CIRCLE('ICRS', {ra!r}, {dec!r}, {radius!r})"
    condition = f" AND source.{archive.has_spectrum}" if archive.has_spectrum else ""
    return _question(release).query(f"1 = CONTAINS(POINT('ICRS', {place}), {circle}){condition}")


def _question(release):
    """The question for ids alone."""
    column = Column("source", release.archive.name_of("source_id", "source"), "i8")
    return ask_about(release, {"source_id": column}, ())


def ids_with_spectra(args, log, ids) -> np.ndarray:
    """Those of ids (n,) of which the TAP service says that they have spectra.

    ShardError where it fails, UsageError where the release does not know how it says so.
    """
    condition = args.release.archive.has_spectrum
    if not condition:
        raise UsageError(f"--confirm: no [archive] has_spectrum in the release {args.release.name}")
    service, found = TapService(args, log), [ids[:0]]
    for query in _question(args.release).by_name(ids):
        jobs = ShardJobs(service, None, "confirm")
        answer = jobs.fetch(f"{query} AND source.{condition}")
        found.append(plain_columns(answer, {"source_id": "i8"})["source_id"])
        jobs.finish()
    return np.concatenate(found)


def ids_in_cone(args, log, folder) -> np.ndarray:
    """Ids (n,), ascending, of the sources with spectra in the cone `args.cone`.

    They are kept in `folder`, and asked for once; with `args.ask_again` once more. ShardError where
    the service fails or cuts the answer, UsageError where there are none.
    """
    query = cone_query(args.release, args.cone)
    words = "_".join(re.sub("[^0-9.e-]", "", repr(float(number))) for number in args.cone)
    path = folder / f"{args.release.name}_cone_{words}.csv"
    if path.is_file() and not args.ask_again:
        log.info("%s: the ids in the cone are known; --ask-again asks for them", path)
        return _read(path)
    service = TapService(args, log)
    jobs = ShardJobs(service, path, "cone")
    ids = np.unique(plain_columns(jobs.fetch(query), {"source_id": "i8"})["source_id"])
    write_text(path, "\n".join([HEAD, *map(str, ids.tolist())]) + "\n")
    jobs.finish()
    return _require_any(ids, path)


def _read(path) -> np.ndarray:
    try:
        head, *lines = path.read_text().split()
        if head != HEAD:
            raise ValueError(head)
        return _require_any(np.array(lines, np.int64), path)
    except (OSError, ValueError) as error:
        raise ShardError(f"{path}: damaged ({error}); delete it and run again") from error


def _require_any(ids, path) -> np.ndarray:
    if not len(ids):
        raise UsageError(f"{path}: the archive has no source with a spectrum in this cone")
    return ids
