"""Mixed precision, gradient scaling, clipping and accumulation, under every rule."""

import pytest
import torch
from lightning_fabric import Fabric
from package_names import fit_for, own
from spikingjelly.activation_based import layer, neuron
from torch import nn

from sj_online import registry
from sj_online.neuron import EMPFNode

RULES = own("trainers")
T, N, CLASSES = 4, 6, 3
LIF = {"tau": 2.0, "decay_input": False, "v_reset": None, "detach_reset": True}


def network(norm=False):
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Conv2d(2, 6, 3),
        layer.BatchNorm2d(6) if norm else nn.Identity(),
        neuron.LIFNode(**LIF),
        layer.Conv2d(6, 6, 2),
        EMPFNode(),
        layer.Flatten(),
        layer.Linear(6, CLASSES),
    )
    for module in net:
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0.1, 0.3)  # neurons that fire
    return net


def batch(N=N):
    torch.manual_seed(1)
    return torch.rand(T, N, 2, 4, 4) * 2, torch.randint(CLASSES, (N,))


def make(name, net, lr=0.1, **options):
    net = fit_for(name, net)
    rule = registry.get("trainers", name)(net, torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9), **options)
    torch.manual_seed(2)  # of the steps that random BP draws
    return rule


def gradient(net):
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.requires_grad])


def summed(rule, x, y):
    for _ in rule.gradients(x, y):
        pass
    return gradient(rule.net)


def cosine(a, b):
    return nn.functional.cosine_similarity(a, b, dim=0)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("norm", [False, True])
def test_bf16_autocast_gives_the_gradient_to_half_precision(name, norm):
    x, y = batch()
    full = summed(make(name, network(norm)), x, y)
    rule = make(name, network(norm))
    with torch.autocast("cpu", torch.bfloat16):
        half = summed(rule, x, y)
    assert cosine(half, full) > 0.99 and (half != full).any()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in rule.net.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", RULES)
def test_casts_of_the_weights_are_not_kept_over_an_update(name):
    """Inside one autocast context each step sees the weights that the step before left."""
    x, y = batch()
    moves = []
    for cache in (True, False):
        rule = make(name, network(), lr=0.5)
        before = nn.utils.parameters_to_vector(rule.net.parameters()).detach()
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache):
            rule.train_step(x, y)
        moves.append(nn.utils.parameters_to_vector(rule.net.parameters()).detach() - before)
    assert cosine(*moves) > 0.999 and abs(moves[0].norm() / moves[1].norm() - 1) < 0.01


@pytest.mark.parametrize("name", RULES)
def test_fp16_with_a_gradient_scaler(name):
    """Scaled, unscaled, clipped and stepped by torch's scaler: the parameters are close to those without it."""
    x, y = batch()
    full, half = network(), network()
    make(name, full).train_step(x, y)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    norms = []

    def before_step():
        scaler.unscale_(rule.optimizer)
        norms.append(nn.utils.clip_grad_norm_(half.parameters(), 100.0))
        scaler.step(rule.optimizer)
        scaler.update()
        return False

    rule = make(name, half, backward=lambda loss: scaler.scale(loss).backward(), before_step=before_step)
    before = nn.utils.parameters_to_vector(half.parameters()).detach()
    with torch.autocast("cpu", torch.float16):
        rule.train_step(x, y)
    moves = [nn.utils.parameters_to_vector(net.parameters()).detach() - before for net in (full, half)]
    assert norms and max(norms) < 100 and cosine(*moves) > 0.99


@pytest.mark.parametrize("name", RULES)
def test_an_overflow_skips_the_step(name):
    x, y = batch()
    net = network()
    scaler = torch.amp.GradScaler("cpu", init_scale=float("inf"))

    def before_step():
        scaler.step(rule.optimizer)
        scaler.update()
        return False

    rule = make(name, net, backward=lambda loss: scaler.scale(loss).backward(), before_step=before_step)
    before = [p.detach().clone() for p in net.parameters()]
    rule.train_step(x, y)
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize("name", RULES)
def test_fabric_runs_it(name):
    x, y = batch()
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    net = fit_for(name, network(norm=True))
    wrapped, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9))
    rule = registry.get("trainers", name)(wrapped, optimizer, backward=fabric.backward)
    torch.manual_seed(2)
    rule.train_step(x, y)
    plain = network(norm=True)
    make(name, plain).train_step(x, y)
    start = nn.utils.parameters_to_vector(network(norm=True).parameters())
    moves = [nn.utils.parameters_to_vector(each.parameters()).detach() - start.detach() for each in (net, plain)]
    assert cosine(*moves) > 0.98


@pytest.mark.parametrize("name", RULES)
def test_clipping_bounds_every_update(name):
    x, y = batch()
    net = network()
    norms = []

    def before_step():
        nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
        norms.append(gradient(net).norm().item())

    rule = make(name, net, before_step=before_step)
    rule.optimizer.param_groups[0]["momentum"] = 0.0
    before = nn.utils.parameters_to_vector(net.parameters()).detach()
    rule.train_step(x, y)
    assert norms and max(norms) < 1.001e-3
    moved = nn.utils.parameters_to_vector(net.parameters()).detach() - before
    assert 0 < moved.norm() <= 1.01 * 0.1 * sum(norms) * (5 if name == "fptt" else 1)


@pytest.mark.parametrize("name", RULES)
def test_accumulating_two_batches_is_one_batch_of_both(name):
    x, y = batch()
    net, both = network().double(), network().double()
    whole = summed(make(name, both), x.double(), y)
    rule = make(name, net, backward=lambda loss: (loss / 2).backward())
    for part in (slice(N // 2), slice(N // 2, None)):
        torch.manual_seed(2)
        summed(rule, x[:, part].double(), y[part])
    torch.testing.assert_close(gradient(net), whole, rtol=0, atol=1e-12)
    rule.update_weights()
    assert any((p != q).any() for p, q in zip(net.parameters(), both.parameters(), strict=True))
    assert all(p.grad is None for p in net.parameters())
