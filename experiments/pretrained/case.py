"""A pretrained network on a data set: its settings, its fitted heads, its cut, its trainings."""

import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from experiments.pretrained import cifar_resnet  # noqa: F401 (its model enters the catalogue)
from experiments.pretrained.choice import HELD_OUT, best, candidates
from experiments.recipes import Settings
from experiments.records import RESULTS, Record, Row, record_name
from experiments.runner import Context, Tier
from experiments.trainings import Run, Training, digest, trained_run
from stagecost.cut import Cut
from stagecost.data.batches import eval_batches
from stagecost.data.loading import DataBundle, load_data
from stagecost.errors import StageCostError
from stagecost.models.catalogue import load
from stagecost.network import ResidualNetwork
from stagecost.probes import fit_classifier
from stagecost.runs.pruning import train_in_memory
from stagecost.storage import read_tensors, write_json, write_tensors
from stagecost.text import format_indices
from stagecost.train.parsing import parse_settings
from stagecost.train.setup import create_network, data_config, prepare
from stagecost.train.stage_cost import loss_of
from stagecost.train.teacher import Taught

BASE: Settings = {"device": "cpu", "batch_size": 32, "warmup_epochs": 0.25, "gamma": 0.0}
IMAGENET: Settings = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
SHORT: Settings = {"limit_train": 6_000, "limit_test": 2_000, "epochs": 1}


def of_cifar10(layers: int) -> Settings:
    """Return the settings of a ResNet of CIFAR-10 with so many layers; 32 is the model's default."""
    return {
        **IMAGENET,
        "model": "cifar_resnet",
        "weights": f"resnet{layers}-cifar10.safetensors",
        "lr": 0.02,
        "batch_size": 128,
        "epochs": 10,
    }


MODELS: dict[str, Settings] = {
    "lite0": {
        "model": "timm/tf_efficientnet_lite0",
        "weights": "efficientnet_lite0.safetensors",
        "image_size": 96,
        "freeze_stem": True,
        "freeze_norms": True,
        "optimizer": "adamw",
        "lr": 5e-4,
        "layer_decay": 0.9,
        "epochs": 10,
    },
    "vit": {
        "model": "timm/vit_small_patch14_dinov2",
        "weights": "vit_small.safetensors",
        "image_size": 56,
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "batch_size": 16,
        "lr": 1e-4,
        "layer_decay": 0.8,
        "epochs": 10,
    },
    "resnet20": of_cifar10(20) | {"blocks_per_stage": [3, 3, 3], **SHORT},
    "resnet32": of_cifar10(32),
    "resnet44": of_cifar10(44) | {"blocks_per_stage": [7, 7, 7], **SHORT},
    "resnet56": of_cifar10(56) | {"blocks_per_stage": [9, 9, 9], **SHORT},
    "tiny": {  # of the quick tier; weights are whatever the file holds
        "model": "timm/test_resnet",
        "weights": "test_resnet.safetensors",
        "image_size": 32,
        "limit_train": 120,
        "limit_test": 60,
        "epochs": 1,
        "lr": 0.01,
    },
}
ON_DATA: dict[str, Settings] = {
    "trashnet-112-lite0": {"image_size": 80, "limit_train": 1200},  # of 112×84
}
"""What differs on some images."""
ON_GPU: Settings = {"device": "cuda", "data_on_device": True}
"""What differs on the gpu tier, where all training images are used."""
GPU_MODELS: dict[str, Settings] = {
    "vit": {"image_size": 112},
    "lite0": {"epochs": 30, "image_size": 128},
}
"""What differs there for some models."""
GPU_ON_DATA: dict[str, Settings] = {
    "trashnet-112-vit": {"image_size": 84},  # of 112×84
    "trashnet-112-lite0": {"image_size": 80},
}
"""What differs there on some images."""


def settings_of(name: str, tier: Tier = "cpu") -> Settings:
    """Return the settings of plain fine-tuning of a name such as "flowers-1500-lite0"."""
    model = name.rpartition("-")[2]
    settings = {**BASE, **MODELS[model], **ON_DATA.get(name, {})}
    if tier != "gpu":
        return settings
    settings.pop("limit_train", None)
    return {**settings, **ON_GPU, **GPU_MODELS.get(model, {}), **GPU_ON_DATA.get(name, {})}


