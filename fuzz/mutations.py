"""Mutations of files: of bytes, of JSON and YAML, of safetensors, PNG and IDX headers.

Each takes a source of random numbers and a content, and returns the new content with a text that says
what was done.
"""

import json
import math
import pickle
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from fuzz.tensors import TensorFile

Mutated = tuple[bytes, str]
Mutation = Callable[[random.Random, bytes], Mutated]

TRAP = "executed"  # a folder that appears if something that was loaded is run


class _Trap:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.mkdir, (TRAP,)


def mutate_bytes(rng: random.Random, content: bytes) -> Mutated:
    """Change some bytes, whatever they mean."""
    at, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    kind = rng.choice(("flip", "flip", "flip", "random", "cut off", "cut out", "twice", "zero", "more",
                       "swap", "empty", "pickle"))  # fmt: skip
    if kind == "flip" and content:
        changed = bytearray(content)
        bits = [rng.randrange(8 * len(content)) for _ in range(rng.choice((1, 1, 2, 5, 50)))]
        for bit in bits:
            changed[bit // 8] ^= 1 << bit % 8
        return bytes(changed), f"bits {bits[:5]} flipped"
    if kind == "random" and content:
        changed = bytearray(content)
        places = [rng.randrange(len(content)) for _ in range(rng.choice((1, 2, 4, 20)))]
        for place in places:
            changed[place] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        return bytes(changed), f"bytes {places[:5]} changed"
    results = {
        "cut off": content[:at],
        "cut out": content[:at] + content[end:],
        "twice": content[:end] + content[at:],
        "zero": content[:at] + bytes(end - at) + content[end:],
        "more": content + rng.randbytes(rng.choice((1, 8, 1000))),
        "swap": content[end:] + content[at:end] + content[:at],
        "pickle": pickle.dumps(_Trap()),
    }
    return results.get(kind, b""), f"{kind} {at}:{end}"


HUGE = "9" * 5000
PLACE = "@place@"
VALUES: tuple[str, ...] = (
    *("null", "true", "false", "0", "-1", "1", "2", "3", "7", "0.5", "-0.0", "1e-320", "1.0", "1e5"),
    *("255", "4000", "4097", "65536", "1000000", "2147483648", "4294967296", "9007199254740993"),
    *("9223372036854775807", "9223372036854775808", "18446744073709551616", "1" + "0" * 30, HUGE),
    *("1e308", "1e309", "-1e309", "NaN", "Infinity", "-Infinity"),
    *('""', '"x"', '"1"', '"true"', '"nan"', '"\\u0000"', '"\\ud800"', '"a\\nb"', '"\\u001b[2J"'),
    *('"../../x"', '"/dev/zero"', '"' + "x" * 5000 + '"', '"homogeneous"', '"preact_resnet152"'),
    *("[]", "{}", "[null]", "[[]]", "[0]", "[1, 2]", "[-1]", "[3, 2, 1]", "[0, 0]", '{"a": 1}', '["a"]'),
    *("[NaN]", "[1e400, 1]", "[0, 1e308]", "[" + "0, " * 20_000 + "0]", '["a", "a"]', "[9999, 10000]"),
    *("[" * 50 + "]" * 50, "[" * 900 + "]" * 900),
    *("[" * 100_000 + "]" * 100_000, '{"a": ' * 5000 + "1" + "}" * 5000),
)  # fmt: skip
NAMES = ("", "x", "__class__", "width", "num_blocks", "kept_blocks", "a\nb", "\ud800", "y" * 3000)


def mutate_json(rng: random.Random, content: Any) -> Mutated:
    """Change values and keys of parsed JSON, and return it as text."""
    content = json.loads(json.dumps(content))
    said: list[str] = []
    values: list[str] = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        holder, key, path = _place(rng, content)
        if holder is None:
            break
        kind = rng.choice(
            ("value", "value", "value", "value", "scaled", "gone", "renamed", "added", "swapped")
        )
        if kind == "gone":
            del holder[key]
        elif kind == "renamed" and isinstance(holder, dict):
            holder[rng.choice(NAMES)] = holder.pop(key)
        elif kind == "added" and isinstance(holder, dict):
            holder[rng.choice(NAMES)] = _value(rng, values)
        elif kind == "scaled" and isinstance(holder[key], int | float):
            holder[key] = _scaled(rng, holder[key])
            path += f" = {holder[key]}"
        elif kind == "swapped" and len(holder) > 1:
            other = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
            holder[key], holder[other] = holder[other], holder[key]
        else:
            holder[key] = _value(rng, values)
            path += f" = {values[-1][:20]}"
        said.append(f"{kind} {path}")
    text = json.dumps(content)
    for number, value in enumerate(values):
        text = text.replace(f'"{PLACE}{number}"', value)
    if rng.random() < 0.03:
        text = rng.choice(
            (VALUES[-2], VALUES[-1], "NaN", "[]", "null", "{", text + text, "\ufeff" + text)
        )
        said.append("all of it")
    return text.encode("utf-8", "surrogatepass"), "; ".join(said)


def _value(rng: random.Random, values: list[str]) -> str:
    values.append(rng.choice(VALUES))
    return f"{PLACE}{len(values) - 1}"


def _scaled(rng: random.Random, number: float) -> float:
    factor = rng.choice((-1, 2, 10, 100, 1000, 10_000))
    return number * factor + rng.choice((0, 1, -1)) * (not isinstance(number, float))


def _place(rng: random.Random, content: Any) -> tuple[Any, Any, str]:
    """Choose a value somewhere within; the deeper ones as often as the others."""
    places: list[tuple[Any, Any, str]] = []
    stack: list[tuple[Any, str]] = [(content, "")]
    while stack:
        holder, path = stack.pop()
        keys = list(holder) if isinstance(holder, dict) else range(min(len(holder), 8))
        for key in keys:
            places.append((holder, key, f"{path}/{str(key)[:20]}"))
            if isinstance(holder[key], dict | list):
                stack.append((holder[key], places[-1][2]))
    return rng.choice(places) if places else (None, None, "")


def mutate_json_file(rng: random.Random, content: bytes) -> Mutated:
    """Change a JSON file, mostly within its structure."""
    return mutate_bytes(rng, content) if rng.random() < 0.2 else mutate_json(rng, json.loads(content))


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + k)}: &{chr(98 + k)} [{', '.join('*' + chr(97 + k) for _ in range(9))}]\n"
    for k in range(12)
)
YAML_VALUES = (
    *(
        "~",
        "yes",
        ".nan",
        ".inf",
        "-.inf",
        "0x10",
        "0o17",
        "1:30:00",
        "1_000",
        "2001-13-45",
        "2001-12-14",
    ),
    *(
        "!!python/object/apply:os.mkdir [executed]",
        "!!python/name:os.system",
        "!!binary '#'",
        "!!set {a, b}",
    ),
    *(
        "!!omap [a]",
        "!!timestamp x",
        "!!float x",
        "!!int x",
        "&a [*a]",
        "*missing",
        "{? [a] : b}",
        "!<x> y",
    ),
    *(
        "[" * 5000,
        "[" * 300 + "]" * 300,
        "- " * 2000,
        "? " * 2000,
        "'",
        '"\\x"',
        "|\n  x",
        "%",
        "@",
        "`",
        "\t",
    ),
    *(
        '"\\ud800"',
        '"\\0"',
        "1" * 5000,
        "1e999",
        "x" * 70_000,
        "9" * 18,
        "&a x",
        "<<: {a: b}",
        "!!null x",
    ),
)
YAML_LINES = (
    *(
        "<<: [1, 2]",
        "<<: *x",
        "? [a, b]\n: c",
        "1: 2",
        "null: 3",
        "---\na: b",
        "--- ",
        "...",
        "%YAML 9.9",
    ),
    *(
        "[1]: 2",
        "{}: 3",
        "width: 4\nwidth: 5",
        "epoks: 3",
        "\x00",
        "\ufeff",
        "- a",
        "x" * 20_000 + ": 1",
    ),
)


