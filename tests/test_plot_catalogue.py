"""tools/plot_catalogue.py on made-up shards: which figures, of which stars, and faults."""

import numpy as np
import pytest
from dust_case import power_law
from export_case import parts_of, stars, write_catalogue, write_shard
from helpers import FIDS, flip_bit
from matplotlib.image import imread

from pipeline.export import shards
from pipeline.export.shards import Catalogue
from pipeline.figures import style
from pipeline.schema import KNOWN_LABELS, LabelSet, Layout, load_release
from pipeline.select import shard_path
from pipeline.tallies import columns, diagrams, maps, plan
from pipeline.tallies.counts import Pixels
from pipeline.tallies.quantities import Quantities
from pipeline.write import write_arrays
from tools import plot_catalogue

ALWAYS = {
    "kiel", "colour_magnitude", "sky_number", "sky_feh", "sky_extinction", "extinction_latitude",
    "errors", "chi2", "confidences",
}  # fmt: skip
MANY = 2600  # more than are shown one by one


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    for name in ("figure.dpi", "savefig.dpi"):
        monkeypatch.setitem(style.STYLE, name, 40)


def run(data_dir, out, *words):
    """Exit status of the tool."""
    return plot_catalogue.main([str(w) for w in ("--data-dir", data_dir, "--out", out, *words)])


def drawn(out):
    return {path.stem for path in out.glob("*.png")}


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("many") / "data"
    return data_dir, write_catalogue(data_dir, MANY)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("few") / "data"
    return data_dir, write_catalogue(data_dir, 100)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Folder of a model's file, as far as the extinction curve is read of it."""
    folder, law = tmp_path_factory.mktemp("model"), power_law(0.2)
    arrays = {"sample_wavelengths": law.wavelengths, "ln_ext_curve": law.ln_curve}
    arrays |= {"ln_ext_curve_xi": law.slope, "channel_names": law.names}
    write_arrays(folder / "model.h5", arrays | {"release": np.array("dr3")}, {"script": "train"})
    return folder


@pytest.fixture
def only(monkeypatch):
    """What has no figure drawn, to see what is asked for: titles and notes by name."""
    seen = {}

    def drawing(path, *args, **kwargs):
        seen[path.stem] = (args, kwargs)
        return path

    for module, name in (
        (diagrams, "planes"),
        (maps, "sky_maps"),
        (columns, "percentile_panels"),
    ):
        monkeypatch.setattr(module, name, drawing)
    return seen


# ---- what is drawn ---------------------------------------------------------------------------


def test_figures_of_many_stars_are_whole_pictures_and_others_are_told(many, model, tmp_path, capfd):
    assert run(many[0], tmp_path, "--model", model, "--direction", 40, 0, "--radius", 60) == 0
    assert drawn(tmp_path) == ALWAYS | {"sky_flagged", "sky_rv", "extinction_direction"}
    for path in tmp_path.glob("*.png"):
        picture = imread(path)
        assert picture.shape[1] == 360
        assert np.ptp(picture[..., :3]) > 0.5
    n = int((many[1]["quality_flags"] < 8).sum())
    assert (
        f"{n:,} of {MANY:,} stars: quality_flags < 8. {MANY - n:,} left out"
        in capfd.readouterr().err
    )


def test_few_stars_have_figures_and_none_that_is_empty(few, tmp_path, capfd):
    assert run(few[0], tmp_path) == 0
    told = capfd.readouterr().err
    assert drawn(tmp_path) <= ALWAYS
    for name in (ALWAYS | {"sky_flagged", "sky_rv", "extinction_direction"}) - drawn(tmp_path):
        assert f"{name} is not drawn: " in told
    assert {"kiel", "sky_number", "errors"} <= drawn(tmp_path)


def test_a_figure_of_an_earlier_run_is_not_left_in_the_folder(few, only, tmp_path):
    (tmp_path / "sky_rv.png").write_bytes(b"old")
    assert run(few[0], tmp_path) == 0
    assert not (tmp_path / "sky_rv.png").exists()


