"""Checks of a neuron's sequence form, gradients, dtypes and layouts, and of the compilers that take it."""

from typing import Any

import torch
from spikingjelly.activation_based import base
from spikingjelly.activation_based.memopt import checkpoint_module
from spikingjelly.activation_based.neuron import BaseNode
from torch import Tensor, nn

from .subject import Subject, T, both_modes, gradients, run, same, state


def single_step_equals_multi_step(subject: Subject) -> None:
    """Outputs, states and gradients are those of the loop, also if the sequence comes in two parts."""
    x, single, multi = subject.x(), subject.node("s"), subject.node("m")
    s = run(single, x, "s")
    same(run(multi, x, "m"), s, "outputs")
    same(state(multi), state(single), "states")
    multi.reset()
    s_m = torch.cat([multi(x[:1]), multi(x[1:])])
    same(s_m, s, "outputs in two parts")
    close = {"rtol": 1e-4, "atol": 1e-5}
    same(gradients(multi, s_m, x), gradients(single, s, x), "gradients in two parts", **close)


@both_modes
def precision(subject: Subject, step_mode: str) -> None:
    """Float64 stays float64; under bfloat16 autocast states stay float32 and spikes are those of float32, rounded."""
    x = subject.x()
    for dtype, state_dtype in ((torch.float32,) * 2, (torch.float64,) * 2, (torch.bfloat16, torch.float32)):
        node = subject.node(step_mode)
        if dtype == torch.float64:
            node.double()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = run(node, x.to(dtype), step_mode)
        assert out.dtype == dtype, f"{out.dtype} spikes for {dtype} input"
        got = {m.dtype for m in base.extract_memories(node) if isinstance(m, Tensor)}
        assert got <= {state_dtype}, f"{got} states for {dtype} input"
        assert all(g.isfinite().all() for g in gradients(node, out, x)), f"gradients for {dtype} input"
        if dtype == torch.bfloat16:
            same(out, run(subject.node(step_mode), x.to(dtype).float(), step_mode).to(dtype), "spikes")


def final_state_gradient(subject: Subject) -> None:
    """The final states carry their gradient back, equally in both modes."""
    x, grads = subject.x(), []
    for step_mode in "sm":
        node = subject.node(step_mode)
        run(node, x, step_mode)
        finals = [m for m in base.extract_memories(node) if isinstance(m, Tensor)]
        loss = sum((m.square().sum() for m in finals), x.sum() * 0)
        grads.append(torch.autograd.grad(loss, [x, *node.parameters()], materialize_grads=True))
    same(list(grads[1]), list(grads[0]), "gradients", rtol=1e-4, atol=1e-5)


@both_modes
def layouts(subject: Subject, step_mode: str) -> None:
    """Strided and channels-last inputs give the outputs and gradients of contiguous ones."""
    x = subject.x()
    strided = torch.stack([x, x], dim=-1)[..., 0]
    inputs = {"contiguous": x, "strided": strided}
    if len(subject.shape) == 4:
        inputs["channels-last"] = x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (T, -1))
    results = {}
    for name, x_in in inputs.items():
        node = subject.node(step_mode)
        out = run(node, x_in, step_mode)
        results[name] = [out, *gradients(node, out, x)]
        same(results[name], results["contiguous"], name, rtol=1e-4, atol=1e-5)


@both_modes
def memopt(subject: Subject, step_mode: str) -> None:
    """The host's checkpointing gives the same outputs and gradients."""
    x, plain, wrapped = subject.x(), subject.node(step_mode), checkpoint_module(subject.node(step_mode))
    expected, out = run(plain, x, step_mode), run(wrapped, x, step_mode)
    same(out, expected, "outputs")
    same(gradients(wrapped, out, x), gradients(plain, expected, x), "gradients", rtol=1e-4, atol=1e-5)


@both_modes
def compiled(subject: Subject, step_mode: str) -> None:
    """``torch.compile(fullgraph=True)`` gives the same outputs and gradients; in 'm' for any T."""
    torch.compiler.reset()
    node = subject.node(step_mode)
    fast: Any = torch.compile(node, fullgraph=True, backend="aot_eager")
    for steps in (T,) if step_mode == "s" else (T, T - 1):
        x, results = subject.x(steps), []
        for module in (node, fast):
            node.reset()
            out = run(module, x, step_mode)
            results.append([out, *gradients(node, out, x)])
        same(results[1], results[0], f"T={steps}", rtol=1e-4, atol=1e-5)


def exported(subject: Subject) -> None:
    """``torch.export`` takes the neuron in 'm', and its functional form in both modes."""
    x = subject.x().detach()
    node = subject.node("m").eval()
    program = torch.export.export(Stateless(node), (x,))
    same(program.module()(x), node(x), "multi-step", rtol=1e-5, atol=1e-5)
    for step_mode in "sm":
        node = subject.node(step_mode).eval()
        functional, x_in = Functional(node), x if step_mode == "m" else x[0]
        states = tuple(base.extract_memories(node))
        states = node.materialize_states((x_in,), states, step_mode)
        program = torch.export.export(functional, (x_in, states))
        same(
            program.module()(x_in, states), functional(x_in, states), f"functional {step_mode!r}", rtol=1e-5, atol=1e-5
        )


class Stateless(nn.Module):
    """A neuron that is reset before it runs, as an exported program is."""

    def __init__(self, node: BaseNode) -> None:
        super().__init__()
        self.node = node

    def forward(self, x_seq: Tensor) -> Tensor:
        """Outputs [T, N, ...] of x_seq [T, N, ...]."""
        self.node.reset()
        out = self.node(x_seq)
        self.node.reset()
        return out


class Functional(nn.Module):
    """The functional form of a neuron as a module."""

    def __init__(self, node: BaseNode) -> None:
        super().__init__()
        self.node = node

    def forward(self, x: Tensor, states: tuple[Any, ...]) -> tuple[Any, Any]:
        """Outputs and states for x and states."""
        return self.node.functional_forward((x,), states)


def gradcheck(subject: Subject) -> None:
    """Finite differences in float64, x and every parameter; only where the neuron is declared smooth."""
    for step_mode in "sm":
        node = subject.node(step_mode).double()

        def function(x: Tensor, *parameters: Tensor, node: BaseNode = node, step_mode: str = step_mode) -> Tensor:
            node.reset()
            names = [name for name, _ in node.named_parameters()]
            outputs = []
            for x_in in x if step_mode == "s" else [x]:
                outputs.append(torch.func.functional_call(node, dict(zip(names, parameters, strict=True)), (x_in,)))
            return torch.cat([*outputs, node.v if step_mode == "s" else node.v[None]])

        x = torch.randn(T, *subject.shape, dtype=torch.float64)[:, :1, :, :2, :2].requires_grad_()
        assert torch.autograd.gradcheck(function, (x, *(p.detach().requires_grad_() for p in node.parameters())))
