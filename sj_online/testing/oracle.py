"""What the gradients of rules are compared with, and assertions of what must not be zero or equal."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from sj_online.trainer import Rule

Gradient = dict[str, Tensor]


def bptt_gradient(
    net: nn.Module,
    x: Tensor,
    y: Any,
    *,
    loss_fn: Callable[[Any, Any], Tensor] = F.cross_entropy,
    num_steps: int | None = None,
    step_scale: str = "mean",
) -> Gradient:
    """The gradient of backpropagation through time, by plain autograd over a plain loop.

    The network is reset before and after; ``.grad`` stays as it is.

    Args:
        net: a SpikingJelly network that gives a tensor, in step mode 's' or 'm'.
        x: ``[T, N, ...]``, or with ``num_steps`` one static input ``[N, ...]``.
        y: what ``loss_fn`` takes at every step.
        loss_fn: ``loss_fn(output [N, classes], y)``.
        num_steps: T of a static input.
        step_scale: ``'mean'`` of the steps' losses, or their ``'sum'``.

    Returns:
        By the name of each parameter that learns its gradient; zeros where nothing reaches it.

    Example:
        >>> fc = nn.Linear(2, 1, bias=False)
        >>> bptt_gradient(fc, torch.ones(3, 1, 2), torch.zeros(1, 1), loss_fn=lambda o, y: (o - y).sum())
        {'weight': tensor([[1., 1.]])}
    """
    frames = x if num_steps is None else x.expand(num_steps, *x.shape)
    learning = {name: p for name, p in net.named_parameters() if p.requires_grad}
    multi_step = any(getattr(module, "step_mode", "s") == "m" for module in net.modules())
    functional.reset_net(net)
    outputs = net(frames) if multi_step else [net(x_t) for x_t in frames]
    losses = torch.stack([loss_fn(output, y) for output in outputs])
    loss = losses.mean() if step_scale == "mean" else losses.sum()
    found = torch.autograd.grad(loss, list(learning.values()), materialize_grads=True)
    functional.reset_net(net)
    return dict(zip(learning, found, strict=True))


def rule_gradient(rule: Rule, x: Tensor, y: Any, mask: Tensor | None = None) -> Gradient:
    """The gradient that a rule leaves over a whole sequence, without an update; ``.grad`` is zeroed before and after.

    Args:
        rule: of a network.
        x: as of :meth:`~sj_online.trainer.Rule.train_step`, like the others.
        y: see there.
        mask: see there.

    Returns:
        As :func:`bptt_gradient`.

    Example:
        >>> from sj_online.trainer import SLTT
        >>> fc = nn.Linear(2, 1, bias=False)
        >>> rule = SLTT(fc, torch.optim.SGD(fc.parameters(), lr=0.1), loss_fn=lambda o, y: (o - y).sum())
        >>> rule_gradient(rule, torch.ones(3, 1, 2), torch.zeros(1, 1))
        {'weight': tensor([[1., 1.]])}
    """
    rule.net.zero_grad()
    for _ in rule.gradients(x, y, mask):
        pass
    learning = {name: p for name, p in rule.net.named_parameters() if p.requires_grad}
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in learning.items()}
    rule.net.zero_grad()
    return found


def assert_live(values: Tensor | Mapping[str, Tensor] | Iterable[Tensor], above: float = 0.0) -> None:
    """Assert that every tensor is finite and has an element of which the absolute value is above ``above``.

    For gradients that a test is about: where they are zero, the test tests nothing.

    Example:
        >>> assert_live({"weight": torch.tensor([0.0, 2.0]), "bias": torch.zeros(2)})
        Traceback (most recent call last):
            ...
        AssertionError: 'bias' is dead: no absolute value of it is above 0
    """
    for name, value in _named(values):
        assert value.isfinite().all(), f"{name!r} is not finite"
        assert value.numel() and value.abs().max() > above, (
            f"{name!r} is dead: no absolute value of it is above {above:g}"
        )


def assert_differ(
    a: Tensor | Mapping[str, Tensor] | Iterable[Tensor],
    b: Tensor | Mapping[str, Tensor] | Iterable[Tensor],
    by: float = 1e-4,
) -> None:
    """Assert that every tensor differs from its partner in an element, by more than ``by``: a negative control.

    Example:
        >>> assert_differ([torch.zeros(2), torch.ones(2)], [torch.ones(2), torch.ones(2)])
        Traceback (most recent call last):
            ...
        AssertionError: the two of '1' do not differ by more than 0.0001
    """
    ours, theirs = dict(_named(a)), dict(_named(b))
    assert ours and ours.keys() == theirs.keys(), f"{list(ours)} cannot be compared with {list(theirs)}"
    for name, value in ours.items():
        assert value.shape == theirs[name].shape, f"{name!r}: {tuple(value.shape)} and {tuple(theirs[name].shape)}"
        distance = (value - theirs[name]).abs().max()
        assert distance > by, f"the two of {name!r} do not differ by more than {by:g}"


def _named(values: Tensor | Mapping[str, Tensor] | Iterable[Tensor]) -> list[tuple[str, Tensor]]:
    if isinstance(values, Tensor):
        return [("tensor", values)]
    if isinstance(values, Mapping):
        return list(values.items())
    return [(str(i), value) for i, value in enumerate(values)]
