"""A norm is folded where it follows in data flow, found by running; what was not seen to follow is left alone."""

import copy

import pytest
import torch
from fold_nets import Net, X, norms, trained
from spikingjelly.activation_based import functional, layer
from torch import nn

from sj_online.deploy import export, fold_norms, load
from sj_online.layer import BinaryLinear, StepBatchNorm2d, TernaryConv2d


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = layer.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.norm1, self.norm2 = layer.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False)
        self.short = nn.ModuleDict({"norm": layer.BatchNorm2d(3), "conv": layer.Conv2d(3, 3, 1)})

    def forward(self, x):
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu_()))
        return y + self.short["norm"](self.short["conv"](x))


class PreAct(nn.Sequential):
    def forward(self, x):
        return self[0](self[1](x).relu())


class Twice(layer.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


def looped(net, x):
    return torch.stack([net.norm(net.conv(x * t)) for t in range(3)])


def after_a_view(net, x):
    return net.norm(net.conv(x)[:].view(x.shape).detach())


FOLLOWS = {
    "own forward": lambda: Net(),
    "residual": Residual,
    "every step": lambda: Net(looped),
    "view": lambda: Net(after_a_view),
    "step norm": lambda: Net(norm=StepBatchNorm2d),
    "container of the host": lambda: layer.SeqToANNContainer(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)),
}


@pytest.mark.parametrize("name", FOLLOWS)
def test_what_follows_is_folded_in_any_container(name):
    net = trained(FOLLOWS[name]())
    x = X[None] if name.startswith("container") else X
    before = net(x)
    plain = fold_norms(copy.deepcopy(net))
    assert norms(plain) == norms(net) > 0  # without an example nothing is proved
    assert fold_norms(net, x) is net and norms(net) == 0
    torch.testing.assert_close(net(x), before, rtol=0, atol=1e-12)
    other = x.flip(0) * 2 - 1
    torch.testing.assert_close(net(other), plain(other), rtol=0, atol=1e-12)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_a_linear_layer_takes_a_norm_of_features_but_not_of_positions(packed, step_mode, tmp_path):
    def network():
        torch.manual_seed(3)
        return nn.Sequential((BinaryLinear if packed else layer.Linear)(3, 3), layer.BatchNorm1d(3))

    net = trained(network())
    export(net, tmp_path / "net")
    folded = load(tmp_path / "net", network()) if packed else copy.deepcopy(net)
    positions = copy.deepcopy(folded)
    functional.set_step_mode(nn.ModuleList([net, folded]), step_mode)
    x = torch.rand(5, 4, 3, dtype=torch.float64)[slice(None) if step_mode == "m" else 0]
    expected = net(x)
    assert norms(fold_norms(copy.deepcopy(folded))) == 1  # [N, L, C] would be normalised over L
    torch.testing.assert_close(fold_norms(folded, x)(x), expected, rtol=0, atol=1e-12)
    assert norms(folded) == 0
    x = torch.rand(5, 3, 3, dtype=torch.float64)
    expected = positions(x)
    assert torch.equal(fold_norms(positions, x)(x), expected) and norms(positions) == 1


def kept(net, x):
    net.last = net.conv(x)
    return net.norm(net.last)


def changed(net, x):
    y = net.conv(x)
    y.view(-1).add_(1)
    return net.norm(y)


def one_of_two(net, x):
    first = net.conv(x)
    return net.norm(first) + net.conv(x)


STAYS = {
    "residual around the norm": lambda net, x: (y := net.conv(x)) + net.norm(y),
    "returned": lambda net, x: (y := net.conv(x), net.norm(y)),
    "kept": kept,
    "changed in place": changed,
    "channels turned": lambda net, x: net.norm(net.conv(x.repeat(1, 1, 1, 1)[..., :3, :3]).transpose(1, 2)),
    "part": lambda net, x: net.norm(net.conv(x)[1:]),
    "synapse called twice": one_of_two,
    "norm called twice": lambda net, x: net.norm(net.conv(x)) + net.norm(x),
    "norm of a sum": lambda net, x: net.norm(net.conv(x) + 1),
    "weight used elsewhere": lambda net, x: net.norm(net.conv(x)) * net.conv.weight.mean(),
    "statistics used elsewhere": lambda net, x: net.norm(net.conv(x)) + net.norm.running_mean.sum(),
    "forward called": lambda net, x: net.norm(net.conv.forward(x)),
    "norm's forward called": lambda net, x: net.norm.forward(net.conv(x)),
    "not called": lambda net, x: x * 1,
}


@torch.no_grad()
@pytest.mark.parametrize("way", STAYS)
def test_what_goes_elsewhere_too_is_left_alone(way):
    net = trained(Net(STAYS[way]))
    before = net(X)
    after = fold_norms(net, X)(X)
    assert norms(net) == 1
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def hooked(net, member):
    getattr(net, member).register_forward_hook(lambda module, args, output: output + 1)
    return net


