"""The report on a run: one HTML file that needs nothing else, neither scripts nor a network.

Plain data in, HTML out; nothing here knows about networks or tensors.
"""

import json
import math
import os
import shlex
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import SupportsFloat

TEMPLATE = "report.html.j2"
MISSING = "–"
HISTORY_ROWS = 10
MOST_RANGES = 20
SPLIT_NAMES = {"val": "validation", "train": "training"}
# A number and its unit stay on one line.
NBSP = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class ReportData:
    """What a report is made of. Measurements that are missing are None or NaN.

    Attributes:
        run: the name or path of the run, as shown.
        settings: the merged configuration of the run.
        analysis: `num_blocks` N, `split`, `losses` and `accuracies` (percent) of y_0 … y_N,
            `residual_ratios` and `weight_norms` of the N blocks, `tolerance` in points,
            `needed_blocks`, and `stage_starts`, the paper's k of each stage's first block.
        history: one entry an epoch: `epoch` (from 1), `seconds`, `learning_rate`, `train_objective`,
            `train_loss`, `val_loss`, `val_accuracy`, `val_losses` and `val_accuracies` (0 … N).
        pruning: `kept_blocks` (the paper's k), `accuracy_before`, `accuracy_predicted`,
            `accuracy_after`, `parameters_before`, `parameters_after`, `macs_before`, `macs_after`
            and `path`; None if nothing was pruned yet.
        test: rows of test results: `name`, `num_blocks`, `accuracy`, `loss`, `parameters`, `macs`.
        version: the version of stagecost that made the report.
    """

    run: str
    settings: Mapping[str, object]
    analysis: Mapping[str, object]
    history: Sequence[Mapping[str, object]]
    pruning: Mapping[str, object] | None
    test: Sequence[Mapping[str, object]] = ()
    version: str = ""


