"""A classifier for scikit-learn: `StageCostClassifier(max_drop=0.5).fit(X, y).predict(X)`."""

from numbers import Integral, Real
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from stagecost.calibration import recalibrate
from stagecost.dynamics import ResidualBlock
from stagecost.errors import StageCostError, refusing
from stagecost.models.catalogue import create_model, load
from stagecost.models.registry import register_model
from stagecost.network import ResidualNetwork
from stagecost.objective import StageCost, parameter_groups
from stagecost.prune import plan_pruning
from stagecost.trajectory import evaluation_mode, loss_trajectory

SAMPLED_DEPTHS = 3
LARGEST_BATCH = 1024  # where there is no step to take


FITTED = "classes_", "network_", "trajectory_", "plan_", "n_features_in_", "feature_names_in_"
"""What `fit` leaves."""


class StageCostClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A residual network that is as deep as the data need.

    Rows (n, features) go through a residual MLP, images (n, C, H, W) through a homogeneous ResNet. Some
    samples are kept apart; by them blocks are cut off that do not improve the answers.

    Attributes:
        classes_: labels, in order.
        network_: what is left after the cut.
        trajectory_: every depth before the cut, on the samples kept apart.
        plan_: what was cut.
        n_features_in_: features of a row, or channels of an image.
    """

    def __init__(
        self,
        *,
        max_drop: float = 0.5,
        num_blocks: int = 8,
        width: int = 32,
        gamma: float | None = None,
        epochs: int = 60,
        batch_size: int = 64,
        lr: float = 5e-3,
        weight_decay: float = 1e-2,
        validation_fraction: float = 0.2,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        """Say how; nothing is checked before `fit`, as is the custom there.

        Args:
            max_drop: points of accuracy that the cut may cost on the samples kept apart.
            num_blocks: N, before the cut.
            width: of the states.
            gamma: the stage weight; 1/N if not given.
            epochs: passes over the samples.
            batch_size: samples of a step.
            lr: the highest learning rate of AdamW; a cosine follows.
            weight_decay: lambda, on the residual branches.
            validation_fraction: of the samples, that is kept apart.
            device: of torch.
            random_state: of the weights, the order and the split; None draws one at each `fit`.
        """
        self.max_drop, self.num_blocks, self.width = max_drop, num_blocks, width
        self.gamma, self.epochs, self.batch_size, self.lr = gamma, epochs, batch_size, lr
        self.weight_decay, self.validation_fraction = weight_decay, validation_fraction
        self.device, self.random_state = device, random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:  # noqa: N803 (scikit-learn's names)
        """Train, and cut.

        Args:
            X: (n, features) or (n, C, H, W).
            y: (n,), labels of any kind.

        Raises:
            ValueError: X and y do not go together, or hold what is no finite number.
            StageCostError: an impossible parameter.
        """
        for name in FITTED:  # what an earlier fit left would answer in half, were this one refused
            self.__dict__.pop(name, None)
        samples, labels = validate_data(self, X, y, allow_nd=True)
        check_classification_targets(labels)
        self.classes_, numbers = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise StageCostError("y has one class: give samples of at least two")
        seed = self._checked_seed()
        self._set_scale(samples)
        train, val = self._parted(self._scaled(samples), torch.from_numpy(numbers), seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self._network(train[0].shape[1:]).to(self.device)
            self._train(network, train, seed)
        recalibrate(network, _batches(train))
        self.trajectory_ = loss_trajectory(network, _batches(val))
        self.plan_ = plan_pruning(network, self.trajectory_, max_drop=self.max_drop)
        self.network_ = self.plan_.apply(network).eval()
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float32]:  # noqa: N803
        """Return the probability of each class, (n, classes)."""
        check_is_fitted(self, "network_")
        samples = self._scaled(validate_data(self, X, allow_nd=True, reset=False))
        with evaluation_mode(self.network_):
            parts = [self.network_(part.to(self.device)) for part in torch.split(samples, LARGEST_BATCH)]
        probabilities: NDArray[np.float32] = torch.cat(parts).softmax(dim=1).cpu().numpy()
        return probabilities

    def predict(self, X: ArrayLike) -> NDArray[Any]:  # noqa: N803
        """Return the likeliest label of each sample, (n,)."""
        numbers = self.predict_proba(X).argmax(axis=1)
        answers: NDArray[Any] = self.classes_[numbers]
        return answers

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what `predict` needs: a folder of safetensors and JSON, as `from_pretrained` reads.

        Raises:
            StageCostError: the labels are neither numbers nor texts.
        """
        check_is_fitted(self, "network_")
        labels = self.classes_.tolist()
        if not all(isinstance(label, bool | int | float | str) for label in labels):
            raise StageCostError(f"labels such as {labels[0]!r} are no JSON: fit to numbers or texts")
        scale = {"mean": self._mean.tolist(), "spread": self._spread.tolist()}
        classes = {"labels": labels, "dtype": self.classes_.dtype.str}
        given = {k: v.item() if isinstance(v, np.generic) else v for k, v in self.get_params().items()}
        parameters = {k: v for k, v in given.items() if isinstance(v, bool | int | float | str | None)}
        features = {"features": [*getattr(self, "feature_names_in_", [])]}
        kept = {"parameters": parameters, **classes, **scale, **features, "shape": self._shape}
        self.network_.save_pretrained(folder, classifier=kept)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Load what `save_pretrained` wrote; no code is run. Trajectory and plan are not kept.

        It is loaded to the CPU where this machine does not have the device of the training.

        Raises:
            StageCostError: the folder holds no classifier, or is damaged.
        """
        network = load(folder)
        errors = KeyError, TypeError, ValueError, IndexError
        with refusing(f"{folder} holds no classifier", "give what save_pretrained wrote", *errors):
            kept = network.details["classifier"]
            classifier = cls(**kept["parameters"])
            classifier.classes_ = np.array(kept["labels"], dtype=kept["dtype"])
            mean, spread = (np.array(kept[name], np.float64) for name in ("mean", "spread"))
            classifier.n_features_in_ = mean.shape[1]
            outputs = network.description and network.description.arguments["num_classes"]
            if classifier.classes_.shape != (outputs,) or mean.shape != spread.shape:
                raise ValueError("labels, means or spreads are of another network")
            shape = kept.get("shape")  # earlier versions did not keep it
            classifier._shape = shape and tuple(map(int, shape))
            if names := kept.get("features"):
                classifier.feature_names_in_ = np.array(names, dtype=object)
        if not _is_here(classifier.device):
            classifier.device = "cpu"
        classifier._mean, classifier._spread = mean, spread
        classifier.network_ = network.to(classifier.device)
        return classifier

    def _checked_seed(self) -> int:
        """Refuse impossible parameters that nothing below refuses, and return the seed."""
        for name in ("num_blocks", "width", "epochs", "batch_size"):
            number = getattr(self, name)
            if not isinstance(number, Integral) or number < 1:
                raise StageCostError(f"{name} is {number!r}: give a whole number of at least 1")
        for name in ("lr", "validation_fraction"):
            number = getattr(self, name)
            if not isinstance(number, Real) or not 0 < float(number) < 1:
                raise StageCostError(f"{name} is {number!r}: give a number between 0 and 1")
        for name in ("max_drop", "gamma", "weight_decay"):
            number = getattr(self, name)
            if number is None and name == "gamma":
                continue
            if not isinstance(number, Real) or not 0 <= float(number) < np.inf:
                raise StageCostError(f"{name} is {number!r}: give a finite number of at least 0")
        if not _is_here(self.device):
            raise StageCostError(
                f"device is {self.device!r}: give cpu, cuda or mps, such as this machine has"
            )
        if isinstance(self.random_state, Integral):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31))

    def _set_scale(self, samples: NDArray[Any]) -> None:
        """Note mean and spread of each feature or channel."""
        if samples.ndim not in {2, 4}:
            raise StageCostError(
                f"X has shape {samples.shape}: give rows (n, features) or images (n, C, H, W)"
            )
        self._shape: tuple[int, ...] | None = samples.shape[1:]
        axes = (0, *range(2, samples.ndim))
        self._mean = samples.mean(axis=axes, keepdims=True, dtype=np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            spread = samples.std(axis=axes, keepdims=True, dtype=np.float64)
        if not np.isfinite(spread).all():
            raise StageCostError("X holds numbers whose squares are infinite: divide it")
        # What differs by rounding alone is constant, in the precision that it came in.
        precision = np.finfo(samples.dtype).eps if samples.dtype.kind == "f" else 0.0
        self._spread = np.where(spread > 8 * precision * np.abs(self._mean), spread, 1.0)

    def _scaled(self, samples: NDArray[Any]) -> Tensor:
        """Return samples with mean 0 and spread 1, float32; the difference is taken before rounding."""
        if samples.ndim != self._mean.ndim:
            raise StageCostError(f"X has {samples.ndim} dimensions, not the {self._mean.ndim} of fit")
        if self._shape not in (None, samples.shape[1:]):
            raise StageCostError(f"X has samples of {samples.shape[1:]}, not {self._shape} as in fit")
        if not samples.size:
            raise StageCostError(f"X of shape {samples.shape} holds no numbers: give samples")
        scaled = np.ascontiguousarray((samples - self._mean) / self._spread)
        if np.abs(scaled).max() > np.finfo(np.float32).max:
            raise StageCostError(
                "X is too far from what was fitted to be told in 32 bits: scale it alike"
            )
        return torch.from_numpy(scaled.astype(np.float32))

    def _parted(self, samples: Tensor, numbers: Tensor, seed: int) -> list[tuple[Tensor, Tensor]]:
        """Keep a part of the samples apart, of each class alike where there are enough."""
        smaller = min(self.validation_fraction, 1 - self.validation_fraction)
        many = np.bincount(numbers).min() >= 1 / smaller
        first, second = train_test_split(
            np.arange(len(samples)),
            test_size=float(self.validation_fraction),
            random_state=seed,
            stratify=numbers if many else None,
        )
        return [(samples[part], numbers[part]) for part in (first, second)]

    def _network(self, shape: torch.Size) -> ResidualNetwork:
        sizes: dict[str, Any] = {
            "num_blocks": int(self.num_blocks),  # searches of scikit-learn hand out NumPy's numbers
            "width": int(self.width),
            "num_classes": len(self.classes_),
        }
        if len(shape) == 3:
            return create_model("homogeneous", in_channels=shape[0], **sizes)
        return create_model("residual_mlp", num_features=shape[0], **sizes)

    def _train(self, network: ResidualNetwork, samples: tuple[Tensor, Tensor], seed: int) -> None:
        gamma = 1 / self.num_blocks if self.gamma is None else self.gamma
        stage_cost = StageCost.uniform(self.num_blocks, gamma)
        optimizer = torch.optim.AdamW(parameter_groups(network, self.weight_decay), lr=self.lr)
        batch_size = int(self.batch_size)
        steps = int(self.epochs) * -(-len(samples[0]) // batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps + 1)
        generator = torch.Generator().manual_seed(seed)
        network.train()
        for _ in range(self.epochs):
            order = torch.randperm(len(samples[0]), generator=generator)
            for part in torch.split(order, batch_size):
                images, targets = (tensor[part].to(self.device) for tensor in samples)
                visited = stage_cost.sampled(SAMPLED_DEPTHS, generator) if gamma else stage_cost
                optimizer.zero_grad()
                visited(network(images, visited.outputs), targets).total.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()


def _is_here(device: Any) -> bool:
    """Tell whether this machine computes on a device."""
    try:
        torch.zeros(1, device=torch.device(device)).cpu()
    except (AssertionError, RuntimeError, TypeError):
        return False
    return True


def _batches(samples: tuple[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
    images, targets = (torch.split(tensor, LARGEST_BATCH) for tensor in samples)
    return list(zip(images, targets, strict=True))


class LinearHead(nn.Linear):
    """The same linear map for every depth."""

    def forward(self, state: Tensor, depth: int) -> Tensor:  # type: ignore[override]
        """Map states (B, width) to logits (B, classes)."""
        return super().forward(state)


@register_model("residual_mlp")
def residual_mlp(*, num_features: int, num_blocks: int, width: int, num_classes: int) -> ResidualNetwork:
    """Build a residual MLP: every F_k is a norm and two linear maps; the norm of the head is shared."""
    branches = [
        nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width, bias=False)
        )
        for _ in range(num_blocks)
    ]
    stem, head = nn.Linear(num_features, width), LinearHead(width, num_classes)
    return ResidualNetwork(stem, [ResidualBlock(branch) for branch in branches], head)
