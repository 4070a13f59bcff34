import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import Tensor

from sj_online.neuron import EMPFNode, LMHNode
from sj_online.neuron.leak import of_neuron

LEAKS = [
    (neuron.LIFNode(4.0, decay_input=False, v_reset=None), 0.75),
    (neuron.IFNode(), 1.0),
    (neuron.HalfThresholdIFNode(), 1.0),
    (neuron.TernaryIFNode(), 1.0),
    (neuron.TernaryLIFNode(4.0), 0.75),
    (neuron.SimpleIFNode(v_threshold=1.0, v_reset=None), 1.0),
    (neuron.SimpleLIFNode(4.0, True, v_threshold=1.0, v_reset=0.0), 0.75),
    (neuron.ParametricLIFNode(4.0), 0.75),
    (EMPFNode(decay=0.25), 0.25),
    (EMPFNode(3, decay=0.25), 0.25),
    (EMPFNode(membrane_norm=1), None),
    (LMHNode(), None),
    (neuron.CUBALIFNode(), None),
]


@pytest.mark.parametrize(("node", "expected"), LEAKS)
def test_the_leak_is_the_derivative_below_threshold(node, expected):
    found = of_neuron(node, 0)
    assert (found is None) == (expected is None)
    if found is not None:

        def after(v: float) -> Tensor:
            node.reset()
            node.v = torch.tensor([v])
            node(torch.zeros(1))
            return node.v

        with torch.no_grad():
            slope = (after(0.25) - after(0.125)) / 0.125
            torch.testing.assert_close([slope.item(), float(found)], [expected] * 2, rtol=0, atol=1e-6)


def test_a_neuron_without_membrane_leaks_all():
    assert of_neuron(EMPFNode(parallel=True), 0) == 0
