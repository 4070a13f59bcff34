"""What ``sj-online eval`` prints."""

import argparse
from collections.abc import Iterator

from sj_online.app import outcome


def lines(args: argparse.Namespace) -> Iterator[str]:
    """The accuracy on the test data, after each step where ``--steps`` asks for it, or live with ``--stream``.

    Raises:
        ValueError: options that do not go together, and what cannot be read.
    """
    if args.convert and args.steps is None:
        raise ValueError("--convert needs --steps: the ANN has no time steps")
    if args.stream and args.steps is not None:
        raise ValueError("--stream and --steps are two ways to run the test data: give one")
    parts = outcome.open_for_evaluation(
        args.source,
        checkpoint=args.checkpoint,
        root=args.data,
        precision=args.precision,
        convert=args.convert,
        runtime=args.runtime,
    )
    data = f"{len(parts.data.test)} test images of {parts.recipe.dataset.name}"
    if args.steps is not None:
        found = outcome.accuracy_by_step(parts, args.steps)
        for t, value in enumerate(found, start=1):
            yield f"after {t:>{len(str(args.steps))}} steps  {value:.4f}"
        best = f"best {max(found):.4f} after {found.index(max(found)) + 1}"
        yield f"accuracy {found[-1]:.4f} after {args.steps} steps, {best} ({data})"
    elif args.stream:
        live = outcome.stream(parts)
        took = f"median {live.milliseconds:.2f} ms a step"
        yield f"accuracy {live.accuracy:.4f} ({data}, live: one at a time, step by step, {took})"
    else:
        yield f"accuracy {outcome.test_accuracy(parts):.4f} ({data})"
