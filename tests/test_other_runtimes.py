"""The recipes of docs/export.md for other runtimes run as they stand, where these are installed."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from helpers import build
from stagecost.data.images import ImageFormat
from stagecost.export.folder import export_network
from stagecost.export.graphs import Format

DOCUMENT = Path(__file__).parents[1] / "docs" / "export.md"
SIZE, CLASSES = 12, tuple("abcde")


@pytest.mark.filterwarnings("ignore")  # of these packages themselves
@pytest.mark.parametrize(
    ("runtime", "package", "kind"),
    [("OpenVINO", "openvino", "onnx"), ("ExecuTorch", "executorch.exir", "pt2")],
)
def test_a_recipe_gives_the_outputs(
    runtime: str, package: str, kind: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    network = build("staged", in_channels=1).eval()
    network.details["image_format"] = ImageFormat(1, SIZE, (0.5,), (0.25,), CLASSES).to_json()
    pixels = torch.randint(256, (7, 1, SIZE, SIZE), dtype=torch.uint8)
    export_network(network, Path("small") / kind, pixels, format=kind)
    images = (pixels.float() / 255 - 0.5) / 0.25
    names: dict[str, Any] = {"images": images if kind == "pt2" else images.numpy()}
    exec(recipe(runtime), names)
    logits: NDArray[np.float32] = np.asarray(names["logits"])
    assert logits.shape == (len(pixels), len(CLASSES))
    with torch.no_grad():
        np.testing.assert_allclose(logits, network(images).numpy(), rtol=0, atol=1e-4)


def recipe(runtime: str) -> str:
    """Return the indented lines that follow the name of a runtime."""
    _, _, behind = DOCUMENT.read_text(encoding="utf-8").partition(f"**{runtime}**")
    first = re.search(r"(?:^ {4}.*\n)+", behind, re.MULTILINE)
    assert first
    return re.sub("^ {4}", "", first[0], flags=re.MULTILINE)
