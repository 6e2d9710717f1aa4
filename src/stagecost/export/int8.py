"""Weights and activations of eight bits, by ONNX Runtime's quantisation: a file beside the graph."""

import logging
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

INT8_FILE = "model.int8.onnx"
OPERATIONS = ["Conv", "Gemm", "MatMul"]
"""What is computed in eight bits; norms and sums stay as they are."""


def quantise(source: Path, target: Path, images: Iterable[Tensor]) -> None:
    """Write a graph of eight bits; ranges of activations are those seen on batches of images."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Hands out the images."""

        batches = iter(images)

        def get_next(self) -> dict[str, object] | None:
            """Return the next batch."""
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.numpy()}

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # general advice goes to the root of all loggers
    try:
        quantize_static(source, target, Reader(), per_channel=True, op_types_to_quantize=OPERATIONS)
    finally:
        root.setLevel(level)
