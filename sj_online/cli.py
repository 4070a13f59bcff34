"""The command line ``sj-online``: train, eval, export, list.

What a user gets wrong is one line on stderr and exit code 2. PyTorch is imported only where it is needed.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from jsonargparse import ArgumentParser, Namespace

from sj_online import recipe, registry
from sj_online.recipe import Recipe
from sj_online.rundir import RunDirectory


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
    try:
        parser, subparsers = _parsers(sys.argv[1:] if argv is None else argv)
        args = parser.parse_args(argv)
        command = args.subcommand
        COMMANDS[command](args[command], subparsers[command])
        sys.stdout.flush()
    except BrokenPipeError:  # who reads it, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be flushed goes nowhere
        return 1
    except (argparse.ArgumentError, ValueError, OSError) as error:
        print(f"sj-online: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sj-online: interrupted; train --resume goes on after the last finished epoch", file=sys.stderr)
        return 130
    return 0


def train(args: Namespace, parser: ArgumentParser) -> None:
    """Train by a recipe, or go on with a run."""
    config = recipe.build(parser, args)
    config.dataset.root = args.data or config.dataset.root
    directory = RunDirectory(args.out or Path("runs", Path(args.recipe).stem))
    if args.resume and directory.config.exists():
        _same(config, directory)
        if directory.summary.exists():
            print(f"{directory.path} is finished; see {directory.summary}")
            return
    directory.check_free(args.resume)
    from sj_online import run

    run.train(config, directory.path, resume=args.resume)


def evaluate(args: Namespace, _: ArgumentParser) -> None:
    """Print the accuracy on the test data."""
    from sj_online import run

    session = run.open_run(args.source, checkpoint=args.checkpoint, root=args.data, precision=args.precision)
    test = session.splits.test
    print(f"accuracy {session.accuracy(test):.4f} ({len(test)} test images of {session.config.dataset.name})")


def export(args: Namespace, _: ArgumentParser) -> None:
    """Write a packed file."""
    from sj_online import run

    run.export(args.run, args.to, checkpoint=args.checkpoint)
    print(f"{args.to}: {Path(args.to).stat().st_size:,} bytes")


def show(args: Namespace, _: ArgumentParser) -> None:
    """List what is registered, with the paper of each."""
    for group in [args.group] if args.group else registry.GROUPS:
        print(group)
        for name in registry.names(group):
            print(f"  {name:<22}{_describe(group, name)}")


COMMANDS = {"train": train, "eval": evaluate, "export": export, "list": show}


def _parsers(argv: Sequence[str]) -> tuple[ArgumentParser, dict[str, ArgumentParser]]:
    """The parser and those of the commands; the defaults of train are the recipe that ``argv`` names."""
    new = partial(ArgumentParser, exit_on_error=False, allow_abbrev=False)
    source = _source(argv)
    each = {"train": recipe.parser(source), **{name: new() for name in ("eval", "export", "list")}}
    known = ", ".join(recipe.names())
    each["train"].add_argument("--recipe", default="digits", help=f"a YAML file, or one of: {known}")
    each["train"].add_argument("--data", help="folder of the data set; the digits need none")
    each["train"].add_argument("--out", help="directory of the run; runs/RECIPE if not given")
    each["train"].add_argument("--resume", action="store_true", help="go on after the last checkpoint in --out")
    each["eval"].add_argument("source", help="directory of a run, or a packed file")
    each["eval"].add_argument("--data", help="folder of the data set, if not the one trained with")
    each["eval"].add_argument(
        "--precision", choices=get_args(recipe.Precision), help="fabric.precision, if not the one trained with"
    )
    each["export"].add_argument("run", help="directory of a run")
    each["export"].add_argument("--to", required=True, help="the .safetensors file to write")
    for name in ("eval", "export"):
        each[name].add_argument("--checkpoint", choices=["last", "best"], default="last", help="of the run")
    each["list"].add_argument("group", nargs="?", choices=registry.GROUPS, help="one group only")
    parser = new(prog="sj-online", description="Train spiking networks online, deploy them packed.")
    subcommands = parser.add_subcommands()
    for name, command in COMMANDS.items():
        subcommands.add_subcommand(name, each[name], help=str(command.__doc__))
    return parser, each


def _source(argv: Sequence[str]) -> Path:
    """The file that gives the options their defaults: the recipe, or the configuration of the run to resume."""
    scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    scan.add_argument("--recipe")
    scan.add_argument("--out", default="runs/digits")
    scan.add_argument("--resume", action="store_true")
    args, _ = scan.parse_known_args(argv)
    config = RunDirectory(args.out).config
    source = config if args.recipe is None and args.resume and config.exists() else recipe.path(args.recipe or "digits")
    recipe.load(source)
    return source


def _same(config: Recipe, directory: RunDirectory) -> None:
    """Raise if a run was begun with another recipe; where it runs and where its data lie may change."""
    begun = directory.recipe()
    begun = replace(begun, fabric=config.fabric, dataset=replace(begun.dataset, root=config.dataset.root))
    if begun != config:
        asked = config.to_yaml().splitlines()
        changed = ", ".join(line.strip() for line in begun.to_yaml().splitlines() if line not in asked)
        raise ValueError(
            f"{directory.path} was begun with another recipe ({changed}): resume with that one, or give another --out"
        )


def _describe(group: str, name: str) -> str:
    """The paper; of a model also its size, built without memory."""
    try:
        entry = registry.get(group, name)
        return getattr(entry, "paper", "-") + (_size(entry) if group == "models" else "")
    except Exception as error:  # a third party's package fails in its own way, the list goes on
        return f"cannot be imported: {error}"


def _size(model: Callable[[], Any]) -> str:
    import torch

    from sj_online.analysis import network_cost

    with torch.device("meta"):
        c = network_cost(model())
    return f"; {c.parameters:,} parameters, weights packed in {c.packed_bytes / 1e6:.2f} MB"