def mutate_yaml_file(rng: random.Random, content: bytes) -> Mutated:
    """Change a flat YAML file of settings."""
    kind = rng.choice(("bytes", "value", "value", "value", "json", "json", "line", "gone", "bomb"))
    lines = content.decode().splitlines()
    place = rng.randrange(len(lines))
    name = lines[place].partition(":")[0]
    if kind == "bytes":
        return mutate_bytes(rng, content)
    if kind == "bomb":
        return BOMB.encode() + content * rng.choice((1, 1, 2000)), "bomb of aliases"
    value = rng.choice(YAML_VALUES if kind == "value" else VALUES)
    if kind == "line":
        lines.insert(place, rng.choice(YAML_LINES))
    elif kind == "gone":
        del lines[place]
    else:
        lines[place] = f"{name}: {value}"
    text = "\n".join(lines) + "\n"
    return text.encode("utf-8", "surrogatepass"), f"{kind} {name} {value[:30]!r}"


NUMBERS = {
    "nan": math.nan, "inf": math.inf, "-inf": -math.inf, "huge": 3e38, "tiny": 1e-45, "minus": -1.0,
    "zero": 0.0,
}  # fmt: skip


def mutate_tensors(rng: random.Random, content: bytes) -> Mutated:
    """Change a safetensors file: its bytes, its header, its texts, its tensors or their values."""
    file = TensorFile.parse(content)
    kind = rng.choice(("bytes", "length", "header", "entry", "text", "text", "text", "number", "swap",
                       "drop", "rename", "kind"))  # fmt: skip
    name = rng.choice(list(file.entries))
    if kind == "bytes":
        return mutate_bytes(rng, content)
    if kind == "length":
        length = rng.choice((0, 1, 2**31, 2**63, 2**64 - 1, len(content), rng.randrange(len(content))))
        return struct.pack("<Q", length) + content[8:], f"header of {length} bytes"
    if kind == "header":
        header, said = mutate_json(rng, file.header())
        return file.to_bytes(header), said
    if kind == "text" and file.metadata:
        key = rng.choice(list(file.metadata))
        said = mutate_text(rng, file, key)
        return file.to_bytes(), f"{key}: {said}"
    if kind == "number":
        said = _set_number(rng, file, name)
    elif kind == "swap":
        other = rng.choice([n for n in file.entries if _size(file, n) == _size(file, name)])
        file.entries[name], file.entries[other] = file.entries[other], file.entries[name]
        said = f"swapped with {other}"
    elif kind == "drop":
        _drop(file, name)
        said = "dropped"
    elif kind == "rename":
        end = rng.choice((name[:-1], name + "x", name.replace("0", "1"), name.replace(".", "/"), ""))
        file.entries[end] = file.entries.pop(name)
        said = f"called {end!r}"
    else:
        said = _other_kind(rng, file, name)
    return file.to_bytes(), f"{name} {said}"


