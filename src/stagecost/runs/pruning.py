"""`stagecost prune`: from a run to a small saved network, with everything that lies between."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from stagecost.calibration import recalibrate
from stagecost.cut import Cut
from stagecost.data.fingerprint import FINGERPRINT_FILE, fine_tuned
from stagecost.data.loading import DataBundle
from stagecost.errors import StageCostError
from stagecost.latency import measure_latency
from stagecost.models.catalogue import cut_to
from stagecost.network import ResidualNetwork
from stagecost.prune import PruningPlan, carry_optimizer
from stagecost.runs.certainty import Interval, paired_drop, wilson
from stagecost.runs.folder import RunFolder, keep_for_report
from stagecost.runs.lock import locked
from stagecost.runs.planning import Request
from stagecost.runs.results import Result
from stagecost.runs.trained import CheckpointName, Judged, Trained, open_trained
from stagecost.saved import CONFIG_FILE
from stagecost.storage import remove_leftovers, write_atomically
from stagecost.train.checkpoint import load_optimizer_tensors
from stagecost.train.devices import check_compiler
from stagecost.train.display import TrainingDisplay
from stagecost.train.loop import Epoch, fit
from stagecost.train.settings import RunSettings, StageCostSettings
from stagecost.train.setup import Setup, prepare
from stagecost.train.state import State, make_optimizer
from stagecost.train.teacher import Taught
from stagecost.trajectory import Score, device_of, evaluation_mode, terminal_score

LOG = logging.getLogger("stagecost")
RECALIBRATION_IMAGES = 8192
FINETUNE_LR_FACTOR = 0.1
LATENCY_SECONDS = 0.3  # for each network


@dataclass(frozen=True)
class Pruning(Result):
    """What a pruning did."""

    aliases: ClassVar[Mapping[str, str]] = {"path": "network"}

    kept_blocks: tuple[int, ...]  #: the paper's indices k of the blocks that stay
    num_blocks_before: int  #: N, of the run's network
    accuracy_before: float  #: percent on validation images, of the whole network
    accuracy_predicted: float  #: of the network without the other blocks, before anything was done to it
    accuracy_after: float  #: of the network that is saved
    parameters_before: int  #: trainable numbers
    parameters_after: int  #: the same of the network that is saved
    macs_before: int  #: multiply-accumulate operations for one image
    macs_after: int  #: the same of the network that is saved
    network: str  #: folder of the saved network
    finetune_epochs: int  #: that it was trained after the cut
    num_images: int  #: validation images
    interval: Interval | None  #: Wilson's, of the accuracy after it
    drop_interval: Interval  #: of the drop, in points, from the same images before and after
    warnings: tuple[str, ...]  #: what makes the choice doubtful
    loss_before: float  #: on validation images, of the whole network
    loss_after: float  #: of the network that is saved
    #: median time of one image on this machine, in turns with the small network
    latency_ms_before: float
    latency_ms_after: float  #: the same of the network that is saved
    #: percent, right after the cut; None if it was not trained after it
    accuracy_before_finetuning: float | None = None
    weights: str = ""  #: digest of the weights before it; empty in earlier versions

    def check(self, trained: Trained) -> None:
        """Refuse another network, or other weights of this one.

        Raises:
            ValueError: this tells of these.
        """
        cut_to(trained.network, self.kept_blocks)  # blocks may have left the network since
        if self.weights not in ("", trained.weights_digest):
            raise ValueError("it was of other weights")


def prune(
    run: str | Path,
    output: str | Path,
    *,
    max_drop: float | None = None,
    max_loss_increase: float | None = None,
    keep: Cut | int | Sequence[int] | None = None,
    search: bool = False,
    finetune_epochs: int = 0,
    teacher: bool = False,
    checkpoint: CheckpointName = "last",
    device: str = "auto",
    data: str | None = None,
    allow_trained: bool = False,
) -> Pruning:
    """Plan on validation data, cut, recalibrate or fine-tune if asked for, measure, save.

    Args:
        run: folder of the run.
        output: folder of the small network.
        max_drop: points of validation accuracy that may be lost; alone, the cheapest such cut is made.
        max_loss_increase: by how much the validation loss may rise; the same.
        keep: a cut, such as `Cut.stages(3, 2, 4)`, or how many blocks stay, or the paper's indices k of
            those that do.
        search: among cuts of any blocks, not tails alone (`stagecost.search.search_cuts`).
        finetune_epochs: epochs of training after the cut, at a tenth of the learning rate.
        teacher: half of the loss of this training is the divergence from the whole network.
        data: where the images of the training are now, if they moved.
        allow_trained: go on where images of the validation split were trained on.

    Raises:
        StageCostError: an impossible cut, or more accuracy lost than `max_drop` allows; nothing is
            saved then.
    """
    target = Path(output)
    if finetune_epochs < 0:
        raise StageCostError(f"--finetune-epochs is {finetune_epochs}: give a number of at least 0")
    if teacher and not finetune_epochs:
        raise StageCostError("--teacher is for training after the cut: give --finetune-epochs as well")
    request = Request(max_drop, max_loss_increase, keep, search)
    request.check()
    with locked(target, "is being written"):
        check_new_folder(target)
        remove_leftovers(target)
        trained = open_trained(run, checkpoint=checkpoint, device=device)
        trained.run_checkpoint()  # or say that this is no run
        bundle = trained.load("train", "val", data=data)
        val = trained.judged_on(bundle, "val", allow_trained=allow_trained)
        plan = request.plan(trained, val)
        pruned = _recalibrated(trained, plan, bundle, val, request)
        right_after = None
        if finetune_epochs:
            right_after = terminal_score(pruned, val.batches, loss=trained.loss).accuracy
            pruned = finetune(trained, pruned, bundle, finetune_epochs, teacher=teacher)
        pruning = _compare(trained, plan, pruned, val, target, finetune_epochs, max_drop, right_after)
        _check_limits(pruning, request)
        if (saved := trained.fingerprint) is not None:  # first, so that no network is there without it
            saved = fine_tuned(saved, bundle) if finetune_epochs else saved
            write_atomically(target / FINGERPRINT_FILE, saved)
        pruned.save_pretrained(target, **trained.moved(data).details(), pruning=pruning.to_json())
        kept = replace(pruning, network=str(target.absolute()))  # found from whatever folder
        keep_for_report(RunFolder(trained.path).pruning, kept)
    return pruning


def check_new_folder(path: Path) -> None:
    """Refuse a folder in which a saved network would meet another one, or a run."""
    if (path / CONFIG_FILE).exists() or RunFolder(path).config.exists():
        raise StageCostError(f"{path} holds a network or a run already: give another --output")


def _recalibrated(
    trained: Trained, plan: PruningPlan, bundle: DataBundle, val: Judged, request: Request
) -> ResidualNetwork:
    """Apply the plan; estimate BatchNorm anew if that helps on validation data, within the limits.

    Truncation changes no state that is left, so a homogeneous network needs no recalibration.
    """
    pruned = plan.apply(trained.network)
    if len(trained.network.stages) == 1 and plan.cut.is_prefix:
        return pruned
    anew = plan.apply(trained.network)
    recalibrate(anew, trained.random_images(bundle, RECALIBRATION_IMAGES))
    before = Score(Cut.whole(), plan.loss_before, plan.accuracy_before, val.num_images)
    limits = request.limits(before)

    def goodness(network: ResidualNetwork) -> tuple[bool, float, float]:
        score = terminal_score(network, val.batches, loss=trained.loss)
        return limits.allow(score), score.accuracy, -score.rank

    better = max(pruned, anew.eval(), key=goodness)
    if better is anew:
        LOG.info("statistics of norms are estimated anew: validation images are better off with them")
    return better


def _compare(
    trained: Trained,
    plan: PruningPlan,
    pruned: ResidualNetwork,
    val: Judged,
    target: Path,
    finetune_epochs: int,
    max_drop: float | None,
    right_after: float | None,
) -> Pruning:
    before, after = (right_answers(network, val.batches) for network in (trained.network, pruned))
    accuracy = 100 * int(after.sum()) / val.num_images
    loss_after = terminal_score(pruned, val.batches, loss=trained.loss).loss
    image = next(iter(val.batches))[0][:1]
    times = measure_latency({"before": trained.network, "after": pruned}, image, seconds=LATENCY_SECONDS)
    lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
    return Pruning(
        kept_blocks=plan.kept_blocks,
        num_blocks_before=plan.num_blocks,
        accuracy_before=plan.accuracy_before,
        accuracy_predicted=plan.accuracy_predicted,
        accuracy_after=accuracy,
        parameters_before=plan.parameters_before,
        parameters_after=plan.parameters_after,
        macs_before=plan.macs_before,
        macs_after=plan.macs_after,
        network=str(target),
        finetune_epochs=finetune_epochs,
        num_images=val.num_images,
        interval=wilson(accuracy, val.num_images),
        drop_interval=paired_drop(lost, gained, val.num_images),
        warnings=val.doubts(plan.accuracy_before, max_drop),
        loss_before=plan.loss_before,
        loss_after=loss_after,
        latency_ms_before=times["before"].p50_ms,
        latency_ms_after=times["after"].p50_ms,
        accuracy_before_finetuning=right_after,
        weights=trained.weights_digest,
    )


def right_answers(network: ResidualNetwork, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Tell for each image whether a network gets it right, in eval mode, (n,) bool on the CPU."""
    device = device_of(network)
    with evaluation_mode(network):
        answers = [
            (network(images.to(device)).argmax(dim=1) == targets.to(device)).cpu()
            for images, targets in batches
        ]
    return torch.cat(answers)


