"""Prediction without a rule; and the layers that mix the steps of a sequence, found by running them."""

import threading
import warnings

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from spikingjelly.activation_based.model import spiking_resnet
from torch import nn

from sj_online import predict, registry
from sj_online.frames import Frames
from sj_online.prediction import mixing
from sj_online.trainer import BPTT, SLTT, TimeSlicing

T, N = 6, 4
EXACT = {"rtol": 0, "atol": 1e-12}


class Over(nn.Module):
    """A neuron, and behind it a layer over all the steps."""

    def __init__(self, mixer):
        super().__init__()
        torch.manual_seed(0)
        self.node, self.mixer, self.out = neuron.LIFNode(v_threshold=0.3, step_mode="m"), mixer(), nn.Linear(8, 3)
        self.double()

    def forward(self, x):
        y = self.mixer(self.node(x))
        return self.out(y[0] if isinstance(y, tuple) else y)


class TemporalConv(nn.Module):
    def __init__(self, dilation=1):
        super().__init__()
        self.conv, self.pad = nn.Conv1d(8, 8, 2, dilation=dilation), dilation

    def forward(self, x):
        y = nn.functional.pad(x.permute(1, 2, 0), (self.pad, 0))
        return self.conv(y).permute(2, 0, 1)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2)

    def forward(self, x):
        return self.inner(x, x, x, need_weights=False)[0]


class Flip(nn.Module):
    """The mean over the steps is that of the steps as they come."""

    def forward(self, x):
        return x.flip(0)


