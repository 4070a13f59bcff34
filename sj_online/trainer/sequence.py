"""An input over time: a real sequence, or a static input that is fed at every step."""

from torch import Tensor


class Sequence:
    """The input of T steps.

    Args:
        x: ``[T, N, ...]``, or with ``num_steps`` one static input ``[N, ...]``, which is never repeated in memory.
        y: labels ``[N]`` or soft targets ``[N, classes]``; None where there are none.
        num_steps: T of a static input.

    Raises:
        ValueError: x and y do not fit each other.

    Example:
        >>> import torch
        >>> x = Sequence(torch.zeros(5, 2, 3), torch.tensor([0, 1]), None)
        >>> x.T, x[4].shape, x.window(range(1, 4)).shape
        (5, torch.Size([2, 3]), torch.Size([3, 2, 3]))
        >>> static = torch.zeros(2, 3)
        >>> Sequence(static, None, 5).window(range(5)).data_ptr() == static.data_ptr()
        True
    """

    def __init__(self, x: Tensor, y: Tensor | None, num_steps: int | None) -> None:
        shape = tuple(x.shape)
        if x.dim() < 2 and num_steps is None:
            raise ValueError(f"x of shape {shape} has no time axis: give [T, N, ...], or num_steps=T for [N, ...]")
        layout = "[T, N, ...]" if num_steps is None else "[N, ...]"
        T, N = shape[:2] if num_steps is None else (num_steps, shape[0])
        if y is not None and len(y) != N:
            hint = "; is it [N, ...]? give num_steps=T for a static input" if len(y) == shape[0] else ""
            raise ValueError(f"x of shape {shape}, read as {layout}, has N={N}, but y has {len(y)} targets{hint}")
        if T < 1:
            raise ValueError(f"x of shape {shape} has T={T} steps; at least 1 is needed")
        self.x = x
        self.static = num_steps is not None
        self.T = T

    def __getitem__(self, t: int) -> Tensor:
        """The input of step t, ``[N, ...]``."""
        return self.x if self.static else self.x[t]

    def window(self, steps: range) -> Tensor:
        """The input of a run of steps, ``[k, N, ...]``; a view."""
        if self.static:
            return self.x.expand(len(steps), *self.x.shape)
        return self.x[steps.start : steps.stop]
