"""Figures: a whole PNG or nothing, whatever the arrays hold; numbers shown are the true ones."""

import os
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.image import imread
from scipy import stats

from pipeline import figures
from pipeline.errors import WriteError
from pipeline.figures import accuracy, arrays, dust, style
from pipeline.schema import BANDS, DEFAULT_LABELS, KNOWN_LABELS, Label, LabelSet, Layout

ROOT = Path(__file__).resolve().parents[1]
WAVELENGTHS = Layout().wavelengths  # (66,) nm
N_XP = len(WAVELENGTHS) - len(BANDS)
XI = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
AGE = Label("age", "age", "Gyr", tolerance=2.0, digits=1)
TEFF, FEH, LOGG = DEFAULT_LABELS
LABEL_SETS = {
    2: LabelSet((TEFF, LOGG)),
    3: DEFAULT_LABELS,
    4: LabelSet((*DEFAULT_LABELS, KNOWN_LABELS["alpha_m"])),
    6: LabelSet((FEH, LOGG, AGE, TEFF, KNOWN_LABELS["alpha_m"], Label("x", "x", "", 1.0))),
}


def types(n, labels=DEFAULT_LABELS, seed=0):
    rng = np.random.default_rng(seed)
    columns = {"teff": rng.uniform(4, 7, n), "feh": rng.normal(-0.3, 0.4, n)}
    columns["logg"] = rng.uniform(1, 5, n)
    others = rng.normal(0.1, 0.2, (len(labels), n))
    return np.column_stack([columns.get(x.name, others[k]) for k, x in enumerate(labels)])


def estimates(label, labels=DEFAULT_LABELS, seed=1):
    noise = np.random.default_rng(seed).normal(size=label.shape)
    return label + noise * labels.array("tolerance") / 4


def curves():
    return np.log(2 * (WAVELENGTHS / 550) ** -1.5) + 0.1 * np.tanh(XI)[:, None] * (
        550 / WAVELENGTHS - 0.5
    )


def group(name, n=100, n_labels=3):
    return {
        "group": name,
        "n": n,
        "pull_width": [*np.linspace(0.9, 1.2, n_labels - 1), np.nan],
        "scatter": np.linspace(0.05, 0.2, n_labels),
        "frac_gt3": [*np.linspace(0.0, 0.01, n_labels - 1), np.nan],
    }


def draw_labels(folder, n, damage=lambda array: array, labels=DEFAULT_LABELS):
    """The figures of labels, from n stars; damage changes each array first. {name: path
    returned}."""
    rng = np.random.default_rng(2)
    n_labels, label, number = len(labels), types(n, labels), np.arange(float(n))
    flux = damage(-0.5 * np.log(WAVELENGTHS) + np.zeros((n, 1)))
    chance, levels = rng.random(n), np.array([0.5, 0.9, 0.99])
    error = damage(np.full((n, n_labels), 0.1))
    confidences = {x.name: damage(chance) for x in labels}
    return {
        "spectra": figures.model_spectra(folder / "spectra.png", WAVELENGTHS,
                                         {"dwarfs": (damage(label), flux)}, labels=labels),
        "labels": figures.inferred_against_label(
            folder / "labels.png", damage(label), damage(estimates(label, labels)), error, error,
            labels=labels),
        "kiel": figures.kiel_diagram(folder / "kiel.png", damage(label), labels=labels),
        "reliability": figures.reliability(
            folder / "reliability.png", confidences,
            {name: rng.random(n) < chance for name in confidences}, labels=labels),
        "pulls": figures.pulls_in_bins(
            folder / "pulls.png", [group(f"group {i}", i, n_labels) for i in range(min(n, 5))],
            labels=labels),
        "coverage": figures.coverage(
            folder / "coverage.png", damage(rng.random((n, n_labels))), levels,
            damage(np.tile(levels[:, None], (1, n_labels))), labels=labels),
        "trends": figures.scores_against(
            folder / "trends.png", number[:6] + 13, {
                (first, second): {"scatter": damage(error[:6]), "pull_width": 1 + error[:6]}
                for first in ("a", "b") for second in ("x", "y")}, "G (mag)", labels=labels),
    }  # fmt: skip


