"""How the verbs' results look to a person on a terminal; `--json` prints the same objects bare."""

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from stagecost.training.progress import sparkline

Result = Mapping[str, Any]


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # what that means is the command line's business


def show(verb: str, result: Result) -> None:
    """Print the result of a verb on standard output."""
    console = _Console(highlight=False)
    _VIEWS[verb](console, result)


def _train(console: Console, result: Result) -> None:
    console.print(f"trained {result['epochs']} epochs in {result['seconds']:.1f} s")
    if result["val_accuracy"] is not None:
        console.print(
            f"validation: accuracy {result['val_accuracy']:.2f} %, loss {result['val_loss']:.4f}"
        )
    if result["cuts"]:
        steps = " → ".join(str(len(cut["kept_blocks"])) for cut in result["cuts"])
        console.print(f"blocks: {result['cuts'][0]['num_blocks_before']} → {steps}")
    console.print(f"next: stagecost analyze {result['run']}", soft_wrap=True)


def _analyze(console: Console, result: Result) -> None:
    blocks, needed = result["num_blocks"], result["needed_blocks"]
    table = Table(title=f"loss over depth, {result['split']} split", title_justify="left")
    for name in ("k", "loss L_k", "accuracy", "", "‖F_k(x_k)‖/‖x_k‖", "‖w_F,k‖"):
        table.add_column(name, justify="left" if name == "" else "right", no_wrap=True)
    top = max(result["losses"])
    for k in range(blocks + 1):
        loss = result["losses"][k]
        bar = "█" * max(1, round(12 * loss / top)) if top > 0 else ""
        ratio = f"{result['residual_ratios'][k]:.3f}" if k < blocks else ""
        norm = f"{result['weight_norms'][k]:.2f}" if k < blocks else ""
        accuracy = f"{result['accuracies'][k]:.2f} %"
        style = "bold green" if k == needed else ("dim" if k > needed else "")
        table.add_row(str(k), f"{loss:.4f}", accuracy, bar, ratio, norm, style=style)
    console.print(table)
    if len(result["stage_starts"]) > 1:
        console.print(f"stages begin at blocks {', '.join(map(str, result['stage_starts']))}")
    console.print(
        f"{needed} of {blocks} blocks are needed to stay within {result['tolerance']:g} points of "
        f"{result['accuracies'][-1]:.2f} %"
    )


def _sizes(table: Table, result: Result) -> None:
    for name, key in (("parameters", "parameters"), ("MACs an image", "macs")):
        before, after = result[f"{key}_before"], result[f"{key}_after"]
        table.add_row(name, f"{before:,}", f"{after:,}", f"{after / before:.2f}×")


def _prune(console: Console, result: Result) -> None:
    table = Table("", "before", "after", "")
    kept, blocks = len(result["kept_blocks"]), result["num_blocks_before"]
    table.add_row("blocks", str(blocks), str(kept), f"{kept / blocks:.2f}×")
    before, after = result["accuracy_before"], result["accuracy_after"]
    predicted = f"predicted {result['accuracy_predicted']:.2f} %"
    table.add_row("validation accuracy", f"{before:.2f} %", f"{after:.2f} %", predicted)
    _sizes(table, result)
    console.print(table)
    console.print(f"kept blocks k = {result['kept_blocks']}", soft_wrap=True)
    console.print(f"saved: {result['path']}", soft_wrap=True)
    console.print(f"next: stagecost evaluate {result['path']} --split test", soft_wrap=True)


def _evaluate(console: Console, result: Result) -> None:
    console.print(
        f"{result['split']}: accuracy {result['accuracy']:.2f} %, loss {result['loss']:.4f}\n"
        f"{result['num_blocks']} blocks, {result['parameters']:,} parameters, "
        f"{result['macs']:,} MACs an image"
    )


