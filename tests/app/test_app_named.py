"""Names and options to calls."""

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Annotated, Any, Literal

import pytest
import torch
import torch.nn.functional as F

from sj_online import loss, registry
from sj_online.app import named
from sj_online.app.recipe import Named


class Color(Enum):
    RED = "red"


class Base:
    def __init__(self, net, *, a: int = 1, b: float | None = None):
        self.given = {"net": net, "a": a, "b": b}


class Passing(Base):
    """Passes on what it does not know."""

    def __init__(self, net, *, c: Literal["x", "y"] = "x", **kwargs: Any):
        super().__init__(net, **kwargs)
        self.given |= {"c": c}


class Narrow(Base):
    """Takes less than its base."""

    def __init__(self, net, *, c: int = 1):
        super().__init__(net, a=c)


def function(
    first, flag: bool = False, names: Sequence[str] = (), sizes: list[int] | None = None, fn: Callable | None = None,
    table: dict | None = None, color: Color = Color.RED, text: "str" = "", tensor: torch.Tensor | None = None, free=0,
    noted: Annotated[int, "a note"] = 0,
):  # fmt: skip
    """Of one argument and options of every kind."""
    return dict(locals())


def open_ended(first, **options):
    return options


def unreadable(first, x: "Missing" = 1):  # noqa: F821 - as under TYPE_CHECKING
    return x


def failing(first, x: int = 1):
    raise KeyError("two\nlines")


ENTRIES = {
    "Base": Base,
    "Narrow": Narrow,
    "Passing": Passing,
    "function": function,
    "open_ended": open_ended,
    "unreadable": unreadable,
    "failing": failing,
    "text": "no function",
}


@pytest.fixture(autouse=True)
def entries(monkeypatch):
    get = registry.get
    monkeypatch.setattr(registry, "get", lambda group, name: ENTRIES[name] if name in ENTRIES else get(group, name))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Base", {"a": 1, "b": 2}),
        ("Base", {"b": None}),
        ("Base", {"b": 0.5}),
        ("Passing", {"a": 2, "b": 1.0, "c": "y"}),
        ("function", {"flag": True, "names": ["a"], "sizes": [1, 2], "table": {"x": 1}, "color": "red", "text": "t"}),
        ("function", {"names": [], "sizes": None, "free": "anything", "noted": 3}),
        ("open_ended", {"whatever": [1]}),
        ("unreadable", {"x": "as far as it can be told"}),
    ],
)
def test_options_that_fit(name, options):
    named.check("models", Named(name, options), given=1)
    named.make("models", Named(name, options), "net")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Base", {"c": 1}, "model Base: c is not an option; it has a, b"),
        ("Base", {"net": 1}, "model Base: net is not an option"),
        ("Passing", {"d": 1}, "model Passing: d is not an option; it has a, b, c"),
        ("Narrow", {"a": 1}, "model Narrow: a is not an option; it has c$"),
        ("function", {"nope": 1}, "model function: nope is not an option; it has flag, names"),
        ("Passing", {"kwargs": {}}, "kwargs is not an option"),
        ("Passing", {"c": "z"}, "c='z' must be"),
        ("Base", {"a": "1"}, "a='1' must be int"),
        ("Base", {"a": True}, "a='True' must be int"),
        ("Base", {"a": 1.5}, "a='1.5' must be int"),
        ("Base", {"a": None}, "a='None' must be int"),
        ("Base", {"b": [1]}, r"b='\[1\]' must be float"),
        ("function", {"flag": 1}, "flag='1' must be bool"),
        ("function", {"names": "a"}, "names='a' must be"),
        ("function", {"names": [1]}, "must be"),
        ("function", {"sizes": [1, "x"]}, "must be"),
        ("function", {"fn": "os.system"}, "fn='os.system' must be"),
        ("function", {"tensor": 1}, "tensor='1' must be"),
        ("function", {"table": []}, "table=.* must be dict"),
        ("function", {"color": "blue"}, "color='blue' must be one of red"),
        ("function", {"text": 1}, "text='1' must be str"),
        ("function", {"noted": "1"}, "noted='1' must be"),
        ("open_ended", {"first": 1}, "model open_ended"),
    ],
)
def test_options_that_do_not_fit(name, options, message):
    with pytest.raises(ValueError, match=message) as raised:
        named.make("models", Named(name, options), "net")
    assert "\n" not in str(raised.value)


def test_nothing_is_called_by_a_check():
    named.check("models", Named("failing", {"x": 2}), given=1)
    with pytest.raises(ValueError, match=r"^model failing: KeyError 'two\\nlines'$"):
        named.make("models", Named("failing"), "net")


def test_a_callable_gets_only_what_it_asks_for_and_options_win():
    made = named.make("models", Named("Base", {"a": 5}), "net", a=3, b=4.0, unknown=6)
    assert made.given == {"net": "net", "a": 5, "b": 4.0}


def test_what_is_reserved_is_given_and_cannot_be_an_option():
    assert named.make("models", Named("Base"), "net", reserved={"a": 7, "x": 1}).given["a"] == 7
    with pytest.raises(ValueError, match="^model Base: a cannot be set here: the recipe does$"):
        named.make("models", Named("Base", {"a": 5}), "net", reserved={"a": 7})
    with pytest.raises(ValueError, match="c is not an option; it has b$"):
        named.check("models", Named("Base", {"c": 5}), 1, reserved=["a"])


def test_strings_become_members_of_enumerations():
    assert named.make("models", Named("function", {"color": "red"}), "net")["color"] is Color.RED


def test_what_cannot_be_called():
    with pytest.raises(ValueError, match="model text is registered as a str, which cannot be called"):
        named.check("models", Named("text"))


def test_losses():
    output, y = torch.randn(4, 10), torch.randint(10, (4,))
    smooth = named.make("losses", Named("cross_entropy", {"label_smoothing": 0.1}))
    assert smooth(output, y) == F.cross_entropy(output, y, label_smoothing=0.1)
    assert named.make("losses", Named("CrossEntropyLoss"))(output, y) == F.cross_entropy(output, y)
    assert named.make("losses", Named("ce_mse", {"a": 0.3})) == loss.CrossEntropyMSE(0.3)
    assert named.make("losses", Named("rate_cross_entropy")) is loss.rate_cross_entropy


def test_a_loss_of_a_window_keeps_its_mark(monkeypatch):
    @loss.over_window
    def windowed(outputs, y, power: float = 1.0):
        return outputs.mean() ** power

    monkeypatch.setitem(ENTRIES, "windowed", windowed)
    made = named.make("losses", Named("windowed", {"power": 2.0}))
    assert isinstance(made, loss.OverWindow) and made(torch.full((2, 1, 3), 3.0), None) == 9
    assert not isinstance(named.make("losses", Named("cross_entropy", {"label_smoothing": 0.1})), loss.OverWindow)


def test_conversions_are_a_table():
    assert named.entry("converters", "swap_neurons").__name__ == "swap_neurons"
    for name in ("registry", "inspect", "torch", "Swap", "nope", "_replace"):
        with pytest.raises(ValueError, match=f"'{name}' is not one of the conversions qcfs_to_lmh"):
            named.entry("converters", name)
