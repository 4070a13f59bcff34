"""The LM-H kernels against the reference, in the emulator: spikes and states equal, every gradient close."""

from itertools import product

import pytest
import torch
from torch import Tensor

from sj_online.cuda import loader
from sj_online.neuron.lmh import kernel, reference

SIZES = [(1, 1), (3, 63), (7, 500), (1, 500), (3, 1), (7, 63), (4, 64)]
"""(T, N); see test_cuda_empf."""

NAMES = ("grad_x", "grad_v_d0", "grad_v_s0", "grad_factors")
THRESHOLD, ALPHA = 0.7, 0.8


def inputs(T: int, N: int, dtype: torch.dtype, per_step: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_seq, v_d0, v_s0, factors, all four factors far from the IF neuron where they start."""
    torch.manual_seed(T * N)
    P = T if per_step else 1
    factors = torch.cat([torch.rand(2, P) - 0.5, torch.rand(2, P) + 0.5])
    return (torch.randn(T, N) + 0.3).to(dtype), 0.3 * torch.randn(N), 0.3 * torch.randn(N), factors


@pytest.mark.parametrize("dtype", loader.SCALARS)
def test_forward_equals_the_reference(emulator: list[str], dtype: torch.dtype) -> None:
    for (T, N), per_step, store_v in product(SIZES, (False, True), (False, True)):
        arguments = *inputs(T, N, dtype, per_step), THRESHOLD, store_v
        expected, got = reference.forward(*arguments), kernel.forward(*arguments)
        assert expected[0].any() or N == 1, "a test in which no neuron fires shows nothing"
        for name, a, b in zip(("o_seq", "v_d_last", "v_s_last", "v_d_seq", "v_s_seq"), got, expected, strict=True):
            assert torch.equal(a, b), (name, T, N, per_step, store_v)
            assert a.dtype == b.dtype
    assert {name[-2] for name in emulator} == {"1", "4"}


@pytest.mark.parametrize("dtype", loader.SCALARS)
def test_backward_equals_the_reference(emulator: list[str], dtype: torch.dtype) -> None:
    for (T, N), per_step in product(SIZES, (False, True)):
        *arguments, factors = inputs(T, N, dtype, per_step)
        *_, v_d_seq, v_s_seq = reference.forward(*arguments, factors, THRESHOLD, True)
        grad_o, grad_last, grad_seq = torch.randn(T, N).to(dtype), torch.randn(2, N), torch.randn(T, N)
        for temporal_grad, with_v_seq in product((True, False), repeat=2):
            upstream = grad_o, *grad_last, grad_seq if with_v_seq else torch.empty(0)
            rest = *arguments[1:], v_d_seq, v_s_seq, factors, THRESHOLD, ALPHA, temporal_grad
            got, expected = (module.backward(*upstream, *rest) for module in (kernel, reference))
            for name, a, b in zip(NAMES, got, expected, strict=True):
                assert a.shape == b.shape and a.dtype == b.dtype
                tolerance = 1e-5 * N**0.5 if name == "grad_factors" else 1e-6
                torch.testing.assert_close(a, b, rtol=1e-5, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def test_the_surrogate_has_its_support(emulator: list[str]) -> None:
    x_seq = torch.linspace(-2, 3, 501)[None]
    v_d0 = v_s0 = torch.zeros(501)
    factors = torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    *_, v_d_seq, v_s_seq = kernel.forward(x_seq, v_d0, v_s0, factors, THRESHOLD, True)
    nothing = torch.empty(0)
    grad_x, *_ = kernel.backward(
        torch.ones_like(x_seq), nothing, nothing, nothing, v_d0, v_s0, v_d_seq, v_s_seq, factors, THRESHOLD, 2.0, True
    )
    triangle = THRESHOLD * (2 - 4 * (x_seq - THRESHOLD).abs()).clamp(min=0)
    torch.testing.assert_close(grad_x, triangle)
    assert grad_x.count_nonzero() < 110
