"""An input over time: a real sequence, or a static input that is fed at every step."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sj_online.loss import Targets
from sj_online.tree import at, tensors


class Frames:
    """The input of T steps, with its targets.

    Args:
        x: ``[T, N, ...]``, or with ``num_steps`` one static input ``[N, ...]``, which is never repeated in memory.
        y: labels ``[N]``, soft targets ``[N, classes]``, or whatever the loss takes; with ``per_step_targets``
            ``[T, N, ...]``; None where there are none.
        num_steps: T of a static input.
        mask: ``[T, N]``: which steps of which samples count; None: all.
        per_step_targets: y has the time axis of x.
        start: the number of the first step.

    Raises:
        ValueError: x, y and mask do not fit each other, or are no tensors.

    Example:
        >>> x = Frames(torch.zeros(5, 2, 3), torch.tensor([0, 1]))
        >>> x.T, x.N, x[4].shape, x.window(range(1, 4)).shape
        (5, 2, torch.Size([2, 3]), torch.Size([3, 2, 3]))
        >>> static = torch.zeros(2, 3)
        >>> Frames(static, num_steps=5).window(range(5)).data_ptr() == static.data_ptr()
        True
    """

    def __init__(
        self,
        x: Tensor,
        y: Any = None,
        num_steps: int | None = None,
        *,
        mask: Tensor | None = None,
        per_step_targets: bool = False,
        start: int = 0,
    ) -> None:
        _is_tensor("x", x)
        shape = tuple(x.shape)
        if x.dim() < 2 and num_steps is None:
            raise ValueError(f"x of shape {shape} has no time axis: give [T, N, ...], or num_steps=T for [N, ...]")
        if x.dim() < 1:
            raise ValueError(f"x of shape {shape} has no batch axis: give [N, ...]")
        layout = "[T, N, ...]" if num_steps is None else "[N, ...]"
        T, N = shape[:2] if num_steps is None else (num_steps, shape[0])
        if T < 1 or N < 1:
            raise ValueError(f"x of shape {shape}, read as {layout}, has T={T} steps of N={N} samples; each at least 1")
        self.x = x
        self.static = num_steps is not None
        self.T, self.N = T, N
        self.start = start
        self.y, self.per_step_targets = y, per_step_targets
        self.mask = mask
        self._check_targets(layout)
        if mask is not None:
            self.mask = mask.bool().cpu()  # which rows count decides about shapes: asked for once, not at each step

    def _check_targets(self, layout: str) -> None:
        y, mask, N = self.y, self.mask, self.N
        what = f"x of shape {tuple(self.x.shape)}, read as {layout}"
        if mask is not None:
            _is_tensor("mask", mask)
            if tuple(mask.shape) != (self.T, N):
                raise ValueError(f"mask of shape {tuple(mask.shape)} is not [T, N] = [{self.T}, {N}]")
        if self.per_step_targets and next(tensors(y), None) is None:
            raise ValueError(f"per_step_targets, but y is a {type(y).__name__} without a tensor: give [T, N, ...]")
        if type(y) is list or isinstance(y, int | float | str | np.ndarray | np.generic):
            _is_tensor("y", y)
        if self.per_step_targets:
            for each in tensors(y):
                if tuple(each.shape[:2]) != (self.T, N):
                    raise ValueError(
                        f"{what}, has T={self.T}, N={N}, but per_step_targets y has the shape {tuple(each.shape)}"
                    )
        elif isinstance(y, Tensor) and (y.dim() == 0 or len(y) != N):
            targets = len(y) if y.dim() else 0
            hint = "; is it [N, ...]? give num_steps=T for a static input" if targets == len(self.x) else ""
            hint += "; is it [N, T, ...]? give x.transpose(0, 1)" if hint and self.x.dim() > 2 else ""
            raise ValueError(f"{what}, has N={N}, but y has {targets} targets{hint}")

    def __getitem__(self, t: int) -> Tensor:
        """The input of step t, ``[N, ...]``."""
        return self.x if self.static else self.x[t - self.start]

    def window(self, steps: range) -> Tensor:
        """The input of a run of steps, ``[k, N, ...]``; a view."""
        if self.static:
            return self.x.expand(len(steps), *self.x.shape)
        return self.x[steps.start - self.start : steps.stop - self.start]

    def targets(self, steps: range) -> Targets:
        """The targets of a run of steps, with the mask."""
        first = steps.start - self.start
        mask = None if self.mask is None else self.mask[first : first + len(steps)]
        if not self.per_step_targets:
            return Targets([self.y] * len(steps), mask)
        return Targets([self._target(first + i) for i in range(len(steps))], mask, per_step=True)

    def _target(self, i: int) -> Any:
        return self.y[i] if isinstance(self.y, list) else at(self.y, i)

    def counts(self) -> list[bool]:
        """Whether each step has a target that counts."""
        if self.mask is not None:
            return self.mask.any(1).tolist()
        return [y is not None for y in self.y] if isinstance(self.y, list) else [True] * self.T

    @staticmethod
    def of_stream(steps: Iterable[tuple[Tensor, Any]], k: int) -> Iterator["Frames"]:
        """Windows of k steps of an endless stream of ``x_t [N, ...]`` and ``y_t``, the last one shorter."""
        source, start = iter(steps), 0
        while window := list(islice(source, k)):
            for x_t, _ in window:
                _is_tensor("x_t", x_t)
            x = window[0][0][None] if len(window) == 1 else torch.stack([x_t for x_t, _ in window])
            frames = Frames(x, start=start)
            frames.per_step_targets, frames.y = True, [y_t for _, y_t in window]
            yield frames
            start += len(window)

    def first(self, T: int) -> "Frames":
        """At most the first T steps, without targets."""
        if self.static:
            return Frames(self.x, num_steps=min(T, self.T))
        return Frames(self.x[:T])

    def part(self, T: int, N: int) -> "Frames":
        """The first T steps of N samples, without targets; samples are repeated where there are fewer."""
        rows = torch.arange(N, device=self.x.device) % self.N
        if self.static:
            return Frames(self.x[rows], num_steps=T)
        return Frames(self.x[: min(T, self.T), rows])


def _is_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} is a {type(value).__name__}, not a tensor: give torch.as_tensor({name})")
