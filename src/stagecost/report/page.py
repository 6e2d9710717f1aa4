"""The pages: one HTML file each that needs nothing else, no network and, to be read, no scripts.

Typed values in, HTML out; nothing here knows about networks or tensors. Figures are static SVG; where
scripts may run, the chart library, which travels in the page, draws them anew, live.
"""

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagecost.errors import StageCostError, report_extra
from stagecost.report import sentences, words
from stagecost.report.charts import Chart
from stagecost.report.data import ReportData, value_at
from stagecost.report.figures import comparison_figures, figures_of
from stagecost.report.frames import (
    Frame,
    comparison_frames,
    depth_frames,
    drawn_epochs,
    epoch_frames,
    prune_command,
)
from stagecost.report.tables import (
    confusion_rows,
    differing_rows,
    exit_rows,
    pruning_rows,
    setting_rows,
)
from stagecost.storage import write_atomically
from stagecost.text import counted, shell_path

if TYPE_CHECKING:
    from jinja2 import Environment

LARGEST_PAGE = 3_000_000


def render_report(data: ReportData) -> str:
    """Render a report as one self-contained HTML document; the same data give the same bytes.

    Raises:
        StageCostError: the extra `report` is not installed, or the page would be too large.
    """
    return _render(
        "report.html.j2",
        figures_of(data),
        {"depth": depth_frames(data), "epoch": epoch_frames(data.history)},
        data=data,
        drawn_epochs=drawn_epochs(data.history),
        pruning_rows=pruning_rows(data),
        exit_rows=exit_rows(data),
        confusions=confusion_rows(data.confusion),
        commands=_commands(data),
        run_quoted=shell_path(data.run),
        settings=setting_rows(data.settings),
    )


def render_comparison(runs: Sequence[ReportData]) -> str:
    """Render several runs beside each other as one self-contained HTML document.

    Raises:
        StageCostError: fewer than two runs, or see `render_report`.
    """
    if len(runs) < 2:
        raise StageCostError(f"{len(runs)} run is nothing to compare: give two runs or more")
    apart = _named_apart(runs)
    return _render(
        "comparison.html.j2",
        comparison_figures(apart),
        {"depth": comparison_frames(apart)},
        runs=apart,
        differing=differing_rows(apart),
    )


def write_report(data: ReportData, path: Path) -> None:
    """Write a report so that a reader, or a crash, sees either the old file or the new one.

    Raises:
        StageCostError: see `render_report`.
        OSError: no permission, disk full, …; the old file is then untouched.
    """
    write_atomically(path, render_report(data))


def write_comparison(runs: Sequence[ReportData], path: Path) -> None:
    """Write a comparison as `write_report` writes a report."""
    write_atomically(path, render_comparison(runs))


def _render(
    template: str,
    charts: Mapping[str, Chart],
    frames: Mapping[str, Sequence[Frame]],
    **content: Any,
) -> str:
    live = {
        "charts": {name: chart.spec(live=True) for name, chart in charts.items()},
        "frames": {name: [asdict(frame) for frame in shown] for name, shown in frames.items()},
    }
    script = files("stagecost.report").joinpath("templates", "page.js")
    scripts = [_chart_library(), script.read_text(encoding="utf-8")]
    html = (
        _templates()
        .get_template(template)
        .render(
            # Vega escapes what it writes; the text of summaries is quoted where it enters the SVG.
            charts={name: chart.svg(name) for name, chart in charts.items()},
            frames=frames,
            live=json.dumps(live, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
            scripts=scripts,
            hashes=" ".join(f"'sha256-{_digest(script)}'" for script in scripts),
            words=words,
            counted=counted,
            sentences=sentences,
            **content,
        )
    )
    # A path may hold bytes that are no text (lone surrogates): they are shown as escapes.
    page = html.encode("utf-8", "backslashreplace")
    if len(page) > LARGEST_PAGE:
        size = f"{len(page) / 1e6:.1f} MB"
        raise StageCostError(f"the page has {size}, more than 3: give fewer or smaller thumbnails")
    return page.decode("utf-8")


def page_start() -> bytes:
    """Return how every page begins, by which it is told from the pages of others."""
    base = Path(__file__).parent / "templates" / "base.html.j2"
    return base.read_text("utf-8").partition("{{")[0].encode()


@cache
def _templates() -> "Environment":
    with report_extra():
        from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("stagecost.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["at"] = value_at
    return environment


@cache
def _chart_library() -> str:
    """Bundle the chart library; as that takes seconds, the bundle is kept in the user's cache."""
    with report_extra():
        import vl_convert

    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111
    kept = home / "stagecost" / f"vega-{version('vl-convert-python')}.js"
    with suppress(OSError, UnicodeDecodeError):
        digest, _, library = kept.read_text("utf-8").partition("\n")
        if digest == _digest_line(library):  # else it is damaged
            return library
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    with suppress(OSError):
        write_atomically(kept, f"{_digest_line(bundle)}\n{bundle}")
    return bundle


def _digest_line(script: str) -> str:
    return f"// {hashlib.sha256(script.encode()).hexdigest()}"


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _named_apart(runs: Sequence[ReportData]) -> list[ReportData]:
    """Number the runs whose names would be the same."""
    names = [run.run for run in runs]
    return [
        replace(run, run=f"{run.run} ({place + 1})") if names.count(run.run) > 1 else run
        for place, run in enumerate(runs)
    ]


def _commands(data: ReportData) -> dict[str, str]:
    """Write what to type next; names are quoted as the shell and Python need it."""
    if data.pruning is None:
        drop = f"--max-drop {data.analysis.tolerance:g}"
        return {"prune": prune_command(data, drop, "small/")}
    path = data.pruning.network
    quoted = json.dumps(path, ensure_ascii=False)
    load = ["import stagecost", "", f"network = stagecost.load({quoted})", "logits = network(images)"]
    evaluate = f"stagecost evaluate {shell_path(path)} --split test"
    return {"load": "\n".join(load), "evaluate": evaluate}
