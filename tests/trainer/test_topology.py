"""The places of synapses, in networks whose places are plain to see."""

import pytest
import torch
from spikingjelly.activation_based import encoding, functional, layer, monitor, neuron
from torch import Tensor, nn

from sj_online import topology
from sj_online.frames import Frames
from sj_online.layer import Feedback
from sj_online.neuron import EMPFNode, LMHNode
from sj_online.topology import Place
from sj_online.trainer import OTTT, leak, replaying


def find(net, frames):
    return topology.find(net, frames).places


def lif(tau: float = 2.0) -> neuron.LIFNode:
    return neuron.LIFNode(tau, decay_input=False, v_reset=None)


class Residual(nn.Module):
    """A residual stream of currents: out = head(n3(stem(x) + block(x))), with a shortcut to a second readout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head, self.side = (layer.Linear(4, 4) for _ in range(5))
        self.unused = layer.Linear(4, 4)
        self.n1, self.n2, self.n3 = lif(), lif(), lif()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.b(self.n2(self.a(self.n1(x))))
        return self.head(self.n3(x)) + self.side(x)


def test_a_residual_network():
    assert find(Residual(), Frames(torch.rand(5, 2, 4), None, None)) == {
        "stem": Place("input", ("n1", "n3")),
        "a": Place("hidden", ("n2",)),
        "b": Place("hidden", ("n3",)),
        "side": Place("readout", ("n2",)),
        "head": Place("readout", ("n3",)),
    }


@pytest.mark.parametrize("mode", ["s", "m"])
def test_feedback_by_a_layer_that_keeps_its_features(mode):
    body = nn.Sequential(lif(), layer.Linear(5, 5), lif())
    net = nn.Sequential(Feedback(layer.Linear(4, 5), body, layer.Linear(5, 5)), layer.Linear(5, 3))
    functional.set_step_mode(net, mode)
    assert find(net, Frames(torch.rand(5, 2, 4), None, None)) == {
        "0.entry": Place("input", ("0.body.0",)),
        "0.body.1": Place("hidden", ("0.body.2",)),
        "1": Place("readout", ("0.body.2",)),
        "0.connection": Place("feedback", ("0.body.0",)),
    }


class DetachedFeedback(nn.Module):
    """Feedback as the authors have it: zeros at first, then the detached spikes of the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.back, self.node = layer.Linear(4, 5), layer.Linear(5, 5), lif()
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        last = x.new_zeros(len(x), 5) if self.last is None or len(self.last) != len(x) else self.last
        s = self.node(self.fc(x) + self.back(last))
        self.last = s.detach()
        return s


def test_feedback_that_is_detached_by_hand():
    places = find(DetachedFeedback(), Frames(torch.rand(2, 4), None, 3))
    assert {name: place.role for name, place in places.items()} == {"fc": "input", "back": "feedback"}
    assert find(DetachedFeedback(), Frames(torch.rand(1, 2, 4), None, None)) == places


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(3), nn.GroupNorm(1, 3), nn.BatchNorm2d(3)])
def test_a_norm_before_the_stem_does_not_silence_it(norm):
    net = nn.Sequential(norm, layer.Conv2d(3, 4, 3), lif(), layer.Flatten(), layer.Linear(16, 3))
    roles = {name: place.role for name, place in find(net, Frames(torch.rand(2, 3, 4, 4), None, 3)).items()}
    assert roles == {"1": "input", "4": "readout"}


@pytest.mark.parametrize("nodes", [("lif", "plif"), ("plif", "lif")])
def test_leaks_that_were_learnt_apart_count_by_their_mean(nodes):
    both = nn.ModuleDict({"lif": lif(2.0), "plif": neuron.ParametricLIFNode(2.0)})
    both["plif"].w.data += 1.0
    expected = (0.5 + (1 - both["plif"].w.sigmoid().item())) / 2
    assert leak.of_place(both, Place("hidden", nodes), 0).item() == pytest.approx(expected)


def test_the_recurrent_container_of_the_host():
    net = nn.Sequential(layer.LinearRecurrentContainer(lif(), 4, 4, step_mode="s"), layer.Linear(4, 3))
    roles = {name: place.role for name, place in find(net, Frames(torch.rand(2, 4), None, 3)).items()}
    assert roles == {"0.rc": "feedback", "1": "readout"}


