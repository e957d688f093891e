"""The page in a real browser: it loads from disk alone, and can be read on any screen."""

import pytest
from report_case import page_of, write_all, write_model
from services.browser import Browser, CannotServeError

pytestmark = pytest.mark.browser

SCREENS = [(width, scheme) for width in (1280, 400) for scheme in ("light", "dark")]
LONG = "x" * 300  # a word that no line can hold
LEAST_CONTRAST = 4.5  # WCAG 2.2, 1.4.3, of text
# Text of the page with the colours that it is seen in: [[words, tag, contrast]].
CONTRASTS = """() => {
  const rgba = text => {
    const n = text.match(/[\\d.]+/g).map(Number);
    return n.length < 4 ? [...n, 1] : n;
  };
  const over = (top, below) => [0, 1, 2].map(i => top[3] * top[i] + (1 - top[3]) * below[i]);
  const ground = node => {
    if (!node) return [255, 255, 255];
    const own = rgba(getComputedStyle(node).backgroundColor);
    return own[3] === 1 ? own.slice(0, 3) : over(own, ground(node.parentElement));
  };
  const luminance = colour => {
    const [r, g, b] = colour.map(c => c / 255)
      .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const out = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement, words = walker.currentNode.data.trim();
    if (!words) continue;
    const behind = ground(node);
    const text = over(rgba(getComputedStyle(node).color), behind);
    const [a, b] = [luminance(text), luminance(behind)].sort((x, y) => y - x);
    out.push([words.slice(0, 40), node.tagName, (a + 0.05) / (b + 0.05)]);
  }
  return out;
}"""
# What sticks out of the page, boxes that scroll left aside: [tag, right end].
STICKING_OUT = """() => [...document.body.querySelectorAll('*')]
  .filter(node => !node.closest('.scroll') || node.classList.contains('scroll'))
  .map(node => [node.tagName + '.' + node.className, node.getBoundingClientRect().right])
  .filter(([, right]) => right > document.documentElement.clientWidth + 0.5)"""


BOXES = """() => [...document.querySelectorAll('.scroll')]
  .map(box => [box.scrollWidth, box.clientWidth, getComputedStyle(box).overflowX])"""
SMALLEST = """() => Math.min(
  ...[...document.body.querySelectorAll('p, li, td, th, dt, dd, code, figcaption')]
    .map(node => parseFloat(getComputedStyle(node).fontSize)))"""


@pytest.fixture(scope="module")
def browser():
    try:
        one = Browser()
    except CannotServeError as error:
        pytest.skip(str(error))
    yield one
    one.stop()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """{what it is: a page}: on a catalogue and its model, on a model, on nothing but long words."""
    folder = tmp_path_factory.mktemp("pages")
    data_dir, model, _, _ = write_all(folder)
    places = {name: folder / f"{name}.html" for name in ("catalogue", "model", "odd")}
    page_of(places["catalogue"], data_dir, model)
    page_of(places["model"], None, model)
    hostile = f'"><script>document.title="obeyed"</script><img src="http://e.org/{LONG}">{LONG}'
    odd = folder / ("odd<b>" + LONG[:150])
    write_model(odd, scale=hostile, command_line=hostile, version=hostile, pictures=False)
    (odd / "README.md").write_text(hostile * 20)
    page_of(places["odd"], data_dir, odd)
    return places


@pytest.mark.parametrize("which", ["catalogue", "model", "odd"])
@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_the_page_loads_from_disk_alone_and_the_console_is_silent(
    which, width, scheme, browser, pages
):
    with browser.opened(pages[which], width, scheme) as (page, asked, said):
        page.wait_for_timeout(100)
        sizes = page.evaluate("() => [...document.images].map(i => [i.complete, i.naturalWidth])")
        title = page.title()
    assert asked == []
    assert said == []
    assert all(complete and wide > 0 for complete, wide in sizes)
    assert len(sizes) >= {"catalogue": 12, "model": 9, "odd": 3}[which]
    assert title.startswith("The model" if which == "model" else "The catalogue")


@pytest.mark.parametrize("which", ["catalogue", "model", "odd"])
@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_sticks_out_of_the_page_and_wide_tables_scroll_in_their_own_box(
    which, width, browser, pages
):
    with browser.opened(pages[which], width) as (page, _, _):
        across = page.evaluate("() => document.documentElement.scrollWidth")
        out = page.evaluate(STICKING_OUT)
        boxes = page.evaluate(BOXES)
    assert across <= width
    assert out == []
    assert {style for *_, style in boxes} == {"auto"}
    if width == 400:
        assert any(content > box for content, box, _ in boxes)


@pytest.mark.parametrize("which", ["catalogue", "model", "odd"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(which, scheme, browser, pages):
    with browser.opened(pages[which], scheme=scheme) as (page, _, _):
        found = page.evaluate(CONTRASTS)
        ground = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert {"H1", "H2", "P", "TD", "TH", "A", "CODE", "SUMMARY"} <= {tag for _, tag, _ in found}
    poor = [one for one in found if one[2] < LEAST_CONTRAST]
    assert poor == []
    shades = [int(n) for n in ground[4:-1].split(",")]
    assert (max(shades) < 80) == (scheme == "dark")


@pytest.mark.parametrize("which", ["catalogue", "model", "odd"])
def test_ids_are_unique_and_every_link_of_the_contents_leads_somewhere(which, browser, pages):
    with browser.opened(pages[which]) as (page, _, _):
        ids = page.evaluate("() => [...document.querySelectorAll('[id]')].map(n => n.id)")
        links = page.evaluate("() => [...document.links].map(a => a.getAttribute('href'))")
        for link in links:
            page.click(f"a[href='{link}'] >> nth=0")
            top = page.evaluate(
                f"() => document.querySelector('{link}').getBoundingClientRect().top"
            )
            height = page.evaluate("() => document.documentElement.scrollHeight - scrollY")
            assert abs(top) < 2 or height <= 900 + 2  # at the top, or the page ends here
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links} == set(ids)


def test_text_is_large_enough_on_a_small_screen(browser, pages):
    with browser.opened(pages["catalogue"], 400) as (page, _, _):
        smallest = page.evaluate(SMALLEST)
    assert smallest >= 11


def test_figures_keep_a_size_at_which_their_text_can_be_read(browser, pages):
    shown = "() => [...document.images].map(image => image.getBoundingClientRect().width)"
    for width in (1280, 400):
        with browser.opened(pages["catalogue"], width) as (page, _, _):
            assert min(page.evaluate(shown)) >= 600


def test_what_is_within_limits_is_folded_away_and_opens(browser, pages):
    with browser.opened(pages["catalogue"]) as (page, _, _):
        table = page.locator("details table").first
        assert not table.is_visible()
        page.click("summary >> nth=0")
        assert table.is_visible()


def test_the_browser_of_these_tests_notes_what_it_should(browser, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text("<img src='http://example.org/x.png'><script>console.error('loud')</script>")
    with browser.opened(bad) as (page, asked, said):
        page.wait_for_timeout(100)
    assert asked == ["http://example.org/x.png"]
    assert any("loud" in line for line in said)
