"""The host's registries, monitors, counters and memory optimiser know our neurons."""

import copy
from functools import partial

import pytest
import torch
from spikingjelly.activation_based import functional, layer, memopt, monitor, neuron
from spikingjelly.activation_based.distributed.vision import NeuronConfig
from spikingjelly.activation_based.model.spikformer import SpikformerCIFAR10Config
from spikingjelly.activation_based.op_counter import DispatchCounterMode, MACCounter, NeuronStateCounter, SynOpCounter
from torch import nn

from sj_online.neuron import EMPFNode, HDLIFNode, LMHNode

NODES = [EMPFNode, HDLIFNode, LMHNode]
T, N = 4, 2


def network(node, step_mode="m"):
    torch.manual_seed(0)
    net = nn.Sequential(layer.Linear(6, 8), node(store_v_seq=True), layer.Linear(8, 3), node())
    functional.set_step_mode(net, step_mode)
    return net


def run(net, x, step_mode):
    functional.reset_net(net)
    return net(x) if step_mode == "m" else torch.stack([net(x_t) for x_t in x])


def counts(net, x, step_mode, counter):
    with DispatchCounterMode([counter]):
        run(net, x, step_mode)
    return counter


@pytest.mark.parametrize("node", NODES)
def test_a_serialised_model_configuration_names_them(node):
    config = NeuronConfig(f"{node.__module__}.{node.__qualname__}", {"num_steps": T})
    model = SpikformerCIFAR10Config(time_steps=T, num_classes=3, neuron_config=config)
    restored = type(model).from_dict(model.as_dict())
    net = restored.get_builder_cls()(restored)._build_canonical_model()
    nodes = [m for m in net.modules() if isinstance(m, neuron.BaseNode)]
    assert nodes and all(type(m) is node and m.num_steps == T for m in nodes)


class MyEMPF(EMPFNode):
    pass


@pytest.mark.parametrize("node", [*NODES, MyEMPF])
def test_the_state_counter_sees_into_the_sequence_operator(node):
    net, x = network(node), torch.rand(T, N, 6)
    states = 2 if node is LMHNode else 1
    moved = T * states * 4 * N * (8 + 3)
    counter = counts(net, x, "m", NeuronStateCounter(strict=True))
    expected = {"state_reads": moved, "state_writes": moved, "neuron_logical_steps": T * N * (8 + 3)}
    assert counter.get_metric_counts()["Global"] == expected
    assert counter.get_metric_counts()["Sequential.3"]["state_writes"] == T * states * 4 * N * 3
    parallel = counts(network(partial(EMPFNode, parallel=True)), x, "m", NeuronStateCounter())
    assert not parallel.get_metric_counts(), "it has no membrane"


def test_a_rule_of_the_caller_comes_first():
    def mine(module, func, args, kwargs, out, state_keys):
        return {"state_reads": 7} if func is torch.ops.sj_online.empf.default else {}

    net, x = network(EMPFNode), torch.rand(T, N, 6)
    counter = counts(net, x, "m", NeuronStateCounter(extra_state_rules={EMPFNode: mine}))
    assert counter.get_metric_counts()["Global"]["state_reads"] == 2 * 7


@pytest.mark.parametrize("node", NODES)
def test_operation_counters_count_the_synapses_equally_in_both_modes(node):
    x = torch.rand(T, N, 6)
    for counter in (SynOpCounter, MACCounter):
        totals = [counts(network(node, m), x, m, counter()).get_total() for m in "sm"]
        if counter is MACCounter:
            assert totals[1] >= T * N * 6 * 8
        else:
            assert totals[0] == totals[1]


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("node", NODES)
def test_monitors(node, step_mode):
    net, x = network(node, step_mode), torch.rand(T, N, 6)
    outputs = monitor.OutputMonitor(net, instance=node)
    potentials = monitor.AttributeMonitor("v_seq", False, net, instance=node)
    out = run(net, x, step_mode)
    calls = 1 if step_mode == "m" else T
    assert len(outputs.records) == 2 * calls and outputs.monitored_layers == ["1", "3"]
    last = outputs["3"] if step_mode == "s" else outputs["3"][0]
    assert torch.equal(torch.stack(list(last)), out)
    assert potentials["1"][-1].shape == (T, N, 8)


@pytest.mark.parametrize("node", NODES)
def test_memory_optimiser_with_equal_gradients(node):
    plain, x = network(node), torch.rand(T, N, 6)
    optimised = copy.deepcopy(plain)
    optimised = memopt.optimize_memory(optimised, node, lambda net: run(net, x, "m"), level=1, compress=False)
    grads = []
    for net in (plain, optimised):
        grads.append(torch.autograd.grad(run(net, x, "m").sum(), list(net.parameters())))
    torch.testing.assert_close(grads[0], grads[1])
    assert any("checkpoint" in type(m).__name__.lower() for m in optimised.modules())
