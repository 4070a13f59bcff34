"""What the neurons of this package share: backend, full-precision state, per-step parameters, the cut in time."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from spikingjelly.activation_based import surrogate
from spikingjelly.activation_based.neuron import BaseNode
from torch import Tensor, nn

BACKENDS = ("torch", "cupy", "auto")


class OnlineNode(BaseNode):
    """A SpikingJelly neuron that can drop its gradient through time.

    The state is kept in float32 (float64 for float64 input) whatever the dtype of the input, so half precision costs
    no accuracy in the membrane; spikes are returned in the dtype of the input.

    Args:
        num_steps: ``None``: one value per parameter, for any number of steps. ``T``: one value per step; asked to run
            past T without a reset the neuron raises ValueError.
        memories: name and reset value of each recurrent value, the membrane potential ``v`` first.
        v_threshold: the threshold in the host's sense, a number.
        surrogate_function: the host's surrogate, or None where the neuron is its own derivative.
        temporal_grad: True: the exact gradient (STBP). False: the state enters each step detached (online gradient).
        step_mode: ``'s'`` takes x of shape [N, ...], ``'m'`` of shape [T, N, ...].
        backend: ``'torch'``, ``'cupy'`` (an error where CuPy cannot run) or ``'auto'`` (CuPy where it can run).
        store_v_seq: keep the membrane potentials as ``v_seq`` [T, N, ...].
        detach_reset: whether the gradient leaves the reset out, in the host's sense.

    Raises:
        ValueError: num_steps or backend out of range.
    """

    paper: ClassVar[str]
    """Short citation, shown by ``sj-online list``."""

    parameters_per_step: ClassVar[int] = 0
    """Numbers whose gradients the kernel sums, for each step."""

    def __init__(
        self,
        num_steps: int | None,
        *,
        memories: Mapping[str, float],
        v_threshold: float,
        surrogate_function: surrogate.SurrogateFunctionBase | None,
        temporal_grad: bool,
        step_mode: str,
        backend: str,
        store_v_seq: bool,
        detach_reset: bool = True,
    ) -> None:
        if num_steps is not None and (type(num_steps) is not int or num_steps < 1):
            raise ValueError(f"num_steps={num_steps!r} is not None or an integer of at least 1")
        super().__init__(
            v_threshold=float(v_threshold),
            v_reset=None,
            surrogate_function=surrogate_function,
            detach_reset=detach_reset,
            step_mode=step_mode,
            store_v_seq=store_v_seq,
        )
        for name, value in memories.items():
            if name not in self._memories:
                self.register_memory(name, value)
            self._memories[name] = value
            self.set_reset_value(name, value)
        if num_steps is not None:
            self.register_memory("t", 0)
        self.num_steps = num_steps
        self.temporal_grad = temporal_grad
        self.backend = backend

    @property
    def supported_backends(self) -> tuple[str, ...]:
        """What ``backend`` may be."""
        return BACKENDS

    @property
    def backend(self) -> str:
        """Who computes: ``'torch'``, ``'cupy'`` or ``'auto'``."""
        return self._backend

    @backend.setter
    def backend(self, value: str) -> None:
        if value not in self.supported_backends:
            raise ValueError(
                f"backend={value!r} is not one of {', '.join(map(repr, self.supported_backends))}"
                f" that this {type(self).__name__} supports"
            )
        self._backend = value

    def runs_on(self, x: Tensor) -> str:
        """``'torch'`` or ``'cupy'``: who computes for the input x.

        Raises:
            RuntimeError: the backend is ``'cupy'`` and cannot run; the message lists every reason.
        """
        if self.backend == "torch":
            return "torch"
        from ..cuda import loader

        learns = torch.is_grad_enabled()
        reasons = loader.reasons(x, slots=self.parameters_per_step * (self.num_steps or 1) if learns else 0)
        if "cupy" not in self.supported_backends:
            reasons = ["these options of the neuron have no kernel", *reasons]
        if reasons and self.backend == "cupy":
            raise RuntimeError(f"backend='cupy' cannot run {type(self).__name__}: {'; '.join(reasons)}")
        return "torch" if reasons else "cupy"

    def leak(self, t: int) -> Tensor | float | None:
        """The share of v that is left at step t (from 0), for a presynaptic trace; None: there is no single leak."""
        return None

    def adopt_leak(self, leak: float) -> bool:
        """Start from the leak of another neuron; False and no change if it is outside the open range of this one's."""
        return False

    def _add_raw(self, name: str, value: float, learnable: bool) -> None:
        """Register ``raw_<name>`` [1] or [num_steps], a parameter or, where not learnable, a buffer of that name."""
        raw = torch.full((self.num_steps or 1,), value)
        if learnable:
            self.register_parameter(f"raw_{name}", nn.Parameter(raw))
        else:
            self.register_buffer(f"raw_{name}", raw)

    def _at(self, value: Tensor, t: int, steps: int, dtype: torch.dtype) -> Tensor:
        """The values [1] or [steps] of a parameter for the steps from t on, in the dtype of the state.

        Of a raw parameter, before its sigmoid: what autograd then saves for a step does not grow with num_steps.
        """
        return (value if self.num_steps is None else value[t : t + steps]).to(dtype)

    def materialize_states(self, inputs: tuple[Any, ...], states: tuple[Any, ...], step_mode: str) -> tuple[Any, ...]:
        """Fit the states to the input: shape, device and full precision; a new shape restarts them all."""
        x, steps = (inputs[0][0], inputs[0].shape[0]) if step_mode == "m" else (inputs[0], 1)
        fitted = dict(zip(self._memories, states, strict=True))
        t = fitted.pop("t", 0)
        if any(isinstance(v, Tensor) and v.shape != x.shape for v in fitted.values()):
            fitted, t = {name: self._memories_rv[name] for name in fitted}, 0
        if self.num_steps is not None and t + steps > self.num_steps:
            raise ValueError(
                f"num_steps={self.num_steps}: {type(self).__name__} is asked to run step {t + steps} since its last"
                f" reset; allowed are at most {self.num_steps}"
            )
        dtype = _state_dtype(x)
        values = (
            v.to(dtype=dtype, device=x.device) if isinstance(v, Tensor) else torch.full_like(x, v, dtype=dtype)
            for v in fitted.values()
        )
        return self._join(tuple(values), t)

    def step(self, x: Tensor, states: tuple[Tensor, ...], t: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The equation of a neuron, in autograd, for step t (0 if all steps share their parameters).

        Args:
            x: input current [N, ...].
            states: every recurrent value [N, ...], v first, in full precision; detached if not temporal_grad.
            t: time index.

        Returns:
            The spikes and the new states [N, ...].
        """
        raise NotImplementedError

    def sequence(
        self, x_seq: Tensor, states: tuple[Tensor, ...], t: int
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
        """T steps from t on; here one after the other, see the subclasses for a true sequence form.

        Returns:
            Spikes [T, N, ...], states behind the last step, and with ``store_v_seq`` the potentials [T, N, ...].
        """
        s_seq, v_seq = [], []
        for k, x in enumerate(x_seq):
            s, states = self._step(x, states, t + k if self.num_steps else 0)
            s_seq.append(s)
            v_seq.append(states[0])
        return torch.stack(s_seq), states, torch.stack(v_seq) if self.store_v_seq else None

    def _step(self, x: Tensor, states: tuple[Tensor, ...], t: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        if not self.temporal_grad:
            states = tuple(v.detach() for v in states)
        s, states = self.step(x, states, t)
        return s.to(x.dtype), states

    def _sequence(self, x_seq: Tensor, states: tuple[Any, ...]) -> tuple[Tensor, tuple[Any, ...], Tensor | None]:
        """:meth:`sequence` with the time index among the states."""
        tensors, t = self._split(states)
        s_seq, tensors, v_seq = self.sequence(x_seq, tensors, t)
        return s_seq, self._join(tensors, t + x_seq.shape[0]), v_seq

    def _split(self, states: tuple[Any, ...]) -> tuple[tuple[Tensor, ...], int]:
        return (states, 0) if self.num_steps is None else (states[:-1], states[-1])

    def _join(self, tensors: tuple[Tensor, ...], t: int) -> tuple[Any, ...]:
        return tensors if self.num_steps is None else (*tensors, t)

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        """See the host's MemoryModule; inputs [N, ...]. On CuPy a step is a sequence of one."""
        x, (tensors, t) = inputs[0], self._split(states)
        if self.runs_on(x) == "cupy":
            s_seq, tensors, _ = self.sequence(x[None], tensors, t)
            return (s_seq[0],), self._join(tensors, t + 1)
        s, tensors = self._step(x, tensors, t)
        return (s,), self._join(tensors, t + 1)

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        """See the host's MemoryModule; inputs [T, N, ...]."""
        s_seq, states, _ = self._sequence(inputs[0], states)
        return (s_seq,), states

    def multi_step_forward(self, x_seq: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run x_seq [T, N, ...] and keep the states; with ``store_v_seq`` also their potentials as ``v_seq``."""
        states = self.materialize_states((x_seq,), tuple(self._memories.values()), "m")
        s_seq, states, v_seq = self._sequence(x_seq, states)
        for name, value in zip(self._memories, states, strict=True):
            self._memories[name] = value
        self.v_seq = v_seq if self.store_v_seq else None
        return s_seq

    def extra_repr(self) -> str:
        """The arguments that differ between neurons, parameters in natural units."""
        return (
            f"num_steps={self.num_steps}, temporal_grad={self.temporal_grad}, step_mode={self.step_mode!r},"
            f" backend={self.backend!r}"
        )


def _state_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
