"""The kernels on a device: the emulator's matrix again, and what only a device has."""

import copy
from itertools import product
from types import ModuleType

import pytest
import torch
from spikingjelly.activation_based import functional, layer
from torch import Tensor

from sj_online.cuda import loader
from sj_online.neuron import EMPFNode, HDLIFNode, LMHNode
from sj_online.neuron.empf import kernel as empf_kernel
from sj_online.neuron.empf import reference as empf_reference
from sj_online.neuron.lmh import kernel as lmh_kernel
from sj_online.neuron.lmh import reference as lmh_reference

WHY_NOT = "; ".join(loader.reasons(torch.empty(0, device="cuda" if torch.cuda.is_available() else "cpu")))
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]

NODES = {
    "empf": lambda **options: EMPFNode(4, **options),
    "empf fixed online": lambda **options: EMPFNode(learnable=False, temporal_grad=False, **options),
    "hdlif": lambda **options: HDLIFNode(spike_bits=4, **options),
    "lmh": lambda **options: LMHNode(4, **options),
}
SIZES = [(1, 1), (3, 63), (7, 500), (9, 64), (4, 1_000_000), (5, 99_999)]


def same(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], exact: int, what: object) -> None:
    """The first ``exact`` tensors are equal, the others close: sums over neurons in another order."""
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        scale = max(1.0, float(b.abs().max())) if b.numel() and b.is_floating_point() else 1.0
        assert torch.equal(a, b) if i < exact else torch.allclose(a, b, rtol=1e-4, atol=1e-4 * scale), (what, i)


@pytest.mark.parametrize("dtype", loader.SCALARS)
def test_empf_matrix(dtype: torch.dtype) -> None:
    for (T, N), per_step, bits, keep in product(SIZES, (False, True), (0, 4), ("v", "fired")):
        torch.manual_seed(N)
        decay, threshold = (0.2 + 0.6 * torch.rand(2, T if per_step else 1, device="cuda")).unbind()
        x, v0 = torch.randn(T, N, device="cuda").to(dtype), torch.rand(N, device="cuda")
        arguments = x, v0, decay, threshold, bits, keep
        expected = empf_reference.forward(*arguments)
        same(empf_kernel.forward(*arguments), expected, 3, (T, N, per_step, bits, keep))
        for temporal_grad in (True, False):
            rest = torch.randn_like(v0), torch.randn(T, N, device="cuda"), v0, expected[2], decay, threshold
            got, wanted = (m.backward(x, *rest, temporal_grad) for m in (empf_kernel, empf_reference))
            same(got, wanted, 2, (T, N, per_step, keep, temporal_grad))


@pytest.mark.parametrize("dtype", loader.SCALARS)
def test_lmh_matrix(dtype: torch.dtype) -> None:
    for (T, N), per_step in product(SIZES, (False, True)):
        torch.manual_seed(N)
        P = T if per_step else 1
        factors = torch.cat([torch.rand(2, P) - 0.5, torch.rand(2, P) + 0.5]).cuda()
        x, (v_d0, v_s0) = torch.randn(T, N, device="cuda").to(dtype), 0.3 * torch.randn(2, N, device="cuda")
        expected = lmh_reference.forward(x, v_d0, v_s0, factors, 0.7, True)
        same(lmh_kernel.forward(x, v_d0, v_s0, factors, 0.7, True), expected, 5, (T, N, per_step))
        for temporal_grad in (True, False):
            upstream = x, *torch.randn(2, N, device="cuda"), torch.randn(T, N, device="cuda")
            rest = v_d0, v_s0, *expected[3:], factors, 0.7, 1.0, temporal_grad
            got, wanted = (m.backward(*upstream, *rest) for m in (lmh_kernel, lmh_reference))
            same(got, wanted, 0, (T, N, per_step, temporal_grad))


@pytest.mark.parametrize("kernel", [empf_kernel, lmh_kernel])
def test_repeated_backward_is_bitwise_the_same(kernel: ModuleType) -> None:
    x, v0 = torch.randn(8, 300_000, device="cuda"), torch.zeros(300_000, device="cuda")
    nothing, one = v0.new_empty(0), torch.full((1,), 0.5, device="cuda")
    if kernel is empf_kernel:
        arguments = x, v0, nothing, v0, kernel.forward(x, v0, one, one, 0, "v")[2], one, one, True
    else:
        factors = torch.full((4, 1), 0.5, device="cuda")
        kept = kernel.forward(x, v0, v0, factors, 1.0, True)[3:]
        arguments = x, v0, v0, nothing, v0, v0, *kept, factors, 1.0, 1.0, True
    first = kernel.backward(*arguments)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(kernel.backward(*arguments), first, strict=True))


