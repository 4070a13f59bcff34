"""The sequence operators under torch's own checks, and inductor once."""

import pytest
import torch

from sj_online.neuron import EMPFNode
from sj_online.neuron.empf.op import empf
from sj_online.neuron.lmh.op import lmh

T = 3


def tensor(*shape, dtype=torch.float32):
    return torch.rand(*shape, dtype=dtype).requires_grad_()


@pytest.mark.parametrize(
    ("dtype", "temporal_grad", "steps"), [(torch.float32, True, T), (torch.bfloat16, False, 1)], ids=str
)
def test_opcheck(dtype, temporal_grad, steps):
    torch.manual_seed(0)
    x = tensor(T, 4, 5, dtype=dtype)
    arguments = (x, tensor(4, 5), tensor(steps), tensor(steps), 4, "v", temporal_grad, "torch")
    assert set(torch.library.opcheck(empf, arguments).values()) == {"SUCCESS"}
    arguments = (x, tensor(4, 5), tensor(4, 5), tensor(4, steps), 1.0, 1.0, True, temporal_grad, "torch")
    assert set(torch.library.opcheck(lmh, arguments).values()) == {"SUCCESS"}


def test_opcheck_without_a_graph():
    with torch.no_grad():
        x, v = torch.rand(T, 4, 5), torch.rand(4, 5)
        for keep in ("", "fired"):
            torch.library.opcheck(empf, (x, v, torch.rand(1), torch.rand(1), 0, keep, True, "torch"))
        torch.library.opcheck(lmh, (x, v, v.clone(), torch.rand(4, 1), 1.0, 1.0, False, True, "torch"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inductor():
    torch.compiler.reset()
    node, x, results = EMPFNode(T, step_mode="m"), tensor(T, 4, 5), []
    for run in (node, torch.compile(node, fullgraph=True)):
        node.reset()
        s = run(x)
        results.append([s, *torch.autograd.grad(s.square().sum(), [x, *node.parameters()])])
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("keep_v", [True, False])
def test_no_more_is_saved_than_the_backward_needs(keep_v):
    """With a learnable leak v[t], else one bit for each neuron and step."""
    saved = []
    x = tensor(8, 1000)
    node = EMPFNode(step_mode="m", learnable=keep_v)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        node(x)
    size = sum(t.numel() * t.element_size() for t in saved if t.numel() >= 1000)
    assert size == (4 * 8 * 1000 + 4 * 1000 if keep_v else 1000 + 4 * 1000)
