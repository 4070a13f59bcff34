import json
import struct

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sj_online import model
from sj_online.deploy import export, load, size_report
from sj_online.layer import BinaryConv2d, TernaryLinear


@pytest.mark.parametrize("synapse", ["binary", "ternary"])
def test_the_bytes_are_those_of_the_file(synapse, tmp_path):
    net = model.hdlif_resnet18(width=4, synapse=synapse, attention="seca1")
    sizes = size_report(net)
    export(net, tmp_path / "net")
    assert sizes.packed_bytes == sum(tensor.nbytes for tensor in load_file(tmp_path / "net").values())
    assert sizes.float_bytes == sum(tensor.nbytes for tensor in net.state_dict().values())
    loaded = load(tmp_path / "net", model.hdlif_resnet18(width=4, synapse=synapse, attention="seca1"))
    ours, theirs = sizes, size_report(loaded)
    assert (ours.packed_bytes, ours.float_bytes) == (theirs.packed_bytes, theirs.float_bytes)
    with (tmp_path / "net").open("rb") as file:
        (header,) = struct.unpack("<Q", file.read(8))
        assert json.loads(file.read(header))
    assert (tmp_path / "net").stat().st_size == sizes.packed_bytes + 8 + header


def test_the_ratios_that_are_asked_for():
    with torch.device("meta"):
        assert size_report(model.hdlif_resnet18(100)).ratio > 26
        assert size_report(model.hdlif_resnet34()).ratio > 11


def test_the_table_has_a_row_for_each_layer_with_tensors():
    net = nn.Sequential(BinaryConv2d(3, 4, 3, bias=True), nn.ReLU(), TernaryLinear(5, 6))
    rows = size_report(net).rows
    assert [(r.name, r.bits, r.float_bytes, r.packed_bytes) for r in rows] == [
        ("0", 1, 4 * (108 + 4), 14 + 16 + 16),
        ("2", 2, 120, 8 + 4),
    ]
    assert str(size_report(net)).splitlines()[-1].split() == ["all", "568", "58", "9.8"]
