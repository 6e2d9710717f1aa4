"""One figure of a peer: whose, of which configuration, of what, and why there is none."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stagecost.benchmark.configurations import Configuration
from stagecost.benchmark.timing import Ratio


@dataclass(frozen=True)
class Quantity:
    """A figure of a peer.

    Attributes:
        peer: the package, with its version, or the way of training.
        configuration: the name of the configuration.
        quantity: what the value is.
        value: the figure; None where the peer cannot do it.
        spread: the quartiles of a ratio of times.
        note: what else a reader has to know; the reason where there is no figure.
    """

    peer: str
    configuration: str
    quantity: str
    value: float | None
    spread: tuple[float, float] | None = None
    note: str = ""

    @classmethod
    def of_ratio(
        cls, peer: str, configuration: str, quantity: str, ratio: Ratio, note: str = ""
    ) -> "Quantity":
        """Return the figure of a ratio of times."""
        spread = (ratio.quartiles[0], ratio.quartiles[1])
        return cls(peer, configuration, quantity, round(ratio.median, 4), spread, note)

    def row(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return {
            "peer": self.peer,
            "configuration": self.configuration,
            "quantity": self.quantity,
            "value": self.value,
            "spread": None if self.spread is None else list(self.spread),
            "note": self.note,
        }


def refusals(peer: str, configuration: Configuration, reasons: Mapping[str, str]) -> list[Quantity]:
    """Return what a peer cannot do, by quantity, with the reasons."""
    return [Quantity(peer, configuration.name, what, None, note=why) for what, why in reasons.items()]
