import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from sj_online import predict
from sj_online.deploy import export, load, stream
from sj_online.layer import BinaryLinear
from sj_online.neuron import HDLIFNode

T = 6


def network():
    torch.manual_seed(0)
    net = nn.Sequential(layer.Linear(3, 8), HDLIFNode(threshold=0.2), BinaryLinear(8, 8), neuron.LIFNode(tau=3.0))
    nn.init.normal_(net[2].weight, std=2.0)
    return net.eval()


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_a_stream_is_the_network_step_by_step(step_mode):
    net, x = network(), torch.randn(T, 2, 3)
    expected = predict(net, x, reduce="none")
    assert expected.unique().numel() > 1 and not torch.equal(expected[0], expected[-1])
    functional.set_step_mode(net, step_mode)
    net(x if step_mode == "m" else x[0])  # a state that is left over
    outputs = torch.stack(list(stream(net, x)))
    assert torch.equal(outputs, expected) and not outputs.requires_grad


@pytest.mark.parametrize("runtime", ["packed", "unpacked", "int8", "auto"])
def test_of_every_runtime(runtime, tmp_path):
    export(network(), tmp_path / "net")
    net, x = load(tmp_path / "net", network(), runtime=runtime), torch.randn(T, 2, 3)
    functional.reset_net(net)
    with torch.no_grad():
        expected = [net(x_t) for x_t in x]
    assert all(torch.equal(a, b) for a, b in zip(stream(net, x), expected, strict=True))


def test_a_reset_begins_a_sequence_and_the_frames_go_on():
    net, x = network(), 4 * torch.randn(1, 2, 3).expand(T, -1, -1)
    running = stream(net, (x_t for x_t in x))
    first = [next(running), next(running)]
    assert running.t == 2 and not torch.equal(*first)
    running.reset()
    assert running.t == 0
    assert torch.equal(next(running), first[0]) and torch.equal(next(running), first[1])
    assert len(list(running)) == T - 4


def test_it_takes_frames_only_when_it_is_asked_for_outputs_and_runs_on_without_end():
    taken = []

    def frames():
        while True:
            taken.append(1)
            yield torch.ones(1, 3)

    running = stream(network(), frames())
    assert not taken
    for _ in range(50):
        next(running)
    assert len(taken) == running.t == 50


def test_a_network_in_training_is_refused():
    with pytest.raises(ValueError, match=r"training mode; a stream runs in eval mode: net.eval\(\)"):
        stream(network().train(), [])
