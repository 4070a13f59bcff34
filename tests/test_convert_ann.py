"""ReLU to QCFS to LM-H: each layer exactly, the network nearly, the thresholds as the host's, and what is refused."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import ann2snn, layer, neuron
from torch import nn

from sj_online import predict
from sj_online.convert import qcfs_to_lmh, relu_to_qcfs
from sj_online.model import lmh_resnet20, lmh_vgg, small_vgg
from sj_online.neuron import QCFS, LMHNode

TH = 0.1
TINY = {"width": 4, "neuron": "qcfs", "neuron_options": {"levels": 4, "threshold": TH}}


class Block(nn.Module):
    """Residual, of torch's own modules, with a method, a function and an operator of each kind that is linear."""

    def __init__(self, make):
        super().__init__()
        self.conv, self.norm, self.act, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), make(), make()

    def forward(self, x):
        y = self.act(self.norm(self.conv(x)))
        y = torch.cat([y[:, :2], F.avg_pool2d(y[:, 2:], 3, 1, 1)], 1) / 2.3 + y * torch.tensor(0.37)
        return self.last(y.view(x.size(0), 4, 8, 8) - 0.0123 + x)


def residual(make):
    stem = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.MaxPool2d(1), make()]
    tail = [nn.AvgPool2d(2), nn.Dropout(0.1), nn.Flatten(), nn.Linear(64, 16), make(), nn.Linear(16, 10)]
    return nn.Sequential(*stem, Block(make), *tail)


NETS = {
    "residual": lambda make: residual(make),
    "resnet20": lambda make: lmh_resnet20(in_channels=1, **TINY),
    "vgg": lambda make: lmh_vgg(in_channels=1, image_size=8, plan=(1, "A", 2), hidden=2, **TINY),
    "small_vgg": lambda make: small_vgg(synapse="float", **TINY),
}


def made(name, dtype=torch.float64, make=lambda: QCFS(4, TH)):
    torch.manual_seed(0)
    net = NETS[name](make).to(dtype)
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.5)
    x = torch.rand(16, 1, 8, 8, dtype=dtype)
    for _ in range(3):  # running statistics
        net(x)
    return net.eval(), x


def inputs_and_outputs(net, x, kind):
    kept, hooks = {}, []
    for name, module in net.named_modules():
        if isinstance(module, kind):
            hooks.append(module.register_forward_hook(lambda m, i, o, name=name: kept.update({name: (i[0], o)})))
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    return kept


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("name", NETS)
def test_every_layer_gives_its_qcfs_in_the_mean_for_constant_input(name, dtype, atol):
    net, x = made(name, dtype)
    weights = copy.deepcopy({key: value for key, value in net.state_dict().items() if "threshold" not in key})
    kept = inputs_and_outputs(net, x, QCFS)
    rows = qcfs_to_lmh(net)
    assert {row.name for row in rows} == set(kept)
    levels = set()
    for row in rows:
        node, (current, expected) = net.get_submodule(row.name), kept[row.name]
        assert type(node) is LMHNode and node.v_threshold == pytest.approx(TH) and not node.training
        assert [f.item() for f in (node.mu_d, node.mu_s, node.lambda_s, node.lambda_d)] == [0, 0, 1, 1]
        with torch.no_grad():
            mean = torch.stack([node(current) for _ in range(4)]).mean(0)
            node.reset()
            later = torch.stack([node(current) for _ in range(3)]).mean(0)
        torch.testing.assert_close(mean, expected, rtol=0, atol=atol)
        levels |= set(expected.unique().tolist())
        assert not torch.allclose(later, expected), "T = 3 is another thing than L = 4"
    assert len(levels) == 5
    assert all(net.state_dict()[key].equal(value) for key, value in weights.items())


def test_the_whole_network_is_near_the_ann_and_not_equal():
    net, x = made("vgg")
    with torch.no_grad():
        ann = net(x)
    qcfs_to_lmh(net)
    out = predict(net, x, num_steps=4)
    assert not torch.allclose(out, ann, atol=1e-3)
    assert torch.corrcoef(torch.stack([out.flatten(), ann.flatten()]))[0, 1] > 0.8


def test_the_step_mode_is_the_networks():
    net = lmh_vgg(in_channels=1, image_size=8, plan=(1, "A", 2), hidden=2, step_mode="m", **TINY)
    qcfs_to_lmh(net, num_steps=3)
    nodes = [m for m in net.modules() if isinstance(m, LMHNode)]
    assert {node.step_mode for node in nodes} == {"m"} and {node.num_steps for node in nodes} == {3}
    assert net(torch.rand(3, 2, 1, 8, 8)).shape == (3, 2, 100)


def plain(make=nn.ReLU, pool=nn.AvgPool2d):
    torch.manual_seed(0)
    tail = [nn.Flatten(), nn.Linear(64, 16), make(), nn.Linear(16, 10)]
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), make(), pool(2), *tail)
    return net.double().eval()


