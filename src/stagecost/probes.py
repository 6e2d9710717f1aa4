"""Linear heads: what a linear map can read off a state, and a head for other classes without training.

A head is fitted by logistic regression with a small penalty on features that are pooled over places, so
it takes seconds. On x_k it tells how much of the answer is there after k blocks, whatever the rest of
the network makes of it (Alain and Bengio 2016, "linear classifier probes").
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagecost.controls import moving
from stagecost.cut import Cut
from stagecost.errors import StageCostError
from stagecost.losses import IGNORED_CLASS
from stagecost.network import ResidualNetwork
from stagecost.trajectory import (
    Loader,
    Score,
    check_gradients,
    count_correct,
    device_of,
    evaluation_mode,
    pair,
    to_device,
)

PENALTY = 1e-2  # on the weights, for features of variance 1
STEPS = 60
CONSTANT = 1e-6  # of a feature's mean: one that varies by less is constant but for rounding


def linear_probes(network: ResidualNetwork, train: Loader, loader: Loader) -> list[Score]:
    """Fit a linear head on each state x_0 … x_N, in eval mode, and measure it on other data.

    Args:
        network: is left as it is.
        train: batches of (images, class numbers), to fit the heads on.
        loader: batches to measure them on.

    Returns:
        The score of each, by the cut `Cut.first(k)`.

    Raises:
        StageCostError: a loader gives no batch, or no classes; states are not finite, or do not tell
            channels from places.
    """
    features, targets = state_features(network, train)
    others, truth = state_features(network, loader)
    if targets.min() < 0 or ((truth < 0) & (truth != IGNORED_CLASS)).any():
        raise StageCostError("linear heads are fitted to classes: give numbers from 0 on for both")
    scores, num_classes = [], int(max(targets.max(), truth.max())) + 1
    for k, (seen, unseen) in enumerate(zip(features, others, strict=True)):
        fitted = fit_linear(seen, targets, num_classes)
        with torch.autocast("cpu", enabled=False):
            output = fitted(unseen)
        loss = float(F.cross_entropy(output, truth))
        right = 100 * float(count_correct(output[None], truth)) / len(truth)
        scores.append(Score(Cut.first(k), loss, right, len(truth)))
    return scores


def state_features(network: ResidualNetwork, loader: Loader) -> tuple[list[Tensor], Tensor]:
    """Return x_0 … x_N of a data set, pooled, (n, F_k) each, and the targets, (n,), on the CPU.

    Raises:
        StageCostError: the loader gives no batch or no classes, or states do not tell channels from
            places.
    """
    states: list[list[Tensor]] = [[] for _ in range(network.num_blocks + 1)]
    targets: list[Tensor] = []

    def note(k: int, state: Tensor, following: Tensor) -> None:
        if k == 0:
            states[0].append(pooled(moving(state, following)[0], inputs))
        states[k + 1].append(pooled(moving(following, state)[0], inputs))

    with evaluation_mode(network):
        for inputs, classes in map(pair, loader):
            if classes.dim() != 1 or classes.is_floating_point() or classes.dtype == torch.bool:
                raise StageCostError("linear heads are fitted to classes: give labels as targets")
            network(to_device(inputs, device_of(network)), observe=note)
            targets.append(classes.cpu())
    if not targets:
        raise StageCostError("the data set is empty: give at least one image")
    return [torch.cat(each) for each in states], torch.cat(targets).long()


def pooled(state: Tensor, inputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return the mean of a state over its places, (B, channels), on the CPU.

    Args:
        state: (B, C, H, W), (B, H, W, C), (B, tokens, C), or (B, C, length) of signals. Where all sides
            of an image are equal, channels come first; of the shape of (B, tokens, C), last.
        inputs: of the network; only square ones, and signals whose length stays, tell which sides of a
            state are places.

    Raises:
        StageCostError: channels cannot be told from places.
    """
    first, given = state, inputs if isinstance(inputs, Tensor) else inputs[0]
    channels_last = _are_channels_last(first, given)
    if channels_last is None:
        raise StageCostError(
            f"states {tuple(first.shape)} of inputs {tuple(given.shape)} do not tell channels from "
            "places: give square images, or signals whose length stays"
        )
    places = range(1, first.dim() - 1) if channels_last else range(2, first.dim())
    return (first.mean(dim=tuple(places)) if len(places) else first).float().cpu()


