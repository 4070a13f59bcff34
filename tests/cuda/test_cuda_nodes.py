"""backend='cupy' from the neuron down to the kernels, in the emulator: everything comes out as with 'torch'."""

import copy
from functools import partial
from itertools import product

import pytest
import torch
from spikingjelly.activation_based import functional
from torch._subclasses.fake_tensor import FakeTensorMode

from sj_online.cuda import loader
from sj_online.neuron import EMPFNode, HDLIFNode, LMHNode, set_backend
from sj_online.neuron.base import OnlineNode
from sj_online.neuron.empf.op import empf
from sj_online.neuron.lmh.op import lmh

T = 4
NODES = {
    "empf": partial(EMPFNode),
    "empf per step": partial(EMPFNode, T),
    "empf fixed": partial(EMPFNode, learnable=False),
    "empf parallel": partial(EMPFNode, T, parallel=True),
    "empf online": partial(EMPFNode, temporal_grad=False, store_v_seq=True),
    "hdlif": partial(HDLIFNode, T, spike_bits=3),
    "lmh": partial(LMHNode),
    "lmh per step": partial(LMHNode, T, v_threshold=0.8),
    "lmh online": partial(LMHNode, T, temporal_grad=False, store_v_seq=True),
}


@pytest.fixture
def cupy_runs(emulator: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(loader, "reasons", lambda x, slots=0: [])
    return emulator


def run(node: OnlineNode, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """One forward and backward of x [T, N, C, H, W]: everything that comes out, by name."""
    x = x.clone().requires_grad_()
    out = node(x) if node.step_mode == "m" else torch.stack([node(x_t) for x_t in x])
    weight = torch.linspace(-1, 1, out.numel()).view(out.shape)
    (out * weight).sum().backward(retain_graph=True)
    results = {"out": out, "v": node.v, "x.grad": x.grad}
    if node.temporal_grad and not getattr(node, "parallel", False):
        node.v.sum().backward()
    if node.store_v_seq:
        results["v_seq"] = node.v_seq
    return results | {name: p.grad for name, p in node.named_parameters()}


@pytest.mark.parametrize(("name", "step_mode", "dtype"), [*product(NODES, "sm", (torch.float32, torch.bfloat16))])
def test_cupy_equals_torch(cupy_runs: list[str], name: str, step_mode: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    node = NODES[name](step_mode=step_mode)
    other = copy.deepcopy(node)
    other.backend = "cupy"
    x = torch.randn(T, 2, 3, 4, 5).to(dtype)
    expected = run(node, x)
    assert not cupy_runs, "the torch backend must not launch"
    got = run(other, x)
    assert {launched.split("_")[1].split("<")[0] for launched in cupy_runs} == {"forward", "backward"}
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, rtol=1e-5, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")
    assert torch.equal(got["out"], expected["out"])


@pytest.mark.parametrize("name", NODES)
def test_layouts(cupy_runs: list[str], name: str) -> None:
    node, faked = (NODES[name](step_mode="m", backend="cupy") for _ in "rf")
    x = torch.randn(T, 2, 3, 4, 5)
    expected = run(copy.deepcopy(node), x)
    for layout in (x.flatten(0, 1).contiguous(memory_format=torch.channels_last).view_as(x), x.mT.contiguous().mT):
        assert not layout.is_contiguous()
        for key, value in run(copy.deepcopy(node), layout).items():
            torch.testing.assert_close(value, expected[key], msg=lambda m, k=key: f"{k}: {m}")
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            stride = faked(mode.from_tensor(layout)).stride()
        assert node(layout).stride() == stride, "the compiler believes the fake tensor"
        node.reset(), faked.reset()


@pytest.mark.parametrize("order", [("backend", "step_mode"), ("step_mode", "backend")])
def test_set_backend_in_any_order_with_set_step_mode(cupy_runs: list[str], order: tuple[str, str]) -> None:
    net = torch.nn.Sequential(EMPFNode(), LMHNode())
    for what in order:
        set_backend(net, "cupy") if what == "backend" else functional.set_step_mode(net, "m")
    net(torch.randn(T, 2, 8))
    assert [name.split("_")[0] for name in cupy_runs] == ["empf", "lmh"]


@pytest.mark.parametrize("keep", ["v", "fired", ""])
def test_empf_passes_opcheck(cupy_runs: list[str], keep: str) -> None:
    torch.use_deterministic_algorithms(False)
    needs = {"x": keep, "decay": keep == "v"}
    x, decay = (torch.rand(3, 8, requires_grad=bool(needs["x"])), torch.rand(3, requires_grad=bool(needs["decay"])))
    torch.library.opcheck(empf, (x, torch.zeros(8), decay, torch.rand(1), 0, keep, True, "cupy"))
    assert cupy_runs


def test_lmh_passes_opcheck(cupy_runs: list[str]) -> None:
    torch.use_deterministic_algorithms(False)
    x, factors = torch.rand(3, 8, requires_grad=True), torch.rand(4, 3, requires_grad=True)
    torch.library.opcheck(lmh, (x, torch.zeros(8), torch.zeros(8), factors, 0.7, 1.0, True, True, "cupy"))
    assert cupy_runs


@pytest.mark.parametrize("name", ["empf", "empf fixed", "lmh"])
def test_compiled_whole_graph(cupy_runs: list[str], name: str) -> None:
    node = NODES[name](step_mode="m", backend="cupy")
    compiled = torch.compile(copy.deepcopy(node), fullgraph=True, backend="aot_eager")
    x = torch.randn(T, 2, 3, 4, 5).flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (T, 2))
    torch.testing.assert_close(compiled(x), node(x))
