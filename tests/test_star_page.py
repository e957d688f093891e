"""A star's page: nothing overlaps whatever the star, numbers shown are the catalogue's, and the
model's spectrum is the one that step 10 fitted."""

from itertools import combinations

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import FigureBase
from matplotlib.legend import Legend
from star_page_case import (
    N_BANDS,
    RELEASE,
    SOURCE_ID,
    all_bits,
    catalogue_row,
    page,
    page_without_parameters,
    posterior,
    spectrum,
    without,
)

from pipeline import figures
from pipeline.figures import star_posterior, star_text, style
from pipeline.schema import DEFAULT_LABELS, KNOWN_LABELS, Label, LabelSet, flags
from pipeline.schema.labels import parse_label

TEFF, FEH, LOGG = DEFAULT_LABELS
ALPHA = KNOWN_LABELS["alpha_m"]
AGE = Label("age", "age", "Gyr", tolerance=2.0, digits=1)
LABEL_SETS = {
    "two": LabelSet((TEFF, LOGG)),
    "usual": DEFAULT_LABELS,
    "four": LabelSet((*DEFAULT_LABELS, ALPHA)),
    "direct": LabelSet((*DEFAULT_LABELS, parse_label("alpha_m:direct"))),
    "no type": LabelSet((AGE, Label("vsini", "vsini", "km/s", 5.0), FEH)),
    "six": LabelSet((FEH, LOGG, AGE, TEFF, ALPHA, Label("x", "a title without a symbol", "", 1.0))),
}
XP = spectrum().n_xp
NO_XP, NO_BANDS = np.arange(XP), np.arange(XP, XP + N_BANDS)
REASONS = ["no match", "fracflux 0.123", "norm_dg −12.3", "sep_arcsec 0.24", "not measured"]
UNUSED = {"reasons": REASONS, "unused": np.array([np.nan, 30.0, 12.0, 3.0, np.nan])}


def all_flags(labels):
    quality = all_bits(flags.quality_flag(labels))
    return {"quality_flags": quality, "input_flags": all_bits(flags.InputFlag)}


def nothing_known(labels):
    """A page of a star of which nothing was observed."""
    fields = without({"fine": np.full(spectrum().fine.shape, np.nan)}, np.arange(XP + N_BANDS))
    return page_without_parameters(labels, fields | {"reasons": ["no match"] * N_BANDS})


def second_mode(labels):
    row = catalogue_row(labels)
    away = row["stellar_params_est"] + 40 * row["stellar_params_err"]
    return {"second_params_est": away, "second_delta_ln_post": -3.21}


def wild(labels):
    """Numbers of absurd size, and errors to match."""
    row, out = catalogue_row(labels), {}
    for name in ("stellar_params_est", "model_params_est", "stellar_params_err"):
        out[name] = 1e3 * row[name]
    out["stellar_params_cov_triu"] = 1e6 * row["stellar_params_cov_triu"]
    return out | {"chi2_opt": 1.23e9, "n_flux": 66, "ln_prior": -1234.5, "ra": 12.3, "plx": -987.65}


def scaled(factor, **changes):
    """Fields of `spectrum`, all fluxes times a factor."""
    star = spectrum()
    names = ("flux", "flux_err", "model", "fine")
    return {name: factor * getattr(star, name) for name in names} | changes


