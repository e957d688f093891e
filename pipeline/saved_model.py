"""SavedModels of TensorFlow, written whole or not at all."""

import errno
import os

from pipeline.errors import FULL
from pipeline.quiet_tensorflow import tf
from pipeline.whole_files import whole_folder


def save_whole(module, path):
    """Write a `tf.Module` as a SavedModel into the folder `path`, in the place of what is there.

    WriteError where the disk does not take it; then what was there stays.
    """
    with whole_folder(path) as folder:
        try:
            tf.saved_model.save(module, str(folder))
        except tf.errors.OpError as error:
            raise _fault_of(error) from error


def _fault_of(error) -> OSError:
    """The system's fault of the disk, which TensorFlow tells in words."""
    found = [number for number in FULL if os.strerror(number) in error.message]
    if isinstance(error, tf.errors.ResourceExhaustedError):
        found.append(errno.ENOSPC)
    if found:
        return OSError(found[0], os.strerror(found[0]))
    return OSError(" ".join(error.message.split()))