def draw_stars(folder, n, damage=lambda array: array):
    """As `draw_labels`: the figures of stars or epochs that show no label."""
    rng, epoch = np.random.default_rng(2), np.arange(float(n))
    loss = damage(3 + 40 * np.exp(-epoch / 10))
    return {
        "loss": figures.loss_history(folder / "loss.png", epoch, {"training": loss, "none": np.full(
            n, np.nan)}, damage(np.full(n, 1e-3))),
        "residuals": figures.residuals_by_wavelength(
            folder / "residuals.png", WAVELENGTHS, damage(rng.normal(0, 0.02, (n, 66))),
            damage(rng.normal(0, 1, (n, 66)))),
        "outcomes": figures.outcomes(folder / "outcomes.png", {
            "Stars": {f"star {i}": damage(np.array([0.7, 0.25, 0.05])) for i in range(min(n, 9))},
            "None": {"nothing": damage(np.array([0.0, 1.0, 0.0]))}}),
    }  # fmt: skip


def draw_curves(folder, damage=lambda array: array):
    """As `draw_labels`: the figures of extinction, the same for any stars."""
    return {
        "curve": figures.extinction_curve(folder / "curve.png", WAVELENGTHS, XI,
                                          damage(curves())),
        "laws": figures.extinction_laws(
            folder / "laws.png", WAVELENGTHS, XI[1:4], damage(curves()[1:4]),
            {("law", "a"): damage(WAVELENGTHS ** -1.5), ("law", "b"): WAVELENGTHS ** -1.3},
            ("law", "a")),
    }  # fmt: skip


def with_holes(array):
    """About a third of the values NaN, inf or -inf."""
    rng = np.random.default_rng(3)
    bad = rng.choice([np.nan, np.inf, -np.inf], array.shape)
    return np.where(rng.random(array.shape) < 0.33, bad, array)


