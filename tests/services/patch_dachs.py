#!/usr/bin/env python3
"""Mend the installed DaCHS 2.7 and pg_sphere of Debian bookworm for the tests of this project.

    patch_dachs.py pgsphere dachs

Each patch is applied once; running again changes nothing. A text to replace that is not there, or
there more than once, is an error (exit status 1) and leaves the file as it was: another version of
the package needs another patch, and must not be served half mended.
"""

import re
import sys
from pathlib import Path

DACHS = Path("/usr/lib/python3/dist-packages/gavo")
PG_SPHERE = Path("/usr/share/postgresql/15/extension")


class PatchError(Exception):
    """The text to replace is not what this script was written for."""


def replace_once(path, old, new):
    """Replace the only occurrence of `old` in a file, unless it holds `new` in its place already.

    `new` must be long enough to be found only where `old` was.
    """
    text = path.read_text()
    if old not in text and text.count(new) == 1:
        return
    if text.count(old) != 1:
        raise PatchError(f"{path}: found {text.count(old)} times, expected once: {old!r}")
    path.write_text(text.replace(old, new))


def patch_dachs(folder=DACHS):
    """The archive's names of output formats, and its schema `external`.

    `votable_gzip` and `votable_plain` are ESA's names; EXTERNAL is a reserved word of ADQL that
    ESA's server accepts undelimited.
    """
    lower = "\t\tformatName = formatName.lower()\n"
    names = '\t\tformatName = {"votable_gzip": "votable", "votable_plain": "votabletd"}.get('
    replace_once(
        folder / "formats" / "common.py",
        lower + "\t\tif formatName in cls.writerRegistry:\n",
        lower + names + "formatName, formatName)\n\t\tif formatName in cls.writerRegistry:\n",
    )
    words = '"EXTRACT", "FALSE"'
    replace_once(folder / "adql" / "grammar.py", '"EXTERNAL", ' + words, words)


def patch_pgsphere(folder=PG_SPHERE):
    """Drop conflicting planner hints from pg_sphere's operators.

    PostgreSQL 15.19 and later refuse an operator whose COMMUTATOR or NEGATOR is already claimed by
    another; the hints of the "contains" operators are, and matter to speed only.
    """
    scripts = sorted(folder.glob("pg_sphere--[0-9].[0-9].[0-9].sql"))
    if not scripts:
        raise PatchError(f"{folder}: no pg_sphere--*.sql there")
    hint = re.compile(
        r"^[ \t]*(?:COMMUTATOR|NEGATOR)[ \t]*=[ \t]*'?(?:!?<@|!?@>|!?@|!?~)'?[ \t]*,[ \t]*\n",
        re.IGNORECASE | re.MULTILINE,
    )
    mark = "-- planner hints of the contains operators dropped\n"
    for script in scripts:
        text = script.read_text()
        if text.startswith(mark):
            continue
        mended, count = hint.subn("", text)
        if not count:
            raise PatchError(f"{script}: no COMMUTATOR or NEGATOR of a contains operator found")
        script.write_text(mark + mended)


PATCHES = {"dachs": patch_dachs, "pgsphere": patch_pgsphere}


def main(argv=None) -> int:
    names = sys.argv[1:] if argv is None else argv
    if not names or set(names) - PATCHES.keys():
        sys.stderr.write(f"usage: patch_dachs.py {{{','.join(PATCHES)}}} ...\n")
        return 2
    try:
        for name in names:
            PATCHES[name]()
    except (PatchError, OSError) as error:
        sys.stderr.write(f"patch_dachs.py: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
