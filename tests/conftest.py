"""Fixtures that several files of tests share, or that need a real TAP server (marker `tap`)."""

import os
from types import SimpleNamespace

import pytest

# Read when TensorFlow is loaded: one thread, so that sums come out the same in every run.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@pytest.fixture(scope="session")
def demo_model(tmp_path_factory):
    """A tiny model trained on demo stars: data_dir, training_data, recipe, model (paths)."""
    from demo_model import make

    return make(tmp_path_factory.mktemp("demo_model"))


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    """The demo sky in a real TAP server: url, tables, data_dir (spectra only), absent ids."""
    from services import archive as services

    folder = tmp_path_factory.mktemp("archive")
    metadata, tmass = services.build_data_dir(folder / "data")
    content = services.make_archive(metadata, tmass)
    try:
        url = services.start(content, folder / "tables")
    except services.CannotServeError as error:
        pytest.skip(str(error))
    yield SimpleNamespace(url=url, data_dir=folder / "data", **vars(content))
    services.stop()
