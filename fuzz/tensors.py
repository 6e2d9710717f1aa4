"""A safetensors file taken apart, written anew without the checks of its library."""

import json
import struct
from dataclasses import dataclass
from typing import Any


@dataclass
class TensorFile:
    """What a safetensors file says: a header of JSON, and the bytes behind it.

    Attributes:
        entries: dtype, shape and data_offsets of each tensor.
        metadata: texts by name.
        data: of all tensors.
    """

    entries: dict[str, dict[str, Any]]
    metadata: dict[str, str]
    data: bytes

    @classmethod
    def parse(cls, content: bytes) -> "TensorFile":
        """Take a valid file apart."""
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        return cls(header, header.pop("__metadata__", {}), content[8 + length :])

    def header(self) -> dict[str, Any]:
        """Return the header as it is written."""
        return {"__metadata__": self.metadata, **self.entries}

    def to_bytes(self, header: bytes | None = None) -> bytes:
        """Return the file, with another header if one is given."""
        text = json.dumps(self.header()).encode() if header is None else header
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text + self.data
