"""The backend is what the user says, or an error with every reason."""

import pytest
import torch
from spikingjelly.activation_based import functional, neuron
from torch import nn

from sj_online.neuron import EMPFNode, HDLIFNode, LMHNode, set_backend

NODES = [EMPFNode, HDLIFNode, LMHNode]


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("node", NODES)
def test_cupy_on_a_cpu_tensor_is_an_error_with_every_reason(node, step_mode):
    with pytest.raises(RuntimeError, match=f"backend='cupy' cannot run {node.__name__}: ") as error:
        node(backend="cupy", step_mode=step_mode)(torch.rand(2, 3, dtype=torch.float64))
    message = str(error.value)
    assert "\n" not in message and "x is on cpu" in message and "float64" in message


@pytest.mark.parametrize("node", NODES)
def test_auto_runs_torch_where_cupy_cannot(node):
    x = torch.rand(2, 3)
    node, auto = node(), node(backend="auto")
    assert auto.runs_on(x) == "torch" and torch.equal(auto(x), node(x))


@pytest.mark.parametrize("order", ["backend first", "step mode first"])
def test_set_backend_in_any_order_with_set_step_mode(order):
    net = nn.Sequential(EMPFNode(), nn.Sequential(LMHNode(), neuron.LIFNode()))
    calls = [lambda: set_backend(net, "auto"), lambda: functional.set_step_mode(net, "m")]
    for call in calls if order == "backend first" else reversed(calls):
        call()
    assert [(m.backend, m.step_mode) for m in (net[0], net[1][0])] == [("auto", "m")] * 2
    assert not hasattr(net[1][1], "backend")


def test_set_backend_of_one_class():
    net = nn.Sequential(EMPFNode(), LMHNode())
    set_backend(net, "auto", LMHNode)
    assert [m.backend for m in net] == ["torch", "auto"]


@pytest.mark.parametrize("call", [lambda: EMPFNode(backend="triton"), lambda: set_backend(nn.Identity(), "triton")])
def test_an_unknown_backend_is_named(call):
    with pytest.raises(ValueError, match="backend='triton' is not one of 'torch', 'cupy', 'auto'"):
        call()


@pytest.mark.parametrize(
    "call", [lambda n: setattr(n, "backend", "cupy"), lambda n: EMPFNode(membrane_norm=2, backend="cupy")]
)
def test_membrane_norm_has_no_kernel_and_says_so(call):
    with pytest.raises(ValueError, match="backend='cupy' is not one of 'torch', 'auto' that this EMPFNode supports"):
        call(EMPFNode(membrane_norm=2))


def test_more_per_step_parameters_than_the_kernel_sums_is_a_reason_only_where_they_learn():
    x = torch.zeros(1, 2)
    for node in (EMPFNode(129, step_mode="m", backend="cupy"), LMHNode(65, step_mode="m", backend="cupy")):
        with pytest.raises(RuntimeError, match="per-step parameters learn, and 256 fit"):
            node(x)
        with torch.no_grad(), pytest.raises(RuntimeError) as error:
            node(x)
        assert "per-step" not in str(error.value)


def test_a_network_of_which_one_neuron_has_no_kernel_is_left_as_it_was():
    net = nn.Sequential(EMPFNode(), EMPFNode(membrane_norm=2))
    with pytest.raises(ValueError, match=r"backend='cupy': '1' \(EMPFNode\) supports \('torch', 'auto'\)"):
        set_backend(net, "cupy")
    assert [node.backend for node in net] == ["torch", "torch"]
