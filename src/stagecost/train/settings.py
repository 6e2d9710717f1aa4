"""The settings of a training run: small frozen dataclasses, which are also the command line's flags.

Nothing heavy is imported here, so that the command line can show its help at once.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from stagecost.cut import Cut
from stagecost.data.config import DataConfig
from stagecost.errors import StageCostError

MAX_SEED = 2**63 - 1
LARGEST = 1e30  # that a setting may be: what is larger is no number in single precision, or soon none
SAMPLED_DEPTHS = 3
TRACKERS = "tensorboard", "trackio", "mlflow", "wandb"


@dataclass(frozen=True)
class ModelSettings:
    """Which network to build.

    Args:
        model: name of a model, such as homogeneous, staged or preact_resnet50.
        num_blocks: N, blocks of a homogeneous network; 16 if not given.
        width: channels of a homogeneous network (16 if not given), or of the stem of an ImageNet-sized
            one (64).
        blocks_per_stage: blocks of each stage of a staged network; 3,3,3 if not given.
        widths: channels of each stage of a staged network; 16,32,64 if not given.
        stem_stride: stride of the first convolution of a homogeneous or staged network; 1 if not given.
        projection: of a staged network: strided (1×1 convolution with a stride, as in the paper; if not
            given) or average (pooling first, so that no pixel is dropped).
        weights: that training starts from: a file, the folder of a saved network, or pretrained.
    """

    model: str = "homogeneous"
    num_blocks: int | None = None
    width: int | None = None
    blocks_per_stage: tuple[int, ...] | None = None
    widths: tuple[int, ...] | None = None
    stem_stride: int | None = None
    projection: Literal["strided", "average"] | None = None
    weights: str | None = None

    def arguments(self) -> dict[str, Any]:
        """Return the arguments for `create_model` that were given."""
        given = {
            k: v for k, v in asdict(self).items() if k not in ("model", "weights") and v is not None
        }
        return {key: list(v) if isinstance(v, tuple) else v for key, v in given.items()}


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Args:
        gamma: the stage weight; 0 is plain training; 1/N if not given, or 1 with targets.
        weight_decay: lambda, on the residual branches only.
        normalize_objective: divide the objective, and lambda, by the weight of all losses, 1 + gamma·N.
        label_smoothing: of the cross-entropy, from 0 to below 1.
        epochs: passes over the training images.
        batch_size: images a step, over all processes together.
        optimizer: sgd (momentum 0.9, Nesterov) or adamw.
        lr: the highest learning rate; 0.1 for sgd and 0.002 for adamw if not given.
        layer_decay: each layer before the head learns at this part of the rate of the one behind it, in
            the smallest target that it is a part of.
        freeze_stem: leave the stem as it is, its running statistics too.
        freeze_norms: leave the running statistics of all norms as they are, and train with them.
        warmup_epochs: epochs of linear warm-up, before the cosine to zero; may be a fraction.
        clip_norm: largest norm of the gradient; 0 does not clip.
        ema_decay: decay of an exponential moving average of the weights; 0 keeps none.
        seed: of the initial weights, the order of the images, and the validation split.
        device: auto, cpu, cuda or mps.
        precision: 32, bf16 or fp16 (mixed).
        compile: the network of a step by torch.compile, built at the first step; for long trainings on
            an accelerator.
        data_on_device: keep all images on the device, as bytes, instead of sending each batch there.
        activation_checkpointing: keep about √N states for the gradient and compute the rest again.
        num_processes: processes that share each batch.
        checkpoint_minutes: an unfinished epoch is saved this often.
        tracker: where the figures of each epoch go besides: tensorboard, trackio, mlflow or wandb, or
            several of them.
        tensorboard: the same as --tracker tensorboard, of earlier versions.
    """

    gamma: float | None = None
    weight_decay: float = 5e-4
    normalize_objective: bool = False
    label_smoothing: float = 0.0
    epochs: int = 20
    batch_size: int = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float | None = None
    layer_decay: float = 1.0
    freeze_stem: bool = False
    freeze_norms: bool = False
    warmup_epochs: float = 1.0
    clip_norm: float = 0.0
    ema_decay: float = 0.0
    seed: int = 0
    device: str = "auto"
    precision: Literal["32", "bf16", "fp16"] = "32"
    compile: bool = False
    data_on_device: bool = False
    activation_checkpointing: bool = False
    num_processes: int = 1
    checkpoint_minutes: float = 10.0
    tracker: tuple[str, ...] = ()
    tensorboard: bool = False

    @property
    def trackers(self) -> tuple[str, ...]:
        """Where the figures of each epoch go besides."""
        return tuple(dict.fromkeys((*self.tracker, *(["tensorboard"] if self.tensorboard else []))))

    @property
    def peak_lr(self) -> float:
        """The highest learning rate."""
        default = 0.1 if self.optimizer == "sgd" else 0.002
        return default if self.lr is None else self.lr

    def check(self) -> None:
        """Refuse impossible values."""
        for name in ("epochs", "batch_size", "num_processes"):
            _check_least(self, name, 1)
        for name in ("gamma", "weight_decay", "warmup_epochs", "clip_norm", "seed"):
            _check_least(self, name, 0)
        if self.seed > MAX_SEED:
            raise StageCostError(f"--seed is {self.seed}: give a whole number from 0 to 2^63 - 1")
        for name in ("label_smoothing", "ema_decay"):
            _check_part(self, name)
        for name in ("lr", "checkpoint_minutes"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= LARGEST:
                raise StageCostError(
                    f"{flag(name)} is {value}: give a number above 0, at most {LARGEST:g}"
                )
        if unknown := set(self.tracker).difference(TRACKERS):
            raise StageCostError(f"--tracker is {min(unknown)!r}: give some of {', '.join(TRACKERS)}")
        if not 0 < self.layer_decay <= 1:
            raise StageCostError(
                f"--layer-decay is {self.layer_decay}: give a number above 0, at most 1"
            )
        if self.compile and self.activation_checkpointing:
            raise StageCostError(
                "--compile builds a step as a whole, and --activation-checkpointing does it in pieces: "
                "leave one of them out"
            )
        if self.batch_size % self.num_processes:
            raise StageCostError(
                f"--batch-size {self.batch_size} cannot be shared by {self.num_processes} processes: "
                "give a multiple"
            )


@dataclass(frozen=True)
class StageCostSettings:
    """Which outputs bear the stage cost, and what happens to the blocks; see docs/variants.md.

    Args:
        first_depth: outputs before this depth bear no stage cost.
        targets: cuts that bear the stage cost instead of y_0 … y_{N-1}: numbers of blocks, such as 4,8,
            or of each stage, such as 3+3+4, or in brackets the k of each block, such as "[0 4 7]".
        target_norms: norms of the targets: shared with the whole network, or own (in the blocks that act
            and in the head; each target then takes a pass of its own).
        sandwich: of three or more targets, the smallest and one that is drawn bear the stage cost in a
            step; its mean stays the same.
        equilibrium: each block gets the mean, not the sum, of the losses behind it.
        gate: what a larger network wants of a target's blocks, and of stem and head, is multiplied by
            this; of two targets one holds the blocks of the other. 1 is no gate.
        sampled_depths: how many outputs bear the stage cost in a step, drawn anew each step so that its
            mean stays the same; 0 takes all, and 0.125 one output in an eighth of the steps. 3 if not
            given, or all with targets or compile.
        stage_loss: same, or distilled (half of it from the detached terminal output).
        drop_path: stochastic depth: the last branch is left out of the training of an image with this
            probability, earlier ones with less, growing linearly; 0 leaves none out.
        cut_at: cuts during the training, epoch:blocks, such as 3:8,6:4; or, in a staged network,
            epoch:blocks of each stage, such as 3:4+3+2.
        plain_after_cuts: the stage cost ends with the last cut of cut_at, and training goes on by the
            terminal loss alone, with the weight that it has then, or 1 with normalize_objective.
    """

    first_depth: int = 0
    targets: tuple[str, ...] = ()
    target_norms: Literal["shared", "own"] = "shared"
    sandwich: bool = False
    equilibrium: bool = False
    gate: float = 1.0
    sampled_depths: float | None = None
    stage_loss: Literal["same", "distilled"] = "same"
    drop_path: float = 0.0
    cut_at: str | None = None
    plain_after_cuts: bool = False

    def check(self, epochs: int) -> None:
        """Refuse impossible values."""
        for name in ("first_depth", "sampled_depths"):
            _check_least(self, name, 0)
        sampled = self.sampled_depths or 0
        if sampled > 1 and sampled % 1:
            raise StageCostError(
                f"--sampled-depths is {sampled}: give a whole number, or a part below 1"
            )
        _check_part(self, "drop_path")
        self.cuts()
        if self.targets and self.first_depth:
            raise StageCostError(
                f"--first-depth is about the outputs y_k, which bear no stage cost with --targets "
                f"{','.join(self.targets)}: leave one of them out"
            )
        self._check_targets()
        schedule = self.schedule()
        if self.plain_after_cuts and not schedule:
            raise StageCostError("--plain-after-cuts is on, but nothing is cut: give --cut-at as well")
        for epoch in schedule:
            if not 1 <= epoch < epochs:
                raise StageCostError(
                    f"--cut-at names epoch {epoch} of {epochs}: give an earlier one, or more --epochs, "
                    "so that training follows the cut"
                )

    def _check_targets(self) -> None:
        """Refuse what is about targets without them, or does not go together with the rest."""
        if not 0 <= self.gate <= 1:
            raise StageCostError(f"--gate is {self.gate}: give a number from 0 to 1")
        given = {"--target-norms own": self.target_norms == "own", "--sandwich": self.sandwich}
        given[f"--gate {self.gate}"] = self.gate != 1
        for name in (name for name, is_given in given.items() if is_given):
            if not self.targets:
                raise StageCostError(
                    f"{name} is about targets, and there are none: give --targets as well"
                )
        if self.target_norms == "own" and self.cut_at:
            raise StageCostError(
                f"--cut-at {self.cut_at} changes what --target-norms own belong to: leave one out"
            )
        if self.sandwich and len(self.targets) < 3:
            raise StageCostError(
                f"--sandwich draws one of three or more targets, and --targets {','.join(self.targets)} "
                "are all trained in any case: give more of them, or leave it out"
            )
        if self.sandwich and self.sampled_depths:
            raise StageCostError(
                f"--sandwich and --sampled-depths {self.sampled_depths} both draw: leave one of them out"
            )

    def cuts(self) -> tuple[Cut, ...]:
        """Return the target cuts.

        Raises:
            StageCostError: one of them is not a cut.
        """
        return tuple(_parse_cut("--targets", target, target) for target in self.targets)

    def schedule(self) -> dict[int, Cut]:
        """Return the cuts of `cut_at`: after which epoch which blocks stay, in order.

        Raises:
            StageCostError: the text does not say cuts, or names an epoch twice.
        """
        cuts: dict[int, Cut] = {}
        for part in [] if self.cut_at is None else self.cut_at.split(","):
            epoch, _, blocks = (text.strip() for text in part.partition(":"))
            if not (epoch.isascii() and epoch.isdigit()) or int(epoch[:18]) in cuts:
                raise StageCostError(
                    f"--cut-at is {self.cut_at!r}: give epoch:blocks, each epoch once, such as 3:8,6:4"
                )
            cuts[int(epoch[:18])] = _parse_cut("--cut-at", self.cut_at, blocks)
        return dict(sorted(cuts.items()))


# What may differ between a run and its continuation, because the result does not depend on it.
FREE_ON_RESUME = frozenset({"device", "tracker", "tensorboard", "checkpoint_minutes"})


@dataclass(frozen=True)
class RunSettings:
    """Everything that defines a training run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelSettings = field(default_factory=ModelSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    stage: StageCostSettings = field(default_factory=StageCostSettings)

    def check(self) -> None:
        """Refuse impossible values."""
        _check_part(self.data, "val_fraction")
        self.training.check()
        self.stage.check(self.training.epochs)
        if self.model.weights == "":
            raise StageCostError("--weights is '': give a file, a folder, or pretrained")
        own = self.stage.target_norms == "own"
        if own and self.training.gamma == 0:
            raise StageCostError("--gamma 0 trains no targets, and so no --target-norms own: raise it")
        for name in ("freeze_stem", "freeze_norms"):
            if getattr(self.training, name) and not self.model.weights:
                raise StageCostError(
                    f"{flag(name)} keeps what weights came with, and there are none: give --weights, or "
                    "leave it out"
                )
        drawn = self.stage.sandwich or self.stage.sampled_depths
        if own and drawn and self.training.num_processes > 1:
            raise StageCostError(
                "--target-norms own get no gradient where a target is not drawn, and --num-processes "
                f"{self.training.num_processes} wait for one: give 1, or take all targets in every step"
            )
        if self.training.compile and (own or self.stage.sandwich):
            raise StageCostError(
                "--compile builds a step once, without --sandwich and --target-norms own: leave one out"
            )
        if self.training.normalize_objective and 0 < self.sampled_depths < 1:
            raise StageCostError(
                f"--sampled-depths {self.sampled_depths} change the mean of a normalised objective: "
                "give a whole number, or leave --normalize-objective out"
            )
        if self.training.compile and self.stage.sampled_depths:
            raise StageCostError(
                f"--sampled-depths {self.stage.sampled_depths} are others in every step, and --compile "
                "builds a step once: leave one of them out"
            )

    @property
    def sampled_depths(self) -> float:
        """How many outputs bear the stage cost in a step, or in which part of the steps; 0 is all."""
        if self.stage.sampled_depths is not None:
            return self.stage.sampled_depths
        return 0 if self.training.compile or self.stage.targets else SAMPLED_DEPTHS

    def gamma(self, num_blocks: int) -> float:
        """Return the stage weight of a network of N blocks."""
        if self.training.gamma is not None:
            return self.training.gamma
        return 1.0 if self.stage.targets else 1 / num_blocks

    def to_flat(self) -> dict[str, Any]:
        """Return all settings by their flag names, as plain types."""
        parts = (self.data, self.model, self.training, self.stage)
        flat = {name: value for part in parts for name, value in asdict(part).items()}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in flat.items()}

    def with_training(self, **changes: Any) -> "RunSettings":
        """Return a copy with some training settings changed."""
        return replace(self, training=replace(self.training, **changes))


def flag(name: str) -> str:
    """Return the flag of a setting."""
    return f"--{name.replace('_', '-')}"


def _parse_cut(name: str, whole: str | None, text: str) -> Cut:
    try:
        cut = Cut.parse(text)
    except StageCostError:
        raise StageCostError(
            f"{name} is {whole!r}: give numbers of blocks, such as 8, or of each stage, such as 3+3+4"
        ) from None
    if cut == Cut.whole():
        raise StageCostError(f"{name} is {whole!r}: give fewer blocks than the whole network has")
    return cut


def _check_least(part: object, name: str, least: int) -> None:
    value = getattr(part, name)
    if value is not None and not least <= value <= LARGEST:
        raise StageCostError(
            f"{flag(name)} is {value}: give a finite number of at least {least}, at most {LARGEST:g}"
        )


def _check_part(part: object, name: str) -> None:
    value = getattr(part, name)
    if not 0 <= value < 1:
        raise StageCostError(f"{flag(name)} is {value}: give a number from 0 to below 1")