PAGES = {
    "no BP, parallax elsewhere": lambda labels: page(
        labels, without({}, np.arange(25)), plx=9.87, plx_err=0.01
    ),
    "no photometry, no parallax": lambda labels: page(
        labels, without(UNUSED, NO_BANDS), plx=np.nan, plx_err=np.nan
    ),
    "bright, of a release without a finer spectrum": lambda labels: page(
        labels, scaled(1e7, fine=np.empty(0), fine_wavelengths=np.empty(0))
    ),
    "faint and negative": lambda labels: page(labels, scaled(1e-6, flux=-1e-6 * spectrum().flux)),
    "wild": lambda labels: page(labels, {"residual": np.full(XP + N_BANDS, 1e5)}, **wild(labels)),
    "no parameters, all flags": lambda labels: page_without_parameters(labels, UNUSED),
    "only photometry": lambda labels: page_without_parameters(
        labels, without({"fine": np.full(spectrum().fine.shape, np.nan)}, NO_XP)
    ),
    "nothing": nothing_known,
}


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Small pictures: most of the time goes into their pixels."""
    for name in ("figure.dpi", "savefig.dpi"):
        monkeypatch.setitem(style.STYLE, name, 54)


@pytest.fixture
def drawn(monkeypatch):
    """The pages drawn, laid out but not saved."""
    kept = []

    def keep(figure, path):
        figure.canvas.draw()
        kept.append(figure)

    monkeypatch.setattr(style, "save", keep)
    return kept


def shown_texts(figure):
    """[(words, box in inches)] of all texts that are to be seen."""
    renderer = figure.canvas.get_renderer()
    texts = [text for part in figure.findobj(FigureBase) for text in part.texts]
    for legend in figure.findobj(Legend):
        texts += legend.get_texts()
    for ax in figure.findobj(mpl.axes.Axes):
        texts += [*ax.texts, ax.title]
        for axis in (ax.xaxis, ax.yaxis):
            texts += [axis.label, axis.get_offset_text(), *tick_labels(axis)]
    seen = [text for text in texts if text.get_visible() and text.get_text().strip()]
    return [(t.get_text(), t.get_window_extent(renderer).extents / figure.dpi) for t in seen]


def tick_labels(axis):
    """The texts of the ticks between the ends of an axis."""
    low, high = sorted(axis.get_view_interval())
    margin = 1e-9 * (high - low)
    ticks = [t for t in axis.get_major_ticks() if low - margin <= t.get_loc() <= high + margin]
    return [tick.label1 for tick in ticks]


def overlapping(figure, slack=0.015):
    texts = shown_texts(figure)
    return [
        (first, second)
        for (first, a), (second, b) in combinations(texts, 2)
        if min(a[2], b[2]) - max(a[0], b[0]) > slack and min(a[3], b[3]) - max(a[1], b[1]) > slack
    ]


def beyond_the_page(figure):
    width, height = figure.get_size_inches()
    return [
        words
        for words, (x0, y0, x1, y1) in shown_texts(figure)
        if x0 < 0 or y0 < 0 or x1 > width or y1 > height
    ]


def assert_readable(figure):
    assert overlapping(figure) == []
    assert beyond_the_page(figure) == []
    for ax in figure.findobj(mpl.axes.Axes):
        drawn = any(np.isfinite(line.get_ydata()).any() for line in ax.lines)
        assert drawn or ax.texts, "an empty panel"


def words(figure):
    return [text for text, _ in shown_texts(figure)]


# ---- the page --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", PAGES)
def test_no_text_overlaps_or_leaves_the_page_and_no_panel_is_empty_whatever_the_star(drawn, name):
    figures.star_page("unused", PAGES[name](LABEL_SETS["direct"]))
    assert_readable(drawn[0])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["two", "direct", "no type", "six"])
def test_no_text_overlaps_or_leaves_the_page_and_no_panel_is_empty_whatever_the_labels(drawn, name):
    labels = LABEL_SETS[name]
    changes = all_flags(labels) | second_mode(labels)
    figures.star_page("unused", page(labels, UNUSED, **changes))
    assert_readable(drawn[0])
    shown = "\n".join(words(drawn[0]))
    for bits in (flags.quality_flag(labels), flags.InputFlag):
        for flag in bits:
            assert f"{flag.name} ({flag.value})" in shown
            assert flag.text.split()[-1] in shown


def test_the_numbers_of_the_page_are_those_of_the_catalogue(drawn):
    labels = LABEL_SETS["direct"]
    est = {"alpha_m_est": 0.123, "alpha_m_err": 0.0321, "alpha_m_confidence": 0.456}
    one = page(labels, **second_mode(labels), **est)
    one.row["stellar_params_est"][:3] = 4.3217, -0.1234, 2.3456
    one.row["stellar_params_err"][:3] = 0.0312, 0.0456, 0.1
    figures.star_page("unused", one)
    shown = words(drawn[0])
    for text in (
        f"Gaia DR3 {SOURCE_ID}", "4322 ± 31", "−0.123 ± 0.046", "2.35 ± 0.10", "0.123 ± 0.032",
        "0.46", "χ² 61.2, 66 fluxes", "second mode Δ ln p −3.2", "distance 1199 ± 19 pc",
    ):  # fmt: skip
        assert text in shown, text
    g = RELEASE.g_zero_point - 2.5 * np.log10(12345.6)
    assert any(f"G\xa0{g:.2f}\xa0mag" in text for text in shown)
    assert any("observed\xa0parallax\xa00.820\xa0±\xa00.030\xa0mas" in text for text in shown)


@pytest.mark.parametrize(("value", "err", "text"), [
    (4812.4, 38.2, "4812 ± 38"), (-0.0312, 0.0456, "−0.031 ± 0.046"), (1.5, np.nan, "1.500"),
    (np.nan, 0.1, ""), (-1e-9, 0.1, "0.00 ± 0.10"), (123456.0, 4321.0, "123456 ± 4321"),
])  # fmt: skip
def test_a_number_has_as_many_digits_as_two_of_its_error(value, err, text):
    assert star_text.with_error(value, err) == text


def test_ellipses_are_the_contours_of_the_covariance():
    rng = np.random.default_rng(0)
    for _ in range(5):
        mixed = rng.normal(size=(2, 2))
        cov, centre = mixed @ mixed.T, rng.normal(size=2)
        for n_sigma in (1, 2):
            patch = star_posterior._ellipse(centre, cov, n_sigma, "white")
            off = patch.get_patch_transform().transform(patch.get_path().vertices) - centre
            distance = np.einsum("ni,ij,nj->n", off, np.linalg.inv(cov), off)
            on_it = distance[::3]  # of a Bezier curve: others are its control points
            np.testing.assert_allclose(np.sqrt(on_it), n_sigma, rtol=1e-6)


def test_contours_hold_the_shares_of_the_training_stars():
    rng, ax = np.random.default_rng(1), mpl.figure.Figure().subplots()
    weights, means = np.array([0.7, 0.3]), np.array([[5.0, 9.0, 4.0], [4.0, 9.0, 2.0]])
    covs = np.array([np.diag([0.1, 1, 0.2]), np.diag([0.05, 1, 0.4])])
    star_posterior._contours(ax, (weights, means, covs), [0, 2])
    which = (rng.random(4000) < weights[1]).astype(int)
    noise = np.sqrt(np.diagonal(covs, axis1=1, axis2=2))[which] * rng.normal(size=(4000, 3))
    points = (means[which] + noise)[:, [0, 2]]
    rings = [path.contains_points(points) for path in ax.collections[0].get_paths()]
    within = np.logical_or.accumulate(rings[::-1])[::-1]  # the innermost ring is the last
    np.testing.assert_allclose(within.mean(1), star_posterior.SHARES, atol=0.02)


@pytest.mark.parametrize(("name", "pairs"), [
    ("usual", [("teff", "logg"), ("teff", "feh"), ("teff", "E"), ("logg", "parallax")]),
    ("two", [("teff", "logg"), ("teff", "E"), ("logg", "parallax"), ("E", "parallax")]),
    ("direct", [("teff", "logg"), ("teff", "feh"), ("teff", "E"), ("logg", "parallax")]),
    ("no type", [("age", "vsini"), ("age", "feh"), ("age", "E"), ("vsini", "parallax")]),
])  # fmt: skip
def test_pairs_that_matter_are_shown_an_even_number_of_them(name, pairs):
    assert star_posterior.shown_pairs(LABEL_SETS[name]) == pairs
    assert len(star_posterior.shown_pairs(LABEL_SETS["six"])) == star_posterior.MOST_PAIRS


def test_residuals_beyond_the_frame_are_at_its_edge(drawn):
    residual = np.zeros(XP + N_BANDS)
    residual[[3, 20, XP]] = 40.0, -50.0, 1e3
    figures.star_page("unused", page(DEFAULT_LABELS, {"residual": residual}))
    panel = next(ax for ax in drawn[0].findobj(mpl.axes.Axes) if "residual" in ax.get_ylabel())
    at = {line.get_marker(): line.get_ydata() for line in panel.lines}
    low, high = panel.get_ylim()
    assert list(at["^"]) == [6.0]
    assert list(at["v"]) == [-6.0]
    assert low < -6 < 6 < high


@pytest.mark.parametrize("ending", ["png", "pdf"])
def test_a_page_is_of_the_format_of_its_name(tmp_path, ending):
    path = figures.star_page(tmp_path / f"star.{ending}", nothing_known(DEFAULT_LABELS))
    assert path.read_bytes().startswith({"png": b"\x89PNG", "pdf": b"%PDF"}[ending])


def test_arrays_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="flux_err has shape"):
        spectrum(flux_err=np.ones(3))
    row = catalogue_row(DEFAULT_LABELS, model_params_est=np.ones(5))
    with pytest.raises(ValueError, match="model_est has shape"):
        posterior(DEFAULT_LABELS, row)
