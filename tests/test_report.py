import base64
import csv
import errno
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processes import CommandLine
from stagecost.errors import StageCostError
from stagecost.report.charts import Axis, Series, bar_chart, heatmap, line_chart
from stagecost.report.data import Epoch, ReportData
from stagecost.report.figures import comparison_figures, figures_of
from stagecost.report.frames import drawn_epochs, played_epochs
from stagecost.report.page import render_comparison, render_report, write_comparison, write_report
from stagecost.report.sentences import consequence, notes_on, verdict
from stagecost.report.words import MISSING, duration_text

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
        if not {"style", "script"} & set(self.open):
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
            "seconds": 1.5 * epoch,
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


EXITS = {
    **{"criterion": "margin", "depths": [1], "leaving": [1.0], "accuracy_full": 98.0},
    **{"accuracy_exit": 97.0, "mean_blocks": 1.0, "mean_macs_ratio": 0.5, "val_accuracy_full": 50.0},
}

PRUNING = {
    "kept_blocks": [0, 1, 2, 3],
    "accuracy_before": 98.61,
    "accuracy_predicted": 98.2,
    "accuracy_after": 98.2,
    "parameters_before": 76842,
    "parameters_after": 12345,
    "macs_before": 4_121_600,
    "macs_after": 1_098_240,
    "network": "small/",
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
    return ReportData.from_json(fields | changes)


SCRIPT = re.compile(r"<script\b[^>]*>(.*?)</script>", re.DOTALL)


def svgs_of(html: str) -> list[ET.Element]:
    return [
        ET.fromstring(svg) for svg in re.findall(r"<svg\b.*?</svg>", SCRIPT.sub("", html), re.DOTALL)
    ]


def policy_of(page: Page) -> str:
    (policy,) = [meta["content"] for meta in page.named("meta") if "http-equiv" in meta]
    assert policy is not None
    return policy


def check(html: str) -> Page:
    """Check what holds for every page."""
    assert len(html.encode()) < 3_000_000
    page = Page(html)
    assert page.open == []
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            address = attributes.get(name) or "#"
            assert address.startswith("#") or (tag == "img" and address.startswith("data:image/"))
        assert not any(name.startswith("on") for name in attributes)
    # Only the scripts that the page was made with may run: they are named by their digests.
    data, *scripts = SCRIPT.findall(html)
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    rest = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src "
    assert policy_of(page) == rest + allowed
    assert set(json.loads(data)) == {"charts", "frames"}
    still = SCRIPT.sub("", html)
    assert "@import" not in still
    assert re.search(r"url\((?!#)", still) is None
    addresses = set(re.findall(r"https?://[^\s\"'<>]*", still))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for svg in svgs_of(html):
        assert svg.get("role") == "img"
        assert svg.get("aria-label")
        assert not re.search(r"nan|inf", " ".join(str(p.get("d")) for p in svg.iter()), re.IGNORECASE)
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
    assert len(svgs_of(render_report(make_data()))) == 6
    assert len(page.named("table")) == len(page.named("caption")) == 5
    assert all(cell.get("scope") in {"row", "col"} for cell in page.named("th"))


def test_the_verdict_comes_first() -> None:
    words = check(render_report(make_data())).words
    verdict = (
        "4 of 16 blocks are needed on the validation split to stay within 0.5 points of the full "
        "network’s 98.61 %. The other 12 blocks can be cut off without retraining"
    )
    assert verdict in words
    assert words.index(verdict) < words.index("Loss over depth")


def test_a_needed_cut_that_is_no_depth_is_told_as_what_it_is() -> None:
    """In a network of stages the first four blocks are another cut than four blocks by stages."""
    cuts = [
        {"cut": "1+2+1", "kept_blocks": [0, 2, 3, 4], "accuracy": 88.9, "macs": 60.0},
        {"cut": "2+2+2", "kept_blocks": [0, 1, 2, 3, 4, 5], "accuracy": 98.5, "macs": 80.0},
    ]
    changes = {"cuts": cuts, "needed_cut": "1+2+1", "stage_starts": [0, 2, 4], "macs": [9] * 6 + [80]}
    told = make_analysis(6, 4, warnings=["one image is much"], tolerance=10, **changes)
    data = make_data(analysis=told, history=[])
    words = check(render_report(data)).words
    assert "88.90 % would remain" in words
    assert "Accuracy of the cut 1+2+1 88.90 %" in words
    assert "it is the cut 1+2+1" in words
    assert "is the needed depth" not in words
    assert "One image is much." in words
    assert data.kept_places == (0, 2, 3, 4)
    assert "88.90 % 75 %" in check(render_comparison([data, data])).words


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
    data = make_data(analysis=make_analysis(num_blocks, needed), history=[])
    assert sentence in f"{verdict(data.analysis)} {consequence(data)}"


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
    deep = check(render_report(make_data(pruning=PRUNING | {"accuracy_predicted": 0.0}))).words
    assert "Accuracy, validation split 98.61 % 0.00 % 98.20 %" in deep  # as of 1,000 classes
    assert "plainly trained – – – – –" in words


def test_code_to_load_is_valid_python_for_any_path() -> None:
    path = 'odd "name"\\\n\x00/ünï'
    page = check(render_report(make_data(pruning=PRUNING | {"network": path})))
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
        ({"pruning": PRUNING | {"accuracy_before": 50.0}}, "when it was pruned, and has"),
        ({"exits": EXITS}, "when its exits were chosen, and has"),
        ({"pruning": PRUNING | {"kept_blocks": [0, 1, 9]}}, "keeps blocks 0–1, 9, not the first 3"),
    ],
)
def test_doubts_are_stated(changes: dict[str, Any], note: str) -> None:
    notes = notes_on(make_data(**changes))
    assert [note in text for text in notes].count(True) == 1
    assert notes_on(make_data(pruning=PRUNING)) == []


