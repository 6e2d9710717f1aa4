"""Arms of this library's own making: a trained network as it is, cut, and trained on after the cut."""

from stagecost.macs import count_macs
from stagecost.network import ResidualNetwork
from stagecost.training.cost import passes_of_an_epoch
from stagecost.training.session import start_session
from stagecost.training.trained import Trained
from stagecost.verbs.pruning import finetune_settings, train_in_memory
from stagecost_recipes.cuts import first_blocks
from stagecost_recipes.peer_arms.outcome import Cost, Outcome, measured
from stagecost_recipes.peer_arms.protocol import Protocol
from stagecost_recipes.runs import Run


def as_trained(protocol: Protocol, run: Run) -> list[Outcome]:
    """Measure a network as its training left it."""
    trained = run.open()
    return [measured(trained, trained.network, Cost.of(run))]


def truncated(protocol: Protocol, run: Run) -> list[Outcome]:
    """Measure the first M blocks and the head of a network."""
    trained = run.open()
    return [measured(trained, first_blocks(trained.network, protocol.sub_blocks), Cost.of(run))]


def truncated_and_finetuned(protocol: Protocol, run: Run) -> list[Outcome]:
    """Measure the first M blocks and the head of a network after some more epochs."""
    trained = run.open()
    small = first_blocks(trained.network, protocol.sub_blocks)
    return [finetuned(trained, small, protocol, Cost.of(run))]


def finetuned(trained: Trained, small: ResidualNetwork, protocol: Protocol, before: Cost) -> Outcome:
    """Train a smaller network on, and measure it.

    Args:
        trained: the run that the network comes from.
        small: the network; is changed.
        protocol: says for how long, and how fast.
        before: what the run cost.
    """
    epochs = protocol.later_epochs
    settings = finetune_settings(trained, epochs, protocol.finetune_lr_factor)
    bundle, image = trained.load("train", "val"), trained.image_format
    session = start_session(settings, bundle, network=small)
    network = train_in_memory(session, "fine-tune")
    shape = (image.channels, image.size, image.size)
    macs = epochs * passes_of_an_epoch(trained.settings, bundle.splits) * count_macs(network, shape)
    return measured(trained, network, before + Cost(macs, session.progress.seconds))
