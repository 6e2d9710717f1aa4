"""How the results of verbs look to a person on a terminal; `--json` prints the same results bare."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from rich.console import Console
from rich.table import Table

from stagecost.data.class_names import shown
from stagecost.runs.analysis import Analysis
from stagecost.runs.bound import Bound
from stagecost.runs.certainty import Interval
from stagecost.runs.demo import Demo
from stagecost.runs.evaluation import Evaluation
from stagecost.runs.exiting import Exits
from stagecost.runs.exporting import Export
from stagecost.runs.inspection import Inspection
from stagecost.runs.measuring import Measurements
from stagecost.runs.models import ModelList, ModelReport
from stagecost.runs.prediction import Predictions
from stagecost.runs.pruning import Pruning
from stagecost.runs.reporting import Comparison, Report
from stagecost.runs.results import Result
from stagecost.runs.training import TrainingResult
from stagecost.text import counted, format_indices, shell_path
from stagecost.train.display import sparkline

CAVEAT = (
    "The bound limits how many blocks stay active, not which; where the shallow network's loss is far "
    "from its infimum it promises nothing."
)

NARROWEST = 72  # columns that a table is made for, at least


class _Console(Console):
    def __init__(self, width: int | None = None) -> None:
        # Names of folders are shown as they are, though they hold [b] or :x:.
        super().__init__(highlight=False, markup=False, emoji=False, width=width)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # what that means is the command line's business


def show(verb: str, result: Result) -> None:
    """Print the result of a verb on standard output."""
    console = _Console()
    if console.width < NARROWEST:  # lines that the terminal breaks are better than numbers cut off
        console = _Console(NARROWEST)
    VIEWS[verb](console, result)


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(text, soft_wrap=True, style=style)


def _warnings(console: Console, warnings: Sequence[str]) -> None:
    for warning in warnings:
        _line(console, f"note: {warning}", style="yellow")


def accuracy_text(accuracy: float | None, interval: Interval | None, num_images: int) -> str:
    """Write an accuracy with its interval and the number of images that it rests on."""
    if accuracy is None:
        return "no accuracy"
    if interval is None:
        return f"{accuracy:.2f} %"
    images = counted(num_images, "image")
    return f"{accuracy:.2f} % ({interval[0]:.2f} to {interval[1]:.2f}, {images})"


def _train(console: Console, result: TrainingResult) -> None:
    _line(console, f"trained {counted(result.epochs, 'epoch')} in {result.seconds:.1f} s")
    if result.val_accuracy is not None:
        accuracy = accuracy_text(result.val_accuracy, result.interval, result.num_images)
        _line(console, f"validation: accuracy {accuracy}, loss {result.val_loss:.4f}")
    if result.cuts:
        steps = " → ".join(str(len(cut.kept_blocks)) for cut in result.cuts)
        _line(console, f"blocks: {result.cuts[0].num_blocks_before} → {steps}")
    if result.suggested_targets:
        depths = ",".join(map(str, result.suggested_targets))
        _line(console, f"depths worth training for: --targets {depths} (see docs/targets.md)")
    split = " --split train" if result.val_accuracy is None else ""
    _line(console, f"next: stagecost analyze {shell_path(result.run)}{split}")


def _analyze(console: Console, result: Analysis | Inspection) -> None:
    if isinstance(result, Inspection):
        return _inspect(console, result)
    staged, first = len(result.stage_starts) > 1, result.needed_cut.isdigit()  # is it a y_k?
    console.print(_depth_table(result, mark=result.needed_blocks if first else None))
    if staged:
        starts = ", ".join(str(result.blocks[k]) for k in result.stage_starts)
        _line(console, f"stages begin at blocks {starts}; y_k skips all later stages whole,")
        _line(console, "so what can be cut is in the next table")
    if not all(cut.cut.isdigit() for cut in result.cuts):
        console.print(_cut_table(result))
    sizes = (b - a for a, b in pairwise((*result.stage_starts, result.num_blocks)))
    if math.prod(sizes) > len(result.cuts):
        _line(console, "prune tries more cuts than these, and may find a cheaper one")
    whole = accuracy_text(result.accuracies[-1], result.intervals[-1], result.num_images)
    if result.target_norms:
        _line(console, f"with norms of their own: {', '.join(result.target_norms)}")
    _line(console, f"{_needed(result)} to stay within {result.tolerance:g} points of {whole}")
    _warnings(console, result.warnings)
    return None


def _inspect(console: Console, result: Inspection) -> None:
    table = Table(title="without block k, and a linear head on x_k", title_justify="left")
    for name in ("k", "block", "accuracy", "loss", "", "MACs", "head"):
        table.add_column(name, justify="left" if name in ("", "block") else "right", no_wrap=True)
    top = max(1e-9, *(block.removal_cost for block in result.blocks))
    for depth in result.heads:
        head = f"{depth.accuracy:.2f} %"
        if depth.depth == result.num_blocks:
            table.add_row(str(depth.depth), "", "", "", "", "", head)
            continue
        block = result.blocks[depth.depth]
        bar = "█" * round(8 * max(0.0, block.removal_cost) / top)
        worth = (f"{block.accuracy:.2f} %", f"{block.removal_cost:+.4f}", bar)
        name = block.path if block.block == depth.depth else f"{block.block} {block.path}"
        table.add_row(str(depth.depth), name, *worth, f"-{block.macs / result.macs:.1%}", head)
    console.print(table)
    whole = accuracy_text(result.accuracy, result.interval, result.num_images)
    fitted = f"a head fitted to {result.num_train_images:,} images"
    head = "its own head" if result.head == "own" else fitted
    _line(console, f"the whole network with {head}: {whole}, {result.macs:,} MACs an image")
    idle = [block.block for block in result.blocks if block.removal_cost <= 0]
    if idle:
        _line(console, f"the loss does not rise without any one of the blocks {format_indices(idle)}")
    _warnings(console, result.warnings)


def _needed(analysis: Analysis) -> str:
    """Say how many blocks are needed, and which if they are not the first ones."""
    cut = "" if analysis.needed_cut.isdigit() else f" ({analysis.needed_cut})"
    verb = "is" if analysis.needed_blocks == 1 else "are"
    blocks = counted(analysis.num_blocks, "block")
    return f"{analysis.needed_blocks} of {blocks}{cut} {verb} needed"


def _depth_table(result: Analysis, mark: int | None) -> Table:
    table = Table(title=f"loss over depth, {result.split} split", title_justify="left")
    blocks = ["block"] if result.blocks != tuple(range(result.num_blocks)) else []  # some have left
    for name in ("k", "loss L_k", "", "accuracy", *blocks, "‖F_k(x_k)‖/‖x_k‖", "‖w_F,k‖"):
        table.add_column(name, justify="left" if name == "" else "right", no_wrap=True)
    top = max(filter(math.isfinite, result.losses), default=0.0)
    for k, (loss, accuracy) in enumerate(zip(result.losses, result.accuracies, strict=True)):
        bar = "█" * max(1, round(12 * loss / top)) if top > 0 and math.isfinite(loss) else ""
        last = k == result.num_blocks
        ratio = "" if last else f"{result.residual_ratios[k]:.3f}"
        norm = "" if last else f"{result.weight_norms[k]:.2f}"
        block = ["" if last else str(result.blocks[k])] if blocks else []
        style = "" if mark is None or k < mark else "bold green" if k == mark else "dim"
        table.add_row(str(k), f"{loss:.4f}", bar, f"{accuracy:.2f} %", *block, ratio, norm, style=style)
    return table


def _cut_table(result: Analysis) -> Table:
    table = Table("cut", "blocks", "loss", "accuracy", "MACs", title="cuts that can be made")
    for cut in sorted(result.cuts, key=lambda one: one.macs):
        style = "bold green" if cut.cut == result.needed_cut else ""
        scores = (f"{cut.loss:.4f}", f"{cut.accuracy:.2f} %", f"{cut.macs:,}")
        table.add_row(cut.cut, str(len(cut.kept_blocks)), *scores, style=style)
    return table


def _prune(console: Console, result: Pruning) -> None:
    table = Table("", "before", "after", "")
    kept, blocks = len(result.kept_blocks), result.num_blocks_before
    table.add_row("blocks", str(blocks), str(kept), f"{kept / blocks:.2f}×")
    before, after = result.accuracy_before, result.accuracy_after
    predicted = f"predicted {result.accuracy_predicted:.2f} %"
    table.add_row("validation accuracy", f"{before:.2f} %", f"{after:.2f} %", predicted)
    for name, sizes in (
        ("parameters", (result.parameters_before, result.parameters_after)),
        ("MACs an image", (result.macs_before, result.macs_after)),
    ):
        table.add_row(name, *(f"{size:,}" for size in sizes), f"{sizes[1] / sizes[0]:.2f}×")
    slow, fast = result.latency_ms_before, result.latency_ms_after
    table.add_row("time an image", f"{slow:.2f} ms", f"{fast:.2f} ms", f"{fast / slow:.2f}×")
    console.print(table)
    low, high = result.drop_interval
    _line(console, f"drop: {before - after:.2f} points ({low:.2f} to {high:.2f}, the same images)")
    epochs = counted(result.finetune_epochs, "epoch")
    trained = f", trained {epochs} after the cut" if result.finetune_epochs else ""
    _line(console, f"kept blocks k = {list(result.kept_blocks)}{trained}")
    _warnings(console, result.warnings)
    _line(console, f"saved: {result.network}")
    _line(console, f"next: stagecost evaluate {shell_path(result.network)} --split test")


def _evaluate(console: Console, result: Evaluation) -> None:
    accuracy = accuracy_text(result.accuracy, result.interval, result.num_images)
    _line(console, f"{result.split}: accuracy {accuracy}, loss {result.loss:.4f}")
    sizes = f"{result.parameters:,} parameters, {result.macs:,} MACs an image"
    _line(console, f"{counted(result.num_blocks, 'block')}, {sizes}")
    _warnings(console, result.warnings)


def _predict(console: Console, result: Predictions) -> None:
    width = max(len(shown(one.path)) for one in result.predictions)
    names = max(len(shown(one.label)) for one in result.predictions)
    for one in result.predictions:
        first, *others = (f"{100 * each.probability:.1f} %" for each in one.top)
        further = zip(one.top[1:], others, strict=True)
        rest = ", ".join(f"{shown(each.label)} {number}" for each, number in further)
        line = f"{shown(one.path):<{width}}  {shown(one.label):<{names}}  {first:>7}"
        _line(console, f"{line}   {rest}".rstrip())
    _warnings(console, result.warnings)


def _export(console: Console, result: Export) -> None:
    size, blocks = f"{result.file_bytes / 1e6:.2f} MB", counted(result.depths[-1], "block")
    _line(console, f"{', '.join(result.files)}: {size}, {blocks}, batches of any size")
    for depth, threshold in zip(result.depths, result.thresholds, strict=False):
        _line(
            console,
            f"an image leaves at depth {depth} if its {result.criterion} is at least {threshold:.4g}",
        )
    difference = f"{result.largest_difference:.1e}, on {result.num_images} images"
    _line(console, f"largest difference of an output to the network's: {difference}")
    if (small := result.int8) is not None:
        accuracy = f"{small.accuracy_float:.2f} % → {small.accuracy:.2f} %"
        time = f"{small.p50_ms_float:.3g} → {small.p50_ms:.3g} ms an image"
        size = f"{small.file_bytes / 1e6:.2f} MB"
        _line(console, f"{small.file}: {size}, accuracy {accuracy} ({small.num_images} images), {time}")
    _warnings(console, result.warnings)
    _line(console, f"saved: {result.output}")
    if result.format == "onnx":
        _line(console, f"next: python {shell_path(f'{result.output}/run.py')} cat.jpg")


def _measure(console: Console, result: Measurements) -> None:
    sizes = Table("network", "blocks", "parameters", "MACs", "weights")
    for one in result.networks:
        numbers = (str(one.num_blocks), f"{one.parameters:,}", f"{one.macs:,}")
        sizes.add_row(one.network, *numbers, f"{one.file_bytes / 1e6:.2f} MB")
    console.print(sizes)
    table = Table(title="milliseconds of a call, and megabytes of its tensors")
    table.add_column("network", overflow="fold")
    table.add_column("backend", no_wrap=True)
    for name in ("depth", "batch", "p50", "p90", "p99", "images/s", "MB"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in result.timings:
        times = (f"{time:.3g}" for time in (row.p50_ms, row.p90_ms, row.p99_ms))
        memory = "" if row.memory_bytes is None else f"{row.memory_bytes / 1e6:.2f}"
        rate = f"{row.images_per_second:,.0f}"
        places = (str(row.depth), str(row.batch_size))
        table.add_row(row.network, row.backend, *places, *times, rate, memory)
    console.print(table)
    threads = f"{counted(result.timings[0].threads, 'thread')} of {result.machine.processor}"
    _line(console, f"measured in turns on {result.device}, {threads}, torch {result.machine.torch}")


def _bound(console: Console, result: Bound) -> None:
    _line(
        console,
        f"J_N = {result.objective:.4f} on {result.num_images:,} training images "
        f"(N = {result.num_blocks}, gamma = {result.gamma:g}, lambda = {result.weight_decay:g})",
    )
    if result.trained_variant:
        _line(console, "this run was trained by a variant; J_N is the paper's objective all the same")
    table = Table("M", "right-hand side", "J_N ≤ it", "J_N / it", title="Theorem 3.1")
    for row in result.bounds:
        holds = "yes" if row.holds else "no: not optimised far enough"
        stages = (
            f" ({', '.join(map(str, row.blocks_per_stage))})" if len(row.blocks_per_stage) > 1 else ""
        )
        side = f"{row.right_hand_side:.4f}"
        ratio = "" if math.isnan(row.tightness) else f"{row.tightness:.3f}"
        table.add_row(f"{row.num_blocks}{stages}", side, holds, ratio)
    console.print(table)
    _line(console, f"predicted depth: {counted(result.predicted_blocks, 'block')}")
    _line(console, CAVEAT)
    _warnings(console, result.warnings)


def _exit(console: Console, result: Exits) -> None:
    table = Table("leaves at", "test images", "", title="early exit", title_justify="left")
    for depth, share in zip(result.depths, result.leaving, strict=True):
        table.add_row(f"depth {depth}", f"{share:.1%}", "█" * round(24 * share), style="")
    console.print(table)
    if result.thresholds:
        together = ", answered by all depths asked" if result.combine else ""
        least = ", ".join(f"{threshold:.4g}" for threshold in result.thresholds)
        _line(console, f"{result.criterion} of at least {least}{together}")
    for name, accuracy, interval in (
        ("whole network", result.accuracy_full, result.interval_full),
        ("with exits", result.accuracy_exit, result.interval_exit),
    ):
        _line(console, f"{name:<14} {accuracy_text(accuracy, interval, result.num_images)}")
    low, high = result.drop_interval
    drop = result.accuracy_full - result.accuracy_exit
    _line(console, f"{'drop':<14} {drop:.2f} points ({low:.2f} to {high:.2f}, the same images)")
    _line(
        console,
        f"{'MACs':<14} {result.mean_macs_ratio:.3f}×, {result.mean_blocks:.2f} blocks on average",
    )
    for timing in result.timings:
        low, high = timing.ratio_range
        seconds = f"{timing.latency_ms_full:.3g} → {timing.latency_ms_exit:.3g} ms an image"
        spread = f"{timing.ratio:.3f}× ({low:.3f} to {high:.3f})"
        _line(console, f"{'time':<14} {spread}, {seconds}, batch size {timing.batch_size}")
    _warnings(console, result.warnings)
    _line(console, f"saved: {result.run}, exit_policy.json and exit.json")


def _report(console: Console, result: Report) -> None:
    _warnings(console, result.warnings)
    _line(console, f"wrote {result.report}")


def _compare(console: Console, result: Comparison) -> None:
    title = f"needed within {result.tolerance:g} points"
    table = Table("run", "blocks", "needed", "accuracy", "needed alone", "MACs left", title=title)
    for row in result.runs:
        kept = f"{row.needed_blocks}" + ("" if row.needed_cut.isdigit() else f" ({row.needed_cut})")
        scores = (f"{row.accuracy:.2f} %", f"{row.accuracy_needed:.2f} %")
        table.add_row(row.run, str(row.num_blocks), kept, *scores, f"{row.macs_needed / row.macs:.2f}×")
    console.print(table)
    _warnings(console, [f"{row.run}: {text}" for row in result.runs for text in row.warnings])
    _line(console, f"wrote {result.report}")


def _demo(console: Console, result: Demo) -> None:
    analysis, pruning = result.analyze, result.prune
    _line(console, f"\nloss over depth  {sparkline(analysis.losses)}  (validation images)")
    kept = f"kept {len(pruning.kept_blocks)}, without retraining"
    _line(console, f"{_needed(analysis)} within {analysis.tolerance:g} points; {kept}\n")
    table = Table("test images", "blocks", "accuracy", "parameters", "MACs")
    for row in result.test:
        sizes = (f"{row.parameters:,}", f"{row.macs:,}")
        table.add_row(row.name, str(row.num_blocks), f"{row.accuracy:.2f} %", *sizes)
    console.print(table)
    _line(console, f"the small network: {result.network}")
    _line(console, f"the report:        {result.report}")


def _models(console: Console, result: ModelList | ModelReport) -> None:
    if isinstance(result, ModelList):
        for name in result.models:
            _line(console, name)
        return
    for name, reason in result.refused.items():
        _line(console, f"{name}: refused, {reason}", style="dim")
    for name, reason in result.wrong.items():
        _line(console, f"{name}: wrong, {reason}", style="bold red")
    counts = {"supported": result.supported, "refused": result.refused, "wrong": result.wrong}
    _line(console, ", ".join(f"{len(names)} {word}" for word, names in counts.items()))


VIEWS: dict[str, Callable[[Console, Any], None]] = {
    "train": _train,
    "analyze": _analyze,
    "prune": _prune,
    "evaluate": _evaluate,
    "predict": _predict,
    "export": _export,
    "measure": _measure,
    "bound": _bound,
    "exit": _exit,
    "report": _report,
    "compare": _compare,
    "demo": _demo,
    "models": _models,
}
