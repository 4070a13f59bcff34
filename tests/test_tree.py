"""Nested containers of tensors."""

import dataclasses
from collections import OrderedDict, deque, namedtuple

import pytest
import torch

from sj_online.tree import tensors, tree_map

Pair = namedtuple("Pair", "a b")


@dataclasses.dataclass(frozen=True)
class Output:
    x: torch.Tensor
    name: str = "out"


T = torch.tensor
CASES = {
    "tensor": (T(1), T(-1)),
    "list": ([T(1), 3], [T(-1), 3]),
    "tuple": ((T(1), (T(2), None)), (T(-1), (T(-2), None))),
    "namedtuple": (Pair(T(1), "b"), Pair(T(-1), "b")),
    "dict": ({"a": T(1), "b": [T(2)]}, {"a": T(-1), "b": [T(-2)]}),
    "ordered": (OrderedDict(b=T(1), a=T(2)), OrderedDict(b=T(-1), a=T(-2))),
    "deque": (deque([T(1), T(2)], maxlen=2), deque([T(-1), T(-2)], maxlen=2)),
    "dataclass": (Output(T(1)), Output(T(-1))),
    "nothing": (5, 5),
    "empty": ([], []),
}


@pytest.mark.parametrize("kind", CASES)
def test_the_structure_stays_and_the_tensors_change(kind):
    value, expected = CASES[kind]
    before = [t.item() for t in tensors(value)]
    made = tree_map(torch.neg, value)
    assert made == expected and type(made) is type(expected)
    assert [t.item() for t in tensors(made)] == [-v for v in before]
    assert [t.item() for t in tensors(value)] == before
    assert getattr(made, "maxlen", 0) == getattr(value, "maxlen", 0)
    assert made is not value or kind == "nothing"
    assert kind != "ordered" or list(made) == ["b", "a"]


@pytest.mark.parametrize("kind", [kind for kind in CASES if kind not in ("nothing", "empty")])
def test_what_stands_in_the_same_place_goes_along(kind):
    value, other = CASES[kind]
    assert all(t.item() == 0 for t in tensors(tree_map(torch.add, value, other)))


def test_another_structure_is_an_error():
    with pytest.raises(ValueError):
        tree_map(torch.add, [T(1), T(2)], [T(1)])
    with pytest.raises(KeyError):
        tree_map(torch.add, {"a": T(1)}, {})
    assert list(tensors(Output)) == []
