"""BSO and T-BSO by hand, and as what they are: latent weights."""

import copy

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import layer, neuron
from torch import Tensor, nn

from sj_online.app.build import build
from sj_online.app.recipe import Recipe
from sj_online.layer import BinaryConv2d, BinaryLinear
from sj_online.optim import BSO, binary_parameters, bso
from sj_online.trainer import SLTT

SHAPE = (5, 7)


def gradients(count: int = 40) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(SHAPE, dtype=torch.float64) for _ in range(count)]


def weight() -> nn.Parameter:
    torch.manual_seed(0)
    return nn.Parameter(torch.randn(SHAPE, dtype=torch.float64).sign())


def run(grads: list[Tensor], **options) -> list[Tensor]:
    """The weights behind each update."""
    w = weight()
    opt = BSO([w], **options)
    found = []
    for g in grads:
        w.grad = g.clone()
        opt.step()
        found.append(w.detach().clone())
    return found


def by_hand(grads: list[Tensor], gamma: float, beta1: float, beta2: float, T: int | None, *, reset=None, one_v=False):
    w, m, v, found = weight().detach(), torch.zeros(SHAPE).double(), [0.0] * (T or 1), []
    for k, g in enumerate(grads):
        m = (1 - beta1) * m + beta1 * g
        limit = gamma
        if T:
            t = 0 if one_v else k % T
            v[t] = (1 - beta2) * v[t] + beta2 * g.square().mean()
            limit = gamma * (v[t].sqrt() + 1e-10)
        flips = w * m > limit
        w = torch.where(flips, -w, w)
        if (not T) if reset is None else reset:
            m = torch.where(flips, 0.0, m)
        found.append(w)
    return found


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("T", [None, 1, 4])
def test_flips_are_those_of_the_equations(T):
    # The steps' gradients differ in size, so that a v of each step is told from one of all.
    grads = [g * (1 + 3 * (k % 4)) for k, g in enumerate(gradients())]
    options = {"threshold": 0.2 if T else 0.05, "beta1": 0.1, "beta2": 0.05}
    got = run(grads, num_steps=T, **options)
    expected = by_hand(grads, *options.values(), T)
    assert same(got, expected) and not torch.equal(got[0], got[-1])
    halved = by_hand(grads, options["threshold"] / 2, 0.1, 0.05, T)
    emptied = by_hand(grads, *options.values(), T, reset=T is not None)
    assert not same(got, halved) and not same(got, emptied)
    if T == 4:
        assert not same(got, by_hand(grads, *options.values(), T, one_v=True))


def test_without_threshold_t_bso_is_the_sign_of_sgd_on_latent_weights_with_decay_1():
    grads, beta1 = gradients(), 0.01
    w = weight()
    opt = BSO([w], threshold=1e-300, beta1=beta1, beta2=0.1, num_steps=4)
    latent = nn.Parameter(torch.zeros(SHAPE, dtype=torch.float64))
    sgd = torch.optim.SGD([latent], lr=beta1, weight_decay=1.0)
    for g in grads:
        w.grad, latent.grad = g.clone(), g.clone()
        opt.step()
        sgd.step()
        torch.testing.assert_close(opt.state[w]["m"], -latent.detach(), rtol=0, atol=1e-12)
        assert torch.equal(w.detach(), latent.detach().sign())
    held = run(grads, threshold=0.5, beta1=beta1, beta2=0.1, num_steps=4)[-1]
    assert not torch.equal(held, latent.detach().sign())


def test_it_is_a_sign_with_hysteresis():
    grads, gamma = gradients(), 0.03
    w, m = weight().detach(), torch.zeros(SHAPE).double()
    expected = []
    for g in grads:
        m = 0.9 * m + 0.1 * g
        w, m = torch.where(m.abs() > gamma, -m.sign(), w), torch.where((m.abs() > gamma) & (w * m > 0), 0.0, m)
        expected.append(w)
    got = run(grads, threshold=gamma, beta1=0.1)
    assert same(got, expected)


def test_t_bso_does_not_know_the_scale_of_the_loss_and_bso_does():
    grads, larger = gradients(), [10 * g for g in gradients()]
    t_bso = {"threshold": 0.2, "beta1": 0.1, "beta2": 0.05, "num_steps": 4}
    assert same(run(grads, **t_bso), run(larger, **t_bso))
    assert not same(run(grads, threshold=0.05, beta1=0.1), run(larger, threshold=0.05, beta1=0.1))


def test_the_start_is_the_sign_and_of_new_layers_that_of_the_distance_from_the_mean():
    mixed, new, ones = torch.tensor([-0.2, 0.0, 0.3]), torch.rand(50) * 1e-3, torch.ones(3)
    expected = torch.where(new < new.mean(), -1.0, 1.0)
    BSO([mixed, new, ones])
    assert mixed.tolist() == [-1, 1, 1] and torch.equal(new, expected) and ones.tolist() == [1, 1, 1]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        layer.Conv2d(1, 8, 3, padding=1, bias=False), layer.BatchNorm2d(8), neuron.LIFNode(),
        BinaryConv2d(8, 8, 3, padding=1), layer.BatchNorm2d(8), neuron.LIFNode(), layer.AvgPool2d(4), layer.Flatten(),
        BinaryLinear(32, 10),
    )  # fmt: skip


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(16, 64), torch.arange(16) % 10


