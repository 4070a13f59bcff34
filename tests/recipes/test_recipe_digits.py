"""The digits are learnt to 98 % without many an option: what each does is looked at where it acts."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

from sj_online.app import reader
from sj_online.app.build import build
from sj_online.app.cli import main
from sj_online.data.images import digits
from sj_online.neuron.leak import is_neuron


@pytest.fixture(scope="module")
def made():
    return build(reader.build(reader.source("digits")))


def test_the_loss_is_smoothed(made):
    output, y = torch.randn(6, 10), torch.tensor([1, 2, 3, 4, 5, 6])
    log_p = output.log_softmax(1)
    expected = -(0.9 * log_p[range(6), y] + 0.1 * log_p.mean(1)).mean()
    assert made.rule.loss_fn(output, y) == pytest.approx(float(expected), abs=1e-6)


def test_weights_decay_with_nesterovs_momentum_and_the_neurons_do_not(made):
    """Two updates without a gradient: with momentum m, d p = decay p is followed as (1 + m) d, then (1 + m + m^2) d."""
    before = {name: p.detach().clone() for name, p in made.net.named_parameters()}
    of_neurons = {id(p) for node in made.net.modules() if is_neuron(node) for p in node.parameters()}
    for _ in range(2):
        for p in made.net.parameters():
            p.grad = torch.zeros_like(p)
        made.optimizer.step()
    decay, lr, m = 5e-4, 0.1, 0.9
    first = 1 - lr * decay * (1 + m)
    factor = first - lr * decay * (first * (1 + m) + m * m)
    for name, p in made.net.named_parameters():
        expected = before[name] * (1 if id(p) in of_neurons else factor)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-6, atol=0)
    assert of_neurons and factor < 0.9999


def test_the_learning_rate_falls_over_all_the_epochs(made):
    assert made.recipe.train.epochs == 12
    seen = []
    for _ in range(12):
        seen.append([group["lr"] for group in made.optimizer.param_groups])
        made.schedule.step()
    assert seen == [pytest.approx([0.05 * (1 + math.cos(math.pi * epoch / 12))] * 2) for epoch in range(12)]


def test_images_move_by_up_to_a_pixel(made):
    plain = F.pad(digits().train[5][0], (1, 1, 1, 1))
    shifted = {plain[:, top : top + 8, left : left + 8].numpy().tobytes() for top in range(3) for left in range(3)}
    assert {made.data.train[epoch, 5][0].numpy().tobytes() for epoch in range(100)} == shifted


def test_each_of_four_steps_is_an_update_by_its_whole_loss(made):
    """The bias of the last layer gets softmax - target at every step, not a quarter of it."""
    layer, outputs, gradients = made.net.readout[-1], [], []
    hooks = [
        layer.register_forward_hook(lambda module, args, output: outputs.append(output.detach().flatten(0, -2))),
        made.optimizer.register_step_pre_hook(lambda *_: gradients.append(layer.bias.grad.clone())),
    ]
    made.net.train()
    y = torch.arange(10)
    made.rule.train_step(torch.rand(10, 1, 8, 8), y)
    for hook in hooks:
        hook.remove()
    outputs = outputs[-4:]  # before them the rule has had a look at the network
    assert len(gradients) == 4
    target = 0.9 * F.one_hot(y, 10) + 0.01
    for output, gradient in zip(outputs, gradients, strict=True):
        torch.testing.assert_close(gradient, (output.softmax(1) - target).mean(0))


def test_a_run_keeps_to_the_schedule(tmp_path):
    options = ["--num_steps=1", "--model.options.width=4", "--train.epochs=5", "--train.batch_size=512"]
    assert main(["train", "--out", str(tmp_path / "run"), *options]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["lr"] for line in lines] == pytest.approx([0.05 * (1 + math.cos(math.pi * e / 5)) for e in range(5)])