@pytest.mark.parametrize(
    "names", [("teff", "feh"), ("teff", "logg"), ("teff", "feh", "logg", "alpha_m")]
)
def test_any_labels_do_and_without_logg_there_is_no_kiel_diagram(names, only, tmp_path, capfd):
    layout = Layout(labels=LabelSet([KNOWN_LABELS[name] for name in names]))
    write_catalogue(tmp_path / "data", 150, layout)
    assert run(tmp_path / "data", tmp_path / "out") == 0
    told = capfd.readouterr().err
    assert ("kiel" in only) == ("logg" in names)
    assert ("kiel is not drawn: logg not among the labels" in told) == ("logg" not in names)
    assert ("sky_feh is not drawn: feh is not" in told) == ("feh" not in names)
    assert len(only["errors"][0][0]) == len(names) + 3
    assert len(only["confidences"][0][0]) == len(names)


def test_diagrams_are_of_the_selected_stars_the_number_on_the_sky_of_all(many, only, tmp_path):
    assert run(many[0], tmp_path, "--select", "teff > 5 and quality_flags == 0") == 0
    table = many[1]
    est = table["stellar_params_est"]
    n = int(((est[:, 0] > 5) & (table["quality_flags"] == 0)).sum())
    panels, *_, note = only["kiel"][0]
    assert note.startswith(f"{n:,} of {MANY:,} stars: teff > 5 and quality_flags == 0.")
    assert len(panels[0].x) == n < 2000
    number = only["sky_number"][0][0][0]
    area = 41252.96 / (12 * 4**number.level)
    assert number.values.sum() * area == pytest.approx(MANY)


