"""The host's keyword arguments: honoured with the host's own neuron as oracle, or refused in one line."""

import copy
import math
import pickle

import pytest
import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from spikingjelly.activation_based.model import spiking_resnet
from torch import nn

from sj_online.neuron import EMPFNode, HDLIFNode, LMHNode, OnlineNode, fold_membrane_norm, set_backend

EMPF = [EMPFNode, HDLIFNode]


def run(node, steps=6):
    x = torch.linspace(-1, 2, 50, dtype=torch.float64).requires_grad_()
    s = torch.stack([node(x) for _ in range(steps)])
    return s, torch.autograd.grad(s.sin().sum(), x)[0]


@pytest.mark.parametrize(
    ("node", "given", "lines"),
    [
        *((node, {"surrogate_function": surrogate.ATan()}, ["surrogate_function=ATan"]) for node in EMPF),
        *((node, {"detach_reset": True}, ["detach_reset=True: its reset"]) for node in EMPF),
        *((node, {"v_reset": 0.0}, ["v_reset=0.0: a neuron that fires is reset to its threshold"]) for node in EMPF),
        *((node, {"decay_input": True}, ["decay_input=True: the leak acts on v alone"]) for node in EMPF),
        (
            EMPFNode,
            {"surrogate_function": surrogate.ATan(), "detach_reset": True},
            ["it has none, its spikes are their own derivative", "detach_reset=True"],
        ),
        (LMHNode, {"v_reset": 0.0, "decay_input": True}, ["v_reset=0.0: its reset subtracts", "decay_input=True"]),
        (LMHNode, {"detach_reset": False}, ["detach_reset=False: its gradient leaves the reset out"]),
    ],
)
def test_what_cannot_be_honoured_is_one_line_that_names_all_of_it(node, given, lines):
    with pytest.raises(ValueError, match=f"^{node.__name__} cannot honour ") as error:
        node(**given)
    message = str(error.value)
    assert "\n" not in message and all(line in message for line in lines) and message.count("; ") >= len(given) - 1


@pytest.mark.parametrize(
    ("node", "given", "message"),
    [
        *((node, {"v_threshold": 1.0}, r"threshold=1.0 is not inside the open interval \(0, 1\)") for node in EMPF),
        (EMPFNode, {"v_threshold": 0.3, "threshold": 0.4}, "threshold=0.4 and v_threshold name the same thing"),
        (HDLIFNode, {"tau": 4.0, "decay": 0.6}, "decay=0.6 and tau name the same thing"),
        (EMPFNode, {"tau": 1.0}, "tau=1.0 is not above 1; the leak is 1 - 1/tau"),
        (LMHNode, {"tau": 0.0}, "tau=0.0 is not above 1; the leak is 1 - 1/tau"),
        (LMHNode, {"tau": 2.0}, "tau=2.0 is not above 2: lambda_s = 1 - 1/tau lies inside"),
    ],
)
def test_values_out_of_range_are_named(node, given, message):
    with pytest.raises(ValueError, match=message):
        node(**given)


def test_a_surrogate_that_prints_on_many_lines_is_still_one_line():
    class Many(nn.Module):
        def __repr__(self):
            return "Many(\n  (inner): Identity()\n)"

    with pytest.raises(ValueError, match=r"surrogate_function=Many\( \(inner\): Identity\(\) \): it has none"):
        EMPFNode(surrogate_function=Many())


@pytest.mark.parametrize("node", EMPF)
def test_empf_takes_the_hosts_words_for_leak_and_threshold(node):
    host = {"tau": 4.0, "v_threshold": 0.3, "decay_input": False, "v_reset": None, "detach_reset": False}
    named, ours, other = (node(**given).double() for given in (host, {"decay": 0.75, "threshold": 0.3}, {}))
    results = [run(n) for n in (named, ours, other)]
    for i in range(2):
        assert torch.equal(results[0][i], results[1][i]) and not torch.equal(results[0][i], results[2][i])
    assert named.detach_reset is False and named.v_reset is None
    assert torch.equal(node(threshold=0.3, v_threshold=0.3).threshold, ours.float().threshold)


