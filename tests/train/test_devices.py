"""Variables that a cluster or a launcher leaves in the environment change nothing."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stagecost.errors import StageCostError
from stagecost.storage import read_tensors
from stagecost.train.devices import is_first_process, launch, make_fabric, select_device

SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "4",
    "SLURM_NODEID": "0",
    "SLURM_LOCALID": "3",
    "SLURM_PROCID": "3",
}
FOREIGN = {
    "slurm": SLURM,
    "slurm, empty": dict.fromkeys(SLURM, ""),
    "another rank": {"LOCAL_RANK": "1", "RANK": "5", "WORLD_SIZE": "8", "MASTER_PORT": "1"},
    "no rank": {"LOCAL_RANK": "", "RANK": "", "WORLD_SIZE": ""},
    "torchrun": {"TORCHELASTIC_RUN_ID": "x", "GROUP_RANK": "1", "LOCAL_RANK": "2", "RANK": "2"},
    "mpi": {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"},
}
CODE = """
import os, sys
from stagecost.runs.training import train
LAUNCHERS = ("SLURM_", "OMPI_", "TORCHELASTIC_", "MASTER_", "LOCAL_", "RANK", "WORLD_", "STAGECOST")
def of_launchers():
    return {k: v for k, v in os.environ.items() if k.startswith(LAUNCHERS)}
before = of_launchers()
given = {"data": "digits", "limit_train": 100, "num_blocks": 2, "width": 4, "epochs": 1, "device": "cpu"}
seen = []
watch = lambda state, step: seen.append(state.progress.sums.samples)
settings = {**given, "batch_size": 32, "num_processes": int(sys.argv[2])}
result = train(settings, sys.argv[1], on_step=watch)
assert result.epochs == 1
assert seen[0] == 32, "the figures of an epoch are of the images of all processes"
assert of_launchers() == before or int(sys.argv[2]) > 1
"""


def run_with(variables: dict[str, str], folder: Path, processes: int = 1) -> None:
    (folder / "train.py").write_text(CODE)
    command = [sys.executable, str(folder / "train.py"), str(folder / "run"), str(processes)]
    environment = {**os.environ, **variables, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "train epoch 1/1" in done.stderr
    assert done.stderr.count("train epoch 1/1") == 1
    assert (folder / "run" / "last.safetensors").is_file()
    assert (folder / "run" / "config.yaml").is_file()


@pytest.mark.parametrize("variables", FOREIGN.values(), ids=FOREIGN)
def test_one_process_trains_whatever_the_environment_says(
    variables: dict[str, str], tmp_path: Path
) -> None:
    run_with(variables, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "variables", [{}, SLURM, FOREIGN["another rank"]], ids=["none", "slurm", "rank"]
)
def test_two_processes_are_those_that_were_asked_for(variables: dict[str, str], tmp_path: Path) -> None:
    run_with(variables, tmp_path, processes=2)


SHARES = """
import sys
import stagecost as sc
import torch
from torch import nn
from stagecost.runs.training import train

class Step(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.map = nn.GroupNorm(1, 4), nn.Conv2d(4, 4, 3, padding=1)
    def forward(self, x):
        return x + self.map(self.norm(x).relu())

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, stride=2)
        self.layers = nn.Sequential(Step(), Step())
        self.last = nn.Linear(4, classes)
    def forward(self, x):
        return self.last(self.layers(self.first(x)).mean((2, 3)))

@sc.register_model("of_groups")
def of_groups(*, num_classes=10, in_channels=1):
    return sc.adapt(Net(num_classes), torch.zeros(1, in_channels, 8, 8))

