"""The keys of a recipe on the command line."""

import argparse
import shlex

import pytest

from sj_online.app import options, reader
from sj_online.app.recipe import Named


def recipe(line, values=None):
    rest, dynamic = options.split(shlex.split(line))
    parser = options.Parser()
    options.add(parser)
    return reader.build(values or {}, options.changes(parser.parse_args(rest), dynamic))


@pytest.mark.parametrize(
    ("line", "get", "expected"),
    [
        ("--seed 3", lambda r: r.seed, 3),
        ("--num_steps=null", lambda r: r.num_steps, None),
        ("--train.clip=1e-3", lambda r: r.train.clip, 0.001),
        ("--train.clip 2", lambda r: r.train.clip, 2.0),
        ("--fabric.compile true", lambda r: r.fabric.compile, True),
        ("--fabric.precision bf16-mixed", lambda r: r.fabric.precision, "bf16-mixed"),
        ("--dataset.root 12", lambda r: r.dataset.root, "12"),
        ("--dataset.root '[x]*'", lambda r: r.dataset.root, "[x]*"),
        ("--dataset.root=null", lambda r: r.dataset.root, None),
        ("--dataset mnist", lambda r: r.dataset.name, "mnist"),
        ("--dataset.name mnist", lambda r: r.dataset.name, "mnist"),
        ("--dataset.augment '[a, {name: b}]'", lambda r: r.dataset.augment, [Named("a"), Named("b")]),
        ("--model 12", lambda r: r.model, Named("12")),
        ("--model.name m", lambda r: r.model, Named("m")),
        ("--train.rule bptt", lambda r: r.train.rule, Named("bptt")),
        ("--train.rule '{name: ottt, options: {a: [1]}}'", lambda r: r.train.rule, Named("ottt", {"a": [1]})),
        ("--train.rule.options '{update: step}'", lambda r: r.train.rule, Named("sltt", {"update": "step"})),
        ("--train.rule.options.update step", lambda r: r.train.rule, Named("sltt", {"update": "step"})),
        ("--train.rule.options.update=step", lambda r: r.train.rule, Named("sltt", {"update": "step"})),
        ("--train.rule.options.x -1", lambda r: r.train.rule.options, {"x": -1}),
        ("--train.rule.options.x.y '{a: b}'", lambda r: r.train.rule.options, {"x": {"y": {"a": "b"}}}),
        ("--train.rule.options.a=b=c", lambda r: r.train.rule.options, {"a": "b=c"}),
        ("--train.schedule null", lambda r: r.train.schedule, None),
        ("--train.schedule.options.warmup 3", lambda r: r.train.schedule, Named("cosine", {"warmup": 3})),
        ("--start.run r --start.convert q", lambda r: (r.start.run, r.start.convert), ("r", Named("q"))),
        # In whatever order they come, a name is changed before its options.
        ("--train.rule.options.k 2 --train.rule ottt", lambda r: r.train.rule, Named("ottt", {"k": 2})),
    ],
)  # fmt: skip
def test_what_options_say(line, get, expected):
    assert get(recipe(line)) == expected


def test_what_is_not_given_stays():
    values = {"seed": 5, "train": {"rule": {"name": "a", "options": {"b": 1}}}}
    assert recipe("", values) == reader.build(values)
    changed = recipe("--train.rule.options.c 2", values)
    assert (changed.seed, changed.train.rule) == (5, Named("a", {"b": 1, "c": 2}))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--data.name x", "unrecognized arguments: --data.name x"),
        ("--train.epoch 3", "unrecognized arguments"),
        ("--train.epo 3", "unrecognized arguments"),
        ("--see 3", "unrecognized arguments"),
        ("--train '{epochs: 3}'", "unrecognized arguments"),
        ("--train.rule.option.x 3", "unrecognized arguments"),
        ("--seed 1 --seed 1", "--seed is given twice"),
        ("--seed", "expected one argument"),
        ("--seed '&a 1'", "--seed: line 1: anchors"),
        ("--seed 1.5", "seed=1.5 is not a whole number"),
        ("--model '{name: [}'", "--model: "),
        ("--train.rule.options.x", "--train.rule.options.x needs a value"),
        ("--train.rule.options.x --seed 1", "--train.rule.options.x needs a value"),
        ("--train.rule.options.x '!!python/name:os.system 1'", "--train.rule.options.x: line 1: tags"),
        ("--start.convert q", "start lacks run"),
    ],
)
def test_what_options_cannot_say(line, message):
    with pytest.raises(ValueError, match=message):
        recipe(line)


def test_every_option_has_a_description():
    parser = argparse.ArgumentParser(prog="x")
    options.add(parser)
    shown = [action for action in parser._actions if action.help is not argparse.SUPPRESS]
    assert len(shown) > 25
    assert all(action.help and len(action.help) > 5 for action in shown)
    assert "--train.rule NAME" in parser.format_help()
    assert "--train.epochs EPOCHS" in parser.format_help()
    assert "--train.rule.name" not in parser.format_help()
