"""The commands ``report`` and ``bench``: what they are given, and what they print. PyTorch is imported on their use."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sj_online.app import reader
from sj_online.app.options import Once
from sj_online.app.recipe import Recipe

if TYPE_CHECKING:
    from sj_online.app.tables import Table

PARTS = ("activity", "gradients", "cost")


def report(args: argparse.Namespace) -> None:
    """Write one page about some runs, with PNG and CSV beside it."""
    from sj_online.app.findings import missing
    from sj_online.app.report import write

    found = write(
        args.runs, args.to, parts=_words(args.parts, PARTS), checkpoint=args.checkpoint, root=args.data, say=_say
    )
    for line in missing(found):
        print(line)
    print(f"{args.to}: {Path(args.to).stat().st_size:,} bytes; PNG and CSV in {Path(args.to).with_suffix('')}")


def bench(args: argparse.Namespace) -> None:
    """Measure rules, memory, gradients or inference on a recipe's network, and print a table."""
    table = WHAT[args.what](args)
    print(table.text())
    if args.csv:
        table.write_csv(args.csv)


def add(commands: Mapping[str, argparse.ArgumentParser]) -> None:
    """The options of the two."""
    page, run = commands["report"], commands["bench"]
    page.add_argument("runs", nargs="+", metavar="DIR", help="directory of a run")
    page.add_argument("--to", required=True, action=Once, help="the .html file to write")
    page.add_argument(
        "--parts", action=Once, help=f"what is measured, of {','.join(PARTS)}; the first two if not given"
    )
    page.add_argument("--checkpoint", choices=["last", "best"], default="last", help="of the runs")
    page.add_argument("--data", action=Once, help="folder of the data set, if not the one trained with")
    run.add_argument(
        "what", choices=WHAT, help="time and memory at one T, memory over T, similarity to BPTT, inference"
    )
    run.add_argument("--recipe", action=Once, help="a YAML file, or a name that 'list recipes' shows; else digits")
    run.add_argument("--run", action=Once, help="gradients of the network of this run's directory, and of its data")
    run.add_argument("--checkpoint", choices=["last", "best"], default="last", help="of --run")
    run.add_argument("--data", action=Once, help="folder of the data set of --run, if not the one trained with")
    run.add_argument("--rules", action=Once, help="registered names, by commas; all if not given")
    run.add_argument("--steps", action=Once, help="the T to measure, by commas; the recipe's if not given")
    run.add_argument("--batch", type=int, default=16, help="samples in a batch")
    run.add_argument("--rounds", type=int, default=20, help="timed rounds")
    run.add_argument("--csv", action=Once, help="write the table to this file, too")


def _rules(args: argparse.Namespace) -> "Table":
    from sj_online.app import studies, tables

    recipe = _recipe(args)
    rows, left_out = studies.cost_of_rules(
        recipe, _words(args.rules), _steps(args, recipe)[:1], batch=args.batch, rounds=args.rounds, say=_say
    )
    return _noted(tables.of_cost(rows), f"batch {args.batch}, the least of {args.rounds} rounds in turn", left_out)


def _memory(args: argparse.Namespace) -> "Table":
    from sj_online.app import studies, tables

    recipe = _recipe(args)
    steps = _steps(args, recipe) if args.steps or recipe.num_steps is None else [2, 8, 32]
    rows, left_out = studies.cost_of_rules(recipe, _words(args.rules), steps, batch=args.batch, rounds=0, say=_say)
    return _noted(tables.of_memory(rows), f"MB, batch {args.batch}: saved for backward / all that is live", left_out)


def _gradients(args: argparse.Namespace) -> "Table":
    from sj_online.app import studies, tables
    from sj_online.app.outcome import open_for_evaluation
    from sj_online.app.rehearse import samples

    if args.run:
        parts = open_for_evaluation(args.run, checkpoint=args.checkpoint, root=args.data)
        data = list(studies.first_batches(parts, parts.data.test, 3, args.batch))
        of = f"the {args.checkpoint} checkpoint of {args.run}, its test data"
    else:
        recipe = _recipe(args)
        parts = studies.of_steps(recipe, _steps(args, recipe)[0])
        data = [samples(parts, args.batch) for _ in range(3)]
        of = "an untrained network, random samples"
    rows, left_out = studies.gradients_of_rules(parts, data, _words(args.rules), say=_say)
    return _noted(tables.of_similarity(rows), f"{of}, {len(data)} batches of {args.batch}", left_out)


def _inference(args: argparse.Namespace) -> "Table":
    from sj_online.app import studies
    from sj_online.app.tables import Table

    recipe = _recipe(args)
    sizes = sorted({1, args.batch})
    rows = studies.cost_of_inference(recipe, _steps(args, recipe), sizes, rounds=args.rounds, say=_say)
    titles = ["way", "T", "batch", "ms", "quartiles", "", "images/s", "peak live, MB", "neuron operations an image"]
    cells = [[*row[:7], row[7] / 1e6, row[8]] for row in rows]
    return Table(titles, cells, f"the least of {args.rounds} rounds in turn, random samples")


WHAT: dict[str, Callable[[argparse.Namespace], Any]] = {
    "rules": _rules,
    "memory": _memory,
    "gradients": _gradients,
    "inference": _inference,
}


def _recipe(args: argparse.Namespace) -> Recipe:
    for name, value in (("batch", args.batch), ("rounds", args.rounds)):
        if value < 1:
            raise ValueError(f"--{name}={value} must be at least 1")
    name = args.recipe or "digits"
    recipe = reader.build(reader.source(name), origin=f"recipe {name}")
    return replace(recipe, train=replace(recipe.train, schedule=None, callbacks=[]))


def _steps(args: argparse.Namespace, recipe: Recipe) -> list[int]:
    from sj_online.app.networks import describe, time_steps

    if not args.steps:
        return [time_steps(recipe, describe(recipe))]
    if not all(word.isdecimal() and int(word) for word in args.steps.split(",")):
        raise ValueError(f"--steps={args.steps} must be whole numbers above 0, by commas, such as 2,8,32")
    return [int(word) for word in args.steps.split(",")]


def _words(text: str | None, allowed: Sequence[str] = ()) -> list[str]:
    if text is None:
        return list(allowed[:2])
    words = [word for word in text.split(",") if word]
    if wrong := [word for word in words if allowed and word not in allowed]:
        raise ValueError(f"{wrong[0]!r} is not one of {', '.join(allowed)}")
    return words


def _noted(table: Any, note: str, left_out: Sequence[str]) -> Any:
    table.note = "\n".join([note, *left_out])
    return table


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)
