"""Networks for the tests of folding."""

import torch
from spikingjelly.activation_based import layer
from torch import nn

X = torch.rand(2, 3, 4, 4, dtype=torch.float64)


def trained(net):
    """In eval mode, with statistics and weights that no norm has by chance."""
    for module in net.double().modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.affine:
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.track_running_stats:
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net.eval()


def norms(net):
    return sum(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in net.modules())


class Net(nn.Module):
    """A convolution, a norm, and a forward of their own."""

    def __init__(self, forward=lambda net, x: net.norm(net.conv(x)), norm=layer.BatchNorm2d, **others):
        super().__init__()
        self.conv, self.norm, self.way = layer.Conv2d(3, 3, 1), norm(3), forward
        for name, module in others.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.way(self, x)
