"""The EM-PF kernels against the reference, in the emulator: spikes and states equal, every gradient close."""

from itertools import product

import pytest
import torch
from torch import Tensor

from sj_online.cuda import loader
from sj_online.neuron.empf import kernel, reference

SIZES = [(1, 1), (3, 63), (7, 500), (1, 500), (3, 1), (7, 63), (9, 64)]
"""(T, N); 63 is no multiple of the lanes of a thread, 500 more than one turn of the grid, 9 more than one byte."""

NAMES = ("grad_x", "grad_v0", "grad_decay", "grad_threshold")


def inputs(T: int, N: int, dtype: torch.dtype, per_step: tuple[bool, bool]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_seq, v0, decay, threshold; about half of the neurons fire, some potentials equal the threshold exactly."""
    torch.manual_seed(T * N)
    decay, threshold = (0.2 + 0.6 * torch.rand(T if p else 1) for p in per_step)
    x_seq = (0.5 * torch.randn(T, N) + 0.2).to(dtype)
    v0 = torch.rand(N) * 0.5
    v0[::5] = 0
    x_seq[0, ::5] = threshold[0] = 0.375
    return x_seq, v0, decay, threshold


@pytest.mark.parametrize("dtype", loader.SCALARS)
def test_forward_equals_the_reference(emulator: list[str], dtype: torch.dtype) -> None:
    for (T, N), per_step in product(SIZES, product((False, True), repeat=2)):
        arguments = inputs(T, N, dtype, per_step)
        for bits, keep in product((0, 1, 4), ("v", "fired", "")):
            expected = reference.forward(*arguments, bits, keep)
            got = kernel.forward(*arguments, bits, keep)
            assert expected[0].any() or N == 1, "a test in which no neuron fires shows nothing"
            for name, a, b in zip(("s_seq", "v_last", "kept"), got, expected, strict=True):
                assert torch.equal(a, b), (name, T, N, per_step, bits, keep)
                assert a.dtype == b.dtype
    assert {name.split("<")[0] for name in emulator} == {"empf_forward"}
    assert {name[-2] for name in emulator} == {"1", "4"}


@pytest.mark.parametrize("dtype", loader.SCALARS)
@pytest.mark.parametrize("keep", ["v", "fired"])
def test_backward_equals_the_reference(emulator: list[str], dtype: torch.dtype, keep: str) -> None:
    for (T, N), per_step in product(SIZES, product((False, True), repeat=2)):
        x_seq, v0, decay, threshold = inputs(T, N, dtype, per_step)
        kept = reference.forward(x_seq, v0, decay, threshold, 0, keep)[2]
        grad_s, grad_v_last, grad_v_seq = torch.randn(T, N).to(dtype), torch.randn(N), torch.randn(T, N)
        for temporal_grad, with_v_seq in product((True, False), repeat=2):
            rest = (
                grad_v_last,
                grad_v_seq if with_v_seq else torch.empty(0),
                v0,
                kept,
                decay,
                threshold,
                temporal_grad,
            )
            got, expected = kernel.backward(grad_s, *rest), reference.backward(grad_s, *rest)
            assert torch.equal(got[0], expected[0])
            for name, a, b in zip(NAMES, got, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * N**0.5, msg=lambda m, n=name: f"{n}: {m}")


def test_fired_bits_hold_all_that_the_input_gradient_needs(emulator: list[str]) -> None:
    arguments = inputs(9, 63, torch.float32, (True, True))
    grads = torch.randn(9, 63), torch.randn(63), torch.empty(0)
    v0, decay, threshold = arguments[1:]
    by_v, by_bits = (
        kernel.backward(*grads, v0, kernel.forward(*arguments, 0, keep)[2], decay, threshold, True)
        for keep in ("v", "fired")
    )
    for name, a, b in zip(NAMES, by_v, by_bits, strict=True):
        assert torch.equal(a, b) == (name != "grad_decay"), name


def test_non_contiguous_and_unaligned_input(emulator: list[str]) -> None:
    x_seq, v0, decay, threshold = inputs(3, 64, torch.float32, (False, False))
    expected = reference.forward(x_seq, v0, decay, threshold, 0, "v")
    unaligned = torch.empty(3 * 64 + 1)[1:].view(3, 64).copy_(x_seq)
    for x in (x_seq.t().contiguous().t(), unaligned):
        for a, b in zip(kernel.forward(x, v0, decay, threshold, 0, "v"), expected, strict=True):
            assert torch.equal(a, b)
    assert [name[-2] for name in emulator] == ["4", "1"]


def test_nan_and_no_neuron_at_all(emulator: list[str]) -> None:
    x_seq, v0, decay, threshold = inputs(3, 8, torch.float32, (False, False))
    x_seq[1, 2] = torch.nan
    for bits in (0, 4):
        for a, b in zip(*(m.forward(x_seq, v0, decay, threshold, bits, "v") for m in (kernel, reference)), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    launches = len(emulator)
    empty = kernel.backward(x_seq[:, :0], v0[:0], torch.empty(0), v0[:0], x_seq[:, :0], decay, threshold, True)
    assert len(emulator) == launches
    assert [g.shape for g in empty] == [(3, 0), (0,), (1,), (1,)]
    assert not empty[2] and not empty[3]


def test_too_many_steps_for_the_blocks_memory(emulator: list[str]) -> None:
    arguments = inputs(130, 4, torch.float32, (True, True))
    kept = kernel.forward(*arguments, 0, "v")[2]
    with pytest.raises(ValueError, match="260 per-step parameters are too many for backend='cupy': at most 256 fit"):
        kernel.backward(arguments[0], arguments[1], torch.empty(0), arguments[1], kept, *arguments[2:], True)