def patched(net):
    net.conv.forward = lambda x: x + 1
    return net


def shared(net):
    net.again = net.conv
    return net


def norm_training(net):
    net.norm.train()
    net.norm.momentum = 0.0  # its statistics stay
    return net


MODULES = {
    "subclass of a container": (lambda net: PreAct(net.conv, net.norm), 1),
    "subclass of a norm": (lambda net: nn.Sequential(net.conv, Twice(3)), 1),
    "hook on the synapse": (lambda net: hooked(net, "conv"), 1),
    "hook on the norm": (lambda net: hooked(net, "norm"), 1),
    "forward replaced": (patched, 1),
    "two places": (shared, 1),
    "norm in training mode": (norm_training, 1),
    "no running statistics": (lambda net: Net(norm=lambda n: nn.BatchNorm2d(n, track_running_stats=False)), 1),
    "latent weights": (lambda net: nn.Sequential(TernaryConv2d(3, 3, 1), net.norm), 1),
    "parametrised": (lambda net: nn.Sequential(nn.utils.parametrizations.weight_norm(net.conv), net.norm), 1),
    "negative control": (lambda net: net, 0),
}


@pytest.mark.parametrize("example", [False, True])
@pytest.mark.parametrize("container", [False, True])
@pytest.mark.parametrize("case", MODULES)
def test_modules_that_do_more_than_their_class_says_are_left_alone(case, container, example):
    change, left = MODULES[case]
    net = trained(Net()).eval()
    net = change(net).double()
    if container and isinstance(net, Net):
        net = nn.Sequential(net.conv, net.norm, *([net.again] if case == "two places" else []))
    trained_twice = [m for m in net.modules() if isinstance(m, Twice)]
    for module in trained_twice:
        nn.init.normal_(module.eval().running_mean)
    net.training = False
    before = net(X)
    fold_norms(net, X if example else None)
    assert norms(net) == (left if example or container else 1)
    torch.testing.assert_close(net(X), before, rtol=0, atol=1e-12 if left == 0 else 0)


def by_value(read):
    def forward(net, x):
        return net.norm(net.conv(x)) if read(x) else net.conv(x)

    return forward


READS = {
    "bool": lambda x: x.mean() > 0,
    "item": lambda x: x.sum().item() > 0,
    "list": lambda x: x.flatten().tolist()[0] > 0,
    "numpy": lambda x: x.numpy().mean() > 0,
    "equal": lambda x: torch.equal(x, x.abs()),
    "mask": lambda x: len(x[x < 0]) == 0,
    "nonzero": lambda x: len(x.clamp(max=0).nonzero()) == 0,
}


@pytest.mark.parametrize("read", READS)
def test_a_path_that_depends_on_values_is_not_taken_for_the_only_one(read):
    net = trained(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), Net(by_value(READS[read]))))
    inputs = X, -X
    with torch.no_grad():
        before = [net(x) for x in inputs]
        with pytest.warns(UserWarning, match="reads values of tensors"):
            fold_norms(net, X)
        assert isinstance(net[1], nn.Identity) and norms(net) == 1
        for x, expected in zip(inputs, before, strict=True):
            torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-12)


def test_integer_indices_shapes_and_random_numbers_are_no_values_of_tensors():
    index = torch.tensor([2, 0, 1])
    net = trained(Net(lambda net, x: net.norm(net.conv(x[:, index] + torch.rand_like(x))) * len(x)))
    assert norms(fold_norms(net, X)) == 0


@pytest.mark.parametrize(
    ("conv", "norm"),
    [
        (nn.Conv2d(3, 3, 1), nn.BatchNorm1d(3)),
        (nn.Conv2d(3, 4, 1), nn.BatchNorm2d(3)),
        (nn.ConvTranspose2d(3, 3, 1), nn.BatchNorm2d(3)),
        (layer.Conv1d(3, 4, 1), layer.BatchNorm1d(4, step_mode="m")),  # [N, C, L] taken for [T, N, C]
    ],
)
def test_without_an_example_sizes_dimensions_and_step_modes_must_agree(conv, norm):
    assert norms(fold_norms(nn.Sequential(conv, norm).eval())) == 1


def test_a_sequential_inside_an_own_forward_is_left_without_an_example():
    """The parent may call the parts alone."""
    body = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    net = trained(Net(lambda net, x: net.body[0](x), norm=lambda n: nn.Identity(), body=body))
    assert norms(fold_norms(net)) == norms(fold_norms(net, X)) == 1
    net.way = lambda net, x: net.body(x)
    assert norms(fold_norms(net)) == 1 and norms(fold_norms(net, X)) == 0
