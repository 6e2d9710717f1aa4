"""The verbs of the command line as typed functions: each returns the object that `--json` prints.

Heavy imports happen inside, so that the command line can show its help at once.
"""

from pathlib import Path
from typing import Any, Literal

from stagecost.training.settings import Sizes

Split = Literal["val", "test", "train"]
Which = Literal["last", "best"]


def train(output: str, *, resume: bool = False, **settings: Any) -> dict[str, Any]:
    """Train a residual network with a stage cost on images.

    Args:
        output: folder of the run; one that holds a run is refused unless it is resumed.
        resume: go on with the run in the folder.
        settings: see `stagecost.training.settings`.
    """
    from stagecost.allocator import keep_freed_memory
    from stagecost.training.loop import train as train_run

    keep_freed_memory()
    result = train_run(settings, output, resume=resume)
    return {
        "run": result.run,
        "epochs": result.epochs,
        "val_accuracy": result.val_accuracy,
        "val_loss": result.val_loss,
        "num_blocks": result.num_blocks,
        "kept_blocks": result.kept_blocks,
        "gamma": result.gamma,
        "cuts": result.cuts,
        "seconds": result.seconds,
    }


def analyze(
    run: str,
    *,
    split: Split = "val",
    tolerance: float = 0.5,
    checkpoint: Which = "last",
    device: str = "auto",
) -> dict[str, Any]:
    """Show loss and accuracy over depth, and how many blocks are needed.

    Args:
        run: a run folder, or the folder of a saved network.
        split: the images to analyse; choose depths on val, never on test.
        tolerance: points of accuracy that may be missing to the full depth.
        checkpoint: which checkpoint of the run.
        device: auto, cpu, cuda or mps.
    """
    from stagecost.training.trained import open_trained
    from stagecost.trajectory import loss_trajectory, needed_blocks
    from stagecost.verbs.summaries import analysis

    needed_blocks((0.0, 0.0), tolerance)  # refuse an impossible tolerance before the long work
    trained = open_trained(run, checkpoint=checkpoint, device=device)
    trajectory = loss_trajectory(trained.network, trained.batches(split), loss=trained.loss)
    return analysis(trajectory, split, tolerance)


def prune(
    run: str,
    output: str,
    *,
    max_drop: float | None = None,
    keep_blocks: int | None = None,
    keep_per_stage: Sizes | None = None,
    finetune_epochs: int = 0,
    checkpoint: Which = "last",
    device: str = "auto",
) -> dict[str, Any]:
    """Cut off the blocks that are not needed, and save the small network.

    Args:
        run: a run folder.
        output: folder of the small network.
        max_drop: points of validation accuracy that may be lost; the smallest such network is kept.
        keep_blocks: how many blocks to keep.
        keep_per_stage: how many blocks to keep in each stage, such as 3,2,4.
        finetune_epochs: epochs of training after the cut, at a tenth of the learning rate.
        checkpoint: which checkpoint of the run.
        device: auto, cpu, cuda or mps.
    """
    from stagecost.verbs.pruning import prune_run

    return prune_run(
        run,
        output,
        max_drop=max_drop,
        keep_blocks=keep_blocks,
        keep_per_stage=keep_per_stage,
        finetune_epochs=finetune_epochs,
        checkpoint=checkpoint,
        device=device,
    )


def evaluate(
    path: str,
    *,
    data: str | None = None,
    split: Split = "test",
    checkpoint: Which = "last",
    device: str = "auto",
) -> dict[str, Any]:
    """Measure the accuracy of a run's network or of a saved one.

    Args:
        path: a run folder, or the folder of a saved network.
        data: other images; those that it was trained on if not given.
        split: the images to use.
        checkpoint: which checkpoint of a run.
        device: auto, cpu, cuda or mps.
    """
    from stagecost.training.trained import open_trained
    from stagecost.verbs.summaries import evaluation

    return evaluation(open_trained(path, checkpoint=checkpoint, device=device), split, data)


def bound(
    run: str, sub: list[str], *, checkpoint: Which = "last", device: str = "auto"
) -> dict[str, Any]:
    """Compare the objective of a run with the bound of Theorem 3.1 from shallower runs.

    Args:
        run: the run of ResNet-N.
        sub: runs of SubResNets of fewer blocks, trained alone by the same recipe.
        checkpoint: which checkpoint of the runs.
        device: auto, cpu, cuda or mps.
    """
    from stagecost.verbs.bound import bound_of_runs

    return bound_of_runs(run, sub, checkpoint=checkpoint, device=device)