def _check_limits(pruning: Pruning, request: Request) -> None:
    """Refuse a network that lost more than was allowed, after all that was done to it."""
    before, after, max_drop = pruning.accuracy_before, pruning.accuracy_after, request.max_drop
    if max_drop is not None and before - after > max_drop + 1e-9:
        raise StageCostError(
            f"the pruned network has {after:.2f} % on validation data, more than --max-drop {max_drop} "
            f"below {before:.2f} %: keep more blocks or allow a larger drop"
        )
    rise, limit = pruning.loss_after - pruning.loss_before, request.max_loss_increase
    if limit is not None and not rise <= limit + 1e-9:  # nor if it is no number
        raise StageCostError(
            f"the loss of the pruned network on validation data is {rise:.4g} higher, more than "
            f"--max-loss-increase {limit}: keep more blocks or allow more"
        )


def finetune(
    trained: Trained,
    pruned: ResidualNetwork,
    bundle: DataBundle,
    epochs: int,
    *,
    teacher: bool = False,
) -> ResidualNetwork:
    """Train a pruned network a little longer, for its terminal output, with the optimiser's old state.

    The learning rate starts at a tenth of the run's and falls to zero; nothing is written. With a
    teacher, half of the loss is the divergence from the whole network.
    """
    with torch.random.fork_rng(devices=[]):
        return _finetuned(trained, pruned, bundle, epochs, teacher=teacher)


