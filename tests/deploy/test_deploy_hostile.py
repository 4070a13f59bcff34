"""Packed files that are damaged or lie: one clear line each, at once, with little memory."""

import os
import resource
import stat
import time

import hostile_files
import pytest
import torch
from safetensors import safe_open
from torch import nn

from sj_online import model
from sj_online.deploy import build, export, load, read_header
from sj_online.deploy import bytes as content
from sj_online.layer import BinaryLinear

OPTIONS = {"width": 4, "depths": [1, 1], "multiples": [1, 2], "num_steps": 2}
SECONDS, MEGABYTES = 30, 100


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "net"
    torch.manual_seed(0)
    export(model.hdlif_resnet18(**OPTIONS), path, model="hdlif_resnet18", kwargs=OPTIONS)
    load(path)
    return path.read_bytes()


def refused(number, good, path):
    path.write_bytes(hostile_files.case(number, good))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ValueError) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value) and len(str(error.value)) < 1000
    assert time.process_time() - start < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1024 * MEGABYTES


@pytest.mark.parametrize("number", range(20))
def test_a_sample_of_hostile_files(number, good, tmp_path):
    refused(number, good, tmp_path / "net")


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20, hostile_files.CASES))
def test_hostile_files(number, good, tmp_path):
    refused(number, good, tmp_path / "net")


def test_of_no_change_the_file_loads_with_a_checksum_and_without(good, tmp_path):
    outer, header, data = hostile_files.split(good)
    for keep in (True, False):
        (tmp_path / "net").write_bytes(hostile_files.join(outer, header, data, keep_checksum=keep))
        load(tmp_path / "net")
    outer["__metadata__"]["sj_online_sha256"] = "0" * 64
    (tmp_path / "net").write_bytes(hostile_files.join(outer, header, data, keep_checksum=True))
    with pytest.raises(ValueError, match="its checksum is not that of its content"):
        read_header(tmp_path / "net")


def test_a_loaded_network_does_not_change_with_its_file(good, tmp_path):
    path = tmp_path / "net"
    path.write_bytes(good)
    net = load(path)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with path.open("r+b") as file:
        file.write(b"\xff" * len(good))
    with path.open("r+b") as file:
        file.truncate(10)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def small():
    return nn.Sequential(BinaryLinear(8, 4), nn.Linear(4, 2))


def test_floats_of_one_type_keep_it_and_mixed_ones_take_the_networks(tmp_path):
    for mixed in (False, True):
        net = small().double()
        if mixed:
            net[1].float()
        export(net, tmp_path / "net")
        loaded = load(tmp_path / "net", small())
        kinds = {tensor.dtype for tensor in loaded.state_dict().values() if tensor.is_floating_point()}
        assert kinds == {torch.float32 if mixed else torch.float64}


def test_what_is_not_finite_is_not_exported(tmp_path):
    net = small()
    net[1].bias.data[1] = float("inf")
    with pytest.raises(ValueError, match="tensor '1.bias' holds values that are not finite"):
        export(net, tmp_path / "net")
    assert not list(tmp_path.iterdir())


def test_a_scale_that_took_a_norm_in_may_be_negative_and_is_marked(tmp_path):
    net = load_small(tmp_path)
    net[0].scale.neg_()
    export(net, tmp_path / "folded")
    assert read_header(tmp_path / "folded")["packed"]["0"]["signed"] is True
    assert torch.equal(load(tmp_path / "folded", small())[0].scale, net[0].scale)


def load_small(tmp_path):
    export(small(), tmp_path / "net")
    return load(tmp_path / "net", small())


def test_a_link_stays_a_link_and_a_file_keeps_its_mode(tmp_path):
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "net", tmp_path / "link"
    export(small(), target)
    target.chmod(0o640)
    link.symlink_to(target)
    export(small(), link, metadata={"second": True})
    assert link.is_symlink() and read_header(target)["metadata"] == {"second": True}
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert [p.name for p in (tmp_path / "real").iterdir()] == ["net"]


def test_only_a_file_that_may_be_replaced_is(tmp_path):
    checkpoint, folder, pipe = tmp_path / "last.ckpt", tmp_path / "folder", tmp_path / "pipe"
    torch.save({"net": {}}, checkpoint)
    folder.mkdir()
    os.mkfifo(pipe)
    held = checkpoint.read_bytes()
    for path, what in (
        (checkpoint, "is not a safetensors file"),
        (folder, "is not a regular file"),
        (pipe, "is not a regular file"),
        ("/dev/null", "is not a regular file"),
    ):
        with pytest.raises(ValueError, match=f"{path} is there and {what}; it is not replaced"):
            export(small(), path)
    assert checkpoint.read_bytes() == held
    for path in (folder, pipe, "/dev/zero"):
        with pytest.raises(ValueError, match="not a readable packed file"):
            load(path)
    (tmp_path / "empty").touch()
    export(small(), tmp_path / "empty")
    with safe_open(tmp_path / "empty", "pt") as file:
        assert set(file.metadata()) == {content.KEY, content.CHECKSUM}


@pytest.mark.slow
def test_a_factory_that_needs_memory_is_built_and_one_that_asks_for_too_much_is_not():
    def needs_memory(n):
        net = nn.Linear(n, n)
        net.weight.max().item()
        return net

    built = build.build(needs_memory, {"n": 3}, 2, 12, lambda net: pytest.fail("compared on the meta device"))
    assert built.weight.shape == (3, 3)
    with pytest.raises(ValueError, match="more parameters than the file's 12"):
        build.build(needs_memory, {"n": 3000}, 2, 12, lambda net: None)
    with pytest.raises(ValueError, match="more than .* modules"):
        build.build(lambda n: nn.Sequential(*[nn.Identity() for _ in range(n)]), {"n": 10**6}, 2, 12, lambda net: None)
    nn.Linear(3000, 3000)  # outside there is no limit
