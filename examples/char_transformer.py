"""A transformer of your own that predicts the next character: targets are sequences, (B, T).

    python examples/char_transformer.py [TEXT_FILE] [--steps 300]

Without a file it reads the README of this repository. About a minute on one core.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stagecost as sc
from stagecost.prune import PruningPlan

LENGTH = 32  # characters that the model sees


class CharTransformer(nn.Module):
    """A module that knows nothing of this library."""

    def __init__(self, characters: int, width: int = 48, blocks: int = 6) -> None:
        """Create it."""
        super().__init__()
        self.characters = nn.Embedding(characters, width)
        self.places = nn.Parameter(0.1 * torch.randn(LENGTH, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=True)
            for _ in range(blocks)
        )
        self.norm, self.last = nn.LayerNorm(width), nn.Linear(width, characters)

    def forward(self, text: Tensor) -> Tensor:
        """Map numbers of characters (B, T) to logits of the next ones (B, T, characters)."""
        state = self.characters(text) + self.places
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH, device=text.device)
        for layer in self.layers:
            state = layer(state, src_mask=mask, is_causal=True)
        logits: Tensor = self.last(self.norm(state))
        return logits


def next_character(output: Tensor, target: Tensor) -> Tensor:
    """Compute the cross-entropy of logits (B, T, characters) and targets (B, T)."""
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def pieces(text: Tensor, count: int, size: int = 16) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw batches of pieces of a text, and the same pieces one character later."""
    for _ in range(count):
        starts = torch.randint(len(text) - LENGTH, (size, 1)) + torch.arange(LENGTH)
        yield text[starts], text[starts + 1]


def train_and_cut(text: Tensor, steps: int) -> tuple[PruningPlan, nn.Module]:
    """Train on nine tenths of a text, cut by the rest; all that this library is used for."""
    train, val = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
    view = sc.adapt(CharTransformer(int(text.max()) + 1), train[None, :LENGTH])
    stage_cost = sc.StageCost.uniform(view.num_blocks, gamma=0.1, loss=next_character)
    optimizer = torch.optim.AdamW(sc.parameter_groups(view, weight_decay=1e-2), lr=3e-3)
    for characters, following in pieces(train, steps):
        loss = stage_cost(view(characters, stage_cost.outputs), following).total
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    trajectory = sc.loss_trajectory(view, pieces(val, 8), loss=next_character)
    plan = sc.plan_pruning(view, trajectory, max_loss_increase=0.05)
    return plan, view.keep(plan.cut).model


def numbered(text: str) -> Tensor:
    """Return the numbers of the characters of a text."""
    alphabet = {character: number for number, character in enumerate(sorted(set(text)))}
    return torch.tensor([alphabet[character] for character in text])


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    readme = Path(__file__).parent.parent / "README.md"
    parser.add_argument("file", type=Path, nargs="?", default=readme)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    plan, model = train_and_cut(numbered(arguments.file.read_text()), arguments.steps)
    print(plan, model, sep="\n")


if __name__ == "__main__":
    main()
