"""What blocks of own modules hand on: several tensors, tokens, masks, other inputs."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stagecost as sc
from models.own import BLOCKS, EXAMPLE, WIDTH, Loop, branch, rows
from stagecost.cut import Cut
from stagecost.dynamics import is_identity
from stagecost.errors import StageCostError
from stagecost.probes import state_features


class Tokens(nn.Module):
    """Whole numbers come in; the blocks are those of torch, the output is a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True, norm_first=True)
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(3))
        self.last = nn.Linear(8, 11)

    def forward(self, text: Tensor) -> Tensor:
        state = self.embedding(text)
        for layer in self.layers:
            state = layer(state)
        return self.last(state)


class Masked(nn.Module):
    """Attention written out, with a mask that stands before the state in what blocks are given."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.first, self.last = kind, nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.layers = nn.ModuleList(branch() for _ in range(3))

    def mask(self, state: Tensor) -> Tensor:
        ones = torch.ones(state.shape[1], state.shape[1], dtype=torch.bool).triu(1)
        far = {"infinite": -torch.inf, "large": -1e9}
        return ones if self.kind == "bool" else torch.zeros(ones.shape).masked_fill(ones, far[self.kind])

    def forward(self, tokens: Tensor) -> Tensor:
        mask, state = self.mask(tokens), self.first(tokens)
        for layer in self.layers:
            state = state + F.scaled_dot_product_attention(state, layer(state), state, attn_mask=mask)
        return self.last(state).mean(1)


@pytest.mark.parametrize("kind", ["bool", "infinite", "large"])
@pytest.mark.parametrize("batch_size", [1, 4, 6])
def test_what_blocks_hand_on_is_no_part_of_the_state(kind: str, batch_size: int) -> None:
    """Neither in how large controls are, nor in what linear probes read."""
    model, tokens = Masked(kind), torch.randn(12, 4, WIDTH, generator=torch.Generator().manual_seed(3))
    view = sc.adapt(model, tokens[:2])
    data = [(x, torch.arange(len(x)) % 3) for x in tokens.split(batch_size)]
    found = sc.loss_trajectory(view, data).residual_ratios
    mask, state, expected = model.mask(tokens), model.first(tokens), []
    for layer in model.layers:
        control = F.scaled_dot_product_attention(state, layer(state), state, attn_mask=mask)
        ratio = control.flatten(1).norm(dim=1) / state.flatten(1).norm(dim=1)
        expected.append(ratio.mean().item())
        state = state + control
    assert found == pytest.approx(expected, rel=1e-4)
    features, _ = state_features(view, data)
    torch.testing.assert_close(features[-1], state.detach().mean(1))


class Clipping(nn.Module):
    """A block with a clip after its sum."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.f, self.clip = branch(), clip

    def forward(self, state: Tensor) -> Tensor:
        return self.clip(state + self.f(state))


@pytest.mark.parametrize(
    ("first", "later", "identity"),
    [
        (nn.ReLU(), nn.ReLU6(), False),
        (nn.Hardtanh(-9.0, 9.0), nn.Hardtanh(-8.0, 8.0), False),
        (nn.ReLU6(), nn.Hardtanh(-1.0, 6.0, inplace=True), True),
        (nn.ReLU6(), nn.ReLU(), True),
    ],
)
def test_a_clip_is_no_identity_where_states_go_beyond_it(
    first: nn.Module, later: nn.Module, identity: bool
) -> None:
    """Also if those that a view is made with do not."""
    last = nn.Linear(WIDTH, 3)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), first, Clipping(later), Clipping(later), last).eval()
    view, x = sc.adapt(model, EXAMPLE), 30 * rows()
    assert is_identity(view.skips[0]) == identity
    assert torch.equal(view(x, depths=0), last(later(later(model[:2](x)))))


def test_macs_of_attention_count_where_meta_tensors_do_not_work() -> None:
    class Tabled(Masked):
        def __init__(self) -> None:
            super().__init__("large")
            self.table = torch.zeros(4, 4)  # not a buffer, so it stays where it is

        def mask(self, state: Tensor) -> Tensor:
            return self.table

    example = torch.zeros(1, 4, WIDTH)
    by_hand = 4 * WIDTH * WIDTH + 3 * (2 * 4 * WIDTH * WIDTH + 2 * 4 * 4 * WIDTH) + 4 * WIDTH * 3
    for model in (Masked("large"), Tabled()):
        assert sc.count_macs(sc.adapt(model, example), (4, WIDTH)) == by_hand