def step(net: torch.nn.Module, x: Tensor) -> list[Tensor]:
    """One training step without the update: output and every gradient."""
    functional.reset_net(net)
    net.zero_grad()
    x = x.detach().requires_grad_()
    out = net(x)
    out.float().square().sum().backward()
    return [out.detach(), x.grad, *(p.grad for p in net.parameters())]


@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize("amp", [None, torch.float16, torch.bfloat16])
def test_in_a_network_under_amp(name: str, amp: torch.dtype | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    nets = []
    for backend in ("torch", "cupy"):
        torch.manual_seed(0)
        net = torch.nn.Sequential(layer.Conv2d(2, 8, 3), NODES[name](backend=backend), layer.Conv2d(8, 2, 3)).cuda()
        nets.append(functional.set_step_mode(net, "m") or net)
    x = torch.randn(4, 2, 2, 9, 9, device="cuda")
    with torch.autocast("cuda", amp, enabled=amp is not None):
        reference, got = (step(net, x) for net in nets)
    assert torch.equal(got[0], reference[0])
    for a, b in zip(got[1:], reference[1:], strict=True):
        torch.testing.assert_close(a, b, **({"rtol": 1e-2, "atol": 1e-2} if amp else {"rtol": 1e-4, "atol": 1e-4}))
    assert nets[1][1].v.dtype == torch.float32


@pytest.mark.parametrize("name", NODES)
def test_on_a_side_stream(name: str) -> None:
    node = NODES[name](step_mode="m", backend="cupy").cuda()
    stream = torch.cuda.Stream()
    x = torch.randn(4, 1_000_000, device="cuda")
    expected = step(node, 2 * x)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # so that a launch on any other stream reads x before it is doubled
        doubled = x.mul_(2)
        got = step(node, doubled)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("name", NODES)
def test_in_a_cuda_graph(name: str) -> None:
    node = NODES[name](step_mode="m", backend="cupy").cuda()
    x = torch.randn(4, 10_000, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(node, x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(node, x)
    x.copy_(torch.randn_like(x))
    graph.replay()
    expected = step(NODES[name](step_mode="m", backend="cupy").cuda(), x)
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


@pytest.mark.parametrize("name", NODES)
def test_inductor(name: str) -> None:
    node = NODES[name](step_mode="m", backend="cupy").cuda()
    compiled = torch.compile(copy.deepcopy(node), fullgraph=True)
    x = torch.randn(8, 3, 5, 7, device="cuda").contiguous(memory_format=torch.channels_last).unflatten(0, (4, 2))
    for a, b in zip(step(compiled, x), step(node, x), strict=True):
        torch.testing.assert_close(a, b)


def test_torchs_device_stays_what_it_was() -> None:
    for index in reversed(range(torch.cuda.device_count())):
        node = EMPFNode(step_mode="m", backend="cupy").to(f"cuda:{index}")
        out = node(torch.randn(2, 100, device=f"cuda:{index}"))
        assert torch.cuda.current_device() == 0
        assert out.device.index == index


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device; this needs two")
@pytest.mark.parametrize("name", NODES)
def test_two_devices_give_the_same(name: str) -> None:
    node, x = NODES[name](step_mode="m", backend="cupy"), torch.randn(4, 10_000)
    first, second = (step(copy.deepcopy(node).to(d), x.to(d)) for d in ("cuda:1", "cuda:0"))
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a.cpu(), b.cpu())


def test_more_than_2_to_the_31_elements() -> None:
    T, N = 3, 2**30 + 4
    free, needed = torch.cuda.mem_get_info()[0], 12 * T * N
    if free < needed:
        pytest.skip(f"{free / 2**30:.0f} GiB free on the device; this needs {needed / 2**30:.0f}")
    x = torch.zeros(T, N, device="cuda", dtype=torch.bfloat16)
    x[2, -5:] = torch.tensor([0.25, 0.5, 0.75, 1.0, 1.25])
    half, v0 = torch.full((1,), 0.5, device="cuda"), torch.zeros(N, device="cuda")
    s, v_last, fired = empf_kernel.forward(x, v0, half, half, 0, "fired")
    assert s[2, -5:].tolist() == [0, 0, 0.25, 0.5, 0.75]
    assert v_last[-5:].tolist() == [0.25, 0.5, 0.5, 0.5, 0.5]
    assert fired[0, -5:].tolist() == [0, 4, 4, 4, 4]
    assert s.count_nonzero() == 3
    grad_x, grad_v0, _, grad_threshold = empf_kernel.backward(s, v_last[:0], v_last[:0], v0, fired, half, half, True)
    assert grad_x[:, -5:].tolist() == [
        [0, 0, 0.0625, 0.125, 0.1875],
        [0, 0, 0.125, 0.25, 0.375],
        [0, 0, 0.25, 0.5, 0.75],
    ]
    assert grad_v0[-3:].tolist() == [0.03125, 0.0625, 0.09375]
    assert grad_threshold.item() == -1.5