def assert_pictures(folder, paths):
    assert {path.name for path in folder.iterdir()} == {path.name for path in paths.values()}
    for path in paths.values():
        pixels = imread(path)
        assert pixels.shape[1] == 54 * style.WIDTH, path.name
        assert pixels.std() > 0.01, f"{path.name} is blank"


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Small pictures: most of the time goes into their pixels."""
    for name in ("figure.dpi", "savefig.dpi"):
        monkeypatch.setitem(style.STYLE, name, 54)


@pytest.fixture
def drawn(monkeypatch):
    """The figures drawn, kept to be looked at instead of saved."""
    kept = []
    monkeypatch.setattr(style, "save", lambda figure, path: kept.append(figure))
    return kept


def texts(figure):
    return [text.get_text() for ax in figure.axes for text in ax.texts]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n", [0, 1, 5, 400])
def test_every_figure_is_drawn_for_few_stars(tmp_path, n):
    assert_pictures(tmp_path, draw_labels(tmp_path, n) | draw_stars(tmp_path, n))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n_labels", [2, 4, 6])
def test_every_figure_is_drawn_for_any_number_of_labels(tmp_path, n_labels):
    assert_pictures(tmp_path, draw_labels(tmp_path, 400, with_holes, LABEL_SETS[n_labels]))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n", [5, 60])
def test_nan_and_inf_anywhere_are_left_out(tmp_path, n):
    drawn = draw_labels(tmp_path, n, with_holes) | draw_stars(tmp_path, n, with_holes)
    assert_pictures(tmp_path, drawn)


def nothing(array):
    return np.full(array.shape, np.nan)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("n", "damage"), [(5, nothing), (30, np.ones_like)])
def test_every_figure_is_drawn_where_nothing_is_finite_or_all_stars_are_the_same(
    tmp_path, n, damage
):
    assert_pictures(tmp_path, draw_labels(tmp_path, n, damage) | draw_stars(tmp_path, n, damage))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("damage", [np.copy, with_holes, nothing, np.ones_like])
def test_curves_are_drawn_whatever_they_are(tmp_path, damage):
    assert_pictures(tmp_path, draw_curves(tmp_path, damage))


@pytest.mark.filterwarnings("error")
def test_200_000_stars_are_drawn_as_density(tmp_path):
    label = types(200_000).astype("f4")
    paths = {
        "labels": figures.inferred_against_label(tmp_path / "a.png", label, estimates(label)),
        "kiel": figures.kiel_diagram(tmp_path / "b.png", label),
    }
    assert_pictures(tmp_path, paths)
    assert all(path.stat().st_size < 2e6 for path in paths.values())


def test_no_figures_without_tracks_groups_or_labels_fail(tmp_path):
    figures.model_spectra(tmp_path / "a.png", WAVELENGTHS, {})
    figures.pulls_in_bins(tmp_path / "b.png", [])
    figures.reliability(tmp_path / "c.png", {}, {})
    figures.loss_history(tmp_path / "d.png", [], {})
    figures.scores_against(tmp_path / "e.png", [], {}, "G (mag)")
    figures.outcomes(tmp_path / "f.png", {})
    assert len(list(tmp_path.iterdir())) == 6


def test_stars_without_a_value_do_not_change_the_picture(tmp_path):
    label = types(300)
    more = np.concatenate([label, np.full((50, 3), np.nan)])
    pictures = [
        imread(
            figures.inferred_against_label(
                tmp_path / f"{len(x)}.png",
                x,
                estimates(x[:300])
                if len(x) == 300
                else np.concatenate([estimates(label), types(50)]),
            )
        )
        for x in (label, more)
    ]
    np.testing.assert_array_equal(*pictures)


def test_the_callers_arrays_are_not_changed(tmp_path):
    label = types(50)
    estimate, copy = estimates(label), label.copy()
    figures.inferred_against_label(tmp_path / "a.png", label, estimate, label, label)
    figures.kiel_diagram(tmp_path / "b.png", label)
    np.testing.assert_array_equal(label, copy)


def test_settings_of_matplotlib_are_those_of_before(tmp_path):
    before = dict(mpl.rcParams)
    figures.kiel_diagram(tmp_path / "a.png", types(5))
    assert dict(mpl.rcParams) == before


def test_figures_do_without_latex_whatever_others_set(tmp_path):
    with mpl.rc_context({"text.usetex": True}):
        figures.kiel_diagram(tmp_path / "kiel.png", np.ones((5, 3)))
    assert (tmp_path / "kiel.png").stat().st_size > 0


def test_no_figure_is_left_open(tmp_path):
    code = (
        "import sys, pathlib, numpy as np\nfrom pipeline import figures\n"
        "figures.kiel_diagram(pathlib.Path(sys.argv[1]), np.ones((5, 3)))\n"
        "assert 'matplotlib.pyplot' not in sys.modules, 'pyplot keeps figures'\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.png")], cwd=ROOT, check=True)
    assert (tmp_path / "a.png").exists()


def test_a_missing_folder_is_made_and_the_path_returned(tmp_path):
    path = figures.kiel_diagram(str(tmp_path / "new" / "a.png"), types(5))
    assert path == tmp_path / "new" / "a.png"
    assert path.is_file()


@pytest.mark.parametrize("stage", ["draw", "save", "sync", "rename"])
def test_a_failure_leaves_the_old_picture_and_nothing_else(tmp_path, monkeypatch, stage):
    path = tmp_path / "a.png"
    path.write_bytes(b"the old picture")

    def fail(*_args, **_options):
        raise OSError("disk full")

    def save_half(_figure, file, **_options):
        file.write(b"half")
        fail()

    target = {
        "draw": (accuracy, "_stars", fail),
        "save": (style.Figure, "savefig", save_half),
        "sync": (os, "fsync", fail),
        "rename": (os, "replace", fail),
    }[stage]
    monkeypatch.setattr(*target)
    with pytest.raises((OSError, WriteError), match="disk full"):
        figures.kiel_diagram(path, types(5))
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"the old picture"


@pytest.mark.parametrize(("draw", "message"), [
    (lambda p: figures.kiel_diagram(p, np.ones((5, 2))), r"theta has shape \(5, 2\)"),
    (lambda p: figures.inferred_against_label(p, types(5), types(4)), "estimate has shape"),
    (lambda p: figures.residuals_by_wavelength(p, WAVELENGTHS, np.ones((5, 61))), "ratio has"),
    (lambda p: figures.extinction_curve(p, WAVELENGTHS, XI + 0.5, curves()), "xi holds no 0"),
    (lambda p: figures.extinction_curve(p, WAVELENGTHS / 1000, XI, curves()), "must be in nm"),
    (lambda p: figures.extinction_laws(p, WAVELENGTHS, XI, curves(), {}, ("F99", "3.1")), "has no"),
    (lambda p: figures.scores_against(p, [1, 2], {("a", ""): {
        "scatter": np.ones((3, 3)), "pull_width": np.ones((2, 3))}}, "x"), "scatter of"),
    (lambda p: figures.outcomes(p, {"Stars": {"a": [0.5, 0.5]}}), "a has shape"),
    (lambda p: figures.reliability(p, {"Teff": [1.0]}, {"log g": [1]}), "give both the same"),
    (lambda p: figures.loss_history(p, [1, 2], {"training": [1.0]}), "series 'training' has"),
])  # fmt: skip
def test_arrays_that_do_not_fit_are_refused_before_a_file_appears(tmp_path, draw, message):
    with pytest.raises(ValueError, match=message):
        draw(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_offset_scatter_and_pull_width_shown_are_those_of_the_stars(drawn):
    label = types(50_000)
    noise = np.random.default_rng(5).normal(size=label.shape)
    estimate = label + [0.03, -0.02, 0.1] + noise * [0.05, 0.06, 0.1]
    estimate[:5] += 100
    half = np.sqrt(0.5) * np.array([0.05, 0.03, 0.2]) * np.ones_like(label)
    figures.inferred_against_label("unused", label, estimate, half, half)
    shown = [text for text in texts(drawn[0]) if text.startswith("offset")]
    expected = [(30, 50, 1.0), (-0.02, 0.06, 2.0), (0.1, 0.1, 0.5)]
    for text, numbers in zip(shown, expected, strict=True):
        lines = text.replace("−", "-").splitlines()
        values = [float(line.split()[1 if "pull" not in line else 2]) for line in lines[:3]]
        np.testing.assert_allclose(values, numbers, rtol=0.05)
        assert lines[3] == "50,000 stars"


def test_stars_outside_the_frame_are_counted(drawn):
    label = types(10_000)
    estimate = label.copy()
    estimate[:3] += 50
    figures.inferred_against_label("unused", label, estimate)
    top = drawn[0].axes[0]
    low, high = top.get_xlim()
    teff = 1000 * np.column_stack([label[:, 0], estimate[:, 0]])
    outside = int(((teff < low) | (teff > high)).any(axis=1).sum())
    assert outside >= 3
    assert f"{outside} outside" in texts(drawn[0])


def test_extinction_curves_are_1_at_550_nm_and_ratios_1_for_xi_0(drawn):
    figures.extinction_curve("unused", WAVELENGTHS, XI, curves() + XI[:, None])
    top, bottom = drawn[0].axes[:2]
    spectra = [line for line in top.lines if len(line.get_xdata()) == 61]
    assert len(spectra) == len(XI)
    for line in spectra:
        assert np.interp(0.55, line.get_xdata(), line.get_ydata()) == pytest.approx(1, rel=1e-3)
    assert any(np.all(line.get_ydata() == 1) for line in bottom.lines)
    points = [line for line in top.lines if len(line.get_xdata()) == 5]
    assert all(line.get_linestyle() == "None" for line in points)
    np.testing.assert_allclose(points[0].get_xdata(), WAVELENGTHS[N_XP:] / 1000)


def test_residuals_drawn_are_the_percentiles_of_the_used_fluxes(drawn):
    ratio = np.random.default_rng(6).normal(0.01, 0.02, (4000, 66))
    ratio[::2, 10] = np.nan
    figures.residuals_by_wavelength("unused", WAVELENGTHS, ratio)
    median = next(line for line in drawn[0].axes[0].lines if line.get_label() == "median")
    expected = 100 * np.nanmedian(ratio[:, :61], axis=0)
    np.testing.assert_allclose(median.get_ydata(), expected)


def test_tracks_of_one_teff_are_coloured_by_what_varies(drawn):
    theta = np.column_stack([np.full(5, 4.5), np.linspace(-2, 0, 5), np.full(5, 2.0)])
    flux = np.zeros((5, 66))
    figures.model_spectra("unused", WAVELENGTHS, {"a": (theta, flux), "b": (types(5), flux)})
    bars = [ax.get_xlabel() for ax in drawn[0].axes if "wavelength" not in ax.get_xlabel()]
    assert bars == ["[Fe/H] (dex)", r"$T_\mathrm{eff}$ (K)"]


def test_reliability_points_are_fractions_of_each_bin(drawn):
    predicted = np.array([0.05, 0.05, 0.55, 0.55, 0.55, 0.55, 1.0, np.nan, 1.5])
    correct = np.array([0, 0, 1, 1, 1, 0, 1, 1, 0], float)
    figures.reliability("unused", {"Teff": predicted}, {"Teff": correct})
    points = next(line for line in drawn[0].axes[0].lines if len(line.get_xdata()) == 3)
    np.testing.assert_allclose(points.get_xdata(), [0.05, 0.55, 1.0])
    np.testing.assert_allclose(points.get_ydata(), [0, 0.75, 1])


def test_positive_losses_over_decades_are_shown_in_log_and_negative_ones_are_not(drawn):
    epoch = np.arange(100.0)
    for loss in (1 + 100 * np.exp(-epoch), 1e6 * np.exp(-2 * epoch) - np.log(epoch + 1)):
        figures.loss_history("unused", epoch, {"training": loss})
    assert [figure.axes[0].get_yscale() for figure in drawn] == ["log", "linear"]
    assert drawn[1].axes[0].get_ylim()[1] < 10, "a wild start must not flatten the rest"


@pytest.mark.parametrize(("n", "p"), [(1, 0.5), (20, 0.05), (4000, 0.05), (200_000, 0.9)])
def test_binomial_interval_equals_scipys(n, p):
    low, high = stats.binom.ppf([0.025, 0.975], n, p)
    assert arrays.binomial_interval(n, p) == (low, high)


def test_wilson_interval_equals_scipys():
    for k, n in ((0, 5), (3, 7), (5, 5), (400, 1000)):
        expected = stats.binomtest(k, n).proportion_ci(stats.norm.cdf(1) * 2 - 1, "wilson")
        np.testing.assert_allclose(arrays.wilson_interval(k, n), expected, atol=1e-12)


def test_cases_share_colours_by_their_first_words_and_dashes_by_their_second(drawn):
    of = {"scatter": np.full((2, 3), 0.05), "pull_width": np.ones((2, 3))}
    cases = {(first, second): of for first in ("20%", "none") for second in ("2MASS", "without")}
    figures.scores_against("unused", [14, 17], cases, "G (mag)")
    lines = drawn[0].axes[0].lines
    assert [line.get_color() for line in lines] == [*style.CYCLE[:1] * 2, *style.CYCLE[1:2] * 2]
    assert [line.get_linestyle() for line in lines] == ["-", "--"] * 2
    np.testing.assert_allclose(lines[0].get_ydata(), 50)  # K
    legends = [ax.get_legend() for ax in drawn[0].axes[:4:2]]
    words = [[text.get_text() for text in legend.get_texts()] for legend in legends]
    assert words == [["20%", "none"], ["2MASS", "without"]]


def test_a_log_axis_has_a_tick_at_each_value(drawn):
    of = {"scatter": np.ones((3, 3)), "pull_width": np.ones((3, 3))}
    figures.scores_against("unused", [500, 1000, 16000], {("a", ""): of}, "stars", log_x=True)
    bottom = drawn[0].axes[1]
    assert bottom.get_xscale() == "log"
    np.testing.assert_array_equal(bottom.get_xticks(), [500, 1000, 16000])
    assert drawn[0].axes[2].get_legend() is None, "one kind of dashes needs no legend"


def test_bars_of_outcomes_add_up_and_have_their_numbers(drawn):
    groups = {"Stars": {"as they are": [0.9, 0.06, 0.04], "unknown": [np.nan] * 3}}
    figures.outcomes("unused", groups)
    ax = drawn[0].axes[0]
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches], [90, 6, 4])
    assert texts(drawn[0]) == ["Stars", "90", "6", "4.0"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["as they are", "unknown"]


def test_curves_and_laws_are_1_at_550_nm_and_the_reference_is_1_below(drawn):
    one = 7 * WAVELENGTHS**-1.2
    laws = {("one", "a"): one, ("other", "a"): np.where(WAVELENGTHS > 3e3, np.nan, one**2)}
    reference = ("one", "a")
    figures.extinction_laws("unused", WAVELENGTHS, XI[1:4], curves()[1:4], laws, reference)
    top, ratio, excess = drawn[0].axes
    spectra = [line for line in top.lines if len(line.get_xdata()) == 61]
    assert len(spectra) == 5
    for line in spectra:
        assert np.interp(0.55, line.get_xdata(), line.get_ydata()) == pytest.approx(1, rel=1e-3)
    np.testing.assert_allclose(ratio.lines[0].get_ydata(), 1)
    np.testing.assert_allclose(excess.lines[0].get_ydata(), 0, atol=1e-12)
    for line in excess.lines[::2]:
        at = np.interp([0.45, 0.55], line.get_xdata(), line.get_ydata())
        np.testing.assert_allclose(at, 0, atol=2e-3)


def test_a_grey_part_of_a_curve_does_not_change_its_colour_excess():
    curve = (WAVELENGTHS / 550) ** -1.5
    both = np.stack([curve, 0.7 * curve + 0.2])
    first, second = dust.colour_excesses(WAVELENGTHS[:N_XP], both)
    np.testing.assert_allclose(first, second)


# ---- labels and bands are data ---------------------------------------------------------------


def test_labels_are_shown_by_their_symbol_in_their_unit_times_their_scale(drawn):
    labels = LABEL_SETS[6]
    label = types(1000, labels)
    figures.inferred_against_label("unused", label, label + 0.5, labels=labels)
    tops = drawn[0].axes[::2]
    assert [ax.get_title() for ax in tops] == labels.texts("symbol")
    assert [ax.get_ylabel() for ax in tops][2:] == [
        "inferred (Gyr)", "inferred (K)", "inferred (dex)", "inferred"
    ]  # fmt: skip
    offsets = [text.splitlines()[0] for text in texts(drawn[0]) if text.startswith("offset")]
    assert offsets == [f"offset {x}" for x in (
        "0.500 dex", "0.500 dex", "0.5 Gyr", "500 K", "0.500 dex", "0.500")]  # fmt: skip


def test_no_panel_of_labels_is_narrower_than_a_third_of_the_figure(drawn):
    for n_labels, labels in LABEL_SETS.items():
        label = types(50, labels)
        figures.inferred_against_label("unused", label, label, labels=labels)
        columns = {ax.get_subplotspec().colspan.start for ax in drawn[-1].axes}
        assert len(drawn[-1].axes) == 2 * n_labels
        assert len(columns) <= 3


@pytest.mark.parametrize(("labels", "axes", "upside_down"), [
    (LABEL_SETS[6], ("teff", "logg", "feh"), True),
    (LABEL_SETS[2], ("teff", "logg"), True),
    (LabelSet((AGE, TEFF, FEH)), ("age", "teff", "feh"), False),
    (LabelSet((FEH, AGE)), ("feh", "age"), False),
])  # fmt: skip
def test_kiel_diagram_finds_its_axes_by_name(drawn, labels, axes, upside_down):
    theta = types(100, labels)
    figures.kiel_diagram("unused", theta, labels=labels)
    figure, ax = drawn[0], drawn[0].axes[0]
    known = {label.name: label for label in labels}
    shown = [figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()]
    shown += [bar.get_ylabel() for bar in figure.axes[1:]]
    assert len(shown) == len(axes)
    assert all(text.startswith(known[k].symbol) for text, k in zip(shown, axes, strict=True))
    scaled = theta * labels.array("scale")
    points = np.sort(np.asarray(ax.collections[0].get_offsets()), axis=0)
    expected = np.sort(scaled[:, [labels.place[k] for k in axes[:2]]], axis=0)
    np.testing.assert_allclose(points, expected)
    assert (ax.xaxis_inverted(), ax.yaxis_inverted()) == (upside_down, upside_down)


def test_pulls_have_one_panel_of_scatter_for_each_unit(drawn):
    labels = LABEL_SETS[6]
    rows = [group(f"group {i}", 100, 6) for i in range(3)]
    figures.pulls_in_bins("unused", rows, labels=labels)
    panels = {ax.get_xlabel(): ax for ax in drawn[0].axes}
    assert list(panels)[2:] == ["scatter (dex)", "scatter (Gyr)", "scatter (K)", "scatter"]
    teff = panels["scatter (K)"].lines[0].get_xdata()
    np.testing.assert_allclose(teff, 1000 * np.array([row["scatter"][3] for row in rows]))
    assert len(panels["scatter (dex)"].containers) == 3


def test_a_label_by_name_is_titled_by_its_symbol_in_reliability(drawn):
    figures.reliability("unused", {"logg": [0.5], "all": [0.5]}, {"logg": [1], "all": [0]})
    assert [ax.get_title() for ax in drawn[0].axes[::2]] == [LOGG.symbol, "all"]


def test_a_band_bluer_than_the_spectrum_is_a_point_where_the_spectrum_is_told(drawn):
    wavelengths = np.array([*WAVELENGTHS[:N_XP], 231.6, 1235.0])
    ln_curve = np.tile(-np.log(wavelengths), (len(XI), 1))
    ratio = np.zeros((10, N_XP + 2))
    figures.extinction_curve("unused", wavelengths, XI, ln_curve, n_xp=N_XP)
    figures.residuals_by_wavelength("unused", wavelengths, ratio, n_xp=N_XP)
    figures.model_spectra("unused", wavelengths, {"a": (types(10), ratio)}, n_xp=N_XP)
    for figure in drawn[::2]:
        line, points = figure.axes[0].lines[:2]
        assert (len(line.get_xdata()), len(points.get_xdata())) == (N_XP, 2)
        assert figure.axes[0].get_xlim()[0] < 0.2316
        assert texts(figure)[:2] == ["0.232", "$J$"]
    ticks = drawn[1].axes[1].get_xticklabels()
    assert [tick.get_text() for tick in ticks] == ["0.232", "$J$"]
    with pytest.raises(ValueError, match="n_xp is 64"):
        figures.residuals_by_wavelength("unused", wavelengths, ratio, n_xp=64)
