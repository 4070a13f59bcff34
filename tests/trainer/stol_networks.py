"""Networks for the tests of STOL, and its oracle: truncated backpropagation through time."""

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

from sj_online.state import detach

T, N, CLASSES = 6, 5, 3
# u[t] = u[t-1] (1 - s[t-1]) / 2 + x[t], the gradient of the reset kept (STOL, Eq. 2).
HARD = {
    "tau": 2.0,
    "v_reset": 0.0,
    "decay_input": False,
    "detach_reset": False,
    "surrogate_function": surrogate.PiecewiseQuadratic(alpha=1.0),
}
EXACT = {"rtol": 0, "atol": 1e-12}


def mlp(bias=False, **node):
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Linear(4, 8, bias=bias),
        neuron.LIFNode(**{**HARD, **node}),
        layer.Linear(8, 7, bias=bias),
        neuron.LIFNode(**{**HARD, **node}),
        layer.Linear(7, CLASSES, bias=bias),
    )
    for weight in net.parameters():
        nn.init.normal_(weight, 0.3, 0.6)
    return net.double()


class Feedback(nn.Module):
    """A residual branch, a neuron that hears itself a step later, and one neuron called twice a step."""

    def __init__(self):
        super().__init__()
        node = {**HARD, "surrogate_function": surrogate.Sigmoid(alpha=2.0)}
        self.stem = layer.Conv2d(2, 4, 3, padding=1)
        self.twice = neuron.LIFNode(**node)
        self.heard = layer.ElementWiseRecurrentContainer(neuron.LIFNode(**node), lambda y, x: 0.5 * y + x)
        self.branch = nn.Sequential(layer.Conv2d(4, 4, 3, padding=1), layer.BatchNorm2d(4), neuron.LIFNode(**node))
        self.drop = nn.Dropout(0.3)
        self.mask = layer.Dropout(0.3)
        self.readout = nn.Sequential(layer.Conv2d(4, CLASSES, 1), layer.AdaptiveAvgPool2d(1), layer.Flatten())

    def forward(self, x):
        x = self.mask(self.heard(self.stem(x)))
        x = x + self.drop(self.branch(x))
        x += self.twice(x)
        return self.readout(self.twice(x))


def feedback():
    torch.manual_seed(0)
    net = Feedback()
    nn.init.normal_(net.stem.weight, 0.2, 0.3)
    return net.double()


def batch(*shape, steps=T):
    torch.manual_seed(1)
    return torch.rand(steps, N, *shape, dtype=torch.float64) * 1.5, torch.randint(CLASSES, (N,))


def sgd(net, lr=0.1):
    return torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)


def gradient(rule, x, y):
    rule.net.zero_grad()
    torch.manual_seed(2)
    for _ in rule.gradients(x, y):
        pass
    return torch.cat([p.grad.flatten() for p in rule.net.parameters()])


def truncated(net, x, y, k, masks=None):
    """The oracle: each step's loss through a graph that begins k - 1 steps earlier, weights frozen."""
    total = 0
    for t in range(len(x)):
        functional.reset_net(net)
        torch.manual_seed(2)
        for j in range(t + 1):
            if j == t - k + 1:
                detach(net)
            output = net(x[j])
        total = total + F.cross_entropy(output, y)
    net.zero_grad()
    total.backward()
    return torch.cat([p.grad.flatten() for p in net.parameters()])