def test_controls_of_a_state_that_holds_one_tensor_twice() -> None:
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = branch()

        def forward(self, context: Tensor, state: Tensor, old: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return context, state + self.f(state), old

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.context, self.first = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
            self.blocks = nn.ModuleList(Remembering() for _ in range(2))
            self.last = nn.Linear(3 * WIDTH, 3)

        def forward(self, x: Tensor) -> Tensor:
            state = self.first(x)
            states = 30 * self.context(x), state, state
            for block in self.blocks:
                states = block(*states)
            return self.last(torch.cat(states, 1))

    model, x = Net(), rows()
    found = sc.loss_trajectory(sc.adapt(model, EXAMPLE), [(x, torch.arange(5) % 3)]).residual_ratios
    state, expected = model.first(x), []
    for block in model.blocks:
        expected.append((block.f(state).norm(dim=1) / state.norm(dim=1)).mean().item())
        state = state + block.f(state)
    assert found == pytest.approx(expected, rel=1e-4)


def test_states_of_several_tensors() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = branch(), branch()

        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return a + self.left(a * b), b + self.right(b)

    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Pair() for _ in range(3))
            self.last = nn.Linear(WIDTH, 2)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            for block in self.blocks:
                a, b = block(a, b)
            return self.last(a - b)

    model = Pairs().eval()
    view, inputs = sc.adapt(model, (EXAMPLE, EXAMPLE)), (rows(), rows(seed=2))
    assert view.paths == ("blocks.0", "blocks.1", "blocks.2")
    assert view.is_homogeneous
    a, b = model.blocks[1](*inputs)
    torch.testing.assert_close(view(inputs, Cut((1,))), model.last(a - b))
    trajectory = sc.loss_trajectory(view, [(inputs, torch.tensor([0, 1, 0, 1, 1]))])
    assert all(0 < ratio < 10 for ratio in trajectory.residual_ratios)
    assert sc.removal_cost(view, [(inputs, torch.tensor([0, 1, 0, 1, 1]))], 0.1)


def test_sequences_of_tokens() -> None:
    model, text = Tokens().eval(), torch.randint(11, (4, 7))
    view = sc.adapt(model, torch.arange(11)[None, :7])
    assert view.paths == ("layers.0", "layers.1", "layers.2")
    assert view(text, depths="all").shape == (4, 4, 7, 11)
    with torch.no_grad():
        assert torch.equal(view(text, Cut()), model.last(model.embedding(text)))
    assert sc.count_macs(view, ()) > sc.count_macs(view, (), Cut.first(1)) > 0


class Conditioned(Loop):
    """To whose state a map of another input is added, before each block or behind it."""

    def __init__(self, *, behind: bool) -> None:
        super().__init__()
        self.time, self.behind = nn.Linear(2, WIDTH), behind

    def forward(self, state: Tensor, time: Tensor) -> Tensor:
        state, shift = self.first(state), self.time(time)
        for one in self.branches:
            if self.behind:
                state = torch.relu(state + one(state) + shift)
            else:
                state = state + shift
                state = state + one(state)
        return self.last(state)


def test_another_input_that_is_added_is_not_taken_for_the_skip() -> None:
    model, x, time = Conditioned(behind=False).eval(), rows(), rows(seed=2)[:, :2]
    view = sc.adapt(model, (x, time))
    assert [block.branches for block in view.adapted] == [(f"branches.{BLOCKS - 1}",)]
    assert torch.equal(view((x, time)), model(x, time))
    with pytest.raises(StageCostError, match="ambiguous: the terms of the sum in its forward are alike"):
        sc.adapt(Conditioned(behind=True), (x, time))


class Decoding(nn.Module):
    """One of the branches is given another input beside the state, as cross-attention is."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.mixed = branch(), branch(), nn.Linear(WIDTH, WIDTH)

    def forward(self, state: Tensor, memory: Tensor) -> Tensor:
        mixed = self.mixed(memory)
        state = state + self.one(state)
        state = state + mixed * torch.tanh(state)
        return state + self.other(state)


class Decoder(nn.Module):
    """Decodes what is made of another input, or of the same one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.encoder, self.last = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.layers = nn.ModuleList(Decoding() for _ in range(3))

    def forward(self, state: Tensor, *others: Tensor) -> Tensor:
        memory, state = self.encoder((*others, state)[0]), self.first(state)
        for one in self.layers:
            state = one(state, memory)
        return self.last(state)

    def cut(self, state: Tensor, memory: Tensor, cut: Cut) -> Tensor:
        memory, state = self.encoder(memory), self.first(state)
        for k, one in enumerate(self.layers):
            state = one(state, memory) if cut.acts(k) else state
        return self.last(state)


