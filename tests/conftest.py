"""Fixtures that several files of tests share, or that need a real TAP server (marker `tap`)."""

import os
from types import SimpleNamespace

import pytest

# Read when NumPy and TensorFlow are loaded: one thread, so that sums come out the same in every
# run, and processes beside each other do not wait for each other's threads.
for name in ("TF_NUM_INTRAOP", "TF_NUM_INTEROP", "OPENBLAS_NUM", "OMP_NUM"):
    os.environ.setdefault(f"{name}_THREADS", "1")
# The page at the end of steps 8 and 10 takes seconds; its own tests ask for it.
os.environ["XPFWD_REPORT"] = "off"
# What is compiled runs a few times only: to optimise it takes longer than that saves.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

# What takes longest, a file or a group of files, begins, so that all processes end together.
LONGEST = (
    "demo_model", "test_labels_end_to_end", "test_figures", "test_star_solver", "test_samples",
    "test_catalogue", "test_objective", "test_export_folder", "test_build_sky", "test_model",
    "test_tap_jobs", "test_plot_catalogue", "test_run_stars", "test_sampler", "test_torture",
    "test_compile_training_data", "test_compiled_programs", "test_star_page", "test_sampled",
)  # fmt: skip
# Files of a group, whose tests need the same model and its solver: see `demo_model.quick`.
GROUPS = {
    "demo_model": {
        "test_train", "test_train_check", "test_train_refusals", "test_train_resume", "test_xp_opt",
        "test_xp_opt_files", "test_samples_files", "test_parallax_scale", "test_replaced_inputs",
    }
}  # fmt: skip


def group_of(nodeid):
    """The group that a test's file belongs to: itself, where it is in none."""
    stem = nodeid.split("::")[0].rsplit("/")[-1].removesuffix(".py")
    return next((group for group, stems in GROUPS.items() if stem in stems), stem)


def pytest_collection_modifyitems(items):
    """Tests in the order of LONGEST."""
    place = {group: k for k, group in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(group_of(item.nodeid), len(place)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `--dist loadscope`, whole groups go to a process, in their order: it makes once what
    their tests share."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group_of(nodeid)

    if config.getvalue("dist") != "loadscope":
        return None
    config.option.loadscopereorder = False
    return Groups(config, log)


@pytest.fixture(scope="session")
def demo_model(tmp_path_factory):
    """A tiny model trained on demo stars: data_dir, training_data, recipe, model (paths)."""
    from demo_model import make, once, paths

    return paths(once(tmp_path_factory, "demo_model", make))


@pytest.fixture(scope="session")
def step10(demo_model, tmp_path_factory):
    """Small shards of step 9 and the outputs of the tiny model: see `step10_case.Step10`."""
    from demo_model import once
    from step10_case import Step10

    case = Step10(demo_model)
    case.data_dir = once(tmp_path_factory, "step10", case.make)
    return case


@pytest.fixture(scope="session")
def star_solver():
    """A solver of a small random model of the usual labels."""
    from model_case import make_model, make_solver

    return make_solver(make_model())


@pytest.fixture(scope="session")
def mocks(star_solver):
    """500 stars drawn from the model of `star_solver`, and their true u."""
    from model_case import mock_stars

    return mock_stars(star_solver.model, 500, seed=1)


@pytest.fixture(scope="session")
def solved(star_solver, mocks):
    """`Modes` of `mocks`."""
    return star_solver.solve(mocks[0])


@pytest.fixture(scope="session")
def oracle(star_solver):
    """The float64 counterpart of the model of `star_solver`."""
    from model_oracle import Oracle

    return Oracle(star_solver.model)


@pytest.fixture(scope="session")
def varied(mocks):
    """12 stars, most with something missing or odd: `StarData`, and their true u."""
    from model_case import NO_BP, RP, TMASS, WISE, replaced

    data, u = mocks[0].take(slice(0, 12)), mocks[1][:12]
    flux, err, plx, plx_err = (
        x.copy() for x in (data.flux, data.flux_err, data.parallax, data.parallax_err)
    )
    missing = ([], WISE, TMASS[:1], [*TMASS, *WISE], NO_BP, [*NO_BP, *WISE], RP, [30, 40, 63], [0])
    for i, channels in enumerate(missing):
        err[i, list(channels)] = float("inf")
    flux[9, :3] = -flux[9, :3]
    plx[10] = plx_err[10] = float("nan")
    plx[11], plx_err[11] = -0.5, 1.0
    return replaced(data, flux=flux, flux_err=err, parallax=plx, parallax_err=plx_err), u


@pytest.fixture(scope="module")
def small_pictures():
    """Figures of few pixels, which take less time."""
    from pipeline.figures import style

    with pytest.MonkeyPatch.context() as patch:
        for name in ("figure.dpi", "savefig.dpi"):
            patch.setitem(style.STYLE, name, 40)
        yield


@pytest.fixture
def undrawn(monkeypatch):
    """No figures of catalogues in the page, which take most of the time."""
    from fitting.report import pictures

    monkeypatch.setattr(pictures, "CATALOGUE", {})


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
