"""The page in a real browser: no error, no request, contrast, no sideways scrolling, print.

Chromium is the system's (Debian: `apt-get install chromium`), driven by playwright.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from boardfit.edge.bench.store import read_results
from boardfit.edge.report.page import render_page
from tests.edge.report.stored import PI5, records, stored
from tests.programs import find, require

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("chromium")]

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",  # CI runs as root in a container
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
HOSTILE = "<script>document.title='owned';fetch('http://127.0.0.1:9/')</script><img src=/x onerror=alert(1)>"  # noqa: E501
CARD = {"texts": [{"name": "held-out", "kld_mean": 0.012, "kld_mean_stderr": 0.001}]}

# WCAG 2.2, 1.4.3 and 1.4.11: text 4.5 to 1, large text and graphics 3 to 1.
CONTRAST = """() => {
  const parse = (text) => {
    const m = text.match(/rgba?\\(([^)]+)\\)/);
    if (!m) return null;
    const [r, g, b, a = 1] = m[1].split(/[ ,/]+/).map(Number);
    return {r, g, b, a};
  };
  const part = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (c) => 0.2126 * part(c.r) + 0.7152 * part(c.g) + 0.0722 * part(c.b);
  const over = (top, below) => ({
    r: top.r * top.a + below.r * (1 - top.a), g: top.g * top.a + below.g * (1 - top.a),
    b: top.b * top.a + below.b * (1 - top.a), a: 1});
  const paper = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c && c.a > 0) { layers.push(c); if (c.a === 1) break; }
    }
    let below = parse(getComputedStyle(document.body).backgroundColor);
    for (const layer of layers.reverse()) below = over(layer, below);
    return below;
  };
  const found = [];
  const judge = (element, colour, needed, what) => {
    const below = paper(element), c = parse(colour);
    if (!c || c.a === 0) return;
    const [a, b] = [light(over(c, below)), light(below)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    found.push({what, ratio, needed});
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement;
    if (!node.data.trim() || element.closest('title, desc, style')) continue;
    const style = getComputedStyle(element), size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const inChart = element.namespaceURI.endsWith('svg');
    const colour = inChart ? style.fill : style.color;
    judge(element, colour, large ? 3 : 4.5, node.data.trim().slice(0, 40));
  }
  for (const shape of document.querySelectorAll('svg path, svg use')) {
    const style = getComputedStyle(shape);
    const variable = shape.getAttribute('style') || '';
    if (/--s[1-5]/.test(variable)) {
      judge(shape, style.stroke !== 'none' ? style.stroke : style.fill, 3, variable.slice(0, 60));
    }
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next((found for name in BROWSERS if (found := find(name))), None)
    if path is None:
        require("chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        yield running
        running.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs: a plain one, one with hostile text everywhere, one with a quality card."""
    folder = tmp_path_factory.mktemp("page")
    hostile = records(
        name=HOSTILE, quant=HOSTILE, machine={**PI5, "model": HOSTILE}, time="2026-01-02T00:00:00"
    )
    hostile[0]["flags"] = [HOSTILE]
    path = stored(
        folder,
        records(time="2026-01-01T00:00:00"),
        hostile,
        records(engine="litert", quant="int4", time="2026-01-03T00:00:00", quality=CARD),
    )
    found = read_results([path])
    page = folder / "report.html"
    page.write_text(render_page(found.records, found.notes, 2.3))
    return page


class Visit:
    """An open page, and everything it did that it should not."""

    def __init__(self, browser: Any, file: Path, **context: Any) -> None:
        self.page = browser.new_context(**context).new_page()
        self.said: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())

    def evaluate(self, script: str) -> Any:
        return self.page.evaluate(script)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_error_no_request_and_enough_contrast(
    browser: Any, page_file: Path, scheme: str
) -> None:
    visit = Visit(browser, page_file, color_scheme=scheme)
    visit.evaluate("document.querySelectorAll('details').forEach((d) => d.open = true)")
    judged = visit.evaluate(CONTRAST)
    assert len(judged) > 300
    low = [found for found in judged if found["ratio"] < found["needed"]]
    assert not low, low[:10]
    assert visit.said == []
    assert visit.requests == [page_file.as_uri()]
    assert visit.page.title() != "owned"
    assert visit.evaluate("document.scripts.length + document.images.length") == 0
    paper = visit.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(15, 20, 25)"}[scheme]


@pytest.mark.parametrize("width", [360, 1440])
def test_nothing_scrolls_sideways(browser: Any, page_file: Path, width: int) -> None:
    visit = Visit(browser, page_file, viewport={"width": width, "height": 800})
    visit.evaluate("document.querySelectorAll('details').forEach((d) => d.open = true)")
    assert visit.evaluate("document.documentElement.scrollWidth") <= width
    sizes = visit.evaluate(
        "[...document.querySelectorAll('svg text')].map((t) =>"
        " t.getBoundingClientRect().height).filter((h) => h > 0)"
    )
    assert sizes and min(sizes) >= 9, "chart text stays readable on a phone"


def test_charts_have_alternatives(browser: Any, page_file: Path) -> None:
    """As the browser's accessibility tree sees them, and each with its table."""
    visit = Visit(browser, page_file)
    charts = visit.page.get_by_role("img").all()
    assert len(charts) == 3 * 7 + 2  # three runs, side by side, quality against size
    for chart in charts:
        name = chart.evaluate("(e) => e.querySelector('title').textContent")
        words = chart.evaluate("(e) => e.querySelector('desc').textContent")
        assert name and len(words) > 30
        rows = chart.evaluate(
            "(e) => e.closest('figure').querySelectorAll('details tbody tr').length"
        )
        assert rows > 0, name
    assert visit.page.get_by_role("main").count() == 1
    assert visit.evaluate("document.documentElement.lang") == "en"


def test_it_prints_on_white_paper(browser: Any, page_file: Path) -> None:
    visit = Visit(browser, page_file, color_scheme="dark")
    visit.page.emulate_media(media="print")
    assert visit.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert visit.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    low = [found for found in visit.evaluate(CONTRAST) if found["ratio"] < found["needed"]]
    assert not low, low[:10]
    assert visit.page.pdf(format="A4")[:5] == b"%PDF-"
