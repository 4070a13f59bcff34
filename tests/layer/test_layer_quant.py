import pytest
import torch
from spikingjelly.activation_based import functional, layer

from sj_online.layer import BinaryConv1d, BinaryConv2d, BinaryLinear, TernaryConv1d, TernaryConv2d, TernaryLinear
from sj_online.layer.quantizer import binarize, ternarize

CONVS = [
    (BinaryConv1d, layer.Conv1d, (9,)),
    (BinaryConv2d, layer.Conv2d, (9, 9)),
    (TernaryConv1d, layer.Conv1d, (9,)),
    (TernaryConv2d, layer.Conv2d, (9, 9)),
]


@pytest.fixture
def weight():
    # Beyond +-1 too, both zeros, and both bounds of the straight-through mask.
    w = torch.randn(5, 4, 3, 3, dtype=torch.float64)
    w[0, 0, 0] = torch.tensor([0.0, 1.0, -1.0])
    w[0, 0, 1, 0] = -0.0
    return w.requires_grad_()


def test_binarize_is_the_scaled_sign_with_an_inclusive_mask(weight):
    grad = torch.randn_like(weight)
    out = binarize(weight)
    out.backward(grad)
    for o in range(weight.shape[0]):
        scale = weight[o].abs().mean()
        assert torch.equal(out[o], torch.where(weight[o] < 0, -scale, scale))
    assert torch.equal(weight.grad, torch.where(weight.abs() > 1, 0, grad))


def test_ternarize_has_one_threshold_and_scale_per_tensor_and_an_exclusive_mask(weight):
    grad = torch.randn_like(weight)
    out = ternarize(weight)
    out.backward(grad)
    w = weight.detach().clamp(-1, 1)
    delta = 0.7 * w.abs().mean()
    a = w.abs()[w.abs() > delta].mean()
    expected = torch.where(w > delta, a, torch.where(w < -delta, -a, torch.zeros(())))
    torch.testing.assert_close(out.detach(), expected, rtol=0, atol=1e-15)
    assert torch.equal(weight.grad, torch.where(weight.abs() >= 1, 0, grad))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (7, 3, 5), (33, 17, 3, 3), (2, 90_000)])  # the last one overflows a sum
@pytest.mark.parametrize("quantise", [binarize, ternarize])
def test_levels_scale_and_gradient_in_every_dtype_and_layout(quantise, shape, dtype):
    torch.manual_seed(0)
    weight = torch.randn(*shape[1:], shape[0]).add(0.5).movedim(-1, 0).to(dtype).requires_grad_()
    grad = torch.randn(shape).to(dtype)
    out = quantise(weight)
    out.backward(grad)
    assert out.dtype == dtype

    W, eps = weight.detach().double(), torch.finfo(dtype).eps
    delta = 0.7 * W.abs().clamp(max=1).mean()
    settled = (W.abs() - delta).abs() > 4 * eps  # elsewhere the threshold's rounding decides
    settled |= torch.tensor(quantise is binarize)
    assert settled.float().mean() > 0.8
    torch.testing.assert_close(out.double()[settled], quantise(W)[settled], rtol=4 * eps, atol=0)
    inside = W.abs() <= 1 if quantise is binarize else W.abs() < 1
    assert torch.equal(weight.grad, torch.where(inside, grad, 0))


def test_ternarize_of_zeros_is_zero():
    assert torch.equal(ternarize(torch.zeros(3, 3)), torch.zeros(3, 3))


def test_the_scale_of_a_single_weight_beyond_the_threshold_is_its_magnitude():
    assert ternarize(torch.tensor([-0.75, 0.0, 0.0, 0.125])).tolist() == [-0.75, 0.0, 0.0, 0.0]


def twins(synapse, host, *args, **kwargs):
    """A quantised layer, and the host's with its weights as they are quantised."""
    ours, theirs = synapse(*args, bias=True, **kwargs).double(), host(*args, **kwargs).double()
    torch.nn.init.normal_(ours.weight)
    theirs.load_state_dict({"weight": ours.quantize(ours.weight), "bias": ours.bias})
    return ours, theirs


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
@pytest.mark.parametrize(("synapse", "host", "size"), CONVS)
def test_conv_is_the_hosts_conv_with_quantised_weights(synapse, host, size, padding_mode):
    conv, host = twins(synapse, host, 4, 6, 3, stride=2, padding=1, groups=2, padding_mode=padding_mode)
    x = torch.randn(3, 2, 4, *size, dtype=torch.float64)
    assert torch.equal(conv(x[0]), host(x[0]))
    functional.set_step_mode(conv, "m")
    assert torch.equal(conv(x), torch.stack([host(step) for step in x]))
    assert torch.equal(conv(x[0]), host(x[0]))  # T and N merged by the network


@pytest.mark.parametrize(("synapse", "quantise"), [(BinaryLinear, binarize), (TernaryLinear, ternarize)])
def test_linear_is_the_hosts_linear_with_quantised_weights(synapse, quantise):
    linear, host = twins(synapse, layer.Linear, 7, 5)
    x = torch.randn(3, 2, 7, dtype=torch.float64)
    assert torch.equal(linear.quantize(linear.weight), quantise(linear.weight)) and torch.equal(linear(x), host(x))


@pytest.mark.parametrize(
    ("synapse", "host", "shape"),
    [
        (BinaryLinear, lambda i, o, k: layer.Linear(i, o), (2, 4)),
        (TernaryLinear, lambda i, o, k: layer.Linear(i, o), (2, 4)),
        *((synapse, host, (2, 4, *size)) for synapse, host, size in CONVS),
    ],
)
def test_the_gradient_is_the_hosts_behind_the_mask(synapse, host, shape):
    conv = len(shape) > 2
    ours, theirs = twins(synapse if conv else lambda i, o, k, bias: synapse(i, o, bias), host, 4, 6, 3)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    grad = torch.randn_like(ours(x))
    dx, dw, db = torch.autograd.grad(ours(x), (x, ours.weight, ours.bias), grad)
    host_dx, host_dw, host_db = torch.autograd.grad(theirs(x), (x, theirs.weight, theirs.bias), grad)
    inside = ours.weight.abs() <= 1
    assert 0 < inside.sum() < inside.numel()
    assert torch.equal(dx, host_dx) and torch.equal(db, host_db) and torch.equal(dw, host_dw * inside)


@pytest.mark.parametrize("synapse", [BinaryConv2d(8, 8, 3), BinaryLinear(100, 9)])
def test_binary_latent_weights_start_small_and_positive_without_bias(synapse):
    assert isinstance(synapse, layer.Conv2d | layer.Linear)
    assert set(synapse.state_dict()) == {"weight"}
    assert synapse.weight.min() >= 0 and 5e-4 < synapse.weight.max() <= 1e-3


@pytest.mark.parametrize("synapse", [BinaryConv2d, TernaryConv2d])
def test_compiles_without_a_graph_break(synapse):
    conv = synapse(2, 3, 3)
    torch.nn.init.normal_(conv.weight)
    x = torch.randn(2, 2, 5, 5)
    out = torch.compile(conv, fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(out, conv(x))
    (grad,) = torch.autograd.grad(out.sum(), conv.weight)
    torch.testing.assert_close(grad, torch.autograd.grad(conv(x).sum(), conv.weight)[0])
