import pytest
import torch
from spikingjelly.activation_based import functional, layer
from torch import nn

from sj_online.deploy import export, fold_norms, load
from sj_online.layer import BinaryConv1d, BinaryConv2d, TernaryConv1d, TernaryConv2d
from sj_online.neuron import EMPFNode


def trained_net(synapse, step_mode):
    net = nn.Sequential(
        layer.Conv2d(2, 5, 3),
        layer.BatchNorm2d(5),
        EMPFNode(3, threshold=0.2, membrane_norm=5),
        nn.Sequential(synapse(5, 6, 3, padding=1), layer.BatchNorm2d(6)),
        EMPFNode(threshold=0.2),
        layer.Flatten(),
        layer.Linear(6 * 25, 3),
    ).double()
    for module in net.modules():
        if isinstance(module, synapse):
            nn.init.normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)  # of both signs
            nn.init.normal_(module.bias)
    for _ in range(5):
        functional.reset_net(net)
        for x_t in torch.randn(3, 8, 2, 7, 7, dtype=torch.float64):
            net(x_t)
    functional.reset_net(net)
    functional.set_step_mode(net, step_mode)
    return net.eval()


def run(net, x):
    functional.reset_net(net)
    with torch.no_grad():
        return net(x) if net[0].step_mode == "m" else torch.stack([net(x_t) for x_t in x])


@pytest.mark.parametrize("synapse", [layer.Conv2d, BinaryConv2d, TernaryConv2d])
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_the_folded_network_computes_the_same_without_any_norm(synapse, step_mode, tmp_path):
    net = trained_net(synapse, step_mode)
    export(net, tmp_path / "net")
    folded = fold_norms(load(tmp_path / "net", trained_net(synapse, step_mode)))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert synapse is layer.Conv2d or folded[3][0].packed.dtype == torch.uint8
    x = torch.randn(3, 4, 2, 7, 7, dtype=torch.float64)
    torch.testing.assert_close(run(folded, x), run(net, x), rtol=0, atol=1e-10)


def test_latent_weights_are_left_alone():
    net = nn.Sequential(BinaryConv2d(2, 3, 3), layer.BatchNorm2d(3)).eval()
    assert isinstance(fold_norms(net)[1], nn.BatchNorm2d)


def test_a_network_in_training_is_refused():
    with pytest.raises(ValueError, match="training mode"):
        fold_norms(nn.Sequential(layer.Conv2d(2, 3, 3)))


@pytest.mark.parametrize("synapse", [layer.Conv1d, BinaryConv1d, TernaryConv1d])
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_a_1d_convolution_folds_too(synapse, step_mode, tmp_path):
    def network():
        return nn.Sequential(synapse(4, 6, 3), layer.BatchNorm1d(6)).double()

    net, x = network(), torch.randn(3, 8, 4, 9, dtype=torch.float64)
    nn.init.normal_(net[0].weight)
    nn.init.normal_(net[1].weight)
    for x_t in x:
        net(x_t)
    functional.set_step_mode(net.eval(), step_mode)
    export(net, tmp_path / "net")
    folded = fold_norms(load(tmp_path / "net", network()))
    functional.set_step_mode(folded, step_mode)
    assert isinstance(folded[1], nn.Identity)
    torch.testing.assert_close(run(folded, x), run(net, x), rtol=0, atol=1e-12)


def test_what_is_used_twice_or_has_no_fixed_statistics_is_left_alone():
    conv, norm = layer.Conv2d(2, 2, 1), layer.BatchNorm2d(2)
    nets = [
        nn.Sequential(conv, layer.BatchNorm2d(2), conv, layer.BatchNorm2d(2)),
        nn.Sequential(nn.Sequential(conv, layer.BatchNorm2d(2)), nn.Sequential(conv, layer.BatchNorm2d(2))),
        nn.Sequential(layer.Conv2d(2, 2, 1), norm, layer.Conv2d(2, 2, 1), norm),
        nn.Sequential(layer.Conv2d(2, 2, 1), layer.BatchNorm2d(2, track_running_stats=False)),
    ]
    for net in nets:
        x = torch.randn(3, 2, 4, 4)
        net(x)
        expected = net.eval()(x)
        assert torch.equal(fold_norms(net)(x), expected)
