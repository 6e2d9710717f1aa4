"""Settings: read from plain values or texts, and written again; what is no such value is refused."""

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecost.cut import Cut
from stagecost.errors import StageCostError
from stagecost.train.parsing import PARTS, parse_settings, setting_types
from stagecost.train.settings import RunSettings, StageCostSettings

VALUES: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(10**6), 10**6),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    str: st.text(max_size=5),
    tuple[int, ...]: st.lists(st.integers(0, 99), max_size=4),
    tuple[float, ...]: st.lists(st.floats(allow_nan=False), max_size=3),
    tuple[str, ...]: st.lists(st.sampled_from(["4", "3+3+4", "8"]), max_size=3),
}


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    if getattr(kind, "__args__", None) and type(None) in kind.__args__:
        others = [part for part in kind.__args__ if part is not type(None)]
        return st.none() | values_of(others[0])
    return VALUES[kind] if kind in VALUES else st.sampled_from(kind.__args__)


@given(data=st.data())
def test_settings_go_to_a_file_and_back(data: st.DataObject) -> None:
    kinds = setting_types()
    names = data.draw(st.sets(st.sampled_from(sorted(kinds)), max_size=6))
    flat = {name: data.draw(values_of(kinds[name])) for name in names}
    settings = parse_settings(flat)
    assert parse_settings(settings.to_flat()) == settings
    assert settings.to_flat().keys() == kinds.keys()
    for name, value in flat.items():
        assert settings.to_flat()[name] == value


@given(data=st.data())
def test_a_text_says_the_value(data: st.DataObject) -> None:
    """As on a command line: what a value prints as is read as that value."""
    kinds = {name: kind for name, kind in setting_types().items() if kind not in (str, tuple[str, ...])}
    name = data.draw(st.sampled_from(sorted(kinds)))
    value = data.draw(values_of(kinds[name]).filter(lambda value: value is not None))
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    assert parse_settings({name: text}) == parse_settings({name: value})


def test_defaults_are_those_of_the_dataclasses() -> None:
    assert parse_settings({}) == RunSettings()
    assert {f.name for part in PARTS.values() for f in fields(part)} == set(setting_types())


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"epochs": "x"}, "--epochs is 'x': give a whole number"),
    ({"epochs": 1.5}, "--epochs is 1.5: give a whole number"),
    ({"epochs": True}, "--epochs is True: give a whole number"),
    ({"epochs": None}, "--epochs is null: give a whole number"),
    ({"epochs": [1]}, r"--epochs is \[1\]: give a whole number"),
    ({"num_blocks": "²"}, "--num-blocks is '²': give a whole number"),
    ({"gamma": "auto"}, "--gamma is 'auto': give a number"),
    ({"gamma": float("nan")}, "--gamma is nan: give a number"),
    ({"lr": {}}, r"--lr is \{\}: give a number"),
    ({"compile": 1}, "--compile is 1: give true or false"),
    ({"compile": "perhaps"}, "give true or false"),
    ({"optimizer": "lbfgs"}, "--optimizer is 'lbfgs': give one of 'sgd', 'adamw'"),
    ({"widths": "1,x"}, "--widths is '1,x': give numbers like 16,32,64"),
    ({"widths": [1.5]}, "give numbers like 16,32,64"),
    ({"widths": 3}, "give numbers like 16,32,64"),
    ({"model": ["a"]}, r"--model is \['a'\]: give text"),
    ({"seed": 2**63}, r"give a whole number below 2\^63"),
    ({"epoks": 3}, "setting 'epoks' is unknown: did you mean 'epochs'"),
    ({"nonsense": 1}, "setting 'nonsense' is unknown: remove it"),
    ({"fused": "auto"}, "one of an earlier version"),
    ({"depth_vector": [1, 2]}, "--targets"),
    ({"shrink": False}, "one of an earlier version"),
]


