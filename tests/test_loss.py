import pickle

import pytest
import torch
import torch.nn.functional as F
from package_names import own
from spikingjelly.activation_based import layer, neuron
from spikingjelly.activation_based.functional import temporal_efficient_training_cross_entropy
from torch import nn

from sj_online import registry
from sj_online.loss import CrossEntropyMSE, over_window, rate_cross_entropy, sum_cross_entropy, window_loss

T, N, CLASSES = 4, 5, 3
LOSSES = {
    "ce": F.cross_entropy,
    "rate": rate_cross_entropy,
    "sum": sum_cross_entropy,
    "one_hot": CrossEntropyMSE(0.05),
    "ones": CrossEntropyMSE(0.05, "ones"),
    "stol_events": CrossEntropyMSE(0.05, ce=1.0),
}


@pytest.fixture
def outputs():
    torch.manual_seed(0)
    return torch.randn(T, N, CLASSES, dtype=torch.float64)


@pytest.fixture
def y():
    return torch.tensor([0, 2, 1, 1, 0])


def log_likelihood(output, y):
    return torch.stack([o[label] - o.exp().sum().log() for o, label in zip(output, y, strict=True)]).mean()


def by_hand(name, outputs, y):
    """Each loss of a window from its formula, without torch's losses."""
    if name == "rate":
        return -log_likelihood(outputs.mean(0), y)
    if name == "sum":
        return -log_likelihood(outputs.sum(0), y)
    total = 0
    for output in outputs:
        ce = -log_likelihood(output, y)
        one_hot = ((output - torch.eye(CLASSES, dtype=output.dtype)[y]) ** 2).sum() / (N * CLASSES)
        ones = ((output - 1) ** 2).sum() / (N * CLASSES)
        total += {
            "ce": ce,
            "one_hot": 0.95 * ce + 0.05 * one_hot,
            "ones": 0.95 * ce + 0.05 * ones,
            "stol_events": ce + 0.05 * one_hot,
        }[name]
    return total / T


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_their_formulas(name, outputs, y):
    torch.testing.assert_close(window_loss(LOSSES[name], outputs, y), by_hand(name, outputs, y), rtol=0, atol=1e-12)


def test_losses_differ(outputs, y):
    values = [window_loss(loss, outputs, y).item() for loss in LOSSES.values()]
    assert len({round(value, 6) for value in values}) == len(LOSSES)


def test_cross_entropy_of_each_step_is_the_hosts_tet_loss(outputs, y):
    host = temporal_efficient_training_cross_entropy(outputs, y)
    torch.testing.assert_close(window_loss(F.cross_entropy, outputs, y), host, rtol=0, atol=1e-12)
    whole = over_window(lambda outputs, y: temporal_efficient_training_cross_entropy(outputs, y))
    assert window_loss(whole, outputs, y) == host


@pytest.mark.parametrize("name", LOSSES)
def test_soft_targets_mix_the_losses_of_the_labels(name, outputs, y):
    one_hot = F.one_hot(y, CLASSES).double()
    hard = window_loss(LOSSES[name], outputs, y)
    torch.testing.assert_close(window_loss(LOSSES[name], outputs, one_hot), hard, rtol=0, atol=1e-12)
    mixed = window_loss(LOSSES[name], outputs, 0.7 * one_hot + 0.3 * one_hot.flip(0))
    assert abs(mixed - hard) > 1e-6


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_can_be_pickled(name, outputs, y):
    twin = pickle.loads(pickle.dumps(LOSSES[name]))
    assert (window_loss(twin, outputs, y) == window_loss(LOSSES[name], outputs, y)).all()


@pytest.mark.parametrize("options, message", [({"a": 1.5}, "a=1.5"), ({"target": "two"}, "target='two'.*'ones'")])
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        CrossEntropyMSE(**options)


@pytest.mark.parametrize("rule", own("trainers"))
@pytest.mark.parametrize("name", LOSSES)
def test_every_rule_takes_every_loss_and_soft_targets(rule, name):
    torch.manual_seed(0)
    net = nn.Sequential(layer.Linear(4, 6), neuron.LIFNode(), layer.Linear(6, CLASSES))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    trained = registry.get("trainers", rule)(net, optimizer, loss_fn=LOSSES[name])
    result = trained.train_step(torch.rand(T, N, 4), torch.rand(N, CLASSES).softmax(-1))
    assert result.loss.isfinite()
