"""OTTT on the host's networks and ours: it runs unchanged, at constant memory, and differs from SLTT."""

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.model import ms_resnet, parametric_lif_net, sew_resnet, spiking_resnet
from spikingjelly.activation_based.model.spiking_vggws_ottt import OTTTSpikingVGG
from torch import Tensor, nn

from sj_online.analysis.memory import SavedBytes
from sj_online.layer import Feedback
from sj_online.neuron import EMPFNode, HDLIFNode
from sj_online.trainer import BPTT, NDOT, OTTT, SLTT

NODES = {
    "lif": (neuron.LIFNode, {"decay_input": False, "v_reset": None, "detach_reset": True}),
    "empf": (EMPFNode, {"num_steps": 2}),
    "hdlif": (HDLIFNode, {}),
}
MODELS = {
    "spiking_resnet18": (lambda **kw: spiking_resnet.spiking_resnet18(num_classes=3, **kw), (3, 32, 32)),
    "sew_resnet18": (lambda **kw: sew_resnet.sew_resnet18(num_classes=3, cnf="ADD", **kw), (3, 32, 32)),
    "ms_resnet18": (lambda **kw: ms_resnet.ms_resnet18(num_classes=3, **kw), (3, 32, 32)),
    "spiking_vggws_ottt": (lambda **kw: OTTTSpikingVGG([8, "A", 512, "A"], num_classes=3, **kw), (3, 8, 8)),
    "DVSGestureNet": (lambda **kw: parametric_lif_net.DVSGestureNet(channels=4, **kw), (2, 128, 128)),
}


def make(rule: type, net: nn.Module, **kwargs):
    return rule(net, torch.optim.SGD(net.parameters(), lr=0.1), **kwargs)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("node", NODES)
def test_the_hosts_models_train_unchanged(model, node):
    torch.manual_seed(0)
    spiking_neuron, kwargs = NODES[node]
    build, shape = MODELS[model]
    net = build(spiking_neuron=spiking_neuron, **kwargs)
    functional.set_step_mode(net, "m" if model == "ms_resnet18" else "s")
    rule = make(OTTT, net, update="step")
    x, y = 4 * torch.rand(2, 2, *shape), torch.tensor([0, 2])
    before = {name: p.clone() for name, p in net.named_parameters()}
    for _ in range(2):
        assert rule.train_step(x, y).output.shape[0] == 2
    moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert moved & {f"{name}.weight" for name in rule.places}
    assert all(p.isfinite().all() for p in net.parameters())
    roles = [place.role for place in rule.places.values()]
    assert roles[0] == "input"
    assert roles[-1] == ("readout" if model != "DVSGestureNet" else "hidden")


def lif() -> neuron.LIFNode:
    return neuron.LIFNode(decay_input=False, v_reset=None, detach_reset=True)


def plain() -> nn.Module:
    return nn.Sequential(
        layer.Conv2d(2, 4, 3), lif(), layer.Conv2d(4, 4, 3), lif(), layer.Flatten(), layer.Linear(64, 3)
    )


class Residual(nn.Module):
    """A block whose two branches read the same spikes, and sum currents."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = layer.Conv2d(2, 4, 3), layer.Conv2d(4, 4, 3, padding=1), layer.Conv2d(4, 4, 1)
        self.norm, self.n1, self.n2, self.fc = layer.BatchNorm2d(4), lif(), lif(), layer.Linear(144, 3)

    def forward(self, x: Tensor) -> Tensor:
        s = self.n1(self.stem(x))
        return self.fc(self.n2(self.norm(self.a(s)) + self.b(s)).flatten(1))


def feedback() -> nn.Module:
    body = nn.Sequential(lif(), layer.Conv2d(4, 4, 3, padding=1), lif())
    loop = Feedback(layer.Conv2d(2, 4, 3), body, layer.Conv2d(4, 4, 1))
    return nn.Sequential(loop, layer.Flatten(), layer.Linear(144, 3))


def peak(rule: type, build, T: int) -> int:
    torch.manual_seed(0)
    net = build()
    channels = next(net.parameters()).shape[1]
    x, y = torch.rand(T, 2, channels, 8, 8), torch.tensor([0, 2])
    trained = make(rule, net)
    with SavedBytes(exclude=[*net.parameters(), x]) as saved:
        trained.train_step(x, y)
    return saved.peak


@pytest.mark.parametrize("build", [plain, Residual, feedback])
def test_memory_does_not_grow_with_time(build):
    peaks = {peak(OTTT, build, T) for T in (2, 8, 32)}
    assert len(peaks) == 1
    # A trace takes the place of the spike; branches that read the same spikes keep a trace each.
    assert peaks.pop() <= peak(SLTT, build, 8) * (1 if build is plain else 1.2)
    assert peak(BPTT, build, 32) > 12 * peak(BPTT, build, 2)


def test_ndot_takes_the_same_memory():
    assert {peak(NDOT, plain, T) for T in (2, 8)} == {peak(OTTT, plain, 2)}


def gradients(rule, *xy: Tensor) -> list[Tensor]:
    rule.net.zero_grad()
    for _ in rule.gradients(*xy):
        pass
    return [p.grad.clone() for p in rule.net.parameters()]


def test_feedback_is_traced_from_the_step_before():
    """dW of the feedback connection: the delta of the entry's neurons times the trace of the spikes of the past."""
    torch.manual_seed(0)
    node = lif()
    net = nn.Sequential(Feedback(layer.Linear(4, 5), node, layer.Linear(5, 5, bias=False))).double()
    x, y = 4 * torch.rand(6, 2, 4, dtype=torch.float64), torch.tensor([0, 2])
    rule = make(OTTT, net)
    rule.train_step(x[:1], y)  # no feedback yet, and none of it remembered as missing
    got = gradients(rule, x, y)[-1]
    functional.reset_net(net)
    expected, a, s = 0.0, 0.0, None
    for x_t in x:
        current = net[0].entry(x_t) + (0 if s is None else net[0].connection(s))
        current = current.detach().requires_grad_()
        a = a if s is None else 0.5 * a + s
        s = node(current)
        (delta,) = torch.autograd.grad(nn.functional.cross_entropy(s, y) / 6, current)
        s = s.detach()
        node.detach()
        expected = expected + (delta.t() @ a if isinstance(a, Tensor) else 0)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert (gradients(make(SLTT, net), x, y)[-1] - expected).abs().max() > 1e-4
