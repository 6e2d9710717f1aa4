"""Networks on the Hugging Face Hub, each with a model card that says what was measured of it."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download

from stagecost.cut import Cut
from stagecost.errors import StageCostError, refusing
from stagecost.exits.policy import POLICY_FILE
from stagecost.latency import measure_latency, this_machine
from stagecost.macs import count_macs, count_parameters
from stagecost.models.catalogue import load
from stagecost.network import ResidualNetwork
from stagecost.prune import PruningPlan
from stagecost.runs.folder import RunFolder
from stagecost.saved import CONFIG_FILE, WEIGHTS_FILE
from stagecost.storage import read_tensors, write_atomically
from stagecost.text import format_indices, markdown_table
from stagecost.trajectory import Trajectory, evaluation_mode

MOST_ROWS = 17
PICTURE = "depth.png"
TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

{{ what }}

{{ cut }}

## Depths

{{ depths }}

## Controls

{{ controls }}

## Data and licence

Data: {{ data }}. Licence: {{ licence }}.

## Use

```python
from stagecost.integrations.hub import HubNetwork

network = HubNetwork.from_pretrained("OWNER/NAME").network
```

Made with [stagecost](https://pypi.org/project/stagecost): a stage cost in training shows how many
blocks a residual network needs.
"""


class HubNetwork(  # type: ignore[call-arg]
    ModelHubMixin,  # type: ignore[misc]
    library_name="stagecost",
    tags=["stagecost", "resnet", "depth-pruning"],
    model_card_template=TEMPLATE,
):
    """A network on its way to the Hub or from it, and what its card tells.

    `save_pretrained`, `push_to_hub` and `from_pretrained` are those of `huggingface_hub`; a folder that
    is saved is one that `stagecost.load` reads.

    Attributes:
        network: the network.
    """

    def __init__(
        self,
        network: ResidualNetwork,
        *,
        trajectory: Trajectory | None = None,
        plan: PruningPlan | None = None,
        controls: Mapping[str, float] | None = None,
        data: str = "not stated",
        licence: str | None = None,
    ) -> None:
        """Take what there is to tell; what is missing, the card says is missing.

        Args:
            network: that was trained.
            trajectory: of this network, on images it was not trained on.
            plan: by which it was cut, or can be.
            controls: what else was trained alike → its accuracy in percent.
            data: what it was trained and judged on.
            licence: of the weights, such as "apache-2.0".

        Raises:
            StageCostError: the trajectory is of another number of blocks, or the plan keeps others.
        """
        if trajectory is not None:
            trajectory.check(network.num_blocks)
        self._is_cut = plan is not None and plan.kept_blocks == network.block_indices
        if plan is not None and not (self._is_cut or plan.num_blocks == network.num_blocks):
            raise StageCostError(
                f"the plan keeps the blocks {format_indices(plan.kept_blocks)}, and the network has "
                f"{format_indices(network.block_indices)}: give the plan that it was cut by"
            )
        self.network, self.trajectory, self.plan = network, trajectory, plan
        with refusing("controls are no accuracies", "give percents by name", TypeError, ValueError):
            self.controls = {name: float(accuracy) for name, accuracy in dict(controls or {}).items()}
        self.data, self.licence = data, licence

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> str | None:
        """Save network, card and figure to a folder; where one is refused, the folder stays as it was.

        Args:
            save_directory: the folder; what it has of an earlier network goes, card and figure as well.
            repo_id: where to push; the name of the folder if not given.
            push_to_hub: push it, too.
            model_card_kwargs: for the template of the card.
            options: of `push_to_hub`.

        Raises:
            StageCostError: the network cannot be saved, or what there is to tell is of another one.
        """
        folder, fields = Path(save_directory), dict(model_card_kwargs or {})
        card = str(self.generate_model_card(**fields))
        figure = None if self.trajectory is None else self.trajectory.plot().png()
        replaces = self._is_another(folder / WEIGHTS_FILE)
        self.network.save_pretrained(folder)
        if replaces:  # what was found of the earlier network goes
            run = RunFolder(folder)
            for file in (run.fingerprint, run.latency, run.exits, folder / POLICY_FILE):
                file.unlink(missing_ok=True)
        (folder / PICTURE).unlink(missing_ok=True)
        write_atomically(folder / "README.md", card)
        if figure is not None:
            write_atomically(folder / PICTURE, figure)
        if not push_to_hub:
            return None
        url: str = self.push_to_hub(repo_id or folder.name, model_card_kwargs=fields, **options)
        return url

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> "HubNetwork":
        """Load a network from the Hub or from a folder, in eval mode, on the CPU; no code is run.

        Args:
            pretrained_model_name_or_path: "owner/name", or a folder.
            options: `revision`, `token`, `cache_dir`, `force_download`, `local_files_only`.

        Raises:
            StageCostError: there is no such network, or the Hub cannot be reached.
        """
        name, files = str(pretrained_model_name_or_path), [CONFIG_FILE, WEIGHTS_FILE]
        if name and Path(name).is_dir():
            return cls(load(name))
        what, remedy = f"{name} cannot be loaded from the Hub", "check the name and the network"
        with refusing(what, remedy, Exception):
            folder = snapshot_download(name, allow_patterns=files, **options)
        return cls(load(folder))

    def _is_another(self, weights: Path) -> bool:
        """Tell whether a file holds weights that are not this network's."""
        if not weights.is_file():
            return False
        state = self.network.state_dict()
        try:
            saved, _ = read_tensors(weights)
        except StageCostError:
            return True
        same = (torch.equal(saved[name], tensor.cpu()) for name, tensor in state.items())
        return saved.keys() != state.keys() or not all(same)

    def generate_model_card(self, *_: Any, **fields: Any) -> ModelCard:
        """Write the card; times are measured now, on this machine."""
        network, description = self.network, self.network.description
        name = type(network).__name__ if description is None else description.name
        card: ModelCard = super().generate_model_card(
            title=f"{name}, {network.num_blocks} blocks",
            what=f"A residual network of {count_parameters(network):,} parameters, with the blocks "
            f"{format_indices(network.block_indices)}.",
            cut=self._cut(),
            depths=self._depths(),
            controls=self._controls(),
            data=self.data,
            licence=self.licence or "not stated",
            **fields,
        )
        card.data.license = self.licence
        return card

    def _cut(self) -> str:
        if self.plan is None:
            return "Nothing is said of a cut."
        table = markdown_table(("on the data of the plan", "before", "after"), self.plan.rows)
        words = "Cut by a plan" if self._is_cut else "Not cut; a plan could"
        return f"{words}: {self.plan.summary}.\n\n{table}"

    def _controls(self) -> str:
        if not self.controls:
            return "None was trained, or none is stated."
        rows = ((name, f"{accuracy:.2f} %") for name, accuracy in self.controls.items())
        return markdown_table(("network", "accuracy"), rows)

    def _depths(self) -> str:
        if self.trajectory is None:
            return "Not measured."
        trajectory = self.trajectory
        count = min(MOST_ROWS, trajectory.num_blocks + 1)
        depths = sorted({round(i * trajectory.num_blocks / (count - 1)) for i in range(count)})
        cuts = {str(k): Cut.first(k) for k in depths}
        times = self._milliseconds(cuts)
        rows = []
        for k, cut in zip(depths, cuts.values(), strict=True):
            row = trajectory.rows[k]
            accuracy = f"{row.accuracy:.2f} %" if row.accuracy == row.accuracy else "none"
            macs = count_macs(self.network, trajectory.image_shape, cut)
            rows.append((k, f"{row.loss:.4g}", accuracy, f"{macs:,}", times.get(str(k), "unknown")))
        header = ("blocks", "loss", "accuracy", "MACs of a sample", "ms of a sample")
        machine = this_machine()
        where = f"one sample at a time, {machine.processor}, torch {machine.torch}"
        which = f"{len(rows)} of {trajectory.num_blocks + 1} depths"
        note = f"{which}, on {trajectory.num_samples:,} samples; times are medians: {where}."
        picture = f"![{trajectory.plot().summary}]({PICTURE})"
        return f"{markdown_table(header, rows)}\n\n{note}\n\n{picture}"

    def _milliseconds(self, cuts: Mapping[str, Cut]) -> dict[str, str]:
        sample = self.network.sample(self.trajectory.image_shape) if self.trajectory else ()
        if not isinstance(sample, torch.Tensor):
            return {}
        forwards = {k: partial(self.network, cuts=cut) for k, cut in cuts.items()}
        with evaluation_mode(self.network):
            times = measure_latency(forwards, torch.zeros_like(sample), seconds=0.05)
        return {k: f"{latency.p50_ms:.2f}" for k, latency in times.items()}