class OfSixSteps(nn.Module):
    """Takes all the steps or none."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.rand(T, T))

    def forward(self, x):
        return (self.w @ x.flatten(1)).view_as(x)


class CentredOnTheMean(nn.Module):
    def forward(self, x):
        return x - x.mean(0, keepdim=True)


def in_slices(node):
    functional.set_step_mode(node, "m")
    return node


MIXERS = {
    "gru": lambda: nn.GRU(8, 8),
    "lstm": lambda: nn.LSTM(8, 8),
    "rnn": lambda: nn.RNN(8, 8),
    "conv": TemporalConv,
    "dilated": lambda: TemporalConv(dilation=4),
    "attention": Attention,
    "flip": Flip,
    "of_six": OfSixSteps,
    "centred": CentredOnTheMean,
    "non_spiking": lambda: in_slices(neuron.NonSpikingLIFNode(decode="mean-mem")),
    "psn": lambda: in_slices(neuron.PSN(T)),
}


def data(steps=T, *shape):
    torch.manual_seed(1)
    return torch.rand(steps, N, *(shape or (8,)), dtype=torch.float64) * 2


def sgd(net):
    return torch.optim.SGD(net.parameters(), 0.1)


Y = torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("make", [SLTT, lambda *args: TimeSlicing(*args, k=2)], ids=["sltt", "slices"])
def test_a_layer_that_mixes_time_is_named_and_predicted_whole(mixer, make):
    net, x = Over(MIXERS[mixer]), data()
    if mixer != "non_spiking":  # which has a last step or a mean, as it is asked
        with torch.no_grad():
            want = net(x)
        functional.reset_net(net)
        for reduce, expected in (("mean", want.mean(0)), ("none", want)):
            torch.testing.assert_close(predict(net, x, reduce=reduce), expected, **EXACT)
    with pytest.raises(ValueError, match=r"'mixer.*mixes the steps of a sequence") as error:
        make(net, sgd(net)).train_step(x, Y)
    assert "\n" not in str(error.value)


def test_what_mixes_time_in_the_networks_own_forward_is_the_network():
    class Differences(Over):
        def forward(self, x):
            return super().forward(torch.cat([x[:1], x[1:] - x[:-1]]))

    net = Differences(nn.Identity)
    with pytest.raises(ValueError, match=r"the network \(Differences\) mixes the steps"):
        SLTT(net, sgd(net)).train_step(data(), Y)
    BPTT(net, sgd(net)).train_step(data(), Y)


def test_a_short_sequence_first_does_not_hide_what_a_longer_one_shows():
    net = Over(MIXERS["gru"])
    rule = TimeSlicing(net, sgd(net), k=2)
    rule.train_step(data(2), Y)
    with pytest.raises(ValueError, match="'mixer'.*mixes the steps"):
        rule.train_step(data(), Y)


def test_a_stream_is_looked_at_as_a_sequence_is():
    net = Over(MIXERS["gru"])
    with pytest.raises(ValueError, match="'mixer'.*mixes the steps"):
        next(SLTT(net, sgd(net)).stream((x, Y) for x in data()))


def resnet(mode):
    net = spiking_resnet.spiking_resnet18(
        spiking_neuron=neuron.LIFNode, surrogate_function=surrogate.ATan(), num_classes=3
    )
    functional.set_step_mode(net, mode)
    return net


class InSteps(nn.Module):
    """A layer made for slices of k steps."""

    def __init__(self, norm):
        super().__init__()
        self.conv, self.norm = layer.Conv2d(2, 4, 1), norm
        self.node, self.head = neuron.LIFNode(), nn.Sequential(layer.AdaptiveAvgPool2d(1), layer.Flatten())
        functional.set_step_mode(self, "m")
        self.double()

    def forward(self, x):
        return self.head(self.node(self.norm(self.conv(x))))


STEPWISE = {
    "dropout": (lambda: Over(lambda: nn.Dropout(0.5)), (8,)),
    "host's dropout": (lambda: Over(lambda: layer.Dropout(0.5, step_mode="m")), (8,)),
    "delay": (lambda: Over(lambda: layer.Delay(2, step_mode="m")), (8,)),
    "recurrent": (
        lambda: Over(
            lambda: layer.ElementWiseRecurrentContainer(
                neuron.LIFNode(), element_wise_function=lambda y, x: y + x, step_mode="m"
            )
        ),
        (8,),
    ),
    "batch norm": (lambda: InSteps(layer.BatchNorm2d(4)), (2, 5, 5)),
    "tdBN": (lambda: InSteps(layer.ThresholdDependentBatchNorm2d(1.0, 1.0, 4)), (2, 5, 5)),
    "TEBN": (lambda: InSteps(layer.TemporalEffectiveBatchNorm2d(2, 4)), (2, 5, 5)),
}


@pytest.mark.parametrize("name", STEPWISE)
def test_no_false_alarm(name):
    build, shape = STEPWISE[name]
    net = build()
    with warnings.catch_warnings(action="error", category=UserWarning):
        assert mixing(net, Frames(data(T, *shape)), 2) is None
        TimeSlicing(net, sgd(net), k=2).train_step(data(T, *shape), Y)
        if "BN" not in name:
            SLTT(net, sgd(net)).train_step(data(T, *shape), Y)


@pytest.mark.parametrize("model", ["spiking_resnet18", "ms_resnet18", "hdlif_resnet18", "sltt_preact_resnet18"])
def test_no_false_alarm_on_networks(model):
    torch.manual_seed(0)
    if model == "spiking_resnet18":
        net = resnet("m")
    elif model == "ms_resnet18":
        from spikingjelly.activation_based.model import ms_resnet

        net = ms_resnet.ms_resnet18(spiking_neuron=neuron.LIFNode, num_classes=3)
    else:
        net = registry.get("models", model)(num_classes=3, in_channels=3, num_steps=3, width=4)
    functional.set_step_mode(net, "m")
    x = torch.rand(3, 2, 3, 32, 32)
    with warnings.catch_warnings(action="error", category=UserWarning):
        assert mixing(net, Frames(x), 1) is None
        mean = predict(net, x)
    net.eval()
    functional.reset_net(net)
    with torch.no_grad():
        whole = net(x)
    torch.testing.assert_close(mean, whole.mean(0) if whole.dim() == 3 else whole, rtol=1e-4, atol=1e-5)


def test_a_network_that_is_random_in_eval_mode_says_so_once():
    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    net = Over(Noise)
    with pytest.warns(UserWarning, match="random in eval mode") as said:
        SLTT(net, sgd(net)).train_step(data(), Y)
        TimeSlicing(net, sgd(net), k=1).train_step(data(), Y)
        predict(net, data())
    assert len(said) == 1


def test_looking_leaves_the_network_as_it_was():
    net = Over(lambda: nn.Dropout(0.5))
    net(data(2))
    v = net.node.v
    before, frames = v.clone(), Frames(torch.rand(T, N, 8, dtype=torch.float64))
    random = torch.get_rng_state()
    assert mixing(net, frames, 1) is None
    assert net.node.v is v and torch.equal(v, before) and torch.equal(torch.get_rng_state(), random) and net.training


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("static", [False, True])
def test_predict_is_the_loop_in_eval_mode(mode, static):
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Linear(8, 6), layer.BatchNorm1d(6), neuron.LIFNode(v_threshold=0.3), layer.Dropout(), layer.Linear(6, 3)
    )
    net.double()[1].running_mean += 0.2
    net[3].eval()
    x = data()
    steps = [x[0]] * T if static else list(x)
    functional.reset_net(net.eval())
    with torch.no_grad():
        want = torch.stack([net(x_t) for x_t in steps])
    functional.set_step_mode(net.train(), mode)
    net[3].eval()
    functional.reset_net(net)
    arguments = (x[0], T) if static else (x,)
    net(x[:1] if mode == "m" else x[0])  # leaves a state, and statistics
    with torch.no_grad():
        net[1].running_mean.fill_(0.2), net[1].running_var.fill_(1)
    running = torch.stack([want[: t + 1].mean(0) for t in range(T)])
    for reduce, expected in (("mean", want.mean(0)), ("none", want), ("running", running)):
        got = predict(net, *arguments, reduce=reduce)
        torch.testing.assert_close(got, expected, **EXACT)
        assert not got.requires_grad
    assert net.training and not net[3].training
    assert (running[-1] - want[-1]).abs().max() > 1e-3


def test_predict_refuses_another_reduction_and_no_time():
    net = nn.Sequential(layer.Linear(8, 3))
    with pytest.raises(ValueError, match="reduce='sum' is not one of 'mean', 'none', 'running'"):
        predict(net, data(), reduce="sum")
    with pytest.raises(ValueError, match="no time axis"):
        predict(net, torch.rand(8))


def test_memory_of_a_prediction_does_not_grow_with_time():
    """One step at a time: no module sees more than one."""
    net = nn.Sequential(layer.Linear(8, 6), neuron.LIFNode(), layer.Linear(6, 3))
    functional.set_step_mode(net, "m")
    steps = []
    predict(net, torch.rand(9, N, 8))
    net[0].register_forward_hook(lambda m, x, y: steps.append(len(x[0])))
    predict(net, torch.rand(9, N, 8))
    assert steps == [1] * 9


def test_what_is_no_number_is_the_same_in_slices():
    x = data()
    x[0, 0, 0] = torch.nan
    net = Over(lambda: nn.Linear(8, 8))
    functional.set_step_mode(net, "m")
    net.node = layer.Linear(8, 8, step_mode="m").double()
    assert mixing(net, Frames(x), 1) is None


def test_a_network_that_cannot_be_copied_is_judged_by_what_was_found():
    net = Over(MIXERS["gru"])
    net.lock = threading.Lock()
    with pytest.raises(ValueError, match="'mixer' .* mixes the steps"):
        SLTT(net, sgd(net)).train_step(data(), Y)


def test_rounding_that_decides_about_a_spike_is_no_mixing():
    """In float32 a product of all steps may round other than that of one, and a neuron makes a spike of it."""

    class Rounds(nn.Module):
        def forward(self, x):
            return x if x.dtype == torch.float64 else x + 1e-2 * (len(x) > 1)

    net = Over(Rounds).float()
    with warnings.catch_warnings(action="error", category=UserWarning):
        assert mixing(net, Frames(data().float()), 1) is None
    assert mixing(net.double(), Frames(data().double()), 1) is None
