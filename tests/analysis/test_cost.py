import pytest
import torch
from spikingjelly.activation_based import functional

from sj_online import deploy, model
from sj_online.analysis.cost import network_cost, neuron_operations

# Trainable parameters without the neurons', of the published networks.
PARAMETERS = [
    (model.ottt_vgg, {}, 9_228_362),
    (model.ottt_vgg, {"num_classes": 100}, 9_274_532),
    (model.ottt_vgg, {"in_channels": 2}, 9_227_786),
    (model.ottt_vgg_f, {}, 9_523_338),
    (model.ottt_vgg_f, {"num_classes": 100}, 9_569_508),
    (model.nf_resnet34, {}, 21_797_688),
    (model.stol_ms_resnet18, {}, 11_173_962),
    (model.stol_sew_resnet34, {}, 21_797_672),
    (model.stol_vgg11, {}, 9_476_298),
    (model.stol_vgg11, {"num_classes": 11}, 9_501_387),
    (model.lmh_resnet18, {}, 11_173_962),
    (model.lmh_resnet18, {"num_classes": 100}, 11_220_132),
    (model.lmh_resnet19, {}, 12_630_858),
    (model.lmh_resnet19, {"num_classes": 100}, 12_653_988),
    (model.lmh_resnet19_wide, {"num_classes": 100}, 14_687_204),
    (model.lmh_resnet20, {"num_classes": 100}, 278_324),
    (model.lmh_vgg13, {}, 28_703_140),
    (model.lmh_vgg13, {"num_classes": 200, "image_size": 64}, 35_404_296),
    (model.lmh_vgg16, {}, 34_015_396),
    (model.lmh_ms_resnet34, {}, 21_797_672),
]

# Quantised weights, float weights, norm, neurons; MB as the authors count and packed, binary and ternary.
HDLIF = [
    (model.hdlif_resnet18, {}, (11_157_504, 6_858, 9_600, 128), (2.816808, 4.211496), (1.42212, 2.816808)),
    (
        model.hdlif_resnet18,
        {"num_classes": 100},
        (11_157_504, 53_028, 9_600, 128),
        (3.001488, 4.396176),
        (1.6068, 3.001488),
    ),
    (model.hdlif_resnet34, {}, (21_258_240, 522_408, 17_024, 256), (7.404192, 10.061472), (4.746912, 7.404192)),
    (model.hdlif_vgg_snn, {}, (9_217_152, 46_090, 5_504, 160), (2.488648, None), (1.336504, None)),
    (model.hdlif_vgg13, {}, (9_400_320, 104_328, 5_888, 80), (2.767392, None), (1.592352, None)),
    (
        model.hdlif_resnet19,
        {"num_classes": 100},
        (12_484_608, 158_756, 10_624, 136),
        (3.756176, None),
        (2.1956, None),
    ),
]


@pytest.mark.parametrize(("factory", "kwargs", "expected"), PARAMETERS)
def test_parameters_are_the_published_networks(factory, kwargs, expected):
    with torch.device("meta"):
        c = network_cost(factory(**kwargs))
    assert c.parameters - c.neuron_parameters == expected


@pytest.mark.parametrize(("factory", "kwargs", "counts", "paper", "packed"), HDLIF)
@pytest.mark.parametrize("synapse", ["binary", "ternary"])
def test_weights_and_their_bytes_are_the_published_ones(factory, kwargs, counts, paper, packed, synapse):
    with torch.device("meta"):
        net = factory(**kwargs, synapse=synapse)
    c = network_cost(net)
    assert (c.quantized_weights, c.float_weights, c.norm_parameters, c.neuron_parameters) == counts
    assert c.parameters == sum(p.numel() for p in net.parameters())
    column = ["binary", "ternary"].index(synapse)
    if paper[column] is not None:
        assert (c.paper_bytes / 1e6, c.packed_bytes / 1e6) == (paper[column], packed[column])


def test_a_packed_network_is_refused(tmp_path):
    deploy.export(model.small_vgg(), tmp_path / "net")
    net = deploy.load(tmp_path / "net", model.small_vgg())
    with pytest.raises(ValueError, match="net is packed .* is a PackedConv2d.: count before the export"):
        network_cost(net)


def test_attention_has_six_parameters_and_membrane_norm_counts_with_the_neurons():
    with torch.device("meta"):
        plain, attentive = network_cost(model.hdlif_resnet18()), network_cost(model.hdlif_resnet18(attention="seca1"))
        normed = network_cost(model.hdlif_resnet18(membrane_norm=True))
    assert attentive.float_weights == plain.float_weights + 16 * 6
    assert normed.norm_parameters == plain.norm_parameters
    assert normed.neuron_parameters > plain.neuron_parameters


@pytest.mark.parametrize(("parallel", "expected"), [("none", 6_586_368), ("half", 4_620_288), ("all", 2_195_456)])
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_neuron_operations_of_resnet18(parallel, expected, step_mode):
    with torch.device("meta"):
        net = model.hdlif_resnet18(100, num_steps=4, parallel=parallel)
    functional.set_step_mode(net, step_mode)
    x = torch.empty(1, 3, 32, 32) if step_mode == "s" else torch.empty(4, 1, 3, 32, 32)
    assert neuron_operations(net, x) * (4 if step_mode == "s" else 1) == expected