@pytest.mark.parametrize("mode", ["99.9%", "max", 0.5])
def test_thresholds_and_spikes_are_those_of_the_hosts_conversion(mode):
    net, data = plain(), [torch.rand(8, 1, 8, 8, dtype=torch.float64) for _ in range(3)]
    host = ann2snn.FXConverter(ann2snn.RateCodingRecipe(data, mode=mode), "cpu").convert(copy.deepcopy(net))
    rows = relu_to_qcfs(net, data, levels=4, mode=mode)
    thresholds = [row.carried_over["threshold"] for row in rows]
    scales = [float(module.scale) for name, module in host.named_modules() if name.endswith("scaler1")]
    assert thresholds == pytest.approx(scales, rel=1e-6) and thresholds[0] != pytest.approx(thresholds[1], rel=0.1)
    qcfs_to_lmh(net)
    outputs = predict(net, data[0], num_steps=5, reduce="none")
    theirs = predict(host, data[0], num_steps=5, reduce="none")
    assert not torch.allclose(outputs, theirs), "the host starts at rest, QCFS takes half a threshold"
    for node in (net[2], net[6]):
        node.set_reset_value("v", 0.0)
    torch.testing.assert_close(predict(net, data[0], num_steps=5, reduce="none"), theirs, rtol=0, atol=1e-5)


def test_a_calibrated_network_is_near_the_relu_network_and_nearer_with_more_levels():
    x, errors = torch.rand(64, 1, 8, 8, dtype=torch.float64), []
    for levels in (2, 8, 64):
        net = plain()
        with torch.no_grad():
            expected = net(x)
            relu_to_qcfs(net, x, levels, mode="max")
            errors.append((net(x) - expected).abs().mean().item())
    assert errors[0] > 2 * errors[1] > 8 * errors[2] and errors[2] < 0.01


def test_without_data_thresholds_wait_to_be_loaded():
    net, other = plain(), plain()
    other.train()
    relu_to_qcfs(net, torch.rand(8, 1, 8, 8, dtype=torch.float64))
    rows = relu_to_qcfs(other, None)
    assert [row.carried_over for row in rows] == [{"threshold": 1.0}] * 2 and other[2].training
    other.load_state_dict(net.state_dict())
    assert other[2].threshold.item() == net[2].threshold.item() != 1.0 and net[2].levels == 8


class Custom(nn.Module):
    """An activation, and behind it whatever is asked for."""

    def __init__(self, forward, make=lambda: QCFS(4, 1.0), **modules):
        super().__init__()
        self.act, self.linear, self.call = make(), nn.Linear(4, 4), forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.call(self, x)


def inside(*args, **kwargs):
    return nn.Sequential(nn.Linear(4, 4), Custom(*args, **kwargs))