def test_lmh_with_the_hosts_arguments_is_the_hosts_neuron():
    """As started: mu = 0, lambda_d = 1, v at half the threshold."""
    atan = surrogate.ATan()
    given = {"v_threshold": 1.0, "surrogate_function": atan, "v_reset": None, "detach_reset": True, "tau": 4.0}
    host, ours = neuron.LIFNode(decay_input=False, **given), LMHNode(decay_input=False, **given).double()
    host.v = torch.full((50,), 0.5, dtype=torch.float64)
    for a, b in zip(run(host), run(ours), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)  # the leak is kept as a float32
    assert ours.detach_reset is True
    kept = neuron.LIFNode(decay_input=False, **given | {"detach_reset": False})
    kept.v = torch.full((50,), 0.5, dtype=torch.float64)
    assert not torch.allclose(run(kept)[1], run(LMHNode(**given).double())[1]), "the reset's gradient would be seen"


def test_a_network_of_the_hosts_zoo_passes_its_arguments_on():
    def build(node, **given):
        return spiking_resnet.spiking_resnet18(num_classes=3, spiking_neuron=node, **given)

    given = {"surrogate_function": surrogate.ATan(), "detach_reset": True}
    nodes = [m for m in build(LMHNode, **given).modules() if isinstance(m, OnlineNode)]
    assert len(nodes) == 17 and all(type(m.surrogate_function) is surrogate.ATan for m in nodes)
    with pytest.raises(ValueError, match="EMPFNode cannot honour surrogate_function=.*; detach_reset=True: "):
        build(EMPFNode, **given)
    nodes = [m for m in build(EMPFNode, tau=4.0, v_threshold=0.25).modules() if isinstance(m, OnlineNode)]
    assert len(nodes) == 17 and all((m.decay.item(), m.v_threshold) == pytest.approx((0.75, 0.25)) for m in nodes)


@pytest.mark.parametrize("node", EMPF)
def test_v_threshold_is_the_threshold_as_learnt(node):
    each = node(3, threshold=0.3)
    assert type(each.v_threshold) is float and each.v_threshold == pytest.approx(0.3)
    each.raw_threshold.data.copy_(torch.tensor([1.0, 2.0, 3.0]))
    assert each.v_threshold == pytest.approx(1 / (1 + math.exp(-1)))
    for other in (copy.deepcopy(each), pickle.loads(pickle.dumps(each))):
        assert other.v_threshold == each.v_threshold
    assert node(learnable=False, threshold=0.2).v_threshold == pytest.approx(0.2)
    assert "v_threshold" not in vars(each) and not any("v_threshold" in name for name in each.state_dict())


def test_v_threshold_assigned_is_the_threshold():
    node = EMPFNode(2)
    node.v_threshold = 0.25
    assert node.threshold.tolist() == pytest.approx([0.25] * 2) and isinstance(node.raw_threshold, nn.Parameter)
    for value in (1.0, 0.0, None, torch.tensor(0.5)):
        with pytest.raises(ValueError, match=r"v_threshold=.* is not a number inside the open interval \(0, 1\)"):
            node.v_threshold = value
    assert node.v_threshold == pytest.approx(0.25)


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("options", [{}, {"parallel": True}, {"membrane_norm": 3}, {"store_v_seq": True}], ids=str)
def test_no_forward_reads_v_threshold(step_mode, options, monkeypatch):
    node = HDLIFNode(step_mode=step_mode, **options)

    def read(self):
        raise AssertionError("a forward waits for the device")

    monkeypatch.setattr(EMPFNode, "v_threshold", property(read))
    with pytest.raises(AssertionError, match="waits"):
        _ = node.v_threshold
    for _ in range(2):
        node(torch.rand(2, 3, 3, requires_grad=True)).sum().backward()
        functional.detach_net(node)


def meta(build):
    with torch.device("meta"):
        return build()


def test_on_the_meta_device_every_node_prints_and_its_threshold_is_not_known():
    for build in (EMPFNode, lambda: HDLIFNode(3, membrane_norm=2), lambda: EMPFNode(parallel=True)):
        node = meta(build)
        assert math.isnan(node.v_threshold) and "threshold=?" in repr(node)
        node.v_threshold = 0.25
        set_backend(node, "auto")
    assert meta(LMHNode).v_threshold == 1.0 and "lambda_s=?" in repr(meta(LMHNode))
    folded = meta(lambda: fold_membrane_norm(EMPFNode(membrane_norm=2)))
    assert math.isnan(folded.v_threshold) and "FoldedEMPFNode" in repr(folded)


def test_a_folded_node_has_the_threshold_that_it_was_folded_with():
    node = EMPFNode(membrane_norm=2, threshold=0.3)
    folded = fold_membrane_norm(node.eval())
    assert folded.v_threshold == node.v_threshold == pytest.approx(0.3)
