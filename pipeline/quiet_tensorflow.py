"""TensorFlow, loaded without its notices, and with all digits of float32.

What it and its libraries print while they load (absl, CUDA stubs, oneDNN) goes to the terminal by
file descriptor, past Python's `sys.stderr`, and would bury the scripts' own lines.
"""

import contextlib
import os
import sys
import tempfile

from pipeline import compiled_programs

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
PROGRAMS = compiled_programs.set_up()  # where they are kept, or None


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

# float32 means float32: GPUs multiply matrices with 10-bit mantissas where they are allowed to, as
# TensorFlow does by default, and the whitening of spectra would be ruined.
tf.config.experimental.enable_tensor_float_32_execution(False)

if PROGRAMS:
    compiled_programs.number_by_program()


def compiled(function):
    """`function` of tensors as one compiled program for each shape of its arguments."""

    def compile_it(traced):
        return tf.function(traced, jit_compile=True, autograph=False)

    if PROGRAMS is None:
        return compile_it(function)
    return compiled_programs.kept(compile_it, function, PROGRAMS)
