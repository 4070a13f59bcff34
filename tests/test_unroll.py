"""Which axis of an output is time, and the steps of a network in either step mode."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from sj_online import predict
from sj_online.frames import Frames
from sj_online.trainer import BPTT, OTTT, SLTT, TimeSlicing
from sj_online.tree import at
from sj_online.unroll import Unroll, evaluating, stacked, step_mode

EXACT = {"rtol": 0, "atol": 1e-12}
Pair = namedtuple("Pair", "logits image")


@dataclass
class Both:
    logits: torch.Tensor
    image: torch.Tensor


FORMS = {
    "dict": lambda a, b: {"logits": a, "image": b},
    "tuple": lambda a, b: (a, b),
    "namedtuple": Pair,
    "dataclass": Both,
}


def parts(value):
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, tuple) else [value.logits, value.image]


class Coder(nn.Module):
    """Spikes, a class and an image of them, of each step or averaged over the steps."""

    def __init__(self, mode, form=None, mean=(False, False)):
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.node, self.out = layer.Linear(4, 4), neuron.LIFNode(v_threshold=0.3), layer.Linear(4, 4)
        self.form, self.mean = form, mean
        functional.set_step_mode(self, mode)
        self.double()

    def forward(self, x):
        s = self.out(self.node(self.fc(x.flatten(-2))))
        a, b = s[..., :3], s.unflatten(-1, (2, 2))
        a, b = (o.mean(0) if mean else o for o, mean in zip((a, b), self.mean, strict=True))
        return b if self.form is None else self.form(a, b)


def reference(net, x):
    """Class and image of each step, by a loop of one step at a time."""
    net = Coder("s", lambda a, b: (a, b))
    with torch.no_grad():
        outputs = [net(x_t) for x_t in x]
    return [torch.stack(part) for part in zip(*outputs, strict=True)]


def data(T, N):
    torch.manual_seed(1)
    return torch.rand(T, N, 2, 2, dtype=torch.float64) * 2


@pytest.mark.parametrize(("T", "N"), [(5, 1), (1, 5), (1, 1), (4, 4), (2, 2), (3, 2), (2, 3), (6, 3)])
@pytest.mark.parametrize("mean", [False, True])
def test_an_image_of_each_step_and_a_mean_image_are_told_apart_at_any_size(T, N, mean):
    x = data(T, N)
    net = Coder("m", mean=(mean, mean))
    with torch.no_grad():
        got = Unroll(net, Frames(x))(range(T))
    _, images = reference(net, x)
    assert got.shape == (T, N, 2, 2)
    torch.testing.assert_close(got, images.mean(0).expand(T, N, 2, 2) if mean else images, **EXACT)
    torch.testing.assert_close(predict(net, x), images.mean(0), **EXACT)


@pytest.mark.parametrize("size", [(3, 3), (4, 2)])
def test_each_tensor_of_an_output_has_its_own_answer(size):
    x, net = data(*size), Coder("m", FORMS["dict"], mean=(False, True))
    with torch.no_grad():
        got = Unroll(net, Frames(x))(range(len(x)))
    logits, images = reference(net, x)
    torch.testing.assert_close(got["logits"], logits, **EXACT)
    torch.testing.assert_close(got["image"], images.mean(0).expand_as(images), **EXACT)


def test_the_gradient_of_a_mean_image_is_that_of_its_loss():
    for N in (1, 5):  # T == N too
        x, y = data(5, N), torch.rand(N, 2, 2, dtype=torch.float64)
        net = Coder("m", mean=(True, True))
        rule = BPTT(net, torch.optim.SGD(net.parameters(), 0.1), loss_fn=lambda o, y: (o - y).square().mean())
        list(rule.gradients(x, y))
        ours = net.fc.weight.grad.clone()
        net.zero_grad()
        functional.reset_net(net)
        (net(x) - y).square().mean().backward()
        torch.testing.assert_close(ours, net.fc.weight.grad, **EXACT)
        assert ours.any()


def loss(output, y):
    a, b = parts(output)
    labels, image = parts(y)
    return nn.functional.cross_entropy(a, labels) + (b - image).square().mean()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("make", [SLTT, BPTT, TimeSlicing, OTTT])
def test_outputs_and_targets_of_any_form_are_those_of_plain_tensors(form, mode, make):
    """The oracle packs both outputs into one tensor and takes the same loss of it."""
    T, N = 4, 4
    x, labels, image = data(T, N), torch.tensor([0, 2, 1, 1]), torch.rand(N, 2, 2, dtype=torch.float64)

    def packed_loss(output, y):
        return loss((output[:, 0, :3], output[:, 1].unflatten(-1, (2, 2))), (labels, image))

    class Packed(Coder):
        def forward(self, x):
            a, b = super().forward(x)
            return torch.stack([torch.cat([a, a[..., :1] * 0], -1), b.flatten(-2)], -2)

    results = []
    for net, fn, y in (
        (Coder(mode, FORMS[form]), loss, FORMS[form](labels, image)),
        (Packed(mode, FORMS["tuple"]), packed_loss, labels),
    ):
        rule = make(net, torch.optim.SGD(net.parameters(), 0.1), loss_fn=fn)
        results.append((rule.train_step(x, y), nn.utils.parameters_to_vector(net.parameters()), net))
    (ours, weights, net), (packed, expected, _) = results
    assert type(ours.output) is type(FORMS[form](labels, image))
    torch.testing.assert_close(weights, expected, **EXACT)
    torch.testing.assert_close(ours.loss, packed.loss, **EXACT)
    torch.testing.assert_close(parts(ours.output)[1].flatten(-2), packed.output[:, 1], **EXACT)
    assert (weights - nn.utils.parameters_to_vector(Coder(mode).parameters())).abs().max() > 1e-4
    for reduce in ("mean", "none", "running"):
        got = parts(predict(net, x, reduce=reduce))
        plain = Coder(mode)
        plain.load_state_dict(net.state_dict())
        torch.testing.assert_close(got[1], predict(plain, x, reduce=reduce), **EXACT)


@pytest.mark.parametrize("mode", ["s", "m"])
def test_an_output_of_another_batch_is_one_line(mode):
    class Halves(Coder):
        def forward(self, x):
            s = super().forward(x)
            return s[..., :2, :, :] if self.fc.step_mode == "m" else s[:2]

    net = Halves(mode)
    for call in (
        lambda: SLTT(net, torch.optim.SGD(net.parameters(), 0.1)).train_step(data(5, 4), torch.zeros(4, 2, 2)),
        lambda: predict(net, data(5, 4)),
        lambda: Unroll(net, Frames(data(4, 4)))(range(4)),
    ):
        with pytest.raises(ValueError, match=r"the network's output has the shape .* with the N=\d of x") as error:
            call()
        assert "\n" not in str(error.value)


def test_what_is_found_out_of_a_network_follows_its_changes_and_leaves_it_alone():
    net, x = Coder("m"), data(3, 3)
    unroll = Unroll(net, Frames(x))
    calls = []
    net.fc.register_forward_hook(lambda *_: calls.append(1))
    unroll(range(3))
    v = net.node.v.clone()
    assert len(calls) == 2 and net.training
    unroll(range(3))
    assert len(calls) == 3, "looked at once"
    assert not torch.equal(net.node.v, v)
    net.node = neuron.IFNode(step_mode="m")
    unroll(range(3))
    assert len(calls) == 5, "and again when it is another"


def test_stacked_and_at_are_inverse():
    outputs = [Pair(torch.full((2,), t), [torch.full((3,), -t)]) for t in range(3)]
    together = stacked(outputs)
    assert together.logits.shape == (3, 2)
    assert torch.equal(at(together, 2).image[0], outputs[2].image[0])


def test_modes_are_put_back_even_by_an_error():
    net = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with pytest.raises(KeyError), evaluating(net):
        assert not net[0].training
        raise KeyError
    assert net.training and net[0].training and not net[1].training


def test_the_step_mode_is_that_of_the_neurons():
    assert step_mode(nn.Sequential(nn.Linear(2, 2))) == "s"
    assert step_mode(nn.Sequential(layer.Linear(2, 2), neuron.LIFNode(step_mode="m"))) == "m"
    with pytest.raises(ValueError, match="'0' is in step mode 's' and '1' in 'm'"):
        step_mode(nn.Sequential(neuron.LIFNode(), neuron.LIFNode(step_mode="m")))
