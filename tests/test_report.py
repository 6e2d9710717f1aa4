import errno
import math
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecost.report import plots
from stagecost.report.content import ReportData
from stagecost.report.page import render_report, write_report

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """A parsed page: its tags with their attributes, its text, and whether all tags are closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.skipping = 0
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in {"td", "th", "dt", "dd", "p"}:
            self.text += " "
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def make_analysis(num_blocks: int = 16, needed: int = 4, **changes: Any) -> dict[str, Any]:
    depths = range(num_blocks + 1)
    analysis = {
        "num_blocks": num_blocks,
        "split": "validation",
        "losses": [2.3 * 0.4**k + 0.02 for k in depths],
        "accuracies": [98.61 - 88.0 * 0.3**k for k in depths],
        "residual_ratios": [1.4 / (k + 1) for k in range(num_blocks)],
        "weight_norms": [5.0 - 3.0 * k / num_blocks for k in range(num_blocks)],
        "tolerance": 0.5,
        "needed_blocks": needed,
        "stage_starts": [0],
    }
    return analysis | changes


def make_history(epochs: int = 3, num_blocks: int = 16, *, validation: bool = True) -> list[Any]:
    def measured(value: Any) -> Any:
        return value if validation else None

    return [
        {
            "epoch": epoch,
            "seconds": 1.5,
            "learning_rate": 0.1 / epoch,
            "train_objective": 3.0 / epoch,
            "train_loss": 2.0 / epoch,
            "val_loss": measured(2.2 / epoch),
            "val_accuracy": measured(100 - 50 / epoch),
            "val_losses": measured([2.3 / (epoch + k) for k in range(num_blocks + 1)]),
            "val_accuracies": measured([100 - 50 / (epoch + k) for k in range(num_blocks + 1)]),
        }
        for epoch in range(1, epochs + 1)
    ]


PRUNING = {
    "kept_blocks": [0, 1, 2, 3],
    "accuracy_before": 98.61,
    "accuracy_predicted": 98.2,
    "accuracy_after": 98.2,
    "parameters_before": 76842,
    "parameters_after": 12345,
    "macs_before": 4_121_600,
    "macs_after": 1_098_240,
    "path": "small/",
}
TEST = [
    {
        "name": "pruned network",
        "num_blocks": 4,
        "accuracy": 97.9,
        "loss": 0.08,
        "parameters": 12345,
        "macs": 1_098_240,
    },
    {"name": "plainly trained", "accuracy": None, "loss": math.nan},
]


def make_data(**changes: Any) -> ReportData:
    fields: dict[str, Any] = {
        "run": "runs/digits-16",
        "settings": {"data": "digits", "gamma": 0.1, "model": {"num_blocks": 16, "width": [8, 16]}},
        "analysis": make_analysis(),
        "history": make_history(),
        "pruning": None,
        "version": "1.2.3",
    }
    return ReportData(**(fields | changes))


def svgs_of(html: str) -> list[ET.Element]:
    return [ET.fromstring(svg) for svg in re.findall(r"<svg\b.*?</svg>", html, re.DOTALL)]


def check(html: str) -> Page:
    """Check what holds for every report."""
    page = Page(html)
    assert page.open == []
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "img", "base"}
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            assert (attributes.get(name) or "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    assert "@import" not in html
    assert re.search(r"url\((?!#)", html) is None
    addresses = set(re.findall(r"https?://[^\s\"'<>]*", html))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for svg in svgs_of(html):
        assert svg.get("role") == "img"
        assert svg.get("aria-label")
        assert not re.search(r"\b(nan|inf)\b", " ".join(str(p.get("d")) for p in svg.iter()))
    return page


# ------------------------------------------------------------------------------------ the document


def test_a_report_is_one_complete_page() -> None:
    page = check(render_report(make_data(pruning=PRUNING, test=TEST)))
    assert page.named("html") == [{"lang": "en"}]
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))
    assert len(page.named("figure")) == len(page.named("figcaption")) == 7
    assert len(page.named("table")) == len(page.named("caption")) == 5
    assert all(cell.get("scope") in {"row", "col"} for cell in page.named("th"))
    policy = [meta["content"] for meta in page.named("meta") if "http-equiv" in meta]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_the_verdict_comes_first() -> None:
    words = check(render_report(make_data())).words
    verdict = (
        "4 of 16 blocks are needed on the validation split to stay within 0.5 points of the full "
        "network’s 98.61 %. The other 12 blocks can be cut off without retraining"
    )
    assert verdict in words
    assert words.index(verdict) < words.index("Loss over depth")


@pytest.mark.parametrize(
    ("num_blocks", "needed", "sentence"),
    [
        (1, 1, "1 of 1 block is needed"),
        (16, 0, "0 of 16 blocks are needed"),
        (16, 1, "1 of 16 blocks is needed"),
        (16, 15, "The other block can be cut off"),
        (54, 54, "no block can be cut off"),
        (1000, 310, "310 of 1,000 blocks are needed"),
    ],
)
def test_sentences_for_any_number_of_blocks(num_blocks: int, needed: int, sentence: str) -> None:
    analysis = make_analysis(num_blocks, needed, stage_starts=[0, num_blocks // 2])
    history = make_history(2, num_blocks)
    page = check(render_report(make_data(analysis=analysis, history=history)))
    assert sentence in page.words


def test_before_pruning_the_report_shows_how_to_prune() -> None:
    words = check(render_report(make_data(run="my runs/a"))).words
    assert "stagecost prune 'my runs/a' --max-drop 0.5 --output small/" in words
    assert "Before and after pruning" not in words
    assert "Test results" not in words


def test_after_pruning_the_report_compares_and_shows_how_to_load() -> None:
    words = check(render_report(make_data(pruning=PRUNING, test=TEST))).words
    assert "Before and after pruning" in words
    assert "The pruned network keeps 4 blocks and reaches 98.20 %, without retraining." in words
    assert "Accuracy, validation split 98.61 % 98.20 % 98.20 % −0.41 points" in words
    assert "Parameters 76,842 12,345 16 %" in words
    assert "MACs an image 4.1 M 1.1 M 27 %" in words
    assert 'network = stagecost.load("small/") logits = network(images)' in words
    assert "stagecost evaluate small/ --split test" in words
    assert "stagecost prune" not in words
    assert "pruned network 4 97.90 % 0.0800 12,345 1.1 M" in words
    assert "plainly trained – – – – –" in words


def test_code_to_load_is_valid_python_for_any_path() -> None:
    path = 'odd "name"\\\n\x00/ünï'
    page = check(render_report(make_data(pruning=PRUNING | {"path": path})))
    code = re.search(r"stagecost\.load\((.*)\)", page.text)
    assert code is not None
    assert eval(code[1]) == path


def test_the_caveat_stands_next_to_the_depth_plots() -> None:
    words = check(render_report(make_data())).words
    assert "limits how many blocks can stay active, not which" in words
    assert "grows with the number of blocks and promises nothing" in words
    assert "Cross-entropy never attains its infimum" in words
    assert words.index("Accuracy over depth") < words.index("Cross-entropy never")
    assert words.index("Cross-entropy never") < words.index("What each block adds")
    assert "Weight norms mislead" in words


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"analysis": make_analysis(split="test")}, "read the test split once"),
        ({"analysis": make_analysis(split="train")}, "New images may need more blocks"),
        ({"settings": {"gamma": 0}}, "Trained with gamma = 0, plain training"),
        ({"pruning": PRUNING | {"accuracy_after": 97.0}}, "Trust the measurement"),
        ({"pruning": PRUNING | {"kept_blocks": [0, 1, 9]}}, "keeps blocks 0–1, 9, not the first 4"),
    ],
)
def test_doubts_are_stated(changes: dict[str, Any], note: str) -> None:
    assert note in check(render_report(make_data(**changes))).words
    assert note not in check(render_report(make_data(pruning=PRUNING))).words


def test_hostile_text_is_escaped() -> None:
    hostile = "</title><script>alert(1)</script><img src=http://x onerror='a'>\"&{{ 7 * 7 }}"
    data = make_data(
        run=hostile,
        settings={hostile: hostile},
        analysis=make_analysis(split=hostile),
        pruning=PRUNING | {"path": hostile},
        test=[{"name": hostile}],
        version=hostile,
    )
    html = render_report(data).replace("http://x", "")
    page = check(html)
    assert page.named("script") == page.named("img") == []
    assert "alert(1)" in page.text
    assert "{{ 7 * 7 }}" in page.text


def test_a_path_that_is_no_text_is_shown_with_escapes(tmp_path: Path) -> None:
    name = os.fsdecode(b"run-\xff")
    write_report(make_data(run=name), tmp_path / "report.html")
    assert "run-\\udcff" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_settings_are_flattened_and_formatted() -> None:
    chosen = {"gamma": 1e-05, "model": {"name": "resnet", "widths": [8, 16]}, "a": None, "b": True}
    words = check(render_report(make_data(settings=chosen))).words
    assert "gamma 1e-05 model.name resnet model.widths 8, 16 a – b yes" in words


# ------------------------------------------------------------------------------- missing and wide


@pytest.mark.parametrize("num_blocks", [1, 16, 54, 1000])
@pytest.mark.parametrize("epochs", [0, 1])
def test_any_depth_with_or_without_history(num_blocks: int, epochs: int) -> None:
    stages = sorted({0, num_blocks // 3, 2 * num_blocks // 3})
    analysis = make_analysis(num_blocks, num_blocks // 2, stage_starts=stages)
    html = render_report(make_data(analysis=analysis, history=make_history(epochs, num_blocks)))
    words = check(html).words
    assert ("The run recorded no epochs." in words) is (epochs == 0)
    assert len(svgs_of(html)) == (5 if epochs == 0 else 7)
    assert len(html) < 1_000_000


def test_without_a_validation_split_the_training_is_shown() -> None:
    html = render_report(make_data(history=make_history(validation=False)))
    assert "there was no validation split" in check(html).words
    assert len(svgs_of(html)) == 6


def test_missing_values_leave_gaps() -> None:
    holes = [None, math.nan, 2.0, 1.0, None, 0.5, math.inf] + [0.1] * 10
    nothing = [math.nan] * 16
    analysis = make_analysis(losses=holes, accuracies=[None] * 17, residual_ratios=nothing)
    history = make_history(2)
    history[1] |= {"val_losses": holes, "val_loss": math.nan, "train_loss": None, "seconds": None}
    words = check(render_report(make_data(analysis=analysis, history=history))).words
    assert "network’s –." in words
    assert "nan" not in words.lower()
    assert words.count("no values") == 2


def test_a_curve_is_interrupted_where_a_value_is_missing() -> None:
    svg = plots.loss_over_depth([3.0, 2.0, None, 1.0, None, 2.0], 1)
    curve = next(p.get("d", "") for p in ET.fromstring(svg).iter() if _is_curve(p))
    # One stretch from depth 0 to 1; depths 3 and 5 stand alone.
    assert curve.count("L") == 1


def _is_curve(element: ET.Element) -> bool:
    style = element.get("style", "")
    return element.tag.endswith("path") and "stroke-width: 2;" in style and "--accent" in style


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_losses_that_span_more_than_a_decade_get_a_logarithmic_scale(scale: float) -> None:
    wide, narrow = [scale * 100, scale * 10, scale], [scale * 3, scale * 2, scale]
    heights = [_heights(plots.loss_over_depth(losses, 1)) for losses in (wide, narrow)]
    for top, middle, bottom in heights:
        assert middle == pytest.approx((top + bottom) / 2, abs=0.1)


def _heights(svg: str) -> list[float]:
    curve = next(p.get("d", "") for p in ET.fromstring(svg).iter() if _is_curve(p))
    return [float(y) for _, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", curve)]


def test_stages_and_needed_depth_are_named() -> None:
    svg = plots.accuracy_over_depth([50.0 + k for k in range(28)], 20, 1.0, stage_starts=[0, 9, 18])
    texts = [element.text for element in ET.fromstring(svg).iter() if element.tag.endswith("text")]
    assert {"stage 1", "stage 2", "stage 3", "20 needed"} <= set(texts)
    assert "stage 1" not in plots.loss_over_depth([1.0, 0.5], 1)


@pytest.mark.parametrize("count", [0, 1, 2, 12, 13, 300])
def test_chosen_epochs_hold_the_first_and_the_last(count: int) -> None:
    chosen = plots.chosen_epochs(count)
    assert chosen == sorted(set(chosen))
    assert len(chosen) <= plots.MAX_EPOCH_LINES
    assert count == 0 or {0, count - 1} <= set(chosen)


def test_the_accuracy_axis_shows_the_tolerance_and_says_what_it_leaves_out() -> None:
    assert plots.accuracy_floor([10.0, 99.0], 0.5) == 89.0
    assert plots.accuracy_floor([95.0, 99.0], 0.5) == -math.inf
    assert plots.accuracy_floor([10.0, math.nan], 0.5) == -math.inf
    assert "Accuracies below 88.61 % are off the axis" in check(render_report(make_data())).words


# ------------------------------------------------------------------------------------- properties


def test_the_same_data_give_the_same_bytes() -> None:
    data = make_data(pruning=PRUNING, test=TEST)
    assert render_report(data) == render_report(data)


def test_rendering_leaves_the_settings_of_matplotlib_alone() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    render_report(make_data())
    assert dict(mpl.rcParams) == before


def test_importing_the_report_is_light_and_rendering_needs_neither_torch_nor_pyplot() -> None:
    program = (
        "import sys; from stagecost.report.page import ReportData, render_report\n"
        "assert not {'torch', 'matplotlib', 'jinja2'} & set(sys.modules)\n"
        f"render_report(ReportData('run', {{}}, {make_analysis(2, 1)!r}, [], None))\n"
        "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


numbers = st.one_of(st.none(), st.floats(), st.floats(0, 100), st.integers(-5, 10**12))


@st.composite
def report_data(draw: st.DrawFn) -> ReportData:
    num_blocks = draw(st.integers(1, 12))
    needed = draw(st.integers(0, num_blocks))

    def many(count: int) -> st.SearchStrategy[list[Any]]:
        return st.lists(numbers, min_size=count, max_size=count)

    blocks = st.integers(0, num_blocks - 1)
    analysis = make_analysis(
        num_blocks,
        needed,
        split=draw(st.text(max_size=8)),
        losses=draw(many(num_blocks + 1)),
        accuracies=draw(many(num_blocks + 1)),
        residual_ratios=draw(many(num_blocks)),
        weight_norms=draw(many(num_blocks)),
        tolerance=draw(st.floats(0, 100)),
        stage_starts=sorted({0} | draw(st.sets(blocks, max_size=3))),
    )
    names = ["seconds", "learning_rate", "train_objective", "train_loss", "val_loss", "val_accuracy"]
    history = [
        {name: draw(numbers) for name in names}
        | {"epoch": epoch, "val_losses": draw(st.none() | many(num_blocks + 1))}
        for epoch in range(1, draw(st.integers(0, 3)) + 1)
    ]
    measured = {key: draw(numbers) for key in PRUNING}
    kept = {"kept_blocks": sorted(draw(st.sets(blocks))), "path": draw(st.text(max_size=8))}
    pruning = draw(st.sampled_from([None, measured | kept]))
    keys = st.text(max_size=5)
    chosen = draw(st.dictionaries(keys, numbers | keys | st.booleans(), max_size=3))
    run = draw(st.text(max_size=8))
    return ReportData(run, chosen, analysis, history, pruning, ({"name": run, "loss": 1},))


@settings(max_examples=15, deadline=None)
@given(report_data())
def test_any_data_render_and_state_the_needed_blocks(data: ReportData) -> None:
    page = check(render_report(data))
    needed, num_blocks = data.analysis["needed_blocks"], data.analysis["num_blocks"]
    assert f"{needed} of {num_blocks} block" in page.words


# ---------------------------------------------------------------------------------------- writing


def test_writing_makes_the_folder_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    write_report(make_data(), path)
    assert path.read_text(encoding="utf-8") == render_report(make_data())
    assert list(path.parent.iterdir()) == [path]


def test_a_failing_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_report(make_data(), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
