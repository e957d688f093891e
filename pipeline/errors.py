"""The errors of the pipeline, whose messages are for people."""


class ShardError(Exception):
    """A file that cannot be used: the message says which, what was found and what to do."""


class UsageError(ShardError):
    """Wrong options or missing inputs: exit status 2."""