def mutate_text(rng: random.Random, file: TensorFile, key: str) -> str:
    """Change one of the JSON texts in a header, in place."""
    if rng.random() < 0.1:
        del file.metadata[key]
        return "gone"
    changed, said = mutate_json(rng, [json.loads(file.metadata[key])])
    text = changed.decode("utf-8", "replace").strip()
    file.metadata[key] = text[1:-1] if text[:1] == "[" and text[-1:] == "]" else text
    return said


def _size(file: TensorFile, name: str) -> int:
    start, end = file.entries[name]["data_offsets"]
    return int(end - start)


def _set_number(rng: random.Random, file: TensorFile, name: str) -> str:
    what = rng.choice(list(NUMBERS))
    entry, data = file.entries[name], bytearray(file.data)
    start, end = entry["data_offsets"]
    if entry["dtype"] != "F32" or end == start:
        data[start:end] = rng.randbytes(end - start)
        what = "random bytes"
    else:
        values = np.frombuffer(file.data[start:end], "<f4").copy()
        where = rng.choice((0, -1, slice(None), rng.randrange(len(values))))
        values[where] = np.float32(NUMBERS[what])
        data[start:end] = values.tobytes()
    file.data = bytes(data)
    return what


def _drop(file: TensorFile, name: str) -> None:
    """Leave out a tensor with its bytes, so that the file stays valid."""
    start, end = file.entries.pop(name)["data_offsets"]
    file.data = file.data[:start] + file.data[end:]
    for entry in file.entries.values():
        entry["data_offsets"] = [o - (end - start) * (o >= end) for o in entry["data_offsets"]]


def _other_kind(rng: random.Random, file: TensorFile, name: str) -> str:
    entry = file.entries[name]
    shape = entry["shape"]
    choice = rng.randrange(3)
    if choice == 0:
        entry["dtype"] = rng.choice(
            ("F32", "I32", "U32", "F16", "BF16", "F64", "BOOL", "U8", "C64", "F8_E4M3")
        )
    elif choice == 1:
        entry["shape"] = rng.choice(
            (shape[::-1], [1, *shape], [math.prod(shape)], [*shape, 1], [0, *shape])
        )
    else:
        huge = rng.choice((2**20, 2**31, 2**62, 2**63, 2**64))
        entry["shape"] = rng.choice(([huge], [huge, 0], [huge, huge], [-1], [*shape[:-1], huge]))
    return f"is {entry['dtype']} {entry['shape']}"


def mutate_idx(rng: random.Random, content: bytes) -> Mutated:
    """Change a file in the format of MNIST."""
    if rng.random() < 0.5 or len(content) < 16:
        return mutate_bytes(rng, content)
    place = rng.choice((0, 1, 2, 3, 4, 8, 12))
    value = rng.choice((0, 1, 2**31, 2**32 - 1, 65_536, 255))
    width = 1 if place < 4 else 4
    new = (value & (256**width - 1)).to_bytes(width, "big")
    return content[:place] + new + content[place + width :], f"{value} at {place}"