def report(
    run: str, *, tolerance: float = 0.5, checkpoint: Which = "last", device: str = "auto"
) -> dict[str, Any]:
    """Write report.html into a run folder: figures, tables, and how to use the result.

    Args:
        run: a run folder.
        tolerance: points of accuracy that may be missing to the full depth.
        checkpoint: which checkpoint of the run.
        device: auto, cpu, cuda or mps.
    """
    from stagecost.training.folder import RunFolder
    from stagecost.verbs.summaries import write_run_report

    found = analyze(
        run, split=_report_split(run), tolerance=tolerance, checkpoint=checkpoint, device=device
    )
    return write_run_report(RunFolder(Path(run)), found)


def _report_split(run: str) -> Split:
    from stagecost.training.folder import RunFolder

    # Without a validation split the training images stand in; the report says which split it shows.
    return "val" if RunFolder(Path(run)).settings().data.val_fraction > 0 else "train"


def tune(
    output: str,
    *,
    trials: int = 20,
    jobs: int = 1,
    objective: Literal["full", "pruned"] | None = None,
    tolerance: float | None = None,
    resume: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Search gamma and lambda, and show the fewest blocks for each accuracy.

    Args:
        output: folder of the search; one that holds a search is refused unless it is resumed.
        trials: how many trials there are to be in all; the first is plain training, gamma 0.
        jobs: processes that train at the same time.
        objective: the accuracy that stands against the depth: that of all blocks (full), or of the
            needed ones alone (pruned); full if not given.
        tolerance: points of accuracy that may be missing to the full depth; 0.5 if not given.
        resume: go on with the search in the folder.
        settings: see `stagecost.training.settings`.
    """
    from stagecost.allocator import keep_freed_memory
    from stagecost.verbs.tune import tune_runs

    keep_freed_memory()
    return tune_runs(
        Path(output),
        settings,
        trials=trials,
        jobs=jobs,
        resume=resume,
        objective=objective,
        tolerance=tolerance,
    )


def demo(*, output: str = "stagecost-demo", seed: int = 0) -> dict[str, Any]:
    """Show the whole way on scikit-learn's digits in a few minutes; no network is needed.

    Args:
        output: folder for everything that the demo writes; a demo that was stopped goes on there.
        seed: of the trainings.
    """
    from stagecost.allocator import keep_freed_memory
    from stagecost.verbs.demo import run_demo

    keep_freed_memory()
    return run_demo(Path(output), seed)


def benchmark(
    *,
    quick: bool = False,
    configurations: list[str] | None = None,
    rounds: int | None = None,
    threads: int = 1,
    device: str = "auto",
    results: str | None = None,
) -> dict[str, Any]:
    """Measure what a stage cost costs on this machine, against the plain loop and against peers.

    Args:
        quick: the first two configurations and the pruned network only, in less than two minutes.
        configurations: names of configurations to measure; all of them if not given.
        rounds: rounds of every measurement; 15 if not given, 7 with --quick.
        threads: threads to compute with on the CPU.
        device: auto, cpu or cuda.
        results: folder of recorded results; the repository's, or results, if not given.
    """
    from stagecost.verbs.benchmark import run_benchmark

    return run_benchmark(
        quick=quick,
        configurations=configurations,
        rounds=rounds,
        threads=threads,
        device=device,
        results=results,
    )


def reproduce(
    experiment: str,
    *,
    tier: Literal["cpu", "gpu"] = "cpu",
    dataset: str | None = None,
    seeds: Sizes | None = None,
    data_root: str | None = None,
    work: str | None = None,
    results: str | None = None,
    from_results: bool = False,
) -> dict[str, Any]:
    """Run an experiment that is recorded, or show what is recorded, beside the paper's figures.

    Args:
        experiment: layer-pruning, loss-trajectory, bound, peers or staged.
        tier: cpu, small enough for two cores, or gpu, the paper's size.
        dataset: one data set; all of the experiment's if not given.
        seeds: of the runs, such as 0,1,2; the experiment's own if not given.
        data_root: folder with local copies of the data sets, by name.
        work: folder of the trainings; runs/reproduce if not given. What is there goes on.
        results: folder of recorded results; the repository's, or results, if not given.
        from_results: train nothing, show what is recorded.
    """
    from stagecost.allocator import keep_freed_memory
    from stagecost.verbs.reproduce import run_reproduce

    keep_freed_memory()
    return run_reproduce(
        experiment,
        tier=tier,
        dataset=dataset,
        seeds=seeds,
        data_root=data_root,
        work=work,
        results=results,
        from_results=from_results,
    )
