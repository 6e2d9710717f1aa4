"""Classify images by the graphs beside this file: `python run.py cat.jpg`."""

import json
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime


def classify(spec: dict[str, Any], graphs: list[Any], pixels: Any) -> Any:
    """Return class numbers, probabilities and depths (3, n) for bytes (n, channels, size, size)."""
    mean, std = (np.array(spec[name], np.float32)[:, None, None] for name in ("mean", "std"))
    answers, state = np.zeros((3, len(pixels))), [(pixels.astype(np.float32) / 255 - mean) / std]
    left, stay = np.arange(len(pixels)), np.full(len(pixels), True)
    for graph, depth, least in zip(graphs, spec["depths"], [*spec["thresholds"], -np.inf], strict=True):
        parts = zip(graph.get_inputs(), state, strict=True)  # a first size with a name is the batch's
        feed = {one.name: part[stay] if isinstance(one.shape[0], str) else part for one, part in parts}
        left = left[stay]
        *state, _, label, share, score = graph.run(None, feed)
        answers[:, left], stay = (label, share, np.full(len(left), depth)), score < least
        if not stay.any():
            break
    return answers


def read(spec: dict[str, Any], path: str) -> Any:
    """Decode a picture of 8 bits as in training: upright, on white, resized and cropped."""
    from PIL import Image, ImageOps

    size, picture = spec["size"], cast("Any", Image.open(path))
    if picture.mode[0] in "IF":
        sys.exit(f"{path} has more than 8 bits: convert it")
    picture = ImageOps.exif_transpose(picture) if "exif" in picture.info else picture
    picture.draft(None, (2 * size, 2 * size))
    if picture.has_transparency_data:
        layer, picture = picture.convert("RGBA"), Image.new("RGB", picture.size, "white")
        picture.paste(layer, mask=layer)
    picture, way = picture.convert("L" if spec["channels"] == 1 else "RGB"), spec["interpolation"]
    picture = ImageOps.fit(picture, (size, size), Image.Resampling[way.upper()])
    return np.asarray(picture).reshape(size, size, -1).transpose(2, 0, 1)


if __name__ == "__main__":
    paths, folder = sys.argv[1:] or sys.exit(__doc__), Path(__file__).resolve().parent
    spec = json.loads((folder / "model.json").read_text("utf-8"))
    graphs = [onnxruntime.InferenceSession(folder / file) for file in spec["files"]]
    pixels = np.stack([read(spec, path) for path in paths])
    for path, (label, share, depth) in zip(paths, classify(spec, graphs, pixels).T, strict=True):
        print(f"{path}\t{spec['class_names'][int(label)]}\t{share:.4f}\tdepth {int(depth)}")