@pytest.mark.parametrize(("flat", "match"), WRONG, ids=str)
def test_what_is_no_such_value_is_refused(flat: dict[str, Any], match: str) -> None:
    with pytest.raises(StageCostError, match=match) as caught:
        parse_settings(flat)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flat", "match"),
    [
        ({"gamma": -1.0}, "--gamma is -1.0"),
        ({"gamma": "inf"}, "--gamma is inf"),
        ({"lr": 0.0}, "--lr is 0.0"),
        ({"epochs": 0}, "--epochs is 0"),
        ({"num_processes": 3, "batch_size": 64}, "cannot be shared"),
        ({"ema_decay": 1.0}, "--ema-decay is 1.0"),
        ({"seed": -1}, "--seed is -1"),
        ({"label_smoothing": -0.1}, "--label-smoothing is -0.1"),
        ({"checkpoint_minutes": 0.0}, "--checkpoint-minutes is 0.0"),
        ({"gate": 1.5, "targets": "4"}, "--gate is 1.5"),
        ({"gate": 0.5}, "--gate 0.5 is about targets"),
        ({"sandwich": True}, "--sandwich is about targets"),
        ({"target_norms": "own"}, "--target-norms own is about targets"),
        ({"sandwich": True, "targets": "2,3"}, "--sandwich draws one of three or more"),
        ({"target_norms": "own", "targets": "4", "cut_at": "1:4"}, "--cut-at 1:4 changes"),
        ({"target_norms": "own", "targets": "4", "gamma": 0.0}, "--gamma 0 trains no targets"),
        ({"target_norms": "own", "targets": "4", "compile": True}, "--compile builds a step once"),
        ({"compile": True, "activation_checkpointing": True}, "--compile builds a step as a whole"),
        ({"sandwich": True, "targets": "2,3,4", "sampled_depths": 1}, "both draw"),
        ({"sampled_depths": 2.5}, "--sampled-depths is 2.5"),
        ({"sampled_depths": 0.5, "normalize_objective": True}, "--sampled-depths 0.5 change"),
        (
            {"target_norms": "own", "targets": "2,3,4", "sandwich": True, "num_processes": 2},
            "--num-processes 2 wait for one",
        ),
    ],
)
def test_what_is_impossible_is_refused(flat: dict[str, Any], match: str) -> None:
    with pytest.raises(StageCostError, match=match):
        parse_settings(flat).check()


cuts = st.dictionaries(
    st.integers(1, 99), st.lists(st.integers(1, 99), min_size=1, max_size=3).map(tuple), max_size=4
)


@given(cuts=cuts)
def test_a_schedule_of_cuts_is_read_as_it_is_written(cuts: dict[int, tuple[int, ...]]) -> None:
    text = ",".join(f"{epoch}:{'+'.join(map(str, keep))}" for epoch, keep in cuts.items())
    settings = StageCostSettings(cut_at=text or None)
    expected = {
        epoch: Cut.first(keep[0]) if len(keep) == 1 else Cut.stages(*keep)
        for epoch, keep in sorted(cuts.items())
    }
    assert settings.schedule() == expected
    assert list(settings.schedule()) == sorted(cuts)


def test_how_many_depths_are_sampled() -> None:
    """Three by default; all where the step is compiled, or there are targets."""
    assert parse_settings({}).sampled_depths == 3
    assert parse_settings({"sampled_depths": 0}).sampled_depths == 0
    assert parse_settings({"compile": True}).sampled_depths == 0
    assert parse_settings({"targets": "2,3,4,5"}).sampled_depths == 0


def test_gamma_if_it_is_not_given() -> None:
    assert parse_settings({}).gamma(8) == 1 / 8
    assert parse_settings({"targets": "4"}).gamma(8) == 1
    assert parse_settings({"targets": "4", "gamma": 0.5}).gamma(8) == 0.5


@pytest.mark.parametrize("name", ["freeze_stem", "freeze_norms"])
def test_what_weights_came_with_is_kept_only_where_there_are_some(name: str) -> None:
    with pytest.raises(StageCostError, match=f"--{name.replace('_', '-')} keeps what weights came with"):
        parse_settings({name: True}).check()
    parse_settings({name: True, "weights": "weights.safetensors"}).check()