def test_notes_stand_on_the_page() -> None:
    data = make_data(settings={"gamma": 0})
    assert notes_on(data)[0] in check(render_report(data)).words


def test_hostile_text_is_escaped() -> None:
    hostile = "</title><script>alert(1)</script><img src=http://x onerror='a'>\"&{{ 7 * 7 }}"
    data = make_data(
        run=hostile,
        settings={hostile: hostile},
        analysis=make_analysis(split=hostile),
        pruning=PRUNING | {"network": hostile},
        test=[{"name": hostile}],
        version=hostile,
    )
    html = render_report(data).replace("http://x", "")
    page = check(html)
    assert len(page.named("script")) == 3
    assert page.named("img") == []
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


@pytest.mark.parametrize(("num_blocks", "epochs"), [(1, 0), (1, 1), (54, 1), (1000, 200)])
def test_any_depth_with_or_without_history(num_blocks: int, epochs: int) -> None:
    stages = sorted({0, num_blocks // 3, 2 * num_blocks // 3})
    analysis = make_analysis(num_blocks, num_blocks // 2, stage_starts=stages)
    html = render_report(make_data(analysis=analysis, history=make_history(epochs, num_blocks)))
    words = check(html).words
    assert ("The run recorded no epochs." in words) is (epochs == 0)
    assert len(svgs_of(html)) == (4 if epochs == 0 else 6)


def test_without_a_validation_split_the_training_is_shown() -> None:
    html = render_report(make_data(history=make_history(validation=False)))
    assert "there was no validation split" in check(html).words
    assert len(svgs_of(html)) == 5


def test_missing_values_leave_gaps() -> None:
    holes = [None, math.nan, 2.0, 1.0, None, 0.5, math.inf] + [0.1] * 10
    nothing = [math.nan] * 16
    analysis = make_analysis(losses=holes, accuracies=[None] * 17, residual_ratios=nothing)
    history = make_history(2)
    history[1] |= {"val_losses": holes, "val_loss": math.nan, "train_loss": None, "seconds": None}
    words = check(render_report(make_data(analysis=analysis, history=history))).words
    assert "network’s –." in words
    assert "nan" not in words.lower()


def loss_chart(losses: list[float], **options: Any) -> str:
    series = [Series("", list(enumerate(losses)))]
    chart = line_chart(series, x=Axis("k"), y=Axis("loss", log=True), summary="a loss", **options)
    return chart.svg("loss")


def curve_of(svg: str) -> str:
    """Return the path of the first curve."""
    groups = [e for e in ET.fromstring(svg).iter() if "mark-line" in e.get("class", "")]
    return next(element.get("d", "") for element in groups[0] if element.get("d"))


def texts_of(svg: str) -> list[str | None]:
    return [element.text for element in ET.fromstring(svg).iter() if element.tag.endswith("text")]


def test_a_curve_is_interrupted_where_a_value_is_missing() -> None:
    svg = loss_chart([3.0, 2.0, math.nan, 1.0, math.nan, 2.0])
    # One stretch from place 0 to 1; places 3 and 5 stand alone.
    assert curve_of(svg).count("L") == 1
    lonely = [Series("", list(enumerate([1.0, math.nan, 2.0])), dots=False)]
    chart = line_chart(lonely, x=Axis("k"), y=Axis("y"), summary="two single values")
    dots = next(e for e in ET.fromstring(chart.svg()).iter() if "mark-symbol" in e.get("class", ""))
    assert len(dots) == 2


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_losses_that_span_more_than_a_decade_get_a_logarithmic_scale(scale: float) -> None:
    wide, narrow = [scale * 100, scale * 10, scale], [scale * 3, scale * 2, scale]
    for losses in (wide, narrow):
        path = curve_of(loss_chart(losses))
        top, middle, bottom = (float(y) for _, y in re.findall(r"[ML]([\d.]+),([\d.]+)", path))
        assert middle == pytest.approx((top + bottom) / 2, abs=0.1)
    ticks = set(texts_of(loss_chart([1000.0, 10.0, 1.0])))
    assert {"1", "10", "100", "1,000"} <= ticks
    assert "500" not in ticks


def test_stages_and_marks_are_named() -> None:
    svg = loss_chart([1 / (k + 1) for k in range(28)], stage_starts=[0, 9, 18], mark=(20, "20 needed"))
    assert {"stage 1", "stage 2", "stage 3", "20 needed"} <= set(texts_of(svg))
    assert "stage 1" not in texts_of(loss_chart([1.0, 0.5], stage_starts=[0]))


def test_the_last_value_and_the_band_are_drawn() -> None:
    svg = loss_chart([3.0, 2.0, 1.23], band=(1.2, 1.5))
    assert "1.23" in texts_of(svg)
    assert 'opacity="0.14"' in svg
    assert 'opacity="0.14"' not in loss_chart([3.0, 2.0], band=(1.2, math.nan))


def test_a_band_beyond_the_values_leaves_the_curve_its_room() -> None:
    losses = [2.0, 1.9, 1.8]
    assert curve_of(loss_chart(losses, band=(-98.0, 1.8))) == curve_of(loss_chart(losses))


def test_curves_differ_without_colour() -> None:
    series = [Series(name, [(0, place), (1, place + 1)]) for place, name in enumerate("abcdef")]
    svg = ET.fromstring(line_chart(series, x=Axis("k"), y=Axis("y"), summary="six").svg())
    lines = [e[0] for e in svg.iter() if "mark-line role-mark" in e.get("class", "")]
    assert len({line.get("stroke-dasharray") for line in lines}) == 6
    dots = [e for e in svg.iter() if "mark-symbol role-mark" in e.get("class", "")]
    assert len({symbol.get("d") for symbol in dots[0]}) == 6
    assert {"a", "b", "c", "d", "e", "f"} <= {e.text for e in svg.iter() if e.text}


def test_a_seventh_curve_is_no_twin_of_the_first() -> None:
    series = [Series(name, [(0, 1)]) for name in "abcdefghijkl"]
    layers = line_chart(series, x=Axis("k"), y=Axis("y"), summary="twelve").layers
    lines, dots = (layer["encoding"] for layer in layers[-2:])
    scales = [each["scale"]["range"] for each in (lines["color"], lines["strokeDash"], dots["shape"])]
    colours, dashes, shapes = scales
    assert len(set(zip(colours, dashes, strict=True))) == 12
    assert len(set(zip(colours, shapes, strict=True))) == 12


def test_blocks_that_left_move_no_others() -> None:
    """Of stages of 3 and 3 blocks, 1 and 2 stay after the first epoch."""
    told = make_analysis(3, 3, stage_starts=[0, 1], cuts=[{"cut": "1+2", "kept_blocks": [0, 3, 4]}])
    losses = [[7.0, 6, 5, 4, 3, 2, 1], [4.0, 3, 2, 1]]
    history = [{"epoch": k, "val_losses": some} for k, some in enumerate(losses, start=1)]
    cut, after = (make_data(analysis=told, history=some) for some in (history, history[1:]))
    drawn = [json.dumps(figures_of(data)["development"].spec()) for data in (cut, after)]
    assert ["stage 2" in text for text in drawn] == [False, True]
    whole = make_data(analysis=make_analysis(6, 3), history=[])
    rows = comparison_figures([cut, replace(whole, run="whole")])["ratios"].tables["rows"]
    assert [row["x"] for row in rows] == [0, 3, 4, *range(6)]


def test_notes_and_seconds_are_written_as_they_are() -> None:
    warnings = ["runs/digits-16 has no images.json", "one image is much"]
    history = [{"epoch": k, "seconds": 600.5 * k} for k in (1, 2)]
    data = make_data(analysis=make_analysis(warnings=warnings), history=history)
    assert notes_on(data) == ["runs/digits-16 has no images.json.", "One image is much."]
    words = check(render_report(data)).words
    assert " 2 1,201 " in words


def test_a_bar_is_as_long_as_its_value() -> None:
    chart = bar_chart([4.0, 1.0, math.nan], [0], x=Axis("k"), y=Axis("y", zero=True), summary="bars")
    bars = next(e for e in ET.fromstring(chart.svg()).iter() if "mark-rect" in e.get("class", ""))
    heights = [float(re.findall(r"v(-?[\d.]+)", bar.get("d", ""))[0]) for bar in bars]
    assert abs(heights[0]) == pytest.approx(4 * abs(heights[1]), rel=1e-3)
    assert bars[0].get("fill") != bars[1].get("fill")


def test_a_heatmap_shows_its_numbers() -> None:
    chart = heatmap(["cat", "dog"], [[41, 7], [0, 52]], summary="answers")
    assert {"cat", "dog", "41", "7", "52"} <= set(texts_of(chart.svg()))


@pytest.mark.parametrize("count", [0, 1, 2, 12, 13, 300])
def test_the_epochs_that_are_shown_hold_the_first_and_the_last(count: int) -> None:
    history = [Epoch(epoch, val_losses=(1.0,)) for epoch in range(1, count + 1)]
    for shown, most in (([e.epoch for e in played_epochs(history)], 100), (drawn_epochs(history), 12)):
        assert shown == sorted(set(shown))
        assert len(shown) == count if count <= most else len(shown) <= most
        assert count == 0 or {1, count} <= set(shown)


def test_the_accuracy_axis_says_what_it_leaves_out() -> None:
    def floor(accuracies: list[float]) -> float:
        analysis = make_analysis(len(accuracies) - 1, 1, accuracies=accuracies)
        return make_data(analysis=analysis).analysis.accuracy_floor

    assert floor([10.0, 99.0]) == 89.0
    assert floor([95.0, 99.0]) == -math.inf
    assert floor([10.0, math.nan]) == -math.inf
    assert "Accuracies below 88.61 % are off the axis" in check(render_report(make_data())).words


# --------------------------------------------------------------------- costs, mistakes, fine-tuning

PIXEL = "data:image/gif;base64,R0lGODdhAQABAIAAAP///////ywAAAAAAQABAAACAkQBADs="


def frames_of(html: str, name: str) -> list[dict[str, Any]]:
    text = SCRIPT.findall(html)[0].replace("\\u00a0", " ")
    frames: list[dict[str, Any]] = json.loads(text)["frames"][name]
    return frames


def test_the_depth_slider_has_a_place_for_each_depth_with_its_command() -> None:
    costs = {
        "macs": [1e6 * (k + 1) for k in range(17)],
        "latencies": [0.001 * (k + 1) for k in range(17)],
    }
    html = render_report(make_data(run="my runs/a", analysis=make_analysis(**costs)))
    frames = frames_of(html, "depth")
    assert [frame["value"] for frame in frames] == list(range(17))
    texts = frames[8]["texts"]
    assert texts["command"] == "stagecost prune 'my runs/a' --keep-blocks 8 --output small-8/"
    assert (texts["macs"], texts["macs_share"]) == ("9.0 M", "53 % of the full network")
    assert (texts["accuracy"], texts["latency"]) == ("98.60 %", "9 ms")
    untimed = check(render_report(make_data(run="runs/a"))).words
    assert "Times were not measured: stagecost measure runs/a --depths" in untimed
    assert "parameters" not in texts
    assert [frame["texts"]["command"][0] for frame in (frames[0], frames[16])] == ["#", "#"]


def test_the_least_that_can_stay_is_that_of_the_cuts_that_can_be_made() -> None:
    """The stages of an adapted network may leave whole, those of a staged one keep their projections."""
    cuts = [{"cut": str(k), "kept_blocks": list(range(k)), "macs": k} for k in range(1, 17)]
    for cut_list, least in ((cuts, 1), (cuts[2:], 3), ([], 4)):
        analysis = make_analysis(stage_starts=[0, 4, 8, 12], cuts=cut_list, needed_cut="4")
        frames = frames_of(render_report(make_data(run="a", analysis=analysis)), "depth")
        commands = [frame["texts"]["command"] for frame in frames]
        assert commands[least] == f"stagecost prune a --keep-blocks {least} --output small-{least}/"
        assert commands[least - 1].startswith(f"# the least that can stay: {least} block")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *((0.00231, "2.31 ms"), (0.9994, "999 ms"), (0.9996, "1.0 s"), (61, "61.0 s"), (89, "89.0 s")),
        *((91, "2 min"), (720, "12 min"), (7560, "2.1 h"), (math.nan, MISSING)),
    ],
)
def test_a_time_is_written_in_the_unit_that_suits_it(seconds: float, words: str) -> None:
    assert duration_text(seconds).replace("\xa0", " ") == words


def test_accuracy_is_drawn_against_cost_where_it_is_known() -> None:
    points = [
        {"series": "cuts", "name": "4 blocks", "accuracy": 98.2, "macs": 1e6},
        {"series": "early exits", "name": "threshold 0.9", "accuracy": 98.5, "macs": 9e5},
        {"series": "cuts", "name": "unknown", "accuracy": None, "macs": 9e5},
    ]
    assert "Accuracy against cost" not in check(render_report(make_data())).words
    for changes in ({"points": points}, {"analysis": make_analysis(macs=[1e6 * k for k in range(17)])}):
        assert "Accuracy against cost" in check(render_report(make_data(**changes))).words
    assert ">early exits</text>" in render_report(make_data(points=points))


def test_what_the_cut_gets_wrong_is_shown() -> None:
    names = [f"class {k}" for k in range(30)]
    counts = [[50 if i == j else 3 * (i == 7 and j == 29) for j in range(30)] for i in range(30)]
    wrong = [{"thumbnail": PIXEL, "label": "cat", "answer": "<dog>"}] * 2
    changes = {"confusion": {"class_names": names, "counts": counts}, "newly_wrong": wrong}
    html = render_report(make_data(**changes, newly_wrong_count=5))
    page = check(html)
    assert "class 7 class 29 3 53" in page.words
    assert "5 images are right with all blocks and wrong after the cut; 2 shown." in page.words
    assert [image["alt"] for image in page.named("img")] == ["image of class cat, called <dog>"] * 2
    perfect = {"class_names": ["a", "b"], "counts": [[1, 0], [0, 1]]}
    assert "Answers by class" in check(render_report(make_data(confusion=perfect))).words
    summary = "Answers of the cut network by class: 1,500 of 1,503 images right."
    assert summary in {svg.get("aria-label") for svg in svgs_of(html)}


def test_thumbnails_come_in_place_and_fit_the_page() -> None:
    image = {"label": "a", "answer": "b"}
    with pytest.raises(StageCostError, match="no image in place"):
        make_data(newly_wrong=[image | {"thumbnail": "https://example.org/a.png"}])
    huge = [image | {"thumbnail": PIXEL + "A" * 3_000_000}]
    with pytest.raises(StageCostError, match="more than 3: give fewer or smaller thumbnails"):
        render_report(make_data(newly_wrong=huge))


def test_fine_tuning_is_told() -> None:
    tuned = PRUNING | {"finetune_epochs": 2, "accuracy_after": 98.55, "accuracy_before_finetuning": 98.2}
    words = check(render_report(make_data(pruning=tuned))).words
    assert "reaches 98.55 % after 2 epochs of fine-tuning (98.20 % right after the cut)." in words
    assert "Blocks were removed, and the rest was fine-tuned for 2 epochs." in words
    assert "split, before fine-tuning 98.61 % 98.20 % 98.20 % −0.41 points" in words
    assert "split, fine-tuned 98.61 % 98.55 % −0.06 points" in words
    assert "without retraining" not in words
    # What was predicted is the accuracy of the cut, which training changes.
    assert "Trust the measurement" not in words
    unknown = {**tuned, "accuracy_before_finetuning": None}
    assert "after 2 epochs of fine-tuning." in check(render_report(make_data(pruning=unknown))).words


def test_what_is_missing_in_the_json_is_named() -> None:
    analysis = make_analysis()
    del analysis["losses"]
    with pytest.raises(StageCostError, match="analysis lacks losses"):
        make_data(analysis=analysis)


# ------------------------------------------------------------------------------------- comparison


def test_runs_stand_beside_each_other(tmp_path: Path) -> None:
    shallow = make_data(run="a", analysis=make_analysis(8, 3, macs=[1e6 * k for k in range(9)]))
    deep = make_data(run="b", settings={"gamma": 0}, analysis=make_analysis(16, 9), history=[])
    html = render_comparison([shallow, deep])
    words = check(html).words
    assert "a needs the fewest blocks, 3; b reaches the highest accuracy, 98.61 %." in words
    assert "a 8 3 98.60 % 96.23 % 38 % 4.5 s" in words
    assert "gamma 0.1 0" in words
    last = frames_of(html, "depth")[16]["texts"]
    assert (last["accuracy-0"], last["macs-0"], last["macs-1"]) == ("98.60 %", "8.0 M", "–")
    write_comparison([shallow, deep], tmp_path / "compared.html")
    assert (tmp_path / "compared.html").read_text(encoding="utf-8") == html


def test_one_run_is_no_comparison_and_namesakes_are_numbered() -> None:
    with pytest.raises(StageCostError, match="give two runs or more"):
        render_comparison([make_data()])
    assert "runs/digits-16 (1), runs/digits-16 (2)" in check(render_comparison([make_data()] * 2)).words


# ------------------------------------------------------------------------------------- a real run


@pytest.mark.slow
def test_the_report_of_a_real_run_tells_its_time_and_its_fine_tuning(
    cli: CommandLine, tmp_path: Path
) -> None:
    run, small = tmp_path / "run", tmp_path / "small"
    size = ("--num-blocks", 3, "--width", 6, "--epochs", 3, "--batch-size", 32)
    data = ("--data", "digits", "--limit-train", 600, "--limit-test", 200, "--device", "cpu")
    trained = cli("train", *data, *size, "--output", run)
    assert trained.status == 0, trained.stderr
    with (run / "metrics.csv").open() as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    assert seconds == sorted(seconds)
    assert duration_text(seconds[-1]) != duration_text(sum(seconds))
    assert cli("report", run).status == 0
    words = check((run / "report.html").read_text(encoding="utf-8")).words
    assert f"Training 3 epochs {duration_text(seconds[-1])}".replace("\xa0", " ") in words
    wish = ("--keep-blocks", 1, "--finetune-epochs", 1)
    cut = cli("prune", run, *wish, "--output", small, "--json").answer
    assert cli("report", run).status == 0
    words = check((run / "report.html").read_text(encoding="utf-8")).words
    before, after = cut["accuracy_before_finetuning"], cut["accuracy_after"]
    told = f"reaches {after:.2f} % after 1 epoch of fine-tuning ({before:.2f} % right after the cut)."
    assert told in words
    assert "without retraining" not in words


# ------------------------------------------------------------------------------------- properties


def test_the_same_data_give_the_same_bytes_by_light_means() -> None:
    content = {"run": "run", "analysis": make_analysis(), "history": make_history(), "pruning": PRUNING}
    program = (
        "import hashlib, sys; from math import nan; from stagecost.report.page import *\n"
        "assert not {'torch', 'vl_convert', 'jinja2'} & set(sys.modules)\n"
        f"page = render_report(ReportData.from_json({content!r}))\n"
        "assert not {'torch', 'matplotlib'} & set(sys.modules)\n"
        "print(hashlib.sha256(page.encode()).hexdigest())\n"
    )
    page = render_report(ReportData.from_json(content))
    assert page == render_report(ReportData.from_json(content))
    assert printed_by(program).strip() == hashlib.sha256(page.encode()).hexdigest()


def printed_by(program: str) -> str:
    """Run a program in a process of its own."""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, check=True, timeout=120, capture_output=True, text=True).stdout


