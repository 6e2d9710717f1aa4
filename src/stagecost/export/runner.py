"""Classify pictures by the graphs beside this file: `python run.py cat.jpg`."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


def classify(spec: dict[str, Any], graphs: list[Any], pixels: Any) -> Any:
    """Return class numbers, probabilities and depths (3, n) for bytes (n, channels, size, size)."""
    mean, std = (np.array(spec[name], np.float32)[:, None, None] for name in ("mean", "std"))
    answers, state = np.zeros((3, len(pixels))), [(pixels.astype(np.float32) / 255 - mean) / std]
    left, stay = np.arange(len(pixels)), np.full(len(pixels), True)
    for graph, depth, least in zip(graphs, spec["depths"], [*spec["thresholds"], -np.inf], strict=True):
        parts = zip(graph.get_inputs(), state, strict=True)  # a first size with a name is the batch's
        named = ((one.name, part, one.shape and isinstance(one.shape[0], str)) for one, part in parts)
        feed = {name: part[stay] if of_images else part for name, part, of_images in named}
        left = left[stay]
        *state, _, label, share, score = graph.run(None, feed)
        answers[:, left], stay = (label, share, np.full(len(left), depth)), score < least
        if not stay.any():
            break
    return answers


if __name__ == "__main__":
    from pictures import read

    paths, folder = sys.argv[1:], Path(__file__).resolve().parent
    if not paths or "--help" in paths:
        sys.exit(__doc__)
    spec = json.loads((folder / "model.json").read_text("utf-8"))
    graphs = [onnxruntime.InferenceSession(folder / file) for file in spec["files"]]
    pixels = np.stack([read(spec, path) for path in paths])
    for path, (label, share, depth) in zip(paths, classify(spec, graphs, pixels).T, strict=True):
        names = (path, spec["class_names"][int(label)])
        shown = ("".join(c if c.isprintable() else repr(c)[1:-1] for c in name) for name in names)
        print(*shown, f"{share:.4f}", f"depth {int(depth)}", sep="\t")