images = {"data": "digits", "limit_train": 3, "val_fraction": 0.0, "batch_size": 4}
how = {"epochs": 4, "lr": 0.3, "device": "cpu", "num_processes": int(sys.argv[2])}
train({**images, **how, "model": "of_groups"}, sys.argv[1])
"""


@pytest.mark.slow
def test_uneven_shares_of_a_batch_weigh_as_their_images(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SHARES)
    weights = []
    for processes in (1, 2):  # of three images, less than a batch, one process has two
        folder = tmp_path / str(processes)
        command = [sys.executable, str(tmp_path / "train.py"), str(folder), str(processes)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
        assert done.returncode == 0, done.stderr
        weights.append(read_tensors(folder / "last.safetensors")[0])
    one, two = weights
    names = [name for name in one if name.startswith("network.")]
    assert names
    for name in names:
        assert torch.allclose(one[name], two[name], atol=1e-4), name


UNUSED = SHARES.replace(
    "self.last = nn.Linear(4, classes)",
    "self.last, self.pooler = nn.Linear(4, classes), nn.Linear(4, 4)",
).replace('"batch_size": 4', '"batch_size": 2')


@pytest.mark.slow
def test_two_processes_do_not_wait_for_gradients_of_what_is_unused(tmp_path: Path) -> None:
    assert UNUSED.count("pooler") == 1
    (tmp_path / "train.py").write_text(UNUSED)
    command = [sys.executable, str(tmp_path / "train.py"), str(tmp_path / "run"), "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "train epoch 4/4" in done.stderr


ONE_OF_TWO = """
import os, sys
import stagecost as sc
from torch.nn.functional import cross_entropy
from stagecost.runs.training import train

def loss(output, target):
    return cross_entropy(output, target) * float("nan" if os.environ.get("LOCAL_RANK") == "1" else "1")

given = {"data": "digits", "limit_train": 64, "num_blocks": 2, "width": 4, "batch_size": 16, "epochs": 1}
stage_cost = sc.StageCost.uniform(2, 0.0, loss=loss)
try:
    train({**given, "device": "cpu", "num_processes": 2}, sys.argv[1], stage_cost=stage_cost)
except sc.StageCostError as error:
    print(error)
"""


@pytest.mark.slow
def test_every_process_says_that_an_objective_is_no_number(tmp_path: Path) -> None:
    """Though it is so in the second one alone, where the images of the first have a good loss."""
    (tmp_path / "train.py").write_text(ONE_OF_TWO)
    command = [sys.executable, str(tmp_path / "train.py"), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "the objective is nan in epoch 1" in line]
    assert len(lines) == 2, done.stdout


def test_several_processes_need_a_file_to_run_again(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CODE, str(tmp_path / "run"), "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 1
    assert "--num-processes 2 run the program's file again" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("given", [None, "INFO"])
def test_further_processes_print_no_stacks_unless_asked_to(
    monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    """Where the first one was stopped, its one line stands alone."""
    monkeypatch.setattr("__main__.__file__", __file__, raising=False)
    monkeypatch.setattr("os.environ", {} if given is None else {"TORCH_CPP_LOG_LEVEL": given})
    told: dict[str, str] = {}
    launch(SimpleNamespace(world_size=2, launch=lambda: told.update(os.environ)))  # type: ignore[arg-type]
    assert told["TORCH_CPP_LOG_LEVEL"] == (given or "ERROR")


@pytest.mark.slow
def test_two_trainings_share_the_further_processes(tmp_path: Path) -> None:
    again = CODE[CODE.index("settings =") :].replace("sys.argv[1]", "sys.argv[1] + '-again'")
    (tmp_path / "train.py").write_text(f"{CODE}seen.clear()\n{again}")
    command = [sys.executable, str(tmp_path / "train.py"), str(tmp_path / "run"), "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("train epoch 1/1") == 2
    assert "Traceback" not in done.stderr


def test_a_rank_of_another_launcher_makes_no_second_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("1", "", "x"):
        monkeypatch.setenv("LOCAL_RANK", value)
        assert is_first_process()


def test_a_further_process_is_no_run_of_its_own_when_the_first_has_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for started_by, is_first in ((os.getppid(), False), (os.getpid(), True)):
        monkeypatch.setenv("STAGECOST_STARTED_BY", str(started_by))
        assert is_first_process.__wrapped__() is is_first
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / "train.py").write_text(CODE)
    command = [sys.executable, str(tmp_path / "train.py"), str(tmp_path / "run"), "1"]
    environment = {**os.environ, "STAGECOST_STARTED_BY": str(gone.pid), "LOCAL_RANK": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=240)
    assert done.returncode == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: select_device("tpu"), "--device 'tpu' is unknown"),
        (lambda: make_fabric("cpu", "fp16"), "--precision fp16 needs an accelerator"),
    ],
)
def test_what_cannot_be_computed_on_is_refused(make: object, match: str) -> None:
    with pytest.raises(StageCostError, match=match):
        make()  # type: ignore[operator]
