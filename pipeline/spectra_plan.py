"""Which columns of a file are the spectra's, and whether these are of the release."""

from dataclasses import dataclass

import numpy as np

from pipeline.errors import ShardError
from pipeline.schema import Layout, resolved

SHOWN = 40  # characters of a cell in a message


class OtherReleaseError(Exception):
    """Spectra of another release than the one in use."""


@dataclass(frozen=True)
class PlannedColumn:
    """A column to convert: its place among the file's, dtype, length of its arrays (0: a number),
    and whether a star is of use without it."""

    place: int
    dtype: np.dtype
    length: int
    optional: bool


def plan_columns(path, names, release) -> tuple[dict, list[str]]:
    """{our name: PlannedColumn} of what is converted, and the file's names of what is not.

    Raises ShardError where a column that the release's spectra must have is missing.
    """
    datasets, lower = resolved("xp", Layout(release)), [name.lower() for name in names]
    theirs = {name: release.spectra.names.get(name, name) for name in datasets}
    places = {
        ours: names.index(their) if their in names else lower.index(their.lower())
        for ours, their in theirs.items()
        if their.lower() in lower
    }
    missing = [theirs[k] for k, d in datasets.items() if not d.optional and k not in places]
    if missing:
        found = ", ".join(names[:8]) or "nothing"
        hint = " (sampled spectra do not serve)" if "flux" in lower or "xp_flux" in lower else ""
        raise ShardError(
            f"{path}: no column {', '.join(missing)} (found: {found} ...); expected the continuous "
            f"spectra of {release.title}{hint}: give --release where they are of another one"
        )
    columns = {
        ours: PlannedColumn(
            place, np.dtype(datasets[ours].dtype), sum(datasets[ours].shape),
            datasets[ours].optional,
        )
        for ours, place in places.items()
    }  # fmt: skip
    return columns, [name for i, name in enumerate(names) if i not in places.values()]


def id_of(text) -> int:
    """The id that a text holds; 0 where it is none."""
    text = text.strip(" \t\"'=")
    number = int(text) if text.isascii() and text.isdigit() else 0
    return number if number < 2**63 else 0


def fault_of_id(text) -> str:
    """Why a text that is no id is none."""
    shown = text.strip()[:SHOWN]
    try:
        float(shown)
    except ValueError:
        return f"source_id is {shown!r}"
    if not shown.lstrip("-").isdigit() and shown.lower() != "nan":
        return (
            f"source_id is {shown!r}, a float, which has lost digits: write ids as 64-bit integers "
            "(in pandas: dtype={'source_id': 'int64'})"
        )
    return f"source_id is {shown!r}"


def require_release(table, lengths, band, release):
    """OtherReleaseError where spectra are of another release: whole, but of other numbers.

    lengths (n,): of the arrays of coefficients, as the file has them.
    """
    expected = release.spectra.bands[band]
    n_parameters = table[f"{band}_n_parameters"]
    checks = {
        f"{band}_coefficients": (lengths, expected.n_coefficients),
        f"{band}_basis_function_id": (
            table.get(f"{band}_basis_function_id", np.zeros(len(lengths), int)),
            expected.basis_id,
        ),
    }
    for (name, (found, right)), what in zip(checks.items(), ("numbers", "as its id"), strict=True):
        other = (lengths > 0) & (lengths == n_parameters) & (found > 0) & (found != right)
        for row in np.flatnonzero(other)[:1]:
            raise OtherReleaseError(
                f"{name} of source {table['source_id'][row]} has {found[row]} {what}, expected "
                f"{right} of {release.title}: spectra of another release; give its --release"
            )
