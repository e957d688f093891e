"""The errors of the pipeline, whose messages are for people."""

import errno

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)


class ShardError(Exception):
    """A file that cannot be used: the message says which, what was found and what to do."""


class UsageError(ShardError):
    """Wrong options or missing inputs: exit status 2."""


class WriteError(ShardError):
    """A file that cannot be written: exit status 1, as running again may do."""


def unwritable(path, error) -> WriteError:
    """The error of a file that cannot be written for an OSError (or another), with what to do."""
    number = getattr(error, "errno", None)
    if number in FULL:
        advice = "the disk or a quota is full: make room and run the same command again"
    elif number in CLOSED:
        advice = "no permission to write there: ask its owner, or write to another folder"
    else:
        advice = "is the folder there, and the disk in order? Then run the same command again"
    return WriteError(f"{path}: cannot be written ({_reason(error)}); {advice}")


def forbidden(path, error) -> ShardError:
    """The error of a file or folder that one may not read or look into."""
    return ShardError(
        f"{path}: no permission for it ({_reason(error)}): ask its owner (chmod), or run as one "
        "who has it"
    )


def unreadable(path, error) -> ShardError:
    """The error of a file that cannot be opened for an OSError, with what to do."""
    if getattr(error, "errno", None) in CLOSED:
        return forbidden(path, error)
    return ShardError(f"{path}: cannot be read ({_reason(error)})")


def _reason(error) -> str:
    return getattr(error, "strerror", None) or str(error)


def shortened(names, most=5) -> str:
    """Names in a message: the first of them, and how many more there are."""
    names = list(map(str, names))
    more = f" ... ({len(names)} in all)" if len(names) > most else ""
    return " ".join(names[:most]) + more
