import pytest
import yaml

from sj_online.app import plain, yamltext


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-12", -12),
        ("+1", 1),
        ("010", 10),
        ("1e-3", 0.001),
        ("5E2", 500.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-.inf", float("-inf")),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("Yes", "Yes"),
        ("True", "True"),
        ("12:30", "12:30"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("2001-01-01", "2001-01-01"),
        ("1e", "1e"),
        ("=", "="),
        ("'1'", "1"),
        ("[a, {b: 1}]", ["a", {"b": 1}]),
        ("a:\n  - 1\n  - b: [2]", {"a": [1, {"b": [2]}]}),
        ("{<<: {a: 1}}", {"<<": {"a": 1}}),
    ],
)
def test_scalars_are_those_of_json(text, value):
    read = yamltext.parse(text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x 1", "line 1: anchors and aliases"),
        ("a: 1\nb: *a", "line 2: anchors and aliases"),
        ("a: &x\n  b: *x", "anchors and aliases"),
        ("a: &x [*x, *x]", "anchors and aliases"),
        ("a: !!str 1", "line 1: tags such as 'tag:yaml.org,2002:str'"),
        ("!!python/object/apply:os.system [ls]", "tags such as"),
        ("a: !x 1", "tags such as '!x'"),
        ("a: 1\nb: {c: 1, c: 2}", "line 2: key 'c' comes twice"),
        ("1: a", "line 1: key 1 is not a string"),
        ("null: a", "key None is not a string"),
        ("? [1]\n: a", r"key \[1\] is not a string"),
        ("--- 1\n--- 2", "found another document"),
        ("a: [1", "line 1"),
        ("a: \x00", "special characters are not allowed"),
        ("\t", "cannot start any token"),
        ("9" * 5000, "Exceeds the limit"),
        ("a" * 65537, "more than 65536 characters"),
    ],
)
def test_what_is_not_read(text, message):
    with pytest.raises(ValueError, match=message) as raised:
        yamltext.parse(text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_depth_is_bounded(opening):
    for depth in (plain.DEPTH + 1, 10_000):
        with pytest.raises(ValueError, match=f"nested more than {plain.DEPTH} deep"):
            yamltext.parse(opening * depth + "x")


def test_depth_is_that_of_a_place_not_the_sum_of_all():
    assert yamltext.parse("[" + "[[1]], " * 100 + "]") == [[[1]]] * 100
    assert yamltext.parse("[" * plain.DEPTH + "]" * plain.DEPTH) != []


@pytest.mark.parametrize(
    "value",
    ["1e-3", "no", "null", "", "true", "a: b", "# c", "&x", "*y", "é\n", "1", 1.5, 1e-9, -3, None, False, [], {}],
)
def test_what_is_written_is_read_again(value):
    again = yamltext.parse(yamltext.dump({"a": value, "b": [value, value]}))
    assert again == {"a": value, "b": [value, value]}
    assert type(again["a"]) is type(value)


def test_the_order_of_keys_stays():
    assert yamltext.dump({"b": 1, "a": "é"}) == "b: 1\na: é\n"


def test_the_largest_text():
    assert len(yamltext.parse("x" * 65536)) == 65536


def test_shared_values_are_written_out():
    shared = [1]
    assert yamltext.parse(yamltext.dump({"a": shared, "b": shared})) == {"a": [1], "b": [1]}
    with pytest.raises(ValueError, match="anchors"):  # the control
        yamltext.parse(yaml.safe_dump({"a": shared, "b": shared}))
