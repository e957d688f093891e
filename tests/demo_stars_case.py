"""Some 400 demo stars as training has them, without any file left behind."""

import functools
import tempfile
from pathlib import Path

import demo_model
import numpy as np
from helpers import read_all
from xp_case import BASIS, RELEASE

from demo import build_sky
from fitting.batches import TrainingStars
from fitting.dimming import Dimming
from fitting.training_set import G_FLUX, read_training_data
from pipeline.schema import DEFAULT_LABELS
from pipeline.typical_noise import release_noise
from xp_utils import flux_channels

CHANNELS = flux_channels(BASIS)
N_XP = CHANNELS.n_xp
ALONE = {"bp": CHANNELS.bp & ~CHANNELS.rp, "rp": CHANNELS.rp & ~CHANNELS.bp}
LABELS = DEFAULT_LABELS


def _read(read):
    """What `read` makes of the file of a training set of the demo stars."""
    with tempfile.TemporaryDirectory() as folder:
        data_dir, path = Path(folder) / "data", Path(folder) / "training_data.h5"
        stars = ["--stars", demo_model.ROOT / "demo/stars.h5", "--out", data_dir]
        demo_model.run_step(build_sky, *stars, "--n", 400, "--shards", 1)
        demo_model.make_training_data(data_dir, path)
        return read(path)


@functools.cache
def training_table():
    """All datasets of the training set."""
    return _read(read_all)


@functools.cache
def training_set():
    """`TrainingSet` of the demo stars."""
    return _read(lambda path: read_training_data(path, RELEASE))


@functools.cache
def stars_and_g():
    """`StarData` of the demo stars, and their G magnitudes (N,)."""
    table = training_set().table
    g = RELEASE.g_zero_point - 2.5 * np.log10(table[G_FLUX])
    return training_set().star_data(np.arange(len(g)), CHANNELS), g


@functools.cache
def dimming():
    """The `Dimming` of the demo stars."""
    data, g = stars_and_g()
    return Dimming(data, g, BASIS, release_noise(RELEASE))


def training_stars():
    """`TrainingStars` of the demo stars, the last hundred for calibration."""
    data, g = stars_and_g()
    return TrainingStars(data, np.arange(len(g)) >= len(g) - 100, g, BASIS)