def test_behind_a_rule_the_loss_falls_and_the_weights_stay_binary():
    model, (x, y) = net(), batch()
    opt = bso(model, lr=0.05, beta1=0.05, threshold=1e-5)
    rule = SLTT(model, opt, num_steps=4, update="step")
    losses = [rule.train_step(x, y).loss.item() for _ in range(30)]
    binary, rest = binary_parameters(model)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert len(binary) == 2 and all((p.abs() == 1).all() for p in binary) and len(rest) == 5


def test_the_state_is_four_bytes_a_weight():
    model, (x, y) = net(), batch()
    rule = SLTT(model, bso(model), num_steps=2)
    rule.train_step(x, y)
    binary, rest = binary_parameters(model)
    state = rule.optimizer.state
    held = sum(value.nbytes for p in binary for value in state[p].values())
    assert held == 4 * sum(p.numel() for p in binary)
    assert all("momentum_buffer" in state[p] for p in rest)


@pytest.mark.parametrize("T", [None, 4])
def test_a_run_resumes_in_the_middle_of_a_sequence_bit_by_bit(T):
    model, (x, y) = net(), batch()
    options = {"beta1": 0.05, "threshold": 1e-5 if T is None else 0.05, "num_steps": T}
    rule = SLTT(model, bso(model, **options), num_steps=3, update="step")
    rule.train_step(x, y)  # three of the four steps of v
    twin = copy.deepcopy(model)
    again = SLTT(twin, bso(twin, **options), num_steps=3, update="step")
    again.optimizer.load_state_dict(copy.deepcopy(rule.optimizer.state_dict()))
    for each in (rule, again):
        each.optimizer.param_groups[-1]["lr"] = 0.03  # as a schedule would: the other optimizer sees it
        for _ in range(3):
            each.train_step(x, y)
    assert again.optimizer.rest.param_groups[-1]["lr"] == 0.03
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
    if T:
        fresh = copy.deepcopy(again.optimizer.state_dict())
        assert fresh["param_groups"][0]["updates"] == 12


def test_a_schedule_anneals_the_rate_and_the_threshold():
    grads, w = gradients(), weight()
    opt = BSO([w], threshold=0.05, beta1=0.1)
    torch.optim.lr_scheduler.LambdaLR(opt, lambda epoch: 0.1)
    for g in grads:
        w.grad = g
        opt.step()
    assert torch.equal(w.detach(), by_hand(grads, 0.005, 0.01, 0.0, None)[-1])
    opt.param_groups[0]["lr"] = 0.0
    before, m = w.detach().clone(), opt.state[w]["m"].clone()
    opt.step()
    assert torch.equal(w, before) and torch.equal(opt.state[w]["m"], m)


def test_a_weight_without_gradient_is_left_alone_and_a_closure_is_called():
    w, other = weight(), weight()
    before = other.detach().clone()
    opt = BSO([w, other], threshold=1e-9, beta1=0.5)
    w.grad = gradients(1)[0]
    assert opt.step(lambda: F.mse_loss(w, w)).item() == 0
    assert other not in opt.state and torch.equal(other, before)


def test_more_parameters_join_the_other_optimizer():
    w, p = weight(), nn.Parameter(torch.ones(2))
    opt = BSO([w], rest=torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.5))
    opt.add_param_group({"params": [p]})
    p.grad = torch.ones(2)
    opt.step()
    assert p.tolist() == [0.5, 0.5] and opt.param_groups[-1] is opt.rest.param_groups[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, "threshold=0.0 is not above 0"),
        ({"beta1": 0.0}, r"beta1=0.0 is not in \(0, 1\]"),
        ({"beta2": 1.5}, r"beta2=1.5 is not in \(0, 1\]"),
        ({"num_steps": 0}, "num_steps=0"),
    ],
)
def test_what_is_out_of_range_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        BSO([weight()], **options)


def test_what_it_cannot_do_is_named():
    with pytest.raises(ValueError, match="weight_decay=0.1 of binary weights"):
        BSO([{"params": [weight()], "weight_decay": 0.1}])
    with pytest.raises(ValueError, match="no.* binary layers|this one has none"):
        bso(nn.Linear(2, 2))
    w = weight()
    opt = BSO([w])
    w.grad = torch.ones(SHAPE).double()
    with torch.no_grad():
        w *= 0.5
    with pytest.raises(ValueError, match=r"shape \(5, 7\) is not \+-1 any more"):
        opt.step()


def test_a_recipe_names_it():
    recipe = Recipe(num_steps=2)
    recipe.train.optimizer.name, recipe.train.optimizer.options = "bso", {"lr": 0.05, "beta1": 0.01}
    recipe.model.options["synapse"] = "binary"
    parts = build(recipe, rehearsal=True)
    assert isinstance(parts.optimizer, BSO) and parts.optimizer.param_groups[0]["beta1"] == 0.01
