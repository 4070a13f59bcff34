"""Quantised networks compute the same after deployment."""

import pytest
import torch
from package_names import own
from tiny_models import arguments, build, outputs

from sj_online import deploy
from sj_online.layer.quantized import Quantized


@pytest.mark.parametrize("synapse", ["binary", "ternary"])
@pytest.mark.parametrize("name", own("models"))
def test_the_loaded_network_has_the_outputs_of_the_trained_one(name, synapse, tmp_path):
    net, x = build(name, {"synapse": synapse})
    outputs(net, x, "s")  # running statistics
    net.eval()
    deploy.export(net, tmp_path / "net", model=name, kwargs=arguments(name, {"synapse": synapse}))
    loaded = deploy.load(tmp_path / "net")
    assert any(isinstance(m, Quantized) for m in net.modules())
    assert not any(isinstance(m, Quantized) for m in loaded.modules())
    for step_mode in "sm":
        assert torch.equal(outputs(loaded, x, step_mode), outputs(net, x, step_mode))