@dataclass(frozen=True)
class Case:
    """A pretrained network on a data set: what its arms have in common.

    Attributes:
        context: of the run.
        settings: of plain fine-tuning, with the file of weights.
    """

    context: Context
    settings: Settings
    bundles: dict[int, DataBundle] = field(default_factory=dict)

    @classmethod
    def of(cls, context: Context) -> "Case":
        """Return the case of a name such as "flowers-1500-lite0".

        Raises:
            StageCostError: the file of weights is not there.
        """
        settings = settings_of(context.dataset, context.tier)
        folder = Path(context.options.get("weights", context.work.parent / "weights"))
        file = folder / settings["weights"]
        if not file.is_file():
            raise StageCostError(
                f"{file} is not there: make it by `python -m experiments.pretrained.files {folder}`, or "
                "name its folder by --weights"
            )
        return cls(context, {**settings, "weights": str(file)})

    @property
    def model(self) -> str:
        """The last part of its name, such as "vit"."""
        return self.context.dataset.rpartition("-")[2]

    @property
    def named(self) -> str:
        """The library's name of its model, or that of an own one."""
        name: str = self.settings["model"]
        return name if "/" in name else self.model

    @property
    def settings_of_choice(self) -> Settings:
        """The same where cut and recipe are chosen: more images are held out."""
        return {**self.settings, "val_fraction": HELD_OUT}

    @property
    def joint(self) -> str:
        """The arm of one training for both: the target of a ResNet of CIFAR-10 has norms of its own."""
        return "joint_norms" if self.model.startswith("resnet") else "joint"

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms that train and keep a folder."""
        return ("whole", self.joint, "cut_first")

    @property
    def data(self) -> str:
        """What a training's `data` names."""
        return self.context.images(self.context.dataset.rpartition("-")[0])

    def bundle(self, seed: int) -> DataBundle:
        """Return the images of a seed."""
        if seed not in self.bundles:
            config = data_config(parse_settings({**self.settings, "data": self.data}))
            self.bundles[seed] = load_data(config, seed=seed, splits=("train", "val", "test"))
        return self.bundles[seed]

    def fitted(self, seed: int, cut: Cut | None = None, *, beside: bool = False) -> Path:
        """Return the folder of the pretrained network, or of a cut of it, with a fitted head.

        Args:
            seed: of the images.
            cut: that is made; None is the whole network.
            beside: it is not made, and the head is fitted to both.
        """
        name = "whole" if cut is None else format_indices(cut.blocks).replace(", ", "_")
        name = f"whole-and-{name}" if beside else name
        folder, bundle = self.context.work / f"linear-{name}-seed{seed}", self.bundle(seed)
        if (folder / "config.json").is_file():
            return folder
        self.context.report(f"{self.context.dataset}: head of {name}, seed {seed}")
        torch.manual_seed(seed)
        network = create_network(parse_settings({**self.settings, "data": self.data}), bundle).eval()
        small = (network if cut is None or beside else network.keep(cut)).to(self.settings["device"])
        batches = eval_batches(bundle.splits["train"], bundle.format, batch_size=64)
        if "cifar10" not in self.context.dataset:  # there the head is the author's
            cuts = [Cut.whole(), cut] if cut is not None and beside else [Cut.whole()]
            fit_classifier(small, batches, bundle.num_classes, cuts)
        small.save_pretrained(folder, image_format=bundle.format.to_json())
        return folder

    @cached_property
    def cut(self) -> Cut:
        """The cut that is a target, chosen on validation images before any training."""
        file = self.context.work / "cut.json"
        if file.is_file():
            return Cut(tuple(json.loads(file.read_text())["blocks"]))
        tried = self._tried()
        chosen = best(tried)
        write_json(file, {"blocks": chosen.to_json(), "tried": tried})
        return chosen

    def _tried(self) -> list[Row]:
        """Measure candidates; on the gpu tier they are those that the record of the cpu tier holds."""
        context = self.context
        if context.tier == "gpu":
            record = RESULTS / "pretrained" / record_name("cpu", context.dataset)
            return list(Record.read(record, "search")["search"])
        context.report(f"{context.dataset}: choice of a cut")
        choice = replace(context, work=context.work / "choice")
        return [
            {"blocks": s.cut.to_json(), "loss": s.loss, "accuracy": s.accuracy, "macs": round(part, 4)}
            for s, part in candidates(Case(choice, self.settings_of_choice))
        ]

    def network(self, folder: Path) -> ResidualNetwork:
        """Load a network to where it is trained."""
        return load(folder).to(memory_format=torch.channels_last).to(self.settings["device"])

    def training(self, arm: str, seed: int) -> Training:
        """Return the training of an arm."""
        joint = arm.startswith("joint")
        start = self.fitted(seed, self.cut if joint or arm == "cut_first" else None, beside=joint)
        plain = {**self.settings, "weights": str(start)}
        if not joint:
            return Training(plain)
        target = f"[{' '.join(map(str, self.cut.blocks))}]"
        own = {"target_norms": "own"} if arm == "joint_norms" else {}
        cost = {"targets": [target], "stage_loss": "distilled", "gamma": plain["gamma"] or 1.0}
        return Training({**plain, **cost, **own})

    def run(self, arm: str, seed: int) -> Run:
        """Train, go on, or find what is finished."""
        return trained_run(self.context, arm, self.training(arm, seed), seed, self.data)

    def trained_in_memory(
        self,
        arm: str,
        seed: int,
        network: ResidualNetwork,
        teacher: ResidualNetwork | None = None,
    ) -> ResidualNetwork:
        """Fine-tune a network plainly, or with a teacher; only its weights are kept, in a file."""
        given = {**self.training("whole", seed).settings, "seed": seed}
        name = f"{arm}-{digest({**given, 'cut': self.cut.to_json()})}-seed{seed}.safetensors"
        file = self.context.work / name
        if file.is_file():
            network.load_state_dict(read_tensors(file)[0])
            return network.eval()
        settings = parse_settings({**given, "data": self.data})
        setup = prepare(settings, self.bundle(seed), network=network)
        loss = loss_of(settings.training.label_smoothing)
        taught = None if teacher is None else Taught(setup.batches, teacher.eval(), loss)
        label = f"{self.context.dataset} {arm} {seed}"
        trained = train_in_memory(setup, setup.start(), label, taught)
        write_tensors(file, trained.state_dict(), {})
        return trained