REFUSED = {
    "softmax module": (lambda: nn.Sequential(nn.Linear(4, 4), QCFS(), nn.Softmax(1)), r"'2' \(Softmax\) cannot be"),
    "softmax": (lambda: inside(lambda m, x: m.act(x).softmax(1)), r"softmax\(\) in the forward of '1' \(Custom\)"),
    "attention module": (
        lambda: inside(lambda m, x: m.mha(x, m.act(x), x)[0], mha=nn.MultiheadAttention(4, 1)),
        r"'1.mha' \(MultiheadAttention\) cannot be converted: behind an activation only what is linear",
    ),
    "attention": (lambda: inside(lambda m, x: m.act(x) @ m.linear(m.act2(x)).T, act2=QCFS()), r"matmul\(\) in the f"),
    "a square": (lambda: inside(lambda m, x: m.act(x) * m.act(x)), r"'1.act' \(QCFS\) cannot.*called more than once"),
    "its own square": (lambda: inside(lambda m, x: (lambda y: y * y)(m.act(x))), r"mul\(\) in the forward of '1'"),
    "a reciprocal": (lambda: inside(lambda m, x: 1 / m.act(x)), r"truediv\(\) in the forward of '1'"),
    "transposed": (lambda: inside(lambda m, x: (lambda y: y @ y.T)(m.act(x))), r"matmul\(\)"),
    "max pool module": (
        lambda: plain(QCFS, nn.MaxPool2d),
        r"'3' \(MaxPool2d\) cannot be converted: the largest of spikes.*an average pool in its place",
    ),
    "host's max pool": (lambda: plain(QCFS, layer.MaxPool2d), r"'3' \(MaxPool2d\).*an average pool in its place"),
    "max pool": (lambda: inside(lambda m, x: F.max_pool1d(m.act(x), 2)), r"max_pool1d\(\).*an average pool in its"),
    "relu left": (lambda: nn.Sequential(QCFS(), nn.ReLU(), nn.Linear(2, 2)), r"'1' \(ReLU\).*relu_to_qcfs makes"),
    "shared": (lambda: (lambda q: nn.Sequential(q, nn.Linear(4, 4), q))(QCFS()), r"'(0|2)' \(QCFS\).*more than once"),
    "layer norm": (lambda: nn.Sequential(QCFS(), nn.LayerNorm(4)), r"'1' \(LayerNorm\) cannot be converted"),
    "neuron": (lambda: nn.Sequential(neuron.IFNode(), QCFS()), r"'0' \(IFNode\).*a spiking neuron already"),
    "output": (lambda: Custom(lambda m, x: m.act(x).exp()), r"exp\(\) in the forward of the network cannot"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_converted_is_named_and_nothing_is_changed(kind):
    make, message = REFUSED[kind]
    net = make()
    before = {name: (type(module), id(module)) for name, module in net.named_modules()}
    with pytest.raises(ValueError, match=message) as caught:
        qcfs_to_lmh(net)
    assert "\n" not in str(caught.value)
    assert {name: (type(module), id(module)) for name, module in net.named_modules()} == before


def test_a_threshold_that_is_no_longer_positive_is_named():
    net = plain(QCFS)
    net[6].threshold.data.fill_(-0.5)
    with pytest.raises(ValueError, match=r"'6' \(QCFS\) cannot be converted: its threshold has become -0.5"):
        qcfs_to_lmh(net)
    assert type(net[2]) is QCFS


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: inside(lambda m, x: m.linear(x).relu()),
            r"relu\(\) in the forward of '1' \(Custom\).*nn.ReLU modules",
        ),
        (lambda: inside(lambda m, x: F.relu(m.act(x)), nn.ReLU), r"relu\(\) in the forward of '1' \(Custom\)"),
        (lambda: inside(lambda m, x: m.act(m.act(x)), nn.ReLU), r"'1.act' \(ReLU\).*called more than once"),
        (lambda: plain(pool=nn.MaxPool2d), r"'3' \(MaxPool2d\)"),
        (lambda: nn.Sequential(nn.Linear(4, 4)), "net=Sequential: nothing inside it to replace"),
    ],
)
def test_a_relu_network_that_cannot_be_converted_is_left_alone(make, message):
    net = make()
    kinds = [type(module) for module in net.modules()]
    with pytest.raises(ValueError, match=message):
        relu_to_qcfs(net, torch.rand(2, 4))
    assert [type(module) for module in net.modules()] == kinds


def test_bad_calibration_is_named():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).train()
    nn.init.zeros_(net[0].weight), nn.init.constant_(net[0].bias, -1.0)
    for data in (torch.rand(2, 4), []):
        with pytest.raises(ValueError, match=r"'1' \(ReLU\) has given nothing above 0"):
            relu_to_qcfs(net, data)
    with pytest.raises(ValueError, match="levels=0 is not a whole number of at least 1"):
        relu_to_qcfs(net, None, levels=0)
    assert type(net[1]) is nn.ReLU and net.training and not net[1]._forward_hooks


def test_before_the_first_activation_anything_may_be():
    """There everything is constant in time: the mean is what the ANN gives."""
    stem = [nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.GELU(), nn.Softmax(1), nn.Conv2d(4, 4, 3), QCFS(4, 0.5)]
    net = nn.Sequential(*stem).double()
    x = torch.rand(4, 1, 8, 8, dtype=torch.float64)
    expected = net(x)
    qcfs_to_lmh(net)
    torch.testing.assert_close(predict(net, x, num_steps=4), expected, rtol=0, atol=1e-12)


def test_sizes_are_no_rates():
    def forward(m, x):
        y = m.act(x)
        return y * y.shape[1] ** 0.5 + y.size(0) ** 2 + y.dim() ** 2

    net = Custom(forward)
    x = torch.rand(3, 4)
    expected = net(x)
    qcfs_to_lmh(net)
    torch.testing.assert_close(predict(net, x, num_steps=4), expected)


def test_a_forward_with_control_flow_is_looked_at_module_by_module():
    def forward(m, x):
        return m.linear(m.act(x)) if x.sum() > 0 else m.act(x)

    with pytest.warns(
        UserWarning, match="net=Custom cannot be traced .*a softmax or a maximum would go unseen"
    ) as caught:
        qcfs_to_lmh(Custom(forward))
    assert caught[0].filename == __file__
    for module, name in ((nn.MaxPool2d(2), "MaxPool2d"), (nn.Softmax(1), "Softmax"), (neuron.IFNode(), "IFNode")):
        net = Custom(forward, extra=module)
        with pytest.warns(UserWarning), pytest.raises(ValueError, match=rf"'extra' \({name}\) cannot be converted"):
            qcfs_to_lmh(net)
        assert type(net.act) is QCFS
    with warnings.catch_warnings(action="error"):
        qcfs_to_lmh(Custom(lambda m, x: m.linear(m.act(x))))
