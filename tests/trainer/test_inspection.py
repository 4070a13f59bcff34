"""What a rule says of a network: it follows the network, and has no false alarm."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from sj_online import predict
from sj_online.layer import BinaryLinear
from sj_online.neuron import EMPFNode
from sj_online.trainer import BPTT, FPTT, NDOT, OTTT, SLTT, STOL, RandomBP, TimeSlicing

T, N = 5, 4
EXACT = {"rtol": 0, "atol": 1e-12}
RULES = [SLTT, OTTT, STOL, FPTT, RandomBP, TimeSlicing, BPTT]


def lif(**options):
    return neuron.LIFNode(**{"v_threshold": 0.3, "v_reset": None, "detach_reset": True, "decay_input": False} | options)


def network():
    torch.manual_seed(0)
    return nn.Sequential(layer.Linear(8, 8), lif(), layer.Linear(8, 3)).double()


def data():
    torch.manual_seed(1)
    return torch.rand(T, N, 8, dtype=torch.float64) * 2, torch.tensor([0, 1, 2, 0])


def sgd(net, lr=0.1):
    return torch.optim.SGD(net.parameters(), lr)


def gradient(rule, x, y):
    rule.net.zero_grad()
    torch.manual_seed(2)
    list(rule.gradients(x, y))
    return {name: None if p.grad is None else p.grad.clone() for name, p in rule.net.named_parameters()}


def append(net):
    torch.manual_seed(3)
    net.append(lif(v_threshold=0.1))
    net.append(layer.Linear(3, 3).double())


def insert(net):
    torch.manual_seed(3)
    net.insert(2, layer.Linear(8, 8).double())
    net.insert(3, lif(tau=3.0))


def swap(net):
    net[1] = neuron.IFNode(v_threshold=0.5, v_reset=None, detach_reset=True)


def nested(net):
    net[2] = nn.Sequential(layer.Linear(8, 3).double(), lif(), nn.Sequential(lif(tau=4.0), layer.Linear(3, 3).double()))


def quantise(net):
    net[2] = BinaryLinear(8, 3).double()


def freeze(net):
    net[0].requires_grad_(False)


CHANGES = [append, insert, swap, nested, quantise, freeze]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("make", RULES)
def test_a_running_rule_follows_the_network(make, change):
    """It does as a rule that is made of the changed network."""
    x, y = data()
    net = network()
    rule = make(net, sgd(net, 0.0))
    for _ in range(2):
        rule.train_step(x, y)
    rule.predict(x)
    torch.manual_seed(4)
    change(net)
    rule.optimizer.param_groups[0]["params"] = list(net.parameters())
    torch.manual_seed(4)
    fresh = network()
    torch.manual_seed(4)
    change(fresh)
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(rule.predict(x), rule.predict(x)), "every neuron is reset"
    torch.testing.assert_close(rule.predict(x), predict(fresh, x), **EXACT)
    ours, oracle = gradient(rule, x, y), gradient(make(fresh, sgd(fresh, 0.0)), x, y)
    for name, grad in oracle.items():
        torch.testing.assert_close(ours[name], grad, **EXACT)
    if change is freeze:
        assert ours["0.weight"] is None
        net[0].requires_grad_(True)
        thawed = network()
        torch.testing.assert_close(
            gradient(rule, x, y)["0.weight"], gradient(make(thawed, sgd(thawed)), x, y)["0.weight"], **EXACT
        )
    assert {line.split()[0] for line in repr(rule).splitlines()[1:]} == {
        line.split()[0] for line in repr(make(fresh, sgd(fresh))).splitlines()[1:]
    }


def test_a_neuron_that_comes_after_a_first_use_is_reset():
    """Negative control: the host's own reset, which remembers."""
    x, _ = data()
    net = network()
    predict(net, x)
    append(net)
    first = predict(net, x)
    assert net[3].v.abs().sum() > 0
    assert torch.equal(first, predict(net, x))


def said(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in caught if issubclass(w.category, UserWarning)]