@pytest.mark.parametrize("x", [torch.rand(2, 4), torch.randint(0, 2, (2, 4), dtype=torch.uint8)])
def test_an_encoder_without_gradient_feeds_an_input(x):
    class Encode(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoding.PoissonEncoder()

        def forward(self, x: Tensor) -> Tensor:
            return self.encoder(x.float())

    net = nn.Sequential(Encode(), layer.Linear(4, 3), lif())
    assert find(net, Frames(x, None, 3)) == {"1": Place("input", ("2",))}


def test_looking_leaves_no_trace():
    net = nn.Sequential(layer.Conv2d(1, 2, 3), layer.BatchNorm2d(2), EMPFNode(2), layer.Dropout(0.5), layer.Flatten())
    seen = []
    net[2].register_forward_hook(lambda *_: seen.append(replaying()))
    spikes = monitor.OutputMonitor(net, EMPFNode)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    rng = torch.get_rng_state()
    find(net, Frames(torch.zeros(2, 1, 4, 4), None, 2))
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in state.items())
    assert all(seen) and not spikes.records and net.training
    assert len(net[2]._forward_hooks) == 2
    assert list(net[2].memories()) == [0.0, 0]
    assert not any("reset" in vars(module) for module in net.modules())


def network(*nodes: nn.Module) -> nn.Sequential:
    """Two synapses, the second behind two neurons in parallel, and a readout fed by both."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nodes

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x)

    return nn.Sequential(layer.Linear(4, 4), lif(), layer.Linear(4, 4), Both(), layer.Linear(4, 3))


def rule(net: nn.Module, **kwargs) -> OTTT:
    return OTTT(net, torch.optim.SGD(net.parameters(), lr=0.5), num_steps=3, **kwargs)


DATA = (4 * torch.rand(2, 4), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("nodes", "kwargs", "match"),
    [
        (
            (lif(2.0), lif(4.0)),
            {},
            r"'2', '4' need .* '2' sends its current to '3.a' \(LIFNode, leak 0.5\), '3.b'.*0.75\)",
        ),
        ((lif(2.0), lif(4.0)), {"trace_decay": {"2": 0.5}}, "'4' need .* '4' is fed by '3.a'"),
        ((EMPFNode(decay=0.5), EMPFNode(decay=0.75)), {}, r"give trace_decay=\{'2': 0.625, '4': 0.625\}"),
        ((lif(), LMHNode()), {}, r"'3.b' \(LMHNode, no single leak\)"),
    ],
)
def test_several_leaks_or_none_ask_for_a_decay(nodes, kwargs, match):
    net = network(*nodes)
    before = [p.clone() for p in net.parameters()]
    for _ in range(2):
        with pytest.raises(ValueError, match=match):
            rule(net, **kwargs).train_step(*DATA)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    rule(net, trace_decay={"2": 0.5, "4": 0.25}).train_step(*DATA)


def test_no_neuron_at_all():
    net = nn.Sequential(layer.Linear(4, 3))
    rule(net).train_step(*DATA)
    with pytest.raises(ValueError, match="sends its current to no neuron"):
        rule(net, trace_input=True).train_step(*DATA)


def test_leaks_that_are_learnt_apart_count_by_their_mean():
    net = network(EMPFNode(), EMPFNode())
    trained = rule(net, update="step")
    for _ in range(3):
        trained.train_step(*DATA)
    leaks = [float(node.decay.detach()) for node in (net[3].a, net[3].b)]
    net[3].a.raw_decay.data += 1.0
    leaks = [node.decay.item() for node in (net[3].a, net[3].b)]
    assert leaks[0] != leaks[1]
    assert abs(float(trained._leak("2", 0).detach()) - sum(leaks) / 2) < 1e-6
    with pytest.raises(ValueError, match="need one leak"):
        rule(net).train_step(*DATA)
    resumed = rule(net)
    resumed.load_state_dict(trained.state_dict())
    resumed.train_step(*DATA)


@pytest.mark.parametrize(
    ("decay", "match"),
    [({"3": 0.5}, "'3', which is none of the synapses 0, 2, 4"), ({"2": 1.5}, r"trace_decay\['2'\]=1.5 is not in")],
)
def test_a_decay_that_fits_nothing(decay, match):
    with pytest.raises(ValueError, match=match):
        rule(network(lif(), lif()), trace_decay=decay)


def test_the_table():
    shown = rule(network(lif(), lif()), trace_bias=True, trace_decay={"2": 0.25})
    assert "found at the first training step" in repr(shown)
    shown.train_step(*DATA)
    assert repr(shown).splitlines()[1:] == [
        "  0  Linear  input    bias traced, leak 0.5 of 1",
        "  2  Linear  hidden   traced, leak 0.25 given",
        "  4  Linear  readout  traced, leak 0.5 of 3.a and 1 more",
    ]


def test_an_ambiguous_output_is_looked_up_before_anything_is_noted():
    """One sample, one step at a time: whether [1, ...] is a mean takes a call, which is none of the network's own."""
    net = nn.Sequential(layer.Linear(4, 5), lif(), layer.Linear(5, 3))
    functional.set_step_mode(net, "m")
    for N in (1, 2):
        found = topology.find(net, Frames(torch.rand(3, N, 4)))
        assert found.called == {"0": 1, "1": 1, "2": 1} and not found.reset
