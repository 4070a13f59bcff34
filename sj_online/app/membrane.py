"""What the neurons have learnt, in the metrics."""

from collections.abc import Iterator

from torch import Tensor, nn

from sj_online.app.loop import Run
from sj_online.neuron.leak import is_neuron, of_neuron


class Membrane:
    """Adds the learnt parameters of each neuron layer in natural units, such as ``lambda_s/features.2``.

    Those of a step have its number behind them, counted from 1: ``decay/features.2/1``. Of larger ones, of each channel
    say, it is the mean.
    """

    def on_epoch(self, run: Run) -> None:
        """Look at every neuron."""
        run.metrics |= dict(learnt(run.parts.net))


def learnt(net: nn.Module) -> Iterator[tuple[str, float]]:
    """Name and value of every learnt parameter of the neurons of a network.

    Example:
        >>> from sj_online.neuron import LMHNode
        >>> dict(learnt(nn.Sequential(nn.Linear(2, 2), LMHNode())))
        {'mu_d/1': 0.0, 'mu_s/1': 0.0, 'lambda_s/1': 1.0, 'lambda_d/1': 1.0}
    """
    for place, node in net.named_modules():
        if is_neuron(node):
            for raw, parameter in node.named_parameters(recurse=False):
                name, value = _natural(node, raw, parameter)
                yield from _numbers(f"{name}/{place}", value.detach().float(), getattr(node, "num_steps", None))


def _natural(node: nn.Module, raw: str, parameter: Tensor) -> tuple[str, Tensor]:
    """``raw_lambda_s`` as lambda_s; the host's learnt leak as such, whose parameter is called w."""
    name = raw.removeprefix("raw_")
    value = getattr(node, name, None)
    if name != raw and isinstance(value, Tensor):
        return name, value
    leak = of_neuron(node, 0) if raw == "w" else None
    return ("leak", leak) if isinstance(leak, Tensor) else (raw, parameter)


def _numbers(name: str, value: Tensor, num_steps: int | None) -> Iterator[tuple[str, float]]:
    if value.numel() > 1 and value.numel() == num_steps:
        yield from ((f"{name}/{t}", number) for t, number in enumerate(value.flatten().tolist(), start=1))
    else:
        yield name, float(value.mean())