def test_a_missing_package_is_one_line_that_names_the_extra() -> None:
    content = {"run": "run", "analysis": make_analysis(2, 1)}
    program = (
        "import sys; from stagecost.report.page import ReportData, render_report\n"
        "for package in ('vl_convert', 'jinja2'):\n"
        "    sys.modules[package] = None\n"
        f"    try: render_report(ReportData.from_json({content!r}))\n"
        "    except ValueError as error: print(error)\n"
        "    del sys.modules[package]\n"
    )
    assert printed_by(program).splitlines() == [
        f"reports and figures need the package {package}: pip install 'stagecost[report]'"
        for package in ("vl_convert", "jinja2")
    ]


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
    kept = {"kept_blocks": sorted(draw(st.sets(blocks))), "network": draw(st.text(max_size=8))}
    pruning = draw(st.sampled_from([None, measured | kept]))
    keys = st.text(max_size=5)
    chosen = draw(st.dictionaries(keys, numbers | keys | st.booleans(), max_size=3))
    run = draw(st.text(max_size=8))
    return make_data(
        run=run,
        settings=chosen,
        analysis=analysis,
        history=history,
        pruning=pruning,
        test=[{"name": run, "loss": 1}],
    )


@settings(max_examples=6, deadline=None)
@given(report_data())
def test_any_data_render_and_state_the_needed_blocks(data: ReportData) -> None:
    page = check(render_report(data))
    needed, num_blocks = data.analysis.needed_blocks, data.analysis.num_blocks
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


def test_the_examples_of_the_page_about_reports_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parents[1] / "docs" / "report.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(code, {})
    check(Path("report.html").read_text(encoding="utf-8"))
    assert "needs the fewest blocks, 1" in check(Path("compared.html").read_text("utf-8")).words