def _are_channels_last(state: Tensor, given: Tensor) -> bool | None:
    """Tell whether the channels of a state come behind its places; None where inputs do not tell."""
    if state.dim() == 4:
        told = _is_square(state) and (given.dim() != 4 or _is_square(given))
        return state.shape[2] != state.shape[3] if told else None
    if state.dim() != 3 or given.dim() not in (2, 3):
        return state.dim() == 3
    are_tokens, is_signal = state.shape[1] == given.shape[1], state.shape[2] == given.shape[-1]
    if are_tokens or (given.dim() == 2 and not is_signal):  # numbers of tokens, and a class token
        return True
    return False if given.dim() == 3 and is_signal else None


def _is_square(images: Tensor) -> bool:
    """Tell whether two neighbouring sides are equal, of (B, C, H, W) or (B, H, W, C)."""
    return images.shape[2] in (images.shape[1], images.shape[3])


def fit_classifier(
    network: ResidualNetwork,
    loader: Loader,
    num_classes: int,
    cuts: Sequence[Cut] = (Cut.whole(),),
) -> None:
    """Fit the last linear layer of a network to data, in eval mode; all else stays as it is.

    Args:
        network: its classifier is changed.
        loader: batches of (images, class numbers), to fit it on.
        num_classes: rows of its classifier.
        cuts: that it is to serve, all alike.

    Raises:
        StageCostError: not one linear classifier, with a bias, has so many classes, or the loader gives
            no batch, or no classes.
    """
    linear = [m for m in network.head.modules() if isinstance(m, nn.Linear)]
    linear = [m for m in linear if m.out_features == num_classes]
    if not linear:
        raise StageCostError(f"the network has no linear classifier of {num_classes} classes: train it")
    if len(linear) > 1:
        raise StageCostError(
            f"the network has {len(linear)} linear classifiers of {num_classes} classes, and one is "
            "fitted: train it"
        )
    (classifier,) = linear
    if classifier.bias is None:
        raise StageCostError(
            "the network's linear classifier has no bias, as a fitted one has: train it"
        )
    given: list[Tensor] = []
    targets: list[Tensor] = []
    handle = classifier.register_forward_pre_hook(lambda _, args: given.append(args[0].float().cpu()))
    try:
        with evaluation_mode(network):
            for images, classes in map(pair, loader):
                for cut in cuts:
                    network(to_device(images, device_of(network)), cut)
                    targets.append(classes.cpu())
    finally:
        handle.remove()
    if not targets:
        raise StageCostError("the data set is empty: give at least one image")
    features, classes = torch.cat(given), torch.cat(targets)
    if features.dim() != 2:
        raise StageCostError(
            f"the classifier reads {tuple(features.shape[1:])} of each sample, where one row is fitted: "
            "train it"
        )
    if (
        classes.dim() != 1
        or classes.is_floating_point()
        or classes.dtype == torch.bool
        or not 0 <= classes.min() <= classes.max() < num_classes
    ):
        raise StageCostError(
            f"a linear classifier of {num_classes} classes is fitted to labels: give whole numbers from "
            f"0 to {num_classes - 1}"
        )
    fitted = fit_linear(features, classes.long(), num_classes)
    classifier.load_state_dict(fitted.state_dict())


def fit_linear(features: Tensor, targets: Tensor, num_classes: int | None = None) -> nn.Linear:
    """Fit a linear map to classes by logistic regression, the same one every time.

    Args:
        features: (n, F); they are standardised for the fit, and the map takes them as they are.
        targets: (n,), class numbers.
        num_classes: as many as the targets have if not given.

    Raises:
        StageCostError: a feature is no finite number, or `torch.inference_mode` is on.
    """
    check_gradients()
    if not bool(features.isfinite().all()):
        raise StageCostError("states hold what is no finite number: look at weights and inputs")
    classes = int(targets.max()) + 1 if num_classes is None else num_classes
    precise = features.double()
    mean, std = precise.mean(dim=0), precise.std(dim=0, correction=0)
    std = std.where(std > CONSTANT * mean.abs(), 1.0)
    standard = ((precise - mean) / std).float()
    weight, bias = torch.zeros(classes, features.shape[1]), torch.zeros(classes)
    parameters = weight.requires_grad_(), bias.requires_grad_()
    solver = torch.optim.LBFGS(parameters, max_iter=STEPS, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(F.linear(standard, weight, bias), targets)
        total = loss + PENALTY / 2 * weight.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        solver.step(objective)  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=[]):  # the numbers that it begins with are not needed
        fitted = nn.Linear(features.shape[1], classes)
    with torch.no_grad():
        fitted.weight.copy_(weight / std)
        fitted.bias.copy_(bias - (weight / std) @ mean)
    return fitted.requires_grad_(False)
