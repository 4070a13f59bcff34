"""Checks of a neuron's state: explicit, pure, restored, reset, detached, copied, recorded."""

import copy
import io
import pickle

import torch
from spikingjelly.activation_based import base
from torch import Tensor

from .subject import Subject, both_modes, gradients, run, same, state


@both_modes
def purity(subject: Subject, step_mode: str) -> None:
    """The functional forward changes neither memories, nor states, nor its input (running statistics excepted)."""
    node, x = subject.node(step_mode), subject.x()
    node(x[0] if step_mode == "s" else x[:1])
    node.detach()
    x_in = (x[0] if step_mode == "s" else x[:2]).detach()
    states = tuple(base.extract_memories(node))
    before = [x_in.clone(), *state(node), *(p.clone() for p in node.parameters())]
    node.functional_forward((x_in,), states)
    same([x_in, *states, *node.parameters()], before, "arguments and parameters")
    assert all(a is b for a, b in zip(base.extract_memories(node), states, strict=True)), "memories were replaced"


@both_modes
def functional_form(subject: Subject, step_mode: str) -> None:
    """``to_functional_forward`` equals the forward, step after step."""
    node, x = subject.node(step_mode), subject.x()
    function, states = base.to_functional_forward(node), tuple(base.extract_memories(node))
    outputs = []
    for x_t in x if step_mode == "s" else [x[:1], x[1:]]:
        (out,), states = function((x_t,), states)
        outputs.append(out)
    outputs_seq = torch.stack(outputs) if step_mode == "s" else torch.cat(outputs)
    node.reset()
    same(outputs_seq, run(node, x, step_mode), "outputs", rtol=1e-6, atol=1e-6)
    same(list(states), list(base.extract_memories(node)), "states", rtol=1e-6, atol=1e-6)


@both_modes
def state_restoration(subject: Subject, step_mode: str) -> None:
    """A run goes on as before from memories that were taken out and put back."""
    node, x = subject.node(step_mode).eval(), subject.x()
    run(node, x[:2], step_mode)
    saved = state(node)
    expected = run(node, x[2:], step_mode)
    base.load_memories(node, saved)
    same(run(node, x[2:], step_mode), expected, "outputs")


@both_modes
def reset(subject: Subject, step_mode: str) -> None:
    """Once reset, memories have their reset values, and a run repeats itself."""
    node, x = subject.node(step_mode).eval(), subject.x()
    fresh = list(base.extract_memories(node))
    first = run(node, x, step_mode)
    node.reset()
    same(list(base.extract_memories(node)), fresh, "memories")
    same(run(node, x, step_mode), first, "outputs")


@both_modes
def detach(subject: Subject, step_mode: str) -> None:
    """Once detached, no memory has a graph, values are kept and nothing flows to earlier steps."""
    node, x = subject.node(step_mode), subject.x()
    run(node, x[:2], step_mode)
    before = state(node)
    node.detach()
    assert not any(isinstance(m, Tensor) and m.requires_grad for m in base.extract_memories(node)), "still in a graph"
    same(list(base.extract_memories(node)), before, "memories")
    grad = torch.autograd.grad(run(node, x[2:], step_mode).sum(), x, materialize_grads=True)[0]
    assert not grad[:2].any() and grad[2:].any(), "gradient of the wrong steps"


@both_modes
def batch_size(subject: Subject, step_mode: str) -> None:
    """A new batch size starts afresh, without a reset."""
    node, x = subject.node(step_mode).eval(), subject.x()
    run(node, torch.cat([x, x], dim=1), step_mode)
    out = run(node, x, step_mode)
    node.reset()
    same(out, run(node, x, step_mode), "outputs")


@both_modes
def copies(subject: Subject, step_mode: str) -> None:
    """Copies: deepcopy (once detached), pickle and state_dict give a neuron that runs on equally."""
    node, x = subject.node(step_mode).eval(), subject.x()
    run(node, x[:2], step_mode)
    node.detach()
    others = {"deepcopy": copy.deepcopy(node), "pickle": pickle.loads(pickle.dumps(node))}
    expected = run(node, x[2:], step_mode)
    for how, other in others.items():
        same(run(other, x[2:], step_mode), expected, how)
    file = io.BytesIO()
    torch.save(node.state_dict(), file)
    file.seek(0)
    other = subject.factory(step_mode=step_mode).eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    node.reset()
    same(run(other, x, step_mode), run(node, x, step_mode), "state_dict")


def potentials(subject: Subject) -> None:
    """``store_v_seq`` records v after each step, with the same values and gradient in both modes."""
    x, nodes = subject.x(), [subject.node(m, store_v_seq=True) for m in "sm"]
    for node, step_mode in zip(nodes, "sm", strict=True):
        run(node, x, step_mode)
        assert node.v_seq is not None and node.v_seq.shape == x.shape, f"v_seq is not [T, N, ...] in {step_mode!r}"
        same(node.v_seq[-1], node.v, f"last of v_seq in {step_mode!r}")
    same(nodes[1].v_seq, nodes[0].v_seq, "v_seq")
    if nodes[0].v_seq.requires_grad:
        single, multi = (gradients(node, node.v_seq, x) for node in nodes)
        same(multi, single, "gradients of v_seq", rtol=1e-4, atol=1e-5)