def _bound(console: Console, result: Result) -> None:
    console.print(
        f"J_N = {result['objective']:.4f} on the training images "
        f"(N = {result['num_blocks']}, gamma = {result['gamma']:g}, lambda = {result['weight_decay']:g})"
    )
    if result["trained_variant"]:
        console.print("this run was trained by a variant; J_N is the paper's objective all the same")
    table = Table("M", "right-hand side", "J_N ≤ it", "J_N / it", title="Theorem 3.1")
    for row in result["bounds"]:
        holds = "yes" if row["holds"] else "no: not optimised far enough"
        side, tightness = f"{row['right_hand_side']:.4f}", f"{row['tightness']:.3f}"
        stages = row["blocks_per_stage"]
        depth = f"{row['num_blocks']} ({', '.join(map(str, stages))})" if len(stages) > 1 else stages[0]
        table.add_row(str(depth), side, holds, tightness)
    console.print(table)
    console.print(f"predicted depth: {result['predicted_blocks']} blocks")
    console.print(
        "The bound limits how many blocks stay active, not which; where the shallow network's loss is "
        "far from its infimum it promises nothing."
    )


def _report(console: Console, result: Result) -> None:
    console.print(f"wrote {result['report']}", soft_wrap=True)


def _demo(console: Console, result: Result) -> None:
    found, pruning = result["analyze"], result["prune"]
    console.print(f"\nloss over depth  {sparkline(found['losses'])}  (validation images)")
    console.print(
        f"{found['needed_blocks']} of {found['num_blocks']} blocks are needed within "
        f"{found['tolerance']:g} points; kept {len(pruning['kept_blocks'])}, without retraining\n"
    )
    table = Table("test images", "blocks", "accuracy", "parameters", "MACs")
    for row in result["test"]:
        sizes = (f"{row['parameters']:,}", f"{row['macs']:,}")
        table.add_row(row["name"], str(row["num_blocks"]), f"{row['accuracy']:.2f} %", *sizes)
    console.print(table)
    console.print(f"the small network: {result['pruned']}", soft_wrap=True)
    console.print(f"the report:        {result['report']}", soft_wrap=True)


def _tune(console: Console, result: Result) -> None:
    title = f"Pareto front of {len(result['trials'])} trials (validation images)"
    names = (
        "trial",
        "gamma",
        "lambda",
        "schedule",
        "from depth",
        "needed",
        "all blocks",
        "alone",
    )
    table = Table(*names, title=title, title_justify="left")
    plain = result["baseline"]
    shown = [result["trials"][number] for number in result["pareto"]]
    if plain is not None and plain not in shown:
        shown.append(plain)
    for row in shown:
        style = "bold green" if row["number"] in result["pareto"] else "dim"
        table.add_row(
            "plain" if row["gamma"] == 0 else str(row["number"]),
            f"{row['gamma']:.3g}",
            f"{row['weight_decay']:.2g}",
            row["gamma_schedule"],
            str(row["first_depth"]),
            f"{row['needed_blocks']} of {result['num_blocks']}",
            f"{row['val_accuracy']:.2f} %",
            f"{row['pruned_val_accuracy']:.2f} %",
            style=style,
        )
    console.print(table)
    if failed := [row for row in result["trials"] if row["state"] == "failed"]:
        console.print(f"{len(failed)} failed, the first: {failed[0]['reason']}", soft_wrap=True)
    console.print(f"the figure: {result['plot']}", soft_wrap=True)
    if result["pareto"]:
        chosen = result["trials"][result["pareto"][0]]
        console.print(f"the runs are usual ones: stagecost analyze {chosen['run']}", soft_wrap=True)


def _benchmark(console: Console, result: Result) -> None:
    from stagecost.verbs.benchmark_view import show_benchmark

    show_benchmark(console, result)


def _reproduce(console: Console, result: Result) -> None:
    from stagecost.verbs.reproduce_view import show_reproduction

    show_reproduction(console, result)


_VIEWS: dict[str, Callable[[Console, Result], None]] = {
    "train": _train,
    "analyze": _analyze,
    "prune": _prune,
    "evaluate": _evaluate,
    "bound": _bound,
    "report": _report,
    "tune": _tune,
    "demo": _demo,
    "benchmark": _benchmark,
    "reproduce": _reproduce,
}