def mutate_picture(rng: random.Random, content: bytes) -> Mutated:
    """Change an encoded picture: anywhere, or the sizes that it promises."""
    if content[:4] == b"\x89PNG" and rng.random() < 0.5:
        return _mutate_png(rng, content)
    if rng.random() < 0.5:
        head = min(len(content), 64)
        changed, said = mutate_bytes(rng, content[:head])
        return changed + content[head:], f"head: {said}"
    return mutate_bytes(rng, content)


def _mutate_png(rng: random.Random, content: bytes) -> Mutated:
    """Change what the first chunk of a PNG file says, with the right checksum."""
    size = rng.choice((0, 1, 7, 9, 5000, 9400, 100_000, 2**31 - 1, 2**31, 2**32 - 1))
    fields = list(struct.unpack(">IIBBBBB", content[16:29]))
    place = rng.randrange(7)
    fields[place] = size if place < 2 else rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
    if place < 2 and rng.random() < 0.5:
        fields[0] = fields[1] = size
    head = b"IHDR" + struct.pack(">IIBBBBB", *fields)
    rest = content[33:]
    if rng.random() < 0.2:  # pixels that are all there: a bomb
        data = zlib.compress(bytes(min(fields[0] * fields[1] + fields[1], 10**8)), 1)
        chunk = b"IDAT" + data
        end = b"\x00\x00\x00\x00IEND\xaeB`\x82"
        rest = struct.pack(">I", len(data)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + end
    return content[:12] + head + struct.pack(">I", zlib.crc32(head)) + rest, f"IHDR {fields}"


def mutate_parquet(rng: random.Random, content: bytes) -> Mutated:
    """Change a parquet file: anywhere, in its footer, or its columns and notes, written anew."""
    kind = rng.choice(("bytes", "footer", "footer", "notes", "values", "values"))
    if kind == "bytes":
        return mutate_bytes(rng, content)
    if kind == "footer":
        start = len(content) - 8 - struct.unpack("<I", content[-8:-4])[0]
        changed, said = mutate_bytes(rng, content[start:])
        return content[:start] + changed, f"footer: {said}"
    return _rewritten(rng, content, kind)


COLUMNS: tuple[Any, ...] = (
    -1, -2, 2, 2**62, None, "", "a", "\x00", "a\nb", "x" * 5000, 0.5, math.nan, math.inf, 1e300, True,
    b"\xff", [1], {"a": 1}, [[[[]]]],
)  # fmt: skip


def _rewritten(rng: random.Random, content: bytes, kind: str) -> Mutated:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(content))
    notes, said = table.schema.metadata[b"huggingface"], ""
    if kind == "notes":
        notes, said = mutate_json_file(rng, notes)
    else:
        name, value = rng.choice(table.column_names), rng.choice(COLUMNS)
        if name == "image":
            value = rng.choice((None, {"bytes": None, "path": None}, {"bytes": b"", "path": "x"},
                                {"bytes": None, "path": "/dev/zero"}, {"bytes": None, "path": "../../x"},
                                {"bytes": rng.randbytes(50), "path": "x" * 300}, value))  # fmt: skip
        values = table[name].to_pylist()
        if rng.random() < 0.5:
            values[rng.randrange(len(values))] = value
        else:
            values = [value] * len(values)
        said = f"{name} {str(value)[:30]!r}"
        try:
            column = pa.array(values)
        except (pa.ArrowException, OverflowError):  # values of several types
            column = pa.array([value] * len(values))
        table = table.set_column(table.column_names.index(name), name, column)
    changed = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"huggingface": notes}), changed)
    return changed.getvalue(), said


def mutate_table(rng: random.Random, content: bytes) -> Mutated:
    """Change a table of labels in CSV."""
    lines = content.decode().splitlines()
    if rng.random() < 0.4:
        return mutate_bytes(rng, content)
    place = rng.randrange(len(lines))
    new = rng.choice(("", ",", "0.png", "0.png,", ",a", "0.png,a,b", "nosuch.png,a", "../0.png,a",
                      '"0.png,a', "0.png,\x00", "0.png,nan", "0.png,-1", "0.png," + "x" * 9000,
                      "/dev/zero,a", "x" * 300 + ".png,a", "file_name,file_name",
                      "0.png,\ufffe"))  # fmt: skip
    lines[place] = new
    return ("\n".join(lines) + "\n").encode(), f"line {place}: {new[:30]!r}"
