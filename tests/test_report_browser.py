"""The pages in a real headless Chromium: what sliders, buttons and the two colour schemes do."""

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from stagecost.report.page import write_comparison, write_report
from test_report import PIXEL, PRUNING, make_analysis, make_data, make_history

CHROMIUM = shutil.which("chromium")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")


@dataclass(frozen=True)
class Opened:
    """A page, what the browser complained of, and what it asked for."""

    page: Page
    complaints: list[str]
    requests: list[str]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    costs = {
        "macs": [1e6 * (k + 1) for k in range(17)],
        "latencies": [0.001 * (k + 1) for k in range(17)],
    }
    analysis = make_analysis(**costs, stage_starts=[0, 8])
    counts = [[9, 1], [0, 9]]
    exits = {
        "criterion": "margin",
        "depths": [2, 4],
        "leaving": [0.7, 0.3],
        "accuracy_full": 98.6,
        "accuracy_exit": 98.5,
        "mean_blocks": 2.6,
        "mean_macs_ratio": 0.2,
        "thresholds": [0.4],
        "timings": [
            {"batch_size": 1, "latency_ms_full": 2.0, "latency_ms_exit": 1.0, "ratio": 0.5},
            {"batch_size": 256, "latency_ms_full": 1.0, "latency_ms_exit": 0.4, "ratio": 0.4},
        ],
    }
    rich = make_data(
        analysis=analysis,
        history=make_history(12),
        pruning=PRUNING,
        confusion={"class_names": ["cat", "dog"], "counts": counts},
        newly_wrong=[{"thumbnail": PIXEL, "label": "cat", "answer": "dog"}],
        exits=exits,
        points=[
            {"series": series, "name": f"{k} blocks", "accuracy": 90.0 + k, "macs": 1e6 * k}
            for series in ("cuts", "early exits", "oracle", "trained at this depth")
            for k in (2, 4)
        ],
    )
    plain = make_data(run="plain", analysis=make_analysis(12, 9))
    write_report(rich, folder / "report.html")
    write_report(make_data(analysis=make_analysis(1000, 310), history=[]), folder / "deep.html")
    write_comparison([rich, plain], folder / "compare.html")
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture
def visit(browser: Browser, pages: dict[str, Path]) -> Iterator[Callable[..., Opened]]:
    contexts = []

    def open_page(name: str, *, width: int = 1280, **options: Any) -> Opened:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        opened = Opened(page, [], [])
        page.on("console", lambda message: opened.complaints.append(message.text))
        page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        page.on("request", lambda request: opened.requests.append(request.url))
        page.goto(pages[name].as_uri())
        if options.get("java_script_enabled", True):
            page.wait_for_selector("html[data-ready]")
        return opened

    yield open_page
    for context in contexts:
        context.close()


def text(page: Page, field: str) -> str:
    return (page.locator(f"[data-field={field}]").text_content() or "").replace("\xa0", " ")


def until(page: Page, condition: Callable[[], bool]) -> None:
    """Wait for something; the page's policy forbids Playwright's own way, which is `eval`."""
    for _ in range(200):
        if condition():
            return
        page.wait_for_timeout(50)
    raise AssertionError("waited in vain")