@pytest.mark.parametrize("inputs", [(rows(), rows(seed=2)), (rows(),)])
def test_branches_that_are_given_another_input_are_no_part_of_the_skip(
    inputs: tuple[Tensor, ...],
) -> None:
    model, cut = Decoder().eval(), Cut((0, 2))
    view = sc.adapt(model, inputs)
    assert view.paths == ("layers.0", "layers.1", "layers.2")
    expected = model.cut(inputs[0], inputs[-1], cut)
    assert torch.equal(view(inputs, cut), expected)
    assert torch.equal(view.keep(cut).model(*inputs), expected)


def test_numbers_and_words_of_a_table_are_two_inputs() -> None:
    class Mixed(Loop):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(7, WIDTH)

        def forward(self, numbers: Tensor, words: Tensor) -> Tensor:
            state = self.first(numbers) + self.words(words).mean(1)
            for one in self.branches:
                state = state + one(state)
            return self.last(state)

    view = sc.adapt(Mixed(), (EXAMPLE, torch.arange(7)[None, :2]))
    inputs = [(rows(8, seed), torch.randint(7, (8, 2))) for seed in range(2)]
    loader = [(each, torch.rand(8, 3)) for each in inputs]
    options = {"loss": F.binary_cross_entropy_with_logits}
    cuts = [score.cut for score in sc.search_cuts(view, loader, **options)]
    trajectory = sc.loss_trajectory(view, loader, cuts=cuts, **options)
    plan = sc.plan_pruning(view, trajectory, max_loss_increase=0.05)
    assert (view.num_blocks, plan.num_blocks) == (BLOCKS, BLOCKS)
    assert "nan" not in str(plan).lower()
    small = plan.apply(view).eval()
    assert torch.equal(small.model(*inputs[0]), small(inputs[0]))
    with pytest.raises(StageCostError, match="max_drop needs accuracies"):
        sc.plan_pruning(view, trajectory, max_drop=1.0)
    endless = sc.loss_trajectory(view, loader, loss=lambda output, _: output.sum() * float("nan"))
    with pytest.raises(StageCostError, match="loss of the whole network is nan"):
        sc.plan_pruning(view, endless, max_loss_increase=0.1)
    with pytest.raises(StageCostError, match=r"loss cannot be computed of an output \(8, 3\)"):
        sc.loss_trajectory(view, [(inputs[0], torch.rand(8))])
    with pytest.raises(StageCostError, match=r"loss cannot be computed of an output \(8, 3\)"):
        sc.loss_trajectory(view, loader, loss=lambda output, _: output.mean().item())
    with pytest.raises(StageCostError, match=r"loss cannot be computed of an output \(8, 3\)"):
        sc.removal_cost(view, [(inputs[0], torch.rand(8))], 0.1)
    with pytest.raises(StageCostError, match="inputs hold a list: give a tensor or a tuple"):
        view(list(inputs[0]))
    assert view(tuple(inputs[0])).shape == (8, 3)
    with pytest.raises(StageCostError, match="inputs hold a str"):
        sc.adapt(Mixed(), {"numbers": EXAMPLE})


def test_a_mean_over_tokens_that_count_hides_no_block() -> None:
    class Masked(Loop):
        def forward(self, state: Tensor, counts: Tensor) -> Tensor:
            state = self.first(state)
            for one in self.branches:
                state = state + one(state)
            weights = counts.unsqueeze(2).to(state)
            return self.last((state * weights).sum(1) / weights.sum(1).clamp_min(1))

    model, tokens = Masked().eval(), torch.randn(3, 4, EXAMPLE.shape[1])
    inputs = tokens, torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    view = sc.adapt(model, inputs)
    assert view.num_blocks == BLOCKS
    output = view(inputs, Cut.first(1))
    for one in model.branches[1:]:
        one.register_forward_hook(lambda *given: torch.zeros_like(given[2]))
    assert torch.equal(output, model(*inputs))
