"""The site made of docs/: it has every page, its links lead somewhere, and a browser finds words and shows formulas."""

import functools
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from docs.pictures.page import CHROMIUM, Browser, browser

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """A page without its code."""
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """What a link into a page can name: its headings, lower case, without marks, with dashes."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-") for heading in plain}


def test_every_page_is_in_the_sites_table_of_contents_and_on_its_first_page() -> None:
    listed = re.findall(r"^ +- (\w+\.md)\b", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(["notebook.md", *(page.name for page in PAGES)]), "a page is missing in mkdocs.yml"
    linked = set(re.findall(r"\]\((\w+\.md)", (ROOT / "docs" / "index.md").read_text()))
    assert {page.name for page in PAGES} - {"index.md"} == linked, "a page is missing in docs/index.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_begins_with_what_its_reader_can_do_after_it(page: Path) -> None:
    title, after = page.read_text(encoding="utf-8").split("\n\n")[:2]
    assert title.startswith("# ")
    assert re.match(r"(After|With) this page you ", after)


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_links_to_headings_lead_to_headings(page: Path) -> None:
    for name, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", prose(page)):
        target = page.parent / name if name else page
        assert anchor in anchors(target), f"{page.name} links to {name}#{anchor}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make site` builds it."""
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.mark.slow
def test_the_site_builds_without_warnings_and_asks_for_nothing_from_elsewhere(site: Path) -> None:
    for page in PAGES:
        name = "index.html" if page.name == "index.md" else f"{page.stem}/index.html"
        text = (site / name).read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|iframe)[^>]* src=\"?(\S+?)[\">]", text)
        fetched += re.findall(r"<link[^>]* rel=\"?stylesheet\"?[^>]* href=\"?(\S+?)[\">]", text)
        assert [address for address in fetched if "//" in address] == []
        assert "arithmatex" not in text, f"{page.name} has formulas that are not MathML"
    notebook = (site / "notebook" / "index.html").read_text(encoding="utf-8")
    assert notebook.count("data:image/png;base64,") >= 3


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """Where the site is served."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(SimpleHTTPRequestHandler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def chromium(tmp_path: Path) -> Iterator[Browser]:
    with browser(tmp_path / "profile") as running:
        yield running


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_browser_finds_words_and_shows_formulas(address: str, chromium: Browser) -> None:
    chromium.open(f"{address}?q=autoguidance")
    chromium.until("document.querySelectorAll('.md-search-result__link').length > 0")
    found = "[...document.querySelectorAll('.md-search-result__link')].map(link => link.href).join(' ')"
    assert "guidance/" in chromium.evaluate(found)
    chromium.open(f"{address}samplers/")
    chromium.until("document.querySelectorAll('math mfrac').length > 1")
    sizes = "[...document.querySelectorAll('math mfrac')].map(part => part.getBoundingClientRect().height)"
    assert min(chromium.evaluate(sizes)) > 15  # a line of text above another