def test_medians_of_a_diagram_are_those_of_the_stars(many, only, tmp_path):
    assert run(many[0], tmp_path, "--select", "isfinite(teff)") == 0
    panel = only["kiel"][0][0][1]
    assert "Fe/H" in panel.label
    est = many[1]["stellar_params_est"]
    teff, logg = 1000.0 * est[:, 0].astype("f8"), est[:, 2].astype("f8")
    cells = panel.weights
    i, j = np.unravel_index(np.argmax(cells), cells.shape)
    inside = (teff >= panel.x[i]) & (teff < panel.x[i + 1])
    inside &= (logg >= panel.y[j]) & (logg < panel.y[j + 1])
    assert inside.sum() == cells[i, j] > 8
    near = np.sort(est[inside, 1])[[len(est[inside]) // 2 - 1, len(est[inside]) // 2]]
    width = 0.05  # more than a bin of [Fe/H]
    assert near[0] - width < panel.values[i, j] < near[1] + width


def test_dust_by_distance_is_the_median_E_of_the_stars_of_a_slice(many, only, tmp_path):
    assert run(many[0], tmp_path) == 0
    maps = only["sky_extinction"][0][0]
    table = many[1]
    chosen = table["quality_flags"] < 8
    ext = table["stellar_params_est"][chosen, 4]
    for one in maps:
        values = one.values[np.isfinite(one.values)]
        assert np.median(values) == pytest.approx(np.median(ext), abs=0.12)
    assert len(maps) == len({one.title for one in maps}) > 1


def test_chunks_of_any_size_give_the_same_counts(many, monkeypatch):
    found = []
    for rows in (10**6, 113):
        monkeypatch.setattr(shards, "CHUNK_ROWS", rows)
        catalogue = Catalogue(many[0], FIDS, load_release())
        quantities = Quantities(catalogue.layout, "quality_flags < 8", None, [(40.0, 0.0)], 30.0)
        found.append(plot_catalogue.counted(catalogue, quantities, [(40.0, 0.0)]))
    (one, _, numbers), (other, _, again) = found
    assert numbers == again
    assert one.keys() == other.keys()
    for key, counts in one.items():
        if not key.startswith("sky"):
            np.testing.assert_array_equal(counts.cells, other[key].cells, err_msg=key)
        else:
            maps = [Pixels.of(each[key]) for each in (one, other)]
            np.testing.assert_array_equal(maps[0].pixels, maps[1].pixels)
            np.testing.assert_array_equal(maps[0].counts, maps[1].counts)


def test_ranges_from_a_sample_leave_few_stars_out(many, monkeypatch):
    monkeypatch.setattr(plan, "SAMPLE_ROWS", 600)
    monkeypatch.setattr(plan, "LEAST_SELECTED", 100)
    catalogue = Catalogue(many[0], FIDS, load_release())
    quantities = Quantities(catalogue.layout, "quality_flags < 8")
    assert 500 < len(plan.sample(catalogue, quantities)["all"]) < 900
    counts, _, (_, n) = plot_catalogue.counted(catalogue, quantities, [])
    assert counts["kiel density"].counts.sum() > 0.97 * n


def test_a_selection_that_a_sample_misses_has_figures_of_all_its_stars(
    many, only, tmp_path, monkeypatch
):
    monkeypatch.setattr(plan, "SAMPLE_ROWS", 60)
    table = many[1]
    teff = table["stellar_params_est"][:, 0]
    limit = np.sort(teff[np.isfinite(teff)])[-15]
    assert run(many[0], tmp_path, "--select", f"teff >= {limit - 1e-5:.7f}") == 0
    assert len(only["kiel"][0][0][0].x) == 15


def test_maps_of_a_patch_are_counted_finer_than_those_of_the_sky(tmp_path):
    layout = Layout()
    table = stars(3000, layout)
    table["ra"], table["dec"] = table["ra"] / 360 + 100, table["dec"] / 180
    table[layout.release.id_column] = (np.int64(300_000) << 43) + np.arange(3000)
    write_shard(tmp_path / "patch", "300000-300000", table)
    write_catalogue(tmp_path / "sky", 3000)
    levels = [
        plan.sky_level(Catalogue(tmp_path / name, fids, layout.release))
        for name, fids in (("patch", ["300000-300000"]), ("sky", FIDS))
    ]
    assert levels[0] > levels[1] + 2


# ---- faults ----------------------------------------------------------------------------------


def test_a_damaged_shard_is_named_and_the_figures_are_of_the_others(only, tmp_path, capfd):
    table = stars(300, n_bad=0)
    parts = parts_of(table, "gdr3_source_id")
    for fid, part in parts.items():
        write_shard(tmp_path / "data", fid, part)
    flip_bit(shard_path(tmp_path / "data", "opt_output", FIDS[1]), "ra")
    assert run(tmp_path / "data", tmp_path / "out") == 1
    told = capfd.readouterr().err
    assert f"{FIDS[1]} is not in the figures" in told
    left = 300 - len(parts[FIDS[1]]["ra"])
    assert f"of {left:,} stars" in told
    assert "kiel" in only


def test_where_no_star_is_selected_it_is_said_and_the_maps_of_all_are_drawn(
    few, only, tmp_path, capfd
):
    assert run(few[0], tmp_path, "--select", "teff > 90") == 0
    told = capfd.readouterr().err
    assert set(only) == {"sky_number"}
    assert "kiel is not drawn: no selected star" in told
    assert "0 of 100 stars: teff > 90. 100 left out" in told


def test_stars_without_parameters_or_positions_are_no_error(only, tmp_path):
    table = stars(120, n_bad=120)
    table["ra"][:60] = np.nan
    write_shard(tmp_path / "data", FIDS[0], table)
    assert run(tmp_path / "data", tmp_path / "out") == 0
    assert "kiel" not in only
    assert len(only["sky_number"][0][0][0].values) == 60


def test_a_catalogue_without_stars_has_no_figures_and_says_so(only, tmp_path, capfd):
    table = {name: values[:0] for name, values in stars(5).items()}
    write_shard(tmp_path / "data", FIDS[0], table)
    assert run(tmp_path / "data", tmp_path / "out") == 0
    assert not only
    assert "0 of 0 stars" in capfd.readouterr().err


@pytest.mark.parametrize("n", [1, 40])
def test_one_star_or_stars_that_are_all_alike_are_drawn(n, tmp_path):
    table = {name: np.repeat(values[:1], n, 0) for name, values in stars(1, n_bad=0).items()}
    table["gdr3_source_id"] = table["gdr3_source_id"] + np.arange(n)
    write_shard(tmp_path / "data", FIDS[0], table)
    words = ["--select", "isfinite(teff)"]
    assert run(tmp_path / "data", tmp_path / "out", *words) == 0
    assert {"kiel", "sky_number", "sky_feh", "errors"} <= drawn(tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--select", "tef > 3"), "is no column; similar: teff"),
        (("--model", "/nowhere"), "no trained model there"),
        (("--shards", "1-2"), "not in"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(few, tmp_path, words, told, capfd):
    assert run(few[0], tmp_path, *words) == 2
    error = capfd.readouterr().err
    assert told in error
    assert error.strip().count("\n") == 0


@pytest.mark.parametrize("words", [("--direction", 10, 95), ("--radius", 0)])
def test_directions_that_are_none_are_refused(few, tmp_path, words):
    with pytest.raises(SystemExit) as error:
        run(few[0], tmp_path, *words)
    assert error.value.code == 2
