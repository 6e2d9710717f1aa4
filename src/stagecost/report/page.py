"""The report on a run: one HTML file that needs nothing else, neither scripts nor a network.

Plain data in, HTML out; nothing here knows about networks or tensors.
"""

import json
import shlex
from importlib.resources import files
from pathlib import Path

from stagecost.report.content import Analysis, ReportData, read_analysis
from stagecost.report.figures import draw_figures, floor_text
from stagecost.report.sentences import consequence, notes_on, verdict
from stagecost.report.tables import (
    comparison_rows,
    depth_rows,
    history_rows,
    make_cards,
    result_rows,
    setting_rows,
)
from stagecost.report.wording import points_text, ranges_text
from stagecost.storage import write_atomically

TEMPLATE = "report.html.j2"


def render_report(data: ReportData) -> str:
    """Render a report as one self-contained HTML document; the same data give the same bytes."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = files("stagecost.report").joinpath("templates", TEMPLATE).read_text(encoding="utf-8")
    analysis = read_analysis(data)
    html = environment.from_string(source).render(
        run=data.run,
        version=data.version,
        analysis=analysis,
        tolerance=points_text(analysis.tolerance),
        verdict=verdict(analysis),
        consequence=consequence(analysis, data.pruning),
        notes=notes_on(analysis, data),
        cards=make_cards(analysis, data),
        figures=draw_figures(analysis, data),
        accuracy_floor=floor_text(analysis),
        comparison=comparison_rows(analysis, data.pruning),
        kept=ranges_text(analysis.kept) if data.pruning else "",
        test=result_rows(data.test),
        commands=_commands(analysis, data),
        settings=setting_rows(data.settings),
        history=history_rows(data.history),
        depths=depth_rows(analysis),
    )
    # A path may hold bytes that are no text (lone surrogates): they are shown as escapes.
    return html.encode("utf-8", "backslashreplace").decode("utf-8")


def write_report(data: ReportData, path: Path) -> None:
    """Write a report so that a reader, or a crash, sees either the old file or the new one.

    Raises:
        OSError: no permission, disk full, …; the old file is then untouched.
    """
    write_atomically(path, render_report(data))


def _commands(analysis: Analysis, data: ReportData) -> dict[str, str]:
    """Write what to type next; names are quoted as the shell and Python need it."""
    if data.pruning is None:
        drop = f"--max-drop {analysis.tolerance:g}"
        return {"prune": f"stagecost prune {shlex.quote(data.run)} {drop} --output small/"}
    path = str(data.pruning["path"])
    quoted = json.dumps(path, ensure_ascii=False)
    load = ["import stagecost", "", f"network = stagecost.load({quoted})", "logits = network(images)"]
    return {
        "load": "\n".join(load),
        "evaluate": f"stagecost evaluate {shlex.quote(path)} --split test",
    }