@pytest.mark.parametrize("make", [SLTT, BPTT, STOL])
def test_parameters_of_neurons_that_the_optimizer_does_not_hold_are_said_once(make):
    x, y = data()
    net = network()
    rule = make(net, sgd(net))
    assert not said(lambda: rule.train_step(x, y))
    net[1] = neuron.ParametricLIFNode(v_threshold=0.3).double()
    (text,) = said(lambda: [rule.train_step(x, y) for _ in range(3)])
    assert "the optimizer does not hold '1.w'" in text and "add_param_group" in text and "\n" not in text
    rule.optimizer.add_param_group({"params": [net[1].w]})
    net[1].w.requires_grad_(False)
    assert not said(lambda: rule.train_step(x, y))
    net[1].w.requires_grad_(True)
    assert not said(lambda: rule.train_step(x, y)), "it is held now"
    assert not said(lambda: make(net, sgd(net)).train_step(x, y))
    frozen = network()
    rule = make(frozen, sgd(frozen))
    frozen[1] = neuron.ParametricLIFNode().double().requires_grad_(False)
    assert not said(lambda: rule.train_step(x, y))


def silent_network(scale):
    """EM-PF behind weights of a scale: below its threshold it lets no gradient through."""
    torch.manual_seed(0)
    net = nn.Sequential(layer.Linear(8, 8), lif(), layer.Linear(8, 6, bias=False), EMPFNode(), layer.Linear(6, 3))
    with torch.no_grad():
        net[2].weight.abs_().mul_(scale)
    return net


@pytest.mark.parametrize("make", RULES)
def test_silent_neurons_are_said_once_after_the_second_batch(make):
    x, y = data()
    net = silent_network(0.01).double()
    rule = make(net, sgd(net))
    assert not said(lambda: rule.train_step(x, y))
    (text,) = said(lambda: rule.train_step(x, y))
    assert text.startswith("silent: '3' neither fire nor let a gradient through") and "\n" not in text
    assert not said(lambda: [rule.train_step(x, y) for _ in range(3)])
    alive = silent_network(1.0).double()
    rule = make(alive, sgd(alive))
    assert not said(lambda: [rule.train_step(x, y) for _ in range(3)])


def test_lif_networks_are_not_silent_though_they_do_not_fire():
    x, y = data()
    for node in (neuron.LIFNode(v_threshold=30.0), neuron.IFNode(v_threshold=9.0), neuron.QIFNode(v_threshold=9.0)):
        net = network()
        net[1] = node
        rule = SLTT(net, sgd(net))
        assert not said(lambda rule=rule: [rule.train_step(x, y) for _ in range(2)])
        assert net[1].v.abs().sum() > 0


def test_the_look_at_silence_leaves_the_training_as_it_is():
    """The batches behind it are those of a network that was not looked at."""
    x, y = data()
    results = []
    for looks in (True, False):
        net = network()
        net.insert(1, nn.Dropout(0.3))
        net.insert(1, layer.BatchNorm1d(8).double())
        rule = SLTT(net, sgd(net))
        torch.manual_seed(5)
        for _ in range(4):
            if not looks:
                rule.inspection.batches = 9
            rule.train_step(x, y)
        results.append((nn.utils.parameters_to_vector(net.parameters()), net[1].running_mean.clone(), torch.rand(1)))
    assert all(map(torch.equal, *results))


class Inside(nn.Module):
    """A network whose forward does more than a step."""

    def __init__(self, what):
        super().__init__()
        self.net, self.what = network(), what

    def forward(self, x):
        if self.what == "reset":
            functional.reset_net(self.net)
        if self.what == "reset one":
            self.net[1].reset()
        if self.what == "loop":
            return sum(self.net(x) for _ in range(3))
        if self.what == "loop of the neuron":
            current = self.net[0](x)
            return self.net[2](sum(self.net[1](current) for _ in range(4)))
        if self.what == "twice":
            return self.net[2](self.net[1](self.net[1](self.net[0](x))))
        return self.net(x)


