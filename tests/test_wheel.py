"""The wheel: what is in it, and that it works with torch, safetensors and numpy alone."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from environments import make_environment

ROOT = Path(__file__).resolve().parent.parent

LIBRARY = """
import sys
import torch
import torch.nn.functional as F
import stagecost as sc

assert "site-packages" in sc.__file__, sc.__file__
images, labels = torch.randn(8, 3, 8, 8), torch.arange(8) % 5
net = sc.create_model("homogeneous", num_blocks=3, width=4, num_classes=5)
stage_cost = sc.StageCost.uniform(net.num_blocks, gamma=0.1)
optimizer = torch.optim.SGD(sc.parameter_groups(net, 5e-4), lr=0.1)
stage_cost(net(images, stage_cost.outputs), labels).total.backward()
optimizer.step()
trajectory = sc.loss_trajectory(net, [(images, labels)])
small = sc.plan_pruning(net, trajectory, keep=sc.Cut.first(2)).apply(net)
small.save_pretrained("small")
with torch.no_grad():
    assert torch.equal(sc.load("small")(images), net.eval()(images, sc.Cut.first(2)))
tops = {name.partition(".")[0] for name in sys.modules}
print(len(trajectory.losses), *sorted(tops & {"rich", "yaml", "datasets", "PIL"}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: what an earlier build left beside the sources would get into it."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(
        ROOT / "src", folder / "sources" / "src", ignore=shutil.ignore_patterns("*.egg-info")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "sources")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    done = subprocess.run(command, cwd=folder / "sources", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment of its own: the wheel, and links to what the wheel requires."""
    folder = tmp_path_factory.mktemp("environment")
    packages = make_environment(folder, "torch", "safetensors", "numpy")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    return folder


def run(environment: Path, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    python = environment / "bin" / "python"
    return subprocess.run(
        [str(python), "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )


def test_it_holds_the_library_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"stagecost"}
    modules = {name for name in names if name.endswith(".py")}
    sources = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src/stagecost").rglob("*.py")}
    assert modules == sources
    assert not any(name.endswith((".c", ".h")) for name in names)


def test_the_library_works_with_what_it_requires(environment: Path, tmp_path: Path) -> None:
    done = run(environment, LIBRARY, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["4"]


def test_a_missing_extra_is_one_line_that_names_it(environment: Path, tmp_path: Path) -> None:
    command = [str(environment / "bin" / "python"), "-m", "stagecost.cli"]
    for arguments in (["train", "--data", "digits", "--output", "run"], ["analyze", "run"]):
        outcome = subprocess.run(
            [*command, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert outcome.returncode == 2, outcome.stderr
        assert len(outcome.stderr.splitlines()) == 1, outcome.stderr
        assert "pip install 'stagecost[train]'" in outcome.stderr
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert "analyze" in shown.stdout