def drawn(page: Page, chart: str) -> str:
    """Return the SVG that is drawn live."""
    return page.locator(f"[data-chart={chart}] .live svg").evaluate("svg => svg.outerHTML")  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["report", "deep", "compare"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_figure_is_drawn_live_without_a_complaint(
    visit: Callable[..., Opened], name: str, width: int
) -> None:
    opened = visit(name, width=width)
    page = opened.page
    assert opened.complaints == []
    # Nothing is asked for but the page itself, and the images that are in it.
    assert [url for url in opened.requests if not url.startswith("data:")] == [page.url]
    figures = page.locator("[data-chart]").count()
    assert page.locator(".live svg").count() == figures >= 3
    assert page.evaluate("document.documentElement.scrollWidth") == width
    boxes = page.locator(".live svg").evaluate_all(
        "all => all.map(s => s.getBoundingClientRect().right)"
    )
    assert all(right <= width for right in boxes)


def test_the_depth_slider_moves_texts_blocks_figures_and_command(visit: Callable[..., Opened]) -> None:
    opened = visit("report")
    page, slider = opened.page, opened.page.locator("#depth-slider")
    assert text(page, "depth") == "4 of 16 blocks"
    before = drawn(page, "loss"), drawn(page, "accuracy")
    slider.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert text(page, "depth") == "7 of 16 blocks"
    assert text(page, "accuracy") == "98.59 %"
    assert text(page, "macs_share") == "47 % of the full network"
    assert text(page, "latency") == "8 ms"
    assert "--keep-blocks 7 --output small-7/" in text(page, "command")
    assert "7 blocks: accuracy" in (slider.get_attribute("aria-valuetext") or "")
    assert page.locator("[data-tool=depth] .strip i:not(.off)").count() == 7
    page.wait_for_timeout(100)
    assert drawn(page, "loss") != before[0]
    assert drawn(page, "accuracy") != before[1]
    assert opened.complaints == []


def test_the_command_is_copied(visit: Callable[..., Opened]) -> None:
    page = visit("report", permissions=["clipboard-read", "clipboard-write"]).page
    page.locator("#depth-slider").fill("9")
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == text(page, "command")
    assert "--keep-blocks 9" in text(page, "command")


def test_the_trajectory_is_played_over_the_epochs(visit: Callable[..., Opened]) -> None:
    opened = visit("report")
    page = opened.page
    assert text(page, "epoch") == "12"
    last = drawn(page, "development")
    page.get_by_role("button", name="Play").click()
    assert text(page, "epoch") == "1"
    assert "loss 2.30" not in text(page, "ends")
    page.wait_for_timeout(100)
    assert drawn(page, "development") != last
    until(page, lambda: int(text(page, "epoch")) >= 3)
    page.get_by_role("button", name="Pause").click()
    stopped = text(page, "epoch")
    page.wait_for_timeout(700)
    assert text(page, "epoch") == stopped != "12"
    page.get_by_role("button", name="Play").click()
    until(page, lambda: text(page, "epoch") == "12")
    page.get_by_role("button", name="Play").wait_for()
    assert drawn(page, "development") == last
    assert opened.complaints == []


def test_hovering_shows_values(visit: Callable[..., Opened]) -> None:
    page = visit("report").page
    box = page.locator("[data-chart=cost] .live svg").bounding_box()
    assert box is not None
    page.locator("[data-chart=cost]").scroll_into_view_if_needed()
    page.locator("[data-chart=cost] .live svg").hover(position={"x": box["width"] / 2, "y": 150})
    tip = page.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    shown = tip.inner_text()
    assert re.search(r"(cuts|early exits|trained at this depth)", shown)
    assert "blocks" in shown
    assert "MACs an image" in shown


def test_runs_are_compared_at_the_chosen_depth(visit: Callable[..., Opened]) -> None:
    opened = visit("compare")
    opened.page.locator("#depth-slider").fill("2")
    assert text(opened.page, "depth") == "2 blocks"
    assert text(opened.page, "accuracy-0") == text(opened.page, "accuracy-1") == "90.69 %"
    opened.page.locator("#depth-slider").fill("16")
    assert text(opened.page, "macs-0") == "17.0 M"
    assert opened.complaints == []


def test_without_scripts_everything_but_the_tools_is_there(visit: Callable[..., Opened]) -> None:
    page = visit("report", java_script_enabled=False).page
    stills = page.locator("[data-chart] > svg")
    assert stills.count() == 8
    for index in range(8):
        box = stills.nth(index).bounding_box()
        assert box is not None
        assert box["width"] > 300
        assert box["height"] > 150
    assert page.locator(".tool:visible").count() == 0
    assert page.get_by_text("stagecost evaluate small/ --split test").is_visible()
    assert page.get_by_role("img", name="Loss over depth").is_visible()


def test_early_exit_is_told_in_words_and_numbers(visit: Callable[..., Opened]) -> None:
    opened = visit("report")
    section = opened.page.locator("section", has=opened.page.get_by_role("heading", name="Early exit"))
    said = section.inner_text().replace("\xa0", " ")
    for words in ("its margin is that large: 0.400", "70 % at depth 2, 30 % at depth 4", "−0.10 points"):
        assert words in said
    assert re.search(r"batches of 256\s+1 ms\s+0.4 ms\s+40 %", said)
    assert "oracle" in drawn(opened.page, "cost")
    assert opened.complaints == []


def test_print_shows_the_still_figures_alone(visit: Callable[..., Opened]) -> None:
    page = visit("report").page
    page.emulate_media(media="print")
    assert page.locator(".live:visible").count() == 0
    assert page.locator("[data-chart] > svg").first.bounding_box()["width"] > 300  # type: ignore[index]
    assert page.locator(".tool:visible").count() == 0


def test_the_dark_scheme_is_dark_in_page_and_figures(visit: Callable[..., Opened]) -> None:
    def colours(scheme: str) -> list[int]:
        page = visit("report", color_scheme=scheme).page
        script = "(element, name) => getComputedStyle(element)[name]"
        label = page.locator("[data-chart=loss] .live text").first
        ground = page.locator("body").evaluate(script, "backgroundColor")
        return [sum(map(int, re.findall(r"\d+", c))) for c in (ground, label.evaluate(script, "fill"))]

    (light_ground, light_text), (dark_ground, dark_text) = colours("light"), colours("dark")
    assert light_ground > 700
    assert dark_ground < 100
    assert light_text < dark_text
