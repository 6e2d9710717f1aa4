"""What a step with a stage cost costs on live models of timm, beside a plain step of the model itself.

Command     python -m experiments run adapted-steps [--rounds 7]
Machine     the record names it; one thread
Runtime     two minutes on an idle core
Seeds       0

The plain step calls the model's own forward. The others ask its view for one or three outputs y_k that
are drawn anew for each step, beside the terminal one; or for one in a sixteenth of the steps (the time
of a step is then the mean of 32).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.benchmark.measure import cpu_seconds, ratio, take_turns
from experiments.benchmark.steps import Step, optimizer_of, step
from experiments.records import Record, Row
from experiments.runner import Context, Experiment
from experiments.tables import Columns, rows_of, table
from stagecost.models.catalogue import create_model
from stagecost.network import ResidualNetwork
from stagecost.objective import StageCost

ROUNDS, BATCH, CLASSES = 7, 8, 10
SHARE, SHARED_STEPS = 1 / 16, 32
"""In which part of the steps there is one output, and how many steps are timed together for it."""
MODELS = {
    "cpu": {
        "resnet50": 64,
        "convnext_tiny": 64,
        "vit_small_patch16_224": 64,
        "tf_efficientnet_lite0": 64,
    },
    "quick": {"test_vit": 32},
}
RARELY = "one output in a sixteenth of the steps"
TEXT = """\
A training step of a live model by its own forward, and of its view with a stage cost on one or three
outputs that are drawn anew for each step, or on one in a sixteenth of the steps. CPU time of steps taken
in turns; the median of the ratios within a round, and quartiles."""


def plain_step(network: ResidualNetwork, images: Tensor, targets: Tensor) -> Step:
    """Return a step of the live model, by its own forward."""
    model = network.get_submodule("model")
    assert isinstance(model, nn.Module)
    return step(lambda: F.cross_entropy(model(images), targets), optimizer_of(network))


def sampled_step(network: ResidualNetwork, images: Tensor, targets: Tensor, outputs: float) -> Step:
    """Return a step with a stage cost on some outputs, drawn anew for each step."""
    cost = StageCost.uniform(network.num_blocks, 1 / network.num_blocks)
    generator = torch.Generator().manual_seed(0)

    def loss() -> Tensor:
        drawn = cost.sampled(outputs, generator)
        return drawn(network(images, drawn.outputs), targets).total

    return step(loss, optimizer_of(network))


def repeated(once: Step, times: int) -> Step:
    """Return many steps as one."""

    def steps() -> None:
        for _ in range(times):
            once()

    return steps


def run(context: Context) -> Row:
    """Time the steps of each model in turns."""
    rounds, rows = context.options.get("rounds", ROUNDS), []
    for name, size in MODELS[context.tier].items():
        context.report(f"steps of {name}")
        torch.manual_seed(context.seeds[0])
        network = create_model(f"timm/{name}", num_classes=CLASSES, image_size=size).train()
        images, targets = torch.randn(BATCH, 3, size, size), torch.randint(CLASSES, (BATCH,))
        arms = {
            "plain": plain_step(network, images, targets),
            "one output": sampled_step(network, images, targets, 1),
            "three outputs": sampled_step(network, images, targets, 3),
            RARELY: repeated(sampled_step(network, images, targets, SHARE), SHARED_STEPS),
        }
        seconds = take_turns(arms, rounds, cpu_seconds)
        seconds[RARELY] = [total / SHARED_STEPS for total in seconds[RARELY]]
        for arm in list(arms)[1:]:
            measured = ratio(seconds[arm], seconds["plain"])
            rows.append(
                {
                    "model": f"timm/{name}",
                    "arm": arm,
                    "image_size": size,
                    "batch_size": BATCH,
                    "num_blocks": network.num_blocks,
                    "plain_ms": round(1000 * sorted(seconds["plain"])[rounds // 2], 2),
                    "ratio": round(measured.median, 4),
                    "quartiles": measured.quartiles,
                    "rounds": rounds,
                }
            )
    return {"rows": rows}


def section(records: Sequence[Record]) -> list[str]:
    """Return the table."""
    columns: Columns = {
        "model": "{model}",
        "image": "{image_size}",
        "blocks": "{num_blocks}",
        "plain step": "{plain_ms:.0f} ms",
        "beside it": "{arm}",
        "ratio": "{ratio:.3f}",
        "quartiles": lambda row: "{:.3f} to {:.3f}".format(*row["quartiles"]),
    }
    return [TEXT, table(rows_of(records), columns)]


ADAPTED_STEPS = Experiment(
    name="adapted-steps",
    title="A step on models of other libraries",
    datasets={"cpu": ("",), "quick": ("",)},
    run=run,
    section=section,
    seeds=(0,),
    options=frozenset({"rounds"}),
)
