"""The pages say what is there: links lead somewhere, commands have the options they are given."""

import contextlib
import importlib.util
import io
import re
from functools import cache
from pathlib import Path

import pytest

from pipeline.schema import COSTS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path.relative_to(ROOT)
    for path in [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")]
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(r"python ((?:tools/)?\w+\.py)((?:[^\n`|#]|\\\n)*)")
OPTION = re.compile(r"(?<=\s)--[a-z][a-z-]*")


def anchors(text):
    """Of the headings of a page, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_of_a_page_lead_to_files_and_headings(page):
    text = (ROOT / page).read_text()
    for link in LINK.findall(text):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), f"{page}: {link}"
        assert not anchor or anchor in anchors(target.read_text()), f"{page}: {link}"


@cache
def help_of(script):
    """What `python SCRIPT --help` prints."""
    spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
        module.parse_args(["--help"])
    return out.getvalue()


def commands():
    """(script, options, where) of every command of the pages and of tables/costs.toml."""
    found = [(*cost.command.split(maxsplit=1), "tables/costs.toml") for cost in COSTS.values()]
    for page in PAGES:
        text = (ROOT / page).read_text()
        found += [(script, words, page) for script, words in COMMAND.findall(text)]
    return [(script, OPTION.findall(words), where) for script, words, where in found]


def test_commands_of_the_pages_have_options_that_the_scripts_know():
    assert len(commands()) > 40
    for script, options, where in commands():
        known = set(OPTION.findall(help_of(script))) if options else set()
        assert (ROOT / script).exists(), f"{where}: {script}"
        assert set(options) <= known, f"{where}: {script} {set(options) - known}"
