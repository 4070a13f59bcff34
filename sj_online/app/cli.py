"""The command line ``sj-online``: train, eval, export, report, bench, list.

What a user gets wrong is one line on stderr and exit code 2. PyTorch is imported only where it is needed.
"""

import argparse
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from sj_online import registry
from sj_online.app import bench, options, reader
from sj_online.app.options import Once, Parser
from sj_online.app.recipe import Precision, Recipe
from sj_online.app.rundir import RunDirectory


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    Args:
        argv: the arguments, those of the process if None.

    Example:
        >>> main(["list", "neurons"])
        neurons
          empf ...
        0
    """
    argv = sys.argv[1:] if argv is None else argv
    args = argparse.Namespace()
    try:
        rest, dynamic = options.split(argv) if argv[:1] == ["train"] else (argv, [])
        _parser().parse_args(rest, args)
        args.dynamic = dynamic
        COMMANDS[args.command](args)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads it, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be flushed goes nowhere
        return 1
    except (ValueError, OSError) as error:
        return _say(str(error))
    except KeyboardInterrupt:
        print("sj-online: interrupted; train --resume goes on after the last checkpoint", file=sys.stderr)
        return 130
    except Exception as error:
        return _say(f"{type(error).__name__}: {str(error)[:300]} (the traceback is in {_kept(args)})")
    return 0


def train(args: argparse.Namespace) -> None:
    """Train by a recipe, or go on with a run."""
    directory = RunDirectory(args.out or Path("runs", Path(args.recipe or "digits").stem))
    recipe = _recipe(args, directory)
    if args.rehearse:
        from sj_online.app.build import build
        from sj_online.app.rehearse import rehearse

        if recipe.start and not recipe.start.convert:  # the weights of that run change nothing that is printed
            recipe = replace(recipe, start=None)
        print(rehearse(build(recipe, rehearsal=True)))
        return
    if args.resume and directory.config.exists():
        _same(recipe, directory)
        if directory.summary.exists() and _epochs(directory.summary) >= recipe.train.epochs:
            print(f"{directory.path} is finished; see {directory.summary}")
            return
    directory.check_free(args.resume)
    from sj_online.app.build import build
    from sj_online.app.loop import fit

    fit(build(recipe, download=args.download), directory.path, resume=args.resume)


def evaluate(args: argparse.Namespace) -> None:
    """Print the accuracy on the test data."""
    from sj_online.app.evaluation import lines

    for line in lines(args):
        print(line)


def export(args: argparse.Namespace) -> None:
    """Write a packed file."""
    from sj_online.app.outcome import export

    export(args.run, args.to, checkpoint=args.checkpoint)
    print(f"{args.to}: {Path(args.to).stat().st_size:,} bytes")


def show(args: argparse.Namespace) -> None:
    """List what is registered, with the paper of each."""
    for group in [args.group] if args.group else registry.GROUPS:
        print(group)
        if group == "recipes":
            _show_recipes()
            continue
        for name in registry.names(group):
            print(f"  {name:<34}{_describe(group, name)}")


RUNTIMES = ("packed", "unpacked", "int8", "auto")
"""Of a packed file, as sj_online.deploy.load has them; the command line answers without torch."""
COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "train": train,
    "eval": evaluate,
    "export": export,
    "report": bench.report,
    "bench": bench.bench,
    "list": show,
}


def _parser() -> Parser:
    parser = Parser(prog="sj-online", description="Train spiking networks online, deploy them packed.")
    commands = parser.add_subparsers(dest="command", required=True)
    each = {name: commands.add_parser(name, help=command.__doc__) for name, command in COMMANDS.items()}
    each["train"].add_argument("--recipe", action=Once, help="a YAML file, or a name that 'list recipes' shows")
    each["train"].add_argument("--data", action=Once, help="folder of the data set; the digits need none")
    each["train"].add_argument("--out", action=Once, help="directory of the run; runs/RECIPE if not given")
    each["train"].add_argument("--resume", action="store_true", help="go on after the last checkpoint in --out")
    each["train"].add_argument("--rehearse", action="store_true", help="train on two random batches; needs no data")
    each["train"].add_argument("--download", action="store_true", help="fetch the data set into --data")
    options.add(each["train"])
    each["eval"].add_argument("source", help="directory of a run, or a packed file")
    each["eval"].add_argument("--data", action=Once, help="folder of the data set, if not the one trained with")
    each["eval"].add_argument(
        "--precision", choices=get_args(Precision), help="fabric.precision, if not the one trained with"
    )
    each["eval"].add_argument("--steps", type=int, action=Once, help="print the accuracy after 1, 2, ... so many steps")
    each["eval"].add_argument("--convert", choices=["qcfs_to_lmh"], help="convert the network first, an ANN's say")
    each["eval"].add_argument("--runtime", choices=RUNTIMES, default="packed", help="how a packed file runs")
    each["eval"].add_argument("--stream", action="store_true", help="live: one sample, one step at a time")
    each["export"].add_argument("run", help="directory of a run")
    each["export"].add_argument("--to", required=True, action=Once, help="the .safetensors file to write")
    for name in ("eval", "export"):
        each[name].add_argument("--checkpoint", choices=["last", "best"], default="last", help="of the run")
    bench.add(each)
    each["list"].add_argument("group", nargs="?", choices=registry.GROUPS, help="one group only")
    return parser


def _recipe(args: argparse.Namespace, directory: RunDirectory) -> Recipe:
    """The recipe that is named, or that of the run to go on with, with the options above it."""
    if args.recipe is None and args.resume and directory.config.exists():
        values, origin = reader.read(directory.config), f"recipe {directory.config}"
    else:
        name = args.recipe or "digits"
        values, origin = reader.source(name), f"recipe {name}"
    above = options.changes(args, args.dynamic)
    if args.data is not None:
        above.append({"dataset": {"root": args.data}})
    return reader.build(values, above, origin)


def _same(recipe: Recipe, directory: RunDirectory) -> None:
    """Raise if a run was begun with another recipe; where it runs, where its data lie and how long may change."""
    begun, train = reader.load(directory.config), recipe.train
    begun = replace(
        begun,
        fabric=recipe.fabric,
        dataset=replace(begun.dataset, root=recipe.dataset.root),
        train=replace(
            begun.train, epochs=train.epochs, workers=train.workers, checkpoint_minutes=train.checkpoint_minutes
        ),
    )
    if begun != recipe:
        asked = recipe.to_yaml().splitlines()
        changed = ", ".join(line.strip() for line in begun.to_yaml().splitlines() if line not in asked)
        raise ValueError(
            f"{directory.path} was begun with another recipe ({changed}): resume with that one, or give another --out"
        )


def _epochs(summary: Path) -> float:
    """How many epochs a finished run has had."""
    try:
        return float(json.loads(summary.read_text())["epochs"])
    except (ValueError, TypeError, KeyError):  # not a summary of ours: it will be written anew
        return 0


def _show_recipes() -> None:
    """The table of the papers' rows: recipe, table, row and the accuracy there."""
    rows: list[tuple[str, ...]] = []
    for name in reader.names():
        try:
            paper = reader.build(reader.source(name)).paper
        except ValueError as error:  # of a third party; the list goes on
            rows.append((name, f"cannot be read: {error}"))
            continue
        figure = f"{paper.accuracy:5.2f} %" if paper and paper.accuracy is not None else "    -"
        rows.append((name, paper.table, paper.row, figure) if paper else (name, "-"))
    widths = [max((len(row[i]) for row in rows if len(row) == 4), default=0) for i in range(4)]
    for row in rows:
        print("  " + "  ".join(map(str.ljust, row, widths)).rstrip())


def _describe(group: str, name: str) -> str:
    """The paper, or what it is; of a model also its size, built without memory."""
    try:
        entry = registry.get(group, name)
        lines = (entry.__doc__ or "").strip().splitlines() or [f"of {entry.__module__}"]
        return getattr(entry, "paper", lines[0]) + (_size(entry) if group == "models" else "")
    except Exception as error:  # a third party's package fails in its own way, the list goes on
        return f"cannot be imported: {error}"


def _size(model: Callable[[], Any]) -> str:
    import torch

    from sj_online.analysis import network_cost

    with torch.device("meta"):
        c = network_cost(model())
    return f"; {c.parameters:,} parameters, weights packed in {c.packed_bytes / 1e6:.2f} MB"


def _say(message: str) -> int:
    print(f"sj-online: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _kept(args: argparse.Namespace) -> Path:
    """Where the traceback of the present error is kept: in the directory of the run, or else a temporary file."""
    text = traceback.format_exc()
    try:
        path = RunDirectory(args.out).errors
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except (AttributeError, TypeError, OSError):
        handle, name = tempfile.mkstemp(prefix="sj-online-", suffix=".log")
        with open(handle, "w") as file:
            file.write(text)
        return Path(name)
    return path
