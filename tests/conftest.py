"""Fixtures that need a real TAP server (marker `tap`)."""

from types import SimpleNamespace

import pytest


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
