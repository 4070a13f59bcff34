"""QCFS: its rate identity with IF, and its gradient under every version of torch; float64."""

import pytest
import torch
from spikingjelly.activation_based import neuron

from sj_online.neuron import QCFS, LMHNode


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("threshold", [1.0, 2.0, 0.75])
def test_the_mean_of_if_over_as_many_steps_as_levels(levels, threshold):
    x = torch.linspace(-0.5, 1.5 * threshold, 997, dtype=torch.float64)
    host = neuron.IFNode(v_threshold=threshold, v_reset=None)
    host.v = torch.full_like(x, threshold / 2)
    mean = torch.stack([threshold * host(x) for _ in range(levels)]).mean(0)
    ours = LMHNode(v_threshold=threshold).double()
    mean_ours = torch.stack([ours(x) for _ in range(levels)]).mean(0)
    a = QCFS(levels, threshold).double()(x)
    torch.testing.assert_close(a, mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(a, mean_ours, rtol=0, atol=1e-12)


def test_another_number_of_steps_is_not_equal():
    x = torch.linspace(-0.5, 1.5, 997, dtype=torch.float64)
    node = LMHNode().double()
    assert not torch.allclose(QCFS(4, 1.0).double()(x), torch.stack([node(x) for _ in range(3)]).mean(0))


def test_the_gradient_includes_the_outermost_levels():
    qcfs = QCFS(levels=4, threshold=2.0).double()
    x = torch.linspace(-1, 3.5, 1001, dtype=torch.float64).requires_grad_()
    weight = torch.randn_like(x)
    grad_x, grad_threshold = torch.autograd.grad((qcfs(x) * weight).sum(), [x, qcfs.threshold])
    q = (4 * x.detach() / 2 + 0.5).floor() / 4
    inside = ((q >= 0) & (q <= 1)).double()
    torch.testing.assert_close(grad_x, weight * inside, rtol=0, atol=1e-12)
    expected = (weight * (q.clamp(0, 1) - inside * x.detach() / 2)).sum()
    torch.testing.assert_close(grad_threshold, expected, rtol=0, atol=1e-12)
    strictly_inside = ((q > 0) & (q < 1)).double()
    assert (grad_x != weight * strictly_inside).sum() > 100, "levels 0 and 4 would get no gradient from a strict mask"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"levels": 0}, "levels=0 is not an integer of at least 1"), ({"threshold": 0.0}, "threshold=0.0 is not above 0")],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        QCFS(**kwargs)
