"""Every rule on the host's networks and ours: it runs unchanged, at the memory that its horizon allows."""

import copy

import pytest
import torch
from package_names import own
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.model import ms_resnet, parametric_lif_net, sew_resnet, spiking_resnet
from spikingjelly.activation_based.model.spiking_vggws_ottt import OTTTSpikingVGG
from torch import nn

from sj_online import registry
from sj_online.analysis import SavedBytes
from sj_online.layer import Feedback
from sj_online.neuron import EMPFNode

RULES = own("trainers")
LIF = {"decay_input": False, "v_reset": None, "detach_reset": True}
MODELS = {
    "spiking_resnet18": (lambda **kw: spiking_resnet.spiking_resnet18(num_classes=3, **kw), (3, 16, 16)),
    "sew_resnet18": (lambda **kw: sew_resnet.sew_resnet18(num_classes=3, cnf="ADD", **kw), (3, 16, 16)),
    "ms_resnet18": (lambda **kw: ms_resnet.ms_resnet18(num_classes=3, **kw), (3, 16, 16)),
    "spiking_vggws_ottt": (lambda **kw: OTTTSpikingVGG([8, "A", 512, "A"], num_classes=3, **kw), (3, 8, 8)),
    "DVSGestureNet": (lambda **kw: parametric_lif_net.DVSGestureNet(channels=4, **kw), (2, 128, 128)),
}


def make(name, net):
    return registry.get("trainers", name)(net, torch.optim.SGD(net.parameters(), lr=0.05))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("node, options", [(neuron.LIFNode, LIF), (EMPFNode, {"num_steps": 2})], ids=["lif", "empf"])
def test_the_hosts_models_train_unchanged(model, node, options):
    torch.manual_seed(0)
    build, shape = MODELS[model]
    new = build(spiking_neuron=node, **options)
    functional.set_step_mode(new, "m" if model == "ms_resnet18" else "s")
    x, y = 4 * torch.rand(2, 3, *shape), torch.tensor([0, 2, 1])
    for name in RULES if node is neuron.LIFNode else ["stol"]:
        net = copy.deepcopy(new)  # some rules leave it silent at this learning rate
        first, *_, last = net.parameters()
        before = first.clone(), last.clone()
        result = make(name, net).train_step(x, y)
        assert result.loss.isfinite() and all(p.isfinite().all() for p in net.parameters()), name
        assert (first != before[0]).any() and (last != before[1]).any(), name


class Residual(nn.Module):
    """A block whose two branches read the same spikes, and sum currents."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = layer.Conv2d(2, 4, 3), layer.Conv2d(4, 4, 3, padding=1), layer.Conv2d(4, 4, 1)
        self.norm, self.fc = layer.BatchNorm2d(4), layer.Linear(144, 3)
        self.n1, self.n2 = neuron.LIFNode(**LIF), neuron.LIFNode(**LIF)

    def forward(self, x):
        s = self.n1(self.stem(x))
        return self.fc(self.n2(self.norm(self.a(s)) + self.b(s)).flatten(1))


def feedback():
    body = nn.Sequential(neuron.LIFNode(**LIF), layer.Conv2d(4, 4, 3, padding=1), EMPFNode())
    loop = Feedback(layer.Conv2d(2, 4, 3), body, layer.Conv2d(4, 4, 1))
    return nn.Sequential(loop, layer.Flatten(), layer.Linear(144, 3))


def peak(name, build, T):
    torch.manual_seed(0)
    net = build()
    x, y = torch.rand(T, 2, 2, 8, 8), torch.tensor([0, 2])
    rule = make(name, net)
    with SavedBytes(exclude=[*net.parameters(), x]) as saved:
        rule.train_step(x, y)
    return saved.peak, rule.horizon


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("build", [Residual, feedback])
def test_memory_is_the_horizons_at_any_length(name, build):
    if name == "rate_bp" and build is feedback:
        with pytest.raises(ValueError, match="'0' .Feedback. keeps 'features' from step to step: RateBP cannot run it"):
            peak(name, build, 8)
        return
    (short, horizon), (long, _) = peak(name, build, 8), peak(name, build, 32)
    if horizon is None:
        assert long > 3 * short
        return
    assert long == short
    if horizon == 1:  # the first of two steps has no feedback yet
        assert peak(name, build, 2)[0] == short
    if name in ("stol", "time_slicing"):
        assert 1.3 < short / peak("sltt", build, 8)[0] <= horizon