def render_report(data: ReportData) -> str:
    """Render a report as one self-contained HTML document; the same data give the same bytes."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = files("stagecost").joinpath("templates", TEMPLATE).read_text(encoding="utf-8")
    analysis = _read_analysis(data)
    html = environment.from_string(source).render(
        run=data.run,
        version=data.version,
        analysis=analysis,
        tolerance=_points(analysis.tolerance),
        verdict=_verdict(analysis),
        consequence=_consequence(analysis, data.pruning),
        notes=_notes(analysis, data),
        cards=_cards(analysis, data),
        figures=_figures(analysis, data),
        accuracy_floor=_floor(analysis),
        comparison=_comparison(analysis, data.pruning),
        kept=_ranges(analysis.kept) if data.pruning else "",
        test=_test_rows(data.test),
        commands=_commands(analysis, data),
        settings=_flat(data.settings),
        history=_history_rows(data.history),
        depths=_depth_rows(analysis),
    )
    # A path may hold bytes that are no text (lone surrogates): they are shown as escapes.
    return html.encode("utf-8", "backslashreplace").decode("utf-8")


def write_report(data: ReportData, path: Path) -> None:
    """Write a report so that a reader, or a crash, sees either the old file or the new one.

    Raises:
        OSError: no permission, disk full, …; the old file is then untouched.
    """
    content = render_report(data).encode("utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # Temporary files are private; a report should be as readable as any other file.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# ---------------------------------------------------------------------------------- reading data


@dataclass(frozen=True)
class _Analysis:
    """The analysis with its types known; `kept` are the blocks that the figures colour."""

    num_blocks: int
    needed: int
    tolerance: float
    split: str
    losses: list[float]
    accuracies: list[float]
    ratios: list[float]
    norms: list[float]
    stage_starts: list[int]
    kept: list[int]
    pruned: bool

    @property
    def terminal_accuracy(self) -> float:
        return _at(self.accuracies, self.num_blocks)

    @property
    def needed_accuracy(self) -> float:
        return _at(self.accuracies, self.needed)


def _read_analysis(data: ReportData) -> _Analysis:
    analysis, pruning = data.analysis, data.pruning
    needed = int(_number(analysis["needed_blocks"]))
    split = str(analysis["split"])
    return _Analysis(
        num_blocks=int(_number(analysis["num_blocks"])),
        needed=needed,
        tolerance=_number(analysis["tolerance"]),
        split=SPLIT_NAMES.get(split, split),
        losses=_numbers(analysis["losses"]),
        accuracies=_numbers(analysis["accuracies"]),
        ratios=_numbers(analysis["residual_ratios"]),
        norms=_numbers(analysis["weight_norms"]),
        stage_starts=_integers(analysis["stage_starts"]),
        kept=list(range(needed)) if pruning is None else _integers(pruning["kept_blocks"]),
        pruned=pruning is not None,
    )


def _number(value: object) -> float:
    """Read a number; whatever is none is missing, which is NaN from here on."""
    if value is None or not isinstance(value, SupportsFloat):
        return math.nan
    return float(value)


def _numbers(value: object) -> list[float]:
    return [_number(item) for item in value] if isinstance(value, Iterable) else []


def _integers(value: object) -> list[int]:
    return [int(number) for number in _numbers(value) if math.isfinite(number)]


def _at(values: Sequence[float], index: int) -> float:
    return values[index] if index < len(values) else math.nan


# ------------------------------------------------------------------------------ formatting values


def _count(value: object) -> str:
    number = _number(value)
    return f"{number:,.0f}" if math.isfinite(number) else MISSING


def _percent(value: object) -> str:
    number = _number(value)
    return f"{number:.2f}{NBSP}%" if math.isfinite(number) else MISSING


def _signed_points(value: float) -> str:
    if not math.isfinite(value):
        return MISSING
    # -0.004 would read as "−0.00".
    rounded = round(value, 2) + 0.0
    sign = "+" if rounded > 0 else "−" if rounded < 0 else "±"
    return f"{sign}{abs(rounded):.2f}{NBSP}points"


def _points(value: float) -> str:
    return f"{value:g}{NBSP}point{'' if value == 1 else 's'}"


def _measure(value: object) -> str:
    """Format a loss, a ratio or a norm: three significant digits."""
    number = _number(value)
    if math.isnan(number):
        return MISSING
    if math.isinf(number):
        return "∞" if number > 0 else "−∞"
    return f"{number:#.3g}".rstrip(".").replace("-", "−")


def _short(value: object) -> str:
    number = _number(value)
    return f"{number:.3g}" if math.isfinite(number) else MISSING


def _operations(value: object) -> str:
    """Format a number of multiply-accumulates: 4.1 M."""
    number = _number(value)
    if not math.isfinite(number):
        return MISSING
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= size:
            scaled = number / size
            return f"{scaled:.{0 if scaled >= 100 else 1}f}{NBSP}{unit}"
    return f"{number:.0f}"


def _share(after: object, before: object) -> str:
    part, whole = _number(after), _number(before)
    if not (math.isfinite(part) and math.isfinite(whole) and whole > 0):
        return MISSING
    return f"{100 * part / whole:.0f}{NBSP}%"


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return ""
    if seconds < 60:
        return f"{seconds:.1f}{NBSP}s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.0f}{NBSP}min" if minutes < 100 else f"{hours:.1f}{NBSP}h"


def _ranges(blocks: Iterable[int]) -> str:
    """Shorten a list of indices: 0, 1, 2, 9 becomes "0–2, 9"."""
    runs: list[list[int]] = []
    for block in sorted(set(blocks)):
        if runs and block == runs[-1][-1] + 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs]
    return ", ".join([*texts[:MOST_RANGES], "…"] if len(texts) > MOST_RANGES else texts)


def _blocks(count: int) -> str:
    return f"{count:,} block{'' if count == 1 else 's'}"


def _setting(value: object) -> str:
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(_setting(item) for item in value)
    return str(value)


def _flat(settings: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", _setting(value)))
    return rows


# -------------------------------------------------------------------------------------- sentences


def _verdict(analysis: _Analysis) -> str:
    verb = "is" if analysis.needed == 1 else "are"
    return (
        f"{analysis.needed:,} of {_blocks(analysis.num_blocks)} {verb} needed on the "
        f"{analysis.split} split to stay within {_points(analysis.tolerance)} of the full network’s "
        f"{_percent(analysis.terminal_accuracy)}."
    )


def _consequence(analysis: _Analysis, pruning: Mapping[str, object] | None) -> str:
    if pruning is not None:
        return (
            f"The pruned network keeps {_blocks(len(analysis.kept))} and reaches "
            f"{_percent(pruning.get('accuracy_after'))}, without retraining."
        )
    rest = analysis.num_blocks - analysis.needed
    if rest <= 0:
        return "Within this tolerance no block can be cut off."
    other = "The other block" if rest == 1 else f"The other {_blocks(rest)}"
    return (
        f"{other} can be cut off without retraining; {_percent(analysis.needed_accuracy)} would remain."
    )


def _notes(analysis: _Analysis, data: ReportData) -> list[str]:
    """Say what makes the numbers of this very report less than they seem."""
    notes = []
    if analysis.split == "test":
        notes.append(
            "The depth was chosen on the test split, so an accuracy on the same images flatters. "
            "Choose it on a validation split and read the test split once."
        )
    if analysis.split == "training":
        notes.append(
            "The depth was chosen on the images that the network was trained on. New images may "
            "need more blocks."
        )
    if _number(data.settings.get("gamma")) == 0:
        notes.append(
            "Trained with gamma = 0, plain training: nothing rewarded good intermediate outputs, so "
            "most blocks are expected to be needed."
        )
    return notes if data.pruning is None else notes + _pruning_notes(analysis, data.pruning)


def _pruning_notes(analysis: _Analysis, pruning: Mapping[str, object]) -> list[str]:
    notes = []
    if analysis.kept != list(range(analysis.needed)):
        kept = f"blocks {_ranges(analysis.kept)}" if analysis.kept else "no block"
        notes.append(
            f"The pruned network keeps {kept}, not the first "
            f"{analysis.needed:,}: the figures over depth do not show its accuracy."
        )
    predicted = _number(pruning.get("accuracy_predicted"))
    measured = _number(pruning.get("accuracy_after"))
    if abs(predicted - measured) >= 0.05:
        notes.append(
            f"{_percent(predicted)} was predicted for the pruned network, and {_percent(measured)} "
            "measured. Trust the measurement."
        )
    return notes


# ------------------------------------------------------------------------------- cards and tables


@dataclass(frozen=True)
class _Card:
    label: str
    value: str
    detail: str


def _cards(analysis: _Analysis, data: ReportData) -> list[_Card]:
    full = analysis.terminal_accuracy
    cards = [
        _Card(
            "Blocks needed",
            f"{analysis.needed:,} of {analysis.num_blocks:,}",
            f"within {_points(analysis.tolerance)}",
        ),
        _Card(
            "Accuracy, full network",
            _percent(full),
            f"loss {_measure(_at(analysis.losses, analysis.num_blocks))}",
        ),
    ]
    if data.pruning is not None:
        return cards + _pruning_cards(data.pruning)
    cut = analysis.needed_accuracy
    label = f"Accuracy at depth {analysis.needed:,}"
    cards.append(_Card(label, _percent(cut), _signed_points(cut - full)))
    if data.history:
        seconds = sum(_number(entry.get("seconds")) for entry in data.history)
        count = len(data.history)
        unit = "epoch" if count == 1 else "epochs"
        cards.append(_Card("Training", f"{count:,} {unit}", _duration(seconds)))
    return cards


def _pruning_cards(pruning: Mapping[str, object]) -> list[_Card]:
    before, after = (_number(pruning.get(f"accuracy_{when}")) for when in ("before", "after"))
    cards = [_Card("Accuracy, pruned", _percent(after), _signed_points(after - before))]
    for label, key, write in (
        ("Parameters, pruned", "parameters", _count),
        ("MACs an image, pruned", "macs", _operations),
    ):
        old, new = pruning.get(f"{key}_before"), pruning.get(f"{key}_after")
        cards.append(_Card(label, write(new), f"{_share(new, old)} of {write(old)}"))
    return cards


def _comparison(
    analysis: _Analysis, pruning: Mapping[str, object] | None
) -> list[tuple[str, str, str, str, str]]:
    """List quantity, full network, prediction, pruned network, and pruned against full."""
    if pruning is None:
        return []
    kept, blocks = len(analysis.kept), analysis.num_blocks
    before, after = (_number(pruning.get(f"accuracy_{when}")) for when in ("before", "after"))
    predicted = _percent(pruning.get("accuracy_predicted"))
    rows = [
        ("Blocks", _count(blocks), "", _count(kept), _share(kept, blocks)),
        (
            f"Accuracy, {analysis.split} split",
            _percent(before),
            predicted,
            _percent(after),
            _signed_points(after - before),
        ),
    ]
    for label, key, write in (
        ("Parameters", "parameters", _count),
        ("MACs an image", "macs", _operations),
    ):
        old, new = pruning.get(f"{key}_before"), pruning.get(f"{key}_after")
        rows.append((label, write(old), "", write(new), _share(new, old)))
    return rows


def _test_rows(rows: Sequence[Mapping[str, object]]) -> list[tuple[str, ...]]:
    return [
        (
            str(row.get("name", "")),
            _count(row.get("num_blocks")),
            _percent(row.get("accuracy")),
            _measure(row.get("loss")),
            _count(row.get("parameters")),
            _operations(row.get("macs")),
        )
        for row in rows
    ]


def _history_rows(history: Sequence[Mapping[str, object]]) -> list[tuple[str, ...]]:
    return [
        (
            _count(entry.get("epoch")),
            _short(entry.get("seconds")),
            _short(entry.get("learning_rate")),
            _measure(entry.get("train_objective")),
            _measure(entry.get("train_loss")),
            _measure(entry.get("val_loss")),
            _percent(entry.get("val_accuracy")),
        )
        for entry in history[-HISTORY_ROWS:]
    ]


def _depth_rows(analysis: _Analysis) -> list[tuple[str, ...]]:
    return [
        (
            str(k),
            _measure(_at(analysis.losses, k)),
            _percent(_at(analysis.accuracies, k)),
            _measure(_at(analysis.ratios, k)),
            _measure(_at(analysis.norms, k)),
        )
        for k in range(analysis.num_blocks + 1)
    ]


# --------------------------------------------------------------------------- figures and commands


def _figures(analysis: _Analysis, data: ReportData) -> dict[str, object]:
    """Draw the figures. Their text is made here from numbers alone, so their SVG is safe as it is."""
    from markupsafe import Markup

    from stagecost import plots

    starts, kept, needed = analysis.stage_starts, analysis.kept, analysis.needed
    svgs = {
        "strip": plots.block_strip(
            analysis.num_blocks, kept, stage_starts=starts, summary=_strip_summary(analysis)
        ),
        "loss": plots.loss_over_depth(
            analysis.losses,
            needed,
            stage_starts=starts,
            summary=_curve_summary("Loss", analysis.losses, needed, _measure),
        ),
        "accuracy": plots.accuracy_over_depth(
            analysis.accuracies,
            needed,
            analysis.tolerance,
            stage_starts=starts,
            summary=_curve_summary("Accuracy", analysis.accuracies, needed, _percent),
        ),
        "ratios": plots.residual_ratios(
            analysis.ratios,
            kept,
            stage_starts=starts,
            summary=_bar_summary("Relative size of the residual branch", analysis.ratios),
        ),
        "norms": plots.weight_norms(
            analysis.norms,
            kept,
            stage_starts=starts,
            summary=_bar_summary("Weight norm of the residual branch", analysis.norms),
        ),
    }
    figures: dict[str, object] = {name: Markup(svg) for name, svg in svgs.items()}
    return figures | _epoch_figures(analysis, data.history)


def _epoch_figures(analysis: _Analysis, history: Sequence[Mapping[str, object]]) -> dict[str, object]:
    from markupsafe import Markup

    from stagecost import plots

    if not history:
        return {"learning": None, "development": None}
    epochs = [_epoch(entry, index) for index, entry in enumerate(history, start=1)]
    train = [_number(entry.get("train_loss")) for entry in history]
    validation = [_number(entry.get("val_loss")) for entry in history]
    ends = f"training {_measure(train[-1])}, validation {_measure(validation[-1])}"
    summary = f"Loss of the terminal output over {len(epochs)} epochs; at the end: {ends}."
    svg = plots.learning_curve(epochs, train, validation, summary=summary)
    figures: dict[str, object] = {"learning": Markup(svg), "development": None}
    pairs = [(epoch, _numbers(e.get("val_losses"))) for epoch, e in zip(epochs, history, strict=True)]
    curves = [(epoch, losses) for epoch, losses in pairs if losses]
    if curves:
        drawn = [curves[index][0] for index in plots.chosen_epochs(len(curves))]
        summary = f"Loss at every depth after epoch {', '.join(map(str, drawn))}."
        svg = plots.development_over_epochs(curves, stage_starts=analysis.stage_starts, summary=summary)
        figures |= {"development": Markup(svg), "drawn_epochs": drawn}
        figures["all_drawn"] = len(drawn) == len(curves)
    return figures


def _epoch(entry: Mapping[str, object], index: int) -> int:
    number = _number(entry.get("epoch"))
    return int(number) if math.isfinite(number) else index


def _floor(analysis: _Analysis) -> str:
    from stagecost import plots

    floor = plots.accuracy_floor(analysis.accuracies, analysis.tolerance)
    return _percent(floor) if math.isfinite(floor) else ""


def _strip_summary(analysis: _Analysis) -> str:
    word = "kept" if analysis.pruned else "needed"
    which = _ranges(analysis.kept) or "none"
    return f"{_blocks(analysis.num_blocks)} from input to output; {word}: {which}."


def _curve_summary(name: str, values: Sequence[float], needed: int, write: object) -> str:
    assert callable(write)
    last = len(values) - 1
    ends = f"{write(_at(values, 0))} at depth 0, {write(_at(values, needed))} at depth {needed}"
    return f"{name} over depth: {ends}, {write(_at(values, last))} at depth {last}."


def _bar_summary(name: str, values: Sequence[float]) -> str:
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return f"{name} of each block: no values."
    low, high = (f"{_measure(v)} in block {values.index(v)}" for v in (min(finite), max(finite)))
    return f"{name} of each block: smallest {low}, largest {high}."


def _commands(analysis: _Analysis, data: ReportData) -> dict[str, str]:
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