@pytest.mark.parametrize("make", [SLTT, OTTT, STOL, TimeSlicing])
def test_a_reset_and_a_loop_inside_forward_are_noticed(make):
    x, y = data()
    for what, message in (
        ("reset", "'net.1' is reset inside forward()"),
        ("reset one", "'net.1' is reset inside forward()"),
        ("loop", "'net.1' runs 3 times in one step: a loop over time inside forward()"),
        ("loop of the neuron", "'net.1' runs 4 times in one step"),
        ("nothing", None),
        ("twice", None),
    ):
        net = Inside(what)
        rule = make(net, sgd(net))
        texts = said(lambda rule=rule: [rule.train_step(x, y) for _ in range(3)])
        assert len(texts) == (message is not None), (what, texts)
        assert message is None or texts[0].startswith(message)
        assert "reset" not in vars(net.net[1])


def test_a_loop_is_noticed_in_multi_step_mode_too():
    x, y = data()
    for what, count in (("loop", 1), ("nothing", 0)):
        net = Inside(what)
        functional.set_step_mode(net, "m")
        rule = BPTT(net, sgd(net))
        assert len(said(lambda rule=rule: rule.train_step(x, y))) == count
    net = Inside("loop")
    functional.set_step_mode(net, "m")
    with pytest.raises(ValueError, match="mixes the steps"):  # in slices it would run them in another order
        TimeSlicing(net, sgd(net), k=2).train_step(x, y)


class Sew(nn.Module):
    """The authors' spike-element-wise residual: spikes added in place to a layer's output."""

    def __init__(self, in_place):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.first = layer.Linear(8, 8), lif()
        self.branch = nn.Sequential(layer.Linear(8, 8), lif())
        self.out = layer.Linear(8, 3)
        self.in_place = in_place
        self.double()

    def forward(self, x):
        s = self.first(self.stem(x))
        y = self.branch(s)
        if self.in_place:
            y += s
        else:
            y = y + s
        return self.out(y)


@pytest.mark.parametrize("make", [*RULES, NDOT])
@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("compress", [False, True])
def test_spikes_added_in_place_are_spikes_added(make, step_mode, compress):
    x, y = data()
    results = []
    for in_place in (True, False):
        net = Sew(in_place)
        functional.set_step_mode(net, step_mode)
        rule = make(net, sgd(net), compress=compress)
        results.append(gradient(rule, x, y))
        for _ in range(2):
            rule.train_step(x, y)
        results[-1]["weights"] = nn.utils.parameters_to_vector(net.parameters()).detach()
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], **EXACT)
        assert value.any()


def test_a_memory_of_weights_is_named_unless_all_steps_are_one_graph():
    x, y = data()

    class Shared(neuron.LIFNode):
        """Keeps a product of weights from its first step on."""

        def __init__(self, fc):
            super().__init__(v_threshold=0.3)
            self.weights = [fc]
            self.register_memory("kept", None)

        def single_step_forward(self, x):
            if self.kept is None:
                self.kept = self.weights[0].weight * 2
            return super().single_step_forward(F.linear(x, self.kept))

    drop = nn.Sequential(
        layer.DropConnectLinear(8, 8, p=0.3, invariant=True, activation=None), lif(), layer.Linear(8, 3)
    )
    fc = layer.Linear(8, 8)
    own = nn.Sequential(fc, Shared(fc), layer.Linear(8, 3))
    for net, name in ((drop.double(), "0.dropped_w"), (own.double(), "1.kept")):
        for make in (SLTT, RandomBP, STOL, TimeSlicing):
            with pytest.raises(ValueError, match=f"the memory '{name}' is made of weights alone") as error:
                make(net, sgd(net)).train_step(x, y)
            assert "\n" not in str(error.value)
        BPTT(net, sgd(net)).train_step(x, y)
    variant = nn.Sequential(layer.DropConnectLinear(8, 8, p=0.3, activation=None), lif(), layer.Linear(8, 3)).double()
    for make in (SLTT, RandomBP, STOL, TimeSlicing):
        make(variant, sgd(variant)).train_step(x, y)
