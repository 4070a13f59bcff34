"""swap_neurons and qcfs_to_lmh: what is replaced, what is kept, what is carried over."""

import copy
import warnings

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from sj_online.convert import qcfs_to_lmh, quantize_synapses, swap_neurons
from sj_online.neuron import QCFS, EMPFNode, HDLIFNode, LMHNode


def network(step_mode="s", **kwargs):
    net = nn.Sequential(
        layer.Conv2d(2, 6, 3),
        layer.BatchNorm2d(6),
        neuron.LIFNode(**kwargs),
        layer.Flatten(),
        layer.Linear(6 * 16, 5),
        neuron.IFNode(),
    )
    functional.set_step_mode(net, step_mode)
    return net


def x(step_mode="s"):
    torch.manual_seed(0)
    return torch.randn(3, 2, 2, 6, 6) if step_mode == "m" else torch.randn(2, 2, 6, 6)


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_everything_else_stays(step_mode):
    net = network(step_mode, tau=4.0, store_v_seq=True)
    net[5].eval()
    state, others = copy.deepcopy(net.state_dict()), [net[i] for i in (0, 1, 3, 4)]
    functional.reset_net(net)
    rows = swap_neurons(net, "empf", num_steps=3)
    assert [tuple(row) for row in rows] == [
        ("2", "LIFNode", "EMPFNode", {"leak": 0.75}),
        ("5", "IFNode", "EMPFNode", {}),
    ]
    assert others == [net[i] for i in (0, 1, 3, 4)]
    assert all(torch.equal(net.state_dict()[key], value) for key, value in state.items())
    assert [(n.step_mode, n.store_v_seq, n.training) for n in (net[2], net[5])] == [
        (step_mode, True, True),
        (step_mode, False, False),
    ]
    torch.testing.assert_close(net[2].decay, torch.full((3,), 0.75))
    assert net[2].threshold.tolist() == [0.5] * 3, "EM-PF's threshold is never carried over"
    net(x(step_mode))
    functional.reset_net(net)
    assert net[2].v == 0.0, "reset_net must find the new neurons"


