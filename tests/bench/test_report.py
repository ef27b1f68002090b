"""The page: what it holds, and in headless Chromium what it does."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from zoo.bench import plot, report
from zoo.bench.compare import Ranking
from zoo.bench.run import bench

spec = importlib.util.spec_from_file_location("bench_browser", Path(__file__).with_name("browser.py"))
assert spec is not None
assert spec.loader is not None
browser = importlib.util.module_from_spec(spec)
spec.loader.exec_module(browser)


@pytest.fixture
def page(make_weights: Any, make_dataset: Any, tmp_path: Path) -> Path:
    weights = [make_weights("good"), make_weights("blind", level=0.05), make_weights("third", level=0.4)]
    datasets = [make_dataset(), make_dataset("broken-others", picture=True)]
    results = bench(weights, datasets, tmp_path / "out", robustness=["blur"])
    assert results.failures
    return results.out / "report.html"


def test_the_page_needs_nothing_from_outside(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", text)
    assert "http" not in re.sub(r"data:image/jpeg;base64,[^\"]*", "", text).replace("http://www.w3.org", "")
    cases = json.loads(re.search(r'id="cases">(.*?)</script>', text).group(1))  # type: ignore[union-attr]
    stored = json.loads(re.search(r'id="pictures">(.*?)</script>', text).group(1))  # type: ignore[union-attr]
    shown = set(re.findall(r'data-file="([^"]+)"', text))
    every = {file for row in cases for case in row["cases"] for file in case["pictures"].values()}
    assert every == shown | set(stored)
    assert not shown & set(stored)
    assert [len(row["cases"]) for row in cases][:2] == [8, 8]


def test_a_page_without_room_keeps_to_what_it_shows(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "ROOM", 0)
    empty = report._pictures(_Results(page), "")
    assert empty == {}


class _Results:
    """As much of results as the pictures need."""

    def __init__(self, page: Path) -> None:
        self.out = page.parent
        files = sorted((page.parent / "pictures").rglob("*.jpg"))
        name = str(files[0].relative_to(page.parent))
        case = type("Case", (), {"pictures": {"image": name}})()
        self.rows = [type("Row", (), {"cases": [case]})()]


def test_in_a_browser_it_sorts_filters_and_opens_images(page: Path, tmp_path: Path) -> None:
    if missing := browser.missing():
        pytest.skip(f"{missing} not installed (Debian: apt-get install chromium chromium-driver)")
    with browser.Browser(tmp_path) as chromium:
        chromium.open(page)
        run = chromium.run
        assert run("return document.documentElement.classList.contains('live')")
        column = "[...document.querySelectorAll('section[data-name] table.sortable tbody')][0]"
        names = f"return [...{column}.rows].map(r => r.cells[0].textContent)"
        head = "document.querySelector('section[data-name] table.sortable thead th:nth-child(2)')"
        before = run(names)
        run(f"{head}.click()")
        best_first = run(names)
        run(f"{head}.click()")
        worst_first = run(names)
        values = f"return [...{column}.rows].map(r => Number(r.cells[1].dataset.value))"
        assert sorted(run(values)) == run(values)
        assert set(best_first) == set(before)
        assert best_first != worst_first
        assert run(f"return {head}.getAttribute('aria-sort')") == "ascending"

        typed = "const f = document.getElementById('filter'); f.value = '{}'; f.dispatchEvent(new Event('input'));"
        visible = "return [...document.querySelectorAll('section[data-name]')].filter(s => !s.hidden).length"
        assert run(visible) == 2
        run(typed.format("others blind"))
        assert run(visible) == 1
        assert run("return [...document.querySelectorAll('tr[data-search=good]')].every(r => r.offsetParent === null)")
        run(typed.format("no such thing"))
        assert run(visible) == 0
        run(typed.format(""))
        assert run(visible) == 2

        run("const m = document.getElementById('metric'); m.value = 'hd95'; m.dispatchEvent(new Event('change'));")
        shown = run("return document.querySelector('#overview td .value').textContent")
        assert re.fullmatch(r"\d+\.\d", shown)

        shown = "return [...document.querySelectorAll('.case img')].filter(i => !i.src).length"
        assert run(shown) == 0  # a picture that several rows share is held once, and shown by each

        run("document.querySelector('.case').click()")
        assert run("return document.getElementById('viewer').open")
        pictures = (
            "return [...document.querySelectorAll('#viewer .row img')].map(i => i.complete && i.naturalWidth > 0)"
        )
        captions = "return [...document.querySelectorAll('#viewer figcaption')].map(c => c.textContent)"
        assert run(captions) == ["image", "truth", "prediction"]
        title = "return document.querySelector('#viewer h2').textContent"
        first = run(title)
        run("document.querySelector('#viewer .next').click()")
        assert run(title) != first
        run("return new Promise(done => setTimeout(done, 200))")
        assert run(pictures) == [True, True, True]
        run("document.querySelector('#viewer .close').click()")
        run("document.querySelector('circle[data-row]').dispatchEvent(new MouseEvent('click', {bubbles: true}))")
        assert run("return document.getElementById('viewer').open")
        chromium.picture(tmp_path / "viewer.png")
        assert (tmp_path / "viewer.png").stat().st_size > 10_000


def test_ranks_are_drawn_with_what_is_not_told_apart() -> None:
    svg = plot.ranks(Ranking(("a", "b", "c"), (1.2, 1.9, 2.9), 0.9, 0.01, 12, ((0, 1),)))
    assert svg.count('class="alike"') == 1
    assert "critical difference 0.90" in svg
    for name in ("a 1.20", "b 1.90", "c 2.90"):
        assert name in svg
