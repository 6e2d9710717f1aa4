"""The settings of a training run: small frozen dataclasses, which are also the command line's flags.

Nothing heavy is imported here, so that the command line can show its help at once.
"""

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from stagecost.data.config import DataConfig
from stagecost.errors import StageCostError
from stagecost.training.gamma_control import GammaSettings
from stagecost.training.shrink import ShrinkSettings


class Sizes(tuple[int, ...]):
    """Whole numbers written as "16,32,64" on the command line and as a list in a file."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: object) -> "Sizes":
        """Read "16,32,64", or a list of numbers.

        Raises:
            ValueError: something in it is no whole number.
        """
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple) or any(isinstance(p, bool | float) for p in parts):
            raise ValueError(f"{value!r} is not a list of whole numbers such as 16,32,64")
        try:
            return cls(int(part) for part in parts)
        except ValueError:
            raise ValueError(f"{value!r} is not a list of whole numbers such as 16,32,64") from None


@dataclass(frozen=True)
class ModelSettings:
    """Which network to build.

    Args:
        model: name of a model: homogeneous, staged, preact_resnet50, preact_resnet101, preact_resnet152.
        num_blocks: N, blocks of a homogeneous network.
        width: channels of a homogeneous network, or of the stem of an ImageNet-sized one.
        blocks_per_stage: blocks of each stage of a staged network, such as 9,9,9.
        widths: channels of each stage of a staged network, such as 16,32,64.
        stem_stride: stride of the first convolution of a homogeneous or staged network.
        projection: of a staged network: strided (1×1 convolution with a stride, as in the paper) or
            average (pooling first, so that no pixel is dropped).
        head_statistics: running statistics of the head's BatchNorm, see docs/head-statistics.md.
    """

    model: str = "homogeneous"
    num_blocks: int | None = None
    width: int | None = None
    blocks_per_stage: Sizes | None = None
    widths: Sizes | None = None
    stem_stride: int | None = None
    projection: Literal["strided", "average"] | None = None
    head_statistics: Literal["per_output", "shared", "terminal"] = "per_output"

    def arguments(self) -> dict[str, Any]:
        """Return the arguments for `create_model` that were given."""
        given = {key: value for key, value in asdict(self).items() if value is not None}
        given.pop("model")
        return {key: list(v) if isinstance(v, tuple) else v for key, v in given.items()}


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Args:
        gamma: the stage weight; 0 is plain training; 1/N if not given; auto: see docs/gamma.md.
        weight_decay: lambda, on the residual branches only.
        normalize_objective: divide the objective, and lambda, by 1 + gamma·N; by a schedule of gamma,
            lambda is divided by its full value throughout. gamma: auto is always so, with the gamma of
            the moment.
        label_smoothing: of the cross-entropy, from 0 to 1.
        epochs: passes over the training images.
        batch_size: images a step, over all processes together.
        optimizer: sgd (momentum 0.9, Nesterov) or adamw.
        lr: the highest learning rate; 0.1 for sgd and 0.002 for adamw if not given.
        warmup_epochs: epochs of linear warm-up, before the cosine to zero; may be a fraction.
        clip_norm: largest norm of the gradient; 0 does not clip.
        ema_decay: decay of an exponential moving average of the weights; 0 keeps none.
        seed: of the initial weights, the order of the images, and the validation split.
        device: auto, cpu, cuda or mps.
        precision: 32, bf16 or fp16 (mixed).
        fused: intermediate outputs by kernels that are compiled at the first step (yes), module by
            module (no), or the former on a CPU with a compiler if the training is long (auto).
        compile: the network of a step as a whole by torch.compile, built at the first step; for long
            trainings on an accelerator. Then auto does not choose fused.
        data_on_device: keep all images on the device, as bytes, instead of sending each batch there.
        activation_checkpointing: keep about √N states for the gradient and compute the rest again.
        num_processes: processes that share each batch.
        checkpoint_minutes: an unfinished epoch is saved this often.
        tensorboard: also write TensorBoard files.
    """

    gamma: float | Literal["auto"] | None = None
    weight_decay: float = 5e-4
    normalize_objective: bool = False
    label_smoothing: float = 0.0
    epochs: int = 20
    batch_size: int = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float | None = None
    warmup_epochs: float = 1.0
    clip_norm: float = 0.0
    ema_decay: float = 0.0
    seed: int = 0
    device: str = "auto"
    precision: Literal["32", "bf16", "fp16"] = "32"
    fused: Literal["auto", "yes", "no"] = "auto"
    compile: bool = False
    data_on_device: bool = False
    activation_checkpointing: bool = False
    num_processes: int = 1
    checkpoint_minutes: float = 10.0
    tensorboard: bool = False

    @property
    def peak_lr(self) -> float:
        """The highest learning rate."""
        default = 0.1 if self.optimizer == "sgd" else 0.002
        return default if self.lr is None else self.lr

    @property
    def normalized(self) -> bool:
        """Whether objective and lambda are divided by 1 + gamma·N: on demand, or if gamma is steered."""
        return self.normalize_objective or self.gamma == "auto"

    def check(self) -> None:
        """Refuse impossible values.

        Raises:
            StageCostError: names the first impossible value and what is possible.
        """
        at_least = {"epochs": 1, "batch_size": 1, "num_processes": 1, "seed": 0}
        at_least |= dict.fromkeys(("gamma", "weight_decay", "warmup_epochs", "clip_norm"), 0)
        for name, least in at_least.items():
            value = getattr(self, name)
            if value not in (None, "auto") and not (math.isfinite(value) and value >= least):
                raise StageCostError(f"{name} is {value}: give a finite number of at least {least}")
        for name in ("label_smoothing", "ema_decay"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise StageCostError(f"{name} is {value}: give a number from 0 to below 1")
        for name in ("peak_lr", "checkpoint_minutes"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise StageCostError(f"{name.replace('peak_', '')} is {value}: give a number above 0")
        if self.compile and self.fused == "yes":
            raise StageCostError("compile and fused yes exclude each other: leave one of them out")
        if self.batch_size % self.num_processes:
            raise StageCostError(
                f"batch_size {self.batch_size} cannot be shared by {self.num_processes} processes: "
                "give a multiple"
            )


@dataclass(frozen=True)
class VariantSettings:
    """How training departs from the paper's uniform, constant stage cost; see docs/variants.md.

    Args:
        gamma_schedule: constant, warmup (rises over the first half), early (0 until 20 % of the
            training, full from 30 % on), late (0 until 40 %, full from 70 % on) or falling (a
            cosine to 0).
        depth_weights: uniform, growing with k as (k+1)/N, or first: only the output behind
            first_depth blocks bears a stage cost.
        first_depth: outputs before this depth bear no stage cost.
        depth_vector: blocks of each stage of a sub-network, such as 2,3,5, whose output bears the stage
            cost instead of the outputs y_k: the network that a cut of each stage would leave.
        sampled_depths: how many depths bear the stage cost in a step, drawn anew each step so that its
            mean stays the same; 0 takes all.
        stage_loss: same, distilled (half of it from the detached terminal output) or hinged (only what
            an output loses against the terminal one).
        constant_head: the stage cost does not move head and projections.
        group_lasso: weight of the block-wise proximal group lasso; 0 is none.
        drop_path: stochastic depth: the last branch is left out of the training of an image with this
            probability, earlier ones with less, growing linearly; 0 leaves none out.
    """

    gamma_schedule: Literal["constant", "warmup", "early", "late", "falling"] = "constant"
    depth_weights: Literal["uniform", "growing", "first"] = "uniform"
    first_depth: int = 0
    depth_vector: Sizes | None = None
    sampled_depths: int = 0
    stage_loss: Literal["same", "distilled", "hinged"] = "same"
    constant_head: bool = False
    group_lasso: float = 0.0
    drop_path: float = 0.0

    def weights(self, num_blocks: int) -> list[float]:
        """Return c_k for k = 0 … N-1."""
        if self.depth_vector is not None:
            return [0.0] * num_blocks
        match self.depth_weights:
            case "uniform":
                chosen = [1.0] * num_blocks
            case "growing":
                chosen = [(k + 1) / num_blocks for k in range(num_blocks)]
            case "first":
                chosen = [float(k == self.first_depth) for k in range(num_blocks)]
        return [c if k >= self.first_depth else 0.0 for k, c in enumerate(chosen)]

    def total_weight(self, num_blocks: int) -> float:
        """Return Σ c_k, that of the output of a vector of depths included."""
        return sum(self.weights(num_blocks)) + float(self.depth_vector is not None)

    def check(self) -> None:
        """Refuse impossible values.

        Raises:
            StageCostError: names the value and what is possible.
        """
        only_outputs = ("depth_weights", "first_depth", "sampled_depths", "constant_head")
        for name in () if self.depth_vector is None else only_outputs:
            if getattr(self, name) != getattr(VariantSettings, name):
                raise StageCostError(
                    f"{name} is about the outputs y_k, which bear no stage cost with depth_vector "
                    f"{','.join(map(str, self.depth_vector or ()))}: leave one of them out"
                )
        for name in ("first_depth", "sampled_depths"):
            if getattr(self, name) < 0:
                raise StageCostError(f"{name} is {getattr(self, name)}: give a number of at least 0")
        if not (math.isfinite(self.group_lasso) and self.group_lasso >= 0):
            raise StageCostError(f"group_lasso is {self.group_lasso}: give a number of at least 0")
        if not 0 <= self.drop_path < 1:
            raise StageCostError(f"drop_path is {self.drop_path}: give a number from 0 to below 1")


# What may differ between a run and its continuation, because the result does not depend on it.
FREE_ON_RESUME = frozenset({"device", "tensorboard", "checkpoint_minutes"})


@dataclass(frozen=True)
class RunSettings:
    """Everything that defines a training run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelSettings = field(default_factory=ModelSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    variant: VariantSettings = field(default_factory=VariantSettings)
    shrink: ShrinkSettings = field(default_factory=ShrinkSettings)
    control: GammaSettings = field(default_factory=GammaSettings)

    def to_flat(self) -> dict[str, Any]:
        """Return all settings by their flag names, as plain types."""
        parts = (self.data, self.model, self.training, self.variant, self.shrink, self.control)
        flat = {name: value for part in parts for name, value in asdict(part).items()}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in flat.items()}

    def with_training(self, **changes: Any) -> "RunSettings":
        """Return a copy with some training settings changed."""
        return replace(self, training=replace(self.training, **changes))