@pytest.mark.parametrize(
    ("old", "name", "carried"),
    [
        (neuron.LIFNode(tau=4.0, v_threshold=0.7), "lmh", {"v_threshold": 0.7, "leak": 0.75}),
        (neuron.LIFNode(tau=2.0), "lmh", {"v_threshold": 1.0}),
        (neuron.IFNode(), "lmh", {"v_threshold": 1.0, "leak": 1.0}),
        (neuron.IFNode(), "hdlif", {}),
        (neuron.ParametricLIFNode(init_tau=4.0), "hdlif", {"leak": 0.75}),
        (EMPFNode(decay=0.8), "hdlif", {"leak": 0.8}),
        (EMPFNode(4, decay=0.8), "hdlif", {}),
        (EMPFNode(decay=0.8, threshold=0.3), "lmh", {"leak": 0.8}),
        (EMPFNode(parallel=True), "empf", {}),
        (LMHNode(v_threshold=2.0), "lmh", {"v_threshold": 2.0}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_what_is_carried_over(old, name, carried):
    net = nn.Sequential(nn.Linear(2, 2), old)
    row = swap_neurons(net, name)[0]
    assert row.carried_over == pytest.approx(carried)
    new = net[1]
    if "leak" in carried:
        got = new.lambda_s if name == "lmh" else new.decay
        assert got.item() == pytest.approx(carried["leak"])
    if name == "lmh":
        assert new.v_threshold == carried.get("v_threshold", 1.0)


def test_arguments_of_the_caller_come_first():
    net = network(tau=4.0)
    assert swap_neurons(net, "empf", decay=0.6)[0].carried_over == {}
    assert net[2].decay.item() == pytest.approx(0.6)
    assert swap_neurons(net, "lmh", v_threshold=3.0)[0].carried_over == pytest.approx({"leak": 0.6})


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_channels_are_learnt_from_an_example_and_the_network_stays_as_it_was(step_mode):
    net = network(step_mode)
    net(x(step_mode))
    v, state = net[5].v.clone(), copy.deepcopy(net.state_dict())
    where = {"hidden": lambda name, _: name == "2", "last": lambda name, _: name == "5"}
    swap_neurons(net, "hdlif", where["hidden"], x(step_mode), num_steps=3, membrane_norm="channels")
    assert [norm.num_features for norm in net[2].membrane_norm] == [6] * 3
    assert torch.equal(net[5].v, v) and net.training and net[1].training
    assert all(torch.equal(net.state_dict()[key], value) for key, value in state.items())
    swap_neurons(net, "hdlif", where["last"], x(step_mode), membrane_norm="channels")
    assert net[5].membrane_norm[0].num_features == 5


def test_where_factory_dtype_shared_neurons_and_nested_modules():
    shared = neuron.LIFNode()
    net = nn.ModuleDict({"a": nn.Sequential(shared, nn.Sequential(shared)), "b": neuron.IFNode(), "c": nn.Linear(2, 2)})
    net.double()
    rows = swap_neurons(net, lambda: HDLIFNode(spike_bits=2), where=lambda name, module: name.startswith("a"))
    assert [row.name for row in rows] == ["a.0"]
    assert net["a"][0] is net["a"][1][0] and net["a"][0].spike_bits == 2 and type(net["b"]) is neuron.IFNode
    assert net["a"][0].raw_decay.dtype == torch.float64


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: swap_neurons(network(), "hdlfi"), "'hdlfi' is not a registered name of neurons; known: .*hdlif"),
        (lambda: swap_neurons(nn.Linear(2, 2), "lmh"), "net=Linear: nothing inside it to replace"),
        (lambda: swap_neurons(neuron.LIFNode(), "lmh"), "net=LIFNode: nothing inside it to replace"),
        (
            lambda: swap_neurons(network(), "empf", membrane_norm="channels"),
            "example_input=None: an option is 'channels'",
        ),
        (lambda: qcfs_to_lmh(network()), "net=Sequential: nothing inside it to replace"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("levels", [2, 4])
def test_hybrid_start_equals_the_ann_for_a_constant_input(levels):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 300), QCFS(levels, threshold=1.5)).double()
    inputs = torch.randn(4, 10, dtype=torch.float64)
    expected = net(inputs)
    rows = qcfs_to_lmh(net, num_steps=levels)
    assert [tuple(row) for row in rows] == [("1", "QCFS", "LMHNode", {"v_threshold": 1.5})]
    mean = torch.stack([net(inputs) for _ in range(levels)]).mean(0)
    torch.testing.assert_close(mean, expected, rtol=0, atol=1e-12)
    assert expected.unique().numel() == levels + 1
    assert net[1].raw_mu_d.shape == (levels,) and net[1].raw_mu_d.dtype == torch.float64


def test_a_converted_deep_network_is_close_to_the_ann_and_can_be_trained_on():
    torch.manual_seed(0)
    net = nn.Sequential(layer.Linear(10, 50), QCFS(8, 2.0), layer.Linear(50, 50), QCFS(8, 2.0), layer.Linear(50, 3))
    inputs = torch.randn(20, 10)
    expected = net(inputs)
    qcfs_to_lmh(net, step_mode="m")
    functional.set_step_mode(net, "m")
    out = net(inputs.expand(64, 20, 10))
    assert torch.corrcoef(torch.stack([out.mean(0).flatten(), expected.flatten()]))[0, 1] > 0.9
    out.square().mean().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("threshold", [float("inf"), 1e3, 1e9])
def test_a_readout_is_left_alone_and_named_unless_it_is_asked_for(threshold):
    def net():
        return nn.Sequential(nn.Linear(2, 2), neuron.IFNode(v_threshold=999.0), neuron.LIFNode(v_threshold=threshold))

    left = net()
    with pytest.warns(UserWarning, match=f"^left alone as readouts: '2' .v_threshold={threshold}.; where=") as caught:
        rows = swap_neurons(left, "empf")
    assert [tuple(row) for row in rows] == [("1", "IFNode", "EMPFNode", {}), ("2", "LIFNode", "LIFNode", {})]
    assert type(left[1]) is EMPFNode and type(left[2]) is neuron.LIFNode and len(caught) == 1
    assert caught[0].filename == __file__
    asked = net()
    assert [row.new for row in swap_neurons(asked, "empf", where=lambda name, node: True)] == ["EMPFNode"] * 2
    with pytest.warns(UserWarning, match="left alone"), pytest.raises(ValueError, match="nothing inside it to replace"):
        swap_neurons(net()[1:][1:], "empf")


def test_neurons_in_plain_lists_and_dicts_are_named():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = neuron.IFNode()

    net = nn.Sequential(nn.Linear(2, 2), Block())
    net[1].hidden = [{"a": neuron.LIFNode()}, (Block(), nn.ReLU())]
    net[1].again = [net[1].act, neuron.LIFNode]
    net.table = {0: net[1]}
    for _ in range(2):  # the second time the list holds a neuron that the network no longer does
        with pytest.warns(UserWarning, match="nn.ModuleList") as caught:
            swap_neurons(net, "empf")
        assert len(caught) == 1 and caught[0].filename == __file__
        assert "either: 1.hidden[0]['a'], 1.hidden[1][0].act, 1.again[0];" in str(caught[0].message)
    assert type(net[1].act) is EMPFNode and type(net[1].hidden[0]["a"]) is neuron.LIFNode
    net[1].hidden, net[1].again = [], [net[1].act]
    net.append(neuron.IFNode())
    assert len(swap_neurons(net, "lmh", where=lambda name, node: name == "2")) == 1, "what stays is right in a list"


def current(*sizes, norm=False):
    """A network whose currents are far below the thresholds, unless they are normalised."""
    layers = []
    for size, out in zip(sizes, sizes[1:], strict=False):
        synapse = layer.Linear(size, out)
        nn.init.uniform_(synapse.weight, 0.0, 0.01)
        nn.init.zeros_(synapse.bias)
        layers += [synapse, *([layer.BatchNorm1d(out)] if norm else []), neuron.LIFNode()]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_silent_neurons_are_named_once_if_there_is_an_example(step_mode):
    torch.manual_seed(0)
    net = current(8, 6, 4)
    functional.set_step_mode(net, step_mode)
    example = torch.rand(*([4] if step_mode == "m" else []), 5, 8)
    silent = copy.deepcopy(net)
    with pytest.warns(UserWarning, match="^silent: with this example_input 1, 3 neither fire nor pass") as caught:
        swap_neurons(silent, "empf", example_input=example)
    assert len(caught) == 1 and caught[0].filename == __file__ and "batch norm" in str(caught[0].message)
    functional.reset_net(silent)
    assert not silent(example).any(), "the warning is right"

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        swap_neurons(copy.deepcopy(net), "empf")  # nothing is run
        swap_neurons(copy.deepcopy(net), "empf", example_input=torch.zeros_like(example))  # says nothing of the network
        swap_neurons(copy.deepcopy(net), "empf", example_input=example, threshold=1e-4)
        for mode in (True, False):
            alive = current(8, 6, 4, norm=True).train(mode)
            functional.set_step_mode(alive, step_mode)
            swap_neurons(alive, "empf", example_input=example)


class Broken(nn.Module):
    def forward(self, x):
        if any(isinstance(module, EMPFNode) for module in self.of):
            raise RuntimeError("broken")
        return x


def failing_factory():
    made = []

    def factory():
        if made:
            raise RuntimeError("broken")
        made.append(EMPFNode())
        return made[0]

    return factory


def test_what_fails_half_way_leaves_the_network_as_it_was():
    net = network()
    net.append(Broken())
    net[6].of = [net]  # looked through below
    Broken.of = property(lambda self: list(vars(self)["of"][0]))
    before = list(net)
    for call in (
        lambda: swap_neurons(net, failing_factory()),
        lambda: swap_neurons(net, "empf", example_input=x()),
        lambda: swap_neurons(net, "empf", membrane_norm="channels", example_input=x()),
    ):
        functional.reset_net(net)
        net(x())
        v, state = net[5].v, copy.deepcopy(net.state_dict())
        with pytest.raises(RuntimeError, match="broken"):
            call()
        assert all(a is b for a, b in zip(net, before, strict=True)) and torch.equal(net[5].v, v) and net.training
        assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
        functional.reset_net(net)
        assert net[5].v == 0.0, "reset_net must find the old neurons"


def test_synapses_are_replaced_all_or_none():
    net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    before = list(net)
    del net[2].in_features
    with pytest.raises(AttributeError, match="in_features"):
        quantize_synapses(net, "binary")
    assert all(a is b for a, b in zip(net, before, strict=True))


def test_the_hosts_simple_neurons_are_neurons():
    net = nn.Sequential(nn.Linear(2, 2), neuron.SimpleLIFNode(tau=4.0, decay_input=True))
    assert [tuple(row) for row in swap_neurons(net, "empf")] == [("1", "SimpleLIFNode", "EMPFNode", {"leak": 0.75})]
