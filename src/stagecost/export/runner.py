"""Classify images by the ONNX graphs beside this file; an image that is sure of its class leaves early.

    python run.py cat.jpg dog.png

Needs numpy and onnxruntime, and Pillow to read files. In Python: `Graphs(folder).classify(pixels)`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

Array = np.ndarray[Any, Any]


class Graphs:
    """The graphs of a folder, as its model.json describes them."""

    def __init__(self, folder: Path) -> None:
        """Open them."""
        self.spec = json.loads((folder / "model.json").read_text("utf-8"))
        runtime = {"providers": ["CPUExecutionProvider"]}
        self.graphs = [onnxruntime.InferenceSession(folder / f, **runtime) for f in self.spec["files"]]

    def classify(self, pixels: Array) -> tuple[Array, Array, Array]:
        """Return class numbers, probabilities and depths of the answers for images as bytes.

        They are of shape (n, channels, size, size); each graph gets those that are not sure yet.
        """
        mean, std = (np.array(self.spec[name], np.float32)[:, None, None] for name in ("mean", "std"))
        state, said = [(pixels.astype(np.float32) / 255 - mean) / std], list[Array]()
        labels, depths = np.zeros((2, len(pixels)), np.int64)
        shares, left = np.zeros(len(pixels), np.float32), np.arange(len(pixels))
        thresholds = [*self.spec["thresholds"], -np.inf]
        for graph, depth, threshold in zip(self.graphs, self.spec["depths"], thresholds, strict=True):
            names = [value.name for value in graph.get_inputs()]
            *state, logits = graph.run(None, dict(zip(names, state, strict=True)))
            said.append(log_softmax(logits))
            labels[left], shares[left], scores = self.vote(said)
            depths[left] = depth
            stay = scores < threshold
            if not stay.any():
                break
            state = [part[stay] if len(part) == len(left) else part for part in state]
            said, left = [rows[stay] for rows in said], left[stay]
        return labels, shares, depths

    def vote(self, said: list[Array]) -> tuple[Array, Array, Array]:
        """Return classes, probabilities and how sure they are, from what the depths said until now."""
        if self.spec["combine"]:
            said = [log_softmax(np.mean(said[: k + 1], axis=0)) for k in range(len(said))]
        labels, shares = np.argmax(said, axis=2), np.sort(np.exp(said[-1]), axis=1)
        agreeing = (labels == labels[-1])[::-1].cumprod(0).sum(0)
        scores = {
            "max-probability": shares[:, -1],
            "margin": shares[:, -1] - shares[:, -2],
            "patience": agreeing,
        }
        return labels[-1], shares[:, -1], scores[self.spec["criterion"]]

    def read(self, path: str) -> Array:
        """Decode a picture of 8 bits: upright, on white, resized and cropped as in training."""
        from PIL import Image, ImageOps

        size, mode = self.spec["size"], "L" if self.spec["channels"] == 1 else "RGB"
        picture = ImageOps.exif_transpose(Image.open(path))
        picture.draft(None, (2 * size, 2 * size))
        if picture.has_transparency_data:
            kind = "L" if picture.mode in ("1", "L", "LA", "La") else "RGB"
            layers, picture = picture.convert("RGBA"), Image.new(kind, picture.size, "white")
            picture.paste(layers.convert(kind), mask=layers.getchannel("A"))
        picture = picture.convert(mode)
        if picture.size != (size, size):
            method = Image.Resampling[self.spec["interpolation"].upper()]
            picture = ImageOps.fit(picture, (size, size), method=method)
        return np.asarray(picture).reshape(size, size, -1).transpose(2, 0, 1)


def log_softmax(logits: Array) -> Array:
    """Return the logarithms of probabilities (n, classes)."""
    shifted = logits - logits.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


if __name__ == "__main__":
    graphs = Graphs(Path(__file__).resolve().parent)
    answers = graphs.classify(np.stack([graphs.read(path) for path in sys.argv[1:]]))
    for path, label, share, depth in zip(sys.argv[1:], *answers, strict=True):
        print(f"{path}\t{graphs.spec['class_names'][label]}\t{share:.4f}\tdepth {depth}")