def _finetuned(
    trained: Trained, pruned: ResidualNetwork, bundle: DataBundle, epochs: int, *, teacher: bool
) -> ResidualNetwork:
    setup = prepare(finetune_settings(trained, epochs), bundle, network=pruned)
    state = setup.start()
    before = make_optimizer(trained.network, trained.settings.training, weight_decay=0.0)
    load_optimizer_tensors(before, trained.network, trained.run_checkpoint().part("optimizer"))
    carried = carry_optimizer(before, trained.network, pruned)
    for parameter, values in carried.state.items():
        state.optimizer.state[parameter] = values
    taught = Taught(setup.batches, trained.network.eval(), trained.loss) if teacher else None
    return train_in_memory(setup, state, "fine-tune", taught)


def train_in_memory(
    setup: Setup, state: State, label: str, taught: Taught | None = None
) -> ResidualNetwork:
    """Do all epochs of a training that writes nothing, and return its network, in eval mode."""
    stage_cost = setup.stage_cost if taught is None else replace(setup.stage_cost, loss=taught.loss)
    with TrainingDisplay(label, setup.settings.training.epochs) as display:

        def epoch_done(state: State, epoch: Epoch) -> None:
            display.epoch_ends(setup.validation.record(state, epoch, setup.recipe))

        fit(
            state,
            taught or setup.batches,
            stage_cost,
            setup.recipe,
            on_step=display.step_done,
            on_epoch=epoch_done,
        )
    return state.evaluated.eval()


def finetune_settings(
    trained: Trained, epochs: int, lr_factor: float = FINETUNE_LR_FACTOR
) -> RunSettings:
    """Return the settings of epochs after a cut, from those of the run that trained the network.

    The decay is the one that its optimiser had. A normalised objective divides lambda by the weight of
    all losses. Without the stage cost nothing would divide it any more, and a lambda that was raised to
    make up for it would be far too large.
    """
    # What is left is trained for its own output, and stays as it is.
    plain = replace(trained.settings, stage=StageCostSettings())
    device, precision = trained.device.type, trained.settings.training.precision
    return plain.with_training(
        device=device,  # where the network was opened, which need not be where it was trained
        precision="32" if (device, precision) == ("cpu", "fp16") else precision,
        compile=trained.settings.training.compile and _compiles(device),
        gamma=0.0,
        epochs=epochs,
        lr=lr_factor * trained.settings.training.peak_lr,
        weight_decay=trained.run_checkpoint().weight_decay,
        normalize_objective=False,
        warmup_epochs=0.0,
        ema_decay=0.0,
        num_processes=1,
    )


def _compiles(device: str) -> bool:
    """Tell whether torch.compile works on this kind of device, here."""
    with suppress(StageCostError):
        check_compiler(device)
        return True
    return False
