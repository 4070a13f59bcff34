import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from sj_online import predict
from sj_online.deploy import export, interchange, load
from sj_online.layer import BinaryConv2d, TernaryConv2d, TernaryLinear, integer
from sj_online.neuron import EMPFNode, HDLIFNode, LMHNode

runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
onnx = pytest.importorskip("onnx", reason="onnx is not installed")
T = 4


def network(num_steps=None, node=HDLIFNode):
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Conv2d(2, 6, 3),
        layer.BatchNorm2d(6),
        node(num_steps),
        BinaryConv2d(6, 6, 3, padding=1, stride=2),
        layer.BatchNorm2d(6),
        neuron.LIFNode(tau=3.0, v_threshold=0.3, v_reset=None),
        TernaryConv2d(6, 4, 1, bias=True),
        node(num_steps),
        layer.Flatten(),
        TernaryLinear(16, 3),
    )
    for index in (3, 6, 9):
        nn.init.normal_(net[index].weight)
    with torch.no_grad():
        for _ in range(2):
            functional.reset_net(net)
            for x in torch.randn(T, 8, 2, 6, 6):
                net(x)
    functional.reset_net(net)
    return net.eval()


def loaded(tmp_path, how, **options):
    export(network(**options), tmp_path / "net")
    return load(tmp_path / "net", network(**options), runtime=how, example_input=torch.randn(1, 2, 6, 6))


def session(path):
    return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


HOWS = ["packed", pytest.param("int8", marks=pytest.mark.skipif(integer.why_not() is not None, reason="no integers"))]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("num_steps", [None, T])
def test_all_steps_give_what_the_network_gives(how, num_steps, tmp_path):
    net, x = loaded(tmp_path, how, num_steps=num_steps), torch.randn(T, 3, 2, 6, 6)
    interchange.to_onnx(net, tmp_path / "net.onnx", x)
    expected = predict(net, x, reduce="none")
    (y,) = session(tmp_path / "net.onnx").run(["y"], {"x": x.numpy()})
    assert expected.unique().numel() > 9
    torch.testing.assert_close(torch.tensor(y), expected, rtol=1e-4, atol=1e-4)
    kinds = [node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node]
    assert kinds.count("ConvInteger") == (T if how == "int8" else 0)  # the first one; the others see other things


def test_a_static_input_and_one_step_with_its_state(tmp_path):
    net, x = loaded(tmp_path, "unpacked"), torch.randn(3, 2, 6, 6)
    interchange.to_onnx(net, tmp_path / "static.onnx", x, num_steps=T)
    state = interchange.to_onnx(net, tmp_path / "step.onnx", x, stateful=True)
    assert set(state) == {"2.v", "5.v", "7.v"}
    expected = predict(net, x, num_steps=T, reduce="none")
    (all_steps,) = session(tmp_path / "static.onnx").run(["y"], {"x": x.numpy()})
    torch.testing.assert_close(torch.tensor(all_steps), expected, rtol=1e-4, atol=1e-4)
    step, fed = session(tmp_path / "step.onnx"), {name: value.numpy() for name, value in state.items()}
    for t in range(T):
        y, *new = step.run(None, {"x": x.numpy(), **fed})
        torch.testing.assert_close(torch.tensor(y), expected[t], rtol=1e-4, atol=1e-4)
        fed = dict(zip(state, new, strict=True))
    assert not torch.equal(expected[0], expected[-1])  # the state matters


def test_integer_products_are_those_of_onnxruntime(tmp_path):
    export(nn.Sequential(TernaryConv2d(4, 6, 3, padding=1, stride=2, groups=2, bias=True)), tmp_path / "conv")
    export(nn.Sequential(TernaryLinear(9, 5)), tmp_path / "linear")
    for name, net, x in (
        ("conv", nn.Sequential(TernaryConv2d(4, 6, 3, padding=1, stride=2, groups=2, bias=True)), (2, 4, 7, 7)),
        ("linear", nn.Sequential(TernaryLinear(9, 5)), (2, 9)),
    ):
        net, x = load(tmp_path / name, net, runtime="packed"), torch.randint(0, 16, x) / 4
        for module in net:
            module.runtime, module.step = "int8", 0.25
        interchange.to_onnx(net, tmp_path / "net.onnx", x[None])
        (y,) = session(tmp_path / "net.onnx").run(["y"], {"x": x[None].numpy()})
        with torch.no_grad():
            net[0].runtime = "packed"
            torch.testing.assert_close(torch.tensor(y)[0], net(x), rtol=1e-5, atol=1e-5)
        assert "Integer" in " ".join(node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node)


def test_a_program_of_torch_export_with_its_state(tmp_path):
    net, x = loaded(tmp_path, "int8" if integer.why_not() is None else "packed", node=EMPFNode), torch.randn(3, 2, 6, 6)
    program, state = interchange.to_export(net, x)
    expected = predict(net, x, num_steps=T, reduce="none")
    values = list(state.values())
    for t in range(T):
        y, *values = program.module()(x, *values)
        torch.testing.assert_close(y, expected[t], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: network(), "synapse '3' has latent weights"),
        (lambda: nn.Sequential(HDLIFNode()).train(), "must be in eval mode"),
        (lambda: nn.Sequential(HDLIFNode(step_mode="m")).eval(), "step mode 's'"),
        (lambda: nn.Sequential(HDLIFNode(T)).eval(), f"neuron '0' has parameters for each of {T} steps"),
    ],
)
def test_what_cannot_go_out_is_one_line_and_writes_nothing(make, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        interchange.to_onnx(make(), tmp_path / "net.onnx", torch.rand(2, 2, 6, 6), stateful=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("node", [HDLIFNode(), EMPFNode(), LMHNode(), neuron.IFNode(v_reset=None)])
def test_nir_refuses_and_names_the_neuron(node):
    with pytest.raises(ValueError, match=f"NIR has no form for neuron '1', a {type(node).__name__}"):
        interchange.to_nir(nn.Sequential(nn.Linear(2, 2), node), torch.rand(1, 2))


def test_nir_of_hard_resets_is_the_hosts():
    with pytest.raises(ModuleNotFoundError, match="nir"):
        interchange.to_nir(nn.Sequential(nn.Linear(2, 2), neuron.IFNode()), torch.rand(1, 2))
