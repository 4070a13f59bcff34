"""print(rule): whatever gets a gradient stands in it."""

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.model import spiking_resnet
from torch import Tensor, nn

from sj_online.neuron import EMPFNode
from sj_online.topology import display_name
from sj_online.trainer import BPTT, NDOT, OTTT, SLTT, TimeSlicing
from sj_online.trainer.table import Way, table


def plif() -> neuron.ParametricLIFNode:
    return neuron.ParametricLIFNode(2.0, decay_input=False, v_threshold=0.2, v_reset=None, detach_reset=True)


class Attention(nn.Module):
    """Attention with a bias of its own, a layer and weights that belong to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.n, self.norm = nn.MultiheadAttention(8, 2, batch_first=True), plif(), nn.LayerNorm(8)
        self.scale, self.W = nn.Parameter(torch.ones(8)), nn.Parameter(torch.randn(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        s = self.n(self.norm(x.view(-1, 2, 8)))
        return (self.attn(s, s, s)[0] * self.scale).sum(1) @ self.W


NETWORKS = {
    "resnet": (
        lambda: spiking_resnet.spiking_resnet18(spiking_neuron=neuron.ParametricLIFNode, num_classes=3),
        (3, 32, 32),
    ),
    "norms": (
        lambda: nn.Sequential(
            layer.Conv2d(1, 4, 3, bias=False), layer.BatchNorm2d(4), plif(),
            layer.Conv2d(4, 4, 3, padding=1), layer.GroupNorm(2, 4), EMPFNode(decay=0.5),
            layer.Flatten(), nn.utils.parametrizations.weight_norm(layer.Linear(16, 3)),
        ),
        (1, 4, 4),
    ),
    "attention": (Attention, (16,)),
}  # fmt: skip


def listed(text: str) -> set[str]:
    return {word.strip(",") for line in text.splitlines()[1:] for word in line.split()}


@pytest.mark.parametrize("rule", [OTTT, NDOT, SLTT, TimeSlicing, BPTT])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_that_gets_a_gradient_stands_in_it(name, rule):
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    net = build()
    functional.reset_net(net)
    made = rule(net, torch.optim.SGD(net.parameters(), 0.0))
    for _ in made.gradients(4 * torch.rand(2, 2, *shape), torch.tensor([0, 2])):
        pass
    words = listed(repr(made))
    learnt = [name for name, p in net.named_parameters() if p.grad is not None]
    assert len(learnt) > 5
    for parameter in learnt:
        module = parameter.rpartition(".")[0]
        assert words & ({parameter, display_name(parameter)} | ({module} - {""})), parameter
    assert all(len(line) <= 120 for line in repr(made).splitlines())


def test_it_reads_as_a_table():
    net = NETWORKS["norms"][0]()
    assert table(net, {"0": Way("input", "spike"), "7": Way("readout", "traced")}, "one step").splitlines() == [
        "  0  Conv2d              input    spike",
        "  7  ParametrizedLinear  readout  traced",
        "  the others by autograd within one step:",
        "    BatchNorm2d        1",
        "    ParametricLIFNode  2",
        "    Conv2d             3",
        "    GroupNorm          4",
        "    EMPFNode           5",
    ]
    net = Attention()
    net.norm.requires_grad_(False)
    ways = {"attn.in_proj_weight": Way("", "spike"), "attn.out_proj": Way("", "spike")}
    assert table(net, ways, "all steps").splitlines()[2:] == [
        "  the others by autograd within all steps:",
        "    parameter          scale, W, attn.in_proj_bias",
        "    ParametricLIFNode  n",
    ]
    assert table(nn.Sequential(nn.Linear(2, 2)), {"0": Way("", "spike")}, "one step") == "  0  Linear  spike"
    wide = nn.Sequential(*(nn.LayerNorm(1) for _ in range(40)))
    lines = table(wide, {}, "one step").splitlines()
    assert len(lines) == 3 and lines[1].startswith("    LayerNorm  0, 1,") and lines[2].startswith(" " * 15)


@pytest.mark.parametrize(
    ("rule", "how"),
    [(SLTT, "spike"), (TimeSlicing, "autograd within 2 steps"), (BPTT, "autograd within all steps")],
)
def test_rules_without_traces_say_what_autograd_sees(rule, how):
    net = nn.Sequential(layer.Linear(8, 4), plif(), layer.Linear(4, 3))
    text = repr(rule(net, torch.optim.SGD(net.parameters(), 0.1)))
    assert f"  0  Linear  {how}\n" in text and "ParametricLIFNode  1" in text
