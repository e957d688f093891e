"""TensorFlow, loaded without its notices.

What it and its libraries print while they load (absl, CUDA stubs, oneDNN) goes to the terminal by
file descriptor, past Python's `sys.stderr`, and would bury the scripts' own lines.
"""

import contextlib
import os
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@contextlib.contextmanager
def without_notices():
    """What is written to file descriptor 2 in the block is kept back, and shown where it fails."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as kept:
        terminal = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(terminal, 2)
            kept.seek(0)
            os.write(2, kept.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


with without_notices():
    import tensorflow as tf

__all__ = ["tf", "without_notices"]
