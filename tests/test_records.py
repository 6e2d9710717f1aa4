"""Files are read strictly: JSON without NaN and deep nesting, dataclasses by their declared types."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecost.errors import LONGEST, StageCostError
from stagecost.records import read_record, writable
from stagecost.storage import parse_json, read_json, write_json


@dataclass(frozen=True)
class Inner:
    number: float
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    count: int
    name: str
    flag: bool
    several: tuple[int, ...]
    pair: tuple[float, float] | None
    inner: Inner
    rest: list[Inner] = field(default_factory=list)


FLOATS = st.floats(allow_nan=False, width=32)
INNER = st.builds(Inner, FLOATS, st.sampled_from(["a", "b"]))
OUTER = st.builds(
    Outer,
    st.integers(-(2**62), 2**62),
    st.text(),
    st.booleans(),
    st.lists(st.integers(0, 9)).map(tuple),
    st.none() | st.tuples(FLOATS, FLOATS),
    INNER,
    st.lists(INNER),
)


@given(OUTER)
def test_what_is_written_is_read(record: Outer) -> None:
    text = json.dumps(writable(asdict(record)), allow_nan=False)
    assert read_record(Outer, parse_json(text)) == record


VALID: dict[str, Any] = {
    "count": 1,
    "name": "x",
    "flag": True,
    "several": [1, 2],
    "pair": None,
    "inner": {"number": 1},
}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"count": 1.0}, "count is 1.0"),
    ({"count": True}, "count is True"),
    ({"count": "1"}, "count is '1'"),
    ({"count": 2**63}, "count is 9223372036854775808"),
    ({"name": 1}, "name is 1"),
    ({"flag": 0}, "flag is 0"),
    ({"several": [1, "2"]}, "several is '2'"),
    ({"several": "12"}, "several is '12'"),
    ({"pair": [1.0]}, r"pair is \[1.0\]"),
    ({"inner": {}}, "inner.number is missing"),
    ({"inner": {"number": "x"}}, "inner.number is 'x'"),
    ({"inner": {"number": 1, "kind": "c"}}, "inner.kind is 'c'"),
    ({"inner": {"number": 1, "kind": ["a"]}}, r"inner.kind is \['a'\]"),
    ({"inner": [1]}, r"inner is \[1\], not a mapping"),
    ({"nonsense": 1}, "'nonsense' is unknown"),
    ({"rest": [{"number": None}]}, "rest.number is None"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=str)
def test_other_types_are_refused(change: dict[str, Any], message: str) -> None:
    assert read_record(Outer, VALID).inner == Inner(1.0)
    with pytest.raises(ValueError, match=message):
        read_record(Outer, VALID | change)


TEXTS = ["NaN", "[Infinity]", '{"a": -Infinity}', "1e999", "[-1e400]", "[" * 40 + "]" * 40, "[" * 10**5,
         '{"a":' * 10**4, "1" * 5000, "", "{", '"\x00"', "\ufeff1"]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:20])
def test_what_is_no_json(tmp_path: Path, text: str) -> None:
    file = tmp_path / "file.json"
    file.write_text(text)
    with pytest.raises(StageCostError, match="is not valid JSON") as caught:
        read_json(file)
    assert str(file) in str(caught.value)


@given(
    st.recursive(
        st.none() | st.booleans() | FLOATS.filter(math.isfinite) | st.text(), st.lists, max_leaves=20
    )
)
def test_json_that_is_written_is_read(content: Any) -> None:
    assert parse_json(json.dumps(content)) == content


def test_no_number_that_json_lacks_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file.json", [math.nan])
    assert not (tmp_path / "file.json").exists()


@given(st.text(st.characters(categories=("L", "N", "P", "Z", "C"))) | st.text(min_size=1000))
def test_a_message_is_one_line(text: str) -> None:
    message = str(StageCostError(text))
    assert message.isprintable()
    assert len(message) <= LONGEST
    if text.isprintable() and len(text) <= LONGEST:
        assert message == text
